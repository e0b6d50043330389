"""Measures how much planted writing is found in scans, and how often a scan without any gives an alarm.

Run `python -m bench.burned_in_text`. Images: Kermany's chest X-rays if present (enlarged, with grain), synthetic scans.
Names, dates and numbers of one to three lines are planted in corners, along edges and over the anatomy, white on dark
and black on bright, in the fonts that Pillow and matplotlib bring.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from bench.near_duplicates import KERMANY, cost_of_decoding, kermany, synthetic
from components.ingest.burned_in_text import find_text

FONTS = ("", "DejaVuSans.ttf", "DejaVuSansMono.ttf", "DejaVuSerif.ttf")
PLACES = ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.5, 0.0), (0.5, 1.0), (0.5, 0.55))
HEIGHTS = (9, 12, 16, 24, 32, 48)
Picture = NDArray[np.uint8]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def enlarged(pixels: Picture, side: int, random: np.random.Generator) -> Picture:
    """The picture with its longest side this long, and grain as a scan of that size has it."""
    scale = side / max(pixels.shape)
    size = (round(pixels.shape[1] * scale), round(pixels.shape[0] * scale))
    large = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC), dtype=float)
    return np.asarray((large + random.normal(0, 4, large.shape)).clip(0, 255), dtype=np.uint8)


def font(number: int, height: int) -> Font:
    """A font whose capital letters are this high."""
    name = FONTS[number % len(FONTS)]
    size = round(height / 0.72)
    if not name:
        return ImageFont.load_default(size)
    return ImageFont.truetype(str(Path(mpl.get_data_path()) / "fonts" / "ttf" / name), size)


def words(random: np.random.Generator) -> list[str]:
    """A name, a date and a number, in any order."""

    def some(letters: str, least: int, most: int) -> str:
        return "".join(random.choice(list(letters), int(random.integers(least, most + 1))))

    name = f"{some('ABCDEFGHIKLMNOPRSTUVWZ', 4, 8)}, {some('aeioumnrst', 3, 6).capitalize()}"
    day, month, year = (int(random.integers(*span)) for span in ((1, 29), (1, 13), (1930, 2020)))
    lines = [name, f"{day:02}.{month:02}.{year}", some("0123456789", 6, 10)]
    return [lines[place] for place in random.permutation(3)]


def written(pixels: Picture, text: str, letters: Font, place: tuple[float, float]) -> Picture:
    """The picture with a text in it, white or black, whichever can be read there."""
    image = Image.fromarray(pixels)
    pen = ImageDraw.Draw(image)
    left, top, right, bottom = (round(side) for side in pen.multiline_textbbox((0, 0), text, font=letters))
    x = 6 + round(max(0, image.width - right + left - 12) * place[0])
    y = 6 + round(max(0, image.height - bottom + top - 12) * place[1])
    below = pixels[y : y + bottom, x : x + right]
    pen.multiline_text((x, y), text, fill=0 if np.median(below) > 128 else 255, font=letters)
    return np.asarray(image)


def marked(pixels: Picture, number: int, random: np.random.Generator) -> Picture:
    """The picture with one marker, of a size and at a corner that depend on its number."""
    least = max(pixels.shape) // 30
    letters = font(number, least + number % (3 * least // 2))
    return written(pixels, str(random.choice(["R", "L", "PA", "AP"])), letters, PLACES[number % 2])


def planted(pixels: Picture, number: int, height: int, random: np.random.Generator) -> Picture:
    """The picture with one to three lines of this height, in a font and at a place that depend on its number."""
    lines = words(random)[: 1 + number % 3]
    return written(pixels, "\n".join(lines), font(number, height), PLACES[number % len(PLACES)])


def share_flagged(pictures: list[Picture]) -> float:
    return sum(find_text(pixels) is not None for pixels in pictures) / len(pictures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kermany", type=Path, default=KERMANY, help="the folder of Kermany's chest X-rays")
    parser.add_argument("--number", type=int, default=210, help="pictures of each kind (210)")
    given = parser.parse_args()
    random = np.random.default_rng(3)
    kinds = [kermany(given.kermany)] if given.kermany.is_dir() else []
    kinds.append(synthetic(given.number))
    print("| pictures | alarms without writing | with one marker | writing found, capitals of "
          + " | ".join(f"{height} px" for height in HEIGHTS) + " |")  # fmt: skip
    print("|---|---|---|" + "---|" * len(HEIGHTS))
    for kind in kinds:
        some = [kind.pixels[place] for place in random.permutation(len(kind.pixels))[: given.number]]
        for side in (512, 1024):
            clean = [enlarged(pixels, side, random) for pixels in some]
            marks = [marked(pixels, n, random) for n, pixels in enumerate(clean)]
            alarms = [share_flagged(pictures) for pictures in (clean, marks)]
            found = [share_flagged([planted(p, n, height, random) for n, p in enumerate(clean)]) for height in HEIGHTS]
            cells = [f"{share:.1%}" for share in (*alarms, *found)]
            print(f"| {kind.name}, {len(clean)} at {side} px | {' | '.join(cells)} |", flush=True)
    if len(kinds) > 1:
        begun = time.perf_counter()
        number = sum(find_text(pixels) is not None for pixels in kinds[0].pixels)
        spent = (time.perf_counter() - begun) / len(kinds[0].pixels) * 1e6
        print(
            f"\nKermany as it is, 224×224: {number} of {len(kinds[0].pixels):,} are flagged; {spent:.0f} µs an image."
        )
    print("\n| cost | decode a JPEG | look for writing | share |\n|---|---|---|---|")
    for side in (224, 512, 1024, 2000):
        pixels = enlarged(kinds[0].pixels[0], side, random)
        decode, spent = cost_of_decoding(pixels, partial(find_text, pixels))
        print(f"| {side}×{side} | {decode:.0f} µs | {spent:.0f} µs | {spent / decode:.1%} |", flush=True)


if __name__ == "__main__":
    main()
