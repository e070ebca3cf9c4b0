"""Watchers that join late are always told something."""

from __future__ import annotations

import asyncio

import pytest

from coordinator.errors import CoordinatorError, Internal, Starting
from coordinator.front.watching import Join, Later
from coordinator.transport.base import Event, Unwatch


@pytest.mark.parametrize(("raised", "told"), [(Starting(), Starting), (RuntimeError("a mistake"), Internal)])
async def test_a_watcher_that_cannot_join_is_told_why(raised: Exception, told: type[CoordinatorError]) -> None:
    """Refused, or by a mistake of ours: nobody else would tell it, and it would wait for ever."""
    seen: list[Event] = []

    def begin() -> Unwatch:
        raise raised

    async def first() -> None:
        raise raised

    Join(asyncio.get_running_loop(), "x", seen.append, begin)
    Later("x", seen.append, first, begin)
    while len(seen) < 2:  # noqa: ASYNC110 - a turn of the loop or two
        await asyncio.sleep(0)
    assert [type(event.error) for event in seen] == [told, told]


async def test_who_leaves_at_once_leaves_nothing_behind() -> None:
    """What was to be settled first is not even begun (a coroutine that nobody awaits would be warned of)."""
    begun: list[str] = []

    async def first() -> None:
        begun.append("first")

    Later("x", lambda _: None, first, lambda: lambda: None)()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert begun == []
