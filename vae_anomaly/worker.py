"""Score one delivery and commit it: what a worker does, in this process, in one beside it or on another machine.

A :class:`Job` is all that a worker needs to know, as plain values, and an :class:`Ended` all that it answers; both
travel as JSON and are read back strictly. The truth is in the store: a job that is carried out twice finds the commit
of the first time and changes nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pyarrow as pa

from vae_anomaly.batch import concatenate
from vae_anomaly.config import MlflowConfig, MonitorConfig, config_digest
from vae_anomaly.errors import ArtifactError, ConfigError, DataError, StoreError, VaeAnomalyError
from vae_anomaly.report.model import Precision
from vae_anomaly.schema import check
from vae_anomaly.store.commits import Ledger, standing
from vae_anomaly.store.feedback import Feedback, entries, precision_of, read_entry, record_of
from vae_anomaly.store.feedback import standing as standing_feedback
from vae_anomaly.store.files import Sink, Store, discard, drop, explained, names, opened, sha256_of
from vae_anomaly.store.records import (  # fmt: skip
    BatchRef,
    Commit,
    Labelled,
    ModelRef,
    ThresholdRef,
    commit_key,
    provenance,
    read_record,
    report_ref,
    scores_ref,
)
from vae_anomaly.store.score_files import ScoreWriter, read_scores, score_table
from vae_anomaly.store.sources import (  # fmt: skip
    Delivery,
    DeliveryChanged,
    FolderDelivery,
    batch_id,
    open_delivery,
    read_chunks,
    read_header,
    rows_of_parquet,
)
from vae_anomaly.workspace import Workspace, code_version

if TYPE_CHECKING:
    from vae_anomaly.batch import Detections, Records
    from vae_anomaly.detector import Detector
    from vae_anomaly.muting import Muting
    from vae_anomaly.summary import BatchSummary
    from vae_anomaly.thresholds import Threshold

_log = logging.getLogger(__name__)
PART_SCHEMA = pa.schema([("status", pa.string()), ("score", pa.float64())])
SPEAKING = 500  # of the last entries of feedback that a run compares flagged records with
Tell = Callable[[int], None]
Known = Callable[[], Iterator[pa.RecordBatch]]  # status and score of each row, as often as it is asked
Item = TypeVar("Item")
Result = TypeVar("Result")
STOPPING: dict[str, type[VaeAnomalyError]] = {kind.__name__: kind for kind in (ArtifactError, ConfigError)}


@dataclass(frozen=True)
class Setting:
    """What the jobs of a run share: monitor.yml by value, the detector that serves, in ``folder``, the ids of the
    ``feedback`` that mutes on this day, and what all of it says of the flagged records."""

    monitor: str
    path: str
    model: ModelRef
    folder: str
    feedback: Sequence[str] = ()
    precision: Precision | None = None

    @staticmethod
    def of(ws: Workspace, model: ModelRef, folder: Path, day: date) -> Setting:
        """The setting of ``ws`` on ``day`` with the verified detector in ``folder``.

        A ledger of feedback that cannot be read mutes nothing and stops nothing; a warning says so.
        """
        try:
            said = standing_feedback(entries(ws.store))
        except StoreError as error:
            _log.warning("nothing is muted: %s", error)
            said = []
        # anomalies too: what is as near to one as to a false alarm is not muted
        speaking = [entry.id for entry in said if entry.verdict == "anomaly" or entry.mutes(day)]
        muting, precision = tuple(speaking[-SPEAKING:]), precision_of(said)
        return Setting(ws.monitor.model_dump_json(), str(ws.monitor.path), model, str(folder), muting, precision)

    @property
    def workspace(self) -> Workspace:
        """The workspace that this was made of, but for where the registry is: no worker asks it."""
        monitor = MonitorConfig.model_validate(json.loads(self.monitor), context={"path": Path(self.path)})
        return Workspace(monitor, MlflowConfig())


@dataclass(frozen=True)
class Job:
    """Score the delivery at ``path``, which had this content, and this size, time of modification and inode.

    ``again``: although it was scored before, by another model or configuration. ``share`` (i, n): only the i-th of n
    parts of its rows, whose scores go into the file ``part``; ``scored``: these files, where that has been done.
    """

    setting: Setting
    path: str
    sha256: str
    state: Sequence[int]
    again: bool
    share: Sequence[int] | None = None
    part: str = ""
    scored: Sequence[str] = ()


@dataclass(frozen=True)
class Refusal:
    """A :class:`DataError` as plain values."""

    rule: str
    file: str | None
    column: str | None
    first_rows: Sequence[int]
    count: int | None
    problem: str
    remedy: str

    @staticmethod
    def of(error: DataError) -> Refusal:
        """The error as values."""
        where = error.file, error.column, error.rows, None if error.count is None else int(error.count)
        return Refusal(error.rule, *where, error.problem, error.remedy)

    @property
    def error(self) -> DataError:
        """The values as the error."""
        where = {"file": self.file, "column": self.column, "rows": self.first_rows, "count": self.count}
        return DataError(self.rule, self.problem, remedy=self.remedy, **where)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Ended:
    """What came of a job: exactly one of

    * a ``batch``, which is committed (its id); the empty string where the content was committed before;
    * whether the file of a ``part`` is there, with the scores of its rows: not where this delivery cannot be divided;
    * a ``refusal``: the file breaks the contract;
    * a ``problem``: it failed, and may be tried again. It ``counts`` as an attempt where the file may be the cause, and
      not where the machine is (a full disk, a file that changed);
    * an error that ``stops`` the whole run (the name of its class), with its text as the problem.
    """

    batch: str | None = None
    part: bool | None = None
    refusal: Refusal | None = None
    problem: str | None = None
    counts: bool = False
    stops: str | None = None


def perform(job: Job, tell: Tell) -> Ended:
    """Carry out ``job``; ``tell`` hears now and then how many rows are scored."""
    try:
        scorer, known = scorer_of(job.setting), (job.sha256, tuple(job.state))
        from vae_anomaly.training import limited_threads  # late, like all that needs torch

        # a thread for each chunk, and one for what is in it: so the bits do not depend on their number
        with limited_threads(1), open_delivery(Path(job.path), folders=scorer.ws.folders, known=known) as delivery:
            if delivery.sha256 != job.sha256:
                raise DeliveryChanged(f"File {delivery.name!r} must not change while it is read. It did.")
            if job.share:
                return Ended(part=scorer.part(delivery, tell, Path(job.part), *job.share))
            scored = [Path(name) for name in job.scored]
            return Ended(batch=scorer.score(delivery, tell, again=job.again, scored=scored))
    except DataError as error:
        return Ended(refusal=Refusal.of(error))
    except (ArtifactError, ConfigError) as error:
        return Ended(problem=str(error), stops=type(error).__name__)
    except MemoryError:
        _log.debug("out of memory", exc_info=True)
        return Ended(problem="it needs more memory than execution.memory_gb allows.", counts=True)
    except (OSError, StoreError) as error:
        # a worker has a limit of its own on open files
        return Ended(problem=str(error), counts=isinstance(error, OSError) and error.errno == errno.EMFILE)
    except VaeAnomalyError as error:
        return Ended(problem=str(error), counts=True)
    except Exception as error:
        # without its text, which may quote a record
        _log.debug("batch %r failed", Path(job.path).name, exc_info=True)
        return Ended(problem=f"internal error {type(error).__name__}; --debug shows what and where.", counts=True)


def in_order(
    pool: Executor,
    work: Callable[[Item], Result],
    ahead: int,
    items: Iterable[Item],
    *,
    outcome: Callable[[Future[Result]], Result] = Future.result,
) -> Iterator[tuple[Item, Result]]:
    """Each item and what ``pool`` makes of it, in their order, with at most ``ahead`` of them under way.

    ``outcome`` waits for that, and may make something of it that it never came.
    """
    flying: deque[tuple[Item, Future[Result]]] = deque()
    for item in items:
        flying.append((item, pool.submit(work, item)))
        if len(flying) >= ahead:
            done, future = flying.popleft()
            yield done, outcome(future)
    for done, future in flying:
        yield done, outcome(future)


@lru_cache(maxsize=1)
def scorer_of(setting: Setting) -> Scorer:
    """The scorer of a run's setting; its detector is loaded once."""
    return Scorer(setting.workspace, setting.model, Path(setting.folder), setting.feedback, setting.precision)


class Scorer:
    """The detector that serves, with the present threshold, and how it scores a delivery."""

    def __init__(
        self,
        ws: Workspace,
        model: ModelRef,
        folder: Path,
        feedback: Sequence[str] = (),
        precision: Precision | None = None,
    ) -> None:
        self.ws, self.model, self.precision = ws, model, precision
        self.config_digest, self.contract_digest = config_digest(ws.monitor), ws.contract_digest
        self.detector = serving(ws, model, folder)
        self.muting = _muting(ws, self.detector, feedback)

    def part(self, delivery: Delivery, tell: Tell, path: Path, i: int, of: int) -> bool:
        """Score the i-th of so many parts of a delivery's rows; the file ``path`` then holds status and score of each.

        False where it is no Parquet file, or too short, for the others say only when they are read how many rows they
        have; and where it breaks the contract, for what is said of that depends on all rows.
        """
        total = rows_of_parquet(delivery) or 0
        if total < of:
            return False
        first, stop = (total * k // of for k in (i, i + 1))
        discard(path)  # of an attempt whose worker died
        try:
            self._write(path, _until(read_records(delivery, self.ws, first), stop), tell)
        except DataError:
            return False
        delivery.assert_unchanged()
        return True

    def _write(self, path: Path, chunks: Iterator[Records], tell: Tell) -> None:
        """Score the rows of ``chunks``; the file ``path`` then holds status and score of each."""
        rows = 0
        with Sink(path) as sink, pa.ipc.new_stream(sink, PART_SCHEMA) as writer:
            for records, found in self._detected(chunks):
                with explained(path):
                    writer.write(pa.record_batch([found.status, found.score], schema=PART_SCHEMA))
                rows += len(records)
                tell(rows)

    def _detected(self, chunks: Iterator[Records]) -> Iterator[tuple[Records, Detections]]:
        """What is detected in each of the chunks, several at a time."""
        threads = self.ws.monitor.execution.threads
        with ThreadPoolExecutor(threads) as pool:
            yield from in_order(pool, self.detector.detect, threads + 1, chunks)

    def score(self, delivery: Delivery, tell: Tell, *, again: bool, scored: Sequence[Path] = ()) -> str:
        """Score and commit a delivery: its batch id, or the empty string where its content was committed before.

        ``again``: by other models or configurations does not count as before. ``scored``: the parts that hold the
        scores of all its rows, in order. Without them those of a commit of before are taken, where it was this version
        and this code that scored: then another threshold only decides again. Else they are computed; into a temporary
        file first where the threshold depends on all of them.
        """
        from vae_anomaly.summary import BatchSummary

        ledger = Ledger(self.ws.store)
        before = ledger.commits_of(delivery.sha256)
        digests = {"model_digest": self.model.digest, "config_digest": self.config_digest}
        key = commit_key(self.ws.monitor.name, delivery.sha256, **digests)
        if any(key == commit.key or not again for commit in before):
            return ""
        id = batch_id(delivery.name, delivery.sha256, again=len(before))
        ref = BatchRef(id, delivery.name, delivery.sha256, delivery.size)
        earlier = _earlier(ledger, ref, before)
        superseding = _superseding(ref, earlier)
        extra = self._extra_columns(delivery)
        with contextlib.ExitStack() as stack:
            known = partial(_batches, scored) if scored else self._known(ledger.store, before)
            if known is None and self.detector.threshold.discovery_rate:
                path = ledger.store.new_temporary()
                stack.callback(drop, path)
                self._write(path, read_records(delivery, self.ws), tell)
                known = partial(_batches, [path])
            detector = self.detector if known is None else self._for_batch(known())
            threshold = _reference(detector.decider)
            versions = np.array([part.version for part in detector.decider.parts], dtype=object)
            names = np.array(detector.names, dtype=object)
            origin = self._origin(ref, threshold)
            muting = self.muting
            if muting is not None and detector is not self.detector:  # the threshold is the batch's
                muting = dataclasses.replace(muting, detector=detector)
            summary = BatchSummary(detector, self.ws.monitor.drift.distance, muting)
            chunks = read_records(delivery, self.ws)
            writer = stack.enter_context(ScoreWriter(ledger.store, origin, segments=bool(detector.segments)))
            for records, found in self._detected(chunks) if known is None else _decided(detector, known(), chunks):
                summary.add(records, found)
                writer.write(
                    score_table(
                        ref.id,
                        records.first_row,
                        record_ids=records.record_ids,
                        status=found.status,
                        score=found.score,
                        p_value=found.p_value,
                        is_anomaly=found.is_anomaly,
                        model_version=self.model.version,
                        threshold_version=threshold.version if found.part is None else versions[found.part],
                        segment=names[found.part] if detector.segments else None,
                    )
                )
                tell(summary.rows)
            scores = writer.close()
            delivery.assert_unchanged()
            standing = [*_standing(detector, summary), *superseding]
            report = summary.report(
                monitor=self.ws.monitor.name,
                batch_id=ref.id,
                batch_name=ref.name,
                batch_sha256=ref.sha256,
                extra_columns=extra,
                notes=standing,
                precision=self.precision,
                provenance={**origin, "schema_digest": self.detector.schema.digest},
            )
        # that the same records are decided again is no news, nor what is so of each batch
        quiet = len(standing) if before else len(standing) - len(superseding)
        content = report.to_json().encode()
        commit = Commit(
            dataset=self.ws.monitor.name,
            batch=ref,
            rows=summary.rows,
            scored=summary.scored,
            unscorable=report.unscorable,
            flagged=summary.flagged,
            expected_flagged=report.expected_flagged,
            scores=scores_ref(ref.id, scores),
            report=report_ref(ref.id, content),
            model=self.model,
            threshold=threshold,
            config_digest=self.config_digest,
            contract_digest=self.contract_digest,
            code_version=code_version(),
            alert=dataclasses.replace(report, notes=report.notes[quiet:]).has_something_to_say,
            labelled=Labelled(summary.anomalies, summary.found) if summary.labelled else None,
            supersedes=earlier.batch_id if earlier else None,
            drifted=report.drifted,
            muted=len(report.muted),
            group=report.group,
        )
        return ref.id if ledger.commit(commit, scores, report=content, again=again) else ""

    def _for_batch(self, known: Iterator[pa.RecordBatch]) -> Detector:
        """The detector with the threshold for a batch of these scores."""
        threshold = self.detector.threshold
        if not threshold.discovery_rate:
            return self.detector
        counts = sum((threshold.counts(_numbers(batch, "score")) for batch in known), threshold.counts(np.zeros(0)))
        return dataclasses.replace(self.detector, threshold=threshold.for_batch(counts))

    def _known(self, store: Store, before: Sequence[Commit]) -> Known | None:
        """Status and score of each row as a commit of ``before`` has them; None where there is none to take."""
        mine = self.model.digest, self.contract_digest, code_version()
        for commit in before:
            path = store.root / commit.scores.file
            with contextlib.suppress(OSError):  # it may have been pruned; `check` tells of the rest
                theirs = commit.model.digest, commit.contract_digest, commit.code_version
                if theirs == mine and sha256_of(path) == commit.scores.sha256:
                    return partial(_committed, path)
        return None

    def _origin(self, ref: BatchRef, threshold: ThresholdRef) -> dict[str, str]:
        return provenance(
            self.ws.monitor.name,
            ref,
            model=self.model,
            threshold=threshold,
            config_digest=self.config_digest,
            contract_digest=self.contract_digest,
            code_version=code_version(),
        )

    def _extra_columns(self, delivery: Delivery) -> list[str]:
        if isinstance(delivery, FolderDelivery):  # its columns are ours
            return []
        schema, source = self.ws.schema, self.ws.monitor.source
        known = {*schema.required, *schema.ignore, schema.label}
        header = read_header(delivery, source.csv, pattern=source.lines.pattern)
        return [name for name, _ in header if name not in known]


def registered(ws: Workspace, model: ModelRef, folder: Path) -> Detector:
    """The verified detector in ``folder``, as it was registered; raises :class:`ArtifactError` as :func:`serving`."""
    from vae_anomaly.detector import Detector, require_schema

    detector = Detector.load(folder, digest=model.digest)
    require_schema(detector, ws.schema)
    return detector


def serving(ws: Workspace, model: ModelRef, folder: Path) -> Detector:
    """The verified detector in ``folder``, decided by the present ``threshold`` of monitor.yml.

    Warns where monitor.yml asks for another model, score or segments than it has.

    Raises
    ------
    ArtifactError
        It does not verify, or is not for these columns.
    """
    detector, recipe = decided_now(ws, registered(ws, model, folder)), ws.recipe
    if (recipe.model, recipe.score) != (detector.model, detector.score_part):
        _log.warning(
            "champion %s has %s and %s, and scores with them; monitor.yml asks for %s and %s: fit and promote for that",
            *(model.version, detector.model, detector.score_part, recipe.model, recipe.score),
        )
    if (asked := recipe.segments.by if recipe.segments else "") != detector.by:
        _log.warning(
            "champion %s has segments by %r, and scores by them; monitor.yml asks for %r: fit and promote for that",
            *(model.version, detector.by, asked),
        )
    return detector


def _muting(ws: Workspace, detector: Detector, feedback: Sequence[str]) -> Muting | None:
    """The entries of these ids whose records can be read under the present contract; a warning names the others."""
    from vae_anomaly.muting import Muting

    records: dict[str, Records] = {}
    muting: set[str] = set()
    for id in feedback:
        try:
            entry = read_entry(ws.store.file(ws.store.feedback, id, ".json"))
            records[id] = spoken_of(ws, entry)
            if entry.verdict != "anomaly":
                muting.add(id)
        except (StoreError, DataError) as error:
            _log.warning("feedback %s mutes nothing: %s", id, error)
    ids = tuple(id if id in muting else "" for id in records)
    return Muting(detector, ids, concatenate(list(records.values()))) if muting else None


def spoken_of(ws: Workspace, entry: Feedback) -> Records:
    """The record that feedback is about, through the data contract.

    Raises
    ------
    StoreError
        Its copy is lost or altered.
    DataError
        It does not fit the present contract, or cannot be scored under it.
    """
    # not as the first row: few rows do not decide whether a file is one of images
    records = check(record_of(ws.store, entry), ws.schema, first_row=1, file=f"{entry.id}.arrow")
    if not records.scorable.all():
        remedy = "Nothing to do: the contract has changed since."
        raise DataError("unscorable", f"the record must be scorable. It is {records.status[0]}.", remedy=remedy)
    return records


def decided_now(ws: Workspace, detector: Detector) -> Detector:
    """The detector with the present ``threshold`` of monitor.yml, set on its own calibration scores.

    Raises :class:`ConfigError` where that divides the records by a column that the calibration does not know, or a
    detector for segments cannot have it.
    """
    from vae_anomaly.thresholds import calibrated

    threshold = ws.recipe.threshold
    if detector.segments:
        if threshold.kind != "conformal":
            raise ConfigError(
                f"threshold.method must be conformal for a detector with segments. Got {threshold.kind!r}. Fit, review"
                " and promote a detector without, or restore threshold."
            )
        own = {name: _decided_of(ws, f"{detector.by} {name!r:.60}", of) for name, of in detector.segments.items()}
        general = decided_now(ws, detector.detectors[0])
        same = all(own[name] is of for name, of in detector.segments.items()) and general is detector.detectors[0]
        return detector if same else dataclasses.replace(detector, threshold=general.threshold, segments=own)
    by, known = (options.get("by") for options in (threshold.options, detector.threshold.options))
    if by not in (None, known):
        raise ConfigError(
            f"threshold.by must be that which the detector was fitted with. Got {by!r} for {known!r}. Fit, review and"
            " promote a detector with it, or restore threshold."
        )
    labels = detector.threshold.labels
    wanted = calibrated(threshold.kind, detector.threshold.measured, threshold.options, labels)
    if wanted.version == detector.threshold.version:
        return detector
    return dataclasses.replace(detector, threshold=wanted)


def _decided_of(ws: Workspace, segment: str, detector: Detector) -> Detector:
    try:
        return decided_now(ws, detector)
    except ConfigError as error:
        raise ConfigError(f"{segment}: {error}") from error


def read_records(delivery: Delivery, ws: Workspace, first: int = 0) -> Iterator[Records]:
    """The rows of a delivery through the data contract, so many at a time that they fit into memory.

    In a Parquet file those from ``first`` on.
    """
    schema, source = ws.schema, ws.monitor.source
    for table in read_chunks(delivery, schema, source.csv, pattern=source.lines.pattern, first=first):
        yield check(table, schema, first_row=first, file=delivery.name)
        first += table.num_rows


def _batches(parts: Sequence[Path]) -> Iterator[pa.RecordBatch]:
    for part in parts:
        try:
            with opened(part) as file, pa.ipc.open_stream(file) as reader:
                yield from reader
        except (OSError, pa.ArrowInvalid) as error:
            raise StoreError(f"{str(part)!r} must hold scores. Got {type(error).__name__} on reading it.") from error


def _committed(path: Path) -> Iterator[pa.RecordBatch]:
    return (batch for part in read_scores(path, PART_SCHEMA.names) for batch in part.cast(PART_SCHEMA).to_batches())


def _numbers(of: pa.RecordBatch | pa.Table, name: str) -> np.ndarray:
    return np.asarray(of[name].to_numpy(zero_copy_only=False))


def _decided(
    detector: Detector, known: Iterator[pa.RecordBatch], chunks: Iterator[Records]
) -> Iterator[tuple[Records, Detections]]:
    """What is detected in the chunks whose rows have these scores."""
    held = PART_SCHEMA.empty_table()
    for records in chunks:
        while len(held) < len(records) and (batch := next(known, None)) is not None:
            held = pa.concat_tables([held, pa.Table.from_batches([batch])])
        if len(held) < len(records):
            raise StoreError(f"the parts must hold a score for each row. Got none from {records.first_row} on.")
        mine, held = held.slice(0, len(records)), held.slice(len(records))
        yield records, detector.decided(records, _numbers(mine, "status"), _numbers(mine, "score"))
    if len(held) or next(known, None) is not None:
        raise StoreError("the parts must hold a score for each row. Got more.")


def _reference(threshold: Threshold) -> ThresholdRef:
    """How a commit names the threshold that decided."""
    value = threshold.value if math.isfinite(threshold.value) else None
    parts = threshold.parts if threshold.segments else ()
    return ThresholdRef(threshold.version, value, threshold.alpha, {part.version: part.value for part in parts})


def _until(chunks: Iterator[Records], stop: int) -> Iterator[Records]:
    """The records before row ``stop``, which is after the first of them."""
    for records in chunks:
        left = stop - records.first_row
        yield records.between(slice(0, left))
        if len(records) >= left:
            return


def _earlier(ledger: Ledger, ref: BatchRef, before: Sequence[Commit]) -> Commit | None:
    """The commit in whose place that of ``ref`` stands: of its content, else the last one of its name."""
    if before:
        return standing(before)[0]
    store, ending = ledger.store, len("-0123456789ab.json")
    like = [file for file in names(store.commits) if file[:-ending].startswith(ref.id[: -len("-0123456789ab")])]
    found = [c for c in (read_record(store.commits / file, Commit) for file in like) if c.name == ref.name]
    gone = {commit.supersedes for commit in found}
    left = [commit for commit in found if commit.batch_id not in gone]
    return max(left, key=lambda c: (store.commits / f"{c.batch_id}.json").stat().st_mtime_ns, default=None)


def _standing(detector: Detector, summary: BatchSummary) -> Iterator[str]:
    """What the report says of the threshold: where a lone anomaly could not be flagged, and who has one of its own."""
    threshold = detector.threshold
    if detector.segments:
        flagged, scored = summary.by_part
        yield (
            f"{scored[1:].sum():,} records are of the {len(detector.segments):,} values of {detector.by!r} with a"
            f" detector of their own; {scored[0]:,} others, {flagged[0]:,} of them flagged, are the general detector's."
            " The numbers of false alarms to expect add up; their range and the batch's p-value are bounds."
        )
    if (fewest := threshold.fewest_flagged(summary.scored)) > 1:
        yield (
            f"Fewer than {fewest:,} anomalies could not be flagged, however far out: {len(threshold.calibration):,}"
            f" calibration records are too few for a batch of {summary.scored:,} records and threshold.q"
            f" {threshold.discovery_rate:g}."
        )
    if "by" in threshold.options:
        flagged, scored = summary.by_part
        own = len(threshold.segments)
        yield (
            f"{scored[1:].sum():,} records are of the {own:,} values of {threshold.options['by']!r} with a threshold"
            f" of their own; {scored[0]:,} others, {flagged[0]:,} of them flagged, have that of all calibration records"
            ", which is shown. The numbers of false alarms to expect add up; their range and the batch's p-value are"
            " bounds."
        )


def _superseding(ref: BatchRef, earlier: Commit | None) -> list[str]:
    """What the report says of the batch in whose place this one stands."""
    if earlier is None:
        return []
    if earlier.sha256 == ref.sha256:
        which = f"model version {earlier.model.version} and threshold {earlier.threshold.version}"
        why = f"the same records were scored before, with {which}, and those scores are kept."
    else:
        why = "a file of this name with other content was scored before, and its scores are kept."
    return [f"Supersedes {earlier.batch_id}: {why}"]
