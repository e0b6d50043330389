"""Rendering of a scan: a chest with disease, artefacts, and the exposure of the hospital's machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medloop.synth.anatomy import Frame, bump, chest, field
from medloop.synth.people import Cohort, Scan

if TYPE_CHECKING:
    from medloop.synth.anatomy import Generator, Pixels

# Factor for the contrast of disease if reports are written and some images mislead. With fainter disease, a small
# network would learn nothing.
REPORT_CONTRAST = 1.5


def render(scan: Scan, cohort: Cohort) -> Pixels:
    """Return the film of a scan, with values from 0 (black) to 1 (white)."""
    import numpy as np

    seeds = [cohort.seed, cohort.hospital, cohort.classes, scan.patient.number]
    body = np.random.default_rng(seeds)
    shot = np.random.default_rng([*seeds, scan.image])
    frame = _frame(shot)
    film, lungs = chest(frame, body, shot, scan.view)
    film += (REPORT_CONTRAST if cohort.reports else 1.0) * _opacity(frame, lungs, scan.finding, body, shot)
    film += _haze(frame, lungs, shot)
    film = _balance(film, lungs, shot)
    film = _objects(film, frame, shot)
    film = _expose(film, shot, scan.patient.site)
    if cohort.shift > 0:
        film = _second_hospital(film, cohort.shift, shot)
    elif shot.random() < 0.35:
        film = _framed(film, 0.04, bool(shot.random() < 0.5), shot)
    return np.clip(film, 0, 1)


def _frame(shot: Generator) -> Frame:
    import numpy as np

    height = int(shot.integers(180, 321))
    width = int(np.clip(height * shot.uniform(0.82, 1.22), 180, 320))
    angle, zoom = shot.normal(0, 0.05), shot.uniform(0.92, 1.12)
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :] - np.float32(shot.normal(0, 0.06))
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None] - np.float32(shot.normal(0, 0.06))
    cosine, sine = np.float32(np.cos(angle) * zoom), np.float32(np.sin(angle) * zoom)
    return Frame(x * cosine + y * sine, y * cosine - x * sine)


def _opacity(frame: Frame, lungs: Pixels, finding: str, body: Generator, shot: Generator) -> Pixels:
    """Return the opacity of the disease; its position depends on the patient, its strength also on the image."""
    import numpy as np

    shape = frame.across.shape
    if finding == "none":
        return np.zeros(shape, dtype=np.float32)
    if finding == "diffuse":
        return _interstitial(frame, lungs, body, shot)
    strength = np.float32(np.clip(body.lognormal(np.log(0.26), 0.32), 0.15, 0.44) * shot.uniform(0.85, 1.15))
    side, along = (-1 if body.random() < 0.5 else 1), body.uniform(-0.42, 0.38)
    across, size = side * body.uniform(0.30, 0.58), body.uniform(0.08, 0.16)
    spot = np.zeros(shape, dtype=np.float32)
    for _ in range(5):
        place = (across + body.normal(0, size * 0.6), along + body.normal(0, size * 0.6))
        spot = np.maximum(spot, bump(frame, *place, size * body.uniform(0.5, 1.0), size * body.uniform(0.5, 1.0)))
    patchy: Pixels = np.clip(1 + 0.45 * field(shot, shape, 34), 0.1, 2)
    shadow: Pixels = patchy * np.minimum(1, spot * 1.4) * lungs * strength
    return shadow


def _interstitial(frame: Frame, lungs: Pixels, body: Generator, shot: Generator) -> Pixels:
    import numpy as np

    shape = frame.across.shape
    strength = np.float32(np.clip(body.lognormal(np.log(0.125), 0.28), 0.08, 0.21) * shot.uniform(0.85, 1.15))
    threads = np.exp(-((field(shot, shape, 30) / np.float32(0.45)) ** 2))
    reach: Pixels = np.clip(0.8 + 0.4 * field(shot, shape, 4), 0.2, 1.4)
    shadow: Pixels = reach * lungs * strength * (threads + 0.25 * field(shot, shape, 40))
    return shadow


def _haze(frame: Frame, lungs: Pixels, shot: Generator) -> Pixels:
    """Return smooth shadows of soft tissue over the lungs, independent of disease."""
    import numpy as np

    veil = np.zeros(frame.across.shape, dtype=np.float32)
    for _ in range(4):
        place = (shot.choice((-1, 1)) * shot.uniform(0.2, 0.7), shot.uniform(-0.5, 0.5))
        strength, wide, tall = shot.normal(0, 0.10), shot.uniform(0.18, 0.45), shot.uniform(0.18, 0.45)
        veil += np.float32(strength) * bump(frame, *place, wide, tall)
    return veil * (0.3 + 0.7 * lungs)


def _balance(film: Pixels, lungs: Pixels, shot: Generator) -> Pixels:
    # The mean of the lungs is drawn at random: otherwise the mean alone would reveal the label.
    import numpy as np

    weight = lungs * lungs
    mean = float((film * weight).sum() / weight.sum())
    return film + np.float32(shot.normal(0.37, 0.045) - mean) * lungs


def _objects(film: Pixels, frame: Frame, shot: Generator) -> Pixels:
    """Return the film with objects that are not disease: nipples, leads, tubes, folds of cloth, old scars."""
    import numpy as np

    if shot.random() < 0.4:
        for side in (-1, 1):
            size = shot.uniform(0.03, 0.05)
            strength, along = np.float32(shot.uniform(0.04, 0.12)), shot.normal(0.3, 0.05)
            film = film + strength * bump(frame, side * 0.5, along, size, size)
    if shot.random() < 0.3:
        size = shot.uniform(0.015, 0.03)
        place = (shot.choice((-1, 1)) * shot.uniform(0.25, 0.6), shot.uniform(-0.4, 0.4))
        film = film + np.float32(shot.uniform(0.15, 0.3)) * bump(frame, *place, size, size)
    if shot.random() < 0.4:
        slant, start = shot.uniform(-0.6, 0.6), shot.uniform(-0.7, 0.7)
        fold = np.exp(-(((frame.across - start - slant * frame.along) / 0.012) ** 2))
        film = film + np.float32(shot.uniform(0.03, 0.08)) * fold
    if shot.random() < 0.4:
        film = film + _leads(film.shape, shot)
    return film


def _leads(shape: tuple[int, ...], shot: Generator) -> Pixels:
    import numpy as np
    from PIL import Image, ImageDraw, ImageFilter

    height, width = shape
    sheet = Image.new("L", (width, height))
    pen = ImageDraw.Draw(sheet)
    for _ in range(int(shot.integers(1, 4))):
        points = [(float(shot.uniform(0.1, 0.9)) * width, float(shot.uniform(0, 0.9)) * height) for _ in range(3)]
        pen.line(points, fill=int(shot.integers(70, 160)), width=2, joint="curve")
        x, y = points[-1]
        pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill=int(shot.integers(150, 255)))
    return np.asarray(sheet.filter(ImageFilter.GaussianBlur(0.7)), dtype=np.float32) * np.float32(0.35 / 255)


def _expose(film: Pixels, shot: Generator, site: str) -> Pixels:
    """Return the film with exposure, uneven beam and grain; the second site of each hospital is slightly darker."""
    import numpy as np

    gamma = shot.uniform(0.85, 1.2) + (0.08 if site in ("SOUTH", "HILL") else 0.0)
    beam = np.linspace(-1, 1, film.shape[1], dtype=np.float32)[None, :] * np.float32(shot.normal(0, 0.03))
    film = np.clip(film + beam, 0.01, 1) ** np.float32(gamma)
    film = np.float32(shot.uniform(0.85, 1.1)) * film + np.float32(shot.normal(0.02, 0.02))
    mottle = np.float32(shot.uniform(0, 0.015)) * field(shot, film.shape, 45)
    grain = shot.standard_normal(film.shape, dtype=np.float32) * np.float32(shot.uniform(0.012, 0.03))
    developed: Pixels = film + mottle + grain
    return developed


def _second_hospital(film: Pixels, shift: float, shot: Generator) -> Pixels:
    """Return the film as from another hospital: softer, flatter, noisier, framed and with letters."""
    import numpy as np

    film = np.clip(_soften(film, 0.9 * shift * shot.uniform(0.7, 1.3)), 0, 1)
    curve = film * film * (3 - 2 * film)
    film = film + np.float32(0.35 * shift) * (curve - film)
    film = np.float32(0.05 * shift) + (1 - np.float32(0.12 * shift)) * film
    film += np.float32(0.0235 * shift) * field(shot, film.shape, 45)
    film += np.float32(0.03 * shift) * shot.standard_normal(film.shape, dtype=np.float32)
    return _framed(film, 0.05 * shift, True, shot)


def _soften(film: Pixels, sigma: float) -> Pixels:
    import numpy as np

    taps = range(-4, 5)
    weights = np.exp(-np.square(np.array(taps) / sigma) / 2).astype(np.float32)
    weights /= weights.sum()
    padded = np.pad(film, 4, mode="edge")
    height, width = film.shape
    rows = np.zeros((height, width + 8), dtype=np.float32)
    for tap, weight in zip(taps, weights, strict=True):
        rows += weight * padded[4 + tap : 4 + tap + height]
    soft = np.zeros_like(film)
    for tap, weight in zip(taps, weights, strict=True):
        soft += weight * rows[:, 4 + tap : 4 + tap + width]
    return soft


def _framed(film: Pixels, widest: float, lettered: bool, shot: Generator) -> Pixels:
    """Return the film with dark edges of the collimated beam and, if `lettered`, the letter of a side."""
    import numpy as np
    from PIL import Image, ImageDraw

    height, width = film.shape
    top, bottom, left, right = (int(side) for side in shot.uniform(0, widest, 4) * (height, height, width, width))
    inside = np.full_like(film, shot.uniform(0, 0.15))
    inside[top : height - bottom, left : width - right] = 1
    film = film * inside
    if not lettered:
        return film
    sheet = Image.new("L", (width, height))
    letter = "L" if shot.random() < 0.5 else "R"
    place = ((0.86 if letter == "L" else 0.06) * width, 0.05 * height)
    ImageDraw.Draw(sheet).text(place, letter, fill=255, font_size=height / 10)
    return np.maximum(film, np.asarray(sheet, dtype=np.float32) / 255)
