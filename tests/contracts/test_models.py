"""Laws of every builder of a VAE, over the table ``MODELS`` itself and every layout that each of them takes."""

from __future__ import annotations

import inspect
import re

import model_samples
import numpy as np
import pytest
import torch
from model_samples import CASES, LAYOUTS, VARIANTS, inputs, layout_for, layouts_of, made, noise

from vae_anomaly.errors import ConfigError
from vae_anomaly.likelihoods.tokens import END, PAD
from vae_anomaly.models import MODELS, build_model
from vae_anomaly.objectives import BetaElbo
from vae_anomaly.vae import VAE, Inputs, elbo_terms, evaluate

B, S = 20, 3
each_case = pytest.mark.parametrize(("kind", "name"), CASES)
each_kind = pytest.mark.parametrize("kind", MODELS)


def without_gradient(vae: VAE, records: Inputs) -> list[str]:
    """Names of the parameters that the negative ELBO does not reach."""
    BetaElbo(warmup=0.0).loss(elbo_terms(vae, records, noise(vae, len(records))), 1.0).backward()
    return [n for n, p in vae.named_parameters() if p.numel() and (p.grad is None or not p.grad.abs().sum() > 0)]


def with_options(kind: str) -> list[dict[str, object]]:
    """No option, and every variant that the model knows."""
    known = inspect.signature(MODELS[kind].builder).parameters
    return [{}, *(options for options in VARIANTS.values() if set(options) <= set(known))]


def test_every_model_has_a_small_size_and_a_layout():
    assert set(model_samples.SMALL) == set(MODELS)
    assert all(layouts_of(kind) for kind in MODELS)


@each_case
@pytest.mark.parametrize("rows", [1, B])
def test_shapes(kind, name, rows):
    layout = layout_for(kind, name)
    vae, records = made(kind, layout), inputs(layout, rows)
    with torch.no_grad():
        found, terms = evaluate(vae, records), elbo_terms(vae, records, noise(vae, S, rows))
    assert type(vae) is VAE
    assert found.z.shape == found.posterior.mean.shape == found.posterior.scale.shape == (rows, vae.latent)
    assert found.kl.shape == (rows, vae.latent)
    assert found.likelihood.entry_log_prob(records.x, None).shape == (rows, layout.features)
    assert found.likelihood.residuals(records.x, records.observed).shape == (rows, len(layout.column_of_residual))
    assert found.likelihood.log_prob(records.x, records.observed).shape == (rows,)
    assert terms.log_likelihood.shape == terms.kl.shape == (S, rows)
    assert terms.kl_by_dimension.expand(S, rows, -1).shape == (S, rows, vae.latent)
    assert found.log_weights(noise(vae, S)).shape == (S, rows)
    assert terms.log_likelihood.isfinite().all()
    assert (found.kl.sum(-1) >= 0).all()
    assert (found.posterior.scale > 0).all()


@each_case
def test_every_parameter_gets_a_gradient_from_the_elbo(kind, name):
    layout = layout_for(kind, name)
    if name in ("one pixel", "one token"):  # as small as it gets: not every unit has something to do
        return
    for options in with_options(kind):
        assert without_gradient(made(kind, layout, **options), inputs(layout)) == [], options


def test_a_parameter_that_nothing_uses_is_seen():
    vae = made("mlp", LAYOUTS["mixed"])
    vae.posterior.idle = torch.nn.Linear(2, 2)
    assert without_gradient(vae, inputs(LAYOUTS["mixed"])) == ["posterior.idle.weight", "posterior.idle.bias"]


@each_case
def test_draws_are_one_pass_each(kind, name):
    layout = layout_for(kind, name)
    vae, records = made(kind, layout), inputs(layout)
    draws = noise(vae, S, B)
    with torch.no_grad():
        together = elbo_terms(vae, records, draws)
        for s in range(S):
            alone = elbo_terms(vae, records, draws[s])
            torch.testing.assert_close(together.log_likelihood[s], alone.log_likelihood, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(together.kl[s], alone.kl, rtol=1e-5, atol=1e-5)
            each = together.kl_by_dimension.expand(S, B, -1)[s]
            torch.testing.assert_close(each, alone.kl_by_dimension, rtol=1e-5, atol=1e-5)


@each_case
def test_a_record_does_not_see_the_others(kind, name):
    layout = layout_for(kind, name)
    vae, records = made(kind, layout), inputs(layout)
    with torch.no_grad():
        together, alone = evaluate(vae, records), evaluate(vae, records[slice(7, 8)])
        parts = [f.likelihood.entry_log_prob(r.x, r.observed) for f, r in ((together, records), (alone, alone.inputs))]
    torch.testing.assert_close(together.z[7:8], alone.z, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(parts[0][7:8], parts[1], rtol=1e-5, atol=1e-5)


@each_case
def test_entries_sum_to_the_likelihood_with_and_without_a_gradient(kind, name):
    layout = layout_for(kind, name)
    vae, records = made(kind, layout), inputs(layout, 300)
    with torch.no_grad():
        found = evaluate(vae, records)
        entries = found.likelihood.entry_log_prob(records.x, records.observed)
        torch.testing.assert_close(entries.sum(-1), found.likelihood.log_prob(records.x, records.observed))
    trained = vae.likelihood(vae.posterior(records.x, records.context).mean, records.context)
    torch.testing.assert_close(
        entries, trained.entry_log_prob(records.x, records.observed).detach(), rtol=1e-4, atol=1e-5
    )


@each_kind
def test_context_matters_exactly_where_there_is_one(kind):
    for name in layouts_of(kind):
        if MODELS[kind].context == "none":
            with pytest.raises(ConfigError, match="context"):
                made(kind, layout_for(kind, name, context=True))
            continue
        layout = layout_for(kind, name, context=True)
        vae, records = made(kind, layout), inputs(layout)
        other = Inputs(records.x, records.observed, None, 1.0 - records.context)
        with torch.no_grad():
            here, there = evaluate(vae, records), evaluate(vae, other)
            prior_here, prior_there = vae.prior(records.context), vae.prior(other.context)
            likelihoods = [e.likelihood.log_prob(records.x, records.observed) for e in (here, there)]
        assert (here.z != there.z).any(1).all()
        assert (prior_here.mean != prior_there.mean).any(1).all()
        if name not in ("one token", "categories"):  # one outcome at a position is certain in every context
            # a record without a single observed cell is certain, too
            assert (likelihoods[0] != likelihoods[1]).float().mean() > 0.7
        assert without_gradient(vae, records) == [] or name in ("one pixel", "one token")


@each_kind
def test_a_context_is_refused_or_required_as_the_table_says(kind):
    name, wanted = layouts_of(kind)[0], MODELS[kind].context
    if wanted == "required":
        with pytest.raises(ConfigError, match="must have context columns"):
            made(kind, layout_for(kind, name, context=False))
    else:
        assert made(kind, layout_for(kind, name, context=False)).latent


@each_kind
def test_records_of_another_kind_are_refused_with_the_models_that_take_them(kind):
    for name in set(LAYOUTS) - set(layouts_of(kind)):
        for context in (False, True):
            layout = layout_for(kind, name, context=context)
            with pytest.raises(ConfigError, match="For these choose one of") as info:
                made(kind, layout)
            named = re.findall(r"'(\w+)'", str(info.value).partition("For these choose one of")[2])
            assert named == sorted(other for other in MODELS if can_be_built(other, layout))


def can_be_built(kind, layout) -> bool:
    try:
        return bool(build_model(kind, layout, {}))
    except ConfigError:
        return False


@each_kind
def test_absurd_values_stay_finite(kind):
    if "numbers" not in layouts_of(kind):  # pixels and tokens have no absurd values
        return
    layout = layout_for(kind, "numbers")
    context = torch.zeros(4, layout.context) if layout.context else None
    far = Inputs(torch.full((4, 5), 7100.0) * torch.tensor([[1.0], [-1.0], [0.5], [0.0]]), context=context)
    with torch.no_grad():
        found = evaluate(made(kind, layout), far)
    assert found.kl.isfinite().all()
    assert found.likelihood.log_prob(far.x).isfinite().all()


@each_kind
def test_a_seeded_build_is_repeatable_and_leaves_the_global_state_alone(kind):
    layout = layout_for(kind, layouts_of(kind)[0])
    torch.manual_seed(11)
    before, numpy_before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    first = made(kind, layout, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()
    torch.manual_seed(12)
    again, other = made(kind, layout, seed=3), made(kind, layout, seed=4)
    states = [torch.cat([v.flatten() for v in vae.state_dict().values()]) for vae in (first, again, other)]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])
    assert states[0].isfinite().all()


@each_kind
def test_an_unknown_option_is_refused_with_the_known_ones(kind):
    signature = inspect.signature(MODELS[kind].builder).parameters
    known = [n for n, p in signature.items() if p.kind is p.KEYWORD_ONLY]
    with pytest.raises(ConfigError) as caught:
        made(kind, layout_for(kind, layouts_of(kind)[0]), no_such_option=1)
    assert "no_such_option" in str(caught.value)
    assert all(repr(name) in str(caught.value) for name in known)


def test_an_unknown_model_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"model must be one of \[.*'mlp'.*Did you mean 'mlp'"):
        build_model("mpl", LAYOUTS["mixed"], {})


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("mlp", {"latent": 0}),
        ("mlp", {"hidden": (32, 0)}),
        ("mlp", {"hidden": (-1,)}),
        ("mlp", {"prior": "vamp", "pseudo_inputs": 0}),
        ("hierarchical", {"latents": (4, 0)}),
        ("conv", {"channels": (8, 0)}),
        ("lstm", {"embedding": 0}),
    ],
)
def test_empty_layers_are_refused(kind, options):
    with pytest.raises(ConfigError, match="at least 1"):
        made(kind, layout_for(kind, layouts_of(kind)[0]), **options)


@pytest.mark.parametrize("options", [{"latents": (4,)}, {"hidden": (8,), "latents": (4,)}, {"latents": (4, 2, 1)}])
def test_a_ladder_has_a_level_for_each_layer_and_at_least_two(options):
    with pytest.raises(ConfigError, match="two levels or more"):
        made("hierarchical", LAYOUTS["numbers"], **options)


def test_an_unknown_prior_is_refused_and_a_mixture_has_no_context():
    with pytest.raises(ConfigError, match="'standard' or 'vamp'"):
        made("mlp", LAYOUTS["numbers"], prior="flow")
    with pytest.raises(ConfigError, match="'standard' where there are context columns"):
        made("conv", layout_for("conv", "grey image", context=True), prior="vamp")


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 7), (28, 28), (5, 40), (33, 17)])
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_convolutions_take_and_give_images_of_any_size(size, depth):
    layout = model_samples.PixelLayout(3, *size)
    vae, records = made("conv", layout, channels=(4,) * depth, residual=True), inputs(layout, 2)
    with torch.no_grad():
        assert evaluate(vae, records).likelihood.mean().shape == records.x.shape


@pytest.mark.parametrize("rows", [3, 256, 512])
def test_padding_never_changes_a_text(rows):
    layout = LAYOUTS["text"]
    vae, records = made("lstm", layout), inputs(layout, rows)
    longer = made("lstm", model_samples.replace(layout, length=11))
    longer.load_state_dict(vae.state_dict())
    wide = Inputs(torch.nn.functional.pad(records.x, (0, 5), value=PAD))
    with torch.no_grad():
        short, long = evaluate(vae, records), evaluate(longer, wide)
        entries = short.likelihood.entry_log_prob(records.x), long.likelihood.entry_log_prob(wide.x)
    assert torch.equal(short.z, long.z)
    assert torch.equal(entries[0], entries[1][:, : layout.length])
    assert not entries[1][:, layout.length :].any()
    # what a state at the padding instead of the text's end would give
    with torch.no_grad():
        shifted = records.x.clone()
        shifted[shifted == PAD] = END
        assert not torch.equal(evaluate(vae, Inputs(shifted)).z, short.z)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("conv", {"residual": "no"}),  # which YAML may mean as a truth value and text never is
        ("conv", {"residual": 1}),
        ("mlp", {"latent": "8"}),
        ("mlp", {"latent": True}),
        ("mlp", {"activation": 3}),
    ],
)
def test_an_option_of_another_type_is_refused(kind, options):
    with pytest.raises(ConfigError, match="must be of type"):
        made(kind, layout_for(kind, layouts_of(kind)[0]), **options)


def test_a_model_that_no_memory_holds_is_refused():
    with pytest.raises(ConfigError, match="must fit into memory"):
        build_model("mlp", LAYOUTS["numbers"], {"latent": 10**13})
