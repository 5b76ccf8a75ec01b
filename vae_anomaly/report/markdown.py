"""The short form of a report or a quarantine notice, for logs, chats and mail: Markdown in which data stays data.

Values from files stand in code spans, sentences are escaped: neither can make a link, a mention, a heading or HTML.
"""

from __future__ import annotations

import re
from itertools import groupby

from vae_anomaly.report.formatting import count, number, p_value, percent, text
from vae_anomaly.report.model import (
    COMBINATION,
    SCORE,
    Answering,
    Contribution,
    FlaggedRecord,
    IncidentNotice,
    Others,
    QuarantineNotice,
    Replacement,
    Report,
    Shift,
)

_MAX_RECORDS, _MAX_LINES, _MAX_TOKENS, _MAX_CHANGED = 10, 20, 64, 3
_SPECIAL = re.compile(r"([\\`*_\[\]|~!{}#]|[<>&:](?=\S)|(?<=[^\W\d])\.(?=\w))")  # figures stay readable unrendered


def to_markdown(report: Report | QuarantineNotice | IncidentNotice | Others | Answering) -> str:
    """``report`` in at most a hundred lines: the verdict, the ten strangest records, what is wrong with the data."""
    match report:
        case QuarantineNotice():
            lines = _notice(report)
        case IncidentNotice():
            lines = _incident(report)
        case Others():
            lines = _section("Told together with", [f"{code(name)}: {sentence(line)}" for name, line in report.lines])
        case Answering():
            lines = _answering(report)
        case _:
            lines = _report(report)
    return "\n".join(lines) + "\n"


def _report(report: Report) -> list[str]:
    return [
        f"# {code(report.monitor)}: {code(report.batch_name)}",
        "",
        f"**{sentence(report.verdict)}**",
        *_section("What has shifted", [_shift(s) for s in report.shifts], _MAX_RECORDS),
        *_strangest(report),
        *_section("Data quality", [f"{code(c.column)}: {sentence(c.warning)}" for c in report.columns if c.warning]),
        *_section("Rows not scored", [f"{code(reason)}: {n:,}" for reason, n in sorted(report.unscorable.items())]),
        *_section("Notes", [sentence(n) for n in report.notes]),
        *_section("Provenance", [*_promise(report), *(f"{sentence(k)}: {code(v)}" for k, v in _made_by(report))]),
    ]


def _notice(notice: QuarantineNotice) -> list[str]:
    rows = ", ".join(f"{r:,}" for r in notice.first_rows[:5])
    total = "" if notice.count is None else f" ({notice.count:,} in all)"
    facts = {
        "Rule": code(notice.rule),
        "Column": code(notice.column) if notice.column else "",
        "First rows": rows and rows + total,
        "What to do": sentence(notice.remedy),
        "Batch": code(notice.batch_id),
    }
    return [
        f"# {code(notice.monitor)}: {code(notice.batch_name)} quarantined",
        "",
        f"**{sentence(notice.problem)}**",
        "",
        *(f"- {name}: {fact}" for name, fact in facts.items() if fact),
    ]


def _incident(notice: IncidentNotice) -> list[str]:
    return [
        f"# {code(notice.monitor)}: {code(notice.batch_name)}",
        "",
        f"**{sentence(notice.verdict)}**",
        "",
        f"- What to do: {sentence(notice.remedy)}",
    ]


def _answering(answering: Answering) -> list[str]:
    how = f"`vae-anomaly alerts MONITOR {answering.groups[0][0]} --as acknowledged`, or `--as resolved`"
    return [
        *_section("Group", [f"{code(id)}: {sentence(cause)}" for id, cause in answering.groups]),
        "",
        f"Whoever looks at it says so: {how}.",
    ]


def _strangest(report: Report) -> list[str]:
    """The strangest records; of a batch that has drifted a few, for the shift is what is to be told."""
    title, most = ("Strangest records, muted", 3) if report.drifted else ("Strangest records", _MAX_RECORDS)
    return _section(title, [_record(r, report.score_unit) for r in report.records], most, "1.")


def _shift(shift: Shift) -> str:
    what = "the scores" if shift.column == SCORE else code(shift.column, 60)
    where = f"{sentence(shift.now)}, in normal records {sentence(shift.normal)}"
    return f"{what}: {where} (distance {number(shift.distance)}, p {p_value(shift.p_value, relation=True)})"


def _record(record: FlaggedRecord, unit: str) -> str:
    label = f", labelled {code(record.label)}" if record.label else ""
    label += f", muted by {code(record.muted, 20)}" if record.muted else ""
    label += f", detector of {code(record.detector, 40)}" if record.detector else ""
    why = "; ".join(_contribution(c, record) for c in record.contributions[:3])
    head = f"{code(record.record_id)}{label}: score {number(record.score)} {sentence(unit)}".rstrip()
    said = f"{head}, p {p_value(record.p_value, relation=True)}{f'. {why}' if why else ''}"
    return said + _shown(record) + _change(record)


def _change(record: FlaggedRecord) -> str:
    """What would make it normal, in a sentence."""
    change = record.counterfactual
    if change is None:
        return ""
    limit = f", threshold {number(record.threshold)}" if record.threshold is not None else ""
    measured = f"(score {number(change.score)}{limit})"
    if record.kind == "image":
        return (
            f". The expected image is normal {measured}"
            if change.replacements
            else ". Nor is the expected image normal"
        )
    if not change.replacements:
        return f". No change of up to {change.most:,} {record.kind}s makes it normal"
    parts = " and ".join(_replaced(one, record) for one in change.replacements[:_MAX_CHANGED])
    return f". {parts} would make it normal {measured}"


def _replaced(one: Replacement, record: FlaggedRecord) -> str:
    values = " → ".join(code(value, 60) if value else "missing" for value in (one.found, one.normal))
    return values if record.kind == "token" else f"{code(one.part, 60)} {values}"


def _shown(record: FlaggedRecord) -> str:
    """The line with its most surprising tokens in bold; a sentence for a picture."""
    picture = ". Its pictures are in the HTML report" if record.picture else ""
    top, tokens = set(record.surprising), list(enumerate(record.tokens[:_MAX_TOKENS]))
    runs = [(bold, " ".join(text(t.text, 40) for _, t in run)) for bold, run in groupby(tokens, lambda t: t[0] in top)]
    line = " ".join(f"**{code(words, 999)}**" if bold else code(words, 999) for bold, words in runs)
    more = " …" if len(record.tokens) > _MAX_TOKENS else ""
    return f"{picture}{f'. Line: {line}{more}' if line else ''}"


def _contribution(part: Contribution, record: FlaggedRecord) -> str:
    if part.column == COMBINATION:
        whole = "the record as a whole" if record.picture or record.tokens else "an unusual combination of values"
        return f"{whole} ({number(part.nats)} nats)"
    far = "" if part.deviation is None else f"{number(part.deviation, signed=True)} sd, "
    note = f", {sentence(part.note)}" if part.note else ""
    expected = f", expected {code(part.expected, 60)}" if part.expected else ""
    found = f" is {code(part.found, 60)}" if part.found and not record.tokens else ""
    return f"{code(part.column, 60)}{found}{expected}{note} ({far}{number(part.nats)} nats)"


def _promise(report: Report) -> list[str]:
    name = f"Threshold {number(report.threshold_value)} {sentence(report.score_unit)} ({sentence(report.score_name)})"
    if report.discovery_rate is not None:
        share = percent(report.discovery_rate)
        if not report.alpha:
            return [f"No threshold for this batch: more than {share} of what it flags could be false alarms"]
        return [
            f"{name}, set on {report.calibration_records:,} calibration records for this batch, so that on average at "
            f"most {share} of what is flagged are false alarms"
        ]
    if report.detectors > 1:
        return [
            f"{report.detectors:,} detectors ({sentence(report.score_name)}), each with a threshold for"
            f" {percent(report.alpha)} false alarms; {count(report.expected_flagged)} expected in this batch"
        ]
    low, high = (percent(a) for a in report.alpha_range)
    set_on = f"extrapolated from the {report.extrapolated:,} highest of" if report.extrapolated else "set on"
    unsure = ", not guaranteed" if report.extrapolated else ""
    return [
        f"{name}, {set_on} {report.calibration_records:,} calibration records for {percent(report.alpha)} false alarms "
        f"(95 % range {low} to {high}{unsure}); {count(report.expected_flagged)} expected in this batch"
    ]


def _made_by(report: Report) -> list[tuple[str, str]]:
    return [
        ("batch", report.batch_id),
        ("batch sha256", report.batch_sha256),
        *((k.replace("_", " "), v) for k, v in sorted(report.provenance.items())),
    ]


def _section(title: str, lines: list[str], most: int = _MAX_LINES, mark: str = "-") -> list[str]:
    more = [f"- and {len(lines) - most:,} more"] if len(lines) > most else []
    return ["", f"## {title}", "", *(f"{mark} {line}" for line in lines[:most]), *more] if lines else []


def code(value: str, limit: int = 120) -> str:
    """``value`` as a code span, which no renderer looks into; a backtick cannot end it."""
    inside = text(value, limit).replace("`", "\N{MODIFIER LETTER GRAVE ACCENT}").strip()
    return f"`{inside or ' '}`"


def sentence(value: str, limit: int = 300) -> str:
    """``value`` as text in which no character has a meaning for a renderer."""
    return _SPECIAL.sub(r"\\\1", text(value, limit)).replace("@", "(at)")
