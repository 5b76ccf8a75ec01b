"""A column of labels, found by its name, and which of its values mean anomaly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc

from vae_anomaly.infer.columns import present
from vae_anomaly.infer.writing import quoted

LABEL_NAMES = {
    *("label", "labels", "target", "class", "diagnosis", "outcome", "y", "ground_truth"),
    *("is_anomaly", "anomaly", "anomalous", "is_outlier", "outlier", "is_fraud", "fraud"),
}
NORMAL_WORDS = {
    *("0", "false", "f", "no", "n", "none", "normal", "benign"),
    *("-", "ok", "good", "healthy", "inlier", "legit", "legitimate", "negative"),
}
ANOMALY_WORDS = {
    *("1", "true", "t", "yes", "y", "anomaly", "anomalous", "outlier", "fraud"),
    *("malignant", "attack", "abnormal", "bad", "fail", "faulty"),
}


def label_column(table: pa.Table) -> str | None:
    """The name of the column that is named like a label and has few values."""
    return next((n for n in table.column_names if n.lower() in LABEL_NAMES and _few(label_counts(table[n]))), None)


def _few(counts: Counter[str]) -> bool:
    """At most 20 values; more where "-" marks what is normal, as it does in logs."""
    return 1 <= len(counts) <= (200 if "-" in counts else 20)


def label_counts(column: pa.ChunkedArray) -> Counter[str]:
    """How often each label comes; labels are compared as text."""
    try:
        texts = present(column.cast(pa.string()))
    except pa.ArrowException:  # nested
        return Counter()
    return Counter({pair["values"]: pair["counts"] for pair in pc.value_counts(texts).to_pylist()})


def label_section(column: pa.ChunkedArray, name: str, batches: Iterable[pa.Table]) -> tuple[list[str], list[str]]:
    """The lines of the section ``label``, none where no value can be told to be anomalous, and the anomalous values.

    ``batches`` are the tables that have arrived in the inbox.
    """
    known = label_counts(column)
    arrived = sum((label_counts(t[name]) for t in batches if name in t.column_names), Counter())
    new = sorted(set(arrived) - set(known))
    if len(known) == 1 and new and len(new) <= 20:
        anomalous, why = new, "the values in the inbox that the training records do not have"
    else:
        anomalous, why = _anomalous(known), "a guess from the names and counts of the values"
    if not anomalous:
        return [], []
    values = ", ".join(quoted(v) for v in anomalous)
    lines = [
        "label:  # for evaluation only: records so labelled never train",
        f"  column: {quoted(name)}",
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
