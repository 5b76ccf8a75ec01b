"""Stores with batches of every state, whose reports are real and whose records have the times that are asked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from store_samples import THRESHOLD, refusal, scored

from vae_anomaly.report.html import to_html
from vae_anomaly.report.model import ColumnQuality, Report, Shift
from vae_anomaly.report.overview import STATES
from vae_anomaly.store.commits import Ledger
from vae_anomaly.store.files import Store
from vae_anomaly.store.records import Attempts, Commit, report_ref, scores_ref
from vae_anomaly.store.sources import batch_id

START, DAY = 1_767_592_800, 86_400  # 2026-01-05, 06:00 UTC


def report_of(commit: Commit, **fields: object) -> Report:
    """A report that fits a commit."""
    expected = 0.05 * commit.scored
    values = {
        "monitor": commit.dataset,
        "batch_id": commit.batch_id,
        "batch_name": commit.name,
        "batch_sha256": commit.sha256,
        "rows": commit.rows,
        "scored": commit.scored,
        "unscorable": commit.unscorable,
        "flagged": commit.flagged,
        "expected_flagged": expected,
        "flagged_range": (int(expected / 3), int(2 * expected + 2)),
        "batch_p_value": 0.3,
        "alpha": 0.05,
        "alpha_range": (0.02, 0.09),
        "threshold_value": THRESHOLD.value,
        "calibration_records": 100,
        "score_name": "surprisal",
        "columns": (ColumnQuality("amount", "number", missing=0.03), ColumnQuality("shop", "category")),
    }
    return Report(**values | fields)  # type: ignore[arg-type]


def scored_batch(
    store: Store, day: float, name: str, *, rows: int = 60, flagged: int = 3, unscorable: int = 0, model: str = "1",
    threshold: str = THRESHOLD.version, page: bool = True, content: bytes = b"", **fields: object,
) -> Commit:  # fmt: skip
    """Commit a batch of the day ``day``, with a page where the report has something to say; over its last commit."""
    status = np.full(rows, "ok", dtype=object)
    status[rows - unscorable :] = "unscorable:non_finite"
    score = np.where(status == "ok", 1.0, np.nan)
    score[:flagged] = 2.1
    made = {
        "record_ids": np.array([f"r{i}" for i in range(rows)], dtype=object),
        "status": status,
        "score": score,
        "p_value": np.where(status == "ok", np.where(score > THRESHOLD.value, 0.05, 0.5), np.nan),
        "is_anomaly": score > THRESHOLD.value,
    }
    commit, file, _ = scored(store, name, content or name.encode(), rows=rows, model=model, **made)
    if before := Ledger(store).committed(commit.sha256):
        id = batch_id(name, commit.sha256, again=len(Ledger(store).commits_of(commit.sha256)))
        commit = replace(commit, batch=replace(commit.batch, id=id), supersedes=before.batch_id)
    report = report_of(commit, **fields)
    content = report.to_json().encode()
    commit = replace(
        commit,
        scores=scores_ref(commit.batch_id, file),
        report=report_ref(commit.batch_id, content),
        threshold=replace(THRESHOLD, version=threshold) if threshold != THRESHOLD.version else THRESHOLD,
        expected_flagged=report.expected_flagged,
        drifted=report.drifted,
        alert=report.has_something_to_say,
    )
    assert Ledger(store).commit(commit, file, report=content, again=True)
    if page and commit.alert:
        store.replace(to_html(report).encode(), store.reports / f"{commit.batch_id}.html")
    written(store.commits / f"{commit.batch_id}.json", day)
    return commit


def refused_batch(store: Store, day: float, name: str) -> None:
    record = refusal(name, name.encode())
    assert Ledger(store).quarantine(record)
    written(store.quarantine / f"{record.batch_id}.json", day)


def failed_batch(store: Store, day: float, name: str) -> None:
    record = refusal(name, name.encode())
    attempt = Attempts(record.batch_id, name, record.sha256, record.contract_digest, 1, "its worker ended by itself.")
    Ledger(store).attempted(attempt)
    written(store.attempts / f"{record.batch_id}.json", day)


def written(path: Path, day: float) -> None:
    """As if a record had been written on that day."""
    moment = int((START + day * DAY) * 1e9)
    os.utime(path, ns=(moment, moment))


SHIFT = Shift("amount", 0.62, 1e-20, "median 1,204", "median 41")
KINDS: dict[str, dict[str, object]] = {
    "shifted": {"flagged": 31, "batch_p_value": 1e-20, "shifts": (SHIFT, replace(SHIFT, column="fee", distance=0.4))},
    "mostly": {"flagged": 52, "batch_p_value": 1e-30},
    "far_more": {"flagged": 17, "batch_p_value": 1e-8},
    "more": {"flagged": 9, "batch_p_value": 0.01},
    "fewer": {"flagged": 0, "flagged_range": (1, 8)},
    "unscored": {"flagged": 0, "unscorable": 41, "flagged_range": (0, 4)},
    "empty": {"rows": 0, "flagged": 0, "flagged_range": (0, 0)},
    "warned": {"columns": (ColumnQuality("amount", "number", 0.3, warning="30.0% of the cells are missing."),)},
    "usual": {"flagged": 3},
    "quiet": {"flagged": 0, "flagged_range": (0, 5)},
}


def every_kind(folder: Path, states: Sequence[str] = tuple(STATES)) -> Store:
    """A store with a batch of each of these states, in this order, a day apart; ``unjudged`` has lost its report."""
    store = Store(folder).prepare("payments")
    for day, state in enumerate(states):
        name = f"day-{day:03}.csv"
        if state == "quarantined":
            refused_batch(store, day, name)
        elif state == "failed":
            failed_batch(store, day, name)
        else:
            commit = scored_batch(store, day, name, **KINDS.get(state, {}))  # type: ignore[arg-type]
            if state == "unjudged":
                for suffix in (".json", ".html"):
                    (store.reports / f"{commit.batch_id}{suffix}").unlink()
    return store
