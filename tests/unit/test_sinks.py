"""Laws of the sinks: whole, repeatable, one line for one alert, and options refused by name."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import replace
from pathlib import Path

import pytest
from receivers import ALERT as SHORT

from vae_anomaly.errors import ConfigError, StoreError, printable
from vae_anomaly.sinks import SINKS, Alert, deliver

ALERT = replace(SHORT, markdown="# 9 flagged\n", report_paths=(Path("reports/2026-01-05-0123456789ab.html"),))


def options(kind: str, folder: Path) -> dict[str, object]:
    return {"file": {"directory": folder / "alerts"}}.get(kind, {})


@pytest.mark.parametrize("kind", ["log", "file"])  # the others are in test_receivers.py
def test_every_sink_can_be_told_again(kind: str, tmp_path: Path) -> None:
    deliver(ALERT, kind, **options(kind, tmp_path))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    deliver(ALERT, kind, **options(kind, tmp_path))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("kind", SINKS)
def test_every_sink_refuses_unknown_options(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no option 'colour'"):
        deliver(ALERT, kind, colour="red", **options(kind, tmp_path))


def test_an_unknown_sink_is_named_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"'fil'.*Did you mean 'file'"):
        deliver(ALERT, "fil")


def test_the_file_sink_writes_markdown_and_json(tmp_path: Path) -> None:
    deliver(ALERT, "file", directory=tmp_path / "deep" / "alerts")
    folder = tmp_path / "deep" / "alerts"
    assert sorted(os.listdir(folder)) == [f"{ALERT.batch_id}.json", f"{ALERT.batch_id}.md"]
    assert (folder / f"{ALERT.batch_id}.md").read_text() == ALERT.markdown
    assert json.loads((folder / f"{ALERT.batch_id}.json").read_text()) == {
        "format": 1,
        "kind": "anomalies",
        "monitor": "payments",
        "batch_id": ALERT.batch_id,
        "idempotency_key": ALERT.idempotency_key,
        "group": ALERT.group,
        "title": ALERT.title,
        "report_paths": ["reports/2026-01-05-0123456789ab.html"],
    }


def test_the_file_sink_deletes_what_a_killed_delivery_left_and_nothing_else(tmp_path: Path) -> None:
    left = tmp_path / f".part-1.0.0-{'a' * 32}"
    left.write_text("half")
    os.utime(left, (0, 0))  # of another boot: given up after a day
    (tmp_path / "notes.md").write_text("mine")
    deliver(ALERT, "file", directory=tmp_path)
    assert sorted(os.listdir(tmp_path)) == [f"{ALERT.batch_id}.json", f"{ALERT.batch_id}.md", "notes.md"]


@pytest.mark.parametrize("batch_id", ["../x", "/x", "", "a\nb"])
def test_the_file_sink_refuses_names_that_are_paths(tmp_path: Path, batch_id: str) -> None:
    with pytest.raises(StoreError, match="batch_id must match"):
        deliver(Alert("m", batch_id, "k", "t", "x"), "file", directory=tmp_path)
    assert os.listdir(tmp_path) == []


def test_the_file_sink_names_a_folder_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "alerts").write_text("a file")
    with pytest.raises(StoreError, match="alerts"):
        deliver(ALERT, "file", directory=tmp_path / "alerts")


def test_text_that_is_no_unicode_is_delivered_all_the_same(tmp_path: Path) -> None:
    deliver(Alert("m", "b-1", "k", "t", "name: a\udce9.csv"), "file", directory=tmp_path)
    assert (tmp_path / "b-1.md").read_text() == "name: a\\udce9.csv"


def test_one_alert_is_one_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    forged = "no\r\nWARNING all is well\x1b[2J\u2028\u202e\udce9\0 é"
    with caplog.at_level(logging.WARNING):
        deliver(Alert("m", "b-1", "k", forged, "", (Path("reports/b-1.html"),), "quarantined"), "log")
    (record,) = caplog.records
    message = record.getMessage()
    assert record.levelno == logging.WARNING
    assert message == (
        r"quarantined | m | batch b-1 | no\r\nWARNING all is well\x1b[2J\u2028\u202e\udce9\x00 é | reports/b-1.html"
    )
    assert message.splitlines() == [message]


def test_printable_text_stays_as_it_is() -> None:
    assert printable("Größe 3,5 % — ok") == "Größe 3,5 % — ok"
