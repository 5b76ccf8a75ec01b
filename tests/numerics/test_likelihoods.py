"""Likelihoods of tables against scipy, and by enumeration of every record."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

from vae_anomaly.likelihoods import LOG_SIGMA_RANGE, Block, FactorisedDistribution, FactorisedLikelihood, Layout

LAYOUT = Layout(
    (
        Block(0, "gaussian", 1),
        Block(1, "gaussian", 2),
        Block(2, "bernoulli", 1),
        Block(3, "bernoulli", 1),
        Block(4, "categorical", 3),
        Block(5, "categorical", 2),
    ),
    6,
)
B, F = 6, 10


def distribution(seed: int = 0, rows: int = B, layout: Layout = LAYOUT) -> FactorisedDistribution:
    g = np.random.default_rng(seed)
    sigma = np.exp(g.normal(size=layout.size("gaussian")))
    parameters = 2 * g.normal(size=(rows, layout.features))
    return FactorisedDistribution(layout, torch.from_numpy(parameters), torch.from_numpy(sigma))


def one_hot(codes: list[int], size: int) -> np.ndarray:
    return np.array([[float(code == i) for i in range(size)] for code in codes])  # code -1: a value never seen


def records(seed: int = 1) -> torch.Tensor:
    g = np.random.default_rng(seed)
    shops, cards = one_hot([0, 1, 2, -1, 1, 0], 3), one_hot([1, 1, 0, 0, -1, 0], 2)
    return torch.from_numpy(np.hstack([g.normal(size=(B, 3)), g.integers(0, 2, (B, 2)), shops, cards]))


def expected_entries(d: FactorisedDistribution, x: torch.Tensor) -> np.ndarray:
    p, out = d.parameters.numpy(), np.zeros(x.shape)
    out[:, :3] = scipy.stats.norm.logpdf(x[:, :3], p[:, :3], d.sigma)
    out[:, 3:5] = scipy.stats.bernoulli.logpmf(x[:, 3:5], scipy.special.expit(p[:, 3:5]))
    for part in (slice(5, 8), slice(8, 10)):
        out[:, part] = np.log(scipy.special.softmax(p[:, part], axis=1)) * x[:, part].numpy()
    return out


def test_entries_are_those_of_scipy():
    d, x = distribution(), records()
    np.testing.assert_allclose(d.entry_log_prob(x, None), expected_entries(d, x), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(d.log_prob(x), expected_entries(d, x).sum(1), rtol=1e-12)


def test_a_missing_cell_has_no_term_whatever_stands_there():
    d, x = distribution(), records()
    observed = torch.from_numpy(np.random.default_rng(2).integers(0, 2, (B, F)).astype(float))
    np.testing.assert_allclose(
        d.entry_log_prob(x, observed), expected_entries(d, x) * observed.numpy(), rtol=1e-12, atol=1e-14
    )
    other = torch.where(observed > 0, x, torch.full_like(x, 0.5))
    torch.testing.assert_close(d.log_prob(other, observed), d.log_prob(x, observed), rtol=1e-13, atol=1e-13)
    assert torch.equal(d.log_prob(x, torch.zeros(B, F).double()), torch.zeros(B).double())
    assert torch.equal(d.entry_log_prob(x, torch.ones(B, F).double()), d.entry_log_prob(x, None))


def test_booleans_and_categories_sum_to_one_over_every_record():
    layout = Layout(LAYOUT.blocks[2:], 6)
    d = distribution(3, rows=1, layout=layout)
    total, mean = 0.0, np.zeros(layout.features)
    for first, second, shop, card in itertools.product((0, 1), (0, 1), range(3), range(2)):
        x = torch.tensor([[first, second, *one_hot([shop], 3)[0], *one_hot([card], 2)[0]]], dtype=torch.float64)
        p = math.exp(float(d.log_prob(x)))
        total, mean = total + p, mean + p * x[0].numpy()
    assert total == pytest.approx(1.0, abs=1e-13)
    np.testing.assert_allclose(d.mean()[0], mean, rtol=1e-12)


def test_a_number_integrates_to_one():
    layout = Layout((Block(0, "gaussian", 1),), 1)
    d = distribution(4, rows=1, layout=layout)
    x = torch.linspace(-60, 60, 400_001).double()[:, None]
    assert float(torch.trapezoid(d.log_prob(x).exp(), x[:, 0])) == pytest.approx(1.0, abs=1e-10)


def test_half_the_squared_residuals_are_the_negative_log_likelihood_without_its_constants():
    d, x = distribution(), records()
    constants = (d.sigma.log() + 0.5 * math.log(2 * math.pi)).sum()
    half = 0.5 * d.residuals(x).square().sum(-1)
    torch.testing.assert_close(half, -d.log_prob(x) - constants, rtol=1e-12, atol=1e-12)
    assert torch.equal(d.residuals(x)[:, 3:5].sign(), 2 * x[:, 3:5] - 1)
    assert d.residuals(x).shape[1] == len(LAYOUT.column_of_residual)


def test_residuals_of_missing_cells_are_zero():
    d, x = distribution(), records()
    observed = torch.ones(B, F).double()
    observed[0, 1:3] = 0  # both features of column 1
    observed[1, 5:8] = 0  # the category of column 4
    residuals, columns = d.residuals(x, observed), LAYOUT.column_of_residual
    assert (residuals[0, columns == 1] == 0).all()
    assert (residuals[1, columns == 4] == 0).all()
    rest = (columns != 1) & (columns != 4)
    assert torch.equal(residuals[:, rest], d.residuals(x)[:, rest])


@pytest.mark.parametrize("raw", [-1e30, -20.0, 0.0, 20.0, 1e30])
def test_the_scale_of_a_number_has_a_floor_and_a_ceiling(raw):
    likelihood = FactorisedLikelihood(nn.Linear(2, F), LAYOUT)
    nn.init.constant_(likelihood.raw_log_sigma, raw)
    low, high = (math.exp(v) for v in LOG_SIGMA_RANGE)
    assert (likelihood.sigma >= low * (1 - 1e-6)).all()
    assert (likelihood.sigma <= high * (1 + 1e-6)).all()


def test_the_scale_of_a_number_starts_near_one():
    torch.testing.assert_close(FactorisedLikelihood(nn.Linear(2, F), LAYOUT).sigma, torch.ones(3), rtol=0.1, atol=0)


@pytest.mark.parametrize("size", [1e2, 7.1e3])
def test_entries_stay_finite_for_confident_networks_and_absurd_values(size):
    d = distribution()
    far = FactorisedDistribution(LAYOUT, (size * d.parameters).float(), d.sigma.float())
    assert far.entry_log_prob(records().float(), None).isfinite().all()
    assert far.residuals(-size * records().float().clamp(0, 1))[:, :3].isfinite().all()


def test_a_layout_knows_its_sizes_and_its_order():
    assert (LAYOUT.features, LAYOUT.size("gaussian"), LAYOUT.size("bernoulli")) == (F, 3, 2)
    assert LAYOUT.categorical_sizes == (3, 2)
    assert LAYOUT.column_of_feature.tolist() == [0, 1, 1, 2, 3, 4, 4, 4, 5, 5]
    assert LAYOUT.column_of_residual.tolist() == [0, 1, 1, 2, 3, 4, 5]
    with pytest.raises(AssertionError, match="ordered by family"):
        Layout((Block(0, "bernoulli", 1), Block(1, "gaussian", 1)), 2)


def test_draws_broadcast_over_records():
    d, x = distribution(), records()
    several = FactorisedDistribution(LAYOUT, torch.stack([d.parameters, distribution(9).parameters]), d.sigma)
    observed = torch.ones(B, F).double()
    observed[2, 0] = 0
    assert several.log_prob(x, observed).shape == (2, B)
    assert torch.equal(several.log_prob(x, observed)[0], d.log_prob(x, observed))
    assert several.mean().shape == (2, B, F)
