"""Simulations of what the decisions of a whole batch promise, each over fresh calibrations, with fixed seeds."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import scipy.stats

from vae_anomaly.explain import score_shift
from vae_anomaly.thresholds import (
    Threshold,
    allowed_exceedances,
    at_least,
    batch_p_value,
    calibrated,
    false_alarms,
    fdr,
)

BATCHES = 4000
Draw = Callable[[np.random.Generator, int], np.ndarray]
LAWS: dict[str, Draw] = {
    "normal": lambda g, n: g.normal(size=n),
    "lognormal": lambda g, n: g.lognormal(size=n),
    "counts": lambda g, n: g.poisson(2.0, size=n).astype(float),
}
Rule = Callable[[Threshold, np.ndarray], np.ndarray]


def decided(threshold: Threshold, scores: np.ndarray) -> np.ndarray:
    return threshold.for_batch(threshold.counts(scores)).flag(scores)


def without_the_place(threshold: Threshold, scores: np.ndarray) -> np.ndarray:
    """Every p-value compared with q, whatever its place among the others."""
    return threshold.p_value(scores) <= threshold.discovery_rate


def without_the_one(threshold: Threshold, scores: np.ndarray) -> np.ndarray:
    """Benjamini and Hochberg with shares of calibration records for p-values: 0 for what exceeds all of them."""
    n, m = len(threshold.calibration), len(scores)
    p = (threshold.p_value(scores) * (n + 1) - 1) / n
    reached = np.flatnonzero(np.sort(p) <= (threshold.discovery_rate or 0) * np.arange(1, m + 1) / m)
    return p <= np.sort(p)[reached[-1]] if reached.size else np.zeros(m, bool)


def false_discoveries(rule: Rule, draw: Draw, planted: int, *, n: int, m: int, q: float) -> np.ndarray:
    """(BATCHES,) the share of false alarms among what is flagged of m records, the first of them far out."""
    g, found = np.random.default_rng(20260107), np.zeros(BATCHES)
    for i in range(BATCHES):
        threshold, scores = fdr(draw(g, n), q=q), draw(g, m)
        scores[:planted] += 1e3
        flagged = rule(threshold, scores)
        found[i] = flagged[planted:].sum() / max(1, flagged.sum())
    return found


def error(shares: np.ndarray) -> float:
    return 3.29 * float(shares.std()) / math.sqrt(len(shares))


@pytest.mark.statistics
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("planted", [0, 1, 10])
def test_of_what_is_flagged_no_more_are_false_alarms_than_promised(law: str, planted: int) -> None:
    shares = false_discoveries(decided, LAWS[law], planted, n=999, m=100, q=0.1)
    promised = 0.1 * (100 - planted) / 100
    assert shares.mean() <= promised + error(shares)
    if law != "counts":  # q (n + 1) / m is a whole number: without ties it is exact
        assert shares.mean() >= promised - error(shares)


@pytest.mark.statistics
@pytest.mark.parametrize(("n", "m", "q"), [(250, 100, 0.1), (400, 1000, 0.2), (1000, 37, 0.3)])
def test_so_it_is_whatever_the_sizes(n: int, m: int, q: float) -> None:
    for planted in (0, 10):
        shares = false_discoveries(decided, LAWS["normal"], planted, n=n, m=m, q=q)
        assert shares.mean() <= q * (m - planted) / m + error(shares)


@pytest.mark.statistics
@pytest.mark.parametrize("wrong", [without_the_place, without_the_one])
@pytest.mark.parametrize("planted", [0, 1, 10])
def test_decisions_without_a_part_of_the_rule_are_seen(wrong: Rule, planted: int) -> None:
    shares = false_discoveries(wrong, LAWS["normal"], planted, n=99, m=100, q=0.1)
    assert shares.mean() > 0.1 * (100 - planted) / 100 + error(shares)


# ---------------------------------------------------------------- what a report says of a batch without anomalies


class Clean(NamedTuple):
    """A threshold before its batch, that for its batch, and the number that it flags of normal records."""

    before: Threshold
    after: Threshold
    flagged: int


def clean_batches(n: int, m: int, q: float) -> list[Clean]:
    g, found = np.random.default_rng(20260108), []
    for _ in range(BATCHES):
        before, scores = fdr(g.normal(size=n), q=q), g.normal(size=m)
        after = before.for_batch(before.counts(scores))
        found.append(Clean(before, after, int(after.flag(scores).sum())))
    return found


def excess(p_values: np.ndarray) -> float:
    """By how many standard errors a p-value comes more often than it says, at most; 0 for a valid one."""
    said = np.unique(p_values[p_values < 1])
    shares = np.array([np.mean(p_values <= p) for p in said])
    return float(np.max((shares - said) / np.sqrt(said * (1 - said) / len(p_values)), initial=0.0))


SIZES = [(999, 100, 0.1), (1000, 37, 0.3), (300, 250, 0.2), (2000, 500, 0.05)]


@pytest.mark.statistics
@pytest.mark.parametrize(("n", "m", "q"), SIZES)
def test_normal_batches_have_no_more_flags_than_their_reports_expect(n: int, m: int, q: float) -> None:
    batches = clean_batches(n, m, q)
    flagged = np.array([batch.flagged for batch in batches])
    expected, low, high = batches[0].after.false_alarms(m)
    assert flagged.mean() <= expected + error(flagged)
    assert flagged.mean() >= 0.4 * expected - error(flagged)  # and not far fewer
    assert low == 0
    assert np.mean(flagged > high) <= 0.025 + 3.29 * math.sqrt(0.025 * 0.975 / BATCHES)
    assert excess(np.array([batch.after.batch_p_value(batch.flagged, m) for batch in batches])) < 4


@pytest.mark.statistics
def test_the_chance_as_if_the_rank_had_been_chosen_before_is_seen() -> None:
    n, m, q = SIZES[1]
    p = [at_least(b.flagged, m, b.after.rank, n) if b.flagged else 1.0 for b in clean_batches(n, m, q)]
    assert excess(np.array(p)) > 5


@pytest.mark.statistics
@pytest.mark.parametrize("planted", [0, 1, 20])
def test_what_is_left_unflagged_is_called_shifted_as_seldom_as_stated(planted: int) -> None:
    g, level, found = np.random.default_rng(20260109), 0.05, 0
    for _ in range(BATCHES):
        threshold, scores = fdr(g.normal(size=300), q=0.2), g.normal(size=60)
        scores[:planted] += 1e3
        threshold = threshold.for_batch(threshold.counts(scores))
        normal = threshold.calibration[: 300 - threshold.rank]
        found += score_shift(normal, scores[~threshold.flag(scores)], level=level, least=0.0) is not None
    assert found / BATCHES <= level + 3.29 * math.sqrt(level * (1 - level) / BATCHES)


# ---------------------------------------------------------------- segments


SEGMENTS = {"narrow": (300, 400), "wide": (100, 150), "rare": (5, 10)}  # calibration records and records of a batch


def segment_scores(g: np.random.Generator, which: int) -> dict[str, np.ndarray]:
    """Normal scores of each segment, as many as ``SEGMENTS`` says; those of one are far wider than the others."""
    wide = {"narrow": 1.0, "wide": 2.5, "rare": 1.0}
    return {name: g.normal(scale=wide[name], size=sizes[which]) for name, sizes in SEGMENTS.items()}


def segment_alarms(parts_of: Callable[[Threshold], dict[str, Threshold]]) -> dict[str, np.ndarray]:
    """(BATCHES // 2,) false alarms in each segment, over fresh calibrations."""
    g, found = np.random.default_rng(20260110), {name: np.zeros(BATCHES // 2) for name in SEGMENTS}
    labels = np.array([name for name, sizes in SEGMENTS.items() for _ in range(sizes[0])], dtype=object)
    for i in range(BATCHES // 2):
        scores = np.concatenate(list(segment_scores(g, 0).values()))
        threshold = calibrated("mondrian", scores, {"by": "site", "alpha": 0.02}, labels)
        assert list(threshold.segments) == ["narrow", "wide"]
        decides = parts_of(threshold)
        for name, fresh in segment_scores(g, 1).items():
            found[name][i] = decides[name].flag(fresh).sum()
    return found


def own(threshold: Threshold) -> dict[str, Threshold]:
    return {name: threshold.segments.get(name, threshold.parts[0]) for name in SEGMENTS}


def pooled(threshold: Threshold) -> dict[str, Threshold]:
    return dict.fromkeys(SEGMENTS, threshold.parts[0])


def deviations(alarms: np.ndarray, n: int, m: int) -> float:
    """Standard errors between the mean number of false alarms and that of the beta-binomial law."""
    law = scipy.stats.betabinom(m, allowed_exceedances(0.02, n), n + 1 - allowed_exceedances(0.02, n))
    return float((alarms.mean() - law.mean()) / (law.std() / math.sqrt(len(alarms))))


@pytest.mark.statistics
def test_in_each_segment_the_false_alarms_are_the_promised_ones() -> None:
    alarms = segment_alarms(own)
    for name in ("narrow", "wide"):
        n, m = SEGMENTS[name]
        b = allowed_exceedances(0.02, n)
        assert abs(deviations(alarms[name], n, m)) < 3.29
        low, high = scipy.stats.betabinom.ppf([0.025, 0.975], m, b, n + 1 - b)
        outside = np.mean((alarms[name] < low) | (alarms[name] > high))
        assert outside <= 0.05 + 3.29 * math.sqrt(0.05 * 0.95 / len(alarms[name]))


@pytest.mark.statistics
def test_one_threshold_for_all_segments_is_seen() -> None:
    alarms = segment_alarms(pooled)
    assert deviations(alarms["narrow"], *SEGMENTS["narrow"]) < -10
    assert deviations(alarms["wide"], *SEGMENTS["wide"]) > 10
    assert alarms["narrow"].mean() / SEGMENTS["narrow"][1] < 0.001
    assert alarms["wide"].mean() / SEGMENTS["wide"][1] > 0.05


@pytest.mark.statistics
def test_of_the_segments_together_no_more_are_flagged_than_is_said() -> None:
    """Where the records without a threshold of their own are like the others; else nothing is promised of them."""
    g, flagged = np.random.default_rng(20260111), []
    labels = np.repeat(np.array(["a", "b", None], dtype=object), (60, 200, 20))
    for _ in range(BATCHES // 2):
        threshold = calibrated("mondrian", g.normal(size=280), {"by": "site", "alpha": 0.05}, labels)
        parts = list(zip(threshold.parts, (30, 100, 300), strict=True))
        flagged.append(sum(int(part.flag(g.normal(size=m)).sum()) for part, m in parts))
    chance = {number: batch_p_value(number, parts) for number in set(flagged)}  # it depends on the sizes alone
    found, (expected, low, high) = np.array(flagged), false_alarms(parts)
    assert abs(found.mean() - expected) <= error(found)
    assert np.mean((found < low) | (found > high)) <= 0.05
    assert excess(np.array([chance[number] for number in flagged])) < 3.29
