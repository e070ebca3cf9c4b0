"""The clock: whatever the wall clock does, time goes on and no timer is lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coordinator.server.clock import STEP_MS, Clock

HOUR = 3_600_000
START = 1_700_000_000_000


class Clocks:
    """A wall clock and a monotonic clock that a test moves by hand, in milliseconds."""

    def __init__(self) -> None:
        self.wall = START
        self.steady = 5_000
        self.clock = Clock(lambda: self.wall * 1_000_000, lambda: self.steady * 1_000_000)

    def passes(self, ms: int) -> int:
        """Time passes on both clocks; returns the time told then."""
        self.wall += ms
        self.steady += ms
        return self.clock.now()


def test_it_starts_at_the_wall_clock() -> None:
    """The time is a date."""
    assert Clocks().clock.now() == START


def test_it_passes_as_time_passes() -> None:
    """Undisturbed, it is the wall clock."""
    assert Clocks().passes(1234) == START + 1234


def test_a_jump_back_neither_stops_nor_turns_it() -> None:
    """A timer an hour from now fires an hour from now, though the wall clock was set back by a day."""
    clocks = Clocks()
    due = clocks.clock.now() + HOUR
    clocks.wall -= 24 * HOUR
    assert clocks.passes(HOUR - 1) < due
    assert clocks.passes(1) == due


def test_a_jump_forward_is_followed() -> None:
    """A timer that fell due in the jump fires at once."""
    clocks = Clocks()
    clocks.wall += 2 * HOUR
    assert clocks.clock.now() == START + 2 * HOUR
    assert clocks.passes(10) == START + 2 * HOUR + 10


def test_sleep_of_the_machine_counts_as_time() -> None:
    """While a machine is suspended the monotonic clock stands still and only the wall clock goes on."""
    clocks = Clocks()
    due = clocks.clock.now() + HOUR
    clocks.wall += 8 * HOUR
    assert clocks.clock.now() >= due


def test_a_jump_back_and_its_repair_cancel_out() -> None:
    """When the wall clock is put right again, nothing has happened."""
    clocks = Clocks()
    clocks.wall -= HOUR
    clocks.passes(500)
    clocks.wall += HOUR
    assert clocks.clock.now() == START + 500


def test_a_small_lead_of_the_wall_clock_is_ignored() -> None:
    """Slewing does not make the pace uneven."""
    clocks = Clocks()
    clocks.wall += STEP_MS
    assert clocks.clock.now() == START


@given(st.lists(st.tuples(st.integers(-10 * HOUR, 10 * HOUR), st.integers(0, HOUR))))
def test_it_never_goes_back_and_never_loses_time(moves: list[tuple[int, int]]) -> None:
    """For any jumps: at least the time that passed has passed, and it is never behind the wall clock by a step."""
    clocks = Clocks()
    before = clocks.clock.now()
    for jump, passed in moves:
        clocks.wall += jump
        now = clocks.passes(passed)
        assert now >= before + passed
        assert now >= clocks.wall - STEP_MS
        before = now


def test_the_machines_own_clocks_are_the_default() -> None:
    """Without sources it reads the real ones, and durations are never negative."""
    clock = Clock()
    began = clock.elapsed_ns()
    assert clock.now() > START
    assert clock.elapsed_ns() >= began
