"""Who is dead: only one whose heartbeat was seen unchanged for a whole lease, by the observer's own clock."""

import itertools
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from queuedtask.db.workers import Owner
from queuedtask.worker.rescue import Observer

LEASE = 30.0
LONG_AGO = datetime(1971, 2, 3, tzinfo=UTC)


def beat(number: float = 0) -> datetime:
    return datetime(2030, 1, 1, tzinfo=UTC) + timedelta(seconds=number)


class Watch:
    """An observer that looks at one worker, again and again at short intervals."""

    def __init__(self, lease: float = LEASE, step: float = LEASE / 6) -> None:
        self.observer = Observer()
        self.now = 1000.0
        self._lease = lease
        self._step = step

    def look(self, owner: Owner) -> bool:
        """Look once; tell whether it is found dead."""
        found = self.observer.look(self.now, [owner], lease=self._lease)
        assert found in ([], [owner])
        return bool(found)

    def is_dead_after(self, owner: Owner, seconds: float) -> bool:
        """Look at it, unchanged, for so long; tell whether it is dead at the end, and hold that it was not before."""
        end = self.now + seconds
        while self.now < end:
            assert not self.look(owner), f"{end - self.now} s too early"
            self.now = min(end, self.now + self._step)
        return self.look(owner)


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.mark.parametrize("heartbeat", [beat(), LONG_AGO, datetime(9999, 1, 1, tzinfo=UTC), None])
def test_one_that_is_unchanged_for_a_whole_lease_is_dead_however_old_its_heartbeat_is(
    watch: Watch, heartbeat: datetime | None
) -> None:
    owner = Owner(1, heartbeat, LEASE)
    assert not watch.is_dead_after(owner, LEASE - 0.001)
    watch.now += 0.001
    assert watch.look(owner)


def test_one_that_is_dead_is_found_so_again_until_it_is_gone(watch: Watch) -> None:
    owner = Owner(1, beat(), LEASE)
    assert watch.is_dead_after(owner, LEASE)
    watch.now += 1
    assert watch.look(owner)
    assert watch.observer.look(watch.now, [], lease=LEASE) == []


@pytest.mark.parametrize("change", [1, -1, 1e-6, -86400, 86400])
def test_any_change_of_the_heartbeat_is_a_sign_of_life_back_in_time_as_well(watch: Watch, change: float) -> None:
    assert not watch.is_dead_after(Owner(1, beat(), LEASE), LEASE - 1)
    watch.now += 1
    # It may have changed at this very moment, whenever the last look was.
    assert watch.is_dead_after(Owner(1, beat(change), LEASE), LEASE)


def test_one_that_reports_again_after_it_was_dead_is_alive(watch: Watch) -> None:
    assert watch.is_dead_after(Owner(1, beat(), LEASE), LEASE)
    assert watch.is_dead_after(Owner(1, beat(1), LEASE), LEASE)


def test_each_worker_is_judged_by_its_own_heartbeat(watch: Watch) -> None:
    silent, gone, late = Owner(1, beat(), LEASE), Owner(2, None, None), Owner(4, beat(), LEASE)
    for step in range(7):
        owners = [silent, gone, Owner(3, beat(step), LEASE), *([late] if step >= 1 else [])]
        found = watch.observer.look(step * 5.0, owners, lease=LEASE)
        assert found == ([silent, gone] if step == 6 else [])


def test_a_worker_s_own_lease_counts_where_it_is_longer(watch: Watch) -> None:
    assert watch.is_dead_after(Owner(1, beat(), 3 * LEASE), 3 * LEASE)


@pytest.mark.parametrize("lease", [1.0, None])
def test_the_observer_s_lease_counts_where_the_worker_s_is_shorter_or_not_known(
    watch: Watch, lease: float | None
) -> None:
    assert watch.is_dead_after(Owner(1, beat(), lease), LEASE)


def test_after_a_gap_of_more_than_half_a_lease_the_watch_begins_anew(watch: Watch) -> None:
    owner = Owner(1, beat(), LEASE)
    assert not watch.is_dead_after(owner, LEASE - 1)
    watch.now += LEASE / 2 + 0.001
    assert watch.is_dead_after(owner, LEASE)


def test_a_gap_of_half_a_lease_is_none(watch: Watch) -> None:
    owner = Owner(1, beat(), LEASE)
    assert not watch.is_dead_after(owner, LEASE - 1)
    watch.now += LEASE / 2
    assert watch.look(owner)


def test_after_an_outage_the_watch_begins_anew(watch: Watch) -> None:
    owner = Owner(1, beat(), LEASE)
    assert not watch.is_dead_after(owner, LEASE - 1)
    watch.observer.forget()
    watch.now += 1
    assert watch.is_dead_after(owner, LEASE)


def test_one_that_was_no_owner_for_a_while_is_watched_anew(watch: Watch) -> None:
    owner = Owner(1, beat(), LEASE)
    assert not watch.is_dead_after(owner, LEASE - 1)
    assert watch.observer.look(watch.now, [], lease=LEASE) == []
    watch.now += 1
    assert watch.is_dead_after(owner, LEASE)


leases = st.floats(0.1, 3.0)
# In leases: many of the former almost too late, many of the latter often enough to find somebody dead.
shares = st.floats(0.001, 0.999) | st.floats(0.95, 0.999)
gaps = st.floats(0.001, 2.0) | st.floats(0.01, 0.5)


@given(
    beats=st.lists(shares, min_size=5, max_size=60),
    looks=st.lists(gaps, min_size=5, max_size=60),
    own=leases,
    others=leases,
    outages=st.sets(st.integers(0, 59)),
)
def test_a_worker_whose_heartbeat_changes_within_each_lease_is_never_found_dead(
    beats: list[float], looks: list[float], own: float, others: float, outages: set[int]
) -> None:
    """Heartbeats come at any times less than a lease apart, looks at any times at all."""
    beat_at = list(itertools.accumulate(share * max(own, others) for share in beats))
    observer = Observer()
    for number, now in enumerate(itertools.accumulate(gap * others for gap in looks)):
        if now > beat_at[-1]:
            break
        if number in outages:
            observer.forget()
        last = sum(each <= now for each in beat_at)
        assert observer.look(now, [Owner(1, beat(last), own)], lease=others) == []


@given(looks=st.lists(st.floats(0.001, 0.499), min_size=20, max_size=60), own=leases)
def test_a_worker_that_fell_silent_is_found_dead_at_the_first_look_after_its_lease_and_not_before(
    looks: list[float], own: float
) -> None:
    observer, first = Observer(), looks[0]
    for now in itertools.accumulate(looks):
        found = observer.look(now, [Owner(1, beat(), own)], lease=1.0)
        assert bool(found) == (now - first >= max(own, 1.0))
