"""The multilayer-perceptron VAE of Kingma and Welling (arXiv 1312.6114) with a likelihood of independent entries."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vae_anomaly.errors import ConfigError
from vae_anomaly.likelihoods import FactorisedDistribution, FactorisedLikelihood, Layout, PixelLayout
from vae_anomaly.nn import ContextPrior, GaussianHead, StandardPrior, UnitEncoder, VampPrior, mlp
from vae_anomaly.vae import VAE
from vae_anomaly.views import view_of


def mlp_vae(
    layout: Layout | PixelLayout,
    *,
    hidden: Sequence[int] = (256, 128),
    latent: int = 16,
    activation: str = "silu",
    prior: str = "standard",
    pseudo_inputs: int = 50,
    view: str = "plain",
) -> VAE:
    """q, p and p(x given z) with ``hidden`` layers, mirrored in the decoder.

    Parameters
    ----------
    layout : the features and their families.
    hidden : widths of the encoder's hidden layers, each at least 1.
    latent : K, at least 1.
    activation : ``silu`` or ``relu`` between the layers; ``relu`` scores a fifth faster and detects a little worse.
    prior : ``standard``, or ``vamp`` for the mixture of the posteriors of ``pseudo_inputs`` learned inputs.
    view : how the networks see numbers: ``plain``, ``standard``, ``logarithmic`` or ``rank``
        (:mod:`vae_anomaly.views`).
    """
    if latent < 1 or any(width < 1 for width in hidden):
        raise ConfigError(f"model: latent and every hidden width must be at least 1. Got {latent} and {list(hidden)}.")
    widths, context = list(hidden), layout.context
    numbers = layout.size("gaussian")
    posterior: nn.Module = GaussianHead(mlp([layout.features + context, *widths, 2 * latent], activation))
    if layout.modality == "table" and numbers < layout.features:
        posterior = UnitEncoder(posterior, numbers, layout.features - numbers)
    decoder = mlp([latent + context, *reversed(widths), layout.features], activation)
    chosen = prior_of(prior, posterior, latent, layout, pseudo_inputs)
    return VAE(posterior, chosen, FactorisedLikelihood(decoder, layout), view_of(view, numbers))


def prior_of(
    kind: str, posterior: nn.Module, latent: int, layout: Layout | PixelLayout, pseudo_inputs: int
) -> nn.Module:
    """The prior of a model with independent entries: ``standard``, ``vamp``, or learned where there is a context."""
    if kind not in ("standard", "vamp") or pseudo_inputs < 1:
        raise ConfigError(
            "model: prior must be 'standard' or 'vamp', and pseudo_inputs at least 1."
            f" Got {kind!r} and {pseudo_inputs}."
        )
    if layout.context:
        if kind == "vamp":
            raise ConfigError("model: prior must be 'standard' where there are context columns. Got 'vamp'.")
        return ContextPrior(layout.context, latent)
    if kind == "standard":
        return StandardPrior(latent)

    def domain(raw: Tensor) -> Tensor:
        if isinstance(layout, PixelLayout):
            return raw.sigmoid()
        # the mean of a likelihood is what a record may look like, whatever the numbers
        return FactorisedDistribution(layout, raw, torch.ones(())).mean()

    return VampPrior(posterior, latent, features=layout.features, count=pseudo_inputs, domain=domain)
