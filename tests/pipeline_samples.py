"""One tiny monitor, fitted and promoted once for each test process through the command line, and copies of it.

The records are synthetic: an amount and a fee that follows it, counts, booleans, shops, times; labelled frauds among
them. A copy has files of its own and shares the tracking store, so it can score and must not fit or promote.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import io
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

PROGRAM = Path(sys.executable).with_name("vae-anomaly")
MONITOR = """\
name: shops
source: {training: training, inbox: inbox, settle_seconds: 0}
record_id: id
label: {column: label, anomalous: [fraud]}
columns:
  amount: {kind: number}
  fee: {kind: number}
  items: {kind: number}
  paid: {kind: boolean}
  shop: {kind: category}
  at: {kind: timestamp}
ignore: [note]
split: {validation: 0.15, calibration: 0.4}
model: {kind: mlp, hidden: [16], latent: 3}
training: {steps: 150}
threshold: {alpha: 0.05}
execution: {engine: inline}
"""
MODEL = "vae-anomaly.shops"


# ---------------------------------------------------------------- records


def table(rows: int = 60, seed: int = 0, *, frauds: int = 0) -> pa.Table:
    """Normal records; the last ``frauds`` of them have a fee that does not belong to their amount, and the label."""
    rng = np.random.default_rng(seed)
    amount = np.exp(rng.normal(3.0, 0.5, rows))
    fee = 0.1 + 0.02 * amount * np.exp(rng.normal(0, 0.05, rows))
    fee[rows - frauds :] *= 40
    seconds = rng.integers(0, 28 * 86_400, rows)
    at = np.datetime64("2026-01-05", "us") + (seconds * 1_000_000).astype("timedelta64[us]")
    return pa.table(
        {
            "id": [f"p{seed}-{i:05d}" for i in range(rows)],
            "amount": pa.array(amount, mask=rng.random(rows) < 0.03),
            "fee": fee,
            "items": 1 + rng.poisson(2, rows),
            "paid": pa.array(rng.random(rows) < 0.8, mask=rng.random(rows) < 0.05),
            "shop": pa.array(rng.choice(["cafe", "fuel", "kiosk"], rows, p=[0.5, 0.4, 0.1])),
            "at": pa.array(at).cast(pa.timestamp("us", "UTC")),
            "label": ["fraud" if i >= rows - frauds else "ok" for i in range(rows)],
        }
    )


def broken(found: pa.Table) -> pa.Table:
    """Two of the rows cannot be scored."""
    amount = found["amount"].to_numpy().copy()
    amount[[3, 40]] = np.inf
    return found.set_column(found.column_names.index("amount"), "amount", pa.array(amount))


def parquet(content: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(content, sink, **options)
    return bytes(sink.getvalue())


# ---------------------------------------------------------------- the command line


@dataclass(frozen=True)
class Said:
    """What a command gave back."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The lines on stderr that are not progress."""
        return [line for line in self.err.splitlines() if not line.endswith(" ...")]


def cli(*args: object, env: Mapping[str, str] | None = None) -> Said:
    """The command line in this process, as the installed program runs it but for syncs; what it sets up is undone."""
    import vae_anomaly.tracking  # noqa: F401 - it sets variables that are to stay
    from vae_anomaly.cli import main

    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch.object(sys, "argv", ["vae-anomaly", *map(str, args)]),
        mock.patch.object(os, "fsync"),
        mock.patch.dict(os.environ, _clean(os.environ) | dict(env or {}), clear=True),
        _logging_kept(),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
    return Said(code, out.getvalue(), err.getvalue())


def _clean(env: Mapping[str, str]) -> dict[str, str]:
    ours = ("VAE_ANOMALY_", "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
    return {name: value for name, value in env.items() if not name.startswith(ours)}


@contextlib.contextmanager
def _logging_kept() -> Iterator[None]:
    root, levels = logging.getLogger(), {n: logging.getLogger(n).level for n in logging.root.manager.loggerDict}
    handlers, level = root.handlers[:], root.level
    root.handlers[:] = []
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        for name, before in levels.items():
            logging.getLogger(name).setLevel(before)
        logging.captureWarnings(False)


def program(*args: object, cwd: Path, env: Mapping[str, str] | None = None) -> Said:
    """The installed program in a process of its own."""
    run, env = [str(PROGRAM), *map(str, args)], _clean(os.environ) | dict(env or {})
    done = subprocess.run(run, cwd=cwd, env=env, capture_output=True, text=True, timeout=120, check=False)
    return Said(done.returncode, done.stdout, done.stderr)


# ---------------------------------------------------------------- the monitor


def write_monitor(folder: Path, text: str = MONITOR) -> Path:
    """A folder with ``monitor.yml``, training records and an empty inbox; nothing fitted."""
    for name in ("training", "inbox"):
        (folder / name).mkdir(parents=True)
    pq.write_table(table(400, seed=1, frauds=10), folder / "training" / "normal.parquet")
    (folder / "monitor.yml").write_text(text)
    return folder


@functools.cache
def fitted() -> Path:
    """The monitor's folder after ``fit``, ``review`` and ``promote``; the commands' answers are in :func:`story`."""
    return _made()[0]


def story() -> dict[str, Said]:
    """What each command of the monitor's first life said, also those that came too early."""
    return _made()[1]


@functools.cache
def _made() -> tuple[Path, dict[str, Said]]:
    # in memory where that is possible: SQLite syncs a new store some hundred times
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    home = Path(tempfile.mkdtemp(prefix="vae-anomaly-test-", dir=memory))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    folder = write_monitor(home / "shops")
    (home / "mlflow.yml").write_text('server: {tracking_uri: "sqlite:///state/mlflow.db"}\n')
    said = {"early history": cli("history", folder), "fit": cli("fit", folder)}
    (folder / "inbox" / "early.parquet").write_bytes(parquet(table(5, seed=2)))
    said["early score"], said["early promote"] = cli("score", folder), cli("promote", folder, "--by", "ann")
    (folder / "inbox" / "early.parquet").unlink()
    said["review"] = cli("review", folder, "--json")
    said["promote"] = cli("promote", folder, "--by", "ann", "--reason", "first", "--json")
    said["idle score"] = cli("score", folder)
    assert said["promote"].code == 0, said
    return folder, said


def copy(to: Path) -> Path:
    """A copy of :func:`fitted` in the folder ``to``, with an empty inbox and no results yet."""
    home = fitted()
    folder = to / "shops"
    shutil.copytree(home, folder, ignore=shutil.ignore_patterns("output"))
    shutil.copytree(home / "output" / "models", folder / "output" / "models")
    (to / "mlflow.yml").write_text(shared_store())
    return folder


def shared_store() -> str:
    """An ``mlflow.yml`` for monitors of other names beside :func:`fitted`: making a store takes seconds."""
    return f'server: {{tracking_uri: "sqlite:///{fitted().parent}/state/mlflow.db"}}\n'


def deliver(folder: Path, **files: bytes | pa.Table) -> None:
    """Put files into the inbox: ``deliver(folder, **{"a.csv": b"..."})``; a table becomes Parquet."""
    for name, content in files.items():
        data = parquet(content) if isinstance(content, pa.Table) else content
        (folder / "inbox" / name).write_bytes(data)


@contextlib.contextmanager
def shared_by(workers: int) -> Iterator[None]:
    """Jobs as for so many workers, which share every file, all of them in this process."""
    from vae_anomaly import scoring
    from vae_anomaly.execution import Engine
    from vae_anomaly.worker import perform

    @contextlib.contextmanager
    def here(config: object, tell: object) -> Iterator[Engine]:
        yield Engine(lambda jobs: ((job, perform(job, lambda rows: None)) for job in jobs), workers)

    with mock.patch.object(scoring, "engine", here), mock.patch.object(scoring, "DIVIDED", 1):
        yield


# ---------------------------------------------------------------- what was committed


def committed(folder: Path) -> dict[str, Any]:
    """The commits that stand, by the name of their file."""
    from vae_anomaly.store.commits import Ledger
    from vae_anomaly.store.files import Store

    commits = list(Ledger(Store(folder / "output")).commits())
    gone = {commit.supersedes for commit in commits}
    return {commit.name: commit for commit in commits if commit.batch_id not in gone}


def scores(folder: Path, commit: Any) -> pa.Table:
    """The rows of its score file."""
    return pq.read_table(folder / "output" / commit.scores.file)


def by_rows_and_workers(folder: Path, to: Path) -> list[dict[str, str]]:
    """Score files and commits of copies of ``folder`` in ``to`` after a large batch, for one worker and for three."""
    from store_samples import tree

    from vae_anomaly.store.check import check
    from vae_anomaly.store.files import Store

    found = []
    for workers in (1, 3):
        shutil.copytree(folder.parent, home := to / str(workers))
        deliver(home / folder.name, **{"other.parquet": broken(table(3000, 32, frauds=100))})
        with shared_by(workers):
            assert cli("score", home / folder.name).code == 0
        kept = tree(home / folder.name / "output")
        found.append({name: digest for name, digest in kept.items() if name.startswith(("scores", "commits"))})
        assert check(Store(home / folder.name / "output")) == []
    return found


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many records are scored from now on, each time; not those by which flagged ones are explained."""
    from vae_anomaly import summary
    from vae_anomaly.detector import Detector
    from vae_anomaly.report.model import Counterfactual

    rows: list[int] = []
    detect = Detector.detect

    def counting(self: Detector, records: Any) -> Any:
        rows.append(len(records))
        return detect(self, records)

    monkeypatch.setattr(Detector, "detect", counting)
    monkeypatch.setattr(summary, "counterfactuals", lambda _, found, __: [Counterfactual((), None, 0)] * len(found))
    return rows
