r"""Surprisal: how seldom a normal record is as strange as this one, in nats.

Questions are asked of a record, and each answer is turned into nats by the scores that reference records have:

* is there a normal record like this one, reconstructed as well as this one is (:mod:`latent_neighbours`)? Half of what
  its neighbours themselves score on average is taken off: where normal records lie far apart, being far from them is
  less strange. Taking off all of it would compare densities as local outlier factors do, nothing is the density itself;
* are its values rare by themselves (:mod:`marginal`)?
* is how each of them was reconstructed rare by itself? It is the same of the residuals, and asked as far as columns are
  discrete: there many records are alike, and neighbours tell little.

For a score s with survival function S among reference records, each left out of the reference in turn,
:math:`g(s) = -\log S(s)`: empirical up to the upper tenth and exponential beyond, as a sum of many small surprises is.
The score is their weighted root mean square and the evidence of missing and unseen values,

.. math:: s(x) = \sqrt{\frac{n(x)^2 + \omega\, m(x)^2 + \beta\, r(x)^2}{1 + \omega + \beta}} + \mathrm{evidence}(x),
    \qquad \omega = \tfrac13,

with :math:`\beta` the share of the columns that are discrete. It is near the largest of them: what one question finds
is not averaged away by the others. It is told by columns in proportion: neighbours, values and residuals get
:math:`n^2`, :math:`\omega m^2` and :math:`\beta r^2` over the sum, and each is divided as its own terms are.
docs/detection.md says what was tried and what it gave.

Legend: B records, M reference records, Q columns, J knots.
Reference: Breunig, Kriegel, Ng and Sander, LOF: identifying density-based local outliers, SIGMOD 2000.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn import functional

from vae_anomaly.errors import ConfigError
from vae_anomaly.likelihoods import Layout
from vae_anomaly.scores.elbo import by_column, with_evidence
from vae_anomaly.scores.latent_neighbours import LatentNeighbours, latent_neighbours
from vae_anomaly.scores.marginal import EMPTY, Histogram, Marginal, histogram, marginal
from vae_anomaly.vae import Evaluation, concatenated

WEIGHT = 1 / 3  # of the values by themselves
KNOTS, UPPER = 65, 0.1
SAME = 1e-9  # nats: a difference of scores that is rounding


@dataclass(frozen=True)
class Tail:
    """-log of the share of training scores above: linear between ``knots`` (J,), with ``slope`` beyond the last."""

    knots: Tensor
    slope: Tensor

    def __call__(self, score: Tensor) -> Tensor:
        """(B,) nats of ``score`` (B,), at least 0 and ascending."""
        nats = -torch.log1p(-torch.linspace(0.0, 1.0 - UPPER, KNOTS, dtype=torch.float64))
        # of several knots at one score the first: the share of those that are as strange, and not of those above
        right = torch.searchsorted(self.knots, score.detach() - SAME).clamp(1, KNOTS - 1)
        low, high = self.knots[right - 1], self.knots[right]
        # where knots are as good as the same no slope is told: a gradient would be infinite
        wide = torch.where(high - low > SAME, high - low, 1.0)
        share = ((score - low) / wide).clamp(0.0, 1.0)
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
    """The questions, fitted, the weight of the last, and the tails of their scores.

    ``levels`` (M,) is what is taken off for a reference record that is a neighbour; ``residuals`` are asked for where
    ``discrete`` is not 0.
    """

    neighbours: LatentNeighbours
    levels: Tensor
    values: Marginal
    residuals: Histogram
    discrete: float
    tails: tuple[Tail, ...]

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """What was fitted, by the part that it belongs to."""
        own = {
            "knots": torch.stack([tail.knots for tail in self.tails]),
            "slope": torch.stack([tail.slope for tail in self.tails]),
            "k": torch.tensor(self.neighbours.k),
            "levels": self.levels,
            "discrete": torch.tensor(self.discrete, dtype=torch.float64),
        }
        residuals = {f"residual_{name}": tensor for name, tensor in self.residuals.tensors.items()}
        return {**self.neighbours.tensors, **self.values.tensors, **residuals, **own}

    def kept(self, index: Tensor) -> Surprisal:
        """With only the reference records at ``index``; tails, counts and levels stay as they are."""
        return replace(self, neighbours=self.neighbours.kept(index), levels=self.levels[index])

    def left_out(self, evaluation: Evaluation, own: Tensor) -> Tensor:
        """(B,) nats of reference records at ``own`` (B,), or -1, each as if it were not among them."""
        return self._score(evaluation, own)

    def __call__(self, evaluation: Evaluation) -> Tensor:
        """(B,) nats, float64."""
        return self._score(evaluation, None)

    def _score(self, evaluation: Evaluation, own: Tensor | None) -> Tensor:
        distance, near = self.neighbours.distance(evaluation, own)
        others = (entries.sum(-1, dtype=torch.float64) for entries in self.rarities(evaluation, own))
        first, *more = self._squares([self._relative(distance, near), *others])
        return with_evidence((sum(more, first) / sum(self._weights)).sqrt(), evaluation.inputs)

    def _relative(self, distance: Tensor, near: Tensor) -> Tensor:
        """(B,) nats of ``distance`` (B,), less the mean level of the nearest (B, k)."""
        return distance - self.levels[near].mean(-1)

    @property
    def _weights(self) -> tuple[float, ...]:
        return (1.0, WEIGHT, self.discrete)[: len(self.tails)]

    def _squares(self, scores: Sequence[Tensor]) -> list[Tensor]:
        """(B,) weighted square of the surprise in the score (B,) that each question gives."""
        asked = zip(self._weights, self.tails, scores, strict=True)
        return [weight * tail(score).square() for weight, tail, score in asked]

    def rarities(self, evaluation: Evaluation, own: Tensor | None = None) -> list[Tensor]:
        """(B, F) nats of the values by themselves, and (B, R) of the residuals where they are asked for."""
        inputs, counted = evaluation.inputs, None if own is None else own >= 0
        found = [self.values.entries(inputs, counted)]
        if self.discrete:
            residuals = evaluation.likelihood.residuals(evaluation.seen.x, inputs.observed)
            entries = self.residuals.entries(residuals, counted)
            if inputs.observed is not None:
                entries = entries * inputs.observed[:, evaluation.likelihood.layout.feature_of_residual]
            found.append(entries)
        return found

    def terms(self, evaluation: Evaluation) -> Tensor:
        """(B, Q + 1) nats."""
        layout = evaluation.likelihood.layout
        owners = (layout.column_of_feature, layout.column_of_residual) if self.discrete else (layout.column_of_feature,)
        by_cell = zip(self.rarities(evaluation), owners, strict=True)
        rare = [by_column(entries.double(), column, layout.columns) for entries, column in by_cell]
        distances, near = self.neighbours.terms_of_neighbours(evaluation)
        parts = [distances, *(functional.pad(part, (0, 1)) for part in rare)]
        first, *others = (part.sum(-1) for part in parts)
        squares = self._squares([self._relative(first, near), *others])
        # each part's share of the root mean square, divided as its own terms are
        scale = (sum(self._weights) * sum(squares[1:], squares[0]).clamp_min(1e-300)).rsqrt()
        shares = (_divided(scale * square, part) for part, square in zip(parts, squares, strict=True))
        whole = sum(shares, torch.zeros_like(parts[0]))
        if evaluation.inputs.evidence is not None:
            whole[:, :-1] += evaluation.inputs.evidence
        return whole


def _divided(amount: Tensor, terms: Tensor) -> Tensor:
    """``amount`` (B,) in the proportions of ``terms`` (B, Q + 1), as the last entry where all of these are 0."""
    total = terms.sum(-1, keepdim=True)
    told = total > SAME
    last = functional.pad(amount[:, None], (terms.shape[1] - 1, 0))
    return torch.where(told, amount[:, None] * terms / torch.where(told, total, 1.0), last)


@torch.no_grad()
def surprisal(
    reference: Sequence[Evaluation] | None, saved: Mapping[str, Tensor] | None, *, k: int = 5, local: float = 0.5
) -> Surprisal:
    """Fit on the evaluations of the reference records, or rebuild from ``saved`` tensors.

    Parameters
    ----------
    k : neighbours, at least 1; with fewer reference records all but one.
    local : the share of the neighbours' own scores that is taken off, in [0, 1].

    Raises
    ------
    ConfigError
        ``k`` is below 1, or ``local`` no such share.
    """
    if k < 1 or not 0 <= local <= 1:
        raise ConfigError(f"score.k must be at least 1 and score.local between 0 and 1. Got {k!r} and {local!r}.")
    if saved is not None:
        near = latent_neighbours(None, saved, k=int(saved["k"]))
        binned, residuals = (
            Histogram(*(saved[prefix + field.name] for field in fields(Histogram))) for prefix in ("", "residual_")
        )
        tails = tuple(Tail(knots, slope) for knots, slope in zip(saved["knots"], saved["slope"], strict=True))
        values = Marginal(binned, saved["categories"], saved["most_of_category"])
        return Surprisal(near, saved["levels"], values, residuals, float(saved["discrete"]), tails)
    assert reference is not None
    count = sum(len(part.inputs) for part in reference)
    near = latent_neighbours(reference, None, k=max(1, min(k, count - 1)))
    layout = reference[0].likelihood.layout
    values = marginal([part.inputs for part in reference], layout)
    discrete = layout.discrete if layout.modality == "table" else 0.0
    own = torch.split(torch.arange(count), [len(part.inputs) for part in reference])
    pairs = list(zip(reference, own, strict=True))

    # a single record has no other
    found = [near.distance(*pair) for pair in pairs] if count > 1 else [(torch.zeros(1).double(), own[0][:, None])]
    distance, nearest = (torch.cat(parts) for parts in zip(*found, strict=True))
    residuals = _of_residuals(reference, layout) if discrete else EMPTY
    fitted = Surprisal(near, local * distance, values, residuals, discrete, ())
    rarities = zip(*(fitted.rarities(*pair) for pair in pairs), strict=True)
    others = (torch.cat(parts).sum(-1, dtype=torch.float64) for parts in rarities)
    scores = [fitted._relative(distance, nearest), *others]
    return replace(fitted, tails=tuple(map(tail, scores)))


def _of_residuals(reference: Sequence[Evaluation], layout: Layout) -> Histogram:
    """The histogram of the reference records' residuals."""
    residuals = torch.cat([part.likelihood.residuals(part.seen.x, part.inputs.observed) for part in reference])
    observed = concatenated([part.inputs for part in reference]).observed
    seen = torch.ones_like(residuals) if observed is None else observed[:, layout.feature_of_residual]
    return histogram(residuals, seen)
