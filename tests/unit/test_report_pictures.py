"""Pictures of image records, read back by another library: every pixel, every colour, every size."""

from __future__ import annotations

import base64
import io
import re
from importlib.resources import files

import numpy as np
import pytest
from PIL import Image

from vae_anomaly.report import pictures
from vae_anomaly.report.model import MAX_PNG
from vae_anomaly.report.pictures import picture, png

DRAW = np.random.default_rng(0)
NOISE = DRAW.integers(0, 256, (128, 100, 3)).astype(np.uint8)


def opened(shown: str) -> Image.Image:
    image = Image.open(io.BytesIO(base64.b64decode(shown, validate=True)))
    image.load()  # checks every checksum
    assert image.format == "PNG"
    return image


def pixels(shown: str) -> np.ndarray:
    """(H, W, 4): what a browser paints."""
    return np.asarray(opened(shown).convert("RGBA"))


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 3), (28, 28)])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_pixel_comes_back(size, channels):
    image = DRAW.integers(0, 256, (*size, channels)).astype(np.uint8)
    made = opened(png(image))
    assert made.mode == {1: "L", 3: "RGB"}[channels]
    np.testing.assert_array_equal(np.asarray(made).reshape(image.shape), image)


def test_an_image_of_another_number_of_channels_is_refused():
    with pytest.raises(KeyError):
        png(np.zeros((2, 2, 2), np.uint8))


def test_image_and_reconstruction_may_be_bytes_or_shares_grey_or_coloured():
    grey = np.array([[0, 51], [102, 255]], np.uint8)
    made = picture(grey, grey / 255, np.zeros((2, 2)))
    assert made.found == made.expected
    np.testing.assert_array_equal(np.asarray(opened(made.found)), grey)
    assert (made.width, made.height, made.heat_max_nats) == (2, 2, 0.0)
    odd = picture(grey, np.array([[-0.5, np.nan], [1.5, 0.2]]), np.zeros((2, 2)))
    assert np.asarray(opened(odd.expected)).tolist() == [[0, 0], [255, 51]]
    colour = DRAW.integers(0, 256, (4, 6, 3)).astype(np.uint8)
    wide = picture(colour, colour / 255, np.zeros((4, 6)))
    np.testing.assert_array_equal(np.asarray(opened(wide.expected)), colour)
    assert (wide.width, wide.height) == (6, 4)


def test_heat_is_clear_at_zero_blue_below_and_ever_less_amber_above():
    nats = np.linspace(-4.0, 8.0, 25).reshape(1, 25)
    made = picture(np.zeros((1, 25)), np.zeros((1, 25)), nats)
    red, green, blue, opacity = pixels(made.heat)[0].T.astype(int)
    assert made.heat_max_nats == 8.0
    assert opacity[nats[0] == 0] == 0
    below, above = nats[0] < 0, nats[0] > 0
    assert (blue[below] > red[below]).all()
    assert (red[above] > blue[above]).all()
    assert (np.diff(opacity[below]) < 0).all()
    assert (np.diff(opacity[above]) >= 0).all()
    upper = nats[0] >= 4
    assert (np.diff(green[upper]) < 0).all()
    assert (opacity[upper] == 255).all()
    assert abs(opacity[nats[0] == -4] - 128)[0] <= 2  # half of the scale, half of the colour
    assert abs(opacity[nats[0] == 2] - 128)[0] <= 4


def test_what_is_not_finite_is_left_clear_and_does_not_stretch_the_scale():
    made = picture(np.zeros((2, 2)), np.zeros((2, 2)), np.array([[np.nan, np.inf], [-np.inf, 3.0]]))
    assert made.heat_max_nats == 3.0
    assert pixels(made.heat)[..., 3].ravel().tolist() == [0, 0, 0, 255]


def test_the_page_draws_the_scale_of_the_heat_map():
    css = (files("vae_anomaly.report") / "templates" / "report.css").read_text(encoding="utf-8")
    gradient = re.search(r"linear-gradient\(to right, (.*?)\) var", css)[1]
    drawn = re.findall(r"rgb\((\d+) (\d+) (\d+)( / 0)?\)(?: (\d+)%)?", gradient)
    stops = [(*map(int, stop[:3]), 0 if stop[3] else 255) for stop in drawn]
    assert stops == list(pictures._COLOURS)
    places = [int(stop[4] or (0 if i == 0 else 100)) for i, stop in enumerate(drawn)]
    np.testing.assert_allclose([p / 50 - 1 for p in places], pictures._STOPS, atol=1e-6)


def test_a_large_image_is_shown_by_blocks_that_keep_the_mean_and_the_sum():
    nats = DRAW.normal(size=NOISE.shape[:2])
    made = picture(NOISE, NOISE / 255, nats)
    assert max(map(len, (made.found, made.expected, made.heat))) <= MAX_PNG
    assert (made.width, made.height) == (100, 128)
    small = np.asarray(opened(made.found)).astype(float)
    k = -(-128 // small.shape[0])
    assert k > 1
    assert small.shape == (-(-128 // k), -(-100 // k), 3)
    np.testing.assert_allclose(small[3, 5], NOISE[3 * k : 4 * k, 5 * k : 6 * k].mean((0, 1)), atol=0.51)
    np.testing.assert_allclose(small[-1, -1], NOISE[(127 // k) * k :, (99 // k) * k :].mean((0, 1)), atol=0.51)
    sums = pictures._blocks(nats[..., None], k)
    assert sums.sum() == pytest.approx(nats.sum())
    assert made.heat_max_nats == pytest.approx(np.abs(sums).max())
    assert len(png(NOISE)) > MAX_PNG  # it would not have fitted


@pytest.mark.parametrize("size", [(3000, 2), (1, 5000), (1500, 1500)])
def test_any_size_fits(size):
    image = DRAW.integers(0, 256, size).astype(np.uint8)
    made = picture(image, image, np.ones(size))
    assert max(map(len, (made.found, made.expected, made.heat))) <= MAX_PNG
    assert max(opened(made.found).size) <= pictures.SIDE


def test_equal_arrays_equal_bytes():
    image = NOISE[:28, :28, :1]
    nats = DRAW.normal(size=(28, 28))
    assert picture(image, image / 255, nats) == picture(image.copy(), image / 255, nats.copy())
    other = nats.copy()
    other[0, 0] += 1.0
    assert picture(image, image / 255, nats) != picture(image, image / 255, other)
