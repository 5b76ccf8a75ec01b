r"""What every modality's explanation is made of: contributions, the nearest normal records, the latent entry divided.

A column's contribution is its own entry of the score plus its share of the entry of the latent position, g, by
integrated gradients from the nearest normal record b,

.. math:: (x_f - b_f) \int_0^1 \partial_f\, g(b + t (x - b))\, dt,

which sum to g(x) - g(b) where g is smooth; what is left of g, g(b) and what a change of neighbours on the way adds, is
shown as ``COMBINATION``: what no single column explains.

Reference: Sundararajan, Taly and Yan, Axiomatic attribution for deep networks, ICML 2017, arXiv 1703.01365.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from vae_anomaly.batch import Records
from vae_anomaly.detector import Detector, over_chunks, reference_evaluations
from vae_anomaly.preprocessing.tabular import ColumnState, ContextEncoder
from vae_anomaly.report.model import Contribution, Picture, Token
from vae_anomaly.scores.elbo import by_column
from vae_anomaly.scores.latent_neighbours import latent_neighbours
from vae_anomaly.vae import Inputs, evaluate

NEIGHBOURS, STEPS = 3, 32


@dataclass(frozen=True)
class Explanation:
    """``reasons`` of one record, largest first: they sum to its score; ``neighbours`` are pairs of a position among the
    detector's reference records and a distance in natural units, nearest first; ``picture`` is that of an image,
    ``tokens`` those of a text."""

    reasons: tuple[Contribution, ...]
    neighbours: tuple[tuple[int, float], ...]
    picture: Picture | None = None
    tokens: tuple[Token, ...] = ()


def latent_shares(detector: Detector, inputs: Inputs, nearest: torch.Tensor) -> np.ndarray:
    """(B, Q) nats: how much each column adds to the latent entry of the score, from the reference record ``nearest``
    (B,) to the record, whose context is kept; the midpoint rule with ``STEPS`` steps."""
    base = detector.reference.inputs.x[nearest]
    if inputs.observed is not None:
        base = base * inputs.observed
    step, total = inputs.x - base, torch.zeros_like(inputs.x)
    for i in range(STEPS):
        x = (base + (i + 0.5) / STEPS * step).requires_grad_()
        with torch.enable_grad():
            there = Inputs(x, inputs.observed, inputs.evidence, inputs.context)
            entries = [member.score.terms(evaluate(member.vae, there))[:, -1].sum() for member in detector.members]
            entry = torch.stack(entries).mean()
            total += torch.autograd.grad(entry, x, allow_unused=True, materialize_grads=True)[0]
    layout = detector.preprocessor.layout
    return by_column((step * total / STEPS).double(), layout.column_of_feature, layout.columns).numpy()


def neighbours(detector: Detector, inputs: Inputs) -> tuple[np.ndarray, np.ndarray]:
    """(B, NEIGHBOURS) nearest reference records and distances in natural units, whatever the score is."""
    k = min(NEIGHBOURS, len(detector.reference.inputs))
    space = latent_neighbours(reference_evaluations(detector.vae, detector.reference.inputs), None, k=k)
    v, index = (over_chunks(detector.vae, inputs, function) for function in (space.embed, space.nearest))
    return index.numpy(), (v[:, None, :] - space.vectors[index]).square().sum(-1).sqrt().numpy()


def paired(index: np.ndarray, distance: np.ndarray) -> tuple[tuple[int, float], ...]:
    """The neighbours of one record."""
    return tuple(zip(index.tolist(), distance.tolist(), strict=True))


def context_reasons(context: ContextEncoder, records: Records) -> list[list[Contribution]]:
    """What each record's context is; it is not judged, so it adds nothing."""
    found = {state.column: display(state, records) for state in context.states}
    return [
        [Contribution(column, 0.0, values[i], "", None, "context") for column, values in found.items()]
        for i in range(len(records))
    ]


def shortened(text: str, most: int = 1000) -> str:
    """``text`` with at most ``most`` characters: a report is no place for a cell of megabytes."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def display(state: ColumnState, records: Records) -> list[str]:
    """The column's values as an analyst reads them; missing cells are empty."""
    values = records.values[state.column]
    if state.kind == "category":
        return ["" if v is None else shortened(v) for v in values.to_pylist()]  # type: ignore[union-attr]
    if state.kind == "boolean":
        return ["" if math.isnan(v) else ("true" if v else "false") for v in values]
    if state.kind == "timestamp":
        return ["" if np.isnat(v) else f"{np.datetime_as_string(v, unit='s').replace('T', ' ')} UTC" for v in values]
    return ["" if math.isnan(v) else number(float(v)) for v in values]


def number(value: float) -> str:
    """A number with four significant digits; integers in full up to 15 digits."""
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else f"{value:.4g}"


def strongest(reasons: list[Contribution]) -> tuple[Contribution, ...]:
    """``reasons``, largest first."""
    return tuple(sorted(reasons, key=lambda r: -r.nats))
