"""A first start that is killed among MLflow's migrations leaves nothing that breaks the next one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

START = """
import sys
from pathlib import Path
from vae_anomaly.config import load_mlflow
from vae_anomaly.tracking import Tracker
print("ready", flush=True)
Tracker(load_mlflow(None, Path(sys.argv[1]), {})).initialise()
print("done", flush=True)
"""


def start(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", START, str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("after", [0.2, 0.9])
def test_a_killed_first_start_is_healed_by_the_next(tmp_path, after):
    process = start(tmp_path)
    database = tmp_path / "state" / "mlflow.db"
    part = database.with_name("mlflow.db.part")
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size) and not database.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(after)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    again = start(tmp_path)
    out, err = again.communicate(timeout=120)
    assert out.split() == ["ready", "done"], err
    assert not list(database.parent.glob("*.part*"))
