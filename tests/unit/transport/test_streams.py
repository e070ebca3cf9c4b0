"""Streams are bounded, end with a word, and lose nothing on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from coordinator.errors import LimitReached, Stopping, Unavailable
from coordinator.transport.base import Event, OutcomeItem
from coordinator.transport.streams import BATCH_MAX, EventQueue, OutcomeReader, Streams, stopping


def step(number: int) -> Event:
    return Event("step", "c-1", f"0:{number}")


async def all_of(queue: EventQueue) -> list[Event]:
    taken: list[Event] = []
    while not (taken and taken[-1].kind in ("final", "error")):
        batch = await queue.take(1)
        assert 0 < len(batch) <= BATCH_MAX
        taken += batch
    return taken


async def test_events_come_in_order_and_end_with_final() -> None:
    """What is put before and while the reader waits comes out once, in order; nothing follows final."""
    queue = EventQueue(10)
    queue.put(step(1))
    assert await queue.take(1) == [step(1)]
    waiting = asyncio.ensure_future(queue.take(1))
    await asyncio.sleep(0)
    queue.put(Event("final", "c-1"))
    queue.put(step(3))
    assert [event.kind for event in await waiting] == ["final"]
    assert await queue.take(0) == []


async def test_silence_gives_nothing_after_the_timeout() -> None:
    """So that the stream can send a heartbeat."""
    assert await EventQueue(10).take(0) == []


async def test_a_slow_reader_gets_what_fits_and_then_an_error() -> None:
    """Memory is bounded, and the position of the last event delivered is where the client goes on."""
    queue = EventQueue(200)
    for number in range(1000):
        queue.put(step(number))
    taken = await all_of(queue)
    assert taken[:-1] == [step(number) for number in range(200)]
    assert isinstance(taken[-1].error, Unavailable)


async def test_stopping_comes_after_what_is_queued() -> None:
    """The daemon's stop cuts nothing off that was told already."""
    queue = EventQueue(10)
    queue.put(step(1))
    queue.stop("c-1", stopping())
    queue.put(step(2))
    taken = await all_of(queue)
    assert [event.kind for event in taken] == ["step", "error"]
    assert isinstance(taken[1].error, Stopping)


def test_streams_are_limited_in_number_and_told_to_stop() -> None:
    """One too many is refused; a stop reaches every open one, and nothing opens afterwards."""
    told: list[str] = []

    class Stream:
        def __init__(self, name: str) -> None:
            self.name = name

        def stop(self) -> None:
            told.append(self.name)

    streams = Streams(2)
    first, second = Stream("first"), Stream("second")
    streams.add(first)
    streams.add(second)
    with pytest.raises(LimitReached):
        streams.add(Stream("third"))
    streams.discard(first)
    streams.stop()
    assert told == ["second"]
    with pytest.raises(Stopping):
        streams.add(Stream("late"))


def item(number: int) -> OutcomeItem:
    return OutcomeItem(position=f"0:{number}", service="s", command_id="c", type="T", step="a", outcome=1, at="")


async def test_outcomes_are_pulled_to_their_end() -> None:
    """Batches come as the Front gives them, and None is the end."""

    async def batches() -> AsyncIterator[list[OutcomeItem]]:
        yield [item(1)]
        yield [item(2)]

    reader = OutcomeReader(batches())
    await reader.begin()
    assert [await reader.batch(), await reader.batch(), await reader.batch()] == [[item(1)], [item(2)], None]
    await reader.close()


async def test_following_outcomes_ends_when_the_daemon_stops() -> None:
    """The stop comes between two batches, and the Front's iterator is released."""
    released = asyncio.Event()

    async def batches() -> AsyncIterator[list[OutcomeItem]]:
        try:
            yield [item(1)]
            await asyncio.Event().wait()
        finally:
            released.set()

    reader = OutcomeReader(batches())
    assert await reader.batch() == [item(1)]
    waiting = asyncio.ensure_future(reader.batch())
    await asyncio.sleep(0)
    reader.stop()
    with pytest.raises(Stopping):
        await waiting
    await reader.close()
    assert released.is_set()
