"""A two-sample test of what a detector generates: how well a classifier tells it from real records it never saw.

Half of the normal records of a data set, drawn by the seed, fits a detector with its defaults; it generates as many
records as there are in the other half, and a random forest is cross-validated on telling these two apart: an AUROC of
0.5 says that it cannot, 1 that it always can. Held against the same other half in the same way:

* ``real``: the half that was fitted to, the control: 0.5 but for chance;
* ``shuffled``: that half with each column permuted by itself, so that nothing goes with anything else;
* ``uniform``: values drawn evenly between the least and the greatest of each column.

Images are first reduced to their 50 principal components, learned within each fold: single pixels say little. A table
is what the preprocessing makes of it. No cell that is generated is missing: those of the i-th record of the half that
was fitted to are blanked in the i-th generated one, as missing cells are not what is tested.

References: Lopez-Paz and Oquab, Revisiting classifier two-sample tests, ICLR 2017, arXiv 1610.06545.

Legend: B records, F features.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline

from vae_anomaly.batch import Records
from vae_anomaly.benchmark.measuring import Measured, Task
from vae_anomaly.benchmark.methods import RECIPE
from vae_anomaly.benchmark.mnist import Digits
from vae_anomaly.estimator import from_images
from vae_anomaly.fitting import fit_detector
from vae_anomaly.latent import generate
from vae_anomaly.pipelines import normal_records, read_training
from vae_anomaly.preprocessing import PREPROCESSORS, Preprocessor
from vae_anomaly.preprocessing.tabular import WEEKDAYS
from vae_anomaly.samples import WRITERS
from vae_anomaly.schema import Schema, check
from vae_anomaly.workspace import Workspace

TABLES = ("breast_cancer", "payments")
FOLDS, TREES, COMPONENTS = 5, 300, 50
MONDAY = pd.Timestamp("2026-01-05", tz="UTC")


@dataclass(frozen=True)
class Halves:
    """Normal records, cut in two of the same size by a seed, and ``encoder``, which knows both."""

    schema: Schema
    encoder: Preprocessor
    fitted: Records
    held_out: Records

    def matrix(self, records: Records) -> np.ndarray:
        """(B, F) features, NaN where a cell is missing."""
        inputs = self.encoder.encode(records)
        x = inputs.x.numpy()
        return x if inputs.observed is None else np.where(inputs.observed.numpy() > 0, x, np.nan)


def halves(records: Records, schema: Schema, seed: int) -> Halves:
    """Two halves, drawn by the seed."""
    order, half = np.random.default_rng(seed).permutation(len(records)), len(records) // 2
    encoder = PREPROCESSORS[schema.modality].fit(records, schema)
    return Halves(schema, encoder, records.take(order[:half]), records.take(order[half : 2 * half]))


def told_apart(a: np.ndarray, b: np.ndarray, seed: int, *, images: bool = False) -> tuple[float, float]:
    """AUROC and average precision, cross-validated, of a random forest that tells ``b`` (B, F) from ``a`` (B, F)."""
    forest = RandomForestClassifier(TREES, min_samples_leaf=2, random_state=seed)
    components = min(COMPONENTS, a.shape[1], len(a) // 2)
    classifier = make_pipeline(PCA(components, random_state=seed), forest) if images else forest
    x, y = np.concatenate([a, b]), np.repeat([0, 1], [len(a), len(b)])
    folds = list(StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(x, y))
    probability = cross_val_predict(classifier, x, y, cv=folds, method="predict_proba")[:, 1]
    # fold by fold: the forests of two folds are not on one scale
    each = [[f(y[test], probability[test]) for f in (roc_auc_score, average_precision_score)] for _, test in folds]
    auroc, precision = np.mean(each, axis=0)
    return float(auroc), float(precision)


def generated(parts: Halves, seed: int) -> tuple[np.ndarray, float]:
    """(B, F) features of records from a detector that was fitted to one half, and the CPU-seconds of the fit."""
    start = time.process_time()
    detector = fit_detector(parts.fitted, parts.schema, replace(RECIPE, seed=seed)).detector
    seconds = time.process_time() - start
    made = generate(detector, len(parts.fitted), seed=seed).decoded
    if isinstance(made, pd.DataFrame):
        return blanked(parts.matrix(_records(made, parts.schema)), parts.matrix(parts.fitted)), seconds
    assert isinstance(made, np.ndarray)
    return parts.matrix(from_images(made)[0]), seconds


def _records(made: pd.DataFrame, schema: Schema) -> Records:
    """Generated rows as records; a time of the week, such as ``Mon 09:41``, is one of the first week of 2026."""
    times = {c.name: MONDAY + _since_monday(made[c.name]) for c in schema.columns if c.kind == "timestamp"}
    table = pa.Table.from_pandas(made.assign(**times), preserve_index=False)
    bare = replace(schema, record_id=None, label=None, anomalous=(), ignore=())
    return check(table, bare, first_row=0, file="generated")


def _since_monday(times: pd.Series) -> pd.Series:
    parts = times.str.extract(r"(?P<day>\w+) (?P<time>.*)")
    days = parts["day"].map({day: i for i, day in enumerate(WEEKDAYS)})
    return pd.to_timedelta(days, unit="D") + pd.to_timedelta(parts["time"] + ":00")


def blanked(x: np.ndarray, pattern: np.ndarray) -> np.ndarray:
    """``x`` with NaN where ``pattern`` has it."""
    return np.where(np.isnan(pattern), np.nan, x)


def shuffled(x: np.ndarray, seed: int) -> np.ndarray:
    """Each column in an order of its own."""
    return np.random.default_rng(seed).permuted(x, axis=0)


def uniform(x: np.ndarray, seed: int) -> np.ndarray:
    """Even values between the least and the greatest of each column; missing cells stay missing."""
    low, high = (np.nan_to_num(extreme(x, axis=0)) for extreme in (np.fmin.reduce, np.fmax.reduce))
    return blanked(np.random.default_rng(seed).uniform(low, high, x.shape), x)


Candidates = Callable[[Halves, int], tuple[np.ndarray, float]]
METHODS: dict[str, Candidates] = {
    "generated": generated,
    "real": lambda parts, seed: (parts.matrix(parts.fitted), 0.0),
    "shuffled": lambda parts, seed: (shuffled(parts.matrix(parts.fitted), seed), 0.0),
    "uniform": lambda parts, seed: (uniform(parts.matrix(parts.fitted), seed), 0.0),
}


def measured(read: Callable[[], tuple[Records, Schema]], data: str, seed: int, method: str) -> Measured:
    """The two-sample test of one method; ``score_seconds`` are those of the test."""
    parts = halves(*read(), seed)
    candidates, seconds = METHODS[method](parts, seed)
    start = time.process_time()
    found = told_apart(parts.matrix(parts.held_out), candidates, seed, images=parts.schema.modality == "image")
    return Measured(data, seed, method, *found, seconds, time.process_time() - start)


def tasks(
    data: Mapping[str, Callable[[], tuple[Records, Schema]]], methods: Sequence[str], seeds: Sequence[int]
) -> list[Task]:
    """All ``methods`` on all ``data`` with all seeds."""
    return [
        Task(name, seed, method, partial(measured, read, name, seed, method))
        for seed in seeds
        for name, read in data.items()
        for method in methods
    ]


def tables() -> dict[str, Callable[[], tuple[Records, Schema]]]:
    """The normal records of the sample tables."""
    return {name: partial(_table, name) for name in TABLES}


def _table(name: str) -> tuple[Records, Schema]:
    with tempfile.TemporaryDirectory() as folder:
        WRITERS[name](Path(folder))
        ws = Workspace.open(folder)
        return normal_records(read_training(ws).records), ws.schema


def images(digits: Digits, classes: Sequence[int]) -> dict[str, Callable[[], tuple[Records, Schema]]]:
    """The images of each of ``classes``."""
    return {f"digit {k}": partial(from_images, digits.images[digits.labels == k]) for k in classes}
