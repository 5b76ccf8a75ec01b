"""Distributions over the latent variable z.

A latent distribution can be evaluated (``log_prob``), sampled through a map of standard normal noise (``push``), and
knows its mean. Networks emit parameters; losses and scores only call these methods.

Legend: S samples, B records, K latent dimensions.

Reference: Kingma and Welling, Auto-Encoding Variational Bayes, arXiv 1312.6114, appendix B.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


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

    def log_prob(self, z: Tensor) -> Tensor:
        r"""log N(z; mu, sigma^2) summed over K, in nats; (..., B)."""
        return (-0.5 * ((z - self.mean) / self.scale) ** 2 - self.scale.log() - HALF_LOG_2PI).sum(-1)


def kl_divergence(q: DiagonalGaussian, p: DiagonalGaussian) -> Tensor:
    r"""KL(q given p) for each record and latent dimension, in nats; (B, K).

    .. math:: \log\frac{\sigma_p}{\sigma_q} + \frac{\sigma_q^2 + (\mu_q - \mu_p)^2}{2 \sigma_p^2} - \frac12
    """
    return p.scale.log() - q.scale.log() + 0.5 * ((q.scale / p.scale) ** 2 + ((q.mean - p.mean) / p.scale) ** 2) - 0.5
