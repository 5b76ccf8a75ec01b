"""Score files: Parquet with page checksums, whose bytes depend on the rows only, not on how they arrived."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vae_anomaly.batch import OK
from vae_anomaly.errors import StoreError
from vae_anomaly.store.files import Sink, Store, discard, explained, opened, sha256_of

ROW_GROUP = 131_072
"""Rows of every row group but the last, however the rows arrived: the bytes depend on the rows only."""

_WORD = pa.dictionary(pa.int32(), pa.string())

SCORE_SCHEMA = pa.schema(
    [
        pa.field("batch_id", _WORD, nullable=False),
        pa.field("row_index", pa.int64(), nullable=False),
        pa.field("record_id", pa.string()),
        pa.field("status", _WORD, nullable=False),
        pa.field("score", pa.float64()),
        pa.field("p_value", pa.float64()),
        pa.field("is_anomaly", pa.bool_(), nullable=False),
        pa.field("model_version", _WORD, nullable=False),
        pa.field("threshold_version", _WORD, nullable=False),
    ]
)
"""One row for each record of the batch, in its order; score and p-value are null where the record is unscorable."""
SEGMENT_SCHEMA = SCORE_SCHEMA.append(pa.field("segment", _WORD))
"""With the segment whose detector scored the row, null where it was the general one or the record is unscorable."""


def score_table(
    batch_id: str,
    first_row: int,
    *,
    record_ids: np.ndarray,
    status: np.ndarray,
    score: np.ndarray,
    p_value: np.ndarray,
    is_anomaly: np.ndarray,
    model_version: str,
    threshold_version: str | np.ndarray,
    segment: np.ndarray | None = None,
) -> pa.RecordBatch:
    """Rows ``first_row`` ... of a score file from arrays (B,); score and p-value of unscorable rows become null.

    ``threshold_version`` is one for all rows, or (B,); ``segment`` (B,), empty for the general detector, gives a column
    more.
    """
    rows = len(status)
    unscorable = np.asarray(status != OK, dtype=bool)
    columns = [
        _constant(batch_id, rows),
        pa.array(np.arange(first_row, first_row + rows, dtype=np.int64)),
        pa.array(record_ids, pa.string()),
        pa.array(status, pa.string()).dictionary_encode(),
        pa.array(np.asarray(score, dtype=np.float64), mask=unscorable, from_pandas=False),  # a NaN stays one: check
        pa.array(np.asarray(p_value, dtype=np.float64), mask=unscorable, from_pandas=False),  # reports it
        pa.array(np.asarray(is_anomaly, dtype=bool)),
        _constant(model_version, rows),
        _constant(threshold_version, rows)
        if isinstance(threshold_version, str)
        else pa.array(threshold_version, pa.string()).dictionary_encode(),
    ]
    if segment is None:
        return pa.RecordBatch.from_arrays(columns, schema=SCORE_SCHEMA)
    named = pa.array(segment, pa.string(), mask=unscorable | (segment == "")).dictionary_encode()
    return pa.RecordBatch.from_arrays([*columns, named], schema=SEGMENT_SCHEMA)


class ScoreFile(NamedTuple):
    """A complete, verified score file that waits under ``_tmp``."""

    tmp: Path
    sha256: str
    bytes: int
    rows: int


class ScoreWriter:
    """Stream batches of :func:`score_table` into a temporary Parquet file; its bytes depend on the rows only.

    With ``segments`` they have that column. Leaving the ``with`` block without :meth:`close`, or by an error, deletes
    the file.
    """

    def __init__(self, store: Store, provenance: Mapping[str, str], *, segments: bool = False) -> None:
        self._tmp, self._rows, self._held = store.new_temporary(), 0, 0
        self._waiting: list[pa.RecordBatch] = []
        self._plain = SEGMENT_SCHEMA if segments else SCORE_SCHEMA
        self._schema = self._plain.with_metadata({k: v.encode() for k, v in sorted(provenance.items())})

    def __enter__(self) -> ScoreWriter:
        with explained(self._tmp):
            self._sink = Sink(self._tmp)
            try:
                self._parquet = _parquet_writer(self._sink, self._schema)
            except BaseException:
                self._abandon()
                raise
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None or not self._sink.closed:
            self._abandon()
            with contextlib.suppress(Exception):  # it cannot write its footer to a closed file, and need not
                self._parquet.close()

    def _abandon(self) -> None:
        self._sink.close()
        discard(self._tmp)

    def write(self, rows: pa.RecordBatch) -> None:
        """Append ``rows``; at most a row group of them waits in memory beside the ones given."""
        self._waiting.append(rows)
        self._rows, self._held = self._rows + rows.num_rows, self._held + rows.num_rows
        if self._held >= ROW_GROUP:
            self._flush(self._held - self._held % ROW_GROUP)

    def close(self) -> ScoreFile:
        """Finish the file and read all of it back, page checksums on; :class:`StoreError` when rows are missing."""
        self._flush(self._held)
        with explained(self._tmp):
            self._parquet.close()
            self._sink.close()
        found = sum(group.num_rows for group in read_scores(self._tmp))
        if found != self._rows:
            raise StoreError(f"{str(self._tmp)!r} must hold {self._rows} rows. Got {found}. Check the disk, run again.")
        with explained(self._tmp):
            return ScoreFile(self._tmp, sha256_of(self._tmp), self._tmp.stat().st_size, found)

    def _flush(self, rows: int) -> None:
        table = pa.Table.from_batches(self._waiting, self._plain)
        with explained(self._tmp):
            for start in range(0, rows, ROW_GROUP):
                group = _canonical(table.slice(start, min(ROW_GROUP, rows - start)), self._schema)
                self._parquet.write_table(group, row_group_size=ROW_GROUP)
        self._waiting, self._held = table.slice(rows).to_batches(), table.num_rows - rows


def read_scores(path: Path, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The row groups of a score file, all of their columns or these, page checksums verified.

    Raises :class:`StoreError` that names the file.
    """
    with _parquet_file(path) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, columns=columns, use_threads=False)


def score_schema(path: Path) -> pa.Schema:
    """The columns and metadata of a score file; raises :class:`StoreError` that names the file."""
    with _parquet_file(path) as file:
        return file.schema_arrow


@contextlib.contextmanager
def _parquet_file(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        with opened(path) as stream, pq.ParquetFile(stream, page_checksum_verification=True) as file:
            yield file
    except (OSError, ValueError, pa.ArrowException) as error:
        raise StoreError(
            f"{str(path)!r} must be a complete score file. Got {type(error).__name__} on reading it. Run 'vae-anomaly "
            "check' to see what to do."
        ) from error


def _parquet_writer(sink: io.RawIOBase, schema: pa.Schema) -> pq.ParquetWriter:
    return pq.ParquetWriter(
        sink,
        schema,
        version="2.6",
        compression="zstd",
        compression_level=1,
        use_dictionary=[f.name for f in schema if f.type == _WORD],
        write_page_checksum=True,
    )


def _constant(word: str, rows: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, dtype=np.int32)), pa.array([word]))


def _canonical(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """``table`` in one piece, with dictionaries in the order of first appearance: no trace of how the rows arrived."""
    columns = []
    for column, kind in zip(table.columns, schema.types, strict=True):
        whole = column.cast(pa.string() if kind == _WORD else kind).combine_chunks()
        columns.append(whole.dictionary_encode() if kind == _WORD else whole)
    return pa.table(columns, schema=schema)
