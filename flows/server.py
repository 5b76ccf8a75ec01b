"""A Prefect server as a child of this process: on the loopback interface only, and it never outlives its parent.

Prefect's own temporary server is left running when its parent is killed, and it starts only when the first flow asks
for it; this one starts while other things are imported.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from flows.settings import TEMPORARY
from vae_anomaly.errors import ConfigError

HOST, PORT = "127.0.0.1", 4200
START_SECONDS = 180.0
RUNNER = "VAE_ANOMALY_RUNNER_PID"  # the process whose end also ends the scheduled runs that it started
_PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


def bind_to_parent(parent: int) -> None:
    """Have the kernel kill this process when ``parent`` ends in whatever way; only Linux can."""
    if _prctl is not None:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it ended before the kernel was asked
            os._exit(1)


def start_child(command: Sequence[str], env: Mapping[str, str], log: Path | None = None) -> subprocess.Popen[bytes]:
    """Start ``command`` in a session of its own, so that Ctrl-C reaches only us and we can end it with its children."""
    parent = os.getpid()
    with open(log or os.devnull, "wb") as file:
        output = file if log else None
        return subprocess.Popen(  # noqa: S603 - our own commands
            command,
            # nothing is imported from the folder that the user stands in
            env={**env, "PYTHONSAFEPATH": "1"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=lambda: bind_to_parent(parent),
        )


def stop_child(child: subprocess.Popen[bytes], *, seconds: float) -> None:
    """Ask ``child`` to end, wait, then kill what is left of it and of all that it started."""
    child.terminate()
    with suppress(subprocess.TimeoutExpired):
        child.wait(seconds)
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


@dataclass(frozen=True)
class LocalServer:
    """A starting or running server; ``url`` is what ``PREFECT_API_URL`` takes."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def wait(self, *, seconds: float = START_SECONDS) -> None:
        """Return when it answers.

        Raises
        ------
        ConfigError
            It ended, or did not answer in time.
        """
        deadline = time.monotonic() + seconds
        while not self._answers():
            ended = self.process.poll()
            if ended is not None or time.monotonic() > deadline:
                got = f"exit code {ended}" if ended is not None else f"no answer within {seconds:g} s"
                raise ConfigError(
                    f"Prefect's server must start. Got {got}. See {str(self.log)!r}; set PREFECT_API_URL to use another"
                    " server, or use the command without Prefect."
                )
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:  # noqa: S310 - our own address
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


@contextmanager
def local_server(home: Path, *, serving: bool = False) -> Iterator[LocalServer]:
    """Start a server with its database in ``home`` and stop it at the end; call ``wait()`` before it is used.

    With ``serving`` it schedules runs and shows its pages, on port 4200 where that is free; else it only records.
    """
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    port, log = _free_port(PORT if serving else 0), home / "server.log"
    env = {"PREFECT_SERVER_LOGGING_LEVEL": "WARNING", **serving_env()} if serving else {**os.environ, **TEMPORARY}
    env |= {"PREFECT_HOME": str(home), "PREFECT_API_URL": f"http://{HOST}:{port}/api"}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)]
    process = start_child(command, env, log)
    try:
        yield LocalServer(process, env["PREFECT_API_URL"], log)
    finally:
        stop_child(process, seconds=2.0)


def serving_env() -> dict[str, str]:
    """The environment without what :mod:`flows.settings` sets for temporary servers, which schedule nothing."""
    env = {name: value for name, value in os.environ.items() if TEMPORARY.get(name) != value}
    # one line when a run begins and one, with the counts, when it ends
    lines = {"PREFECT_LOGGING_LOGGERS_PREFECT_FLOW_RUNS_LEVEL": "INFO"}
    # else what Prefect remembers of runs grows without bound
    return lines | {"PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs"} | env


def _free_port(wanted: int) -> int:
    """``wanted`` where it is free, else any free port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, wanted))
        except OSError:
            probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
