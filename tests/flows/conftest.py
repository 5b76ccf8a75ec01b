"""One Prefect server and one small monitor for all tests of the flows; Prefect is imported by no test module."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small_monitor import MLFLOW, MONITOR, deliver, table


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of every monitor of the session, with one tracking store."""
    folder: Path = tmp_path_factory.mktemp("flows")
    (folder / "mlflow.yml").write_text(MLFLOW)
    return folder


@pytest.fixture(scope="session")
def open_monitor(place: Path) -> Callable[[str], Any]:
    """``open_monitor(name)``: a new monitor with training records and an empty inbox."""
    from vae_anomaly.workspace import Workspace

    def made(name: str) -> Workspace:
        folder = place / name
        for part in ("training", "inbox"):
            (folder / part).mkdir(parents=True)
        table(500, seed=0).to_csv(folder / "training" / "normal.csv", index=False)
        (folder / "monitor.yml").write_text(MONITOR.format(name=name))
        return Workspace.open(folder)

    return made


@pytest.fixture
def plain() -> Iterator[None]:
    """Fits draw no figures."""
    from tracking_samples import without_figures

    with without_figures():
        yield


@pytest.fixture(scope="session")
def prefect_server(place: Path) -> Iterator[None]:
    """The temporary server that the flows use, started once."""
    from flows.settings import hermetic

    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        del os.environ[name]
    os.environ["PREFECT_API_URL"] = ""  # set, for Prefect also reads it from a file .env in the working folder
    hermetic(place / "state")
    from flows.job import session

    with session():
        yield


@pytest.fixture(scope="session")
def demo(prefect_server: None, open_monitor: Callable[[str], Any]) -> SimpleNamespace:
    """A monitor (``ws``), what the demonstration gave for it (``run``) and what it said meanwhile (``said``)."""
    from flows.demo import run_demo

    ws = open_monitor("small")
    said: list[str] = []
    inbox = ws.monitor.source.inbox
    deliver(inbox, "day-1", seed=1)
    deliver(inbox, "day-2", seed=2, without="b")
    deliver(inbox, "day-3", seed=3)
    return SimpleNamespace(ws=ws, run=run_demo(ws, lambda stage, done, total: said.append(stage)), said=said)
