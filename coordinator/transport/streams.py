"""The answers that go on, whatever the transport: events of a command, outcomes of a service, sessions.

The Front calls a watcher for every event and never waits, so whatever a slow reader has not taken piles up in its
`EventQueue`.  The pile has a limit: what comes beyond it is dropped, and after the queued events the stream ends with
an ``error`` event, so that the client comes back with the last position it saw.  Since the queued ones are still
delivered, every round makes progress, however long the history.  Memory a stream is bounded by ``limit`` events plus
the transport's buffer.  Outcomes are pulled (`OutcomeReader`), so there the reader's pace is the log's.

`Streams` bounds their number, and ends them with a word of farewell when the daemon stops.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Final, Protocol

from coordinator.errors import CoordinatorError, LimitReached, Stopping, Unavailable
from coordinator.transport.base import Event, OutcomeItem

FAREWELL_MS: Final = 100
"""What a listener that closes at once still leaves its streams to tell their readers; most need a millisecond."""

FIRST_BATCH_WAIT_S: Final = 0.25
BATCH_MAX: Final = 64  # events a write; more would only lengthen the time until the next look at the connection


class Stoppable(Protocol):
    """A stream as `Streams` knows it."""

    def stop(self) -> None:
        """The daemon stops: tell the reader, and end."""
        ...


class Streams:
    """The streams of one listener that are open."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open: set[Stoppable] = set()
        self._stopping = False

    def add(self, stream: Stoppable) -> None:
        """Raises LimitReached when there are too many, Stopping when the daemon stops; the stream is then not open."""
        if self._stopping:
            raise stopping()
        if len(self._open) >= self._limit:
            raise LimitReached(f"{self._limit} streams are open", retry_after_ms=1000)
        self._open.add(stream)

    def discard(self, stream: Stoppable) -> None:
        self._open.discard(stream)

    def stop(self) -> None:
        """Ends all, each with an error for its reader."""
        self._stopping = True
        for stream in list(self._open):
            stream.stop()


def stopping() -> Stopping:
    """What a reader is told when this instance stops."""
    return Stopping("this instance stops; resume from the last position received", retry_after_ms=100)


class EventQueue:
    """What a watcher fills and one stream empties; the instance's `put` is the watcher."""

    def __init__(self, limit: int) -> None:
        self._events: deque[Event] = deque()
        self._limit = limit
        self._wake = asyncio.Event()
        self._closed = False

    def put(self, event: Event) -> None:
        """The watcher.  After ``final``, ``error`` or an overflow nothing more is taken."""
        if self._closed:
            return
        if len(self._events) >= self._limit:
            self._end(
                event.id, Unavailable("more events than this reader takes; go on after the last", retry_after_ms=100)
            )
            return
        self._events.append(event)
        self._closed = event.kind in ("final", "error")
        self._wake.set()

    def stop(self, id: str, error: CoordinatorError) -> None:
        """Ends the stream with ``error`` after what is queued; used when the daemon stops."""
        if not self._closed:
            self._end(id, error)

    async def take(self, timeout_s: float) -> list[Event]:
        """The next events, at most BATCH_MAX; empty if none came in time.  Cancelling loses nothing."""
        if not self._events:
            try:
                async with asyncio.timeout(timeout_s):
                    await self._wake.wait()
            except TimeoutError:
                return []
        batch = [self._events.popleft() for _ in range(min(BATCH_MAX, len(self._events)))]
        if not self._events:
            self._wake.clear()
        return batch

    def _end(self, id: str, error: CoordinatorError) -> None:
        self._events.append(Event("error", id, error=error))
        self._closed = True
        self._wake.set()


def ends(event: Event) -> bool:
    """Whether no event follows this one."""
    return event.kind in ("final", "error")


class OutcomeReader:
    """Pulls batches of outcomes from the Front, and lets the daemon's stop come between."""

    def __init__(self, batches: AsyncIterator[list[OutcomeItem]]) -> None:
        self._batches = batches
        self._stop = asyncio.Event()
        self._next: asyncio.Task[list[OutcomeItem] | None] | None = None

    async def begin(self) -> None:
        """Raises what the Front raises at once (a wrong position), while nothing is sent yet.

        Waits for the first batch no longer than FIRST_BATCH_WAIT_S: following an idle service must not hold the
        answer's beginning back.
        """
        task = self._ask()
        await asyncio.wait({task}, timeout=FIRST_BATCH_WAIT_S)
        if task.done():
            task.result()

    async def batch(self) -> list[OutcomeItem] | None:
        """The next batch, None after the last; raises Stopping when the daemon stops first."""
        task = self._next or self._ask()
        stop = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.cancel()
        if not task.done():
            raise stopping()
        self._next = None
        return task.result()

    def stop(self) -> None:
        self._stop.set()

    async def close(self) -> None:
        """Releases the Front's iterator."""
        if self._next is not None:
            self._next.cancel()
            await asyncio.wait({self._next})
            if not self._next.cancelled():
                self._next.exception()  # seen: whoever should be told is gone
        close = getattr(self._batches, "aclose", None)
        if close is not None:
            await close()

    def _ask(self) -> asyncio.Task[list[OutcomeItem] | None]:
        self._next = asyncio.ensure_future(_take(self._batches))
        return self._next


async def _take(batches: AsyncIterator[list[OutcomeItem]]) -> list[OutcomeItem] | None:
    return await anext(batches, None)
