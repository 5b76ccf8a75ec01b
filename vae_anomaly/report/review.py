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

from vae_anomaly.report import formatting

MAX_COLUMNS = 200


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
class Review:
    """What a reviewer has to know of a version, and whether every gate holds.

    Parameters
    ----------
    model, version, digest : the registered version and its detector's sha256.
    champion : version and digest of the champion that it was compared with, empty without one.
    verdict : what the fit said of itself.
    measures : the candidate beside the champion; ``agreement`` and ``rank_correlation`` are of both together.
    recall : share of corrupted records that is flagged, by column or region.
    facts : where it comes from.
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
        content["gates"] = [{**asdict(g), "passed": g.passed} for g in self.gates]
        return {"format": 1, "passed": self.passed, **content}

    @property
    def sha256(self) -> str:
        """What names this review."""
        return hashlib.sha256(self.to_json()).hexdigest()

    def to_json(self) -> bytes:
        """The review's canonical bytes."""
        text = json.dumps(self.to_dict(), sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
        return f"{text}\n".encode()


def shown(value: float, unit: str) -> str:
    """``value`` in its unit."""
    if unit == "share":
        return formatting.percent(value).replace("-", "−")
    return f"{value:,.0f}" if unit == "count" else formatting.number(value)


def to_html(review: Review) -> str:
    """``review`` as one self-contained page, the same text for the same review."""
    from vae_anomaly.report.html import environment

    held = sum(g.passed for g in review.gates)
    weakest = sorted(review.recall.items(), key=lambda item: (item[1], item[0]))
    return environment().get_template("review.html").render(
        r=review,
        held=held,
        columns=[(name, value, f"{100 * value:.2f}") for name, value in weakest[:MAX_COLUMNS]],
        more_columns=max(len(weakest) - MAX_COLUMNS, 0),
        facts=sorted(review.facts.items()),
    )  # fmt: skip
