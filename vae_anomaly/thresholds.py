r"""Thresholds: held-out normal scores to p-values and decisions with a stated false-alarm rate.

With n calibration scores that are exchangeable with future normal scores,
:math:`p(s) = (1 + \#\{i: s_i \ge s\}) / (n + 1)` and a record is flagged iff s exceeds the b-th largest calibration
score, :math:`b = \lfloor \alpha (n + 1) \rfloor` in exact arithmetic; then flag iff p <= alpha, and P(flag) <= alpha.
Given one calibration set, the false-alarm rate is Beta(b, n + 1 - b) and the number of false alarms among m normal
records is beta-binomial (m, b, n + 1 - b), for scores without ties.

References: Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005; Bates, Candes, Lei, Romano and
Sesia, Testing for outliers with conformal p-values, Annals of Statistics 51 (2023), arXiv 2104.08279; Marques,
arXiv 2303.02770.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from vae_anomaly.errors import ConfigError


@dataclass(frozen=True)
class Promise:
    """What a threshold promises about normal records: rates in [0, 1]."""

    alpha: float
    expected: float
    low: float
    high: float
    calibration_records: int

    def __str__(self) -> str:
        return (
            f"target {self.alpha:.4g}, expected {self.expected:.4g}, 95 % range {self.low:.4g} to {self.high:.4g}"
            f" with {self.calibration_records} calibration records"
        )


@dataclass(frozen=True)
class Threshold:
    """A conformal threshold: ``calibration`` (n,) float64 held-out normal scores in ascending order, and alpha."""

    method: str
    alpha: float
    calibration: np.ndarray

    @property
    def rank(self) -> int:
        """b: how many calibration scores lie at or above the threshold."""
        return allowed_exceedances(self.alpha, len(self.calibration))

    @property
    def value(self) -> float:
        """The b-th largest calibration score; a record is flagged when its score is greater."""
        return float(self.calibration[len(self.calibration) - self.rank])

    @property
    def version(self) -> str:
        """Short digest of the method, alpha and the calibration scores."""
        head = json.dumps({"method": self.method, "alpha": self.alpha}, sort_keys=True).encode()
        return "t-" + hashlib.sha256(head + self.calibration.tobytes()).hexdigest()[:12]

    def p_value(self, scores: np.ndarray) -> np.ndarray:
        """Conformal p-values in (0, 1]; NaN where the score is NaN."""
        scores = np.asarray(scores, dtype=np.float64)
        at_least = len(self.calibration) - np.searchsorted(self.calibration, scores, side="left")
        return np.where(np.isnan(scores), np.nan, (1.0 + at_least) / (len(self.calibration) + 1.0))

    def flag(self, scores: np.ndarray) -> np.ndarray:
        """True where the score exceeds the threshold; a NaN never passes as normal."""
        return ~(np.asarray(scores) <= self.value)

    @property
    def promise(self) -> Promise:
        """Target, expected false-alarm rate b / (n + 1), and its central 95 % Beta(b, n + 1 - b) range."""
        from scipy.special import betaincinv  # imported late: the command line must start quickly

        b, n = self.rank, len(self.calibration)
        low, high = betaincinv(b, n + 1 - b, [0.025, 0.975])
        return Promise(self.alpha, b / (n + 1), float(low), float(high), n)

    def false_alarms(self, records: int) -> tuple[float, int, int]:
        """Expected number of false alarms among ``records`` normal records, and its central 95 % range."""
        expected = records * self.rank / (len(self.calibration) + 1)
        return expected, self.false_alarm_quantile(records, 0.025), self.false_alarm_quantile(records, 0.975)

    def false_alarm_quantile(self, records: int, probability: float) -> int:
        """The smallest k for which P(at most k false alarms among ``records`` normal records) >= ``probability``."""
        return bisect.bisect_left(range(records), probability - 1.0, key=lambda k: -self.batch_p_value(k + 1, records))

    def batch_p_value(self, flagged: int, records: int) -> float:
        """P(at least ``flagged`` false alarms among ``records`` normal records), beta-binomial.

        They are as many iff of the ``flagged`` + b - 1 highest of all n + ``records`` scores fewer than b are those of
        calibration records, whose number is hypergeometric: a sum of b terms, whatever the number of records.
        """
        from scipy.special import betaln

        if not flagged:
            return 1.0
        b, n = self.rank, len(self.calibration)
        highest, known = flagged + b - 1, np.arange(max(0, flagged + b - 1 - records), b)

        def log_choose(total: int, chosen: Any) -> Any:
            return -betaln(total - chosen + 1, chosen + 1) - math.log(total + 1)

        ways = log_choose(n, known) + log_choose(records, highest - known)
        return min(1.0, float(np.exp(ways - log_choose(n + records, highest)).sum()))

    def to_dict(self) -> dict[str, Any]:
        """The editable part, as kept beside the weights."""
        return {"method": self.method, "alpha": self.alpha, "value": self.value, "version": self.version}


def allowed_exceedances(alpha: float, n: int) -> int:
    """floor(alpha (n + 1)), exactly: alpha is read as the decimal number that was written.

    Where alpha is the float of a fraction (b + 1) / (n + 1), such as 1/3, its decimals fall just short of it and b + 1
    is meant: b is the largest number whose p-value b / (n + 1) is at most alpha.
    """
    b = math.floor(Fraction(repr(float(alpha))) * (n + 1))
    return b + ((b + 1) / (n + 1) <= alpha)


def require_supported(alpha: float, n: int) -> None:
    """Raise :class:`ConfigError` where ``n`` calibration records cannot hold ``alpha``: it must be >= 1 / (n + 1)."""
    if not 0 < alpha < 1:
        raise ConfigError(f"threshold.alpha must be greater than 0 and less than 1. Got {alpha!r}.")
    if allowed_exceedances(alpha, n) < 1:
        needed = math.ceil(1 / Fraction(repr(float(alpha)))) - 1
        raise ConfigError(
            f"threshold.alpha must be at least 1 / (n + 1) = {1 / (n + 1):.4g} for {n} calibration records."
            f" Got {alpha!r}. Raise alpha, or calibrate on {needed} normal records or more."
        )


def conformal(scores: np.ndarray, *, alpha: float) -> Threshold:
    """Split-conformal threshold from held-out normal ``scores`` (n,).

    Raises
    ------
    ConfigError
        ``alpha`` is not in (0, 1), a score is not finite, or n is too small: alpha must be at least 1 / (n + 1).
    """
    scores = np.sort(np.asarray(scores, dtype=np.float64))
    if not np.isfinite(scores).all():
        raise ConfigError(f"calibration scores must be finite. Got {int((~np.isfinite(scores)).sum())} that are not.")
    require_supported(alpha, len(scores))
    return Threshold("conformal", alpha, scores)


THRESHOLDS = {"conformal": conformal}
