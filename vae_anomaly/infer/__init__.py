"""A first ``monitor.yml``, inferred from the first records of a file or folder, with a comment on each choice.

Records are rows of tables, images or lines. Every choice is a guess to be checked, so every choice says what it was
made from. No value of a record is written, with the exception of the values of a label column.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from vae_anomaly.config import MONITOR_FILE, SplitConfig, parse_monitor
from vae_anomaly.errors import ConfigError, suggestion
from vae_anomaly.infer.columns import Choice, choose, present
from vae_anomaly.infer.labels import label_column, label_counts, label_section
from vae_anomaly.infer.lines import Pattern, choose_prose, cut, line_pattern
from vae_anomaly.infer.pictures import choose_image
from vae_anomaly.infer.reading import ROWS, Sample, delimiter_of, read_batches, read_sample
from vae_anomaly.infer.writing import counted, escaped, quoted

__all__ = ["ROWS", "infer_monitor", "write_monitor"]

ALPHAS = (0.001, 0.005, 0.01, 0.05, 0.1)
CALIBRATION_PER_ALPHA = 15  # calibration records that are expected beyond the threshold


def infer_monitor(path: Path, *, name: str | None = None, folder: Path | None = None) -> str:
    """The text of a ``monitor.yml`` for the records in ``path``.

    Parameters
    ----------
    path : a file of records, images or lines, a folder of them, a folder of image files, or a folder with ``training/``
        and perhaps ``inbox/``.
    name : the monitor's name; without it, that of the file or folder.
    folder : where the text is to be kept, for its paths are relative to it; without it, ``path`` or a file's folder.

    Raises
    ------
    ConfigError
        There is no such path, no readable file, no record, no column that a model could learn from, or records of
        more than one kind; or ``folder`` is the folder of the records, all of which is read.
    """
    path = Path(os.path.abspath(path))
    if not path.exists():
        raise ConfigError(f"{path} must be a file or folder of records. There is none.{_near(path)}")
    home = path if path.is_dir() else path.parent
    base = Path(os.path.abspath(folder)) if folder else home
    ready = (path / "training").is_dir()
    training, inbox = (path / "training", path / "inbox") if ready else (path, base / "inbox")
    if folder and base == training:
        raise ConfigError(
            f"{MONITOR_FILE} must not lie among the records in {base}, all of which is read."
            f" Write it to another folder, such as {base.parent}."
        )
    sample = read_sample(training)
    pattern = line_pattern(sample.part.table["line"]) if sample.part.content == "lines" else None
    lines = _header(sample, name or _monitor_name(path))
    lines += _source(sample, pattern, _relative(training, base), _relative(inbox, base))
    lines += _columns(sample, pattern, inbox)
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


# ---- roles ----


@dataclass(frozen=True)
class _Roles:
    """The columns that the model sees, the one that names a record, and those that are ignored."""

    used: Sequence[Choice]
    record_id: Choice | None
    ignored: Sequence[Choice]


def _columns(sample: Sample, pattern: Pattern | None, inbox: Path) -> list[str]:
    """The sections from ``record_id`` on."""
    table = sample.part.table if pattern is None else cut(sample.part.table["line"], pattern)
    label = label_column(table)
    choices = [_choice(sample, n, table, inbox) for n in table.column_names if n != label]
    choices += [Choice(n, None, why) for n, why in sample.part.unusable.items() if n not in table.column_names]
    lines: list[str] = []
    anomalous: list[str] = []
    if label is not None:
        arrived = (_cut_batch(batch, pattern) for batch in read_batches(inbox))
        lines, anomalous = label_section(table[label], label, arrived)
    if label is not None and not lines:
        why = "named like a label, but which of its values mean anomaly cannot be told: ignored"
        choices.append(Choice(label, None, why))
    roles = _of_one_kind(choices, table)
    if not roles.used:
        raise ConfigError(f"{sample.path} must hold a column to learn from. {_reasons(roles.ignored)}")
    return [
        *([f"record_id: {quoted(roles.record_id.name)}  # {roles.record_id.why}"] if roles.record_id else []),
        *lines,
        "columns:",
        *(_column_line(c) for c in roles.used),
        *(["ignore:"] if roles.ignored else []),
        *(f"  - {quoted(c.name)}  # {c.why}" for c in roles.ignored),
        _threshold(_normal_records(table, label, anomalous, roles.used)),
        'schedule: {cron: "0 * * * *", timezone: UTC}  # for `vae-anomaly serve`: every hour',
        "output: output",
        "sinks: [{kind: log}, {kind: file}]",
        "seed: 0",
    ]


def _choice(sample: Sample, name: str, table: pa.Table, inbox: Path) -> Choice:
    """What a column is, whatever holds the records."""
    part = sample.part
    if name in part.unusable:
        return Choice(name, None, part.unusable[name])
    if name in part.pictures:
        return choose_image(name, part.pictures[name], len(table), sample.path)
    if part.content == "lines" and name != "label":
        return choose_prose(name, table[name])
    choice = choose(name, table[name])
    if part.content == "images" and name == "file" and choice.is_id:
        if all(name in batch.column_names for batch in read_batches(inbox)):
            return replace(choice, why="names of the files; remove it where batches may also come without, as arrays")
        return Choice(name, None, "names of the files, which not every batch in the inbox has: ignored")
    return choice


def _cut_batch(batch: pa.Table, pattern: Pattern | None) -> pa.Table:
    return cut(batch["line"], pattern) if pattern and batch.column_names == ["line"] else batch


def _of_one_kind(choices: Sequence[Choice], table: pa.Table) -> _Roles:
    """Roles by which the model sees a table, one image or one text; a text only where nothing else is of use."""
    record_id = next((c for c in choices if c.is_id), None)
    rest = [c for c in choices if c is not record_id]
    used, ignored = ([c for c in rest if bool(c.kind) == kind] for kind in (True, False))
    alone = next((c for c in used if c.kind in ("image", "text")), None)
    if alone is None and (prose := _prose(used, ignored, table)):
        used, alone = [c for c in used if c.name != prose.name], prose
        ignored = [c for c in ignored if c.name != prose.name]
    if alone is not None:
        others = [replace(c, why=_beside(c, alone), kind=None) for c in used if c is not alone]
        return _Roles([alone], record_id, [*others, *ignored])
    hint = "; a monitor of its own, with kind: text, could watch it"
    return _Roles(used, record_id, [replace(c, why=c.why + hint) if c.is_prose else c for c in ignored])


def _prose(used: Sequence[Choice], ignored: Sequence[Choice], table: pa.Table) -> Choice | None:
    """The column of the longest texts, where beside texts there are times at most."""
    content = [c for c in used if c.kind != "timestamp"]
    texts = [c.name for c in (content or ignored) if c.is_prose]
    if len(content) > 1 or not texts:
        return None
    lengths = {name: pc.mean(pc.utf8_length(present(table[name].cast(pa.string())))).as_py() for name in texts}
    longest = max(texts, key=lambda name: lengths[name])
    return choose_prose(longest, table[longest])


def _beside(choice: Choice, alone: Choice) -> str:
    """Why a column is ignored beside the only one that the model sees."""
    if choice.kind == "image":
        return "images as well, of which a monitor watches one column: ignored"
    return f"{choice.why}; ignored: under columns, with context: true, each {alone.kind} would be judged by it"


def _normal_records(table: pa.Table, label: str | None, anomalous: Sequence[str], used: Sequence[Choice]) -> int:
    """Records that may train: all that are not labelled anomalous; equal texts count once, as in a fit."""
    if used[0].kind == "text":
        texts = table[used[0].name].cast(pa.string())
        if label is not None:
            texts = texts.filter(pc.invert(pc.is_in(table[label].cast(pa.string()), pa.array(anomalous, pa.string()))))
        return int(pc.count_distinct(present(texts)).as_py())
    if label is None:
        return len(table)
    counts = label_counts(table[label])
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
    rows, which = len(sample.part.table), "all" if sample.complete else "the first"
    return [
        f"# Inferred from {which} {rows:,} training records by `vae-anomaly init`. Every choice is a guess: check it.",
        f"name: {quoted(name)}",
    ]


def _source(sample: Sample, pattern: Pattern | None, training: str, inbox: str) -> list[str]:
    return [
        "source:",
        f"  training: {quoted(training)}  # {_deliveries(sample.files)}",
        f"  inbox: {quoted(inbox)}  # batches to be scored arrive here; it is never written to",
        *_csv_line([f for f in sample.files if f.suffix.lower() == ".csv"]),
        *([f"  lines: {{pattern: '{pattern.text}'}}  # {pattern.why}"] if pattern else []),
    ]


def _deliveries(files: Sequence[Path]) -> str:
    folders = sum(file.is_dir() for file in files)
    kinds = ((len(files) - folders, "file"), (folders, "folder"))
    shown = " and ".join(counted(number, thing) for number, thing in kinds if number)
    return f"{shown} of images" if folders else shown


def _csv_line(files: Sequence[Path]) -> list[str]:
    if not files:
        return []
    complete = all(_ends_with_newline(file) for file in files)
    note = "" if complete else "  # a training file ends without one: a file that was cut will go unnoticed"
    delimiter, newline = escaped(delimiter_of(files[0])), str(complete).lower()
    return [f"  csv: {{delimiter: {delimiter}, encoding: utf-8, require_final_newline: {newline}}}{note}"]


def _ends_with_newline(file: Path) -> bool:
    with file.open("rb") as content:
        content.seek(max(0, file.stat().st_size - 1))
        return content.read(1) == b"\n"


def _column_line(choice: Choice) -> str:
    key, value = quoted(choice.name), f"{{kind: {choice.kind}{choice.options}}}  # {choice.why}"
    # YAML takes no key of more than 1024 characters, unless it is marked as one
    return f"  ? {key}\n  : {value}" if len(key.encode()) > 900 else f"  {key}: {value}"


def _monitor_name(path: Path) -> str:
    stem = path.name if path.is_dir() else path.stem
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem)[:64].strip("-._") or "monitor"


def _relative(path: Path, base: Path) -> str:
    try:
        return Path(os.path.relpath(path, base)).as_posix()
    except ValueError:  # another drive
        return str(path)


def _reasons(ignored: Sequence[Choice]) -> str:
    shown = "; ".join(f"{c.name!r}: {c.why}" for c in ignored[:5])
    return f"Got {shown}." if shown else "Got an id or a label only."


def _near(path: Path) -> str:
    if not path.parent.is_dir():
        return f" The folder {path.parent} does not exist either."
    return suggestion(path.name, (f.name for f in path.parent.iterdir()))
