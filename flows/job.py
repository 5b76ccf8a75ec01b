"""How a flow calls a function of the pipelines: from a schedule with paths, from this process with values.

Prefect sees small dictionaries only. Whoever runs a flow from this process gets the pipelines' own outcome, and the
error itself, as without Prefect.
"""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from prefect import Flow, Task
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State, TaskRun
from prefect.exceptions import FailedRun
from prefect.logging import disable_run_logger
from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, PREFECT_HOME, temporary_settings
from prefect.states import Failed

from flows.server import local_server
from vae_anomaly.errors import ConfigError, VaeAnomalyError
from vae_anomaly.store.files import Busy, Store
from vae_anomaly.workspace import Progress, Workspace, silent

_log = logging.getLogger(__name__)
T = TypeVar("T")
REFUSED = "Refused"


@dataclass
class Call:
    """A call from this process: what the flow is to work on, and what came of it."""

    ws: Workspace
    progress: Progress
    outcome: Any = None
    error: Exception | None = None


_call: ContextVar[Call | None] = ContextVar("vae_anomaly_call", default=None)


def from_this_process() -> bool:
    """Whether the flow was called by :func:`in_process`."""
    return _call.get() is not None


def work(
    function: Callable[[Workspace, Progress], T],
    summary: Callable[[T], dict[str, Any]],
    *,
    monitor: str,
    mlflow: str | None,
) -> dict[str, Any] | State[Any]:
    """The summary of what ``function`` gives; a user's mistake as a failed state named Refused, without a traceback."""
    call = _call.get()
    try:
        if call is None:
            return summary(function(Workspace.open(monitor, mlflow), silent))
        call.outcome, call.error = function(call.ws, call.progress), None
        return summary(call.outcome)
    except Exception as error:
        if call is not None:
            call.error = error
        if isinstance(error, VaeAnomalyError):
            return Failed(name=REFUSED, message=str(error))
        raise


def alone(store: Store, folder: Path, function: Callable[[], T]) -> T | None:
    """What ``function`` gives, holding the lock of a ``folder``; None where another process holds it."""
    with ExitStack() as held:
        try:
            held.enter_context(store.lock(folder, patience=0))
        except Busy:
            return None
        return function()


def failure(name: str, message: str) -> State[Any]:
    """A failed state for a flow to return, which says all: Prefect's engine would add a traceback of itself."""
    logging.getLogger("prefect.flow_runs").addFilter(_says_more)
    return Failed(name=name, message=message)


def _says_more(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], FailedRun))


def worth_a_retry(task: Task[Any, Any], run: TaskRun, state: State[Any]) -> bool:
    """A full disk or a locked database may heal in a minute; what the user has to mend does not."""
    return state.name != REFUSED


def publish(monitor: str, rows: list[dict[str, Any]]) -> None:
    """Show ``rows`` as a table in Prefect's pages, where that works."""
    try:
        key = re.sub(r"[^a-z0-9-]+", "-", f"vae-anomaly-{monitor.lower()}")
        create_table_artifact(rows[:100], key=key, description=monitor)
    except Exception as error:
        _log.debug("no artifact for %s: %s", monitor, error)


def in_process(flow: Flow[[str, str | None], Any], ws: Workspace, progress: Progress = silent) -> Any:
    """Run ``flow`` here and give the pipelines' outcome, or raise their error."""
    call, mlflow = Call(ws, progress), ws.mlflow.path
    token = _call.set(call)
    try:
        with session(progress), disable_run_logger():
            flow(str(ws.monitor.path), str(mlflow) if mlflow else None, return_state=True)
    except VaeAnomalyError:
        raise
    except Exception as error:  # not the work's: those end in a state
        if call.outcome is None and call.error is None:
            raise ConfigError(
                f"Prefect must be able to run a flow, on the server of PREFECT_API_URL where that is set. Got"
                f" {type(error).__name__}: {error}. Start that server, or run without --flow."
            ) from error
        _log.warning("Prefect has no record of how this ended (%s: %s)", type(error).__name__, error)
    finally:
        _call.reset(token)
    if call.error:
        raise call.error
    return call.outcome


@contextmanager
def session(progress: Progress = silent) -> Iterator[None]:
    """A Prefect server for the flows in the block: that of PREFECT_API_URL, or a temporary one."""
    if PREFECT_API_URL.value():
        yield
        return
    progress("starting Prefect", 0, 1)
    with local_server(PREFECT_HOME.value()) as server:
        # what the pipelines import anyway; it takes as long as the server does
        for module in ("vae_anomaly.tracking", "vae_anomaly.fitting"):
            importlib.import_module(module)
        server.wait()
        # the heartbeat is for those who watch a lasting server, and costs a second for each flow
        with temporary_settings({PREFECT_API_URL: server.url, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
            yield
