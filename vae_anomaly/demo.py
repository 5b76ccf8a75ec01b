"""The demonstration: the whole pipeline on a small data set, in a folder of its own.

It is run by ``flows/demo.py``; here is what comes before (the folder) and after (what a person reads).
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vae_anomaly.console import say, say_json, show_score, shown
from vae_anomaly.pipelines import FitOutcome
from vae_anomaly.registry import lookup
from vae_anomaly.scoring import ScoreOutcome
from vae_anomaly.store.commits import Ledger
from vae_anomaly.store.score_files import read_scores
from vae_anomaly.store.sources import open_delivery
from vae_anomaly.worker import read_records
from vae_anomaly.workspace import Workspace

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


def prepare_demo(folder: Path, name: str = "breast_cancer") -> Workspace:
    """Write the records and the two configuration files into ``folder`` (the same bytes each time) and open them.

    Raises
    ------
    ConfigError
        There is no such data set.
    """
    from vae_anomaly.samples import WRITERS

    write, source = lookup("the demonstration", WRITERS, name), folder / name
    if not (source / "monitor.yml").exists():
        write(source)
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
    """AUROC, false alarms and found anomalies over the scored records of committed batches that have labels."""
    from sklearn.metrics import roc_auc_score

    scores, flags, labels = [], [], []
    for commit in Ledger(ws.store).commits():
        path = ws.monitor.source.inbox / commit.name
        if not path.exists() or commit.labelled is None:
            continue
        for table in read_scores(ws.store.root / commit.scores.file):
            scores.append(table["score"].to_numpy(zero_copy_only=False))
            flags.append(table["is_anomaly"].to_numpy(zero_copy_only=False))
        with open_delivery(path, folders=ws.folders) as delivery:
            labels += [records.labels for records in read_records(delivery, ws)]
    score, flag, label = map(np.concatenate, (scores, flags, labels))
    scored = ~np.isnan(score)
    score, flag, label = score[scored], flag[scored], label[scored]
    return Quality(
        float(roc_auc_score(label, score)), int((flag & ~label).sum()), int((~label).sum()), int((flag & label).sum()),
        int(label.sum()))  # fmt: skip


def show_demo(ws: Workspace, run: DemoRun, *, as_json: bool, seconds: float) -> None:
    """Print the table, how good it was, and where to look next."""
    from vae_anomaly.pipelines import last_reports
    from vae_anomaly.scoring import load_champion
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
    expected, low, high = detector.threshold.false_alarms(found.normal)
    inside = "inside" if low <= found.false_alarms <= high else "OUTSIDE"
    say(f"Held-out records: AUROC {found.auroc:.3f}; {found.found} of {found.anomalies} labelled anomalies found; "
        f"{found.false_alarms} of {found.normal} normal records flagged, {inside} the range that the fit promised "
        f"({expected:.1f} expected, 95 % range {low} to {high}).")  # fmt: skip
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
