"""Which alerts people are told together, and which wait.

A group is what has one cause, and never one record (:attr:`~vae_anomaly.report.model.Report.group`). To people it is
told as one message, and again only when it has cooled down, with all that came meanwhile. So many groups at a time
that nobody reads them are one message. Of what somebody looks at they are told no more until that ends; what somebody
has seen and called over they are not told any more, and what comes after that at once. Files and logs get everything at
once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import date, datetime

from vae_anomaly.store.answers import Answer
from vae_anomaly.store.commits import PendingAlert

PEOPLE = ("webhook", "slack", "email")  # sinks that interrupt somebody
MOST = 5  # messages of a run to a sink; what is more is one


def messages(due: Sequence[PendingAlert], told: Collection[str]) -> list[list[PendingAlert]]:
    """What is to be told a person now, one list for each message, of the alerts that are ``due``.

    Groups that were ``told`` and have not cooled down, or that somebody looks at, wait. The last alert of a message is
    told in full.
    """
    groups: dict[str, list[PendingAlert]] = {}
    for alert in due:
        if alert.group not in told:
            groups.setdefault(alert.group, []).append(alert)
    found = list(groups.values())
    if len(found) <= MOST:
        return found
    return [*found[: MOST - 1], [alert for group in found[MOST - 1 :] for alert in group]]


def waiting(told: Mapping[str, float], said: Mapping[str, Answer], today: date) -> set[str]:
    """The groups that wait ``today``: those that were ``told``, by when in seconds since 1970, and have not been
    resolved since, and those that are acknowledged. ``said`` is the last answer to each."""

    def is_over(group: str, at: float) -> bool:
        return group in said and said[group].verdict == "resolved" and at <= said[group].said_at.timestamp()

    looked_at = {group for group, answer in said.items() if answer.holds(today)}
    return {group for group, at in told.items() if not is_over(group, at)} | looked_at


def is_quiet(hours: Sequence[int] | None, now: datetime) -> bool:
    """Whether nobody is to be told ``now``: from the first hour of the day on, and until the second one."""
    if hours is None:
        return False
    first, last = hours
    return first <= now.hour < last if first < last else now.hour >= first or now.hour < last
