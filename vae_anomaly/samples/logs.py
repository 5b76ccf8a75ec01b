"""Sample data as text: the log of a web shop, synthetic.

A line is ``<category> <time> <message>``. The category is ``-`` for a normal line and else the kind of anomaly, as the
public logs of some supercomputers carry it; it is for evaluation only.

References
----------
A. J. Oliner, J. Stearley: What supercomputers say, DSN 2007 (a log whose first field is the alert category or ``-``).
M. Du et al.: DeepLog, CCS 2017 (a log message as a template and its parameters).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vae_anomaly.samples.files import batch_day, random_stream, write


class Template(NamedTuple):
    """A message: how often it is written, by whom, and its text with parameters in braces."""

    weight: float
    level: str
    service: str
    text: str


TEMPLATES = (
    Template(8.0, "INFO", "login", "user {user} signed in from {ip}"),
    Template(2.0, "INFO", "login", "user {user} signed in from {ip6}"),
    Template(5.0, "INFO", "login", "user {user} signed out after {count} minutes"),
    Template(2.0, "WARN", "login", "wrong password for user {user} from {ip}, attempt {few} of 5"),
    Template(1.0, "INFO", "login", "sent a reset link to user {user}"),
    Template(2.0, "INFO", "login", "session {hex} expired after 30 minutes"),
    Template(9.0, "INFO", "cart", "added {few} x {product} to cart {hex}"),
    Template(3.0, "INFO", "cart", "removed {product} from cart {hex}"),
    Template(5.0, "INFO", "cart", "cart {hex} has {few} items for {amount} {currency}"),
    Template(2.0, "INFO", "cart", "applied voucher {voucher} to cart {hex}"),
    Template(1.0, "WARN", "cart", "{product} is out of stock in {city}, next delivery in {few} days"),
    Template(8.0, "INFO", "payment", "authorised payment {hex} for order {order} in {ms} ms"),
    Template(4.0, "INFO", "payment", "captured {amount} {currency} by {method} for order {order}"),
    Template(1.0, "INFO", "payment", "refunded {amount} {currency} for order {order}"),
    Template(1.5, "WARN", "payment", "{method} declined payment {hex}: {reason}"),
    Template(1.5, "INFO", "payment", "sent receipt of order {order} to user {user}"),
    Template(7.0, "INFO", "database", "query on {table} took {ms} ms"),
    Template(2.0, "WARN", "database", "slow query on {table} took {slow} ms"),
    Template(3.0, "INFO", "database", "committed transaction {number} on {table}"),
    Template(1.0, "INFO", "database", "opened connection {few} of 32 to {ip}"),
    Template(0.6, "INFO", "database", "vacuumed {table}: {number} rows in {slow} ms"),
    Template(7.0, "INFO", "cache", "hit {region} {hex}"),
    Template(4.0, "INFO", "cache", "miss {region} {hex}, loaded in {ms} ms"),
    Template(1.5, "INFO", "cache", "evicted {number} entries of {region}"),
    Template(0.8, "INFO", "cache", "flushed {region} to /var/cache/shop/{region}.db"),
    Template(3.0, "INFO", "scheduler", "started job {job} as process {number}"),
    Template(3.0, "INFO", "scheduler", "job {job} finished in {ms} ms"),
    Template(1.0, "INFO", "scheduler", "job {job} wrote {number} rows to /srv/export/{job}-{number}.csv"),
    Template(0.7, "WARN", "scheduler", "job {job} waits for {table}"),
    Template(0.5, "INFO", "scheduler", "rotated /var/log/shop/{service}.log at {count} MB"),
    Template(8.0, "INFO", "web", "GET /products/{product} 200 in {ms} ms from {ip}"),
    Template(3.0, "INFO", "web", "GET /images/{product}-{few}.jpg 304 from {ip}"),
    Template(3.0, "INFO", "web", "POST /cart/{hex}/items 201 in {ms} ms from {ip}"),
    Template(1.0, "WARN", "web", "GET /products/{number} 404 from {ip}"),
)
WORDS = {
    "user": ["anna", "bruno", "chiara", "dario", "elif", "farid", "greta", "hugo", "ines", "jonas", "katia", "luca",
             "mara", "nils", "olga", "pavel", "rosa"],
    "product": ["lamp", "kettle", "chair", "desk", "rug", "mirror", "clock", "vase", "shelf", "basket", "blanket",
             "candle", "teapot", "stool"],
    "method": ["visa", "mastercard", "paypal", "invoice", "transfer"],
    "currency": ["EUR", "EUR", "EUR", "CHF", "GBP"],
    "voucher": ["SPRING10", "WELCOME5", "FREESHIP", "VIP20"],
    "city": ["Berlin", "Lyon", "Porto", "Turin", "Vienna"],
    "reason": ["insufficient funds", "card expired", "limit reached", "no answer from the bank"],
    "table": ["orders", "order_items", "customers", "stock", "sessions", "invoices", "prices"],
    "region": ["session", "price", "stock", "product", "search"],
    "job": ["backup", "newsletter", "reindex", "invoices", "stock-sync", "cleanup"],
    "service": ["login", "cart", "payment", "database", "cache", "scheduler", "web"],
}  # fmt: skip
UNSEEN = {  # what no normal line says
    "disk": (
        "ERROR database: write to /var/lib/shop/{table}.db failed: no space left on device",
        "ERROR kernel: I/O error on device sda, sector {number}",
        "ERROR database: checksum mismatch on page {number} of {table}, expected 0x{hex}",
    ),
    "crash": (
        "ERROR kernel: payment[{order}]: segfault at 0 ip 0x{hex} error 4 in libcrypto.so.3",
        "    at shop.payment.Gateway.authorise(Gateway.java:{count})",
        "FATAL cart: out of memory: java.lang.OutOfMemoryError: Java heap space",
    ),
    "attack": (
        "INFO web: GET /products/lamp%27%20OR%201=1%20UNION%20SELECT%20password%20FROM%20customers-- 200 from {ip}",
        "WARN web: GET /images/../../../../etc/passwd 404 from {ip}",
        "WARN login: wrong password for user admin'-- from {ip}, attempt {order} of 5",
    ),
}
KINDS = ("disk", "crash", "attack", "service", "order", "truncated", "garbage")
LOGS_MONITOR = r"""# Synthetic log of a web shop: alerts on lines that no normal line is like.
name: logs

source:
  training: training                # normal lines of two days
  inbox: inbox                      # one file a day
  lines: {pattern: '^(?P<label>\S+) (?P<time>\S+) (?P<message>.*)$'}   # the named groups are the columns

label: {column: label, anomalous: [disk, crash, attack, service, order, truncated, garbage]}   # "-" is a normal line

columns:
  message: {kind: text, max_tokens: 32}   # numbers, addresses, ids and paths count as one word each

ignore: [time]

model: {kind: lstm}
threshold: {method: conformal, alpha: 0.01}   # one false alarm in a hundred normal lines
output: output
sinks: [{kind: file}]               # alerts go to output/alerts; add {kind: log} for one line each in the log
seed: 0
"""
FIRST_LOG_DAY = date(2026, 1, 3)


def write_logs(
    folder: Path, *, seed: int = 0, training_lines: int = 2000, batch_lines: int = 600, each: int = 3
) -> None:
    r"""Write a synthetic log: two days of ``training_lines`` normal lines, three labelled days, ``monitor.yml``.

    A normal line is a template of ``TEMPLATES``, drawn by weight, with its parameters drawn independently; the gaps
    between the times are exponential and fill the day. Each day in the inbox has ``each`` lines of each kind:

    * ``disk``, ``crash``, ``attack``: a message that no template gives;
    * ``service``: a normal message under the level and name of another service;
    * ``order``: the words of a normal message in a random order;
    * ``truncated``: a normal line that ends after its first third to two thirds;
    * ``garbage``: a normal message of which half of the bytes were replaced, mostly by what is no UTF-8.
    """
    for i in range(2):
        day = date.fromordinal(FIRST_LOG_DAY.toordinal() + i)
        write(folder / "training" / f"{day}.log", _log(random_stream(seed, 3, i), day, training_lines, 0))
    for i in range(3):
        content = _log(random_stream(seed, 4, i), batch_day(i), batch_lines, each)
        write(folder / "inbox" / f"{batch_day(i)}.log", content)
    write(folder / "monitor.yml", LOGS_MONITOR.encode())


def _log(rng: np.random.RandomState, day: date, lines: int, each: int) -> bytes:
    kinds = np.array([*(kind for kind in KINDS for _ in range(each)), *["-"] * (lines - each * len(KINDS))])
    gaps = rng.exponential(size=lines + 1)
    millis = (86_400_000 * np.cumsum(gaps)[:-1] / gaps.sum()).astype(np.int64)
    times = np.datetime_as_string(np.datetime64(day, "ms") + millis.astype("timedelta64[ms]"))
    kind_of = rng.permutation(kinds)
    return "".join(f"{k} {t}Z {_message(rng, k)}\n" for k, t in zip(kind_of, times, strict=True)).encode("latin-1")


def _message(rng: np.random.RandomState, kind: str) -> str:
    if kind in UNSEEN:
        return _filled(rng, UNSEEN[kind][rng.randint(len(UNSEEN[kind]))])
    weights = np.array([t.weight for t in TEMPLATES])
    template = TEMPLATES[rng.choice(len(TEMPLATES), p=weights / weights.sum())]
    message = _filled(rng, f"{template.level} {template.service}: {template.text}")
    return SPOILED[kind](rng, message) if kind in SPOILED else message


def _filled(rng: np.random.RandomState, text: str) -> str:
    """The text with its parameters drawn; a name that stands in it twice has one value."""
    values: dict[str, str] = {}
    for name in re.findall(r"\{(\w+)\}", text):
        if name not in values:
            words = WORDS.get(name)
            values[name] = words[rng.randint(len(words))] if words else NUMBERS[name](rng)
    return text.format_map(values)


def _hexadecimal(rng: np.random.RandomState, digits: int) -> str:
    return "".join("0123456789abcdef"[d] for d in rng.randint(16, size=digits))


NUMBERS: Mapping[str, Callable[[np.random.RandomState], str]] = {
    "few": lambda rng: str(rng.randint(1, 6)),
    "count": lambda rng: str(rng.randint(2, 90)),
    "number": lambda rng: str(rng.randint(100, 60_000)),
    "order": lambda rng: str(rng.randint(10_000, 100_000)),
    "ms": lambda rng: str(1 + int(np.exp(3.0 + 0.8 * rng.standard_normal()))),
    "slow": lambda rng: str(1000 + int(np.exp(6.5 + 0.7 * rng.standard_normal()))),
    "amount": lambda rng: f"{rng.randint(500, 40_000) / 100:.2f}",
    "hex": lambda rng: _hexadecimal(rng, 12),
    "ip": lambda rng: ".".join(str(part) for part in (10, *rng.randint(256, size=3))),
    "ip6": lambda rng: f"2001:db8::{_hexadecimal(rng, 4)}:{_hexadecimal(rng, 4)}",
}


# A kind of anomaly that spoils a normal message: (random state, message) -> message.


def _other_service(rng: np.random.RandomState, message: str) -> str:
    level, service, text = message.split(" ", 2)
    others = [name for name in WORDS["service"] if f"{name}:" != service]
    return f"{level} {others[rng.randint(len(others))]}: {text}"


def _other_order(rng: np.random.RandomState, message: str) -> str:
    words = message.split()
    while (mixed := [words[i] for i in rng.permutation(len(words))]) == words:
        pass
    return " ".join(mixed)


def _cut(rng: np.random.RandomState, message: str) -> str:
    return message[: round(len(message) * rng.uniform(1 / 3, 2 / 3))].rstrip()


def _garbled(rng: np.random.RandomState, message: str) -> str:
    signs = "¤§¶ÃÂâ¢þÿ\\|~^#@"  # the first nine are bytes that hardly ever are UTF-8
    return "".join(signs[rng.randint(len(signs))] if rng.random_sample() < 0.5 else c for c in message)


SPOILED: Mapping[str, Callable[[np.random.RandomState, str], str]] = {
    "service": _other_service,
    "order": _other_order,
    "truncated": _cut,
    "garbage": _garbled,
}
