"""`vae-anomaly latent`: pictures and tables of the latent space, defaults that need no word, errors of one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))
from latent_samples import Case, detector, records
from pipeline_samples import Said, cli, copy, deliver, table

from vae_anomaly import pipelines

COMMANDS = ("map", "traverse", "interpolate", "generate", "reconstruct")
COLUMNS = ["amount", "fee", "items", "paid", "shop", "at"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The promoted monitor with one file in its inbox."""
    made = copy(tmp_path)
    deliver(made, **{"mon.parquet": table(60, 3, frauds=6)})
    assert cli("score", made).code == 0
    return made


def said_of(*args: object) -> dict[str, Any]:
    """The JSON answer of a command that works; its files exist, pictures are pictures."""
    said = cli("latent", *args, "--json")
    assert said.code == 0, said
    answer: dict[str, Any] = json.loads(said.out)
    for file in answer["files"]:
        content = Path(file).read_bytes()
        assert content.startswith(b"\x89PNG") == file.endswith(".png")
        assert content
    return answer


def refused(said: Said, code: int, *words: str) -> None:
    assert (said.code, said.out) == (code, ""), said
    assert [line[:7] for line in said.errors] == ["error: "], said.err
    assert all(word in said.errors[0] for word in words), said.errors


def test_help_is_light(tmp_path: Path) -> None:
    code = """if True:
        import sys
        from vae_anomaly.cli import main
        for args in (["latent", "--help"], ["latent", "map", "--help"], ["latent", "map", "nowhere"]):
            sys.argv = ["vae-anomaly", *args]
            try:
                main()
            except SystemExit:
                pass
        heavy = {"torch", "mlflow", "matplotlib", "umap", "pandas", "scipy"} & sys.modules.keys()
        assert not heavy, heavy
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(f"  {command} " in done.stdout for command in COMMANDS)


def test_the_map_of_the_newest_scored_file_in_the_inbox(folder: Path) -> None:
    os.utime(folder / "inbox" / "mon.parquet", (1, 1))
    deliver(folder, **{"tue.parquet": table(40, 5)})
    assert cli("score", folder).code == 0
    answer = said_of("map", folder)
    assert (answer["version"], answer["records"]) == ("1", 40)
    assert answer["file"].endswith("tue.parquet")
    assert {Path(f).parent for f in answer["files"]} == {folder / "output" / "latent"}
    assert len(said_of("map", folder, folder / "inbox" / "mon.parquet")["files"]) == 3
    points = pd.read_parquet(folder / "output" / "latent" / "map.parquet")
    assert (len(points), said_of("map", folder, "mon.parquet")["flagged"]) == (60, points["latent.flagged"].sum())
    assert points["latent.flagged"].iloc[-6:].all()


def test_what_was_not_scored_is_not_looked_at_unless_it_is_named(folder: Path) -> None:
    deliver(folder, **{"bad.csv": b"id,amount\n1,2\n", "photo.png": b"\x89PNG", "none.parquet": table(0)})
    assert cli("score", folder).code == 3  # two are quarantined, the third has no records
    deliver(folder, **{"wed.parquet": table(30, 8)})
    for at, name in enumerate(("mon.parquet", "none.parquet", "bad.csv", "photo.png", "wed.parquet"), start=1):
        os.utime(folder / "inbox" / name, (at, at))
    for command in ("map", "interpolate", "reconstruct"):
        assert said_of(command, folder)["file"].endswith("mon.parquet")
    refused(cli("latent", "map", folder, "photo.png"), 3, "unknown_format")
    assert said_of("map", folder, "wed.parquet")["records"] == 30
    deliver(folder, **{"mon.parquet": b"other content"})  # no longer what was scored
    assert said_of("map", folder)["file"].endswith("normal.parquet")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("map", "--method", "pcaa"), ("Did you mean 'pca'?",)),
        (("interpolate", "--how", "round"), ("how must be one of ['linear', 'spherical']",)),
        (("generate", "--how", "beam"), ("'nucleus'",)),
    ],
)
def test_a_wrong_name_is_refused_before_anything_is_read(
    folder: Path, args: tuple[str, ...], words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object, **__: object) -> None:
        raise AssertionError("a model or a file was read")

    monkeypatch.setattr(pipelines, "_looked_through", read)
    monkeypatch.setattr(pipelines, "_batch_path", read)
    refused(cli("latent", args[0], folder, *args[1:]), 2, *words)


@pytest.mark.parametrize(
    ("color", "expected"),
    [("label", {"labelled an anomaly", "not labelled"}), ("shop", {"cafe", "fuel", "kiosk"}), ("fee", None),
     ("id", None), ("at", None)],
)  # fmt: skip
def test_a_map_is_coloured_by_any_column(folder: Path, color: str, expected: set[str] | None) -> None:
    answer = said_of("map", folder, "--color", color, "--method", "pca", "--output", folder / "seen")
    found = pd.read_csv(next(f for f in answer["files"] if f.endswith(".csv")))["latent.colour"]
    assert len(found) == 60
    if expected:
        assert set(found) == expected
    if color == "id":  # a column that the model does not see stands beside its own record
        assert found.tolist() == [f"p3-{i:05d}" for i in range(60)]


def test_a_traversal_and_an_interpolation_come_as_tables(folder: Path) -> None:
    answer = said_of("traverse", folder, "--steps", 5, "--record", "p3-00007")
    frame = pd.read_csv(next(f for f in answer["files"] if f.endswith(".csv")))
    assert list(frame.columns) == ["latent.dimension", "latent.value", *COLUMNS]
    assert (answer["from"], len(frame)) == ("p3-00007", 5 * len(answer["dimensions"]))
    assert frame["items"].dtype == np.int64
    answer = said_of("interpolate", folder, "--from", "p3-00007", "--to", "p3-00059", "--how", "spherical")
    frame = pd.read_parquet(next(f for f in answer["files"] if f.endswith(".parquet")))
    assert (answer["from"], answer["to"], len(frame)) == ("p3-00007", "p3-00059", 9)
    default = said_of("interpolate", folder)
    assert default["from"] != default["to"]


def test_generated_records_are_a_delivery_of_the_same_columns(folder: Path) -> None:
    answer = said_of("generate", folder, "--count", 30, "--seed", 4)
    csv = Path(next(f for f in answer["files"] if f.endswith(".csv")))
    frame, before = pd.read_csv(csv), csv.read_bytes()
    assert list(frame.columns) == COLUMNS
    assert len(frame) == 30
    said_of("generate", folder, "--count", 30, "--seed", 5)
    assert csv.read_bytes() != before


def test_a_reconstruction_stands_beside_its_record(folder: Path) -> None:
    answer = said_of("reconstruct", folder)
    frame = pd.read_parquet(next(f for f in answer["files"] if f.endswith(".parquet")))
    expected = [f"{name}.expected" for name in COLUMNS]
    assert list(frame.columns) == ["latent.record_id", "latent.score", *COLUMNS, *expected]
    assert np.array_equal(frame["fee"], table(60, 3, frauds=6)["fee"].to_numpy())
    assert frame["amount"].isna().sum() == table(60, 3, frauds=6)["amount"].null_count
    assert not frame["amount.expected"].isna().any()


def test_a_person_reads_which_model_and_where(folder: Path) -> None:
    assert cli("score", folder).code == 0
    said = cli("latent", "map", folder)
    first, *paths = said.out.splitlines()
    assert first.startswith("Model version 1, records of ")
    assert [Path(p).name for p in paths] == ["map.png", "map.csv", "map.parquet"]
    assert cli("check", folder).out == "The store is sound.\n"


def test_an_empty_inbox_shows_training_records(folder: Path) -> None:
    (folder / "inbox" / "mon.parquet").unlink()
    assert said_of("reconstruct", folder)["file"].endswith("normal.parquet")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("map", "--color", "shp"), ("colour must be one of", "Did you mean 'shop'?")),
        (("map", "--method", "pcaa"), ("Did you mean 'pca'?",)),
        (("map", "mon.parque"), ("'mon.parque'", "Did you mean 'mon.parquet'?")),
        (("traverse", "--record", "p3"), ("record must be the id",)),
        (("traverse", "--steps", "1"), ("steps must be at least 2",)),
        (("interpolate", "--to", "p3"), ("to must be the id",)),
        (("interpolate", "--how", "round"), ("'linear'",)),
        (("generate", "--context", "shop=cafe"), ("no context columns",)),
        (("generate", "--context", "shop"), ("COLUMN=VALUE",)),
        (("generate", "--count", "0"), ("count must be from 1 to 100,000. Got 0.",)),
        (("generate", "--count", "100000000"), ("count must be from 1 to 100,000. Got 100000000.",)),
        (("generate", "--how", "beam"), ("'nucleus'",)),
    ],
)
def test_a_mistake_is_one_line(folder: Path, args: tuple[str, ...], words: tuple[str, ...]) -> None:
    command, *rest = args
    refused(cli("latent", command, folder, *rest), 2, *words)
    assert not (folder / "output" / "latent").exists()


def test_a_version_that_does_not_exist_and_a_file_without_records_are_refused(folder: Path) -> None:
    refused(cli("latent", "map", folder, "--version", "99"), 4, "99")
    deliver(folder, **{"bad.csv": b"id,amount\n1,2\n"})
    refused(cli("latent", "map", folder, "bad.csv"), 3, "missing_column")
    deliver(folder, **{"none.parquet": table(0)})
    refused(cli("latent", "map", folder, "none.parquet"), 3, "no_scorable_records")


# ---------------------------------------------------------------- images and lines


@pytest.fixture
def looking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``looking(case)``: a monitor whose registered model would be the detector of the case."""

    def monitor(case: Case) -> Path:
        known, columns = records(case.modality), {}
        (tmp_path / "training").mkdir()
        (tmp_path / "inbox").mkdir()
        if case.modality == "image":
            columns["image"] = {"kind": "image", "size": [6, 5], "channels": 1}
            np.save(tmp_path / "inbox" / "mon.npy", known.values["image"])
        else:
            columns["line"] = {"kind": "text", "max_tokens": 8}
            lines = known.values["line"].to_pylist()
            (tmp_path / "inbox" / "mon.log").write_text("\n".join(lines) + "\n")
        lines_are = {"lines": {"pattern": "(?P<line>.*)"}} if case.modality == "text" else {}
        content = {
            "name": "looked",
            "source": {"training": "training", "inbox": "inbox", **lines_are},
            "columns": columns,
            "model": {"kind": case.kind},
        }
        (tmp_path / "monitor.yml").write_text(yaml.safe_dump(content))
        monkeypatch.setattr(pipelines, "_looked_through", lambda ws, version: (detector(case), {"version": "1"}))
        return tmp_path

    return monitor


@pytest.mark.parametrize("case", [Case("conv", "image", False), Case("lstm", "text", False)], ids=str)
def test_images_come_as_arrays_and_lines_as_text(case: Case, looking: Any) -> None:
    folder, suffix = looking(case), {"image": ".npy", "text": ".txt"}[case.modality]
    file = {"image": "mon.npy", "text": "mon.log"}[case.modality]
    found = {c: said_of(c, folder, *([] if c == "generate" else [file]))["files"] for c in COMMANDS}
    for command in COMMANDS[1:]:
        assert [Path(f).name for f in found[command]] == [f"{command}.png", f"{command}{suffix}"]
    made, pair = (Path(found[command][1]) for command in ("generate", "reconstruct"))
    if case.modality == "image":
        assert np.load(made).shape == (48, 6, 5, 1)
        assert np.array_equal(np.load(pair)[0], records("image").values["image"])
    else:
        lines = made.read_text().splitlines()
        assert len(lines) == 48
        assert len(pair.read_text().splitlines()) == 2 * 40
        greedy = said_of("generate", folder, "--how", "greedy")["files"][1]
        assert Path(greedy).read_text().splitlines() != lines
