"""What the sample data sets share: days, random streams, and files whose bytes do not depend on a library's version."""

from __future__ import annotations

import io
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FIRST_BATCH_DAY = date(2026, 1, 5)


def parquet_bytes(table: pa.Table) -> bytes:
    """The table as a Parquet file."""
    # No compression: the bytes would depend on the version of the codec.
    out = io.BytesIO()
    pq.write_table(table, out, compression="none")
    return out.getvalue()


def write(path: Path, content: bytes) -> None:
    """Write ``content``, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def batch_day(i: int) -> date:
    """The day of batch ``i``."""
    return FIRST_BATCH_DAY + timedelta(days=i)


def random_stream(*seed: int) -> np.random.RandomState:
    """The random stream of a seed."""
    # RandomState, as its streams are frozen for good (NEP 19): another numpy gives the same data.
    return np.random.RandomState(seed)
