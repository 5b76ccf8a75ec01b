"""Laws of every detector: each model with each modality that it takes, with a context and without, and ensembles."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from modality_samples import ALPHA, CASES, ENSEMBLES, Case, as_records, corrupted, fitted, records, schema, with_score

from vae_anomaly.batch import Records
from vae_anomaly.detector import Detector, Part, parts_of
from vae_anomaly.errors import ConfigError
from vae_anomaly.explain import explain
from vae_anomaly.fitting import Recipe, fit_detector
from vae_anomaly.models import MODELS
from vae_anomaly.report.model import COMBINATION
from vae_anomaly.schema import Column, Schema
from vae_anomaly.scores import SCORES
from vae_anomaly.summary import BatchSummary
from vae_anomaly.vae import evaluate

each_case = pytest.mark.parametrize("case", CASES, ids=str)
each_score = pytest.mark.parametrize("score", SCORES)
with_context = pytest.mark.parametrize("case", [c for c in CASES if c.context], ids=str)
# more than a block of the convolutional and recurrent networks, and no multiple of one; the perceptrons' blocks are
# crossed in test_scores.py
ROWS = 300


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """The same bits."""
    return a.tobytes() == b.tobytes()


def test_every_model_is_a_case():
    assert {case.kind for case in CASES} == set(MODELS) | {"ensemble"}
    assert {(case.kind, case.modality) for case in CASES} >= {(k, m) for k in MODELS for m in MODELS[k].modalities}


@each_case
@each_score
def test_a_score_is_finite_and_depends_on_nothing_but_its_record(case, score):
    detector, found = with_score(fitted(case), score), records(case, ROWS, 2)
    base = detector.detect(found).score
    assert np.isfinite(base).all()
    g = np.random.default_rng(0)
    some = np.sort(g.choice(ROWS, 65, replace=False))
    for order in (g.permutation(ROWS), some, np.full(130, 3), np.array([ROWS - 1])):
        assert same(detector.detect(found.take(order)).score, base[order])
    centred = base[some] - base[some].mean()
    assert not same(centred, (base - base.mean())[some])  # what depends on the batch is seen


@each_case
@each_score
def test_terms_sum_to_the_score(case, score):
    detector = with_score(fitted(case), score)
    inputs = detector.encode(records(case, 50, 3))
    terms = detector.terms(inputs)
    assert terms.shape == (50, detector.preprocessor.layout.columns + 1)
    np.testing.assert_allclose(terms.sum(1), detector.scores(inputs), rtol=1e-9, atol=1e-6)


@each_case
def test_a_loaded_detector_is_the_same(case, tmp_path):
    detector, found = fitted(case), records(case, 300, 4)
    digest = detector.save(tmp_path / "model")
    loaded = Detector.load(tmp_path / "model", digest=digest)
    assert loaded.digest == detector.digest == digest
    assert (loaded.schema, loaded.preprocessor) == (detector.schema, detector.preprocessor)
    assert [type(m.vae) for m in loaded.members] == [type(m.vae) for m in detector.members]
    assert same(loaded.detect(found).score, detector.detect(found).score)
    assert explain(loaded, found.take(np.arange(2))) == explain(detector, found.take(np.arange(2)))


@each_case
def test_a_flag_is_a_p_value_of_at_most_alpha(case):
    detector = fitted(case)
    found = detector.detect(records(case, 300, 5))
    assert (found.is_anomaly == (found.p_value <= detector.threshold.alpha)).all()
    assert 0 < found.is_anomaly.mean() + 0.003 < 0.25  # normal records: about alpha of them


@each_case
def test_a_corrupted_record_outranks_its_original(case):
    detector, found = fitted(case), records(case, 200, 6)
    before, after = (detector.detect(r).score for r in (found, corrupted(case, found)))
    assert (after > before).mean() > 0.9
    assert not (before > before).any()


@each_case
def test_reasons_sum_to_the_score_and_show_what_the_modality_has(case):
    detector, found = fitted(case), corrupted(case, records(case, 3, 7))
    scores = detector.detect(found).score
    for i, explanation in enumerate(explain(detector, found)):
        assert sum(r.nats for r in explanation.reasons) == pytest.approx(scores[i], rel=1e-6)
        assert [r.nats for r in explanation.reasons] == sorted((r.nats for r in explanation.reasons), reverse=True)
        assert COMBINATION in {r.column for r in explanation.reasons}
        assert (explanation.picture is not None) == (case.modality == "image")
        assert bool(explanation.tokens) == (case.modality == "text")
        if case.modality == "text":
            assert all(t.nats >= 0 for t in explanation.tokens)
            assert [t.text for t in explanation.tokens[:-1]] == words(detector, found, i)


def words(detector: Detector, found: Records, row: int) -> list[str]:
    """The line's pieces as they stand there."""
    from vae_anomaly.preprocessing.text import pieces

    return [p.text for p in pieces(found.values["line"][row].as_py(), detector.preprocessor.replace)]


@each_case
def test_a_batch_has_a_report(case):
    detector, found = fitted(case), corrupted(case, records(case, 30, 8))
    summary = BatchSummary(detector)
    summary.add(found, detector.detect(found))
    report = summary.report(
        monitor="m", batch_id="b", batch_name="b", batch_sha256="0" * 64, extra_columns=(), provenance={}
    )
    assert report.flagged == len(report.records) > 0
    assert all(record.adds_up for record in report.records)
    assert [c.column for c in report.columns] == list(detector.preprocessor.columns)


# ---------------------------------------------------------------- context


def moved(found: Records, site: str | None) -> Records:
    """The same records as if they came from ``site``."""
    return as_records({**found.values, "site": pa.array([site] * len(found), pa.string())})


@with_context
def test_another_context_is_another_score(case):
    detector, found = fitted(case), records(case, 60, 9)
    base = detector.detect(found).score
    there = [detector.detect(moved(found, site)).score for site in ("north", "south", "east")]
    own = np.array([("north", "south", "east").index(s) for s in found.values["site"].to_pylist()])
    assert same(np.choose(own, there), base)
    assert (np.ptp(there, axis=0) > 0).all()


@pytest.mark.parametrize("case", [Case("conditional", "table", True), Case("conv", "image", True)], ids=str)
def test_a_record_of_another_context_is_an_anomaly_there(case):
    detector, found = fitted(case), records(case, 200, 10)
    origin = np.array(found.values["site"].to_pylist())
    here, there = found.take(np.flatnonzero(origin == "north")), found.take(np.flatnonzero(origin == "south"))
    strange, normal = (detector.detect(r).score for r in (moved(there, "north"), here))
    assert (strange[:, None] > normal[None]).mean() > 0.95


@with_context
@pytest.mark.parametrize("site", ["nowhere", None])
def test_a_record_of_unknown_context_is_not_scored_and_says_so(case, site):
    detector, found = fitted(case), records(case, 40, 11)
    odd = found.values["site"].to_pylist()
    odd[3:6] = [site] * 3
    mixed = as_records({**found.values, "site": pa.array(odd, pa.string())})
    inputs = detector.encode(mixed)
    assert (inputs.context[3:6] == 0).all()
    assert (inputs.context[[0, 1, 2, 7], 0] == 1).all()
    base, detections = detector.detect(found), detector.detect(mixed)
    assert (detections.status[3:6] == "unscorable:unknown_context:site").all()
    assert np.isnan(detections.score[3:6]).all()
    assert not detections.is_anomaly[3:6].any()
    others = np.r_[0:3, 6:40]
    assert same(detections.score[others], base.score[others])
    assert (detections.status[others] == "ok").all()


@with_context
def test_the_context_of_a_record_is_shown_and_adds_nothing(case):
    detector, found = fitted(case), records(case, 2, 12)
    for i, explanation in enumerate(explain(detector, found)):
        (shown,) = [r for r in explanation.reasons if r.column == "site"]
        assert (shown.nats, shown.found, shown.note) == (0.0, found.values["site"][i].as_py(), "context")


def test_a_number_far_beyond_the_training_range_is_an_unknown_context():
    g = np.random.default_rng(0)
    load = g.uniform(0, 1, 300)
    frame = {"x": 3 * load + 0.1 * g.normal(size=300), "load": load}
    both = Schema((Column("x", "number"), Column("load", "number", context=True)))
    recipe = Recipe(Part("conditional", {"hidden": (8,), "latent": 2}), training={"steps": 40}, calibration=0.3)
    detector = fit_detector(as_records(frame), both, recipe).detector
    tried = as_records({"x": np.zeros(5), "load": np.array([0.5, 1.05, 1.2, 1e9, np.nan])})
    status = detector.detect(tried).status.tolist()
    assert status == ["ok", "ok", *["unscorable:unknown_context:load"] * 3]


def test_held_out_records_of_unknown_context_do_not_calibrate():
    case = Case("conditional", "table", True)
    found = records(case, 300, 14)
    site = found.values["site"].to_pylist()
    site[::10] = [None] * 30
    options = {"hidden": (8,), "latent": 2}
    recipe = Recipe(Part("conditional", options), training={"steps": 40}, calibration=0.3, threshold=ALPHA)
    fit = fit_detector(as_records({**found.values, "site": pa.array(site)}), schema(case), recipe)
    for name in ("validation", "calibration"):
        assert all(site[i] is not None for i in fit.splits[name])
    assert any(site[i] is None for i in fit.splits["training"])


# ---------------------------------------------------------------- ensembles


@pytest.mark.parametrize("modality", ENSEMBLES)
def test_an_ensemble_scores_the_mean_of_its_members(modality):
    case = Case("ensemble", modality, False)
    detector, found = fitted(case), records(case, 80, 13)
    inputs = detector.encode(found)
    alone = [replace(detector, members=(member,)).scores(inputs) for member in detector.members]
    assert len(alone) == len(ENSEMBLES[modality]) == 2
    np.testing.assert_allclose(detector.scores(inputs), np.mean(alone, axis=0), rtol=1e-12)
    assert not np.allclose(alone[0], alone[1])


@pytest.mark.parametrize(
    "options",
    [{}, {"members": []}, {"members": ["mlp"]}, {"members": [{"latent": 3}]}, {"members": [{"kind": "ensemble"}]},
     {"members": [{"kind": "mlp"}], "latent": 3}],
)  # fmt: skip
def test_an_ensemble_without_proper_members_is_refused(options):
    case = CASES[0]
    with pytest.raises(ConfigError, match="must have the option members"):
        fit_detector(records(case, 60, 1), schema(case), Recipe(Part("ensemble", options), calibration=0.3))


# ---------------------------------------------------------------- texts


def test_texts_that_differ_in_numbers_only_are_the_same_text():
    case = next(c for c in CASES if c.modality == "text")
    detector = fitted(case)
    lines = ["INFO payment: authorised order 17 in 3 ms", "INFO payment: authorised order 99999 in 12.5 ms"]
    scores = detector.detect(as_records({"line": pa.array(lines)})).score
    assert scores[0] == scores[1]


@pytest.mark.parametrize(
    "line", ["x", "\u202egnp.exe\u2066", "\U0001f4a3" * 30, "\ufffd\ufffd", "a" * 100_000, "0x" + "f" * 5000, "e\u0301"]
)
def test_hostile_lines_have_a_finite_score(line):
    detector = fitted(next(c for c in CASES if c.modality == "text"))
    found = as_records({"line": pa.array([line])})
    detections = detector.detect(found)
    assert np.isfinite(detections.score).all()
    (explanation,) = explain(detector, found)
    assert sum(r.nats for r in explanation.reasons) == pytest.approx(detections.score[0], rel=1e-6)


def test_a_line_that_was_cut_says_so():
    detector = fitted(next(c for c in CASES if c.modality == "text"))
    long = as_records({"line": pa.array(["INFO cart: 3 items added by user 7 " * 10])})
    (explanation,) = explain(detector, long)
    assert explanation.tokens[-1].text == "(cut)"
    assert explanation.tokens[-1].note == "the line goes on"
    assert len(explanation.tokens) == detector.preprocessor.max_tokens + 1
    assert detector.preprocessor.quality(long, np.ones(1, bool))[0, 2] == 1


def test_nothing_hides_behind_a_very_long_line():
    detector = fitted(next(c for c in CASES if c.modality == "text"))
    plain = "INFO cart: 3 lamp added by user 7 from porto"
    scores = detector.detect(as_records({"line": pa.array([plain, plain + " " * 20_000 + "attack"])})).score
    assert scores[1] > scores[0]
    assert detector.threshold.flag(scores[1:]).all()


def test_what_no_training_line_has_is_evidence_and_nothing_else():
    detector = fitted(next(c for c in CASES if c.modality == "text"))
    inputs = detector.encode(as_records({"line": pa.array(["INFO cart: 3 frobnicators added by user 7 from porto"])}))
    assert inputs.evidence is not None
    at = int(torch.nonzero(inputs.evidence[0])[0])
    assert float(inputs.evidence[0, at]) == pytest.approx(detector.preprocessor.unseen_nats)
    with torch.no_grad():
        entries = evaluate(detector.vae, inputs).likelihood.entry_log_prob(inputs.x)
    assert float(entries[0, at]) == 0.0


# ---------------------------------------------------------------- recipes


@pytest.mark.parametrize("modality", ["table", "image", "text"])
def test_options_without_a_kind_are_those_of_the_default(modality):
    case = Case("", modality, False)
    plain = Recipe().resolved(schema(case))
    named = Recipe(plain.model, Part(plain.score.kind)).resolved(schema(case))
    assert (named.model, named.score) == (plain.model, plain.score)
    changed = Recipe(Part("", {"latent": 3}), Part("", {"k": 7})).resolved(schema(case))
    assert changed.model.kind == plain.model.kind
    assert parts_of(changed.model) == tuple(Part(p.kind, {**p.options, "latent": 3}) for p in parts_of(plain.model))
    assert changed.score == Part(plain.score.kind, {**plain.score.options, "k": 7})
    assert Recipe(score=Part("kl")).resolved(schema(case)).score == Part("kl")


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (Recipe(score=Part("latent_neighbours", {"neighbours": 3})), "no option 'neighbours'"),
        (Recipe(score=Part("latent_neighbours", {"residuals": "no"})), "must be of type bool"),
        (Recipe(Part("ensemble", {"members": [{"kind": "mlp"}, {"kind": "mlp", "latnt": 3}]})), "no option 'latnt'"),
        (Recipe(Part("ensemble", {"members": [{"kind": ["mlp"]}]})), "must have the option members"),
    ],
)
def test_wrong_options_are_found_before_training(recipe, said):
    case = Case("mlp", "table", False)
    trained = []
    with pytest.raises(ConfigError, match=said):
        fit_detector(
            records(case, 60, 1), schema(case), replace(recipe, calibration=0.3), lambda *log: trained.append(log)
        )
    assert trained == []
