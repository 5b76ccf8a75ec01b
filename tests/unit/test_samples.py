"""The sample data sets: reproducible, as committed, and with everything that their READMEs promise."""

from __future__ import annotations

import csv
import json
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from vae_anomaly.samples import MERCHANTS, write_breast_cancer, write_payments

DATA = Path(__file__).parents[2] / "data"
WRITERS = {"breast_cancer": write_breast_cancer, "payments": write_payments}
BATCH_DAYS = ("2026-01-05", "2026-01-06", "2026-01-07")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples")
    for name, write in WRITERS.items():
        write(folder / name)
    return folder


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def csv_records(path):
    """Rows of text, a missing cell as None, written without any help of a table library."""
    with path.open(newline="", encoding="utf-8") as file:
        return [{k: v or None for k, v in row.items()} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def training(written):
    return [row for p in sorted((written / "payments/training").iterdir()) for row in pq.read_table(p).to_pylist()]


@pytest.fixture(scope="module")
def batches(written):
    inbox = written / "payments/inbox"
    lines = (inbox / "2026-01-07.jsonl").read_text(encoding="utf-8").splitlines()
    return [
        pq.read_table(inbox / "2026-01-05.parquet").to_pylist(),
        csv_records(inbox / "2026-01-06.csv"),
        [json.loads(line) for line in lines],
    ]


@pytest.mark.parametrize("name", WRITERS)
def test_a_seed_gives_the_same_bytes_and_another_seed_does_not(name, written, tmp_path):
    WRITERS[name](tmp_path / "again")
    WRITERS[name](tmp_path / "other", seed=1)
    first, other = files(written / name), files(tmp_path / "other")
    assert files(tmp_path / "again") == first
    assert other.keys() == first.keys()
    assert all(other[path] != content for path, content in first.items() if path != "monitor.yml")


@pytest.mark.parametrize("name", WRITERS)
def test_the_committed_files_are_what_the_generator_writes(name, written):
    fresh = written / name
    own = ("training", "inbox", *(path for path in files(fresh) if "/" not in path))
    committed = {k: v for k, v in files(DATA / name).items() if k.split("/")[0] in own}
    assert committed.keys() == files(fresh).keys()
    same_writer = True
    for path in committed:
        if path.endswith(".parquet") and "2026-01-08" not in path:
            old, new = pq.ParquetFile(DATA / name / path), pq.ParquetFile(fresh / path)
            assert old.read().equals(new.read(), check_metadata=True), path
            same_writer &= old.metadata.created_by == new.metadata.created_by
    # A Parquet file names the version of its writer, so its bytes are compared between equal versions only.
    for path, content in files(fresh).items():
        assert committed[path] == content or (path.endswith(".parquet") and not same_writer), path


@pytest.mark.parametrize("name", WRITERS)
def test_the_monitor_knows_every_column_of_every_training_file(name):
    monitor = yaml.safe_load((DATA / name / "monitor.yml").read_text(encoding="utf-8"))
    known = [monitor["record_id"], *monitor["columns"], *monitor.get("ignore", []), monitor["label"]["column"]]
    for path in (DATA / name / "training").iterdir():
        assert pq.read_schema(path).names == known


def test_the_committed_data_stay_small():
    sizes = {name: sum(map(len, files(DATA / name).values())) for name in WRITERS}
    assert sizes["payments"] < 1_200_000
    assert sizes["breast_cancer"] < 400_000


# ---- breast cancer ----


def wdbc(folder, name):
    return pq.read_table(folder / "breast_cancer" / name)


def test_wdbc_has_every_record_once_and_malignant_ones_in_batches_only(written):
    tables = [wdbc(written, f"inbox/{day}.parquet") for day in BATCH_DAYS]
    training = wdbc(written, "training/benign.parquet")
    counts = [
        (t["diagnosis"].to_pylist().count("benign"), t["diagnosis"].to_pylist().count("malignant")) for t in tables
    ]
    assert counts == [(36, 20), (36, 70), (35, 122)]
    assert set(training["diagnosis"].to_pylist()) == {"benign"} and len(training) == 250
    ids = [i for t in (training, *tables) for i in t["record_id"].to_pylist()]
    assert sorted(ids) == [f"wdbc-{i:04d}" for i in range(1, 570)]


def test_wdbc_values_are_those_that_scikit_learn_ships(written):
    from sklearn.datasets import load_breast_cancer

    data, table = load_breast_cancer(), wdbc(written, "inbox/2026-01-07.parquet")
    rows = [int(i.removeprefix("wdbc-")) - 1 for i in table["record_id"].to_pylist()]
    assert [n.replace("_", " ") for n in table.column_names[1:-1]] == data.feature_names.tolist()
    np.testing.assert_array_equal(np.column_stack([table[n] for n in table.column_names[1:-1]]), data.data[rows])
    assert table["diagnosis"].to_pylist() == data.target_names[data.target[rows]].tolist()


def test_wdbc_rows_of_a_batch_are_mixed(written):
    diagnosis = np.array(wdbc(written, "inbox/2026-01-07.parquet")["diagnosis"].to_pylist())
    assert (diagnosis[1:] != diagnosis[:-1]).sum() > 20


def test_wdbc_truncated_file_cannot_be_read(written):
    path = written / "breast_cancer/inbox/2026-01-08.parquet"
    whole = (written / "breast_cancer/inbox/2026-01-07.parquet").read_bytes()
    assert whole.startswith(path.read_bytes()) and path.stat().st_size > len(whole) / 2
    with pytest.raises(pa.ArrowInvalid):
        pq.read_table(path)


def test_wdbc_renamed_file_differs_by_one_name_only(written):
    renamed, original = (wdbc(written, f"inbox/2026-01-{day}.parquet") for day in ("09", "06"))
    assert set(original.column_names) ^ set(renamed.column_names) == {"mean_radius", "radius_mean"}
    assert renamed.rename_columns(original.column_names).equals(original)


# ---- payments ----


def test_payments_counts_ids_and_labels(training, batches):
    assert len(training) == 6000 and {row["label"] for row in training} == {"normal"}
    for batch, each in zip(batches, (8, 10, 12), strict=True):
        labels = [row["label"] for row in batch]
        assert len(batch) == 1200
        assert {k: labels.count(k) for k in set(labels)} == {
            "normal": 1200 - 3 * each, "point": each, "contextual": each, "dependency": each
        }  # fmt: skip
    ids = [row["payment_id"] for rows in (training, *batches) for row in rows]
    assert ids == [f"{i:08d}" for i in range(1, 9601)]


def test_payments_are_missing_where_and_as_often_as_documented(training):
    missing = {name: np.array([row[name] is None for row in training]) for name in training[0]}
    rates = {name: cells.mean() for name, cells in missing.items() if cells.any()}
    expected = {"country": 0.01, "account_age_days": 0.04, "discount_rate": 0.93, "note": 0.97}
    assert rates.keys() == {*expected, "tip", "contactless"}
    for name, rate in expected.items():  # five standard deviations of a share
        assert rates[name] == pytest.approx(rate, abs=5 * (rate * (1 - rate) / len(training)) ** 0.5)
    assert all((row["contactless"] is None) == (not row["card_present"]) for row in training)
    assert {row["merchant_type"] for row in training if row["tip"] is not None} == {"cafe", "restaurant"}


def test_payments_have_heavy_tails_and_rare_categories(training):
    amount = np.array([row["amount"] for row in training])
    assert amount.max() > 100 * np.median(amount)
    for name, rare in (("merchant_type", "jewellery"), ("country", "NA")):
        assert 5 < sum(row[name] == rare for row in training) < 60


def test_payments_parquet_types(written):
    schema = pq.read_schema(written / "payments/inbox/2026-01-05.parquet")
    assert schema == pq.read_schema(written / "payments/training/2025-11.parquet")
    assert schema.field("created_at").type == pa.timestamp("us", "UTC")
    assert schema.field("payment_id").type == pa.string()
    assert schema.field("items").type == schema.field("account_age_days").type == pa.int64()
    assert schema.field("card_present").type == schema.field("contactless").type == pa.bool_()
    assert schema.metadata[b"origin"].startswith(b"synthetic")


def test_payments_text_files_say_their_time_zone(written, batches):
    offsets = {row["created_at"][-6:] for row in batches[1]}
    assert {"+01:00", "-05:00"} <= offsets <= {"+01:00", "-05:00", "+02:00"}
    assert all(row["created_at"].startswith("2026-01-06T") for row in batches[1])  # one local day
    assert all(row["created_at"].endswith("Z") for row in batches[2])
    for batch in batches[1:]:
        moments = [datetime.fromisoformat(row["created_at"]) for row in batch]
        assert moments == sorted(moments)


def test_payments_text_files_are_complete_and_need_a_real_reader(written, batches):
    for name in ("2026-01-06.csv", "2026-01-07.jsonl"):
        assert (written / "payments/inbox" / name).read_bytes().endswith(b"\n")
    assert {row["card_present"] for row in batches[1]} == {"true", "false"}
    notes = {row["note"] for row in batches[1]}
    assert {None, "NA", 'guest said "keep it"', "paid in two parts, see desk"} <= notes
    assert any(row["country"] == "NA" for row in batches[1])


def local_hour(row):
    moment = row["created_at"]
    moment = moment if isinstance(moment, datetime) else datetime.fromisoformat(moment)
    offset = {"EUR": 1, "CHF": 1, "USD": -5, "CAD": -5, "NAD": 2}[row["currency"]]
    return ((moment.hour + moment.minute / 60 - moment.utcoffset().total_seconds() / 3600) + offset) % 24


def reasons(row):
    """Which rules of the normal payments this row breaks."""
    merchant = MERCHANTS[row["merchant_type"]]
    amount, items, hour = float(row["amount"]), int(row["items"]), local_hour(row)
    expected_fee = 0.10 + merchant.fee_rate * amount
    currencies = {"DE": "EUR", "FR": "EUR", "US": "USD", "CA": "CAD", "CH": "CHF", "NA": "NAD"}
    rules = {
        "unseen": merchant.share == 0,
        "extreme": amount > 100_000,
        "count": not 0 < items < 999,
        "closed": not merchant.opens <= hour <= merchant.closes,
        "fee": abs(float(row["fee"]) - 0.10) / (expected_fee - 0.10) < 0.6 or float(row["fee"]) > 1.2 * expected_fee,
        "currency": row["country"] is not None and currencies[row["country"]] != row["currency"],
    }
    return {rule for rule, broken in rules.items() if broken}


def test_payments_normal_records_break_no_rule(training, batches):
    normal = [row for rows in (training, *batches) for row in rows if row["label"] == "normal"]
    assert not set().union(*map(reasons, normal))


@pytest.mark.parametrize(
    ("kind", "rules"),
    [("point", {"unseen", "extreme", "count"}), ("contextual", {"closed"}), ("dependency", {"fee", "currency"})],
)
def test_payments_each_batch_has_each_sort_of_anomaly(kind, rules, batches):
    for batch in batches:
        anomalies = [row for row in batch if row["label"] == kind]
        assert rules <= set().union(*map(reasons, anomalies))
        if kind == "contextual":  # the others have an amount that is ordinary, but not for their merchant type
            ratios = [abs(np.log(float(r["amount"]) / MERCHANTS[r["merchant_type"]].median)) for r in anomalies]
            assert sum(ratio > 1.0 for ratio in ratios) >= len(anomalies) / 3
        else:
            assert all(map(reasons, anomalies))


def test_payments_other_sizes(tmp_path):
    write_payments(tmp_path, training_records=101, batch_records=40, batches=4)
    assert [p.name for p in sorted((tmp_path / "inbox").iterdir())] == [
        "2026-01-05.parquet", "2026-01-06.csv", "2026-01-07.jsonl", "2026-01-08.parquet"
    ]  # fmt: skip
    assert sum(pq.read_metadata(p).num_rows for p in (tmp_path / "training").iterdir()) == 101
    assert len(csv_records(tmp_path / "inbox/2026-01-06.csv")) == 40


def test_payments_are_neither_trivial_nor_hopeless_for_a_simple_baseline(training, batches):
    from sklearn.ensemble import IsolationForest
    from sklearn.metrics import roc_auc_score

    def numbers(rows):
        names = ("amount", "items", "fee", "tip", "discount_rate", "account_age_days")
        return np.array([[np.nan if row[n] is None else float(row[n]) for n in names] for row in rows])

    rows = [row for batch in batches for row in batch]
    x, median = numbers(rows), np.nanmedian(numbers(training), axis=0)
    forest = IsolationForest(random_state=0).fit(np.where(np.isnan(numbers(training)), median, numbers(training)))
    score = -forest.score_samples(np.where(np.isnan(x), median, x))
    assert 0.6 < roc_auc_score([row["label"] != "normal" for row in rows], score) < 0.97
