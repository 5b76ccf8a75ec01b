"""Log lines with a label: half of the normal lines train, the other half is scored with the alerts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vae_anomaly.benchmark.measuring import Method, Split
from vae_anomaly.benchmark.methods import ours, tfidf
from vae_anomaly.errors import ConfigError
from vae_anomaly.estimator import from_texts
from vae_anomaly.fitting import Recipe

# BGL: label, seconds, date, node, time, node again; the message begins with its source and severity
PATTERN = r"^(?P<label>\S+)(?:\s+\S+){5}\s+(?P<message>\S.*)$"
NORMAL, FEWEST = "-", 40


class Lines(NamedTuple):
    """N ``messages``, whether each is ``anomalous`` (N,) bool, and the number of lines that the pattern left out."""

    messages: list[str]
    anomalous: np.ndarray
    left_out: int


def read(path: Path, pattern: str) -> Lines:
    """The lines of a log file, cut by the groups ``label`` (``-`` is normal) and ``message`` of ``pattern`` (RE2).

    Raises
    ------
    ConfigError
        There is no such file, the pattern is none, or it finds too few normal lines or no alert.
    """
    if not path.is_file():
        raise ConfigError(
            f"data must be a log file. Got {str(path)!r}, which is {'a folder' if path.is_dir() else 'not there'}."
        )
    lines = [line for line in path.read_bytes().decode("utf-8", "replace").split("\n") if line.strip()]
    cells = _cut(lines, pattern)
    kept = pc.drop_null(cells)
    messages, label = (pc.struct_field(kept, name) for name in ("message", "label"))
    anomalous = np.asarray(pc.not_equal(label, NORMAL)).astype(bool)
    if (normal := int((~anomalous).sum())) < FEWEST or normal == len(kept):
        raise ConfigError(
            f"data must hold at least {FEWEST} normal lines, with the label {NORMAL!r}, and alerts, with another one."
            f" Got {normal} and {len(kept) - normal} in {str(path)!r}, and {len(cells) - len(kept)} lines that the"
            f" pattern does not match. Give a pattern that fits with --pattern."
        )
    return Lines(messages.to_pylist(), anomalous, len(cells) - len(kept))


def _cut(lines: list[str], pattern: str) -> pa.Array:
    """A struct of the pattern's groups for each line, null where it does not match."""
    try:
        cells = pc.extract_regex(pa.array([line.rstrip("\r") for line in lines], pa.string()), pattern)
        groups = {cells.type.field(i).name for i in range(cells.type.num_fields)}
    except pa.ArrowInvalid:
        groups = set()
    if not groups >= {"label", "message"}:
        raise ConfigError(
            "pattern must be a regular expression of RE2 with the groups (?P<label>...) and (?P<message>...), all"
            f" groups named. Got {pattern!r}."
        )
    return cells


def data(lines: Lines, name: str) -> dict[str, Callable[[int], Split]]:
    """The splits of one file."""
    return {name: partial(split, lines)}


def split(lines: Lines, seed: int) -> Split:
    """Half of the normal lines, drawn by the seed, train."""
    normal = np.flatnonzero(~lines.anomalous)
    np.random.default_rng(seed).shuffle(normal)
    half = len(normal) // 2
    tested = np.concatenate([normal[half:], np.flatnonzero(lines.anomalous)])
    of = lines.messages
    return Split([of[i] for i in normal[:half]], [of[i] for i in tested], lines.anomalous[tested])


# a kind of line that only the held-out few show is a kind that is never learned: as few as can be
METHODS: dict[str, Method] = {
    "ours": ours(from_texts, Recipe(validation=0.02, calibration=0.02)),
    "tfidf": tfidf,
}
