"""Where jobs are carried out: in this process, in processes beside it, or by a Dask cluster.

=====================  ============================================================================================
``inline``             here; nothing stands between this process and a file that kills its parser
``processes:N``        in N worker processes, which hold what parses foreign files apart from the run that decides
``dask:N``             in N local Dask workers, each of which keeps such a process
``dask:tcp://H:P``     the same by the workers of a running scheduler, which see the same files under the same paths
=====================  ============================================================================================

A worker process has limits on its memory, its open files and the time without progress. Where it dies or is ended, the
job has failed, and the next one gets a new process. Scores do not depend on the engine: not one bit.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import re
import resource
import select
import signal
import subprocess
import sys
import time
from asyncio import CancelledError
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from vae_anomaly.config import ExecutionConfig
from vae_anomaly.errors import ConfigError
from vae_anomaly.store.records import decode
from vae_anomaly.worker import Ended, Job, Tell, in_order, perform

_log = logging.getLogger(__name__)
OPEN_FILES = 256
LONGEST_ANSWER = 2**20
START = 120.0  # seconds for a worker to import what it needs
AHEAD = 64  # jobs that wait on a cluster whose size is not ours to know
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Engine:
    """What carries out jobs: ``run`` gives what came of each, in their order, and looks a few ahead.

    ``workers`` is how many it carries out at a time.
    """

    run: Callable[[Iterable[Job]], Iterator[tuple[Job, Ended]]]
    workers: int


@contextmanager
def engine(config: ExecutionConfig, tell: Callable[[Job, int], None]) -> Iterator[Engine]:
    """The engine of ``execution.engine``; ``tell`` hears how many rows of a job are scored, from any thread, where the
    engine knows."""
    kind, _, where = config.engine.partition(":")
    limits = Limits(config.memory_gb, config.patience)
    if kind == "inline":
        yield Engine(lambda jobs: ((job, perform(job, partial(tell, job))) for job in jobs), 1)
    elif kind == "processes":
        with _processes(int(where), limits, tell) as made:
            yield made
    else:
        with _dask(where, limits) as made:
            yield made


# ---------------------------------------------------------------- worker processes


@dataclass(frozen=True)
class Limits:
    """Of a worker process: GB of memory beyond what it starts with, seconds without progress."""

    memory_gb: float
    patience: float


class WorkerDied(Exception):
    """A worker process gave no answer; the message says what became of it."""


class Worker:
    """A process that carries out one job after another: :func:`main` is what it runs.

    It dies with the thread that started it. Its standard error goes nowhere, for what a library says when it aborts may
    quote a record, but for ``--debug``; log messages come as answers.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits, self._rest, self._ready = limits, b"", False
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-m", "vae_anomaly.execution", str(os.getpid()), str(limits.memory_gb)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if _log.isEnabledFor(logging.DEBUG) else subprocess.DEVNULL,
            env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},  # its own threads take a chunk each
            start_new_session=True,  # Ctrl-C is the parent's
            bufsize=0,
        )

    def carry_out(self, job: Job, tell: Tell) -> Ended:
        """What comes of ``job``; raises :class:`WorkerDied`, after which another worker is needed."""
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(asdict(job)).encode() + b"\n")
            while True:
                answer = json.loads(self._line(self._limits.patience if self._ready else START))
                self._ready = True
                if "ended" in answer:
                    ended: Ended = decode(Ended, answer["ended"], "ended")
                    return ended
                if "log" in answer:
                    level, name, message = answer["log"]
                    logging.getLogger(str(name)).log(int(level), "%s", message)
                else:
                    tell(int(answer["rows"]))
        except WorkerDied:
            raise
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise WorkerDied(self._epitaph()) from error

    def _line(self, patience: float) -> bytes:
        assert self._process.stdout is not None
        handle, deadline = self._process.stdout.fileno(), time.monotonic() + patience
        while b"\n" not in self._rest:
            ready, _, _ = select.select([handle], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                self.end()
                raise WorkerDied(f"it was ended after {patience:g} s without progress.")
            read = os.read(handle, 65536)
            self._rest += read
            if not read or len(self._rest) > LONGEST_ANSWER:
                raise WorkerDied(self._epitaph())
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _epitaph(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=1)
        code = self._process.returncode
        self.end()
        if code is None:
            return "it was ended because its answer made no sense."
        return f"it died of {signal.Signals(-code).name}." if code < 0 else f"it ended with exit code {code}."

    def end(self) -> None:
        """Kill the process, whatever it does: a store survives that."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                with suppress(OSError):
                    pipe.close()


class Crew:
    """``count`` workers, of which a job takes one that is idle; one that died is replaced."""

    def __init__(self, count: int, limits: Limits) -> None:
        self._limits, self._closed = limits, False
        self._all = {Worker(limits) for _ in range(count)}  # all start at once, and import while others work
        self._idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for worker in self._all:
            self._idle.put(worker)

    def carry_out(self, job: Job, tell: Tell) -> Ended:
        """What comes of ``job``; where its worker dies, it has failed, and that counts.

        After a failure that counts the worker is replaced: who knows what the file has left in it.
        """
        worker = self._idle.get()
        try:
            ended = worker.carry_out(job, tell)
        except WorkerDied as death:
            ended = Ended(problem=f"the process that read it gave no answer: {death}", counts=not self._closed)
        if ended.counts:
            worker.end()
            self._all.discard(worker)
            worker = Worker(self._limits)
            self._all.add(worker)
        self._idle.put(worker)
        return ended

    def close(self) -> None:
        """End all workers; a job that is under way fails."""
        self._closed = True
        for worker in list(self._all):
            worker.end()


@contextmanager
def _processes(count: int, limits: Limits, tell: Callable[[Job, int], None]) -> Iterator[Engine]:
    crew = Crew(count, limits)
    with ThreadPoolExecutor(count) as pool:
        try:
            yield Engine(partial(in_order, pool, lambda job: crew.carry_out(job, partial(tell, job)), 2 * count), count)
        finally:
            crew.close()
            pool.shutdown(cancel_futures=True)


def main() -> None:
    """A worker process: jobs come on standard input, one a line; rows, log messages and results go to the output."""
    parent, memory_gb = int(sys.argv[1]), float(sys.argv[2])
    _die_with(parent)
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever a library prints is no answer

    def answer(**what: Any) -> None:
        answers.write(json.dumps(what).encode() + b"\n")

    class ToParent(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            answer(log=[record.levelno, record.name, record.getMessage()])

    logging.basicConfig(level=logging.WARNING, handlers=[ToParent()])
    import vae_anomaly.summary  # noqa: F401 - the heavy libraries, while the parent asks for the model

    _limit(memory_gb)
    answer(rows=0)
    for line in sys.stdin.buffer:
        ended = perform(decode(Job, json.loads(line), "job"), lambda rows: answer(rows=rows))
        answer(ended=asdict(ended))


def _die_with(parent: int) -> None:
    """See to it that the kernel kills this process when its parent is gone, where the kernel is Linux."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _limit(memory_gb: float) -> None:
    """Bound this process: data beyond what it has now, open files, and no core files."""
    status = Path("/proc/self/status")
    found = re.search(r"^VmData:\s+(\d+) kB", status.read_text(), re.MULTILINE) if status.exists() else None
    data = int(found[1]) * 1024 if found else 2**30
    for kind, most in (
        (resource.RLIMIT_DATA, data + int(memory_gb * 1e9)),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))


# ---------------------------------------------------------------- Dask


@contextmanager
def _dask(where: str, limits: Limits) -> Iterator[Engine]:
    try:
        from dask.distributed import Client, LocalCluster
    except ImportError as error:
        raise ConfigError(
            "execution.engine must be one that is installed. Got dask, which is not. Install the extra `dask`."
        ) from error
    if not _log.isEnabledFor(logging.DEBUG):  # else a dozen lines of who has met whom
        logging.getLogger("distributed").setLevel(logging.ERROR)
    cluster: Any = where
    if where.isdecimal():  # on loopback, and without pages for others to look at
        options = {"threads_per_worker": 1, "host": "127.0.0.1", "dashboard_address": None}
        cluster = LocalCluster(n_workers=int(where), **options)  # type: ignore[no-untyped-call]
    ahead = 2 * int(where) if where.isdecimal() else AHEAD
    with Client(cluster) as client:  # type: ignore[no-untyped-call]
        pool = client.get_executor(pure=False, retries=3)

        def workers() -> int:
            return len(client.scheduler_info(n_workers=-1)["workers"])

        outcome = Waiting(workers, limits.patience).outcome
        try:
            yield Engine(partial(in_order, pool, partial(_on_dask, limits), ahead, outcome=outcome), workers())
        finally:
            if not isinstance(cluster, str):
                cluster.close()


class Waiting:
    """For jobs of a cluster, which may be without workers, but for no more than ``patience`` seconds."""

    def __init__(self, workers: Callable[[], int], patience: float) -> None:
        self._workers, self._patience, self._seen = workers, patience, time.monotonic()

    def outcome(self, future: Future[Ended]) -> Ended:
        """What comes of a job; where the cluster does not carry it out it has failed, and the file is not to blame."""
        while True:
            over = time.monotonic() - self._seen > self._patience
            try:
                return future.result(timeout=0.0 if over else 1.0)
            except TimeoutError:
                if self._are_there():
                    self._seen = time.monotonic()
                elif over:
                    future.cancel()
                    return Ended(problem=f"the cluster has had no worker for {self._patience:g} s.")
            except (Exception, CancelledError) as error:
                _log.debug("a job of the cluster was lost", exc_info=True)
                return Ended(problem=f"the cluster did not carry it out ({type(error).__name__}).")

    def _are_there(self) -> bool:
        try:
            return self._workers() > 0
        except OSError:  # the scheduler does not answer
            return False


def _on_dask(limits: Limits, job: Job) -> Ended:
    """Carry out a job in the process that a Dask worker keeps beside it."""
    return _crew(limits).carry_out(job, lambda rows: None)


@lru_cache(maxsize=1)
def _crew(limits: Limits) -> Crew:
    return Crew(1, limits)


if __name__ == "__main__":
    main()
