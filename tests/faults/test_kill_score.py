"""Kill the scorer with SIGKILL at random moments, race two scorers: the next run gives the undisturbed bytes.

This file is also the program that does it (``python test_kill_score.py FOLDER``): it imports everything once, has no
threads and no open database, and forks for each run. The disk is made slow (short writes with a pause), so that many
kills fall into the writing of files; a known-bad scorer, which writes under the final name and takes what is there for
done, must be caught by the same comparison. That every single operation of the store may be the last one is tested in
test_store_crash.py; here it is the whole scorer, at moments that nobody chose.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from pipeline_samples import PROGRAM, copy, deliver, parquet, table
from store_samples import tree

KILLS, TWIN_KILLS, ROUNDS, SEED = 24, 40, 3, 20260105
# not results: the cache of models, and what the clock of the inbox says
OURS = ("scores", "commits", "reports", "quarantine", "alerts", "outbox", "store.json")


def batches() -> dict[str, bytes]:
    """Three formats, labelled frauds, a renamed copy, an empty file, a truncated one and one with a column missing."""
    daily = {f"day-{i}.parquet": parquet(table(25, 10 + i, frauds=i)) for i in range(3)}
    jsonl = "".join(json.dumps(row, default=str) + "\n" for row in table(12, 21).to_pylist()).encode()
    more = {"again.parquet": daily["day-2.parquet"], "cut.parquet": daily["day-1.parquet"][:-100], "lines.jsonl": jsonl}
    return daily | more | {"empty.csv": b"", "short.csv": b"id,amount\n1,2\n"}


# ---------------------------------------------------------------- the program


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

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 64)

    def watch(self) -> None:
        """Note the phase from here on; called in the child."""
        from vae_anomaly import scoring, tracking, worker
        from vae_anomaly.store import commits, files, score_files

        self._enter("starting")
        watched = [
            (files.Store, "prepare", "preparing"),
            (tracking.Tracker, "resolve", "resolving"),
            (tracking.Tracker, "fetch", "loading"),
            (worker.Scorer, "score", "scoring"),
            (score_files.ScoreWriter, "close", "writing scores"),
            (commits.Ledger, "commit", "committing"),
            (commits.Ledger, "quarantine", "quarantining"),
            (commits.Ledger, "mark_delivered", "marking"),
            (files.Store, "publish", "publishing"),
            (scoring, "deliver_outbox", "rendering"),
            (scoring, "deliver", "alerting"),
            (tracking.Tracker, "log_scoring", "logging"),
        ]
        for owner, name, phase in watched:
            setattr(owner, name, self._watched(getattr(owner, name), phase))

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


def naive() -> None:
    """The known-bad scorer: writes under the final name, and takes what is there for done."""
    from vae_anomaly.store.files import Sink, Store

    def publish(store: Any, content: Path | bytes, final: Path, *, replaceable: bool = False) -> None:
        if not final.exists():
            data = content if isinstance(content, bytes) else content.read_bytes()
            with Sink(final) as sink:
                sink.write(data[:-100])
                time.sleep(0.03)
                sink.write(data[-100:])
        if isinstance(content, Path):
            os.unlink(content)

    Store.publish = publish  # type: ignore[method-assign]


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
                file.write(f"{alert.idempotency_key}\n")

        SINKS["log"] = told
        self.phases.watch()
        outcome = scoring.score(Workspace.open(self.folder))
        return int(any(b.verdict == "failed" for b in outcome.batches) or bool(outcome.undelivered))

    def results(self) -> dict[str, str]:
        return {name: digest for name, digest in tree(self.output).items() if name.startswith(OURS)}

    def keys(self) -> Counter[str]:
        return Counter(self.told.read_text().split() if self.told.exists() else [])

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
        wrong += [str(f) for f in check(Store(self.output)) if f.severity == "error" or complete]
        if complete:
            wrong += [f"{name} is missing" for name in reference.keys() - found.keys()]
            wrong += ["an alert was not told"] if self.keys().keys() != keys.keys() else []
            wrong += ["temporary files are left"] if os.listdir(self.output / "_tmp") else []
        return wrong


def killed(rounds: Rounds, moment: float) -> str | None:
    """Start a run and kill it after ``moment`` seconds; the phase that was hit, None where the run was over by then."""
    child = forked(rounds.score)
    time.sleep(moment)
    os.kill(child, signal.SIGKILL)
    return rounds.phases.now if wait(child) == -signal.SIGKILL else None


def kill(rounds: Rounds, kills: int, seed: int, *, enough: int) -> dict[str, Any]:
    """``kills`` kills, each uniformly over what is left of the run, up to three in a row; then a whole run."""
    noise = random.Random(seed)
    undisturbed = [rounds.undisturbed() for _ in range(3)]
    duration, (_, reference, keys) = min(run[0] for run in undisturbed), undisturbed[0]
    assert all(run[1:] == (reference, keys) for run in undisturbed), "two undisturbed runs differ"
    hit: Counter[str] = Counter()
    bad: list[str] = []
    late = number = 0
    while hit.total() < kills and len(bad) < enough:
        number += 1
        rounds.fresh()
        wrong: list[str] = []
        phase, left = "", duration
        for _ in range(noise.choice((1, 1, 2, 3))):
            moment = noise.uniform(0, left)
            phase, left = killed(rounds, moment) or "", max(left - moment, duration / 4)
            hit.update([phase] if phase else [])
            wrong = wrong or rounds.faults(reference, keys, complete=False)
            if not phase:  # it was over already
                late += 1
                break
        if phase and not wrong and (code := wait(forked(rounds.score))):
            wrong = [f"the next run ended with {code}"]
        wrong = wrong or rounds.faults(reference, keys, complete=True)
        bad += [f"round {number}: {wrong[0]}"] if wrong else []
    return {"seed": seed, "seconds": duration, "kills": hit, "late": late, "rounds": number, "bad": bad,
            "files": len(reference)}  # fmt: skip


def compete(rounds: Rounds) -> dict[str, Any]:
    """Two scorers at the same moment on the same inbox: everything once, nobody fails."""
    _, reference, keys = rounds.undisturbed()
    bad: list[str] = []
    for number in range(ROUNDS):
        rounds.fresh()
        gate = os.pipe()

        def work(gate: tuple[int, int] = gate) -> int:
            os.close(gate[1])
            os.read(gate[0], 1)  # the end of the file, for all at the same time
            return rounds.score()

        children = [forked(work) for _ in range(2)]
        for end in gate:
            os.close(end)
        codes = [wait(child) for child in children]
        wrong = rounds.faults(reference, keys, complete=True)
        wrong += [f"exit codes {codes}"] if any(codes) else []
        wrong += ["an alert was told twice"] if rounds.keys() != keys else []
        bad += [f"round {number}: {wrong[0]}"] if wrong else []
    return {"rounds": ROUNDS, "bad": bad, "alerts": keys.total()}


def job(name: str, rounds: Rounds) -> dict[str, Any]:
    slow_disk()
    if name == "compete":
        return compete(rounds)
    if name == "naive":
        naive()
        return kill(rounds, TWIN_KILLS, SEED, enough=2)
    return kill(rounds, KILLS, SEED, enough=KILLS)


def program(folder: Path) -> None:
    import torch

    from vae_anomaly import scoring
    from vae_anomaly.explain import tabular
    from vae_anomaly.workspace import Workspace

    torch.set_num_threads(1)
    # once, before all forks: imports, templates, the tracking store (NullPool keeps no connection open); gradients
    # would start threads
    with mock.patch.object(tabular, "latent_shares", lambda detector, inputs, _: np.zeros((len(inputs), 6))):
        scoring.score(Workspace.open(folder))
    for thread in set(threading.enumerate()) - {threading.main_thread()}:
        thread.join(10)
    assert threading.active_count() == 1, "a fork would lose threads"
    for name in ("ours", "naive", "compete"):
        rounds = Rounds(folder, Phases())

        def work(name: str = name, rounds: Rounds = rounds) -> int:
            (folder.parent / f"{name}.json").write_text(json.dumps(job(name, rounds)))
            return 0

        wait(forked(work))


# ---------------------------------------------------------------- tests

Results = Callable[[str], dict[str, Any]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("kills")
    workspace = copy(folder)
    deliver(workspace, **batches())
    env = os.environ | {"MLFLOW_SQLALCHEMYSTORE_POOLCLASS": "NullPool", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, __file__, str(workspace)]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=280, env=env, check=False)
    assert done.returncode == 0, done.stderr[-3000:]

    def result(name: str) -> dict[str, Any]:
        path = folder / f"{name}.json"
        assert path.exists(), done.stderr[-3000:]
        found: dict[str, Any] = json.loads(path.read_text())
        print(found)
        return found | {"stderr": done.stderr[-3000:]}

    return result


def test_killed_at_random_moments_the_next_run_gives_the_same_bytes(results: Results) -> None:
    result = results("ours")
    assert result["bad"] == [], result["stderr"]
    assert sum(result["kills"].values()) >= KILLS
    assert len(result["kills"]) >= 4, "the kills hit few phases"
    assert result["files"] > 35


def test_a_scorer_that_takes_what_is_there_for_done_is_caught(results: Results) -> None:
    assert len(results("naive")["bad"]) == 2


def test_two_scorers_at_the_same_time_do_everything_once(results: Results) -> None:
    result = results("compete")
    assert (result["rounds"], result["bad"]) == (ROUNDS, []), result["stderr"]
    assert result["alerts"] >= 5


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_the_installed_program_killed_at_random_moments(tmp_path: Path) -> None:
    """The real process, imports and all; every other kill comes after the first sign of life."""
    folder = copy(tmp_path)
    deliver(folder, **batches())
    rounds, noise = Rounds(folder, Phases()), random.Random(SEED)

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [PROGRAM, "score", folder], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    def complete() -> tuple[float, float]:
        begin = time.perf_counter()
        with start() as run:
            assert run.stderr is not None
            run.stderr.readline()
            first = time.perf_counter()
            run.stderr.read()
        assert run.returncode in (0, 3)
        return first - begin, time.perf_counter() - begin

    rounds.fresh()
    first, duration = complete()
    reference = rounds.results()
    assert len(reference) > 30
    kills = 0
    while kills < KILLS:
        rounds.fresh()
        for _ in range(noise.choice((1, 1, 2, 3))):
            moment = noise.uniform(0.9 * first if kills % 2 else 0, duration)
            with start() as run:
                time.sleep(moment)
                run.kill()
            kills += run.returncode == -signal.SIGKILL
        complete()
        assert rounds.results() == reference, f"kill {kills} at {moment:.3f} s, seed {SEED}"
        assert not rounds.faults(reference, Counter(), complete=True)
    print(f"{kills} kills, seed {SEED}")


if __name__ == "__main__":
    program(Path(sys.argv[1]))
