"""Gates of hostile input: nothing of a model folder runs, own files show every damage, nothing leaks, nothing listens.

The programs run for real, with a ``sitecustomize`` that writes down what Python's audit hooks say in all of their
processes: what was unpickled, which files were executed or imported, and who was connected to.
"""

from __future__ import annotations

import gzip
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from pipeline_samples import PROGRAM, copy, deliver, fitted, parquet, program, table, write_monitor
from store_samples import put
from system_samples import Payload, family, listening

from vae_anomaly.batch import Records
from vae_anomaly.detector import Detector
from vae_anomaly.errors import ArtifactError, DataError
from vae_anomaly.store.check import check
from vae_anomaly.store.files import Store
from vae_anomaly.store.sources import open_delivery

SPY = """
import os, sys
LOG = os.environ.get("SPY_LOG")
if LOG:
    WATCHED = ("pickle.find_class", "socket.connect", "socket.bind", "os.system")
    handle = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    def spy(event, args, PLACE=os.environ.get("SPY_PLACE", "")):
        if event in WATCHED:
            said = ".".join(map(str, args[:2])) if event == "pickle.find_class" else repr(args[-1])
            os.write(handle, f"{event} {said}\\n".encode(errors="replace"))
        elif PLACE and event in ("exec", "import", "compile"):
            name = getattr(args[0], "co_filename", args[1] if len(args) > 1 else "")
            if PLACE in str(name):
                os.write(handle, f"{event} {name}\\n".encode(errors="replace"))
    sys.addaudithook(spy)
"""
PAYLOAD = "import pathlib; pathlib.Path({mark!r}).touch()\n"


@pytest.fixture
def spied(tmp_path: Path) -> Callable[..., tuple[subprocess.CompletedProcess[str], list[str]]]:
    """The installed program, and what its processes did."""
    (tmp_path / "spy").mkdir()
    (tmp_path / "spy" / "sitecustomize.py").write_text(SPY)
    log = tmp_path / "spy.log"

    def run(*args: object, place: object = "", **env: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        log.unlink(missing_ok=True)
        log.touch()
        paths = [str(tmp_path / "spy"), str(Path(__file__).parents[2])]
        found = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "SPY_LOG": str(log), "SPY_PLACE": str(place)} | env
        command = [str(PROGRAM), *map(str, args)]
        done = subprocess.run(command, env=found, capture_output=True, text=True, timeout=200, check=False)
        return done, log.read_text().splitlines()

    return run


def in_workers(folder: Path) -> Path:
    """The monitor with worker processes, as it is by default."""
    config = folder / "monitor.yml"
    config.write_text(config.read_text().replace("execution: {engine: inline}\n", ""))
    return folder


# ---------------------------------------------------------------- G7: no code runs from a model folder


def carriers(folder: Path, mark: Path) -> list[str]:
    """Twelve ways by which a model folder could bring code, planted; each would leave ``mark``."""
    code = PAYLOAD.format(mark=str(mark))
    (folder / "code").mkdir(exist_ok=True)
    bomb = Payload(mark)
    plants: dict[str, bytes] = {
        "python_model.pkl": pickle.dumps(bomb),
        "model.joblib": pickle.dumps({"model": bomb}, protocol=2),
        "state.pkl.gz": gzip.compress(pickle.dumps(bomb)),
        "model.py": code.encode(),
        "__init__.py": code.encode(),
        "sitecustomize.py": code.encode(),
        "code/loader.py": code.encode() + b"def _load_pyfunc(path):\n    return None\n",
        "MLmodel": b"flavors: {python_function: {loader_module: loader, code: code, model_code_path: model.py}}\n",
        "requirements.txt": f"--index-url file://{mark}\nnothing-of-this-name\n".encode(),
        "config.yaml": f"!!python/object/apply:os.mknod [{mark}]\n".encode(),
    }
    for name, content in plants.items():
        (folder / name).write_bytes(content)
    torch.save(bomb, folder / "weights.pth")
    np.save(folder / "objects.npy", np.array([bomb], dtype=object), allow_pickle=True)
    return [*plants, "weights.pth", "objects.npy"]


@pytest.mark.faults
def test_g7_no_code_runs_from_a_model_folder(tmp_path: Path, spied: Callable[..., object]) -> None:
    folder, mark = in_workers(copy(tmp_path)), tmp_path / "it-ran"
    deliver(folder, **{"day.parquet": table(30, 3)})
    (model,) = (p for p in (folder / "output" / "models").iterdir() if p.is_dir())
    assert len(carriers(model, mark)) == 12
    done, seen = spied("score", folder, place=model)  # type: ignore[misc]
    assert done.returncode == 0, done.stderr
    assert "Downloading it again" in done.stderr  # what is more than the manifest says is no copy of the model
    assert not mark.exists()
    assert [line for line in seen if not line.startswith("socket")] == []
    assert not (model / "MLmodel").exists()


@pytest.mark.faults
def test_g7_no_code_runs_from_the_registry(tmp_path: Path, spied: Callable[..., object]) -> None:
    folder, mark = in_workers(copy(tmp_path)), tmp_path / "it-ran"
    shutil.rmtree(folder / "output" / "models")
    deliver(folder, **{"day.parquet": table(30, 3)})
    (detector,) = (fitted().parent / "state" / "artifacts").glob("**/artifacts/detector")
    model = detector.parents[1]
    shutil.copytree(model, tmp_path / "aside")
    try:
        carriers(detector, mark)
        carriers(model, mark)
        done, seen = spied("score", folder, place=model)  # type: ignore[misc]
    finally:
        shutil.rmtree(model)
        shutil.copytree(tmp_path / "aside", model)
    assert done.returncode == 4, done.stderr
    assert not mark.exists()
    assert [line for line in seen if not line.startswith("socket")] == []
    assert len(done.stderr.splitlines()[-1]) > 40 and "Traceback" not in done.stderr


@pytest.mark.faults
def test_g7_the_spy_has_teeth(tmp_path: Path, spied: Callable[..., object]) -> None:
    mark, place = tmp_path / "it-ran", tmp_path / "model"
    place.mkdir()
    carriers(place, mark)
    script = (
        f"import pickle, sys; sys.path.insert(0, {str(place)!r}); sys.modules.pop('sitecustomize');"
        f"pickle.load(open({str(place / 'python_model.pkl')!r}, 'rb')); import model"
    )
    env = os.environ | {
        "PYTHONPATH": str(tmp_path / "spy"),
        "SPY_LOG": str(tmp_path / "log"),
        "SPY_PLACE": str(place),
    }
    subprocess.run([sys.executable, "-c", script], env=env, check=True)
    seen = (tmp_path / "log").read_text()
    assert mark.exists()
    assert "pickle.find_class" in seen
    assert f"exec {place}/model.py" in seen


# ---------------------------------------------------------------- G5: damage of own files is never silent


def flipped(content: bytes, at: int) -> bytes:
    damaged = bytearray(content)
    damaged[at // 8] ^= 1 << at % 8
    return bytes(damaged)


def damages(content: bytes, seed: int, count: int) -> Iterator[bytes]:
    """``count`` flips of one bit at random, and cuts at 32 places."""
    noise = random.Random(seed)
    yield from (flipped(content, noise.randrange(8 * len(content))) for _ in range(count))
    yield from (content[: len(content) * i // 32] for i in range(32))


def test_g5_every_damage_of_the_store_is_reported(tmp_path: Path) -> None:
    store = Store(tmp_path / "output").prepare("payments")
    commit = put(store, "a.csv", b"1")
    paths = [store.root / ref for ref in (commit.scores.file, commit.report.file, f"commits/{commit.batch_id}.json")]
    store.replace(b"<html>", store.file(store.reports, commit.batch_id, ".html"))
    assert check(store) == []
    tried, silent = 0, []
    for path in paths:
        content = path.read_bytes()
        for damaged in damages(content, seed=7, count=340):
            if damaged == content:
                continue
            path.write_bytes(damaged)
            tried += 1
            silent += [] if any(f.severity == "error" for f in check(store)) else [f"{path.name}: {len(damaged)} bytes"]
        path.write_bytes(content)
    assert tried > 1000
    assert silent == []


def test_g5_every_damage_of_a_model_is_refused(tmp_path: Path) -> None:
    (model,) = (p for p in (copy(tmp_path) / "output" / "models").iterdir() if p.is_dir())
    digest, silent = model.name, []
    assert Detector.load(model, digest=digest).digest == digest
    for path in sorted(model.iterdir()):
        content = path.read_bytes()
        for damaged in damages(content, seed=3, count=60):
            path.write_bytes(damaged)
            try:
                Detector.load(model, digest=digest)
                silent.append(f"{path.name}: {len(damaged)} bytes")
            except ArtifactError:
                pass
        path.write_bytes(content)
    assert silent == []


# ---------------------------------------------------------------- G10: secrets and records stay where they are


@pytest.mark.faults
def test_g10_neither_secrets_nor_records_leak(tmp_path: Path, spied: Callable[..., object]) -> None:
    secret, word = "zq-secret-7731", "zq-word-4242"
    folder = in_workers(copy(tmp_path))
    deliver(folder, **{"good.parquet": table(20, 6)})
    held = dict.fromkeys(("MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY", "PREFECT_API_KEY"), secret)
    done, _ = spied("--debug", "score", folder, **held)  # type: ignore[misc]
    assert done.returncode == 0, done.stderr
    assert secret not in done.stdout + done.stderr
    cells = table(30, 5).to_pydict()
    cells["amount"] = [word, *map(str, cells["amount"][1:])]
    import pyarrow as pa

    deliver(folder, **{"bad.parquet": parquet(pa.table(cells)), "cut.csv": f"id,amount\n{word}".encode()})
    (folder / "inbox" / "line.jsonl").write_text(f'{{"id": "1", "{word}": \n')
    dead = f"http://user:{secret}@127.0.0.1:9"
    everything = ""
    for debug in ([], ["--debug"]):
        done, _ = spied(*debug, "score", folder, MLFLOW_TRACKING_URI=dead, **held)  # type: ignore[misc]
        assert done.returncode in (0, 3), done.stderr
        everything += done.stdout + done.stderr if not debug else ""
        assert secret not in done.stdout + done.stderr
    kept = [path for path in folder.rglob("*") if path.is_file() and "inbox" not in path.parts]
    runs = [path for path in (fitted().parent / "state").rglob("*") if path.is_file()]
    assert "mlflow.db" in {path.name for path in runs}
    kept += runs
    everything += "".join(path.read_bytes().decode("latin-1") for path in kept)
    assert len(kept) > 10
    assert secret not in everything
    assert word not in everything


# ---------------------------------------------------------------- G12: nobody listens to others, nobody stays


LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}


@pytest.mark.faults
@pytest.mark.parametrize("how", [[], ["--flow"], ["dask"]], ids=["processes", "prefect", "dask"])
def test_g12_only_loopback_and_nobody_is_left(tmp_path: Path, how: list[str]) -> None:
    (tmp_path / "spy").mkdir()
    (tmp_path / "spy" / "sitecustomize.py").write_text(SPY)
    folder = in_workers(copy(tmp_path))
    if how == ["dask"]:
        with (folder / "monitor.yml").open("a") as file:
            file.write('execution: {engine: "dask:1"}\n')
    deliver(folder, **{f"day-{i}.parquet": table(30, 3 + i) for i in range(3)})
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "spy"), str(Path(__file__).parents[2])]),
        "SPY_LOG": str(tmp_path / "log"),
    }
    options = how if how == ["--flow"] else []
    command = [str(PROGRAM), "score", str(folder), *options]
    members: set[int] = set()
    heard: set[str] = set()
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as run:
        while run.poll() is None:
            now = family(run.pid)
            members |= now
            heard |= {address.partition(":")[0] for address in listening(now)}
            time.sleep(0.1)
        assert run.stderr is not None
        err = run.stderr.read()
    assert run.returncode == 0, err
    assert heard <= LOOPBACK
    assert bool(heard) == bool(how)
    places = [line for line in (tmp_path / "log").read_text().splitlines() if line.startswith("socket.")]
    away = [
        line for line in places if not any(home in line for home in ("'127.0.0.1'", "'::1'", "'localhost'", ", 0)"))
    ]
    assert [line for line in away if not line.startswith(("socket.connect '/", "socket.bind '"))] == []
    deadline = time.monotonic() + 15
    while left := [pid for pid in members if Path(f"/proc/{pid}/cmdline").exists() and _is_ours(pid)]:
        assert time.monotonic() < deadline, f"left behind: {left}"
        time.sleep(0.2)


def _is_ours(pid: int) -> bool:
    try:
        return (
            b"python" in Path(f"/proc/{pid}/cmdline").read_bytes()
            and "Z" not in (Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0])
        )
    except OSError:
        return False


# ---------------------------------------------------------------- G5: foreign files, mutated


def mutants(seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """Files of every format for tables with flipped bits, cuts, splices and repeated or deleted stretches."""
    noise = random.Random(seed)
    good = table(25, 8, frauds=2)
    texts = good.to_pylist()
    lines = "".join(json.dumps(row, default=str) + "\n" for row in texts).encode()
    names = good.column_names
    csv = (",".join(names) + "\n" + "".join(",".join(str(row[n]) for n in names) + "\n" for row in texts)).encode()
    formats = {
        "parquet": parquet(good),
        "csv": csv,
        "jsonl": lines,
    }
    for number in range(count):
        suffix = noise.choice(sorted(formats))
        content = bytearray(formats[suffix])
        for _ in range(noise.choice((1, 1, 2, 5, 20))):
            at = noise.randrange(len(content) or 1)
            how = noise.randrange(5)
            if how == 0:
                content[at : at + 1] = bytes([noise.randrange(256)])
            elif how == 1:
                del content[at : at + noise.randrange(40)]
            elif how == 2:
                content[at:at] = content[at : at + noise.randrange(200)]
            elif how == 3:
                content = content[:at]
            else:
                other = formats[noise.choice(sorted(formats))]
                content[at : at + 20] = other[noise.randrange(len(other)) :][:20]
        yield f"m{number:05}.{suffix}", bytes(content)


@pytest.mark.faults
@pytest.mark.timeout(3600)
def test_g5_mutated_files_are_scored_or_refused(tmp_path: Path) -> None:
    """10,000 of them, a hundred to a child with limits: no crash, no hang, no answer but records or a refusal."""
    from vae_anomaly.execution import _limit
    from vae_anomaly.worker import read_records
    from vae_anomaly.workspace import Workspace

    ws = Workspace.open(write_monitor(tmp_path / "shops"))
    everything = list(mutants(20260105, 10_000))
    outcomes: dict[str, int] = {}
    for start in range(0, len(everything), 100):
        answer = tmp_path / "answer.json"
        child = os.fork()
        if not child:
            code = 9
            try:
                _limit(1.0)
                signal.alarm(60)
                found: dict[str, int] = {}
                for name, content in everything[start : start + 100]:
                    path = tmp_path / name
                    path.write_bytes(content)
                    try:
                        with open_delivery(path) as delivery:
                            parts: list[Records] = list(read_records(delivery, ws))
                        kind = "records" if parts else "nothing"
                    except DataError as error:
                        kind = error.rule
                    found[kind] = found.get(kind, 0) + 1
                    path.unlink()
                answer.write_text(json.dumps(found))
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, f"mutants {start} to {start + 99}"
        for kind, number in json.loads(answer.read_text()).items():
            outcomes[kind] = outcomes.get(kind, 0) + number
    print(outcomes)
    assert sum(outcomes.values()) == len(everything)
    assert outcomes["records"] > 500
    assert outcomes["unreadable"] > 100


@pytest.mark.faults
def test_g12_the_program_says_nothing_of_itself(tmp_path: Path) -> None:
    """Telemetry of the libraries is off where the program starts them."""
    code = "import os, vae_anomaly.tracking; print(os.environ['MLFLOW_DISABLE_TELEMETRY'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "true"
    assert program("status", tmp_path / "nowhere", cwd=tmp_path).code == 2
