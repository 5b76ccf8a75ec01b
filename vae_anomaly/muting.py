r"""Which flagged records are like those that somebody has called false alarms: muted by what is odd, not by identity.

How far out the entries of a vector v are, beside the mean m and the standard deviation s (at least 1) of the reference
records, is

.. math:: e(v) = \operatorname{asinh} \bigl(\operatorname{sign}(z) \max(|z| - 3, 0)\bigr), \qquad z = (v - m) / s,

linear near 3 deviations and logarithmic far out. Two records are odd in the same way where
:math:`\lVert e - e' \rVert` is at most ``NEAR``: the same entries are off, in the same direction, far out to within a
factor of :math:`e^{1/2}`, and nothing else is. That is asked of two vectors, and a record x is muted where it is like a
false alarm y in one of them:

* of a table, the features and the evidence of missing and unseen values: where columns of y lie far out by themselves,
  and y is not flagged with these columns masked. Nor must x be: what else may be odd about it, y does not excuse;
* the latent position and the residuals in natural units, as in :mod:`~vae_anomaly.scores.latent_neighbours`, and the
  evidence. Here a far value moves the whole record, and few are like it; but an unusual combination of usual values is
  seen. Where no entry of y is far out, v(x) must be as near to v(y), each entry by asinh, as half of the reference
  records are to their nearest other one.

Legend: B records, F false alarms, V entries of a vector, Q columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from vae_anomaly.batch import Records
from vae_anomaly.detector import Detector, over_chunks, reference_evaluations
from vae_anomaly.likelihoods import Layout
from vae_anomaly.preprocessing.tabular import TabularPreprocessor
from vae_anomaly.scores.latent_neighbours import LatentNeighbours, Nearest, latent_neighbours
from vae_anomaly.training import limited_threads
from vae_anomaly.vae import Inputs

NEAR = 0.5
USUAL = 3.0  # standard deviations of an entry that say nothing
MOST = 0.02  # share of a batch's scored records that may be muted; one may be in any case
LOOKED_AT = 10_000  # flagged records of a batch; of more none is muted


def most_muted(scored: int) -> int:
    """How many of so many scored records may be muted."""
    return max(1, int(MOST * scored))


@dataclass(frozen=True)
class Muting:
    """The false alarms of a monitor: ``ids`` (F,) of what was said of them, and the ``records`` (F,) themselves.

    An empty id is that of a confirmed anomaly: what is nearer to it than to a false alarm is not muted.
    """

    detector: Detector
    ids: tuple[str, ...]
    records: Records

    def matches(self, records: Records) -> list[str]:
        """For each of the scorable ``records`` (B,) the id of the false alarm that it is most like, or nothing."""
        found = [""] * len(records)
        if not (self.ids and found):
            return found
        if self.detector.segments:  # what is odd is odd for the detector that scored it
            for own, mine in zip(self._of_detectors, self.detector.routed(records), strict=True):
                for i, like in zip(mine.tolist(), own.matches(records.take(mine)), strict=True):
                    found[i] = like
            return found
        best = np.full(len(records), np.inf)
        for name, apart in zip(self.ids, self._apart(records), strict=True):
            for i in np.flatnonzero(apart < best):
                found[i], best[i] = name, apart[i]
        return found

    @cached_property
    def _of_detectors(self) -> list[Muting]:
        routes = zip(self.detector.detectors, self.detector.routed(self.records), strict=True)
        return [Muting(own, tuple(self.ids[i] for i in mine), self.records.take(mine)) for own, mine in routes]

    def _apart(self, records: Records) -> Iterator[np.ndarray]:
        """For each false alarm how far from it ``records`` (B,) are; infinity for those that are not like it."""
        inputs = self.detector.encode(records)
        values = self._usual_values.far_out(self._values(inputs))
        vectors = self._vectors(inputs)
        far = self._usual.far_out(vectors)
        for known, odd, columns, odd_values in zip(self._known, self._odd, *self._odd_values, strict=True):
            if odd.any():
                apart = _within(NEAR, far, odd)
            else:
                apart = _within(self._radius, np.arcsinh(vectors), np.arcsinh(known))
            if len(columns):
                by_value = _within(NEAR, values, odd_values)
                like = np.flatnonzero(np.isfinite(by_value))
                by_value[like[self._flagged_without(columns, records.take(like))]] = np.inf
                apart = np.minimum(apart, by_value)
            yield apart

    # ---- by values ----

    def _values(self, inputs: Inputs) -> np.ndarray:
        """Features and evidence of each record of a table, (B, F + Q) float64; (B, 0) of what is no table."""
        if not isinstance(self.detector.preprocessor, TabularPreprocessor):
            return np.zeros((len(inputs), 0))
        return np.column_stack([inputs.x.double().numpy(), self._evidence(inputs)])

    @cached_property
    def _usual_values(self) -> _Usual:
        return _Usual.of(self._values(self.detector.reference.inputs))

    @cached_property
    def _odd_values(self) -> tuple[list[np.ndarray], np.ndarray]:
        """Of each false alarm the columns that alone make it odd, or none of them; and e of its values, (F, F + Q)."""
        odd = self._usual_values.far_out(self._values(self.detector.encode(self.records)))
        columns = [np.unique(self._column[e != 0]) if odd.shape[1] else np.zeros(0, np.int64) for e in odd]
        for i, far in enumerate(columns):
            if self._flagged_without(far, self.records.take(np.array([i])))[0]:
                columns[i] = far[:0]
        return columns, odd

    @property
    def _column(self) -> np.ndarray:
        """(F + Q,) the column of each of the values."""
        layout = self.detector.preprocessor.layout
        assert isinstance(layout, Layout)
        features = [block.column for block in layout.blocks for _ in range(block.size)]
        return np.array([*features, *range(layout.columns)])

    def _flagged_without(self, columns: np.ndarray, records: Records) -> np.ndarray:
        """Whether each of ``records`` (B,) is flagged with these ``columns`` masked, as if that were no evidence."""
        inputs = self.detector.encode(records)
        if len(columns):
            masked = torch.from_numpy(np.isin(self._column, columns))
            features, others = masked[: inputs.x.shape[1]], ~masked[inputs.x.shape[1] :]
            seen = torch.ones_like(inputs.x) if inputs.observed is None else inputs.observed
            inputs = Inputs(
                inputs.x.masked_fill(features, 0.0),
                seen.masked_fill(features, 0.0),
                None if inputs.evidence is None else inputs.evidence * others,
                inputs.context,
            )
        return self.detector.decided(records, records.status, self.detector.scores(inputs)).is_anomaly

    # ---- by latent position and residuals ----

    @cached_property
    def _space(self) -> LatentNeighbours:
        with limited_threads(1):
            evaluations = reference_evaluations(self.detector.vae, self.detector.reference.inputs)
            return latent_neighbours(evaluations, None, k=1)

    @cached_property
    def _known(self) -> np.ndarray:
        return self._vectors(self.detector.encode(self.records))

    @cached_property
    def _odd(self) -> np.ndarray:
        return self._usual.far_out(self._known)

    @cached_property
    def _reference(self) -> np.ndarray:
        return self._vectors(self.detector.reference.inputs)

    @cached_property
    def _usual(self) -> _Usual:
        return _Usual.of(self._reference)

    @cached_property
    def _radius(self) -> float:
        """The median distance of a reference record to its nearest other one."""
        with limited_threads(1):
            u = torch.from_numpy(np.arcsinh(self._reference)).float()
            nearest = Nearest(u, 1).others(u, torch.arange(len(u)))[:, 0]
            return float((u - u[nearest]).double().square().sum(1).sqrt().median())

    def _vectors(self, inputs: Inputs) -> np.ndarray:
        """v of each record, (B, V) float64."""
        v = over_chunks(self.detector.vae, inputs, self._space.embed).double().numpy()
        return np.column_stack([v, self._evidence(inputs)])

    def _evidence(self, inputs: Inputs) -> np.ndarray:
        """The evidence of each column, or of each token, (B, Q) float64."""
        width = len(self.detector.preprocessor.columns) if inputs.x.is_floating_point() else inputs.x.shape[1]
        return np.zeros((len(inputs), width)) if inputs.evidence is None else inputs.evidence.double().numpy()


class _Usual(NamedTuple):
    """Mean and standard deviation of the entries of vectors, (V,) each."""

    mean: np.ndarray
    deviation: np.ndarray

    @staticmethod
    def of(reference: np.ndarray) -> _Usual:
        """Those of the vectors of reference records (M, V)."""
        return _Usual(reference.mean(0), reference.std(0).clip(1.0))

    def far_out(self, vectors: np.ndarray) -> np.ndarray:
        """e of (B, V)."""
        z = (vectors - self.mean) / self.deviation
        return np.asarray(np.arcsinh(np.sign(z) * (np.abs(z) - USUAL).clip(0.0)))


def _within(radius: float, ours: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The distance of each of ``ours`` (B, V) to ``other`` (V,), infinity beyond the ``radius``."""
    apart = np.sqrt(np.square(ours - other).sum(1))
    return np.where(apart <= radius, apart, np.inf)
