"""All services behind one door: routes each Call to the caller of its service."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from coordinator.gateway.base import Done
from coordinator.gateway.classify import refused
from coordinator.gateway.http import HttpCaller
from coordinator.gateway.plugged import LocalCaller, plugged
from coordinator.gateway.tasks import TaskCaller
from coordinator.model.call import Call, LocalCall
from coordinator.model.settings import ServiceSettings

Reacher = HttpCaller | TaskCaller


class Gateway:
    """Sends Calls to services (`gateway.base.Caller` for all of them).

    ``services`` by name; ``clients`` are those that the application plugged in (`App.client`), which win over a
    service's URL scheme and need no settings.  Raises ConfigError for what cannot be called.
    """

    def __init__(
        self, services: Mapping[str, ServiceSettings], clients: Mapping[str, Any], loop: asyncio.AbstractEventLoop
    ) -> None:
        self._loop = loop
        self._settings = dict(services)
        self._services: dict[str, Reacher] = {}
        self._local: dict[str, LocalCaller] = {}
        for name, settings in services.items():
            if name not in clients and settings.url:
                self._services[name] = _caller(settings, loop)
        for name, client in clients.items():
            self._services[name] = plugged(services.get(name) or ServiceSettings(name=name), client, loop)

    def send(self, call: Call, done: Done) -> None:
        """Starts a call; ``done(call, answer)`` follows exactly once, later, never from inside."""
        request = call.request
        if isinstance(request, LocalCall):
            self._local_caller(request.service).send(call, done)
            return
        caller = self._services.get(request.service)
        if caller is not None:
            caller.send(call, done)
        else:
            known = ", ".join(sorted(self._services)) or "none"
            text = f"there is no service {request.service!r} with a url or a plugged-in client; there are: {known}"
            self._loop.call_soon(done, call, refused("unknown_service", text))

    def in_flight(self, service: str) -> int:
        """How many calls of the service are under way now (waiting for their turn does not count)."""
        callers = (self._services.get(service), self._local.get(service))
        return sum(caller.in_flight for caller in callers if caller is not None)

    def queued(self, service: str) -> int:
        """How many calls wait for one of the service's ``max_in_flight`` turns."""
        callers = (self._services.get(service), self._local.get(service))
        return sum(caller.queued for caller in callers if caller is not None)

    async def close(self) -> None:
        """Ends all calls under way (their ``done`` is not called) and closes connections; clients stay their
        owners'.
        """
        callers: list[Reacher] = [*self._services.values(), *self._local.values()]
        await asyncio.gather(*(caller.close() for caller in callers), return_exceptions=True)

    def _local_caller(self, service: str) -> LocalCaller:
        known = self._local.get(service)
        if known is None:
            known = self._local[service] = LocalCaller(service, self._loop, self._settings.get(service))
        return known


def _caller(settings: ServiceSettings, loop: asyncio.AbstractEventLoop) -> Reacher:
    if settings.url.startswith(("grpc://", "grpcs://")):
        from coordinator.gateway.grpc import GrpcCaller  # imported where it is used: it takes as long as all the rest

        return GrpcCaller(settings, loop)
    return HttpCaller(settings, loop)
