"""The same picture looks the same in another file, size, depth and light; another picture does not."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from components.ingest.perceptual_hash import perceptual_hash
from components.merge.near_duplicates import group_near_duplicates
from medloop.synth.people import Cohort, plan
from medloop.synth.phantom import render

Picture = NDArray[np.uint8]
WITHIN = 23


@pytest.fixture(scope="module")
def scans() -> list[Picture]:
    """A scan of each of 40 invented patients."""
    world = Cohort(2, 11, 0.0, False)
    return [np.rint(render(plan(number, world)[0], world) * 255).astype(np.uint8) for number in range(20, 60)]


def jpeg(pixels: Picture, quality: int) -> Picture:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def resized(pixels: Picture, scale: float, stretch: float = 1) -> Picture:
    height, width = pixels.shape
    size = (round(width * scale * stretch), round(height * scale))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def marked(pixels: Picture) -> Picture:
    image = Image.fromarray(pixels)
    ImageDraw.Draw(image).text((pixels.shape[1] * 0.04, pixels.shape[0] * 0.05), "R", fill=255, font_size=18)
    return np.asarray(image)


def developed(pixels: Picture, gamma: float, gain: float, offset: float) -> Picture:
    return np.asarray(np.rint(255 * (pixels / 255) ** gamma * gain + offset).clip(0, 255), dtype=np.uint8)


SAME: dict[str, Callable[[Picture], NDArray[Any]]] = {
    "JPEG 95": lambda pixels: jpeg(pixels, 95),
    "JPEG 30": lambda pixels: jpeg(pixels, 30),
    "half": lambda pixels: resized(pixels, 0.5),
    "quarter": lambda pixels: resized(pixels, 0.25),
    "four times": lambda pixels: resized(pixels, 4),
    "half, stretched": lambda pixels: resized(pixels, 0.51, 1.03),
    "darker": lambda pixels: developed(pixels, 1.2, 0.85, 0),
    "brighter": lambda pixels: developed(pixels, 0.85, 1, 12),
    "16 bits": lambda pixels: pixels.astype(np.uint16) * 257,
    "colour": lambda pixels: np.stack([pixels] * 3, axis=2),
    "colour of 16 bits": lambda pixels: np.stack([pixels.astype(np.uint16) * 257] * 3, axis=2),
    "a marker": marked,
    "cropped by 1 %": lambda pixels: pixels[2:-2, 2:-2],
}


def difference(one: str, other: str) -> int:
    return (int(one, 16) ^ int(other, 16)).bit_count()


@pytest.mark.parametrize("name", SAME)
def test_the_same_picture_looks_the_same(name: str, scans: list[Picture]) -> None:
    far = [difference(perceptual_hash(pixels), perceptual_hash(SAME[name](pixels))) for pixels in scans]
    assert max(far) <= WITHIN, far


def test_other_patients_look_otherwise(scans: list[Picture]) -> None:
    assert group_near_duplicates([perceptual_hash(pixels) for pixels in scans], WITHIN).tolist() == [-1] * len(scans)


def test_equal_pixels_have_equal_looks_in_8_and_16_bits(scans: list[Picture]) -> None:
    for pixels in scans:
        assert (
            perceptual_hash(pixels) == perceptual_hash(pixels.copy()) == perceptual_hash(pixels.astype(np.uint16) * 257)
        )


def test_the_mirror_image_looks_otherwise(scans: list[Picture]) -> None:
    assert difference(perceptual_hash(scans[0]), perceptual_hash(np.ascontiguousarray(scans[0][:, ::-1]))) > WITHIN


def test_a_look_has_256_bits_and_a_plain_or_small_picture_none(scans: list[Picture]) -> None:
    assert len(perceptual_hash(scans[0])) == 64
    ramp = np.repeat(np.arange(200, dtype=np.uint8)[:, None], 200, axis=1)
    plain = np.full((200, 300), 90, np.uint8)
    plain[60:120, 100:200] += 1
    assert [perceptual_hash(pixels) for pixels in (np.zeros((100, 100), np.uint16), ramp, plain, scans[0][:31])] == [
        ""
    ] * 4
