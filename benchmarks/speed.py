"""CPU time of fitting and scoring beside PyOD's and pythae's VAE and scikit-learn's isolation forest, in one process.

Everything runs on one thread. The contestants take turns, so that whatever else the machine does falls on all of
them; a ratio is the median over the rounds of (peer's CPU-seconds / ours). Exit code 1 if a requirement is missed.
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pyod.models.vae import VAE as PyodVAE
from pyod.utils.torch_utility import TorchDataset
from pythae.models import VAE as PythaeVAE
from pythae.models import VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from sklearn.ensemble import IsolationForest

from benchmarks.common import ARCHITECTURE, COLUMNS, data, load, processor, progress
from vae_anomaly import VAEDetector
from vae_anomaly.models.mlp import mlp_vae
from vae_anomaly.objectives import BetaElbo
from vae_anomaly.preprocessing.tabular import fit_tabular
from vae_anomaly.schema import Column, Schema, check
from vae_anomaly.training import TrainingPlan, build_seeded, train

TURN_SECONDS = 0.5
VALIDATION_SHARE = 0.3  # validation records for each training record, as in the default splits (15 % to 50 %)
LARGE = 4096  # records a batch, where a peer is given a large one
PYOD_FIT, PYOD_SCORE, PYOD_LARGE = "PyOD VAE, fit", "PyOD VAE, score", f"PyOD VAE, batches of {LARGE}"
PYTHAE, FOREST = f"pythae VAE, batches of {LARGE}", "isolation forest, score"
OURS_FIT, OURS_ELBO = "ours, fit", "ours, negative_elbo"
OURS_NEIGHBOURS, OURS_DEFAULT = "ours, latent_neighbours", "ours, the default"


@dataclass(frozen=True)
class Comparison:
    """``ours`` must be ``required`` times as fast as ``peer``; 0 for information only."""

    peer: str
    ours: str
    required: float


COMPARISONS = (
    Comparison(PYOD_FIT, OURS_FIT, 15.0),
    Comparison(PYOD_SCORE, OURS_ELBO, 35.0),
    Comparison(PYOD_LARGE, OURS_ELBO, 0.0),
    Comparison(PYTHAE, OURS_ELBO, 1.2),
    Comparison(FOREST, OURS_ELBO, 0.0),
    Comparison(FOREST, OURS_NEIGHBOURS, 1.0),
    Comparison(FOREST, OURS_DEFAULT, 0.0),
)


def interleaved(turns: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """CPU-seconds of one turn of each contestant in each round, after one round that does not count.

    In a round a turn is taken again until half a second is spent: else a contestant that needs 0.03 s would mostly be
    charged for the caches and the memory as its predecessor of 0.8 s left them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for repeat in range(repeats + 1):
        for name, turn in turns.items() if repeat % 2 else reversed(turns.items()):
            start, turns_taken, spent = time.process_time(), 0, 0.0
            while spent < TURN_SECONDS:
                turn()
                turns_taken, spent = turns_taken + 1, time.process_time() - start
            spent /= turns_taken
            if repeat:
                seconds[name].append(spent)
            progress(f"round {repeat}/{repeats}: {name:<28} {spent:8.4f} cpu-s{'' if repeat else ' (warm-up)'}")
    return seconds


def fitting(X: np.ndarray, repeats: int) -> tuple[dict[str, list[float]], PyodVAE]:
    """One epoch each: PyOD's own loop without its final scoring; ours with denoising, log and validation."""
    pyod = PyodVAE(verbose=0, epoch_num=1)
    pyod.data_num, pyod.feature_size = X.shape
    pyod.build_model()
    pyod.training_prepare()
    pyod.X_mean, pyod.X_std = X.mean(axis=0), X.std(axis=0)
    dataset = TorchDataset(X=X, y=None, mean=pyod.X_mean, std=pyod.X_std)
    loader = torch.utils.data.DataLoader(dataset, batch_size=pyod.batch_size, shuffle=True, drop_last=True)

    preprocessor, training = encode(X)
    vae = build_seeded(lambda: mlp_vae(preprocessor.layout, **ARCHITECTURE), 0)
    # more epochs than are asked for: no early stopping in a measurement
    plan = TrainingPlan.for_records(len(X), epochs=100_000, patience=100_000)
    validation = training[: round(VALIDATION_SHARE * len(X))]
    epochs = train(vae, training, validation, BetaElbo(), plan, 0)
    return interleaved({PYOD_FIT: lambda: pyod.train(loader), OURS_FIT: lambda: next(epochs)}, repeats), pyod


def encode(X: np.ndarray) -> tuple[Any, Any]:
    """Our preprocessing fitted to ``X`` and the model's inputs; not part of the measurement."""
    names = [f"x{i}" for i in range(X.shape[1])]
    schema = Schema(tuple(Column(name, "number") for name in names))
    records = check(pa.table(dict(zip(names, X.T, strict=True))), schema, first_row=0, file="benchmark")
    preprocessor = fit_tabular(records, schema)
    return preprocessor, preprocessor.encode(records)


def to_quality(X: np.ndarray, seeds: int) -> list[dict[str, float]]:
    """CPU-seconds that training takes to the held-out ELBO that four epochs with minibatches of 32, as PyOD's, end at.

    Both are our own objective and noise; PyOD's default trains no KL, so it has no ELBO to compare with.
    """
    preprocessor, inputs = encode(X)
    held_out, training = inputs[: len(X) // 5], inputs[len(X) // 5 :]
    found = []
    for seed in range(seeds):

        def course(plan: TrainingPlan, seed: int = seed) -> Iterator[tuple[float, float]]:
            vae = build_seeded(lambda: mlp_vae(preprocessor.layout, **ARCHITECTURE), seed)
            start = time.process_time()
            for log in train(vae, training, held_out, BetaElbo(), plan, seed):
                yield time.process_time() - start, log.validation_elbo

        small = TrainingPlan(epochs=4, minibatch=32, learning_rate=1e-3, patience=100)
        *_, (seconds, elbo) = course(small)
        usual = course(TrainingPlan.for_records(len(training), patience=100_000))
        ours = next((spent for spent, reached in usual if reached >= elbo), math.inf)
        found.append({"seed": seed, "elbo": elbo, "small": seconds, "ours": ours})
        progress(f"seed {seed}: held-out ELBO {elbo:.2f} nats after {seconds:.1f} cpu-s; ours after {ours:.1f}")
    return found


class _Encoder(BaseEncoder):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(*_relu(COLUMNS, *ARCHITECTURE["hidden"]))
        self.mean, self.log_variance = (torch.nn.Linear(ARCHITECTURE["hidden"][-1], 2) for _ in range(2))

    def forward(self, x: torch.Tensor) -> ModelOutput:
        h = self.body(x)
        return ModelOutput(embedding=self.mean(h), log_covariance=self.log_variance(h))


class _Decoder(BaseDecoder):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        hidden = ARCHITECTURE["hidden"]
        self.body = torch.nn.Sequential(*_relu(2, *reversed(hidden)), torch.nn.Linear(hidden[0], COLUMNS))

    def forward(self, z: torch.Tensor) -> ModelOutput:
        return ModelOutput(reconstruction=self.body(z))


def _relu(*sizes: int) -> list[torch.nn.Module]:
    return [part for a, b in pairwise(sizes) for part in (torch.nn.Linear(a, b), torch.nn.ReLU())]


def pythae_score(X: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The squared error of pythae's reconstruction of standardised numbers; weights do not change what it costs."""
    model = PythaeVAE(VAEConfig(input_dim=(COLUMNS,), latent_dim=2), _Encoder(), _Decoder()).eval()
    mean, deviation = X.mean(axis=0), X.std(axis=0)

    def score(new: np.ndarray) -> np.ndarray:
        parts = []
        for start in range(0, len(new), LARGE):
            x = torch.from_numpy(((new[start : start + LARGE] - mean) / deviation).astype(np.float32))
            with torch.inference_mode():
                parts.append((model.predict(x).recon_x - x).square().sum(-1).numpy())
        return np.concatenate(parts)

    return score


def scoring(X: np.ndarray, new: np.ndarray, pyod: PyodVAE, repeats: int) -> dict[str, list[float]]:
    """Scores of ``new``, a float64 array, by detectors that were fitted to ``X``."""
    forest = IsolationForest(n_estimators=100, random_state=0).fit(X)

    large = copy.copy(pyod)
    large.batch_size = LARGE
    pythae = pythae_score(X)

    def ours(**options: Any) -> VAEDetector:
        progress(f"fitting ours {options}")
        return VAEDetector(training={"steps": 300}, **options).fit(X)

    elbo, neighbours = (
        ours(model="mlp", model_options=ARCHITECTURE, scoring=kind) for kind in ("negative_elbo", "latent_neighbours")
    )
    default = ours()
    return interleaved(
        {
            PYOD_SCORE: lambda: pyod.decision_function(new),
            PYOD_LARGE: lambda: large.decision_function(new),
            PYTHAE: lambda: pythae(new),
            OURS_ELBO: lambda: elbo.anomaly_score(new),
            OURS_NEIGHBOURS: lambda: neighbours.anomaly_score(new),
            OURS_DEFAULT: lambda: default.anomaly_score(new),
            FOREST: lambda: forest.score_samples(new),
        },
        repeats,
    )


def compare(seconds: Mapping[str, list[float]], comparison: Comparison) -> dict[str, Any]:
    """Median ratio over the rounds, its range, and whether the requirement holds."""
    ratios = [a / b for a, b in zip(seconds[comparison.peer], seconds[comparison.ours], strict=True)]
    median = statistics.median(ratios)
    spread = {"ratio": median, "lowest": min(ratios), "highest": max(ratios)}
    return {**asdict(comparison), **spread, "holds": median >= comparison.required}


def report(result: Mapping[str, Any]) -> str:
    """The tables, as text."""
    machine = result["machine"]
    lines = [
        f"{machine['processor']}, load {machine['load_before']} -> {machine['load_after']}; "
        + ", ".join(f"{name} {version}" for name, version in result["versions"].items()),
        f"{result['records']} records of {COLUMNS} columns, {result['repeats']} rounds, 1 thread, CPU time, medians",
        "",
        f"{'':<30}{'cpu-s':>10}{'us/record':>12}{'records/cpu-s':>16}",
    ]
    for name, seconds in result["seconds"].items():
        median = statistics.median(seconds)
        each = 1e6 * median / result["records"]
        lines.append(f"{name:<30}{median:>10.4f}{each:>12.2f}{result['records'] / median:>16,.0f}")
    lines += ["", f"{'ratio of CPU time':<54}{'median':>8}{'lowest':>8}{'highest':>8}   required"]
    for row in result["comparisons"]:
        verdict = f">= {row['required']:g} {'ok' if row['holds'] else 'MISSED'}" if row["required"] else "-"
        pair = f"{row['peer']} / {row['ours']}"
        lines.append(f"{pair:<54}{row['ratio']:>8.1f}{row['lowest']:>8.1f}{row['highest']:>8.1f}   {verdict}")
    lines += ["", f"{'to the same held-out ELBO':<30}{'nats':>10}{'minibatch 32':>14}{'ours':>8}   cpu-s"]
    for row in result["to_quality"]:
        lines.append(f"{'seed ' + str(row['seed']):<30}{row['elbo']:>10.2f}{row['small']:>14.1f}{row['ours']:>8.1f}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=50_000, help="records to fit to, and to score (default 50000)")
    parser.add_argument("--repeats", type=int, default=9, help="rounds that count (default 9)")
    parser.add_argument("--json", type=Path, help="also write every measured value to this file")
    parser.add_argument("--seeds", type=int, default=5, help="of the training to the same ELBO (default 5)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    before, X, new = load(), data(options.records, 1), data(options.records, 2)
    seconds, pyod = fitting(X, options.repeats)
    seconds |= scoring(X, new, pyod, options.repeats)
    quality = to_quality(X, options.seeds)
    packages = ("vae-anomaly", "pyod", "pythae", "torch", "numpy", "scikit-learn")
    result = {
        "records": options.records,
        "repeats": options.repeats,
        "machine": {"processor": processor(), "load_before": before, "load_after": load()},
        "versions": {"python": platform.python_version()} | {p: importlib.metadata.version(p) for p in packages},
        "seconds": seconds,
        "to_quality": quality,
        "comparisons": [compare(seconds, comparison) for comparison in COMPARISONS],
    }
    print(report(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if all(row["holds"] for row in result["comparisons"]) else 1


if __name__ == "__main__":
    sys.exit(main())
