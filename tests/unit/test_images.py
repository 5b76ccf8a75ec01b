"""Decoding of images: what is read, how it becomes the declared pixels, and what is refused for which reason."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vae_anomaly import images
from vae_anomaly.images import Undecodable, decode, encode, from_arrays

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
COLOURS = np.dstack([RAMP, RAMP.T, 255 - RAMP])
SQUARE = (16, 16)
REASONS = ("corrupt_image", "image_format", "image_bomb", "image_mode", "image_size", "animated")


def file(pixels: Any, form: str = "PNG", **options: Any) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def grey(content: bytes, size: tuple[int, int] = SQUARE) -> np.ndarray:
    pixels = decode(content, size, 1)
    assert pixels.shape == (*size, 1)
    assert pixels.dtype == np.uint8
    return pixels[..., 0]


def attempt(content: bytes) -> np.ndarray | str:
    """Colours of 16 x 16, or the reason why there are none."""
    try:
        return decode(content, SQUARE, 3)
    except Undecodable as error:
        return error.reason


def reason(content: bytes, size: tuple[int, int] = SQUARE) -> str:
    with pytest.raises(Undecodable) as caught:
        decode(content, size, 1)
    error = caught.value  # a decoder's own text, which may quote the file, does not show
    assert error.__cause__ is None
    assert error.__suppress_context__ or error.__context__ is None
    return caught.value.reason


# ---------------------------------------------------------------- what is read


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_lossless_files_give_their_pixels(form: str) -> None:
    assert np.array_equal(grey(file(RAMP, form)), RAMP)
    assert np.array_equal(decode(file(COLOURS, form), SQUARE, 3), COLOURS)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_tiff_compressions(compression: str) -> None:
    assert np.array_equal(decode(file(COLOURS, "TIFF", compression=compression), SQUARE, 3), COLOURS)


def test_jpeg_gives_nearly_its_pixels() -> None:
    found = grey(file(RAMP, "JPEG", quality=95)).astype(int)
    assert np.abs(found - RAMP).max() < 8


def test_grey_and_colours_become_each_other() -> None:
    assert np.array_equal(decode(file(RAMP), SQUARE, 3), np.dstack([RAMP] * 3))
    luma = COLOURS.astype(int) @ np.array([0.299, 0.587, 0.114])
    assert np.abs(grey(file(COLOURS)) - luma).max() <= 0.51


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_16_bits_are_scaled_and_not_clipped(form: str, order: str) -> None:
    content = file((RAMP.astype(np.uint16) * 257).astype(order), form)
    assert np.array_equal(grey(content), RAMP)
    clipped = np.asarray(Image.open(io.BytesIO(content)).convert("I").convert("L"))
    assert not np.array_equal(clipped, RAMP)  # what Pillow's own conversion would have given
    between = np.array([[0, 128, 129, 385, 386, 65407, 65535]], np.uint16)
    assert grey(file(between), (1, 7)).tolist() == [[0, 0, 1, 1, 2, 255, 255]]


def test_16_bits_with_a_transparent_grey() -> None:
    assert grey(file(np.array([[514, 771, 1028]], np.uint16), transparency=771), (1, 3)).tolist() == [[2, 0, 4]]


@pytest.mark.parametrize(
    ("mode", "form", "most"),
    [
        *[("1", "PNG", 0), ("1", "TIFF", 0), ("P", "PNG", 0), ("P", "TIFF", 0), ("PA", "TIFF", 0)],
        *[("LA", "PNG", 0), ("LA", "TIFF", 0), ("RGBA", "PNG", 0), ("RGBA", "TIFF", 0), ("RGBX", "TIFF", 0)],
        *[("CMYK", "TIFF", 0), ("CMYK", "JPEG", 3), ("YCbCr", "TIFF", 1), ("YCbCr", "JPEG", 3)],
    ],
)
def test_every_mode_means_its_colours(mode: str, form: str, most: int) -> None:
    steps = Image.fromarray((RAMP // 128 * 255).astype(np.uint8))  # black and white are in every mode's range
    source = steps.convert("RGB") if mode not in ("1", "LA") else steps
    source = source.convert("P").convert(mode) if mode == "PA" else source.convert(mode)
    found = grey(file(source, form))
    assert np.abs(found.astype(int) - np.asarray(steps)).max() <= most


@pytest.mark.parametrize("mode", ["I", "F", "LAB"])
def test_modes_of_unknown_range_are_refused(mode: str) -> None:
    assert reason(file(Image.new(mode, (16, 16)), "TIFF")) == "image_mode"


def test_tiff_of_12_bits_or_inverted_16_bits_is_refused() -> None:
    deep = file(RAMP.astype(np.uint16), "TIFF")
    entries = {258: struct.pack("<HHI", 258, 3, 1), 262: struct.pack("<HHI", 262, 3, 1)}
    for tag, value in ((258, 12), (262, 0)):
        at = deep.index(entries[tag]) + 8
        assert reason(deep[:at] + struct.pack("<H", value) + deep[at + 2 :]) == "image_mode"


# ---------------------------------------------------------------- transparency, orientation, size


def test_the_hidden_colour_of_a_transparent_pixel_does_not_count() -> None:
    red = Image.fromarray(np.full((16, 16, 4), (255, 0, 0, 0), np.uint8))
    assert np.asarray(red.convert("RGB")).max() == 255  # what dropping the transparency would have given
    assert decode(file(red), SQUARE, 3).max() == 0
    half = Image.fromarray(np.full((1, 1, 4), (200, 100, 50, 128), np.uint8))
    assert decode(file(half), (1, 1), 3).ravel().tolist() == [100, 50, 25]


def test_transparency_of_palettes_and_keys() -> None:
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([250, 10, 10, 10, 250, 10])
    for transparency in (0, b"\0\xff"):
        content = file(palette, transparency=transparency)
        assert decode(content, (1, 2), 3).tolist() == [[[0, 0, 0], [10, 250, 10]]]
    assert grey(file(np.array([[7, 8]], np.uint8), transparency=7), (1, 2)).tolist() == [[0, 8]]
    colour = np.array([[[7, 8, 9], [1, 2, 3]]], np.uint8)
    assert decode(file(colour, transparency=(7, 8, 9)), (1, 2), 3).tolist() == [[[0, 0, 0], [1, 2, 3]]]


UNDO = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_orientations_of_an_image_are_the_same_image(form: str, orientation: int) -> None:
    upright = Image.fromarray(RAMP[:8].repeat(8, 0).repeat(8, 1))  # blocks of 8 x 8: exact in JPEG, too
    stored = upright.transpose(UNDO[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x112] = orientation
    found = grey(file(stored, form, exif=exif), (64, 128))
    assert np.array_equal(found, np.asarray(upright))


@pytest.mark.parametrize("orientation", [0, 9, 4711])
def test_orientations_that_do_not_exist_are_none(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    assert np.array_equal(grey(file(RAMP, exif=exif)), RAMP)


def test_an_image_in_the_same_proportions_is_scaled_the_same_way_everywhere() -> None:
    checks = (np.indices((16, 16)).sum(0) % 2 * 255).astype(np.uint8)
    assert np.abs(grey(file(checks), (4, 4)).astype(int) - 127).max() <= 16  # averaged, not picked
    big = np.kron(RAMP[:4, :4], np.ones((8, 8), np.uint8))
    known = [[0, 1, 2, 3], [16, 17, 18, 19], [32, 33, 34, 35], [48, 49, 50, 51]]
    small = grey(file(big), (4, 4))
    assert np.abs(small.astype(int) - known).max() <= 3
    # these very bytes: another decoder would give other scores, and must be noticed
    assert small.tolist() == [[2, 3, 4, 5], [16, 17, 18, 19], [32, 33, 34, 35], [46, 47, 48, 49]]
    assert grey(file(np.full((1, 1), 9, np.uint8)), (28, 28)).tolist() == [[9] * 28] * 28


@pytest.mark.parametrize(
    ("height", "width", "fits"),
    [(100, 100, True), (100, 102, True), (100, 98, True), (100, 103, False), (100, 97, False), (1, 40, False)],
)
def test_proportions_may_differ_by_two_percent(height: int, width: int, fits: bool) -> None:
    content = file(np.zeros((height, width), np.uint8))
    if fits:
        assert grey(content, (10, 10)).shape == (10, 10)
    else:
        assert reason(content, (10, 10)) == "image_size"


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF"])
def test_a_cut_file_is_corrupt_or_complete(form: str) -> None:
    content = file(RAMP, form)
    found = [attempt(content[:length]) for length in range(len(content) + 1)]
    whole = found.pop()
    assert isinstance(whole, np.ndarray)
    pixels = [one for one in found if isinstance(one, np.ndarray)]
    assert all(np.array_equal(one, whole) for one in pixels)  # only what follows the pixels is missing
    assert {one for one in found if isinstance(one, str)} == {"corrupt_image"}
    assert len(pixels) < len(content) / 2


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF"])
@pytest.mark.parametrize("seed", range(3))
def test_damage_gives_pixels_or_a_reason_and_nothing_else(form: str, seed: int) -> None:
    content, g = file(COLOURS, form), np.random.default_rng(seed)
    for _ in range(150):
        damaged = bytearray(content)
        for at in g.integers(0, len(content), g.integers(1, 6)):
            damaged[at] = g.integers(0, 256)
        found = attempt(bytes(damaged))
        assert found in REASONS if isinstance(found, str) else found.shape == (16, 16, 3)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "BMP", "PPM", "ICO", "JPEG2000", "EPS", "PDF", "TGA", "IM", "PCX"])
def test_other_formats_are_refused_whatever_pillow_can_read(form: str) -> None:
    assert reason(file(COLOURS, form)) == "image_format"


@pytest.mark.parametrize("content", [b"<svg/>", b"SIMPLE  =", b"8BPS\0\1", b"PK\3\4", b"\x89PNGx", b"x" * 99])
def test_what_is_no_image_is_refused(content: bytes) -> None:
    assert reason(content) == "image_format"


def test_nothing_is_a_damaged_image() -> None:
    assert [reason(file(RAMP)[:n]) for n in range(9)] == ["corrupt_image"] * 9


def test_several_frames_are_refused() -> None:
    frames = [Image.fromarray(RAMP), Image.fromarray(255 - RAMP)]
    for form in ("PNG", "TIFF", "MPO"):
        content = file(frames[0], form, save_all=True, append_images=frames[1:])
        assert Image.open(io.BytesIO(content)).size == (16, 16)  # Pillow would give the first one, silently
        assert reason(content) == "animated"


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def forged(width: int, height: int) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(100_000, 100_000), (11_000, 11_000), (2**31 - 1, 1), (4097, 4096)])
def test_too_many_pixels_are_refused_by_the_header(width: int, height: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import ImageFile

    decoded: list[int] = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: decoded.append(1))
    assert reason(forged(width, height)) == "image_bomb"
    assert not decoded


def test_the_limit_grows_with_the_declared_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "LARGEST", 100)
    assert grey(file(np.zeros((32, 32), np.uint8))).shape == SQUARE  # 4 times the declared pixels
    assert reason(file(np.zeros((33, 33), np.uint8))) == "image_bomb"


def tiled(side: int) -> bytes:
    """A TIFF file of 16 x 16 grey pixels in one tile."""
    pixels = np.zeros((side, side) if side < 100 else SQUARE, np.uint8).tobytes()
    tags = {256: 16, 257: 16, 258: 8, 259: 1, 262: 1, 277: 1, 322: side, 323: side, 324: 0, 325: len(pixels)}
    tags[324] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + b"\0\0\0\0" + pixels


def test_a_tile_counts_as_it_is_decoded() -> None:
    assert grey(tiled(16)).max() == 0
    assert grey(tiled(32)).max() == 0
    assert reason(tiled(2**14)) == "image_bomb"


@pytest.mark.parametrize("name", [b"zTXt", b"iCCP"])
def test_bombs_of_metadata_are_refused(name: bytes) -> None:
    content = file(RAMP)
    bomb = chunk(name, b"a\0\0" + zlib.compress(b"x" * 80_000_000))
    assert reason(content[:33] + bomb + content[33:]) == "corrupt_image"
    small = chunk(b"zTXt", b"a\0\0" + zlib.compress(b"x"))
    assert np.array_equal(grey(content[:33] + small + content[33:]), RAMP)


# ---------------------------------------------------------------- arrays


def test_what_is_encoded_decodes_to_the_same() -> None:
    for pixels in (RAMP[..., None], COLOURS):
        assert np.array_equal(decode(encode(pixels), SQUARE, pixels.shape[-1]), pixels)


def test_arrays_of_8_and_16_bits_and_floats_are_the_same_image() -> None:
    eight = RAMP.reshape(4, 8, 8, 1)
    for same in (eight, eight.astype(np.uint16) * 257, *((eight / 255).astype(f"f{n}") for n in (2, 4, 8))):
        values, problems = from_arrays(same)
        assert values.dtype == np.uint8
        assert not any(mask.any() for mask in problems.values())
        assert np.array_equal(values, eight)


def test_floats_outside_their_range_cost_their_image() -> None:
    pixels = np.full((5, 2, 2, 1), 0.5)
    pixels[1, 0, 0, 0], pixels[2, 0, 0, 0], pixels[3, 1, 1, 0] = np.nan, -0.01, 1.01
    _, problems = from_arrays(pixels)
    assert {name: np.flatnonzero(mask).tolist() for name, mask in problems.items()} == {
        "non_finite": [1],
        "out_of_range": [2, 3],
    }
