"""Synthetic corruptions of encoded records, column by column or region by region: recall that needs no label.

* ``swap``: what another record holds there, with its mask and evidence; a text's tokens are drawn from all lines;
* ``scale``: a number or time part ``SIZE`` robust deviations off, either way; an image's region inverted;
* ``other``: a boolean or category that the record did not have;
* ``freeze``: one value for all, as of a stuck sensor: that of the record nearest to the median, the mean image's
  region, for a part of a text its first token again and again;
* ``repeat``: a part of a text twice;
* ``missing``: a masked cell with the evidence of a missing one, a black region, tokens that are left out;
* ``unknown``: a category or tokens never seen in training, with their evidence; noise in an image.

A context column is only swapped: a record under another context. The randomness of a corruption follows from the seed,
its kind and its place: it does not depend on the other columns.

Legend: B records, F features, Q columns, T positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vae_anomaly.explain.image import COLUMNS, ROWS
from vae_anomaly.likelihoods.tokens import CUT, PAD, UNKNOWN
from vae_anomaly.preprocessing import Preprocessor
from vae_anomaly.preprocessing.image import ImagePreprocessor
from vae_anomaly.preprocessing.tabular import ColumnState, TabularPreprocessor
from vae_anomaly.preprocessing.text import TextPreprocessor
from vae_anomaly.vae import Inputs

SIZE = 10.0  # robust deviations
MAX_COLUMNS = 60
KINDS = ("swap", "scale", "other", "freeze", "repeat", "missing", "unknown")
PARTS = ("beginning", "middle", "end")  # of a text

Made = Iterator[tuple[str, str, Inputs]]


@dataclass(frozen=True)
class Corruption:
    """B records with one column or region corrupted; ``changed`` (B,) bool: those that are not what they were."""

    kind: str
    where: str
    inputs: Inputs
    changed: np.ndarray


def corruptions(preprocessor: Preprocessor, inputs: Inputs, seed: int) -> Iterator[Corruption]:
    """Every corruption of ``inputs`` in turn; of a wide table those of ``MAX_COLUMNS`` columns, chosen evenly."""
    of_modality = _MODALITIES[preprocessor.layout.modality]
    for kind, where, made in chain(of_modality(preprocessor, inputs, seed), _of_context(preprocessor, inputs, seed)):
        yield Corruption(kind, where, made, _changed(inputs, made))


def places(preprocessor: Preprocessor) -> tuple[str, ...]:
    """Every column or region that there is to corrupt, those included that a wide table leaves out."""
    if isinstance(preprocessor, TabularPreprocessor):
        return preprocessor.columns
    if isinstance(preprocessor, ImagePreprocessor):
        regions = tuple(name for name, _, _ in _regions(preprocessor.height, preprocessor.width))
    else:
        regions = PARTS
    return regions + tuple(s.column for s in preprocessor.context.states)


def _changed(before: Inputs, after: Inputs) -> np.ndarray:
    changed = torch.zeros(len(before), dtype=torch.bool)
    for name, empty in (("x", None), ("observed", 1.0), ("evidence", 0.0), ("context", None)):
        old, new = getattr(before, name), getattr(after, name)
        if new is not None and new is not old:
            changed |= (new != (empty if old is None else old)).any(1)
    return changed.numpy()


def _generator(seed: int, kind: str, where: str) -> np.random.Generator:
    return np.random.default_rng([seed, *f"{kind} {where}".encode()])


def _donors(records: int, rng: np.random.Generator) -> Tensor:
    """(B,) another record for each, all different."""
    order = rng.permutation(records)
    donors = np.empty(records, np.int64)
    donors[order] = np.roll(order, 1)
    return torch.from_numpy(donors)


# ---- tables ----


class _Cells(NamedTuple):
    """One column of B records: features (B, size), 1 where observed and nats of evidence, (B, 1) each."""

    x: Tensor
    observed: Tensor
    evidence: Tensor

    def of(self, rows: Tensor) -> _Cells:
        return _Cells(*(part[rows] for part in self))


def _swap(state: ColumnState, cells: _Cells, rng: np.random.Generator) -> _Cells:
    return cells.of(_donors(len(cells.x), rng))


def _scale(state: ColumnState, cells: _Cells, rng: np.random.Generator) -> _Cells:
    sign = torch.from_numpy(rng.choice(np.array([-1.0, 1.0], np.float32), (len(cells.x), 1)))
    return cells._replace(x=cells.x + SIZE * sign * cells.observed)


def _other(state: ColumnState, cells: _Cells, rng: np.random.Generator) -> _Cells:
    if state.kind in ("binary", "boolean"):
        return cells._replace(x=cells.observed - cells.x)
    if state.size < 2:
        return cells
    shift = torch.from_numpy(rng.integers(1, state.size, (len(cells.x), 1)))
    return cells._replace(x=cells.x.gather(1, (torch.arange(state.size) - shift) % state.size))


def _freeze(state: ColumnState, cells: _Cells, rng: np.random.Generator) -> _Cells:
    seen = cells.observed[:, 0] > 0
    if not bool(seen.any()):
        return cells
    off = (cells.x - cells.x[seen].median(0).values).abs().sum(1)
    return cells.of(off.where(seen, torch.inf).argmin().expand(len(seen)))


def _missing(state: ColumnState, cells: _Cells, rng: np.random.Generator) -> _Cells:
    nats = torch.full_like(cells.evidence, state.missing_nats)
    return _Cells(torch.zeros_like(cells.x), torch.zeros_like(cells.observed), nats)


def _unknown(state: ColumnState, cells: _Cells, rng: np.random.Generator) -> _Cells:
    nats = torch.full_like(cells.evidence, state.present_nats + state.unseen_nats)
    return _Cells(torch.zeros_like(cells.x), torch.ones_like(cells.observed), nats)


_CELLS: Mapping[str, Callable[[ColumnState, _Cells, np.random.Generator], _Cells]] = {
    "swap": _swap,
    "scale": _scale,
    "other": _other,
    "freeze": _freeze,
    "missing": _missing,
    "unknown": _unknown,
}
_OF_KIND = {
    "number": ("swap", "scale", "freeze", "missing"),
    "timestamp": ("swap", "scale", "freeze", "missing"),
    "binary": ("swap", "other", "freeze", "missing", "unknown"),
    "boolean": ("swap", "other", "freeze", "missing"),
    "category": ("swap", "other", "freeze", "missing", "unknown"),
}


def _of_table(preprocessor: Preprocessor, inputs: Inputs, seed: int) -> Made:
    assert isinstance(preprocessor, TabularPreprocessor)
    x = inputs.x
    observed = torch.ones_like(x) if inputs.observed is None else inputs.observed
    evidence = x.new_zeros(len(x), len(preprocessor.columns)) if inputs.evidence is None else inputs.evidence
    starts = np.cumsum([0, *(s.size for s in preprocessor.states)])
    for i in _evenly(len(preprocessor.states)):
        state, part, column = preprocessor.states[i], slice(starts[i], starts[i + 1]), slice(i, i + 1)
        cells = _Cells(x[:, part], observed[:, part][:, :1], evidence[:, column])
        for kind in _OF_KIND[state.kind]:
            made = _CELLS[kind](state, cells, _generator(seed, kind, state.column))
            changed = Inputs(_with(x, part, made.x), _with(observed, part, made.observed),
                             _with(evidence, column, made.evidence), inputs.context)  # fmt: skip
            yield kind, state.column, changed


def _evenly(count: int) -> np.ndarray:
    """At most ``MAX_COLUMNS`` positions below ``count``, first and last included."""
    return np.unique(np.linspace(0, count - 1, min(count, MAX_COLUMNS)).round().astype(int))


def _with(whole: Tensor, part: slice, new: Tensor) -> Tensor:
    changed = whole.clone()
    changed[:, part] = new
    return changed


# ---- images ----

_REGION: Mapping[str, Callable[[Tensor, np.random.Generator], Tensor]] = {
    "swap": lambda region, rng: region[_donors(len(region), rng)],
    "scale": lambda region, rng: 1.0 - region,
    "freeze": lambda region, rng: region.mean(0, keepdim=True),
    "missing": lambda region, rng: torch.zeros_like(region),
    "unknown": lambda region, rng: torch.from_numpy(rng.random(region.shape, np.float32)),
}


def _of_image(preprocessor: Preprocessor, inputs: Inputs, seed: int) -> Made:
    assert isinstance(preprocessor, ImagePreprocessor)
    x = inputs.x.view(-1, *preprocessor.layout.shape)
    for name, rows, columns in _regions(preprocessor.height, preprocessor.width):
        for kind, change in _REGION.items():
            made = x.clone()
            made[..., rows, columns] = change(x[..., rows, columns], _generator(seed, kind, name))
            yield kind, name, replace(inputs, x=made.flatten(1))


def _regions(height: int, width: int) -> Iterator[tuple[str, slice, slice]]:
    """Name, rows and columns of each part of a 3 x 3 grid that holds a pixel."""
    for row, band in zip(ROWS, np.array_split(np.arange(height), 3), strict=True):
        for place, part in zip(COLUMNS, np.array_split(np.arange(width), 3), strict=True):
            if band.size and part.size:
                yield f"{row} {place}", slice(band[0], band[-1] + 1), slice(part[0], part[-1] + 1)


# ---- texts ----

# a line's tokens without its end, what begins and ends its corrupted part, and all tokens there are
_LINE: Mapping[str, Callable[[np.ndarray, int, int, np.ndarray, np.random.Generator], np.ndarray]] = {
    "swap": lambda line, a, b, pool, rng: np.r_[line[:a], rng.choice(pool, b - a), line[b:]],
    "freeze": lambda line, a, b, pool, rng: np.r_[line[:a], np.repeat(line[a], b - a), line[b:]],
    "repeat": lambda line, a, b, pool, rng: np.r_[line[:b], line[a:]],
    "missing": lambda line, a, b, pool, rng: np.r_[line[:a], line[b:]],
    "unknown": lambda line, a, b, pool, rng: np.r_[line[:a], np.full(b - a, UNKNOWN), line[b:]],
}


def _of_text(preprocessor: Preprocessor, inputs: Inputs, seed: int) -> Made:
    assert isinstance(preprocessor, TextPreprocessor)
    ids = inputs.x.numpy()
    lengths = (ids != PAD).sum(1) - 1
    pool = ids[np.arange(ids.shape[1]) < lengths[:, None]]
    for third, name in enumerate(PARTS):
        for kind, change in _LINE.items():
            rng, made = _generator(seed, kind, name), ids.copy()
            for row, length in enumerate(lengths):
                a, b = length * third // 3, length * (third + 1) // 3
                if a < b:
                    _put(made[row], change(ids[row, :length], a, b, pool, rng), end=ids[row, length])
            nats = preprocessor.evidence(made)
            yield kind, name, Inputs(torch.from_numpy(made), None, torch.from_numpy(nats), inputs.context)


def _put(row: np.ndarray, line: np.ndarray, *, end: int) -> None:
    """Write the tokens of ``line`` and their end into ``row`` (T,); too many are cut."""
    most = len(row) - 1
    kept = line[:most]
    row[:] = PAD
    row[: len(kept)] = kept
    row[len(kept)] = CUT if len(line) > most else end


# ---- contexts ----


def _of_context(preprocessor: Preprocessor, inputs: Inputs, seed: int) -> Made:
    """Swaps among records of known context, whose evidence is the same."""
    given, at = inputs.context, 1
    if given is None:
        return
    for state in preprocessor.context.states:
        part, donors = slice(at, at + state.size), _donors(len(inputs), _generator(seed, "swap", state.column))
        known = (given[:, :1] > 0) & (given[donors, :1] > 0)
        made = _with(given, part, given[donors, part].where(known, given[:, part]))
        yield "swap", state.column, replace(inputs, context=made)
        at += state.size


_MODALITIES: Mapping[str, Callable[[Preprocessor, Inputs, int], Made]] = {
    "table": _of_table,
    "image": _of_image,
    "text": _of_text,
}
