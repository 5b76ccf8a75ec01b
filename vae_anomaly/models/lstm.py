"""The LSTM VAE for texts of Bowman et al. (arXiv 1511.06349): bidirectional encoder, decoder fed z at every step."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from vae_anomaly.distributions import DiagonalGaussian
from vae_anomaly.errors import ConfigError
from vae_anomaly.likelihoods import TokenLayout, TokenLikelihood
from vae_anomaly.likelihoods.tokens import PAD, STEP_ROWS, lstm_step
from vae_anomaly.nn import ContextPrior, StandardPrior, gaussian, in_blocks, product, with_context
from vae_anomaly.vae import VAE


class TextPosterior(nn.Module):
    """q(z given x, c) from the states of both directions at the ends of the text, not at those of the padding."""

    rows = STEP_ROWS

    def __init__(self, layout: TokenLayout, latent: int, embedding: nn.Embedding, *, hidden: int) -> None:
        super().__init__()
        self._shared = (embedding,)  # the decoder's, and saved there
        self.lstm = nn.LSTM(embedding.embedding_dim, hidden, batch_first=True, bidirectional=True)
        self.out = nn.Linear(2 * hidden + layout.context, 2 * latent)

    def forward(self, x: Tensor, context: Tensor | None = None) -> DiagonalGaussian:
        """(B, T) token ids and (B, C) to parameters (B, K)."""
        joint = with_context(x.to(self.out.weight.dtype), context)
        return gaussian(in_blocks(lambda rows: self._moments(rows, x.shape[-1]), joint, self.rows))

    def _moments(self, joint: Tensor, length: int) -> Tensor:
        x = joint[:, :length].long()
        states = self._packed(x) if torch.is_grad_enabled() else self._by_steps(x)
        return product(torch.cat([states, joint[:, length:]], -1), self.out.weight, self.out.bias)

    def _packed(self, x: Tensor) -> Tensor:
        """(B, 2H) with a gradient; an empty text counts as one token of padding."""
        lengths = (x != PAD).sum(-1).clamp_min(1)
        packed = pack_padded_sequence(self._shared[0](x), lengths.cpu(), batch_first=True, enforce_sorted=False)
        _, (last, _) = self.lstm(packed)
        return torch.cat([last[0], last[1]], -1)

    def _by_steps(self, x: Tensor) -> Tensor:
        """The same, step by step with a fixed number of rows: its bits do not depend on the other texts."""
        lengths = (x != PAD).sum(-1).clamp_min(1)
        ends = []
        for reverse in (False, True):
            step = lstm_step(self.lstm, table=self._shared[0].weight, reverse=reverse)
            state = (x.new_zeros((len(x), self.lstm.hidden_size), dtype=self.out.weight.dtype),) * 2
            positions = range(int(lengths.max()))
            for t in reversed(positions) if reverse else positions:
                within = (t < lengths)[:, None]
                new = step(x[:, t], state)
                state = (torch.where(within, new[0], state[0]), torch.where(within, new[1], state[1]))
            ends.append(state[0])
        return torch.cat(ends, -1)


def lstm_vae(layout: TokenLayout, *, embedding: int = 32, hidden: int = 64, latent: int = 32) -> VAE:
    """Embedding, bidirectional LSTM encoder, LSTM decoder fed z at every step, token likelihoods.

    Parameters
    ----------
    layout : vocabulary, length and context of the texts.
    embedding, hidden : widths of the embeddings, which both sides share, and of each LSTM, at least 1.
    latent : K, at least 1.
    """
    if min(embedding, hidden, latent) < 1:
        raise ConfigError(
            f"model: embedding, hidden and latent must be at least 1. Got {embedding}, {hidden} and {latent}."
        )
    prior = ContextPrior(layout.context, latent) if layout.context else StandardPrior(latent)
    likelihood = TokenLikelihood(layout, latent, embedding=embedding, hidden=hidden)
    return VAE(TextPosterior(layout, latent, likelihood.embedding, hidden=hidden), prior, likelihood)
