"""From the detections of one batch, seen chunk by chunk, to its report. Memory does not grow with the batch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from vae_anomaly.batch import Detections, Records, concatenate
from vae_anomaly.detector import Detector, HeldOut
from vae_anomaly.drift import DISTANCE, RATE, SAMPLE, spread
from vae_anomaly.explain import (
    Explanation,
    column_shifts,
    compared,
    counterfactuals,
    explain,
    reference_values,
    score_shift,
    shortened,
)
from vae_anomaly.latent import framed, latent_means, projection
from vae_anomaly.muting import LOOKED_AT, Muting, most_muted
from vae_anomaly.preprocessing.tabular import ColumnState
from vae_anomaly.report.model import (  # fmt: skip
    ColumnQuality,
    Counterfactual,
    FlaggedRecord,
    LatentMap,
    Muted,
    Neighbour,
    Precision,
    Report,
    ScoreHistogram,
    Shift,
    is_mostly_flagged,
)
from vae_anomaly.thresholds import at_least, batch_p_value, false_alarms

SHOWN = 50
CONTRIBUTIONS = 8
KEPT_SCORES = 200_000
COUNTED_IDS = 2_000_000
MAPPED = 300  # normal records beside the flagged ones on a map


class _Sampled(NamedTuple):
    """Records that are kept of a chunk: their rows, whether each is flagged, and the values that are compared."""

    rows: np.ndarray
    flagged: np.ndarray
    values: Mapping[str, np.ndarray]

    def where(self, kept: np.ndarray) -> _Sampled:
        """Those records only."""
        return _Sampled(self.rows[kept], self.flagged[kept], {name: v[kept] for name, v in self.values.items()})


class Thinned:
    """Values in their order, along the first axis; every second, fourth, ... of them where there are more than
    ``most``."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._parts: list[np.ndarray] = []
        self._stride, self._kept = 1, 0

    def add(self, values: np.ndarray) -> None:
        """Take in more values."""
        self._parts.append(values[:: self._stride])
        self._kept += len(self._parts[-1])
        while self._kept > self._most:
            thinned = np.concatenate(self._parts)[::2]
            self._parts, self._kept, self._stride = [thinned], len(thinned), 2 * self._stride

    @property
    def values(self) -> np.ndarray:
        """What is kept."""
        return np.concatenate(self._parts) if self._parts else np.zeros(0)


class Strangest:
    """The ``most`` records with the highest scores, highest first; ``top`` are they, their scores, their rows, and what
    else was given of each, or None while there is none.

    Scores of ``several`` detectors are no one scale: then the first of these is by how much each exceeds its threshold,
    and it is that which is highest first.
    """

    def __init__(self, most: int, *, several: bool = False) -> None:
        self._most, self._key = most, 2 if several else 0
        self.top: tuple[Records, tuple[np.ndarray, ...]] | None = None

    def add(self, records: Records, score: np.ndarray, row: np.ndarray, *beside: np.ndarray) -> None:
        """Take in B records with their scores (B,), rows (B,) and more arrays (B,)."""
        if not len(records):
            return
        about = (score, row, *beside)
        if self.top is not None:
            before, known = self.top
            records = concatenate([before, records])
            about = tuple(np.append(old, new) for old, new in zip(known, about, strict=True))
        # equal scores in the batch's order, so that nothing depends on the chunks
        order = np.lexsort((about[1], -about[self._key]))[: self._most]
        self.top = records.take(order), tuple(values[order] for values in about)


class BatchSummary:
    """Counts, the strangest records and data quality of one batch; the one mutable thing of a scoring run."""

    def __init__(self, detector: Detector, least_shift: float = DISTANCE, muting: Muting | None = None) -> None:
        self.detector, self.least_shift, self.muting = detector, least_shift, muting
        self._muted: list[Muted] = []
        self.rows = self.scored = self.flagged = self.anomalies = self.found = 0
        self.by_part = np.zeros((2, len(detector.decider.parts)), np.int64)  # flagged and scored, by the threshold
        self.labelled = False
        self.unscorable: Counter[str] = Counter()
        self._quality = np.zeros((len(detector.preprocessor.columns), 3), np.int64)
        self._scores = [Thinned(KEPT_SCORES // len(detector.detectors)) for _ in detector.detectors]
        self._ids: list[np.ndarray] = []
        self._strangest = Strangest(SHOWN, several=bool(detector.segments))
        self._sample: list[_Sampled] = []
        self._halvings = 0

    def add(self, records: Records, detections: Detections) -> None:
        """Take in one chunk, in the batch's order."""
        good = ~np.isnan(detections.score)
        self.rows += len(records)
        self.scored += int(good.sum())
        self.flagged += int(detections.is_anomaly.sum())
        for i, chosen in enumerate((detections.is_anomaly, good)):
            self.by_part[i] += detections.by_part(chosen, self.by_part.shape[1])
        self.unscorable.update(_reason(s) for s in detections.status[~good])
        if records.labels is not None:
            self.labelled = True
            self.anomalies += int((records.labels & good).sum())
            self.found += int((records.labels & detections.is_anomaly).sum())
        self._quality += self.detector.preprocessor.quality(records, good)
        for i, kept in enumerate(self._scores):
            kept.add(detections.score[good & (detections.part == i) if self.detector.segments else good])
        if self.detector.schema.record_id and self.rows <= COUNTED_IDS:  # else they are the numbers of the rows
            self._ids.append(pd.util.hash_array(records.record_ids.astype(object), categorize=False))
        flagged = np.flatnonzero(detections.is_anomaly)
        taken, rows = records.take(flagged), records.first_row + flagged
        self._mute(taken, rows)
        self._strangest.add(taken, detections.score[flagged], rows, self.detector.excess(detections)[flagged])
        self._keep_sample(records, detections, good)

    def _keep_sample(self, records: Records, detections: Detections, good: np.ndarray) -> None:
        """The same records of a batch whatever its chunks are: as many as fit when every second is left out again."""
        rows = records.first_row + np.arange(len(records))
        chosen = np.flatnonzero(good & spread(rows, self._halvings))
        while len(chosen) + sum(len(part.rows) for part in self._sample) > 2 * SAMPLE:
            self._halvings += 1
            chosen = chosen[spread(rows[chosen], self._halvings)]
            self._sample = [part.where(spread(part.rows, self._halvings)) for part in self._sample]
        values = compared(self.detector, self.detector.encode(records.take(chosen)))
        self._sample.append(_Sampled(rows[chosen], detections.is_anomaly[chosen], values))

    def _shifts(self) -> tuple[Shift, ...]:
        """How the batch has shifted as a whole, the scores first; these and the columns have half of the rate each.

        Compared are the records that are not flagged, which a few far ones leave as they are: given the threshold their
        scores are exchangeable with the calibration scores below it. Where most are flagged it is all records.
        """
        sample, slack, everything = self._sample, 0.0, is_mostly_flagged(self.flagged, self.scored)
        if not everything:
            sample = [part.where(~part.flagged) for part in sample]
            slack = max(detector.threshold.promise.high for detector in self.detector.detectors)
        found = self._score_shift(everything)
        if not sample:
            return ()
        values = {name: np.concatenate([part.values[name] for part in sample]) for name in sample[0].values}
        columns = column_shifts(self.detector, values, level=RATE / 2, slack=slack, least=self.least_shift)
        return (found, *columns) if found else columns

    def _score_shift(self, everything: bool) -> Shift | None:
        """The farthest shift of a detector's scores from those of its own calibration, for those of several are no one
        scale; the detectors that scored something share the rate evenly."""
        used = [i for i, kept in enumerate(self._scores) if len(kept.values)]
        shifts = []
        for i in used:
            detector, scores = self.detector.detectors[i], self._scores[i].values
            threshold, calibration = detector.threshold, detector.threshold.calibration
            if not everything:
                calibration, scores = calibration[: len(calibration) - threshold.rank], scores[~threshold.flag(scores)]
            unlike = detector.held_out.unlike if detector.held_out else 0.0
            level = RATE / 2 / len(used)
            if found := score_shift(calibration, scores, level=level, least=self.least_shift, slack=unlike):
                of = f" of {self.detector.names[i] or 'the others'}" if self.detector.segments else ""
                shifts.append(replace(found, now=f"{found.now}{of}"))
        return max(shifts, key=lambda shift: shift.distance, default=None)

    def _mute(self, flagged: Records, rows: np.ndarray) -> None:
        """Look for feedback on the like of ``flagged``; a storm, which is news, is not looked at to its end."""
        if self.muting is None or self.flagged > LOOKED_AT:
            return
        for row, record, like in zip(rows, flagged.record_ids, self.muting.matches(flagged), strict=True):
            if like:
                self._muted.append(Muted(int(row), shortened(str(record)), like))

    @property
    def muted(self) -> tuple[Muted, ...]:
        """The flagged records that feedback mutes: none where there are more than may be, or too many to look at."""
        few = self.flagged <= LOOKED_AT and len(self._muted) <= most_muted(self.scored)
        return tuple(self._muted) if few else ()

    @property
    def scores(self) -> np.ndarray:
        """The batch's scores, detector by detector; every second, fourth, ... of them where there are many."""
        return np.concatenate([kept.values for kept in self._scores])

    def report(
        self,
        *,
        monitor: str,
        batch_id: str,
        batch_name: str,
        batch_sha256: str,
        extra_columns: Sequence[str],
        provenance: Mapping[str, str],
        notes: Sequence[str] = (),
        precision: Precision | None = None,
    ) -> Report:
        """The report of everything that was taken in; ``notes`` are said first."""
        threshold, several = self.detector.decider, bool(self.detector.segments)
        parts = threshold.shared(self.by_part[1])
        expected, low, high = false_alarms(parts)
        promise = threshold.promise
        held_out = self.detector.held_out or _assumed(self.detector)
        value = threshold.value if math.isfinite(threshold.value) and not several else math.nan
        records = self._records()
        return Report(
            monitor=monitor,
            batch_id=batch_id,
            batch_name=batch_name,
            batch_sha256=batch_sha256,
            rows=self.rows,
            scored=self.scored,
            unscorable=dict(sorted(self.unscorable.items())),
            flagged=self.flagged,
            expected_flagged=expected,
            flagged_range=(low, high),
            batch_p_value=batch_p_value(self.flagged, parts),
            alpha=threshold.alpha,
            alpha_range=(promise.low, promise.high),
            threshold_value=value,
            calibration_records=promise.calibration_records,
            score_name=self.detector.score_part.kind,
            columns=tuple(map(self._column, self.detector.preprocessor.all_states, self._quality, held_out.cells)),
            # scores of several detectors are no one scale
            histogram=ScoreHistogram.of(
                [] if several else threshold.calibration.tolist(), self.scores.tolist(), reach=value
            ),
            records=records,
            notes=(*notes, *self._notes()),
            extra_columns=tuple(extra_columns),
            provenance=dict(provenance),
            labelled={"anomalies": self.anomalies, "found": self.found} if self.labelled else None,
            shifts=self._shifts(),
            muted=self.muted,
            precision=precision,
            discovery_rate=threshold.discovery_rate,
            detectors=len(self.detector.detectors),
            extrapolated=threshold.tail.excesses if threshold.tail else None,
            latent=self._latent([record.row_index for record in records]),
        )

    def _latent(self, shown: Sequence[int]) -> LatentMap | None:
        """The strangest records, in the order of the rows that are ``shown``, among normal ones in a plane that is
        fitted to these."""
        if self._strangest.top is None:
            return None
        records, (_, rows, *_) = self._strangest.top
        flagged = records.take(np.array([rows.tolist().index(row) for row in shown]))
        known = self.detector.reference.inputs
        # evenly spread over the reference: its order is that of the files
        some = torch.linspace(0, len(known) - 1, min(MAPPED, len(known))).round().long()
        normal, odd = (
            latent_means(self.detector, inputs).double().numpy()
            for inputs in (known[some], self.detector.encode(flagged))
        )
        plane = projection(normal)
        cloud, found = plane.points(normal), plane.points(odd)
        low, high = cloud.min(0), cloud.max(0)
        # with more than a width of the cloud on either side the frame would be about the farthest record alone
        within = np.concatenate([cloud, np.clip(found, low - (high - low), high + (high - low))])
        points = framed(np.concatenate([cloud, found]), within.min(0), within.max(0))
        return LatentMap(tuple((x, y) for x, y in points.tolist()), tuple(range(len(cloud), len(points))), plane.axes)

    def _records(self) -> tuple[FlaggedRecord, ...]:
        """The strangest, those that are muted last."""
        muted = {one.row_index: one.feedback for one in self.muted}
        found = flagged_records(self.detector, self._strangest)
        marked = [replace(record, muted=muted.get(record.row_index, "")) for record in found]
        return tuple(sorted(marked, key=lambda record: bool(record.muted)))

    def _column(self, state: ColumnState, counts: np.ndarray, usual: Sequence[int]) -> ColumnQuality:
        missing, unseen, beyond = (int(n) for n in counts)
        rows = max(self.scored, 1)
        return ColumnQuality(
            column=state.column,
            kind=state.kind,
            missing=missing / rows,
            missing_in_training=state.missing,
            unseen=unseen / rows,
            beyond_range=beyond / rows,
            warning=self._warning(state, (missing, unseen, beyond), usual),
        )

    def _warning(self, state: ColumnState, counts: Sequence[int], usual: Sequence[int]) -> str:
        """What is unusual about the cells of a column, of which the held-out records have ``usual``, in a sentence.

        At most a share ``RATE`` of normal batches has a warning, but for the first values never seen: where no held-out
        record has such a value, one is told whatever its chance.
        """
        held_out = self.detector.held_out or _assumed(self.detector)
        level = RATE / (len(counts) * len(held_out.cells))
        missing, unseen, beyond = (
            count > 0 and at_least(count, self.scored, known + 1, held_out.records) <= level
            for count, known in zip(counts, usual, strict=True)
        )
        share = [f"{count / max(self.scored, 1):.1%}" for count in counts]
        if missing:
            return f"{share[0]} of the cells are missing; in training {state.missing:.1%} were."
        if state.kind == "text":
            return f"{share[1]} of the lines hold words never seen in training." if unseen else ""
        if unseen or (counts[1] and not usual[1]):
            return f"{counts[1]:,} cells hold values never seen in training."
        return f"{share[2]} of the cells lie beyond the range of the training records." if beyond else ""

    def _notes(self) -> list[str]:
        notes = []
        if not self.rows:
            notes.append("The file has a header and no records.")
        if self._ids and self.rows <= COUNTED_IDS:
            ids = np.sort(np.concatenate(self._ids))
            repeated = int((ids[1:] == ids[:-1]).sum())
            if repeated:
                notes.append(f"{repeated:,} records repeat an id of this batch; every row was scored.")
        if self.muting and self.flagged > LOOKED_AT:
            notes.append(f"More than {LOOKED_AT:,} records are flagged: feedback mutes none of so many.")
        elif self._muted and not self.muted:
            notes.append(
                f"Feedback would mute {len(self._muted):,} of {self.flagged:,} flagged records and mutes none: at most"
                f" {most_muted(self.scored):,} may be."
            )
        return notes


def flagged_records(detector: Detector, strangest: Strangest, *, changes: bool = True) -> tuple[FlaggedRecord, ...]:
    """The records that ``detector`` flags, with their reasons and, with ``changes``, what would make them normal."""
    if strangest.top is None:
        return ()
    records, (scores, rows, *_) = strangest.top
    found = detector.decided(records, records.status, scores)
    part = np.zeros(len(records), np.int64) if found.part is None else found.part
    # each by the detector that scored it
    explained: dict[int, tuple[Detector, Explanation, Counterfactual | None]] = {}
    for own, mine in zip(detector.detectors, detector.routed(records), strict=True):
        if not len(mine):
            continue
        routed = records.take(mine)
        explanations = explain(own, routed)
        found_normal: Sequence[Counterfactual | None] = [None] * len(mine)
        if changes:  # of another segment it would be another detector's
            found_normal = counterfactuals(replace(own, by=detector.by), routed, explanations)
        for i, explanation, change in zip(mine.tolist(), explanations, found_normal, strict=True):
            explained[i] = own, explanation, change
    out = []
    for i, (own, explanation, change) in sorted(explained.items()):
        shown = explanation.reasons[:CONTRIBUTIONS]
        columns = [reason.column for reason in shown]
        ids = own.reference.record_ids
        neighbours = tuple(
            Neighbour(ids[at], distance, reference_values(own, at, columns)) for at, distance in explanation.neighbours
        )
        threshold = detector.decider.parts[part[i]]
        label = None if records.labels is None else ("anomalous" if records.labels[i] else "normal")
        out.append(
            FlaggedRecord(
                row_index=int(rows[i]),
                record_id=shortened(str(records.record_ids[i])),
                score=float(scores[i]),
                p_value=float(found.p_value[i]),
                label=label,
                contributions=shown,
                rest_nats=float(sum(r.nats for r in explanation.reasons[CONTRIBUTIONS:])),
                neighbours=neighbours,
                picture=explanation.picture,
                tokens=explanation.tokens,
                detector=detector.names[part[i]] if detector.segments else "",
                threshold=threshold.value,
                calibration_records=len(threshold.measured),
                counterfactual=change,
            )
        )
    return tuple(out)


def _assumed(detector: Detector) -> HeldOut:
    """What stands for the held-out records of a detector that knows nothing of them: no test but for missing cells."""
    records = len(detector.reference.inputs)
    cells = [
        (round(s.missing * records), records if s.kind == "text" else 0, records)
        for s in detector.preprocessor.all_states
    ]
    return HeldOut(records, tuple(cells))


def _reason(status: str) -> str:
    return status.removeprefix("unscorable:")
