"""One scoring run: which deliveries need work, what comes of them, and what is told of it; and where each file stands.

What a delivery's records are worth is a worker's to say (:mod:`vae_anomaly.worker`); a run decides what is to do,
records refusals and failed attempts, and then finishes what follows from the commits: pages, alerts, tracking.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args
from zoneinfo import ZoneInfo

import numpy as np

from vae_anomaly.config import SinkConfig, config_digest
from vae_anomaly.errors import ConfigError, DataError, DeliveryError, StoreError, VaeAnomalyError
from vae_anomaly.execution import engine
from vae_anomaly.grouping import PEOPLE, is_quiet, messages, waiting
from vae_anomaly.pages import read_report, update_overview, window_of
from vae_anomaly.registry import lookup
from vae_anomaly.report.groups import group_id, in_words
from vae_anomaly.report.html import to_html
from vae_anomaly.report.markdown import to_markdown
from vae_anomaly.report.model import Answering, IncidentNotice, Others, QuarantineNotice
from vae_anomaly.sinks import Alert, deliver
from vae_anomaly.store.answers import Answer, entries
from vae_anomaly.store.commits import BatchState, HashCache, Ledger, PendingAlert, State, cause_of, moment, standing
from vae_anomaly.store.files import Busy, Store, drop
from vae_anomaly.store.records import (  # fmt: skip
    Attempts,
    BatchRef,
    Commit,
    Incident,
    ModelRef,
    Quarantine,
    read_record,
)
from vae_anomaly.store.score_files import read_scores
from vae_anomaly.store.sources import (  # fmt: skip
    Delivery,
    FolderDelivery,
    InboxFile,
    batch_id,
    format_suffix,
    list_inbox,
    open_delivery,
)
from vae_anomaly.watch import HISTORY, OF_LAST, Seen, incidents
from vae_anomaly.worker import STOPPING, Ended, Job, Setting, registered, serving
from vae_anomaly.workspace import Progress, Workspace, silent

if TYPE_CHECKING:
    from vae_anomaly.detector import Detector
    from vae_anomaly.tracking import Tracker

TRIES = 3  # of a file that may itself be why it fails
KEPT_SCORES = 200_000
DIVIDED = 64 * 2**20  # bytes of a file from which on several workers share it


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
    held: int = 0

    @property
    def ok(self) -> bool:
        """Whether every batch of this run was committed and every alert delivered."""
        return not self.undelivered and all(b.verdict == "committed" for b in self.batches)


Reprocess = Literal["none", "failed", "all"]


@dataclass(frozen=True)
class Backfill:
    """The files of the inbox that a run is about: by name from ``first`` to ``last``, with these and what begins so.

    ``reprocess``: those without a result only; also those that failed or were quarantined; also those that other
    versions or configurations have scored. ``version`` is the registered version that scores, None for the champion.
    """

    first: str
    last: str
    reprocess: Reprocess = "none"
    version: str | None = None

    def __post_init__(self) -> None:
        """Raise :class:`ConfigError` for an empty range or another word."""
        lookup("--reprocess", dict.fromkeys(get_args(Reprocess)), self.reprocess)
        if not self.covers(self.first):
            raise ConfigError(f"--backfill must go from a name to a later one. Got {self.first!r} to {self.last!r}.")

    def covers(self, name: str) -> bool:
        """Whether a file of this name is meant."""
        return self.first <= name and (name <= self.last or name.startswith(self.last))

    def includes(self, state: State) -> bool:
        """Whether a file that stands so is to be scored."""
        by_mode: dict[Reprocess, tuple[State, ...]] = {
            "none": (),
            "failed": ("quarantined",),
            "all": ("quarantined", "committed"),
        }
        return state in ("pending", "failed", *by_mode[self.reprocess])


EVERYTHING = Backfill("", "")


def plan(ws: Workspace, backfill: Backfill) -> list[BatchState]:
    """The files that ``backfill`` would score, as they stand now; nothing is changed."""
    from vae_anomaly.tracking import Tracker

    found = Tracker(ws.mlflow).resolve(ws.monitor.name, backfill.version or "champion", cache=ws.model_cache)
    by = found.digest, config_digest(ws.monitor)
    done = {c.sha256 for c in Ledger(ws.store).commits() if (c.model.digest, c.config_digest) == by}
    return [
        row
        for row in status(ws)
        if backfill.covers(row.name)
        and backfill.includes(row.state)
        and row.sha256 not in done
        and (ws.monitor.source.inbox / row.name).exists()
    ]


def score(ws: Workspace, progress: Progress = silent, backfill: Backfill = EVERYTHING) -> ScoreOutcome:
    """Score every batch in the inbox that has no committed result, with the champion, or what ``backfill`` says.

    A file that breaks the contract is quarantined, one that cannot be read now is tried again by the next run; the
    others go on. The model is resolved once. What an earlier run left unfinished is finished too.

    Raises
    ------
    ArtifactError
        There is work and no champion, or it does not verify or fit the schema; nothing is scored then.
    ConfigError
        The inbox does not exist, or the output cannot be written.
    """
    store = ws.store.prepare(ws.monitor.name)
    ledger, cache = Ledger(store), HashCache(store)
    ledger.recover()
    _forget_attempts(ledger, backfill)
    try:
        listing = _settled(ws, progress)
        ready = [file for file in listing.ready if backfill.covers(file.name)]
        run = _Run(ws, ledger, cache, ready, progress, backfill)
        outcomes = run.score()
        cache.save()
    except VaeAnomalyError:
        with contextlib.suppress(VaeAnomalyError):
            for problem in deliver_outbox(ws, ledger).problems:  # of earlier runs, which have nothing to do with this
                logging.getLogger(__name__).warning("%s", problem)
        raise
    # after the scores: a receiver that does not answer must not delay them
    told = deliver_outbox(ws, ledger)
    result = ScoreOutcome(
        tuple(_with_report(store, o) for o in outcomes),
        run.already,
        tuple(f.name for f in listing.waiting),
        run.model,
        tuple(told.problems),
        told.held,
    )
    if run.model and outcomes:
        progress("logging the run", 0, 1)
        run.log(result)
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


def _forget_attempts(ledger: Ledger, backfill: Backfill) -> None:
    """Attempts at files that are to be processed again count from one."""
    if backfill.includes("quarantined"):
        for attempt in ledger.attempts():
            if backfill.covers(attempt.name):
                ledger.forget(attempt.batch_id)


def _again(ledger: Ledger, contract_digest: str, backfill: Backfill) -> set[str]:
    """Contents that have come to an end and are scored again."""
    found: set[str] = set()
    if backfill.includes("quarantined"):
        refusals = [q for q in ledger.quarantines() if q.contract_digest == contract_digest]
        found |= {q.sha256 for q in refusals if backfill.covers(q.name)}
    if backfill.includes("committed"):
        found |= {c.sha256 for c in ledger.commits() if backfill.covers(c.name)}
    return found


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


class _Run:
    """One scoring run: which deliveries need work, and what becomes of them."""

    def __init__(
        self,
        ws: Workspace,
        ledger: Ledger,
        cache: HashCache,
        ready: Sequence[InboxFile],
        progress: Progress,
        backfill: Backfill,
    ) -> None:
        self.ws, self.ledger, self.cache, self.progress = ws, ledger, cache, progress
        self.ready, self.backfill = ready, backfill
        self.model: ModelRef | None = None
        self.already = 0
        self._setting: Setting | None = None
        self._tracker: Tracker | None = None
        self._again = _again(ledger, ws.contract_digest, backfill)
        self._done = _known(ledger, ws.contract_digest) - self._again
        self._outcomes: dict[str, BatchOutcome] = {}
        self._left: list[InboxFile] = []  # of contents that are under way under another name, or in parts
        self._parts: dict[str, list[bool]] = {}  # of contents that several workers share: whether each part is there
        self._files: dict[str, list[Path]] = {}  # and the files of the parts' scores; this run deletes them

    def score(self) -> list[BatchOutcome]:
        """Carry out all work; the outcomes, by file name."""
        todo = [file for file in self.ready if not self._is_known(_cached_hash(self.cache, file), file)]
        if todo:
            try:
                with engine(self.ws.monitor.execution, self._tell) as crew:
                    while todo:
                        self._left = []
                        for job, ended in crew.run(self._jobs(todo, crew.workers)):
                            self._end(job, ended)
                        todo = sorted(self._left, key=lambda file: file.name)
            finally:
                for path in chain.from_iterable(self._files.values()):
                    drop(path)
        return [self._outcomes[name] for name in sorted(self._outcomes)]

    def _is_known(self, sha256: str | None, file: InboxFile) -> bool:
        known = _is_done(self._done, sha256, file.name)
        self.already += known
        return known

    def _tell(self, job: Job, rows: int) -> None:
        self.progress(f"scoring {Path(job.path).name}", rows, 0)

    def _jobs(self, todo: Sequence[InboxFile], workers: int) -> Iterator[Job]:
        """The jobs of each content that is new, as the files are hashed; what cannot be opened has ended here."""
        under_way: set[str] = set()
        for i, file in enumerate(todo):
            self.progress(f"scoring {file.name}", i, len(todo))
            sha256 = ""
            try:
                state, now = os.lstat(file.path), time.time_ns()
                with open_delivery(file.path, folders=self.ws.folders) as delivery:
                    sha256 = delivery.sha256
                    job = self._job(delivery, file, under_way, state, now)
                    jobs = self._divided(job, workers if delivery.size >= DIVIDED else 1) if job else []
            except DataError as error:
                self._refused(file, "", error)
            except (OSError, StoreError) as error:
                self._failed(file, sha256, str(error))
            else:
                yield from jobs

    def _divided(self, job: Job, workers: int) -> list[Job]:
        """A job for each of so many workers, and that which needs what they found as soon as they have it."""
        if job.sha256 in self._parts:
            whole = all(self._parts[job.sha256])
            return [replace(job, scored=tuple(map(str, self._files[job.sha256])) if whole else ())]
        if workers < 2:  # a cluster may have none yet
            return [job]
        files = self._files[job.sha256] = [self.ledger.store.new_temporary() for _ in range(workers)]
        return [replace(job, share=(i, workers), part=str(file)) for i, file in enumerate(files)]

    def _job(
        self, delivery: Delivery, file: InboxFile, under_way: set[str], state: os.stat_result, now: int
    ) -> Job | None:
        sha256 = delivery.sha256
        if not isinstance(delivery, FolderDelivery):  # its own state says nothing of its files'
            self.cache.put(file.name, state, sha256=sha256, now_ns=now)
        if self._is_known(sha256, file):
            return None
        if sha256 in under_way:
            self._left.append(file)
            return None
        under_way.add(sha256)
        return Job(self._resolved(), str(file.path), sha256, delivery.state, again=sha256 in self._again)

    def _resolved(self) -> Setting:
        """The champion, resolved when the first job needs it."""
        if self._setting is None:
            from vae_anomaly.tracking import Tracker

            self._tracker = Tracker(self.ws.mlflow)
            self.model, folder = _fetched(self.ws, self._tracker, self.backfill.version or "champion")
            self._setting = Setting.of(self.ws, self.model, folder, datetime.fromtimestamp(time.time(), UTC).date())
        return self._setting

    def _end(self, job: Job, ended: Ended) -> None:
        """Record what came of a job."""
        file = InboxFile(Path(job.path), Path(job.path).name)
        if ended.stops:
            raise STOPPING[ended.stops](ended.problem)
        if job.share:
            self._parts.setdefault(job.sha256, []).append(bool(ended.part))
            if file.name in self._outcomes:  # another part of it has failed
                return
        if ended.refusal:
            self._refused(file, job.sha256, ended.refusal.error)
            return
        if ended.problem is not None:
            (self._attempted if ended.counts else self._failed)(file, job.sha256, ended.problem)
            return
        if job.share:
            if len(self._parts[job.sha256]) == job.share[1]:
                self._left.append(file)
            return
        self._done.add(job.sha256)
        if ended.batch:
            commit = read_record(self.ledger.store.file(self.ledger.store.commits, ended.batch, ".json"), Commit)
            self._outcomes[file.name] = BatchOutcome(file.name, "committed", commit=commit)
        else:
            self.already += 1

    def _failed(self, file: InboxFile, sha256: str, problem: str) -> None:
        self._outcomes[file.name] = BatchOutcome(file.name, "failed", problem=f"{problem} It will be tried again.")
        self._done.add(sha256)  # for this run: under another name the same content would get another batch id

    def _attempted(self, file: InboxFile, sha256: str, problem: str) -> None:
        """A failure of which the file may be the cause: after ``TRIES`` of them the queue goes on without it."""
        id, contract = batch_id(file.name, sha256), self.ws.contract_digest
        tried = self.ledger.attempted(Attempts(id, file.name, sha256, contract, 1, problem))
        if tried.count < TRIES:
            self._failed(file, sha256, f"{problem} Attempt {tried.count} of {TRIES}.")
            return
        error = DataError(
            "poison",
            f"a file must be scored in one of {TRIES} attempts. All failed, the last: {problem}",
            file=file.name,
            remedy="Look into the file, and deliver it mended. If the program is to blame, mend that, delete this"
            " record, and the next run tries again.",
        )
        self._refused(file, sha256, error)

    def _refused(self, file: InboxFile, sha256: str, error: DataError) -> None:
        """Quarantine a delivery, unless its content, or what stands for it, is quarantined."""
        # a link or a device has no content to hash: its identity stands for it
        try:
            identity = sha256 or hashlib.sha256(f"{file.name}|{_identity(file.path)}".encode()).hexdigest()
            identity = _named(identity, file.name) if error.rule in ("unknown_format", "wrong_format") else identity
            if identity in self._done:
                self.already += 1
                return
            self._outcomes[file.name] = _quarantine(self.ws, self.ledger, file, identity, error)
            self._done.add(identity)
        except (OSError, StoreError) as problem:
            self._failed(file, sha256, str(problem))

    def log(self, outcome: ScoreOutcome) -> None:
        """One MLflow run for the scoring job; best effort."""
        assert self.model is not None and self._tracker is not None
        commits = [b.commit for b in outcome.batches if b.commit]
        counts = {
            "batches.committed": len(commits),
            "batches.quarantined": sum(b.verdict == "quarantined" for b in outcome.batches),
            "batches.drifted": sum(c.drifted for c in commits),
            "batches.failed": sum(b.verdict == "failed" for b in outcome.batches),
            "records": sum(c.rows for c in commits),
            "records.flagged": sum(c.flagged for c in commits),
            "records.flagged_expected": sum(c.expected_flagged for c in commits),
            "records.unscorable": sum(c.rows - c.scored for c in commits),
        }
        tags = {"model.version": self.model.version, "model.digest": self.model.digest}
        reports = [b.report for b in outcome.batches if b.report]
        metrics = counts | _quantiles(self.ledger.store, commits)
        self._tracker.log_scoring(self.ws.monitor.name, metrics=metrics, tags=tags, files=reports)


def _quantiles(store: Store, commits: Sequence[Commit]) -> dict[str, float]:
    """Quantiles of the scores in these batches (of a sample of them where there are very many)."""
    step = 1 + sum(c.rows for c in commits) // KEPT_SCORES
    parts = [np.zeros(0)]
    with contextlib.suppress(StoreError):  # the scores are committed: `check` is who complains
        for commit in commits:
            scores = (part["score"].to_numpy() for part in read_scores(store.root / commit.scores.file, ["score"]))
            parts += [part[np.isfinite(part)][::step] for part in scores]
    kept = np.concatenate(parts)
    return {f"score.q{q}": float(np.quantile(kept, q / 100)) for q in (5, 50, 95, 99)} if kept.size else {}


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


def load_champion(ws: Workspace, tracker: Tracker) -> tuple[Detector, ModelRef]:
    """The serving detector, verified, from the local cache or the registry, with the present ``alpha``."""
    model, folder = _fetched(ws, tracker, "champion")
    return serving(ws, model, folder), model


def _fetched(ws: Workspace, tracker: Tracker, which: str) -> tuple[ModelRef, Path]:
    """A registered version, and the folder with its verified files."""
    found = tracker.resolve(ws.monitor.name, which, cache=ws.model_cache)
    return ModelRef(found.name, found.version, found.digest), tracker.fetch(found, ws.model_cache)


def load_version(ws: Workspace, tracker: Tracker, which: str) -> tuple[Detector, ModelRef]:
    """A registered version, verified, whose columns are those of monitor.yml."""
    model, folder = _fetched(ws, tracker, which)
    return registered(ws, model, folder), model


class Told(NamedTuple):
    """What was not delivered, and why; and how many alerts wait because their group has been told or is looked at, or
    people rest."""

    problems: Sequence[str]
    held: int = 0


def deliver_outbox(ws: Workspace, ledger: Ledger) -> Told:
    """Render reports and the overview, and deliver alerts, that the records call for and that are not done.

    A receiver that does not take an alert is told no more of them by this run: that would take as long each time.
    """
    problems: list[str] = []
    held = 0
    try:
        problems += _watch(ws, ledger, time.time())
        problems += _render(ws, ledger)
        said = _said(ledger, problems)
        due = ledger.pending_alerts([sink.kind for sink in ws.monitor.sinks])
        for sink in ws.monitor.sinks:
            mine = [alert for alert in due if alert.sink == sink.kind]
            if sink.kind in PEOPLE:
                mine = _unknown(ledger, mine, said)
            together = _together(ws, ledger, sink.kind, mine, said)
            held += len(mine) - sum(map(len, together))
            problems += _tell(ws, ledger, sink, together)
    except Busy:
        problems.append("another run tells the alerts; what it does not tell, the next run does.")
    return Told(problems, held)


def _watch(ws: Workspace, ledger: Ledger, now: float) -> list[str]:
    """Write down what the last batches show, or that none has come; what went wrong with that."""
    try:
        written = ledger.written()
        last = ledger.last(written, HISTORY + OF_LAST)
        stand = {commit.batch_id for commit in standing([commit for commit, _ in last])}
        seen = [Seen(commit, at) for commit, at in last if commit.batch_id in stand]
        since = ledger.since(written, seen[-1].commit.model.digest) if seen else None
        came = [w.at / 1e9 for w in written if w.folder in (ledger.store.commits, ledger.store.quarantine)]
        times = {"since": since, "arrived": max(came, default=None)}
        for incident in incidents(ws.monitor.name, seen, now, **times, **ws.monitor.watch.model_dump()):
            ledger.note(incident)
    except StoreError as error:
        return [f"incidents: {error}"]
    return []


def _said(ledger: Ledger, problems: list[str]) -> dict[str, Answer]:
    """The last answer to each group; where the answers cannot be read none, and that is one of the ``problems``."""
    try:
        return {answer.cause: answer for answer in entries(ledger.store)}
    except StoreError as error:
        problems.append(f"answers: {error}")
        return {}


def _render(ws: Workspace, ledger: Ledger) -> list[str]:
    store, problems = ledger.store, []
    with store.lock(store.outbox):
        for commit in ledger.unrendered():
            try:
                html = to_html(read_report(store, commit.batch_id)).encode()
                store.replace(html, store.file(store.reports, commit.batch_id, ".html"))
            except StoreError as error:
                problems.append(f"report of batch {commit.batch_id}: {error}")
        update_overview(ledger, ws.monitor.name, window_of(ws))
    return problems


def _tell(ws: Workspace, ledger: Ledger, sink: SinkConfig, together: Sequence[Sequence[PendingAlert]]) -> list[str]:
    """Deliver one message for each list of alerts; what was not delivered, and why."""
    problems: list[str] = []
    queue = [list(alerts) for alerts in together]
    while queue:
        alerts = queue.pop(0)
        where = f"sink {sink.kind!r}, batch {alerts[-1].record.batch_id}"
        try:
            with ledger.store.lock(ledger.store.outbox):
                untold = [alert for alert in alerts if not ledger.is_told(alert)]
                if untold:
                    message = _message(ws, ledger.store, [alert.record for alert in untold])
                    deliver(message, sink.kind, **sink.model_dump(exclude={"kind"}))
                for alert in untold:
                    key = alert.idempotency_key
                    ledger.mark_delivered(alert.record.batch_id, sink.kind, idempotency_key=key, group=alert.group)
        except Busy:
            raise
        except Exception as error:
            known = isinstance(error, VaeAnomalyError | OSError)
            # of another error without its text, which may quote an address; the other sinks are told all the same
            problems.append(f"{where}: {error if known else f'{type(error).__name__}.'}")
            if not known or isinstance(error, DeliveryError):
                if waiting := sum(map(len, queue)):
                    problems.append(f"sink {sink.kind!r}: {waiting} more alerts wait.")
                break
            if others := alerts[:-1]:  # it is the last alert that cannot be told
                queue.insert(0, others)
    return problems


def _unknown(ledger: Ledger, due: list[PendingAlert], said: Mapping[str, Answer]) -> list[PendingAlert]:
    """What nobody has seen yet who resolved its group; the rest counts as told, so that it is told no more."""
    answered = [alert for alert in due if alert.group in said]
    if not answered:
        return due
    came = {one.batch_id: moment(one.at) for one in ledger.causes(ledger.written())}
    times = ((alert, came.get(alert.record.batch_id)) for alert in answered)
    known = [alert for alert, at in times if at and said[alert.group].closes(at)]
    with ledger.store.lock(ledger.store.outbox):
        for alert in known:
            if not ledger.is_told(alert):  # of no group: one that comes after this is told at once
                ledger.mark_delivered(alert.record.batch_id, alert.sink, idempotency_key=alert.idempotency_key)
    seen = {alert.record.batch_id for alert in known}
    return [alert for alert in due if alert.record.batch_id not in seen]


def _together(
    ws: Workspace, ledger: Ledger, sink: str, due: list[PendingAlert], said: Mapping[str, Answer]
) -> list[list[PendingAlert]]:
    """The messages that are made of what is ``due``: one of each alert, or of each group where people read them."""
    if sink not in PEOPLE:
        return [[alert] for alert in due]
    rules, now = ws.monitor.alerts, time.time()
    if is_quiet(rules.quiet_hours, datetime.fromtimestamp(now, ZoneInfo(ws.monitor.schedule.timezone))):
        return []
    told = ledger.groups_told(sink, since=now - 3600 * rules.cool_down_hours)
    return messages(due, waiting(told, said, datetime.fromtimestamp(now, UTC).date()))


def _message(ws: Workspace, store: Store, records: Sequence[Commit | Quarantine | Incident]) -> Alert:
    """The alert of the last of ``records``, with a line for each of the others."""
    *others, last = records
    alert = _alert(ws, store, last)
    causes = list(dict.fromkeys(map(cause_of, reversed(records))))
    how = to_markdown(Answering(tuple((group_id(cause), in_words(cause)) for cause in causes)))
    if not others:
        return replace(alert, markdown=alert.markdown + how, group=group_id(causes[0]))
    keys = "".join(record.idempotency_key for record in records)
    lines = tuple((other.name, other.summary) for other in reversed(others))
    return replace(
        alert,
        title=f"{len(records):,} alerts, the last: {alert.title}",
        markdown=alert.markdown + to_markdown(Others(lines)) + how,
        group=group_id(causes[0]),
        idempotency_key=hashlib.sha256(keys.encode()).hexdigest(),
    )


def _alert(ws: Workspace, store: Store, record: Commit | Quarantine | Incident) -> Alert:
    key = record.idempotency_key
    if isinstance(record, Incident):
        said = IncidentNotice(ws.monitor.name, record.kind, record.name, record.problem, record.remedy)
        path = store.file(store.incidents, record.batch_id, ".json")
        return Alert(ws.monitor.name, record.batch_id, key, said.verdict, to_markdown(said), (path,), "incident")
    if isinstance(record, Commit):
        report = read_report(store, record.batch_id)
        paths = tuple(store.file(store.reports, record.batch_id, suffix) for suffix in (".html", ".json"))
        kind: Literal["anomalies", "drift"] = "drift" if report.drifted else "anomalies"
        return Alert(ws.monitor.name, record.batch_id, key, report.verdict, to_markdown(report), paths, kind)
    fields = (record.rule, record.problem, record.remedy, record.column, tuple(record.first_rows), record.count)
    notice = QuarantineNotice(ws.monitor.name, record.batch_id, record.name, *fields)
    reason = store.file(store.quarantine, record.batch_id, ".json")
    return Alert(ws.monitor.name, record.batch_id, key, notice.verdict, to_markdown(notice), (reason,), "quarantined")


def _with_report(store: Store, outcome: BatchOutcome) -> BatchOutcome:
    """The outcome with the file to open: the HTML report, or the reason file."""
    record = outcome.commit or outcome.quarantine
    if record is None:
        return outcome
    kind = (store.reports, ".html") if outcome.commit else (store.quarantine, ".json")
    path = store.file(kind[0], record.batch_id, kind[1])
    return BatchOutcome(**{**vars(outcome), "report": path if path.exists() else None})


def status(ws: Workspace) -> list[BatchState]:
    """Where every file stands that was ever seen; pending ones are hashed, nothing is changed."""
    ws.store.refuse_links()
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
