"""Points of latent space back to records: features or tokens, then values as they came.

Legend: N records, K latent dimensions, F features, C context, T positions, V tokens.

Reference: Holtzman et al., The curious case of neural text degeneration, ICLR 2020, arXiv 1904.09751 (nucleus
sampling).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from vae_anomaly.detector import Detector, padded
from vae_anomaly.errors import ConfigError, suggestion
from vae_anomaly.likelihoods import FactorisedDistribution, TokenLikelihood
from vae_anomaly.likelihoods.tokens import CUT, END, PAD
from vae_anomaly.preprocessing.image import ImagePreprocessor
from vae_anomaly.preprocessing.tabular import TabularPreprocessor, decode_minutes, decode_numbers
from vae_anomaly.preprocessing.text import TextPreprocessor
from vae_anomaly.training import limited_threads
from vae_anomaly.vae import Inputs

Decoded = pd.DataFrame | np.ndarray | list[str]
How = Literal["greedy", "temperature", "nucleus"]


@dataclass(frozen=True)
class Decoding:
    """How a text is written, token by token: the likeliest (``greedy``), or drawn.

    ``temperature`` divides the logits of what is drawn, of at least 0.01; ``nucleus`` draws among the likeliest tokens
    that together have the probability ``top_p``.
    """

    how: How = "greedy"
    temperature: float = 1.0
    top_p: float = 0.9

    def __post_init__(self) -> None:
        known = list(get_args(How))
        if self.how not in known:
            raise ConfigError(f"how must be one of {known}. Got {self.how!r}.{suggestion(str(self.how), known)}")
        if not 0.01 <= self.temperature < math.inf:
            raise ConfigError(f"temperature must be a number of at least 0.01. Got {self.temperature!r}.")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p must lie in (0, 1]. Got {self.top_p!r}.")

    def choose(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        """(N,) tokens for ``logits`` (N, V)."""
        if self.how == "greedy":
            return logits.argmax(-1)
        share = torch.softmax(logits / self.temperature, -1)
        if self.how == "nucleus":
            ranked, token = share.sort(dim=-1, descending=True, stable=True)
            # a token is kept where those before it have less than top_p together: always the first one
            kept = ranked * (ranked.cumsum(-1) - ranked < self.top_p)
            share = torch.zeros_like(share).scatter_(-1, token, kept)
        return torch.multinomial(share, 1, generator=generator)[:, 0]


def _written(
    likelihood: TokenLikelihood, z: Tensor, count: int, decoding: Decoding, generator: torch.Generator
) -> Tensor:
    """(count, T) ids of the first ``count`` texts of ``z`` (N, K + C); padding after the end."""
    ids = torch.full((len(z), likelihood.layout.length), PAD, dtype=torch.int64)
    going = torch.ones(count, dtype=torch.bool)
    steps = likelihood.steps(z)
    logits = next(steps)
    for t in range(ids.shape[1]):
        token = decoding.choose(logits[:count], generator)
        ids[:count, t] = torch.where(going, token, PAD)
        going &= (token != END) & (token != CUT)
        if not going.any():
            break
        logits = steps.send(ids[:, t])
    return ids[:count]


def drawn(distribution: FactorisedDistribution, generator: torch.Generator) -> Tensor:
    """(N, F) a draw of p(x given z): Gaussian and Bernoulli entries, and one value of each category."""
    layout, mean = distribution.layout, distribution.mean()
    gaussian, bernoulli = layout.size("gaussian"), layout.size("bernoulli")
    noise = torch.randn(len(mean), gaussian, generator=generator)
    chance = torch.rand(len(mean), bernoulli, generator=generator)
    parts = [mean[:, :gaussian] + distribution.sigma * noise]
    parts.append((chance < mean[:, gaussian : gaussian + bernoulli]).float())
    start = gaussian + bernoulli
    for size in layout.categorical_sizes:
        value = torch.multinomial(mean[:, start : start + size], 1, generator=generator)[:, 0]
        parts.append(torch.nn.functional.one_hot(value, size).float())
        start += size
    return torch.cat(parts, 1)


@dataclass(frozen=True)
class Decoder:
    """What points become: the way of writing, and whether entries are drawn or expected."""

    detector: Detector
    generator: torch.Generator
    decoding: Decoding = field(default_factory=Decoding)
    sample: bool = False

    @torch.no_grad()
    def features(self, z: Tensor, context: Tensor | None) -> np.ndarray:
        """(N, F) values, or (N, T) ids, for ``z`` (N, K) and ``context`` (N, C)."""
        vae = self.detector.vae
        with limited_threads(1):
            # as many rows as in scoring: a point's bits do not depend on how many others are decoded
            there = padded(Inputs(z, context=context), vae.rows)
            likelihood = vae.likelihood(there.x, there.context)
            if isinstance(vae.likelihood, TokenLikelihood):
                return _written(vae.likelihood, likelihood.z, len(z), self.decoding, self.generator).numpy()
            if not self.sample:
                return np.asarray(vae.view.inverse(likelihood.mean()[: len(z)]).numpy())
            few = FactorisedDistribution(likelihood.layout, likelihood.parameters[: len(z)], likelihood.sigma)
            return np.asarray(vae.view.inverse(drawn(few, self.generator)).numpy())

    def __call__(self, z: Tensor, context: Tensor | None) -> Decoded:
        return decoded(self.detector, self.features(z, context), context)


def decoded(detector: Detector, x: np.ndarray, context: Tensor | None) -> Decoded:
    """Features or ids (N, F) as records; a table has its context columns as well."""
    preprocessor = detector.preprocessor
    if isinstance(preprocessor, ImagePreprocessor | TextPreprocessor):
        return preprocessor.decode(x)
    values = preprocessor.decode(x)
    if context is not None:
        values |= preprocessor.context.decode(context.numpy())
    return pd.DataFrame({c.name: values[c.name] for c in detector.schema.columns})


def context_frame(detector: Detector, context: Tensor | None) -> pd.DataFrame:
    """The context columns of context vectors (N, C); no column where there is no context."""
    if context is None:
        return pd.DataFrame()
    values = detector.preprocessor.context.decode(context.numpy())
    return pd.DataFrame({c.name: values[c.name] for c in detector.schema.columns if c.context})


class Curve(NamedTuple):
    """Expected ``values`` (N,) of a column in readable units.

    ``change`` is the range of what stands behind them, in robust deviations or as a probability; ``period`` is that of
    values that go round, such as 24 hours.
    """

    name: str
    values: np.ndarray
    change: float
    period: float = math.inf


def curves(detector: Detector, mean: np.ndarray) -> tuple[Curve, ...]:
    """What a table's likelihood expects, (N, F): numbers, the hour, the probability of true, and that of the category's
    value that changes most among the N."""
    preprocessor = detector.preprocessor
    if not isinstance(preprocessor, TabularPreprocessor):
        return ()
    out, at = [], 0
    for state in preprocessor.states:
        part = mean[:, at : at + state.size].astype(np.float64)
        at += state.size
        change = float(np.ptp(part, axis=0).max())
        if state.kind == "number":
            out.append(Curve(state.column, decode_numbers(state, part[:, 0]), change))
        elif state.kind == "timestamp":
            out.append(Curve(f"{state.column}, hour", decode_minutes(state, part) % 1440 / 60, change, 24.0))
        elif state.kind == "boolean":
            out.append(Curve(f"P({state.column})", part[:, 0], change))
        elif state.kind == "binary":
            out.append(Curve(f"P({state.column} = {state.high:g})", part[:, 0], change))
        else:
            value = int(np.argmax(np.ptp(part, axis=0)))
            out.append(Curve(f"P({state.column} = {state.categories[value]})", part[:, value], change))
    return tuple(out)
