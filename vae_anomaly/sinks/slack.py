"""The Slack sink: an alert as a message to an incoming webhook of Slack, or of a chat that takes the same ones."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vae_anomaly.errors import printable
from vae_anomaly.sinks.posting import from_environment, post

if TYPE_CHECKING:
    from vae_anomaly.sinks import Alert

LONGEST = 2900  # characters of a block; Slack takes 3,000
BREAK = "\u200b"  # of no width: what it stands in is no mention, no link and no formatting


def deliver_slack(alert: Alert, *, url_env: str, hosts: Sequence[str] = (), private: bool = False) -> None:
    """POST what ``alert`` says in a few lines to the address in the variable ``url_env``; see :func:`posting.post`."""
    body = json.dumps(message(alert)).encode()
    post(from_environment(url_env), body, {"Content-Type": "application/json"}, hosts=hosts, private=private)


def message(alert: Alert) -> dict[str, object]:
    """Plain text for those that show blocks, and the same for those that read markup, in which it has none."""
    how = [f"to answer: vae-anomaly alerts MONITOR {alert.group} --as acknowledged"] if alert.group else []
    lines = [f"{alert.monitor}: {alert.title}", f"batch {alert.batch_id}", *how, *map(str, alert.report_paths)]
    text = "\n".join(map(printable, lines))[:LONGEST]
    block = {"type": "section", "text": {"type": "plain_text", "text": text, "emoji": False}}
    return {"text": _without_markup(text), "blocks": [block]}


def _without_markup(text: str) -> str:
    for mark, name in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(mark, name)
    text = re.sub(r"(?i)www(?=\.)", rf"\g<0>{BREAK}", text)
    for mark in "@#*_~`[]:!|":
        text = text.replace(mark, mark + BREAK)
    return text
