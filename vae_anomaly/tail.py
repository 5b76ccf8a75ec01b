r"""Tail extrapolation: a threshold beyond what the calibration scores hold, and how far off its rate may be.

Above a high score u of n normal ones, the excesses x of the k others that are higher are taken for draws from a
generalised Pareto distribution, :math:`P(X > x) = (1 + \xi x / \sigma)^{-1/\xi}` (peaks over threshold; Pickands,
Annals of Statistics 3 (1975); Davison and Smith, Journal of the Royal Statistical Society B 52 (1990)). What k of them
say of shape and scale is their posterior distribution, on a grid, from a prior that is flat in the logarithm of the
scale and normal in the shape. The share of normal scores above u is Beta(k + 1, n - k), whatever their distribution.
Together they give the distribution of the false-alarm rate of any threshold beyond u; the threshold is that at which
its mean is alpha. That of the most likely tail alone is exceeded far more often than alpha says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from vae_anomaly.errors import ConfigError

FARTHEST = 10
"""How many times below 1 / (n + 1) a rate may lie; docs/thresholds.md has what was measured."""
LEAST_RECORDS = 250
"""Fewest calibration records: then there are 50 excesses."""
HEAVIEST = 0.5
"""The largest shape; heavier tails, of scores without a finite variance, exceed the stated range too often."""

# none of them is 0, where the formula is another one
_SHAPES = np.arange(-0.475, 1.0, 0.05)[:, None]
_PRIOR = -0.5 * ((_SHAPES - 0.1) / 0.25) ** 2


@dataclass(frozen=True)
class Tail:
    """A threshold ``value`` and what its false-alarm rate may be: ``rates`` (K,), ascending, with their ``chances``.

    ``excesses`` is how many calibration scores that was learnt from.
    """

    value: float
    excesses: int
    rates: np.ndarray
    chances: np.ndarray

    @property
    def expected(self) -> float:
        """The mean of the rate."""
        return float(self.rates @ self.chances)

    def quantile(self, probability: float) -> float:
        """The rate that is not exceeded with this ``probability`` in (0, 1)."""
        below = np.cumsum(self.chances)
        return float(self.rates[min(int(np.searchsorted(below, probability)), len(below) - 1)])

    def at_least(self, flagged: int, records: int) -> float:
        """P(at least ``flagged`` false alarms among ``records`` normal records), a mixture of binomials."""
        from scipy.special import betainc  # imported late: the command line must start quickly

        if not 0 < flagged <= records:
            return float(not flagged)
        return min(1.0, float(self.chances @ betainc(flagged, records - flagged + 1, self.rates)))


def extrapolated(scores: np.ndarray, alpha: float) -> Tail:
    """The threshold above ``scores`` (n,), ascending, of which the mean rate is ``alpha`` < 1 / (n + 1).

    Raises
    ------
    ConfigError
        More than a tenth of these scores are equal to others, or they lie too far apart: the shape is above 0.5.
    """
    from scipy.optimize import brentq

    n = len(scores)
    k = _highest(n)
    u, excesses = scores[-k - 1], scores[-k:] - scores[-k - 1]
    if (distinct := len(np.unique(scores[-k - 1 :]))) < 0.9 * (k + 1):
        raise ConfigError(
            f"threshold.method pot must have calibration scores that differ. Got {distinct} different ones among the"
            f" {k + 1} highest. Choose conformal, which equal scores do no harm, with alpha of at least"
            f" 1 / (n + 1) = {1 / (n + 1):.4g}."
        )
    unit = float(np.median(excesses))
    scales, chances = _posterior(excesses / unit)
    shape = float(chances.sum(1) @ _SHAPES[:, 0])
    if shape > HEAVIEST:
        raise ConfigError(
            f"threshold.method pot must have a tail of scores of shape {HEAVIEST} or less to go on. Got {shape:.2g}:"
            " the highest calibration scores lie far apart. Look for anomalies among the normal records, or choose"
            f" conformal with alpha of at least 1 / (n + 1) = {1 / (n + 1):.4g}."
        )

    def beyond(log_excess: float) -> float:
        return float((chances * _survival(math.exp(log_excess), scales)).sum()) - alpha * (n + 1) / (k + 1)

    # the last digits may differ between machines, and what is read back must be what was written
    excess = float(f"{unit * math.exp(brentq(beyond, -3, 99)):.6g}")
    return Tail(float(u) + excess, k, *_rates(_survival(excess / unit, scales), chances, k, n))


def _highest(n: int) -> int:
    """How many of n scores are looked at: a tenth of 1,000. More of many gave ranges that left out the true rate."""
    return min(math.ceil(math.sqrt(10 * n)), 300)


def _posterior(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales (S, J) for each of the shapes, around that which has the median of ``x`` (k,), 1, and their chances."""
    steps = np.linspace(-6, 6, 31) / math.sqrt(len(x))
    scales = _SHAPES / np.expm1(_SHAPES * math.log(2)) * np.exp(steps)
    logs = np.empty(scales.shape)
    with np.errstate(divide="ignore"):  # beyond the end of a bounded tail nothing is possible
        for i, shape in enumerate(_SHAPES[:, 0]):
            reached = np.log(np.maximum(1 + shape / scales[i][:, None] * x, 0)).sum(1)
            logs[i] = _PRIOR[i] - len(x) * np.log(scales[i]) - (1 + 1 / shape) * reached
    chances = np.exp(logs - logs.max())
    return scales, chances / chances.sum()


def _survival(excess: float, scales: np.ndarray) -> np.ndarray:
    """(S, J) the share of scores above u that exceed it by ``excess``."""
    return np.asarray(np.maximum(1 + _SHAPES * excess / scales, 0) ** (-1 / _SHAPES))


def _rates(survival: np.ndarray, chances: np.ndarray, k: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Means of the rate, and chances, of 400 pieces of its distribution that are finer towards both ends."""
    from scipy.special import betaincinv

    above = betaincinv(k + 1, n - k, (np.arange(15) + 0.5) / 15)
    above *= (k + 1) / (n + 1) / above.mean()  # as many leave out a little of both ends
    rates = np.outer(survival.ravel(), above).ravel()
    weights = np.repeat(chances.ravel() / len(above), len(above))
    order = np.argsort(rates, kind="stable")
    reached = np.append(0.0, np.cumsum(weights[order]))
    sums = np.append(0.0, np.cumsum((weights * rates)[order]))
    edges = np.r_[0.0, 1 / (1 + np.exp(-np.linspace(-14, 14, 399))), 1.0] * reached[-1]
    share = np.diff(edges)
    return np.diff(np.interp(edges, reached, sums)) / share, share
