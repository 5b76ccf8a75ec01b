"""Figures of a fit, for the tracking server, and of a latent space, for whoever looks.

* :mod:`~vae_anomaly.figures.fits`: how it was trained, where scores lie, what the threshold keeps;
* :mod:`~vae_anomaly.figures.quality`: use of the latent dimensions, and what of corrupted records is found;
* :mod:`~vae_anomaly.figures.records`: records beside their reconstructions;
* :mod:`~vae_anomaly.figures.latent`: the map, ways through the latent space, generated records.

Each function returns a matplotlib ``Figure`` of its own; nothing here touches pyplot or any other global state.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from matplotlib.figure import Figure

from vae_anomaly.batch import Records
from vae_anomaly.detector import Detector
from vae_anomaly.figures.fits import calibration_curve, score_histogram, training_curves
from vae_anomaly.figures.latent import MAX_POINTS, generated, interpolation, latent_map, traversal
from vae_anomaly.figures.records import MAX_VARIABLES, found_beside_expected, reconstructions
from vae_anomaly.figures.style import png
from vae_anomaly.fitting import Fit
from vae_anomaly.latent import encode, far_apart, generate, interpolate, plane, reference_means, traverse
from vae_anomaly.vae import Inputs

__all__ = [
    "MAX_POINTS",
    "MAX_VARIABLES",
    "calibration_curve",
    "found_beside_expected",
    "generated",
    "interpolation",
    "latent_map",
    "of_fit",
    "of_latent",
    "picked",
    "png",
    "reconstructions",
    "score_histogram",
    "training_curves",
    "traversal",
]

PICKED = ("strangest", "second strangest", "second most ordinary", "most ordinary")
GENERATED, GENERATED_ROWS = 48, 1000  # images or lines, and rows of a table


def of_fit(fit: Fit, inputs: Inputs) -> Iterator[tuple[str, Figure]]:
    """The figures of a fit's training, scores and reconstructions, by name; ``inputs`` are validation records."""
    detector, threshold = fit.detector, fit.detector.threshold
    yield "training_curves", training_curves(fit.epochs)
    others = {"validation": fit.validation_scores}
    yield "score_histogram", score_histogram(threshold.calibration, threshold.value, others=others)
    yield "calibration_curve", calibration_curve(threshold, fit.validation_scores)
    index, titles = picked(detector.scores(inputs))
    yield "reconstructions", found_beside_expected(detector, inputs[torch.from_numpy(index)], titles)


def picked(scores: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """The two strangest and the two most ordinary ones of ``scores`` (B,), and their titles."""
    order = np.argsort(-scores, kind="stable")
    index = np.r_[order[:2], order[2:][-2:]]
    names = PICKED if len(index) == len(PICKED) else [*PICKED[:2], PICKED[-1]]
    return index, [f"{name}, score {scores[i]:.4g}" for i, name in zip(index, names, strict=False)]


def of_latent(detector: Detector, records: Records, *, seed: int = 0) -> Iterator[tuple[str, Figure]]:
    """The figures of a detector's latent space, by name; ``records`` are validation records, of which at least one is
    scorable."""
    encoded = encode(detector, records)
    found = plane(np.concatenate([encoded.mean, reference_means(detector)[:MAX_POINTS]]))
    yield "latent_map", latent_map(found, encoded.colour("score"), encoded.flagged)
    yield "traversal", traversal(traverse(detector))
    if len(encoded) > 1:
        ends = encoded.records.take(far_apart(detector, encoded))
        yield "interpolation", interpolation(interpolate(detector, ends))
    count = GENERATED_ROWS if detector.preprocessor.layout.modality == "table" else GENERATED
    yield "generated", generated(detector, generate(detector, count, seed=seed))
