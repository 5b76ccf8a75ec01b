"""What the benchmarks of speed share; it needs numpy alone."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

import numpy as np

COLUMNS, FACTORS = 30, 5
ARCHITECTURE = {"hidden": (128, 64, 32), "latent": 2, "activation": "relu"}  # PyOD's default


def data(records: int, seed: int) -> np.ndarray:
    """(records, COLUMNS) float64: a linear factor model with noise."""
    loadings = np.random.default_rng(0).normal(size=(FACTORS, COLUMNS))
    random = np.random.default_rng(seed)
    return random.normal(size=(records, FACTORS)) @ loadings + 0.3 * random.normal(size=(records, COLUMNS))


def progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def load() -> str:
    return " ".join(f"{value:.1f}" for value in os.getloadavg())


def processor() -> str:
    """The processor's name where Linux tells it."""
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return f"{os.cpu_count()} x {names[0] if names else platform.machine()}"
