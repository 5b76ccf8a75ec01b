"""The shipped bundle: what comes back from the disk is what was saved, byte by byte, or it is refused."""

from __future__ import annotations

import hashlib
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from system_samples import Payload

from vae_anomaly.artifact import FILES, FORMAT, MANIFEST
from vae_anomaly.batch import Records
from vae_anomaly.detector import Detector, require_schema
from vae_anomaly.errors import ArtifactError
from vae_anomaly.explain import explain, latent_shares
from vae_anomaly.report.model import COMBINATION
from vae_anomaly.schema import Column, Schema
from vae_anomaly.scores import SCORES
from vae_anomaly.thresholds import calibrated, conformal
from vae_anomaly.vae import Inputs

HEAD, WEIGHTS = FILES


@pytest.fixture
def saved(detector, tmp_path) -> tuple[Path, str]:
    """The folder of the default detector and its digest."""
    folder = tmp_path / "model"
    return folder, detector.save(folder)


def rehash(folder: Path, **changed: object) -> None:
    """A manifest that fits the files, as a forger would write it."""
    files = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES}
    (folder / MANIFEST).write_text(json.dumps({"format": FORMAT, "files": files} | changed))


def edit_head(folder: Path, change: Callable[[dict], object]) -> None:
    head = json.loads((folder / HEAD).read_text())
    change(head)
    (folder / HEAD).write_text(json.dumps(head))
    rehash(folder)


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = safetensors.torch.load((folder / WEIGHTS).read_bytes())
    change(tensors)
    (folder / WEIGHTS).write_bytes(safetensors.torch.save(tensors))
    rehash(folder)


# ------------------------------------------------------------- there and back


@pytest.mark.parametrize("kind", SCORES)
def test_a_loaded_detector_is_the_same(kind, fitted, make_records, tmp_path):
    detector, records = fitted(kind).detector, make_records(1500, 11)
    digest = detector.save(tmp_path / "model")
    loaded = Detector.load(tmp_path / "model", digest=digest)
    assert digest == detector.digest == loaded.digest
    for name in ("status", "score", "p_value", "is_anomaly"):
        ours, theirs = (getattr(made.detect(records), name) for made in (detector, loaded))
        assert ours.tobytes() == theirs.tobytes() or (name == "status" and (ours == theirs).all()), name
    assert (loaded.schema, loaded.preprocessor, loaded.provenance) == (
        detector.schema,
        detector.preprocessor,
        detector.provenance,
    )
    assert loaded.threshold.to_dict() == detector.threshold.to_dict()
    some = records.take(np.flatnonzero(records.scorable)[:3])
    assert explain(loaded, some) == explain(detector, some)
    assert Detector.load(tmp_path / "model").save(tmp_path / "again") == digest
    assert {p.name: p.read_bytes() for p in (tmp_path / "again").iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "model").iterdir()
    }


IN_ANOTHER_PROCESS = """
import sys
from pathlib import Path
import numpy as np, pyarrow.parquet as pq
from vae_anomaly import Detector
from vae_anomaly.schema import check
detector = Detector.load(Path(sys.argv[1]), digest=sys.argv[2])
records = check(pq.read_table(sys.argv[3]), detector.schema, first_row=0, file="test")
found = detector.detect(records)
np.save(sys.argv[4], np.stack([found.score, found.p_value, found.is_anomaly]))
assert detector.digest == sys.argv[2]
"""


def test_segments_are_kept_beside_the_scores_and_change_nothing_where_there_are_none(
    detector, make_records, saved, tmp_path
):
    head = json.loads((saved[0] / HEAD).read_text())
    assert "segments" not in head["threshold"]
    assert "threshold.segments" not in safetensors.torch.load((saved[0] / WEIGHTS).read_bytes())
    known = detector.threshold.measured
    labels = np.random.default_rng(0).choice(np.array(["north", "south", None], dtype=object), len(known))
    made = calibrated("mondrian", known, {"by": "shop", "alpha": 0.1}, labels)
    ours, records = replace(detector, threshold=made), make_records(300, 7)
    digest = ours.save(tmp_path / "segments")
    again = Detector.load(tmp_path / "segments", digest=digest)
    assert (again.digest, again.threshold.version) == (digest, made.version)
    found = ours.detect(records)
    shops = np.array(records.values["shop"].to_pylist(), dtype=object)
    for name, part in zip([None, *made.segments], made.parts, strict=True):
        mine = ~np.isin(shops, list(made.segments)) if name is None else shops == name
        assert mine.any()
        assert (found.p_value[mine] == part.p_value(found.score[mine])).all()
        assert (found.is_anomaly[mine] == (found.score[mine] > part.value)).all()
    for name in ("score", "p_value", "is_anomaly", "part"):
        assert (getattr(again.detect(records), name) == getattr(found, name)).all()
    edit_head(tmp_path / "segments", lambda head: head["threshold"]["segments"].reverse())
    with pytest.raises(ArtifactError, match="threshold must follow"):
        Detector.load(tmp_path / "segments")


def test_a_fresh_process_gives_the_same_bits(detector, saved, make_table, make_records, tmp_path):
    folder, digest = saved
    pq.write_table(make_table(2500, 12), tmp_path / "rows.parquet")
    out = tmp_path / "found.npy"
    command = [sys.executable, "-c", IN_ANOTHER_PROCESS, str(folder), digest, str(tmp_path / "rows.parquet"), str(out)]
    subprocess.run(command, check=True, timeout=120)
    found = detector.detect(make_records(2500, 12))
    assert np.load(out).tobytes() == np.stack([found.score, found.p_value, found.is_anomaly]).tobytes()


def test_the_digest_names_the_threshold_too(detector):
    other = replace(detector, threshold=conformal(detector.threshold.calibration, alpha=0.1))
    assert other.digest != detector.digest
    assert detector.digest == detector.digest


def test_a_folder_with_files_is_not_written_to(detector, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="must be empty"):
        detector.save(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


# ------------------------------------------------------------- what was altered is refused by name


@pytest.mark.parametrize("name", [MANIFEST, *FILES])
@pytest.mark.parametrize("place", [0.0, 0.1, 0.37, 0.5, 0.81, 1.0])
def test_one_flipped_bit_is_refused(name, place, saved):
    folder, digest = saved
    data = bytearray((folder / name).read_bytes())
    data[round(place * (len(data) - 1))] ^= 4
    (folder / name).write_bytes(data)
    with pytest.raises(ArtifactError, match=name):
        Detector.load(folder, digest=digest)
    if name != MANIFEST:
        with pytest.raises(ArtifactError, match=name):
            Detector.load(folder)


@pytest.mark.parametrize("name", [MANIFEST, *FILES])
@pytest.mark.parametrize("change", ["empty", "half", "one short", "one more"])
def test_another_length_is_refused(name, change, saved):
    folder, digest = saved
    data = (folder / name).read_bytes()
    cut = {"empty": b"", "half": data[: len(data) // 2], "one short": data[:-1], "one more": data + b"\n"}
    (folder / name).write_bytes(cut[change])
    with pytest.raises(ArtifactError, match=name):
        Detector.load(folder, digest=digest)


@pytest.mark.parametrize("name", [MANIFEST, *FILES])
def test_a_missing_file_is_named(name, saved):
    folder, _ = saved
    (folder / name).unlink()
    with pytest.raises(ArtifactError, match=f"missing \\['{name}'\\]"):
        Detector.load(folder)


@pytest.mark.parametrize("name", ["weights.pt", "model.pkl", ".hidden", "sub/readme"])
def test_a_foreign_file_is_named(name, saved):
    folder, digest = saved
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"x")
    with pytest.raises(ArtifactError, match=f"foreign \\['{name.split('/')[0]}'\\]"):
        Detector.load(folder, digest=digest)


@pytest.mark.parametrize("name", [MANIFEST, *FILES])
@pytest.mark.parametrize("kind", ["link", "dangling link", "folder"])
def test_only_regular_files_are_read(name, kind, saved, tmp_path):
    folder, digest = saved
    elsewhere = (folder / name).rename(tmp_path / "elsewhere")
    if kind == "dangling link":
        elsewhere.unlink()
    if kind == "folder":
        (folder / name).mkdir()
    else:
        (folder / name).symlink_to(elsewhere)
    with pytest.raises(ArtifactError, match=name):
        Detector.load(folder, digest=digest)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ArtifactError, match="no-such-model"):
        Detector.load(tmp_path / "no-such-model")


def test_a_consistent_folder_with_another_digest_is_another_model(saved, fitted, tmp_path):
    _, digest = saved
    other = tmp_path / "other"
    assert fitted(seed=1).detector.save(other) != digest
    Detector.load(other)
    with pytest.raises(ArtifactError, match=rf"{MANIFEST}.*registered sha256 {digest[:12]}"):
        Detector.load(other, digest=digest)


# ------------------------------------------------------------- forgeries whose hashes fit


@pytest.mark.parametrize(
    "text",
    ['{"format": 1, "files": {}}', "[]", "null", '"x"', '{"format": 3}', '{"format": 3, "files": []}', "[" * 100_000],
    ids=["another format", "list", "null", "text", "no files", "files as a list", "deep"],
)
def test_another_manifest_is_refused(text, saved):
    folder, _ = saved
    (folder / MANIFEST).write_text(text)
    with pytest.raises(ArtifactError, match=MANIFEST):
        Detector.load(folder)


def test_another_format_says_so(saved):
    folder, _ = saved
    rehash(folder, format=99)
    with pytest.raises(ArtifactError, match=r"must have format 4\. Got 99: made by another version"):
        Detector.load(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("prefix", ["vae.", "score.", "threshold.", "reference."])
def test_weights_that_are_not_finite_are_refused(value, prefix, saved):
    folder, _ = saved

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        name = next(n for n in sorted(tensors) if n.startswith(prefix))
        tensors[name].view(-1)[-1] = value

    edit_weights(folder, spoil)
    with pytest.raises(ArtifactError, match=rf"{WEIGHTS}.*'{prefix}.*must be finite"):
        Detector.load(folder)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("write", [pickle.dumps, None], ids=["pickle", "torch"])
def test_a_pickle_is_refused_and_never_run(name, write, saved, tmp_path):
    folder, _ = saved
    mark = tmp_path / "it-ran"
    if write is None:
        torch.save({"weights": Payload(mark)}, folder / name)
    else:
        (folder / name).write_bytes(write(Payload(mark)))
    rehash(folder)
    with pytest.raises(ArtifactError, match=str(folder)):
        Detector.load(folder)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Payload(mark)))
    assert mark.exists()  # the payload works


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.pop("threshold.calibration"),
        lambda t: t.pop(next(n for n in sorted(t) if n.startswith("vae."))),
        lambda t: t.update({"vae.more": torch.zeros(3)}),
        lambda t: t.update({n: v[:-1].clone() for n, v in t.items() if n == "vae.0.likelihood.raw_log_sigma"}),
        lambda t: t.update({"threshold.calibration": t["threshold.calibration"] + 1.0}),
    ],
    ids=["no calibration", "a weight less", "a weight more", "another shape", "another calibration"],
)
def test_tensors_that_do_not_fit_are_refused(change, saved):
    folder, _ = saved
    edit_weights(folder, change)
    with pytest.raises(ArtifactError, match=str(folder)):
        Detector.load(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h["threshold"].update(alpha=0.5),
        lambda h: h["threshold"].update(value=0.0),
        lambda h: h["threshold"].update(method="no_such_method"),
        lambda h: h["threshold"].update(options={"alpha": 0.06}),
        lambda h: h["threshold"].update(options={"no_such_option": 1}),
        lambda h: h["model"].update(kind="os.system"),
        lambda h: h["model"]["options"].update(latent=5),
        lambda h: h["model"]["options"].update(no_such_option=1),
        lambda h: h["score"].update(kind="no_such_score"),
        lambda h: h.pop("schema"),
        lambda h: h["preprocessor"]["states"].pop(),
        lambda h: h["preprocessor"]["states"][0].update(kind="image"),
        lambda h: h.clear(),
    ],
    ids=["alpha", "threshold value", "method", "method option", "no such option",
         "model kind", "latent", "model option", "score", "no schema",
         "column state", "column kind", "nothing"],
)  # fmt: skip
def test_descriptions_that_do_not_fit_are_refused(change, saved):
    folder, _ = saved
    edit_head(folder, change)
    with pytest.raises(ArtifactError, match=str(folder)):
        Detector.load(folder)


# ------------------------------------------------------------- the schema


def test_the_difference_of_two_schemas_is_listed(detector, schema):
    require_schema(detector, schema)
    columns = {c.name: c for c in schema.columns}
    del columns["flag"]
    columns |= {"new": Column("new", "number"), "at": Column("at", "category")}
    with pytest.raises(ArtifactError, match=r"gone \['flag'\], new \['new'\], changed \['at'\]"):
        require_schema(detector, Schema(tuple(columns.values()), record_id="id"))
    with pytest.raises(ArtifactError, match="record id None for 'id'"):
        require_schema(detector, replace(schema, record_id=None))


# ------------------------------------------------------------- explanations


@pytest.fixture
def strange(make_records) -> Records:
    """An ordinary record, one with a far amount, one of an unheard-of shop, and one whose flag is missing."""
    records = make_records(4, 21, holes=0.0)
    values = {k: v if isinstance(v, pa.Array) else v.copy() for k, v in records.values.items()}
    for name, ordinary in (("a", 0.5), ("b", 1.0), ("amount", 20.0), ("flag", 0.0)):
        values[name][:] = ordinary
    values["at"][:] = np.datetime64("2026-01-14T10:30", "us")
    values["amount"][1] = 98_765.0
    values["shop"] = pa.array(["north", "north", "unheard of", "north"])
    values["flag"][3] = np.nan
    return Records(0, records.record_ids, values, records.status)


@pytest.mark.parametrize("kind", SCORES)
def test_reasons_sum_to_the_score_largest_first(kind, fitted, strange):
    detector = fitted(kind).detector
    scores = detector.detect(strange).score
    for score, explanation in zip(scores, explain(detector, strange), strict=True):
        nats = [r.nats for r in explanation.reasons]
        assert sum(nats) == pytest.approx(score, rel=1e-9, abs=1e-9 * sum(map(abs, nats)))
        assert nats == sorted(nats, reverse=True)
        columns = {r.column for r in explanation.reasons}
        assert columns == {*detector.preprocessor.columns, COMBINATION}
    assert explain(detector, strange.take(np.arange(0))) == []


def test_the_shares_of_the_latent_entry_sum_to_its_rise_from_the_nearest_record(fitted, strange):
    detector = fitted("kl").detector
    inputs, nearest = detector.encode(strange.take(np.arange(3))), torch.arange(3)  # nothing is missing
    base = detector.reference.inputs[nearest]
    rise = detector.terms(inputs)[:, -1] - detector.terms(Inputs(base.x))[:, -1]
    shares = latent_shares(detector, inputs, nearest)
    assert shares.shape == (3, len(detector.preprocessor.states))
    np.testing.assert_allclose(shares.sum(1), rise, rtol=0.05, atol=1e-3)
    assert np.argmax(shares[1]) == detector.preprocessor.columns.index("amount")


def test_the_reason_is_the_column_that_was_changed(detector, strange):
    _, far, unseen, missing = explain(detector, strange)
    assert far.reasons[0].column == "amount"
    assert far.reasons[0].found == "98765"
    assert far.reasons[0].deviation > 50
    assert far.reasons[0].note.startswith("beyond the training range")
    assert unseen.reasons[0].column == "shop"
    assert unseen.reasons[0].note == "never seen in training"
    assert unseen.reasons[0].found == "unheard of"
    flag = next(r for r in missing.reasons if r.column == "flag")
    assert (flag.note, flag.found, flag.deviation) == ("missing", "", None)
    assert flag.nats > 2


def test_strange_records_are_flagged_and_an_ordinary_one_is_not(detector, strange):
    assert detector.detect(strange).is_anomaly[:3].tolist() == [False, True, True]


def test_what_was_found_and_expected_reads_as_the_data_does(detector, strange):
    reasons = {r.column: r for r in explain(detector, strange)[0].reasons}
    assert {c: reasons[c].found for c in ("a", "b", "amount", "flag", "shop", "at")} == {
        "a": "0.5",
        "b": "1",
        "amount": "20",
        "flag": "false",
        "shop": "north",
        "at": "2026-01-14 10:30:00 UTC",
    }
    center, spread = map(float, reasons["amount"].expected.split(" ± "))
    assert 5 < center < 50
    assert 1 < spread < 50
    assert reasons["flag"].expected.startswith("false (")
    assert reasons["shop"].expected.startswith("north (")
    assert reasons["at"].expected.endswith("UTC")
    assert all(r.note == "" for c, r in reasons.items() if c != COMBINATION)


def test_neighbours_are_reference_records_nearest_first(detector, make_records):
    records = make_records(8, 22, holes=0.0)
    for explanation in explain(detector, records):
        at, distance = zip(*explanation.neighbours, strict=True)
        assert len(set(at)) == len(at)
        assert all(0 <= i < len(detector.reference.record_ids) for i in at)
        assert list(distance) == sorted(distance)


def test_a_reference_record_is_its_own_nearest_neighbour(fitted, make_records):
    fit = fitted()
    training = make_records(900).take(fit.splits["training"][:5])
    for i, explanation in enumerate(explain(fit.detector, training)):
        at, distance = explanation.neighbours[0]
        assert fit.detector.reference.record_ids[at] == training.record_ids[i]
        assert distance < 0.01
