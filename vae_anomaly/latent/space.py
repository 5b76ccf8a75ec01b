r"""Where records lie in latent space, and the coordinates in which ways through it are walked.

Legend: B, N records, M reference records, K latent dimensions.

Reference: McInnes et al., UMAP: uniform manifold approximation and projection, arXiv 1802.03426.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor

from vae_anomaly.batch import Records
from vae_anomaly.detector import Detector, over_chunks
from vae_anomaly.distributions import Mixture
from vae_anomaly.errors import ConfigError, suggestion
from vae_anomaly.training import ACTIVE_VARIANCE
from vae_anomaly.vae import VAE, Inputs

Method = Literal["auto", "latent", "pca", "umap"]
UMAP_NEIGHBOURS = 15
SIDE = 1000  # of a latent map in a report, in its units


class Colour(NamedTuple):
    """What points are coloured by: ``values`` (B,) numbers, with NaN where missing, or text, with None."""

    name: str
    values: np.ndarray


@dataclass(frozen=True)
class LatentRecords:
    """B scorable ``records`` in latent space: posterior ``mean`` (B, K), ``score`` (B,) in nats, ``flagged`` (B,)."""

    records: Records
    mean: np.ndarray
    score: np.ndarray
    flagged: np.ndarray

    def __len__(self) -> int:
        return len(self.mean)

    def colour(self, by: str) -> Colour:
        """The values of ``score``, of the ``label`` (where there are labels), or of a column of the schema.

        A timestamp counts in hours from midnight, UTC.

        Raises
        ------
        ConfigError
            There is no such column or label, or the column is an image.
        """
        if by == "score":
            return Colour("score, nats", self.score)
        if by == "label" and self.records.labels is not None:
            return Colour("label", np.where(self.records.labels, "labelled an anomaly", "not labelled"))
        values = self.records.values.get(by)
        plain = {name for name, v in self.records.values.items() if not _has_no_colour(v)}
        if values is None or by not in plain:
            known = ["score", *(["label"] if self.records.labels is not None else []), *sorted(plain)]
            raise ConfigError(f"colour must be one of {known}. Got {by!r}.{suggestion(by, known)}")
        return colour_of(by, values)


def _has_no_colour(values: np.ndarray | pa.Array) -> bool:
    return isinstance(values, np.ndarray) and values.ndim > 1


def colour_of(name: str, values: np.ndarray | pa.Array) -> Colour:
    """The colour of a column of a file: numbers as they are, everything else as text."""
    if isinstance(values, np.ndarray) and values.dtype.kind == "M":
        hours = (values - values.astype("datetime64[D]")) / np.timedelta64(1, "h")
        return Colour(f"{name}, hour of the day (UTC)", hours)
    found = values.to_pandas() if isinstance(values, pa.Array | pa.ChunkedArray) else pd.Series(values)
    if pd.api.types.is_numeric_dtype(found) and not pd.api.types.is_bool_dtype(found):
        return Colour(name, found.to_numpy(np.float64, na_value=np.nan))
    return Colour(name, np.array([None if missing else str(v) for v, missing in zip(found, found.isna(), strict=True)],
                                 dtype=object))  # fmt: skip


def encode(detector: Detector, records: Records) -> LatentRecords:
    """The scorable ones of ``records`` in latent space, in their order."""
    known = records.take(np.flatnonzero(records.scorable))
    inputs = detector.encode(known)
    score = detector.scores(inputs)
    return LatentRecords(known, latent_means(detector, inputs).numpy(), score, detector.threshold.flag(score))


def latent_means(detector: Detector, inputs: Inputs) -> Tensor:
    """(B, K) posterior means."""
    return over_chunks(detector.vae, inputs, lambda e: e.z)


def reference_means(detector: Detector) -> np.ndarray:
    """(M, K) posterior means of the reference records."""
    return latent_means(detector, detector.reference.inputs).numpy()


@dataclass(frozen=True)
class Plane:
    """``points`` (B, 2) and the names of the two axes."""

    points: np.ndarray
    axes: tuple[str, str]


def plane(mean: np.ndarray, method: Method = "auto", *, seed: int = 0) -> Plane:
    """Posterior means ``mean`` (B, K) in two dimensions.

    Parameters
    ----------
    method : ``latent`` for the two dimensions that vary most (a single one beside 0), ``pca`` for the two largest
        principal components, ``umap`` for UMAP, an extra to install; ``auto`` is ``latent`` up to K = 2, else ``pca``.

    Raises
    ------
    ConfigError
        There is no such method, UMAP is not installed, or there are fewer than four records for it.
    """
    if method not in get_args(Method):
        known = list(get_args(Method))
        raise ConfigError(f"method must be one of {known}. Got {method!r}.{suggestion(str(method), known)}")
    if method == "umap":
        return Plane(_umap(mean, seed), ("UMAP 1", "UMAP 2"))
    found = projection(mean, method)
    return Plane(found.points(mean), found.axes)


@dataclass(frozen=True)
class Projection:
    """The plane through ``centre`` (K,) along ``directions`` (K, 2), which is the same for whatever is looked at."""

    centre: np.ndarray
    directions: np.ndarray
    axes: tuple[str, str]

    def points(self, mean: np.ndarray) -> np.ndarray:
        """(B, 2) of posterior means (B, K)."""
        there: np.ndarray = (mean - self.centre) @ self.directions
        return there


def projection(mean: np.ndarray, method: Literal["auto", "latent", "pca"] = "auto") -> Projection:
    """The plane of :func:`plane` that is fitted to posterior means ``mean`` (B, K)."""
    size = mean.shape[1]
    if method == "pca" or (method == "auto" and size > 2):
        return _principal(mean)
    chosen = np.sort(np.argsort(-mean.var(0), kind="stable")[:2]) if len(mean) else np.arange(size)[:2]
    names = [f"latent mean {i + 1}" for i in chosen]
    return Projection(np.zeros(size, mean.dtype), _two(np.eye(size, dtype=mean.dtype)[chosen]), (*names, "")[:2])  # type: ignore[arg-type]


def _principal(points: np.ndarray) -> Projection:
    centre = points.mean(0)
    _, scale, directions = np.linalg.svd(points - centre, full_matrices=False)
    share = np.zeros(2)
    share[: len(scale[:2])] = (scale**2 / max(float((scale**2).sum()), 1e-300))[:2]
    # of the two directions of an axis the one whose largest entry is positive, whatever the library took
    directions = _two(directions[:2])
    largest = np.take_along_axis(directions, np.abs(directions).argmax(0)[None], 0)
    names = [f"principal component {i + 1} ({100 * share[i]:.3g} % of the variance)" for i in (0, 1)]
    return Projection(centre, np.where(largest < 0, -directions, directions), (names[0], names[1]))


def _two(directions: np.ndarray) -> np.ndarray:
    """(K, 2) of up to two ``directions``, by rows; those that are lacking are 0."""
    both = np.zeros((directions.shape[1], 2), directions.dtype)
    both[:, : len(directions)] = directions.T
    return both


def framed(points: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """(B, 2) integers from 0 to ``SIDE``, to the right and down, of ``points`` (B, 2) in the frame from ``low`` to
    ``high`` (2,); what lies beyond it is at its edge, and where it has no width in its middle."""
    width = high - low
    share = np.where(width > 0, (points - low) / np.where(width > 0, width, 1.0), 0.5).clip(0.0, 1.0)
    places: np.ndarray = np.rint(SIDE * np.column_stack([share[:, 0], 1.0 - share[:, 1]])).astype(int)
    return places


def _umap(mean: np.ndarray, seed: int) -> np.ndarray:
    try:
        import umap
    except ImportError:
        problem = "method 'umap' must have the package umap-learn. Got none. Install vae-anomaly[umap], or take 'pca'."
        raise ConfigError(problem) from None
    if len(mean) < 4:
        raise ConfigError(f"method 'umap' must be given at least 4 records. Got {len(mean)}. Take 'pca'.")
    space = umap.UMAP(
        n_components=2,
        n_neighbors=min(UMAP_NEIGHBOURS, len(mean) - 1),
        init="spectral" if len(mean) > UMAP_NEIGHBOURS else "random",
        random_state=seed,
        n_jobs=1,
    )
    return np.asarray(space.fit_transform(mean))


def units(detector: Detector) -> tuple[np.ndarray, np.ndarray]:
    """Of each latent dimension the mean KL in nats, (K,), and the variance of the posterior means, (K,), over the
    reference records."""
    both = over_chunks(detector.vae, detector.reference.inputs, lambda e: torch.stack([e.posterior.mean, e.kl], 1))
    mean, kl = both.double().unbind(1)
    return kl.mean(0).numpy(), mean.var(0, correction=0).numpy()


def active(detector: Detector) -> np.ndarray:
    """The latent dimensions whose posterior mean varies by more than ``ACTIVE_VARIANCE``, most informative first."""
    kl, variance = units(detector)
    order = np.argsort(-kl, kind="stable")
    chosen: np.ndarray = order[variance[order] > ACTIVE_VARIANCE]
    return chosen


def standardised(prior: Any, z: Tensor) -> Tensor:
    """z (N, K) in the coordinates in which the prior is standard normal; for a mixture z itself."""
    if isinstance(prior, Mixture):
        return z
    there = prior.at(z)
    out: Tensor = (z - there.mean) / there.scale
    return out


def placed(prior: Any, coordinates: Tensor) -> Tensor:
    """The inverse of :func:`standardised`."""
    if isinstance(prior, Mixture):
        return coordinates
    out: Tensor = prior.push(coordinates)
    return out


def drawn_from(vae: VAE, count: int, context: Tensor | None, temperature: float, generator: torch.Generator) -> Tensor:
    """(count, K) draws from the prior whose spread is ``temperature`` times its own."""
    prior = vae.prior(context)
    z: Tensor = prior.draw(count, generator) if context is None else prior.draw(1, generator)[0]
    if temperature == 1:
        return z
    if isinstance(prior, Mixture):  # around the component that is nearest in its own scale
        far = (((z[:, None] - prior.mean) / prior.scale).square() / 2 + prior.scale.log()).sum(-1)
        middle = prior.mean[far.argmin(1)]
        return middle + temperature * (z - middle)
    return placed(prior, temperature * standardised(prior, z))


@dataclass(frozen=True)
class ReferencePoints:
    """The reference records: ``mean`` and ``coordinates`` (M, K), and ``centre``, the row that is nearest to the mean
    of the coordinates."""

    coordinates: Tensor
    mean: Tensor
    centre: int

    @staticmethod
    def of(detector: Detector) -> ReferencePoints:
        inputs = detector.reference.inputs
        mean = latent_means(detector, inputs)
        coordinates = standardised(detector.vae.prior(inputs.context), mean)
        far = (coordinates - coordinates.mean(0)).square().sum(1)
        return ReferencePoints(coordinates, mean, int(far.argmin()))


def require_at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"{name} must be at least {least}. Got {value!r}.")


def require_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ConfigError(f"{name} must be a number above 0. Got {value!r}.")
