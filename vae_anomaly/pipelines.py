"""The plain functions behind the flows and the command line: fit, score, review, promote, status, check.

A function takes a :class:`Workspace` and returns a value; nothing here prints, schedules or knows the command line.
What takes longer than a second reports its progress to a callback ``progress(stage, done, total)``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import logging
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pyarrow as pa
from pydantic import BaseModel

from vae_anomaly.batch import Records, concatenate
from vae_anomaly.config import MlflowConfig, MonitorConfig, config_digest, load_mlflow, load_monitor
from vae_anomaly.errors import ConfigError, DataError, StoreError, VaeAnomalyError, suggestion
from vae_anomaly.report.html import to_html
from vae_anomaly.report.markdown import to_markdown
from vae_anomaly.report.model import QuarantineNotice, Report
from vae_anomaly.schema import Column, Schema, check
from vae_anomaly.sinks import Alert, deliver
from vae_anomaly.store.commits import BatchState, HashCache, Ledger
from vae_anomaly.store.files import Store, names
from vae_anomaly.store.records import (  # fmt: skip
    BatchRef,
    Commit,
    Labelled,
    ModelRef,
    Quarantine,
    ThresholdRef,
    provenance,
    read_record,
    report_ref,
    scores_ref,
)
from vae_anomaly.store.score_files import ScoreWriter, score_table
from vae_anomaly.store.sources import (  # fmt: skip
    IMAGES,
    Delivery,
    FolderDelivery,
    InboxFile,
    batch_id,
    format_suffix,
    list_inbox,
    open_delivery,
    read_chunks,
    read_header,
)

if TYPE_CHECKING:
    from vae_anomaly.detector import Detector
    from vae_anomaly.fitting import Fit, Recipe
    from vae_anomaly.metrics import Assessment
    from vae_anomaly.registry_review import Promotion, Review
    from vae_anomaly.tracking import Registered, Tracker

_log = logging.getLogger(__name__)
Progress = Callable[[str, int, int], None]
LARGEST = 1e30  # of a training value; preprocessing refuses it as well, but knows no file and no row


def silent(stage: str, done: int, total: int) -> None:
    """A progress callback that shows nothing."""


@dataclass(frozen=True)
class Workspace:
    """One monitor and everything that follows from its two configuration files."""

    monitor: MonitorConfig
    mlflow: MlflowConfig

    @staticmethod
    def open(monitor: str | Path, mlflow: str | Path | None = None) -> Workspace:
        """Load ``monitor.yml`` (or the folder that holds it) and its ``mlflow.yml``."""
        config = load_monitor(monitor)
        return Workspace(config, load_mlflow(mlflow, config.path.parent))

    @property
    def schema(self) -> Schema:
        """The data contract of the monitor."""
        label = self.monitor.label
        return Schema(
            tuple(Column(name, **column.model_dump()) for name, column in self.monitor.columns.items()),
            record_id=self.monitor.record_id,
            label=label.column if label else None,
            anomalous=label.anomalous if label else (),
            ignore=self.monitor.ignore,
        )

    @property
    def store(self) -> Store:
        """Where the results lie."""
        return Store(self.monitor.output)

    @property
    def contract_digest(self) -> str:
        """What decides whether a file is readable: the columns that are read and how files are written."""
        read = dataclasses.replace(self.schema, label=None, anomalous=(), ignore=())
        how = json.dumps(self.monitor.source.model_dump(include={"csv", "lines"}), sort_keys=True)
        return hashlib.sha256(f"{read.digest}|{how}".encode()).hexdigest()

    @property
    def folders(self) -> bool:
        """Whether a folder, of image files, may be a delivery."""
        return self.schema.modality == "image"

    @property
    def model_cache(self) -> Path:
        """Verified copies of detectors."""
        return self.monitor.output / "models"

    @property
    def recipe(self) -> Recipe:
        """What is fitted, from the configuration."""
        from vae_anomaly.detector import Part
        from vae_anomaly.fitting import Recipe

        m = self.monitor
        return Recipe(
            model=Part(m.model.kind or "", m.model.options),
            score=Part(m.score.kind or "", m.score.options),
            objective=_given(m.objective),
            training=_given(m.training),
            threshold=m.threshold.method,
            alpha=m.threshold.alpha,
            validation=m.split.validation,
            calibration=m.split.calibration,
            seed=m.seed,
            threads=m.execution.threads,
            device=m.execution.device,
        ).resolved(self.schema)


def _given(section: BaseModel) -> dict[str, Any]:
    """The values that are set; None follows from the model."""
    return section.model_dump(exclude_none=True)


def code_version() -> str:
    """The installed version of this package."""
    return importlib.metadata.version("vae-anomaly")


# ---- fit ----


@dataclass(frozen=True)
class Training:
    """The records of ``source.training``, and the sha256 of each file."""

    records: Records
    digests: Mapping[str, str]


@dataclass(frozen=True)
class FitOutcome:
    """What a fit gave."""

    fit: Fit
    registered: Registered
    assessment: Assessment
    unscorable: int
    labelled_anomalies: int


def training_files(source: Path, *, folders: bool = False) -> list[Path]:
    """The file ``source``, or the deliveries in the folder ``source``, by name.

    With ``folders``, a folder that holds image files is one delivery.
    """
    if source.is_file():
        return [source]
    if not source.is_dir():
        beside = [p.name for p in source.parent.iterdir()] if source.parent.is_dir() else []
        raise ConfigError(
            f"source.training must be a file or a folder. Got {str(source)!r}, which does not exist."
            f"{suggestion(source.name, beside)}"
        )
    found = [file.path for file in list_inbox(source, settle_seconds=0, folders=folders).ready]
    if not found:
        raise DataError(
            "no_files",
            "source.training must hold at least one file of records. Got an empty folder.",
            file=str(source),
            remedy="Put files of normal records there.",
        )
    if folders and any(path.suffix.lower() in IMAGES for path in found):
        return [Path(os.path.realpath(source))]  # a link to the folder is the operator's own
    return found


def read_training(ws: Workspace, progress: Progress = silent) -> Training:
    """Read all training records through the data contract; a file that breaks it stops the fit."""
    parts: list[Records] = []
    digests: dict[str, str] = {}
    files = training_files(ws.monitor.source.training, folders=ws.folders)
    for done, path in enumerate(files):
        progress("reading training records", done, len(files))
        with open_delivery(path, folders=ws.folders) as delivery:
            digests[path.name] = delivery.sha256
            parts += (_sane(records, path.name) for records in read_records(delivery, ws))
    progress("reading training records", len(files), len(files))
    return Training(concatenate(parts), digests)


def read_records(delivery: Delivery, ws: Workspace) -> Iterator[Records]:
    """The rows of a delivery through the data contract, so many at a time that they fit into memory."""
    first, schema, source = 0, ws.schema, ws.monitor.source
    for table in read_chunks(delivery, schema, source.csv, pattern=source.lines.pattern):
        yield check(table, schema, first_row=first, file=delivery.name)
        first += table.num_rows


def _sane(records: Records, file: str) -> Records:
    """The records; raises :class:`DataError` for a normal one with a number that would blind its column."""
    usable = records.scorable if records.labels is None else records.scorable & ~records.labels
    for column, values in records.values.items():
        if isinstance(values, np.ndarray) and values.dtype == np.float64:
            far = np.flatnonzero(usable & (np.abs(values) > LARGEST))
            if far.size:
                raise DataError(
                    "absurd_value",
                    f"training values must lie within {LARGEST:g}. Got {far.size} beyond it.",
                    file=file,
                    column=column,
                    rows=(records.first_row + far).tolist(),
                    count=int(far.size),
                    remedy="Remove these rows from the training records, or mend the column.",
                )
    return records


def fit(ws: Workspace, progress: Progress = silent) -> FitOutcome:
    """Fit a detector to the training records, and register it as the candidate.

    Raises
    ------
    DataError, TrainingError, ConfigError
        As in :func:`~vae_anomaly.fitting.fit_detector`; nothing is registered then.
    """
    from vae_anomaly.fitting import fit_detector
    from vae_anomaly.metrics import MAX_RECORDS, assess
    from vae_anomaly.tracking import Tracker

    tracker, training = Tracker(ws.mlflow), read_training(ws, progress)
    ws.store.prepare(ws.monitor.name)
    progress("opening the tracking store", 0, 1)
    tracker.initialise()
    fitted = fit_detector(
        training.records, ws.schema, ws.recipe, lambda log, total: progress("training", log.epoch + 1, total)
    )
    normal = normal_records(training.records)
    # the calibration records trained no weight and set no scale, and must not be their own neighbours
    known, held_out = (
        fitted.detector.encode(normal.take(fitted.splits[part][:MAX_RECORDS])) for part in ("training", "calibration")
    )
    apart = fitted.detector.without(set(map(str, normal.record_ids[fitted.splits["calibration"]])))
    assessment = assess(apart, known, held_out, seed=ws.monitor.seed, tell=lambda stage: progress(stage, 0, 1))
    progress("registering", 0, 1)
    registered = tracker.log_fit(
        fitted,
        monitor=ws.monitor,
        validation=normal.take(fitted.splits["validation"]),
        assessment=assessment,
        data_digests=training.digests,
        example=example_frame(ws),
    )
    labels = training.records.labels
    return FitOutcome(
        fitted,
        registered,
        assessment,
        unscorable=int((~training.records.scorable).sum()),
        labelled_anomalies=0 if labels is None else int(labels.sum()),
    )


def normal_records(records: Records) -> Records:
    """The rows that a fit uses: scorable and not labelled as anomalies."""
    usable = records.scorable if records.labels is None else records.scorable & ~records.labels
    return records.take(np.flatnonzero(usable))


def example_frame(ws: Workspace, rows: int = 5) -> Any:
    """The first raw training rows as a DataFrame in the original columns: the model's input example.

    Images are PNG files of the pixels that the model sees: small, and without what a camera writes beside them.
    """
    schema, source = ws.schema, ws.monitor.source
    path = training_files(source.training, folders=ws.folders)[0]
    with open_delivery(path, folders=ws.folders) as delivery:
        table = next(
            read_chunks(
                *(delivery, schema, source.csv), rows=rows, columns=schema.required, pattern=source.lines.pattern
            )
        )
    frame = table.slice(0, rows)
    if schema.modality == "image":
        from vae_anomaly.images import encode

        name = schema.modelled[0].name
        # not as the file's first rows: few of them do not decide whether the file is one of images
        pixels = check(frame, schema, first_row=1, file=path.name).values[name]
        frame = frame.set_column(frame.column_names.index(name), name, pa.array([encode(image) for image in pixels]))
    return frame.to_pandas()


# ---- score ----

Verdict = Literal["committed", "quarantined", "failed"]


@dataclass(frozen=True)
class BatchOutcome:
    """What became of one file in this run."""

    name: str
    verdict: Verdict
    commit: Commit | None = None
    quarantine: Quarantine | None = None
    problem: str = ""
    report: Path | None = None


@dataclass(frozen=True)
class ScoreOutcome:
    """One scoring run: what was done, what was done before, and what is still being written."""

    batches: tuple[BatchOutcome, ...]
    already: int
    waiting: tuple[str, ...]
    model: ModelRef | None
    undelivered: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether every batch of this run was committed and every alert delivered."""
        return not self.undelivered and all(b.verdict == "committed" for b in self.batches)


def score(ws: Workspace, progress: Progress = silent) -> ScoreOutcome:
    """Score every batch in the inbox that has no committed result, with the champion.

    A file that breaks the contract is quarantined, one that cannot be read now is tried again by the next run; the
    others go on. The model is resolved once. What an earlier run left unfinished is finished first.

    Raises
    ------
    ArtifactError
        There is work and no champion, or it does not verify or fit the schema; nothing is scored then.
    ConfigError
        The inbox does not exist, or the output cannot be written.
    """
    store = ws.store.prepare(ws.monitor.name)
    ledger, cache = Ledger(store), HashCache(store)
    undelivered = deliver_outbox(ws, ledger)
    listing = _settled(ws, progress)
    done = _known(ledger, ws.contract_digest)
    scorer: _Scorer | None = None
    outcomes, already = [], 0
    for i, file in enumerate(listing.ready):
        if _is_done(done, _cached_hash(cache, file), file.name):
            already += 1
            continue
        progress(f"scoring {file.name}", i, len(listing.ready))
        outcome, sha256, scorer = _score_file(ws, ledger, cache, file, done, scorer)
        done.add(sha256)
        if outcome is None:
            already += 1
        else:
            outcomes.append(outcome)
    cache.save()
    undelivered = deliver_outbox(ws, ledger) if outcomes else undelivered
    result = ScoreOutcome(
        tuple(_with_report(store, o) for o in outcomes),
        already,
        tuple(f.name for f in listing.waiting),
        scorer.model if scorer else None,
        tuple(undelivered),
    )
    if scorer and outcomes:
        progress("logging the run", 0, 1)
        scorer.log(result)
    return result


def _settled(ws: Workspace, progress: Progress) -> Any:
    """The inbox, after at most one settling time has been waited for files that have just arrived."""
    source = ws.monitor.source
    listing = list_inbox(source.inbox, settle_seconds=source.settle_seconds, folders=ws.folders)
    if listing.waiting and source.settle_seconds <= 10:
        progress("waiting for new files to settle", 0, 1)
        time.sleep(source.settle_seconds + 0.05)
        listing = list_inbox(source.inbox, settle_seconds=source.settle_seconds, folders=ws.folders)
    return listing


def _known(ledger: Ledger, contract_digest: str) -> set[str]:
    """Contents that need no work: committed, or quarantined under the present contract."""
    refused = {q.sha256 for q in ledger.quarantines() if q.contract_digest == contract_digest}
    return {c.sha256 for c in ledger.commits()} | refused


def _is_done(done: set[str], sha256: str | None, name: str) -> bool:
    return sha256 is not None and not done.isdisjoint((sha256, _named(sha256, name)))


def _named(sha256: str, name: str) -> str:
    """What stands for content that was refused for its suffix: under another one it may well be readable."""
    return hashlib.sha256(f"{format_suffix(name)}|{sha256}".encode()).hexdigest()


def _cached_hash(cache: HashCache, file: InboxFile) -> str | None:
    try:
        return cache.get(file.name, os.lstat(file.path))
    except OSError:
        return None


def _score_file(
    ws: Workspace, ledger: Ledger, cache: HashCache, file: InboxFile, done: set[str], scorer: _Scorer | None
) -> tuple[BatchOutcome | None, str, _Scorer | None]:
    """Score, quarantine or fail one file: its outcome (None when its content is known), its sha256, the scorer."""
    sha256 = ""
    try:
        state, now = os.lstat(file.path), time.time_ns()
        with open_delivery(file.path, folders=ws.folders) as delivery:
            sha256 = delivery.sha256
            if not isinstance(delivery, FolderDelivery):  # its own state says nothing of its files'
                cache.put(file.name, state, sha256=sha256, now_ns=now)
            if _is_done(done, sha256, file.name):
                return None, sha256, scorer
            scorer = scorer or _Scorer(ws)
            return scorer.score(ledger, delivery), sha256, scorer
    except DataError as error:
        # a link or a device has no content to hash: its identity stands for it
        identity = sha256 or hashlib.sha256(f"{file.name}|{_identity(file.path)}".encode()).hexdigest()
        identity = _named(identity, file.name) if error.rule in ("unknown_format", "wrong_format") else identity
        if identity in done:
            return None, identity, scorer
        return _quarantine(ws, ledger, file, identity, error), identity, scorer
    except (OSError, StoreError) as error:
        return BatchOutcome(file.name, "failed", problem=f"{error} It will be tried again."), sha256, scorer
    except VaeAnomalyError:
        raise
    except Exception as error:
        _log.debug("batch %r failed", file.name, exc_info=True)
        problem = f"internal error {type(error).__name__}; the other batches went on. Run with --debug to see it."
        return BatchOutcome(file.name, "failed", problem=problem), sha256, scorer


def _identity(path: Path) -> str:
    """The state of what has no content to hash; of a folder also that of each file in it, by name."""
    states = [os.lstat(path)]
    for name in sorted(os.listdir(path)) if stat.S_ISDIR(states[0].st_mode) else []:
        with contextlib.suppress(FileNotFoundError):
            states.append(os.lstat(path / name))
    return "|".join(f"{s.st_mode}|{s.st_size}|{s.st_mtime_ns}" for s in states)


def _quarantine(ws: Workspace, ledger: Ledger, file: InboxFile, sha256: str, error: DataError) -> BatchOutcome:
    size = os.lstat(file.path).st_size
    ref = BatchRef(batch_id(file.name, sha256), file.name, sha256, size)
    # the path is relative to monitor.yml's folder, so that the record is the same wherever the project lies
    path = os.path.relpath(file.path, ws.monitor.path.parent)
    record = Quarantine.of(error, ref, dataset=ws.monitor.name, path=path, contract_digest=ws.contract_digest)
    ledger.quarantine(record)
    return BatchOutcome(file.name, "quarantined", quarantine=record, problem=str(error))


class _Scorer:
    """The champion, resolved once for a run, and how it scores one delivery."""

    def __init__(self, ws: Workspace) -> None:
        from vae_anomaly.tracking import Tracker

        self.ws, self.tracker = ws, Tracker(ws.mlflow)
        self.detector, self.model = load_champion(ws, self.tracker)
        threshold = self.detector.threshold
        self.threshold = ThresholdRef(threshold.version, threshold.value, threshold.alpha)
        self.seen: list[np.ndarray] = []

    def score(self, ledger: Ledger, delivery: Delivery) -> BatchOutcome | None:
        from vae_anomaly.summary import BatchSummary
        from vae_anomaly.training import limited_threads

        ref = BatchRef(batch_id(delivery.name, delivery.sha256), delivery.name, delivery.sha256, delivery.size)
        origin = self._origin(ref)
        summary = BatchSummary(self.detector)
        extra = self._extra_columns(delivery)
        with limited_threads(self.ws.monitor.execution.threads), ScoreWriter(ledger.store, origin) as writer:
            for records in read_records(delivery, self.ws):
                found = self.detector.detect(records)
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
                        threshold_version=self.threshold.version,
                    )
                )
            scores = writer.close()
            delivery.assert_unchanged()
            report = summary.report(
                monitor=self.ws.monitor.name,
                batch_id=ref.id,
                batch_name=ref.name,
                batch_sha256=ref.sha256,
                extra_columns=extra,
                notes=_superseding(ledger, ref),
                provenance={**origin, "schema_digest": self.detector.schema.digest},
            )
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
            threshold=self.threshold,
            config_digest=config_digest(self.ws.monitor),
            contract_digest=self.ws.contract_digest,
            code_version=code_version(),
            alert=report.has_something_to_say,
            labelled=Labelled(summary.anomalies, summary.found) if summary.labelled else None,
        )
        if not ledger.commit(commit, scores, report=content):
            return None
        self.seen.append(summary.scores)
        return BatchOutcome(delivery.name, "committed", commit=commit)

    def _origin(self, ref: BatchRef) -> dict[str, str]:
        return provenance(
            self.ws.monitor.name,
            ref,
            model=self.model,
            threshold=self.threshold,
            config_digest=config_digest(self.ws.monitor),
            contract_digest=self.ws.contract_digest,
            code_version=code_version(),
        )

    def _extra_columns(self, delivery: Delivery) -> list[str]:
        if isinstance(delivery, FolderDelivery):  # its columns are ours
            return []
        schema, source = self.ws.schema, self.ws.monitor.source
        known = {*schema.required, *schema.ignore, schema.label}
        header = read_header(delivery, source.csv, pattern=source.lines.pattern)
        return [name for name, _ in header if name not in known]

    def log(self, outcome: ScoreOutcome) -> None:
        """One MLflow run for the scoring job; best effort."""
        commits = [b.commit for b in outcome.batches if b.commit]
        counts = {
            "batches.committed": len(commits),
            "batches.quarantined": sum(b.verdict == "quarantined" for b in outcome.batches),
            "batches.failed": sum(b.verdict == "failed" for b in outcome.batches),
            "records": sum(c.rows for c in commits),
            "records.flagged": sum(c.flagged for c in commits),
            "records.flagged_expected": sum(c.expected_flagged for c in commits),
            "records.unscorable": sum(c.rows - c.scored for c in commits),
        }
        tags = {"model.version": self.model.version, "model.digest": self.model.digest}
        reports = [b.report for b in outcome.batches if b.report]
        self.tracker.log_scoring(self.ws.monitor.name, metrics=counts | self._quantiles(), tags=tags, files=reports)

    def _quantiles(self) -> dict[str, float]:
        """Quantiles of the scores of this run's batches (of a sample of them where there are very many)."""
        scores = np.concatenate(self.seen) if self.seen else np.zeros(0)
        return {f"score.q{q}": float(np.quantile(scores, q / 100)) for q in (5, 50, 95, 99)} if scores.size else {}


def _superseding(ledger: Ledger, ref: BatchRef) -> list[str]:
    """What the report says of batches that came under the same name with other content."""
    store, ending = ledger.store, len("-0123456789ab.json")
    like = [file for file in names(store.commits) if file[:-ending] == ref.id[: -len("-0123456789ab")]]
    earlier = [c.batch_id for c in (read_record(store.commits / file, Commit) for file in like) if c.name == ref.name]
    said = "a file of this name with other content was scored before, and its scores are kept."
    return [f"Supersedes {', '.join(earlier)}: {said}"] if earlier else []


def load_champion(ws: Workspace, tracker: Tracker) -> tuple[Detector, ModelRef]:
    """The serving detector, verified, from the local cache or the registry, with the present ``alpha``.

    Warns where monitor.yml asks for another model or score than the champion has.
    """
    from vae_anomaly.registry import lookup
    from vae_anomaly.thresholds import THRESHOLDS

    detector, model = _load(ws, tracker, "champion")
    wanted = ws.monitor.threshold
    if wanted.alpha != detector.threshold.alpha:
        method = lookup("threshold.method", THRESHOLDS, wanted.method)
        detector = dataclasses.replace(detector, threshold=method(detector.threshold.calibration, alpha=wanted.alpha))
    recipe = ws.recipe
    if (recipe.model, recipe.score) != (detector.model, detector.score_part):
        _log.warning(
            "champion %s has %s and %s, and scores with them; monitor.yml asks for %s and %s: fit and promote for that",
            *(model.version, detector.model, detector.score_part, recipe.model, recipe.score),
        )
    return detector, model


def _load(ws: Workspace, tracker: Tracker, which: str) -> tuple[Detector, ModelRef]:
    """A registered version, verified, whose columns are those of monitor.yml."""
    from vae_anomaly.detector import Detector, require_schema

    found = tracker.resolve(ws.monitor.name, which, cache=ws.model_cache)
    detector = Detector.load(tracker.fetch(found, ws.model_cache), digest=found.digest)
    require_schema(detector, ws.schema)
    return detector, ModelRef(found.name, found.version, found.digest)


def deliver_outbox(ws: Workspace, ledger: Ledger) -> list[str]:
    """Render reports and deliver alerts that the records call for and that are not done; returns what failed."""
    store, problems = ledger.store, []
    with store.lock(store.outbox):
        for commit in ledger.unrendered():
            try:
                html = to_html(read_report(store, commit.batch_id)).encode()
                store.replace(html, store.file(store.reports, commit.batch_id, ".html"))
            except StoreError as error:
                problems.append(f"report of batch {commit.batch_id}: {error}")
        sinks: dict[str, dict[str, Any]] = {s.kind: s.model_dump(exclude={"kind"}) for s in ws.monitor.sinks}
        for alert in ledger.pending_alerts(list(sinks)):
            try:
                deliver(_alert(ws, store, alert.record), alert.sink, **sinks[alert.sink])
                ledger.mark_delivered(alert.record.batch_id, alert.sink, idempotency_key=alert.record.idempotency_key)
            except (VaeAnomalyError, OSError) as error:
                problems.append(f"sink {alert.sink!r}, batch {alert.record.batch_id}: {error}")
    return problems


def _alert(ws: Workspace, store: Store, record: Commit | Quarantine) -> Alert:
    key = record.idempotency_key
    if isinstance(record, Commit):
        report = read_report(store, record.batch_id)
        paths = tuple(store.file(store.reports, record.batch_id, suffix) for suffix in (".html", ".json"))
        return Alert(ws.monitor.name, record.batch_id, key, report.verdict, to_markdown(report), paths)
    fields = (record.rule, record.problem, record.remedy, record.column, tuple(record.first_rows), record.count)
    notice = QuarantineNotice(ws.monitor.name, record.batch_id, record.name, *fields)
    reason = store.file(store.quarantine, record.batch_id, ".json")
    return Alert(ws.monitor.name, record.batch_id, key, notice.verdict, to_markdown(notice), (reason,), "quarantined")


def read_report(store: Store, batch: str) -> Report:
    """The report value of a committed batch; raises :class:`StoreError` where it is missing or altered."""
    path = store.file(store.reports, batch, ".json")
    try:
        return Report.from_dict(json.loads(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{str(path)!r} must be the report of a committed batch. Got {type(error).__name__} on reading it. Run"
            " 'vae-anomaly check' to see what to do."
        ) from error


def _with_report(store: Store, outcome: BatchOutcome) -> BatchOutcome:
    """The outcome with the file to open: the HTML report, or the reason file."""
    record = outcome.commit or outcome.quarantine
    if record is None:
        return outcome
    kind = (store.reports, ".html") if outcome.commit else (store.quarantine, ".json")
    path = store.file(kind[0], record.batch_id, kind[1])
    return BatchOutcome(**{**vars(outcome), "report": path if path.exists() else None})


# ---- look ----


def find_commit(ws: Workspace, batch: str) -> Commit:
    """The commit of a batch, by its id or by the name of its file (the latest of that name)."""
    store = ws.store
    ledger = Ledger(store)
    commits = list(ledger.commits()) if store.commits.is_dir() else []
    found = [c for c in commits if batch in (c.batch_id, c.name)]
    if not found:
        known = {c.name for c in commits} | {c.batch_id for c in commits}
        raise ConfigError(
            f"batch must be the id or file name of a committed batch. Got {batch!r}.{suggestion(batch, known)}"
            " `vae-anomaly status` lists them."
        )
    return max(found, key=lambda c: (store.commits / f"{c.batch_id}.json").stat().st_mtime_ns)


def render(ws: Workspace, batch: str) -> tuple[Report, Path]:
    """The report of a committed batch, its HTML page made again."""
    commit = find_commit(ws, batch)
    store = ws.store
    report = read_report(store, commit.batch_id)
    page = store.file(store.reports, commit.batch_id, ".html")
    store.replace(to_html(report).encode(), page)
    return report, page


def status(ws: Workspace) -> list[BatchState]:
    """Where every file stands that was ever seen; pending ones are hashed, nothing is changed."""
    ledger, inbox = Ledger(ws.store), []
    refused = {record.sha256 for record in ledger.quarantines()}
    for file in list_inbox(ws.monitor.source.inbox, settle_seconds=0, folders=ws.folders).ready:
        try:
            with open_delivery(file.path, folders=ws.folders) as delivery:
                named = _named(delivery.sha256, file.name)
                inbox.append((file.name, named if named in refused else delivery.sha256))
        except DataError:
            inbox.append((file.name, hashlib.sha256(f"{file.name}|{_identity(file.path)}".encode()).hexdigest()))
        except OSError:
            continue
    return ledger.state(inbox, ws.contract_digest)


def last_reports(ws: Workspace) -> list[Path]:
    """All HTML reports, by name."""
    reports = ws.store.reports
    return [reports / name for name in names(reports) if name.endswith(".html")] if reports.is_dir() else []


# ---- review ----


def review(ws: Workspace, *, version: str | None = None, now: float | None = None) -> Review:
    """Evaluate the gates for the candidate (or ``version``) and write the review beside it in the registry."""
    from vae_anomaly import registry_review
    from vae_anomaly.tracking import Tracker

    ws.store.prepare(ws.monitor.name)
    _load(ws, Tracker(ws.mlflow), version or "candidate")
    training = normal_records(read_training(ws).records)
    return registry_review.review(ws.monitor, ws.mlflow, records=training, recipe=ws.recipe, version=version,
                                  cache=ws.model_cache, now=now or time.time())  # fmt: skip


def promote(
    ws: Workspace, *, by: str, version: str | None = None, reason: str | None = None, force: bool = False
) -> Promotion:
    """Make the candidate (or ``version``) the champion when its review holds."""
    from vae_anomaly import registry_review
    from vae_anomaly.tracking import Tracker

    _load(ws, Tracker(ws.mlflow), version or "candidate")

    return registry_review.promote(
        ws.monitor, ws.mlflow, by=by, version=version, reason=reason, force=force, now=time.time()
    )


def rollback(ws: Workspace, *, by: str, reason: str | None = None) -> Promotion:
    """Move the champion back to the version before it."""
    from vae_anomaly import registry_review

    return registry_review.rollback(ws.monitor, ws.mlflow, by=by, reason=reason, now=time.time())


# ---- latent ----

LOOKED_AT = 20_000  # records of a file, from its beginning


@dataclass(frozen=True)
class Look:
    """What a look into the latent space wrote, and what there is to say of it."""

    files: tuple[Path, ...]
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class _Viewed:
    """A detector and the records of a file that are looked at; ``extra`` is a column beyond the schema, row by row."""

    detector: Detector
    facts: dict[str, Any]
    records: Records
    extra: pa.ChunkedArray | None = None

    def named(self, option: str, record_id: str) -> int:
        """The row of a record, which must be scorable."""
        found = np.flatnonzero((self.records.record_ids == record_id) & self.records.scorable)
        if not len(found):
            said = f"the id of a scorable one of the first {len(self.records):,} records of {self.facts['file']}"
            raise ConfigError(f"{option} must be {said}. Got another one.")
        return int(found[0])


def latent_map(
    ws: Workspace,
    batch: str | None = None,
    *,
    color: str = "score",
    method: Any = "auto",
    version: str | None = None,
    output: Path | None = None,
) -> Look:
    """The map of a file's records: by default of the newest scored file in the inbox, else of the first training file.

    ``color`` is ``score``, ``label`` or any column of the file; ``batch`` a path or the name of a file in the inbox.
    """
    from vae_anomaly import figures, latent

    _require_one_of("method", method, latent.Method)
    viewed = _viewed(ws, batch, version, color)
    encoded = latent.encode(viewed.detector, viewed.records)
    if viewed.extra is None:
        colour = encoded.colour(color)
    else:
        colour = latent.colour_of(color, viewed.extra.take(pa.array(np.flatnonzero(viewed.records.scorable))))
    known, count = latent.reference_means(viewed.detector), len(encoded)
    plane = latent.plane(np.concatenate([encoded.mean, known[: figures.MAX_POINTS]]), method)
    figure = figures.latent_map(plane, colour, encoded.flagged)
    columns = {
        "latent.record_id": encoded.records.record_ids,
        "latent.x": plane.points[:count, 0],
        "latent.y": plane.points[:count, 1],
        "latent.score": encoded.score,
        "latent.flagged": encoded.flagged,
        "latent.colour": colour.values,
    }
    facts = {"records": count, "flagged": int(encoded.flagged.sum()), "axes": plane.axes}
    files = {"map.png": figures.png(figure), **_table_files("map", columns)}
    return Look(_written(ws, output, files), {**viewed.facts, **facts})


def latent_traverse(
    ws: Workspace,
    batch: str | None = None,
    *,
    record: str | None = None,
    steps: int = 9,
    spread: float = 2.5,
    version: str | None = None,
    output: Path | None = None,
) -> Look:
    """Each active dimension changed alone: from ``record`` of a file, from the most ordinary one of the file ``batch``,
    or, where none is named, from the most central reference record."""
    from vae_anomaly import figures, latent

    base = None
    if record is None and batch is None:
        detector, facts = _looked_through(ws, version)
    else:
        viewed = _viewed(ws, batch, version)
        detector, facts = viewed.detector, viewed.facts
        if record is None:
            encoded = latent.encode(detector, viewed.records)
            base = encoded.records.take(np.argsort(encoded.score)[:1])
        else:
            base = viewed.records.take(np.array([viewed.named("record", record)]))
    found = latent.traverse(detector, base=base, steps=steps, spread=spread)
    where = {
        "latent.dimension": np.repeat(found.dimensions + 1, steps),
        "latent.value": found.values.ravel(),
    }
    files = {"traverse.png": figures.png(figures.traversal(found)), **_decoded_files("traverse", found.decoded, where)}
    dimensions = (found.dimensions + 1).tolist()
    return Look(_written(ws, output, files), {**facts, "dimensions": dimensions, "active": found.active,
                                              "from": found.about})  # fmt: skip


def latent_interpolate(
    ws: Workspace,
    batch: str | None = None,
    *,
    first: str | None = None,
    last: str | None = None,
    steps: int = 9,
    how: Any = "linear",
    version: str | None = None,
    output: Path | None = None,
) -> Look:
    """The way from one record of a file to another: by default from the most ordinary to the one farthest from it."""
    from vae_anomaly import figures, latent

    _require_one_of("how", how, latent.Way)
    viewed = _viewed(ws, batch, version)
    encoded, good = latent.encode(viewed.detector, viewed.records), np.flatnonzero(viewed.records.scorable)
    ends = good if len(good) < 2 else good[latent.far_apart(viewed.detector, encoded)]
    for at, (option, name) in enumerate((("from", first), ("to", last))):
        if name is not None and len(ends) > at:
            ends[at] = viewed.named(option, name)
    found = latent.interpolate(viewed.detector, viewed.records.take(ends), steps=steps, how=how)
    where = {"latent.position": found.position}
    files = {"interpolate.png": figures.png(figures.interpolation(found))}
    files |= _decoded_files("interpolate", found.decoded, where)
    facts = {"from": found.ids[0], "to": found.ids[1], "steps": steps}
    return Look(_written(ws, output, files), {**viewed.facts, **facts})


def latent_generate(
    ws: Workspace,
    count: int = 48,
    *,
    context: Mapping[str, str] | None = None,
    version: str | None = None,
    output: Path | None = None,
    seed: int = 0,
    prior_temperature: float = 1.0,
    sample: bool | None = None,
    how: Any = "nucleus",
    temperature: float = 1.0,
    top_p: float = 0.9,
) -> Look:
    """``count`` records from the prior, in a ``context``; the options are those of :mod:`vae_anomaly.latent`."""
    from vae_anomaly import figures, latent

    writing = latent.Decoding(how, temperature, top_p)
    detector, facts = _looked_through(ws, version)
    found = latent.generate(
        detector,
        count,
        seed=seed,
        context=context,
        prior_temperature=prior_temperature,
        sample=sample,
        decoding=writing,
    )
    files = {"generate.png": figures.png(figures.generated(detector, found)),
             **_decoded_files("generate", found.decoded, {})}  # fmt: skip
    return Look(_written(ws, output, files), {**facts, "records": count, "context": dict(context or {}), "seed": seed})


def latent_reconstruct(
    ws: Workspace, batch: str | None = None, *, version: str | None = None, output: Path | None = None
) -> Look:
    """The records of a file beside their reconstructions; the figure shows the strangest and the most ordinary ones."""
    from vae_anomaly import figures, latent

    viewed = _viewed(ws, batch, version)
    detector = viewed.detector
    found = latent.reconstruct(detector, viewed.records)
    index, titles = figures.picked(found.score)
    inputs = detector.encode(viewed.records.take(np.flatnonzero(viewed.records.scorable)[index]))
    figure = figures.found_beside_expected(detector, inputs, titles)
    where = {"latent.record_id": np.array(found.ids, dtype=object), "latent.score": found.score}
    files = {"reconstruct.png": figures.png(figure)}
    files |= _decoded_files("reconstruct", found.found, where, found.expected)
    return Look(_written(ws, output, files), {**viewed.facts, "records": len(found.ids)})


def _require_one_of(option: str, value: str, names: Any) -> None:
    """Refuse a value that is none of a ``Literal``'s before anything is read for it."""
    known = get_args(names)
    if value not in known:
        raise ConfigError(f"{option} must be one of {list(known)}. Got {value!r}.{suggestion(str(value), known)}")


def _looked_through(ws: Workspace, version: str | None) -> tuple[Detector, dict[str, Any]]:
    """The detector: ``version``, else the champion, else the candidate."""
    from vae_anomaly.errors import ArtifactError
    from vae_anomaly.tracking import Tracker

    tracker, which = Tracker(ws.mlflow), version or "champion"
    if version is None:
        try:
            tracker.resolve(ws.monitor.name, which, cache=ws.model_cache)
        except ArtifactError:
            which = "candidate"
    detector, model = _load(ws, tracker, which)
    return detector, {"version": model.version}


def _viewed(ws: Workspace, batch: str | None, version: str | None, column: str = "") -> _Viewed:
    """The detector and the first ``LOOKED_AT`` records of a file, with its ``column`` where the schema has no such."""
    path = _batch_path(ws, batch)
    detector, facts = _looked_through(ws, version)
    schema, source = ws.schema, ws.monitor.source
    parts, extra, first = [], [], 0
    with open_delivery(path, folders=ws.folders) as delivery:
        there = [name for name, _ in read_header(delivery, source.csv, pattern=source.lines.pattern)]
        beyond = column in there and column not in ("score", "label", *(c.name for c in schema.columns))
        wanted = [*schema.required, *(n for n in (schema.label, column if beyond else None) if n in there)]
        for table in read_chunks(delivery, schema, source.csv, columns=wanted, pattern=source.lines.pattern):
            kept = table.slice(0, LOOKED_AT - first)
            parts.append(check(kept, schema, first_row=first, file=delivery.name))
            extra += [kept.column(column)] if beyond else []
            first += len(kept)
            if first >= LOOKED_AT:
                break
    records = concatenate(parts)
    if not records.scorable.any():
        raise DataError("no_scorable_records", "at least one scorable record is needed. Got none.", file=path.name,
                        remedy="Name another file.")  # fmt: skip
    joined = pa.chunked_array([chunk for part in extra for chunk in part.chunks]) if extra else None
    return _Viewed(detector, {**facts, "file": str(path), "read": len(records)}, records, joined)


def _batch_path(ws: Workspace, batch: str | None) -> Path:
    """A path, the name of a file in the inbox, or by default the newest scored file there, else the first training
    file."""
    source = ws.monitor.source
    ready = list_inbox(source.inbox, settle_seconds=0, folders=ws.folders).ready if source.inbox.is_dir() else ()
    if batch is None:
        return _newest_scored(ws, ready) or training_files(source.training, folders=ws.folders)[0]
    for path in (Path(batch), source.inbox / batch):
        if path.exists():
            return path
    known = [file.name for file in ready]
    raise ConfigError(f"the file must be a path or a name in the inbox. Got {batch!r}.{suggestion(batch, known)}")


def _newest_scored(ws: Workspace, ready: Sequence[InboxFile]) -> Path | None:
    """The newest file of the inbox that has scored records and is, under the same contract, what it was then."""
    store = ws.store
    commits = Ledger(store).commits() if store.commits.is_dir() else ()
    scored = {(c.name, c.sha256) for c in commits if c.scored and c.contract_digest == ws.contract_digest}
    names = {name for name, _ in scored}
    for file in sorted((f for f in ready if f.name in names), key=_changed, reverse=True):
        with contextlib.suppress(DataError, OSError), open_delivery(file.path, folders=ws.folders) as delivery:
            if (file.name, delivery.sha256) in scored:
                return file.path
    return None


def _changed(file: InboxFile) -> int:
    try:
        return os.lstat(file.path).st_mtime_ns
    except FileNotFoundError:
        return 0


def _decoded_files(stem: str, found: Any, where: Mapping[str, np.ndarray], expected: Any = None) -> dict[str, bytes]:
    """Decoded records as CSV and Parquet, lines of text or an array of images, after the columns ``where``."""
    if isinstance(found, np.ndarray):
        import io

        sink = io.BytesIO()
        np.save(sink, found if expected is None else np.stack([found, expected]))
        return {f"{stem}.npy": sink.getvalue()}
    if isinstance(found, list):
        lead = [" ".join(str(v) for v in row) for row in zip(*where.values(), strict=True)] or [""] * len(found)
        beside = [""] * len(found) if expected is None else [f"\n\t{line}" for line in expected]
        lines = [f"{a}\t{b}{c}" if a else b for a, b, c in zip(lead, found, beside, strict=True)]
        return {f"{stem}.txt": ("\n".join(lines) + "\n").encode()}
    columns = {**where, **{name: found[name] for name in found.columns}}
    if expected is not None:
        columns |= {f"{name}.expected": expected[name] for name in expected.columns}
    return _table_files(stem, columns)


def _table_files(stem: str, columns: Mapping[str, Any]) -> dict[str, bytes]:
    import pandas as pd
    import pyarrow.parquet as pq

    frame, sink = pd.DataFrame(dict(columns)), pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), sink)
    return {f"{stem}.csv": frame.to_csv(index=False).encode(), f"{stem}.parquet": sink.getvalue().to_pybytes()}


def _written(ws: Workspace, output: Path | None, files: Mapping[str, bytes]) -> tuple[Path, ...]:
    """The paths of ``files`` in the folder ``output``, each of them whole whenever this stops."""
    folder = output or ws.monitor.output / "latent"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            part = folder / f".{name}.{os.getpid()}"
            part.write_bytes(content)
            part.replace(folder / name)
    except OSError as error:
        problem = f"the output folder {str(folder)!r} must be one that can be written."
        raise ConfigError(f"{problem} Got {type(error).__name__} ({error.strerror}).") from error
    return tuple(folder / name for name in files)
