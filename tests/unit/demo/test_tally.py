"""What the demo tells about the coordinator is taken from what it saw, and counted once."""

from __future__ import annotations

import asyncio

from coordinator.demo.tally import Tally, Watch


def seen(suspended: bool, delayed: int = 0) -> list[dict[str, object]]:
    return [
        {"name": "payments", "suspended": suspended, "delayed": delayed},
        {"name": "stock", "suspended": False, "delayed": 1},
    ]


def test_a_suspension_is_told_once_and_counted_once() -> None:
    """Many polls of one outage are one suspension, with one line at its start and one at its end."""
    watch = Watch()
    told = [watch.saw(seen(suspended)) for suspended in (False, True, True, False, False)]
    assert [len(lines) for lines in told] == [0, 1, 0, 1, 0]
    assert watch.suspensions == 1


def test_the_peak_of_delayed_orders_is_kept() -> None:
    """The table shows the most that were delayed at one time, over all services."""
    watch = Watch()
    for delayed in (0, 7, 3):
        watch.saw(seen(True, delayed))
    assert (watch.delayed, watch.delayed_peak) == (4, 8)


async def test_a_milestone_is_reached_when_that_part_of_the_orders_is_settled() -> None:
    """Given up counts as settled, so that the story never waits for an order that will not come."""
    tally = Tally(4)
    half = asyncio.create_task(tally.reaches(0.5))
    await asyncio.sleep(0)
    tally.ended("o-1", "completed")
    await asyncio.sleep(0)
    assert not half.done()
    tally.gave_up("o-2", "unreachable")
    await half


async def test_waiting_for_a_suspension_ends_when_it_is_seen() -> None:
    """The outage goes on until the suspension was seen, not for a guessed time."""
    watch = Watch()
    suspended = asyncio.create_task(watch.suspends("payments"))
    await asyncio.sleep(0)
    watch.saw(seen(False))
    await asyncio.sleep(0)
    assert not suspended.done()
    watch.saw(seen(True))
    await suspended
