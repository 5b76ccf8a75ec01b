"""The pages that show a store: a monitor's overview, and several monitors on one page. Both are derived from records.

The overview says in its head which state of the store it shows, so that a run that changes nothing writes nothing, and
one that follows a killed run writes what is missing. What it reads are the records and reports that it shows.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from urllib.parse import quote

from vae_anomaly.answers import Window, groups
from vae_anomaly.errors import ConfigError, StoreError, VaeAnomalyError
from vae_anomaly.report.model import INCIDENT_KINDS, Report
from vae_anomaly.report.overview import (
    TIME,
    BatchLine,
    IncidentLine,
    Linked,
    Overview,
    is_mostly_unscorable,
    state_of,
)
from vae_anomaly.store.answers import entries
from vae_anomaly.store.commits import Ledger, Written, moment
from vae_anomaly.store.files import INDEX, Store, content_of, names, replace, sweep
from vae_anomaly.store.records import Attempts, Commit, Incident, Quarantine, read_record
from vae_anomaly.workspace import Workspace, code_version

SHOWN, INCIDENTS = 60, 10  # batches, and incidents
_HEAD = 1_000  # bytes of a page in which its marks are
_log = logging.getLogger(__name__)


def read_report(store: Store, batch: str) -> Report:
    """The report value of a committed batch; raises :class:`StoreError` where it is missing or altered."""
    return _read(store, batch, {})


def _read(store: Store, batch: str, changes: dict[str, object]) -> Report:
    """The report with some of its fields changed before they are read."""
    path = store.file(store.reports, batch, ".json")
    try:
        return Report.from_dict(json.loads(content_of(path)) | changes)
    except (OSError, ValueError, TypeError) as error:
        raise StoreError(
            f"{str(path)!r} must be the report of a committed batch. Got {type(error).__name__} on reading it. Run"
            " 'vae-anomaly check' to see what to do."
        ) from error


# ---- the overview of a monitor ----


def overview(ledger: Ledger, monitor: str, written: Sequence[Written], window: Window) -> Overview:
    """The last ``SHOWN`` batches of what was written, and the groups of alerts that are open or acknowledged at the end
    of ``window``; only the records and reports of these batches and the records of the window are read."""
    pages = set(names(ledger.store.reports))
    lines = [_line(ledger.store, at, record, pages) for at, record in islice(ledger.latest(written), SHOWN)]
    contents = {batch.rpartition("-")[2] for _, batch, _ in written}  # the heads of their digests
    alive = [group.line(window) for group in groups(ledger, window.of(ledger.causes(written)))]
    shown = [line for line in alive if line.state in ("open", "acknowledged")]
    shown.sort(key=lambda line: line.state, reverse=True)  # the open ones first
    return Overview(monitor, tuple(reversed(lines)), len(contents), tuple(_incidents(ledger)), tuple(shown))


def _incidents(ledger: Ledger) -> Iterator[IncidentLine]:
    """The last ``INCIDENTS`` of them."""
    folder = ledger.store.incidents
    known = sorted(((folder / name).stat().st_mtime_ns, name) for name in names(folder) if name.endswith(".json"))
    for at, name in reversed(known[-INCIDENTS:]):
        found = read_record(folder / name, Incident)
        yield IncidentLine(INCIDENT_KINDS.get(found.kind, found.kind), found.name, found.problem, _utc(at))


def _utc(at: int) -> str:
    return moment(at).strftime(TIME)


def _line(store: Store, at: int, record: Commit | Quarantine | Attempts, pages: set[str]) -> BatchLine:
    name, batch = record.name, record.batch_id
    when = _utc(at)
    if isinstance(record, Attempts):
        about = f"Attempt {record.count}: {record.problem}"
        return BatchLine(name, batch, when, "failed", about=about)
    if isinstance(record, Quarantine):
        return BatchLine(name, batch, when, "quarantined", about=record.problem, rule=record.rule)
    report = _summarised(store, batch)
    state, about = state_of(report) if report else (_state_without_report(record), "")
    cells = [column.missing for column in report.columns] if report else []
    return BatchLine(
        name=name,
        batch_id=batch,
        at=when,
        state=state,
        rows=record.rows,
        scored=record.scored,
        flagged=record.flagged,
        expected_flagged=record.expected_flagged,
        flagged_range=report.flagged_range if report and record.scored else None,
        missing=sum(cells) / len(cells) if cells and record.scored else math.nan,
        moved=tuple(shift.column for shift in report.shifts) if report else (),
        about=about,
        model_version=record.model.version,
        threshold_version=record.threshold.version,
        link=f"{batch}.html" if f"{batch}.html" in pages else "",
    )


def _summarised(store: Store, batch: str) -> Report | None:
    """The report but for its records and histogram, which may be large; None where it is pruned, lost or altered."""
    try:
        return _read(store, batch, {"records": [], "histogram": {}})
    except StoreError:
        return None


def _state_without_report(commit: Commit) -> str:
    if not commit.rows:
        return "empty"
    if commit.drifted:
        return "shifted"
    return "unscored" if is_mostly_unscorable(commit.scored, commit.rows) else "unjudged"


def overview_of(ws: Workspace) -> tuple[Overview, Path]:
    """Write the overview of a monitor, before its first run too; what it shows, and its path."""
    store = ws.store.prepare(ws.monitor.name)
    with store.lock(store.outbox):
        return write_overview(Ledger(store), ws.monitor.name, window_of(ws))


def window_of(ws: Workspace) -> Window:
    """The days, up to today, of which an alert is open."""
    return Window.at(time.time(), ws.monitor.alerts.expire_days)


def update_overview(ledger: Ledger, monitor: str, window: Window) -> None:
    """Write the overview where it is not that of the store as it is; hold ``store.lock(store.outbox)``. Best effort."""
    store = ledger.store
    try:
        mark = _mark(ledger, monitor, ledger.written(), window)
        if mark.encode() not in _head(store.reports / INDEX):
            write_overview(ledger, monitor, window)
    except Exception as error:  # the scores are committed, and the next run tries again
        said = error if isinstance(error, VaeAnomalyError) else type(error).__name__
        _log.warning("%s: the overview could not be written: %s", monitor, said)


def write_overview(ledger: Ledger, monitor: str, window: Window) -> tuple[Overview, Path]:
    """Write ``reports/index.html``; what it shows, and its path. Raises :class:`StoreError` where that fails."""
    found, page = overview_page(ledger, monitor, window)
    path = ledger.store.reports / INDEX
    ledger.store.replace(page, path)
    return found, path


def overview_page(ledger: Ledger, monitor: str, window: Window) -> tuple[Overview, bytes]:
    """The overview of a store as it is, as a value and as a page; the same store gives the same bytes on a day, and on
    others until an alert or an acknowledgement is over."""
    from vae_anomaly.report.overview_html import overview_to_html

    written = ledger.written()
    mark = _mark(
        ledger, monitor, written, window
    )  # before the records are read: what comes meanwhile is news to the next run
    found = overview(ledger, monitor, written, window)
    return found, overview_to_html(found, mark).encode()


def _mark(ledger: Ledger, monitor: str, written: Sequence[Written], window: Window) -> str:
    """A digest of what an overview shows, by the names and times of the files and by which records are in the window:
    no record is read for it but the answers."""
    records = [(at, batch, folder.name) for at, batch, folder in written]
    pages = [name for name in names(ledger.store.reports) if name != INDEX]
    seen: list[object] = [code_version(), monitor, records, pages, names(ledger.store.incidents)]
    said = entries(ledger.store)
    seen += [len(window.of(ledger.causes(written))), [(answer.id, answer.holds(window.today)) for answer in said]]
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()


def _head(path: Path) -> bytes:
    try:
        return content_of(path)[:_HEAD]
    except OSError:
        return b""


# ---- several monitors on one page ----


def write_site(monitors: Sequence[tuple[Workspace, Overview]], folder: Path) -> Path:
    """Write ``folder/index.html``, which shows these overviews with links to their pages; returns its path.

    Raises :class:`ConfigError` where that cannot be written, or is a page of somebody else.
    """
    from vae_anomaly.report.overview_html import SITE_MARK, site_to_html

    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder = folder.resolve()
        path = folder / INDEX
        if path.exists() and SITE_MARK.encode() not in _head(path):
            raise ConfigError(f"--site must be a folder without a page of another kind. Got {str(path)!r}.")
        sweep(folder)
        linked = [Linked(found, _relative(ws.store.reports / INDEX, folder)) for ws, found in monitors]
        replace(site_to_html(linked).encode(), path, tmp=folder)
    except (OSError, StoreError) as error:
        why = (error.strerror if isinstance(error, OSError) else "") or type(error).__name__
        raise ConfigError(f"--site must be a folder that can be written. Got {str(folder)!r} ({why}).") from error
    return path


def _relative(path: Path, folder: Path) -> str:
    """The address of ``path`` for a page in ``folder``: it holds nothing that has a meaning in an address."""
    return quote(os.fsencode(os.path.relpath(path, folder)))
