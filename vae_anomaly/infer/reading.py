"""The first records of files and folders, read as leniently as a proposal allows; ``store.sources`` reads batches.

=========================================  ==============================================================
what there is                              its columns
=========================================  ==============================================================
``.parquet``, ``.csv``, ``.jsonl``, ...    as in the file
``.npz``                                   each array of one dimension, and the images
``.npy``, ``.idx``, ``.idx3-ubyte``        ``image``
a folder of image files                    ``file`` (their names) and ``image``
``.log``, ``.txt``                         ``line``
=========================================  ==============================================================
"""

from __future__ import annotations

import csv
import json
import os
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as default
from functools import reduce
from itertools import islice
from operator import add
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from vae_anomaly.errors import ConfigError
from vae_anomaly.infer.pictures import SEEN, Pictures, array_fault, look_at_array, look_at_files

ROWS = 50_000
"""Most records that are read: enough to support the smallest alpha."""
FEWEST = 10  # images that are looked at in each file, however many were seen before

IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
IGNORED_SUFFIXES = ("~", ".tmp", ".part", ".partial", ".crdownload", ".swp", ".sha256")
IGNORED_PREFIXES = (".", "~", "_")
LONGEST_TEXT = 2**20  # bytes of a line of a log
WIDE = (b"\xff\xfe", b"\xfe\xff")
IDX = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}

Content = Literal["tables", "images", "lines"]


@dataclass(frozen=True)
class Part:
    """What was read of one file or folder.

    A column of images is null in ``table``, and ``pictures`` says what they are like. Columns that cannot be used are
    null as well, or absent; ``unusable`` says why.
    """

    table: pa.Table
    content: Content = "tables"
    pictures: Mapping[str, Pictures] = default(default_factory=dict)
    unusable: Mapping[str, str] = default(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """The first records of the ``files``, and of the folders of images, in ``path``.

    ``complete`` when there are no more.
    """

    path: Path
    files: Sequence[Path]
    part: Part
    complete: bool


# ---- places ----


def read_sample(training: Path) -> Sample:
    """The first :data:`ROWS` records of a file, or of a folder's files in the order of their names.

    Raises
    ------
    ConfigError
        No record, a file that cannot be read, or records of different kinds.
    """
    files, folders = _only_records(training) if training.is_dir() else (_known(training), [])
    parts = list(_parts(files, 0))
    if not parts or parts[0].content == "images":  # beside tables and lines a folder is no delivery
        files = [*files, *folders]
        parts += _parts(folders, sum(len(part.table) for part in parts))
    rows = sum(len(part.table) for part in parts)
    if not rows:
        raise ConfigError(f"{training} must hold records. Got 0 of them.")
    return Sample(training, files, _joined(training, parts), rows < ROWS)


def read_batches(inbox: Path) -> Iterator[pa.Table]:
    """The first batches that have arrived, as far as they can be read."""
    try:
        there = _entries(inbox)
    except OSError:
        return
    for file in sorted([*there.records, *there.folders])[:10]:
        try:
            yield read_part(file, ROWS, FEWEST).table
        except ConfigError:
            continue


def _parts(files: Sequence[Path], rows: int) -> Iterator[Part]:
    """What is in ``files``, until so many images and, with the ``rows`` there are already, records were seen."""
    images = 0
    for file in files:
        if rows >= ROWS:
            return
        part = read_part(file, ROWS - rows, max(FEWEST, SEEN - images))
        rows += len(part.table)
        images += max((seen.count for seen in part.pictures.values()), default=0)
        yield part


class _Entries(NamedTuple):
    """What is in a folder, by name."""

    images: list[Path]
    records: list[Path]
    folders: list[Path]
    others: list[Path]


def _entries(folder: Path) -> _Entries:
    found = _Entries([], [], [], [])
    for entry in sorted(folder.iterdir()):
        name = entry.name.lower()
        if name.startswith(IGNORED_PREFIXES) or name.endswith(IGNORED_SUFFIXES):
            continue
        suffix = format_suffix(name)
        kind = found.images if suffix in IMAGES else found.records if suffix in READERS else found.others
        (found.folders if entry.is_dir() else kind).append(entry)
    return found


def _only_records(folder: Path) -> tuple[list[Path], list[Path]]:
    """The files and the folders of images in a folder of records; one of image files is itself the only one."""
    images, records, folders, others = _entries(folder)
    if images:
        return [], [folder]
    if not records and not any(_entries(inner).images for inner in folders):
        there = sorted([*folders, *others])
        what = f"It has {_names(there)}." if there else "It is empty."
        raise ConfigError(f"{folder} must hold files that end in {_endings()}, or images ({', '.join(IMAGES)}). {what}")
    if others:
        raise ConfigError(
            f"{folder} must hold nothing but records, for all of it is read. It has {_names(others)}, too."
            " Move it away, or give the file of records itself."
        )
    return records, folders


def _known(file: Path) -> list[Path]:
    suffix = format_suffix(file.name)
    if suffix in IMAGES:
        raise ConfigError(f"{file} must be a folder of images. Got one of them. Give the folder that it lies in.")
    if suffix not in READERS:
        raise ConfigError(f"{file} must be a file that ends in {_endings()}. Got {file.suffix!r}.")
    return [file]


def format_suffix(name: str) -> str:
    """What names the format; MNIST's files have a dash where others have a point."""
    return ".idx3-ubyte" if name.lower().endswith("-idx3-ubyte") else Path(name).suffix.lower()


def _endings() -> str:
    return ", ".join(READERS)


def _names(paths: Sequence[Path]) -> str:
    return ", ".join(repr(path.name) for path in paths[:5])


def _joined(training: Path, parts: Sequence[Part]) -> Part:
    """The rows of all parts."""
    contents = sorted({part.content for part in parts})
    if len(contents) > 1:
        raise ConfigError(
            f"{training} must hold tables, images or lines, of which a monitor watches one. Got"
            f" {' and '.join(contents)}. Keep them in folders of their own."
        )
    tables = [part.table for part in parts]
    try:
        table = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException:  # text in one format, typed in another
        table = _concatenate_as_text(training, tables)
    unusable = {name: why for part in parts for name, why in part.unusable.items()}
    return Part(table, parts[0].content, _common_pictures(training, parts, unusable), unusable)


def _common_pictures(training: Path, parts: Sequence[Part], unusable: dict[str, str]) -> dict[str, Pictures]:
    """The pictures of the columns that all parts have; other columns of images become ``unusable``."""
    names = list(dict.fromkeys(name for part in parts for name in part.pictures))
    common = [name for name in names if all(name in part.pictures for part in parts)]
    if names and not common:
        what = f"Got {', '.join(map(repr, names[:5]))}. Name it alike in all files."
        raise ConfigError(f"The files of {training} must have a column of images in common. {what}")
    unusable |= {name: "images, which not every file has: ignored" for name in names if name not in common}
    return {name: reduce(add, (part.pictures[name] for part in parts)) for name in common}


# ---- one file or folder ----


def read_part(file: Path, rows: int, images: int) -> Part:
    """The first ``rows`` records of a file or of a folder of images, of which so many ``images`` are looked at."""
    reader = _folder if file.is_dir() else READERS[format_suffix(file.name)]
    try:
        part = reader(file, rows, images)
    except ConfigError:
        raise
    except PARSER_ERRORS:  # their texts may quote records
        raise ConfigError(
            f"{file} must be {FORMATS[reader]}. It cannot be read as such. Repair it or move it away."
        ) from None
    twice = [name for name, count in Counter(part.table.column_names).items() if count > 1]
    if twice:
        raise ConfigError(f"{file} must name each column once. Got {', '.join(map(repr, twice[:5]))} repeatedly.")
    return Part(part.table.slice(0, rows), part.content, part.pictures, part.unusable)


def _parquet(file: Path, limit: int, images: int) -> Part:
    """Columns of bytes and tensors are null, for images of all records would not fit into memory."""
    with pq.ParquetFile(file) as parquet:
        schema, rows = parquet.schema_arrow, min(parquet.metadata.num_rows, limit)
        if len(set(schema.names)) < len(schema):
            return Part(_nothing(schema.names))
        large = [f.name for f in schema if _is_bytes(f.type) or isinstance(f.type, pa.FixedShapeTensorType)]
        others = pa.schema([f for f in schema if f.name not in large])
        batches = parquet.iter_batches(batch_size=min(limit, 10_000), columns=others.names if large else None)
        table = pa.Table.from_batches((batch.select(others.names) for batch in _until(batches, limit)), others)
        pictures, unusable = {}, {}
        for name in large:
            first = next(parquet.iter_batches(batch_size=images, columns=[name]), None)
            found = None if first is None else _pictures_of(first.column(name))
            if isinstance(found, Pictures):
                pictures[name] = found
            else:
                unusable[name] = found or "all cells are missing: ignored"
    columns = {name: pa.nulls(rows) if name in large else table[name].slice(0, rows) for name in schema.names}
    return Part(pa.table(columns), "images" if pictures else "tables", pictures, unusable)


def _is_bytes(dtype: pa.DataType) -> bool:
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
    return any(test(dtype) for test in tests)


def _pictures_of(cells: pa.Array) -> Pictures | str:
    """What the images in the first cells of a column are like; a text says why it has none."""
    from vae_anomaly.images import BEGINNINGS

    if not isinstance(cells.type, pa.FixedShapeTensorType):
        contents = cells.to_pylist()
        present = [content for content in contents if content is not None]
        if not present or 2 * sum(content.startswith(BEGINNINGS) for content in present) < len(present):
            return f"{cells.type} cannot be used: ignored" if present else "all cells are missing: ignored"
        return look_at_files(contents)
    dtype, shape = np.dtype(cells.type.value_type.to_pandas_dtype()), tuple(cells.type.shape)
    fault = array_fault(dtype, shape)
    if cells.type.permutation not in (None, list(range(len(shape)))):
        fault = "their dimensions are permuted"
    if fault:
        return f"tensors that are no images, for {fault}: ignored"
    pixels = cells.storage.drop_null().flatten().fill_null(0).to_numpy(zero_copy_only=False)
    return look_at_array(pixels.reshape(-1, *shape))


def _csv(file: Path, limit: int, _: int) -> Part:
    """All cells as text; rows with more or fewer cells than the header are left out."""
    delimiter = delimiter_of(file)
    with file.open(encoding="utf-8-sig", newline="") as text:
        names = next(csv.reader(text, delimiter=delimiter), [])
    if not names:
        raise ConfigError(f"{file} must begin with a line of column names. It is empty.")
    if len(set(names)) < len(names):
        return Part(_nothing(names))
    reader = pyarrow.csv.open_csv(
        file,
        parse_options=pyarrow.csv.ParseOptions(
            delimiter=delimiter, newlines_in_values=True, invalid_row_handler=lambda row: "skip"
        ),
        convert_options=pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string())),
    )
    return Part(pa.Table.from_batches(_until(reader, limit), reader.schema))


def delimiter_of(file: Path) -> str:
    """The character of ``, ; tab |`` that stands most often in the first line, outside quotes."""
    with file.open(encoding="utf-8-sig", newline="") as text:
        line = re.sub(r'"[^"]*"', "", text.readline(1_000_000))
    return max(",;\t|", key=line.count)


def _json_lines(file: Path, limit: int, _: int) -> Part:
    """One object a line; lines that are none are left out."""
    records: list[dict[str, object]] = []
    with file.open("rb") as lines:
        while len(records) < limit and (line := lines.readline(1 << 24)):
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict):
                records.append(record)
    names = dict.fromkeys(name for record in records for name in record)
    return Part(pa.table({name: _array([record.get(name) for record in records]) for name in names}))


def _array(values: list[object]) -> pa.Array:
    """JSON values as one Arrow array; as text where their types are mixed."""
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError, UnicodeError):
        texts = (v if v is None or isinstance(v, str) else json.dumps(v) for v in values)
        return pa.array([t if t is None else t.encode("utf-8", "replace").decode() for t in texts], pa.string())


def _nothing(names: Sequence[str]) -> pa.Table:
    """No rows of columns with these names, some of them the same."""
    return pa.table([pa.array([], pa.string())] * len(names), names=list(names))


# ---- lines, images and arrays ----


def _lines(file: Path, limit: int, _: int) -> Part:
    """Lines that are not blank; what is no UTF-8 becomes U+FFFD."""
    with file.open("rb") as content:
        begin = content.read(4096)
        if begin.startswith(WIDE):
            raise ConfigError(f"{file} must be lines of text in UTF-8. It begins like UTF-16. Write it in UTF-8.")
        odd = begin.decode("utf-8", "replace")
        if 4 * (odd.count("\ufffd") + odd.count("\0")) > len(odd) > 0:
            raise ConfigError(f"{file} must be lines of text. It is no text. Decompress it, or move it away.")
        content.seek(0)
        kept = (line.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n") for line in _cut_lines(content))
        texts = [
            line.decode("utf-8", "replace").replace("\0", "\ufffd") for line in islice(filter(bytes.strip, kept), limit)
        ]
    return Part(pa.table({"line": pa.array(texts, pa.string())}), "lines")


def _cut_lines(content: IO[bytes]) -> Iterator[bytes]:
    """The lines, the beginning of those that are too long."""
    while line := content.readline(LONGEST_TEXT):
        rest = line
        while len(rest) == LONGEST_TEXT and not rest.endswith(b"\n"):
            rest = content.readline(LONGEST_TEXT)
        yield line


def _folder(folder: Path, limit: int, images: int) -> Part:
    """The files of a folder of images; those that are none count as images that cannot be decoded."""
    found, records, folders, others = _entries(folder)
    if records or folders or not found:
        there = [*records, *folders, *([] if found else others)]
        raise ConfigError(
            f"{folder} must hold image files ({', '.join(IMAGES)}) and nothing else, for all of it is read."
            f" {f'It has {_names(there)}, too' if there else 'It is empty'}. Move what is no image to another folder."
        )
    files = sorted([*found, *others])[:limit]
    names = [os.fsencode(file.name).decode("utf-8", "replace") for file in files]
    table = pa.table({"file": pa.array(names, pa.string()), "image": pa.nulls(len(files))})
    return Part(table, "images", {"image": look_at_files(file.read_bytes() for file in files[:images])})


class _Array(NamedTuple):
    """An array in a file: its type, its shape (N, ...), and the stream that its items follow in."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    stream: IO[bytes]

    def take(self, count: int) -> np.ndarray:
        """The first ``count`` rows, in the machine's order of bytes; to be called once."""
        kept = min(count, self.shape[0])
        shape = (kept, *self.shape[1:])
        content = self.stream.read(int(np.prod(shape, dtype=object)) * self.dtype.itemsize)
        return np.frombuffer(content, self.dtype).reshape(shape).astype(self.dtype.newbyteorder("="))


def _npy_array(file: Path, stream: IO[bytes], size: int) -> _Array:
    """The array in a stream of so many bytes; its header is parsed as a literal, and nothing else is."""
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("version")
    shape, by_columns, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype.hasobject:
        problem = "It holds objects, which would have to be executed. Write array.astype(float) or array.astype(str)"
        raise ConfigError(f"{file} must hold arrays of numbers or text. {problem}.")
    if by_columns and len(shape) > 1:
        problem = "One is in Fortran's order. Write numpy.ascontiguousarray(array)"
        raise ConfigError(f"{file} must hold arrays in the order of their rows. {problem}.")
    if size - stream.tell() != int(np.prod(shape, dtype=object)) * dtype.itemsize:
        raise ValueError("length")
    return _Array(dtype, shape, stream)


def _npy(file: Path, limit: int, images: int) -> Part:
    with file.open("rb") as stream:
        return _image_part(file, _npy_array(file, stream, file.stat().st_size), limit, images)


def _idx(file: Path, limit: int, images: int) -> Part:
    """MNIST's format: two zeros, a type, the number of dimensions, and these as 32 bits, the largest byte first."""
    with file.open("rb") as stream:
        head = stream.read(4)
        dtype = np.dtype(IDX[head[2]])
        shape = tuple(np.frombuffer(stream.read(4 * head[3]), ">u4").tolist())
        if (
            head[:2] != b"\0\0"
            or file.stat().st_size - stream.tell() != int(np.prod(shape, dtype=object)) * dtype.itemsize
        ):
            raise ValueError("length")
        return _image_part(file, _Array(dtype, shape, stream), limit, images)


def _image_part(file: Path, array: _Array, limit: int, images: int) -> Part:
    _require_images(file, array)
    rows = min(array.shape[0], limit)
    return Part(pa.table({"image": pa.nulls(rows)}), "images", {"image": look_at_array(array.take(images))})


def _require_images(file: Path, array: _Array) -> None:
    if fault := array_fault(array.dtype, array.shape[1:]):
        raise ConfigError(f"{file} must be an array (N, H, W) or (N, H, W, C) of N images: {fault}. Convert it so.")


def _npz(file: Path, limit: int, images: int) -> Part:
    """The arrays of images and of one dimension, as far as they have the length of the longest array of images."""
    with zipfile.ZipFile(file) as archive:
        arrays = {
            info.filename.removesuffix(".npy"): _npy_array(file, archive.open(info), info.file_size)
            for info in archive.infolist()
            if info.filename.endswith(".npy")
        }
        stacks = {name: array for name, array in arrays.items() if len(array.shape) in (3, 4)}
        usable = {name: array for name, array in stacks.items() if not array_fault(array.dtype, array.shape[1:])}
        for array in [] if usable else stacks.values():
            _require_images(file, array)
        columns = usable or {name: array for name, array in arrays.items() if len(array.shape) == 1}
        if not columns:
            shown = ", ".join(f"{name!r} {list(array.shape)}" for name, array in list(arrays.items())[:5])
            problem = f"Got {shown or 'no arrays'}. Write each column as an array of its own"
            raise ConfigError(f"{file} must hold images (N, H, W[, C]), or columns (N). {problem}.")
        count = max(array.shape[0] for array in columns.values())
        table, pictures, unusable = {}, {}, {}
        for name, array in arrays.items():
            if name in usable and array.shape[0] == count:
                table[name], pictures[name] = pa.nulls(min(count, limit)), look_at_array(array.take(images))
            elif array.shape == (count,):
                values = array.take(limit)
                table[name] = pa.array(values.tolist() if values.dtype.kind == "U" else values)
            else:
                unusable[name] = f"an array of the shape {list(array.shape)}, not one value for each record: ignored"
    return Part(pa.table(table), "images" if pictures else "tables", pictures, unusable)


Reader = Callable[[Path, int, int], Part]
FORMATS: dict[Reader, str] = {
    _parquet: "a whole Parquet file",
    _csv: "CSV in UTF-8",
    _json_lines: "JSON lines in UTF-8",
    _lines: "lines of text",
    _npy: "a whole NumPy array",
    _npz: "a whole archive of NumPy arrays",
    _idx: "a whole IDX file, uncompressed",
    _folder: "a folder of image files",
}
READERS: dict[str, Reader] = {
    ".parquet": _parquet,
    ".pq": _parquet,
    ".csv": _csv,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".log": _lines,
    ".txt": _lines,
    ".npy": _npy,
    ".npz": _npz,
    ".idx": _idx,
    ".idx3-ubyte": _idx,
}
PARSER_ERRORS = (
    *(pa.ArrowException, csv.Error, zipfile.BadZipFile, zlib.error, EOFError, OSError),
    *(ValueError, LookupError, TypeError, RuntimeError),
)


def _until(batches: Iterable[pa.RecordBatch], limit: int) -> Iterator[pa.RecordBatch]:
    rows = 0
    for batch in batches:
        yield batch
        rows += len(batch)
        if rows >= limit:
            return


def _concatenate_as_text(training: Path, tables: Sequence[pa.Table]) -> pa.Table:
    """All rows of ``tables``, the columns whose types differ as text."""
    types: dict[str, set[str]] = {}
    for field in (field for table in tables for field in table.schema):
        types.setdefault(field.name, set()).add(str(field.type))
    mixed = [name for name, found in types.items() if len(found) > 1]
    try:
        texts = [pa.table({n: t[n].cast(pa.string()) if n in mixed else t[n] for n in t.column_names}) for t in tables]
        return pa.concat_tables(texts, promote_options="permissive")
    except pa.ArrowException:
        what = f"Column {mixed[0]!r} is {' and '.join(sorted(types[mixed[0]]))}." if mixed else "They do not."
        raise ConfigError(f"The files of {training} must agree on the types of their columns. {what}") from None
