"""The data contract, cell by cell."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from vae_anomaly.batch import OK, Records
from vae_anomaly.errors import ConfigError, DataError
from vae_anomaly.images import encode
from vae_anomaly.schema import Column, Schema, check, check_header

BERLIN = "Europe/Berlin"


def convert(cells: Any, kind: Any, *, timezone: str | None = None) -> Records:
    """The records of one column ``c`` beside an always present number."""
    array = cells if isinstance(cells, pa.Array | pa.ChunkedArray) else pa.array(cells)
    schema = Schema((Column("c", kind, timezone), Column("one", "number")))
    return check(pa.table({"c": array, "one": np.ones(len(array))}), schema, first_row=0, file="f.parquet")


def reasons(records: Records) -> list[str]:
    return [s.removeprefix("unscorable:").removesuffix(":c") for s in records.status]


def values(records: Records) -> list[Any]:
    found = records.values["c"]
    return found.to_pylist() if isinstance(found, pa.Array) else [None if v != v else v for v in found.tolist()]


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int64", "uint64", "float16", "float32", "float64"])
def test_every_numeric_type_becomes_float64(dtype: str) -> None:
    records = convert(pa.array([1, None, 3], getattr(pa, dtype)()), "number")
    assert records.values["c"].dtype == np.float64
    assert values(records) == [1.0, None, 3.0]
    assert reasons(records) == [OK] * 3


def test_decimals_are_converted_exactly() -> None:
    cells = [Decimal("1000.00001"), Decimal("0.1"), None]
    for dtype in (pa.decimal128(30, 5), pa.decimal256(50, 5)):
        assert values(convert(pa.array(cells, dtype), "number")) == [1000.00001, 0.1, None]


@pytest.mark.parametrize(
    ("text", "value"),
    [(" 5 ", 5.0), ("+5", 5.0), ("-1.5e3", -1500.0), (".5", 0.5), ("5.", 5.0), ("1E-2", 0.01), ("00012", 12.0)],
)
def test_text_that_looks_like_a_number_is_one(text: str, value: float) -> None:
    assert values(convert([text], "number")) == [value]


@pytest.mark.parametrize("text", ["1,234", "5 EUR", "1_000", "0x1f", "1e", "NAN", "nan(1)", "one", "--5", "\uff15"])
def test_other_text_is_no_number_whatever_stands_beside_it(text: str) -> None:
    assert reasons(convert([text, "1", "2"], "number")) == ["wrong_dtype", OK, OK]
    assert reasons(convert([text, "1", "oops", "2", "3"], "number")) == ["wrong_dtype", OK, "wrong_dtype", OK, OK]


def test_missing_tokens_count_as_missing_for_numbers() -> None:
    records = convert(["", "NA", "NaN", "nan", "null", "None", "N/A", "  ", None, "1"], "number")
    assert values(records) == [None] * 9 + [1.0]
    assert reasons(records) == [OK] * 10


def test_infinite_numbers_are_reported() -> None:
    assert reasons(convert([1.0, np.inf, -np.inf, np.nan], "number")) == [OK, "non_finite", "non_finite", OK]
    assert reasons(convert(["1", "inf", "-Infinity", "1e400"], "number")) == [OK] + ["non_finite"] * 3


@pytest.mark.parametrize("dtype", [pa.int64(), pa.uint64(), pa.decimal128(20, 0), pa.string()])
def test_integers_beyond_2_53_are_reported(dtype: pa.DataType) -> None:
    cells = [2**53, 2**53 + 1, 0] if dtype == pa.uint64() else [2**53, 2**53 + 1, -(2**53) - 1]
    array = pa.array([str(c) for c in cells], dtype) if dtype == pa.string() else pa.array(cells, dtype)
    bad = "integer_beyond_2_53"
    assert reasons(convert(array, "number")) == [OK, bad, OK if dtype == pa.uint64() else bad]


def test_large_floats_are_no_integers() -> None:
    assert reasons(convert(["1e20", "9007199254740993.0"], "number")) == [OK, OK]
    assert reasons(convert([1e300, 1e20], "number")) == [OK, OK]


def test_a_clean_float_column_is_not_copied() -> None:
    cells = np.arange(5.0)
    assert np.shares_memory(convert(pa.array(cells), "number").values["c"], cells)


# ---------------------------------------------------------------- booleans


def test_booleans_in_every_spelling() -> None:
    assert values(convert([True, False, None], "boolean")) == [1.0, 0.0, None]
    assert values(convert([1, 0, None], "boolean")) == [1.0, 0.0, None]
    assert values(convert([1.0, 0.0, np.nan], "boolean")) == [1.0, 0.0, None]
    yes, no = ["true", "YES", " t", "Y", "1", "1.0"], ["False", "no", "F", "n", "0", "0.0"]
    assert values(convert([*yes, *no, "NA"], "boolean")) == [1.0] * 6 + [0.0] * 6 + [None]


def test_other_values_are_no_booleans() -> None:
    assert reasons(convert([0, 1, 2, None], "boolean")) == [OK, OK, "wrong_dtype", OK]
    assert reasons(convert(["yes", "maybe", "", "no"], "boolean")) == [OK, "wrong_dtype", OK, OK]
    assert reasons(convert([0.0, np.inf, 1.0], "boolean")) == [OK, "wrong_dtype", OK]


# ---------------------------------------------------------------- categories


def test_categories_are_text_and_na_is_a_value() -> None:
    records = convert(["NA", "null", " a ", "", None], "category")
    assert values(records) == ["NA", "null", " a ", None, None]
    assert isinstance(records.values["c"], pa.StringArray)


@pytest.mark.parametrize(
    ("cells", "text"),
    [
        ([1, 20], ["1", "20"]),
        ([1.0, 2.5, None, 1e15], ["1", "2.5", None, "1000000000000000"]),
        ([True, False], ["true", "false"]),
        (pa.array(["a", "b", "a"], pa.large_string()), ["a", "b", "a"]),
        (pa.array(["a", None], pa.string_view()), ["a", None]),
        (pa.nulls(2), [None, None]),
        (pa.array(["b", "a", "b"]).dictionary_encode(), ["b", "a", "b"]),
        (pa.array([1, 2, 1]).dictionary_encode(), ["1", "2", "1"]),
    ],
)
def test_categories_of_other_types(cells: Any, text: list[str | None]) -> None:
    records = convert(cells, "category")
    assert values(records) == text
    assert isinstance(records.values["c"], pa.StringArray)


def test_dictionaries_of_several_chunks_may_have_more_values_than_codes() -> None:
    words = [[f"{part}-{i}" for i in range(100)] for part in "abc"]
    codes = pa.array(range(100), pa.int8())
    chunks = pa.chunked_array([pa.DictionaryArray.from_arrays(codes, w) for w in words])
    assert values(convert(chunks, "category")) == [w for part in words for w in part]


# ---------------------------------------------------------------- timestamps

NOON = dt.datetime(2026, 3, 1, 12, 0)


@pytest.mark.parametrize(
    "cell",
    [
        "2026-03-01T12:00:00Z",
        "2026-03-01 13:00:00+01:00",
        "2026-03-01T12:00:00.000000999z",
        "2026-03-01 12:00 UTC",
        "2026-03-01T05:00-0700",
        NOON.replace(tzinfo=dt.UTC),
    ],
)
def test_one_instant_in_many_forms(cell: Any) -> None:
    assert values(convert([cell, None], "timestamp")) == [NOON, None]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", ["UTC", BERLIN, "Asia/Tokyo"])
def test_units_and_zones_do_not_matter(unit: str, zone: str) -> None:
    array = pa.array([NOON.replace(tzinfo=dt.UTC), None], pa.timestamp(unit, zone))
    assert values(convert(array, "timestamp")) == [NOON, None]


def test_naive_timestamps_are_read_in_the_declared_zone() -> None:
    for cells in (pa.array([NOON]), pa.array(["2026-03-01 12:00:00"]), pa.array(["2026-03-01 12:00"])):
        assert values(convert(cells, "timestamp", timezone=BERLIN)) == [NOON.replace(hour=11)]
    mixed = pa.array(["2026-03-01 12:00:00", "2026-03-01 12:00:00Z", "NA"])
    assert values(convert(mixed, "timestamp", timezone=BERLIN)) == [NOON.replace(hour=11), NOON, None]


@pytest.mark.parametrize("cells", [[NOON], ["2026-03-01 12:00:00"], ["2026-03-01 12:00:00", "2026-03-01 12:00:00Z"]])
def test_naive_timestamps_without_a_declared_zone_are_refused(cells: Any) -> None:
    with pytest.raises(DataError, match="time zone") as caught:
        convert(cells, "timestamp")
    assert caught.value.rule == "naive_timestamp"


def test_a_clock_change_makes_local_times_unscorable() -> None:
    skipped, repeated, fine = "2026-03-29 02:30:00", "2026-10-25 02:30:00", "2026-10-25 12:00:00"
    for cells in (pa.array([skipped, repeated, fine]), pa.array([skipped, repeated, fine]).cast(pa.timestamp("s"))):
        records = convert(cells, "timestamp", timezone=BERLIN)
        assert reasons(records) == ["ambiguous_time", "ambiguous_time", OK]
        assert values(records) == [None, None, dt.datetime(2026, 10, 25, 11)]
    records = convert([repeated, "2026-10-25 02:30:00Z", None], "timestamp", timezone=BERLIN)
    assert reasons(records) == ["ambiguous_time", OK, OK]  # an offset leaves no doubt


def test_dates_are_midnights() -> None:
    day = dt.date(2026, 7, 1)
    for cells in (pa.array([day]), pa.array([day], pa.date64()), pa.array(["2026-07-01"])):
        assert values(convert(cells, "timestamp")) == [dt.datetime(2026, 7, 1)]
        assert values(convert(cells, "timestamp", timezone=BERLIN)) == [dt.datetime(2026, 6, 30, 22)]


def test_year_9999_is_in_range_and_year_10000_is_not() -> None:
    last = dt.datetime(9999, 12, 31, 23, 59, 59, 999999)
    assert values(convert(["9999-12-31T23:59:59.999999Z"], "timestamp")) == [last]
    far = pa.array([253402300799, 253402300800, 2**62, -(2**62), None], pa.timestamp("s", "UTC"))
    assert reasons(convert(far, "timestamp")) == [OK] + ["out_of_range"] * 3 + [OK]
    assert reasons(convert(pa.array([2**62], pa.timestamp("us", "UTC")), "timestamp")) == ["out_of_range"]
    assert reasons(convert(pa.array([2**30], pa.int32()).cast(pa.date32()), "timestamp")) == ["out_of_range"]


@pytest.mark.parametrize("text", ["01/03/2026", "2026-13-01", "2026-03-01T25:00Z", "1772366400", "20260301", "noon"])
def test_other_text_is_no_timestamp(text: str) -> None:
    records = convert([text, "2026-03-01T12:00:00Z", "2026-03-01T12:00:00Z"], "timestamp")
    assert reasons(records) == ["wrong_dtype", OK, OK]
    assert values(records) == [None, NOON, NOON]


# ---------------------------------------------------------------- files and rows


@pytest.mark.parametrize(
    ("kind", "cells", "rule"),
    [
        ("number", [True], "wrong_type"),
        ("number", [NOON], "wrong_type"),
        ("number", [dt.timedelta(1)], "wrong_type"),
        ("number", [b"1"], "binary"),
        ("number", [[1.0]], "nested_type"),
        ("number", [{"a": 1}], "nested_type"),
        ("boolean", [dt.date(2026, 1, 1)], "wrong_type"),
        ("category", [NOON], "wrong_type"),
        ("category", [b"a"], "binary"),
        ("timestamp", [1772366400], "wrong_type"),
        ("timestamp", [dt.time(12)], "wrong_type"),
    ],
)
def test_wrong_types_are_refused(kind: Any, cells: list[Any], rule: str) -> None:
    with pytest.raises(DataError) as caught:
        convert(cells, kind)
    assert (caught.value.rule, caught.value.column, caught.value.file) == (rule, "c", "f.parquet")


def test_a_file_is_refused_when_more_than_half_of_the_cells_are_unreadable() -> None:
    assert reasons(convert(["x", "1", None], "number")) == ["wrong_dtype", OK, OK]
    with pytest.raises(DataError, match="more than half"):
        convert(["x", None, None], "number")  # of the cells that are there
    with pytest.raises(DataError) as caught:
        convert(["x", "y", "1"] * 4, "number")
    assert (caught.value.rule, caught.value.column) == ("wrong_type", "c")
    assert (caught.value.rows, caught.value.count) == ((0, 1, 3, 4, 6), 8)


def test_only_the_first_rows_of_a_file_decide_for_the_file() -> None:
    schema = Schema((Column("c", "number"),))
    records = check(pa.table({"c": ["x", "y", "1"]}), schema, first_row=65_536, file="f.csv")
    assert reasons(records) == ["wrong_dtype", "wrong_dtype", OK]
    assert records.record_ids.tolist() == ["65536", "65537", "65538"]


def test_the_first_bad_column_gives_the_reason() -> None:
    schema = Schema((Column("a", "number"), Column("b", "number")))
    table = pa.table({"b": ["x", "1", "2"], "a": [np.inf, np.inf, 1.0]})
    status = check(table, schema, first_row=0, file="f").status
    assert status.tolist() == ["unscorable:non_finite:a", "unscorable:non_finite:a", OK]


def test_a_row_without_any_value_is_unscorable() -> None:
    schema = Schema((Column("a", "number"), Column("b", "category"), Column("t", "timestamp")), record_id="id")
    table = pa.table({"id": ["1", "2"], "a": ["NA", "NA"], "b": ["", "x"], "t": pa.nulls(2)})
    assert check(table, schema, first_row=0, file="f").status.tolist() == ["unscorable:all_missing", OK]


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        (["007", "7", None, ""], ["007", "7", "", ""]),
        ([2**60 + 1, None], ["1152921504606846977", ""]),
        ([1.0, None], ["1", ""]),
        (pa.array([Decimal(12)], pa.decimal128(20, 0)), ["12"]),
        (pa.array(["a", "b"]).dictionary_encode(), ["a", "b"]),
    ],
)
def test_record_ids_are_text(ids: Any, text: list[str]) -> None:
    table = pa.table({"id": ids, "a": np.ones(len(text))})
    records = check(table, Schema((Column("a", "number"),), record_id="id"), first_row=0, file="f")
    assert records.record_ids.tolist() == text


def test_labels_are_compared_as_text_and_may_be_absent() -> None:
    schema = Schema((Column("a", "number"),), label="y", anomalous=("fraud", "1", "true"))
    for cells, expected in (
        (["fraud", "ok", None], [1, 0, 0]),
        ([1, 0, 2], [1, 0, 0]),
        ([True, False, None], [1, 0, 0]),
    ):
        labels = check(pa.table({"a": np.ones(3), "y": cells}), schema, first_row=0, file="f").labels
        assert labels is not None
        assert labels.tolist() == [bool(e) for e in expected]
    assert check(pa.table({"a": np.ones(3)}), schema, first_row=0, file="f").labels is None
    with pytest.raises(DataError, match="missing_column"):
        check_header([("a", pa.float64())], schema, file="f", label_required=True)


def test_no_rows_and_several_chunks() -> None:
    schema = Schema((Column("a", "number"), Column("b", "category"), Column("t", "timestamp")))
    types = pa.schema([("a", pa.string()), ("b", pa.dictionary(pa.int8(), pa.string())), ("t", pa.string())])
    assert len(check(types.empty_table(), schema, first_row=0, file="f")) == 0
    part = pa.table({"a": ["1"], "b": ["x"], "t": ["2026-01-01"]}).cast(types)
    both = check(pa.concat_tables([part, part]), schema, first_row=0, file="f")
    assert both.values["a"].tolist() == [1.0, 1.0]
    assert both.values["b"].to_pylist() == ["x", "x"]


# ---------------------------------------------------------------- the header

TEXT = pa.string()


@pytest.mark.parametrize(
    ("present", "hint"),
    [
        ("Amount_Total", "'Amount_Total'"),
        ("amount_total ", "'amount_total '"),
        ("total amount", "'total amount'"),
        ("amountTotal", "'amountTotal'"),
        ("amount_totl", "'amount_totl'"),
    ],
)
def test_missing_columns_come_with_near_matches(present: str, hint: str) -> None:
    schema = Schema((Column("amount_total", "number"), Column("b", "number")))
    with pytest.raises(DataError) as caught:
        check_header([(present, TEXT), ("zzz", TEXT)], schema, file="f.csv")
    assert caught.value.rule == "missing_column"
    assert hint in str(caught.value)
    assert "'b'" in str(caught.value)
    assert "zzz" not in str(caught.value)


def test_a_name_in_another_unicode_form_is_shown_as_such() -> None:
    with pytest.raises(DataError, match=r"'cafe\\u0301'.*another Unicode form"):
        check_header([("cafe\u0301", TEXT)], Schema((Column("caf\u00e9", "number"),)), file="f.csv")


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_a_header_of_one_field_hints_at_the_delimiter(delimiter: str) -> None:
    with pytest.raises(DataError, match=r"source\.csv\.delimiter") as caught:
        check_header([(f"a{delimiter}b", TEXT)], Schema((Column("a", "number"),)), file="f.csv")
    assert repr(delimiter) in caught.value.remedy


def test_types_of_columns_that_are_not_used_do_not_matter() -> None:
    check_header([("x", pa.list_(TEXT)), ("a", TEXT)], Schema((Column("a", "number"),)), file="f")


# ---------------------------------------------------------------- the schema itself

FULL = Schema(
    (Column("a", "number"), Column("t", "timestamp", BERLIN)),
    record_id="id",
    label="y",
    anomalous=("1",),
    ignore=("note",),
)


def test_a_schema_survives_json_and_has_a_stable_digest() -> None:
    assert Schema.from_dict(FULL.to_dict()) == FULL
    assert FULL.digest == Schema.from_dict(FULL.to_dict()).digest
    assert len(FULL.digest) == 64
    assert FULL.digest != Schema(FULL.columns).digest
    assert FULL.required == ("a", "t", "id")


@pytest.mark.parametrize(
    "broken",
    [
        {"colums": []},
        {"columns": []},
        {"columns": [{"name": "a"}]},
        {"columns": [{"name": "a", "kind": "numbr"}]},
        {"columns": [{"name": "a", "kind": "number", "unit": "m"}]},
        {"columns": [{"name": 1, "kind": "number"}]},
        {"columns": [{"name": "a", "kind": "number"}] * 2},
        {"columns": [{"name": "a", "kind": "number"}], "record_id": "a"},
        {"columns": [{"name": "a", "kind": "number"}], "anomalous": "1"},
        {"columns": [{"name": "a", "kind": "number"}], "anomalous": [1]},
        {"columns": [{"name": "a", "kind": "number", "timezone": "UTC"}]},
        {"columns": [{"name": "a", "kind": "timestamp", "timezone": "Mars/Base"}]},
        {"columns": [{"name": "a", "kind": "timestamp", "timezone": "../etc/passwd"}]},
        {"columns": "a"},
        [],
    ],
)
def test_a_broken_schema_is_refused(broken: Any) -> None:
    with pytest.raises(ConfigError):
        Schema.from_dict(broken)


# ---------------------------------------------------------------- images and texts


def images_of(cells: Any, size: tuple[int, int] = (2, 3), channels: int = 1, first_row: int = 0) -> Records:
    schema = Schema((Column("c", "image", size=size, channels=channels), Column("k", "number", context=True)))
    table = pa.table({"c": cells, "k": [None] * len(cells)})
    return check(table, schema, first_row=first_row, file="f.parquet")


def tensors(pixels: np.ndarray, shape: tuple[int, ...] | None = None, **options: Any) -> pa.Array:
    """A column of tensors, (B, ...) pixels."""
    dtype = pa.fixed_shape_tensor(pa.from_numpy_dtype(pixels.dtype), shape or pixels.shape[1:], **options)
    storage = pa.FixedSizeListArray.from_arrays(pa.array(pixels.ravel()), dtype.storage_type.list_size)
    return pa.ExtensionArray.from_storage(dtype, storage)


PIXELS = np.arange(24, dtype=np.uint8).reshape(4, 2, 3)


def test_encoded_images_become_pixels_and_a_bad_one_costs_its_row_only() -> None:
    good = [encode(image[..., None]) for image in PIXELS]
    bad, square = good[1][:40], encode(np.zeros((3, 3, 1), np.uint8))
    for dtype in (pa.binary(), pa.large_binary(), pa.binary_view()):
        records = images_of(pa.array([*good, bad, None, b"GIF89a", square], dtype))
        assert records.values["c"].shape == (8, 2, 3, 1)
        assert records.values["c"].dtype == np.uint8
        assert np.array_equal(records.values["c"][:4, ..., 0], PIXELS)
        assert reasons(records) == [OK] * 4 + ["corrupt_image", "all_missing", "image_format", "image_size"]
    repeated = images_of(pa.array([good[0], good[1], good[0]]).dictionary_encode())
    assert np.array_equal(repeated.values["c"][2, ..., 0], PIXELS[0])


def test_a_file_whose_images_are_mostly_unreadable_is_refused_at_its_beginning_only() -> None:
    cells = pa.array([b"no image", b"GIF89a", encode(PIXELS[0][..., None])])
    with pytest.raises(DataError, match="image_format") as caught:
        images_of(cells)
    assert (caught.value.rule, caught.value.column, caught.value.rows) == ("wrong_type", "c", (0, 1))
    assert "2 x 3" in caught.value.remedy
    assert reasons(images_of(cells, first_row=3)) == ["image_format", "image_format", OK]


@pytest.mark.parametrize("first", [0, 1])
def test_tensors_become_pixels_whatever_their_type(first: int) -> None:
    for same in (PIXELS, PIXELS.astype(np.uint16) * 257, (PIXELS / 255).astype(np.float32), PIXELS / 255):
        for shaped in (same, same[..., None]):
            found = images_of(tensors(shaped).slice(first)).values["c"]
            assert np.array_equal(found[..., 0], PIXELS[first:])
    colours = np.stack([PIXELS, PIXELS + 1, PIXELS + 2], axis=-1)
    assert np.array_equal(images_of(tensors(colours), channels=3).values["c"], colours)
    assert images_of(tensors(PIXELS[:0])).values["c"].shape == (0, 2, 3, 1)


def test_tensors_may_be_null_and_may_not_hold_odd_floats() -> None:
    cells = (PIXELS / 255).astype(np.float32)
    cells[1, 0, 0], cells[2, 0, 0] = np.inf, 1.5
    kind = pa.fixed_shape_tensor(pa.float32(), (2, 3))
    lists = [*cells.reshape(4, 6).tolist(), None, [0.5] * 5 + [None], [0.5] * 6, [0.5] * 6]
    column = pa.ExtensionArray.from_storage(kind, pa.array(lists, kind.storage_type))
    expected = [OK, "non_finite", "out_of_range", OK, "all_missing", "missing_pixels", OK, OK]
    assert reasons(images_of(column)) == expected
    assert reasons(images_of(column.slice(2))) == expected[2:]
    with pytest.raises(DataError, match="out_of_range"):
        images_of(tensors(PIXELS.astype(np.float32)))  # 0 to 255, not 0 to 1


@pytest.mark.parametrize(
    "column",
    [
        tensors(PIXELS.transpose(0, 2, 1).copy()),
        tensors(np.zeros((4, 2, 3, 3), np.uint8)),
        tensors(np.zeros((4, 2, 3, 4), np.uint8)),
        tensors(PIXELS.reshape(4, 6)),
        tensors(PIXELS.astype(np.int64)),
        tensors(np.zeros((4, 2, 3), np.uint8), permutation=[1, 0]),
        pa.array(["a.png"] * 4),
        pa.array([[1, 2]] * 4),
        pa.array([1] * 4),
    ],
)
def test_a_column_that_holds_no_images_of_the_declared_shape_is_refused(column: pa.Array) -> None:
    with pytest.raises(DataError) as caught:
        images_of(column)
    assert (caught.value.rule, caught.value.column) == ("wrong_type", "c")


def test_images_go_where_images_are_declared_only() -> None:
    for kind in ("number", "category", "text"):
        with pytest.raises(DataError) as caught:
            check(pa.table({"c": tensors(PIXELS)}), Schema((Column("c", kind),)), first_row=0, file="f")
        assert caught.value.rule == "wrong_type"
        with pytest.raises(DataError, match="raw bytes"):
            check(pa.table({"c": [b"x"]}), Schema((Column("c", kind),)), first_row=0, file="f")


def texts_of(cells: Any) -> Records:
    schema = Schema((Column("c", "text"), Column("k", "number", context=True)))
    return check(pa.table({"c": cells, "k": [1.0] * len(cells)}), schema, first_row=0, file="f")


def test_texts_are_composed_and_blank_ones_are_missing() -> None:
    records = texts_of(
        ["NA", " a ", "e\u0301", "\u00e9", "", " \t\n\u3000", None, "a\0b", "\u202eabc", "\U0001f469\u200d\U0001f680"]
    )
    assert values(records) == [
        *("NA", " a ", "\u00e9", "\u00e9", None, None, None, "a\0b", "\u202eabc", "\U0001f469\u200d\U0001f680")
    ]
    assert reasons(records) == [OK] * 4 + ["all_missing"] * 3 + [OK] * 3
    assert isinstance(records.values["c"], pa.StringArray)


@pytest.mark.parametrize("dtype", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())])
def test_texts_of_every_text_type(dtype: pa.DataType) -> None:
    assert values(texts_of(pa.array(["a", None], pa.string()).cast(dtype))) == ["a", None]


@pytest.mark.parametrize("cells", [[1, 2], [1.5], [True], [dt.datetime(2026, 1, 1)]])
def test_what_is_no_text_is_refused_as_one(cells: list[Any]) -> None:
    with pytest.raises(DataError) as caught:
        texts_of(cells)
    assert (caught.value.rule, caught.value.column) == ("wrong_type", "c")


def test_missing_context_costs_no_row_and_does_not_save_one() -> None:
    schema = Schema((Column("a", "number"), Column("k", "category", context=True)))
    records = check(pa.table({"a": [1.0, 2.0, None], "k": [None, "x", "x"]}), schema, first_row=0, file="f")
    assert records.status.tolist() == [OK, OK, "unscorable:all_missing"]
    without = Schema((Column("a", "number"), Column("k", "category")))
    assert check(pa.table({"a": [None], "k": ["x"]}), without, first_row=0, file="f").status.tolist() == [OK]


def test_unreadable_context_is_not_missing() -> None:
    schema = Schema((Column("a", "number"), Column("k", "number", context=True)))
    records = check(pa.table({"a": [1.0] * 3, "k": ["1", "2", "x"]}), schema, first_row=0, file="f")
    assert records.status.tolist() == [OK, OK, "unscorable:wrong_dtype:k"]


IMAGE = Column("i", "image", size=(28, 20), channels=3)
MESSAGE = Column("t", "text", max_tokens=9, replace=("hex",))
CONMESSAGE = Column("k", "category", context=True)


def test_a_model_sees_a_table_an_image_or_a_text() -> None:
    table = Schema((Column("a", "number"), CONMESSAGE, Column("b", "boolean")))
    assert [s.modality for s in (table, Schema((CONMESSAGE, IMAGE)), Schema((MESSAGE,)))] == ["table", "image", "text"]
    assert [c.name for c in table.modelled] == ["a", "b"]
    mixtures = [(IMAGE, MESSAGE), (IMAGE, Column("a", "number")), (MESSAGE, Column("t2", "text")), (CONMESSAGE,)]
    for columns in mixtures:
        with pytest.raises(ConfigError, match="context"):
            Schema(columns)


def test_rows_at_once_bound_the_pixels() -> None:
    assert Schema((MESSAGE,)).rows_at_once == 65_536
    assert Schema((CONMESSAGE, Column("a", "number"))).rows_at_once == 16_384
    for height, width, channels in ((28, 28, 1), (256, 256, 3), (4096, 4096, 3), (4096, 4096, 1), (1, 1, 1)):
        rows = Schema((Column("i", "image", size=(height, width), channels=channels),)).rows_at_once
        pixels = height * width * channels
        assert rows == 1 or rows * pixels <= 64 * 2**20
        assert rows == 16_384 or (rows + 1) * pixels > 64 * 2**20


def test_every_field_of_a_column_survives_a_round_trip_and_counts_in_the_digest() -> None:
    schemas = [Schema((IMAGE, CONMESSAGE)), Schema((MESSAGE,)), Schema((Column("t", "text"),))]
    schemas += [
        Schema((dataclasses.replace(IMAGE, **change), CONMESSAGE)) for change in ({"size": (20, 28)}, {"channels": 1})
    ]
    for change in ({"max_tokens": 8}, {"replace": ()}):
        schemas.append(Schema((dataclasses.replace(MESSAGE, **change),)))
    assert len({schema.digest for schema in schemas}) == len(schemas)
    for schema in schemas:
        assert Schema.from_dict(json.loads(json.dumps(schema.to_dict()))) == schema


@pytest.mark.parametrize(
    "change",
    [
        {"size": [28]},
        {"size": [28, "28"]},
        {"size": [28, True]},
        {"size": "28"},
        {"size": None},
        {"channels": 2},
        {"channels": True},
        {"channels": "1"},
        {"context": 1},
        {"context": True},
        {"max_tokens": 5},
        {"replace": []},
        {"size": [0, 1]},
        {"size": [1, 4097]},
        {"replace": [1]},
        {"colour": 1},
    ],
)
def test_a_column_of_images_is_read_strictly(change: dict[str, Any]) -> None:
    good = Schema((IMAGE,)).to_dict()
    assert Schema.from_dict(good)
    with pytest.raises(ConfigError):
        Schema.from_dict({**good, "columns": [{**good["columns"][0], **change}]})


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *[("number", {"size": (1, 1)}), ("number", {"channels": 3}), ("text", {"size": (1, 1)}), ("image", {})],
        *[("number", {"max_tokens": 3}), ("category", {"replace": ()}), ("text", {"context": True})],
        *[("text", {"max_tokens": 0}), ("text", {"max_tokens": 4097}), ("text", {"replace": ("word",)})],
        *[
            ("text", {"replace": ("id", "id")}),
            ("text", {"scale": "log"}),
            ("image", {"size": (1, 1), "timezone": "UTC"}),
        ],
    ],
)
def test_what_a_kind_does_not_have_is_refused(kind: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="'c'"):
        Column("c", kind, **options)
