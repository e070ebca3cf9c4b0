"""One HTTP connection: uvicorn's httptools protocol with the limits that it lacks.

uvicorn parses, queues pipelined requests and writes answers well, but it trusts its peers in six ways: it waits for
ever for the end of a request's head or body, takes a head of any size, lets a reader stall an answer for ever, answers
garbage in plain text with a warning in the log, leaves a request running whose client is gone, and takes a client that
has only finished sending (``printf … | nc``) for one that is gone.  Each is mended here.

*Time.*  A connection is in one of four phases, as seen from its reading side::

    IDLE ──first byte──▶ HEAD ──headers end──▶ BODY ──body ends──▶ BUSY ──answered──▶ IDLE

and remembers since when.  One sweep over all connections (`server.HttpServer`) asks each whether it `overstays`; a
timer per phase and request would cost more than the parsing.  An answer sent before its body has arrived (413) leaves
the phase at BODY: the rest is read and dropped, within the same time and `discard_bytes_max`, so that the client reads
its answer rather than a reset, and can go on.
"""

from __future__ import annotations

import asyncio
from enum import Enum, auto
from http import HTTPStatus
from typing import Any, Final, cast

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from coordinator.errors import CoordinatorError, Malformed, Unavailable
from coordinator.transport.base import Traffic
from coordinator.transport.http import problem
from coordinator.transport.http.problem import Headers, HttpError
from coordinator.transport.http.settings import HttpSettings

LINGER_MS: Final = 2_000
"""How long a connection that we end still takes what its peer sends: closing with bytes unread would reset it, and the
reset may overtake our last answer.  And how long a client that has closed its sending side is still answered: it may
be listening, or it may be gone, which looks the same until we write."""


class Phase(Enum):
    """What a connection is reading."""

    IDLE = auto()
    HEAD = auto()
    BODY = auto()
    BUSY = auto()
    LEAVING = auto()  # nothing: its last answer is out, what still comes is dropped


class Listener(ServerState):
    """What the connections of one listener share.

    ``draining``: whether every answer ends its connection, so that clients move elsewhere.
    """

    def __init__(self, traffic: Traffic) -> None:
        super().__init__()
        self.traffic = traffic
        self.draining = False


class Connection(HttpToolsProtocol):
    """One client's connection; `scope["connection"]` of each request is this object."""

    def __init__(
        self, config: Config, listener: Listener, settings: HttpSettings, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(config, listener, {}, loop)
        self.listener = listener
        self.settings = settings
        self.streaming = False  # the present answer is a stream: the application says so
        self._answering: RequestResponseCycle | None = None
        self._phase = Phase.HEAD
        self._since = loop.time()
        self._head_bytes = 0
        self._dropped_bytes = 0
        self._stalled_since: float | None = None
        self._task: asyncio.Task[None] | None = None
        self._farewell: HttpError | CoordinatorError | None = None
        self._offers_upgrade = False
        self._sent_all_at: float | None = None  # when the peer closed its sending side

    # ------------------------------------------------------------ asked by the server

    @property
    def busy(self) -> bool:
        """Whether an answer is owed."""
        return self.cycle is not None and not self.cycle.response_complete and self._phase is not Phase.LEAVING

    def since(self) -> float:
        """When the present phase began, on the loop's clock."""
        return self._since

    def overstays(self, now: float) -> bool:
        """Whether the peer has used up its time in the present phase."""
        began, limit_ms = self._time_limit()
        return limit_ms is not None and (now - began) * 1000 > limit_ms

    def _time_limit(self) -> tuple[float, int | None]:
        """When the peer's time began and how long it is (None: as long as we take ourselves)."""
        settings = self.settings
        if self._phase is Phase.LEAVING:
            return self._since, LINGER_MS
        if self._sent_all_at is not None:
            return self._sent_all_at, LINGER_MS
        if self._stalled_since is not None:
            limit_ms = settings.stream_write_timeout_ms if self.streaming else settings.write_timeout_ms
            return self._stalled_since, limit_ms
        if self._phase is Phase.IDLE:
            return self._since, settings.idle_timeout_ms
        if self._phase is Phase.HEAD and not self.busy:  # a later request's head counts from the answer before it
            return self._since, settings.head_timeout_ms
        if self._phase is Phase.BODY and not self.pipeline:  # the body of a queued request: reading is paused, by us
            return self._since, settings.body_timeout_ms
        return self._since, None

    def expire(self) -> None:
        """Ends a connection that overstays: 408 where a request was begun, silently otherwise."""
        if self._stalled_since is not None or self._sent_all_at is not None or self._phase is Phase.LEAVING:
            self.transport.abort()
        elif self._phase is Phase.BODY and self.busy and not self.cycle.response_started:
            self._refuse(
                HttpError(HTTPStatus.REQUEST_TIMEOUT, "request_timeout", "the request's body did not come in time")
            )
        elif self._phase is Phase.HEAD and self._head_bytes:
            self._refuse(
                HttpError(HTTPStatus.REQUEST_TIMEOUT, "request_timeout", "the request's head did not come in time")
            )
        else:
            self.transport.close()

    def make_way(self) -> None:
        """Closes at once; used on the connection that has been idle longest when all places are taken."""
        self.transport.abort()

    # ------------------------------------------------------------ asked by the application

    async def answer(self, status: int, headers: Headers, body: bytes, *, close: bool = False) -> None:
        """Sends the whole answer to the request in progress, as one write; ``close``: and ends the connection.

        ASGI's two messages would be two packets and two wake-ups of the peer, a quarter of the time of a short request.
        ``headers`` are ours and well-formed, so they are not searched for illegal characters again.
        """
        cycle = self._answering
        assert cycle is not None
        assert not cycle.response_started
        if self.flow.write_paused and not cycle.disconnected:
            await self.flow.drain()
        if cycle.disconnected:
            return
        cycle.response_started = True
        lines = [STATUS_LINE[status]]
        for name, value in self.server_state.default_headers:
            lines += (name, b": ", value, b"\r\n")
        for name, value in headers:
            lines += (name, b": ", value, b"\r\n")
        if close or self.listener.draining:
            cycle.keep_alive = False
        if not cycle.keep_alive:
            lines.append(b"connection: close\r\n")
        lines.append(b"\r\n")
        if cycle.scope["method"] != "HEAD":
            lines.append(body)
        self.transport.write(b"".join(lines))
        cycle.response_complete = True
        cycle.message_event.set()
        if not cycle.keep_alive:
            self.leave()
        self.on_response_complete()

    # ------------------------------------------------------------ asyncio.Protocol

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.listener.traffic.connected()
        self._exit = Exit(self, transport)
        if len(self.connections) > self.settings.connections_max and not self._evict():
            self._refuse(Unavailable("all connections are in use", retry_after_ms=1000))

    def _evict(self) -> bool:
        peers = cast("set[Connection]", self.connections)
        idle = (peer for peer in peers if peer is not self and not peer.busy)
        longest = min(idle, key=Connection.since, default=None)
        if longest is not None:
            longest.make_way()
        return longest is not None

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.listener.traffic.disconnected()
        self.pipeline.clear()
        if self._answering is not None:
            self._answering.disconnected = True  # uvicorn marks the newest request, which need not be this one
        if self._task is not None:  # nobody is left to answer; what was submitted goes on without it
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        if self.parser is None or self.transport.is_closing() or self._farewell is not None:
            return
        if self._phase is Phase.IDLE:
            self._phase, self._since = Phase.HEAD, self.loop.time()
        if self._phase is Phase.HEAD:
            self._head_bytes += len(data)
        elif not self.busy:  # the rest of a refused body, or of whatever came before we left
            self._dropped_bytes += len(data)
            if self._dropped_bytes > self.settings.discard_bytes_max:
                self.transport.abort()
                return
            if self._phase is Phase.LEAVING:
                return
        self._feed(data)
        if self._phase is Phase.HEAD and self._head_bytes > self.settings.head_bytes_max:
            self._refuse(self._head_too_large())

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keeps the connection where requests that came whole are still to be answered (TLS knows no half a close)."""
        owed = self.busy and self._phase is Phase.BUSY and not self.streaming
        if owed and self.transport.get_extra_info("sslcontext") is None:
            self._sent_all_at = self.loop.time()
            return True
        return False

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled_since = self.loop.time()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stalled_since = None

    # ------------------------------------------------------------ parsing

    def _feed(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        while data:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = self._decline_upgrade() + data[upgrade.args[0] :]
                continue
            except httptools.HttpParserError as error:
                match error.__context__:  # what a callback of ours raised
                    case HttpError() | CoordinatorError() as ours:
                        self._refuse(ours)
                    case _:
                        self._refuse(Malformed(f"not an HTTP/1.1 request: {error}"))
            return

    def _decline_upgrade(self) -> bytes:
        """The head just parsed, without its offer to speak another protocol, for a fresh parser.

        Java's HTTP client offers h2c with every first request.  The parser takes the offer as accepted and skips the
        body; a server that declines must read the request as if nothing had been offered.
        """
        self._offers_upgrade = False
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        kept = [
            (name, value) for name, value in self.headers if name not in (b"upgrade", b"connection", b"http2-settings")
        ]
        if any(name == b"connection" and b"close" in value.lower() for name, value in self.headers):
            kept.append((b"connection", b"close"))
        lines = [b"%b %b HTTP/1.1" % (self._method, self.url), *(b"%b: %b" % header for header in kept)]
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._phase = Phase.HEAD
        cast("dict[str, Any]", self.scope)["connection"] = self

    def on_headers_complete(self) -> None:
        # A head that came whole in one large read has not been counted by data_received.
        if self._head_bytes > self.settings.head_bytes_max and self._head_size() > self.settings.head_bytes_max:
            raise self._head_too_large()
        if len(self.pipeline) >= self.settings.pipelined_max:
            raise Malformed(f"more than {self.settings.pipelined_max} requests sent ahead of their answers")
        if not self.url.isascii():
            raise Malformed("a request's target is ASCII; other characters are percent-encoded as UTF-8")
        if self.parser.should_upgrade():
            self._method = self.parser.get_method()
            if self._method == b"CONNECT":
                raise Malformed("CONNECT is for proxies")
            self._offers_upgrade = True
            return
        self._phase, self._since = Phase.BODY, self.loop.time()
        self._head_bytes = self._dropped_bytes = 0
        super().on_headers_complete()
        self.cycle.transport = cast("asyncio.Transport", self._exit)

    def on_message_complete(self) -> None:
        if self._offers_upgrade:
            return
        super().on_message_complete()
        if self.busy:
            self._phase = Phase.BUSY
        else:
            self._become_idle()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self.listener.traffic.requested()
        # As uvicorn's, and remembers the task so that it can end with its client.
        self.streaming = False
        self._answering = cycle
        cycle.keep_alive = cycle.keep_alive and not self.listener.draining
        self._task = self.loop.create_task(cycle.run_asgi(app))
        self.tasks.add(self._task)
        self._task.add_done_callback(self.tasks.discard)

    def on_response_complete(self) -> None:
        queued = bool(self.pipeline)
        super().on_response_complete()
        if queued or self._phase is Phase.LEAVING:
            return
        if self._sent_all_at is not None:
            self.transport.close()
            return
        if self._farewell is not None:
            self._say(self._farewell)
            return
        if self._phase is Phase.BUSY:
            self._become_idle()
        else:
            self._since = self.loop.time()

    def _become_idle(self) -> None:
        self._phase, self._since, self._head_bytes = Phase.IDLE, self.loop.time(), 0

    def _head_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _head_too_large(self) -> HttpError:
        return HttpError(
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
            "too_large",
            f"request line and headers are limited to {self.settings.head_bytes_max} bytes",
        )

    def _refuse(self, error: HttpError | CoordinatorError) -> None:
        """Tells the peer what is wrong and leaves, once the requests that came whole before it have their answers."""
        newest, owed = self.cycle, self.busy
        if owed and newest.more_body:  # the fault is within its body: this one is not answered
            newest.disconnected = True
            newest.message_event.set()
            owed = bool(self.pipeline)
            if owed:
                self.pipeline.popleft()
        if owed:
            self._farewell, self._phase = error, Phase.BUSY
            self.flow.pause_reading()
        else:
            self._say(error)

    def _say(self, error: HttpError | CoordinatorError) -> None:
        if not self.transport.is_closing():
            self.transport.write(problem.raw(error))
            self._leave()

    def leave(self) -> None:
        """Closes after the last answer; if its request has not been read to the end, lingers (LINGER_MS)."""
        if self._phase is Phase.BODY:
            self._leave()
        else:
            self.transport.close()

    def _leave(self) -> None:
        self._phase, self._since = Phase.LEAVING, self.loop.time()
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()


class Exit:
    """The transport as an answer in progress sees it: closing it is leaving."""

    def __init__(self, connection: Connection, transport: asyncio.Transport) -> None:
        self.write = transport.write
        self.is_closing = transport.is_closing
        self.close = connection.leave
