"""Laws of every builder of a VAE, over the table ``MODELS`` itself and every mix of columns."""

from __future__ import annotations

import inspect
import itertools

import numpy as np
import pytest
import torch

from vae_anomaly.errors import ConfigError
from vae_anomaly.likelihoods import Block, Layout
from vae_anomaly.models import MODELS
from vae_anomaly.objectives import BetaElbo
from vae_anomaly.registry import build
from vae_anomaly.training import build_seeded
from vae_anomaly.vae import VAE, Inputs, elbo_terms, evaluate

LAYOUTS = {
    "mixed": Layout(
        (Block(0, "gaussian", 1), Block(1, "gaussian", 4), Block(2, "bernoulli", 1), Block(3, "categorical", 3)), 4
    ),
    "numbers": Layout(tuple(Block(i, "gaussian", 1) for i in range(5)), 5),
    "one number": Layout((Block(0, "gaussian", 1),), 1),
    "booleans": Layout((Block(0, "bernoulli", 1), Block(1, "bernoulli", 1)), 2),
    "categories": Layout((Block(0, "categorical", 3), Block(1, "categorical", 1)), 2),
}
CASES = list(itertools.product(MODELS, LAYOUTS))
B, S, C = 20, 3, 2


def made(kind: str, layout: Layout, seed: int = 0, **options: int) -> VAE:
    return build_seeded(lambda: build("model", MODELS, kind, layout, **options), seed)


def inputs(layout: Layout, rows: int = B, seed: int = 1, context: int = 0) -> Inputs:
    """Records of the layout; every fourth has missing cells."""
    g = np.random.default_rng(seed)
    parts = [g.normal(size=(rows, layout.size("gaussian"))), g.integers(0, 2, (rows, layout.size("bernoulli")))]
    parts += [np.eye(size)[g.integers(0, size, rows)] for size in layout.categorical_sizes]
    observed = np.ones((rows, layout.features))
    observed[::4, (layout.column_of_feature == 0).numpy()] = 0
    given = torch.from_numpy(g.normal(size=(rows, context)).astype(np.float32)) if context else None
    x = (np.hstack(parts) * observed).astype(np.float32)
    return Inputs(torch.from_numpy(x), torch.from_numpy(observed.astype(np.float32)), None, given)


def noise(vae: VAE, *sizes: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(2).normal(size=(*sizes, vae.prior(None).noise_dim))).float()


def without_gradient(vae: VAE, records: Inputs) -> list[str]:
    """Names of the parameters that the negative ELBO does not reach."""
    BetaElbo(warmup=0.0).loss(elbo_terms(vae, records, noise(vae, len(records))), 1.0).backward()
    return [n for n, p in vae.named_parameters() if p.numel() and (p.grad is None or not p.grad.abs().sum() > 0)]


@pytest.mark.parametrize(("kind", "layout"), CASES)
@pytest.mark.parametrize("rows", [1, B])
def test_shapes(kind, layout, rows):
    layout = LAYOUTS[layout]
    vae, records = made(kind, layout), inputs(layout, rows)
    latent = vae.prior(None).noise_dim
    with torch.no_grad():
        found, terms = evaluate(vae, records), elbo_terms(vae, records, noise(vae, S, rows))
    assert type(vae) is VAE
    assert found.posterior.mean.shape == found.posterior.scale.shape == found.kl.shape == (rows, latent)
    assert found.likelihood.mean().shape == found.likelihood.entry_log_prob(records.x, None).shape == records.x.shape
    assert found.likelihood.log_prob(records.x, records.observed).shape == (rows,)
    assert terms.log_likelihood.shape == terms.kl.shape == (S, rows)
    assert terms.log_likelihood.isfinite().all()
    assert (found.kl >= 0).all()
    assert (found.posterior.scale > 0).all()


@pytest.mark.parametrize(("kind", "layout"), CASES)
def test_every_parameter_gets_a_gradient_from_the_elbo(kind, layout):
    assert without_gradient(made(kind, LAYOUTS[layout]), inputs(LAYOUTS[layout])) == []


def test_a_parameter_that_nothing_uses_is_seen():
    vae = made(next(iter(MODELS)), LAYOUTS["mixed"])
    vae.posterior.idle = torch.nn.Linear(2, 2)
    assert without_gradient(vae, inputs(LAYOUTS["mixed"])) == ["posterior.idle.weight", "posterior.idle.bias"]


@pytest.mark.parametrize(("kind", "layout"), CASES)
def test_draws_are_one_pass_each(kind, layout):
    vae, records = made(kind, LAYOUTS[layout]), inputs(LAYOUTS[layout])
    draws = noise(vae, S, B)
    with torch.no_grad():
        together = elbo_terms(vae, records, draws)
        for s in range(S):
            alone = elbo_terms(vae, records, draws[s])
            torch.testing.assert_close(together.log_likelihood[s], alone.log_likelihood, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(together.kl[s], alone.kl, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "layout"), CASES)
def test_a_record_does_not_see_the_others(kind, layout):
    vae, records = made(kind, LAYOUTS[layout]), inputs(LAYOUTS[layout])
    with torch.no_grad():
        together, alone = evaluate(vae, records), evaluate(vae, records[slice(7, 8)])
    torch.testing.assert_close(together.posterior.mean[7:8], alone.posterior.mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(together.likelihood.mean()[7:8], alone.likelihood.mean(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", MODELS)
def test_context_matters_where_there_is_one(kind):
    layout = LAYOUTS["mixed"]
    if "context" not in inspect.signature(MODELS[kind]).parameters:
        with pytest.raises(ConfigError, match="context"):
            made(kind, layout, context=C)
        return
    vae, records = made(kind, layout, context=C), inputs(layout, context=C)
    with torch.no_grad():
        here = evaluate(vae, records)
        there = evaluate(vae, Inputs(records.x, records.observed, None, 1.0 - records.context))
        together = elbo_terms(vae, records, noise(vae, S, B))
    assert (here.posterior.mean != there.posterior.mean).any(1).all()
    assert (here.likelihood.parameters != there.likelihood.parameters).any(1).all()
    assert together.log_likelihood.shape == (S, B)
    assert without_gradient(vae, records) == []


@pytest.mark.parametrize("kind", MODELS)
def test_absurd_values_stay_finite(kind):
    layout = LAYOUTS["numbers"]
    vae, far = made(kind, layout), Inputs(torch.full((4, 5), 7100.0) * torch.tensor([[1.0], [-1.0], [0.5], [0.0]]))
    with torch.no_grad():
        found = evaluate(vae, far)
    assert found.kl.isfinite().all()
    assert found.likelihood.log_prob(far.x).isfinite().all()


@pytest.mark.parametrize("kind", MODELS)
def test_a_seeded_build_is_repeatable_and_leaves_the_global_state_alone(kind):
    torch.manual_seed(11)
    before, numpy_before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    first = made(kind, LAYOUTS["mixed"], seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()
    torch.manual_seed(12)
    again, other = made(kind, LAYOUTS["mixed"], seed=3), made(kind, LAYOUTS["mixed"], seed=4)
    states = [torch.cat([v.flatten() for v in vae.state_dict().values()]) for vae in (first, again, other)]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])
    assert states[0].isfinite().all()


@pytest.mark.parametrize("kind", MODELS)
def test_an_unknown_option_is_refused_with_the_known_ones(kind):
    known = [n for n, p in inspect.signature(MODELS[kind]).parameters.items() if p.kind is p.KEYWORD_ONLY]
    with pytest.raises(ConfigError) as caught:
        made(kind, LAYOUTS["mixed"], no_such_option=1)
    assert "no_such_option" in str(caught.value)
    assert all(repr(name) in str(caught.value) for name in known)


def test_an_unknown_model_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"model must be one of \['mlp'.*Did you mean 'mlp'"):
        made("mpl", LAYOUTS["mixed"])


@pytest.mark.parametrize("options", [{"latent": 0}, {"hidden": (32, 0)}, {"hidden": (-1,)}])
def test_empty_layers_are_refused(options):
    with pytest.raises(ConfigError, match="at least 1"):
        build("model", MODELS, "mlp", LAYOUTS["mixed"], **options)
