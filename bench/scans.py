"""Images for the benchmarks: as many as are wanted, each different, of the size and kind that is wanted."""

from __future__ import annotations

import io
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from components.shared.runtime.threads import count_threads

KERMANY = Path(__file__).resolve().parents[2] / "shared" / "data" / "kermany_cxr"
"""Real chest X-rays, where they are at hand."""


def make(folder: Path, count: int, side: int, kind: str = "JPEG", colour: bool = False) -> Path:
    """A source of so many images, two of each patient, in two classes; soft shapes with a little noise."""
    step = 500
    ranges = [(first, min(first + step, count)) for first in range(0, count, step)]
    for name in ("NORMAL", "PNEUMONIA"):
        (folder / name).mkdir(parents=True)
    with ProcessPoolExecutor(count_threads()) as pool:
        list(pool.map(_some, [(folder, *each, side, kind, colour) for each in ranges]))
    return folder


def _some(asked: tuple[Path, int, int, int, str, bool]) -> None:
    folder, first, last, side, kind, colour = asked
    chance = np.random.default_rng(first)
    noise = chance.integers(-3, 4, (side + 64, side + 64), dtype=np.int16)
    for number in range(first, last):
        coarse = chance.integers(20, 230, (10, 10, 3) if colour else (10, 10), dtype=np.uint8)
        soft = np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC), dtype=np.int16)
        y, x = chance.integers(0, 64, 2)
        grain = noise[y : y + side, x : x + side]
        pixels = (soft + (grain[..., None] if colour else grain)).clip(0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, kind, **({"quality": 90} if kind == "JPEG" else {"compress_level": 1}))
        patient = number // 2
        name = f"person{patient:06d}_{number % 2 + 1}.{'jpg' if kind == 'JPEG' else 'png'}"
        (folder / ("PNEUMONIA" if patient % 2 else "NORMAL") / name).write_bytes(buffer.getvalue())


def repeated(source: Path, folder: Path, times: int) -> Path:
    """The images of a source, so many times under other names, without a copy."""
    for path in sorted(source.glob("t*/*/*.jp*g")):
        for number in range(times):
            target = folder / path.parent.name / f"x{number}{path.parent.parent.name}{path.name}"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.hardlink_to(path) if path.stat().st_dev == folder.stat().st_dev else target.symlink_to(path)
    return folder
