"""The conditional VAE of Sohn, Lee and Yan (NeurIPS 2015): what is normal depends on context columns."""

from __future__ import annotations

from collections.abc import Sequence

from vae_anomaly.likelihoods import Layout, PixelLayout
from vae_anomaly.models.mlp import mlp_vae
from vae_anomaly.vae import VAE


def conditional_vae(
    layout: Layout | PixelLayout,
    *,
    hidden: Sequence[int] = (256, 128),
    latent: int = 16,
    activation: str = "silu",
    view: str = "plain",
) -> VAE:
    """q(z given x, c), a learned p(z given c) and p(x given z, c), all three fed the context c.

    Parameters
    ----------
    layout : the features and their families, and the length of the context.
    hidden, latent, activation, view : as for ``mlp``.
    """
    return mlp_vae(layout, hidden=hidden, latent=latent, activation=activation, view=view)
