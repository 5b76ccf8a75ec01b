"""Rows A1 to A59 and B1 to B15 (and E5, E6, E13) of the fault catalogue, as far as reading and the contract decide.

Every test's name begins with its row's id. A refusal is checked for its rule, its column, its rows and for what it must
not show: the records hold marked values, and none may occur in the message, the reason file or a printed traceback.
What needs a fitted detector or a committed store (A17, A21 to A23, A25, A26, A54, B14) is tested there.
"""

from __future__ import annotations

import datetime as dt
import gzip
import hashlib
import io
import json
import os
import struct
import subprocess
import sys
import textwrap
import traceback
import unicodedata
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies
import numpy as np
import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vae_anomaly.batch import OK, Records, concatenate
from vae_anomaly.errors import DataError
from vae_anomaly.schema import Column, Schema, check
from vae_anomaly.store.sources import batch_id, list_inbox, open_delivery, read_chunks, read_header

NUMBER, TEXT = 87654.25, "zq-private"  # the marks: no other text of a test or message holds them
MARKS = ("87654", "zq-private")
SCHEMA = Schema(
    (
        Column("amount", "number"),
        Column("present", "boolean"),
        Column("kind", "category"),
        Column("at", "timestamp"),
    ),
    record_id="id",
    label="label",
    anomalous=("fraud",),
)
NAMES = [*SCHEMA.required, "label"]
ROW = ["87654.25", "true", TEXT, "2026-03-01T12:00:00Z", TEXT, "ok"]
RECORD = dict(zip(NAMES, ROW, strict=True))


@dataclass(frozen=True)
class Csv:
    delimiter: str = ","
    encoding: str = "utf-8"
    require_final_newline: bool = True


PLAIN = Csv()


def table(n: int = 8) -> pa.Table:
    """Good records."""
    start = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
    return pa.table(
        {
            "amount": NUMBER + np.arange(n),
            "present": [i % 2 == 0 for i in range(n)],
            "kind": [f"{TEXT}-{i % 3}" for i in range(n)],
            "at": pa.array([start + dt.timedelta(hours=i) for i in range(n)], pa.timestamp("us", "UTC")),
            "id": [f"{TEXT}-{i:03}" for i in range(n)],
            "label": ["fraud" if i == 3 else "ok" for i in range(n)],
        }
    )


def csv(*rows: list[str], header: list[str] = NAMES, end: str = "\n", delimiter: str = ",") -> bytes:
    return (end.join(delimiter.join(row) for row in [header, *rows]) + end).encode()


def jsonl(*rows: dict[str, Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(content: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(content, sink, **options)
    return bytes(sink.getvalue())


def put(name: str, column: Any) -> pa.Table:
    """Good records with another column ``name``."""
    column = pa.array(column) if isinstance(column, list) else column
    good = table(len(column))
    return good.set_column(good.column_names.index(name), name, column)


def replaced(name: str, cell: str) -> list[str]:
    return [cell if n == name else c for n, c in zip(NAMES, ROW, strict=True)]


@pytest.fixture
def receive(tmp_path: Path) -> Callable[..., Records]:
    """Deliver content and read it through the contract."""

    def receive(
        content: bytes | pa.Table,
        *,
        name: str = "f.parquet",
        schema: Schema = SCHEMA,
        options: Csv = PLAIN,
        size: int = 65_536,
    ) -> Records:
        path = tmp_path / name
        path.write_bytes(parquet(content) if isinstance(content, pa.Table) else content)
        parts: list[Records] = []
        with open_delivery(path) as delivery:
            for chunk in read_chunks(delivery, schema, options, rows=size):
                parts.append(check(chunk, schema, first_row=sum(map(len, parts)), file=delivery.name))
            delivery.assert_unchanged()
        return concatenate(parts)

    return receive


@pytest.fixture
def refuse(receive: Callable[..., Records]) -> Callable[..., DataError]:
    """Deliver content that must be refused; the error says where and shows no record."""

    def refuse(
        content: bytes | pa.Table, rule: str, column: str | None = None, rows: tuple[int, ...] = (), **how: Any
    ) -> DataError:
        with pytest.raises(DataError) as caught:
            receive(content, **how)
        error = caught.value
        assert (error.rule, error.column, error.rows) == (rule, column, rows)
        assert error.file == how.get("name", "f.parquet")
        assert error.problem
        assert error.remedy
        shown = "".join(traceback.format_exception(error)) + json.dumps(error.as_dict())
        assert not [mark for mark in MARKS if mark in shown]
        return error

    return refuse


def same(left: Records, right: Records) -> None:
    """Bit-identical values, ids, labels and states."""
    assert left.status.tolist() == right.status.tolist()
    assert left.record_ids.tolist() == right.record_ids.tolist()
    assert (left.labels is None) == (right.labels is None)
    assert left.labels is None or left.labels.tolist() == right.labels.tolist()  # type: ignore[union-attr]
    assert left.values.keys() == right.values.keys()
    for name, found in left.values.items():
        other = right.values[name]
        assert found.equals(other) if isinstance(found, pa.Array) else found.tobytes() == other.tobytes(), name


# ---------------------------------------------------------------- files that are refused, by row of the catalogue

LATIN = csv(ROW) + ",".join(replaced("kind", TEXT + "\u00e9")).encode("latin-1") + b"\n"
REFUSED: list[tuple[str, str, bytes | pa.Table, str, str | None, tuple[int, ...]]] = [
    ("A1-zero-bytes", "f.csv", b"", "empty_file", None, ()),
    ("A1-zero-bytes-json", "f.jsonl", b"", "empty_file", None, ()),
    ("A1-white-space", "f.csv", b" \n\n\t\n", "empty_file", None, ()),
    ("A1-blank-lines", "f.csv", b"\n\r\n\n", "empty_file", None, ()),
    ("A1-blank-lines-json", "f.jsonl", b"\n \n", "empty_file", None, ()),
    ("A3-zero-bytes", "f.parquet", b"", "empty_file", None, ()),
    ("A3-four-bytes", "f.parquet", b"PAR1", "truncated", None, ()),
    ("A3-eight-bytes", "f.parquet", b"PAR1PAR1", "truncated", None, ()),
    ("A6-footer-length", "f.parquet", b"PAR1" + b"\0" * 40 + b"\xff\xff\xff\x7fPAR1", "unreadable", None, ()),
    ("A6-footer-content", "f.parquet", b"PAR1" + b"\xff" * 40 + b"\x28\0\0\0PAR1", "unreadable", None, ()),
    ("A7-parquet", "f.parquet", table().drop_columns(["amount"]), "missing_column", "amount", ()),
    ("A7-csv", "f.csv", csv(ROW[1:], header=NAMES[1:]), "missing_column", "amount", ()),
    ("A7-json", "f.jsonl", jsonl(dict(zip(NAMES[1:], ROW[1:], strict=True))), "missing_column", "amount", ()),
    ("A11-csv", "f.csv", csv([*ROW, "1"], header=[*NAMES, "amount"]), "duplicate_column", "amount", ()),
    ("A11-csv-extra", "f.csv", csv([*ROW, "1", "2"], header=[*NAMES, "x", "x"]), "duplicate_column", "x", ()),
    ("A12-parquet", "f.parquet", table().append_column("amount", table()["amount"]), "duplicate_column", "amount", ()),
    ("A12-json", "f.jsonl", b'{"amount": 1, "amount": 87654}\n', "duplicate_column", "amount", (0,)),
    ("A13-most-cells", "f.csv", csv(*[replaced("amount", "87654 EUR")] * 2, ROW), "wrong_type", "amount", (0, 1)),
    ("A15-bool-for-number", "f.parquet", put("amount", [True, False]), "wrong_type", "amount", ()),
    ("A15-bool-for-number-json", "f.jsonl", jsonl(RECORD | {"amount": True}), "wrong_type", "amount", ()),
    ("A32-naive-parquet", "f.parquet", put("at", [dt.datetime(2026, 1, 1)]), "naive_timestamp", "at", ()),
    ("A32-naive-csv", "f.csv", csv(ROW, replaced("at", "2026-01-01 12:00:00")), "naive_timestamp", "at", (1,)),
    ("A33-epoch-numbers", "f.parquet", put("at", [1772366400]), "wrong_type", "at", ()),
    ("A39-list", "f.parquet", put("amount", [[NUMBER], [NUMBER]]), "nested_type", "amount", ()),
    ("A39-struct", "f.parquet", put("kind", [{TEXT: 1}]), "nested_type", "kind", ()),
    ("A39-map", "f.parquet", put("id", pa.array([[]], pa.map_(pa.string(), pa.string()))), "nested_type", "id", ()),
    ("A39-json", "f.jsonl", jsonl({**RECORD, "kind": [TEXT]}), "nested_type", "kind", ()),
    ("A40-binary", "f.parquet", put("kind", [TEXT.encode()]), "binary", "kind", ()),
    ("A40-binary-label", "f.parquet", put("label", [TEXT.encode()]), "binary", "label", ()),
    ("A40-duration", "f.parquet", put("amount", [dt.timedelta(days=1)]), "wrong_type", "amount", ()),
    ("A40-extension", "f.parquet", put("id", pa.array([b"0" * 16], pa.uuid())), "wrong_type", "id", ()),
    ("A41-latin-1", "f.csv", LATIN, "encoding", None, (1,)),
    ("A42-utf-16", "f.csv", csv(ROW).decode().encode("utf-16"), "encoding", None, ()),
    ("A42-utf-16-no-mark", "f.csv", csv(ROW).decode().encode("utf-16-le"), "nul_bytes", None, ()),
    ("A43-short-row", "f.csv", csv(ROW, ROW, ROW[:-1], ROW), "ragged", None, (2,)),
    ("A44-long-row", "f.csv", csv(ROW, [*ROW, TEXT], ROW), "ragged", None, (1,)),
    ("A45-all-rows-long", "f.csv", csv([*ROW, TEXT], [*ROW, TEXT]), "ragged", None, (0,)),
    ("A46-semicolon", "f.csv", csv(ROW, delimiter=";"), "missing_column", "amount", ()),
    ("A46-tab", "f.csv", csv(ROW, delimiter="\t"), "missing_column", "amount", ()),
    ("A46-decimal-comma", "f.csv", csv(*[replaced("amount", '"87654,25"')] * 3), "wrong_type", "amount", (0, 1, 2)),
    ("A47-unterminated-last", "f.csv", csv(ROW, replaced("label", '"' + TEXT)), "unclosed_quote", None, ()),
    ("A47-unterminated-inside", "f.csv", csv(ROW, replaced("kind", '"' + TEXT), ROW), "ragged", None, (1,)),
    ("A48-nul", "f.csv", csv(ROW, replaced("kind", TEXT + "\0")), "nul_bytes", None, (1,)),
    ("A49-json", "f.jsonl", jsonl(RECORD)[:-20], "broken_json", None, (0,)),
    ("A56-csv-as-parquet", "f.parquet", csv(ROW), "wrong_format", None, ()),
    ("A56-parquet-as-csv", "f.csv", parquet(table()), "wrong_format", None, ()),
    ("A56-gzip", "f.csv", gzip.compress(csv(ROW), mtime=0), "wrong_format", None, ()),
    ("A56-gzip-suffix", "f.csv.gz", gzip.compress(csv(ROW), mtime=0), "unknown_format", None, ()),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "rule", "column", "rows"), [pytest.param(*c[1:], id=c[0]) for c in REFUSED]
)
def test_refused(
    refuse: Callable[..., DataError], name: str, content: Any, rule: str, column: str | None, rows: Any
) -> None:
    refuse(content, rule, column, rows, name=name)


# ---------------------------------------------------------------- structure of a file


@pytest.mark.parametrize("name", ["f.csv", "f.parquet"])
def test_a02_header_only_is_no_rows(receive: Callable[..., Records], name: str) -> None:
    content = csv() if name == "f.csv" else table(0)
    assert len(receive(content, name=name)) == 0


@pytest.mark.parametrize("part", range(1, 64))
def test_a04_truncated_parquet(refuse: Callable[..., DataError], part: int) -> None:
    whole = parquet(table())
    refuse(whole[: len(whole) * part // 64], "truncated")


def test_a05_a_side_file_shows_a_flipped_bit(refuse: Callable[..., DataError], tmp_path: Path) -> None:
    content = bytearray(parquet(table()))
    (tmp_path / "f.parquet.sha256").write_text(hashlib.sha256(content).hexdigest())
    content[100] ^= 1
    refuse(bytes(content), "checksum_mismatch")


FUZZ = """
    import random, resource, sys
    from pathlib import Path
    from test_inputs import *
    resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30))
    whole, path, seen = parquet(table(200), write_page_checksum=True), Path(sys.argv[1]), {}
    good = check(table(200), SCHEMA, first_row=0, file="f")
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    for seed in range(800):  # 561: the reader stops early, without an error
        noise, content, part = random.Random(seed), bytearray(whole), "pages" if seed % 2 else "footer"
        if part == "footer":
            for _ in range(noise.choice((1, 1, 4, 64))):
                content[noise.randrange(footer, len(whole) - 4)] = noise.randrange(256)
        else:
            content[noise.randrange(4, footer)] ^= 1 << noise.randrange(8)
        path.write_bytes(content)
        try:
            with open_delivery(path) as delivery:
                found = [check(t, SCHEMA, first_row=0, file="f") for t in read_chunks(delivery, SCHEMA, PLAIN)]
            if part == "pages":
                same(concatenate(found), good)
            verdict = "read"
        except DataError:
            verdict = "refused"
        seen[part, verdict] = seen.get((part, verdict), 0) + 1
    print(seen)
    assert seen["pages", "refused"] > 200, seen
    assert seen["footer", "refused"] > 100, seen
"""


def test_a05_a06_damaged_parquet_is_refused_within_bounded_memory(tmp_path: Path) -> None:
    """800 damages in a process of its own: no crash, no error but a refusal; where pages have checksums, no change."""
    run = [sys.executable, "-c", textwrap.dedent(FUZZ), str(tmp_path / "f.parquet")]
    found = subprocess.run(run, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stdout + found.stderr


def test_a07_all_missing_columns_are_named(refuse: Callable[..., DataError]) -> None:
    error = refuse(table().drop_columns(["amount", "at"]), "missing_column", "amount")
    assert "'amount'" in error.problem
    assert "'at'" in error.problem


def test_a08_extra_columns_are_harmless_and_known(receive: Callable[..., Records], tmp_path: Path) -> None:
    extra = table().add_column(0, "note", pa.array([[TEXT]] * 8)).append_column("more", pa.array([b"x"] * 8))
    same(receive(extra), receive(table(), name="g.parquet"))
    with open_delivery(tmp_path / "f.parquet") as delivery:
        assert [name for name, _ in read_header(delivery, Csv())] == ["note", *NAMES, "more"]


@pytest.mark.parametrize("seed", range(3))
def test_a09_the_order_of_columns_does_not_matter(receive: Callable[..., Records], seed: int) -> None:
    names = np.random.default_rng(seed).permutation(NAMES).tolist()
    same(receive(table().select(names)), receive(table()))
    swapped = [ROW[NAMES.index(name)] for name in names]
    same(receive(csv(swapped, header=names), name="f.csv"), receive(csv(ROW), name="f.csv"))


@pytest.mark.parametrize(
    ("expected", "found", "shown"),
    [
        ("amount", "Amount", "'Amount'"),
        ("amount", "amount ", "'amount '"),
        ("amount", "amounts", "'amounts'"),
        ("amount_eur", "eur_amount", "'eur_amount'"),
        ("mont\u00e9e", "monte\u0301e", r"'monte\u0301e'"),
        ("monte\u0301e", "mont\u00e9e", r"'mont\xe9e'"),
    ],
)
def test_a10_a_renamed_column_is_suggested_and_never_mapped(
    refuse: Callable[..., DataError], expected: str, found: str, shown: str
) -> None:
    content = table().rename_columns([found, *NAMES[1:]])
    schema = Schema((Column(expected, "number"), *SCHEMA.columns[1:]), record_id="id")
    assert shown in refuse(content, "missing_column", expected, schema=schema).problem


def test_a12_all_readers_see_repeated_names_that_differ_in_content(refuse: Callable[..., DataError]) -> None:
    second = table()["kind"]
    assert "'id'" in refuse(table().append_column("id", second), "duplicate_column", "id").problem


# ---------------------------------------------------------------- cells


def bad_rows(records: Records) -> dict[int, str]:
    return {int(i): records.status[i].removeprefix("unscorable:") for i in np.flatnonzero(~records.scorable)}


@pytest.mark.parametrize("cell", ['"1,234"', "5 EUR", "abc", "1_000", "--1"])
def test_a13_a_cell_that_is_no_number_costs_its_row_only(receive: Callable[..., Records], cell: str) -> None:
    records = receive(csv(ROW, replaced("amount", cell), replaced("amount", " 5 "), ROW), name="f.csv")
    assert bad_rows(records) == {1: "wrong_dtype:amount"}
    assert records.values["amount"][[0, 2]].tolist() == [NUMBER, 5.0]


def test_a14_numbers_and_text_may_mix_and_chunks_do_not_matter(receive: Callable[..., Records]) -> None:
    cells = ["7"] * 300 + ["x"] * 20 + ["8"] * 30
    content = csv(*(replaced("amount", cell) for cell in cells))
    whole, parts = receive(content, name="f.csv"), receive(content, name="f.csv", size=50)
    same(whole, parts)
    assert bad_rows(whole) == dict.fromkeys(range(300, 320), "wrong_dtype:amount")
    mixed = jsonl(*({**RECORD, "amount": a} for a in (7, 7.5, "7", "x", None)))
    records = receive(mixed, name="f.jsonl")
    assert bad_rows(records) == {3: "wrong_dtype:amount"}
    assert records.values["amount"][:3].tolist() == [7.0, 7.5, 7.0]


@pytest.mark.parametrize(
    "column", [pa.nulls(4), pa.nulls(4, pa.float64()), pa.array([np.nan] * 4), pa.array(["NA"] * 4)]
)
def test_a16_an_empty_column_is_missing_in_every_row(receive: Callable[..., Records], column: pa.Array) -> None:
    records = receive(put("amount", column))
    assert np.isnan(records.values["amount"]).all()
    assert records.scorable.all()


def test_a18_missing_cells_stay_missing_and_a_row_of_them_is_unscorable(receive: Callable[..., Records]) -> None:
    empty = ["", "", "", "", TEXT, "ok"]
    records = receive(csv(replaced("amount", ""), replaced("at", "NA"), replaced("kind", ""), empty), name="f.csv")
    assert bad_rows(records) == {3: "all_missing"}
    assert np.isnan(records.values["amount"][0])
    assert np.isnat(records.values["at"][1])
    assert records.values["kind"][2].as_py() is None


@pytest.mark.parametrize("cell", ["inf", "-inf", "Infinity", "1e400", "-1e400"])
def test_a19_infinite_values_are_unscorable(receive: Callable[..., Records], cell: str) -> None:
    content = csv(ROW, replaced("amount", cell))
    assert bad_rows(receive(content, name="f.csv")) == {1: "non_finite:amount"}
    assert bad_rows(receive(put("amount", [1.0, float(cell)]))) == {1: "non_finite:amount"}


def test_a20_huge_finite_values_reach_the_detector_unchanged(receive: Callable[..., Records]) -> None:
    huge = [1e300, -1e20, 1.0]
    records = receive(put("amount", huge))
    assert records.scorable.all()
    assert records.values["amount"].tolist() == huge


def test_a24_a_row_alone_is_the_row_in_its_batch(receive: Callable[..., Records]) -> None:
    batch = receive(table())
    for i in range(len(batch)):
        same(receive(table().slice(i, 1)), batch.take(np.array([i])))


@pytest.mark.parametrize("cells", [[f"{TEXT}-new"], [f"{TEXT}-{i}" for i in range(1000)]], ids=["a28", "a30"])
def test_a28_a30_new_categories_pass_as_they_are(receive: Callable[..., Records], cells: list[str]) -> None:
    records = receive(put("kind", cells))
    assert records.values["kind"].to_pylist() == cells
    assert records.scorable.all()


def test_a29_categories_are_mapped_by_value_whatever_the_codes(receive: Callable[..., Records]) -> None:
    words = pa.array(["b", "a", "c", "a", None])
    plain = receive(put("kind", words))
    for order in (["a", "b", "c"], ["c", "b", "a", "unused"]):
        codes = pa.array([None if w is None else order.index(w) for w in words.to_pylist()], pa.int8())
        same(receive(put("kind", pa.DictionaryArray.from_arrays(codes, order))), plain)
    chunks = [pa.array(["b", "a"]).dictionary_encode(), pa.array(["c", "a", None]).dictionary_encode()]
    same(receive(parquet(put("kind", pa.chunked_array(chunks)), row_group_size=2)), plain)


def test_a31_na_is_namibia_in_a_category_and_missing_in_a_number(receive: Callable[..., Records]) -> None:
    for cell in ("NA", "null", "None", "nan", "N/A"):
        records = receive(csv(replaced("kind", cell), replaced("amount", cell)), name="f.csv")
        assert records.values["kind"][0].as_py() == cell
        assert np.isnan(records.values["amount"][1])
        assert records.scorable.all()


def test_a32_one_instant_in_three_zones_is_one_instant(receive: Callable[..., Records]) -> None:
    moment = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
    found = [
        receive(put("at", pa.array([moment], pa.timestamp("us", z)))) for z in ("UTC", "Asia/Tokyo", "America/Lima")
    ]
    texts = ("2026-03-01T12:00:00Z", "2026-03-01T21:00:00+09:00", "2026-03-01T07:00:00-05:00")
    found += [receive(put("at", [text])) for text in texts]
    for records in found[1:]:
        same(records, found[0])


@pytest.mark.parametrize(
    "dtype", [pa.date32(), pa.date64(), *(pa.timestamp(u, "UTC") for u in ("s", "ms", "us", "ns"))], ids=str
)
def test_a33_every_unit_is_the_same_instant(receive: Callable[..., Records], dtype: pa.DataType) -> None:
    records = receive(put("at", pa.array([dt.datetime(2026, 3, 1), None]).cast(dtype)))
    assert records.values["at"].tolist() == [dt.datetime(2026, 3, 1), None]
    assert records.scorable.all()


def test_a33_years_out_of_range_cost_their_rows(receive: Callable[..., Records]) -> None:
    far = pa.array([253402300799999, 253402300800000, 0], pa.timestamp("ms", "UTC"))
    assert bad_rows(receive(put("at", far))) == {1: "out_of_range:at"}


def test_a34_local_times_at_a_clock_change_cost_their_rows(receive: Callable[..., Records]) -> None:
    local = Schema((*SCHEMA.columns[:3], Column("at", "timestamp", "Europe/Berlin")), record_id="id")
    times = ["2026-03-29 01:59:59", "2026-03-29 02:30:00", "2026-10-25 02:30:00", "2026-10-25 03:00:00"]
    records = receive(csv(*(replaced("at", t) for t in times)), name="f.csv", schema=local)
    assert bad_rows(records) == {1: "ambiguous_time:at", 2: "ambiguous_time:at"}


def test_a35_decimals_are_the_nearest_float(receive: Callable[..., Records]) -> None:
    cells = pa.array([Decimal("0.10"), Decimal("1234567890123.45"), None], pa.decimal128(20, 2))
    assert receive(put("amount", cells)).values["amount"].tolist()[:2] == [0.1, 1234567890123.45]


def test_a36_integers_beyond_2_53_are_flagged_and_ids_are_exact(receive: Callable[..., Records]) -> None:
    ids = [2**53 + 1, None, 2**62]
    records = receive(put("id", pa.array(ids, pa.int64())).set_column(0, "amount", pa.array([2**53 + 1, 1, None])))
    assert bad_rows(records) == {0: "integer_beyond_2_53:amount"}
    assert records.record_ids.tolist() == [str(2**53 + 1), "", str(2**62)]
    assert np.isnan(records.values["amount"][2])


@pytest.mark.parametrize("number", [2**63 + 5, 2**64 + 5, 10**40])
def test_a37_integers_beyond_64_bits_cost_their_rows(receive: Callable[..., Records], number: int) -> None:
    expected = {1: "integer_beyond_2_53:amount"}
    row = RECORD
    assert bad_rows(receive(csv(ROW, replaced("amount", str(number))), name="f.csv")) == expected
    assert bad_rows(receive(jsonl(row, {**row, "amount": number}), name="f.jsonl")) == expected
    if number < 2**64:
        assert bad_rows(receive(put("amount", pa.array([0, number], pa.uint64())))) == expected


def test_a38_booleans_may_be_null(receive: Callable[..., Records]) -> None:
    found = receive(put("present", [True, None, False])).values["present"].tolist()
    assert (found[0], found[2]) == (1.0, 0.0)
    assert np.isnan(found[1])


# ---------------------------------------------------------------- CSV


def test_a41_the_error_names_byte_and_row_and_the_encoding_is_configuration(
    receive: Callable[..., Records], refuse: Callable[..., DataError]
) -> None:
    assert f"offset {LATIN.index(0xE9)} " in refuse(LATIN, "encoding", None, (1,), name="f.csv").problem
    records = receive(LATIN, name="f.csv", options=Csv(encoding="latin-1"))
    assert records.values["kind"][1].as_py() == TEXT + "\u00e9"


def test_a42_byte_order_marks(receive: Callable[..., Records], refuse: Callable[..., DataError]) -> None:
    plain = receive(csv(ROW), name="f.csv")
    same(receive(b"\xef\xbb\xbf" + csv(ROW), name="f.csv"), plain)
    wide = csv(ROW).decode().encode("utf-16")
    same(receive(wide, name="f.csv", options=Csv(encoding="utf-16")), plain)
    assert "UTF-16" in refuse(wide, "encoding", name="f.csv").remedy


@pytest.mark.parametrize(("row", "count"), [(ROW[:-1], 5), ([*ROW, TEXT], 7)], ids=["a43", "a44"])
def test_a43_a44_the_line_of_a_ragged_row_is_physical(
    refuse: Callable[..., DataError], row: list[str], count: int
) -> None:
    content = csv(replaced("kind", '"two\nlines"'), ["\n" + ROW[0], *ROW[1:]], row)
    error = refuse(content, "ragged", None, (2,), name="f.csv")
    assert f"6 fields; line 6 has {count}." in error.problem


def test_a46_the_delimiter_is_hinted_at_and_is_configuration(
    receive: Callable[..., Records], refuse: Callable[..., DataError]
) -> None:
    content = csv(ROW, delimiter=";")
    assert (
        "';': set this delimiter in source.csv.delimiter"
        in refuse(content, "missing_column", "amount", name="f.csv").remedy
    )
    same(receive(content, name="f.csv", options=Csv(delimiter=";")), receive(csv(ROW), name="f.csv"))


def test_a47_embedded_newlines_are_content(receive: Callable[..., Records]) -> None:
    records = receive(csv(replaced("kind", '"a\nb"'), replaced("amount", "x"), ROW), name="f.csv")
    assert records.values["kind"][0].as_py() == "a\nb"
    assert bad_rows(records) == {1: "wrong_dtype:amount"}


def test_a49_a_csv_file_cut_in_its_last_row_is_refused(receive: Callable[..., Records], tmp_path: Path) -> None:
    whole = csv(ROW, ROW, ROW)
    last = whole.rindex(b"\n", 0, -1) + 1
    for end in range(last + 1, len(whole)):
        with pytest.raises(DataError) as caught:
            receive(whole[:end], name="f.csv")
        assert caught.value.rule == "no_final_newline"
    assert len(receive(whole[:-1], name="f.csv", options=Csv(require_final_newline=False))) == 3
    assert len(receive(whole[:last], name="f.csv")) == 2  # cut between rows: only a side file can tell
    (tmp_path / "f.csv.sha256").write_text("0" * 64)
    with pytest.raises(DataError, match="checksum_mismatch"):
        receive(whole[:last], name="f.csv")


@pytest.mark.parametrize("name", ["f.csv", "f.jsonl", "f.parquet"])
def test_a50_a51_ids_are_text_and_repeated_ones_are_kept(receive: Callable[..., Records], name: str) -> None:
    ids = ["007", "7", "007", "1e5", "+1"]
    rows = [dict(zip(NAMES, replaced("id", i), strict=True)) for i in ids]
    contents: dict[str, Any] = {"f.csv": csv(*(list(r.values()) for r in rows)), "f.jsonl": jsonl(*rows)}
    records = receive(contents.get(name, put("id", ids)), name=name)
    assert records.record_ids.tolist() == ids
    assert records.scorable.all()


# ---------------------------------------------------------------- deliveries


def test_a53_a54_a_batch_is_its_content(tmp_path: Path) -> None:
    digests = []
    for name, content in (("a.csv", csv(ROW)), ("b.csv", csv(ROW)), ("a2.csv", csv(ROW, ROW))):
        (tmp_path / name).write_bytes(content)
        with open_delivery(tmp_path / name) as delivery:
            digests.append(delivery.sha256)
    assert digests[0] == digests[1] != digests[2]
    assert batch_id("a.csv", digests[0]) != batch_id("a.csv", digests[2])


@pytest.mark.parametrize("seed", range(3))
def test_a55_the_order_of_rows_does_not_matter(receive: Callable[..., Records], seed: int) -> None:
    order = np.random.default_rng(seed).permutation(8)
    same(receive(table().take(order)), receive(table()).take(order))


def test_a57_hidden_and_unfinished_names_are_ignored(tmp_path: Path) -> None:
    ignored = [".x.csv", "~x.csv", "x.csv~", "_SUCCESS", "_x.csv", "x.csv.sha256"]
    ignored += [f"x.csv{s}" for s in (".tmp", ".part", ".partial", ".crdownload", ".swp", ".TMP")]
    for name in [*ignored, "x.csv", "X.tmp.csv"]:
        (tmp_path / name).write_bytes(csv(ROW))
    listing = list_inbox(tmp_path, settle_seconds=0)
    assert [f.name for f in listing.ready] == ["X.tmp.csv", "x.csv"]


def test_a58_an_encrypted_footer_or_an_unknown_codec(refuse: Callable[..., DataError]) -> None:
    whole = parquet(table())
    assert "encrypted" in refuse(whole[:-4] + b"PARE", "unreadable").problem
    plain = parquet(pa.table({"amount": [NUMBER]}), compression="snappy")
    codec = plain.rindex(b"\x15\x02", 0, plain.rindex(b"amount") + 20)  # thrift: field codec, 1 = snappy
    schema = Schema((Column("amount", "number"),))
    for number in (3, 40):  # LZO, and one that does not exist
        refuse(plain[:codec] + bytes([0x15, 2 * number]) + plain[codec + 2 :], "unreadable", schema=schema)


def test_a59_types_that_change_within_a_file(receive: Callable[..., Records], refuse: Callable[..., DataError]) -> None:
    row = RECORD
    content = jsonl(row, row, {**row, "amount": 5, "kind": 7}, row)
    records = receive(content, name="f.jsonl", size=2)
    same(records, receive(content, name="f.jsonl"))
    assert records.values["kind"][2].as_py() == "7"
    refuse(jsonl(row, row, {**row, "kind": [TEXT]}), "nested_type", "kind", name="f.jsonl", size=2)


# ---------------------------------------------------------------- images and texts, by row of the catalogue

SIZE = (16, 16)
IMAGES = Schema((Column("image", "image", size=SIZE),), record_id="file")
TEXTS = Schema((Column("line", "text"),))
RAMP = np.arange(256, dtype=np.uint8).reshape(SIZE)


def picture(pixels: Any = RAMP, form: str = "PNG", **options: Any) -> bytes:
    """An image file; ``pixels`` are an array or an image."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


GOOD = [picture(RAMP), picture(RAMP, "TIFF"), picture(RAMP, "JPEG")]


def bomb(width: int, height: int, *, whole: bool) -> bytes:
    """A PNG file whose header promises so many pixels; ``whole``: and keeps its word, in few bytes."""
    packer = zlib.compressobj(9)
    parts = [packer.compress(b"\0" * (width + 1 if whole else 9)) for _ in range(height if whole else 1)]
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        (b"IDAT", b"".join(parts) + packer.flush()),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks
    )


@pytest.fixture(params=["parquet", "folder"])
def show(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Records]:
    """Deliver image files among good ones, as cells or as a folder; the records are those of the files given."""

    def show(*files: bytes, schema: Schema = IMAGES) -> Records:
        cells = [*files, *GOOD * len(files)]
        names = [f"{i:04}.png" for i in range(len(cells))]
        if request.param == "parquet":
            path = tmp_path / "f.parquet"
            path.write_bytes(parquet(pa.table({"file": names, "image": pa.array(cells, pa.binary())})))
        else:
            (path := tmp_path / "day").mkdir(exist_ok=True)
            for old in path.iterdir():
                old.unlink()
            for name, content in zip(names, cells, strict=True):
                (path / name).write_bytes(content)
        with open_delivery(path, folders=True) as delivery:
            found = [check(t, schema, first_row=0, file="f") for t in read_chunks(delivery, schema, PLAIN)]
            delivery.assert_unchanged()
        records = concatenate(found)
        assert records.record_ids.tolist() == names  # no row is dropped, whatever it holds
        assert set(records.status[len(files) :]) == {OK}
        return records.take(np.arange(len(files)))

    return show


def image_states(records: Records) -> list[str]:
    return [s.removeprefix("unscorable:").removesuffix(":image") for s in records.status]


def test_b01_a_cut_image_costs_its_row_only(show: Callable[..., Records]) -> None:
    for whole in GOOD:
        parts = [whole[: len(whole) * i // 20] for i in range(20)]
        records = show(*parts, whole)
        states = image_states(records)
        assert set(states) <= {OK, "corrupt_image"}
        assert states.count("corrupt_image") > 10
        complete = [v.tobytes() for v, s in zip(records.values["image"], states, strict=True) if s == OK]
        assert set(complete) == {records.values["image"][-1].tobytes()}  # cut behind the last pixel


def test_b02_damage_is_seen_where_a_side_file_vouches(tmp_path: Path) -> None:
    (tmp_path / "day").mkdir()
    content = bytearray(picture(RAMP, "JPEG"))
    (tmp_path / "day/a.jpg.sha256").write_text(hashlib.sha256(content).hexdigest())
    content[-20] ^= 1
    (tmp_path / "day/a.jpg").write_bytes(content)
    with pytest.raises(DataError) as caught, open_delivery(tmp_path / "day", folders=True):
        pass
    assert (caught.value.rule, caught.value.file) == ("checksum_mismatch", "day/a.jpg")


def test_b02_damage_never_crashes(show: Callable[..., Records]) -> None:
    noise, damaged = np.random.default_rng(0), []
    for whole in GOOD:
        for _ in range(40):
            content = bytearray(whole)
            content[noise.integers(len(whole))] ^= 1 << noise.integers(8)
            damaged.append(bytes(content))
    states = set(image_states(show(*damaged)))
    assert {OK, "corrupt_image"} <= states
    assert states <= {OK, "corrupt_image", "image_format", "image_bomb", "image_mode", "image_size", "animated"}


BOMBS = """
    import resource, sys
    from pathlib import Path
    from test_inputs import *
    path = Path(sys.argv[1])
    cells = [bomb(14_000, 14_000, whole=True), bomb(100_000, 100_000, whole=False), bomb(4097, 4096, whole=True)]
    assert max(map(len, cells)) < 300_000
    cells += [picture(np.zeros((4, 4), np.uint8)), *GOOD] * 3
    path.write_bytes(parquet(pa.table({"file": ["x"] * len(cells), "image": pa.array(cells, pa.binary())})))
    del cells
    with open_delivery(path) as delivery:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found = [check(t, IMAGES, first_row=0, file="f") for t in read_chunks(delivery, IMAGES, PLAIN)]
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(grown, concatenate(found).status)
    assert image_states(concatenate(found))[:4] == ["image_bomb"] * 3 + [OK]
    assert grown < 100_000, grown
"""


def test_b03_bombs_are_refused_within_bounded_memory(tmp_path: Path) -> None:
    """196 megapixels in 200 KB, a header of 10 gigapixels, and 17 megapixels: refused, and less than 100 MB used."""
    run = [sys.executable, "-c", textwrap.dedent(BOMBS), str(tmp_path / "f.parquet")]
    found = subprocess.run(run, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stdout + found.stderr


def test_b04_hidden_colours_of_transparent_pixels_do_not_count(show: Callable[..., Records]) -> None:
    red, black = (np.full((*SIZE, 4), colour, np.uint8) for colour in ((255, 0, 0, 0), (0, 0, 0, 255)))
    records = show(picture(red), picture(black), picture(np.full((*SIZE, 4), (255, 0, 0, 255), np.uint8)))
    hidden, background, visible = records.values["image"]
    assert np.array_equal(hidden, background)
    assert not np.array_equal(visible, background)


def test_b05_grey_of_16_bits_is_scaled(show: Callable[..., Records]) -> None:
    deep = RAMP.astype(np.uint16) * 257
    records = show(picture(deep), picture(deep, "TIFF"), picture(RAMP))
    assert all(np.array_equal(image, records.values["image"][2]) for image in records.values["image"])


def test_b06_every_mode_means_the_same_picture_or_is_refused(show: Callable[..., Records]) -> None:
    steps = Image.fromarray((RAMP // 128 * 255).astype(np.uint8))
    modes = ["L", "1", "P", "LA", "RGB", "RGBA", "CMYK"]
    odd = [picture(Image.new(mode, SIZE), "TIFF") for mode in ("F", "I")]
    records = show(*(picture(steps.convert(mode), "TIFF") for mode in modes), *odd)
    assert image_states(records) == [OK] * len(modes) + ["image_mode"] * 2
    for mode, image in zip(modes, records.values["image"], strict=False):
        assert np.array_equal(image[..., 0], np.asarray(steps)), mode


def test_b07_several_frames_cost_their_row(show: Callable[..., Records]) -> None:
    frames = {"save_all": True, "append_images": [Image.fromarray(255 - RAMP)]}
    states = image_states(show(*(picture(RAMP, form, **frames) for form in ("PNG", "TIFF", "MPO", "GIF"))))
    assert states == ["animated"] * 3 + ["image_format"]


def test_b08_sizes(show: Callable[..., Records]) -> None:
    sizes = [(16, 16), (32, 32), (100, 101), (1, 1), (16, 17), (1, 16), (300, 20)]
    records = show(*(picture(np.full(size, 77, np.uint8)) for size in sizes), bomb(0, 0, whole=False))
    assert image_states(records) == [OK] * 4 + ["image_size"] * 3 + ["corrupt_image"]
    assert set(records.values["image"][:4].ravel().tolist()) == {77}


def test_b09_all_orientations_are_one_picture(show: Callable[..., Records]) -> None:
    turns = [None, 0, 3, 1, 5, 2, 6, 4]  # Pillow's numbers of what undoes each orientation
    files = []
    for orientation, turn in enumerate(turns, 1):
        exif = Image.Exif()
        exif[0x112] = orientation
        stored = Image.fromarray(RAMP)
        files.append(picture(stored if turn is None else stored.transpose(Image.Transpose(turn)), exif=exif))
    images = show(*files).values["image"]
    assert [i for i, image in enumerate(images, 1) if not np.array_equal(image[..., 0], RAMP)] == []


def test_b10_b11_a_format_is_what_the_content_says(show: Callable[..., Records]) -> None:
    others = [picture(RAMP, form) for form in ("GIF", "WEBP", "BMP", "EPS", "ICO", "JPEG2000")]
    texts = [b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"<html>", b"PK\x03\x04", b"SIMPLE  =", b"8BPS\0\1"]
    mark = b"<script>alert(1)</script>" + TEXT.encode()
    records = show(*others, *texts, picture() + mark, picture() + b"PK\x03\x04" + mark)
    assert image_states(records) == ["image_format"] * 11 + [OK] * 2
    assert np.array_equal(records.values["image"][-1][..., 0], RAMP)
    assert mark not in records.values["image"].tobytes()


def test_b12_bombs_of_metadata_cost_their_row(show: Callable[..., Records]) -> None:
    whole = picture()
    for name in (b"zTXt", b"iCCP", b"iTXt"):
        body = (b"a\0\1\0\0\0" if name == b"iTXt" else b"a\0\0") + zlib.compress(b"x" * 70_000_000)
        chunk = struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        assert image_states(show(whole[:33] + chunk + whole[33:])) == ["corrupt_image"], name


def test_b01_a_delivery_of_bad_images_is_refused_without_showing_them(refuse: Callable[..., DataError]) -> None:
    cells = [TEXT.encode(), picture()[:50], TEXT.encode() * 9, picture()]
    content = pa.table({"file": [f"{TEXT}-{i}" for i in range(4)], "image": pa.array(cells, pa.binary())})
    refuse(content, "wrong_type", "image", (0, 1, 2), schema=IMAGES)


def seen(lines: Records) -> list[str | None]:
    return lines.values["line"].to_pylist()  # type: ignore[union-attr]


LETTERS = hypothesis.strategies.characters(exclude_categories=["Cs", "Cn"])


@hypothesis.settings(max_examples=150, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
@hypothesis.given(hypothesis.strategies.lists(hypothesis.strategies.text(LETTERS), min_size=1, max_size=8))
def test_b13_every_text_is_kept_in_its_composed_form(receive: Callable[..., Records], texts: list[str]) -> None:
    found = receive(pa.table({"line": texts}), schema=TEXTS)
    composed = [unicodedata.normalize("NFC", text) for text in texts]
    for text, kept, state in zip(composed, seen(found), found.status, strict=True):
        assert kept == text or (kept is None and not text.strip())
        assert state == (OK if kept is not None else "unscorable:all_missing")
        assert kept is None or kept.strip(" \t\n\r\u3000")
    other_form = [unicodedata.normalize("NFD", text) for text in texts]
    json_lines = jsonl(*({"line": text} for text in other_form))
    assert seen(receive(json_lines, name="f.jsonl", schema=TEXTS)) == seen(found)


@hypothesis.settings(max_examples=150, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
@hypothesis.given(hypothesis.strategies.binary(min_size=1, max_size=200))
def test_b13_no_bytes_of_a_log_crash(receive: Callable[..., Records], content: bytes) -> None:
    whole = b"first\n" + content  # so that it is no other format
    found = receive(whole, name="f.log", schema=TEXTS)
    assert len(found) == sum(1 for line in whole.split(b"\n") if line.strip())
    assert all("\0" not in text for text in seen(found) if text is not None)


def test_b13_a_log_of_one_endless_line_is_cut_within_bounded_memory(receive: Callable[..., Records]) -> None:
    found = receive(b"first\n" + b"x" * 10_000_000, name="f.log", schema=TEXTS)
    assert [len(text or "") for text in seen(found)] == [5, 2**20]


@pytest.mark.parametrize("cell", ["../secret.png", "/etc/passwd", "https://example.org/a.png", "file:///etc/passwd"])
def test_b15_the_name_of_an_image_is_no_image_and_is_not_opened(refuse: Callable[..., DataError], cell: str) -> None:
    refuse(pa.table({"file": ["a"], "image": [cell]}), "wrong_type", "image", schema=IMAGES)
    content = pa.table({"file": list("abc"), "image": pa.array([cell.encode()] * 3, pa.binary())})
    refuse(content, "wrong_type", "image", (0, 1, 2), schema=IMAGES)


# ---------------------------------------------------------------- security


@pytest.mark.parametrize("target", ["secret.csv", "nowhere", "/etc/passwd"])
def test_e5_a_link_is_refused_and_not_followed(tmp_path: Path, target: str) -> None:
    (tmp_path / "secret.csv").write_bytes(csv(ROW))
    (tmp_path / "link.csv").symlink_to(target)
    assert "link.csv" in [f.name for f in list_inbox(tmp_path, settle_seconds=0).ready]
    with pytest.raises(DataError) as caught, open_delivery(tmp_path / "link.csv"):
        pass
    assert caught.value.rule == "not_a_file"


@pytest.mark.timeout(10)
def test_e6_a_pipe_is_refused_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(DataError) as caught, open_delivery(tmp_path / "pipe.csv"):
        pass
    assert caught.value.rule == "not_a_file"
    with pytest.raises(DataError), open_delivery(Path("/dev/zero")):
        pass


def test_e13_the_check_for_leaks_has_teeth(receive: Callable[..., Records]) -> None:
    """Arrow's own message would have shown the record."""
    with pytest.raises(pa.ArrowInvalid, match=TEXT):
        arrow_csv.read_csv(pa.BufferReader(csv(ROW, ROW[:-1])))
    assert receive(table()).status.tolist() == [OK] * 8
