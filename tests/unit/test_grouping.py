"""Laws of what is told together: nothing is lost, nobody gets many messages, and no record makes a group."""

from __future__ import annotations

from datetime import datetime
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vae_anomaly.grouping import MOST, PEOPLE, is_quiet, messages
from vae_anomaly.report import ColumnQuality, Contribution, FlaggedRecord
from vae_anomaly.report.model import Report
from vae_anomaly.sinks import SINKS

groups = st.lists(st.sampled_from([f"g{i}" for i in range(9)]), max_size=30)


def due(named: list[str]) -> list[Any]:
    return [SimpleNamespace(group=name, number=i) for i, name in enumerate(named)]


@given(groups, st.sets(st.sampled_from([f"g{i}" for i in range(9)])))
def test_every_alert_is_told_once_or_waits_for_its_group_and_messages_are_few(named: list[str], told: set[str]) -> None:
    alerts = due(named)
    found = messages(alerts, told)
    everything = [alert.number for message in found for alert in message]
    assert sorted(everything) == [alert.number for alert in alerts if alert.group not in told]
    assert len(found) <= MOST
    assert all(message for message in found)
    assert all([a.number for a in m] == sorted(a.number for a in m) for m in found[: MOST - 1])
    if len({a.group for a in alerts} - told) <= MOST:
        assert all(len({a.group for a in message}) == 1 for message in found)


def test_a_storm_of_one_cause_is_one_message_and_of_many_causes_a_few() -> None:
    assert [len(m) for m in messages(due(["g"] * 1000), set())] == [1000]
    assert [len(m) for m in messages(due([f"g{i}" for i in range(1000)]), set())] == [1] * (MOST - 1) + [997 - 1]


@pytest.mark.parametrize(
    ("hours", "quiet"),
    [(None, []), ((22, 6), [22, 23, 0, 1, 2, 3, 4, 5]), ((1, 3), [1, 2])],
)
def test_hours_are_quiet_from_the_first_to_the_second_over_midnight_too(hours: Any, quiet: list[int]) -> None:
    found = [hour for hour in range(24) if is_quiet(hours, datetime(2026, 1, 5, hour, 59))]
    assert sorted(found) == sorted(quiet)


def report(*columns: str, **changes: Any) -> Report:
    parts = [(Contribution(column, 9.0, "", ""),) for column in columns]
    records = tuple(FlaggedRecord(i, f"r{i}", 9.0, 0.01, contributions=part) for i, part in enumerate(parts))
    values: dict[str, Any] = {
        "monitor": "m", "batch_id": "b", "batch_name": "b", "batch_sha256": "0", "rows": 100, "scored": 100,
        "unscorable": {}, "flagged": 3, "expected_flagged": 1.0, "flagged_range": (0, 4), "batch_p_value": 0.1,
        "alpha": 0.01, "alpha_range": (0.0, 1.0), "threshold_value": 1.0, "calibration_records": 100, "score_name": "s",
    }  # fmt: skip
    return Report(**{**values, "records": records, **changes})


def test_the_group_is_the_cause_and_no_record() -> None:
    assert (
        report("amount", "fee", "amount").group == report("fee", "amount", "amount", "amount").group == "usual amount"
    )
    assert report("a", "b").group == report("b", "a").group
    assert report().group == "usual"
    warned = report(columns=(ColumnQuality("fee", "number", warning="gone."),), unscorable={"wrong_dtype:amount": 3})
    assert warned.group == "usual fee wrong_dtype"  # another cause
    assert report("amount", flagged=9, batch_p_value=1e-9).group == "far_more amount"  # it is told at once
    assert report("amount", flagged=60, batch_p_value=1e-9).group == "drift"


def test_people_are_those_who_are_sent_something() -> None:
    assert set(PEOPLE) == SINKS.keys() - {"log", "file"}
