"""Laws of a new calibration: the scores stay, copies and what trained count as in a fit, what is flagged stays, and
the order and size of the parts do not matter."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from modality_samples import CASES, Case
from modality_samples import fitted as fitted_to
from modality_samples import records as records_of

from vae_anomaly.batch import Records, concatenate
from vae_anomaly.detector import Detector, Part
from vae_anomaly.errors import ConfigError, DataError
from vae_anomaly.fitting import content_hash
from vae_anomaly.recalibration import Recalibration, contents_of
from vae_anomaly.report.model import Report
from vae_anomaly.summary import BatchSummary

THRESHOLD, NONE = Part("conformal", {"alpha": 0.05}), np.zeros(0, np.uint64)
Make = Callable[..., Any]


def again(
    detector: Detector, parts: Iterable[Records], *, anomalies: np.ndarray = NONE, trained: np.ndarray = NONE,
    threshold: Part = THRESHOLD, most: int = 200_000,
) -> Recalibration:  # fmt: skip
    """A calibration on ``parts``."""
    parts = list(parts)
    made = Recalibration(detector, threshold, sum(map(len, parts)), anomalies=anomalies, trained=trained, most=most)
    for part in parts:
        made.add(part)
    return made


@pytest.fixture
def fresh(make_records: Make) -> Records:
    """Records that have nothing to do with the fit."""
    found: Records = make_records(600, 91)
    return found


def test_no_score_changes_and_the_calibration_scores_are_those_of_the_records(
    detector: Detector, fresh: Records, make_records: Make
) -> None:
    new = again(detector, [fresh]).detector_now()
    other = make_records(100, 92)
    assert new.detect(other).score.tobytes() == detector.detect(other).score.tobytes()
    np.testing.assert_array_equal(new.threshold.measured, np.sort(detector.detect(fresh).score))
    assert new.threshold.promise.calibration_records == 600
    assert (detector.detect(fresh).is_anomaly == (detector.detect(fresh).score > detector.threshold.value)).all()
    assert 0 < detector.detect(fresh).is_anomaly.sum() == (new.threshold.measured > detector.threshold.value).sum()


@pytest.mark.parametrize("most", [200_000, 150])
def test_neither_order_nor_parts_matter(detector: Detector, fresh: Records, most: int) -> None:
    whole = again(detector, [fresh], most=most).detector_now()
    pieces = [fresh.between(slice(i, i + 37)) for i in range(0, 600, 37)]
    assert again(detector, pieces, most=most).detector_now().digest == whole.digest
    backwards = again(detector, pieces[::-1], most=most).detector_now()
    assert backwards.threshold.version == whole.threshold.version
    assert len(whole.threshold.measured) == min(600, most)


def test_copies_count_once_and_are_known_of(detector: Detector, fresh: Records) -> None:
    once, half = again(detector, [fresh]), fresh.between(slice(0, 300))
    twice = again(detector, [fresh, half, half])
    assert twice.left_out.repeated == 600 and once.left_out.repeated == 0
    assert twice.detector_now().threshold.version == once.detector_now().threshold.version
    unlike = [made.detector_now().held_out.unlike for made in (once, twice)]  # type: ignore[union-attr]
    assert unlike == [0.0, pytest.approx(0.25)]  # 300 contents come thrice, of 1,200 records


def test_a_sample_is_one_of_all_contents_with_all_their_copies(detector: Detector, make_records: Make) -> None:
    records = make_records(4000, 93)
    made = again(detector, [records, records.between(slice(0, 2000))], most=1000)
    assert made.is_sampled and len(made.detector_now().threshold.measured) == 1000
    chosen = np.isin(content_hash(records), np.sort(content_hash(records))[:1000])
    a, everyone = records.values["a"][chosen], records.values["a"]
    assert abs(np.nanmean(a) - np.nanmean(everyone)) < 4 * np.nanstd(everyone) / 1000**0.5
    first = chosen[:2000].sum()
    assert made.left_out.repeated == first and abs(first - 500) < 4 * 1000**0.5 / 2  # half of them, by chance
    held_out = made.detector_now().held_out
    whole = again(detector, [records, records.between(slice(0, 2000))]).detector_now().held_out
    assert held_out is not None and whole is not None
    assert held_out.unlike == pytest.approx(whole.unlike, abs=0.03)


def test_what_is_equal_to_a_reference_record_is_scored_without_it(
    detector: Detector, fresh: Records, make_records: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = make_records(900)  # those of the fit
    own = detector.reference.places(detector.encode(known))
    names = np.array(detector.reference.record_ids, dtype=object)
    assert (own >= 0).all() and (names[own.numpy()] == known.record_ids).all()
    assert (detector.reference.places(detector.encode(fresh)) == -1).all()
    new = again(detector, [known]).detector_now()
    left_out = detector.scores(detector.encode(known), own)
    np.testing.assert_array_equal(new.threshold.measured, np.sort(left_out))
    nobody = torch.full((900,), -1)
    monkeypatch.setattr(type(detector.reference), "places", lambda _, inputs: nobody[: len(inputs)])
    assert again(detector, [known]).detector_now().threshold.measured.mean() < left_out.mean()


def test_the_scores_of_held_out_records_are_those_of_the_fit(fitted: Make, make_records: Make) -> None:
    made = fitted()
    known, splits = make_records(900), made.splits
    trained = contents_of(known.take(splits["training"]))
    found = again(made.detector, [known.take(splits["training"]), known.take(splits["calibration"])], trained=trained)
    assert found.left_out.trained == len(splits["training"])
    np.testing.assert_array_equal(found.detector_now().threshold.measured, made.detector.threshold.measured)


def test_confirmed_labelled_and_unscorable_records_take_no_part(detector: Detector, fresh: Records) -> None:
    labels = np.zeros(600, bool)
    labels[:5] = True
    status = fresh.status.copy()
    status[5:9] = "unscorable:wrong_dtype:a"
    odd = replace(fresh, labels=labels, status=status)
    made = again(detector, [odd], anomalies=contents_of(fresh.take(np.array([9, 10]))))
    left = made.left_out
    assert (left.labelled, left.unscorable, left.confirmed, left.repeated, left.trained) == (5, 4, 2, 0, 0)
    rest = fresh.take(np.arange(11, 600))
    assert made.detector_now().threshold.version == again(detector, [rest]).detector_now().threshold.version


def test_too_few_are_refused(detector: Detector, fresh: Records) -> None:
    few = fresh.between(slice(0, 15))
    with pytest.raises(ConfigError, match="calibrate on 19 normal records or more"):
        again(detector, [few]).detector_now()
    for parts, trained in (([few], contents_of(few)), ([few.between(slice(0, 1))] * 2, NONE)):
        with pytest.raises(DataError, match="at least two scores that trained no weight"):
            again(detector, parts, trained=trained).detector_now()


def test_segments_are_those_of_the_new_records(detector: Detector, fresh: Records) -> None:
    mondrian = Part("mondrian", {"by": "shop", "alpha": 0.05})
    threshold = again(detector, [fresh], threshold=mondrian).detector_now().threshold
    scores = detector.detect(fresh).score
    for shop, part in threshold.segments.items():
        mine = np.array([shop == other for other in fresh.values["shop"].to_pylist()])
        np.testing.assert_array_equal(part.calibration, np.sort(scores[mine]))
    assert {"north", "south"} <= set(threshold.segments)


@pytest.mark.parametrize(
    "case", [c for c in CASES if str(c) in ("conv-image", "lstm-text", "conditional-table-context")], ids=str
)
def test_every_modality_can_be_calibrated_again(case: Case) -> None:
    detector, found = fitted_to(case), records_of(case, 300, 2)
    none = replace(found.between(slice(0, 3)), status=np.full(3, "unscorable:missing", dtype=object))
    pieces = [none, found.between(slice(0, 1)), found.between(slice(1, 300))]
    new = again(detector, [*pieces, found]).detector_now()
    once = found.take(np.unique(content_hash(found), return_index=True)[1])
    inputs = detector.encode(once)
    expected = detector.scores(inputs, detector.reference.places(inputs))
    np.testing.assert_array_equal(new.threshold.measured, np.sort(expected))
    assert new.held_out is not None and new.held_out.records == 600
    assert report_of(new, records_of(case, 300, 3)).shifts == ()


# ---------------------------------------------------------------- what is said of the next batches


def moved(records: Records) -> Records:
    """The amounts have doubled, and there is a shop that nobody knew."""
    shops = ["west" if i % 4 == 0 else shop for i, shop in enumerate(records.values["shop"].to_pylist())]
    values = {**records.values, "amount": 2 * records.values["amount"], "shop": pa.array(shops)}
    return replace(records, values=values)


def report_of(detector: Detector, records: Records) -> Report:
    made = BatchSummary(detector)
    made.add(records, detector.detect(records))
    about = {"monitor": "m", "batch_id": "b-0123456789ab", "batch_name": "b.csv", "batch_sha256": "0" * 64}
    return made.report(**about, extra_columns=[], provenance={})


def test_batches_are_compared_with_the_new_records_in_scores_columns_and_cells(
    detector: Detector, make_records: Make
) -> None:
    recent = [moved(make_records(300, 94 + i)) for i in range(4)]
    before, new = detector, again(detector, recent).detector_now()
    batch, old = moved(make_records(300, 99)), make_records(300, 99)
    drift = report_of(before, batch)
    assert "amount" in {shift.column for shift in drift.shifts}
    assert any(column.warning for column in drift.columns)
    usual = report_of(new, batch)
    assert usual.shifts == () and not any(column.warning for column in usual.columns)
    assert "amount" in {shift.column for shift in report_of(new, old).shifts}
    twin = report_of(replace(new, usual=None), batch)  # a threshold alone would not do
    assert twin.shifts


def test_it_survives_the_disk_and_another_calibration(detector: Detector, fresh: Records, tmp_path: Path) -> None:
    new = again(detector, [fresh]).detector_now()
    loaded = Detector.load(tmp_path / "model", digest=new.save(tmp_path / "model"))
    assert loaded.digest == new.digest and loaded.held_out == new.held_out
    assert loaded.usual is not None and new.usual is not None
    assert {k: v.tobytes() for k, v in loaded.usual.items()} == {k: v.tobytes() for k, v in new.usual.items()}
    assert again(loaded, [fresh]).detector_now().digest == new.digest


def test_a_large_batch_is_compared_with_a_sample_of_its_records_as_they_come(
    detector: Detector, make_records: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vae_anomaly.recalibration.SAMPLE", 200)
    records = make_records(3000, 95, holes=0.0)
    same = records.take(np.repeat(np.arange(10), 100))
    new = again(detector, [concatenate([records, same])]).detector_now()
    assert new.usual is not None
    values = new.usual["a"]
    assert len(values) == 400
    repeated = np.isin(values.astype(np.float32), detector.encode(same).x[:, 0].numpy()).sum()
    assert 60 < repeated < 140  # a quarter of the records are copies, and so is a quarter of the sample
