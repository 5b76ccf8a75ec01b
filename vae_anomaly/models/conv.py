"""A convolutional VAE for images of any size: residual or plain convolutions, Bernoulli or Gaussian pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

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


class ImageEncoder(nn.Module):
    """Convolutions of stride 2, each followed by a residual block where wanted; a linear layer for [image, context]."""

    rows = ROWS

    def __init__(self, layout: PixelLayout, channels: Sequence[int], outputs: int, residual: bool) -> None:
        super().__init__()
        self.layout = layout
        layers: list[nn.Module] = []
        for a, b in pairwise([layout.channels, *channels]):
            layers += [nn.Conv2d(a, b, 3, stride=2, padding=1), *([Residual(b)] if residual else []), nn.SiLU()]
        self.layers = nn.Sequential(*layers)
        height, width = reduced(layout, len(channels))
        self.out = nn.Linear(channels[-1] * height * width + layout.context, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, F + C) to (B, outputs)."""
        return in_blocks(self._encode, x, ROWS)

    def _encode(self, x: Tensor) -> Tensor:
        pixels, context = torch.split(x, [self.layout.features, self.layout.context], -1)
        found = self.layers(pixels.reshape(-1, *self.layout.shape)).flatten(1)
        return product(torch.cat([found, context], -1), self.out.weight, self.out.bias)


class ImageDecoder(nn.Module):
    """The encoder's mirror image: a linear layer, then transposed convolutions to the declared size."""

    rows = ROWS

    def __init__(self, layout: PixelLayout, channels: Sequence[int], inputs: int, residual: bool) -> None:
        super().__init__()
        self.layout = layout
        self.start = (channels[-1], *reduced(layout, len(channels)))
        self.into = nn.Linear(inputs, math.prod(self.start))
        layers: list[nn.Module] = []
        sizes = [reduced(layout, depth) for depth in range(len(channels), -1, -1)]
        widths = [*reversed(channels), layout.channels]
        for (a, b), (size, larger) in zip(pairwise(widths), pairwise(sizes), strict=True):
            # the padding that gives an odd size back
            extra = tuple(new - (2 * old - 1) for old, new in zip(size, larger, strict=True))
            layers += [*([Residual(a)] if residual else []), nn.SiLU()]
            layers.append(nn.ConvTranspose2d(a, b, 3, stride=2, padding=1, output_padding=extra))  # type: ignore[arg-type]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        """(..., K + C) to (..., F)."""
        flat = in_blocks(self._decode, z.reshape(-1, z.shape[-1]), ROWS)
        return flat.view(*z.shape[:-1], -1)

    def _decode(self, z: Tensor) -> Tensor:
        start = product(z, self.into.weight, self.into.bias).view(-1, *self.start)
        out: Tensor = self.layers(start).flatten(1)
        return out


def reduced(layout: PixelLayout, depth: int) -> tuple[int, int]:
    """Height and width after ``depth`` halvings, rounded up."""
    return -(-layout.height // 2**depth), -(-layout.width // 2**depth)


def conv_vae(
    layout: PixelLayout,
    *,
    channels: Sequence[int] = (32, 64),
    latent: int = 32,
    residual: bool = False,
    prior: str = "standard",
    pseudo_inputs: int = 50,
) -> VAE:
    """Convolutions that halve the image once for each entry of ``channels``, mirrored in the decoder.

    Parameters
    ----------
    layout : channels, height and width of the images, and the family of their pixels.
    channels : channels after each halving, each at least 1.
    latent : K, at least 1.
    residual : a residual block at each size.
    prior : ``standard``, or ``vamp`` for the mixture of the posteriors of ``pseudo_inputs`` learned images.
    """
    if latent < 1 or not channels or min(channels) < 1:
        raise ConfigError(
            "model: latent must be at least 1, and channels one number or more, each at least 1."
            f" Got {latent} and {list(channels)}."
        )
    posterior = GaussianHead(ImageEncoder(layout, channels, 2 * latent, residual))
    decoder = ImageDecoder(layout, channels, latent + layout.context, residual)
    chosen = prior_of(prior, posterior, latent, layout, pseudo_inputs)
    return VAE(posterior, chosen, FactorisedLikelihood(decoder, layout))
