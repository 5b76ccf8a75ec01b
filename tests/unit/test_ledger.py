"""Laws of the ledger of feedback: what is written is read back, the last word stands, and nothing altered counts."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from store_samples import MONITOR, put

from vae_anomaly.errors import ConfigError, StoreError
from vae_anomaly.feedback import Remark, read_remarks
from vae_anomaly.report.model import Precision
from vae_anomaly.store.check import check
from vae_anomaly.store.feedback import Feedback, add, copied, entries, precision_of, read_entry, record_of, standing
from vae_anomaly.store.files import Store

TODAY = date(2026, 3, 1)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "output").prepare(MONITOR)
    put(made, "day.parquet", b"1")
    return made


def entry(store: Store, **changed: Any) -> Feedback:
    batch = os.listdir(store.commits)[0].removesuffix(".json")
    said: dict[str, Any] = {
        "batch_id": batch, "row_index": 3, "record_id": "r3", "score": 4.5, "p_value": 0.01, "flagged": True,
        "verdict": "false-alarm", "until": "2026-03-31", "by": "ann", "note": "", "at": "2026-03-01T12:00:00+00:00",
    }  # fmt: skip
    amount = changed.pop("amount", 1.5)
    record = copied(store, pa.table({"amount": [amount], "shop": pa.array([None], pa.string())}))
    return Feedback(**{**said, **changed}, record=record)


def test_what_is_said_is_read_back_and_said_twice_is_said_once(store: Store) -> None:
    one = entry(store)
    for _ in range(2):
        add(store, one)
    assert entries(store) == [one]
    assert read_entry(store.feedback / f"{one.id}.json") == one
    assert record_of(store, one).to_pydict() == {"amount": [1.5], "shop": [None]}
    assert [f.problem for f in check(store) if f.path.startswith("feedback")] == []
    assert len(os.listdir(store.feedback)) == 2  # equal records are kept once
    add(store, entry(store, row_index=4))
    assert len(os.listdir(store.feedback)) == 3


def test_the_last_word_on_a_row_stands_and_the_others_are_kept(store: Store) -> None:
    later = entry(store, verdict="anomaly", until="", at="2026-03-02T00:00:00+00:00")
    other = entry(store, row_index=9, amount=2.5, at="2026-02-01T00:00:00+00:00")
    for one in (later, entry(store), other):
        add(store, one)
    assert len(entries(store)) == 3
    assert standing(entries(store)) == [other, later]
    elsewhere = entry(store, row_index=77, verdict="expected", at="2026-03-03T00:00:00+00:00")
    assert standing([*entries(store), elsewhere]) == [other, elsewhere]  # the same record in another batch


@pytest.mark.parametrize(
    ("verdict", "until", "day", "mutes"),
    [
        ("false-alarm", "2026-03-31", date(2026, 3, 31), True),
        ("false-alarm", "2026-03-31", date(2026, 4, 1), False),
        ("expected", "2026-03-31", date(2026, 3, 1), True),
        ("anomaly", "", date(2026, 3, 1), False),
    ],
)
def test_muting_ends_after_its_last_day(store: Store, verdict: str, until: str, day: date, mutes: bool) -> None:
    assert entry(store, verdict=verdict, until=until).mutes(day) == mutes


def test_precision_counts_what_was_judged_and_not_what_was_expected(store: Store) -> None:
    said = [
        entry(store, row_index=row, verdict=verdict, flagged=flagged)
        for row, (verdict, flagged) in enumerate(
            [("anomaly", True)] * 3 + [("anomaly", False)] * 2 + [("false-alarm", True)] * 4 + [("expected", True)] * 5
        )
    ]
    assert precision_of(said) == Precision(flagged=7, anomalies=3, anomalies_in_all=5)
    assert precision_of(said[-5:]) is precision_of([]) is None
    assert precision_of(said).sentence == (  # type: ignore[union-attr]
        "Of 7 flagged records of this monitor that somebody looked at, 3 were anomalies."
        " 2 confirmed anomalies were not flagged."
    )


@pytest.mark.parametrize("how", ["entry", "name", "record", "lost", "commit", "orphan", "stranger"])
def test_what_was_altered_is_found(store: Store, how: str) -> None:
    one = entry(store)
    add(store, one)
    path, copy = store.feedback / f"{one.id}.json", store.root / one.record.file
    if how == "entry":
        path.write_bytes(path.read_bytes().replace(b"false-alarm", b"false-alarn"))
    elif how == "name":
        path.rename(store.feedback / "f-0123456789ab.json")
    elif how == "record":
        copy.write_bytes(copy.read_bytes()[:-1] + b"x")
    elif how == "lost":
        copy.unlink()
    elif how == "commit":
        (store.commits / f"{one.batch_id}.json").unlink()
    elif how == "orphan":
        path.unlink()
    else:
        (store.feedback / "notes.txt").write_text("x")
    findings = [f for f in check(store) if f.path.startswith("feedback")]
    # of an entry that cannot be read nobody knows which record it names
    severities = {"orphan": ["note"], "entry": ["error", "note"], "name": ["error", "note"]}.get(how, ["error"])
    assert [finding.severity for finding in findings] == severities
    if how in ("entry", "name"):
        with pytest.raises(StoreError, match="must be an entry of feedback"):
            entries(store)
    if how in ("record", "lost"):
        with pytest.raises(StoreError, match="must be the copy of the record"):
            record_of(store, one)


def test_until_is_a_day_to_come_where_there_is_muting() -> None:
    def last(verdict: str, until: date | None = None) -> str:
        return Remark("b", 0, verdict, until).last_day(TODAY)

    assert last("false-alarm") == "2026-03-31"
    assert last("false-alarm", TODAY) == last("expected", TODAY) == "2026-03-01"
    assert last("anomaly") == ""
    for verdict, until in (("expected", None), ("false-alarm", date(2026, 2, 28)), ("anomaly", TODAY), ("fine", None)):
        with pytest.raises(ConfigError):
            last(verdict, until)


def test_many_remarks_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "many.csv"
    path.write_text('batch,row,as,until,note\nday.csv,7,anomaly,,\nday.csv,8,expected,2026-04-01,"a, b"\n')
    assert read_remarks(path) == [
        Remark("day.csv", 7, "anomaly"),
        Remark("day.csv", 8, "expected", date(2026, 4, 1), "a, b"),
    ]
    path.write_text("\ufeffrow,as,batch\n0,anomaly,x\n", encoding="utf-8")
    assert read_remarks(path) == [Remark("x", 0, "anomaly")]


@pytest.mark.parametrize(
    "text",
    [
        "batch,row\nx,1\n",
        "batch,row,as,why\nx,1,anomaly,y\n",
        "batch,row,as\nx,one,anomaly\n",
        "batch,row,as\nx,-1,anomaly\n",
        "batch,row,as\nx,1\n",
        "batch,row,as\nx,1,anomaly,more\n",
        "batch,row,as,until\nx,1,expected,soon\n",
        'batch,row,as\n"x,1,anomaly\n',
        "",
    ],
)
def test_a_file_that_is_none_of_remarks_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "many.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match="must"):
        read_remarks(path)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    for name in ("none.csv", "binary.csv"):
        with pytest.raises(ConfigError, match=r"must be a CSV file in UTF-8"):
            read_remarks(tmp_path / name)


def test_another_entry_has_another_name(store: Store) -> None:
    one = entry(store)
    changed = [replace(one, note="x"), replace(one, by="eve"), replace(one, at="2026-03-01T12:00:01+00:00")]
    assert len({e.id for e in (one, *changed)}) == 4
