"""From the detections of one batch, seen chunk by chunk, to its report. Memory does not grow with the batch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from vae_anomaly.batch import Detections, Records, concatenate
from vae_anomaly.detector import Detector, HeldOut
from vae_anomaly.drift import DISTANCE, RATE, SAMPLE, spread
from vae_anomaly.explain import column_shifts, compared, explain, reference_values, score_shift, shortened
from vae_anomaly.preprocessing.tabular import ColumnState
from vae_anomaly.report.model import (  # fmt: skip
    ColumnQuality,
    FlaggedRecord,
    Neighbour,
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


class _Sampled(NamedTuple):
    """Records that are kept of a chunk: their rows, whether each is flagged, and the values that are compared."""

    rows: np.ndarray
    flagged: np.ndarray
    values: Mapping[str, np.ndarray]

    def where(self, kept: np.ndarray) -> _Sampled:
        """Those records only."""
        return _Sampled(self.rows[kept], self.flagged[kept], {name: v[kept] for name, v in self.values.items()})


class BatchSummary:
    """Counts, the strangest records and data quality of one batch; the one mutable thing of a scoring run."""

    def __init__(self, detector: Detector, least_shift: float = DISTANCE) -> None:
        self.detector, self.least_shift = detector, least_shift
        self.rows = self.scored = self.flagged = self.anomalies = self.found = 0
        self.by_part = np.zeros((2, len(detector.threshold.parts)), np.int64)  # flagged and scored, by the threshold
        self.labelled = False
        self.unscorable: Counter[str] = Counter()
        self._quality = np.zeros((len(detector.preprocessor.columns), 3), np.int64)
        self._scores: list[np.ndarray] = []
        self._stride, self._kept = 1, 0
        self._ids: list[np.ndarray] = []
        self._top: tuple[Records, np.ndarray, np.ndarray] | None = None
        self._sample: list[_Sampled] = []
        self._halvings = 0

    def add(self, records: Records, detections: Detections) -> None:
        """Take in one chunk, in the batch's order."""
        good = ~np.isnan(detections.score)
        self.rows += len(records)
        self.scored += int(good.sum())
        self.flagged += int(detections.is_anomaly.sum())
        for i, chosen in enumerate((detections.is_anomaly, good)):
            part = np.zeros(len(records), np.int64) if detections.part is None else detections.part
            self.by_part[i] += np.bincount(part[chosen], minlength=self.by_part.shape[1])
        self.unscorable.update(_reason(s) for s in detections.status[~good])
        if records.labels is not None:
            self.labelled = True
            self.anomalies += int((records.labels & good).sum())
            self.found += int((records.labels & detections.is_anomaly).sum())
        self._quality += self.detector.preprocessor.quality(records, good)
        self._keep_scores(detections.score[good])
        if self.detector.schema.record_id and self.rows <= COUNTED_IDS:  # else they are the numbers of the rows
            self._ids.append(pd.util.hash_array(records.record_ids.astype(object), categorize=False))
        self._keep_strangest(records, detections)
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
        threshold, scores = self.detector.threshold, self.scores
        calibration, sample, slack = threshold.calibration, self._sample, 0.0
        if not is_mostly_flagged(self.flagged, self.scored):
            calibration, scores = calibration[: len(calibration) - threshold.rank], scores[~threshold.flag(scores)]
            sample, slack = [part.where(~part.flagged) for part in sample], threshold.promise.expected
        found = score_shift(calibration, scores, level=RATE / 2, least=self.least_shift)
        if not sample:
            return ()
        values = {name: np.concatenate([part.values[name] for part in sample]) for name in sample[0].values}
        columns = column_shifts(self.detector, values, level=RATE / 2, slack=slack, least=self.least_shift)
        return (found, *columns) if found else columns

    def _keep_scores(self, scores: np.ndarray) -> None:
        self._scores.append(scores[:: self._stride])
        self._kept += len(self._scores[-1])
        while self._kept > KEPT_SCORES:
            thinned = np.concatenate(self._scores)[::2]
            self._scores, self._kept, self._stride = [thinned], len(thinned), 2 * self._stride

    def _keep_strangest(self, records: Records, detections: Detections) -> None:
        flagged = np.flatnonzero(detections.is_anomaly)
        if not flagged.size:
            return
        taken, score, row = records.take(flagged), detections.score[flagged], records.first_row + flagged
        if self._top is not None:
            before, scores, rows = self._top
            taken, score, row = concatenate([before, taken]), np.append(scores, score), np.append(rows, row)
        # equal scores in the batch's order, so that the report does not depend on the chunks
        order = np.lexsort((row, -score))[:SHOWN]
        self._top = taken.take(order), score[order], row[order]

    @property
    def scores(self) -> np.ndarray:
        """The batch's scores; every second, fourth, ... of them where there are many."""
        return np.concatenate(self._scores) if self._scores else np.zeros(0)

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
    ) -> Report:
        """The report of everything that was taken in; ``notes`` are said first."""
        threshold = self.detector.threshold
        parts = [(part, int(n)) for part, n in zip(threshold.parts, self.by_part[1], strict=True) if n]
        parts = parts or [(threshold, 0)]
        expected, low, high = false_alarms(parts)
        promise = threshold.promise
        held_out = self.detector.held_out or _assumed(self.detector)
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
            threshold_value=threshold.value if threshold.rank else math.nan,
            calibration_records=promise.calibration_records,
            score_name=self.detector.score_part.kind,
            columns=tuple(map(self._column, self.detector.preprocessor.all_states, self._quality, held_out.cells)),
            histogram=ScoreHistogram.of(threshold.calibration.tolist(), self.scores.tolist()),
            records=tuple(self._flagged_records()),
            notes=(*notes, *self._notes()),
            extra_columns=tuple(extra_columns),
            provenance=dict(provenance),
            labelled={"anomalies": self.anomalies, "found": self.found} if self.labelled else None,
            shifts=self._shifts(),
            discovery_rate=threshold.discovery_rate,
        )

    def _flagged_records(self) -> list[FlaggedRecord]:
        if self._top is None:
            return []
        records, scores, rows = self._top
        p_values = self.detector.decided(records, records.status, scores).p_value
        out = []
        for i, explanation in enumerate(explain(self.detector, records)):
            shown = explanation.reasons[:CONTRIBUTIONS]
            columns = [reason.column for reason in shown]
            ids = self.detector.reference.record_ids
            neighbours = tuple(
                Neighbour(ids[at], distance, reference_values(self.detector, at, columns))
                for at, distance in explanation.neighbours
            )
            label = None if records.labels is None else ("anomalous" if records.labels[i] else "normal")
            out.append(
                FlaggedRecord(
                    row_index=int(rows[i]),
                    record_id=shortened(str(records.record_ids[i])),
                    score=float(scores[i]),
                    p_value=float(p_values[i]),
                    label=label,
                    contributions=shown,
                    rest_nats=float(sum(r.nats for r in explanation.reasons[CONTRIBUTIONS:])),
                    neighbours=neighbours,
                    picture=explanation.picture,
                    tokens=explanation.tokens,
                )
            )
        return out

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
        return notes


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
