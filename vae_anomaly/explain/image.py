"""Images: what each pixel adds to the score, beside the image and its reconstruction, and the sum of each region."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from vae_anomaly.batch import Records
from vae_anomaly.detector import Detector, over_chunks
from vae_anomaly.explain.shared import (
    Explanation,
    context_reasons,
    latent_shares,
    neighbours,
    paired,
    strongest,
)
from vae_anomaly.preprocessing.image import ImagePreprocessor
from vae_anomaly.report.model import COMBINATION, Contribution
from vae_anomaly.report.pictures import picture

ROWS, COLUMNS = ("upper", "middle", "lower"), ("left", "centre", "right")


def explain(detector: Detector, records: Records) -> list[Explanation]:
    """As :func:`vae_anomaly.explain.explain`; the reasons are the nine regions of the image."""
    preprocessor = detector.preprocessor
    assert isinstance(preprocessor, ImagePreprocessor)
    inputs = detector.encode(records)
    nearest, distances = neighbours(detector, inputs)
    terms = detector.terms(inputs)
    share = latent_shares(detector, inputs, torch.from_numpy(nearest[:, 0]))
    terms += np.column_stack([share, -share.sum(1)])
    found = np.asarray(records.values[preprocessor.column])
    means = [over_chunks(m.vae, inputs, lambda e: e.expected()).numpy() for m in detector.members]
    expected = preprocessor.decode(sum(means[1:], means[0]) / len(means))
    size = preprocessor.height, preprocessor.width
    contexts = context_reasons(preprocessor.context, records)
    return [
        Explanation(
            strongest(_reasons(preprocessor.column, terms[i, :-1].reshape(size), float(terms[i, -1])) + contexts[i]),
            paired(nearest[i], distances[i]),
            picture=picture(found[i], expected[i], terms[i, :-1].reshape(size)),
        )
        for i in range(len(records))
    ]


def _reasons(column: str, nats: np.ndarray, latent: float) -> list[Contribution]:
    reasons = [
        Contribution(f"{column}, {row} {place}", float(part.sum()), "", "")
        for row, band in zip(ROWS, np.array_split(nats, 3, axis=0), strict=True)
        for place, part in zip(COLUMNS, np.array_split(band, 3, axis=1), strict=True)
        if part.size
    ]
    reasons.append(Contribution(COMBINATION, latent, "", "", None, "an image that is unusual as a whole"))
    return reasons


def reference_values(detector: Detector, row: int, columns: Sequence[str]) -> tuple[str, ...]:
    """Nothing: regions have no values to be read."""
    return ("",) * len(columns)
