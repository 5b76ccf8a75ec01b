"""The figures of a fit's quality show the numbers that they are given."""

from __future__ import annotations

import numpy as np
import pytest

from vae_anomaly.figures.quality import corruption_map, kl_map
from vae_anomaly.figures.style import png
from vae_anomaly.training import EpochLog

SHARES = {"swap": {"a $x": 0.25, "shop": 0.5}, "scale": {"a $x": 1.0}, "unknown": {"shop": 0.0}}


def test_a_share_stands_in_its_row_and_column_and_nothing_where_there_is_none() -> None:
    axes = corruption_map(SHARES, 0.05).axes[0]
    shown = np.ma.filled(axes.images[0].get_array(), np.nan)
    np.testing.assert_array_equal(shown, [[0.25, 1.0, np.nan], [0.5, np.nan, 0.0]])
    assert [t.get_text() for t in axes.get_xticklabels()] == ["swap", "scale", "unknown"]
    assert [t.get_text() for t in axes.get_yticklabels()] == [r"a \$x", "shop"]
    assert {(*t.get_position(), t.get_text()) for t in axes.texts} == {
        (0, 0, "25"), (0, 1, "50"), (1, 0, "100"), (2, 1, "0")}  # fmt: skip
    assert "5 %" in axes.get_title(loc="left")


@pytest.mark.parametrize("places", [1, 60])
def test_any_number_of_places_is_drawn(places: int) -> None:
    shares = {kind: {f"column {i}": i / places for i in range(places)} for kind in ("swap", "scale")}
    assert png(corruption_map(shares, 0.01)).startswith(b"\x89PNG")


def epochs(count: int, latent: int) -> list[EpochLog]:
    kl = [tuple(float(e * k) for k in range(latent)) for e in range(count)]
    return [EpochLog(e, 1.0, 1.0, float(e % 7), 0.0, sum(kl[e]), True, kl[e], min(e, latent)) for e in range(count)]


def test_the_map_of_the_kl_has_a_row_for_each_dimension_and_a_column_for_each_epoch() -> None:
    upper, lower = kl_map(epochs(20, 4)).axes[:2]
    np.testing.assert_array_equal(lower.images[0].get_array(), [[e * k for e in range(20)] for k in range(4)])
    np.testing.assert_array_equal(upper.lines[0].get_ydata(), np.minimum(np.arange(20), 4))
    # the kept epoch: the first of those with the best validation ELBO
    assert {line.get_xdata()[0] for axes in (upper, lower) for line in axes.lines[-1:]} == {6}


@pytest.mark.parametrize(("count", "latent"), [(1, 1), (3, 1), (1, 64)])
def test_one_epoch_and_one_dimension_are_drawn(count: int, latent: int) -> None:
    assert png(kl_map(epochs(count, latent))).startswith(b"\x89PNG")
