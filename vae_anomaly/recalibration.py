"""A new calibration of a detector on batches that somebody called normal: its weights and scores stay as they are.

The delivered files are read and scored again, and their scores take the place of the calibration scores. What is
compared with normal records otherwise, the columns and cells of a batch, is compared with these from then on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from vae_anomaly.batch import Records, segments
from vae_anomaly.detector import Detector, HeldOut, Part
from vae_anomaly.drift import SAMPLE
from vae_anomaly.errors import ConfigError, DataError, printable
from vae_anomaly.explain import compared
from vae_anomaly.fitting import content_hash, require_segments, variation
from vae_anomaly.store.commits import Ledger
from vae_anomaly.store.records import Commit
from vae_anomaly.store.sources import Delivery, changed_file, list_inbox, open_delivery
from vae_anomaly.thresholds import Threshold, calibrated, false_alarms
from vae_anomaly.training import limited_threads
from vae_anomaly.worker import read_records
from vae_anomaly.workspace import Progress, Workspace, silent

MOST = 200_000  # distinct records, whose scores are kept
NAMED = 5  # batches that a message names
WEIGHTS_OF = "weights_of"  # the digest of the detector that was fitted, however often it was calibrated since


@dataclass(frozen=True)
class Batch:
    """A batch that somebody called normal: the file of this ``name`` in the inbox, and what was found in it."""

    name: str
    commit: Commit


@dataclass(frozen=True)
class LeftOut:
    """How many records of the batches do not calibrate: not scorable, labelled or confirmed as anomalies, equal to an
    earlier one, equal to one that trained."""

    unscorable: int
    labelled: int
    confirmed: int
    repeated: int
    trained: int


@dataclass(frozen=True)
class Recalibrated:
    """The detector with its new calibration, from these ``batches``; ``left_out`` of their ``rows``. ``sampled``:
    more than ``MOST`` were distinct, and a sample of them calibrates. ``before`` is the digest of the champion."""

    detector: Detector
    batches: tuple[Batch, ...]
    rows: int
    left_out: LeftOut
    sampled: bool
    before: str

    @property
    def shifted(self) -> int:
        """How many of the batches were called shifted as a whole when they were scored."""
        return sum(batch.commit.drifted for batch in self.batches)

    @property
    def facts(self) -> dict[str, Any]:
        """The batches and counts as plain values."""
        return {
            "batches": [
                {"batch_id": b.commit.batch_id, "name": b.name, "sha256": b.commit.sha256, "records": b.commit.rows,
                 "flagged": b.commit.flagged, "shifted": b.commit.drifted}
                for b in self.batches
            ],
            "records": self.rows,
            "calibration_records": len(self.detector.threshold.measured),
            "left_out": asdict(self.left_out),
            "sampled": self.sampled,
        }  # fmt: skip

    def stated(self, by: str, reason: str) -> Recalibrated:
        """With what was said in the detector's provenance, which its digest covers.

        There is no time in it: what is said twice of the same batches is the same detector.
        """
        known = self.detector.provenance
        said = {
            WEIGHTS_OF: known.get(WEIGHTS_OF, self.before),
            "confirmed_normal_by": by,
            "confirmed_normal_because": reason,
            "confirmed_normal": ", ".join(f"{b.commit.batch_id} {b.commit.sha256}" for b in self.batches),
        }
        return replace(self, detector=replace(self.detector, provenance={**known, **said}))


def flagged_beyond_chance(batches: Sequence[Batch], threshold: Threshold) -> int:
    """How many of the batches had, when they were scored, more flags than the ``threshold`` of before gives by chance:
    more than the 95 % range."""
    highs = (false_alarms(threshold.divided(batch.commit.scored))[2] for batch in batches)
    return sum(batch.commit.flagged > high for batch, high in zip(batches, highs, strict=True))


def statement(made: Recalibrated, beyond: int, *, by: str, reason: str) -> str:
    """What ``by`` said of the batches, and what was found in them when they were scored, for who reviews."""
    names = [printable(batch.name) for batch in made.batches]
    which = names[0] if len(names) == 1 else f"{len(names)} batches from {names[0]} to {names[-1]}"
    count = f"{len(made.detector.threshold.measured):,} of {made.rows:,} records"
    return f"Calibrated on {count} of {which}, which {by} calls normal: {reason.rstrip('.')}. {found_in(made, beyond)}"


def found_in(made: Recalibrated, beyond: int) -> str:
    """How many of the batches did not look normal when they were scored."""
    return (
        f"When they were scored, {made.shifted:,} of {len(made.batches):,} batches were called shifted as a whole, and"
        f" {beyond:,} had more flags than chance gives."
    )


# ---- the batches ----


def named_batches(ws: Workspace, first: str, last: str | None, but: Collection[str]) -> tuple[Batch, ...]:
    """The batches from ``first`` to ``last``, by the names of their files, or to the last of all; without ``but``.

    Each is named by its id or its file. Equal contents are one batch. ``but`` may name what was never scored.

    Raises
    ------
    ConfigError
        There is no such batch, the range is empty, or it holds a file whose records nobody can have called normal: one
        that was not scored, or not with this content or under this data contract, or that was pruned.
    """
    ledger = Ledger(ws.store.existing())
    start, stop = ledger.find(first).name, None if last is None else ledger.find(last).name
    if stop is not None and stop < start:
        raise ConfigError(f"--to must not come before --from, by name. Got {stop!r} for {start!r}.")
    inbox = ws.monitor.source.inbox
    there = {file.name for file in list_inbox(inbox, settle_seconds=0, folders=ws.folders).ready}
    names = sorted({commit.name for commit in ledger.newest()} | there)
    left = {batch if batch in names else ledger.find(batch).name for batch in but}  # also what was never scored
    chosen = [n for n in names if n >= start and (stop is None or n <= stop) and n not in left]
    pruned, refused = ledger.pruned(), []
    quarantined = {q.name for q in ledger.quarantines() if q.contract_digest == ws.contract_digest}
    found: dict[str, Batch] = {}
    for name in chosen:
        commit, problem = _standing(ws, ledger, name), ""
        if isinstance(commit, str):
            problem = "quarantined" if name in quarantined else commit
        elif commit.batch_id in pruned:
            problem = "pruned"
        elif commit.contract_digest != ws.contract_digest:
            problem = "read under another data contract"
        else:
            found.setdefault(commit.sha256, Batch(name, commit))
        if problem:
            refused.append(f"{printable(name)} ({problem})")
    if refused:
        more = f" and {len(refused) - NAMED} more" if len(refused) > NAMED else ""
        raise ConfigError(
            "the batches from --from to --to must lie in the inbox as they were committed. Got"
            f" {', '.join(refused[:NAMED])}{more}. Leave a batch out with --except, or choose another range."
        )
    if not found:
        raise ConfigError("--from and --to must name at least one batch. Got none but those of --except.")
    return tuple(found.values())


def _standing(ws: Workspace, ledger: Ledger, name: str) -> Commit | str:
    """The commit of the content that the file of this name has, or why there is none."""
    try:
        with open_delivery(ws.monitor.source.inbox / name, folders=ws.folders) as delivery:
            return ledger.committed(delivery.sha256) or "not scored with this content"
    except FileNotFoundError:
        return "gone"
    except (DataError, OSError):
        return "not readable"


@contextmanager
def _delivered(ws: Workspace, batch: Batch) -> Iterator[Delivery]:
    """The file of a batch, as it was committed; raises :class:`DataError` where it is not, or not to its end."""
    try:
        with open_delivery(ws.monitor.source.inbox / batch.name, folders=ws.folders) as delivery:
            if delivery.sha256 != batch.commit.sha256:
                raise changed_file(batch.name)
            yield delivery
            delivery.assert_unchanged()
    except OSError as error:
        raise changed_file(batch.name) from error


# ---- the calibration ----


def require_one(detector: Detector) -> None:
    """Raise :class:`ConfigError` for a detector that has others for segments."""
    if detector.segments:
        raise ConfigError(
            f"the champion must be one detector to be calibrated again. Got one for each {detector.by}. Fit again, as"
            " `vae-anomaly refit` does."
        )


def recalibrated(
    ws: Workspace,
    detector: Detector,
    batches: Sequence[Batch],
    *,
    anomalies: Records | None,
    trained: np.ndarray,
    progress: Progress = silent,
) -> Recalibrated:
    """``detector`` with the threshold that monitor.yml asks for, calibrated on the records of ``batches``.

    Parameters
    ----------
    anomalies : records that are confirmed as such; what is equal to one takes no part.
    trained : uint64 contents of the records that trained it; what is equal to one does not calibrate.

    Raises
    ------
    ConfigError
        So many records cannot hold what the threshold promises.
    DataError
        None of them is left, or a file changes while it is read.
    """
    require_segments(ws.recipe, ws.schema)
    total = sum(batch.commit.rows for batch in batches)
    known = np.zeros(0, np.uint64) if anomalies is None else content_hash(anomalies)
    made = Recalibration(detector, ws.recipe.threshold, total, anomalies=known, trained=trained, seed=ws.monitor.seed)
    with limited_threads(1):
        for done, batch in enumerate(batches):
            progress(f"scoring {batch.name} again", done, len(batches))
            with _delivered(ws, batch) as delivery:
                for records in read_records(delivery, ws):
                    made.add(records)
    new = made.detector_now()
    return Recalibrated(new, tuple(batches), made.rows, made.left_out, made.is_sampled, detector.digest)


class Recalibration:
    """Takes in the records of the batches chunk by chunk; memory does not grow with them beyond ``most`` records.

    Calibration records are distinct, as those of a fit are: copies say nothing new. Of more than ``most`` those with
    the smallest digests of their contents are taken, a sample that depends on neither order nor chunks. What was
    flagged stays: the batch was called normal with it, and without the highest scores the threshold would fall, so that
    more than alpha of the normal records would be flagged. A record that is equal to one of the reference is scored as
    if that were not there, as in a fit; one that is equal to a record that trained does not calibrate.
    """

    def __init__(
        self,
        detector: Detector,
        threshold: Part,
        total: int,
        *,
        anomalies: np.ndarray,
        trained: np.ndarray,
        seed: int = 0,
        most: int = MOST,
    ) -> None:
        self.detector, self.threshold, self.most = detector, threshold, most
        self._anomalies, self._trained, self._by = anomalies, trained, threshold.options.get("by")
        # what columns and cells are compared with are records as they come
        sample = np.random.default_rng(seed).choice(total, min(total, 2 * SAMPLE), replace=False, shuffle=False)
        self._sample = np.sort(sample)
        self._usual: list[dict[str, np.ndarray]] = []
        self._cells = np.zeros((len(detector.preprocessor.columns), 3), np.int64)
        self.rows = self._used = self._unscorable = self._labelled = self._confirmed = 0
        self._contents, self._sizes = np.zeros(0, np.uint64), np.zeros(0, np.int64)
        self._scores, self._labels = np.zeros(0), np.zeros(0, dtype=object)
        self.is_sampled = False

    def add(self, records: Records) -> None:
        """Take in the next records."""
        at = self.rows + np.arange(len(records))
        self.rows += len(records)
        good = records.scorable.copy()
        for _, unknown in self.detector.preprocessor.context.unknown(records):
            good &= ~unknown
        self._unscorable += int((~good).sum())
        if records.labels is not None:
            self._labelled += int((good & records.labels).sum())
            good &= ~records.labels
        records, at = records.take(np.flatnonzero(good)), at[good]
        content = content_hash(records)
        usual = np.flatnonzero(~np.isin(content, self._anomalies))
        self._confirmed += len(records) - len(usual)
        records, at, content = records.take(usual), at[usual], content[usual]
        self._used += len(records)
        self._cells += self.detector.preprocessor.quality(records, np.ones(len(records), bool))
        chosen = np.flatnonzero(np.isin(at, self._sample, assume_unique=True))
        if len(chosen):
            self._usual.append(compared(self.detector, self.detector.encode(records.take(chosen))))
        self._count(records, content)

    def _count(self, records: Records, content: np.ndarray) -> None:
        found, first, size = np.unique(content, return_index=True, return_counts=True)
        known = np.isin(found, self._contents, assume_unique=True)
        self._sizes[np.searchsorted(self._contents, found[known])] += size[known]
        new = np.flatnonzero(~known & ((found <= self._contents[-1]) if self.is_sampled else True))
        records = records.take(first[new])
        contents = np.concatenate([self._contents, found[new]])
        order = np.argsort(contents)
        self.is_sampled |= len(order) > self.most
        order = order[: self.most]
        labels = [None] * len(records) if self._by is None else segments(records, self._by).to_pylist()
        self._contents = contents[order]
        self._sizes = np.concatenate([self._sizes, size[new]])[order]
        self._scores = np.concatenate([self._scores, self._score(records, found[new])])[order]
        self._labels = np.concatenate([self._labels, np.array(labels, dtype=object)])[order]

    def _score(self, records: Records, content: np.ndarray) -> np.ndarray:
        """(B,) nats; NaN of a record that is equal to one that trained."""
        scores = np.full(len(records), np.nan)
        fresh = np.flatnonzero(~np.isin(content, self._trained))
        if not len(fresh):
            return scores
        inputs = self.detector.encode(records.take(fresh))
        own = self.detector.reference.places(inputs)
        scores[fresh] = self.detector.scores(inputs, own if bool((own >= 0).any()) else None)
        return np.where(np.isfinite(scores), scores, np.nan)

    @property
    def left_out(self) -> LeftOut:
        """What does not calibrate; of a sample, as far as it was looked at."""
        trained = int(self._sizes[np.isnan(self._scores)].sum())
        repeated = int((self._sizes[~np.isnan(self._scores)] - 1).sum())
        return LeftOut(self._unscorable, self._labelled, self._confirmed, repeated, trained)

    def detector_now(self) -> Detector:
        """The detector with its new calibration; raises as :func:`recalibrated`."""
        kept = ~np.isnan(self._scores)
        scores = self._scores[kept]
        if not len(scores) or scores.min() == scores.max():
            raise DataError(
                "too_few_distinct_records",
                "the batches must hold normal records of at least two scores that trained no weight. Got"
                f" {len(np.unique(scores))} among {self.rows:,} records.",
                remedy="Name more batches.",
            )
        usual = {
            column: (values := np.concatenate([part[column] for part in self._usual]))[np.isfinite(values)]
            for column in (self._usual[0] if self._usual else ())
        }
        cells = tuple((int(a), int(b), int(c)) for a, b, c in self._cells)
        labels = None if self._by is None else self._labels[kept]
        return replace(
            self.detector,
            threshold=calibrated(self.threshold.kind, scores, self.threshold.options, labels),
            held_out=HeldOut(self._used, cells, variation(self._sizes, kept)),
            usual=usual,
        )


def contents_of(records: Records) -> np.ndarray:
    """The contents of ``records``, each once."""
    return np.unique(content_hash(records))
