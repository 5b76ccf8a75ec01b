"""The overview: every batch once and in order, from the records that are there, as a harmless and small page."""

from __future__ import annotations

import functools
import json
import os
import random
import re
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote, urljoin, urlparse

import pytest
from hostile_samples import PAYLOADS, Page, intruders
from jinja2 import Environment, StrictUndefined
from overview_samples import DAY, KINDS, START, every_kind, failed_batch, refused_batch, scored_batch, written
from store_samples import MONITOR, put

from vae_anomaly import pages
from vae_anomaly.answers import Window
from vae_anomaly.errors import ConfigError, DataError, StoreError
from vae_anomaly.report import html, overview_html
from vae_anomaly.report.formatting import text
from vae_anomaly.report.overview import STATES, BatchLine, GroupLine, IncidentLine, Linked, Overview
from vae_anomaly.report.overview_html import MAX_BATCHES, MAX_MONITORS, overview_to_html, site_to_html
from vae_anomaly.store import commits
from vae_anomaly.store.check import check
from vae_anomaly.store.commits import Ledger
from vae_anomaly.store.files import INDEX, Store
from vae_anomaly.store.records import Attempts, Incident

WINDOW = Window(date(2100, 1, 1), 14)  # nothing of what is made here is open then


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "output").prepare("payments")


def shown(store: Store) -> Overview:
    return pages.overview(Ledger(store), "payments", Ledger(store).written(), WINDOW)


# ---------------------------------------------------------------- what it is made of


def test_every_state_has_its_line_and_its_part_of_the_sentence(tmp_path: Path) -> None:
    found = shown(every_kind(tmp_path))
    assert [batch.state for batch in found.batches] == list(STATES)
    assert [batch.name for batch in found.batches] == [f"day-{day:03}.csv" for day in range(len(STATES))]
    assert found.batches[0].at == "2026-01-05T06:00:00Z"
    assert found.batches[0].moved == ("amount", "fee")
    assert (found.total, found.needing) == (13, 10)
    assert found.verdict == (
        "10 of 13 batches need a look: 1 shifted as a whole, 1 mostly flagged, 1 with far more flags than chance,"
        " 1 quarantined, 1 failed and tried again, 1 with more flags than chance, 1 with fewer flags than chance,"
        " 1 mostly not scored, 1 empty, 1 with a warning on its data."
    )


@pytest.mark.parametrize("state", STATES)
def test_a_line_says_what_its_records_say(tmp_path: Path, state: str) -> None:
    (line,) = shown(every_kind(tmp_path, [state])).batches
    made = {"rows": 60, "flagged": 3, "unscorable": 0} | KINDS.get(state, {})
    if line.was_read:
        assert [line.rows, line.flagged, line.unscorable] == [made[n] for n in ("rows", "flagged", "unscorable")]
        assert line.expected_flagged == pytest.approx(0.05 * line.scored)
        assert (line.model_version, line.threshold_version) == ("1", "t-1")
        assert bool(line.link) == (state not in ("unjudged", "quiet"))
        assert (line.flagged_range is None) == (state in ("unjudged", "empty"))
    else:
        assert (line.rows, line.link, line.model_version) == (0, "", "")
        assert line.about and (line.rule == "missing_column") == (state == "quarantined")


@pytest.mark.parametrize("seed", range(3))
def test_every_content_is_counted_once_by_its_last_record(store: Store, seed: int) -> None:
    draw = random.Random(seed)
    expected: dict[str, str] = {}  # in the order of the last records
    for day in range(60):
        name, what = f"f{draw.randrange(15):02}.csv", draw.choice(("1", "2", "3", "quarantined", "failed"))
        state = expected.get(name, "")
        if what in ("quarantined", "failed"):
            if state not in ("", "failed"):  # it has come to an end
                continue
            (refused_batch if what == "quarantined" else failed_batch)(store, day, name)
        elif state.isdigit() and what <= state:  # this model has scored it
            continue
        else:
            scored_batch(store, day, name, model=what)
        expected.pop(name, None)
        expected[name] = what
    found = shown(store)
    assert [(b.name, b.model_version or b.state) for b in found.batches] == list(expected.items())
    assert found.total == len(expected)
    assert len(expected) > 10 and set(expected.values()) >= {"2", "3"}
    assert len(list(Ledger(store).commits())) > sum(state.isdigit() for state in expected.values())


def test_the_last_ones_are_shown_of_many_and_only_these_are_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for day in range(pages.SHOWN + 20):
        attempt = Attempts(f"b{day}-{day:012x}", f"b{day}.csv", f"{day:012x}" + 52 * "0", "contract-1", 1, "gone")
        path = store.attempts / f"{attempt.batch_id}.json"
        path.write_bytes(attempt.to_json())
        written(path, day)
    read: list[Path] = []
    real = commits.read_record
    monkeypatch.setattr(commits, "read_record", lambda path, kind: read.append(path) or real(path, kind))
    found = shown(store)
    assert [b.name for b in found.batches] == [f"b{day}.csv" for day in range(20, pages.SHOWN + 20)]
    assert (found.total, len(read)) == (pages.SHOWN + 20, pages.SHOWN)
    assert found.headline == f"{pages.SHOWN} of the last {pages.SHOWN} batches need a look"


def test_a_record_that_ends_while_it_is_looked_at_is_left_out_and_a_broken_one_is_told(store: Store) -> None:
    failed_batch(store, 0, "a.csv")
    scored_batch(store, 1, "b.csv")
    newest_first = Ledger(store).latest(Ledger(store).written())
    assert next(newest_first)[1].name == "b.csv"
    Ledger(store).forget(next(iter(Ledger(store).attempts())).batch_id)
    assert list(newest_first) == []
    next(store.commits.iterdir()).write_text("{")
    with pytest.raises(StoreError, match="must be a commit record"):
        shown(store)


def test_pruned_batches_stay_without_a_link(store: Store) -> None:
    for day in range(3):
        scored_batch(store, day, f"day-{day}.csv", **KINDS["shifted" if day == 0 else "usual"])  # type: ignore[arg-type]
    before = shown(store)
    Ledger(store).prune(START + 1.5 * DAY, [], dry_run=False)
    after = shown(store)
    assert [(b.name, b.state, bool(b.link)) for b in after.batches] == [
        ("day-0.csv", "shifted", False),
        ("day-1.csv", "unjudged", False),
        ("day-2.csv", "usual", True),
    ]
    assert [(b.rows, b.flagged) for b in after.batches] == [(b.rows, b.flagged) for b in before.batches]
    page = overview_to_html(after)
    assert [href for href, _ in links(page)] == [after.batches[2].link]
    assert page.count("day-0.csv</bdi>") == 1


def test_the_json_form_is_the_value(tmp_path: Path) -> None:
    found = shown(every_kind(tmp_path))
    again = Overview.from_dict(json.loads(found.to_json()))
    assert again.to_json() == found.to_json() == shown(Store(tmp_path)).to_json()
    with pytest.raises(DataError, match="format"):
        Overview.from_dict({"format": "vae-anomaly report 1"})
    with pytest.raises(ValueError, match="state must be one of"):
        BatchLine("a", "b", "c", "<script>")


def made(*states: str, total: int = 0) -> Overview:
    return Overview("m", tuple(BatchLine(f"{i}", f"{i}", "", state) for i, state in enumerate(states)), total)


@pytest.mark.parametrize(
    ("overview", "verdict", "tone"),
    [
        (made(), "No batch has come yet.", "calm"),
        (made("usual"), "None of 1 batch needs a look.", "calm"),
        (made("usual", "quiet", total=900), "None of the last 2 batches needs a look.", "calm"),
        (made("shifted", "usual"), "1 of 2 batches needs a look: 1 shifted as a whole.", "look"),
        (made("warned", "warned"), "2 of 2 batches need a look: 2 with warnings on their data.", "look"),
        (made("usual", "far_more"), "1 of 2 batches needs a look: 1 with far more flags than chance.", "alarm"),
        (made("unjudged"), "None of 1 batch needs a look.", "calm"),
    ],
)
def test_the_sentence_fits_the_state(overview: Overview, verdict: str, tone: str) -> None:
    assert (overview.verdict, overview.tone) == (verdict, tone)
    assert overview.headline in overview_to_html(overview)


# ---------------------------------------------------------------- the file


def test_the_same_store_gives_the_same_bytes_and_check_has_nothing_against_them(tmp_path: Path) -> None:
    store = every_kind(tmp_path)
    ledger = Ledger(store)
    found, path = pages.write_overview(ledger, "payments", WINDOW)
    assert path == store.reports / INDEX
    assert path.read_bytes() == pages.overview_page(ledger, "payments", WINDOW)[1]
    time.sleep(0.01)
    pages.write_overview(ledger, "payments", WINDOW)
    assert (
        path.read_bytes()
        == pages.overview_page(ledger, "payments", WINDOW)[1]
        == overview_to_html(found, mark(path)).encode()
    )
    assert not [f for f in check(store) if INDEX in f.path]
    (store.scores / INDEX).touch()  # elsewhere it is a stranger
    assert [f.path for f in check(store) if INDEX in f.path] == [f"scores/{INDEX}"]


def mark(path: Path) -> str:
    return re.search('name="vae-anomaly-state" content="([0-9a-f]{64})"', path.read_text())[1]  # type: ignore[index]


def identity(path: Path) -> tuple[int, int]:
    found = path.stat()  # not as a whole: reading a file changes its time of access
    return found.st_ino, found.st_mtime_ns


CHANGES: dict[str, Callable[[Store], Any]] = {
    "a commit": lambda s: scored_batch(s, 20, "new.csv"),
    "a second scoring": lambda s: scored_batch(s, 20, "day-000.csv", model="2"),
    "a refusal": lambda s: refused_batch(s, 20, "new.csv"),
    "an attempt": lambda s: failed_batch(s, 20, "new.csv"),
    "one more attempt": lambda s: failed_batch(s, 20, "day-002.csv"),
    "an attempt that is forgotten": lambda s: Ledger(s).forget(next(iter(Ledger(s).attempts())).batch_id),
    "a page that is rendered": lambda s: (s.reports / f"{next(Ledger(s).commits()).batch_id}.html").unlink(),
    "reports that are pruned": lambda s: Ledger(s).prune(START + 0.5 * DAY, [], dry_run=False),
    "no overview": lambda s: (s.reports / INDEX).unlink(),
    "a page of another state": lambda s: (s.reports / INDEX).write_text("<!DOCTYPE html>"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_it_is_written_where_the_store_has_changed_and_only_there(
    tmp_path: Path, change: Callable[[Store], Any]
) -> None:
    store = every_kind(tmp_path, ["usual", "shifted", "failed"])
    ledger, path = Ledger(store), store.reports / INDEX
    pages.update_overview(ledger, "payments", WINDOW)
    first = identity(path)
    pages.update_overview(ledger, "payments", WINDOW)
    assert identity(path) == first  # the very same file
    change(store)
    pages.update_overview(ledger, "payments", WINDOW)
    assert path.read_bytes() == pages.overview_page(ledger, "payments", WINDOW)[1]


def test_what_cannot_be_written_is_logged_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = every_kind(tmp_path, ["usual"])
    ledger = Ledger(store)

    def broken(*_: object) -> None:
        raise RuntimeError("zq-secret")

    with monkeypatch.context() as patched:
        patched.setattr(pages, "overview", broken)
        pages.update_overview(ledger, "payments", WINDOW)
    (line,) = (record.getMessage() for record in caplog.records)
    assert line == "payments: the overview could not be written: RuntimeError"
    assert not (store.reports / INDEX).exists()
    pages.update_overview(ledger, "payments", WINDOW)
    assert (store.reports / INDEX).exists()


# ---------------------------------------------------------------- the page


def full(words: str, link: str = "report-1.html") -> Overview:
    """A batch of every state in which every text is ``words``."""
    lines = [
        BatchLine(
            words, words, words, state, 60, 50, 3, 2.5, (0, 6), 0.25, (words,) * 5, words, words, words, words, link
        )
        for state in STATES
    ]
    groups = tuple(
        GroupLine(words, words, state, 3, words, words, words, words, words, words, words)
        for state in ("open", "acknowledged") * 11
    )
    return Overview(words, tuple(lines), 99, (IncidentLine(words, words, words, words),) * 12, groups)


@functools.cache
def harmless() -> list[Page]:
    return [Page(page) for page in both("harmless")]


def both(words: str) -> list[str]:
    return [overview_to_html(full(words), words), site_to_html([Linked(full(words), "a/b.html")] * 2)]


@pytest.mark.parametrize("payload", PAYLOADS)
def test_every_text_stays_a_text(payload: str) -> None:
    for page, expected in zip(both(payload), harmless(), strict=True):
        assert intruders(page, expected) == []
        page.encode("utf-8")
        assert text(payload, 36)[:35] in "".join(Page(page).words)


def test_a_template_that_does_not_escape_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    careless = html.with_filters(Environment(autoescape=False, undefined=StrictUndefined, trim_blocks=True))
    monkeypatch.setattr(overview_html, "environment", lambda: careless)
    with_tags = [p for p in PAYLOADS if re.match(r"[^<]*</?[a-zA-Z]", p) and "\x00" not in p and "\ud800" not in p]
    for payload in with_tags:
        assert all(intruders(page, twin) for page, twin in zip(both(payload), harmless(), strict=True)), payload


ADDRESSES = [
    *PAYLOADS,
    "//evil.example/x.html",
    "https:x.html",
    "../x.html",
    "x.html#",
    "x.html\n",
    " x.html",
    "x.htm",
    "",
]


@pytest.mark.parametrize("address", ADDRESSES)
def test_no_other_address_than_that_of_a_report_becomes_a_link(address: str) -> None:
    assert links(overview_to_html(full("x", address))) == []
    unquoted = {c for c in address if not c.isascii() or not (c.isalnum() or c in "._~/%-")}
    assert bool(links(site_to_html([Linked(full("x"), address)]))) == (not unquoted and bool(address))


def links(page: str) -> list[tuple[str, str]]:
    return re.findall(r'<a href="(.*?)"><bdi>(.*?)</bdi></a>', page)


def test_the_pages_run_and_load_nothing_and_have_headings_in_order() -> None:
    for page in both("harmless"):
        nodes = Page(page).nodes
        assert not {tag for tag, _ in nodes} & {"script", "iframe", "object", "embed", "link", "base", "form", "img"}
        attributes = [(n, v or "") for _, found in nodes if isinstance(found, list) for n, v in found]
        assert not [n for n, _ in attributes if n.startswith("on") or n in ("src", "srcset", "action")]
        assert all("url(" not in v and "javascript" not in v for _, v in attributes)
        css = "".join(value for tag, value in nodes if tag == "css")
        assert "url(" not in css and "@import" not in css
        assert [v for n, v in attributes if n == "content" and v.startswith("default-src 'none'; style-src 'unsafe-in")]
        levels = [int(tag[1]) for tag, _ in nodes if re.fullmatch(r"h[1-6]", tag)]
        assert levels.count(1) == 1 and levels[0] == 1
        assert all(after - before <= 1 for before, after in pairwise(levels))
        ids = [v for n, v in attributes if n == "id"]
        assert len(ids) == len(set(ids))
        assert {v for n, v in attributes if n == "aria-labelledby"} <= set(ids)


@pytest.mark.parametrize("character", ["W", "'", "😀", "\u202e", "\u0301", "&"])
def test_the_pages_are_under_two_megabytes_whatever_the_batches(character: str) -> None:
    one = replace(full(character * 10_000).batches[0], rows=10**18, scored=10**18, flagged=10**18)
    words = full(character * 10_000)
    huge = replace(words, batches=(one, *words.batches) * 40, total=10**9)
    for page in (overview_to_html(huge), site_to_html([Linked(huge, "x" * 400)] * 1_000)):
        assert len(page.encode()) < 1_950_000
    assert overview_to_html(huge).count('<th scope="row">') == MAX_BATCHES + 10 + 20  # incidents, and groups
    assert "And 2 more." in overview_to_html(huge)
    assert f"and {1_000 - MAX_MONITORS} more monitors" in site_to_html([Linked(huge, "x")] * 1_000)


@pytest.mark.parametrize(
    "odd",
    [
        {"expected_flagged": float("nan")},
        {"expected_flagged": float("inf"), "missing": float("inf")},
        {"flagged_range": (5, 1)},
        {"flagged_range": None, "flagged": 0},
        {"rows": 0, "scored": 0, "flagged": 0},
        {"missing": float("nan")},
    ],
)
def test_odd_numbers_have_a_page(odd: dict[str, Any]) -> None:
    odd_one = replace(full("x").batches[-1], **odd)
    for batches in ((odd_one,), (odd_one, *full("x").batches)):
        words = "".join(Page(overview_to_html(Overview("m", batches))).words)
        assert not re.search(r"\b(nan|inf|None)\b", words.replace("None of", ""))


def test_the_chart_has_each_batch_in_its_place() -> None:
    line = BatchLine("n", "b", "2026-01-05T06:00:00Z", "usual", 100, 100, 5, 5.0, (1, 10), 0.0, (), "", "", "1", "t-1")
    second = replace(line, model_version="2", threshold_version="t-2")
    batches = (*[line] * 8, replace(line, state="quarantined", model_version=""), *[second] * 9)
    batches += (
        replace(second, threshold_version="t-3", state="shifted", flagged=80),
        replace(line, state="far_more", flagged=30),
    )
    page = overview_to_html(Overview("m", batches))
    spans = re.findall(r'<span style="width:([\d.]+)%">model (.*?)</span>', page)
    assert spans == [("45.00", "1"), ("45.00", "2"), ("5.00", "2, threshold t-3"), ("5.00", "1")]
    assert re.findall(r'class="change" style="left:([\d.]+)%"', page) == ["45.00", "90.00", "95.00"]
    paths = dict(re.findall(r'<path class="(.*?)" d="(.*?)"/>', page))
    assert [paths[name].count("M") for name in ("ranges", "means", "shifted", "refused")] == [19, 19, 1, 1]
    assert [paths[f"dots {tone}"].count("M") for tone in ("calm", "look", "alarm")] == [17, 0, 2]
    assert paths["shifted"].startswith("M900.0,0.00h50.0")
    heights = [float(y) for y in re.findall(r"M[\d.]+,([\d.]+)h", paths["dots alarm"])]
    low, usual = heights[0], float(re.search(r"M[\d.]+,([\d.]+)h", paths["dots calm"])[1])  # type: ignore[index]
    assert low == 8.0 < heights[1] < usual < 100
    assert page.count("<title>") == len(batches) + 1
    assert [d for _, d in re.findall(r'<span style="left:([\d.]+)%">(2026-01-05)</span>', page)] == ["2026-01-05"]


# ---------------------------------------------------------------- several monitors


def at(folder: Path, *states: str) -> tuple[Any, Overview]:
    store = every_kind(folder, states)
    return SimpleNamespace(store=store), pages.write_overview(Ledger(store), "payments", WINDOW)[0]


@pytest.mark.parametrize("name", ["plain", "a b#c?d%e", "javascript:alert(1)", '"><script>', "ü\u202e", "\udcff"])
def test_a_link_leads_to_the_overview_of_its_monitor_whatever_the_folders_are_called(tmp_path: Path, name: str) -> None:
    monitors = [at(tmp_path / name / "output", "usual"), at(tmp_path / "b", "shifted")]
    page = pages.write_site(monitors, tmp_path / f"{name} site")
    found = links(page.read_text())
    reached = [Path(os.fsdecode(urlparse(urljoin(page.as_uri(), href)).path)) for href, _ in found]
    expected = [ws.store.reports / INDEX for ws, _ in monitors]
    assert [unquote(str(path), errors="surrogateescape") for path in reached] == [str(path) for path in expected]
    assert "1 of 2 monitors has batches that need a look" in page.read_text()
    assert "At 1 of them the latest batch does." in page.read_text()
    assert os.listdir(page.parent) == [INDEX]
    before = page.read_bytes()
    assert pages.write_site(monitors, page.parent).read_bytes() == before


def test_the_page_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    monitor = at(tmp_path / "output", "usual")
    (tmp_path / INDEX).write_text("<title>welcome</title>")
    with pytest.raises(ConfigError, match="a folder without a page of another kind"):
        pages.write_site([monitor], tmp_path)
    with pytest.raises(ConfigError, match="a folder without a page of another kind"):
        pages.write_site([monitor], monitor[0].store.reports)
    assert (tmp_path / INDEX).read_text() == "<title>welcome</title>"
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="a folder that can be written"):
        pages.write_site([monitor], tmp_path / "file")


def test_the_last_incidents_are_shown_newest_first_and_a_new_one_is_news(tmp_path: Path) -> None:
    store = Store(tmp_path / "output").prepare(MONITOR)
    put(store, "day.parquet", b"1")
    ledger = Ledger(store)
    for i in range(12):
        ledger.note(Incident(f"volume-{i:012d}", MONITOR, "volume", f"day-{i}.parquet", f"{i} records.", "Look."))
        os.utime(store.incidents / f"volume-{i:012d}.json", (1000 + i, 1000 + i))
    pages.update_overview(ledger, MONITOR, WINDOW)
    page = (store.reports / INDEX).read_text()
    shown = re.findall(r"day-(\d+)\.parquet", page[page.index("Incidents, the newest first") : page.index("Batches,")])
    assert shown == [str(i) for i in range(11, 1, -1)]
    ledger.note(Incident("stale-0123456789ab", MONITOR, "stale", "day.parquet", "too old.", "Fit."))
    pages.update_overview(ledger, MONITOR, WINDOW)
    assert "Stale calibration" in (store.reports / INDEX).read_text()
