"""The flow ``vae-anomaly-train``: fit, calibrate and register the candidate of one monitor."""

from __future__ import annotations

from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State

from flows.job import failure, in_process, publish, work
from vae_anomaly import pipelines
from vae_anomaly.pipelines import FitOutcome
from vae_anomaly.workspace import Progress, Workspace, silent


# no retry: the same records and the same seed give the same failure
@task(name="fit", cache_policy=NO_CACHE, persist_result=False)
def fit_task(monitor: str, mlflow: str | None) -> dict[str, Any] | State[Any]:
    """Fit; see :func:`vae_anomaly.pipelines.fit`."""
    return work(pipelines.fit, counts, monitor=monitor, mlflow=mlflow)


@flow(name="vae-anomaly-train", persist_result=False, validate_parameters=False)
def train_flow(monitor: str, mlflow: str | None = None) -> Any:
    """Fit the detector of ``monitor`` (a monitor.yml) and register it as the candidate.

    A user's mistake, or training that diverges, ends as Failed with the name Refused; nothing is registered then.
    """
    done = fit_task(monitor, mlflow, return_state=True)
    if not done.is_completed():
        return failure(done.name or "Failed", done.message or "")
    return done.result()


def run(ws: Workspace, progress: Progress = silent) -> FitOutcome:
    """Run the flow in this process."""
    outcome: FitOutcome = in_process(train_flow, ws, progress)
    return outcome


def counts(outcome: FitOutcome) -> dict[str, Any]:
    """What Prefect shows of a fit."""
    promise = outcome.fit.detector.threshold.promise
    shown = {
        "model": outcome.registered.name,
        "version": outcome.registered.version,
        "registered before": outcome.registered.already,
        "epochs": len(outcome.fit.epochs),
        **{f"{part} records": len(index) for part, index in outcome.fit.splits.items()},
        "unscorable records": outcome.unscorable,
        "false-alarm rate, target": promise.alpha,
        "false-alarm rate, from": promise.low,
        "false-alarm rate, to": promise.high,
    }
    publish(f"{outcome.registered.name}-fit", [{"": name, "value": value} for name, value in shown.items()])
    return shown
