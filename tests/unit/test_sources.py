"""The inbox listing, a delivery, and the readers of each format."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import socket
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vae_anomaly.errors import ConfigError, DataError
from vae_anomaly.schema import Column, Schema
from vae_anomaly.store import sources
from vae_anomaly.store.sources import DeliveryChanged, batch_id, list_inbox, open_delivery, read_chunks, read_header


@dataclass(frozen=True)
class Csv:
    delimiter: str = ","
    encoding: str = "utf-8"
    require_final_newline: bool = True


SCHEMA = Schema((Column("a", "number"), Column("b", "category")), record_id="id", label="y")
PLAIN = Csv()


def write(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def read(path: Path, schema: Schema | None = None, csv: Csv = PLAIN, **options: Any) -> list[pa.Table]:
    with open_delivery(path) as delivery:
        tables = list(read_chunks(delivery, schema, csv, **options))
        delivery.assert_unchanged()
    return tables


def rows(path: Path, schema: Schema | None = None, csv: Csv = PLAIN, **options: Any) -> list[dict[str, Any]]:
    return pa.concat_tables(read(path, schema, csv, **options)).to_pylist()


def refused(path: Path, schema: Schema | None = None, csv: Csv = PLAIN) -> DataError:
    with pytest.raises(DataError) as caught:
        read(path, schema, csv)
    assert caught.value.file == path.name
    return caught.value


# ---------------------------------------------------------------- the inbox


def listed(folder: Path, **options: Any) -> tuple[list[str], list[str]]:
    listing = list_inbox(folder, settle_seconds=2, **options)
    return [f.name for f in listing.ready], [f.name for f in listing.waiting]


def test_files_wait_until_they_are_settled(tmp_path: Path) -> None:
    for name, age in (("b.csv", 5), ("a.csv", 2), ("c.csv", 1)):
        os.utime(write(tmp_path, name, b"x"), (1000 - age, 1000 - age))
    assert listed(tmp_path, now=1000.0) == (["a.csv", "b.csv"], ["c.csv"])
    assert listed(tmp_path, now=1001.0)[1] == []


def test_what_its_producer_calls_complete_does_not_wait(tmp_path: Path) -> None:
    for name, age in (("a.csv", 1), ("b.csv", 0)):
        os.utime(write(tmp_path, name, b"x"), (1000 - age, 1000 - age))
    day = folder(tmp_path, "day", a=b"1")
    for path in (day / "a.png", day):
        os.utime(path, (1000, 1000))
    assert listed(tmp_path, now=1000.5, folders=True) == ([], ["a.csv", "b.csv", "day"])
    os.utime(write(tmp_path, "_SUCCESS", b""), (999, 999))  # of what changed since it says nothing
    assert listed(tmp_path, now=1000.5, folders=True) == (["a.csv"], ["b.csv", "day"])
    os.utime(write(day, "_SUCCESS", b""), (1000, 1000))
    os.utime(day, (1000, 1000))
    assert listed(tmp_path, now=1000.5, folders=True) == (["a.csv", "day"], ["b.csv"])
    (tmp_path / "_SUCCESS").unlink()
    (tmp_path / "_SUCCESS").symlink_to("a.csv")
    assert listed(tmp_path, now=1000.5, folders=True)[0] == ["day"]


def test_a_modification_time_in_the_future_does_not_wait_for_ever(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", b"x")
    os.utime(path, (4e9, 4e9))
    assert listed(tmp_path, now=path.stat().st_ctime + 1) == ([], ["a.csv"])
    assert listed(tmp_path, now=path.stat().st_ctime + 3) == (["a.csv"], [])


def test_links_and_pipes_are_listed_at_once_and_folders_never(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "link.csv").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.csv")
    assert listed(tmp_path) == (["link.csv", "pipe.csv"], [])


def test_a_missing_inbox_is_named_with_the_nearest_folder(tmp_path: Path) -> None:
    (tmp_path / "inbox").mkdir()
    with pytest.raises(ConfigError, match=r"inbx.*Did you mean 'inbox'"):
        listed(tmp_path / "inbx")
    with pytest.raises(ConfigError, match="must be a folder"):
        listed(write(tmp_path, "file", b""))
    with pytest.raises(ConfigError, match="must be a folder"):
        listed(tmp_path / "no" / "where")


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("2026-11-22T10.parquet", "2026-11-22T10"),
        ("../../x y.csv", "x-y"),
        ("-rf.csv", "rf"),
        ("日本.csv", "batch"),
        ("a" * 300 + ".csv", "a" * 60),
        ("a\nb\0.csv", "a-b-"),
        ("CON.csv", "CON"),
        (".csv", "csv"),
    ],
)
def test_batch_ids_are_safe_names(name: str, stem: str) -> None:
    found = batch_id(name, "0123456789abcdef")
    assert found == f"{stem}-0123456789ab"
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", found)


# ---------------------------------------------------------------- one delivery


def test_a_delivery_has_its_digest_and_independent_streams(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    with open_delivery(write(tmp_path, "a.bin", content)) as delivery:
        assert delivery.sha256 == hashlib.sha256(content).hexdigest()
        assert (delivery.name, delivery.size) == ("a.bin", len(content))
        first, second = delivery.stream(), delivery.stream(stop=3)
        assert first.read(2) == content[:2]
        assert second.read() == content[:3]
        assert first.read() == content[2:]
        assert delivery.peek(2, -2) == content[-2:]
    first.seek(0)
    with pytest.raises(ValueError, match="closed"):
        first.read(1)


def test_a_delivery_is_one_file_even_when_its_name_is_reused(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", b"a\n1\n")
    with open_delivery(path) as delivery:
        os.replace(write(tmp_path, "other", b"a\n2\n"), path)
        assert next(read_chunks(delivery, None, PLAIN)).to_pylist() == [{"a": "1"}]
        delivery.assert_unchanged()


@pytest.mark.parametrize("content", [b"a\n1\n2\n", b"a\n9\n", b"a\n1,2\n"])
def test_a_file_that_changes_while_it_is_read_is_to_be_tried_again(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path, "a.csv", b"a\n1\n")
    os.utime(path, (1, 1))
    with open_delivery(path) as delivery:
        path.write_bytes(content)
        with pytest.raises(DeliveryChanged, match=r"a\.csv"):  # while it is read, or at the latest afterwards
            [*read_chunks(delivery, None, PLAIN), delivery.assert_unchanged()]


def test_a_side_file_vouches_for_the_content(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", b"a\n1\n")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    for text in (digest, f"{digest.upper()}  a.csv\n"):
        write(tmp_path, "a.csv.sha256", text.encode())
        assert rows(path) == [{"a": "1"}]
    for text in ("", "0" * 64, digest[:-1], "sha256:" + digest):
        write(tmp_path, "a.csv.sha256", text.encode())
        assert refused(path).rule == "checksum_mismatch"


@pytest.mark.timeout(10)  # a pipe must not be waited for
def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    target = write(tmp_path, "target", b"a\n1\n")
    (tmp_path / "link.csv").symlink_to(target)
    (tmp_path / "dangling.csv").symlink_to("nowhere")
    (tmp_path / "folder.csv").mkdir()
    os.mkfifo(tmp_path / "pipe.csv")
    with socket.socket(socket.AF_UNIX) as unix:
        here = os.getcwd()
        os.chdir(tmp_path)  # a socket's path must be short
        unix.bind("socket.csv")
        os.chdir(here)
        for name in ("link.csv", "dangling.csv", "folder.csv", "pipe.csv", "socket.csv"):
            assert refused(tmp_path / name).rule == "not_a_file"
    assert refused(Path("/dev/null")).rule == "not_a_file"
    os.link(target, tmp_path / "hard.csv")  # a second name of a regular file is one
    assert rows(tmp_path / "hard.csv") == [{"a": "1"}]


def test_a_fault_of_the_machine_is_not_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [write(tmp_path, "a.csv", b"a\n1\n"), write(tmp_path, "a.jsonl", b'{"a": 1}\n'), tmp_path / "a.parquet"]
    pq.write_table(pa.table({"a": [1]}), paths[-1])

    def broken(*_: Any) -> int:
        raise OSError(5, "Input/output error")

    for path in paths:
        with open_delivery(path) as delivery, monkeypatch.context() as patch:
            patch.setattr(sources._View, "readinto", broken)
            with pytest.raises(OSError, match="Input/output"):
                list(read_chunks(delivery, None, PLAIN))


# ---------------------------------------------------------------- all formats

TABULAR = (".parquet", ".pq", ".csv", ".jsonl", ".ndjson")
TABLE = pa.table({"note": ["n"] * 5, "b": list("vwxyz"), "a": [0.5, None, 2.0, 3.0, 4.0], "id": list("12345")})


def deliver(folder: Path, table: pa.Table, suffix: str) -> Path:
    path = folder / f"f{suffix}"
    if suffix in (".parquet", ".pq"):
        pq.write_table(table, path, row_group_size=2)
    elif suffix == ".csv":
        lines = [
            table.column_names,
            *(["" if c is None else str(c) for c in row.values()] for row in table.to_pylist()),
        ]
        path.write_text("".join(",".join(line) + "\n" for line in lines))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    return path


@pytest.mark.parametrize("suffix", TABULAR)
def test_every_format_gives_tables_of_the_same_size_and_only_the_needed_columns(tmp_path: Path, suffix: str) -> None:
    path = deliver(tmp_path, TABLE, suffix)
    tables = read(path, SCHEMA, rows=2)
    assert [t.num_rows for t in tables] == [2, 2, 1]
    assert tables[0].column_names == ["a", "b", "id"]
    assert [str(r["a"] or "None") for r in rows(path, SCHEMA)] == ["0.5", "None", "2.0", "3.0", "4.0"]
    assert rows(path, SCHEMA, columns=["note", "id"])[0] == {"note": "n", "id": "1"}
    assert rows(path)[0].keys() == {"note", "b", "a", "id"}
    with open_delivery(path) as delivery:
        assert [name for name, _ in read_header(delivery, PLAIN)] == TABLE.column_names


@pytest.mark.parametrize("suffix", TABULAR)
def test_the_label_is_read_where_the_file_has_it(tmp_path: Path, suffix: str) -> None:
    path = deliver(tmp_path, TABLE.append_column("y", pa.array(["fraud"] * 5)), suffix)
    assert read(path, SCHEMA)[0].column_names == ["a", "b", "id", "y"]


@pytest.mark.parametrize("suffix", TABULAR)
def test_a_column_that_was_asked_for_must_be_there(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(DataError, match="Did you mean 'note'") as caught:
        read(deliver(tmp_path, TABLE, suffix), SCHEMA, columns=["nots"])
    assert (caught.value.rule, caught.value.column) == ("missing_column", "nots")


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_no_rows_are_one_empty_table(tmp_path: Path, suffix: str) -> None:
    tables = read(deliver(tmp_path, TABLE.slice(0, 0), suffix), SCHEMA)
    assert [(t.num_rows, t.column_names) for t in tables] == [(0, ["a", "b", "id"])]


# ---------------------------------------------------------------- CSV


@pytest.mark.parametrize(
    ("content", "options", "expected"),
    [
        (b"a,b\r\n1,x\r\n", {}, [("1", "x")]),
        (b"a,b\r1,x\r", {}, [("1", "x")]),
        (b"\xef\xbb\xbfa,b\n1,x\n", {}, [("1", "x")]),
        (b"a;b\n1,5;x\n", {"delimiter": ";"}, [("1,5", "x")]),
        (b"a\tb\n1\tx\n", {"delimiter": "\t"}, [("1", "x")]),
        ("a,b\n1,\u00e9\n".encode("latin-1"), {"encoding": "latin-1"}, [("1", "\u00e9")]),
        ("a,b\n1,\u00e9\n".encode("utf-16"), {"encoding": "utf-16"}, [("1", "\u00e9")]),
        (b"a,b\n1,x", {"require_final_newline": False}, [("1", "x")]),
        (b'a,b\n1,"x\ny, ""z"""\n2,w\n', {}, [("1", 'x\ny, "z"'), ("2", "w")]),
        (b"\n\na,b\n\n1,x\n\n", {}, [("1", "x")]),
        (b'a,b\n"",\n007,NA\n', {}, [("", ""), ("007", "NA")]),
        (b"PAR1,PAR2\n1,x\n", {}, [("1", "x")]),
    ],
)
def test_csv_as_it_comes(tmp_path: Path, content: bytes, options: dict[str, Any], expected: list[Any]) -> None:
    assert [tuple(r.values()) for r in rows(write(tmp_path, "f.csv", content), csv=Csv(**options))] == expected


def test_one_csv_column_and_an_empty_file_of_it(tmp_path: Path) -> None:
    assert rows(write(tmp_path, "f.csv", b'a\n1\n""\n')) == [{"a": "1"}, {"a": ""}]
    assert rows(write(tmp_path, "f.csv", b"a\n")) == []
    assert rows(write(tmp_path, "f.csv", b"a"), csv=Csv(require_final_newline=False)) == []


def test_errors_far_into_a_large_csv_file_are_placed_exactly(tmp_path: Path) -> None:
    good = b'12345.678,"two\nlines"\n' * 120_000  # 2.5 MB: beyond the first block
    path = write(tmp_path, "f.csv", b"a,b\n" + good + b"1,\xe9\n" + good)
    error = refused(path)
    assert (error.rule, error.rows) == ("encoding", (120_000,))
    assert f"offset {4 + len(good) + 2} " in error.problem
    error = refused(write(tmp_path, "f.csv", b"a,b\n" + good + b"1\n" + good))
    assert (error.rule, error.rows) == ("ragged", (120_000,))
    assert "line 240002 " in error.problem
    path.write_bytes(b"a,b\n" + good)
    assert sum(t.num_rows for t in read(path, rows=1000)) == 120_000


def test_a_row_longer_than_a_block_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "f.csv", b"a,b\n1," + b"x" * (5 * sources.CSV_BLOCK) + b"\n2,y\n")
    assert refused(path).rule == "row_too_long"


@pytest.mark.parametrize("content", [b'a,b\n1,"x\n2,y\n', b'a,b\n1,"x""\n', b'a,b\n1,x\n2,"\n', b'a\n"1\n'])
def test_an_unclosed_quotation_mark_is_seen(tmp_path: Path, content: bytes) -> None:
    assert refused(write(tmp_path, "f.csv", content)).rule == "unclosed_quote"


def test_the_last_row_of_our_own_never_shows(tmp_path: Path) -> None:
    assert rows(write(tmp_path, "f.csv", b"a,b\n1,\x1e\n\x1e,\x1e\n")) == [
        {"a": "1", "b": "\x1e"},
        {"a": "\x1e", "b": "\x1e"},
    ]


# ---------------------------------------------------------------- JSON lines


def lines(folder: Path, *texts: str) -> Path:
    return write(folder, "f.jsonl", "".join(text + "\n" for text in texts).encode())


@pytest.mark.parametrize(
    ("cells", "dtype", "expected"),
    [
        (["1", "null", "2"], pa.int64(), [1, None, 2]),
        (["1", "2.5"], pa.float64(), [1.0, 2.5]),
        (["true", "null"], pa.bool_(), [True, None]),
        (['"x"', '"\\u00e9"'], pa.string(), ["x", "\u00e9"]),
        (["1", '"x"', "true", "2.0", "0.5", "null"], pa.string(), ["1", "x", "true", "2", "0.5", None]),
        (["9007199254740993", "0.5"], pa.string(), ["9007199254740993", "0.5"]),
        (["18446744073709551617"], pa.string(), ["18446744073709551617"]),
        (["null", "null"], pa.null(), [None, None]),
        (["[1]", "1"], pa.list_(pa.null()), [None, None]),
    ],
)
def test_json_cells_and_their_types(tmp_path: Path, cells: list[str], dtype: pa.DataType, expected: list[Any]) -> None:
    (table,) = read(lines(tmp_path, *(f'{{"a": {cell}}}' for cell in cells)))
    assert table.schema.field("a").type == dtype
    assert table.column("a").to_pylist() == expected


def test_json_keys_may_be_missing_from_a_row_and_types_may_change_between_chunks(tmp_path: Path) -> None:
    path = lines(tmp_path, '{"a": 1}', '{"b": "x"}', "", '{"a": "y", "b": "z"}', '{"b": null}', '{"c": 3}')
    tables = read(path, rows=2, columns=["a", "b"])
    assert [t.to_pylist() for t in tables] == [
        [{"a": 1, "b": None}, {"a": None, "b": "x"}],
        [{"a": "y", "b": "z"}, {"a": None, "b": None}],
        [{"a": None, "b": None}],
    ]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ('{"a": 1, "a": 2}', "duplicate_column"),
        ('{"a": {"x": 1, "x": 2}}', "duplicate_column"),
        ('{"a": 1', "broken_json"),
        ("[1]", "broken_json"),
        ("null", "broken_json"),
        ("a,b", "broken_json"),
        ('{"a": "\\ud800"}', "broken_json"),
        ('{"a": ' + "[" * 100_000 + "}", "broken_json"),
        ('{"a": 1' + "0" * 5000 + "}", "broken_json"),
        ('{"a": "\0"}', "nul_bytes"),
    ],
)
def test_broken_json_lines_are_placed(tmp_path: Path, text: str, rule: str) -> None:
    error = refused(lines(tmp_path, '{"a": 1}', "", '{"a": 2}', text, '{"a": 3}'))
    assert (error.rule, error.rows) == (rule, (2,))
    assert rule != "broken_json" or "line 4 " in error.problem


def test_json_lines_in_another_encoding_or_endless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = refused(write(tmp_path, "f.jsonl", b'{"a": 1}\n{"a": "\xe9"}\n'))
    assert (error.rule, error.rows) == ("encoding", (1,))
    assert rows(write(tmp_path, "f.jsonl", b'\xef\xbb\xbf{"a": 1}')) == [{"a": 1}]
    monkeypatch.setattr(sources, "LONGEST_LINE", 100)
    error = refused(lines(tmp_path, '{"a": 1}', f'{{"a": "{"x" * 100}"}}'))
    assert (error.rule, error.rows) == ("row_too_long", (1,))


# ---------------------------------------------------------------- Parquet


def test_parquet_text_that_is_no_utf8_is_refused(tmp_path: Path) -> None:
    bad = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(np.array([0, 2], np.int32)), pa.py_buffer(b"\xff\xfe")]
    )
    pq.write_table(pa.table({"a": [1.0], "b": bad}), tmp_path / "f.parquet")
    error = refused(tmp_path / "f.parquet")
    assert (error.rule, error.column) == ("encoding", "b")


def test_a_name_must_fit_the_content(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1.0]}), tmp_path / "f.parquet")
    parquet = (tmp_path / "f.parquet").read_bytes()
    for name, content in (
        ("f.csv", parquet),
        ("f.jsonl", parquet),
        ("f.parquet", b"a,b\n1,2\n3,4\n"),
        ("f.csv", gzip.compress(b"a\n1\n", mtime=0)),
        ("f.pq", gzip.compress(parquet, mtime=0)),
        ("f.csv", b"PK\x03\x04rest"),
    ):
        assert refused(write(tmp_path, name, content)).rule == "wrong_format"
    for name in ("f.dat", "f", "f.csv.gz", "f.feather"):
        error = refused(write(tmp_path, name, b"a\n1\n"))
        assert error.rule == "unknown_format"
        assert all(suffix in error.problem for suffix in sources.READERS)
    assert len(rows(write(tmp_path, "F.PARQUET", parquet))) == 1


# ---------------------------------------------------------------- lines

PATTERN = r"^(?P<at>\S+) (?P<level>[A-Z]+) (?P<message>.*)$"


@pytest.mark.parametrize("suffix", [".log", ".txt"])
def test_lines_are_records_and_blank_ones_are_none(tmp_path: Path, suffix: str) -> None:
    content = b"\xef\xbb\xbfone\n\n  \t\r\ntwo \r\n\r\nthree"
    path = write(tmp_path, f"f{suffix}", content)
    assert [row["line"] for row in rows(path)] == ["one", "two ", "three"]
    assert [t.num_rows for t in read(path, rows=2)] == [2, 1]
    assert [t.num_rows for t in read(path, rows=3)] == [3]


def test_lines_of_odd_bytes_are_kept(tmp_path: Path) -> None:
    path = write(tmp_path, "f.log", b"a\0b\n\xff\xfex\nM\xfcnchen\n\xed\xa0\x80\n\xe2\x80\xae\xf0\x9f\x9a\x80\n")
    found = [row["line"] for row in rows(path)]
    assert found == ["a\ufffdb", "\ufffd\ufffdx", "M\ufffdnchen", "\ufffd" * 3, "\u202e\U0001f680"]


def test_long_lines_are_cut_and_the_next_one_is_whole(tmp_path: Path) -> None:
    longest = sources.LONGEST_TEXT
    lines = [b"a" * (longest - 1), b"b" * longest, b"c" * (3 * longest + 5), b"d", b"e" * longest]
    for end in (b"\n", b""):
        found = [row["line"] for row in rows(write(tmp_path, "f.log", b"\n".join(lines) + end))]
        assert [(line[0], len(line)) for line in found] == [
            *(("a", longest - 1), ("b", longest), ("c", longest), ("d", 1), ("e", longest))
        ]


def test_a_pattern_cuts_lines_into_columns(tmp_path: Path) -> None:
    path = write(tmp_path, "f.log", b"12:00 INFO all is well\nstack trace\n12:01 WARN \n")
    assert rows(path, pattern=PATTERN) == [
        {"at": "12:00", "level": "INFO", "message": "all is well"},
        {"at": None, "level": None, "message": None},
        {"at": "12:01", "level": "WARN", "message": ""},
    ]
    schema = Schema((Column("message", "text"), Column("level", "category", context=True)))
    assert read(path, schema, pattern=PATTERN)[0].column_names == ["message", "level"]
    with open_delivery(path) as delivery:
        header = read_header(delivery, PLAIN, pattern=PATTERN)
    assert header == [("at", pa.string()), ("level", pa.string()), ("message", pa.string())]
    error = refused(path, schema)  # without the pattern there are no such columns; perhaps it is a table by its content
    assert error.rule == "wrong_format"
    assert "source.lines.pattern" in error.remedy


def test_lines_that_are_none_are_refused(tmp_path: Path) -> None:
    for name, content, rule in (
        ("f.log", b"", "empty_file"),
        ("f.log", b"\n \n\r\n", "empty_file"),
        ("f.log", "hello\n".encode("utf-16"), "encoding"),
        ("f.log", gzip.compress(b"x\n", mtime=0), "wrong_format"),
        ("f.txt", npy(np.zeros(3)), "wrong_format"),
    ):
        assert refused(write(tmp_path, name, content)).rule == rule


# ---------------------------------------------------------------- arrays


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def idx(array: np.ndarray, code: int = 8) -> bytes:
    head = bytes([0, 0, code, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return head + array.astype(sources.IDX[code]).tobytes()


def pixels(tables: list[pa.Table]) -> np.ndarray:
    columns = [chunk for table in tables for chunk in table["image"].chunks if len(chunk)]
    return np.concatenate([column.to_numpy_ndarray() for column in columns])


IMAGES = np.random.default_rng(0).integers(0, 256, (7, 3, 2), np.uint8)


@pytest.mark.parametrize("name", ["f.npy", "f.npz", "f.idx", "f.idx3-ubyte", "train-images-idx3-ubyte", "F.IDX3-UBYTE"])
def test_arrays_are_images_row_by_row(tmp_path: Path, name: str) -> None:
    make = {"y": npy, "z": lambda a: npz(image=a)}.get(name[-1], idx)
    path = write(tmp_path, name, make(IMAGES))
    schema = Schema((Column("image", "image", size=(3, 2)),))
    for size, expected in ((3, [3, 3, 1]), (7, [7]), (65_536, [7])):
        tables = read(path, schema, rows=size)
        assert [t.num_rows for t in tables] == expected
        assert np.array_equal(pixels(tables), IMAGES)
    assert tables[0].schema.field("image").type == pa.fixed_shape_tensor(pa.uint8(), (3, 2))
    assert [t.num_rows for t in read(write(tmp_path, name, make(IMAGES[:0])), schema)] == [0]
    other = Schema((Column("image", "image", size=(2, 3)),))
    assert (refused(path, other).rule, refused(path, other).column) == ("wrong_type", "image")


@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2", "<f2", "<f4", ">f4", "<f8", "<i8", "?"])
def test_arrays_of_every_type_and_order_of_bytes(tmp_path: Path, dtype: str) -> None:
    array = np.stack([IMAGES, IMAGES, IMAGES], axis=-1).astype(dtype)
    if dtype == "?":
        assert refused(
            write(tmp_path, "f.npy", npy(array)), Schema((Column("image", "image", size=(3, 2), channels=3),))
        )
        return
    found = pixels(read(write(tmp_path, "f.npy", npy(array))))
    assert found.dtype == np.dtype(dtype).newbyteorder("=")
    assert np.array_equal(found, array)


def test_blocks_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "BLOCK", 13)  # two images, a fragment of a third; two lines
    path = write(tmp_path, "f.npz", npz(image=IMAGES, n=np.arange(7), name=np.array(list("abcdefg"))))
    tables = read(path, rows=5)
    assert [t.num_rows for t in tables] == [5, 2]
    assert np.array_equal(pixels(tables), IMAGES)
    assert pa.concat_tables(tables).select(["n", "name"]).to_pylist() == [
        {"n": i, "name": letter} for i, letter in enumerate("abcdefg")
    ]
    lines = [f"line {i}" for i in range(11)]
    found = read(write(tmp_path, "f.log", "\n".join(lines).encode()), rows=4)
    assert [t.num_rows for t in found] == [4, 4, 3]
    assert [row["line"] for t in found for row in t.to_pylist()] == lines


def test_archives_hold_columns_of_every_type(tmp_path: Path) -> None:
    content = npz(
        image=IMAGES,
        number=np.arange(7) / 2,
        flag=np.arange(7) > 3,
        shop=np.array(["north", "s\u00fcd"] * 3 + ["x"]),
        at=np.arange(7).astype("datetime64[s]"),
        matrix=np.zeros((7, 2)),
        scalar=np.float64(3),
    )
    table = read(write(tmp_path, "f.npz", content))[0]
    assert table.column_names == ["image", "number", "flag", "shop", "at"]  # what has no rows of cells is no column
    assert table["shop"].to_pylist() == ["north", "s\u00fcd"] * 3 + ["x"]
    assert table["number"].to_pylist() == [i / 2 for i in range(7)]
    assert table["flag"].to_pylist() == [i > 3 for i in range(7)]
    assert table["at"].type == pa.timestamp("s")


def test_only_columns_that_are_needed_must_have_the_same_length(tmp_path: Path) -> None:
    path = write(tmp_path, "f.npz", npz(image=IMAGES, y=np.arange(7), other=np.arange(3)))
    schema = Schema((Column("image", "image", size=(3, 2)),), label="y")
    assert read(path, schema)[0].column_names == ["image", "y"]
    error = refused(path, Schema((Column("image", "image", size=(3, 2)),), label="other"))
    assert error.rule == "ragged"
    assert "'image': 7, 'other': 3" in error.problem


class Opened:
    """What must never be made from a file."""

    def __reduce__(self) -> Any:
        return (os.system, ("touch executed",))


def test_objects_are_refused_and_nothing_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    objects = np.array([Opened(), Opened()], dtype=object)
    fields = np.zeros(2, [("a", "O"), ("b", "f8")])
    for name, content in (
        ("f.npy", npy(objects)),
        ("f.npz", npz(image=IMAGES, extra=objects)),
        ("f.npz", npz(image=IMAGES, extra=fields)),
        ("f.npz", npz(image=IMAGES, extra=np.array(Opened(), dtype=object))),
    ):
        assert refused(write(tmp_path, name, content)).rule == "unsafe_array"
    assert not (tmp_path / "executed").exists()


def header(shape: str, *, dtype: str = "'|u1'", order: str = "False", version: bytes = b"\x01\0") -> bytes:
    text = f"{{'descr': {dtype}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY" + version + len(text).to_bytes(2 if version == b"\x01\0" else 4, "little") + text


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (npy(np.zeros((4, 3, 2), np.uint8))[:-1], "truncated"),
        (npy(np.zeros((4, 3, 2), np.uint8)) + b"x", "unreadable"),
        (npy(np.zeros((4, 3, 2), np.uint8))[:9], "unreadable"),
        (npy(np.zeros((4, 3, 2), np.uint8))[:60], "unreadable"),
        (npy(np.zeros((4, 3))), "wrong_type"),
        (npy(np.zeros(4)), "wrong_type"),
        (npy(np.float64(1)), "wrong_type"),
        (npy(np.zeros((2, 2, 2, 2, 2))), "wrong_type"),
        (npy(np.zeros((4, 3, 2), complex)), "wrong_type"),
        (npy(np.zeros((4, 3, 2), "U3")), "wrong_type"),
        (npy(np.zeros((4, 0, 2))), "wrong_type"),
        (npy(np.asfortranarray(np.zeros((4, 3, 2)))), "fortran_order"),
        (header("(999999999, 3, 2)") + b"x" * 6, "truncated"),
        (header("(1, -3, -2)") + b"x" * 6, "wrong_type"),
        (header("(-1, 3, 2)") + b"x" * 6, "unreadable"),
        (header("(1, 2**99, 2)") + b"x" * 6, "unreadable"),
        (header("(1, 99999999999999999999, 2)") + b"x" * 6, "truncated"),
        (header("(1, 3, 2)", dtype="__import__('os')") + b"x" * 6, "unreadable"),
        (header("(1, 3, 2)", dtype="'|O'") + b"x" * 6, "unsafe_array"),
        (header("(1, 3, 2)", version=b"\x02\0") + b"x" * 6, "unreadable"),
        (b"\x93NUMPX" + npy(IMAGES)[6:], "unreadable"),
        (b"a,b\n1,2\n", "wrong_format"),
        (b"", "empty_file"),
    ],
)
def test_broken_arrays_are_refused(tmp_path: Path, content: bytes, rule: str) -> None:
    assert refused(write(tmp_path, "f.npy", content)).rule == rule


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (idx(IMAGES)[:-1], "truncated"),
        (idx(IMAGES)[:10], "truncated"),
        (idx(IMAGES)[:3], "wrong_format"),
        (idx(IMAGES) + b"x", "unreadable"),
        (b"\0\0\x07" + idx(IMAGES)[3:], "wrong_format"),
        (b"\0\1" + idx(IMAGES)[2:], "wrong_format"),
        (idx(np.arange(5)), "wrong_type"),
        (b"\0\0\x08\x03" + b"\xff" * 12, "truncated"),
        (gzip.compress(idx(IMAGES), mtime=0), "wrong_format"),
    ],
)
def test_broken_idx_files_are_refused(tmp_path: Path, content: bytes, rule: str) -> None:
    assert refused(write(tmp_path, "f.idx", content)).rule == rule


def damaged(content: bytes, at: int, change: bytes) -> bytes:
    return content[:at] + change + content[at + len(change) :]


def test_broken_archives_are_refused(tmp_path: Path) -> None:
    good = npz(image=IMAGES)
    stored, locked = io.BytesIO(), bytearray(good)
    with zipfile.ZipFile(stored, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("image.npy", npy(IMAGES))
    for at in (6, good.index(b"PK\x01\x02") + 8):  # the flag of encryption, in both places
        locked[at] |= 1
    for content in (good[:-1], good[: len(good) // 2], good[:100], stored.getvalue(), bytes(locked)):
        assert refused(write(tmp_path, "f.npz", content)).rule == "unreadable"
    middle = good.index(b"PK\x01\x02") - 20
    assert refused(write(tmp_path, "f.npz", damaged(good, middle, b"\0\0\0\0"))).rule in ("unreadable", "truncated")
    short = io.BytesIO()
    with zipfile.ZipFile(short, "w") as archive:
        archive.writestr("image.npy", npy(IMAGES)[:-1])
    assert refused(write(tmp_path, "f.npz", short.getvalue())).rule == "truncated"
    with zipfile.ZipFile(short, "w") as archive:
        archive.writestr("image.npy", npy(IMAGES))
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("image.npy", npy(IMAGES))
    schema = Schema((Column("image", "image", size=(3, 2)),))
    assert refused(write(tmp_path, "f.npz", short.getvalue()), schema).rule == "duplicate_column"
    assert refused(write(tmp_path, "f.npz", b"PK\x03\x04 a spreadsheet")).rule == "unreadable"
    nothing = npz(other=np.zeros((7, 2)))
    assert refused(write(tmp_path, "f.npz", nothing), schema).rule == "missing_column"
    endless = io.BytesIO()
    with zipfile.ZipFile(endless, "w") as archive:  # rows of no bytes: as many as one likes
        archive.writestr("text.npy", header("(999999999999,)", dtype="'<U0'"))
    assert refused(write(tmp_path, "f.npz", endless.getvalue())).rule == "wrong_type"


def test_large_rows_make_small_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "LARGEST_TABLE", 5000)
    cells = pa.table({"image": [bytes([i]) * 1000 for i in range(20)], "n": range(20)})
    pq.write_table(cells, tmp_path / "f.parquet", compression="none", use_dictionary=False)
    tables = read(tmp_path / "f.parquet", rows=65_536)
    assert max(t.num_rows for t in tables) <= 10
    assert pa.concat_tables(tables).equals(cells)
    monkeypatch.setattr(sources, "LARGEST_TABLE", 50_000)
    assert [t.num_rows for t in read(tmp_path / "f.parquet", rows=65_536)] == [20]


# ---------------------------------------------------------------- folders of images


def folder(parent: Path, name: str = "day", **files: bytes) -> Path:
    path = parent / name
    path.mkdir(exist_ok=True)
    for stem, content in files.items():
        write(path, f"{stem}.png", content)
    return path


def read_folder(path: Path, **options: Any) -> list[pa.Table]:
    with open_delivery(path, folders=True) as delivery:
        tables = list(read_chunks(delivery, None, PLAIN, **options))
        delivery.assert_unchanged()
    return tables


def identity(path: Path) -> str:
    with open_delivery(path, folders=True) as delivery:
        return delivery.sha256


def refused_folder(path: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        read_folder(path)
    assert caught.value.file is not None
    assert caught.value.file.split("/")[0] == path.name
    return caught.value


def test_a_folder_of_images_is_one_delivery_by_name(tmp_path: Path) -> None:
    path = folder(tmp_path, b=b"second", a=b"first", c=b"")
    for name in (".hidden.png", "~a.png", "_b.png", "d.png.part", "Thumbs.tmp"):
        write(path, name, b"ignored")
    write(path, "no suffix", b"fourth")
    expected = [("a.png", b"first"), ("b.png", b"second"), ("c.png", b""), ("no suffix", b"fourth")]
    tables = read_folder(path, rows=3)
    assert [t.num_rows for t in tables] == [3, 1]
    assert [(r["file"], r["image"]) for t in tables for r in t.to_pylist()] == expected
    assert [r for t in read_folder(path, columns=["file"]) for r in t.to_pylist()] == [{"file": n} for n, _ in expected]
    with open_delivery(path, folders=True) as delivery:
        assert (delivery.name, delivery.size) == ("day", 17)
        assert read_header(delivery, PLAIN) == [("file", pa.string()), ("image", pa.binary())]


def test_the_identity_of_a_folder_is_that_of_names_and_contents(tmp_path: Path) -> None:
    one = identity(folder(tmp_path, "one", a=b"1", b=b"2"))
    assert identity(folder(tmp_path, "two", b=b"2", a=b"1")) == one
    others = [
        {"a": b"1"},
        {"a": b"2", "b": b"1"},
        {"a": b"1", "c": b"2"},
        {"a": b"12", "b": b""},
        {"a": b"1", "b": b"3"},
    ]
    found = {identity(folder(tmp_path, f"o{i}", **files)) for i, files in enumerate(others)}
    assert len(found | {one}) == len(others) + 1


def test_folders_are_listed_where_they_are_wanted_when_all_of_it_is_settled(tmp_path: Path) -> None:
    path = folder(tmp_path, a=b"1", b=b"2")
    folder(tmp_path, ".hidden", a=b"1")
    folder(tmp_path, "day.tmp", a=b"1")
    for age, ready in ((5, True), (1, False)):
        os.utime(path / "b.png", (1000 - age, 1000 - age))
        os.utime(path / "a.png", (900, 900))
        os.utime(path, (900, 900))
        expected = (["day"], []) if ready else ([], ["day"])
        assert listed(tmp_path, now=1000.0, folders=True) == expected
        assert listed(tmp_path, now=1000.0) == ([], [])
    os.utime(path / "b.png", (900, 900))
    os.utime(path, (999, 999))  # a file was added or taken away
    assert listed(tmp_path, now=1000.0, folders=True) == ([], ["day"])


@pytest.mark.timeout(10)
def test_what_is_no_image_file_refuses_its_folder(tmp_path: Path) -> None:
    assert refused_folder(folder(tmp_path, "empty")).rule == "empty_file"
    linked, deep, piped, mixed = (folder(tmp_path, name, a=b"1") for name in ("linked", "deep", "piped", "mixed"))
    (linked / "b.png").symlink_to(linked / "a.png")
    (deep / "below").mkdir()
    os.mkfifo(piped / "b.png")
    for path, member in ((linked, "b.png"), (deep, "below"), (piped, "b.png")):
        error = refused_folder(path)
        assert (error.rule, error.file) == ("not_a_file", f"{path.name}/{member}")
    write(mixed, "labels.csv", b"a\n1\n")
    assert refused_folder(mixed).rule == "mixed_folder"
    (tmp_path / "way").symlink_to(folder(tmp_path, "real", a=b"1"))
    assert refused_folder(tmp_path / "way").rule == "not_a_file"
    with pytest.raises(DataError, match="not_a_file"), open_delivery(tmp_path / "real"):  # folders are not wanted
        pass


def test_a_folder_with_a_huge_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "LARGEST_IMAGE", 10)
    assert len(read_folder(folder(tmp_path, a=b"x" * 10))) == 1
    assert refused_folder(folder(tmp_path, a=b"x" * 11)).rule == "too_large"


def test_side_files_vouch_for_images(tmp_path: Path) -> None:
    path = folder(tmp_path, a=b"1")
    write(path, "a.png.sha256", hashlib.sha256(b"1").hexdigest().encode())
    assert [r["image"] for t in read_folder(path) for r in t.to_pylist()] == [b"1"]
    write(path, "a.png", b"2")
    error = refused_folder(path)
    assert (error.rule, error.file) == ("checksum_mismatch", "day/a.png")


def test_a_folder_that_changes_while_it_is_read_is_to_be_tried_again(tmp_path: Path) -> None:
    def rewrite(path: Path) -> None:
        write(path, "b.png", b"other")

    def stealthily(path: Path) -> None:  # the same size and times
        before = os.stat(path / "b.png")
        write(path, "b.png", b"9")
        os.utime(path / "b.png", ns=(before.st_atime_ns, before.st_mtime_ns))

    changes = [
        rewrite,
        stealthily,
        lambda path: os.unlink(path / "b.png"),
        lambda path: write(path, "c.png", b"3"),
        lambda path: os.replace(write(path, "new", b"2"), path / "b.png"),
        lambda path: (os.unlink(path / "b.png"), (path / "b.png").symlink_to(path / "a.png")),
    ]
    for i, change in enumerate(changes):
        path = folder(tmp_path, f"day{i}", a=b"1", b=b"2")
        with open_delivery(path, folders=True) as delivery:
            delivery.assert_unchanged()
            change(path)
            with pytest.raises(OSError) as caught:
                [*read_chunks(delivery, None, PLAIN), delivery.assert_unchanged()]
        assert isinstance(caught.value, DeliveryChanged | FileNotFoundError)


def test_another_folder_under_the_same_name_is_another_delivery(tmp_path: Path) -> None:
    path = folder(tmp_path, a=b"1")
    with open_delivery(path, folders=True) as delivery:
        path.rename(tmp_path / "moved")
        folder(tmp_path, a=b"2")
        assert next(read_chunks(delivery, None, PLAIN)).to_pylist() == [{"file": "a.png", "image": b"1"}]
        delivery.assert_unchanged()


def test_names_that_are_no_text_are_shown_as_such(tmp_path: Path) -> None:
    path = folder(tmp_path)
    for name in (b"\xff.png", b"\xfe.png"):
        (path / os.fsdecode(name)).write_bytes(b"x")
    assert [r["file"] for t in read_folder(path) for r in t.to_pylist()] == ["\ufffd.png"] * 2


def test_images_beside_each_other_in_the_inbox_are_told_where_to_go(tmp_path: Path) -> None:
    error = refused(write(tmp_path, "a.PNG", b"\x89PNG\r\n\x1a\n"))
    assert error.rule == "unknown_format"
    assert "in a folder" in error.remedy
