"""Networks: a multilayer perceptron and the heads that turn its output into a latent distribution."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from vae_anomaly.distributions import DiagonalGaussian
from vae_anomaly.registry import lookup

# The posterior's scale lies in [e^-6, e^2]: below, a record would claim more precision than float32 arithmetic
# carries through the network; above, the prior N(0, 1) is already wider than the data can ask for.
LOG_SCALE_RANGE = (-6.0, 2.0)
# A matrix product may round a record otherwise when it stands among another number of records: evaluation pads its
# records to a multiple of this number, and then every product has exactly so many rows.
ROWS = 1024


def _silu(product: Tensor) -> Tensor:
    # in place the memory is still in the cache; a gradient needs the product itself and would have it copied
    return functional.silu(product, inplace=not product.requires_grad)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": _silu, "relu": torch.relu_}


def bounded(raw: Tensor, low: float, high: float) -> Tensor:
    """Maps any real number smoothly and monotonically into (low, high)."""
    return low + (high - low) * torch.sigmoid(raw)


class Perceptron(nn.Sequential):
    """Linear layers with an activation between them and none after the last."""

    def __init__(self, layers: Iterable[nn.Linear], activation: str = "silu") -> None:
        super().__init__(*layers)
        self.activation = lookup("activation", ACTIVATIONS, activation)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs) to (B, outputs); without gradients ``ROWS`` records at a time, in the same memory."""
        layers = [(layer.weight, layer.bias) for layer in self if isinstance(layer, nn.Linear)]
        if torch.is_grad_enabled() or x.shape[0] % ROWS:
            for weight, bias in layers[:-1]:
                x = self.activation(functional.linear(x, weight, bias))
            return functional.linear(x, *layers[-1])
        return self._in_blocks(x, [torch.cat([weight.t(), bias[None]]) for weight, bias in layers])

    def _in_blocks(self, x: Tensor, matrices: list[Tensor]) -> Tensor:
        """The same ``ROWS`` records at a time, in memory that is used again and again and stays in the cache.

        Every layer's input has a last column of ones and its matrix the bias as the last row: the product adds it.
        """
        inputs = [x.new_ones(ROWS, len(matrix)) for matrix in matrices]
        out = x.new_empty(len(x), matrices[-1].shape[1])
        for at in range(0, len(x), ROWS):
            inputs[0][:, :-1] = x[at : at + ROWS]
            for rows, matrix, following in zip(inputs, matrices, inputs[1:], strict=False):
                self.activation(torch.mm(rows, matrix, out=following[:, :-1]))
            torch.mm(inputs[-1], matrices[-1], out=out[at : at + ROWS])
        return out


def mlp(sizes: Sequence[int], activation: str = "silu") -> Perceptron:
    """A :class:`Perceptron` of the given ``sizes``, input first."""
    return Perceptron((nn.Linear(a, b) for a, b in pairwise(sizes)), activation)


def with_context(x: Tensor, context: Tensor | None) -> Tensor:
    """[x, c] along the last axis; ``x`` itself where there is no context."""
    return x if context is None else torch.cat([x, context.expand(*x.shape[:-1], -1)], -1)


class GaussianHead(nn.Module):
    """q(z given x, c): a network with 2K outputs, read as mean and bounded log-scale."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, context: Tensor | None = None) -> DiagonalGaussian:
        """(B, F) and (B, C) to a :class:`DiagonalGaussian` with parameters (B, K)."""
        mean, raw = self.net(with_context(x, context)).chunk(2, -1)
        # raw = 1.1 gives a scale of 1: shifting by it starts the posterior at the prior's scale.
        return DiagonalGaussian(mean, bounded(raw + 1.0986, *LOG_SCALE_RANGE).exp())


class StandardPrior(nn.Module):
    """p(z) = N(0, I), whatever the context."""

    zeros: Tensor
    ones: Tensor

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.register_buffer("zeros", torch.zeros(latent), persistent=False)
        self.register_buffer("ones", torch.ones(latent), persistent=False)

    def forward(self, context: Tensor | None = None) -> DiagonalGaussian:
        """The standard normal, with parameters (K,)."""
        return DiagonalGaussian(self.zeros, self.ones)
