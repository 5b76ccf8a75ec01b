r"""What lies in a detector's latent space: where records lie, and what is decoded elsewhere.

* :func:`encode` and :func:`plane`: posterior means, and their map in two dimensions;
* :func:`traverse`: one dimension changes, the others stay those of a record;
* :func:`interpolate`: the way from one record to another, on a line or on a sphere;
* :func:`generate`: z from the prior, then x; :func:`reconstruct`: x, z, and x again.

Ways are walked in the coordinates :math:`\epsilon` in which the prior is standard normal,
:math:`z = \mu_p + \sigma_p \epsilon` level by level: a level of a ladder follows when one above it changes, and where
the prior depends on a context, so does the place. For a mixture prior they are z itself.

What is decoded comes as the records came: a table as a DataFrame with the columns of the schema, images as
(N, H, W, C) uint8, texts as lines. All of it is deterministic, on the CPU, without gradients; of an ensemble it is the
first member that is looked at.

Legend: B, N records, K latent dimensions, H x W pixels, C channels.
"""

from __future__ import annotations

from vae_anomaly.latent.decoding import Curve, Decoded, Decoding, How, decoded
from vae_anomaly.latent.generation import Generation, Reconstruction, expected, generate, reconstruct, reference_records
from vae_anomaly.latent.space import (
    Colour,
    LatentRecords,
    Method,
    Plane,
    Projection,
    active,
    colour_of,
    encode,
    framed,
    latent_means,
    plane,
    projection,
    reference_means,
    units,
)
from vae_anomaly.latent.walks import Interpolation, Traversal, Way, far_apart, interpolate, traverse

__all__ = [
    "Colour",
    "Curve",
    "Decoded",
    "Decoding",
    "Generation",
    "How",
    "Interpolation",
    "LatentRecords",
    "Method",
    "Plane",
    "Projection",
    "Reconstruction",
    "Traversal",
    "Way",
    "active",
    "colour_of",
    "decoded",
    "encode",
    "expected",
    "far_apart",
    "framed",
    "generate",
    "interpolate",
    "latent_means",
    "plane",
    "projection",
    "reconstruct",
    "reference_means",
    "reference_records",
    "traverse",
    "units",
]
