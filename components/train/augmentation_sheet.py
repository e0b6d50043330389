"""A picture of augmented training images: original images, each with augmented versions."""

from __future__ import annotations

import io
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from components.shared.errors import RefusedError

WIDTH = 1200
GAP = 6
CAPTION = 22
INK, PAPER = 60, 255
BYTES = 200_000
LEVELS = (256, 128, 64, 48, 32, 24, 16)
"""Numbers of gray levels or colours to try until the PNG fits into BYTES; noise compresses badly."""


def draw_sheet(before: Tensor, after: Tensor, names: Sequence[str]) -> bytes:
    """Return a PNG 1,200 pixels wide: a row for each image of `before`, with its versions in `after` to the right.

    `before` is [rows, C, H, W] and `after` [versions, rows, C, H, W], in 0..1; `names` has a caption for each row. The
    same images give the same bytes. Up to four rows fit into 200 kB with smooth shades; more have fewer shades.
    """
    versions, rows = after.shape[:2]
    if before.shape != after.shape[1:] or len(names) != rows or not rows or not versions:
        raise RefusedError(
            f"The sheet has {len(before)} images, {versions} versions of {rows}, and {len(names)} names. Pass at least "
            "one version of each image, of the same size, and one name per image."
        )
    across = versions + 1
    side = (WIDTH - (across - 1) * GAP) // across
    left = [column * (WIDTH - side) // versions for column in range(across)]
    mode = "L" if before.shape[1] == 1 else "RGB"
    height = CAPTION + rows * (CAPTION + side + GAP) - GAP
    picture = Image.new(mode, (WIDTH, height), _shade(mode, PAPER))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(14)
    draw.text((left[0], 2), "original", fill=_shade(mode, INK), font=font)
    draw.text((left[1], 2), "augmented (different each time)", fill=_shade(mode, INK), font=font)
    for row in range(rows):
        top = CAPTION + row * (CAPTION + side + GAP)
        draw.text((left[0], top + 2), _fitting(names[row], font), fill=_shade(mode, INK), font=font)
        for x, image in zip(left, [before[row], *after[:, row]], strict=True):
            picture.paste(_drawn(image, mode, side), (x, top + CAPTION))
    return _packed(picture)


def _drawn(image: Tensor, mode: str, side: int) -> Image.Image:
    pixels = (image.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    small = Image.fromarray(pixels[:, :, 0] if mode == "L" else pixels)
    return small.resize((side, side), Image.Resampling.BICUBIC)


def _packed(picture: Image.Image) -> bytes:
    """Return a PNG with as many gray levels or colours as fit into BYTES."""
    for levels in LEVELS:
        if picture.mode == "L":
            steps = [round(round(value * (levels - 1) / 255) * 255 / (levels - 1)) for value in range(256)]
            fewer = picture.point(steps)
        else:
            fewer = picture.quantize(levels, dither=Image.Dither.NONE)
        buffer = io.BytesIO()
        fewer.save(buffer, "PNG", optimize=True)
        if buffer.tell() < BYTES:
            break
    return buffer.getvalue()


def _fitting(name: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Return the name, shortened to the width of the picture."""
    whole = name
    while name and font.getlength(name + ("…" if name != whole else "")) > WIDTH:
        name = name[:-1]
    return name if name == whole else f"{name}…"


def _shade(mode: str, value: int) -> int | tuple[int, ...]:
    return value if mode == "L" else (value,) * len(mode)
