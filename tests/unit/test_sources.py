"""The inbox listing, a delivery, and the readers of each format."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import socket
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


@pytest.mark.parametrize("suffix", list(sources.READERS))
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


@pytest.mark.parametrize("suffix", list(sources.READERS))
def test_the_label_is_read_where_the_file_has_it(tmp_path: Path, suffix: str) -> None:
    path = deliver(tmp_path, TABLE.append_column("y", pa.array(["fraud"] * 5)), suffix)
    assert read(path, SCHEMA)[0].column_names == ["a", "b", "id", "y"]


@pytest.mark.parametrize("suffix", list(sources.READERS))
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
        ("f.csv", gzip.compress(b"a\n1\n")),
        ("f.pq", gzip.compress(parquet)),
        ("f.csv", b"PK\x03\x04rest"),
    ):
        assert refused(write(tmp_path, name, content)).rule == "wrong_format"
    for name in ("f.txt", "f", "f.csv.gz", "f.feather"):
        error = refused(write(tmp_path, name, b"a\n1\n"))
        assert error.rule == "unknown_format"
        assert all(suffix in error.problem for suffix in sources.READERS)
    assert len(rows(write(tmp_path, "F.PARQUET", parquet))) == 1
