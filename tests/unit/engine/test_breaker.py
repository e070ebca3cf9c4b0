"""The breaker of one service, move by move."""

from __future__ import annotations

import pytest

from coordinator.engine.breaker import Breaker, BreakerState
from coordinator.model.settings import BreakerSettings

CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN


def breaker() -> Breaker:
    return Breaker(BreakerSettings(failures=2, reset_ms=100))


def opened() -> Breaker:
    """Opened at 0."""
    found = breaker()
    found.failed(0)
    assert found.failed(0)
    return found


def probing() -> tuple[Breaker, int]:
    """Half open at 100, its probe under way."""
    found = opened()
    assert found.allows(100)
    return found, found.sent()


def test_unknown_answers_in_a_row_open_it() -> None:
    """A known answer in between starts the count again."""
    found = breaker()
    assert not found.failed(0)
    found.succeeded(1)
    assert not found.failed(2)
    assert found.failed(3)
    assert (found.state, found.until, found.allows(4)) == (OPEN, 103, False)


def test_a_service_that_is_known_to_be_down_opens_it_at_once() -> None:
    """Blocked does not wait for the count."""
    found = breaker()
    assert found.failed(0, at_once=True)
    assert found.state is OPEN


def test_after_the_reset_one_call_at_a_time_may_probe() -> None:
    """The second waits for the probe's answer."""
    found = opened()
    assert not found.allows(99)
    assert found.allows(100)
    probe = found.sent()
    assert probe
    assert (found.state, found.allows(101)) == (HALF_OPEN, False)


def test_a_probe_that_is_answered_closes_it() -> None:
    """And the count begins anew."""
    found, _ = probing()
    assert found.succeeded(101)
    assert (found.state, found.allows(101), found.failures) == (CLOSED, True, 0)


def test_a_probe_without_an_answer_opens_it_again() -> None:
    """For another reset time."""
    found, probe = probing()
    assert found.failed(150, probe=probe)
    assert (found.state, found.until, found.opened_count) == (OPEN, 250, 2)


def test_late_unknown_answers_of_older_calls_do_not_move_it() -> None:
    """They tell of the past: neither from open nor in place of the probe."""
    found = opened()
    assert not found.failed(50)
    assert found.until == 100
    found, probe = probing()
    assert not found.failed(101)
    assert not found.allows(101)
    assert found.failed(102, probe=probe)


def test_a_late_known_answer_of_an_older_call_closes_it_from_half_open() -> None:
    """Whenever it was asked, the service is alive now; but an open breaker keeps to its time."""
    found, _ = probing()
    assert found.succeeded(101)
    found = opened()
    assert not found.succeeded(50)
    assert found.state is OPEN


def test_a_probe_that_is_withdrawn_makes_room_for_another() -> None:
    """Its command was aborted; withdrawing any other call does not."""
    found, probe = probing()
    found.withdrawn(0)
    assert not found.allows(101)
    found.withdrawn(probe)
    assert found.allows(101)


def test_a_probe_of_an_earlier_time_is_no_probe() -> None:
    """The breaker has opened again since: the old number says nothing."""
    found, old = probing()
    found.succeeded(101)
    found.failed(102)
    found.failed(102)
    assert found.allows(202)
    assert found.sent() != old
    found.withdrawn(old)
    assert not found.failed(203, probe=old)
    assert not found.allows(203)


@pytest.mark.parametrize("make", [breaker, opened, lambda: probing()[0]])
def test_an_operators_hold_overrides_and_its_end_restores(make: object) -> None:
    """Forced open keeps calls back, forced closed lets them through, whatever it would do by itself."""
    found: Breaker = make()  # type: ignore[operator]
    before, allowed = found.state, found.allows(50)
    found.forced = "open"
    assert (found.allows(50), found.shown(50), found.holds) == (False, OPEN, True)
    found.forced = "closed"
    assert (found.allows(50), found.shown(50), found.holds) == (True, CLOSED, False)
    assert found.sent() == 0
    found.forced = None
    assert (found.state, found.allows(50)) == (before, allowed)


def test_it_shows_half_open_as_soon_as_a_probe_may_go() -> None:
    """An operator need not wait for the next call to see it."""
    found = opened()
    assert (found.shown(99), found.shown(100), found.state) == (OPEN, HALF_OPEN, OPEN)
