r"""Distributions over the latent variable z.

A latent distribution can be evaluated (``log_prob``) and sampled; a posterior is also a map of standard normal noise
(``push``) with a ``mean``, and says of which Gaussians it is made at a point z (``at``). Networks emit parameters;
losses and scores only call these methods.

* :class:`DiagonalGaussian`: N(mu, diag(sigma^2));
* :class:`Ladder`: levels of Gaussians, each given the levels above it, :math:`p(z_L) \prod_l p(z_l | z_{l+1..L})`;
* :class:`Mixture`: :math:`\sum_u w_u N(\mu_u, \operatorname{diag}(\sigma_u^2))`, a prior.

Legend: S samples, B records, K latent dimensions, U components.

References: Kingma and Welling, Auto-Encoding Variational Bayes, arXiv 1312.6114, appendix B; Sonderby et al., Ladder
variational autoencoders, NeurIPS 2016; Hershey and Olsen, Approximating the Kullback Leibler divergence between
Gaussian mixture models, ICASSP 2007, section 7.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)
LEAST_SPREAD = 1e-6  # of a feature; one that is constant is left as wide as it is


class Prior(Protocol):
    """p(z given c)."""

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z) in nats, (..., B)."""

    def kl_from(self, q: DiagonalGaussian, z: Tensor) -> Tensor:
        """KL(q given this prior) by latent dimension, (..., B, K) nats; a ladder's levels are given those of ``z``."""

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """``count`` draws: (count, K), or (count, B, K) for parameters (B, K)."""

    def centre(self) -> Tensor | float:
        """Where the prior lies, as far as that depends on the context alone; 0 where it does not."""


class Posterior(Protocol):
    """q(z given x, c)."""

    @property
    def mean(self) -> Tensor: ...

    def push(self, noise: Tensor) -> Tensor:
        """z for standard normal ``noise`` (..., B, K)."""

    def at(self, z: Tensor) -> DiagonalGaussian:
        """The Gaussians of all levels, each given the levels above it in ``z``."""

    def log_prob(self, z: Tensor) -> Tensor:
        """log q(z) in nats, (..., B)."""


@dataclass(frozen=True)
class DiagonalGaussian:
    r"""N(mu, diag(sigma^2)) for each record; ``mean`` and ``scale`` are (B, K) or (K,), ``scale`` > 0."""

    mean: Tensor
    scale: Tensor

    @property
    def noise_dim(self) -> int:
        """Length of the noise vector that :meth:`push` takes."""
        return self.mean.shape[-1]

    def push(self, noise: Tensor) -> Tensor:
        """z = mu + sigma * noise for standard normal ``noise`` (..., K)."""
        return self.mean + self.scale * noise

    def at(self, z: Tensor) -> DiagonalGaussian:
        """Itself: there is one level."""
        return self

    def log_prob(self, z: Tensor) -> Tensor:
        r"""log N(z; mu, sigma^2) summed over K, in nats; (..., B)."""
        return (-0.5 * ((z - self.mean) / self.scale) ** 2 - self.scale.log() - HALF_LOG_2PI).sum(-1)

    def kl_from(self, q: DiagonalGaussian, z: Tensor) -> Tensor:
        """:func:`kl_divergence` of q and this."""
        return kl_divergence(q, self)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """``count`` draws."""
        return self.push(torch.randn(count, *self.mean.shape, generator=generator, dtype=self.mean.dtype))

    def centre(self) -> Tensor | float:
        """The mean where each record has one of its own."""
        return self.mean if self.mean.dim() > 1 else 0.0


def kl_divergence(q: DiagonalGaussian, p: DiagonalGaussian) -> Tensor:
    r"""KL(q given p) for each record and latent dimension, in nats; (B, K).

    .. math:: \log\frac{\sigma_p}{\sigma_q} + \frac{\sigma_q^2 + (\mu_q - \mu_p)^2}{2 \sigma_p^2} - \frac12
    """
    return p.scale.log() - q.scale.log() + 0.5 * ((q.scale / p.scale) ** 2 + ((q.mean - p.mean) / p.scale) ** 2) - 0.5


@dataclass(frozen=True)
class Ladder:
    r"""Levels of Gaussians, top first; ``levels[i]`` gives level i for the levels above it (None for the top).

    z = [z_L, ..., z_1] with ``sizes`` entries each. For two ladders q and p

    .. math:: KL(q \| p) = \sum_l E_{q(z_{l+1..L})} KL(q(z_l | z_{l+1..L}) \| p(z_l | z_{l+1..L})),

    and ``p.kl_from(q.at(z), z)`` at z ~ q holds the terms of that sum for one draw.
    """

    levels: tuple[Callable[[Tensor | None], DiagonalGaussian], ...]
    sizes: tuple[int, ...]

    @property
    def noise_dim(self) -> int:
        """K, all levels together."""
        return sum(self.sizes)

    @property
    def mean(self) -> Tensor:
        """Each level's mean given the means of those above, (B, K)."""
        z: Tensor | None = None
        for level in self.levels:
            z = _below(z, level(z).mean)
        assert z is not None
        return z

    def push(self, noise: Tensor) -> Tensor:
        """z of all levels for ``noise`` (..., B, K), top first."""
        z: Tensor | None = None
        for level, part in zip(self.levels, torch.split(noise, list(self.sizes), -1), strict=True):
            z = _below(z, level(z).push(part))
        assert z is not None
        return z

    def at(self, z: Tensor) -> DiagonalGaussian:
        """The Gaussians of all levels given the levels above them in ``z`` (..., B, K)."""
        means, scales, start = [], [], 0
        for level, size in zip(self.levels, self.sizes, strict=True):
            gaussian = level(z[..., :start] if start else None)
            shape = (*z.shape[:-1], size)
            means.append(gaussian.mean.expand(shape))
            scales.append(gaussian.scale.expand(shape))
            start += size
        return DiagonalGaussian(torch.cat(means, -1), torch.cat(scales, -1))

    def log_prob(self, z: Tensor) -> Tensor:
        """Sum of the levels' log densities, (..., B) nats."""
        return self.at(z).log_prob(z)

    def kl_from(self, q: DiagonalGaussian, z: Tensor) -> Tensor:
        """KL of each level given the levels above it in ``z``, (..., B, K) nats."""
        return kl_divergence(q, self.at(z))

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, K) draws from the top down."""
        return self.push(torch.randn(count, self.noise_dim, generator=generator))

    def centre(self) -> float:
        """0: its lower levels lie where the upper ones say."""
        return 0.0


def _below(above: Tensor | None, z: Tensor) -> Tensor:
    return z if above is None else torch.cat([above, z], -1)


@dataclass(frozen=True)
class Mixture:
    """A mixture of U Gaussians with equal weights: ``mean`` and ``scale`` are (U, K)."""

    mean: Tensor
    scale: Tensor

    def log_prob(self, z: Tensor) -> Tensor:
        """log of the mean density, (..., B) nats."""
        each = DiagonalGaussian(self.mean, self.scale).log_prob(z[..., None, :])
        return torch.logsumexp(each, -1) - math.log(len(self.mean))

    def kl_from(self, q: DiagonalGaussian, z: Tensor) -> Tensor:
        r"""An upper bound of KL(q given the mixture), by latent dimension; (..., B, K) nats.

        .. math:: KL \le -\log \tfrac1U \sum_u e^{-KL(q \| p_u)} = \sum_u r_u KL(q \| p_u) + KL(r \| \tfrac1U)

        with :math:`r_u \propto e^{-KL(q \| p_u)}`; exact for one component. The second term has no dimension of its own
        and is divided evenly.
        """
        lifted = DiagonalGaussian(q.mean[..., None, :], q.scale[..., None, :])
        each = kl_divergence(lifted, DiagonalGaussian(self.mean, self.scale))
        share = torch.log_softmax(-each.sum(-1), -1)
        chosen = share.exp() * (share + math.log(len(self.mean)))
        return (share.exp()[..., None] * each).sum(-2) + chosen.sum(-1, keepdim=True) / self.mean.shape[-1]

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, K) draws: a component, then a point of it."""
        index = torch.randint(len(self.mean), (count,), generator=generator)
        noise = torch.randn(count, self.mean.shape[-1], generator=generator, dtype=self.mean.dtype)
        return self.mean[index] + self.scale[index] * noise

    def centre(self) -> float:
        """0: its components lie in many places."""
        return 0.0


def mean_and_deviation(x: Tensor, observed: Tensor | None) -> tuple[Tensor, Tensor]:
    """(F,) float64 each, of the observed cells of ``x`` (M, F); of a feature that never varies the deviation is 1."""
    x = x.double()
    seen = torch.ones_like(x) if observed is None else observed.double()
    count = seen.sum(0).clamp_min(1)
    mean = (x * seen).sum(0) / count
    deviation = (((x - mean).square() * seen).sum(0) / count).sqrt()
    return mean, torch.where(deviation > LEAST_SPREAD, deviation, 1.0)
