"""Records that the model makes: from the prior, from the prior of a context, and from a record's own place.

Legend: B, N records, K latent dimensions, C context, Q columns, pixels or positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor

from vae_anomaly.batch import OK, Records
from vae_anomaly.detector import Detector
from vae_anomaly.errors import ConfigError, suggestion
from vae_anomaly.latent.decoding import Decoded, Decoder, Decoding, context_frame, decoded
from vae_anomaly.latent.space import drawn_from, latent_means, require_positive
from vae_anomaly.preprocessing.tabular import ColumnState, TabularPreprocessor, encode_states
from vae_anomaly.schema import CONVERTERS
from vae_anomaly.vae import Inputs

MOST = 100_000  # records that are generated at a time: all of them are held in memory


@dataclass(frozen=True)
class Generation:
    """N ``decoded`` records, their ``z`` (N, K), and their context columns, which a table has among its own, too."""

    decoded: Decoded
    z: np.ndarray
    context: pd.DataFrame


@torch.no_grad()
def generate(
    detector: Detector,
    count: int,
    *,
    seed: int = 0,
    context: Mapping[str, Any] | None = None,
    prior_temperature: float = 1.0,
    sample: bool | None = None,
    decoding: Decoding | None = None,
) -> Generation:
    """``count`` records: z from the prior, then x. No cell of a generated table is missing.

    Parameters
    ----------
    count : from 1 to ``MOST``.
    context : values of context columns; those that are not given are those of reference records drawn at random.
    prior_temperature : the spread of z, in that of the prior; above 0.
    sample : draw from p(x given z) instead of taking its mean; by default for tables, whose values would otherwise lie
        too close together, and not for images. A text is written as ``decoding`` says, by default ``nucleus``.

    Raises
    ------
    ConfigError
        ``count`` is out of its range, a column is not one of the context, or its value was never seen in training.
    """
    if not 1 <= count <= MOST:
        raise ConfigError(f"count must be from 1 to {MOST:,}. Got {count!r}.")
    require_positive("prior_temperature", prior_temperature)
    generator = torch.Generator().manual_seed(seed)
    given = _contexts(detector, count, context or {}, generator)
    z = drawn_from(detector.vae, count, given, prior_temperature, generator)
    table = detector.preprocessor.layout.modality == "table"
    decoder = Decoder(detector, generator, decoding or Decoding("nucleus"), table if sample is None else sample)
    return Generation(decoder(z, given), z.numpy(), context_frame(detector, given))


def _contexts(detector: Detector, count: int, wanted: Mapping[str, Any], generator: torch.Generator) -> Tensor | None:
    """(count, C) context vectors: those of reference records, with the values of ``wanted`` in their place."""
    seen, states = detector.reference.inputs.context, detector.preprocessor.context.states
    known = [s.column for s in states]
    for name in wanted:
        if name not in known:
            listed = f"one of the context columns {known}" if known else "left out: this model has no context columns"
            raise ConfigError(f"context must be {listed}. Got {name!r}.{suggestion(name, known)}")
    if seen is None:
        return None
    told = seen[seen[:, 0] > 0]
    # where no reference record has a known context, an unknown one is all there is
    told = told if len(told) else seen
    out = told[torch.randint(len(told), (count,), generator=generator)].clone()
    at = 1
    for state in states:
        if state.column in wanted:
            out[:, at : at + state.size] = torch.from_numpy(_context_features(detector, state, wanted[state.column]))
            out[:, 0] = 1.0
        at += state.size
    return out


def _context_features(detector: Detector, state: ColumnState, value: Any) -> np.ndarray:
    """(size,) float32 features of a value that was seen in training."""
    column = next(c for c in detector.schema.columns if c.name == state.column)
    cells = CONVERTERS[column.kind](pa.array([str(value)]), column)
    missing = cells.missing is not None and bool(cells.missing[0])
    name, values = f"context column {state.column!r}", cells.values
    if missing or any(mask[0] for mask in cells.problems.values()):
        raise ConfigError(f"{name} must be given a {column.kind}. Got {value!r}.")
    if state.kind == "category" and values[0].as_py() not in state.categories:
        shown = list(state.categories[:20])
        hint = suggestion(str(value), state.categories)
        raise ConfigError(f"{name} must be one of the values seen in training: {shown}. Got {value!r}.{hint}")
    if state.kind == "number" and not state.low <= values[0] <= state.high:
        seen = f"within the range seen in training, {state.low:g} to {state.high:g}"
        raise ConfigError(f"{name} must be {seen}. Got {value!r}.")
    one = Records(0, np.array([""]), {state.column: values}, np.array([OK]))
    features: np.ndarray = encode_states((state,), one.values, 1)[0][0]
    return features


@dataclass(frozen=True)
class Reconstruction:
    """B records, and what is decoded at their latent means: ``found`` and ``expected``; ``nats`` (B, Q + 1) are the
    entries of their ``score``: columns, pixels or positions, then the latent position."""

    ids: tuple[str, ...]
    score: np.ndarray
    found: Decoded
    expected: Decoded
    nats: np.ndarray


def reconstruct(detector: Detector, records: Records) -> Reconstruction:
    """The scorable ones of ``records`` beside what is decoded at their latent means."""
    known = records.take(np.flatnonzero(records.scorable))
    inputs = detector.encode(known)
    ids = tuple(map(str, known.record_ids))
    found = _found(detector, known, inputs)
    return Reconstruction(ids, detector.scores(inputs), found, expected(detector, inputs), detector.terms(inputs))


def expected(detector: Detector, inputs: Inputs) -> Decoded:
    """What is decoded at the latent means of ``inputs``: the mean of a table or image, the likeliest line of a text."""
    x = Decoder(detector, torch.Generator()).features(latent_means(detector, inputs), inputs.context)
    return decoded(detector, x, inputs.context)


def _found(detector: Detector, records: Records, inputs: Inputs) -> Decoded:
    """The records themselves, as :func:`decoded` gives them; a text as the model sees it."""
    if not isinstance(detector.preprocessor, TabularPreprocessor):
        return decoded(detector, inputs.x.numpy(), inputs.context)
    columns = {}
    for state in detector.preprocessor.all_states:
        values = records.values[state.column]
        series = values.to_pandas() if isinstance(values, pa.Array) else pd.Series(values)
        if state.kind == "boolean":
            series = series.astype("boolean")
        elif state.kind in ("number", "binary") and state.integral and bool((series.dropna() % 1 == 0).all()):
            series = series.astype("Int64")
        columns[state.column] = series
    return pd.DataFrame({c.name: columns[c.name] for c in detector.schema.columns})


def reference_records(detector: Detector, count: int) -> Decoded:
    """The first ``count`` reference records from their model inputs: values that were never seen or far outside come
    back as the model sees them; a table's missing cells are missing."""
    inputs = detector.reference.inputs[slice(0, count)]
    records = decoded(detector, inputs.x.numpy(), inputs.context)
    if isinstance(records, pd.DataFrame) and inputs.observed is not None:
        assert isinstance(detector.preprocessor, TabularPreprocessor)
        starts = np.cumsum([0, *(s.size for s in detector.preprocessor.states[:-1])])
        for state, at in zip(detector.preprocessor.states, starts, strict=True):
            records[state.column] = records[state.column].where(inputs.observed[:, at].numpy() > 0)
    return records
