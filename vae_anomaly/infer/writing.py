"""Names, patterns and shares as ``monitor.yml`` and its comments write them."""

from __future__ import annotations

import re

PLAIN = r"[A-Za-z][A-Za-z0-9_./-]*|\."
YAML_WORDS = {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}


def quoted(text: str) -> str:
    """``text`` as a YAML scalar that every reader takes for text."""
    plain = re.fullmatch(PLAIN, text) and text.lower() not in YAML_WORDS
    return text if plain else escaped(text)


def escaped(text: str) -> str:
    """``text`` between double quotes, whatever it holds."""
    marks = {'"': '\\"', "\\": "\\\\"}
    return '"' + "".join(marks.get(c, c) if c.isprintable() else f"\\U{ord(c):08x}" for c in text) + '"'


def percent(share: float) -> str:
    """A share as it is shown."""
    return f"{100 * share:.1f} %" if share >= 0.001 else "less than 0.1 %"


def counted(number: int, thing: str) -> str:
    """``1 file``, ``2,000 files``."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
