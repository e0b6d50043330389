"""The sheet shows each image and its versions in their places, in few bytes, the same each time."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from components.train.augmentation import Augmentation
from components.train.augmentation_sheet import draw_sheet


def grains(rows: int, channels: int = 1, side: int = 128) -> tuple[Tensor, Tensor]:
    """Smooth images with grain, which no PNG can pack, and seven versions of each."""
    chance = torch.Generator().manual_seed(3)
    coarse = torch.rand(rows, channels, 6, 6, generator=chance)
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic", align_corners=False)
    before = (0.9 * smooth + 0.1 * torch.rand(smooth.shape, generator=chance)).clamp(0, 1)
    plan = Augmentation.parse("radiograph")
    return before, torch.stack([plan(before, chance) for _ in range(7)])


def test_places_and_shades() -> None:
    before = torch.tensor([0.0, 1.0])[:, None, None, None].expand(2, 1, 32, 32)
    steps = torch.linspace(0.1, 0.7, 7)[:, None, None, None, None]
    png = draw_sheet(before, steps.expand(7, 2, 1, 32, 32), ["NORMAL", "PNEUMONIA"])
    picture = Image.open(io.BytesIO(png))
    assert picture.mode == "L"
    assert picture.width == 1200
    pixels = np.asarray(picture)
    side = (1200 - 7 * 6) // 8
    for row, middle in enumerate((22 + 22 + side // 2, 22 + (22 + side + 6) + 22 + side // 2)):
        found = [int(pixels[middle, column * (1200 - side) // 7 + side // 2]) for column in range(8)]
        assert found == [0 if row == 0 else 255, *(round(255 * step) for step in steps.flatten().tolist())]
    captions = pixels[22:44]
    assert captions.min() < 120  # the class's name stands there
    assert (pixels[44 : 44 + side, side : side + 6] == 255).all()  # a gap of paper
    assert pixels[44 + side // 2, -1] == round(255 * 0.7)  # up to the right edge


def test_the_same_images_give_the_same_bytes() -> None:
    before, after = grains(2)
    first = draw_sheet(before, after, ["a", "b"])
    assert draw_sheet(before.clone(), after.clone(), ["a", "b"]) == first
    assert draw_sheet(before, after.flip(0), ["a", "b"]) != first


@pytest.mark.slow
@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "P")])
def test_it_stays_small(channels: int, mode: str) -> None:
    before, after = grains(4, channels)
    png = draw_sheet(before, after, ["a class"] * len(before))
    assert len(png) < 200_000
    picture = Image.open(io.BytesIO(png))
    assert picture.mode == mode
    shown = np.asarray(picture.convert("RGB"))[44 : 44 + 144, :144] / 255
    drawn = np.asarray(Image.fromarray((before[0] * 255).to(torch.uint8).expand(3, -1, -1).permute(1, 2, 0).numpy())
                       .resize((144, 144))) / 255  # fmt: skip
    assert np.abs(shown - drawn).mean() < 0.08


def test_a_long_name_is_cut_and_a_wrong_count_is_said() -> None:
    before, after = grains(1, side=32)
    assert Image.open(io.BytesIO(draw_sheet(before, after, ["Pleural effusion " * 40]))).width == 1200
    with pytest.raises(ValueError, match="has 1 images, 7 versions of 1, and 2 names"):
        draw_sheet(before, after, ["a", "b"])
    with pytest.raises(ValueError, match="has 1 images, 0 versions of 1"):
        draw_sheet(before, after[:0], ["a"])
