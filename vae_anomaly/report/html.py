"""A report as one HTML page: nothing loaded from elsewhere, no script, every value escaped, under 2 MB by its caps.

This module works out what the template shows (bars, axes, words); the template only places it. Data never enters an
attribute, a style or a script, so whatever a record holds, the page has the same elements. The one exception is the
picture of an image: what stands in its ``src`` is base64 that this module wrote, of bytes that begin as a PNG.

The bound: 50 records x (8 contributions x (60 + 3 x 48) characters, 3 neighbours x 8 x 28, 3 changed parts x 3 x 28),
200 columns x (60 + 120); a character is at most 5 bytes once escaped. A record of an image or of a line shows 4
contributions instead, so that its pictures and tokens, 290 kB for the whole page, add less than that. The worst case,
1.9 MB, is a test.
"""

from __future__ import annotations

import base64
import math
import struct
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from vae_anomaly.report import formatting
from vae_anomaly.report.formatting import text
from vae_anomaly.report.groups import group_id, in_words
from vae_anomaly.report.model import (
    COMBINATION,
    MAX_PNG,
    SCORE,
    FlaggedRecord,
    LatentMap,
    Picture,
    Report,
    ScoreHistogram,
)

_MAX_RECORDS, _MAX_PARTS, _MAX_NEIGHBOURS, _MAX_COLUMNS, _MAX_LINES, _OPEN_CARDS, _OPEN_SHIFTS = 50, 8, 3, 200, 30, 3, 8
_MAX_PARTS_BESIDE, _MAX_SHOWN = 4, 290_000  # beside a picture or a line; bytes of pictures and lines on the page
_MAX_SIDE, _DRAWN = 1024, 168  # pixels on the longer side of a PNG, and of a picture on the page
_PNG_HEAD, _SMALL = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", f"{MAX_PNG // 1000} kB"
_MAX_TOKENS, _MAX_TOKEN, _MAX_NOTED, _TOKEN_BYTES = 200, 40, 4, 96
_MAX_CHANGED, _MAX_CLOUD, _SIDE = 3, 400, 1000  # parts of a change; points of the map, and its size
_SHADES = (1, 2, 3, 4, 6, 8, 12)  # nats at which a token's shade changes
_SHARES = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)

HEADLINES = {
    "quiet": ("Nothing flagged", ""),
    "usual": (
        "As many flags as chance gives",
        "The number alone is no cause for concern; each flagged record can still be a real anomaly.",
    ),
    "more": (
        "More flags than expected",
        "Some of these records are probably real anomalies. Start with the strangest.",
    ),
    "far_more": (
        "Far more flags than chance gives",
        "Most of these records cannot be false alarms. Start with the strangest.",
    ),
    "shifted": (
        "The batch as a whole has shifted",
        "One incident, not many: first suspect a change at the source of the data, such as units, defaults, another"
        " population. Where that is to stay, fit anew.",
    ),
    "mostly": (
        "Most of the batch is flagged",
        "One incident, not many: first suspect a change at the source of the data, such as units, defaults, another"
        " population.",
    ),
    "fewer": (
        "Fewer flags than expected",
        "The records are more ordinary than chance gives. Check that their source is not repeating itself.",
    ),
    "unscored": ("Nothing could be scored", "The reasons are under data quality."),
    "empty": ("The batch is empty", "Its source may have stopped."),
}


def to_html(report: Report) -> str:
    """``report`` as one self-contained page, the same text for the same report."""
    return render(report, environment())


@lru_cache(maxsize=1)
def environment() -> Environment:
    """The templates of this package, escaping everything and refusing unknown names."""
    return with_filters(Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True))


def render(report: Report, templates: Environment) -> str:
    """``report`` through ``templates``."""
    return templates.get_template("report.html").render(_view(report))


def with_filters(templates: Environment) -> Environment:
    """``templates`` with this package's pages and ways to show numbers."""
    templates.loader = PackageLoader("vae_anomaly.report", "templates")
    names = ("number", "count", "fixed", "p_value", "percent", "text")
    templates.filters.update({name: getattr(formatting, name) for name in names})
    return templates


def _view(report: Report) -> dict[str, Any]:
    headline, advice = HEADLINES[report.situation]
    shifts = [(s, bars([s.distance, 1.0])[0]) for s in report.shifts[:_MAX_LINES]]
    said = [c for c in report.columns if c.warning]
    quiet = [c for c in report.columns if not c.warning]
    return {
        "r": report,
        "combination": COMBINATION,
        "headline": headline,
        "advice": advice,
        "strip": _strip(report),
        "chart": _chart(report),
        "map": _map(report.latent) if report.latent and report.records else None,
        "cards": list(_cards(report)),
        "score": SCORE,
        "muted": report.muted[:_MAX_LINES],
        "precision": report.precision.sentence if report.precision else "",
        "shifts": shifts[:_OPEN_SHIFTS],
        "more_shifts": shifts[_OPEN_SHIFTS:],
        "shades": _SHADES,
        "unscorable": sorted(report.unscorable.items(), key=lambda reason: (-reason[1], reason[0]))[:_MAX_LINES],
        "said": said[:_MAX_COLUMNS],
        "quiet": quiet[: _MAX_COLUMNS - len(said[:_MAX_COLUMNS])],
        "more_columns": max(len(report.columns) - _MAX_COLUMNS, 0),
        "group": f"{group_id(report.group)}: {in_words(report.group)}" if report.has_something_to_say else "",
        "provenance": [(k.replace("_", " "), v) for k, v in sorted(report.provenance.items())][:_MAX_LINES],
        "limit": _MAX_LINES,
    }


def _strip(report: Report) -> dict[str, str] | None:
    """The flagged number against its 95 % range, in percent of the strip's width."""
    low, high = report.flagged_range
    end = 1.12 * max(report.flagged, high, 1)
    if not report.scored:
        return None
    return {
        "low": css(low / end),
        "width": css((high - low) / end),
        "expected": css(report.expected_flagged / end),
        "flagged": css(report.flagged / end),
    }


def css(share: float) -> str:
    """A share of a length as a style says it."""
    return f"{100 * min(max(share, 0.0), 1.0):.2f}%" if math.isfinite(share) else "0%"


# ---- the score histogram -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Chart:
    """Step outlines in a box of 1000 x 100, and where the labels go."""

    calibration: str
    batch: str
    threshold: str | None
    right_half: bool
    flagged: list[str]
    compressed: bool
    x_ticks: list[tuple[str, str]]
    y_ticks: list[tuple[str, str]]


def _chart(report: Report) -> _Chart | None:
    """Heights are square roots of shares: one record in a thousand still shows."""
    axis = report.histogram
    known, new = _shares(axis.calibration), _shares(axis.batch)
    top = max([*known, *new], default=0.0)
    if not top:
        return None
    at = axis.position(report.threshold_value)
    places = [p for p in (axis.position(r.score) for r in report.records[:_MAX_RECORDS]) if p is not None]
    return _Chart(
        calibration=_outline(known, top),
        batch=_outline(new, top),
        threshold=None if at is None else css(at),
        right_half=at is not None and at > 0.5,
        flagged=[f"{1000 * p:.1f}" for p in places],
        compressed=axis.edges[-1] - axis.edges[-2] > 1.5 * (axis.edges[1] - axis.edges[0]),
        x_ticks=_x_ticks(axis),
        y_ticks=_y_ticks(top),
    )


def _shares(values: Sequence[float]) -> list[float]:
    clean = [v if v > 0 and math.isfinite(v) else 0.0 for v in values]
    return [v / (sum(clean) or 1.0) for v in clean]


def _outline(shares: list[float], top: float) -> str:
    step = 1000 / len(shares)
    heights = (100 - 96 * (share / top) ** 0.5 for share in shares)
    return "M0,100" + "".join(f"V{y:.2f}H{(i + 1) * step:.1f}" for i, y in enumerate(heights)) + "V100Z"


def _x_ticks(axis: ScoreHistogram) -> list[tuple[str, str]]:
    bins = len(axis.edges) - 1
    marks = sorted({round(bins * k / 4) for k in range(5)})
    return [(css(i / bins), formatting.number(axis.edges[i])) for i in marks]


def _y_ticks(top: float) -> list[tuple[str, str]]:
    """From the top down, no two nearer than a fifth of the height."""
    ticks: list[tuple[str, str]] = []
    last = 1.3
    for share in reversed(_SHARES):
        height = (share / top) ** 0.5
        if height <= 1 and last - height >= 0.22 and height > 0.12:
            ticks.append((css(0.96 * height), formatting.percent(share)))
            last = height
    return ticks


# ---- the map of the latent space -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Map:
    """Dots of normal records, as a path in a box of 1000 x 1000, and each flagged record's number and place, the
    strangest last, so that it is drawn on top; whether one of them is at the edge."""

    normal: int
    cloud: str
    numbered: list[tuple[int, int, int]]
    at_edge: bool


def _map(latent: LatentMap) -> _Map:
    places = [(min(max(x, 0), _SIDE), min(max(y, 0), _SIDE)) for x, y in latent.points]
    flagged = set(latent.flagged)
    cloud = [place for i, place in enumerate(places) if i not in flagged][:_MAX_CLOUD]
    ranked = enumerate(latent.flagged[:_MAX_RECORDS], start=1)
    numbered = [(rank, *places[i]) for rank, i in ranked if 0 <= i < len(places)]
    at_edge = any({x, y} & {0, _SIDE} for _, x, y in numbered)
    return _Map(len(cloud), "".join(f"M{x:d} {y:d}h0" for x, y in cloud), numbered[::-1], at_edge)


# ---- one flagged record --------------------------------------------------------------------------------------------


def _cards(report: Report) -> Iterator[dict[str, Any]]:
    """Pictures and lines are shown while there is room on the page, those of the strangest records first."""
    left = _MAX_SHOWN
    for rank, record in enumerate(report.records[:_MAX_RECORDS], start=1):
        pictures, line = _pictures(record.picture), _line(record)
        size = (pictures.size if pictures else 0) + (line.size if line else 0)
        left_out = ""
        if size > left:
            left_out = "There is no more room on this page for pictures and lines: the JSON report has this record's."
            pictures, line, size = None, None, 0
        elif record.picture and not pictures:
            left_out = f"The pictures of this record are not shown: they are not three PNGs of at most {_SMALL}."
        left -= size
        yield _card(report, rank, record) | {"pictures": pictures, "line": line, "left_out": left_out}


def _card(report: Report, rank: int, record: FlaggedRecord) -> dict[str, Any]:
    table = not (record.picture or record.tokens)
    whole = ("combination of values", "an unusual combination of values")
    parts = record.contributions[: _MAX_PARTS if table else _MAX_PARTS_BESIDE]
    rest = record.total_nats - sum(p.nats for p in parts)
    *drawn, rest_bar = bars([*(p.nats for p in parts), rest])
    named = sum(p.column != COMBINATION for p in parts)
    near = record.neighbours[:_MAX_NEIGHBOURS]
    return {
        "rank": rank,
        "open": rank <= _OPEN_CARDS,
        "table": table,
        "record": record,
        "whole": whole if table else ("record as a whole", "unusual as a whole"),
        "why": list(dict.fromkeys(record.tokens[i].text for i in record.surprising)),
        "far": _far(report, record),
        "rarity": _rarity(report, record),
        "change": record.counterfactual,
        "changed": record.counterfactual.replacements[:_MAX_CHANGED] if record.counterfactual else (),
        "parts": list(zip(parts, drawn, strict=True)),
        "rest": rest if table or abs(rest) > 1e-6 * max(1.0, abs(record.score)) else None,
        "rest_bar": rest_bar,
        "other_columns": max(len(report.columns) - named, 0) if table else 0,
        "neighbours": near,
        "beside": [(part, i) for i, part in enumerate(parts) if any(any(n.values[i : i + 1]) for n in near)],
        "total": record.total_nats,
        "decimals": _decimals([record.score, record.total_nats, *(p.nats for p in parts)]),
    }


@dataclass(frozen=True)
class _Pictures:
    """The PNGs of a picture as they may stand in ``src``, and their size on the page in its pixels."""

    found: str
    expected: str
    heat: str
    wide: int
    high: int
    shrunk: bool

    @property
    def size(self) -> int:
        """Bytes on the page."""
        return len(self.found) + len(self.expected) + len(self.heat)


def _pictures(picture: Picture | None) -> _Pictures | None:
    if picture is None or min(picture.width, picture.height) < 1:
        return None
    found, expected, heat = (_png(shown) for shown in (picture.found, picture.expected, picture.heat))
    if not (found and expected and heat):
        return None
    longest = max(picture.width, picture.height)
    wide, high = (max(_DRAWN * side // longest, 1) for side in (picture.width, picture.height))
    return _Pictures(found, expected, heat, wide, high, shrunk=max(_sides(base64.b64decode(heat))) < longest)


def _png(shown: str) -> str:
    """The base64 of the PNG that ``shown`` holds, written anew; empty for anything else and for too large a one."""
    try:
        data = base64.b64decode(shown, validate=True) if len(shown) <= MAX_PNG else b""
    except ValueError:  # other letters than those of base64
        return ""
    fits = len(data) >= 24 and data.startswith(_PNG_HEAD) and all(0 < side <= _MAX_SIDE for side in _sides(data))
    return base64.b64encode(data).decode("ascii") if fits else ""


def _sides(data: bytes) -> tuple[int, ...]:
    """Width and height that a PNG states."""
    return struct.unpack(">II", data[16:24])


@dataclass(frozen=True)
class _Line:
    """Words with their shade, their nats where shown, and whether there is a note; then each note with its words."""

    words: list[tuple[str, int, float | None, bool]]
    more: int
    notes: list[tuple[str, list[str], int]]

    @property
    def size(self) -> int:
        """At most so many bytes on the page."""
        return sum(_TOKEN_BYTES + 5 * len(word) for word, *_ in self.words)


def _line(record: FlaggedRecord) -> _Line | None:
    tokens, top = record.tokens[:_MAX_TOKENS], set(record.surprising)
    if not tokens:
        return None
    noted: dict[str, dict[str, None]] = {}
    for token in tokens:
        if token.note:
            noted.setdefault(token.note, {})[token.text] = None
    return _Line(
        words=[
            (text(t.text, _MAX_TOKEN), _shade(t.nats), t.nats if i in top else None, bool(t.note))
            for i, t in enumerate(tokens)
        ],
        more=len(record.tokens) - len(tokens),
        notes=[(n, list(w)[:_MAX_NOTED], max(len(w) - _MAX_NOTED, 0)) for n, w in list(noted.items())[:_MAX_NOTED]],
    )


def _shade(nats: float) -> int:
    return 0 if math.isnan(nats) else bisect_right(_SHADES, nats)


def _decimals(values: Sequence[float]) -> int:
    """So many for all of ``values`` that the largest has three significant digits, and at least one."""
    largest = max((abs(v) for v in values if math.isfinite(v)), default=0.0)
    return min(max(1, 2 - math.floor(math.log10(largest))), 8) if largest > 0 else 1


def _far(report: Report, record: FlaggedRecord) -> str:
    """How far beyond the threshold, measured by the distance from the usual score to the threshold."""
    middle = report.histogram.calibration_median()
    threshold = report.threshold_value if record.threshold is None else record.threshold
    spread = threshold - middle if middle is not None else 0.0
    if not spread > 0:  # nor where there are several detectors
        return "beyond the threshold"
    excess = (record.score - threshold) / spread
    return f"{'far' if excess >= 1 else 'clearly' if excess >= 0.25 else 'just'} beyond the threshold"


def _rarity(report: Report, record: FlaggedRecord) -> str:
    n = report.calibration_records if record.calibration_records is None else record.calibration_records
    beaten = round(n + 1 - record.p_value * (n + 1)) if math.isfinite(record.p_value) else 0
    if report.extrapolated or not 0 < beaten <= n:  # the p-value of what is flagged is no place among them
        return ""
    return f"stranger than {'all' if beaten == n else f'{beaten:,} of'} {n:,} normal records"


def bars(values: Sequence[float]) -> list[dict[str, Any]]:
    """Bars from a common zero, in percent of their column, in the order of ``values``."""
    finite = [v if math.isfinite(v) else 0.0 for v in values]
    low, high = min([0.0, *finite]), max([0.0, *finite])
    width = (high - low) or 1.0
    return [
        {"x": f"{100 * (min(v, 0.0) - low) / width:.2f}", "w": f"{100 * abs(v) / width:.2f}", "negative": v < 0}
        for v in finite
    ]
