"""Laws of what is told beside the batches: silence, unusual sizes, old calibrations; each once, seldom wrongly."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from store_samples import MONITOR, put

from vae_anomaly import watch
from vae_anomaly.store.check import check
from vae_anomaly.store.commits import Ledger
from vae_anomaly.store.files import Store
from vae_anomaly.store.records import Commit, Incident, read_record
from vae_anomaly.watch import FACTOR, LEAST, RATE, Seen, incidents, is_unusual

DAY = 86_400.0


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "output").prepare(MONITOR)


@pytest.fixture
def commit(store: Store) -> Commit:
    return put(store, "day.parquet", b"1")


def days(commit: Commit, sizes: Sequence[int], drifted: Sequence[bool] = ()) -> list[Seen]:
    """A batch each day, of these sizes."""
    shifted = [*drifted, *[False] * (len(sizes) - len(drifted))]
    made = []
    for i, (rows, far) in enumerate(zip(sizes, shifted, strict=True)):
        batch = replace(commit.batch, id=f"d{i}-{commit.sha256[:12]}")
        made.append(Seen(replace(commit, batch=batch, rows=rows, drifted=far), i * DAY))
    return made


def kinds(seen: Sequence[Seen], now: float, every: float | None = None, stale: float | None = None) -> list[str]:
    return [i.kind for i in incidents(MONITOR, seen, now, every_hours=every, stale_days=stale)]


@pytest.mark.parametrize(("late", "told"), [(1.0, False), (1.49, False), (1.51, True), (40.0, True)])
def test_a_batch_that_is_half_an_interval_late_is_told(commit: Commit, late: float, told: bool) -> None:
    seen = days(commit, [100] * 5)
    assert kinds(seen, seen[-1].at + late * DAY, every=24.0) == ["no_data"] * told
    assert kinds(seen, seen[-1].at + late * DAY) == kinds([], late * DAY, every=24.0) == []


def test_a_silence_is_one_incident_however_long_and_the_next_one_another(commit: Commit) -> None:
    seen = days(commit, [100] * 5)

    def silence(until: int, now: float) -> str:
        (one,) = incidents(MONITOR, seen[:until], now, every_hours=24.0, stale_days=None)
        return one.batch_id

    assert silence(5, 10 * DAY) == silence(5, 90 * DAY) != silence(4, 90 * DAY)


@pytest.mark.parametrize("size", [0, 9, 49, 201, 1000])
def test_a_batch_of_another_size_is_told_and_those_after_it_are_compared_with_what_is_usual(
    commit: Commit, size: int
) -> None:
    g = np.random.default_rng(0)
    usual = [int(rows) for rows in 100 * np.exp(0.05 * g.normal(size=12))]
    seen = days(commit, [*usual, size, *usual])
    found = list(incidents(MONITOR, seen, 0.0, every_hours=None, stale_days=None))
    assert [(i.kind, i.problem.split()[3]) for i in found] == [("volume", f"{size:,}")]


def test_a_size_that_doubles_is_needed_and_a_few_batches_are_too_few(commit: Commit) -> None:
    assert not is_unusual(10**6, [100] * (LEAST - 1))
    assert is_unusual(int(100 * FACTOR) + 2, [100] * LEAST)
    assert not is_unusual(int(100 * FACTOR) - 2, [100] * 30)
    assert not is_unusual(100, [100] * 30)
    assert not is_unusual(300, [50, 400, 100, 200, 800, 25, 100, 300, 90])  # they vary that much


def rate(sizes: float, repeats: int = 20_000) -> float:
    g = np.random.default_rng(3)
    drawn = np.exp(math.log(1e6) + sizes * g.normal(size=(repeats, LEAST + 1)))
    return float(np.mean([is_unusual(int(row[-1]), row[:-1].astype(int).tolist()) for row in drawn]))


def test_of_batches_of_usual_size_no_more_are_told_than_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rate(1.0) <= RATE + 3.29 * math.sqrt(RATE / 20_000)
    assert rate(1.0) > RATE / 4  # nor none
    assert rate(0.1) == 0.0  # twice as many never come
    monkeypatch.setattr("scipy.special.stdtr", lambda _, t: 0.5 * math.erfc(-t / math.sqrt(2)))
    assert rate(1.0) > 3 * RATE  # the deviation of so few batches taken for the truth


@pytest.mark.parametrize(
    ("drifted", "told"),
    [([1, 1, 1], True), ([1, 0, 1, 0, 1], True), ([1, 1, 0, 0, 0], False), ([1, 1, 1, 0, 0, 0, 0], False)],
)
def test_a_calibration_is_stale_where_three_of_the_last_five_batches_have_shifted(
    commit: Commit, drifted: list[int], told: bool
) -> None:
    seen = days(commit, [100] * len(drifted), [bool(far) for far in drifted])
    assert kinds(seen, seen[-1].at) == ["stale"] * told
    other = replace(commit.model, version="2", digest="another")
    fresh = [*seen, Seen(replace(seen[-1].commit, model=other, drifted=True), seen[-1].at + DAY)]
    assert kinds(fresh, fresh[-1].at) == []  # of another calibration nothing is known yet


def test_a_calibration_is_stale_when_it_is_older_than_it_may_be(commit: Commit) -> None:
    seen = days(commit, [100] * 5)
    assert kinds(seen, 30 * DAY, stale=30.0) == []
    assert kinds(seen, 30.1 * DAY, stale=30.0) == ["stale"]
    assert kinds(seen, 300 * DAY) == []


def test_an_incident_is_kept_once_and_told_to_each_sink_once(store: Store, commit: Commit) -> None:
    ledger = Ledger(store)
    made = Incident("no_data-0123456789ab", MONITOR, "no_data", "day.parquet", "none came.", "Look.")
    for _ in range(2):
        ledger.note(made)
    assert read_record(store.incidents / f"{made.batch_id}.json", Incident) == made
    due = [alert for alert in ledger.pending_alerts(["log", "file"]) if isinstance(alert.record, Incident)]
    assert [alert.sink for alert in due] == ["log", "file"]
    ledger.mark_delivered(made.batch_id, "log", idempotency_key=made.idempotency_key)
    due = [alert for alert in ledger.pending_alerts(["log", "file"]) if isinstance(alert.record, Incident)]
    assert [alert.sink for alert in due] == ["file"]
    assert [f for f in check(store) if f.severity == "error" and "incident" in f.path] == []
    path = store.incidents / f"{made.batch_id}.json"
    path.write_bytes(path.read_bytes().replace(b"none came", b"some came"))
    assert [f.path for f in check(store) if f.severity == "error"] == [f"incidents/{path.name}"]


def test_the_last_commits_are_those_that_were_written_last(store: Store) -> None:
    for i in (3, 1, 2, 0):
        made = put(store, f"day-{i}.parquet", bytes([i]))
        os.utime(store.commits / f"{made.batch_id}.json", (1000 + i, 1000 + i))
    found = Ledger(store).last(Ledger(store).written(), 3)
    assert [(c.name, at) for c, at in found] == [(f"day-{i}.parquet", 1000.0 + i) for i in (1, 2, 3)]
    assert len(Ledger(store).last(Ledger(store).written(), 99)) == 4
    nowhere = Ledger(Store(store.root / "nowhere"))
    assert nowhere.last(nowhere.written(), 3) == []


def test_the_history_is_as_long_as_is_compared() -> None:
    assert watch.HISTORY >= 30 > watch.OF_LAST >= watch.DRIFTED


def test_each_batch_is_asked_once_and_by_all_that_came_before(commit: Commit) -> None:
    g = np.random.default_rng(1)
    sizes = [int(rows) for rows in np.exp(6 + g.normal(size=200))]
    seen = days(commit, sizes)
    length = watch.HISTORY + watch.OF_LAST
    told = {
        incident.batch_id: incident.name
        for stop in range(1, len(seen) + 1)
        for incident in incidents(MONITOR, seen[max(0, stop - length) : stop], 0.0, every_hours=None, stale_days=None)
    }
    once = [i for i in range(len(sizes)) if is_unusual(sizes[i], sizes[max(0, i - watch.HISTORY) : i])]
    assert len(told) == len(once)


def test_a_calibration_is_older_than_the_batches_that_are_looked_at(store: Store, commit: Commit) -> None:
    seen = days(commit, [100] * 5)
    found = incidents(MONITOR, seen, seen[-1].at, since=seen[-1].at - 91 * DAY, every_hours=None, stale_days=90.0)
    assert [incident.kind for incident in found] == ["stale"]
    for i in range(6):
        made = put(store, f"day-{i}.parquet", bytes([i]), model="1" if i < 2 else "2")
        os.utime(store.commits / f"{made.batch_id}.json", (1000 + i, 1000 + i))
    os.utime(store.commits / f"{commit.batch_id}.json", (900, 900))
    assert Ledger(store).since(Ledger(store).written(), "digest-of-model-2") == 1002.0
