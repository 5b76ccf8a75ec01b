"""Figures of a fit's quality: which corruptions it notices where, and which latent dimensions carry information."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import FuncFormatter, MaxNLocator

from vae_anomaly.figures.style import INK, RED, panels, percent, plain, short
from vae_anomaly.training import EpochLog

NOTHING = "#E9EDF1"


def corruption_map(shares: Mapping[str, Mapping[str, float]], alpha: float) -> Figure:
    """The share of corrupted records that is flagged, by kind and place; grey where there was nothing to change.

    ``shares`` is that of :class:`~vae_anomaly.metrics.CorruptionRecall`, ``alpha`` the target false-alarm rate.
    """
    kinds = list(shares)
    places = list(dict.fromkeys(where for by_place in shares.values() for where in by_place))
    found = np.array([[shares[kind].get(where, np.nan) for kind in kinds] for where in places]).reshape(-1, len(kinds))
    height = 1.9 + 0.24 * len(places)
    figure, (axes,) = panels("Corrupted records found", width=3.4 + 0.85 * len(kinds), height=height)
    image = axes.imshow(found, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
    axes.set_xticks(range(len(kinds)), kinds)
    axes.set_yticks(range(len(places)), [short(where) for where in places])
    axes.set_title(f"of uncorrupted ones {percent(alpha)} are to be flagged", loc="left", fontsize=10, color=INK)
    _plain_grid(axes)
    axes.set_facecolor(NOTHING)
    for row, column in np.argwhere(~np.isnan(found)):
        share = found[row, column]
        axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=8,
                  color="white" if share > 0.6 else INK)  # fmt: skip
    _bar(figure, image, [axes], FuncFormatter(percent))
    return figure


def kl_map(epochs: Sequence[EpochLog]) -> Figure:
    """KL of each latent dimension on validation records by epoch, and how many dimensions are active."""
    at = np.array([e.epoch for e in epochs])
    kl = np.array([e.validation_kl_by_dimension for e in epochs])
    best = max((e for e in epochs if e.best), key=lambda e: e.validation_elbo, default=epochs[-1])
    figure, (upper, lower) = panels("Latent dimensions", rows=2, width=7.8, height=3.4 + 0.16 * kl.shape[1],
                                    sharex=True, height_ratios=[1.0, 0.9 + 0.07 * kl.shape[1]])  # fmt: skip
    upper.plot(at, [e.active_units for e in epochs], color=INK, drawstyle="steps-mid")
    upper.set_ylim(0, 1.1 * kl.shape[1])
    upper.set_title(f"active, of {kl.shape[1]}", loc="left", fontsize=11, color=INK)
    # square-root colours: most dimensions carry little at first
    norm = PowerNorm(0.5, 0.0, max(float(kl.max()), 1e-12))
    ends = (at[0] - 0.5, at[-1] + 0.5, kl.shape[1] - 0.5, -0.5)
    image = lower.imshow(kl.T, cmap="viridis", norm=norm, aspect="auto", interpolation="nearest", extent=ends)
    lower.set_title("KL by dimension", loc="left", fontsize=11, color=INK)
    lower.set_xlabel("epoch", color=INK)
    _plain_grid(lower)
    for axes in (upper, lower):
        axes.axvline(best.epoch, color=RED, linewidth=1.2, linestyle="--")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    bar = _bar(figure, image, [upper, lower], FuncFormatter(plain))
    bar.set_label(f"nats a record; dashed: kept, epoch {best.epoch}", color=INK)
    return figure


def _bar(figure: Figure, image: AxesImage, beside: list[Axes], numbers: FuncFormatter) -> Colorbar:
    bar = figure.colorbar(image, ax=beside, fraction=0.05, pad=0.02, format=numbers)
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=INK, labelsize=9, length=3)
    return bar


def _plain_grid(axes: Axes) -> None:
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
