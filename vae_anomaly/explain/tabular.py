"""Tables: every column's contribution, its value beside the expected one, and how far it deviates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from vae_anomaly.batch import Records
from vae_anomaly.detector import Detector, over_chunks
from vae_anomaly.explain.shared import (
    Explanation,
    context_reasons,
    display,
    latent_shares,
    neighbours,
    number,
    paired,
    strongest,
)
from vae_anomaly.preprocessing.tabular import DAY, ColumnState, TabularPreprocessor, decode_number
from vae_anomaly.report.model import COMBINATION, Contribution
from vae_anomaly.vae import Evaluation, Inputs


def explain(detector: Detector, records: Records) -> list[Explanation]:
    """As :func:`vae_anomaly.explain.explain`; the reasons are the columns and the latent position."""
    inputs = detector.encode(records)
    nearest, distances = neighbours(detector, inputs)
    terms = detector.terms(inputs)
    share = latent_shares(detector, inputs, torch.from_numpy(nearest[:, 0]))
    terms += np.column_stack([share, -share.sum(1)])
    expected = _mean(detector, inputs, lambda e: e.around())
    off = _mean(detector, inputs, lambda e: e.likelihood.residuals(e.seen.x, e.seen.observed))
    found = {s.column: display(s, records) for s in _table(detector).states}
    contexts = context_reasons(_table(detector).context, records)
    return [
        Explanation(
            strongest(_reasons(detector, found, inputs, i, terms[i], expected[i], off[i]) + contexts[i]),
            paired(nearest[i], distances[i]),
        )
        for i in range(len(records))
    ]


def _table(detector: Detector) -> TabularPreprocessor:
    assert isinstance(detector.preprocessor, TabularPreprocessor)
    return detector.preprocessor


def _mean(detector: Detector, inputs: Inputs, function: Callable[[Evaluation], torch.Tensor]) -> np.ndarray:
    """The mean of ``function`` over the members, (B, ...)."""
    return torch.stack([over_chunks(m.vae, inputs, function) for m in detector.members]).mean(0).numpy()


def _reasons(
    detector: Detector,
    found: dict[str, list[str]],
    inputs: Inputs,
    row: int,
    terms: np.ndarray,
    expected: np.ndarray,
    off: np.ndarray,
) -> list[Contribution]:
    """``expected`` (3, F) features: the mean, and a standard deviation below and above; ``off`` (R,) deviations."""
    reasons, at = [], 0
    for i, state in enumerate(_table(detector).states):
        part = slice(at, at + state.size)
        observed = inputs.observed is None or bool(inputs.observed[row, at]) if state.size else True
        x = inputs.x[row, part].numpy()
        # numbers come first, so that a number's residual stands where its feature does
        deviation = float(off[at]) if state.kind == "number" and observed else None
        text, value = _expected(state, expected[:, part]), found[state.column][row]
        evidence = 0.0 if inputs.evidence is None else float(inputs.evidence[row, i])
        note = _note(state, x, observed, evidence)
        reasons.append(Contribution(state.column, float(terms[i]), value, text, deviation, note))
        at += state.size
    reasons.append(Contribution(COMBINATION, float(terms[-1]), "", "", None, "values that are unusual together"))
    return reasons


def _expected(state: ColumnState, features: np.ndarray) -> str:
    """What is expected, of ``features`` (3, size): the mean, and a standard deviation below and above it."""
    mean = features[0]
    if state.kind == "number":
        center, low, high = (decode_number(state, float(feature)) for feature in features[:, 0])
        return f"{number(center)} ± {number((high - low) / 2)}"
    if state.kind in ("binary", "boolean"):
        return f"{display_inputs(state, mean, observed=True)} ({max(mean[0], 1 - mean[0]):.0%})"
    if state.kind == "category":
        best = int(np.argmax(mean)) if len(mean) else 0
        return f"{state.categories[best]} ({mean[best]:.0%})" if len(mean) else ""
    sine, cosine = (np.array(state.center) + mean * np.array(state.scale))[:2]
    seconds = round((math.atan2(sine, cosine) / (2 * math.pi) % 1.0) * DAY)
    return f"about {seconds // 3600 % 24:02d}:{seconds // 60 % 60:02d} {state.timezone or 'UTC'}"


def _note(state: ColumnState, x: np.ndarray, observed: bool, evidence: float) -> str:
    if not observed:
        return "missing"
    # of a binary number the features are those of the nearer value, and only the evidence says that it is another
    other = state.kind == "binary" and evidence > state.present_nats + 1e-6
    if other or (state.kind == "category" and not x.any()):
        return "never seen in training"
    if state.kind == "number" and state.low is not None and state.high is not None:
        value = decode_number(state, float(x[0]))
        slack = 1e-5 * max(abs(state.low), abs(state.high), state.scale[0])
        if value < state.low - slack or value > state.high + slack:
            return f"beyond the training range {number(state.low)} to {number(state.high)}"
    return ""


def display_inputs(state: ColumnState, x: np.ndarray, observed: bool) -> str:
    """A reference record's value from its model inputs ``x`` (the column's features)."""
    if not observed:
        return ""
    if state.kind == "number":
        value = decode_number(state, float(x[0]))
        return number(float(round(value)) if state.integral else value)
    if state.kind == "binary":
        assert state.low is not None and state.high is not None
        return number(state.high if x[0] >= 0.5 else state.low)
    if state.kind == "boolean":
        return "true" if x[0] >= 0.5 else "false"
    if state.kind == "category":
        return state.categories[int(np.argmax(x))] if x.any() else ""
    return _expected(state, x[None]).removeprefix("about ")


def reference_values(detector: Detector, row: int, columns: Sequence[str]) -> tuple[str, ...]:
    """Values of the reference record ``row`` in ``columns``; the latent position and the context have none."""
    out: dict[str, str] = {}
    inputs, at = detector.reference.inputs, 0
    for state in _table(detector).states:
        part = slice(at, at + state.size)
        observed = inputs.observed is None or bool(inputs.observed[row, at])
        out[state.column] = display_inputs(state, inputs.x[row, part].numpy(), observed)
        at += state.size
    return tuple(out.get(c, "") for c in columns)
