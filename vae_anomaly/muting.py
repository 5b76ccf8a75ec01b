r"""Which flagged records are like those that somebody has called false alarms: muted by what is odd, not by identity.

Each record becomes a vector v(x) of its latent position and its residuals in natural units, as in
:mod:`~vae_anomaly.scores.latent_neighbours`, and the evidence of its missing and unseen values. How far its entries are
out, beside the mean m and the standard deviation s (at least 1) of the reference records, is

.. math:: e(x) = \operatorname{asinh} \bigl(\operatorname{sign}(z) \max(|z| - 3, 0)\bigr), \qquad z = (v(x) - m) / s,

linear near 3 deviations and logarithmic far out. A record is muted where :math:`\lVert e(x) - e(y) \rVert` is at most
``NEAR`` for a false alarm y: the same entries are off, in the same direction, to within a factor of :math:`e^{1/2}`,
and nothing else is. Where no entry of y is far out, and only their combination is unusual, v(x) must be as near to
v(y), each entry by asinh, as half of the reference records are to their nearest other one.

Legend: B records, F false alarms, V entries of v.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from vae_anomaly.batch import Records
from vae_anomaly.detector import Detector, over_chunks, reference_evaluations
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
        vectors = self._vectors(self.detector.encode(records))
        far, best = self._far_out(vectors), np.full(len(records), np.inf)
        for name, vector, odd in zip(self.ids, self._known, self._far_out(self._known), strict=True):
            near, apart = NEAR, np.sqrt(np.square(far - odd).sum(1))
            if not odd.any():
                near, apart = self._radius, np.sqrt(np.square(np.arcsinh(vectors) - np.arcsinh(vector)).sum(1))
            for i in np.flatnonzero((apart <= near) & (apart < best)):
                found[i], best[i] = name, apart[i]
        return found

    @cached_property
    def _of_detectors(self) -> list[Muting]:
        routes = zip(self.detector.detectors, self.detector.routed(self.records), strict=True)
        return [Muting(own, tuple(self.ids[i] for i in mine), self.records.take(mine)) for own, mine in routes]

    @cached_property
    def _space(self) -> LatentNeighbours:
        with limited_threads(1):
            evaluations = reference_evaluations(self.detector.vae, self.detector.reference.inputs)
            return latent_neighbours(evaluations, None, k=1)

    @cached_property
    def _known(self) -> np.ndarray:
        return self._vectors(self.detector.encode(self.records))

    @cached_property
    def _reference(self) -> np.ndarray:
        return self._vectors(self.detector.reference.inputs)

    @cached_property
    def _usual(self) -> tuple[np.ndarray, np.ndarray]:
        return self._reference.mean(0), self._reference.std(0).clip(1.0)

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
        # of each column, or of each token
        width = len(self.detector.preprocessor.columns) if inputs.x.is_floating_point() else inputs.x.shape[1]
        evidence = np.zeros((len(inputs), width)) if inputs.evidence is None else inputs.evidence.double().numpy()
        return np.column_stack([v, evidence])

    def _far_out(self, vectors: np.ndarray) -> np.ndarray:
        """e of (B, V)."""
        mean, deviation = self._usual
        z = (vectors - mean) / deviation
        return np.asarray(np.arcsinh(np.sign(z) * (np.abs(z) - USUAL).clip(0.0)))
