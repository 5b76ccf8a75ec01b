"""What the figures have in common: colours, axes, labels, numbers as text, and the PNG.

Each figure is a matplotlib ``Figure`` of its own; nothing here touches pyplot or any other global state. The colours
are those of Okabe and Ito (2008), which colour-blind readers can tell apart.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

BLUE, RED, GREEN, PURPLE, GREY, INK = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8A939C", "#27313B"
PALE = "#C9D1DB"
DISTINCT = (BLUE, "#E69F00", GREEN, PURPLE, "#56B4E9", "#8C564B", "#F0E442", INK)  # red is for what is flagged
SQUARE_ROOT = (lambda v: np.sqrt(np.maximum(v, 0.0)), np.square)


def png(figure: Figure) -> bytes:
    """``figure`` as a PNG without a date or a version inside."""
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def panels(
    title: str, *, rows: int = 1, columns: int = 1, width: float = 0.0, height: float = 4.4, **options: Any
) -> tuple[Figure, list[Axes]]:
    """A figure with ``rows`` x ``columns`` plain axes, row by row; ``options`` are those of ``Figure.subplots``."""
    figure = Figure(figsize=(width or 4.8 * columns + 3.0 * (columns == 1), height), dpi=110, layout="constrained")
    figure.suptitle(title, x=0.012, ha="left", fontsize=13, fontweight="bold", color=INK)
    each = figure.subplots(rows, columns, squeeze=False, **options).ravel().tolist()
    for axes in each:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(PALE)
        axes.tick_params(colors=INK, labelsize=9, length=3, which="both")
        axes.grid(color="#E9EDF1", linewidth=0.8)
        axes.set_axisbelow(True)
    return figure, each


def label(axes: Axes, *, x: str, y: str, title: str = "", legend: str = "best") -> None:
    """Texts of the axes, and the legend."""
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.legend(loc=legend, frameon=False, fontsize=9, labelcolor=INK)


def legend_below(figure: Figure, axes: Axes, columns: int = 4) -> None:
    """The legend of ``axes`` under the whole figure."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9, labelcolor=INK)


def log_ticks(axis: Axis, low: float, high: float, decades: float = 4) -> None:
    """Plain numbers on a logarithmic axis from ``low`` to ``high``; beyond ``decades`` only the powers of ten."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 10**decades * low else (1,), numticks=9))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(plain))


def usual(values: np.ndarray, low: float = 0.0, high: float = 0.995) -> tuple[float, float]:
    """Two quantiles of ``values``, the second one larger."""
    ends = np.quantile(values, [low, high])
    return float(ends[0]), float(ends[1] if ends[1] > ends[0] else ends[0] + 1.0)


def short(name: str, length: int = 32) -> str:
    """``name``, cut; no part of it is read as a formula."""
    return (name if len(name) <= length else f"{name[: length - 1]}…").replace("$", r"\$")


def plain(value: float, _: object = None) -> str:
    """1,234.5"""
    return f"{value:,.6g}"


def percent(share: float, _: object = None) -> str:
    """12.3 %"""
    return f"{100 * share:.3g} %"
