"""Times in cron's five fields: what is due by the clock on the wall is what a server's cron fires, all year round."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from medloop.kubeflow import cron
from medloop.kubeflow.cron import Cron, Span
from tests.medloop.kubeflow.kfp_checks import CRON_FIELDS, check_cron

NOW = datetime(2026, 1, 15, 12, 0, 7, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
ZONES = {
    name: ZoneInfo(name)
    for name in (
        "UTC",
        "Europe/Berlin",
        "Europe/Dublin",
        "America/New_York",
        "America/St_Johns",
        "Asia/Kolkata",
        "Asia/Tokyo",
        "Australia/Lord_Howe",
        "Pacific/Auckland",
        "Pacific/Kiritimati",
        "Africa/Casablanca",
        "America/Santiago",
    )
}


class Robfig:
    """The cron of Kubeflow's controller (robfig/cron 1.2): six fields; stars among days mean "and", not "or"."""

    def __init__(self, expression: str) -> None:
        check_cron(expression)
        assert len(expression.split()) == 6, "five fields would mean something else to the server"
        self.fields = [self._values(text, at) for at, text in enumerate(expression.split())]
        self.stars = [any(part[0] in "*?" for part in text.split(",")) for text in expression.split()]
        assert self.fields[0] == {0}

    @staticmethod
    def _values(text: str, at: int) -> set[int]:
        least, most, _ = CRON_FIELDS[at]
        values: set[int] = set()
        for part in text.split(","):
            span, _, step = part.partition("/")
            first, _, last = span.partition("-")
            low, high = (least, most) if first == "*" else (int(first), int(last or (most if step else first)))
            values.update(range(low, high + 1, int(step or 1)))
        return values

    def fires(self, local: datetime) -> bool:
        _, minutes, hours, days, months, weekdays = self.fields
        if local.minute not in minutes or local.hour not in hours or local.month not in months:
            return False
        by_day, by_weekday = local.day in days, local.isoweekday() % 7 in weekdays
        return by_day and by_weekday if self.stars[3] or self.stars[5] else by_day or by_weekday


def fired(spans: list[Span], there: ZoneInfo, start: datetime, end: datetime) -> list[datetime]:
    """When the server starts runs between two moments: each part from after its start up to its end."""
    parts = [(Robfig(span.expression), span.start, span.end) for span in spans]
    return [
        moment
        for moment in minutes(start, end)
        for part, first, last in parts
        if (first is None or moment > first) and (last is None or moment <= last)
        if part.fires(moment.astimezone(there))
    ]


def wanted(due: Cron, here: ZoneInfo, start: datetime, end: datetime) -> list[datetime]:
    """When the wall's clock shows a time that is due; what it shows twice counts once, but for what is due hourly."""
    hourly = len(due.hours.values) == 24
    found = []
    for moment in minutes(start, end):
        local = moment.astimezone(here)
        if (hourly or not local.fold) and local.hour in due.hours.values and local.minute in due.minutes.values:
            found += [moment] if due.on(local.date()) else []
    return found


def minutes(start: datetime, end: datetime) -> Iterator[datetime]:
    while start < end:
        yield start
        start += MINUTE


def changes(zone: ZoneInfo, start: datetime, days: int) -> list[datetime]:
    """The days near which a clock changes."""
    found = []
    for day in range(days):
        moment = start + timedelta(days=day)
        if moment.astimezone(zone).utcoffset() != (moment + timedelta(days=1)).astimezone(zone).utcoffset():
            found.append(moment)
    return found


def agree(due: Cron, here: str, there: str = "UTC", days: int = 800) -> None:
    spans = cron.spans(due, ZONES[here], ZONES[there], NOW)
    begin = NOW.replace(hour=0, minute=0, second=0)
    windows = [begin + timedelta(days=3), *changes(ZONES[here], begin, days), *changes(ZONES[there], begin, days)]
    for middle in windows:
        start, end = max(middle - timedelta(hours=26), NOW + MINUTE).replace(second=0), middle + timedelta(hours=50)
        assert fired(spans, ZONES[there], start, end) == wanted(due, ZONES[here], start, end), (here, there, start)


@pytest.mark.parametrize("here", [name for name in ZONES if name != "UTC"])
@pytest.mark.parametrize("text", ["0 3 * * *", "30 2 * * *", "0 1,2,3,4 * * *", "0 */2 * * *", "0 * * * *"])
def test_the_server_fires_when_the_clock_on_the_wall_says(here: str, text: str) -> None:
    agree(cron.read(text), here, days=400)


@st.composite
def crons(draw: st.DrawFn) -> Cron:
    minute = ",".join(map(str, draw(st.lists(st.integers(0, 59), min_size=1, max_size=2, unique=True))))
    hour = draw(st.sampled_from(["*", "*/3", "1-3", "0", "23", "2", "3", "0,12", "9-17/2"]))
    day, month = draw(st.sampled_from([("*", "*"), ("*", "*"), ("*", "3,10"), ("25-31", "*"), ("*/2", "*")]))
    weekday = draw(st.sampled_from(["*", "*", "SUN", "7", "MON-FRI", "6,0", "1-7/2"]))
    return cron.read(f"{minute} {hour} {day} {month} {weekday}")


@given(due=crons(), here=st.sampled_from(sorted(ZONES)), there=st.sampled_from(["UTC", "UTC", "Asia/Tokyo"]))
@settings(max_examples=25, deadline=None)
def test_any_times_that_can_be_said_are_fired_at_those_times(due: Cron, here: str, there: str) -> None:
    try:
        cron.spans(due, ZONES[here], ZONES[there], NOW)
    except ValueError:
        assume(False)
    agree(due, here, there, days=300)


@pytest.mark.parametrize("there", ["Europe/Berlin", "America/New_York"])
def test_a_server_whose_own_clock_changes_fires_at_those_times_too(there: str) -> None:
    agree(cron.read("30 12 * * *"), "UTC", there)
    agree(cron.read("0 9 * * MON-FRI"), "Asia/Tokyo", there)
    agree(cron.read("0 9 * * MON-FRI"), "Pacific/Auckland", there)


def test_one_expression_serves_where_both_clocks_keep_their_distance() -> None:
    due = cron.read("0 3 * * MON")
    assert cron.spans(due, ZONES["UTC"], ZONES["UTC"], NOW) == [Span("0 0 3 * * 1", None, None)]
    assert cron.spans(due, ZONES["Asia/Tokyo"], ZONES["UTC"], NOW) == [Span("0 0 18 * * 0", None, None)]
    assert cron.spans(due, ZONES["Europe/Berlin"], ZONES["Europe/Berlin"], NOW) == [Span("0 0 3 * * 1", None, None)]


def test_parts_follow_one_another_for_five_years_and_the_last_has_no_end() -> None:
    spans = cron.spans(cron.read("0 3 * * *"), ZONES["Europe/Berlin"], ZONES["UTC"], NOW)
    assert len(spans) == 11
    assert (spans[0].start, spans[-1].end) == (None, None)
    assert spans[-1].start is not None
    assert spans[-1].start > NOW + timedelta(days=4 * 365)
    assert {span.expression for span in spans} == {"0 0 2 * * *", "0 0 1 * * *"}


@pytest.mark.parametrize(
    ("text", "zone"),
    [
        ("0 3 1 * *", "Asia/Tokyo"),  # the first of a month there is the last of one here
        ("0 1,23 * * MON", "Asia/Tokyo"),
        ("0,30 3 * * *", "Asia/Kolkata"),  # 21:30 and 22:00
        ("0 3 * 3 *", "Asia/Tokyo"),
    ],
)
def test_what_one_expression_cannot_say_is_refused_with_the_remedy(text: str, zone: str) -> None:
    with pytest.raises(ValueError, match="MEDLOOP_KFP_TIMEZONE") as refused:
        cron.spans(cron.read(text), ZONES[zone], ZONES["UTC"], NOW)
    assert "cronScheduleTimezone" in str(refused.value)


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("@daily", "0 0 * * *"),
        ("@Weekly", "0 0 * * 0"),
        ("0 0 * * 7", "0 0 * * 0"),
        ("0 0 * * 5-7", "0 0 * * 0,5,6"),
        ("0 0 * jan-MAR mon", "0 0 * 1,2,3 1"),
        ("*/20 0 * * *", "0,20,40 0 * * *"),
        ("5/20 0 * * *", "5,25,45 0 * * *"),
        ("0 0 * * 1/2", "0 0 * * 1,3,5"),
    ],
)
def test_ways_to_write_the_same(text: str, means: str) -> None:
    one, other = cron.read(text), cron.read(means)
    assert [*islice(one.after(NOW), 50)] == [*islice(other.after(NOW), 50)]


def test_of_two_restricted_day_fields_either_is_enough() -> None:
    days = [moment.date() for moment in islice(cron.read("0 0 13 * FRI").after(NOW), 6)]
    assert [(day.day, day.isoweekday()) for day in days] == [(16, 5), (23, 5), (30, 5), (6, 5), (13, 5), (20, 5)]
    thirteenth = [moment for moment in islice(cron.read("0 0 13 * FRI").after(NOW), 30) if moment.day == 13]
    assert {moment.isoweekday() for moment in thirteenth} > {5}


@pytest.mark.parametrize("text", ["0 0 30 2 *", "0 0 31 4,6,9,11 *", "0 0 31 2 *"])
def test_what_never_comes_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="which never matches") as refused:
        cron.read(text)
    assert text in str(refused.value)


def test_the_leap_day_comes() -> None:
    assert [moment.year for moment in islice(cron.read("0 0 29 2 *").after(NOW), 2)] == [2028, 2032]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "0 fields"),
        ("0 3 * *", "4 fields"),
        ("0 0 3 * * MON", "6 fields"),
        ("@reboot", "1 fields"),
        ("@every 1h", "2 fields"),
        ("CRON_TZ=Europe/Berlin 0 3 * * *", "6 fields"),
        ("60 3 * * *", "minute '60'"),
        ("0 24 * * *", "hour '24'"),
        ("0 0 0 * *", "day of the month '0'"),
        ("0 0 * 13 *", "month '13'"),
        ("0 0 * * 8", "day of the week '8'"),
        ("MON 3 * * *", "minute 'MON'"),
        ("0 0 * MON *", "month 'MON'"),
        ("0 0 * * JAN", "day of the week 'JAN'"),
        ("0 0 * * MONDAY", "day of the week 'MONDAY'"),
        ("0 5-3 * * *", "hour '5-3'"),
        ("*/0 3 * * *", "minute '*/0'"),
        ("0, 3 * * *", "minute ''"),
        (", 3 * * *", "minute ''"),
        ("*-5 3 * * *", "minute '*-5'"),
        ("-1 3 * * *", "minute '-1'"),
        ("0 0 L * *", "day of the month 'L'"),
        ("0 0 * * 1#2", "day of the week '1#2'"),
        ("0 0 ? * MON", "day of the month '?'"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_field(text: str, words: str) -> None:
    with pytest.raises(ValueError, match="--cron is ") as refused:
        cron.read(text)
    assert words in str(refused.value)


FIELD = st.from_regex(
    r"(\*|[0-9]{1,2}|MON|jan)(-[0-9]{1,2})?(/[0-9]{1,2})?(,[0-7]){0,2}|[-*/,?#L]{1,2}", fullmatch=True
)


def readable(text: str) -> Cron | None:
    try:
        return cron.read(text)
    except ValueError:
        return None


@given(text=st.tuples(*[FIELD] * 5).map(" ".join))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
def test_whatever_is_read_is_read_by_the_server_too(text: str) -> None:
    due = readable(text)
    assume(due is not None)
    assert due is not None
    for span in cron.spans(due, ZONES["UTC"], ZONES["UTC"], NOW):
        Robfig(span.expression)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("Europe/Berln", "Europe/Berlin"), ("europe/paris", "Paris"), ("", "such as"), ("Europe", ""), ("../etc", "")],
)
def test_an_unknown_time_zone_is_named_with_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(ValueError, match="There is no time zone") as refused:
        cron.zone(name)
    assert repr(name) in str(refused.value)
    assert hint in str(refused.value)
