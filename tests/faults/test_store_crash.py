"""Kill the store at every I/O operation, disturb every operation, race two writers: whole files, once, the same bytes.

This file is also the program that does it (``python test_store_crash.py FOLDER``): it imports once and forks for each
fault, in a process of its own that has no threads. Known-bad writers must be caught by the same harness.
A kill leaves what was written to the operating system, synced or not, so the faults run without syncing; that syncs
come where they must is told from the trace of a run.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from store_samples import CONTRACT, MONITOR, refusal, scored, sha256, tree

from vae_anomaly.errors import VaeAnomalyError
from vae_anomaly.sinks import Alert, deliver
from vae_anomaly.store import files
from vae_anomaly.store.check import check
from vae_anomaly.store.commits import Ledger
from vae_anomaly.store.files import Store

QUICK = 3  # every third operation in the quick set
OPERATIONS = ("open", "write", "fsync", "link", "replace", "unlink", "mkdir")
ROUNDS = 50


# ---------------------------------------------------------------- what is disturbed: a small scoring run


def run(root: Path) -> None:
    """Score what is pending, quarantine what is broken, render, deliver: every kind of write that the store has."""
    store = Store(root / "output").prepare(MONITOR)
    ledger = Ledger(store)
    contents = {"a.csv": b"1", "again.csv": b"1", "broken.csv": b"?"}
    for row in ledger.pending([(name, sha256(content)) for name, content in contents.items()], CONTRACT):
        if row.name == "broken.csv":
            ledger.quarantine(refusal(row.name, contents[row.name]))
        else:
            commit, file, report = scored(store, row.name, contents[row.name])
            ledger.commit(commit, file, report=report)
    for commit in ledger.unrendered():
        store.replace(b"<html>" + commit.key.encode(), store.file(store.reports, commit.batch_id, ".html"))
    with store.lock(store.outbox):
        for due in ledger.pending_alerts(["file"]):
            alert = Alert(MONITOR, due.record.batch_id, due.idempotency_key, "3 flagged", "# 3 flagged\n")
            deliver(alert, "file", directory=store.alerts)
            ledger.mark_delivered(alert.batch_id, due.sink, idempotency_key=due.idempotency_key)


# ---------------------------------------------------------------- known-bad writers


def naive() -> None:
    """Writes under the final name, and takes what is there for done."""

    def publish(store: Store, content: Path | bytes, final: Path, *, replaceable: bool = False) -> None:
        if not final.exists():
            data = content if isinstance(content, bytes) else content.read_bytes()
            handle = os.open(final, os.O_WRONLY | os.O_CREAT, 0o644)
            os.write(handle, data)
            os.close(handle)
        if isinstance(content, Path):
            os.unlink(content)

    Store.publish = publish  # type: ignore[method-assign]


def record_first() -> None:
    """Publishes the commit record before the scores that it names."""
    publish, waiting = Store.publish, []

    def late(store: Store, content: Path | bytes, final: Path, *, replaceable: bool = False) -> None:
        waiting.append((content, final))
        if final.parent.name not in ("scores", "reports"):
            for args in reversed(waiting):
                publish(store, *args, replaceable=True)
            waiting.clear()

    Store.publish = late  # type: ignore[method-assign]


def overwriting() -> None:
    """Replaces in place what can be made again, without a temporary file."""

    def replace(content: bytes, final: Path, *, tmp: Path) -> None:
        handle = os.open(final, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.write(handle, content)
        os.close(handle)

    files.replace = replace


def no_sweep() -> None:
    """Never deletes what dead processes left."""
    files.sweep = lambda folder, **_: None


WRITERS: dict[str, Callable[[], None]] = {f.__name__: f for f in (naive, record_first, overwriting, no_sweep)}


# ---------------------------------------------------------------- the harness: one fault for each fork


class Faults:
    """Counts operations; at number ``at``: kill, torn (half a write, then kill) or error; short: all of them."""

    def __init__(self, at: int, action: str) -> None:
        self.at, self.action, self.count = at, action, 0
        for name in OPERATIONS:
            setattr(os, name, self._disturbed(name, getattr(os, name)))

    def _disturbed(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if name == "open" and self.action == "kill" and not args[1] & os.O_CREAT:
                return real(*args, **kwargs)  # it changes nothing: a kill here is one at the next operation
            self.count += 1
            if self.action == "short":
                return real(args[0], memoryview(args[1])[: len(args[1]) // 2 + 1])
            if self.count != self.at:
                return real(*args, **kwargs)
            if self.action == "error":
                number = errno.EIO if name == "fsync" else errno.ENOSPC
                raise OSError(number, os.strerror(number), str(args[0]))
            if self.action == "torn":
                real(args[0], memoryview(args[1])[: len(args[1]) // 2 + 1])
            return os.kill(os.getpid(), signal.SIGKILL)

        return call if name == "write" or self.action in ("kill", "error") else real


def forked(work: Callable[[], int]) -> int:
    """Exit code of ``work`` in a child, negative for a signal; 9 for an exception that users are not meant to see."""
    child = os.fork()
    if not child:
        code = 9
        try:
            code = work()
        except VaeAnomalyError:
            code = 3
        except BaseException as error:
            print(repr(error), file=sys.stderr)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def problems(store: Store, reference: dict[str, str]) -> list[str]:
    """What is wrong under final names: told by ``check``, and independently by comparison with the undisturbed run."""
    if not store.root.exists():
        return []
    told = [str(f) for f in check(store) if f.severity == "error"]
    found = {path: digest for path, digest in tree(store.root).items() if "/.part-" not in path and path[0] != "."}
    return told + [f"{path} differs" for path, digest in found.items() if reference.get(path) != digest]


def undisturbed(root: Path) -> Callable[[], int]:
    return lambda: run(root) or 0


def disturb(folder: Path, action: str, *, enough: int, every: int) -> dict[str, Any]:
    """Fault ``action`` at each ``every``-th operation; what was wrong after it, and after another, undisturbed run."""
    os.fsync = lambda handle: None
    assert forked(undisturbed(folder / "reference")) == 0
    reference = tree(folder / "reference" / "output")
    outcomes: dict[str, int] = {}
    bad: list[str] = []
    for at in range(1, 10_000, every):
        root = folder / f"{action}-{at}"
        root.mkdir()

        def faulty(root: Path = root, at: int = at) -> int:
            faults = Faults(at, action)
            run(root)
            return 1 if faults.count < at else 0

        code = forked(faulty)
        if code == 1 or len(bad) >= enough:  # there are not so many operations
            return {"operations": at - 1, "outcomes": outcomes, "bad": bad, "files": len(reference)}
        outcomes[str(code)] = outcomes.get(str(code), 0) + 1
        wrong = problems(Store(root / "output"), reference)
        if not wrong and forked(undisturbed(root)) != 0:
            wrong = ["the next run failed"]
        if not wrong and tree(root / "output") != reference:
            wrong = ["the next run's bytes differ"]
        bad += [f"{at}: {wrong[0]}"] if wrong else []
        shutil.rmtree(root)
        if action == "short":
            return {"outcomes": outcomes, "bad": bad}
    raise AssertionError("the run never ended")


def compete(folder: Path) -> dict[str, Any]:
    """Two processes with one batch, and every other time with two models, commit at the same moment."""
    wrong = []
    for number in range(ROUNDS):
        store = Store(folder / str(number)).prepare(MONITOR)
        gate = os.pipe()
        codes = os.pipe()
        children = [_competitor(store, gate, codes, str(1 + child * (number % 2))) for child in range(2)]
        os.close(gate[0])
        assert os.read(codes[0], 1) + os.read(codes[0], 1) == b"rr"
        os.close(gate[1])  # both read the end of the file now
        ends = sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)
        for end in codes:
            os.close(end)
        told = [str(f) for f in check(store) if f.severity == "error"]
        whole = len(list(Ledger(store).commits())) == 1 and os.listdir(store.tmp) == []
        if ends != [0, 1] or told or not whole:
            wrong.append(f"{number}: {ends} {told}")
    return {"rounds": ROUNDS, "bad": wrong}


def _competitor(store: Store, gate: tuple[int, int], codes: tuple[int, int], model: str) -> int:
    child = os.fork()
    if child:
        return child
    code = 9
    try:
        os.close(gate[1])
        commit, file, report = scored(store, "a.csv", b"1", model=model)
        os.write(codes[1], b"r")
        os.read(gate[0], 1)
        code = 0 if Ledger(store).commit(commit, file, report=report) else 1
    except BaseException as error:
        print(repr(error), file=sys.stderr)
    finally:
        os._exit(code)


JOBS = [("ours", "kill"), ("ours", "torn"), ("ours", "error"), ("ours", "short"), ("ours", "compete")]
JOBS += [("naive", "torn"), ("overwriting", "torn"), ("record_first", "kill"), ("no_sweep", "kill")]


def program(folder: Path, every: int) -> None:
    run(folder / "warm")  # what is imported late is imported here, once
    for writer, action in JOBS:
        place = folder / f"{writer}-{action}"
        place.mkdir()
        forked(lambda w=writer, a=action, p=place: job(w, a, p, every))


def job(writer: str, action: str, folder: Path, every: int) -> int:
    enough = 1000
    if writer in WRITERS:
        WRITERS[writer]()
        enough, every = 2, 1
    result = compete(folder) if action == "compete" else disturb(folder, action, enough=enough, every=every)
    (folder / "result.json").write_text(json.dumps(result))
    return 0


# ---------------------------------------------------------------- tests

Results = Callable[[str, str], dict[str, Any]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return ran(tmp_path_factory.mktemp("faults"), QUICK)


def ran(folder: Path, every: int) -> Results:
    """What came of a writer under an action; ``stderr`` is that of all jobs."""
    place = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, __file__, str(folder), str(every)]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=280, env=place, check=False)
    assert done.returncode == 0, done.stderr[-2000:]

    def result(writer: str, action: str) -> dict[str, Any]:
        path = folder / f"{writer}-{action}" / "result.json"
        assert path.exists(), done.stderr[-2000:]
        return json.loads(path.read_text()) | {"stderr": done.stderr[-2000:]}

    return result


@pytest.mark.parametrize("action", ["kill", "torn", "error"])
def test_a_fault_at_any_operation_leaves_whole_files_and_is_healed(results: Results, action: str) -> None:
    assert_healed(results("ours", action), action, QUICK)


@pytest.mark.faults
def test_a_fault_at_every_operation_leaves_whole_files_and_is_healed(tmp_path: Path) -> None:
    results = ran(tmp_path, 1)
    for action in ("kill", "torn", "error"):
        assert_healed(results("ours", action), action, 1)


def assert_healed(result: dict[str, Any], action: str, every: int) -> None:
    assert result["bad"] == []
    assert result["operations"] >= (40 if action == "torn" else 100)
    assert result["files"] == 12
    # an error is loud and in words for users; it is passed over only where what is left is deleted by the next run, or
    # where the mark of an alert cannot be read, which then is told again
    assert result["outcomes"].keys() == ({"3", "0"} if action == "error" else {"-9"}), result["stderr"]
    assert result["outcomes"].get("0", 0) <= {1: 11, QUICK: 5}[every]


def test_short_writes_are_completed(results: Results) -> None:
    result = results("ours", "short")
    assert (result["bad"], result["outcomes"]) == ([], {"0": 1})


@pytest.mark.parametrize(("writer", "action"), [job for job in JOBS if job[0] in WRITERS])
def test_known_bad_writers_are_caught(results: Results, writer: str, action: str) -> None:
    assert len(results(writer, action)["bad"]) >= 2


def test_two_processes_commit_once(results: Results) -> None:
    result = results("ours", "compete")
    assert (result["rounds"], result["bad"]) == (ROUNDS, []), result["stderr"]


def test_everything_is_durable_before_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(_undurable(_traced(tmp_path, monkeypatch))) == []


@pytest.mark.parametrize("lost", ["files", "folders"])
def test_a_lost_sync_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str) -> None:
    sync = files._sync
    monkeypatch.setattr(files, "_sync", lambda p: None if p.is_dir() == (lost == "folders") else sync(p))
    assert list(_undurable(_traced(tmp_path, monkeypatch)))


def _traced(root: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """(operation, path) of a run; the path of a link or replacement is ``old>new``."""
    trace: list[tuple[str, str]] = []
    paths: dict[int, str] = {}
    real = {name: getattr(os, name) for name in OPERATIONS}

    def opened(path: Any, *args: Any, **kwargs: Any) -> int:
        handle: int = real["open"](path, *args, **kwargs)
        paths[handle] = whole(path, kwargs.get("dir_fd"))
        return handle

    def whole(path: Any, folder: int | None) -> str:
        return str(path) if folder is None else os.path.join(paths[folder], path)

    def on_handle(name: str) -> Callable[..., Any]:
        return lambda handle, *rest: (trace.append((name, paths[handle])), real[name](handle, *rest))[1]

    def on_paths(name: str) -> Callable[..., Any]:
        def call(old: Any, new: Any, **where: Any) -> Any:
            trace.append((name, f"{whole(old, where.get('src_dir_fd'))}>{whole(new, where.get('dst_dir_fd'))}"))
            return real[name](old, new, **where)

        return call

    monkeypatch.setattr(os, "open", opened)
    for name in ("write", "fsync"):
        monkeypatch.setattr(os, name, on_handle(name))
    for name in ("link", "replace"):
        monkeypatch.setattr(os, name, on_paths(name))
    run(root)
    return trace


def _undurable(trace: list[tuple[str, str]]) -> Iterator[str]:
    """Names given to content that is not synced, and names given while the one before is not."""
    unsynced: set[str] = set()
    unsynced_names: set[str] = set()
    for operation, path in trace:
        old, _, new = path.partition(">")
        if operation == "write":
            unsynced.add(path)
        elif operation == "fsync":
            unsynced.discard(path)
            unsynced_names.discard(path)
        elif "/_tmp/" not in new and not new.rpartition("/")[2].startswith("."):
            if old in unsynced:
                yield f"{new} before its content"
            if unsynced_names:
                yield f"{new} before the names in {unsynced_names}"
            unsynced_names.add(new.rpartition("/")[0])
    yield from unsynced_names


if __name__ == "__main__":
    program(Path(sys.argv[1]), int(sys.argv[2]))
