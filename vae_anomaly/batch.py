"""Values that pass between modules: records that went through the contract, model inputs, and what was detected.

Legend: B records, F model features, K latent dimensions, H x W pixels, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

OK = "ok"


@dataclass(frozen=True)
class Records:
    """B rows of a file after the data contract, in the file's order.

    ``values`` holds one entry for each column of the schema, by its kind:
    number and boolean (B,) float64 with NaN where missing; category a ``pa.StringArray`` with nulls where missing;
    timestamp (B,) ``datetime64[us]`` in UTC with NaT where missing; image (B, H, W, C) uint8; text a
    ``pa.StringArray`` in NFC with nulls where missing.
    ``status`` (B,) is ``"ok"`` or ``"unscorable:<reason>"``; the values of an unscorable row are not to be used.
    """

    first_row: int
    record_ids: np.ndarray
    values: Mapping[str, np.ndarray | pa.Array]
    status: np.ndarray
    labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.status)

    @property
    def scorable(self) -> np.ndarray:
        """(B,) bool: rows that can be scored."""
        scorable: np.ndarray = self.status == OK
        return scorable

    @property
    def normal(self) -> np.ndarray:
        """(B,) bool: what a fit uses, the rows that are scorable and not labelled as anomalies."""
        return self.scorable if self.labels is None else self.scorable & ~self.labels

    def take(self, index: np.ndarray) -> Records:
        """The rows at the positions ``index`` (integers); ``first_row`` is kept as it is."""
        index = np.asarray(index, dtype=np.int64)
        values = {
            name: v.take(pa.array(index)) if isinstance(v, pa.Array) else v[index] for name, v in self.values.items()
        }
        labels = None if self.labels is None else self.labels[index]
        return Records(self.first_row, self.record_ids[index], values, self.status[index], labels)

    def between(self, part: slice) -> Records:
        """The rows of ``part``, whose step is 1, without copying them; ``first_row`` is kept as it is."""
        values = {name: v[part] for name, v in self.values.items()}
        labels = None if self.labels is None else self.labels[part]
        return Records(self.first_row, self.record_ids[part], values, self.status[part], labels)


def segments(records: Records, column: str) -> pa.Array:
    """(B,) the value of a category or boolean ``column`` as text, null where it is missing."""
    values = records.values[column]
    if isinstance(values, pa.Array):
        return values
    return pa.array(np.where(values == 1, "true", "false"), pa.string(), mask=np.isnan(values))


def concatenate(parts: Sequence[Records]) -> Records:
    """All rows of ``parts`` in order, as one :class:`Records` that starts at the first part's row."""
    first = parts[0]
    values = {
        name: pa.concat_arrays([p.values[name] for p in parts])
        if isinstance(v, pa.Array)
        else np.concatenate([p.values[name] for p in parts])
        for name, v in first.values.items()
    }
    known = any(p.labels is not None for p in parts)
    # a file without the label column has no labelled anomaly; the labels of the others still count
    flags = [np.zeros(len(p), bool) if p.labels is None else p.labels for p in parts]
    labels = np.concatenate(flags) if known else None
    ids, status = (np.concatenate([getattr(p, field) for p in parts]) for field in ("record_ids", "status"))
    return Records(first.first_row, ids, values, status, labels)


@dataclass(frozen=True)
class Detections:
    """What a detector says of B records: unscorable rows have NaN for score and p-value and are not anomalies.

    ``part`` (B,) is which of the threshold's parts decides on each; None where it has one.
    """

    status: np.ndarray
    score: np.ndarray
    p_value: np.ndarray
    is_anomaly: np.ndarray
    part: np.ndarray | None = None

    def by_part(self, chosen: np.ndarray, parts: int) -> np.ndarray:
        """(parts,) on how many of the ``chosen`` (B,) records each part decides."""
        part = np.zeros(len(chosen), np.int64) if self.part is None else self.part
        return np.bincount(part[chosen], minlength=parts)
