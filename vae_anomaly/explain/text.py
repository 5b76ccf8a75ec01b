"""Texts: the surprise of every token, -log p in nats whatever the score is, and what makes up the score."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from vae_anomaly.batch import Records
from vae_anomaly.detector import Detector, over_chunks
from vae_anomaly.explain.shared import Explanation, context_reasons, neighbours, paired, shortened, strongest
from vae_anomaly.likelihoods.tokens import CUT, PAD, UNKNOWN
from vae_anomaly.preprocessing.text import TextPreprocessor, pieces
from vae_anomaly.report.model import COMBINATION, Contribution, Token


def explain(detector: Detector, records: Records) -> list[Explanation]:
    """As :func:`vae_anomaly.explain.explain`; the reasons are the line's tokens together and the latent position."""
    preprocessor = detector.preprocessor
    assert isinstance(preprocessor, TextPreprocessor)
    inputs = detector.encode(records)
    nearest, distances = neighbours(detector, inputs)
    terms, ids = detector.terms(inputs), inputs.x.numpy()
    surprises = [
        over_chunks(m.vae, inputs, lambda e: -e.likelihood.entry_log_prob(e.seen.x, None)) for m in detector.members
    ]
    surprise = torch.stack(surprises).mean(0).numpy()
    surprise[ids == UNKNOWN] = preprocessor.unseen_nats
    lines = records.values[preprocessor.column].to_pylist()  # type: ignore[union-attr]
    contexts = context_reasons(preprocessor.context, records)
    return [
        Explanation(
            strongest(_reasons(preprocessor.column, line, ids[i], terms[i]) + contexts[i]),
            paired(nearest[i], distances[i]),
            tokens=_tokens(preprocessor, line, ids[i], surprise[i]),
        )
        for i, line in enumerate(lines)
    ]


def _reasons(column: str, line: str, ids: np.ndarray, terms: np.ndarray) -> list[Contribution]:
    unknown = int((ids == UNKNOWN).sum())
    note = f"{unknown} never seen in training" if unknown else ""
    latent = Contribution(COMBINATION, float(terms[-1]), "", "", None, "a line that is unusual as a whole")
    found = shortened(line)
    return [Contribution(column, float(terms[:-1].sum()), found, "", None, note), latent]


def _tokens(preprocessor: TextPreprocessor, line: str, ids: np.ndarray, surprise: np.ndarray) -> tuple[Token, ...]:
    """The pieces of the line as they stand there, and its end."""
    shown = [shortened(p.text, 100) for p in pieces(line, preprocessor.replace)][: preprocessor.max_tokens]
    notes = {UNKNOWN: "never seen in training", CUT: "the line goes on"}
    shown.append("(cut)" if CUT in ids else "(end)")
    length = int((ids != PAD).sum())
    return tuple(Token(shown[t], float(surprise[t]), notes.get(int(ids[t]), "")) for t in range(length))


def reference_values(detector: Detector, row: int, columns: Sequence[str]) -> tuple[str, ...]:
    """The tokens of the reference line ``row`` for the text column."""
    preprocessor = detector.preprocessor
    assert isinstance(preprocessor, TextPreprocessor)
    ids = detector.reference.inputs.x[row : row + 1].numpy()
    return tuple(preprocessor.decode(ids)[0] if column == preprocessor.column else "" for column in columns)
