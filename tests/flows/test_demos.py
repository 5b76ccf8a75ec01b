"""The demonstrations of the README and of docs/pictures.md, each as its one command, by the installed program.

A table with a context, images and text: fitted, reviewed, promoted, scored and reported on, and looked into.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from pipeline_samples import PROGRAM

ROOT = Path(__file__).parents[2]
PICTURES = (ROOT / "docs" / "pictures.md").read_text()
LEAST = {"digits": (0.97, "250"), "logs": (0.95, "300"), "regions": (0.99, "1000")}  # AUROC, and steps of training


def commands() -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```$", PICTURES, re.M | re.S)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def run(command: str, folder: Path, steps: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("VAE_ANOMALY_", "MLFLOW_", "PREFECT_"))}
    more: Mapping[str, str] = {
        "PATH": f"{PROGRAM.parent}{os.pathsep}{os.environ['PATH']}",
        "VAE_ANOMALY_MONITOR__TRAINING__STEPS": steps,
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, env=clean | dict(more), capture_output=True, text=True, timeout=280,
        check=False,
    )  # fmt: skip


def test_the_pictures_name_every_demonstration() -> None:
    assert {line.split()[2] for line in commands() if line.startswith("vae-anomaly demo ")} == set(LEAST)


@pytest.mark.slow
@pytest.mark.parametrize("name", LEAST)
def test_a_demonstration_runs_with_one_command_and_can_be_looked_into(name: str, tmp_path: Path) -> None:
    least, steps = LEAST[name]
    done = run(f"vae-anomaly demo {name} --json", tmp_path, steps)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    said = json.loads(done.stdout)
    assert said["auroc"] > least
    assert said["found"] > 0.8 * said["anomalies"]
    assert said["false_alarms"] / said["normal_records"] < 2 * said["promise"]["high"]
    pages = list((tmp_path / "demo" / name / "output" / "reports").glob("*-*.html"))
    assert len(pages) == said["scored"]
    shown = {"digits": "data:image/png;base64,", "logs": "Surprise, nats", "regions": "site"}[name]
    assert all(shown in page.read_text() for page in pages)
    lines = [line for line in commands() if f"demo/{name}" in line]
    assert lines
    for line in lines:
        looked = run(line, tmp_path, steps)
        assert looked.returncode == 0, f"{line}\n{looked.stdout}\n{looked.stderr}"
    assert list((tmp_path / "demo" / name / "output" / "latent").iterdir())
