"""Laws of muting: what is odd in the same way is muted, else it is not, and no more than so much of a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import modality_samples as samples
import numpy as np
import pyarrow as pa
import pytest

from vae_anomaly import muting, summary
from vae_anomaly.batch import Records
from vae_anomaly.detector import Detector
from vae_anomaly.muting import MOST, Muting, most_muted
from vae_anomaly.report.html import to_html
from vae_anomaly.report.markdown import to_markdown
from vae_anomaly.report.model import Report
from vae_anomaly.summary import BatchSummary


def with_values(records: Records, **columns: Any) -> Records:
    return replace(records, values={**records.values, **columns})


def far(records: Records, column: str, factor: float) -> Records:
    """The records with ``column`` of all of them so many times as far from 0, and 40 beyond that."""
    return with_values(records, **{column: records.values[column] * factor + 40.0 * factor})


@pytest.fixture
def normal(make_records: Callable[..., Records]) -> Records:
    return make_records(200, 51, holes=0.0)


def share(muted: Muting, records: Records) -> float:
    return float(np.mean([bool(like) for like in muted.matches(records)]))


def test_a_false_alarm_mutes_itself_and_what_is_odd_in_the_same_way(detector: Detector, normal: Records) -> None:
    odd = far(normal, "b", 1.0)
    one = Muting(detector, ("f-1",), odd.take(np.array([0])))
    assert one.matches(odd)[0] == "f-1"
    assert share(one, odd) > 0.8  # the other columns are as usual as may be
    assert share(one, far(normal, "b", 1.2)) > 0.8
    assert share(one, far(normal, "b", 5.0)) == 0.0  # much farther
    assert share(one, far(normal, "b", -1.0)) == 0.0  # in the other direction
    assert share(one, far(far(normal, "b", 1.0), "amount", 30.0)) < 0.05  # something else is odd as well
    assert share(one, far(normal, "amount", 30.0)) == 0.0
    assert share(one, normal) == 0.0


def test_a_value_never_seen_mutes_those_of_that_column_only(detector: Detector, normal: Records) -> None:
    odd = with_values(normal, shop=pa.array(["unheard of"] * len(normal)))
    one = Muting(detector, ("f-1",), odd.take(np.array([3])))
    assert share(one, odd) > 0.8
    assert share(one, normal) == 0.0


def test_each_false_alarm_speaks_for_its_own_like(detector: Detector, normal: Records) -> None:
    up, down = far(normal, "b", 1.0), far(normal, "b", -1.0)
    both = Muting(detector, ("up", "down"), summary.concatenate([up.take(np.array([0])), down.take(np.array([1]))]))
    assert set(both.matches(up)) <= {"up", ""} and "up" in both.matches(up)
    assert set(both.matches(down)) <= {"down", ""} and "down" in both.matches(down)
    alone = [both.matches(up.take(np.array([i])))[0] for i in range(20)]
    assert alone == both.matches(up)[:20]  # whatever else is asked
    assert both.matches(up.take(np.zeros(0))) == []
    assert Muting(detector, (), up.take(np.zeros(0))).matches(up) == [""] * len(up)


def test_of_a_record_that_is_odd_by_combination_only_near_neighbours_are_muted(
    detector: Detector, normal: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(muting, "USUAL", 1e9)  # nothing is far out by itself
    one = Muting(detector, ("f-1",), normal.take(np.array([0])))
    found = one.matches(normal)
    assert found[0] == "f-1"
    assert 0 < share(one, normal) < 0.2
    monkeypatch.setattr(Muting, "_radius", 1e9)
    assert share(Muting(detector, ("f-1",), normal.take(np.array([0]))), normal) == 1.0  # the twin


@pytest.fixture
def by_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latent positions and residuals are like no others, as where a far value moves the whole record."""
    monkeypatch.setattr(Muting, "_odd", property(lambda self: np.full((len(self.ids), 1), np.nan)))


@pytest.mark.usefixtures("by_values")
def test_what_a_far_value_does_to_the_whole_record_does_not_matter(detector: Detector, normal: Records) -> None:
    odd = far(normal, "b", 1.0)
    one = Muting(detector, ("f-1",), odd.take(np.array([0])))
    assert share(one, odd) > 0.9
    assert share(one, far(normal, "b", 20.0)) == 0.0
    assert share(one, far(normal, "b", -1.0)) == 0.0
    assert share(one, far(far(normal, "b", 1.0), "amount", 30.0)) < 0.05
    assert share(one, normal) == 0.0


@pytest.mark.usefixtures("by_values")
def test_a_far_value_excuses_nothing_else(detector: Detector, normal: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = far(normal, "amount", 30.0)
    both = with_values(odd, b=-odd.values["b"])  # it follows a, with the same sign
    column = np.array([detector.preprocessor.columns.index("amount")])
    one = Muting(detector, ("f-1",), odd.take(np.array([0])))
    both = both.take(np.flatnonzero(one._flagged_without(column, both)))
    assert len(both) > 10
    assert share(one, odd) > 0.9
    assert share(one, both) == 0.0
    # and one that is odd by something else as well says nothing by its values
    assert share(Muting(detector, ("f-1",), both.take(np.array([0]))), odd) == 0.0
    monkeypatch.setattr(Muting, "_flagged_without", lambda self, columns, records: np.zeros(len(records), bool))
    assert share(Muting(detector, ("f-1",), odd.take(np.array([0]))), both) > 0.9  # the twin


@pytest.mark.parametrize("case", samples.CASES, ids=str)
def test_every_modality_can_be_muted(case: samples.Case) -> None:
    detector, records = samples.fitted(case), samples.records(case, 30, 5)
    one = Muting(detector, ("f-1",), records.take(np.array([4])))
    found = one.matches(records)
    assert found[4] == "f-1"
    assert set(found) <= {"f-1", ""}


# ---------------------------------------------------------------- in the report of a batch


def report_of(detector: Detector, records: Records, known: Muting, size: int = 1000) -> Report:
    made = BatchSummary(detector, muting=known)
    for start in range(0, len(records), size):
        part = replace(records.take(np.arange(start, min(start + size, len(records)))), first_row=start)
        made.add(part, detector.detect(part))
    about = {"monitor": "m", "batch_id": "b-0123456789ab", "batch_name": "b.csv", "batch_sha256": "0" * 64}
    return made.report(**about, extra_columns=[], provenance={})


@pytest.fixture
def alarm(detector: Detector, normal: Records) -> Muting:
    return Muting(detector, ("f-1",), far(normal, "b", 1.0).take(np.array([0])))


def batch(detector: Detector, records: Records, odd: int) -> Records:
    """Of the records those that are not flagged, and so many with an odd b."""
    quiet = records.take(np.flatnonzero(~detector.detect(records).is_anomaly))
    made = summary.concatenate([quiet, far(quiet.take(np.arange(odd)), "b", 1.0)])
    return replace(made, record_ids=np.array([f"r{i}" for i in range(len(made))], dtype=object))


@pytest.mark.parametrize("size", [1000, 7])
def test_muted_records_are_flagged_named_and_no_reason_for_an_alert(
    detector: Detector, normal: Records, alarm: Muting, size: int
) -> None:
    made = report_of(detector, batch(detector, normal, 3), alarm, size)
    assert made.flagged == 3
    assert [m.feedback for m in made.muted] == ["f-1"] * 3
    assert [m.row_index for m in made.muted] == list(range(made.rows - 3, made.rows))
    assert [r.muted for r in made.records] == ["f-1"] * 3
    assert "3 of the flagged are muted by feedback." in made.verdict
    assert not replace(made, flagged_range=(0, 9), shifts=(), columns=(), notes=()).has_something_to_say
    assert replace(made, flagged_range=(0, 9), shifts=(), columns=(), notes=(), muted=()).has_something_to_say
    assert "Muted by feedback" in to_html(made) and "muted by `f-1`" in to_markdown(made)
    assert Report.from_dict(made.to_dict()) == made


def test_what_is_not_muted_is_shown_first(detector: Detector, normal: Records, alarm: Muting) -> None:
    records = batch(detector, normal, 2)
    amounts = np.array(records.values["amount"], copy=True)
    amounts[0] = amounts[0] * 3 + 300
    made = report_of(detector, with_values(records, amount=amounts), alarm)
    assert made.flagged == 3 and len(made.muted) == 2
    assert [bool(r.muted) for r in made.records] == [False, True, True]
    assert made.has_something_to_say


@pytest.mark.parametrize("size", [1000, 7])
def test_no_more_than_the_stated_share_of_a_batch_is_muted(
    detector: Detector, normal: Records, alarm: Muting, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    made = report_of(detector, batch(detector, normal, 30), alarm, size)
    assert made.muted == ()
    (said,) = [note for note in made.notes if note.startswith("Feedback would mute")]
    assert said.endswith(f"flagged records and mutes none: at most {most_muted(made.scored)} may be.")
    assert made.has_something_to_say
    monkeypatch.setattr(summary, "LOOKED_AT", 10)
    storm = report_of(detector, batch(detector, normal, 30), alarm, size)
    assert storm.muted == ()
    assert storm.notes == ("More than 10 records are flagged: feedback mutes none of so many.",)
    monkeypatch.setattr(summary, "LOOKED_AT", 10_000)
    monkeypatch.setattr(summary, "most_muted", lambda scored: scored)  # the twin
    assert len(report_of(detector, batch(detector, normal, 30), alarm, size).muted) > 20


def test_of_few_records_one_may_be_muted() -> None:
    assert [most_muted(n) for n in (1, 56, 100, 1000, 10**7)] == [1, 1, 2, 20, int(MOST * 10**7)]


def test_what_is_nearer_to_a_confirmed_anomaly_is_not_muted(detector: Detector, normal: Records) -> None:
    odd = far(normal, "b", 1.0)
    known = odd.take(np.array([0, 1]))
    assert share(Muting(detector, ("f-1", "f-2"), known), odd) > 0.8
    both = Muting(detector, ("f-1", ""), known)
    assert both.matches(known) == ["f-1", ""]
    assert 0 < share(both, odd) < share(Muting(detector, ("f-1",), odd.take(np.array([0]))), odd)
