r"""Thresholds: held-out normal scores to p-values and decisions with a stated false-alarm rate.

With n calibration scores that are exchangeable with future normal scores,
:math:`p(s) = (1 + \#\{i: s_i \ge s\}) / (n + 1)` and a record is flagged iff s exceeds the b-th largest calibration
score, :math:`b = \lfloor \alpha (n + 1) \rfloor` in exact arithmetic; then flag iff p <= alpha, and P(flag) <= alpha.
Given one calibration set, the false-alarm rate is Beta(b, n + 1 - b) and the number of false alarms among m normal
records is beta-binomial (m, b, n + 1 - b), for scores without ties.

A method of ``THRESHOLDS`` chooses b, and with it the level alpha that p-values are compared with:

* :func:`conformal`: the false-alarm rate is at most alpha on average over calibration sets;
* :func:`pac`: for all but a share delta of the calibration sets it is at most alpha;
* :func:`budget`: of so many normal records at most so many are flagged, with a stated probability;
* :func:`fixed`: what scores higher than a number is flagged. The number joins the calibration scores, as one that
  stands at the threshold: so b - 1 are above it, p-values and flags agree, and the rate is Beta(b, n + 2 - b) as if one
  had asked for that b, or a uniform prior;
* :func:`fdr`: of what is flagged in a batch at most a share q are false alarms, on average. b follows from the p-values
  of the batch (Benjamini and Hochberg): the most records R that can be flagged so that the R-th smallest p-value is at
  most q R / m, and :math:`b = \lfloor q R (n + 1) / m \rfloor`, 0 where nothing is flagged.

Only :func:`pot` can decide by a rate below 1 / (n + 1), by extrapolation (:mod:`vae_anomaly.tail`), which is an
estimate and no promise: whatever exceeds its threshold has the p-value alpha, and other p-values are as above.

With :func:`mondrian` each segment, a value of a column, has a calibration set and a conformal threshold of its own
where it has enough records.

References: Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005; Vovk, Conditional validity of
inductive conformal predictors, ACML 2012, arXiv 1209.2673, proposition 2a, for :func:`pac`; Wilks, Determination of
sample sizes for setting tolerance limits, Annals of Mathematical Statistics 12 (1941); Bates, Candes, Lei, Romano and
Sesia, Testing for outliers with conformal p-values, Annals of Statistics 51 (2023), arXiv 2104.08279, theorem 2, for
:func:`fdr`; Benjamini and Hochberg, Journal of the Royal Statistical Society B 57 (1995); Marques, arXiv 2303.02770.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np

from vae_anomaly.errors import ConfigError
from vae_anomaly.registry import build
from vae_anomaly.tail import FARTHEST, LEAST_RECORDS, Tail, extrapolated

# customary ones, the smallest of which that n supports is chosen for who names none
ALPHAS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)


@dataclass(frozen=True)
class Promise:
    """What a threshold promises about normal records, in words and as rates in [0, 1]."""

    target: str
    alpha: float
    expected: float
    low: float
    high: float
    calibration_records: int

    def __str__(self) -> str:
        return (
            f"{self.target}, expected {self.expected:.4g}, 95 % range {self.low:.4g} to {self.high:.4g}"
            f" with {self.calibration_records} calibration records"
        )


@dataclass(frozen=True)
class Threshold:
    """A conformal threshold: ``calibration`` (n,) float64 held-out normal scores in ascending order, and alpha.

    ``options`` are what its ``method`` was asked for, where that is more than alpha; ``target`` says it in words. A
    ``cut`` is one of the scores of ``calibration`` and was not measured. With a :attr:`discovery_rate` it is each
    batch that decides what alpha is (:meth:`for_batch`); before that it is 1 / (n + 1), the strictest. With ``labels``,
    the segment of each calibration record (None where it is not known), ``segments`` have thresholds of their own.
    Without labels these are thresholds of other detectors (:meth:`joined`).
    With a ``tail`` the threshold is extrapolated, and alpha less than 1 / (n + 1).
    """

    method: str
    alpha: float
    calibration: np.ndarray
    options: Mapping[str, Any] = field(default_factory=dict)
    target: str = ""
    cut: float | None = None
    labels: np.ndarray | None = None
    segments: Mapping[str, Threshold] = field(default_factory=dict)
    tail: Tail | None = None

    @cached_property
    def parts(self) -> tuple[Threshold, ...]:
        """The thresholds that decide: this one; or that of all records, for those without another, and segments'."""
        if self.labels is None and not self.segments:
            return (self,)
        return (Threshold("conformal", self.alpha, self.calibration), *self.segments.values())

    @property
    def measured(self) -> np.ndarray:
        """The held-out normal scores, ascending."""
        if self.cut is None:
            return self.calibration
        return np.delete(self.calibration, np.searchsorted(self.calibration, self.cut))

    @property
    def rank(self) -> int:
        """b: how many calibration scores lie at or above the threshold."""
        if self.tail is not None:
            return int(self._as_high(np.asarray(self.tail.value)))
        return allowed_exceedances(self.alpha, len(self.calibration))

    @property
    def value(self) -> float:
        """A record is flagged when its score is greater. The b-th largest calibration score, infinite where b is 0, or
        extrapolated."""
        if self.tail is not None:
            return self.tail.value
        return float(self.calibration[len(self.calibration) - self.rank]) if self.rank else math.inf

    @property
    def discovery_rate(self) -> float | None:
        """q: the share of false alarms among what is flagged in a batch, where that is what is promised."""
        return self.options.get("q")

    @property
    def smallest_alpha(self) -> float:
        """The smallest alpha that so many calibration records can hold, or that may be extrapolated from them."""
        return 1 / ((len(self.measured) + 1) * (1 if self.tail is None else FARTHEST))

    def divided(self, records: int) -> list[tuple[Threshold, int]]:
        """Each of the :attr:`parts` with how many of so many ``records`` are its, if they are as in the calibration."""
        sizes = [len(segment.calibration) for segment in self.segments.values()]
        n = len(self.calibration)
        return [
            (part, round(records * size / n)) for part, size in zip(self.parts, [n - sum(sizes), *sizes], strict=True)
        ]

    def shared(self, counts: np.ndarray) -> list[tuple[Threshold, int]]:
        """Those of the :attr:`parts` that decide on some records, with how many; ``counts`` has all of these."""
        return [(part, int(n)) for part, n in zip(self.parts, counts, strict=True) if n] or [(self, 0)]

    @property
    def version(self) -> str:
        """Short digest of the method, alpha and the calibration scores."""
        head = json.dumps({"method": self.method, "alpha": self.alpha, **self._asked}, sort_keys=True).encode()
        # the segments' own thresholds follow from the labels, or are others'
        own = "".join(part.version for part in self.segments.values()).encode()
        codes = own if self.labels is None else self.codes.tobytes()
        return "t-" + hashlib.sha256(head + self.calibration.tobytes() + codes).hexdigest()[:12]

    def joined(self, by: str, segments: Mapping[str, Threshold]) -> Threshold:
        """The threshold of all records of a batch of which those ``segments`` of the column ``by`` have other
        detectors, and so these thresholds; those of none have this one."""
        return replace(self, options={"by": by}, segments=segments)

    @property
    def names(self) -> list[str]:
        """The segments of the calibration records, whether or not they have a threshold of their own."""
        return sorted({label for label in self.labels if label is not None}) if self.labels is not None else []

    @property
    def codes(self) -> np.ndarray:
        """(n,) int64 where the segment of each calibration record stands among the :attr:`names`; -1 for none."""
        place: dict[str | None, int] = {name: i for i, name in enumerate(self.names)}
        return np.array([place.get(label, -1) for label in (() if self.labels is None else self.labels)], np.int64)

    def p_value(self, scores: np.ndarray) -> np.ndarray:
        """Conformal p-values in (0, 1]; NaN where the score is NaN. With a ``tail`` alpha above the threshold."""
        scores = np.asarray(scores, dtype=np.float64)
        known = (1.0 + self._as_high(scores)) / (len(self.calibration) + 1.0)
        if self.tail is not None:
            known = np.where(scores > self.tail.value, self.alpha, known)
        return np.where(np.isnan(scores), np.nan, known)

    def _as_high(self, scores: np.ndarray) -> np.ndarray:
        return np.asarray(len(self.calibration) - np.searchsorted(self.calibration, scores, side="left"))

    def counts(self, scores: np.ndarray) -> np.ndarray:
        """(n + 1,) how many of ``scores`` have the p-value 1 / (n + 1), 2 / (n + 1), ..., 1; NaN have none."""
        known = scores[~np.isnan(scores)]
        return np.bincount(self._as_high(known), minlength=len(self.calibration) + 1)

    def for_batch(self, counts: np.ndarray) -> Threshold:
        """The threshold that decides on a batch whose scores have these :meth:`counts`; most methods' is this one."""
        q = self.discovery_rate
        return self if q is None else replace(self, alpha=_discovering(q, counts) / len(counts))

    def flag(self, scores: np.ndarray) -> np.ndarray:
        """True where the score exceeds the threshold; a NaN never passes as normal."""
        return ~(np.asarray(scores) <= self.value)

    @property
    def promise(self) -> Promise:
        """Target, expected false-alarm rate b / (n + 1), and its central 95 % Beta(b, n + 1 - b) range.

        With a ``tail`` the rate and the range are those of the tails that fit the highest scores.
        """
        from scipy.special import betaincinv  # imported late: the command line must start quickly

        b, n, tail = self.rank, len(self.calibration), self.tail
        target = self.target or f"target {self.alpha:.4g}"
        if tail is not None:
            return Promise(target, self.alpha, tail.expected, tail.quantile(0.025), tail.quantile(0.975), n)
        low, high = betaincinv(b, n + 1 - b, [0.025, 0.975]) if b else (0.0, 0.0)
        return Promise(target, self.alpha, b / (n + 1), float(low), float(high), len(self.measured))

    def false_alarms(self, records: int) -> tuple[float, int, int]:
        """Expected number of false alarms among ``records`` normal records, and its central 95 % range.

        With a :attr:`discovery_rate` these are the largest that may be, of a batch of so many.
        """
        q, n = self.discovery_rate, len(self.calibration)
        if self.tail is not None:
            expected = records * self.tail.expected
        elif q is None:
            expected = records * self.rank / (n + 1)
        else:
            expected = sum(most * chance for most, chance in _clean_batch(1, records, q, n))
        return expected, self.false_alarm_quantile(records, 0.025), self.false_alarm_quantile(records, 0.975)

    def false_alarm_quantile(self, records: int, probability: float) -> int:
        """The smallest k for which P(at most k false alarms among ``records`` normal records) >= ``probability``."""
        return bisect.bisect_left(range(records), probability - 1.0, key=lambda k: -self.batch_p_value(k + 1, records))

    def batch_p_value(self, flagged: int, records: int) -> float:
        """P(at least ``flagged`` false alarms among ``records`` normal records), beta-binomial.

        With a :attr:`discovery_rate` an upper bound of it, of a batch of so many, that is at most q; with a ``tail``
        over the tails that fit the highest scores.
        """
        if self.tail is not None:
            return self.tail.at_least(flagged, records)
        q, n = self.discovery_rate, len(self.calibration)
        if q is None or not flagged:
            return at_least(flagged, records, self.rank, n)
        return min(q, sum(chance for _, chance in _clean_batch(flagged, records, q, n)))

    def fewest_flagged(self, records: int) -> int:
        """How many of ``records`` must score higher than all calibration records before any of them is flagged."""
        q = self.discovery_rate
        return 1 if q is None else max(1, _flagged_for(1, records, q, len(self.calibration)))

    @property
    def _asked(self) -> dict[str, Any]:
        segments = {} if self.labels is None else {"segments": self.names}
        return {"options": dict(self.options), **segments} if self.options else {}

    def to_dict(self) -> dict[str, Any]:
        """The editable part, as kept beside the weights; :func:`rebuilt` reads it."""
        return {"method": self.method, "alpha": self.alpha, "value": self.value, "version": self.version, **self._asked}


def false_alarms(parts: Sequence[tuple[Threshold, int]]) -> tuple[float, int, int]:
    """As :meth:`Threshold.false_alarms` for a batch of which each threshold decides on so many records.

    The expected numbers add up. The range holds the sum with a probability of at least 95 %, however the parts depend
    on each other: each of S parts has a range that it leaves with a probability of 5 % / S.
    """
    expected = sum(threshold.false_alarms(records)[0] for threshold, records in parts)
    tail = 0.025 / len(parts)
    return expected, _quantile(parts, tail), _quantile(parts, 1 - tail)


def batch_p_value(flagged: int, parts: Sequence[tuple[Threshold, int]]) -> float:
    """As :meth:`Threshold.batch_p_value` for such a batch; of several parts an upper bound, however they depend.

    That one of S parts has more than its quantile at 1 - p / S has at most the probability p, and so has a sum of more
    than these quantiles. Of 20 values of p a decade, down to 1e-10, the smallest is taken for which it is more.
    """
    if len(parts) == 1:
        return parts[0][0].batch_p_value(flagged, parts[0][1])
    count = len(parts)
    steps = bisect.bisect_left(range(201), True, key=lambda k: _quantile(parts, 1 - 10 ** (-k / 20) / count) >= flagged)
    return float(10 ** (-(steps - 1) / 20)) if steps else 1.0


def _quantile(parts: Sequence[tuple[Threshold, int]], probability: float) -> int:
    """The sum of what each part has at most with this ``probability``."""
    return sum(threshold.false_alarm_quantile(records, probability) for threshold, records in parts)


def at_least(flagged: int, records: int, b: int, n: int) -> float:
    """P(at least ``flagged`` of ``records`` normal scores exceed the ``b``-th largest of ``n`` calibration scores).

    They are as many iff of the ``flagged`` + b - 1 highest of all n + ``records`` scores fewer than b are those of
    calibration records, whose number is hypergeometric: a sum of b terms, whatever the number of records.
    """
    from scipy.special import betaln  # imported late: the command line must start quickly

    if not flagged:
        return 1.0
    highest, known = flagged + b - 1, np.arange(max(0, flagged + b - 1 - records), b)

    def log_choose(total: int, chosen: Any) -> Any:
        return -betaln(total - chosen + 1, chosen + 1) - math.log(total + 1)

    ways = log_choose(n, known) + log_choose(records, highest - known)
    return min(1.0, float(np.exp(ways - log_choose(n + records, highest)).sum()))


def _exact(share: float) -> Fraction:
    """The decimal number that was written."""
    return Fraction(repr(float(share)))


def _discovering(q: float, counts: np.ndarray) -> int:
    """b of a batch whose p-values 1 / (n + 1), ..., 1 have these ``counts`` (n + 1,), by Benjamini and Hochberg."""
    found, steps = np.cumsum(counts), _exact(q) * len(counts)  # the largest b that can be
    for rank in np.flatnonzero(counts[: math.floor(steps)])[::-1]:
        b = math.floor(steps * int(found[rank]) / int(found[-1]))
        if rank < b:
            return b
    return 0


def _flagged_for(b: int, records: int, q: float, n: int) -> int:
    """The fewest flagged ones of so many ``records`` that make the rank at least ``b``."""
    return math.ceil(Fraction(b * records, n + 1) / _exact(q))


def _clean_batch(flagged: int, records: int, q: float, n: int) -> Iterator[tuple[int, float]]:
    """How many of so many normal records are flagged, where it is at least ``flagged``: for each range of numbers with
    one rank b the largest of them, and an upper bound of its chance.

    Where R records are flagged, exactly R exceed the threshold of the rank b that belongs to R, which has a
    beta-binomial chance; the bound is not sharp, for that also happens where a larger number is flagged. The chances
    fall geometrically, so that what is left out in the end is less than rounding.
    """
    total, least = 0.0, max(flagged, _flagged_for(1, records, q, n))
    while least <= records:
        b = math.floor(_exact(q) * least * (n + 1) / records)
        beyond = max(least + 1, _flagged_for(b + 1, records, q, n))
        chance = max(0.0, at_least(least, records, b, n) - at_least(beyond, records, b, n))
        yield min(beyond - 1, records), chance
        total += chance
        if chance <= 1e-12 * total:
            return
        least = beyond


def allowed_exceedances(alpha: float, n: int) -> int:
    """floor(alpha (n + 1)), exactly: alpha is read as the decimal number that was written.

    Where alpha is the float of a fraction (b + 1) / (n + 1), such as 1/3, its decimals fall just short of it and b + 1
    is meant: b is the largest number whose p-value b / (n + 1) is at most alpha.
    """
    b = math.floor(_exact(alpha) * (n + 1))
    return b + ((b + 1) / (n + 1) <= alpha)


def require_supported(alpha: float, n: int, name: str = "alpha") -> None:
    """Raise :class:`ConfigError` where ``n`` calibration records cannot hold ``alpha``: it must be >= 1 / (n + 1)."""
    _require_share(name, alpha)
    if allowed_exceedances(alpha, n) < 1:
        needed = math.ceil(1 / _exact(alpha)) - 1
        raise ConfigError(
            f"threshold.{name} must be at least 1 / (n + 1) = {1 / (n + 1):.4g} for {n} calibration records."
            f" Got {alpha!r}. Raise {name}, or calibrate on {needed} normal records or more."
        )


def _require_share(name: str, share: float) -> None:
    if not 0 < share < 1:
        raise ConfigError(f"threshold.{name} must be greater than 0 and less than 1. Got {share!r}.")


def supported_alpha(calibration_records: int) -> float:
    """The smallest customary alpha with n >= 15 / alpha, where the false-alarm rate lies within about 50 % of alpha.

    With fewer records the smallest that is possible at all, 1 / (n + 1), but not less than 0.1.
    """
    fitting = [alpha for alpha in ALPHAS if calibration_records >= 15 / alpha]
    return fitting[0] if fitting else max(0.1, math.ceil(1e4 / (calibration_records + 1)) / 1e4)


def _ascending(scores: np.ndarray) -> np.ndarray:
    scores = np.sort(np.asarray(scores, dtype=np.float64))
    if not np.isfinite(scores).all():
        raise ConfigError(f"calibration scores must be finite. Got {int((~np.isfinite(scores)).sum())} that are not.")
    return scores


def conformal(scores: np.ndarray, *, alpha: float | None = 0.01) -> Threshold:
    """Split-conformal threshold from held-out normal ``scores`` (n,): P(flag) <= alpha, over calibration sets.

    ``alpha`` None is :func:`supported_alpha`.

    Raises
    ------
    ConfigError
        ``alpha`` is not in (0, 1), a score is not finite, or n is too small: alpha must be at least 1 / (n + 1).
    """
    scores = _ascending(scores)
    alpha = supported_alpha(len(scores)) if alpha is None else alpha
    require_supported(alpha, len(scores))
    return Threshold("conformal", alpha, scores)


def pac(scores: np.ndarray, *, alpha: float = 0.01, delta: float = 0.05) -> Threshold:
    r"""The lowest threshold with P(false-alarm rate <= alpha) >= 1 - delta over the draw of the n ``scores``.

    The rate is Beta(b, n + 1 - b), so :math:`b = \max \{b : P(\mathrm{Bin}(n, \alpha) \ge b) \ge 1 - \delta\}`.

    Raises
    ------
    ConfigError
        ``alpha`` or ``delta`` is not in (0, 1), a score is not finite, or n is too small: (1 - alpha)^n must be at most
        delta.
    """
    from scipy.special import betainc

    scores = _ascending(scores)
    _require_share("alpha", alpha)
    _require_share("delta", delta)
    n = len(scores)
    b = _largest(n, lambda b: betainc(b, n + 1 - b, alpha) >= 1 - delta)
    if not b:
        needed = math.ceil(min(math.log(delta) / math.log1p(-alpha), 1e18))
        raise ConfigError(
            f"threshold.method pac with alpha {alpha!r} and delta {delta!r} must have {needed:,} calibration records or"
            f" more. Got {n:,}. Raise alpha or delta, or calibrate on more normal records."
        )
    target = f"at most {alpha:.4g} with confidence {1 - delta:.4g}"
    return Threshold("pac", b / (n + 1), scores, {"alpha": alpha, "delta": delta}, target)


def budget(scores: np.ndarray, *, alerts: int, records: int, confidence: float = 0.95) -> Threshold:
    """The lowest threshold that flags at most ``alerts`` of ``records`` normal records with probability ``confidence``.

    ``records`` is how many come in a batch, or in a day. The number of false alarms is beta-binomial, and so is the
    probability, which covers the draw of the n ``scores`` too.

    Raises
    ------
    ConfigError
        ``alerts`` is negative or not less than ``records``, ``confidence`` is not in (0, 1), a score is not finite, or
        n is too small.
    """
    scores = _ascending(scores)
    for name, number in (("alerts", alerts), ("records", records)):
        if not float(number).is_integer():
            raise ConfigError(f"threshold.{name} must be a whole number. Got {number!r}.")
    if not 0 <= alerts < records:
        raise ConfigError(
            f"threshold.alerts must be at least 0 and less than threshold.records. Got {alerts!r} of {records!r}."
        )
    _require_share("confidence", confidence)

    def kept(b: int, n: int) -> bool:
        return at_least(alerts + 1, records, b, n) <= (1 - confidence) * (1 + 1e-9)  # it is rounded

    n = len(scores)
    b = _largest(n, lambda b: kept(b, n))
    if not b:
        # more than records (records / (1 - confidence)) never are needed: then even one alarm is unlikely
        most = math.ceil(min(records / (1 - confidence), 1e18)) + 1
        enough = bisect.bisect_left(range(most), True, key=lambda n: kept(1, n + 1))
        raise ConfigError(
            f"threshold.method budget with {alerts} alerts among {records:,} records must have {enough + 1:,}"
            f" calibration records or more. Got {n:,}. Allow more alerts, or calibrate on more normal records."
        )
    target = f"at most {alerts:,} of {records:,} normal records with probability {confidence:.4g}"
    asked = {"alerts": alerts, "records": records, "confidence": confidence}
    return Threshold("budget", b / (n + 1), scores, asked, target)


def fixed(scores: np.ndarray, *, value: float) -> Threshold:
    """Flag what scores higher than ``value``, in nats, whatever that promises.

    Raises
    ------
    ConfigError
        ``value`` is not finite, or below all of the calibration ``scores``: then every normal record would be flagged.
    """
    scores, value = _ascending(scores) + 0.0, value + 0.0  # a negative zero is a zero
    if not len(scores) or not math.isfinite(value) or value < scores[0]:
        raise ConfigError(
            "threshold.value must be a finite number, at least the lowest calibration score"
            f" {scores[0] if len(scores) else '(there is none)'}. Got {value!r}."
        )
    above = len(scores) - int(np.searchsorted(scores, value, side="right"))
    known = np.insert(scores, len(scores) - above, value)
    target = f"fixed at {value:.6g}"
    return Threshold("fixed", (above + 1) / (len(known) + 1), known, {"value": value}, target, cut=float(value))


def fdr(scores: np.ndarray, *, q: float = 0.1) -> Threshold:
    """In each batch, at most a share ``q`` of what is flagged are false alarms, on average over batches and ``scores``.

    Of m records with m0 normal ones among them it is at most q m0 / m; where all are normal, that is the chance that
    anything is flagged. Records that are given to :meth:`Threshold.flag` without a batch are compared with the highest
    calibration score: what lies above it is flagged wherever anything is.

    Raises
    ------
    ConfigError
        ``q`` is not in (0, 0.5], a score is not finite, or n is too small: q must be at least 1 / (n + 1).
    """
    scores = _ascending(scores)
    require_supported(q, len(scores), "q")
    if q > 0.5:
        raise ConfigError(f"threshold.q must be at most 0.5: more false alarms than others say nothing. Got {q!r}.")
    target = (
        f"at most a share {q:.4g} of what is flagged in a batch, on average; of the highest calibration score alone"
    )
    return Threshold("fdr", 1 / (len(scores) + 1), scores, {"q": q}, target)


def mondrian(scores: np.ndarray, *, by: str, alpha: float = 0.01, least: int | None = None) -> Threshold:
    """As :func:`conformal` within each segment, which are the values of the column ``by``: P(flag) <= alpha in each.

    A segment has a threshold of its own where at least ``least`` calibration records are of it; None is as few as
    alpha needs, 1 / alpha - 1. The others have that of all records, of which the promise is not kept in each of them.
    :func:`calibrated` adds the segments.

    Raises
    ------
    ConfigError
        As :func:`conformal`; or ``least`` is fewer than alpha needs.
    """
    made = conformal(scores, alpha=alpha)
    needed = math.ceil(1 / _exact(alpha)) - 1
    if least is not None and least < needed:
        raise ConfigError(
            f"threshold.least must be at least {needed} for threshold.alpha {alpha!r}. Got {least!r}. Raise one."
        )
    target = f"target {alpha:.4g} for each {by} of at least {least or needed} calibration records; of all together"
    return replace(made, method="mondrian", options={"by": by, "alpha": alpha, "least": least or needed}, target=target)


def pot(scores: np.ndarray, *, alpha: float) -> Threshold:
    """As :func:`conformal` where n ``scores`` hold ``alpha``; down to a tenth of 1 / (n + 1) by extrapolation.

    An estimate of what is not there: the tail of the scores is taken to go on as it begins (:func:`extrapolated`).

    Raises
    ------
    ConfigError
        ``alpha`` is not in (0, 1), a score is not finite, n is too small; or the highest scores are of no use, being
        equal to each other or too far apart.
    """
    scores = _ascending(scores)
    _require_share("alpha", alpha)
    n = len(scores)
    if allowed_exceedances(alpha, n):
        return replace(conformal(scores, alpha=alpha), method="pot")
    if n < LEAST_RECORDS or alpha < 1 / (FARTHEST * (n + 1)):
        held, farthest = (math.ceil(1 / (times * _exact(alpha))) - 1 for times in (1, FARTHEST))
        needed = min(held, max(LEAST_RECORDS, farthest))
        raise ConfigError(
            f"threshold.method pot with alpha {alpha!r} must have {needed:,} calibration records or more. Got {n:,}."
            " Raise alpha, or calibrate on more normal records."
        )
    tail = extrapolated(scores, alpha)
    target = f"target {alpha:.4g}, extrapolated from the {tail.excesses:,} highest scores and not guaranteed"
    return Threshold("pot", alpha, scores, target=target, tail=tail)


def _segmented(made: Threshold, scores: np.ndarray, labels: np.ndarray) -> Threshold:
    """``made`` from ``scores`` (n,) with the ``labels`` (n,) of their segments, str or None."""
    words, missing = np.array([label or "" for label in labels]), np.array([label is None for label in labels])
    labels = np.asarray(labels, dtype=object)[np.lexsort((missing, words, np.asarray(scores, dtype=np.float64)))]
    least = made.options["least"]
    sizes = Counter(label for label in labels if label is not None)
    segments = {
        name: conformal(made.calibration[labels == name], alpha=made.alpha)
        for name, size in sorted(sizes.items())
        if size >= least
    }
    return replace(made, labels=labels, segments=segments)


def _largest(n: int, holds: Callable[[int], bool]) -> int:
    """The largest b in 1 ... n for which ``holds``, which must hold for all smaller ones then; 0 for none."""
    return bisect.bisect_left(range(1, n + 1), True, key=lambda b: not holds(b))


THRESHOLDS: dict[str, Callable[..., Threshold]] = {
    "conformal": conformal,
    "pac": pac,
    "budget": budget,
    "fixed": fixed,
    "fdr": fdr,
    "mondrian": mondrian,
    "pot": pot,
}


def calibrated(
    method: str, scores: np.ndarray, options: Mapping[str, Any], labels: np.ndarray | None = None
) -> Threshold:
    """The threshold of a method of ``THRESHOLDS`` from held-out normal ``scores`` (n,); raises as the method does.

    ``labels`` (n,), str or None, are the segments of a method that has some.
    """
    made: Threshold = build("threshold.method", THRESHOLDS, method, scores, **options)
    return made if labels is None or "by" not in made.options else _segmented(made, scores, labels)


def rebuilt(head: Mapping[str, Any], scores: np.ndarray, codes: np.ndarray | None = None) -> Threshold:
    """The threshold that :meth:`Threshold.to_dict` gave ``head`` of, and its :attr:`Threshold.codes`; another one where
    it was altered."""
    names = np.array([*head.get("segments", []), None], dtype=object)
    labels = None if codes is None else names[codes]
    return calibrated(head["method"], scores, head.get("options", {"alpha": head["alpha"]}), labels)
