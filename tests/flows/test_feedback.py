"""Feedback through the whole program: what is said of a record changes the next run's alerts and the next fit."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pipeline_samples import Said, cli, copy, deliver, table

from vae_anomaly import pipelines, worker
from vae_anomaly.fitting import fit_detector
from vae_anomaly.muting import Muting
from vae_anomaly.store.check import check
from vae_anomaly.store.commits import Ledger
from vae_anomaly.store.feedback import entries, read_entry
from vae_anomaly.store.files import Store
from vae_anomaly.workspace import Workspace


def odd(content: pa.Table, row: int, column: str = "fee") -> pa.Table:
    """The table with a value of ``row`` that is thirty times as large."""
    values = content[column].to_numpy().copy()
    values[row] *= 30.0
    return content.set_column(content.column_names.index(column), column, pa.array(values))


def quiet(rows: int, seed: int, folder: Path) -> pa.Table:
    """Records of which none is flagged."""
    from vae_anomaly.schema import check as contract
    from vae_anomaly.scoring import load_champion
    from vae_anomaly.tracking import Tracker

    ws = Workspace.open(folder)
    detector, _ = load_champion(ws, Tracker(ws.mlflow))
    content = table(2 * rows, seed)
    flagged = detector.detect(contract(content, ws.schema, first_row=0, file="t")).is_anomaly
    return content.take(pa.array(np.flatnonzero(~flagged)[:rows]))


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One day with one flagged record, at row 5, and scored."""
    home = copy(tmp_path_factory.mktemp("feedback"))
    deliver(home, **{"day-1.parquet": odd(quiet(60, 61, home), 5)})
    assert cli("score", home).code == 0
    (commit,) = Ledger(Store(home / "output")).commits()
    assert commit.flagged == 1
    return home


@pytest.fixture
def folder(scored: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(scored.parent, tmp_path / "home") / scored.name


def say(folder: Path, *more: object) -> Said:
    return cli("feedback", folder, "day-1.parquet", *more)


def commit_of(folder: Path, name: str) -> Any:
    return Ledger(Store(folder / "output")).find(name)


def test_a_false_alarm_mutes_its_like_on_the_next_day_and_alerts_no_more(folder: Path) -> None:
    alerts = folder / "output" / "alerts"
    before = len(os.listdir(alerts))
    said = say(folder, 5, "--as", "false-alarm", "--by", "ann", "--note", "a known customer")
    assert said.code == 0 and "records like it are muted until" in said.out
    usual = quiet(60, 62, folder)
    deliver(folder, **{"day-2.parquet": odd(usual, 9), "day-3.parquet": odd(usual, 9, "items")})
    assert cli("score", folder).code == 0
    muted, other = commit_of(folder, "day-2.parquet"), commit_of(folder, "day-3.parquet")
    assert (muted.flagged, muted.muted, muted.alert) == (1, 1, False)
    assert (other.flagged, other.muted, other.alert) == (1, 0, True)
    assert len(os.listdir(alerts)) == before + 2  # of the other one, as text and as JSON
    report = json.loads((folder / "output" / muted.report.file).read_text())
    (line,) = report["muted"]
    (entry,) = entries(Store(folder / "output"))
    assert (line["row_index"], line["feedback"]) == (9, entry.id)
    assert report["precision"] == {"flagged": 1, "anomalies": 0, "anomalies_in_all": 0}
    scores = pq.read_table(folder / "output" / muted.scores.file)
    assert scores["is_anomaly"].to_pylist()[9] is True  # muted, and flagged all the same
    assert [f for f in check(Store(folder / "output")) if f.severity == "error"] == []


def test_what_is_muted_would_be_flagged_by_the_threshold_of_its_batch(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert say(folder, 5, "--as", "false-alarm").code == 0
    deciding, matches = [], Muting.matches

    def asked(self: Muting, records: Any) -> Any:
        deciding.append(self.detector.threshold.version)
        return matches(self, records)

    monkeypatch.setattr(Muting, "matches", asked)
    text = (folder / "monitor.yml").read_text()
    (folder / "monitor.yml").write_text(text.replace("threshold: {alpha: 0.05}", "threshold: {method: fdr, q: 0.3}"))
    usual = quiet(60, 62, folder)
    deliver(folder, **{"day-2.parquet": odd(odd(odd(usual, 9), 19), 29)})  # three have a lower threshold than one
    assert cli("score", folder).code == 0
    commit = commit_of(folder, "day-2.parquet")
    assert commit.flagged and deciding == [commit.threshold.version]


@pytest.mark.parametrize("last", ["2020-01-01", "withdrawn"])
def test_what_is_over_or_withdrawn_mutes_nothing(folder: Path, last: str, monkeypatch: pytest.MonkeyPatch) -> None:
    say(folder, 5, "--as", "false-alarm")
    if last == "withdrawn":
        assert say(folder, 5, "--as", "anomaly").code == 0
    else:
        monkeypatch.setattr(worker, "entries", lambda store: [replace(e, until=last) for e in entries(store)])
    deliver(folder, **{"day-2.parquet": odd(quiet(60, 62, folder), 9)})
    assert cli("score", folder).code == 0
    assert commit_of(folder, "day-2.parquet").muted == 0


def test_a_broken_ledger_mutes_nothing_and_stops_nothing(folder: Path) -> None:
    say(folder, 5, "--as", "false-alarm")
    (entry,) = entries(Store(folder / "output"))
    deliver(folder, **{"day-2.parquet": odd(quiet(60, 62, folder), 9)})
    (folder / "output" / entry.record.file).unlink()
    said = cli("score", folder)
    assert said.code == 0 and any(f"feedback {entry.id} mutes nothing" in line for line in said.errors)
    assert (commit_of(folder, "day-2.parquet").muted, commit_of(folder, "day-2.parquet").flagged) == (0, 1)
    (folder / "output" / "feedback" / f"{entry.id}.json").write_bytes(b"{}")
    deliver(folder, **{"day-3.parquet": odd(quiet(60, 63, folder), 9)})
    worker.scorer_of.cache_clear()
    said = cli("score", folder)
    assert said.code == 0 and any("nothing is muted" in line for line in said.errors)


def test_a_fit_leaves_confirmed_anomalies_out_and_calibrates_with_false_alarms(folder: Path) -> None:
    deliver(folder, **{"day-2.parquet": odd(quiet(60, 62, folder), 9, "items")})
    assert cli("score", folder).code == 0
    delivered = pq.read_table(folder / "inbox" / "day-2.parquet")
    training = folder / "training" / "more.parquet"
    before = Workspace.open(folder)
    pq.write_table(delivered, training)  # the anomaly slipped into the training records
    base = pipelines.read_training(before)
    assert say(folder, 5, "--as", "false-alarm").code == 0
    assert cli("feedback", folder, "day-2.parquet", 9, "--as", "anomaly").code == 0
    taught = pipelines.read_training(Workspace.open(folder))
    assert taught.confirmed == 1
    assert set(base.records.record_ids) - set(taught.records.record_ids) == {delivered["id"][9].as_py()}
    assert taught.digests.keys() - base.digests.keys() == {"feedback"}
    assert taught.false_alarms is not None
    ws = Workspace.open(folder)
    plain = fit_detector(taught.records, ws.schema, ws.recipe)
    joined = fit_detector(taught.records, ws.schema, ws.recipe, calibrating=taught.false_alarms)
    for name in ("training", "validation"):
        np.testing.assert_array_equal(joined.splits[name], plain.splits[name])
    np.testing.assert_array_equal(joined.splits["calibration"][:-1], plain.splits["calibration"])
    scores = joined.detector.threshold.measured
    assert len(scores) == len(plain.detector.threshold.measured) + 1
    assert scores.max() > plain.detector.threshold.measured.max()  # the false alarm is among them
    again = fit_detector(taught.records, ws.schema, ws.recipe, calibrating=taught.records.take(np.arange(9)))
    np.testing.assert_array_equal(again.splits["calibration"], plain.splits["calibration"])  # they are there already


def test_many_at_once_and_the_list(folder: Path, tmp_path: Path) -> None:
    assert cli("feedback", folder).out.startswith("Nothing has been said")
    many = tmp_path / "many.csv"
    many.write_text("batch,row,as,note\nday-1.parquet,5,anomaly,seen\nday-1.parquet,6,anomaly,missed\n")
    made = json.loads(cli("feedback", folder, "--from", many, "--by", "ann", "--json").out)
    assert [(e["row_index"], e["flagged"]) for e in made] == [(5, True), (6, False)]
    found = json.loads(cli("feedback", folder, "--json").out)
    assert found["precision"] == {"flagged": 1, "anomalies": 1, "anomalies_in_all": 2}
    shown = cli("feedback", folder).out
    assert "Of 1 flagged record of this monitor that somebody looked at, 1 was an anomaly." in shown
    assert "1 confirmed anomaly was not flagged." in shown
    many.write_text("batch,row,as\nday-1.parquet,7,anomaly\nday-1.parquet,99,anomaly\n")
    assert cli("feedback", folder, "--from", many).code == 2
    assert len(entries(Store(folder / "output"))) == 2  # all or nothing


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("day-9.parquet", 5, "--as", "anomaly"), "batch must be the id or file name of a committed batch"),
        (("day-1.parquet", 60, "--as", "anomaly"), "ROW must be from 0 to 59"),
        (("day-1.parquet", 4, "--as", "false-alarm"), "--as must be anomaly for a record that was not flagged"),
        (("day-1.parquet", 5, "--as", "fine"), "--as must be one of"),
        (("day-1.parquet", 5), "must have BATCH, ROW and --as"),
        (("day-1.parquet", 5, "--as", "expected"), "--until must be a day from today"),
        (("day-1.parquet", 5, "--as", "expected", "--until", "soon"), "--until must be a day such as"),
        (("day-1.parquet", 5, "--as", "anomaly", "--by", " "), "--by must be"),
        (("day-1.parquet", 5, "--as", "anomaly", "--note", "a\nb"), "--note must be"),
        (("day-1.parquet", 5, "--as", "anomaly", "--from", "x.csv"), "--from must come without"),
    ],
)
def test_what_cannot_be_said_is_refused_in_one_line(folder: Path, arguments: tuple[object, ...], problem: str) -> None:
    said = cli("feedback", folder, *arguments)
    assert said.code == 2 and len(said.errors) == 1 and problem in said.errors[0]
    assert entries(Store(folder / "output")) == []


@pytest.mark.parametrize("change", ["gone", "changed"])
def test_of_a_file_that_is_gone_nothing_can_be_said(folder: Path, change: str) -> None:
    path = folder / "inbox" / "day-1.parquet"
    if change == "gone":
        path.unlink()
    else:
        pq.write_table(table(60, 99), path)
    said = say(folder, 5, "--as", "anomaly")
    assert said.code == 2 and "must be in the inbox still, as it was" in said.errors[0]


def test_an_entry_says_who_when_and_what_was_found(folder: Path) -> None:
    say(folder, 5, "--as", "anomaly", "--by", "ann", "--note", "fraud")
    (name,) = (n for n in os.listdir(folder / "output" / "feedback") if n.endswith(".json"))
    entry = read_entry(folder / "output" / "feedback" / name)
    scores = pq.read_table(folder / "output" / commit_of(folder, "day-1.parquet").scores.file).to_pylist()[5]
    assert (entry.score, entry.p_value, entry.record_id) == tuple(scores[k] for k in ("score", "p_value", "record_id"))
    assert (entry.by, entry.note, entry.verdict, entry.until, entry.flagged) == ("ann", "fraud", "anomaly", "", True)
    assert entry.at.endswith("+00:00")


def test_the_commands_of_the_documentation_are_taken(folder: Path, tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "monitoring.md").read_text()
    (block,) = re.findall(r"^```sh\n(vae-anomaly feedback .*?)^```$", text, re.M | re.S)
    (tmp_path / "answers.csv").write_text("batch,row,as,until,note\nday-1.parquet,6,anomaly,,\n")
    here = {"my-monitor.yml": str(folder), "2026-01-06.csv": "day-1.parquet", "answers.csv": f"{tmp_path}/answers.csv"}
    for line in block.splitlines():
        _, *arguments = [here.get(word, word) for word in shlex.split(line)]
        arguments = ["5" if re.fullmatch(r"\d+", word) else word for word in arguments]  # the one that is flagged
        assert cli(*arguments).code == 0, line
    assert len(entries(Store(folder / "output"))) == 4
