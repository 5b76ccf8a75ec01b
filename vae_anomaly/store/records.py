"""Records: what the store writes down of a batch, as values and as JSON, read back strictly.

A record's bytes depend on its value only; nothing in it is a time or a random number. It holds a digest of itself, so
that no damage of the disk passes for another value.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Protocol, TypeVar, get_args, get_origin, get_type_hints

from vae_anomaly.errors import DataError, StoreError
from vae_anomaly.store.files import content_of, sha256_of
from vae_anomaly.store.score_files import ScoreFile

FORMAT = 1


def commit_key(dataset: str, batch_sha256: str, *, model_digest: str, config_digest: str) -> str:
    """What a commit exists at most once for, as a sha256."""
    return hashlib.sha256("|".join((dataset, batch_sha256, model_digest, config_digest)).encode()).hexdigest()


@dataclass(frozen=True)
class BatchRef:
    """A delivered file: its id, its name in the inbox, its content."""

    id: str
    name: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class FileRef:
    """A file of the store, relative to its root."""

    file: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class ModelRef:
    """The detector that scored."""

    name: str
    version: str
    digest: str


@dataclass(frozen=True)
class ThresholdRef:
    """The threshold that decided; without a value it flagged nothing, whatever the score.

    ``segments``: where several did, the versions that rows name, and the value of each.
    """

    version: str
    value: float | None
    alpha: float
    segments: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Labelled:
    """Labelled anomalies among the scored records, and those of them that were flagged."""

    anomalies: int
    found: int


@dataclass(frozen=True)
class Commit:
    """One scored batch. ``alert``: the report has something to say; ``drifted``: that the batch as a whole has changed;
    ``muted``: flagged records that feedback mutes; ``group``: what its alert is told together with. Keys of
    ``unscorable`` are reason codes.

    ``supersedes`` is the id of the batch in whose place this one stands: other content under the same name, or the same
    content scored by another model or configuration.
    """

    dataset: str
    batch: BatchRef
    rows: int
    scored: int
    unscorable: Mapping[str, int]
    flagged: int
    expected_flagged: float
    scores: FileRef
    report: FileRef
    model: ModelRef
    threshold: ThresholdRef
    config_digest: str
    contract_digest: str
    code_version: str
    alert: bool
    labelled: Labelled | None = None
    supersedes: str | None = None
    drifted: bool = False
    muted: int = 0
    group: str = ""

    @property
    def summary(self) -> str:
        """A line on it."""
        return f"{self.flagged:,} of {self.scored:,} flagged where {self.expected_flagged:,.1f} are expected"

    @property
    def key(self) -> str:
        """See :func:`commit_key`."""
        digests = {"model_digest": self.model.digest, "config_digest": self.config_digest}
        return commit_key(self.dataset, self.batch.sha256, **digests)

    idempotency_key = key

    @property
    def batch_id(self) -> str:
        """The batch's id."""
        return self.batch.id

    @property
    def name(self) -> str:
        """The batch's name in the inbox."""
        return self.batch.name

    @property
    def sha256(self) -> str:
        """The sha256 of the batch's content."""
        return self.batch.sha256

    @property
    def provenance(self) -> dict[str, str]:
        """What the score file's metadata must say."""
        return provenance(
            self.dataset,
            self.batch,
            model=self.model,
            threshold=self.threshold,
            config_digest=self.config_digest,
            contract_digest=self.contract_digest,
            code_version=self.code_version,
        )

    @property
    def conserves(self) -> bool:
        """Whether every row is accounted for exactly once."""
        counts = (self.scored, self.flagged, self.scored - self.flagged, *self.unscorable.values())
        return self.rows == self.scored + sum(self.unscorable.values()) and min(counts) >= 0

    def to_json(self) -> bytes:
        """The record's bytes: equal commits, equal bytes."""
        return dump({"key": self.key, **asdict(self)})


@dataclass(frozen=True)
class Quarantine:
    """A file that breaks the data contract, and why; ``path`` is as it was given."""

    dataset: str
    batch_id: str
    name: str
    path: str
    sha256: str
    contract_digest: str
    rule: str
    file: str | None
    column: str | None
    first_rows: Sequence[int]
    count: int | None
    problem: str
    remedy: str

    @property
    def group(self) -> str:
        """What its alert is told together with."""
        return f"quarantined {self.rule}"

    @property
    def summary(self) -> str:
        """A line on it."""
        return f"quarantined: {self.rule}"

    @classmethod
    def of(
        cls, error: DataError, batch: BatchRef, *, dataset: str, path: str | Path, contract_digest: str
    ) -> Quarantine:
        """The record of ``error`` for ``batch``."""
        reason: dict[str, Any] = error.as_dict()
        return cls(dataset, batch.id, batch.name, str(path), batch.sha256, contract_digest, **reason)

    @property
    def idempotency_key(self) -> str:
        """The same for every delivery of this refusal."""
        return commit_key(self.dataset, self.sha256, model_digest="quarantined", config_digest=self.contract_digest)

    def to_json(self) -> bytes:
        """The reason file's bytes."""
        return dump(asdict(self))


@dataclass(frozen=True)
class Attempts:
    """A file that failed ``count`` times so that it may itself be the cause; ``problem`` is the last one."""

    batch_id: str
    name: str
    sha256: str
    contract_digest: str
    count: int
    problem: str

    def to_json(self) -> bytes:
        """The record's bytes."""
        return dump(asdict(self))


@dataclass(frozen=True)
class Pruned:
    """Scores and report of the batch, of this content, are deleted or about to be; its commit, with this key, stays."""

    batch_id: str
    sha256: str
    commit: str

    def to_json(self) -> bytes:
        """The record's bytes."""
        return dump(asdict(self))


@dataclass(frozen=True)
class Incident:
    """What is to be told of a monitor that no batch's report says: ``batch_id`` names it, and ``name`` is the file that
    it is about, or that came last before it."""

    batch_id: str
    dataset: str
    kind: str
    name: str
    problem: str
    remedy: str

    @property
    def group(self) -> str:
        """What its alert is told together with: nothing."""
        return self.batch_id

    @property
    def summary(self) -> str:
        """A line on it."""
        return self.problem

    @property
    def idempotency_key(self) -> str:
        """The same for every delivery of this incident."""
        return hashlib.sha256(f"{self.dataset}|{self.batch_id}".encode()).hexdigest()

    def to_json(self) -> bytes:
        """The record's bytes."""
        return dump(asdict(self))


Record = TypeVar("Record", Commit, Quarantine, Attempts, Pruned, Incident)


def provenance(
    dataset: str,
    batch: BatchRef,
    *,
    model: ModelRef,
    threshold: ThresholdRef,
    config_digest: str,
    contract_digest: str,
    code_version: str,
) -> dict[str, str]:
    """The metadata of a score file: everything that made it."""
    return {
        "dataset": dataset,
        "batch_id": batch.id,
        "batch_sha256": batch.sha256,
        "model_name": model.name,
        "model_version": model.version,
        "model_digest": model.digest,
        "threshold_version": threshold.version,
        "config_digest": config_digest,
        "contract_digest": contract_digest,
        "code_version": code_version,
    }


def scores_ref(batch: str, file: ScoreFile) -> FileRef:
    """How a commit names the scores of the batch id ``batch``."""
    return FileRef(f"scores/{batch}.parquet", file.sha256, file.bytes)


def report_ref(batch: str, content: bytes) -> FileRef:
    """How a commit names the report of the batch id ``batch``."""
    return FileRef(f"reports/{batch}.json", sha256_of(content), len(content))


def read_record(path: Path, kind: type[Record]) -> Record:
    """The record in ``path``; raises :class:`StoreError` that names the file and what is wrong with it."""
    try:
        return parse(content_of(path), kind, path.stem)
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise StoreError(
            f"{str(path)!r} must be a {kind.__name__.lower()} record. Got one that is not: {reason}. Restore it from a "
            "backup, or delete it: the next run then does that batch again."
        ) from error


class Entry(Protocol):
    """What somebody said, in a ledger that is only added to."""

    @property
    def id(self) -> str:
        """Names the entry, and its file."""


Said = TypeVar("Said", bound=Entry)


def read_said(path: Path, kind: type[Said], what: str) -> Said:
    """The entry in ``path``, which is ``what``; raises :class:`StoreError` that names the file and what is wrong."""
    try:
        stated = undumped(content_of(path))
        entry: Said = decode(kind, {k: v for k, v in stated.items() if k not in ("format", "digest")}, "entry")
        _expect(entry.id == path.stem, "the file's name must be the entry's id")
        return entry
    except (OSError, ValueError, RecursionError) as error:
        raise broken(path, what, error) from error


def broken(path: Path, what: str, error: Exception) -> StoreError:
    """What to raise where ``path`` is not ``what`` it must be, for this reason."""
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return StoreError(f"{str(path)!r} must be {what}. Got one that is not: {reason}. Restore it from a backup.")


def undumped(content: bytes) -> dict[str, Any]:
    """What :func:`dump` made ``content`` of, with format and digest; raises :class:`ValueError` for anything else."""
    stated: dict[str, Any] = json.loads(content, parse_constant=_no_constant)
    _expect(isinstance(stated, dict) and stated.get("format") == FORMAT, f"format must be {FORMAT}")
    _expect(content == dump(stated), "a byte must not have changed since it was written")
    return stated


def parse(content: bytes, kind: type[Record], id: str) -> Record:
    """The record of the batch ``id`` in ``content``; raises :class:`ValueError` that says what is wrong with it."""
    stated = undumped(content)
    derived = {"format", "digest", "key"} if kind is Commit else {"format", "digest"}
    record: Record = decode(kind, {k: v for k, v in stated.items() if k not in derived}, "record")
    _expect(record.batch_id == id, "the file's name must be the batch id")
    if not isinstance(record, Incident):
        _expect(id.endswith(f"-{record.sha256[:12]}"), "the batch id must end with the head of the content's sha256")
    if isinstance(record, Commit):
        _expect(stated.get("key") == record.key, "the key must be that of dataset, content, model and configuration")
        files = record.scores.file, record.report.file
        _expect(files == (f"scores/{id}.parquet", f"reports/{id}.json"), "scores and report must be named by batch id")
    return record


def dump(value: Mapping[str, Any]) -> bytes:
    """``value``, the format mark and a digest of both as JSON: equal values, equal bytes."""
    stated = {"format": FORMAT} | {name: entry for name, entry in value.items() if name != "digest"}
    digest = hashlib.sha256(_json(stated)).hexdigest()
    return _json({"digest": digest, **stated})


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, sort_keys=True, indent=1, allow_nan=False) + "\n").encode()


def decode(kind: Any, value: Any, where: str) -> Any:
    """``value`` from JSON as ``kind``, a dataclass of plain types, exactly; raises :class:`ValueError`."""
    if isinstance(kind, type) and is_dataclass(kind):
        hints = _hints(kind)
        named = isinstance(value, dict) and _required(kind) <= value.keys() <= hints.keys()
        _expect(named, f"{where} must have the fields {list(hints)}")
        hints = {name: hint for name, hint in hints.items() if name in value}  # those with a default may be missing
        return kind(**{name: decode(hint, value[name], f"{where}.{name}") for name, hint in hints.items()})
    origin = get_origin(kind)
    if origin is UnionType:
        return None if value is None else decode(get_args(kind)[0], value, where)
    if origin is Mapping:
        _expect(isinstance(value, dict), f"{where} must be an object")
        return {name: decode(get_args(kind)[1], entry, f"{where}.{name}") for name, entry in value.items()}
    if origin is Sequence:
        _expect(isinstance(value, list), f"{where} must be a list")
        return tuple(decode(get_args(kind)[0], entry, where) for entry in value)
    if kind is float and type(value) is int:
        return float(value)
    _expect(type(value) is kind, f"{where} must be a {kind.__name__}")
    return value


@cache
def _required(kind: Any) -> frozenset[str]:
    return frozenset(f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _expect(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(what)


def _no_constant(name: str) -> float:
    raise ValueError(f"numbers must be finite, not {name}")
