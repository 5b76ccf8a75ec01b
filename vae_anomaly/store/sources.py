"""From an inbox folder to tables of at most ``rows`` rows: files of records or images, streamed and never changed.

===========================  ============================================================================
what is delivered            its columns
===========================  ============================================================================
``.parquet``, ``.pq``        as in the file; images as bytes or tensors
``.csv``                     as in the header, all text
``.jsonl``, ``.ndjson``      the keys of the first records
``.log``, ``.txt``           ``line``; with a pattern its named groups, null where a line does not match it
``.npy``, ``.idx``,          ``image``: an array (N, H, W) or (N, H, W, C), row by row
``.idx3-ubyte`` (MNIST)
``.npz``                     each array of 1, 3 or 4 dimensions, by its name
a folder of image files      ``file`` (its name) and ``image`` (its bytes), by name; where folders are wanted
===========================  ============================================================================

A delivery is opened once, without following links, and everything (digest, header, rows) is read through that one
descriptor. A file that breaks a rule raises :class:`DataError` with the rule's name; nothing is guessed or repaired,
and a message holds row numbers, lines and byte offsets, never a record's content. A fault of the machine (EIO, a file
that changes while it is read) stays an ``OSError``: it may be tried again. A new format is one reader and one line of
``READERS``.

Of lines, blank ones are no records; bytes that are no UTF-8, and NUL, become U+FFFD, for a log tells what others sent;
one is cut after ``LONGEST_TEXT`` bytes. Arrays are data: those that hold objects are refused, and nothing is executed.

A delivery without records is one where its format says so, by a header or a shape: a header alone, a Parquet file or an
array of 0 rows. A file of 0 bytes, or of blank lines, says nothing and is refused as ``empty_file``, for it may as well
have been cut.

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
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as arrow_csv
import pyarrow.parquet as pq

from vae_anomaly.errors import ConfigError, DataError, suggestion
from vae_anomaly.schema import ROWS, Schema, check_header, is_text

LONGEST_LINE = 10 * 2**20  # bytes of a JSON record
LONGEST_TEXT = 2**20  # bytes of a line of a log
LARGEST_IMAGE = 256 * 2**20  # bytes of a file in a folder of images
BLOCK = 16 * 2**20  # bytes, about, of pixels that are read at a time
LARGEST_TABLE = 256 * 2**20  # bytes; beyond them a table has fewer rows than were asked for
CSV_BLOCK = 2 * 2**20  # bytes parsed at a time, and so the longest CSV row; five times more takes twice the memory
IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")  # how such files are named; what they are, their content says
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
    b"\x93NUMPY": "a NumPy array",
}
WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# What a damaged or hostile file makes a parser raise; csv.Error and ArrowException are no ValueErrors throughout.
PARSER_ERRORS = (
    *(pa.ArrowException, csv_text.Error, zipfile.BadZipFile, zlib.error, EOFError),
    *(ValueError, LookupError, TypeError, ArithmeticError, RecursionError, NotImplementedError),
)

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


class Reading(NamedTuple):
    """How a delivery is read: CSV's options, pattern of lines, most rows at a time, and the first row (of Parquet)."""

    csv: CsvOptions
    pattern: str | None
    rows: int
    first: int = 0


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


def list_inbox(folder: Path, *, settle_seconds: float, now: float | None = None, folders: bool = False) -> Listing:
    """The deliveries in ``folder`` (not below it); raises :class:`ConfigError` where there is no such folder.

    Names that begin with ``.``, ``~`` or ``_`` or end in one of ``IGNORED_SUFFIXES`` are ignored, and folders unless
    ``folders`` are wanted; such a one waits until it and all that is in it are unchanged.
    What has not changed since a file ``_SUCCESS`` was written beside it, or in it where it is a folder, does not wait:
    its producer says that it is complete.
    A link, pipe or device is listed as ready: :func:`open_delivery` refuses it, which is louder than passing it over.
    """
    now = time.time() if now is None else now
    ready: list[InboxFile] = []
    waiting: list[InboxFile] = []
    success = _vouched(folder)
    for entry in sorted(_entries(folder), key=lambda e: e.name):
        is_folder = entry.is_dir(follow_symlinks=False)
        if _ignored(entry.name) or (is_folder and not folders):
            continue
        fresh = False
        if entry.is_file(follow_symlinks=False) or is_folder:
            changed = (_folder_changed if is_folder else _changed)(entry, now)
            complete = max(success, _vouched(Path(entry.path)) if is_folder else 0.0)
            fresh = now - changed < settle_seconds and changed > complete
        (waiting if fresh else ready).append(InboxFile(Path(entry.path), entry.name))
    return Listing(tuple(ready), tuple(waiting))


def _ignored(name: str) -> bool:
    return name.startswith(IGNORED_PREFIXES) or name.lower().endswith(IGNORED_SUFFIXES)


def _vouched(folder: Path) -> float:
    """Until when everything in ``folder`` is complete, as its producer says; 0 where nobody says so."""
    try:
        info = os.lstat(folder / "_SUCCESS")
    except OSError:
        return 0.0
    return info.st_mtime if stat.S_ISREG(info.st_mode) else 0.0


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


def _folder_changed(folder: os.DirEntry[str], now: float) -> float:
    """Time of the last change of a folder or of what is in it."""
    try:
        with os.scandir(folder) as entries:
            return max([_changed(folder, now), *(_changed(entry, now) for entry in entries)])
    except (FileNotFoundError, NotADirectoryError):
        return now


def batch_id(name: str, sha256: str, *, again: int = 0) -> str:
    """A batch's name in the store: the file's name made safe, and the beginning of its content's digest.

    ``again`` is how often this content was scored before.
    """
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(name).stem).replace(".again", "-again")  # that is said below only
    stem = stem.lstrip("._-")[:60] or "batch"
    return f"{stem}{f'.again{again}' if again else ''}-{sha256[:12]}"


# ---------------------------------------------------------------- one delivery


State = tuple[int, int, int]  # size, time of modification, inode


class DeliveryChanged(OSError):
    """The file changed while it was read; the next run may try again."""


def changed_file(name: str) -> DataError:
    """The file of this ``name`` is not, or no longer, what it was: for who cannot wait and try again."""
    return DataError(
        "changed_file",
        "the file must stay as it was committed while it is read. Got another content, or none.",
        file=name,
        remedy="Run it again when nobody writes that file.",
    )


@contextmanager
def unchanged(delivery: Delivery) -> Iterator[None]:
    """Read ``delivery`` in the block; raises :class:`DataError` where it changes meanwhile."""
    try:
        yield
        delivery.assert_unchanged()
    except DeliveryChanged as error:
        raise changed_file(delivery.name) from error


@dataclass(frozen=True)
class FileDelivery:
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

    @property
    def state(self) -> State:
        """By which the file is known again."""
        return _state(os.fstat(self.file.fileno()))

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


class Member(NamedTuple):
    """A file of a folder."""

    name: str
    sha256: str
    state: State


@dataclass(frozen=True)
class FolderDelivery:
    """A folder of image files, open for reading; ``sha256`` is of its members' names and digests, by name."""

    path: Path
    sha256: str
    members: tuple[Member, ...]
    descriptor: int

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def size(self) -> int:
        """Bytes of all members."""
        return sum(member.state[0] for member in self.members)

    @property
    def state(self) -> tuple[()]:
        """Nothing: what its files are says only their content."""
        return ()

    def read(self, member: Member) -> bytes:
        """A member's content, which is what was hashed; raises :class:`DeliveryChanged` where it is no longer."""
        try:
            file, info = _open_regular(Path(member.name), self.descriptor)
            with file:
                content = file.readall() if _state(info) == member.state else b""
        except (FileNotFoundError, DataError):
            content = b""
        if hashlib.sha256(content).hexdigest() != member.sha256:
            self._changed()
        return content

    def assert_unchanged(self) -> None:
        """Raise :class:`DeliveryChanged` if a file was added, removed or changed; call it after reading."""
        there = {name: _state(os.stat(name, dir_fd=self.descriptor, follow_symlinks=False)) for name in self._names()}
        if there != {member.name: member.state for member in self.members}:
            self._changed()

    def _names(self) -> list[str]:
        return [name for name in os.listdir(self.descriptor) if not _ignored(name)]

    def _changed(self) -> NoReturn:
        raise DeliveryChanged(f"Folder {self.name!r} must not change while it is read. It did; try it again.")


Delivery = FileDelivery | FolderDelivery


@contextmanager
def open_delivery(
    path: Path, *, folders: bool = False, known: tuple[str, tuple[int, ...]] | None = None
) -> Iterator[Delivery]:
    """Open ``path`` once, read its digest and verify it against ``<name>.sha256`` where that file exists.

    ``known`` are the digest and the state of a file that was opened, and verified, just now: while it has that state it
    is not hashed again.

    Raises :class:`DataError`: ``not_a_file`` for links, pipes and devices, and for folders unless ``folders`` are
    wanted, ``checksum_mismatch``; for a folder, whose files may have such side files as well, also ``empty_file``,
    ``mixed_folder`` and ``too_large``.
    """
    with ExitStack() as stack:
        if folders and (descriptor := _open_folder(path)) is not None:
            stack.callback(os.close, descriptor)
            members = tuple(_members(path, descriptor))
            digest = hashlib.sha256()
            for member in members:
                digest.update(member.sha256.encode() + b" " + os.fsencode(member.name) + b"\0")
            yield FolderDelivery(path, digest.hexdigest(), members, descriptor)
            return
        file, info = _open_regular(path)
        stack.enter_context(file)
        if known and known[1] == _state(info):
            content = known[0]
        else:
            content = hashlib.file_digest(_View(file, info.st_size), "sha256").hexdigest()
            _verify(path, content)
        yield FileDelivery(path, content, info.st_size, info.st_mtime_ns, file)


def _open_folder(path: Path) -> int | None:
    """Descriptor of the folder ``path``, never through a link; None where it is none."""
    try:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            return None
        raise


def _members(path: Path, folder: int) -> Iterator[Member]:
    """The files of a folder by name, hashed."""
    names = sorted(name for name in os.listdir(folder) if not _ignored(name))
    if not names:
        problem = "expected image files; the folder has none."
        raise DataError("empty_file", problem, remedy="Deliver it again.", file=path.name)
    for name in names:
        if format_suffix(name) in READERS:
            problem = "a folder that is delivered must hold image files only; this is a file of records by its name."
            remedy = "Deliver it beside the folder, or remove it."
            raise DataError("mixed_folder", problem, remedy=remedy, file=_shown(path / name, folder))
        file, info = _open_regular(path / name, folder)
        with file:
            if info.st_size > LARGEST_IMAGE:
                problem = f"an image file must have at most {LARGEST_IMAGE} bytes; it has {info.st_size}."
                remedy = "Reduce it at the source."
                raise DataError("too_large", problem, remedy=remedy, file=_shown(path / name, folder))
            content = hashlib.file_digest(_View(file, info.st_size), "sha256").hexdigest()
        _verify(path / name, content, folder)
        yield Member(name, content, _state(info))


def _state(info: os.stat_result) -> State:
    return info.st_size, info.st_mtime_ns, info.st_ino


def _open_regular(path: Path, folder: int | None = None) -> tuple[io.FileIO, os.stat_result]:
    """A regular file (in the open ``folder``) and its state; never follows a link, never waits for a pipe's writer."""
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
        fd = os.open(path if folder is None else path.name, flags, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link; a socket or a device without a driver
            raise _not_a_file(path, folder) from None
        raise
    if not stat.S_ISREG((info := os.fstat(fd)).st_mode):
        os.close(fd)
        raise _not_a_file(path, folder)
    return io.FileIO(fd), info


def _not_a_file(path: Path, folder: int | None) -> DataError:
    problem = "expected a regular file; this is a link, pipe, device, socket or folder."
    return DataError("not_a_file", problem, remedy="Deliver a copy of the file itself.", file=_shown(path, folder))


def _shown(path: Path, folder: int | None) -> str:
    """The name of a delivery, or of a file of a folder that is one."""
    return path.name if folder is None else f"{path.parent.name}/{path.name}"


def _verify(path: Path, sha256: str, folder: int | None = None) -> None:
    """Compare the digest with the side file's first word."""
    try:
        file, _ = _open_regular(path.with_name(f"{path.name}.sha256"), folder)
    except FileNotFoundError:
        return
    with file:
        words = file.read(4096).split()
    if not words or words[0].lower() != sha256.encode():
        raise DataError(
            "checksum_mismatch",
            f"expected the sha256 that {path.name + '.sha256'!r} begins with; the content has {sha256}.",
            remedy="Deliver the file again, and its side file with it.",
            file=_shown(path, folder),
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


def read_header(delivery: Delivery, csv: CsvOptions, *, pattern: str | None = None) -> list[Field]:
    """Name and Arrow type of every column, in the file's order; CSV is all text, JSON lines as in the first rows."""
    with _reading(delivery):
        return _open(delivery, Reading(csv, pattern, ROWS))[0]


def read_chunks(
    delivery: Delivery,
    schema: Schema | None,
    csv: CsvOptions,
    *,
    rows: int | None = None,
    columns: Sequence[str] | None = None,
    pattern: str | None = None,
    first: int = 0,
) -> Iterator[pa.Table]:
    """Tables of exactly ``rows`` rows (the last one fewer) in the file's order; always at least one table.

    Without ``rows`` those that the schema wants at once; fewer where they would hold more than ``LARGEST_TABLE`` bytes.
    The header is checked against ``schema`` before the first row. Only ``columns`` are decoded: by default those that
    the schema requires and the label where the file has it; without a schema all. ``pattern`` is that of files of
    lines. The rows before ``first`` are left out, in a Parquet file. Raises :class:`DataError`.
    """
    rows = rows or (ROWS if schema is None else schema.rows_at_once)
    with _reading(delivery):
        header, tables = _open(delivery, Reading(csv, pattern, rows, first))
        names = [name for name, _ in header]
        if schema is not None:
            _expect_lines(delivery, names, schema)
            check_header(header, schema, file=delivery.name)
            labels = [schema.label] if schema.label and schema.label in names else []
            columns = [*schema.required, *labels] if columns is None else columns
        wanted = list(dict.fromkeys(names if columns is None else columns))
        if absent := [name for name in wanted if name not in names]:
            remedy = f"Deliver the column, or leave it out of the configuration.{suggestion(absent[0], names)}"
            _refuse(delivery, "missing_column", "an expected column is missing.", remedy, column=absent[0])
        types = dict(header)
        empty = pa.table({name: _empty(types[name]) for name in wanted})
        yield from _rechunk(tables(wanted), rows, empty)


def _expect_lines(delivery: Delivery, names: Sequence[str], schema: Schema) -> None:
    """Refuse lines that have not the columns: a table may well be readable under the suffix of its own format."""
    suffix = format_suffix(delivery.name)
    is_lines = isinstance(delivery, FileDelivery) and READERS.get(suffix) is _read_lines
    if is_lines and not set(schema.required) <= set(names):
        problem = f"the name ends in {suffix!r}: a file of lines, which have the columns {list(names)} only."
        remedy = "Deliver it under the suffix of its format, or name the columns in source.lines.pattern."
        _refuse(delivery, "wrong_format", problem, remedy)


def _empty(dtype: pa.DataType) -> pa.Array:
    # Arrow's own empty table refuses tensors that its own writer makes
    if isinstance(dtype, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(dtype, pa.array([], dtype.storage_type))
    return pa.array([], dtype)


def _rechunk(tables: Iterator[pa.Table], rows: int, empty: pa.Table) -> Iterator[pa.Table]:
    """The same rows in tables of exactly ``rows``: what a row gives must not depend on a file's blocks.

    Fewer where they are large: nothing in a record bounds its text or the file of its image.
    """
    held: list[pa.Table] = []
    done = False
    for table in tables:
        held.append(table)
        while sum(map(len, held)) >= rows or sum(part.nbytes for part in held) > LARGEST_TABLE:
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
    except MemoryError:  # Arrow's is one of its own errors, too
        raise
    except (*PARSER_ERRORS, OSError) as error:
        if isinstance(error, OSError) and (error.errno or isinstance(error, DeliveryChanged)):
            raise
        delivery.assert_unchanged()
        _refuse(delivery, "unreadable", f"the content cannot be read ({type(error).__name__}).", remedy)


def _open(delivery: Delivery, reading: Reading) -> tuple[list[Field], Tables]:
    """Header and row reader of the delivery's format, which its suffix names and its first bytes must confirm."""
    if isinstance(delivery, FolderDelivery):
        return _read_folder(delivery, reading)
    suffix = format_suffix(delivery.name)
    if suffix not in READERS:
        known = ", ".join(READERS)
        remedy = "Deliver one of these formats."
        if suffix in IMAGES:
            remedy = "Deliver images in a folder of their own, or as the cells of a column of a Parquet file."
        _refuse(delivery, "unknown_format", f"the suffix must be one of {known}.", remedy)
    if not delivery.size:
        _refuse(delivery, "empty_file", "expected a header or records; the file has 0 bytes.", "Deliver it again.")
    found, reader = _sniff(delivery), READERS[suffix]
    if found not in (BINARY.get(reader, "text"), None):
        problem = f"the name ends in {suffix!r} and the content is {found}."
        _refuse(delivery, "wrong_format", problem, "Deliver it uncompressed, under the suffix of its format.")
    return reader(delivery, reading)


def format_suffix(name: str) -> str:
    """What names the format; MNIST's files have a dash where others have a point."""
    return ".idx3-ubyte" if name.lower().endswith("-idx3-ubyte") else Path(name).suffix.lower()


def _sniff(delivery: FileDelivery) -> str | None:
    """What the first bytes say: a binary format, ``text``, or None where they do not say.

    "PAR1" may also be the name of a CSV file's first column: only a file that also ends so, or is no text, is Parquet.
    """
    head, tail = delivery.peek(16), delivery.peek(4, -4)
    text = not re.search(rb"[^\t\n\r -~]", head)
    if b"PAR1".startswith(head[:4]) and (tail in (b"PAR1", b"PARE") or not text):
        return "Parquet"
    return next((kind for magic, kind in MAGIC.items() if head.startswith(magic)), "text" if text else None)


# ---------------------------------------------------------------- Parquet


def _read_parquet(delivery: FileDelivery, reading: Reading) -> tuple[list[Field], Tables]:
    tail = delivery.peek(4, -4)
    if tail == b"PARE":
        _refuse(delivery, "unreadable", "the Parquet file is encrypted.", "Deliver it without encryption.")
    if delivery.size < 12 or tail != b"PAR1":
        _refuse(delivery, "truncated", "the Parquet file has no footer: its end is missing.", "Deliver it again.")
    file = _parquet_file(delivery)
    groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
    bytes_of_a_row = max((group.total_byte_size // max(1, group.num_rows) for group in groups), default=0)
    rows = max(1, min(reading.rows, LARGEST_TABLE // 4 // max(1, bytes_of_a_row)))
    ends = list(accumulate(group.num_rows for group in groups))
    wanted = [i for i, end in enumerate(ends) if end > reading.first]
    skipped = ends[wanted[0]] - groups[wanted[0]].num_rows if wanted else reading.first

    def tables(names: Sequence[str]) -> Iterator[pa.Table]:
        count = skipped
        options = {"row_groups": wanted} if reading.first else {}
        for batch in file.iter_batches(batch_size=rows, columns=list(names), use_threads=False, **options):
            table = pa.Table.from_batches([batch]).select(list(names))
            for name in names:
                _validate(delivery, name, table.column(name))
            before, count = reading.first - count, count + table.num_rows
            yield table.slice(before) if before > 0 else table
        if count != file.metadata.num_rows:  # a damaged page header makes the reader stop early, without an error
            problem = f"the footer promises {file.metadata.num_rows} rows; the pages hold {count}."
            _refuse(delivery, "unreadable", problem, "Deliver it again.")

    return [(field.name, field.type) for field in file.schema_arrow], tables


def rows_of_parquet(delivery: Delivery) -> int | None:
    """How many rows a Parquet file has, as its footer says; None of another file, or where that cannot be read."""
    if not isinstance(delivery, FileDelivery) or READERS.get(format_suffix(delivery.name)) is not _read_parquet:
        return None
    try:
        return int(_parquet_file(delivery).metadata.num_rows)
    except (*PARSER_ERRORS, OSError):
        return None


def _parquet_file(delivery: FileDelivery) -> pq.ParquetFile:
    # pre_buffer keeps a file's compressed bytes in memory; foreign files may carry checksums, and then they count
    return pq.ParquetFile(pa.PythonFile(delivery.stream(), "r"), pre_buffer=False, page_checksum_verification=True)


def _validate(delivery: FileDelivery, name: str, column: pa.ChunkedArray) -> None:
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

    def __init__(self, delivery: FileDelivery, encoding: str, row_at: Callable[[int], int], tail: bytes = b"") -> None:
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
        wide = self._delivery.peek(2) in WIDE
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


def _read_csv(delivery: FileDelivery, reading: Reading) -> tuple[list[Field], Tables]:
    """All columns as text: what a cell means is the contract's business, not the parser's."""
    csv = reading.csv
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


def _csv_header(delivery: FileDelivery, csv: CsvOptions) -> list[str]:
    """The raw names, repeated ones included."""
    text = io.TextIOWrapper(io.BufferedReader(_csv_stream(delivery, csv)), encoding="utf-8-sig", newline="")
    names = next(filter(None, csv_text.reader(text, delimiter=csv.delimiter)), [])
    if not any(name.strip() for name in names):
        _refuse(delivery, "empty_file", "expected a header; the file begins with blank text.", "Deliver it again.")
    return names


def _csv_stream(delivery: FileDelivery, csv: CsvOptions, tail: bytes = b"") -> _Utf8:
    return _Utf8(delivery, csv.encoding, lambda offset: sum(1 for _ in _csv_lines(delivery, csv, offset + 1)) - 2, tail)


def _csv_lines(delivery: FileDelivery, csv: CsvOptions, stop: int | None = None) -> Iterator[int]:
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
    delivery: FileDelivery, csv: CsvOptions, names: Sequence[str], wanted: Sequence[str], ragged: list[Any]
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


def _refuse_csv(delivery: FileDelivery, csv: CsvOptions, ragged: list[Any], too_long: bool) -> NoReturn:
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


def _read_json_lines(delivery: FileDelivery, reading: Reading) -> tuple[list[Field], Tables]:
    """Types are those of the first ``rows`` rows; a key that none of them has is a missing column."""
    parsed = _json_rows(delivery)
    chunks = iter(lambda: list(islice(parsed, reading.rows)), [])
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


def _json_rows(delivery: FileDelivery) -> Iterator[dict[str, Any]]:
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


def _json_row(delivery: FileDelivery, line: bytes, number: int, count: int) -> dict[str, Any]:
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


# ---------------------------------------------------------------- lines


def _read_lines(delivery: FileDelivery, reading: Reading) -> tuple[list[Field], Tables]:
    """Lines as they are, or cut into the pattern's groups; see the module's text for what becomes of odd bytes."""
    if delivery.peek(2) in WIDE:
        _refuse(delivery, "encoding", "the file begins like UTF-16.", "Write the lines in UTF-8.")
    if next(_lines(delivery), None) is None:
        _refuse(delivery, "empty_file", "expected lines; the file holds blank ones only.", "Deliver it again.")

    def tables(wanted: Sequence[str]) -> Iterator[pa.Table]:
        lines = _lines(delivery)
        while held := list(_some(lines, reading.rows, len)):
            yield _cut(held, reading.pattern).select(list(wanted))

    return [(field.name, field.type) for field in _cut([], reading.pattern).schema], tables


def _lines(delivery: FileDelivery) -> Iterator[str]:
    """The lines that are not blank."""
    file, begin = io.BufferedReader(delivery.stream(), 2**18), codecs.BOM_UTF8
    for line in iter(lambda: file.readline(LONGEST_TEXT), b""):
        rest = line
        while len(rest) == LONGEST_TEXT and not rest.endswith(b"\n"):
            rest = file.readline(LONGEST_TEXT)
        kept, begin = line.removeprefix(begin).rstrip(b"\r\n"), b""
        if kept.strip():
            yield kept.decode("utf-8", "replace").replace("\0", "\ufffd")


_Item = TypeVar("_Item")


def _some(items: Iterator[_Item], most: int, size: Callable[[_Item], int]) -> Iterator[_Item]:
    """The next ``items``, at most so many of them and about ``BLOCK`` bytes."""
    total = 0
    for item in islice(items, most):
        yield item
        total += size(item)
        if total > BLOCK:
            return


def _cut(lines: list[str], pattern: str | None) -> pa.Table:
    cells = pa.array(lines, pa.string())
    if pattern is None:
        return pa.table({"line": cells})
    groups = pc.extract_regex(cells, pattern)
    return pa.Table.from_arrays(groups.flatten(), [groups.type.field(i).name for i in range(groups.type.num_fields)])


# ---------------------------------------------------------------- images


def _read_folder(delivery: FolderDelivery, reading: Reading) -> tuple[list[Field], Tables]:
    schema = pa.schema([("file", pa.string()), ("image", pa.binary())])

    def tables(wanted: Sequence[str]) -> Iterator[pa.Table]:
        members = iter(delivery.members)
        while held := list(_some(members, reading.rows, lambda member: member.state[0])):
            names = [os.fsencode(member.name).decode("utf-8", "replace") for member in held]
            cells = {"file": names, "image": map(delivery.read, held) if "image" in wanted else [None] * len(held)}
            yield pa.table({field.name: pa.array(cells[field.name], field.type) for field in schema}).select(
                list(wanted)
            )

    return [(field.name, field.type) for field in schema], tables


class _Array(NamedTuple):
    """An array in a file: its type, its shape (N, ...), and the stream that its items follow in."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    stream: Any

    @property
    def row(self) -> int:
        """Bytes of one of the N rows."""
        return int(np.prod(self.shape[1:], dtype=object)) * self.dtype.itemsize


def _read_npy(delivery: FileDelivery, reading: Reading) -> tuple[list[Field], Tables]:
    def opened() -> _Array:
        array = _npy_header(delivery, io.BufferedReader(delivery.stream()))
        _check_length(delivery, array, delivery.size - array.stream.tell())
        return array

    return _image_array(delivery, reading, opened)


def _read_idx(delivery: FileDelivery, reading: Reading) -> tuple[list[Field], Tables]:
    """MNIST's format: two zeros, a type, the number of dimensions, and these as 32 bits, the largest byte first."""

    def opened() -> _Array:
        stream = io.BufferedReader(delivery.stream())
        head = stream.read(4)
        if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in IDX:
            _refuse(delivery, "wrong_format", "the content does not begin as an IDX file.", "Deliver it uncompressed.")
        sizes = stream.read(4 * head[3])
        if len(sizes) < 4 * head[3]:
            _refuse(delivery, "truncated", "the file ends in its header.", "Deliver it again.")
        array = _Array(np.dtype(IDX[head[2]]), tuple(np.frombuffer(sizes, ">u4").tolist()), stream)
        _check_length(delivery, array, delivery.size - stream.tell())
        return array

    return _image_array(delivery, reading, opened)


IDX = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def _image_array(delivery: FileDelivery, reading: Reading, opened: Callable[[], _Array]) -> tuple[list[Field], Tables]:
    """The column ``image`` of the array that ``opened`` gives, from its start each time."""
    array = opened()
    if len(array.shape) not in (3, 4):
        problem = f"expected an array (N, H, W) or (N, H, W, C); it has the shape {list(array.shape)}."
        _refuse(delivery, "wrong_type", problem, "Deliver images in such an array.", column="image")

    def tables(wanted: Sequence[str]) -> Iterator[pa.Table]:
        return _array_tables(delivery, {"image": opened()} if wanted else {}, reading.rows)

    return [("image", _array_type(delivery, array, "image"))], tables


def _read_npz(delivery: FileDelivery, reading: Reading) -> tuple[list[Field], Tables]:
    """Arrays are decompressed as they are read, all columns in step."""
    archive = zipfile.ZipFile(io.BufferedReader(delivery.stream()))
    infos = [info for info in archive.infolist() if info.filename.endswith(".npy")]

    def opened(info: zipfile.ZipInfo) -> _Array:
        if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            problem = "an array is encrypted or compressed by another method than 'deflate'."
            _refuse(delivery, "unreadable", problem, "Write it with numpy.savez or numpy.savez_compressed.")
        array = _npy_header(delivery, archive.open(info))
        _check_length(delivery, array, info.file_size - array.stream.tell())
        return array

    found: list[tuple[Field, zipfile.ZipInfo]] = []
    for info in infos:
        array, name = opened(info), info.filename.removesuffix(".npy")
        if len(array.shape) in (1, 3, 4):
            found.append(((name, _array_type(delivery, array, name)), info))

    def tables(wanted: Sequence[str]) -> Iterator[pa.Table]:
        arrays = {name: opened(info) for (name, _), info in found if name in wanted}
        lengths = {name: array.shape[0] for name, array in arrays.items()}
        if len(set(lengths.values())) > 1:
            problem = f"the columns must have the same number of rows; they have {lengths}."
            _refuse(delivery, "ragged", problem, "Deliver arrays whose first dimension is the same.")
        return (table.select(list(wanted)) for table in _array_tables(delivery, arrays, reading.rows))

    return [field for field, _ in found], tables


def _npy_header(delivery: FileDelivery, stream: Any) -> _Array:
    """The array that begins at the stream's position; its header is parsed as a literal, and nothing else is."""
    if np.lib.format.read_magic(stream) != (1, 0):  # the others allow headers of 4 GB, for types that are no columns
        _refuse(delivery, "unreadable", "the array's header is not of version 1.0.", "Write it with numpy.save.")
    shape, by_columns, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype.hasobject:
        problem = "an array holds objects, which would have to be executed to be read."
        _refuse(delivery, "unsafe_array", problem, "Write numbers or text: array.astype(float), array.astype(str).")
    if by_columns and len(shape) > 1:
        problem = "an array is stored in Fortran's order, in which its rows are spread over the file."
        _refuse(delivery, "fortran_order", problem, "Write numpy.ascontiguousarray(array).")
    return _Array(dtype, shape, stream)


def _check_length(delivery: FileDelivery, array: _Array, there: int) -> None:
    wanted = (array.shape[0] if array.shape else 1) * array.row
    if there != wanted:
        rule = "truncated" if there < wanted else "unreadable"
        problem = f"the header promises {wanted} bytes of items; the file has {there}."
        _refuse(delivery, rule, problem, "Deliver it again.")


def _array_type(delivery: FileDelivery, array: _Array, name: str) -> pa.DataType:
    """Arrow's type of a column of the array's rows."""
    with suppress(pa.ArrowException, ValueError, OverflowError):
        plain = pa.string() if array.dtype.kind == "U" else pa.from_numpy_dtype(array.dtype.newbyteorder("="))
        if len(array.shape) == 1 and array.row:
            return plain
        if array.dtype.kind in "biuf" and min(array.shape[1:]) > 0:
            return pa.fixed_shape_tensor(plain, array.shape[1:])
    problem = f"an array of the type {array.dtype} and the shape {list(array.shape)} is no column."
    _refuse(delivery, "wrong_type", problem, "Deliver numbers, text, times, or images with pixels.", column=name)


def _array_tables(delivery: FileDelivery, arrays: dict[str, _Array], rows: int) -> Iterator[pa.Table]:
    """Tables of the arrays' rows, about ``BLOCK`` bytes at a time."""
    total = next(iter(arrays.values())).shape[0] if arrays else 0
    step = max(1, min(rows, BLOCK // max(1, sum(array.row for array in arrays.values()))))
    for start in range(0, total, step):
        count = min(step, total - start)
        yield pa.table({name: _array_rows(delivery, array, name, count) for name, array in arrays.items()})


def _array_rows(delivery: FileDelivery, array: _Array, name: str, count: int) -> pa.Array:
    """The next ``count`` rows of the array."""
    content = array.stream.read(count * array.row)
    if len(content) < count * array.row:
        _refuse(delivery, "truncated", "the file ends before its last row.", "Deliver it again.")
    items = np.frombuffer(content, array.dtype)
    native = items.astype(array.dtype.newbyteorder("="), copy=False)
    dtype = _array_type(delivery, array, name)
    if len(array.shape) == 1:
        return pa.array(native.tolist() if native.dtype.kind == "U" else native, dtype)
    return pa.ExtensionArray.from_storage(
        dtype, pa.FixedSizeListArray.from_arrays(pa.array(native), dtype.storage_type.list_size)
    )


Reader = Callable[[FileDelivery, Reading], tuple[list[Field], Tables]]
READERS: dict[str, Reader] = {
    ".parquet": _read_parquet,
    ".pq": _read_parquet,
    ".csv": _read_csv,
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".log": _read_lines,
    ".txt": _read_lines,
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".idx": _read_idx,
    ".idx3-ubyte": _read_idx,
}
BINARY: dict[Reader, str | None] = {
    _read_parquet: "Parquet",
    _read_npy: MAGIC[b"\x93NUMPY"],
    _read_npz: MAGIC[b"PK\x03\x04"],
    _read_idx: None,
}
