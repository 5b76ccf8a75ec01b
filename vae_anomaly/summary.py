"""From the detections of one batch, seen chunk by chunk, to its report. Memory does not grow with the batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from vae_anomaly.batch import Detections, Records, concatenate
from vae_anomaly.detector import Detector
from vae_anomaly.explain import explain, reference_values, shortened
from vae_anomaly.preprocessing.tabular import ColumnState
from vae_anomaly.report.model import ColumnQuality, FlaggedRecord, Neighbour, Report, ScoreHistogram

SHOWN = 50
CONTRIBUTIONS = 8
KEPT_SCORES = 200_000
COUNTED_IDS = 2_000_000
# A rate warns when it is this unlikely under the training rate: with 100 columns and a batch an hour, one false
# warning in more than ten years.
WARN_P = 1e-8
MANY_UNSEEN = 0.2  # share of lines with words never seen from which on it is the source that looks new


class BatchSummary:
    """Counts, the strangest records and data quality of one batch; the one mutable thing of a scoring run."""

    def __init__(self, detector: Detector) -> None:
        self.detector = detector
        self.rows = self.scored = self.flagged = self.anomalies = self.found = 0
        self.labelled = False
        self.unscorable: Counter[str] = Counter()
        self._quality = np.zeros((len(detector.preprocessor.columns), 3), np.int64)
        self._scores: list[np.ndarray] = []
        self._stride, self._kept = 1, 0
        self._ids: list[np.ndarray] = []
        self._top: tuple[Records, np.ndarray, np.ndarray] | None = None

    def add(self, records: Records, detections: Detections) -> None:
        """Take in one chunk, in the batch's order."""
        good = ~np.isnan(detections.score)
        self.rows += len(records)
        self.scored += int(good.sum())
        self.flagged += int(detections.is_anomaly.sum())
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
        expected, low, high = threshold.false_alarms(self.scored)
        promise = threshold.promise
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
            batch_p_value=threshold.batch_p_value(self.flagged, self.scored),
            alpha=threshold.alpha,
            alpha_range=(promise.low, promise.high),
            threshold_value=threshold.value,
            calibration_records=promise.calibration_records,
            score_name=self.detector.score_part.kind,
            columns=tuple(map(self._column, self.detector.preprocessor.all_states, self._quality)),
            histogram=ScoreHistogram.of(threshold.calibration.tolist(), self.scores.tolist()),
            records=tuple(self._flagged_records()),
            notes=(*notes, *self._notes()),
            extra_columns=tuple(extra_columns),
            provenance=dict(provenance),
            labelled={"anomalies": self.anomalies, "found": self.found} if self.labelled else None,
        )

    def _flagged_records(self) -> list[FlaggedRecord]:
        if self._top is None:
            return []
        records, scores, rows = self._top
        p_values = self.detector.threshold.p_value(scores)
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

    def _column(self, state: ColumnState, counts: np.ndarray) -> ColumnQuality:
        missing, unseen, beyond = (int(n) for n in counts)
        rows = max(self.scored, 1)
        return ColumnQuality(
            column=state.column,
            kind=state.kind,
            missing=missing / rows,
            missing_in_training=state.missing,
            unseen=unseen / rows,
            beyond_range=beyond / rows,
            warning=self._warning(state, missing, unseen),
        )

    def _warning(self, state: ColumnState, missing: int, unseen: int) -> str:
        from scipy.special import bdtrc  # imported late, like every use of scipy

        usual = (state.missing * len(self.detector.reference.inputs) + 1) / (len(self.detector.reference.inputs) + 2)
        if missing and bdtrc(missing - 1, self.scored, usual) < WARN_P:
            return f"{missing / self.scored:.1%} of the cells are missing; in training {state.missing:.1%} were."
        if state.kind == "text":
            share = unseen / max(self.scored, 1)
            return f"{share:.1%} of the lines hold words never seen in training." if share > MANY_UNSEEN else ""
        if unseen:
            return f"{unseen:,} cells hold values never seen in training."
        return ""

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


def _reason(status: str) -> str:
    return status.removeprefix("unscorable:")
