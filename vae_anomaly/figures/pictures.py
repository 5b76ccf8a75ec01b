"""Pieces of figures that are no plots: images side by side, lines of text, tokens shaded by a number.

Legend: N images of H x W pixels with C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure

from vae_anomaly.figures.style import GREY, INK

# clear at 0, amber and then red above, blue below: as in the reports
HEAT = LinearSegmentedColormap.from_list("heat", ["#2D6EE1", "#FFFFFF", "#F5A623", "#CD192D"])
WIDTH = 104  # characters of a line
ADVANCE = 0.602  # width of a character of the monospaced font, in its size


def tiled(images: np.ndarray, columns: int) -> tuple[np.ndarray, int]:
    """Images (N, H, W, C) uint8 row by row as one RGB image with white gaps, and the width of a gap in pixels."""
    count, height, width, channels = images.shape
    gap = max(1, min(height, width) // 12)
    rows = -(-count // columns)
    out = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        out[top : top + height, left : left + width] = np.repeat(image, 3, 2) if channels == 1 else image
    return out, gap


def pictures(
    axes: Axes, images: np.ndarray, *, columns: int, rows: Sequence[str] = (), over: Sequence[str] = ()
) -> None:
    """Images (N, H, W, C) on ``axes``, with the names of the ``rows`` and, below, of the columns."""
    board, gap = tiled(images, columns)
    height, width = images.shape[1:3]
    axes.imshow(board, interpolation="nearest", aspect="equal")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xticks([i * (width + gap) + (width - 1) / 2 for i in range(len(over))], list(over))
    axes.set_yticks([i * (height + gap) + (height - 1) / 2 for i in range(len(rows))], list(rows))


class Line(NamedTuple):
    """A line of a figure of text: its words, a number for each where they are shaded, and its colour."""

    words: Sequence[str]
    shades: Sequence[float] | None = None
    color: str = INK
    bold: bool = False


def wrapped(lines: Sequence[Line]) -> list[Line]:
    """``lines`` of at most ``WIDTH`` characters; words that are longer are cut."""
    out = []
    for line in lines:
        start, used = 0, 0
        words = [word if len(word) <= WIDTH - 4 else f"{word[: WIDTH - 5]}…" for word in line.words]
        for i, word in enumerate(words):
            indent = 4 if start else 0
            if used + len(word) > WIDTH - indent:
                out.append(_part(line, words, start, i))
                start, used = i, 0
            used += len(word) + 1
        out.append(_part(line, words, start, len(words)))
    return out


def _part(line: Line, words: Sequence[str], start: int, stop: int) -> Line:
    shades = None if line.shades is None else line.shades[start:stop]
    part = list(words[start:stop])
    if start:  # a continuation is set in
        part = ["   ", *part]
        shades = None if shades is None else [0.0, *shades]
    return line._replace(words=part, shades=shades)


def text_figure(title: str, lines: Sequence[Line], *, shade: str = "") -> Figure:
    """``lines`` one below the other in a monospaced font; ``shade`` says what the shading means, of white = 0."""
    lines = wrapped(lines)
    size, leading = 8.5, 0.215
    width = WIDTH * ADVANCE * size / 72
    bar = 0.75 if shade else 0.0
    height = leading * max(len(lines), 1)
    whole = height + 0.75 + bar
    figure = Figure(figsize=(width + 0.5, whole), dpi=110)
    figure.suptitle(title, x=0.012, y=1 - 0.12 / whole, va="top", ha="left", fontsize=13, fontweight="bold", color=INK)
    axes = figure.add_axes((0.25 / (width + 0.5), (0.15 + bar) / whole, width / (width + 0.5), height / whole))
    axes.set(xlim=(0, WIDTH), ylim=(len(lines) - 0.5, -0.5))
    axes.axis("off")
    most = max((abs(s) for line in lines for s in line.shades or ()), default=0.0) or 1.0
    norm = Normalize(-most / 2, most)  # white, a third of the colours, at 0
    for row, line in enumerate(lines):
        _draw(axes, row, line, norm, size)
    if shade:
        place = figure.add_axes((0.25 / (width + 0.5), 0.42 / whole, 0.3, 0.11 / whole))
        figure.colorbar(ScalarMappable(norm, HEAT), cax=place, orientation="horizontal")
        place.set_xlim(0, most)
        place.tick_params(labelsize=8, colors=INK, length=2)
        place.set_title(shade, fontsize=8.5, color=GREY, loc="left", pad=3)
    return figure


def _draw(axes: Axes, row: int, line: Line, norm: Normalize, size: float) -> None:
    at = 0
    weight = "bold" if line.bold else "normal"
    shades = [None] * len(line.words) if line.shades is None else line.shades
    for word, shade in zip(line.words, shades, strict=True):
        color = "white" if shade is not None and norm(shade) > 0.8 else line.color
        if shade is not None and word.strip():
            axes.fill_between([at - 0.25, at + len(word) + 0.25], row - 0.46, row + 0.46, color=HEAT(norm(shade)),
                              linewidth=0)  # fmt: skip
        axes.text(at, row, word, family="DejaVu Sans Mono", fontsize=size, color=color, va="center", ha="left",
                  fontweight=weight, parse_math=False)  # fmt: skip
        at += len(word) + 1
