"""The latent space: its map, ways through it, and records that the model makes.

Legend: B records, K latent dimensions, D dimensions that are traversed, S steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from vae_anomaly.detector import Detector
from vae_anomaly.figures.pictures import Line, pictures, text_figure
from vae_anomaly.figures.style import (
    BLUE,
    DISTINCT,
    GREY,
    INK,
    PALE,
    RED,
    legend_below,
    log_ticks,
    panels,
    plain,
    short,
    usual,
)
from vae_anomaly.latent import (
    Colour,
    Curve,
    Decoded,
    Generation,
    Interpolation,
    Plane,
    Traversal,
    reference_records,
)

MAX_POINTS, MAX_DIMENSIONS, MAX_PANELS, MAX_ROWS, MAX_BARS = 4000, 12, 12, 60, 8
LEAST_CHANGE = 0.25  # robust deviations: the least that an axis shows
COMPARED = 2000  # reference records beside generated ones


def latent_map(found: Plane, colour: Colour, flagged: np.ndarray) -> Figure:
    """B records in a plane, coloured by ``colour``, the ``flagged`` (B,) ringed.

    ``found`` has B + M points: those beyond the B of ``flagged``, such as the training records, are drawn in grey. Of
    very many records the flagged ones are kept, and the first of the others.
    """
    shown = np.unique(np.r_[np.flatnonzero(flagged)[:MAX_POINTS], np.arange(min(len(flagged), MAX_POINTS))])
    points, ground, ringed = found.points[shown], found.points[len(flagged) :][:MAX_POINTS], flagged[shown]
    figure, (axes,) = panels("Latent map", width=7.8, height=5.9)
    if len(ground):
        _dots(axes, ground, s=9, color=PALE, linewidths=0, label=f"training, {len(ground):,} records")
    values = colour.values[shown]
    if values.dtype == object or values.dtype.kind in "US":
        _by_name(axes, points, values)
    else:
        _by_number(figure, axes, points, values.astype(np.float64), colour.name)
    _dots(axes, points[ringed], s=70, facecolors="none", edgecolors=RED, linewidths=1.4,
          label=f"flagged, {int(ringed.sum()):,} records")  # fmt: skip
    axes.set_xlabel(found.axes[0], color=INK)
    axes.set_ylabel(found.axes[1], color=INK)
    title = "" if colour.name.startswith("score") else f"coloured by {short(colour.name, 60)}"
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    legend_below(figure, axes)
    return figure


def _by_number(figure: Figure, axes: Axes, points: np.ndarray, values: np.ndarray, name: str) -> None:
    """Dark is large; points without a value are hollow."""
    there = np.isfinite(values)
    _hollow(axes, points[~there])
    known = values[there]
    ends = usual(known) if len(known) else (0.0, 1.0)
    logarithmic = len(known) > 0 and known.min() > 0 and np.quantile(known, 0.98) > 10 * known.min()
    norm = LogNorm(*ends) if logarithmic else Normalize(*ends)
    order = np.argsort(known, kind="stable")  # the largest on top
    dots = _dots(axes, points[there][order], s=20, c=known[order], cmap="viridis_r", norm=norm, linewidths=0)
    bar = figure.colorbar(dots, ax=axes, fraction=0.05, pad=0.02, extend="max" if len(known) > 200 else "neither")
    bar.set_label(short(name, 60), color=INK)
    bar.outline.set_visible(False)
    if logarithmic:
        log_ticks(bar.ax.yaxis, *ends)
    else:
        bar.ax.yaxis.set_major_formatter(FuncFormatter(plain))


def _by_name(axes: Axes, points: np.ndarray, values: np.ndarray) -> None:
    """A colour for each of the most frequent values, grey for the others together, hollow for none."""
    missing = np.array([v is None for v in values], dtype=bool)
    names, counts = np.unique(values[~missing].astype(str), return_counts=True)
    ranked = names[np.argsort(-counts, kind="stable")]
    leading = ranked[: len(DISTINCT)]
    others = ~missing & ~np.isin(values.astype(str), leading)
    _hollow(axes, points[missing])
    if others.any():
        _dots(axes, points[others], s=20, color=GREY, linewidths=0, label=f"other values: {len(ranked) - len(leading)}")
    for name, color in zip(leading, DISTINCT, strict=False):
        at = ~missing & (values.astype(str) == name)
        _dots(axes, points[at], s=20, color=color, linewidths=0, label=f"{short(name)}, {int(at.sum()):,}")


def _dots(axes: Axes, points: np.ndarray, **options: Any) -> Any:
    """``points`` (B, 2) with the ``options`` of ``Axes.scatter``."""
    return axes.scatter(points[:, 0], points[:, 1], **options)


def _hollow(axes: Axes, points: np.ndarray) -> None:
    if len(points):
        _dots(axes, points, s=18, facecolors="none", edgecolors=GREY, linewidths=0.8, label="missing")


# ---- ways ----


def traversal(found: Traversal) -> Figure:
    """What is decoded while each dimension changes alone: images in rows, lines of text, or a table's expected values
    by latent value."""
    names = [f"z{k + 1}" for k in found.dimensions]
    which = "the latent dimensions" if len(names) > 1 else f"latent dimension {names[0]}"
    title = f"Traversal of {which}{'' if found.active else ', which is not active'}, from record {short(found.about)}"
    steps = found.values.shape[1]
    if isinstance(found.decoded, np.ndarray):
        kept = names[:MAX_DIMENSIONS]
        return _images(title, found.decoded[: len(kept) * steps], steps, rows=kept, over=_deviations(found))
    if isinstance(found.decoded, list):
        lines = []
        for i, name in enumerate(names[:MAX_DIMENSIONS]):
            lines.append(Line([name], color=GREY, bold=True))
            of_this = found.decoded[i * steps : (i + 1) * steps]
            lines += _steps([f"{round(float(v), 1) + 0.0:+5.1f}" for v in found.values[i]], of_this)
        return text_figure(title, lines)
    return _curves(title, found.curves, found.values, names, x="latent value, in standard deviations of the prior")


def _deviations(found: Traversal) -> list[str]:
    """The first dimension's values stand for all: they differ by little."""
    reach = np.linspace(-found.spread, found.spread, found.values.shape[1])
    return [f"{v:+.1f} sd" if v else "mean" for v in reach]


def _steps(names: Sequence[str], lines: Sequence[str]) -> list[Line]:
    """A line for each step that says something new."""
    out: list[Line] = []
    for i, (name, line) in enumerate(zip(names, lines, strict=True)):
        if i and line == lines[i - 1]:
            out.append(Line([name, '"'], color=GREY))
        else:
            out.append(Line([name, *line.split()]))
    return out


def interpolation(found: Interpolation) -> Figure:
    """What is decoded on the way between two records."""
    first, last = (short(name, 24) for name in found.ids)
    title = f"From record {first} to record {last}"
    shares = [f"{100 * share:.0f} %" for share in found.position]
    if isinstance(found.decoded, np.ndarray):
        return _images(title, found.decoded, len(shares), over=shares)
    if isinstance(found.decoded, list):
        return text_figure(title, _steps([f"{share:>5}" for share in shares], found.decoded))
    return _curves(title, found.curves, 100 * found.position[None], [""], x="% of the way")


def _images(
    title: str, images: np.ndarray, columns: int, *, rows: Sequence[str] = (), over: Sequence[str] = ()
) -> Figure:
    tall = -(-len(images) // columns) * images.shape[1] / (columns * images.shape[2])
    figure, (axes,) = panels(title, width=9.0, height=min(max(8.4 * tall, 0.8), 14.0) + 0.9)
    pictures(axes, images, columns=columns, rows=rows, over=over)
    return figure


def _curves(title: str, curves: Sequence[Curve], at: np.ndarray, names: Sequence[str], *, x: str) -> Figure:
    """A panel for each column, a line for each row of ``at`` (D, S); of many columns those that change most."""
    kept = sorted(np.argsort([-c.change for c in curves], kind="stable")[:MAX_PANELS].tolist())
    columns = min(4, len(kept))
    rows = -(-len(kept) // columns)
    figure, each = panels(
        title, rows=rows, columns=columns, width=max(2.7 * columns + 0.4, 5.0), height=2.1 * rows + 0.9
    )
    for axes, curve in zip(each, (curves[i] for i in kept), strict=False):
        for i, name in list(enumerate(names))[: len(DISTINCT)][::-1]:  # the most informative on top
            values = curve.values.reshape(at.shape)[i]
            axes.plot(at[i], _broken(values, curve.period), color=DISTINCT[i], linewidth=1.7, label=name)
        axes.set_title(short(curve.name, 34), fontsize=9.5, color=INK, loc="left")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        _scaled(axes, curve)
    for axes in each[len(kept) :]:
        axes.set_visible(False)
    for axes in each[max(0, len(kept) - columns) : len(kept)]:
        axes.set_xlabel(x if columns < 3 else "", color=INK, fontsize=9)
    figure.supxlabel(x if columns >= 3 else "", fontsize=9.5, color=INK)
    if len(names) > 1:
        handles = [Line2D([], [], color=c, linewidth=2) for c, _ in zip(DISTINCT, names, strict=False)]
        figure.legend(handles, [*names][: len(handles)], loc="outside right upper", title="most\ninformative\nfirst",
                      title_fontsize=8, frameon=False, fontsize=9,
                      labelcolor=INK)  # fmt: skip
    return figure


def _broken(values: np.ndarray, period: float) -> np.ndarray:
    """Without the jump of values that go round: no line is drawn there."""
    values = values.astype(np.float64)
    jump = np.flatnonzero(np.abs(np.diff(values)) > period / 2)
    return values if not len(jump) else np.where(np.isin(np.arange(len(values)), jump), np.nan, values)


def _scaled(axes: Axes, curve: Curve) -> None:
    axes.tick_params(labelsize=8)
    if curve.name.startswith("P("):
        axes.set_ylim(-0.03, 1.03)
        return
    if np.isfinite(curve.period):
        axes.set_ylim(0, curve.period)
        axes.set_yticks(np.arange(0, curve.period + 1, curve.period / 4))
        return
    low, high = float(curve.values.min()), float(curve.values.max())
    if curve.change < LEAST_CHANGE:  # what hardly changes is not to look as if it did
        middle, reach = (low + high) / 2, (high - low) / 2 * LEAST_CHANGE / max(curve.change, 1e-9) or 1e-6
        low, high = middle - reach, middle + reach
        axes.set_ylim(low, high)
    if low > 0 and high > 8 * low:
        axes.set_yscale("log")
        log_ticks(axes.yaxis, low, high, 2)
        return
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(plain))


# ---- generated records ----


def generated(detector: Detector, found: Generation) -> Figure:
    """Generated records beside training records: images, lines, or the distribution of each column of a table."""
    count = len(found.decoded)
    known = reference_records(detector, COMPARED if isinstance(found.decoded, pd.DataFrame) else count)
    if isinstance(found.decoded, pd.DataFrame):
        assert isinstance(known, pd.DataFrame)
        return _distributions(found.decoded, known)
    if isinstance(found.decoded, list):
        lines = [Line(["generated"], color=GREY, bold=True), *_listed(found.decoded)]
        lines += [Line([]), Line(["training"], color=GREY, bold=True), *_listed(list(known)[:10])]
        return text_figure("Generated lines", lines)
    images = [np.asarray(part)[:64] for part in (found.decoded, known)]
    columns = max(1, round(len(images[0]) ** 0.5))
    tall = 4.0 * -(-len(images[0]) // columns) / columns * images[0].shape[1] / images[0].shape[2]
    figure, each = panels("Generated images", columns=2, width=9.0, height=min(tall, 12.0) + 1.0)
    for axes, part, name in zip(each, images, ("generated from the prior", "training"), strict=True):
        pictures(axes, part, columns=columns)
        axes.set_title(name, fontsize=10, color=INK, loc="left")
    return figure


def _listed(lines: Decoded) -> list[Line]:
    return [Line(["·", *str(line).split()]) for line in lines[:MAX_ROWS]]


def _distributions(made: pd.DataFrame, known: pd.DataFrame) -> Figure:
    names = list(made.columns)[: 2 * MAX_PANELS]
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure, each = panels("Generated and training records", rows=rows, columns=columns,
                          width=max(2.7 * columns + 0.4, 5.0), height=2.2 * rows + 0.9)  # fmt: skip
    for axes, name in zip(each, names, strict=False):
        a, b = made[name].dropna(), known[name].dropna()
        draw = _numbers if pd.api.types.is_numeric_dtype(a) and not pd.api.types.is_bool_dtype(a) else _values
        draw(axes, a, b)
        hours = ", hour" if axes.get_xlim()[1] == 24 else ""
        axes.set_title(f"{short(str(name), 34)}{hours}", fontsize=9.5, color=INK, loc="left")
        axes.tick_params(labelsize=8)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.3g} %"))
    for axes in each[len(names) :]:
        axes.set_visible(False)
    handles = [Line2D([], [], color=BLUE, linewidth=2), Line2D([], [], color=PALE, linewidth=7)]
    texts = [f"generated, {len(made):,}", f"training, {len(known):,}"]
    figure.legend(handles, texts, loc="outside lower center", ncols=2, frameon=False, fontsize=9, labelcolor=INK)
    return figure


def _numbers(axes: Axes, made: pd.Series, known: pd.Series) -> None:
    a, b = (part.to_numpy(np.float64) for part in (made, known))
    seen = b if len(b) else a
    low, high = usual(seen, 0.002, 0.998)
    first, middle, last = np.quantile(seen, [0.05, 0.5, 0.95])
    logarithmic = low > 0 and last - middle > 3 * (middle - first)
    edges = np.geomspace(low, high, 31) if logarithmic else np.linspace(low, high, 31)
    if logarithmic:
        axes.set_xscale("log")
        log_ticks(axes.xaxis, low, high, 2)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(FuncFormatter(plain))
    _shares(axes, np.histogram(b, edges)[0] / max(len(b), 1), edges, fill=True)
    _shares(axes, np.histogram(a, edges)[0] / max(len(a), 1), edges, fill=False)


def _shares(axes: Axes, shares: np.ndarray, edges: np.ndarray, *, fill: bool) -> None:
    axes.stairs(shares, edges, color=PALE if fill else BLUE, fill=fill, linewidth=1.5)


def _values(axes: Axes, made: pd.Series, known: pd.Series) -> None:
    """Shares of the most frequent values; of times, of the hours."""
    made, known = (part.astype(str) for part in (made, known))
    if made.str.fullmatch(r"\w{3} \d\d:\d\d").all():
        hours = [part.str[4:6].astype(int).to_numpy() for part in (known, made)]
        for part, fill in zip(hours, (True, False), strict=True):
            _shares(axes, np.bincount(part, minlength=24) / max(len(part), 1), np.arange(25), fill=fill)
        axes.set_xlim(0, 24)
        axes.set_xticks([0, 6, 12, 18, 24])
        return
    names = known.value_counts().index[:MAX_BARS]
    a, b = (part.value_counts(normalize=True).reindex(names, fill_value=0.0).to_numpy() for part in (made, known))
    at = np.arange(len(names))
    axes.bar(at, b, width=0.8, color=PALE)
    axes.hlines(a, at - 0.4, at + 0.4, color=BLUE, linewidth=2)
    slanted: dict[str, Any] = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if len(names) > 3 else {}
    axes.set_xticks(at, [short(str(name), 12) for name in names], **slanted)
