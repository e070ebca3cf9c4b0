"""A bounded queue between a Front's watcher and one client's stream.

The Front calls a watcher for every event and never waits, so whatever a slow reader has not taken piles up here.  The
pile has a limit: beyond it the queue forgets all but the fact, and the stream ends with an ``error`` event that tells
the client to come back with the last position it saw.  Memory a stream is thus bounded by ``limit`` events plus the
transport's buffer.
"""

from __future__ import annotations

import asyncio
from collections import deque

from coordinator.errors import CoordinatorError, Unavailable
from coordinator.transport.base import Event

BATCH_MAX = 64  # events a write; more would only lengthen the time until the next look at the connection


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
            self._events.clear()
            self._end(
                event.id,
                Unavailable("this reader is too slow; resume after the last event received", retry_after_ms=1000),
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
