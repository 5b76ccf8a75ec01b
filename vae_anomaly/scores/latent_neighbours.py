r"""Latent-neighbour score: is there a normal record like this one, reconstructed as well as this one is?

Each record becomes a vector in natural units,

.. math:: v(x) = [\mu(x) / \bar\sigma,\; r(x)],

the posterior mean over the posterior scale averaged over the reference records, and the deviance residuals of the
reconstruction. The score is the negative log of the mean of unit Gaussian kernels on the k nearest reference records,
in nats, plus the evidence of missing and unseen values,

.. math:: s(x) = -\log \frac1k \sum_{j \in N_k(x)} e^{-d_j} + \mathrm{evidence}(x)
    = \sum_j w_j d_j + KL(w \| \tfrac1k) + \mathrm{evidence}(x), \qquad d_j = \tfrac12 \lVert v(x) - v_j \rVert^2,

with :math:`w_j \propto e^{-d_j}`. The first sum is one over the entries of v: a residual's part belongs to its column;
the latent part and what the neighbours differ by are the unusual combination of values. No term is negative.

More reference records never raise the score. So a calibration record may be one of them, if it is scored as if it were
not (``left_out``): were a new record among them too, all would be treated alike and the conformal p-value would be
exact, and without it the calibration scores are higher than that, if anything.

Without ``residuals`` v is the latent part alone. Texts are scored so: of normal lines some templates are rare, every
line of such a template has large residuals, and its nearest neighbour is the only one that tells. ``surprise`` times
the mean of -log p over the entries orders records that are equally near to a normal one, as lines of a known kind are.

Residuals of an image can be blurred first: neighbouring pixels then speak together, and an edge that is half a pixel
off, which normal images have too, counts less. Where the prior depends on the context, mu is told from its mean.

Legend: B records, K latent dimensions, R residuals, V = K + R, M reference records.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from vae_anomaly.errors import ConfigError
from vae_anomaly.likelihoods import FactorisedLikelihood, PixelLayout
from vae_anomaly.scores.elbo import by_column, with_evidence
from vae_anomaly.vae import Evaluation

# Records at a time, so that their distances to all reference records stay in the cache; a divisor of every chunk.
BLOCK = 128
GROUPS = 512
COLUMNS = 64  # a small reference is padded to a multiple of this
DIFFERENCES = 2**20  # of records to their nearest ones that are held at a time


@dataclass(frozen=True)
class Nearest:
    """Exact search for the ``k`` nearest of ``vectors`` (M, V) float32."""

    vectors: Tensor
    k: int

    def indices(self, v: Tensor) -> Tensor:
        """(B, k) positions of the nearest vectors, nearest first."""
        return self._among(v, self.k)

    def scores(self, v: Tensor, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B,) float64 nats: -log of the mean kernel on the k nearest; a vector ``own`` (B,) is not among them.

        And (B, k): which these are, nearest first.
        """
        parts, nearest = [], []
        for apart, near in self._apart(v, own):
            parts.append(math.log(self.k) - torch.logsumexp(-0.5 * apart.square().sum(-1, dtype=torch.float64), -1))
            nearest.append(near)
        return torch.cat(parts), torch.cat(nearest)

    def terms(self, v: Tensor, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, V + 1) float64 nats that sum to :meth:`scores`: half the weighted squared differences to the k nearest,
        entry by entry, and KL(w, 1/k). And (B, k) the nearest."""
        parts, nearest = [], []
        for apart, near in self._apart(v, own):
            half = 0.5 * apart.square().double()
            # by logarithms: a weight that is 0 has a gradient all the same
            logarithm = torch.log_softmax(-half.sum(-1), -1)
            weight = logarithm.exp()
            apart = math.log(self.k) + (weight * logarithm).sum(-1, keepdim=True)
            parts.append(torch.cat([(weight[..., None] * half).sum(1), apart], -1))
            nearest.append(near)
        return torch.cat(parts), torch.cat(nearest)

    def others(self, v: Tensor, own: Tensor | None) -> Tensor:
        """(B, k) nearest, without ``own`` (B,)."""
        if own is None:
            return self._among(v, self.k)
        near = self._among(v, self.k + 1)
        gone = near == own[:, None]
        # a record with many copies may not be among the nearest of itself: then the last one goes
        gone[:, -1] |= ~gone.any(1)
        return near[~gone].view(len(v), self.k)

    def _apart(self, v: Tensor, own: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
        """(B, k, V) differences to the k nearest, and (B, k) which these are; a few records at a time."""
        step = max(1, DIFFERENCES // (self.k * v.shape[1]))
        for rows, near in zip(torch.split(v, step), torch.split(self.others(v, own), step), strict=True):
            yield rows[:, None, :] - self.vectors[near], near

    @torch.no_grad()
    def _among(self, v: Tensor, k: int) -> Tensor:
        """(B, k) indices of the ``k`` nearest."""
        table = self._table
        # in memory that is used again and again and stays in the cache
        one, distance = v.new_ones(BLOCK, len(table)), v.new_empty(BLOCK, table.shape[1])
        found = []
        for block in torch.split(v, BLOCK):
            rows = len(block)
            one[:rows, :-1] = block
            found.append(self._of_block(torch.mm(one[:rows], table, out=distance[:rows]), k))
        return torch.cat(found)

    @cached_property
    def _table(self) -> Tensor:
        """(V + 1, M padded) -v_j and half its squared norm, by columns; a padding column is infinitely far.

        [v, 1] times it is half the squared distance less |v|^2 / 2, which is the same for every reference record.
        """
        count, entries = self.vectors.shape
        table = self.vectors.new_zeros(entries + 1, count + -count % self._groups)
        table[:-1, :count] = -self.vectors.T
        table[-1] = torch.inf
        table[-1, :count] = 0.5 * self.vectors.square().sum(-1)
        return table

    @property
    def _groups(self) -> int:
        """One for each of up to ``GROUPS`` records, and about sqrt(k M) of more: as many numbers are sorted to find the
        groups as there are records in them."""
        count = len(self.vectors)
        if count <= GROUPS:
            return count + -count % COLUMNS
        return min(GROUPS, COLUMNS * max(1, round(math.sqrt(self.k * count) / COLUMNS)))

    def _of_block(self, distance: Tensor, k: int) -> Tensor:
        """(B, k) indices of the ``k`` smallest of each row of ``distance`` (B, M padded).

        Record j belongs to group j mod ``_groups``. A group with one of the k nearest is, by its nearest record, among
        the k nearest groups: one pass finds those, and only their records are sorted.
        """
        by_group = distance.view(len(distance), -1, self._groups)
        groups = by_group.amin(1).topk(min(k, self._groups), largest=False).indices
        members = (groups[:, :, None] + self._groups * torch.arange(by_group.shape[1])).flatten(1)
        nearest = distance.gather(1, members).topk(k, largest=False).indices
        return members.gather(1, nearest)


@dataclass(frozen=True)
class LatentNeighbours:
    """Fitted reference: ``vectors`` (M, V) float32, ``latent_scale`` (K,), k, the blur in pixels, whether v has
    residuals, and the weight of the mean surprise."""

    vectors: Tensor
    latent_scale: Tensor
    k: int
    blur: float = 0.0
    residuals: bool = True
    surprise: float = 0.0

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The reference vectors and the scale of the latent part."""
        return {"vectors": self.vectors, "latent_scale": self.latent_scale}

    @cached_property
    def _space(self) -> Nearest:
        return Nearest(self.vectors, self.k)

    def embed(self, evaluation: Evaluation) -> Tensor:
        """v of each record, (B, V)."""
        return _embed(evaluation, self.latent_scale, self.blur, self.residuals)

    def nearest(self, evaluation: Evaluation) -> Tensor:
        """(B, k) indices of the nearest reference records, nearest first."""
        return self._space.indices(self.embed(evaluation))

    def kept(self, index: Tensor) -> LatentNeighbours:
        """With only the reference records at ``index``, and with fewer neighbours where these are too few."""
        return replace(self, vectors=self.vectors[index], k=min(self.k, len(index)))

    def left_out(self, evaluation: Evaluation, own: Tensor) -> Tensor:
        """(B,) nats of reference records at ``own`` (B,), or -1, each as if it were not among them."""
        return self._score(evaluation, own)

    def __call__(self, evaluation: Evaluation) -> Tensor:
        """(B,) nats, float64."""
        return self._score(evaluation, None)

    def _score(self, evaluation: Evaluation, own: Tensor | None) -> Tensor:
        if self.surprise:
            return self._with_evidence(evaluation, self.terms_of_neighbours(evaluation, own)[0]).sum(-1)
        return with_evidence(self.distance(evaluation, own)[0], evaluation.inputs)

    def distance(self, evaluation: Evaluation, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B,) nats: the score without evidence and mean surprise; and (B, k) the nearest reference records."""
        return self._space.scores(self.embed(evaluation), own)

    def terms(self, evaluation: Evaluation) -> Tensor:
        """(B, Q + 1) nats."""
        return self._with_evidence(evaluation, self.terms_of_neighbours(evaluation)[0])

    def terms_of_neighbours(self, evaluation: Evaluation, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, Q + 1) nats, none negative, that sum to :meth:`distance`; and (B, k) the nearest reference records."""
        entries, near = self._space.terms(self.embed(evaluation), own)
        latent = len(self.latent_scale)
        layout = evaluation.likelihood.layout
        columns = torch.zeros(len(entries), layout.columns, dtype=entries.dtype)
        if self.residuals:
            columns = by_column(entries[:, latent:-1], layout.column_of_residual, layout.columns)
        rest = entries[:, :latent].sum(-1, keepdim=True) + entries[:, -1:]
        return torch.cat([columns, rest], -1), near

    def _with_evidence(self, evaluation: Evaluation, terms: Tensor) -> Tensor:
        layout = evaluation.likelihood.layout
        columns = terms[:, :-1]
        if self.surprise:
            inputs = evaluation.inputs
            entries = evaluation.likelihood.entry_log_prob(evaluation.seen.x, inputs.observed).double()
            judged = (entries != 0).sum(-1, keepdim=True).clamp_min(1)  # the likelihood has no say on the others
            columns = columns + by_column(-self.surprise * entries / judged, layout.column_of_feature, layout.columns)
        if evaluation.inputs.evidence is not None:
            columns = columns + evaluation.inputs.evidence
        return torch.cat([columns, terms[:, -1:]], -1)


def _embed(evaluation: Evaluation, latent_scale: Tensor, blur: float, with_residuals: bool) -> Tensor:
    # told from the prior where that depends on the context: so does what a latent mean means
    place = (evaluation.posterior.mean - evaluation.prior.centre()) / latent_scale
    if not with_residuals:
        return place
    inputs, layout = evaluation.inputs, evaluation.likelihood.layout
    residuals = evaluation.likelihood.residuals(evaluation.seen.x, inputs.observed)
    if layout.modality == "table":
        assert isinstance(evaluation.vae.likelihood, FactorisedLikelihood)
        residuals = evaluation.vae.likelihood.sharpened(residuals)
    if blur:
        if not isinstance(layout, PixelLayout):
            raise ConfigError(f"score.blur must be 0 for records that are no images. Got {blur!r}.")
        residuals = blurred(residuals.view(-1, *layout.shape), blur).flatten(1)
    return torch.cat([place, residuals], -1)


def blurred(images: Tensor, width: float) -> Tensor:
    """``images`` (..., H, W) under a Gaussian of standard deviation ``width`` pixels; beyond the border is 0.

    Sums of shifted images: an element's result is the same bits wherever its image stands in a batch.
    """
    radius = math.ceil(3 * width)
    weights = [math.exp(-0.5 * (offset / width) ** 2) for offset in range(-radius, radius + 1)]
    for axis in (-1, -2):
        size = images.shape[axis]
        margin = (radius, radius, 0, 0) if axis == -1 else (0, 0, radius, radius)
        wide = functional.pad(images, margin)
        images = weights[0] / sum(weights) * wide.narrow(axis, 0, size)
        for i, weight in enumerate(weights[1:], start=1):
            images = images + weight / sum(weights) * wide.narrow(axis, i, size)
    return images


@torch.no_grad()
def latent_neighbours(
    reference: Sequence[Evaluation] | None,
    saved: Mapping[str, Tensor] | None,
    *,
    k: int = 5,
    blur: float = 0.0,
    residuals: bool = True,
    surprise: float = 0.0,
) -> LatentNeighbours:
    """Fit on the evaluations of the reference records, or rebuild from ``saved`` tensors.

    Raises
    ------
    ConfigError
        There are no more than ``k`` reference records, k < 1, or ``blur`` (pixels, 0 to 10) is not for such records.
    """
    if not 0 <= blur <= 10:
        raise ConfigError(f"score.blur must lie between 0 and 10 pixels. Got {blur!r}.")
    if surprise < 0:
        raise ConfigError(f"score.surprise must be at least 0. Got {surprise!r}.")
    if saved is not None:
        return LatentNeighbours(saved["vectors"], saved["latent_scale"], k, blur, residuals, surprise)
    assert reference is not None
    count = sum(len(part.inputs) for part in reference)
    if not 1 <= k < max(2, count):
        raise ConfigError(f"score.k must be at least 1 and less than the {count} reference records. Got {k!r}.")
    scale = torch.cat([part.posterior.scale for part in reference]).mean(0)
    vectors = torch.cat([_embed(part, scale, blur, residuals) for part in reference])
    return LatentNeighbours(vectors, scale, k, blur, residuals, surprise)
