"""Fixtures of several files: a small table of every kind of column, and detectors fitted to it.

Nothing heavy is imported before a test asks for it, and every random number comes from a fixed seed.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a second thread only waits where several things run at a time

SMALL = {"hidden": (32, 16), "latent": 4}


@pytest.fixture(scope="session")
def schema() -> Any:
    """The contract of :func:`make_table`."""
    from vae_anomaly.schema import Column, Schema

    kinds = {"a": "number", "b": "number", "amount": "number", "at": "timestamp", "flag": "boolean", "shop": "category"}
    return Schema(tuple(Column(name, kind) for name, kind in kinds.items()), record_id="id")


@pytest.fixture(scope="session")
def make_table() -> Callable[..., Any]:
    """``make_table(rows, seed, holes=share of missing cells)``: b follows a, amounts are skewed, shops are rare."""
    import numpy as np
    import pyarrow as pa

    def table(rows: int, seed: int = 0, holes: float = 0.02) -> pa.Table:
        g = np.random.default_rng(seed)
        a = g.normal(size=rows)
        seconds = g.integers(0, 28 * 86_400, rows)
        columns = {
            "a": a,
            "b": 2 * a + 0.3 * g.normal(size=rows),
            "amount": np.exp(3 + 0.5 * g.normal(size=rows)),
            "at": np.datetime64("2026-01-05", "us") + (seconds * 1_000_000).astype("timedelta64[us]"),
            "flag": g.random(rows) < 0.3,
            "shop": g.choice(np.array(["north", "south", "east"], dtype=object), rows, p=[0.7, 0.25, 0.05]),
        }
        cells = {name: pa.array(values, mask=g.random(rows) < holes) for name, values in columns.items()}
        cells["at"] = cells["at"].cast(pa.timestamp("us", "UTC"))
        return pa.table({"id": [f"r{i}" for i in range(rows)], **cells})

    return table


@pytest.fixture(scope="session")
def make_records(make_table: Callable[..., Any], schema: Any) -> Callable[..., Any]:
    """:func:`make_table` after the data contract."""
    from vae_anomaly.schema import check

    return lambda *args, **options: check(make_table(*args, **options), schema, first_row=0, file="test")


@pytest.fixture(scope="session")
def fitted(make_records: Callable[..., Any], schema: Any) -> Callable[..., Any]:
    """``fitted(score, seed, holes=share of missing training cells)``: the fit of a small detector, made once."""
    from score_samples import CHEAP

    from vae_anomaly.detector import Part
    from vae_anomaly.fitting import Recipe, fit_detector

    @functools.cache
    def fit(score: str = "latent_neighbours", seed: int = 0, holes: float = 0.02) -> Any:
        recipe = Recipe(
            model=Part("mlp", SMALL),
            score=Part(score, CHEAP.get(score, {})),
            training={"steps": 150},
            threshold=Part("conformal", {"alpha": 0.05}),
            validation=0.15,
            calibration=0.35,
            seed=seed,
        )
        return fit_detector(make_records(900, holes=holes), schema, recipe)

    return fit


@pytest.fixture
def detector(fitted: Callable[..., Any]) -> Any:
    """The default detector of :func:`fitted`."""
    return fitted().detector
