"""Laws of the reference records: which members compare with which, what is left out, and what contamination does."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from vae_anomaly import VAEDetector
from vae_anomaly.detector import Detector, Member, Part
from vae_anomaly.errors import ConfigError
from vae_anomaly.explain import explain
from vae_anomaly.fitting import Recipe, fit_detector
from vae_anomaly.scores import SCORES
from vae_anomaly.scores.surprisal import tail
from vae_anomaly.training import most_likely
from vae_anomaly.vae import evaluate

ENSEMBLE = Part("ensemble", {"members": [{"kind": "mlp", "hidden": [8], "latent": 2, "view": v} for v in
                                         ("standard", "logarithmic", "rank")]})  # fmt: skip


@pytest.fixture(scope="module")
def sliced(make_records, schema) -> Detector:
    """An ensemble of three whose members each compare with a part of 300 reference records."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vae_anomaly.fitting.REFERENCE_RECORDS", 300)
        patch.setattr("vae_anomaly.fitting.REFERENCE_FEATURES", 1)
        return fit_detector(make_records(500), schema, Recipe(model=ENSEMBLE, training={"epochs": 2})).detector


def test_members_share_the_reference_evenly_and_all_of_it_is_used(sliced):
    index = [member.index for member in sliced.members]
    assert len(sliced.reference.inputs) == 300
    assert [len(i) for i in index] == [100] * 3
    assert sorted(torch.cat(index).tolist()) == list(range(300))
    for member in sliced.members:
        assert len(member.score.neighbours.vectors) == len(member.score.levels) == 100


def test_slices_survive_the_disk(sliced, make_records, tmp_path):
    digest = sliced.save(tmp_path / "model")
    loaded = Detector.load(tmp_path / "model", digest=digest)
    records = make_records(200, 7)
    assert loaded.detect(records).score.tobytes() == sliced.detect(records).score.tobytes()
    assert all(torch.equal(a.index, b.index) for a, b in zip(loaded.members, sliced.members, strict=True))


def test_a_reference_record_is_left_out_by_the_member_that_has_it(sliced):
    inputs, everyone = sliced.reference.inputs, torch.arange(300)
    left_out, nobody = sliced.scores(inputs, everyone), sliced.scores(inputs, torch.full((300,), -1))
    np.testing.assert_array_equal(nobody, sliced.scores(inputs))
    assert (left_out >= nobody - 1e-9).mean() > 0.9
    for member in sliced.members:
        own = member.places(everyone)
        assert own[member.index].tolist() == list(range(100))
        assert (own >= 0).sum() == 100
        assert (member.places(torch.full((5,), -1)) == -1).all()


def test_without_some_records_every_member_keeps_its_others(sliced):
    gone = {sliced.reference.record_ids[i] for i in (0, 5, 150, 299)}
    left = sliced.without(gone)
    kept = [i for i, name in enumerate(sliced.reference.record_ids) if name not in gone]
    for before, after in zip(sliced.members, left.members, strict=True):
        mine = [i for i in before.index.tolist() if i in kept]
        assert [kept[i] for i in after.index.tolist()] == mine
        rows = [before.index.tolist().index(i) for i in mine]
        assert torch.equal(after.score.neighbours.vectors, before.score.neighbours.vectors[rows])
        assert torch.equal(after.score.levels, before.score.levels[rows])
    assert left.without({left.reference.record_ids[1]}).members[0].index.max() < 295


def test_a_member_whose_score_has_no_neighbours_keeps_its_place_too(sliced):
    # review gives it other scores, which have
    blind = Member(sliced.vae, SCORES["kl"](None, None), torch.tensor([1, 4, 6]))
    assert blind.kept(torch.tensor([0, 4, 5, 6])).index.tolist() == [1, 3]
    assert Member(sliced.vae, blind.score).kept(torch.arange(3)).index is None


def test_levels_are_half_of_what_reference_records_score_themselves(fitted):
    detector = fitted("surprisal").detector
    score, reference = detector.members[0].score, detector.reference.inputs
    with torch.no_grad():
        seen = evaluate(detector.vae, reference)
        own = torch.arange(len(reference))
        plain, _ = score.neighbours.distance(seen, own)
        np.testing.assert_allclose(score.levels, 0.5 * plain, rtol=1e-6)
        distance, near = score.neighbours.distance(seen)
        relative = score._relative(distance, near)
    assert torch.equal(near, score.neighbours.nearest(seen))
    np.testing.assert_allclose(relative, distance - score.levels[near].mean(1), rtol=1e-6, atol=1e-6)


def test_calibration_records_in_the_reference_keep_the_false_alarm_rate_if_they_are_left_out():
    alpha, rates = 0.1, {"left out": [], "not left out": []}
    for seed in range(15):
        g = np.random.default_rng(seed)
        mixing = g.normal(size=(3, 6))
        X = g.normal(size=(650, 3)) @ mixing + 0.3 * g.normal(size=(650, 6))
        detector = VAEDetector(random_state=seed, alpha=alpha, training={"steps": 20}).fit(X[:150]).detector_
        fresh, threshold = detector.scores_of_matrix(X[150:]), detector.threshold
        assert set(map(str, range(150))) == set(detector.reference.record_ids)
        rates["left out"].append((fresh > threshold.value).mean())
        # the known-bad twin: calibration records are their own nearest neighbours
        twin = np.quantile(detector.scores_of_matrix(X[:150]), 1 - alpha)
        rates["not left out"].append((fresh > twin).mean())
    mean = {name: float(np.mean(rate)) for name, rate in rates.items()}
    assert 0.06 < mean["left out"] < 0.12
    assert mean["not left out"] > 0.2


# ------------------------------------------------------------- a matrix, whatever its columns


def test_a_matrix_scores_as_its_data_frame_does_with_numbers_of_two_values():
    g = np.random.default_rng(0)
    X = g.normal(size=(400, 6))
    X[:, [0, 4]] = X[:, [0, 4]] > 0.8
    detector = VAEDetector(random_state=0, training={"epochs": 1}).fit(X)
    assert [s.kind for s in detector.detector_.preprocessor.states] == ["number"] * 4 + ["binary"] * 2
    other = g.normal(size=(50, 6))
    other[:40, [0, 4]] = other[:40, [0, 4]] > 0
    frame = pd.DataFrame(other, columns=[f"x{i}" for i in range(6)])
    by_records = detector.detector_.detect(VAEDetector(training={"epochs": 1})._records(frame, reset=True)[0])
    np.testing.assert_array_equal(detector.anomaly_score(other), by_records.score)
    usual, odd = detector.anomaly_score(X[:1] + np.array([[0.0] * 6, [0.5] + [0.0] * 5]))
    assert odd > usual + 3  # a half was never seen


# ------------------------------------------------------------- records that repeat


@pytest.mark.parametrize("levels", [2, 3, 7])
def test_records_that_repeat_have_finite_reasons_that_sum_to_the_score(levels):
    g = np.random.default_rng(levels)
    X = np.minimum(g.geometric(0.7, (300, 6)) - 1, levels - 1).astype(float)
    X[200:] = X[:100]
    fit = VAEDetector(random_state=0, training={"steps": 60}).fit(X)
    records, _ = fit._records(np.vstack([X[:40], X[:5] + 9.0]), reset=False)
    found = fit.detector_.detect(records).score
    terms = fit.detector_.terms(fit.detector_.encode(records))
    np.testing.assert_allclose(terms.sum(1), found, rtol=1e-9, atol=1e-9)
    assert (terms >= -1e-9).all()
    for explanation, score in zip(explain(fit.detector_, records), found, strict=True):
        assert sum(reason.nats for reason in explanation.reasons) == pytest.approx(score, rel=1e-6)


def test_the_most_normal_score_has_no_surprise_however_many_share_it():
    told = tail(torch.cat([torch.zeros(900), torch.linspace(1.0, 5.0, 100)]).double())
    assert told(torch.tensor([-1e-16, 0.0, 1e-16], dtype=torch.float64)).max() < 1e-12
    assert told(torch.tensor([2.0], dtype=torch.float64)).item() > 2.0
    score = torch.tensor([0.0, 3.0], dtype=torch.float64, requires_grad=True)
    told(score).sum().backward()
    assert score.grad.isfinite().all() and score.grad[1] > 0


def test_a_binary_number_that_was_never_so_has_a_note():
    g = np.random.default_rng(5)
    X = (g.random((300, 8)) > 0.8) * 1.0
    fit = VAEDetector(random_state=0, training={"steps": 60}).fit(X)
    odd = X[:1].copy()
    odd[0, 2] = 7.0
    records, _ = fit._records(odd, reset=False)
    (explanation,) = explain(fit.detector_, records)
    reason = next(r for r in explanation.reasons if r.column == "x2")
    assert (reason.found, reason.note) == ("7", "never seen in training")
    assert reason.expected.startswith(("0 (", "1 ("))
    assert explanation.reasons[0] == reason


# ------------------------------------------------------------- contamination


def test_the_likeliest_are_kept_in_their_order():
    elbo = torch.tensor([3.0, -5.0, 1.0, 2.0, -9.0])
    assert most_likely(elbo, 0.4).tolist() == [0, 2, 3]
    assert most_likely(elbo, 0.19).tolist() == [0, 1, 2, 3, 4]
    assert most_likely(elbo[:1], 0.49).tolist() == [0]


@pytest.mark.parametrize("share", [-0.1, 0.5, 1.0])
def test_a_share_of_anomalies_that_would_leave_too_few_is_refused(share):
    with pytest.raises(ConfigError, match=rf"contamination_robust must .* Got {share}"):
        VAEDetector(training={"contamination_robust": share}).fit(np.random.default_rng(0).normal(size=(60, 3)))


def test_anomalies_among_training_records_are_found_out():
    g = np.random.default_rng(0)
    normal = g.normal(size=(900, 5)) @ g.normal(size=(5, 5))
    far = g.normal(size=(100, 5)) * 30  # a tenth of them, each by itself
    X = g.permutation(np.vstack([normal, far]))
    fits = {
        c: VAEDetector(random_state=0, training={"steps": 300, "contamination_robust": c}).fit(X) for c in (0.0, 0.1)
    }
    size = {c: len(fit.detector_.reference.inputs) for c, fit in fits.items()}
    assert size == {0.0: 1000, 0.1: 900}
    kept = X[[int(i) for i in fits[0.1].detector_.reference.record_ids]]
    lost = {tuple(row) for row in far} - {tuple(row) for row in kept}
    assert len(lost) > 80
    assert [float(fit.detector_.members[0].score.levels.abs().max()) > 0 for fit in fits.values()] == [True, False]
    sigma = {c: float(fit.detector_.vae.likelihood.sigma.detach().mean()) for c, fit in fits.items()}
    assert sigma[0.1] < sigma[0.0]
