"""Why a record was flagged: its contributions in nats, what was found and expected, the nearest normal records.

The contributions of a record sum to its score. One file and one line for each modality: a table names its columns, an
image shows the pixels that do not fit, a text the surprise of every token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from vae_anomaly.batch import Records
from vae_anomaly.detector import Detector
from vae_anomaly.explain import image, tabular, text
from vae_anomaly.explain.counterfactual import MOST, Parts, smallest_changes
from vae_anomaly.explain.shared import Explanation, latent_shares, shortened
from vae_anomaly.explain.shifts import column_shifts, compared, score_shift
from vae_anomaly.report.model import Counterfactual
from vae_anomaly.training import limited_threads

__all__ = [
    "Explanation",
    "column_shifts",
    "compared",
    "counterfactuals",
    "explain",
    "latent_shares",
    "reference_values",
    "score_shift",
    "shortened",
]


class Explainer(NamedTuple):
    """How scorable records are explained, what a reference record's values in some columns are, and which parts of
    explained records can be replaced."""

    explain: Callable[[Detector, Records], list[Explanation]]
    reference_values: Callable[[Detector, int, Sequence[str]], tuple[str, ...]]
    parts: Callable[[Detector, Records, Sequence[Explanation]], Parts]


EXPLAINERS: dict[str, Explainer] = {
    "table": Explainer(tabular.explain, tabular.reference_values, tabular.Columns),
    "image": Explainer(image.explain, image.reference_values, image.WholeImages),
    "text": Explainer(text.explain, text.reference_values, text.Tokens),
}


def explain(detector: Detector, records: Records) -> list[Explanation]:
    """Explain scorable ``records`` (a few: it costs some passes more than scoring)."""
    if not len(records):
        return []
    # one thread, as in scoring: the bits of a report must not depend on the machine's number of processors
    with limited_threads(1):
        return EXPLAINERS[detector.preprocessor.layout.modality].explain(detector, records)


def counterfactuals(detector: Detector, records: Records, explanations: Sequence[Explanation]) -> list[Counterfactual]:
    """The smallest change found that makes each of flagged ``records`` normal."""
    with limited_threads(1):
        parts = EXPLAINERS[detector.preprocessor.layout.modality].parts(detector, records, explanations)
        return [
            Counterfactual((), None, MOST)
            if change is None
            else Counterfactual(parts.replacements(row, change.parts, change.changed), change.score, MOST)
            for row, change in enumerate(smallest_changes(detector, parts))
        ]


def reference_values(detector: Detector, row: int, columns: Sequence[str]) -> tuple[str, ...]:
    """Values of the reference record ``row`` in ``columns``; what has none is empty."""
    return EXPLAINERS[detector.preprocessor.layout.modality].reference_values(detector, row, columns)
