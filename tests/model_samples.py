"""Layouts of every modality, records for them, and every model that takes them: what the contract tests run over."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from vae_anomaly.likelihoods import AnyLayout, Block, Layout, PixelLayout, TokenLayout
from vae_anomaly.likelihoods.tokens import CUT, END, PAD, SPECIAL, UNKNOWN
from vae_anomaly.models import MODELS, build_model
from vae_anomaly.training import build_seeded
from vae_anomaly.vae import VAE, Inputs

C = 3  # context entries
LAYOUTS: dict[str, AnyLayout] = {
    "mixed": Layout(
        (Block(0, "gaussian", 1), Block(1, "gaussian", 4), Block(2, "bernoulli", 1), Block(3, "categorical", 3)), 4
    ),
    "numbers": Layout(tuple(Block(i, "gaussian", 1) for i in range(5)), 5),
    "one number": Layout((Block(0, "gaussian", 1),), 1),
    "booleans": Layout((Block(0, "bernoulli", 1), Block(1, "bernoulli", 1)), 2),
    "categories": Layout((Block(0, "categorical", 3), Block(1, "categorical", 1)), 2),
    "grey image": PixelLayout(1, 9, 6),
    "colour image": PixelLayout(3, 4, 8, "gaussian"),
    "one pixel": PixelLayout(1, 1, 1),
    "text": TokenLayout(SPECIAL + 7, 6),
    "one token": TokenLayout(SPECIAL + 1, 2),
}
SMALL: dict[str, dict[str, Any]] = {
    "mlp": {"hidden": (32, 16), "latent": 4},
    "conditional": {"hidden": (32, 16), "latent": 4},
    "hierarchical": {"hidden": (32, 16), "latents": (4, 2)},
    "visualization": {},
    "conv": {"channels": (8, 8), "hidden": 16, "latent": 4},
    "lstm": {"embedding": 6, "hidden": 12, "latent": 4},
}
"""Options that make each model small."""

VARIANTS = {
    "vamp": {"prior": "vamp", "pseudo_inputs": 5},
    "residual": {"residual": True},
    "bernoulli": {"likelihood": "bernoulli"},
}


def layouts_of(kind: str) -> list[str]:
    """Names of the layouts that the model ``kind`` takes."""
    return [name for name, layout in LAYOUTS.items() if layout.modality in MODELS[kind].modalities]


CASES = [(kind, name) for kind in MODELS for name in layouts_of(kind)]
"""Every model with every layout that it takes."""


def layout_for(kind: str, name: str, *, context: bool | None = None) -> AnyLayout:
    """The layout ``name`` with a context where the model must have one, or where ``context`` says so."""
    wanted = MODELS[kind].context == "required" if context is None else context
    return replace(LAYOUTS[name], context=C if wanted else 0)


def made(kind: str, layout: AnyLayout, seed: int = 0, **options: Any) -> VAE:
    """A small model."""
    return build_seeded(lambda: build_model(kind, layout, {**SMALL[kind], **options}), seed)


def inputs(layout: AnyLayout, rows: int = 20, seed: int = 1) -> Inputs:
    """Records of the layout: every fourth of a table has missing cells, texts have every length and unknown tokens."""
    g = np.random.default_rng(seed)
    given = torch.from_numpy(g.normal(size=(rows, layout.context)).astype(np.float32)) if layout.context else None
    if isinstance(layout, TokenLayout):
        return Inputs(torch.from_numpy(texts(layout, rows, g)), context=given)
    if isinstance(layout, PixelLayout):
        return Inputs(torch.from_numpy(g.random((rows, layout.features)).astype(np.float32)), context=given)
    parts = [g.normal(size=(rows, layout.size("gaussian"))), g.integers(0, 2, (rows, layout.size("bernoulli")))]
    parts += [np.eye(size)[g.integers(0, size, rows)] for size in layout.categorical_sizes]
    observed = np.ones((rows, layout.features))
    observed[::4, (layout.column_of_feature == 0).numpy()] = 0
    x = (np.hstack(parts) * observed).astype(np.float32)
    return Inputs(torch.from_numpy(x), torch.from_numpy(observed.astype(np.float32)), None, given)


def texts(layout: TokenLayout, rows: int, g: np.random.Generator) -> np.ndarray:
    """(rows, T) token ids with an end, padding behind it, and some unknown tokens."""
    ids = g.integers(SPECIAL, layout.vocabulary, (rows, layout.length))
    ids[g.random(ids.shape) < 0.1] = UNKNOWN
    lengths = g.integers(1, layout.length + 1, rows)
    at = np.arange(layout.length)
    ids[at[None] >= lengths[:, None]] = PAD
    ids[np.arange(rows), lengths - 1] = np.where(g.random(rows) < 0.2, CUT, END)
    return ids.astype(np.int64)


def noise(vae: VAE, *sizes: int, seed: int = 2) -> torch.Tensor:
    """(*sizes, K) standard normal draws."""
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(*sizes, vae.latent))).float()
