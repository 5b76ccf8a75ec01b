"""Tables: every column's contribution, its value beside the expected one, and how far it deviates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
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
from vae_anomaly.preprocessing.tabular import (
    DAY,
    ColumnState,
    TabularPreprocessor,
    decode_minutes,
    decode_number,
    decode_numbers,
)
from vae_anomaly.report.model import COMBINATION, Contribution, Replacement
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


# ---------------------------------------------------------------- what would make a record normal

ROUNDS = 2  # of a reconstruction of the changed record, after the one that does not see what is replaced
WEEK = 7 * 1440  # minutes


@dataclass(frozen=True)
class Columns:
    """The columns of flagged ``records`` as parts that can be replaced; see :mod:`vae_anomaly.explain.counterfactual`.

    There are two kinds of replacement for a set of columns: what the model expects given the other columns (the mean,
    or the likeliest value, of a reconstruction that does not see them, and is then repeated with what it gave), and the
    values of the nearest normal record. Both are values that a file can hold: within the range of training, counts as
    integers, categories that training knew, times nearest to the one found. The context, and the column that chooses
    the threshold or the detector, stay as they are, and so does a missing time, of which nobody knows the date. A cell
    is made missing only where that is the rule in training.
    """

    detector: Detector
    records: Records
    explanations: Sequence[Explanation]

    @property
    def states(self) -> tuple[ColumnState, ...]:
        """The columns."""
        return _table(self.detector).states

    @property
    def count(self) -> int:
        """Their number."""
        return len(self.states)

    @property
    def order(self) -> list[list[int]]:
        """The columns of each record that may change, the one that adds most to its score first."""
        by = self.detector.by or self.detector.threshold.options.get("by")
        place = {state.column: i for i, state in enumerate(self.states) if state.column != by}
        return [[place[r.column] for r in e.reasons if r.column in place] for e in self.explanations]

    @cached_property
    def _found(self) -> Inputs:
        return self.detector.encode(self.records)

    def donors(self, rows: np.ndarray, chosen: np.ndarray) -> list[Records]:
        """What the model expects, and what the nearest normal record has."""
        return [self._expected(rows, chosen), self._of_nearest(rows, chosen)]

    def _expected(self, rows: np.ndarray, chosen: np.ndarray) -> Records:
        inputs = self._found[torch.from_numpy(rows)]
        unseen = torch.from_numpy(1.0 - np.repeat(chosen, [s.size for s in self.states], axis=1)).float()
        observed = unseen if inputs.observed is None else inputs.observed * unseen
        changed = self._changed_to(rows, chosen, replace(inputs, x=inputs.x * unseen, observed=observed))
        for _ in range(ROUNDS):
            changed = self._changed_to(rows, chosen, self.detector.encode(changed))
        return changed

    def _changed_to(self, rows: np.ndarray, chosen: np.ndarray, seen: Inputs) -> Records:
        """The records ``rows`` with what is expected of the records ``seen`` in the ``chosen`` columns."""
        return self._with(rows, chosen, _mean(self.detector, seen, lambda e: e.expected()), None)

    def _of_nearest(self, rows: np.ndarray, chosen: np.ndarray) -> Records:
        near = torch.tensor([e.neighbours[0][0] for e in self.explanations])[torch.from_numpy(rows)]
        normal = self.detector.reference.inputs[near]
        return self._with(rows, chosen, normal.x.numpy(), None if normal.observed is None else normal.observed.numpy())

    def _with(self, rows: np.ndarray, chosen: np.ndarray, x: np.ndarray, observed: np.ndarray | None) -> Records:
        """The records ``rows`` with the values of features ``x`` (N, F) in the ``chosen`` columns (N, P)."""
        records, found, at = self.records.take(rows), self._found.x.numpy()[rows], 0
        values = dict(records.values)
        for i, state in enumerate(self.states):
            part, here = slice(at, at + state.size), chosen[:, i]
            if here.any():
                own = _at(values[state.column], here)
                there = np.ones(len(own), bool) if observed is None else observed[here, at] > 0
                expected, before = (v[here, part].astype(np.float64) for v in (x, found))
                normal, known = _normal(state, expected, before, own)
                # a cell is left out only where that is the rule
                missing = _nothing(own) if state.present_nats else own
                put = _where(there, _where(known, normal, own), missing)
                values[state.column] = _put(values[state.column], here, put)
            at += state.size
        return replace(records, values=values)

    def changed(self, rows: np.ndarray, chosen: np.ndarray, donors: Records, at: np.ndarray) -> Records:
        """The records ``rows`` with the ``chosen`` columns of ``donors``."""
        records = self.records.take(rows)
        values: dict[str, Any] = dict(records.values)
        for i in np.flatnonzero(chosen.any(0)):
            column, here = self.states[i].column, chosen[:, i]
            normal = donors.values[column]
            place = at[here]
            values[column] = _put(
                values[column], here, normal.take(pa.array(place)) if isinstance(normal, pa.Array) else normal[place]
            )
        return replace(records, values=values)

    def replacements(self, row: int, parts: Sequence[int], changed: Records) -> tuple[Replacement, ...]:
        """Both values of each column as an analyst reads them; a number is shown as it was scored."""
        before = self.records.take(np.array([row]))
        return tuple(_replacement(self.states[i], before, changed) for i in parts)


def _at(values: np.ndarray | pa.Array, here: np.ndarray) -> np.ndarray | pa.Array:
    return values.filter(pa.array(here)) if isinstance(values, pa.Array) else values[here]


def _put(values: np.ndarray | pa.Array, here: np.ndarray, others: np.ndarray | pa.Array) -> np.ndarray | pa.Array:
    """``values`` (N,) with ``others``, in order, where ``here`` (N,)."""
    if isinstance(values, pa.Array):
        return pc.replace_with_mask(values, pa.array(here), others)
    out = values.copy()
    out[here] = others
    return out


def _where(mask: np.ndarray, values: np.ndarray | pa.Array, others: np.ndarray | pa.Array) -> np.ndarray | pa.Array:
    if isinstance(others, pa.Array):
        return pc.if_else(pa.array(mask), values, others)
    return np.where(mask, values, others)


def _nothing(like: np.ndarray | pa.Array) -> np.ndarray | pa.Array:
    """As many missing cells as ``like`` has cells."""
    if isinstance(like, pa.Array):
        return pa.nulls(len(like), like.type)
    return np.full(len(like), np.datetime64("NaT") if like.dtype.kind == "M" else np.nan, like.dtype)


def _normal(
    state: ColumnState, x: np.ndarray, found: np.ndarray, own: np.ndarray | pa.Array
) -> tuple[np.ndarray | pa.Array, np.ndarray]:
    """The values (N,) of features ``x`` (N, size) as a file holds them, in place of ``own`` (N,), whose features are
    ``found``; and where (N,) there is one."""
    known: np.ndarray = np.ones(len(x), bool)
    if state.kind == "category":
        return pa.array(np.array(state.categories, dtype=object)[x.argmax(1)], pa.string()), np.asarray(x.any(1))
    if state.kind == "timestamp":
        assert isinstance(own, np.ndarray)
        known &= ~np.isnat(own)
        later = (decode_minutes(state, x) - decode_minutes(state, found) + WEEK // 2) % WEEK - WEEK // 2
        return own.astype("datetime64[m]").astype(own.dtype) + later.astype("timedelta64[m]"), known
    if state.kind == "boolean":
        return (x[:, 0] >= 0.5).astype(float), known
    assert state.low is not None and state.high is not None
    if state.kind == "binary":
        return np.where(x[:, 0] >= 0.5, state.high, state.low), known
    values = decode_numbers(state, x[:, 0]).clip(state.low, state.high)
    return np.array([float(_digits(state, value)) for value in values.tolist()]), known


def _digits(state: ColumnState, value: float) -> str:
    """A number to a hundredth of the column's scale, four significant digits on a logarithmic one; counts in full."""
    if not state.integral and state.unit:
        value = float(f"{value:.4g}")
    elif state.scale:
        value = float(round(value, 0 if state.integral else 2 - math.floor(math.log10(state.scale[0]))))
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else f"{value:.12g}"


def _replacement(state: ColumnState, before: Records, changed: Records) -> Replacement:
    """Of the only records of both; a number is shown in as many digits as tell it apart."""
    found, normal = display(state, before)[0], display(state, changed)[0]
    if state.kind == "number" and normal:
        normal = _digits(state, float(changed.values[state.column][0]))
        if found == normal:
            found = f"{float(before.values[state.column][0]):.12g}"
    return Replacement(state.column, found, normal)
