"""Laws of the benchmarks: disjoint seeded splits, measures held to oracles, measurements kept, plain refusals."""

from __future__ import annotations

import csv
import gzip
import json
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))
from pipeline_samples import cli

from vae_anomaly.batch import Records
from vae_anomaly.benchmark import context, generation, logs, methods, mnist
from vae_anomaly.benchmark.measuring import Measured, Split, measured, run, tasks
from vae_anomaly.benchmark.methods import RECIPE, ours, tfidf
from vae_anomaly.benchmark.mnist import Digits
from vae_anomaly.benchmark.results import csv_file, summarise, table
from vae_anomaly.errors import ConfigError
from vae_anomaly.estimator import from_images
from vae_anomaly.fitting import Recipe
from vae_anomaly.likelihoods import PixelLayout
from vae_anomaly.models import build_model
from vae_anomaly.preprocessing.tabular import TabularPreprocessor
from vae_anomaly.samples import write_regions
from vae_anomaly.schema import Column, Schema
from vae_anomaly.workspace import Workspace

SIDE = 6


def digits(each: int = 40, classes: int = 3, seed: int = 0) -> Digits:
    """Images of bright bars, a column for each class; the first pixels number the image."""
    random = np.random.default_rng(seed)
    labels = random.permutation(np.repeat(np.arange(classes, dtype=np.uint8), each))
    images = random.integers(0, 40, (len(labels), SIDE, SIDE)).astype(np.uint8)
    images[np.arange(len(labels)), :, 2 + labels] = 200
    images[:, 0, 0], images[:, 0, 1] = np.divmod(np.arange(len(labels)), 256)
    return Digits(images, labels)


def numbers(images: np.ndarray) -> list[int]:
    return (256 * images[:, 0, 0].astype(int) + images[:, 0, 1]).tolist()


def log(normal: int = 60, alerts: int = 8) -> str:
    lines = [f"- 1 2 3 4 5 RAS KERNEL INFO cache error {i} corrected" for i in range(normal)]
    lines += [f"KERNDTLB 1 2 3 4 5 RAS KERNEL FATAL interrupt {i} lost" for i in range(alerts)]
    return "\n".join(lines) + "\n"


@pytest.fixture
def log_file(tmp_path: Path) -> Path:
    path = tmp_path / "BGL.log"
    path.write_text(log())
    return path


@pytest.fixture
def digit_file(tmp_path: Path) -> Path:
    path = tmp_path / "digits.npz"
    np.savez(path, **digits()._asdict())
    return path


# ---------------------------------------------------------------- the protocols' splits


def test_digits_are_split_as_the_protocol_says() -> None:
    made = digits()
    split = mnist.split(made, 1, 0)
    training, test = numbers(split.training), numbers(split.test)
    assert len(training) == 32
    assert not set(training) & set(test)
    assert len(set(test)) == len(test)
    assert set(made.labels[training]) == {1}
    assert np.bincount(made.labels[test]).tolist() == [8, 8, 8]
    np.testing.assert_array_equal(split.anomalous, made.labels[test] != 1)


def test_half_of_the_normal_lines_train_and_all_others_are_scored(log_file: Path) -> None:
    lines = logs.read(log_file, logs.PATTERN)
    split = logs.split(lines, 0)
    assert lines.messages[0] == "RAS KERNEL INFO cache error 0 corrected"
    assert sorted(split.training + split.test) == sorted(lines.messages)
    assert (len(split.training), len(split.test), split.anomalous.sum()) == (30, 38, 8)
    assert all(("FATAL" in m) == a for m, a in zip(split.test, split.anomalous, strict=True))
    assert not any("FATAL" in m for m in split.training)


def test_halves_of_records_are_disjoint_and_of_one_size() -> None:
    records, schema = from_images(digits(each=21, classes=3).images)
    parts = generation.halves(records, schema, 0)
    assert len(parts.fitted) == len(parts.held_out) == 31
    assert not set(parts.fitted.record_ids) & set(parts.held_out.record_ids)


def test_a_seed_gives_one_split_and_another_seed_another(log_file: Path) -> None:
    made, lines = digits(), logs.read(log_file, logs.PATTERN)
    records, schema = from_images(made.images)
    parts = (
        lambda seed: numbers(mnist.split(made, 1, seed).training),
        lambda seed: logs.split(lines, seed).training,
        lambda seed: generation.halves(records, schema, seed).fitted.record_ids.tolist(),
    )
    for part in parts:
        assert part(3) == part(3)
        assert sorted(part(3)) != sorted(part(4))


def test_context_is_read_with_its_labels_and_trains_on_normal_records(tmp_path: Path) -> None:
    write_regions(tmp_path)
    split = context.read(Workspace.open(tmp_path))
    assert (len(split.training), len(split.test), int(split.anomalous.sum())) == (3072, 1536, 62)
    assert not set(split.training.record_ids) & set(split.test.record_ids)
    assert split.training.labels is None or not split.training.labels.any()


# ---------------------------------------------------------------- measures


@pytest.mark.parametrize(
    ("score", "low", "high"),
    [
        (lambda test: test, 1.0, 1.0),
        (lambda test: -test, 0.0, 0.0),
        (lambda test: np.random.default_rng(0).random(len(test)), 0.45, 0.55),
        (lambda test: np.zeros(len(test)), 0.5, 0.5),
    ],
)
def test_an_oracle_is_perfect_and_chance_is_half(score, low, high) -> None:
    anomalous = np.random.default_rng(1).random(2000) < 0.3
    found = measured(Split(None, anomalous.astype(float), anomalous), lambda training, seed: score, "d", 0, "m")
    assert low <= found.auroc <= high
    if low == 1.0:
        assert found.average_precision == 1.0
    assert found.fit_seconds >= 0 and found.score_seconds >= 0


def test_every_method_meets_every_split_of_every_seed() -> None:
    seen, told = [], []

    def method(training, seed):
        seen.append((training, seed))
        return lambda test: test

    data = {
        name: lambda seed, name=name: Split(f"{name}{seed}", np.array([0.0, 1.0]), np.array([False, True]))
        for name in "ab"
    }
    found = list(run(tasks(data, {"m": method, "n": method}, range(2)), lambda *said: told.append(said)))
    keys = [(m.seed, m.data, m.method) for m in found]
    assert keys == [(s, d, m) for s in (0, 1) for d in "ab" for m in "mn"]
    assert seen == [(f"{d}{s}", s) for s, d, _ in keys]
    assert [(done, total) for _, done, total in told] == [(i, 8) for i in range(8)]


def some(auroc: dict[tuple[str, int], float], method: str = "m") -> list[Measured]:
    return [Measured(data, seed, method, value, value / 2, 1.0 + seed, 0.5) for (data, seed), value in auroc.items()]


def test_the_mean_is_over_everything_and_the_deviation_between_seeds() -> None:
    one = some({("a", 0): 0.8, ("b", 0): 0.6, ("a", 1): 0.9, ("b", 1): 0.7})
    first, second = summarise(one + some({("a", 0): 0.5}, "other"))
    assert (first.method, second.method) == ("m", "other")
    assert first.auroc == pytest.approx(0.75)
    assert first.auroc_deviation == pytest.approx(np.std([0.7, 0.8], ddof=1))  # not that of the four values
    assert first.average_precision == pytest.approx(0.375)
    assert first.by_data == pytest.approx({"a": 0.85, "b": 0.65})
    assert first.fit_seconds == pytest.approx(1.5)
    assert second.auroc_deviation is None
    columns, rows = table([first], precision=True)
    assert all(len(row) == len(columns) for row in rows)
    assert {"a", "b"} <= set(columns)
    assert "a" not in table([second], precision=False)[0]


def test_a_csv_file_keeps_what_was_measured_before_an_interruption(tmp_path: Path) -> None:
    path, found = tmp_path / "out.csv", some({("a", 0): 0.8, ("a", 1): 0.123456789012345})

    def interrupted() -> None:
        with csv_file(path) as (known, write):
            assert known == []
            for one in found:
                write(one)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    expected = [{k: "" if v is None else str(v) for k, v in asdict(one).items()} for one in found]
    assert rows == expected
    path.write_bytes(path.read_bytes() + b"a,1,m,0.5")  # a line that was cut off
    with csv_file(path) as (known, write):
        assert known == found
        write(found[0])
    with csv_file(path) as (known, _):
        assert known == [*found, found[0]]
    path.write_text("something,else\n")
    with pytest.raises(ConfigError, match="other columns"), csv_file(path):
        pass


# ---------------------------------------------------------------- methods


def test_our_detector_tells_what_it_was_trained_on_from_the_rest() -> None:
    split = mnist.split(digits(each=100), 1, 0)
    quick = Recipe(validation=0.05, calibration=0.05, training={"steps": 60})
    assert measured(split, ours(from_images, quick), "d", 0, "ours").auroc > 0.9
    mixed = Split(split.training, split.test, np.random.default_rng(0).permutation(split.anomalous))
    assert 0.3 < measured(mixed, ours(from_images, quick), "d", 0, "ours").auroc < 0.7
    assert (RECIPE.model, RECIPE.score, dict(RECIPE.training)) == (None, None, {})  # nothing but the defaults


@pytest.mark.parametrize("name", ["elbo", "bernoulli"])
def test_the_variants_of_our_detector_can_be_built(name: str, monkeypatch) -> None:
    seen = []

    def fitted(records: Records, schema: Schema, recipe: Recipe) -> SimpleNamespace:
        seen.append(recipe.resolved(schema))
        return SimpleNamespace(detector=None)

    monkeypatch.setattr(methods, "fit_detector", fitted)
    mnist.METHODS[name](digits().images, 3)
    build_model("conv", PixelLayout(1, SIDE, SIDE), seen[0].model.options)
    assert (seen[0].seed, seen[0].model.kind, seen[0].score.kind) == (3, "conv", "negative_elbo")
    assert seen[0].model.options == ({"likelihood": "bernoulli"} if name == "bernoulli" else {})


@pytest.mark.parametrize("name", ["knn", "pca", "iforest"])
def test_simple_methods_tell_bars_apart(name: str) -> None:
    split = mnist.split(digits(each=100), 1, 0)
    assert measured(split, mnist.METHODS[name], "d", 0, name).auroc > 0.8


def test_the_nearest_line_forgets_numbers_and_not_words() -> None:
    score = tfidf(["error at 0x1f in unit 7", "unit ready"], 0)
    same, near, far = score(["error at 0xffff in unit 99", "unit failed", "nothing alike"])
    assert same == pytest.approx(0.0, abs=1e-12)
    assert same < near < far == pytest.approx(1.0)


def test_neighbours_need_the_context_to_find_what_is_ordinary_elsewhere(tmp_path: Path) -> None:
    write_regions(tmp_path)
    ws = Workspace.open(tmp_path)
    split, methods = context.read(ws), context.methods(ws)
    assert measured(split, methods["knn+context"], "d", 0, "").auroc > 0.95
    assert 0.35 < measured(split, methods["knn"], "d", 0, "").auroc < 0.65


# ---------------------------------------------------------------- two-sample tests


def correlated(seed: int, rows: int = 150) -> np.ndarray:
    factor = np.random.default_rng(seed).normal(size=(rows, 2))
    noise = 0.05 * np.random.default_rng(seed + 100).normal(size=(rows, 4))
    return np.column_stack([factor, factor @ [[1.0, 0.5], [-1.0, 0.5]]]) + noise


@pytest.mark.parametrize("images", [False, True])
def test_real_records_are_not_told_from_real_ones_and_bad_ones_are(images: bool, monkeypatch) -> None:
    monkeypatch.setattr(generation, "TREES", 60)
    a, b = correlated(1), correlated(2)
    assert 0.35 < generation.told_apart(a, b, 0, images=images)[0] < 0.65
    assert generation.told_apart(a, b + 5.0, 0, images=images)[0] > 0.99
    assert generation.told_apart(a, generation.shuffled(b, 0), 0, images=images)[0] > 0.75
    assert generation.told_apart(a, generation.uniform(b, 0), 0, images=images)[0] > 0.75


def test_bad_twins_keep_what_they_promise() -> None:
    x = correlated(1)
    x[::7, 2] = np.nan
    mixed, even = generation.shuffled(x, 0), generation.uniform(x, 0)
    for column in range(4):
        np.testing.assert_array_equal(np.sort(mixed[:, column]), np.sort(x[:, column]))
    assert not np.array_equal(mixed, x)
    np.testing.assert_array_equal(np.isnan(even), np.isnan(x))
    assert (np.nanmin(even, 0) >= np.nanmin(x, 0)).all() and (np.nanmax(even, 0) <= np.nanmax(x, 0)).all()


def test_a_generated_time_is_the_time_that_it_says() -> None:
    schema = Schema((Column("at", "timestamp"), Column("n", "number")))
    times = ["Mon 00:00", "Wed 09:41", "Sun 23:59"]
    records = generation._records(pd.DataFrame({"at": times, "n": [1, 2, 3]}), schema)
    assert records.scorable.all()
    assert [pd.Timestamp(value).strftime("%a %H:%M") for value in records.values["at"]] == times


def test_generated_records_have_the_features_and_the_holes_of_real_ones(make_records, schema, monkeypatch) -> None:
    monkeypatch.setattr(generation, "RECIPE", Recipe(validation=0.1, calibration=0.1, training={"steps": 30}))
    parts = generation.halves(make_records(300, holes=0.1), schema, 0)
    assert isinstance(parts.encoder, TabularPreprocessor)
    made, seconds = generation.generated(parts, 0)
    real = parts.matrix(parts.fitted)
    assert made.shape == real.shape
    np.testing.assert_array_equal(np.isnan(made), np.isnan(real))
    assert np.isnan(real).any() and seconds > 0
    again, _ = generation.generated(parts, 0)
    np.testing.assert_array_equal(again, made)


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("zipped", [False, True])
def test_the_files_of_mnist_are_read_as_the_arrays_that_they_hold(tmp_path: Path, zipped: bool) -> None:
    made = digits()
    for name, array in zip(("train-images-idx3-ubyte", "train-labels-idx1-ubyte"), made, strict=True):
        head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
        content = head + array.tobytes()
        path = tmp_path / (f"{name}.gz" if zipped else name)
        path.write_bytes(gzip.compress(content) if zipped else content)
    images, labels = mnist.read(tmp_path)
    np.testing.assert_array_equal(images, made.images)
    np.testing.assert_array_equal(labels, made.labels)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ConfigError, match="images"):
        mnist.read(tmp_path)


def test_lines_that_the_pattern_does_not_match_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    path.write_bytes(b"broken\n\n" + log().replace("\n", "\r\n").encode() + b"- 1 2 3 4 5 caf\xe9\n")
    lines = logs.read(path, logs.PATTERN)
    assert (len(lines.messages), lines.left_out) == (69, 1)
    assert lines.messages[0].endswith("corrected")
    assert lines.messages[-1] == "caf\ufffd"


# ---------------------------------------------------------------- the command line


def test_the_commands_print_a_table_or_json_and_write_every_measurement(digit_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    args = ("benchmark", "mnist", "--data", digit_file, "--digits", "0,2", "--methods", "knn,pca", "--output", out)
    said = cli(*args)
    assert said.code == 0, said.err
    assert "2 seeds" in said.out and "knn" in said.out and "AUROC" in said.out
    assert "seed 1, 2: pca" in said.err
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["seed"], r["data"], r["method"]) for r in rows] == [
        (s, d, m) for s in "01" for d in "02" for m in ("knn", "pca")
    ]
    found = json.loads(cli(*args, "--json").out)
    assert [m["auroc"] for m in found["measured"]] == [float(r["auroc"]) for r in rows]  # the same again
    assert [s["method"] for s in found["summary"]] == ["knn", "pca"]
    assert set(found["summary"][0]["by_data"]) == {"0", "2"}


def test_logs_are_measured_with_a_pattern_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    path.write_text(log().replace(" 1 2 3 4 5 ", "|"))
    args = ("benchmark", "logs", "--data", path, "--seeds", 2, "--methods", "tfidf", "--json")
    found = json.loads(cli(*args, "--pattern", r"(?P<label>[^|]+)\|(?P<message>.+)").out)
    assert found["summary"][0]["auroc"] == 1.0
    assert "60 normal lines, 8 alerts" in found["title"]


def refused(*args: object, word: str) -> None:
    """One line that says what was expected, exit code 2, and no result."""
    said = cli("benchmark", *args)
    assert (said.code, said.out) == (2, ""), said
    assert len(said.err.splitlines()) == 1
    assert said.err.startswith("error: ") and "must" in said.err and ("Got" in said.err or "There is none" in said.err)
    assert word in said.err


def test_wrong_files_are_refused_in_one_line(digit_file: Path, log_file: Path, tmp_path: Path) -> None:
    refused("mnist", "--data", tmp_path / "nowhere.npz", word="does not exist")
    refused("mnist", "--data", tmp_path, word="FileNotFoundError")
    refused("mnist", "--data", log_file, word="BGL.log")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    refused("mnist", "--data", tmp_path / "other.npz", word="images")
    np.savez(tmp_path / "flat.npz", images=np.zeros((4, 9), np.uint8), labels=np.zeros(4))
    refused("mnist", "--data", tmp_path / "flat.npz", word="(4, 9)")
    np.savez(tmp_path / "objects.npz", images=np.array([{}, {}]), labels=np.zeros(2))
    refused("mnist", "--data", tmp_path / "objects.npz", word="ValueError")
    np.save(tmp_path / "one.npy", np.zeros(3))
    refused("mnist", "--data", tmp_path / "one.npy", word="TypeError")
    packed = tmp_path / "packed.npz"
    np.savez_compressed(packed, **digits()._asdict())
    packed.write_bytes(packed.read_bytes()[:900] + bytes(100) + packed.read_bytes()[1000:])
    refused("mnist", "--data", packed, word="rror")
    refused("generation", "--data", tmp_path / "nowhere.npz", word="does not exist")
    refused("logs", "--data", tmp_path / "nowhere.log", word="not there")
    refused("logs", "--data", tmp_path, word="a folder")
    refused("logs", "--data", digit_file, word="--pattern")
    (tmp_path / "calm.log").write_text(log(alerts=0))
    refused("logs", "--data", tmp_path / "calm.log", word="60 and 0")
    refused("context", "--data", tmp_path, word="monitor.yml")


def test_wrong_options_are_refused_in_one_line(digit_file: Path, log_file: Path, tmp_path: Path) -> None:
    mnist_of = ("mnist", "--data", digit_file)
    refused(*mnist_of, "--digits", "0,9", word="Got 9")
    refused(*mnist_of, "--digits", "0-9", word="commas")
    refused(*mnist_of, "--methods", "ours,knm", word="Did you mean 'knn'?")
    refused(
        *mnist_of,
        "--digits",
        "0",
        "--methods",
        "knn",
        "--output",
        tmp_path / "no" / "out.csv",
        word="folder that exists",
    )
    refused("logs", "--data", log_file, "--pattern", "(?P<label>.", word="RE2")
    refused("logs", "--data", log_file, "--pattern", "(?P<label>.)(.*)", word="message")
    assert cli("benchmark", *mnist_of, "--seeds", 0).code == 2


def test_a_monitor_without_context_or_labels_is_refused(tmp_path: Path) -> None:
    write_regions(tmp_path)
    path = tmp_path / "monitor.yml"
    value = yaml.safe_load(path.read_text())
    plain = value | {"columns": {name: {"kind": c["kind"]} for name, c in value["columns"].items()}, "model": {}}
    path.write_text(yaml.safe_dump(plain))
    refused("context", "--data", tmp_path, word="context: true")
    path.write_text(
        yaml.safe_dump({k: v for k, v in value.items() if k != "label"} | {"ignore": ["measured_at", "label"]})
    )
    refused("context", "--data", tmp_path, word="label None")
