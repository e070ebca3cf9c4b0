"""A session: many submissions in flight on one bidirectional stream.

Two sides share one bounded queue.  The reading side submits what comes in and registers a watcher a submission; the
writing side sends what the watchers queue.  The bounds hold each other: when half the queue is taken the reading side
waits, so that a client that reads slowly is slowed in submitting; only events of what is in flight already may fill the
other half, and if they do the session ends (the commands go on; the same ids attach to them again).
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import grpc.aio  # type: ignore[import-untyped]

from coordinator.errors import CoordinatorError, InvalidPayload, LimitReached, Unavailable
from coordinator.transport.base import Event, Front, Traffic, Unwatch
from coordinator.transport.grpc import messages
from coordinator.transport.grpc.calls import Context, parse
from coordinator.transport.grpc.settings import GrpcSettings
from coordinator.transport.pb import coordinator_pb2 as pb
from coordinator.transport.streams import ends, stopping


class Session:
    """One stream of `Coordinator.Session`."""

    def __init__(self, front: Front, settings: GrpcSettings, traffic: Traffic, context: Context) -> None:
        self._front = front
        self._traffic = traffic
        self._settings = settings
        self._context = context
        self._open: dict[int, Unwatch] = {}
        self._queue: deque[tuple[int, Event]] = deque()
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._read_all = False
        self._error: CoordinatorError | None = None

    def stop(self) -> None:
        """The daemon stops: what is queued goes out, then the stream ends as stopping."""
        self._end(stopping())

    async def run(self) -> None:
        """Serves the stream to its end; raises what ended it, if not the client.  A cancel lets the commands run on."""
        reading = asyncio.ensure_future(self._read())
        try:
            await self._write()
        finally:
            reading.cancel()
            await asyncio.wait({reading})
            for unwatch in self._open.values():
                unwatch()
            self._open.clear()
        if self._error is not None:
            raise self._error

    # ------------------------------------------------------------ in

    async def _read(self) -> None:
        try:
            while (raw := await self._context.read()) is not grpc.aio.EOF:
                self._take(parse(pb.SessionRequest, raw))
                await self._room.wait()
        except CoordinatorError as error:
            self._end(error)
        self._read_all = True
        self._wake.set()

    def _take(self, request: pb.SessionRequest) -> None:
        self._traffic.requested()
        seq = request.seq
        if seq == 0 or seq in self._open:
            raise InvalidPayload.at("$.seq", "above 0, and not that of an unfinished submission of this session")
        try:
            if len(self._open) >= self._settings.session_in_flight_max:
                raise LimitReached(f"{len(self._open)} submissions of this session are unfinished", retry_after_ms=100)
            submission = messages.submission(request.submission)
            self._open[seq] = _nothing
            _, self._open[seq] = self._front.submit(submission, lambda event: self._put(seq, event))
        except CoordinatorError as error:
            self._put(seq, Event("error", request.submission.id, error=error))

    # ------------------------------------------------------------ out

    def _put(self, seq: int, event: Event) -> None:
        if ends(event):
            self._open.pop(seq, None)
        if len(self._queue) >= self._settings.session_events_max:
            self._end(Unavailable("this session reads too slowly; submit the same ids again", retry_after_ms=1000))
            return
        self._queue.append((seq, event))
        if len(self._queue) >= self._settings.session_events_max // 2:
            self._room.clear()
        self._wake.set()

    async def _write(self) -> None:
        while True:
            while self._queue:
                seq, event = self._queue.popleft()
                if not self._room.is_set() and len(self._queue) < self._settings.session_events_max // 2:
                    self._room.set()
                await self._send(pb.SessionEvent(seq=seq, event=messages.event(event)))
            if self._error is not None or (self._read_all and not self._open):
                return
            self._wake.clear()
            await self._wake.wait()

    async def _send(self, message: Any) -> None:
        await self._context.write(message.SerializeToString())

    def _end(self, error: CoordinatorError) -> None:
        self._error = self._error or error
        self._wake.set()


def _nothing() -> None:
    """Stands for the watcher of a submission that is being made."""
