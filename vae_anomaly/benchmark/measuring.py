"""One method on one split of one data set: what is measured, and in which order.

A method is a function of training data and a seed that returns a score, high = anomalous, of test data. What the data
are (images, lines, records, a matrix) is between a protocol and its methods. A score that also says where it cuts
(:class:`Deciding`) is measured by its decisions too.
"""

from __future__ import annotations

import signal
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import active_children, get_context
from typing import Any

import numpy as np

from vae_anomaly.errors import ConfigError, VaeAnomalyError

Score = Callable[[Any], np.ndarray]
Method = Callable[[Any, int], Score]
ALPHAS = (0.01, 0.05)
# what reading a file of arrays may raise
UNREADABLE = (OSError, EOFError, TypeError, ValueError, KeyError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Deciding:
    """A score with its method's usual threshold: what scores higher than ``threshold(alpha)`` is flagged.

    The threshold is infinite where the method has too few records to promise ``alpha``. ``training`` gives the scores
    of the training records, in their order, as each would have it if it were not its own neighbour.
    """

    score: Score
    threshold: Callable[[float], float]
    training: Callable[[], np.ndarray]

    def __call__(self, test: Any) -> np.ndarray:
        """The score of ``test``."""
        return self.score(test)


@dataclass(frozen=True)
class Split:
    """Normal ``training`` data, and ``test`` data of which ``anomalous`` (B,) bool are anomalies."""

    training: Any
    test: Any
    anomalous: np.ndarray


@dataclass(frozen=True)
class Measured:
    """What a method reached on a data set with a seed: a line of the CSV file. Seconds are those of the processor.

    ``protocol`` is how the data were divided, where a command has several ways.

    At a false-alarm rate of 1 % and of 5 % that was asked for: the share of the normal records that was flagged, and of
    the anomalies; None where the method does not decide, or cannot promise that rate.
    """

    data: str
    seed: int
    method: str
    auroc: float
    average_precision: float
    fit_seconds: float
    score_seconds: float
    false_alarms_1: float | None = None
    recall_1: float | None = None
    false_alarms_5: float | None = None
    recall_5: float | None = None
    protocol: str = field(default="", kw_only=True)

    @property
    def key(self) -> tuple[str, str, int, str]:
        """What was measured."""
        return self.protocol, self.data, self.seed, self.method


@dataclass(frozen=True)
class Task:
    """``run`` measures ``method`` on ``data`` with ``seed``; these and the protocol name it."""

    data: str
    seed: int
    method: str
    run: Callable[[], Measured]
    protocol: str = ""

    @property
    def key(self) -> tuple[str, str, int, str]:
        """That of what it measures."""
        return self.protocol, self.data, self.seed, self.method


def tasks(
    data: Mapping[str, Callable[[int], Split]],
    methods: Mapping[str, Method],
    seeds: Iterable[int],
    protocol: str = "",
) -> list[Task]:
    """All methods on all ``data``, each a function of the seed, with all seeds: seed by seed, data set by data set."""
    return [
        Task(name, seed, called, partial(_measured, data[name], method, name, seed, called, protocol), protocol)
        for seed in seeds
        for name in data
        for called, method in methods.items()
    ]


def _measured(
    split: Callable[[int], Split], method: Method, data: str, seed: int, name: str, protocol: str
) -> Measured:
    try:
        return replace(measured(split(seed), method, data, seed, name), protocol=protocol)
    except (VaeAnomalyError, ValueError, ArithmeticError, LookupError) as error:
        said = error if isinstance(error, VaeAnomalyError) else f"{type(error).__name__}: {error}"
        raise ConfigError(
            f"{name!r} must be able to learn from {data!r} (seed {seed}). Got: {said} Leave one of the two out."
        ) from error


def measured(split: Split, method: Method, data: str, seed: int, name: str) -> Measured:
    """Fit ``method`` to the training data of ``split`` and compare its scores with the labels."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    start = time.process_time()
    score = method(split.training, seed)
    fitted = time.process_time()
    scores = score.training() if isinstance(score, Deciding) and split.test is split.training else score(split.test)
    end = time.process_time()
    auroc = float(roc_auc_score(split.anomalous, scores))
    precision = float(average_precision_score(split.anomalous, scores))
    decided = [rate for alpha in ALPHAS for rate in _decisions(score, scores, split.anomalous, alpha)]
    return Measured(data, seed, name, auroc, precision, fitted - start, end - fitted, *decided)


def _decisions(
    score: Score, scores: np.ndarray, anomalous: np.ndarray, alpha: float
) -> tuple[float | None, float | None]:
    """Shares of the normal records and of the anomalies that are flagged."""
    cut = score.threshold(alpha) if isinstance(score, Deciding) else np.inf
    if cut == np.inf:
        return None, None
    flagged = scores > cut
    return float(flagged[~anomalous].mean()), float(flagged[anomalous].mean())


def run(todo: list[Task], progress: Callable[[str, int, int], None], jobs: int = 1) -> Iterator[Measured]:
    """What the tasks measure: one after another, or as they come from ``jobs`` processes."""
    if jobs == 1:
        for done, task in enumerate(todo):
            progress(_name(task), done, len(todo))
            yield task.run()
        return
    # spawned: a forked process would share the state of libraries that have threads
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        with _ignoring_interrupts():
            running = {pool.submit(task.run): task for task in todo}
        try:
            for done, future in enumerate(as_completed(running)):
                yield future.result()
                progress(_name(running[future]), done + 1, len(todo))
        except BaseException:
            for process in active_children():
                process.terminate()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    """Processes started here ignore Ctrl-C for good: this one ends them."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _name(task: Task) -> str:
    return f"seed {task.seed}, {task.data}: {task.method}"
