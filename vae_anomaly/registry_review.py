"""The review of a registered version: what it does with normal records, beside the champion, and whether gates hold.

It is recorded as a run with a JSON and an HTML file; the sha256 of the JSON stands in a tag of the version, and
:mod:`vae_anomaly.decisions` promotes nothing without it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from vae_anomaly.batch import Records
from vae_anomaly.config import GatesConfig, MlflowConfig, MonitorConfig, config_digest
from vae_anomaly.decisions import REVIEW_JSON, Decision, record, utc
from vae_anomaly.detector import Detector, schema_changes
from vae_anomaly.errors import ArtifactError
from vae_anomaly.fitting import Recipe, split
from vae_anomaly.latent import active, framed, latent_means, plane, units
from vae_anomaly.metrics import corruption_recall, weak
from vae_anomaly.replay import alerts_of, rank_correlation
from vae_anomaly.report.card import to_card
from vae_anomaly.report.model import LatentMap
from vae_anomaly.report.review import Gate, Measure, OnFeedback, Replay, Review, Served, to_html
from vae_anomaly.tracking import REGISTERED_BY, Resolved, Tracker

__all__ = ["Evidence", "Gate", "Review", "evaluate_gates", "review"]

CHANCE = 0.999
REVIEW_HTML, CARD = "review.html", "card.md"
MAPPED = 400  # records of a latent map


@dataclass(frozen=True)
class Evidence:
    """What a detector does with B normal records that trained no weight: scores, flags, p-values, recall by column, and
    where in its latent space they lie.

    Of several detectors ``served`` has what each does; recall and latent space are the general one's, of all records.
    """

    scores: np.ndarray
    flagged: np.ndarray
    p_values: np.ndarray
    recall: Mapping[str, float]
    latent: LatentMap
    served: tuple[Served, ...] = ()

    @staticmethod
    def of(detector: Detector, validation: Records) -> Evidence:
        """Measure ``detector`` on scorable normal records; every detector's are corrupted alike."""
        inputs = detector.encode(validation)
        scores = detector.scores(inputs)
        recall = corruption_recall(detector, inputs, seed=0).headline
        threshold = detector.threshold.for_batch(detector.threshold.counts(scores))
        flagged, p_values = threshold.flag(scores), threshold.p_value(scores)
        if detector.segments:
            found = detector.detect(validation)
            scores, flagged, p_values = found.score, found.is_anomaly, found.p_value
        latent = _latent_map(latent_means(detector, inputs).numpy(), flagged)
        served = _served(detector, validation) if detector.segments else ()
        return Evidence(scores, flagged, p_values, recall, latent, served)

    @property
    def median_recall(self) -> float | None:
        """Median over the columns or regions; None where nothing could be corrupted."""
        return float(np.median(list(self.recall.values()))) if self.recall else None

    @property
    def least_recall(self) -> float | None:
        """The median recall of the detector for which it is least."""
        known = [self.median_recall, *(one.recall for one in self.served)]
        return min((recall for recall in known if recall is not None), default=None)


def _served(detector: Detector, validation: Records) -> tuple[Served, ...]:
    """Each of the detectors that has some of the records to score."""
    found = []
    for name, own, mine in zip(detector.names, detector.detectors, detector.routed(validation), strict=True):
        if len(mine):
            part = validation.take(mine)
            detected, inputs = own.detect(part), own.encode(part)
            scored = int((~np.isnan(detected.score)).sum())
            alerts = alerts_of([(own.threshold, scored)], int(detected.is_anomaly.sum()))
            units, latent, recall = len(active(own)), own.vae.latent, corruption_recall(own, inputs, seed=0).median
            found.append(Served(name, len(own.threshold.measured), units, latent, alerts, recall))
    return tuple(found)


def _latent_map(means: np.ndarray, flagged: np.ndarray) -> LatentMap:
    """The first records, and as many flagged ones, in the plane of the first principal components."""
    shown = np.unique(np.r_[np.arange(len(means))[:MAPPED], np.flatnonzero(flagged)[:MAPPED]])
    found = plane(means, "pca")
    points = framed(found.points, found.points.min(0), found.points.max(0))[shown]
    return LatentMap(tuple(map(tuple, points.tolist())), tuple(np.flatnonzero(flagged[shown]).tolist()), found.axes)


def evaluate_gates(
    detector: Detector,
    evidence: Evidence | None,
    champion: Evidence | None,
    limits: GatesConfig,
    replayed: Replay | None = None,
) -> tuple[Gate, ...]:
    """Every gate of a detector whose files were verified; without ``evidence`` those that need records do not hold.

    Those that compare with a champion, or with its alerts on replayed batches, are there where there is such a thing.
    """
    n = min(len(own.threshold.measured) for own in detector.detectors)  # what the weakest of several holds, all do
    alpha, tail, ratio = detector.threshold.alpha, detector.threshold.tail, limits.max_false_alarm_ratio
    scores, flagged, recall = (evidence.scores, evidence.flagged, evidence.median_recall) if evidence else (None,) * 3
    known = champion.median_recall if champion else None
    drop = known - recall if known is not None and recall is not None else None
    # fmt: off
    gates = (
        Gate("calibration records", n, "at least", limits.min_calibration_records,
             "Normal records behind the threshold.", "count"),
        Gate("supported alpha", alpha, "at least", max(own.threshold.smallest_alpha for own in detector.detectors),
             f"The smallest false-alarm rate that {n:,} calibration records can hold"
             f"{', or that is extrapolated from them' if tail else ''}.", "share"),
        Gate("active latent units", min(len(active(own)) for own in detector.detectors), "at least",
             limits.min_active_units,
             "Latent dimensions that tell records apart; none means that the encoder collapsed.", "count"),
        Gate("distinct scores", None if scores is None else len(np.unique(scores)), "at least", 2,
             "Different scores among the validation records; a constant score says nothing.", "count"),
        Gate("false-alarm rate", None if flagged is None else float(flagged.mean()), "at most",
             _most_flagged(detector, evidence, ratio),
             f"Share of normal validation records flagged. At most {ratio:g} times alpha, or where it is more, what"
             f" chance alone stays below in {100 * CHANCE:g} % of the cases.", "share"),
        Gate("corruption recall", evidence.least_recall if evidence else None, "at least", limits.min_corruption_recall,
             "Share of records flagged after one column or region was corrupted, median over them.", "share"),
        Gate("recall lost", drop, "at most", limits.max_recall_drop_vs_champion,
             "The champion's corruption recall less this version's, on the same records.", "share"),
        Gate("flagged by the champion", float(champion.flagged.mean()) if champion else None, "at most",
             limits.max_flagged_by_champion,
             "Share of this version's normal validation records that the champion flags: where it is large, either the"
             " source has changed, which somebody should know, or the training records are wrong.", "share"),
    )
    # fmt: on
    return (*(gates if champion else gates[:-2]), *_replay_gates(replayed, limits))


def _replay_gates(replayed: Replay | None, limits: GatesConfig) -> Iterator[Gate]:
    """The gates that the replayed batches have something to say to."""
    if replayed is None:
        return
    if replayed.usual and replayed.usual.scored:
        found, ratio = replayed.usual, limits.max_usual_alert_ratio
        explanation = (
            "Share of records flagged in the replayed batches in which the champion finds no more than chance gives. At"
            f" most {ratio:g} times the upper end of the range of false alarms, {found.high:,} of {found.scored:,}."
        )
        limit = min(1.0, ratio * found.high / found.scored)
        yield Gate("alerts on usual batches", found.flagged / found.scored, "at most", limit, explanation, "share")
    # batch by batch: one kind of anomaly that is lost must not hide behind others that are kept
    kept = [batch.kept / batch.champion.flagged for batch in replayed.batches if batch.champion and batch.unusual]
    if kept:
        explanation = (
            "Share of the champion's alerts that this version gives, too, in the replayed batch with the fewest such,"
            f" of {len(kept):,} in which the champion finds more than chance gives: most of those are no false alarms."
        )
        yield Gate("alerts kept", min(kept), "at least", limits.min_alerts_kept, explanation, "share")
    yield from _feedback_gates(replayed.on_feedback, limits)


def _feedback_gates(found: OnFeedback | None, limits: GatesConfig) -> Iterator[Gate]:
    """The gate of the anomalies that somebody has confirmed and the champion flags, where there are such."""
    if found is None or found.champion is None or not found.champion[0]:
        return
    explanation = (
        f"Share of the records that the champion flags and people confirmed to be anomalies, {found.champion[0]:,} in"
        " all, that this version flags, too."
    )
    share = found.kept / found.champion[0]
    yield Gate("confirmed anomalies kept", share, "at least", limits.min_alerts_kept, explanation, "share")


def _most_flagged(detector: Detector, evidence: Evidence | None, ratio: float) -> float:
    """The largest share of normal records that may be flagged."""
    limit, records = min(1.0, ratio * detector.threshold.alpha), len(evidence.flagged) if evidence else 0
    if not evidence or not records:
        return limit
    parts = [(detector.threshold, records)]
    if evidence.served:
        own = dict(zip(detector.names, detector.detectors, strict=True))
        parts = [(own[one.segment].threshold, one.alerts.scored) for one in evidence.served]
    tail = (0.5 - CHANCE / 2) / len(parts)
    return max(limit, sum(threshold.false_alarm_quantile(n, 1 - tail) for threshold, n in parts) / records)


def review(
    monitor: MonitorConfig,
    mlflow: MlflowConfig,
    *,
    records: Records | None,
    recipe: Recipe,
    cache: Path,
    now: float,
    by: str,
    version: str | None = None,
    replay: Callable[[Detector, Detector | None], Replay] | None = None,
    remarks: Sequence[str] = (),
) -> Review:
    """Evaluate the gates for the candidate, or ``version``, and record the review in the registry.

    Parameters
    ----------
    records, recipe : the monitor's normal training records and how they are split, for the validation records; without
        records the gates that need them do not hold.
    cache : folder of verified model folders.
    now : seconds since 1970, UTC.
    by : who reviews, for the history.
    replay : scores committed batches again with the candidate and, where it reads the same columns, the champion.
    remarks : what else the reviewer is to know.

    Raises
    ------
    ArtifactError
        There is no such version, its files do not verify, or the registry does not answer. A champion whose files do
        not verify is a warning.
    """
    tracker = Tracker(mlflow)
    found = tracker.resolve(monitor.name, version or "candidate")
    candidate = Detector.load(tracker.fetch(found, cache), digest=found.digest)
    champion, rival, known_tags, warnings = _champion(tracker, monitor.name, found, cache)
    with tracker.explained():
        tags = tracker.tags(found)
    same = rival is None or rival.schema.digest == candidate.schema.digest
    warnings += [] if same else [_other_columns(rival, candidate)]
    evidence = known = None
    if records is not None:
        validation = records.take(split(records, recipe)["validation"])
        warnings += _changes(tags, monitor, candidate, records)
        own = set(map(str, validation.record_ids))
        evidence = Evidence.of(candidate.without(own), validation)
        known = Evidence.of(rival.without(own), validation) if rival and same else None
    replayed = replay(candidate, rival if same else None) if replay else None
    gates = evaluate_gates(candidate, evidence, known, mlflow.registry.review.gates, replayed)
    agreement, correlation = _agreement(evidence, known)
    result = Review(
        monitor.name,
        found.name,
        found.version,
        found.digest,
        utc(now),
        gates,
        warnings=(*remarks, *warnings, *_warnings(candidate, evidence)),
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
        champion_recall=known.recall if known else {},
        latent=evidence.latent if evidence else None,
        champion_latent=known.latent if known else None,
        replay=replayed,
        served=evidence.served if evidence else (),
        facts=_facts(candidate, tags),
        champion_facts=_facts(rival, known_tags) if rival else {},
    )
    return _record(tracker, found, result, monitor.output / "reviews", by)


def _champion(
    tracker: Tracker, monitor: str, candidate: Resolved, cache: Path
) -> tuple[dict[str, str], Detector | None, dict[str, str], list[str]]:
    """Version and digest of the champion that a candidate is compared with, its detector, its tags, and warnings.

    Empty without one, or when it is the candidate itself. A champion that this version cannot load, such as one of an
    older format, has no detector and a warning that says why: it must not keep what replaces it from being reviewed.
    """
    with tracker.explained():
        number = tracker.aliases(candidate.name).get(tracker.config.registry.aliases.champion)
    if number in (None, candidate.version):
        return {}, None, {}, []
    about = {"version": str(number), "digest": ""}
    try:
        champion = tracker.resolve(monitor, str(number))
        about["digest"] = champion.digest
        detector = Detector.load(tracker.fetch(champion, cache), digest=champion.digest)
        with tracker.explained():
            return about, detector, tracker.tags(champion), []
    except ArtifactError as error:
        # without its folders, one of which is a temporary one: equal reviews are equal bytes
        why = " ".join(re.sub(r"[^\s'\"(]*/(?=\S)", "", str(error.__cause__ or error)).split())
        return about, None, {}, [f"The champion, version {number}, cannot be loaded and was not compared with: {why}"]


def _other_columns(champion: Detector | None, candidate: Detector) -> str:
    changes = schema_changes(champion.schema, candidate.schema) if champion else ""
    return f"The champion reads other columns and was not compared on the records: {changes}."


def _facts(detector: Detector, tags: Mapping[str, str]) -> dict[str, str]:
    """Where a version comes from; what differs from the champion's stands out."""
    digests = {f"{key} digest": tags.get(f"digest.{key}", "") for key in ("data", "config")}
    by = {"registered by": tags.get(REGISTERED_BY, "")}
    model = {"model": str(detector.model.kind), "score": str(detector.score_part.kind)}
    pinned = {"threshold": detector.decider.version, "schema digest": detector.schema.digest}
    return {**detector.provenance, **model, **pinned, **digests, **by}


def _changes(tags: Mapping[str, str], monitor: MonitorConfig, detector: Detector, records: Records) -> list[str]:
    """A warning where the validation records need not be those that the fit held out."""
    if is_as_fitted(tags, monitor, detector, records):
        return []
    return [
        "The training files or monitor.yml have changed since the fit of this version: it may have been trained on some"
        " of the validation records, which would flatter it."
    ]


def is_as_fitted(tags: Mapping[str, str], monitor: MonitorConfig, detector: Detector, records: Records) -> bool:
    """Whether normal ``records`` and monitor.yml are, as far as the version with these ``tags`` can tell, those of its
    fit: then they are split as they were. A version that was calibrated again has the tags of the fit of its weights.
    """
    same_records = detector.provenance.get("normal_records") == str(len(records))
    return same_records and tags.get("digest.config") == config_digest(monitor)


def _warnings(detector: Detector, evidence: Evidence | None) -> list[str]:
    threshold = detector.threshold
    found = [f"The threshold lies beyond its calibration records: {threshold.promise}."] if threshold.tail else []
    if evidence is None:
        return [*found, "No records were given: nothing was measured on them."]
    blind = weak(evidence.recall, detector.threshold.alpha)
    more = f" and {len(blind) - 8} more" if len(blind) > 8 else ""
    text = f"It hardly notices when one of these is corrupted: {', '.join(blind[:8])}{more}."
    return [*found, text] if blind else found


MEASURES: tuple[tuple[str, Literal["count", "share", "number"]], ...] = (
    ("false-alarm rate", "share"),
    ("corruption recall", "share"),
    ("active latent units", "count"),
    ("latent dimensions", "count"),
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
    promises = [own.threshold.promise for own in detector.detectors]
    several = bool(detector.segments)  # then no one threshold and no one scale
    return [
        float(evidence.flagged.mean()) if evidence else None,
        evidence.median_recall if evidence else None,
        min(len(active(own)) for own in detector.detectors),
        len(units(detector)[0]),
        min(promise.calibration_records for promise in promises),
        detector.threshold.alpha,
        min(promise.low for promise in promises),
        max(promise.high for promise in promises),
        None if several else detector.threshold.value,
        float(np.median(evidence.scores)) if evidence and not several else None,
    ]


def _agreement(evidence: Evidence | None, known: Evidence | None) -> tuple[float | None, float | None]:
    """Share of records decided alike, and Spearman's rank correlation of the scores."""
    if evidence is None or known is None:
        return None, None
    alike = float((evidence.flagged == known.flagged).mean())
    if not (evidence.served or known.served):
        return alike, rank_correlation(evidence.scores, known.scores)
    both = ~np.isnan(evidence.p_values + known.p_values)  # scores of several detectors are no one scale
    return alike, rank_correlation(-evidence.p_values[both], -known.p_values[both])


def _record(tracker: Tracker, found: Resolved, result: Review, folder: Path, by: str) -> Review:
    """Write the files, log them as a run, and tag the version with the sha256 of the JSON; the history comes last."""
    folder.mkdir(parents=True, exist_ok=True)
    card = to_card(result)
    files = {REVIEW_JSON: result.to_json(), REVIEW_HTML: to_html(result).encode(), CARD: card.encode()}
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
        tracker.tag(found, {f"review.{k}": v for k, v in tags.items()})
        failed = f"gates that do not hold: {', '.join(result.failed)}" if result.failed else "every gate holds"
        about_it = result.reviewed_at, failed, result.digest, tags["sha256"]
        record(tracker, Decision(result.model, result.version, "reviewed", by, *about_it), card=card)
    return replace(result, page=folder / f"v{result.version}.{REVIEW_HTML}")
