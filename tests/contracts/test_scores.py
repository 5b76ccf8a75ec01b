"""Laws of every score, over the table ``SCORES`` itself: a record's score is a function of this record alone."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from score_samples import CHEAP

from vae_anomaly import VAEDetector
from vae_anomaly.batch import Records
from vae_anomaly.detector import BLOCKS, CHUNK, Detector, Member, Part, chunk_rows, chunks
from vae_anomaly.errors import ConfigError
from vae_anomaly.fitting import Recipe, fit_detector
from vae_anomaly.likelihoods import Block, Layout
from vae_anomaly.registry import build
from vae_anomaly.scores import SCORES, Referring
from vae_anomaly.scores.latent_neighbours import BLOCK, COLUMNS, GROUPS, Nearest, latent_neighbours
from vae_anomaly.scores.marginal import FEW, marginal
from vae_anomaly.scores.surprisal import tail
from vae_anomaly.training import limited_threads
from vae_anomaly.vae import Inputs, evaluate

WIDTH = 30  # so many numbers that their sum depends on how they lie in memory
ROWS, HOLED = 5003, 1024  # holes, unseen and absurd values in the first chunk only, and a padded tail
THREADS = (2, 3, 7)
EXTREMES = (1e300, -1e300, 1.7e308, -1.7e308, 1e30, 5e-324, -0.0)
Scorer = Callable[[np.ndarray], np.ndarray]  # positions of records -> their scores

each_score = pytest.mark.parametrize("kind", SCORES)


def with_values(records: Records, **columns: np.ndarray | pa.Array) -> Records:
    return Records(records.first_row, records.record_ids, {**records.values, **columns}, records.status)


@pytest.fixture(scope="module")
def stream(make_records) -> Records:
    """Whole records, but for the first chunk: missing cells, values never seen, and absurd ones."""
    holed, whole = make_records(HOLED, 5, holes=0.05), make_records(ROWS - HOLED, 6, holes=0.0)
    shop = pa.array(["unheard of" if i % 7 == 0 else v for i, v in enumerate(holed.values["shop"].to_pylist())])
    amount = holed.values["amount"].copy()
    amount[100 : 100 + len(EXTREMES)] = EXTREMES
    holed = with_values(holed, shop=shop, amount=amount)
    values = {
        name: pa.concat_arrays([v, whole.values[name]]) if isinstance(v, pa.Array) else np.append(v, whole.values[name])
        for name, v in holed.values.items()
    }
    return Records(0, np.arange(ROWS).astype(str), values, np.append(holed.status, whole.status))


def dependence(scores: Scorer, rows: int = ROWS, threads: tuple[int, ...] = THREADS) -> list[str]:
    """What the score of a record depends on beside the record: nothing, or the law is broken. Bits are compared."""
    g = np.random.default_rng(0)
    everything = np.arange(rows)
    base = scores(everything)
    orders = {
        "order": [g.permutation(rows), everything[::-1]],
        "records with holes": [everything[HOLED:], everything[HOLED + 500 :]],
        "subset": [np.sort(g.choice(rows, size, replace=False)) for size in (2, 3, 7, 64, 1023, 1024, 1025, 4000)],
        "batch of one": [np.array([i]) for i in g.integers(0, rows, 20)],
        "repetition": [everything, np.full(1500, 2), np.full(1500, rows - 1)],
    }
    broken = [what for what, indices in orders.items() for i in indices if not same(scores(i), base[i])]
    for count in threads:
        with limited_threads(count):
            if not same(scores(everything), base) or not same(scores(orders["order"][0]), base[orders["order"][0]]):
                broken.append(f"{count} threads")
    return sorted(set(broken))


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """The same bits, whatever they mean."""
    return a.tobytes() == b.tobytes()


@each_score
def test_scores_are_finite_for_finite_records(kind, fitted, stream):
    found = fitted(kind).detector.detect(stream)
    assert found.score.dtype == np.float64
    assert np.isfinite(found.score).all()
    assert (found.status == "ok").all()
    assert ((found.p_value > 0) & (found.p_value <= 1)).all()


@each_score
def test_a_score_depends_on_nothing_but_its_record(kind, fitted, stream):
    detector = fitted(kind).detector
    assert dependence(lambda index: detector.detect(stream.take(index)).score) == []


@each_score
@pytest.mark.parametrize("hidden", [(96,), (80, 57)])  # wide enough that torch would share one layer among threads
def test_a_score_does_not_depend_on_the_threads_for_wide_layers(kind, hidden, make_records, schema, stream):
    model, score = Part("mlp", {"hidden": hidden}), Part(kind, CHEAP.get(kind, {}))
    recipe = Recipe(model=model, score=score, training={"epochs": 1}, calibration=0.3)
    detector = fit_detector(make_records(300), schema, recipe).detector
    assert dependence(lambda index: detector.detect(stream.take(index)).score) == []


@each_score
def test_dependence_is_seen(kind, fitted, stream):
    detector = fitted(kind).detector

    def centred(index: np.ndarray) -> np.ndarray:
        scores = detector.detect(stream.take(index)).score
        return scores - np.median(scores)

    def in_one_go(index: np.ndarray) -> np.ndarray:
        # a mask for everyone as soon as one has a hole, and something that forgets to mask its normalisation
        inputs = detector.encode(stream.take(index))
        return detector.scores(inputs) * (1.0 if inputs.observed is None else 1.0 + 2**-52)

    found = dependence(centred, threads=())
    assert "order" not in found
    assert {"subset", "batch of one", "records with holes"} <= set(found)
    assert "records with holes" in dependence(in_one_go, threads=())


@each_score
def test_absent_masks_and_evidence_are_the_same_as_empty_ones(kind, fitted, stream):
    detector = fitted(kind).detector
    inputs = detector.encode(stream.take(np.arange(HOLED, ROWS)))
    assert inputs.observed is None
    assert inputs.evidence is None
    ones, columns = torch.ones_like(inputs.x), len(detector.preprocessor.states)
    for zero in (0.0, -0.0):
        full = Inputs(inputs.x, ones, torch.full((len(inputs), columns), zero))
        assert same(detector.scores(full), detector.scores(inputs))
        assert same(detector.terms(full), detector.terms(inputs))


@each_score
def test_a_negative_zero_is_a_zero(kind, fitted, stream):
    detector, some = fitted(kind).detector, stream.take(np.arange(HOLED, HOLED + 50))
    zeros = [with_values(some, a=np.full(50, zero), b=np.full(50, zero)) for zero in (0.0, -0.0)]
    assert same(detector.detect(zeros[0]).score, detector.detect(zeros[1]).score)


@functools.cache
def estimator(kind: str) -> VAEDetector:
    X = matrix(600, 1)
    X[np.random.default_rng(4).random(X.shape) < 0.02] = np.nan
    options = {"hidden": (32, 16), "latent": 4}
    return VAEDetector(scoring=kind, model_options=options, training={"steps": 60}, calibration=0.3, alpha=0.05).fit(X)


def matrix(rows: int, seed: int) -> np.ndarray:
    g = np.random.default_rng(seed)
    return g.normal(size=(rows, 5)) @ g.normal(size=(5, WIDTH)) + g.normal(size=(rows, WIDTH))


def holed_matrix() -> np.ndarray:
    X, g = matrix(ROWS, 2), np.random.default_rng(3)
    X[:HOLED][g.random((HOLED, WIDTH)) < 0.05] = np.nan
    X[g.random(X.shape) < 0.01] = -0.0
    X[7:14, 2] = EXTREMES
    return X


@each_score
def test_the_estimator_gives_the_bits_of_its_detector_in_every_order_and_layout(kind):
    X, model = holed_matrix(), estimator(kind)
    base = model.anomaly_score(X)
    assert np.isfinite(base).all()
    assert dependence(lambda index: model.anomaly_score(X[index]), threads=(7,)) == []
    detector = model.detector_
    names = [c.name for c in detector.schema.columns]
    status = np.full(ROWS, "ok", dtype=object)
    records = Records(0, np.arange(ROWS).astype(str), {n: X[:, i].copy() for i, n in enumerate(names)}, status)
    usable = ~np.isnan(X).all(1)
    assert same(detector.detect(records).score[usable], base[usable])
    assert same(detector.scores(detector.preprocessor.encode_matrix(X)), base)
    assert same(detector.scores(detector.preprocessor.encode_matrix(np.asfortranarray(X))), base)
    assert same(model.anomaly_score(np.asfortranarray(X)), base)
    assert same(model.anomaly_score(np.repeat(X, 2, axis=1)[:, ::2]), base)
    assert same(model.anomaly_score(X.tolist()), base)


@each_score
def test_a_frame_scores_like_its_matrix(kind):
    X = matrix(300, 1)
    frame = pd.DataFrame(X, columns=[f"c{i}" for i in range(WIDTH)])
    options = {"scoring": kind, "model_options": {"hidden": (16,), "latent": 2}, "training": {"steps": 20}}
    by_frame, by_matrix = VAEDetector(**options).fit(frame), VAEDetector(**options).fit(X)
    assert same(by_frame.anomaly_score(frame), by_matrix.anomaly_score(X))


@each_score
def test_terms_sum_to_the_score(kind, fitted, stream):
    detector = fitted(kind).detector
    inputs = detector.encode(stream)
    scores, terms = detector.scores(inputs), detector.terms(inputs)
    assert terms.shape == (ROWS, len(detector.preprocessor.states) + 1)
    assert (np.abs(terms.sum(1) - scores) <= 1e-9 * np.abs(terms).sum(1)).all()
    rounded = terms.astype(np.float32).sum(1)  # sums in single precision would be caught
    assert (np.abs(rounded - scores) > 1e-9 * np.abs(terms).sum(1)).any()


@each_score
@pytest.mark.parametrize("column", ["a", "b", "amount", "at", "flag", "shop"])
def test_a_cell_that_was_never_missing_raises_the_score_when_it_is(kind, column, fitted, make_records):
    detector, whole = fitted(kind, holes=0.0).detector, make_records(300, 8, holes=0.0)
    empty = {
        "at": np.full(300, np.datetime64("NaT"), "datetime64[us]"),
        "shop": pa.array([None] * 300, pa.string()),
    }.get(column, np.full(300, np.nan))
    raised = detector.detect(with_values(whole, **{column: empty})).score - detector.detect(whole).score
    assert (raised > 0).mean() > 0.9


@each_score
def test_evidence_counts_in_full(kind, fitted, stream):
    detector = fitted(kind).detector
    inputs = detector.encode(stream.take(np.arange(HOLED)))
    bare = Inputs(inputs.x, inputs.observed)
    nats = inputs.evidence.double().numpy()
    assert (nats.sum(1) > 0).mean() > 0.1
    np.testing.assert_allclose(detector.scores(inputs), detector.scores(bare) + nats.sum(1), rtol=1e-12)
    np.testing.assert_allclose(detector.terms(inputs)[:, :-1], detector.terms(bare)[:, :-1] + nats, rtol=1e-12)


@each_score
def test_a_value_never_seen_raises_the_score(kind, fitted, make_records):
    detector, whole = fitted(kind).detector, make_records(300, 8, holes=0.0)
    unseen = with_values(whole, shop=pa.array(["unheard of"] * 300))
    raised = detector.detect(unseen).score - detector.detect(whole).score
    assert (raised > 0).mean() > 0.9
    assert np.median(raised) > 2
    other = with_values(whole, shop=pa.array(["no such shop"] * 300))
    assert same(detector.detect(other).score, detector.detect(unseen).score)


# the KL alone knows only what the encoder is shown, and that is the logarithm of what is far out
@pytest.mark.parametrize("kind", [kind for kind in SCORES if kind != "kl"])
@pytest.mark.parametrize("column", ["a", "b", "amount"])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_value_far_out_scores_higher_the_farther_and_is_flagged(kind, column, sign, fitted, make_records):
    detector, whole = fitted(kind).detector, make_records(60, 8, holes=0.0)
    state = next(s for s in detector.preprocessor.states if s.column == column)
    distances = np.array([20, 50, 200, 1e3, 1e4, 1e6, 1e12, 1e50, 1e150, 1e300])
    scores, flagged = [], []
    for distance in distances:
        value = np.full(60, state.center[0] + sign * distance * state.scale[0])
        found = detector.detect(with_values(whole, **{column: value}))
        scores.append(found.score)
        flagged.append(found.is_anomaly)
    assert (np.diff(np.array(scores), axis=0) > 0)[distances[:-1] >= 200].all()
    assert np.array(flagged)[distances >= 1e3].all()


@each_score
def test_what_is_not_a_number_is_never_normal(kind, fitted, make_records):
    detector, records = fitted(kind).detector, make_records(50, 8, holes=0.0)

    class Broken:
        def __call__(self, evaluation):
            scores = detector.members[0].score(evaluation)
            scores[:2] = torch.tensor([torch.nan, torch.inf])
            return scores

    found = replace(detector, members=(Member(detector.vae, Broken()),)).detect(records)
    assert (found.status[:2] == "unscorable:non_finite_score").all()
    assert np.isnan(found.score[:2]).all()
    assert np.isnan(found.p_value[:2]).all()
    assert (found.status[2:] == "ok").all()
    assert detector.threshold.flag(np.array([np.nan])).all()


@each_score
def test_the_estimator_never_calls_an_unscorable_record_normal(kind):
    g = np.random.default_rng(0)
    frame = pd.DataFrame({"v": g.normal(size=200), "w": g.normal(size=200), "shop": g.choice(["north", "south"], 200)})
    model = VAEDetector(scoring=kind, model_options={"hidden": (16,), "latent": 2}, training={"steps": 20}).fit(frame)
    broken = frame.head(4).copy()
    broken.loc[0, "v"] = np.inf
    broken.loc[1, ["v", "w"]], broken.loc[1, "shop"] = np.nan, None
    assert np.isnan(model.anomaly_score(broken)[:2]).all()
    assert (model.predict(broken)[:2] == -1).all()
    agree = (model.predict(frame) == -1) == model.detector_.threshold.flag(model.anomaly_score(frame))
    assert agree.all()


@each_score
def test_unscorable_records_keep_their_reason_and_change_no_other(kind, fitted, stream):
    detector, some = fitted(kind).detector, stream.take(np.arange(2000))
    status = some.status.copy()
    status[::3] = "unscorable:wrong_dtype:a"
    values = {**some.values, "a": np.where(status == "ok", some.values["a"], np.inf)}
    found, base = detector.detect(Records(0, some.record_ids, values, status)), detector.detect(some)
    assert (found.status == status).all()
    good = status == "ok"
    assert same(found.score[good], base.score[good])
    assert same(found.p_value[good], base.p_value[good])
    assert np.isnan(found.score[~good]).all()
    assert not found.is_anomaly[~good].any()


@each_score
def test_no_record_and_one_record_are_batches_too(kind, fitted, stream):
    detector = fitted(kind).detector
    assert len(detector.detect(stream.take(np.arange(0))).score) == 0
    assert detector.detect(stream.take(np.arange(1))).score.shape == (1,)


@each_score
def test_a_score_rebuilt_from_its_tensors_is_the_same(kind, fitted, stream):
    detector: Detector = fitted(kind).detector
    saved = {name: tensor.clone() for name, tensor in detector.members[0].score.tensors.items()}
    rebuilt = replace(detector, members=(Member(detector.vae, build("score", SCORES, kind, None, saved)),))
    inputs = detector.encode(stream)
    assert same(rebuilt.scores(inputs), detector.scores(inputs))


@each_score
def test_an_unknown_option_is_refused_with_the_known_ones(kind, fitted):
    known = [n for n, p in inspect.signature(SCORES[kind]).parameters.items() if p.kind is p.KEYWORD_ONLY]
    with pytest.raises(ConfigError, match="no_such_option") as caught:
        build("score", SCORES, kind, None, {}, no_such_option=1)
    assert all(repr(name) in str(caught.value) for name in known)
    with pytest.raises(ConfigError, match=kind):
        build("score", SCORES, kind + "x", None, {})


def test_latent_neighbours_are_those_of_brute_force(fitted, stream):
    detector = fitted("latent_neighbours").detector
    inputs = detector.encode(stream.take(np.arange(HOLED, HOLED + 200)))
    with torch.no_grad():
        v = detector.members[0].score.embed(evaluate(detector.vae, inputs)).double()
    vectors = detector.members[0].score.vectors.double()
    squares = torch.cdist(v, vectors, compute_mode="donot_use_mm_for_euclid_dist").square()
    k = detector.members[0].score.k
    expected = np.log(k) - torch.logsumexp(-0.5 * squares.topk(k, largest=False).values, 1)
    np.testing.assert_allclose(detector.scores(inputs), expected, rtol=1e-4)
    with torch.no_grad():
        reference = evaluate(detector.vae, detector.reference.inputs)
    for k in (0, len(detector.reference.inputs)):
        with pytest.raises(ConfigError, match="must be at least 1 and less than the"):
            latent_neighbours([reference], None, k=k)


REFERRING = ("surprisal", "latent_neighbours")


def test_the_scores_with_a_reference_are_those_that_say_so(fitted):
    found = {kind for kind in SCORES if isinstance(fitted(kind).detector.members[0].score, Referring)}
    assert found == set(REFERRING)


@pytest.mark.parametrize("kind", REFERRING)
def test_a_record_left_out_scores_as_if_it_were_not_in_the_reference(kind, fitted):
    detector = fitted(kind).detector
    member, reference = detector.members[0], detector.reference.inputs
    with torch.no_grad():
        everything = evaluate(detector.vae, reference)
        near = member.score if kind == "latent_neighbours" else member.score.neighbours
        left_out = near.left_out(everything, torch.arange(len(reference)))
        for i in (0, 1, 77, len(reference) - 1):
            others = torch.cat([torch.arange(i), torch.arange(i + 1, len(reference))])
            np.testing.assert_allclose(near.kept(others)(everything)[i], left_out[i], rtol=1e-6)
        assert (left_out > near(everything)).float().mean() > 0.99  # a record is its own nearest neighbour


def test_more_neighbours_to_choose_from_never_raise_the_score(fitted, stream):
    detector = fitted("latent_neighbours").detector
    score, g = detector.members[0].score, np.random.default_rng(0)
    with torch.no_grad():
        seen = evaluate(detector.vae, detector.encode(stream.take(np.arange(2 * HOLED, 3 * HOLED))))
        few = torch.from_numpy(np.sort(g.choice(len(score.vectors), len(score.vectors) // 2, replace=False)))
        assert (score(seen) <= score.kept(few)(seen) + 1e-5).all()


def test_a_detector_without_records_has_none_of_them_as_neighbours(fitted, stream):
    detector = fitted("surprisal").detector
    gone = set(detector.reference.record_ids[::3])
    left = detector.without(gone)
    assert set(left.reference.record_ids) == set(detector.reference.record_ids) - gone
    assert len(left.reference.inputs) == len(left.members[0].score.neighbours.vectors)
    assert detector.without(set()) is detector
    inputs = detector.reference.inputs[torch.arange(0, len(detector.reference.inputs), 3)]
    assert (left.scores(inputs) > detector.scores(inputs)).mean() > 0.9


def test_surprisal_is_how_seldom_a_training_record_is_as_strange():
    scores = torch.from_numpy(np.random.default_rng(0).exponential(5.0, 20_000))
    told = tail(scores)
    for share in (0.5, 0.1, 0.01, 1e-3, 1e-6):
        strange = torch.tensor([-5.0 * np.log(share)], dtype=torch.float64)
        assert told(strange).item() == pytest.approx(-np.log(share), rel=0.05)
    ascending = told(torch.linspace(-10, 1e4, 5000, dtype=torch.float64))
    assert (ascending.diff() >= 0).all() and ascending[0] == 0
    same_ones = tail(torch.full((50,), 3.0, dtype=torch.float64))
    assert same_ones(torch.tensor([3.0], dtype=torch.float64)).isfinite().all()


@pytest.mark.parametrize(
    "values", [[0.0] * 60 + [1.0] * 4, [float(i % 7) for i in range(64)], list(np.linspace(-3, 8, 64))]
)
def test_rarity_is_the_log_of_how_often_others_were_counted(values):
    x = torch.tensor(values, dtype=torch.float32)[:, None]
    layout = Layout((Block(0, "gaussian", 1),), 1)
    found = marginal([Inputs(x)], layout)
    nats = found.terms(Inputs(x), layout)[:, 0].numpy()
    if len(set(values)) <= FEW:
        counts = np.array([values.count(v) for v in values]) + 0.5
        np.testing.assert_allclose(nats, np.log(counts.max() / counts), rtol=1e-5, atol=1e-6)
    far = found.terms(Inputs(torch.tensor([[99.0], [-99.0], [0.51]])), layout)[:, 0]
    assert far[0] == far[1] >= nats.max()
    without = found.terms(Inputs(x), layout, torch.ones(len(x), dtype=torch.bool))[:, 0].numpy()
    assert (without >= nats - 1e-6).all()
    once = marginal([Inputs(x[1:])], layout).terms(Inputs(x[:1]), layout)[0, 0]
    if len(set(values)) <= FEW:
        assert without[0] == pytest.approx(float(once), abs=0.12)  # the fullest bin may lose one too
    hidden = Inputs(x, torch.zeros_like(x))
    assert (found.terms(hidden, layout) == 0).all()


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize("features", [1, WIDTH, 784, 1024, 3000, 150_528, 10**9])
@pytest.mark.parametrize("rows", [64, 256, 1024])
def test_a_chunk_holds_no_more_values_than_it_must(rows, features):
    size = chunk_rows(SimpleNamespace(rows=rows), features)
    assert size % rows == 0 and rows <= size <= BLOCKS * rows
    assert size * features <= max(CHUNK, rows * features)
    assert size == BLOCKS * rows or (size + rows) * features > CHUNK  # and no fewer than it may


@each_score
def test_a_score_does_not_depend_on_the_size_of_a_chunk(kind, fitted, stream, monkeypatch):
    detector = fitted(kind).detector
    inputs = detector.encode(stream)
    base = detector.scores(inputs)
    monkeypatch.setattr("vae_anomaly.detector.CHUNK", 1)
    assert [len(chunk) for chunk in chunks(detector.vae, inputs)] == [1024, 1024, 1024, 1024, ROWS - 4096]
    assert same(detector.scores(inputs), base)


@pytest.mark.parametrize("count", [5, 63, 64, 65, 120, 511, 512, 513, 1100])
def test_the_nearest_are_found_among_few_and_many(count):
    g = torch.Generator().manual_seed(0)
    vectors, v = torch.randn(count, 40, generator=g), torch.randn(2 * BLOCK, 40, generator=g)
    space = Nearest(vectors, 5)
    expected = torch.cdist(v.double(), vectors.double()).topk(5, largest=False).indices
    assert torch.equal(space.indices(v), expected)
    assert space._table.shape[1] - count < (COLUMNS if count <= GROUPS else GROUPS)


@pytest.mark.parametrize("wide", [7, 1001, 30_003])
@pytest.mark.parametrize("k", [1, 5, 9])
def test_squares_are_the_same_bits_however_few_are_held(wide, k, monkeypatch):
    g = torch.Generator().manual_seed(0)
    space, v = Nearest(torch.randn(20, wide, generator=g), k), torch.randn(BLOCK, wide, generator=g)
    found = []
    for most in (1, 3, 5, BLOCK):
        monkeypatch.setattr(sys.modules[Nearest.__module__], "DIFFERENCES", most * k * wide)
        assert max(len(apart) for apart, _ in space._apart(v, None)) == most
        found.append(np.column_stack([space.terms(v)[0].numpy(), space.scores(v)[0].numpy()]))
    assert all(same(each, found[0]) for each in found)
    half = 0.5 * (v[:, None] - space.vectors[space.indices(v)]).square().double()
    weight = torch.softmax(-half.sum(-1), 1)
    np.testing.assert_allclose(found[0][:, :wide], (weight[..., None] * half).sum(1), rtol=1e-12)
    np.testing.assert_allclose(found[0][:, :-1].sum(1), found[0][:, -1], rtol=1e-9)
    assert (found[0] >= 0).all()
