"""A new calibration through the whole program: after a drift batches are as usual again without a fit, nothing of it is
silent, and what was wrongly called normal does not pass the review."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pipeline_samples import Said, cli, deliver, shared_store, table, write_monitor
from tracking_samples import without_figures

from vae_anomaly import decisions, pipelines
from vae_anomaly.scoring import load_champion
from vae_anomaly.store.commits import Ledger
from vae_anomaly.tracking import Tracker
from vae_anomaly.workspace import Workspace

DRIFTED = [f"2026-01-1{i}.parquet" for i in (1, 2, 3, 4)]
ODD = [f"2026-02-0{i}.parquet" for i in (1, 2, 3)]


def ok(said: Said) -> Said:
    assert said.code == 0, said
    return said


def dear(seed: int) -> pa.Table:
    """Payments of another time: whatever it costs, the fee is more than it was."""
    return changed(table(150, seed), "fee", 1.8 * table(150, seed)["fee"].to_numpy())


def changed(content: pa.Table, column: str, values: Any) -> pa.Table:
    return content.set_column(content.column_names.index(column), column, pa.array(values))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A monitor with a champion; four days that have drifted, and three with frauds of which no label tells."""
    folder = write_monitor(tmp_path_factory.mktemp("recalibrated") / "shops")
    config = folder / "monitor.yml"
    config.write_text(config.read_text().replace("name: shops", "name: recalibrated"))
    (folder.parent / "mlflow.yml").write_text(shared_store() + "registry: {review: {second_person: true}}\n")
    with without_figures():
        ok(cli("fit", folder))
        ok(cli("review", folder))
    ok(cli("approve", folder, "--by", "cid", "--reason", "first"))
    ok(cli("promote", folder, "--by", "ann"))
    deliver(folder, **{name: dear(50 + i) for i, name in enumerate(DRIFTED)})
    frauds = {name: table(150, 60 + i, frauds=15) for i, name in enumerate(ODD)}
    deliver(folder, **{name: changed(content, "label", ["ok"] * 150) for name, content in frauds.items()})
    ok(cli("score", folder))
    return folder


@pytest.fixture
def folder(home: Path) -> Iterator[Path]:
    """The monitor; what a test does to its registry stays, as candidates that nobody promotes."""
    yield home
    tracker = Tracker(Workspace.open(home).mlflow)
    tracker.client.set_registered_model_alias("vae-anomaly.recalibrated", "champion", "1")


def recalibrate(folder: Path, *more: object, by: str = "bea", reason: str = "seen with the bank") -> Said:
    return cli("recalibrate", folder, "--by", by, "--reason", reason, *more)


DRIFT = ("--from", DRIFTED[0], "--to", DRIFTED[-1])


def test_after_a_drift_a_new_calibration_takes_the_place_of_a_fit(folder: Path) -> None:
    ws = Workspace.open(folder)
    before, _ = load_champion(ws, Tracker(ws.mlflow))
    found = json.loads(ok(recalibrate(folder, *DRIFT, "--json")).out)
    assert [b["name"] for b in found["batches"]] == DRIFTED
    assert (found["batches_shifted"], found["calibration_records"], found["records"]) == (4, 600, 600)
    reviewed = json.loads(ok(cli("review", folder, "--json")).out)
    assert reviewed["version"] == found["version"]
    for word in ("bea", "seen with the bank", DRIFTED[0], DRIFTED[-1], "4 of 4 batches were called shifted"):
        assert word in reviewed["verdict"]
        assert word in next((folder / "output" / "reviews").glob(f"v{found['version']}*.html")).read_text()
        assert word in next((folder / "output" / "reviews").glob(f"v{found['version']}*.md")).read_text()
    commits = {c.name: c for c in Ledger(ws.store).commits()}
    said = ", ".join(f"{commits[name].batch_id} {commits[name].sha256}" for name in DRIFTED)
    assert reviewed["facts"]["confirmed_normal"] == said
    assert reviewed["facts"]["weights_of"] == before.digest == reviewed["champion"]["digest"]
    assert [w for w in reviewed["warnings"] if "since the fit" in w] == []  # it splits as the fit of the weights did
    assert "somebody else than bea" in cli("approve", folder, "--by", "Bea", "--reason", "mine").errors[0]
    ok(cli("approve", folder, "--by", "cid", "--reason", "the fees have risen"))
    ok(cli("promote", folder, "--by", "ann"))
    after, _ = load_champion(Workspace.open(folder), Tracker(ws.mlflow))
    assert {n: t for n, t in after._tensors().items() if not n.startswith(("threshold", "usual"))}.keys() == {
        n for n in before._tensors() if not n.startswith("threshold")
    }
    deliver(folder, **{"2026-01-15.parquet": dear(70), "2026-01-16.parquet": table(150, 71)})
    ok(cli("score", folder))
    new, old = (Ledger(ws.store).find(name) for name in ("2026-01-15.parquet", "2026-01-16.parquet"))
    assert (new.drifted, old.drifted) == (False, True)  # as before it were the other way round
    _, low, high = after.threshold.false_alarms(150)
    assert low <= new.flagged <= high
    history = json.loads(cli("history", folder, "--json").out)
    (line,) = [h for h in history if h["action"] == "recalibrated" and h["version"] == found["version"]]
    assert (line["by"], line["reason"], line["digest"]) == ("bea", "seen with the bank", found["digest"])


def registered(folder: Path) -> tuple[list[str], str, int]:
    """The versions, the candidate, and how long the history is."""
    tracker = Tracker(Workspace.open(folder).mlflow)
    name = "vae-anomaly.recalibrated"
    versions = tracker.client.search_model_versions(f"name = '{name}'")
    model = tracker.client.get_registered_model(name)
    history = [key for key in model.tags if key.startswith("history.")]
    return sorted(v.version for v in versions), str(model.aliases["candidate"]), len(history)


def test_the_same_again_registers_nothing_new(folder: Path) -> None:
    said = *DRIFT, "--except", DRIFTED[0]
    first = json.loads(ok(recalibrate(folder, *said, "--json")).out)
    before = registered(folder)
    again = json.loads(ok(recalibrate(folder, *said, "--json")).out)
    assert (again["already_registered"], again["version"], again["digest"]) == (True, first["version"], first["digest"])
    assert registered(folder) == before
    plain = ok(recalibrate(folder, *said)).out
    assert "is registered already as" in plain and "The new calibration" in plain
    for name in DRIFTED[1:]:
        assert name in plain
    assert DRIFTED[0] not in plain
    assert "3 of 3 batches were called shifted as a whole" in plain
    for line in (
        "Records: 450; left out: 0 unscorable",
        "Threshold: ",
        "False-alarm rate before: ",
        "Next: vae-anomaly",
    ):
        assert line in plain
    other = json.loads(ok(recalibrate(folder, *said, "--json", reason="looked again")).out)
    assert other["version"] != first["version"]  # another statement


@pytest.mark.parametrize("where", ["run", "_logged_model", "log_files", "_register", "record", "make_candidate"])
def test_a_job_that_dies_midway_leaves_nothing_half(folder: Path, where: str) -> None:
    before = registered(folder)
    owner: Any = decisions if where == "record" else Tracker
    reason = f"dies in {where}"
    with pytest.MonkeyPatch.context() as patch:

        def die(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        patch.setattr(owner, where, die)
        assert recalibrate(folder, *DRIFT, reason=reason).code == 130
    assert registered(folder)[1] == before[1]
    done = json.loads(ok(recalibrate(folder, *DRIFT, "--json", reason=reason)).out)
    versions, candidate, lines = registered(folder)
    assert (len(versions), candidate, lines) == (len(before[0]) + 1, done["version"], before[2] + 1)


def test_batches_full_of_anomalies_that_are_called_normal_do_not_pass(folder: Path) -> None:
    found = json.loads(ok(recalibrate(folder, "--from", ODD[0], "--to", ODD[-1], "--json")).out)
    assert found["batches_flagged_beyond_chance"] >= 2
    assert found["threshold"] > 3 * found["threshold_before"]
    reviewed = cli("review", folder, "--json", "--replay", "9")
    failed = {gate["name"] for gate in json.loads(reviewed.out)["gates"] if not gate["passed"]}
    assert reviewed.code == 5 and failed == {"corruption recall", "recall lost", "alerts kept"}


def test_confirmed_and_labelled_anomalies_take_no_part_and_unscorable_records_neither(folder: Path) -> None:
    ws, name = Workspace.open(folder), "2026-03-01.parquet"
    content = table(100, 80, frauds=4)
    amount = content["amount"].to_numpy().copy()
    amount[7] = np.inf
    deliver(folder, **{name: changed(content, "amount", amount)})
    ok(cli("score", folder))
    ok(cli("feedback", folder, name, 3, "--as", "anomaly", "--by", "ann"))
    champion, _ = load_champion(ws, Tracker(ws.mlflow))
    made = pipelines.recalibrate(ws, first=name, last=name, by="bea", reason="seen").made
    assert vars(made.left_out) == {"unscorable": 1, "labelled": 4, "confirmed": 1, "repeated": 0, "trained": 0}
    assert len(made.detector.threshold.measured) == 100 - 6
    assert champion.digest == made.detector.provenance["weights_of"]


def test_records_that_trained_take_no_part(folder: Path) -> None:
    """As well as equal ones that were held out, which are scored as if they were not among the reference."""
    name = "2026-03-02.parquet"
    deliver(folder, **{name: table(400, 1, frauds=10)})  # the training records themselves
    ok(cli("score", folder))
    made = pipelines.recalibrate(Workspace.open(folder), first=name, last=name, by="bea", reason="seen").made
    champion, _ = load_champion(Workspace.open(folder), Tracker(Workspace.open(folder).mlflow))
    assert made.left_out.trained == 390 - len(made.detector.threshold.measured) > 150
    known = champion.threshold.measured
    assert np.isin(known, made.detector.threshold.measured).all()  # the same bits as those of the fit
    config = folder / "monitor.yml"
    text = config.read_text()
    config.write_text(text.replace("alpha: 0.05", "alpha: 0.06"))  # of another configuration nobody knows the splits
    said = recalibrate(folder, "--from", name, "--to", name)
    config.write_text(text)
    assert said.code == 3 and "that trained no weight" in said.errors[0]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--from", "2026-01-1.parquet"), "Did you mean '2026-01-1"),
        (("--from", DRIFTED[0], "--to", "x"), "must be the id or file name of a committed batch. Got 'x'"),
        (("--from", DRIFTED[0], "--except", "x"), "must be the id or file name of a committed batch. Got 'x'"),
        (("--from", DRIFTED[1], "--to", DRIFTED[0]), "--to must not come before --from"),
        (("--from", DRIFTED[0], "--to", DRIFTED[0], "--except", DRIFTED[0]), "must name at least one batch"),
    ],
)
def test_a_wrong_name_is_one_line(folder: Path, arguments: tuple[str, ...], problem: str) -> None:
    before = registered(folder)
    said = recalibrate(folder, *arguments)
    assert said.code == 2 and len(said.errors) == 1 and problem in said.errors[0], said
    assert registered(folder) == before


def test_what_was_said_must_be_said(folder: Path) -> None:
    for more in (("--by", " ", "--reason", "x"), ("--by", "bea", "--reason", "\n")):
        said = cli("recalibrate", folder, *DRIFT, *more)
        assert said.code == 2 and len(said.errors) == 1 and "must be up to 500 printable characters" in said.errors[0]
    assert cli("recalibrate", folder, *DRIFT, "--by", "bea").code == 2
    assert cli("recalibrate", folder, *DRIFT, "--reason", "x").code == 2


def test_every_batch_that_is_not_as_it_was_committed_is_refused_by_name(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home.parent, tmp_path / "copy", symlinks=True)
    folder = tmp_path / "copy" / home.name
    inbox, store = folder / "inbox", Workspace.open(folder).store
    deliver(folder, **{"2026-01-12b.parquet": b"no records", "2026-01-12c.parquet": table(20, 90)})
    (inbox / "2026-01-12c.parquet").rename(tmp_path / "later.parquet")
    assert cli("score", folder).code == 3
    (tmp_path / "later.parquet").rename(inbox / "2026-01-12c.parquet")
    (inbox / DRIFTED[2]).write_bytes((inbox / ODD[0]).read_bytes()[:-1] + b"x")
    (inbox / DRIFTED[3]).unlink()
    (first,) = [c for c in Ledger(store).commits() if c.name == DRIFTED[0]]
    assert Ledger(store).prune(2e10, [], dry_run=False).pruned
    for record in store.pruned.iterdir():
        if record.stem != first.batch_id:
            record.unlink()
    said = recalibrate(folder, "--from", DRIFTED[0], "--to", ODD[-1])
    assert said.code == 2 and len(said.errors) == 1
    refused = {
        DRIFTED[0]: "pruned",
        "2026-01-12b.parquet": "quarantined",
        "2026-01-12c.parquet": "not scored with this content",
        DRIFTED[2]: "not scored with this content",
        DRIFTED[3]: "gone",
    }
    assert f"Got {', '.join(f'{name} ({why})' for name, why in sorted(refused.items()))}. Leave" in said.errors[0]
    without = [word for name in refused for word in ("--except", name)]
    left = json.loads(ok(recalibrate(folder, "--from", DRIFTED[0], "--to", ODD[-1], *without, "--json")).out)
    assert {b["name"] for b in left["batches"]} >= {DRIFTED[1], *ODD}
    config = folder / "monitor.yml"
    config.write_text(config.read_text().replace("inbox: inbox,", 'inbox: inbox, csv: {delimiter: ";"},'))
    said = recalibrate(folder, "--from", ODD[0], "--to", ODD[-1])
    assert said.code == 2 and said.errors[0].count("read under another data contract") == 3


def test_a_batch_that_changes_while_it_is_read_registers_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vae_anomaly import recalibration

    before, path = registered(folder), folder / "inbox" / DRIFTED[0]
    content, found = path.read_bytes(), recalibration.named_batches

    def chosen(*given: Any) -> Any:
        batches = found(*given)
        path.write_bytes(content + b"x")
        return batches

    monkeypatch.setattr(recalibration, "named_batches", chosen)
    said = recalibrate(folder, *DRIFT)
    path.write_bytes(content)
    assert said.code == 3 and "changed_file" in said.errors[0]
    assert registered(folder) == before
