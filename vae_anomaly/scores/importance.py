r"""The importance-weighted bound as a score, a closer look at log p(x) than the ELBO:

.. math:: s(x) = -\log \tfrac1S \sum_s \frac{p(x, z_s)}{q(z_s | x)} + \mathrm{evidence}(x), \qquad z_s = q(\epsilon_s).

The noise is drawn once, saved with the detector and shared by all records, so that a score is deterministic.

Legend: S draws, B records, Q columns, K latent dimensions.
Reference: Burda, Grosse and Salakhutdinov, Importance weighted autoencoders, ICLR 2016, arXiv 1509.00519.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vae_anomaly.errors import ConfigError
from vae_anomaly.scores.elbo import by_column, with_evidence
from vae_anomaly.vae import Evaluation


@dataclass(frozen=True)
class ImportanceWeighted:
    """``noise`` (S, K), standard normal."""

    noise: Tensor

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The draws."""
        return {"noise": self.noise}

    def __call__(self, evaluation: Evaluation) -> Tensor:
        """(B,) nats, float64."""
        weights = evaluation.log_weights(self.noise).double()
        score = math.log(len(weights)) - torch.logsumexp(weights, 0)
        return with_evidence(score, evaluation.inputs)

    def terms(self, evaluation: Evaluation) -> Tensor:
        """(B, Q + 1) nats: each column's negative log-likelihood at the posterior mean, and what the score adds."""
        inputs, layout = evaluation.inputs, evaluation.likelihood.layout
        entries = evaluation.likelihood.entry_log_prob(evaluation.seen.x, inputs.observed).double()
        columns = -by_column(entries, layout.column_of_feature, layout.columns)
        if inputs.evidence is not None:
            columns = columns + inputs.evidence
        return torch.cat([columns, (self(evaluation) - columns.sum(-1))[:, None]], -1)


def importance_weighted(
    reference: Sequence[Evaluation] | None, saved: Mapping[str, Tensor] | None, *, samples: int = 32
) -> ImportanceWeighted:
    """Draw the noise, or take that of ``saved``.

    Raises
    ------
    ConfigError
        ``samples`` is below 1.
    """
    if saved is not None:
        return ImportanceWeighted(saved["noise"])
    assert reference is not None
    if not 1 <= samples <= 10_000:
        raise ConfigError(f"score.samples must lie between 1 and 10,000. Got {samples!r}.")
    generator = torch.Generator().manual_seed(0)
    return ImportanceWeighted(torch.randn(samples, reference[0].z.shape[-1], generator=generator))
