"""Kill the scorer with SIGKILL at random moments, race several scorers: the next run gives the undisturbed bytes.

This file is also the program that does it (``python test_kill_score.py FOLDER JOB ...``, see fork_samples.py). The disk
is made slow (short writes with a pause), so that many kills fall into the writing of files; a known-bad scorer, which
writes under the final name and takes what is there for done, must be caught by the same comparison. That every single
operation of the store may be the last one is tested in test_store_crash.py; here it is the whole scorer, at moments
that nobody chose.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from fork_samples import Phases, Results, Rounds, batches, forked, jobs, ran, slow_disk, wait
from pipeline_samples import PROGRAM, copy, deliver

KILLS, PROGRAM_KILLS, TWIN_KILLS, ROUNDS, SEED = 10, 50, 40, 2, 20260105
MANY_KILLS, OF_EACH, GATE, EVERY = 1000, 10, 200, int(os.environ.get("FAULTS_EVERY", "1"))


# ---------------------------------------------------------------- the program


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


def unlocked() -> None:
    """The known-bad scorer that believes to be alone."""
    from vae_anomaly.store.files import Store

    Store.lock = lambda store, folder, *, patience=0.0: contextlib.nullcontext()  # type: ignore[method-assign]


def killed(rounds: Rounds, moment: float) -> str | None:
    """Start a run and kill it after ``moment`` seconds; the phase that was hit, None where the run was over by then."""
    child = forked(rounds.score)
    time.sleep(moment)
    os.kill(child, signal.SIGKILL)
    return rounds.phases.now if wait(child) == -signal.SIGKILL else None


def killed_in(rounds: Rounds, phase: str, moment: float, patience: float) -> str | None:
    """The same, ``moment`` seconds after the run has come to ``phase``, or when ``patience`` seconds are over."""
    rounds.phases.forget()
    child, start = forked(rounds.score), time.perf_counter()
    while rounds.phases.now != phase and time.perf_counter() - start < patience:
        time.sleep(0.0001)
    time.sleep(moment)
    os.kill(child, signal.SIGKILL)
    return rounds.phases.now if wait(child) == -signal.SIGKILL else None


def healed(rounds: Rounds, reference: dict[str, str], keys: Counter[str], *, again: bool = True) -> list[str]:
    """What is wrong after one more whole run, or as it is where none is to come ``again``."""
    if again and (code := wait(forked(rounds.score))):
        return [f"the next run ended with {code}"]
    return rounds.faults(reference, keys, complete=True)


def kill_in_each(rounds: Rounds, kills: int, seed: int) -> dict[str, Any]:
    """Kills in each phase, ``kills`` of them, and a whole run after each: some phases are too short for chance."""
    noise = random.Random(seed)
    duration, reference, keys = rounds.undisturbed()
    hit: Counter[str] = Counter()
    bad: list[str] = []
    for number, phase in enumerate([phase for phase in rounds.phases.NAMES for _ in range(kills)]):
        for _ in range(10):
            rounds.fresh()
            found = killed_in(rounds, phase, noise.uniform(0, 0.002), 2 * duration)
            hit.update([found] if found else [])
            wrong = rounds.faults(reference, keys, complete=False) or healed(rounds, reference, keys)
            bad += [f"{phase}, {number}: {wrong[0]}"] if wrong else []
            if found == phase:
                break
    return {"seed": seed, "kills": hit, "bad": bad, "files": len(reference)}


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
        wrong = wrong or healed(rounds, reference, keys, again=bool(phase))
        bad += [f"round {number}: {wrong[0]}"] if wrong else []
    return {"seed": seed, "seconds": duration, "kills": hit, "late": late, "rounds": number, "bad": bad,
            "files": len(reference)}  # fmt: skip


def compete(rounds: Rounds, scorers: int, number: int) -> dict[str, Any]:
    """That many scorers at the same moment on the same inbox: everything once, nobody fails."""
    _, reference, keys = rounds.undisturbed()
    bad: list[str] = []
    for i in range(number):
        rounds.fresh()
        gate = os.pipe()

        def work(gate: tuple[int, int] = gate) -> int:
            os.close(gate[1])
            os.read(gate[0], 1)  # the end of the file, for all at the same time
            return rounds.score()

        children = [forked(work) for _ in range(scorers)]
        for end in gate:
            os.close(end)
        codes = [wait(child) for child in children]
        wrong = rounds.faults(reference, keys, complete=True)
        wrong += [f"exit codes {codes}"] if any(codes) else []
        wrong += ["an alert was told twice"] if rounds.keys() != keys else []
        bad += [f"round {i}: {wrong[0]}"] if wrong else []
    return {"rounds": number, "bad": bad, "alerts": keys.total()}


def job(name: str, rounds: Rounds) -> dict[str, Any]:
    slow_disk()
    what, _, scorers = name.partition("-")
    if what == "compete":
        return compete(rounds, int(scorers), ROUNDS)
    if what == "exhaust":
        return compete(rounds, int(scorers), GATE // EVERY)
    if what in ("ours", "many"):
        kills = KILLS if what == "ours" else MANY_KILLS // EVERY
        return kill(rounds, kills, SEED, enough=kills)
    if what == "each":
        return kill_in_each(rounds, OF_EACH, SEED)
    naive()
    if what == "careless":
        unlocked()
        return compete(rounds, int(scorers), 1)
    return kill(rounds, TWIN_KILLS, SEED, enough=2)


# ---------------------------------------------------------------- tests


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return ran(__file__, tmp_path_factory.mktemp("kills"), "ours", "naive", "compete-4", "careless-4")


def assert_harmless(result: dict[str, Any], kills: int) -> None:
    assert result["bad"] == [], result["stderr"]
    assert sum(result["kills"].values()) >= kills
    assert len(result["kills"]) >= 4, "the kills hit few phases"
    assert result["files"] > 35


def test_killed_at_random_moments_the_next_run_gives_the_same_bytes(results: Results) -> None:
    assert_harmless(results("ours"), KILLS)


@pytest.mark.faults
@pytest.mark.timeout(20_000)
def test_killed_at_many_random_moments(tmp_path: Path) -> None:
    """1,000 kills, or a part of that: ``FAULTS_EVERY``."""
    assert_harmless(ran(__file__, tmp_path, "many", limit=19_000)("many"), MANY_KILLS // EVERY)


@pytest.mark.faults
@pytest.mark.timeout(3600)
def test_killed_in_every_phase(tmp_path: Path) -> None:
    result = ran(__file__, tmp_path, "each", limit=3500)("each")
    assert result["bad"] == [], result["stderr"]
    assert {phase: result["kills"].get(phase, 0) >= OF_EACH for phase in Phases.NAMES} == dict.fromkeys(
        Phases.NAMES, True
    )


def test_a_scorer_that_takes_what_is_there_for_done_is_caught(results: Results) -> None:
    assert len(results("naive")["bad"]) == 2


def test_four_scorers_at_the_same_time_do_everything_once(results: Results) -> None:
    result = results("compete-4")
    assert (result["rounds"], result["bad"]) == (ROUNDS, []), result["stderr"]
    assert result["alerts"] >= 5


def test_careless_scorers_at_the_same_time_are_caught(results: Results) -> None:
    assert len(results("careless-4")["bad"]) == 1


@pytest.mark.faults
@pytest.mark.timeout(20_000)
@pytest.mark.parametrize("scorers", [2, 4, 8])
def test_many_races_of_scorers(tmp_path: Path, scorers: int) -> None:
    """200 of them, or a part of that: ``FAULTS_EVERY``."""
    result = ran(__file__, tmp_path, f"exhaust-{scorers}", limit=19_000)(f"exhaust-{scorers}")
    assert (result["rounds"], result["bad"]) == (GATE // EVERY, []), result["stderr"]


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
    while kills < PROGRAM_KILLS:
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
    jobs(Path(sys.argv[1]), job, sys.argv[2:])
