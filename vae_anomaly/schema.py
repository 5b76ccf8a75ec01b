"""The data contract: which columns a file must have, and what each cell means before any tensor exists.

A broken *file* (missing, duplicated, nested or wrongly typed column) raises :class:`DataError`; a bad *row* is kept
with the status ``unscorable:<reason>:<column>``, so that no row is ever dropped. Nothing is renamed, guessed or filled.

=========  =========================================================  ============================================
kind       accepted                                                   missing
=========  =========================================================  ============================================
number     integers, floats, decimals, text such as ``-1.5e3``        null, NaN, the text tokens of ``NA``
boolean    booleans, 0 and 1, text true/false/yes/no/t/f/y/n/1/0      null, NaN, the text tokens of ``NA``
category   text as it is; integers and booleans as their text         null and the empty string ("NA" is a value)
timestamp  timestamps, dates, ISO 8601 text; all become UTC instants  null, the text tokens of ``NA``
text       text, in Unicode's composed form (NFC)                     null, no character but white space
image      PNG, JPEG or TIFF as bytes; tensors (H, W[, C]) of bytes,  null
           16 bits or floats in [0, 1]; see :mod:`vae_anomaly.images`
=========  =========================================================  ============================================

Columns with ``context`` condition the model; the others, which it models, are a table, one image or one text.

Legend: B records (rows of a table), H x W pixels, C channels.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Literal, NamedTuple, get_args
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types as pat

from vae_anomaly.batch import OK, Records
from vae_anomaly.errors import ConfigError, DataError, suggestion

Kind = Literal["number", "boolean", "category", "timestamp", "image", "text"]
Modality = Literal["table", "image", "text"]
Mask = np.ndarray  # (B,) bool

NA = ("", "NA", "NaN", "nan", "null", "None", "N/A")
TRUE, FALSE = ("true", "yes", "t", "y", "1", "1.0"), ("false", "no", "f", "n", "0", "0.0")
LARGEST_EXACT = 2**53  # beyond it float64 no longer holds every integer
NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$|(?i)^[+-]?inf(inity)?$"
DAY = r"\d{4}-\d\d-\d\d"
ISO = re.compile(rf"({DAY}(?:[T ]\d\d(?::\d\d(?::\d\d(?:\.\d+)?)?)?)?)(?: ?(Z|UTC|[+-]\d\d(?::?\d\d)?))?", re.I)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FIRST_MICRO, LAST_MICRO = -62_135_596_800_000_000, 253_402_300_799_999_999  # years 1 to 9999
MICROS = {"s": 1_000_000, "ms": 1_000, "us": 1}
WRONG_DTYPE, NAIVE = "wrong_dtype", "naive_timestamp"
PLACEHOLDERS = ("number", "hex", "id", "address", "path")
LONGEST_SIDE, MOST_TOKENS = 4096, 4096
# at most so many rows of a table, lines, and values of images, are held at a time; of lines many are the same
ROWS, LINES, PIXELS = 16_384, 65_536, 64 * 2**20


@dataclass(frozen=True)
class Column:
    """A column that the model sees.

    ``timezone`` (an IANA name) is that of a timestamp's values without an offset; ``scale`` ``"log"`` says that ratios
    of a number matter, not differences; a column of the ``context`` conditions the model instead of being modelled.
    An image is scaled to ``size`` (height, width) and has 1 (grey) or 3 ``channels``; of a text the model sees at most
    ``max_tokens`` tokens, with signs for what ``replace`` names.
    """

    name: str
    kind: Kind
    timezone: str | None = None
    scale: Literal["linear", "log"] = "linear"
    context: bool = False
    size: tuple[int, int] | None = None
    channels: int = 1
    max_tokens: int = 64
    replace: tuple[str, ...] = PLACEHOLDERS

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            known = list(get_args(Kind))
            hint = suggestion(str(self.kind), known)
            raise ConfigError(f"Kind of column {self.name!r} must be one of {known}. Got {self.kind!r}.{hint}")
        if self.scale not in ("linear", "log") or (self.scale == "log" and self.kind != "number"):
            problem = f"Scale of column {self.name!r} must be 'linear', or 'log' for a number."
            raise ConfigError(f"{problem} Got {self.scale!r}.")
        if self.context and self.kind in ("image", "text"):
            raise ConfigError(f"Column {self.name!r} of kind {self.kind!r} must not be context; tables' columns may.")
        self._check_image()
        self._check_text()
        self._check_timezone()

    def _check_image(self) -> None:
        if self.kind != "image":
            if self.size is not None or self.channels != 1:
                raise ConfigError(f"Column {self.name!r} of kind {self.kind!r} must have no size and no channels.")
            return
        size = self.size if isinstance(self.size, tuple) else ()
        if len(size) != 2 or not all(type(side) is int and 1 <= side <= LONGEST_SIDE for side in size):
            problem = f"Size of column {self.name!r} must be its height and width, 1 to {LONGEST_SIDE} pixels each."
            raise ConfigError(f"{problem} Got {self.size!r}.")
        if self.channels not in (1, 3):
            raise ConfigError(f"Channels of column {self.name!r} must be 1 or 3. Got {self.channels!r}.")

    def _check_text(self) -> None:
        if self.kind != "text" and (self.max_tokens, self.replace) != (64, PLACEHOLDERS):
            raise ConfigError(f"Column {self.name!r} of kind {self.kind!r} must have no max_tokens and no replace.")
        if not 1 <= self.max_tokens <= MOST_TOKENS:
            raise ConfigError(f"max_tokens of column {self.name!r} must be 1 to {MOST_TOKENS}. Got {self.max_tokens}.")
        if not set(self.replace) <= set(PLACEHOLDERS) or _repeated(self.replace):
            problem = f"replace of column {self.name!r} must name some of {list(PLACEHOLDERS)}, each at most once."
            raise ConfigError(f"{problem} Got {list(self.replace)}.")

    def _check_timezone(self) -> None:
        if self.timezone is None:
            return
        if self.kind != "timestamp":
            raise ConfigError(f"Column {self.name!r} of kind {self.kind!r} must have no timezone; only timestamps do.")
        try:
            ZoneInfo(self.timezone)
        except (ValueError, LookupError, OSError):
            problem = f"Timezone of column {self.name!r} must be an IANA name such as 'Europe/Berlin' or 'UTC'."
            raise ConfigError(f"{problem} Got {self.timezone!r}.") from None


@dataclass(frozen=True)
class Schema:
    """The contract that is frozen at fit time.

    Parameters
    ----------
    columns : what the model sees, in the model's order.
    record_id : column that names a record; row numbers do where there is none.
    label, anomalous : column and those of its values (as text) that mean "anomaly"; for evaluation only.
    ignore : columns that are known and not used.
    """

    columns: tuple[Column, ...]
    record_id: str | None = None
    label: str | None = None
    anomalous: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = [*(c.name for c in self.columns), *filter(None, (self.record_id, self.label)), *self.ignore]
        if not self.columns:
            raise ConfigError("A schema must have at least one column for the model. Got none.")
        if repeated := _repeated(names):
            raise ConfigError(f"A column must have one role: model, record id, label or ignored. Got {repeated} twice.")
        kinds = [column.kind for column in self.modelled]
        if not kinds:
            raise ConfigError("A schema must have a column that is not context. Got context only.")
        if len(kinds) > 1 and {"image", "text"} & set(kinds):
            problem = "The columns that are not context must be a table, or one image, or one text."
            raise ConfigError(f"{problem} Got the kinds {kinds}.")

    @property
    def modelled(self) -> tuple[Column, ...]:
        """The columns that are not context."""
        return tuple(column for column in self.columns if not column.context)

    @property
    def modality(self) -> Modality:
        """What a record is to the model, apart from its context."""
        kind = self.modelled[0].kind
        return "image" if kind == "image" else "text" if kind == "text" else "table"

    @property
    def rows_at_once(self) -> int:
        """Rows that are read at a time, so that their images hold at most ``PIXELS`` values."""
        sizes = [column.size[0] * column.size[1] * column.channels for column in self.columns if column.size]
        return max(1, min(LINES if self.modality == "text" else ROWS, PIXELS // max(sizes, default=1)))

    @property
    def required(self) -> tuple[str, ...]:
        """Names that every file must have; the label is needed for evaluation only."""
        return (*(c.name for c in self.columns), *filter(None, (self.record_id,)))

    @property
    def digest(self) -> str:
        """sha256 (hex) of the canonical JSON."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        lists = {name: list(getattr(self, name)) for name in ("anomalous", "ignore")}
        columns = [
            {**asdict(c), "size": None if c.size is None else list(c.size), "replace": list(c.replace)}
            for c in self.columns
        ]
        return {**asdict(self), **lists, "columns": columns}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Schema:
        """The schema that :meth:`to_dict` wrote; raises :class:`ConfigError` for unknown, missing or mistyped keys."""
        entries = _checked(cls, value, "schema")
        entries["columns"] = tuple(Column(**_checked(Column, c, "column")) for c in entries["columns"])
        return cls(**entries)


def _checked(cls: type[Schema] | type[Column], value: Any, what: str) -> dict[str, Any]:
    """``value`` where it is a mapping that has the fields of the dataclass ``cls``, in their types, and no more.

    Its lists become tuples.
    """
    known = {f.name: str(f.type) for f in fields(cls)}
    required = {f.name for f in fields(cls) if f.default is MISSING}
    if not isinstance(value, Mapping) or not required <= set(value) <= set(known):
        got = sorted(map(str, value)) if isinstance(value, Mapping) else type(value).__name__
        raise ConfigError(f"A {what} must be a mapping with the keys {list(known)}. Got {got}.")
    for name, entry in value.items():
        optional = entry is None and "None" in known[name]
        several, item = known[name].startswith("tuple"), _item(known[name])
        if not (optional or (isinstance(entry, list) and all(map(item, entry)) if several else item(entry))):
            raise ConfigError(f"Key {name!r} of a {what} must be of type {known[name]}. Got {type(entry).__name__}.")
    return {name: tuple(entry) if isinstance(entry, list) else entry for name, entry in value.items()}


def _item(annotation: str) -> Callable[[Any], bool]:
    """Whether a value, or one of several, is what the ``annotation`` of a field says; a column is checked later."""
    plain = {"bool": bool, "int": int, "tuple[int, int]": int, "tuple[Column, ...]": object}
    wanted = plain.get(annotation.removesuffix(" | None"), str)
    return lambda entry: type(entry) is wanted or wanted is object


def _repeated(names: Iterable[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


# ---------------------------------------------------------------- the header


def check_header(
    header: Sequence[tuple[str, pa.DataType]], schema: Schema, *, file: str, label_required: bool = False
) -> None:
    """Raise :class:`DataError` unless ``header`` (name and Arrow type of every column) fulfils ``schema``.

    Rules: ``missing_column``, ``duplicate_column``, ``nested_type``, ``binary``, ``naive_timestamp``, ``wrong_type``.
    Further columns and another order are harmless.
    """
    names = [name for name, _ in header]
    needed = [*schema.required, *([schema.label] if label_required and schema.label else [])]
    if missing := [name for name in needed if name not in names]:
        raise _missing_error(missing, [n for n in names if n not in needed], names, file)
    if repeated := _repeated(names):  # after the missing ones: a file without a header would show its cells here
        raise DataError(
            "duplicate_column",
            f"column names must be unique; {', '.join(map(repr, repeated))} came more than once.",
            remedy="Rename or remove the repeated columns at the source.",
            file=file,
            column=repeated[0],
        )
    kinds = {c.name: c for c in schema.columns}
    for name, dtype in header:
        if name in kinds or name in (schema.record_id, schema.label):
            _check_type(name, dtype, kinds.get(name), file)


def _missing_error(missing: list[str], spare: list[str], names: list[str], file: str) -> DataError:
    listed = ", ".join(repr(name) + _nearest(name, spare) for name in missing)
    remedy = "Deliver these columns under their exact names, or fit a new detector on the new layout."
    if len(names) == 1 and (delimiters := [d for d in ";\t|," if d in names[0]]):
        remedy = f"The header is one field that holds {delimiters[0]!r}: set this delimiter in source.csv.delimiter."
    problem = f"expected columns are missing: {listed}."
    return DataError("missing_column", problem, remedy=remedy, file=file, column=missing[0])


def _words(name: str) -> list[str]:
    """``TransactionAmount``, ``amount transaction`` and ``Transaction-Amount `` have the same sorted words."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", unicodedata.normalize("NFKC", name))
    return sorted(re.findall(r"[^\W_]+", spaced.casefold()))


def _nearest(name: str, spare: Sequence[str]) -> str:
    """`` (the file has 'Amount ')`` for the spare name that is nearest to ``name``; never mapped by itself."""
    same = [s for s in spare if _words(s) == _words(name) or "".join(_words(s)) == "".join(_words(name))]
    for other in (same or difflib.get_close_matches(name, spare, n=1, cutoff=0.6))[:1]:
        if unicodedata.normalize("NFC", other) == unicodedata.normalize("NFC", name):
            return f" (the file has {other!a}: the same text in another Unicode form)"
        return f" (the file has {other!r})"
    return ""


def is_text(dtype: pa.DataType) -> Any:
    """Whether the type is one of Arrow's text types."""
    return pat.is_string(dtype) or pat.is_large_string(dtype) or pat.is_string_view(dtype)


def _accepted(dtype: pa.DataType, kind: str | None) -> Any:
    """Whether a column of the kind (None: record id or label) may have this type."""
    numeric = pat.is_integer(dtype) or pat.is_floating(dtype) or pat.is_decimal(dtype)
    moment = pat.is_timestamp(dtype) or pat.is_date(dtype)
    plain = {"number": numeric, "timestamp": moment, "text": False, None: numeric or moment or pat.is_boolean(dtype)}
    return is_text(dtype) or pat.is_null(dtype) or plain.get(kind, numeric or pat.is_boolean(dtype))


BINARY = (pat.is_binary, pat.is_large_binary, pat.is_fixed_size_binary, pat.is_binary_view)
PIXEL = (pat.is_uint8, pat.is_uint16, pat.is_floating)


def _image_shape(column: Column) -> tuple[int, int, int]:
    """(H, W, C) of a column of images."""
    height, width = column.size or (0, 0)
    return height, width, column.channels


def _image_problem(dtype: pa.DataType, column: Column) -> str | None:
    """What is wrong with a column type for images, which are files as bytes or tensors of the size that is declared."""
    if pat.is_null(dtype) or any(test(dtype) for test in BINARY):
        return None
    shape, shown = _image_shape(column), str(dtype).split("<")[0]
    if not isinstance(dtype, pa.FixedShapeTensorType):
        return f"expected files as bytes or tensors of the shape {list(shape)}; the column's type is {shown}."
    fits = tuple(dtype.shape) in (shape, shape[:2] if column.channels == 1 else shape)
    if not fits or dtype.permutation not in (None, list(range(len(dtype.shape)))):
        return f"expected images of the shape {list(shape)} (height, width, channels); they have {list(dtype.shape)}."
    if not any(test(dtype.value_type) for test in PIXEL):
        return f"expected pixels of the type uint8, uint16 or float (0 to 1); they are {dtype.value_type}."
    return None


def _check_type(name: str, dtype: pa.DataType, column: Column | None, file: str) -> None:
    """One column's type against its kind; a dictionary is as good as its values."""
    dtype = dtype.value_type if pat.is_dictionary(dtype) else dtype
    kind, shown = column.kind if column else None, str(dtype).split("<")[0]
    role = f"kind {kind!r}" if kind else "a record id or label"
    if column and column.kind == "image":
        if (wrong := _image_problem(dtype, column)) is None:
            return
        rule, problem = "wrong_type", wrong
        remedy = "Deliver images of the size and channels that the schema declares, or fit a detector with others."
    elif pat.is_nested(dtype):
        rule, problem = "nested_type", f"expected one value in each cell; the column's type is {shown}."
        remedy = "Flatten it to plain columns at the source."
    elif any(test(dtype) for test in BINARY):
        rule, problem = "binary", f"expected {role}; the column holds raw bytes ({shown})."
        remedy = "Write text as UTF-8 strings and numbers as numbers."
    elif pat.is_timestamp(dtype) and kind == "timestamp" and not dtype.tz and not (column and column.timezone):
        rule, problem = NAIVE, "timestamps have no time zone and the schema declares none."
        remedy = "Write them with a time zone, or set 'timezone' of this column."
    elif not _accepted(dtype, kind):
        rule, problem = "wrong_type", f"expected {role}; the column's type is {shown}."
        remedy = "Deliver the type that the detector was fitted on, or fit a new detector with another kind."
    else:
        return
    raise DataError(rule, problem, remedy=remedy, file=file, column=name)


# ---------------------------------------------------------------- the cells


class _Cells(NamedTuple):
    """A column after conversion: values, mask of missing cells (None: none), mask of bad cells for each reason."""

    values: np.ndarray | pa.Array
    missing: Mask | None
    problems: dict[str, Mask]


def check(table: pa.Table, schema: Schema, *, first_row: int, file: str) -> Records:
    """Convert the rows of ``table`` by the contract; see the module's table.

    ``first_row`` is the number of the table's first row in its file. The table that starts at row 0 also decides for
    the file: where more than half of a column's present cells cannot be read, the file is refused as ``wrong_type``.
    Arrays may share memory with ``table`` and are then read-only. Raises :class:`DataError` for the file's faults.
    """
    check_header([(f.name, f.type) for f in table.schema], schema, file=file)
    status: np.ndarray = np.full(table.num_rows, OK, dtype=object)
    absent: Mask | None = np.ones(table.num_rows, bool)
    values: dict[str, np.ndarray | pa.Array] = {}
    for column in schema.columns:
        cells = CONVERTERS[column.kind](_flat(table.column(column.name)), column)
        _refuse(cells, column, first_row, file)
        for reason, bad in cells.problems.items():
            status[bad & (status == OK)] = f"unscorable:{reason}:{column.name}"
        values[column.name] = cells.values
        if not column.context:
            absent = None if absent is None or cells.missing is None else absent & cells.missing
    if absent is not None:
        status[absent & (status == OK)] = "unscorable:all_missing"
    return Records(first_row, _record_ids(table, schema, first_row), values, status, _labels(table, schema))


def _refuse(cells: _Cells, column: Column, first_row: int, file: str) -> None:
    """Raise where a column's bad cells say that the file, not the row, is at fault; every bad image counts."""
    present = len(cells.values) - (0 if cells.missing is None else int(cells.missing.sum()))
    bad, naive = (cells.problems.get(reason, np.zeros(1, bool)) for reason in (WRONG_DTYPE, NAIVE))
    if column.kind == "image" and cells.problems:
        bad = np.logical_or.reduce(list(cells.problems.values()))
    if naive.any():
        rule, rows, problem = NAIVE, naive, "timestamps have no time zone and the schema declares none."
        remedy = "Write them with an offset or Z, or set 'timezone' of this column."
    elif first_row == 0 and 2 * bad.sum() > present:
        found = f" ({', '.join(sorted(cells.problems))})" if column.kind == "image" else ""
        problem = f"more than half of the cells cannot be read as kind {column.kind!r}{found}."
        rule, rows = "wrong_type", bad
        remedy = "Check units, thousands separators (use 1234.5), delimiter and date format at the source."
        if column.kind == "image":
            height, width, _ = _image_shape(column)
            remedy = (
                f"Deliver whole PNG, JPEG or TIFF images in the proportions {height} x {width}, or floats from 0 to 1."
            )
    else:
        return
    first, count = (first_row + np.flatnonzero(rows)[:5]).tolist(), int(rows.sum())
    raise DataError(rule, problem, remedy=remedy, file=file, column=column.name, rows=first, count=count)


def _flat(column: pa.ChunkedArray) -> pa.Array:
    """One array; the only chunk as it is, so that nothing is copied. Dictionaries are decoded by value."""
    chunks = column.chunks or [pa.array([], column.type)]
    if pat.is_dictionary(column.type):  # before they are joined: together they may have more values than codes
        chunks = [chunk.dictionary_decode() for chunk in chunks]
    return chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks)


def _mask(array: pa.Array | pa.ChunkedArray) -> Mask:
    mask: Mask = pc.fill_null(array, False).to_numpy(zero_copy_only=False)
    return mask


def _problems(**masks: Mask) -> dict[str, Mask]:
    return {reason: mask for reason, mask in masks.items() if mask.any()}


def _number(column: pa.Array, _: Column) -> _Cells:
    if is_text(column.type) or pat.is_decimal(column.type):  # decimals as text: Arrow's own cast is not exact
        return _number_from_text(column)
    if pat.is_integer(column.type):
        return _number_from_integers(column)
    values = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    finite = np.isfinite(values)
    if finite.all():
        return _Cells(values, None, {})
    missing = np.isnan(values)
    return _Cells(values, missing, _problems(non_finite=~finite & ~missing))


def _number_from_integers(column: pa.Array) -> _Cells:
    exact = column.fill_null(0).to_numpy()
    values = exact.astype(np.float64)
    missing = _mask(column.is_null()) if column.null_count else None
    if missing is not None:
        values[missing] = np.nan
    beyond = (exact > LARGEST_EXACT) | (exact < -LARGEST_EXACT) if exact.itemsize == 8 else np.zeros(len(exact), bool)
    return _Cells(values, missing, _problems(integer_beyond_2_53=beyond))


def _trimmed(column: pa.Array) -> tuple[pa.Array, Mask]:
    """Text without surrounding spaces, null where missing; and the mask of missing cells."""
    text = pc.utf8_trim_whitespace(column.cast(pa.string()))
    missing = pc.or_(text.is_null(), pc.is_in(text, pa.array(NA)))
    return pc.if_else(missing, pa.scalar(None, pa.string()), text), _mask(missing)


def _number_from_text(column: pa.Array) -> _Cells:
    text, missing = _trimmed(column)
    try:
        values = text.cast(pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        readable = pc.if_else(pc.match_substring_regex(text, NUMBER), text, pa.scalar(None, pa.string()))
        values = readable.cast(pa.float64()).to_numpy(zero_copy_only=False)
    beyond = np.zeros(len(text), bool)
    for i in np.flatnonzero(np.isfinite(values) & (np.abs(values) >= LARGEST_EXACT)):
        digits = text[i].as_py().lstrip("+-")
        beyond[i] = digits.isdigit() and Decimal(digits) > LARGEST_EXACT
    bad = np.isnan(values) & ~missing  # also Arrow's "NAN" and "nan(x)", which are no tokens of ours
    return _Cells(values, missing, _problems(wrong_dtype=bad, non_finite=np.isinf(values), integer_beyond_2_53=beyond))


def _boolean(column: pa.Array, spec: Column) -> _Cells:
    if pat.is_boolean(column.type):
        return _number(column.cast(pa.uint8()), spec)
    if not is_text(column.type):
        values, missing, _ = _number(column, spec)
        bad = ~np.isin(values, (0, 1)) & ~np.isnan(values)
        return _Cells(values, missing, _problems(wrong_dtype=bad))
    text, missing = _trimmed(column)
    lowered = pc.utf8_lower(text)
    yes, no = (_mask(pc.is_in(lowered, pa.array(words))) for words in (TRUE, FALSE))
    return _Cells(np.where(yes, 1.0, np.where(no, 0.0, np.nan)), missing, _problems(wrong_dtype=~(yes | no | missing)))


def _text(column: pa.Array) -> pa.Array:
    """Cells as text, null where null or NaN: 1, 1.0 and "1" are the same, True is "true"."""
    if not pat.is_floating(column.type):
        return column.cast(pa.string())
    values = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    integral = (np.abs(values) < LARGEST_EXACT) & (values == np.floor(values))
    integers = pa.array(np.where(integral, values, 0).astype(np.int64)).cast(pa.string())
    text = pc.if_else(pa.array(integral), integers, column.cast(pa.string()))
    return pc.if_else(pa.array(np.isnan(values)), pa.scalar(None, pa.string()), text)


def _category(column: pa.Array, _: Column) -> _Cells:
    text = _text(column)
    missing = _mask(pc.or_kleene(text.is_null(), pc.equal(text, "")))
    if not missing.any():
        return _Cells(text, None, {})
    return _Cells(pc.if_else(pa.array(missing), pa.scalar(None, pa.string()), text), missing, {})


def _free_text(column: pa.Array, _: Column) -> _Cells:
    text = _composed(column.cast(pa.string()))
    missing = _mask(pc.or_kleene(text.is_null(), pc.equal(pc.utf8_trim_whitespace(text), "")))
    if not missing.any():
        return _Cells(text, None, {})
    return _Cells(pc.if_else(pa.array(missing), pa.scalar(None, pa.string()), text), missing, {})


def _composed(text: pa.Array) -> pa.Array:
    """Text in Unicode's form NFC; Arrow's own function leaves marks apart from their letters (in version 25)."""
    other = np.flatnonzero(~_mask(pc.fill_null(pc.string_is_ascii(text), True)))
    if not other.size:
        return text
    composed = [unicodedata.normalize("NFC", cell) for cell in text.take(pa.array(other)).to_pylist()]
    return pc.replace_with_mask(text, pa.array(np.isin(np.arange(len(text)), other)), pa.array(composed, pa.string()))


def _image(column: pa.Array, spec: Column) -> _Cells:
    """(B, H, W, C) uint8; what is missing or bad has no meaning."""
    from vae_anomaly import images

    missing = _mask(column.is_null())
    if isinstance(column.type, pa.FixedShapeTensorType):
        return _image_from_tensors(column, spec, missing)
    height, width, channels = _image_shape(spec)
    values = np.zeros((len(column), height, width, channels), np.uint8)
    reasons: np.ndarray = np.full(len(column), "", dtype=object)
    for i in np.flatnonzero(~missing):
        try:
            values[i] = images.decode(column[int(i)].as_py(), (height, width), channels)
        except images.Undecodable as error:
            reasons[i] = error.reason
    return _Cells(values, missing, {reason: reasons == reason for reason in sorted(set(reasons) - {""})})


def _image_from_tensors(column: pa.Array, spec: Column, missing: Mask) -> _Cells:
    from vae_anomaly import images

    storage, shape = column.storage, _image_shape(spec)
    width = storage.type.list_size
    cells = storage.values.slice(storage.offset * width, len(storage) * width)  # those of null images, too
    holes: Mask = np.zeros(len(column), bool)
    if cells.null_count:
        holes = np.logical_or.reduce(_mask(cells.is_null()).reshape(-1, width), axis=1)
        cells = cells.fill_null(0)
    values, problems = images.from_arrays(cells.to_numpy(zero_copy_only=False).reshape(-1, *shape))
    masks = {"missing_pixels": holes, **problems}
    return _Cells(values, missing, _problems(**{reason: bad & ~missing for reason, bad in masks.items()}))


def _timestamp(column: pa.Array, spec: Column) -> _Cells:
    """Instants in UTC; a date is its midnight, a finer unit is cut to microseconds."""
    if is_text(column.type):
        text, missing = _trimmed(column)
        micros, local, clock, bad = _instants_from_text(text)
    else:
        missing = _mask(column.is_null())
        micros, bad = _micros(column), np.zeros(len(column), bool)
        local, clock = bad if getattr(column.type, "tz", None) else ~missing, bad
    ambiguous = np.zeros(len(column), bool)
    if spec.timezone:
        instants, shifted = _localise(micros, spec.timezone)
        micros, ambiguous, clock = np.where(local, instants, micros), local & shifted, ambiguous
    far = (micros < FIRST_MICRO) | (micros > LAST_MICRO)
    problems = _problems(wrong_dtype=bad, out_of_range=far, ambiguous_time=ambiguous, naive_timestamp=clock)
    values = micros.astype("datetime64[us]")
    values[np.logical_or.reduce([missing, *problems.values()])] = np.datetime64("NaT")
    return _Cells(values, missing, problems)


def _micros(column: pa.Array) -> np.ndarray:
    """(B,) int64 microseconds since 1970 of timestamps and dates; beyond the years 1 to 9999 one past that range."""
    if pat.is_null(column.type):
        return np.zeros(len(column), np.int64)
    if pat.is_date32(column.type):
        column, factor = column.cast(pa.int32()), 86_400_000_000
    else:
        factor = MICROS["ms"] if pat.is_date64(column.type) else MICROS.get(column.type.unit, 0)
    raw: np.ndarray = column.cast(pa.int64()).fill_null(0).to_numpy()
    if not factor:  # nanoseconds
        return raw // 1000
    return np.where((raw < FIRST_MICRO // factor) | (raw > LAST_MICRO // factor), LAST_MICRO + 1, raw * factor)


def _instants_from_text(text: pa.Array) -> tuple[np.ndarray, Mask, Mask, Mask]:
    """Microseconds; masks of cells without an offset, of those among them with a time of day, of unreadable ones."""
    none = np.zeros(len(text), bool)
    for zone in ("UTC", None):  # all with an offset, or all without: at Arrow's speed
        try:
            micros = text.cast(pa.timestamp("us", zone)).cast(pa.int64()).fill_null(0).to_numpy()
        except pa.ArrowInvalid:
            continue
        local = none if zone else ~_mask(text.is_null())
        return micros, local, local & _mask(pc.greater(pc.utf8_length(text), len("2026-01-31"))), none
    found = [_instant(cell) for cell in text.to_pylist()]
    micros, local, clock, bad = (np.array(part) for part in zip(*found, strict=True))
    return micros, local, clock, bad


def _instant(cell: str | None) -> tuple[int, bool, bool, bool]:
    """One cell of :func:`_instants_from_text`."""
    if cell is None:
        return 0, False, False, False
    try:
        body, offset = ISO.fullmatch(cell).groups()  # type: ignore[union-attr]
        zone = "+00:00" if not offset or offset.upper() in ("Z", "UTC") else offset
        with_time = body if len(body) > len("2026-01-31") else f"{body}T00:00"
        moment = datetime.fromisoformat(with_time + zone)
    except (AttributeError, ValueError):
        return 0, False, False, True
    return (moment - EPOCH) // timedelta(microseconds=1), not offset, not offset and with_time is body, False


def _localise(micros: np.ndarray, zone: str) -> tuple[np.ndarray, Mask]:
    """UTC microseconds of local times, and the mask of those that a clock change skips or repeats."""
    local = pa.array(micros.astype("datetime64[us]"))
    try:
        early, late = (
            pc.assume_timezone(local, zone, ambiguous=pick, nonexistent=pick).cast(pa.int64()).to_numpy()
            for pick in ("earliest", "latest")
        )
    except pa.ArrowInvalid:
        raise ConfigError(f"Time zone {zone!r} must be in this machine's time zone database. Install tzdata.") from None
    return early, early != late


CONVERTERS: dict[str, Callable[[pa.Array, Column], _Cells]] = {
    "number": _number,
    "boolean": _boolean,
    "category": _category,
    "timestamp": _timestamp,
    "image": _image,
    "text": _free_text,
}


def _record_ids(table: pa.Table, schema: Schema, first_row: int) -> np.ndarray:
    """(B,) str: the id column's text, "" where null; the row number where no id is configured."""
    if schema.record_id is None:
        text = pa.array(np.arange(first_row, first_row + table.num_rows)).cast(pa.string())
    else:
        text = _text(_flat(table.column(schema.record_id))).fill_null("")
    ids: np.ndarray = text.to_numpy(zero_copy_only=False)
    return ids


def _labels(table: pa.Table, schema: Schema) -> Mask | None:
    """(B,) bool: labelled as an anomaly; None where the table has no labels."""
    if schema.label not in table.column_names:
        return None
    return _mask(pc.is_in(_text(_flat(table.column(schema.label))), pa.array(schema.anomalous, pa.string())))
