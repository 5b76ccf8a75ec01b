"""Laws of the preprocessing of tables: learned from training rows only, finite, by value, and the same after JSON."""

from __future__ import annotations

import json
import math
import warnings

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vae_anomaly.batch import Records
from vae_anomaly.detector import Part
from vae_anomaly.errors import DataError
from vae_anomaly.fitting import Recipe, fit_detector, split
from vae_anomaly.preprocessing.tabular import TAIL, TabularPreprocessor, decode_number, fit_tabular
from vae_anomaly.schema import Column, Schema, check

SCALES = ("linear", "log")
WIDEST = 1.7e308


def records(column: Column, cells: pa.Array | list | np.ndarray) -> Records:
    table = pa.table({column.name: cells})
    return check(table, Schema((column,)), first_row=0, file="test")


def learned(column: Column, cells: pa.Array | list | np.ndarray) -> TabularPreprocessor:
    return fit_tabular(records(column, cells), Schema((column,)))


def number(scale: str = "linear") -> Column:
    return Column("x", "number", scale=scale)


def features(preprocessor: TabularPreprocessor, cells: pa.Array | list | np.ndarray, column: Column) -> np.ndarray:
    return preprocessor.encode(records(column, cells)).x.numpy()


# ------------------------------------------------------------- learned from training rows only


def test_everything_is_learned_from_the_training_rows(make_records, schema):
    rows, recipe = make_records(300), Recipe(model=Part("mlp", {"hidden": (8,), "latent": 2}), training={"epochs": 1})
    parts = split(rows, recipe)
    fit = fit_detector(rows, schema, recipe)
    assert all((fit.splits[name] == parts[name]).all() for name in parts)
    assert fit.detector.preprocessor == fit_tabular(rows.take(parts["training"]), schema)
    assert fit.detector.preprocessor != fit_tabular(rows, schema)
    held_out = np.concatenate([parts["validation"], parts["calibration"]])
    amount, shop = rows.values["amount"].copy(), rows.values["shop"].to_pylist()
    amount[held_out[0]] = 1e29
    shop[held_out[1]] = "only here"
    spoiled = {**rows.values, "amount": amount, "shop": pa.array(shop)}
    other = Records(0, rows.record_ids, spoiled, rows.status).take(parts["training"])
    assert fit_tabular(other, schema) == fit.detector.preprocessor


def test_encoding_neither_learns_nor_changes_its_records(make_records, schema):
    rows = make_records(200)
    preprocessor = fit_tabular(rows, schema)
    before = {k: v.to_pylist() if isinstance(v, pa.Array) else v.tobytes() for k, v in rows.values.items()}
    state = json.dumps(preprocessor.to_dict())
    preprocessor.encode(rows)
    assert json.dumps(preprocessor.to_dict()) == state
    assert before == {k: v.to_pylist() if isinstance(v, pa.Array) else v.tobytes() for k, v in rows.values.items()}


def test_json_keeps_every_bit(make_records, schema):
    rows = make_records(500)
    preprocessor = fit_tabular(rows, schema)
    back = TabularPreprocessor.from_dict(json.loads(json.dumps(preprocessor.to_dict())))
    assert back == preprocessor
    for ours, theirs in zip(vars(preprocessor.encode(rows)).values(), vars(back.encode(rows)).values(), strict=True):
        assert (ours is None and theirs is None) or torch.equal(ours, theirs)


# ------------------------------------------------------------- numbers


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(
    "cells",
    [
        [0.0] * 50,
        [5.0] * 50,
        [-1e29] * 50,
        5.0 + 1e-16 * np.arange(50),
        [0.0] * 49 + [1e30],
        [7.0] * 40 + [8.0] * 10,
        1e-18 * np.arange(50),
        1e-300 * np.arange(50),
        np.array([5e-324] * 25 + [0.0] * 25),
        np.array([3.0]),
        np.exp(np.linspace(-60, 60, 50)),
    ],
    ids=["zeros", "constant", "huge constant", "rounding", "one huge", "mostly one", "1e-18", "1e-300", "denormal",
         "one cell", "heavy tails"],
)  # fmt: skip
def test_any_column_gives_finite_features_and_a_positive_scale(scale, cells):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        preprocessor = learned(number(scale), cells)
        state = preprocessor.states[0]
        assert np.isfinite([*state.center, *state.scale]).all()
        assert state.kind == "binary" or state.scale[0] > 0
        assert np.abs(features(preprocessor, cells, number(scale))).max() < 1e4
        far = features(preprocessor, [WIDEST, -WIDEST, 1e300, 5e-324, 0.0], number(scale))
    assert np.isfinite(far).all()
    if state.kind == "number":
        assert far[0] > far[3] > far[1] or far[0] > far[4] > far[1]


def test_a_constant_column_sees_a_change_and_not_its_rounding():
    preprocessor = learned(number(), [5.0] * 50)
    x = features(preprocessor, [5.0, 5.0 + 1e-12, 25.0], number())[:, 0]
    assert x[0] == 0
    assert abs(x[1]) < 1e-9
    assert x[2] > 3


@pytest.mark.parametrize("scale", SCALES)
def test_features_rise_with_the_value_up_to_the_largest_number(scale):
    g = np.random.default_rng(0)
    preprocessor = learned(number(scale), np.exp(3 + g.normal(size=500)))
    sizes = np.concatenate([np.geomspace(1e-3, 1e300, 1500), [WIDEST]])
    values = np.concatenate([-sizes[::-1], [0.0], sizes])
    x = features(preprocessor, values, number(scale))[:, 0]
    assert np.isfinite(x).all()
    assert (np.diff(x) >= 0).all()
    assert len(np.unique(x)) > 1000


@pytest.mark.parametrize("scale", SCALES)
@settings(deadline=None, derandomize=True, max_examples=300)
@given(value=st.floats(-1e200, 1e200))
@example(value=20.085)
@example(value=1e200)
@example(value=-1e200)
@example(value=0.0)
def test_decoding_inverts_encoding(scale, value):
    preprocessor = learned(number(scale), np.exp(3 + np.random.default_rng(1).normal(size=500)))
    state = preprocessor.states[0]
    t = float(features(preprocessor, [value], number(scale))[0, 0])
    # a feature has 24 bits: near the middle that is a small part of the scale, far out of the value itself
    slack = 1e-6 * max(abs(state.center[0]), state.scale[0], state.unit)
    assert decode_number(state, t) == pytest.approx(value, rel=2e-3 if abs(t) > TAIL else 1e-5, abs=max(slack, 1e-5))


def test_the_scale_is_robust_to_outliers_and_robust_units_are_standard_ones():
    g = np.random.default_rng(2)
    clean = 40 + 3 * g.normal(size=20_000)
    state = learned(number(), clean).states[0]
    assert state.center[0] == pytest.approx(40, abs=0.1)
    assert state.scale[0] == pytest.approx(3, rel=0.03)
    spoiled = clean.copy()
    spoiled[:1000] = 1e12
    assert learned(number(), spoiled).states[0].scale[0] == pytest.approx(3, rel=0.2)


def test_a_log_scale_makes_equal_ratios_equal_steps():
    column = number("log")
    preprocessor = learned(column, np.exp(6 + np.random.default_rng(3).normal(size=1000)))
    steps = np.diff(features(preprocessor, 400.0 * 2.0 ** np.arange(6), column)[:, 0])
    np.testing.assert_allclose(steps, steps[0], rtol=0.02)


@pytest.mark.parametrize(
    ("column", "cells"),
    [
        (Column("x", "number"), pa.nulls(20, pa.float64())),
        (Column("x", "boolean"), pa.nulls(20, pa.bool_())),
        (Column("x", "category"), pa.nulls(20, pa.string())),
        (Column("x", "timestamp"), pa.nulls(20, pa.timestamp("us", "UTC"))),
    ],
    ids=lambda v: getattr(v, "kind", ""),
)
def test_a_column_without_a_single_cell_is_refused_by_name(column, cells):
    with pytest.raises(DataError, match="'x'") as caught:
        learned(column, cells)
    assert caught.value.rule == "unusable_column"


def test_absurd_training_values_are_refused_with_their_rows():
    cells = np.arange(50.0)
    cells[[3, 17]] = 1e31, -1e300
    with pytest.raises(DataError, match="1e30") as caught:
        learned(number(), cells)
    assert (caught.value.rows, caught.value.count) == ((3, 17), 2)
    assert "1e+31" not in str(caught.value)


# ------------------------------------------------------------- missing and unseen cells


def test_missing_cells_are_masked_zeros_and_their_evidence_follows_laplace():
    cells = [1.0, None, 3.0, 2.0, 4.0, 2.5, 1.5, 3.5]
    preprocessor = learned(number(), cells)
    inputs = preprocessor.encode(records(number(), cells))
    assert inputs.x[1, 0] == 0
    assert inputs.observed[:, 0].tolist() == [1, 0, 1, 1, 1, 1, 1, 1]
    share = (1 + 1) / (8 + 2)
    assert inputs.evidence[:, 0].tolist() == pytest.approx([0, math.log((1 - share) / share), 0, 0, 0, 0, 0, 0])


def test_a_present_cell_is_evidence_where_cells_are_mostly_missing():
    preprocessor = learned(number(), [1.0, 2.0, *[None] * 18])
    inputs = preprocessor.encode(records(number(), [1.0, None]))
    assert inputs.evidence[:, 0].tolist() == pytest.approx([math.log((19 / 22) / (3 / 22)), 0.0])


def test_a_value_never_seen_has_no_feature_and_the_evidence_of_good_and_turing():
    column = Column("shop", "category")
    preprocessor = learned(column, ["north"] * 10 + ["south"] * 5 + ["east"])  # one value seen once
    inputs = preprocessor.encode(records(column, ["north", "nowhere", "North"]))
    assert inputs.x.tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert inputs.observed is None
    assert inputs.evidence[:, 0].tolist() == pytest.approx([0, -math.log(2 / 18), -math.log(2 / 18)])


def test_a_matrix_encodes_to_the_bits_of_its_columns():
    g = np.random.default_rng(4)
    X = np.exp(2 * g.normal(size=(400, 4)))
    X[g.random(X.shape) < 0.05] = np.nan
    X[:3, 1] = WIDEST, -WIDEST, -0.0
    schema = Schema(tuple(Column(f"x{i}", "number", scale="log" if i == 2 else "linear") for i in range(4)))
    status, ids = np.full(400, "ok", dtype=object), np.arange(400).astype(str)
    rows = Records(0, ids, {f"x{i}": X[:, i] for i in range(4)}, status)
    preprocessor = fit_tabular(rows.take(np.arange(3, 400)), schema)
    expected = preprocessor.encode(rows)
    for matrix in (X, np.asfortranarray(X), np.repeat(X, 2, axis=0)[::2]):
        found = preprocessor.encode_matrix(matrix)
        assert found.x.is_contiguous()
        assert torch.equal(found.x, expected.x)
        assert torch.equal(found.observed, expected.observed)
        assert torch.equal(found.evidence, expected.evidence)


# ------------------------------------------------------------- numbers of two values


def test_a_number_of_two_values_is_one_or_the_other_and_what_it_never_was_is_evidence():
    preprocessor = learned(number(), [3.0] * 6 + [7.0] * 4)
    assert [state.kind for state in preprocessor.states] == ["binary"]
    assert preprocessor.layout.size("bernoulli") == 1 and preprocessor.layout.discrete == 1.0
    cells = [3.0, 7.0, None, 4.0, 5.5, -1.0, 3.0 + 1e-9, WIDEST]
    inputs = preprocessor.encode(records(number(), cells))
    assert inputs.x[:, 0].tolist() == [0, 1, 0, 0, 1, 0, 0, 1]
    assert inputs.observed[:, 0].tolist() == [1, 1, 0, 1, 1, 1, 1, 1]
    unseen, missing = -math.log(1 / 12), math.log((1 - 1 / 12) / (1 / 12))
    far = math.log1p((WIDEST - 7.0) / 4.0)
    expected = [0, 0, missing, *(unseen + math.log1p(d) for d in (0.25, 0.375, 1.0)), 0, unseen + far]
    assert inputs.evidence[:, 0].tolist() == pytest.approx(expected, rel=1e-6)
    assert preprocessor.decode(inputs.x.numpy())["x"].tolist() == [3, 7, 3, 3, 7, 3, 3, 7]
    known = records(number(), cells)
    assert preprocessor.quality(known, known.scorable | True).tolist() == [[1, 4, 0]]
    assert TabularPreprocessor.from_dict(json.loads(json.dumps(preprocessor.to_dict()))) == preprocessor


@pytest.mark.parametrize("cells", [[5.0] * 20, [5.0, 5.0 + 1e-12] * 10, [0.0, 1.0, 0.5] * 7])
def test_a_number_of_one_value_or_three_or_of_rounding_is_none_of_two(cells):
    assert learned(number(), cells).states[0].kind == "number"


def test_a_matrix_with_numbers_of_two_values_encodes_to_the_bits_of_its_columns():
    g = np.random.default_rng(4)
    X = g.normal(size=(300, 5))
    X[:, [0, 3]] = np.where(X[:, [0, 3]] > 0.5, 9.0, -2.5)
    X[g.random(X.shape) < 0.05] = np.nan
    X[:3, 0] = WIDEST, -WIDEST, 3.0
    names = [f"x{i}" for i in range(5)]
    rows = Records(0, np.arange(300).astype(str), dict(zip(names, X.T, strict=True)), np.full(300, "ok", dtype=object))
    for columns in (range(5), (0, 3), (1, 2, 4)):
        schema = Schema(tuple(Column(names[i], "number") for i in columns))
        preprocessor = fit_tabular(rows.take(np.arange(3, 300)), schema)
        order = [int(name[1:]) for name in preprocessor.columns]
        found, expected = preprocessor.encode_matrix(X[:, order]), preprocessor.encode(rows)
        for name in ("x", "observed", "evidence"):
            assert torch.equal(getattr(found, name), getattr(expected, name))
    assert sorted(order) == [1, 2, 4]


# ------------------------------------------------------------- categories


def test_categories_go_by_value_and_not_by_the_code_of_a_file():
    column, names = Column("shop", "category"), ["north", "south", "east"]
    cells = ["north", "east", None, "south", "north"]
    preprocessor = learned(column, names * 3)
    expected = preprocessor.encode(records(column, pa.array(cells)))
    for order in (names, names[::-1], ["south", "unused", "north", "east"]):
        codes = pa.array([None if c is None else order.index(c) for c in cells], pa.int32())
        found = preprocessor.encode(records(column, pa.DictionaryArray.from_arrays(codes, pa.array(order))))
        assert torch.equal(found.x, expected.x)
        assert torch.equal(found.observed, expected.observed)
    assert learned(column, names * 3) == learned(column, (names * 3)[::-1])


def test_too_many_categories_are_refused_and_none_is_shown():
    cells = [f"secret-{i}" for i in range(257)]
    with pytest.raises(DataError, match=r"at most 256 values\. Got 257") as caught:
        learned(Column("shop", "category"), cells)
    assert "secret" not in str(caught.value)
    assert learned(Column("shop", "category"), cells[:256]).layout.features == 256


# ------------------------------------------------------------- timestamps


def times(timezone: str | None = None) -> Column:
    return Column("at", "timestamp", timezone)


@pytest.fixture(scope="module")
def clock() -> TabularPreprocessor:
    every_hour = np.datetime64("2026-01-05", "us") + np.arange(28 * 24) * np.timedelta64(3_600_000_000, "us")
    return learned(times(), pa.array(every_hour).cast(pa.timestamp("us", "UTC")))


def test_the_same_instant_in_three_zones_is_the_same_record(clock):
    text = ["2026-03-09T23:30:00+00:00", "2026-03-10T08:30:00+09:00", "2026-03-09T19:30:00-04:00"]
    x = features(clock, text, times())
    assert (x == x[0]).all()
    instants = pa.array([np.datetime64("2026-03-09T23:30:00", "us")]).cast(pa.timestamp("us", "UTC"))
    for zone in ("UTC", "Asia/Tokyo", "America/New_York"):
        assert (features(clock, instants.cast(pa.timestamp("us", zone)), times()) == x[0]).all()
    for unit in ("s", "ms", "us", "ns"):
        assert (features(clock, instants.cast(pa.timestamp(unit, "UTC")), times()) == x[0]).all()


def test_local_times_of_a_column_with_a_zone_follow_its_clock():
    column = times("Europe/Berlin")
    preprocessor = learned(
        column, [f"2026-0{m}-1{d} {h:02d}:00:00" for m in (1, 7) for d in range(9) for h in range(24)]
    )
    # noon in Berlin is 11:00 UTC in winter and 10:00 UTC in summer: one time of day
    winter, summer = features(preprocessor, ["2026-01-14 12:00:00", "2026-07-15 12:00:00"], column)[:, :2]
    assert (winter == summer).all()
    x = features(preprocessor, ["2026-01-14T11:00:00Z", "2026-07-15T10:00:00Z"], column)[:, :2]
    assert (x == winter).all()


def test_midnight_and_the_turn_of_the_week_are_no_jumps(clock):
    def distance(a: str, b: str) -> float:
        x = features(clock, [a, b], times())
        return float(np.linalg.norm(x[0] - x[1]))

    assert distance("2026-01-07T23:59:00Z", "2026-01-08T00:01:00Z") < 0.02
    assert distance("2026-01-11T23:59:00Z", "2026-01-12T00:01:00Z") < 0.02  # Sunday to Monday
    assert distance("2026-01-07T00:00:00Z", "2026-01-07T12:00:00Z") > 2
    assert distance("2026-01-07T12:00:00Z", "2026-02-04T12:00:00Z") == 0  # four weeks later
    assert distance("1969-12-31T23:59:00Z", "1970-01-01T00:01:00Z") < 0.02  # on both sides of the epoch


def test_times_that_never_vary_and_the_first_and_last_year_are_finite(clock):
    noon = ["2026-01-07T12:00:00Z"] * 20
    assert np.isfinite(features(learned(times(), noon), [*noon, "2026-01-08T00:00:00Z"], times())).all()
    assert np.isfinite(features(clock, ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z"], times())).all()
    x = clock.encode(records(times(), pa.array(["2026-01-07T12:00:00Z", None])))
    assert x.x[1].tolist() == [0, 0, 0, 0]
    assert x.observed.tolist() == [[1, 1, 1, 1], [0, 0, 0, 0]]
