"""The demonstration: the train flow, a review and a promotion, then the score flow, with one Prefect server."""

from __future__ import annotations

from flows import score, train
from flows.job import session
from vae_anomaly import pipelines
from vae_anomaly.decisions import Decision
from vae_anomaly.demo import DemoRun
from vae_anomaly.errors import ArtifactError, ReviewError
from vae_anomaly.pipelines import FitOutcome
from vae_anomaly.tracking import Tracker
from vae_anomaly.workspace import Progress, Workspace


def run_demo(ws: Workspace, progress: Progress) -> DemoRun:
    """Fit, review, promote and score; what a run before has done is found done, and scored batches stay as they are.

    Raises
    ------
    ReviewError
        A gate does not hold; nothing is promoted or scored.
    """
    with session(progress):
        fitted = train.run(ws, progress)
        promoted = _promote(ws, fitted, progress)
        return DemoRun(fitted, promoted, score.run(ws, progress))


def _promote(ws: Workspace, fitted: FitOutcome, progress: Progress) -> Decision | None:
    """Review and promote what was fitted, unless it is the champion already."""
    if fitted.registered.already and _champion(ws) == fitted.registered.digest:
        return None
    progress("reviewing", 0, 1)
    review = pipelines.review(ws)
    if not review.passed:
        failed = ", ".join(gate.name for gate in review.gates if not gate.passed)
        raise ReviewError(f"the demonstration's detector must pass its review. Got gates that do not hold: {failed}.")
    return pipelines.promote(ws, by="vae-anomaly demo")


def _champion(ws: Workspace) -> str | None:
    try:
        return Tracker(ws.mlflow).resolve(ws.monitor.name).digest
    except ArtifactError:
        return None
