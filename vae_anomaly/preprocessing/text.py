r"""Texts and log lines: tokens whose names do not change with what varies, a vocabulary learned from training lines.

A line is cut into words and numbers; punctuation only separates, but for runs of one sign (``.....``), which are
layout, and ``camelCase`` is two words. What varies from line to line is replaced by a placeholder, each of which can be
left out (``replace`` of the column):

* ``address``: ``<address>`` for IPv4 and IPv6 addresses, with a port, and for MAC and longer hardware addresses;
* ``path``: ``<path>`` for ``/a/b``, ``~/a``, ``../a`` and what follows the scheme of a URL;
* ``id``: ``<id>`` for UUIDs, for three or more parts of letters and digits joined by ``-``, ``_`` or ``:`` (node
  names), and for eight or more characters in which letters and digits alternate;
* ``hex``: ``<hex>`` for ``0x1f``, and for eight or more hexadecimal digits with a letter and a digit among them;
* ``number``: ``<number>`` for numbers, dates and times: digits joined by ``. , : / -``.

Words are folded to lower case. A token that no training line has is *unknown*: no network can say how likely it is,
so it counts as evidence, :math:`-\log((n_1 + 1)/(n + 2))` nats with n_1 of n training tokens seen once (Good and
Turing). A new kind of line brings all its new words together, so they are one piece of evidence, divided among them,
and not independent ones. A line ends with a token of its own, and with another one where it was cut at
``max_tokens``; that a line is longer than any in training is therefore evidence, too.

Legend: B records, T positions (``max_tokens`` and the end).
Reference: I. J. Good, The population frequencies of species, Biometrika 40 (1953), doi 10.1093/biomet/40.3-4.237.
"""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from vae_anomaly.batch import Records
from vae_anomaly.errors import DataError
from vae_anomaly.likelihoods import TokenLayout
from vae_anomaly.likelihoods.tokens import CUT, END, PAD, SPECIAL, UNKNOWN
from vae_anomaly.preprocessing.tabular import ColumnState, ContextEncoder, fit_context, states_from
from vae_anomaly.schema import Schema
from vae_anomaly.vae import Inputs

MAX_VOCABULARY = 20_000
NAMES = ("", "<end>", "<unknown>", "<cut>")  # of the special tokens
_X = r"[0-9A-Fa-f]"
_GROUPS = rf"{_X}{{1,4}}(?::{_X}{{1,4}}){{0,6}}"  # of an IPv6 address
# In the order in which they are tried at each place; a placeholder may have several. Repetitions that can begin at
# every character are bounded: without a bound a hostile line takes time with the square of its length.
PATTERNS = (
    ("id", rf"\b{_X}{{8}}-{_X}{{4}}-{_X}{{4}}-{_X}{{4}}-{_X}{{12}}\b"),
    ("address", rf"(?<![\w:])(?:{_X}{{2}}[:-]){{5,19}}{_X}{{2}}(?![\w:])"),
    ("address", r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?(?!\w)"),
    ("address", rf"(?<![\w:])(?:{_X}{{1,4}}:){{7}}{_X}{{1,4}}(?![\w:])"),
    (
        "address",
        rf"(?<![\w:])(?=:{{0,2}}{_X})(?:{_GROUPS})?::(?:{_GROUPS})?(?![\w:])",
    ),
    ("path", r"(?<![\w/.])(?:~|\.{1,2})?/[\w.+@%~/-]*[\w/]"),
    ("hex", rf"\b0[xX]{_X}+\b|\b(?={_X}*[A-Fa-f])(?={_X}*\d){_X}{{8,}}\b|\b[Ff]{{8,}}\b"),
    ("id", r"\b(?=[\w:-]{0,99}\d)(?=[\w:-]{0,99}[A-Za-z])[A-Za-z0-9]{1,64}(?:[-_:][A-Za-z0-9]{1,64}){2,30}\b"),
    ("id", r"\b(?=\w{8,}\b)(?:[A-Za-z]+\d+){2,}[A-Za-z]*\b|\b(?=\w{8,}\b)(?:\d+[A-Za-z]+){2,}\d*\b"),
    ("number", r"(?<![A-Za-z])[-+]?\d+(?:[.,:/-]\d+)*|\d+"),
)
RUN = r"(?P<run>(?P<sign>[^\w\s])(?P=sign){2,})"  # of one sign, three or longer
WORD = r"[A-Z]{2,}s?(?![a-z])|[A-Z]+(?=[A-Z][a-z])|[A-Z]?(?:(?![A-Z])[^\W\d_])+|[A-Z]+|\d+"
LONGEST = 16_384  # characters of a line that are read: far more than any number of tokens that a model takes


class Piece(NamedTuple):
    """A piece of a line as it stands there, with the signs around it, and the token that it becomes."""

    text: str
    token: str


@functools.lru_cache(maxsize=32)
def tokenizer(replace: tuple[str, ...]) -> re.Pattern[str]:
    """The expression that finds the pieces of a line; a group's name is a placeholder of ``replace`` and its place."""
    named = [f"(?P<{name}_{i}>{pattern})" for i, (name, pattern) in enumerate(PATTERNS) if name in replace]
    return re.compile("|".join([*named, RUN, WORD]))


def pieces(line: str, replace: tuple[str, ...]) -> list[Piece]:
    """The pieces of ``line`` in order; together they are the line, white space at the ends of pieces aside."""
    line = line[:LONGEST]
    found = list(tokenizer(replace).finditer(line))
    starts = [0, *(m.start() for m in found[1:]), len(line)]
    return [
        Piece(
            line[start:end].strip(),
            _token(m),
        )
        for m, start, end in zip(found, starts, starts[1:], strict=False)
    ]


def _token(found: re.Match[str]) -> str:
    if found["run"]:
        return 3 * found["sign"]
    return f"<{found.lastgroup.partition('_')[0]}>" if found.lastgroup else found[0].lower()


@dataclass(frozen=True)
class TextPreprocessor:
    """The vocabulary of the lines of ``column``, most frequent token first, and the context."""

    column: str
    max_tokens: int
    replace: tuple[str, ...]
    vocabulary: tuple[str, ...]
    unseen_nats: float
    context: ContextEncoder = field(default_factory=ContextEncoder)

    @functools.cached_property
    def layout(self) -> TokenLayout:
        """The positions and the number of tokens, special ones included."""
        return TokenLayout(len(self.vocabulary) + SPECIAL, self.max_tokens + 1, self.context.size)

    @property
    def columns(self) -> tuple[str, ...]:
        """The column, then those of the context."""
        return tuple(s.column for s in self.all_states)

    @property
    def all_states(self) -> tuple[ColumnState, ...]:
        """The states of :attr:`columns`."""
        return (ColumnState(self.column, "text", 0.0), *self.context.states)

    @functools.cached_property
    def _index(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(self.vocabulary, start=SPECIAL)}

    def token_ids(self, lines: pa.Array) -> np.ndarray:
        """(B, T) int64 ids; equal lines are read once."""
        encoded = lines.dictionary_encode()
        known = [self._ids(line) for line in encoded.dictionary.to_pylist()]
        table = np.stack([*known, np.zeros(self.layout.length, np.int64)])
        rows: np.ndarray = table[encoded.indices.fill_null(len(known)).to_numpy(zero_copy_only=False).astype(np.int64)]
        return rows

    def _ids(self, line: str) -> np.ndarray:
        found = [self._index.get(p.token, UNKNOWN) for p in pieces(line, self.replace)]
        ids = np.full(self.layout.length, PAD, np.int64)
        cut = len(found) > self.max_tokens or len(line) > LONGEST
        kept = [*found[: self.max_tokens], CUT if cut else END]
        ids[: len(kept)] = kept
        return ids

    def encode(self, records: Records) -> Inputs:
        """x (B, T) int64 and, where there are unknown tokens, evidence (B, T) nats of scorable ``records``."""
        ids = self.token_ids(records.values[self.column])
        nats = torch.from_numpy(self.evidence(ids)) if (ids == UNKNOWN).any() else None
        return Inputs(torch.from_numpy(ids), evidence=nats, context=self.context.encode(records))

    def evidence(self, ids: np.ndarray) -> np.ndarray:
        """(B, T) float32 nats of the unknown tokens of each line of ``ids`` (B, T), together those of one."""
        unknown = ids == UNKNOWN
        share = unknown / unknown.sum(1, keepdims=True).clip(1)
        return np.asarray(share * self.unseen_nats, dtype=np.float32)

    def decode(self, ids: np.ndarray) -> list[str]:
        """The tokens of each row of ids (B, T), joined by spaces, up to the end."""
        names = (*NAMES, *self.vocabulary)
        lines = []
        for row in ids:
            ends = np.flatnonzero(np.isin(row, (PAD, END)))
            lines.append(" ".join(names[i] for i in row[: ends[0] if len(ends) else len(row)]))
        return lines

    def quality(self, records: Records, good: np.ndarray) -> np.ndarray:
        """(Q, 3): lines with unknown tokens and lines that were cut, then the counts of the context columns."""
        ids = self.token_ids(records.values[self.column])
        unknown, cut = (((ids == token).any(1) & good).sum() for token in (UNKNOWN, CUT))
        rows = np.array([[0, unknown, cut]])
        return np.concatenate([rows, self.context.quality(records, good)]) if self.context.states else rows

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        lists = {name: list(getattr(self, name)) for name in ("replace", "vocabulary")}
        return {**asdict(self), **lists, "context": [asdict(s) for s in self.context.states]}

    @staticmethod
    def from_dict(value: Mapping[str, Any]) -> TextPreprocessor:
        """The inverse of :meth:`to_dict`."""
        lists = {name: tuple(value[name]) for name in ("replace", "vocabulary")}
        return TextPreprocessor(**{**value, **lists, "context": ContextEncoder(states_from(value["context"]))})


def fit_text(records: Records, schema: Schema) -> TextPreprocessor:
    """Learn the vocabulary from scorable training ``records``; what goes beyond ``MAX_VOCABULARY`` tokens is unknown.

    Raises
    ------
    DataError
        No line has a token (rule ``unusable_column``).
    """
    column = next(c for c in schema.columns if c.kind == "text")
    counts = count_tokens(records.values[column.name], column.replace)
    if not counts:
        raise DataError(
            "unusable_column",
            "the training lines must hold words. Got none.",
            column=column.name,
            remedy="Check source.lines.pattern, or choose another column.",
        )
    ranked = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    singletons, total = sum(count == 1 for count in counts.values()), sum(counts.values())
    return TextPreprocessor(
        column.name,
        column.max_tokens,
        tuple(column.replace),
        tuple(token for token, _ in ranked[:MAX_VOCABULARY]),
        -math.log((singletons + 1) / (total + 2)),
        fit_context(records, schema),
    )


def count_tokens(lines: pa.Array, replace: Sequence[str]) -> Counter[str]:
    """How often each token occurs in ``lines``."""
    counts: Counter[str] = Counter()
    distinct = pc.value_counts(lines.drop_null())
    for line, times in zip(distinct.field("values").to_pylist(), distinct.field("counts").to_pylist(), strict=True):
        for piece in pieces(line, tuple(replace)):
            counts[piece.token] += times
    return counts
