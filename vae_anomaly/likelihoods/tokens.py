r"""p(x given z, c) of a text: each token given those before it, by an LSTM that is fed z at every step.

.. math:: \log p(x | z, c) = \sum_{t=1}^{T} \log p(x_t | x_{<t}, z, c)

Token 0 is padding, which has no term, and begins the sequence that the decoder is fed. An unknown token has no term
either: it was never seen, so no network can say how likely it is (its evidence is counted by the preprocessing). In
training some of the fed tokens are replaced by it (word dropout), so that the decoder has to listen to z.

Evaluation walks the sequence step by step with a fixed number of rows: the bits of a record's likelihood then depend
neither on the other records nor on how long they are.

Legend: S samples, B records, T positions, V tokens, K latent dimensions, H hidden units.
Reference: Bowman et al., Generating sentences from a continuous space, CoNLL 2016, arXiv 1511.06349.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from vae_anomaly.nn import in_blocks, product, with_context

PAD, END, UNKNOWN, CUT = range(4)  # padding and beginning, end of the text, a token never seen, text that was cut
SPECIAL = 4
STEP_ROWS = 256


@dataclass(frozen=True)
class TokenLayout:
    """A text of at most ``length`` tokens of a vocabulary of ``vocabulary``; its columns are the positions."""

    vocabulary: int
    length: int
    context: int = 0
    modality: ClassVar[Literal["text"]] = "text"

    @property
    def features(self) -> int:
        """T, the number of positions."""
        return self.length

    @property
    def columns(self) -> int:
        """T"""
        return self.length

    @cached_property
    def column_of_feature(self) -> Tensor:
        """(T,) int64: a position is its own column."""
        return torch.arange(self.length)

    @property
    def column_of_residual(self) -> Tensor:
        """(T,) int64"""
        return self.column_of_feature


@dataclass(frozen=True)
class TokenDistribution:
    """p(x given z) of B texts, or S x B of them: ``z`` (..., B, K + C); ``fed`` (B, T) replaces x as what is fed."""

    decoder: TokenLikelihood
    z: Tensor
    fed: Tensor | None = None

    @property
    def layout(self) -> TokenLayout:
        """The positions."""
        return self.decoder.layout

    def entry_log_prob(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        """log p(x_t given x_<t, z) in nats, (..., B, T); 0 at padding."""
        lead = self.z.shape[:-1]
        tokens, fed, z = (_flat(t, lead) for t in (x, x if self.fed is None else self.fed, self.z))
        joint = torch.cat([z, fed.to(z.dtype), tokens.to(z.dtype)], -1)
        entries = in_blocks(lambda rows: self.decoder.entries(*_parted(rows, x.shape[-1])), joint, STEP_ROWS)
        return entries.view(*lead, -1)

    def log_prob(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        """(..., B) nats."""
        return self.entry_log_prob(x).sum(-1)

    def residuals(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        r"""(..., B, T): :math:`\sqrt{-2 \log p(x_t | x_{<t}, z)}`."""
        return self.entry_log_prob(x).mul(-2.0).clamp_min(0.0).sqrt()

    @torch.no_grad()
    def guess(self, x: Tensor, among: Tensor | None = None) -> Tensor:
        """(B, T) the likeliest token at each position given the true ones before it; of those ``among`` (V,) bool."""
        logits: Tensor = self.decoder.logits(self.z, x)
        return (logits if among is None else logits.masked_fill(~among, -torch.inf)).argmax(-1)


def _flat(t: Tensor, lead: torch.Size) -> Tensor:
    return t.expand(*lead, t.shape[-1]).reshape(-1, t.shape[-1])


def _parted(rows: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """z, fed and true tokens of rows that were joined so that they are cut into blocks together."""
    z, fed, tokens = torch.split(rows, [rows.shape[-1] - 2 * length, length, length], -1)
    return z, fed.long(), tokens.long()


class TokenLikelihood(nn.Module):
    """The decoder: token embeddings, one LSTM layer that is fed [token, z, c] at every step, and a softmax over V
    of [state, z, c]."""

    rows = STEP_ROWS

    def __init__(self, layout: TokenLayout, latent: int, *, embedding: int, hidden: int) -> None:
        super().__init__()
        self.layout = layout
        self.embedding = nn.Embedding(layout.vocabulary, embedding)
        nn.init.normal_(self.embedding.weight, std=0.3)
        self.lstm = nn.LSTM(embedding + latent + layout.context, hidden, batch_first=True)
        self.out = nn.Linear(hidden + latent + layout.context, layout.vocabulary)
        never = torch.zeros(layout.vocabulary)
        never[[PAD, UNKNOWN]] = -torch.inf
        self.register_buffer("never", never, persistent=False)

    never: Tensor

    def forward(self, z: Tensor, context: Tensor | None = None, fed: Tensor | None = None) -> TokenDistribution:
        """(..., K) to the distribution of the texts."""
        return TokenDistribution(self, with_context(z, context), fed)

    def rescale(self, residuals: Tensor, observed: Tensor | None = None) -> None:
        """Nothing: probabilities have no scale that could be set on held-out records."""

    def _states(self, z: Tensor, fed: Tensor) -> Tensor:
        """(B, T, H + K + C) hidden states and z with a gradient, whole sequences at a time."""
        before = functional.pad(fed[:, :-1], (1, 0), value=PAD)
        inputs = torch.cat([self.embedding(before), z[:, None].expand(-1, fed.shape[1], -1)], -1)
        return torch.cat([self.lstm(inputs)[0], inputs[..., self.embedding.embedding_dim :]], -1)

    def logits(self, z: Tensor, fed: Tensor) -> Tensor:
        """(B, T, V)"""
        out: Tensor = self.out(self._states(z, fed)) + self.never
        return out

    def entries(self, z: Tensor, fed: Tensor, tokens: Tensor) -> Tensor:
        """(B, T) log-probabilities of ``tokens``, 0 at padding and at unknown ones."""
        if not torch.is_grad_enabled():
            return self._entries_by_steps(z, fed, tokens)
        length = int((tokens != PAD).sum(-1).max())
        shown = told(tokens[:, :length])
        logits = self.out(self._states(z, fed[:, :length])[shown]) + self.never
        found = -functional.cross_entropy(logits, tokens[:, :length][shown], reduction="none")
        out = z.new_zeros(tokens.shape)
        out[:, :length][shown] = found
        return out

    def _entries_by_steps(self, z: Tensor, fed: Tensor, tokens: Tensor) -> Tensor:
        out = z.new_zeros(tokens.shape)
        steps = self.steps(z)
        logits = next(steps)
        for t in range(int((tokens != PAD).sum(-1).max())):
            found = logits.gather(-1, tokens[:, t : t + 1])[:, 0] - torch.logsumexp(logits, -1)
            out[:, t] = torch.where(told(tokens[:, t]), found, 0.0)
            logits = steps.send(fed[:, t])
        return out

    def steps(self, z: Tensor) -> Generator[Tensor, Tensor, None]:
        """A generator of the logits (B, V) of the next token; send it the tokens (B,) that came."""
        step = lstm_step(self.lstm, extra=z, table=self.embedding.weight)
        state = (z.new_zeros(len(z), self.lstm.hidden_size),) * 2
        token = torch.full((len(z),), PAD, dtype=torch.int64, device=z.device)
        while True:
            state = step(token, state)
            joint = torch.cat([state[0], z], -1)
            token = yield product(joint, self.out.weight, self.out.bias) + self.never


def told(tokens: Tensor) -> Tensor:
    """Where the network has a say: neither padding nor unknown."""
    return (tokens != PAD) & (tokens != UNKNOWN)


State = tuple[Tensor, Tensor]  # (B, H) hidden state and memory


def lstm_step(
    lstm: nn.LSTM, *, table: Tensor, extra: Tensor | None = None, reverse: bool = False
) -> Callable[[Tensor, State], State]:
    """One step of ``lstm`` for tokens (B,) whose embeddings are rows of ``table`` (V, E), joined with ``extra`` (B, K).

    The embeddings' part of the product is made once for each token of the vocabulary, that of ``extra`` once for all
    steps: what is left is one product with the hidden state.
    """
    suffix = "_reverse" if reverse else ""
    weight, recurrent, *biases = (
        getattr(lstm, f"{name}_l0{suffix}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    width = table.shape[1]
    known = product(table, weight[:, :width], biases[0] + biases[1])
    given = 0.0 if extra is None else product(extra, weight[:, width:])

    def step(tokens: Tensor, state: State) -> State:
        gates = known[tokens] + given + product(state[0], recurrent)
        into, forget, cell, out = gates.chunk(4, -1)
        memory = forget.sigmoid() * state[1] + into.sigmoid() * cell.tanh()
        return out.sigmoid() * memory.tanh(), memory

    return step
