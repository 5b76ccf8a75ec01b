"""What people see: progress and messages on stderr, results on stdout, tables, short paths.

Names come from files, and a terminal obeys what it is sent: every line is printed with its control and direction
characters spelt out, so that one thing said is one line.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from vae_anomaly.errors import printable

if TYPE_CHECKING:
    from vae_anomaly.scoring import ScoreOutcome
    from vae_anomaly.workspace import Workspace


@contextmanager
def progress_display() -> Iterator[Callable[[str, int, int], None]]:
    """A progress display on stderr: a bar on a terminal, one line for each stage elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _plain_progress()
        return
    columns = (SpinnerColumn(), TextColumn("{task.description:<40}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task("starting", total=None)

        def show(stage: str, done: int, total: int) -> None:
            bars.update(task, description=printable(stage), completed=done, total=total if total > 1 else None)

        yield show


def _plain_progress() -> Callable[[str, int, int], None]:
    said: set[str] = set()

    def show(stage: str, done: int, total: int) -> None:
        if stage not in said:
            said.add(stage)
            tell(f"{stage} ...")

    return show


class OneLine(logging.Formatter):
    """Log records as one line each, but for the traceback that ``--debug`` adds."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        return printable(super().formatMessage(record))


def log_to_stderr(level: int) -> None:
    """Log to stderr from ``level`` on, in place of what was set up before."""
    handler = logging.StreamHandler()
    handler.setFormatter(OneLine("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)


def tell(text: str) -> None:
    """One line on stderr."""
    sys.stderr.write(printable(text) + "\n")
    sys.stderr.flush()


def say(text: str = "") -> None:
    """One line of the result."""
    typer.echo(printable(text))


def say_json(value: Any) -> None:
    """The result for a machine."""
    typer.echo(json.dumps(value, indent=1, sort_keys=True, default=str, allow_nan=False))


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A table as wide as the terminal, or 160 characters where there is none."""
    from rich.console import Console
    from rich.table import Table

    grid = Table(*columns, title_justify="left", header_style="bold", show_edge=False, pad_edge=False)
    grid.title = printable(title)
    for row in rows:
        grid.add_row(*map(printable, row))
    width = None if sys.stdout.isatty() else 160
    Console(width=width, highlight=False, markup=False, emoji=False).print(grid)


def show_score(ws: Workspace, outcome: ScoreOutcome) -> None:
    """The table of a scoring run, and what a person should look at."""
    from vae_anomaly.store.files import INDEX

    if outcome.batches:
        rows = []
        for b in outcome.batches:
            c, q = b.commit, b.quarantine
            if c:
                found = f"{c.labelled.found} of {c.labelled.anomalies}" if c.labelled else ""
                lost = f"{c.rows - c.scored}"
                remark = "shifted as a whole" if c.drifted else ""
                rows.append([b.name, f"{c.rows:,}", f"{c.flagged:,}", f"{c.expected_flagged:.1f}", found, lost, remark])
            else:
                why = f"{q.rule}{f': {q.column}' if q.column else ''}" if q else f"failed: {b.problem}"
                rows.append([b.name, "", "", "", "", "", why])
        table(
            f"{ws.monitor.name}, model version {outcome.model.version if outcome.model else '-'}",
            ["batch", "records", "flagged", "expected false alarms", "found of labelled", "unscorable", "remark"],
            rows,
        )
        for b in outcome.batches:
            if b.report:
                say(f"{'report ' if b.commit else 'reason '} {shown(b.report)}")
        if (overview := ws.store.reports / INDEX).is_file():
            say(f"overview {shown(overview)}")
    elif outcome.already:
        say(f"Nothing to score: {outcome.already} files in the inbox are done already.")
    elif not outcome.waiting:
        say("Nothing to score: the inbox is empty.")
    for name in outcome.waiting:
        say(f"Still being written, left for the next run: {name}")
    if outcome.held:
        say(
            f"Alerts that wait until their group has cooled down, nobody looks at it or quiet hours end: {outcome.held}"
        )
    for problem in outcome.undelivered:
        say(f"Alert not delivered, will be tried again: {problem}")


def shown(path: Path) -> str:
    """The path as short as it can be written from here."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
