"""Builders of a VAE by name: one file and one line each.

A builder takes the layout of the features and keyword options, and returns a :class:`~vae_anomaly.vae.VAE`.
"""

from __future__ import annotations

from collections.abc import Callable

from vae_anomaly.models.mlp import mlp_vae
from vae_anomaly.vae import VAE

MODELS: dict[str, Callable[..., VAE]] = {"mlp": mlp_vae}
