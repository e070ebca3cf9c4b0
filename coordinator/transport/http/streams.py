"""The two answers that go on: a command's events (Server-Sent Events) and a service's outcomes (NDJSON).

`transport.streams` bounds them and ends them; here is only how they look in HTTP.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec

from coordinator.errors import CoordinatorError, Internal
from coordinator.transport.base import Event, Front, OutcomeItem
from coordinator.transport.http.problem import Fault, retry_delay_ms
from coordinator.transport.http.routing import EVENT_STREAM, NDJSON
from coordinator.transport.http.settings import HttpSettings
from coordinator.transport.streams import EventQueue, OutcomeReader, Streams, ends, stopping

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
        self._reader = OutcomeReader(batches)
        streams.add(self)

    async def begin(self) -> None:
        """Raises what can be known to be wrong while a problem can still be sent."""
        await self._reader.begin()

    async def pieces(self) -> AsyncIterator[bytes]:
        try:
            while (batch := await self._reader.batch()) is not None:
                yield b"".join(_encode(item) + b"\n" for item in batch)
        except CoordinatorError as error:
            yield _encode({"error": told(error)}) + b"\n"
        except Exception:
            yield _encode({"error": told(Internal())}) + b"\n"
            raise

    def stop(self) -> None:
        self._reader.stop()

    async def close(self) -> None:
        self._streams.discard(self)
        await self._reader.close()
