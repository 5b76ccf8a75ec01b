"""Laws of the benchmark on tables: its splits, what is compared, what is kept, and plain refusals."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from pipeline_samples import cli

from vae_anomaly.benchmark import adbench, comparison
from vae_anomaly.benchmark.measuring import Deciding, Measured, Split, measured
from vae_anomaly.errors import ConfigError
from vae_anomaly.models import NOISY


def numbered(normal: int, anomalies: int) -> tuple[np.ndarray, np.ndarray]:
    """Records that are their own number; anomalies stand at the end."""
    rows = normal + anomalies
    return np.arange(rows, dtype=float)[:, None], np.arange(rows) >= normal


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small, a middle and a large set, and one that can be told apart."""
    for name, (normal, anomalies) in {"3_Small": (300, 60), "middle": (2000, 100), "9_large": (60_000, 50)}.items():
        X, y = numbered(normal, anomalies)
        np.savez(tmp_path / f"{name}.npz", X=X, y=y.astype(np.int64))
    g = np.random.default_rng(0)
    X = np.concatenate([g.normal(size=(400, 3)), 6 + g.normal(size=(40, 3))])
    np.savez(tmp_path / "apart.npz", X=X, y=np.arange(440) >= 400)
    return tmp_path


def sets(split: Split) -> tuple[set[float], set[float]]:
    return set(split.training[:, 0].tolist()), set(split.test[:, 0].tolist())


# ---------------------------------------------------------------- splits


def test_names_are_those_of_the_files(folder: Path) -> None:
    assert list(adbench.files(folder)) == ["apart", "large", "middle", "small"]
    assert list(adbench.files(folder, ["small", "apart"])) == ["small", "apart"]


@pytest.mark.parametrize("name", ["small", "middle", "large"])
def test_clean_trains_on_half_of_the_normal_records_and_scores_the_rest(folder: Path, name: str) -> None:
    path = adbench.files(folder)[name]
    split = adbench.clean(path, 0.0, 0)
    training, test = sets(split)
    whole = adbench.read(path)
    normal = set(whole.X[~whole.anomalous, 0].tolist())
    assert not training & test
    assert training <= normal
    assert abs(len(training) - (len(split.test) - split.anomalous.sum())) <= 1
    np.testing.assert_array_equal(split.anomalous, ~np.isin(split.test[:, 0], list(normal)))
    assert len(split.training) + len(split.test) == min(len(whole.X), adbench.MANY)
    assert sets(adbench.clean(path, 0.0, 0)) == (training, test)
    assert sets(adbench.clean(path, 0.0, 1))[0] != training


@pytest.mark.parametrize("share", [0.01, 0.05, 0.1])
def test_contamination_is_that_share_of_the_training_records(folder: Path, share: float) -> None:
    path = adbench.files(folder)["middle"]
    split, whole = adbench.clean(path, share, 3), adbench.read(path)
    mixed = np.isin(split.training[:, 0], whole.X[whole.anomalous, 0])
    wanted = min(share, 50 / 1050)  # half of the anomalies go no further
    assert mixed.mean() == pytest.approx(wanted, abs=1e-3)
    assert not sets(split)[0] & sets(split)[1]
    assert split.anomalous.sum() == 100 - mixed.sum()
    plain = adbench.clean(path, 0.0, 3)
    assert sets(plain)[0] <= sets(split)[0]  # the same normal records


def test_published_draws_as_its_authors_did(folder: Path) -> None:
    small, middle = (adbench.files(folder)[name] for name in ("small", "middle"))
    split = adbench.published(middle, 0)
    assert sets(split) == sets(adbench.published(middle, 1))
    np.testing.assert_array_equal(split.training[:, 0], np.arange(1000))
    np.testing.assert_array_equal(split.test[:, 0], np.arange(1000, 2100))
    np.random.seed(4)
    drawn = np.random.choice(360, 1000, replace=True)
    found = adbench.published(small, 4)
    normal = drawn[drawn < 300]
    half = round(0.5 * len(normal))
    np.testing.assert_array_equal(found.training[:, 0], normal[:half])
    np.testing.assert_array_equal(found.test[:, 0], np.concatenate([normal[half:], drawn[drawn >= 300]]))
    assert sets(found)[0] & sets(found)[1]  # what the protocol is known for


def test_unsupervised_trains_on_what_it_scores(folder: Path) -> None:
    split = adbench.unsupervised(adbench.files(folder)["middle"], 0)
    assert split.test is split.training
    assert split.anomalous.sum() == 100


@pytest.mark.parametrize("name", ["ours", "knn", "lof"])
def test_what_is_trained_on_is_scored_without_itself(name: str) -> None:
    """Twenty lonely records among two hundred of a line: each of them is its own nearest neighbour, if it may be."""
    g = np.random.default_rng(0)
    line = np.outer(g.normal(size=200), np.ones(6)) + 0.05 * g.normal(size=(200, 6))
    X, anomalous = np.concatenate([line, g.normal(size=(20, 6))]), np.arange(220) >= 200
    method = partial(adbench.ours, training={"steps": 300}) if name == "ours" else adbench.METHODS[name]
    assert measured(Split(X, X, anomalous), method, "line", 0, name).auroc > 0.95
    itself = measured(Split(X, X.copy(), anomalous), method, "line", 0, name).auroc
    assert itself < 0.95 or name != "ours"  # the bad twin: scored like new records


# ---------------------------------------------------------------- methods


@pytest.mark.parametrize("name", [name for name in adbench.METHODS if name not in adbench.OF_PYOD])
def test_a_method_tells_what_is_far_and_decides(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NOISY, "steps", 60)
    split = adbench.clean(adbench.files(folder)["apart"], 0.0, 0)
    found = measured(split, adbench.METHODS[name], "apart", 0, name)
    assert found.auroc > 0.99
    assert found.false_alarms_5 is not None and found.recall_5 is not None
    assert found.false_alarms_5 <= (0.6 if name == "ocsvm" else 0.2)
    assert found.recall_5 > 0.9
    if name == "ours":
        assert found.false_alarms_1 is None  # 60 calibration records promise no 1 %


def test_peers_see_standardised_numbers_and_constant_columns_stay() -> None:
    seen = []

    def build(x: np.ndarray, seed: int) -> adbench.Peer:
        seen.append(x)
        return adbench.Peer(x[:, 0], lambda test: test[:, 0])

    training = np.column_stack([np.arange(9.0) * 100, np.full(9, 7.0)])
    score = adbench.peer(build, training, 0)
    np.testing.assert_allclose(seen[0].mean(0), 0.0, atol=1e-12)
    np.testing.assert_allclose(seen[0].std(0), [1.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(score(training), seen[0][:, 0])
    endless = adbench.Peer(training[:, 0], lambda test: test[:, 0] / 0.0)
    assert np.isfinite(adbench.peer(lambda x, seed: endless, training, 0)(training)).all()
    assert isinstance(score, Deciding)
    assert score.threshold(0.5) == pytest.approx(0.0)


def test_decisions_are_shares_of_what_lies_above_the_threshold() -> None:
    split = Split(None, np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), np.array([False, False, False, False, True, True]))
    score = Deciding(lambda test: test, lambda alpha: 3.5 if alpha == 0.05 else np.inf, lambda: np.zeros(6))
    found = measured(split, lambda training, seed: score, "d", 0, "m")
    assert (found.false_alarms_1, found.recall_1) == (None, None)
    assert (found.false_alarms_5, found.recall_5) == (0.25, 1.0)


# ---------------------------------------------------------------- comparison


def some(method: str, aurocs: list[float], seeds: int = 2) -> list[Measured]:
    return [
        Measured(f"set{i}", seed, method, value + 0.01 * seed, value / 2, 1.0, 0.5, None, None, 0.1 * i, 0.5)
        for seed in range(seeds)
        for i, value in enumerate(aurocs)
    ]


def test_the_comparison_is_held_to_hand_counts() -> None:
    first, second = [0.9, 0.8, 0.7, 0.6, 0.9, 0.8, 0.7], [0.8, 0.7, 0.6, 0.7, 0.6, 0.5, 0.4]
    published = {"Known": {f"set{i}": 0.5 for i in range(7)}, "Partial": {"set0": 0.9}}
    found = comparison.compare("title", some("a", first) + some("b", second), published)
    a, b = found.lines
    assert a.auroc == pytest.approx(np.mean(first) + 0.005)
    assert a.error_of_sets == pytest.approx(np.std(first, ddof=1) / np.sqrt(7))
    assert a.error_of_seeds == pytest.approx(0.01 / 2)
    assert (a.wins, b.wins) == (6, 1)
    assert a.rank == pytest.approx(8 / 7) and b.rank == pytest.approx(13 / 7)
    assert a.p_value is None
    assert b.p_value == pytest.approx(0.03125 * 1.5, rel=0.5)
    assert [d.sets for d in a.decisions] == [0, 7]
    assert a.decisions[1].false_alarms == pytest.approx(0.3)
    assert found.by_set["set3"] == pytest.approx({"a": 0.605, "b": 0.705})
    assert comparison.best_published(found) == [("best of 1 on each set", 0.5), ("Known", 0.5)]
    for columns, rows in (comparison.table(found), comparison.table_by_set(found)):
        assert all(len(row) == len(columns) for row in rows)
    same = comparison.compare("t", some("a", first) + some("b", first))
    assert same.lines[1].p_value is None and same.lines[0].wins == same.lines[1].wins == 7
    assert same.lines[0].rank == same.lines[1].rank == 1.5


# ---------------------------------------------------------------- the command


def test_a_run_goes_on_where_it_was_stopped_and_writes_its_page(folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "published.csv"
    table.write_text("dataset,KNN,<b>Other</b>\napart,98.5,70\nmiddle,60,55\n")
    out, page = tmp_path / "out.csv", tmp_path / "page.html"
    common = ("benchmark", "adbench", "--data", folder, "--methods", "knn,iforest", "--output", out, "--seeds", 2)
    first = cli(*common, "--sets", "apart")
    assert first.code == 0, first.err
    assert "seed 1, apart: iforest" in first.err
    other = cli(*common, "--sets", "apart", "--contamination", "0.05")  # is measured anew, into the same file
    assert "seed 1, apart: iforest" in other.err
    before = len(out.read_text().splitlines())
    assert before == 1 + 8
    common = (*common, "--protocol", "published")
    assert cli(*common, "--sets", "apart").code == 0
    again = cli(*common, "--sets", "apart,middle", "--published", table, "--html", page, "--json")
    assert again.code == 0, again.err
    assert "apart" not in again.err and "seed 1, middle: knn" in again.err
    assert len(out.read_text().splitlines()) == before + 8
    found = json.loads(again.out, parse_constant=pytest.fail)
    assert [line["method"] for line in found["lines"]] == ["knn", "iforest"]
    assert found["by_set"]["apart"]["knn"] > 0.99
    assert set(found["published"]) == {"KNN", "<b>Other</b>"}
    text = page.read_text()
    assert "KNN (published)" in text and "&lt;b&gt;Other" in text and "<b>Other" not in text
    assert "http://" not in text and "https://" not in text and "<script" not in text
    said = cli(*common, "--sets", "apart,middle", "--published", table)
    assert "best of 2 on each set" in " ".join(said.out.split())


def test_processes_measure_the_same(folder: Path) -> None:
    args = (
        "benchmark",
        "adbench",
        "--data",
        folder,
        "--sets",
        "apart,middle",
        "--methods",
        "knn",
        "--seeds",
        2,
        "--json",
    )
    one, two = (json.loads(cli(*args, "--jobs", jobs).out)["measured"] for jobs in (1, 2))
    assert [(m["data"], m["seed"], m["auroc"]) for m in one] == [(m["data"], m["seed"], m["auroc"]) for m in two]


def refused(*args: object, word: str) -> None:
    said = cli("benchmark", "adbench", *args)
    assert (said.code, said.out) == (2, ""), said
    assert len(said.err.splitlines()) == 1
    assert said.err.startswith("error: ") and "must" in said.err
    assert word in said.err


def test_wrong_requests_are_refused_in_one_line(folder: Path, tmp_path: Path) -> None:
    # by name, for the peers need not be installed
    (tmp_path / "empty").mkdir()
    refused("--data", tmp_path / "nowhere", "--methods", "knn", word="no folder")
    refused("--data", tmp_path / "empty", "--methods", "knn", word="without one")
    data = ("--data", folder, "--methods", "knn")
    refused(*data, "--sets", "apert", word="Did you mean 'apart'?")
    refused(*data, "--protocol", "cleen", word="Did you mean 'clean'?")
    refused(*data, "--contamination", "0.5", word="0.5")
    refused(*data, "--contamination", "0.1", "--protocol", "published", word="published")
    refused("--data", folder, "--methods", "knm", word="Did you mean 'knn'?")
    refused(*data, "--published", tmp_path / "none.csv", word="--protocol published")
    data = (*data, "--protocol", "published")
    refused(*data, "--published", tmp_path / "none.csv", word="none.csv")
    (tmp_path / "odd.csv").write_text("a,b\n1,2\n")
    refused(*data, "--published", tmp_path / "odd.csv", word="odd.csv")
    refused(*data, "--sets", "apart", "--seeds", 1, "--html", tmp_path / "no" / "page.html", word="folder that exists")
    for name, arrays in {
        "one": {"X": np.zeros((9, 2)), "y": np.zeros(9)},
        "nan": {"X": np.full((9, 2), np.nan), "y": np.arange(9) > 6},
        "flat": {"X": np.zeros(9), "y": np.arange(9) > 6},
        "named": {"a": np.zeros(9)},
        "few": {"X": np.zeros((40, 2)), "y": np.arange(40) > 30},
        "empty": {"X": np.zeros((90, 0)), "y": np.arange(90) > 60},
    }.items():
        bad = tmp_path / f"bad{name}"
        bad.mkdir()
        np.savez(bad / f"{name}.npz", **arrays)
        refused("--data", bad, "--methods", "knn", word=f"{name}.npz")


def test_two_files_of_one_name_are_refused(folder: Path) -> None:
    (folder / "7_apart.npz").write_bytes((folder / "apart.npz").read_bytes())
    refused("--data", folder, "--methods", "knn", word="'7_apart.npz' and 'apart.npz'")


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_set_that_a_method_cannot_learn_is_named(tmp_path: Path, jobs: int) -> None:
    np.savez(tmp_path / "same.npz", X=np.ones((100, 2)), y=np.arange(100) > 80)
    said = cli("benchmark", "adbench", "--data", tmp_path, "--methods", "ours", "--seeds", 1, "--jobs", jobs)
    assert said.code == 2
    assert said.errors == [said.errors[-1]] and "'ours' must be able to learn from 'same' (seed 0)" in said.errors[0]


def test_a_page_is_there_when_it_is_whole(folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    comparison.require_writable(page)
    assert not page.exists()
    with pytest.raises(ConfigError, match="folder that exists"):
        comparison.require_writable(tmp_path)


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adbench.importlib.util, "find_spec", lambda name: None)
    adbench.require_peers(["knn", "ours"])
    with pytest.raises(ConfigError, match=r"\['ecod'\] without PyOD"):
        adbench.require_peers(["knn", "ecod"])
