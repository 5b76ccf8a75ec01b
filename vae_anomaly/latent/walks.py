"""Ways through latent space: one dimension after the other, or from one record to another.

Legend: D dimensions that are traversed, S steps, K latent dimensions, C context.

Reference: White, Sampling generative networks, arXiv 1609.04468 (spherical interpolation).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from vae_anomaly.batch import Records
from vae_anomaly.detector import Detector
from vae_anomaly.errors import ConfigError, suggestion
from vae_anomaly.latent.decoding import Curve, Decoded, Decoder, curves, decoded
from vae_anomaly.latent.space import (
    LatentRecords,
    ReferencePoints,
    active,
    latent_means,
    placed,
    require_at_least,
    require_positive,
    standardised,
    units,
)
from vae_anomaly.vae import Inputs

Way = Literal["linear", "spherical"]


@dataclass(frozen=True)
class Traversal:
    """D ``dimensions`` (counted from 0), each of which takes the S ``values`` (D, S) of its row.

    ``decoded`` are D * S records, a dimension's steps after each other, ``curves`` their expected values for a table.
    ``about`` is the record whose other dimensions are kept; ``active`` tells whether the dimensions are.
    """

    dimensions: np.ndarray
    values: np.ndarray
    decoded: Decoded
    curves: tuple[Curve, ...]
    about: str
    spread: float
    active: bool


@torch.no_grad()
def traverse(detector: Detector, *, base: Records | None = None, steps: int = 9, spread: float = 2.5) -> Traversal:
    """Change each active dimension alone, from ``spread`` standard deviations of the normal records below their mean
    to as many above it.

    Parameters
    ----------
    base : the record (of which the first scorable one counts) whose other dimensions and context are kept; by default
        the reference record nearest to the middle of all.
    steps : S, at least 2.
    spread : above 0.

    Where no dimension is active, the one that varies most is traversed.
    """
    require_at_least("steps", steps, 2)
    require_positive("spread", spread)
    kept = ReferencePoints.of(detector)
    z, context, about = _one(detector, base, kept)
    chosen = active(detector)
    dimensions = chosen if len(chosen) else np.argsort(-units(detector)[1])[:1]
    index = torch.from_numpy(dimensions)
    reach = torch.linspace(-spread, spread, steps)
    middle, deviation = kept.coordinates.mean(0)[index], kept.coordinates.std(0, correction=0)[index]
    values = middle[:, None] + deviation[:, None] * reach
    coordinates = standardised(detector.vae.prior(context), z).repeat(len(index) * steps, 1)
    rows = torch.arange(len(coordinates))
    coordinates[rows, index.repeat_interleave(steps)] = values.flatten()
    decoder = Decoder(detector, torch.Generator())
    many = None if context is None else context.expand(len(coordinates), -1)
    x = decoder.features(placed(detector.vae.prior(many), coordinates), many)
    return Traversal(
        dimensions, values.numpy(), decoded(detector, x, many), curves(detector, x), about, spread, bool(len(chosen))
    )


def _one(detector: Detector, records: Records | None, kept: ReferencePoints) -> tuple[Tensor, Tensor | None, str]:
    """Latent mean (1, K), context (1, C) and id of the first scorable one of ``records``, or of the centre."""
    if records is None:
        at = slice(kept.centre, kept.centre + 1)
        return kept.mean[at], _row(detector.reference.inputs, at), detector.reference.record_ids[kept.centre]
    good = np.flatnonzero(records.scorable)[:1]
    if not len(good):
        raise ConfigError("the base record must be scorable. Got none that is.")
    inputs = detector.encode(records.take(good))
    return latent_means(detector, inputs), inputs.context, str(records.record_ids[good[0]])


def _row(inputs: Inputs, at: slice) -> Tensor | None:
    return None if inputs.context is None else inputs.context[at]


@dataclass(frozen=True)
class Interpolation:
    """S records on the way between the records ``ids``: ``position`` (S,) from 0 to 1, ``decoded`` and ``curves``."""

    ids: tuple[str, str]
    position: np.ndarray
    decoded: Decoded
    curves: tuple[Curve, ...]


@torch.no_grad()
def interpolate(detector: Detector, records: Records, *, steps: int = 9, how: Way = "linear") -> Interpolation:
    """The way from the first to the second scorable one of ``records``; the context is that of the nearer end.

    Parameters
    ----------
    steps : S, at least 2, both ends included.
    how : on a line, or on a great circle with the length of the vector changing evenly (``spherical``), which stays
        where most of a standard normal lies.

    Raises
    ------
    ConfigError
        There are not two scorable records.
    """
    require_at_least("steps", steps, 2)
    if how not in get_args(Way):
        known = list(get_args(Way))
        raise ConfigError(f"how must be one of {known}. Got {how!r}.{suggestion(str(how), known)}")
    good = np.flatnonzero(records.scorable)[:2]
    if len(good) < 2:
        raise ConfigError(f"two scorable records are needed to interpolate. Got {len(good)}.")
    pair = records.take(good)
    inputs = detector.encode(pair)
    a, b = standardised(detector.vae.prior(inputs.context), latent_means(detector, inputs))
    share = torch.linspace(0.0, 1.0, steps)
    coordinates = _between(a, b, share[:, None], how)
    context = None if inputs.context is None else inputs.context[(share > 0.5).long()]
    x = Decoder(detector, torch.Generator()).features(placed(detector.vae.prior(context), coordinates), context)
    names = (str(pair.record_ids[0]), str(pair.record_ids[1]))
    return Interpolation(names, share.numpy(), decoded(detector, x, context), curves(detector, x))


def _between(a: Tensor, b: Tensor, share: Tensor, how: Way) -> Tensor:
    """(S, K) points from ``a`` to ``b`` (K,) at ``share`` (S, 1)."""
    line = (1 - share) * a + share * b
    lengths = a.norm(), b.norm()
    if how == "linear" or not min(lengths) > 0:
        return line
    first, second = a / lengths[0], b / lengths[1]
    angle = torch.arccos((first @ second).clamp(-1, 1))
    if not 1e-4 < float(angle) < math.pi - 1e-4:  # the same direction, or opposite ones with no way that is shortest
        return line
    direction = (torch.sin((1 - share) * angle) * first + torch.sin(share * angle) * second) / torch.sin(angle)
    out: Tensor = ((1 - share) * lengths[0] + share * lengths[1]) * direction
    return out


@torch.no_grad()
def far_apart(detector: Detector, encoded: LatentRecords) -> np.ndarray:
    """(2,) the most ordinary one of B >= 2 records, and that which lies farthest from it."""
    inputs = detector.encode(encoded.records)
    coordinates = standardised(detector.vae.prior(inputs.context), torch.from_numpy(encoded.mean)).numpy()
    first = int(np.argmin(encoded.score))
    return np.array([first, int(np.argmax(((coordinates - coordinates[first]) ** 2).sum(1)))])
