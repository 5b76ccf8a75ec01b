"""Pruning deletes what is old and nothing that anybody still needs, whatever interrupts it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from pipeline_samples import cli, copy, deliver, table
from store_samples import MONITOR, put, scored, tree

from vae_anomaly.store import check as check_module
from vae_anomaly.store import commits as module
from vae_anomaly.store.check import check
from vae_anomaly.store.commits import Ledger
from vae_anomaly.store.files import Store
from vae_anomaly.store.records import Pruned, read_record

DAY = 86_400.0


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Six batches; the first four are a hundred days old."""
    made = Store(tmp_path / "output").prepare(MONITOR)
    for i in range(6):
        commit = put(made, f"day-{i}.csv", f"content {i}".encode())
        made.file(made.reports, commit.batch_id, ".html").write_text("page")
        for sink in ("log", "file"):
            Ledger(made).mark_delivered(commit.batch_id, sink, idempotency_key=commit.idempotency_key)
        if i < 4:
            age(made, commit.batch_id)
    return made


def age(store: Store, batch: str) -> None:
    then = time.time() - 100 * DAY
    os.utime(store.commits / f"{batch}.json", (then, then))


def prune(store: Store, *, dry_run: bool = False) -> module.Retention:
    return Ledger(store).prune(time.time() - 30 * DAY, ["log", "file"], dry_run=dry_run)


def test_what_is_old_goes_and_its_record_stays(store: Store) -> None:
    before = tree(store.root)
    promised = prune(store, dry_run=True)
    assert tree(store.root) == before
    done = prune(store)
    after = tree(store.root)
    gone = before.keys() - after.keys()
    assert done == promised
    assert {name.partition("/")[2].partition("-")[2][0] for name in gone} == set("0123")
    assert {name.partition("/")[0] for name in gone} == {"scores", "reports"}
    assert all(before[name] == after[name] for name in before.keys() & after.keys())
    assert {name.partition("/")[0] for name in after.keys() - before.keys()} == {"pruned"}
    assert check(store) == []
    assert prune(store) == ((), 0, ())
    assert tree(store.root) == after


def test_nothing_is_scored_delivered_or_rendered_again(store: Store) -> None:
    commits = list(Ledger(store).commits())
    prune(store)
    ledger = Ledger(store)
    assert list(ledger.commits()) == commits
    assert (ledger.unrendered(), ledger.pending_alerts(["log", "file", "a new one"])[4:]) == ([], [])
    commit, file, report = scored(store, "day-0.csv", b"content 0")
    assert not ledger.commit(commit, file, report=report)


def test_what_a_sink_is_still_to_be_told_stays_whole(store: Store) -> None:
    first = next(commit for commit in Ledger(store).commits() if commit.alert)
    (store.outbox / f"{first.batch_id}.log.json").unlink()
    done = prune(store)
    assert done.pending == (first.batch_id,)
    assert len(done.pruned) == 3
    assert (store.scores / f"{first.batch_id}.parquet").exists()


def test_a_batch_that_has_lost_a_file_is_not_pruned_over_it(store: Store) -> None:
    old = next(commit for commit in Ledger(store).commits() if commit.name == "day-0.csv")
    (store.scores / f"{old.batch_id}.parquet").unlink()
    assert old.batch_id not in prune(store).pruned
    assert [f.path for f in check(store)] == [old.scores.file]


def test_a_file_that_is_lost_is_not_taken_for_one_that_was_pruned(store: Store) -> None:
    prune(store)
    young = next(store.scores.iterdir())
    young.unlink()
    assert [(f.invariant, f.path) for f in check(store)] == [("I3", f"scores/{young.name}")]
    record = next(store.pruned.iterdir())
    record.unlink()
    assert len(check(store)) >= 3


def test_what_is_pruned_while_check_looks_is_not_lost(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = check_module._whole
    looks = iter(range(1000))

    def looking(*args: object) -> object:
        if next(looks) == 3:
            prune(store)
        return whole(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(check_module, "_whole", looking)
    assert check(store) == []
    assert next(looks) > 3


def test_a_batch_whose_record_was_deleted_after_pruning_is_a_batch_like_any_other_again(store: Store) -> None:
    prune(store)
    old = next(store.pruned.iterdir())
    (store.commits / old.name).unlink()
    number = old.name[4]
    put(store, f"day-{number}.csv", f"content {number}".encode())
    assert not old.exists()
    assert [f for f in check(store) if f.severity == "error"] == []
    (store.scores / f"{old.stem}.parquet").unlink()
    assert [f for f in check(store) if f.severity == "error"]


@pytest.mark.parametrize("damage", ["no commit", "another key", "a changed byte"])
def test_a_record_of_pruning_that_is_wrong_is_told(store: Store, damage: str) -> None:
    prune(store)
    record = next(store.pruned.iterdir())
    content = record.read_bytes()
    if damage == "a changed byte":
        record.write_bytes(content.replace(b'"commit"', b'"commi"'))
    elif damage == "another key":
        record.write_bytes(replace(read_record(record, Pruned), commit="0" * 64).to_json())
    else:
        (store.commits / record.name).unlink()
    # without a commit it is no harm: scoring the file again removes it
    severity = "note" if damage == "no commit" else "error"
    assert any(f.path == f"pruned/{record.name}" and f.severity == severity for f in check(store))


def test_a_record_of_pruning_is_kept_where_its_commit_cannot_be_read(store: Store) -> None:
    prune(store)
    record = next(store.pruned.iterdir())
    (store.commits / record.name).write_bytes(b"{")
    assert {f.path for f in check(store)} == {f"commits/{record.name}"}


class Killed(BaseException):
    pass


def test_killed_before_any_operation_nothing_is_lost_and_the_next_run_finishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the bad twin, which deletes before it says so, is found out."""

    def at(step: int, of: Callable[..., object], counter: list[int]) -> Callable[..., object]:
        def operation(*args: object, **options: object) -> object:
            counter[0] += 1
            if counter[0] == step:
                raise Killed
            return of(*args, **options)

        return operation

    def killed(store: Store, step: int, *, backwards: bool) -> bool:
        counter = [0]
        with monkeypatch.context() as patch:
            patch.setattr(module, "discard", at(step, module.discard, counter))
            publish = at(step, Store.publish, counter)
            patch.setattr(Store, "publish", (lambda *a, **o: None) if backwards else publish)
            try:
                prune(store)
            except Killed:
                return True
        return False

    for backwards in (False, True):
        bad = step = 0
        while True:
            step += 1
            made = Store(tmp_path / f"{backwards}-{step}").prepare(MONITOR)
            for i in range(2):
                age(made, put(made, f"day-{i}.csv", f"content {i}".encode()).batch_id)
            for commit in Ledger(made).commits():
                for sink in ("log", "file"):
                    Ledger(made).mark_delivered(commit.batch_id, sink, idempotency_key=commit.idempotency_key)
            hit = killed(made, step, backwards=backwards)
            bad += any(f.severity == "error" for f in check(made))
            if not hit:
                break
            prune(made)
            assert backwards or (list(made.scores.iterdir()), check(made)) == ([], [])
        assert step > 4
        assert bool(bad) == backwards


def test_the_command_beside_a_scorer(tmp_path: Path) -> None:
    folder = copy(tmp_path)
    deliver(folder, **{"day-0.parquet": table(30, 1, frauds=3), "day-1.parquet": table(30, 2)})
    assert cli("score", folder).code == 0
    store = Store(folder / "output")
    old = next(c for c in Ledger(store).commits() if c.name == "day-0.parquet").batch_id
    age(store, old)
    promised = json.loads(cli("prune", folder, "--older-than", 30, "--dry-run", "--json").out)
    assert (promised["pruned"], promised["dry_run"]) == ([old], True)
    assert (store.scores / f"{old}.parquet").exists()
    said = cli("prune", folder, "--older-than", 30)
    assert said.out.startswith("1 batches pruned, ")
    deliver(folder, **{"day-2.parquet": table(30, 3)})
    again = json.loads(cli("score", folder, "--json").out)
    assert [batch["name"] for batch in again["batches"]] == ["day-2.parquet"]
    assert {row["state"] for row in json.loads(cli("status", folder, "--json").out)} == {"committed"}
    assert (cli("check", folder).code, os.listdir(store.pruned)) == (0, [f"{old}.json"])
    refused = cli("report", folder, "day-0.parquet")
    assert (refused.code, refused.errors[0].count("pruned")) == (2, 1)
    # scored again, by another configuration, the batch supersedes one whose scores are gone
    config = folder / "monitor.yml"
    config.write_text(config.read_text().replace("alpha: 0.05", "alpha: 0.1"))
    more = json.loads(cli("score", folder, "--backfill", "day-0", "day-0", "--reprocess", "all", "--json").out)
    assert [batch["verdict"] for batch in more["batches"]] == ["committed"]
    assert cli("check", folder).code == 0
