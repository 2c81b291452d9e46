"""The limits of channels: the spelling of the setting, and the window of a rate."""

import json

import pytest

from queuedtask.model.limits import MOST_EXACT, Limit, Window, parse


def test_the_setting_is_spelt_by_channel() -> None:
    assert parse("mail:2, api:4@10/min,slow@1/day,other,zero:0@2/sec,é@3/hour") == {
        "mail": Limit(2),
        "api": Limit(4, 10, 60.0),
        "slow": Limit(None, 1, 86400.0),
        "other": Limit(),
        "zero": Limit(0, 2, 1.0),
        "é": Limit(None, 3, 3600.0),
    }
    assert parse("") == {}


@pytest.mark.parametrize("setting", ["mail:2", "api:4@10/min", "slow@1/day", "other", "zero:0@2/sec"])
def test_a_limit_is_shown_as_it_is_spelt(setting: str) -> None:
    ((name, limit),) = parse(setting).items()
    assert f"{name}{limit}" == setting


class Rate:
    """A channel with a rate, and a clock to turn."""

    def __init__(self, most: int, seconds: float) -> None:
        self.most, self.seconds, self.now, self.starts = most, seconds, 1000.0, "[]"

    @property
    def window(self) -> Window:
        return Window(self.starts, self.most, self.seconds, self.now)

    def start(self, count: int) -> None:
        before, together = self.window.before(count)
        self.starts = json.dumps([*json.loads(before), [self.now, together]])


def test_the_window_slides() -> None:
    rate = Rate(3, 60.0)
    rate.start(1)
    rate.now += 10
    rate.start(2)
    assert rate.window.room == 0
    assert rate.window.seconds_to_room == 50.0
    rate.now += 49.9
    assert rate.window.room == 0
    rate.now += 0.2
    assert rate.window.room == 1
    rate.start(1)
    assert rate.window.room == 0
    assert rate.window.seconds_to_room == pytest.approx(9.9)


def test_never_more_than_the_rate_in_any_window_and_hardly_fewer_when_many_are_remembered_together() -> None:
    most, seconds = MOST_EXACT * 5, 100.0
    rate, began = Rate(most, seconds), []
    for _ in range(4000):
        rate.now += 0.07
        if room := min(rate.window.room, 20):
            rate.start(room)
            began += [rate.now] * room
    assert len(json.loads(rate.starts)) <= MOST_EXACT + 1
    assert all(later - earlier >= seconds for earlier, later in zip(began, began[most:], strict=False))
    assert len(began) > 2.7 * most


@pytest.mark.parametrize("starts", ["", "7", "null", "[1]", '[["x", 1]]', '{"a": 1}', "[[1e400, 1]]", "[[1, 2, 3]]"])
def test_what_somebody_has_written_by_hand_counts_as_nothing(starts: str) -> None:
    assert Window(starts, 3, 60.0, 1000.0).room == 3


def test_starts_of_a_clock_that_was_ahead_do_not_count_for_longer_than_the_period() -> None:
    assert Window("[[1050, 3]]", 3, 60.0, 1000.0).room == 0
    assert Window("[[9999, 3]]", 3, 60.0, 1000.0).room == 3
