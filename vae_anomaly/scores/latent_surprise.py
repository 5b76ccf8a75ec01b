r"""Latent surprise: how far is the nearest normal record, and how much less expected are this one's entries than its?

.. math:: s(x) = \tfrac12 \lVert v(x) - v_j \rVert^2 + \max(0,\, m(x) - m_j) + \mathrm{evidence}(x), \qquad
          v = \mu(x) / \bar\sigma, \quad m = -\tfrac1n \sum_t \log p(x_t | \mu(x)),

where j is the nearest training record in v and m the mean surprise of the n entries that the likelihood has a say on.

It is made for texts. Of normal lines some templates are rare, and every line of such a template has a low likelihood,
which the negative ELBO takes for an anomaly; what tells is the surprise beyond that of the nearest normal line.

Legend: B records, K latent dimensions, M reference records, Q columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from vae_anomaly.scores.elbo import by_column
from vae_anomaly.scores.latent_neighbours import Nearest, latent_place
from vae_anomaly.vae import Evaluation


@dataclass(frozen=True)
class LatentSurprise:
    """Fitted reference: ``vectors`` (M, K) and ``surprise`` (M,) of training records, ``latent_scale`` (K,)."""

    vectors: Tensor
    surprise: Tensor
    latent_scale: Tensor

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The reference and the scale of the latent part."""
        return {"vectors": self.vectors, "surprise": self.surprise, "latent_scale": self.latent_scale}

    @cached_property
    def _space(self) -> Nearest:
        return Nearest(self.vectors, 1)

    def __call__(self, evaluation: Evaluation) -> Tensor:
        """(B,) nats, float64."""
        return self.terms(evaluation).sum(-1)

    def terms(self, evaluation: Evaluation) -> Tensor:
        """(B, Q + 1) nats: the surprise beyond the neighbour's, divided as the surprise is, and evidence by columns;
        then the latent distance."""
        v, layout, inputs = latent_place(evaluation, self.latent_scale), evaluation.likelihood.layout, evaluation.inputs
        entries = -evaluation.likelihood.entry_log_prob(inputs.x, inputs.observed).double()
        beyond = (_mean(entries) - self.surprise[self._space.indices(v)[:, 0]]).clamp_min(0.0)
        size = entries.abs()
        share = size / size.sum(-1, keepdim=True).clamp_min(1e-30)
        columns = by_column(beyond[:, None] * share, layout.column_of_feature, layout.columns)
        if inputs.evidence is not None:
            columns = columns + inputs.evidence
        return torch.cat([columns, self._space.squares(v).sum(-1, keepdim=True)], -1)


def _mean(entries: Tensor) -> Tensor:
    """(B,) mean of the entries (B, F) that are not 0: the likelihood has no say on the others."""
    return entries.sum(-1) / (entries != 0).sum(-1).clamp_min(1)


@torch.no_grad()
def latent_surprise(reference: Sequence[Evaluation] | None, saved: Mapping[str, Tensor] | None) -> LatentSurprise:
    """Fit on the evaluations of the reference records, or rebuild from ``saved`` tensors."""
    if saved is not None:
        return LatentSurprise(saved["vectors"], saved["surprise"], saved["latent_scale"])
    assert reference is not None
    scale = torch.cat([part.posterior.scale for part in reference]).mean(0)
    entries = [-part.likelihood.entry_log_prob(part.inputs.x, part.inputs.observed).double() for part in reference]
    vectors = torch.cat([latent_place(part, scale) for part in reference])
    return LatentSurprise(vectors, torch.cat([_mean(part) for part in entries]), scale)
