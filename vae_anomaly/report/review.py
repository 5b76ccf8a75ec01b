"""The review of a registered version, as a value: its gates, what they were measured on, and the page that shows it.

The JSON form has sorted keys and no NaN; its sha256 is what the registry keeps, so a page may be lost but not forged.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from vae_anomaly.report import codec, formatting
from vae_anomaly.report.model import COMBINATION, FlaggedRecord, LatentMap

MAX_COLUMNS, MAX_BATCHES, MAX_REASONS = 200, 50, 4


@dataclass(frozen=True)
class Gate:
    """One condition: ``value`` must be ``sense`` (at least or at most) ``limit``; None could not be measured."""

    name: str
    value: float | None
    sense: Literal["at least", "at most"]
    limit: float
    explanation: str
    unit: Literal["count", "share", "number"] = "number"

    @property
    def passed(self) -> bool:
        """Whether the condition holds; what was not measured does not."""
        if self.value is None or math.isnan(self.value):
            return False
        return self.value >= self.limit if self.sense == "at least" else self.value <= self.limit

    @property
    def value_text(self) -> str:
        """The value as a reader sees it."""
        return "not measured" if self.value is None else shown(self.value, self.unit)

    @property
    def limit_text(self) -> str:
        """``at least 50``."""
        return f"{self.sense} {shown(self.limit, self.unit)}"


@dataclass(frozen=True)
class Measure:
    """One quantity of the candidate beside the champion's; None could not be measured."""

    name: str
    candidate: float | None
    champion: float | None
    unit: Literal["count", "share", "number"] = "number"

    @property
    def texts(self) -> tuple[str, str]:
        """Both as a reader sees them."""
        return tuple("" if v is None else shown(v, self.unit) for v in (self.candidate, self.champion))  # type: ignore[return-value]


@dataclass(frozen=True)
class Alerts:
    """How many of ``scored`` records are flagged, and the 95 % range of that number among normal records."""

    scored: int
    flagged: int
    low: int
    high: int


@dataclass(frozen=True)
class Served:
    """What the detector of a ``segment``, empty for the general one, does with the validation records that it scores.

    ``active`` of its ``latent`` dimensions tell records apart; ``recall`` is the median share of corrupted records that
    it flags, None where nothing could be corrupted.
    """

    segment: str
    calibration_records: int
    active: int
    latent: int
    alerts: Alerts
    recall: float | None

    @property
    def texts(self) -> tuple[str, ...]:
        """The figures as a reader sees them."""
        units = f"{self.active:,} of {self.latent:,}" if self.active else "collapsed"
        chance = f"{self.alerts.low:,} to {self.alerts.high:,}"
        recall = "" if self.recall is None else shown(self.recall, "share")
        return (
            f"{self.calibration_records:,}",
            f"{self.alerts.flagged:,} of {self.alerts.scored:,}",
            *(chance, recall, units),
        )


@dataclass(frozen=True)
class ReplayedBatch:
    """A committed batch of ``rows`` records, scored again; ``kept`` records are flagged by both, the share ``alike`` of
    those that both can score is decided alike."""

    batch_id: str
    name: str
    rows: int
    drifted: bool
    candidate: Alerts
    champion: Alerts | None = None
    kept: int = 0
    alike: float | None = None

    @property
    def usual(self) -> bool:
        """Whether the champion finds no more alerts than chance gives, and the batch has not shifted as a whole."""
        return not self.drifted and self.champion is not None and self.champion.flagged <= self.champion.high

    @property
    def unusual(self) -> bool:
        """Whether the champion finds more, record by record: then most of its alerts are no false alarms."""
        return not self.drifted and self.champion is not None and self.champion.flagged > self.champion.high


@dataclass(frozen=True)
class Change:
    """A record of the batch ``batch`` that one version flags, which gives the reasons of ``record``, and the other does
    not; its score and p-value by that one are None where it cannot be scored."""

    batch: str
    record: FlaggedRecord
    other_score: float | None = None
    other_p_value: float | None = None


@dataclass(frozen=True)
class OnFeedback:
    """The records of which people said that they are anomalies or false alarms, decided on again.

    ``candidate`` and ``champion`` (None without one) are how many of the ``anomalies`` and of the ``false_alarms``
    either flags; ``kept`` anomalies are flagged by both. A fit has learned what was said before it.
    """

    anomalies: int
    false_alarms: int
    candidate: tuple[int, int]
    champion: tuple[int, int] | None = None
    kept: int = 0

    @property
    def measures(self) -> tuple[Measure, ...]:
        """What stands side by side; the precision is the share of anomalies among those that are flagged again."""
        ours, theirs = self.candidate, self.champion or (None, None)
        return (
            Measure(f"confirmed anomalies flagged, of {self.anomalies:,}", ours[0], theirs[0], "count"),
            Measure(f"false alarms flagged again, of {self.false_alarms:,}", ours[1], theirs[1], "count"),
            Measure("precision on these records", _precision(*ours), _precision(*theirs), "share"),
        )


def _precision(anomalies: int | None, false_alarms: int | None) -> float | None:
    flagged = (anomalies or 0) + (false_alarms or 0)
    return (anomalies or 0) / flagged if flagged else None


@dataclass(frozen=True)
class Replay:
    """The last committed batches scored again, the newest first; the candidate's values come before the champion's.

    Parameters
    ----------
    left_out : why newer batches, or all earlier ones, were not scored again -> how many.
    rows, compared : records in all, and those that both versions can score.
    usual : the candidate's alerts in all batches that the champion finds usual; None without such a batch.
    appearing, disappearing : alerts of the candidate only, and of the champion only; None without a champion.
        ``appear`` and ``disappear`` are the strangest of them.
    cpu_seconds_per_1000 : processor seconds for a thousand records; no two runs give the same.
    on_feedback : what people said of scored records, in whatever batches; None where they said nothing.
    """

    batches: tuple[ReplayedBatch, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)
    rows: int = 0
    compared: int = 0
    usual: Alerts | None = None
    alike: float | None = None
    rank_correlation: float | None = None
    appearing: int | None = None
    disappearing: int | None = None
    appear: tuple[Change, ...] = ()
    disappear: tuple[Change, ...] = ()
    thresholds: tuple[float, ...] = ()
    cpu_seconds_per_1000: tuple[float, ...] = ()
    on_feedback: OnFeedback | None = None

    @property
    def measures(self) -> tuple[Measure, ...]:
        """What stands side by side."""
        champions = [b.champion.flagged for b in self.batches if b.champion]
        return (
            Measure(
                "alerts", sum(b.candidate.flagged for b in self.batches), sum(champions) if champions else None, "count"
            ),
            _measure("threshold, nats", self.thresholds),
            _measure("CPU seconds per 1,000 records", self.cpu_seconds_per_1000),
        )


def _measure(name: str, values: tuple[float, ...]) -> Measure:
    candidate, champion = (values[i] if i < len(values) else None for i in range(2))
    return Measure(name, candidate, champion)


@dataclass(frozen=True)
class Review:
    """What a reviewer has to know of a version, and whether every gate holds.

    Parameters
    ----------
    model, version, digest : the registered version and its detector's sha256.
    champion : version and digest of the champion that it was compared with, empty without one.
    verdict : what the fit said of itself.
    measures : the candidate beside the champion; ``agreement`` and ``rank_correlation`` are of both together.
    recall : share of corrupted records that is flagged, by column or region; ``champion_recall`` by the champion.
    served : each detector of a version that has one for each of some segments, by itself.
    latent, champion_latent : the validation records in the latent space of either.
    replay : committed batches scored again; None where none was asked for.
    facts, champion_facts : where either comes from.
    page : the HTML page, where it was written; no part of the review itself.
    """

    monitor: str
    model: str
    version: str
    digest: str
    reviewed_at: str
    gates: tuple[Gate, ...]
    warnings: tuple[str, ...] = ()
    verdict: str = ""
    champion: Mapping[str, str] = field(default_factory=dict)
    measures: tuple[Measure, ...] = ()
    agreement: float | None = None
    rank_correlation: float | None = None
    recall: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    champion_recall: Mapping[str, float] = field(default_factory=dict)
    champion_facts: Mapping[str, str] = field(default_factory=dict)
    latent: LatentMap | None = None
    champion_latent: LatentMap | None = None
    replay: Replay | None = None
    served: tuple[Served, ...] = ()
    page: Path | None = None

    @property
    def passed(self) -> bool:
        """Whether every gate holds."""
        return all(gate.passed for gate in self.gates)

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of the gates that do not hold."""
        return tuple(gate.name for gate in self.gates if not gate.passed)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, the verdicts included."""
        content = {key: value for key, value in asdict(self).items() if key != "page"}
        content["replay"] = codec.plain(self.replay)  # a deviation may be infinite, which JSON has no word for
        content["gates"] = [{**asdict(g), "passed": g.passed} for g in self.gates]
        return {"format": 1, "passed": self.passed, **content}

    @property
    def sha256(self) -> str:
        """What names this review."""
        return hashlib.sha256(self.to_json()).hexdigest()

    def to_json(self) -> bytes:
        """The review's canonical bytes; ASCII, for a file's name need not be text."""
        text = json.dumps(self.to_dict(), sort_keys=True, indent=1, allow_nan=False)
        return f"{text}\n".encode()


def shown(value: float, unit: str) -> str:
    """``value`` in its unit."""
    if unit == "share":
        return formatting.percent(value).replace("-", "−")
    return f"{value:,.0f}" if unit == "count" else formatting.number(value)


def to_html(review: Review) -> str:
    """``review`` as one self-contained page, the same text for the same review."""
    from vae_anomaly.report.html import bars, environment

    latent = (("This version", review.latent), ("Champion", review.champion_latent))
    held = sum(g.passed for g in review.gates)
    weakest = sorted(review.recall.items(), key=lambda item: (item[1], item[0]))
    return environment().get_template("review.html").render(
        r=review,
        held=held,
        columns=[(name, value, f"{100 * value:.2f}", review.champion_recall.get(name))
                 for name, value in weakest[:MAX_COLUMNS]],
        more_columns=max(len(weakest) - MAX_COLUMNS, 0),
        facts=[(name, value, review.champion_facts.get(name)) for name, value in sorted(review.facts.items())],
        maps=[(who, of, *of.paths) for who, of in latent if of],
        changes=_changes(review, bars),
        combination=COMBINATION,
        max_batches=MAX_BATCHES,
    )  # fmt: skip


def _changes(review: Review, bars: Any) -> list[dict[str, Any]]:
    """The alerts that appear and those that disappear, as the page shows them."""
    if review.replay is None or review.replay.appearing is None:
        return []
    kinds = (
        ("Alerts that appear", review.replay.appearing, review.replay.appear, "this version", "the champion"),
        ("Alerts that disappear", review.replay.disappearing, review.replay.disappear, "the champion", "this version"),
    )
    shown = []
    for title, number, changes, by, other in kinds:
        cards = [(c, list(zip(parts, bars([p.nats for p in parts]), strict=True)))
                 for c in changes for parts in [c.record.contributions[:MAX_REASONS]]]  # fmt: skip
        shown.append({"title": title, "number": number, "cards": cards, "by": by, "other": other})
    return shown
