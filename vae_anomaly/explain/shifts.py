"""Which columns of a batch have shifted, compared with usual records: what a drift incident names.

Usual are the reference records, or those on which the detector was calibrated again.

One number of each record stands for each column: a table's own values, the brightness of an image, the length of a
text. Times are left out, for a batch's are those of its collection, and so is the context, which is not judged.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from vae_anomaly.detector import Detector
from vae_anomaly.drift import distance, p_value
from vae_anomaly.explain.shared import number
from vae_anomaly.likelihoods.tokens import PAD
from vae_anomaly.preprocessing.image import ImagePreprocessor
from vae_anomaly.preprocessing.tabular import ColumnState, TabularPreprocessor, decode_number
from vae_anomaly.preprocessing.text import TextPreprocessor
from vae_anomaly.report.model import SCORE, Shift
from vae_anomaly.vae import Inputs


def compared(detector: Detector, inputs: Inputs) -> dict[str, np.ndarray]:
    """(B,) float64 of each column that is compared, NaN where missing.

    A number's feature, 0 or 1 of a boolean, the position of a category, the most frequent first and unseen ones last;
    the mean of an image's pixels in [0, 1]; the number of a text's tokens.
    """
    match detector.preprocessor:
        case ImagePreprocessor(column=column):
            return {column: inputs.x.mean(1, dtype=torch.float64).numpy()}
        case TextPreprocessor(column=column):
            return {column: (inputs.x != PAD).sum(1).double().numpy()}
        case TabularPreprocessor(states=states):
            return _table(states, inputs)


def _table(states: tuple[ColumnState, ...], inputs: Inputs) -> dict[str, np.ndarray]:
    x = inputs.x.double().numpy()
    out, at = {}, 0
    for state in states:
        part = x[:, at : at + state.size]
        values = np.where(part.any(1), part.argmax(1), state.size) if state.kind == "category" else part[:, 0]
        if state.kind != "timestamp":
            observed = None if inputs.observed is None else inputs.observed[:, at].numpy() > 0
            out[state.column] = values.astype(float) if observed is None else np.where(observed, values, np.nan)
        at += state.size
    return out


def column_shifts(
    detector: Detector, batch: Mapping[str, np.ndarray], *, level: float, slack: float, least: float
) -> tuple[Shift, ...]:
    """The shifts, of at least ``least``, of the columns of ``batch``, as :func:`compared` gives them; farthest first.

    ``level`` is the rate of false ones, of all columns together. ``slack`` in [0, 1] is how far the records of the
    batch were chosen: the share of normal records that their like leaves out, which is taken off every distance.
    """
    found = []
    for column, normal in (detector.usual or compared(detector, detector.reference.inputs)).items():
        values = batch[column]
        far = distance(normal, values) - slack
        n, m = (int(np.isfinite(v).sum()) for v in (normal, values))
        p = p_value(far, n, m)
        if far >= least and p <= level / len(batch):
            found.append(Shift(column, far, p, *(_usual(detector, column, values, normal))))
    return tuple(sorted(found, key=lambda shift: (-shift.distance, shift.column)))


def score_shift(
    normal: np.ndarray, batch: np.ndarray, *, level: float, least: float, slack: float = 0.0
) -> Shift | None:
    """The shift, of at least ``least``, of scores (m,) from those of normal records (n,), in nats, or None.

    ``slack`` is how far the two kinds of records differ anyway, in total variation; it is taken off.
    """
    far = distance(normal, batch) - slack
    p = p_value(far, len(normal), len(batch))
    if far < least or p > level:
        return None
    now, before = (f"median {number(float(np.median(scores)))}" for scores in (batch, normal))
    return Shift(SCORE, far, p, now, before)


def _usual(detector: Detector, column: str, values: np.ndarray, normal: np.ndarray) -> tuple[str, str]:
    """What is usual in ``values`` and in ``normal``: the median, or the share of the value whose share differs most."""
    now, before = (v[np.isfinite(v)] for v in (values, normal))
    state = next(s for s in detector.preprocessor.all_states if s.column == column)
    if state.kind in ("number", "image", "text"):
        decode = (lambda t: decode_number(state, t)) if state.kind == "number" else float
        word = {"number": "median", "image": "median brightness", "text": "median number of tokens"}[state.kind]
        return f"{word} {number(decode(float(np.median(now))))}", f"{word} {number(decode(float(np.median(before))))}"
    names = {
        "category": (*state.categories, "a value never seen in training"),
        "boolean": ("false", "true"),
        "binary": (number(state.low or 0.0), number(state.high or 0.0)),
    }[state.kind]
    shares = [np.bincount(v.astype(int), minlength=len(names)) / len(v) for v in (now, before)]
    most = int(np.abs(shares[0] - shares[1]).argmax())
    return f"{names[most]!r} {shares[0][most]:.0%}", f"{names[most]!r} {shares[1][most]:.0%}"
