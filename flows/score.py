"""The flow ``vae-anomaly-score``: score what has arrived in the inbox of one monitor.

==============  ============  ==================================================================================
state           name          when
==============  ============  ==================================================================================
Completed       Completed     every new batch was committed; also when there was none
Completed       Quarantined   a file breaks the contract: a person has to look, another run would not help
Completed       Skipped       the run before is still going: it takes what has arrived since
Failed          Incomplete    a batch could not be read or an alert not delivered; the next run tries again
Failed          Refused       configuration or model: a person has to mend it; nothing was scored
Failed, Crashed               anything else
==============  ============  ==================================================================================

No state holds the next run back, for each run takes its work from what lies in the inbox and the store.
"""

from __future__ import annotations

import os
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.job import alone, failure, from_this_process, in_process, publish, work, worth_a_retry
from flows.server import RUNNER, bind_to_parent
from vae_anomaly import scoring
from vae_anomaly.scoring import ScoreOutcome
from vae_anomaly.workspace import Progress, Workspace, silent


@task(
    name="score",
    retries=1,
    retry_delay_seconds=10,
    retry_condition_fn=worth_a_retry,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def score_task(monitor: str, mlflow: str | None) -> dict[str, Any] | State[Any]:
    """Score; see :func:`vae_anomaly.pipelines.score`."""
    return work(scoring.score if from_this_process() else score_alone, counts, monitor=monitor, mlflow=mlflow)


@flow(name="vae-anomaly-score", persist_result=False, validate_parameters=False)
def score_flow(monitor: str, mlflow: str | None = None) -> Any:
    """Score every batch in the inbox of ``monitor`` (a monitor.yml) that has no committed result."""
    if runner := os.environ.get(RUNNER):
        bind_to_parent(int(runner))
    done = score_task(monitor, mlflow, return_state=True)
    return _final(done.result()) if done.is_completed() else failure(done.name or "Failed", done.message or "")


def score_alone(ws: Workspace, progress: Progress) -> ScoreOutcome | None:
    """Score unless another scheduled run does: None then. The kernel holds the lock, so no dead run can keep it."""
    store = ws.store.prepare(ws.monitor.name)
    return alone(store, store.root, lambda: scoring.score(ws, progress))


def _final(counts: Any) -> State[Any]:
    """The state that an operator should see."""
    if not counts:
        return Completed(name="Skipped", message="the run before is still going and takes what has arrived")
    message = ", ".join(f"{number:,} {what}" for what, number in counts.items() if number) or "nothing in the inbox"
    if counts["failed"] or counts["undelivered"]:
        return failure("Incomplete", message)
    return Completed(name="Quarantined" if counts["quarantined"] else "Completed", message=message)


def run(ws: Workspace, progress: Progress = silent) -> ScoreOutcome:
    """Run the flow in this process."""
    outcome: ScoreOutcome = in_process(score_flow, ws, progress)
    return outcome


def counts(outcome: ScoreOutcome | None) -> dict[str, Any]:
    """What Prefect shows of a scoring run; nothing where it was skipped."""
    if outcome is None:
        return {}
    commits = [b.commit for b in outcome.batches if b.commit]
    verdicts = [b.verdict for b in outcome.batches]
    if outcome.batches:
        monitor = outcome.model.name if outcome.model else "batches"
        publish(f"{monitor}-score", [_row(b) for b in outcome.batches])
    return {
        "committed": len(commits),
        "quarantined": verdicts.count("quarantined"),
        "failed": verdicts.count("failed"),
        "undelivered": len(outcome.undelivered),
        "done before": outcome.already,
        "records": sum(c.rows for c in commits),
        "flagged": sum(c.flagged for c in commits),
    }


def _row(batch: scoring.BatchOutcome) -> dict[str, Any]:
    c, q = batch.commit, batch.quarantine
    return {
        "batch": batch.name,
        "verdict": batch.verdict,
        "records": c.rows if c else None,
        "flagged": c.flagged if c else None,
        "expected": round(c.expected_flagged, 1) if c else None,
        "why": f"{q.rule} {q.column or ''}".strip() if q else batch.problem,
    }
