"""Which alerts people are told together, and which wait.

A group is what has one cause, and never one record (:attr:`~vae_anomaly.report.model.Report.group`). To people it is
told as one message, and again only when it has cooled down, with all that came meanwhile. So many groups at a time
that nobody reads them are one message. Files and logs get everything at once.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime

from vae_anomaly.store.commits import PendingAlert

PEOPLE = ("webhook", "slack", "email")  # sinks that interrupt somebody
MOST = 5  # messages of a run to a sink; what is more is one


def messages(due: Sequence[PendingAlert], told: Collection[str]) -> list[list[PendingAlert]]:
    """What is to be told a person now, one list for each message, of the alerts that are ``due``.

    Groups that were ``told`` and have not cooled down wait. The last alert of a message is told in full.
    """
    groups: dict[str, list[PendingAlert]] = {}
    for alert in due:
        if alert.group not in told:
            groups.setdefault(alert.group, []).append(alert)
    found = list(groups.values())
    if len(found) <= MOST:
        return found
    return [*found[: MOST - 1], [alert for group in found[MOST - 1 :] for alert in group]]


def is_quiet(hours: Sequence[int] | None, now: datetime) -> bool:
    """Whether nobody is to be told ``now``: from the first hour of the day on, and until the second one."""
    if hours is None:
        return False
    first, last = hours
    return first <= now.hour < last if first < last else now.hour >= first or now.hour < last
