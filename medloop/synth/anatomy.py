"""Drawing of a healthy chest film: lungs, ribs, vessels, spine and heart, and basic soft shapes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pixels = NDArray[np.floating[Any]]
    Generator = np.random.Generator


class Frame(NamedTuple):
    """Coordinates of each pixel: across (left to right) and along (top to bottom); the chest extends from -1 to 1."""

    across: Pixels
    along: Pixels


def bump(frame: Frame, across: float, along: float, wide: float, tall: float) -> Pixels:
    """Return a soft spot: 1 at its centre, 0.37 at the given half-widths."""
    import numpy as np

    one = (frame.across - np.float32(across)) / np.float32(wide)
    two = (frame.along - np.float32(along)) / np.float32(tall)
    spot: Pixels = np.exp(-(one * one + two * two))
    return spot


def _edge(depth: Pixels, sharpness: float) -> Pixels:
    """Return a soft edge: 1 well inside (depth above 0), 0 well outside."""
    import numpy as np

    inside: Pixels = 1 / (1 + np.exp(np.clip(-depth * np.float32(sharpness), -30, 30)))
    return inside


def field(shot: Generator, shape: tuple[int, ...], cells: int) -> Pixels:
    """Return a smooth random texture of mean 0 and deviation near 1, with `cells` grains across."""
    import numpy as np
    from PIL import Image

    coarse = Image.fromarray(shot.standard_normal((cells, cells), dtype=np.float32) * np.float32(1.5))
    return np.asarray(coarse.resize((shape[1], shape[0]), Image.Resampling.BICUBIC), dtype=np.float32)


def chest(frame: Frame, body: Generator, shot: Generator, view: str) -> tuple[Pixels, Pixels]:
    """Return the healthy film and the lung mask (0 to 1)."""
    import numpy as np

    across, along = frame
    shoulder = 0.22 * _edge(-0.66 - 0.25 * np.abs(across) - along, 12)
    trunk = _edge(np.float32(body.uniform(0.92, 1.0)) - np.abs(across) * (1 + shoulder), 25)
    film = (0.70 + np.float32(0.03) * field(shot, across.shape, 5)) * trunk
    lungs = _lung(frame, -1, body, shot) + _lung(frame, 1, body, shot)
    film -= np.float32(body.uniform(0.36, 0.44)) * lungs
    film += _ribs(frame, body) * (0.35 + lungs) * trunk
    film += _vessels(frame, shot) * lungs
    spine = body.uniform(0.08, 0.12)
    column = np.square(np.square(across / np.float32(spine)))
    film += np.float32(0.10) * np.exp(-column) * (1 + np.float32(0.15) * np.sin(along * 28))
    heart = body.uniform(0.24, 0.30) * (1.2 if view == "AP" else 1.0)
    film += np.float32(0.34) * lungs * _edge(1 - ((across - 0.12) / heart) ** 2 - ((along - 0.28) / 0.34) ** 2, 7)
    for side in (-1, 1):
        film += np.float32(0.09) * lungs * bump(frame, side * 0.17, -0.05, 0.09, 0.2)
    return film, np.clip(lungs, 0, 1)


def _lung(frame: Frame, side: int, body: Generator, shot: Generator) -> Pixels:
    across, along = frame
    middle, wide, tall = side * body.uniform(0.43, 0.47), body.uniform(0.29, 0.34), body.uniform(0.62, 0.70)
    breath = body.uniform(0.46, 0.56) + shot.normal(0, 0.04) - 0.03 * side
    inside = 1 - ((across - middle) / (wide * (1 + 0.28 * along))) ** 2 - ((along + 0.06) / tall) ** 2
    dome = breath + 0.9 * (across - middle * 0.95) ** 2 - along
    return _edge(inside, 9) * _edge(dome, 28)


def _ribs(frame: Frame, body: Generator) -> Pixels:
    import numpy as np

    across, along = frame
    number, start, strength = body.uniform(4.6, 5.6), body.uniform(0, 1), body.uniform(0.05, 0.10)
    slope = np.abs(across)
    back = np.sin(2 * np.pi * np.float32(number) * (along - 0.45 * slope * slope + np.float32(start)))
    front = np.sin(2 * np.pi * np.float32(number * 0.9) * (along + 0.55 * slope + np.float32(start * 0.7)))
    collar = np.exp(-(((along + 0.66 - 0.14 * slope) / 0.035) ** 2)) * (slope > 0.08)
    bones: Pixels = np.square(np.clip(back, 0, 1)) + 0.5 * np.square(np.clip(front, 0, 1)) + collar
    return np.float32(strength) * bones


def _vessels(frame: Frame, shot: Generator) -> Pixels:
    """Return branching bright lines that become thinner away from the hila."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFilter

    height, width = frame.across.shape
    sheet = Image.new("L", (width, height))
    pen = ImageDraw.Draw(sheet)
    for _ in range(26):
        side = 1 if shot.random() < 0.5 else -1
        angle, reach = shot.uniform(-1.4, 1.4), shot.uniform(0.15, 0.42)
        x, y = side * 0.15, shot.normal(-0.03, 0.07)
        for step in range(3):
            angle += shot.normal(0, 0.3)
            to = (x + side * np.cos(angle) * reach / 2, y + np.sin(angle) * reach / 2)
            line = [(x + 1) / 2 * width, (y + 1) / 2 * height, (to[0] + 1) / 2 * width, (to[1] + 1) / 2 * height]
            pen.line(line, fill=200 - 55 * step, width=max(1, 3 - step) * (2 if width > 260 else 1))
            x, y = to
    soft = sheet.filter(ImageFilter.GaussianBlur(width / 200))
    return np.asarray(soft, dtype=np.float32) * np.float32(0.15 / 255)
