"""Networks: a multilayer perceptron, the heads that turn its output into a latent distribution, and priors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from vae_anomaly.distributions import DiagonalGaussian, Mixture, mean_and_deviation
from vae_anomaly.registry import lookup

# The posterior's scale lies in [e^-6, e^2]: below, a record would claim more precision than float32 arithmetic
# carries through the network; above, the prior N(0, 1) is already wider than the data can ask for.
LOG_SCALE_RANGE = (-6.0, 2.0)
# A matrix product may round a record otherwise when it stands among another number of records: evaluation pads its
# records to a multiple of this number, and then every product has exactly so many rows.
ROWS = 1024
# And where it stands among them, when the product has few columns (MKL on AMD rounds the rows of up to 11 columns in
# two ways): evaluation gives every product at least so many, the additional ones 0. Layers get a multiple of it: one of
# 32 columns takes two thirds of the time of one of 30.
COLUMNS = 16
# An encoder is shown numbers up to so many units, and the logarithm of what is beyond: one absurd value would else
# carry the latent position so far off that all the other columns look wrong.
SHOWN = 10.0


def _silu(product: Tensor) -> Tensor:
    # in place the memory is still in the cache; a gradient needs the product itself and would have it copied
    return functional.silu(product, inplace=not product.requires_grad)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": _silu, "relu": torch.relu_}


def bounded(raw: Tensor, low: float, high: float) -> Tensor:
    """Maps any real number smoothly and monotonically into (low, high)."""
    return low + (high - low) * torch.sigmoid(raw)


class Perceptron(nn.Sequential):
    """Linear layers with an activation between them and none after the last."""

    rows = ROWS

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
        return self._in_blocks(x, _stacked(layers))[:, : len(layers[-1][1])]

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


def _stacked(layers: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """(inputs + 1, outputs) matrices with the bias as the last row, all with a multiple of ``COLUMNS`` outputs."""
    matrices, inputs = [], layers[0][0].shape[1]
    for weight, bias in layers:
        outputs = len(weight) + -len(weight) % COLUMNS
        matrix = weight.new_zeros(inputs + 1, outputs)
        matrix[: weight.shape[1], : len(weight)] = weight.t()
        matrix[-1, : len(weight)] = bias
        matrices.append(matrix)
        inputs = outputs
    return matrices


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x`` (..., I) times ``weight`` (O, I) plus ``bias`` (O,); without gradients with ``COLUMNS`` columns or more."""
    lack = COLUMNS - len(weight)
    if torch.is_grad_enabled() or lack <= 0:
        return functional.linear(x, weight, bias)
    wide = functional.pad(weight, (0, 0, 0, lack))
    out: Tensor = functional.linear(x, wide, None if bias is None else functional.pad(bias, (0, lack)))
    return out[..., : len(weight)]


def mlp(sizes: Sequence[int], activation: str = "silu") -> Perceptron:
    """A :class:`Perceptron` of the given ``sizes``, input first."""
    return Perceptron((nn.Linear(a, b) for a, b in pairwise(sizes)), activation)


def with_context(x: Tensor, context: Tensor | None) -> Tensor:
    """[x, c] along the last axis; ``x`` itself where there is no context."""
    return x if context is None else torch.cat([x, context.expand(*x.shape[:-1], -1)], -1)


def gaussian(parameters: Tensor) -> DiagonalGaussian:
    """(..., 2K) network outputs as mean and bounded log-scale."""
    mean, raw = parameters.chunk(2, -1)
    # raw = 1.1 gives a scale of 1: shifting by it starts the posterior at the prior's scale.
    return DiagonalGaussian(mean, bounded(raw + 1.0986, *LOG_SCALE_RANGE).exp())


def shown(x: Tensor) -> Tensor:
    """x within ``SHOWN``, and the sign of x times ``SHOWN`` + log(1 + |x| - ``SHOWN``) beyond."""
    # most blocks are inside and done: of an evaluation the logarithms are a fifth, and they change no bit there
    if not torch.is_grad_enabled() and x.is_cpu and x.numel():
        low, high = torch.aminmax(x)
        if low >= -SHOWN and high <= SHOWN:
            return x
    return x.clamp(-SHOWN, SHOWN) + x.sign() * (x.abs() - SHOWN).clamp_min(0.0).log1p()


class GaussianHead(nn.Module):
    """q(z given x, c), or p(z given c): a network with 2K outputs, read as mean and bounded log-scale."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, context: Tensor | None = None) -> DiagonalGaussian:
        """(B, F) and (B, C) to a :class:`DiagonalGaussian` with parameters (B, K)."""
        return gaussian(self.net(with_context(shown(x), context)))


class UnitEncoder(nn.Module):
    """q(z given x, c) of x with its discrete features, those from ``first`` on, in units of their own deviations.

    A rare one is else hardly seen by a network, and lost in the noise of training.
    """

    center: Tensor
    scale: Tensor

    def __init__(self, posterior: nn.Module, first: int, discrete: int) -> None:
        super().__init__()
        self.posterior, self.first = posterior, first
        self.register_buffer("center", torch.zeros(discrete))
        self.register_buffer("scale", torch.ones(discrete))

    def learn(self, x: Tensor, observed: Tensor | None = None) -> None:
        """Means and deviations of the observed cells of training features ``x`` (M, F)."""
        center, scale = mean_and_deviation(x[:, self.first :], None if observed is None else observed[:, self.first :])
        self.center.copy_(center)
        self.scale.copy_(scale)

    def scaled(self, noise: Tensor) -> Tensor:
        """Noise (B, F) of deviation 1 in the units of the features."""
        return torch.cat([noise[:, : self.first], noise[:, self.first :] * self.scale], -1)

    def forward(self, x: Tensor, context: Tensor | None = None) -> DiagonalGaussian:
        """(B, F) and (B, C) to a :class:`DiagonalGaussian` with parameters (B, K)."""
        discrete = (x[..., self.first :] - self.center) / self.scale
        found: DiagonalGaussian = self.posterior(torch.cat([x[..., : self.first], discrete], -1), context)
        return found


class StandardPrior(nn.Module):
    """p(z) = N(0, I), whatever the context."""

    zeros: Tensor
    ones: Tensor

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.latent = latent
        self.register_buffer("zeros", torch.zeros(latent), persistent=False)
        self.register_buffer("ones", torch.ones(latent), persistent=False)

    def forward(self, context: Tensor | None = None) -> DiagonalGaussian:
        """The standard normal, with parameters (K,)."""
        return DiagonalGaussian(self.zeros, self.ones)


class ContextPrior(nn.Module):
    """p(z given c): a learned Gaussian for each context (Sohn et al., NeurIPS 2015)."""

    def __init__(self, context: int, latent: int, hidden: int = 64) -> None:
        super().__init__()
        self.latent, self.head = latent, GaussianHead(mlp([context, hidden, 2 * latent]))

    def forward(self, context: Tensor | None = None) -> DiagonalGaussian:
        """(B, C) to parameters (B, K)."""
        assert context is not None, "a prior that depends on the context needs one"
        found: DiagonalGaussian = self.head(context)
        return found


class VampPrior(nn.Module):
    r"""The mixture of the posteriors of U learned pseudo-inputs, :math:`p(z) = \tfrac1U \sum_u q(z | x_u)`.

    ``domain`` maps unconstrained numbers (U, F) to what records look like.
    Reference: Tomczak and Welling, VAE with a VampPrior, AISTATS 2018, arXiv 1705.07120.
    """

    def __init__(
        self, posterior: nn.Module, latent: int, *, features: int, count: int, domain: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__()
        # in a tuple: the weights are those of the posterior and are saved there
        self.latent, self._shared, self._domain = latent, (posterior,), domain
        self.pseudo_inputs = nn.Parameter(torch.randn(count, features))

    def forward(self, context: Tensor | None = None) -> Mixture:
        """The mixture with parameters (U, K)."""
        q = self._shared[0](self._domain(self.pseudo_inputs), None)
        return Mixture(q.mean, q.scale)


def in_blocks(function: Callable[[Tensor], Tensor], x: Tensor, rows: int) -> Tensor:
    """``function`` of ``x`` (B, ...), ``rows`` records at a time where no gradient is wanted and B is a multiple.

    A record's result must not depend on how many others stand beside it, and what is at work stays in the cache.
    """
    if torch.is_grad_enabled() or len(x) % rows or not len(x):
        return function(x)
    return torch.cat([function(part) for part in torch.split(x, rows)])
