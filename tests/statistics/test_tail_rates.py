"""Simulations of thresholds that are extrapolated: which false-alarm rates really come, over fresh calibrations.

Nothing is promised of them: this is the measurement that ``docs/thresholds.md`` states, and the limits it supports.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import pytest
import scipy.stats

from vae_anomaly import tail
from vae_anomaly.errors import ConfigError
from vae_anomaly.thresholds import Threshold, pot


class Law(Protocol):
    def rvs(self, size: int, random_state: np.random.Generator) -> np.ndarray: ...

    def sf(self, x: np.ndarray) -> np.ndarray: ...


class Mixture(NamedTuple):
    """Normal scores of which a share is of another kind, six standard deviations out."""

    share: float

    def rvs(self, size: int, random_state: np.random.Generator) -> np.ndarray:
        return random_state.normal(size=size) + 6 * (random_state.random(size) < self.share)

    def sf(self, x: np.ndarray) -> np.ndarray:
        return (1 - self.share) * scipy.stats.norm.sf(x) + self.share * scipy.stats.norm.sf(x - 6)


SMOOTH: dict[str, Law] = {
    "exponential": scipy.stats.expon(),
    "normal": scipy.stats.norm(),
    "lognormal": scipy.stats.lognorm(1.0),
    "chi-squared, 10 degrees": scipy.stats.chi2(10),
    "Weibull, shape 0.5": scipy.stats.weibull_min(0.5),
    "Student t, 4 degrees": scipy.stats.t(4),
    "bounded, beta(2, 3)": scipy.stats.beta(2, 3),
}
OTHERS: dict[str, Law] = {
    "Student t, 2 degrees": scipy.stats.t(2),
    "normal, 0.2 % at 6": Mixture(0.002),
    "normal, 1 % at 6": Mixture(0.01),
}
CALIBRATIONS = 1000


class Found(NamedTuple):
    """Over calibrations, by the rate that was asked for: the true rates, those that are expected and the ranges."""

    rates: np.ndarray
    expected: np.ndarray
    low: np.ndarray
    high: np.ndarray
    thresholds: list[Threshold]
    refused: int

    @property
    def above(self) -> float:
        """The share of calibrations whose true rate is above the range that they state."""
        return float(np.mean(self.rates > self.high))

    @property
    def below(self) -> float:
        return float(np.mean(self.rates < self.low))


def extrapolations(law: Law, n: int, times: float, calibrations: int = CALIBRATIONS) -> Found:
    """Thresholds for a rate so many times below 1 / (n + 1)."""
    g, alpha, made = np.random.default_rng(20260112), 1 / (times * (n + 1)), []
    for _ in range(calibrations):
        try:
            made.append(pot(law.rvs(size=n, random_state=g), alpha=alpha))
        except ConfigError:
            continue
    rates = law.sf(np.array([one.value for one in made])) / alpha
    promises = [one.promise for one in made]
    said = np.array([(p.expected, p.low, p.high) for p in promises]).reshape(-1, 3).T / alpha
    return Found(rates, *said, made, calibrations - len(made))


def error(share: float, calibrations: int) -> float:
    return 3.29 * math.sqrt(share * (1 - share) / calibrations)


def row(found: Found) -> str:
    """What the documentation says of it."""
    low, high = np.quantile(found.rates, [0.025, 0.975])
    return (
        f"{found.rates.mean():.1f} | {low:.2f} to {high:.1f} | {100 * found.above:.0f} % | {100 * found.below:.0f} %"
        f" | {100 * found.refused / (found.refused + len(found.rates)):.0f} %"
    )


DOCUMENTATION = (Path(__file__).parents[2] / "docs" / "thresholds.md").read_text()


@pytest.mark.statistics
@pytest.mark.parametrize("times", [2, 10])
@pytest.mark.parametrize("name", [*SMOOTH, *OTHERS])
def test_the_rates_are_the_documented_ones(name: str, times: int) -> None:
    found = extrapolations({**SMOOTH, **OTHERS}[name], 1000, times)
    assert found.expected == pytest.approx(1.0, abs=1e-4)
    (said,) = re.findall(rf"^\| {re.escape(name)} \| {times} \| (.*) \|$", DOCUMENTATION, re.M)
    assert said == row(found)
    if name in SMOOTH:
        assert found.rates.mean() <= 2
        assert found.above <= 0.05 + error(0.05, CALIBRATIONS)
        assert found.refused <= 0.01 * CALIBRATIONS


@pytest.mark.statistics
@pytest.mark.parametrize(
    ("name", "n"), [*((name, n) for name in SMOOTH for n in (250, 10_000)), ("Student t, 4 degrees", 100_000)]
)
def test_so_it_is_with_other_numbers_of_records(name: str, n: int) -> None:
    found = extrapolations(SMOOTH[name], n, 10, 200)
    assert found.rates.mean() <= 2
    assert found.above <= 0.05 + error(0.05, 200)


@pytest.mark.statistics
@pytest.mark.parametrize("times", [2, 10])
@pytest.mark.parametrize("name", ["exponential", "lognormal", "Student t, 4 degrees"])
def test_normal_batches_have_no_more_flags_than_are_expected(name: str, times: int) -> None:
    """Over calibrations, each with a batch of its own of 2,000 records."""
    found, records = extrapolations(SMOOTH[name], 1000, times, 400), 2000
    alpha = found.thresholds[0].alpha
    flagged = np.random.default_rng(20260113).binomial(records, alpha * found.rates)
    p = np.array([made.batch_p_value(int(k), records) for made, k in zip(found.thresholds, flagged, strict=True)])
    assert np.mean(p <= 0.025) <= 0.05 + error(0.05, 400)
    assert np.mean(p <= 0.001) <= 0.01 + error(0.01, 400)
    over = [k > made.false_alarms(records)[2] for made, k in zip(found.thresholds[:50], flagged, strict=False)]
    assert np.mean(over) <= 0.05 + error(0.05, 50)


# ---------------------------------------------------------------- what would be wrong is seen


def certain(monkeypatch: pytest.MonkeyPatch) -> None:
    """The most likely tail and no other: then the range is that of a beta distribution, as if the rest were exact."""
    every = tail._posterior

    def likeliest(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scales, chances = every(x)
        return scales, (chances == chances.max()).astype(float)

    monkeypatch.setattr(tail, "_posterior", likeliest)


def too_low(monkeypatch: pytest.MonkeyPatch) -> None:
    """What half of the scores say."""
    monkeypatch.setattr(tail, "_highest", lambda n: n // 2)


def exponential(monkeypatch: pytest.MonkeyPatch) -> None:
    """No shape but that of the exponential distribution."""
    monkeypatch.setattr(tail, "_PRIOR", np.where(np.abs(tail._SHAPES - 0.025) < 0.01, 0.0, -np.inf))


@pytest.mark.statistics
@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        (certain, "lognormal"),
        (certain, "Student t, 4 degrees"),
        (too_low, "Student t, 4 degrees"),
        (too_low, "normal"),
        (exponential, "lognormal"),
        (exponential, "Student t, 4 degrees"),
    ],
)
def test_a_range_that_is_too_narrow_is_seen(wrong, name, monkeypatch) -> None:
    wrong(monkeypatch)
    found = extrapolations(SMOOTH[name], 1000, 10, 200)
    assert found.above > 0.05 + error(0.05, 200)


@pytest.mark.statistics
def test_farther_out_than_is_allowed_hardly_anything_is_flagged(monkeypatch: pytest.MonkeyPatch) -> None:
    law = SMOOTH["chi-squared, 10 degrees"]
    assert np.median(extrapolations(law, 1000, 10, 200).rates) > 0.05
    with pytest.raises(ConfigError, match="calibration records or more"):
        pot(np.arange(1000.0), alpha=1 / (100 * 1001))
    monkeypatch.setattr("vae_anomaly.thresholds.FARTHEST", 100)
    assert np.median(extrapolations(law, 1000, 100, 200).rates) < 0.01
