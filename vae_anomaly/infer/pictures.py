"""What the first images of a column are like, and the size and channels that are proposed for them.

Legend: N images, H x W pixels, C channels (1 or 3).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vae_anomaly.errors import ConfigError
from vae_anomaly.infer.columns import Choice
from vae_anomaly.infer.writing import counted
from vae_anomaly.schema import LONGEST_SIDE

SEEN, PIXELS = 200, 2**28
"""Most images that are decoded, and about how many pixels of theirs."""
LONGER = 128
"""Pixels of the longer side to which image files are scaled down; with more a fit takes long."""

Size = tuple[int, int]
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Pictures:
    """How many images there are of each shape (H, W, C), and why others give no pixels.

    ``arrays`` must have the size that is declared; ``files`` (PNG, JPEG, TIFF) are scaled to it. ``coloured`` where a
    pixel has a colour.
    """

    arrays: Counter[Shape] = field(default_factory=Counter)
    files: Counter[Shape] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    coloured: bool = False

    @property
    def count(self) -> int:
        """Images that were looked at."""
        return (self.arrays + self.files + self.faults).total()

    def __add__(self, other: Pictures) -> Pictures:
        arrays, files, faults = self.arrays + other.arrays, self.files + other.files, self.faults + other.faults
        return Pictures(arrays, files, faults, self.coloured or other.coloured)


# ---- looking ----


def look_at_files(contents: Iterable[bytes | None]) -> Pictures:
    """What image files hold, up to ``PIXELS`` pixels of them; None is a missing one."""
    from vae_anomaly.images import Undecodable

    files: Counter[Shape] = Counter()
    faults: Counter[str] = Counter()
    pixels, coloured = 0, False
    for content in contents:
        if content is None:
            faults["missing"] += 1
            continue
        try:
            shape, has_colour = _decoded(content)
        except Undecodable as error:
            faults[error.reason] += 1
            continue
        files[shape] += 1
        coloured |= has_colour
        pixels += shape[0] * shape[1]
        if pixels > PIXELS:
            break
    return Pictures(files=files, faults=faults, coloured=coloured)


def _decoded(content: bytes) -> tuple[Shape, bool]:
    """The shape of an image file in its own size, and whether a pixel has a colour; raises ``Undecodable``."""
    from vae_anomaly import images

    try:
        images.decode(content, (1, 1), 1)
    except images.Undecodable as error:
        if error.reason != "image_size":
            raise
    pixels = np.asarray(images._upright(images._opened(content, images.LARGEST)))  # (H, W) or (H, W, 3)
    height, width, *colours = pixels.shape
    return (height, width, 3 if colours else 1), bool(colours) and _has_colour(pixels)


def _has_colour(pixels: np.ndarray) -> bool:
    """Whether the channels (..., 3) differ anywhere."""
    return bool((pixels != pixels[..., :1]).any())


def array_fault(dtype: np.dtype[Any], shape: tuple[int, ...]) -> str | None:
    """Why an array of the images' ``shape``, (H, W) or (H, W, C), holds no images that can be used."""
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3)):
        return f"images must be of the shape [H, W], [H, W, 1] or [H, W, 3]; these are of the shape {list(shape)}"
    if not all(1 <= side <= LONGEST_SIDE for side in shape):
        return f"images must have 1 to {LONGEST_SIDE} pixels a side; these are of the shape {list(shape)}"
    if dtype.kind != "f" and dtype.newbyteorder("=") not in (np.dtype("uint8"), np.dtype("uint16")):
        return f"pixels must be uint8, uint16 or floats from 0 to 1; these are {dtype.newbyteorder('=')}"
    return None


def look_at_array(pixels: np.ndarray) -> Pictures:
    """What images (N, H, W) or (N, H, W, C) are like."""
    from vae_anomaly.images import from_arrays

    shape: Shape = (pixels.shape[1], pixels.shape[2], pixels.shape[3] if pixels.ndim == 4 else 1)
    _, masks = from_arrays(pixels.reshape(-1, *shape))
    faults = Counter({reason: int(mask.sum()) for reason, mask in masks.items() if mask.any()})
    good = Counter({shape: len(pixels) - faults.total()})
    return Pictures(good, faults=faults, coloured=shape[2] == 3 and _has_colour(pixels))


# ---- choosing ----


def choose_image(name: str, seen: Pictures, records: int, path: Path) -> Choice:
    """The column of images ``name`` in the files of ``path``, which have so many ``records``.

    Raises
    ------
    ConfigError
        Most images cannot be decoded, or they have no size or proportions in common.
    """
    _require_pixels(seen, path)
    if len(seen.arrays) > 1:
        shapes = " and ".join(_shown(shape) for shape in seen.arrays)
        raise ConfigError(
            f"{path} must hold arrays of images of one size, for arrays are not scaled. Got {shapes}."
            " Bring them to one size, or keep them in folders of their own."
        )
    own = next(iter(seen.arrays))[:2] if seen.arrays else _commonest(seen.files)
    size = own if seen.arrays else _reduced(own)
    fitting = seen.arrays.total() + sum(n for shape, n in seen.files.items() if _agrees(shape[:2], size))
    if 2 * fitting < seen.count:
        raise ConfigError(
            f"{path} must hold images of the same proportions, within 2 %. Of {seen.count:,} images"
            f" {counted(fitting, 'image')} agree with the most usual, {own[0]} x {own[1]} pixels."
            " Cut or pad them to the same proportions."
        )
    usual = _usual_channels(seen)
    channels = usual if seen.arrays or seen.coloured else 1
    options = f", size: [{size[0]}, {size[1]}], channels: {channels}"
    return Choice(name, "image", _account(seen, records, (*own, usual), size, fitting), options)


def _require_pixels(seen: Pictures, path: Path) -> None:
    """Refuse images half of which or more give no pixels."""
    bad = seen.faults.total()
    if 2 * bad < seen.count:
        return
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(seen.faults.items()))
    what = "floats from 0 to 1" if seen.arrays or "out_of_range" in seen.faults else "whole PNG, JPEG or TIFF files"
    remedy = "Divide them by their largest value" if "out_of_range" in seen.faults else "Repair them or move them away"
    raise ConfigError(
        f"{path} must hold images that can be read: {what}. Of {counted(seen.count, 'image')} {bad:,} cannot be"
        f" ({reasons}). {remedy}."
    )


def _usual_channels(seen: Pictures) -> int:
    """The commonest number of channels; that of arrays, where there are any, for files are converted."""
    channels: Counter[int] = Counter()
    for shape, count in (seen.arrays or seen.files).items():
        channels[shape[2]] += count
    return channels.most_common(1)[0][0]


def _commonest(files: Counter[Shape]) -> Size:
    """The size that most images can be scaled to, and among such sizes the commonest."""
    sizes: Counter[Size] = Counter()
    for shape, count in files.items():
        sizes[shape[:2]] += count
    return max(sizes, key=lambda size: (sum(n for other, n in sizes.items() if _agrees(other, size)), sizes[size]))


def _agrees(own: Size, size: Size) -> bool:
    """Whether an image is scaled to ``size``: the rule of :mod:`vae_anomaly.images`."""
    return own == size or 50 * abs(own[1] * size[0] - own[0] * size[1]) <= own[0] * size[1]


def _reduced(own: Size) -> Size:
    """The largest size of at most ``LONGER`` pixels a side in the same proportions; ``own`` where there is none."""
    longest = max(own)
    smaller = (
        (max(1, round(own[0] * side / longest)), max(1, round(own[1] * side / longest)))
        for side in range(LONGER, 0, -1)
    )
    return own if longest <= LONGER else next((size for size in smaller if _agrees(own, size)), own)


def _account(seen: Pictures, records: int, own: Shape, size: Size, fitting: int) -> str:
    """What was seen, and what becomes of the images that are different."""
    alike = (seen.arrays + seen.files)[own]
    which = counted(seen.count, "image") if seen.count >= records else f"the first {counted(seen.count, 'image')}"
    parts = [f"{which}, {'all' if alike == seen.count else f'{alike:,} of them'} {_shown(own)}"]
    if size != own[:2]:
        parts.append("scaled down for speed: a larger size shows finer faults")
    elif max(size) > LONGER:
        parts.append(
            "so many pixels take long: " + ("store smaller ones" if seen.arrays else "a smaller size is faster")
        )
    bad = seen.faults.total()
    if fitting > alike:
        parts.append(f"{fitting - alike:,} in another size or colour are converted")
    if odd := seen.count - bad - fitting:
        parts.append(f"{odd:,} in other proportions are unscorable")
    if bad:
        parts.append(f"{bad:,} that give no pixels ({', '.join(sorted(seen.faults))}) are unscorable")
    if own[2] == 3 and not seen.coloured:
        parts.append("no pixel has a colour" + ("" if seen.arrays else ", hence one channel: 3 would keep colours"))
    return "; ".join(parts)


def _shown(shape: Shape) -> str:
    return f"{shape[0]} x {shape[1]} {'grey' if shape[2] == 1 else 'in colours'}"
