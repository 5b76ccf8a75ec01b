"""Errors that a user can act on.

Every class carries the exit code that the command line ends with. The message is one sentence that says what was
expected, what came and where, followed by the remedy; it never holds the content of a record.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable, Sequence
from datetime import date
from functools import partial

_INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


class VaeAnomalyError(ValueError):
    """Base of every error that is the user's to mend; ``exit_code`` is documented in the README."""

    exit_code = 1


class ConfigError(VaeAnomalyError):
    """A configuration file, an option or an argument is not usable."""

    exit_code = 2


class DataError(VaeAnomalyError):
    """A file or a set of records breaks the data contract.

    Parameters
    ----------
    rule : short machine-readable name of the broken rule, such as ``missing_column``.
    problem : one sentence: what was expected and what came.
    remedy : what to do.
    file, column : where, when known.
    rows : first offending row numbers, counted from 0 in the file's records; at most five are shown.
    count : number of offending rows.
    """

    exit_code = 3

    def __init__(
        self,
        rule: str,
        problem: str,
        *,
        remedy: str,
        file: str | None = None,
        column: str | None = None,
        rows: Sequence[int] = (),
        count: int | None = None,
    ) -> None:
        self.rule, self.problem, self.remedy = rule, problem, remedy
        self.file, self.column, self.rows, self.count = file, column, tuple(int(r) for r in rows[:5]), count
        super().__init__(str(self))

    def __str__(self) -> str:
        where = [f"file {self.file!r}" if self.file else "", f"column {self.column!r}" if self.column else ""]
        if self.rows:
            total = f" ({self.count} in all)" if self.count and self.count > len(self.rows) else ""
            where.append(f"rows {', '.join(map(str, self.rows))}{total}")
        place = ", ".join(w for w in where if w)
        return f"{self.rule}: {self.problem}{f' [{place}]' if place else ''} {self.remedy}"

    def __reduce__(self) -> tuple[object, ...]:
        rest = partial(type(self), remedy=self.remedy, file=self.file, column=self.column, rows=self.rows)
        return partial(rest, count=self.count), (self.rule, self.problem)

    def as_dict(self) -> dict[str, object]:
        """The reason file's content: rule, file, column, first rows, count, problem and remedy."""
        return {
            "rule": self.rule,
            "file": self.file,
            "column": self.column,
            "first_rows": list(self.rows),
            "count": self.count,
            "problem": self.problem,
            "remedy": self.remedy,
        }


class TrainingError(VaeAnomalyError):
    """Training cannot give a usable model (divergence, too few records); nothing was registered."""

    exit_code = 3


class ArtifactError(VaeAnomalyError):
    """A model artifact is missing, altered, truncated or made for something else."""

    exit_code = 4


class ReviewError(VaeAnomalyError):
    """A review gate does not hold, or the registry does not allow the step."""

    exit_code = 5


class StoreError(VaeAnomalyError):
    """The score store breaks one of its own invariants."""

    exit_code = 6


class DeliveryError(VaeAnomalyError):
    """A sink did not take an alert; the next run tries again."""

    exit_code = 3


def words(option: str, text: str) -> str:
    """What somebody wrote as ``option``, stripped; raises :class:`ConfigError` for what is no line of words."""
    if not text.strip() or not text.isprintable() or len(text) > 500:
        raise ConfigError(f"{option} must be up to 500 printable characters. Got {text[:60]!r}.")
    return text.strip()


def parsed_day(text: str) -> date:
    """The day in ISO 8601 of the option ``--until``; raises :class:`ConfigError`."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"--until must be a day such as 2026-12-31. Got {text!r:.40}.") from None


def suggestion(name: str, known: Iterable[str]) -> str:
    """``" Did you mean 'x'?"`` for the nearest known name, else the empty string."""
    near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""


def printable(text: str) -> str:
    """``text`` on one line, with control, format and unassigned characters spelt out; nothing is cut.

    Names come from files, and a terminal obeys what it is sent.

    >>> printable("day\\x1b[2J\\r\\nERROR none")
    'day\\\\x1b[2J\\\\r\\\\nERROR none'
    """
    if text.isprintable():  # nearly always
        return text
    return "".join(spelt_out(c) if unicodedata.category(c) in _INVISIBLE else c for c in text)


def spelt_out(character: str) -> str:
    """The character as in the source of a program: ``\\n`` for a line break."""
    return character.encode("unicode_escape").decode()
