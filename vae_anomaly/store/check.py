"""``check``: whether a store keeps its invariants, file by file, and what to do where it does not.

========= ============================================================================================
I1        conservation: rows = scored + unscorable, in the record and in the score file, reason by reason
I2        exactly once: one commit for each key, each row of a batch once and in order
I3        whole files: everything named is there, complete, with its sha256; nothing else lies in the folders
I4        no silent wrongness: scores and p-values are in range, a flag is what threshold and alpha say
I5        provenance: columns and metadata of the scores, and the store's monitor, are those of the commit
I6        loud: every delivery marker belongs to a record, every count of attempts to a file that is still to do
========= ============================================================================================

A finding of severity ``note`` is what a killed run leaves: the next run finishes or replaces it.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vae_anomaly.batch import OK
from vae_anomaly.errors import StoreError
from vae_anomaly.store.answers import read_answer
from vae_anomaly.store.commits import standing
from vae_anomaly.store.feedback import read_entry, record_of
from vae_anomaly.store.files import INDEX, Store, content_of, is_alive, names, owner_of, safe_id, sha256_of
from vae_anomaly.store.records import Attempts, Commit, FileRef, Incident, Pruned, Quarantine, read_record
from vae_anomaly.store.score_files import SCORE_SCHEMA, SEGMENT_SCHEMA, read_scores, score_schema

_SUFFIXES = {
    "scores": (".parquet",),
    "commits": (".json",),
    "reports": (".json", ".html"),
    "quarantine": (".json",),
    "outbox": (".json",),
    "attempts": (".json",),
    "pruned": (".json",),
    "feedback": (".json", ".arrow"),
    "incidents": (".json",),
    "answers": (".json",),
}
_NEXT_RUN = "Nothing to do: the next run finishes or replaces it."
_MOVE = "Move it to another folder; the store holds its own files only."
_DELETE = "If you delete it, the next run does its work again."


Invariant = Literal["I1", "I2", "I3", "I4", "I5", "I6"]
Problem = tuple[Invariant, str]


@dataclass(frozen=True)
class Finding:
    """One broken invariant: where (relative to the store), what, and what to do."""

    invariant: Invariant
    path: str
    problem: str
    remedy: str
    severity: Literal["error", "note"] = "error"

    def __str__(self) -> str:
        return f"{self.invariant} {self.path}: {self.problem} {self.remedy}"


def check(store: Store) -> list[Finding]:
    """All findings, by path; raises :class:`ConfigError` where there is no store."""
    findings = [*_strangers(store.existing()), *_temporaries(store)]
    commits, broken = _records(store.commits, Commit, f"Restore it from a backup. {_DELETE}")
    refusals, unreadable = _records(store.quarantine, Quarantine, _DELETE)
    attempts, illegible = _records(store.attempts, Attempts, "If you delete it, the file's attempts count from one.")
    pruned, gone = _records(store.pruned, Pruned, "If you delete it, what is pruned counts as lost.")
    findings += _records(store.incidents, Incident, "If you delete it, it may be told again.")[1]
    findings += [*broken, *unreadable, *illegible, *gone, *_keys(commits), *_twice(commits, refusals)]
    findings += _attempts(attempts, commits, refusals)
    findings += _monitor(store, [*commits, *refusals])
    for commit in commits:
        findings += _files(store, commit)
    findings += [*_pruned(store, pruned, commits), *_orphans(store), *_markers(store), *_feedback(store)]
    findings += _answers(store)
    return sorted(set(findings), key=lambda f: (f.path, f.invariant, f.problem))


def _strangers(store: Store) -> Iterator[Finding]:
    for folder in store.folders:
        for name in names(folder):
            path = folder / name
            suffix = next((s for s in _SUFFIXES[folder.name] if name.endswith(s)), None)
            if not suffix or not _is_id(name.removesuffix(suffix)) or path.is_symlink() or not path.is_file():
                yield Finding("I3", f"{folder.name}/{name}", "Not a file of the store.", _MOVE)


def _temporaries(store: Store) -> Iterator[Finding]:
    for name in names(store.tmp):
        owner = owner_of(name)
        if owner is None:
            yield Finding("I3", f"{store.tmp.name}/{name}", "Not a file of the store.", _MOVE)
        elif not is_alive(owner):
            yield Finding("I3", f"{store.tmp.name}/{name}", "Left by a process that is gone.", _NEXT_RUN, "note")


def _records(folder: Path, kind: type[Any], remedy: str) -> tuple[list[Any], list[Finding]]:
    records, findings = [], []
    for name in names(folder):
        if name.endswith(".json"):
            try:
                records.append(read_record(folder / name, kind))
            except StoreError as error:
                problem = f"Not readable as a {kind.__name__.lower()} record: {error.__cause__}."
                findings.append(Finding("I3", f"{folder.name}/{name}", problem, remedy))
    return records, findings


def _keys(commits: list[Commit]) -> Iterator[Finding]:
    times = Counter(commit.key for commit in commits)
    heads = Counter(commit.sha256 for commit in standing(commits))
    for commit in commits:
        path = f"commits/{commit.batch_id}.json"
        if heads[commit.sha256] != 1:
            problem = f"One commit of its content must stand. Got {heads[commit.sha256]} that no other one supersedes."
            yield Finding("I2", path, problem, "Keep one, and delete the others with their scores and reports.")
        if times[commit.key] > 1:
            remedy = "Keep one of the records that share it, and delete the others with their scores and reports."
            problem = f"Its key must be unique. Got it in {times[commit.key]} records."
            yield Finding("I2", path, problem, remedy)
        if not commit.conserves:
            unscorable = sum(commit.unscorable.values())
            counts = f"{commit.rows} rows, {commit.scored} scored, {unscorable} unscorable, {commit.flagged} flagged"
            problem = f"Rows must be scored + unscorable, and flagged at most scored. Got {counts}."
            yield Finding("I1", path, problem, _redo(commit.batch_id))


def _twice(commits: list[Commit], refusals: list[Quarantine]) -> Iterator[Finding]:
    scored = {(commit.sha256, commit.contract_digest): commit.batch_id for commit in commits}
    for refusal in refusals:
        if batch := scored.get((refusal.sha256, refusal.contract_digest)):
            problem = f"The same content was committed under the same contract, as {batch}."
            yield Finding("I1", f"quarantine/{refusal.batch_id}.json", problem, _NEXT_RUN, "note")


def _attempts(attempts: list[Attempts], commits: list[Commit], refusals: list[Quarantine]) -> Iterator[Finding]:
    ended = {c.sha256 for c in commits} | {q.sha256 for q in refusals}
    for attempt in attempts:
        path = f"attempts/{attempt.batch_id}.json"
        if attempt.count < 1:
            yield Finding("I6", path, f"The count must be at least 1. Got {attempt.count}.", "Delete it.")
        if attempt.sha256 in ended:
            yield Finding("I6", path, "The file has come to an end since.", _NEXT_RUN, "note")


def _pruned(store: Store, pruned: list[Pruned], commits: list[Commit]) -> Iterator[Finding]:
    keys = {commit.batch_id: commit.key for commit in commits}
    for record in pruned:
        id, path = record.batch_id, f"pruned/{record.batch_id}.json"
        if id in keys and keys[id] != record.commit:
            yield Finding("I3", path, "Its key is not that of the commit.", "Delete it.")
        elif id not in keys and not (store.commits / f"{id}.json").exists():
            remedy = "It goes when the file is scored again; else delete it."
            yield Finding("I3", path, "Its commit is not there.", remedy, "note")


def _monitor(store: Store, records: list[Commit | Quarantine]) -> Iterator[Finding]:
    path = store.root / "store.json"
    try:
        monitor = json.loads(content_of(path))["monitor"]
    except FileNotFoundError:
        yield Finding("I5", "store.json", "Missing: it says whose store this is.", _NEXT_RUN, "note")
        return
    except (OSError, ValueError, TypeError, KeyError):
        yield Finding("I3", "store.json", "Not readable as JSON with a 'monitor'.", _DELETE)
        return
    for record in records:
        if record.dataset != monitor:
            folder = "commits" if isinstance(record, Commit) else "quarantine"
            problem = f"The monitor must be {monitor!r}, as in store.json. Got {record.dataset!r}."
            yield Finding("I5", f"{folder}/{record.batch_id}.json", problem, "Move its files to that monitor's output.")


def _whole(store: Store, ref: FileRef, remedy: str) -> Iterator[Finding]:
    path = store.root / ref.file
    if path.is_symlink() or not path.is_file():
        yield Finding("I3", ref.file, "Missing, though a commit names it.", remedy)
    elif (size := path.stat().st_size) != ref.bytes:
        yield Finding("I3", ref.file, f"Must have {ref.bytes} bytes. Got {size}.", remedy)
    elif sha256_of(path) != ref.sha256:
        yield Finding("I3", ref.file, "Its sha256 is not the one in its commit.", remedy)


def _files(store: Store, commit: Commit) -> list[Finding]:
    """What is wrong with scores and report, but where they are pruned, or were while it was looked at."""
    if _is_pruned(store, commit):
        return []
    try:
        found = [*_scores(store, commit), *_report(store, commit)]
    except FileNotFoundError:  # it went while it was looked at
        return _files(store, commit)
    return [] if found and _is_pruned(store, commit) else found


def _is_pruned(store: Store, commit: Commit) -> bool:
    try:
        return read_record(store.pruned / f"{commit.batch_id}.json", Pruned).commit == commit.key
    except StoreError:
        return False


def _report(store: Store, commit: Commit) -> Iterator[Finding]:
    remedy = _redo(commit.batch_id)
    problems = list(_whole(store, commit.report, remedy))
    yield from problems
    if not problems:
        try:
            json.loads(content_of(store.root / commit.report.file))
        except ValueError:
            yield Finding("I3", commit.report.file, "Not readable as JSON.", remedy)
    html = f"reports/{commit.batch_id}.html"
    if commit.alert and not (store.root / html).exists():
        yield Finding("I3", html, "Not written yet.", _NEXT_RUN, "note")


def _scores(store: Store, commit: Commit) -> Iterator[Finding]:
    remedy, file = _redo(commit.batch_id), commit.scores.file
    problems = list(_whole(store, commit.scores, remedy))
    yield from problems
    if not problems:
        try:
            for invariant, problem in _content(commit, store.root / file):
                yield Finding(invariant, file, problem, remedy)
        except StoreError:
            yield Finding("I3", file, "Not readable as Parquet with page checksums.", remedy)


def _content(commit: Commit, path: Path) -> Iterator[Problem]:
    schema = score_schema(path)
    if not (schema.equals(SCORE_SCHEMA) or schema.equals(SEGMENT_SCHEMA)):
        yield "I5", f"The columns must be {SCORE_SCHEMA.names} with their types. Got {schema.names}."
        return
    stated = {k.decode(errors="replace"): v.decode(errors="replace") for k, v in (schema.metadata or {}).items()}
    wrong = [name for name, value in commit.provenance.items() if stated.get(name) != value]
    if wrong:
        yield "I5", f"The metadata must be those of the commit. Wrong or missing: {wrong}."
    rows, flagged, status = 0, 0, Counter[str]()
    for group in read_scores(path):
        yield from _constants(commit, group)
        yield from _decisions(commit, group, rows)
        rows, flagged = rows + group.num_rows, flagged + (pc.sum(group["is_anomaly"]).as_py() or 0)
        status.update({v["values"]: v["counts"] for v in group["status"].cast(pa.string()).value_counts().to_pylist()})
    yield from _totals(commit, flagged, status)


def _constants(commit: Commit, group: pa.Table) -> Iterator[Problem]:
    known = {
        "batch_id": [commit.batch_id],
        "model_version": [commit.model.version],
        "threshold_version": [*commit.threshold.segments] or [commit.threshold.version],
    }
    for name, values in known.items():
        if not set(group[name].cast(pa.string()).unique().to_pylist()) <= set(values):
            stated = " or ".join(map(repr, values))
            yield "I5", f"Column {name!r} must be {stated}, as in the commit, in every row. It is not."
    if "segment" in group.column_names:
        served = group.filter(pc.equal(group["status"].cast(pa.string()), OK)).select(["threshold_version", "segment"])
        pairs = served.cast(pa.schema([(name, pa.string()) for name in served.column_names])).group_by(
            served.column_names
        )
        found = pairs.aggregate([])
        named = group.num_rows - group["segment"].null_count - (served.num_rows - served["segment"].null_count)
        if named or len(found["threshold_version"].unique()) < len(found):
            yield (
                "I5",
                "Column 'segment' must go with threshold_version, and be null iff unscorable or general. It is not.",
            )


def _decisions(commit: Commit, group: pa.Table, first: int) -> Iterator[Problem]:
    """Row by row: its place, and whether score, p-value, threshold and alpha agree with the flag."""
    index, flag = (group[name].to_numpy() for name in ("row_index", "is_anomaly"))
    score, p = (group[name].to_numpy() for name in ("score", "p_value"))  # null is NaN
    ok = pc.equal(group["status"].cast(pa.string()), OK).to_numpy()
    nulls = [group[name].is_null().to_numpy() for name in ("score", "p_value")]
    value, alpha = commit.threshold.value, commit.threshold.alpha
    above = score > _values(commit, group)
    yield from _law("I2", "row_index must be the row's place in the batch", index == first + np.arange(len(ok)), first)
    yield from _law("I4", "score and p_value must be null iff unscorable", (nulls[0] != ok) & (nulls[1] != ok), first)
    yield from _law("I4", "score must be a number", ~ok | ~np.isnan(score), first)
    yield from _law("I4", "p_value must be in (0, 1]", ~ok | ((p > 0) & (p <= 1)), first)
    law = "its segment's value" if commit.threshold.segments else repr(value)
    yield from _law("I4", f"is_anomaly must be score > {law}", flag == (ok & above), first)
    yield from _law("I4", f"is_anomaly must be p_value <= {alpha!r}", flag == (ok & (p <= alpha)), first)


def _values(commit: Commit, group: pa.Table) -> np.ndarray:
    """(B,) the score above which each row is flagged."""
    threshold = commit.threshold
    if not threshold.segments:
        return np.full(group.num_rows, math.inf if threshold.value is None else threshold.value)
    place = pc.index_in(group["threshold_version"].cast(pa.string()), value_set=pa.array(list(threshold.segments)))
    # a version that is not there has been told of
    values = np.append(list(threshold.segments.values()), math.nan)
    return np.asarray(values[place.fill_null(-1).to_numpy()])


def _law(invariant: Invariant, law: str, holds: np.ndarray, first: int) -> Iterator[Problem]:
    wrong = np.flatnonzero(~holds)
    if len(wrong):
        rows = ", ".join(str(first + int(row)) for row in wrong[:5])
        yield invariant, f"In every row {law}. It is not in {len(wrong)} rows, first {rows}."


def _totals(commit: Commit, flagged: int, status: Counter[str]) -> Iterator[Problem]:
    stated = {OK: commit.scored, **{f"unscorable:{reason}": n for reason, n in commit.unscorable.items()}}
    if +status != +Counter(stated):
        yield "I1", f"Rows by status must be {stated}, as in the commit. Got {dict(status)}."
    if flagged != commit.flagged:
        yield "I1", f"Must have {commit.flagged} flagged rows, as in the commit. Got {flagged}."


def _orphans(store: Store) -> Iterator[Finding]:
    known = {name.removesuffix(".json") for name in names(store.commits)}
    for folder in (store.scores, store.reports):
        for name in names(folder):
            is_page = (folder, name) == (store.reports, INDEX)
            if name.endswith(_SUFFIXES[folder.name]) and name.rpartition(".")[0] not in known and not is_page:
                yield Finding("I3", f"{folder.name}/{name}", "No commit names it.", _NEXT_RUN, "note")


def _markers(store: Store) -> Iterator[Finding]:
    folders = store.commits, store.quarantine, store.incidents
    known = {name.removesuffix(".json") for folder in folders for name in names(folder)}
    for name in names(store.outbox):
        path = f"{store.outbox.name}/{name}"
        try:
            marker = json.loads(content_of(store.root / path))
            batch, sink, _ = (str(marker[key]) for key in ("batch_id", "sink", "idempotency_key"))
        except (OSError, ValueError, TypeError, KeyError):
            yield Finding("I6", path, "Not readable as a delivery marker.", "Delete it: the alert is delivered again.")
            continue
        if batch not in known or name != f"{batch}.{sink}.json":
            yield Finding("I6", path, "No record of its batch is there.", "Delete it, or restore the record.")


def _feedback(store: Store) -> Iterator[Finding]:
    copies = {name for name in names(store.feedback) if name.endswith(".arrow")}
    for name in names(store.feedback):
        if not name.endswith(".json"):
            continue
        path = f"{store.feedback.name}/{name}"
        try:
            entry = read_entry(store.root / path)
            copies.discard(Path(entry.record.file).name)
            record_of(store, entry)
        except StoreError as error:
            yield Finding("I3", path, str(error), "What was said there counts no more until it is restored.")
            continue
        if not (store.commits / f"{entry.batch_id}.json").exists():
            yield Finding("I6", path, "No commit of its batch is there.", "Restore the commit, or delete the entry.")
    for name in sorted(copies):
        yield Finding("I3", f"{store.feedback.name}/{name}", "No entry names it.", "Delete it.", "note")


def _answers(store: Store) -> Iterator[Finding]:
    for name in names(store.answers):
        if name.endswith(".json"):
            try:
                read_answer(store.answers / name)
            except StoreError as error:
                remedy = "No answer counts until it is restored."
                yield Finding("I3", f"{store.answers.name}/{name}", str(error), remedy)


def _is_id(name: str) -> bool:
    try:
        return bool(safe_id(name))
    except StoreError:
        return False


def _redo(id: str) -> str:
    return (
        f"Restore it from a backup, or delete record, scores and report of {id}: the next run scores the batch again."
    )
