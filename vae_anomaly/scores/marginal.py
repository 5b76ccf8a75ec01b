r"""How rare each value is by itself, whatever the others are: a histogram of every column.

.. math:: m_q(x) = \log \max_v p_q(v) - \log p_q(x_q) \ge 0

in nats: 0 for a column's most frequent value. A number that takes few values has a count for each of them, any other
number equal bins over the range of the training records; half a record is added to each bin, and to what lies outside.

Legend: B records, M training records, F features, P features or residuals that have bins, E edges, Q columns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vae_anomaly.likelihoods import AnyLayout
from vae_anomaly.scores.elbo import by_column
from vae_anomaly.vae import Inputs, concatenated

FEW, BINS = 10, 50
EDGES = 2 * BINS


@dataclass(frozen=True)
class Histogram:
    """``edges`` (P, E) ascending, the largest number where there are fewer, and the ``nats`` (P, E + 1) between them;
    ``most`` (P,) are the counts of the fullest bins."""

    edges: Tensor
    nats: Tensor
    most: Tensor

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """What was counted."""
        return {"edges": self.edges, "nats": self.nats, "most": self.most}

    def entries(self, x: Tensor, *, counted: bool = False) -> Tensor:
        """(B, P) nats of ``x`` (B, P); of records that are ``counted`` each is left out: its own bin has one less."""
        place = torch.searchsorted(self.edges, x.T.contiguous(), right=True)
        entries = self.nats.gather(1, place).T
        return without_own(entries, self.most) if counted else entries


NOTHING = Histogram(torch.zeros(0, EDGES), torch.zeros(0, EDGES + 1), torch.ones(0))


def without_own(entries: Tensor, most: Tensor) -> Tensor:
    """``entries`` (B, P) as if each record's own bin had one less; ``most`` (P,) are the counts of the fullest ones."""
    return (most / (most * (-entries).exp() - 1.0).clamp_min(0.5)).log().clamp_min(0.0)


def histogram(x: Tensor, observed: Tensor) -> Histogram:
    """Count the values of ``x`` (M, P) where ``observed`` (M, P) is 1."""
    binned = x.shape[1]
    # the largest number stands for infinity, which no file of tensors may hold
    edges, nats = torch.full((binned, EDGES), torch.finfo(x.dtype).max), torch.zeros(binned, EDGES + 1)
    most = torch.ones(binned)
    for i in range(binned):
        column = x[observed[:, i] > 0, i]
        if len(column):
            found, count = _counted(column)
            edges[i, : len(found)], most[i], between = found, count.max(), (count.max() / count).log()
            nats[i, : len(between)], nats[i, len(between) :] = between, between[-1]
    return Histogram(edges, nats, most)


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

    def terms(self, inputs: Inputs, layout: AnyLayout, *, counted: bool = False) -> Tensor:
        """(B, Q) float64 nats of each column; 0 where the cell is missing.

        Of records that are ``counted`` each is left out: its own bin has one less.
        """
        binned = len(self.binned.edges)
        categories = without_own(self.categories[None], self.most) if counted else self.categories[None]
        parts = [self.binned.entries(inputs.x[:, :binned], counted=counted), categories * inputs.x[:, binned:]]
        entries = torch.cat(parts, 1)
        if inputs.observed is not None:
            entries = entries * inputs.observed
        return by_column(entries.double(), layout.column_of_feature, layout.columns)


def marginal(parts: Sequence[Inputs], layout: AnyLayout) -> Marginal:
    """Count the values of the training records ``parts``."""
    if layout.modality == "text":
        # a token is judged where it stands, and not by itself
        width = parts[0].x.shape[1]
        return Marginal(NOTHING, torch.zeros(width), torch.ones(width))
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


def _counted(values: Tensor) -> tuple[Tensor, Tensor]:
    """Edges (E,) of one column, and counts (E + 1,) between them."""
    distinct, counts = torch.unique(values, return_counts=True)
    if len(distinct) <= FEW:
        # a narrow bin around each value; what lies between is as rare as what lies outside
        gap = float(distinct.diff().min()) / 4 if len(distinct) > 1 else 1e-4
        edges = torch.stack([distinct - gap, distinct + gap], 1).flatten()
        inside = torch.zeros(len(edges) + 1)
        inside[1::2] = counts.float()
        count = inside + 0.5
    else:
        bins = min(BINS, math.isqrt(len(values)) + 1)
        edges = torch.linspace(float(distinct[0]), float(distinct[-1]), bins + 1)
        edges[-1] = torch.nextafter(distinct[-1], torch.tensor(torch.inf))
        place = torch.searchsorted(edges, values, right=True)
        count = torch.bincount(place, minlength=len(edges) + 1) + 0.5
    return edges, count
