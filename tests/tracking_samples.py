"""A tiny monitor and its fits, for tests of the registry: 400 records of five kinds of columns with missing cells."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache, cached_property
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa

from vae_anomaly import tracking
from vae_anomaly.batch import Records
from vae_anomaly.config import MlflowConfig, MonitorConfig, load_mlflow, parse_monitor
from vae_anomaly.detector import Part
from vae_anomaly.fitting import Fit, Recipe, fit_detector
from vae_anomaly.metrics import Assessment, assess
from vae_anomaly.schema import Column, Schema, check
from vae_anomaly.tracking import Registered, Tracker

KINDS = {
    "amount": "number",
    "fee €": "number",
    "items": "number",
    "paid": "boolean",
    "shop": "category",
    "at": "timestamp",
}
SCHEMA = Schema(tuple(Column(name, kind) for name, kind in KINDS.items()), record_id="id")
RECIPE = Recipe(
    model=Part("mlp", {"hidden": [16], "latent": 3}),
    training={"epochs": 30, "patience": 30},
    threshold=Part("conformal", {"alpha": 0.05}),
    validation=0.2,
    calibration=0.4,
)
BY = "Fay"  # who fits
DIGESTS = {"monday.parquet": "a" * 64, "tuesday.parquet": "b" * 64}


def table(rows: int = 400, seed: int = 0) -> pa.Table:
    """Normal records: the fee follows the amount, the shop the items."""
    rng = np.random.default_rng(seed)
    amount = np.exp(rng.normal(3.0, 0.5, rows))
    shop = rng.choice(["cafe", "fuel", "kiosk"], rows)
    start = datetime(2026, 1, 5, tzinfo=UTC)
    return pa.table(
        {
            "id": [f"r{i:04d}" for i in range(rows)],
            "amount": pa.array(amount, mask=rng.random(rows) < 0.05),
            "fee €": 0.1 + 0.02 * amount * np.exp(rng.normal(0, 0.05, rows)),
            "items": (1 + rng.poisson(2, rows) * (shop == "kiosk")).astype(np.int64),
            "paid": pa.array(rng.random(rows) < 0.9, mask=rng.random(rows) < 0.1),
            "shop": pa.array(shop, mask=rng.random(rows) < 0.03),
            "at": [start + timedelta(minutes=int(m)) for m in rng.integers(0, 10_000, rows)],
        }
    )


@dataclass(frozen=True)
class Sample:
    """One fit and what it was made from."""

    records: Records
    recipe: Recipe
    fit: Fit

    def part(self, name: str) -> Records:
        """The records of one split."""
        return self.records.take(self.fit.splits[name])

    @property
    def validation(self) -> Records:
        return self.part("validation")

    @cached_property
    def assessment(self) -> Assessment:
        """As the pipeline measures it."""
        detector = self.fit.detector
        known, held_out = (detector.encode(self.part(name)) for name in ("training", "calibration"))
        return assess(detector, known, held_out, seed=0, tell=lambda stage: None)


@cache
def sample(seed: int = 0) -> Sample:
    """Fit the sample records; another ``seed`` gives another detector."""
    records = check(table(), SCHEMA, first_row=0, file="monday.parquet")
    recipe = replace(RECIPE, seed=seed)
    return Sample(records, recipe, fit_detector(records, SCHEMA, recipe))


def monitor(name: str, folder: Path, seed: int = 0) -> MonitorConfig:
    """The monitor's configuration, for the recipe of :func:`sample`."""
    columns = "\n".join(f"  {column!r}: {{kind: {kind}}}" for column, kind in KINDS.items())
    text = f"""name: {name}
source: {{training: training, inbox: inbox}}
record_id: id
columns:
{columns}
split: {{validation: 0.2, calibration: 0.4}}
threshold: {{alpha: 0.05}}
seed: {seed}
"""
    return parse_monitor(text, folder / "monitor.yml")


def mlflow(folder: Path, **env: str) -> MlflowConfig:
    """Everything embedded, below ``folder``, unless environment variables say otherwise."""
    return load_mlflow(None, folder, env)


def without_figures() -> AbstractContextManager[object]:
    """Fits that draw nothing: ten figures take seconds."""
    return mock.patch.object(tracking, "_figures", return_value=())


def register(tracker: Tracker, config: MonitorConfig, of: Sample) -> Registered:
    """Record and register ``of`` as the pipeline does."""
    return tracker.log_fit(
        of.fit,
        monitor=config,
        validation=of.validation,
        assessment=of.assessment,
        data_digests=DIGESTS,
        example=table(5).to_pandas(),
        by=BY,
    )
