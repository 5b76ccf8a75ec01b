"""Small records of every modality, and a detector for every model of the table ``MODELS`` and for ensembles."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from model_samples import SMALL
from score_samples import CHEAP

from vae_anomaly.batch import OK, Records
from vae_anomaly.detector import Detector, Member, Part, reference_evaluations
from vae_anomaly.fitting import Recipe, fit_detector
from vae_anomaly.models import MODELS
from vae_anomaly.registry import build
from vae_anomaly.schema import Column, Schema
from vae_anomaly.scores import SCORES

ALPHA = Part("conformal", {"alpha": 0.05})
SITES = ("north", "south", "east")
SIDE = 8


@dataclass(frozen=True)
class Case:
    """A model for a modality, with a context or without."""

    kind: str
    modality: str
    context: bool

    def __str__(self) -> str:
        return f"{self.kind}-{self.modality}{'-context' if self.context else ''}"


def _cases() -> list[Case]:
    found = []
    for kind, model in MODELS.items():
        contexts = {"none": (False,), "optional": (False, True), "required": (True,)}[model.context]
        found += [Case(kind, modality, context) for modality in model.modalities for context in contexts]
    return [*found, *(Case("ensemble", modality, False) for modality in ("table", "image", "text"))]


CASES = _cases()
"""Every model with every modality that it takes, and an ensemble for each modality: no exceptions."""

ENSEMBLES: dict[str, list[dict[str, Any]]] = {
    "table": [{"kind": "mlp", **SMALL["mlp"]}, {"kind": "hierarchical", **SMALL["hierarchical"]}],
    "image": [{"kind": "conv", **SMALL["conv"]}, {"kind": "mlp", **SMALL["mlp"]}],
    "text": [{"kind": "lstm", **SMALL["lstm"]}, {"kind": "lstm", **SMALL["lstm"]}],
}


def sites(g: np.random.Generator, rows: int) -> pa.Array:
    return pa.array(g.choice(np.array(SITES, dtype=object), rows))


def table(rows: int, seed: int) -> dict[str, Any]:
    """Numbers on a line that depends on the site, a boolean and a category."""
    g = np.random.default_rng(seed)
    site = sites(g, rows)
    a = g.normal(size=rows) + 6.0 * np.array([SITES.index(s) for s in site.to_pylist()])
    flag = (g.random(rows) < 0.3).astype(float)
    flag[g.random(rows) < 0.03] = np.nan
    shop = g.choice(np.array(["cafe", "fuel", "kiosk"], dtype=object), rows, p=[0.6, 0.3, 0.1])
    return {"a": a, "b": 2 * a + 0.3 * g.normal(size=rows), "flag": flag, "shop": pa.array(shop), "site": site}


def images(rows: int, seed: int) -> dict[str, Any]:
    """A bright bar, upright or lying by the site, on a dark ground."""
    g = np.random.default_rng(seed)
    site = sites(g, rows)
    pixels = 20.0 + 8.0 * g.normal(size=(rows, SIDE, SIDE))
    for i, where in enumerate(site.to_pylist()):
        at = int(g.integers(2, 6))
        bar = (slice(at, at + 2), slice(1, 7)) if where == "north" else (slice(1, 7), slice(at, at + 2))
        pixels[(i, *bar)] += 180.0
    return {"image": np.clip(pixels, 0, 255).astype(np.uint8)[..., None], "site": site}


TEMPLATES = {
    "north": "INFO cart: {n} {thing} added by user {n} from {place}",
    "south": "INFO payment: authorised order {n} of {thing} for {place} in {n} ms",
    "east": "WARN cache: miss for key {h} of {place}, {n} retries by {thing} from 10.0.0.{n}",
}
THINGS = ("kettle", "teapot", "lamp", "chair", "table", "carpet", "mirror", "candle", "shelf", "basket")
PLACES = ("porto", "gdansk", "lyon", "turin", "bergen", "malmo", "ghent", "graz", "brno", "cork")


def texts(rows: int, seed: int) -> dict[str, Any]:
    """Log lines of one template a site."""
    g = np.random.default_rng(seed)
    site = sites(g, rows)
    fill = [
        {"n": int(g.integers(1, 200)), "h": hex(int(g.integers(2**30, 2**31))), "thing": g.choice(THINGS),
         "place": g.choice(PLACES)}
        for _ in range(rows)
    ]  # fmt: skip
    lines = [TEMPLATES[s].format(**f) for s, f in zip(site.to_pylist(), fill, strict=True)]
    return {"line": pa.array(lines), "site": site}


MAKERS = {"table": table, "image": images, "text": texts}
COLUMNS = {
    "table": (Column("a", "number"), Column("b", "number"), Column("flag", "boolean"), Column("shop", "category")),
    "image": (Column("image", "image", size=(SIDE, SIDE)),),
    "text": (Column("line", "text", max_tokens=24),),
}


def schema(case: Case) -> Schema:
    """The contract of the case's records."""
    site = (Column("site", "category", context=True),) if case.context else ()
    return Schema(COLUMNS[case.modality] + site)


def as_records(values: Mapping[str, Any]) -> Records:
    """Scorable records with row numbers as ids."""
    rows = len(next(iter(values.values())))
    return Records(0, np.arange(rows).astype(str).astype(object), values, np.full(rows, OK, dtype=object))


def records(case: Case, rows: int, seed: int) -> Records:
    """Normal records of the case."""
    made = MAKERS[case.modality](rows, seed)
    wanted = [c.name for c in schema(case).columns]
    return as_records({name: made[name] for name in wanted})


@functools.cache
def fitted(case: Case) -> Detector:
    """A small detector with the model's own score, trained for a moment."""
    options = {"members": ENSEMBLES[case.modality]} if case.kind == "ensemble" else SMALL[case.kind]
    training = {"steps": 250, "patience": 1000, "learning_rate": 5e-3}
    recipe = Recipe(Part(case.kind, options), training=training, calibration=0.3, threshold=ALPHA, device="cpu")
    return fit_detector(records(case, 500, 1), schema(case), recipe).detector


def with_score(detector: Detector, score: str) -> Detector:
    """The detector with another score, fitted to its reference records."""
    options = CHEAP.get(score, {})

    def of(member: Member) -> Member:
        reference = reference_evaluations(member.vae, detector.reference.inputs)
        return Member(member.vae, build("score", SCORES, score, reference, None, **options))

    return replace(detector, score_part=Part(score, options), members=tuple(map(of, detector.members)))


def corrupted(case: Case, found: Records) -> Records:
    """The same records, plainly wrong: b does not follow a, the image is inverted, the words are in another order."""
    values = dict(found.values)
    if case.modality == "table":
        values["b"] = -np.asarray(values["b"])
        values["a"] = np.asarray(values["a"]) + 40.0
    elif case.modality == "image":
        values["image"] = 255 - np.asarray(values["image"])
    else:
        lines = values["line"].to_pylist()
        values["line"] = pa.array([" ".join(reversed(line.split())) for line in lines])
    return as_records(values)
