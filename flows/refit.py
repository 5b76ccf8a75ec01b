"""The flow ``vae-anomaly-refit``: fit again to the last batches of one monitor, where that is due, up to the candidate.

==============  ============  ==================================================================================
state           name          when
==============  ============  ==================================================================================
Completed       Completed     a candidate is registered and reviewed; a person decides
Completed       Not due       nothing asks for it; the message says why
Completed       Skipped       the refit before is still going
Failed          Refused       configuration, records or training: nothing was registered
Failed, Crashed               anything else; the next run that is due begins again
==============  ============  ==================================================================================

It is a run of its own beside those that score, waits for none of them and holds none back.
"""

from __future__ import annotations

import os
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows import train
from flows.job import alone, failure, in_process, work
from flows.server import RUNNER, bind_to_parent
from vae_anomaly.refit import Due, Refit, refit_if_due
from vae_anomaly.workspace import Progress, Workspace, silent

NICENESS = 10  # of a run that nobody waits for


# no retry: the same records and the same seed give the same failure
@task(name="refit", cache_policy=NO_CACHE, persist_result=False)
def refit_task(monitor: str, mlflow: str | None) -> dict[str, Any] | State[Any]:
    """Fit again where that is due; see :func:`vae_anomaly.refit.refit_if_due`."""
    return work(refit_alone, counts, monitor=monitor, mlflow=mlflow)


@flow(name="vae-anomaly-refit", persist_result=False, validate_parameters=False)
def refit_flow(monitor: str, mlflow: str | None = None) -> Any:
    """Fit the detector of ``monitor`` (a monitor.yml) again where that is due; no champion changes."""
    if runner := os.environ.get(RUNNER):
        bind_to_parent(int(runner))
        os.nice(NICENESS)
    done = refit_task(monitor, mlflow, return_state=True)
    if not done.is_completed():
        return failure(done.name or "Failed", done.message or "")
    found: Any = done.result()
    return Completed(name=found["state"], message=found["message"])


def refit_alone(ws: Workspace, progress: Progress) -> Refit | Due | None:
    """Fit again where that is due, unless another run does: None then. The kernel holds the lock."""
    store = ws.store.prepare(ws.monitor.name)
    return alone(store, store.incidents, lambda: refit_if_due(ws, progress))


def run(ws: Workspace, progress: Progress = silent) -> Refit | Due | None:
    """Run the flow in this process."""
    outcome: Refit | Due | None = in_process(refit_flow, ws, progress)
    return outcome


def counts(outcome: Refit | Due | None) -> dict[str, Any]:
    """What Prefect shows of a refit: the name of the state and its message."""
    if outcome is None:
        return {"state": "Skipped", "message": "the refit before is still going"}
    if isinstance(outcome, Due):
        return {"state": "Not due", "message": outcome.why}
    if outcome.fitted:
        train.counts(outcome.fitted)
    return {"state": "Completed", "message": f"version {outcome.version} is the candidate; {outcome.gates}"}
