r"""Surprisal: how seldom a normal record is as strange as this one, in nats.

Two questions are asked of a record, and each answer is turned into nats by the scores that training records have:

* is there a normal record like this one, reconstructed as well as this one is (:mod:`latent_neighbours`)?
* are its values rare by themselves (:mod:`marginal`)?

For a score s with survival function S among training records, each left out of the reference in turn,
:math:`g(s) = -\log S(s)`: empirical up to the upper tenth and exponential beyond, as a sum of many small surprises is.
The score is their weighted root mean square and the evidence of missing and unseen values,

.. math:: s(x) = \sqrt{\frac{n(x)^2 + \omega\, m(x)^2}{1 + \omega}} + \mathrm{evidence}(x), \qquad \omega = \tfrac13,

which is near the larger of the two: what one question finds is not averaged away by the other. It is told by columns in
proportion: neighbours and values get :math:`n^2` and :math:`\omega m^2` over the sum, and each is divided as its own
terms are. docs/detection.md says what was tried and what it gave.

Legend: B records, M reference records, Q columns, J knots.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vae_anomaly.errors import ConfigError
from vae_anomaly.scores.elbo import with_evidence
from vae_anomaly.scores.latent_neighbours import LatentNeighbours, latent_neighbours
from vae_anomaly.scores.marginal import Marginal, marginal
from vae_anomaly.vae import Evaluation

WEIGHT = 1 / 3  # of the values by themselves
KNOTS, UPPER = 65, 0.1


@dataclass(frozen=True)
class Tail:
    """-log of the share of training scores above: linear between ``knots`` (J,), with ``slope`` beyond the last."""

    knots: Tensor
    slope: Tensor

    def __call__(self, score: Tensor) -> Tensor:
        """(B,) nats of ``score`` (B,), at least 0 and ascending."""
        nats = -torch.log1p(-torch.linspace(0.0, 1.0 - UPPER, KNOTS, dtype=torch.float64))
        right = torch.searchsorted(self.knots, score.detach(), right=True).clamp(1, KNOTS - 1)
        low, high = self.knots[right - 1], self.knots[right]
        share = ((score - low) / (high - low).clamp_min(1e-300)).clamp(0.0, 1.0)
        within = nats[right - 1] + share * (nats[right] - nats[right - 1])
        return within + self.slope * (score - self.knots[-1]).clamp_min(0.0)


def tail(scores: Tensor) -> Tail:
    """The tail of training ``scores`` (M,) float64."""
    ordered = scores.sort().values
    knots = torch.quantile(ordered, torch.linspace(0.0, 1.0 - UPPER, KNOTS, dtype=torch.float64))
    beyond = (ordered[ordered > knots[-1]] - knots[-1]).tolist()
    # where the upper scores are all the same, one unit of a nat is as good as any
    mean = math.fsum(beyond) / len(beyond) if beyond else 0.0
    return Tail(knots, torch.tensor(1.0 / max(mean, 1e-3), dtype=torch.float64))


@dataclass(frozen=True)
class Surprisal:
    """Both questions, fitted, and the tails of their scores."""

    neighbours: LatentNeighbours
    values: Marginal
    tails: tuple[Tail, Tail]

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """What was fitted, by the part that it belongs to."""
        own = {
            "knots": torch.stack([tail.knots for tail in self.tails]),
            "slope": torch.stack([tail.slope for tail in self.tails]),
            "k": torch.tensor(self.neighbours.k),
        }
        return {**self.neighbours.tensors, **self.values.tensors, **own}

    def kept(self, index: Tensor) -> Surprisal:
        """With only the reference records at ``index``; tails and counts stay as they are."""
        return replace(self, neighbours=self.neighbours.kept(index))

    def left_out(self, evaluation: Evaluation, own: Tensor) -> Tensor:
        """(B,) nats of reference records at ``own`` (B,), each as if it were not among them."""
        return self._score(evaluation, own)

    def __call__(self, evaluation: Evaluation) -> Tensor:
        """(B,) nats, float64."""
        return self._score(evaluation, None)

    def _score(self, evaluation: Evaluation, own: Tensor | None) -> Tensor:
        near = self.neighbours.distance(evaluation, own)
        layout = evaluation.likelihood.layout
        rare = self.values.terms(evaluation.inputs, layout, counted=own is not None).sum(-1)
        first, second = (tail(score) for tail, score in zip(self.tails, (near, rare), strict=True))
        score = ((first.square() + WEIGHT * second.square()) / (1.0 + WEIGHT)).sqrt()
        return with_evidence(score, evaluation.inputs)

    def terms(self, evaluation: Evaluation) -> Tensor:
        """(B, Q + 1) nats."""
        near = self.neighbours.terms_of_neighbours(evaluation)
        rare = self.values.terms(evaluation.inputs, evaluation.likelihood.layout)
        first, second = (tail(terms.sum(-1)) for tail, terms in zip(self.tails, (near, rare), strict=True))
        total = (first.square() + WEIGHT * second.square()).clamp_min(1e-300)
        # each part's share of the root mean square, divided as its own terms are
        scale = ((1.0 + WEIGHT) * total).rsqrt()
        near = near * (scale * first.square() / near.sum(-1).clamp_min(1e-300))[:, None]
        rare = rare * (scale * WEIGHT * second.square() / rare.sum(-1).clamp_min(1e-300))[:, None]
        columns = near[:, :-1] + rare
        if evaluation.inputs.evidence is not None:
            columns = columns + evaluation.inputs.evidence
        return torch.cat([columns, near[:, -1:]], -1)


@torch.no_grad()
def surprisal(reference: Sequence[Evaluation] | None, saved: Mapping[str, Tensor] | None, *, k: int = 10) -> Surprisal:
    """Fit on the evaluations of the reference records, or rebuild from ``saved`` tensors.

    Parameters
    ----------
    k : neighbours, at least 1; with fewer reference records all but one.

    Raises
    ------
    ConfigError
        ``k`` is below 1.
    """
    if k < 1:
        raise ConfigError(f"score.k must be at least 1. Got {k!r}.")
    if saved is not None:
        near = latent_neighbours(None, saved, k=int(saved["k"]))
        tails = [Tail(knots, slope) for knots, slope in zip(saved["knots"], saved["slope"], strict=True)]
        return Surprisal(
            near, Marginal(*(saved[name] for name in ("edges", "nats", "categories", "most"))), (tails[0], tails[1])
        )
    assert reference is not None
    count = sum(len(part.inputs) for part in reference)
    near = latent_neighbours(reference, None, k=max(1, min(k, count - 1)))
    layout = reference[0].likelihood.layout
    values = marginal([part.inputs for part in reference], layout)
    distances, at = [], 0
    for part in reference:
        own = torch.arange(at, at + len(part.inputs))
        # a single record has no other
        distances.append(near.distance(part, own) if count > 1 else torch.zeros(1, dtype=torch.float64))
        at += len(part.inputs)
    rarities = [values.terms(part.inputs, layout, counted=True).sum(-1) for part in reference]
    return Surprisal(near, values, (tail(torch.cat(distances)), tail(torch.cat(rarities))))
