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

from vae_anomaly.report.model import Report
from vae_anomaly.sinks import SINKS, Alert, posting
from vae_anomaly.store.check import check
from vae_anomaly.store.commits import Ledger
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
    assert json.loads(said.out)["undelivered_alerts"][-1] == "sink 'webhook': 2 more alerts wait."


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
    assert (said.code, len(said.errors)) == (2, 1), said.err
    assert len(found.requests) == 3


def test_a_sink_that_breaks_costs_the_others_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(alert: object) -> None:
        raise RuntimeError("zq-secret")

    monkeypatch.setitem(SINKS, "log", broken)
    with (folder / "monitor.yml").open("a") as file:
        file.write("sinks: [{kind: log}, {kind: file}]\n")
    said = cli("score", folder, "--json")
    assert said.code == 3
    first, rest = json.loads(said.out)["undelivered_alerts"]
    assert first.endswith(": RuntimeError.")
    assert rest == "sink 'log': 2 more alerts wait."
    assert "zq-secret" not in said.out + said.err
    assert len(os.listdir(folder / "output" / "alerts")) == 6


def test_what_another_run_has_told_meanwhile_is_not_told_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    def also_others(alert: Alert) -> None:
        told.append(alert.batch_id)
        ledger = Ledger(Store(folder / "output"))
        for due in ledger.pending_alerts(["log"]):  # another run, which has told all of them
            ledger.mark_delivered(due.record.batch_id, "log", idempotency_key=due.idempotency_key)

    monkeypatch.setitem(SINKS, "log", also_others)
    with (folder / "monitor.yml").open("a") as file:
        file.write("sinks: [{kind: log}]\n")
    assert cli("score", folder).code == 3  # one file is refused
    assert len(told) == 1


def test_while_another_run_tells_this_one_says_so_and_ends(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = Store.lock
    monkeypatch.setattr(Store, "lock", lambda store, folder, *, patience=0.2: lock(store, folder, patience=patience))
    store = Store(folder / "output").prepare("shops")
    with lock(store, store.outbox):
        said = cli("score", folder, "--json")
    found = json.loads(said.out)
    assert said.code == 3
    assert len(found["batches"]) == 3
    assert found["undelivered_alerts"] == ["another run tells the alerts; what it does not tell, the next run does."]
    assert cli("score", folder).code == 0


def test_silence_is_told_once_even_where_nothing_can_be_scored(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vae_anomaly import scoring

    path = folder / "monitor.yml"
    path.write_text(path.read_text() + "watch: {every_hours: 24}\n")
    assert cli("score", folder).code == 3  # one is refused
    alerts = folder / "output" / "alerts"
    before = set(os.listdir(alerts))
    assert cli("score", folder).code == 0 and set(os.listdir(alerts)) == before
    later = scoring.time.time() + 40 * 3600
    monkeypatch.setattr(scoring.time, "time", lambda: later)
    for _ in range(2):
        assert cli("score", folder).code == 0
    (name,) = {n for n in set(os.listdir(alerts)) - before if n.endswith(".json")}
    told = json.loads((alerts / name).read_text())
    assert (told["kind"], told["title"].split(":")[0]) == ("incident", "No batch")
    assert "a batch is due every 24 hours" in (alerts / name.replace(".json", ".md")).read_text()
    assert [finding for finding in check(Store(folder / "output")) if finding.severity == "error"] == []


def test_a_group_is_told_once_until_it_has_cooled_down_and_then_with_all_that_came(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vae_anomaly import scoring

    monkeypatch.setattr(Report, "group", "one cause")
    (folder / "inbox" / "short.csv").unlink()
    with receivers.http() as found:
        with_sinks(folder, found.port)
        assert json.loads(cli("score", folder, "--json").out)["held_alerts"] == 0
        first = len(found.requests)
        deliver(folder, **{f"day-{i}.parquet": table(30, 40 + i, frauds=4) for i in (2, 3, 4)})
        said = json.loads(cli("score", folder, "--json").out)
        assert said["held_alerts"] == 3 and len(found.requests) == first
        assert "Alerts that wait" in cli("score", folder).out
        assert len([n for n in os.listdir(folder / "output" / "alerts") if n.endswith(".md")]) == 5  # all, at once
        later = scoring.time.time() + 25 * 3600
        monkeypatch.setattr(scoring.time, "time", lambda: later)
        assert json.loads(cli("score", folder, "--json").out)["held_alerts"] == 0
        assert cli("score", folder).code == 0
    *_, last = [json.loads(body)["data"] for *_, body in found.requests]
    assert len(found.requests) == first + 1
    assert last["title"].startswith("3 alerts, the last: ")
    assert all(f"day-{i}.parquet" in last["markdown"] for i in (2, 3, 4))


def test_in_quiet_hours_nobody_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vae_anomaly import scoring

    monkeypatch.setattr(Report, "group", "one cause")
    path = folder / "monitor.yml"
    with receivers.http() as found:
        with_sinks(folder, found.port)
        path.write_text(path.read_text() + "alerts: {quiet_hours: [22, 6]}\n")
        tomorrow = scoring.time.time() // 86_400 * 86_400 + 86_400.0
        monkeypatch.setattr(scoring.time, "time", lambda: tomorrow + 23.5 * 3600)
        assert json.loads(cli("score", folder, "--json").out)["held_alerts"] == 3
        assert found.requests == []
        monkeypatch.setattr(scoring.time, "time", lambda: tomorrow + 30 * 3600)
        assert json.loads(cli("score", folder, "--json").out)["held_alerts"] == 0
    assert len(found.requests) == 2  # one of the two batches, one of the refusal


def test_an_alert_that_cannot_be_made_holds_back_no_other_one_of_its_group(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Report, "group", "one cause")
    store = Store(folder / "output")
    assert cli("score", folder).code == 3
    names = sorted(name for name in os.listdir(store.commits))
    (store.reports / names[-1]).unlink()
    with receivers.http() as found:
        with_sinks(folder, found.port)
        said = json.loads(cli("score", folder, "--json").out)
    assert len(said["undelivered_alerts"]) == 1
    told = {json.loads(body)["data"]["batch_id"] for *_, body in found.requests}
    assert names[0].removesuffix(".json") in told and names[-1].removesuffix(".json") not in told


def test_what_is_acknowledged_waits_for_its_end_and_what_was_resolved_is_told_at_once_when_it_comes_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vae_anomaly import scoring

    monkeypatch.setattr(Report, "group", "one cause")
    (folder / "inbox" / "short.csv").unlink()
    now = scoring.time.time()

    def run(*days: int) -> tuple[int, int]:
        """Messages to people, and alerts that wait, of a run that finds the batches of these days."""
        deliver(folder, **{f"day-{day}.parquet": table(30, 40 + day, frauds=4) for day in days})
        before = len(found.requests)
        said = json.loads(cli("score", folder, "--json").out)
        return len(found.requests) - before, said["held_alerts"]

    with receivers.http() as found:
        with_sinks(folder, found.port)
        assert run() == (1, 0)
        (id,) = {json.loads(body)["data"]["group"] for *_, body in found.requests}
        told = json.loads(found.requests[-1][2])["data"]["markdown"]
        assert f"vae-anomaly alerts MONITOR {id} --as acknowledged" in told
        said = cli("alerts", folder, id, "--as", "acknowledged", "--by", "ann", "--note", "on it")
        assert (said.code, said.errors) == (0, []) and f"{id} (one cause) is acknowledged until " in said.out
        monkeypatch.setattr(scoring.time, "time", lambda: now + 3 * 86_400)  # it would have cooled down
        assert run(2, 3) == (0, 2)
        assert len([n for n in os.listdir(folder / "output" / "alerts") if n.endswith(".md")]) == 4  # all, at once
        (line,) = json.loads(cli("alerts", folder, "--json").out)
        assert (line["id"], line["state"], line["batches"], line["by"]) == (id, "acknowledged", 4, "ann")
        monkeypatch.setattr(scoring.time, "time", lambda: now + 9 * 86_400)  # it ends after seven days
        (line,) = json.loads(cli("alerts", folder, "--json").out)
        assert line["state"] == "open"
        assert run() == (1, 0)
        assert json.loads(found.requests[-1][2])["data"]["title"].startswith("2 alerts, the last: ")

        monkeypatch.setattr(scoring.time, "time", lambda: now + 3600)
        assert run(4) == (0, 1)  # it has not cooled down
        assert cli("alerts", folder, id, "--as", "resolved", "--by", "ann").code == 0
        assert json.loads(cli("alerts", folder, "--json").out) == []
        assert "resolved" in cli("alerts", folder, "--all").out
        assert run() == (0, 0)  # whoever resolved it knows of it
        assert run(5) == (1, 0)  # in the hours in which it would cool down
        assert run(6) == (0, 1)
        (line,) = json.loads(cli("alerts", folder, "--json").out)
        assert (line["state"], line["batches"], line["first"]) == ("open", 2, "day-5.parquet")
    assert [finding for finding in check(Store(folder / "output")) if finding.severity == "error"] == []


def test_answers_that_cannot_be_read_stop_no_alert_and_are_told(folder: Path) -> None:
    with receivers.http() as found:
        with_sinks(folder, found.port)
        (Store(folder / "output").prepare("shops").answers / "a-0123456789ab.json").write_text("{}")
        said = cli("score", folder, "--json")
    assert said.code == 3
    (problem,) = json.loads(said.out)["undelivered_alerts"]
    assert problem.startswith("answers: ") and "must be an answer to a group of alerts" in problem
    assert len(found.requests) > 0


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("g-00000000",), "both GROUP and --as"),
        (("--as", "resolved"), "both GROUP and --as"),
        (("--note", "x"), "--until and --note must come with GROUP"),
        (("g-00000000", "--as", "resolved"), "GROUP must be the id of a group"),
        (("g-00000000", "--as", "acknowledged", "--until", "soon"), "--until must be a day"),
    ],
)
def test_a_wrong_answer_is_one_line(folder: Path, args: tuple[str, ...], words: str) -> None:
    Store(folder / "output").prepare("shops")
    said = cli("alerts", folder, *args)
    assert (said.code, said.out, len(said.errors)) == (2, "", 1)
    assert words in said.errors[0]
