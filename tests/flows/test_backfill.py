"""Backfill: which files are scored again, what supersedes what, and that nothing happens twice."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from pipeline_samples import Said, broken, cli, copy, counted, deliver, table, write_monitor
from store_samples import tree, untimed
from tracking_samples import without_figures

from vae_anomaly import worker
from vae_anomaly.scoring import Backfill
from vae_anomaly.store.check import check
from vae_anomaly.store.commits import Ledger
from vae_anomaly.store.files import Store

MLFLOW = """\
server: {tracking_uri: "sqlite:///state/mlflow.db"}
registry: {review: {gates: {min_corruption_recall: 0, max_false_alarm_ratio: 20}}}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A monitor with two promoted versions; the second serves."""
    folder = tmp_path_factory.mktemp("backfill")
    monitor = write_monitor(folder / "shops")
    (folder / "mlflow.yml").write_text(MLFLOW)
    for seed in (0, 1):
        text = (monitor / "monitor.yml").read_text().replace("seed: 0\n", "") + ("seed: 1\n" if seed else "seed: 0\n")
        (monitor / "monitor.yml").write_text(text)
        for command in (("fit",), ("review",), ("promote", "--by", "ann", "--force", "--reason", "test")):
            with without_figures():
                said = cli(command[0], monitor, *command[1:])
            assert said.code in (0, 5), said
    return monitor


@pytest.fixture(scope="module")
def scored(home: Path) -> Path:
    """Three days and one that is refused, scored by the first version."""
    deliver(home, **{f"2026-01-0{i}.parquet": table(40, 20 + i) for i in (1, 2, 3)}, **{"2026-01-04.csv": b"id\n1\n"})
    assert cli("rollback", home, "--by", "ann", "--reason", "test").code == 0
    assert cli("score", home).code == 3
    assert run(home, "2026-01-09").code == 0  # nothing there
    return home


def run(folder: Path, first: str, last: str = "", *more: str) -> Said:
    return cli("score", folder, "--backfill", first, last or first, *more)


def verdicts(said: Said) -> dict[str, str]:
    return {batch["name"]: batch["verdict"] for batch in json.loads(said.out)["batches"]}


def without_models(files: dict[str, str]) -> dict[str, str]:
    """All but the caches: of models, which notes when the registry was asked, and of hashes."""
    return {name: digest for name, digest in files.items() if not name.startswith(("models", "hash_cache"))}


def standing(folder: Path) -> dict[str, list[str]]:
    """The states of each file name."""
    found: dict[str, list[str]] = {}
    for row in json.loads(cli("status", folder, "--json").out):
        found.setdefault(row["name"], []).append(row["state"])
    return {name: sorted(states) for name, states in found.items()}


@pytest.mark.parametrize(
    ("first", "last", "meant"),
    [
        ("2026-01-02", "2026-01-03", [1, 2]),
        ("2026-01-02.parquet", "2026-01-02.parquet", [1]),
        ("2026-01", "2026-01", [0, 1, 2, 3]),
        ("2026-01-03", "2026-01-9", [2, 3]),
        ("", "", [0, 1, 2, 3]),
        ("2025", "2025-12", []),
    ],
)
def test_a_range_is_by_name_and_includes_what_begins_with_its_end(first: str, last: str, meant: Sequence[int]) -> None:
    names = ["2026-01-01.csv", "2026-01-02.parquet", "2026-01-03.csv", "2026-01-04.csv"]
    assert [i for i, name in enumerate(names) if Backfill(first, last).covers(name)] == list(meant)


def test_backfill_from_one_model_to_the_next(scored: Path) -> None:
    """One story, for each step builds on the one before."""
    folder, output = scored, scored / "output"
    before = tree(output)

    # a dry run names what would be done, and does nothing
    second = ("--reprocess", "all", "--version", "2", "--json")
    dry = json.loads(
        run(folder, "2026-01-02", "2026-01", "--reprocess", "all", "--version", "2", "--dry-run", "--json").out
    )
    assert [row["name"] for row in dry] == ["2026-01-02.parquet", "2026-01-03.parquet", "2026-01-04.csv"]
    assert without_models(tree(output)) == without_models(before)

    # with the model and configuration that scored there is nothing to do again
    same = run(folder, "2026-01", "2026-01", "--reprocess", "all", "--json")
    assert verdicts(same) == {"2026-01-04.csv": "quarantined"}

    # another version supersedes in the range, and leaves what was there as it was
    said = run(folder, "2026-01-02", "2026-01-03", "--reprocess", "all", "--version", "2", "--json")
    assert verdicts(said) == {"2026-01-02.parquet": "committed", "2026-01-03.parquet": "committed"}
    assert standing(folder)["2026-01-02.parquet"] == ["committed", "superseded"]
    assert standing(folder)["2026-01-01.parquet"] == ["committed"]
    now = tree(output)
    kept = {name for name in untimed(before) if name.startswith(("scores", "commits", "reports"))}
    assert {name: now[name] for name in kept} == {name: before[name] for name in kept}
    fresh = [name for name in now if name.startswith("scores/") and name not in before]
    assert len(fresh) == 2
    for name in fresh:
        scores = pq.read_table(output / name)
        assert scores["model_version"].unique().to_pylist() == ["2"]
        commit = json.loads((output / "commits" / f"{Path(name).stem}.json").read_text())
        assert commit["supersedes"] + ".json" in os.listdir(output / "commits")
        report = json.loads((output / "reports" / f"{Path(name).stem}.json").read_text())
        assert any(note.startswith(f"Supersedes {commit['supersedes']}") for note in report["notes"])
    assert check(Store(output)) == []

    # again: nothing; and back to the first version is a supersession that was made already
    assert verdicts(run(folder, "2026-01", "2026-01-03", "--reprocess", "all", "--version", "2", "--json")) == {
        "2026-01-01.parquet": "committed"
    }
    after = tree(output)
    assert verdicts(run(folder, "2026-01", "2026-01-03", *second)) == {}
    assert verdicts(cli("score", folder, "--json")) == {}
    assert without_models(tree(output)) == without_models(after)

    # what was quarantined is tried again, and stays so until the file is mended or the contract is
    failed = run(folder, "2026-01-04", "2026-01-04", "--reprocess", "failed", "--json")
    assert verdicts(failed) == {"2026-01-04.csv": "quarantined"}
    assert standing(folder)["2026-01-04.csv"] == ["quarantined"]
    assert check(Store(output)) == []


@pytest.mark.parametrize("lost", ["", "gone", "altered", "other code"])
def test_another_threshold_decides_again_and_computes_no_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    folder = copy(tmp_path)
    deliver(folder, **{"2026-03-01.parquet": table(60, 31, frauds=3), "2026-03-02.parquet": broken(table(60, 32))})
    assert cli("score", folder).code == 0
    before = {name: pq.read_table(folder / "output" / name) for name in tree(folder / "output") if is_score(name)}
    text = (folder / "monitor.yml").read_text()
    (folder / "monitor.yml").write_text(
        text.replace("threshold: {alpha: 0.05}", "threshold: {method: pac, alpha: 0.3}")
    )
    computed = counted(monkeypatch)
    for name in before:
        if lost == "gone":
            (folder / "output" / name).unlink()
        elif lost == "altered":
            content = (folder / "output" / name).read_bytes()
            (folder / "output" / name).write_bytes(content[:-1] + b"?")
    if lost == "other code":
        monkeypatch.setattr(worker, "code_version", lambda: "0.0.0")
    assert cli("score", folder).code == 0
    said = run(folder, "2026-03", "2026-03", "--reprocess", "all", "--json")
    assert verdicts(said) == {"2026-03-01.parquet": "committed", "2026-03-02.parquet": "committed"}
    assert computed == ([60, 60] if lost else [])
    for old, scores in before.items():
        (commit,) = [c for c in Ledger(Store(folder / "output")).commits() if c.supersedes == Path(old).stem]
        again = pq.read_table(folder / "output" / commit.scores.file)
        for name in ("row_index", "record_id", "status", "score", "p_value"):
            assert again[name].equals(scores[name])
        p = np.array(again["p_value"].to_pylist(), dtype=float)
        assert (again["is_anomaly"].to_numpy() == (p <= commit.threshold.alpha)).all()
        assert pc.sum(again["is_anomaly"]).as_py() > pc.sum(scores["is_anomaly"]).as_py()
        report = json.loads((folder / "output" / commit.report.file).read_text())
        assert "and threshold t-" in report["notes"][0]
        assert commit.alert == (commit.flagged > 0 or bool(commit.unscorable))  # that it is decided again is no news
    if lost in ("", "other code"):
        assert check(Store(folder / "output")) == []


def is_score(name: str) -> bool:
    return name.startswith("scores/")


def test_a_batch_that_was_poison_is_pardoned_when_it_is_scored(scored: Path) -> None:
    folder, quarantine = scored, scored / "output" / "quarantine"
    deliver(folder, **{"2026-02-01.parquet": table(30, 77)})
    (reason,) = Ledger(Store(folder / "output")).quarantines()
    sha256 = hashlib.sha256((folder / "inbox" / "2026-02-01.parquet").read_bytes()).hexdigest()
    id = f"2026-02-01-{sha256[:12]}"
    poison = replace(reason, rule="poison", sha256=sha256, batch_id=id, name="2026-02-01.parquet").to_json()
    (quarantine / f"{id}.json").write_bytes(poison)
    assert verdicts(cli("score", folder, "--json")) == {}
    assert verdicts(run(folder, "2026-02", "2026-02", "--reprocess", "failed", "--json")) == {
        "2026-02-01.parquet": "committed"
    }
    assert f"{id}.json" not in os.listdir(quarantine)
    assert check(Store(folder / "output")) == []
    # the rest of a run that was killed in between
    (quarantine / f"{id}.json").write_bytes(poison)
    assert [finding.severity for finding in check(Store(folder / "output"))] == ["note"]
    assert cli("score", folder).code == 0
    assert check(Store(folder / "output")) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--reprocess", "all"], "must come with --backfill"),
        (["--dry-run"], "must come with --backfill"),
        (["--backfill", "2026-03", "2026-01"], "from a name to a later one"),
        (["--backfill", "2026-01", "2026-02", "--reprocess", "al"], "Did you mean 'all'?"),
        (["--backfill", "2026-01", "2026-02", "--flow"], "without --flow"),
    ],
)
def test_wrong_requests_are_refused_in_one_line(scored: Path, options: list[str], said: str) -> None:
    found = cli("score", scored, *options)
    assert (found.code, found.out, len(found.err.splitlines())) == (2, "", 1)
    assert said in found.err


def test_a_version_that_is_not_there_is_named(scored: Path) -> None:
    deliver(scored, **{"2026-05-01.parquet": table(30, 90)})
    found = run(scored, "2026-05", "2026-05", "--version", "9")
    assert found.code == 4
    assert "'9'" in found.errors[-1]
