"""The readers' table: a CSV file of what each of them said of which test image, with or without the model's help."""

from __future__ import annotations

import csv
import difflib
import io
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from components.shared.errors import RefusedError, UnavailableError, UsageError
from components.shared.parsing.json_documents import check_columns, table_lines

COLUMNS = ("reader", "image", "image_id", "frame", "label", "score", "aided")
AIDED = {"yes": True, "no": False, "": False}
LEAST = 10
"""A reader who has fewer images, alone or with help, shows nothing."""

Name = Callable[[str, int], str]
"""From an image's name at the source and its frame (-1: the file is one image) to its id."""


@dataclass(frozen=True)
class Reading:
    """What a reader said of an image."""

    reader: str
    image_id: str
    aided: bool
    label: int
    """The place of the class among the classes."""
    score: float | None
    line: int


def read_table(
    data: bytes, classes: Sequence[str], test: Mapping[str, int], name: Name | None, positive: int, cut: float | None
) -> list[Reading]:
    """The readings in a file; a ValueError names the line of what makes no sense.

    `test` holds the ids of the test images. `name` gives the id of an image's name, where the hash key is at hand.
    `cut` is the score from which on a reader calls the positive class, for readings without a label.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RefusedError(
            f"The readers' table is no UTF-8 at byte {error.start:,}. Save it as CSV in UTF-8."
        ) from None
    rows, found = csv.reader(table_lines(io.StringIO(text, newline=""), "The readers' table")), []
    try:
        columns = [column.strip().lower() for column in next(rows, [])]
        check_columns(columns, "The readers' table")
        _check_columns(columns, name is not None, cut)
        for row in rows:
            values = [cell.strip() for cell in row]
            if any(values[len(columns) :]):
                raise RefusedError(
                    f"Line {rows.line_num} of the readers' table has {len(values)} cells, and there are {len(columns)} "
                    "columns. Write 0.5 with a point, and put text that holds a comma into quotes."
                )
            cells = dict(zip_longest(columns, values[: len(columns)], fillvalue=""))
            if any(values):
                found.append(_reading(cells, rows.line_num, classes, test, name, positive, cut))
    except csv.Error as error:
        raise RefusedError(
            f"Line {rows.line_num} of the readers' table cannot be read as CSV: {error}. Mend that line."
        ) from None
    _check(found)
    return found


def _check_columns(columns: Sequence[str], named: bool, cut: float | None) -> None:
    unknown = [column for column in columns if column not in COLUMNS]
    if unknown and len(unknown) == len(columns):
        raise RefusedError(
            "The readers' table begins with none of its columns' names (the line is not shown: it may hold values). "
            f"Begin it with some of {', '.join(COLUMNS)}."
        )
    if unknown:
        near = difflib.get_close_matches(unknown[0], COLUMNS, n=1, cutoff=0.0)[0]
        raise RefusedError(
            f"The readers' table has a column {unknown[0]!r}: did you mean {near!r}? Known are {', '.join(COLUMNS)}."
        )
    twice = next((column for column in columns if columns.count(column) > 1), "")
    if twice:
        raise RefusedError(f"The readers' table has the column {twice!r} twice. Keep one of them.")
    if "reader" not in columns or not {"image", "image_id"} & set(columns) or not {"label", "score"} & set(columns):
        raise RefusedError(
            f"The readers' table has the columns {', '.join(columns) or 'of an empty file'}, and needs reader, image "
            "(or image_id), and label (or score)."
        )
    if "image_id" not in columns and not named:
        raise UnavailableError(
            "The readers' table names images by their files, and there is no hash key here to tell their ids. Put the "
            "key back (medloop keys restore FILE), or give the column image_id."
        )
    if "label" not in columns and cut is None:
        raise UsageError(
            "The readers' table has scores and no labels. Say with --cut from which score on a reader calls the image "
            "positive."
        )


def _reading(
    cells: Mapping[str, str],
    line: int,
    classes: Sequence[str],
    test: Mapping[str, int],
    name: Name | None,
    positive: int,
    cut: float | None,
) -> Reading:
    reader = cells["reader"]
    if not reader:
        raise RefusedError(f"Line {line} of the readers' table names no reader. Give each reader a name or a number.")
    if cells.get("aided", "").lower() not in AIDED:
        raise RefusedError(
            f"Line {line} of the readers' table has something else under aided than yes (with the model's help) or no. "
            "Correct it."
        )
    image = cells.get("image_id", "").lower()
    if not image and name:
        file = cells.get("image", "").replace("\\", "/").removeprefix("./")
        image = name(file, _frame(cells.get("frame", ""), line)) if file else ""
    if image not in test:
        raise RefusedError(
            f"Line {line} of the readers' table names an image that is not among the {len(test)} test images of the "
            "run. Give its name relative to the source, as `medloop data locate` tells it, or its id in "
            "predictions.parquet."
        )
    score = _score(cells.get("score", ""), line)
    label = cells.get("label", "")
    if label:
        return Reading(reader, image, AIDED[cells.get("aided", "").lower()], _label(label, line, classes), score, line)
    if score is None or cut is None:
        raise RefusedError(
            f"Line {line} of the readers' table has no label"
            f"{'' if score is None else ', and --cut does not say what its score means'}. Complete it, or leave it out."
        )
    called = positive if score >= cut else 1 - positive
    return Reading(reader, image, AIDED[cells.get("aided", "").lower()], called, score, line)


def _label(label: str, line: int, classes: Sequence[str]) -> int:
    if label in classes:
        return classes.index(label)
    near = difflib.get_close_matches(label.upper(), [name.upper() for name in classes], n=1, cutoff=0.0)
    meant = next(name for name in classes if name.upper() == near[0])
    raise RefusedError(
        f"Line {line} of the readers' table has a label that is no class of the model: did you mean "
        f"{meant!r}? The classes are {', '.join(classes)}."
    )


def _score(text: str, line: int) -> float | None:
    if not text:
        return None
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise RefusedError(f"Line {line} of the readers' table has a score that is no number. Correct it.")
    return score


def _frame(text: str, line: int) -> int:
    if not text:
        return -1
    if not text.isdecimal():
        raise RefusedError(f"Line {line} of the readers' table has a frame that is no number from 0 on. Correct it.")
    return int(text)


def _check(readings: Sequence[Reading]) -> None:
    if not readings:
        raise RefusedError("The readers' table holds 0 readings, and at least one reader's are needed.")
    seen: dict[tuple[str, str, bool], int] = {}
    for each in readings:
        first = seen.setdefault((each.reader, each.image_id, each.aided), each.line)
        if first != each.line:
            raise RefusedError(
                f"Lines {first} and {each.line} of the readers' table are the same image, read by {each.reader!r} "
                f"{_way(each.aided)}. Keep one of them."
            )
    for (reader, aided), count in Counter((each.reader, each.aided) for each in readings).items():
        if count < LEAST:
            raise RefusedError(
                f"The reader {reader!r} has {count} images {_way(aided)}, and at least {LEAST} are needed to say "
                "anything. Add more, or leave these lines out."
            )


def _way(aided: bool) -> str:
    return "with the model's help" if aided else "without help"
