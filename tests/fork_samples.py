"""The whole scorer in forked children of one program, again and again on one workspace, and what is wrong afterwards.

A program that uses this imports everything once (:func:`warm`), has no threads and no open database, and forks for each
run. A test starts it with :func:`ran` and reads what it wrote.
"""

from __future__ import annotations

import importlib
import json
import mmap
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from pipeline_samples import copy, deliver, parquet, table
from store_samples import tree, untimed

# not results: the cache of models, and what the clock of the inbox says
OURS = ("scores", "commits", "reports", "quarantine", "alerts", "outbox", "store.json")


def batches() -> dict[str, bytes]:
    """Three formats, labelled frauds, a renamed copy, an empty file, a truncated one and one with a column missing."""
    daily = {f"day-{i}.parquet": parquet(table(25, 10 + i, frauds=i)) for i in range(3)}
    jsonl = "".join(json.dumps(row, default=str) + "\n" for row in table(12, 21).to_pylist()).encode()
    more = {"again.parquet": daily["day-2.parquet"], "cut.parquet": daily["day-1.parquet"][:-100], "lines.jsonl": jsonl}
    return daily | more | {"empty.csv": b"", "short.csv": b"id,amount\n1,2\n"}


def forked(work: Callable[[], int]) -> int:
    """The process id of a child that does ``work`` and exits with its answer, or with 9 where it raises."""
    child = os.fork()
    if not child:
        code = 9
        try:
            code = work()
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    return child


def wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Phases:
    """What a child is doing, in memory that its parent sees when the child is dead."""

    WATCHED = (
        ("store.files", "Store", "prepare", "preparing"),
        ("tracking", "Tracker", "resolve", "resolving"),
        ("tracking", "Tracker", "fetch", "loading"),
        ("worker", "Scorer", "score", "scoring"),
        ("store.score_files", "ScoreWriter", "close", "writing scores"),
        ("store.commits", "Ledger", "commit", "committing"),
        ("store.commits", "Ledger", "quarantine", "quarantining"),
        ("store.commits", "Ledger", "mark_delivered", "marking"),
        ("store.files", "Store", "publish", "publishing"),
        ("scoring", "", "deliver_outbox", "rendering"),
        ("scoring", "", "deliver", "alerting"),
        ("tracking", "Tracker", "log_scoring", "logging"),
    )
    NAMES = ("starting", *(phase for *_, phase in WATCHED))

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 64)

    def watch(self) -> None:
        """Note the phase from here on; called in the child."""
        self._enter("starting")
        for place, kind, name, phase in self.WATCHED:
            module = importlib.import_module(f"vae_anomaly.{place}")
            owner = getattr(module, kind) if kind else module
            setattr(owner, name, self._watched(getattr(owner, name), phase))

    def forget(self) -> None:
        """Before a child starts that has not said anything."""
        self._enter("")

    def _watched(self, real: Callable[..., Any], phase: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            before = self.now
            self._enter(phase)
            try:
                return real(*args, **kwargs)
            finally:
                self._enter(before)

        return call

    def _enter(self, phase: str) -> None:
        self._memory[:64] = phase.encode().ljust(64, b"\0")

    @property
    def now(self) -> str:
        return self._memory[:64].rstrip(b"\0").decode()


def slow_disk() -> None:
    """Writes of at most 256 bytes that take a moment, as on a busy disk; syncs that cost nothing."""
    write = os.write

    def short(handle: int, data: Any) -> int:
        time.sleep(0.0003)
        return write(handle, memoryview(data)[:256])

    os.write, os.fsync = short, lambda handle: None  # type: ignore[assignment]


class Rounds:
    """One workspace, scored again and again from nothing; ``told`` counts the alerts by key."""

    def __init__(self, folder: Path, phases: Phases) -> None:
        self.folder, self.phases, self.told = folder, phases, folder / "told.txt"
        self.output = folder / "output"

    def fresh(self) -> None:
        for name in (*OURS, "_tmp", "hash_cache.json"):
            path = self.output / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        self.told.unlink(missing_ok=True)

    def score(self) -> int:
        """In a child: one run; 0 where it ended as it should."""
        from vae_anomaly import scoring
        from vae_anomaly.sinks import SINKS
        from vae_anomaly.workspace import Workspace

        def told(alert: Any) -> None:
            with self.told.open("a") as file:
                file.write(f"\n{alert.idempotency_key}\n")

        SINKS["log"] = told
        self.phases.watch()
        outcome = scoring.score(Workspace.open(self.folder))
        problems = [*(b.problem for b in outcome.batches if b.verdict == "failed"), *outcome.undelivered]
        for problem in problems:
            print(problem, file=sys.stderr, flush=True)
        return int(bool(problems))

    def results(self) -> dict[str, str]:
        return {name: digest for name, digest in untimed(tree(self.output)).items() if name.startswith(OURS)}

    def keys(self) -> Counter[str]:
        """How often each alert was told; half of a key is what a torn write has left."""
        told = self.told.read_text().split() if self.told.exists() else []
        return Counter(key for key in told if len(key) == 64)

    def undisturbed(self) -> tuple[float, dict[str, str], Counter[str]]:
        """Seconds that a run takes, its results, and the alerts that it told."""
        self.fresh()
        start = time.perf_counter()
        assert wait(forked(self.score)) == 0
        return time.perf_counter() - start, self.results(), self.keys()

    def faults(self, reference: dict[str, str], keys: Counter[str], *, complete: bool) -> list[str]:
        """What is wrong: told by ``check``, and independently by comparison with the undisturbed run."""
        from vae_anomaly.store.check import check
        from vae_anomaly.store.files import Store

        found = {name: digest for name, digest in self.results().items() if complete or "/.part-" not in name}
        wrong = [f"{name} differs" for name, digest in found.items() if reference.get(name) != digest]
        if not self.output.is_dir() or wrong:
            return wrong
        wrong += self._overview(complete=complete)
        wrong += [str(f) for f in check(Store(self.output)) if f.severity == "error" or complete]
        if complete:
            wrong += [f"{name} is missing" for name in reference.keys() - found.keys()]
            wrong += ["an alert was not told"] if self.keys().keys() != keys.keys() else []
            wrong += ["temporary files are left"] if os.listdir(self.output / "_tmp") else []
        return wrong

    def _overview(self, *, complete: bool) -> list[str]:
        """The overview shows when records were written, so it is compared with what these records give."""
        from vae_anomaly.answers import Window
        from vae_anomaly.pages import overview_page
        from vae_anomaly.store.commits import Ledger
        from vae_anomaly.store.files import INDEX, Store

        path = self.output / "reports" / INDEX
        if complete:
            page = overview_page(Ledger(Store(self.output)), "shops", Window.at(time.time(), 14))[1]
            return [] if path.exists() and path.read_bytes() == page else ["the overview is not that of the store"]
        whole = not path.exists() or path.read_bytes().endswith(b"</html>")
        return [] if whole else ["the overview is not whole"]


def warm(folder: Path) -> None:
    """Once, before all forks: imports, templates, the tracking store (NullPool keeps no connection open)."""
    import torch

    from vae_anomaly import scoring
    from vae_anomaly.explain import tabular
    from vae_anomaly.workspace import Workspace

    torch.set_num_threads(1)
    # gradients would start threads
    with mock.patch.object(tabular, "latent_shares", lambda detector, inputs, _: np.zeros((len(inputs), 6))):
        scoring.score(Workspace.open(folder))
    alone()


def alone() -> None:
    """Wait for all other threads: a fork would lose them."""
    for thread in set(threading.enumerate()) - {threading.main_thread()}:
        thread.join(10)
    assert threading.active_count() == 1, "a fork would lose threads"


def jobs(folder: Path, work: Callable[[str, Rounds], dict[str, Any]], names: Sequence[str]) -> None:
    """Each job in a child of its own; what it finds goes to ``NAME.json`` beside the workspace."""
    warm(folder)
    for name in names:
        rounds = Rounds(folder, Phases())

        def job(name: str = name, rounds: Rounds = rounds) -> int:
            (folder.parent / f"{name}.json").write_text(json.dumps(work(name, rounds)))
            return 0

        wait(forked(job))


Results = Callable[[str], dict[str, Any]]


def ran(program: str, folder: Path, *names: str, within: Sequence[str] = (), limit: float = 280) -> Results:
    """Run ``program`` on a copy of the monitor with :func:`batches` in its inbox; what each job named found.

    ``within``: a command that starts the program, such as one that gives it mounts of its own.
    """
    workspace = copy(folder)
    deliver(workspace, **batches())
    env = os.environ | {"MLFLOW_SQLALCHEMYSTORE_POOLCLASS": "NullPool", "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [*within, sys.executable, program, str(workspace), *names]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=limit, env=env, check=False)
    assert done.returncode == 0, done.stderr[-3000:]

    def result(name: str) -> dict[str, Any]:
        path = folder / f"{name}.json"
        assert path.exists(), done.stderr[-3000:]
        found: dict[str, Any] = json.loads(path.read_text())
        print(found)
        return found | {"stderr": done.stderr}

    return result
