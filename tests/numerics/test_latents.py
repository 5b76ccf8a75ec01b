"""Ladders, mixtures, capacity, free bits and importance weights against identities, enumeration and Monte Carlo."""

from __future__ import annotations

import math

import model_samples
import numpy as np
import pytest
import torch

from vae_anomaly.distributions import DiagonalGaussian, Ladder, Mixture, kl_divergence
from vae_anomaly.errors import ConfigError
from vae_anomaly.likelihoods import Block, Layout, TokenLayout
from vae_anomaly.likelihoods.tokens import CUT, END, PAD, SPECIAL, UNKNOWN
from vae_anomaly.objectives import BetaElbo
from vae_anomaly.scores.importance import importance_weighted
from vae_anomaly.training import TrainingPlan, limited_threads, train, validation_elbo
from vae_anomaly.vae import ElboTerms, Inputs, elbo_terms, evaluate

NUMBERS = Layout(tuple(Block(i, "gaussian", 1) for i in range(6)), 6)


def mean_error(draws: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest distance of the mean of ``draws`` (S, ...) from ``expected``, in standard errors."""
    return float(((draws.mean(0) - expected) / (draws.std(0) / math.sqrt(len(draws)))).abs().max())


# ---------------------------------------------------------------- ladders


def linear_ladder(seed: int, gain: float) -> Ladder:
    """z2 ~ N(m2, s2^2), z1 | z2 ~ N(gain z2 + m1, s1^2), float64, one record."""
    g = np.random.default_rng(seed)
    m2, m1 = (torch.from_numpy(g.normal(size=(1, 2))) for _ in range(2))
    s2, s1 = (torch.from_numpy(np.exp(0.3 * g.normal(size=(1, 2)))) for _ in range(2))

    def lower(above):
        return DiagonalGaussian(gain * above + m1, s1.expand_as(above))

    return Ladder((lambda above: DiagonalGaussian(m2, s2), lower), (2, 2))


def joint(ladder: Ladder) -> torch.distributions.MultivariateNormal:
    """The same distribution of [z2, z1] as one Gaussian with a full covariance."""
    top = ladder.levels[0](None)
    gain = ladder.levels[1](torch.ones(1, 2).double()).mean - ladder.levels[1](torch.zeros(1, 2).double()).mean
    conditional = ladder.levels[1](torch.zeros(1, 2).double())
    a, v2, v1 = torch.diag(gain[0]), torch.diag(top.scale[0] ** 2), torch.diag(conditional.scale[0] ** 2)
    covariance = torch.cat([torch.cat([v2, v2 @ a.T], 1), torch.cat([a @ v2, a @ v2 @ a.T + v1], 1)], 0)
    mean = torch.cat([top.mean[0], a @ top.mean[0] + conditional.mean[0]])
    return torch.distributions.MultivariateNormal(mean, covariance)


def test_a_linear_ladder_is_the_joint_gaussian():
    ladder = linear_ladder(0, 0.7)
    z = ladder.push(torch.randn(5000, 1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(ladder.log_prob(z)[:, 0], joint(ladder).log_prob(z[:, 0]), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ladder.mean[0], joint(ladder).mean)
    assert mean_error(z[:, 0], joint(ladder).mean) < 4.5


def test_the_kl_of_ladders_is_the_sum_of_the_levels_is_monte_carlo_is_exact():
    q, p = linear_ladder(1, 0.9), linear_ladder(2, -0.4)
    z = q.push(torch.randn(200_000, 1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    exact = torch.distributions.kl_divergence(joint(q), joint(p))
    levels = p.kl_from(q.at(z), z)[:, 0]
    top = kl_divergence(q.levels[0](None), p.levels[0](None))
    torch.testing.assert_close(levels[:, :2], top.expand(len(levels), 2))  # the top does not depend on the draw
    assert mean_error(levels.sum(-1), exact) < 4.5
    assert mean_error((q.log_prob(z) - p.log_prob(z))[:, 0], exact) < 4.5
    # two KLs to N(0, I), as if the levels knew nothing of each other, are something else
    flat = kl_divergence(q.at(q.mean), DiagonalGaussian(torch.zeros(4).double(), torch.ones(4).double())).sum()
    assert abs(float(flat) - float(exact)) > 0.1


def test_the_ladder_of_the_model_uses_what_is_above():
    vae = model_samples.made("hierarchical", NUMBERS)
    records = model_samples.inputs(NUMBERS)
    with torch.no_grad():
        q, p = vae.posterior(records.x), vae.prior(None)
        z = q.mean
        moved = z.clone()
        moved[:, :2] += 3.0  # the top level comes first
        assert (q.at(z).mean[:, :2] == q.at(moved).mean[:, :2]).all()
        assert (q.at(z).mean[:, 2:] != q.at(moved).mean[:, 2:]).any()
        assert (p.at(z).mean[:, 2:] != p.at(moved).mean[:, 2:]).any()
        # a precision-weighted posterior is at least as sure as what it is made of
        assert (q.at(z).scale[:, 2:] < p.at(z).scale[:, 2:]).all()


# ---------------------------------------------------------------- mixtures


def mixture(seed: int, count: int) -> Mixture:
    g = np.random.default_rng(seed)
    return Mixture(
        torch.from_numpy(g.normal(size=(count, 3))), torch.from_numpy(np.exp(0.4 * g.normal(size=(count, 3))))
    )


def test_a_mixture_has_the_density_of_its_components():
    p, z = mixture(0, 4), torch.from_numpy(np.random.default_rng(1).normal(size=(7, 2, 3)))
    parts = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.ones(4).double()),
        torch.distributions.Independent(torch.distributions.Normal(p.mean, p.scale), 1),
    )
    torch.testing.assert_close(p.log_prob(z), parts.log_prob(z))
    drawn = p.draw(200_000, torch.Generator().manual_seed(0))
    assert mean_error(drawn, p.mean.mean(0)) < 4.5


def test_the_kl_to_a_mixture_is_exact_for_one_component_and_else_an_upper_bound():
    q = DiagonalGaussian(torch.zeros(2, 3).double(), torch.full((2, 3), 0.5).double())
    one = mixture(2, 1)
    torch.testing.assert_close(one.kl_from(q, q.mean), kl_divergence(q, DiagonalGaussian(one.mean, one.scale)))
    for seed in range(5):
        p = mixture(seed, 6)
        z = q.push(torch.randn(50_000, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))
        drawn = (q.log_prob(z) - p.log_prob(z)).mean(0)
        bound = p.kl_from(q, q.mean).sum(-1)
        assert (bound >= drawn - 0.02).all()
        # never worse than the best component alone, plus what choosing it costs
        each = kl_divergence(DiagonalGaussian(q.mean[:, None], q.scale[:, None]), DiagonalGaussian(p.mean, p.scale))
        assert (bound <= each.sum(-1).min(-1).values + math.log(6) + 1e-9).all()


# ---------------------------------------------------------------- objectives


def records(rows: int, seed: int) -> Inputs:
    g = np.random.default_rng(seed)
    x = g.normal(size=(rows, 2)) @ g.normal(size=(2, 6)) + 0.2 * g.normal(size=(rows, 6))
    return Inputs(torch.from_numpy(x.astype(np.float32)))


def trained(objective: BetaElbo, kind: str = "mlp", steps: int = 1500) -> tuple[float, np.ndarray]:
    """KL and KL by dimension on held-out records after training."""
    vae, rows = model_samples.made(kind, NUMBERS), records(1200, 3)
    plan = TrainingPlan(steps // 8, 128, 5e-3, 10_000)
    with limited_threads(1):
        list(train(vae, rows[slice(0, 1000)], rows[slice(1000, 1200)], objective, plan, 0))
    found = validation_elbo(vae, rows[slice(1000, 1200)])
    return found.kl, np.array(found.kl_by_dimension)


@pytest.mark.parametrize("capacity", [1.0, 2.5, 12.0])
def test_a_capacity_moves_the_kl_to_its_target(capacity):
    kl, _ = trained(BetaElbo(capacity=capacity, gamma=30.0))
    assert kl == pytest.approx(capacity, rel=0.1)


def test_without_a_capacity_the_kl_goes_where_it_likes():
    kl, _ = trained(BetaElbo())
    assert all(abs(kl - capacity) > 0.1 * capacity for capacity in (1.0, 2.5, 12.0))


def test_free_bits_keep_every_dimension_alive_that_a_strong_beta_would_kill():
    _, plain = trained(BetaElbo(beta=20.0))
    _, kept = trained(BetaElbo(beta=20.0, free_bits=0.5))
    assert plain.max() < 0.1
    assert kept.min() > 0.3


def test_the_objectives_are_their_formulas():
    g = torch.Generator().manual_seed(0)
    likelihood, kl = (torch.randn(5, 7, generator=g).double() for _ in range(2))
    by_dimension = torch.rand(7, 3, generator=g).double()
    terms = ElboTerms(likelihood, kl, lambda: by_dimension)
    half = BetaElbo(beta=2.0, warmup=0.5)
    assert half.loss(terms, 0.25).item() == pytest.approx((kl - likelihood).mean().item())
    capacity = BetaElbo(capacity=6.0, gamma=7.0, warmup=0.5)
    expected = 7.0 * abs(kl.mean() - 3.0) - likelihood.mean()
    assert capacity.loss(terms, 0.25).item() == pytest.approx(expected.item())
    free = BetaElbo(free_bits=0.45, warmup=0.0)
    expected = np.maximum(0.45, by_dimension.mean(0).numpy()).sum() - likelihood.mean().item()
    assert free.loss(terms, 0.0).item() == pytest.approx(expected)
    weighted = BetaElbo(samples=5, warmup=0.0)
    expected = -(torch.logsumexp(likelihood - kl, 0) - math.log(5)).mean()
    assert weighted.loss(terms, 0.0).item() == pytest.approx(expected.item())


@pytest.mark.parametrize("options", [{"capacity": 1.0, "samples": 2}, {"free_bits": 0.1, "samples": 2}])
def test_two_replacements_of_the_kl_are_refused(options):
    with pytest.raises(ConfigError, match="at most one of capacity, free_bits and samples"):
        BetaElbo(**options)


def test_more_importance_samples_raise_the_bound_that_is_trained():
    vae, rows = model_samples.made("mlp", NUMBERS), records(400, 4)
    with torch.no_grad():
        bounds = []
        for samples in (1, 5, 50):
            noise = model_samples.noise(vae, 400, len(rows)).view(400 // samples, samples, len(rows), -1)
            terms = [elbo_terms(vae, rows, part if samples > 1 else part[0]) for part in noise]
            bounds.append(-np.mean([BetaElbo(samples=samples, warmup=0.0).loss(t, 1.0).item() for t in terms]))
    assert bounds[0] < bounds[1] < bounds[2]


def test_the_importance_weighted_score_lies_below_the_negative_elbo_and_converges():
    vae, rows = model_samples.made("mlp", NUMBERS), records(100, 5)
    with torch.no_grad():
        found = evaluate(vae, rows)
        scores = [importance_weighted([found], None, samples=s)(found) for s in (500, 2000)]
        elbo = elbo_terms(vae, rows, model_samples.noise(vae, 2000, len(rows)))
    negative_elbo = (elbo.kl - elbo.log_likelihood).double().mean(0)
    assert (scores[1] < negative_elbo).all()
    torch.testing.assert_close(scores[0], scores[1], atol=0.2, rtol=0)
    shifted = scores[1] + math.log(2)  # what a sum in place of a mean over twice the draws would give
    assert not torch.allclose(scores[0], shifted, atol=0.2, rtol=0)


# ---------------------------------------------------------------- tokens


def all_texts(layout: TokenLayout, length: int) -> torch.Tensor:
    """Every text of ``length`` tokens that the decoder can write."""
    writable = [t for t in range(layout.vocabulary) if t not in (PAD, UNKNOWN)]
    texts = torch.cartesian_prod(*[torch.tensor(writable)] * length).view(-1, length)
    return torch.nn.functional.pad(texts, (0, layout.length - length), value=PAD)


@pytest.mark.parametrize("context", [0, 3])
@pytest.mark.parametrize("length", [1, 2, 3])
def test_token_likelihoods_sum_to_one_by_enumeration(length, context):
    layout = TokenLayout(SPECIAL + 3, 4, context)
    vae = model_samples.made("lstm", layout).double()
    for parameter in vae.likelihood.parameters():
        parameter.data.mul_(4.0)  # far from uniform
    texts = all_texts(layout, length)
    z = torch.randn(1, vae.latent, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    given = torch.ones(len(texts), 3).double() if context else None
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            found = vae.likelihood(z.expand(len(texts), -1), given).log_prob(texts).detach()
        assert found.exp().sum().item() == pytest.approx(1.0, abs=1e-10)
    assert found.std() > 0.1


def test_what_is_unknown_or_padding_has_no_term_and_cannot_be_written():
    layout = TokenLayout(SPECIAL + 3, 4)
    vae = model_samples.made("lstm", layout)
    x = torch.tensor([[SPECIAL, UNKNOWN, CUT, PAD], [SPECIAL, SPECIAL + 1, END, PAD]])
    with torch.no_grad():
        entries = evaluate(vae, Inputs(x)).likelihood.entry_log_prob(x)
        logits = next(vae.likelihood.steps(torch.zeros(1, vae.latent)))
    assert (entries[:, 3] == 0).all()
    assert entries[0, 1] == 0
    assert (entries[0, [0, 2]] < 0).all()
    assert torch.isneginf(logits[0, [PAD, UNKNOWN]]).all()


def test_a_token_depends_on_those_before_it_and_on_z_and_not_on_those_after_it():
    layout = TokenLayout(SPECIAL + 5, 5)
    vae = model_samples.made("lstm", layout)
    x = torch.tensor([[4, 5, 6, 7, END]])
    z = torch.zeros(1, vae.latent)
    with torch.no_grad():
        base = vae.likelihood(z).entry_log_prob(x)
        later, earlier = x.clone(), x.clone()
        later[0, 3], earlier[0, 1] = 8, 8
        assert torch.equal(vae.likelihood(z).entry_log_prob(later)[0, :3], base[0, :3])
        assert (vae.likelihood(z).entry_log_prob(earlier)[0, 2:] != base[0, 2:]).all()
        assert (vae.likelihood(z + 1).entry_log_prob(x) != base).all()
        # what is fed can be something else than what is judged
        fed = vae.likelihood(z, None, x.masked_fill(x == 5, UNKNOWN)).entry_log_prob(x)
    assert torch.equal(fed[0, :2], base[0, :2])
    assert (fed[0, 2:] != base[0, 2:]).all()
