"""Figures of a fit: how it was trained, where scores lie, what the threshold keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from vae_anomaly.figures.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    PALE,
    PURPLE,
    RED,
    SQUARE_ROOT,
    label,
    log_ticks,
    panels,
    percent,
    plain,
)
from vae_anomaly.thresholds import Threshold
from vae_anomaly.training import EpochLog


def training_curves(epochs: Sequence[EpochLog]) -> Figure:
    """ELBO of training and validation records by epoch with the kept epoch, and the KL with the weight beta."""
    at = np.array([e.epoch for e in epochs])
    best = max((e for e in epochs if e.best), key=lambda e: e.validation_elbo, default=epochs[-1])
    figure, (left, right) = panels("Training", columns=2)
    left.plot(at, [-e.loss for e in epochs], color=GREY, label="training objective, negated")
    left.plot(at, [e.validation_elbo for e in epochs], color=BLUE, label="validation ELBO")
    left.plot(best.epoch, best.validation_elbo, "o", color=RED, label=f"kept: epoch {best.epoch}")
    left.set_ylim(*_usual([v for e in epochs for v in (-e.loss, e.validation_elbo)]))
    label(left, x="epoch", y="nats a record", title="Evidence lower bound")
    right.plot(at, [e.validation_kl for e in epochs], color=BLUE, label="validation KL, nats a record")
    right.plot(best.epoch, best.validation_kl, "o", color=RED)
    right.set_ylim(bottom=0)
    weight = right.twinx()
    weight.plot(at, [e.beta for e in epochs], color=GREY, linestyle="--")
    right.plot([], [], color=GREY, linestyle="--", label="weight beta, right axis")
    weight.set_ylim(0, 1.05 * max(e.beta for e in epochs))
    weight.spines[:].set_visible(False)
    weight.tick_params(colors=GREY, labelsize=9, length=3)
    label(right, x="epoch", y="", title="Information in the latent variables", legend="center right")
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _usual(values: Sequence[float]) -> tuple[float, float]:
    """Limits that the first epochs, far below all others, do not stretch."""
    low, high = np.quantile(values, [0.05, 1.0])
    return low - 0.15 * (high - low), high + 0.08 * (high - low)


def score_histogram(
    calibration: np.ndarray, threshold: float, *, others: Mapping[str, np.ndarray] | None = None
) -> Figure:
    """Shares of the calibration scores, and of ``others`` by name, with the threshold; a mark for each flagged one."""
    others = others or {}
    figure, (axes,) = panels("Scores and threshold")
    everything = np.concatenate([calibration, [threshold], *others.values()])
    edges = _score_axis(axes, everything, calibration)
    _outline(axes, calibration, edges, color=PALE, fill=True, label=f"calibration, {len(calibration):,} records")
    for color, (name, scores) in zip((BLUE, GREEN, PURPLE), others.items(), strict=False):
        _outline(axes, scores, edges, color=color, fill=False, label=f"{name}, {len(scores):,} records")
        flagged = scores[scores > threshold]
        axes.plot(flagged, np.full(len(flagged), -0.025), "|", color=color, markersize=9, clip_on=False,
                  transform=axes.get_xaxis_transform())  # fmt: skip
    axes.axvline(threshold, color=RED, linestyle="--", linewidth=1.6, label=f"threshold {threshold:.4g}")
    axes.tick_params(axis="x", pad=8)
    axes.set_yscale("function", functions=SQUARE_ROOT)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(percent))
    label(axes, x="score, nats", y="share of records, square-root scale")
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=4, frameon=False, fontsize=9, labelcolor=INK)
    return figure


def _score_axis(axes: Axes, scores: np.ndarray, usual: np.ndarray) -> np.ndarray:
    """Logarithmic where every score is positive, else linear around zero and logarithmic far away; returns bins."""
    low, high = float(scores.min()), float(scores.max())
    bins = int(np.clip(2.5 * len(usual) ** 0.5, 12, 60)) + 1
    if low > 0:
        axes.set_xscale("log")
        log_ticks(axes.xaxis, low, high)
        edges = np.geomspace(low * 0.97, high * 1.03, bins)
    else:
        width = float(np.subtract(*np.quantile(usual, [0.9, 0.1]))) or 1.0
        axes.set_xscale("asinh", linear_width=width)
        edges = np.sinh(np.linspace(np.arcsinh(low / width) - 0.05, np.arcsinh(high / width) + 0.05, bins)) * width
        axes.set_xticks([float(f"{v:.2g}") for v in edges[:: max(1, bins // 8)]])
        axes.xaxis.set_major_formatter(FuncFormatter(plain))
    return edges


def _outline(axes: Axes, scores: np.ndarray, edges: np.ndarray, *, color: str, fill: bool, label: str) -> None:
    shares = np.histogram(scores, edges)[0] / max(len(scores), 1)
    axes.stairs(shares, edges, color=color, fill=fill, linewidth=1.5, label=label)


def calibration_curve(threshold: Threshold, scores: np.ndarray) -> Figure:
    """Share of held-out normal ``scores`` (B,) that each target alpha flags, beside what chance allows.

    The inner band is the 95 % Beta(b, n + 1 - b) range of the true rate; the outer one the 95 % beta-binomial range of
    the share that B records then show.
    """
    from scipy.stats import beta, betabinom

    n, m = len(threshold.calibration), len(scores)
    right = min(1.0, max(10 * threshold.alpha, 0.3))
    b = np.unique(np.geomspace(1, max(1, right * (n + 1)), 60).astype(int).clip(1, n))
    alpha = b / (n + 1)
    shares = (scores[:, None] > threshold.calibration[n - b]).mean(0)
    figure, (axes,) = panels("Promised and realised false-alarm rate", width=6.6, height=5.6)
    low, high = (betabinom.ppf(q, m, b, n + 1 - b) / m for q in (0.025, 0.975))
    axes.fill_between(alpha, low, high, color=PALE, alpha=0.6, linewidth=0, step="mid",
                      label=f"95 % range of what {m:,} normal records show")  # fmt: skip
    low, high = (beta.ppf(q, b, n + 1 - b) for q in (0.025, 0.975))
    axes.fill_between(alpha, low, high, color=GREY, alpha=0.45, linewidth=0,
                      label=f"95 % range of the true rate ({n:,} calibration records)")  # fmt: skip
    axes.plot([0, right], [0, right], color=INK, linewidth=1, linestyle=":", label="realised = target")
    axes.plot(alpha, shares, color=BLUE, label="validation records flagged")
    realised = float((scores > threshold.value).mean())
    axes.plot(threshold.alpha, realised, "o", color=RED,
              label=f"alpha {percent(threshold.alpha)}: {percent(realised)} flagged")  # fmt: skip
    top = max(right, float(shares.max()))
    for scale, limit, end in ((axes.set_xscale, axes.set_xlim, right), (axes.set_yscale, axes.set_ylim, top)):
        scale("function", functions=SQUARE_ROOT)
        limit(0, end)
    for axis, end in ((axes.xaxis, right), (axes.yaxis, top)):
        axis.set_ticks(_apart(end))
        axis.set_major_formatter(FuncFormatter(percent))
    label(axes, x="target false-alarm rate alpha, square-root scale", y="share of validation records flagged")
    return figure


def _apart(end: float) -> list[float]:
    """Ticks of a square-root axis from 0 to ``end``, no two nearer than a twelfth of its length."""
    ticks = [0.0]
    for share in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0):
        if share <= end and (share / end) ** 0.5 - (ticks[-1] / end) ** 0.5 > 1 / 12:
            ticks.append(share)
    return ticks
