"""The overview through the whole program: written by each run that changes something, never the end of one."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from pipeline_samples import cli, copy, deliver, program, table
from store_samples import tree

from vae_anomaly.store.check import check
from vae_anomaly.store.files import Store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two batches, one of them of strange records, and a file that is refused."""
    home = copy(tmp_path)
    files = {"day-0.parquet": table(40, 40), "day-1.parquet": table(40, 41, frauds=25), "short.csv": b"id\n1\n"}
    deliver(home, **files)
    return home


def page_of(folder: Path) -> str:
    return (folder / "output" / "reports" / "index.html").read_text()


def links(page: str) -> set[str]:
    return set(re.findall(r'<a href="(.*?)">', page))


def reports(folder: Path) -> set[str]:
    return {path.name for path in (folder / "output" / "reports").glob("*-*.html")}


def test_the_program_writes_it_and_says_where_and_how_the_monitor_stands(folder: Path, tmp_path: Path) -> None:
    assert program("score", folder, cwd=tmp_path).code == 3
    said = program("overview", "shops", cwd=tmp_path)
    lines = said.out.splitlines()
    assert (said.code, said.err) == (0, "")
    assert lines[0].startswith("shops: 2 of 3 batches need a look: 1 ") and "1 quarantined" in lines[0]
    assert lines[1:] == ["shops/output/reports/index.html"]
    assert links(page_of(folder)) == reports(folder) != set()
    assert all(name in page_of(folder) for name in ("day-0.parquet", "day-1.parquet", "short.csv", "missing_column"))
    assert check(Store(folder / "output")) == []


def test_a_run_writes_it_where_something_changed_and_a_run_without_work_touches_nothing(folder: Path) -> None:
    for path in (folder / "inbox").iterdir():
        os.utime(path, (path.stat().st_mtime - 60,) * 2)
    time.sleep(2.1)  # a file whose state is younger than this is not in the cache of hashes yet
    cli("score", folder)
    before, times = tree(folder / "output"), times_of(folder)
    assert cli("score", folder).code == 0
    assert (tree(folder / "output"), times_of(folder)) == (before, times)
    shown = json.loads(cli("overview", folder, "--json").out)
    assert tree(folder / "output") == before  # the same store, the same bytes
    (monitor,) = shown["monitors"]
    assert (shown["site"], monitor["page"]) == (None, str(folder / "output" / "reports" / "index.html"))
    assert {(b["name"], b["state"]) for b in monitor["batches"]} >= {("short.csv", "quarantined")}
    deliver(folder, **{"day-2.parquet": table(40, 43)})
    assert cli("score", folder).code == 0
    assert "day-2.parquet" in page_of(folder)


def times_of(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder / "output" / "reports").iterdir()}


def test_what_keeps_it_from_being_written_stops_nothing(folder: Path) -> None:
    (folder / "inbox" / "short.csv").unlink()
    blocked = Store(folder / "output").prepare("shops").reports / "index.html"
    blocked.mkdir()
    said = cli("score", folder, "--json")
    found = json.loads(said.out)
    assert (said.code, found["undelivered_alerts"]) == (0, [])
    assert [batch["verdict"] for batch in found["batches"]] == ["committed", "committed"]
    assert ["shops: the overview could not be written" in line for line in said.errors].count(True) == 1
    blocked.rmdir()
    said = cli("score", folder)
    assert (said.code, said.errors) == (0, [])
    assert "day-1.parquet" in page_of(folder)


def test_no_link_is_left_to_what_is_pruned(folder: Path) -> None:
    cli("score", folder)
    assert links(page_of(folder))
    for path in (folder / "output" / "commits").iterdir():
        os.utime(path, (1_700_000_000, 1_700_000_000))
    assert cli("prune", folder, "--older-than", "30").code == 0
    assert links(page_of(folder)) == reports(folder) == set()
    assert "day-0.parquet" in page_of(folder) and "day-1.parquet" in page_of(folder)
    assert check(Store(folder / "output")) == []


def test_a_site_shows_each_monitor_and_leads_to_its_overview(folder: Path, tmp_path: Path) -> None:
    cli("score", folder)
    new = copy(tmp_path / "other")  # no run yet
    said = cli("overview", folder, new, "--site", tmp_path / "site")
    assert said.code == 0
    page = tmp_path / "site" / "index.html"
    assert said.out.splitlines()[-1].endswith("site/index.html")
    assert "shops: No batch has come yet." in said.out
    reached = {(page.parent / link).resolve() for link in links(page.read_text())}
    assert reached == {path / "output" / "reports" / "index.html" for path in (folder, new)}
    assert all(path.is_file() for path in reached)
    before = page.read_bytes()
    cli("overview", folder, new, "--site", tmp_path / "site")
    assert page.read_bytes() == before
    said = cli("overview", folder, "--site", folder / "output" / "reports")
    assert (said.code, len(said.errors)) == (2, 1)
