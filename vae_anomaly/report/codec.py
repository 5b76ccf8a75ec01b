"""Dataclasses of plain values to JSON and back, strictly: known fields only, the declared types only.

A field with a default may be missing, so that reports of an earlier version without it can be read.

NaN and infinity are written as ``null`` and read as NaN, so the text is JSON for every reader.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from numbers import Integral, Real
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from vae_anomaly.errors import DataError

T = TypeVar("T")


def to_json(value: Mapping[str, Any]) -> str:
    """``value`` as text with sorted keys: equal values, equal bytes."""
    return json.dumps(value, sort_keys=True, indent=1, allow_nan=False) + "\n"


def plain(value: Any) -> Any:
    """``value`` as dicts, lists and scalars of JSON."""
    if is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(v) for v in value]
    if isinstance(value, Integral):  # NumPy's numbers too
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else None
    return None if value is None else str(value)


def from_dict(kind: type[T], value: Any, form: str) -> T:
    """The ``kind`` that ``value`` holds; ``form`` is its format mark, and a verdict, being derived, is passed over."""
    found = value.get("format") if isinstance(value, Mapping) else None
    if found != form:
        raise _refused(f"'format' must be {form!r}. Got {found!r:.60}.")
    result: T = _read(kind, {k: v for k, v in value.items() if k not in ("format", "verdict")}, "")
    return result


def _read(kind: Any, value: Any, where: str) -> Any:
    """``value`` from JSON as ``kind``, which is built of dataclasses, tuples, mappings and scalars."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is UnionType:  # X | None
        return None if value is None else _read(inner[0], value, where)
    if origin is tuple:
        return _read_tuple(inner, _checked(list, value, where), where)
    if origin is Mapping:
        return {k: _read(inner[1], v, f"{where}.{k:.60}") for k, v in _checked(dict, value, where).items()}
    if is_dataclass(kind):
        return _read_fields(kind, _checked(dict, value, where), where)
    if kind is float:
        return math.nan if value is None else float(_checked((int, float), value, where))
    return _checked(kind, value, where)


def _read_tuple(inner: tuple[Any, ...], value: list[Any], where: str) -> tuple[Any, ...]:
    kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else list(inner)
    if len(kinds) != len(value):
        raise _refused(f"'{where}' must have {len(kinds)} entries. Got {len(value)}.")
    return tuple(_read(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))


def _read_fields(kind: Any, value: dict[str, Any], where: str) -> Any:
    kinds = _hints(kind)
    needed = {f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING}
    odd = sorted((value.keys() - kinds.keys()) | (needed - value.keys()))
    if odd:
        raise _refused(f"{where or 'the report'} must have exactly the known fields. Wrong or missing: {odd[:5]}.")
    return kind(**{name: _read(kinds[name], v, f"{where}.{name}".lstrip(".")) for name, v in value.items()})


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _checked(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        name = getattr(kind, "__name__", "number")
        raise _refused(f"'{where}' must be a {name}. Got a {type(value).__name__}.")
    return value


def _refused(problem: str) -> DataError:
    return DataError("report_format", problem, remedy="Read a file that this version of vae-anomaly wrote.")
