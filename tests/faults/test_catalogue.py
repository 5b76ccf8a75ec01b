"""Rows of the fault catalogue through the whole scorer: the verdict, and nothing else disturbed.

Every run has a good batch beside the bad one: it must be committed with the bytes that it has alone, the store must be
sound, and no marked cell may be shown where a refusal is told. Reading and the contract by themselves are tested in
test_inputs.py; here it is what becomes of a file. Tests are named by the row's id.
"""

from __future__ import annotations

import csv
import datetime as dt
import functools
import gzip
import io
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from pipeline_samples import MONITOR, copy, deliver, parquet, shared_store, table, write_monitor
from store_samples import tree

from vae_anomaly import pipelines, scoring
from vae_anomaly.errors import ConfigError, DataError
from vae_anomaly.fitting import Fit, fit_detector
from vae_anomaly.report.model import Report
from vae_anomaly.schema import check as check_records
from vae_anomaly.scoring import BatchOutcome
from vae_anomaly.store.check import check
from vae_anomaly.store.records import Commit, Quarantine
from vae_anomaly.store.score_files import SCORE_SCHEMA, read_scores
from vae_anomaly.tracking import Tracker
from vae_anomaly.workspace import Workspace

MARK, NUMBER = "zq-private", 8765432.25  # no other text of a test, record or message holds them
MARKS = (MARK, "8765432")
CANARY = "z-canary.parquet"
ROWS = 12
NAMES = table(1).column_names


# ---------------------------------------------------------------- records


def good(rows: int = ROWS, seed: int = 50) -> pa.Table:
    return table(rows, seed)


def put(name: str, column: Any, content: pa.Table | None = None) -> pa.Table:
    """Good records with another column ``name``."""
    column = pa.array(column) if isinstance(column, list) else column
    content = good(len(column)) if content is None else content
    return content.set_column(content.column_names.index(name), name, column)


def marked() -> pa.Table:
    """Records whose cells must not be shown."""
    content = put("amount", [NUMBER] * ROWS)
    return put("shop", [MARK] * ROWS, content)


def text(cell: Any) -> str:
    if cell is None:
        return ""
    return cell.isoformat() if isinstance(cell, dt.datetime) else str(cell)


def as_csv(content: pa.Table, *, delimiter: str = ",", header: list[str] | None = None) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, lineterminator="\n")
    writer.writerow(header or content.column_names)
    writer.writerows([text(cell) for cell in row.values()] for row in content.to_pylist())
    return out.getvalue().encode()


def as_jsonl(content: pa.Table) -> bytes:
    return "".join(json.dumps(row, default=text) + "\n" for row in content.to_pylist()).encode()


def with_row(content: bytes, at: int, change: Callable[[list[str]], list[str]]) -> bytes:
    """CSV with the fields of one row changed (the header is row 0)."""
    lines = content.decode().splitlines()
    lines[at] = ",".join(change(lines[at].split(",")))
    return ("\n".join(lines) + "\n").encode()


# ---------------------------------------------------------------- one run


@dataclass(frozen=True)
class Run:
    """What became of each file of a scoring run."""

    ws: Workspace
    outcomes: dict[str, BatchOutcome]
    log: str

    def commit(self, name: str) -> Commit:
        found = self.outcomes[name].commit
        assert found, self.outcomes[name].problem
        return found

    def refusal(self, name: str) -> Quarantine:
        found = self.outcomes[name].quarantine
        assert found, f"{name} was not refused"
        return found

    def report(self, name: str) -> Report:
        return scoring.read_report(self.ws.store, self.commit(name).batch_id)

    def scores(self, name: str) -> pa.Table:
        path = self.ws.store.root / self.commit(name).scores.file
        return pa.concat_tables([SCORE_SCHEMA.empty_table(), *read_scores(path)])

    def decisions(self, name: str) -> list[tuple[Any, ...]]:
        """Record id, status, score (every bit), p-value and flag of each row."""
        columns = ("record_id", "status", "score", "p_value", "is_anomaly")
        return list(zip(*(self.scores(name)[c].to_pylist() for c in columns), strict=True))

    def by_id(self, name: str) -> dict[str, tuple[Any, ...]]:
        return {row[0]: row[1:] for row in self.decisions(name)}

    def told(self, name: str) -> str:
        """Every text that says why a file was refused or what became of it, but for the report of flagged records."""
        batch = (self.outcomes[name].quarantine or self.commit(name)).batch_id
        store, refused = self.ws.store, self.outcomes[name].quarantine
        folders = [store.quarantine, store.outbox, *([store.alerts] if refused else [store.commits])]
        files = [path.read_text() for folder in folders for path in folder.glob(f"{batch}*")]
        return "\n".join([*files, self.outcomes[name].problem, self.log])


def files_of(ws: Workspace, commit: Commit) -> dict[str, str]:
    """The bytes of everything that a batch left behind but the alerts, which name the workspace."""
    return {
        n: d for n, d in tree(ws.store.root).items() if Path(n).name.startswith(commit.batch_id) and n[:6] != "alerts"
    }


def score(ws: Workspace) -> dict[str, BatchOutcome]:
    """One scoring run that is not recorded in MLflow and not synced."""
    with mock.patch.object(Tracker, "log_scoring"), mock.patch.object(os, "fsync"):
        return {outcome.name: outcome for outcome in scoring.score(ws).batches}


@functools.cache
def canary_alone() -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        ws = Workspace.open(copy(Path(folder)))
        deliver(ws.monitor.path.parent, **{CANARY: table(20, 99, frauds=2)})
        return files_of(ws, score(ws)[CANARY].commit)  # type: ignore[arg-type]


@pytest.fixture
def scored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Callable[..., Run]:
    """``scored(**{"name": content}, ...)``: deliver beside the good batch and score; what must always hold, holds."""
    caplog.set_level(logging.INFO)
    canary_alone()
    ws = Workspace.open(copy(tmp_path))

    def run(**files: bytes | pa.Table) -> Run:
        deliver(ws.monitor.path.parent, **files, **{CANARY: table(20, 99, frauds=2)})
        before = tree(ws.monitor.source.inbox)
        found = Run(ws, score(ws), caplog.text)
        commits = [commit for commit in pipelines.Ledger(ws.store).commits() if commit.name == CANARY]
        assert len(commits) == 1
        assert files_of(ws, commits[0]) == canary_alone()
        assert check(ws.store) == []
        assert tree(ws.monitor.source.inbox) == before
        assert [o.problem for o in found.outcomes.values() if o.verdict == "failed"] == []
        states = {(s.name, s.sha256): s.state for s in scoring.status(ws)}
        assert "pending" not in states.values()
        assert score(ws) == {}  # a second run has nothing to do
        for name in found.outcomes:
            assert not [mark for mark in MARKS if mark in found.told(name)]
        return found

    return run


# ---------------------------------------------------------------- files that are refused

CUT = parquet(marked())
LATIN = as_csv(marked())[:-1] + "\u00e9".encode("latin-1") + b"\n"
REFUSED: list[tuple[str, str, bytes | pa.Table, str, str | None, tuple[int, ...]]] = [
    ("A1-zero-bytes", "b.csv", b"", "empty_file", None, ()),
    ("A1-white-space", "b.csv", b" \n\n\t\n", "empty_file", None, ()),
    ("A1-json", "b.jsonl", b"\n", "empty_file", None, ()),
    ("A3-zero-bytes", "b.parquet", b"", "empty_file", None, ()),
    ("A3-four-bytes", "b.parquet", b"PAR1", "truncated", None, ()),
    ("A7-parquet", "b.parquet", marked().drop_columns(["amount"]), "missing_column", "amount", ()),
    ("A7-csv", "b.csv", as_csv(marked().drop_columns(["amount"])), "missing_column", "amount", ()),
    ("A7-json", "b.jsonl", as_jsonl(marked().drop_columns(["amount"])), "missing_column", "amount", ()),
    ("A11-csv", "b.csv", as_csv(marked(), header=[*NAMES[:-1], "amount"]), "duplicate_column", "amount", ()),
    ("A12-parquet", "b.parquet", marked().append_column("fee", marked()["fee"]), "duplicate_column", "fee", ()),
    ("A12-json", "b.jsonl", b'{"amount": 8765432.25, "amount": 1}\n', "duplicate_column", "amount", (0,)),
    ("A32-naive", "b.parquet", put("at", [dt.datetime(2026, 1, 1)] * ROWS, marked()), "naive_timestamp", "at", ()),
    ("A39-list", "b.parquet", put("amount", [[NUMBER]] * ROWS), "nested_type", "amount", ()),
    ("A39-struct", "b.parquet", put("shop", [{"name": MARK}] * ROWS), "nested_type", "shop", ()),
    ("A39-map", "b.parquet", put("id", pa.array([[(MARK, 1)]] * ROWS, pa.map_(pa.string(), pa.int64()))),
     "nested_type", "id", ()),
    ("A39-json", "b.jsonl", as_jsonl(put("shop", [[MARK]] * ROWS)), "nested_type", "shop", ()),
    ("A41-latin-1", "b.csv", LATIN, "encoding", None, (ROWS - 1,)),
    ("A42-utf-16", "b.csv", as_csv(marked()).decode().encode("utf-16"), "encoding", None, ()),
    ("A43-short-row", "b.csv", with_row(as_csv(marked()), 3, lambda row: row[:-1]), "ragged", None, (2,)),
    ("A44-long-row", "b.csv", with_row(as_csv(marked()), 5, lambda row: [*row, MARK]), "ragged", None, (4,)),
    ("A45-all-rows-long", "b.csv", as_csv(marked(), header=NAMES[:-1]), "ragged", None, (0,)),
    ("A46-semicolon", "b.csv", as_csv(marked(), delimiter=";"), "missing_column", "amount", ()),
    ("A46-decimal-comma", "b.csv", as_csv(put("amount", ["8765432,25"] * ROWS)), "wrong_type", "amount",
     (0, 1, 2, 3, 4)),
    ("A56-csv-as-parquet", "b.parquet", as_csv(marked()), "wrong_format", None, ()),
    ("A56-parquet-as-csv", "b.csv", CUT, "wrong_format", None, ()),
    ("A56-gzip", "b.csv", gzip.compress(as_csv(marked()), mtime=0), "wrong_format", None, ()),
    ("A56-gzip-suffix", "b.csv.gz", gzip.compress(as_csv(marked()), mtime=0), "unknown_format", None, ()),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "rule", "column", "rows"), [pytest.param(*c[1:], id=c[0]) for c in REFUSED]
)
def test_refused(
    scored: Callable[..., Run], name: str, content: Any, rule: str, column: str | None, rows: tuple[int, ...]
) -> None:
    run = scored(**{name: content})
    refusal = run.refusal(name)
    assert (refusal.rule, refusal.column, tuple(refusal.first_rows)) == (rule, column, rows)
    assert (refusal.name, refusal.file, refusal.path) == (name, name, f"inbox/{name}")
    assert refusal.problem
    assert refusal.remedy
    reason = run.ws.store.quarantine / f"{refusal.batch_id}.json"
    assert run.outcomes[name].report == reason
    assert json.loads(reason.read_bytes())["rule"] == rule
    assert (run.ws.store.alerts / f"{refusal.batch_id}.json").is_file()
    assert refusal.batch_id in run.log


def test_all_that_is_refused_at_once_is_refused_each_by_its_own_rule(scored: Callable[..., Run]) -> None:
    files = {f"{case[0]}-{case[1]}": case[2] for case in REFUSED}
    expected = {f"{case[0]}-{case[1]}": case[3] for case in REFUSED}
    run = scored(**files, **{"good.parquet": good()})
    found = {name: outcome.quarantine.rule for name, outcome in run.outcomes.items() if outcome.quarantine}
    del expected["A3-zero-bytes-b.parquet"]  # the same content as A1 is the same batch
    assert found == expected
    assert run.commit("good.parquet").scored == ROWS


def test_a04_truncated_anywhere(scored: Callable[..., Run]) -> None:
    run = scored(**{f"b{part:02}.parquet": CUT[: len(CUT) * part // 16] for part in range(1, 16)})
    assert {run.refusal(f"b{part:02}.parquet").rule for part in range(1, 16)} == {"truncated"}


@pytest.mark.parametrize(
    ("found", "shown"),
    [("Amount", "'Amount'"), ("amount ", "'amount '"), ("amounts", "'amounts'"), ("am\u00f3unt", "'am\u00f3unt'")],
)
def test_a10_a_renamed_column_is_suggested(scored: Callable[..., Run], found: str, shown: str) -> None:
    names = [found if name == "amount" else name for name in NAMES]
    refusal = scored(**{"b.parquet": marked().rename_columns(names)}).refusal("b.parquet")
    assert (refusal.rule, refusal.column) == ("missing_column", "amount")
    assert shown in refusal.problem


def test_a46_the_delimiter_is_hinted_at(scored: Callable[..., Run]) -> None:
    refusal = scored(**{"b.csv": as_csv(marked(), delimiter=";")}).refusal("b.csv")
    assert "source.csv.delimiter" in refusal.remedy


# ---------------------------------------------------------------- rows that cannot be scored


def test_a18_missing_cells_are_counted_and_not_taken_for_normal(scored: Callable[..., Run]) -> None:
    holes = put("fee", pa.nulls(ROWS, pa.float64()).fill_null(float("nan")), good())
    one = good().to_pylist()
    one[3] |= {"fee": None}
    one[5] |= dict.fromkeys(("amount", "fee", "items", "paid", "shop", "at"))
    run = scored(
        **{"base.parquet": good(), "nan.parquet": holes, "one.csv": as_csv(pa.Table.from_pylist(one, good().schema))}
    )
    base, nan, one_hole = (run.decisions(name) for name in ("base.parquet", "nan.parquet", "one.csv"))
    assert all(status == "ok" and np.isfinite(value) for _, status, value, *_ in nan)
    assert one_hole[3][2] > base[3][2]  # fees were never missing in training
    assert [row for i, row in enumerate(one_hole) if i not in (3, 5)] == [
        r for i, r in enumerate(base) if i not in (3, 5)
    ]
    assert one_hole[5][1:] == ("unscorable:all_missing", None, None, False)
    assert dict(run.commit("one.csv").unscorable) == {"all_missing": 1}
    assert {c.column: round(c.missing * 11) for c in run.report("one.csv").columns}["fee"] == 1


@pytest.mark.parametrize("cell", ["inf", "-inf", "1e400"])
def test_a19_infinite_values_are_unscorable(scored: Callable[..., Run], cell: str) -> None:
    content = with_row(as_csv(good()), 3, lambda row: [row[0], row[1], cell, *row[3:]])
    run = scored(**{"b.csv": content})
    assert dict(run.commit("b.csv").unscorable) == {"non_finite:fee": 1}
    assert run.decisions("b.csv")[2][1:] == ("unscorable:non_finite:fee", None, None, False)
    assert "1 more could not be scored" in run.report("b.csv").verdict


@pytest.mark.parametrize("value", [1e300, -1e300, 1e20])
def test_a20_huge_finite_values_are_anomalies_and_not_nan(scored: Callable[..., Run], value: float) -> None:
    fees = good()["fee"].to_pylist()
    run = scored(**{"b.parquet": put("fee", [*fees[:4], value, *fees[5:]])})
    _, status, score, p_value, flag = run.decisions("b.parquet")[4]
    assert (status, flag) == ("ok", True)
    assert np.isfinite(score)
    assert p_value == min(row[3] for row in run.decisions("b.parquet"))
    strangest = run.report("b.parquet").records[0]
    assert (strangest.row_index, strangest.contributions[0].column) == (4, "fee")
    assert sum(c.nats for c in strangest.contributions) + strangest.rest_nats == pytest.approx(score)


def test_a13_a36_cells_that_are_no_exact_numbers_cost_their_rows(scored: Callable[..., Run]) -> None:
    content = as_csv(good())
    for at, column, cell in ((2, 1, MARK), (4, 3, str(2**53 + 1)), (6, 4, MARK), (7, 6, MARK)):
        content = with_row(content, at, lambda row, c=column, v=cell: [*row[:c], v, *row[c + 1 :]])
    run = scored(**{"b.csv": content, "base.parquet": good()})
    commit = run.commit("b.csv")
    reasons = ["wrong_dtype:amount", "integer_beyond_2_53:items", "wrong_dtype:paid", "wrong_dtype:at"]
    assert dict(commit.unscorable) == dict.fromkeys(reasons, 1)
    assert (commit.rows, commit.scored) == (ROWS, ROWS - 4)
    found, base = run.decisions("b.csv"), run.decisions("base.parquet")
    bad = (1, 3, 5, 6)
    assert [found[i][1].removeprefix("unscorable:") for i in bad] == reasons
    assert [row for i, row in enumerate(found) if i not in bad] == [row for i, row in enumerate(base) if i not in bad]
    everything = [
        path.read_text() for path in run.ws.store.root.rglob(f"{commit.batch_id}*") if path.suffix != ".parquet"
    ]
    assert everything
    assert not [text for text in everything if MARK in text]


def test_a36_nullable_integers_and_large_ids(scored: Callable[..., Run]) -> None:
    items = good()["items"].to_pylist()
    nullable = put("items", pa.array([None, *items[1:]], pa.int64()))
    ids = [2**53 + 1, *range(2, ROWS), 2**62]
    run = scored(**{"b.parquet": put("id", pa.array(ids, pa.int64()), nullable), "base.parquet": good()})
    assert [row[0] for row in run.decisions("b.parquet")] == [str(i) for i in ids]
    found, base = ([row[1:] for row in run.decisions(n)] for n in ("b.parquet", "base.parquet"))
    assert found[1:] == base[1:]
    assert found[0][0] == "ok"


# ---------------------------------------------------------------- batches that are scored and told


def test_a02_a_header_without_records_is_committed_and_told(scored: Callable[..., Run]) -> None:
    run = scored(**{"b.csv": as_csv(good(0)), "c.parquet": good(0)})
    for name in ("b.csv", "c.parquet"):
        commit = run.commit(name)
        assert (commit.rows, commit.scored, commit.flagged, commit.alert) == (0, 0, 0, True)
        assert run.report(name).notes == ("The file has a header and no records.",)
        assert run.scores(name).num_rows == 0


@pytest.mark.parametrize("column", ["amount", "paid", "shop", "at"])
def test_a16_a_column_that_is_suddenly_empty_is_told(scored: Callable[..., Run], column: str) -> None:
    rows = 60
    empty = good(rows).set_column(NAMES.index(column), column, pa.nulls(rows, good().schema.field(column).type))
    run = scored(**{"b.parquet": empty, "base.parquet": good(rows)})
    quality = {c.column: c for c in run.report("b.parquet").columns}
    assert quality[column].warning.startswith("100.0% of the cells are missing")
    assert run.commit("b.parquet").alert
    assert not [c.column for c in run.report("base.parquet").columns if c.warning]
    found, base = (np.array([row[2] for row in run.decisions(n)]) for n in ("b.parquet", "base.parquet"))
    if column != "amount":  # whose cells are missing now and then
        assert (found > base).mean() > 0.9


def test_a27_five_thousand_columns_more_change_nothing_and_a_long_cell_costs_itself(scored: Callable[..., Run]) -> None:
    wide = good()
    for i in range(5000):
        wide = wide.append_column(f"extra {i}", pa.array([1.5] * ROWS))
    cell = "x" * 10_000_000
    long = put("shop", [cell, *good()["shop"].to_pylist()[1:]], put("id", [cell, *good()["id"].to_pylist()[1:]]))
    files = {"base.parquet": good(), "wide.parquet": wide, "wide.csv": as_csv(wide)}
    run = scored(**files, **{"long.parquet": long, "long.jsonl": as_jsonl(long), "long.csv": as_csv(long)})
    base = run.decisions("base.parquet")
    assert run.decisions("wide.parquet") == run.decisions("wide.csv") == base
    assert len(run.report("wide.parquet").extra_columns) == 5000
    found = run.decisions("long.parquet")
    assert found[1:] == base[1:] and found[0][2] > base[0][2]
    assert len(run.report("long.parquet").to_json()) < 200_000
    assert {run.refusal(name).rule for name in ("long.jsonl", "long.csv")} == {"row_too_long"}


def test_a28_a30_unseen_categories_are_evidence_and_told(scored: Callable[..., Run]) -> None:
    shops = good()["shop"].to_pylist()
    one = put("shop", [*shops[:7], "airport", *shops[8:]])
    run = scored(**{"base.parquet": good(), "b.parquet": one, "c.parquet": put("shop", [f"s{i}" for i in range(ROWS)])})
    base, found = run.decisions("base.parquet"), run.decisions("b.parquet")
    assert [row for i, row in enumerate(found) if i != 7] == [row for i, row in enumerate(base) if i != 7]
    assert found[7][2] > base[7][2]
    said = {
        name: {c.column: c.warning for c in run.report(name).columns}["shop"] for name in ("b.parquet", "c.parquet")
    }
    assert said == {
        name: f"{n} cells hold values never seen in training." for name, n in zip(said, (1, 12), strict=True)
    }
    assert run.commit("b.parquet").alert
    assert all(b[2] > a[2] for a, b in zip(base, run.decisions("c.parquet"), strict=True))


def test_a51_a52_repeated_ids_are_kept_and_told(scored: Callable[..., Run]) -> None:
    twice = put("id", ["p", "p", *(f"q{i}" for i in range(ROWS - 2))])
    run = scored(**{"base.parquet": good(), "b.parquet": twice, "c.parquet": good().slice(0, 6)})
    assert [row[1:] for row in run.decisions("b.parquet")] == [row[1:] for row in run.decisions("base.parquet")]
    assert run.report("b.parquet").notes == ("1 records repeat an id of this batch; every row was scored.",)
    assert run.decisions("c.parquet") == run.decisions("base.parquet")[:6]
    assert run.report("c.parquet").notes == ()


# ---------------------------------------------------------------- the same records, the same scores


def dictionaries(order: list[str]) -> pa.Table:
    words = good()["shop"].to_pylist()
    codes = pa.array([order.index(word) for word in words], pa.int8())
    return put("shop", pa.DictionaryArray.from_arrays(codes, order))


def in_zone(zone: str) -> pa.Table:
    return put("at", good()["at"].cast(pa.timestamp("us", zone)).combine_chunks())


def permuted(seed: int) -> pa.Table:
    return good().select(np.random.default_rng(seed).permutation(NAMES).tolist())


SAME: list[tuple[str, str, bytes | pa.Table]] = [
    ("A8-extra", "b.parquet", good().append_column("note", pa.array([MARK] * ROWS))),
    ("A8-unknown", "b.parquet", good().add_column(0, "x", pa.array([[MARK]] * ROWS))),
    ("A9-order", "b.parquet", permuted(0)),
    ("A9-order-csv", "b.csv", as_csv(permuted(1))),
    ("A29-codes", "b.parquet", dictionaries(["kiosk", "fuel", "cafe"])),
    ("A29-unused", "b.parquet", dictionaries(["x", "fuel", "kiosk", "y", "cafe"])),
    ("A29-chunks", "b.parquet", parquet(dictionaries(["fuel", "kiosk", "cafe"]), row_group_size=5)),
    ("A32-tokyo", "b.parquet", in_zone("Asia/Tokyo")),
    ("A32-lima", "b.parquet", in_zone("America/Lima")),
    ("A32-text", "b.csv", as_csv(in_zone("Asia/Kolkata"))),
    ("A42-mark", "b.csv", b"\xef\xbb\xbf" + as_csv(good())),
    ("format-csv", "b.csv", as_csv(good())),
    ("format-json", "b.jsonl", as_jsonl(good())),
    ("A55-rows", "b.parquet", good().take(np.random.default_rng(3).permutation(ROWS))),
]


@pytest.mark.parametrize(("name", "content"), [pytest.param(*case[1:], id=case[0]) for case in SAME])
def test_harmless_differences_change_no_bit(scored: Callable[..., Run], name: str, content: Any) -> None:
    run = scored(**{"base.parquet": good(), name: content})
    assert run.by_id(name) == run.by_id("base.parquet")
    assert run.commit(name).flagged == run.commit("base.parquet").flagged


def test_a08_extra_columns_are_recorded(scored: Callable[..., Run]) -> None:
    extra = good().append_column("note", pa.array(["n"] * ROWS)).append_column("colour", pa.array(["red"] * ROWS))
    assert scored(**{"b.parquet": extra}).report("b.parquet").extra_columns == ("colour",)  # notes are known


def test_a24_a_record_alone_has_the_score_that_it_has_in_its_batch(scored: Callable[..., Run]) -> None:
    big = table(3000, 60)
    at = (0, 1, 1023, 1024, 2999)
    run = scored(**{"base.parquet": big}, **{f"one-{i}.parquet": big.slice(i, 1) for i in at})
    base = run.decisions("base.parquet")
    assert [run.decisions(f"one-{i}.parquet") for i in at] == [[base[i]] for i in at]


def test_a31_na_is_a_country_in_a_category_and_missing_in_a_number(scored: Callable[..., Run]) -> None:
    shops, fees = good()["shop"].to_pylist(), good()["fee"].to_pylist()
    cells = [repr(fees[0]), "NA", *map(repr, fees[2:])]
    run = scored(**{"b.csv": as_csv(put("shop", ["NA", *shops[1:]], put("fee", cells)))})
    quality = {c.column: c for c in run.report("b.csv").columns}
    assert (quality["shop"].missing, quality["shop"].unseen) == (0.0, 1 / ROWS)
    assert quality["fee"].missing == 1 / ROWS
    assert run.commit("b.csv").scored == ROWS


@pytest.mark.parametrize("name", ["b.csv", "b.jsonl", "b.parquet"])
def test_a50_ids_stay_as_they_were_written(scored: Callable[..., Run], name: str) -> None:
    ids = ["007", "7", "1e5", "+1", "null", " x ", "0.10", *(f"p{i}" for i in range(ROWS - 7))]
    content = put("id", ids)
    run = scored(**{name: {"b.csv": as_csv, "b.jsonl": as_jsonl, "b.parquet": parquet}[name](content)})
    assert [row[0] for row in run.decisions(name)] == ids


# ---------------------------------------------------------------- deliveries


def test_a53_a_copy_is_not_scored_again(scored: Callable[..., Run]) -> None:
    run = scored(**{"a.parquet": good(), "b.parquet": good()})
    assert {name for name in run.outcomes if name != CANARY} == {"a.parquet"}
    again = scored(**{"c.parquet": good()})
    assert again.outcomes == {}
    states = {s.name: s.state for s in scoring.status(run.ws)}
    assert states == {"a.parquet": "committed", "b.parquet": "duplicate", "c.parquet": "duplicate", CANARY: "committed"}


def test_a54_new_content_under_an_old_name_is_a_new_batch_and_told(scored: Callable[..., Run]) -> None:
    first = scored(**{"b.parquet": good()})
    kept = files_of(first.ws, first.commit("b.parquet"))
    second = scored(**{"b.parquet": good(ROWS, 51)})
    assert first.commit("b.parquet").batch_id != second.commit("b.parquet").batch_id
    assert files_of(first.ws, first.commit("b.parquet")) == kept
    (note,) = second.report("b.parquet").notes
    assert first.commit("b.parquet").batch_id in note
    assert second.commit("b.parquet").alert
    found = {s.batch_id: s.state for s in scoring.status(first.ws) if s.name == "b.parquet"}
    assert found == {first.commit("b.parquet").batch_id: "superseded", second.commit("b.parquet").batch_id: "committed"}


def test_a54_a_file_that_was_mended_is_scored(scored: Callable[..., Run]) -> None:
    first = scored(**{"b.csv": as_csv(marked().drop_columns(["fee"]))})
    second = scored(**{"b.csv": as_csv(good())})
    assert second.commit("b.csv").scored == ROWS
    found = {s.batch_id: s.state for s in scoring.status(first.ws) if s.name == "b.csv"}
    assert found == {first.refusal("b.csv").batch_id: "superseded", second.commit("b.csv").batch_id: "committed"}


@pytest.mark.parametrize(("wrong", "right"), [("b.parquet", "b.csv"), ("b.txt", "b.csv"), ("b.csv.gz", "b.csv")])
def test_a56_a_refused_file_is_read_under_the_suffix_of_its_format(
    scored: Callable[..., Run], wrong: str, right: str
) -> None:
    """The remedy must work: the same bytes under another name are not taken for the refused ones."""
    first = scored(**{wrong: as_csv(good())})
    assert first.refusal(wrong).rule in ("wrong_format", "unknown_format")
    (first.ws.monitor.source.inbox / wrong).rename(first.ws.monitor.source.inbox / right)
    second = scored()
    assert second.commit(right).scored == ROWS
    assert {s.name: s.state for s in scoring.status(first.ws)} == {
        **{wrong: "quarantined", right: "committed", CANARY: "committed"}
    }


def test_a57_hidden_and_unfinished_names_are_ignored(scored: Callable[..., Run]) -> None:
    ignored = [".b.csv", "~b.csv", "b.csv~", "_SUCCESS", "b.csv.sha256"]
    ignored += [f"b.csv{s}" for s in (".tmp", ".part", ".partial", ".crdownload", ".swp")]
    run = scored(**dict.fromkeys(ignored, b"\0"))
    assert set(run.outcomes) == {CANARY}
    assert [s.name for s in scoring.status(run.ws)] == [CANARY]


def test_a58_a_link_or_a_pipe_is_refused_once(scored: Callable[..., Run], tmp_path: Path) -> None:
    (tmp_path / "secret.csv").write_bytes(as_csv(marked()))
    (tmp_path / "shops" / "inbox" / "link.csv").symlink_to(tmp_path / "secret.csv")
    os.mkfifo(tmp_path / "shops" / "inbox" / "pipe.csv")
    run = scored()
    assert {run.refusal(name).rule for name in ("link.csv", "pipe.csv")} == {"not_a_file"}


# ---------------------------------------------------------------- training records


def workspace(folder: Path, content: pa.Table, text: str = MONITOR) -> Workspace:
    """A monitor of its own with these training records."""
    made = write_monitor(folder / "fits", text.replace("name: shops", "name: fits"))
    pq.write_table(content, made / "training" / "normal.parquet")
    (folder / "mlflow.yml").write_text(shared_store())
    return Workspace.open(made)


def fit(ws: Workspace) -> Fit:
    """A fit that is not registered."""
    return fit_detector(pipelines.read_training(ws).records, ws.schema, ws.recipe)


def scores(fitted: Fit, ws: Workspace, content: pa.Table) -> np.ndarray:
    return fitted.detector.detect(check_records(content, ws.schema, first_row=0, file="f")).score


def test_a17_a_column_that_is_empty_in_training_is_named(tmp_path: Path) -> None:
    ws = workspace(tmp_path, put("fee", pa.nulls(400, pa.float64()), table(400, 1)))
    with pytest.raises(DataError) as caught:
        pipelines.fit(ws)
    assert (caught.value.rule, caught.value.column) == ("unusable_column", "fee")
    assert "ignore" in caught.value.remedy


@pytest.mark.parametrize("row", [7, 200, 399])
def test_a21_an_absurd_training_value_is_named(tmp_path: Path, row: int) -> None:
    fees = table(400, 1)["fee"].to_pylist()
    fees[row] = 1e300
    with pytest.raises(DataError) as caught:
        pipelines.fit(workspace(tmp_path, put("fee", fees, table(400, 1))))
    error = caught.value
    assert (error.rule, error.column, error.rows) == ("absurd_value", "fee", (row,))
    assert "1e+300" not in str(error)


@pytest.mark.parametrize("spread", [0.0, 1e-18, 1e-13])
def test_a22_a23_a_new_value_in_a_constant_column_raises_the_score(tmp_path: Path, spread: float) -> None:
    noise = 5.0 + spread * np.random.default_rng(0).normal(size=400)
    ws = workspace(tmp_path, put("fee", pa.array(noise), table(400, 1)))
    fitted = fit(ws)
    usual = scores(fitted, ws, put("fee", [5.0] * ROWS))
    assert np.isfinite(usual).all()
    for value in (5.5, 50.0, -5.0, 1e300):
        found = scores(fitted, ws, put("fee", [value] * ROWS))
        assert np.isfinite(found).all()
        assert (found > usual + 5).all()


@pytest.mark.parametrize(("rows", "error"), [(1, DataError), (7, DataError), (10, (ConfigError, DataError))])
def test_a25_too_few_training_records_are_refused_with_the_number(tmp_path: Path, rows: int, error: Any) -> None:
    with pytest.raises(error, match=r"\d+ (scorable normal records|calibration)"):
        pipelines.fit(workspace(tmp_path, table(rows, 1)))
