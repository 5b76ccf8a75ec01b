"""The overview of a monitor, and of several monitors, as pages like the reports: no script, nothing from elsewhere.

Data never enters an attribute. The exceptions are the addresses of the links: the name of a report, which must be one
that a store gives, and the path to a monitor's overview, whose every special character is spelt out by its maker.
Worst case, as tested: 100 batches, or 200 monitors of 100 batches, with texts as long as they come: under 2 MB.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from vae_anomaly.report import formatting
from vae_anomaly.report.html import css, environment
from vae_anomaly.report.model import SCORE
from vae_anomaly.report.overview import STATES, TONES, BatchLine, Linked, Overview

SITE_MARK = "vae-anomaly overview of monitors"  # in the head of a page: it may be replaced by the next one
MAX_BATCHES, MAX_MONITORS = 100, 200
_SLOTS = 12  # at least so many batches have room in a picture
_PAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,140}\.html")
_ADDRESS = re.compile(r"[A-Za-z0-9._~/%-]+")
_TICKS = [d * 10**power for power in range(10) for d in (1, 2, 5)]
_MOVED, _INCIDENTS, _GROUPS = 3, 10, 20  # columns that are named, incidents, and groups
_MARK = re.compile("[0-9a-f]{64}")


def overview_to_html(overview: Overview, mark: str = "") -> str:
    """``overview`` as one page; ``mark``, a sha256, tells in its head which state of a store it shows."""
    batches = overview.batches[-MAX_BATCHES:]
    page = environment().get_template("overview.html")
    return page.render(
        o=overview,
        mark=mark if _MARK.fullmatch(mark) else "",
        states=STATES,
        score=SCORE,
        chart=_chart(batches),
        sparks=_sparks(batches),
        totals=_Totals.of(batches),
        named=_MOVED,
        incidents=overview.incidents[:_INCIDENTS],
        groups=overview.groups[:_GROUPS],
        more_groups=len(overview.groups[_GROUPS:]),
        rows=[(batch, batch.link if _PAGE.fullmatch(batch.link) else "") for batch in reversed(batches)],
    )


def site_to_html(monitors: Sequence[Linked]) -> str:
    """Several overviews as one page with a link to each."""
    shown = monitors[:MAX_MONITORS]
    return environment().get_template("site.html").render(
        mark=SITE_MARK,
        states=STATES,
        needing=sum(found.tone != "calm" for found, _ in monitors),
        alarms=sum(found.tone == "alarm" for found, _ in monitors),
        latest=sum(found.latest is not None and found.latest.needs_a_look for found, _ in monitors),
        count=len(monitors),
        more=len(monitors) - len(shown),
        rows=[(found, link if _ADDRESS.fullmatch(link) else "", _strip(found)) for found, link in shown],
    )  # fmt: skip


@dataclass(frozen=True)
class _Totals:
    rows: int
    scored: int
    flagged: int
    expected: float
    unread: int

    @classmethod
    def of(cls, batches: Sequence[BatchLine]) -> _Totals:
        read = [batch for batch in batches if batch.was_read]
        expected = math.fsum(batch.expected_flagged for batch in read if math.isfinite(batch.expected_flagged))
        rows, scored, flagged = (sum(getattr(b, name) for b in read) for name in ("rows", "scored", "flagged"))
        return cls(rows, scored, flagged, expected, len(batches) - len(read))


# ---- flagged against expected ----


class _Span(NamedTuple):
    """Batches in a row that one model scored, in percent of the width."""

    width: str
    model: str
    threshold: str


@dataclass(frozen=True)
class _Chart:
    """Outlines in a box of 1000 x 100, in which every batch has a slot of the same width."""

    ranges: str
    means: str
    dots: list[tuple[str, str]]
    shifted: str
    refused: str
    slots: list[tuple[str, str, BatchLine]]
    changes: list[str]
    spans: list[_Span]
    x_ticks: list[tuple[str, str]]
    y_ticks: list[tuple[str, str]]
    compressed: int
    few: bool


def _chart(batches: Sequence[BatchLine]) -> _Chart | None:
    """Counts are drawn evenly up to the usual range and ever more narrowly beyond: one large batch hides no other."""
    slots = _slots(batches)
    step = 1000 / slots
    placed = [(i * step, batch) for i, batch in enumerate(batches)]
    counted = [(x, batch) for x, batch in placed if batch.was_read and batch.scored]
    ranges = [(x, batch.flagged_range) for x, batch in counted if batch.flagged_range]
    if not counted:
        return None
    highs = sorted(high for _, (_, high) in ranges)
    bend = max(highs[len(highs) // 2] if highs else 0, 1)
    top = max([bend, *highs, *(batch.flagged for _, batch in counted)])
    tall, thin = math.asinh(top / bend), 0.56 * step

    def y(value: float) -> float:
        share = math.asinh(max(value, 0.0) / bend) / tall if math.isfinite(value) else 0.0
        return 100 - 92 * min(share, 1.0)

    def inner(x: float) -> float:
        return x + 0.22 * step

    spans = list(_spans(batches))
    return _Chart(
        ranges="".join(_box(inner(x), thin, y(high), y(low)) for x, (low, high) in ranges),
        means="".join(f"M{inner(x):.1f},{y(b.expected_flagged):.2f}h{thin:.1f}" for x, b in counted),
        dots=[
            (tone, "".join(_place(x + step / 2, y(b.flagged)) for x, b in counted if _dot(b) == tone)) for tone in TONES
        ],
        shifted="".join(_box(x, step, 0, 100) for x, b in placed if b.state in ("shifted", "mostly")),
        refused="".join(_box(inner(x), thin, 93, 100) for x, b in placed if not b.was_read),
        slots=[(f"{x:.1f}", f"{step:.1f}", batch) for x, batch in placed],
        changes=[css(at / slots) for at in _starts(spans)[1:]],
        spans=[_Span(css(length / slots), model, threshold) for length, model, threshold in spans],
        x_ticks=_days(batches),
        y_ticks=_counts(y, top),
        compressed=bend if top > 2 * bend else 0,
        few=len(batches) <= 30,
    )


def _slots(batches: Sequence[object]) -> int:
    return max(len(batches), _SLOTS)


def _place(x: float, y: float) -> str:
    return f"M{x:.1f},{y:.2f}h.01"  # with round ends a dot


def _dot(batch: BatchLine) -> str:
    """The tone of the number of flags alone."""
    if batch.state in ("shifted", "mostly", "far_more", "more", "fewer"):
        return batch.tone
    return "calm"


def _box(x: float, width: float, above: float, below: float) -> str:
    below = max(below, above + 1.2)  # a range of one number shows, too
    return f"M{x:.1f},{above:.2f}h{width:.1f}V{below:.2f}h-{width:.1f}z"


def _spans(batches: Sequence[BatchLine]) -> Iterator[tuple[int, str, str]]:
    """Runs of batches by model and threshold; what was not scored belongs to the run before it, or else after it."""
    made, known = [], next(((b.model_version, b.threshold_version) for b in batches if b.was_read), ("", ""))
    for batch in batches:
        known = (batch.model_version, batch.threshold_version) if batch.was_read else known
        made.append(known)
    before = ""
    for (model, threshold), run in groupby(made):
        yield len(list(run)), model, threshold if model == before else ""
        before = model


def _starts(spans: Sequence[tuple[int, str, str]]) -> list[int]:
    return [sum(length for length, *_ in spans[:i]) for i in range(len(spans))]


def _days(batches: Sequence[BatchLine]) -> list[tuple[str, str]]:
    """The days of four batches, evenly over the width, or of the first where there is no room; none twice in a row."""
    last, slots = len(batches) - 1, _slots(batches)
    marks = sorted({round(last * k / 3) for k in range(4)}) if len(batches) >= 0.8 * slots else [0]
    days = [(css((i + 0.5) / slots), batches[i].at[:10]) for i in marks]
    return [tick for i, tick in enumerate(days) if not i or tick[1] != days[i - 1][1]]


def _counts(y: Callable[[float], float], top: int) -> list[tuple[str, str]]:
    """Round numbers from the top down, no two nearer than a seventh of the height."""
    ticks, last = [], 0.0
    for value in reversed([tick for tick in _TICKS if tick <= top]):
        if y(value) - last >= 14 and y(value) <= 86:
            ticks.append((css(1 - y(value) / 100), formatting.number(value) if value >= 10**7 else f"{value:,}"))
            last = y(value)
    return [*ticks, ("0%", "0")]


# ---- small pictures ----


@dataclass(frozen=True)
class _Spark:
    """Bars of one quantity over all batches, in a box of 1000 x 100; what is usual of it, and of the last batch."""

    name: str
    last: str
    low: str
    high: str
    bars: str


def _sparks(batches: Sequence[BatchLine]) -> list[_Spark]:
    found = [
        _spark("Records", [float(b.rows) if b.was_read else math.nan for b in batches], lambda v: f"{v:,.0f}", 1.0)
    ]
    shares = {
        "Flagged": [_share(b.flagged, b.scored) for b in batches],
        "Missing cells": [b.missing for b in batches],
        "Not scored": [_share(b.unscorable, b.rows) for b in batches],
    }
    found += [_spark(name, values, formatting.percent, 0.5) for name, values in shares.items()]
    return [spark for spark in found if spark]


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def _spark(name: str, values: Sequence[float], shown: Callable[[float], str], power: float) -> _Spark | None:
    """Bars whose heights are that power of the values; NaN leaves a gap."""
    known = [v for v in values if math.isfinite(v)]
    if not known:
        return None
    step, top = 1000 / _slots(values), max(*known, 0.0) or 1.0
    places = [(i * step, max(v, 0.0) / top) for i, v in enumerate(values) if math.isfinite(v)]
    bars = "".join(_box(x + 0.12 * step, 0.76 * step, 100 - max(98 * part**power, 2), 100) for x, part in places)
    return _Spark(name, shown(known[-1]), shown(min(known)), shown(max(known)), bars)


def _strip(overview: Overview) -> list[tuple[str, str]]:
    """The states of the batches as blocks, in a box of 1000 x 100: an outline for each tone."""
    batches = overview.batches[-MAX_BATCHES:]
    step = 1000 / _slots(batches)
    start = 1000 - step * len(batches)  # the newest is at the right
    blocks = [(start + (i + 0.1) * step, batch.tone) for i, batch in enumerate(batches)]
    return [
        (tone, "".join(_box(x, 0.8 * step, 100 - high, 100) for x, found in blocks if found == tone))
        for tone, high in zip(TONES, (45, 70, 100), strict=True)
    ]
