"""A line of writing in a picture is found at any edge, in any size and light; a marker alone is none."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from components.ingest.burned_in_text import find_text
from medloop.synth.people import Cohort, plan
from medloop.synth.phantom import render

Picture = NDArray[np.uint8]
LINES = ("MUSTER, Erika", "12.08.1964", "ID 0049317")


@pytest.fixture(scope="module")
def scans() -> list[Picture]:
    """Scans of invented patients of the second hospital: with dark edges, noise, and an R or an L."""
    world = Cohort(2, 3, 1.0, False)
    films = [np.rint(render(plan(number, world)[0], world) * 255).astype(np.uint8) for number in range(20, 50)]
    return [np.asarray(Image.fromarray(film).resize((800, 800), Image.Resampling.BICUBIC)) for film in films]


def written(pixels: Picture, text: str, size: int, place: tuple[float, float], level: int = 255) -> Picture:
    """The picture with a text whose corner is at these shares of the free width and height."""
    image = Image.fromarray(pixels)
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(size)
    left, top, right, bottom = pen.multiline_textbbox((0, 0), text, font=font)
    free = (image.width - right + left - 8, image.height - bottom + top - 8)
    pen.multiline_text((4 + free[0] * place[0], 4 + free[1] * place[1]), text, fill=level, font=font)
    return np.asarray(image)


@pytest.mark.parametrize("size", [14, 17, 22, 30, 44, 60])
@pytest.mark.parametrize("place", [(0, 0), (1, 0), (0, 1), (1, 1), (0.5, 0), (0.5, 1)])
def test_writing_on_a_dark_edge_is_found(size: int, place: tuple[float, float]) -> None:
    grain = np.random.default_rng(size).normal(30, 4, (700, 900)).clip(0, 255).astype(np.uint8)
    for number in range(1, 4):
        assert find_text(written(grain, "\n".join(LINES[:number]), size, place)) is not None


def test_the_sentence_says_where_and_not_what() -> None:
    dark = np.full((600, 600), 12, np.uint8)
    assert (
        find_text(written(dark, "MUSTER 4711", 20, (1, 0)))
        == "10 characters in a row look like text at the top right of the image"
    )


@pytest.mark.slow
def test_black_writing_on_white_and_writing_over_the_anatomy_are_found(scans: list[Picture]) -> None:
    white = np.full((512, 640), 240, np.uint8)
    assert find_text(written(white, LINES[1], 18, (0, 1), level=0)) is not None
    found = [find_text(written(film, LINES[0], 24, (0.5, 0.4), 255 * int(film.mean() < 150))) for film in scans]
    assert sum(bool(sentence) for sentence in found) >= 0.9 * len(scans)


def test_most_writing_at_the_edges_of_scans_is_found(scans: list[Picture]) -> None:
    corners = [(0, 0), (1, 0), (0, 1), (1, 1)]
    found = [find_text(written(film, "\n".join(LINES), 20, corners[n % 4])) for n, film in enumerate(scans)]
    assert sum(bool(sentence) for sentence in found) >= 0.9 * len(scans)


@pytest.mark.parametrize("marker", ["R", "L", "PA", "R\nAP"])
def test_a_marker_alone_is_no_writing(marker: str, scans: list[Picture]) -> None:
    alarms = [find_text(written(film, marker, 24 + 2 * n, (0.04, 0.05))) for n, film in enumerate(scans)]
    assert sum(bool(sentence) for sentence in alarms) <= 1


def test_scans_without_writing_give_no_alarm(scans: list[Picture]) -> None:
    assert [find_text(film) for film in scans] == [None] * len(scans)
    assert find_text(np.zeros((40, 900), np.uint8)) is None
    assert find_text(np.random.default_rng(1).integers(0, 256, (500, 500)).astype(np.uint8)) is None


def test_depth_and_colour_do_not_matter() -> None:
    dark = np.full((500, 600), 20, np.uint8)
    film = written(dark, LINES[2], 20, (0, 0))
    sentence = find_text(film)
    assert sentence is not None
    assert find_text(film.astype(np.uint16) * 257) == sentence
    for channel in range(3):
        coloured = np.full((500, 600, 3), 20, np.uint8)
        coloured[..., channel] = film
        assert find_text(coloured) == sentence
        assert find_text(coloured.astype(np.uint16) * 257) == sentence
