"""What people say of scored records: written down with a copy of the record, for the next run and the next fit.

A false alarm mutes records like it for a time (:mod:`vae_anomaly.muting`) and joins the next calibration; a confirmed
anomaly leaves the next training; what is expected mutes until a day and teaches nothing.
"""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa

from vae_anomaly.batch import OK, Records, concatenate
from vae_anomaly.errors import ConfigError, DataError, parsed_day, words
from vae_anomaly.registry import lookup
from vae_anomaly.store.commits import Ledger
from vae_anomaly.store.feedback import Feedback, Verdict, add, copied, entries, standing
from vae_anomaly.store.records import Commit
from vae_anomaly.store.score_files import read_scores
from vae_anomaly.store.sources import open_delivery, read_chunks
from vae_anomaly.worker import spoken_of
from vae_anomaly.workspace import Workspace

_log = logging.getLogger(__name__)
MUTED_DAYS = 30
COLUMNS = ("batch", "row", "as", "until", "note")
_JUDGED = ["row_index", "record_id", "status", "score", "p_value", "is_anomaly"]


@dataclass(frozen=True)
class Remark:
    """What somebody says of the ``row`` of a ``batch`` (its id or the name of its file), counted from 0.

    ``until`` is the last day on which records like it are muted: by default ``MUTED_DAYS`` from now for a false alarm,
    needed for what is expected, and not for an anomaly.
    """

    batch: str
    row: int
    verdict: str
    until: date | None = None
    note: str = ""

    def last_day(self, today: date) -> str:
        """The last day of muting in ISO 8601, empty for an anomaly; raises :class:`ConfigError` for another word."""
        lookup("--as", dict.fromkeys(get_args(Verdict)), self.verdict)
        if self.verdict == "anomaly":
            if self.until:
                raise ConfigError("--until must not be given with --as anomaly, which mutes nothing. Got it.")
            return ""
        until = self.until or (today + timedelta(MUTED_DAYS) if self.verdict == "false-alarm" else None)
        if until is None or until < today:
            got = until.isoformat() if until else "none"
            raise ConfigError(f"--until must be a day from today, {today.isoformat()}, on. Got {got}.")
        return until.isoformat()


def read_remarks(path: Path) -> list[Remark]:
    """The remarks of a CSV file with the columns ``COLUMNS``, of which the last two may be missing.

    Raises
    ------
    ConfigError
        The file, its header or one of its lines is not that; the message names the line.
    """
    try:
        rows = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig")), strict=True)
        names = rows.fieldnames or []
        if not set(COLUMNS[:3]) <= set(names) <= set(COLUMNS):
            raise ConfigError(f"{path} must have the columns {list(COLUMNS)}. Got {list(names)!r:.200}.")
        found = []
        for line in rows:
            where = f"{path}, line {rows.line_num}"
            if None in line or None in line.values() or not re.fullmatch(r"[0-9]{1,12}", line["row"].strip()):
                raise ConfigError(f"{where} must have a batch, the number of a row and the other columns. Got others.")
            until = parsed_day(line["until"].strip()) if line.get("until", "").strip() else None
            found.append(Remark(line["batch"], int(line["row"]), line["as"].strip(), until, line.get("note") or ""))
        return found
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} must be a CSV file in UTF-8. Got {type(error).__name__} on reading it.") from error


def give(ws: Workspace, remarks: Sequence[Remark], *, by: str, now: datetime) -> list[Feedback]:
    """Write down ``remarks`` at the time ``now`` in UTC; all of them or, where one is wrong, none.

    Raises
    ------
    ConfigError
        No such batch, row or word, or the delivered file is no longer in the inbox.
    """
    store = ws.store.prepare(ws.monitor.name)
    by = words("--by", by)
    asked: dict[str, list[tuple[Remark, dict[str, Any]]]] = defaultdict(list)
    for remark in remarks:
        note = words("--note", remark.note) if remark.note else ""
        said: dict[str, Any] = {"verdict": remark.verdict, "until": remark.last_day(now.date()), "by": by, "note": note}
        asked[remark.batch].append((remark, said))
    made: list[Feedback] = []
    for batch, of_batch in asked.items():
        commit = Ledger(store).find(batch)
        rows = {remark.row for remark, _ in of_batch}
        judged, records = _judged(ws, commit, rows), _delivered(ws, commit, rows)
        for remark, said in of_batch:
            found = judged[remark.row]
            said_at = now + timedelta(microseconds=len(made))  # the last line on a record stands
            if not found["flagged"] and remark.verdict != "anomaly":
                raise ConfigError(
                    f"--as must be anomaly for a record that was not flagged. Got {remark.verdict} for row"
                    f" {remark.row:,} of {commit.name!r}."
                )
            entry = Feedback(commit.batch_id, **found, **said, at=said_at.isoformat(timespec="microseconds"),
                             record=copied(store, records[remark.row]))  # fmt: skip
            spoken_of(ws, entry)  # it can be read back
            made.append(entry)
    for entry in made:
        add(store, entry)
    return made


def _judged(ws: Workspace, commit: Commit, rows: set[int]) -> Mapping[int, Mapping[str, Any]]:
    """What was found of the ``rows`` of a batch."""
    found: dict[int, dict[str, Any]] = {}
    for part in read_scores(ws.store.root / commit.scores.file, _JUDGED):
        first = int(part["row_index"][0].as_py()) if len(part) else 0
        for row in rows & set(range(first, first + len(part))):
            line = part.slice(row - first, 1).to_pylist()[0]
            if line["status"] != OK:
                raise ConfigError(f"ROW must be one that was scored. Got {row} of {commit.name!r}, {line['status']}.")
            found[row] = {
                "row_index": row,
                "record_id": line["record_id"],
                "score": line["score"],
                "p_value": line["p_value"],
                "flagged": line["is_anomaly"],
            }
    if missing := sorted(rows - found.keys()):
        raise ConfigError(f"ROW must be from 0 to {commit.rows - 1:,} in {commit.name!r}. Got {missing[0]:,}.")
    return found


def _delivered(ws: Workspace, commit: Commit, rows: set[int]) -> Mapping[int, pa.Table]:
    """The ``rows`` of the delivered file, each a table of one row."""
    gone = ConfigError(
        f"the delivered file of batch {commit.batch_id!r} must be in the inbox still, as it was. Got none like it: put"
        f" {commit.name!r} back into {str(ws.monitor.source.inbox)!r} to say something of its records."
    )
    source, found, first = ws.monitor.source, {}, 0
    try:
        with open_delivery(source.inbox / commit.name, folders=ws.folders) as delivery:
            if delivery.sha256 != commit.sha256:
                raise gone
            for table in read_chunks(delivery, ws.schema, source.csv, pattern=source.lines.pattern):
                for row in rows & set(range(first, first + len(table))):
                    found[row] = table.slice(row - first, 1)
                first += len(table)
                if len(found) == len(rows):
                    break
    except (OSError, DataError) as error:
        raise gone from error
    return found


@dataclass(frozen=True)
class Lessons:
    """What the next fit learns: records that are confirmed anomalies, false alarms, and a digest of both."""

    anomalies: Records | None
    false_alarms: Records | None
    digest: str


def lessons(ws: Workspace) -> Lessons:
    """The confirmed anomalies and the false alarms that stand.

    A record that does not fit the present contract, which has changed since, teaches nothing; a warning names it.

    Raises
    ------
    StoreError
        The ledger, or a copy, is lost or altered.
    """
    said = []
    by_verdict: dict[str, list[Records]] = {"anomaly": [], "false-alarm": []}
    for entry in standing(entries(ws.store)):
        if entry.verdict in by_verdict:
            try:
                by_verdict[entry.verdict].append(spoken_of(ws, entry))
                said.append(entry)
            except DataError as error:
                _log.warning("feedback %s teaches nothing: %s", entry.id, error)
    anomalies, false_alarms = (concatenate(records) if records else None for records in by_verdict.values())
    digest = hashlib.sha256("".join(entry.id for entry in said).encode()).hexdigest() if said else ""
    return Lessons(anomalies, false_alarms, digest)
