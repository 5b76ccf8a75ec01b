"""What people decide of registered versions: approved, rejected, promoted, rolled back; and the history of it all.

MLflow has aliases and tags and no approval. A review is an artifact whose sha256 stands in a tag of its version, and a
decision names the version, the detector's digest and the review that was looked at. Every decision is one more tag of
the registered model, under a key that no other has: nothing here changes or removes one. Promotion refuses what no
unaltered, passed review of this very detector covers, and what was not approved with that review.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from vae_anomaly.config import MlflowConfig, MonitorConfig
from vae_anomaly.errors import ConfigError, ReviewError, words
from vae_anomaly.report.markdown import code, sentence
from vae_anomaly.tracking import AWAY, REGISTERED_BY, Registered, Resolved, Tracker

REVIEW_JSON = "review.json"
DECISIONS, MOST_DESCRIBED = "\n## Decisions\n\n", 5000  # characters that the registry keeps of a description
Action = Literal["reviewed", "approved", "rejected", "promoted", "forced", "rolled back", "recalibrated"]


@dataclass(frozen=True)
class Decision:
    """One line of a registered model's history.

    ``digest`` is the detector's sha256, ``review`` that of the review's JSON, empty where there was none. ``previous``
    is the champion before a promotion or rollback, empty where there was none; ``changed`` is False where the version
    was the champion already, and then nothing was recorded.
    """

    model: str
    version: str
    action: Action
    by: str
    at: str
    reason: str
    digest: str = ""
    review: str = ""
    previous: str = ""
    changed: bool = True

    def __str__(self) -> str:
        what = f"{self.model} version {self.version}"
        if not self.changed:
            return f"{what} is the champion already."
        if self.action in ("promoted", "forced", "rolled back"):
            before = f"; before it was version {self.previous}" if self.previous else ""
            return f"{what} is the champion now ({self.action} by {self.by}){before}."
        return f"{what} is {self.action} by {self.by} ({f'review {self.review[:12]}' if self.review else 'no review'})."


def approve(
    monitor: MonitorConfig,
    mlflow: MlflowConfig,
    *,
    by: str,
    reason: str,
    now: float,
    version: str | None = None,
    review: str | None = None,
) -> Decision:
    """Record that ``by`` approves the candidate, or ``version``, with its recorded review.

    ``review`` is the sha256 of the review that was looked at, or its first characters: another one is refused. Whether
    the gates hold is not asked here, but by :func:`promote`.

    Raises
    ------
    ReviewError
        There is no review of this very detector, an altered or another one; or ``by`` fitted the version and
        ``registry.review.second_person`` is set.
    ConfigError
        ``by`` or ``reason`` is empty or not printable.
    ArtifactError
        There is no such version.
    """
    by, reason = words("--by", by), words("--reason", reason)
    tracker = Tracker(mlflow)
    found = tracker.resolve(monitor.name, version or "candidate")
    with tracker.explained():
        sha256, _ = _recorded_review(tracker, found)
        if review is not None and (len(review) < 8 or not sha256.startswith(review.lower())):
            raise ReviewError(
                f"the review of version {found.version} of {found.name} must be the one that was looked at,"
                f" {review[:64]!r}. Got {sha256[:12]}: it was reviewed again. Look at that one."
            )
        if mlflow.registry.review.second_person:
            _require_second_person(tracker, found, by)
        return _decide(tracker, found, "approved", by, reason, sha256, now)


def reject(
    monitor: MonitorConfig, mlflow: MlflowConfig, *, by: str, reason: str, now: float, version: str | None = None
) -> Decision:
    """Record that ``by`` rejects the candidate, or ``version``: it is not promoted, by force neither, until somebody
    approves it. Raises as :func:`approve`, but needs no review."""
    by, reason = words("--by", by), words("--reason", reason)
    tracker = Tracker(mlflow)
    found = tracker.resolve(monitor.name, version or "candidate")
    with tracker.explained():
        return _decide(tracker, found, "rejected", by, reason, _review_of(tracker, found), now)


def promote(
    monitor: MonitorConfig,
    mlflow: MlflowConfig,
    *,
    by: str,
    now: float,
    version: str | None = None,
    reason: str | None = None,
    force: bool = False,
) -> Decision:
    """Move the champion's alias to the candidate, or to ``version``, when its review holds and it is approved.

    Where nobody has approved this review yet, ``by`` does so by promoting, unless ``registry.review.second_person`` is
    set. ``force`` promotes without a review that holds and without an approval, and needs a ``reason``.

    Raises
    ------
    ReviewError
        No review of this very detector, an altered one, or one with a gate that does not hold; no approval of it by a
        second person; or the version was rejected, whatever ``force`` says.
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
        verdict = _require_not_rejected(tracker, found)
        rules, sha256 = mlflow.registry.review, _review_of(tracker, found)
        if rules.required and not force:
            sha256 = _require_passed(tracker, found)
            approved = verdict is not None and verdict.review == sha256
            if rules.second_person:
                _require_second_person(tracker, found, verdict.by if approved and verdict else "")
            elif not approved and not _is_champion(tracker, found):
                _decide(tracker, found, "approved", by, reason, sha256, now)
        return _move(tracker, found, "forced" if force else "promoted", by, reason, sha256, now)


def recalibrated(tracker: Tracker, version: Registered, *, by: str, reason: str, now: float) -> None:
    """Record that ``by`` called the batches normal on which ``version`` was calibrated, unless that is recorded; then
    make it the candidate. Whatever is cut short is done by doing all of it again."""
    with tracker.explained():
        known = {(line.version, line.action) for line in _history(tracker, version.name)}
        if (version.version, "recalibrated") not in known:
            said = by, utc(now), reason, version.digest
            record(tracker, Decision(version.name, version.version, "recalibrated", *said))
        tracker.make_candidate(version)


def rollback(
    monitor: MonitorConfig, mlflow: MlflowConfig, *, by: str, now: float, reason: str | None = None
) -> Decision:
    """Move the champion's alias back to the version that was champion before.

    Raises
    ------
    ReviewError
        There was none before, or it was rejected since.
    ArtifactError
        There is no champion, or the files of the version before do not verify.
    """
    by, reason = words("--by", by), words("--reason", reason) if reason else ""
    tracker = Tracker(mlflow)
    champion = tracker.resolve(monitor.name, "champion")
    with tracker.explained():
        previous = tracker.tags(champion).get("promoted.previous")
    if not previous:
        raise ReviewError(
            f"version {champion.version} of {champion.name} must have a version before it to roll back to. Got none."
            " Promote another version with `vae-anomaly promote --version`."
        )
    before = tracker.resolve(monitor.name, previous)
    tracker.verify(before)
    with tracker.explained():
        _require_not_rejected(tracker, before)
        return _move(tracker, before, "rolled back", by, reason, _review_of(tracker, before), now)


def history(monitor: MonitorConfig, mlflow: MlflowConfig) -> tuple[Decision, ...]:
    """Everything that was decided of a monitor's model, oldest first.

    Raises
    ------
    ArtifactError
        Nothing was registered yet, or the registry does not answer.
    """
    tracker = Tracker(mlflow)
    name = tracker.resolve(monitor.name, "candidate").name
    with tracker.explained():
        return _history(tracker, name)


def record(tracker: Tracker, decision: Decision, *, card: str | None = None) -> None:
    """Add a line to the history of the decision's model, and to what the registry shows of the version.

    ``card`` is what the description of the version begins with from now on. Within ``tracker.explained()``.
    """
    line = json.dumps({k: v for k, v in asdict(decision).items() if k != "changed"}, sort_keys=True)
    stamp = "".join(c for c in decision.at if c.isdigit() or c == "T")[:21]
    known = len(_lines(tracker, decision.model))
    # what is at one time is in the order of its number, and the digest keeps apart what two write at once
    key = f"history.{stamp}.{known:06}-{hashlib.sha256(line.encode()).hexdigest()[:8]}"
    tracker.client.set_registered_model_tag(decision.model, key, line)
    everything = _history(tracker, decision.model)
    _describe(tracker, decision.model, decision.version, everything, card)
    if decision.previous:
        _describe(tracker, decision.model, decision.previous, everything)


def utc(now: float) -> str:
    """``now``, seconds since 1970, as text to the microsecond."""
    return datetime.fromtimestamp(now, UTC).isoformat(timespec="microseconds")


def _describe(tracker: Tracker, name: str, version: str, decided: Sequence[Decision], card: str | None = None) -> None:
    """The version's description: its model card, or what stood there, and what was decided of it."""
    if card is None:
        card = (tracker.client.get_model_version(name, version).description or "").partition(DECISIONS)[0]
    about, room = "", MOST_DESCRIBED - len(card) - len(DECISIONS)
    for decision in reversed([d for d in decided if version in (d.version, d.previous)]):
        line = f"- {_told(decision, version)}\n"
        if len(about) + len(line) > room:
            break
        about = line + about
    tracker.client.update_model_version(name, version, description=f"{card}{DECISIONS}{about}")


def _told(decision: Decision, version: str) -> str:
    what: str = decision.action
    if decision.version != version:
        what = f"replaced by version {decision.version}, {what}"
    review = f" (review {code(decision.review[:12])})" if decision.review else ""
    why = f": {sentence(decision.reason)}" if decision.reason else ""
    return f"{decision.at[:19]} {what} by {code(decision.by)}{why}{review}"


def _lines(tracker: Tracker, name: str) -> Mapping[str, str]:
    tags = tracker.client.get_registered_model(name).tags
    return {key: tags[key] for key in sorted(tags) if key.startswith("history.")}


def _history(tracker: Tracker, name: str) -> tuple[Decision, ...]:
    return tuple(Decision(**json.loads(line)) for line in _lines(tracker, name).values())


def _decide(
    tracker: Tracker, found: Resolved, action: Action, by: str, reason: str, review: str, now: float
) -> Decision:
    """The line of the history first: it is what promotion asks; the version's tags show the last decision."""
    decision = Decision(found.name, found.version, action, by, utc(now), reason, found.digest, review)
    record(tracker, decision)
    last = {"by": by, "at": decision.at, "reason": reason, "review": review}
    tracker.tag(found, {"decision": action, **{f"decision.{key}": value for key, value in last.items()}})
    return decision


def _move(tracker: Tracker, to: Resolved, action: Action, by: str, reason: str, review: str, now: float) -> Decision:
    """Tags first, then the alias, then the line of the history: whatever is cut short can be done again."""
    alias = tracker.config.registry.aliases.champion
    previous, at = tracker.aliases(to.name).get(alias, ""), utc(now)
    changed = previous != to.version
    done = Decision(to.name, to.version, action, by, at, reason, to.digest, review, previous, changed)
    if not changed:
        return done
    if action == "rolled back":
        left = Resolved(to.name, previous, "", "")
        tracker.tag(left, {"rolled_back.by": by, "rolled_back.at": at, "rolled_back.reason": reason})
    else:
        kept = {"by": by, "at": at, "reason": reason, "previous": previous, "forced": str(action == "forced").lower()}
        tracker.tag(to, {f"promoted.{key}": value for key, value in kept.items()})
    tracker.client.set_registered_model_alias(to.name, alias, to.version)
    record(tracker, done)
    return done


def _is_champion(tracker: Tracker, found: Resolved) -> bool:
    return tracker.aliases(found.name).get(tracker.config.registry.aliases.champion) == found.version


def _require_not_rejected(tracker: Tracker, found: Resolved) -> Decision | None:
    """The last approval of this very detector, None without one; raises :class:`ReviewError` where it was rejected."""
    mine: Sequence[Decision] = [
        line
        for line in _history(tracker, found.name)
        if (line.version, line.digest) == (found.version, found.digest) and line.action in ("approved", "rejected")
    ]
    if mine and mine[-1].action == "rejected":
        raise ReviewError(
            f"version {found.version} of {found.name} must not be rejected. It was, by {mine[-1].by}:"
            f" {mine[-1].reason.rstrip('.')}. Fit a better version, or `vae-anomaly approve --version {found.version}`."
        )
    return mine[-1] if mine else None


def _require_second_person(tracker: Tracker, found: Resolved, by: str) -> None:
    """Raise :class:`ReviewError` unless ``by`` is somebody, and somebody else than who registered the version."""
    fitted_by = tracker.tags(found).get(REGISTERED_BY, "")
    if not fitted_by:
        raise ReviewError(
            f"version {found.version} of {found.name} must say who registered it, for registry.review.second_person is"
            f" set. Got no tag {REGISTERED_BY}. Fit another version, or promote with --force and --reason."
        )
    if not by or _folded(by) == _folded(fitted_by):
        got = f"that of {by}" if by else "none of its present review"
        raise ReviewError(
            f"version {found.version} of {found.name} must have an approval by somebody else than {fitted_by}, who"
            f" registered it. Got {got}. Let another person run `vae-anomaly approve --version {found.version}`."
        )


def _folded(name: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def _review_of(tracker: Tracker, found: Resolved) -> str:
    """The sha256 of the recorded review, unverified; empty without one."""
    return tracker.tags(found).get("review.sha256", "")


def _recorded_review(tracker: Tracker, found: Resolved) -> tuple[str, Mapping[str, object]]:
    """The sha256 of a version's review and what it says; raises :class:`ReviewError` unless it is there, unaltered, and
    of this detector."""
    tags = tracker.tags(found)
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
    return tags["review.sha256"], content


def _require_passed(tracker: Tracker, found: Resolved) -> str:
    """As :func:`_recorded_review`, the sha256 only; raises :class:`ReviewError` also where a gate does not hold."""
    sha256, content = _recorded_review(tracker, found)
    if not content["passed"]:
        gates: Sequence[Mapping[str, object]] = content["gates"]  # type: ignore[assignment]
        failed = ", ".join(str(gate["name"]) for gate in gates if not gate["passed"])
        raise ReviewError(
            f"every gate of version {found.version} of {found.name} must hold. These do not: {failed}. Fit a better"
            " version, or promote with --force and --reason."
        )
    return sha256
