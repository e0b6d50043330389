"""The readers' table: a CSV file with one reading per row, with or without the model's help."""

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
MIN_IMAGES = 10
"""Minimum number of images per reader, alone and with help."""

ImageId = Callable[[str, int], str]
"""Returns the id of an image from its name at the source and its frame (-1 for single-frame files)."""


@dataclass(frozen=True)
class Reading:
    """A reader's label and score for an image."""

    reader: str
    image_id: str
    aided: bool
    label: int
    """Index of the class."""
    score: float | None
    line: int


def read_table(
    data: bytes,
    classes: Sequence[str],
    test: Mapping[str, int],
    image_id: ImageId | None,
    positive: int,
    cut: float | None,
) -> list[Reading]:
    """Return the readings in a file; raise RefusedError with the line number if a row is invalid.

    The keys of `test` are the ids of the test images. `image_id` is None without a hash key. `cut` is the lowest score
    of the positive class, for readings without a label.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RefusedError(
            f"The readers' table is not valid UTF-8 at byte {error.start:,}. Save it as CSV in UTF-8."
        ) from None
    rows, readings = csv.reader(table_lines(io.StringIO(text, newline=""), "The readers' table")), []
    try:
        columns = [column.strip().lower() for column in next(rows, [])]
        check_columns(columns, "The readers' table")
        _check_columns(columns, image_id is not None, cut)
        for row in rows:
            values = [cell.strip() for cell in row]
            if any(values[len(columns) :]):
                raise RefusedError(
                    f"Line {rows.line_num} of the readers' table has {len(values)} cells, but the table has "
                    f"{len(columns)} columns. Write decimals with a point (0.5), and quote text that contains a comma."
                )
            cells = dict(zip_longest(columns, values[: len(columns)], fillvalue=""))
            if any(values):
                readings.append(_reading(cells, rows.line_num, classes, test, image_id, positive, cut))
    except csv.Error as error:
        raise RefusedError(
            f"Line {rows.line_num} of the readers' table is not valid CSV: {error}. Correct the line."
        ) from None
    _check(readings)
    return readings


def _check_columns(columns: Sequence[str], has_key: bool, cut: float | None) -> None:
    unknown = [column for column in columns if column not in COLUMNS]
    if unknown and len(unknown) == len(columns):
        raise RefusedError(
            "The first line of the readers' table contains no known column name (it is not shown, as it may contain "
            f"values). Begin the table with a line of column names: {', '.join(COLUMNS)}."
        )
    if unknown:
        near = difflib.get_close_matches(unknown[0], COLUMNS, n=1, cutoff=0.0)[0]
        raise RefusedError(
            f"The readers' table has an unknown column {unknown[0]!r}: did you mean {near!r}? Allowed: "
            f"{', '.join(COLUMNS)}."
        )
    duplicate = next((column for column in columns if columns.count(column) > 1), "")
    if duplicate:
        raise RefusedError(f"The readers' table has the column {duplicate!r} twice. Keep one of them.")
    if "reader" not in columns or not {"image", "image_id"} & set(columns) or not {"label", "score"} & set(columns):
        raise RefusedError(
            f"The readers' table has the columns {', '.join(columns) or '(none)'}; it must have reader, image (or "
            "image_id), and label (or score)."
        )
    if "image_id" not in columns and not has_key:
        raise UnavailableError(
            "The readers' table contains file names, and there is no hash key to compute their ids. Restore the key "
            "(medloop keys restore FILE), or add the column image_id."
        )
    if "label" not in columns and cut is None:
        raise UsageError(
            "The readers' table has scores but no labels. Set --cut to the lowest score that counts as positive."
        )


def _reading(
    cells: Mapping[str, str],
    line: int,
    classes: Sequence[str],
    test: Mapping[str, int],
    image_id: ImageId | None,
    positive: int,
    cut: float | None,
) -> Reading:
    reader, aided = cells["reader"], cells.get("aided", "").lower()
    if not reader:
        raise RefusedError(f"Line {line} of the readers' table has no reader. Give each reader a name or number.")
    if aided not in AIDED:
        raise RefusedError(
            f"Line {line} of the readers' table has an invalid value in the column aided; it must be yes (with the "
            "model's help) or no. Correct it."
        )
    image = cells.get("image_id", "").lower()
    if not image and image_id:
        file = cells.get("image", "").replace("\\", "/").removeprefix("./")
        image = image_id(file, _frame(cells.get("frame", ""), line)) if file else ""
    if image not in test:
        raise RefusedError(
            f"Line {line} of the readers' table has an image that is not among the {len(test)} test images of the run. "
            "Use its name relative to the source, as printed by `medloop data locate`, or its id in "
            "predictions.parquet."
        )
    score = _score(cells.get("score", ""), line)
    label = cells.get("label", "")
    if label:
        return Reading(reader, image, AIDED[aided], _label(label, line, classes), score, line)
    if score is None or cut is None:
        raise RefusedError(
            f"Line {line} of the readers' table has no label"
            f"{'' if score is None else ', and --cut is not set for its score'}. Add a label, or remove the line."
        )
    return Reading(reader, image, AIDED[aided], positive if score >= cut else 1 - positive, score, line)


def _label(label: str, line: int, classes: Sequence[str]) -> int:
    if label in classes:
        return classes.index(label)
    near = difflib.get_close_matches(label.upper(), [name.upper() for name in classes], n=1, cutoff=0.0)
    meant = next(name for name in classes if name.upper() == near[0])
    raise RefusedError(
        f"Line {line} of the readers' table has a label that is not a class of the model: did you mean {meant!r}? "
        f"Classes: {', '.join(classes)}."
    )


def _score(text: str, line: int) -> float | None:
    if not text:
        return None
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise RefusedError(f"Line {line} of the readers' table has a score that is not a number. Correct it.")
    return score


def _frame(text: str, line: int) -> int:
    if not text:
        return -1
    if not text.isdecimal():
        raise RefusedError(f"Line {line} of the readers' table has an invalid frame; it must be a whole number from 0.")
    return int(text)


def _check(readings: Sequence[Reading]) -> None:
    if not readings:
        raise RefusedError("The readers' table contains 0 readings; at least one reader is required.")
    seen: dict[tuple[str, str, bool], int] = {}
    for reading in readings:
        first = seen.setdefault((reading.reader, reading.image_id, reading.aided), reading.line)
        if first != reading.line:
            raise RefusedError(
                f"Lines {first} and {reading.line} of the readers' table are the same image, read by "
                f"{reading.reader!r} {_way(reading.aided)}. Keep one of them."
            )
    for (reader, aided), count in Counter((reading.reader, reading.aided) for reading in readings).items():
        if count < MIN_IMAGES:
            raise RefusedError(
                f"The reader {reader!r} has {count} images {_way(aided)}; at least {MIN_IMAGES} are required. Add "
                "more, or remove these lines."
            )


def _way(aided: bool) -> str:
    return "with the model's help" if aided else "without help"
