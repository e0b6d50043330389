"""Times in cron's five fields: read, checked, and said again as a Kubeflow server in another time zone has them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from itertools import islice, pairwise
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from components.shared.errors import UsageError
from components.shared.runtime.interface import nearest

SHORT = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
WEEKDAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
FIELDS = (("minute", 0, 59), ("hour", 0, 23), ("day of the month", 1, 31), ("month", 1, 12), ("day of the week", 0, 7))
FAR = timedelta(days=8 * 366)
"""Longer than any two leap days are apart that this century still has: what does not fire within it never does."""

HORIZON = timedelta(days=5 * 365)
"""How far ahead times are said for a server whose clock keeps no constant distance."""


@dataclass(frozen=True)
class Field:
    """One field: its values, and whether it was written as a star (also */2), which cron treats apart."""

    values: frozenset[int]
    star: bool
    text: str

    def __str__(self) -> str:
        return self.text if self.star else ",".join(map(str, sorted(self.values)))


@dataclass(frozen=True)
class Cron:
    """When something is due, by the clock on the wall."""

    minutes: Field
    hours: Field
    days: Field
    months: Field
    weekdays: Field

    def on(self, day: date) -> bool:
        """Whether it is due on that day. Of two restricted day fields either is enough, as ever in cron."""
        if day.month not in self.months.values:
            return False
        by_day, by_weekday = day.day in self.days.values, day.isoweekday() % 7 in self.weekdays.values
        return by_day and by_weekday if self.days.star or self.weekdays.star else by_day or by_weekday

    def after(self, moment: datetime) -> Iterator[datetime]:
        """The times at which it is due after that moment, in its time zone; those that a clock skips are left out."""
        zone = moment.tzinfo
        times = [time(hour, minute) for hour in sorted(self.hours.values) for minute in sorted(self.minutes.values)]
        day, last = moment.date(), (moment + FAR).date()
        while day <= last:
            if self.on(day):
                for each in times:
                    due = datetime.combine(day, each, zone)
                    exists = due.astimezone(UTC).astimezone(zone).replace(tzinfo=None) == due.replace(tzinfo=None)
                    if exists and due.astimezone(UTC) > moment.astimezone(UTC):
                        yield due
            day += timedelta(days=1)


def read(text: str) -> Cron:
    """The times that the five fields name; ValueError for what cannot be read, and for what is never due."""
    words = SHORT.get(text.strip().lower(), text).split()
    if len(words) != len(FIELDS):
        raise UsageError(
            f"--cron is {text!r}, which has {len(words)} fields. Write five: minute, hour, day of the month, month, "
            "day of the week, such as '0 3 * * MON' for Mondays at three."
        )
    fields = [_field(word, *limits, text) for word, limits in zip(words, FIELDS, strict=True)]
    minutes, hours, days, months, last = fields
    weekdays = frozenset(value % 7 for value in last.values)
    cron = Cron(minutes, hours, days, months, Field(weekdays, last.star, last.text))
    if not any(islice(cron.after(datetime.now(UTC)), 1)):
        raise UsageError(f"--cron is {text!r}, and no such day ever comes. Name a day that exists.")
    return cron


def _field(word: str, name: str, low: int, high: int, text: str) -> Field:
    values: set[int] = set()
    for part in word.split(","):
        found = re.fullmatch(r"(\*|[A-Za-z]+|\d+)(?:-([A-Za-z]+|\d+))?(?:/(\d+))?", part, re.ASCII)
        numbers = [_number(each, name) for each in (found[1], found[2]) if each and each != "*"] if found else []
        bad = found is None or (found[1] == "*" and found[2]) or (found[3] and int(found[3]) == 0)
        if bad or found is None or not all(low <= number <= high for number in numbers) or numbers != sorted(numbers):
            raise UsageError(
                f"--cron is {text!r}, and its {name} {part!r} cannot be read. Write numbers from {low} to {high}, "
                "ranges such as 1-5, lists with commas, steps such as */2, or names such as MON and JAN."
            )
        first = numbers[0] if numbers else low
        last = numbers[-1] if found[2] else high if not numbers or found[3] else first
        if name == "day of the week" and last == high and not (found[2] or first == high):
            last = 6  # an open end: Sunday is 0 there, and 7 only where it is written
        values.update(range(first, last + 1, int(found[3] or 1)))
    return Field(frozenset(values), word.startswith("*"), word)


def _number(word: str, name: str) -> int:
    if word.isdigit():
        return int(word)
    names = {"month": ("", *MONTHS), "day of the week": WEEKDAYS}.get(name, ())
    return names.index(word.upper()) if word.upper() in names else -1


def zone(name: str) -> ZoneInfo:
    """The time zone of that name; ValueError that names the likeliest meant one."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        known = sorted(available_timezones())
        hint = nearest(name, known) or " Write one such as Europe/Berlin or UTC."
        raise UsageError(f"There is no time zone {name!r}.{hint}") from None


@dataclass(frozen=True)
class Span:
    """A cron expression for the server (six fields, seconds first), and between which moments it holds.

    As the server has it: what is due at the very start is left out, and what is due at the very end is not.
    """

    expression: str
    start: datetime | None
    end: datetime | None


def spans(cron: Cron, here: tzinfo, there: tzinfo, now: datetime, until: datetime | None = None) -> list[Span]:
    """The same times in a server's zone: one expression where both clocks keep their distance.

    Else one for each stretch in which they do, for five years or up to `until`: Kubeflow's API knows no time zones, but
    a beginning and an end.

    An hour that the clock shows twice counts once.
    """
    found: list[Span] = []
    start, until = now, until or now + HORIZON
    while start < until:
        distance = _distance(here, there, start)
        change = _change(here, there, start, until)
        expression = _expression(cron, distance)
        if found and found[-1].expression == expression:
            found[-1] = Span(expression, found[-1].start, change)
        else:
            found.append(Span(expression, start, change))
        start = change
    found = _once(found, here, there, cron)
    if len(found) == 1:
        return [Span(found[0].expression, None, None)]
    before = timedelta(seconds=1)  # what is due at the change itself belongs to the new part
    bounds = [(each.expression, each.start and each.start - before, each.end and each.end - before) for each in found]
    # The last one has no end: better an hour off, some day, than no run at all.
    return [
        Span(bounds[0][0], None, bounds[0][2]),
        *(Span(*each) for each in bounds[1:-1]),
        Span(bounds[-1][0], bounds[-1][1], None),
    ]


def _once(found: list[Span], here: tzinfo, there: tzinfo, cron: Cron) -> list[Span]:
    """The spans without the hour that a clock shows a second time when it is set back."""
    if len(cron.hours.values) == 24:
        return found  # what is due each hour is due in both
    kept = found[:1]
    for before, span in pairwise(found):
        assert span.start is not None
        assert before.start is not None
        back = _distance(here, there, before.start) - _distance(here, there, span.start)
        kept.append(Span(span.expression, span.start + max(back, timedelta(0)), span.end))
    return kept


def _distance(here: tzinfo, there: tzinfo, moment: datetime) -> timedelta:
    """How far the one clock is ahead of the other."""
    ahead = [moment.astimezone(each).utcoffset() or timedelta(0) for each in (here, there)]
    return ahead[0] - ahead[1]


def _change(here: tzinfo, there: tzinfo, start: datetime, until: datetime) -> datetime:
    """The first moment after `start` at which the distance changes, to the minute; at most `until`."""
    distance, low = _distance(here, there, start), start
    while low < until and _distance(here, there, low + timedelta(days=1)) == distance:
        low += timedelta(days=1)
    if low >= until:
        return until
    high = low + timedelta(days=1)
    while high - low > timedelta(seconds=1):
        middle = low + (high - low) / 2
        if _distance(here, there, middle) == distance:
            low = middle
        else:
            high = middle
    return min(high.replace(second=0, microsecond=0), until)


def _expression(cron: Cron, distance: timedelta) -> str:
    """The cron as a clock shows it that is behind by that much."""
    behind = int(distance.total_seconds()) // 60
    moved = [
        divmod(hour * 60 + minute - behind, 24 * 60) for hour in cron.hours.values for minute in cron.minutes.values
    ]
    days = {day for day, _ in moved}
    by_minute: dict[int, set[int]] = {}
    for _, rest in moved:
        by_minute.setdefault(rest % 60, set()).add(rest // 60)
    any_date = cron.days.text == "*" and len(cron.months.values) == 12
    every_day = any_date and cron.weekdays.text == "*"
    weekly = any_date and not cron.weekdays.star
    plain = len({frozenset(hours) for hours in by_minute.values()}) == 1
    if not plain or (days != {0} and not every_day and not (weekly and len(days) == 1)):
        raise UsageError(
            f"These times cannot be said in the server's time zone, whose clock is {behind / 60:+.4g} hours behind, by "
            "one cron expression. Choose hours that stay on the same day there, or set the server's own zone "
            "(cronScheduleTimezone in its pipeline-install-config) and MEDLOOP_KFP_TIMEZONE to this one."
        )
    hours = next(iter(by_minute.values()))
    weekdays = cron.weekdays
    if days != {0} and weekly:
        shift = next(iter(days))
        weekdays = Field(frozenset((value + shift) % 7 for value in weekdays.values), False, "")
    minute = "*" if len(by_minute) == 60 else ",".join(map(str, sorted(by_minute)))
    hour = "*" if len(hours) == 24 else ",".join(map(str, sorted(hours)))
    month = "*" if len(cron.months.values) == 12 else ",".join(map(str, sorted(cron.months.values)))
    return f"0 {minute} {hour} {cron.days} {month} {weekdays}"
