"""From an inbox folder to tables of at most ``rows`` rows: Parquet, CSV and JSON lines, streamed and never changed.

A delivery is opened once, without following links, and everything (digest, header, rows) is read through that one
descriptor. A file that breaks a rule raises :class:`DataError` with the rule's name; nothing is guessed or repaired,
and a message holds row numbers, lines and byte offsets, never a record's content. A fault of the machine (EIO, a file
that changes while it is read) stays an ``OSError``: it may be tried again. A new format is one reader and one line of
``READERS``.

The end of a CSV file that was cut exactly between two rows cannot be seen from its content; a producer that writes
``<name>.sha256`` beside the file closes this gap.
"""

from __future__ import annotations

import codecs
import csv as csv_text
import errno
import hashlib
import io
import json
import os
import re
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn, Protocol

import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.parquet as pq

from vae_anomaly.errors import ConfigError, DataError, suggestion
from vae_anomaly.schema import Schema, check_header, is_text

ROWS = 65_536
LONGEST_LINE = 10 * 2**20  # bytes of a JSON record
CSV_BLOCK = 2 * 2**20  # bytes parsed at a time, and so the longest CSV row; five times more takes twice the memory
IGNORED_SUFFIXES = ("~", ".tmp", ".part", ".partial", ".crdownload", ".swp", ".sha256")
IGNORED_PREFIXES = (".", "~", "_")
MAGIC = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip (or a spreadsheet)",
    b"BZh91AY": "bzip2",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\xfd7zXZ\x00": "xz",
    b"ARROW1\0\0": "Arrow IPC",
    b"SQLite format 3": "SQLite",
}
# What a damaged or hostile file makes a parser raise; csv.Error and ArrowException are no ValueErrors throughout.
PARSER_ERRORS = (pa.ArrowException, csv_text.Error, ValueError, LookupError, TypeError, ArithmeticError, RecursionError)

Field = tuple[str, pa.DataType]
Tables = Callable[[Sequence[str]], Iterator[pa.Table]]


class CsvOptions(Protocol):
    """How CSV files are written; ``source.csv`` of a monitor."""

    @property
    def delimiter(self) -> str: ...
    @property
    def encoding(self) -> str: ...
    @property
    def require_final_newline(self) -> bool: ...


# ---------------------------------------------------------------- the inbox


@dataclass(frozen=True)
class InboxFile:
    """An entry of the inbox that is a delivery, or claims to be one."""

    path: Path
    name: str


@dataclass(frozen=True)
class Listing:
    """Deliveries by name: those that may be read, and those that changed too recently."""

    ready: tuple[InboxFile, ...]
    waiting: tuple[InboxFile, ...]


def list_inbox(folder: Path, *, settle_seconds: float, now: float | None = None) -> Listing:
    """The deliveries in ``folder`` (not below it); raises :class:`ConfigError` where there is no such folder.

    Folders are ignored, and names that begin with ``.``, ``~`` or ``_`` or end in one of ``IGNORED_SUFFIXES``.
    A link, pipe or device is listed as ready: :func:`open_delivery` refuses it, which is louder than passing it over.
    """
    now = time.time() if now is None else now
    ready: list[InboxFile] = []
    waiting: list[InboxFile] = []
    for entry in sorted(_entries(folder), key=lambda e: e.name):
        hidden = entry.name.startswith(IGNORED_PREFIXES) or entry.name.lower().endswith(IGNORED_SUFFIXES)
        if hidden or entry.is_dir(follow_symlinks=False):
            continue
        fresh = entry.is_file(follow_symlinks=False) and now - _changed(entry, now) < settle_seconds
        (waiting if fresh else ready).append(InboxFile(Path(entry.path), entry.name))
    return Listing(tuple(ready), tuple(waiting))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        parent = folder.parent
        beside = [p.name for p in parent.iterdir() if p.is_dir()] if parent.is_dir() else []
        hint = suggestion(folder.name, beside) or " Create it, or set source.inbox."
        raise ConfigError(f"The inbox must be a folder that exists. Got {str(folder)!r}.{hint}") from None


def _changed(entry: os.DirEntry[str], now: float) -> float:
    """Time of the last change; with a modification time in the future a file would wait for ever."""
    try:
        info = entry.stat(follow_symlinks=False)
    except FileNotFoundError:  # gone since it was listed
        return now
    return info.st_mtime if info.st_mtime <= now else info.st_ctime


def batch_id(name: str, sha256: str) -> str:
    """A batch's name in the store: the file's name made safe, and the beginning of its content's digest."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(name).stem).lstrip("._-")[:60] or "batch"
    return f"{stem}-{sha256[:12]}"


# ---------------------------------------------------------------- one delivery


class DeliveryChanged(OSError):
    """The file changed while it was read; the next run may try again."""


@dataclass(frozen=True)
class Delivery:
    """A regular file, open for reading, and the digest of its content."""

    path: Path
    sha256: str
    size: int
    mtime_ns: int
    file: io.FileIO

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    def stream(self, stop: int | None = None) -> io.RawIOBase:
        """The content from the start (up to the offset ``stop``); streams do not disturb each other."""
        return _View(self.file, self.size if stop is None else min(stop, self.size))

    def peek(self, count: int, offset: int = 0) -> bytes:
        """``count`` bytes from ``offset``; a negative one counts from the end."""
        return os.pread(self.file.fileno(), count, offset if offset >= 0 else max(0, self.size + offset))

    def assert_unchanged(self) -> None:
        """Raise :class:`DeliveryChanged` if the file is not what it was when it was opened; call it after reading."""
        info = os.fstat(self.file.fileno())
        if (info.st_size, info.st_mtime_ns) != (self.size, self.mtime_ns):
            raise DeliveryChanged(f"File {self.name!r} must not change while it is read. It did; try it again.")


@contextmanager
def open_delivery(path: Path) -> Iterator[Delivery]:
    """Open ``path`` once, read its digest and verify it against ``<name>.sha256`` where that file exists.

    Raises :class:`DataError`: ``not_a_file`` for links, pipes, devices and folders, ``checksum_mismatch``.
    """
    file, info = _open_regular(path)
    with file:
        digest = hashlib.file_digest(_View(file, info.st_size), "sha256").hexdigest()
        delivery = Delivery(path, digest, info.st_size, info.st_mtime_ns, file)
        _verify(delivery)
        yield delivery


def _open_regular(path: Path) -> tuple[io.FileIO, os.stat_result]:
    """A regular file and its state; never follows a link, never waits for a pipe's writer."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link; a socket or a device without a driver
            raise _not_a_file(path) from None
        raise
    if not stat.S_ISREG((info := os.fstat(fd)).st_mode):
        os.close(fd)
        raise _not_a_file(path)
    return io.FileIO(fd), info


def _not_a_file(path: Path) -> DataError:
    problem = "expected a regular file; this is a link, pipe, device, socket or folder."
    return DataError("not_a_file", problem, remedy="Deliver a copy of the file itself.", file=path.name)


def _verify(delivery: Delivery) -> None:
    """Compare the digest with the side file's first word."""
    try:
        file, _ = _open_regular(delivery.path.with_name(f"{delivery.name}.sha256"))
    except FileNotFoundError:
        return
    with file:
        words = file.read(4096).split()
    if not words or words[0].lower() != delivery.sha256.encode():
        raise DataError(
            "checksum_mismatch",
            f"expected the sha256 that {delivery.name + '.sha256'!r} begins with; the content has {delivery.sha256}.",
            remedy="Deliver the file again, and its side file with it.",
            file=delivery.name,
        )


class _View(io.RawIOBase):
    """Bytes 0 to ``stop`` of a file with a position of its own; closing it leaves the file open.

    The file object, not its descriptor's number: a parser's thread may read on after the file was closed.
    """

    def __init__(self, file: io.FileIO, stop: int) -> None:
        super().__init__()
        self._file, self._stop, self._at = file, stop, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._stop}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)[: max(0, self._stop - self._at)]
        count = os.preadv(self._file.fileno(), [view], self._at) if view else 0
        self._at += count
        return count


# ---------------------------------------------------------------- header and rows


def read_header(delivery: Delivery, csv: CsvOptions) -> list[Field]:
    """Name and Arrow type of every column, in the file's order; CSV is all text, JSON lines as in the first rows."""
    with _reading(delivery):
        return _open(delivery, csv, ROWS)[0]


def read_chunks(
    delivery: Delivery,
    schema: Schema | None,
    csv: CsvOptions,
    *,
    rows: int = ROWS,
    columns: Sequence[str] | None = None,
) -> Iterator[pa.Table]:
    """Tables of exactly ``rows`` rows (the last one fewer) in the file's order; always at least one table.

    The header is checked against ``schema`` before the first row. Only ``columns`` are decoded: by default those that
    the schema requires and the label where the file has it; without a schema all. Raises :class:`DataError`.
    """
    with _reading(delivery):
        header, tables = _open(delivery, csv, rows)
        names = [name for name, _ in header]
        if schema is not None:
            check_header(header, schema, file=delivery.name)
            labels = [schema.label] if schema.label and schema.label in names else []
            columns = [*schema.required, *labels] if columns is None else columns
        wanted = list(dict.fromkeys(names if columns is None else columns))
        if absent := [name for name in wanted if name not in names]:
            remedy = f"Deliver the column, or leave it out of the configuration.{suggestion(absent[0], names)}"
            _refuse(delivery, "missing_column", "an expected column is missing.", remedy, column=absent[0])
        empty = pa.schema([next(f for f in header if f[0] == name) for name in wanted]).empty_table()
        yield from _rechunk(tables(wanted), rows, empty)


def _rechunk(tables: Iterator[pa.Table], rows: int, empty: pa.Table) -> Iterator[pa.Table]:
    """The same rows in tables of exactly ``rows``: what a row gives must not depend on a file's blocks."""
    held: list[pa.Table] = []
    done = False
    for table in tables:
        held.append(table)
        while sum(map(len, held)) >= rows:
            joined, done = pa.concat_tables(held), True
            yield joined.slice(0, rows)
            held = [joined.slice(rows)] if len(joined) > rows else []
    if held or not done:
        yield pa.concat_tables(held) if held else empty


def _refuse(delivery: Delivery, rule: str, problem: str, remedy: str, **where: Any) -> NoReturn:
    # Without the context: a parser's own message quotes the record.
    raise DataError(rule, problem, remedy=remedy, file=delivery.name, **where) from None


@contextmanager
def _reading(delivery: Delivery) -> Iterator[None]:
    """Turn a parser's error into ``unreadable``; errors of the machine, which carry an errno, pass.

    Where the file changed in the meantime, that is the error, and no reason to refuse the file for good.
    """
    remedy = "Check that it is complete, not encrypted and in a common codec, and deliver it again."
    try:
        yield
    except DataError:
        delivery.assert_unchanged()
        raise
    except (*PARSER_ERRORS, OSError) as error:
        if isinstance(error, OSError) and (error.errno or isinstance(error, DeliveryChanged)):
            raise
        delivery.assert_unchanged()
        _refuse(delivery, "unreadable", f"the content cannot be read ({type(error).__name__}).", remedy)


def _open(delivery: Delivery, csv: CsvOptions, rows: int) -> tuple[list[Field], Tables]:
    """Header and row reader of the delivery's format, which its suffix names and its first bytes must confirm."""
    suffix = Path(delivery.name).suffix.lower()
    if suffix not in READERS:
        known = ", ".join(READERS)
        _refuse(delivery, "unknown_format", f"the suffix must be one of {known}.", "Deliver one of these formats.")
    if not delivery.size:
        _refuse(delivery, "empty_file", "expected a header or records; the file has 0 bytes.", "Deliver it again.")
    found, parquet = _sniff(delivery), READERS[suffix] is _read_parquet
    if found not in (("Parquet", None) if parquet else ("text", None)):
        problem = f"the name ends in {suffix!r} and the content is {found}."
        _refuse(delivery, "wrong_format", problem, "Deliver it uncompressed, under the suffix of its format.")
    return READERS[suffix](delivery, csv, rows)


def _sniff(delivery: Delivery) -> str | None:
    """What the first bytes say: a binary format, ``text``, or None where they do not say.

    "PAR1" may also be the name of a CSV file's first column: only a file that also ends so, or is no text, is Parquet.
    """
    head, tail = delivery.peek(16), delivery.peek(4, -4)
    text = not re.search(rb"[^\t\n\r -~]", head)
    if b"PAR1".startswith(head[:4]) and (tail in (b"PAR1", b"PARE") or not text):
        return "Parquet"
    return next((kind for magic, kind in MAGIC.items() if head.startswith(magic)), "text" if text else None)


# ---------------------------------------------------------------- Parquet


def _read_parquet(delivery: Delivery, csv: CsvOptions, rows: int) -> tuple[list[Field], Tables]:
    tail = delivery.peek(4, -4)
    if tail == b"PARE":
        _refuse(delivery, "unreadable", "the Parquet file is encrypted.", "Deliver it without encryption.")
    if delivery.size < 12 or tail != b"PAR1":
        _refuse(delivery, "truncated", "the Parquet file has no footer: its end is missing.", "Deliver it again.")
    # pre_buffer keeps a file's compressed bytes in memory; foreign files may carry checksums, and then they count
    file = pq.ParquetFile(pa.PythonFile(delivery.stream(), "r"), pre_buffer=False, page_checksum_verification=True)

    def tables(names: Sequence[str]) -> Iterator[pa.Table]:
        count = 0
        for batch in file.iter_batches(batch_size=rows, columns=list(names), use_threads=False):
            table = pa.Table.from_batches([batch]).select(list(names))
            for name in names:
                _validate(delivery, name, table.column(name))
            count += table.num_rows
            yield table
        if count != file.metadata.num_rows:  # a damaged page header makes the reader stop early, without an error
            problem = f"the footer promises {file.metadata.num_rows} rows; the pages hold {count}."
            _refuse(delivery, "unreadable", problem, "Deliver it again.")

    return [(field.name, field.type) for field in file.schema_arrow], tables


def _validate(delivery: Delivery, name: str, column: pa.ChunkedArray) -> None:
    """Offsets and UTF-8 of a foreign file are not to be trusted."""
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        rule = "encoding" if is_text(column.type) else "unreadable"
        problem, remedy = "the column holds invalid values (text must be UTF-8).", "Write it again at the source."
        _refuse(delivery, rule, problem, remedy, column=name)


# ---------------------------------------------------------------- text


class _Utf8(io.RawIOBase):
    """A delivery's text as UTF-8, checked as it streams by; ``tail`` is appended on a line of its own.

    ``row_at`` gives the record number at a byte offset, or -1 where it has none.
    """

    def __init__(self, delivery: Delivery, encoding: str, row_at: Callable[[int], int], tail: bytes = b"") -> None:
        self._delivery, self._source, self._row_at, self._tail = delivery, delivery.stream(), row_at, tail
        self._plain = codecs.lookup(encoding).name in ("utf-8", "utf-8-sig")
        self._encoding = "utf-8" if self._plain else encoding
        self._decoder = codecs.getincrementaldecoder(self._encoding)()
        self._fed, self._last, self._pending, self._open = 0, b"\n", b"", True

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._pending and self._open:
            self._pending = self._next()
        count = min(len(buffer), len(self._pending))
        buffer[:count], self._pending = self._pending[:count], self._pending[count:]
        return count

    def _next(self) -> bytes:
        data = self._source.read(2**20) or b""
        try:
            text = self._decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            offset = self._fed + len(data) - len(error.object) + error.start
            self._refuse("encoding", f"is not {self._encoding}", offset)
        if "\0" in text:
            self._refuse("nul_bytes", "is NUL", self._fed + max(0, data.find(b"\0")))
        self._fed, self._open = self._fed + len(data), bool(data)
        out = data if self._plain else text.encode()
        if not data and self._tail:
            out += self._tail if self._last in b"\r\n" else b"\n" + self._tail
        self._last = out[-1:] or self._last
        return out

    def _refuse(self, rule: str, what: str, offset: int) -> NoReturn:
        wide = self._delivery.peek(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        hint = "It begins like UTF-16: write UTF-8" if wide else "Write text in this encoding"
        row = self._row_at(offset)
        where = {"rows": (row,)} if row >= 0 else {}
        _refuse(
            self._delivery,
            rule,
            f"the byte at offset {offset} {what}.",
            f"{hint}, or set source.csv.encoding.",
            **where,
        )


def _read_csv(delivery: Delivery, csv: CsvOptions, rows: int) -> tuple[list[Field], Tables]:
    """All columns as text: what a cell means is the contract's business, not the parser's."""
    names = _csv_header(delivery, csv)
    last = delivery.peek(4, -4).replace(b"\0", b"")  # of UTF-16, too
    if csv.require_final_newline and not last.endswith((b"\n", b"\r")):
        remedy = "Deliver it again, or set source.csv.require_final_newline to false."
        _refuse(delivery, "no_final_newline", "the last line has no end: the file may be cut short.", remedy)

    def tables(wanted: Sequence[str]) -> Iterator[pa.Table]:
        ragged: list[arrow_csv.InvalidRow] = []
        try:
            yield from _csv_tables(delivery, csv, names, wanted, ragged)
        except pa.ArrowInvalid as error:
            _refuse_csv(delivery, csv, ragged, "straddling" in str(error))

    return [(name, pa.string()) for name in names], tables


def _csv_header(delivery: Delivery, csv: CsvOptions) -> list[str]:
    """The raw names, repeated ones included."""
    text = io.TextIOWrapper(io.BufferedReader(_csv_stream(delivery, csv)), encoding="utf-8-sig", newline="")
    names = next(filter(None, csv_text.reader(text, delimiter=csv.delimiter)), [])
    if not any(name.strip() for name in names):
        _refuse(delivery, "empty_file", "expected a header; the file begins with blank text.", "Deliver it again.")
    return names


def _csv_stream(delivery: Delivery, csv: CsvOptions, tail: bytes = b"") -> _Utf8:
    return _Utf8(delivery, csv.encoding, lambda offset: sum(1 for _ in _csv_lines(delivery, csv, offset + 1)) - 2, tail)


def _csv_lines(delivery: Delivery, csv: CsvOptions, stop: int | None = None) -> Iterator[int]:
    """The line on which each record begins, the header first; read again only to say where an error is."""
    raw = io.BufferedReader(delivery.stream(stop))
    text = io.TextIOWrapper(raw, encoding=csv.encoding, errors="replace", newline="")
    reader, line = csv_text.reader(text, delimiter=csv.delimiter), 1
    with suppress(csv_text.Error):
        for fields in reader:
            if fields:
                yield line
            line = reader.line_num + 1


END = "\x1e"


def _csv_tables(
    delivery: Delivery, csv: CsvOptions, names: Sequence[str], wanted: Sequence[str], ragged: list[Any]
) -> Iterator[pa.Table]:
    """Tables of the wanted columns; collects the first row that has too few or too many fields.

    Arrow reads an unclosed quotation mark as one long last cell. So a last row of our own follows the file's: where it
    does not come back, a mark swallowed it.
    """
    tail = csv.delimiter.join([END] * len(names)).encode() + b"\n"

    def on_ragged(row: Any) -> str:
        ragged.append(row)
        return "error"

    reader = arrow_csv.open_csv(
        pa.PythonFile(io.BufferedReader(_csv_stream(delivery, csv, tail)), "r"),
        read_options=arrow_csv.ReadOptions(use_threads=False, block_size=CSV_BLOCK),
        parse_options=arrow_csv.ParseOptions(
            delimiter=csv.delimiter,
            newlines_in_values=True,
            # in a file of one column an empty line is a record whose cell is missing
            ignore_empty_lines=len(_csv_header(delivery, csv)) > 1,
            invalid_row_handler=on_ragged,
        ),
        convert_options=arrow_csv.ConvertOptions(
            include_columns=list(wanted), column_types=dict.fromkeys(wanted, pa.string())
        ),
    )
    held: pa.Table | None = None
    for batch in filter(len, reader):
        if held is not None:
            yield held
        held = pa.Table.from_batches([batch])
    if held is None or set(held.slice(len(held) - 1).to_pylist()[0].values()) != {END}:
        remedy = "Close or double it at the source, and deliver the file again."
        _refuse(delivery, "unclosed_quote", "a quotation mark is never closed.", remedy)
    yield held.slice(0, len(held) - 1)


def _refuse_csv(delivery: Delivery, csv: CsvOptions, ragged: list[Any], too_long: bool) -> NoReturn:
    remedy = "Quote fields that hold the delimiter, close every quotation mark, and deliver it again."
    if ragged:
        row = ragged[0]
        line = next(islice(_csv_lines(delivery, csv), row.number - 1, None), "?")
        problem = f"every row must have {row.expected_columns} fields; line {line} has {row.actual_columns}."
        _refuse(delivery, "ragged", problem, remedy, rows=(row.number - 2,))
    if too_long:
        problem = f"a row is longer than {CSV_BLOCK} bytes, or a quotation mark is not closed."
        _refuse(delivery, "row_too_long", problem, remedy)
    _refuse(delivery, "unreadable", "the text cannot be read as CSV.", remedy)


# ---------------------------------------------------------------- JSON lines


class _RepeatedKey(Exception):
    """A JSON object names a key twice; the standard library would keep the last."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = {sys.intern(key): value for key, value in pairs}
    if len(row) < len(pairs):
        raise _RepeatedKey(next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i])))
    return row


def _read_json_lines(delivery: Delivery, csv: CsvOptions, rows: int) -> tuple[list[Field], Tables]:
    """Types are those of the first ``rows`` rows; a key that none of them has is a missing column."""
    parsed = _json_rows(delivery)
    chunks = iter(lambda: list(islice(parsed, rows)), [])
    first = next(chunks, [])
    if not first:
        _refuse(delivery, "empty_file", "expected records; the file holds blank lines only.", "Deliver it again.")
    names = dict.fromkeys(key for row in first for key in row)
    table = pa.table({name: _json_column(first, name) for name in names})
    first.clear()

    def tables(wanted: Sequence[str]) -> Iterator[pa.Table]:
        yield table.select(list(wanted))
        for chunk in chunks:
            yield pa.table({name: _json_column(chunk, name) for name in wanted})

    return [(field.name, field.type) for field in table.schema], tables


def _json_rows(delivery: Delivery) -> Iterator[dict[str, Any]]:
    def row_at(offset: int) -> int:
        return sum(1 for line in io.BufferedReader(delivery.stream(offset + 1)) if line.strip()) - 1

    lines, number = io.BufferedReader(_Utf8(delivery, "utf-8", row_at)), -1
    for count, line in enumerate(iter(lambda: lines.readline(LONGEST_LINE + 1), b""), 1):
        if len(line) > LONGEST_LINE:
            problem = f"line {count} is longer than {LONGEST_LINE} bytes."
            _refuse(delivery, "row_too_long", problem, "Write one record on each line.", rows=(number + 1,))
        if line.strip():
            number += 1
            yield _json_row(delivery, line, number, count)


def _json_row(delivery: Delivery, line: bytes, number: int, count: int) -> dict[str, Any]:
    try:
        row = json.loads(line, object_pairs_hook=_unique)
        if b"\\u" in line:
            json.dumps(row, ensure_ascii=False).encode()  # half of a surrogate pair is no text
    except _RepeatedKey as error:
        name, problem = str(error), "column names must be unique; a record names this one twice."
        remedy = "Remove the repeated keys at the source."
        _refuse(delivery, "duplicate_column", problem, remedy, column=name, rows=(number,))
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        problem, remedy = f"line {count} must be one JSON object.", "Write one complete object on each line."
        _refuse(delivery, "broken_json", problem, remedy, rows=(number,))
    return row


def _json_column(rows: Sequence[dict[str, Any]], name: str) -> pa.Array:
    """The column in its own type; text where types are mixed. Nested cells leave only their type, to be refused."""
    cells = [row.get(name) for row in rows]
    types = {type(cell) for cell in cells} - {type(None)}
    if types & {dict, list}:
        return pa.nulls(len(cells), pa.list_(pa.null()))
    if len(types) > 1 and not (types == {int, float} and all(abs(c) <= 2**53 for c in cells if type(c) is int)):
        return pa.array([_json_text(cell) for cell in cells], pa.string())
    try:
        return pa.array(cells, pa.float64() if float in types else None)
    except OverflowError:  # beyond 64 bits: the contract judges its text
        return pa.array([_json_text(cell) for cell in cells], pa.string())


def _json_text(cell: Any) -> str | None:
    if cell is None or isinstance(cell, str):
        return cell
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() and abs(cell) < 2**53 else json.dumps(cell)


Reader = Callable[[Delivery, CsvOptions, int], tuple[list[Field], Tables]]
READERS: dict[str, Reader] = {
    ".parquet": _read_parquet,
    ".pq": _read_parquet,
    ".csv": _read_csv,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
}
