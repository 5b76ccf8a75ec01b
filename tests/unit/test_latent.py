"""Pieces of the latent tools against what they must be: planes, ways, draws, colours, and values from features."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1]))
import model_samples
from latent_samples import Case, detector, records

from vae_anomaly import latent
from vae_anomaly.batch import Records
from vae_anomaly.distributions import Mixture
from vae_anomaly.errors import ConfigError
from vae_anomaly.latent.decoding import Decoder, drawn
from vae_anomaly.latent.space import drawn_from, placed, standardised
from vae_anomaly.latent.walks import _between
from vae_anomaly.likelihoods import FactorisedDistribution
from vae_anomaly.preprocessing.tabular import ColumnState, decode_states, encode_states

G = np.random.default_rng(0)
TABLE = Case("mlp", "table", False)


# ---------------------------------------------------------------- the plane


def test_a_plane_is_its_own_map_and_more_dimensions_are_projected() -> None:
    two, five = G.normal(size=(50, 2)), G.normal(size=(50, 5)) * [1, 9, 1, 5, 1]
    assert np.array_equal(latent.plane(two).points, two)
    assert latent.plane(five, "latent").axes == ("latent mean 2", "latent mean 4")
    found = latent.plane(five)
    assert found.axes[0].startswith("principal component 1 (")
    assert found.points[:, 0].var() == pytest.approx(np.linalg.eigvalsh(np.cov(five.T, ddof=0))[-1])
    assert abs(np.corrcoef(found.points.T)[0, 1]) < 1e-9
    turned = latent.plane(two, "pca").points
    distances = [np.linalg.norm(part - part[0], axis=1) for part in (two, turned)]
    assert np.allclose(*distances)


@pytest.mark.parametrize("method", ["auto", "latent", "pca"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (7, 1), (2, 3)])
def test_every_shape_has_a_plane(method: latent.Method, shape: tuple[int, int]) -> None:
    found = latent.plane(G.normal(size=shape), method)
    assert found.points.shape == (shape[0], 2)
    assert np.isfinite(found.points).all()


def test_umap_is_asked_for_a_seeded_map(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    class Space:
        def __init__(self, **options: Any) -> None:
            asked.update(options)

        def fit_transform(self, mean: np.ndarray) -> np.ndarray:
            return mean[:, :2]

    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=Space))
    found = latent.plane(np.ones((9, 5)), "umap", seed=3)
    assert (found.points.shape, found.axes) == ((9, 2), ("UMAP 1", "UMAP 2"))
    assert (asked["random_state"], asked["n_neighbors"], asked["n_components"]) == (3, 8, 2)
    with pytest.raises(ConfigError, match="at least 4 records"):
        latent.plane(np.ones((3, 5)), "umap")


def test_without_umap_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ConfigError, match=r"Install vae-anomaly\[umap\]"):
        latent.plane(np.ones((9, 5)), "umap")
    with pytest.raises(ConfigError, match="Did you mean 'umap'"):
        latent.plane(np.ones((9, 5)), "umapp")  # type: ignore[arg-type]


# ---------------------------------------------------------------- colours


def test_a_colour_is_a_column_in_its_own_values() -> None:
    known = records("table", 20)
    holes = known.values["weight"].copy()
    holes[3] = np.nan
    encoded = latent.encode(detector(TABLE), Records(0, known.record_ids, {**known.values, "weight": holes},
                                                     known.status))  # fmt: skip
    assert np.isnan(encoded.colour("weight").values).tolist() == [i == 3 for i in range(20)]
    assert set(encoded.colour("shop").values) <= {"cafe", "fuel", "kiosk"}
    assert np.array_equal(encoded.colour("score").values, encoded.score)
    hours = encoded.colour("at")
    assert hours.name == "at, hour of the day (UTC)"
    assert hours.values[0] == pytest.approx(known.values["at"].astype("datetime64[m]").astype(int)[0] % 1440 / 60)
    for by, words in (("shp", "Did you mean 'shop'"), ("label", "colour must be one of"), ("image", "one of")):
        with pytest.raises(ConfigError, match=words):
            encoded.colour(by)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array([1, None, 3]), [1.0, np.nan, 3.0]),
        (pa.array([True, None, False]), ["True", None, "False"]),
        (pa.array(["a", None, "b"]), ["a", None, "b"]),
        (pa.chunked_array([["x"], ["y"]]), ["x", "y"]),
        (pa.array(["a", "b"]).dictionary_encode(), ["a", "b"]),
    ],
)
def test_any_column_of_a_file_is_a_colour(values: Any, expected: list[Any]) -> None:
    found = latent.colour_of("column", values).values
    if found.dtype == np.float64:
        assert np.array_equal(found, np.array(expected), equal_nan=True)
    else:
        assert found.tolist() == expected


# ---------------------------------------------------------------- ways


def test_a_great_circle_turns_evenly_and_a_line_cuts_across() -> None:
    a, b = torch.tensor([2.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0])
    share = torch.linspace(0, 1, 9)[:, None]
    arc, line = _between(a, b, share, "spherical"), _between(a, b, share, "linear")
    assert torch.allclose(arc.norm(dim=1), 2 - share[:, 0], atol=1e-6)
    angle = torch.atan2(arc[:, 1], arc[:, 0])
    assert torch.allclose(angle.diff(), torch.full((8,), torch.pi / 16), atol=1e-5)
    assert float(line[4].norm()) < float(arc[4].norm())
    assert torch.allclose(line.diff(dim=0), ((b - a) / 8).expand(8, 3), atol=1e-6)


@pytest.mark.parametrize("b", [[0.0, 0.0], [3.0, 0.0], [-3.0, 0.0], [1.0, 0.0]])
def test_a_great_circle_that_does_not_exist_is_a_line(b: list[float]) -> None:
    share = torch.linspace(0, 1, 5)[:, None]
    found = _between(torch.tensor([3.0, 0.0]), torch.tensor(b), share, "spherical")
    assert torch.allclose(found, _between(torch.tensor([3.0, 0.0]), torch.tensor(b), share, "linear"))
    assert torch.isfinite(found).all()


def test_the_lower_levels_of_a_ladder_follow_the_upper_ones() -> None:
    made = detector(Case("hierarchical", "table", False))
    prior, decode = made.vae.prior(), Decoder(made, torch.Generator()).features
    with torch.no_grad():
        z = prior.draw(1, torch.Generator().manual_seed(0))
        coordinates = standardised(prior, z)
        coordinates[:, 0] += 2
        moved, only = placed(prior, coordinates), z.clone()
    only[:, 0] += 2
    assert np.abs(decode(moved, None) - decode(z, None)).max() > 1e-3
    assert np.array_equal(decode(only, None), decode(z, None))  # what would be shown if they did not


def test_a_traversal_passes_through_the_record() -> None:
    made = detector(TABLE)
    base = records("table", 3, seed=5)
    found = latent.traverse(made, base=base, steps=2)
    z = standardised(made.vae.prior(), torch.from_numpy(latent.encode(made, base).mean[:1]))
    assert found.about == "r0"
    for i, dimension in enumerate(found.dimensions):  # its own values, in place of those of the step, decode to itself
        point = z.clone()
        point[:, dimension] = float(found.values[i, 1])
        whole = Decoder(made, torch.Generator())(placed(made.vae.prior(), point), None)
        assert whole.iloc[0].to_dict() == found.decoded.iloc[2 * i + 1].to_dict()


@pytest.mark.parametrize(
    "call",
    [
        lambda d, r: latent.traverse(d, steps=1),
        lambda d, r: latent.traverse(d, spread=0.0),
        lambda d, r: latent.traverse(d, base=r.take(np.zeros(0, int))),
        lambda d, r: latent.interpolate(d, r, steps=1),
        lambda d, r: latent.interpolate(d, r.take(np.array([0]))),
        lambda d, r: latent.interpolate(d, r, how="straight"),
        lambda d, r: latent.generate(d, 0),
        lambda d, r: latent.generate(d, 1, prior_temperature=0.0),
        lambda d, r: latent.generate(d, 1, prior_temperature=float("nan")),
        lambda d, r: latent.Decoding("beam"),
        lambda d, r: latent.Decoding(temperature=0.0),
        lambda d, r: latent.Decoding(top_p=0.0),
    ],
)
def test_what_makes_no_sense_is_refused(call: Any) -> None:
    with pytest.raises(ConfigError, match=" Got "):
        call(detector(TABLE), records("table", 4))


# ---------------------------------------------------------------- draws


def test_tokens_are_drawn_by_their_probabilities() -> None:
    share = torch.tensor([0.5, 0.3, 0.15, 0.05])
    logits = share.log().expand(20_000, 4)
    g = torch.Generator().manual_seed(0)

    def frequencies(decoding: latent.Decoding) -> torch.Tensor:
        return torch.bincount(decoding.choose(logits, g), minlength=4) / len(logits)

    assert frequencies(latent.Decoding("greedy")).tolist() == [1, 0, 0, 0]
    assert torch.allclose(frequencies(latent.Decoding("temperature")), share, atol=0.012)
    flat = share.sqrt() / share.sqrt().sum()
    assert torch.allclose(frequencies(latent.Decoding("temperature", 2.0)), flat, atol=0.012)
    assert frequencies(latent.Decoding("temperature", 0.01)).tolist() == [1, 0, 0, 0]
    kept = frequencies(latent.Decoding("nucleus", top_p=0.7))
    assert torch.allclose(kept, torch.tensor([0.625, 0.375, 0, 0]), atol=0.012)
    assert frequencies(latent.Decoding("nucleus", top_p=0.4)).tolist() == [1, 0, 0, 0]
    assert torch.allclose(frequencies(latent.Decoding("nucleus", top_p=1.0)), share, atol=0.012)


def test_a_written_text_ends_once_and_holds_no_padding_or_unknown_token() -> None:
    made = detector(Case("lstm", "text", False))
    decode = Decoder(made, torch.Generator().manual_seed(1), latent.Decoding("temperature", 1.5)).features
    ids = decode(torch.randn(300, made.vae.latent, generator=torch.Generator().manual_seed(0)), None)
    assert ids.shape == (300, 9)
    for row in ids:
        ends = np.flatnonzero(np.isin(row, (1, 3)))
        length = ends[0] if len(ends) else len(row)
        assert (row[:length] > 3).all()
        assert (row[length + 1 :] == 0).all()
    assert len({tuple(row) for row in ids}) > 100


def test_a_draw_has_the_moments_of_the_likelihood_and_its_mean_has_none() -> None:
    layout = model_samples.LAYOUTS["mixed"]
    parameters = torch.tensor([1.0, -2.0, 0.0, 3.0, 0.5, 1.2, 2.0, 0.0, -1.0]).expand(20_000, 9)
    distribution = FactorisedDistribution(layout, parameters, torch.tensor([0.5, 1.0, 2.0, 0.1, 3.0]))
    found, mean = drawn(distribution, torch.Generator().manual_seed(0)), distribution.mean()
    assert torch.allclose(found.mean(0), mean[0], atol=0.07)
    assert torch.allclose(found[:, :5].std(0), distribution.sigma, rtol=0.03)
    assert set(found[:, 5:].unique().tolist()) == {0.0, 1.0}
    assert (found[:, 6:].sum(1) == 1).all()
    assert float(mean.std(0).max()) == 0


def test_a_cold_draw_lies_near_the_component_that_it_came_from() -> None:
    prior = Mixture(torch.tensor([[-9.0, 0.0], [9.0, 0.0]]), torch.ones(2, 2))
    vae = types.SimpleNamespace(prior=lambda context: prior)
    g = torch.Generator
    warm, cold = (drawn_from(vae, 400, None, t, g().manual_seed(0)) for t in (1.0, 0.1))  # type: ignore[arg-type]
    centre = torch.sign(warm[:, :1]) * torch.tensor([[9.0, 0.0]])
    assert torch.allclose(cold - centre, 0.1 * (warm - centre), atol=1e-5)
    assert {-1.0, 1.0} == set(torch.sign(cold[:, 0]).tolist())


def test_a_generated_table_has_the_noise_of_its_columns_and_an_expected_one_has_less() -> None:
    made = detector(TABLE)
    warm, still = (latent.generate(made, 400, sample=sample).decoded for sample in (None, False))
    assert warm["weight"].std() > 1.2 * still["weight"].std()


# ---------------------------------------------------------------- values from features


def there_and_back(state: ColumnState, values: np.ndarray) -> np.ndarray:
    known = Records(0, np.arange(len(values)).astype(str), {state.column: values}, np.full(len(values), "ok"))
    found: np.ndarray = decode_states((state,), encode_states((state,), known.values, len(known))[0])[state.column]
    return found


@given(st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=20), st.sampled_from([0.0, 0.01, 5.0]))
def test_a_number_comes_back_to_six_digits_of_its_scale(cells: list[float], unit: float) -> None:
    state = ColumnState("n", "number", 0.0, center=(3.0,), scale=(2.0,), unit=unit)
    values = np.array(cells)
    found = there_and_back(state, values)
    assert np.isfinite(found).all()
    near = np.abs(values) < 20
    assert np.allclose(found[near], values[near], rtol=1e-4, atol=max(1e-5, 1e-5 * unit))
    assert np.allclose(found[~near], values[~near], rtol=3e-3)


@given(st.lists(st.integers(-100_000, 100_000), min_size=1, max_size=20))
def test_an_integer_comes_back_as_it_was(cells: list[int]) -> None:
    state = ColumnState("n", "number", 0.0, center=(3.0,), scale=(40_000.0,), integral=True)
    found = there_and_back(state, np.array(cells, dtype=np.float64))
    assert (found.dtype, found.tolist()) == (np.int64, cells)


@given(st.lists(st.integers(0, 7 * 1440 - 1), min_size=1, max_size=30))
def test_a_time_comes_back_as_weekday_and_minute(minutes: list[int]) -> None:
    state = ColumnState("t", "timestamp", 0.0, center=(0.1, -0.3, 0.2, 0.0), scale=(0.6, 0.7, 0.5, 0.7))
    monday = np.datetime64("2026-03-02T00:00", "us")
    found = there_and_back(state, monday + np.array(minutes).astype("timedelta64[m]"))
    days = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
    assert found.tolist() == [f"{days[m // 1440]} {m // 60 % 24:02d}:{m % 60:02d}" for m in minutes]


def test_a_value_that_was_never_seen_comes_back_as_none() -> None:
    state = ColumnState("c", "category", 0.0, categories=("a", "b"))
    assert there_and_back(state, pa.array(["b", "z", "a", None])).tolist() == ["b", None, "a", None]


def test_an_unknown_context_comes_back_as_none_in_every_column() -> None:
    encoder = detector(Case("conditional", "table", True)).preprocessor.context
    known = records("table", 3)
    values = {**known.values, "region": pa.array(["south", "west", "north"])}
    vectors = encoder.encode(Records(0, known.record_ids, values, known.status))
    found = encoder.decode(vectors.numpy())
    assert found["region"].tolist() == ["south", None, "north"]
    assert found["load"][1] is None


@pytest.mark.parametrize("method", ["latent", "pca"])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_projection_is_one_plane_for_whatever_is_looked_at(method: Any, size: int) -> None:
    known, other = (np.random.default_rng(seed).normal(size=(50, size)) * np.arange(1, size + 1) for seed in (0, 1))
    found = latent.projection(known, method)
    assert np.array_equal(found.points(known), latent.plane(known, method).points)
    assert np.allclose(found.points(np.concatenate([other, known]))[:50], found.points(other))
    mirrored = latent.projection(np.concatenate([known, 2 * known.mean(0) - known]), method)
    turned = latent.projection(np.concatenate([2 * known.mean(0) - known, known]), method)
    assert np.allclose(mirrored.directions, turned.directions)  # the sign does not depend on the order
    largest = found.directions[np.abs(found.directions).argmax(0), [0, 1]]
    assert (largest >= 0).all()


def test_a_frame_is_kept_to_and_turned_to_the_right_and_down() -> None:
    points = np.array([[0.0, 0.0], [1.0, 2.0], [5.0, -9.0]])
    assert latent.framed(points, np.zeros(2), np.array([1.0, 2.0])).tolist() == [[0, 1000], [1000, 0], [1000, 1000]]
    assert latent.framed(points, np.zeros(2), np.array([1.0, 0.0]))[:, 1].tolist() == [500] * 3
