"""Found and expected: a few records beside their reconstructions, and where in them the score lies.

Legend: B records, V variables (a number, time part, boolean or category), H x W pixels, T positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from vae_anomaly.detector import Detector, over_chunks
from vae_anomaly.figures.pictures import HEAT, Line, pictures, text_figure
from vae_anomaly.figures.style import BLUE, GREY, INK, PALE, RED, legend_below, panels, short
from vae_anomaly.latent import decoded, expected
from vae_anomaly.preprocessing.tabular import TIME_PARTS, TabularPreprocessor
from vae_anomaly.preprocessing.text import TextPreprocessor
from vae_anomaly.vae import Inputs

MAX_VARIABLES = 40


def found_beside_expected(detector: Detector, inputs: Inputs, titles: Sequence[str]) -> Figure:
    """The records ``inputs``, named by ``titles``, as the modality shows them."""
    modality = detector.preprocessor.layout.modality
    if modality == "image":
        return _images(detector, inputs, titles)
    if modality == "text":
        return _texts(detector, inputs, titles)
    return reconstructions(*found_and_expected(detector, inputs), titles=titles)


def _images(detector: Detector, inputs: Inputs, titles: Sequence[str]) -> Figure:
    """Rows of found and expected images and of what each pixel adds to the score; a column for each record."""
    found, made = decoded(detector, inputs.x.numpy(), inputs.context), expected(detector, inputs)
    assert isinstance(found, np.ndarray) and isinstance(made, np.ndarray)
    count, height, width, _ = found.shape
    nats = detector.terms(inputs)[:, :-1].reshape(count, height, width)
    most = float(np.abs(nats).max()) or 1.0
    norm = Normalize(-most / 2, most)
    heat = np.rint(255 * HEAT(norm(nats))[..., :3]).astype(np.uint8)
    colours = [np.broadcast_to(part, (*part.shape[:3], 3)) for part in (found, made)]
    tall = min(2.2 * height / width, 4.0)
    figure, (axes,) = panels("Found and expected", width=2.2 * count + 2.4, height=3 * tall + 1.4)
    pictures(axes, np.concatenate([*colours, heat]), columns=count, rows=["found", "expected", "nats"], over=titles)
    axes.xaxis.tick_top()
    bar = figure.colorbar(ScalarMappable(norm, HEAT), ax=axes, fraction=0.04, pad=0.02)
    bar.set_label("nats that a pixel adds to the score", color=INK)
    bar.outline.set_visible(False)
    bar.ax.set_ylim(min(0.0, float(nats.min())), most)
    return figure


def _texts(detector: Detector, inputs: Inputs, titles: Sequence[str]) -> Figure:
    """Each line's tokens shaded with what they add to the score, and below the line that the model would write."""
    preprocessor, made = detector.preprocessor, expected(detector, inputs)
    assert isinstance(preprocessor, TextPreprocessor) and isinstance(made, list)
    nats = detector.terms(inputs)[:, :-1]
    lines = []
    for title, ids, each, instead in zip(titles, inputs.x.numpy(), nats, made, strict=True):
        words = [*preprocessor.decode(ids[None])[0].split(), "(end)"]
        lines += [Line([title], color=GREY, bold=True), Line(words, each[: len(words)].tolist())]
        lines += [Line(["model:", *instead.split()], color=GREY), Line([])]
    return text_figure("Found and expected", lines[:-1], shade="nats that a token adds to the score")


def found_and_expected(detector: Detector, inputs: Inputs) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    """Names (V,), and found, expected and standard deviation (B, V) in standard units, NaN where a cell is missing.

    For a category the value found is 1 and the expected one the probability that the model gave to it.
    """
    around = over_chunks(detector.vae, inputs, lambda e: e.around())
    mean, low, high = around.numpy().swapaxes(0, 1)
    sigma = (high - low) / 2
    x = inputs.x.numpy()
    seen = np.ones_like(x) if inputs.observed is None else inputs.observed.numpy()
    names, parts, at = [], [], 0
    assert isinstance(detector.preprocessor, TabularPreprocessor)
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
    figure, each = panels("Found and expected", columns=len(titles), width=2.7 * len(titles) + 1.5,
                             height=1.9 + 0.21 * len(kept), sharey=True)  # fmt: skip
    for panel, title, x, middle, spread, far in zip(each, titles, found, expected, sd, off, strict=True):
        panel.hlines(rows, *(middle[kept] + k * spread[kept] for k in (-2, 2)), color=PALE, linewidth=6,
                     label="expected, 2 standard deviations either way")  # fmt: skip
        panel.plot(middle[kept], rows, "|", color=GREY, markersize=7, label="expected")
        for color, marks, name in ((BLUE, far[kept] <= 3, "found"), (RED, far[kept] > 3, "found, beyond 3")):
            panel.plot(x[kept][marks], rows[marks], "o", color=color, markersize=4.5, label=name)
        panel.set_title(title, fontsize=10, color=INK)
        panel.grid(axis="y", visible=False)
        panel.set_xlabel("standard units", color=INK)
    each[0].set_yticks(rows, [short(variables[i]) for i in kept])
    each[0].set_ylim(len(kept) - 0.4, -0.6)
    legend_below(figure, each[0])
    return figure
