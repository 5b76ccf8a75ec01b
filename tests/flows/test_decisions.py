"""Decisions that a batch takes as a whole: by the command line, however its rows arrive, and as its report says."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import nullcontext
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pytest
from pipeline_samples import (
    MONITOR,
    broken,
    by_rows_and_workers,
    cli,
    committed,
    copy,
    counted,
    deliver,
    scores,
    shared_by,
    table,
    write_monitor,
)
from store_samples import tree
from tracking_samples import without_figures

from vae_anomaly.cli import promised
from vae_anomaly.detector import Detector
from vae_anomaly.pyfunc_model import DetectorModel
from vae_anomaly.scoring import read_report
from vae_anomaly.store import sources
from vae_anomaly.store.check import check
from vae_anomaly.store.files import Store
from vae_anomaly.thresholds import conformal, fdr, pot

FDR = "threshold: {method: fdr, q: 0.2}"


def monitor(to: Path, threshold: str = FDR, more: str = "{engine: inline}") -> Path:
    folder = copy(to)
    text = (folder / "monitor.yml").read_text()
    text = text.replace("threshold: {alpha: 0.05}", threshold).replace("{engine: inline}", more)
    (folder / "monitor.yml").write_text(text)
    return folder


def discovered(p: np.ndarray, q: Fraction, n: int) -> np.ndarray:
    """What Benjamini and Hochberg flag, by their definition; a NaN is not scored."""
    m, ranks = int((~np.isnan(p)).sum()), np.rint(p * (n + 1))
    reached = [r for k, r in enumerate(np.sort(ranks[~np.isnan(ranks)]), 1) if Fraction(int(r), n + 1) <= q * k / m]
    return ranks <= max(reached, default=0)


def test_each_batch_has_a_threshold_of_its_own(tmp_path: Path) -> None:
    folder = monitor(tmp_path)
    deliver(
        folder,
        **{"few.parquet": table(60, 31, frauds=6), "many.parquet": broken(table(60, 32, frauds=30))},
        **{"normal.parquet": table(60, 36), "large.parquet": table(600, 34, frauds=1)},
    )
    assert cli("score", folder).code == 0
    store, found = Store(folder / "output"), committed(folder)
    assert check(store) == []
    for commit in found.values():
        rows, report = scores(folder, commit), read_report(store, commit.batch_id)
        p, flag = (rows[name].to_numpy() for name in ("p_value", "is_anomaly"))
        assert (flag == discovered(p, Fraction("0.2"), report.calibration_records)).all()
        assert rows["threshold_version"].unique().to_pylist() == [commit.threshold.version]
        assert (commit.threshold.value is None) == (commit.threshold.alpha == 0) == (not commit.flagged)
        assert (report.discovery_rate, report.flagged) == (0.2, commit.flagged)
        assert report.flagged_range[0] == 0 and report.expected_flagged == commit.expected_flagged < 1
        # what cannot be flagged is said
        fewest = max(1, -(-commit.scored * 5 // (report.calibration_records + 1)))
        assert any(note.startswith(f"Fewer than {fewest:,} anomalies") for note in report.notes) == (fewest > 1)
    assert 0 < found["few.parquet"].threshold.alpha < found["many.parquet"].threshold.alpha
    assert found["large.parquet"].threshold.value is None
    # of each batch it is so, and that is no news
    assert {name: commit.alert for name, commit in found.items()} == {
        "few.parquet": True, "many.parquet": True, "normal.parquet": False, "large.parquet": False}  # fmt: skip
    page = (folder / "output" / "reports" / f"{found['few.parquet'].batch_id}.html").read_text()
    assert "for this batch, so that on average at most 20" in page
    assert "false-alarm rate of" not in page


@pytest.mark.parametrize("way", ["small chunks", "threads", "two workers", "three workers", "worker processes"])
def test_however_the_rows_arrive_the_bytes_are_the_same(
    tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"one.parquet": table(5000, 41, frauds=400), "two.csv": as_csv(broken(table(300, 42, frauds=60)))}
    whole = monitor(tmp_path / "whole")
    deliver(whole, **files)
    assert cli("score", whole).code == 0
    execution = {"threads": "{engine: inline, threads: 3}", "worker processes": "{engine: processes:1}"}
    folder = monitor(tmp_path / "again", more=execution.get(way, "{engine: inline}"))
    deliver(folder, **files)
    if way == "small chunks":
        monkeypatch.setattr(sources, "LARGEST_TABLE", 60_000)
    workers = {"two workers": 2, "three workers": 3}.get(way)
    with shared_by(workers) if workers else nullcontext():
        assert cli("score", folder).code == 0
    kept = [
        {k: v for k, v in tree(f / "output").items() if k.startswith(("scores", "commits"))} for f in (whole, folder)
    ]
    assert len(kept[0]) == 4
    assert kept[0] == kept[1]
    assert os.listdir(folder / "output" / "_tmp") == []
    assert all(commit.flagged for commit in committed(folder).values())


def as_csv(content: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pa.csv.write_csv(content, sink)
    return bytes(sink.getvalue())


@pytest.mark.parametrize("lost", [False, True])
def test_a_batch_that_was_scored_is_decided_again_from_its_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    folder = copy(tmp_path)
    deliver(folder, **{"day.parquet": broken(table(60, 31, frauds=9))})
    assert cli("score", folder).code == 0
    before = committed(folder)["day.parquet"]
    text = (folder / "monitor.yml").read_text()
    (folder / "monitor.yml").write_text(text.replace("threshold: {alpha: 0.05}", FDR))
    rows = scores(folder, before)
    if lost:
        (folder / "output" / before.scores.file).unlink()
    computed = counted(monkeypatch)
    assert cli("score", folder, "--backfill", "day", "day", "--reprocess", "all").code == 0
    after = committed(folder)["day.parquet"]
    assert after.supersedes == before.batch_id and after.threshold.version != before.threshold.version
    again = scores(folder, after)
    assert again.drop_columns(["batch_id", "is_anomaly", "threshold_version"]).equals(
        rows.drop_columns(["batch_id", "is_anomaly", "threshold_version"])
    )
    assert after.flagged
    assert sum(computed) == (60 if lost else 0)  # each record once, and decided from that


def test_the_fit_says_where_a_lone_anomaly_cannot_be_flagged() -> None:
    said = "\n".join(promised(fdr(np.arange(1000.0), q=0.1)))
    assert "False-alarm rate: at most a share 0.1 of what is flagged in a batch, on average; of the highest" in said
    assert "  of 100 normal records, 0.1 are expected to be flagged (95 % range 0 to 2)" in said
    for records, fewest in (("1,000", "10"), ("10,000", "100"), ("100,000", "1,000")):
        assert f"  of {records} records none is flagged unless {fewest} score above all calibration" in said
    assert "none is flagged" not in "\n".join(promised(conformal(np.arange(1000.0), alpha=0.01)))


def test_the_registered_model_takes_the_records_it_is_given_for_a_batch(detector: Detector, make_records: Any) -> None:
    records = make_records(40, 31)
    values = {name: v.to_pylist() if isinstance(v, pa.Array) else v.copy() for name, v in records.values.items()}
    values["amount"][:8] = 1e6
    values["at"] = pd.to_datetime(values["at"], utc=True)
    model = DetectorModel()
    model.detector = replace(detector, threshold=fdr(detector.threshold.measured, q=0.3))
    found = model.predict(pd.DataFrame(values))
    n = len(detector.threshold.measured)
    assert (found["is_anomaly"] == discovered(found["p_value"].to_numpy(), Fraction("0.3"), n)).all()
    assert found["is_anomaly"][:8].all()


# ---------------------------------------------------------------- segments


@pytest.fixture(scope="module")
def segmented(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A monitor whose shops have thresholds of their own, with one batch that is scored, and what its fit said."""
    home = tmp_path_factory.mktemp("segments")
    folder = write_monitor(
        home / "shops", MONITOR.replace("{alpha: 0.05}", "{method: mondrian, by: shop, alpha: 0.05, least: 40}")
    )
    (home / "mlflow.yml").write_text('server: {tracking_uri: "sqlite:///state/mlflow.db"}\n')
    with without_figures():
        fit = cli("fit", folder)
        assert cli("review", folder).code in (0, 5)
        assert cli("promote", folder, "--by", "ann", "--force", "--reason", "test").code == 0
    deliver(folder, **{"day.parquet": broken(table(400, 31, frauds=30))})
    assert cli("score", folder).code == 0
    return folder, fit.out


def test_each_segment_decides_by_its_own_threshold(segmented: tuple[Path, str]) -> None:
    folder, said = segmented
    assert "target 0.05 for each shop of at least 40 calibration records; of all together, expected" in said
    assert [line.split()[2] for line in said.splitlines() if line.startswith("  of shop")] == ["'cafe'", "'fuel'"]
    store, commit = Store(folder / "output"), committed(folder)["day.parquet"]
    assert check(store) == []
    rows, report = scores(folder, commit), read_report(store, commit.batch_id)
    shop = np.array(table(400, 31, frauds=30)["shop"].to_pylist())
    score, p, flag, version = (
        rows[name].to_numpy() for name in ("score", "p_value", "is_anomaly", "threshold_version")
    )
    own = {name: set(version[shop == name]) for name in ("cafe", "fuel", "kiosk")}
    assert all(len(versions) == 1 for versions in own.values())
    assert set().union(*own.values()) == set(commit.threshold.segments)
    values = np.array([commit.threshold.segments[name] for name in version])
    assert len(set(values)) == 3
    assert (flag == (score > values)).all() and (flag == (p <= 0.05)).all()
    assert commit.threshold.version not in commit.threshold.segments
    # what the report says of the records of all segments
    assert commit.expected_flagged == report.expected_flagged == pytest.approx(0.05 * commit.scored, rel=0.3)
    (note,) = [note for note in report.notes if "'shop'" in note]
    kiosk = rows["score"].is_valid().to_numpy() & (shop == "kiosk")
    assert note.startswith(f"{commit.scored - kiosk.sum():,} records are of the 2 values of 'shop'")
    assert f" {kiosk.sum():,} others, {flag[kiosk].sum():,} of them flagged, have that of all" in note
    for record in report.records:
        assert record.p_value == p[record.row_index]


def test_segments_give_the_same_bytes_however_the_rows_arrive(segmented: tuple[Path, str], tmp_path: Path) -> None:
    one, three = by_rows_and_workers(segmented[0], tmp_path)
    assert one == three and len(one) == 4


def test_an_altered_threshold_of_a_segment_is_found(segmented: tuple[Path, str], tmp_path: Path) -> None:
    folder = tmp_path / "shops"
    shutil.copytree(segmented[0], folder)
    (path,) = (folder / "output" / "commits").glob("*.json")
    commit = committed(folder)["day.parquet"]
    first, *_ = commit.threshold.segments
    for change, law in (({first: -1e9}, "I4"), ({"t-other": 1.0}, None)):
        threshold = replace(commit.threshold, segments={**commit.threshold.segments, **change})
        path.write_bytes(replace(commit, threshold=threshold).to_json())
        found = {finding.invariant for finding in check(Store(folder / "output"))}
        assert found == ({law} if law else set())
    threshold = replace(commit.threshold, segments={k: v for k, v in commit.threshold.segments.items() if k != first})
    path.write_bytes(replace(commit, threshold=threshold).to_json())
    assert "I5" in {finding.invariant for finding in check(Store(folder / "output"))}


def test_segments_can_be_calibrated_anew_and_left_and_need_a_fit_for_another_column(
    segmented: tuple[Path, str], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    shutil.copytree(segmented[0].parent, home)
    folder, text = home / "shops", (segmented[0] / "monitor.yml").read_text()
    before = committed(folder)["day.parquet"]
    wanted = {
        "{method: mondrian, by: shop, alpha: 0.1}": 4,  # so few of the third are enough for that
        "{method: mondrian, by: shop, alpha: 0.05, least: 1000}": 0,
        "{alpha: 0.05}": 0,
    }
    seen = {before.threshold.version}
    for threshold, parts in wanted.items():
        (folder / "monitor.yml").write_text(
            text.replace("{method: mondrian, by: shop, alpha: 0.05, least: 40}", threshold)
        )
        assert cli("score", folder, "--backfill", "day", "day", "--reprocess", "all").code == 0
        after = committed(folder)["day.parquet"]
        assert len(after.threshold.segments) == parts
        seen.add(after.threshold.version)
    assert len(seen) == 4
    (folder / "monitor.yml").write_text(text.replace("by: shop", "by: paid"))
    said = cli("score", folder, "--backfill", "day", "day", "--reprocess", "all")
    assert said.code == 2
    assert "threshold.by" in said.errors[-1] and "Got 'paid' for 'shop'" in said.errors[-1]
    assert check(Store(folder / "output")) == []


# ---------------------------------------------------------------- extrapolated


def test_the_fit_says_small_rates_with_their_digits() -> None:
    made = pot(np.random.default_rng(3).lognormal(size=1000), alpha=0.0005)
    said = next(promised(made))
    promise = made.promise
    assert said == (
        "False-alarm rate: target 0.0005, extrapolated from the 100 highest scores and not guaranteed, expected 0.05%,"
        f" 95 % range {100 * promise.low:.2g}% to {promise.high:.2%} with 1,000 calibration records."
    )
    assert 1e-6 < promise.low < 0.0005 < 0.001 < promise.high


def test_an_extrapolated_threshold_decides_and_is_called_one_and_can_be_left(tmp_path: Path) -> None:
    sizes = MONITOR.replace("{validation: 0.15, calibration: 0.4}", "{validation: 0.1, calibration: 0.7}")
    extrapolated = "threshold: {method: pot, alpha: 0.001}"
    folder = write_monitor(tmp_path / "shops", sizes.replace("threshold: {alpha: 0.05}", extrapolated))
    (tmp_path / "mlflow.yml").write_text('server: {tracking_uri: "sqlite:///state/mlflow.db"}\n')
    with without_figures():
        fit, review = cli("fit", folder), cli("review", folder, "--json")
        assert cli("promote", folder, "--by", "ann", "--force", "--reason", "test").code == 0
    words = "extrapolated from the 53 highest scores and not guaranteed"
    assert f"False-alarm rate: target 0.001, {words}, expected 0.1" in fit.out
    found = json.loads(review.out)
    assert any(words in warning for warning in found["warnings"])
    assert {gate["name"]: gate["passed"] for gate in found["gates"]}["supported alpha"]
    deliver(folder, **{"day.parquet": broken(table(300, 31, frauds=30))})
    assert cli("score", folder).code == 0
    store, commit = Store(folder / "output"), committed(folder)["day.parquet"]
    assert check(store) == []
    rows, report = scores(folder, commit), read_report(store, commit.batch_id)
    p, score, flag = (rows[name].to_numpy() for name in ("p_value", "score", "is_anomaly"))
    assert 0 < flag.sum() == commit.flagged
    assert (flag == (score > commit.threshold.value)).all() and set(p[flag]) == {commit.threshold.alpha} == {0.001}
    assert np.nanmin(p[~flag]) >= 1 / (report.calibration_records + 1)
    assert report.extrapolated == 53 and report.expected_flagged == pytest.approx(0.001 * commit.scored, rel=1e-3)
    assert 0 <= report.alpha_range[0] < 0.001 < report.alpha_range[1]
    page = (folder / "output" / "reports" / f"{commit.batch_id}.html").read_text()
    assert "the threshold is extrapolated from the 53 highest of their scores, and not guaranteed" in page
    # another rate needs no scores, one that is too far out names the records that it needs
    text = (folder / "monitor.yml").read_text()
    for wanted, code in (("threshold: {alpha: 0.05}", 0), ("threshold: {method: pot, alpha: 0.0001}", 2)):
        (folder / "monitor.yml").write_text(text.replace(extrapolated, wanted))
        said = cli("score", folder, "--backfill", "day", "day", "--reprocess", "all")
        assert said.code == code
        assert committed(folder)["day.parquet"].threshold.alpha == 0.05
    assert "threshold.method pot with alpha 0.0001 must have 999 calibration records or more. Got " in said.errors[-1]
    assert check(store) == []
