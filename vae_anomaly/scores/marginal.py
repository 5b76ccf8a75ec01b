r"""How rare each value is by itself, whatever the others are: a histogram of every column.

.. math:: m_q(x) = \log \max_v p_q(v) - \log p_q(x_q) \ge 0

in nats: 0 for a column's most frequent value. A number that takes few values has a count for each of them, any other
number equal bins over their range; half a record is added to each cell, and to what lies outside.

Legend: B records, M reference records, F features, P features or residuals that have cells, Q columns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from vae_anomaly.likelihoods import AnyLayout
from vae_anomaly.scores.elbo import by_column
from vae_anomaly.vae import Inputs, concatenated

FEW, BINS = 10, 50
CELLS = BINS + 2  # of a column: below, the bins, above; or below, each value and what lies after it
EDGES = 2 * FEW


@dataclass(frozen=True)
class Histogram:
    """The ``nats`` (P, CELLS) of each cell of P columns; ``most`` (P,) are the counts of the fullest cells.

    A number x is in the cell 1 + floor((x - ``low``) ``per_unit``), of (P,) each, as far as there are cells. Of the S
    columns with few values, at ``few`` (S,), it is the number of their ``edges`` (S, EDGES) that are not larger; they
    ascend, and the largest number stands for infinity, which no file of tensors may hold.
    """

    low: Tensor
    per_unit: Tensor
    few: Tensor
    edges: Tensor
    nats: Tensor
    most: Tensor

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """What was counted."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def entries(self, x: Tensor, counted: Tensor | None = None) -> Tensor:
        """(B, P) nats of ``x`` (B, P); of records that were ``counted`` (B,) the own cells have one less."""
        # arithmetic where it can be: a search costs ten times as much
        place = ((x - self.low) * self.per_unit).floor_().clamp_(-1.0, BINS).add_(1.0).long()
        if len(self.few):
            place[:, self.few] = torch.searchsorted(self.edges, x[:, self.few].T.contiguous(), right=True).T
        place.add_(CELLS * torch.arange(len(self.low)))
        entries = self.nats.flatten().index_select(0, place.flatten()).view_as(place)
        return without_own(entries, self.most, counted)


def histogram(x: Tensor, observed: Tensor) -> Histogram:
    """Count the values of ``x`` (M, P) where ``observed`` (M, P) is 1."""
    size = x.shape[1]
    low, per_unit, nats, most = torch.zeros(size), torch.zeros(size), torch.zeros(size, CELLS), torch.ones(size)
    few, edges = [], []
    for i in range(size):
        column = x[observed[:, i] > 0, i]
        if not len(column):
            continue
        distinct, counts = torch.unique(column, return_counts=True)
        if len(distinct) <= FEW:
            few.append(i)
            edges.append(_around(distinct))
            inside = torch.zeros(2 * len(distinct) + 1)
            inside[1::2] = counts.float()
        else:
            bins = min(BINS, math.isqrt(len(column)) + 1)
            low[i], per_unit[i] = distinct[0], bins / (distinct[-1] - distinct[0]).clamp_min(1e-30)
            place = ((column - low[i]) * per_unit[i]).floor().clamp(0, bins - 1).long()
            inside = torch.cat([torch.zeros(1), torch.bincount(place, minlength=bins), torch.zeros(1)])
        count = inside + 0.5
        most[i] = count.max()
        nats[i] = (most[i] / 0.5).log()
        nats[i, : len(count)] = (most[i] / count).log()
    stacked = torch.stack(edges) if edges else torch.zeros(0, EDGES)
    return Histogram(low, per_unit, torch.tensor(few, dtype=torch.int64), stacked, nats, most)


def _around(distinct: Tensor) -> Tensor:
    """(EDGES,) of a narrow cell around each of the few values; what lies between is as rare as what lies outside."""
    gap = float(distinct.diff().min()) / 4 if len(distinct) > 1 else 1e-4
    edges = torch.stack([distinct - gap, distinct + gap], 1).flatten()
    return torch.cat([edges, edges.new_full((EDGES - len(edges),), torch.finfo(edges.dtype).max)])


def without_own(entries: Tensor, most: Tensor, counted: Tensor | None) -> Tensor:
    """``entries`` (B, P), of records that were ``counted`` (B,) as if their own bins had one less.

    ``most`` (P,) are the counts of the fullest bins.
    """
    if counted is None:
        return entries
    without = (most / (most * (-entries).exp() - 1.0).clamp_min(0.5)).log().clamp_min(0.0)
    return torch.where(counted[:, None], without, entries)


EMPTY = histogram(torch.zeros(0, 0), torch.zeros(0, 0))


@dataclass(frozen=True)
class Marginal:
    """The histogram of P features, and of the other F - P, which are one-hot categories, the nats of each value, and
    the count of each column's fullest one, ``most``."""

    binned: Histogram
    categories: Tensor
    most: Tensor

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """What was counted."""
        return {**self.binned.tensors, "categories": self.categories, "most_of_category": self.most}

    def terms(self, inputs: Inputs, layout: AnyLayout, counted: Tensor | None = None) -> Tensor:
        """(B, Q) float64 nats of each column; 0 where the cell is missing."""
        return by_column(self.entries(inputs, counted).double(), layout.column_of_feature, layout.columns)

    def entries(self, inputs: Inputs, counted: Tensor | None = None) -> Tensor:
        """(B, F) nats of each feature; of records that were ``counted`` (B,) the own cells have one less."""
        binned = len(self.binned.low)
        categories = without_own(self.categories[None], self.most, counted)
        parts = [self.binned.entries(inputs.x[:, :binned], counted), categories * inputs.x[:, binned:]]
        entries = torch.cat(parts, 1) if binned < inputs.x.shape[1] else parts[0]
        return entries if inputs.observed is None else entries * inputs.observed


def marginal(parts: Sequence[Inputs], layout: AnyLayout) -> Marginal:
    """Count the values of the reference records ``parts``."""
    if layout.modality == "text":
        # a token is judged where it stands, and not by itself
        width = parts[0].x.shape[1]
        return Marginal(EMPTY, torch.zeros(width), torch.ones(width))
    whole = concatenated(parts)
    x, observed = whole.x, torch.ones_like(whole.x) if whole.observed is None else whole.observed
    binned = layout.size("gaussian") + layout.size("bernoulli")
    categories, most, start = torch.zeros(x.shape[1] - binned), torch.ones(x.shape[1] - binned), 0
    for size in layout.categorical_sizes:
        block = slice(start, start + size)
        count = x[:, binned:][:, block].sum(0) + 0.5
        categories[block], most[block] = (count.max() / count).log(), count.max()
        start += size
    return Marginal(histogram(x[:, :binned], observed[:, :binned]), categories, most)
