"""What a column of a table is taken for, by its type, its values and, for ids, its name."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from vae_anomaly.infer.writing import percent
from vae_anomaly.schema import NA, is_text

MAX_CATEGORIES, CATEGORY_SHARE, PARSED_SHARE = 64, 0.05, 0.95
EXACT_INTEGER = 2**53

FLAGS = ({"true", "false"}, {"yes", "no"}, {"t", "f"}, {"y", "n"})
ID_NAME = r"(?i:(^|[\W_])(id|uuid|guid)$)|[a-z](Id|ID)$"
NUMBER = r"^[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?$"
LEADING_ZERO = r"^[-+]?0[0-9]+$"
ISO_TIME = (
    r"^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
    r"([T ]([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9](\.[0-9]+)?)?( ?(Z|UTC|[-+][0-9]{2}(:?[0-9]{2})?))?)?$"
)
DATE_OR_OFFSET = r"^.{10}$|:.*(Z|UTC|[-+][0-9]{2}(:?[0-9]{2})?)$"


@dataclass(frozen=True)
class Choice:
    """What one column is taken for: its ``kind``, or None where it is ignored, and why.

    ``options`` are the further keys of the column as they are written. An ignored column may be an id; prose, whether
    it is ignored or taken for a category of many values, may be what a model of texts learns from.
    """

    name: str
    kind: str | None
    why: str
    options: str = ""
    is_id: bool = False
    is_prose: bool = False


def choose(name: str, column: pa.ChunkedArray) -> Choice:
    """What a column is, by its type, its values and, for ids, its name."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return choose(name, column.cast(kind.value_type))
    if pa.types.is_decimal(kind) or pa.types.is_floating(kind):
        column = column.cast(pa.float64())
    elif not (pa.types.is_null(kind) or is_text(kind) or any(test(kind) for test in SUPPORTED)):
        return Choice(name, None, f"{'nested values' if pa.types.is_nested(kind) else kind} cannot be used: ignored")
    return _choose_present(name, column)


def _choose_present(name: str, column: pa.ChunkedArray) -> Choice:
    kind, values = column.type, present(column)
    missing = _missing(values, column)
    if not len(values):
        return Choice(name, None, "all cells are missing: ignored")
    if pc.count_distinct(values).as_py() == 1:
        return Choice(name, None, f"constant{missing}: ignored")
    if is_text(kind):
        return _choose_text(name, values, column)
    if pa.types.is_boolean(kind):
        return Choice(name, "boolean", f"true and false{missing}")
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return _choose_number(name, values, missing)
    naive = pa.types.is_timestamp(kind) and kind.tz is None
    return _choose_time(name, 1.0 if naive else 0.0, missing)


def _choose_text(name: str, values: pa.ChunkedArray, column: pa.ChunkedArray) -> Choice:
    """Flags, numbers and times written as text, for which the contract takes the words of ``NA`` as missing."""
    trimmed = pc.utf8_trim_whitespace(values)
    words = trimmed.filter(pc.invert(pc.is_in(trimmed, pa.array(NA))))
    missing, enough = _missing(words, column), max(1, PARSED_SHARE * len(words))
    if set(pc.unique(pc.utf8_lower(words)).slice(0, 3).to_pylist()) in FLAGS:
        return Choice(name, "boolean", f"two words for true and false{missing}")
    numbers, times = _matching(words, NUMBER), _matching(words, ISO_TIME)
    if len(numbers) >= enough and not len(_matching(words, LEADING_ZERO)):
        return _choose_number(name, numbers.cast(pa.float64()), missing + _odd(numbers, words, "not numbers"))
    if len(times) >= enough:
        naive = 1 - len(_matching(times, DATE_OR_OFFSET)) / len(times)
        return _choose_time(name, naive, missing + _odd(times, words, "not times"))
    return _choose_words(name, values, _missing(values, column))


def _choose_words(name: str, values: pa.ChunkedArray, missing: str) -> Choice:
    """An id, a category, or free text."""
    distinct = pc.count_distinct(values).as_py()
    spaced = pc.mean(pc.match_substring_regex(values, r"\s")).as_py()
    prose = spaced >= 0.5 and distinct > MAX_CATEGORIES
    if distinct == len(values) and (re.search(ID_NAME, name) or not spaced):
        return Choice(name, None, f"all different{missing}: looks like an id", is_id=not missing)
    if distinct <= max(CATEGORY_SHARE * len(values), min(MAX_CATEGORIES, len(values) // 2)):
        return Choice(name, "category", f"{distinct:,} text values{missing}", is_prose=prose)
    return Choice(name, None, f"{distinct:,} different texts{missing}: free text, ignored", is_prose=spaced >= 0.5)


def _choose_number(name: str, values: pa.ChunkedArray, missing: str) -> Choice:
    distinct, span = pc.count_distinct(values).as_py(), pc.min_max(values.filter(pc.is_finite(values))).as_py()
    if span["min"] is None:
        return Choice(name, None, f"no finite number{missing}: ignored")
    if distinct == 1:
        return Choice(name, None, f"constant{missing}: ignored")
    whole = pa.types.is_integer(values.type) or pc.all(pc.equal(pc.floor(values), values)).as_py()
    unique = whole and distinct == len(values)
    if unique and re.search(ID_NAME, name):
        return Choice(name, None, f"all different whole numbers{missing}: looks like an id", is_id=not missing)
    if unique and len(values) >= 20 and span["max"] - span["min"] + 1 == len(values):
        return Choice(name, None, f"consecutive whole numbers{missing}: a row number, ignored")
    if whole and re.search(ID_NAME, name):
        return Choice(
            name, None, f"{distinct:,} whole numbers, named like an id{missing}: its size means nothing, ignored"
        )
    if whole and max(abs(span["max"]), abs(span["min"])) > EXACT_INTEGER:
        return Choice(name, None, f"whole numbers beyond 2^53{missing}: looks like an id, ignored")
    hint = "; kind boolean or category if it is a code" if whole and distinct <= 10 else ""
    return Choice(name, "number", f"{distinct:,} distinct numbers{missing}{hint}")


def _choose_time(name: str, naive: float, missing: str) -> Choice:
    """``naive``: share of the values that have a time of day and no time zone, so that one must be given."""
    if not naive:
        return Choice(name, "timestamp", f"times with their time zone, or dates{missing}")
    some = "no" if naive == 1 else "some have no"
    why = f"{some} time zone in the data{missing}: check that UTC is right"
    return Choice(name, "timestamp", why, options=", timezone: UTC")


SUPPORTED = (pa.types.is_boolean, pa.types.is_integer, pa.types.is_timestamp, pa.types.is_date)


def present(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Cells that are neither null nor NaN nor empty text."""
    if is_text(values.type):
        values = values.cast(pa.string())
        return values.filter(pc.fill_null(pc.not_equal(values, ""), False))
    nan = {"nan_is_null": True} if pa.types.is_floating(values.type) else {}
    return values.filter(pc.invert(pc.is_null(values, **nan)))


def _matching(values: pa.ChunkedArray, pattern: str) -> pa.ChunkedArray:
    return values.filter(pc.match_substring_regex(values, pattern))


def _missing(present: pa.ChunkedArray, column: pa.ChunkedArray) -> str:
    share = 1 - len(present) / len(column)
    return f", {percent(share)} missing" if share else ""


def _odd(read: pa.ChunkedArray, words: pa.ChunkedArray, what: str) -> str:
    share = 1 - len(read) / len(words)
    return f", {percent(share)} {what} (unscorable)" if share else ""
