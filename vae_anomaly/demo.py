"""The demonstration: the whole pipeline on 569 real records, in a folder of its own.

It is run by ``flows/demo.py``; here is what comes before (the folder) and after (what a person reads).
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vae_anomaly.console import say, say_json, show_score, shown
from vae_anomaly.pipelines import FitOutcome, ScoreOutcome, Workspace
from vae_anomaly.store.commits import Ledger
from vae_anomaly.store.score_files import read_scores
from vae_anomaly.store.sources import open_delivery, read_chunks

MLFLOW = """\
# Everything is embedded: SQLite and a folder. See mlflow.yml at the top of the project for all settings.
server: {tracking_uri: "sqlite:///state/mlflow.db", artifact_root: state/artifacts}
"""


@dataclass(frozen=True)
class DemoRun:
    """What the demonstration did; ``fitted`` and ``promoted`` are None where a second run found them done."""

    fitted: FitOutcome | None
    promoted: Any
    scored: ScoreOutcome


def prepare_demo(folder: Path) -> Workspace:
    """Write the records and the two configuration files into ``folder`` (the same bytes each time) and open them."""
    from vae_anomaly.samples import write_breast_cancer

    source = folder / "breast_cancer"
    if not (source / "monitor.yml").exists():
        write_breast_cancer(source)
    mlflow = folder / "mlflow.yml"
    if not mlflow.exists():
        mlflow.write_text(MLFLOW)
    return Workspace.open(source)


@dataclass(frozen=True)
class Quality:
    """How well the labelled held-out records were told apart."""

    auroc: float
    false_alarms: int
    normal: int
    found: int
    anomalies: int


def quality(ws: Workspace) -> Quality:
    """AUROC, false alarms and found anomalies over all committed batches, from the score files and the labels."""
    from sklearn.metrics import roc_auc_score

    assert ws.monitor.label is not None
    scores, flags, labels = [], [], []
    for commit in Ledger(ws.store).commits():
        if not (ws.monitor.source.inbox / commit.name).exists():
            continue
        for table in read_scores(ws.store.root / commit.scores.file):
            scores.append(np.asarray(table["score"]))
            flags.append(np.asarray(table["is_anomaly"]))
        with open_delivery(ws.monitor.source.inbox / commit.name) as delivery:
            chunks = read_chunks(delivery, ws.schema, ws.monitor.source.csv)
            labels += [np.isin(np.asarray(t[ws.monitor.label.column]), ws.monitor.label.anomalous) for t in chunks]
    score, flag, label = map(np.concatenate, (scores, flags, labels))
    return Quality(
        float(roc_auc_score(label, score)), int((flag & ~label).sum()), int((~label).sum()), int((flag & label).sum()),
        int(label.sum()))  # fmt: skip


def show_demo(ws: Workspace, run: DemoRun, *, as_json: bool, seconds: float) -> None:
    """Print the table, how good it was, and where to look next."""
    from vae_anomaly.pipelines import last_reports, load_champion
    from vae_anomaly.tracking import Tracker

    detector, model = load_champion(ws, Tracker(ws.mlflow))
    promise, found = detector.threshold.promise, quality(ws)
    rate = found.false_alarms / found.normal
    if as_json:
        say_json({"auroc": found.auroc, "false_alarm_rate": rate, "false_alarms": found.false_alarms,
                  "normal_records": found.normal, "found": found.found, "anomalies": found.anomalies,
                  "promise": vars(promise), "model_version": model.version, "scored": len(run.scored.batches),
                  "already_done": run.scored.already, "seconds": round(seconds, 1)})  # fmt: skip
        return
    say()
    show_score(ws, run.scored)
    say()
    inside = "inside" if promise.low <= rate <= promise.high else "OUTSIDE"
    say(f"Held-out records: AUROC {found.auroc:.3f}; {found.found} of {found.anomalies} malignant records found; "
        f"{found.false_alarms} of {found.normal} benign ones flagged ({rate:.2%}), {inside} the range that the fit "
        f"promised ({promise.low:.2%} to {promise.high:.2%}).")  # fmt: skip
    say(f"Done in {seconds:.0f} s. Look at a report (the strangest records, and why):")
    for page in last_reports(ws):
        say(f"  {shown(page)}")
    say("and at runs, figures and the model registry:")
    say(f"  {ui_command(ws)}")


def ui_command(ws: Workspace) -> str:
    """The command that opens the MLflow UI on this store."""
    import sys

    ui, program = ws.mlflow.ui, Path(sys.executable).with_name("mlflow")
    words = [shown(program), "ui", "--backend-store-uri", ws.mlflow.server.tracking_uri]
    return shlex.join([*words, "--host", ui.host, "--port", str(ui.port)])
