"""The HTTP listener: sockets, the sweep over connections, and an orderly end.

uvicorn lends its protocol, not its `Server`: that one ends the process when the port is taken, takes the signals for
itself, and ends by polling.  The daemon owns its loop and its signals, so the few lines that remain are here.
"""

from __future__ import annotations

import asyncio
import ssl as tls
from email.utils import formatdate
from typing import cast

from prometheus_client import CollectorRegistry
from uvicorn.config import Config

from coordinator.errors import StartupError
from coordinator.transport.base import Front, Traffic
from coordinator.transport.http import openapi
from coordinator.transport.http.application import Application
from coordinator.transport.http.connection import Connection, Listener
from coordinator.transport.http.routes import ROUTES
from coordinator.transport.http.settings import HttpSettings
from coordinator.transport.http.shared import Resources
from coordinator.transport.streams import FAREWELL_MS

SWEEP_MS_MAX = 1000


class HttpServer:
    """Serves the API of ``front`` on ``host:port`` (port 0: any free one, see `address`).

    ``registry`` is what ``/metrics`` shows, ``ssl`` a server-side context for https, ``name`` the instance's name on
    the page.
    """

    def __init__(
        self,
        front: Front,
        *,
        host: str,
        port: int,
        settings: HttpSettings | None = None,
        registry: CollectorRegistry | None = None,
        ssl: tls.SSLContext | None = None,
        name: str = "coordinator",
        traffic: Traffic | None = None,
    ) -> None:
        self._host, self._port, self._ssl = host, port, ssl
        self._settings = settings or HttpSettings()
        self._resources = Resources(front, self._settings, registry or CollectorRegistry(), name)
        self._application = Application(ROUTES, self._resources, self._settings)
        self._state = Listener(traffic or Traffic())
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listens.  Raises StartupError where the address cannot be had."""
        loop = asyncio.get_running_loop()
        self._resources.openapi = openapi.encoded()
        config = Config(
            self._application,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=cast("int", self._settings.idle_timeout_ms / 1000),
        )
        config.load()
        self._refresh_date()

        def connection() -> Connection:
            return Connection(config, self._state, self._settings, loop)

        try:
            self._server = await loop.create_server(connection, self._host, self._port, ssl=self._ssl, backlog=512)
        except OSError as error:
            raise StartupError(
                f"cannot listen for HTTP on {self._host}:{self._port}: {error.strerror or error}"
            ) from None
        self._sweeper = loop.create_task(self._sweep(), name="http-sweep")

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that are listened on."""
        assert self._server is not None, "not started"
        host, port = self._server.sockets[0].getsockname()[:2]
        return host, port

    async def drain(self) -> None:
        """The daemon is about to stop: every answer from now on closes its connection, so that clients move elsewhere.

        New connections are still taken: whoever routes here has not heard yet, and reads are served; the Front refuses
        what would be new work, and tells ``/readyz``.
        """
        self._state.draining = True

    async def close(self, grace_ms: int = 0) -> None:
        """Stops: no new connections, streams end with an error event, what is being answered has ``grace_ms`` to
        finish.

        After that the waiting ones are told ``stopping`` (503), and what is left is cut off.  Cancelling cuts off at
        once.
        """
        self._application.stopping = True
        if self._server is not None:
            self._server.close()
        self._resources.streams.stop()
        for connection in list(self._state.connections):
            connection.shutdown()
        try:
            if self._state.tasks:
                await asyncio.wait(list(self._state.tasks), timeout=max(grace_ms, FAREWELL_MS) / 1000)
            late = list(self._state.tasks)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=1)
        finally:
            if self._sweeper is not None:
                self._sweeper.cancel()
            for connection in list(self._state.connections):
                if connection.transport.get_write_buffer_size():
                    connection.transport.abort()
                else:
                    connection.transport.close()

    async def _sweep(self) -> None:
        """Looks at every connection once a second (oftener where a limit is shorter); keeps the Date header."""
        loop = asyncio.get_running_loop()
        settings = self._settings
        shortest = min(
            settings.head_timeout_ms, settings.body_timeout_ms, settings.idle_timeout_ms, settings.write_timeout_ms
        )
        interval_s = min(SWEEP_MS_MAX, max(10, shortest // 4)) / 1000
        while True:
            await asyncio.sleep(interval_s)
            self._refresh_date()
            now = loop.time()
            for connection in list(cast("set[Connection]", self._state.connections)):
                if connection.overstays(now):
                    connection.expire()

    def _refresh_date(self) -> None:
        self._state.default_headers = [(b"date", formatdate(usegmt=True).encode())]
