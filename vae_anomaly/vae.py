r"""The one VAE class: three conditional distributions, and the terms of its evidence lower bound.

.. math:: \log p(x|c) \ge E_{q(z|x,c)}[\log p(x|z,c) + \log p(z|c) - \log q(z|x,c)]

Every variant is a builder that fills the three places; nothing subclasses :class:`VAE`.

Legend: S samples, B records, F features, K latent dimensions, C context.
Reference: Kingma and Welling, arXiv 1312.6114.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from vae_anomaly.distributions import DiagonalGaussian, kl_divergence
from vae_anomaly.likelihoods import TabularDistribution, TabularLikelihood


class VAE(nn.Module):
    """posterior q(z given x, c), prior p(z given c), likelihood p(x given z, c)."""

    likelihood: TabularLikelihood

    def __init__(self, posterior: nn.Module, prior: nn.Module, likelihood: TabularLikelihood) -> None:
        super().__init__()
        self.posterior, self.prior, self.likelihood = posterior, prior, likelihood


@dataclass(frozen=True)
class Inputs:
    """Model inputs of B records.

    ``x`` (B, F) preprocessed features with 0 at missing cells; ``observed`` (B, F) 1 where observed, or None when all
    are; ``evidence`` (B, Q) nats for each column that no network gives (a missing or a never seen value), or None
    when all are 0; ``context`` (B, C) or None.
    """

    x: Tensor
    observed: Tensor | None = None
    evidence: Tensor | None = None
    context: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: Tensor | slice) -> Inputs:
        pick = [None if part is None else part[index] for part in (self.x, self.observed, self.evidence, self.context)]
        return Inputs(*pick)  # type: ignore[arg-type]


class ElboTerms(NamedTuple):
    """Log-likelihood and KL of each record, in nats; the ELBO is their difference."""

    log_likelihood: Tensor
    kl: Tensor


def elbo_terms(vae: VAE, inputs: Inputs, noise: Tensor, *, encoded: Tensor | None = None) -> ElboTerms:
    """Monte Carlo terms for ``noise`` (S, B, K) or (B, K): log p(x given z) and log q(z) - log p(z).

    ``encoded`` replaces the encoder's input (denoising); the likelihood is always that of ``inputs.x``.
    """
    q = vae.posterior(inputs.x if encoded is None else encoded, inputs.context)
    z = q.push(noise)
    log_likelihood = vae.likelihood(z, inputs.context).log_prob(inputs.x, inputs.observed)
    return ElboTerms(log_likelihood, q.log_prob(z) - vae.prior(inputs.context).log_prob(z))


@dataclass(frozen=True)
class Evaluation:
    """One deterministic pass of B records, at the posterior mean: what every score and explanation is made from."""

    inputs: Inputs
    posterior: DiagonalGaussian
    prior: DiagonalGaussian
    likelihood: TabularDistribution

    @property
    def kl(self) -> Tensor:
        """Analytic KL for each record and latent dimension, (B, K) nats."""
        return kl_divergence(self.posterior, self.prior)


def evaluate(vae: VAE, inputs: Inputs) -> Evaluation:
    """Encode, decode at the posterior mean; no randomness, one record's result does not depend on the others."""
    q = vae.posterior(inputs.x, inputs.context)
    return Evaluation(inputs, q, vae.prior(inputs.context), vae.likelihood(q.mean, inputs.context))
