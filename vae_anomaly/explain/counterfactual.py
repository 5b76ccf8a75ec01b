r"""The smallest change that makes a flagged record normal: it is searched, and checked by scoring the changed record.

A record is cut into parts (columns, tokens; an image is one). Of the ``CANDIDATES`` parts that add most to its score
every set of one is tried, then every set of two, up to ``MOST``, with each kind of replacement that the modality
offers, until the detector does not flag the changed record; of the sets of that size the one with the lowest score is
taken. Then every proper subset of the replacements is tried as it is, and the smallest that suffices is the change. So
what is said of a change was measured, on a record of real values, by the detector as it decides.

With S kinds of replacement and C candidates that is at most :math:`S \sum_{k=1}^3 \binom{C}{k}` records scored for each
that is explained, and 7 for the subsets: 82 and 7 of a table, 14 and 7 of a line, 1 and 1
of an image. Of other parts a smaller change may exist.

Legend: N trials, P parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any, NamedTuple, Protocol

import numpy as np

from vae_anomaly.batch import OK, Records, concatenate
from vae_anomaly.detector import Detector
from vae_anomaly.report.model import Replacement

CANDIDATES, MOST = 6, 3


class Parts(Protocol):
    """Flagged records cut into P parts, and what these can be replaced by."""

    @property
    def order(self) -> Sequence[Sequence[int]]:
        """The parts of each record that may be replaced, the one that adds most to its score first."""

    @property
    def count(self) -> int:
        """P."""

    def donors(self, rows: np.ndarray, chosen: np.ndarray) -> list[Any]:
        """For each kind of replacement the values of N trials: of the record ``rows`` (N,) the parts ``chosen`` (N, P)
        are replaced."""

    def changed(self, rows: np.ndarray, chosen: np.ndarray, donors: Any, at: np.ndarray) -> Records:
        """The N records ``rows`` with the parts ``chosen`` (N, P) of the trials ``at`` (N,) of ``donors``."""

    def replacements(self, row: int, parts: Sequence[int], changed: Records) -> tuple[Replacement, ...]:
        """What the only record of ``changed`` has in those parts in place of the record ``row``."""


class Change(NamedTuple):
    """The ``parts`` that are replaced, the ``changed`` record alone, and its score."""

    parts: tuple[int, ...]
    changed: Records
    score: float


class _Trial(NamedTuple):
    """The record ``row`` with these ``parts`` replaced."""

    row: int
    parts: tuple[int, ...]


def smallest_changes(detector: Detector, parts: Parts) -> list[Change | None]:
    """For each record a change after which ``detector`` flags it no more, None where none of up to ``MOST`` parts was
    found."""
    found: list[Change | None] = [None] * len(parts.order)
    for size in range(1, MOST + 1):
        trials = [
            _Trial(row, some)
            for row, order in enumerate(parts.order)
            if found[row] is None
            for some in combinations(order[:CANDIDATES], size)
        ]
        if not trials:
            break
        rows, chosen = _arrays(trials, parts.count)
        kinds = parts.donors(rows, chosen)
        made = concatenate([parts.changed(rows, chosen, donors, np.arange(len(rows))) for donors in kinds])
        scores, normal = (values.reshape(len(kinds), len(rows)) for values in _scored(detector, made))
        scores = np.where(normal, scores, np.inf)
        enough = []
        for row in np.unique(rows[normal.any(0)]):
            mine = np.flatnonzero(rows == row)
            kind, i = divmod(int(scores[:, mine].argmin()), len(mine))
            enough.append((kind, int(mine[i])))
        for row, change in _pruned(detector, parts, trials, kinds, enough):
            found[row] = change
    return found


def _pruned(
    detector: Detector, parts: Parts, trials: Sequence[_Trial], kinds: Sequence[Any], enough: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, Change]]:
    """For each of the trials that are ``enough``, named by its kind and place, the smallest subset of its parts that
    suffices, of those of a size the one with the lowest score."""
    enough = sorted(enough)  # by kind, as the records are made
    subsets = [(kind, at, _Trial(trials[at].row, some)) for kind, at in enough for some in _subsets(trials[at].parts)]
    made = []
    for kind in sorted({kind for kind, _ in enough}):
        mine = [subset for subset in subsets if subset[0] == kind]
        rows, chosen = _arrays([trial for *_, trial in mine], parts.count)
        made.append(parts.changed(rows, chosen, kinds[kind], np.array([at for _, at, _ in mine])))
    if not made:
        return
    records = concatenate(made)
    scores, normal = _scored(detector, records)
    for row in sorted({trial.row for *_, trial in subsets}):
        sufficient = [i for i, (*_, trial) in enumerate(subsets) if trial.row == row and normal[i]]
        best = min(sufficient, key=lambda i: (len(subsets[i][2].parts), scores[i]))
        yield row, Change(subsets[best][2].parts, records.take(np.array([best])), float(scores[best]))


def _subsets(parts: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """The non-empty ones, smaller ones first, ``parts`` itself last."""
    for size in range(1, len(parts) + 1):
        yield from combinations(parts, size)


def _arrays(trials: Sequence[_Trial], count: int) -> tuple[np.ndarray, np.ndarray]:
    """(N,) the records of trials, and (N, P) bool which parts each replaces."""
    chosen = np.zeros((len(trials), count), bool)
    for i, trial in enumerate(trials):
        chosen[i, list(trial.parts)] = True
    return np.array([trial.row for trial in trials]), chosen


def _scored(detector: Detector, records: Records) -> tuple[np.ndarray, np.ndarray]:
    """(N,) nats, infinite where it cannot be scored, and (N,) whether the detector takes it for normal."""
    found = detector.detect(records)
    usable = found.status == OK
    return np.where(usable, found.score, np.inf), usable & ~found.is_anomaly
