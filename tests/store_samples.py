"""Small stores for tests: batches whose scores, p-values and flags agree, and commits that fit them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from vae_anomaly.errors import DataError
from vae_anomaly.store.commits import Ledger
from vae_anomaly.store.files import INDEX, Store
from vae_anomaly.store.records import (
    BatchRef,
    Commit,
    ModelRef,
    Quarantine,
    ThresholdRef,
    provenance,
    report_ref,
    scores_ref,
)
from vae_anomaly.store.score_files import ScoreFile, ScoreWriter, score_table
from vae_anomaly.store.sources import batch_id

MONITOR, CONTRACT = "payments", "contract-1"
THRESHOLD = ThresholdRef("t-1", 2.0, 0.1)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def batch_ref(name: str, content: bytes) -> BatchRef:
    digest = sha256(content)
    return BatchRef(batch_id(name, digest), name, digest, len(content))


def arrays(rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Arrays for ``score_table``; every fifth row is unscorable, about one of ten others is flagged."""
    generator = np.random.default_rng(seed)
    score = generator.uniform(0, 2.2, rows)
    status = np.full(rows, "ok", dtype=object)
    status[4::5] = "unscorable:non_finite"
    ok = status == "ok"
    score[~ok] = np.nan
    return {
        "record_ids": np.array([f"r{i}" for i in range(rows)], dtype=object),
        "status": status,
        "score": score,
        "p_value": np.where(ok, np.where(score > THRESHOLD.value, 0.05, 0.5), np.nan),
        "is_anomaly": ok & (score > THRESHOLD.value),
    }


def about(name: str, content: bytes, *, model: str = "1") -> dict[str, object]:
    return {
        "dataset": MONITOR,
        "batch": batch_ref(name, content),
        "model": ModelRef("vae-anomaly.payments", model, f"digest-of-model-{model}"),
        "threshold": THRESHOLD,
        "config_digest": "config-1",
        "contract_digest": CONTRACT,
        "code_version": "0.1.0",
    }


def scored(
    store: Store, name: str, content: bytes, *, rows: int = 23, model: str = "1", **changed: object
) -> tuple[Commit, ScoreFile, bytes]:
    """What ``Ledger.commit`` takes; ``changed`` replaces arrays of the score file."""
    whose = about(name, content, model=model)
    batch: BatchRef = whose["batch"]  # type: ignore[assignment]
    values = arrays(rows, seed=len(content) + int(model)) | changed
    with ScoreWriter(store, provenance(**whose)) as writer:  # type: ignore[arg-type]
        writer.write(score_table(batch.id, 0, **values, model_version=model, threshold_version="t-1"))  # type: ignore[arg-type]
        file = writer.close()
    report = (json.dumps({"batch": batch.id, "model": model}) + "\n").encode()
    ok = values["status"] == "ok"
    reasons, counts = np.unique(values["status"][~ok].astype(str), return_counts=True)
    commit = Commit(
        **whose,  # type: ignore[arg-type]
        rows=rows,
        scored=int(ok.sum()),
        unscorable={r.removeprefix("unscorable:"): int(n) for r, n in zip(reasons, counts, strict=True)},
        flagged=int(values["is_anomaly"].sum()),
        expected_flagged=0.1 * float(ok.sum()),
        scores=scores_ref(batch.id, file),
        report=report_ref(batch.id, report),
        alert=True,
    )
    return commit, file, report


def put(store: Store, name: str, content: bytes, **options: object) -> Commit:
    """Commit a batch and return its record."""
    commit, file, report = scored(store, name, content, **options)  # type: ignore[arg-type]
    assert Ledger(store).commit(commit, file, report=report)
    return commit


def refusal(name: str, content: bytes, *, contract: str = CONTRACT) -> Quarantine:
    error = DataError("missing_column", "Expected column 'amount'.", remedy="Add it.", file=name, rows=[1, 2], count=2)
    ref = batch_ref(name, content)
    return Quarantine.of(error, ref, dataset=MONITOR, path=f"inbox/{name}", contract_digest=contract)


def untimed(files: dict[str, str]) -> dict[str, str]:
    """Those files that show no time: all but the overview."""
    return {name: digest for name, digest in files.items() if Path(name).name != INDEX}


def tree(root: Path) -> dict[str, str]:
    """Every file under ``root`` and the sha256 of its content."""
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path.relative_to(root)): sha256(path.read_bytes()) for path in files}
