"""Sample data as tables: breast cancer (real), payments and cold rooms (synthetic).

References
----------
W. N. Street, W. H. Wolberg, O. L. Mangasarian: Nuclear feature extraction for breast tumor diagnosis, SPIE 1905, 1993.
V. Chandola, A. Banerjee, V. Kumar: Anomaly detection: a survey, ACM Computing Surveys 41(3), 2009 (point, contextual).
S. Han et al.: ADBench: anomaly detection benchmark, NeurIPS 2022 (dependency anomalies).
D. B. Rubin: Inference and missing data, Biometrika 63(3), 1976 (missing at random or by another column).
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from vae_anomaly.samples.files import batch_day, parquet_bytes, random_stream, write

# ---- Wisconsin diagnostic breast cancer ----

BENIGN_TRAINING = 250
MALIGNANT_IN_BATCH = (20, 70, 122)
WDBC_ORIGIN = "Wisconsin diagnostic breast cancer, UCI, doi 10.24432/C5DW2B, CC BY 4.0, as scikit-learn ships it"

BREAST_CANCER_MONITOR = """\
# Wisconsin diagnostic breast cancer: trained on benign records, alerts on records unlike them.
name: breast-cancer

source:
  training: training                # normal (benign) records only
  inbox: inbox                      # one file a day arrives here

record_id: record_id
label: {{column: diagnosis, anomalous: [malignant]}}   # only measures how many were found; never trains

columns:                            # 30 measurements of cell nuclei, none ever missing
{columns}

threshold: {{method: conformal, alpha: 0.05}}   # 5 % false alarms; 250 records support no much smaller rate
output: output
sinks: [{{kind: file}}]               # alerts go to output/alerts; add {{kind: log}} for one line each in the log
seed: 0
"""


def write_breast_cancer(folder: Path, *, seed: int = 0) -> None:
    """Write 569 real records, benign = normal, as training records, three daily batches and two broken files, and
    the ``monitor.yml`` that goes with them.

    A seeded permutation pi of the 357 benign records gives pi[:250] to ``training/benign.parquet`` and splits the
    other 107 evenly over three batches; a permutation of the 212 malignant ones is cut into 20, 70 and 122; the rows
    of each batch are shuffled. ``inbox/2026-01-08.parquet`` is the first three fifths of the third batch's bytes;
    ``inbox/2026-01-09.parquet`` is the second batch with ``mean_radius`` renamed to ``radius_mean``.
    ``record_id`` numbers the records in scikit-learn's order.
    """
    table, rng, inbox = _wdbc(), random_stream(seed), folder / "inbox"
    malignant = np.asarray(table["diagnosis"]) == "malignant"
    train, *benign = np.split(rng.permutation(np.flatnonzero(~malignant)), [BENIGN_TRAINING, 286, 322])
    ill = np.split(rng.permutation(np.flatnonzero(malignant)), np.cumsum(MALIGNANT_IN_BATCH)[:-1])
    batches = [table.take(rng.permutation(np.concatenate(pair))) for pair in zip(benign, ill, strict=True)]
    write(folder / "training" / "benign.parquet", parquet_bytes(table.take(train)))
    for i, batch in enumerate(batches):
        write(inbox / f"{batch_day(i)}.parquet", parquet_bytes(batch))
    whole = parquet_bytes(batches[2])
    write(inbox / f"{batch_day(3)}.parquet", whole[: len(whole) * 3 // 5])
    renamed = ["radius_mean" if name == "mean_radius" else name for name in table.column_names]
    write(inbox / f"{batch_day(4)}.parquet", parquet_bytes(batches[1].rename_columns(renamed)))
    columns = [name for name in table.column_names if name not in ("record_id", "diagnosis")]
    lines = "\n".join(f"  {name + ':':<24} {{kind: number}}" for name in columns)
    write(folder / "monitor.yml", BREAST_CANCER_MONITOR.format(columns=lines).encode())


def _wdbc() -> pa.Table:
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    columns: dict[str, Any] = {"record_id": [f"wdbc-{i + 1:04d}" for i in range(len(data.target))]}
    columns |= {str(name).replace(" ", "_"): x for name, x in zip(data.feature_names, data.data.T, strict=True)}
    columns["diagnosis"] = data.target_names[data.target].tolist()
    return pa.table(columns).replace_schema_metadata({"origin": WDBC_ORIGIN})


# ---- payments ----


class Merchant(NamedTuple):
    """What is usual for a merchant type: amounts in euro, hours in local time."""

    share: float
    median: float
    sigma: float
    opens: int
    closes: int
    fee_rate: float
    mean_items: float
    card_present: float
    tipped: float = 0.0


class Country(NamedTuple):
    """Share of the payments, the one currency in use and hours to UTC in winter."""

    share: float
    currency: str
    utc_offset: int


MERCHANTS = {
    "grocery": Merchant(0.300, 28.0, 0.60, 7, 21, 0.008, 9.0, 0.97),
    "cafe": Merchant(0.200, 6.0, 0.45, 7, 18, 0.014, 2.0, 0.98, 0.4),
    "online": Merchant(0.160, 45.0, 0.90, 0, 24, 0.019, 2.0, 0.00),
    "restaurant": Merchant(0.140, 38.0, 0.55, 11, 23, 0.014, 3.0, 0.95, 0.8),
    "fuel": Merchant(0.100, 52.0, 0.40, 0, 24, 0.006, 1.2, 0.99),
    "travel": Merchant(0.060, 420.0, 0.80, 0, 24, 0.012, 1.5, 0.15),
    "wholesale": Merchant(0.036, 900.0, 0.70, 6, 15, 0.004, 40.0, 0.30),
    "jewellery": Merchant(0.004, 350.0, 0.90, 10, 19, 0.016, 1.1, 0.90),
    "crypto": Merchant(0.0, 120.0, 0.90, 0, 24, 0.030, 1.0, 0.0),  # no normal payment: the unseen category
}
COUNTRIES = {
    "DE": Country(0.450, "EUR", 1),
    "US": Country(0.280, "USD", -5),
    "FR": Country(0.200, "EUR", 1),
    "CA": Country(0.045, "CAD", -5),
    "CH": Country(0.020, "CHF", 1),
    "NA": Country(0.005, "NAD", 2),  # Namibia: text, not "not available"
}
NOTES = ["paid in two parts, see desk", 'guest said "keep it"', "für Büro; Rechnung folgt", "NA", "déjà vu, réglé"]
PAYMENTS_SCHEMA = pa.schema(
    [
        ("payment_id", pa.string()),
        ("created_at", pa.timestamp("us", "UTC")),
        ("merchant_type", pa.string()),
        ("country", pa.string()),
        ("currency", pa.string()),
        ("amount", pa.float64()),
        ("items", pa.int64()),
        ("fee", pa.float64()),
        ("tip", pa.float64()),
        ("discount_rate", pa.float64()),
        ("account_age_days", pa.int64()),
        ("card_present", pa.bool_()),
        ("contactless", pa.bool_()),
        ("note", pa.string()),
        ("label", pa.string()),
    ],
    metadata={"origin": "synthetic: made by vae_anomaly.samples, no real payment"},
)
ANOMALY_RATES = (0.02, 0.025, 0.03)

Columns = dict[str, np.ndarray]


PAYMENTS_MONITOR = """\
# Synthetic card payments: every kind of column, missing cells, three file formats.
name: payments

source:
  training: training                # normal payments, one file a month
  inbox: inbox                      # one file a day: Parquet, CSV or JSON lines
  csv: {delimiter: ",", encoding: utf-8, require_final_newline: true}   # no final newline: the file was cut

record_id: payment_id               # text: the leading zeros stay
label: {column: label, anomalous: [point, contextual, dependency]}      # for evaluation only; never trains

columns:
  created_at: {kind: timestamp}     # UTC in Parquet, text with an offset elsewhere: both say their zone
  merchant_type: {kind: category}
  country: {kind: category}         # "NA" is Namibia; an empty cell is missing
  currency: {kind: category}
  amount: {kind: number, scale: log}   # heavy-tailed, in euro whatever the currency of the card
  items: {kind: number, scale: log}    # a count
  fee: {kind: number, scale: log}      # follows from amount and merchant_type: their ratio matters
  tip: {kind: number, scale: log}      # only where tips are usual
  discount_rate: {kind: number}     # missing in 93 % of the payments
  account_age_days: {kind: number}
  card_present: {kind: boolean}
  contactless: {kind: boolean}      # missing when no card was present

ignore: [note]                      # free text: known, and not used

score: {kind: negative_elbo}         # what breaks here are relations between columns: the likelihood sees them
training: {input_noise: 0.1}         # and sees them sharper than from very noisy payments
threshold: {method: conformal, alpha: 0.01}   # one false alarm in a hundred normal payments
output: output
seed: 0
"""


def write_payments(
    folder: Path, *, seed: int = 0, training_records: int = 6000, batch_records: int = 1200, batches: int = 3
) -> None:
    """Write synthetic card payments: two files of normals, labelled batches in three formats, ``monitor.yml``.

    Normal payments are drawn down this chain (m merchant type, k country, U uniform, N standard normal):

    * m ~ Categorical(share), k ~ Categorical(share), currency = currency(k);
    * local hour = opens(m) + (closes(m) - opens(m)) Beta(2.2, 2), ``created_at`` = day + hour - utc_offset(k);
    * amount = median(m) exp(T + sigma(m) (1 + T / 2) N), T ~ Bernoulli(0.05): a lognormal mixture with a heavy tail;
    * items = 1 + Poisson((mean_items(m) - 1) clip((amount / median(m))^0.7, 0.2, 5));
    * fee = 0.10 + fee_rate(m) amount e, e = exp(0.03 N);
    * card_present ~ Bernoulli(card_present(m)); contactless ~ Bernoulli(0.9 if amount < 50 else 0.2);
    * tip = amount U(0.05, 0.2); discount_rate in {0.05, 0.1, 0.2}; account_age_days ~ Exponential(900).

    Missing: ``contactless`` without a card present and ``tip`` with probability 1 - tipped(m) (by another column),
    ``account_age_days`` 4 % and ``country`` 1 % (at random), ``discount_rate`` 93 % and ``note`` 97 %.

    An anomaly forces one node of the chain; what lies below it follows as usual. ``point``: amount in
    [2e5, 2e6], an impossible ``items``, or a merchant type never seen. ``contextual``: an amount of another merchant
    type, or an hour when the merchant is closed. ``dependency``: e in [1/8, 1/4] or [4, 8], or a currency of another
    country. 2, 2.5 and 3 % of the batches in turn, the three kinds in equal parts.

    The batches are in turn Parquet (UTC instants), CSV (ISO text with the local offset) and JSON lines (ISO, ``Z``).
    """
    last = 0
    for part, month in enumerate((date(2025, 11, 3), date(2025, 12, 1))):
        n = (training_records + part) // 2
        table = _table(_normal(random_stream(seed, 0, part), n, month, days=28), after=last)
        write(folder / "training" / f"{month:%Y-%m}.parquet", _as_parquet(table))
        last += n
    for i in range(batches):
        suffix, encode = list(ENCODERS.items())[i % len(ENCODERS)]
        anomalous = round(batch_records * ANOMALY_RATES[i % len(ANOMALY_RATES)])
        columns = _batch(random_stream(seed, 1, i), batch_records - anomalous, anomalous, batch_day(i))
        write(folder / "inbox" / f"{batch_day(i)}.{suffix}", encode(_table(columns, after=last)))
        last += batch_records
    write(folder / "monitor.yml", PAYMENTS_MONITOR.encode())


def _normal(
    rng: np.random.RandomState,
    n: int,
    first_day: date,
    *,
    days: int = 1,
    forced: Mapping[str, np.ndarray] | None = None,
) -> Columns:
    """n payments of the chain, with the nodes in ``forced`` held at the given values; see :func:`write_payments`."""
    do = forced or {}
    merchant = do.get("merchant_type", _pick(rng, MERCHANTS, n))
    country = do.get("country", _pick(rng, COUNTRIES, n))
    m, k = _of(MERCHANTS, merchant), _of(COUNTRIES, country)
    hour = do.get("hour", m["opens"] + (m["closes"] - m["opens"]) * rng.beta(2.2, 2.0, n))
    seconds = 86400 * rng.randint(days, size=n) + (3600 * (hour - k["utc_offset"])).astype(np.int64)
    amount = do.get("amount", _amount(rng, merchant)).round(2).clip(0.5)
    typical = (m["mean_items"] - 1) * ((amount / m["median"]) ** 0.7).clip(0.2, 5.0)
    present = rng.random_sample(n) < m["card_present"]
    tap = rng.random_sample(n) < np.where(amount < 50, 0.9, 0.2)
    return {
        "created_at": np.datetime64(first_day, "us") + seconds.astype("timedelta64[s]"),
        "merchant_type": merchant,
        "country": _missing(country, rng.random_sample(n) < (0.0 if "country" in do else 0.01)),
        "currency": do.get("currency", k["currency"]),
        "amount": amount,
        "items": do.get("items", 1 + rng.poisson(typical)),
        "fee": (0.10 + m["fee_rate"] * amount * do.get("fee_factor", np.exp(0.03 * rng.standard_normal(n)))).round(4),
        "tip": _missing((amount * rng.uniform(0.05, 0.2, n)).round(2), rng.random_sample(n) >= m["tipped"]),
        "discount_rate": _missing(rng.choice([0.05, 0.1, 0.2], n), rng.random_sample(n) < 0.93),
        "account_age_days": _missing(rng.exponential(900.0, n).astype(np.int64), rng.random_sample(n) < 0.04),
        "card_present": present,
        "contactless": _missing(tap, ~present),
        "note": _missing(rng.choice(NOTES, n), rng.random_sample(n) < 0.97),
        "label": np.full(n, "normal"),
        "utc_offset": k["utc_offset"],
    }


# Forced nodes of each kind of anomaly: (random state, count) -> values of the nodes.

Force = Callable[[np.random.RandomState, int], Columns]


def _extreme_amount(rng: np.random.RandomState, n: int) -> Columns:
    return {"amount": np.exp(rng.uniform(np.log(2e5), np.log(2e6), n))}


def _impossible_items(rng: np.random.RandomState, n: int) -> Columns:
    return {"items": rng.choice([-40, -12, 999, 9999], n)}


def _unseen_merchant(rng: np.random.RandomState, n: int) -> Columns:
    return {"merchant_type": np.full(n, "crypto")}


def _foreign_amount(rng: np.random.RandomState, n: int) -> Columns:
    small, large = rng.choice(["cafe", "fuel"], n), rng.choice(["travel", "wholesale"], n)
    swap = rng.random_sample(n) < 0.5
    return {
        "merchant_type": np.where(swap, large, small),
        "amount": _amount(rng, np.where(swap, "cafe", large)),
    }


def _closed_hour(rng: np.random.RandomState, n: int) -> Columns:
    merchant = rng.choice(["grocery", "cafe", "restaurant", "wholesale"], n)
    m = _of(MERCHANTS, merchant)
    closed = 24 - (m["closes"] - m["opens"])
    return {"merchant_type": merchant, "hour": (m["closes"] + closed * rng.uniform(0.3, 0.7, n)) % 24}


def _broken_fee(rng: np.random.RandomState, n: int) -> Columns:
    factor = np.exp(rng.choice([-1.0, 1.0], n) * rng.uniform(np.log(4), np.log(8), n))
    return {"merchant_type": rng.choice(["grocery", "restaurant", "fuel", "online"], n), "fee_factor": factor}


def _wrong_currency(rng: np.random.RandomState, n: int) -> Columns:
    country = rng.choice(["DE", "FR", "US"], n)
    return {"country": country, "currency": np.where(country == "US", "EUR", "USD")}


ANOMALIES: dict[str, Sequence[Force]] = {
    "point": (_extreme_amount, _impossible_items, _unseen_merchant),
    "contextual": (_foreign_amount, _closed_hour),
    "dependency": (_broken_fee, _wrong_currency),
}


def _batch(rng: np.random.RandomState, normal: int, anomalous: int, day: date) -> Columns:
    parts = [_normal(rng, normal, day)]
    for (kind, forces), n in zip(ANOMALIES.items(), _shares(anomalous, len(ANOMALIES)), strict=True):
        for force, count in zip(forces, _shares(n, len(forces)), strict=True):
            part = _normal(rng, count, day, forced=force(rng, count))
            parts.append(part | {"label": np.full(count, kind)})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def payments_of(rng: np.random.RandomState, day: date, normal: int, anomalous: int, *, after: int) -> pa.Table:
    """The payments of a day in order of time, numbered from ``after`` + 1; anomalies of all kinds in equal parts."""
    return _table(_batch(rng, normal, anomalous, day), after=after).drop_columns("utc_offset")


def _shares(total: int, parts: int) -> list[int]:
    return [(total + parts - 1 - i) // parts for i in range(parts)]


def _pick(rng: np.random.RandomState, table: Mapping[str, Merchant | Country], n: int) -> np.ndarray:
    return rng.choice(list(table), n, p=[entry.share for entry in table.values()])


def _of(table: Mapping[str, Any], names: np.ndarray) -> Columns:
    """The properties of each name, as one array for each field of the table's entries."""
    rows = [table[name] for name in names]
    fields = next(iter(table.values()))._fields
    return {field: np.array([getattr(row, field) for row in rows]) for field in fields}


def _amount(rng: np.random.RandomState, merchant: np.ndarray) -> np.ndarray:
    m, tail = _of(MERCHANTS, merchant), rng.random_sample(len(merchant)) < 0.05
    return m["median"] * np.exp(tail + m["sigma"] * (1 + tail / 2) * rng.standard_normal(len(merchant)))


def _missing(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    out = values.astype(object)
    out[where] = None
    return out


# ---- encoding: the rows are in order of time, the ids in order of the rows ----


def _table(columns: Columns, *, after: int) -> pa.Table:
    """The payments in order of time, numbered from ``after`` + 1, with the column ``utc_offset`` at the end."""
    order = np.argsort(columns["created_at"], kind="stable")
    ids = np.array([f"{after + 1 + i:08d}" for i in range(len(order))])
    columns = {"payment_id": ids} | {name: values[order] for name, values in columns.items()}
    schema = PAYMENTS_SCHEMA.append(pa.field("utc_offset", pa.int64()))
    return pa.table([pa.array(columns[f.name]).cast(f.type) for f in schema], schema=schema)


def _as_parquet(table: pa.Table) -> bytes:
    return parquet_bytes(table.drop_columns("utc_offset"))


def _as_csv(table: pa.Table) -> bytes:
    rows = table.to_pylist()
    for row in rows:
        zone = timezone(timedelta(hours=row["utc_offset"]))
        row["created_at"] = row["created_at"].astimezone(zone).isoformat()
    return _csv(PAYMENTS_SCHEMA.names, rows)


def _csv(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        writer.writerow([str(v).lower() if isinstance(v, bool) else v for v in map(row.get, names)])
    return out.getvalue().encode()


def _as_jsonl(table: pa.Table) -> bytes:
    rows = table.drop_columns("utc_offset").to_pylist()
    lines = [json.dumps(row | {"created_at": _utc_text(row["created_at"])}, ensure_ascii=False) for row in rows]
    return "".join(line + "\n" for line in lines).encode()


def _utc_text(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


ENCODERS: dict[str, Callable[[pa.Table], bytes]] = {"parquet": _as_parquet, "csv": _as_csv, "jsonl": _as_jsonl}


# ---- cold rooms: what is normal depends on the site ----


class Site(NamedTuple):
    """What is usual in a cold room: degrees Celsius, relative humidity in per cent, kilowatts."""

    temperature: float
    humidity: float
    power: float


SITES = {
    "Bergen": Site(-22.0, 48.0, 34.0),
    "Bremen": Site(-22.0, 64.0, 22.0),
    "Gdansk": Site(-17.0, 55.0, 28.0),
    "Lyon": Site(-3.0, 68.0, 17.0),
    "Malmo": Site(-3.0, 84.0, 26.0),
    "Porto": Site(4.0, 89.0, 11.0),
    "Turin": Site(4.0, 74.0, 20.0),
    "Vienna": Site(11.0, 60.0, 9.0),
}
REGIONS_SCHEMA = pa.schema(
    [
        ("reading_id", pa.string()),
        ("measured_at", pa.timestamp("us", "UTC")),
        ("site", pa.string()),
        ("hour", pa.float64()),
        ("temperature", pa.float64()),
        ("humidity", pa.float64()),
        ("power", pa.float64()),
        ("label", pa.string()),
    ],
    metadata={"origin": "synthetic: made by vae_anomaly.samples, no real cold room"},
)
FIRST_REGIONS_DAY = date(2025, 12, 29)
READINGS_A_DAY = 96  # of each site: every quarter of an hour
REGIONS_MONITOR = """\
# Synthetic cold rooms at eight sites: a reading is judged by what is usual at its site and hour.
name: regions

source:
  training: training                # normal readings of four days
  inbox: inbox                      # one file a day: Parquet or CSV

record_id: reading_id               # text: the leading zeros stay
label: {column: label, anomalous: [foreign]}   # for evaluation only; never trains

columns:
  site: {kind: category, context: true}   # given, not judged: the model learns p(values | site, hour)
  hour: {kind: number, context: true}     # of the day in UTC, 0 to 23.75
  temperature: {kind: number}
  humidity: {kind: number}
  power: {kind: number}

ignore: [measured_at]               # the model generalises to other days; the hour is in a column of its own

model: {kind: conditional}
score: {kind: negative_elbo}        # how unlikely the values are, given site and hour
threshold: {method: conformal, alpha: 0.02}   # two false alarms in a hundred normal readings
output: output
sinks: [{kind: file}]               # alerts go to output/alerts; add {kind: log} for one line each in the log
seed: 0
"""


def write_regions(folder: Path, *, seed: int = 0) -> None:
    """Write synthetic readings of eight cold rooms: one training file of normals, two labelled days, ``monitor.yml``.

    Every quarter of an hour each site s gives one reading; with d(h) = sin(2 pi (h - 9) / 24) the load of the day,
    which is 0 at nine o'clock and greatest at three in the afternoon, and independent standard normal e1, e2, e3:

    * temperature = t(s) + 0.6 d(h) + 1.0 e1;
    * humidity = u(s) + 4.5 e2;
    * power = w(s) + 2.5 d(h) + 1.5 e1 + 1.8 e3: a warmer room needs more.

    An anomaly, labelled ``foreign``, states site s and has the values of another site at the same hour: each value,
    and all of them together, are ordinary elsewhere. 4 % of the 768 readings of each day in the inbox.
    """
    written = 0
    for part, (path, start, days, foreign) in enumerate(
        [
            ("training/2025-12.parquet", FIRST_REGIONS_DAY, 4, 0.0),
            (f"inbox/{batch_day(0)}.parquet", batch_day(0), 1, 0.04),
            (f"inbox/{batch_day(1)}.csv", batch_day(1), 1, 0.04),
        ]
    ):
        table = readings_of(random_stream(seed, 2, part), start, days, foreign, after=written)
        write(folder / path, _readings_csv(table) if path.endswith(".csv") else parquet_bytes(table))
        written += len(table)
    write(folder / "monitor.yml", REGIONS_MONITOR.encode())


def readings_of(rng: np.random.RandomState, start: date, days: int, foreign: float, *, after: int) -> pa.Table:
    """The readings of ``days`` days in order of time, numbered from ``after`` + 1."""
    quarter, site = (a.ravel() for a in np.indices((days * READINGS_A_DAY, len(SITES))))
    wrong = np.zeros(len(site), bool)
    wrong[rng.permutation(len(site))[: round(foreign * len(site))]] = True
    usual = np.where(wrong, (site + rng.randint(1, len(SITES), len(site))) % len(SITES), site)
    s = _of(SITES, np.array(list(SITES))[usual])
    hour = quarter % READINGS_A_DAY / 4
    load, (e1, e2, e3) = np.sin(2 * np.pi * (hour - 9) / 24), rng.standard_normal((3, len(site)))
    columns = {
        "reading_id": [f"{after + 1 + i:06d}" for i in range(len(site))],
        "measured_at": np.datetime64(start, "us") + (15 * quarter).astype("timedelta64[m]"),
        "site": np.array(list(SITES))[site],
        "hour": hour,
        "temperature": (s["temperature"] + 0.6 * load + 1.0 * e1).round(2),
        "humidity": (s["humidity"] + 4.5 * e2).round(1),
        "power": (s["power"] + 2.5 * load + 1.5 * e1 + 1.8 * e3).round(2),
        "label": np.where(wrong, "foreign", "normal"),
    }
    return pa.table([pa.array(columns[f.name]).cast(f.type) for f in REGIONS_SCHEMA], schema=REGIONS_SCHEMA)


def _readings_csv(table: pa.Table) -> bytes:
    rows = [row | {"measured_at": _utc_text(row["measured_at"])} for row in table.to_pylist()]
    return _csv(REGIONS_SCHEMA.names, rows)
