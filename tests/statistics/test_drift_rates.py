"""Simulations of what is said of whole batches: how often a normal one is called shifted, and what is found how soon.

Every repetition draws a fresh reference, for the rates are stated over references; seeds are fixed. A rate is tested at
a level of a twentieth, where so many repetitions can tell; the default level enters nothing but that comparison.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from vae_anomaly import drift, summary
from vae_anomaly.batch import OK, Records
from vae_anomaly.detector import Detector, HeldOut, Part, Reference
from vae_anomaly.explain import score_shift, shifts
from vae_anomaly.fitting import Recipe, fit_detector
from vae_anomaly.report.model import SCORE, Report
from vae_anomaly.schema import Column, Schema
from vae_anomaly.summary import BatchSummary
from vae_anomaly.thresholds import conformal

LEVEL, REPEATS = 0.05, 1000
Draw = Callable[[np.random.Generator, int], np.ndarray]
LAWS: dict[str, Draw] = {
    "normal": lambda g, n: g.normal(size=n),
    "lognormal": lambda g, n: g.lognormal(size=n),
    "heavy": lambda g, n: g.standard_t(3, size=n),
    "counts": lambda g, n: g.poisson(2.0, size=n).astype(float),
    "constant": lambda g, n: np.zeros(n),
    "mixture": lambda g, n: np.where(g.random(n) < 0.3, g.normal(4, 0.5, n), g.normal(size=n)),
}


def at_most(rate: float, repeats: int) -> float:
    """The largest share that a true rate gives but for one time in two thousand."""
    return rate + 3.29 * math.sqrt(rate * (1 - rate) / repeats)


def false_shifts(draw: Draw, n: int, m: int, *, repeats: int = 2 * REPEATS) -> float:
    """How often scores of normal records are called shifted, without regard to how far."""
    g = np.random.default_rng(1)
    found = (score_shift(draw(g, n), draw(g, m), level=LEVEL, least=0.0) for _ in range(repeats))
    return sum(shift is not None for shift in found) / repeats


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(("n", "m"), [(100, 500), (1000, 500), (75, 56)])
def test_normal_scores_are_called_shifted_as_seldom_as_stated(law: str, n: int, m: int) -> None:
    assert false_shifts(LAWS[law], n, m) <= at_most(LEVEL, 2 * REPEATS)


def test_a_reference_that_is_taken_for_the_truth_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shifts, "p_value", lambda far, n, m: drift.p_value(far, 10**9, m))
    assert false_shifts(LAWS["normal"], 100, 500) > 2 * LEVEL


def test_half_a_deviation_is_found_within_five_batches_of_500_at_the_default_level() -> None:
    g, late = np.random.default_rng(2), 0
    for _ in range(REPEATS):
        threshold = conformal(g.normal(size=1000), alpha=0.01)
        normal = threshold.calibration[: -threshold.rank]
        batches = (g.normal(0.5, size=500) for _ in range(5))
        kept = (scores[~threshold.flag(scores)] for scores in batches)
        late += not any(score_shift(normal, s, level=drift.RATE / 2, least=drift.DISTANCE) for s in kept)
    assert late <= 0.05 * REPEATS


def found_at_once(n: int, m: int, shift: float, repeats: int = 300) -> float:
    g, found = np.random.default_rng(5), 0
    for _ in range(repeats):
        threshold, scores = conformal(g.normal(size=n), alpha=0.01), g.normal(shift, size=m)
        kept = scores[~threshold.flag(scores)]
        normal = threshold.calibration[: -threshold.rank]
        found += score_shift(normal, kept, level=drift.RATE / 2, least=drift.DISTANCE) is not None
    return found / repeats


@pytest.mark.statistics
def test_the_table_of_the_documentation_is_what_is_found() -> None:
    text = (Path(__file__).parents[2] / "docs" / "monitoring.md").read_text()
    rows = re.findall(r"^\| ([\d,]+) \| ([\d,]+) \| (\d+) % \| (\d+) % \| (\d+) % \| (\d+) % \|$", text, re.MULTILINE)
    assert len(rows) == 5
    for row in rows:
        n, m, *stated = (int(cell.replace(",", "")) for cell in row)
        found = [100 * found_at_once(n, m, shift) for shift in (0.2, 0.3, 0.5, 1.0)]
        assert found == pytest.approx(stated, abs=0.51), row


def test_in_a_large_batch_a_shift_that_nobody_cares_for_is_none() -> None:
    g = np.random.default_rng(3)
    normal, batch = g.normal(size=20_000), g.normal(0.05, size=100_000)
    assert score_shift(normal, batch, level=drift.RATE, least=drift.DISTANCE) is None
    assert score_shift(normal, batch, level=drift.RATE, least=0.0)  # significant it is


# ---------------------------------------------------------------- through the report, with a detector that was fitted


@pytest.fixture
def redrawn(fitted: Callable[..., Any], make_records: Callable[..., Any]) -> Callable[[int], tuple[Detector, Any]]:
    """``redrawn(seed)``: the same networks with a fresh calibration, fresh reference and held-out records, and a way to
    draw a fresh batch."""
    base = fitted("negative_elbo").detector
    records = make_records(60_000, 77)
    scores = base.detect(records).score

    def draw(seed: int, n: int = 300) -> tuple[Detector, Any]:
        g = np.random.default_rng(seed)
        rows = g.permutation(len(records))
        known, fresh = rows[:n], iter(np.split(rows[n:], range(250, 5000, 250)))
        inputs = base.encode(records.take(known))
        held_out = base.preprocessor.quality(records.take(known), np.ones(n, bool))
        detector = replace(
            base,
            threshold=conformal(scores[known], alpha=0.02),
            reference=Reference(inputs, tuple(f"r{i}" for i in known)),
            held_out=HeldOut(n, tuple((int(a), int(b), int(c)) for a, b, c in held_out)),
        )
        return detector, lambda: records.take(next(fresh))

    return draw


def report_of(detector: Detector, records: Records, least: float = drift.DISTANCE) -> Report:
    made = BatchSummary(detector, least)
    made.add(records, detector.decided(records, records.status, detector.scores(detector.encode(records))))
    about = {"monitor": "m", "batch_id": "b-0123456789ab", "batch_name": "b.csv", "batch_sha256": "0" * 64}
    return made.report(**about, extra_columns=[], provenance={})


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Nothing is explained here: that takes most of a report's time and changes no count."""
    monkeypatch.setattr(summary, "RATE", 2 * LEVEL)
    monkeypatch.setattr(BatchSummary, "_records", lambda _: ())
    monkeypatch.setattr(BatchSummary, "_latent", lambda *_: None)
    return monkeypatch


def told(redrawn: Callable[[int], tuple[Detector, Any]], what: Callable[[Report], bool], repeats: int) -> float:
    found = 0
    for seed in range(repeats):
        detector, batch = redrawn(seed)
        found += what(report_of(detector, batch(), 0.0))
    return found / repeats


@pytest.mark.statistics
@pytest.mark.parametrize("part", ["scores", "columns", "warnings"])
def test_of_normal_batches_no_more_are_told_than_stated(
    redrawn: Callable[[int], tuple[Detector, Any]], quick: pytest.MonkeyPatch, part: str
) -> None:
    parts: dict[str, Callable[[Report], bool]] = {
        "scores": lambda r: any(s.column == SCORE for s in r.shifts),
        "columns": lambda r: any(s.column != SCORE for s in r.shifts),
        "warnings": lambda r: any(c.warning for c in r.columns),
    }
    stated = 2 * LEVEL if part == "warnings" else LEVEL
    assert told(redrawn, parts[part], REPEATS) <= at_most(stated, REPEATS)


@pytest.mark.statistics
def test_columns_that_do_not_share_the_rate_are_seen(
    redrawn: Callable[[int], tuple[Detector, Any]], quick: pytest.MonkeyPatch
) -> None:
    # each of five has all of it, and nothing is taken off for the records that were left out
    quick.setattr(shifts, "p_value", lambda far, n, m: drift.p_value(far + 0.04, n, m) / 5)
    assert told(redrawn, lambda r: any(s.column != SCORE for s in r.shifts), 300) > at_most(LEVEL, 300)


@pytest.mark.statistics
def test_a_rate_of_training_that_is_taken_for_the_truth_is_seen(
    redrawn: Callable[[int], tuple[Detector, Any]], quick: pytest.MonkeyPatch
) -> None:
    def binomial(count: int, records: int, b: int, n: int) -> float:
        import scipy.stats

        return float(scipy.stats.binom.sf(count - 1, records, (b - 1) / n))

    quick.setattr(summary, "at_least", binomial)
    assert told(redrawn, lambda r: any(c.warning for c in r.columns), 300) > at_most(2 * LEVEL, 300)


@pytest.mark.statistics
@pytest.mark.parametrize("share", [0.02, 0.1, 0.3])
def test_far_records_are_alerts_and_no_shift(
    redrawn: Callable[[int], tuple[Detector, Any]], quick: pytest.MonkeyPatch, share: float
) -> None:
    """At the default rate: with so many far records in each batch none is called shifted, and most of them flagged."""
    quick.setattr(summary, "RATE", drift.RATE)
    shifted, found, planted = 0, 0, 0
    for seed in range(200):
        detector, batch = redrawn(seed)
        records = batch()
        far = np.arange(len(records)) < share * len(records)
        b = np.where(far, records.values["b"] + 30.0, records.values["b"])  # b no longer follows a
        report = report_of(detector, replace(records, values={**records.values, "b": b}))
        shifted, found, planted = shifted + report.drifted, found + report.flagged, planted + int(far.sum())
    assert shifted <= 2
    assert found > 0.9 * planted


@pytest.mark.statistics
def test_far_records_that_are_not_left_out_are_seen(
    redrawn: Callable[[int], tuple[Detector, Any]], quick: pytest.MonkeyPatch
) -> None:
    quick.setattr(summary, "is_mostly_flagged", lambda *_: True)
    quick.setattr(summary, "RATE", drift.RATE)
    shifted = 0
    for seed in range(30):
        detector, batch = redrawn(seed)
        records = batch()
        b = np.where(np.arange(len(records)) < 0.3 * len(records), records.values["b"] + 30.0, records.values["b"])
        shifted += bool(report_of(detector, replace(records, values={**records.values, "b": b})).shifts)
    assert shifted > 20


@pytest.mark.statistics
def test_where_records_repeat_normal_batches_are_no_shift(quick: pytest.MonkeyPatch) -> None:
    """Calibration records are distinct, those of a batch are not; the default rate, over fresh fits and batches."""
    quick.setattr(summary, "RATE", drift.RATE)
    schema = Schema((Column("kind", "category"), Column("place", "category"), Column("count", "number")))

    def records(g: np.random.Generator, rows: int) -> Records:
        shares = np.array([0.5, 0.25, 0.12, 0.08, 0.05])
        values = {
            "kind": pa.array([f"k{i}" for i in g.choice(5, rows, p=shares)]),
            "place": pa.array([f"p{i}" for i in g.choice(5, rows, p=shares)]),
            "count": g.poisson(3.0, rows).astype(float),
        }
        ids = np.array([str(i) for i in range(rows)], dtype=object)
        return Records(0, ids, values, np.full(rows, OK, dtype=object))

    recipe = Recipe(model=Part("mlp", {"hidden": (16,), "latent": 2}), score=Part("negative_elbo"),
                    training={"steps": 60}, threshold=Part("conformal", {"alpha": 0.05}))  # fmt: skip
    shifted, twin = 0, 0
    for seed in range(3):
        g = np.random.default_rng(seed)
        detector = fit_detector(records(g, 3000), schema, replace(recipe, seed=seed)).detector
        assert detector.held_out is not None and detector.held_out.unlike > 0.2
        wrong = replace(detector, held_out=replace(detector.held_out, unlike=0.0))
        for _ in range(20):
            batch = records(g, 1000)
            shifted += bool(report_of(detector, batch).shifts)
            twin += bool(report_of(wrong, batch).shifts)
    assert shifted == 0
    assert twin > 30


# ---------------------------------------------------------------- detectors by segment


PARTS = {"": (60, 20), "loud": (100, 200), "quiet": (300, 150)}  # calibration records and records of a batch


def part_scores(g: np.random.Generator, name: str, rows: int, shift: float = 0.0) -> np.ndarray:
    """Normal scores of a detector; those of one are of another scale than those of the others."""
    scores = g.normal(shift, size=rows)
    return 50.0 + 10.0 * scores if name == "loud" else scores


def several_told(base: Detector, repeats: int, shift: float = 0.0, *, pooled: bool = False) -> float:
    """How often the scores of a batch of several detectors, fresh ones each time, are called shifted; those of the
    quiet ones are, by so many standard deviations. ``pooled``: the twin that compares all of them at once."""
    g, found = np.random.default_rng(6), 0
    for _ in range(repeats):
        made = {name: conformal(part_scores(g, name, n), alpha=0.02) for name, (n, _) in PARTS.items()}
        own = {name: replace(base, threshold=threshold) for name, threshold in made.items() if name}
        batch = BatchSummary(replace(base, threshold=made[""], by="shop", segments=own), 0.0)
        scores = [part_scores(g, name, m, shift * (name == "quiet")) for name, (_, m) in PARTS.items()]
        for kept, part in zip(batch._scores, scores, strict=True):
            kept.add(part)
        if pooled:
            known = np.concatenate([threshold.calibration for threshold in made.values()])
            found += score_shift(known, np.concatenate(scores), level=LEVEL, least=0.0) is not None
        else:
            found += batch._score_shift(False) is not None
    return found / repeats


@pytest.mark.statistics
def test_normal_scores_of_several_detectors_are_called_shifted_as_seldom_as_stated(
    detector: Detector, quick: pytest.MonkeyPatch
) -> None:
    assert several_told(detector, 2 * REPEATS) <= at_most(LEVEL, 2 * REPEATS)
    assert several_told(detector, 300, 0.5) > 0.8  # and what has shifted is found


@pytest.mark.statistics
def test_scores_of_several_detectors_taken_for_one_scale_are_seen(detector: Detector) -> None:
    assert several_told(detector, 300, pooled=True) > 0.9


@pytest.mark.statistics
def test_detectors_that_do_not_share_the_rate_are_seen(detector: Detector, quick: pytest.MonkeyPatch) -> None:
    quick.setattr(summary, "RATE", 2 * LEVEL * len(PARTS))
    assert several_told(detector, 2 * REPEATS) > at_most(LEVEL, 2 * REPEATS)
