"""Disturb every input/output operation of scoring, registering and rendering, below Python: in C, in SQLite.

``shim.c`` is preloaded into a process that imports everything once, has no threads and no open database, and forks for
each fault; this file is also that program (``python test_every_operation.py FOLDER JOB``). For each operation k and
each action (SIGKILL, a full disk, an I/O error, half of a write and then SIGKILL) a child starts from the same files
and is disturbed at k; then the invariants must hold, and an undisturbed child must bring everything to the same bytes.
Known-bad twins must be caught. It takes an hour: ``make test-faults``; needs a C compiler and Linux.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
from fork_samples import Phases, Rounds, alone, forked, wait
from pipeline_samples import copy, deliver, fitted, parquet, shared_store, table, write_monitor
from store_samples import tree
from test_kill_score import naive

pytestmark = pytest.mark.faults
ACTIONS = {"kill": 1, "full": 2, "error": 3, "torn": 4}
SCORING = [f"score-{action}" for action in ACTIONS]
REGISTERING = [f"register-{action}" for action in ACTIONS]
RENDERING = [f"render-{action}" for action in ACTIONS]
TWINS = {"twin-naive-torn": 3, "twin-early-kill": 3}  # how many faults are enough
EVERY = int(os.environ.get("FAULTS_EVERY", "1"))  # 7: every seventh operation only


class Control:
    """What the preloaded shim reads: see ``shim.c``."""

    def __init__(self) -> None:
        with open(os.environ["FAULTS_CONTROL"], "r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 16 + 1024)

    def root(self, place: Path) -> None:
        self._memory[16:] = os.fsencode(os.path.realpath(place)).ljust(1024, b"\0")

    def set(self, action: int, at: int) -> None:
        self._memory[:16] = struct.pack("iiii", action, at, 0, 0)

    @property
    def seen(self) -> tuple[int, int]:
        """How many operations there were, and how many were disturbed."""
        count, hits = struct.unpack("iiii", self._memory[:16])[2:]
        return int(count), int(hits)


class Trial:
    """Something to do under faults: files to start from, the work, and what is wrong after it."""

    places: tuple[Path, ...]

    def keep(self, aside: Path) -> None:
        """Remember the present files as what each round starts from."""
        self._aside = aside
        for i, place in enumerate(self.places):
            shutil.copytree(place, aside / str(i))

    def restore(self) -> None:
        for i, place in enumerate(self.places):
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(self._aside / str(i), place)

    def work(self) -> int:
        """In a child; 0 where all went well, 3 where it said that something failed."""
        raise NotImplementedError

    def settle(self) -> None:
        """Take what the undisturbed work made for what is right."""
        raise NotImplementedError

    def wrong(self, *, complete: bool) -> list[str]:
        """What is wrong, after a fault or after an undisturbed run that came later."""
        raise NotImplementedError


class Scoring(Trial):
    """A whole scoring run with the tracking store: scores, a refusal, a copy, pages, alerts, MLflow."""

    def __init__(self, folder: Path) -> None:
        workspace = copy(folder)
        daily = {f"day-{i}.parquet": parquet(table(20, 10 + i, frauds=i)) for i in range(2)}
        deliver(workspace, **daily, **{"again.parquet": daily["day-1.parquet"], "short.csv": b"id,amount\n1,2\n"})
        self.rounds = Rounds(workspace, Phases())
        self.places = (workspace, fitted().parent / "state")

    def work(self) -> int:
        return 3 if self.rounds.score() else 0  # a batch that failed, or an alert, is said

    def settle(self) -> None:
        self.reference, self.keys = self.rounds.results(), self.rounds.keys()

    def wrong(self, *, complete: bool) -> list[str]:
        return self.rounds.faults(self.reference, self.keys, complete=complete)


class Registering(Trial):
    """A fit that is recorded and registered; no version and no alias may ever point to what does not verify."""

    def __init__(self, folder: Path) -> None:
        from vae_anomaly import pipelines
        from vae_anomaly.fitting import fit_detector
        from vae_anomaly.metrics import assess
        from vae_anomaly.tracking import Tracker
        from vae_anomaly.workspace import Workspace

        home = write_monitor(folder / "registers")
        (folder / "mlflow.yml").write_text('server: {tracking_uri: "sqlite:///state/mlflow.db"}\n')
        self.ws = Workspace.open(home)
        training = pipelines.read_training(self.ws)
        self.fitted = fit_detector(training.records, self.ws.schema, self.ws.recipe)
        normal = pipelines.normal_records(training.records)
        known, held_out = (
            self.fitted.detector.encode(normal.take(self.fitted.splits[part])) for part in ("training", "calibration")
        )
        self.options = {
            "monitor": self.ws.monitor,
            "validation": normal.take(self.fitted.splits["validation"]),
            "assessment": assess(self.fitted.detector, known, held_out, seed=0, tell=lambda stage: None),
            "data_digests": training.digests,
            "example": pipelines.example_frame(self.ws),
            "by": "Fay",
        }
        Tracker(self.ws.mlflow).initialise()
        self.places = (folder / "state",)

    def work(self) -> int:
        from vae_anomaly.tracking import Tracker

        registered = Tracker(self.ws.mlflow).log_fit(self.fitted, **self.options)
        return 0 if registered.digest == self.fitted.detector.digest else 9

    def settle(self) -> None:
        assert not (wrong := self.wrong(complete=True)), wrong

    def wrong(self, *, complete: bool) -> list[str]:
        """Told by a child: this process must not open the database."""
        path = self._aside / "wrong.json"
        path.write_text('["the registry cannot be read"]')
        wait(forked(lambda: int(bool(path.write_text(json.dumps(list(self._faults(complete))))) and 0)))
        found: list[str] = json.loads(path.read_text())
        return found

    def _faults(self, complete: bool) -> Iterator[str]:
        from mlflow.exceptions import MlflowException

        from vae_anomaly.errors import ArtifactError
        from vae_anomaly.tracking import Tracker

        tracker = Tracker(self.ws.mlflow)
        name = tracker.registered_name(self.ws.monitor.name)
        try:
            versions = [str(v.version) for v in tracker.client.search_model_versions(f"name = '{name}'")]
            aliases = tracker.aliases(name)
        except MlflowException:
            versions, aliases = [], {}
        for version in {*versions, *aliases.values()}:
            try:
                tracker.verify(tracker.resolve(self.ws.monitor.name, str(version)))
            except ArtifactError as error:
                yield f"version {version}: {error}"
        if complete and not aliases:
            yield "no candidate"
        if complete and len(versions) > 2:
            yield f"{len(versions)} versions of one fit"


class Rendering(Trial):
    """A report that is rendered again: the page is whole, always."""

    def __init__(self, folder: Path) -> None:
        from vae_anomaly import pipelines, scoring
        from vae_anomaly.workspace import Workspace

        home = copy(folder)
        (folder / "mlflow.yml").write_text(shared_store())
        deliver(home, **{"day.parquet": table(30, 4, frauds=3)})
        self.ws = Workspace.open(home)
        scoring.score(self.ws)
        self.page = pipelines.render(self.ws, "day.parquet")[1]
        self.places = (home / "output",)

    def work(self) -> int:
        from vae_anomaly import pipelines

        pipelines.render(self.ws, "day.parquet")
        return 0

    def settle(self) -> None:
        self.whole = tree(self.page.parent)

    def wrong(self, *, complete: bool) -> list[str]:
        return [] if tree(self.page.parent) == self.whole else ["the page is not whole"]


# ---------------------------------------------------------------- known-bad twins


def early() -> None:
    """Registers a version before its files are there."""
    from mlflow import MlflowClient

    from vae_anomaly.tracking import Tracker

    upload, register, waiting = MlflowClient.log_model_artifacts, Tracker._register, []

    def later(self: Any, *args: Any) -> None:
        kept = Path(tempfile.mkdtemp()) / "model"
        shutil.copytree(args[1], kept)
        waiting.append((self, args[0], str(kept)))

    def registered(self: Any, name: str, model: Any, about: Any) -> str:
        version = register(self, name, model, about)
        for client, *args in waiting:
            upload(client, *args)
        return version

    MlflowClient.log_model_artifacts = later
    Tracker._register = registered  # type: ignore[method-assign]


# ---------------------------------------------------------------- the program


def disturb(trial: Trial, control: Control, action: int, *, every: int, enough: int) -> dict[str, Any]:
    """The action at each operation in turn; what was wrong after it and after an undisturbed run."""
    outcomes: Counter[str] = Counter()
    bad: list[str] = []
    at = 0
    while True:
        at += every
        trial.restore()
        control.set(action, at)
        code = wait(forked(trial.work))
        count, hits = control.seen
        control.set(0, 0)
        if not hits or len(bad) >= enough:
            return {"operations": count if not hits else at, "outcomes": outcomes, "bad": bad}
        outcomes[str(code)] += 1
        wrong = [] if code in (0, 3, -9) else [f"it ended with {code}"]
        wrong = wrong or trial.wrong(complete=False)
        if not wrong and (again := wait(forked(trial.work))):
            wrong = [f"the next run ended with {again}"]
        wrong = wrong or trial.wrong(complete=True)
        bad += [f"{at}: {wrong[0]}"] if wrong else []


def program(folder: Path, job: str) -> None:
    import torch

    from vae_anomaly import tracking
    from vae_anomaly.errors import VaeAnomalyError
    from vae_anomaly.explain import tabular

    torch.set_num_threads(1)
    control = Control()
    control.set(0, 0)
    what, action = job.removeprefix("twin-").split("-")
    trials = {"score": Scoring, "naive": Scoring, "register": Registering, "early": Registering, "render": Rendering}
    fitted()
    # figures take seconds and are files like the others; gradients would start threads
    zeros = mock.patch.object(tabular, "latent_shares", lambda detector, inputs, _: np.zeros((len(inputs), 6)))
    with mock.patch.object(tracking, "_figures", return_value=()), zeros:
        trial: Trial = trials[what](folder)
        {"naive": naive, "early": early}.get(what, lambda: None)()
        trial.keep(folder / "aside")
        wrapped = trial.work

        def work() -> int:
            try:
                return wrapped()
            except (VaeAnomalyError, OSError):
                return 3

        trial.work = work  # type: ignore[method-assign]
        alone()
        control.root(Path(os.path.commonpath([*trial.places, folder])))
        assert wait(forked(work)) == 0
        trial.settle()
        every, enough = (3, TWINS[job]) if job in TWINS else (EVERY, 1000)
        found = disturb(trial, control, ACTIONS[action], every=every, enough=enough)
    (folder / "result.json").write_text(json.dumps(found))


# ---------------------------------------------------------------- tests


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("shim") / "shim.so"
    source = Path(__file__).with_name("shim.c")
    subprocess.run(["cc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", built, source, "-ldl"], check=True)
    return built


Outcome = Callable[[str], dict[str, Any]]


@pytest.fixture
def outcome(shim: Path, tmp_path: Path) -> Iterator[Outcome]:
    memory = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else tmp_path
    folder = memory / f"faults-{os.getpid()}"
    folder.mkdir()
    (tmp_path / "control").write_bytes(bytes(16 + 1024))
    env = os.environ | {
        "LD_PRELOAD": str(shim),
        "FAULTS_CONTROL": str(tmp_path / "control"),
        "MLFLOW_SQLALCHEMYSTORE_POOLCLASS": "NullPool",
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "OMP_NUM_THREADS": "1",
        "TMPDIR": str(folder),
    }

    def run(job: str) -> dict[str, Any]:
        command = [sys.executable, __file__, str(folder), job]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, env=env, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        found: dict[str, Any] = json.loads((folder / "result.json").read_text())
        print(job, found)
        return found

    yield run
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("job", [*SCORING, *REGISTERING, *RENDERING])
def test_a_fault_at_every_operation_is_healed(outcome: Outcome, job: str) -> None:
    found = outcome(job)
    assert found["bad"] == []
    assert found["operations"] >= (5 if job.startswith("render") else 100)
    died = job.endswith(("kill", "torn"))
    assert set(found["outcomes"]) <= ({"-9"} if died else {"0", "3"})


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("job", list(TWINS))
def test_known_bad_twins_are_caught(outcome: Outcome, job: str) -> None:
    assert len(outcome(job)["bad"]) >= TWINS[job]


if __name__ == "__main__":
    program(Path(sys.argv[1]), sys.argv[2])
