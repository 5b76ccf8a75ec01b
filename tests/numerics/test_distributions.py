"""Latent distributions against scipy, torch.distributions and Monte Carlo."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

from vae_anomaly.distributions import DiagonalGaussian, kl_divergence
from vae_anomaly.nn import LOG_SCALE_RANGE, GaussianHead, StandardPrior, bounded, with_context

B, K = 7, 3


def gaussian(seed: int) -> DiagonalGaussian:
    g = np.random.default_rng(seed)
    return DiagonalGaussian(torch.from_numpy(g.normal(size=(B, K))), torch.from_numpy(np.exp(g.normal(size=(B, K)))))


def test_log_prob_is_that_of_scipy():
    q, z = gaussian(0), gaussian(1).mean
    expected = scipy.stats.norm.logpdf(z, q.mean, q.scale).sum(-1)
    np.testing.assert_allclose(q.log_prob(z), expected, rtol=1e-13)


def test_push_maps_standard_noise_to_the_distribution():
    q = gaussian(2)
    z = q.push(torch.from_numpy(np.random.default_rng(3).normal(size=(200_000, B, K))))
    torch.testing.assert_close(z.mean(0), q.mean, atol=0.05, rtol=0)
    torch.testing.assert_close(z.std(0), q.scale, atol=0, rtol=0.02)
    assert q.noise_dim == K


def test_kl_is_that_of_torch_and_of_monte_carlo():
    q, p = gaussian(4), gaussian(5)
    reference = torch.distributions.kl_divergence(
        torch.distributions.Normal(q.mean, q.scale), torch.distributions.Normal(p.mean, p.scale)
    )
    torch.testing.assert_close(kl_divergence(q, p), reference, rtol=1e-12, atol=1e-12)
    z = q.push(torch.from_numpy(np.random.default_rng(6).normal(size=(100_000, B, K))))
    draws = q.log_prob(z) - p.log_prob(z)
    error = (draws.mean(0) - reference.sum(-1)).abs() / (draws.std(0) / math.sqrt(len(draws)))
    assert error.max() < 4.5


def test_kl_is_not_reversed():
    # KL(N(0, 0.1^2) || N(0, 1)) = log 10 + 0.005 - 0.5 = 1.8 nats; the reverse is 47.2
    q, p = (DiagonalGaussian(torch.zeros(1, 1), torch.full((1, 1), s, dtype=torch.float64)) for s in (0.1, 1.0))
    assert float(kl_divergence(q, p)) == pytest.approx(math.log(10) + 0.005 - 0.5, rel=1e-12)
    assert float(kl_divergence(p, q)) == pytest.approx(-math.log(10) + 50 - 0.5, rel=1e-12)


def test_kl_is_zero_for_equal_and_never_negative():
    q, p = gaussian(7), gaussian(8)
    assert torch.equal(kl_divergence(q, q), torch.zeros(B, K).double())
    assert (kl_divergence(q, p) > 0).all()


def test_standard_normal_takes_the_type_of_its_model():
    p = StandardPrior(K).double()(None)
    assert p.mean.dtype is torch.float64
    assert torch.equal(p.scale, torch.ones(K).double())
    assert float(StandardPrior(2).double()().log_prob(torch.zeros(2).double())) == pytest.approx(-math.log(2 * math.pi))


def test_bounded_keeps_its_range_and_its_order():
    raw = torch.linspace(-15, 15, 1001).double()
    values = bounded(raw, -2.0, 5.0)
    assert (values.diff() > 0).all()
    extremes = bounded(torch.tensor([-torch.inf, -1e30, 1e30, torch.inf]), -2.0, 5.0)
    assert torch.equal(extremes, torch.tensor([-2.0, -2.0, 5.0, 5.0]))


@pytest.mark.parametrize("size", [0.0, 1.0, 1e2, 7e3, 1e30])
def test_the_scale_of_a_posterior_stays_in_its_range_whatever_the_network_says(size):
    torch.manual_seed(0)
    head = GaussianHead(nn.Linear(4, 2 * K))
    q = head(size * torch.randn(100, 4))
    low, high = (math.exp(v) for v in LOG_SCALE_RANGE)
    assert q.mean.isfinite().all()
    assert (q.scale >= low * (1 - 1e-6)).all()
    assert (q.scale <= high * (1 + 1e-6)).all()


def test_a_posterior_starts_at_the_scale_of_the_prior():
    head = GaussianHead(nn.Linear(4, 2 * K))
    nn.init.zeros_(head.net.weight)
    nn.init.zeros_(head.net.bias)
    torch.testing.assert_close(head(torch.zeros(1, 4)).scale, torch.ones(1, K), rtol=1e-3, atol=0)


def test_context_is_appended_and_spread_over_draws():
    x, c = torch.zeros(5, 2, 3), torch.ones(2, 4)
    assert with_context(x, None) is x
    assert with_context(x, c).shape == (5, 2, 7)
    assert torch.equal(with_context(x, c)[..., 3:], torch.ones(5, 2, 4))
