r"""How good a fit is, without labels, and what that means in plain words.

* :func:`held_out`: reconstruction, KL and the use of the latent dimensions;
* :func:`corruption_recall`: the share of corrupted records that is flagged, by kind and column or region;
* :func:`comparison`: how well corrupted copies are told from the records they were made of, as an area under the ROC
  curve, beside three simple methods fitted to the same training records in the same feature space;
* :func:`verdict`: sentences for whoever has to decide whether to use the fit.

PCA has as many components as the model has latent dimensions and the model's kind of noise, one scale for each feature:
what a linear model of the same size does. Its score is, up to constants, a negative log-likelihood,

.. math:: \tfrac12 \sum_k t_k^2 / \lambda_k + \tfrac12 \sum_f (x_f - \hat x_f)^2 / \sigma_f^2,

with t the principal coordinates, and :math:`\lambda` and :math:`\sigma^2` the variances of the training records.

Every amount of work is bounded by constants and not by the clock: the same fit gives the same figures.

Legend: B, M records, F features, K latent dimensions, C context.
References: Lucas et al., Don't blame the ELBO! A linear VAE perspective on posterior collapse, NeurIPS 2019, arXiv
1911.02469; Burda, Grosse and Salakhutdinov, Importance weighted autoencoders, arXiv 1509.00519 (active units); Liu,
Ting and Zhou, Isolation forest, ICDM 2008.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from vae_anomaly.corruption import KINDS, MAX_COLUMNS, corruptions, places
from vae_anomaly.detector import Detector, Part, chunk_rows, fitted_members, over_chunks, parts_of
from vae_anomaly.models import default_score
from vae_anomaly.preprocessing import Preprocessor
from vae_anomaly.training import ACTIVE_VARIANCE
from vae_anomaly.vae import Evaluation, Inputs, concatenated

MAX_RECORDS = 5000  # that training or held-out records are thinned to before anything is measured
# records to corrupt, the copies of them that recall and the comparison score, the values of these copies
FEWEST, MOST, RECALL_COPIES, COMPARED_COPIES, MAX_VALUES = 50, 500, 50_000, 10_000, 50_000_000
MAX_CELLS = 2_000_000  # of the training records that simple methods get: it bounds the distances
TOGETHER = 4096  # records that are scored together, if no chunk is smaller: the networks see vae.rows or more at a time
MAX_TOKENS = 1000  # of a text's bag: the most frequent ones, the rest together
NEIGHBOURS, TREES = 5, 100
PLAIN, OTHERWISE = ("scale", "other"), ("swap",)  # kinds of the headline: plain ones where there are any
COMPARED = ("swap", *PLAIN)
METHODS = {"pca": "PCA", "knn": "k nearest neighbours", "iforest": "isolation forest"}
TRIED = ("latent_neighbours", "negative_elbo")  # scores, with the same weights
MARGIN = 0.01  # of an AUROC, within which two methods count as equal
ALIKE = 0.9  # rank correlation from which on two scores rank records alike
BLIND = 0.1
NAMED = 8

T = TypeVar("T")


@dataclass(frozen=True)
class HeldOutQuality:
    """Means over held-out records at the posterior mean, in nats; ``total`` is the negative ELBO.

    ``active_units`` of the ``latent`` dimensions have a posterior mean that varies by more than ``ACTIVE_VARIANCE``;
    ``latent_variance`` is the mean of these variances, ``latent_correlation`` the mean absolute correlation between
    two of them, 0 where there are fewer. ``kl_by_dimension`` (K,) sums to ``kl``.
    """

    reconstruction: float
    kl: float
    total: float
    latent_variance: float
    latent_correlation: float
    active_units: int
    latent: int
    kl_by_dimension: tuple[float, ...]


@dataclass(frozen=True)
class CorruptionRecall:
    """``shares``: of the records that a corruption changed, the share that is flagged, by kind and by place.

    ``records`` were corrupted; there are ``places`` columns or regions, of which a wide table measures some.
    """

    shares: Mapping[str, Mapping[str, float]]
    records: int
    places: int

    @property
    def headline(self) -> dict[str, float]:
        """By place, the recall of the corruption that any detector should notice: a wrong value (a text: wrong words).

        0 means that the detector is blind to this column or region.
        """
        kinds = PLAIN if "scale" in self.shares or "other" in self.shares else OTHERWISE
        return {where: share for kind in kinds for where, share in self.shares.get(kind, {}).items()}

    @property
    def median(self) -> float | None:
        """Of the headline; None where nothing could be corrupted."""
        return float(np.median(list(self.headline.values()))) if self.headline else None

    @property
    def measured(self) -> int:
        """The number of columns or regions that were corrupted."""
        return len({where for by_place in self.shares.values() for where in by_place})


@dataclass(frozen=True)
class Comparison:
    """AUROC of held-out records against their corrupted copies, the mean over kinds and places, by method.

    ``auroc`` is that of the ``detector`` and of ``METHODS``, which were fitted to ``training_records``; ``by_score``
    what the detector's weights reach with other scores. ``rank_correlation`` is Spearman's, of the detector's and PCA's
    scores of the ``records`` themselves.
    """

    auroc: Mapping[str, float]
    by_score: Mapping[str, float]
    rank_correlation: float
    records: int
    training_records: int


@dataclass(frozen=True)
class Assessment:
    """Everything that is measured of a fit, and the verdict."""

    held_out: HeldOutQuality
    recall: CorruptionRecall
    comparison: Comparison
    verdict: tuple[str, ...]


def assess(
    detector: Detector, training: Inputs, held_out_inputs: Inputs, *, seed: int, tell: Callable[[str], None]
) -> Assessment:
    """Measure ``detector`` on records that trained no weight; ``tell`` is told what is being done.

    ``training`` are records that it was trained on, for the methods that it is compared with.
    """
    tell("measuring held-out records")
    quality = held_out(detector, held_out_inputs)
    tell("measuring recall of corrupted records")
    recall = corruption_recall(detector, held_out_inputs, seed=seed)
    tell("comparing with simple methods")
    compared = comparison(detector, training, held_out_inputs, seed=seed)
    said = verdict(quality, compared, recall, alpha=detector.threshold.alpha)
    return Assessment(quality, recall, compared, said)


# ---- held-out quality ----


def held_out(detector: Detector, inputs: Inputs) -> HeldOutQuality:
    """Quality of the first member's VAE on ``inputs``."""

    def parts(e: Evaluation) -> Tensor:
        likelihood = e.likelihood.log_prob(e.seen.x, e.seen.observed)
        return torch.cat([e.z, e.kl, likelihood[:, None]], 1).double()

    k = detector.vae.latent
    mean, kl, likelihood = torch.split(over_chunks(detector.vae, inputs, parts), [k, k, 1], 1)
    variance, by_dimension = mean.var(0, correction=0), kl.mean(0)
    active = variance > ACTIVE_VARIANCE
    reconstruction, divergence = -float(likelihood.mean()), float(by_dimension.sum())
    return HeldOutQuality(
        reconstruction,
        divergence,
        reconstruction + divergence,
        float(variance[active].mean()) if bool(active.any()) else 0.0,
        _correlation(mean[:, active].numpy()),
        int(active.sum()),
        k,
        tuple(by_dimension.tolist()),
    )


def _correlation(mean: np.ndarray) -> float:
    """Mean absolute correlation between two different columns of (B, K)."""
    k = mean.shape[1]
    return float(np.abs(np.corrcoef(mean.T)[np.triu_indices(k, 1)]).mean()) if k > 1 else 0.0


# ---- corruption ----


def corruption_recall(detector: Detector, inputs: Inputs, *, seed: int = 0) -> CorruptionRecall:
    """Share of records that are flagged after one column or region was corrupted (at most ``MOST`` records).

    No label is needed. Records that a corruption leaves as they were do not count.
    """
    inputs = inputs[: _records(detector, len(KINDS), RECALL_COPIES)]
    shares: dict[str, dict[str, float]] = {kind: {} for kind in KINDS}
    for (kind, where), scores in _scored(detector.scores, _copies(detector, inputs, seed, KINDS), _together(detector)):
        shares[kind][where] = float(detector.threshold.flag(scores).mean())
    found = {kind: each for kind, each in shares.items() if each}
    return CorruptionRecall(found, len(inputs), len(places(detector.preprocessor)))


def _records(detector: Detector, kinds: int, copies: int) -> int:
    """How many records to corrupt in about ``kinds`` ways a place, for at most so many ``copies``."""
    copies = min(copies, MAX_VALUES // detector.preprocessor.layout.features)
    return min(MOST, max(FEWEST, copies // (kinds * min(len(places(detector.preprocessor)), MAX_COLUMNS))))


def _copies(
    detector: Detector, inputs: Inputs, seed: int, kinds: Sequence[str]
) -> Iterator[tuple[tuple[str, str], Inputs]]:
    """The records that each corruption has changed, by its kind and place."""
    for found in corruptions(detector.preprocessor, inputs, seed):
        if found.kind in kinds and found.changed.any():
            yield (found.kind, found.where), found.inputs[torch.from_numpy(found.changed)]


def _together(detector: Detector) -> int:
    """How many copies are scored together: wide ones are as many as the detector evaluates at a time."""
    return min(TOGETHER, chunk_rows(detector.vae, detector.preprocessor.layout.features))


def _scored(
    score: Callable[[Inputs], np.ndarray], parts: Iterable[tuple[T, Inputs]], together: int
) -> Iterator[tuple[T, np.ndarray]]:
    """``score`` (..., B) of each part, in order; parts are held until there are ``together`` records or more."""
    waiting: list[tuple[T, Inputs]] = []
    for part in chain(parts, [None]):
        waiting += [part] if part else []
        lengths = [len(inputs) for _, inputs in waiting]
        if waiting and (part is None or sum(lengths) >= together):
            scores = np.split(score(concatenated([inputs for _, inputs in waiting])), np.cumsum(lengths)[:-1], axis=-1)
            names, waiting = [name for name, _ in waiting], []
            yield from zip(names, scores, strict=True)


def weak(recall: Mapping[str, float], alpha: float) -> list[str]:
    """Places whose corruption is hardly noticed, the least noticed first: not above twice the false-alarm rate."""
    floor = max(BLIND, 2 * alpha)
    return sorted((where for where, share in recall.items() if share < floor), key=lambda where: recall[where])


# ---- comparison ----


def comparison(detector: Detector, training: Inputs, held_out: Inputs, *, seed: int = 0) -> Comparison:
    """The detector beside PCA, k nearest neighbours and isolation forest, fitted to ``training`` records."""
    clean = held_out[: _records(detector, len(COMPARED) - 1, COMPARED_COPIES)]
    features = _features(detector.preprocessor, training)
    width = features(training[:1]).shape[1]
    most = max(FEWEST, min(MAX_RECORDS, max(200, MAX_CELLS // width), MAX_VALUES // width))
    known = features(training[:most])
    detectors = [detector, *(other for kind in TRIED if (other := _scored_by(detector, kind)))]
    methods = dict(_methods(known, detector.vae.latent, seed))

    def by_all(inputs: Inputs) -> np.ndarray:
        """(detectors + methods, B)."""
        x = features(inputs)
        return np.stack([*(d.scores(inputs) for d in detectors), *(score(x) for score in methods.values())])

    # copies are scored as they are made: all of them are never held
    parts = chain([(("", ""), clean)], _copies(detector, clean, seed, COMPARED))
    by_part = [scores for _, scores in _scored(by_all, parts, _together(detector))]
    own, *rest = ([scores[i] for scores in by_part] for i in range(len(detectors) + len(methods)))
    others, simple = rest[: len(detectors) - 1], dict(zip(methods, rest[len(detectors) - 1 :], strict=True))
    return Comparison(
        {name: _auroc(*scores) for name, scores in {"detector": own, **simple}.items()},
        {d.score_part.kind: _auroc(*scores) for d, scores in zip(detectors[1:], others, strict=True)},
        _rank_correlation(own[0], simple["pca"][0]),
        len(clean),
        len(known),
    )


def _scored_by(detector: Detector, kind: str) -> Detector | None:
    """The same weights with another score; None where it is the one that they have."""
    if kind == detector.score_part.kind:
        return None
    usual, options = default_score(parts_of(detector.model)[0].kind, detector.preprocessor.layout.modality)
    part = Part(kind, options if kind == usual else {})
    vaes, index = [m.vae for m in detector.members], [m.index for m in detector.members]
    return replace(detector, score_part=part, members=fitted_members(vaes, detector.reference.inputs, part, index))


def _auroc(normal: np.ndarray, *corrupted: np.ndarray) -> float:
    """Mean over ``corrupted`` of the share of pairs in which the corrupted record's score is the higher one."""
    from sklearn.metrics import roc_auc_score

    # ranks, for an infinite score is one, too
    each = [roc_auc_score(np.arange(len(r)) >= len(normal), r) for c in corrupted for r in [_ranks(normal, c)]]
    return float(np.mean(each)) if each else 0.5


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's; 0 where one of them is constant."""
    ranks = _ranks(a), _ranks(b)
    return float(np.corrcoef(*ranks)[0, 1]) if min(np.ptp(r) for r in ranks) > 0 else 0.0


def _ranks(*parts: np.ndarray) -> np.ndarray:
    """Ranks of all scores together; what is no number is the highest."""
    from scipy.stats import rankdata

    ranks: np.ndarray = rankdata(np.nan_to_num(np.concatenate(parts), nan=np.inf, posinf=np.inf))
    return ranks


def _features(preprocessor: Preprocessor, training: Inputs) -> Callable[[Inputs], np.ndarray]:
    """The feature space that all methods share, (B, F): x, of a text its bag of tokens, and the context."""
    to_matrix: Callable[[Inputs], np.ndarray] = lambda inputs: inputs.x.numpy()  # noqa: E731
    if preprocessor.layout.modality == "text":
        to_matrix = _bag(training)

    def features(inputs: Inputs) -> np.ndarray:
        x = to_matrix(inputs)
        return x if inputs.context is None else np.column_stack([x, inputs.context.numpy()])

    return features


def _bag(training: Inputs) -> Callable[[Inputs], np.ndarray]:
    """Counts of the tokens, weighted by how rare they are among ``training`` lines, of length 1."""

    def counts(inputs: Inputs) -> np.ndarray:
        ids = inputs.x.clamp(max=MAX_TOKENS - 1)
        bag = torch.zeros(len(ids), MAX_TOKENS).scatter_add_(1, ids, torch.ones(ids.shape))
        bag[:, 0] = 0  # padding
        return bag.numpy()

    lines = counts(training)
    weight = np.log((len(lines) + 1) / ((lines > 0).sum(0) + 1)) + 1

    def weighted(inputs: Inputs) -> np.ndarray:
        bag = counts(inputs) * weight.astype(np.float32)
        unit: np.ndarray = bag / np.linalg.norm(bag, axis=1, keepdims=True).clip(1e-12)
        return unit

    return weighted


def _methods(known: np.ndarray, latent: int, seed: int) -> Iterator[tuple[str, Callable[[np.ndarray], np.ndarray]]]:
    """Each of ``METHODS`` with its score, high = anomalous, fitted to ``known`` (M, F)."""
    from sklearn.ensemble import IsolationForest
    from sklearn.neighbors import NearestNeighbors

    yield "pca", _pca(known, latent, seed)
    near = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(known)), algorithm="brute").fit(known)
    yield "knn", lambda x: near.kneighbors(x)[0].mean(1)
    forest = IsolationForest(n_estimators=TREES, random_state=seed).fit(known)
    yield "iforest", lambda x: -forest.score_samples(x)


def _pca(known: np.ndarray, latent: int, seed: int) -> Callable[[np.ndarray], np.ndarray]:
    from sklearn.decomposition import PCA

    count, features = known.shape
    fitted = PCA(max(1, min(latent, count - 1, features - 1)), random_state=seed).fit(known)

    def parts(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        t = fitted.transform(x)
        return np.square(t), np.square(x - fitted.inverse_transform(t))

    # a floor, for columns that follow from others exactly leave no variance
    variances = [np.maximum(part.mean(0), max(1e-3 * float(known.var(0).mean()), 1e-12)) for part in parts(known)]
    return lambda x: 0.5 * sum((part / v).sum(1) for part, v in zip(parts(x), variances, strict=True))


# ---- verdict ----


def verdict(
    quality: HeldOutQuality, compared: Comparison, recall: CorruptionRecall, *, alpha: float
) -> tuple[str, ...]:
    """What the figures mean, one sentence after another, with advice where something is wrong.

    ``alpha`` is the detector's target false-alarm rate.
    """
    return (
        _of_units(quality),
        *_of_methods(quality, compared),
        *_of_scores(compared),
        *_of_places(recall, weak(recall.headline, alpha)),
    )


def _of_units(quality: HeldOutQuality) -> str:
    used, every = quality.active_units, f"{quality.latent:,} latent dimension{'s'[: quality.latent > 1]}"
    if used:
        return f"{used:,} of {every} {'is' if used == 1 else 'are'} used."
    return (
        f"None of {every} is used: the posterior has collapsed to the prior, and all records are reconstructed alike."
        " Try a smaller objective.beta, or objective.free_bits: 0.5; for texts a larger training.word_dropout."
    )


def _of_methods(quality: HeldOutQuality, compared: Comparison) -> Iterator[str]:
    theirs = {name: compared.auroc[name] for name in METHODS}
    ours, best = compared.auroc["detector"], max(theirs, key=lambda name: theirs[name])
    against = f"(AUROC {ours:.2f} against {theirs[best]:.2f})"
    larger = "a larger model.latent" if quality.active_units == quality.latent else "another model.kind"
    # what has collapsed needs no other advice
    advice = f" Try more training.steps or {larger}." if quality.active_units else ""
    if quality.active_units and compared.rank_correlation >= ALIKE and ours <= theirs["pca"] + MARGIN:
        yield (
            f"This model does what PCA does: it ranks records alike (rank correlation {compared.rank_correlation:.2f})"
            f" and finds no more of the corrupted ones (AUROC {ours:.2f} against {theirs['pca']:.2f}).{advice}"
            " Where the columns depend on each other linearly, there is no more to find."
        )
    elif ours > theirs[best] + MARGIN:
        names, values = _listed([*METHODS.values()]), _listed([f"{theirs[name]:.2f}" for name in METHODS])
        yield f"It finds corrupted records better than {names} (AUROC {ours:.2f} against {values})."
    elif ours >= theirs[best] - MARGIN:
        yield f"It finds corrupted records as well as {METHODS[best]}, the best of three simple methods {against}."
    else:
        yield f"It finds corrupted records less well than {METHODS[best]} {against}.{advice}"


def _of_scores(compared: Comparison) -> Iterator[str]:
    best = max(compared.by_score, key=lambda kind: compared.by_score[kind], default="")
    if best and compared.by_score[best] > compared.auroc["detector"] + MARGIN:
        yield (
            f"With score.kind: {best} the same weights find corrupted records better (AUROC"
            f" {compared.by_score[best]:.2f}); for records that are unusual as a whole this need not hold."
        )


def _of_places(recall: CorruptionRecall, blind: Sequence[str]) -> Iterator[str]:
    if blind:
        named = [f"{where} ({recall.headline[where]:.0%})" for where in blind[:NAMED]]
        more = [f"{len(blind) - NAMED:,} more"] if len(blind) > NAMED else []
        yield (
            f"It hardly notices a wrong value of {_listed([*named, *more])}: where that matters, watch it by a rule of"
            " its own."
        )
    if recall.measured < recall.places:
        yield f"Corruption was measured in {recall.measured:,} of {recall.places:,} columns."


def _listed(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
