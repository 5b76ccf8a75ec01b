"""A monitor's last batches beside each other, and several monitors on one page, as values.

As with a report, the JSON form has sorted keys and no NaN, and nothing here knows a file: equal values, equal bytes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from vae_anomaly.report import codec
from vae_anomaly.report.model import Report

Tone = Literal["calm", "look", "alarm"]
TONES: tuple[Tone, ...] = get_args(Tone)
TIME = "%Y-%m-%dT%H:%M:%SZ"  # how times are written here, in UTC


class State(NamedTuple):
    """How a batch stands: a short ``label``, its tone (``look``: somebody should, ``alarm``: before the others), and
    how one and how several of them are told in a sentence."""

    label: str
    tone: Tone
    one: str = ""
    many: str = ""


STATES: Mapping[str, State] = {  # as they are told, worst first
    "shifted": State("shifted as a whole", "alarm", "shifted as a whole"),
    "mostly": State("mostly flagged", "alarm", "mostly flagged"),
    "far_more": State("far more flags", "alarm", "with far more flags than chance"),
    "quarantined": State("quarantined", "alarm", "quarantined"),
    "failed": State("failed, tried again", "alarm", "failed and tried again"),
    "more": State("more flags", "look", "with more flags than chance"),
    "fewer": State("fewer flags", "look", "with fewer flags than chance"),
    "unscored": State("mostly not scored", "look", "mostly not scored"),
    "empty": State("empty", "look", "empty"),
    "warned": State("data warning", "look", "with a warning on its data", "with warnings on their data"),
    "usual": State("usual", "calm"),
    "quiet": State("nothing flagged", "calm"),
    "unjudged": State("no report any more", "calm"),
}


@dataclass(frozen=True)
class BatchLine:
    """One batch in a line.

    Parameters
    ----------
    at : when its record was written, in UTC, as ``2026-01-05T06:00:00Z``.
    state : a key of ``STATES``.
    flagged_range : 95 % range of the false alarms to expect; None where the report is gone or nothing was scored.
    missing : share of the cells that are missing, from 0 to 1; NaN where that is not known.
    moved : columns that have shifted, the farthest first.
    about : what is wrong with its data, or why it was quarantined or failed.
    rule : the rule that it breaks, of a quarantined one.
    link : file name of its HTML report, beside the overview; empty where there is none.
    """

    name: str
    batch_id: str
    at: str
    state: str
    rows: int = 0
    scored: int = 0
    flagged: int = 0
    expected_flagged: float = 0.0
    flagged_range: tuple[int, int] | None = None
    missing: float = math.nan
    moved: tuple[str, ...] = ()
    about: str = ""
    rule: str = ""
    model_version: str = ""
    threshold_version: str = ""
    link: str = ""

    def __post_init__(self) -> None:
        if self.state not in STATES:
            raise ValueError(f"state must be one of {', '.join(STATES)}. Got {self.state!r:.60}.")

    @property
    def tone(self) -> Tone:
        """``calm``, ``look`` or ``alarm``."""
        return STATES[self.state].tone

    @property
    def needs_a_look(self) -> bool:
        """Whether somebody should look at it."""
        return self.tone != "calm"

    @property
    def was_read(self) -> bool:
        """Whether its records were read: it is neither quarantined, nor has it failed."""
        return self.state not in ("quarantined", "failed")

    @property
    def unscorable(self) -> int:
        """Rows that could not be scored."""
        return self.rows - self.scored


@dataclass(frozen=True)
class IncidentLine:
    """What no batch by itself shows: its kind, the file that it is about or that came last before it, and when."""

    kind: str
    name: str
    problem: str
    at: str


@dataclass(frozen=True)
class GroupLine:
    """Alerts with one cause: the cause in words, how it stands, in how many ``batches`` it came since it was resolved
    last, the first and the last of these and when, in UTC, and who answered last, until which day, and why."""

    id: str
    cause: str
    state: str
    batches: int = 0
    first: str = ""
    since: str = ""
    last: str = ""
    at: str = ""
    by: str = ""
    until: str = ""
    note: str = ""


@dataclass(frozen=True)
class Overview:
    """The last batches of a monitor, oldest first, each content once; ``total`` is how many it has had in all. And the
    last incidents, newest first, and the groups of alerts that are open or acknowledged."""

    monitor: str
    batches: tuple[BatchLine, ...] = ()
    total: int = 0
    incidents: tuple[IncidentLine, ...] = ()
    groups: tuple[GroupLine, ...] = ()

    @property
    def latest(self) -> BatchLine | None:
        """The batch that came last."""
        return self.batches[-1] if self.batches else None

    @property
    def tone(self) -> Tone:
        """``alarm`` where the latest batch is one, ``look`` where any batch needs a look, else ``calm``."""
        if self.latest and self.latest.tone == "alarm":
            return "alarm"
        return "look" if self.needing else "calm"

    @property
    def needing(self) -> int:
        """How many of the batches need a look."""
        return sum(batch.needs_a_look for batch in self.batches)

    @property
    def headline(self) -> str:
        """How many of the batches need a look."""
        shown = len(self.batches)
        if not shown:
            return "No batch has come yet"
        of = f"{'the last ' if shown < self.total else ''}{shown:,} batch{'' if shown == 1 else 'es'}"
        number = f"{self.needing:,}" if self.needing else "None"
        return f"{number} of {of} need{'s' if self.needing < 2 else ''} a look"

    @property
    def details(self) -> str:
        """Why these batches need a look; empty where none does."""
        counts = Counter(batch.state for batch in self.batches)
        return ", ".join(
            f"{counts[name]:,} {state.many if counts[name] > 1 and state.many else state.one}"
            for name, state in STATES.items()
            if state.tone != "calm" and counts[name]
        )

    @property
    def verdict(self) -> str:
        """The state of the monitor in a sentence."""
        return f"{self.headline}{f': {self.details}' if self.details else ''}."

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, with the verdict."""
        return {"format": _OVERVIEW, "verdict": self.verdict, **codec.plain(self)}

    def to_json(self) -> str:
        """:meth:`to_dict` as text, the same bytes for the same overview."""
        return codec.to_json(self.to_dict())

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Overview:
        """The overview that :meth:`to_dict` wrote; raises :class:`DataError` that names what does not fit."""
        return codec.from_dict(cls, value, _OVERVIEW)


class Linked(NamedTuple):
    """A monitor's overview, and the address of its page."""

    overview: Overview
    link: str


_OVERVIEW = "vae-anomaly overview 1"


def state_of(report: Report) -> tuple[str, str]:
    """The state of a scored batch, and what is wrong with its data in a sentence (empty where nothing is)."""
    warnings = [f"{c.column}: {c.warning}" for c in report.columns if c.warning]
    said = [*warnings, *report.notes]
    about = f"{said[0]}{f' And {len(said) - 1:,} more.' if len(said) > 1 else ''}" if said else ""
    state = report.situation
    if state in ("usual", "quiet"):
        if is_mostly_unscorable(report.scored, report.rows):
            state = "unscored"
        elif said:
            state = "warned"
    return state, about


def is_mostly_unscorable(scored: int, rows: int) -> bool:
    """Whether more than half of the rows could not be scored."""
    return 2 * scored < rows
