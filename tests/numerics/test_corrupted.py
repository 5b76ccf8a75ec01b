"""What the networks are fed in training: noise, turned images, dropped words, guesses, untold contexts."""

from __future__ import annotations

from dataclasses import replace

import model_samples
import numpy as np
import pytest
import torch

from vae_anomaly.errors import ConfigError
from vae_anomaly.likelihoods.tokens import PAD, UNKNOWN
from vae_anomaly.objectives import BetaElbo
from vae_anomaly.scores.latent_neighbours import blurred
from vae_anomaly.training import TrainingPlan, augmented, corrupted, device_of, limited_threads, train
from vae_anomaly.vae import Inputs, elbo_terms

PLAN = TrainingPlan(epochs=1, minibatch=64)
NUMBERS, IMAGE, TEXT = (model_samples.LAYOUTS[name] for name in ("numbers", "grey image", "text"))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_numbers_get_noise_that_the_likelihood_does_not_see():
    vae, rows = model_samples.made("mlp", NUMBERS), model_samples.inputs(NUMBERS, 4000)
    clean, encoded, fed = corrupted(vae, rows, replace(PLAN, input_noise=0.3), seeded())
    assert torch.equal(clean.x, rows.x)
    assert fed is None
    assert float((encoded - rows.x).std()) == pytest.approx(0.3, rel=0.03)
    assert corrupted(vae, rows, replace(PLAN, input_noise=0.0), seeded())[1] is None


def test_words_are_dropped_at_their_rate_and_padding_is_not():
    vae, rows = model_samples.made("lstm", TEXT), model_samples.inputs(TEXT, 3000)
    for share in (0.0, 0.3, 1.0):
        clean, encoded, fed = corrupted(vae, rows, replace(PLAN, word_dropout=share), seeded())
        assert torch.equal(clean.x, rows.x)
        assert encoded is None
        words = (rows.x != PAD) & (rows.x != UNKNOWN)
        assert float((fed == UNKNOWN)[words].float().mean()) == pytest.approx(share, abs=0.02)
        assert ((fed == PAD) == (rows.x == PAD)).all()


def test_without_teacher_forcing_the_guesses_are_fed():
    vae, rows = model_samples.made("lstm", TEXT), model_samples.inputs(TEXT, 500)
    plan = replace(PLAN, word_dropout=0.0)
    with torch.no_grad():
        guess = vae.likelihood(vae.posterior(rows.x).mean).guess(rows.x)
    for rate in (1.0, 0.6, 0.0):
        fed = corrupted(vae, rows, replace(plan, teacher_forcing=rate), seeded())[2]
        assert float((fed == rows.x).float().mean()) >= rate - 0.05
        assert ((fed == rows.x) | (fed == guess)).all()
        if rate == 0.0:
            assert torch.equal(fed, guess)


def test_contexts_are_untold_at_their_rate_and_wholly():
    layout = model_samples.layout_for("conditional", "numbers")
    vae, rows = model_samples.made("conditional", layout), model_samples.inputs(layout, 4000)
    told = corrupted(vae, rows, replace(PLAN, context_dropout=0.25), seeded())[0].context
    untold = (told == 0).all(1)
    assert float(untold.float().mean()) == pytest.approx(0.25, abs=0.02)
    assert torch.equal(told[~untold], rows.context[~untold])
    assert torch.equal(corrupted(vae, rows, replace(PLAN, context_dropout=0.0), seeded())[0].context, rows.context)


def test_turned_images_are_judged_as_they_were_turned():
    vae, rows = model_samples.made("conv", IMAGE), model_samples.inputs(IMAGE, 30)
    plan = replace(PLAN, augmentation=1.0, input_noise=0.0)
    turned, encoded, _ = corrupted(vae, rows, plan, seeded())
    assert encoded is None
    assert turned.x.shape == rows.x.shape
    assert (turned.x != rows.x).any(1).all()
    assert torch.equal(turned.x, corrupted(vae, rows, plan, seeded())[0].x)
    assert not torch.equal(turned.x, corrupted(vae, rows, plan, seeded(1))[0].x)


def test_augmentation_moves_a_little_and_keeps_the_range():
    images = torch.zeros(200, 1, 28, 28)
    images[:, :, 10:18, 10:18] = 1.0
    turned = augmented(images, 1.0, seeded())
    assert turned.min() >= 0
    assert turned.max() <= 1 + 1e-6
    grid = torch.arange(28.0) - 13.5
    x, y = ((turned.sum((1, 2 + k)) * grid).sum(-1) / turned.sum((1, 2, 3)) for k in (0, 1))
    assert x.abs().max() < 1.6
    assert y.abs().max() < 1.6
    assert x.std() > 0.3
    mass = turned.sum((1, 2, 3)) / 64
    assert 0.75 < mass.min() < 0.95 < 1.05 < mass.max() < 1.3  # scales of exp(+-0.1)
    torch.testing.assert_close(augmented(images, 1e-9, seeded()), images, atol=1e-5, rtol=0)


def test_a_blur_keeps_the_sum_is_symmetric_and_does_not_mix_images():
    images = torch.zeros(3, 1, 15, 15)
    images[1, 0, 7, 7] = 1.0
    out = blurred(images, 1.5)
    assert float(out[1].sum()) == pytest.approx(1.0, rel=1e-3)
    assert torch.allclose(out[1], out[1].flip(-1).flip(-2))
    assert torch.allclose(out[1, 0], out[1, 0].T)
    assert not out[[0, 2]].any()
    spread = (out[1, 0].sum(0) * (torch.arange(15.0) - 7) ** 2).sum().sqrt()
    assert float(spread) == pytest.approx(1.5, rel=0.05)


def test_a_long_gradient_is_shortened():
    rows = model_samples.inputs(NUMBERS, 300)
    plan = TrainingPlan(epochs=3, minibatch=32, learning_rate=1e-2)
    ends = []
    for clip in (0.0, 1e-3):
        vae = model_samples.made("mlp", NUMBERS)
        before = torch.cat([p.detach().flatten() for p in vae.parameters()])
        with limited_threads(1):
            list(train(vae, rows, rows, BetaElbo(warmup=0.0), replace(plan, clip=clip), 0))
        ends.append(torch.cat([p.detach().flatten() for p in vae.parameters()]) - before)
    assert not torch.allclose(ends[0], ends[1])


def test_devices_are_chosen_and_a_missing_one_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of("auto") == device_of("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match="must be a device of this machine"):
        device_of("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_of("auto") == device_of("cuda") == torch.device("cuda")
    assert device_of("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["mixed", "grey image"])
@pytest.mark.parametrize("kind", ["mlp", "conditional", "hierarchical", "conv"])
def test_no_operation_of_the_bound_forgets_its_device(kind, name):
    """On a device that has shapes and no numbers every operation with a tensor of another device fails."""
    layout = model_samples.layout_for(kind, name if name in model_samples.layouts_of(kind) else "grey image")
    vae, rows = model_samples.made(kind, layout), model_samples.inputs(layout, 40)
    vae.to("meta")
    elsewhere = rows.each(lambda part: part.to("meta"))
    terms = elbo_terms(vae, elsewhere, torch.randn(40, vae.latent, device="meta"))
    assert terms.log_likelihood.device.type == terms.kl.device.type == terms.kl_by_dimension.device.type == "meta"
    with pytest.raises(RuntimeError):  # as a forgotten tensor would
        elbo_terms(vae, rows, torch.randn(40, vae.latent))


def test_inputs_keep_their_parts_together():
    rows = Inputs(torch.arange(6.0).view(3, 2), evidence=torch.ones(3, 2), context=torch.zeros(3, 1))
    picked = rows[torch.tensor([2, 0])]
    assert picked.x.tolist() == [[4.0, 5.0], [0.0, 1.0]]
    assert picked.observed is None
    assert len(picked.context) == len(picked.evidence) == 2
    assert np.isfinite(picked.x.numpy()).all()
