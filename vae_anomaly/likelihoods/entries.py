r"""p(x given z, c) of entries that are independent given z: a table's columns, an image's pixels.

The decoder emits one unconstrained number for each feature; the likelihood owns the map to each column's domain:

* number and time parts: Gaussian with the network's mean and one learned, bounded scale for each feature,
  :math:`-\tfrac12((x - m)/\sigma)^2 - \log\sigma - \tfrac12\log 2\pi`;
* boolean: Bernoulli with the network's logit;
* category: categorical over the values seen in training, the network's logits for them; an unseen value has an
  all-zero one-hot row and so no term here (its evidence is counted by the preprocessing).

* pixel in [0, 1]: Gaussian with the logistic function of the network's number as mean and one scale for all pixels (a
  pixel that hardly varies would else outweigh all others), or Bernoulli with the grey value as the target.

Missing cells have no term: the likelihood is that of the observed cells.

Legend: S samples, B records, F features, Q columns. Feature order: Gaussian, Bernoulli, then the one-hot blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from vae_anomaly.distributions import HALF_LOG_2PI
from vae_anomaly.nn import bounded, with_context

# sigma in [0.02, 7.4] robust deviations: the floor keeps a column that the decoder copies perfectly from claiming
# unbounded evidence, the ceiling leaves room for columns that it cannot explain at all.
LOG_SIGMA_RANGE = (-3.9, 2.0)
Family = Literal["gaussian", "bernoulli", "categorical"]


@dataclass(frozen=True)
class Block:
    """One column's consecutive features: ``size`` of them, read by one family."""

    column: int
    family: Family
    size: int


@dataclass(frozen=True)
class Layout:
    """How the features of a table are laid out; blocks are ordered Gaussian, Bernoulli, categorical."""

    blocks: tuple[Block, ...]
    columns: int
    context: int = 0
    modality: ClassVar[Literal["table"]] = "table"

    def __post_init__(self) -> None:
        order = ["gaussian", "bernoulli", "categorical"]
        ranks = [order.index(b.family) for b in self.blocks]
        assert ranks == sorted(ranks), "blocks must be ordered by family"

    @cached_property
    def _sizes(self) -> dict[str, int]:
        return {f: sum(b.size for b in self.blocks if b.family == f) for f in ("gaussian", "bernoulli", "categorical")}

    def size(self, family: Family) -> int:
        """Number of features of ``family``."""
        return self._sizes[family]

    @cached_property
    def features(self) -> int:
        """F, the number of features."""
        return sum(b.size for b in self.blocks)

    @property
    def discrete(self) -> float:
        """Share in [0, 1] of the columns with features that are no numbers."""
        return sum(b.family != "gaussian" for b in self.blocks) / max(len(self.blocks), 1)

    @cached_property
    def column_of_feature(self) -> Tensor:
        """(F,) int64: the column that each feature belongs to."""
        return torch.tensor([b.column for b in self.blocks for _ in range(b.size)], dtype=torch.int64)

    @cached_property
    def categorical_sizes(self) -> tuple[int, ...]:
        """Sizes of the one-hot blocks."""
        return tuple(b.size for b in self.blocks if b.family == "categorical")

    @cached_property
    def column_of_residual(self) -> Tensor:
        """(R,) int64: the column of each residual, one for a Gaussian or Bernoulli feature and one for a category."""
        flat = [b.column for b in self.blocks for _ in range(b.size if b.family != "categorical" else 1)]
        return torch.tensor(flat, dtype=torch.int64)

    @cached_property
    def feature_of_residual(self) -> Tensor:
        """(R,) int64: the feature, or the first one of a one-hot block, behind each residual."""
        starts, at = [], 0
        for block in self.blocks:
            starts += [at] if block.family == "categorical" else list(range(at, at + block.size))
            at += block.size
        return torch.tensor(starts, dtype=torch.int64)


@dataclass(frozen=True)
class PixelLayout:
    """An image of ``channels`` x ``height`` x ``width`` values in [0, 1], flattened; its columns are the pixels."""

    channels: int
    height: int
    width: int
    family: Literal["gaussian", "bernoulli"] = "gaussian"
    context: int = 0
    modality: ClassVar[Literal["image"]] = "image"
    categorical_sizes: ClassVar[tuple[int, ...]] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)"""
        return self.channels, self.height, self.width

    @property
    def features(self) -> int:
        """F, the number of values."""
        return self.channels * self.height * self.width

    @property
    def columns(self) -> int:
        """Q, the number of pixels."""
        return self.height * self.width

    def size(self, family: Family) -> int:
        """F for the family of the pixels, else 0."""
        return self.features if family == self.family else 0

    @cached_property
    def column_of_feature(self) -> Tensor:
        """(F,) int64: the pixel of each value."""
        return torch.arange(self.features) % self.columns

    @property
    def column_of_residual(self) -> Tensor:
        """(R,) int64: a value has one residual."""
        return self.column_of_feature

    @cached_property
    def feature_of_residual(self) -> Tensor:
        """(R,) int64: the value behind each residual."""
        return torch.arange(self.features)


@dataclass(frozen=True)
class FactorisedDistribution:
    """p(x given z) for B records, or S x B of them: parameters (..., F) and the Gaussian scales (G,)."""

    layout: Layout | PixelLayout
    parameters: Tensor
    sigma: Tensor

    def entry_log_prob(self, x: Tensor, observed: Tensor | None) -> Tensor:
        """log p of each entry in nats, (..., F); a category's whole term stands at its one-hot entry."""
        gaussian, bernoulli = self.layout.size("gaussian"), self.layout.size("bernoulli")
        out = []
        if gaussian:
            residual = self._standardised(x, gaussian)
            out.append(torch.addcmul(-HALF_LOG_2PI - self.sigma.log(), residual, residual, value=-0.5))
        if bernoulli:
            part = slice(gaussian, gaussian + bernoulli)
            logits = self.parameters[..., part]
            target = x[..., part].expand_as(logits)
            out.append(-functional.binary_cross_entropy_with_logits(logits, target, reduction="none"))
        start = gaussian + bernoulli
        for size in self.layout.categorical_sizes:
            part = slice(start, start + size)
            out.append(functional.log_softmax(self.parameters[..., part], -1) * x[..., part])
            start += size
        entries = out[0] if len(out) == 1 else torch.cat(out, -1)
        return entries if observed is None else entries * observed

    def _standardised(self, x: Tensor, gaussian: int) -> Tensor:
        """(x - m) / sigma of the first ``gaussian`` features."""
        difference, precision = x[..., :gaussian] - self.parameters[..., :gaussian], self.sigma.reciprocal()
        # in place the memory is still in the cache; a gradient needs the difference itself
        return difference * precision if torch.is_grad_enabled() else difference.mul_(precision)

    def log_prob(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        """log p(observed cells of x given z) in nats, (..., B); ``observed`` (B, F) is 1 where a cell is observed."""
        gaussian = self.layout.size("gaussian")
        residual, constant = self._standardised(x, gaussian), self.sigma.log() + HALF_LOG_2PI
        if observed is not None:
            residual = residual * observed[..., :gaussian]
        # one pass over the residuals; what a missing cell would have cost is given back, exactly 0 where none is
        total: Tensor = -0.5 * torch.linalg.vecdot(residual, residual) - constant.sum()
        if observed is not None:
            total = total + torch.linalg.vecdot(1.0 - observed[..., :gaussian], constant)
        if gaussian < self.layout.features:
            total = total + self.entry_log_prob(x, observed)[..., gaussian:].sum(-1)
        return total

    def mean(self) -> Tensor:
        """E[x given z]: Gaussian means and probabilities of booleans and category values; (..., F)."""
        gaussian, bernoulli = self.layout.size("gaussian"), self.layout.size("bernoulli")
        parts = [self.parameters[..., :gaussian], self.parameters[..., gaussian : gaussian + bernoulli].sigmoid()]
        start = gaussian + bernoulli
        for size in self.layout.categorical_sizes:
            parts.append(self.parameters[..., start : start + size].softmax(-1))
            start += size
        return torch.cat(parts, -1)

    def residuals(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        r"""Deviance residuals in natural units, (..., R): one for each Gaussian, Bernoulli and categorical variable.

        Gaussian :math:`(x - m)/\sigma`; discrete :math:`\pm\sqrt{2(\log p^*(x) - \log p(x))}`, where p* is the best of
        its family for x (0 nats but for a grey value) and the sign of a Bernoulli one that of x - p.
        Half their squared sum is the negative log-likelihood up to normalising constants.
        """
        gaussian, bernoulli = self.layout.size("gaussian"), self.layout.size("bernoulli")
        parts = [self._standardised(x, gaussian)]
        if gaussian < self.layout.features:
            entries = self.entry_log_prob(x, None)[..., gaussian:]
            if bernoulli:
                target, logits = (t[..., gaussian : gaussian + bernoulli] for t in (x, self.parameters))
                # as a constant, for at 0 and 1 its gradient is infinite
                best = -(torch.special.entr(target) + torch.special.entr(1.0 - target)).detach()
                sign = torch.where(target >= logits.sigmoid(), 1.0, -1.0)
                parts.append(sign * _root(best - entries[..., :bernoulli]))
            start = bernoulli
            for size in self.layout.categorical_sizes:
                parts.append(_root(-entries[..., start : start + size].sum(-1, keepdim=True)))
                start += size
        residuals = torch.cat(parts, -1)
        return residuals if observed is None else residuals * observed[..., self.layout.feature_of_residual]


def _root(deviance: Tensor) -> Tensor:
    """sqrt(2 d) of ``deviance`` d in nats, which rounding may make a little negative; never 0, for its gradient."""
    return deviance.mul(2.0).clamp_min(1e-12).sqrt()


class FactorisedLikelihood(nn.Module):
    """p(x given z, c): a decoder network with F outputs and a learned log-scale for each Gaussian feature."""

    sharpness: Tensor

    def __init__(self, net: nn.Module, layout: Layout | PixelLayout) -> None:
        super().__init__()
        self.net, self.layout = net, layout
        self._pixels = isinstance(layout, PixelLayout)
        # sigma starts near 1 robust deviation, for pixels near 0.2
        size, start = layout.size("gaussian"), -0.37 if self._pixels else 0.64
        if not self._pixels:
            self.register_buffer("sharpness", torch.ones(size))
        self.raw_log_sigma = nn.Parameter(torch.full((min(size, 1) if self._pixels else size,), start))

    @property
    def sigma(self) -> Tensor:
        """(G,) scales of the Gaussian features, in the unit of the preprocessed features."""
        return bounded(self.raw_log_sigma, *LOG_SIGMA_RANGE).exp().expand(self.layout.size("gaussian"))

    @torch.no_grad()
    def rescale(self, residuals: Tensor, observed: Tensor | None = None) -> None:
        r"""Set each sigma to its maximum-likelihood value on held-out records, :math:`\sigma \sqrt{\overline{r^2}}`.

        ``residuals`` (B, R) are those of the present sigma. The scale that was learned is that of the residuals on
        training records, which are smaller: with few records by so much that "expected 41 +- 0.3" would be a lie.
        """
        size = self.layout.size("gaussian")
        seen = torch.ones_like(residuals[:, :size]) if observed is None else observed[:, :size]
        # one pseudo-record at the learned scale keeps a column without observed cells as it is
        squares, count = residuals[:, :size].square().sum(0), seen.sum(0)
        if self._pixels and size:
            squares, count = squares.sum(0, keepdim=True), count.sum(0, keepdim=True)
        ratio = ((squares + 1) / (count + 1)).sqrt()
        if not self._pixels:
            self.sharpness.copy_(ratio.clamp_min(1.0))
        low, high = LOG_SIGMA_RANGE
        sigma = bounded(self.raw_log_sigma, low, high).exp()
        share = ((sigma * ratio).log() - low) / (high - low)
        self.raw_log_sigma.copy_(torch.logit(share.clamp(1e-3, 1 - 1e-3)))

    def sharpened(self, residuals: Tensor) -> Tensor:
        """Residuals (B, R) of a table in units of the learned scale where :meth:`rescale` made it larger.

        With few and wide records the residuals of held-out ones are mostly noise; divided by its size they would weigh
        no more than it, and records that are far apart would look alike.
        """
        size = len(self.sharpness)
        sharp = residuals[:, :size] * self.sharpness
        return sharp if size == residuals.shape[1] else torch.cat([sharp, residuals[:, size:]], 1)

    def forward(self, z: Tensor, context: Tensor | None = None) -> FactorisedDistribution:
        """(..., K) to the distribution of x with parameters (..., F)."""
        parameters = self.net(with_context(z, context))
        if self._pixels and self.layout.size("gaussian"):
            parameters = parameters.sigmoid()
        return FactorisedDistribution(self.layout, parameters, self.sigma)
