"""The evidence lower bound of linear-Gaussian models, where log p(x) and the exact posterior are known.

For x = W z + m + e with e ~ N(0, Psi) and W^T Psi^-1 W = diag(s^2), the posterior is N((I + diag(s^2))^-1 W^T Psi^-1
(x - m), (I + diag(s^2))^-1): diagonal, so that a VAE of this package can hold it exactly. With it, ELBO = log p(x) for
every draw; any lost constant, sign or factor shows.

Reference: Tipping and Bishop, Probabilistic principal component analysis, JRSS B 61 (1999).
"""

from __future__ import annotations

import math

import model_samples
import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from torch import Tensor, nn

from vae_anomaly.likelihoods import LOG_SIGMA_RANGE, Block, FactorisedLikelihood, Layout
from vae_anomaly.models import MODELS
from vae_anomaly.nn import LOG_SCALE_RANGE, GaussianHead, StandardPrior
from vae_anomaly.objectives import BetaElbo
from vae_anomaly.training import validation_elbo
from vae_anomaly.vae import VAE, ElboTerms, Inputs, elbo_terms, evaluate

F, K, B, S = 5, 2, 40, 8
STRENGTH = np.array([2.0, 0.7])  # s: how strongly each latent dimension shows in x


class Linear:
    """The linear-Gaussian model and the VAE that is the same."""

    def __init__(self, seed: int = 0, posterior_error: float = 0.0) -> None:
        g = np.random.default_rng(seed)
        self.sigma, self.mean = np.exp(0.3 * g.normal(size=F)), g.normal(size=F)
        self.w = self.sigma[:, None] * np.linalg.qr(g.normal(size=(F, K)))[0] * STRENGTH
        self.scale = (1 + STRENGTH**2) ** -0.5
        self.gain = self.scale[:, None] ** 2 * self.w.T / self.sigma**2
        self.x = self.mean + g.normal(size=(B, K)) @ self.w.T + self.sigma * g.normal(size=(B, F))
        self.gain = self.gain * (1 + posterior_error)
        self.q_scale = self.scale * (1 + posterior_error)
        self.vae = VAE(self._posterior(), StandardPrior(K), self._likelihood()).double()
        self.inputs = Inputs(torch.from_numpy(self.x))

    def _posterior(self) -> nn.Module:
        net = nn.Linear(F, 2 * K).double()
        raw = unbounded(np.log(self.q_scale), LOG_SCALE_RANGE) - 1.0986
        with torch.no_grad():
            net.weight.copy_(torch.from_numpy(np.vstack([self.gain, np.zeros((K, F))])))
            net.bias.copy_(torch.from_numpy(np.concatenate([-self.gain @ self.mean, raw])))
        return GaussianHead(net)

    def _likelihood(self) -> nn.Module:
        net = nn.Linear(K, F).double()
        likelihood = FactorisedLikelihood(net, Layout(tuple(Block(i, "gaussian", 1) for i in range(F)), F)).double()
        with torch.no_grad():
            net.weight.copy_(torch.from_numpy(self.w))
            net.bias.copy_(torch.from_numpy(self.mean))
            likelihood.raw_log_sigma.copy_(torch.from_numpy(unbounded(np.log(self.sigma), LOG_SIGMA_RANGE)))
        return likelihood

    def log_p(self, seen: np.ndarray | slice = slice(None)) -> np.ndarray:
        """log p of the columns ``seen`` of every record."""
        w, covariance = self.w[seen], np.diag(self.sigma[seen] ** 2)
        return scipy.stats.multivariate_normal(self.mean[seen], w @ w.T + covariance).logpdf(self.x[:, seen])

    def posterior_gap(self, q_mean: np.ndarray, seen: np.ndarray | slice = slice(None)) -> np.ndarray:
        """KL(q given p(z given the columns ``seen``)) of every record: what the ELBO lacks."""
        w = self.w[seen] / self.sigma[seen, None]
        precision = np.eye(K) + w.T @ w
        exact = np.linalg.solve(precision, w.T @ ((self.x - self.mean)[:, seen] / self.sigma[seen]).T).T
        off, s2 = q_mean - exact, self.q_scale**2
        quadratic = np.einsum("bk,kl,bl->b", off, precision, off)
        trace = (np.diag(precision) * s2).sum()
        return 0.5 * (trace + quadratic - K - np.linalg.slogdet(precision)[1] - np.log(s2).sum())


def unbounded(value: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    return scipy.special.logit((value - limits[0]) / (limits[1] - limits[0]))


def noise(draws: int = S, records: int = B, latent: int = K) -> Tensor:
    return torch.from_numpy(np.random.default_rng(7).normal(size=(draws, records, latent)))


def elbo(terms: ElboTerms) -> np.ndarray:
    return (terms.log_likelihood - terms.kl).detach().numpy()


def test_with_the_exact_posterior_the_elbo_is_log_p_for_every_draw():
    model = Linear()
    terms = elbo_terms(model.vae, model.inputs, noise())
    np.testing.assert_allclose(elbo(terms), np.broadcast_to(model.log_p(), (S, B)), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda t: ElboTerms(t.log_likelihood + F * 0.5 * math.log(2 * math.pi), t.kl),
        lambda t: ElboTerms(t.log_likelihood, -t.kl),
        lambda t: ElboTerms(t.log_likelihood, 0.5 * t.kl),
        lambda t: ElboTerms(t.log_likelihood / F, t.kl / K),
    ],
    ids=["lost constant", "lost sign", "lost factor", "means for sums"],
)
def test_the_oracle_sees_what_is_wrong(wrong):
    model = Linear()
    terms = wrong(elbo_terms(model.vae, model.inputs, noise()))
    assert np.abs(elbo(terms) - model.log_p()).max() > 0.1


def test_at_the_posterior_mean_only_the_spread_of_the_posterior_is_missing():
    model = Linear()
    with torch.no_grad():
        found = evaluate(model.vae, model.inputs)
        at_mean = found.likelihood.log_prob(model.inputs.x) - found.kl.sum(-1)
    spread = 0.5 * (STRENGTH**2 * model.scale**2).sum()  # half the trace of W^T Psi^-1 W S, the same for every record
    np.testing.assert_allclose(at_mean, model.log_p() + spread, rtol=0, atol=1e-12)
    mean, likelihood, kl, *_ = validation_elbo(model.vae, model.inputs)
    assert mean == pytest.approx(float(at_mean.mean()), abs=1e-12)
    assert likelihood - kl == pytest.approx(mean, abs=1e-12)


def test_the_elbo_lacks_exactly_the_distance_to_the_true_posterior():
    model = Linear(posterior_error=0.3)
    draws = elbo(elbo_terms(model.vae, model.inputs, noise(20_000)))
    gap = model.posterior_gap((model.x - model.mean) @ model.gain.T)
    assert gap.min() > 0.01
    error = (draws.mean(0) - (model.log_p() - gap)) / (draws.std(0) / math.sqrt(len(draws)))
    assert np.abs(error).max() < 4.5


def test_importance_weights_tighten_the_bound():
    model = Linear(posterior_error=0.3)
    draws = elbo(elbo_terms(model.vae, model.inputs, noise(4000)))
    weighted = scipy.special.logsumexp(draws.reshape(200, 20, B), axis=1) - math.log(20)
    assert (draws.mean(0) < weighted.mean(0)).all()
    assert (weighted.mean(0) < model.log_p() + 4.5 * weighted.std(0) / math.sqrt(200)).all()
    assert (weighted.mean() < model.log_p().mean()) & (draws.mean() < weighted.mean())


def test_missing_cells_leave_the_bound_of_the_seen_ones():
    model = Linear()
    seen = np.array([0, 2, 3])
    observed = np.zeros((B, F))
    observed[:, seen] = 1
    inputs = Inputs(torch.from_numpy(model.x * observed), torch.from_numpy(observed))
    draws = elbo(elbo_terms(model.vae, inputs, noise(20_000)))
    gap = model.posterior_gap((model.x * observed - model.mean) @ model.gain.T, seen)
    error = (draws.mean(0) - (model.log_p(seen) - gap)) / (draws.std(0) / math.sqrt(len(draws)))
    assert np.abs(error).max() < 4.5


def test_denoising_changes_what_the_encoder_sees_and_nothing_else():
    model = Linear()
    other = torch.from_numpy(np.random.default_rng(8).normal(size=(B, F)))
    terms = elbo_terms(model.vae, model.inputs, noise(), encoded=other)
    swapped = elbo_terms(model.vae, Inputs(other), noise())
    assert torch.equal(terms.kl, swapped.kl)
    z = model.vae.posterior(other).push(noise())
    assert torch.equal(terms.log_likelihood, model.vae.likelihood(z).log_prob(model.inputs.x))


@pytest.mark.parametrize("kind", MODELS)
def test_the_analytic_kl_is_the_mean_of_the_drawn_one(kind):
    """For a ladder the levels' KL are given the levels above in the draw: their sum is the KL in the mean only."""
    layout = model_samples.layout_for(kind, model_samples.layouts_of(kind)[0])
    vae, records = model_samples.made(kind, layout, 3), model_samples.inputs(layout)
    draws = 4000 if layout.modality == "table" else 300
    with torch.no_grad():
        terms = elbo_terms(vae, records, model_samples.noise(vae, draws, len(records)))
        analytic = terms.kl_by_dimension.sum(-1).expand(draws, -1)
        found = evaluate(vae, records)
    difference = (terms.kl - analytic).double()
    error = difference.mean(0) / (difference.std(0) / math.sqrt(draws))
    assert error.abs().max() < 4.5
    if kind != "hierarchical":
        torch.testing.assert_close(analytic[0], found.kl.sum(-1))


def test_the_loss_is_the_negative_elbo_in_nats_a_record_at_beta_one():
    model = Linear()
    terms = elbo_terms(model.vae, model.inputs, noise(1)[0])
    assert BetaElbo(warmup=0.0).loss(terms, 0.0).item() == pytest.approx(-model.log_p().mean(), abs=1e-12)
    weighted = (3.0 * terms.kl - terms.log_likelihood).mean().item()
    assert BetaElbo(beta=3.0).loss(terms, 1.0).item() == pytest.approx(weighted, rel=1e-14)


def test_beta_rises_linearly_and_stays():
    objective = BetaElbo(beta=4.0, warmup=0.2)
    assert [objective.weight(t) for t in (0.0, 0.05, 0.1, 0.2, 0.7, 1.0)] == pytest.approx([0, 1, 2, 4, 4, 4])
    assert {BetaElbo(beta=4.0, warmup=0.0).weight(t) for t in (0.0, 0.5, 1.0)} == {4.0}
