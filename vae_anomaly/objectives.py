r"""Training objectives: what the optimiser minimises; scoring always uses beta = 1.

The plain objective is a beta-ELBO, averaged over the records,

.. math:: L_t = -\log p(x|z) + \beta_t \, KL, \qquad \beta_t = \beta \min(1, t / T_\mathrm{warm}).

* ``capacity`` C: the KL is driven to a target that rises over the warm-up, :math:`\gamma\,|KL - C_t|` in place of
  beta KL, with the KL averaged over the minibatch;
* ``free_bits`` lambda: a latent dimension costs at least lambda nats, :math:`\sum_k \max(\lambda, \overline{KL_k})`, so
  that none is given up for less;
* ``samples`` S: the importance-weighted bound :math:`\log \tfrac1S \sum_s p(x, z_s) / q(z_s|x)` in place of the ELBO.

References: Higgins et al., beta-VAE, ICLR 2017; Burgess et al., Understanding disentangling in beta-VAE, arXiv
1804.03599, equation 8; Kingma et al., Improved variational inference with inverse autoregressive flow, arXiv
1606.04934, appendix C.8; Burda, Grosse and Salakhutdinov, Importance weighted autoencoders, arXiv 1509.00519; warm-up:
Sonderby et al., Ladder VAEs, NeurIPS 2016.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vae_anomaly.errors import ConfigError
from vae_anomaly.vae import ElboTerms


@dataclass(frozen=True)
class BetaElbo:
    """beta-ELBO with a linear warm-up over ``warmup`` (fraction of the training, 0 for none), and its variants.

    Raises
    ------
    ConfigError
        ``capacity``, ``free_bits`` and ``samples`` are combined: each replaces the KL term by another.
    """

    beta: float = 1.0
    warmup: float = 0.5
    capacity: float | None = None
    gamma: float = 100.0
    free_bits: float = 0.0
    samples: int = 1

    def __post_init__(self) -> None:
        if (self.capacity is not None) + (self.free_bits > 0) + (self.samples > 1) > 1:
            raise ConfigError(
                "objective: at most one of capacity, free_bits and samples must be set, for each replaces the KL term."
                f" Got {self.capacity}, {self.free_bits} and {self.samples}."
            )

    def weight(self, progress: float) -> float:
        """beta at ``progress`` in [0, 1] of the training."""
        return self.beta * self._risen(progress)

    def _risen(self, progress: float) -> float:
        return min(1.0, progress / self.warmup) if self.warmup else 1.0

    def loss(self, terms: ElboTerms, progress: float) -> Tensor:
        """Mean over records, in nats, of what is minimised; terms are (B,), or (S, B) where ``samples`` > 1."""
        if self.capacity is not None:
            off = terms.kl.mean() - self.capacity * self._risen(progress)
            return self.gamma * off.abs() - terms.log_likelihood.mean()
        if self.free_bits:
            kept = terms.kl_by_dimension.flatten(0, -2).mean(0).clamp_min(self.free_bits)
            return self.weight(progress) * kept.sum() - terms.log_likelihood.mean()
        bound = terms.log_likelihood - self.weight(progress) * terms.kl
        if self.samples > 1:
            bound = torch.logsumexp(bound, 0) - math.log(len(bound))
        return -bound.mean()
