r"""Views: a fixed, strictly increasing map of each number before the networks, learned from the training records.

What is far apart depends on the scale: a column with a heavy tail hides its small values in the deviation, and its
ranks hide how far out a value is. So the members of an ensemble see the same numbers differently:

* ``plain``: as the preprocessing gives them;
* ``standard``: (x - mean) / standard deviation;
* ``logarithmic``: asinh(x), linear within about one robust deviation and logarithmic beyond;
* ``rank``: :math:`\Phi^{-1}` of the share of training values below, standardised, piecewise linear between at most
  ``KNOTS`` values and logarithmic beyond the range of training.

A view is a module without parameters: what it learned are buffers of the model. Only Gaussian features are mapped.

Legend: B records, F features, G Gaussian features, J knots.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from vae_anomaly.nn import LEAST_SPREAD, mean_and_deviation
from vae_anomaly.registry import lookup

KNOTS = 256
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
        return _of_first(self.size, x, torch.asinh)

    def inverse(self, y: Tensor) -> Tensor:
        """(B, F) back to the features."""
        return _of_first(self.size, y, torch.sinh)


class Rank(nn.Module):
    """Piecewise linear between ``knots`` (G, J), ascending, and their ``levels`` (G, J); logarithmic beyond."""

    knots: Tensor
    levels: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        even = torch.linspace(-1.0, 1.0, KNOTS).repeat(size, 1)
        self.register_buffer("knots", even)
        self.register_buffer("levels", even.clone())

    def learn(self, x: Tensor, observed: Tensor | None = None) -> None:
        """Knots at the quantiles of the observed cells, levels at the normal scores of their mid-ranks."""
        for i in range(len(self.knots)):
            column = x[:, i] if observed is None else x[observed[:, i] > 0, i]
            if len(column):
                knots, levels = _ranks(column.sort().values)
                self.knots[i], self.levels[i] = knots, levels

    def forward(self, x: Tensor) -> Tensor:
        """(B, F) to (B, F)."""
        unit = self._unit

        def ahead(part: Tensor) -> Tensor:
            return _interpolated(part, self.knots, self.levels, lambda far: (far / unit).log1p())

        return _of_first(len(self.knots), x, ahead)

    def inverse(self, y: Tensor) -> Tensor:
        """(B, F) back to the features."""
        unit = self._unit

        def back(part: Tensor) -> Tensor:
            return _interpolated(part, self.levels, self.knots, lambda far: far.expm1() * unit)

        return _of_first(len(self.knots), y, back)

    @property
    def _unit(self) -> Tensor:
        """(G, 1) a quarter of the range of training."""
        return (self.knots[:, -1:] - self.knots[:, :1]).clamp_min(LEAST_RANGE) / 4


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


def _ranks(values: Tensor) -> tuple[Tensor, Tensor]:
    """(J,) knots and levels of a column's sorted training ``values`` (M,)."""

    def scores(of: Tensor) -> Tensor:
        below = (torch.searchsorted(values, of) + torch.searchsorted(values, of, right=True)) / 2
        normal: Tensor = torch.special.ndtri((below.double() + 0.5) / (len(values) + 1))
        return normal

    places = torch.linspace(0, len(values) - 1, KNOTS, dtype=torch.float64).round().long()
    knots, own = torch.unique_consecutive(values[places]), scores(values)
    spread = own.std(correction=0)
    levels = (scores(knots) - own.mean()) / (spread if spread > LEAST_SPREAD else 1.0)
    # as many knots as any column has: the last one again, for nothing lies between it and itself
    lack = KNOTS - len(knots)
    return torch.cat([knots, knots[-1:].expand(lack)]), torch.cat([levels, levels[-1:].expand(lack)])


def _interpolated(x: Tensor, knots: Tensor, levels: Tensor, beyond: Callable[[Tensor], Tensor]) -> Tensor:
    """(B, G) piecewise linear between ``knots`` and ``levels`` (G, J); ``beyond`` them a function of the distance."""
    columns = x.T.contiguous()
    right = torch.searchsorted(knots, columns, right=True).clamp_(1, KNOTS - 1)
    low, high = knots.gather(1, right - 1), knots.gather(1, right)
    start, end = levels.gather(1, right - 1), levels.gather(1, right)
    share = ((columns - low) / (high - low).clamp_min(1e-30)).clamp(0.0, 1.0)
    above, below = (columns - knots[:, -1:]).clamp_min(0.0), (knots[:, :1] - columns).clamp_min(0.0)
    return (start + share * (end - start) + beyond(above) - beyond(below)).T.contiguous()
