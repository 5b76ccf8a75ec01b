r"""The ladder VAE of Sonderby et al. (NeurIPS 2016): two or more levels of latents, q and p as ladders.

.. math:: p(z) = p(z_L) \prod_l p(z_l | z_{l+1}), \qquad q(z_l | x, z_{l+1}) \propto \hat q(z_l | x)\, p(z_l | z_{l+1})

The posterior of a level below the top is the precision-weighted combination of what the record says (bottom-up) and
what the level above expects (top-down); x is decoded from the lowest level.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor, nn

from vae_anomaly.distributions import DiagonalGaussian, Ladder
from vae_anomaly.errors import ConfigError
from vae_anomaly.likelihoods import FactorisedLikelihood, Layout, PixelLayout
from vae_anomaly.nn import GaussianHead, StandardPrior, mlp, shown
from vae_anomaly.vae import VAE

Level = Callable[[Tensor | None], DiagonalGaussian]


class LadderPrior(nn.Module):
    """p(z): a standard normal at the top, then p(z_l given z_{l+1}); ``sizes`` are those of the levels, top first."""

    def __init__(self, sizes: Sequence[int], hidden: int) -> None:
        super().__init__()
        self.sizes, self.latent = tuple(sizes), sum(sizes)
        self.top = StandardPrior(self.sizes[0])
        self.lower = nn.ModuleList(GaussianHead(mlp([above, hidden, 2 * size])) for above, size in pairwise(self.sizes))

    def forward(self, context: Tensor | None = None) -> Ladder:
        """The ladder, its top with parameters (K_L,)."""
        return Ladder((lambda above: self.top(), *(self.level(i) for i in range(len(self.lower)))), self.sizes)

    def level(self, i: int) -> Level:
        """p(z_l given all levels above), of which it reads the one directly above."""
        head, size = self.lower[i], self.sizes[i]

        def given(above: Tensor | None) -> DiagonalGaussian:
            assert above is not None
            found: DiagonalGaussian = head(above[..., -size:])
            return found

        return given


class LadderPosterior(nn.Module):
    """q(z given x): networks that climb from x, and on the way down the prior's expectation of each level."""

    def __init__(self, layout: Layout | PixelLayout, hidden: Sequence[int], prior: LadderPrior) -> None:
        super().__init__()
        self._shared = (prior,)  # its weights are the prior's and are saved there
        widths = [layout.features, *hidden]
        self.climb = nn.ModuleList(nn.Sequential(mlp([a, b]), nn.SiLU()) for a, b in pairwise(widths))
        self.heads = nn.ModuleList(
            GaussianHead(mlp([width, 2 * size])) for width, size in zip(reversed(hidden), prior.sizes, strict=True)
        )

    def forward(self, x: Tensor, context: Tensor | None = None) -> Ladder:
        """(B, F) to the ladder of q, top first."""
        x, found = shown(x), list[DiagonalGaussian]()
        for climb, head in zip(self.climb, reversed(self.heads), strict=True):
            x = climb(x)
            found.insert(0, head(x))
        prior = self._shared[0]
        lower = (weighted(bottom_up, prior.level(i)) for i, bottom_up in enumerate(found[1:]))
        return Ladder((lambda above: found[0], *lower), prior.sizes)


def weighted(bottom_up: DiagonalGaussian, expected: Level) -> Level:
    """The normalised product of two Gaussians: precisions add, means are weighted by them."""

    def level(above: Tensor | None) -> DiagonalGaussian:
        top_down = expected(above)
        ours, theirs = bottom_up.scale**-2, top_down.scale**-2
        precision = ours + theirs
        return DiagonalGaussian((bottom_up.mean * ours + top_down.mean * theirs) / precision, precision**-0.5)

    return level


class LowestLevel(nn.Module):
    """A decoder of the last ``size`` entries of z."""

    def __init__(self, net: nn.Module, size: int) -> None:
        super().__init__()
        self.net, self.size = net, size

    def forward(self, z: Tensor) -> Tensor:
        """(..., K) to (..., F)."""
        out: Tensor = self.net(z[..., -self.size :])
        return out


def hierarchical_vae(
    layout: Layout | PixelLayout, *, hidden: Sequence[int] = (256, 128), latents: Sequence[int] = (16, 8)
) -> VAE:
    """A ladder with a level for each hidden layer.

    Parameters
    ----------
    layout : the features and their families.
    hidden : widths of the hidden layers on the way up, from x to the top, each at least 1.
    latents : sizes of the levels in the same order, the lowest first; at least two.
    """
    if not len(hidden) == len(latents) >= 2 or min(*hidden, *latents) < 1:
        raise ConfigError(
            "model: hidden and latents must name one width and one size, each at least 1, for each of two levels or"
            f" more. Got {list(hidden)} and {list(latents)}."
        )
    prior = LadderPrior(tuple(reversed(latents)), hidden[0])
    decoder = mlp([latents[0], *reversed(hidden), layout.features])
    likelihood = FactorisedLikelihood(LowestLevel(decoder, latents[0]), layout)
    return VAE(LadderPosterior(layout, hidden, prior), prior, likelihood)
