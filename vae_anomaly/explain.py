r"""Why a record was flagged: its contributions in nats, what was found and expected, the nearest normal records.

The contributions of a record sum to its score. A column's contribution is its own entry of the score plus its share of
the entry of the latent position, g, by integrated gradients from the nearest normal record b,

.. math:: (x_f - b_f) \int_0^1 \partial_f\, g(b + t (x - b))\, dt,

which sum to g(x) - g(b) where g is smooth; what is left of g, g(b) and what a change of neighbours on the way adds, is
shown as ``COMBINATION``: what no single column explains.

Reference: Sundararajan, Taly and Yan, Axiomatic attribution for deep networks, ICML 2017, arXiv 1703.01365.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from vae_anomaly.batch import Records
from vae_anomaly.detector import Detector, over_chunks
from vae_anomaly.preprocessing.tabular import DAY, ColumnState, decode_number
from vae_anomaly.report.model import COMBINATION, Contribution
from vae_anomaly.scores.elbo import by_column
from vae_anomaly.scores.latent_neighbours import latent_neighbours
from vae_anomaly.training import limited_threads
from vae_anomaly.vae import Inputs, evaluate

NEIGHBOURS, STEPS = 3, 32


@dataclass(frozen=True)
class Explanation:
    """``reasons`` of one record, largest first: they sum to its score; ``neighbours`` are pairs of a position among the
    detector's reference records and a distance in natural units, nearest first."""

    reasons: tuple[Contribution, ...]
    neighbours: tuple[tuple[int, float], ...]


def explain(detector: Detector, records: Records) -> list[Explanation]:
    """Explain scorable ``records`` (a few: it costs some passes more than scoring)."""
    if not len(records):
        return []
    # one thread, as in scoring: the bits of a report must not depend on the machine's number of processors
    with limited_threads(1):
        return _explain(detector, records)


def _explain(detector: Detector, records: Records) -> list[Explanation]:
    inputs = detector.encode(records)
    nearest, distances = _neighbours(detector, inputs)
    terms = detector.terms(inputs)
    share = latent_shares(detector, inputs, torch.from_numpy(nearest[:, 0]))
    terms += np.column_stack([share, -share.sum(1)])
    expected = over_chunks(detector.vae, inputs, lambda e: e.likelihood.mean()).numpy()
    sigma = over_chunks(detector.vae, inputs, lambda e: e.likelihood.sigma.expand(len(e.inputs), -1)).numpy()
    found = {s.column: display(s, records) for s in detector.preprocessor.states}
    return [
        Explanation(
            _reasons(detector, found, inputs, i, terms[i], expected[i], sigma[i]),
            tuple(zip(nearest[i].tolist(), distances[i].tolist(), strict=True)),
        )
        for i in range(len(records))
    ]


def latent_shares(detector: Detector, inputs: Inputs, nearest: torch.Tensor) -> np.ndarray:
    """(B, Q) nats: how much each column adds to the latent entry of the score, from the reference record ``nearest``
    (B,) to the record; the midpoint rule with ``STEPS`` steps."""
    base = detector.reference.inputs.x[nearest]
    if inputs.observed is not None:
        base = base * inputs.observed
    step, total = inputs.x - base, torch.zeros_like(inputs.x)
    for i in range(STEPS):
        x = (base + (i + 0.5) / STEPS * step).requires_grad_()
        with torch.enable_grad():
            entry = detector.score.terms(evaluate(detector.vae, Inputs(x, inputs.observed, inputs.evidence)))[:, -1]
            total += torch.autograd.grad(entry.sum(), x, allow_unused=True, materialize_grads=True)[0]
    layout = detector.preprocessor.layout
    return by_column((step * total / STEPS).double(), layout.column_of_feature, layout.columns).numpy()


def _neighbours(detector: Detector, inputs: Inputs) -> tuple[np.ndarray, np.ndarray]:
    """(B, NEIGHBOURS) nearest reference records and distances in natural units, whatever the score is."""
    with torch.no_grad():
        k = min(NEIGHBOURS, len(detector.reference.inputs))
        space = latent_neighbours(evaluate(detector.vae, detector.reference.inputs), None, k=k)
        evaluation = evaluate(detector.vae, inputs)
        v, index = space.embed(evaluation), space.nearest(evaluation)
        return index.numpy(), (v[:, None, :] - space.vectors[index]).square().sum(-1).sqrt().numpy()


def _reasons(
    detector: Detector,
    found: dict[str, list[str]],
    inputs: Inputs,
    row: int,
    terms: np.ndarray,
    expected: np.ndarray,
    sigma: np.ndarray,
) -> tuple[Contribution, ...]:
    reasons, at = [], 0
    for i, state in enumerate(detector.preprocessor.states):
        part = slice(at, at + state.size)
        observed = inputs.observed is None or bool(inputs.observed[row, at]) if state.size else True
        x = inputs.x[row, part].numpy()
        text, deviation = _expected(state, x, expected[part], sigma[part] if part.stop <= len(sigma) else sigma[:0])
        value, deviation = found[state.column][row], deviation if observed else None
        note = _note(state, x, observed)
        reasons.append(Contribution(state.column, float(terms[i]), value, text, deviation, note))
        at += state.size
    reasons.append(Contribution(COMBINATION, float(terms[-1]), "", "", None, "values that are unusual together"))
    return tuple(sorted(reasons, key=lambda r: -r.nats))


def _expected(state: ColumnState, x: np.ndarray, mean: np.ndarray, sigma: np.ndarray) -> tuple[str, float | None]:
    if state.kind == "number":
        ends = [decode_number(state, float(mean[0] + side * sigma[0])) for side in (-1, 1)]
        center, spread = decode_number(state, float(mean[0])), (ends[1] - ends[0]) / 2
        return f"{number(center)} ± {number(spread)}", float((x[0] - mean[0]) / sigma[0])
    if state.kind == "boolean":
        return f"{'true' if mean[0] >= 0.5 else 'false'} ({max(mean[0], 1 - mean[0]):.0%})", None
    if state.kind == "category":
        best = int(np.argmax(mean)) if len(mean) else 0
        return (f"{state.categories[best]} ({mean[best]:.0%})" if len(mean) else ""), None
    sine, cosine = (np.array(state.center) + mean * np.array(state.scale))[:2]
    seconds = round((math.atan2(sine, cosine) / (2 * math.pi) % 1.0) * DAY)
    return f"about {seconds // 3600 % 24:02d}:{seconds // 60 % 60:02d} {state.timezone or 'UTC'}", None


def _note(state: ColumnState, x: np.ndarray, observed: bool) -> str:
    if not observed:
        return "missing"
    if state.kind == "category" and not x.any():
        return "never seen in training"
    if state.kind == "number" and state.low is not None and state.high is not None:
        value = decode_number(state, float(x[0]))
        slack = 1e-5 * max(abs(state.low), abs(state.high), state.scale[0])
        if value < state.low - slack or value > state.high + slack:
            return f"beyond the training range {number(state.low)} to {number(state.high)}"
    return ""


def display(state: ColumnState, records: Records) -> list[str]:
    """The column's values as an analyst reads them; missing cells are empty."""
    values = records.values[state.column]
    if state.kind == "category":
        return ["" if v is None else str(v) for v in values.to_pylist()]  # type: ignore[union-attr]
    if state.kind == "boolean":
        return ["" if math.isnan(v) else ("true" if v else "false") for v in values]
    if state.kind == "timestamp":
        return ["" if np.isnat(v) else f"{np.datetime_as_string(v, unit='s').replace('T', ' ')} UTC" for v in values]
    return ["" if math.isnan(v) else number(float(v)) for v in values]


def display_inputs(state: ColumnState, x: np.ndarray, observed: bool) -> str:
    """A reference record's value from its model inputs ``x`` (the column's features)."""
    if not observed:
        return ""
    if state.kind == "number":
        value = decode_number(state, float(x[0]))
        return number(float(round(value)) if state.integral else value)
    if state.kind == "boolean":
        return "true" if x[0] >= 0.5 else "false"
    if state.kind == "category":
        return state.categories[int(np.argmax(x))] if x.any() else ""
    return _expected(state, x, x, np.ones(4))[0].removeprefix("about ")


def reference_values(detector: Detector, row: int, columns: Sequence[str]) -> tuple[str, ...]:
    """Values of the reference record ``row`` in ``columns``; the latent position has none."""
    out, at = {COMBINATION: ""}, 0
    inputs = detector.reference.inputs
    for state in detector.preprocessor.states:
        part = slice(at, at + state.size)
        observed = inputs.observed is None or bool(inputs.observed[row, at])
        out[state.column] = display_inputs(state, inputs.x[row, part].numpy(), observed)
        at += state.size
    return tuple(out[c] for c in columns)


def number(value: float) -> str:
    """A number with four significant digits; integers in full up to 15 digits."""
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else f"{value:.4g}"
