"""One champion replaced by another and back again, through the command line: what is reviewed on the way, what people
decide, and that after a rollback scores are the same bytes as before."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from pipeline_samples import Said, cli, deliver, shared_store, table, write_monitor
from tracking_samples import without_figures

RESEEDED = {"VAE_ANOMALY_MONITOR__SEED": "1"}
DAYS = {f"2026-01-0{i}.parquet": table(60, 20 + i, frauds=9 * (i == 3)) for i in (1, 2, 3)}


def ok(said: Said) -> Said:
    assert said.code == 0, said
    return said


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A monitor with a champion, three scored days, and a candidate that is not reviewed yet."""
    folder = write_monitor(tmp_path_factory.mktemp("replacing") / "shops")
    config = folder / "monitor.yml"
    config.write_text(config.read_text().replace("name: shops", "name: replaced"))
    (folder.parent / "mlflow.yml").write_text(shared_store())
    with without_figures():
        ok(cli("fit", folder))
        ok(cli("review", folder))
        ok(cli("promote", folder, "--by", "ann"))
        deliver(folder, **DAYS)
        ok(cli("score", folder))
        ok(cli("fit", folder, env=RESEEDED))
    return folder


def scores(folder: Path) -> dict[str, bytes]:
    """The score files of a run into an empty output."""
    shutil.rmtree(folder / "output")
    ok(cli("score", folder))
    return {path.name: path.read_bytes() for path in (folder / "output" / "scores").iterdir()}


def test_a_review_replays_the_committed_batches(home: Path) -> None:
    found = json.loads(ok(cli("review", home, "--json", env=RESEEDED)).out)
    assert (found["version"], found["champion"]["version"]) == ("2", "1")
    assert [b["name"] for b in found["replay"]["batches"]] == sorted(DAYS, reverse=True)
    assert {"alerts on usual batches", "alerts kept"} <= {gate["name"] for gate in found["gates"]}
    said = ok(cli("review", home, "--replay", "2", env=RESEEDED))
    assert "Scored again: the last 2 batches" in said.out
    assert re.search(r"Alerts that appear: \d+; that disappear: \d+\.", said.out)
    page = next((home / "output" / "reviews").glob("v2*.html")).read_text()
    assert "On the last 2 batches" in page
    none = json.loads(ok(cli("review", home, "--json", "--replay", "0", env=RESEEDED)).out)
    assert none["replay"]["batches"] == []
    assert cli("review", home, "--replay", "-1").code == 2


def test_after_a_rollback_scores_are_the_same_bytes_as_before(home: Path) -> None:
    before = scores(home)
    assert sorted(before) and len(before) == len(DAYS)
    ok(cli("review", home, env=RESEEDED))
    assert "version 2 is the champion now" in ok(cli("promote", home, "--by", "bea", "--reason", "newer")).out
    other = scores(home)
    assert other.keys() == before.keys()
    assert all(other[name] != before[name] for name in before)  # so the comparison has teeth
    assert "version 1 is the champion now" in ok(cli("rollback", home, "--by", "ann", "--reason", "too many")).out
    assert scores(home) == before
