"""The flows do what the pipelines do, once; Prefect keeps to its folder and shows what an operator should see."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_monitor import deliver

from vae_anomaly.errors import ArtifactError, DataError

ROOT = Path(__file__).parents[2]


def python(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` where no PREFECT variable is set but these."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT", "MLFLOW"))}
    env |= {"PYTHONPATH": str(ROOT), **variables}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)


def set_by_hermetic(state: Path, **variables: str) -> dict[str, str]:
    code = (
        "import json, os, sys, pathlib; from flows.settings import hermetic;"
        f"hermetic(pathlib.Path({str(state)!r})); hermetic(pathlib.Path({str(state)!r}));"
        "assert 'prefect' not in sys.modules; print(json.dumps(dict(os.environ)))"
    )
    done = python(code, **variables)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


# ---- settings ----


def test_settings_are_made_without_prefect_and_keep_to_the_state_folder(tmp_path: Path) -> None:
    env = set_by_hermetic(tmp_path / "deep" / "state", PREFECT_LOGGING_LEVEL="DEBUG")
    assert env["PREFECT_HOME"] == str(tmp_path / "deep" / "state" / "prefect")
    assert Path(env["PREFECT_HOME"]).is_dir()
    assert env["PREFECT_SERVER_ANALYTICS_ENABLED"] == env["PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED"] == "false"
    assert env["PREFECT_RESULTS_DEFAULT_SERIALIZER"] == "json"
    assert env["PREFECT_LOGGING_LEVEL"] == "DEBUG", "what the user has set stays"


def test_a_server_of_the_user_keeps_its_settings(tmp_path: Path) -> None:
    env = set_by_hermetic(tmp_path, PREFECT_API_URL="http://127.0.0.1:4200/api")
    assert not [name for name in env if name.startswith("PREFECT_SERVER_SERVICES")]
    assert "PREFECT_LOGGING_TO_API_ENABLED" not in env


def test_settings_after_an_import_of_prefect_are_refused(tmp_path: Path) -> None:
    code = "import sys, types, pathlib; sys.modules['prefect'] = types.ModuleType('prefect');"
    done = python(f"{code} from flows.settings import hermetic; hermetic(pathlib.Path({str(tmp_path)!r}))")
    assert "ConfigError: Prefect must be imported after" in done.stderr


def test_prefect_is_imported_by_no_module_of_the_package() -> None:
    modules = "vae_anomaly.cli, vae_anomaly.pipelines, vae_anomaly.demo, flows.server, flows.serve"
    done = python(f"import sys, {modules}; print('prefect' in sys.modules)")
    assert done.stdout.strip() == "False", done.stderr


# ---- flows ----


def test_the_demonstration_commits_what_can_be_read_and_quarantines_the_rest(demo: Any) -> None:
    ws, run = demo.ws, demo.run
    assert [(b.name, b.verdict) for b in run.scored.batches] == [
        ("day-1.csv", "committed"), ("day-2.csv", "quarantined"), ("day-3.csv", "committed")]  # fmt: skip
    for folder in (ws.store.commits, ws.store.scores):
        assert sorted(path.name[:5] for path in folder.glob("day-[123]-*")) == ["day-1", "day-3"]
    assert run.promoted.version == run.fitted.registered.version == "1"
    assert run.scored.model.digest == run.fitted.registered.digest


def test_a_second_demonstration_finds_everything_done(demo: Any) -> None:
    from flows.demo import run_demo
    from vae_anomaly.workspace import silent

    ws, first = demo.ws, demo.run
    files = {p: p.read_bytes() for p in ws.store.root.rglob("*") if p.is_file()}
    again = run_demo(ws, silent)
    assert again.fitted.registered.already
    assert again.fitted.registered.version == first.fitted.registered.version
    assert again.promoted is None
    assert again.scored.batches == ()
    assert again.scored.already >= 3
    assert {p: p.read_bytes() for p in ws.store.root.rglob("*") if p.is_file()} == files


def test_progress_reaches_the_caller(demo: Any) -> None:
    assert {"training", "scoring day-1.csv"} <= set(demo.said)


def test_a_scheduled_run_shows_a_quarantine_and_gives_counts_only(demo: Any) -> None:
    from flows.score import score_flow

    ws = demo.ws
    deliver(ws.monitor.source.inbox, "day-4", seed=4)
    deliver(ws.monitor.source.inbox, "day-5", seed=5, without="shop")
    state = score_flow(str(ws.monitor.path), return_state=True)
    assert (state.name, state.is_completed()) == ("Quarantined", True)
    assert "1 committed, 1 quarantined" in state.message
    again = score_flow(str(ws.monitor.path), return_state=True)
    assert (again.name, again.is_completed()) == ("Completed", True)
    assert "committed" not in again.message


def test_a_run_that_finds_another_at_work_skips(demo: Any) -> None:
    from flows.score import score_flow

    ws = demo.ws
    with ws.store.lock(ws.store.root, patience=0):
        state = score_flow(str(ws.monitor.path), return_state=True)
    assert (state.name, state.is_completed()) == ("Skipped", True)


def test_what_the_user_has_to_mend_is_raised_as_without_prefect(
    demo: Any, open_monitor: Callable[[str], Any], caplog: pytest.LogCaptureFixture
) -> None:
    from flows import score, train

    ws = open_monitor("unfitted")
    deliver(ws.monitor.source.inbox, "day-1")
    with pytest.raises(ArtifactError, match="must have a version 'champion'"):
        score.run(ws)
    state = score.score_flow(str(ws.monitor.path), return_state=True)
    assert (state.name, state.is_failed()) == ("Refused", True)
    assert "must have a version 'champion'" in state.message
    state = score.score_flow(str(ws.monitor.path / "elsewhere"), return_state=True)
    assert (state.name, state.is_failed()) == ("Refused", True)
    (ws.monitor.source.training / "normal.csv").unlink()
    with pytest.raises(DataError, match="Got an empty folder"):
        train.run(ws)
    assert "Traceback" not in caplog.text


def test_only_what_may_heal_is_tried_again(demo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows import score
    from vae_anomaly import scoring

    calls: list[str] = []

    def failing(ws: Any, progress: Any) -> Any:
        calls.append(ws.monitor.name)
        if len(calls) == 1:
            raise OSError(28, "No space left on device")
        return original(ws, progress)

    original = scoring.score
    monkeypatch.setattr(scoring, "score", failing)
    monkeypatch.setattr(score.score_task, "retry_delay_seconds", 0)
    assert score.run(demo.ws).ok
    assert len(calls) == 2


def test_a_server_that_does_not_answer_is_named(demo: Any, tmp_path: Path) -> None:
    code = (
        f"from pathlib import Path; from flows.settings import hermetic; hermetic(Path({str(tmp_path)!r}));"
        "from flows import score; from vae_anomaly.workspace import Workspace;"
        f"score.run(Workspace.open({str(demo.ws.monitor.path)!r}))"
    )
    done = python(code, PREFECT_API_URL="http://127.0.0.1:9/api")
    assert "ConfigError: Prefect must be able to run a flow" in done.stderr


# ---- prefect.yaml ----


def test_deployments_name_flows_that_take_their_parameters(prefect_server: None) -> None:
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    assert len({d["name"] for d in deployments}) == len(deployments) > 1
    for deployment in deployments:
        path, name = deployment["entrypoint"].split(":")
        flow = getattr(importlib.import_module(path.removesuffix(".py").replace("/", ".")), name)
        assert (ROOT / path).is_file()
        inspect.signature(flow.fn).bind(**deployment["parameters"])
        assert all((ROOT / value).is_file() for value in deployment["parameters"].values())
