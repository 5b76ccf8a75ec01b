r"""Views: a fixed, strictly increasing map of each number before the networks, learned from the training records.

What is far apart depends on the scale: a column with a heavy tail hides its small values in the deviation, and its
ranks hide how far out a value is. So the members of an ensemble see the same numbers differently:

* ``plain``: as the preprocessing gives them;
* ``standard``: (x - mean) / standard deviation;
* ``logarithmic``: asinh(x), linear within about one robust deviation and logarithmic beyond;
* ``rank``: :math:`\Phi^{-1}` of the share of training values below, standardised, piecewise linear between ``KNOTS``
  equal steps and logarithmic beyond the range of training.

A view is a module without parameters: what it learned are buffers of the model. Only Gaussian features are mapped.

Legend: B records, F features, G Gaussian features, J knots.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from vae_anomaly.distributions import LEAST_SPREAD, mean_and_deviation
from vae_anomaly.registry import lookup

KNOTS = 1024
LEAST_RANGE = 1e-3  # of a column's training values, as the unit of what lies beyond them


class View(Protocol):
    """What a view can do."""

    def learn(self, x: Tensor, observed: Tensor | None = None) -> None:
        """Learn from features ``x`` (M, F), of which ``observed`` (M, F) are 1."""

    def __call__(self, x: Tensor) -> Tensor:
        """(B, F) to (B, F)."""

    def inverse(self, y: Tensor) -> Tensor:
        """(B, F) back to the features."""


class Plain(nn.Module):
    """x as it is."""

    def learn(self, x: Tensor, observed: Tensor | None = None) -> None:
        """Nothing."""

    def forward(self, x: Tensor) -> Tensor:
        """x."""
        return x

    def inverse(self, y: Tensor) -> Tensor:
        """y."""
        return y


class Standard(nn.Module):
    """(x - ``center``) / ``scale``, (G,) each."""

    center: Tensor
    scale: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))

    def learn(self, x: Tensor, observed: Tensor | None = None) -> None:
        """Mean and deviation of the observed cells; a column that never varies keeps its unit."""
        size = len(self.center)
        center, scale = mean_and_deviation(x[:, :size], None if observed is None else observed[:, :size])
        self.center.copy_(center)
        self.scale.copy_(scale)

    def forward(self, x: Tensor) -> Tensor:
        """(B, F) to (B, F)."""
        return _of_first(len(self.center), x, lambda part: (part - self.center) / self.scale)

    def inverse(self, y: Tensor) -> Tensor:
        """(B, F) back to the features."""
        return _of_first(len(self.center), y, lambda part: part * self.scale + self.center)


class Logarithmic(nn.Module):
    """asinh(x) of the first ``size`` features."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def learn(self, x: Tensor, observed: Tensor | None = None) -> None:
        """Nothing: the preprocessing gives robust deviations."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, F) to (B, F)."""
        return _of_first(self.size, x, asinh)

    def inverse(self, y: Tensor) -> Tensor:
        """(B, F) back to the features."""
        return _of_first(self.size, y, torch.sinh)


class Rank(nn.Module):
    """Piecewise linear between ``levels`` (G, J) at equal steps from ``low`` to ``high`` (G,); logarithmic beyond."""

    low: Tensor
    high: Tensor
    levels: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("low", -torch.ones(size))
        self.register_buffer("high", torch.ones(size))
        self.register_buffer("levels", torch.linspace(-1.0, 1.0, KNOTS).repeat(size, 1))

    def learn(self, x: Tensor, observed: Tensor | None = None) -> None:
        """The normal scores of the observed cells' mid-ranks."""
        for i in range(len(self.low)):
            column = x[:, i] if observed is None else x[observed[:, i] > 0, i]
            if len(column):
                self.low[i], self.high[i] = column.min(), column.max()
                self.levels[i] = _ranks(column.sort().values)

    def forward(self, x: Tensor) -> Tensor:
        """(B, F) to (B, F)."""
        return _of_first(len(self.low), x, self._ahead)

    def inverse(self, y: Tensor) -> Tensor:
        """(B, F) back to the features."""
        return _of_first(len(self.low), y, self._back)

    def _ahead(self, x: Tensor) -> Tensor:
        within = torch.minimum(torch.maximum(x, self.low), self.high)
        # equal steps: a search among quantiles costs ten times as much
        place = (within - self.low) * self._per_unit
        left = place.floor().clamp_(max=KNOTS - 2.0)
        at = left.long().add_(KNOTS * torch.arange(len(self.low), device=x.device)).flatten()
        start, end = (self.levels.flatten().index_select(0, at + step).view_as(x) for step in (0, 1))
        found = start + (place - left) * (end - start)
        beyond = x - within
        if not bool(beyond.any()):
            return found
        return found + beyond.sign() * (beyond.abs() / self._unit).log1p()

    def _back(self, y: Tensor) -> Tensor:
        within = torch.minimum(torch.maximum(y, self.levels[:, 0]), self.levels[:, -1])
        left = torch.searchsorted(self.levels, within.T.contiguous(), right=True).sub_(1).clamp_(0, KNOTS - 2)
        start, end = self.levels.gather(1, left).T, self.levels.gather(1, left + 1).T
        share = (within - start) / (end - start).clamp_min(1e-30)
        beyond = y - within
        return self.low + (left.T + share) / self._per_unit + beyond.sign() * beyond.abs().expm1() * self._unit

    @property
    def _per_unit(self) -> Tensor:
        """(G,) steps in a unit of the features."""
        return (KNOTS - 1) / (self.high - self.low).clamp_min(1e-30)

    @property
    def _unit(self) -> Tensor:
        """(G,) a quarter of the range of training."""
        return (self.high - self.low).clamp_min(LEAST_RANGE) / 4


VIEWS: dict[str, Callable[[int], View]] = {
    "plain": lambda size: Plain(),
    "standard": Standard,
    "logarithmic": Logarithmic,
    "rank": Rank,
}


def view_of(kind: str, size: int) -> View:
    """The view of that name for ``size`` Gaussian features; raises :class:`ConfigError` where there is none."""
    made: View = lookup("model: view", VIEWS, kind)(size)
    return made


def _of_first(size: int, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """``function`` of the first ``size`` features, the others as they are."""
    if size == x.shape[-1]:
        return function(x)
    return torch.cat([function(x[..., :size]), x[..., size:]], -1) if size else x


def _ranks(values: Tensor) -> Tensor:
    """(KNOTS,) levels of a column's sorted training ``values`` (M,), at equal steps between the least and the largest.

    At each distinct value the level is the normal score of its mid-rank, and linear between two.
    """
    distinct, counts = torch.unique_consecutive(values, return_counts=True)
    scores = torch.special.ndtri((counts.cumsum(0) - counts / 2 + 0.5).double() / (len(values) + 1))
    mean = (scores * counts).sum() / len(values)
    spread = (((scores - mean).square() * counts).sum() / len(values)).sqrt()
    levels = ((scores - mean) / (spread if spread > LEAST_SPREAD else 1.0)).numpy()
    steps = np.linspace(float(values[0]), float(values[-1]), KNOTS)
    return torch.from_numpy(np.interp(steps, distinct.double().numpy(), levels))


def asinh(x: Tensor) -> Tensor:
    """asinh(x), in terms that a processor does several at a time."""
    size = x.abs()
    return (size + size * (size / (1.0 + (size * size + 1.0).sqrt()))).log1p() * x.sign()
