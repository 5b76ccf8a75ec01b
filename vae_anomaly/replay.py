"""The last committed batches scored again by a candidate and the champion, the same records for both.

Which alerts would there have been? Files of the inbox are read as a scoring run reads them, chunk by chunk, and nothing
is written. Both detectors decide with the present threshold of monitor.yml, as they would if they served.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from time import thread_time

import numpy as np

from vae_anomaly.batch import Detections, Records
from vae_anomaly.detector import Detector
from vae_anomaly.errors import ConfigError, DataError
from vae_anomaly.feedback import lessons
from vae_anomaly.report.review import Alerts, Change, OnFeedback, Replay, ReplayedBatch
from vae_anomaly.store.commits import Ledger
from vae_anomaly.store.records import Commit
from vae_anomaly.store.sources import Delivery, open_delivery, unchanged
from vae_anomaly.summary import Strangest, Thinned, flagged_records
from vae_anomaly.thresholds import Threshold, false_alarms
from vae_anomaly.training import limited_threads
from vae_anomaly.worker import decided_now, in_order, read_records
from vae_anomaly.workspace import Progress, Workspace, silent

CARDS = 12  # records of each kind that are explained
_log = logging.getLogger(__name__)
RANKED = 100_000  # records whose scores are ranked, at most


def replay(
    ws: Workspace, candidate: Detector, champion: Detector | None, *, last: int, progress: Progress = silent
) -> Replay:
    """Score the ``last`` committed batches of ``ws`` again.

    A batch is left out where its file is no longer in the inbox with the committed content, its results were pruned, or
    it was read under another data contract; then an earlier one takes its place.

    Parameters
    ----------
    candidate, champion : detectors of the columns of monitor.yml; without a champion only the candidate is counted.

    Raises
    ------
    ConfigError
        The candidate does not support the threshold that monitor.yml asks for. A champion that does not decides by its
        own, which it was registered with.
    DataError
        A file changes while it is read.
    """
    tally = _Tally([decided_now(ws, candidate), *([_as_it_can(ws, champion)] if champion else [])])
    batches: list[ReplayedBatch] = []
    left_out: Counter[str] = Counter()
    for commit, delivery in delivered_batches(ws, Ledger(ws.store).newest() if last else (), left_out, last=last):
        progress(f"replaying {commit.name}", len(batches), last)
        with unchanged(delivery):
            tally.detectors = [_for_batch(ws, detector, delivery) for detector in tally.detectors]
            batches.append(tally.replayed(commit, _detected(ws, tally, delivery)))
    return replace(tally.result(batches, left_out), on_feedback=_on_feedback(ws, tally.detectors))


def delivered_batches(
    ws: Workspace, commits: Iterable[Commit], left_out: Counter[str], *, last: int
) -> Iterator[tuple[Commit, Delivery]]:
    """The first ``last`` of ``commits`` whose delivered files can be read again, each open until the next is asked for;
    why others cannot is counted in ``left_out``."""
    pruned, found = Ledger(ws.store).pruned(), 0
    for commit in commits:
        if found == last:
            return
        if commit.batch_id in pruned:
            left_out["pruned"] += 1
        elif commit.contract_digest != ws.contract_digest:
            left_out["read under another data contract"] += 1
        else:
            with _delivered(ws, commit) as delivery:
                if delivery is None:
                    left_out["not in the inbox as it was committed"] += 1
                    continue
                found += 1
                yield commit, delivery


def _on_feedback(ws: Workspace, detectors: Sequence[Detector]) -> OnFeedback | None:
    """What the candidate and the champion decide on records of which people said what they are.

    Of each record alone: with a threshold for each batch nobody can say, and then there is None.
    """
    said = lessons(ws)
    kinds = [records for records in (said.anomalies, said.false_alarms) if records is not None]
    if not kinds or any(detector.threshold.discovery_rate is not None for detector in detectors):
        return None
    ids = {str(id) for records in kinds for id in records.record_ids}
    # a false alarm that joined a calibration, or that a refit learned from under another id, may be its own neighbour
    apart = [detector.without(ids | _equal(detector, said.false_alarms)) for detector in detectors]
    anomalies, false_alarms = (
        [np.zeros(0, bool) if records is None else detector.detect(records).is_anomaly for detector in apart]
        for records in (said.anomalies, said.false_alarms)
    )
    counts = [(int(a.sum()), int(f.sum())) for a, f in zip(anomalies, false_alarms, strict=True)]
    return OnFeedback(
        len(anomalies[0]),
        len(false_alarms[0]),
        counts[0],
        counts[1] if len(counts) == 2 else None,
        kept=int(np.logical_and.reduce(anomalies).sum()) if len(counts) == 2 else 0,
    )


def _equal(detector: Detector, records: Records | None) -> set[str]:
    """The ids of the reference records that are equal to one of ``records``."""
    found: set[str] = set()
    if records is None:
        return found
    for own, mine in zip(detector.detectors, detector.routed(records), strict=True):
        places = own.reference.places(own.encode(records.take(mine))).tolist() if len(mine) else []
        found |= {own.reference.record_ids[place] for place in places if place >= 0}
    return found


def _as_it_can(ws: Workspace, champion: Detector) -> Detector:
    try:
        return decided_now(ws, champion)
    except ConfigError as error:
        _log.warning("the champion is replayed with its own threshold: %s", error)
        return champion


def _for_batch(ws: Workspace, detector: Detector, delivery: Delivery) -> Detector:
    """The detector with the threshold of a batch, where that depends on all of its scores."""
    threshold = detector.threshold
    if threshold.discovery_rate is None:
        return detector
    chunks = (threshold.counts(detector.detect(records).score) for records in read_records(delivery, ws))
    with limited_threads(1):
        return replace(detector, threshold=threshold.for_batch(sum(chunks, np.zeros(1, np.int64))))


def rank_correlation(ours: np.ndarray, theirs: np.ndarray) -> float | None:
    """Spearman's rank correlation of two arrays (B,); None where one of them is constant or empty."""
    from scipy.stats import rankdata

    if not len(ours):
        return None
    ranks = [rankdata(scores) for scores in (ours, theirs)]
    constant = min(float(np.ptp(r)) for r in ranks) == 0
    return None if constant else float(np.corrcoef(*ranks)[0, 1])


@contextmanager
def _delivered(ws: Workspace, commit: Commit) -> Iterator[Delivery | None]:
    """The file of a commit, where it is still there with that content."""
    try:
        opened = open_delivery(ws.monitor.source.inbox / commit.name, folders=ws.folders)
        delivery = opened.__enter__()
    except (DataError, OSError):
        yield None
        return
    try:
        yield delivery if delivery.sha256 == commit.sha256 else None
    finally:
        opened.__exit__(None, None, None)


def _detected(ws: Workspace, tally: _Tally, delivery: Delivery) -> Iterator[tuple[Records, list[Detections]]]:
    """What each detector says of each chunk, several chunks at a time."""
    threads = ws.monitor.execution.threads

    def detect(records: Records) -> list[tuple[Detections, float]]:
        found = []
        for detector in tally.detectors:
            started = thread_time()
            detections = detector.detect(records)
            found.append((detections, thread_time() - started))
        return found

    with limited_threads(1), ThreadPoolExecutor(threads) as pool:
        for records, found in in_order(pool, detect, threads + 1, read_records(delivery, ws)):
            tally.seconds += [seconds for _, seconds in found]
            yield records, [detections for detections, _ in found]


def alerts_of(parts: Sequence[tuple[Threshold, int]], flagged: int) -> Alerts:
    """So many flags among records of which each threshold decides on so many."""
    _, low, high = false_alarms(parts)
    return Alerts(sum(records for _, records in parts), flagged, low, high)


class _Tally:
    """What is counted over all batches; ``detectors`` are the candidate and, where there is one, the champion."""

    def __init__(self, detectors: Sequence[Detector]) -> None:
        self.detectors = detectors
        self.seconds = np.zeros(len(detectors))
        self._rows = self._scored = self._alike = 0
        self._starts: list[int] = []
        self._names: list[str] = []
        self._scores = Thinned(RANKED)
        # records that this detector flags and the other does not
        self._only = [Strangest(CARDS, several=bool(detector.segments)) for detector in detectors]
        self._one_scale = not any(detector.segments for detector in detectors)
        self._by_part: list[np.ndarray] = []  # on how many records of a batch each part of the candidate's decides
        self._changes = np.zeros(len(detectors), np.int64)

    def replayed(self, commit: Commit, chunks: Iterator[tuple[Records, list[Detections]]]) -> ReplayedBatch:
        """Take in a batch."""
        self._starts.append(self._rows)
        self._names.append(commit.name)
        flagged = np.zeros(len(self.detectors), np.int64)
        scored = [np.zeros(len(detector.decider.parts), np.int64) for detector in self.detectors]
        both = alike = kept = 0
        for records, found in chunks:
            good, flags = (np.stack(a) for a in zip(*((~np.isnan(d.score), d.is_anomaly) for d in found), strict=True))
            for counts, detections, chosen in zip(scored, found, good, strict=True):
                counts += detections.by_part(chosen, len(counts))
            flagged += flags.sum(1)
            if len(found) == 2:
                compared = good.all(0)
                both += int(compared.sum())
                alike += int((compared & (flags[0] == flags[1])).sum())
                kept += int(flags.all(0).sum())
                ranked = [d.score if self._one_scale else -d.p_value for d in found]
                self._scores.add(np.stack(ranked, axis=1)[compared])
                self._keep_changes(records, found, flags)
            self._rows += len(records)
        self._scored += both
        self._alike += alike
        self._by_part.append(scored[0])
        alerts = [
            alerts_of(detector.decider.shared(counts), n)
            for detector, counts, n in zip(self.detectors, scored, flagged.tolist(), strict=True)
        ]
        return ReplayedBatch(
            batch_id=commit.batch_id,
            name=commit.name,
            rows=commit.rows,
            drifted=commit.drifted,
            candidate=alerts[0],
            champion=alerts[1] if len(alerts) == 2 else None,
            kept=kept,
            alike=alike / both if both else None,
        )

    def _keep_changes(self, records: Records, found: Sequence[Detections], flags: np.ndarray) -> None:
        for i, (mine, other) in enumerate(((0, 1), (1, 0))):
            changed = np.flatnonzero(flags[mine] & ~flags[other])
            self._changes[i] += len(changed)
            excess = self.detectors[mine].excess(found[mine])
            beside = [of[changed] for of in (excess, found[other].score, found[other].p_value)]
            self._only[i].add(records.take(changed), found[mine].score[changed], self._rows + changed, *beside)

    def _cards(self, i: int) -> tuple[Change, ...]:
        """The strangest records that only the detector ``i`` flags, without pictures, neighbours and what would make
        them normal: it is a page of changes, and the batch's report has them."""
        records = flagged_records(self.detectors[i], self._only[i], changes=False)
        _, (_, rows, _, scores, p_values) = self._only[i].top or (None, (np.zeros(0),) * 5)
        batches = np.searchsorted(self._starts, rows, side="right") - 1
        return tuple(
            Change(
                batch=self._names[batch],
                record=replace(card, row_index=int(row) - self._starts[batch], picture=None, neighbours=()),
                other_score=None if np.isnan(score) else float(score),
                other_p_value=None if np.isnan(p_value) else float(p_value),
            )
            for card, batch, row, score, p_value in zip(records, batches.tolist(), rows, scores, p_values, strict=True)
        )

    def result(self, batches: Sequence[ReplayedBatch], left_out: Counter[str]) -> Replay:
        """What there is to say of all of them."""
        threshold = self.detectors[0].threshold
        # what is promised of flagged records says nothing of how many normal ones may be flagged
        counted = threshold.discovery_rate is None
        usual = [(b.candidate.flagged, n) for b, n in zip(batches, self._by_part, strict=True) if b.usual and counted]
        parts = self.detectors[0].decider.shared(np.sum([n for _, n in usual], axis=0)) if usual else []
        pooled = alerts_of(parts, sum(n for n, _ in usual)) if usual else None
        ranked = self._scores.values.reshape(-1, 2)
        compared = len(self.detectors) == 2
        return Replay(
            batches=tuple(batches),
            left_out=dict(sorted(left_out.items())),
            rows=self._rows,
            compared=self._scored,
            usual=pooled,
            alike=self._alike / self._scored if self._scored else None,
            rank_correlation=rank_correlation(*ranked.T),
            appearing=int(self._changes[0]) if compared else None,
            disappearing=int(self._changes[1]) if compared else None,
            appear=self._cards(0) if compared else (),
            disappear=self._cards(1) if compared else (),
            # none where there are several
            thresholds=tuple(d.threshold.value for d in self.detectors) if self._one_scale else (),
            cpu_seconds_per_1000=tuple((1000 * self.seconds / self._rows).tolist()) if self._rows else (),
        )
