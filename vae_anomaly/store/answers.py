"""What people answered to groups of alerts: an append-only ledger.

An entry is a JSON file whose name begins with ``a-`` and the head of the digest that it holds. Nothing is changed or
deleted: the last entry on a group stands.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Literal, get_args

from vae_anomaly.report.groups import group_id
from vae_anomaly.store.files import Store, names
from vae_anomaly.store.records import dump, read_said, undumped

Verdict = Literal["acknowledged", "resolved"]


@dataclass(frozen=True)
class Answer:
    """One entry: what ``by`` says of the group with this ``cause``, as a :data:`Verdict`.

    ``until`` is the last day, in UTC, of an acknowledgement, empty for what is resolved; ``seen`` the time of the
    group's last alert then, and ``at`` the time of the entry, both in UTC, all in ISO 8601. What came after ``seen`` is
    news. Raises :class:`ValueError` for anything else.
    """

    cause: str
    verdict: str
    until: str
    by: str
    note: str
    seen: str
    at: str

    def __post_init__(self) -> None:
        if self.verdict not in get_args(Verdict) or (self.verdict == "resolved") != (not self.until):
            raise ValueError("the verdict must be acknowledged, until a day, or resolved")
        if self.until:
            date.fromisoformat(self.until)
        if None in (self.last_seen.tzinfo, self.said_at.tzinfo):
            raise ValueError("times must be in UTC")

    @property
    def id(self) -> str:
        """Names the entry: the same for the same content."""
        return f"a-{undumped(self.to_json())['digest'][:12]}"

    @property
    def group(self) -> str:
        """The id of the group."""
        return group_id(self.cause)

    @property
    def last_seen(self) -> datetime:
        """``seen`` as a time."""
        return datetime.fromisoformat(self.seen)

    @property
    def said_at(self) -> datetime:
        """``at`` as a time."""
        return datetime.fromisoformat(self.at)

    def holds(self, day: date) -> bool:
        """Whether it is an acknowledgement that has not ended on ``day``."""
        return self.verdict == "acknowledged" and day.isoformat() <= self.until

    def closes(self, came: datetime) -> bool:
        """Whether an alert that came then is over: whoever resolved the group knew of it."""
        return self.verdict == "resolved" and came <= self.last_seen

    def to_json(self) -> bytes:
        """The entry's bytes: equal entries, equal bytes."""
        return dump(asdict(self))


def add(store: Store, answer: Answer) -> None:
    """Publish an entry; once more is no change."""
    store.publish(answer.to_json(), store.file(store.answers, answer.id, ".json"))


def read_answer(path: Path) -> Answer:
    """The entry in ``path``; raises :class:`StoreError` that names the file and what is wrong with it."""
    return read_said(path, Answer, "an answer to a group of alerts")


def entries(store: Store) -> list[Answer]:
    """All entries by time; :class:`StoreError` names one that is broken."""
    found = [read_answer(store.answers / name) for name in names(store.answers) if name.endswith(".json")]
    return sorted(found, key=lambda entry: (entry.said_at, entry.id))
