"""The plain functions behind the flows and the command line: fit, score, review, promote, status, check.

A function takes a :class:`Workspace` and returns a value; nothing here prints, schedules or knows the command line.
What takes longer than a second reports its progress to a callback ``progress(stage, done, total)``.
"""

from __future__ import annotations

import contextlib
import csv
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pyarrow as pa

from vae_anomaly.batch import Records, concatenate
from vae_anomaly.errors import ConfigError, DataError, suggestion, words
from vae_anomaly.pages import read_report
from vae_anomaly.report.html import to_html
from vae_anomaly.report.model import Report
from vae_anomaly.schema import check
from vae_anomaly.scoring import load_version
from vae_anomaly.store.commits import Ledger
from vae_anomaly.store.files import INDEX, names
from vae_anomaly.store.records import Commit
from vae_anomaly.store.score_files import read_scores
from vae_anomaly.store.sources import (  # fmt: skip
    IMAGES,
    InboxFile,
    list_inbox,
    open_delivery,
    read_chunks,
    read_header,
    unchanged,
)
from vae_anomaly.worker import read_records
from vae_anomaly.workspace import Progress, Workspace, silent, user

if TYPE_CHECKING:
    from vae_anomaly.decisions import Decision
    from vae_anomaly.detector import Detector
    from vae_anomaly.fitting import Fit
    from vae_anomaly.metrics import Assessment
    from vae_anomaly.recalibration import Recalibrated
    from vae_anomaly.registry_review import Review
    from vae_anomaly.thresholds import Threshold
    from vae_anomaly.tracking import Registered

_log = logging.getLogger(__name__)
# what a spreadsheet would compute, where a cell begins for one that splits lines at another sign; a number is none
_NUMBER = r"[+-]?(?:[\d.,]*(?:[eE][+-]?\d+)?|inf|nan)\s*"
_COMPUTED = re.compile(
    r"(?:^|(?<=[\"',;|\t\r\n]))(?=[\s\0\ufeff]*[=+@\uff1d\uff0b\uff20\uff0d-])"
    rf"(?!\s*{_NUMBER}(?:$|[\"';|\t\r\n]))"
)
FLAGS, BESIDE = ["is_anomaly"], 4_000  # of a score file; training records that a refitted detector is measured on
LARGEST = 1e30  # of a training value; preprocessing refuses it as well, but knows no file and no row


# ---- fit ----


@dataclass(frozen=True)
class Training:
    """The records that a fit is given and the sha256 of each file; how many ``confirmed`` anomalies were among them and
    are left out, the ``false_alarms`` that join the calibration, and which records are ``doubtful`` (B,) and teach
    nothing."""

    records: Records
    digests: Mapping[str, str]
    confirmed: int = 0
    false_alarms: Records | None = None
    doubtful: np.ndarray | None = None

    @property
    def normal(self) -> Records:
        """What a fit takes part of, in the order of its splits."""
        return normal_records(self.records)


@dataclass(frozen=True)
class Recent:
    """Committed batches, the oldest first, and what a fit on them is given."""

    commits: tuple[Commit, ...]
    training: Training


@dataclass(frozen=True)
class FitOutcome:
    """What a fit gave; ``confirmed`` anomalies were left out, and so many false alarms ``joined`` the calibration."""

    fit: Fit
    registered: Registered
    assessment: Assessment
    unscorable: int
    labelled_anomalies: int
    confirmed: int
    joined: int


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
    return _taught(ws, Training(concatenate(parts), digests))


def _taught(ws: Workspace, training: Training) -> Training:
    """The training records after what people said of scored ones."""
    from vae_anomaly.feedback import lessons
    from vae_anomaly.fitting import content_hash

    learned, kept, doubtful = lessons(ws), np.ones(len(training.records), bool), training.doubtful
    if learned.digest:  # somebody said something
        content = content_hash(training.records)
        if learned.anomalies is not None:
            kept = ~np.isin(content, content_hash(learned.anomalies))
        if doubtful is not None and learned.false_alarms is not None:
            doubtful = doubtful & ~np.isin(content, content_hash(learned.false_alarms))
    digests = dict(training.digests) | ({"feedback": learned.digest} if learned.digest else {})
    records = training.records if kept.all() else training.records.take(np.flatnonzero(kept))
    doubtful = None if doubtful is None else doubtful[kept]
    return Training(records, digests, int((~kept).sum()), learned.false_alarms, doubtful)


def _sane(records: Records, file: str) -> Records:
    """The records; raises :class:`DataError` for a normal one with a number that would blind its column."""
    for column, beyond in _absurd(records):
        far = np.flatnonzero(records.normal & beyond)
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


def _absurd(records: Records) -> Iterator[tuple[str, np.ndarray]]:
    """For each column of numbers which records (B,) lie beyond what may train."""
    for column, values in records.values.items():
        if isinstance(values, np.ndarray) and values.dtype == np.float64:
            yield column, np.abs(values) > LARGEST


def read_recent(
    ws: Workspace,
    commits: Sequence[Commit],
    last: int,
    progress: Progress = silent,
    *,
    left_out: Mapping[str, int] = MappingProxyType({}),
) -> Recent:
    """Read the records of the first ``last`` of ``commits`` (the last committed first) whose files are still there.

    Confirmed anomalies are left out. Doubtful is what was flagged in a batch that has not shifted as a whole and what
    nobody has called a false alarm; where the batch has shifted, whether that is the new normal is for the review to
    ask. A record is named by its batch and its id. ``left_out`` says why others are not among ``commits``.

    Raises
    ------
    DataError
        There are fewer such batches, or a file changes while it is read.
    StoreError
        The scores of one of them are lost or altered, or feedback is.
    """
    from vae_anomaly.replay import delivered_batches

    others: Counter[str] = Counter(left_out)
    used: list[Commit] = []
    parts: list[tuple[Records, np.ndarray]] = []
    for commit, delivery in delivered_batches(ws, [c for c in commits if c.scored], others, last=last):
        progress("reading recent batches", len(used), last)
        flags = [part["is_anomaly"].to_numpy() for part in read_scores(ws.store.root / commit.scores.file, FLAGS)]
        with unchanged(delivery):
            records = concatenate(list(read_records(delivery, ws)))
        doubtful = np.concatenate(flags) & (not commit.drifted)
        for _, beyond in _absurd(records):
            doubtful |= beyond
        names = np.array([f"{commit.name} {name}" for name in records.record_ids], dtype=object)
        parts.append((replace(records, record_ids=names), doubtful))
        used.append(commit)
    if len(used) < last:
        why = "".join(f"; {count:,} are {reason}" for reason, count in sorted(others.items()))
        raise DataError(
            "too_few_batches",
            f"{last:,} committed batches that can be read again are needed. Got {len(used):,}{why}.",
            remedy="Wait for more batches, put their files back into source.inbox, or ask for fewer in refit.batches.",
        )
    commits, parts = used[::-1], parts[::-1]
    training = Training(
        concatenate([records for records, _ in parts]),
        {commit.name: commit.sha256 for commit in commits},
        doubtful=np.concatenate([doubtful for _, doubtful in parts]),
    )
    return Recent(tuple(commits), _taught(ws, training))


def fit(ws: Workspace, progress: Progress = silent) -> FitOutcome:
    """Fit a detector to the training records, and register it as the candidate.

    Raises
    ------
    DataError, TrainingError, ConfigError
        As in :func:`~vae_anomaly.fitting.fit_detector`; nothing is registered then.
    """
    return fit_on(ws, read_training(ws, progress), progress)


def fit_on(
    ws: Workspace, training: Training, progress: Progress = silent, tags: Mapping[str, str] = MappingProxyType({})
) -> FitOutcome:
    """As :func:`fit`, on these records; ``tags`` are those of the version."""
    from vae_anomaly.fitting import fit_detector
    from vae_anomaly.metrics import MAX_RECORDS, assess
    from vae_anomaly.tracking import Tracker

    tracker = Tracker(ws.mlflow)
    ws.store.prepare(ws.monitor.name)
    progress("opening the tracking store", 0, 1)
    tracker.initialise()
    fitted = fit_detector(
        training.records,
        ws.schema,
        ws.recipe,
        lambda log, total: progress("training", log.epoch + 1, total),
        calibrating=training.false_alarms,
        doubtful=training.doubtful,
        on_segment=partial(progress, "fitting the segments' detectors"),
    )
    normal = training.normal
    calibration = fitted.splits["calibration"]
    calibration = calibration[calibration < len(normal)]  # without those that joined it
    # the calibration records trained no weight and set no scale, and must not be their own neighbours
    known, held_out = (
        fitted.detector.encode(normal.take(index[:MAX_RECORDS])) for index in (fitted.splits["training"], calibration)
    )
    apart = fitted.detector.without(set(map(str, normal.record_ids[calibration])))
    assessment = assess(apart, known, held_out, seed=ws.monitor.seed, tell=lambda stage: progress(stage, 0, 1))
    progress("registering", 0, 1)
    registered = tracker.log_fit(
        fitted,
        monitor=ws.monitor,
        validation=normal.take(fitted.splits["validation"]),
        assessment=assessment,
        data_digests=training.digests,
        example=example_frame(ws),
        by=user(),
        tags=tags,
    )
    labels = training.records.labels
    return FitOutcome(
        fitted,
        registered,
        assessment,
        unscorable=int((~training.records.scorable).sum()),
        labelled_anomalies=0 if labels is None else int(labels.sum()),
        confirmed=training.confirmed,
        joined=len(fitted.splits["calibration"]) - len(calibration),
    )


def normal_records(records: Records) -> Records:
    """The rows that a fit uses: scorable and not labelled as anomalies."""
    return records.take(np.flatnonzero(records.normal))


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


# ---- recalibrate ----


@dataclass(frozen=True)
class RecalibrateOutcome:
    """What a new calibration gave, and the threshold that decided ``before``; ``beyond_chance`` of the batches had more
    flags than the range of false alarms then."""

    made: Recalibrated
    registered: Registered
    before: Threshold
    beyond_chance: int


def recalibrate(
    ws: Workspace,
    progress: Progress = silent,
    *,
    first: str,
    last: str | None = None,
    but: Sequence[str] = (),
    by: str,
    reason: str,
) -> RecalibrateOutcome:
    """Calibrate the champion again on committed batches that ``by`` calls normal, and register that as the candidate.

    The batches are those from ``first`` to ``last``, or the last one, by name, without those of ``but``.

    Raises
    ------
    ConfigError, DataError
        As :func:`~vae_anomaly.recalibration.named_batches` and :func:`~vae_anomaly.recalibration.recalibrated`; nothing
        is registered then.
    ArtifactError
        There is no champion, or it does not verify or fit the columns.
    """
    from vae_anomaly import decisions, recalibration
    from vae_anomaly.feedback import lessons
    from vae_anomaly.fitting import split
    from vae_anomaly.registry_review import is_as_fitted
    from vae_anomaly.tracking import Tracker
    from vae_anomaly.worker import decided_now

    by, reason, tracker = words("--by", by), words("--reason", reason), Tracker(ws.mlflow)
    batches = recalibration.named_batches(ws, first, last, but)
    champion, model = load_version(ws, tracker, "champion")
    recalibration.require_one(champion)
    with tracker.explained():
        tags = tracker.tags(tracker.resolve(ws.monitor.name, model.version))
    training = _learned(ws, tags, progress)
    if is_as_fitted(tags, ws.monitor, champion, training):  # else any of them may have trained
        training = training.take(split(training, ws.recipe)["training"])
    made = recalibration.recalibrated(
        ws,
        champion,
        batches,
        anomalies=lessons(ws).anomalies,
        trained=recalibration.contents_of(training),
        progress=progress,
    )
    try:
        before = decided_now(ws, champion).threshold
    except ConfigError:  # it cannot have the threshold of monitor.yml, which divides the records otherwise
        before = champion.threshold
    beyond = recalibration.flagged_beyond_chance(batches, before)
    said = recalibration.statement(made, beyond, by=by, reason=reason)
    made = made.stated(by, reason)
    progress("registering", 0, 1)
    registered = tracker.log_recalibration(
        made.detector,
        monitor=ws.monitor.name,
        fitted=tags,
        said=said,
        about={**made.facts, "by": by, "reason": reason, "said": said},
        batches={batch.name: batch.commit.sha256 for batch in batches},
        example=example_frame(ws),
        by=by,
    )
    decisions.recalibrated(tracker, registered, by=by, reason=reason, now=time.time())
    return RecalibrateOutcome(made, registered, before, beyond)


# ---- look ----


def render(ws: Workspace, batch: str) -> tuple[Report, Path]:
    """The report of a committed batch, its HTML page made again."""
    commit = Ledger(ws.store).find(batch)
    store = ws.store
    if commit.batch_id in Ledger(store).pruned():
        raise ConfigError(f"the batch must not have been pruned. Got {batch!r}, of which the commit record is left.")
    report = read_report(store, commit.batch_id)
    page = store.file(store.reports, commit.batch_id, ".html")
    store.replace(to_html(report).encode(), page)
    return report, page


def last_reports(ws: Workspace) -> list[Path]:
    """All HTML reports of batches, by name."""
    reports = ws.store.reports
    return [reports / name for name in names(reports) if name.endswith(".html") and name != INDEX]


# ---- review ----


def review(
    ws: Workspace,
    progress: Progress = silent,
    *,
    by: str | None = None,
    version: str | None = None,
    replay: int | None = None,
) -> Review:
    """Evaluate the gates for the candidate (or ``version``) and write the review beside it in the registry.

    ``replay`` batches are scored again; by default as many as mlflow.yml says.
    """
    from vae_anomaly import registry_review
    from vae_anomaly.replay import replay as replay_batches
    from vae_anomaly.tracking import REFIT_ABOUT, REFIT_BATCHES, Tracker

    ws.store.prepare(ws.monitor.name)
    tracker = Tracker(ws.mlflow)
    detector, model = load_version(ws, tracker, version or "candidate")
    with tracker.explained():
        tags = tracker.tags(tracker.resolve(ws.monitor.name, model.version))
    learned, remarks = _learned(ws, tags, progress), []
    last = ws.mlflow.registry.review.replay if replay is None else replay
    if REFIT_BATCHES in tags:
        training = read_training(ws, progress).normal
        remarks = [tags.get(REFIT_ABOUT, ""), *_beside_training(detector, training, seed=ws.monitor.seed)]
        if last:
            remarks.append("Batches that it was fitted on may be among those that are scored again, which flatters it.")
    progress("reviewing", 0, 1)
    return registry_review.review(ws.monitor, ws.mlflow, records=learned, recipe=ws.recipe, version=model.version,
                                  cache=ws.model_cache, now=time.time(), by=by or user(), remarks=remarks,
                                  replay=partial(replay_batches, ws, last=last, progress=progress))  # fmt: skip


def _learned(ws: Workspace, tags: Mapping[str, str], progress: Progress) -> Records:
    """The normal records that the weights of the version with these ``tags`` were fitted to: those of source.training,
    or of the batches of a refit."""
    from vae_anomaly.tracking import HEAD, REFIT_BATCHES

    heads = tags.get(REFIT_BATCHES, "").split()
    if not heads:
        return read_training(ws, progress).normal
    of_then = [commit for commit in Ledger(ws.store).newest() if commit.sha256[:HEAD] in heads]
    return read_recent(ws, of_then, len(heads), progress).training.normal


def _beside_training(detector: Detector, training: Records, *, seed: int) -> Iterator[str]:
    """How far a detector that was fitted to something else has gone from the records of ``source.training``.

    Each of many small steps may pass its review; together they are seen here only.
    """
    drawn = np.random.default_rng(seed).permutation(len(training))[:BESIDE]
    records, threshold = training.take(drawn), detector.threshold
    found = detector.detect(records)
    for_these = threshold.for_batch(threshold.counts(found.score))
    found = replace(detector, threshold=for_these).decided(records, found.status, found.score)
    scored = ~np.isnan(found.score)
    if scored.any():
        yield (
            f"Of {scored.sum():,} normal records of source.training it flags {found.is_anomaly[scored].mean():.1%}: by"
            f" as much as that is more than {threshold.alpha:.1%}, what is normal has moved away from them."
        )


def approve(ws: Workspace, *, by: str, reason: str, version: str | None = None, review: str | None = None) -> Decision:
    """Approve the candidate (or ``version``) with its review, of which ``review`` is the sha256 or its beginning."""
    from vae_anomaly import decisions

    return decisions.approve(
        ws.monitor, ws.mlflow, by=by, reason=reason, version=version, review=review, now=time.time()
    )


def reject(ws: Workspace, *, by: str, reason: str, version: str | None = None) -> Decision:
    """Reject the candidate (or ``version``): it is not promoted before somebody approves it."""
    from vae_anomaly import decisions

    return decisions.reject(ws.monitor, ws.mlflow, by=by, reason=reason, version=version, now=time.time())


def promote(
    ws: Workspace, *, by: str, version: str | None = None, reason: str | None = None, force: bool = False
) -> Decision:
    """Make the candidate (or ``version``) the champion when its review holds and it is approved."""
    from vae_anomaly import decisions
    from vae_anomaly.tracking import Tracker

    load_version(ws, Tracker(ws.mlflow), version or "candidate")

    return decisions.promote(ws.monitor, ws.mlflow, by=by, version=version, reason=reason, force=force, now=time.time())


def rollback(ws: Workspace, *, by: str, reason: str | None = None) -> Decision:
    """Move the champion back to the version before it."""
    from vae_anomaly import decisions

    return decisions.rollback(ws.monitor, ws.mlflow, by=by, reason=reason, now=time.time())


def history(ws: Workspace) -> tuple[Decision, ...]:
    """Everything that was decided of the monitor's model, oldest first."""
    from vae_anomaly import decisions

    return decisions.history(ws.monitor, ws.mlflow)


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
    detector, model = load_version(ws, tracker, which)
    general = {"detector": f"the general one, beside {len(detector.segments)} of segments"} if detector.segments else {}
    return detector, {"version": model.version, **general}


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
    texts = frame.apply(lambda column: column if pd.api.types.is_numeric_dtype(column) else column.map(_inert))
    shown = texts.rename(columns=_inert)
    content = shown.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC).encode("utf-8", "backslashreplace")
    return {f"{stem}.csv": content, f"{stem}.parquet": sink.getvalue().to_pybytes()}


def _inert(cell: Any) -> Any:
    """A cell of a CSV file, which spreadsheets open: a text that they would compute is led by an apostrophe."""
    return _COMPUTED.sub("'", cell) if isinstance(cell, str) else cell


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
