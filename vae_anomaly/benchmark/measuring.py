"""One method on one split of one data set: what is measured, and in which order.

A method is a function of training data and a seed that returns a score, high = anomalous, of test data. What the data
are (images, lines, records, a matrix) is between a protocol and its methods.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Score = Callable[[Any], np.ndarray]
Method = Callable[[Any, int], Score]


@dataclass(frozen=True)
class Split:
    """Normal ``training`` data, and ``test`` data of which ``anomalous`` (B,) bool are anomalies."""

    training: Any
    test: Any
    anomalous: np.ndarray


@dataclass(frozen=True)
class Measured:
    """What a method reached on a data set with a seed: a line of the CSV file. Seconds are those of the processor."""

    data: str
    seed: int
    method: str
    auroc: float
    average_precision: float
    fit_seconds: float
    score_seconds: float


@dataclass(frozen=True)
class Task:
    """``run`` measures ``method`` on ``data`` with ``seed``; the three name it, and its line of the CSV file."""

    data: str
    seed: int
    method: str
    run: Callable[[], Measured]


def tasks(
    data: Mapping[str, Callable[[int], Split]], methods: Mapping[str, Method], seeds: Iterable[int]
) -> list[Task]:
    """All methods on all ``data``, each a function of the seed, with all seeds: seed by seed, data set by data set."""

    def task(name: str, seed: int, method: str) -> Task:
        return Task(name, seed, method, lambda: measured(data[name](seed), methods[method], name, seed, method))

    return [task(name, seed, method) for seed in seeds for name in data for method in methods]


def measured(split: Split, method: Method, data: str, seed: int, name: str) -> Measured:
    """Fit ``method`` to the training data of ``split`` and compare its scores with the labels."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    start = time.process_time()
    score = method(split.training, seed)
    fitted = time.process_time()
    scores = score(split.test)
    end = time.process_time()
    auroc = float(roc_auc_score(split.anomalous, scores))
    precision = float(average_precision_score(split.anomalous, scores))
    return Measured(data, seed, name, auroc, precision, fitted - start, end - fitted)


def run(todo: list[Task], progress: Callable[[str, int, int], None]) -> Iterator[Measured]:
    """The tasks one after another."""
    for done, task in enumerate(todo):
        progress(f"seed {task.seed}, {task.data}: {task.method}", done, len(todo))
        yield task.run()
