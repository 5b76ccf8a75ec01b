r"""Tables: records to model inputs and back, learned from training rows only.

* **number**: :math:`t = (x - \mathrm{median}) / s`, with s the interquartile range / 1.349, or the standard deviation
  where more than half of the values are equal, never below a floor; beyond ``TAIL`` robust deviations the value is
  compressed to :math:`\pm\mathrm{TAIL}\,(1 + \log(|t| / \mathrm{TAIL}))`: monotone, finite for every finite x, so an
  absurd value scores as an absurd value and not as NaN.
  A column of ``scale: log`` is first mapped by :math:`\operatorname{asinh}(x / u)`, u the 5th percentile of its sizes
  that are not 0: a logarithm that takes any sign, under which ratios of columns become differences.
* **binary**, a number that takes two values in training: 0 for the smaller and 1 for the larger one; any other value is
  the nearer of them, and was never seen.
* **boolean**: 0 or 1. **category**: one-hot over the values seen in training, mapped by value.
* **timestamp**: sine and cosine of the time of day and of the day of the week, in UTC or the column's time zone.

Columns with ``context: true`` become the context vector (:class:`ContextEncoder`).

Back to values (``decode``): a number by the inverse map, an integer where every training value was one; a boolean or
binary number at 0.5; the likeliest category; of a timestamp, of which the model knows no date, the weekday and the time
as text, ``"Tue 14:05"``, in its time zone.

A missing cell is masked: it has no likelihood term and is a feature of 0 for the encoder. What no network gives is
counted as *evidence*, in nats, by columns: a missing cell where cells are rarely missing (or the reverse) costs
:math:`\log(p_\mathrm{common}/p_\mathrm{rare})` with Laplace's rule, a value never seen in training costs
:math:`-\log((n_1 + 1)/(n + 2))` with n_1 the number of values seen once (Good and Turing's estimate of unseen mass),
and of a binary number :math:`\log(1 + d)` more, d its distance from the nearer value in units of their difference.

Legend: B records, F features, Q columns.
Reference: I. J. Good, The population frequencies of species, Biometrika 40 (1953), doi 10.1093/biomet/40.3-4.237.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from vae_anomaly.batch import Records
from vae_anomaly.errors import DataError
from vae_anomaly.likelihoods import Block, Layout
from vae_anomaly.schema import Column, Schema
from vae_anomaly.vae import Inputs

TAIL = 10.0
DAY, WEEK = 86_400, 7 * 86_400
MAX_CATEGORIES = 256
ROUNDING = 1e-9  # of a number's size: what differs by less is the same number
SAME = 1e-6  # of the difference of a binary number's values: what is as near to one of them is it
LARGEST_INTEGRAL = 2.0**53  # beyond it float64 no longer holds every integer
WEEKDAYS = np.array(["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"])
TIME_PARTS = ("sine of the hour", "cosine of the hour", "sine of the weekday", "cosine of the weekday")


@dataclass(frozen=True)
class ColumnState:
    """What was learned of one column; the fields that its kind does not use are empty."""

    column: str
    kind: Literal["number", "binary", "boolean", "category", "timestamp", "image", "text"]
    missing: float
    center: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    unit: float = 0.0
    low: float | None = None
    high: float | None = None
    categories: tuple[str, ...] = ()
    unseen_nats: float = 0.0
    missing_nats: float = 0.0
    present_nats: float = 0.0
    timezone: str | None = None
    integral: bool = False

    @property
    def size(self) -> int:
        """Number of features of this column of a table."""
        return {"number": 1, "binary": 1, "boolean": 1, "category": len(self.categories), "timestamp": 4}[self.kind]


def encode_states(
    states: Sequence[ColumnState], values: Mapping[str, np.ndarray | pa.Array], rows: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features (B, F) float32, missing cells (B, Q) bool and evidence (B, Q) nats of ``values`` (B,) by column."""
    x = np.zeros((rows, sum(s.size for s in states)), dtype=np.float32)
    missing = np.zeros((rows, len(states)), dtype=bool)
    evidence = np.zeros((rows, len(states)), dtype=np.float32)
    at = 0
    for i, state in enumerate(states):
        part = slice(at, at + state.size)
        missing[:, i], unseen = _ENCODERS[state.kind](state, values[state.column], x[:, part])
        evidence[:, i] = np.where(missing[:, i], state.missing_nats, state.present_nats)
        if unseen is not None:
            evidence[:, i] += unseen
        at += state.size
    return x, missing, evidence


@dataclass(frozen=True)
class ContextEncoder:
    """Context columns, which condition the model and are not judged themselves.

    The context vector is [1, features of every column], or all 0 where the context is unknown: a cell is missing, a
    category was never seen in training, or a number lies beyond the training range by more than a tenth of it. What is
    normal there nobody has shown: a detector does not score such a record.
    """

    states: tuple[ColumnState, ...] = ()

    @property
    def size(self) -> int:
        """C, 0 without context columns."""
        return 1 + sum(s.size for s in self.states) if self.states else 0

    def encode(self, records: Records) -> torch.Tensor | None:
        """(B, C) context vectors, None without context columns."""
        if not self.states:
            return None
        x = encode_states(self.states, records.values, len(records))[0]
        known = ~np.logical_or.reduce([unknown for _, unknown in self.unknown(records)])
        vector = np.column_stack([np.ones(len(x), np.float32), x]) * known[:, None]
        return torch.from_numpy(vector.astype(np.float32))

    def unknown(self, records: Records) -> Iterator[tuple[str, np.ndarray]]:
        """Each context column, and where (B,) its cell says nothing that was seen in training."""
        for state in self.states:
            values = records.values[state.column]
            if isinstance(values, pa.Array):
                seen = pc.is_in(values, value_set=pa.array(state.categories, pa.string()))
                yield state.column, ~seen.to_numpy(zero_copy_only=False)
            elif state.kind == "number":
                assert state.low is not None and state.high is not None
                slack = 0.1 * (state.high - state.low)
                yield state.column, ~((values >= state.low - slack) & (values <= state.high + slack))
            else:
                yield state.column, np.isnat(values) if state.kind == "timestamp" else np.isnan(values)

    def decode(self, context: np.ndarray) -> dict[str, np.ndarray]:
        """The values of context vectors (B, C), by column; None in every column where the context is unknown."""
        known = context[:, 0] > 0
        columns = decode_states(self.states, context[:, 1:])
        if known.all():
            return columns
        return {name: _where(known, values) for name, values in columns.items()}

    def quality(self, records: Records, good: np.ndarray) -> np.ndarray:
        """As :meth:`TabularPreprocessor.quality` for the context columns."""
        return np.array([_quality(s, records.values[s.column], good) for s in self.states])


@dataclass(frozen=True)
class TabularPreprocessor:
    """Fitted column states in the order of the features: numbers and times, binary numbers and booleans, categories;
    then the context."""

    states: tuple[ColumnState, ...]
    context: ContextEncoder = field(default_factory=ContextEncoder)

    @functools.cached_property
    def layout(self) -> Layout:
        """The features as the likelihood reads them; a block's ``column`` is a position in :attr:`columns`."""
        family = {"number": "gaussian", "timestamp": "gaussian", "category": "categorical"}
        blocks = tuple(
            Block(i, family.get(s.kind, "bernoulli"), s.size)  # type: ignore[arg-type]
            for i, s in enumerate(self.states)
            if s.size
        )
        return Layout(blocks, len(self.columns), self.context.size)

    @property
    def columns(self) -> tuple[str, ...]:
        """Column names in feature order, then those of the context, which have evidence and no features."""
        return tuple(s.column for s in self.all_states)

    @property
    def all_states(self) -> tuple[ColumnState, ...]:
        """The states of :attr:`columns`."""
        return self.states + self.context.states

    @property
    def all_numbers(self) -> bool:
        """True where every column is a number, so that a matrix can be encoded without splitting it."""
        return all(s.kind in ("number", "binary") for s in self.states) and not self.context.states

    def encode(self, records: Records) -> Inputs:
        """Model inputs of scorable ``records``: x (B, F) float32, mask and evidence only where there is any."""
        numbers = [records.values[s.column] for s in self.states[: self._numbers.shape[1]]]
        matrix = np.stack(numbers, 1) if numbers else np.empty((len(records), 0))
        return self._encode(matrix, records.values, self.context.encode(records))

    @functools.cached_property
    def _numbers(self) -> np.ndarray:
        """(5, N): center, scale, unit, nats of a missing and of a present cell of the N numbers that are not binary."""
        numbers = [s for s in self.states if s.kind == "number"]
        rows = [(*s.center, *s.scale, s.unit, s.missing_nats, s.present_nats) for s in numbers]
        return np.ascontiguousarray(np.transpose(rows).reshape(5, len(rows)))

    def encode_matrix(self, values: np.ndarray) -> Inputs:
        """As :meth:`encode` for a float64 matrix (B, Q) in the order of :attr:`columns`, numbers only."""
        of_binary = {s.column: values[:, i] for i, s in enumerate(self.states) if s.kind == "binary"}
        return self._encode(values[:, : self._numbers.shape[1]], of_binary, None)

    def _encode(
        self, numbers: np.ndarray, others: Mapping[str, np.ndarray | pa.Array], context: torch.Tensor | None
    ) -> Inputs:
        """The inputs of ``numbers`` (B, N) and of the ``others`` by column."""
        center, scale, unit, missing_nats, present_nats = self._numbers
        x = standardise(flattened(numbers, unit), center, scale)
        # the least of values is NaN where one of them is
        if len(center) == len(self.states) and not present_nats.any() and not np.isnan(x.min(initial=0.0)):
            return Inputs(torch.from_numpy(x), context=context)
        missing = np.isnan(x)
        x[missing] = 0.0
        evidence = np.where(missing, missing_nats, present_nats)
        of_context = np.zeros((len(x), len(self.context.states)), np.float32)  # which is not judged
        more, more_missing, more_evidence = encode_states(self.states[len(center) :], others, len(x))
        x, missing = np.column_stack([x, more]), np.column_stack([missing, more_missing])
        evidence = np.column_stack([evidence, more_evidence, of_context])
        observed = None
        if missing.any():
            observed = torch.from_numpy(np.repeat(~missing, [s.size for s in self.states], axis=1).astype(np.float32))
        nats = torch.from_numpy(np.ascontiguousarray(evidence, dtype=np.float32)) if evidence.any() else None
        # row-major whatever the caller's array was: a sum over a row is not the same bits in another memory order
        return Inputs(torch.from_numpy(np.ascontiguousarray(x)), observed, nats, context)

    def decode(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """The values of features (B, F), by column: a record's own, or those that a likelihood expects or gave."""
        return decode_states(self.states, x)

    def quality(self, records: Records, good: np.ndarray) -> np.ndarray:
        """(Q, 3) int64: missing, never seen and out-of-range cells of each column among the rows ``good`` (B,)."""
        return np.array([_quality(s, records.values[s.column], good) for s in self.all_states])

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready states."""
        return {"states": [asdict(s) for s in self.states], "context": [asdict(s) for s in self.context.states]}

    @staticmethod
    def from_dict(value: Mapping[str, Any]) -> TabularPreprocessor:
        """The inverse of :meth:`to_dict`; numbers survive exactly."""
        return TabularPreprocessor(states_from(value["states"]), ContextEncoder(states_from(value["context"])))


def states_from(saved: Sequence[Mapping[str, Any]]) -> tuple[ColumnState, ...]:
    """States that were saved as JSON."""
    return tuple(_state(s) for s in saved)


def _quality(state: ColumnState, values: np.ndarray | pa.Array, good: np.ndarray) -> np.ndarray:
    if isinstance(values, pa.Array):
        missing = values.is_null().to_numpy(zero_copy_only=False)
        known = pc.is_in(values, value_set=pa.array(state.categories, pa.string())).to_numpy(zero_copy_only=False)
        return np.array([(missing & good).sum(), (~known & ~missing & good).sum(), 0])
    missing = np.isnat(values) if state.kind == "timestamp" else np.isnan(values)
    unseen = beyond = np.zeros(1, bool)
    if state.kind == "number":
        beyond = (values < state.low) | (values > state.high)
    if state.kind == "binary":
        evidence = _encode_binary(state, values, np.empty((len(values), 1)))[1]
        unseen = unseen if evidence is None else evidence > 0
    return np.array([(missing & good).sum(), (unseen & good).sum(), (beyond & good).sum()])


def _state(saved: Mapping[str, Any]) -> ColumnState:
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in saved.items()}
    return ColumnState(**fields)


def flattened(values: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """asinh(values / unit) in the columns of (B, Q) ``values`` whose unit (Q,) is not 0; the others as they are."""
    heavy = np.flatnonzero(unit)
    if not heavy.size:
        return values
    values = values.copy()
    with np.errstate(over="ignore"):
        values[:, heavy] = np.arcsinh(values[:, heavy] / unit[heavy])
    return values


def standardise(values: np.ndarray, center: np.ndarray | float, scale: np.ndarray | float) -> np.ndarray:
    """float32 (values - center) / scale, logarithmic beyond ``TAIL``; NaN stays NaN, every finite value finite."""
    # in torch, which handles the broadcast rows twice as fast as numpy does
    shift, spread = (torch.as_tensor(v, dtype=torch.float64) for v in (center, scale))
    t = torch.from_numpy(np.require(values, np.float64, ["C", "W"])).sub(shift).mul_(1.0 / spread)
    x = t.float().numpy()
    # NaN compares false; most chunks are inside and done
    if x.size and not (x.min() >= -TAIL and x.max() <= TAIL):
        far = np.abs(x) > TAIL
        beyond = np.clip(t.numpy()[far], -np.finfo(np.float64).max, np.finfo(np.float64).max)
        x[far] = np.copysign(TAIL * (1.0 + np.log(np.abs(beyond) / TAIL)), beyond)
    return x


def _encode_number(state: ColumnState, values: np.ndarray, out: np.ndarray) -> tuple[np.ndarray, None]:
    missing = np.isnan(values)
    flat = flattened(values[:, None], np.array([state.unit]))[:, 0]
    out[:, 0] = np.where(missing, 0.0, standardise(flat, state.center[0], state.scale[0]))
    return missing, None


def _encode_binary(state: ColumnState, values: np.ndarray, out: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    assert state.low is not None and state.high is not None
    missing = np.isnan(values)
    with np.errstate(over="ignore"):
        share = np.where(missing, 0.0, (values - state.low) / (state.high - state.low))
    larger = share >= 0.5
    out[:, 0] = larger
    distance = np.abs(share - larger).clip(max=np.finfo(np.float64).max)
    other = distance > SAME
    return missing, other * (state.unseen_nats + np.log1p(distance)) if other.any() else None


def _encode_boolean(state: ColumnState, values: np.ndarray, out: np.ndarray) -> tuple[np.ndarray, None]:
    missing = np.isnan(values)
    out[:, 0] = np.where(missing, 0.0, values)
    return missing, None


def _encode_category(state: ColumnState, values: pa.Array, out: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    code = pc.fill_null(pc.index_in(values, value_set=pa.array(state.categories, pa.string())), -1)
    codes = code.to_numpy(zero_copy_only=False).astype(np.int64)
    missing = pc.is_null(values).to_numpy(zero_copy_only=False)
    rows = np.flatnonzero((codes >= 0) & ~missing)
    out[rows, codes[rows]] = 1.0
    return missing, ((codes < 0) & ~missing) * state.unseen_nats


def _time_parts(values: np.ndarray, timezone: str | None) -> np.ndarray:
    """(B, 4) sine and cosine of the time of day and of the week; NaT gives NaN."""
    missing = np.isnat(values)
    seconds = values.astype("datetime64[s]").astype(np.int64)
    if timezone not in (None, "UTC"):
        instants = pa.array(seconds, pa.timestamp("s", tz="UTC"), mask=missing)
        local = pc.local_timestamp(instants.cast(pa.timestamp("s", tz=str(ZoneInfo(str(timezone))))))
        seconds = pc.fill_null(local.cast(pa.int64()), 0).to_numpy()
    # the Unix epoch was a Thursday: three days later the week begins
    angles = 2 * np.pi * np.column_stack([seconds % DAY / DAY, (seconds - 4 * DAY) % WEEK / WEEK])
    parts = np.column_stack([np.sin(angles[:, 0]), np.cos(angles[:, 0]), np.sin(angles[:, 1]), np.cos(angles[:, 1])])
    parts[missing] = np.nan
    return parts


def _encode_timestamp(state: ColumnState, values: np.ndarray, out: np.ndarray) -> tuple[np.ndarray, None]:
    missing = np.isnat(values)
    parts = _time_parts(values, state.timezone)
    out[:] = np.where(missing[:, None], 0.0, (parts - np.array(state.center)) / np.array(state.scale))
    return missing, None


_ENCODERS: Mapping[str, Any] = {
    "number": _encode_number,
    "binary": _encode_binary,
    "boolean": _encode_boolean,
    "category": _encode_category,
    "timestamp": _encode_timestamp,
}


def robust_scale(values: np.ndarray) -> tuple[float, float]:
    """Median and a scale with a floor of finite ``values``; the scale of a constant column is 1.

    The scale is IQR / 1.349; where the middle half of the values is one value, it is the standard deviation of the
    values clipped to their 1st and 99th percentile. The floor is ``ROUNDING`` of the median's size, so that a column
    which is constant but for rounding does not explode.
    """
    center = float(np.median(values))
    q25, q75 = np.quantile(values, [0.25, 0.75])
    scale = float(q75 - q25) / 1.349
    # by the median's size and not the largest: one absurd training value would blind the column
    floor = ROUNDING * max(abs(center), 1e-30)
    if scale <= floor:
        scale = float(np.clip(values, *np.quantile(values, [0.01, 0.99])).std())
    if scale <= floor:
        scale = float(values.std())
    return center, scale if scale > floor else max(1.0, abs(center) * 1e-3)


def fit_tabular(records: Records, schema: Schema) -> TabularPreprocessor:
    """Learn every column's state from scorable training ``records``.

    Raises
    ------
    DataError
        A column has no observed cell, or holds a number that no robust scale can take (rule ``unusable_column``).
    """
    order = ["number", "timestamp", "binary", "boolean", "category"]
    judged = [(c, records.values[c.name]) for c in schema.columns if not c.context]
    states = [_binary(_fit_column(column, values), values) for column, values in judged]
    states.sort(key=lambda state: order.index(state.kind))
    return TabularPreprocessor(tuple(states), fit_context(records, schema))


def _binary(state: ColumnState, values: np.ndarray | pa.Array) -> ColumnState:
    """The state of a number that takes two ``values`` as that of a binary number, any other as it is."""
    if state.kind != "number":
        return state
    assert state.low is not None and state.high is not None
    if state.high - state.low <= ROUNDING * max(abs(state.low), abs(state.high)):
        return state
    larger, seen = int((values == state.high).sum()), int((~np.isnan(values)).sum())
    if larger + int((values == state.low).sum()) < seen:
        return state
    singletons = int(larger == 1) + int(seen - larger == 1)
    nats = -math.log((singletons + 1) / (seen + 2))
    return replace(state, kind="binary", center=(), scale=(), unit=0.0, unseen_nats=nats)


def fit_context(records: Records, schema: Schema) -> ContextEncoder:
    """Learn the states of the context columns of ``schema``; raises as :func:`fit_tabular`."""
    return ContextEncoder(tuple(_fit_column(c, records.values[c.name]) for c in schema.columns if c.context))


def _fit_column(column: Column, values: Any) -> ColumnState:
    count = len(values)
    if column.kind == "category":
        missing = pc.is_null(values).to_numpy(zero_copy_only=False)
    else:
        missing = np.isnat(values) if column.kind == "timestamp" else np.isnan(values)
    if missing.all():
        raise DataError(
            "unusable_column",
            f"every cell must not be missing in the training records. Got {count} missing cells.",
            column=column.name,
            remedy="Fill the column or move it to `ignore:`.",
        )
    share = (missing.sum() + 1) / (count + 2)
    odds = math.log(share / (1 - share))
    common: dict[str, Any] = {
        "column": column.name,
        "kind": column.kind,
        "missing": float(missing.mean()),
        "missing_nats": max(0.0, -odds),
        "present_nats": max(0.0, odds),
    }
    state: ColumnState = _FITTERS[column.kind](column, values, missing, common)
    return state


def _fit_number(column: Column, values: np.ndarray, missing: np.ndarray, common: dict[str, Any]) -> ColumnState:
    seen = values[~missing]
    far = np.flatnonzero(np.abs(values) > 1e30)
    if far.size:
        raise DataError(
            "absurd_value",
            f"training values must lie within 1e30. Got {far.size} beyond it.",
            column=column.name,
            rows=far.tolist(),
            count=int(far.size),
            remedy="Remove these rows from the training records, or mend the column.",
        )
    center, scale = robust_scale(seen)
    low, high, integral = float(seen.min()), float(seen.max()), bool((seen == np.rint(seen)).all())
    unit = 0.0
    if column.scale == "log" and seen.any():
        unit = float(np.quantile(np.abs(seen[seen != 0]), 0.05))
        center, scale = robust_scale(np.arcsinh(seen / unit))
    fitted: dict[str, Any] = {"center": (center,), "scale": (scale,), "unit": unit}
    return ColumnState(**common, **fitted, low=low, high=high, integral=integral)


def _fit_boolean(column: Column, values: np.ndarray, missing: np.ndarray, common: dict[str, Any]) -> ColumnState:
    return ColumnState(**common)


def _fit_category(column: Column, values: pa.Array, missing: np.ndarray, common: dict[str, Any]) -> ColumnState:
    counts = pc.value_counts(values.drop_null())
    names, sizes = counts.field("values").to_pylist(), counts.field("counts").to_pylist()
    ranked = sorted(zip(names, sizes, strict=True), key=lambda pair: (-pair[1], pair[0]))
    if len(ranked) > MAX_CATEGORIES:
        raise DataError(
            "too_many_categories",
            f"a category column must have at most {MAX_CATEGORIES} values. Got {len(ranked)}.",
            column=column.name,
            remedy="If it is an id or free text, move it to `ignore:`; else group its rare values before it arrives.",
        )
    singletons = sum(size == 1 for _, size in ranked)
    unseen_nats = -math.log((singletons + 1) / (sum(sizes) + 2))
    return ColumnState(**common, categories=tuple(name for name, _ in ranked), unseen_nats=unseen_nats)


def _fit_timestamp(column: Column, values: np.ndarray, missing: np.ndarray, common: dict[str, Any]) -> ColumnState:
    parts = _time_parts(values[~missing], column.timezone)
    scale = np.maximum(parts.std(axis=0), 0.1)
    return ColumnState(
        **common, center=tuple(parts.mean(axis=0).tolist()), scale=tuple(scale.tolist()), timezone=column.timezone
    )


_FITTERS: Mapping[str, Any] = {
    "number": _fit_number,
    "boolean": _fit_boolean,
    "category": _fit_category,
    "timestamp": _fit_timestamp,
}


def decode_states(states: Sequence[ColumnState], x: np.ndarray) -> dict[str, np.ndarray]:
    """Values (B,) of each column of ``states`` from its features in ``x`` (B, F): float64 or int64, bool, or text."""
    out, at = {}, 0
    for state in states:
        out[state.column] = _DECODERS[state.kind](state, x[:, at : at + state.size].astype(np.float64))
        at += state.size
    return out


def decode_number(state: ColumnState, t: float) -> float:
    """The value of a number whose feature is ``t``: the inverse of the map above."""
    return float(decode_numbers(state, np.array([t]))[0])


def decode_numbers(state: ColumnState, t: np.ndarray) -> np.ndarray:
    """:func:`decode_number` of each of ``t``; finite for every finite t."""
    size = np.abs(t)
    far = np.where(size > TAIL, TAIL * np.exp(np.minimum(size / TAIL - 1.0, 600.0)), size)
    values: np.ndarray = state.center[0] + state.scale[0] * np.copysign(far, t)
    return state.unit * np.sinh(np.clip(values, -700.0, 700.0)) if state.unit else values


def _where(known: np.ndarray, values: np.ndarray) -> np.ndarray:
    """``values`` with None where they are not ``known``."""
    out = values.astype(object)
    out[~known] = None
    return out


def _decode_number(state: ColumnState, x: np.ndarray) -> np.ndarray:
    values = decode_numbers(state, x[:, 0])
    if not state.integral:
        # six digits of the scale: what a feature in float32 carries
        return values if state.unit else np.round(values, 6 - math.floor(math.log10(state.scale[0])))
    rounded: np.ndarray = np.rint(values.clip(-LARGEST_INTEGRAL, LARGEST_INTEGRAL)).astype(np.int64)
    return rounded


def _decode_binary(state: ColumnState, x: np.ndarray) -> np.ndarray:
    assert state.low is not None and state.high is not None
    values: np.ndarray = np.where(x[:, 0] >= 0.5, state.high, state.low)
    exact = state.integral and max(abs(state.low), abs(state.high)) <= LARGEST_INTEGRAL
    return values.astype(np.int64) if exact else values


def _decode_boolean(state: ColumnState, x: np.ndarray) -> np.ndarray:
    true: np.ndarray = x[:, 0] >= 0.5
    return true


def _decode_category(state: ColumnState, x: np.ndarray) -> np.ndarray:
    """None where no value has any weight: it was never seen in training."""
    return _where(np.asarray(x.any(1)), np.array(state.categories, dtype=object)[x.argmax(1)])


def _decode_timestamp(state: ColumnState, x: np.ndarray) -> np.ndarray:
    minutes = decode_minutes(state, x)
    return np.array([f"{day} {m // 60:02d}:{m % 60:02d}" for day, m in
                     zip(WEEKDAYS[minutes // 1440], minutes % 1440, strict=True)], dtype=object)  # fmt: skip


def decode_minutes(state: ColumnState, x: np.ndarray) -> np.ndarray:
    """(B,) int64: the minute of the week, from Monday 00:00, of a timestamp's features (B, 4).

    The day's pair says the time, the week's pair which of the seven days it is nearest to.
    """
    sine, cosine, week_sine, week_cosine = (x * np.array(state.scale) + np.array(state.center)).T
    minute = np.rint(np.arctan2(sine, cosine) / (2 * np.pi) % 1.0 * 1440).astype(np.int64)
    day = np.rint(np.arctan2(week_sine, week_cosine) / (2 * np.pi) % 1.0 * 7 - minute / 1440).astype(np.int64)
    found: np.ndarray = (day * 1440 + minute) % (7 * 1440)
    return found


_DECODERS: Mapping[str, Any] = {
    "number": _decode_number,
    "binary": _decode_binary,
    "boolean": _decode_boolean,
    "category": _decode_category,
    "timestamp": _decode_timestamp,
}
