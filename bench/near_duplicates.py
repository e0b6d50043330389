"""Measures how well the same picture is known again, and how rarely another one is taken for it.

Run `python -m bench.near_duplicates`. Peer: the 64-bit perceptual hash (signs of 8×8 cosines, up to 10 bits may
differ) that is mostly used for photographs, in the same run. Images: Kermany's
chest X-rays if present, and synthetic scans.
"""

from __future__ import annotations

import argparse
import csv
import io
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from components.ingest.perceptual_hash import perceptual_hash
from components.merge.near_duplicates import group_near_duplicates
from medloop.synth.people import Cohort, plan
from medloop.synth.phantom import render

KERMANY = Path(__file__).resolve().parents[2] / "shared" / "data" / "kermany_cxr"
WITHIN = 23
PEER_WITHIN = 10
Picture = NDArray[np.uint8]
Words = NDArray[np.uint64]


class Pictures(NamedTuple):
    """Pictures with what must not be taken for one another: those of other groups."""

    name: str
    pixels: list[Picture]
    groups: list[str]


def kermany(folder: Path) -> Pictures:
    with (folder / "manifest.csv").open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    pixels = [np.asarray(Image.open(folder / row["image"]).convert("L")) for row in rows]
    return Pictures("Kermany", pixels, [row["group"] for row in rows])


def synthetic(patients: int) -> Pictures:
    world = Cohort(2, 7, 0.0, False)
    scans = [plan(number, world)[0] for number in range(1, 1 + patients)]
    pixels = [np.rint(render(scan, world) * 255).astype(np.uint8) for scan in scans]
    return Pictures("synthetic", pixels, [scan.patient.name for scan in scans])


def jpeg(pixels: Picture, quality: int) -> Picture:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def resized(pixels: Picture, scale: float, stretch: float = 1.0) -> Picture:
    height, width = pixels.shape
    size = (round(width * scale * stretch), round(height * scale))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def light(pixels: Picture, gamma: float, gain: float, offset: float) -> Picture:
    return np.asarray(np.rint(255 * (pixels / 255) ** gamma * gain + offset).clip(0, 255), dtype=np.uint8)


def cropped(pixels: Picture, random: np.random.Generator) -> Picture:
    height, width = pixels.shape
    top, bottom, left, right = np.rint(random.uniform(0, 0.02, 4) * (height, height, width, width)).astype(int)
    return pixels[top : height - bottom, left : width - right]


def marked(pixels: Picture, random: np.random.Generator) -> Picture:
    image = Image.fromarray(pixels)
    place = (float(random.choice([0.04, 0.86])) * image.width, float(random.uniform(0.03, 0.3)) * image.height)
    ImageDraw.Draw(image).text(place, str(random.choice(["L", "R"])), fill=255, font_size=image.height / 12)
    return np.asarray(image)


Change = Callable[[Picture, np.random.Generator], NDArray[Any]]
CHANGES: dict[str, Change] = {
    "JPEG, quality 95": lambda pixels, _: jpeg(pixels, 95),
    "JPEG, quality 50": lambda pixels, _: jpeg(pixels, 50),
    "JPEG, quality 30": lambda pixels, _: jpeg(pixels, 30),
    "half the size": lambda pixels, _: resized(pixels, 0.5),
    "a quarter of the size": lambda pixels, _: resized(pixels, 0.25),
    "3.7 times the size": lambda pixels, _: resized(pixels, 3.7),
    "half the size, 3 % wider, JPEG 50": lambda pixels, _: jpeg(resized(pixels, 0.5, 1.03), 50),
    "gamma 0.8": lambda pixels, _: light(pixels, 0.8, 1, 0),
    "gamma 1.25": lambda pixels, _: light(pixels, 1.25, 1, 0),
    "contrast +20 %, darker by 25": lambda pixels, _: light(pixels, 1, 1.2, -25),
    "contrast −20 %, brighter by 15": lambda pixels, _: light(pixels, 1, 0.8, 15),
    "16 bits": lambda pixels, _: pixels.astype(np.uint16) * 257,
    "a letter added": marked,
    "cropped by up to 2 % at each edge": cropped,
}


def peer(pixels: NDArray[Any]) -> str:
    """The usual 64-bit perceptual hash."""
    gray = pixels if pixels.dtype == np.uint8 else (pixels // 257).astype(np.uint8)
    small = np.asarray(Image.fromarray(gray).resize((32, 32), Image.Resampling.LANCZOS), dtype=float)
    waves = np.cos(np.pi * np.arange(8)[:, None] * (2 * np.arange(32) + 1) / 64)
    strengths = waves @ small @ waves.T
    return np.packbits(strengths > np.median(strengths)).tobytes().hex()


def words(hashes: list[str]) -> Words:
    return np.frombuffer(bytes.fromhex("".join(hashes)), dtype=">u8").astype(np.uint64).reshape(len(hashes), -1)


def differences(hashes: list[str], others: list[str]) -> NDArray[np.int64]:
    return np.asarray(np.bitwise_count(words(hashes) ^ words(others)).sum(axis=1), dtype=np.int64)


def false_pairs(hashes: list[str], names: list[str], within: int) -> tuple[int, int]:
    """How many pairs of other groups are within the limit, and the least difference of such a pair."""
    values, name = words(hashes), np.unique(names, return_inverse=True)[1]
    number, least = 0, 256
    for place in range(len(values) - 1):
        far = np.bitwise_count(values[place + 1 :] ^ values[place]).sum(axis=1)[name[place + 1 :] != name[place]]
        number += int((far <= within).sum())
        least = min(least, int(far.min(initial=256)))
    return number, least


def known_again(pictures: Pictures, number: int) -> Iterator[str]:
    random = np.random.default_rng(1)
    some = [pictures.pixels[place] for place in random.permutation(len(pictures.pixels))[:number]]
    ours, theirs = [perceptual_hash(pixels) for pixels in some], [peer(pixels) for pixels in some]
    for name, change in CHANGES.items():
        changed = [change(pixels, random) for pixels in some]
        far = differences(ours, [perceptual_hash(pixels) for pixels in changed])
        far_peer = differences(theirs, [peer(pixels) for pixels in changed])
        cells = (f"{(far <= WITHIN).mean():.1%}", f"{int(np.median(far))}, {far.max()}")
        yield f"| {pictures.name}: {name} | {' | '.join(cells)} | {(far_peer <= PEER_WITHIN).mean():.1%} |"


def cost_of_decoding(pixels: Picture, besides: Callable[[], object]) -> tuple[float, float]:
    """The microseconds to decode a JPEG of these pixels, and those for what is done besides, in turn."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)

    def decode() -> object:
        return np.asarray(Image.open(io.BytesIO(buffer.getvalue())))

    times: list[list[float]] = [[], []]
    for _ in range(100):
        for spent, job in zip(times, (decode, besides), strict=True):
            begun = time.perf_counter()
            job()
            spent.append(time.perf_counter() - begun)
    return float(np.median(times[0])) * 1e6, float(np.median(times[1])) * 1e6


def varied(pictures: Pictures, number: int) -> list[str]:
    """So many looks: of the pictures, and of them turned, sheared and scaled at random as other patients would be."""
    looks = [perceptual_hash(pixels) for pixels in pictures.pixels][:number]
    random = np.random.default_rng(2)
    while len(looks) < number:
        image = Image.fromarray(pictures.pixels[len(looks) % len(pictures.pixels)])
        a, b, c, d, e, f = random.uniform(-0.12, 0.12, 6)
        matrix = (1 + a, b, c * image.width, d, 1 + e, f * image.height)
        turned = image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
        looks.append(perceptual_hash(np.asarray(turned)))
    return looks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kermany", type=Path, default=KERMANY, help="the folder of Kermany's chest X-rays")
    parser.add_argument("--patients", type=int, default=1000, help="synthetic patients (1000)")
    parser.add_argument("--changed", type=int, default=1000, help="pictures that are changed in each way (1000)")
    parser.add_argument("--looks", type=int, default=100_000, help="looks among which groups are sought (100000)")
    given = parser.parse_args()
    sets = [kermany(given.kermany)] if given.kermany.is_dir() else []
    sets.append(synthetic(given.patients))
    print("| pictures of others taken for the same | here | least difference | peer |\n|---|---|---|---|")
    for pictures in sets:
        number, least = false_pairs([perceptual_hash(pixels) for pixels in pictures.pixels], pictures.groups, WITHIN)
        usual, _ = false_pairs([peer(pixels) for pixels in pictures.pixels], pictures.groups, PEER_WITHIN)
        pairs = len(pictures.pixels) * (len(pictures.pixels) - 1) // 2
        print(f"| {pictures.name}: {len(pictures.pixels):,} images, {pairs:,} pairs | {number} | {least} | {usual:,} |")
    print("\n| the same picture known again | here | bits that differ: median, most | peer |\n|---|---|---|---|")
    for pictures in sets:
        print("\n".join(known_again(pictures, given.changed)), flush=True)
    print("\n| cost | decode a JPEG | its look | share |\n|---|---|---|---|")
    for side in (224, 512, 1024, 2000):
        pixels = np.asarray(Image.fromarray(sets[0].pixels[0]).resize((side, side), Image.Resampling.BICUBIC))
        decode, spent = cost_of_decoding(pixels, partial(perceptual_hash, pixels))
        print(f"| {side}×{side} | {decode:.0f} µs | {spent:.0f} µs | {spent / decode:.1%} |", flush=True)
    looks = varied(sets[0], given.looks)
    begun, worked = time.perf_counter(), time.process_time()
    found = group_near_duplicates(looks, WITHIN)
    spent, worked = time.perf_counter() - begun, time.process_time() - worked
    print(f"\nGroups among {len(looks):,} looks: {spent:.2f} s ({worked:.2f} s of CPU), {found.max() + 1} groups.")


if __name__ == "__main__":
    main()
