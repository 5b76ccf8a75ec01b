"""Figures show the numbers that they are given, whatever those are, and leave matplotlib as it was."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from vae_anomaly import figures
from vae_anomaly.figures.pictures import WIDTH, tiled
from vae_anomaly.latent import Colour, Curve, Interpolation, Traversal, plane
from vae_anomaly.thresholds import conformal
from vae_anomaly.training import EpochLog

RNG = np.random.default_rng(0)
SCORES = np.exp(RNG.normal(size=300))
EPOCHS = [EpochLog(e, min(1.0, e / 5), 9.0 - e / 9, -12.0 + e / 9, -10.0, 2.0, e % 3 == 0) for e in range(20)]


def drawn(figure: Figure) -> bytes:
    """The PNG."""
    data = figures.png(figure)
    assert data.startswith(b"\x89PNG")
    return data


def test_equal_figures_are_equal_bytes_and_nothing_global_changes() -> None:
    before = dict(mpl.rcParams)
    assert drawn(figures.training_curves(EPOCHS)) == drawn(figures.training_curves(EPOCHS))
    assert dict(mpl.rcParams) == before


def test_training_curves_mark_the_kept_epoch() -> None:
    left, right = figures.training_curves(EPOCHS).axes[:2]
    assert left.get_legend_handles_labels()[1][-1] == "kept: epoch 18"
    assert [line.get_ydata()[0] for line in right.lines[:2]] == [2.0, 2.0]


def test_training_curves_of_one_epoch_without_a_best() -> None:
    drawn(figures.training_curves([EpochLog(0, 0.1, 5.0, -6.0, -5.0, 1.0, False)]))


@pytest.mark.parametrize(
    ("calibration", "others"),
    [
        (SCORES, {"validation": SCORES[:40] * 3}),
        (SCORES - 5, {"batch": np.array([-1e4, 0.0, 1e9])}),
        (SCORES, {"batch": np.array([1e-30, 1e30])}),
        (np.array([1.0, 2.0]), {}),
        (SCORES, {"empty": np.zeros(0)}),
    ],
)
def test_score_histogram_takes_any_score(calibration: np.ndarray, others: dict[str, np.ndarray]) -> None:
    figure = figures.score_histogram(calibration, 3.0, others=others)
    axes = figure.axes[0]
    assert axes.lines[-1].get_xdata()[0] == 3.0
    for patch in axes.patches[: 1 + len(others)]:
        assert patch.get_data().values.sum() in (pytest.approx(1.0), 0.0)
    drawn(figure)


def test_score_histogram_marks_what_is_flagged() -> None:
    axes = figures.score_histogram(SCORES, 2.0, others={"batch": np.array([0.5, 2.5, 7.0, 2.0])}).axes[0]
    assert axes.lines[0].get_xdata().tolist() == [2.5, 7.0]


def test_calibration_curve_shows_the_realised_shares() -> None:
    threshold, held_out = conformal(SCORES, alpha=0.05), np.exp(np.random.default_rng(1).normal(size=200))
    figure = figures.calibration_curve(threshold, held_out)
    line = next(line for line in figure.axes[0].lines if line.get_label().startswith("validation"))
    for alpha, share in zip(*line.get_data(), strict=True):
        assert share == conformal(SCORES, alpha=alpha + 1e-9).flag(held_out).mean()
    point = figure.axes[0].lines[-1]
    assert (point.get_xdata()[0], point.get_ydata()[0]) == (0.05, threshold.flag(held_out).mean())
    drawn(figure)


@pytest.mark.parametrize(("alpha", "n"), [(0.5, 3), (0.001, 2000), (0.9, 50)])
def test_calibration_curve_at_any_alpha(alpha: float, n: int) -> None:
    drawn(figures.calibration_curve(conformal(np.arange(n) + 0.5, alpha=alpha), np.array([0.0, n + 1.0])))


SCORE = Colour("score, nats", SCORES)


@pytest.mark.parametrize("latent", [1, 2, 5])
@pytest.mark.parametrize("shift", [0.0, -9.0])
def test_latent_map_rings_what_is_flagged(latent: int, shift: float) -> None:
    mean, flagged = RNG.normal(size=(300, latent)), SCORES > 4
    found = plane(np.concatenate([mean, mean[:50] + 1]))
    figure = figures.latent_map(found, SCORE._replace(values=SCORES + shift), flagged)
    ground, dots, rings = (c.get_offsets() for c in figure.axes[0].collections[:3])
    assert (len(ground), len(dots), len(rings)) == (50, 300, flagged.sum())
    if latent == 2:
        assert np.allclose(rings, mean[flagged])
    drawn(figure)


def test_latent_map_keeps_the_flagged_of_very_many_records() -> None:
    flagged = np.zeros(9000, bool)
    flagged[-3:] = True
    figure = figures.latent_map(plane(RNG.normal(size=(9000, 4))), Colour("score", np.ones(9000)), flagged)
    assert [len(c.get_offsets()) for c in figure.axes[0].collections] == [figures.MAX_POINTS + 3, 3]


def test_latent_map_names_the_most_frequent_values_and_shows_what_is_missing() -> None:
    names = np.array([f"shop {i % 12 if i < 60 else 0}" for i in range(300)], dtype=object)
    names[:5] = None
    figure = figures.latent_map(plane(RNG.normal(size=(300, 2))), Colour("shop", names), np.zeros(300, bool))
    counts = {c.get_label(): len(c.get_offsets()) for c in figure.axes[0].collections}
    assert counts.pop("missing") == 5
    assert counts.pop("other values: 4") == 16
    assert counts.pop("flagged, 0 records") == 0
    assert len(counts) == 8
    assert all(label.endswith(f", {count}") for label, count in counts.items())
    drawn(figure)


@pytest.mark.parametrize("values", [np.full(9, np.nan), np.full(9, 3.0), np.r_[np.nan, np.arange(8.0)]])
def test_latent_map_takes_any_number(values: np.ndarray) -> None:
    figure = figures.latent_map(plane(RNG.normal(size=(9, 2))), Colour("load", values), np.zeros(9, bool))
    hollow = [len(c.get_offsets()) for c in figure.axes[0].collections if c.get_label() == "missing"]
    assert sum(hollow) == np.isnan(values).sum()
    drawn(figure)


def test_a_curve_shows_what_is_expected_and_no_line_where_a_clock_goes_round() -> None:
    at = np.linspace(-2, 2, 5)[None]
    hour = Curve("at, hour", np.array([22.0, 23.0, 1.0, 2.0, 3.0]), 1.0, 24.0)
    load = Curve("load", np.array([1.0, 2.0, 3.0, 4.0, 5.0]), 2.0)
    still = Curve("still", np.array([7.0, 7.0, 7.0, 7.0, 7.000001]), 1e-6)
    walk = Traversal(np.array([4]), at, pd.DataFrame(index=range(5)), (hour, load, still), "r1", 2.0, True)
    figure = figures.traversal(walk)
    lines = [axes.lines[0] for axes in figure.axes[:3]]
    assert np.array_equal(lines[1].get_ydata(), load.values)
    assert np.array_equal(lines[1].get_xdata(), at[0])
    assert np.flatnonzero(np.isnan(lines[0].get_ydata())).tolist() == [1]
    low, high = figure.axes[2].get_ylim()
    assert high - low > 0.1  # what does not change does not look as if it did
    drawn(figure)


def test_a_step_of_a_text_that_says_the_same_is_not_repeated() -> None:
    walk = Interpolation(("a", "b"), np.linspace(0, 1, 4), ["x $y$", "x $y$", "z", "z " * 90], ())
    figure = figures.interpolation(walk)
    said = [text.get_text() for text in figure.axes[0].texts]
    assert said.count("x") == 1
    assert said.count('"') == 1
    assert said.count("z") == 91
    assert all(text.get_position()[0] + len(text.get_text()) <= WIDTH for text in figure.axes[0].texts)
    drawn(figure)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_stand_row_by_row_between_white_gaps(channels: int) -> None:
    images = RNG.integers(0, 256, (5, 4, 6, channels)).astype(np.uint8)
    board, gap = tiled(images, 3)
    assert (board.shape, gap) == ((2 * 5 - 1, 3 * 7 - 1, 3), 1)
    assert np.array_equal(board[5:9, 7:13], np.broadcast_to(images[4], (4, 6, 3)))
    assert (board[4] == 255).all()
    assert (board[5:, 14:] == 255).all()


@pytest.mark.parametrize(("records", "variables"), [(4, 3), (1, 1), (2, 90)])
def test_reconstructions_show_the_furthest_off(records: int, variables: int) -> None:
    found, expected = np.zeros((records, variables)), np.zeros((records, variables))
    found[0, -1] = 50.0
    found[-1, 0] = np.nan
    names = [f"cost in $ of {i} " + "x" * 50 for i in range(variables)]
    figure = figures.reconstructions(
        names, found, expected, np.ones_like(found), titles=[f"record {i}" for i in range(records)]
    )
    assert len(figure.axes) == records
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert len(labels) == min(variables, figures.MAX_VARIABLES)
    assert labels[-1].startswith(rf"cost in \$ of {variables - 1} ")
    drawn(figure)
