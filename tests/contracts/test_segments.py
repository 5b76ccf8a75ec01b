"""Laws of detectors by segment: each record is scored, decided, explained and muted by its own, and by nothing else."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import safetensors.torch
import scipy.stats
import torch

from vae_anomaly import fitting, pipelines
from vae_anomaly.artifact import FILES
from vae_anomaly.batch import Records
from vae_anomaly.detector import Detector, Part
from vae_anomaly.errors import ArtifactError, ConfigError
from vae_anomaly.explain import explain
from vae_anomaly.fitting import Fit, Recipe, Segments, content_hash, fit_detector
from vae_anomaly.muting import Muting
from vae_anomaly.report.html import to_html
from vae_anomaly.report.markdown import to_markdown
from vae_anomaly.schema import Column, Schema
from vae_anomaly.summary import BatchSummary
from vae_anomaly.thresholds import conformal, false_alarms
from vae_anomaly.training import EpochLog, build_seeded

RECIPE = Recipe(
    model=Part("mlp", {"hidden": (32, 16), "latent": 4}),
    score=Part("latent_neighbours"),
    training={"steps": 150},
    threshold=Part("conformal", {"alpha": 0.05}),
    validation=0.15,
    calibration=0.35,
    segments=Segments("shop", 150),
)
NAMES = ["north", "south"]  # east has too few records


@pytest.fixture(scope="module")
def fit(make_records: Callable[..., Records], schema: Schema) -> Fit:
    return fit_detector(make_records(900), schema, RECIPE)


@pytest.fixture
def several(fit: Fit) -> Detector:
    return fit.detector


@pytest.fixture
def records(make_records: Callable[..., Records]) -> Records:
    """Normal records, of each shop and of none, and of one that nobody knows."""
    made = make_records(400, 21, holes=0.0)
    shops = made.values["shop"].to_pylist()  # type: ignore[union-attr]
    return replace(made, values={**made.values, "shop": pa.array(["new", None, *shops[2:]])})


def shops(records: Records) -> np.ndarray:
    return np.array(records.values["shop"].to_pylist(), dtype=object)  # type: ignore[union-attr]


def same(ours: np.ndarray, theirs: np.ndarray) -> bool:
    return bool(ours.tobytes() == theirs.tobytes() if ours.dtype != object else (ours == theirs).all())


# ---------------------------------------------------------------- fit


def test_segments_with_enough_records_have_detectors_and_the_fit_names_the_others(fit: Fit) -> None:
    assert (list(fit.detector.segments), fit.detector.by) == (NAMES, "shop")
    assert list(fit.unserved) == ["east"] and fit.unserved["east"].endswith(" records")


def test_the_general_detector_is_the_one_without_segments(
    fit: Fit, make_records: Callable[..., Records], schema: Schema
) -> None:
    alone = fit_detector(make_records(900), schema, replace(RECIPE, segments=None))
    assert alone.detector.digest == fit.detector.detectors[0].digest != fit.detector.digest
    assert fit_detector(make_records(900), schema, RECIPE).detector.digest == fit.detector.digest


def test_the_bits_do_not_depend_on_how_many_are_fitted_at_a_time(
    fit: Fit, make_records: Callable[..., Records], schema: Schema
) -> None:
    told: list[tuple[int, int]] = []
    many = fit_detector(make_records(900), schema, replace(RECIPE, threads=3), on_segment=lambda *n: told.append(n))
    assert [own.digest for own in many.detector.segments.values()] == [
        own.digest for own in fit.detector.segments.values()
    ]
    assert told == [(1, 2), (2, 2)]


def test_models_that_are_built_at_the_same_time_do_not_share_their_random_numbers() -> None:
    def slow() -> list[float]:
        drawn = []
        for _ in range(5):
            drawn.append(float(torch.rand(1)))
            time.sleep(0.002)
        return drawn

    def together(build: Callable[[Callable[[], Any], int], Any]) -> list[Any]:
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(lambda seed: build(slow, seed), range(8)))

    def unlocked(builder: Callable[[], Any], seed: int) -> Any:
        torch.manual_seed(seed)
        return builder()

    with torch.random.fork_rng(devices=[]):
        alone = [unlocked(slow, seed) for seed in range(8)]
        assert together(build_seeded) == alone
        assert together(unlocked) != alone


def test_who_interrupts_a_fit_waits_for_an_epoch_only(
    make_records: Callable[..., Records], schema: Schema, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs: list[int] = []

    def endless(*_: Any) -> Iterator[EpochLog]:
        for epoch in range(10**6):
            epochs.append(epoch)
            time.sleep(0.001)
            yield EpochLog(epoch, 1.0, 1.0, 1.0, 1.0, 1.0, True)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    made = fitting._fit

    def second_is_endless(records: Records, *rest: Any) -> Fit:
        if len(records) < 300:  # the smaller segment trains for ever
            monkeypatch.setattr(fitting, "train", endless)
        return made(records, *rest)

    monkeypatch.setattr(fitting, "_fit", second_is_endless)
    with pytest.raises(KeyboardInterrupt):
        fit_detector(make_records(900), schema, RECIPE, on_segment=interrupt)
    assert len(epochs) < 10_000


def test_what_is_held_out_is_held_out_from_all(
    make_records: Callable[..., Records], schema: Schema, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[dict[str, set[int]]] = []

    def noted(records: Records, schema: Schema, recipe: Recipe, splits: dict[str, np.ndarray], *rest: Any) -> Fit:
        held.append({name: set(content_hash(records.take(index)).tolist()) for name, index in splits.items()})
        return made(records, schema, recipe, splits, *rest)

    made = fitting._fit
    monkeypatch.setattr(fitting, "_fit", noted)
    records = make_records(900)
    more = make_records(20, 22)
    detector = fit_detector(records, schema, RECIPE, calibrating=more).detector
    general, *own = held
    assert len(own) == 2
    for name in general:
        assert set.union(*(part[name] for part in own)) < general[name]
        assert not own[0][name] & own[1][name]
    # what joins the calibration joins that of its segment
    new = set(content_hash(more.take(np.flatnonzero(shops(more) == "south"))).tolist())
    assert new and new <= own[1]["calibration"]
    sizes = [len(part["calibration"]) for part in own]
    assert sizes == [len(part.threshold.calibration) for part in detector.segments.values()]


def test_a_segment_that_cannot_be_fitted_is_served_by_the_general_detector(
    make_records: Callable[..., Records], schema: Schema
) -> None:
    records = make_records(900)
    amount = records.values["amount"].copy()
    amount[shops(records) == "south"] = np.nan
    lacking = replace(records, values={**records.values, "amount": amount})
    fit = fit_detector(lacking, schema, RECIPE)
    assert list(fit.detector.segments) == ["north"]
    assert "every cell must not be missing" in fit.unserved["south"]
    strict = replace(RECIPE, threshold=Part("conformal", {"alpha": 0.01}))
    fit = fit_detector(records, schema, strict)
    assert list(fit.detector.segments) == ["north"]
    assert "threshold.alpha must be at least" in fit.unserved["south"]
    none = fit_detector(records, schema, replace(RECIPE, segments=Segments("shop", 5000))).detector
    assert (none.segments, none.by, none.detect(records).part) == ({}, "shop", None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"segments": Segments("at")}, "segments.by must be a category or boolean column"),
        ({"segments": Segments("shops")}, "segments.by must be a category or boolean column"),
        ({"threshold": Part("mondrian", {"by": "shop", "alpha": 0.05})}, "must be conformal where there are segments"),
        ({"threshold": Part("fdr", {"q": 0.1})}, "must be conformal where there are segments. Got fdr"),
    ],
)
def test_what_makes_no_sense_is_refused(
    changes: dict[str, Any], said: str, make_records: Callable[..., Records], schema: Schema
) -> None:
    with pytest.raises(ConfigError, match=said):
        fit_detector(make_records(300), schema, replace(RECIPE, **changes))


# ---------------------------------------------------------------- scores and decisions


def test_a_record_is_scored_and_decided_by_its_own_detector_to_the_bit(several: Detector, records: Records) -> None:
    found, shop, seen = several.detect(records), shops(records), 0
    own = {name: several.segments.get(name, several.detectors[0]) for name in {*shop}}
    assert {"north", "south", "east", "new", None} == {*own}
    assert own["new"] is own[None] is own["east"] is several.detectors[0]
    for name, detector in own.items():
        mine = np.flatnonzero(shop == name)
        alone = detector.detect(records.take(mine))
        seen += len(mine)
        for what in ("status", "score", "p_value", "is_anomaly"):
            assert same(getattr(found, what)[mine], getattr(alone, what)), (name, what)
        assert found.part is not None
        assert all(several.detectors[i] is detector for i in found.part[mine])
        assert (found.p_value[mine] == detector.threshold.p_value(found.score[mine])).all()
    assert seen == len(records)
    general = several.detectors[0].detect(records)  # the twin: another detector gives other scores
    assert (general.score != found.score).mean() > 0.8


def test_scores_do_not_depend_on_the_batch(several: Detector, records: Records) -> None:
    found = several.detect(records)
    order = np.random.default_rng(0).permutation(len(records))
    for start in range(0, len(records), 97):
        some = order[start : start + 97]
        part = several.detect(records.take(some))
        for what in ("score", "p_value", "is_anomaly", "part"):
            assert same(getattr(found, what)[some], getattr(part, what))
    again = several.decided(records, found.status, found.score)
    assert all(same(getattr(again, what), getattr(found, what)) for what in ("p_value", "is_anomaly", "part"))


def test_an_unscorable_record_stays_one(several: Detector, records: Records) -> None:
    status = records.status.copy()
    status[:50] = "unscorable:wrong_dtype:a"
    found = several.detect(replace(records, status=status))
    assert (found.status[:50] == status[:50]).all()
    assert np.isnan(found.score[:50]).all() and not found.is_anomaly[:50].any()


def test_each_segment_keeps_the_promise_where_one_detector_for_all_does_not() -> None:
    """Two shops of which one is ten times as variable: one threshold flags nothing of one and too much of the other."""
    schema = Schema((Column("x", "number"), Column("y", "number"), Column("shop", "category")))

    def drawn(seed: int, rows: int) -> Records:
        g = np.random.default_rng(seed)
        loud = g.random(rows) < 0.2
        x = g.normal(size=rows) * np.where(loud, 10.0, 1.0)
        values = {"x": x, "y": x + g.normal(size=rows) * np.where(loud, 10.0, 1.0),
                  "shop": pa.array(np.where(loud, "loud", "quiet"))}  # fmt: skip
        ids = np.array([str(i) for i in range(rows)], dtype=object)
        return Records(0, ids, values, np.full(rows, "ok", dtype=object))

    recipe = replace(RECIPE, score=Part("negative_elbo"), segments=Segments("shop", 300))
    several = fit_detector(drawn(1, 3000), schema, recipe).detector
    assert list(several.segments) == ["loud", "quiet"]
    fresh = drawn(2, 20_000)
    shop, found, pooled = shops(fresh), several.detect(fresh), several.detectors[0].detect(fresh)
    outside = 0
    for name, detector in several.segments.items():
        mine = shop == name
        b, n = detector.threshold.rank, len(detector.threshold.calibration)
        low, high = scipy.stats.betabinom.ppf([0.0005, 0.9995], mine.sum(), b, n + 1 - b)
        assert low <= found.is_anomaly[mine].sum() <= high, name
        outside += not low <= pooled.is_anomaly[mine].sum() <= high
    assert outside == 2


def test_the_report_expects_what_the_thresholds_promise(several: Detector, records: Records) -> None:
    report = report_of(several, records)
    parts = [(own.threshold, len(mine)) for own, mine in zip(several.detectors, several.routed(records), strict=True)]
    expected, low, high = false_alarms(parts)
    assert (report.expected_flagged, report.flagged_range) == (expected, (low, high))
    assert report.detectors == 3
    # one axis and one threshold would be those of one detector
    assert not report.histogram.edges and np.isnan(report.threshold_value)
    assert "Where the scores lie" not in to_html(report)
    assert "3 detectors" in to_markdown(report)


# ---------------------------------------------------------------- there and back


def test_a_loaded_set_is_the_same_and_its_digest_names_every_detector(
    several: Detector, records: Records, tmp_path: Path
) -> None:
    digest = several.save(tmp_path / "model")
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"manifest.json", *FILES}
    loaded = Detector.load(tmp_path / "model", digest=digest)
    assert digest == several.digest == loaded.digest
    assert [own.digest for own in loaded.detectors] == [own.digest for own in several.detectors]
    assert loaded.decider.version == several.decider.version
    ours, theirs = several.detect(records), loaded.detect(records)
    for what in ("status", "score", "p_value", "is_anomaly", "part"):
        assert same(getattr(ours, what), getattr(theirs, what)), what
    less = replace(several, segments={"north": several.segments["north"]})
    swapped = replace(several, segments=dict(zip(NAMES, reversed(several.segments.values()), strict=True)))
    assert len({several.digest, less.digest, swapped.digest}) == 3
    assert len({one.decider.version for one in (several, less, swapped)}) == 3


@pytest.mark.parametrize("part", ["tensor", "detector"])
def test_a_set_of_which_a_part_is_missing_is_refused(
    part: str, several: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, weights = FILES
    files = several._files()
    if part == "tensor":
        tensors = safetensors.torch.load(files[weights])
        del tensors["segment.1.threshold.calibration"]
        files[weights] = safetensors.torch.save(tensors)
    else:
        content = json.loads(files[head])
        del content["segments"]["detectors"]["south"]
        files[head] = json.dumps(content).encode()
    monkeypatch.setattr(Detector, "_files", lambda _: files)
    several.save(tmp_path / "model")
    with pytest.raises(ArtifactError, match="must hold"):
        Detector.load(tmp_path / "model")


# ---------------------------------------------------------------- reasons, neighbours, muting


def odd(records: Records, rows: np.ndarray | slice = slice(None)) -> Records:
    """The records with a b that is far from a, in those rows."""
    b = records.values["b"].copy()
    b[rows] += 40.0
    return replace(records, values={**records.values, "b": b})


def report_of(detector: Detector, records: Records, known: Muting | None = None) -> Any:
    made = BatchSummary(detector, muting=known)
    made.add(records, detector.detect(records))
    about = {"monitor": "m", "batch_id": "b-0123456789ab", "batch_name": "b.csv", "batch_sha256": "0" * 64}
    return made.report(**about, extra_columns=[], provenance={})


def test_each_flagged_record_is_explained_by_the_detector_that_scored_it(several: Detector, records: Records) -> None:
    shop = shops(records)
    far = odd(records, np.concatenate([np.flatnonzero(shop == name)[:8] for name in {*shop}]))
    new = far.take(np.flatnonzero(shop == "new"))  # the twin: of one detector alone the shop may be replaced
    (card,) = report_of(several.detectors[0], new).records
    assert card.counterfactual and {"b", "shop"} == {r.part for r in card.counterfactual.replacements}
    report = report_of(several, far)
    assert {record.detector for record in report.records} == {"", *NAMES}
    values = dict(zip(several.names, (own.threshold.value for own in several.detectors), strict=True))
    beyond = [record.score - values[record.detector] for record in report.records]
    assert beyond == sorted(beyond, reverse=True)
    for record in report.records:
        name = shop[record.row_index]
        assert record.detector == (name if name in NAMES else "")
        own = several.segments.get(name, several.detectors[0])
        assert record.adds_up
        (alone,) = explain(own, far.take(np.array([record.row_index])))
        reasons = {part.column: part.nats for part in alone.reasons}
        assert [part.nats for part in record.contributions] == pytest.approx(
            [reasons[part.column] for part in record.contributions], abs=1e-3
        )
        # a record of another shop would be judged by another detector
        assert record.counterfactual and "shop" not in {r.part for r in record.counterfactual.replacements}
        ids = [own.reference.record_ids[at] for at, _ in alone.neighbours]
        assert [neighbour.record_id for neighbour in record.neighbours] == ids
    assert "detector of" in to_html(report)


def test_a_false_alarm_mutes_within_its_segment_only(several: Detector, records: Records) -> None:
    far = odd(records)
    shop = shops(far)
    first = np.flatnonzero(shop == "north")[:1]
    known = Muting(several, ("f-1",), far.take(first))
    found = np.array(known.matches(far))
    assert found[first] == "f-1"
    assert (found[shop == "north"] == "f-1").mean() > 0.5
    assert not (found[shop != "north"] == "f-1").any()
    assert found.tolist()[:30] == [known.matches(far.take(np.array([i])))[0] for i in range(30)]
    alone = Muting(several.detectors[0], ("f-1",), far.take(first))  # the twin: one detector knows no segments
    assert (np.array(alone.matches(far))[shop == "south"] == "f-1").any()


def test_no_record_is_a_neighbour_of_itself_in_any_detector(several: Detector) -> None:
    ids = set(several.detectors[0].reference.record_ids[:200])
    assert any(ids & set(own.reference.record_ids) for own in several.segments.values())
    for own in several.without(ids).detectors:
        assert not ids & set(own.reference.record_ids)


# ---------------------------------------------------------------- review


def test_how_far_it_has_gone_from_its_training_records_is_counted_as_it_decides(
    several: Detector, records: Records
) -> None:
    low = replace(several.segments["north"], threshold=conformal(np.arange(50.0) - 1e6, alpha=0.05))
    strict = replace(several, segments={**several.segments, "north": low})
    flagged = strict.detect(records).is_anomaly
    assert flagged.mean() > several.detect(records).is_anomaly.mean() + 0.1
    (said,) = pipelines._beside_training(strict, records, seed=0)
    assert said.startswith(f"Of {len(records):,} normal records of source.training it flags {flagged.mean():.1%}")
