"""How well the defaults tell records apart, on the two sample data sets; floors below what was measured."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from vae_anomaly.batch import Records, concatenate
from vae_anomaly.fitting import fit_detector
from vae_anomaly.pipelines import read_training
from vae_anomaly.schema import check
from vae_anomaly.store.sources import open_delivery, read_chunks
from vae_anomaly.workspace import Workspace

DATA = Path(__file__).parents[2] / "data"
BATCHES = {
    "breast_cancer": ["2026-01-05.parquet", "2026-01-06.parquet", "2026-01-07.parquet"],
    "payments": ["2026-01-05.parquet", "2026-01-06.csv", "2026-01-07.jsonl"],
}


def held_out(ws: Workspace, names: list[str]) -> Records:
    parts = []
    for name in names:
        with open_delivery(ws.monitor.source.inbox / name) as delivery:
            tables = read_chunks(delivery, ws.schema, ws.monitor.source.csv)
            parts += [check(table, ws.schema, first_row=0, file=name) for table in tables]
    return concatenate(parts)


# measured: breast cancer 0.975 (0.972 to 0.981 over four seeds), payments 0.964
@pytest.mark.parametrize(
    ("name", "floor"), [("breast_cancer", 0.97), pytest.param("payments", 0.94, marks=pytest.mark.slow)]
)
def test_held_out_records_are_told_apart_and_false_alarms_keep_the_promise(name, floor):
    ws = Workspace.open(DATA / name)
    detector = fit_detector(read_training(ws).records, ws.schema, ws.recipe).detector
    records = held_out(ws, BATCHES[name])
    found = detector.detect(records)
    assert records.scorable.all()
    assert roc_auc_score(records.labels, found.score) >= floor
    flagged, normal = int(found.is_anomaly[~records.labels].sum()), int((~records.labels).sum())
    _, low, high = detector.threshold.false_alarms(normal)
    assert low <= flagged <= high


def test_shuffled_labels_are_not_told_apart():
    """The known-bad twin: what is measured above is not an artefact of the measurement."""
    ws = Workspace.open(DATA / "breast_cancer")
    recipe = dataclasses.replace(ws.recipe, training={"steps": 200})
    detector = fit_detector(read_training(ws).records, ws.schema, recipe).detector
    records = held_out(ws, BATCHES["breast_cancer"])
    shuffled = np.random.default_rng(0).permutation(records.labels)
    assert 0.4 < roc_auc_score(shuffled, detector.detect(records).score) < 0.6
