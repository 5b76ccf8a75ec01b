r"""Scores: how strange a record is, in nats, high = anomalous.

A score is fitted once on training evaluations and is then a function of one record's evaluation only. ``terms``
returns (B, Q + 1): one entry for each column and a last one for the latent position (an unusual combination of
values); their sum is the score, exactly as it is reported.

Legend: B records, Q columns, K latent dimensions, R residuals, M reference records.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from vae_anomaly.scores.elbo import kl_score, negative_elbo, reconstruction
from vae_anomaly.scores.importance import importance_weighted
from vae_anomaly.scores.latent_neighbours import latent_neighbours
from vae_anomaly.scores.surprisal import surprisal
from vae_anomaly.vae import Evaluation


class Score(Protocol):
    """A fitted score."""

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """What was fitted, to be saved beside the weights."""

    def __call__(self, evaluation: Evaluation) -> Tensor:
        """(B,) score of each record."""

    def terms(self, evaluation: Evaluation) -> Tensor:
        """(B, Q + 1) entries that sum to the score."""


@runtime_checkable
class Referring(Score, Protocol):
    """A score that compares with reference records, and that more of them never raise."""

    def kept(self, index: Tensor) -> Referring:
        """With only the reference records at ``index``."""

    def left_out(self, evaluation: Evaluation, own: Tensor) -> Tensor:
        """(B,) score of reference records at ``own`` (B,), each as if it were not among them; -1 is none of them."""


# name -> builder(evaluations of the reference records or None, saved tensors or None, **options)
SCORES: dict[str, Callable[..., Any]] = {
    "surprisal": surprisal,
    "latent_neighbours": latent_neighbours,
    "negative_elbo": negative_elbo,
    "importance_weighted": importance_weighted,
    "reconstruction": reconstruction,
    "kl": kl_score,
}
