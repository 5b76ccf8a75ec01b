r"""Has a batch shifted as a whole? Two samples compared by their empirical distributions, with a stated error rate.

The distance of two samples is that of Kolmogorov and Smirnov, :math:`D = \sup_x |F_m(x) - G_n(x)|` in [0, 1]: at least
a share D of one of them would have to change for the two to be the same. For samples of one distribution, whatever it
is, ties included,

.. math:: P(D \ge d) \le C \exp\bigl(-2 d^2 mn / (m + n)\bigr), \qquad C = 2.16863,

so that the right-hand side is a valid p-value. A shift is a distance of at least ``DISTANCE`` whose p-value is at most
the level: significance alone finds differences in large batches that nobody cares for.

References: Wei and Dudley, Two-sample Dvoretzky-Kiefer-Wolfowitz inequalities, Statistics and Probability Letters 82
(2012), arXiv 1107.5356, theorem 1 (equal sizes of at least 4; the test of this module computes the others).
"""

from __future__ import annotations

import numpy as np

DISTANCE = 0.1  # smaller shifts of a batch are not worth a word
RATE = 0.001  # of normal batches are called shifted, at most, on average over reference records
LEAST = 4  # records of each sample
SAMPLE = 2_000  # records of a batch decide whether there is a shift of DISTANCE, at a level of 1e-6
CONSTANT = 2.16863
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 divided by the golden ratio


def distance(normal: np.ndarray, batch: np.ndarray) -> float:
    """D of two samples (n,) and (m,), in [0, 1]; values that are not finite are left out, 0 where none is left."""
    normal, batch = (np.sort(sample[np.isfinite(sample)]) for sample in (normal, batch))
    if not (len(normal) and len(batch)):
        return 0.0
    at = np.concatenate([normal, batch])
    shares = (np.searchsorted(sample, at, side="right") / len(sample) for sample in (normal, batch))
    return float(np.abs(np.subtract(*shares)).max())


def p_value(distance: float, n: int, m: int) -> float:
    """The largest probability, in (0, 1], of such a distance between samples of ``n`` and ``m`` of one distribution."""
    if min(n, m) < LEAST or distance <= 0:
        return 1.0
    return float(min(1.0, CONSTANT * np.exp(-2 * distance**2 * n * m / (n + m))))


def spread(rows: np.ndarray, halvings: int) -> np.ndarray:
    """(B,) bool: about every 2^``halvings``-th of the ``rows`` (B,), whatever period their values may have.

    They are those whose product with the golden ratio has the smallest fractions: such fractions are evenly spread
    among the rows of every residue class (Knuth, The Art of Computer Programming 3, section 6.4).
    """
    with np.errstate(over="ignore"):
        hashed = rows.astype(np.uint64) * _GOLDEN
    return np.asarray(hashed >> np.uint64(64 - halvings) == 0) if halvings else np.ones(len(rows), bool)
