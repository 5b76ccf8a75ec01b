"""Laws of the command line: documented exit codes, one line for a user's mistake, JSON for machines, a quiet inbox.

Commands run in this process, as the installed program does; what belongs to a process (start-up, signals) runs in one.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))
import pipeline_samples as samples
from pipeline_samples import PROGRAM, Said, cli, copy, deliver, program, table, write_monitor
from store_samples import tree, untimed

from vae_anomaly import pipelines, scoring
from vae_anomaly.config import load_monitor
from vae_anomaly.demo import DemoRun, prepare_demo, show_demo
from vae_anomaly.worker import Scorer
from vae_anomaly.workspace import user

COMMANDS = ("init", "fit", "review", "approve", "reject", "promote", "rollback", "history", "score", "report", "status",
             "check", "serve", "demo", "overview", "feedback", "alerts")  # fmt: skip
BROKEN = b"id,amount\n1,2\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The promoted monitor, with an empty inbox and no results."""
    return copy(tmp_path)


def refused(said: Said, code: int, *words: str) -> None:
    """The documented exit code, one line that names what it is about, no traceback, nothing on stdout."""
    assert (said.code, said.out) == (code, ""), said
    assert [line[:7] for line in said.errors] == ["error: "], said.err
    assert "Traceback" not in said.err
    for word in words:
        assert word in said.errors[0]


def edited(folder: Path, **changes: Any) -> Path:
    """The folder, its monitor.yml changed."""
    path = folder / "monitor.yml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes, sort_keys=False))
    return folder


def states_of(folder: Path) -> list[tuple[str, str]]:
    """What ``status`` says of every file."""
    return sorted((row["name"], row["state"]) for row in json.loads(cli("status", folder, "--json").out))


# ---------------------------------------------------------------- start-up


def test_help_is_quick() -> None:
    taken = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([PROGRAM, "--help"], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    assert min(taken) < 0.5


def test_nothing_heavy_is_imported_for_help_or_for_a_mistake(tmp_path: Path) -> None:
    code = """if True:
        import sys
        from vae_anomaly.cli import main
        heavy = {"torch", "mlflow", "prefect", "sklearn", "matplotlib", "scipy"}
        for args in (["--help"], ["score", "--help"], ["score", "nowhere"], ["check", "nowhere"]):
            sys.argv = ["vae-anomaly", *args]
            try:
                main()
            except SystemExit:
                pass
        assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_command_explains_itself() -> None:
    whole = cli("--help")
    assert (whole.code, cli().code) == (0, 2)
    assert all(f"\n  {command} " in whole.out for command in COMMANDS)
    assert "130 interrupted" in whole.out
    for command in COMMANDS:
        said = cli(command, "--help")
        assert said.code == 0
        assert f"{command} [OPTIONS]" in said.out


@pytest.mark.parametrize("args", [("scor",), ("score",), ("score", "x", "--jsn"), ("promote", "x", "--by")])
def test_wrong_usage_is_explained(args: tuple[str, ...]) -> None:
    said = cli(*args)
    assert said.code == 2
    assert said.err.splitlines()[-1].startswith("Error: ")
    assert "Traceback" not in said.err


# ---------------------------------------------------------------- the life of a monitor


def test_fit_prints_what_the_threshold_promises() -> None:
    said = samples.story()["fit"]
    assert said.code == 0
    assert "registered as vae-anomaly.shops version 1, the candidate" in said.out
    assert "10 labelled as anomalies" in said.out
    assert re.search(r"target 5\.00%, expected \d\.\d+%, 95 % range .* with 1\d\d calibration records", said.out)
    assert "of 1,000 normal records" in said.out
    assert re.search(r"Corrupted records found: median \d+%; least for \w+ \d+%", said.out)
    assert re.search(r"^Verdict: \d of 3 latent dimensions (is|are) used\.$", said.out, re.MULTILINE)
    assert re.search(r"^Verdict: .*AUROC 0\.\d\d against 0\.\d\d", said.out, re.MULTILINE)
    assert "vae-anomaly review " in said.out


def test_nothing_is_scored_before_a_promotion_or_promoted_before_a_review() -> None:
    said = samples.story()
    refused(said["early history"], 4, "vae-anomaly.shops", "`vae-anomaly fit`")
    refused(said["early score"], 4, "vae-anomaly.shops", "'champion'", "`vae-anomaly promote`")
    refused(said["early promote"], 5, "must be reviewed before", "Run `vae-anomaly review`")


def test_review_and_promote_answer_in_json() -> None:
    review, promoted = (json.loads(samples.story()[name].out) for name in ("review", "promote"))
    assert review["passed"] is True
    assert {"name", "value", "limit", "passed"} <= review["gates"][0].keys()
    assert (promoted["version"], promoted["by"], promoted["reason"], promoted["previous"]) == ("1", "ann", "first", "")


@pytest.mark.usefixtures("plain")
def test_a_second_version_is_reviewed_promoted_and_rolled_back(tmp_path: Path) -> None:
    folder = edited(write_monitor(tmp_path / "other"), name="other")
    (tmp_path / "mlflow.yml").write_text(samples.shared_store())
    first = json.loads(cli("fit", folder, "--json").out)
    assert first.keys() >= {"model", "version", "false_alarm_rate", "corruption_recall", "records", "epochs"}
    assert first["verdict"][0].endswith("of 3 latent dimensions are used.")
    assert first["corruption_recall"]["scale"].keys() == {"amount", "fee", "items", "at"}
    assert first["comparison"]["auroc"].keys() == {"detector", "pca", "knn", "iforest"}
    assert (first["version"], first["already_registered"]) == ("1", False)
    again = cli("fit", folder)
    assert "is registered already as vae-anomaly.other version 1" in again.out
    assert cli("promote", folder, "--by", "ann", "--force").code == 2  # no reason
    assert cli("promote", folder, "--by", "ann", "--force", "--reason", "the first").code == 0
    refused(cli("rollback", folder, "--by", "ann"), 5, "version 1", "before it")
    env = {"VAE_ANOMALY_MONITOR__SEED": "3"}
    assert json.loads(cli("fit", folder, "--json", env=env).out)["version"] == "2"
    (tmp_path / "strict.yml").write_text(
        samples.shared_store() + "registry: {review: {gates: {min_calibration_records: 100000}}}\n"
    )
    strict = cli("review", folder, "--mlflow", tmp_path / "strict.yml", env=env)
    assert (strict.code, "version 2: NOT passed" in strict.out) == (5, True)
    refused(cli("promote", folder, "--by", "ann"), 5, "version 2", "calibration records")
    assert "Review of vae-anomaly.other version 2: passed" in cli("review", folder, env=env).out
    assert "version 2 is the champion now" in cli("promote", folder, "--by", "ann").out
    assert "champion already" in cli("promote", folder, "--by", "ann").out
    back = json.loads(cli("rollback", folder, "--by", "bob", "--reason", "odd", "--json").out)
    assert (back["version"], back["previous"], back["action"]) == ("1", "2", "rolled back")
    assert "version 2 is rejected by cho" in cli("reject", folder, "--by", "cho", "--reason", "odd").out
    refused(cli("promote", folder, "--by", "ann"), 5, "version 2", "must not be rejected", "by cho: odd")
    refused(
        cli("approve", folder, "--by", "bea", "--reason", "ok", "--review", "beef"), 5, "that was looked at", "beef"
    )
    assert "version 2 is approved by bea (review " in cli("approve", folder, "--by", "bea", "--reason", "ok").out
    decided = json.loads(cli("history", folder, "--json").out)
    assert [d["action"] for d in decided] == ["forced", "reviewed", "reviewed", "approved", "promoted", "rolled back",
                                              "rejected", "approved"]  # fmt: skip
    assert "rolled back" in cli("history", folder).out
    two = tmp_path / "two.yml"
    two.write_text(samples.shared_store() + "registry: {review: {second_person: true}}\n")
    mine = ("approve", folder, "--reason", "mine", "--mlflow", two, "--by")
    refused(cli(*mine, user()), 5, "somebody else than")
    assert cli(*mine, "dee").code == 0


# ---------------------------------------------------------------- score, report, status, check


def test_score_report_status_and_check(folder: Path) -> None:
    deliver(folder, **{"mon.parquet": table(60, 3, frauds=6), "tue.csv": BROKEN, "wed.parquet": table(40, 4)})
    said = cli("score", folder)
    assert said.code == 3
    assert "missing_column: fee" in said.out
    assert "of 6" in said.out  # labelled anomalies
    assert re.search(r"reason .*quarantine/tue-\w{12}\.json", said.out)
    assert re.search(r"overview .*reports/index\.html\n", said.out)
    again = cli("score", folder)
    assert (again.code, again.out) == (0, "Nothing to score: 3 files in the inbox are done already.\n")
    shown = cli("report", folder, "mon.parquet")
    verdict, page = shown.out.splitlines()
    assert "of 60 records flagged" in verdict
    assert "<html" in Path(page).read_text()
    assert json.loads(cli("report", folder, "mon.parquet", "--json").out)["verdict"] == verdict
    assert cli("report", folder, Path(page).stem).out == shown.out
    assert [state for _, state in states_of(folder)] == ["committed", "quarantined", "committed"]
    text = cli("status", folder).out
    assert "of 60 flagged, model version 1" in text
    assert "missing_column: fee" in text
    assert cli("check", folder).out == "The store is sound.\n"
    assert json.loads(cli("check", folder, "--json").out) == []


def test_score_answers_in_json(folder: Path) -> None:
    deliver(folder, **{"mon.parquet": table(60, 3, frauds=6), "tue.csv": BROKEN})
    said = cli("score", folder, "--json")
    found = json.loads(said.out)
    assert said.code == 3
    assert [(b["name"], b["verdict"]) for b in found["batches"]] == [
        ("mon.parquet", "committed"),
        ("tue.csv", "quarantined"),
    ]
    assert (found["batches"][0]["records"], found["batches"][0]["unscorable"]) == (60, {})
    assert Path(found["batches"][0]["report"]).is_file()
    assert found["model"]["version"] == "1"
    again = json.loads(cli("score", folder, "--json").out)
    assert (again["already_done"], again["batches"], again["model"]) == (2, [], None)


def test_a_scoring_run_is_recorded_with_its_reports(folder: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(yaml.safe_load(samples.shared_store())["server"]["tracking_uri"])

    def runs() -> dict[str, Any]:  # also those of other tests, some of which run at another time
        experiment = client.get_experiment_by_name("vae-anomaly/score")
        return {run.info.run_id: run for run in client.search_runs([experiment.experiment_id])} if experiment else {}

    before = runs()
    deliver(folder, **{"mon.parquet": table(60, 3, frauds=6), "tue.csv": BROKEN})
    cli("score", folder)
    (run,) = (run for key, run in runs().items() if key not in before)
    assert run.data.metrics["batches.committed"] == 1
    assert run.data.metrics["batches.quarantined"] == 1
    assert run.data.metrics["records"] == 60
    assert run.data.metrics["score.q5"] < run.data.metrics["score.q99"]
    names = {Path(f.path).name[:4] for f in client.list_artifacts(run.info.run_id, "reports")}
    assert names == {"mon-", "tue-"}


def test_status_says_where_every_file_stands(folder: Path) -> None:
    first, second = table(30, 3), table(30, 4)
    deliver(folder, **{"mon.parquet": first, "tue.csv": BROKEN})
    cli("score", folder)
    shutil.copy(folder / "inbox" / "mon.parquet", folder / "inbox" / "renamed.parquet")  # A53
    deliver(folder, **{"mon.parquet": second})  # A54
    assert states_of(folder) == [
        ("mon.parquet", "pending"),
        ("mon.parquet", "superseded"),
        ("renamed.parquet", "duplicate"),
        ("tue.csv", "quarantined"),
    ]
    said = cli("score", folder, "--json")
    assert [b["name"] for b in json.loads(said.out)["batches"]] == ["mon.parquet"]
    assert states_of(folder)[:2] == [("mon.parquet", "committed"), ("mon.parquet", "superseded")]
    assert cli("check", folder).code == 0
    (folder / "inbox" / "mon.parquet").unlink()  # a producer may clean up
    assert states_of(folder)[0] == ("mon.parquet", "committed")


def test_status_of_a_monitor_that_never_scored_changes_nothing(tmp_path: Path) -> None:
    folder = write_monitor(tmp_path / "new")
    deliver(folder, **{"mon.parquet": table(5)})
    before = tree(tmp_path)
    assert states_of(folder) == [("mon.parquet", "pending")]
    assert tree(tmp_path) == before


def test_check_finds_a_flipped_bit(folder: Path) -> None:
    deliver(folder, **{"mon.parquet": table(30, 3)})
    cli("score", folder)
    path = next((folder / "output" / "scores").iterdir())
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    said = cli("check", folder)
    assert said.code == 6
    assert f"scores/{path.name}: Its sha256 is not the one in its commit." in said.out
    found = json.loads(cli("check", folder, "--json").out)
    assert [(f["invariant"], f["severity"]) for f in found] == [("I3", "error")]


def test_what_the_next_run_finishes_is_a_note_and_no_fault(folder: Path) -> None:
    deliver(folder, **{"mon.parquet": table(60, 3, frauds=6)})
    cli("score", folder)
    page = next((folder / "output" / "reports").glob("mon-*.html"))
    page.unlink()
    said = cli("check", folder)
    assert (said.code, "Not written yet" in said.out) == (0, True)
    assert cli("score", folder).code == 0
    assert page.is_file()


def test_a_damaged_report_is_told_and_holds_nothing_back(folder: Path) -> None:
    deliver(folder, **{"mon.parquet": table(60, 3, frauds=6)})
    cli("score", folder)
    page = next((folder / "output" / "reports").glob("mon-*.html"))
    page.unlink()
    page.with_suffix(".json").write_text("{")
    deliver(folder, **{"tue.parquet": table(60, 5, frauds=6)})
    said = cli("score", folder, "--json")
    found = json.loads(said.out)
    assert (said.code, [b["verdict"] for b in found["batches"]]) == (3, ["committed"])
    assert "vae-anomaly check" in found["undelivered_alerts"][0]
    assert cli("check", folder).code == 6
    refused(cli("report", folder, "mon.parquet"), 6, page.stem, "vae-anomaly check")


def test_the_inbox_is_read_only(folder: Path) -> None:
    inbox = folder / "inbox"
    deliver(folder, **{"mon.parquet": table(30, 3), "tue.csv": BROKEN, ".part.csv": BROKEN, "_SUCCESS": b""})
    (inbox / "link.csv").symlink_to("tue.csv")

    def state() -> list[tuple[object, ...]]:
        stats = [(p.name, p.lstat()) for p in (inbox, *sorted(inbox.iterdir()))]
        return [(name, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_mode) for name, s in stats]

    for path in inbox.iterdir():
        if not path.is_symlink():
            path.chmod(0o444)
    inbox.chmod(0o555)
    before = state()
    try:
        assert cli("score", folder).code == 3
        assert cli("status", folder).code == cli("score", folder).code == 0
        assert state() == before
    finally:
        inbox.chmod(0o755)


def test_files_of_one_run_that_are_still_being_written_wait(folder: Path) -> None:
    deliver(folder, **{"mon.parquet": table(30, 3)})
    edited(folder, source={"training": "training", "inbox": "inbox", "settle_seconds": 3600})
    said = cli("score", folder)
    assert (said.code, said.out) == (0, "Still being written, left for the next run: mon.parquet\n")
    os.utime(folder / "inbox" / "mon.parquet", (time.time() - 4000,) * 2)
    assert len(json.loads(cli("score", folder, "--json").out)["batches"]) == 1


# ---------------------------------------------------------------- init


def test_init_writes_a_monitor_and_never_overwrites(tmp_path: Path) -> None:
    folder = write_monitor(tmp_path / "shops")
    said = cli("init", "--from", folder / "training", tmp_path / "mine.yml")
    assert said.code == 0
    config = load_monitor(tmp_path / "mine.yml", env={})
    kinds = {name: column.kind for name, column in config.columns.items()}
    assert kinds | {"items": "number"} == {
        **{"amount": "number", "fee": "number", "items": "number"},
        **{"paid": "boolean", "shop": "category", "at": "timestamp"},
    }
    assert config.record_id == "id"
    assert f"vae-anomaly fit {tmp_path / 'mine.yml'}" in said.out
    before = (tmp_path / "mine.yml").read_bytes()
    refused(cli("init", "--from", folder / "training", tmp_path / "mine.yml"), 2, "mine.yml")
    assert (tmp_path / "mine.yml").read_bytes() == before


def test_init_from_a_wrong_path(tmp_path: Path) -> None:
    (tmp_path / "training").mkdir()
    refused(cli("init", "--from", tmp_path / "trainign", tmp_path / "m.yml"), 2, "trainign", "'training'")
    assert cli("init", "--from", tmp_path / "training", tmp_path / "m.yml").code in (2, 3)
    assert not (tmp_path / "m.yml").exists()


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    "command", ["fit", "review", "promote", "rollback", "history", "score", "status", "check", "serve"]
)
def test_a_wrong_path(tmp_path: Path, command: str) -> None:
    write_monitor(tmp_path / "shops")
    refused(cli(command, tmp_path / "shops" / "monitr.yml"), 2, "monitr.yml", "Did you mean 'monitor.yml'?")
    refused(cli(command, tmp_path / "nowhere" / "x.yml"), 2, "nowhere")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"treshold": {"alpha": 0.1}}, ["unknown key 'treshold'", "Did you mean 'threshold'?"]),
        ({"threshold": {"alhpa": 0.1}}, ["unknown key 'alhpa'", "Did you mean 'alpha'?"]),
        ({"threshold": {"alpha": 0}}, ["threshold.alpha", "greater than 0", "Got 0"]),
        ({"threshold": {"alpha": 1.5}}, ["threshold.alpha", "less than 1"]),
        ({"columns": {"amount": {"kind": "nmber"}}}, ["columns.amount.kind", "'number'"]),
        ({"source": {"training": "training"}}, ["source.inbox", "must be given"]),
        ({"name": "../up"}, ["name"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_mistake_in_the_configuration(tmp_path: Path, changes: dict[str, Any], words: list[str]) -> None:
    folder = edited(write_monitor(tmp_path / "shops"), **changes)
    for command in ("fit", "score", "check"):
        refused(cli(command, folder), 2, "monitor.yml", *words)


def test_a_file_that_is_no_yaml_or_a_variable_that_is_wrong(folder: Path) -> None:
    refused(cli("status", folder, env={"VAE_ANOMALY_MONITOR__THRESHOLD__ALPHA": "0"}), 2, "threshold.alpha", "ALPHA")
    (folder / "monitor.yml").write_text("name: [")
    refused(cli("status", folder), 2, "monitor.yml", "line 2")


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"model": {"kind": "mpl"}}, 2, ["model", "'mpl'", "Did you mean 'mlp'?"]),
        ({"model": {"kind": "mlp", "latnet": 3}}, 2, ["model 'mlp'", "'latnet'", "Did you mean 'latent'?"]),
        ({"score": {"kind": "elbo_negative"}}, 2, ["score", "'elbo_negative'", "negative_elbo"]),
        ({"threshold": {"alpha": 0.0001}}, 2, ["threshold.alpha", "0.0001", "calibrat"]),
    ],
    ids=["model", "option", "score", "alpha"],
)
def test_a_fit_that_cannot_be(tmp_path: Path, changes: dict[str, Any], code: int, words: list[str]) -> None:
    folder = edited(write_monitor(tmp_path / "bad"), name="bad", **changes)
    (tmp_path / "mlflow.yml").write_text(samples.shared_store())
    refused(cli("fit", folder), code, *words)
    refused(cli("review", folder), 4, "'candidate'", "`vae-anomaly fit`")  # nothing was registered


def test_folders_that_are_empty_or_missing(folder: Path) -> None:
    assert cli("score", folder).out == "Nothing to score: the inbox is empty.\n"
    (folder / "inbox").rename(folder / "inbx")
    for command in ("score", "status"):
        refused(cli(command, folder), 2, "inbox", "Did you mean 'inbx'?")
    (folder / "training" / "normal.parquet").rename(folder / "normal.parquet")
    refused(cli("fit", folder), 3, "no_files", "training")
    (folder / "training").rename(folder / "trainings")
    refused(cli("fit", folder), 2, "training", "Did you mean 'trainings'?")


def test_a_training_file_that_breaks_the_contract_is_named(tmp_path: Path) -> None:
    folder = write_monitor(tmp_path / "shops")
    (folder / "training" / "older.csv").write_bytes(BROKEN)
    refused(cli("fit", folder), 3, "missing_column", "older.csv", "'fee'")
    assert not (folder / "state").exists()  # known before anything slow or lasting


def test_a_column_that_the_training_records_do_not_have(tmp_path: Path) -> None:
    folder = edited(write_monitor(tmp_path / "shops"), columns={"amuont": {"kind": "number"}})
    refused(cli("fit", folder), 3, "missing_column", "normal.parquet", "'amuont'", "'amount'")


def test_an_unknown_batch(folder: Path) -> None:
    deliver(folder, **{"mon.parquet": table(30, 3)})
    refused(cli("report", folder, "mon.parquet"), 2, "'mon.parquet'", "vae-anomaly status")
    cli("score", folder)
    refused(cli("report", folder, "mno.parquet"), 2, "'mno.parquet'", "Did you mean 'mon.parquet'?")


def test_check_needs_a_store(tmp_path: Path) -> None:
    refused(cli("check", write_monitor(tmp_path / "shops")), 2, "output")


def test_the_output_of_another_monitor_is_refused(folder: Path) -> None:
    deliver(folder, **{"mon.parquet": table(30, 3)})
    cli("score", folder)
    refused(cli("score", edited(folder, name="others")), 2, "output", "'others'")


def test_an_altered_copy_of_the_model_is_fetched_again(folder: Path) -> None:
    deliver(folder, **{"mon.parquet": table(30, 3)})
    weights = next((folder / "output" / "models").glob("*/weights.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    said = cli("score", folder)
    assert said.code == 0
    assert "Downloading it again" in said.err


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    said = cli("--debug", "score", tmp_path)
    assert said.code == 2
    assert "Traceback (most recent call last)" in said.err
    assert said.err.splitlines()[-1].startswith("error: ")


def test_an_error_of_ours_is_one_line_and_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(ws: Any) -> None:
        raise ValueError("could not convert 'zq-private'")

    monkeypatch.setattr(scoring, "status", broken)
    said = cli("status", folder)
    assert said.code == 1
    assert said.err == "internal error: ValueError. --debug shows what and where.\n"
    assert "zq-private" in cli("--debug", "status", folder).err


def test_an_error_of_ours_in_a_batch_costs_this_batch_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Scorer.score

    def broken(self: Scorer, delivery: Any, tell: Any, **options: Any) -> str:
        if delivery.name == "mon.parquet":
            raise RuntimeError("zq-private")
        return real(self, delivery, tell, **options)

    deliver(folder, **{"mon.parquet": table(30, 3), "tue.parquet": table(30, 4)})
    monkeypatch.setattr(Scorer, "score", broken)
    said = cli("score", folder, "--json")
    assert (said.code, [b["verdict"] for b in json.loads(said.out)["batches"]]) == (3, ["failed", "committed"])
    assert "internal error RuntimeError" in said.out
    assert "zq-private" not in said.out + said.err
    monkeypatch.setattr(Scorer, "score", real)
    assert cli("score", folder).code == 0


# ---------------------------------------------------------------- in a process of its own


def test_the_installed_program(tmp_path: Path) -> None:
    folder = edited(write_monitor(tmp_path / "shops"), treshold={"alpha": 0.1})
    said = program("score", "shops", cwd=tmp_path)
    refused(said, 2, "shops/monitor.yml", "Did you mean 'threshold'?")
    refused(program("status", "shosp", cwd=tmp_path), 2, "shosp")
    done = program("init", "--from", folder / "training", "my.yml", cwd=tmp_path)
    assert (done.code, done.err) == (0, "")
    assert done.out == "Wrote my.yml. Look it over, then: vae-anomaly fit my.yml\n"


def test_a_reader_that_stops_early_is_no_error(tmp_path: Path) -> None:
    run = ["bash", "-c", f"for i in 1 2 3; do '{PROGRAM}' --help | true; done"]
    assert subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=True).stderr == ""


def test_ctrl_c_is_one_line_and_the_next_run_finishes(tmp_path: Path) -> None:
    folder = copy(tmp_path / "stopped")
    batches = {f"b{i:02}.parquet": table(30, i, frauds=1) for i in range(24)}
    deliver(folder, **batches)
    # at a lower priority: on a busy machine it could else be done before its output is read here
    program = ["nice", "-n", "5", PROGRAM, "score", folder]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        assert run.stderr is not None
        assert run.stdout is not None
        said = []
        for line in run.stderr:
            said.append(line)
            if "b03" in line:
                break
        run.send_signal(signal.SIGINT)
        rest = [line for line in run.stderr if not line.endswith(" ...\n")]
        code, out = run.wait(), run.stdout.read()
    assert said[-1] == "scoring b03.parquet ...\n", said
    assert (code, out) == (130, "")
    assert rest == ["interrupted; run again to finish what is unfinished\n"]
    assert 3 <= len(list((folder / "output" / "commits").iterdir())) < 24
    assert cli("score", folder).code == 0
    other = copy(tmp_path / "undisturbed")
    deliver(other, **batches)
    assert cli("score", other).code == 0
    for part in ("scores", "commits", "reports", "quarantine"):
        assert untimed(tree(folder / "output" / part)) == untimed(tree(other / "output" / part))
    assert len(tree(folder / "output" / "scores")) == 24


# ---------------------------------------------------------------- the demonstration


@pytest.mark.usefixtures("plain")
def test_the_demonstration_without_prefect(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ``vae-anomaly demo`` prepares and shows; its flows have tests of their own."""
    (tmp_path / "mlflow.yml").write_text(samples.shared_store())
    monkeypatch.setenv("VAE_ANOMALY_MONITOR__TRAINING__STEPS", "300")
    ws = prepare_demo(tmp_path)
    fitted, reviewed = pipelines.fit(ws), pipelines.review(ws)
    assert reviewed.passed
    promoted = pipelines.promote(ws, by="demo")
    show_demo(ws, DemoRun(fitted, promoted, scoring.score(ws)), as_json=False, seconds=12.3)
    text = capsys.readouterr().out
    assert re.search(r"AUROC 0\.9\d\d; \d+ of \d+ labelled anomalies found; \d+ of \d+ normal records flagged", text)
    assert re.search(r"2026-01-08\.parquet .*truncated", text)
    assert re.search(r"2026-01-09\.parquet .*missing_column", text)
    assert len(re.findall(r"^  .*/reports/2026-01-0\d-\w+\.html$", text, re.M)) == 3
    assert "mlflow ui --backend-store-uri sqlite:////" in text
    again = prepare_demo(tmp_path)
    show_demo(again, DemoRun(None, None, scoring.score(again)), as_json=True, seconds=1.0)
    found = json.loads(capsys.readouterr().out)
    assert (found["scored"], found["already_done"], found["anomalies"] > 100) == (0, 5, True)
    assert found["auroc"] > 0.9
