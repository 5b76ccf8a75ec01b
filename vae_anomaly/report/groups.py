"""How a group of alerts with one cause is named to people: a short id to copy, and the cause in words.

The cause is the text that alerts are told together by (``Report.group``, the rule of a refusal, or one incident).
"""

from __future__ import annotations

import hashlib

from vae_anomaly.report.model import INCIDENT_KINDS

_WORDS = {
    "usual": "flagged records",
    "quiet": "a warning on the data",
    "more": "more flags than chance",
    "far_more": "far more flags than chance",
    "fewer": "fewer flags than chance",
    "unscored": "no record could be scored",
    "empty": "no records",
    "quarantined": "refused files",
}


def group_id(cause: str) -> str:
    """The id of the group with this cause: the same in each message, page and list."""
    return f"g-{hashlib.sha256(cause.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


def in_words(cause: str) -> str:
    """The cause as people read it; one that is not known stays as it is."""
    if cause == "drift":
        return "the batch as a whole has changed"
    if (kind := cause.rpartition("-")[0]) in INCIDENT_KINDS:
        return INCIDENT_KINDS[kind].lower()
    first, _, rest = cause.partition(" ")
    return f"{_WORDS[first]}{f': {rest}' if rest else ''}" if first in _WORDS else cause
