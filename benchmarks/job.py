"""What a whole scoring job costs: a Parquet file to scores, beside pandas and beside what the machine allows.

A file of 30 float32 columns is scored three ways, each in processes of its own, by turns; CPU-seconds and the largest
memory are what the kernel says of them:

* ours: ``vae-anomaly score`` with the negative ELBO of the small architecture, and all that belongs to it (contract,
  sha256, p-values, report, a commit that survives a power cut);
* pandas: ``read_parquet`` of everything, standardised, the same weights in batches of 4,096, scores written back;
* decoding: what Arrow takes to read the columns and to do nothing with them.

The floor is decoding and the multiply-adds of the networks at the speed of the largest matrix product that this machine
was seen to make. Everything runs on one computing thread.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.common import ARCHITECTURE, COLUMNS, data, load, processor, progress

NAMES = [f"x{i}" for i in range(COLUMNS)]
GROUP = 131_072
MONITOR = """\
name: speed
source: {training: training, inbox: inbox, settle_seconds: 0}
columns:
COLUMNS
model: {kind: mlp, MODEL}
score: {kind: negative_elbo}
training: {steps: 500}
threshold: {alpha: 0.01}
sinks: []
"""
PROGRAM = Path(sys.executable).with_name("vae-anomaly")


def write(path: Path, rows: int, seed: int) -> None:
    """A Parquet file of so many records, in row groups of ``GROUP``."""
    schema = pa.schema([(name, pa.float32()) for name in NAMES])
    with pq.ParquetWriter(path, schema, use_dictionary=False) as writer:
        for i, start in enumerate(range(0, rows, GROUP)):
            block = data(min(GROUP, rows - start), seed + i).astype(np.float32)
            writer.write_table(pa.table(dict(zip(NAMES, block.T.copy(), strict=True)), schema=schema))


def monitor(folder: Path) -> Path:
    """A monitor whose detector serves."""
    home = folder / "monitor"
    for name in ("training", "inbox"):
        (home / name).mkdir(parents=True)
    text = MONITOR.replace("COLUMNS", "\n".join(f"  {n}: {{kind: number}}" for n in NAMES))
    model = json.dumps(ARCHITECTURE)[1:-1]
    (home / "monitor.yml").write_text(text.replace("MODEL", model))
    write(home / "training" / "normal.parquet", 50_000, 10_000)
    for command in (["fit"], ["review"], ["promote", "--force", "--reason", "benchmark"]):
        progress(f"vae-anomaly {command[0]}")
        subprocess.run([PROGRAM, command[0], home, *command[1:]], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return home


# ---------------------------------------------------------------- the ways


def pandas_way(file: Path, out: Path, model: Path) -> None:
    """Everything at once."""
    import pandas as pd
    import torch

    from vae_anomaly.detector import Detector
    from vae_anomaly.scores.elbo import negative_elbo
    from vae_anomaly.vae import Inputs, evaluate

    torch.set_num_threads(1)
    detector = Detector.load(model)
    states = detector.preprocessor.states
    center, scale = (np.array([getattr(s, name)[0] for s in states]) for name in ("center", "scale"))
    frame = pd.read_parquet(file)[[s.column for s in states]]
    values = torch.from_numpy(((frame.to_numpy(dtype=np.float64) - center) / scale).astype(np.float32))
    score = negative_elbo(None, None)
    with torch.inference_mode():
        parts = [score(evaluate(detector.vae, Inputs(part))).numpy() for part in torch.split(values, 4096)]
    pd.DataFrame({"score": np.concatenate(parts)}).to_parquet(out)


def decoding(file: Path) -> None:
    """The columns, 16,384 rows at a time."""
    for _ in pq.ParquetFile(file, pre_buffer=False).iter_batches(batch_size=16_384, use_threads=False):
        pass


def peak(seconds: float = 2.0) -> float:
    """Multiply-adds, counted as two operations, a CPU-second: the best of float32 products of 1,536 squared."""
    import torch

    torch.set_num_threads(1)
    size, best, end = 1536, 0.0, time.monotonic() + seconds
    a, b = torch.rand(size, size), torch.rand(size, size)
    x, y = a.numpy(), b.numpy()
    while time.monotonic() < end:
        for product in (lambda: torch.mm(a, b), lambda: x @ y):
            start = time.process_time()
            product()
            best = max(best, 2 * size**3 / (time.process_time() - start))
    return best


# ---------------------------------------------------------------- measuring


def spent(command: list[object]) -> tuple[float, float]:
    """CPU-seconds and largest MB of a command and of all that it started, each process by itself for the memory."""
    script = (
        "import json, resource, subprocess, sys; subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL,"
        " stderr=subprocess.DEVNULL, check=True); u = resource.getrusage(resource.RUSAGE_CHILDREN);"
        " print(json.dumps([u.ru_utime + u.ru_stime, u.ru_maxrss / 1000]))"
    )
    env = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    run = [sys.executable, "-c", script, *map(str, command)]
    seconds, memory = json.loads(subprocess.run(run, env=env, capture_output=True, text=True, check=True).stdout)
    return seconds, memory


def measure(folder: Path, rows: list[int], repeats: int) -> dict[str, dict[int, list[tuple[float, float]]]]:
    """CPU-seconds and MB of each way for each number of rows."""
    home = monitor(folder)
    model = next(path for path in (home / "output" / "models").iterdir() if path.is_dir())
    found: dict[str, dict[int, list[tuple[float, float]]]] = {way: {} for way in ("ours", "pandas", "decoding")}
    for count in rows:
        progress(f"writing {count} rows")
        file = folder / f"{count}.parquet"
        write(file, count, 100)
        me = [sys.executable, "-m", "benchmarks.job", "--way"]
        for _ in range(repeats):
            for name in ("commits", "scores", "reports"):
                shutil.rmtree(home / "output" / name, ignore_errors=True)
            (home / "inbox" / "batch.parquet").unlink(missing_ok=True)
            os.link(file, home / "inbox" / "batch.parquet")
            ways = {
                "ours": [PROGRAM, "score", home],
                "pandas": [*me, "pandas", file, folder / "scores.parquet", model],
                "decoding": [*me, "decoding", file],
            }
            for way, command in ways.items():
                found[way].setdefault(count, []).append(spent(command))
                progress(
                    f"{count} rows, {way}: {found[way][count][-1][0]:.1f} cpu-s, {found[way][count][-1][1]:.0f} MB"
                )
        file.unlink()
    return found


def report(found: dict[str, dict[int, list[tuple[float, float]]]], best: float) -> str:
    """The table, as text."""
    lines = [f"{'rows':>12}{'way':>12}{'cpu-s':>10}{'MB':>8}{'us/record':>12}"]
    medians = {way: {n: statistics.median(s for s, _ in v) for n, v in of.items()} for way, of in found.items()}
    for way, of in found.items():
        for count, values in of.items():
            seconds, memory = medians[way][count], max(mb for _, mb in values)
            lines.append(f"{count:>12,}{way:>12}{seconds:>10.1f}{memory:>8.0f}{1e6 * seconds / count:>12.2f}")
    count = max(found["ours"])
    widths = (COLUMNS, *ARCHITECTURE["hidden"])
    heads = 3 * widths[-1] * ARCHITECTURE["latent"]  # mean and spread, and the decoder's first layer
    operations = 2 * (2 * sum(a * b for a, b in pairwise(widths)) + heads)  # encoder, and decoder mirrored
    floor = medians["decoding"][count] + count * operations / best
    ours = medians["ours"][count]
    lines += [
        "",
        f"largest product: {best / 1e9:.0f} GFLOP/cpu-s; floor of {count:,} rows: {floor:.1f} cpu-s",
        f"pandas / ours: {medians['pandas'][count] / ours:.2f}; floor / ours: {floor / ours:.0%}",
    ]
    if len(found["ours"]) > 1:
        small = min(found["ours"])
        each = 1e6 * (ours - medians["ours"][small]) / (count - small)
        lines.append(f"a further record costs ours {each:.2f} us; all else {ours - 1e-6 * each * count:.1f} cpu-s")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="1000000,10000000", help="numbers of rows (default 1000000,10000000)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--way", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        way, *paths = options.way
        {"pandas": pandas_way, "decoding": decoding}[way](*map(Path, paths))
        return
    before = load()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), [int(n) for n in options.rows.split(",")], options.repeats)
    print(f"{processor()}, load {before} -> {load()}; {options.repeats} rounds, medians\n")
    print(report(found, peak()))


if __name__ == "__main__":
    main()
