"""What people said of scored records: an append-only ledger, with a copy of each record that was spoken of.

An entry is a JSON file whose name begins with ``f-`` and the head of the digest that it holds; the record is an Arrow
file whose name begins with ``r-`` and the head of its sha256. Nothing is changed or deleted: the last entry on a row
stands.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Literal

import pyarrow as pa

from vae_anomaly.report.model import Precision
from vae_anomaly.store.files import Store, content_of, names, sha256_of
from vae_anomaly.store.records import FileRef, broken, dump, read_said, undumped

Verdict = Literal["false-alarm", "anomaly", "expected"]


@dataclass(frozen=True)
class Feedback:
    """One entry. ``verdict`` is a :data:`Verdict`; ``until`` the last day, in UTC, on which records like this one are
    muted, empty for an anomaly; ``at`` the time of the entry in UTC, both in ISO 8601. Batch, row, record id, score,
    p-value and whether it was flagged are those of the commit that was looked at; ``record`` is the copy of the record.
    """

    batch_id: str
    row_index: int
    record_id: str | None
    score: float
    p_value: float
    flagged: bool
    verdict: str
    until: str
    by: str
    note: str
    at: str
    record: FileRef

    @property
    def id(self) -> str:
        """Names the entry: the same for the same content."""
        return f"f-{undumped(self.to_json())['digest'][:12]}"

    def mutes(self, day: date) -> bool:
        """Whether records like this one are muted on ``day``."""
        return self.verdict != "anomaly" and self.until >= day.isoformat()

    def to_json(self) -> bytes:
        """The entry's bytes: equal entries, equal bytes."""
        return dump(asdict(self))


def copied(store: Store, record: pa.Table) -> FileRef:
    """Publish the copy of a record, a table of one row, and say where it lies."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, record.schema) as writer:
        writer.write_table(record)
    content = sink.getvalue().to_pybytes()
    sha256 = sha256_of(content)
    final = store.file(store.feedback, f"r-{sha256[:12]}", ".arrow")
    store.publish(content, final)
    return FileRef(f"feedback/{final.name}", sha256, len(content))


def add(store: Store, entry: Feedback) -> None:
    """Publish an entry whose record is copied; once more is no change."""
    store.publish(entry.to_json(), store.file(store.feedback, entry.id, ".json"))


def read_entry(path: Path) -> Feedback:
    """The entry in ``path``; raises :class:`StoreError` that names the file and what is wrong with it."""
    return read_said(path, Feedback, "an entry of feedback")


def entries(store: Store) -> list[Feedback]:
    """All entries by time; raises as :func:`read_entry`."""
    found = [read_entry(store.feedback / name) for name in names(store.feedback) if name.endswith(".json")]
    return sorted(found, key=lambda entry: (entry.at, entry.id))


def standing(found: Iterable[Feedback]) -> list[Feedback]:
    """The last entry on each record, in whatever batches it came, by time."""
    last = {entry.record.sha256: entry for entry in found}
    return sorted(last.values(), key=lambda entry: (entry.at, entry.id))


def precision_of(said: Iterable[Feedback]) -> Precision | None:
    """What the entries that stand say of the flagged records; None where there is none on a flagged one or an anomaly.

    What is only ``expected`` says nothing of it.
    """
    judged = [entry for entry in said if entry.verdict != "expected"]
    flagged = [entry for entry in judged if entry.flagged]
    anomalies = [entry for entry in judged if entry.verdict == "anomaly"]
    if not (flagged or anomalies):
        return None
    return Precision(len(flagged), sum(entry.flagged for entry in anomalies), len(anomalies))


def record_of(store: Store, entry: Feedback) -> pa.Table:
    """The copy of the record of an entry, a table of one row; :class:`StoreError` where it is lost or altered."""
    path = store.root / entry.record.file
    try:
        content = content_of(path)
        if sha256_of(content) != entry.record.sha256:
            raise ValueError("its bytes are not those that were written")
        return pa.ipc.open_stream(content).read_all()
    except (OSError, ValueError) as error:
        raise broken(path, f"the copy of the record that {entry.id} is about", error) from error
