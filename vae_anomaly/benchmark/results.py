"""Means over data sets and seeds, the table of them, and the CSV file of every measurement.

The mean of a seed is over the data sets; the deviation is that of these means between the seeds.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from vae_anomaly.benchmark.measuring import Measured
from vae_anomaly.errors import ConfigError


@dataclass(frozen=True)
class Summary:
    """A method's means over all data and seeds; a deviation is None where there was one seed, ``by_data`` are AUROC."""

    method: str
    auroc: float
    auroc_deviation: float | None
    average_precision: float
    average_precision_deviation: float | None
    fit_seconds: float
    score_seconds: float
    by_data: Mapping[str, float]


def summarise(measured: Sequence[Measured]) -> list[Summary]:
    """One summary for each method, in the order in which they come."""
    return [
        _summary([m for m in measured if m.method == method]) for method in dict.fromkeys(m.method for m in measured)
    ]


def _summary(measured: Sequence[Measured]) -> Summary:
    def over_seeds(value: Callable[[Measured], float]) -> tuple[float, float | None]:
        means = [np.mean([value(m) for m in measured if m.seed == s]) for s in dict.fromkeys(m.seed for m in measured)]
        return float(np.mean(means)), float(np.std(means, ddof=1)) if len(means) > 1 else None

    return Summary(
        measured[0].method,
        *over_seeds(lambda m: m.auroc),
        *over_seeds(lambda m: m.average_precision),
        float(np.mean([m.fit_seconds for m in measured])),
        float(np.mean([m.score_seconds for m in measured])),
        {
            name: float(np.mean([m.auroc for m in measured if m.data == name]))
            for name in dict.fromkeys(m.data for m in measured)
        },
    )


def table(summaries: Sequence[Summary], *, precision: bool) -> tuple[list[str], list[list[str]]]:
    """Columns and rows for a person; with the average ``precision`` or without."""
    several = len(summaries[0].by_data) > 1
    columns = ["method", "AUROC", "+-", *(["AP", "+-"] if precision else [])]
    columns += [*(summaries[0].by_data if several else ()), "fit, cpu s", "score, cpu s"]
    rows = []
    for s in summaries:
        figures = [_share(s.auroc), _share(s.auroc_deviation)]
        if precision:
            figures += [_share(s.average_precision), _share(s.average_precision_deviation)]
        figures += [f"{value:.3f}" for value in s.by_data.values()] if several else []
        rows.append([s.method, *figures, f"{s.fit_seconds:.2f}", f"{s.score_seconds:.2f}"])
    return columns, rows


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


@contextmanager
def csv_file(path: Path | None) -> Iterator[tuple[list[Measured], Callable[[Measured], None]]]:
    """What a file holds already, and a writer of further measurements, one line each, written at once.

    What an interrupted run has measured stays and is not measured again.

    Raises
    ------
    ConfigError
        The file cannot be written, or holds something else.
    """
    if path is None:
        yield [], lambda measured: None
        return
    try:
        known = _known(path)
        file = path.open("a", newline="", encoding="utf-8")
    except OSError as error:
        raise unwritable("--output", path, error) from None
    with file:
        lines = csv.DictWriter(file, NAMES, lineterminator="\n")
        if known is None:
            lines.writeheader()

        def write(measured: Measured) -> None:
            lines.writerow(asdict(measured))
            file.flush()

        yield known or [], write


def unwritable(what: str, path: Path, error: OSError) -> ConfigError:
    """What to raise where the file of an option cannot be written."""
    return ConfigError(
        f"{what} must be a file in a folder that exists and can be written to. Got {str(path)!r} ({error.strerror})."
    )


NAMES = [field.name for field in fields(Measured)]
ALWAYS = 4  # AUROC, average precision, seconds of fit and of scoring


def _known(path: Path) -> list[Measured] | None:
    """The measurements in a file, None where there is none yet; a last line that was cut off is taken away."""
    if not path.exists() or not path.stat().st_size:
        return None
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    try:
        rows = list(csv.reader(whole.decode().splitlines()))
        if not rows or rows[0] != NAMES:
            raise ValueError("other columns")
        known = [_measured(row) for row in rows[1:]]
    except ValueError as error:
        raise ConfigError(
            f"--output must be a new file, or one of this command with the columns {NAMES}. Got {str(path)!r}"
            f" ({error}). Choose another name."
        ) from None
    if whole != content:
        path.write_bytes(whole)
    return known


def _measured(row: list[str]) -> Measured:
    if len(row) != len(NAMES):
        raise ValueError(f"{len(row)} values in a line")
    data, seed, method, *values, protocol = row
    numbers = [float(v) if v else None for v in values]
    if not all(v is not None and np.isfinite(v) for v in numbers[:ALWAYS]):
        raise ValueError("a line without its figures")
    return Measured(data, int(seed), method, *numbers, protocol=protocol)  # type: ignore[arg-type]
