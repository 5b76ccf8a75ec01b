"""Tables with labelled anomalies, as ADBench has them: our default detector beside those that people use.

A set is a file ``NAME.npz`` with ``X`` (N, F) numbers and ``y`` (N,), 1 = anomaly. Three protocols make the splits:

* ``clean``: a seeded half of the normal records trains, the other half and all anomalies are scored; sets of more than
  50,000 records are subsampled to that many;
* ``published``: that of Livernoche et al., to lay their table beside ours: sets under 1,000 records are drawn with
  replacement to 1,000 before the split, so that some records are trained on *and* scored, and the first half of the
  normal records in the order of the file trains;
* ``unsupervised``: all records train, anomalies too, and are scored, none of them as its own neighbour.

``contamination`` puts anomalies among the training records of ``clean``: that share of them, as far as half of the
set's anomalies go; they are not scored.

Our detector gets the matrix as it is; the others get it standardised by the training records' mean and deviation.

References: Han et al., ADBench, NeurIPS 2022, arXiv 2206.09426; Livernoche et al., On diffusion modeling for anomaly
detection, ICLR 2024, arXiv 2305.18593.
"""

from __future__ import annotations

import csv
import importlib
import importlib.util
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vae_anomaly.benchmark.measuring import UNREADABLE, Deciding, Method, Split
from vae_anomaly.errors import ConfigError
from vae_anomaly.estimator import VAEDetector
from vae_anomaly.registry import lookup
from vae_anomaly.thresholds import allowed_exceedances, conformal

EXPECTED = "--data must be a folder with files NAME.npz that hold X (N, F) numbers and y (N,) of 0 and 1, 32 or more 0."
FEWEST, FEW, MANY = 32, 1_000, 50_000
NEIGHBOURS, LOCAL, TREES = 5, 20, 100
LARGEST = 1e300


class Labelled(NamedTuple):
    """``X`` (N, F) float64 and ``anomalous`` (N,) bool."""

    X: np.ndarray
    anomalous: np.ndarray

    def take(self, index: np.ndarray) -> Labelled:
        """The records at ``index``."""
        return Labelled(self.X[index], self.anomalous[index])


def read(path: Path) -> Labelled:
    """The set in a file.

    Raises
    ------
    ConfigError
        The file holds something else.
    """
    try:
        with np.load(path) as file:
            X, y = np.asarray(file["X"], np.float64), np.asarray(file["y"], np.float64)
    except UNREADABLE as error:
        raise ConfigError(f"{EXPECTED} Got {str(path)!r}, which is none ({type(error).__name__}).") from error
    if X.ndim != 2 or y.shape != X.shape[:1] or set(np.unique(y)) != {0.0, 1.0} or not np.isfinite(X).all():
        problem = f"X {X.shape} and y {y.shape} of {np.unique(y)[:5].tolist()}"
        raise ConfigError(f"{EXPECTED} Got {problem} in {str(path)!r}, or numbers that are not finite.")
    if not X.shape[1] or (y == 0).sum() < FEWEST:
        raise ConfigError(f"{EXPECTED} Got {(y == 0).sum()} normal records of {X.shape[1]} numbers in {str(path)!r}.")
    return Labelled(X, y == 1)


def files(folder: Path, chosen: Sequence[str] | None = None) -> dict[str, Path]:
    """The sets of a folder by name, without the number that ADBench puts before it, in lower case.

    Raises
    ------
    ConfigError
        There is no such folder or set, or the folder holds none.
    """
    if not folder.is_dir():
        raise ConfigError(f"{EXPECTED} Got {str(folder)!r}, which is no folder.")
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.npz")):
        if (before := found.setdefault(re.sub(r"^\d+_", "", path.stem).lower(), path)) is not path:
            raise ConfigError(f"{EXPECTED} Got {before.name!r} and {path.name!r}, which have the same name.")
    if not found:
        raise ConfigError(f"{EXPECTED} Got {str(folder)!r} without one.")
    return {name: lookup("--sets", found, name) for name in chosen or sorted(found)}


def clean(path: Path, contamination: float, seed: int) -> Split:
    """A seeded half of the normal records trains, with ``contamination`` of anomalies among the training records."""
    random = np.random.default_rng(seed)
    data = read(path)
    if len(data.X) > MANY:
        data = data.take(random.choice(len(data.X), MANY, replace=False))
    normal, anomalies = (random.permutation(np.flatnonzero(data.anomalous == kind)) for kind in (False, True))
    half = round(0.5 * len(normal))
    mixed = min(round(contamination / (1.0 - contamination) * half), len(anomalies) // 2)
    training = random.permutation(np.concatenate([normal[:half], anomalies[:mixed]]))
    test = data.take(np.concatenate([normal[half:], anomalies[mixed:]]))
    return Split(data.X[training], test.X, test.anomalous)


def published(path: Path, seed: int) -> Split:
    """The split of the published table, with its generator: the first half of the normal records trains."""
    data = _drawn(read(path), seed)
    normal = np.flatnonzero(~data.anomalous)
    half = round(0.5 * len(normal))
    test = data.take(np.concatenate([normal[half:], np.flatnonzero(data.anomalous)]))
    return Split(data.X[normal[:half]], test.X, test.anomalous)


def unsupervised(path: Path, seed: int) -> Split:
    """All records train and are scored: the test data are the training data themselves."""
    data = _drawn(read(path), seed)
    return Split(data.X, data.X, data.anomalous)


def _drawn(data: Labelled, seed: int) -> Labelled:
    random, count = np.random.RandomState(seed), len(data.X)
    if count < FEW:
        return data.take(random.choice(count, FEW, replace=True))
    return data.take(random.choice(count, MANY, replace=False)) if count > MANY else data


def data(paths: Mapping[str, Path], protocol: str, contamination: float) -> dict[str, Callable[[int], Split]]:
    """The splits of the sets in ``paths``, each a function of the seed.

    Raises
    ------
    ConfigError
        There is no such protocol, a contamination that is not for it or no share below a half, or a file is none.
    """
    split = lookup("--protocol", PROTOCOLS, protocol)
    if not 0 <= contamination < 0.5 or (contamination and protocol != "clean"):
        raise ConfigError(
            "--contamination must be at least 0 and less than 0.5, and 0 but for the clean protocol."
            f" Got {contamination!r} and {protocol!r}."
        )
    for path in paths.values():
        read(path)
    given = (contamination,) if protocol == "clean" else ()
    return {name: partial(split, path, *given) for name, path in paths.items()}


PROTOCOLS: dict[str, Callable[..., Split]] = {"clean": clean, "published": published, "unsupervised": unsupervised}


# ---------------------------------------------------------------- methods


def ours(training: np.ndarray, seed: int, /, **options: Any) -> Deciding:
    """Our detector with its defaults, on the numbers as they are."""
    fitted = VAEDetector(random_state=seed, **options).fit(training)
    threshold = fitted.detector_.threshold

    def cut(alpha: float) -> float:
        few = not allowed_exceedances(alpha, len(threshold.calibration))
        return np.inf if few else conformal(threshold.calibration, alpha=alpha).value

    return Deciding(fitted.anomaly_score, cut, lambda: fitted.left_out_score(training))


def ours_robust(training: np.ndarray, seed: int, /) -> Deciding:
    """Our detector that holds a tenth of the training records to be anomalies."""
    return ours(training, seed, training={"contamination_robust": 0.1})


class Peer(NamedTuple):
    """A detector of ``training`` (M, F) and a seed: the scores of the training records, and a score of others."""

    training: np.ndarray
    score: Callable[[np.ndarray], np.ndarray]


def peer(build: Callable[[np.ndarray, int], Peer], training: np.ndarray, seed: int) -> Deciding:
    """A peer on standardised numbers; its usual threshold is the quantile of the scores of the training records."""
    center, scale = training.mean(0), training.std(0)
    scale[scale == 0] = 1.0
    # some peers divide by zero where a column or a component never varies
    with np.errstate(all="ignore"):
        made = build((training - center) / scale, seed)
    known = _finite(made.training)

    def score(test: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return _finite(made.score((test - center) / scale))

    return Deciding(score, lambda alpha: float(np.quantile(known, 1.0 - alpha)), lambda: known)


def _finite(scores: np.ndarray) -> np.ndarray:
    """``scores`` with what is no number, or infinite, as the highest."""
    return np.nan_to_num(np.asarray(scores, np.float64), nan=LARGEST, posinf=LARGEST, neginf=-LARGEST)


def _knn(x: np.ndarray, seed: int) -> Peer:
    from sklearn.neighbors import NearestNeighbors

    near = NearestNeighbors(n_neighbors=NEIGHBOURS).fit(x)
    # without an argument a record is no neighbour of its own
    return Peer(near.kneighbors()[0].mean(1), lambda test: np.asarray(near.kneighbors(test)[0].mean(1)))


def _iforest(x: np.ndarray, seed: int) -> Peer:
    from sklearn.ensemble import IsolationForest

    forest = IsolationForest(n_estimators=TREES, random_state=seed).fit(x)
    return Peer(-forest.score_samples(x), lambda test: -np.asarray(forest.score_samples(test)))


def _lof(x: np.ndarray, seed: int) -> Peer:
    from sklearn.neighbors import LocalOutlierFactor

    factor = LocalOutlierFactor(n_neighbors=min(LOCAL, len(x) - 1), novelty=True).fit(x)
    return Peer(-factor.negative_outlier_factor_, lambda test: -np.asarray(factor.score_samples(test)))


def _ocsvm(x: np.ndarray, seed: int) -> Peer:
    from sklearn.svm import OneClassSVM

    machine = OneClassSVM().fit(x)
    return Peer(-machine.score_samples(x), lambda test: -np.asarray(machine.score_samples(test)))


def _pyod(module: str, name: str, x: np.ndarray, seed: int, **options: Any) -> Peer:
    model = getattr(importlib.import_module(f"pyod.models.{module}"), name)(**options)
    model.fit(x)
    return Peer(model.decision_scores_, lambda test: np.asarray(model.decision_function(test)))


def _pca(x: np.ndarray, seed: int) -> Peer:
    return _pyod("pca", "PCA", x, seed, random_state=seed)


def _ecod(x: np.ndarray, seed: int) -> Peer:
    return _pyod("ecod", "ECOD", x, seed)


def _pyod_vae(x: np.ndarray, seed: int) -> Peer:
    return _pyod("vae", "VAE", x, seed, random_state=seed, verbose=0, preprocessing=False)


OF_PYOD = ("pca", "pyod_vae", "ecod")
METHODS: dict[str, Method] = {
    "ours": ours,
    "ours_robust": ours_robust,
    "knn": partial(peer, _knn),
    "iforest": partial(peer, _iforest),
    "lof": partial(peer, _lof),
    "ocsvm": partial(peer, _ocsvm),
    "pca": partial(peer, _pca),
    "pyod_vae": partial(peer, _pyod_vae),
    "ecod": partial(peer, _ecod),
}


def require_peers(chosen: Iterable[str]) -> None:
    """Raise :class:`ConfigError` where a chosen method needs PyOD and it is not installed."""
    missing = [name for name in chosen if name in OF_PYOD]
    if missing and importlib.util.find_spec("pyod") is None:
        raise ConfigError(
            f"--methods must be installed. Got {missing} without PyOD. Install the extra `bench`, or leave them out."
        )


# ---------------------------------------------------------------- the published table


def read_published(path: Path) -> dict[str, dict[str, float]]:
    """Published AUROC by detector and set, as shares, from a table with a column ``dataset`` and percentages.

    Raises
    ------
    ConfigError
        The file is no such table.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        names = [name for name in rows[0] if name != "dataset"]
        return {name: {row["dataset"].lower(): float(row[name]) / 100.0 for row in rows} for name in names}
    except (OSError, UnicodeDecodeError, ValueError, KeyError, IndexError, TypeError) as error:
        expected = "--published must be a CSV file with a column dataset and a column of percentages for each detector."
        raise ConfigError(f"{expected} Got {str(path)!r} ({type(error).__name__}).") from error
