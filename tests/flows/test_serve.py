"""``vae-anomaly serve`` on a real server: scheduled runs commit, nobody else can connect, nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small_monitor import deliver
from system_samples import listening

from vae_anomaly.errors import ConfigError

ROOT = Path(__file__).parents[2]
linux = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes and sockets in /proc")


class Served:
    """A running ``vae-anomaly serve`` and all processes that came of it, known by a mark in their environment."""

    def __init__(self, ws: Any, state: Path) -> None:
        self.mark = uuid.uuid4().hex
        env = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT", "MLFLOW"))}
        env |= {"PYTHONPATH": str(ROOT), "PREFECT_HOME": str(state), "VAE_TEST_MARK": self.mark}
        command = [sys.executable, "-m", "vae_anomaly.cli", "serve", str(ws.monitor.path)]
        self.output = state.with_suffix(".log")
        with self.output.open("wb") as log:
            self.process = subprocess.Popen(command, env=env, stdout=log, stderr=log)

    def said(self) -> str:
        return self.output.read_text()

    def until(self, holds: Callable[[], Any], seconds: float) -> Any:
        """What ``holds`` gives as soon as it is true."""
        deadline = time.monotonic() + seconds
        while not (found := holds()):
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.2)
        return found

    def runs(self) -> list[dict[str, Any]]:
        """The flow runs that the server knows."""
        url = self.said().split("Prefect's pages: ")[1].split(". ")[0] + "/api/flow_runs/filter"
        request = urllib.request.Request(url, data=b"{}", headers={"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return list(json.load(answer))

    def processes(self) -> list[Path]:
        """Those that are alive, in /proc."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and self.mark.encode() in (entry / "environ").read_bytes():
                    found.append(entry)
            except OSError:
                continue
        return found

    def listening(self) -> list[str]:
        """The local addresses, as /proc/net writes them, on which any of the processes listens."""
        return listening(int(entry.name) for entry in self.processes())

    def ends(self, number: int, *, within: float) -> int:
        """The exit code after a signal; nothing may be left soon after.

        A run that was just being started ends when it has imported what binds it to the runner: seconds, on a busy
        machine many.
        """
        self.process.send_signal(number)
        code = self.process.wait(within)
        deadline = time.monotonic() + 60
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert left == []
        return code


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prefect's folder, shared: making its database takes seconds."""
    made: Path = tmp_path_factory.mktemp("served")
    return made


@pytest.fixture
def serve(home: Path) -> Iterator[Callable[[Any], Served]]:
    started: list[Served] = []

    def start(ws: Any) -> Served:
        started.append(Served(ws, home / "prefect"))
        return started[-1]

    yield start
    for served in started:
        served.process.kill()


def committed(ws: Any, batch: str) -> bool:
    return bool(list(ws.store.commits.glob(f"{batch}-*.json")))


@linux
@pytest.mark.timeout(420)
def test_a_scheduled_run_commits_and_nothing_is_left(demo: Any, serve: Callable[[Any], Served]) -> None:
    ws = demo.ws
    deliver(ws.monitor.source.inbox, "while-nobody-served", seed=11)
    served = serve(ws)
    served.until(lambda: committed(ws, "while-nobody-served"), 150)
    # the run at the start is over, and every other one is a scheduled one
    served.until(lambda: [r["state_type"] for r in served.runs() if not r["auto_scheduled"]] == ["COMPLETED"], 60)
    deliver(ws.monitor.source.inbox, "while-serving", seed=12)
    served.until(lambda: committed(ws, "while-serving"), 150)
    assert [run for run in served.runs() if run["auto_scheduled"] and run["start_time"]]
    assert served.listening()
    assert all(address.startswith("0100007F:") for address in served.listening())
    assert served.ends(signal.SIGTERM, within=12) == 143
    assert "Traceback" not in served.said()


@linux
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_signal_in_the_middle_of_a_run_ends_all_and_loses_nothing(
    demo: Any, serve: Callable[[Any], Served], number: int, code: int
) -> None:
    from vae_anomaly import scoring

    ws, batch = demo.ws, f"signal-{number}"
    deliver(ws.monitor.source.inbox, batch, seed=20 + number)
    served = serve(ws)
    served.until(lambda: "Beginning flow run" in served.said(), 150)
    assert len(served.processes()) >= 3
    assert served.ends(number, within=10) == code
    scoring.score(ws)
    assert committed(ws, batch)


# ---- the silent scheduler ----


def scheduled(at: datetime) -> SimpleNamespace:
    return SimpleNamespace(auto_scheduled=True, expected_start_time=at)


NOW = datetime.now(UTC)


@pytest.mark.parametrize(
    ("cron", "runs", "silent"),
    [
        ("* * * * *", [], True),
        ("* * * * *", [scheduled(NOW - timedelta(minutes=5))], True),
        ("* * * * *", [scheduled(NOW + timedelta(days=1))], False),
        (f"0 0 1 {(NOW.month + 5) % 12 + 1} *", [], False),  # due later than is looked for
    ],
)
def test_a_schedule_without_a_coming_run_is_noticed(
    cron: str, runs: list[Any], silent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows import serve

    ws: Any = SimpleNamespace(monitor=SimpleNamespace(schedule=SimpleNamespace(cron=cron, timezone="Europe/Berlin")))
    monkeypatch.setattr(serve, "_runs", lambda client, deployment, *states: runs)
    assert serve._is_silent(None, uuid.uuid4(), ws) is silent


def test_a_silent_scheduler_ends_the_runner_loudly(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from flows import serve

    slept: list[float] = []
    answers = iter([["payments"], [], ["payments"], ["payments"]])
    monkeypatch.setattr(serve, "_silent", lambda due: next(answers))
    monkeypatch.setattr(serve.time, "sleep", slept.append)
    monkeypatch.setattr(serve.os, "_exit", sys.exit)
    with pytest.raises(SystemExit) as ended:
        serve._check_schedules({})
    assert ended.value.code == 1
    assert "no run is scheduled for payments" in caplog.text
    assert sum(slept[:2]) < 90


def test_monitors_that_would_mix_are_refused(demo: Any) -> None:
    from flows.serve import serve_monitors

    with pytest.raises(ConfigError, match="must differ in 'name'"):
        serve_monitors([demo.ws, demo.ws], print)
