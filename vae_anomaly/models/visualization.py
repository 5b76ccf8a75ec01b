"""A VAE for looking: a latent plane behind a wide network, so that the latent map is the latent space itself."""

from __future__ import annotations

from vae_anomaly.likelihoods import Layout, PixelLayout
from vae_anomaly.models.mlp import mlp_vae
from vae_anomaly.vae import VAE


def visualization_vae(layout: Layout | PixelLayout, *, activation: str = "silu") -> VAE:
    """512-256-128 hidden units, two latent dimensions, linear output."""
    return mlp_vae(layout, hidden=(512, 256, 128), latent=2, activation=activation)
