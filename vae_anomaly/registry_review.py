"""From candidate to champion: a review of fixed gates, promotion with a name and a reason, and the way back.

MLflow has aliases and tags and no approval: the review is kept as an artifact whose sha256 stands in a tag of the
version, promotion refuses what no unaltered, passed review of this very detector covers, and every move of the alias
is one more tag of the registered model, which nothing here changes or removes.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np

from vae_anomaly.batch import Records
from vae_anomaly.config import GatesConfig, MlflowConfig, MonitorConfig, config_digest
from vae_anomaly.detector import Detector
from vae_anomaly.errors import ArtifactError, ConfigError, ReviewError, words
from vae_anomaly.fitting import Recipe, split
from vae_anomaly.latent import active
from vae_anomaly.metrics import corruption_recall, weak
from vae_anomaly.report.review import Gate, Measure, Review, to_html
from vae_anomaly.tracking import AWAY, Resolved, Tracker

__all__ = ["Evidence", "Gate", "Promotion", "Review", "evaluate_gates", "history", "promote", "review", "rollback"]

CHANCE = 0.999
REVIEW_JSON, REVIEW_HTML = "review.json", "review.html"


# ---- review ----


@dataclass(frozen=True)
class Evidence:
    """What a detector does with B normal records that trained no weight: scores, flags, and recall by column."""

    scores: np.ndarray
    flagged: np.ndarray
    recall: Mapping[str, float]

    @staticmethod
    def of(detector: Detector, validation: Records) -> Evidence:
        """Measure ``detector`` on scorable normal records; every detector's are corrupted alike."""
        inputs = detector.encode(validation)
        scores = detector.scores(inputs)
        recall = corruption_recall(detector, inputs, seed=0).headline
        threshold = detector.threshold.for_batch(detector.threshold.counts(scores))
        return Evidence(scores, threshold.flag(scores), recall)

    @property
    def median_recall(self) -> float | None:
        """Median over the columns or regions; None where nothing could be corrupted."""
        return float(np.median(list(self.recall.values()))) if self.recall else None


def evaluate_gates(
    detector: Detector, evidence: Evidence | None, champion: Evidence | None, limits: GatesConfig
) -> tuple[Gate, ...]:
    """Every gate of a detector whose files were verified; without ``evidence`` those that need records do not hold."""
    n, alpha, ratio = len(detector.threshold.measured), detector.threshold.alpha, limits.max_false_alarm_ratio
    scores, flagged, recall = (evidence.scores, evidence.flagged, evidence.median_recall) if evidence else (None,) * 3
    known = champion.median_recall if champion else None
    drop = known - recall if known is not None and recall is not None else None
    # fmt: off
    gates = (
        Gate("calibration records", n, "at least", limits.min_calibration_records,
             "Normal records behind the threshold.", "count"),
        Gate("supported alpha", alpha, "at least", 1 / (n + 1),
             f"The smallest false-alarm rate that {n:,} calibration records can hold.", "share"),
        Gate("active latent units", len(active(detector)), "at least", limits.min_active_units,
             "Latent dimensions that tell records apart; none means that the encoder collapsed.", "count"),
        Gate("distinct scores", None if scores is None else len(np.unique(scores)), "at least", 2,
             "Different scores among the validation records; a constant score says nothing.", "count"),
        Gate("false-alarm rate", None if flagged is None else float(flagged.mean()), "at most",
             _most_flagged(detector, 0 if flagged is None else len(flagged), ratio),
             f"Share of normal validation records flagged. At most {ratio:g} times alpha, or where it is more, what"
             f" chance alone stays below in {100 * CHANCE:g} % of the cases.", "share"),
        Gate("corruption recall", recall, "at least", limits.min_corruption_recall,
             "Share of records flagged after one column or region was corrupted, median over them.", "share"),
        Gate("recall lost", drop, "at most", limits.max_recall_drop_vs_champion,
             "The champion's corruption recall less this version's, on the same records.", "share"),
    )
    # fmt: on
    return gates if champion else gates[:-1]


def _most_flagged(detector: Detector, records: int, ratio: float) -> float:
    """The largest share of normal records that may be flagged."""
    threshold, limit = detector.threshold, min(1.0, ratio * detector.threshold.alpha)
    if not records:
        return limit
    return max(limit, threshold.false_alarm_quantile(records, 0.5 + CHANCE / 2) / records)


def review(
    monitor: MonitorConfig,
    mlflow: MlflowConfig,
    *,
    records: Records | None,
    recipe: Recipe,
    cache: Path,
    now: float,
    version: str | None = None,
) -> Review:
    """Evaluate the gates for the candidate, or ``version``, and record the review in the registry.

    Parameters
    ----------
    records, recipe : the monitor's normal training records and how they are split, for the validation records; without
        records the gates that need them do not hold.
    cache : folder of verified model folders.
    now : seconds since 1970, UTC.

    Raises
    ------
    ArtifactError
        There is no such version, its files do not verify, or the registry does not answer. A champion whose files do
        not verify is a warning.
    """
    tracker = Tracker(mlflow)
    found = tracker.resolve(monitor.name, version or "candidate")
    candidate = Detector.load(tracker.fetch(found, cache), digest=found.digest)
    champion, rival, warnings = _champion(tracker, monitor.name, found, cache)
    with tracker.explained():
        tags = tracker.client.get_model_version(found.name, found.version).tags
    evidence = known = None
    if records is not None:
        validation = records.take(split(records, recipe)["validation"])
        warnings += _changes(tags, monitor, candidate, records)
        own = set(map(str, validation.record_ids))
        evidence = Evidence.of(candidate.without(own), validation)
        if rival is not None:
            same = rival.schema.digest == candidate.schema.digest
            known = Evidence.of(rival.without(own), validation) if same else None
            warnings += [] if same else ["The champion reads other columns: it was not compared on the records."]
    gates = evaluate_gates(candidate, evidence, known, mlflow.registry.review.gates)
    agreement, correlation = _agreement(evidence, known)
    result = Review(
        monitor.name,
        found.name,
        found.version,
        found.digest,
        _time(now),
        gates,
        warnings=(*warnings, *_warnings(candidate, evidence)),
        verdict=tags.get("verdict", ""),
        champion=champion,
        measures=tuple(
            Measure(name, ours, theirs, unit)
            for (name, unit), ours, theirs in zip(
                MEASURES, _measures(candidate, evidence), _measures(rival, known), strict=True
            )
        ),
        agreement=agreement,
        rank_correlation=correlation,
        recall=evidence.recall if evidence else {},
        facts={**candidate.provenance, "threshold": candidate.threshold.version, "schema": candidate.schema.digest},
    )
    return _record(tracker, result, monitor.output / "reviews")


def _champion(
    tracker: Tracker, monitor: str, candidate: Resolved, cache: Path
) -> tuple[dict[str, str], Detector | None, list[str]]:
    """Version and digest of the champion that a candidate is compared with, its detector, and warnings.

    Empty without one, or when it is the candidate itself. A champion that this version cannot load, such as one of an
    older format, has no detector and a warning that says why: it must not keep what replaces it from being reviewed.
    """
    with tracker.explained():
        number = tracker.aliases(candidate.name).get(tracker.config.registry.aliases.champion)
    if number in (None, candidate.version):
        return {}, None, []
    about = {"version": str(number), "digest": ""}
    try:
        champion = tracker.resolve(monitor, str(number))
        about["digest"] = champion.digest
        return about, Detector.load(tracker.fetch(champion, cache), digest=champion.digest), []
    except ArtifactError as error:
        # without its folders, one of which is a temporary one: equal reviews are equal bytes
        why = " ".join(re.sub(r"[^\s'\"(]*/(?=\S)", "", str(error.__cause__ or error)).split())
        return about, None, [f"The champion, version {number}, cannot be loaded and was not compared with: {why}"]


def _changes(tags: Mapping[str, str], monitor: MonitorConfig, detector: Detector, records: Records) -> list[str]:
    """A warning where the validation records need not be those that the fit held out."""
    same_records = detector.provenance.get("normal_records") == str(len(records))
    if same_records and tags.get("digest.config") == config_digest(monitor):
        return []
    return [
        "The training files or monitor.yml have changed since the fit of this version: it may have been trained on some"
        " of the validation records, which would flatter it."
    ]


def _warnings(detector: Detector, evidence: Evidence | None) -> list[str]:
    if evidence is None:
        return ["No records were given: nothing was measured on them."]
    blind = weak(evidence.recall, detector.threshold.alpha)
    more = f" and {len(blind) - 8} more" if len(blind) > 8 else ""
    text = f"It hardly notices when one of these is corrupted: {', '.join(blind[:8])}{more}."
    return [text] if blind else []


MEASURES: tuple[tuple[str, Literal["count", "share", "number"]], ...] = (
    ("false-alarm rate", "share"),
    ("corruption recall", "share"),
    ("calibration records", "count"),
    ("target false-alarm rate", "share"),
    ("its 95 % range, from", "share"),
    ("its 95 % range, to", "share"),
    ("threshold, nats", "number"),
    ("median score, nats", "number"),
)


def _measures(detector: Detector | None, evidence: Evidence | None) -> list[float | None]:
    """The values of ``MEASURES``."""
    if detector is None:
        return [None] * len(MEASURES)
    promise = detector.threshold.promise
    return [
        float(evidence.flagged.mean()) if evidence else None,
        evidence.median_recall if evidence else None,
        promise.calibration_records,
        promise.alpha,
        promise.low,
        promise.high,
        detector.threshold.value,
        float(np.median(evidence.scores)) if evidence else None,
    ]


def _agreement(evidence: Evidence | None, known: Evidence | None) -> tuple[float | None, float | None]:
    """Share of records decided alike, and Spearman's rank correlation of the scores."""
    if evidence is None or known is None:
        return None, None
    from scipy.stats import rankdata

    ranks = [rankdata(e.scores) for e in (evidence, known)]
    constant = min(float(np.ptp(r)) for r in ranks) == 0
    agreement = float((evidence.flagged == known.flagged).mean())
    return agreement, None if constant else float(np.corrcoef(*ranks)[0, 1])


def _record(tracker: Tracker, result: Review, folder: Path) -> Review:
    """Write both files, log them as a run, and tag the version; the sha256 of the JSON comes last."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {REVIEW_JSON: result.to_json(), REVIEW_HTML: to_html(result).encode()}
    for name, data in files.items():
        (folder / f"v{result.version}.{name}").write_bytes(data)
    about = {
        "monitor": result.monitor,
        "model.name": result.model,
        "model.version": result.version,
        "digest.model": result.digest,
        "review.passed": str(result.passed).lower(),
    }
    with tracker.explained():
        with tracker.run("review", f"review {result.monitor} v{result.version}", about) as run_id:
            tracker.log_metrics(
                run_id, {g.name.replace(" ", "_"): g.value for g in result.gates if g.value is not None}
            )
            tracker.log_files(run_id, files)
        tags = {"run_id": run_id, "digest": result.digest, "passed": about["review.passed"], "at": result.reviewed_at}
        tags["sha256"] = hashlib.sha256(files[REVIEW_JSON]).hexdigest()
        _tag(tracker, result.model, result.version, {f"review.{k}": v for k, v in tags.items()})
    return replace(result, page=folder / f"v{result.version}.{REVIEW_HTML}")


# ---- promotion ----


@dataclass(frozen=True)
class Promotion:
    """A move of the champion's alias; ``previous`` is empty where there was none, ``changed`` False where it stood."""

    model: str
    version: str
    previous: str
    action: str
    by: str
    at: str
    reason: str
    changed: bool = True

    def __str__(self) -> str:
        if not self.changed:
            return f"{self.model} version {self.version} is the champion already."
        before = f"; before it was version {self.previous}" if self.previous else ""
        return f"{self.model} version {self.version} is the champion now ({self.action} by {self.by}){before}."


def promote(
    monitor: MonitorConfig,
    mlflow: MlflowConfig,
    *,
    by: str,
    now: float,
    version: str | None = None,
    reason: str | None = None,
    force: bool = False,
) -> Promotion:
    """Move the champion's alias to the candidate, or to ``version``, when its review holds.

    ``by`` says who; ``force`` promotes without a review that holds and needs a ``reason``.

    Raises
    ------
    ReviewError
        No review of this very detector, an altered one, or one with a gate that does not hold.
    ConfigError
        ``by`` is empty or not printable, or ``force`` has no reason.
    ArtifactError
        There is no such version, or its files do not verify: such a version is never promoted.
    """
    by, reason = words("--by", by), words("--reason", reason) if reason else ""
    if force and not reason:
        raise ConfigError("--force must come with --reason, which is recorded. Got no reason. Say why.")
    tracker = Tracker(mlflow)
    found = tracker.resolve(monitor.name, version or "candidate")
    tracker.verify(found)
    with tracker.explained():
        if mlflow.registry.review.required and not force:
            _require_review(tracker, found)
        return _move(tracker, found, "forced" if force else "promoted", by, reason, _time(now))


def rollback(
    monitor: MonitorConfig, mlflow: MlflowConfig, *, by: str, now: float, reason: str | None = None
) -> Promotion:
    """Move the champion's alias back to the version that was champion before.

    Raises
    ------
    ReviewError
        There was none before.
    ArtifactError
        There is no champion, or the files of the version before do not verify.
    """
    by, reason = words("--by", by), words("--reason", reason) if reason else ""
    tracker = Tracker(mlflow)
    champion = tracker.resolve(monitor.name, "champion")
    with tracker.explained():
        previous = tracker.client.get_model_version(champion.name, champion.version).tags.get("promoted.previous")
    if not previous:
        raise ReviewError(
            f"version {champion.version} of {champion.name} must have a version before it to roll back to. Got none."
            " Promote another version with `vae-anomaly promote --version`."
        )
    before = tracker.resolve(monitor.name, previous)
    tracker.verify(before)
    with tracker.explained():
        return _move(tracker, before, "rolled back", by, reason, _time(now))


def history(monitor: MonitorConfig, mlflow: MlflowConfig) -> tuple[Promotion, ...]:
    """Every recorded move of the champion's alias, oldest first."""
    tracker = Tracker(mlflow)
    with tracker.explained():
        tags = tracker.client.get_registered_model(tracker.registered_name(monitor.name)).tags
    return tuple(Promotion(**json.loads(tags[key])) for key in sorted(tags) if key.startswith("history."))


def _move(tracker: Tracker, to: Resolved, action: str, by: str, reason: str, at: str) -> Promotion:
    """Tags first, then the alias, then the line of the history: whatever is cut short can be done again."""
    alias = tracker.config.registry.aliases.champion
    previous = tracker.aliases(to.name).get(alias, "")
    done = Promotion(to.name, to.version, previous, action, by, at, reason, changed=previous != to.version)
    if not done.changed:
        return done
    if action == "rolled back":
        _tag(tracker, to.name, previous, {"rolled_back.by": by, "rolled_back.at": at, "rolled_back.reason": reason})
    else:
        kept = {"by": by, "at": at, "reason": reason, "previous": previous, "forced": str(action == "forced").lower()}
        _tag(tracker, to.name, to.version, {f"promoted.{k}": v for k, v in kept.items()})
    tracker.client.set_registered_model_alias(to.name, alias, to.version)
    line = json.dumps({k: v for k, v in asdict(done).items() if k != "changed"}, sort_keys=True)
    stamp = "".join(c for c in at if c.isdigit() or c == "T")[:22]
    tracker.client.set_registered_model_tag(to.name, f"history.{stamp}.v{previous or 0}-v{to.version}", line)
    return done


def _require_review(tracker: Tracker, found: Resolved) -> None:
    """Raise :class:`ReviewError` unless the version's review is there, unaltered, of this detector, and passed."""
    tags = tracker.client.get_model_version(found.name, found.version).tags
    what = f"version {found.version} of {found.name}"
    again = "Run `vae-anomaly review` again, or promote with --force and --reason."
    if "review.sha256" not in tags or "review.run_id" not in tags:
        raise ReviewError(f"{what} must be reviewed before it is promoted. Got no review. {again}")
    with tempfile.TemporaryDirectory() as folder:
        try:
            data = Path(tracker.client.download_artifacts(tags["review.run_id"], REVIEW_JSON, folder)).read_bytes()
        except AWAY as error:
            raise ReviewError(f"the review of {what} must be in its run. Got none. {again}") from error
    if hashlib.sha256(data).hexdigest() != tags["review.sha256"]:
        raise ReviewError(f"the review of {what} must be what was recorded. Got an altered {REVIEW_JSON}. {again}")
    content = json.loads(data)
    if [content[key] for key in ("model", "version", "digest")] != [found.name, found.version, found.digest]:
        raise ReviewError(f"the review of {what} must be of this very detector. Got one of another. {again}")
    if not content["passed"]:
        failed = ", ".join(gate["name"] for gate in content["gates"] if not gate["passed"])
        raise ReviewError(
            f"every gate of {what} must hold. These do not: {failed}. Fit a better version, or promote with --force and"
            " --reason."
        )


def _tag(tracker: Tracker, name: str, version: str, tags: Mapping[str, str]) -> None:
    for key, value in tags.items():
        tracker.client.set_model_version_tag(name, version, key, value)


def _time(now: float) -> str:
    return datetime.fromtimestamp(now, UTC).isoformat(timespec="microseconds")
