"""Name to builder tables: a variant is one function and one line of a table.

A builder's signature is its schema: unknown options are refused with the known ones listed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from vae_anomaly.errors import ConfigError, suggestion


def lookup(what: str, table: Mapping[str, Any], kind: str) -> Any:
    """The entry ``kind`` of ``table``; raises :class:`ConfigError` that lists the known names."""
    if kind not in table:
        raise ConfigError(f"{what} must be one of {sorted(table)}. Got {kind!r}.{suggestion(kind, table)}")
    return table[kind]


def checked(what: str, table: Mapping[str, Callable[..., Any]], kind: str, options: Mapping[str, Any]) -> Any:
    """The builder ``kind``; raises :class:`ConfigError` for options that its signature does not have, or text and truth
    values where it wants something else (``no`` is text, and text is true)."""
    builder = lookup(what, table, kind)
    known = {p.name: p.annotation for p in inspect.signature(builder).parameters.values() if p.kind is p.KEYWORD_ONLY}
    for name, value in options.items():
        if name not in known:
            raise ConfigError(
                f"{what} {kind!r} has no option {name!r}; its options are {list(known)}.{suggestion(name, known)}"
            )
        # annotations as they are written: their names need not be there when nobody checks types
        wanted = known[name] if isinstance(known[name], str) else getattr(known[name], "__name__", "")
        if not _fits(value, wanted.split(" | ")):
            raise ConfigError(f"{what} {kind!r}: {name} must be of type {wanted}. Got {value!r}.")
    return builder


def build(what: str, table: Mapping[str, Callable[..., Any]], kind: str, *args: Any, **options: Any) -> Any:
    """Call the builder ``kind`` with ``args`` and ``options``; refuses those that :func:`checked` refuses."""
    builder = checked(what, table, kind, options)
    try:
        return builder(*args, **options)
    except TypeError as error:
        if not options:
            raise
        raise ConfigError(f"{what} {kind!r} must have options of the types of its signature. Got {options}.") from error


def _fits(value: object, wanted: list[str]) -> bool:
    """Whether text and truth values are what is wanted, and nothing else is where only they are."""
    for kind in (str, bool):
        if isinstance(value, kind):
            return kind.__name__ in wanted or (kind is str and wanted[0].startswith("Literal"))
    return wanted not in (["str"], ["bool"])
