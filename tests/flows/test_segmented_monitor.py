"""Detectors by segment through the whole program: what is committed is named, checked and reviewed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pipeline_samples import (
    MONITOR,
    broken,
    by_rows_and_workers,
    cli,
    committed,
    deliver,
    scores,
    table,
    write_monitor,
)
from tracking_samples import without_figures

from vae_anomaly.schema import check as contract
from vae_anomaly.scoring import load_champion, read_report
from vae_anomaly.store.check import check
from vae_anomaly.store.files import Store, sha256_of
from vae_anomaly.store.score_files import SEGMENT_SCHEMA
from vae_anomaly.tracking import Tracker
from vae_anomaly.workspace import Workspace

SEGMENTS = MONITOR + "segments: {by: shop, least: 100}\n"
DAY = table(400, 31, frauds=30)
OWN = ["cafe", "fuel"]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A monitor of which two shops have detectors of their own, with a batch that is scored, and what its fit said."""
    home = tmp_path_factory.mktemp("segments")
    folder = write_monitor(home / "shops", SEGMENTS)
    (home / "mlflow.yml").write_text('server: {tracking_uri: "sqlite:///state/mlflow.db"}\n')
    with without_figures():
        fit = cli("fit", folder)
        assert cli("review", folder).code in (0, 5)
        assert cli("promote", folder, "--by", "ann", "--force", "--reason", "test").code == 0
    deliver(folder, **{"day.parquet": broken(DAY)})
    assert cli("score", folder).code == 0
    return folder, fit.out


def test_every_scored_row_names_the_detector_that_scored_it(served: tuple[Path, str]) -> None:
    folder, said = served
    assert "Detectors: one for each of 2 segments by shop, and a general one." in said
    assert "  the general one is that of shop 'kiosk': " in said
    assert [line.split()[2] for line in said.splitlines() if line.startswith("  of shop")] == ["'cafe'", "'fuel'"]
    store, commit = Store(folder / "output"), committed(folder)["day.parquet"]
    assert check(store) == []
    rows, report = scores(folder, commit), read_report(store, commit.batch_id)
    assert rows.schema.equals(SEGMENT_SCHEMA)
    shop = np.array(DAY["shop"].to_pylist(), dtype=object)
    ok = np.array(rows["status"].to_pylist()) == "ok"
    named = np.array(rows["segment"].to_pylist(), dtype=object)
    assert (named == np.where(ok & np.isin(shop, OWN), shop, None)).all()
    assert set(named) == {*OWN, None} and not ok.all()
    # the scores are those of the detectors, each by itself
    ws = Workspace.open(folder)
    detector, model = load_champion(ws, Tracker(ws.mlflow))
    assert model.digest == detector.digest == commit.model.digest
    records = contract(broken(DAY), ws.schema, first_row=0, file="day.parquet")
    for name, own in detector.segments.items():
        mine = ok & (shop == name)
        alone = own.detect(records.take(np.flatnonzero(mine)))
        for what in ("score", "p_value", "is_anomaly"):
            assert (rows[what].to_numpy()[mine] == getattr(alone, what)).all()
        assert set(np.array(rows["threshold_version"].to_pylist())[mine]) == {own.threshold.version}
    assert commit.threshold.version == detector.decider.version
    assert {*commit.threshold.segments} == {part.version for part in detector.decider.parts}
    (note,) = [note for note in report.notes if "'shop'" in note]
    others = int((ok & (shop == "kiosk")).sum())
    assert note.startswith(f"{ok.sum() - others:,} records are of the 2 values of 'shop' with a detector of their own;")
    assert report.detectors == 3
    assert {record.detector for record in report.records} >= set(OWN)


def test_a_review_shows_each_detector_and_holds_the_gates_by_the_worst(served: tuple[Path, str]) -> None:
    folder, _ = served
    ws = Workspace.open(folder)
    detector, _ = load_champion(ws, Tracker(ws.mlflow))
    (path,) = (folder / "output" / "reviews").glob("*.json")
    found = json.loads(path.read_text())
    assert [one["segment"] for one in found["served"]] == ["", *OWN]
    gates = {gate["name"]: gate["value"] for gate in found["gates"]}
    sizes = [len(own.threshold.measured) for own in detector.detectors]
    assert [one["calibration_records"] for one in found["served"]] == sizes
    assert gates["calibration records"] == min(sizes)
    assert gates["active latent units"] == min(one["active"] for one in found["served"])
    assert gates["corruption recall"] <= min(one["recall"] for one in found["served"])
    flagged, scored = (sum(one["alerts"][what] for one in found["served"]) for what in ("flagged", "scored"))
    assert gates["false-alarm rate"] == pytest.approx(flagged / scored)
    page = path.with_suffix(".html").read_text()
    assert "Detector by detector" in page and "all others" in page


def test_the_bytes_do_not_depend_on_how_the_rows_arrive(served: tuple[Path, str], tmp_path: Path) -> None:
    one, three = by_rows_and_workers(served[0], tmp_path)
    assert one == three and len(one) == 4


def test_detectors_of_several_segments_are_not_calibrated_again(served: tuple[Path, str]) -> None:
    said = cli("recalibrate", served[0], "--from", "day.parquet", "--by", "ann", "--reason", "looked through")
    (line,) = said.errors
    assert said.code == 2 and "must be one detector to be calibrated again. Got one for each shop" in line


def test_an_edited_alpha_decides_again_from_the_same_scores(served: tuple[Path, str], tmp_path: Path) -> None:
    shutil.copytree(served[0].parent, home := tmp_path / "home")
    folder, again = home / "shops", ("score", home / "shops", "--backfill", "day", "day", "--reprocess", "all")
    before = committed(folder)["day.parquet"]
    (folder / "monitor.yml").write_text(SEGMENTS.replace("alpha: 0.05", "alpha: 0.1"))
    assert cli(*again).code == 0
    after = committed(folder)["day.parquet"]
    ours, theirs = scores(folder, before), scores(folder, after)
    assert ours["score"].equals(theirs["score"]) and ours["segment"].to_pylist() == theirs["segment"].to_pylist()
    assert after.flagged > before.flagged and after.threshold.alpha == 0.1
    assert not {*before.threshold.segments} & {*after.threshold.segments}
    # what its calibration does not support, or what is no threshold for several detectors, is refused in a line
    for text, said in (
        (SEGMENTS.replace("alpha: 0.05", "alpha: 0.01"), "': threshold.alpha must be at least 1 / (n + 1)"),
        (MONITOR.replace("{alpha: 0.05}", "{method: fdr, q: 0.1}"), "must be conformal for a detector with segments"),
        (SEGMENTS.replace("{alpha: 0.05}", "{method: fdr, q: 0.1}"), "must be conformal where there are segments"),
        (MONITOR + "segments: {by: amount}\n", "segments.by must name a category or boolean column. Got 'amount'"),
    ):
        (folder / "monitor.yml").write_text(text)
        refused = cli(*again)
        assert (refused.code, len(refused.errors)) == (2, 1), refused.err
        assert said in refused.errors[0]
    assert check(Store(folder / "output")) == []


@pytest.mark.parametrize("wrong", ["another", "none", "unscorable"])
def test_a_row_that_names_another_detector_is_found(served: tuple[Path, str], tmp_path: Path, wrong: str) -> None:
    shutil.copytree(served[0], folder := tmp_path / "shops")
    commit = committed(folder)["day.parquet"]
    path = folder / "output" / commit.scores.file
    rows = pq.read_table(path)
    names = rows["segment"].to_pylist()
    at = names.index("cafe") if wrong != "unscorable" else 3
    names[at] = {"another": "fuel", "none": None, "unscorable": "cafe"}[wrong]
    altered = rows.set_column(rows.column_names.index("segment"), SEGMENT_SCHEMA.field("segment"),
                              pa.array(names).dictionary_encode())  # fmt: skip
    pq.write_table(altered, path, write_page_checksum=True)
    (record,) = (folder / "output" / "commits").glob("*.json")
    ref = replace(commit.scores, sha256=sha256_of(path), bytes=path.stat().st_size)
    record.write_bytes(replace(commit, scores=ref).to_json())
    problems = [finding.problem for finding in check(Store(folder / "output"))]
    assert [problem for problem in problems if "'segment'" in problem] == problems and problems
