"""Laws of the change that makes a flagged record normal: what is shown, written into the record, is not flagged.

The check goes the way of a file: the cells as texts with those that the card shows in place of the found ones, through
the data contract and the detector. A search that does not score what it shows is caught by it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from types import SimpleNamespace
from typing import Any, cast

import modality_samples as samples
import numpy as np
import pyarrow as pa
import pytest

from vae_anomaly.batch import Records, concatenate
from vae_anomaly.detector import Detector
from vae_anomaly.explain import EXPLAINERS, counterfactual, counterfactuals, explain
from vae_anomaly.explain.text import Tokens
from vae_anomaly.likelihoods.tokens import SPECIAL
from vae_anomaly.preprocessing.text import TextPreprocessor, pieces
from vae_anomaly.report.model import Counterfactual, FlaggedRecord, Replacement
from vae_anomaly.schema import check
from vae_anomaly.summary import Strangest, flagged_records
from vae_anomaly.thresholds import calibrated, conformal

MAKE = Callable[..., Records]


def cards(detector: Detector, records: Records, most: int = 40) -> list[tuple[Records, FlaggedRecord]]:
    """The flagged ones of ``records`` with what their cards say, strangest first."""
    found = detector.detect(records)
    rows = np.flatnonzero(found.is_anomaly)
    strangest = Strangest(most)
    strangest.add(records.take(rows), found.score[rows], rows)
    made = flagged_records(detector, strangest)
    return [(records.take(np.array([card.row_index])), card) for card in made]


def written(detector: Detector, record: Records, replacements: Sequence[Replacement]) -> Records:
    """The only record as a file of texts would hold it, with the cells that are shown, after the data contract."""
    new = {r.part: r.normal or None for r in replacements}
    cells = {}
    for column in detector.schema.columns:
        values = record.values[column.name]
        text: Any = values[0].as_py() if isinstance(values, pa.Array) else values[0]
        if column.kind == "timestamp":
            text = None if np.isnat(text) else f"{text}Z"
        elif column.kind in ("number", "boolean"):
            text = None if np.isnan(text) else repr(float(text))
        cells[column.name] = pa.array([new.get(column.name, text)], pa.string())
    if detector.schema.record_id:
        cells[detector.schema.record_id] = pa.array(["x"])
    return check(pa.table(cells), detector.schema, first_row=1, file="test")


def faults(detector: Detector, found: Sequence[tuple[Records, FlaggedRecord]]) -> list[str]:
    """What is wrong with the changes that cards show: one is still flagged, or fewer of its replacements suffice."""
    tried = [
        (card, some, written(detector, record, some))
        for record, card in found
        if card.counterfactual
        for size in range(len(card.counterfactual.replacements) + 1)
        for some in combinations(card.counterfactual.replacements, size)
    ]
    result = detector.detect(concatenate([record for *_, record in tried]))
    wrong = []
    for i, (card, some, _) in enumerate(tried):
        change, normal = card.counterfactual, result.status[i] == "ok" and not result.is_anomaly[i]
        assert change is not None and card.threshold is not None
        if not some:
            assert result.score[i] == card.score > card.threshold
        elif some != change.replacements:
            wrong += [f"{card.record_id} needs no more than {len(some)}"] if normal else []
        elif not normal or result.score[i] != change.score or result.score[i] > card.threshold:
            wrong.append(f"{card.record_id} is flagged")
    return wrong


def odd(make_records: MAKE, seed: int = 5) -> Records:
    """Records of one, two and more wrong columns, some with missing cells, unseen shops and shifted relations."""
    records = make_records(90, seed, holes=0.1)
    values = {k: v if isinstance(v, pa.Array) else v.copy() for k, v in records.values.items()}
    values["amount"][:30] *= 40
    values["b"][10:40] += 9
    values["a"][20:50] = 30
    shops = values["shop"].to_pylist()
    values["shop"] = pa.array([*shops[:25], *["unheard of"] * 30, *shops[55:]])
    values["flag"][60:70] = np.nan
    values["at"][65:75] = np.datetime64("NaT")
    return replace(records, values=values)


def divided(detector: Detector, make_records: MAKE) -> Detector:
    """With a threshold for each shop."""
    known = make_records(600, 77, holes=0.0)
    labels = known.values["shop"].to_numpy(zero_copy_only=False)
    options = {"by": "shop", "alpha": 0.05, "least": 25}
    return replace(detector, threshold=calibrated("mondrian", detector.detect(known).score, options, labels))


CASES = {
    str(case): case for case in (samples.Case("conditional", "table", True), samples.Case("ensemble", "table", False))
}


@pytest.fixture(params=["plain", "surprisal", "often missing", "segments", *CASES])
def sample(request: pytest.FixtureRequest, make_records: MAKE, fitted: Callable[..., Any]) -> tuple[Detector, Records]:
    """A detector and records of which it flags some."""
    detectors: dict[str, Callable[[], Detector]] = {
        "plain": lambda: fitted().detector,
        "surprisal": lambda: fitted("surprisal").detector,
        "often missing": lambda: fitted(holes=0.6).detector,
        "segments": lambda: divided(fitted().detector, make_records),
    }
    if request.param in detectors:
        return detectors[request.param](), odd(make_records)
    case = CASES[request.param]
    usual, strange = samples.records(case, 20, 5), samples.corrupted(case, samples.records(case, 15, 6))
    half = samples.records(case, 15, 7)
    half = replace(half, values={**half.values, "a": np.asarray(half.values["a"]) + 30})
    return samples.fitted(case), concatenate([usual, strange, half])


def test_what_is_shown_makes_the_record_normal_and_nothing_less_does(sample: tuple[Detector, Records]) -> None:
    detector, records = sample
    found = cards(detector, records)
    changes = [card.counterfactual for _, card in found if card.counterfactual]
    assert len(changes) == len(found) >= 10
    assert sum(bool(change.replacements) for change in changes) >= 10
    assert faults(detector, found) == []


def test_some_records_need_more_than_one_column(fitted: Callable[..., Any], make_records: MAKE) -> None:
    sizes = {
        len(card.counterfactual.replacements)  # type: ignore[union-attr]
        for _, card in cards(fitted().detector, odd(make_records), 90)
    }
    assert {1, 2} <= sizes


def test_a_change_that_is_not_scored_is_caught(
    fitted: Callable[..., Any], make_records: MAKE, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin takes the first trial of every record for normal."""

    def careless(detector: Detector, records: Records) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros(len(records)), np.ones(len(records), bool)

    monkeypatch.setattr(counterfactual, "_scored", careless)
    detector = fitted().detector
    assert any(fault.endswith("is flagged") for fault in faults(detector, cards(detector, odd(make_records))))


def test_a_set_that_is_not_pruned_is_caught(
    fitted: Callable[..., Any], make_records: MAKE, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin begins with two columns whether or not one suffices, and takes nothing back."""
    monkeypatch.setattr(counterfactual, "_subsets", lambda parts: iter([parts]))
    real = counterfactual._scored

    def never_at_first(detector: Detector, records: Records) -> tuple[np.ndarray, np.ndarray]:
        scores, normal = real(detector, records)
        monkeypatch.setattr(counterfactual, "_scored", real)
        return scores, np.zeros_like(normal)

    monkeypatch.setattr(counterfactual, "_scored", never_at_first)
    detector = fitted().detector
    assert any("needs no more than 1" in fault for fault in faults(detector, cards(detector, odd(make_records))))


def test_values_are_those_that_training_knew(sample: tuple[Detector, Records]) -> None:
    detector, records = sample
    states = {state.column: state for state in detector.preprocessor.states}  # type: ignore[union-attr]
    context = {column.name for column in detector.schema.columns if column.context}
    for record, card in cards(detector, records):
        for part, found, normal in _shown(card.counterfactual):
            state = states[part]  # of the context there is none
            assert part not in context | {detector.threshold.options.get("by")}
            assert found != normal
            if not normal:
                assert state.present_nats > 0
            elif state.kind == "category":
                assert normal in state.categories
            elif state.kind == "boolean":
                assert normal in ("true", "false")
            elif state.kind == "number":
                assert state.low - 0.01 * state.scale[0] <= float(normal) <= state.high + 0.01 * state.scale[0]  # type: ignore[operator]
            else:
                assert found and normal.endswith("UTC")
                assert abs(np.datetime64(normal[:16]) - record.values[part][0]) <= np.timedelta64(84, "h")


def _shown(change: Counterfactual | None) -> Iterator[tuple[str, str, str]]:
    for one in change.replacements if change else ():
        yield one.part, one.found, one.normal


def test_a_change_does_not_depend_on_the_other_records(fitted: Callable[..., Any], make_records: MAKE) -> None:
    detector = fitted().detector
    found = cards(detector, odd(make_records), 12)
    alone = [cards(detector, record)[0][1].counterfactual for record, _ in found]
    assert alone == [card.counterfactual for _, card in found]


def test_where_nothing_helps_that_is_said(fitted: Callable[..., Any], make_records: MAKE) -> None:
    detector = fitted().detector
    strict = replace(detector, threshold=conformal(np.full(100, -1e9), alpha=0.05))
    found = cards(strict, odd(make_records), 10)
    assert {card.counterfactual for _, card in found} == {Counterfactual((), None, 3)}


def test_the_number_of_records_that_are_scored_is_bounded(
    fitted: Callable[..., Any], make_records: MAKE, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = fitted().detector
    strict = replace(detector, threshold=conformal(np.full(100, -1e9), alpha=0.05))
    records = odd(make_records)
    records = records.take(np.flatnonzero(records.scorable))
    explanations, scored = explain(detector, records), []
    real = Detector.detect
    monkeypatch.setattr(Detector, "detect", lambda self, r, own=None: scored.append(len(r)) or real(self, r, own))
    tried = 2 * sum(math.comb(min(len(detector.preprocessor.states), counterfactual.CANDIDATES), k) for k in (1, 2, 3))
    for judge in (detector, strict):
        scored.clear()
        counterfactuals(judge, records, explanations)
        assert sum(scored) <= len(records) * (tried + 7)
    assert sum(scored) == len(records) * tried  # where nothing helps


OTHERS = [samples.Case("conv", "image", False), samples.Case("lstm", "text", False), samples.Case("lstm", "text", True)]


@pytest.mark.parametrize("case", OTHERS, ids=str)
def test_a_changed_image_or_line_is_normal(case: samples.Case) -> None:
    detector = samples.fitted(case)
    usual = samples.records(case, 20, 5)
    if case.modality == "image":
        images = np.array(usual.values["image"])
        images[:, :2, :2] = 255  # a bright spot, which the reconstruction does not have
        strange = replace(usual, values={**usual.values, "image": images})
        # a reconstruction has no noise, which normal images have: for this threshold it is normal all the same
        detector = replace(detector, threshold=conformal(np.full(100, 20.0), alpha=0.05))
    else:  # one wrong word in each line
        words = [line.split() for line in usual.values["line"].to_pylist()]
        lines = [" ".join([*line[:2], "retries" if i % 2 else "unheard", *line[3:]]) for i, line in enumerate(words)]
        strange = replace(usual, values={**usual.values, "line": pa.array(lines)})
    strange = strange.take(np.flatnonzero(detector.detect(strange).is_anomaly))
    explanations = explain(detector, strange)
    parts = EXPLAINERS[case.modality].parts(detector, strange, explanations)
    changes = counterfactual.smallest_changes(detector, parts)
    shown = counterfactuals(detector, strange, explanations)
    assert [bool(card.replacements) for card in shown] == [change is not None for change in changes]
    found = [change for change in changes if change is not None]
    assert len(found) >= 3
    result = detector.detect(concatenate([change.changed for change in found]))
    assert not result.is_anomaly.any() and set(result.status) == {"ok"}
    assert result.score.tolist() == [change.score for change in found]
    if case.modality == "text":
        for row, (card, change) in enumerate(zip(shown, changes, strict=True)):
            before = strange.values["line"][row].as_py()
            for one in card.replacements:
                assert one.found in before and change is not None
                assert one.normal in change.changed.values["line"][0].as_py().split()
                assert one.normal in detector.preprocessor.vocabulary  # type: ignore[union-attr]


def test_a_changed_line_reads_as_it_did_but_for_what_is_replaced() -> None:
    preprocessor = TextPreprocessor("line", 8, ("number", "address"), ("server", "===", "a"), 1.0)
    lines = ["one a two", "16383 signs before z", 16383 * "=" + "z", "DB10.0.0.110.0.0.1a0xff@key", "@\t::10xffDBse"]
    parts = Tokens(cast(Any, SimpleNamespace(preprocessor=preprocessor)), cast(Any, None), ())
    changed = 0
    for line in lines:
        before = [piece.token for piece in pieces(line, preprocessor.replace)]
        for i in range(len(before)):
            new = parts._line(line, np.array([i]), np.full(len(before), SPECIAL))
            after = [piece.token for piece in pieces(new, preprocessor.replace)]
            assert after in (before, [*before[:i], "server", *before[i + 1 :]]), (line[-40:], i)
            changed += new != line
    assert changed >= 7  # of ordinary lines each token is replaced
