"""Worker processes: a file that kills, stalls or starves its reader costs itself; every engine gives the same bytes.

What a parser might do is done for real: the worker process imports ``sitecustomize.py`` below, in which reading a file
of a certain name is a crash, an endless loop, or a demand for memory or for descriptors.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pipeline_samples import PROGRAM, Said, cli, copy, deliver, parquet, shared_by, table
from store_samples import tree, untimed
from system_samples import children_of

from vae_anomaly import scoring, worker
from vae_anomaly.execution import Waiting
from vae_anomaly.store import sources
from vae_anomaly.store.check import check
from vae_anomaly.store.commits import Ledger
from vae_anomaly.store.files import Store
from vae_anomaly.worker import Ended

POISON = """
import os, signal, sys
if "vae_anomaly.execution" in " ".join(sys.orig_argv):
    from vae_anomaly.store import sources
    real = sources.read_chunks
    def read_chunks(delivery, *args, **kwargs):
        kind = delivery.name.partition(".")[0]
        if kind == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if kind == "loop":
            while True:
                pass
        if kind == "memory":
            bytearray(3 * 10**9)
        if kind == "files":
            for _ in range(100_000):  # and leaves them open
                os.open("/dev/null", os.O_RDONLY)
        if kind == "noise":
            print("zq-private on standard output", flush=True)
            os.write(2, b"zq-private on standard error\\n")
        if kind == "slow":
            open(os.environ["SLOW"], "w").write(str(os.getpid()))
            signal.pause()
        return real(delivery, *args, **kwargs)
    sources.read_chunks = read_chunks
"""
RESULTS = ("scores", "commits", "reports", "quarantine", "outbox", "attempts")
States = dict[str, dict[str, object]]
KINDS = ("crash", "loop", "memory", "files")


def engine(folder: Path, name: str, **more: object) -> Path:
    """The monitor with this engine."""
    config = folder / "monitor.yml"
    options = ", ".join(f"{key}: {value}" for key, value in more.items())
    config.write_text(config.read_text().replace("engine: inline", f'engine: "{name}", {options}'.rstrip(", ")))
    return folder


def results(folder: Path) -> dict[str, str]:
    return {name: digest for name, digest in untimed(tree(folder / "output")).items() if name.startswith(RESULTS)}


def states(folder: Path) -> States:
    return {row["name"]: row for row in json.loads(cli("status", folder, "--json").out)}


# ---------------------------------------------------------------- poison


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], tuple[Path, Said]]:
    """A run over one file of each kind and a good one beside them; each call is one more run."""
    home = tmp_path_factory.mktemp("poison")
    (home / "sitecustomize.py").write_text(POISON)
    folder = engine(copy(home), "processes:2", memory_gb=1, patience=10)
    bad = {f"{kind}.parquet": table(20, 40 + i) for i, kind in enumerate((*KINDS, "noise"))}
    deliver(folder, **bad, **{"good.parquet": table(30, 9)})
    path = os.pathsep.join([str(home), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    return lambda: (folder, cli("score", folder, "--json", env={"PYTHONPATH": path}))


@pytest.fixture(scope="module")
def runs(poisoned: Callable[[], tuple[Path, Said]]) -> list[tuple[Said, States]]:
    """What two runs said, and the state after each; between them a run that failed in the same way."""
    folder, first = poisoned()
    said = [(first, states(folder))]
    ledger = Ledger(Store(folder / "output"))
    for attempt in list(ledger.attempts()):
        ledger.attempted(attempt)
    folder, second = poisoned()
    return [*said, (second, states(folder))]


def test_poison_costs_itself_and_the_others_go_on(runs: list[tuple[Said, States]]) -> None:
    said, there = runs[0]
    found = {batch["name"].partition(".")[0]: batch for batch in json.loads(said.out)["batches"]}
    assert said.code == 3
    verdicts = {kind: batch["verdict"] for kind, batch in found.items()}
    assert verdicts == dict.fromkeys(KINDS, "failed") | {"good": "committed", "noise": "committed"}
    assert "SIGSEGV" in found["crash"]["problem"]
    assert "10 s without progress" in found["loop"]["problem"]
    assert "memory_gb" in found["memory"]["problem"]
    assert "zq-private" not in said.out + said.err
    assert (there["files.parquet"]["state"], there["crash.parquet"]["state"]) == ("failed", "failed")
    assert there["crash.parquet"]["attempts"] == 1


def test_the_third_attempt_is_the_last(runs: list[tuple[Said, States]]) -> None:
    said, there = runs[1]
    poison = {f"{kind}.parquet" for kind in KINDS}
    assert {name for name, row in there.items() if row["state"] == "quarantined"} == poison
    reasons = {b["name"]: b["problem"] for b in json.loads(said.out)["batches"] if b["verdict"] == "quarantined"}
    assert set(reasons) == poison
    assert all(reason.startswith("poison: ") and "3 attempts" in reason for reason in reasons.values())


def test_the_store_is_sound_after_all(
    runs: list[tuple[Said, States]], poisoned: Callable[[], tuple[Path, Said]]
) -> None:
    folder, again = poisoned()
    assert json.loads(again.out)["batches"] == []
    assert check(Store(folder / "output")) == []
    assert os.listdir(folder / "output" / "attempts") == []
    # another contract is another question
    config = folder / "monitor.yml"
    config.write_text(config.read_text().replace("settle_seconds: 0", 'settle_seconds: 0, csv: {delimiter: ";"}'))
    assert states(folder)["crash.parquet"]["state"] == "pending"


# ---------------------------------------------------------------- the same bytes, and no one is left over


@pytest.fixture(scope="module")
def inline(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return scored(tmp_path_factory.mktemp("inline"), batches(), code=3)


def scored(place: Path, files: dict[str, Any], *, code: int) -> dict[str, str]:
    """The results of files that one process has scored."""
    folder = copy(place)
    deliver(folder, **files)
    assert cli("score", folder).code == code
    return results(folder)


def batches() -> dict[str, Any]:
    """Among them a copy, a refused file, and one content under two suffixes."""
    days = {f"day-{i}.parquet": table(150 + i, 60 + i, frauds=i) for i in range(4)}
    short = {"short.csv": b"id,amount\n1,2\n", "short.txt": b"id,amount\n1,2\n"}
    return days | short | {"again.parquet": table(152, 62, frauds=2)}


@pytest.mark.parametrize(
    "name", ["processes:3", *(pytest.param(name, marks=pytest.mark.faults) for name in ("processes:1", "dask:2"))]
)
def test_every_engine_gives_the_same_bytes(tmp_path: Path, inline: dict[str, str], name: str) -> None:
    folder = engine(copy(tmp_path), name)
    deliver(folder, **batches())
    said = cli("score", folder)
    assert (said.code, [line for line in said.errors if "shops" not in line]) == (3, [])
    assert results(folder) == inline
    assert check(Store(folder / "output")) == []


def huge() -> dict[str, bytes]:
    """A file for several workers, whose row groups are no multiple of anything, its copy, and one that has no parts."""
    lines = "".join(json.dumps(row, default=str) + "\n" for row in table(100, 78).to_pylist())
    records = parquet(table(33_000, 77, frauds=40), row_group_size=7001)
    return {"huge.parquet": records, "later.parquet": records, "small.jsonl": lines.encode()}


@pytest.fixture(scope="module")
def huge_inline(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return scored(tmp_path_factory.mktemp("huge"), huge(), code=0)


@pytest.mark.parametrize("name", ["processes:2", pytest.param("dask:2", marks=pytest.mark.faults)])
def test_a_file_that_workers_share_gives_the_same_bytes(
    tmp_path: Path, huge_inline: dict[str, str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares: list[object] = []
    end = scoring._Run._end
    monkeypatch.setattr(scoring, "DIVIDED", 1)
    monkeypatch.setattr(scoring._Run, "_end", lambda run, job, ended: (shares.append(ended.part), end(run, job, ended)))
    folder = engine(copy(tmp_path), name, threads=2)
    deliver(folder, **huge())
    assert cli("score", folder).code == 0
    assert results(folder) == huge_inline
    assert check(Store(folder / "output")) == []
    assert len([part for part in shares if part]) == int(name[-1])  # the other one was not divided
    assert os.listdir(folder / "output" / "_tmp") == []


def test_a_shared_file_is_refused_in_the_same_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows far apart, in one part of two, whose chunks begin elsewhere than those of the whole file."""
    times = [value.isoformat() for value in table(40_000, 5)["at"].to_pylist()]
    for row in (29_000, 34_000):
        times[row] = times[row][:19]
    records = table(40_000, 5).set_column(table(1).column_names.index("at"), "at", pa.array(times))
    said = []
    for workers in (1, 2, 3):
        folder = copy(tmp_path / str(workers))
        deliver(folder, **{"huge.parquet": parquet(records)})
        with shared_by(workers):
            assert cli("score", folder).code == 3
        said.append(tree(folder / "output" / "quarantine"))
        assert os.listdir(folder / "output" / "_tmp") == []
    assert len(said[0]) == 1
    assert said[0] == said[1] == said[2]


def test_what_the_machine_does_to_a_part_is_no_fault_of_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*args: object, **options: object) -> Iterator[Any]:
        raise OSError(errno.EMFILE, "Too many open files", "huge.parquet")
        yield

    folder = copy(tmp_path)
    deliver(folder, **{"huge.parquet": table(100, 5)})
    with shared_by(2), monkeypatch.context() as patched:
        patched.setattr(worker, "read_chunks", failing)
        said = cli("score", folder, "--json")
    (batch,) = json.loads(said.out)["batches"]
    assert "Too many open files" in batch["problem"] and "writable" not in batch["problem"]
    assert "Attempt 1 of 3" in batch["problem"]


@pytest.mark.parametrize("workers", [0, 2])
def test_parts_need_not_end_where_chunks_do_and_no_worker_is_no_reason_to_skip_a_file(
    tmp_path: Path, huge_inline: dict[str, str], workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of wide tables come a few thousand at a time, and a cluster may have no worker yet."""
    monkeypatch.setattr(sources, "LARGEST_TABLE", 600_000)
    folder = copy(tmp_path)
    deliver(folder, **huge())
    with shared_by(workers):
        assert cli("score", folder).code == 0
    ours = {name: digest for name, digest in results(folder).items() if name.startswith("scores")}
    assert ours == {name: digest for name, digest in huge_inline.items() if name.startswith("scores")}


@pytest.mark.parametrize("runs", [2, pytest.param(20, marks=pytest.mark.faults)])
def test_g16_repeated_with_any_number_of_threads_the_bytes_are_the_same(
    tmp_path: Path, huge_inline: dict[str, str], runs: int
) -> None:
    for run in range(runs):
        folder = engine(copy(tmp_path / str(run)), "inline", threads=1 + run % 5)
        deliver(folder, **huge())
        assert cli("score", folder).code == 0
        assert results(folder) == huge_inline


def test_what_failed_is_not_scored_under_another_name_in_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model cannot be fetched for the first file; for its copy it could."""
    folder = engine(copy(tmp_path), "inline")
    fetched, calls = scoring._fetched, iter([OSError(28, "No space left on device")])

    def failing(*args: Any) -> Any:
        if error := next(calls, None):
            raise error
        return fetched(*args)

    monkeypatch.setattr(scoring, "_fetched", failing)
    deliver(folder, **dict.fromkeys(("again.parquet", "day.parquet"), table(30, 3)))
    assert cli("score", folder).code == 3
    assert {name: row["state"] for name, row in states(folder).items()}["again.parquet"] == "pending"
    assert os.listdir(folder / "output" / "commits") == []
    assert cli("score", folder).code == 0
    assert [name[:6] for name in os.listdir(folder / "output" / "commits")] == ["again-"]


def test_a_part_that_fails_costs_one_attempt_and_the_next_run_scores_the_file(
    tmp_path: Path, huge_inline: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(POISON.replace('kind == "crash"', 'kind == "huge"'))
    monkeypatch.setattr(scoring, "DIVIDED", 1)
    folder = engine(copy(tmp_path), "processes:2")
    deliver(folder, **huge())
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    assert cli("score", folder, env={"PYTHONPATH": path}).code == 3
    assert states(folder)["huge.parquet"]["attempts"] == 1
    assert states(folder)["small.jsonl"]["state"] == "committed"
    assert cli("score", folder).code == 0
    assert results(folder) == huge_inline
    assert os.listdir(folder / "output" / "_tmp") == []


def test_a_job_that_a_cluster_never_carries_out_has_failed_and_no_file_is_to_blame() -> None:
    there = [0]
    waiting = Waiting(lambda: there[0], 2.5)
    done, never, broken = Future[Ended](), Future[Ended](), Future[Ended]()
    done.set_result(Ended(batch="a"))
    broken.set_exception(RuntimeError("KilledWorker"))
    assert waiting.outcome(done) == Ended(batch="a")
    assert waiting.outcome(broken) == Ended(problem="the cluster did not carry it out (RuntimeError).")
    start = time.monotonic()
    lost = Ended(problem="the cluster has had no worker for 2.5 s.")
    assert waiting.outcome(never) == lost
    assert 2 < time.monotonic() - start < 20
    start = time.monotonic()
    assert waiting.outcome(Future[Ended]()) == lost  # and the others of the run do not wait as long again
    assert time.monotonic() - start < 2
    there[0] = 1  # while there is one it may take as long as it takes: its own patience ends what stands still
    slow = Future[Ended]()
    threading.Timer(4.0, slow.set_result, [Ended(batch="b")]).start()
    assert waiting.outcome(slow) == Ended(batch="b")


@pytest.mark.faults
def test_a_cluster_without_workers_ends_the_run_and_loses_nothing(tmp_path: Path, inline: dict[str, str]) -> None:
    file = tmp_path / "scheduler.json"
    command = ["--host", "127.0.0.1", "--no-dashboard", "--port", "0", "--scheduler-file", str(file)]
    program = [sys.executable, "-m", "distributed.cli.dask_scheduler", *command]
    scheduler = subprocess.Popen(program, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not file.exists():
            time.sleep(0.05)
        address = f"dask:{json.loads(file.read_text())['address']}"
        folder = engine(copy(tmp_path), address, patience=4)
        deliver(folder, **batches())
        said = cli("score", folder, "--json")
    finally:
        scheduler.kill()
        scheduler.wait()
    found = json.loads(said.out)["batches"]
    assert said.code == 3
    assert {batch["verdict"] for batch in found} == {"failed"}
    assert all("the cluster has had no worker for 4 s. It will be tried again." in batch["problem"] for batch in found)
    (folder / "monitor.yml").write_text((folder / "monitor.yml").read_text().replace(address, "inline"))
    assert cli("score", folder).code == 3  # one is refused
    assert results(folder) == inline


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_a_cluster_of_other_processes_whose_workers_are_killed_gives_the_same_bytes(
    tmp_path: Path, inline: dict[str, str]
) -> None:
    address = tmp_path / "scheduler.json"
    file = ["--scheduler-file", str(address)]

    def start(what: str, *options: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"distributed.cli.{what}", "--host", "127.0.0.1", "--no-dashboard", *options]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen([*command, *file], cwd=tmp_path, **quiet)  # type: ignore[call-overload, no-any-return]

    def start_workers() -> subprocess.Popen[bytes]:
        return start("dask_worker", "--nworkers", "2", "--nthreads", "1")

    scheduler, workers = start("dask_scheduler", "--port", "0"), start_workers()
    while not address.exists():
        time.sleep(0.05)
    at = json.loads(address.read_text())["address"]
    folder = engine(copy(tmp_path), f"dask:{at}")
    deliver(folder, **batches())
    killed: list[int] = []
    try:
        run = subprocess.Popen([str(PROGRAM), "score", str(folder)])
        while run.poll() is None:
            time.sleep(1.5)
            if workers.poll() is not None:  # one that is killed while it starts is not started again
                workers = start_workers()
            if len(killed) < 3 and (alive := children_of(workers.pid)):
                os.kill(alive[len(killed) % len(alive)], signal.SIGKILL)
                killed.append(1)
        code = run.returncode
        for _ in range(3):  # a batch whose worker was killed three times is left to the next run
            if code == 3 and results(folder) != inline:
                code = cli("score", folder).code
    finally:
        workers.kill()
        scheduler.kill()
        workers.wait()
        scheduler.wait()
    assert killed
    assert results(folder) == inline
    assert check(Store(folder / "output")) == []


def test_workers_die_with_their_run(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(POISON)
    folder = engine(copy(tmp_path), "processes:2")
    deliver(folder, **{"slow.parquet": table(20, 3)})
    sign = tmp_path / "sign"
    env = os.environ | {"PYTHONPATH": str(tmp_path), "SLOW": str(sign)}
    for ending in (signal.SIGKILL, signal.SIGINT):
        sign.unlink(missing_ok=True)
        run = subprocess.Popen(
            [str(PROGRAM), "score", str(folder)],
            env=env,
            stderr=subprocess.PIPE,
            text=True,
        )
        while not (sign.exists() and sign.read_text()):
            assert run.poll() is None
            time.sleep(0.05)
        family = [int(sign.read_text()), *children_of(run.pid)]
        run.send_signal(ending)
        _, err = run.communicate(timeout=20)
        assert run.returncode == (130 if ending == signal.SIGINT else -ending)
        assert "Traceback" not in err
        deadline = time.monotonic() + 10
        while any(Path(f"/proc/{pid}").exists() for pid in family):
            assert time.monotonic() < deadline, "a worker outlived its run"
            time.sleep(0.05)
    assert not [name for name in results(folder) if not name.startswith("attempts")]
