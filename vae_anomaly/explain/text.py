"""Texts: the surprise of every token, -log p in nats whatever the score is, and what makes up the score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
import torch

from vae_anomaly.batch import Records
from vae_anomaly.detector import Detector, over_chunks
from vae_anomaly.explain.shared import Explanation, context_reasons, neighbours, paired, shortened, strongest
from vae_anomaly.likelihoods.tokens import CUT, PAD, SPECIAL, UNKNOWN
from vae_anomaly.preprocessing.text import TextPreprocessor, pieces
from vae_anomaly.report.model import COMBINATION, Contribution, Replacement, Token
from vae_anomaly.vae import Inputs


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


# ---------------------------------------------------------------- what would make a line normal

WORDS, ROUNDS = 4, 2  # tokens of a line that are tried; how often those before them are read again


@dataclass(frozen=True)
class Tokens:
    """The tokens of flagged lines as parts that can be replaced by likelier ones, the end aside; see
    :mod:`vae_anomaly.explain.counterfactual`. A token is replaced by the one that the first member expects there, of
    those that can be written: a placeholder stands for many."""

    detector: Detector
    records: Records
    explanations: Sequence[Explanation]

    @property
    def count(self) -> int:
        """T, the number of positions."""
        return self._preprocessor.layout.length

    @property
    def order(self) -> list[list[int]]:
        """The positions of the most surprising tokens of each line."""
        found = ([token.nats for token in e.tokens[:-1]] for e in self.explanations)
        return [sorted(range(len(nats)), key=lambda i, nats=nats: -nats[i])[:WORDS] for nats in found]  # type: ignore[misc]

    @property
    def _preprocessor(self) -> TextPreprocessor:
        assert isinstance(self.detector.preprocessor, TextPreprocessor)
        return self.detector.preprocessor

    @cached_property
    def _written(self) -> torch.Tensor:
        """(V,) bool: the tokens that stand in a line as they are called."""
        names = self._preprocessor.vocabulary
        alone = [[p.token for p in pieces(name, self._preprocessor.replace)] == [name] for name in names]
        return torch.tensor([False] * SPECIAL + alone)

    @cached_property
    def _found(self) -> Inputs:
        return self.detector.encode(self.records)

    def donors(self, rows: np.ndarray, chosen: np.ndarray) -> list[np.ndarray]:
        """Ids (N, T) with those that are expected in place of the chosen ones."""
        inputs, mask = self._found[torch.from_numpy(rows)], torch.from_numpy(chosen)
        x = inputs.x.masked_fill(mask, UNKNOWN)
        for _ in range(ROUNDS):
            seen = Inputs(x, context=inputs.context)
            likely = over_chunks(self.detector.vae, seen, lambda e: e.likelihood.guess(e.seen.x, self._written))
            x = torch.where(mask, likely, x)
        return [x.numpy()]

    def changed(self, rows: np.ndarray, chosen: np.ndarray, donors: np.ndarray, at: np.ndarray) -> Records:
        """The lines ``rows`` with the chosen tokens of ``donors``."""
        records, column = self.records.take(rows), self._preprocessor.column
        lines = [
            self._line(line, np.flatnonzero(some), ids)
            for line, some, ids in zip(records.values[column].to_pylist(), chosen, donors[at], strict=True)  # type: ignore[union-attr]
        ]
        return replace(records, values={**records.values, column: pa.array(lines, pa.string())})

    def _line(self, line: str, places: np.ndarray, ids: np.ndarray) -> str:
        """``line`` with those tokens at ``places``; as it is where written so it would read as other tokens besides."""
        found = pieces(line, self._preprocessor.replace)
        words, tokens = [piece.text for piece in found], [piece.token for piece in found]
        for i in places:
            words[i] = tokens[i] = self._preprocessor.vocabulary[ids[i] - SPECIAL]
        changed = " ".join(words)
        return changed if [piece.token for piece in pieces(changed, self._preprocessor.replace)] == tokens else line

    def replacements(self, row: int, parts: Sequence[int], changed: Records) -> tuple[Replacement, ...]:
        """Both tokens at each position."""
        column, replaced = self._preprocessor.column, self._preprocessor.replace
        found, normal = (
            [p.text for p in pieces(records.values[column][at].as_py(), replaced)]
            for records, at in ((self.records, row), (changed, 0))
        )
        return tuple(Replacement(column, shortened(found[i], 100), normal[i]) for i in sorted(parts))
