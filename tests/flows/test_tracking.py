"""Laws of the record: one run for a fit, complete versions only, and scoring that needs no registry that answers."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from tracking_samples import DIGESTS, SCHEMA, mlflow, monitor, register, sample, table

from vae_anomaly import tracking
from vae_anomaly.config import config_digest
from vae_anomaly.detector import Detector
from vae_anomaly.errors import ArtifactError, ConfigError
from vae_anomaly.schema import check
from vae_anomaly.tracking import Registered, Tracker

pytestmark = pytest.mark.usefixtures("plain")  # of the fits, that of the fixture ``fitted`` draws figures
EXPERIMENTS = ("Default", "vae-anomaly/train", "vae-anomaly/score", "vae-anomaly/review")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def tracker(folder: Path) -> Tracker:
    made = Tracker(mlflow(folder))
    made.initialise()
    shutil.copy(folder / "state" / "mlflow.db", folder / "empty.db")
    return made


@pytest.fixture
def fresh(tracker: Tracker, folder: Path, tmp_path: Path) -> Path:
    """A folder with an empty store; copied, for making one takes seconds."""
    (tmp_path / "state").mkdir()
    shutil.copy(folder / "empty.db", tmp_path / "state" / "mlflow.db")
    return tmp_path


@pytest.fixture(scope="module")
def fitted(tracker: Tracker, folder: Path) -> Registered:
    """The first fit of the monitor ``first``, made in a folder of which nothing may be left."""
    before, empty = Path.cwd(), folder / "cwd"
    empty.mkdir()
    os.chdir(empty)
    try:
        return register(tracker, monitor("first", folder), sample())
    finally:
        os.chdir(before)


def runs(tracker: Tracker) -> list[str]:
    """The ids of every run of every experiment."""
    client = tracker.client
    every = [e.experiment_id for e in client.search_experiments() if e.name in EXPERIMENTS]
    return sorted(r.info.run_id for r in client.search_runs(every, max_results=1000))


def versions(tracker: Tracker, name: str) -> list[str]:
    return [v.version for v in tracker.client.search_model_versions(f"name = 'vae-anomaly.{name}'")]


# ---- fits ----


def test_a_fit_is_one_finished_run_with_everything_in_it(tracker: Tracker, folder: Path, fitted: Registered) -> None:
    detector = sample().fit.detector
    assert runs(tracker) == [fitted.run_id]
    run = tracker.client.get_run(fitted.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["model.kind"] == "mlp"
    assert run.data.params["plan.epochs"] == "30"
    assert run.data.params["columns"].startswith("6: amount, fee €")
    assert run.data.metrics["threshold"] == pytest.approx(detector.threshold.value)
    assert run.data.metrics["false_alarm_rate.expected"] == pytest.approx(detector.threshold.promise.expected)
    measured = sample().assessment
    expected = {
        "held_out.active_units": measured.held_out.active_units,
        "held_out.reconstruction": measured.held_out.reconstruction,
        "held_out.latent_correlation": measured.held_out.latent_correlation,
        "kl.02": measured.held_out.kl_by_dimension[2],
        "auroc.detector": measured.comparison.auroc["detector"],
        "auroc.pca": measured.comparison.auroc["pca"],
        "corruption_recall.median": measured.recall.median,
        "corruption_recall.column.fee _": measured.recall.headline["fee €"],
        "corruption_recall.missing": np.mean(list(measured.recall.shares["missing"].values())),
    }
    assert {name: run.data.metrics[name] for name in expected} == pytest.approx(expected)
    inputs = {i.dataset.name: {t.key: t.value for t in i.tags}["sha256"] for i in run.inputs.dataset_inputs}
    assert inputs == DIGESTS
    figures = {Path(f.path).stem for f in tracker.client.list_artifacts(fitted.run_id, "figures")}
    assert figures == {
        *("training_curves", "score_histogram", "calibration_curve", "reconstructions"),
        *("latent_dimensions", "corruption", "latent_map", "traversal", "interpolation", "generated"),
    }
    assert list((folder / "cwd").iterdir()) == []


def test_every_epoch_of_a_fit_is_there(tracker: Tracker, fitted: Registered) -> None:
    epochs = sample().fit.epochs

    def history(name: str) -> dict[int, float]:
        return {m.step: m.value for m in tracker.client.get_metric_history(fitted.run_id, f"epoch.{name}")}

    for name in ("validation_elbo", "validation_log_likelihood", "validation_kl", "active_units"):
        assert history(name) == pytest.approx({e.epoch: getattr(e, name) for e in epochs})
    by_dimension = [history(f"validation_kl.{k:02d}") for k in range(3)]
    for e in epochs:
        assert sum(kl[e.epoch] for kl in by_dimension) == pytest.approx(e.validation_kl)


def test_the_curves_of_a_long_training_are_thinned(tracker: Tracker) -> None:
    fit = sample().fit
    epochs = tuple(replace(fit.epochs[0], epoch=i, best=False) for i in range(1000))
    steps: dict[str, list[int]] = {}
    for metric in tracker._epochs(replace(fit, epochs=epochs)):
        steps.setdefault(metric.key, []).append(metric.step)
    assert steps["epoch.validation_elbo"] == list(range(1000))
    assert steps["epoch.validation_kl.02"] == [*range(0, 1000, 5), 999]


def test_a_fit_is_recorded_with_its_verdict_and_what_it_rests_on(
    tracker: Tracker, fitted: Registered, tmp_path: Path
) -> None:
    measured = sample().assessment
    said = " ".join(measured.verdict)
    run = tracker.client.get_run(fitted.run_id)
    assert run.data.tags["verdict"] == said
    assert run.data.tags["mlflow.note.content"].startswith(said)
    assert "False-alarm rate" in run.data.tags["mlflow.note.content"]
    assert tracker.client.get_model_version(fitted.name, fitted.version).tags["verdict"] == said

    def file(name: str) -> str:
        return Path(tracker.client.download_artifacts(fitted.run_id, name, str(tmp_path))).read_text()

    assert file("verdict.txt").splitlines() == list(measured.verdict)
    assert json.loads(file("comparison.json")) == json.loads(json.dumps(asdict(measured.comparison)))
    corruption = json.loads(file("corruption.json"))
    assert corruption == {"records": 160, "places": 6, "shares": measured.recall.shares}
    assert set(corruption["shares"]) == {"swap", "scale", "other", "freeze", "missing", "unknown"}
    assert json.loads(file("held_out.json"))["latent"] == 3


def test_run_and_version_carry_every_digest(tracker: Tracker, folder: Path, fitted: Registered) -> None:
    detector = sample().fit.detector
    expected = {
        "digest.model": detector.digest,
        "digest.schema": SCHEMA.digest,
        "digest.config": config_digest(monitor("first", folder)),
        "digest.threshold": detector.threshold.version,
        "monitor": "first",
    }
    version = tracker.client.get_model_version_by_alias(fitted.name, "candidate")
    for tags in (version.tags, tracker.client.get_run(fitted.run_id).data.tags):
        assert tags.items() >= expected.items()
        assert len(tags["digest.data"]) == 64
    assert (fitted.digest, fitted.version, version.run_id) == (detector.digest, "1", fitted.run_id)


def test_the_same_detector_is_registered_once(tracker: Tracker, folder: Path, fitted: Registered) -> None:
    before = runs(tracker)
    again = register(tracker, monitor("first", folder), sample())
    assert (again.version, again.run_id, again.already) == (fitted.version, fitted.run_id, True)
    assert runs(tracker) == before


def test_a_version_whose_files_are_gone_is_registered_anew(tracker: Tracker, folder: Path) -> None:
    config = monitor("gone", folder)
    first = register(tracker, config, sample())
    shutil.rmtree(Path(tracker.resolve("gone", "1").source))
    with pytest.raises(ArtifactError, match=rf"version 1 of {first.name} must have its files in .*moved"):
        tracker.fetch(tracker.resolve("gone", "candidate"), folder / "cache-gone")
    second = register(tracker, config, sample())
    assert (second.version, second.already, second.digest) == ("2", False, first.digest)
    assert tracker.resolve("gone", "candidate").version == "2"


@pytest.mark.parametrize("stop", ["log_artifacts", "log_model_artifacts", "create_model_version"])
def test_a_fit_that_fails_leaves_no_version(
    tracker: Tracker, folder: Path, monkeypatch: pytest.MonkeyPatch, stop: str
) -> None:
    config = monitor(f"stopped-{stop}", folder)

    def broken(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tracking.MlflowClient, stop, broken)
        with pytest.raises(ArtifactError, match="No space left"):
            register(tracker, config, sample())
    assert versions(tracker, config.name) == []
    train = tracker.client.get_experiment_by_name("vae-anomaly/train").experiment_id
    runs = tracker.client.search_runs([train], f"tags.monitor = '{config.name}'")
    assert [run.info.status for run in runs] == ["FAILED"]
    with pytest.raises(ArtifactError, match="must have a version 'candidate'"):
        tracker.resolve(config.name, "candidate")


def test_a_fit_that_stops_before_the_alias_is_finished_by_the_next(
    tracker: Tracker, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tracking.MlflowClient, "set_registered_model_alias", killed)
        with pytest.raises(KeyboardInterrupt):
            register(tracker, monitor("cut", folder), sample())
    again = register(tracker, monitor("cut", folder), sample())
    assert (again.version, again.already) == ("1", True)
    assert tracker.resolve("cut", "candidate").digest == sample().fit.detector.digest


OUTSIDE = """
import sys, mlflow, pandas as pd
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(f"models:/{sys.argv[2]}@candidate")
model.predict(pd.read_parquet(sys.argv[3])).to_parquet(sys.argv[4])
"""


def test_others_load_the_model_with_pickle_forbidden(
    tracker: Tracker, folder: Path, fitted: Registered, tmp_path: Path
) -> None:
    frame = table(60, seed=5).to_pandas()
    frame.loc[3, "amount"] = np.inf
    frame.sample(frac=1, axis=1, random_state=0).drop(columns="id").to_parquet(tmp_path / "in.parquet")
    env = {**os.environ, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    uri = tracker.config.server.tracking_uri
    command = [sys.executable, "-c", OUTSIDE, uri, fitted.name, tmp_path / "in.parquet", tmp_path / "out.parquet"]
    subprocess.run([str(c) for c in command], env=env, check=True, cwd=tmp_path, timeout=120)
    found = pd.read_parquet(tmp_path / "out.parquet")
    records = check(table(60, seed=5).set_column(1, "amount", [frame["amount"]]), SCHEMA, first_row=0, file="x")
    expected = sample().fit.detector.detect(records)
    for name in ("score", "p_value", "is_anomaly", "status"):
        np.testing.assert_array_equal(found[name].to_numpy(), getattr(expected, name))
    assert found["status"][3] != "ok"


# ---- first start ----

START = """
import os, sys
from pathlib import Path
from vae_anomaly.config import load_mlflow
from vae_anomaly.tracking import Tracker

def child():
    try:
        Tracker(load_mlflow(None, Path(sys.argv[1]), {})).initialise()
        os._exit(0)
    finally:
        os._exit(1)

children = [os.fork() or child() for _ in range(4)]
sys.exit(sum(os.waitpid(pid, 0)[1] != 0 for pid in children))
"""


def test_four_processes_start_on_a_fresh_store(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", START, str(tmp_path)], check=True, cwd=tmp_path, timeout=200)
    client = Tracker(mlflow(tmp_path)).client
    assert sorted(e.name for e in client.search_experiments()) == sorted(EXPERIMENTS)
    assert {p.name for p in tmp_path.iterdir()} == {"state"}


def test_a_file_that_is_no_database_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "state" / "mlflow.db"
    path.parent.mkdir()
    path.write_bytes(b"not a database, but somebody's file")
    with pytest.raises(ArtifactError, match=r"mlflow.db must be an SQLite file"):
        Tracker(mlflow(tmp_path)).initialise()
    assert path.read_bytes() == b"not a database, but somebody's file"


def test_credentials_that_are_not_set_are_named(tmp_path: Path) -> None:
    config = mlflow(tmp_path, VAE_ANOMALY_MLFLOW__SERVER__CREDENTIALS_ENV="[NO_SUCH_TOKEN]")
    with pytest.raises(ConfigError, match="NO_SUCH_TOKEN"):
        Tracker(config).initialise()


def test_a_deleted_experiment_is_named(fresh: Path) -> None:
    tracker = Tracker(mlflow(fresh))
    tracker.client.delete_experiment(tracker.client.get_experiment_by_name("vae-anomaly/score").experiment_id)
    with pytest.raises(ConfigError, match="'vae-anomaly/score' must not be deleted"):
        Tracker(mlflow(fresh)).initialise()


def test_a_registry_of_its_own_holds_the_versions(fresh: Path) -> None:
    shutil.copy(fresh / "state" / "mlflow.db", fresh / "registry.db")
    registry = {"MLFLOW_REGISTRY_URI": f"sqlite:///{fresh}/registry.db"}
    # the copied database keeps its files where it was: a fit says so, and goes on once it is told to leave them there
    with pytest.raises(ConfigError, match="moved or copied"):
        register(Tracker(mlflow(fresh, **registry)), monitor("apart", fresh), sample())
    experiment = Tracker(mlflow(fresh)).client.get_experiment_by_name("vae-anomaly/train")
    place = {"VAE_ANOMALY_MLFLOW__SERVER__ARTIFACT_ROOT": str(Path(experiment.artifact_location).parent)}
    tracker = Tracker(mlflow(fresh, **registry, **place))
    registered = register(tracker, monitor("apart", fresh), sample())
    found = tracker.resolve("apart", "candidate")
    assert Detector.load(tracker.fetch(found, fresh / "cache"), digest=registered.digest).digest == found.digest


# ---- the registry ----


def test_what_is_not_there_is_said_with_the_remedy(tracker: Tracker, fitted: Registered) -> None:
    with pytest.raises(ArtifactError, match=r"version 'champion'. Got none. `vae-anomaly fit` monitor 'nobody' first"):
        tracker.resolve("nobody")
    with pytest.raises(
        ArtifactError, match=r"Version 1 is a candidate: `vae-anomaly review` and `vae-anomaly promote`"
    ):
        tracker.resolve("first")
    with pytest.raises(ArtifactError, match="must have a version '99'"):
        tracker.resolve("first", "99")


@pytest.mark.parametrize("name", ["../x", "/etc", "a\nb", "a/../b", "%2e%2e", "", "x" * 65, "-x", "a\x00b", "ä"])
def test_names_that_lead_elsewhere_are_refused(tracker: Tracker, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="monitor's name must match"):
        tracker.resolve(name)
    with pytest.raises(ConfigError, match="a version must be"):
        tracker.resolve("first", name if name not in ("-x",) else "..", cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_version_that_a_fit_did_not_register_is_refused(tracker: Tracker, tmp_path: Path) -> None:
    tracker.client.create_registered_model("vae-anomaly.foreign")
    tracker.client.create_model_version("vae-anomaly.foreign", f"file://{tmp_path}", await_creation_for=0)
    with pytest.raises(ArtifactError, match=r"must carry the tag digest.model"):
        tracker.resolve("foreign", "1")
    tracker.client.set_model_version_tag("vae-anomaly.foreign", "1", "digest.model", "../../etc")
    with pytest.raises(ArtifactError, match=r"must carry the tag digest.model"):
        tracker.resolve("foreign", "1")
    tracker.client.set_model_version_tag("vae-anomaly.foreign", "1", "digest.model", "0" * 64)
    with pytest.raises(ArtifactError, match="must have its files in"):
        tracker.fetch(tracker.resolve("foreign", "1"), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_fetched_files_are_verified_and_mended(tracker: Tracker, fitted: Registered, tmp_path: Path) -> None:
    found = tracker.resolve("first", "candidate")
    folder = tracker.fetch(found, tmp_path)
    assert folder == tmp_path / fitted.digest
    assert [p.name for p in tmp_path.iterdir()] == [fitted.digest]
    weights = folder / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert Detector.load(tracker.fetch(found, tmp_path), digest=fitted.digest).digest == fitted.digest


@pytest.mark.parametrize("file", ["detector.json", "manifest.json", "weights.safetensors"])
def test_altered_artifacts_are_refused(
    tracker: Tracker, folder: Path, tmp_path: Path, file: str, fitted: Registered
) -> None:
    found = tracker.resolve("first", "candidate")
    copy = shutil.copytree(found.source, tmp_path / "model")
    path = copy / "artifacts" / "detector" / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    altered = tracking.Resolved(found.name, found.version, found.digest, str(copy))
    with pytest.raises(ArtifactError, match=f"version 1 of {found.name} .*{file}"):
        tracker.fetch(altered, tmp_path / "cache")


# ---- a registry that is away ----


@pytest.fixture
def silent_server() -> Iterator[str]:
    """An address that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://me:secret@127.0.0.1:{server.getsockname()[1]}"


def test_scoring_goes_on_with_what_the_registry_said_last(
    tracker: Tracker, fitted: Registered, tmp_path: Path, silent_server: str, caplog: pytest.LogCaptureFixture
) -> None:
    known = tracker.resolve("first", "candidate", cache=tmp_path)
    tracker.fetch(known, tmp_path)
    away = Tracker(mlflow(tmp_path, MLFLOW_TRACKING_URI=silent_server), patience=1.5)
    started = time.monotonic()
    found = away.resolve("first", "candidate", cache=tmp_path)
    assert time.monotonic() - started < 4
    assert (found.name, found.version, found.digest) == (known.name, known.version, known.digest)
    assert "did not answer" in found.note
    assert "0.0 hours ago" in found.note
    assert Detector.load(away.fetch(found, tmp_path), digest=found.digest).digest == known.digest
    assert "secret" not in found.note + caplog.text


def test_what_cannot_be_remembered_is_found_all_the_same(
    tracker: Tracker, fitted: Registered, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the place of a folder")
    found = tracker.resolve("first", "candidate", cache=tmp_path / "file")
    assert found.version == fitted.version
    assert "cannot be remembered" in caplog.text


@pytest.mark.parametrize("memory", [None, "{}", "not json", '{"at": "2026-01-01T00:00:00+00:00", "name": "other"}'])
def test_without_a_usable_memory_it_is_an_error(tmp_path: Path, silent_server: str, memory: str | None) -> None:
    away = Tracker(mlflow(tmp_path, MLFLOW_TRACKING_URI=silent_server), patience=0.2)
    if memory is not None:
        (tmp_path / "vae-anomaly.first.champion.json").write_text(memory)
    with pytest.raises(ArtifactError, match=r"must answer within 0.2 s.*no earlier answer") as caught:
        away.resolve("first", cache=tmp_path)
    assert "secret" not in str(caught.value)


def test_a_scoring_run_is_recorded(tracker: Tracker, tmp_path: Path) -> None:
    report = tmp_path / "monday-0123456789ab.html"
    report.write_text("<p>")
    metrics = {"records": 10, "score.q50": 1.5, "score.q99": float("nan")}
    run_id = tracker.log_scoring("first", metrics=metrics, tags={"model.version": "1"}, files=[report])
    run = tracker.client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"records": 10.0, "score.q50": 1.5}
    assert run.data.tags["model.version"] == "1"
    assert [f.path for f in tracker.client.list_artifacts(run_id, "reports")] == [f"reports/{report.name}"]


def test_a_locked_database_costs_a_warning(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = Tracker(mlflow(fresh))
    tracker.initialise()
    monkeypatch.setattr(tracking, "LOGGING_SECONDS", 1.0)
    holder = sqlite3.connect(fresh / "state" / "mlflow.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        started = time.monotonic()
        assert tracker.log_scoring("first", metrics={"records": 1}) is None
        assert time.monotonic() - started < 3
    finally:
        holder.execute("ROLLBACK")
        holder.close()
    assert "first: MLflow has no record of this scoring run (no answer within 1 s)" in caplog.text


def test_a_failing_report_costs_a_warning(tracker: Tracker, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert tracker.log_scoring("first", metrics={}, files=[tmp_path / "missing.html"]) is None
    assert "the scores are kept" in caplog.text


def test_what_a_run_stores_is_bounded(tracker: Tracker, fitted: Registered) -> None:
    run = tracker.client.get_run(fitted.run_id)
    path = tracker.client.download_artifacts(fitted.run_id, "monitor.json")
    assert json.loads(Path(path).read_text())["name"] == "first"
    assert max(map(len, run.data.params.values())) <= 500
