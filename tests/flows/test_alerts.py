"""Alerts through the whole program: receivers that are away or slow cost neither a score nor an alert."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
import receivers
from pipeline_samples import cli, copy, deliver, table

from vae_anomaly.sinks import posting
from vae_anomaly.store.check import check
from vae_anomaly.store.files import Store


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two batches with something to say, a refusal, and three sinks."""
    monkeypatch.setattr(posting, "PAUSES", ())
    home = copy(tmp_path)
    deliver(home, **{f"day-{i}.parquet": table(30, 40 + i, frauds=4) for i in range(2)}, **{"short.csv": b"id\n1\n"})
    return home


def with_sinks(folder: Path, port: int) -> None:
    path, sinks = (
        folder / "monitor.yml",
        f"[{{kind: file}}, {{kind: webhook, url: 'http://127.0.0.1:{port}', private: true}}]",
    )
    lines = [line for line in path.read_text().splitlines() if not line.startswith("sinks:")]
    path.write_text("\n".join([*lines, f"sinks: {sinks}", ""]))


def test_a_receiver_that_is_away_is_told_of_everything_when_it_is_back(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with_sinks(folder, port)
    said = cli("score", folder, "--json")
    found = json.loads(said.out)
    assert said.code == 3
    assert sorted(batch["verdict"] for batch in found["batches"]) == ["committed", "committed", "quarantined"]
    first, rest = found["undelivered_alerts"]
    assert first.startswith("sink 'webhook', batch day-0-")
    assert "must be reachable" in first
    assert rest == "sink 'webhook': 2 more alerts wait."
    assert len(os.listdir(folder / "output" / "alerts")) == 6  # the other sink has had all three

    with receivers.http() as found_again:
        with_sinks(folder, found_again.port)
        assert cli("score", folder).code == 0
        assert cli("score", folder).code == 0
    told = [json.loads(body) for *_, body in found_again.requests]
    assert [alert["type"] for alert in told] == ["vae_anomaly.anomalies"] * 2 + ["vae_anomaly.quarantined"]
    assert len({headers["webhook-id"] for _, headers, _ in found_again.requests}) == 3
    assert all(Path(path).exists() for alert in told for path in alert["data"]["report_paths"])
    assert [finding for finding in check(Store(folder / "output")) if finding.severity == "error"] == []


def test_a_slow_receiver_is_asked_once_a_run_and_after_the_scores(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(posting, "PATIENCE", 0.3)
    committed: list[int] = []
    post = posting.within

    def noted(*args: object) -> None:
        committed.append(len(os.listdir(folder / "output" / "commits")))
        post(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(posting, "within", noted)
    with receivers.dripping([], 60.0) as port:
        with_sinks(folder, port)
        assert cli("score", folder).code == 3
        deliver(folder, **{"day-9.parquet": table(30, 60, frauds=4)})
        said = cli("score", folder, "--json")
    assert committed == [2, 3]
    assert json.loads(said.out)["undelivered_alerts"][-1] == "sink 'webhook': 3 more alerts wait."


def test_what_earlier_runs_left_is_told_where_nothing_can_be_scored(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        with_sinks(folder, free.getsockname()[1])
    assert cli("score", folder).code == 3
    with receivers.http() as found:
        with_sinks(folder, found.port)
        text = (folder / "monitor.yml").read_text()
        (folder / "monitor.yml").write_text(text.replace("inbox: inbox", "inbox: not_there"))
        said = cli("score", folder)
    assert (said.code, len(said.errors)) == (2, 1)
    assert len(found.requests) == 3
