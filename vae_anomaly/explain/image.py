"""Images: what each pixel adds to the score, beside the image and its reconstruction, and the sum of each region."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

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
from vae_anomaly.report.model import COMBINATION, Contribution, Replacement
from vae_anomaly.report.pictures import picture
from vae_anomaly.vae import Inputs

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
    found, expected = np.asarray(records.values[preprocessor.column]), _expected(detector, inputs)
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


def _expected(detector: Detector, inputs: Inputs) -> np.ndarray:
    """(B, H, W, C) uint8 reconstructions, the mean of the members'."""
    assert isinstance(detector.preprocessor, ImagePreprocessor)
    means = [over_chunks(m.vae, inputs, lambda e: e.expected()).numpy() for m in detector.members]
    return detector.preprocessor.decode(sum(means[1:], means[0]) / len(means))


@dataclass(frozen=True)
class WholeImages:
    """The images of flagged ``records`` as the only part that can be replaced, by the reconstruction that is shown
    beside it; see :mod:`vae_anomaly.explain.counterfactual`."""

    detector: Detector
    records: Records
    explanations: Sequence[Explanation]

    @property
    def count(self) -> int:
        """One part."""
        return 1

    @property
    def order(self) -> list[list[int]]:
        """The part, of each record."""
        return [[0]] * len(self.records)

    @property
    def _column(self) -> str:
        assert isinstance(self.detector.preprocessor, ImagePreprocessor)
        return self.detector.preprocessor.column

    def donors(self, rows: np.ndarray, chosen: np.ndarray) -> list[Records]:
        """The reconstructions."""
        records = self.records.take(rows)
        expected = _expected(self.detector, self.detector.encode(records))
        return [replace(records, values={**records.values, self._column: expected})]

    def changed(self, rows: np.ndarray, chosen: np.ndarray, donors: Records, at: np.ndarray) -> Records:
        """The reconstructions ``at``: there is no other trial than that of the whole image."""
        return donors.take(at)

    def replacements(self, row: int, parts: Sequence[int], changed: Records) -> tuple[Replacement, ...]:
        """The image, which is shown as a picture."""
        return (Replacement(self._column, "", ""),)


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
