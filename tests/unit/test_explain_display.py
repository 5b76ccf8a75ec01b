"""Values as an analyst reads them: what a record holds, and what is read back from the model's inputs, agree."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from vae_anomaly.batch import Records
from vae_anomaly.detector import Detector
from vae_anomaly.explain import explain, reference_values
from vae_anomaly.explain.tabular import display, display_inputs, number
from vae_anomaly.preprocessing.tabular import ColumnState
from vae_anomaly.report.model import COMBINATION


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (3.0, "3"),
        (-0.0, "0"),
        (1234567.0, "1234567"),
        (1e15, "1e+15"),
        (0.123456, "0.1235"),
        (-98765.4, "-9.877e+04"),
        (1e300, "1e+300"),
    ],
)
def test_numbers_are_short(value: float, shown: str) -> None:
    assert number(value) == shown


def test_what_the_model_was_given_reads_as_what_was_found(
    detector: Detector, make_records: Callable[..., Records]
) -> None:
    records = make_records(40, 41)
    inputs, at = detector.encode(records), 0
    for state in detector.preprocessor.states:
        part = slice(at, at + state.size)
        observed = np.ones(40) if inputs.observed is None else inputs.observed[:, at].numpy()
        read = [display_inputs(state, inputs.x[i, part].numpy(), bool(observed[i])) for i in range(40)]
        at += state.size
        shown = display(state, records)
        assert [text == "" for text in read] == [text == "" for text in shown]
        if state.kind == "number":
            found = [(float(a), float(b)) for a, b in zip(read, shown, strict=True) if a]
            assert all(a == pytest.approx(b, rel=2e-3, abs=1e-3) for a, b in found)
        elif state.kind == "timestamp":  # the time of day is what the model sees of it
            minutes = [(clock(a[:5]), clock(b[11:16])) for a, b in zip(read, shown, strict=True) if a]
            assert all((a - b + 1) % 1440 <= 2 for a, b in minutes)
        else:
            assert read == shown


def clock(text: str) -> int:
    return 60 * int(text[:2]) + int(text[3:])


def test_a_category_that_was_never_seen_and_a_count_are_shown_as_they_are() -> None:
    shop = ColumnState("shop", "category", 0.0, categories=("north", "south"))
    assert display_inputs(shop, np.array([0.0, 1.0]), observed=True) == "south"
    assert display_inputs(shop, np.zeros(2), observed=True) == ""
    count = ColumnState("n", "number", 0.0, center=(3.0,), scale=(2.0,), integral=True)
    assert display_inputs(count, np.array([1.0000001]), observed=True) == "5"
    assert display_inputs(count, np.array([1.0]), observed=False) == ""


def test_a_neighbour_is_shown_in_the_columns_of_the_record(
    detector: Detector, make_records: Callable[..., Records]
) -> None:
    explanation = explain(detector, make_records(1, 42))[0]
    columns = [reason.column for reason in explanation.reasons]
    values = dict(zip(columns, reference_values(detector, explanation.neighbours[0][0], columns), strict=True))
    assert values.keys() == {*detector.preprocessor.columns, COMBINATION}
    assert values[COMBINATION] == ""
    assert values["flag"] in ("true", "false", "")
    assert reference_values(detector, 0, columns[::-1]) == reference_values(detector, 0, columns)[::-1]
