"""The clock of a test: it stands still, and moves from one moment that is waited for to the next."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta, timezone

import pytest

from coordinator.embedding.clock import ClockedLoop, FakeClock, milliseconds

NINE = 1_795_251_600_000  # 2026-11-21T09:00:00Z


class Hourly:
    """Wants to do something every hour, and notes when it did."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.next = clock.now() + 3_600_000
        self.done: list[int] = []
        self.moving = False

    async def settle(self) -> None:
        await asyncio.sleep(0)

    def due(self) -> float:
        return self.next

    def pump(self) -> None:
        if self.clock.now() >= self.next:
            self.done.append(self.clock.now())
            self.next += 3_600_000


async def test_it_stands_still_until_it_is_moved() -> None:
    """Real time does nothing to it."""
    clock = FakeClock("2026-11-21T09:00:00Z")
    await asyncio.sleep(0.01)
    assert clock.now() == NINE
    await clock.advance("90m")
    assert clock.now() == NINE + 90 * 60_000


async def test_every_moment_that_is_waited_for_is_passed_in_order() -> None:
    """A move over many hours stops at each of them, at its own time."""
    clock = FakeClock("2026-11-21T09:00:00Z")
    hourly = Hourly(clock)
    clock.drive(hourly)
    clock.call_later(90 * 60_000, lambda: hourly.done.append(-1))
    await clock.advance("3h")
    assert hourly.done == [NINE + 3_600_000, -1, NINE + 7_200_000, NINE + 10_800_000]


async def test_what_is_not_driven_any_more_does_not_hear_of_time() -> None:
    """`drive` returns how to stop."""
    clock = FakeClock()
    hourly = Hourly(clock)
    clock.drive(hourly)()
    await clock.advance("3h")
    assert hourly.done == []
    assert clock.next_due is None


async def test_it_goes_to_the_next_moment_and_says_when_that_is() -> None:
    """`to_next` is for tests that do not want to know how long something takes."""
    clock = FakeClock("2026-11-21T09:00:00Z")
    assert not await clock.to_next()
    clock.drive(Hourly(clock))
    assert clock.next_due == "2026-11-21T10:00:00.000Z"
    assert not await clock.to_next(latest=NINE + 60_000)
    assert clock.now() == NINE
    assert await clock.to_next()
    assert clock.now() == NINE + 3_600_000


async def test_a_moment_that_is_past_is_refused() -> None:
    """Time never goes back."""
    clock = FakeClock("2026-11-21T09:00:00Z")
    await clock.until("2026-11-21T10:00:00Z")
    with pytest.raises(ValueError, match="does not go back"):
        await clock.until("2026-11-21T09:59:59Z")


async def test_a_cancelled_timer_does_not_fire() -> None:
    """Nor is it a moment that anybody waits for."""
    clock = FakeClock()
    fired: list[int] = []
    clock.call_later(1000, fired.append, 1).cancel()
    assert clock.next_due is None
    await clock.advance("1m")
    assert fired == []


async def test_a_sleeper_wakes_in_time_and_a_cancelled_one_leaves_nothing_behind() -> None:
    """`sleep` is what a scripted service waits with."""
    clock = FakeClock("2026-11-21T09:00:00Z")
    sleeper = asyncio.create_task(clock.sleep(5_000))
    await asyncio.sleep(0)
    await clock.advance("4s")
    assert not sleeper.done()
    await clock.advance("1s")
    await sleeper
    gone = asyncio.create_task(clock.sleep(5_000))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.wait([gone])
    assert clock.next_due is None


async def test_something_that_goes_on_for_ever_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A move that would pass a hundred thousand moments ends with what is probably wrong."""
    monkeypatch.setattr("coordinator.embedding.clock.MOMENTS_MAX", 50)
    clock = FakeClock()
    clock.drive(Hourly(clock))
    with pytest.raises(AssertionError, match="over and over"):
        await clock.advance("30d")


async def test_a_loop_on_this_clock_keeps_all_but_time() -> None:
    """The gateway's timeouts are on the clock; its tasks are the loop's."""
    clock = FakeClock("2026-11-21T09:00:00Z")
    loop = ClockedLoop(asyncio.get_running_loop(), clock)
    fired: list[float] = []
    loop.call_later(2.5, lambda: fired.append(loop.time()))
    assert await loop.create_task(asyncio.sleep(0, "real")) == "real"
    await clock.advance("10s")
    assert fired == [NINE / 1000 + 2.5]


def test_moments_are_read_in_every_usual_form() -> None:
    """Text without a zone is UTC, as everywhere in the project."""
    assert milliseconds("2026-11-21T09:00:00Z") == NINE
    assert milliseconds("2026-11-21T10:00:00+01:00") == NINE
    assert milliseconds("2026-11-21T09:00:00") == NINE
    assert milliseconds(datetime(2026, 11, 21, 9, tzinfo=UTC)) == NINE
    assert milliseconds(datetime(2026, 11, 21, 11, tzinfo=timezone(timedelta(hours=2)))) == NINE
    assert milliseconds(NINE) == NINE
    with pytest.raises(ValueError):
        milliseconds("tomorrow")
