"""Parse cron expressions of five fields, and convert them to the time zone of a Kubeflow server."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from itertools import islice, pairwise
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from components.shared.errors import UsageError
from components.shared.runtime.stage_interface import nearest

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
"""Longer than the time between leap days: an expression that never matches within it never matches."""

HORIZON = timedelta(days=5 * 365)
"""How far ahead clock changes are covered."""


@dataclass(frozen=True)
class Field:
    """One field: its values, and whether it begins with a star, which cron treats differently."""

    values: frozenset[int]
    star: bool
    text: str

    def __str__(self) -> str:
        return self.text if self.star else ",".join(map(str, sorted(self.values)))


@dataclass(frozen=True)
class Cron:
    """A parsed cron expression in local time."""

    minutes: Field
    hours: Field
    days: Field
    months: Field
    weekdays: Field

    def on(self, day: date) -> bool:
        """Return whether the day matches. If both day fields are restricted, either is enough, as usual in cron."""
        if day.month not in self.months.values:
            return False
        by_day, by_weekday = day.day in self.days.values, day.isoweekday() % 7 in self.weekdays.values
        return by_day and by_weekday if self.days.star or self.weekdays.star else by_day or by_weekday

    def after(self, moment: datetime) -> Iterator[datetime]:
        """Yield the matching times after a moment, in its time zone, without those skipped by a clock change."""
        zone = moment.tzinfo
        times = [time(hour, minute) for hour in sorted(self.hours.values) for minute in sorted(self.minutes.values)]
        day, last = moment.date(), (moment + FAR).date()
        while day <= last:
            if self.on(day):
                for time_of_day in times:
                    due = datetime.combine(day, time_of_day, zone)
                    exists = due.astimezone(UTC).astimezone(zone).replace(tzinfo=None) == due.replace(tzinfo=None)
                    if exists and due.astimezone(UTC) > moment.astimezone(UTC):
                        yield due
            day += timedelta(days=1)


def read(text: str) -> Cron:
    """Parse a cron expression; raise UsageError if it is invalid or never matches."""
    words = SHORT.get(text.strip().lower(), text).split()
    if len(words) != len(FIELDS):
        raise UsageError(
            f"--cron is {text!r}, which has {len(words)} fields. It must have five: minute, hour, day of the month, "
            "month, day of the week, such as '0 3 * * MON' for Mondays at three."
        )
    fields = [_field(word, *limits, text) for word, limits in zip(words, FIELDS, strict=True)]
    minutes, hours, days, months, last = fields
    weekdays = frozenset(value % 7 for value in last.values)
    cron = Cron(minutes, hours, days, months, Field(weekdays, last.star, last.text))
    if not any(islice(cron.after(datetime.now(UTC)), 1)):
        raise UsageError(f"--cron is {text!r}, which never matches. Name a day that exists.")
    return cron


def _field(word: str, name: str, low: int, high: int, text: str) -> Field:
    values: set[int] = set()
    for part in word.split(","):
        match = re.fullmatch(r"(\*|[A-Za-z]+|\d+)(?:-([A-Za-z]+|\d+))?(?:/(\d+))?", part, re.ASCII)
        numbers = [_number(word, name) for word in (match[1], match[2]) if word and word != "*"] if match else []
        bad = match is None or (match[1] == "*" and match[2]) or (match[3] and int(match[3]) == 0)
        if bad or match is None or not all(low <= number <= high for number in numbers) or numbers != sorted(numbers):
            raise UsageError(
                f"--cron is {text!r}, and its {name} {part!r} is invalid. Write numbers from {low} to {high}, "
                "ranges such as 1-5, lists with commas, steps such as */2, or names such as MON and JAN."
            )
        first = numbers[0] if numbers else low
        last = numbers[-1] if match[2] else high if not numbers or match[3] else first
        if name == "day of the week" and last == high and not (match[2] or first == high):
            last = 6  # without an explicit end, Sunday counts only as 0, not also as 7
        values.update(range(first, last + 1, int(match[3] or 1)))
    return Field(frozenset(values), word.startswith("*"), word)


def _number(word: str, name: str) -> int:
    if word.isdigit():
        return int(word)
    names = {"month": ("", *MONTHS), "day of the week": WEEKDAYS}.get(name, ())
    return names.index(word.upper()) if word.upper() in names else -1


def zone(name: str) -> ZoneInfo:
    """Return the time zone of this name; raise UsageError with the most similar name if there is none."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        known = sorted(available_timezones())
        hint = nearest(name, known) or " Use a name such as Europe/Berlin or UTC."
        raise UsageError(f"There is no time zone {name!r}.{hint}") from None


@dataclass(frozen=True)
class Span:
    """A cron expression for the server (six fields, seconds first) and its period of validity.

    As on the server, the start is exclusive and the end inclusive.
    """

    expression: str
    start: datetime | None
    end: datetime | None


def spans(cron: Cron, zone: tzinfo, server_zone: tzinfo, now: datetime, until: datetime | None = None) -> list[Span]:
    """Convert a cron expression from `zone` to the server's zone.

    Return one expression if the offset between the zones is constant, else one for each period between clock changes,
    for five years or up to `until`, because Kubeflow's API supports start and end but no time zones. A repeated hour
    counts once.
    """
    periods: list[Span] = []
    start, until = now, until or now + HORIZON
    while start < until:
        change = _next_change(zone, server_zone, start, until)
        expression = _expression(cron, _offset(zone, server_zone, start))
        if periods and periods[-1].expression == expression:
            periods[-1] = Span(expression, periods[-1].start, change)
        else:
            periods.append(Span(expression, start, change))
        start = change
    periods = _without_repeated_hours(periods, zone, server_zone, cron)
    if len(periods) == 1:
        return [Span(periods[0].expression, None, None)]
    second = timedelta(seconds=1)  # a run at the moment of the change belongs to the new period
    bounded = [Span(p.expression, p.start and p.start - second, p.end and p.end - second) for p in periods]
    # The last period has no end: after it, runs may be an hour off, which is better than no runs.
    first, last = bounded[0], bounded[-1]
    return [Span(first.expression, None, first.end), *bounded[1:-1], Span(last.expression, last.start, None)]


def _without_repeated_hours(periods: list[Span], zone: tzinfo, server_zone: tzinfo, cron: Cron) -> list[Span]:
    """Start each period after the hour that is repeated when the clock is set back."""
    if len(cron.hours.values) == 24:
        return periods  # an hourly schedule runs in both hours
    result = periods[:1]
    for before, span in pairwise(periods):
        assert span.start is not None
        assert before.start is not None
        back = _offset(zone, server_zone, before.start) - _offset(zone, server_zone, span.start)
        result.append(Span(span.expression, span.start + max(back, timedelta(0)), span.end))
    return result


def _offset(zone: tzinfo, server_zone: tzinfo, moment: datetime) -> timedelta:
    """Return how far `zone` is ahead of the server's zone."""
    own, server = (moment.astimezone(each).utcoffset() or timedelta(0) for each in (zone, server_zone))
    return own - server


def _next_change(zone: tzinfo, server_zone: tzinfo, start: datetime, until: datetime) -> datetime:
    """Return the first minute after `start` at which the offset changes, at most `until`."""
    offset, low = _offset(zone, server_zone, start), start
    while low < until and _offset(zone, server_zone, low + timedelta(days=1)) == offset:
        low += timedelta(days=1)
    if low >= until:
        return until
    high = low + timedelta(days=1)
    while high - low > timedelta(seconds=1):
        middle = low + (high - low) / 2
        if _offset(zone, server_zone, middle) == offset:
            low = middle
        else:
            high = middle
    return min(high.replace(second=0, microsecond=0), until)


def _expression(cron: Cron, offset: timedelta) -> str:
    """Return the cron expression for a clock that is behind by `offset`."""
    behind = int(offset.total_seconds()) // 60
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
            f"These times cannot be written as one cron expression in the server's time zone, whose clock is "
            f"{behind / 60:+.4g} hours behind. Choose hours that are on the same day there, or set the server's time "
            "zone (cronScheduleTimezone in its pipeline-install-config) and MEDLOOP_KFP_TIMEZONE to this zone."
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
