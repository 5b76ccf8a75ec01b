"""One-class digits: one digit is normal, the nine others are anomalies.

80 % of a digit's images train; its other 20 % and as many images of each other digit are scored, all drawn by the seed.
``elbo`` and ``bernoulli`` show what the score and the likelihood of our detector are worth: the same model scored by
the negative ELBO, and that with Bernoulli pixels.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vae_anomaly.benchmark.measuring import UNREADABLE, Method, Split
from vae_anomaly.benchmark.methods import RECIPE, isolation_forest, knn, ours, pca
from vae_anomaly.detector import Part
from vae_anomaly.errors import ConfigError
from vae_anomaly.estimator import from_images

TRAINING_SHARE, FEWEST = 0.8, 20
EXPECTED = (
    "data must be an .npz file with the arrays images (N, H, W) uint8 and labels (N,), or a folder with MNIST's own"
    " train-images-idx3-ubyte and train-labels-idx1-ubyte, with or without .gz."
)


class Digits(NamedTuple):
    """``images`` (N, H, W) uint8 and their ``labels`` (N,)."""

    images: np.ndarray
    labels: np.ndarray


def read(path: Path) -> Digits:
    """The images of a file or folder.

    Raises
    ------
    ConfigError
        There is no such file, or it holds something else.
    """
    if not path.exists():
        raise ConfigError(f"{EXPECTED} Got {str(path)!r}, which does not exist.")
    try:
        digits = _folder(path) if path.is_dir() else _npz(path)
    except UNREADABLE as error:
        raise ConfigError(f"{EXPECTED} Got {str(path)!r}, which is none ({type(error).__name__}).") from error
    images, labels = digits
    if images.ndim != 3 or images.dtype != np.uint8 or labels.shape != images.shape[:1]:
        got = f"images {images.shape} {images.dtype} and labels {labels.shape}"
        raise ConfigError(f"{EXPECTED} Got {got} in {str(path)!r}.")
    return digits


def _npz(path: Path) -> Digits:
    with np.load(path) as file:
        return Digits(file["images"], file["labels"])


def _folder(path: Path) -> Digits:
    return Digits(*(_idx(path / f"train-{name}-ubyte") for name in ("images-idx3", "labels-idx1")))


def _idx(path: Path) -> np.ndarray:
    """An IDX file of bytes: two zeros, 8, the number of dimensions, and these as 32 bits, the largest byte first."""
    content = path.read_bytes() if path.exists() else gzip.decompress(path.with_name(f"{path.name}.gz").read_bytes())
    if content[:3] != b"\0\0\x08":
        raise ValueError("not an IDX file of bytes")
    sizes = np.frombuffer(content, ">u4", content[3], 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(sizes)


def data(digits: Digits, normal: Sequence[int]) -> dict[str, Callable[[int], Split]]:
    """The splits with each of ``normal`` in turn as the normal digit.

    Raises
    ------
    ConfigError
        There are fewer than ``FEWEST`` images of a digit, or only of one.
    """
    found, counts = np.unique(digits.labels, return_counts=True)
    there = dict(zip(found.tolist(), counts.tolist(), strict=True))
    for digit in normal:
        if there.get(digit, 0) < FEWEST or len(there) < 2:
            raise ConfigError(
                f"digits must be among the labels, with at least {FEWEST} images and beside another digit."
                f" Got {digit} and {there.get(digit, 0)} images of it; the labels are {list(there)}."
            )
    return {str(digit): partial(split, digits, digit) for digit in normal}


def split(digits: Digits, normal: int, seed: int) -> Split:
    """The split of the protocol with ``normal`` as the normal digit."""
    images, labels = digits
    random = np.random.default_rng(seed)
    own = random.permutation(np.flatnonzero(labels == normal))
    kept = round(TRAINING_SHARE * len(own))
    held_out = len(own) - kept
    others = [random.permutation(np.flatnonzero(labels == k))[:held_out] for k in np.unique(labels) if k != normal]
    tested = np.concatenate([own[kept:], *others])
    return Split(images[own[:kept]], images[tested], labels[tested] != normal)


def pixels(images: np.ndarray) -> np.ndarray:
    """(B, H * W) grey levels in [0, 1]."""
    matrix: np.ndarray = images.reshape(len(images), -1) / 255.0
    return matrix


ELBO = replace(RECIPE, score=Part("negative_elbo"))
METHODS: dict[str, Method] = {
    "ours": ours(from_images),
    "elbo": ours(from_images, ELBO),
    "bernoulli": ours(from_images, replace(ELBO, model=Part("conv", {"likelihood": "bernoulli"}))),
    "knn": knn(pixels),
    "pca": pca(pixels),
    "iforest": isolation_forest(pixels),
}
