"""The model card of a registered version: its review in Markdown, short enough for the registry's description."""

from __future__ import annotations

from vae_anomaly.report.formatting import number, percent
from vae_anomaly.report.markdown import code, sentence
from vae_anomaly.report.review import Alerts, Review

MOST = 4000  # characters
WEAKEST, BATCHES = 8, 5
PURPOSE = (
    "It tells which records are rare among the normal ones that it learned from. A flag does not say that a record is"
    " wrong, and a promise about false alarms holds for normal records like those of its training."
)
FACTS = ("data digest", "config digest", "schema digest", "threshold", "normal_records", "weights_of", "registered by")


def to_card(review: Review) -> str:
    """``review`` as a model card of at most ``MOST`` characters: where it would be longer, sections are left out, those
    before the provenance first."""
    head, *rest, provenance = _sections(review)
    while rest and len("\n\n".join([head, *rest, provenance])) > MOST:
        rest.pop()
    return "\n\n".join([head, *rest, provenance])[: MOST - 1].rstrip() + "\n"


def _sections(review: Review) -> list[str]:
    gates = [
        f"| {sentence(g.name)} | {g.value_text} | {g.limit_text} | {'yes' if g.passed else '**no**'} |"
        for g in review.gates
    ]
    weakest = sorted(review.recall.items(), key=lambda item: (item[1], item[0]))[:WEAKEST]
    said = [review.verdict, *review.warnings]
    sections = [
        f"# {code(review.model)}, version {sentence(review.version)}\n\n{PURPOSE}\n\n{_state(review)}",
        _table("Gates", "| gate | value | limit | holds |\n|---|---:|---:|---|", gates),
        _list("What to know", [sentence(s, 600) for s in said if s]),
        _batches(review),
        _table(
            "What it notices least, of corrupted columns",
            "| column or region | found |\n|---|---:|",
            [f"| {_cell(name)} | {percent(share)} |" for name, share in weakest],
        ),
        _list("Provenance", [f"{name}: {code(value, 80)}" for name, value in _facts(review)]),
    ]
    return [section for section in sections if section]


def _state(review: Review) -> str:
    against = f", beside version {sentence(review.champion['version'])}" if review.champion else ""
    held = sum(gate.passed for gate in review.gates)
    verdict = "every gate holds" if review.passed else f"{held} of {len(review.gates)} gates hold"
    return f"**Reviewed at {code(review.reviewed_at[:19])} UTC{against}: {verdict}.**"


def _batches(review: Review) -> str:
    if review.replay is None:
        return ""
    rows = [
        f"| {_cell(b.name)} | {b.rows:,} | {_alerts(b.candidate)} | {_alerts(b.champion)} |"
        for b in review.replay.batches[:BATCHES]
    ]
    heads = "| batch | records | alerts (by chance) | champion's |\n|---|---:|---:|---:|"
    return _table("On the last batches", heads, rows)


def _alerts(alerts: Alerts | None) -> str:
    return "" if alerts is None else f"{alerts.flagged:,} ({alerts.low:,} to {alerts.high:,})"


def _facts(review: Review) -> list[tuple[str, str]]:
    threshold = next((m.candidate for m in review.measures if m.name == "threshold, nats"), None)
    found = [(name.replace("_", " "), review.facts[name]) for name in FACTS if review.facts.get(name)]
    nats = [] if threshold is None else [("threshold, nats", number(threshold))]
    return [("model digest", review.digest), ("review sha256", review.sha256), *nats, *found]


def _cell(name: str) -> str:
    """A name in a table, where a code span would not keep a bar from ending the cell."""
    return code(name, 60).replace("|", "\N{BROKEN BAR}")


def _table(title: str, heads: str, rows: list[str]) -> str:
    return "\n".join([f"## {title}", "", heads, *rows]) if rows else ""


def _list(title: str, lines: list[str]) -> str:
    return "\n".join([f"## {title}", "", *(f"- {line}" for line in lines)]) if lines else ""
