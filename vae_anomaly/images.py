"""From files and arrays of images to the pixels of one size that a model sees, the same bits wherever it is done.

============================  =======================================================================================
what comes                    what becomes of it
============================  =======================================================================================
PNG, JPEG, TIFF               read to the end; what a file is, its content says, and never its name
any other format              ``image_format``
cut, damaged, odd metadata    ``corrupt_image``: whatever makes the decoder fail or warn; where the pixels of a damaged
                              JPEG file can be read nevertheless, that cannot be seen from its content
several frames or pages       ``animated``
a header of too many pixels   ``image_bomb``, before any is decoded: beyond 4 times the declared size and ``LARGEST``
16 bits                       divided by 257; colours of 16 bits by 256, as the decoder does
1 bit, palette, CMYK, YCbCr   converted to grey or colours
transparency                  laid over black, so that the hidden colour of a transparent pixel does not count
float, 32 bits, Lab           ``image_mode``, for their range is not known
orientation in the metadata   applied
another size                  scaled, if height : width is within 2 % of the declared one; otherwise ``image_size``
============================  =======================================================================================

Scaling is Pillow's bilinear filter, which averages where it reduces and computes in integers. Grey of colours is
(299 R + 587 G + 114 B) / 1000.

Legend: B images, H x W pixels, C channels (1 or 3).
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import ExifTags, Image

FORMATS = ("PNG", "JPEG", "TIFF")
BEGINNINGS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
LARGEST = 2**24  # pixels
GREY, COLOURS = ("1", "L"), ("P", "PA", "LA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr")
DEEP = ("I;16", "I;16B", "I;16L", "I;16N")
TRANSPARENT = ("LA", "PA", "RGBA", "RGBa")
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
TILE_WIDTH, TILE_LENGTH, BITS, PHOTOMETRIC = 322, 323, 258, 262


class Undecodable(ValueError):
    """An image that gives no pixels; ``reason`` is the machine-readable name of why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def decode(content: bytes, size: tuple[int, int], channels: int) -> np.ndarray:
    """(H, W, C) uint8 of a PNG, JPEG or TIFF file; see the module's table. Raises :class:`Undecodable`."""
    if not any(content.startswith(beginning) or beginning.startswith(content) for beginning in BEGINNINGS):
        raise Undecodable("image_format")
    try:
        with warnings.catch_warnings():
            for category in (UserWarning, RuntimeWarning):  # not those that tell us of Pillow's future
                warnings.simplefilter("error", category)
            image = _scaled(_upright(_opened(content, max(LARGEST, 4 * size[0] * size[1]))), size)
            pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    except (Undecodable, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise Undecodable("image_bomb") from None
    except Exception:  # a damaged or hostile file makes a decoder raise anything; the text may quote it
        raise Undecodable("corrupt_image") from None
    return pixels.reshape(*size, channels)


def _opened(content: bytes, limit: int) -> Image.Image:
    """The only image of a file, all of it read, if its header promises at most ``limit`` pixels."""
    image = Image.open(io.BytesIO(content), formats=FORMATS)
    tags = getattr(image, "tag_v2", {})
    tile = tags.get(TILE_WIDTH, 0) * tags.get(TILE_LENGTH, 0)  # is decoded as a whole, even beyond the image's edge
    if max(image.width * image.height, tile) > limit:
        raise Undecodable("image_bomb")
    if getattr(image, "is_animated", False):
        raise Undecodable("animated")
    image.load()
    return image


def _upright(image: Image.Image) -> Image.Image:
    """The image in grey or colours of 8 bits, turned as its metadata says."""
    turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    if image.mode in DEEP:
        plain = _from_16_bits(image)
    elif image.mode not in (*GREY, *COLOURS):
        raise Undecodable("image_mode")
    elif image.mode in TRANSPARENT or "transparency" in image.info:
        plain = _over_black(image)
    else:
        plain = image.convert("L" if image.mode in GREY else "RGB")
    return plain if turn is None else plain.transpose(turn)


def _from_16_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits; of TIFF's other variants (12 bits, white is zero) the range is not what it seems."""
    tags = getattr(image, "tag_v2", {})
    if tags.get(BITS, (16,)) != (16,) or tags.get(PHOTOMETRIC, 1) != 1:
        raise Undecodable("image_mode")
    deep = np.asarray(image)
    grey, transparent = to_bytes(deep), image.info.get("transparency")
    return Image.fromarray(grey if transparent is None else np.where(deep == transparent, np.uint8(0), grey))


def _over_black(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image.convert("RGBA")).astype(np.uint16)  # (H, W, 4)
    return Image.fromarray(((pixels[..., :3] * pixels[..., 3:] + 127) // 255).astype(np.uint8))


def _scaled(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    height, width = size
    if (image.height, image.width) == size:
        return image
    if 50 * abs(image.width * height - image.height * width) > image.height * width:
        raise Undecodable("image_size")
    return image.resize((width, height), Image.Resampling.BILINEAR)


def to_bytes(pixels: np.ndarray) -> np.ndarray:
    """uint8 of pixels of 8 bits, of 16 bits, or of floats within [0, 1]."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype.kind == "f":
        scaled: np.ndarray = np.rint(pixels * np.float32(255)).astype(np.uint8)
        return scaled
    narrow: np.ndarray = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return narrow


def from_arrays(pixels: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """uint8 of (B, H, W, C) pixels, and masks (B,) of images that hold ``non_finite`` or ``out_of_range`` floats.

    The values of such images mean nothing.
    """
    if pixels.dtype.kind != "f":
        return to_bytes(pixels), {}
    values, infinite, beyond = np.zeros(pixels.shape, np.uint8), *np.zeros((2, len(pixels)), bool)
    for i, image in enumerate(pixels):  # one by one: no second array of floats
        infinite[i] = not np.isfinite(image).all()
        beyond[i] = not infinite[i] and bool(((image < 0) | (image > 1)).any())
        if not (infinite[i] or beyond[i]):
            values[i] = to_bytes(image)
    return values, {"non_finite": infinite, "out_of_range": beyond}


def encode(pixels: np.ndarray) -> bytes:
    """The PNG file of (H, W, C) uint8 pixels."""
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG")
    return buffer.getvalue()
