r"""The one VAE class: three conditional distributions, and the terms of its evidence lower bound.

.. math:: \log p(x|c) \ge E_{q(z|x,c)}[\log p(x|z,c) + \log p(z|c) - \log q(z|x,c)]

Every variant is a builder that fills the three places; nothing subclasses :class:`VAE`.

Legend: S samples, B records, F features, K latent dimensions, C context.
Reference: Kingma and Welling, arXiv 1312.6114.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from vae_anomaly.distributions import DiagonalGaussian, Posterior, Prior
from vae_anomaly.likelihoods import Distribution, Likelihood
from vae_anomaly.nn import UnitEncoder
from vae_anomaly.views import Plain, View


class VAE(nn.Module):
    """posterior q(z given x, c), prior p(z given c), likelihood p(x given z, c), all of x as its ``view`` maps it."""

    likelihood: Likelihood
    view: View

    def __init__(
        self, posterior: nn.Module, prior: nn.Module, likelihood: Likelihood, view: View | None = None
    ) -> None:
        super().__init__()
        self.posterior, self.prior, self.likelihood = posterior, prior, likelihood
        self.view = Plain() if view is None else view

    def learn(self, inputs: Inputs) -> None:
        """What its parts take from training records before they are trained: the views' maps, the features' units."""
        self.view.learn(inputs.x, inputs.observed)
        if isinstance(self.posterior, UnitEncoder):
            self.posterior.learn(inputs.x, inputs.observed)

    def seen(self, inputs: Inputs) -> Inputs:
        """``inputs`` as the networks see them; a missing cell stays 0."""
        x = self.view(inputs.x)
        if x is not inputs.x and inputs.observed is not None:
            x = x * inputs.observed
        return replace(inputs, x=x)

    @property
    def latent(self) -> int:
        """K, the length of z."""
        return int(self.prior.latent)  # type: ignore[arg-type]

    @property
    def rows(self) -> int:
        """How many records its networks evaluate together: the largest of their ``rows``, all powers of two."""
        modules = (module for part in self.children() for module in part.modules())
        return max(int(getattr(module, "rows", 1)) for module in modules)


@dataclass(frozen=True)
class Inputs:
    """Model inputs of B records.

    ``x`` (B, F): preprocessed features with 0 at missing cells, an image's values, or token ids (int64); ``observed``
    (B, F) 1 where observed, or None when all are; ``evidence`` (B, Q) nats for each column that no network gives (a
    missing or a never seen value), or None when all are 0; ``context`` (B, C) or None.
    """

    x: Tensor
    observed: Tensor | None = None
    evidence: Tensor | None = None
    context: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: Tensor | slice) -> Inputs:
        return self.each(lambda part: part[index])

    def each(self, function: Callable[[Tensor], Tensor]) -> Inputs:
        """``function`` of every tensor that is there."""
        parts = (self.x, self.observed, self.evidence, self.context)
        return Inputs(*(None if part is None else function(part) for part in parts))  # type: ignore[arg-type]


def concatenated(parts: Sequence[Inputs]) -> Inputs:
    """All records of ``parts``; where only some have a mask or evidence, the others' is that of nothing missing."""

    def whole(name: str, empty: float) -> Tensor | None:
        found = [getattr(part, name) for part in parts]
        like = next((f for f in found if f is not None), None)
        if like is None:
            return None
        filled = (
            like.new_full((len(part), like.shape[1]), empty) if f is None else f
            for part, f in zip(parts, found, strict=True)
        )
        return torch.cat(list(filled))

    if len(parts) == 1:
        return parts[0]
    x = torch.cat([part.x for part in parts])
    return Inputs(x, whole("observed", 1.0), whole("evidence", 0.0), whole("context", 0.0))


@dataclass(frozen=True)
class ElboTerms:
    """Log-likelihood and KL of each record and draw, (..., B) nats; the ELBO is their difference.

    ``kl`` is log q(z) - log p(z) at the draw; ``kl_by_dimension`` its analytic counterpart, (B, K) where it is the same
    for every draw, else (..., B, K).
    """

    log_likelihood: Tensor
    kl: Tensor
    dimensions: Callable[[], Tensor] | None = None

    def of(self, index: Tensor) -> ElboTerms:
        """The terms of the records at ``index``."""
        likelihood, kl = self.log_likelihood[..., index], self.kl[..., index]
        return ElboTerms(likelihood, kl, lambda: self.kl_by_dimension[..., index, :])

    @cached_property
    def kl_by_dimension(self) -> Tensor:
        """Analytic KL of each latent dimension, given the levels above it in the draw."""
        assert self.dimensions is not None
        return self.dimensions()


def elbo_terms(
    vae: VAE, inputs: Inputs, noise: Tensor, *, encoded: Tensor | None = None, fed: Tensor | None = None
) -> ElboTerms:
    """Monte Carlo terms for ``noise`` (S, B, K) or (B, K): log p(x given z) and log q(z) - log p(z).

    ``inputs`` are as the networks see them (:meth:`VAE.seen`).
    ``encoded`` replaces the encoder's input (denoising), ``fed`` (B, T) what a text's decoder is fed (word dropout);
    the likelihood is always that of ``inputs.x``.
    """
    q: Posterior = vae.posterior(inputs.x if encoded is None else encoded, inputs.context)
    p: Prior = vae.prior(inputs.context)
    z = q.push(noise)
    more: dict[str, Any] = {} if fed is None else {"fed": fed}
    likelihood: Distribution = vae.likelihood(z, inputs.context, **more)
    log_likelihood = likelihood.log_prob(inputs.x, inputs.observed)
    return ElboTerms(log_likelihood, q.log_prob(z) - p.log_prob(z), lambda: p.kl_from(q.at(z), z))


@dataclass(frozen=True)
class Evaluation:
    """One deterministic pass of B records, at the posterior mean: what every score and explanation is made from.

    ``seen`` are the ``inputs`` as the networks see them, and what the likelihood is of. ``z`` (B, K) is the posterior
    mean, ``posterior`` the Gaussians there: each level's given the means above it.
    """

    vae: VAE
    inputs: Inputs
    seen: Inputs
    z: Tensor
    posterior: DiagonalGaussian
    prior: Prior
    likelihood: Any  # a Distribution

    @cached_property
    def kl(self) -> Tensor:
        """KL for each record and latent dimension, (B, K) nats: analytic, for a mixture prior its upper bound."""
        return self.prior.kl_from(self.posterior, self.z)

    def expected(self, deviations: float = 0.0) -> Tensor:
        """(B, F) features that the likelihood expects, in the unit of ``inputs.x``; numbers so many deviations off."""
        mean = self.likelihood.mean()
        if deviations:
            size = self.likelihood.sigma.shape[-1]
            mean = torch.cat([mean[:, :size] + deviations * self.likelihood.sigma, mean[:, size:]], -1)
        return self.vae.view.inverse(mean)

    def around(self) -> Tensor:
        """(B, 3, F) features: what is expected, and numbers a standard deviation below and above it."""
        return torch.stack([self.expected(deviations) for deviations in (0.0, -1.0, 1.0)], 1)

    def log_weights(self, noise: Tensor) -> Tensor:
        """log p(x, z) - log q(z) for ``noise`` (S, K), the same for all records; (S, B) nats, one draw at a time."""
        seen = self.seen
        q: Posterior = self.vae.posterior(seen.x, seen.context)
        rows = []
        for draw in noise:
            z = q.push(draw.expand(len(seen), -1))
            likelihood = self.vae.likelihood(z, seen.context).log_prob(seen.x, seen.observed)
            rows.append(likelihood + self.prior.log_prob(z) - q.log_prob(z))
        return torch.stack(rows)


def evaluate(vae: VAE, inputs: Inputs) -> Evaluation:
    """Encode, decode at the posterior mean; no randomness, one record's result does not depend on the others."""
    seen = vae.seen(inputs)
    q: Posterior = vae.posterior(seen.x, seen.context)
    z = q.mean
    return Evaluation(vae, inputs, seen, z, q.at(z), vae.prior(seen.context), vae.likelihood(z, seen.context))
