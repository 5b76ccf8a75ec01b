"""Laws of the store: whole files, exactly once, everything accounted for, and a check that sees what is not."""

from __future__ import annotations

import json
import os
import stat
import sys
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1]))
from store_samples import CONTRACT, MONITOR, arrays, batch_ref, put, refusal, scored, sha256, tree

from vae_anomaly.errors import ConfigError, StoreError
from vae_anomaly.store import files, score_files
from vae_anomaly.store.check import check
from vae_anomaly.store.commits import HashCache, Ledger
from vae_anomaly.store.files import Busy, Conflict, Store, is_alive, owner, owner_of, safe_id, sweep
from vae_anomaly.store.records import Attempts, Commit, Quarantine, commit_key, dump, parse, read_record
from vae_anomaly.store.score_files import SCORE_SCHEMA, ScoreWriter, read_scores, score_table
from vae_anomaly.store.sources import batch_id

HOSTILE = [
    "",
    ".",
    "..",
    "../x",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "..\\x",
    "a\0b",
    "a\nb",
    "a\n",
    "-rf",
    "é",
    "%2e%2e/",
    "x" * 129,
    "\u202ea",
]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "output").prepare(MONITOR)


# ---------------------------------------------------------------- names and folders


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_refused(store: Store, name: str) -> None:
    with pytest.raises(StoreError, match="must match"):
        store.file(store.scores, name, ".parquet")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
@given(name=st.text(max_size=200))
def test_batch_ids_are_safe_whatever_the_file_is_called(store: Store, name: str) -> None:
    id = batch_id(name, sha256(b"x"))
    assert safe_id(id) == id
    assert store.file(store.commits, id, ".json").parent == store.commits


def test_a_linked_folder_does_not_lead_out(store: Store, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    store.scores.rmdir()
    store.scores.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="link out of it"):
        store.file(store.scores, "a", ".parquet")


def test_prepare_makes_private_folders_and_is_repeatable(store: Store) -> None:
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in (store.root, store.tmp)] == [0o700, 0o700]
    before = tree(store.root)
    assert store.prepare(MONITOR) == store
    assert tree(store.root) == before == {"store.json": before["store.json"]}
    assert check(store) == []


def test_a_store_has_one_monitor(store: Store) -> None:
    with pytest.raises(ConfigError, match=r"store\.json"):
        store.prepare("another")


@pytest.mark.parametrize("way", ["root", "scores", "_tmp"])
def test_prepare_names_what_is_in_the_way(tmp_path: Path, way: str) -> None:
    root = tmp_path / "output"
    path = root if way == "root" else root / way
    path.parent.mkdir(exist_ok=True)
    path.write_text("a file")
    with pytest.raises(ConfigError, match=path.name):
        Store(root).prepare(MONITOR)


def test_prepare_needs_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError(95, "Operation not supported", "probe")

    monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(ConfigError, match="hard links"):
        Store(tmp_path / "output").prepare(MONITOR)


# ---------------------------------------------------------------- temporary files and their owners


def dead_pid() -> int:
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    return child


def test_sweep_deletes_only_what_dead_processes_left(store: Store) -> None:
    mine = store.new_temporary()
    dead = store.tmp / mine.name.replace(f".part-{os.getpid()}.", f".part-{dead_pid()}.")
    foreign = store.tmp / "notes.txt"
    for path in (mine, dead, foreign):
        path.write_text("x")
    store.prepare(MONITOR)
    assert sorted(os.listdir(store.tmp)) == sorted([mine.name, foreign.name])


@pytest.mark.parametrize(
    ("boot", "start", "alive"),
    [("b1", 77, True), ("b2", 77, False), ("b1", 78, False)],
    ids=["same", "rebooted", "pid came again"],
)
def test_an_owner_is_a_pid_a_boot_and_a_start(tmp_path: Path, boot: str, start: int, alive: bool) -> None:
    def fake_proc(folder: Path, boot: str, start: int) -> Path:
        (folder / "41").mkdir(parents=True)
        (folder / "41" / "stat").write_text(f"41 (a ) name) S {' '.join(['0'] * 18)} {start} 0")
        (folder / "sys/kernel/random").mkdir(parents=True)
        (folder / "sys/kernel/random/boot_id").write_text(boot + "\n")
        return folder

    stated = owner(41, proc=fake_proc(tmp_path / "then", "b1", 77))
    assert stated == "41.b1.77"
    now = fake_proc(tmp_path / "now", boot, start)
    assert is_alive(stated, proc=now) == alive
    left = tmp_path / f".part-{stated}-{'0' * 32}"
    left.write_text("x")
    sweep(tmp_path, proc=now)
    # of another boot, it may be another machine's: it goes after a day
    assert left.exists() == (alive or boot != "b1")
    os.utime(left, (0, 0)) if left.exists() else None
    sweep(tmp_path, proc=now)
    assert left.exists() == alive
    assert owner(42, proc=now) is None


def test_temporary_names_state_this_process(store: Store) -> None:
    assert owner_of(store.new_temporary().name) == owner(os.getpid())
    assert owner_of("scores.parquet") is None


# ---------------------------------------------------------------- publishing


@pytest.mark.parametrize("kind", ["bytes", "file"])
def test_publish_creates_or_agrees_and_never_overwrites(store: Store, kind: str) -> None:
    def content(data: bytes) -> bytes | Path:
        if kind == "bytes":
            return data
        tmp = store.new_temporary()
        tmp.write_bytes(data)
        return tmp

    final = store.reports / "a.json"
    store.publish(content(b"1"), final)
    store.publish(content(b"1"), final)
    with pytest.raises(Conflict):
        store.publish(content(b"2"), final)
    assert final.read_bytes() == b"1"
    store.publish(content(b"2"), final, replaceable=True)
    assert final.read_bytes() == b"2"
    assert os.listdir(store.tmp) == []


def test_locks_exclude_threads_and_end_with_the_block(store: Store) -> None:
    with store.lock(store.commits), pytest.raises(Busy), store.lock(store.commits, patience=0.05):
        pass
    with store.lock(store.commits, patience=0), store.lock(store.outbox, patience=0):
        pass


# ---------------------------------------------------------------- score files


def write(store: Store, rows: int, cuts: list[int]) -> bytes:
    values = arrays(rows)
    with ScoreWriter(store, {"b": "2", "a": "1"}) as writer:
        for start, stop in zip([0, *cuts], [*cuts, rows], strict=True):
            part = {name: value[start:stop] for name, value in values.items()}
            writer.write(score_table("b-1", start, **part, model_version="1", threshold_version="t"))
        file = writer.close()
    content = file.tmp.read_bytes()
    assert (file.rows, file.bytes, file.sha256) == (rows, len(content), sha256(content))
    file.tmp.unlink()
    return content


@pytest.mark.parametrize("cuts", [[0, 1, 2, 50], [64], [63, 65, 128, 129], list(range(1, 150))])
def test_score_bytes_do_not_depend_on_the_slices(
    store: Store, monkeypatch: pytest.MonkeyPatch, cuts: list[int]
) -> None:
    monkeypatch.setattr(score_files, "ROW_GROUP", 64)
    whole = write(store, 150, [])
    assert write(store, 150, cuts) == whole
    groups = pq.ParquetFile(pa.BufferReader(whole)).metadata
    assert [groups.row_group(i).num_rows for i in range(groups.num_row_groups)] == [64, 64, 22]


def test_score_bytes_do_not_depend_on_the_order_of_the_provenance(store: Store) -> None:
    digests = set()
    for provenance in ({"b": "2", "a": "1"}, {"a": "1", "b": "2"}):
        with ScoreWriter(store, provenance) as writer:
            digests.add(writer.close().sha256)
    assert len(digests) == 1


def test_scores_read_back_as_they_were(store: Store, tmp_path: Path) -> None:
    values, path = arrays(37), tmp_path / "scores.parquet"
    path.write_bytes(write(store, 37, [10]))
    table = pa.concat_tables(read_scores(path))
    assert table.schema.equals(SCORE_SCHEMA)
    assert table.schema.metadata == {b"a": b"1", b"b": b"2"}
    unscorable = values["status"] != "ok"
    assert table["row_index"].to_pylist() == list(range(37))
    assert table["record_id"].to_pylist() == list(values["record_ids"])
    assert table["status"].to_pylist() == list(values["status"])
    for name in ("score", "p_value"):
        assert (table[name].is_null().to_numpy() == unscorable).all()
        assert np.array_equal(table[name].to_numpy(), values[name], equal_nan=True)


def test_no_rows_is_a_score_file_too(store: Store, tmp_path: Path) -> None:
    with ScoreWriter(store, {}) as writer:
        file = writer.close()
    assert file.rows == 0
    assert score_files.score_schema(file.tmp).equals(SCORE_SCHEMA)


@pytest.mark.parametrize("how", ["error", "not closed"])
def test_an_abandoned_score_file_leaves_nothing(store: Store, how: str) -> None:
    with pytest.raises(KeyError) if how == "error" else nullcontext(), ScoreWriter(store, {}) as writer:
        writer.write(score_table("b-1", 0, **arrays(9), model_version="1", threshold_version="t"))
        if how == "error":
            raise KeyError
    assert os.listdir(store.tmp) == []


def test_no_flipped_bit_is_read_silently(store: Store, tmp_path: Path) -> None:
    whole, path = write(store, 400, []), tmp_path / "flipped.parquet"
    path.write_bytes(whole)
    truth = pa.concat_tables(read_scores(path))
    footer = int.from_bytes(whole[-8:-4], "little") + 8  # no page checksum covers it; the sha256 in the commit does
    generator, seen = np.random.default_rng(5), 0
    for bit in generator.choice(8 * len(whole), 400, replace=False):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(flipped)
        try:
            table = pa.concat_tables(read_scores(path))
        except StoreError:
            seen += 1
        else:
            assert table.equals(truth) or bit // 8 >= len(whole) - footer, f"bit {bit} changed a value in silence"
    assert seen > 200


# ---------------------------------------------------------------- records


def test_records_are_the_same_bytes_again(store: Store) -> None:
    commit, quarantine = put(store, "a.csv", b"1"), refusal("b.csv", b"2")
    assert parse(commit.to_json(), Commit, commit.batch_id) == commit
    assert parse(quarantine.to_json(), Quarantine, quarantine.batch_id).to_json() == quarantine.to_json()
    assert json.loads(commit.to_json())["key"] == commit.key
    assert commit.key == commit_key(
        MONITOR, commit.sha256, model_digest=commit.model.digest, config_digest=commit.config_digest
    )


def changed(**fields: object) -> Callable[[dict[str, object]], object]:
    return lambda record: record | fields


BROKEN_RECORDS: dict[str, Callable[[dict[str, object]], object]] = {
    "a list": lambda record: [record],
    "newer format": changed(format=2),
    "unknown field": changed(note="x"),
    "missing field": lambda record: {k: v for k, v in record.items() if k != "model"},
    "text for a number": changed(rows="23"),
    "bool for a number": changed(rows=True),
    "number for a bool": changed(alert=1),
    "fraction for a count": changed(unscorable={"non_finite": 1.5}),
    "null": changed(code_version=None),
    "other key": changed(key="0" * 64),
    "other model": changed(model={"name": "n", "version": "2", "digest": "d"}),
    "path out": changed(scores={"file": "../x.parquet", "sha256": "0", "bytes": 1}),
    "not a number": changed(expected_flagged=float("nan")),
}


@pytest.mark.parametrize("case", BROKEN_RECORDS)
def test_broken_records_are_named(store: Store, case: str) -> None:
    path = store.commits / f"{put(store, 'a.csv', b'1').batch_id}.json"
    path.write_text(json.dumps(BROKEN_RECORDS[case](json.loads(path.read_text()))))
    with pytest.raises(StoreError, match=path.name):
        list(Ledger(store).commits())
    assert [(f.invariant, f.path) for f in check(store) if f.severity == "error"] == [("I3", f"commits/{path.name}")]


@pytest.mark.parametrize("text", ["", "{", "nul", "[" * 100_000, '{"format": 1e999}'])
def test_broken_json_is_named(store: Store, text: str) -> None:
    (store.commits / "a-1.json").write_text(text)
    with pytest.raises(StoreError, match=r"a-1\.json"):
        list(Ledger(store).commits())


# ---------------------------------------------------------------- the ledger


def test_a_commit_happens_once(store: Store) -> None:
    ledger, (commit, file, report) = Ledger(store), scored(store, "a.csv", b"1")
    again, second, _ = scored(store, "a.csv", b"1")
    assert ledger.commit(commit, file, report=report)
    before = tree(store.root)
    assert not ledger.commit(again, second, report=report)
    assert before.pop(f"_tmp/{second.tmp.name}") == second.sha256 == file.sha256
    assert tree(store.root) == before
    assert list(ledger.commits()) == [commit]
    assert ledger.committed(commit.sha256) == commit
    assert ledger.committed(sha256(b"2")) is None
    assert [f for f in check(store) if f.severity == "error"] == []


def test_the_same_content_under_another_name_or_model_is_not_committed_again(store: Store) -> None:
    put(store, "a.csv", b"1")
    for name, model in (("b.csv", "1"), ("a.csv", "2")):
        commit, file, report = scored(store, name, b"1", model=model)
        assert not Ledger(store).commit(commit, file, report=report)
    assert len(list(Ledger(store).commits())) == 1
    assert os.listdir(store.tmp) == []


def test_what_a_killed_run_left_is_finished_or_replaced(store: Store) -> None:
    _, file, report = scored(store, "a.csv", b"1", model="1")
    commit = put(Store(store.root.parent / "undisturbed").prepare(MONITOR), "a.csv", b"1", model="2")
    store.publish(file.tmp, store.file(store.scores, commit.batch_id, ".parquet"))
    store.publish(report, store.file(store.reports, commit.batch_id, ".json"))
    assert {(f.invariant, f.severity) for f in check(store)} == {("I3", "note")}
    put(store, "a.csv", b"1", model="2")
    assert tree(store.root) == tree(store.root.parent / "undisturbed")


@pytest.mark.parametrize(
    "field",
    [{"rows": 24}, {"scored": 20}, {"flagged": 99}, {"flagged": -1}, {"unscorable": {"x": 1}}, {"scores": "report"}],
    ids=str,
)
def test_a_commit_that_breaks_an_invariant_is_refused(store: Store, field: dict[str, object]) -> None:
    commit, file, report = scored(store, "a.csv", b"1")
    field = {"scores": commit.report} if "scores" in field else field
    before = tree(store.root).keys() - {f"_tmp/{file.tmp.name}"}
    with pytest.raises(StoreError, match="must"):
        Ledger(store).commit(replace(commit, **field), file, report=report)  # type: ignore[arg-type]
    assert tree(store.root).keys() == before


def test_contents_that_share_the_head_of_their_digest_are_told_apart(store: Store) -> None:
    """A batch id holds 48 bits of the digest; two contents can be made to share them."""
    first = put(store, "a.csv", b"1")
    commit, file, report = scored(store, "a.csv", b"1", model="2")
    twin = replace(commit, batch=replace(commit.batch, sha256=commit.sha256[:12] + "0" * 52))
    before = tree(store.root)
    del before[f"_tmp/{file.tmp.name}"]
    with pytest.raises(Conflict):
        Ledger(store).commit(twin, file, report=report)
    assert tree(store.root) == before
    assert list(Ledger(store).commits()) == [first]


def test_quarantine_is_kept_until_the_contract_changes(store: Store) -> None:
    ledger, old = Ledger(store), refusal("a.csv", b"1")
    assert ledger.quarantine(old)
    assert not ledger.quarantine(replace(old, problem="said otherwise"))
    assert not ledger.quarantine(refusal("b.csv", b"1"))
    assert ledger.quarantined(old.sha256, CONTRACT) == parse(old.to_json(), Quarantine, old.batch_id)
    inbox = [("a.csv", old.sha256)]
    assert ledger.pending(inbox, CONTRACT) == []
    assert [row.batch_id for row in ledger.pending(inbox, "contract-2")] == [old.batch_id]
    assert ledger.quarantine(refusal("a.csv", b"1", contract="contract-2"))
    assert ledger.pending(inbox, "contract-2") == []
    put(store, "a.csv", b"1")
    assert [row.state for row in ledger.state(inbox, CONTRACT)] == ["committed"]
    assert [row.state for row in ledger.state([], CONTRACT)] == ["committed"]
    assert not ledger.quarantine(refusal("a.csv", b"1", contract="contract-3"))


def test_status_tells_versions_and_duplicates_apart(store: Store) -> None:
    ledger = Ledger(store)
    put(store, "a.csv", b"old")
    ledger.quarantine(refusal("bad.csv", b"bad"))
    inbox = [("a.csv", b"new"), ("b.csv", b"old"), ("bad.csv", b"mended"), ("c.csv", b"c"), ("d.csv", b"c")]
    rows = ledger.state([(name, sha256(content)) for name, content in inbox], CONTRACT)
    assert [(row.name, row.batch_id, row.state) for row in rows] == sorted(
        [
            ("a.csv", batch_ref("a.csv", b"new").id, "pending"),
            ("a.csv", batch_ref("a.csv", b"old").id, "superseded"),
            ("b.csv", batch_ref("a.csv", b"old").id, "duplicate"),
            ("bad.csv", batch_ref("bad.csv", b"mended").id, "pending"),
            ("bad.csv", batch_ref("bad.csv", b"bad").id, "superseded"),
            ("c.csv", batch_ref("c.csv", b"c").id, "pending"),
            ("d.csv", batch_ref("c.csv", b"c").id, "duplicate"),
        ]
    )


def test_a_file_that_left_the_inbox_keeps_its_last_state(store: Store) -> None:
    put(store, "a.csv", b"1")
    put(store, "a.csv", b"2")
    for place, content in enumerate([b"1", b"2"]):
        os.utime(store.commits / f"{batch_ref('a.csv', content).id}.json", ns=(place, place))
    states = {row.sha256: row.state for row in Ledger(store).state([], CONTRACT)}
    assert states == {sha256(b"1"): "superseded", sha256(b"2"): "committed"}


NAMES, CONTENTS = ["a.csv", "a.parquet", "b.csv"], [b"1", b"2", b"3"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(NAMES), st.sampled_from(CONTENTS), st.sampled_from(["commit", "refuse"])), max_size=6
    ),
    inbox=st.dictionaries(st.sampled_from(NAMES), st.sampled_from(CONTENTS)),
)
def test_every_version_is_in_exactly_one_state(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, bytes, str]], inbox: dict[str, bytes]
) -> None:
    store = Store(tmp_path_factory.mktemp("store") / "output").prepare(MONITOR)
    ledger = Ledger(store)
    for name, content, step in steps:
        if step == "refuse":
            ledger.quarantine(refusal(name, content))
        elif not ledger.quarantined(sha256(content), CONTRACT):
            commit, file, report = scored(store, name, content)
            ledger.commit(commit, file, report=report)
    files = {(name, sha256(content)) for name, content in inbox.items()}
    rows = ledger.state(files, CONTRACT)
    versions = [(row.name, row.sha256) for row in rows]
    assert len(set(versions)) == len(versions)
    assert files <= set(versions)
    recorded = {c.sha256 for c in ledger.commits()} | {q.sha256 for q in ledger.quarantines()}
    for row in rows:
        assert (row.state in ("committed", "quarantined", "superseded")) <= (row.sha256 in recorded)
        assert (row.state == "pending") <= (row.sha256 not in recorded)
        assert (row.state == "superseded") <= ((row.name, row.sha256) not in files)
    pending = [row.sha256 for row in ledger.pending(files, CONTRACT)]
    assert sorted(pending) == sorted({digest for _, digest in files} - recorded)
    assert [f for f in check(store) if f.severity == "error"] == []


def test_a_slow_writer_and_another_model_leave_one_whole_commit(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert race(store, monkeypatch) == {"slow": True, "fast": False}
    assert [f for f in check(store) if f.severity == "error"] == []
    assert next(Ledger(store).commits()).model.version == "1"


def test_without_the_lock_that_test_would_fail(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "lock", lambda *_, **__: nullcontext())
    race(store, monkeypatch)
    assert "I3" in {f.invariant for f in check(store) if f.severity == "error"}


def race(store: Store, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """One writer stops between scores and report while another, with another model's scores, tries to commit."""
    ledger, result = Ledger(store), {}
    stopped, go = threading.Event(), threading.Event()
    publish = Store.publish

    def slow_publish(store: Store, content: Path | bytes, final: Path, **options: bool) -> None:
        if threading.current_thread().name == "slow" and final.parent == store.reports:
            stopped.set()
            go.wait(10)
        publish(store, content, final, **options)

    def commit(model: str) -> None:
        record, file, report = work[model]
        try:
            result[threading.current_thread().name] = ledger.commit(record, file, report=report)
        except StoreError as error:
            result[threading.current_thread().name] = error

    work = {model: scored(store, "a.csv", b"1", model=model) for model in ("1", "2")}
    monkeypatch.setattr(Store, "publish", slow_publish)
    threads = [threading.Thread(target=commit, args=[m], name=n) for m, n in (("1", "slow"), ("2", "fast"))]
    threads[0].start()
    assert stopped.wait(10)
    threads[1].start()
    threads[1].join(0.3)
    go.set()
    for thread in threads:
        thread.join()
    return result


# ---------------------------------------------------------------- outbox


def test_each_sink_is_told_once_of_what_there_is_to_say(store: Store) -> None:
    ledger = Ledger(store)
    commit, file, report = scored(store, "quiet.csv", b"q")
    ledger.commit(replace(commit, alert=False), file, report=report)
    loud, bad = put(store, "a.csv", b"1"), refusal("bad.csv", b"bad")
    ledger.quarantine(bad)
    due = ledger.pending_alerts(["log", "file"])
    assert [(d.record.batch_id, d.sink) for d in due] == [
        (record.batch_id, sink) for record in (loud, bad) for sink in ("log", "file")
    ]
    for alert in due[1:]:
        ledger.mark_delivered(alert.record.batch_id, alert.sink, idempotency_key=alert.idempotency_key)
    assert ledger.pending_alerts(["log", "file"]) == due[:1]
    assert [f for f in check(store) if f.severity == "error"] == []


def test_news_of_a_refused_batch_is_not_swallowed_by_the_marker_of_the_refusal(store: Store) -> None:
    ledger, bad = Ledger(store), refusal("a.csv", b"1")
    ledger.quarantine(bad)
    ledger.mark_delivered(bad.batch_id, "log", idempotency_key=bad.idempotency_key)
    assert ledger.pending_alerts(["log"]) == []
    ledger.quarantine(refusal("a.csv", b"1", contract="contract-2"))
    assert len(ledger.pending_alerts(["log"])) == 1
    commit = put(store, "a.csv", b"1")
    assert [d.idempotency_key for d in ledger.pending_alerts(["log"])] == [commit.key]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"idempotency_key": 1}'])
def test_a_broken_marker_means_telling_again(store: Store, text: str) -> None:
    commit = put(store, "a.csv", b"1")
    (store.outbox / f"{commit.batch_id}.log.json").write_text(text)
    assert len(Ledger(store).pending_alerts(["log"])) == 1


def test_reports_to_render_are_those_with_something_to_say(store: Store) -> None:
    commit = put(store, "a.csv", b"1")
    assert Ledger(store).unrendered() == [commit]
    store.replace(b"<html>", store.file(store.reports, commit.batch_id, ".html"))
    assert Ledger(store).unrendered() == []
    assert check(store) == []


# ---------------------------------------------------------------- hash cache

SECOND = 1_000_000_000


def test_known_hashes_are_used_until_the_file_changes(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("1")
    now = file.stat().st_ctime_ns + 3 * SECOND
    cache = HashCache(store)
    assert cache.get("a.csv", file.stat()) is None
    cache.put("a.csv", file.stat(), sha256="abc", now_ns=now)
    cache.save()
    again = HashCache(store)
    assert again.get("a.csv", file.stat()) == "abc"
    assert again.get("b.csv", file.stat()) is None
    file.write_text("2")
    os.utime(file, ns=(0, 0))
    assert HashCache(store).get("a.csv", file.stat()) is None
    assert check(store) == []


def test_a_file_changed_just_now_is_hashed_again(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("1")
    for age in (-5, 0, 2):
        cache = HashCache(store)
        cache.put("a.csv", file.stat(), sha256="abc", now_ns=file.stat().st_ctime_ns + age * SECOND)
        cache.save()
        assert HashCache(store).get("a.csv", file.stat()) is None


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a.csv": 1}', '{"a.csv": []}', '{"a.csv": [1, 2, 3, 4, 5]}'])
def test_a_broken_cache_is_no_cache(store: Store, tmp_path: Path, text: str) -> None:
    (store.root / "hash_cache.json").write_text(text)
    (tmp_path / "a.csv").write_text("1")
    assert HashCache(store).get("a.csv", (tmp_path / "a.csv").stat()) is None


# ---------------------------------------------------------------- check: hand-corrupted stores


def rewrite(path: Path, **fields: object) -> None:
    """Change fields of a record and keep its key right, as somebody with an editor and patience would."""
    record = json.loads(path.read_text()) | fields
    digests = {"model_digest": record["model"]["digest"], "config_digest": record["config_digest"]}
    record["key"] = commit_key(record["dataset"], record["batch"]["sha256"], **digests)
    path.write_bytes(dump(record))


def with_scores(**change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Store], str]:
    """A store whose score file differs in some arrays, with a commit record that fits its bytes."""

    def corrupt(store: Store) -> str:
        values = arrays(23, seed=4)
        commit, file, _ = scored(store, "b.csv", b"222", **{name: f(values[name]) for name, f in change.items()})
        truth = {"flagged": int(values["is_anomaly"].sum()), "unscorable": {"non_finite": 4}}
        return smuggle(store, replace(commit, **truth), file.tmp)  # type: ignore[arg-type]

    return corrupt


def smuggle(store: Store, commit: Commit, scores: Path) -> str:
    report = b"{}\n"
    content = scores.read_bytes()
    scores.unlink()
    ref, sheet = replace(commit.report, sha256=sha256(report), bytes=len(report)), commit.scores
    commit = replace(commit, report=ref, scores=replace(sheet, sha256=sha256(content), bytes=len(content)), alert=False)
    (store.root / commit.scores.file).write_bytes(content)
    (store.root / commit.report.file).write_bytes(report)
    (store.commits / f"{commit.batch_id}.json").write_bytes(commit.to_json())
    return commit.scores.file


def with_table(change: Callable[[pa.Table], pa.Table]) -> Callable[[Store], str]:
    def corrupt(store: Store) -> str:
        commit, file, _ = scored(store, "b.csv", b"222")
        pq.write_table(change(pa.concat_tables(read_scores(file.tmp))), file.tmp, write_page_checksum=True)
        return smuggle(store, commit, file.tmp)

    return corrupt


def with_file(path: str, content: bytes | None) -> Callable[[Store], str]:
    """A file of the good batch ``ID`` put in place or taken away."""

    def corrupt(store: Store) -> str:
        name = path.replace("ID", batch_ref("a.csv", b"1").id)
        (store.root / name).unlink(missing_ok=True)
        if content is not None:
            (store.root / name).write_bytes(content)
        return name

    return corrupt


def with_record(**fields: object) -> Callable[[Store], str]:
    def corrupt(store: Store) -> str:
        name = f"commits/{batch_ref('a.csv', b'1').id}.json"
        rewrite(store.root / name, **fields)
        return name

    return corrupt


def flip(path: str, place: float) -> Callable[[Store], str]:
    def corrupt(store: Store) -> str:
        name = path.replace("ID", batch_ref("a.csv", b"1").id)
        content = bytearray((store.root / name).read_bytes())
        content[int(place * len(content))] ^= 4
        (store.root / name).write_bytes(content)
        return name

    return corrupt


def flipped_and_rehashed(store: Store) -> str:
    name = flip("scores/ID.parquet", 0.3)(store)
    content = (store.root / name).read_bytes()
    record = store.commits / f"{Path(name).stem}.json"
    rewrite(record, scores=json.loads(record.read_text())["scores"] | {"sha256": sha256(content)})
    return name


def second_record(store: Store) -> str:
    first = next(Ledger(store).commits())
    record = replace(first, batch=replace(first.batch, id=f"copy-{first.sha256[:12]}"))
    names = (replace(first.scores, file=f"scores/{record.batch_id}.parquet"),)
    names += (replace(first.report, file=f"reports/{record.batch_id}.json"),)
    (store.commits / f"{record.batch_id}.json").write_bytes(replace(record, scores=names[0], report=names[1]).to_json())
    return f"commits/{record.batch_id}.json"


def another_model(store: Store) -> str:
    path = second_record(store)
    record = read_record(store.root / path, Commit)
    digest = "d" * 64
    (store.root / path).write_bytes(replace(record, model=replace(record.model, digest=digest)).to_json())
    return path


def attempted(store: Store) -> str:
    first = next(Ledger(store).commits())
    attempt = Attempts(first.batch_id, first.name, first.sha256, CONTRACT, 1, "it died.")
    return with_file("attempts/ID.json", attempt.to_json())(store)


def quarantined_too(store: Store) -> str:
    record = refusal("a.csv", b"1")
    (store.quarantine / f"{record.batch_id}.json").write_bytes(record.to_json())
    return f"quarantine/{record.batch_id}.json"


def linked(store: Store) -> str:
    path = store.scores / f"{batch_ref('a.csv', b'1').id}.parquet"
    (store.root / "moved").mkdir()
    path.rename(store.root / "moved" / path.name)
    path.symlink_to(store.root / "moved" / path.name)
    return f"scores/{path.name}"


def left_by_the_dead(store: Store) -> str:
    name = f".part-{dead_pid()}.0.1-{'a' * 32}"
    (store.tmp / name).write_text("x")
    return f"_tmp/{name}"


def row(at: int, value: object) -> Callable[[np.ndarray], np.ndarray]:
    def change(values: np.ndarray) -> np.ndarray:
        values = values.copy()
        values[at] = value
        return values

    return change


def column(name: str, words: list[str]) -> Callable[[pa.Table], pa.Table]:
    field = SCORE_SCHEMA.get_field_index(name)
    return lambda table: table.set_column(
        field, SCORE_SCHEMA.field(name), pa.array((words * table.num_rows)[: table.num_rows]).dictionary_encode()
    )


def set_value(table: pa.Table, name: str, at: int, value: float | None) -> pa.Table:
    values = table[name].to_pylist()
    values[at] = value
    return table.set_column(
        table.schema.get_field_index(name), table.schema.field(name), pa.array(values, pa.float64())
    )


def another_count(store: Store) -> str:
    commit = next(Ledger(store).commits())
    return with_record(flagged=commit.flagged + 1)(store).replace("commits", "scores").replace("json", "parquet")


def another_name(store: Store) -> str:
    record = next(store.commits.iterdir())
    copy = record.with_name(f"copy-{record.name.rpartition('-')[2]}")
    copy.write_bytes(record.read_bytes())
    return f"commits/{copy.name}"


def shuffled(table: pa.Table) -> pa.Table:
    return table.take(pa.array([1, 0, *range(2, table.num_rows)]))


def repeated(table: pa.Table) -> pa.Table:
    return pa.concat_tables([table.slice(0, 1), table.slice(0, table.num_rows - 1)])


def attempts(count: int) -> bytes:
    return Attempts(f"b-{sha256(b'2')[:12]}", "b.csv", sha256(b"2"), CONTRACT, count, "it died.").to_json()


CORRUPTED: dict[str, tuple[str, Callable[[Store], str]]] = {
    "record counts a row twice": ("I1", with_record(scored=20)),
    "record counts more flags than rows": ("I1", with_record(flagged=99)),
    "record counts another flag": ("I1", another_count),
    "a row is missing": ("I1", with_table(lambda table: table.slice(0, table.num_rows - 1))),
    "a reason is another": ("I1", with_scores(status=row(4, "unscorable:missing"))),
    "two records for one key": ("I2", second_record),
    "two models scored it, and neither stands in the other's place": ("I2", another_model),
    "a row twice": ("I2", with_table(repeated)),
    "rows out of order": ("I2", with_table(shuffled)),
    "scores missing": ("I3", with_file("scores/ID.parquet", None)),
    "scores empty": ("I3", with_file("scores/ID.parquet", b"")),
    "scores of another size": ("I3", with_file("scores/ID.parquet", b"PAR1PAR1")),
    "a bit of the scores flipped": ("I3", flip("scores/ID.parquet", 0.3)),
    "a bit flipped, sha256 made to fit": ("I3", flipped_and_rehashed),
    "report missing": ("I3", with_file("reports/ID.json", None)),
    "a bit of the report flipped": ("I3", flip("reports/ID.json", 0.5)),
    "record truncated": ("I3", with_file("commits/ID.json", b'{"format": 1,')),
    "record under another name": ("I3", another_name),
    "reason file under another name": (
        "I3",
        with_file(f"quarantine/copy-{sha256(b'2')[:12]}.json", refusal("b.csv", b"2").to_json()),
    ),
    "broken reason file": ("I3", with_file("quarantine/x-000000000000.json", b"{}")),
    "foreign file": ("I3", with_file("scores/notes.txt", b"x")),
    "hidden file": ("I3", with_file("commits/.x.json", b"x")),
    "foreign temporary": ("I3", with_file("_tmp/x.parquet", b"x")),
    "scores are a link": ("I3", linked),
    "broken store.json": ("I3", with_file("store.json", b"[]")),
    "a score that is no number": ("I4", with_scores(score=lambda score: np.where(score < 1, np.nan, score))),
    "a score for an unscorable row": ("I4", with_table(lambda table: set_value(table, "score", 4, 1.0))),
    "no score for a row that is well": ("I4", with_table(lambda table: set_value(table, "score", 0, None))),
    "scores over the threshold, not flagged": ("I4", with_scores(score=lambda score: score + 5)),
    "a p-value of nought": ("I4", with_scores(p_value=row(0, 0.0))),
    "a p-value over one": ("I4", with_scores(p_value=row(0, 1.5))),
    "flagged below the threshold": ("I4", with_scores(is_anomaly=lambda flags: ~flags)),
    "flagged against the p-value": ("I4", with_scores(p_value=lambda p: np.where(np.isnan(p), p, 0.55 - p))),
    "another batch's rows": ("I5", with_table(column("batch_id", ["other-000000000000"]))),
    "rows of two models": ("I5", with_table(column("model_version", ["1", "2"]))),
    "another threshold": ("I5", with_table(column("threshold_version", ["t-2"]))),
    "no metadata": ("I5", with_table(lambda table: table.replace_schema_metadata(None))),
    "a column missing": ("I5", with_table(lambda table: table.drop_columns("p_value"))),
    "another model in the record": (
        "I5",
        lambda s: (
            with_record(model={"name": "n", "version": "1", "digest": "d"})(s)
            .replace("commits", "scores")
            .replace("json", "parquet")
        ),
    ),
    "another monitor": ("I5", with_file("store.json", b'{"format": 1, "monitor": "other"}')),
    "marker without a record": (
        "I6",
        with_file("outbox/x-1.log.json", dump({"batch_id": "x-1", "sink": "log", "idempotency_key": "k"})),
    ),
    "marker of another name": (
        "I6",
        with_file("outbox/x-1.file.json", dump({"batch_id": "x-1", "sink": "log", "idempotency_key": "k"})),
    ),
    "broken marker": ("I6", with_file("outbox/ID.log.json", b"")),
    "broken attempts": ("I3", with_file("attempts/ID.json", b"{}")),
    "no attempts": ("I6", with_file(f"attempts/b-{sha256(b'2')[:12]}.json", attempts(0))),
}


@pytest.mark.parametrize("case", CORRUPTED)
def test_check_reports_a_corrupted_store(store: Store, case: str) -> None:
    good = put(store, "a.csv", b"1")
    store.replace(b"<html>", store.file(store.reports, good.batch_id, ".html"))
    assert check(store) == []
    invariant, corrupt = CORRUPTED[case]
    path = corrupt(store)
    found = [f for f in check(store) if f.severity == "error"]
    assert invariant in {f.invariant for f in found}
    assert path in {f.path for f in found if f.invariant == invariant} or case == "another monitor"
    assert all(f.problem and f.remedy and "\n" not in str(f) for f in found)


@pytest.mark.parametrize(
    "corrupt",
    [
        left_by_the_dead,
        quarantined_too,
        attempted,
        with_file("store.json", None),
        with_file("reports/ID.html", None),
        with_file("scores/x-000000000000.parquet", b""),
        with_file("reports/x-000000000000.json", b""),
    ],
)
def test_what_the_next_run_mends_is_a_note(store: Store, corrupt: Callable[[Store], str]) -> None:
    good = put(store, "a.csv", b"1")
    store.replace(b"<html>", store.file(store.reports, good.batch_id, ".html"))
    path = corrupt(store)
    assert [(f.path, f.severity) for f in check(store)] == [(path, "note")]


@pytest.mark.parametrize("corrupt", [quarantined_too, attempted])
def test_the_next_run_mends_what_it_says_it_mends(store: Store, corrupt: Callable[[Store], str]) -> None:
    put(store, "a.csv", b"1")
    path = corrupt(store)
    Ledger(store).recover()
    assert not (store.root / path).exists()


def test_check_needs_a_store(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has made"):
        check(Store(tmp_path / "nowhere"))


def test_an_empty_ledger_reads_without_a_store(tmp_path: Path) -> None:
    ledger = Ledger(Store(tmp_path / "nowhere"))
    assert [row.state for row in ledger.state([("a.csv", sha256(b"1"))], CONTRACT)] == ["pending"]
    assert ledger.pending_alerts(["log"]) == ledger.unrendered() == []
    assert not (tmp_path / "nowhere").exists()


def test_the_messages_of_the_store_hold_no_record(store: Store) -> None:
    secret = np.array([f"secret-{i}" for i in range(23)], dtype=object)
    smuggled = with_scores(record_ids=lambda _: secret, p_value=lambda p: p * 0)(store)
    findings = check(store)
    assert smuggled in {f.path for f in findings}
    assert "secret" not in "".join(map(str, findings))


def test_read_record_names_what_is_not_there(store: Store) -> None:
    with pytest.raises(StoreError, match=r"gone\.json"):
        read_record(store.commits / "gone.json", Commit)
    assert files.names(store.root / "nowhere") == []
