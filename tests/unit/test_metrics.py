"""What is measured of a fit is what it is said to be, and the verdict follows from it: a bad model is called one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from vae_anomaly import metrics
from vae_anomaly.batch import Records
from vae_anomaly.corruption import KINDS, MAX_COLUMNS, corruptions
from vae_anomaly.detector import Detector, Member, Part, over_chunks
from vae_anomaly.fitting import Fit, Recipe, fit_detector
from vae_anomaly.likelihoods import Block, Layout
from vae_anomaly.metrics import Assessment, Comparison, CorruptionRecall, HeldOutQuality, verdict
from vae_anomaly.models import build_model
from vae_anomaly.preprocessing.tabular import TabularPreprocessor
from vae_anomaly.schema import Column, Schema, check
from vae_anomaly.scores import SCORES
from vae_anomaly.thresholds import conformal
from vae_anomaly.training import build_seeded
from vae_anomaly.vae import Inputs


@pytest.fixture(scope="module")
def held_out(fitted: Callable[..., Fit], make_records: Callable[..., Records]) -> Inputs:
    """Records that the detectors of :func:`fitted` have not seen."""
    return fitted().detector.encode(make_records(300, 21))


@pytest.fixture(scope="module")
def training(fitted: Callable[..., Fit], make_records: Callable[..., Records]) -> Inputs:
    return fitted().detector.encode(make_records(900).take(fitted().splits["training"]))


# ---- held-out quality ----


def test_held_out_quality_is_the_elbo_and_its_parts(fitted: Callable[..., Fit], held_out: Inputs) -> None:
    detector = fitted("negative_elbo").detector
    found = metrics.held_out(detector, held_out)
    evidence = 0.0 if held_out.evidence is None else float(held_out.evidence.sum(1).mean())
    assert found.total == pytest.approx(detector.scores(held_out).mean() - evidence, rel=1e-5)
    assert found.total == pytest.approx(found.reconstruction + found.kl)
    assert sum(found.kl_by_dimension) == pytest.approx(found.kl)
    assert len(found.kl_by_dimension) == found.latent == 4


def test_the_use_of_the_latent_dimensions() -> None:
    found, detector, held_out = assessed(circle)
    mean = over_chunks(detector.vae, held_out, lambda e: e.z).double().numpy()
    quality = found.held_out
    assert quality.active_units == (mean.var(0) > 0.01).sum() == 2
    assert quality.latent_variance == pytest.approx(mean.var(0).mean())
    assert quality.latent_correlation == pytest.approx(abs(np.corrcoef(mean.T)[0, 1]))
    one = metrics.held_out(detector, held_out[:1])
    assert (one.active_units, one.latent_variance, one.latent_correlation) == (0, 0.0, 0.0)


# ---- corruption recall ----


def test_recall_is_the_share_flagged_of_the_records_that_changed(detector: Detector, held_out: Inputs) -> None:
    found = metrics.corruption_recall(detector, held_out, seed=5)
    assert (found.records, found.places, found.measured) == (300, 6, 6)
    unchanged = 0
    for made in corruptions(detector.preprocessor, held_out, 5):
        flagged = detector.threshold.flag(detector.scores(made.inputs))
        assert found.shares[made.kind][made.where] == pytest.approx(flagged[made.changed].mean())
        unchanged += int((~made.changed).sum())
    assert unchanged > 100
    assert list(found.shares) == ["swap", "scale", "other", "freeze", "missing", "unknown"]


def test_all_or_nothing_by_the_threshold(detector: Detector, held_out: Inputs) -> None:
    for scores, expected in ((np.arange(50) - 1e9, 1.0), (np.arange(50) + 1e9, 0.0)):
        found = metrics.corruption_recall(replace(detector, threshold=conformal(scores, alpha=0.05)), held_out)
        assert {share for by_place in found.shares.values() for share in by_place.values()} == {expected}
        assert found.median == expected


def test_the_headline_is_a_wrong_value_or_for_a_text_wrong_words() -> None:
    shares = {"swap": {"a": 0.1}, "scale": {"a": 0.9}, "other": {"shop": 0.5}, "missing": {"a": 0.2}}
    table = CorruptionRecall(shares, 9, 2)
    assert table.headline == {"a": 0.9, "shop": 0.5}
    assert table.median == 0.7
    text = CorruptionRecall({"swap": {"end": 0.4}, "repeat": {"end": 0.9}}, 9, 3)
    assert text.headline == {"end": 0.4}
    assert CorruptionRecall({}, 9, 1).median is None


def test_what_is_corrupted_is_bounded_and_said(detector: Detector) -> None:
    """A table of 1,555 columns: the work does not grow with them."""
    count = 1555
    layout = Layout(tuple(Block(i, "gaussian", 1) for i in range(count)), count)
    vae = build_seeded(lambda: build_model("mlp", layout, {"hidden": (8,), "latent": 2}), 0).eval()
    states = tuple(replace(detector.preprocessor.states[0], column=f"c{i}") for i in range(count))
    wide = replace(
        detector,
        preprocessor=TabularPreprocessor(states),
        members=(Member(vae, SCORES["negative_elbo"](None, None)),),
    )
    found = metrics.corruption_recall(wide, Inputs(torch.randn(900, count)))
    copies = metrics.MAX_VALUES // count  # fewer than RECALL_COPIES
    assert found.records == copies // (len(KINDS) * MAX_COLUMNS) == 76
    assert (found.places, found.measured) == (count, MAX_COLUMNS)
    assert "Corruption was measured in 60 of 1,555 columns." in said(recall=found)


def test_scores_do_not_depend_on_what_is_scored_together(detector: Detector, held_out: Inputs) -> None:
    bare = Inputs(held_out.x[:7].clamp(-1, 1))
    parts = [("a", held_out), ("b", bare), *((str(i), held_out[i : i + 40]) for i in range(200))]
    for (name, part), (same, scores) in zip(parts, metrics._scored(detector.scores, parts, 4096), strict=True):
        assert name == same
        np.testing.assert_array_equal(scores, detector.scores(part))


def test_copies_are_held_until_there_are_enough_and_no_longer() -> None:
    made, scored = 0, 0

    def parts() -> Iterator[tuple[int, Inputs]]:
        nonlocal made
        for i in range(50):
            made += 40
            yield i, Inputs(torch.full((40, 1), float(i)))

    def score(inputs: Inputs) -> np.ndarray:
        nonlocal scored
        scored += len(inputs)
        assert len(inputs) < 100 + 40
        assert made == scored  # those that are scored are the only ones there are
        return np.stack([inputs.x[:, 0].numpy(), -inputs.x[:, 0].numpy()])

    for i, scores in metrics._scored(score, parts(), 100):
        np.testing.assert_array_equal(scores, [[i] * 40, [-i] * 40])
    assert scored == 50 * 40


def test_wide_copies_are_fewer_at_a_time(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    assert metrics._together(detector) == metrics.TOGETHER
    monkeypatch.setattr("vae_anomaly.detector.CHUNK", 2 * detector.vae.rows * detector.preprocessor.layout.features)
    assert metrics._together(detector) == 2 * detector.vae.rows < metrics.TOGETHER


# ---- comparison ----


def test_a_comparison_repeats_and_is_bounded(detector: Detector, training: Inputs, held_out: Inputs) -> None:
    first, again = (metrics.comparison(detector, training, held_out, seed=1) for _ in range(2))
    assert first == again
    assert set(first.auroc) == {"detector", *metrics.METHODS}
    assert set(first.by_score) == {"negative_elbo"}  # it has the other one
    assert all(0.5 < value <= 1 for value in (*first.auroc.values(), *first.by_score.values()))
    assert (first.records, first.training_records) == (300, len(training))


def test_the_simple_methods_get_no_more_than_they_can_take(
    detector: Detector, training: Inputs, held_out: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(training) > 250
    for bound, count in (("MAX_CELLS", 250), ("MAX_VALUES", 150)):
        monkeypatch.setattr(metrics, bound, count * training.x.shape[1])
        assert metrics.comparison(detector, training, held_out).training_records == count


@pytest.mark.parametrize(
    ("normal", "corrupted", "share"),
    [
        ([0.0, 1.0], [[2.0, math.inf]], 1.0),
        ([0.0, 1.0], [[1e300, math.nan]], 1.0),
        ([0.0, math.inf], [[1.0, 2.0]], 0.5),
        ([1.0, 2.0], [[1.0, 2.0], [3.0]], 0.75),
        ([1.0, 2.0], [], 0.5),
    ],
)
def test_the_auroc_is_the_share_of_pairs_in_order(
    normal: list[float], corrupted: list[list[float]], share: float
) -> None:
    assert metrics._auroc(np.array(normal), *map(np.array, corrupted)) == share


def test_another_score_is_what_a_fit_with_it_gets(
    fitted: Callable[..., Fit], training: Inputs, held_out: Inputs
) -> None:
    kinds = ("latent_neighbours", "negative_elbo")
    neighbours, elbo = (metrics.comparison(fitted(kind).detector, training, held_out) for kind in kinds)
    assert neighbours.by_score["negative_elbo"] == elbo.auroc["detector"]
    assert elbo.by_score["latent_neighbours"] == pytest.approx(neighbours.auroc["detector"], abs=1e-3)
    assert neighbours.auroc["detector"] != elbo.auroc["detector"]


def test_a_constant_score_tells_nothing_apart(fitted: Callable[..., Fit], training: Inputs, held_out: Inputs) -> None:
    class Constant:
        def __call__(self, evaluation: Any) -> torch.Tensor:
            return torch.full((len(evaluation.inputs),), math.nan, dtype=torch.float64)

    detector = fitted("negative_elbo").detector
    blind = replace(detector, members=(replace(detector.members[0], score=Constant()),))
    found = metrics.comparison(blind, training, held_out)
    assert (found.auroc["detector"], found.rank_correlation) == (0.5, 0.0)
    assert found.auroc["pca"] > 0.7


def test_pca_is_the_sum_of_its_coordinates_and_residuals_in_their_own_units() -> None:
    g = np.random.default_rng(0)
    known = (g.normal(size=(400, 2)) @ g.normal(size=(2, 5)) + 0.1 * g.normal(size=(400, 5))).astype(np.float32)
    score = dict(metrics._methods(known, 2, 0))["pca"]
    x = g.normal(size=(7, 5)).astype(np.float32)
    mean = known.mean(0)
    basis = np.linalg.svd(known - mean, full_matrices=False)[2][:2].T

    def parts(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        t = (rows - mean) @ basis
        return t**2, (rows - mean - t @ basis.T) ** 2

    (t, r), (lam, sigma) = parts(x), (p.mean(0) for p in parts(known))
    np.testing.assert_allclose(score(x), 0.5 * (t / lam).sum(1) + 0.5 * (r / sigma).sum(1), rtol=1e-3)
    # columns that follow from others exactly leave no variance, and still a score
    exact = np.column_stack([known[:, :2], known[:, :2] @ [[1.0], [2.0]]])
    assert np.isfinite(dict(metrics._methods(exact, 16, 0))["pca"](exact)).all()


def test_a_bag_counts_tokens_and_knows_no_order() -> None:
    x = torch.tensor([[5, 6, 7, 1, 0], [7, 6, 5, 1, 0], [5, 5, 7, 1, 0], [5, 1, 0, 0, 0], [5, 9999, 1, 0, 0]])
    bag = metrics._bag(Inputs(x))(Inputs(x))
    np.testing.assert_array_equal(bag[0], bag[1])
    np.testing.assert_allclose(np.linalg.norm(bag, axis=1), 1.0, rtol=1e-6)
    assert np.count_nonzero(bag[3]) == 2  # padding is no token
    assert bag[0, 6] > bag[0, 5] > 0  # the rarer one says more
    assert bag[4, -1] > 0  # the rarest share a place


# ---- verdict ----

GOOD = HeldOutQuality(9.0, 5.0, 14.0, 0.8, 0.1, 3, 16, (5.0,) + (0.0,) * 15)
AUROC = {"detector": 0.97, "pca": 0.93, "knn": 0.92, "iforest": 0.88}
BETTER = Comparison(AUROC, {"negative_elbo": 0.97}, 0.7, 500, 900)
SEEN = CorruptionRecall({"scale": {"amount": 0.9, "fee": 0.8}}, 500, 2)
ADVICE = ("Try ", "score.kind", "watch it")


def said(
    quality: HeldOutQuality = GOOD, compared: Comparison = BETTER, recall: CorruptionRecall = SEEN
) -> tuple[str, ...]:
    return verdict(quality, compared, recall, alpha=0.01)


def with_auroc(**changed: float) -> Comparison:
    return replace(BETTER, auroc={**BETTER.auroc, **changed})


def test_a_good_model_gets_no_advice() -> None:
    assert said() == (
        "3 of 16 latent dimensions are used.",
        "It finds corrupted records better than PCA, k nearest neighbours and isolation forest"
        " (AUROC 0.97 against 0.93, 0.92 and 0.88).",
    )
    as_good = said(compared=with_auroc(knn=0.975))
    assert as_good[1] == (
        "It finds corrupted records as well as k nearest neighbours, the best of three simple methods"
        " (AUROC 0.97 against 0.97)."
    )
    assert not any(word in sentence for sentence in (*said(), *as_good) for word in ADVICE)


def test_one_dimension_is_one() -> None:
    one = replace(GOOD, latent=1, active_units=1)
    assert said(one)[0] == "1 of 1 latent dimension is used."
    assert said(replace(one, active_units=0))[0].startswith("None of 1 latent dimension is used")


def test_a_collapse_is_named_with_its_remedy_and_nothing_else_is_advised() -> None:
    found = said(replace(GOOD, active_units=0), with_auroc(detector=0.7))
    assert found[0].startswith("None of 16 latent dimensions is used: the posterior has collapsed")
    assert "objective.beta" in found[0] and "objective.free_bits" in found[0]
    assert "Try" not in " ".join(found[1:])
    assert not any("does what PCA does" in s for s in said(replace(GOOD, active_units=0), PCA))


PCA = replace(with_auroc(detector=0.93, pca=0.93), rank_correlation=0.98)


def test_a_model_that_does_what_pca_does_is_told_so() -> None:
    found = said(compared=PCA)[1]
    assert found.startswith("This model does what PCA does: it ranks records alike (rank correlation 0.98)")
    assert "training.steps" in found and "model.kind" in found
    for other in (replace(PCA, rank_correlation=0.5), replace(PCA, auroc={**PCA.auroc, "detector": 0.95})):
        assert "does what PCA does" not in said(compared=other)[1]


def test_a_model_that_simple_methods_beat_is_told_what_to_try() -> None:
    found = said(compared=with_auroc(detector=0.9, iforest=0.95))
    assert found[1].startswith("It finds corrupted records less well than isolation forest (AUROC 0.90 against 0.95).")
    assert "Try more training.steps or another model.kind." in found[1]
    full = said(replace(GOOD, active_units=16), with_auroc(detector=0.9))
    assert "a larger model.latent" in full[1]


def test_a_better_score_for_the_same_weights_is_named() -> None:
    better = replace(BETTER, by_score={"negative_elbo": 0.99, "other": 0.5})
    assert [s for s in said(compared=better) if s.startswith("With score.kind: negative_elbo the same weights")]
    assert said(compared=replace(BETTER, by_score={})) == said()


def test_blind_columns_are_named_the_blindest_first() -> None:
    shares = {"amount": 0.9, "country": 0.04, "flag": 0.0}
    found = said(recall=CorruptionRecall({"scale": shares}, 500, 3))[-1]
    assert found.startswith("It hardly notices a wrong value of flag (0%) and country (4%): ")
    many = said(recall=CorruptionRecall({"scale": {f"c{i}": 0.0 for i in range(12)}}, 500, 12))[-1]
    assert "c7 (0%) and 4 more" in many
    assert metrics.weak({"a": 0.15, "b": 0.35}, alpha=0.01) == []
    assert metrics.weak({"a": 0.15, "b": 0.35}, alpha=0.1) == ["a"]  # hardly more than the false alarms


# ---- from records to the verdict ----


def linear(rows: int, seed: int) -> np.ndarray:
    """Eight columns that two Gaussian factors drive: what PCA is made for."""
    g = np.random.default_rng(seed)
    return g.normal(size=(rows, 2)) @ np.random.default_rng(7).normal(size=(2, 8)) + 0.3 * g.normal(size=(rows, 8))


def circle(rows: int, seed: int) -> np.ndarray:
    """Eight columns that one angle drives: no plane holds them."""
    g = np.random.default_rng(seed)
    angle = g.uniform(0, 2 * np.pi, (rows, 1)) * np.arange(1, 5)
    return np.column_stack([np.sin(angle), np.cos(angle)]) + 0.05 * g.normal(size=(rows, 8))


Made = tuple[Assessment, Detector, Inputs]


@cache
def assessed(make: Callable[[int, int], np.ndarray], beta: float = 1.0, score: str = "negative_elbo") -> Made:
    schema = Schema(tuple(Column(f"c{i}", "number") for i in range(8)))
    table = pa.table({f"c{i}": column for i, column in enumerate(make(1500, 0).T)})
    records = check(table, schema, first_row=0, file="test")
    recipe = Recipe(
        model=Part("mlp", {"hidden": (32,), "latent": 2}),
        score=Part(score),
        objective={"beta": beta},
        training={"steps": 600},
        threshold=Part("conformal", {"alpha": 0.05}),
    )
    fit = fit_detector(records, schema, recipe)
    known, held_out = (fit.detector.encode(records.take(fit.splits[part])) for part in ("training", "calibration"))
    stages: list[str] = []
    found = metrics.assess(fit.detector, known, held_out, seed=0, tell=stages.append)
    assert len(stages) == 3
    return found, fit.detector, held_out


def test_on_linear_records_a_model_does_what_pca_does() -> None:
    found, *_ = assessed(linear)
    assert found.verdict[:1] == ("2 of 2 latent dimensions are used.",)
    assert found.verdict[1].startswith("This model does what PCA does")
    assert found.comparison.rank_correlation > 0.95


def test_where_no_plane_holds_the_records_it_does_more() -> None:
    found, *_ = assessed(circle, score="latent_neighbours")
    assert not any("PCA does" in sentence for sentence in found.verdict)
    assert found.comparison.auroc["detector"] > found.comparison.auroc["pca"] + 0.1
    assert found.comparison.rank_correlation < 0.6


def test_a_model_with_a_beta_of_1000_is_called_collapsed() -> None:
    found, *_ = assessed(linear, beta=1000.0)
    assert found.held_out.active_units == 0
    assert "collapsed" in found.verdict[0]
    assert found.held_out.total > assessed(linear)[0].held_out.total
