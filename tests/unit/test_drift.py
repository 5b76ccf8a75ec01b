"""Laws of the comparison of a batch with normal records: a distance, its p-value, and the sample that is compared."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from vae_anomaly import drift
from vae_anomaly.drift import CONSTANT, distance, p_value, spread

samples = st.lists(st.integers(-20, 20), min_size=1, max_size=60).map(lambda values: np.array(values, dtype=float))


@given(samples, samples)
def test_the_distance_is_that_of_kolmogorov_and_smirnov_and_knows_no_scale(
    normal: np.ndarray, batch: np.ndarray
) -> None:
    far = distance(normal, batch)
    with np.errstate(divide="ignore"):  # its p-value, of very few values
        assert far == pytest.approx(scipy.stats.ks_2samp(normal, batch, method="asymp").statistic)
    assert 0.0 <= far <= 1.0
    assert distance(batch, normal) == far
    assert distance(normal, normal[::-1]) == 0.0
    assert distance(np.sinh(normal / 5), np.sinh(batch / 5)) == pytest.approx(far)


@given(samples, samples)
def test_what_is_not_a_number_is_left_out(normal: np.ndarray, batch: np.ndarray) -> None:
    holes = np.array([math.nan, math.inf, -math.inf])
    assert distance(np.append(normal, holes), np.append(holes, batch)) == distance(normal, batch)
    assert distance(holes, batch) == distance(normal, holes) == 0.0


def exceeding(n: int, m: int, distance: float) -> float:
    """P(D >= distance) of samples of n and m of one continuous distribution, by counting lattice paths."""
    # inside[j]: the share of all paths to (i, j) that stayed nearer than the distance; in shares, so that none overflow
    limit = distance - 1e-9
    inside = np.zeros(m + 1)
    for i in range(n + 1):
        for j in range(m + 1):
            if i == j == 0:
                inside[j] = 1.0
            else:
                below = inside[j] * i / (i + j) if i else 0.0
                left = inside[j - 1] * j / (i + j) if j else 0.0
                inside[j] = below + left
            if abs(i / n - j / m) >= limit:
                inside[j] = 0.0
    return 1.0 - float(inside[m])


SIZES = (4, 5, 7, 12, 20, 33, 60, 90)
CASES = [(n, m, d) for n in SIZES for m in SIZES if m <= n for d in (0.1, 0.25, 0.5, 0.75, 1.0)]


def test_the_count_of_paths_is_the_exact_distribution() -> None:
    for n, m, far in ((5, 7, 0.6), (20, 12, 0.4), (33, 33, 0.3)):
        lattice = np.unique([abs(i / n - j / m) for i in range(n + 1) for j in range(m + 1)])
        at = float(lattice[np.searchsorted(lattice, far - 1e-9)])
        g = np.random.default_rng(n)
        drawn = [distance(g.normal(size=n), g.normal(size=m)) for _ in range(4000)]
        assert np.mean(np.array(drawn) >= at - 1e-9) == pytest.approx(exceeding(n, m, at), abs=0.03)


def test_the_p_value_is_never_below_the_true_probability_and_rarely_much_above() -> None:
    exact = np.array([exceeding(*case) for case in CASES])
    bound = np.array([p_value(d, n, m) for n, m, d in CASES])
    assert (bound >= exact - 1e-12).all()
    used = np.array([min(n, m) >= 20 and 1e-8 < e < 0.5 for (n, m, _), e in zip(CASES, exact, strict=True)])
    assert used.sum() > 10
    assert np.median(bound[used] / exact[used]) < 4


def test_a_smaller_constant_would_promise_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift, "CONSTANT", CONSTANT - 0.01)
    assert any(p_value(d, 4, 4) < exceeding(4, 4, d) for d in (0.5, 0.75))


@pytest.mark.parametrize(("n", "m"), [(0, 100), (3, 1000), (100, 0)])
def test_of_too_few_records_nothing_is_concluded(n: int, m: int) -> None:
    assert p_value(1.0, n, m) == 1.0
    assert p_value(0.0, 100, 100) == p_value(-0.1, 100, 100) == 1.0


@pytest.mark.parametrize("halvings", range(8))
def test_every_second_record_is_left_out_again_whatever_the_period(halvings: int) -> None:
    rows = np.arange(50_000)
    kept = spread(rows, halvings)
    assert kept.sum() == pytest.approx(50_000 / 2**halvings, rel=0.02)
    assert not (spread(rows, halvings + 1) & ~kept).any()
    for period in (2, 3, 4, 5, 7, 8, 24, 60):
        counts = np.array([kept[residue::period].sum() for residue in range(period)])
        assert abs(counts - 50_000 / period / 2**halvings).max() <= 16, period
    np.testing.assert_array_equal(spread(rows[777:1000], halvings), kept[777:1000])
