"""Lines and other texts: the time that lines begin with, which is no part of the message, and how long texts are."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vae_anomaly.infer.columns import PARSED_SHARE, Choice, present
from vae_anomaly.schema import MOST_TOKENS

FIRST = 2_000  # lines that a pattern is found in
COUNTED, LONGEST = 5_000, 4 * MOST_TOKENS  # texts whose tokens are counted, and characters of each
KEPT = 0.995  # share of the texts that are not cut
DEEPEST = 4  # times that a line may begin with

MONTH = "(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
CLOCK = r"\d\d:\d\d:\d\d(?:[.,]\d+)?"
ZONE = r"(?: ?(?:Z|UTC|[-+]\d\d:?\d\d))?"
STAMPS = {
    "ISO 8601": rf"\d{{4}}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:[.,]\d+)?)?{ZONE}",
    "with points": r"\d{4}-\d\d-\d\d-\d\d\.\d\d\.\d\d(?:\.\d+)?",
    "as in syslog": rf"(?:[A-Z][a-z]{{2}} )?{MONTH} {{1,2}}\d{{1,2}} {CLOCK}(?: \d{{4}})?",
    "with slashes": rf"\d{{1,4}}/(?:\d\d|{MONTH})/\d{{2,4}}[ :T]{CLOCK}{ZONE}",
    "seconds since 1970": r"1\d{9}(?:\d{3}){0,3}(?:\.\d+)?",
    "a day": r"\d{4}[-./]\d\d[-./]\d\d",
}
AROUND = (("", r"\s+[|-]\s+"), ("", r"\s+"), (r"\[", r"\]:?\s+"), (r"[\[(]?", r"[\])]?[:,]?\s+"))
"""What may stand before and after a time, the simplest first."""
PRIORITY, LABEL = r"<\d{1,3}>(?:\d )?", r"(?P<label>\S+)\s+"

TOKEN = re.compile(
    r"(?<![\w/.])[~.]{0,2}/[\w.+@%~/-]+"  # paths
    r"|\b(?=[\w:-]{0,99}\d)(?=[\w:-]{0,99}[A-Za-z])[A-Za-z0-9]+(?:[-_:][A-Za-z0-9]+){2,}\b"  # ids
    r"|\b[0-9A-Fa-f]+(?::{1,2}[0-9A-Fa-f]+){3,}"  # addresses
    r"|\b(?:0[xX])?(?=[0-9A-Fa-f]{0,99}\d)[0-9A-Fa-f]{8,}\b|\d+(?:[.,:/-]\d+)*"  # numbers and times
    r"|[A-Z]{2,}(?![a-z])|[A-Z]?[a-z]+|[^\W\d_]+"
)
"""About what preprocessing takes for one token; a proposal does not wait for the libraries that preprocessing needs."""


class Pattern(NamedTuple):
    """The expression that cuts a line into its columns, and what was found."""

    text: str
    why: str


# ---- the beginning of a line ----


def line_pattern(lines: pa.ChunkedArray) -> Pattern | None:
    """What keeps the time at the beginning of ``lines`` out of ``message``; None unless 95 % begin with one.

    A line without a time is a message as a whole. Where most lines have "-" before the time, as the logs of the
    supercomputers have, this word is their ``label``.
    """
    first = lines.slice(0, FIRST)
    labelled = _share(first, r"^-\s") >= 0.5
    for before in ("", PRIORITY, *([LABEL] if labelled else [])):
        head, found = _stamped(first, before)
        share = _share(lines, rf"^{head}.*\S")
        if found and share >= PARSED_SHARE:
            which = f"{100 * math.floor(1000 * share) / 1000:.3g} % of the lines begin with a time ({', '.join(found)})"
            label = ", after a word that may be a label" if before == LABEL else ""
            return Pattern(rf"^(?:{head})?(?P<message>.*)$", f"{which}{label}: what follows is the message")
    return None


def _stamped(lines: pa.ChunkedArray, before: str) -> tuple[str, list[str]]:
    """``before`` and the times that follow it in nearly all lines, each perhaps after a host; and their names."""
    head, found = before, list[str]()
    while len(found) < DEEPEST:
        hosts = ("", r"\S+\s+") if found else ("",)
        longer = ((n, f"{head}{h}{a}{s}{b}") for h, (n, s), (a, b) in product(hosts, STAMPS.items(), AROUND))
        fits = next(((name, text) for name, text in longer if _share(lines, f"^{text}") >= PARSED_SHARE), None)
        if fits is None:
            break
        found, head = [*found, fits[0]], fits[1]
    return head, found


def _share(lines: pa.ChunkedArray, pattern: str) -> float:
    """Share of the lines that the expression matches."""
    share: float = pc.mean(pc.match_substring_regex(lines, pattern)).as_py()
    return share


def cut(lines: pa.ChunkedArray, pattern: Pattern) -> pa.Table:
    """The columns that are named in the pattern."""
    groups = pc.extract_regex(lines.combine_chunks(), pattern.text)
    return pa.Table.from_arrays(groups.flatten(), [groups.type.field(i).name for i in range(groups.type.num_fields)])


# ---- how long texts are ----


def choose_prose(name: str, column: pa.ChunkedArray) -> Choice:
    """The column of texts ``name``."""
    texts = present(column.cast(pa.string()))
    step = max(1, len(texts) // COUNTED)
    counts = list(_token_counts(texts.take(pa.array(range(0, len(texts), step)))))
    longest = int(np.quantile(counts, KEPT, method="higher"))
    most = min(MOST_TOKENS, max(8, 8 * math.ceil(longest / 8)))
    why = f"99.5 % of {len(texts):,} texts have about {longest:,} words or fewer; longer ones are cut"
    return Choice(name, "text", why, f", max_tokens: {most}")


def _token_counts(texts: pa.ChunkedArray) -> Iterator[int]:
    return (len(TOKEN.findall(text[:LONGEST])) for text in texts.to_pylist())
