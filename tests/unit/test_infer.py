"""``vae-anomaly init``: what a column is taken for, and that the proposal loads whatever the columns are called."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vae_anomaly.config import MonitorConfig, parse_monitor
from vae_anomaly.errors import ConfigError
from vae_anomaly.infer import ROWS, infer_monitor, write_monitor
from vae_anomaly.schema import Column, Schema, check

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
