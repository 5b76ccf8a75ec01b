"""Untrained detectors of every model and modality, with records of their own, for the tests of latent spaces."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from model_samples import SMALL

from vae_anomaly.batch import OK, Records
from vae_anomaly.detector import Detector, Member, Part, Reference, reference_evaluations
from vae_anomaly.models import MODELS, build_model
from vae_anomaly.preprocessing import PREPROCESSORS
from vae_anomaly.registry import build
from vae_anomaly.schema import Column, Schema
from vae_anomaly.scores import SCORES
from vae_anomaly.thresholds import conformal
from vae_anomaly.training import build_seeded

TABLE = (
    Column("shop", "category"),
    Column("amount", "number", scale="log"),
    Column("at", "timestamp", timezone="Europe/Berlin"),
    Column("count", "number"),
    Column("paid", "boolean"),
    Column("weight", "number"),
)
IMAGE, TEXT = (Column("image", "image", size=(6, 5)),), (Column("line", "text", max_tokens=8),)
CONTEXT = (Column("region", "category", context=True), Column("load", "number", context=True))
MODALITIES = {"table": TABLE, "image": IMAGE, "text": TEXT}
WORDS = ("user ann signed in", "user bob signed out after 5 minutes", "cache miss 0x1f", "restart", "disk full")


class Case(NamedTuple):
    """A model of a modality, with a context or without, and its further options."""

    kind: str
    modality: str
    context: bool
    options: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        more = "".join(f"-{value}" for _, value in self.options)
        return f"{self.kind}-{self.modality}{'-context' if self.context else ''}{more}"


def _cases() -> Iterator[Case]:
    for kind, model in MODELS.items():
        contexts = {"none": (False,), "optional": (False, True), "required": (True,)}[model.context]
        yield from (Case(kind, modality, context) for modality in model.modalities for context in contexts)
    yield Case("mlp", "table", False, (("prior", "vamp"),))


CASES = tuple(_cases())
"""Every model with every modality that it takes, with and without a context where it may have one."""


def records(modality: str, count: int = 40, seed: int = 0) -> Records:
    """Records of a modality, with context columns; no cell is missing."""
    g = np.random.default_rng(seed)
    minutes = g.integers(0, 28 * 1440, count)
    values: dict[str, Any] = {
        "shop": pa.array(g.choice(["cafe", "fuel", "kiosk"], count)),
        "amount": np.exp(g.normal(3, 1.5, count)) * g.choice([-1, 1], count, p=[0.1, 0.9]),
        "at": np.datetime64("2026-03-02", "us") + (minutes * 60_000_000).astype("timedelta64[us]"),
        "count": g.integers(0, 2000, count).astype(np.float64),
        "paid": g.integers(0, 2, count).astype(np.float64),
        "weight": 60 + 0.1 * g.normal(size=count),
        "image": g.integers(0, 256, (count, 6, 5, 1)).astype(np.uint8),
        "line": pa.array(g.choice(WORDS, count)),
        "region": pa.array(g.choice(["north", "south"], count)),
        "load": np.append([-2.0, 2.0], g.uniform(-2.0, 2.0, count))[:count],  # all within the range of any sample
    }
    kept = {c.name: values[c.name] for c in (*MODALITIES[modality], *CONTEXT)}
    return Records(0, np.array([f"r{i}" for i in range(count)]), kept, np.full(count, OK, dtype=object))


@functools.cache
def detector(case: Case) -> Detector:
    """A detector whose networks have their first weights, a little larger, so that the latent space is in use."""
    known = records(case.modality)
    schema = Schema((*MODALITIES[case.modality], *(CONTEXT if case.context else ())))
    preprocessor = PREPROCESSORS[schema.modality].fit(known, schema)
    options = {**SMALL[case.kind], **dict(case.options)}
    vae = build_seeded(lambda: build_model(case.kind, preprocessor.layout, options), 0)
    for name, weight in vae.named_parameters():
        if weight.dim() > 1 and "pseudo" not in name:
            weight.data *= 3
    inputs = preprocessor.encode(known)
    vae.eval()
    score = build("score", SCORES, "negative_elbo", reference_evaluations(vae, inputs), None)
    reference = Reference(inputs, tuple(known.record_ids))
    made = Detector(
        schema, preprocessor, Part(case.kind, options), Part("negative_elbo"), (Member(vae, score),),
        conformal(np.arange(20.0), alpha=0.1), reference, {},
    )  # fmt: skip
    return Detector(**{**vars(made), "threshold": conformal(made.scores(inputs), alpha=0.1)})
