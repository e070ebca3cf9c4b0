"""The two answers that go on: a command's events (Server-Sent Events) and a service's outcomes (NDJSON).

Both are bounded in number (`Streams.limit`) and in memory (a bounded queue; batches taken only when the last was
written), end when their reader goes, and end with a word of farewell when the daemon stops.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec

from coordinator.errors import CoordinatorError, Internal, LimitReached, Stopping
from coordinator.transport.base import Event, Front, OutcomeItem
from coordinator.transport.events import EventQueue, ends
from coordinator.transport.http.exchange import Stream
from coordinator.transport.http.problem import Fault, retry_delay_ms
from coordinator.transport.http.routing import EVENT_STREAM, NDJSON
from coordinator.transport.http.settings import HttpSettings

FIRST_BATCH_WAIT_S: Final = 0.25
_encode = msgspec.json.Encoder().encode


class StreamError(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The members of a problem that make sense within a stream."""

    code: str
    detail: str
    retryable: bool
    retry_after_ms: int | None = None
    faults: list[Fault] | None = None


class EventData(msgspec.Struct, frozen=True, kw_only=True):
    """The ``data:`` of an event: as `transport.base.Event`, with ``error`` spelled out."""

    kind: str
    id: str
    position: str
    state: str
    record: dict[str, Any] | None = None
    view: Any = None
    error: StreamError | None = None


class Streams:
    """The streams that are open."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open: set[Stream] = set()
        self._stopping = False

    def add(self, stream: Stream) -> None:
        """Raises LimitReached when there are too many, Stopping when the daemon stops; the stream is then not open."""
        if self._stopping:
            raise stopping()
        if len(self._open) >= self._limit:
            raise LimitReached(f"{self._limit} streams are open", retry_after_ms=1000)
        self._open.add(stream)

    def discard(self, stream: Stream) -> None:
        self._open.discard(stream)

    def stop(self) -> None:
        """Ends all, each with an error for its reader."""
        self._stopping = True
        for stream in list(self._open):
            stream.stop()


def stopping() -> Stopping:
    """What a reader is told when this instance stops."""
    return Stopping("this instance stops; resume from the last position received", retry_after_ms=1000)


def told(error: CoordinatorError) -> StreamError:
    """An error as a stream's reader sees it."""
    return StreamError(
        code=error.code,
        detail=error.detail,
        retryable=error.retryable,
        retry_after_ms=retry_delay_ms(error, error.http),
        faults=error.extra.get("faults"),
    )


class EventStream:
    """A command's events; raises what `Front.watch` raises, before anything is sent."""

    media = EVENT_STREAM

    def __init__(self, front: Front, streams: Streams, settings: HttpSettings, id: str, after: str | None) -> None:
        self._id = id
        self._streams = streams
        self._heartbeat_s = settings.heartbeat_ms / 1000
        self._queue = EventQueue(settings.stream_events_max)
        streams.add(self)
        try:
            self._unwatch = front.watch(id, self._queue.put, after)
        except BaseException:
            streams.discard(self)
            raise

    async def pieces(self) -> AsyncIterator[bytes]:
        yield b"retry: 1000\n\n"
        while True:
            events = await self._queue.take(self._heartbeat_s)
            yield b"".join(map(sse, events)) if events else b": heartbeat\n\n"
            if events and ends(events[-1]):
                return

    def stop(self) -> None:
        self._queue.stop(self._id, stopping())

    async def close(self) -> None:
        self._streams.discard(self)
        self._unwatch()


def sse(event: Event) -> bytes:
    """An event in the event stream format; JSON has no raw line breaks, so one ``data:`` line always does."""
    data = EventData(
        kind=event.kind,
        id=event.id,
        position=event.position,
        state=event.state,
        record=event.record,
        view=event.view,
        error=told(event.error) if event.error else None,
    )
    place = b"id: %b\n" % event.position.encode() if event.position else b""
    return b"%bevent: %b\ndata: %b\n\n" % (place, event.kind.encode(), _encode(data))


class OutcomeStream:
    """A service's outcomes, a line each; a last line ``{"error": …}`` if they cannot be read to the end."""

    media = NDJSON

    def __init__(self, streams: Streams, batches: AsyncIterator[list[OutcomeItem]]) -> None:
        self._streams = streams
        self._batches = batches
        self._stop: asyncio.Event = asyncio.Event()
        self._next: asyncio.Task[list[OutcomeItem] | None] | None = None
        streams.add(self)

    async def begin(self) -> None:
        """Raises what the Front raises at once (an unknown service, a wrong position), while a problem can still be
        sent.

        Waits for the first batch no longer than FIRST_BATCH_WAIT_S: following an idle service must not hold the headers
        back.
        """
        task = self._ask()
        await asyncio.wait({task}, timeout=FIRST_BATCH_WAIT_S)
        if task.done():
            task.result()

    async def pieces(self) -> AsyncIterator[bytes]:
        try:
            while (batch := await self._batch()) is not None:
                yield b"".join(_encode(item) + b"\n" for item in batch)
        except CoordinatorError as error:
            yield _encode({"error": told(error)}) + b"\n"
        except Exception:
            yield _encode({"error": told(Internal())}) + b"\n"
            raise

    async def _batch(self) -> list[OutcomeItem] | None:
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

    def _ask(self) -> asyncio.Task[list[OutcomeItem] | None]:
        self._next = asyncio.ensure_future(_take(self._batches))
        return self._next

    def stop(self) -> None:
        self._stop.set()

    async def close(self) -> None:
        self._streams.discard(self)
        if self._next is not None:
            self._next.cancel()
            await asyncio.wait({self._next})
            if not self._next.cancelled():
                self._next.exception()  # seen: whoever should be told is gone
        close = getattr(self._batches, "aclose", None)
        if close is not None:
            await close()


async def _take(batches: AsyncIterator[list[OutcomeItem]]) -> list[OutcomeItem] | None:
    return await anext(batches, None)
