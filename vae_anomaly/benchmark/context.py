"""A table whose normality depends on context columns: what a condition is worth.

The same records for all: a model that is conditioned on the context, one that never sees it, one for which its columns
are columns like the others, and the nearest neighbours without and with them, in the models' own feature space.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vae_anomaly.batch import Records, concatenate
from vae_anomaly.benchmark.measuring import Method, Split
from vae_anomaly.benchmark.methods import knn, ours
from vae_anomaly.errors import ConfigError
from vae_anomaly.pipelines import read_training
from vae_anomaly.preprocessing import PREPROCESSORS
from vae_anomaly.samples import write_regions
from vae_anomaly.schema import Schema
from vae_anomaly.store.sources import list_inbox, open_delivery
from vae_anomaly.worker import read_records
from vae_anomaly.workspace import Workspace


@contextmanager
def source(folder: Path | None) -> Iterator[tuple[Workspace, dict[str, Callable[[int], Split]]]]:
    """A monitor with labelled batches in its inbox and its data; without one synthetic cold rooms, anew for each seed.

    Raises
    ------
    ConfigError
        The folder holds no monitor, or one that has no table, no context column or no labels.
    """
    if folder is not None:
        ws = _usable(Workspace.open(folder))
        yield ws, {ws.monitor.name: lambda seed: read(ws)}
        return
    with tempfile.TemporaryDirectory() as name:
        made = Path(name)
        write_regions(made / "0")
        ws = Workspace.open(made / "0")
        yield ws, {ws.monitor.name: partial(_written, made)}


def _written(folder: Path, seed: int) -> Split:
    write_regions(folder / str(seed), seed=seed)
    return read(Workspace.open(folder / str(seed)))


def _usable(ws: Workspace) -> Workspace:
    contexts = [column.name for column in ws.schema.columns if column.context]
    if ws.schema.modality != "table" or not contexts or ws.monitor.label is None:
        raise ConfigError(
            f"{ws.monitor.path} must have a table with columns marked `context: true`, and a label. Got records of kind"
            f" {ws.schema.modality}, context {contexts} and label {ws.schema.label!r}. Choose another monitor."
        )
    return ws


def read(ws: Workspace) -> Split:
    """The training records, and those of the inbox with their labels."""
    tested = []
    for file in list_inbox(ws.monitor.source.inbox, settle_seconds=0.0).ready:
        with open_delivery(file.path) as delivery:
            tested += list(read_records(delivery, ws))
    if not tested:
        raise ConfigError(f"source.inbox must hold labelled batches. Got none in {str(ws.monitor.source.inbox)!r}.")
    training, test = _scorable(read_training(ws).records), _scorable(concatenate(tested))
    if test.labels is None or test.labels.all() or not test.labels.any():
        raise ConfigError(
            f"batches in {str(ws.monitor.source.inbox)!r} must hold labelled anomalies and normal records."
        )
    normal = training if training.labels is None else training.take(np.flatnonzero(~training.labels))
    return Split(normal, test, test.labels)


def _scorable(records: Records) -> Records:
    return records.take(np.flatnonzero(records.scorable))


def methods(ws: Workspace) -> dict[str, Method]:
    """What is compared, by the recipe of the monitor; ``+context`` has the context columns among its own."""
    schema = ws.schema
    without = replace(schema, columns=schema.modelled)
    plain = replace(schema, columns=tuple(replace(column, context=False) for column in schema.columns))
    recipe = ws.recipe
    unconditional = replace(recipe, model=None)
    return {
        "conditional": ours(partial(_seen, schema), recipe),
        "mlp": ours(partial(_seen, without), unconditional),
        "mlp+context": ours(partial(_seen, plain), unconditional),
        "knn": _neighbours(without),
        "knn+context": _neighbours(plain),
    }


def _seen(schema: Schema, records: Records) -> tuple[Records, Schema]:
    """The records with the columns of ``schema`` only."""
    return replace(records, values={column.name: records.values[column.name] for column in schema.columns}), schema


def _neighbours(schema: Schema) -> Method:
    def fit(training: Any, seed: int) -> Any:
        encoder = PREPROCESSORS["table"].fit(_seen(schema, training)[0], schema)
        return knn(lambda records: encoder.encode(_seen(schema, records)[0]).x.numpy())(training, seed)

    return fit
