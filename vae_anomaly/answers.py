"""How each group of alerts stands: derived from what came, what people answered, and the day; nothing of it is stored.

Of a group, let the last answer be the last thing that somebody said of it, and news what came after the last alert that
there was then (all of it, where nobody has said anything). On a day the group is

============ ======================================================================================================
acknowledged where the last answer is an acknowledgement that has not ended
resolved     else, where there is no news and the last answer says so, or where all news are refusals of files that
             have been mended since: that name, or that content, was scored later
expired      else, where there is no news, or none of the last ``expire_days`` days but such refusals
open         else
============ ======================================================================================================
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Literal, NamedTuple, get_args

from vae_anomaly.errors import ConfigError, suggestion, words
from vae_anomaly.registry import lookup
from vae_anomaly.report.groups import group_id, in_words
from vae_anomaly.report.overview import TIME, GroupLine
from vae_anomaly.store.answers import Answer, Verdict, add, entries
from vae_anomaly.store.commits import Ledger, Written, cause_of, moment
from vae_anomaly.store.records import Attempts, Commit, Quarantine
from vae_anomaly.workspace import Workspace

AlertState = Literal["open", "acknowledged", "resolved", "expired"]
ACKNOWLEDGED_DAYS = 7


class Window(NamedTuple):
    """The last ``days`` days up to ``today``, in UTC."""

    today: date
    days: int

    @classmethod
    def at(cls, seconds: float, days: int) -> Window:
        """That of a moment in seconds since 1970."""
        return cls(datetime.fromtimestamp(seconds, UTC).date(), days)

    def covers(self, time: datetime) -> bool:
        """Whether a time in UTC is on one of these days, or later."""
        return time.date() > self.today - timedelta(self.days)

    def of(self, written: Sequence[Written]) -> Sequence[Written]:
        """Those of the records, in the order of their times, that were written then."""
        first = bisect_left(written, True, key=lambda one: self.covers(moment(one.at)))
        return written[first:]


@dataclass(frozen=True)
class Came:
    """An alert of a group: when its record was written, of which file, with which content (an incident: its id), and
    whether it is a refusal of a file that was mended since."""

    at: datetime
    name: str
    content: str
    mended: bool = False


@dataclass(frozen=True)
class Group:
    """Alerts with one ``cause``: those that came, and what was answered, both in the order of their times."""

    cause: str
    came: tuple[Came, ...] = ()
    said: tuple[Answer, ...] = ()

    @property
    def id(self) -> str:
        """Names the group to people."""
        return group_id(self.cause)

    @property
    def last(self) -> Answer | None:
        """The last answer."""
        return self.said[-1] if self.said else None

    @property
    def shown(self) -> tuple[Came, ...]:
        """What came since the group was resolved last, or all of it where nothing has."""
        over = max((answer.last_seen for answer in self.said if answer.verdict == "resolved"), default=None)
        return tuple(one for one in self.came if over is None or one.at > over) or self.came

    @property
    def batches(self) -> int:
        """How many contents these are."""
        return len({one.content for one in self.shown})

    def state(self, window: Window) -> AlertState:
        """How it stands on the window's last day, as the module says; the window is that of expiry."""
        last = self.last
        if last and last.holds(window.today):
            return "acknowledged"
        news = [one for one in self.came if not last or one.at > last.last_seen]
        alive = [one for one in news if not one.mended]
        if (news and not alive) or (not news and last and last.verdict == "resolved"):
            return "resolved"
        return "open" if any(window.covers(one.at) for one in alive) else "expired"

    def line(self, window: Window) -> GroupLine:
        """The group in a line, as it stands on the window's last day."""
        came, said = self.shown, self.last
        line = GroupLine(self.id, in_words(self.cause), self.state(window), self.batches)
        if came:
            first, last = came[0], came[-1]
            since, at = (one.at.strftime(TIME) for one in (first, last))
            line = replace(line, first=first.name, since=since, last=last.name, at=at)
        return replace(line, by=said.by, until=said.until, note=said.note) if said else line


def groups(ledger: Ledger, written: Sequence[Written]) -> list[Group]:
    """The groups of these records (:meth:`Ledger.causes`), which are read, and of all answers; the newest first.

    Raises
    ------
    StoreError
        A record or an answer is broken.
    """
    came: dict[str, list[Came]] = defaultdict(list)
    said: dict[str, list[Answer]] = defaultdict(list)
    for cause, one in _came(ledger, written):
        came[cause].append(one)
    for answer in entries(ledger.store):
        said[answer.cause].append(answer)
    found = [Group(cause, tuple(came[cause]), tuple(said[cause])) for cause in came.keys() | said.keys()]
    return sorted(found, key=_newest, reverse=True)


def _newest(group: Group) -> tuple[datetime, str]:
    return max([*(one.at for one in group.came), *(one.last_seen for one in group.said)]), group.cause


def _came(ledger: Ledger, written: Sequence[Written]) -> Iterator[tuple[str, Came]]:
    read = [(moment(one.at), record) for one in written if (record := ledger.read(one))]
    scored: dict[str, datetime] = {}  # names and contents, and when they were scored last
    for at, record in read:
        if isinstance(record, Commit):
            scored[record.name] = scored[record.sha256] = at
    for at, record in read:
        if isinstance(record, Attempts) or (isinstance(record, Commit) and not record.alert):
            continue
        if isinstance(record, Quarantine):
            mended = any(scored.get(key, at) > at for key in (record.name, record.sha256))
            yield cause_of(record), Came(at, record.name, record.sha256, mended)
        else:
            content = record.sha256 if isinstance(record, Commit) else record.batch_id
            yield cause_of(record), Came(at, record.name, content)


@dataclass(frozen=True)
class Reply:
    """What somebody says of the group with this id; ``until`` is the last day of an acknowledgement, by default
    ``ACKNOWLEDGED_DAYS`` from then on."""

    group: str
    verdict: str
    by: str
    note: str = ""
    until: date | None = None


def answer(ws: Workspace, reply: Reply, now: datetime) -> tuple[Group, Answer]:
    """Write down ``reply`` at the time ``now`` in UTC; the group as it was, and the entry.

    Raises
    ------
    ConfigError
        There is no such group, or no such word, or the day has passed.
    """
    until = _last_day(reply, now.date())
    by, note = words("--by", reply.by), words("--note", reply.note) if reply.note else ""
    ledger = Ledger(ws.store.existing().prepare(ws.monitor.name))
    found = {group.id: group for group in groups(ledger, ledger.causes(ledger.written()))}
    if reply.group not in found:
        raise ConfigError(
            f"GROUP must be the id of a group of alerts. Got {reply.group!r:.40}.{suggestion(reply.group, found)}"
            " `vae-anomaly alerts MONITOR --all` lists them."
        )
    group = found[reply.group]
    seen, _ = _newest(group)
    # the last word stands, though the clock has gone back or stands still since the one before it
    at = max(now, group.last.said_at + timedelta(microseconds=1)) if group.last else now
    times = {"seen": seen.isoformat(timespec="microseconds"), "at": at.isoformat(timespec="microseconds")}
    entry = Answer(group.cause, reply.verdict, until, by, note, **times)
    add(ledger.store, entry)
    return group, entry


def _last_day(reply: Reply, today: date) -> str:
    """The last day of the acknowledgement in ISO 8601, empty where there is none."""
    lookup("--as", dict.fromkeys(get_args(Verdict)), reply.verdict)
    if reply.verdict == "resolved":
        if reply.until:
            raise ConfigError("--until must not be given with --as resolved, which has no end. Got it.")
        return ""
    until = reply.until or today + timedelta(ACKNOWLEDGED_DAYS)
    if until < today:
        raise ConfigError(f"--until must be a day from today, {today.isoformat()}, on. Got {until.isoformat()}.")
    return until.isoformat()
