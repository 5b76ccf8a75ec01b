"""Laws of the batch summary: it counts every row once, does not depend on the chunks, and keeps little in memory."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from vae_anomaly import drift, summary
from vae_anomaly.batch import Detections, Records
from vae_anomaly.detector import Detector
from vae_anomaly.report import to_html, to_markdown
from vae_anomaly.report.model import SCORE, Counterfactual, Report
from vae_anomaly.summary import SHOWN, BatchSummary
from vae_anomaly.thresholds import pot


def chunks(records: Records, size: int) -> list[Records]:
    """The records in parts, as the reader gives them."""
    starts = range(0, len(records), size)
    parts = [records.take(np.arange(start, min(start + size, len(records)))) for start in starts]
    return [replace(part, first_row=start) for part, start in zip(parts, starts, strict=True)]


def summarised(detector: Detector, records: Records, size: int = 10_000) -> BatchSummary:
    made = BatchSummary(detector)
    for part in chunks(records, size):
        made.add(part, detector.detect(part))
    return made


def report(made: BatchSummary, **options: Any) -> Report:
    about = {"monitor": "m", "batch_id": "b-0123456789ab", "batch_name": "b.csv", "batch_sha256": "0" * 64}
    return made.report(**about, extra_columns=["x"], provenance={"p": "q"}, **options)


@pytest.fixture
def odd(make_records: Callable[..., Records]) -> Records:
    """Ordinary records with far amounts, unseen shops, missing cells, labels, repeated ids and unscorable rows."""
    records = make_records(300, 31)
    values = {k: v if isinstance(v, pa.Array) else v.copy() for k, v in records.values.items()}
    values["amount"][5::60] = 1e6
    values["amount"][7] = np.inf
    shops = values["shop"].to_pylist()
    values["shop"] = pa.array([*shops[:290], *["unheard of"] * 10])
    status, ids, labels = records.status.copy(), records.record_ids.copy(), np.zeros(300, bool)
    status[7::100] = ["unscorable:non_finite:amount", "unscorable:wrong_dtype:b", "unscorable:wrong_dtype:b"]
    labels[5::60] = labels[107] = True
    ids[250:] = ids[:50]
    return Records(0, ids, values, status, labels)


def test_every_row_is_counted_once(detector: Detector, odd: Records) -> None:
    found, flags = report(summarised(detector, odd)), detector.detect(odd).is_anomaly
    assert (found.rows, found.scored, found.flagged) == (300, 297, flags.sum())
    assert dict(found.unscorable) == {"non_finite:amount": 1, "wrong_dtype:b": 2}
    assert dict(found.labelled or {}) == {"anomalies": 5, "found": flags[5::60].sum()}  # row 107 is unscorable
    assert found.notes == ("50 records repeat an id of this batch; every row was scored.",)
    assert found.expected_flagged == pytest.approx(297 * detector.threshold.promise.expected)
    quality = {c.column: c for c in found.columns}
    state = next(s for s in detector.preprocessor.states if s.column == "amount")
    amounts = odd.values["amount"][odd.scorable]  # that of row 7 is infinite, and not scored
    beyond = ((amounts < state.low) | (amounts > state.high)).sum()
    assert quality["amount"].beyond_range * 297 == pytest.approx(beyond)
    assert beyond >= 5
    assert quality["shop"].unseen * 297 == pytest.approx(10)
    assert quality["shop"].warning == "10 cells hold values never seen in training."
    assert quality["amount"].missing * 297 == pytest.approx(np.isnan(amounts).sum())


@pytest.mark.parametrize("size", [7, 100, 299])
def test_the_report_does_not_depend_on_the_chunks(detector: Detector, odd: Records, size: int) -> None:
    assert report(summarised(detector, odd, size)).to_json() == report(summarised(detector, odd)).to_json()


def test_the_strangest_are_shown_first_and_ties_in_the_order_of_the_batch(detector: Detector, odd: Records) -> None:
    many = odd.take(np.tile(np.flatnonzero(detector.detect(odd).is_anomaly), 20))
    found, score = report(summarised(detector, many, 33)), detector.detect(many).score
    assert found.flagged == len(many) > SHOWN
    expected = sorted(range(len(many)), key=lambda row: (-score[row], row))[:SHOWN]
    assert [record.row_index for record in found.records] == expected
    for record in found.records:
        assert sum(c.nats for c in record.contributions) + record.rest_nats == pytest.approx(record.score)
        assert record.record_id == many.record_ids[record.row_index]
        assert record.label == ("anomalous" if many.labels[record.row_index] else "normal")  # type: ignore[index]
        assert [len(n.values) for n in record.neighbours] == [len(record.contributions)] * 3


def test_the_map_numbers_the_cards_among_a_cloud_that_is_the_detectors(detector: Detector, odd: Records) -> None:
    found = report(summarised(detector, odd))
    assert found.latent is not None
    points, flagged = found.latent.points, found.latent.flagged
    assert [len(flagged), len(points) - len(flagged)] == [len(found.records), summary.MAPPED]
    assert len(set(flagged)) == len(flagged) and all(0 <= at <= 1000 for point in points for at in point)
    again = report(summarised(detector, odd.take(np.array([found.records[0].row_index])))).latent
    assert again is not None and len(again.flagged) == 1 and again.axes == found.latent.axes
    numbers = re.findall(r"<circle cx=.(\d+). cy=.(\d+). .*?><text .*?>(\d+)</text>", to_html(found))
    assert numbers == [(str(points[i][0]), str(points[i][1]), str(rank)) for rank, i in enumerate(flagged, 1)][::-1]


def test_a_record_far_away_is_at_the_edge_and_does_not_shrink_the_cloud(detector: Detector, odd: Records) -> None:
    """However far out a record lies the cloud keeps a third of the frame in each direction."""
    latent = report(summarised(detector, odd)).latent
    assert latent is not None
    cloud = np.array([point for i, point in enumerate(latent.points) if i not in latent.flagged])
    assert (np.ptp(cloud, axis=0) >= 333).all()


def test_the_page_follows_from_the_json_alone(detector: Detector, odd: Records) -> None:
    found = report(summarised(detector, odd))
    read = Report.from_dict(json.loads(found.to_json()))
    assert read == found and to_html(read) == to_html(found)
    page = to_html(found)
    assert page.count("would make it normal") == sum(
        bool(record.counterfactual and record.counterfactual.replacements) for record in found.records
    )
    assert to_markdown(found).count("would make it normal") >= 5


def test_reports_of_before_have_no_map_and_no_changes_and_can_be_read(detector: Detector, odd: Records) -> None:
    found = report(summarised(detector, odd))
    before = json.loads(found.to_json())
    del before["latent"]
    for record in before["records"]:
        for name in ("threshold", "calibration_records", "counterfactual"):
            del record[name]
    page = to_html(Report.from_dict(before))
    assert page.count('class="card"') == len(found.records)
    assert "makes it normal" not in page and "would make it normal" not in page and "<circle" not in page


def test_that_no_change_was_found_is_said(detector: Detector, odd: Records) -> None:
    found = report(summarised(detector, odd))
    none = replace(found, records=(replace(found.records[0], counterfactual=Counterfactual((), None, 3)),))
    for said in (to_html(none), to_markdown(none)):
        assert said.count("No change of up to 3 columns makes it normal") == 1


def test_scores_are_thinned_and_not_lost(
    detector: Detector, make_records: Callable[..., Records], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summary, "KEPT_SCORES", 100)
    made, records = BatchSummary(detector), make_records(1000, 33)
    score = np.random.default_rng(0).permutation(1000).astype(float)
    for part, values in zip(chunks(records, 50), np.split(score, 20), strict=True):
        made.add(part, Detections(part.status, values, values * 0 + 0.5, np.zeros(50, bool)))
        assert len(made.scores) <= 100
    assert made.scored == 1000
    assert set(made.scores) <= set(score)
    assert np.median(made.scores) == pytest.approx(500, abs=120)


@pytest.mark.parametrize("column", ["amount", "at", "flag", "shop"])
def test_cells_that_go_missing_are_told(detector: Detector, make_records: Callable[..., Records], column: str) -> None:
    records = make_records(200, 32)
    assert not [c.column for c in report(summarised(detector, records)).columns if c.warning]
    cells = records.values[column]
    rows = np.arange(200) % 4 == 0
    if isinstance(cells, pa.Array):
        lost: Any = pa.array(
            [None if gone else v for gone, v in zip(rows, cells.to_pylist(), strict=True)], pa.string()
        )
    else:
        lost = cells.copy()
        lost[rows] = np.array("NaT", "datetime64[us]") if column == "at" else np.nan
    found = report(summarised(detector, replace(records, values={**records.values, column: lost})))
    (warned,) = [c for c in found.columns if c.warning]
    assert warned.column == column
    assert "of the cells are missing; in training" in warned.warning


def test_a_threshold_beyond_all_scores_is_on_the_axis_and_those_below_it_are_compared(
    detector: Detector, make_records: Callable[..., Records]
) -> None:
    records = make_records(400, 31)
    normal = np.random.default_rng(1).choice(detector.scores(detector.encode(records)), 300)
    normal += np.random.default_rng(2).normal(size=300) * 1e-6  # no ties
    beyond = replace(detector, threshold=pot(normal, alpha=0.0004))
    found = report(summarised(beyond, records))
    assert found.extrapolated == 55 and not report(summarised(detector, records)).extrapolated
    assert found.threshold_value == beyond.threshold.value
    assert found.histogram.edges[0] <= found.threshold_value <= found.histogram.edges[-1]
    assert not any(shift.column == SCORE for shift in found.shifts)


def test_nothing_at_all_is_a_report_too(detector: Detector, odd: Records) -> None:
    empty = report(summarised(detector, odd.take(np.arange(0)), 1))
    assert (empty.rows, empty.notes, empty.has_something_to_say) == (
        0,
        ("The file has a header and no records.",),
        True,
    )
    lost = odd.take(np.array([7, 107]))
    none = report(summarised(detector, lost), notes=["Mind the gap."])
    assert (none.scored, none.flagged, none.records, none.notes) == (0, 0, (), ("Mind the gap.",))
    assert none.verdict == "None of 2 records could be scored."


def moved(records: Records, column: str, by: float, rows: slice = slice(None)) -> Records:
    """The records with some values of a column moved."""
    values = np.array(records.values[column], copy=True)
    values[rows] += by
    return replace(records, values={**records.values, column: values})


@pytest.mark.parametrize("size", [10_000, 77])
def test_a_column_that_moves_is_named_with_what_is_usual(
    detector: Detector, make_records: Callable[..., Records], size: int
) -> None:
    usual = make_records(400, 34)
    assert not report(summarised(detector, usual, size)).shifts
    shifts = {s.column: s for s in report(summarised(detector, moved(usual, "amount", 8.0), size)).shifts}
    assert set(shifts) <= {SCORE, "amount"}
    found = shifts["amount"]
    medians = [float(np.nanmedian(v)) for v in (usual.values["amount"] + 8.0, make_records(900).values["amount"])]
    told = [float(re.fullmatch(r"median ([\d.]+)", words).group(1)) for words in (found.now, found.normal)]  # type: ignore[union-attr]
    assert told == pytest.approx(medians, rel=0.05)
    assert 0.1 <= found.distance <= 1.0
    assert found.p_value <= drift.RATE / 2 / 5


def test_a_category_and_a_boolean_that_move_are_told_by_the_value_that_moved_most(
    detector: Detector, make_records: Callable[..., Records]
) -> None:
    records = make_records(400, 35)
    shops = ["east" if i % 2 else shop for i, shop in enumerate(records.values["shop"].to_pylist())]
    values = {**records.values, "shop": pa.array(shops), "flag": np.where(np.arange(400) % 3, 1.0, 0.0)}
    shifts = {s.column: s for s in report(summarised(detector, replace(records, values=values))).shifts}
    assert re.fullmatch(r"'east' 5\d%", shifts["shop"].now)
    assert re.fullmatch(r"'east' [3-7]%", shifts["shop"].normal)
    # the records with a flag are no more than every third one in training
    assert re.fullmatch(r"'(true|false)' \d+%", shifts["flag"].now)


def test_far_records_are_no_shift_and_a_batch_of_them_is(
    detector: Detector, make_records: Callable[..., Records]
) -> None:
    usual = make_records(300, 36)
    some, all_of_it = report(summarised(detector, moved(usual, "b", 9.0, slice(90)))), moved(usual, "b", 9.0)
    assert some.flagged > 80
    assert not some.drifted
    whole = report(summarised(detector, all_of_it))
    assert whole.drifted
    assert next(s.column for s in whole.shifts if s.column != SCORE) == "b"
    assert whole.records  # they are kept


def test_the_sample_that_is_compared_is_a_part_of_the_batch_whatever_its_chunks(
    detector: Detector, make_records: Callable[..., Records], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summary, "SAMPLE", 50)
    records = make_records(700, 37)
    kept = [
        np.concatenate([part.rows for part in summarised(detector, records, size)._sample]) for size in (7, 99, 700)
    ]
    assert 50 < len(kept[0]) <= 100
    for other in kept[1:]:
        np.testing.assert_array_equal(kept[0], other)


def test_cells_beyond_the_range_and_unseen_ones_are_told_where_they_are_more_than_in_held_out_records(
    detector: Detector, make_records: Callable[..., Records]
) -> None:
    records = make_records(300, 38)
    state = next(s for s in detector.preprocessor.all_states if s.column == "amount")
    assert state.high is not None
    values = np.array(records.values["amount"], copy=True)
    values[:30] = state.high + 1.0
    quality = {
        c.column: c.warning
        for c in report(summarised(detector, replace(records, values={**records.values, "amount": values}))).columns
    }
    assert re.fullmatch(r"1\d\.\d% of the cells lie beyond the range of the training records\.", quality["amount"])
    assert not quality["b"]
    assert detector.held_out is not None
    index = [s.column for s in detector.preprocessor.all_states].index("amount")
    cells = [list(c) for c in detector.held_out.cells]
    cells[index][2] = detector.held_out.records // 8
    used_to_it = replace(detector, held_out=replace(detector.held_out, cells=tuple(map(tuple, cells))))
    again = report(summarised(used_to_it, replace(records, values={**records.values, "amount": values})))
    assert not any(c.warning for c in again.columns)


def test_a_detector_of_an_earlier_version_still_tells_of_missing_cells_and_new_values(
    detector: Detector, odd: Records
) -> None:
    old = replace(detector, held_out=None)
    assert {c.column for c in report(summarised(old, odd)).columns if c.warning} == {"shop"}
    lost = np.where(np.arange(300) % 3 == 0, np.nan, odd.values["b"])
    warned = report(summarised(old, replace(odd, values={**odd.values, "b": lost}))).columns
    assert {c.column for c in warned if c.warning} == {"shop", "b"}
