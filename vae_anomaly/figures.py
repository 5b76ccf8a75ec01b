"""Figures of a fit, for the tracking server: how it was trained, where scores lie, what the threshold keeps.

Each function returns a matplotlib ``Figure`` of its own; nothing here touches pyplot or any other global state. The
colours are those of Okabe and Ito (2008), which colour-blind readers can tell apart.

Legend: B records, K latent dimensions, V variables (a number, time part, boolean or category).
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from vae_anomaly.detector import Detector, over_chunks
from vae_anomaly.fitting import Fit
from vae_anomaly.preprocessing.tabular import TIME_PARTS
from vae_anomaly.thresholds import Threshold
from vae_anomaly.training import EpochLog
from vae_anomaly.vae import Inputs

BLUE, RED, GREEN, PURPLE, GREY, INK = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8A939C", "#27313B"
PALE = "#C9D1DB"
PICKED = ("strangest", "second strangest", "second most ordinary", "most ordinary")
MAX_VARIABLES, MAX_POINTS = 40, 4000
SQUARE_ROOT = (lambda v: np.sqrt(np.maximum(v, 0.0)), np.square)


def png(figure: Figure) -> bytes:
    """``figure`` as a PNG without a date or a version inside."""
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def of_fit(fit: Fit, inputs: Inputs, *, latent: bool = True) -> Iterator[tuple[str, Figure]]:
    """Every figure of a fit with its name; ``inputs`` are validation records, without ``latent`` there is no map."""
    detector, threshold = fit.detector, fit.detector.threshold
    scores = detector.scores(inputs)
    yield "training_curves", training_curves(fit.epochs)
    others = {"validation": fit.validation_scores}
    yield "score_histogram", score_histogram(threshold.calibration, threshold.value, others=others)
    yield "calibration_curve", calibration_curve(threshold, fit.validation_scores)
    if latent:
        mean, known = (
            over_chunks(detector.vae, rows, lambda e: e.posterior.mean).numpy()
            for rows in (inputs, detector.reference.inputs)
        )
        yield "latent_map", latent_map(mean, scores, threshold.flag(scores), background=known)
    order = np.argsort(-scores, kind="stable")
    picked = dict(zip(np.r_[order[:2], order[2:][-2:]].tolist(), PICKED, strict=False))
    titles = [f"{title}, score {scores[i]:.4g}" for i, title in picked.items()]
    parts = _found_and_expected(detector, inputs[torch.tensor(list(picked))])
    yield "reconstructions", reconstructions(*parts, titles=titles)


def _found_and_expected(detector: Detector, inputs: Inputs) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    """Names (V,), and found, expected and standard deviation (B, V) in standard units, NaN where a cell is missing.

    For a category the value found is 1 and the expected one the probability that the model gave to it.
    """
    mean = over_chunks(detector.vae, inputs, lambda e: e.likelihood.mean()).numpy()
    sigma = over_chunks(detector.vae, inputs, lambda e: e.likelihood.sigma.expand(len(e.inputs), -1)).numpy()
    x = inputs.x.numpy()
    seen = np.ones_like(x) if inputs.observed is None else inputs.observed.numpy()
    names, parts, at = [], [], 0
    for block in detector.preprocessor.layout.blocks:
        part, column = slice(at, at + block.size), detector.preprocessor.columns[block.column]
        timely = block.family == "gaussian" and block.size > 1
        names += [f"{column}: {part_of_time}" for part_of_time in TIME_PARTS] if timely else [column]
        value, middle = x[:, part], mean[:, part]
        if block.family == "categorical":
            value, middle = np.ones((len(x), 1)), (middle * value).sum(1, keepdims=True)
        spread = sigma[:, part] if block.family == "gaussian" else np.sqrt(middle * (1 - middle)).clip(1e-3)
        parts.append(np.stack([np.where(seen[:, part][:, : value.shape[1]] > 0, value, np.nan), middle, spread]))
        at += block.size
    found, expected, deviation = np.concatenate(parts, axis=2)
    return names, found, expected, deviation


def training_curves(epochs: Sequence[EpochLog]) -> Figure:
    """ELBO of training and validation records by epoch with the kept epoch, and the KL with the weight beta."""
    at = np.array([e.epoch for e in epochs])
    best = max((e for e in epochs if e.best), key=lambda e: e.validation_elbo, default=epochs[-1])
    figure, (left, right) = _figure("Training", columns=2)
    left.plot(at, [-e.loss for e in epochs], color=GREY, label="training objective, negated")
    left.plot(at, [e.validation_elbo for e in epochs], color=BLUE, label="validation ELBO")
    left.plot(best.epoch, best.validation_elbo, "o", color=RED, label=f"kept: epoch {best.epoch}")
    left.set_ylim(*_usual([v for e in epochs for v in (-e.loss, e.validation_elbo)]))
    _label(left, x="epoch", y="nats a record", title="Evidence lower bound")
    right.plot(at, [e.validation_kl for e in epochs], color=BLUE, label="validation KL, nats a record")
    right.plot(best.epoch, best.validation_kl, "o", color=RED)
    right.set_ylim(bottom=0)
    weight = right.twinx()
    weight.plot(at, [e.beta for e in epochs], color=GREY, linestyle="--")
    right.plot([], [], color=GREY, linestyle="--", label="weight beta, right axis")
    weight.set_ylim(0, 1.05 * max(e.beta for e in epochs))
    weight.spines[:].set_visible(False)
    weight.tick_params(colors=GREY, labelsize=9, length=3)
    _label(right, x="epoch", y="", title="Information in the latent variables", legend="center right")
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
    figure, (axes,) = _figure("Scores and threshold")
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
    axes.yaxis.set_major_formatter(FuncFormatter(_percent))
    _label(axes, x="score, nats", y="share of records, square-root scale")
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=4, frameon=False, fontsize=9, labelcolor=INK)
    return figure


def _score_axis(axes: Axes, scores: np.ndarray, usual: np.ndarray) -> np.ndarray:
    """Logarithmic where every score is positive, else linear around zero and logarithmic far away; returns bins."""
    low, high = float(scores.min()), float(scores.max())
    bins = int(np.clip(2.5 * len(usual) ** 0.5, 12, 60)) + 1
    if low > 0:
        axes.set_xscale("log")
        _log_ticks(axes.xaxis, low, high)
        edges = np.geomspace(low * 0.97, high * 1.03, bins)
    else:
        width = float(np.subtract(*np.quantile(usual, [0.9, 0.1]))) or 1.0
        axes.set_xscale("asinh", linear_width=width)
        edges = np.sinh(np.linspace(np.arcsinh(low / width) - 0.05, np.arcsinh(high / width) + 0.05, bins)) * width
        axes.set_xticks([float(f"{v:.2g}") for v in edges[:: max(1, bins // 8)]])
        axes.xaxis.set_major_formatter(FuncFormatter(_plain))
    return edges


def _log_ticks(axis: Axis, low: float, high: float) -> None:
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1e4 * low else (1,), numticks=9))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(_plain))


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
    figure, (axes,) = _figure("Promised and realised false-alarm rate", width=6.6, height=5.6)
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
              label=f"alpha {_percent(threshold.alpha)}: {_percent(realised)} flagged")  # fmt: skip
    top = max(right, float(shares.max()))
    for scale, limit, end in ((axes.set_xscale, axes.set_xlim, right), (axes.set_yscale, axes.set_ylim, top)):
        scale("function", functions=SQUARE_ROOT)
        limit(0, end)
    for axis, end in ((axes.xaxis, right), (axes.yaxis, top)):
        axis.set_ticks(_apart(end))
        axis.set_major_formatter(FuncFormatter(_percent))
    _label(axes, x="target false-alarm rate alpha, square-root scale", y="share of validation records flagged")
    return figure


def _apart(end: float) -> list[float]:
    """Ticks of a square-root axis from 0 to ``end``, no two nearer than a twelfth of its length."""
    ticks = [0.0]
    for share in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0):
        if share <= end and (share / end) ** 0.5 - (ticks[-1] / end) ** 0.5 > 1 / 12:
            ticks.append(share)
    return ticks


def latent_map(
    mean: np.ndarray, scores: np.ndarray, flagged: np.ndarray, *, background: np.ndarray | None = None
) -> Figure:
    """Posterior means (B, K) in the plane, coloured by score (B,), the ``flagged`` (B,) ringed.

    With K > 2 the plane is that of the two largest principal components of ``mean`` and ``background`` together, where
    ``background`` (M, K), such as the training records, is drawn in grey.
    """
    known = np.empty((0, mean.shape[1])) if background is None else background[:MAX_POINTS]
    shown = np.unique(np.r_[np.flatnonzero(flagged)[:MAX_POINTS], np.arange(min(len(mean), MAX_POINTS))])
    plane, names = _plane(np.concatenate([mean[shown], known]))
    points, ground, ringed = plane[: len(shown)], plane[len(shown) :], flagged[shown]
    color = scores[shown]
    figure, (axes,) = _figure("Latent map", width=7.2, height=5.6)
    if len(ground):
        axes.scatter(
            ground[:, 0], ground[:, 1], s=9, color=PALE, linewidths=0, label=f"training, {len(ground):,} records"
        )
    order = np.argsort(color)
    norm = LogNorm(*_ends(color)) if color.min() > 0 else Normalize(*_ends(color))
    dots = axes.scatter(points[order, 0], points[order, 1], s=20, c=color[order], cmap="viridis_r", norm=norm,
                        linewidths=0)  # fmt: skip
    axes.scatter(points[ringed, 0], points[ringed, 1], s=70, facecolors="none", edgecolors=RED, linewidths=1.4,
                 label=f"flagged, {int(ringed.sum()):,} records")  # fmt: skip
    bar = figure.colorbar(dots, ax=axes, fraction=0.05, pad=0.02)
    bar.set_label("score, nats", color=INK)
    bar.outline.set_visible(False)
    if isinstance(norm, LogNorm):
        _log_ticks(bar.ax.yaxis, *_ends(color))
    _label(axes, x=names[0], y=names[1])
    return figure


def _ends(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [0.0, 0.995])
    return float(low), float(high if high > low else low + 1.0)


def _plane(points: np.ndarray) -> tuple[np.ndarray, tuple[str, str]]:
    """(B, 2) coordinates and the names of the axes."""
    if points.shape[1] == 1:
        points = np.column_stack([points, np.zeros(len(points))])
    if points.shape[1] == 2:
        return points, ("latent mean 1", "latent mean 2")
    centred = points - points.mean(0)
    _, scale, directions = np.linalg.svd(centred, full_matrices=False)
    share = scale**2 / max(float((scale**2).sum()), 1e-300)
    names = [f"principal component {i + 1} ({_percent(share[i])} of the variance)" for i in (0, 1)]
    return centred @ directions[:2].T, (names[0], names[1])


def reconstructions(
    variables: Sequence[str], found: np.ndarray, expected: np.ndarray, sd: np.ndarray, *, titles: Sequence[str]
) -> Figure:
    """A panel for each record: what was found against what the model expects, two standard deviations either way.

    ``found``, ``expected``, ``sd`` (records, V) are in standard units, NaN where a cell is missing; ``titles`` names
    the records, at most four, the strangest first. Of many variables the furthest off in the strangest record are
    shown, in the order of ``variables``.
    """
    with np.errstate(invalid="ignore"):
        off = np.nan_to_num(np.abs(found - expected) / sd, nan=-1.0)
    kept = np.sort(np.argsort(-off[0], kind="stable")[:MAX_VARIABLES])
    rows = np.arange(len(kept))
    figure, panels = _figure("Found and expected", columns=len(titles), width=2.7 * len(titles) + 1.5,
                             height=1.9 + 0.21 * len(kept), sharey=True)  # fmt: skip
    for panel, title, x, middle, spread, far in zip(panels, titles, found, expected, sd, off, strict=True):
        panel.hlines(rows, *(middle[kept] + k * spread[kept] for k in (-2, 2)), color=PALE, linewidth=6,
                     label="expected, 2 standard deviations either way")  # fmt: skip
        panel.plot(middle[kept], rows, "|", color=GREY, markersize=7, label="expected")
        for color, marks, name in ((BLUE, far[kept] <= 3, "found"), (RED, far[kept] > 3, "found, beyond 3")):
            panel.plot(x[kept][marks], rows[marks], "o", color=color, markersize=4.5, label=name)
        panel.set_title(title, fontsize=10, color=INK)
        panel.grid(axis="y", visible=False)
        panel.set_xlabel("standard units", color=INK)
    panels[0].set_yticks(rows, [_short(variables[i]) for i in kept])
    panels[0].set_ylim(len(kept) - 0.4, -0.6)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9, labelcolor=INK)
    return figure


def _short(name: str) -> str:
    # a dollar sign would begin a formula
    return (name if len(name) <= 32 else f"{name[:31]}…").replace("$", r"\$")


def _plain(value: float, _: object = None) -> str:
    return f"{value:,.6g}"


def _percent(share: float, _: object = None) -> str:
    return f"{100 * share:.3g} %"


def _figure(
    title: str, *, columns: int = 1, width: float = 0.0, height: float = 4.4, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure with ``columns`` plain axes side by side."""
    figure = Figure(figsize=(width or 4.8 * columns + 3.0 * (columns == 1), height), dpi=110, layout="constrained")
    figure.suptitle(title, x=0.012, ha="left", fontsize=13, fontweight="bold", color=INK)
    panels = figure.subplots(1, columns, squeeze=False, sharey=sharey)[0].tolist()
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(PALE)
        axes.tick_params(colors=INK, labelsize=9, length=3, which="both")
        axes.grid(color="#E9EDF1", linewidth=0.8)
        axes.set_axisbelow(True)
    return figure, panels


def _label(axes: Axes, *, x: str, y: str, title: str = "", legend: str = "best") -> None:
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.legend(loc=legend, frameon=False, fontsize=9, labelcolor=INK)
