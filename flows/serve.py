"""A machine that is left running: ``vae-anomaly serve MONITOR...`` scores on each monitor's cron schedule.

Where a monitor asks for it, its detector is also fitted again when that is due, up to the candidate.

The process that the user starts watches two others: Prefect's server (none where PREFECT_API_URL names one) and the
runner, ``python -m flows.serve``, which starts each scheduled run as a process of its own. It ends them, with all that
they started, within ten seconds of a signal, and when one of them ends. What a run leaves unfinished the next one
finishes, so no run is waited for.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from flows.server import RUNNER, local_server, serving_env, start_child, stop_child
from vae_anomaly.config import redacted
from vae_anomaly.console import log_to_stderr
from vae_anomaly.errors import ConfigError
from vae_anomaly.workspace import Workspace

_log = logging.getLogger("flows.serve")
STOP_SECONDS = 6.0
FIRST_CHECK, RECHECK, CHECK_EVERY = 75.0, 10.0, 300.0
HORIZON = timedelta(days=30)  # Prefect creates runs further ahead, so a schedule that is due earlier must have one


# ---- the process that watches ----


def serve_monitors(workspaces: Sequence[Workspace], say: Callable[[str], None]) -> None:
    """Score now, then on every schedule, until a signal comes or a part of it fails.

    Raises
    ------
    ConfigError
        Two monitors share a name or an output folder, or the server does not start.
    SystemExit
        143 after SIGTERM, 1 when the server or the runner ended or no runs are scheduled.
    KeyboardInterrupt
        After SIGINT.
    """
    _distinct(workspaces)
    env, url = serving_env(), os.environ.get("PREFECT_API_URL")
    with _signals(), ExitStack() as parts:
        watched: dict[str, subprocess.Popen[bytes]] = {}
        if not url:
            say("Starting Prefect's server ...")
            server = parts.enter_context(local_server(Path(env["PREFECT_HOME"]), serving=True))
            server.wait()
            url, watched["Prefect's server"] = server.url, server.process
        say(f"Prefect's pages: {redacted(url).removesuffix('/api')}. Ctrl-C ends it.")
        runner = start_child(_runner(workspaces), {**env, "PREFECT_API_URL": url})
        parts.callback(stop_child, runner, seconds=STOP_SECONDS)
        watched["the runner of scheduled runs"] = runner
        for ws in workspaces:
            schedule = ws.monitor.schedule
            say(f"{ws.monitor.name}: scores now and at {schedule.cron!r} ({schedule.timezone}).")
            if asked := _refits(ws):
                say(f"{ws.monitor.name}: is fitted again, as a candidate, where that is due at {' and '.join(asked)}.")
        _watch(watched)


def _distinct(workspaces: Sequence[Workspace]) -> None:
    for what in ("name", "output"):
        values = [str(getattr(ws.monitor, what)) for ws in workspaces]
        if twice := sorted({v for v in values if values.count(v) > 1}):
            raise ConfigError(f"monitors that are served together must differ in {what!r}. Got {twice[0]!r} twice.")


def _runner(workspaces: Sequence[Workspace]) -> list[str]:
    pairs = [f"{ws.monitor.path}\n{ws.mlflow.path or ''}" for ws in workspaces]
    return [sys.executable, "-m", "flows.serve", *pairs]


def _watch(parts: dict[str, subprocess.Popen[bytes]]) -> None:
    """Return never: a signal or the end of a part ends it."""
    while True:
        for name, part in parts.items():
            if (code := part.poll()) is not None:
                _log.error("%s ended with exit code %d; nothing is scored any more", name, code)
                sys.exit(1)
        time.sleep(0.5)


@contextmanager
def _signals() -> Iterator[None]:
    """SIGTERM as an exception, so that the parts are ended; a second signal does not disturb that."""

    def end(number: int, frame: FrameType | None) -> None:
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ---- the runner ----


def run_scheduled(workspaces: Sequence[Workspace]) -> None:
    """Deploy the flow that scores each monitor, and that which fits again where it is asked for; start one run of each,
    and run what the server schedules."""
    from prefect.client.orchestration import get_client
    from prefect.runner import Runner

    from flows.refit import refit_flow
    from flows.score import score_flow

    os.environ[RUNNER] = str(os.getpid())
    # at most one process for each processor, and one for each fit, so that no scores wait for it; two runs of one
    # monitor do not overlap, see flows/score.py
    runner = Runner(name="vae-anomaly", limit=(os.cpu_count() or 1) + sum(bool(_refits(ws)) for ws in workspaces))
    due: dict[UUID, Workspace] = {}
    with get_client(sync_client=True) as client:
        for ws in workspaces:
            about = f"Scores what arrives in {ws.monitor.source.inbox}"
            due[_deployed(client, runner, score_flow, ws, [ws.monitor.schedule.cron], about)] = ws
            if asked := _refits(ws):
                _deployed(client, runner, refit_flow, ws, asked, "Fits again, up to the candidate, where that is due")
    threading.Thread(target=_check_schedules, args=(due,), daemon=True, name="schedules").start()
    asyncio.run(_until_stopped(runner))


def _refits(ws: Workspace) -> list[str]:
    """When it is looked whether a monitor's detector is to be fitted again, as cron fields; never where nothing asks
    for it. A stale calibration is found by the runs that score."""
    how = ws.monitor.refit
    asked = [how.cron, ws.monitor.schedule.cron if how.on_stale else None] if how else []
    return list(dict.fromkeys(cron for cron in asked if cron))


def _deployed(client: Any, runner: Any, flow: Any, ws: Workspace, crons: Sequence[str], about: str) -> UUID:
    """Deploy ``flow`` for a monitor, on these schedules, and start one run of it."""
    from prefect.schedules import Cron
    from prefect.types.entrypoint import EntrypointType

    monitor = ws.monitor
    deployment = flow.to_deployment(
        name=monitor.name,
        schedules=[Cron(cron, timezone=monitor.schedule.timezone) for cron in crons],
        parameters={"monitor": str(monitor.path), "mlflow": str(ws.mlflow.path) if ws.mlflow.path else None},
        paused=False,  # stopping pauses it, so that a server of others creates no runs that nobody takes
        entrypoint_type=EntrypointType.MODULE_PATH,
        description=about,
    )
    found: UUID = runner.add_deployment(deployment)
    _tidy(client, found)
    client.create_flow_run_from_deployment(found, name=f"{monitor.name}-at-start")
    return found


async def _until_stopped(runner: Any) -> None:
    """Run ``runner`` until SIGTERM, which cancels the runs; Prefect's own handler blocks the loop that it waits for."""
    loop = asyncio.get_running_loop()
    runner.handle_sigterm = lambda *_: asyncio.run_coroutine_threadsafe(runner.astop(), loop)
    with suppress(asyncio.CancelledError):
        await runner.start()


def _tidy(client: Any, deployment: UUID) -> None:
    """Delete the runs that were due while nobody served, for the one at the start does their work; end dead ones."""
    from prefect.states import Crashed

    for run in _runs(client, deployment, "SCHEDULED"):
        if run.auto_scheduled and run.expected_start_time <= datetime.now(UTC):
            client.delete_flow_run(run.id)
    for run in _runs(client, deployment, "PENDING", "RUNNING"):
        client.set_flow_run_state(run.id, Crashed(message="vae-anomaly serve ended before it"), force=True)


def _runs(client: Any, deployment: UUID, *states: str) -> list[Any]:
    from prefect.client.schemas.filters import DeploymentFilter, FlowRunFilter

    found: list[Any] = client.read_flow_runs(
        deployment_filter=DeploymentFilter.model_validate({"id": {"any_": [deployment]}}),
        flow_run_filter=FlowRunFilter.model_validate({"state": {"type": {"any_": states}}}),
    )
    return found


def _check_schedules(due: dict[UUID, Workspace]) -> None:
    """End this process, loudly, when the server creates no runs: with some versions it fails to and looks healthy."""
    time.sleep(FIRST_CHECK)
    before: list[str] = []
    while True:
        silent = _silent(due)
        if silent and before:
            _log.error("no run is scheduled for %s: the scheduler of Prefect's server does not work", ", ".join(silent))
            _log.error("install the versions of locks/run.txt: it fails silently with sqlalchemy 2.1, for one")
            os._exit(1)
        before = silent
        time.sleep(RECHECK if silent else CHECK_EVERY)


def _silent(due: dict[UUID, Workspace]) -> list[str]:
    from prefect.client.orchestration import get_client

    try:
        with get_client(sync_client=True) as client:
            return [ws.monitor.name for found, ws in due.items() if _is_silent(client, found, ws)]
    except Exception as error:
        _log.warning("the schedules could not be checked (%s: %s)", type(error).__name__, error)
        return []


def _is_silent(client: Any, deployment: UUID, ws: Workspace) -> bool:
    """Whether a schedule that is due soon has no coming run."""
    from cronsim import CronSim

    now, schedule = datetime.now(UTC), ws.monitor.schedule
    following = next(CronSim(schedule.cron, now.astimezone(ZoneInfo(schedule.timezone))), None)
    if following is None or following - now > HORIZON:
        return False
    return not any(r.auto_scheduled and r.expected_start_time > now for r in _runs(client, deployment, "SCHEDULED"))


def main(arguments: Sequence[str]) -> None:
    """The runner's process; an argument is a monitor's file and its mlflow file, or nothing, on two lines."""
    log_to_stderr(logging.WARNING)
    pairs = [argument.split("\n") for argument in arguments]
    try:
        run_scheduled([Workspace.open(monitor, mlflow or None) for monitor, mlflow in pairs])
    except Exception as error:
        url, debug = redacted(os.environ.get("PREFECT_API_URL", "")), bool(os.environ.get("VAE_ANOMALY_DEBUG"))
        _log.error("with Prefect's server at %s: %s: %s", url, type(error).__name__, error, exc_info=debug)
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
