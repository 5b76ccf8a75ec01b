r"""How rare each value is by itself, whatever the others are: a histogram of every column.

.. math:: m_q(x) = \log \max_v p_q(v) - \log p_q(x_q) \ge 0

in nats: 0 for a column's most frequent value. A number that takes few values has a count for each of them, any other
number equal bins over the range of the training records; half a record is added to each bin, and to what lies outside.

Legend: B records, M training records, F features, P features that have bins, E edges, Q columns.
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
class Marginal:
    """``edges`` (P, E) ascending, the largest number where there are fewer, the ``nats`` (P, E + 1) between them, and
    those of the values of categories, ``categories`` (F - P,); ``most`` (F,) are counts of each column's fullest bin.
    """

    edges: Tensor
    nats: Tensor
    categories: Tensor
    most: Tensor

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """What was counted."""
        return {"edges": self.edges, "nats": self.nats, "categories": self.categories, "most": self.most}

    def terms(self, inputs: Inputs, layout: AnyLayout, *, counted: bool = False) -> Tensor:
        """(B, Q) float64 nats of each column; 0 where the cell is missing.

        Of records that are ``counted`` each is left out: its own bin has one less.
        """
        binned = len(self.edges)
        place = torch.searchsorted(self.edges, inputs.x[:, :binned].T.contiguous(), right=True)
        entries = torch.cat([self.nats.gather(1, place).T, self.categories.expand(len(inputs), -1)], 1)
        if counted:
            most = self.most.expand_as(entries)
            entries = (most / (most * (-entries).exp() - 1.0).clamp_min(0.5)).log().clamp_min(0.0)
        entries = torch.cat([entries[:, :binned], entries[:, binned:] * inputs.x[:, binned:]], 1)
        if inputs.observed is not None:
            entries = entries * inputs.observed
        return by_column(entries.double(), layout.column_of_feature, layout.columns)


def marginal(parts: Sequence[Inputs], layout: AnyLayout) -> Marginal:
    """Count the values of the training records ``parts``."""
    if layout.modality == "text":
        # a token is judged where it stands, and not by itself
        width = parts[0].x.shape[1]
        return Marginal(torch.zeros(0, EDGES), torch.zeros(0, EDGES + 1), torch.zeros(width), torch.ones(width))
    whole = concatenated(parts)
    x, observed = whole.x, torch.ones_like(whole.x) if whole.observed is None else whole.observed
    binned = layout.size("gaussian") + layout.size("bernoulli")
    # the largest number stands for infinity, which no file of tensors may hold
    edges, nats = torch.full((binned, EDGES), torch.finfo(x.dtype).max), torch.zeros(binned, EDGES + 1)
    most = torch.ones(x.shape[1])
    for i in range(binned):
        column = x[observed[:, i] > 0, i]
        if len(column):
            found, count = _counted(column)
            edges[i, : len(found)], most[i], between = found, count.max(), (count.max() / count).log()
            nats[i, : len(between)], nats[i, len(between) :] = between, between[-1]
    categories, start = torch.zeros(x.shape[1] - binned), binned
    for size in layout.categorical_sizes:
        count = x[:, start : start + size].sum(0) + 0.5
        categories[start - binned : start - binned + size] = (count.max() / count).log()
        most[start : start + size] = count.max()
        start += size
    return Marginal(edges, nats, categories, most)


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
