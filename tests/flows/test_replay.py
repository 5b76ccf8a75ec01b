"""Laws of the replay: the same records for both, what is counted is what is committed, nothing is written, and a
candidate that was fitted to the wrong data is stopped by what it does with real batches."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pipeline_samples import copy, deliver, parquet, table
from pyarrow.parquet import read_table
from store_samples import tree

from vae_anomaly import scoring
from vae_anomaly.batch import concatenate
from vae_anomaly.config import FdrConfig, GatesConfig, MondrianConfig
from vae_anomaly.detector import Detector
from vae_anomaly.errors import ConfigError, DataError
from vae_anomaly.feedback import Remark, give, lessons
from vae_anomaly.fitting import fit_detector
from vae_anomaly.registry_review import evaluate_gates
from vae_anomaly.replay import CARDS, rank_correlation, replay
from vae_anomaly.report.review import OnFeedback, Replay
from vae_anomaly.schema import Schema, check
from vae_anomaly.store.commits import Ledger
from vae_anomaly.store.sources import open_delivery
from vae_anomaly.summary import Strangest, Thinned
from vae_anomaly.thresholds import calibrated
from vae_anomaly.tracking import Tracker
from vae_anomaly.worker import decided_now, read_records
from vae_anomaly.workspace import Workspace

BATCHES = {
    "2026-01-01.parquet": table(80, 3),
    "2026-01-02.parquet": table(80, 4),
    "2026-01-03.parquet": table(80, 5, frauds=20),
}


def unrelated(content: pa.Table, odd: int) -> pa.Table:
    """The last ``odd`` fees belong to other records: each value is usual, together they are not."""
    fee = content["fee"].to_numpy().copy()
    fee[-odd:] = np.random.default_rng(6).permutation(fee)[-odd:]
    return content.set_column(content.column_names.index("fee"), "fee", pa.array(fee))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The promoted monitor, and four days that it has scored."""
    made = copy(tmp_path_factory.mktemp("replay"))
    for name, content in (BATCHES | {"2026-01-04.parquet": unrelated(table(80, 6), 40)}).items():
        deliver(made, **{name: content})
        scoring.score(Workspace.open(made))
    return made


@pytest.fixture(scope="module")
def ws(folder: Path) -> Workspace:
    return Workspace.open(folder)


@pytest.fixture(scope="module")
def serving(ws: Workspace) -> Detector:
    return scoring.load_champion(ws, Tracker(ws.mlflow))[0]


@pytest.fixture(scope="module")
def fitted(ws: Workspace) -> Callable[[str], Detector]:
    """Detectors that are trained longer than the one that serves, so that they know how fee and amount belong together;
    "good" is fitted to the training records, the others to the wrong ones."""
    normal = table(400, 1)
    third = pa.array([None if value is None else value / 3 for value in normal["amount"].to_pylist()])
    shuffle = np.random.default_rng(0).permutation
    training = {
        "champion": normal,
        "good": normal,
        "contaminated": pa.concat_tables([table(300, 1), table(100, 9, frauds=100)]),
        "shuffled": pa.table({n: normal[n].take(pa.array(shuffle(len(normal)))) for n in normal.column_names}),
        "other units": normal.set_column(normal.column_names.index("amount"), "amount", third),
    }

    @cache
    def fit(name: str) -> Detector:
        records = replace(check(training[name], ws.schema, first_row=0, file=name), labels=None)
        recipe = replace(ws.recipe, seed=int(name == "good"), training={**ws.recipe.training, "steps": 600})
        return fit_detector(records, ws.schema, recipe).detector

    return fit


def failing(ws: Workspace, candidate: Detector, champion: Detector) -> list[str]:
    """The gates on replayed batches that do not hold."""
    found = replay(ws, candidate, champion, last=5)
    with_, without = (evaluate_gates(candidate, None, None, GatesConfig(), r) for r in (found, None))
    added = with_[len(without) :]
    assert [gate.name for gate in added] == ["alerts on usual batches", "alerts kept"]
    return [gate.name for gate in added if not gate.passed]


def test_a_good_candidate_passes(ws: Workspace, fitted: Callable[[str], Detector]) -> None:
    assert failing(ws, fitted("good"), fitted("champion")) == []


@pytest.mark.parametrize(
    ("name", "gate"),
    [("contaminated", "alerts kept"), ("shuffled", "alerts kept"), ("other units", "alerts on usual batches")],
)
def test_a_candidate_that_learned_from_the_wrong_records_is_stopped(
    ws: Workspace, fitted: Callable[[str], Detector], name: str, gate: str
) -> None:
    assert failing(ws, fitted(name), fitted("champion")) == [gate]


def test_the_detector_that_serves_gives_the_alerts_that_were_committed(ws: Workspace, serving: Detector) -> None:
    found = replay(ws, serving, serving, last=5)
    commits = {commit.batch_id: commit for commit in Ledger(ws.store).commits()}
    assert [batch.name for batch in found.batches] == [f"2026-01-0{i}.parquet" for i in (4, 3, 2, 1)]
    for batch in found.batches:
        commit = commits[batch.batch_id]
        assert batch.champion == batch.candidate
        assert (batch.rows, batch.candidate.scored, batch.candidate.flagged) == (
            commit.rows,
            commit.scored,
            commit.flagged,
        )
        assert (batch.kept, batch.alike) == (commit.flagged, 1)
    assert (found.rows, found.compared, found.appearing, found.disappearing) == (320, 320, 0, 0)
    assert (found.alike, found.appear, found.disappear) == (1, (), ())
    assert found.rank_correlation == pytest.approx(1)
    assert len(found.cpu_seconds_per_1000) == 2 and min(found.cpu_seconds_per_1000) > 0


def test_alerts_that_come_and_go_are_those_of_one_detector_only(
    ws: Workspace, serving: Detector, fitted: Callable[[str], Detector]
) -> None:
    other = fitted("other units")
    found = replay(ws, other, serving, last=5)
    flagged: dict[tuple[str, int], list[bool]] = {}
    for batch in found.batches:
        content = (BATCHES | {"2026-01-04.parquet": unrelated(table(80, 6), 40)})[batch.name]
        records = check(content, ws.schema, first_row=0, file=batch.name)
        both = [detector.detect(records) for detector in (other, serving)]
        for row, flags in enumerate(zip(*(d.is_anomaly.tolist() for d in both), strict=True)):
            flagged[batch.name, row] = list(flags)
        for change in (c for c in found.appear if c.batch == batch.name):
            row = change.record.row_index
            assert change.record.record_id == records.record_ids[row]
            assert (change.record.score, change.other_score) == (both[0].score[row], both[1].score[row])
            assert change.record.adds_up and change.record.contributions
    assert all(flagged[c.batch, c.record.row_index] == [True, False] for c in found.appear)
    assert found.appearing == sum(flags == [True, False] for flags in flagged.values()) > CARDS == len(found.appear)
    assert found.disappearing == sum(flags == [False, True] for flags in flagged.values()) == len(found.disappear)
    assert found.alike == pytest.approx(np.mean([a == b for a, b in flagged.values()]))
    scores = [c.record.score for c in found.appear]
    assert scores == sorted(scores, reverse=True)


@pytest.fixture(scope="module")
def answered(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The same store, in which two flagged records are confirmed anomalies and one is a false alarm."""
    made = Workspace.open(shutil.copytree(folder.parent, tmp_path_factory.mktemp("answered") / "home") / folder.name)
    day = "2026-01-03.parquet"
    scores = read_table(made.store.root / Ledger(made.store).find(day).scores.file)
    first, second, third = np.flatnonzero(scores["is_anomaly"].to_numpy())[:3].tolist()
    remarks = [Remark(day, first, "anomaly"), Remark(day, second, "anomaly"), Remark(day, third, "false-alarm")]
    give(made, remarks, by="bea", now=datetime.fromtimestamp(time.time(), UTC))
    return made


def test_what_people_said_is_decided_again(
    answered: Workspace, serving: Detector, fitted: Callable[[str], Detector]
) -> None:
    found = replay(answered, serving, serving, last=0).on_feedback
    assert found == OnFeedback(2, 1, (2, 1), (2, 1), kept=2)
    assert [m.texts for m in found.measures] == [("2", "2"), ("1", "1"), ("66.7\u00a0%",) * 2]
    assert replay(answered, serving, None, last=0).on_feedback == OnFeedback(2, 1, (2, 1))
    assert replay(answered, fitted("contaminated"), serving, last=0).on_feedback == OnFeedback(2, 1, (0, 0), (2, 1))


def test_a_candidate_that_loses_confirmed_anomalies_is_stopped(
    answered: Workspace, serving: Detector, fitted: Callable[[str], Detector]
) -> None:
    def gate(candidate: Detector) -> bool:
        replayed = replay(answered, candidate, serving, last=0)
        (found,) = (
            gate
            for gate in evaluate_gates(candidate, None, None, GatesConfig(), replayed)
            if gate.name == "confirmed anomalies kept"
        )
        return found.passed

    assert gate(fitted("good"))
    assert not gate(fitted("contaminated"))


def test_a_record_that_joined_the_calibration_is_no_neighbour_of_itself(answered: Workspace, ws: Workspace) -> None:
    learned = lessons(answered)
    assert learned.false_alarms is not None
    records = check(table(400, 1), ws.schema, first_row=0, file="training")
    again = fit_detector(records, ws.schema, ws.recipe, calibrating=learned.false_alarms).detector
    assert set(again.reference.record_ids) & set(map(str, learned.false_alarms.record_ids))
    assert not again.detect(learned.false_alarms).is_anomaly.any()  # the twin: it is its own neighbour
    found = replay(answered, again, None, last=0).on_feedback
    assert found is not None and found.candidate[1] == 1


def test_nor_is_one_that_a_refit_learned_from_under_another_id(answered: Workspace, ws: Workspace) -> None:
    learned = lessons(answered).false_alarms
    assert learned is not None
    records = check(table(400, 1), ws.schema, first_row=0, file="training")
    named = replace(learned, record_ids=np.array([f"day.parquet {id}" for id in learned.record_ids], dtype=object))
    again = fit_detector(records, ws.schema, ws.recipe, calibrating=named).detector
    assert not again.detect(learned).is_anomaly.any()  # the twin: it is its own neighbour
    found = replay(answered, again, None, last=0).on_feedback
    assert found is not None and found.candidate[1] == 1


def test_of_a_threshold_of_each_batch_a_record_alone_says_nothing(answered: Workspace, serving: Detector) -> None:
    by_batch = answered.monitor.model_copy(update={"threshold": FdrConfig(q=0.2)})
    assert replay(replace(answered, monitor=by_batch), serving, None, last=0).on_feedback is None


def test_nothing_is_written(ws: Workspace, serving: Detector, fitted: Callable[[str], Detector]) -> None:
    before = tree(ws.monitor.path.parent)
    replay(ws, fitted("good"), serving, last=5)
    assert tree(ws.monitor.path.parent) == before


def timeless(found: Replay) -> Replay:
    return replace(found, cpu_seconds_per_1000=())


@pytest.mark.parametrize("threads", [1, 3])
def test_the_same_for_any_number_of_threads_and_chunks(
    ws: Workspace, serving: Detector, fitted: Callable[[str], Detector], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = replay(ws, fitted("good"), serving, last=5)
    execution = ws.monitor.execution.model_copy(update={"threads": threads})
    other = Workspace(ws.monitor.model_copy(update={"execution": execution}), ws.mlflow)
    monkeypatch.setattr(Schema, "rows_at_once", property(lambda _: 7))
    assert timeless(replay(other, fitted("good"), serving, last=5)) == timeless(whole)


def test_a_file_that_changes_meanwhile_is_named(
    folder: Path, serving: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Workspace.open(shutil.copytree(folder.parent, tmp_path / "home") / folder.name)

    def changing(delivery: Any, ws: Workspace) -> Any:
        for records in read_records(delivery, ws):
            deliver(made.monitor.path.parent, **{delivery.name: table(81, 4)})
            yield records

    monkeypatch.setattr("vae_anomaly.replay.read_records", changing)
    with pytest.raises(DataError, match=r"changed_file: .* \[file '2026-01-04.parquet'\]"):
        replay(made, serving, None, last=2)


def test_the_last_ones_only(ws: Workspace, serving: Detector) -> None:
    assert [b.name for b in replay(ws, serving, None, last=2).batches] == ["2026-01-04.parquet", "2026-01-03.parquet"]
    assert replay(ws, serving, None, last=0) == Replay(thresholds=(serving.threshold.value,))


def test_without_a_champion_alerts_are_counted_and_no_gate_is_added(ws: Workspace, serving: Detector) -> None:
    found = replay(ws, serving, None, last=5)
    assert {batch.champion for batch in found.batches} == {None}
    assert (found.usual, found.appearing, found.alike, len(found.thresholds)) == (None, None, None, 1)
    gates = [evaluate_gates(serving, None, None, GatesConfig(), r) for r in (found, None)]
    assert gates[0] == gates[1]


def test_what_is_gone_changed_or_pruned_is_left_out(folder: Path, serving: Detector, tmp_path: Path) -> None:
    shutil.copytree(folder.parent, tmp_path / "copy", symlinks=True)
    home = tmp_path / "copy" / folder.name
    ws = Workspace.open(home)
    (home / "inbox" / "2026-01-04.parquet").unlink()
    (home / "inbox" / "2026-01-03.parquet").write_bytes(parquet(table(80, 7)))
    assert Ledger(ws.store).prune(2e9 * 10, [], dry_run=False).pruned
    found = replay(ws, serving, None, last=5)
    assert (found.batches, dict(found.left_out)) == ((), {"pruned": 4})
    for record in ws.store.pruned.iterdir():
        record.unlink()
    found = replay(ws, serving, None, last=1)
    assert [b.name for b in found.batches] == ["2026-01-02.parquet"]
    assert dict(found.left_out) == {"not in the inbox as it was committed": 2}
    config = home / "monitor.yml"
    config.write_text(config.read_text().replace("inbox: inbox,", 'inbox: inbox, csv: {delimiter: ";"},'))
    changed = replay(Workspace.open(home), serving, None, last=5)
    assert dict(changed.left_out) == {"read under another data contract": 4}


def test_memory_does_not_grow_with_the_records(ws: Workspace) -> None:
    records = check(table(50, 2), ws.schema, first_row=0, file="x")
    thinned, strangest = Thinned(100), Strangest(5)
    rng = np.random.default_rng(0)
    seen = []
    for i in range(60):
        scores = rng.normal(size=50)
        seen.append(scores)
        thinned.add(np.stack([scores, -scores], axis=1))
        strangest.add(records, scores, 50 * i + np.arange(50))
    assert 50 <= len(thinned.values) <= 100
    assert (thinned.values[:, 0] == -thinned.values[:, 1]).all()
    top, (scores, rows) = strangest.top or (None, ((), ()))
    everything = np.concatenate(seen)
    assert len(top) == 5
    assert rows.tolist() == np.argsort(-everything, kind="stable")[:5].tolist()
    assert (everything[rows] == scores).all()


def test_rank_correlation_is_spearmans() -> None:
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    ours, theirs = rng.integers(0, 20, 200).astype(float), rng.normal(size=200)
    assert rank_correlation(ours, theirs) == pytest.approx(spearmanr(ours, theirs).statistic)
    assert rank_correlation(np.ones(5), theirs[:5]) is None
    assert rank_correlation(ours[:0], theirs[:0]) is None


def test_a_champion_that_cannot_have_the_new_threshold_is_replayed_with_its_own(
    ws: Workspace, serving: Detector, caplog: pytest.LogCaptureFixture
) -> None:
    by = ws.monitor.model_copy(update={"threshold": MondrianConfig(by="shop", alpha=0.05)})
    changed = replace(ws, monitor=by)
    with pytest.raises(ConfigError, match="must be that which the detector was fitted with"):
        replay(changed, serving, None, last=1)
    scores, options = serving.threshold.measured, {"by": "shop", "alpha": 0.05}
    threshold = calibrated("mondrian", scores, options, np.full(len(scores), "cafe", dtype=object))
    candidate = replace(serving, threshold=threshold)
    found = replay(changed, candidate, serving, last=1)
    assert found.batches[0].champion is not None
    assert "replayed with its own threshold" in caplog.text


def test_a_threshold_of_each_batch_is_that_with_which_it_is_scored(ws: Workspace, serving: Detector) -> None:
    changed = replace(ws, monitor=ws.monitor.model_copy(update={"threshold": FdrConfig(q=0.2)}))
    found = replay(changed, serving, None, last=3)
    detector = decided_now(changed, serving)
    for batch in found.batches:
        with open_delivery(ws.monitor.source.inbox / batch.name, folders=False) as delivery:
            records = concatenate(list(read_records(delivery, ws)))
        score = detector.detect(records).score
        threshold = detector.threshold.for_batch(detector.threshold.counts(score))
        assert batch.candidate.flagged == int((threshold.flag(score) & ~np.isnan(score)).sum())
    assert found.usual is None
