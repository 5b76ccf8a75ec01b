"""p(x given z, c): what a decoder's numbers mean, by kind of record.

* :mod:`~vae_anomaly.likelihoods.entries`: entries that are independent given z, for tables and images;
* :mod:`~vae_anomaly.likelihoods.tokens`: tokens of a text, each given those before it.

A layout says what the entries of x are and to which *column* each belongs, which is what contributions are listed for:
a column of a table, a pixel of an image, a position of a text.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from vae_anomaly.likelihoods.entries import (
    LOG_SIGMA_RANGE,
    Block,
    FactorisedDistribution,
    FactorisedLikelihood,
    Layout,
    PixelLayout,
)
from vae_anomaly.likelihoods.tokens import TokenDistribution, TokenLayout, TokenLikelihood

__all__ = [
    "LOG_SIGMA_RANGE",
    "AnyLayout",
    "Block",
    "Distribution",
    "FactorisedDistribution",
    "FactorisedLikelihood",
    "Layout",
    "Likelihood",
    "PixelLayout",
    "TokenDistribution",
    "TokenLayout",
    "TokenLikelihood",
]


AnyLayout = Layout | PixelLayout | TokenLayout


class Distribution(Protocol):
    """p(x given z) for B records, or S x B of them."""

    @property
    def layout(self) -> AnyLayout: ...

    def log_prob(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        """(..., B) nats: log p of the observed entries."""

    def entry_log_prob(self, x: Tensor, observed: Tensor | None) -> Tensor:
        """(..., B, F) nats: the terms of :meth:`log_prob`."""

    def residuals(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        """(..., B, R) deviance residuals: half their squared sum is -log p up to a constant."""


Likelihood = FactorisedLikelihood | TokenLikelihood
