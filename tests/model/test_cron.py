"""Lines of cron: what is refused, the words, and the ticks, most of all on the nights on which the clocks change."""

from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from queuedtask.errors import InvalidTask
from queuedtask.model.cron import ALIASES, Cron

PARIS = "Europe/Paris"


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def ticks(line: str, zone: str, after: str, before: str) -> list[str]:
    """Return the ticks between two times as the clock on the wall shows them, with the offset."""
    found = []
    for tick in Cron(line, zone).after(at(after)):
        if tick >= at(before):
            break
        found.append(tick.astimezone(ZoneInfo(zone)).strftime("%d %H:%M:%S %z").replace(":00 ", " "))
    return found


# ---------------------------------------------------------------------------------------------------------- the grammar


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("0 8 * * *", "At 08:00 every day"),
        ("30 0 8 * * *", "At 08:00:30 every day"),
        ("* * * * * *", "Every second"),
        ("*/5 * * * *", "Every fifth minute of every hour"),
        ("0 0 * * mon#2", "At 00:00 on the second Monday of the month"),
        ("0 0 L * *", "At 00:00 on the last day of every month"),
        ("@daily", "At 00:00 every day"),
        ("  @Hourly ", "At the start of every hour"),
    ],
)
def test_a_line_in_words(line: str, words: str) -> None:
    assert Cron(line).words == words


def test_blanks_do_not_make_another_line() -> None:
    assert Cron(" 0  8 *\t* * ").line == "0 8 * * *"
    assert Cron("@DAILY").line == "@daily"


@pytest.mark.parametrize("alias", ALIASES)
def test_every_alias_has_ticks_and_words(alias: str) -> None:
    assert Cron(alias, PARIS).next(at("2026-03-01T12:00Z")) > at("2026-03-01T12:00Z")
    assert Cron(alias).words


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("* * *", "Wrong number of fields"),
        ("* * * * * * *", "Wrong number of fields"),
        ("61 * * * *", "Bad minute"),
        ("60 * * * * *", "Bad second"),
        ("0 0 30 2 *", "Bad day-of-month"),
        ("*/0 * * * *", "Bad minute"),
        (f"{'9' * 450} * * * *", "Bad minute"),
        ("@reboot", "none of @yearly"),
        ("", "must be a text"),
        ("   ", "must be a text"),
        ("0 8 * * *" + " " * 500, "at most 500"),
        (None, "must be a text"),
        (5, "must be a text"),
    ],
)
def test_a_line_that_cannot_be_is_refused_with_what_is_allowed(line: str, complaint: str) -> None:
    with pytest.raises(InvalidTask, match=complaint):
        Cron(line)


@pytest.mark.parametrize("zone", ["Mars/Olympus", "Europe", "../etc/passwd", "", "/etc/localtime", None, [], 3, "a\0b"])
def test_a_time_zone_that_nobody_knows_is_refused(zone: str) -> None:
    with pytest.raises(InvalidTask, match="no time zone of this name"):
        Cron("@daily", zone)


_FIELD = st.one_of(
    st.just("*"),
    st.integers(0, 62).map(str),
    st.tuples(st.integers(0, 31), st.integers(0, 31)).map(lambda pair: f"{pair[0]}-{pair[1]}"),
    st.integers(0, 31).map(lambda step: f"*/{step}"),
    st.sampled_from(["L", "LW", "MON", "MON#2", "5L", "JAN", "1,2", "1-5/2", "L/2", "1#9", ",", "-", "/", "#", "²L"]),
)


@settings(deadline=None)
@given(st.lists(_FIELD, min_size=4, max_size=7).map(" ".join))
@example("0 0 29 2 *")
@example("0 0 LW * *")
def test_whatever_is_accepted_has_words_and_ticks_that_grow(line: str) -> None:
    try:
        cron = Cron(line, PARIS)
    except InvalidTask:
        return
    assert cron.words
    found = list(islice(cron.after(at("2026-10-24T22:00Z")), 5))
    assert len(found) == 5
    assert all(one < other for one, other in pairwise(found))
    assert all(tick.tzinfo is UTC and not tick.microsecond for tick in found)


# ---------------------------------------------------------------------------------------------------------------- ticks


def test_ticks_are_after_the_given_time_and_in_utc() -> None:
    cron = Cron("0 8 * * *", PARIS)
    assert cron.next(at("2026-01-15T06:59:59.999Z")) == at("2026-01-15T07:00Z")
    assert cron.next(at("2026-01-15T07:00Z")) == at("2026-01-16T07:00Z")
    assert cron.next(at("2026-07-15T00:00Z")) == at("2026-07-15T06:00Z")
    assert cron.next(datetime(2026, 7, 15, tzinfo=ZoneInfo("Asia/Tokyo"))) == at("2026-07-15T06:00Z")


def test_six_fields_begin_with_the_seconds() -> None:
    assert ticks("*/20 1 8 * * *", "UTC", "2026-01-01T00:00Z", "2026-01-02T00:00Z") == [
        "01 08:01 +0000",
        "01 08:01:20 +0000",
        "01 08:01:40 +0000",
    ]


SPRING = ("2026-03-28T22:00Z", "2026-03-30T00:00Z")  # 02:00 becomes 03:00 at 01:00Z on the 29th
AUTUMN = ("2026-10-24T21:30Z", "2026-10-26T00:30Z")  # 03:00 becomes 02:00 at 01:00Z on the 25th


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("30 2 * * *", ["29 03:00 +0200"]),
        ("15 30 2 * * *", ["29 03:00 +0200"]),
        ("*/15 2 * * *", ["29 03:00 +0200"]),
        ("0,30 2,3 * * *", ["29 03:00 +0200", "29 03:30 +0200"]),
        ("0 3 * * *", ["29 03:00 +0200"]),
    ],
)
def test_what_falls_into_the_missing_hour_comes_once_at_its_end(line: str, expected: list[str]) -> None:
    assert ticks(line, PARIS, *SPRING) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("30 2 * * *", ["25 02:30 +0200"]),
        ("0 30 2 * * *", ["25 02:30 +0200"]),
        ("*/30 2 * * *", ["25 02:00 +0200", "25 02:30 +0200"]),
        ("0 1-3 * * *", ["25 01:00 +0200", "25 02:00 +0200", "25 03:00 +0100", "26 01:00 +0100"]),
    ],
)
def test_what_falls_into_the_doubled_hour_comes_once_in_its_first_pass(line: str, expected: list[str]) -> None:
    assert ticks(line, PARIS, *AUTUMN) == expected


@pytest.mark.parametrize("start", ["2026-10-25T00:30Z", "2026-10-25T00:31Z", "2026-10-25T01:15Z", "2026-10-25T01:30Z"])
def test_a_worker_that_starts_in_the_second_pass_does_not_fire_the_first_one_s_again(start: str) -> None:
    assert Cron("30 2 * * *", PARIS).next(at(start)) == at("2026-10-26T01:30Z")


@pytest.mark.parametrize("line", ["*/30 * * * *", "0,30 * * * *", "*/30 0-23 * * *", "0 */30 * * * *"])
def test_a_line_for_every_hour_goes_by_the_time_that_passes(line: str) -> None:
    for start in ("2026-03-29T00:00Z", "2026-10-25T00:00Z"):
        found = list(islice(Cron(line, PARIS).after(at(start)), 6))
        assert found == [at(start) + timedelta(minutes=30 * n) for n in range(1, 7)]


@pytest.mark.parametrize("zone", ["America/Santiago", "Africa/Cairo", "America/Havana", "Asia/Beirut", "Pacific/Apia"])
def test_midnight_comes_once_a_day_even_where_it_is_what_is_missing_or_doubled(zone: str) -> None:
    line = Cron("@daily", zone)
    days = [tick.astimezone(ZoneInfo(zone)).date() for tick in islice(line.after(at("2011-01-01T12:00Z")), 5000)]
    assert len(set(days)) == len(days)
    # Apia left a whole day out, at the end of 2011; what it would have had comes with the next midnight.
    assert (days[-1] - days[0]).days == 4999 + (zone == "Pacific/Apia")


@settings(deadline=None)
@given(
    st.sampled_from(["30 2 * * *", "*/7 1-3 * * *", "*/30 * * * *", "* * * * *", "17 */2 * * *", "5 4 3 2-20 * *"]),
    st.sampled_from([PARIS, "Australia/Lord_Howe", "America/Havana", "UTC"]),
    st.sampled_from(["2026-03-28", "2026-10-24", "2026-03-07", "2026-10-31", "2026-04-04", "2026-10-03"]),
    st.integers(0, 2 * 86400),
    st.integers(0, 2 * 86400),
)
def test_it_does_not_matter_where_one_begins(line: str, zone: str, day: str, one: int, other: int) -> None:
    begin = at(f"{day}T00:00+00:00")
    end = begin + timedelta(days=3)
    cron = Cron(line, zone)
    first, second = sorted([begin + timedelta(seconds=one), begin + timedelta(seconds=other)])

    def all_after(moment: datetime) -> list[datetime]:
        found = []
        for tick in cron.after(moment):
            if tick > end:
                return found
            found.append(tick)
        raise AssertionError

    assert all_after(second) == [tick for tick in all_after(first) if tick > second]


@settings(deadline=None)
@given(
    st.sampled_from(["* * * * * *", "* * 2 * * *", "30 2 * * *", "*/7 * * * *", "0 0 29 2 *"]),
    st.sampled_from([PARIS, "UTC"]),
    st.integers(0, 14 * 86400 * 10),
)
def test_the_latest_tick_is_that_of_the_long_way_round(line: str, zone: str, tenths: int) -> None:
    cron = Cron(line, zone)
    first = cron.next(at("2026-10-20T00:00Z"))
    until = first + timedelta(seconds=tenths / 10)
    latest = cron.latest(first, until)
    assert first <= latest <= until < cron.next(latest)
