"""grpc.health.v1: SERVING while the Front is ready, for the whole server (an empty name) and for Coordinator."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

from grpc_health.v1 import health_pb2  # type: ignore[import-untyped]

from coordinator.errors import NotFound
from coordinator.transport.grpc.calls import Context, server_stream, unary
from coordinator.transport.streams import Streams

NAME: Final = "grpc.health.v1.Health"
POLL_S: Final = 0.5
_Status = health_pb2.HealthCheckResponse


class Health:
    """``ready`` is asked at each check, and twice a second for those who watch."""

    def __init__(self, services: tuple[str, ...], ready: Callable[[], bool], streams: Streams) -> None:
        self._services = frozenset(("", *services))
        self._ready = ready
        self._streams = streams

    def handlers(self) -> dict[str, Any]:
        return {
            "Check": unary("Check", health_pb2.HealthCheckRequest, self.check),
            "Watch": server_stream("Watch", health_pb2.HealthCheckRequest, self.watch),
        }

    async def check(self, request: Any, context: Context) -> Any:
        if request.service not in self._services:
            raise NotFound(f"no service {request.service!r}; known are {', '.join(sorted(self._services))}")
        return _Status(status=self._status(request.service))

    async def watch(self, request: Any, context: Context) -> AsyncIterator[Any]:
        stopped = HealthWatch()
        self._streams.add(stopped)
        last = None
        try:
            while not stopped.is_set():
                status = self._status(request.service)
                if status != last:
                    last = status
                    yield _Status(status=status)
                try:
                    async with asyncio.timeout(POLL_S):
                        await stopped.wait()
                except TimeoutError:
                    continue
            yield _Status(status=_Status.NOT_SERVING)
        finally:
            self._streams.discard(stopped)

    def _status(self, service: str) -> Any:
        if service not in self._services:
            return _Status.SERVICE_UNKNOWN
        return _Status.SERVING if self._ready() else _Status.NOT_SERVING


class HealthWatch(asyncio.Event):
    """An open watch, as `Streams` knows it."""

    def stop(self) -> None:
        self.set()
