"""Fit again to what came last, by hand or when it is due: it ends with a reviewed candidate.

Recent records are not known to be normal, whatever a machine thinks of them, so nothing here moves the champion: the
review asks whether what is new is normal, and a person answers. See "Fitting again" in docs/monitoring.md.

Whether a refit is due is read from the store and the registry, not from what a schedule remembers: asked too often it
does nothing, asked too late it is made up for, and what a killed refit has left the next one finishes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

from vae_anomaly import decisions, pipelines
from vae_anomaly.config import RefitConfig
from vae_anomaly.errors import ConfigError
from vae_anomaly.pipelines import FitOutcome, Recent
from vae_anomaly.store.commits import Ledger, standing
from vae_anomaly.store.records import Commit, Incident
from vae_anomaly.tracking import CALIBRATION, HEAD, REFIT_ABOUT, REFIT_BATCHES, Resolved, Tracker
from vae_anomaly.watch import OF_LAST, stale_ids, waiting
from vae_anomaly.workspace import Progress, Workspace, silent

ANSWERS = ("rejected", "promoted", "forced")


@dataclass(frozen=True)
class Refit:
    """A candidate that was fitted to the last batches, and its review.

    ``about`` says to which batches and records; ``gates`` which of them do not hold, or that all do; ``review`` is the
    sha256 of the review and ``page`` shows it. ``fitted`` is None where a refit before this one was killed after that.
    """

    version: str
    digest: str
    about: str
    passed: bool
    gates: str
    review: str
    page: Path
    fitted: FitOutcome | None = None


@dataclass(frozen=True)
class Due:
    """Whether a detector is to be fitted again, and why or why not."""

    holds: bool
    why: str


def refit(ws: Workspace, progress: Progress = silent) -> Refit:
    """Fit a detector to the last ``refit.batches`` committed batches, register it as the candidate and review it.

    After a shift that was told only batches since it began are fitted to. The champion stays what it is. The same
    batches again give the same detector, which is registered once and reviewed once.

    Raises
    ------
    ConfigError
        There is no section ``refit`` in monitor.yml.
    DataError
        As in :func:`~vae_anomaly.pipelines.read_recent`.
    TrainingError
        As in :func:`~vae_anomaly.fitting.fit_detector`; nothing is registered then, as after the others.
    ArtifactError
        There is no champion, or the registry does not answer.
    """
    how = ws.monitor.refit
    if how is None:
        raise ConfigError(
            f"{ws.monitor.path} must say in a section refit to how many batches a detector is fitted again, as in"
            " `refit: {batches: 14}`. Got none."
        )
    tracker = Tracker(ws.mlflow)
    ws.store.prepare(ws.monitor.name)
    commits, before = _usable(ws, tracker.resolve(ws.monitor.name).digest)
    left_out = {"before the batches shifted, or without a scored record": before} if before else {}
    recent = pipelines.read_recent(ws, commits, how.batches, progress, left_out=left_out)
    fitted = pipelines.fit_on(ws, recent.training, progress, _tags(recent))
    return _finished(ws, tracker, fitted.registered.version, progress, fitted)


def refit_if_due(ws: Workspace, progress: Progress = silent) -> Refit | Due:
    """:func:`refit` where that is due, else why not; raises as that, and as :func:`due`."""
    tracker = Tracker(ws.mlflow)
    if candidate := _unfinished(ws, tracker):
        return _finished(ws, tracker, candidate.version, progress)
    found = due(ws, time.time())
    return refit(ws, progress) if found.holds else found


def due(ws: Workspace, now: float) -> Due:
    """Whether a detector is to be fitted again at the time ``now``, in seconds since 1970.

    Raises
    ------
    ArtifactError
        There is no champion, or the registry does not answer.
    """
    how = ws.monitor.refit
    if how is None or not (how.cron or how.on_stale):
        return Due(False, "monitor.yml asks for it neither by refit.cron nor by refit.on_stale")
    tracker = Tracker(ws.mlflow)
    ws.store.prepare(ws.monitor.name)
    champion = tracker.resolve(ws.monitor.name)
    candidate = _candidate(tracker, ws)
    with tracker.explained():
        made = max(tracker.registered_at(one) for one in (champion, candidate or champion))
        fitted = [tracker.tags(one).get(REFIT_BATCHES, "").split() for one in (champion, candidate or champion)]
    told = _told(ws, champion.digest)
    asked = [_stale(told, made) if how.on_stale else _NOT_STALE, _scheduled(ws, how, made, now)]
    if not any(one.holds for one in asked):
        return Due(False, "; ".join(one.why for one in asked))
    # what was registered before the calibration grew stale is no answer to that; but a date displaces no candidate
    if not asked[0].holds and candidate and not _is_answered(ws, candidate):
        return Due(False, f"version {candidate.version} waits for a decision: promote or reject it")
    last, _ = _usable(ws, champion.digest)
    if len(last) < how.batches:
        since = " since the batches shifted" if told[1] is not None else ""
        return Due(False, f"of the {how.batches:,} batches that are needed {len(last):,} have come{since}")
    # by the last of them: one before it whose file is gone was not fitted to, and never will be
    if any(len(heads) == how.batches and heads[-1] == last[0].sha256[:HEAD] for heads in fitted):
        return Due(False, "no batch has come since it was done")
    return next(one for one in asked if one.holds)


_NOT_STALE = Due(False, "a stale calibration is not asked for")


def _told(ws: Workspace, champion: str) -> tuple[float | None, float | None]:
    """When the calibration of the model of this digest was told to be too old, and no longer to fit the batches."""
    paths = [ws.store.file(ws.store.incidents, id, ".json") for id in stale_ids(ws.monitor.name, champion)]
    age, drift = (path.stat().st_mtime if path.exists() else None for path in paths)
    return age, drift


def _stale(told: Sequence[float | None], made: float) -> Due:
    """Whether a calibration is stale, and no version was registered since that might be the answer."""
    known = [at for at in told if at is not None]
    if not known:
        return Due(False, "the calibration of the champion is not stale")
    if made > min(known):
        return Due(False, "a version has been registered since the calibration of the champion grew stale")
    return Due(True, "the calibration of the champion is stale")


def _usable(ws: Workspace, champion: str) -> tuple[list[Commit], int]:
    """The commits that may be learned from, the last first, and how many may not, from before a shift that was told.

    A calibration on batches before and after a shift would hold for neither.
    """
    ledger = Ledger(ws.store)
    written, (_, drift) = ledger.written(), _told(ws, champion)
    seen = ledger.last(written, len(written))
    began = 0.0
    if drift is not None:
        then = [(commit, at) for commit, at in seen if at <= drift and commit.model.digest == champion][-OF_LAST:]
        began = next((at for commit, at in then if commit.drifted), drift)
    stand = standing([commit for commit, _ in seen])
    after = {commit.batch_id for commit, at in seen if at >= began}
    kept = [commit for commit in reversed(stand) if commit.scored and commit.batch_id in after]
    return kept, len(stand) - len(kept)


def _scheduled(ws: Workspace, how: RefitConfig, made: float, now: float) -> Due:
    """Whether the schedule has come since a version was registered last."""
    from cronsim import CronSim

    if how.cron is None:
        return Due(False, "there is no schedule")
    zone = ZoneInfo(ws.monitor.schedule.timezone)
    last = next(CronSim(how.cron, datetime.fromtimestamp(now, zone), reverse=True), None)
    if last is None or last.timestamp() <= made:
        return Due(False, f"the schedule {how.cron!r} has not come since a version was registered")
    return Due(True, f"the schedule {how.cron!r}")


def _candidate(tracker: Tracker, ws: Workspace) -> Resolved | None:
    """The candidate, where there is one and it is not the champion."""
    name, aliases = tracker.registered_name(ws.monitor.name), tracker.config.registry.aliases
    with tracker.explained():
        known = tracker.aliases(name)
    number = known.get(aliases.candidate)
    return None if number in (None, known.get(aliases.champion)) else tracker.resolve(ws.monitor.name, number)


def _is_answered(ws: Workspace, candidate: Resolved) -> bool:
    about = candidate.version, candidate.digest
    found = decisions.history(ws.monitor, ws.mlflow)
    return any((one.version, one.digest) == about and one.action in ANSWERS for one in found)


def _tags(recent: Recent) -> dict[str, str]:
    """What a version says of the batches that it was fitted to."""
    commits, records = recent.commits, recent.training
    doubtful = 0 if records.doubtful is None else int((records.doubtful & records.records.normal).sum())
    shifted = sum(commit.drifted for commit in commits)
    about = (
        f"Fitted to {len(commits):,} batches, from {commits[0].name} to {commits[-1].name}, of which {shifted:,} have"
        f" shifted as a whole: {len(records.normal):,} records. {doubtful:,} of them were flagged where the batch had"
        f" not shifted, and train nothing; {records.confirmed:,} confirmed anomalies are left out."
    )
    return {REFIT_BATCHES: _heads(commits), REFIT_ABOUT: about}


def _heads(commits: Sequence[Commit]) -> str:
    return " ".join(commit.sha256[:HEAD] for commit in commits)


def _unfinished(ws: Workspace, tracker: Tracker) -> Resolved | None:
    """A candidate of a refit that ended before its review, or before it was told of."""
    if ws.monitor.refit is None or (candidate := _candidate(tracker, ws)) is None:
        return None
    with tracker.explained():
        tags = tracker.tags(candidate)
    if REFIT_BATCHES not in tags or CALIBRATION in tags:  # who calibrated it again reviews it
        return None
    told = ws.store.file(ws.store.incidents, _waits(ws, candidate).batch_id, ".json").exists()
    return None if (told and "review.sha256" in tags) or _is_answered(ws, candidate) else candidate


def _waits(ws: Workspace, candidate: Resolved, gates: str = "", batch: str = "") -> Incident:
    return waiting(ws.monitor.name, candidate.digest, version=candidate.version, gates=gates, batch=batch)


def _finished(
    ws: Workspace, tracker: Tracker, version: str, progress: Progress, fitted: FitOutcome | None = None
) -> Refit:
    """Review a version, unless that was done, for another review would undo an approval, and tell of it once."""
    found = tracker.resolve(ws.monitor.name, version)
    with tracker.explained():
        tags = tracker.tags(found)
    if "review.sha256" not in tags:
        pipelines.review(ws, progress, version=version)
        with tracker.explained():
            tags = tracker.tags(found)
    reviews = [
        line
        for line in decisions.history(ws.monitor, ws.mlflow)
        if (line.version, line.review, line.action) == (version, tags["review.sha256"], "reviewed")
    ]
    gates = reviews[-1].reason if reviews else "its review says whether the gates hold"
    with tracker.explained():
        champion = tracker.aliases(found.name).get(tracker.config.registry.aliases.champion)
    if champion != version:
        ledger, head = Ledger(ws.store), tags.get(REFIT_BATCHES, "").rpartition(" ")[2]
        last = next((commit.name for commit in ledger.newest() if commit.sha256[:HEAD] == head), head)
        ledger.note(_waits(ws, found, gates, last))
    page = ws.monitor.output / "reviews" / f"v{version}.review.html"
    passed = tags.get("review.passed") == "true"
    return Refit(version, found.digest, tags.get(REFIT_ABOUT, ""), passed, gates, tags["review.sha256"], page, fitted)
