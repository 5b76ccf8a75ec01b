"""Training: it learns, stops at the best epoch, is weighted by beta, and refuses to return a broken model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from vae_anomaly.errors import TrainingError
from vae_anomaly.likelihoods import Block, Layout
from vae_anomaly.models.mlp import mlp_vae
from vae_anomaly.objectives import BetaElbo
from vae_anomaly.training import EpochLog, TrainingPlan, build_seeded, limited_threads, train, validation_elbo
from vae_anomaly.vae import VAE, Inputs, evaluate

LAYOUT = Layout(tuple(Block(i, "gaussian", 1) for i in range(4)), 4)
OBJECTIVE = BetaElbo()
PLAN = TrainingPlan(epochs=12, minibatch=64, learning_rate=1e-2, patience=100)


@pytest.fixture(autouse=True)
def _one_thread():
    with limited_threads(1):
        yield


def data(rows: int, seed: int, layout: Layout = LAYOUT) -> Inputs:
    """Numbers around a line; booleans and categories at random."""
    g = np.random.default_rng(seed)
    x = g.normal(size=(rows, 1)) * [1.0, -2.0, 0.5, 1.5] + 0.2 * g.normal(size=(rows, 4))
    discrete = [g.integers(0, 2, (rows, layout.size("bernoulli")))]
    discrete += [np.eye(size)[g.integers(0, size, rows)] for size in layout.categorical_sizes]
    return Inputs(torch.from_numpy(np.hstack([x[:, : layout.size("gaussian")], *discrete]).astype(np.float32)))


def fresh(seed: int = 0, layout: Layout = LAYOUT) -> VAE:
    return build_seeded(lambda: mlp_vae(layout, hidden=(32, 16), latent=2), seed)


def run(
    plan: TrainingPlan = PLAN, objective: BetaElbo = OBJECTIVE, seed: int = 0, rows: int = 400
) -> tuple[VAE, list[EpochLog]]:
    vae = fresh()
    return vae, list(train(vae, data(rows, 1), data(200, 2), objective, plan, seed))


def weights(vae: VAE) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in vae.parameters()])


def test_training_improves_the_bound_and_moves_every_parameter():
    before = fresh()
    vae, logs = run()
    assert logs[-1].loss < logs[0].loss - 1.0
    assert validation_elbo(vae, data(200, 3))[0] > validation_elbo(before, data(200, 3))[0] + 1.0
    for (name, old), new in zip(before.named_parameters(), vae.parameters(), strict=True):
        assert not torch.equal(old, new), name
    assert not vae.training


def test_a_log_is_consistent_and_its_best_epochs_rise():
    _, logs = run()
    assert [log.epoch for log in logs] == list(range(PLAN.epochs))
    for log in logs:
        assert log.validation_elbo == pytest.approx(log.validation_log_likelihood - log.validation_kl)
        assert 0.0 < log.beta <= 1.0
    best = [log.validation_elbo for log in logs if log.best]
    assert best
    assert best == sorted(best)


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5])
def test_the_weights_of_the_best_epoch_are_kept(warmup):
    # validation records that follow another line: the better the training records are known, the worse it gets
    other = Inputs(data(200, 2).x * torch.tensor([1.0, -1.0, -1.0, 1.0]))
    vae = fresh()
    logs = list(train(vae, data(400, 1), other, BetaElbo(warmup=warmup), PLAN, 0))
    best = max((log for log in logs if log.best), key=lambda log: log.validation_elbo)
    logged = (best.validation_elbo, best.validation_log_likelihood, best.validation_kl)
    assert validation_elbo(vae, other)[:3] == logged
    after = [log.validation_elbo for log in logs if (log.epoch + 1) / PLAN.epochs >= warmup]
    assert best.validation_elbo == max(after)
    assert best.epoch < logs[-1].epoch


def test_training_stops_when_patience_is_over():
    stop = replace(PLAN, epochs=200, patience=3, learning_rate=0.1)
    _, logs = run(stop, BetaElbo(warmup=0.0))
    assert len(logs) < 200
    best = max(log.epoch for log in logs if log.best)
    assert logs[-1].epoch == best + 3


def test_beta_changes_what_is_learned():
    (weak, weak_logs), (strong, strong_logs) = (run(objective=BetaElbo(beta=beta)) for beta in (0.1, 8.0))
    assert (weights(weak) - weights(strong)).abs().max() > 0.01
    assert strong_logs[-1].validation_kl < 0.5 * weak_logs[-1].validation_kl
    with torch.no_grad():
        assert evaluate(strong, data(200, 3)).kl.sum() < 0.5 * evaluate(weak, data(200, 3)).kl.sum()


def test_beta_is_logged_as_it_warms_up():
    _, logs = run(objective=BetaElbo(beta=2.0, warmup=0.5))
    assert [log.beta for log in logs] == pytest.approx([2.0 * min(1.0, (e + 1) / 6) for e in range(12)])
    assert not any(log.best for log in logs[:5])


def test_same_seed_same_weights_other_seed_others():
    (first, _), (again, _), (other, _) = (run(seed=seed) for seed in (5, 5, 6))
    assert torch.equal(weights(first), weights(again))
    assert not torch.equal(weights(first), weights(other))


def test_training_leaves_the_global_random_state_alone_and_does_not_read_it():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first, _ = run()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    again, _ = run()
    assert torch.equal(weights(first), weights(again))


@pytest.mark.parametrize("rows", [1, 2, 63, 65])
def test_any_number_of_records_trains_with_any_minibatch(rows):
    vae, logs = run(replace(PLAN, epochs=2, minibatch=64), rows=rows)
    assert np.isfinite([log.loss for log in logs]).all()
    assert weights(vae).isfinite().all()


@pytest.mark.parametrize(
    "blocks",
    [
        (Block(0, "categorical", 3), Block(1, "categorical", 2)),
        (Block(0, "bernoulli", 1), Block(1, "categorical", 2)),
        (Block(0, "gaussian", 1),),
    ],
    ids=["categories", "discrete", "one number"],
)
def test_any_mix_of_columns_trains(blocks):
    layout = Layout(blocks, len(blocks))
    vae = fresh(layout=layout)
    logs = list(train(vae, data(200, 1, layout), data(100, 2, layout), BetaElbo(), PLAN, 0))
    assert max(log.validation_elbo for log in logs) > logs[0].validation_elbo


def test_missing_cells_do_not_train():
    observed = torch.ones(400, 4)
    observed[:, 2] = 0
    vae, clean = fresh(), data(400, 1)
    masked = Inputs(clean.x * observed, observed)
    list(train(vae, masked, masked, BetaElbo(), PLAN, 0))
    old, new = fresh().likelihood, vae.likelihood
    kept = [torch.equal(old.raw_log_sigma[i], new.raw_log_sigma[i]) for i in range(4)]
    kept_rows = [torch.equal(old.net[-1].weight[i], new.net[-1].weight[i]) for i in range(4)]
    assert kept == kept_rows == [False, False, True, False]


@pytest.mark.parametrize(
    ("change", "where", "what"),
    [
        ({"learning_rate": 1e6}, None, "epoch"),
        ({}, "training", "training loss must stay finite. Got nan in epoch 0"),
        ({}, "validation", "validation ELBO must stay finite. Got nan in epoch 0"),
    ],
    ids=["absurd rate", "infinite training record", "infinite validation record"],
)
def test_a_diverging_run_ends_in_an_error_with_epoch_and_value(change, where, what):
    sets = {"training": data(400, 1), "validation": data(200, 2)}
    if where:
        sets[where].x[17, 1] = torch.inf
    with pytest.raises(TrainingError, match=what) as caught:
        list(train(fresh(), sets["training"], sets["validation"], BetaElbo(), replace(PLAN, **change), 0))
    assert any(value in str(caught.value) for value in ("Got nan", "Got inf", "Got -inf"))


def test_a_plan_follows_the_number_of_records_and_takes_what_is_given():
    for records in (1, 50, 1_000, 100_000):
        plan = TrainingPlan.for_records(records, steps=500)
        steps = plan.epochs * -(-records // plan.minibatch)
        assert plan.epochs >= 20
        assert steps >= 500 or plan.epochs == 20
        assert 1 <= plan.patience <= plan.epochs
    given = {"epochs": 3, "minibatch": 7, "learning_rate": 0.5, "patience": 2, "input_noise": 0.0}
    assert TrainingPlan.for_records(1_000, **given) == TrainingPlan(**given)
