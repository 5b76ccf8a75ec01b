"""What the pipelines take for a delivery: files of every format, and folders of images where a monitor has images."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vae_anomaly import scoring, worker
from vae_anomaly.batch import OK, Records
from vae_anomaly.config import MlflowConfig, parse_monitor
from vae_anomaly.errors import DataError
from vae_anomaly.images import decode, encode
from vae_anomaly.pipelines import example_frame, read_training, training_files
from vae_anomaly.scoring import score, status
from vae_anomaly.store.records import ModelRef
from vae_anomaly.worker import read_records
from vae_anomaly.workspace import Workspace

IMAGES = "columns: {image: {kind: image, size: [2, 3]}}"
LINES = "columns: {message: {kind: text}}"
PIXELS = np.arange(48, dtype=np.uint8).reshape(8, 2, 3)
FILES = [encode(image[..., None]) for image in PIXELS]


@pytest.fixture
def workspace(tmp_path: Path) -> Callable[..., Workspace]:
    """A monitor with folders of its own; ``lines`` is the pattern of lines."""
    (tmp_path / "training").mkdir()
    (tmp_path / "inbox").mkdir()

    def make(columns: str = IMAGES, lines: str = "null") -> Workspace:
        source = f"source: {{training: training, inbox: inbox, settle_seconds: 0, lines: {{pattern: {lines}}}}}"
        text = f"name: m\n{source}\n{columns}\nsinks: []\nexecution: {{engine: inline}}\n"
        return Workspace(parse_monitor(text, tmp_path / "monitor.yml"), MlflowConfig())

    return make


def fill(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in zip(names, FILES, strict=False):
        (folder / name).write_bytes(content)
    return folder


class Reader:
    """Stands where a worker would score: reads the records of each delivery."""

    read: dict[str, list[Records]]

    def __init__(self, ws: Workspace) -> None:
        self.ws = ws

    def score(self, delivery: Any, tell: Any, **options: Any) -> str:
        self.read[delivery.name] = list(read_records(delivery, self.ws))
        delivery.assert_unchanged()
        raise OSError("not scored")


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> type[Reader]:
    Reader.read = {}
    model = ModelRef("vae-anomaly.m", "1", "0" * 64)
    monkeypatch.setattr(scoring, "_fetched", lambda ws, tracker, which: (model, ws.store.root))
    monkeypatch.setattr(worker, "scorer_of", lambda setting: Reader(setting.workspace))
    return Reader


def test_a_training_folder_may_be_the_images_themselves(workspace: Callable[..., Workspace], tmp_path: Path) -> None:
    ws = workspace()
    fill(tmp_path / "training", "b.png", "a.PNG", "c.jpg")
    training = read_training(ws)
    assert list(training.digests) == ["training"]
    assert training.records.status.tolist() == [OK] * 3
    assert np.array_equal(training.records.values["image"][..., 0], PIXELS[[1, 0, 2]])  # by name
    assert training_files(ws.monitor.source.training) == [
        tmp_path / "training" / n for n in ("a.PNG", "b.png", "c.jpg")
    ]
    (tmp_path / "way").symlink_to(tmp_path / "training")  # a link to the folder is the operator's
    assert training_files(tmp_path / "way", folders=True) == [tmp_path / "training"]


def test_a_training_folder_may_hold_folders_and_files(workspace: Callable[..., Workspace], tmp_path: Path) -> None:
    ws, folder = workspace(), tmp_path / "training"
    fill(folder / "monday", "a.png", "b.png")
    np.savez(folder / "tuesday.npz", image=PIXELS, digit=np.arange(8))
    pq.write_table(pa.table({"image": FILES[:3]}), folder / "wednesday.parquet")
    training = read_training(ws)
    assert list(training.digests) == ["monday", "tuesday.npz", "wednesday.parquet"]
    assert np.array_equal(training.records.values["image"][..., 0], np.concatenate([PIXELS[:2], PIXELS, PIXELS[:3]]))


def test_images_and_other_deliveries_do_not_mix(workspace: Callable[..., Workspace], tmp_path: Path) -> None:
    ws, folder = workspace(), fill(tmp_path / "training", "a.png")
    pq.write_table(pa.table({"image": FILES[:3]}), folder / "f.parquet")
    with pytest.raises(DataError, match="mixed_folder"):
        read_training(ws)
    (folder / "f.parquet").unlink()
    fill(folder / "deeper", "a.png")
    with pytest.raises(DataError, match="not_a_file"):
        read_training(ws)


def test_the_example_of_images_is_what_the_model_sees(workspace: Callable[..., Workspace], tmp_path: Path) -> None:
    ws = workspace("record_id: name\n" + IMAGES)
    cells = [FILES[0], b"no image", b"nor this", b"nor that", None, *FILES[1:4]]  # the first five are few
    table = pa.table({"image": cells, "name": list("abcdefgh"), "other": range(8)})
    pq.write_table(table, tmp_path / "training" / "f.parquet")
    frame = example_frame(ws)
    assert list(frame.columns) == ["image", "name"]
    assert list(frame["name"]) == list("abcde")
    assert np.array_equal([decode(cell, (2, 3), 1)[..., 0] for cell in frame["image"][:1]], PIXELS[:1])
    np.save(tmp_path / "training" / "e.npy", PIXELS / 255)  # tensors of floats
    assert np.array_equal(decode(example_frame(workspace())["image"][4], (2, 3), 1)[..., 0], PIXELS[4])


def test_folders_in_the_inbox_are_batches_of_an_image_monitor(
    workspace: Callable[..., Workspace], tmp_path: Path, reader: type[Reader]
) -> None:
    ws, inbox = workspace(), tmp_path / "inbox"
    fill(inbox / "day", "a.png", "b.png")
    np.save(inbox / "array.npy", PIXELS)
    assert [(row.name, row.state) for row in status(ws)] == [("array.npy", "pending"), ("day", "pending")]
    assert [b.name for b in score(ws).batches] == ["array.npy", "day"]
    assert np.array_equal(reader.read["day"][0].values["image"][..., 0], PIXELS[:2])
    assert len(reader.read["array.npy"][0]) == 8
    tables = workspace("columns: {a: {kind: number}}")
    assert [row.name for row in status(tables)] == ["array.npy"]  # a folder is nothing to a table


def test_a_refused_folder_is_quarantined_until_something_in_it_changes(
    workspace: Callable[..., Workspace], tmp_path: Path, reader: type[Reader]
) -> None:
    ws, day = workspace(), fill(tmp_path / "inbox" / "day", "a.png", "b.png")
    (day / "labels.csv").write_text("a\n1\n")
    first = score(ws).batches[0].quarantine
    assert first is not None
    assert (first.rule, first.name, first.file) == ("mixed_folder", "day", "day/labels.csv")
    assert score(ws).already == 1
    assert [row.state for row in status(ws)] == ["quarantined"]
    (day / "labels.csv").write_text("a\n1\n2\n")  # written in place: the folder itself is as it was
    assert len(score(ws).batches) == 1
    (day / "labels.csv").unlink()
    assert [b.verdict for b in score(ws).batches] == ["failed"]  # it is read now
    assert len(reader.read["day"][0]) == 2


def test_a_file_rewritten_in_a_folder_is_seen(
    workspace: Callable[..., Workspace], tmp_path: Path, reader: type[Reader], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time_ns
    monkeypatch.setattr(scoring.time, "time_ns", lambda: now() + 10**10)  # all files are old enough for the cache
    ws, day = workspace(), fill(tmp_path / "inbox" / "day", "a.png")
    np.save(tmp_path / "inbox" / "array.npy", PIXELS)
    before = {row.name: row.sha256 for row in status(ws)}
    score(ws)
    cached = (ws.store.root / "hash_cache.json").read_text()
    assert "array.npy" in cached
    assert "day" not in cached  # the folder's own state does not tell of what was written in place
    (day / "a.png").write_bytes(FILES[5])
    score(ws)
    assert np.array_equal(reader.read["day"][0].values["image"][0, ..., 0], PIXELS[5])
    after = {row.name: row.sha256 for row in status(ws)}
    assert after["array.npy"] == before["array.npy"]
    assert after["day"] != before["day"]


def test_lines_become_texts_by_the_pattern(
    workspace: Callable[..., Workspace], tmp_path: Path, reader: type[Reader]
) -> None:
    ws = workspace(LINES, r"'^(?P<level>\S+) (?P<message>.*)$'")
    (tmp_path / "inbox" / "f.log").write_text("INFO all is well\n\nINFO \nunmatched\n")
    score(ws)
    (records,) = reader.read["f.log"]
    assert records.values["message"].to_pylist() == ["all is well", None, None]  # type: ignore[union-attr]
    assert records.status.tolist() == [OK, "unscorable:all_missing", "unscorable:all_missing"]


def test_images_are_read_in_chunks(
    workspace: Callable[..., Workspace], tmp_path: Path, reader: type[Reader], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vae_anomaly.schema.PIXELS", 20)  # three images of six pixels
    ws = workspace()
    np.save(tmp_path / "inbox" / "array.npy", PIXELS)
    fill(tmp_path / "inbox" / "day", *(f"{i}.png" for i in range(7)))
    score(ws)
    assert [len(part) for part in reader.read["array.npy"]] == [3, 3, 2]
    assert [(part.first_row, len(part)) for part in reader.read["day"]] == [(0, 3), (3, 3), (6, 1)]
