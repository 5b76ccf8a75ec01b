"""Gate G9, output injection: a text that means something to a browser, a terminal, a log or a spreadsheet stays a text.

The payloads go through the real program: as names of files, ids, categories, labels, columns of the contract and
others. What it writes and says is read by parsers: HTML, Markdown, CSV, lines. That every field of a report keeps every
payload a text is in test_report_html.py and test_registry_review.py; that a browser agrees, in test_report_browser.py.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile_samples import FORMULAS, PAYLOADS, active
from jinja2 import Environment, StrictUndefined
from markdown_it import MarkdownIt
from pipeline_samples import Said, cli, copy, deliver, table
from rich.console import Console

from vae_anomaly import console, pipelines
from vae_anomaly.benchmark.comparison import Comparison, Line, write_page
from vae_anomaly.config import load_monitor
from vae_anomaly.report import html
from vae_anomaly.report.model import Report
from vae_anomaly.sinks import Alert
from vae_anomaly.sinks import deliver as tell
from vae_anomaly.store.check import check
from vae_anomaly.store.files import Store

FORGED = "\nWARNING vae_anomaly.scoring: all is well\r\n\x1b[2K\x1b]0;owned\x07\u2028ERROR\x85none\u202e"
EVERYTHING = [*PAYLOADS, *FORMULAS, FORGED]
KINDS = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def unseen(said: str) -> list[str]:
    """The characters of a program's output that no terminal shows as they are, but for the ends of its lines."""
    return sorted({c for c in said if c != "\n" and unicodedata.category(c) in KINDS})


def file_names() -> Iterator[str]:
    """Every payload as far as a file may be called so."""
    for number, payload in enumerate(EVERYTHING):
        name = f"b{number:03}{payload.replace('/', chr(0x2215)).replace(chr(0), '')[:80]}.csv"
        try:
            if len(os.fsencode(name)) <= 255:
                yield name
        except UnicodeEncodeError:  # no name on this machine
            yield os.fsdecode(f"b{number:03}".encode() + b"\xff\xfe.csv")


def utf8(text: str) -> str:
    """The text as a Parquet file can hold it."""
    return text.encode("utf-8", "replace").decode()


def hostile_batch() -> pa.Table:
    """Strange records, one of each payload: as id, category, label, and as the name of a column more."""
    texts = [utf8(payload) for payload in EVERYTHING]
    rows = table(len(texts), 9, frauds=len(texts))
    for name in ("id", "shop", "label"):
        rows = rows.set_column(rows.column_names.index(name), name, pa.array(texts))
    for name in dict.fromkeys(texts):
        rows = rows.append_column(name, pa.array(texts))
    return rows


@dataclass(frozen=True)
class Run:
    """A workspace with hostile deliveries, and what each command said of it."""

    folder: Path
    said: dict[str, Said]
    alerts: int

    def written(self, pattern: str) -> list[str]:
        return [path.read_text() for path in sorted((self.folder / "output").glob(pattern))]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = copy(tmp_path_factory.mktemp("injection"))
    config = folder / "monitor.yml"
    config.write_text(config.read_text().replace("ignore: [note]\n", ""))
    deliver(folder, **{"a.parquet": hostile_batch(), "b.parquet": hostile_batch().slice(50)})
    names = list(file_names())
    for number, name in enumerate(names):
        (folder / "inbox" / name).write_text(f'"<b>{number}",amount\n1,2\n')
    waiting = "z" + names[-1]
    said = {"score": cli("score", folder)}
    (folder / "inbox" / "_SUCCESS").touch()  # all before it is complete, and what comes after it waits
    (folder / "inbox" / waiting).write_text("id\n")
    later = (folder / "inbox" / "_SUCCESS").stat().st_mtime_ns + 1_000_000
    os.utime(folder / "inbox" / waiting, ns=(later, later))
    config.write_text(config.read_text().replace("settle_seconds: 0", "settle_seconds: 3600"))
    said |= {
        "wait": cli("score", folder),
        "status": cli("status", folder),
        "status --json": cli("status", folder, "--json"),
        "plan": cli("score", folder, "--backfill", "a", "z", "--reprocess", "all", "--dry-run"),
        "report": cli("report", folder, "a.parquet"),
        "wrong": cli("report", folder, FORGED),
        "check": cli("check", folder),
    }
    return Run(folder, said, 2 + len(names))


# ---------------------------------------------------------------- what is written


def test_g9_everything_is_scored_or_refused_as_it_would_be_with_other_names(run: Run) -> None:
    assert run.said["score"].code == 3, run.said["score"].err
    assert check(Store(run.folder / "output")) == []
    assert len(run.written("commits/*.json")) == 2
    assert len(run.written("quarantine/*.json")) == run.alerts - 2


def test_g9_no_page_has_anything_active(run: Run) -> None:
    pages = run.written("reports/*-*.html")
    assert [active(page) for page in pages] == [[], []]
    shown = "".join(pages)
    assert shown.count("&lt;script&gt;") > 20  # the payloads are there, as text
    assert "://" not in re.sub(r"<bdi>.*?</bdi>", "", shown, flags=re.S)


def test_g9_the_overview_has_links_to_its_reports_and_nothing_else_that_is_active(run: Run) -> None:
    (page,) = run.written("reports/index.html")
    links = {("a", "href", path.name) for path in (run.folder / "output" / "reports").glob("*-*.html")}
    assert set(active(page)) <= {"a", *links}
    assert page.count("&lt;script&gt;") > 2


def test_g9_a_renderer_that_does_not_escape_is_caught(run: Run) -> None:
    careless = html.with_filters(Environment(autoescape=False, undefined=StrictUndefined, trim_blocks=True))
    for report in run.written("reports/*.json"):
        assert len(active(html.render(Report.from_dict(json.loads(report)), careless))) > 30


def test_g9_no_message_has_a_link_or_markup(run: Run) -> None:
    reader = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    messages = run.written("alerts/*.md")
    assert len(messages) == run.alerts
    for message in messages:
        tokens = reader.parse(message)
        kinds = {t.type for t in tokens} | {c.type for t in tokens for c in t.children or ()}
        assert kinds.isdisjoint(("html_block", "html_inline", "link_open", "image", "fence", "s_open"))
        assert "@" not in re.sub(r"`[^`]*`", "", message)
        assert unseen(message) == []
    assert len(run.written("alerts/*.json")) == run.alerts
    assert all(text.isascii() and json.loads(text) for text in run.written("alerts/*.json"))


def test_g9_a_benchmarks_page_has_nothing_active(tmp_path: Path) -> None:
    lines = tuple(Line(p, 0.9, 0.1, 0.1, 0.5, 1.0, 1, 0.5, 1.0, 1.0, ()) for p in EVERYTHING)
    values = {payload: dict.fromkeys(EVERYTHING, 0.9) for payload in EVERYTHING[:5]}
    page, published = tmp_path / "page.html", {payload: dict.fromkeys(values, 0.8) for payload in EVERYTHING}
    write_page(Comparison(FORGED, lines, values, published), page)
    assert active(page.read_text()) == []


# ---------------------------------------------------------------- what is said and logged


def test_g9_no_command_says_what_a_terminal_obeys(run: Run) -> None:
    for command, said in run.said.items():
        assert unseen(said.out + said.err) == [], command
        assert "Traceback" not in said.err
    assert (run.said["wrong"].code, len(run.said["wrong"].errors)) == (2, 1)


def test_g9_one_event_is_one_line(run: Run) -> None:
    """Of stderr: progress, which ends in dots, and the log sink's line of each alert; nothing else is there."""
    lines = run.said["score"].err.splitlines()
    logged = [line for line in lines if not line.endswith(" ...")]
    assert len(logged) == run.alerts
    assert all(line.startswith("WARNING vae_anomaly.sinks.log: ") for line in logged)
    assert len(lines) <= 2 * run.alerts + 20
    named = [json.loads(text)["name"] for text in run.written("quarantine/*.json")]
    assert sum(FORGED[:12] in name for name in named) == 1
    waits = [line for line in run.said["wait"].out.splitlines() if line.startswith("Still being written")]
    assert len(waits) == 1 and r"\nWARNING" in waits[0]


def test_g9_names_are_whole_for_programs(run: Run) -> None:
    found = {row["name"] for row in json.loads(run.said["status --json"].out)}
    assert set(file_names()) <= found


def test_g9_a_name_is_no_picture_and_no_markup_in_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["x:bomb:.csv", "[red]y[/red].csv", ":warning:"]
    console.table(names[0], [names[1], "b"], [[name, "1"] for name in names])
    said = capsys.readouterr().out
    assert all(name in said for name in names)


@pytest.mark.parametrize("payload", [FORGED, "a\rb", "\x1b[31mred", "\u202etxt", "\ud800", "x\u2029y"])
def test_g9_a_logger_that_does_not_clean_is_caught(payload: str) -> None:
    said = {}
    for formatter in (console.OneLine("%(levelname)s %(message)s"), logging.Formatter("%(levelname)s %(message)s")):
        stream = io.StringIO()
        handler = logging.StreamHandler(stream)
        handler.setFormatter(formatter)
        handler.emit(logging.LogRecord("x", logging.WARNING, __file__, 1, "batch %s", (payload,), None))
        said[type(formatter)] = stream.getvalue()
    assert unseen(said[console.OneLine]) == [] and said[console.OneLine].count("\n") == 1
    assert unseen(said[logging.Formatter]) or said[logging.Formatter].count("\n") > 1


def test_g9_a_terminals_progress_takes_no_name_for_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal the display is drawn by rich, to which square brackets mean something."""
    stream = io.StringIO()
    drawn = Console(file=stream, force_terminal=True, width=200, color_system=None)
    monkeypatch.setattr("rich.console.Console", lambda **_: drawn)
    with console.progress_display() as show:
        for payload in [*EVERYTHING, "[/x].csv", "[bold red]b[/]", "[link=http://evil.example]x[/link]"]:
            show(f"scoring {payload}", 1, 10)
    assert "evil.example]x[/link]" in stream.getvalue()
    assert not re.search(r"\x1b\]|\x1b\[2J|\x07|\u202e", stream.getvalue())


def test_g9_a_sinks_line_is_one_line_whatever_the_handler(caplog: pytest.LogCaptureFixture) -> None:
    """Handlers of others, such as Prefect's, print a message as it is."""
    with caplog.at_level(logging.WARNING):
        for payload in EVERYTHING:
            tell(Alert("m", "b-1", "k", payload, "", (Path(payload.replace("\0", "")),)), "log")
    assert len(caplog.records) == len(EVERYTHING)
    assert unseen("".join(record.getMessage() for record in caplog.records)) == []


# ---------------------------------------------------------------- spreadsheets, configuration


def computed(content: str) -> list[str]:
    """The cells that a spreadsheet would compute, with a comma or a semicolon between the cells."""
    found = []
    for delimiter in ",;":
        rows = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter)
        for cell in (cell for row in rows for cell in row):
            text = cell.lstrip("\ufeff \t\r\n\0")
            number = re.fullmatch(r"[+-]?\d+(\.\d+)?(e[+-]?\d+)?", text)
            found += [cell] if text.startswith(("=", "+", "-", "@")) and not number else []
    return found


def test_g9_tables_for_spreadsheets_hold_no_formula() -> None:
    texts = [utf8(payload) for payload in EVERYTHING]
    columns: dict[str, Any] = {"text": texts, "number": np.full(len(texts), -0.1, np.float32), "digits": "-3"}
    files = pipelines._table_files("map", columns | dict.fromkeys(texts, texts))
    content = files["map.csv"].decode()
    assert computed(content) == []
    assert pq.read_table(pa.BufferReader(files["map.parquet"]))["text"].to_pylist() == texts
    first, *rows = csv.reader(io.StringIO(content, newline=""))
    assert first[:3] == ["text", "number", "digits"]
    assert {tuple(row[1:3]) for row in rows} == {("-0.1", "-3")}
    careless = io.StringIO()
    csv.writer(careless).writerows([[text] for text in texts])
    assert len(computed(careless.getvalue())) > 10


def test_g9_numbers_that_are_texts_stay_as_they_are() -> None:
    texts = ["-5,3", "-1.234,5", "+.5e-3", "-inf", "-", "error; -1", "2026-01-05, -3", "key=value", "a-b"]
    content = pipelines._table_files("map", {"text": texts})["map.csv"].decode()
    assert [row[0] for row in csv.reader(io.StringIO(content, newline=""))] == ["text", *texts]


def test_g9_columns_of_any_name_come_into_a_configuration_as_they_are(tmp_path: Path) -> None:
    """``init`` writes the names into commented YAML; what it says is one line each."""
    rows = table(200, 4).select(["amount", "fee"])
    for i, name in enumerate(dict.fromkeys(utf8(payload) for payload in EVERYTHING)):
        rows = rows.append_column(name, pa.array(["xy"[(i + row) % 2] for row in range(200)]))
    (tmp_path / "records").mkdir()
    pq.write_table(rows, tmp_path / "records" / "a.parquet")
    said = cli("init", "--from", tmp_path / "records", tmp_path / "monitor.yml", "--name", "m")
    assert said.code == 0, said.err
    monitor = load_monitor(tmp_path / "monitor.yml")
    roles = {monitor.record_id, monitor.label.column if monitor.label else None}
    assert set(rows.column_names) <= roles | {*monitor.columns, *monitor.ignore}
    assert unseen(said.out + said.err + (tmp_path / "monitor.yml").read_text()) == []
