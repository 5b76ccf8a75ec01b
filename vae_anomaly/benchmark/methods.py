"""What is compared: our detector with its defaults, and simple methods on the same training data.

Legend: B, M records, F features.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.neighbors import NearestNeighbors

from vae_anomaly.batch import Records
from vae_anomaly.benchmark.measuring import Method, Score
from vae_anomaly.fitting import Recipe, fit_detector
from vae_anomaly.schema import Schema

NEIGHBOURS, COMPONENTS, TREES = 5, 40, 100
# every label is kept for the comparison: few records are enough to stop training and for a threshold nobody asks for
RECIPE = Recipe(validation=0.05, calibration=0.05)
Matrix = Callable[[Any], np.ndarray]


def ours(to_records: Callable[[Any], tuple[Records, Schema]], recipe: Recipe = RECIPE) -> Method:
    """Our detector, fitted by ``recipe`` to what ``to_records`` makes of the data."""

    def fit(training: Any, seed: int) -> Score:
        detector = fit_detector(*to_records(training), replace(recipe, seed=seed)).detector
        return lambda test: detector.scores(detector.encode(to_records(test)[0]))

    return fit


def knn(matrix: Matrix) -> Method:
    """Mean distance to the 5 nearest training records; ``matrix`` gives (B, F)."""

    def fit(training: Any, seed: int) -> Score:
        near = NearestNeighbors(n_neighbors=NEIGHBOURS, algorithm="brute").fit(matrix(training))
        return lambda test: np.asarray(near.kneighbors(matrix(test))[0].mean(1))

    return fit


def pca(matrix: Matrix) -> Method:
    """Squared distance to the plane of the 40 principal components."""

    def fit(training: Any, seed: int) -> Score:
        known = matrix(training)
        fitted = PCA(min(COMPONENTS, *known.shape), random_state=seed).fit(known)

        def score(test: Any) -> np.ndarray:
            x = matrix(test)
            return np.asarray(np.square(x - fitted.inverse_transform(fitted.transform(x))).sum(1))

        return score

    return fit


def isolation_forest(matrix: Matrix) -> Method:
    """Isolation forest of 100 trees."""

    def fit(training: Any, seed: int) -> Score:
        forest = IsolationForest(n_estimators=TREES, random_state=seed).fit(matrix(training))
        return lambda test: -np.asarray(forest.score_samples(matrix(test)))

    return fit


def tfidf(training: list[str], seed: int) -> Score:
    """One minus the cosine to the nearest training line in TF-IDF space; numbers and hexadecimal ones replaced."""
    words = TfidfVectorizer(preprocessor=_normalised)
    known = words.fit_transform(training)
    return lambda test: 1.0 - np.asarray((words.transform(test) @ known.T).max(1).todense()).ravel()


def _normalised(line: str) -> str:
    return re.sub(r"\d+", "N", re.sub(r"0x[0-9a-fA-F]+|\b[0-9a-f]{8,}\b", "HEX", line)).lower()
