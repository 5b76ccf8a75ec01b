"""An image record as the report shows it: small PNGs of the image, its reconstruction and its heat map.

A pixel of the heat map is linear in the nats that it adds to the score: clear at 0, so that the page shows through in
light and dark, blue below, amber and then red above; ``report.css`` draws the same scale. Equal arrays, equal bytes.

Reference: Portable Network Graphics, third edition, W3C 2025.

Legend: H rows and W columns of pixels, C channels (1 grey, 3 red, green and blue).
"""

from __future__ import annotations

import base64
import struct
import zlib
from itertools import count

import numpy as np

from vae_anomaly.report.model import MAX_PNG, Picture

SIDE = 256  # pixels: more than the page has room for
_STEPS = 64  # colours on either side of zero
_STOPS = (-1.0, -1e-9, 0.0, 0.5, 1.0)
_COLOURS = ((45, 110, 225, 255), (45, 110, 225, 0), (245, 166, 35, 0), (245, 166, 35, 255), (205, 25, 45, 255))


def picture(found: np.ndarray, expected: np.ndarray, nats: np.ndarray) -> Picture:
    """The picture of one image.

    Parameters
    ----------
    found, expected : (H, W) or (H, W, C); the image and its reconstruction, uint8 or floats in [0, 1].
    nats : (H, W); what each pixel adds to the score. What is not finite is left clear.

    Images that make a PNG of more than ``MAX_PNG`` characters are shown by blocks of k x k pixels, the smallest k that
    fits: the mean of the colours, the sum of the nats.
    """
    height, width = nats.shape
    images = [_levels(image).reshape(height, width, -1) for image in (found, expected)]
    finite = np.where(np.isfinite(nats), nats, 0.0)[..., None]
    made = (_picture(images, finite, k) for k in count(-(-max(height, width) // SIDE)))
    return next(p for p in made if max(map(len, (p.found, p.expected, p.heat))) <= MAX_PNG)


def _picture(images: list[np.ndarray], nats: np.ndarray, k: int) -> Picture:
    """By blocks of k x k pixels."""
    heat, size = _blocks(nats, k), _blocks(np.ones_like(nats), k)
    most = float(np.abs(heat).max())
    steps = np.rint(heat / (most or 1.0) * _STEPS + _STEPS).astype(np.uint8)
    found, expected = (png(np.rint(_blocks(image, k) / size).astype(np.uint8)) for image in images)
    return Picture(found, expected, png(steps, palette=_palette()), most, nats.shape[1], nats.shape[0])


def png(pixels: np.ndarray, *, palette: np.ndarray | None = None) -> str:
    """``pixels`` (H, W, C) uint8 as a PNG in base64; with ``palette`` (N, 4), of red, green, blue and opacity, they are
    positions in it and C = 1."""
    height, width, channels = pixels.shape
    colour_type = 3 if palette is not None else {1: 0, 3: 2}[channels]
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0))]
    if palette is not None:
        chunks += [(b"PLTE", palette[:, :3].tobytes()), (b"tRNS", palette[:, 3].tobytes())]
    unfiltered = np.zeros((height, 1), np.uint8)  # the filter of each row: none
    rows = np.hstack([unfiltered, pixels.reshape(height, -1)])
    chunks += [(b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b"")]
    parts = (struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks)
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(parts)).decode("ascii")


def _levels(image: np.ndarray) -> np.ndarray:
    """As floats from 0 to 255."""
    levels = image.astype(np.float64)
    return levels if image.dtype == np.uint8 else np.nan_to_num(levels).clip(0.0, 1.0) * 255.0


def _blocks(values: np.ndarray, k: int) -> np.ndarray:
    """Sums over blocks of k x k pixels, smaller at the right and lower edge."""
    rows: np.ndarray = np.add.reduceat(values, np.arange(0, values.shape[0], k), axis=0)
    blocks: np.ndarray = np.add.reduceat(rows, np.arange(0, values.shape[1], k), axis=1)
    return blocks


def _palette() -> np.ndarray:
    """(2 * _STEPS + 1, 4) uint8."""
    at = np.linspace(-1.0, 1.0, 2 * _STEPS + 1)
    palette = np.column_stack([np.interp(at, _STOPS, band) for band in np.transpose(_COLOURS)])
    return palette.round().astype(np.uint8)
