"""Laws of answers to groups of alerts: a state is what the definition says in any order of events, and only derived."""

from __future__ import annotations

import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from overview_samples import refused_batch, scored_batch, written
from store_samples import MONITOR, put, refusal

from vae_anomaly import pages, scoring
from vae_anomaly.answers import Came, Group, Reply, Window, answer, groups
from vae_anomaly.errors import ConfigError, StoreError
from vae_anomaly.grouping import waiting
from vae_anomaly.report import to_html
from vae_anomaly.report.groups import group_id, in_words
from vae_anomaly.report.overview import Overview
from vae_anomaly.store import commits
from vae_anomaly.store.answers import Answer, add, entries
from vae_anomaly.store.check import check
from vae_anomaly.store.commits import Ledger, PendingAlert, Written
from vae_anomaly.store.files import INDEX, Store
from vae_anomaly.store.records import Incident

START, DAYS = datetime(2026, 1, 5, 6, tzinfo=UTC), 5


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "output").prepare(MONITOR)


def said(verdict: str, seen: datetime, *, until: date | None = None, cause: str = "drift", hours: int = 1) -> Answer:
    at = seen + timedelta(hours=hours)
    return Answer(cause, verdict, until.isoformat() if until else "", "ann", "", seen.isoformat(), at.isoformat())


# ---------------------------------------------------------------- the state

EVENTS = ("alert", "acknowledged", "resolved")
GAPS = (1, 3, 7)  # days before an event; an acknowledgement ends after two, a group expires after DAYS
History = tuple[tuple[str, int], ...]


def histories() -> list[tuple[History, int]]:
    """Every order of up to four events that begins with an alert, with every gap, and how long after it we look."""
    events = tuple(itertools.product(EVENTS, GAPS))
    every = [tail for n in range(4) for tail in itertools.product(events, repeat=n)]
    return [((("alert", 1), *tail), after) for tail in every for after in (0, 2, 4, 9)]


def by_definition(history: History, after: int) -> str:
    """The state after these events, found step by step, as an alert, an answer or a day changes it."""
    state, last, until, day, went_on = "none", 0, 0, 0, False

    def pass_to(day: int) -> None:
        nonlocal state
        if state == "acknowledged" and day > until:
            state = "open" if went_on else "expired"
        if state == "open" and day - last >= DAYS:
            state = "expired"

    for event, gap in history:
        day += gap
        pass_to(day)
        if event == "alert":
            went_on, last = True, day
            state = "acknowledged" if state == "acknowledged" else "open"
        else:
            state, until, went_on = event, day + 2, False
    pass_to(day + after)
    return state


def group_of(history: History) -> tuple[Group, int]:
    """The group that these events make, and the day of the last one."""
    came, answers, day = [], [], 0
    for event, gap in history:
        day += gap
        at = START + timedelta(day)
        if event == "alert":
            came.append(Came(at, f"day-{day}", f"content-{day}"))
        else:
            until = at.date() + timedelta(2) if event == "acknowledged" else None
            answers.append(replace(said(event, came[-1].at, until=until), at=at.isoformat()))
    return Group("drift", tuple(came), tuple(answers)), day


def window(day: int, days: int = DAYS) -> Window:
    return Window((START + timedelta(day)).date(), days)


def differing(state: Callable[[Group, Window], str]) -> int:
    """The number of histories after which ``state`` is not what the definition says."""
    found = ((group_of(history), history, after) for history, after in histories())
    return sum(state(group, window(day + after)) != by_definition(h, after) for (group, day), h, after in found)


def test_the_state_is_that_of_the_definition_after_every_order_of_events() -> None:
    assert differing(Group.state) == 0
    assert {by_definition(*one) for one in histories()} == {"open", "acknowledged", "resolved", "expired"}


def forgetting(group: Group, at: Window) -> str:
    """The last answer stands, whatever came after it."""
    return group.last.verdict if group.last and group.last.verdict == "resolved" else group.state(at)


def endless(group: Group, at: Window) -> str:
    """An acknowledgement has no end."""
    return "acknowledged" if group.last and group.last.verdict == "acknowledged" else group.state(at)


def undying(group: Group, at: Window) -> str:
    """Nothing expires."""
    return group.state(at._replace(days=10_000))


def deaf(group: Group, at: Window) -> str:
    """Nobody's answer counts."""
    return replace(group, said=()).state(at)


def impatient(group: Group, at: Window) -> str:
    """An alert opens what is acknowledged, too."""
    news = [one for one in group.came if group.last and one.at > group.last.last_seen]
    return "open" if news and group.state(at) == "acknowledged" else group.state(at)


@pytest.mark.parametrize("wrong", [forgetting, endless, undying, deaf, impatient])
def test_another_definition_is_caught(wrong: Callable[[Group, Window], str]) -> None:
    assert differing(wrong) > 0


def test_what_the_window_has_decides_what_is_open_or_acknowledged() -> None:
    for history, after in histories():
        group, day = group_of(history)
        at = window(day + after)
        seen = replace(group, came=tuple(one for one in group.came if at.covers(one.at)))
        whole, part = group.state(at), seen.state(at)
        assert part == whole or not {part, whole} & {"open", "acknowledged"}, (history, after)


def test_what_is_shown_came_since_the_group_was_resolved() -> None:
    group, _ = group_of((("alert", 1), ("alert", 1), ("resolved", 1), ("alert", 1), ("acknowledged", 1), ("alert", 1)))
    assert [one.name for one in group.shown] == ["day-4", "day-6"]
    assert group.batches == 2
    over, _ = group_of((("alert", 1), ("alert", 1), ("resolved", 1)))
    assert [one.name for one in over.shown] == ["day-1", "day-2"]


# ---------------------------------------------------------------- what people are told


def test_what_somebody_looks_at_waits_and_what_was_resolved_does_not() -> None:
    told = START.timestamp() + 60
    looked_at = said("acknowledged", START, until=START.date())
    over = said("resolved", START)  # an hour later
    assert waiting({"drift": told}, {}, START.date()) == {"drift"}
    assert waiting({}, {"drift": looked_at}, START.date()) == {"drift"}
    assert waiting({}, {"drift": looked_at}, START.date() + timedelta(1)) == set()
    assert waiting({"drift": told, "usual": told}, {"drift": over}, START.date()) == {"usual"}
    assert waiting({"drift": told + 7200}, {"drift": over}, START.date()) == {
        "drift"
    }  # it has come and been told again


def test_what_is_over_is_what_was_there_when_it_was_resolved() -> None:
    late = timedelta(microseconds=1)
    over, looked_at = said("resolved", START), said("acknowledged", START, until=START.date())
    assert over.closes(START) and not over.closes(START + late) and not looked_at.closes(START)


class Outbox:
    """What a scoring run asks of its ledger when it tells people, in memory."""

    def __init__(self) -> None:
        self.came: dict[str, datetime] = {}
        self.told: dict[str, tuple[float, str]] = {}  # batch id -> when, and under which group
        self.now, self.store, self.outbox = 0.0, self, None

    def lock(self, folder: None) -> AbstractContextManager[None]:
        return nullcontext()

    def written(self) -> Sequence[Written]:
        return []

    def causes(self, written: Sequence[Written]) -> Sequence[Written]:
        return [Written(int(at.timestamp()) * 10**9, id, Path()) for id, at in self.came.items()]

    def is_told(self, alert: PendingAlert) -> bool:
        return alert.record.batch_id in self.told

    def mark_delivered(self, batch: str, sink: str, *, idempotency_key: str, group: str = "") -> None:
        self.told[batch] = self.now, group

    def groups_told(self, sink: str, *, since: float) -> dict[str, float]:
        return {group: at for at, group in sorted(self.told.values()) if at > since}

    def run(self, at: datetime, answers: Sequence[Answer]) -> list[list[str]]:
        """The messages of a run at that time."""
        self.now = at.timestamp()
        alerts = SimpleNamespace(quiet_hours=None, cool_down_hours=24 * 5)
        ws: Any = SimpleNamespace(monitor=SimpleNamespace(alerts=alerts, schedule=SimpleNamespace(timezone="UTC")))
        records: list[Any] = [SimpleNamespace(batch_id=id, group="drift") for id in self.came if id not in self.told]
        due = [PendingAlert(record, "slack", "key") for record in records]
        said = {answer.cause: answer for answer in answers}
        ledger: Any = self
        due = scoring._unknown(ledger, due, said)
        together = scoring._together(ws, ledger, "slack", due, said)
        for alert in chain.from_iterable(together):
            self.mark_delivered(alert.record.batch_id, "slack", idempotency_key="key", group=alert.group)
        return [[alert.record.batch_id for alert in message] for message in together]


def noted_as_told(box: Outbox, batch: str) -> None:
    """What was resolved is noted under its group, as if people had been told of it."""
    box.told[batch] = box.now, "drift"


def broken_laws(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """What goes wrong when a run follows each event, and one comes long after the last of them."""
    wrong: Counter[str] = Counter()
    for history in sorted({history for history, _ in histories()}):
        box, told, before = Outbox(), Counter[str](), ""
        (group, _), day = group_of(history), 0
        for i, (event, gap) in enumerate([*history, ("", 60)]):
            day += gap
            at = START + timedelta(day)
            box.came = {one.name: one.at for one in group.came if one.at <= at}
            answers = [answer for answer in group.said if answer.said_at <= at]
            monkeypatch.setattr(scoring.time, "time", lambda at=at: at.timestamp() + 60)
            messages = box.run(at + timedelta(minutes=1), answers)
            told.update(chain.from_iterable(messages))
            wrong["more than a message"] += len(messages) > 1
            if event:
                state = by_definition(history[: i + 1], 0)
                wrong["told while somebody looks at it"] += bool(messages) and state == "acknowledged"
                wrong["not told at once"] += event == "alert" and before == "resolved" and not messages
            before = event
        over = max((answer.last_seen for answer in group.said if answer.verdict == "resolved"), default=START)
        wrong["twice"] += max(told.values()) > 1
        wrong["lost"] += any(one.name not in told and one.at > over for one in group.came)
    return +wrong


def test_people_are_told_of_each_alert_once_unless_it_was_resolved_and_not_while_somebody_looks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert broken_laws(monkeypatch) == {}


@pytest.mark.parametrize(
    ("of", "name", "wrong", "law"),
    [
        (Answer, "closes", lambda self, came: self.verdict == "resolved", "lost"),
        (Answer, "closes", lambda self, came: came <= self.last_seen, "lost"),  # what is acknowledged is over
        (Answer, "holds", lambda self, day: False, "told while somebody looks at it"),
        (scoring, "waiting", lambda told, said, today: {*told, *waiting(told, said, today)}, "not told at once"),
        (Outbox, "mark_delivered", lambda box, id, sink, **key: noted_as_told(box, id), "not told at once"),
    ],
)
def test_another_rule_of_telling_is_caught(
    monkeypatch: pytest.MonkeyPatch, of: Any, name: str, wrong: Any, law: str
) -> None:
    monkeypatch.setattr(of, name, wrong)
    assert broken_laws(monkeypatch)[law] > 0


# ---------------------------------------------------------------- the groups of a store


def causes(store: Store) -> Sequence[Written]:
    return Ledger(store).causes(Ledger(store).written())


def found(store: Store) -> dict[str, Group]:
    return {group.cause: group for group in groups(Ledger(store), causes(store))}


def test_a_group_is_what_has_one_cause_and_an_incident_is_one_of_its_own(store: Store) -> None:
    quiet = {"flagged": 0, "flagged_range": (0, 5)}
    for day in range(3):
        scored_batch(store, day, f"day-{day}.csv")
    scored_batch(store, 3, "day-3.csv", **quiet)  # type: ignore[arg-type]
    refused_batch(store, 4, "day-4.csv")
    Ledger(store).note(Incident("volume-0123456789ab", MONITOR, "volume", "day-3.csv", "300 records.", "Look."))
    seen = found(store)
    assert seen.keys() == {"quarantined missing_column", "volume-0123456789ab"} | {
        c.group or c.batch_id for c in Ledger(store).commits() if c.alert
    }
    assert [one.name for one in seen["quarantined missing_column"].came] == ["day-4.csv"]
    assert next(iter(found(store))) == "volume-0123456789ab"  # the newest first


@pytest.mark.parametrize("how", ["name", "content", "refused again", "before", "not at all"])
def test_a_refusal_is_over_when_the_file_was_scored_after_it(store: Store, how: str) -> None:
    refused_batch(store, 2, "day.csv")
    if how in ("name", "before"):
        scored_batch(store, 1 if how == "before" else 3, "day.csv", content=b"mended")
    elif how == "content":  # under a contract that has changed
        path = store.quarantine / f"{refusal('day.csv', b'day.csv').batch_id}.json"
        other = refusal("day.csv", b"day.csv", contract="contract-0")
        path.write_bytes(other.to_json())
        written(path, 2)
        scored_batch(store, 3, "day.csv")
    elif how == "refused again":
        scored_batch(store, 3, "day.csv", content=b"mended")
        refused_batch(store, 4, "other.csv")
    group = found(store)["quarantined missing_column"]
    assert group.state(window(5)) == ("resolved" if how in ("name", "content") else "open")


def test_only_the_window_is_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for day in range(30):
        put(store, f"day-{day}.csv", str(day).encode())
        written(store.commits / f"{Ledger(store).find(f'day-{day}.csv').batch_id}.json", day)
    read: list[Path] = []
    real = commits.read_record
    monkeypatch.setattr(commits, "read_record", lambda path, kind: read.append(path) or real(path, kind))
    ledger = Ledger(store)
    assert len(groups(ledger, window(29).of(causes(store)))) == len(read) == DAYS
    read.clear()
    assert len(groups(ledger, causes(store))) == len(read) == 30  # what a page must not do
    assert list(window(99).of(causes(store))) == [] and len(window(29, 99).of(causes(store))) == 30


# ---------------------------------------------------------------- the ledger


def test_what_is_answered_is_read_back_in_order_and_nothing_is_changed(store: Store) -> None:
    first, second = said("acknowledged", START, until=START.date()), said("resolved", START, hours=2)
    for one in (second, first, first):
        add(store, one)
    assert entries(store) == [first, second]
    assert len(os.listdir(store.answers)) == 2
    assert [f for f in check(store) if f.path.startswith("answers")] == []


@pytest.mark.parametrize(
    "changed",
    [
        {"verdict": "ignored"},
        {"verdict": "resolved"},
        {"until": ""},
        {"until": "soon"},
        {"seen": "2026-01-05T06:00:00"},
        {"at": "yesterday"},
    ],
)
def test_an_answer_that_is_none_cannot_be_made(changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must|Invalid"):
        replace(said("acknowledged", START, until=START.date()), **changed)


@pytest.mark.parametrize("how", ["entry", "name", "kind", "stranger"])
def test_what_was_altered_is_found(store: Store, how: str) -> None:
    one = said("resolved", START)
    add(store, one)
    path = store.answers / f"{one.id}.json"
    if how == "entry":
        path.write_bytes(path.read_bytes().replace(b"ann", b"bob"))
    elif how == "name":
        path.rename(store.answers / "a-0123456789ab.json")
    elif how == "kind":
        path.write_bytes(refusal("day.csv", b"1").to_json())
    else:
        (store.answers / "notes.txt").write_text("x")
    assert [f.severity for f in check(store) if f.path.startswith("answers")] == ["error"]
    if how != "stranger":
        with pytest.raises(StoreError, match="must be an answer to a group of alerts"):
            entries(store)


def test_pruning_leaves_answers_and_states(store: Store) -> None:
    scored_batch(store, 0, "day.csv")
    (cause,) = found(store)
    add(store, said("resolved", START, cause=cause))
    before = found(store)
    assert Ledger(store).prune(START.timestamp() + 86_400, [], dry_run=False).pruned
    assert found(store) == before and [f for f in check(store) if f.severity == "error"] == []


def workspace(store: Store) -> Any:
    return SimpleNamespace(store=store, monitor=SimpleNamespace(name=MONITOR))


def test_an_answer_is_of_what_was_there_and_has_an_end(store: Store) -> None:
    scored_batch(store, 0, "day-0.csv")
    (group,) = found(store).values()
    now = START + timedelta(2)
    _, entry = answer(workspace(store), Reply(group.id, "acknowledged", "ann", "on it"), now)
    assert (entry.last_seen, entry.said_at, entry.until) == (group.came[-1].at, now, "2026-01-14")
    assert (entry.group, entry.by, entry.note) == (group.id, "ann", "on it")
    _, entry = answer(workspace(store), Reply(group.id, "resolved", "ann"), now)
    assert entry.until == ""
    assert {e.verdict for e in entries(store)} == {"acknowledged", "resolved"}


@pytest.mark.parametrize("later", [timedelta(0), timedelta(hours=-1)], ids=["stands still", "goes back"])
def test_the_last_answer_stands_whatever_the_clock_does(store: Store, later: timedelta) -> None:
    scored_batch(store, 0, "day-0.csv")
    (group,) = found(store).values()
    now = START + timedelta(2)
    for i in range(6):
        verdict = "resolved" if i % 2 else "acknowledged"
        answer(workspace(store), Reply(group.id, verdict, "ann", str(i)), now + i * later)
        (after,) = found(store).values()
        assert after.last and (after.last.verdict, after.last.note) == (verdict, str(i))


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (Reply("g-00000000", "resolved", "ann"), "GROUP must be the id of a group"),
        (Reply("", "fine", "ann"), "--as"),
        (Reply("", "resolved", "ann", until=date(2027, 1, 1)), "--until must not be given"),
        (Reply("", "acknowledged", "ann", until=date(2026, 1, 4)), "--until must be a day from today"),
        (Reply("", "acknowledged", " "), "--by must be"),
        (Reply("", "acknowledged", "ann", note="a\nb"), "--note must be"),
    ],
)
def test_what_cannot_be_answered_is_refused_and_nothing_is_written(store: Store, reply: Reply, words: str) -> None:
    scored_batch(store, 0, "day-0.csv")
    (group,) = found(store).values()
    with pytest.raises(ConfigError, match=words):
        answer(workspace(store), replace(reply, group=reply.group or group.id), START)
    assert os.listdir(store.answers) == []


# ---------------------------------------------------------------- names


def test_an_id_is_short_and_that_of_its_cause() -> None:
    causes = ["drift", "usual amount", "usual fee", "quarantined empty", "volume-0123456789ab", "usual \ud800"]
    ids = {group_id(cause) for cause in causes}
    assert len(ids) == len(causes) and all(len(id) == 10 and id.isascii() for id in ids)
    assert group_id("drift") == "g-0b7a461f"  # on a page of yesterday, and tomorrow


def test_the_report_of_a_batch_names_its_group(store: Store) -> None:
    commit = scored_batch(store, 0, "day.csv", flagged=17, batch_p_value=1e-8)
    report = pages.read_report(store, commit.batch_id)
    assert f"{group_id('far_more')}: far more flags than chance</bdi>" in to_html(report)
    quiet = scored_batch(store, 1, "quiet.csv", flagged=0, flagged_range=(0, 5))
    assert "group of alerts" not in to_html(pages.read_report(store, quiet.batch_id))


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        ("drift", "the batch as a whole has changed"),
        ("far_more amount", "far more flags than chance: amount"),
        ("usual amount fee wrong_dtype", "flagged records: amount fee wrong_dtype"),
        ("quiet fee", "a warning on the data: fee"),
        ("quarantined missing_column", "refused files: missing_column"),
        ("no_data-0123456789ab", "no batch"),
        ("another cause", "another cause"),
        ("day.csv-0123456789ab", "day.csv-0123456789ab"),  # a commit of an earlier version
    ],
)
def test_a_cause_is_said_in_words(cause: str, words: str) -> None:
    assert in_words(cause) == words


# ---------------------------------------------------------------- the overview


def test_the_overview_shows_what_is_open_first_and_who_has_the_rest(store: Store) -> None:
    for day in range(3):
        refused_batch(store, day, f"day-{day}.csv")
    scored_batch(store, 2, "day-9.csv")
    ledger = Ledger(store)
    add(store, said("acknowledged", START + timedelta(2), until=date(2026, 1, 9), cause="quarantined missing_column"))
    shown = pages.overview_page(ledger, MONITOR, window(4))[0].groups
    assert [line.state for line in shown] == ["open", "acknowledged"]
    line = shown[1]
    assert (line.batches, line.first, line.last) == (3, "day-0.csv", "day-2.csv")
    assert (line.by, line.until, line.since, line.at) == (
        "ann",
        "2026-01-09",
        "2026-01-05T06:00:00Z",
        "2026-01-07T06:00:00Z",
    )
    overview, content = pages.overview_page(ledger, MONITOR, window(4))
    assert Overview.from_dict(json.loads(overview.to_json())).to_json() == overview.to_json()
    page = content.decode()
    assert all(word in page for word in (*(line.id for line in shown), "ann</bdi>, until 2026-01-09", "day-0.csv"))
    assert pages.overview_page(ledger, MONITOR, window(5))[0].groups == shown[:1]  # the acknowledgement has ended
    assert pages.overview_page(ledger, MONITOR, window(20))[0].groups == ()


def test_the_overview_is_written_anew_on_the_day_on_which_something_ends_and_on_no_other(store: Store) -> None:
    refused_batch(store, 0, "day-0.csv")
    add(store, said("acknowledged", START, until=date(2026, 1, 12), cause="quarantined missing_column"))
    ledger, path = Ledger(store), store.reports / INDEX
    changed = []
    for day in range(12):
        before = path.stat().st_ino if path.exists() else None
        pages.update_overview(ledger, MONITOR, window(day))
        changed += [day] if path.stat().st_ino != before else []
        assert path.read_bytes() == pages.overview_page(ledger, MONITOR, window(day))[1]
    assert changed == [0, 5, 8]  # the refusal left the window; the acknowledgement ended
    add(store, said("resolved", START, cause="quarantined missing_column", hours=99))
    pages.update_overview(ledger, MONITOR, window(11))
    assert path.read_bytes() == pages.overview_page(ledger, MONITOR, window(11))[1]
