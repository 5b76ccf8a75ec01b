"""Values that pass between modules."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from vae_anomaly.batch import OK, Records, concatenate, segments


def records(rows: int, labels: list[bool] | None) -> Records:
    flags = None if labels is None else np.array(labels)
    return Records(0, np.arange(rows).astype(str), {"x": np.zeros(rows)}, np.full(rows, OK, dtype=object), flags)


@pytest.mark.parametrize("labelled_first", [True, False])
def test_labels_of_one_part_survive_a_part_without(labelled_first):
    parts = [records(2, [True, False]), records(3, None)]
    joined = concatenate(parts if labelled_first else parts[::-1])
    assert len(joined) == 5
    assert joined.labels is not None
    assert joined.labels.sum() == 1


def test_no_labels_at_all_stay_none():
    assert concatenate([records(2, None), records(1, None)]).labels is None


def test_segments_are_the_values_as_text() -> None:
    values = {"flag": np.array([1.0, np.nan, 0.0]), "shop": pa.array(["a", None, "true"])}
    made = Records(0, np.arange(3), values, np.full(3, OK, object))
    assert segments(made, "flag").to_pylist() == ["true", None, "false"]
    assert segments(made, "shop").to_pylist() == ["a", None, "true"]
