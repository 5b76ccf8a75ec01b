"""Builders of a VAE by name: one file and one line each.

A builder takes the layout of the features and keyword options, and returns a :class:`~vae_anomaly.vae.VAE`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from vae_anomaly.errors import ConfigError
from vae_anomaly.likelihoods import AnyLayout
from vae_anomaly.models.conditional import conditional_vae
from vae_anomaly.models.conv import conv_vae
from vae_anomaly.models.hierarchical import hierarchical_vae
from vae_anomaly.models.lstm import lstm_vae
from vae_anomaly.models.mlp import mlp_vae
from vae_anomaly.models.visualization import visualization_vae
from vae_anomaly.registry import build, lookup
from vae_anomaly.vae import VAE

FACTORISED = ("table", "image")
TABLE_VIEWS = ("standard", "logarithmic", "rank")


@dataclass(frozen=True)
class Model:
    """A builder, the modalities that it takes, and whether it has, may have or must have a context.

    ``score`` and its options, ``objective`` and ``training`` are what it is used with where nothing else is asked for.
    """

    builder: Callable[..., VAE]
    modalities: tuple[str, ...]
    context: Literal["none", "optional", "required"] = "none"
    score: str = "surprisal"
    score_options: Mapping[str, Any] = field(default_factory=dict)
    objective: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)


# half a deviation of noise: what is learned is where the record would be without it, and not to copy it
NOISY: dict[str, Any] = {"steps": 3000, "patience": 1000, "input_noise": 0.5}

MODELS: dict[str, Model] = {
    "mlp": Model(mlp_vae, FACTORISED, training=NOISY),
    "conditional": Model(conditional_vae, FACTORISED, "required", training={"steps": 1500}),
    "hierarchical": Model(hierarchical_vae, FACTORISED, training=NOISY),
    "visualization": Model(visualization_vae, FACTORISED),
    "conv": Model(
        conv_vae,
        ("image",),
        "optional",
        score="latent_neighbours",
        score_options={"blur": 0.7},
        objective={"warmup": 0.1},
        training={
            "steps": 1200,
            "minibatch": 64,
            "learning_rate": 2e-3,
            "patience": 1000,
            "input_noise": 0.0,
            "augmentation": 1.0,
        },
    ),
    "lstm": Model(
        lstm_vae,
        ("text",),
        "optional",
        # each rare template of a log is a place of its own, and its lines are unlikely however normal they are
        score="latent_neighbours",
        score_options={"k": 1, "residuals": False, "surprise": 0.03},
        objective={"free_bits": 0.3},
        training={
            "steps": 600,
            "minibatch": 64,
            "learning_rate": 4e-3,
            "patience": 1000,
            "least_epochs": 4,
            "word_dropout": 0.8,
            "clip": 5.0,
        },
    ),
}

BUILDERS = {name: entry.builder for name, entry in MODELS.items()}


def default_model(modality: str, *, context: bool, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Kind and options of the model that records of ``modality`` get where no kind is asked for, with ``options``.

    Tables get an ensemble of small networks that see numbers on three scales (:mod:`vae_anomaly.views`), each of them
    with the options.
    """
    if modality != "table":
        return {"image": "conv", "text": "lstm"}[modality], dict(options)
    usual = {"kind": "conditional" if context else "mlp", "hidden": [128, 64]}
    return "ensemble", {"members": [{**usual, "view": view, **options} for view in TABLE_VIEWS]}


def default_score(kind: str, modality: str) -> tuple[str, Mapping[str, Any]]:
    """Kind and options of the score that a model is used with where nothing else is asked for.

    Of an image's pixels none says much by itself: it is judged by its neighbours alone.
    """
    model: Model = lookup("model.kind", MODELS, kind)
    return ("latent_neighbours" if modality == "image" else model.score), model.score_options


def build_model(kind: str, layout: AnyLayout, options: Mapping[str, Any]) -> VAE:
    """The model ``kind`` for the features of ``layout``.

    Raises
    ------
    ConfigError
        There is no such model or option, or it is not made for such records or for a context.
    """
    model: Model = lookup("model", MODELS, kind)
    if layout.modality not in model.modalities:
        suits = {"none": not layout.context, "optional": True, "required": bool(layout.context)}
        fitting = sorted(n for n, m in MODELS.items() if layout.modality in m.modalities and suits[m.context])
        raise ConfigError(
            f"model {kind!r} must be given records of kind {' or '.join(model.modalities)}."
            f" Got {layout.modality}. For these choose one of {fitting}."
        )
    if layout.context and model.context == "none":
        fitting = sorted(n for n, m in MODELS.items() if layout.modality in m.modalities and m.context != "none")
        raise ConfigError(
            f"model {kind!r} must have no context columns. Got some. Choose one of {fitting}, or take `context` off."
        )
    if model.context == "required" and not layout.context:
        raise ConfigError(
            f"model {kind!r} must have context columns. Got none. Mark a column with `context: true`, or choose 'mlp'."
        )
    try:
        vae: VAE = build("model", BUILDERS, kind, layout, **options)
    except RuntimeError as error:  # torch's word for no memory
        raise ConfigError(f"model {kind!r} must fit into memory. Got {dict(options)}. Make it smaller.") from error
    return vae
