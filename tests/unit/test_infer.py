"""``vae-anomaly init``: what records and columns are taken for, and that a fit can read what the proposal names."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from vae_anomaly import images
from vae_anomaly.batch import Records
from vae_anomaly.config import MonitorConfig, parse_monitor
from vae_anomaly.errors import ConfigError
from vae_anomaly.infer import ROWS, infer_monitor, pictures, reading, write_monitor
from vae_anomaly.pipelines import read_training
from vae_anomaly.schema import PLACEHOLDERS, Column, Schema, check
from vae_anomaly.store import sources
from vae_anomaly.workspace import Workspace

ROOT = Path(__file__).parents[2]
N = 400
RNG = np.random.default_rng(0)
AMOUNT = RNG.normal(size=N)
WORDS = np.resize(["red", "green", "blue"], N)


def infer(path: Path, columns: dict[str, Any] | None = None, **options: Any) -> tuple[str, MonitorConfig]:
    """The text for a table (with a plain number beside ``columns``) or for what ``path`` is, and its configuration."""
    if columns is not None:
        path = path / "records.parquet"
        pq.write_table(pa.table({"plain": AMOUNT} | columns), path)
    text = infer_monitor(path, **options)
    return text, parse_monitor(text, (path if path.is_dir() else path.parent) / "monitor.yml")


def comment(text: str, name: str) -> str:
    """The comment on the line of the column ``name``."""
    line = next(line for line in text.splitlines() if line.strip().removeprefix("- ").startswith(name))
    return line.partition("  # ")[2]


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[object]], **options: Any) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n", **options).writerows([header, *rows])
    return path


# ---- kinds ----

START = datetime(2026, 1, 1)
TIMES = [START + timedelta(hours=i) for i in range(N)]
KINDS = {
    "integers": (np.arange(N) % 7, "number", "7 distinct numbers; kind boolean or category if it is a code"),
    "floats": (RNG.normal(size=N), "number", "400 distinct numbers"),
    "half": (RNG.normal(size=N).astype(np.float16), "number", "distinct numbers"),
    "decimals": (pa.array([Decimal(f"{i}.25") for i in range(N)]), "number", "400 distinct numbers"),
    "gaps": (pa.array([None, *AMOUNT[1:]]), "number", "399 distinct numbers, 0.2 % missing"),
    "nan": (np.where(np.arange(N) < 4, np.nan, AMOUNT), "number", "1.0 % missing"),
    "number_text": (pa.array([f" {i / 7:.3f}" for i in range(N)]), "number", "distinct numbers"),
    "number_words": (pa.array(["NA", "oops", *(f"{x:.6f}" for x in AMOUNT[2:])]), "number", "0.3 % not numbers"),
    "flags": (AMOUNT > 0, "boolean", "true and false"),
    "flag_words": (np.where(AMOUNT > 0, "Yes", "no"), "boolean", "two words"),
    "flag_gaps": (np.where(AMOUNT > 1, "T", np.where(AMOUNT > 0, "NA", "F")), "boolean", "missing"),
    "colours": (WORDS, "category", "3 text values"),
    "colour_codes": (pa.array(WORDS).dictionary_encode(), "category", "3 text values"),
    "country": (np.resize(["DE", "NA"], N), "category", "2 text values"),
    "zip_code": (np.resize(["01234", "99999", "00001"], N), "category", "3 text values"),
    "utc": (pa.array(TIMES, pa.timestamp("us", "UTC")), "timestamp", "with their time zone"),
    "naive": (pa.array(TIMES, pa.timestamp("ms")), "timestamp", "no time zone in the data: check that UTC is right"),
    "days": (pa.array([date(2026, 1, 1) + timedelta(i) for i in range(N)]), "timestamp", "or dates"),
    "iso": (pa.array([t.isoformat() + "+02:00" for t in TIMES]), "timestamp", "with their time zone"),
    "iso_naive": (pa.array([str(t) for t in TIMES]), "timestamp", "no time zone in the data"),
    "iso_mixed": (pa.array([f"{t}Z" for t in TIMES[1:]] + [str(START)]), "timestamp", "some have no time zone"),
    "iso_days": (pa.array([str(t.date()) for t in TIMES]), "timestamp", "or dates"),
    "iso_some": (pa.array(["soon", *(f"{t}Z" for t in TIMES[1:])]), "timestamp", "0.2 % not times (unscorable)"),
    "constant": (np.full(N, 3.0), None, "constant: ignored"),
    "constant_text": (np.full(N, "x"), None, "constant: ignored"),
    "empty": (pa.nulls(N), None, "all cells are missing: ignored"),
    "blank": (np.full(N, ""), None, "all cells are missing: ignored"),
    "infinite": (np.resize([np.inf, -np.inf], N), None, "no finite number: ignored"),
    "story": (pa.array([f"some words {i // 2}" for i in range(N)]), None, "200 different texts: free text, ignored"),
    "watched": (pa.array([f"a tale {i // 2}" for i in range(N)]), None, "a monitor of its own, with kind: text"),
    "tale": (pa.array([f"some words {i}" for i in range(N)]), None, "400 different texts: free text, ignored"),
    "nested": (pa.array([[1]] * N), None, "nested values cannot be used: ignored"),
    "raw": (pa.array([b"x"] * N), None, "binary cannot be used: ignored"),
    "lasting": (pa.array([timedelta(1)] * N), None, "cannot be used: ignored"),
    "rownum": (np.arange(N) + 5, None, "consecutive whole numbers: a row number, ignored"),
    "customer_id": (np.arange(N) % 100 * 31, None, "100 whole numbers, named like an id"),
    "huge": (2**60 + np.arange(N) * 3, None, "beyond 2^53"),
}


@pytest.mark.parametrize("name", KINDS)
def test_kind_of_a_column_and_why(tmp_path: Path, name: str) -> None:
    values, kind, why = KINDS[name]
    text, config = infer(tmp_path, {name: values})
    assert (config.columns[name].kind if kind else None) == kind
    assert (name in config.ignore) == (kind is None)
    assert why in comment(text, name)


def test_the_contract_accepts_what_is_proposed(tmp_path: Path) -> None:
    table = pa.table({name: values for name, (values, _, _) in KINDS.items()})
    _, config = infer(tmp_path, {name: table[name] for name in table.column_names})
    columns = tuple(Column(name, c.kind, c.timezone) for name, c in config.columns.items())
    schema = Schema(columns, config.record_id, ignore=config.ignore)
    records = check(table.append_column("plain", pa.array(AMOUNT)), schema, first_row=0, file="records.parquet")
    bad = set(records.status[~records.scorable])
    assert bad == {"unscorable:wrong_dtype:number_words", "unscorable:wrong_dtype:iso_some"}
    assert records.scorable.sum() >= N - 2


def test_only_times_without_a_zone_get_one(tmp_path: Path) -> None:
    _, config = infer(tmp_path, {n: KINDS[n][0] for n in KINDS if KINDS[n][1] == "timestamp"})
    zones = {name for name, column in config.columns.items() if column.timezone}
    assert zones == {"naive", "iso_naive", "iso_mixed"}


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("payment_id", [f"p-{i}" for i in range(N)]),
        ("reference", [f"r{i * 37}" for i in range(N)]),
        ("orderId", np.arange(N) * 3),
        ("id", np.arange(N).astype(float)),
        ("uuid", [f"a b {i}" for i in range(N)]),
    ],
)
def test_record_id(tmp_path: Path, name: str, values: Any) -> None:
    text, config = infer(tmp_path, {name: values, "other_id": [f"x{i}" for i in range(N)]})
    assert config.record_id == name
    assert "looks like an id" in comment(text, "record_id:")
    assert config.ignore == ("other_id",)


def test_an_id_has_no_missing_cell(tmp_path: Path) -> None:
    _, config = infer(tmp_path, {"payment_id": pa.array([None, *(f"p{i}" for i in range(1, N))])})
    assert config.record_id is None
    assert config.ignore == ("payment_id",)


# ---- labels ----


@pytest.mark.parametrize(
    ("name", "values", "anomalous"),
    [
        ("label", ["normal"] * 9 + ["fraud"], ("fraud",)),
        ("Diagnosis", ["benign"] * 6 + ["malignant"] * 4, ("malignant",)),
        ("is_fraud", [0] * 9 + [1], ("1",)),
        ("is_anomaly", [False] * 9 + [True], ("true",)),
        ("target", [0.0] * 9 + [1.0], ("1",)),
        ("y", [1] * 9 + [-1], ("-1",)),
        ("class", ["a"] * 8 + ["b", "c"], ("b", "c")),
        ("outcome", ["no"] * 8 + ["on", "1.5"], ("1.5", "on")),
    ],
)
def test_label(tmp_path: Path, name: str, values: list[object], anomalous: tuple[str, ...]) -> None:
    text, config = infer(tmp_path, {name: values * (N // 10)})
    assert config.label is not None
    assert (config.label.column, config.label.anomalous) == (name, anomalous)
    assert "a guess" in comment(text, "anomalous:")
    assert name not in config.columns


@pytest.mark.parametrize("values", [["a"], ["a", "b", "c", "d"]])
def test_a_label_that_tells_nothing_is_ignored(tmp_path: Path, values: list[str]) -> None:
    text, config = infer(tmp_path, {"label": np.resize(values, N)})
    assert config.label is None
    assert config.ignore == ("label",)
    assert "cannot be told" in comment(text, "label")


def test_label_values_that_only_the_inbox_has(tmp_path: Path) -> None:
    for folder, labels in (("training", ["usual"]), ("inbox", ["usual", "odd: 1", "strange"])):
        (tmp_path / folder).mkdir()
        pq.write_table(pa.table({"x": AMOUNT, "label": np.resize(labels, N)}), tmp_path / folder / "a.parquet")
    (tmp_path / "inbox" / "broken.parquet").write_bytes(b"PAR1")
    text, config = infer(tmp_path)
    assert config.label is not None
    assert config.label.anomalous == ("odd: 1", "strange")
    assert "in the inbox" in comment(text, "anomalous:")


# ---- alpha ----


@pytest.mark.parametrize(
    ("records", "alpha", "says"),
    [
        (60_000, 0.001, "15,000 calibration records hold it to 0.056 % to 0.16 %"),
        (10_000, 0.005, "3,000 calibration records"),
        (6_000, 0.01, "1,800 calibration records hold it to 0.59 % to 1.5 % (95 % range)"),
        (1_000, 0.05, "300 calibration records"),
        (450, 0.1, "135 calibration records"),
        (250, 0.1, "which is wide: give more records"),
        (10, 0.1, "3 calibration records are too few for any"),
    ],
)
def test_alpha_follows_from_the_number_of_records(tmp_path: Path, records: int, alpha: float, says: str) -> None:
    pq.write_table(pa.table({"x": np.random.default_rng(1).normal(size=records)}), tmp_path / "a.parquet")
    text, config = infer(tmp_path / "a.parquet")
    assert config.threshold.alpha == alpha
    assert says in comment(text, "threshold:")
    assert f"{min(records, ROWS):,} training records" in text


def test_labelled_anomalies_do_not_count_for_alpha(tmp_path: Path) -> None:
    text, _ = infer(tmp_path, {"label": np.resize(["normal", "fraud"], N)})
    assert "60 calibration records" in comment(text, "threshold:")


# ---- formats and places ----


def test_the_three_formats_agree() -> None:
    inbox = ROOT / "data" / "payments" / "inbox"
    found = [infer(place)[1] for place in (*sorted(inbox.iterdir()), inbox)]  # and all: text in one, typed in another
    kinds = [{name: c.kind for name, c in config.columns.items()} for config in found]
    assert len(found) == 4
    assert all(k == kinds[0] for k in kinds)
    assert all(config.record_id == "payment_id" and config.label == found[0].label for config in found)


def test_csv_dialect_and_damage(tmp_path: Path) -> None:
    path = tmp_path / "sales 2026.csv"
    write_csv(path, ["a;b", "when", "x"], [[f"k{i}", "2026-01-02", i / 7] for i in range(50)], delimiter=";")
    with path.open("a") as file:
        file.write("ragged;row\nmore;cells;than;three\nk50;2026-01-03;9")
    text, config = infer(path)
    assert config.name == "sales-2026"
    assert (config.source.csv.delimiter, config.source.csv.require_final_newline) == (";", False)
    assert config.source.training == path
    assert (config.record_id, list(config.columns)) == ("a;b", ["when", "x"])
    assert "all 51 training records" in text


def test_json_lines_with_bad_lines_and_mixed_types(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"x": i / 3, "mixed": i * 3 if i % 2 else str(i * 3), "deep": {"a": 1}, "\ud800": i / 7} for i in range(40)]
    good = [json.dumps(r) for r in rows[:30]] + [json.dumps({"x": 1, "late": True}), json.dumps({"late": False})]
    path.write_text("\n".join([*good, "{broken", "[1]", "", json.dumps({"x": 2**70})]))
    with pytest.raises(ConfigError, match="JSON lines"):
        infer(path)
    path.write_text(path.read_text().replace("\\ud800", "odd"))
    _, config = infer(path)
    assert {n: c.kind for n, c in config.columns.items()} == {
        "x": "number",
        "mixed": "number",
        "odd": "number",
        "late": "boolean",
    }
    assert config.ignore == ("deep",)


def test_sub_folders_and_the_place_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "site" / "training").mkdir(parents=True)
    pq.write_table(pa.table({"x": AMOUNT}), tmp_path / "site" / "training" / "a.parquet")
    text, config = infer(tmp_path / "site")
    assert config.name == "site"
    assert "  training: training  #" in text
    assert "  inbox: inbox  #" in text
    text = infer_monitor(tmp_path / "site", name="other", folder=tmp_path / "conf")
    moved = parse_monitor(text, tmp_path / "conf" / "monitor.yml")
    assert moved.source.training == config.source.training
    assert moved.source.inbox == config.source.inbox
    assert moved.name == "other"
    plain = parse_monitor(infer_monitor(tmp_path / "site" / "training", folder=tmp_path), tmp_path / "monitor.yml")
    assert plain.source.training == tmp_path / "site" / "training"
    assert plain.source.inbox == tmp_path / "inbox"


def test_files_of_a_folder_may_differ_in_columns_and_number_types(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": AMOUNT, "n": np.arange(N) % 9}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"x": AMOUNT, "n": AMOUNT, "extra": WORDS}), tmp_path / "b.parquet")
    (tmp_path / ".hidden.parquet").write_bytes(b"no")
    (tmp_path / "_tmp.csv").write_bytes(b"no")
    text, config = infer(tmp_path)
    assert list(config.columns) == ["x", "n", "extra"]
    assert "50.0 % missing" in comment(text, "extra")


# ---- names ----

ODD_NAMES = [
    *("on", "no", "Yes", "null", "~", "true", "1.5", "1e3", "0x1F", "2026-01-01", "12:30", "", " ", " lead", "trail "),
    *("a: b", "a #b", "#", "- x", "? q", "a, b", "{x}", "[x]", "&a", "*a", "!t", "|", ">", "%", "@", "`", "=", "<<"),
    *("it's", 'say "hi"', "back\\slash", "tab\there", "line\nbreak", "\x00", "\x85", "\u2028", "\ufeff", "\ufffe"),
    *(
        "\u00e9",
        "e\u0301",
        "数量",
        "😀",
        "\u202ertl",
        "name",
        "columns",
        "kind",
        "options",
        "x" * 2000,
        ".",
        "..",
        "-",
        "a:",
    ),
]


def names_of(config: MonitorConfig) -> set[str]:
    label = {config.label.column} if config.label else set()
    return {*config.columns, *config.ignore, *label, *filter(None, [config.record_id])}


def round_trip(folder: Path, names: Sequence[str]) -> None:
    values = [(np.arange(30) * (3 + i) % 11) for i in range(len(names))]
    pq.write_table(pa.table([pa.array(v) for v in values], names=list(names)), folder / "a.parquet")
    _, config = infer(folder / "a.parquet")
    assert names_of(config) == set(names)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.text(max_size=12), min_size=1, max_size=6, unique=True))
@example(ODD_NAMES)
def test_any_column_name_survives(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    round_trip(tmp_path_factory.mktemp("odd"), names)


def test_odd_names_in_csv_and_in_every_role(tmp_path: Path) -> None:
    odd = [n for n in ODD_NAMES if "\x00" not in n and n != "\ufeff"]
    write_csv(tmp_path / "a.csv", odd, [[(i * (3 + j)) % 11 for j in range(len(odd))] for i in range(30)])
    assert names_of(infer(tmp_path / "a.csv")[1]) == set(odd)
    for i, name in enumerate(odd):
        columns = {
            f"{name} ID": [f"p{j}" for j in range(N)],
            name: np.full(N, i),
            "label": np.resize(["ok", "ok", name + "x"], N),
        }
        if name != "label":
            config = infer(tmp_path, columns)[1]
            assert config.record_id == f"{name} ID"
            assert config.label is not None
            assert config.label.anomalous == (name + "x",)
            assert config.ignore == (name,)


def test_odd_paths(tmp_path: Path) -> None:
    folder = tmp_path / "a: b #c 'd' \"e\"\n{f} é"
    folder.mkdir()
    pq.write_table(pa.table({"x": AMOUNT}), folder / "2025.parquet")
    text = infer_monitor(folder, folder=tmp_path)
    config = parse_monitor(text, tmp_path / "monitor.yml")
    assert config.source.training == folder
    assert config.name == "a-b-c-d-e-f"


def test_no_value_of_a_record_is_written(tmp_path: Path) -> None:
    secret = pa.array([f"CANARY {i // 3}" for i in range(N)])
    text, _ = infer(tmp_path, {"a": secret, "b": np.resize(["CANARY", "CANARY2"], N), "c": np.full(N, "CANARY")})
    assert "CANARY" not in text


# ---- images ----


def propose(source: Path, place: Path | None = None) -> tuple[str, Workspace, Records]:
    """The text for ``source``, the workspace that it makes in ``place``, and the training records as a fit reads them.

    At least 95 % of them can be scored: this is the law for every proposal.
    """
    place = place or source.parent / f"monitor-of-{source.name}"
    place.mkdir(exist_ok=True)
    ws = Workspace.open(write_monitor(infer_monitor(source, folder=place), place))
    records = read_training(ws).records
    assert records.scorable.mean() >= 0.95
    return (place / "monitor.yml").read_text(), ws, records


def pixels(count: int = 40, *shape: int) -> np.ndarray:
    """(count, *shape) uint8."""
    return np.random.default_rng(1).integers(0, 256, (count, *shape), dtype=np.uint8)


def encoded(image: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def blank(height: int, width: int) -> bytes:
    return encoded(np.zeros((height, width), np.uint8))


def write_folder(folder: Path, contents: Sequence[bytes], suffix: str = ".png") -> Path:
    folder.mkdir(parents=True)
    for i, content in enumerate(contents):
        (folder / f"{i:04}{suffix}").write_bytes(content)
    return folder


def write_idx(path: Path, array: np.ndarray) -> Path:
    path.write_bytes(struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes())
    return path


def written(write: Callable[..., object], path: Path, *args: Any, **options: Any) -> Path:
    write(path, *args, **options)
    return path


def sorted_into(place: Path, array: np.ndarray) -> Path:
    """A folder of two folders of images and an array, under ``training``."""
    for name, part in (("a", array[:10]), ("b", array[10:20])):
        write_folder(place / "set" / "training" / name, [encoded(image) for image in part])
    np.save(place / "set" / "training" / "c.npy", array[20:])
    return place / "set"


def tensors(array: np.ndarray) -> pa.Table:
    dtype = pa.fixed_shape_tensor(pa.uint8(), array.shape[1:])
    flat = pa.FixedSizeListArray.from_arrays(array.ravel(), int(np.prod(array.shape[1:])))
    return pa.table({"image": pa.ExtensionArray.from_storage(dtype, flat)})


FORMS: dict[str, Callable[[Path, np.ndarray], Path]] = {
    "npy": lambda place, a: written(np.save, place / "a.npy", a),
    "npy_16_bits": lambda place, a: written(np.save, place / "a.npy", a.astype(">u2") * 257),
    "npy_float": lambda place, a: written(np.save, place / "a.npy", (a / 255).astype("f4")),
    "npz": lambda place, a: written(np.savez_compressed, place / "a.npz", image=a, digit=np.arange(len(a)) % 3),
    "idx": lambda place, a: write_idx(place / "a.idx", a),
    "mnist": lambda place, a: write_idx(place / "train-images-idx3-ubyte", a),
    "png": lambda place, a: write_folder(place / "set", [encoded(i) for i in a]),
    "jpeg": lambda place, a: write_folder(place / "set", [encoded(i, "JPEG") for i in a], ".JPG"),
    "tiff": lambda place, a: write_folder(place / "set", [encoded(i, "TIFF") for i in a], ".tif"),
    "training": lambda place, a: write_folder(place / "set" / "training", [encoded(i) for i in a]).parent,
    "sorted": sorted_into,
    "bytes": lambda place, a: written(
        lambda path: pq.write_table(pa.table({"image": [None, *map(encoded, a[1:])], "size": AMOUNT[: len(a)]}), path),
        place / "a.parquet",
    ),
    "tensors": lambda place, a: written(lambda path: pq.write_table(tensors(a), path), place / "a.parquet"),
}


@pytest.mark.parametrize("shape", [(12, 10), (12, 10, 3)], ids=["grey", "colours"])
@pytest.mark.parametrize("form", FORMS)
def test_images_in_every_form(tmp_path: Path, form: str, shape: tuple[int, ...]) -> None:
    text, ws, records = propose(FORMS[form](tmp_path, pixels(40, *shape)), tmp_path / "place")
    column = ws.monitor.columns["image"]
    assert ws.schema.modality == "image"
    assert (column.size, column.channels) == ((12, 10), 1 if len(shape) == 2 else 3)
    assert list(ws.monitor.columns) == ["image"]
    assert len(records) == 40
    seen = "40 images, all 12 x 10" if form != "bytes" else "40 images, 39 of them 12 x 10"
    assert f"{seen} {'grey' if len(shape) == 2 else 'in colours'}" in comment(text, "image")
    assert "12 calibration records" in comment(text, "threshold:")


def test_only_the_first_images_are_looked_at(tmp_path: Path) -> None:
    contents = [blank(8, 8)] * pictures.SEEN + [blank(8, 6)] * 10
    text, _, records = propose(write_folder(tmp_path / "set", contents))
    assert len(records) == 210
    assert "the first 200 images, all 8 x 8 grey" in comment(text, "image")


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.integers(1, 700), st.integers(1, 700))
@example(1000, 30)
@example(3, 4000)
@example(4000, 3000)
def test_images_of_any_size_can_be_scaled_to_the_proposal(height: int, width: int) -> None:
    seen = pictures.look_at_files([blank(height, width)])
    choice = pictures.choose_image("image", seen, 1, Path("x"))
    size = pictures._reduced((height, width))
    assert f"size: [{size[0]}, {size[1]}], channels: 1" in choice.options
    assert size == (height, width) or max(size) <= 128 < max(height, width)
    assert images.decode(blank(height, width), size, 1).shape == (*size, 1)
    assert ("for speed" in choice.why) == (size != (height, width))


def test_a_side_that_is_only_rounded_is_refused_by_the_contract() -> None:
    with pytest.raises(images.Undecodable, match="image_size"):
        images.decode(blank(1000, 30), (128, round(30 * 0.128)), 1)


def test_large_files_are_scaled_down_and_large_arrays_are_not(tmp_path: Path) -> None:
    text, ws, _ = propose(write_folder(tmp_path / "set", [blank(300, 200)] * 20))
    assert ws.monitor.columns["image"].size == (128, 85)
    assert "all 300 x 200 grey; scaled down for speed" in comment(text, "image")
    text, ws, _ = propose(written(np.save, tmp_path / "a.npy", pixels(20, 300, 200)))
    assert ws.monitor.columns["image"].size == (300, 200)
    assert "so many pixels take long" in comment(text, "image")


def test_sizes_that_differ(tmp_path: Path) -> None:
    contents = [blank(20, 20)] * 60 + [blank(40, 40)] * 30 + [encoded(pixels(7, 20, 20, 3)[0])] * 7
    text, ws, records = propose(write_folder(tmp_path / "set", [*contents, blank(20, 30), b"no image", blank(30, 20)]))
    assert (ws.monitor.columns["image"].size, ws.monitor.columns["image"].channels) == ((20, 20), 1)
    assert records.scorable.sum() == 97
    said = comment(text, "image")
    assert "100 images, 60 of them 20 x 20 grey; 37 in another size or colour are converted" in said
    assert "2 in other proportions are unscorable; 1 that give no pixels (image_format) are unscorable" in said


def test_colours_without_a_colour(tmp_path: Path) -> None:
    grey = [encoded(np.repeat(image[..., None], 3, -1)) for image in pixels(20, 8, 8)]
    text, ws, _ = propose(write_folder(tmp_path / "grey", grey))
    assert ws.monitor.columns["image"].channels == 1
    assert "20 images, all 8 x 8 in colours; no pixel has a colour, hence one channel" in comment(text, "image")
    text, ws, _ = propose(write_folder(tmp_path / "one", [*grey, encoded(pixels(1, 8, 8, 3)[0])]))
    assert ws.monitor.columns["image"].channels == 3
    assert "no pixel" not in comment(text, "image")
    text, ws, records = propose(written(np.save, tmp_path / "a.npy", np.repeat(pixels(20, 8, 8)[..., None], 3, -1)))
    assert (ws.monitor.columns["image"].channels, records.scorable.sum()) == (3, 20)  # arrays are not converted
    assert comment(text, "image").endswith("no pixel has a colour")


def test_names_of_image_files_are_ids_unless_a_batch_has_none(tmp_path: Path) -> None:
    write_folder(tmp_path / "set" / "training", [blank(8, 8)] * 20)
    write_folder(tmp_path / "set" / "inbox" / "monday", [blank(8, 8)] * 3)
    _, ws, records = propose(tmp_path / "set", tmp_path / "first")
    assert ws.monitor.record_id == "file"
    assert records.record_ids[3] == "0003.png"
    np.save(tmp_path / "set" / "inbox" / "tuesday.npy", pixels(3, 8, 8))
    text, ws, _ = propose(tmp_path / "set", tmp_path / "second")
    assert (ws.monitor.record_id, ws.monitor.ignore) == (None, ("file",))
    assert "not every batch in the inbox has" in comment(text, "file")


def test_archives_of_arrays(tmp_path: Path) -> None:
    labels = np.resize(["ok", "ok", "scratch"], 30)
    _, ws, records = propose(written(np.savez, tmp_path / "labelled.npz", scans=pixels(30, 9, 9), Label=labels))
    assert ws.monitor.label is not None
    assert (ws.monitor.label.column, ws.monitor.label.anomalous) == ("Label", ("scratch",))
    assert records.labels is not None and records.labels.sum() == 10
    parts = {"x_train": pixels(30, 9, 9), "y_train": np.arange(30) % 10, "x_test": pixels(9, 9, 9), "y": np.ones(9)}
    text, ws, records = propose(written(np.savez, tmp_path / "parts.npz", **parts, flat=np.ones((30, 4))))
    assert (list(ws.monitor.columns), len(records)) == (["x_train"], 30)
    assert ws.monitor.ignore == ("y_train", "x_test", "y", "flat")
    assert "[9, 9, 9], not one value for each record" in comment(text, "x_test")
    assert "context: true" in comment(text, "y_train")
    _, ws, records = propose(written(np.savez, tmp_path / "table.npz", a=AMOUNT, colour=WORDS))
    assert {name: c.kind for name, c in ws.monitor.columns.items()} == {"a": "number", "colour": "category"}
    assert len(records) == N


def test_tensors_that_are_no_images(tmp_path: Path) -> None:
    for shape, options, said in (((12,), {}, "shape [12]"), ((3, 4), {"permutation": [1, 0]}, "are permuted")):
        dtype = pa.fixed_shape_tensor(pa.uint8(), shape, **options)
        cells = pa.ExtensionArray.from_storage(dtype, pa.FixedSizeListArray.from_arrays(pixels(N, 12).ravel(), 12))
        text, config = infer(tmp_path, {"image": cells})
        assert (list(config.columns), config.ignore) == (["plain"], ("image",))
        assert said in comment(text, "image")


def test_one_column_of_images_of_several(tmp_path: Path) -> None:
    cells = [encoded(image) for image in pixels(20, 8, 8)]
    pq.write_table(pa.table({"front": cells, "raw": [b"x"] * 20, "back": cells}), tmp_path / "a.parquet")
    text, ws, _ = propose(tmp_path / "a.parquet")
    assert (list(ws.monitor.columns), ws.monitor.ignore) == (["front"], ("back", "raw"))
    assert "one column" in comment(text, "back")
    assert "binary cannot be used" in comment(text, "raw")


# ---- lines and other texts ----

MESSAGES = [f"user {name} asked for page {i} of {i % 7} books" for i, name in enumerate(np.resize(WORDS, 200))]
STAMPS: dict[str, Callable[[datetime], str]] = {
    "plain": lambda t: f"{t.isoformat()}.123Z ",
    "offset": lambda t: f"{t:%Y-%m-%d %H:%M:%S},123 +0200 ",
    "brackets": lambda t: f"[{t:%Y-%m-%dT%H:%M:%S}] ",
    "dash": lambda t: f"{t:%Y-%m-%d %H:%M:%S} - ",
    "colon": lambda t: f"{t:%Y-%m-%d %H:%M:%S}: ",
    "points": lambda t: f"{t:%Y-%m-%d-%H.%M.%S}.675872 ",
    "syslog": lambda t: f"{t:%b} {t.day:2} {t:%H:%M:%S} ",
    "priority": lambda t: f"<34>1 {t.isoformat()}Z ",
    "apache": lambda t: f"[{t:%a %b %d %H:%M:%S %Y}] ",
    "slashes": lambda t: f"{t:%d/%b/%Y:%H:%M:%S} +0000 ",
    "epoch": lambda t: f"{int(t.timestamp())} ",
    "millis": lambda t: f"{int(t.timestamp())}123 ",
    "many": lambda t: f"{int(t.timestamp())} {t:%Y.%m.%d} R02-M1 {t:%Y-%m-%d-%H.%M.%S}.1 ",
}


def write_lines(path: Path, lines: Sequence[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def stamped(stamp: Callable[[datetime], str], every: int = 1000) -> list[str]:
    """The messages, each with its time, but one in ``every``."""
    times = [START + timedelta(hours=7 * i) for i in range(len(MESSAGES))]
    return [m if i % every == every - 1 else stamp(t) + m for i, (t, m) in enumerate(zip(times, MESSAGES, strict=True))]


@pytest.mark.parametrize("stamp", STAMPS)
def test_the_time_of_a_line_is_no_part_of_its_message(tmp_path: Path, stamp: str) -> None:
    text, ws, records = propose(write_lines(tmp_path / "a.log", stamped(STAMPS[stamp], every=50)))
    assert (ws.schema.modality, list(ws.monitor.columns)) == ("text", ["message"])
    assert records.values["message"].to_pylist() == MESSAGES  # those of lines without a time, too
    assert "98 % of the lines begin with a time" in comment(text, "lines:")


@pytest.mark.parametrize("stamp", STAMPS)
def test_no_pattern_where_too_few_lines_begin_with_a_time(tmp_path: Path, stamp: str) -> None:
    lines = stamped(STAMPS[stamp], every=10)
    _, ws, records = propose(write_lines(tmp_path / "a.log", lines))
    assert ws.monitor.source.lines.pattern is None
    assert records.values["line"].to_pylist() == lines


@pytest.mark.parametrize(
    "beginning",
    ["", "2026 ", "12:30 ", "INFO ", "2026-13-1 ", "123 ", "- ", "Jan ", "[worker] ", "2026-01-05T10:30:00;"],
)
def test_what_is_no_time(tmp_path: Path, beginning: str) -> None:
    _, ws, _ = propose(write_lines(tmp_path / "a.txt", [beginning + m for m in MESSAGES]))
    assert list(ws.monitor.columns) == ["line"]


def test_the_share_is_that_of_all_lines(tmp_path: Path) -> None:
    lines = stamped(STAMPS["plain"])
    assert "pattern" in infer_monitor(write_lines(tmp_path / "good.log", lines * 11))
    assert "pattern" not in infer_monitor(write_lines(tmp_path / "bad.log", lines * 11 + MESSAGES * 3))


def test_a_level_stays_in_the_message(tmp_path: Path) -> None:
    _, _, records = propose(write_lines(tmp_path / "a.log", stamped(lambda t: f"{t.isoformat()} WARN web-3: ")))
    assert records.values["message"][0].as_py() == f"WARN web-3: {MESSAGES[0]}"


def test_a_word_before_the_time_may_be_a_label(tmp_path: Path) -> None:
    lines = [f"{'DISK' if i % 20 == 3 else '-'} {line}" for i, line in enumerate(stamped(STAMPS["many"]))]
    text, ws, records = propose(write_lines(tmp_path / "a.log", lines))
    assert ws.monitor.label is not None
    assert (ws.monitor.label.column, ws.monitor.label.anomalous) == ("label", ("DISK",))
    assert records.labels is not None and records.labels.sum() == 10
    assert records.values["message"].to_pylist() == MESSAGES
    assert "57 calibration records" in comment(text, "threshold:")  # 0.3 of the 190 that are not labelled
    plain = stamped(STAMPS["plain"])
    write_lines(tmp_path / "web" / "training" / "a.log", [f"- {line}" for line in plain])
    write_lines(tmp_path / "web" / "inbox" / "b.log", [f"{word} {plain[0]}" for word in ("-", "odd", "-")])
    _, ws, _ = propose(tmp_path / "web")
    assert ws.monitor.label is not None
    assert ws.monitor.label.anomalous == ("odd",)


def test_texts_that_are_the_same_count_once(tmp_path: Path) -> None:
    text, _, records = propose(write_lines(tmp_path / "a.log", MESSAGES * 20))
    assert len(records) == 4000
    assert "60 calibration records" in comment(text, "threshold:")


@pytest.mark.parametrize("words", [1, 8, 9, 30, 300, 9000])
def test_most_tokens(tmp_path: Path, words: int) -> None:
    lines = [" ".join(["w"] * (words if i < 5 else 1)) + " it is" for i in range(400)]
    _, ws, _ = propose(write_lines(tmp_path / "a.log", lines))
    assert ws.monitor.columns["line"].max_tokens == min(4096, 8 * -(-(words + 2) // 8))
    _, ws, _ = propose(write_lines(tmp_path / "b.log", [*lines[:1], *lines[5:]] * 2))  # 0.5 % may be cut
    assert ws.monitor.columns["line"].max_tokens == 8


def test_tokens_are_counted_about_as_preprocessing_counts_them() -> None:
    from vae_anomaly.preprocessing.text import pieces

    text = infer_monitor(ROOT / "data" / "logs", folder=ROOT / "elsewhere")
    config = parse_monitor(text, ROOT / "elsewhere" / "monitor.yml")
    lines = [line for file in (ROOT / "data/logs/training").iterdir() for line in file.read_text().splitlines()]
    found = pc.extract_regex(pa.array(lines), config.source.lines.pattern).field("message").to_pylist()
    counts = [len(pieces(line, PLACEHOLDERS)) for line in found]
    most = config.columns["message"].max_tokens
    assert np.mean(np.array(counts) > most) <= 0.01
    assert most <= 1.5 * np.quantile(counts, 0.995) + 8


def test_lines_as_they_come(tmp_path: Path) -> None:
    odd = b"\xef\xbb\xbffirst line\r\n\n   \nb\xe9te \0 here\n" + b"long " * 300_000 + b"\nno end"
    (tmp_path / "a.txt").write_bytes(odd)
    text, _, records = propose(tmp_path / "a.txt")
    assert [len(line) for line in records.values["line"].to_pylist()] == [10, 11, 2**20, 6]
    assert "all 4 training records" in text


def test_a_table_of_texts(tmp_path: Path) -> None:
    rows = [[f"t-{i}", START + timedelta(minutes=i), m, "cut"] for i, m in enumerate(MESSAGES)]
    path = write_csv(tmp_path / "a.csv", ["id", "at", "body", "state"], rows)
    text, ws, records = propose(path)
    assert (ws.schema.modality, list(ws.monitor.columns)) == ("text", ["body"])
    assert (ws.monitor.record_id, ws.monitor.ignore) == ("id", ("at", "state"))
    assert records.values["body"].to_pylist() == MESSAGES
    assert "each text would be judged by it" in comment(text, "at")
    rows = [[*row, i % 5] for i, row in enumerate(rows)]
    text, ws, _ = propose(write_csv(tmp_path / "b.csv", ["id", "at", "body", "state", "n"], rows))
    assert list(ws.monitor.columns) == ["at", "n"]  # twin: with another column of use it is a table
    assert "free text, ignored; a monitor of its own, with kind: text" in comment(text, "body")


def test_texts_that_come_often_and_texts_that_are_longer(tmp_path: Path) -> None:
    often = pa.array(MESSAGES * 30).dictionary_encode()
    pq.write_table(pa.table({"message": often}), tmp_path / "often.parquet")
    _, ws, _ = propose(tmp_path / "often.parquet")
    assert ws.monitor.columns["message"].kind == "text"
    pq.write_table(pa.table({"message": often, "x": np.arange(len(often)) % 9}), tmp_path / "table.parquet")
    _, ws, _ = propose(tmp_path / "table.parquet")
    assert {name: c.kind for name, c in ws.monitor.columns.items()} == {"message": "category", "x": "number"}
    two = {"title": [m[:20] + str(i) for i, m in enumerate(MESSAGES)], "body": MESSAGES}
    pq.write_table(pa.table(two), tmp_path / "two.parquet")
    _, ws, _ = propose(tmp_path / "two.parquet")
    assert (list(ws.monitor.columns), ws.monitor.ignore) == (["body"], ("title",))


# ---- all kinds ----


@pytest.mark.parametrize(
    ("name", "modality", "columns"),
    [
        ("digits", "image", ["image"]),
        ("logs", "text", ["message"]),
        ("regions", "table", ["measured_at", "site", "hour", "temperature", "humidity", "power"]),
    ],
)
def test_the_samples_are_ready_to_fit(tmp_path: Path, name: str, modality: str, columns: list[str]) -> None:
    _, ws, records = propose(ROOT / "data" / name, tmp_path)
    own = Workspace.open(ROOT / "data" / name)
    assert (ws.schema.modality, list(ws.monitor.columns)) == (modality, columns)
    assert (
        ws.monitor.columns[columns[0]].size == own.monitor.columns.get(columns[0], ws.monitor.columns[columns[0]]).size
    )
    assert len(records) == len(read_training(own).records)
    if name == "logs":
        assert ws.monitor.label is not None and own.monitor.label is not None
        assert sorted(ws.monitor.label.anomalous) == sorted(own.monitor.label.anomalous)
        assert records.values["message"].equals(read_training(own).records.values["message"])


def test_no_content_of_lines_and_images_is_written(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.log", [f"{START.isoformat()} CANARY {line}" for line in MESSAGES])
    assert "CANARY" not in infer_monitor(tmp_path / "a.log")
    write_folder(tmp_path / "set", [blank(8, 8)] * 9)
    (tmp_path / "set" / "CANARY.png").write_bytes(b"CANARY")
    assert "CANARY" not in infer_monitor(tmp_path / "set")


def test_the_formats_are_those_that_batches_are_read_in() -> None:
    assert list(reading.READERS) == list(sources.READERS)
    for name in ("IMAGES", "IDX", "IGNORED_PREFIXES", "IGNORED_SUFFIXES", "LONGEST_TEXT", "WIDE"):
        assert getattr(reading, name) == getattr(sources, name)
    for name in ("a.CSV", "train-images-idx3-ubyte", "t10k-images.idx3-ubyte", "labels-idx1-ubyte", "none"):
        assert reading.format_suffix(name) == sources.format_suffix(name)


@pytest.mark.parametrize(
    ("source", "brought"),
    [("payments", set()), ("regions", set()), ("logs", set()), ("digits", {"PIL"})],
)
def test_a_proposal_waits_for_no_heavy_library(source: str, brought: set[str]) -> None:
    heavy = ("torch", "mlflow", "prefect", "sklearn", "matplotlib", "PIL")
    code = f"""if True:
        import sys
        from pathlib import Path
        from vae_anomaly.infer import infer_monitor
        infer_monitor(Path("data") / {source!r})
        print(*(name for name in {heavy!r} if name in sys.modules))"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == brought


# ---- refusals ----


def message(path: Path, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        infer_monitor(path, **options)
    return str(caught.value)


def test_paths_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "payments.csv").write_text("a\n1\n")
    assert "Did you mean 'payments.csv'?" in message(tmp_path / "payment.csv")
    assert "does not exist either" in message(tmp_path / "no" / "a.csv")


def test_folders_and_files_without_records(tmp_path: Path) -> None:
    assert "It is empty" in message(tmp_path)
    (tmp_path / "a.xlsx").write_text("")
    assert "It has 'a.xlsx'" in message(tmp_path)
    assert "must be a file that ends in .parquet" in message(tmp_path / "a.xlsx")
    (tmp_path / "empty.csv").write_text("")
    assert "It is empty" in message(tmp_path / "empty.csv")
    (tmp_path / "header.csv").write_text("a,b\n")
    assert "must hold records. Got 0" in message(tmp_path / "header.csv")
    (tmp_path / "twice.csv").write_text("a,a\n1,2\n")
    assert "Got 'a' repeatedly" in message(tmp_path / "twice.csv")
    pq.write_table(pa.table({"x": pa.array([], pa.int64())}), tmp_path / "none.parquet")
    assert "Got 0 of them" in message(tmp_path / "none.parquet")


def test_nothing_but_records_lies_among_records(tmp_path: Path) -> None:
    """Each of these a fit would refuse: all that is in the folder is read."""
    table, image = "x\n" + "\n".join(map(str, range(1, 30))) + "\n", blank(8, 8)
    contents: dict[str, dict[str, bytes]] = {
        "It has 'b.csv', too": {"a.png": image, "b.csv": table.encode()},
        "It has 'inner', too": {"a.png": image, "inner/b.png": image},
        "It has 'README.md', too": {"a.csv": table.encode(), "README.md": b"read me"},
        "Got lines and tables": {"a.csv": table.encode(), "b.txt": b"some lines\nare here\n"},
        "It has 'deeper', too": {"a/a.png": image, "b/deeper/c.png": image},
        "It is empty": {"a/a.png": image, "b/.keep": b""},
    }
    for i, (said, files) in enumerate(contents.items()):
        for name, content in files.items():
            (tmp_path / str(i) / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / str(i) / name).write_bytes(content)
        assert said in message(tmp_path / str(i)), files
    np.save(tmp_path / "0" / "c.npy", pixels(5, 8, 8))
    (tmp_path / "0" / "a.png").unlink()
    assert "must hold tables, images or lines, of which a monitor watches one. Got images and tables" in message(
        tmp_path / "0"
    )
    assert "Give the folder that it lies in" in message(tmp_path / "1" / "a.png")


def test_beside_tables_a_folder_is_no_delivery(tmp_path: Path) -> None:
    write_folder(tmp_path / "set" / "a-plots", [blank(8, 8)] * 3)
    pq.write_table(pa.table({"x": AMOUNT}), tmp_path / "set" / "b.parquet")
    _, ws, records = propose(tmp_path / "set", tmp_path / "place")
    assert (list(ws.monitor.columns), len(records)) == (["x"], N)


def test_the_monitor_must_not_lie_among_the_records(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": AMOUNT}), tmp_path / "a.parquet")
    assert f"such as {tmp_path.parent}" in message(tmp_path, folder=tmp_path)
    shutil.copytree(tmp_path, tmp_path / "ready" / "training", ignore=shutil.ignore_patterns("ready"))
    assert "training: training" in infer_monitor(tmp_path / "ready", folder=tmp_path / "ready")


def test_images_that_cannot_be_read(tmp_path: Path) -> None:
    cut, good = blank(20, 20)[:40], blank(20, 20)
    found = message(write_folder(tmp_path / "half", [good, cut, good, cut]))
    assert "Of 4 images 2 cannot be (corrupt_image 2). Repair them or move them away." in found
    _, _, records = propose(write_folder(tmp_path / "few", [good] * 39 + [cut]))
    assert records.scorable.sum() == 39
    sizes = [blank(20, 20 + 5 * i) for i in range(9)]
    assert "of the same proportions, within 2 %" in message(write_folder(tmp_path / "sizes", sizes))
    np.save(tmp_path / "bytes.npy", pixels(9, 8, 8).astype("f4"))
    assert "(out_of_range 9). Divide them by their largest value." in message(tmp_path / "bytes.npy")


ARRAYS: dict[str, tuple[Any, str]] = {
    "flat": (np.ones((9, 8)), "images must be of the shape"),
    "channels_first": (pixels(9, 3, 8, 8), "these are of the shape [3, 8, 8]"),
    "four_channels": (pixels(9, 8, 8, 4), "these are of the shape [8, 8, 4]"),
    "integers": (pixels(9, 8, 8).astype("i8"), "these are int64"),
    "no_pixels": (np.ones((9, 0, 8)), "1 to 4096 pixels a side"),
    "fortran": (np.asfortranarray(pixels(9, 8, 7)), "Fortran's order. Write numpy.ascontiguousarray(array)"),
    "objects": (np.array([["CANARY"]], dtype=object), "It holds objects"),
    "none": (pixels(0, 8, 8), "must hold records. Got 0"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_that_are_no_images(tmp_path: Path, name: str) -> None:
    array, said = ARRAYS[name]
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "b.npz", images=array)
    for file in ("a.npy", "b.npz"):
        found = message(tmp_path / file)
        assert said in found or (file == "b.npz" and name == "flat" and "Write each column as an array" in found)
        assert "CANARY" not in found


def test_arrays_that_do_not_fit_together(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", pixels(9, 8, 8))
    np.save(tmp_path / "b.npy", pixels(9, 8, 9))
    assert "Got 8 x 8 grey and 8 x 9 grey" in message(tmp_path)
    (tmp_path / "b.npy").unlink()
    np.savez(tmp_path / "b.npz", picture=pixels(9, 8, 8))
    assert "Got 'image', 'picture'. Name it alike" in message(tmp_path)
    np.savez(tmp_path / "b.npz", image=pixels(9, 8, 8), picture=pixels(9, 8, 8))
    text, config = infer(tmp_path)
    assert (list(config.columns), config.ignore) == (["image"], ("picture",))
    assert "not every file has" in comment(text, "picture")


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.idx", "a-idx3-ubyte"])
def test_arrays_that_are_broken(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.startswith("a.n"):
        with path.open("wb") as file:
            (np.save if name == "a.npy" else np.savez)(file, pixels(9, 8, 8))
    else:
        write_idx(path, pixels(9, 8, 8))
    infer(path)
    whole = path.read_bytes()
    for content in (whole[:-1], whole[:50], b"", whole + b"x" * 100_000, b"CANARY", gzip.compress(whole)):
        if not (name == "a.npz" and len(content) > len(whole)):  # a zip file may have a comment
            path.write_bytes(content)
            found = message(path)
            assert "It cannot be read as such. Repair it or move it away." in found
            assert "CANARY" not in found
    with zipfile.ZipFile(tmp_path / "b.npz", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("image.npy", (tmp_path / name).read_bytes())
    assert "must be a whole archive" in message(tmp_path / "b.npz")


def test_lines_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    for content, said in {
        "some lines\n".encode("utf-16"): "It begins like UTF-16. Write it in UTF-8.",
        gzip.compress(os.urandom(1000)): "It is no text. Decompress it",
        b"": "must hold records. Got 0",
        b"\n  \n": "must hold records. Got 0",
    }.items():
        path.write_bytes(content)
        assert said in message(path)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\0" * 100 + b"PAR1", b"CANARY"], ids=range(4))
def test_broken_parquet(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.parquet").write_bytes(content)
    found = message(tmp_path)
    assert "must be a whole Parquet file" in found
    assert "CANARY" not in found


def test_csv_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("a,b\nCANARY,\xe9\n".encode("latin-1"))
    found = message(tmp_path / "a.csv")
    assert "must be CSV in UTF-8" in found
    assert "CANARY" not in found


def test_nothing_to_learn_from_and_a_bad_name(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": np.full(N, 1.0)}), tmp_path / "a.parquet")
    assert "must hold a column to learn from. Got 'x': constant: ignored." in message(tmp_path / "a.parquet")
    pq.write_table(pa.table({"x": AMOUNT}), tmp_path / "a.parquet")
    assert "name must match pattern" in message(tmp_path, name="bad name")


def test_write_never_overwrites(tmp_path: Path) -> None:
    target = write_monitor("name: é\n", tmp_path)
    assert target == tmp_path / "monitor.yml"
    assert target.read_text(encoding="utf-8") == "name: é\n"
    with pytest.raises(ConfigError, match=r"monitor\.yml must not exist yet"):
        write_monitor("other", target)
    os.symlink(tmp_path / "nowhere", tmp_path / "link.yml")
    with pytest.raises(ConfigError, match="never overwritten"):
        write_monitor("other", tmp_path / "link.yml")
    with pytest.raises(ConfigError, match="No such file"):
        write_monitor("x", tmp_path / "no" / "x.yml")
    assert target.read_text(encoding="utf-8") == "name: é\n"
