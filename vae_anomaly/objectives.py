r"""Training objectives: what the optimiser minimises; scoring always uses beta = 1.

.. math:: L_t = -\log p(x|z) + \beta_t \, KL, \qquad \beta_t = \beta \min(1, (t + 1) / T_\mathrm{warm})

References: Higgins et al., beta-VAE, ICLR 2017; warm-up: Sonderby et al., Ladder VAEs, NeurIPS 2016.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vae_anomaly.vae import ElboTerms


@dataclass(frozen=True)
class BetaElbo:
    """beta-ELBO with a linear warm-up over ``warmup`` (fraction of the training, 0 for none)."""

    beta: float = 1.0
    warmup: float = 0.5

    def weight(self, progress: float) -> float:
        """beta at ``progress`` in [0, 1] of the training."""
        return self.beta * min(1.0, progress / self.warmup) if self.warmup else self.beta

    def loss(self, terms: ElboTerms, progress: float) -> Tensor:
        """Mean over records of -log p(x given z) + beta KL, in nats."""
        return (self.weight(progress) * terms.kl - terms.log_likelihood).mean()
