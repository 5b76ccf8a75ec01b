"""Small sample data sets for the demo, the documentation and the tests: ``python -m vae_anomaly.samples FOLDER``.

Real: ``breast_cancer/`` (a table), ``digits/`` (images). Synthetic, and their READMEs say so: ``payments/`` (a table),
``regions/`` (a table whose normality depends on a context column), ``logs/`` (text). Each folder is a monitored source,
``training/`` with normal records only and ``inbox/`` with batches, nearly all with labels, and a function of the seed
alone: the same arguments give the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vae_anomaly.samples.digits import write_digits
from vae_anomaly.samples.logs import write_logs
from vae_anomaly.samples.tabular import MERCHANTS, write_breast_cancer, write_payments, write_regions

__all__ = [
    "MERCHANTS",
    "WRITERS",
    "write_breast_cancer",
    "write_digits",
    "write_logs",
    "write_payments",
    "write_regions",
]

WRITERS: dict[str, Callable[[Path], None]] = {
    "breast_cancer": write_breast_cancer,
    "payments": write_payments,
    "regions": write_regions,
    "digits": write_digits,
    "logs": write_logs,
}
