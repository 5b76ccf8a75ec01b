"""The ledger: what was scored, what was refused, what is still to do and to say. The work list is state, not a date.

A batch's commit record is the truth for readers and comes last: scores, report, record, each durable before the next.
A batch is pending iff no commit exists for its content and no quarantine record for its content and this data
contract. What comes after the commit (HTML, alerts, tracking) can be done again and is derived from the records.
"""

from __future__ import annotations

import bisect
import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vae_anomaly.errors import ConfigError, StoreError, suggestion
from vae_anomaly.store.files import Conflict, Store, content_of, discard, drop, explained, names, safe_id
from vae_anomaly.store.records import (  # fmt: skip
    Attempts,
    Commit,
    Incident,
    Pruned,
    Quarantine,
    Record,
    dump,
    parse,
    read_record,
    report_ref,
    scores_ref,
)
from vae_anomaly.store.score_files import ScoreFile
from vae_anomaly.store.sources import batch_id

State = Literal["pending", "failed", "committed", "quarantined", "superseded", "duplicate"]


class BatchState(NamedTuple):
    """Where one version of a file stands; ``record`` is what says so, of the same content for a duplicate.

    A file that failed is pending, too: it is tried again.
    """

    name: str
    sha256: str
    batch_id: str
    state: State
    record: Commit | Quarantine | Attempts | None


class PendingAlert(NamedTuple):
    """An alert that a sink has not had."""

    record: Commit | Quarantine | Incident
    sink: str
    idempotency_key: str

    @property
    def group(self) -> str:
        """What it is told together with."""
        return cause_of(self.record)


def moment(at: int) -> datetime:
    """A time in nanoseconds since the epoch, in UTC and to the microsecond."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=at // 1000)


def cause_of(record: Commit | Quarantine | Incident) -> str:
    """What an alert of this record is told together with; a commit of an earlier version has none."""
    return record.group or record.batch_id


class Retention(NamedTuple):
    """The batch ids that were pruned, bytes freed, and the batch ids that stay, though old, for an alert is pending."""

    pruned: tuple[str, ...]
    bytes: int
    pending: tuple[str, ...]


class Written(NamedTuple):
    """When a record was written, in nanoseconds since the epoch, and which."""

    at: int
    batch_id: str
    folder: Path


@dataclass(frozen=True)
class Ledger:
    """Reads and writes the records of one store; holds nothing in memory between calls."""

    store: Store

    def commits(self) -> Iterator[Commit]:
        """All commit records by file name; :class:`StoreError` names one that is broken."""
        return _read_all(self.store.commits, Commit)

    def quarantines(self) -> Iterator[Quarantine]:
        """All reason files by file name; :class:`StoreError` names one that is broken."""
        return _read_all(self.store.quarantine, Quarantine)

    def find(self, batch: str) -> Commit:
        """The commit of a batch, by its id or by the name of its file (the latest of that name); else ConfigError."""
        commits = list(self.commits()) if self.store.commits.is_dir() else []
        found = [c for c in commits if batch in (c.batch_id, c.name)]
        if not found:
            known = {c.name for c in commits} | {c.batch_id for c in commits}
            raise ConfigError(
                f"batch must be the id or file name of a committed batch. Got {batch!r}.{suggestion(batch, known)}"
                " `vae-anomaly status` lists them."
            )
        return max(found, key=self._written)

    def commits_of(self, sha256: str) -> list[Commit]:
        """The commits of this content, under whatever name it came and whatever scored it."""
        found = _read_all(self.store.commits, Commit, ending=f"-{sha256[:12]}.json")
        return [commit for commit in found if commit.sha256 == sha256]

    def newest(self) -> list[Commit]:
        """The commits that no other one of their content supersedes, the last committed first."""
        return sorted(standing(list(self.commits())), key=self._written, reverse=True)

    def committed(self, sha256: str) -> Commit | None:
        """The commit of this content that no later one supersedes."""
        return next(iter(standing(self.commits_of(sha256))), None)

    def quarantined(self, sha256: str, contract_digest: str) -> Quarantine | None:
        """The refusal of this content under this data contract."""
        found = _read_all(self.store.quarantine, Quarantine, ending=f"-{sha256[:12]}.json")
        return next((q for q in found if (q.sha256, q.contract_digest) == (sha256, contract_digest)), None)

    def attempts(self) -> Iterator[Attempts]:
        """All files that failed and are tried again; :class:`StoreError` names a record that is broken."""
        return _read_all(self.store.attempts, Attempts)

    def attempted(self, attempt: Attempts) -> Attempts:
        """Record one more failed attempt; what is recorded now, with the count of all under this contract."""
        with self.store.lock(self.store.commits):
            final = self.store.file(self.store.attempts, attempt.batch_id, ".json")
            before = read_record(final, Attempts) if final.exists() else None
            if before and (before.sha256, before.contract_digest) == (attempt.sha256, attempt.contract_digest):
                attempt = replace(attempt, count=before.count + attempt.count)
            self.store.replace(attempt.to_json(), final)
        return attempt

    def forget(self, batch: str) -> None:
        """Forget the attempts at a batch id that has come to an end."""
        drop(self.store.file(self.store.attempts, batch, ".json"))

    def recover(self) -> None:
        """Remove attempts and refusals of what has come to a better end: a killed run may have left them."""
        for attempt in self.attempts():
            if self.committed(attempt.sha256) or self.quarantined(attempt.sha256, attempt.contract_digest):
                self.forget(attempt.batch_id)
        # by the heads of digests in the names: no record is read but those that may be meant
        for head in _heads(self.store.quarantine) & _heads(self.store.commits):
            for refusal in _read_all(self.store.quarantine, Quarantine, ending=f"-{head}"):
                if any(c.contract_digest == refusal.contract_digest for c in self.commits_of(refusal.sha256)):
                    self._pardon(refusal)

    def _pardon(self, refusal: Quarantine) -> None:
        drop(self.store.file(self.store.quarantine, refusal.batch_id, ".json"))

    def commit(self, commit: Commit, scores: ScoreFile, *, report: bytes, again: bool = False) -> bool:
        """Publish scores, report and record in this order; False when the content was committed before.

        ``again``: what was committed of it with other models or configurations is superseded, and no reason against it.

        Without a record, scores and report under the batch's names are the rest of a killed run, perhaps of another
        model, and are replaced. The lock makes sure that no living process is about to commit them.
        """
        id, store = commit.batch.id, self.store
        try:
            content = _checked(commit, scores, report)
            with store.lock(store.commits):
                if any(commit.key == c.key or not again for c in self.commits_of(commit.sha256)):
                    return False
                record = store.file(store.commits, id, ".json")
                rest = not record.exists()
                if rest:  # it was deleted to have a batch scored again that had been pruned
                    pruned = store.file(store.pruned, id, ".json")
                    with explained(pruned):
                        discard(pruned)
                store.publish(scores.tmp, store.file(store.scores, id, ".parquet"), replaceable=rest)
                store.publish(report, store.file(store.reports, id, ".json"), replaceable=rest)
                store.publish(content, record)
                self.forget(id)
                if refusal := self.quarantined(commit.sha256, commit.contract_digest):
                    self._pardon(refusal)
            return True
        finally:
            drop(scores.tmp)

    def quarantine(self, record: Quarantine) -> bool:
        """Publish the reason file, over one of another contract; False when this content is recorded already.

        Raises :class:`StoreError` where other content, whose digest begins alike, has the same batch id.
        """
        with self.store.lock(self.store.commits):
            if self.committed(record.sha256) or self.quarantined(record.sha256, record.contract_digest):
                return False
            final = self.store.file(self.store.quarantine, record.batch_id, ".json")
            own = not final.exists() or read_record(final, Quarantine).sha256 == record.sha256
            self.store.publish(record.to_json(), final, replaceable=own)
            self.forget(record.batch_id)
        return True

    def state(self, inbox: Iterable[tuple[str, str]], contract_digest: str) -> list[BatchState]:
        """Every version of every file that was ever seen, in exactly one state; the inbox is (name, sha256) pairs.

        Superseded: a record whose name now stands for other content, in the inbox or else in a later record.
        """
        here = set(inbox)
        everything = list(self.commits())
        commits = {commit.sha256: commit for commit in standing(everything)}
        refusals = {q.sha256: q for q in self.quarantines() if q.sha256 not in commits}
        failed = {a.sha256: a for a in self.attempts() if a.contract_digest == contract_digest}
        rows: list[BatchState] = []
        first: dict[str, str] = {}
        for name, sha256 in sorted(here):
            refusal = refusals.get(sha256)
            if refusal and refusal.contract_digest != contract_digest:
                refusal = None
            rows.append(_arrived(name, sha256, commits.get(sha256) or refusal, first, failed.get(sha256)))
        gone = (old for old in everything if old is not commits[old.sha256])
        rows += [BatchState(old.name, old.sha256, old.batch_id, "superseded", old) for old in gone]
        records: list[Commit | Quarantine] = [*commits.values(), *refusals.values()]
        current = {r.name: r.sha256 for r in sorted(records, key=self._written)} | dict(here)
        for record in records:
            if (record.name, record.sha256) not in here:
                state = _kind(record) if current[record.name] == record.sha256 else "superseded"
                rows.append(BatchState(record.name, record.sha256, record.batch_id, state, record))
        return sorted(rows, key=lambda row: (row.name, row.batch_id))

    def pending(self, inbox: Iterable[tuple[str, str]], contract_digest: str) -> list[BatchState]:
        """The work list, by name; equal contents are in it once."""
        return [row for row in self.state(inbox, contract_digest) if row.state in ("pending", "failed")]

    def written(self) -> list[Written]:
        """Commits, refusals and attempts in the order in which they were written; none of them is read."""
        return self._listed(self.store.commits, self.store.quarantine, self.store.attempts)

    def causes(self, written: Sequence[Written]) -> list[Written]:
        """What alerts are made of: the commits and refusals of these, and incidents, in the order of their times."""
        found = [one for one in written if one.folder != self.store.attempts]
        return sorted(found + self._listed(self.store.incidents))

    def _listed(self, *folders: Path) -> list[Written]:
        found = []
        for folder in folders:
            with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
                for entry in (entry for entry in entries if entry.name.endswith(".json")):
                    with contextlib.suppress(FileNotFoundError):  # it has come to an end meanwhile
                        at = entry.stat(follow_symlinks=False).st_mtime_ns
                        found.append(Written(at, entry.name.removesuffix(".json"), folder))
        return sorted(found)

    def latest(self, written: Sequence[Written]) -> Iterator[tuple[int, Commit | Quarantine | Attempts]]:
        """Of each content the last of these records, the newest first, and when it was written; read as it is asked
        for."""
        seen: set[str] = set()
        for one in reversed(written):
            record = self.read(one)
            if record and not isinstance(record, Incident) and record.sha256 not in seen:
                seen.add(record.sha256)
                yield one.at, record

    def read(self, written: Written) -> Commit | Quarantine | Attempts | Incident | None:
        """The record; None where it has come to an end meanwhile."""
        kinds: dict[Path, type[Any]] = {
            self.store.commits: Commit,
            self.store.quarantine: Quarantine,
            self.store.attempts: Attempts,
            self.store.incidents: Incident,
        }
        path = written.folder / f"{written.batch_id}.json"
        try:
            record: Commit | Quarantine | Attempts | Incident = read_record(path, kinds[written.folder])
            return record
        except StoreError:
            if path.exists():
                raise
            return None

    def unrendered(self) -> list[Commit]:
        """Commits with something to say whose HTML report is not there (yet)."""
        there = {name.removesuffix(".html") for name in names(self.store.reports) if name.endswith(".html")}
        there |= self.pruned()
        return [commit for commit in self.commits() if commit.alert and commit.batch_id not in there]

    def last(self, written: Sequence[Written], count: int) -> list[tuple[Commit, float]]:
        """The last commits of these, oldest first, and when each was written, in seconds since 1970; only they are
        read."""
        written = [w for w in written if w.folder == self.store.commits][-count:]
        return [(read_record(w.folder / f"{w.batch_id}.json", Commit), w.at / 1e9) for w in written]

    def since(self, written: Sequence[Written], model: str) -> float | None:
        """When the model of this digest, which the last commit names, began to score, in seconds since 1970.

        A dozen records are read, not all: where several models took turns it is the beginning of one of its turns.
        """
        written = [w for w in written if w.folder == self.store.commits]

        def is_it(w: Written) -> bool:
            return read_record(w.folder / f"{w.batch_id}.json", Commit).model.digest == model

        first = bisect.bisect_left(written, True, key=is_it)
        return written[first].at / 1e9 if first < len(written) else None

    def note(self, incident: Incident) -> None:
        """Write down an incident, unless that was done before, by another run perhaps and in other words."""
        final = self.store.file(self.store.incidents, incident.batch_id, ".json")
        with contextlib.suppress(Conflict):
            if not final.exists():
                self.store.publish(incident.to_json(), final)

    def pruned(self) -> set[str]:
        """The batch ids whose scores and reports are deleted, or are about to be."""
        return {name.removesuffix(".json") for name in names(self.store.pruned)}

    def prune(self, before: float, sinks: Sequence[str], *, dry_run: bool) -> Retention:
        """Delete scores and reports of the batches that were committed before the time ``before``, in seconds.

        The commit stays, so the content is not scored again. A record that says what is deleted comes first: a run that
        is killed leaves what the next one deletes, and ``check`` tells what was pruned from what was lost. What a sink
        is still to be told stays whole, and a batch that has lost a file stays for ``check`` to tell.
        """
        freed, found, kept = 0, [], []
        with self.store.lock(self.store.outbox):
            untold = {alert.record.batch_id for alert in self.pending_alerts(sinks)}
        for commit in [commit for commit in self.commits() if self._written(commit)[0] < before * 1e9]:
            final = self.store.file(self.store.pruned, commit.batch_id, ".json")
            scores, report = (self.store.root / ref.file for ref in (commit.scores, commit.report))
            files = [path for path in (scores, report.with_suffix(".html"), report) if path.exists()]
            if not files or not (final.exists() or {scores, report} <= set(files)):
                continue
            if commit.batch_id in untold:
                kept.append(commit.batch_id)
                continue
            found.append(commit.batch_id)
            with self.store.lock(self.store.outbox):  # nobody renders, delivers or prunes it meanwhile
                if not dry_run:
                    self.store.publish(Pruned(commit.batch_id, commit.sha256, commit.key).to_json(), final)
                for path in files:
                    with explained(path), contextlib.suppress(FileNotFoundError):
                        freed += path.stat().st_size
                        if not dry_run:
                            discard(path)
        return Retention(tuple(found), freed, tuple(kept))

    def pending_alerts(self, sinks: Sequence[str]) -> list[PendingAlert]:
        """What each sink is still to be told. Hold ``store.lock(store.outbox)`` while one is delivered, and ask
        :meth:`is_told` then: no alert goes twice.

        A refusal of content that was scored since is old news, and so is what is pruned.
        """
        commits, pruned = list(self.commits()), self.pruned()
        scored = {commit.sha256 for commit in commits}
        records: list[Commit | Quarantine | Incident] = [c for c in commits if c.alert and c.batch_id not in pruned]
        records += [q for q in self.quarantines() if q.sha256 not in scored]
        records += _read_all(self.store.incidents, Incident)
        return [
            PendingAlert(record, sink, record.idempotency_key)
            for record in records
            for sink in sinks
            if self._told(record.batch_id, sink) != record.idempotency_key
        ]

    def is_told(self, alert: PendingAlert) -> bool:
        """Whether it was delivered, by this run or another one."""
        return self._told(alert.record.batch_id, alert.sink) == alert.idempotency_key

    def mark_delivered(self, batch: str, sink: str, *, idempotency_key: str, group: str = "") -> None:
        """Note that ``sink`` has had this alert of the batch id ``batch``, which is one of ``group``."""
        marker = {"batch_id": batch, "sink": sink, "idempotency_key": idempotency_key, "group": group}
        self.store.replace(dump(marker), self._marker(batch, sink))

    def groups_told(self, sink: str, *, since: float) -> dict[str, float]:
        """The groups of which ``sink`` has had an alert after the time ``since``, and when, in seconds since 1970."""
        found = {}
        with os.scandir(self.store.outbox) as entries:
            told = [(e.stat().st_mtime, e.name) for e in entries if e.name.endswith(f".{sink}.json")]
        for at, name in sorted(told):
            if at > since:
                with contextlib.suppress(OSError, ValueError, TypeError, KeyError):  # as in _told: it is told again
                    found[str(json.loads(content_of(self.store.outbox / name))["group"])] = at
        return found

    def _marker(self, batch: str, sink: str) -> Path:
        return self.store.file(self.store.outbox, f"{batch}.{safe_id(sink, 'sink')}", ".json")

    def _told(self, batch: str, sink: str) -> str | None:
        try:
            return str(json.loads(content_of(self._marker(batch, sink)))["idempotency_key"])
        except (OSError, ValueError, TypeError, KeyError):  # absent or broken: tell again, receivers know the key
            return None

    def _written(self, record: Commit | Quarantine) -> tuple[int, str]:
        folder = self.store.commits if isinstance(record, Commit) else self.store.quarantine
        return (folder / f"{record.batch_id}.json").stat().st_mtime_ns, record.batch_id


class HashCache:
    """sha256 of inbox files that stayed as they were, so that a run reads only what is new. Losing it costs time only.

    A file changed less than two seconds before it was hashed is not kept: its clock may not show the next change.
    """

    def __init__(self, store: Store) -> None:
        self._store, self._path = store, store.root / "hash_cache.json"
        self._old = self._load()
        self._new: dict[str, list[Any]] = {}

    def get(self, name: str, stat: os.stat_result) -> str | None:
        """The sha256 of the file ``name`` if it is still the file that was hashed."""
        known = self._old.get(name)
        if not (isinstance(known, list) and known[:-1] == _identity(stat) and isinstance(known[-1], str)):
            return None
        self._new[name] = known
        return str(known[-1])

    def put(self, name: str, stat: os.stat_result, *, sha256: str, now_ns: int) -> None:
        """Remember the hash of a file; ``stat`` and ``now_ns`` are from before it was read."""
        if max(stat.st_mtime_ns, stat.st_ctime_ns) < now_ns - 2_000_000_000:
            self._new[name] = [*_identity(stat), sha256]

    def save(self) -> None:
        """Keep the entries that this run used, if that is possible."""
        if self._new != self._old:
            with contextlib.suppress(StoreError):
                self._store.replace(json.dumps(self._new, sort_keys=True).encode(), self._path)

    def _load(self) -> dict[str, Any]:
        try:
            value = json.loads(content_of(self._path))
        except (OSError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}


def _read_all(folder: Path, kind: type[Record], *, ending: str = ".json") -> Iterator[Record]:
    return (read_record(folder / name, kind) for name in names(folder) if name.endswith(ending))


def _heads(folder: Path) -> set[str]:
    """The ends of the records' names: the head of a content's digest, and the suffix."""
    return {name.rpartition("-")[2] for name in names(folder)}


def standing(commits: Sequence[Commit]) -> list[Commit]:
    """Those commits that no other one of the same content supersedes."""
    gone = {(commit.supersedes, commit.sha256) for commit in commits}
    return [commit for commit in commits if (commit.batch_id, commit.sha256) not in gone]


def _kind(record: Commit | Quarantine) -> State:
    return "committed" if isinstance(record, Commit) else "quarantined"


def _arrived(
    name: str, sha256: str, record: Commit | Quarantine | None, first: dict[str, str], failed: Attempts | None
) -> BatchState:
    """The state of a file in the inbox; ``first`` collects the names under which pending contents came first."""
    if record:
        state: State = _kind(record) if record.name == name else "duplicate"
        return BatchState(name, sha256, record.batch_id, state, record)
    other = first.setdefault(sha256, name)
    state = "duplicate" if other != name else "failed" if failed else "pending"
    return BatchState(name, sha256, batch_id(other, sha256), state, failed)


def _checked(commit: Commit, scores: ScoreFile, report: bytes) -> bytes:
    """The record's bytes; a commit that would break an invariant is refused before anything of it is visible."""
    id = commit.batch.id
    _demand(commit.conserves and commit.rows == scores.rows, id, "account for every row of the score file exactly once")
    _demand(commit.scores == scores_ref(id, scores), id, "name the score file that is given")
    _demand(commit.report == report_ref(id, report), id, "name the report that is given")
    content = commit.to_json()
    parse(content, Commit, id)  # what is written can be read
    return content


def _demand(holds: bool, id: str, what: str) -> None:
    if not holds:
        raise StoreError(f"the commit of batch {id!r} must {what}. Got one that does not; nothing was written.")


def _identity(stat: os.stat_result) -> list[int]:
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
