"""Laws of fitting again: it ends at a reviewed candidate whatever happens, it is due when the store and the registry
say so, and what nobody has vouched for teaches nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from pipeline_samples import cli
from small_monitor import table
from store_samples import batch_ref, put
from tracking_samples import mlflow, monitor, register, sample, without_figures

from vae_anomaly import decisions, fitting, pipelines, scoring
from vae_anomaly import refit as again
from vae_anomaly.config import RefitConfig
from vae_anomaly.errors import ConfigError, DataError, TrainingError
from vae_anomaly.fitting import fit_detector
from vae_anomaly.refit import Due, Refit, due, refit, refit_if_due
from vae_anomaly.store.commits import Ledger
from vae_anomaly.store.files import Store
from vae_anomaly.store.records import Commit, FileRef, Incident, ModelRef
from vae_anomaly.thresholds import conformal
from vae_anomaly.tracking import REFIT_BATCHES, Resolved, Tracker
from vae_anomaly.watch import stale_ids
from vae_anomaly.workspace import Workspace

DAY = 86_400.0


# ---- when it is due: a store and a registry of samples ----


@dataclass
class Known:
    """A monitor whose champion is registered, and what is done to it."""

    ws: Workspace
    tracker: Tracker
    commit: Commit

    @property
    def name(self) -> str:
        return self.tracker.registered_name(self.ws.monitor.name)

    def asks(self, **how: Any) -> Known:
        return replace(
            self, ws=replace(self.ws, monitor=self.ws.monitor.model_copy(update={"refit": RefitConfig(**how)}))
        )

    def champion(self) -> Resolved:
        return self.tracker.resolve(self.ws.monitor.name)

    def candidate(self, *batches: str) -> float:
        """Register another version; when that was."""
        register(self.tracker, self.ws.monitor, sample(1))
        made = self.tracker.resolve(self.ws.monitor.name, "candidate")
        if batches:
            self.tracker.tag(made, {REFIT_BATCHES: " ".join(batches)})
        return self.tracker.registered_at(made)

    def day(self, i: int, at: float, *, drifted: bool = False) -> str:
        """A batch that the champion scored at that time; the head of its content's sha256."""
        ref, store = batch_ref(f"day-{i}.csv", bytes([i])), self.ws.store
        champion = self.champion()
        made = replace(
            self.commit,
            batch=ref,
            drifted=drifted,
            model=ModelRef(champion.name, champion.version, champion.digest),
            scores=FileRef(f"scores/{ref.id}.parquet", "0" * 64, 1),
            report=FileRef(f"reports/{ref.id}.json", "0" * 64, 1),
        )
        path = store.commits / f"{ref.id}.json"
        path.write_bytes(made.to_json())
        os.utime(path, (at, at))
        return ref.sha256[:12]

    def stale(self, which: int, at: float) -> None:
        """Write down that the champion's calibration is too old (0), or no longer fits (1)."""
        id = stale_ids(self.ws.monitor.name, self.champion().digest)[which]
        path = self.ws.store.incidents / f"{id}.json"
        path.write_bytes(Incident(id, self.ws.monitor.name, "stale", "day.csv", "It is.", "Fit.").to_json())
        os.utime(path, (at, at))


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return mlflow(tmp_path_factory.mktemp("registry"))


@pytest.fixture
def known(registry: Any, tmp_path: Path, request: pytest.FixtureRequest, plain: None) -> Known:
    """A monitor of this test's own, with a champion and no batch."""
    name = f"due-{abs(hash(request.node.name)):x}"
    ws, tracker = Workspace(monitor(name, tmp_path), registry), Tracker(registry)
    tracker.initialise()
    made = register(tracker, ws.monitor, sample(0))
    tracker.client.set_registered_model_alias(made.name, "champion", made.version)
    ws.store.prepare(name)
    return Known(ws, tracker, put(Store(tmp_path / "elsewhere").prepare(name), "day.csv", b"x"))


def registered(known: Known) -> float:
    return known.tracker.registered_at(known.champion())


def test_nothing_is_due_that_nothing_asks_for(known: Known) -> None:
    made = registered(known)
    known.stale(0, made + 10)
    for i in range(3):
        known.day(i, made + i)
    assert "neither by refit.cron nor by refit.on_stale" in due(known.ws, made + 900 * DAY).why
    assert not due(known.asks(batches=2).ws, made + 900 * DAY).holds


def test_a_schedule_is_due_once_it_has_come_since_a_version_was_registered() -> None:
    ws: Any = SimpleNamespace(monitor=SimpleNamespace(schedule=SimpleNamespace(timezone="Europe/Berlin")))
    how = RefitConfig(batches=2, cron="0 3 * * 0")
    sunday = datetime(2026, 11, 29, 2, tzinfo=UTC).timestamp()  # 3 o'clock in Berlin
    for made, now, holds in [
        (sunday - DAY, sunday - 1, False),
        (sunday - DAY, sunday + 1, True),
        (sunday - DAY, sunday + 90 * DAY, True),  # nobody served when it came
        (sunday + 1, sunday + 6 * DAY, False),
        (sunday + 1, sunday + 7 * DAY + 1, True),
    ]:
        assert again._scheduled(ws, how, made, now).holds is holds, (made, now)
    assert not again._scheduled(ws, RefitConfig(batches=2), 0.0, sunday).holds


def test_a_schedule_waits_for_batches_and_displaces_no_candidate(known: Known) -> None:
    asking = known.asks(batches=2, cron="* * * * *")
    made = registered(known)
    known.day(0, made + 1)
    assert due(asking.ws, made + DAY).why == "of the 2 batches that are needed 1 have come"
    known.day(1, made + 2)
    assert due(asking.ws, made + DAY) == Due(True, "the schedule '* * * * *'")
    assert not due(asking.ws, made).holds
    later = known.candidate()
    assert "version 2 waits for a decision" in due(asking.ws, later + DAY).why
    decisions.reject(known.ws.monitor, known.ws.mlflow, by="ann", reason="too blind", now=later)
    assert due(asking.ws, later + DAY).holds


def test_the_same_batches_are_not_fitted_to_again(known: Known) -> None:
    asking = known.asks(batches=2, cron="* * * * *")
    made = registered(known)
    heads = [known.day(i, made + i) for i in range(3)]
    later = known.candidate(*heads[1:])
    decisions.reject(known.ws.monitor, known.ws.mlflow, by="ann", reason="too blind", now=later)
    assert due(asking.ws, later + DAY).why == "no batch has come since it was done"
    known.day(3, made + 3)
    assert due(asking.ws, later + DAY).holds


def test_a_batch_whose_file_is_gone_makes_no_news_of_the_others(known: Known) -> None:
    asking = known.asks(batches=2, cron="* * * * *")
    made = registered(known)
    heads = [known.day(i, made + i) for i in range(3)]
    later = known.candidate(heads[0], heads[2])  # that between them could not be read again
    decisions.reject(known.ws.monitor, known.ws.mlflow, by="ann", reason="too blind", now=later)
    assert due(asking.ws, later + DAY).why == "no batch has come since it was done"
    assert due(known.asks(batches=3, cron="* * * * *").ws, later + DAY).holds  # to another number of them it was not
    known.day(3, made + 3)
    assert due(asking.ws, later + DAY).holds


def test_an_old_calibration_is_answered_by_one_version(known: Known) -> None:
    asking = known.asks(batches=2, on_stale=True)
    made = registered(known)
    for i in range(2):
        known.day(i, made + i)
    assert "not stale" in due(asking.ws, made + DAY).why
    known.stale(0, made + 5)
    assert due(asking.ws, made + DAY).holds
    later = known.candidate()
    known.stale(0, later + 1)  # a candidate from before that knows nothing of it
    assert due(asking.ws, later + DAY).holds
    known.stale(0, later - 0.001)
    assert "a version has been registered since" in due(asking.ws, later + 90 * DAY).why
    decisions.reject(known.ws.monitor, known.ws.mlflow, by="ann", reason="too blind", now=later)
    assert not due(asking.ws, later + 90 * DAY).holds  # nor is the one after it


def test_after_a_shift_all_batches_must_have_come_since_it_began(known: Known) -> None:
    asking = known.asks(batches=4, on_stale=True)
    made = registered(known)
    for i, drifted in enumerate([False, True, False, False, False, False, True, False, True, True]):
        known.day(i, made + i, drifted=drifted)
    known.stale(1, made + 9)
    assert due(asking.ws, made + DAY).holds
    for how in ({"on_stale": True}, {"cron": "* * * * *"}):  # a schedule learns no more from before it
        more = known.asks(batches=5, **how)
        why = "of the 5 batches that are needed 4 have come since the batches shifted"
        assert due(more.ws, made + DAY) == Due(False, why)
    known.stale(0, made + 9)  # nor does one that is too old as well
    assert not due(more.ws, made + DAY).holds
    last, before = again._usable(known.ws, known.champion().digest)
    assert ([commit.name for commit in last], before) == ([f"day-{i}.csv" for i in (9, 8, 7, 6)], 6)
    known.day(10, made + 10)
    assert due(more.ws, made + DAY).holds


def test_without_a_champion_nothing_is_due(known: Known) -> None:
    known.tracker.client.delete_registered_model_alias(known.name, "champion")
    with pytest.raises(Exception, match="must have a version 'champion'"):
        due(known.asks(batches=2, on_stale=True).ws, 0.0)


# ---- one monitor from its first days to a shift ----


def kept(ws: Workspace, step: Callable[[], Any]) -> SimpleNamespace:
    """What a step gives or raises, which aliases it moved, and the champion before and after it."""
    tracker, moved = Tracker(ws.mlflow), []
    before = tracker.resolve(ws.monitor.name).version
    move = type(tracker.client).set_registered_model_alias

    def noted(client: Any, name: str, alias: str, version: str) -> None:
        moved.append(alias)
        move(client, name, alias, version)

    found: Any
    with mock.patch.object(type(tracker.client), "set_registered_model_alias", noted):
        try:
            found = step()
        except (Exception, KeyboardInterrupt) as error:
            found = error
    return SimpleNamespace(found=found, moved=moved, before=before, after=tracker.resolve(ws.monitor.name).version)


def champion_stays(step: SimpleNamespace) -> bool:
    return step.before == step.after and set(step.moved) <= {"candidate"}


def deliver(ws: Workspace, name: str, frame: pd.DataFrame) -> None:
    """A batch comes and is scored."""
    frame.to_csv(ws.monitor.source.inbox / name, index=False)
    scoring.score(ws)


def shifted(seed: int) -> pd.DataFrame:
    frame = table(60, seed)
    frame["a"] = frame["a"] + 8
    return frame


def odd(seed: int) -> pd.DataFrame:
    """A day of which the last five records do not belong together."""
    frame = table(60, seed)
    frame.loc[55:, "b"] += 30.0
    return frame


def failing(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


def of_batches(ws: Workspace, batches: int) -> Workspace:
    how = RefitConfig(batches=batches, on_stale=True)
    return replace(ws, monitor=ws.monitor.model_copy(update={"refit": how}))


@pytest.fixture(scope="module")
def ws(open_monitor: Callable[[str], Any]) -> Workspace:
    """A promoted monitor that has scored four days."""
    made = open_monitor("again")
    with made.monitor.path.open("a") as file:
        file.write("refit: {batches: 3, on_stale: true}\n")
    made = Workspace.open(made.monitor.path)
    with without_figures():
        pipelines.fit(made)
        pipelines.review(made)
        pipelines.promote(made, by="ann")
    for i in range(4):
        deliver(made, f"day-{i}.csv", odd(30 + i) if i == 2 else table(60, 30 + i))
    return made


@pytest.fixture(scope="module")
def story(ws: Workspace) -> dict[str, SimpleNamespace]:
    """What happened, in this order."""
    told: dict[str, SimpleNamespace] = {}
    with without_figures():
        told["not due"] = kept(ws, lambda: refit_if_due(ws))
        told["too few batches"] = kept(ws, lambda: refit(of_batches(ws, 9)))
        with mock.patch.object(fitting, "fit_detector", failing(TrainingError("it must converge."))):
            told["diverged"] = kept(ws, lambda: refit(ws))
        with mock.patch.object(pipelines, "review", failing(KeyboardInterrupt())):
            told["killed before its review"] = kept(ws, lambda: refit(ws))
        told["finished by the next"] = kept(ws, lambda: refit_if_due(ws))
        told["by hand"] = kept(ws, lambda: cli("refit", ws.monitor.path, "--json"))
        told["not due again"] = kept(ws, lambda: cli("refit", ws.monitor.path, "--if-due"))
        for i in range(4, 7):
            deliver(ws, f"day-{i}.csv", shifted(30 + i))
        told["after a shift"] = kept(ws, lambda: refit_if_due(ws))
        told["after that"] = kept(ws, lambda: refit_if_due(ws))
        scoring.score(ws)
    return told


STEPS = (
    "not due",
    "too few batches",
    "diverged",
    "killed before its review",
    "finished by the next",
    "by hand",
    "not due again",
    "after a shift",
    "after that",
)


@pytest.mark.parametrize("step", STEPS)
def test_the_champion_stays_whatever_happens(story: dict[str, SimpleNamespace], step: str) -> None:
    assert tuple(story) == STEPS
    assert champion_stays(story[step])


def test_the_law_catches_a_refit_that_promotes(ws: Workspace, story: dict[str, SimpleNamespace]) -> None:
    name = Tracker(ws.mlflow).registered_name(ws.monitor.name)

    def promoting() -> None:
        pipelines.promote(ws, by="machine", version="2", force=True, reason="it is newer")

    assert not champion_stays(kept(ws, promoting))
    Tracker(ws.mlflow).client.set_registered_model_alias(name, "champion", "1")


def test_what_is_refused_leaves_nothing(story: dict[str, SimpleNamespace]) -> None:
    few, diverged = story["too few batches"].found, story["diverged"].found
    assert isinstance(few, DataError) and "Got 4" in str(few)
    assert isinstance(diverged, TrainingError)
    assert story["too few batches"].moved == story["diverged"].moved == []


def test_a_killed_refit_is_finished_without_another_fit(ws: Workspace, story: dict[str, SimpleNamespace]) -> None:
    assert isinstance(story["killed before its review"].found, KeyboardInterrupt)
    assert story["killed before its review"].moved == ["candidate"]
    found = story["finished by the next"].found
    assert isinstance(found, Refit)
    assert (found.version, found.fitted, found.page.is_file()) == ("2", None, True)
    assert story["finished by the next"].moved == []


def test_twice_is_registered_and_reviewed_once(ws: Workspace, story: dict[str, SimpleNamespace]) -> None:
    said = json.loads(story["by hand"].found.out)
    assert said["fitted"]["already_registered"] is True
    assert (said["version"], said["review"]) == ("2", story["finished by the next"].found.review)
    reviewed = [d.version for d in decisions.history(ws.monitor, ws.mlflow) if d.action == "reviewed"]
    assert reviewed.count("2") == 1
    assert "Nothing is fitted again: the calibration of the champion is not stale" in story["not due again"].found.out


def test_it_says_to_which_batches_and_records(ws: Workspace, story: dict[str, SimpleNamespace]) -> None:
    about = story["finished by the next"].found.about
    flagged = sum(commit.flagged for commit in Ledger(ws.store).commits() if commit.name in DAYS[1:4])
    assert "Fitted to 3 batches, from day-1.csv to day-3.csv, of which 0 have shifted as a whole: 180 records." in about
    assert f" {flagged:,} of them were flagged" in about
    review = json.loads((ws.monitor.output / "reviews" / "v2.review.json").read_text())
    assert review["warnings"][0] == about
    assert "normal records of source.training it flags" in review["warnings"][1]
    assert not any("have changed since the fit" in warning for warning in review["warnings"])


DAYS = [f"day-{i}.csv" for i in range(7)]


def test_a_shift_is_learned_from_what_came_since_and_the_review_asks_a_person(
    ws: Workspace, story: dict[str, SimpleNamespace]
) -> None:
    found = story["after a shift"].found
    assert isinstance(found, Refit)
    assert "from day-4.csv to day-6.csv, of which 3 have shifted as a whole: 180 records. 0 of them" in found.about
    assert not found.passed
    assert "flagged by the champion" in found.gates
    assert isinstance(story["after that"].found, Due)


def test_people_are_told_of_each_candidate_once(ws: Workspace, story: dict[str, SimpleNamespace]) -> None:
    told = [json.loads(path.read_text()) for path in ws.store.incidents.glob("candidate-*.json")]
    assert sorted((one["name"], one["problem"].split(",")[0]) for one in told) == [
        ("day-3.csv", "version 2"),
        ("day-6.csv", "version 3"),
    ]
    alerts = sorted((ws.monitor.output / "alerts").glob("candidate-*.md"))
    assert len(alerts) == 2
    assert any("waits for a decision; every gate holds" in path.read_text() for path in alerts)
    before = {path: path.stat().st_mtime_ns for path in alerts}
    scoring.score(ws)
    assert {path: path.stat().st_mtime_ns for path in alerts} == before


def test_the_candidate_of_a_shift_can_be_reviewed_again_on_its_own_records(
    ws: Workspace, story: dict[str, SimpleNamespace]
) -> None:
    deliver(ws, "day-7.csv", shifted(37))
    found = pipelines.review(ws, version="3", replay=0)
    assert story["after a shift"].found.about in found.warnings
    assert not any("have changed since the fit" in warning for warning in found.warnings)


def test_without_a_section_it_cannot_be_asked_for(ws: Workspace) -> None:
    with pytest.raises(ConfigError, match="must say in a section refit"):
        refit(replace(ws, monitor=ws.monitor.model_copy(update={"refit": None})))


# ---- what teaches ----


def test_what_nobody_has_vouched_for_teaches_nothing_and_is_calibrated_with(
    ws: Workspace, story: dict[str, SimpleNamespace]
) -> None:
    commits = [commit for commit in Ledger(ws.store).newest() if commit.name in DAYS[:4]]
    training = pipelines.read_recent(ws, commits, 4).training
    assert training.doubtful is not None
    names = training.records.record_ids
    doubted = set(names[training.doubtful])
    assert {f"day-2.csv r{i}" for i in range(55, 60)} <= doubted
    assert len(doubted) == sum(commit.flagged for commit in commits)

    def where(doubtful: np.ndarray | None) -> dict[str, set[str]]:
        fitted = fit_detector(training.records, ws.schema, ws.recipe, doubtful=doubtful)
        found = {part: doubted & set(names[index]) for part, index in fitted.splits.items()}
        return {**found, "neighbours": doubted & set(fitted.detector.reference.record_ids)}

    careful, trusting = where(training.doubtful), where(None)
    assert careful["training"] == careful["validation"] == careful["neighbours"] == set()
    assert careful["calibration"] == trusting["calibration"] != set()
    assert trusting["training"] and trusting["neighbours"]  # what a fit without that would learn


def rate(kept: Callable[[np.ndarray], np.ndarray], alpha: float = 0.05, repeats: int = 400) -> float:
    """The mean false-alarm rate of calibrations on 300 uniform scores of which so many are ``kept``."""
    g = np.random.default_rng(0)
    calibrations = (g.uniform(size=300) for _ in range(repeats))
    return float(np.mean([1 - conformal(scores[kept(scores)], alpha=alpha).value for scores in calibrations]))


def test_a_calibration_without_what_was_flagged_would_flag_twice_as_many_as_promised() -> None:
    assert 0.04 < rate(lambda scores: scores > -1) <= 0.05
    assert rate(lambda scores: scores <= 0.95) > 0.09  # without what a champion flags at the same rate


def test_the_flagged_records_of_a_shifted_batch_teach_and_a_confirmed_anomaly_is_left_out(
    ws: Workspace, story: dict[str, SimpleNamespace]
) -> None:
    from vae_anomaly.feedback import Remark, give

    commits = [commit for commit in Ledger(ws.store).newest() if commit.name in (DAYS[2], DAYS[5])]
    before = pipelines.read_recent(ws, commits, 2).training
    now = datetime(2026, 11, 29, tzinfo=UTC)
    give(ws, [Remark("day-2.csv", 55, "anomaly"), Remark("day-2.csv", 56, "false-alarm")], by="ann", now=now)
    after = pipelines.read_recent(ws, commits, 2).training
    assert before.doubtful is not None and after.doubtful is not None
    left = set(before.records.record_ids) - set(after.records.record_ids)
    assert (left, after.confirmed) == ({"day-2.csv r55"}, 1)
    learned = set(before.records.record_ids[before.doubtful]) - set(after.records.record_ids[after.doubtful])
    assert learned == {"day-2.csv r55", "day-2.csv r56"}
    assert not any(name.startswith("day-5") for name in after.records.record_ids[after.doubtful])
    assert sum(commit.flagged for commit in commits if commit.drifted) > 6


# ---- the flow ----


def test_the_flow_shows_what_an_operator_should_see(
    prefect_server: None, ws: Workspace, story: dict[str, SimpleNamespace], monkeypatch: pytest.MonkeyPatch, plain: None
) -> None:
    from flows.refit import refit_flow

    def state() -> Any:
        step = kept(ws, lambda: refit_flow(str(ws.monitor.path), return_state=True))
        assert champion_stays(step)
        return step.found

    found = state()
    assert (found.name, found.is_completed()) == ("Not due", True)
    assert "a version has been registered since" in found.message
    with ws.store.lock(ws.store.incidents, patience=0):
        assert state().name == "Skipped"
    deliver(ws, "day-8.csv", shifted(38))
    monkeypatch.setattr(again, "due", lambda *_: Due(True, "asked"))
    found = state()
    assert (found.name, found.is_completed()) == ("Completed", True)
    assert found.message.startswith("version 4 is the candidate; ")
    monkeypatch.setenv("VAE_ANOMALY_MONITOR__REFIT__BATCHES", "99")
    found = state()
    assert (found.name, found.is_failed()) == ("Refused", True)
    assert "99 committed batches that can be read again are needed" in found.message


def test_it_is_looked_for_on_its_own_schedule_and_where_scores_may_have_found_a_shift() -> None:
    from flows.serve import _refits

    def asked(refit: RefitConfig | None) -> list[str]:
        ws: Any = SimpleNamespace(monitor=SimpleNamespace(refit=refit, schedule=SimpleNamespace(cron="0 * * * *")))
        return _refits(ws)

    assert asked(None) == asked(RefitConfig(batches=2)) == []
    assert asked(RefitConfig(batches=2, cron="0 3 * * 0")) == ["0 3 * * 0"]
    assert asked(RefitConfig(batches=2, cron="0 3 * * 0", on_stale=True)) == ["0 3 * * 0", "0 * * * *"]
    assert asked(RefitConfig(batches=2, cron="0 * * * *", on_stale=True)) == ["0 * * * *"]


# ---- and calibrated again ----


def test_a_refitted_champion_is_calibrated_again_without_what_trained_it(
    ws: Workspace, story: dict[str, SimpleNamespace], plain: None
) -> None:
    from vae_anomaly.fitting import content_hash, split

    tracker = Tracker(ws.mlflow)
    name = tracker.registered_name(ws.monitor.name)
    aliases = tracker.aliases(name)
    tracker.client.set_registered_model_alias(name, "champion", "3")
    try:
        found = pipelines.recalibrate(ws, first=DAYS[4], last=DAYS[6], by="ann", reason="looked through")
        commits = [commit for commit in Ledger(ws.store).newest() if commit.name in DAYS[4:7]]
        learned = pipelines.read_recent(ws, commits, 3).training.normal
        trained = len(np.unique(content_hash(learned.take(split(learned, ws.recipe)["training"]))))
        assert found.made.left_out.trained == trained > 0
        assert len(found.made.detector.threshold.measured) == found.made.rows - trained
        assert again._unfinished(ws, tracker) is None  # it is no refit, and nobody but who made it reviews it
        reviewed = pipelines.review(ws, version=found.registered.version, replay=0)
        assert story["after a shift"].found.about in reviewed.warnings
        assert not any("have changed since the fit" in warning for warning in reviewed.warnings)
    finally:
        for alias, version in aliases.items():
            tracker.client.set_registered_model_alias(name, alias, version)
