"""A first ``monitor.yml``, inferred from the first records of a file or folder, with a comment on each choice.

Every choice is a guess to be checked, so every choice says what it was made from. No value of a record is written, with
the exception of the values of a label column.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from vae_anomaly.config import MONITOR_FILE, SplitConfig, parse_monitor
from vae_anomaly.errors import ConfigError, suggestion
from vae_anomaly.schema import NA, is_text

ROWS = 50_000
"""Most records that are read: enough to support the smallest alpha."""

MAX_CATEGORIES, CATEGORY_SHARE, PARSED_SHARE = 64, 0.05, 0.95
ALPHAS = (0.001, 0.005, 0.01, 0.05, 0.1)
CALIBRATION_PER_ALPHA = 15  # calibration records that are expected beyond the threshold
EXACT_INTEGER = 2**53

FLAGS = ({"true", "false"}, {"yes", "no"}, {"t", "f"}, {"y", "n"})
LABEL_NAMES = {
    *("label", "labels", "target", "class", "diagnosis", "outcome", "y", "ground_truth"),
    *("is_anomaly", "anomaly", "anomalous", "is_outlier", "outlier", "is_fraud", "fraud"),
}
NORMAL_WORDS = {
    *("0", "false", "f", "no", "n", "none", "normal", "benign"),
    *("ok", "good", "healthy", "inlier", "legit", "legitimate", "negative"),
}
ANOMALY_WORDS = {
    *("1", "true", "t", "yes", "y", "anomaly", "anomalous", "outlier", "fraud"),
    *("malignant", "attack", "abnormal", "bad", "fail", "faulty"),
}
ID_NAME = r"(?i:(^|[\W_])(id|uuid|guid)$)|[a-z](Id|ID)$"
NUMBER = r"^[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?$"
LEADING_ZERO = r"^[-+]?0[0-9]+$"
ISO_TIME = (
    r"^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
    r"([T ]([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9](\.[0-9]+)?)?( ?(Z|UTC|[-+][0-9]{2}(:?[0-9]{2})?))?)?$"
)
DATE_OR_OFFSET = r"^.{10}$|:.*(Z|UTC|[-+][0-9]{2}(:?[0-9]{2})?)$"
PLAIN = r"[A-Za-z][A-Za-z0-9_./-]*|\."
YAML_WORDS = {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}


@dataclass(frozen=True)
class Choice:
    """What one column is taken for: its ``kind``, or None where it is ignored, and why."""

    name: str
    kind: str | None
    why: str
    timezone: str | None = None
    is_id: bool = False


@dataclass(frozen=True)
class Sample:
    """The first records of the ``files`` in ``path``; ``complete`` when there are no more."""

    path: Path
    table: pa.Table
    files: Sequence[Path]
    complete: bool


def infer_monitor(path: Path, *, name: str | None = None, folder: Path | None = None) -> str:
    """The text of a ``monitor.yml`` for the records in ``path``.

    Parameters
    ----------
    path : a Parquet, CSV or JSON-lines file, a folder of them, or a folder with ``training/`` and perhaps ``inbox/``.
    name : the monitor's name; without it, that of the file or folder.
    folder : where the text is to be kept, for its paths are relative to it; without it, ``path`` or a file's folder.

    Raises
    ------
    ConfigError
        There is no such path, no readable file, no record, or no column that a model could learn from.
    """
    path = Path(os.path.abspath(path))
    if not path.exists():
        raise ConfigError(f"{path} must be a file or folder of records. There is none.{_near(path)}")
    home = path if path.is_dir() else path.parent
    base = Path(os.path.abspath(folder)) if folder else home
    ready = (path / "training").is_dir()
    training, inbox = (path / "training", path / "inbox") if ready else (path, base / "inbox")
    sample = _sample(training)
    lines = _header(sample, name or _monitor_name(path))
    lines += _source(sample, _relative(training, base), _relative(inbox, base))
    lines += _columns(sample, inbox)
    text = "\n".join([*lines, ""])
    parse_monitor(text, base / MONITOR_FILE)  # what we propose must load
    return text


def write_monitor(text: str, target: Path) -> Path:
    """Create the file ``target``, or ``monitor.yml`` in the folder ``target``, with ``text``; never overwrites.

    Raises
    ------
    ConfigError
        The file is there already, or cannot be created.
    """
    target = target / MONITOR_FILE if target.is_dir() else target
    try:
        with target.open("x", encoding="utf-8", newline="\n") as file:  # x: O_CREAT and O_EXCL
            file.write(text)
    except FileExistsError:
        raise ConfigError(
            f"{target} must not exist yet. It does, and is never overwritten. Move it away first."
        ) from None
    except OSError as error:
        raise ConfigError(f"{target} must be a file that can be created. Got {error.strerror}.") from None
    return target


# ---- reading ----


def _sample(training: Path) -> Sample:
    """The first :data:`ROWS` records of a file or of a folder's files in the order of their names."""
    files = _record_files(training) if training.is_dir() else [training]
    if training.suffix.lower() not in READERS and not training.is_dir():
        raise ConfigError(f"{training} must be a file that ends in {_endings()}. Got {training.suffix!r}.")
    tables: list[pa.Table] = []
    rows = 0
    for file in files:
        tables.append(_read(file, ROWS - rows))
        rows += len(tables[-1])
        if rows >= ROWS:
            break
    if not rows:
        raise ConfigError(f"{training} must hold records. Got 0 of them.")
    try:
        table = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException:  # text in one format, typed in another
        table = _concatenate_as_text(training, tables)
    return Sample(training, table, files, rows < ROWS)


def _record_files(folder: Path) -> list[Path]:
    entries = sorted(f for f in folder.iterdir() if not f.name.startswith((".", "_", "~")))
    files = [f for f in entries if f.suffix.lower() in READERS and f.is_file()]
    if not files:
        what = f"It has {', '.join(repr(f.name) for f in entries[:5])}." if entries else "It is empty."
        raise ConfigError(f"{folder} must hold files that end in {_endings()}. {what}")
    return files


def _read(file: Path, limit: int) -> pa.Table:
    try:
        table = READERS[file.suffix.lower()](file, limit)
    except (pa.ArrowException, csv.Error, UnicodeError, OSError):  # their texts may quote records
        kind = FORMATS[READERS[file.suffix.lower()]]
        raise ConfigError(f"{file} must be {kind}. It cannot be read as such. Repair it or move it away.") from None
    twice = [name for name, count in Counter(table.column_names).items() if count > 1]
    if twice:
        raise ConfigError(f"{file} must name each column once. Got {', '.join(map(repr, twice[:5]))} repeatedly.")
    return table.slice(0, limit)


def _parquet(file: Path, limit: int) -> pa.Table:
    with pq.ParquetFile(file) as parquet:
        batches = parquet.iter_batches(batch_size=min(limit, 10_000))
        return pa.Table.from_batches(_until(batches, limit), parquet.schema_arrow)


def _csv(file: Path, limit: int) -> pa.Table:
    """All cells as text; rows with more or fewer cells than the header are left out."""
    delimiter = _delimiter(file)
    with file.open(encoding="utf-8-sig", newline="") as text:
        names = next(csv.reader(text, delimiter=delimiter), [])
    if not names:
        raise ConfigError(f"{file} must begin with a line of column names. It is empty.")
    if len(set(names)) < len(names):
        return pa.table([pa.array([], pa.string())] * len(names), names=names)
    reader = pyarrow.csv.open_csv(
        file,
        parse_options=pyarrow.csv.ParseOptions(
            delimiter=delimiter, newlines_in_values=True, invalid_row_handler=lambda row: "skip"
        ),
        convert_options=pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string())),
    )
    return pa.Table.from_batches(_until(reader, limit), reader.schema)


def _delimiter(file: Path) -> str:
    """The character of ``, ; tab |`` that stands most often in the first line, outside quotes."""
    with file.open(encoding="utf-8-sig", newline="") as text:
        line = re.sub(r'"[^"]*"', "", text.readline(1_000_000))
    return max(",;\t|", key=line.count)


def _json_lines(file: Path, limit: int) -> pa.Table:
    """One object a line; lines that are none are left out."""
    records: list[dict[str, object]] = []
    with file.open("rb") as lines:
        while len(records) < limit and (line := lines.readline(1 << 24)):
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict):
                records.append(record)
    names = dict.fromkeys(name for record in records for name in record)
    return pa.table({name: _array([record.get(name) for record in records]) for name in names})


def _array(values: list[object]) -> pa.Array:
    """JSON values as one Arrow array; as text where their types are mixed."""
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError, UnicodeError):
        texts = (v if v is None or isinstance(v, str) else json.dumps(v) for v in values)
        return pa.array([t if t is None else t.encode("utf-8", "replace").decode() for t in texts], pa.string())


FORMATS: dict[Callable[[Path, int], pa.Table], str] = {
    _parquet: "a whole Parquet file",
    _csv: "CSV in UTF-8",
    _json_lines: "JSON lines in UTF-8",
}
READERS: dict[str, Callable[[Path, int], pa.Table]] = {
    ".parquet": _parquet,
    ".pq": _parquet,
    ".csv": _csv,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
}


def _until(batches: Iterable[pa.RecordBatch], limit: int) -> Iterator[pa.RecordBatch]:
    rows = 0
    for batch in batches:
        yield batch
        rows += len(batch)
        if rows >= limit:
            return


def _concatenate_as_text(training: Path, tables: Sequence[pa.Table]) -> pa.Table:
    """All rows of ``tables``, the columns whose types differ as text."""
    types: dict[str, set[str]] = {}
    for field in (field for table in tables for field in table.schema):
        types.setdefault(field.name, set()).add(str(field.type))
    mixed = [name for name, found in types.items() if len(found) > 1]
    try:
        texts = [pa.table({n: t[n].cast(pa.string()) if n in mixed else t[n] for n in t.column_names}) for t in tables]
        return pa.concat_tables(texts, promote_options="permissive")
    except pa.ArrowException:
        what = f"Column {mixed[0]!r} is {' and '.join(sorted(types[mixed[0]]))}." if mixed else "They do not."
        raise ConfigError(f"The files of {training} must agree on the types of their columns. {what}") from None


# ---- choosing ----


def _choose(name: str, column: pa.ChunkedArray) -> Choice:
    """What a column is, by its type, its values and, for ids, its name."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _choose(name, column.cast(kind.value_type))
    if pa.types.is_decimal(kind) or pa.types.is_floating(kind):
        column = column.cast(pa.float64())
    elif not (pa.types.is_null(kind) or is_text(kind) or any(test(kind) for test in SUPPORTED)):
        return Choice(name, None, f"{'nested values' if pa.types.is_nested(kind) else kind} cannot be used: ignored")
    return _choose_present(name, column)


def _choose_present(name: str, column: pa.ChunkedArray) -> Choice:
    kind, values = column.type, _present(column)
    missing = _missing(values, column)
    if not len(values):
        return Choice(name, None, "all cells are missing: ignored")
    if pc.count_distinct(values).as_py() == 1:
        return Choice(name, None, f"constant{missing}: ignored")
    if is_text(kind):
        return _choose_text(name, values, column)
    if pa.types.is_boolean(kind):
        return Choice(name, "boolean", f"true and false{missing}")
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return _choose_number(name, values, missing)
    naive = pa.types.is_timestamp(kind) and kind.tz is None
    return _choose_time(name, 1.0 if naive else 0.0, missing)


def _choose_text(name: str, values: pa.ChunkedArray, column: pa.ChunkedArray) -> Choice:
    """Flags, numbers and times written as text, for which the contract takes the words of ``NA`` as missing."""
    trimmed = pc.utf8_trim_whitespace(values)
    words = trimmed.filter(pc.invert(pc.is_in(trimmed, pa.array(NA))))
    missing, enough = _missing(words, column), max(1, PARSED_SHARE * len(words))
    if set(pc.unique(pc.utf8_lower(words)).slice(0, 3).to_pylist()) in FLAGS:
        return Choice(name, "boolean", f"two words for true and false{missing}")
    numbers, times = _matching(words, NUMBER), _matching(words, ISO_TIME)
    if len(numbers) >= enough and not len(_matching(words, LEADING_ZERO)):
        return _choose_number(name, numbers.cast(pa.float64()), missing + _odd(numbers, words, "not numbers"))
    if len(times) >= enough:
        naive = 1 - len(_matching(times, DATE_OR_OFFSET)) / len(times)
        return _choose_time(name, naive, missing + _odd(times, words, "not times"))
    return _choose_words(name, values, _missing(values, column))


def _choose_words(name: str, values: pa.ChunkedArray, missing: str) -> Choice:
    """An id, a category, or free text."""
    distinct = pc.count_distinct(values).as_py()
    spaced = pc.any(pc.match_substring_regex(values, r"\s")).as_py()
    if distinct == len(values) and (re.search(ID_NAME, name) or not spaced):
        return Choice(name, None, f"all different{missing}: looks like an id", is_id=not missing)
    if distinct <= max(CATEGORY_SHARE * len(values), min(MAX_CATEGORIES, len(values) // 2)):
        return Choice(name, "category", f"{distinct:,} text values{missing}")
    return Choice(name, None, f"{distinct:,} different texts{missing}: free text, ignored")


def _choose_number(name: str, values: pa.ChunkedArray, missing: str) -> Choice:
    distinct, span = pc.count_distinct(values).as_py(), pc.min_max(values.filter(pc.is_finite(values))).as_py()
    if span["min"] is None:
        return Choice(name, None, f"no finite number{missing}: ignored")
    if distinct == 1:
        return Choice(name, None, f"constant{missing}: ignored")
    whole = pa.types.is_integer(values.type) or pc.all(pc.equal(pc.floor(values), values)).as_py()
    unique = whole and distinct == len(values)
    if unique and re.search(ID_NAME, name):
        return Choice(name, None, f"all different whole numbers{missing}: looks like an id", is_id=not missing)
    if unique and len(values) >= 20 and span["max"] - span["min"] + 1 == len(values):
        return Choice(name, None, f"consecutive whole numbers{missing}: a row number, ignored")
    if whole and re.search(ID_NAME, name):
        return Choice(
            name, None, f"{distinct:,} whole numbers, named like an id{missing}: its size means nothing, ignored"
        )
    if whole and max(abs(span["max"]), abs(span["min"])) > EXACT_INTEGER:
        return Choice(name, None, f"whole numbers beyond 2^53{missing}: looks like an id, ignored")
    hint = "; kind boolean or category if it is a code" if whole and distinct <= 10 else ""
    return Choice(name, "number", f"{distinct:,} distinct numbers{missing}{hint}")


def _choose_time(name: str, naive: float, missing: str) -> Choice:
    """``naive``: share of the values that have a time of day and no time zone, so that one must be given."""
    if not naive:
        return Choice(name, "timestamp", f"times with their time zone, or dates{missing}")
    some = "no" if naive == 1 else "some have no"
    return Choice(name, "timestamp", f"{some} time zone in the data{missing}: check that UTC is right", timezone="UTC")


SUPPORTED = (pa.types.is_boolean, pa.types.is_integer, pa.types.is_timestamp, pa.types.is_date)


def _present(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Cells that are neither null nor NaN nor empty text."""
    if is_text(values.type):
        values = values.cast(pa.string())
        return values.filter(pc.fill_null(pc.not_equal(values, ""), False))
    nan = {"nan_is_null": True} if pa.types.is_floating(values.type) else {}
    return values.filter(pc.invert(pc.is_null(values, **nan)))


def _matching(values: pa.ChunkedArray, pattern: str) -> pa.ChunkedArray:
    return values.filter(pc.match_substring_regex(values, pattern))


# ---- roles ----


def _columns(sample: Sample, inbox: Path) -> list[str]:
    """The sections from ``record_id`` on."""
    table = sample.table
    label = next((n for n in table.column_names if n.lower() in LABEL_NAMES and _few(table[n])), None)
    choices = [_choose(n, table[n]) for n in table.column_names if n != label]
    lines, anomalous = _label(table[label], label, inbox) if label is not None else ([], [])
    if label is not None and not lines:
        why = "named like a label, but which of its values mean anomaly cannot be told: ignored"
        choices.append(Choice(label, None, why))
    record_id = next((c for c in choices if c.is_id), None)
    used, ignored = ([c for c in choices if c is not record_id and bool(c.kind) == k] for k in (True, False))
    if not used:
        raise ConfigError(f"{sample.path} must hold a column to learn from. {_reasons(ignored)}")
    records = _normal_records(table, label, anomalous)
    return [
        *([f"record_id: {_quoted(record_id.name)}  # {record_id.why}"] if record_id else []),
        *lines,
        "columns:",
        *(_column_line(c) for c in used),
        *(["ignore:"] if ignored else []),
        *(f"  - {_quoted(c.name)}  # {c.why}" for c in ignored),
        _threshold(records),
        'schedule: {cron: "0 * * * *", timezone: UTC}  # for `vae-anomaly serve`: every hour',
        "output: output",
        "sinks: [{kind: log}, {kind: file}]",
        "seed: 0",
    ]


def _few(column: pa.ChunkedArray) -> bool:
    return 1 <= len(_label_counts(column)) <= 20


def _label_counts(column: pa.ChunkedArray) -> Counter[str]:
    """How often each label comes; labels are compared as text."""
    try:
        texts = _present(column.cast(pa.string()))
    except pa.ArrowException:  # nested
        return Counter()
    return Counter({pair["values"]: pair["counts"] for pair in pc.value_counts(texts).to_pylist()})


def _label(column: pa.ChunkedArray, name: str, inbox: Path) -> tuple[list[str], list[str]]:
    """The lines of the section ``label``, none where no value can be told to be anomalous, and the anomalous values."""
    known = _label_counts(column)
    arrived = sum((_label_counts(t[name]) for t in _batches(inbox) if name in t.column_names), Counter())
    new = sorted(set(arrived) - set(known))
    if len(known) == 1 and new and len(new) <= 20:
        anomalous, why = new, "the values in the inbox that the training records do not have"
    else:
        anomalous, why = _anomalous(known), "a guess from the names and counts of the values"
    if not anomalous:
        return [], []
    values = ", ".join(_quoted(v) for v in anomalous)
    lines = [
        "label:  # for evaluation only: records so labelled never train",
        f"  column: {_quoted(name)}",
        f"  anomalous: [{values}]  # {why}: check it",
    ]
    return lines, anomalous


def _anomalous(counts: Counter[str]) -> list[str]:
    values = set(counts)
    if values == {"-1", "1"}:  # scikit-learn's signs
        return ["-1"]
    if len(values) == 1:
        return {"0": ["1"], "false": ["true"]}.get(next(iter(values)), [])
    normal = {v for v in values if v.lower() in NORMAL_WORDS}
    odd = {v for v in values if v.lower() in ANOMALY_WORDS}
    found = values - normal if normal and normal != values else odd or values - {counts.most_common(1)[0][0]}
    # classes of equal rank are no anomalies
    return sorted(found) if 2 * sum(counts[v] for v in found) <= counts.total() else []


def _batches(inbox: Path) -> Iterator[pa.Table]:
    """The first batches that have arrived, as far as they can be read."""
    try:
        files = _record_files(inbox)[:10]
    except (ConfigError, OSError):
        return
    for file in files:
        try:
            yield _read(file, ROWS)
        except ConfigError:
            continue


def _normal_records(table: pa.Table, label: str | None, anomalous: Sequence[str]) -> int:
    """Records that may train: all that are not labelled anomalous."""
    if label is None:
        return len(table)
    counts = _label_counts(table[label])
    return len(table) - sum(counts[value] for value in anomalous)


def _threshold(records: int) -> str:
    """The section ``threshold`` with the smallest alpha that the calibration share of ``records`` supports."""
    import numpy as np

    from vae_anomaly.thresholds import conformal

    n = int(records * SplitConfig().calibration)
    alpha = next((a for a in ALPHAS if n * a >= CALIBRATION_PER_ALPHA), ALPHAS[-1])
    line = f"threshold: {{method: conformal, alpha: {alpha}}}  # target false-alarm rate; "
    try:
        promise = conformal(np.arange(n, dtype=float), alpha=alpha).promise
    except ConfigError:
        return f"{line}{n:,} calibration records are too few for any: give more records"
    few = "" if n * alpha >= CALIBRATION_PER_ALPHA else ", which is wide: give more records"
    low, high = (f"{100 * rate:.2g} %" for rate in (promise.low, promise.high))
    return f"{line}{n:,} calibration records hold it to {low} to {high} (95 % range){few}"


# ---- text ----


def _header(sample: Sample, name: str) -> list[str]:
    rows, which = len(sample.table), "all" if sample.complete else "the first"
    return [
        f"# Inferred from {which} {rows:,} training records by `vae-anomaly init`. Every choice is a guess: check it.",
        f"name: {_quoted(name)}",
    ]


def _source(sample: Sample, training: str, inbox: str) -> list[str]:
    return [
        "source:",
        f"  training: {_quoted(training)}  # {len(sample.files):,} {'file' if len(sample.files) == 1 else 'files'}",
        f"  inbox: {_quoted(inbox)}  # batches to be scored arrive here; it is never written to",
        *_csv_line([f for f in sample.files if f.suffix.lower() == ".csv"]),
    ]


def _csv_line(files: Sequence[Path]) -> list[str]:
    if not files:
        return []
    complete = all(_ends_with_newline(file) for file in files)
    note = "" if complete else "  # a training file ends without one: a file that was cut will go unnoticed"
    delimiter, newline = _escaped(_delimiter(files[0])), str(complete).lower()
    return [f"  csv: {{delimiter: {delimiter}, encoding: utf-8, require_final_newline: {newline}}}{note}"]


def _ends_with_newline(file: Path) -> bool:
    with file.open("rb") as content:
        content.seek(max(0, file.stat().st_size - 1))
        return content.read(1) == b"\n"


def _column_line(choice: Choice) -> str:
    zone = f", timezone: {choice.timezone}" if choice.timezone else ""
    key, value = _quoted(choice.name), f"{{kind: {choice.kind}{zone}}}  # {choice.why}"
    # YAML takes no key of more than 1024 characters, unless it is marked as one
    return f"  ? {key}\n  : {value}" if len(key.encode()) > 900 else f"  {key}: {value}"


def _quoted(text: str) -> str:
    """``text`` as a YAML scalar that every reader takes for text."""
    plain = re.fullmatch(PLAIN, text) and text.lower() not in YAML_WORDS
    return text if plain else _escaped(text)


def _escaped(text: str) -> str:
    marks = {'"': '\\"', "\\": "\\\\"}
    return '"' + "".join(marks.get(c, c) if c.isprintable() else f"\\U{ord(c):08x}" for c in text) + '"'


def _monitor_name(path: Path) -> str:
    stem = path.name if path.is_dir() else path.stem
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem)[:64].strip("-._") or "monitor"


def _relative(path: Path, base: Path) -> str:
    try:
        return Path(os.path.relpath(path, base)).as_posix()
    except ValueError:  # another drive
        return str(path)


def _missing(present: pa.ChunkedArray, column: pa.ChunkedArray) -> str:
    share = 1 - len(present) / len(column)
    return f", {_percent(share)} missing" if share else ""


def _odd(read: pa.ChunkedArray, words: pa.ChunkedArray, what: str) -> str:
    share = 1 - len(read) / len(words)
    return f", {_percent(share)} {what} (unscorable)" if share else ""


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.001 else "less than 0.1 %"


def _reasons(ignored: Sequence[Choice]) -> str:
    shown = "; ".join(f"{c.name!r}: {c.why}" for c in ignored[:5])
    return f"Got {shown}." if shown else "Got an id or a label only."


def _near(path: Path) -> str:
    if not path.parent.is_dir():
        return f" The folder {path.parent} does not exist either."
    return suggestion(path.name, (f.name for f in path.parent.iterdir()))


def _endings() -> str:
    return ", ".join(READERS)
