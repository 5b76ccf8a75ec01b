"""The README and docs/review.md do what they say: their commands are run in order as they are written, and the
README's Python is executed.

In a copy of what they need; training is shortened by an environment variable.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from pipeline_samples import PROGRAM, cli
from tracking_samples import without_figures

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
REVIEW = (ROOT / "docs" / "review.md").read_text()
NEEDED = ("data", "mlflow.yml", "docs")
# `make` installs, the service does not end, the demonstrations take long: they are tested by the project's own checks,
# in test_serve and in test_demos
ELSEWHERE = ("make ", "vae-anomaly serve ", "vae-anomaly demo ")


def blocks(language: str, page: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.M | re.S)


def commands(page: str = README) -> list[str]:
    lines = [line for block in blocks("sh", page) for line in block.splitlines() if line.strip()]
    return [line for line in lines if not line.startswith(ELSEWHERE)]


def run_commands(lines: list[str], folder: Path) -> None:
    """Each line as it is written, in ``folder`` with what they need."""
    for name in NEEDED:
        source = ROOT / name
        shutil.copytree(source, folder / name) if source.is_dir() else shutil.copy(source, folder / name)
    for line in lines:
        command, _, other = line.partition(" || test $? -eq ")
        name, *arguments = shlex.split(command)
        assert name == "vae-anomaly"
        said = cli(*arguments, env={"VAE_ANOMALY_MONITOR__TRAINING__STEPS": "200"})
        assert said.code in (0, int(other or 0)), f"{line}\n{said.out}\n{said.err}"
        assert "Traceback" not in said.err


@pytest.fixture
def environment() -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("VAE_ANOMALY_", "MLFLOW_", "PREFECT_"))}
    path = f"{PROGRAM.parent}{os.pathsep}{os.environ['PATH']}"
    return clean | {"PATH": path, "OMP_NUM_THREADS": "1"}


def test_the_commands_run_in_order_as_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = commands()
    assert {line.split()[1] for line in lines} >= {"init", "fit", "review", "promote", "score", "status", "report"}
    run_commands(lines, tmp_path)
    found = sorted(path.name for path in (tmp_path / "output").iterdir() if not path.name.startswith((".", "_")))
    for name in re.findall(r"^\| `(\w+)/", README, re.M):  # the folders that the README promises
        assert name in [*found, "quarantine"], found
    commits = [json.loads(path.read_bytes()) for path in (tmp_path / "output" / "commits").iterdir()]
    assert sorted(Path(c["batch"]["name"]).suffix for c in commits) == [".csv", ".jsonl", ".parquet"]


def test_the_commands_of_the_page_on_reviews_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = commands(REVIEW)
    assert {line.split()[1] for line in lines} >= {"review", "approve", "promote", "history"}
    with without_figures():
        run_commands(lines, tmp_path)


def test_the_python_runs(tmp_path: Path, environment: dict[str, str]) -> None:
    (block,) = blocks("python")
    shorter = "from vae_anomaly.models import NOISY\nNOISY['steps'] = 300"
    run = [sys.executable, "-c", f"{shorter}\n{block}\nprint(detector.predict(normal).mean())"]
    done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert 0.8 < float(done.stdout) <= 1


def test_the_table_has_every_command() -> None:
    listed = cli("--help").out.partition("Commands:")[2].partition("Exit codes")[0]
    known = set(re.findall(r"^  ([a-z]+)  ", listed, re.M))
    table = {*re.findall(r"^\| `(\w+)` \|", README, re.M), "rollback"}  # which shares a row with promote
    assert table == known
    assert "`rollback`" in README


def test_every_option_that_is_named_exists() -> None:
    names = (
        ("fit",),
        ("feedback",),
        ("alerts",),
        ("promote",),
        ("score",),
        ("prune",),
        ("overview",),
        ("init",),
        ("demo",),
        ("recalibrate",),
        ("refit",),
        ("latent", "generate"),
        (),
    )
    pages = "".join(cli(*name, "--help").out for name in names)
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", README)) - {"--backend-store-uri"}
    assert {"--json", "--flow", "--force", "--reason", "--debug", "--from"} <= named
    assert not [option for option in named if f"{option} " not in pages and f"{option}\n" not in pages]


def test_the_exit_codes_are_those_of_the_program() -> None:
    readme, program = (text.partition("Exit codes:")[2] for text in (README, cli("--help").out))
    codes = [set(re.findall(r"\b(\d+) [a-z]", text.partition(" interrupted")[0] + " i")) for text in (readme, program)]
    assert codes == [{"0", "1", "2", "3", "4", "5", "6", "130"}] * 2


def test_files_that_are_named_exist() -> None:
    linked = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    named = re.findall(r"`((?:docs|data|benchmarks)/[\w./-]*|\w+\.ya?ml)`", README)
    assert linked
    for name in {*linked, *named} - {"monitor.yml"}:
        assert (ROOT / name).exists(), name
