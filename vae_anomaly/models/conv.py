"""A convolutional VAE for images of any size: plain or residual convolutions, Gaussian or Bernoulli pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from vae_anomaly.errors import ConfigError
from vae_anomaly.likelihoods import FactorisedLikelihood, PixelLayout
from vae_anomaly.models.mlp import prior_of
from vae_anomaly.nn import GaussianHead, in_blocks, product
from vae_anomaly.vae import VAE

ROWS = 64  # images at a time


class Residual(nn.Module):
    """x + conv(silu(conv(silu(x)))), 3 x 3 (He et al., arXiv 1603.05027)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same."""
        out: Tensor = x + self.body(x)
        return out


class Halve(nn.Module):
    """A 4 x 4 convolution of stride 2: sides are halved and rounded up."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H / 2, W / 2)."""
        odd = (0, x.shape[3] % 2, 0, x.shape[2] % 2)
        out: Tensor = self.conv(functional.pad(x, odd) if any(odd) else x)
        return out


class Double(nn.Module):
    """A 4 x 4 transposed convolution of stride 2, cut to ``size``: what :class:`Halve` made of it."""

    def __init__(self, inputs: int, outputs: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.conv, self.size = nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1), size

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', *size)."""
        out: Tensor = self.conv(x)[:, :, : self.size[0], : self.size[1]]
        return out


class ImageEncoder(nn.Module):
    """Halvings, each followed by a residual block where wanted, then linear layers for [image, context]."""

    rows = ROWS

    def __init__(
        self, layout: PixelLayout, channels: Sequence[int], hidden: int, outputs: int, *, residual: bool
    ) -> None:
        super().__init__()
        self.layout = layout
        layers: list[nn.Module] = []
        for a, b in pairwise([layout.channels, *channels]):
            layers += [Halve(a, b), *([Residual(b)] if residual else []), nn.SiLU()]
        # this order of the values in memory takes two thirds of the time
        self.layers = nn.Sequential(*layers).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        height, width = reduced(layout, len(channels))
        self.into = nn.Linear(channels[-1] * height * width + layout.context, hidden)
        self.out = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, F + C) to (B, outputs)."""
        return in_blocks(self._encode, x, ROWS)

    def _encode(self, x: Tensor) -> Tensor:
        pixels, context = torch.split(x, [self.layout.features, self.layout.context], -1)
        image = pixels.reshape(-1, *self.layout.shape).contiguous(memory_format=torch.channels_last)
        joint = torch.cat([self.layers(image).flatten(1), context], -1)
        hidden = functional.silu(product(joint, self.into.weight, self.into.bias))
        return product(hidden, self.out.weight, self.out.bias)


class ImageDecoder(nn.Module):
    """The encoder's mirror image, to the declared size."""

    rows = ROWS

    def __init__(
        self, layout: PixelLayout, channels: Sequence[int], hidden: int, inputs: int, *, residual: bool
    ) -> None:
        super().__init__()
        self.start = (channels[-1], *reduced(layout, len(channels)))
        self.into, self.out = nn.Linear(inputs, hidden), nn.Linear(hidden, math.prod(self.start))
        layers: list[nn.Module] = []
        for depth, (a, b) in zip(
            range(len(channels) - 1, -1, -1), pairwise([*reversed(channels), layout.channels]), strict=True
        ):
            layers += [*([Residual(a)] if residual else []), nn.SiLU(), Double(a, b, reduced(layout, depth))]
        self.layers = nn.Sequential(*layers).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, z: Tensor) -> Tensor:
        """(..., K + C) to (..., F)."""
        flat = in_blocks(self._decode, z.reshape(-1, z.shape[-1]), ROWS)
        return flat.view(*z.shape[:-1], -1)

    def _decode(self, z: Tensor) -> Tensor:
        hidden = functional.silu(product(z, self.into.weight, self.into.bias))
        start = product(hidden, self.out.weight, self.out.bias).view(-1, *self.start)
        out: Tensor = self.layers(start.contiguous(memory_format=torch.channels_last)).flatten(1)
        return out


def reduced(layout: PixelLayout, depth: int) -> tuple[int, int]:
    """Height and width after ``depth`` halvings, rounded up."""
    return -(-layout.height // 2**depth), -(-layout.width // 2**depth)


def conv_vae(
    layout: PixelLayout,
    *,
    channels: Sequence[int] = (16, 32),
    hidden: int = 128,
    latent: int = 64,
    residual: bool = False,
    likelihood: str = "gaussian",
    prior: str = "standard",
    pseudo_inputs: int = 50,
) -> VAE:
    """Convolutions that halve the image once for each entry of ``channels``, mirrored in the decoder.

    Parameters
    ----------
    layout : channels, height and width of the images.
    channels : channels after each halving, each at least 1.
    hidden : width of the linear layer on either side of z, at least 1.
    latent : K, at least 1.
    residual : a residual block at each size.
    likelihood : ``gaussian`` with one scale for all pixels, or ``bernoulli``, for images that are black and white.
    prior : ``standard``, or ``vamp`` for the mixture of the posteriors of ``pseudo_inputs`` learned images.
    """
    if not channels or min(latent, hidden, *channels) < 1:
        raise ConfigError(
            "model: latent and hidden must be at least 1, and channels one number or more, each at least 1."
            f" Got {latent}, {hidden} and {list(channels)}."
        )
    if likelihood not in ("gaussian", "bernoulli"):
        raise ConfigError(f"model: likelihood must be 'gaussian' or 'bernoulli'. Got {likelihood!r}.")
    layout = replace(layout, family=likelihood)  # type: ignore[arg-type]
    posterior = GaussianHead(ImageEncoder(layout, channels, hidden, 2 * latent, residual=residual))
    decoder = ImageDecoder(layout, channels, hidden, latent + layout.context, residual=residual)
    chosen = prior_of(prior, posterior, latent, layout, pseudo_inputs)
    return VAE(posterior, chosen, FactorisedLikelihood(decoder, layout))
