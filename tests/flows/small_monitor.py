"""A small monitor: its configuration, its records, and how a batch arrives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

MONITOR = """\
name: {name}
source: {{training: training, inbox: inbox, settle_seconds: 0}}
record_id: id
columns: {{a: {{kind: number}}, b: {{kind: number}}, shop: {{kind: category}}}}
split: {{validation: 0.2, calibration: 0.4}}
model: {{kind: mlp, hidden: [16], latent: 2}}
training: {{steps: 150}}
threshold: {{method: conformal, alpha: 0.05}}
schedule: {{cron: "* * * * *", timezone: Europe/Berlin}}
sinks: [{{kind: file}}]
execution: {{engine: inline}}
"""
MLFLOW = "registry: {review: {gates: {min_corruption_recall: 0, max_false_alarm_ratio: 20}}}\n"


def table(rows: int, seed: int) -> pd.DataFrame:
    """Records in which b follows a."""
    g = np.random.default_rng(seed)
    a = g.normal(size=rows)
    shop = g.choice(["north", "south"], rows)
    b = 2 * a + 0.3 * g.normal(size=rows)
    return pd.DataFrame({"id": [f"r{i}" for i in range(rows)], "a": a, "b": b, "shop": shop})


def deliver(inbox: Path, name: str, *, rows: int = 40, seed: int = 1, without: str | None = None) -> None:
    """Put a batch into the inbox in one step, perhaps with a column missing."""
    part = inbox / f".{name}.part"
    frame = table(rows, seed)
    (frame.drop(columns=without) if without else frame).to_csv(part, index=False)
    part.rename(inbox / f"{name}.csv")
