"""The sample data sets: reproducible, as committed, and with everything that their READMEs promise."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from vae_anomaly.config import load_monitor
from vae_anomaly.samples import MERCHANTS, WRITERS, write_payments
from vae_anomaly.samples.logs import KINDS, NUMBERS, TEMPLATES, WORDS, write_logs
from vae_anomaly.samples.tabular import SITES
from vae_anomaly.schema import Column, Schema, check
from vae_anomaly.store.sources import list_inbox, open_delivery, read_chunks

DATA = Path(__file__).parents[2] / "data"
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
    # an image alone may be at the same place by chance
    apart = [path for path in first if path != "monitor.yml" and not path.endswith(".png")]
    assert all(other[path] != first[path] for path in apart)


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


@pytest.mark.parametrize("name", ["breast_cancer", "payments", "regions"])
def test_the_monitor_knows_every_column_of_every_training_file(name):
    monitor = yaml.safe_load((DATA / name / "monitor.yml").read_text(encoding="utf-8"))
    known = [monitor["record_id"], *monitor["columns"], *monitor.get("ignore", []), monitor["label"]["column"]]
    for path in (DATA / name / "training").iterdir():
        assert sorted(pq.read_schema(path).names) == sorted(known)


READ = {  # each file's rows, rows that cannot be scored, labelled anomalies
    "regions": [("2025-12.parquet", 3072, [], 0), ("2026-01-05.parquet", 768, [], 31), ("2026-01-06.csv", 768, [], 31)],
    "digits": [
        ("digits.npz", 540, [], 0),
        ("2026-01-05.parquet", 72, [], 15),
        ("2026-01-06", 40, [], None),
        ("2026-01-07.npy", 50, [], None),
        ("2026-01-08.parquet", 60, [7, 19, 31, 32], 12),
    ],
    "logs": [
        ("2026-01-03.log", 2000, [], 0),
        ("2026-01-04.log", 2000, [], 0),
        *((f"{day}.log", 600, [], 21) for day in BATCH_DAYS),
    ],
}


@pytest.mark.parametrize("name", READ)
def test_every_file_goes_through_the_contract_of_its_monitor(name, written):
    monitor = load_monitor(written / name / "monitor.yml")
    columns = tuple(Column(column, **config.model_dump()) for column, config in monitor.columns.items())
    label = monitor.label
    schema = Schema(columns, monitor.record_id, label=label.column, anomalous=label.anomalous, ignore=monitor.ignore)
    inbox = list_inbox(monitor.source.inbox, settle_seconds=0, folders=True)
    found = []
    for path in (*sorted(monitor.source.training.iterdir()), *(entry.path for entry in inbox.ready)):
        with open_delivery(path, folders=True) as delivery:
            (table,) = read_chunks(delivery, schema, monitor.source.csv, pattern=monitor.source.lines.pattern)
        records = check(table, schema, first_row=0, file=path.name)
        anomalous = None if records.labels is None else int(records.labels.sum())
        found.append((path.name, len(records), np.flatnonzero(~records.scorable).tolist(), anomalous))
    assert found == READ[name]


def test_the_command_writes_every_data_set(written, tmp_path):
    command = [sys.executable, "-m", "vae_anomaly.samples", str(tmp_path)]
    done = subprocess.run(command, check=True, cwd=DATA.parent, capture_output=True, text=True, timeout=120)
    assert files(tmp_path) == files(written)
    assert done.stdout == f"Wrote breast_cancer, payments, regions, digits, logs below {tmp_path}.\n"


def test_the_committed_data_stay_small():
    limits = {"breast_cancer": 400_000, "payments": 1_200_000, "regions": 200_000, "digits": 250_000, "logs": 550_000}
    assert limits.keys() == WRITERS.keys()
    for name, limit in limits.items():
        assert limit / 2 < sum(map(len, files(DATA / name).values())) < limit


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


# ---- regions ----


def regions(folder):
    """The training readings and the labelled ones."""
    inbox = folder / "regions/inbox"
    batches = [pq.read_table(inbox / "2026-01-05.parquet").to_pylist(), csv_records(inbox / "2026-01-06.csv")]
    return pq.read_table(folder / "regions/training/2025-12.parquet").to_pylist(), batches


def readings(rows):
    return np.array([[float(row[name]) for name in ("temperature", "humidity", "power")] for row in rows])


def test_regions_counts_ids_and_labels(written):
    training, batches = regions(written)
    assert len(training) == 3072 and {row["label"] for row in training} == {"normal"}
    for batch in batches:
        assert len(batch) == 768
        assert [row["label"] for row in batch].count("foreign") == 31
    rows = [row for part in (training, *batches) for row in part]
    assert [row["reading_id"] for row in rows] == [f"{i:06d}" for i in range(1, 3072 + 2 * 768 + 1)]
    for row in rows:
        moment = row["measured_at"]
        moment = moment if isinstance(moment, datetime) else datetime.fromisoformat(moment)
        assert moment.hour + moment.minute / 60 == float(row["hour"]) and moment.utcoffset().total_seconds() == 0


def test_regions_every_site_reads_every_quarter_of_an_hour(written):
    training, batches = regions(written)
    for rows, days in ((training, 4), *((batch, 1) for batch in batches)):
        seen = [(row["site"], str(row["measured_at"])) for row in rows]
        assert len(set(seen)) == len(seen) == 96 * days * len(SITES)


def test_regions_a_foreign_reading_is_usual_at_another_site_and_not_at_its_own(written):
    training, batches = regions(written)
    usual = np.array([[s.temperature, s.humidity, s.power] for s in SITES.values()])
    own = {name: i for i, name in enumerate(SITES)}
    for rows in (training, *batches):
        # in standard deviations of each column at a site, the load of the day among them
        distance = np.linalg.norm((readings(rows)[:, None] - usual) / [1.1, 4.5, 3.0], axis=2)
        foreign = np.array([row["label"] == "foreign" for row in rows])
        nearest, at = distance.argmin(axis=1), np.array([own[row["site"]] for row in rows])
        assert (nearest[~foreign] == at[~foreign]).mean() > 0.98
        assert (nearest[foreign] != at[foreign]).all()
        assert (distance.min(axis=1)[foreign] < 5).all()


def test_regions_need_the_context(written):
    from sklearn.metrics import roc_auc_score
    from sklearn.neighbors import NearestNeighbors

    training, batches = regions(written)
    rows = [row for batch in batches for row in batch]
    x, y, foreign = readings(training), readings(rows), [row["label"] == "foreign" for row in rows]
    at_x, at_y = (np.array([row["site"] for row in part]) for part in (training, rows))

    def distances(x, y):
        scale = x.std(axis=0)
        return NearestNeighbors(n_neighbors=5).fit(x / scale).kneighbors(y / scale)[0].mean(axis=1)

    given_site = np.empty(len(rows))
    for site in SITES:
        given_site[at_y == site] = distances(x[at_x == site], y[at_y == site])
    assert 0.4 < roc_auc_score(foreign, distances(x, y)) < 0.7
    assert roc_auc_score(foreign, given_site) > 0.97


# ---- digits ----


def opened(content):
    """The grey levels of an encoded image."""
    from PIL import Image

    with Image.open(io.BytesIO(content)) as image:
        assert image.format == "PNG" and image.mode == "L"
        return np.asarray(image)


@pytest.fixture(scope="module")
def digits(written):
    """Images and digits of each file; None for a digit that the form has no room for, and for a broken image."""
    folder = written / "digits"
    with np.load(folder / "training/digits.npz") as arrays:
        found = {"training": (list(arrays["image"]), arrays["digit"].tolist())}
    for day in ("2026-01-05", "2026-01-08"):
        table = pq.read_table(folder / f"inbox/{day}.parquet").to_pydict()
        assert list(table) == ["image", "digit"]
        images = []
        for cell in table["image"]:
            try:
                images.append(opened(cell))
            except (OSError, TypeError):  # cut, no image, none at all
                images.append(None)
        found[day] = images, table["digit"]
    pictures = [opened(path.read_bytes()) for path in sorted((folder / "inbox/2026-01-06").iterdir())]
    array = np.load(folder / "inbox/2026-01-07.npy")
    found["2026-01-06"] = pictures, [None] * len(pictures)
    found["2026-01-07"] = list(array), [None] * len(array)
    return found


def whole(images):
    return [i for i, image in enumerate(images) if image is not None and image.shape == (16, 16)]


@pytest.fixture(scope="module")
def known_digits():
    """The digit of every image of scikit-learn's, by its bytes at 16 x 16."""
    from PIL import Image
    from sklearn.datasets import load_digits

    data = load_digits()
    found = {}
    for values, digit in zip(data.images, data.target, strict=True):
        grey = Image.fromarray(np.round(values * 255 / 16).astype(np.uint8))
        found[np.asarray(grey.resize((16, 16), Image.Resampling.BILINEAR)).tobytes()] = int(digit)
    assert len(found) == len(data.target)  # no two images are the same
    return found


def test_digits_are_those_that_scikit_learn_ships_each_at_most_once(digits, known_digits):
    seen = []
    for images, labels in digits.values():
        for i in whole(images):
            assert images[i].dtype == np.uint8
            seen.append(images[i].tobytes())
            assert labels[i] in (None, known_digits[seen[-1]])
    assert len(set(seen)) == len(seen) == 540 + 72 + 40 + 50 + 60 - 4


def test_digits_train_on_four_digits_and_meet_all_others(digits, known_digits):
    true = {name: [known_digits[images[i].tobytes()] for i in whole(images)] for name, (images, _) in digits.items()}
    assert set(true["training"]) == {0, 2, 4, 6}
    usual = {name: sum(digit in (0, 2, 4, 6) for digit in found) for name, found in true.items()}
    assert usual["training"] == 540
    assert [usual[day] for day in ("2026-01-05", "2026-01-06", "2026-01-07")] == [57, 32, 40]
    assert [len(true[day]) - usual[day] for day in ("2026-01-05", "2026-01-06", "2026-01-07")] == [15, 8, 10]
    assert {digit for name, found in true.items() if name != "training" for digit in found} == set(range(10))
    for found in true.values():
        assert (np.diff(np.isin(found, (0, 2, 4, 6))) != 0).sum() > 10 or found is true["training"]  # mixed


def test_digits_have_one_file_with_a_broken_image_of_each_sort(written, digits):
    cells = pq.read_table(written / "digits/inbox/2026-01-08.parquet")["image"].to_pylist()
    images, labels = digits["2026-01-08"]
    assert len(cells) == 60 and len(whole(images)) == 56 and None not in labels
    assert [i for i, image in enumerate(images) if image is None] == [7, 31, 32]
    assert cells[7].startswith(b"\x89PNG") and cells[31] == b"no image" and cells[32] is None
    assert images[19].shape == (12, 16)
    assert all(len(whole(images)) == len(images) for name, (images, _) in digits.items() if name != "2026-01-08")


def test_digits_can_be_told_apart(digits, known_digits):
    from sklearn.metrics import roc_auc_score
    from sklearn.neighbors import NearestNeighbors

    def pixels(names):
        rows = [digits[name][0][i] for name in names for i in whole(digits[name][0])]
        return np.array(rows).reshape(len(rows), -1) / 255

    x = pixels([name for name in digits if name != "training"])
    other = [known_digits[(255 * row).round().astype(np.uint8).tobytes()] not in (0, 2, 4, 6) for row in x]
    score = NearestNeighbors(n_neighbors=5).fit(pixels(["training"])).kneighbors(x)[0].mean(axis=1)
    assert roc_auc_score(other, score) > 0.98


# ---- logs ----


def log_lines(path):
    """Category, time and message of each line, by the pattern of the monitor."""
    monitor = yaml.safe_load((DATA / "logs/monitor.yml").read_text(encoding="utf-8"))
    pattern = re.compile(monitor["source"]["lines"]["pattern"])
    content = path.read_bytes().decode("utf-8", errors="replace")
    assert content.endswith("\n")
    return [pattern.search(line).groupdict() for line in content.removesuffix("\n").split("\n")]


@pytest.fixture(scope="module")
def logs(written):
    return {
        part: {path.stem: log_lines(path) for path in sorted((written / "logs" / part).iterdir())}
        for part in ("training", "inbox")
    }


def says(template):
    """What a template can say, as a regular expression."""
    forms = {name: "(?:" + "|".join(map(re.escape, words)) + ")" for name, words in WORDS.items()}
    forms |= dict.fromkeys(NUMBERS, r"\d+") | {"amount": r"\d+\.\d\d", "hex": "[0-9a-f]{12}"}
    forms |= {"ip": r"10(?:\.\d{1,3}){3}", "ip6": "2001:db8::[0-9a-f]{4}:[0-9a-f]{4}"}
    parts = re.split(r"\{(\w+)\}", f"{template.level} {template.service}: {template.text}")
    return "".join(forms[part] if i % 2 else re.escape(part) for i, part in enumerate(parts))


NORMAL_LINE = re.compile("|".join(map(says, TEMPLATES)))


def test_logs_counts_labels_and_times(logs):
    assert {day: len(lines) for day, lines in logs["training"].items()} == {"2026-01-03": 2000, "2026-01-04": 2000}
    assert all(line["label"] == "-" for lines in logs["training"].values() for line in lines)
    assert list(logs["inbox"]) == list(BATCH_DAYS)
    for lines in logs["inbox"].values():
        labels = [line["label"] for line in lines]
        assert {kind: labels.count(kind) for kind in set(labels)} == {"-": 600 - 21, **dict.fromkeys(KINDS, 3)}
    for day, lines in (item for part in logs.values() for item in part.items()):
        times = [line["time"] for line in lines]
        assert times == sorted(times)
        assert all(re.fullmatch(rf"{day}T\d\d:\d\d:\d\d\.\d{{3}}Z", time) for time in times)


def test_logs_the_monitor_knows_every_label():
    monitor = yaml.safe_load((DATA / "logs/monitor.yml").read_text(encoding="utf-8"))
    assert monitor["label"]["anomalous"] == list(KINDS)


def test_logs_a_normal_line_is_what_a_template_says_and_an_anomaly_never_is(logs, tmp_path):
    write_logs(tmp_path, seed=7, training_lines=1, batch_lines=1400, each=200)
    many = [line for path in (tmp_path / "inbox").iterdir() for line in log_lines(path)]
    for line in (*many, *(line for part in logs.values() for lines in part.values() for line in lines)):
        assert (NORMAL_LINE.fullmatch(line["message"]) is not None) == (line["label"] == "-"), line


def test_logs_have_every_template_in_training(logs):
    messages = [line["message"] for lines in logs["training"].values() for line in lines]
    counts = [sum(re.fullmatch(says(template), message) is not None for message in messages) for template in TEMPLATES]
    assert min(counts) >= 10 and sum(counts) == len(messages)


def test_logs_a_name_that_stands_twice_has_one_value(logs):
    messages = [line["message"] for lines in logs["training"].values() for line in lines]
    jobs = [
        re.fullmatch(r"INFO scheduler: job (\S+) wrote (\d+) rows to /srv/export/(\S+)-(\d+)\.csv", m) for m in messages
    ]
    found = [match.groups() for match in jobs if match]
    assert len(found) > 10 and all(a == c and b == d for a, b, c, d in found)


def test_logs_anomalies_keep_what_their_kind_keeps(logs):
    by_kind = {}
    for line in (line for lines in logs["inbox"].values() for line in lines):
        by_kind.setdefault(line["label"], []).append(line["message"])
    for message in by_kind["service"]:
        level, service, text = message.split(" ", 2)
        others = [f"{level} {name}: {text}" for name in WORDS["service"] if f"{name}:" != service]
        assert any(map(NORMAL_LINE.fullmatch, others))
    whole = [line["message"] for lines in logs["training"].values() for line in lines]

    def words(message):
        return tuple(sorted(re.sub(r"2001:db8:\S+|\b[0-9a-f]{12}\b|\d+", "0", message).split()))

    known, firsts = set(map(words, whole)), {message[:12] for message in whole}
    assert all(words(message) in known for message in by_kind["order"])
    assert all(message[:12] in firsts for message in by_kind["truncated"])
    assert {kind for kind, messages in by_kind.items() if any("\ufffd" in m for m in messages)} == {"garbage"}
    assert all(
        sum(ord(c) > 126 or c in "\\|~^#@" for c in message) > len(message) / 4 for message in by_kind["garbage"]
    )


def test_logs_are_neither_trivial_nor_hopeless_for_a_simple_baseline(logs):
    """Word pairs miss most lines of the wrong service; four words in a row find nearly all."""
    from collections import Counter

    from sklearn.metrics import roc_auc_score

    def words(message, n):
        message = re.sub(r"0x[0-9a-f]+|\b[0-9a-f]{12}\b", "ID", message)
        return ["^"] * (n - 1) + re.findall(r"\w+|\S", re.sub(r"\d+", "0", message)) + ["$"]

    def auroc(n):
        rows = [words(line["message"], n) for lines in logs["training"].values() for line in lines]
        whole, before = Counter(), Counter()
        for row in rows:
            for i in range(n - 1, len(row)):
                whole[tuple(row[i - n + 1 : i + 1])] += 1
                before[tuple(row[i - n + 1 : i])] += 1

        def surprise(row):
            grams = [tuple(row[i - n + 1 : i + 1]) for i in range(n - 1, len(row))]
            return -sum(np.log((whole[gram] + 0.01) / (before[gram[:-1]] + 2)) for gram in grams)

        tested = [line for lines in logs["inbox"].values() for line in lines]
        scores = [surprise(words(line["message"], n)) for line in tested]
        return roc_auc_score([line["label"] != "-" for line in tested], scores)

    assert auroc(2) < 0.95 < 0.98 < auroc(4)
