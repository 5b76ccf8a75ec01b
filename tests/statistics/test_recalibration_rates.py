"""Simulations of what is promised after a new calibration: fresh streams of records that have drifted, each of which
calibrates the same detector anew and is followed by a batch of its own; seeds are fixed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.stats

from vae_anomaly import recalibration
from vae_anomaly.batch import Records
from vae_anomaly.detector import Detector, Part
from vae_anomaly.recalibration import Recalibration
from vae_anomaly.thresholds import allowed_exceedances

STREAMS, N, M, ALPHA = 600, 199, 200, 0.05
Stream = Callable[[int], tuple[Records, np.ndarray]]
NONE = np.zeros(0, np.uint64)


@pytest.fixture(scope="module")
def detector(fitted: Callable[..., Any]) -> Detector:
    found: Detector = fitted("negative_elbo").detector
    return found


@pytest.fixture(scope="module")
def stream(detector: Detector, make_records: Callable[..., Any]) -> Stream:
    """``stream(i)``: the i-th records to calibrate on, and the scores of a batch that follows; amounts have risen."""
    records = make_records(40_000, 78)
    records = replace(records, values={**records.values, "amount": 1.4 * records.values["amount"]})
    scores = detector.detect(records).score

    def draw(i: int) -> tuple[Records, np.ndarray]:
        rows = np.random.default_rng(i).permutation(len(records))[: N + M]
        return records.take(rows[:N]), scores[rows[N:]]

    return draw


def alarms(detector: Detector, stream: Stream, *, copies: int = 1, streams: int = STREAMS) -> np.ndarray:
    """(streams,) false alarms in the batch of each stream, whose records come in so many ``copies``."""
    found = np.zeros(streams)
    for i in range(streams):
        records, following = stream(i)
        made = Recalibration(detector, Part("conformal", {"alpha": ALPHA}), copies * N, anomalies=NONE, trained=NONE)
        made.add(records.take(np.tile(np.arange(N), copies)))
        found[i] = made.detector_now().threshold.flag(following).sum()
    return found


def law(n: int = N) -> Any:
    b = allowed_exceedances(ALPHA, n)
    return scipy.stats.betabinom(M, b, n + 1 - b)


def deviations(found: np.ndarray) -> float:
    """Standard errors between the mean number of false alarms and the promised one."""
    return float((found.mean() - law().mean()) / (law().std() / math.sqrt(len(found))))


def outside(found: np.ndarray, n: int = N) -> float:
    """Share of batches whose number of false alarms lies outside of the stated 95 % range."""
    low, high = law(n).ppf([0.025, 0.975])
    return float(np.mean((found < low) | (found > high)))


def most(share: float, streams: int = STREAMS) -> float:
    """The largest share that a true one gives but for one time in two thousand."""
    return share + 3.29 * math.sqrt(share * (1 - share) / streams)


@pytest.mark.statistics
@pytest.mark.parametrize("copies", [1, 2])
def test_after_a_new_calibration_false_alarms_are_the_promised_ones(
    detector: Detector, stream: Stream, copies: int
) -> None:
    before = np.array([detector.threshold.flag(stream(i)[1]).mean() for i in range(STREAMS)])
    assert before.mean() > 1.5 * ALPHA  # there is something to calibrate anew
    found = alarms(detector, stream, copies=copies)
    assert abs(deviations(found)) < 3.29
    assert outside(found) <= most(0.05)


@pytest.mark.statistics
def test_flagged_records_that_are_left_out_are_seen(
    detector: Detector, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = Recalibration._count

    def trimmed(self: Recalibration, records: Records, content: np.ndarray) -> None:
        kept = np.flatnonzero(~detector.detect(records).is_anomaly)
        count(self, records.take(kept), content[kept])

    monkeypatch.setattr(Recalibration, "_count", trimmed)
    assert deviations(alarms(detector, stream, streams=100)) > 10


@pytest.mark.statistics
def test_copies_that_count_as_records_are_seen(
    detector: Detector, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = itertools.count()
    unlike = np.frompyfunc(lambda _: next(numbers), 1, 1)
    monkeypatch.setattr(recalibration, "content_hash", lambda records: unlike(records.status).astype(np.uint64))
    found = alarms(detector, stream, copies=8, streams=300)
    assert outside(found, 8 * N) > most(0.05, 300)
