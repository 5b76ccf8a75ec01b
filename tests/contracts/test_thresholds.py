"""Laws of every threshold method, over the table ``THRESHOLDS`` itself, and of what it promises.

The seeds are fixed once: a check that fails is looked into and not run again with another seed. The limits of the
random checks, 3.29 standard errors and p > 0.001, fail by chance once in a thousand seeds.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vae_anomaly.errors import ConfigError
from vae_anomaly.thresholds import (
    THRESHOLDS,
    Threshold,
    allowed_exceedances,
    batch_p_value,
    budget,
    calibrated,
    conformal,
    fdr,
    fixed,
    mondrian,
    pac,
    pot,
    rebuilt,
)
from vae_anomaly.thresholds import false_alarms as false_alarms_of

OPTIONS: dict[str, dict[str, Any]] = {
    "conformal": {"alpha": 0.05},
    "pac": {"alpha": 0.05, "delta": 0.1},
    "budget": {"alerts": 5, "records": 60},
    "fixed": {"value": 1.25},
    "fdr": {"q": 0.1},
    "mondrian": {"alpha": 0.05, "by": "shop"},
    "pot": {"alpha": 0.0005},
}
each_method = pytest.mark.parametrize("method", THRESHOLDS)
fixed_settings = settings(deadline=None, derandomize=True, max_examples=300)
ALPHAS = ("0.001", "0.002", "0.005", "0.01", "0.02", "0.05", "0.07", "0.1", "0.123456", "0.29", "0.5", "0.9", "0.999")
REDRAWS, N, M = 1000, 200, 500
Draw = Callable[[np.random.Generator, int], np.ndarray]
CONTINUOUS: dict[str, Draw] = {
    "normal": lambda g, n: g.normal(size=n),
    "lognormal": lambda g, n: np.exp(g.normal(size=n)),
}


def discrete(g: np.random.Generator, n: int) -> np.ndarray:
    return g.poisson(2.0, n).astype(float)


def threshold(scores: np.ndarray, method: str) -> Threshold:
    return calibrated(method, scores, OPTIONS[method])


def test_every_method_is_tested():
    assert OPTIONS.keys() == THRESHOLDS.keys()


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, float]:
    """Calibration scores, with many ties or none, others to judge, and an alpha of any origin."""
    n = draw(st.integers(1, 200))
    g = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["continuous", "few values", "one value", "huge", "tiny"]))
    calibration = {
        "continuous": lambda: g.normal(size=n),
        "few values": lambda: g.integers(0, 4, n).astype(float),
        "one value": lambda: np.full(n, 2.5),
        "huge": lambda: g.normal(size=n) * 1e300,
        "tiny": lambda: g.integers(-3, 3, n) * 5e-324,
    }[kind]()
    around = np.concatenate([calibration, np.nextafter(calibration, -np.inf), np.nextafter(calibration, np.inf)])
    judged = np.concatenate([around, g.normal(size=20), [-np.inf, np.inf, 0.0, -0.0]])
    alpha = draw(
        st.one_of(
            st.floats(0.001, 0.999),
            st.sampled_from(ALPHAS).map(float),
            st.integers(1, n).map(lambda b: b / (n + 1)),
            st.integers(1, n).map(lambda b: float(np.nextafter(b / (n + 1), 0))),
            st.integers(2, 60).map(lambda k: 1 / k),
        )
    )
    return calibration, judged, alpha


@fixed_settings
@given(case=cases())
@example(case=(np.arange(5.0), np.arange(-1, 6.0), 1 / 3))  # decimals of the float 1/3 lie below 1/3
@example(case=(np.arange(6.0), np.arange(-1, 7.0), 1 / 7))
@example(case=(np.arange(99.0), np.arange(-1, 100.0), 0.29))  # 0.29 * 100 is 28.999999999999996 in floating point
def test_flagged_exactly_where_p_is_at_most_alpha(case):
    calibration, judged, alpha = case
    if alpha < 1 / (len(calibration) + 1):
        with pytest.raises(ConfigError, match=r"at least 1 / \(n \+ 1\)"):
            conformal(calibration, alpha=alpha)
        return
    made = conformal(calibration, alpha=alpha)
    assert made.alpha == alpha
    assert_lawful(made, judged)


@pytest.mark.parametrize("method", ["pac", "budget"])
@settings(fixed_settings, max_examples=100)
@given(case=cases())
def test_whatever_the_method_flagged_exactly_where_p_is_at_most_its_alpha(method, case):
    calibration, judged, alpha = case
    records = 1 + int(100 * alpha)
    options = {"pac": {"alpha": alpha, "delta": 0.3}, "budget": {"alerts": records // 3, "records": records}}[method]
    enough = np.tile(calibration, math.ceil(1300 / len(calibration)))
    assert_lawful(calibrated(method, enough, options), judged)


@fixed_settings
@given(case=cases(), place=st.floats(0, 1))
def test_a_fixed_value_decides_and_agrees_with_the_p_values(case, place):
    calibration, judged, _ = case
    candidates = np.unique(judged[np.isfinite(judged) & (judged >= calibration.min())])
    value = float(candidates[int(place * (len(candidates) - 1))])
    made = fixed(calibration, value=value)
    assert made.value == value
    assert (made.flag(judged) == (judged > value)).all()
    assert_lawful(made, judged)
    assert (made.measured == np.sort(calibration)).all()
    assert made.rank == 1 + (calibration > value).sum()
    assert made.promise.expected == pytest.approx(((calibration > value).sum() + 1) / (len(calibration) + 2))


def test_the_range_of_a_fixed_value_holds_the_true_rate_as_often_as_it_says():
    g, held = np.random.default_rng(20260105), []
    for _ in range(1000):
        value, scores = g.random(), g.random(100)
        if value >= scores.min():
            promise = fixed(scores, value=value).promise
            held.append(promise.low <= 1.0 - value <= promise.high)
    assert abs(np.mean(held) - 0.95) <= 3.29 * math.sqrt(0.95 * 0.05 / len(held))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.5])
def test_a_fixed_value_that_would_flag_everything_is_refused(value):
    with pytest.raises(ConfigError, match="at least the lowest calibration score 0"):
        fixed(np.arange(10.0), value=value)


def assert_lawful(made: Threshold, judged: np.ndarray) -> None:
    p, calibration = made.p_value(judged), made.calibration
    assert ((p > 0) & (p <= 1)).all()
    assert (made.flag(judged) == (p <= made.alpha)).all()
    assert (made.flag(judged) == (judged > made.value)).all()
    assert (p == [(1 + (calibration >= s).sum()) / (len(calibration) + 1) for s in judged]).all()
    assert made.flag(calibration).sum() <= max(0, made.rank - 1)


def discovered(made: Threshold, judged: np.ndarray, q: Fraction) -> np.ndarray:
    """What Benjamini and Hochberg flag, by their definition, in exact arithmetic."""
    n, m = len(made.calibration), len(judged)
    p = [Fraction(int(1 + (made.calibration >= score).sum()), n + 1) for score in judged]
    reached = [value for k, value in enumerate(sorted(p), 1) if value <= q * k / m]
    return np.array([value <= max(reached) for value in p] if reached else [False] * m)


@fixed_settings
@given(
    case=cases(),
    q=st.sampled_from(["0.05", "0.1", "0.25", "0.3", "0.5"]),
    far=st.integers(0, 40),
    seed=st.integers(0, 9),
)
def test_a_batch_is_decided_as_benjamini_and_hochberg_do(case, q, far, seed):
    calibration, judged, _ = case
    if float(q) < 1 / (len(calibration) + 1):
        with pytest.raises(ConfigError, match=r"threshold\.q must be at least 1 / \(n \+ 1\)"):
            fdr(calibration, q=float(q))
        return
    made = fdr(calibration, q=float(q))
    judged = np.random.default_rng(seed).permutation(np.concatenate([judged, np.full(far, np.inf)]))
    counts = made.counts(judged)
    whole = made.for_batch(counts)
    assert (whole.flag(judged) == discovered(made, judged, Fraction(q))).all()
    assert_lawful(whole, judged)
    # whatever the parts are and their order; what is not scored counts for nothing
    parts = [made.counts(np.append(part, math.nan)) for part in np.array_split(judged, 3)]
    assert made.for_batch(sum(parts)).version == whole.version
    assert not made.for_batch(made.counts(np.zeros(0))).rank


@pytest.mark.parametrize(("n", "records", "q"), [(999, 100, 0.1), (999, 101, 0.1), (99, 1000, 0.1), (49, 7, 0.02)])
def test_so_many_must_be_far_out_before_any_is_flagged(n, records, q):
    made = fdr(np.arange(float(n)), q=q)
    fewest = made.fewest_flagged(records)
    assert fewest == max(1, math.ceil(records / (Fraction(str(q)) * (n + 1))))
    for far in (fewest - 1, fewest):
        scores = np.where(np.arange(records) < far, n + 1.0, -1.0)
        assert made.for_batch(made.counts(scores)).flag(scores).sum() == (far if far == fewest else 0)
    assert conformal(np.arange(float(n)), alpha=0.5).fewest_flagged(records) == 1


def test_more_false_alarms_than_others_are_no_promise():
    with pytest.raises(ConfigError, match=r"threshold\.q must be at most 0\.5.*Got 0\.51"):
        fdr(np.arange(100.0), q=0.51)


def test_the_chance_of_flags_in_a_normal_batch_falls_and_is_at_most_q():
    made = fdr(np.arange(999.0), q=0.1)
    for records in (1, 7, 100, 101, 5000, 10**7):
        chances = [made.batch_p_value(k, records) for k in range(0, 12)]
        assert chances[0] == 1.0 and chances[1] <= 0.1
        assert chances == sorted(chances, reverse=True)
        expected, low, high = made.false_alarms(records)
        assert 0 <= low <= expected + 1 and (high == 0 or made.batch_p_value(high, records) > 0.025)
        assert made.batch_p_value(high + 1, records) <= 0.025
    # with q (n + 1) / m a whole number R has this law (Takacs' ballot theorem), of which ours is a bound
    law = [scipy.stats.betabinom.pmf(k, 100, k, 1000 - k) * 0.9 / (1 - 0.1 * k / 100) for k in range(1, 101)]
    assert sum(law) == pytest.approx(0.1)
    for k in (1, 2, 5):
        assert sum(law[k - 1 :]) <= made.batch_p_value(k, 100) <= sum(law[k - 1 :]) / 0.9


# ---- segments


def in_segments(n: int = 400, seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Scores with ties, and their segments: a large one, a smaller one, a very small one, and unknown ones."""
    g = np.random.default_rng(seed)
    labels = g.choice(np.array(["cafe", "fuel", "kiosk", None], dtype=object), n, p=[0.6, 0.3, 0.02, 0.08])
    return np.round(g.normal(size=n), 2) + 3 * (labels == "fuel"), labels


def test_a_segment_has_the_threshold_that_its_records_alone_would_give():
    scores, labels = in_segments()
    made = calibrated("mondrian", scores, {"by": "shop", "alpha": 0.05}, labels)
    assert list(made.segments) == ["cafe", "fuel"]  # 19 records are needed
    pooled, *own = made.parts
    assert pooled.version == conformal(scores, alpha=0.05).version
    for name, part in zip(made.segments, own, strict=True):
        assert part.version == conformal(scores[labels == name], alpha=0.05).version
    assert len({made.version, *(part.version for part in made.parts)}) == 4
    assert [records for _, records in made.divided(400)] == [(~np.isin(labels, ["cafe", "fuel"])).sum(), *(
        (labels == name).sum() for name in made.segments)]  # fmt: skip
    large = calibrated("mondrian", scores, {"by": "shop", "alpha": 0.05, "least": 200}, labels)
    assert list(large.segments) == ["cafe"]
    assert large.version != made.version


def test_segments_are_read_back_whatever_their_order_was():
    scores, labels = in_segments()
    made = calibrated("mondrian", scores, OPTIONS["mondrian"], labels)
    order = np.random.default_rng(4).permutation(len(scores))
    for again in (
        calibrated("mondrian", scores[order], OPTIONS["mondrian"], labels[order]),
        rebuilt(json.loads(json.dumps(made.to_dict())), made.measured, made.codes),
    ):
        assert (again.to_dict(), again.target) == (made.to_dict(), made.target)
        assert (again.codes == made.codes).all()
        assert [part.version for part in again.parts] == [part.version for part in made.parts]
    swapped = np.where(labels == "cafe", "fuel", labels)
    assert calibrated("mondrian", scores, OPTIONS["mondrian"], swapped).version != made.version
    # another method makes nothing of them, and what it says is what it said before there were any
    assert calibrated("conformal", scores, {"alpha": 0.05}, labels).to_dict() == conformal(scores, alpha=0.05).to_dict()


def test_fewer_records_than_alpha_needs_are_no_segment():
    with pytest.raises(ConfigError, match=r"threshold\.least must be at least 19 .* Got 18"):
        mondrian(np.arange(100.0), by="shop", alpha=0.05, least=18)
    with pytest.raises(ConfigError, match=r"at least 1 / \(n \+ 1\)"):
        mondrian(np.arange(18.0), by="shop", alpha=0.05)


def test_what_is_said_of_several_thresholds_is_a_bound_for_their_sum():
    made = [conformal(np.arange(float(n)), alpha=0.05) for n in (19, 100, 1000)]
    parts = list(zip(made, (7, 200, 500), strict=True))
    law = np.ones(1)
    for one, m in parts:
        law = np.convolve(
            law, scipy.stats.betabinom.pmf(np.arange(m + 1), m, one.rank, len(one.calibration) + 1 - one.rank)
        )
    tails = np.append(np.cumsum(law[::-1])[::-1], 0.0)  # P(at least k)
    expected, low, high = false_alarms_of(parts)
    assert expected == pytest.approx(float((np.arange(len(law)) * law).sum()))
    assert 1 - tails[low] <= 0.025 and tails[high + 1] <= 0.025
    said = [batch_p_value(k, parts) for k in range(200)]
    assert said[0] == 1.0 and said == sorted(said, reverse=True)
    assert all(p >= chance - 1e-9 for p, chance in zip(said, tails, strict=False))
    assert batch_p_value(high + 1, parts) <= 0.025 < batch_p_value(high, parts)
    assert batch_p_value(120, parts) < 1e-3  # and says something
    # of one part it is what that part says
    assert false_alarms_of(parts[2:]) == made[2].false_alarms(500)
    assert batch_p_value(40, parts[2:]) == made[2].batch_p_value(40, 500)


# ---- beyond the calibration records


def tailed(n: int = 1000, seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).exponential(size=n)


@settings(fixed_settings, max_examples=60)
@given(
    n=st.integers(250, 600),
    times=st.floats(1.001, 10),
    seed=st.integers(0, 9),
    scale=st.sampled_from([1e-300, 1e-3, 1.0, 1e300]),
    shift=st.sampled_from([0.0, -50.0, 1e6]),
)
def test_what_exceeds_an_extrapolated_threshold_has_the_p_value_alpha(n, times, seed, scale, shift):
    calibration, alpha = (tailed(n, seed) + shift) * scale, 1 / (times * (n + 1))
    made = pot(calibration, alpha=alpha)
    around = np.r_[calibration, made.value, np.nextafter(made.value, [-np.inf, np.inf]), -np.inf, np.inf]
    p = made.p_value(around)
    assert ((p > 0) & (p <= 1)).all()
    assert (made.flag(around) == (p <= made.alpha)).all()
    assert (made.flag(around) == (around > made.value)).all()
    below = around <= made.value
    assert (p[below] == conformal(calibration, alpha=0.5).p_value(around[below])).all()
    assert set(p[~below]) == {alpha}
    assert (np.diff(p[np.argsort(around)]) <= 0).all()
    assert made.rank == (calibration >= made.value).sum()
    assert made.alpha >= made.smallest_alpha


def test_an_extrapolated_threshold_moves_and_stretches_with_the_scores():
    made = pot(tailed(), alpha=0.0003)
    for scale, shift in ((1.0, 100.0), (1e3, 0.0), (1e-9, 1.0)):
        other = pot(tailed() * scale + shift, alpha=0.0003)
        assert other.value == pytest.approx(made.value * scale + shift, rel=1e-5)
        assert other.promise.high == pytest.approx(made.promise.high, rel=1e-3)
    values = [pot(tailed(), alpha=alpha).value for alpha in (0.00099, 0.0007, 0.0003, 0.0001)]
    assert values == sorted(values)


@pytest.mark.parametrize("alpha", [0.0001, 0.0005])
def test_what_an_extrapolated_threshold_says_agrees_with_itself(alpha):
    made = pot(tailed(), alpha=alpha)
    promise = made.promise
    assert promise.expected == pytest.approx(alpha, rel=1e-4)
    assert promise.low < alpha < promise.high
    for records in (1, 100, 30_000, 10**7):
        expected, low, high = made.false_alarms(records)
        assert expected == pytest.approx(alpha * records, rel=1e-4)
        chances = [made.batch_p_value(k, records) for k in (0, 1, 2, low, high, high + 1, records, records + 1)]
        assert chances[0] == 1.0 and chances[-1] == 0.0
        assert sorted(chances, reverse=True) == chances or low == 0
        assert chances[5] <= 0.025 < chances[4] or high == 0
    # the mean of the number is the sum of the chances that it is at least 1, 2, ...
    total = sum(made.batch_p_value(k, 2000) for k in range(1, 2001))
    assert total == pytest.approx(2000 * alpha, rel=1e-4)
    # of very many records the share is the rate
    assert made.false_alarm_quantile(10**9, 0.975) / 1e9 == pytest.approx(promise.high, rel=0.05)
    assert made.fewest_flagged(1000) == 1 and made.for_batch(made.counts(tailed())) is made


def test_the_tails_that_fit_are_those_of_a_finer_grid(monkeypatch):
    """Against sums over the likelihood of scipy's distribution, finer and without what is grouped."""
    made, scores, alpha = pot(tailed(), alpha=0.0002), np.sort(tailed()), 0.0002
    u, excesses = scores[-101], scores[-100:] - scores[-101]
    shapes, scales = np.arange(-0.4875, 1.0, 0.025), excesses.mean() * np.exp(np.linspace(-1, 1, 201))
    law = scipy.stats.genpareto(shapes[:, None, None], scale=scales[:, None])
    logs = law.logpdf(excesses).sum(-1) - 0.5 * ((shapes[:, None] - 0.1) / 0.25) ** 2
    chances = np.exp(logs - logs.max())
    beyond = scipy.stats.genpareto(shapes[:, None], scale=scales).sf(made.value - u)
    above = 101 / 1001
    assert above * (chances * beyond).sum() / chances.sum() == pytest.approx(alpha, rel=0.01)
    g = np.random.default_rng(1)
    drawn = g.choice(beyond.ravel(), 200_000, p=chances.ravel() / chances.sum()) * g.beta(101, 900, 200_000)
    for probability, stated in ((0.025, made.promise.low), (0.975, made.promise.high)):
        assert np.quantile(drawn, probability) == pytest.approx(stated, rel=0.05)


def test_an_extrapolated_threshold_is_the_same_where_the_last_digits_of_a_logarithm_differ(monkeypatch):
    made = pot(tailed(), alpha=0.0003)
    real = np.log
    monkeypatch.setattr("vae_anomaly.tail.np.log", lambda x: real(x) * (1 + 1e-15))
    assert pot(tailed(), alpha=0.0003).to_dict() == made.to_dict()


def test_where_the_records_hold_alpha_nothing_is_extrapolated():
    made, known = pot(tailed(), alpha=0.001), conformal(tailed(), alpha=0.001)
    assert made.tail is None
    assert (made.value, made.promise) == (known.value, known.promise)
    assert made.version != known.version
    assert pot(np.arange(19.0), alpha=0.05).value == 18.0


@pytest.mark.parametrize(("alpha", "needed"), [(0.0001, 999), (0.00002, 4999), (0.001, 250), (0.02, 49)])
def test_extrapolation_names_the_smallest_number_of_records_that_suffices(alpha, needed):
    assert pot(np.arange(float(needed)), alpha=alpha).alpha == alpha
    with pytest.raises(ConfigError, match=f"must have {needed:,} calibration records or more. Got {needed - 1:,}"):
        pot(np.arange(needed - 1.0), alpha=alpha)


def test_scores_that_say_nothing_of_a_tail_are_refused():
    g = np.random.default_rng(1)
    with pytest.raises(ConfigError, match=r"scores that differ\. Got 1 different ones among the 51 highest"):
        pot(np.zeros(250), alpha=0.001)
    with pytest.raises(ConfigError, match="calibration scores that differ"):
        pot(discrete(g, 1000), alpha=0.0005)
    with pytest.raises(ConfigError, match=r"tail of scores of shape 0\.5 or less.*Look for anomalies"):
        pot(g.pareto(0.7, size=1000), alpha=0.0005)
    with pytest.raises(ConfigError, match="Look for anomalies"):  # one in a hundred is of another kind
        pot(np.append(g.normal(size=9900), 1000 + g.normal(size=100)), alpha=0.00005)


@pytest.mark.parametrize("n", range(1, 201))
def test_the_number_of_exceedances_is_exact(n):
    for text in ALPHAS:
        assert allowed_exceedances(float(text), n) == math.floor(Fraction(text) * (n + 1)), text
    for b in range(1, n + 1):
        assert allowed_exceedances(b / (n + 1), n) == b
        assert allowed_exceedances(float(np.nextafter(b / (n + 1), 0)), n) == b - 1


@pytest.mark.parametrize("text", ALPHAS)
def test_too_few_calibration_records_are_refused_with_the_number_that_suffices(text):
    alpha, needed = float(text), math.ceil(1 / Fraction(text)) - 1
    if needed > 1:
        with pytest.raises(ConfigError, match=f"calibrate on {needed} normal records or more"):
            conformal(np.arange(needed - 1.0), alpha=alpha)
    made = conformal(np.arange(float(needed)), alpha=alpha)
    assert made.rank >= 1
    assert made.flag(np.array([needed + 1.0])).all()


@pytest.mark.parametrize(
    ("method", "options", "needed"),
    [
        # of Wilks: the smallest n with (1 - alpha)^n <= delta
        ("pac", {"alpha": 0.05, "delta": 0.05}, 59),
        ("pac", {"alpha": 0.01, "delta": 0.05}, 299),
        ("pac", {"alpha": 0.001, "delta": 0.05}, 2995),
        # with no alert at all the largest of n + m scores must be a calibration score: m / (n + m) <= 0.05
        ("budget", {"alerts": 0, "records": 10}, 190),
        ("budget", {"alerts": 0, "records": 1}, 19),
        # the two largest of n + 2 must not both be new: 2 / ((n + 2)(n + 1)) <= 0.5
        ("budget", {"alerts": 1, "records": 2, "confidence": 0.5}, 1),
    ],
)
def test_other_methods_name_the_smallest_number_of_records_that_suffices(method, options, needed):
    assert calibrated(method, np.arange(float(needed)), options).rank == 1
    if needed > 1:
        with pytest.raises(ConfigError, match=f"must have {needed:,} calibration records or more"):
            calibrated(method, np.arange(needed - 1.0), options)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 1.5, math.nan, math.inf, -math.inf])
def test_a_share_outside_of_0_and_1_is_refused(share):
    for method, name in (
        ("conformal", "alpha"),
        ("pot", "alpha"),
        ("pac", "alpha"),
        ("pac", "delta"),
        ("budget", "confidence"),
    ):
        with pytest.raises(ConfigError, match="greater than 0 and less than 1"):
            calibrated(method, np.arange(100.0), {**OPTIONS[method], name: share})


@pytest.mark.parametrize(("alerts", "records"), [(-1, 60), (60, 60), (61, 60), (0, 0), (0.5, 60), (5, 60.5)])
def test_a_budget_is_a_whole_number_of_fewer_alerts_than_records(alerts, records):
    with pytest.raises(ConfigError, match=r"less than threshold\.records|must be a whole number"):
        budget(np.arange(100.0), alerts=alerts, records=records)


def test_options_of_another_method_are_refused():
    with pytest.raises(ConfigError, match="no option 'delta'"):
        calibrated("conformal", np.arange(100.0), {"alpha": 0.05, "delta": 0.1})
    with pytest.raises(ConfigError, match="must be one of"):
        calibrated("conformol", np.arange(100.0), {})


@each_method
def test_what_is_saved_is_read_back_and_nothing_else(method):
    scores = np.random.default_rng(1).normal(size=300)
    made = threshold(scores, method)
    assert (made.measured == np.sort(scores)).all()
    again = rebuilt(made.to_dict(), made.measured)
    assert (again.to_dict(), again.target) == (made.to_dict(), made.target)
    assert json.loads(json.dumps(made.to_dict())) == made.to_dict()
    for name in ("alpha", "delta", "alerts", "records", "confidence", "value", "q"):
        altered = made.to_dict() | {"options": {**made.options, name: 0.5}}
        try:
            assert rebuilt(altered, made.measured).to_dict() != made.to_dict()
        except ConfigError:
            assert name not in made.options or name in ("alerts", "records")


@each_method
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_calibration_scores_must_be_finite(method, bad):
    with pytest.raises(ConfigError, match="must be finite"):
        threshold(np.array([*np.arange(300.0), bad]), method)


@each_method
def test_what_is_not_a_number_is_flagged_and_has_no_p_value(method):
    made = threshold(np.arange(300.0), method)
    assert made.flag(np.array([math.nan])).all()
    assert np.isnan(made.p_value(np.array([math.nan, 1.0]))).tolist() == [True, False]
    assert made.flag(np.array([])).shape == (0,)
    assert not (np.array([math.nan]) > made.value).any()  # the comparison that would let it pass


@each_method
def test_the_order_of_the_calibration_does_not_matter_and_is_left_alone(method):
    scores = np.random.default_rng(1).normal(size=300)
    before = scores.copy()
    made = threshold(scores, method)
    assert (scores == before).all()
    assert made.to_dict() == threshold(scores[::-1], method).to_dict()
    name, value = next(iter(OPTIONS[method].items()))
    other = calibrated(method, scores, {**OPTIONS[method], name: 1.2 * value})
    assert len({made.version, other.version, threshold(scores + 1e-9, method).version}) == 3


# ------------------------------------------------------------- the promise about false alarms


def false_alarms(rule: Callable[[np.ndarray, np.ndarray], np.ndarray], draw: Draw, seed: int) -> np.ndarray:
    """(REDRAWS,) false alarms of a rule among M normal scores, each time with N fresh calibration scores."""
    g = np.random.default_rng(seed)
    return np.array([rule(draw(g, N), draw(g, M)).sum() for _ in range(REDRAWS)])


def conformal_rule(alpha: float) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    return lambda calibration, scores: conformal(calibration, alpha=alpha).flag(scores)


def away(alarms: np.ndarray, alpha: float) -> float:
    """Standard errors between the mean false-alarm rate and b / (n + 1); their size is the beta-binomial's."""
    b = allowed_exceedances(alpha, N)
    error = scipy.stats.betabinom.std(M, b, N + 1 - b) / M / math.sqrt(REDRAWS)
    return float((alarms.mean() / M - b / (N + 1)) / error)


@pytest.mark.parametrize("alpha", [0.01, 0.05])
@pytest.mark.parametrize("name", CONTINUOUS)
def test_over_many_calibrations_the_rate_is_the_promised_one(name, alpha):
    alarms = false_alarms(conformal_rule(alpha), CONTINUOUS[name], seed=20260105)
    assert abs(away(alarms, alpha)) < 3.29
    b = allowed_exceedances(alpha, N)
    expected = REDRAWS * scipy.stats.betabinom.pmf(np.arange(M + 1), M, b, N + 1 - b)
    cuts = np.searchsorted(np.cumsum(expected), np.arange(25, REDRAWS, 50))  # bins of about 50
    edges = np.unique(np.concatenate([[0], cuts + 1, [M + 1]]))
    counts = np.histogram(alarms, bins=edges)[0]
    assert scipy.stats.chisquare(counts, np.add.reduceat(expected, edges[:-1])).pvalue > 0.001


def test_with_ties_the_rate_is_at_most_the_promised_one():
    alarms = false_alarms(conformal_rule(0.05), discrete, seed=20260105)
    assert away(alarms, 0.05) < 3.29
    assert alarms.sum() > 0


@pytest.mark.parametrize("name", CONTINUOUS)
def test_a_quantile_in_its_place_is_seen(name):
    def quantile(calibration: np.ndarray, scores: np.ndarray) -> np.ndarray:
        return scores > np.quantile(calibration, 0.99)

    assert away(false_alarms(quantile, CONTINUOUS[name], seed=20260105), 0.01) > 10


def test_flagging_at_the_threshold_is_seen_where_there_are_ties():
    def at_least(calibration: np.ndarray, scores: np.ndarray) -> np.ndarray:
        return scores >= conformal(calibration, alpha=0.05).value

    assert away(false_alarms(at_least, discrete, seed=20260105), 0.05) > 3.29


# ---- for almost every calibration


PAC_REDRAWS, PAC_ALPHA, PAC_DELTA = 2000, 0.05, 0.1


def above_alpha(rule: Callable[[np.ndarray], Threshold], seed: int) -> float:
    """Share of calibrations whose true false-alarm rate, known for uniform scores, is above ``PAC_ALPHA``."""
    g = np.random.default_rng(seed)
    return float(np.mean([1.0 - rule(g.random(N)).value > PAC_ALPHA for _ in range(PAC_REDRAWS)]))


PAC_ERROR = 3.29 * math.sqrt(PAC_DELTA * (1 - PAC_DELTA) / PAC_REDRAWS)


def test_all_but_a_share_delta_of_the_calibrations_keep_alpha():
    share = above_alpha(lambda scores: pac(scores, alpha=PAC_ALPHA, delta=PAC_DELTA), 20260105)
    assert share <= PAC_DELTA + PAC_ERROR
    b = pac(np.arange(float(N)), alpha=PAC_ALPHA, delta=PAC_DELTA).rank
    assert abs(share - scipy.stats.beta.sf(PAC_ALPHA, b, N + 1 - b)) <= PAC_ERROR
    # one more would be too many
    assert scipy.stats.beta.sf(PAC_ALPHA, b + 1, N - b) > PAC_DELTA >= scipy.stats.beta.sf(PAC_ALPHA, b, N + 1 - b)


def test_a_threshold_that_keeps_alpha_on_average_only_is_seen():
    assert above_alpha(lambda scores: conformal(scores, alpha=PAC_ALPHA), 20260105) > PAC_DELTA + 5 * PAC_ERROR


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.1])
def test_with_more_calibration_records_pac_comes_closer_to_alpha(alpha):
    levels = [pac(np.arange(n), alpha=alpha).alpha for n in (400, 1000, 5000, 50_000)]
    assert levels == sorted(levels)
    assert 0.8 * alpha < levels[-1] <= alpha


# ---- a budget


def test_of_so_many_normal_records_no_more_than_the_budget_are_flagged_as_often_as_promised():
    options = {"alerts": 15, "records": M, "confidence": 0.9}
    over = {}
    for name, spent in (("ours", 0), ("a rank more", 1)):

        def rule(calibration: np.ndarray, scores: np.ndarray, spent: int = spent) -> np.ndarray:
            made = budget(calibration, **options)  # type: ignore[arg-type]
            return scores > made.calibration[len(made.calibration) - made.rank - spent]

        over[name] = (false_alarms(rule, CONTINUOUS["normal"], seed=20260105) > 15).mean()
    error = 3.29 * math.sqrt(0.1 * 0.9 / REDRAWS)
    made = budget(np.arange(float(N)), **options)  # type: ignore[arg-type]
    law = [scipy.stats.betabinom.sf(15, M, b, N + 1 - b) for b in (made.rank, made.rank + 1)]
    assert law[0] <= 0.1 < law[1]
    assert abs(over["ours"] - law[0]) <= error
    assert abs(over["a rank more"] - law[1]) <= 2 * error  # and would be over the budget
    assert made.false_alarm_quantile(M, 0.9) <= 15


@pytest.mark.parametrize("name", CONTINUOUS)
def test_with_one_calibration_the_alarms_lie_in_the_beta_binomial_range(name):
    g, draw = np.random.default_rng(20260106), CONTINUOUS[name]
    made = conformal(draw(g, 1000), alpha=0.01)
    total, b = 1000 * M, made.rank
    alarms = int(made.flag(draw(g, total)).sum())
    low, high = scipy.stats.betabinom.ppf([0.0005, 0.9995], total, b, 1001 - b)
    assert low <= alarms <= high
    # the binomial range, as if the calibration were without end, is far narrower
    narrow = np.diff(scipy.stats.binom.ppf([0.0005, 0.9995], total, b / 1001))
    assert high - low > 10 * narrow[0]


def beta_binomial(m: int, b: int, n: int) -> list[Fraction]:
    """P(k false alarms) for k = 0 ... m, exactly: of the m + n ranks, the b-th largest calibration score's decides."""
    ways = [math.comb(k + b - 1, k) * math.comb(m - k + n - b, m - k) for k in range(m + 1)]
    return [Fraction(w, math.comb(m + n, m)) for w in ways]


@pytest.mark.parametrize(("n", "alpha", "m"), [(99, 0.01, 40), (200, 0.05, 120), (19, 0.05, 1), (60, 0.9, 30)])
def test_false_alarms_agree_with_counting(n, alpha, m):
    made = conformal(np.arange(float(n)), alpha=alpha)
    chance = beta_binomial(m, made.rank, n)
    assert sum(chance) == 1
    expected, low, high = made.false_alarms(m)
    assert expected == pytest.approx(float(sum(k * p for k, p in enumerate(chance))), rel=1e-12)
    below = np.cumsum([float(p) for p in chance])
    assert low == int(np.argmax(below >= 0.025))
    assert high == int(np.argmax(below >= 0.975))
    for k in (0, 1, 2, m // 2, m):
        assert made.batch_p_value(k, m) == pytest.approx(float(sum(chance[k:])), rel=1e-9)
    assert made.false_alarms(0) == (0.0, 0, 0)


@pytest.mark.parametrize("m", [100_000, 2_000_000])
def test_of_many_records_false_alarms_agree_with_the_beta_binomial(m):
    made = conformal(np.arange(3000.0), alpha=0.01)
    law = scipy.stats.betabinom(m, made.rank, 3001 - made.rank)
    _, low, high = made.false_alarms(m)
    assert (low, high) == tuple(law.ppf([0.025, 0.975]))
    assert made.batch_p_value(high, m) == pytest.approx(law.sf(high - 1), rel=1e-6)


def test_the_promise_is_the_beta_distribution_of_the_rate():
    made = conformal(np.arange(1000.0), alpha=0.01)
    promise = made.promise
    assert promise.calibration_records == 1000
    assert promise.expected == pytest.approx(10 / 1001)
    # P(Beta(b, n + 1 - b) <= x) = P(Binomial(n, x) >= b)
    assert scipy.stats.binom.sf(9, 1000, promise.low) == pytest.approx(0.025, rel=1e-6)
    assert scipy.stats.binom.sf(9, 1000, promise.high) == pytest.approx(0.975, rel=1e-6)
    assert str(promise) == (
        "target 0.01, expected 0.00999, 95 % range 0.004806 to 0.01702 with 1000 calibration records"
    )


DOCUMENTATION = (Path(__file__).parents[2] / "docs" / "thresholds.md").read_text()


def test_the_numbers_of_the_documentation_are_those_of_the_methods():
    rows = re.findall(r"^\| alpha (.*?) \| (.*) \|$", DOCUMENTATION, re.M)
    assert len(rows) == 3
    for text, cells in rows:
        alpha, (marginal, certain, *levels) = float(text), cells.replace(",", "").split(" | ")
        for method, needed in ((conformal, int(marginal)), (pac, int(certain))):
            assert method(np.arange(float(needed)), alpha=alpha).rank == 1
            with pytest.raises(ConfigError):
                method(np.arange(needed - 1.0), alpha=alpha)
        for n, level in zip((1000, 10_000, 50_000), levels, strict=True):
            if level == "refused":
                assert n < int(certain)
            else:
                assert pac(np.arange(float(n)), alpha=alpha).alpha == pytest.approx(float(level), abs=5.1e-5)
    for alerts, needed in ((0, 19_000), (5, 646)):
        assert f"{needed:,}" in DOCUMENTATION or str(needed) in DOCUMENTATION
        assert budget(np.arange(float(needed)), alerts=alerts, records=1000).rank == 1
        with pytest.raises(ConfigError):
            budget(np.arange(needed - 1.0), alerts=alerts, records=1000)
    made = budget(np.arange(5000.0), alerts=5, records=1000)
    for records in (100, 1000):
        expected, low, high = made.false_alarms(records)
        assert (
            f"of {records:,} normal records, {expected:.1f} are expected to be flagged (95 % range {low} to {high})"
            in (DOCUMENTATION)
        )
    promise = made.promise
    assert f"{promise.target}, expected {promise.expected:.2%}, 95 % range {promise.low:.2%} to {promise.high:.2%}" in (
        DOCUMENTATION
    )


def test_the_table_of_batches_in_the_documentation_is_what_follows():
    rows = re.findall(r"^\| ([\d,]+) \| ([\d,]+) \| (\d+) \| (\d+) \| ([\d.]+) \|$", DOCUMENTATION, re.M)
    assert len(rows) == 3
    for row in rows:
        records, needed, *fewest = (int(cell.replace(",", "")) for cell in row[:-1])
        assert [fdr(np.arange(float(n)), q=0.1).fewest_flagged(records) for n in (needed, needed - 1)] == [1, 2]
        made = [fdr(np.arange(float(n)), q=0.1) for n in (1000, 10_000)]
        assert [one.fewest_flagged(records) for one in made] == fewest
        assert f"{made[0].batch_p_value(1, records):.2g}" in (row[-1], f"{float(row[-1]):.2g}")
    assert fdr(np.arange(999.0), q=0.1).false_alarms(100) == (pytest.approx(0.15, abs=0.005), 0, 2)


def test_what_a_method_promises_is_said():
    said = {
        method: str(threshold(np.arange(1000.0), method).promise).partition(", expected")[0] for method in THRESHOLDS
    }
    assert said == {
        "conformal": "target 0.05",
        "pac": "at most 0.05 with confidence 0.9",
        "budget": "at most 5 of 60 normal records with probability 0.95",
        "fixed": "fixed at 1.25",
        "fdr": "at most a share 0.1 of what is flagged in a batch, on average; of the highest calibration score alone",
        "mondrian": "target 0.05 for each shop of at least 19 calibration records; of all together",
        "pot": "target 0.0005, extrapolated from the 100 highest scores and not guaranteed",
    }
