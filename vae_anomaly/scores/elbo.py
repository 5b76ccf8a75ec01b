r"""Scores from the terms of the evidence lower bound at the posterior mean.

* ``negative_elbo``: :math:`-\log p(x|\mu) + KL(q(z|x) \| p(z))`; * ``reconstruction``: :math:`-\log p(x|\mu)`;
* ``kl``: the KL alone; each with the evidence of missing and unseen values, which no network gives.

Reference: An and Cho, Variational autoencoder based anomaly detection using reconstruction probability, SNU 2015.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vae_anomaly.vae import Evaluation, Inputs


def by_column(entries: Tensor, column: Tensor, columns: int) -> Tensor:
    """Sum (B, F) entries over the features of each column: (B, Q)."""
    return torch.zeros(len(entries), columns, dtype=entries.dtype).index_add_(1, column, entries)


def with_evidence(score: Tensor, inputs: Inputs) -> Tensor:
    """(B,) nats: ``score`` and the evidence of the records' missing and unseen values."""
    return score if inputs.evidence is None else score + inputs.evidence.double().sum(-1)


@dataclass(frozen=True)
class ElboScore:
    """The negative log-likelihood, the KL or both, and the evidence; stateless."""

    likelihood: bool
    kl: bool

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Nothing is fitted."""
        return {}

    def __call__(self, evaluation: Evaluation) -> Tensor:
        """(B,) nats, float64."""
        inputs, score = evaluation.inputs, torch.zeros((), dtype=torch.float64)
        if self.kl:
            score = evaluation.kl.sum(-1).double()
        if self.likelihood:
            score = score - evaluation.likelihood.log_prob(evaluation.seen.x, inputs.observed).double()
        return with_evidence(score, inputs)

    def terms(self, evaluation: Evaluation) -> Tensor:
        """(B, Q + 1) nats: each column's negative log-likelihood, then the KL; they sum to the score."""
        inputs, layout = evaluation.inputs, evaluation.likelihood.layout
        terms = torch.zeros(len(inputs), layout.columns + 1, dtype=torch.float64)
        if self.likelihood:
            entries = evaluation.likelihood.entry_log_prob(evaluation.seen.x, inputs.observed).double()
            terms[:, :-1] = -by_column(entries, layout.column_of_feature, layout.columns)
        if self.kl:
            terms[:, -1] = evaluation.kl.sum(-1)
        if inputs.evidence is not None:
            terms[:, :-1] += inputs.evidence
        # the score is summed in one pass in float32: its rounding, some 1e-7 of it, goes to the last entry
        terms[:, -1] += self(evaluation) - terms.sum(-1)
        return terms


def negative_elbo(reference: Sequence[Evaluation] | None, saved: Mapping[str, Tensor] | None) -> ElboScore:
    """-log p(x given z) + KL."""
    return ElboScore(likelihood=True, kl=True)


def reconstruction(reference: Sequence[Evaluation] | None, saved: Mapping[str, Tensor] | None) -> ElboScore:
    """-log p(x given z) alone."""
    return ElboScore(likelihood=True, kl=False)


def kl_score(reference: Sequence[Evaluation] | None, saved: Mapping[str, Tensor] | None) -> ElboScore:
    """The KL alone: of what the encoder is shown, which is the logarithm of a number that is far out."""
    return ElboScore(likelihood=False, kl=True)
