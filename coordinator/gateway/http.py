"""The HTTP/1.1 client: a pool of keep-alive connections to one service, from callbacks to callbacks.

Calling services is what this program does most, so this is its hottest code.  A call costs no task and no future:
`send` writes to an idle connection, and ``done`` is called from the ``data_received`` that completed the answer
(httptools parses).  A task is made only to open a connection.  `bench/http_client.py` measures it.

**An exchange** is one call under way on one connection.  Whatever happens to it ends in exactly one of three places:
`_Connection._answered` (a whole answer), `_Connection._failed` (half an answer, a lost connection, the deadline …) or
`HttpCaller._unreached` (no connection).  Each first takes the exchange off its connection; what happens to that
connection later concerns nobody.  Everything but a whole answer is DELAYED: only the service knows what it did.

**Deadlines.**  A call's time runs from the moment it has its turn, not while it waits for one of the
``max_in_flight`` turns: a backlog at a healthy service must not turn into unknown answers, which would open its
breaker.  The wait is bounded all the same: a call that has waited for its whole timeout, in which the service has
answered nobody, ends with the next call whose time runs out.  A timer for each call would cost more than the call's
parsing, so one timer is set for the nearest deadline of all and looks around when it goes off; under steady traffic
that is once per timeout.

**Dead connections.**  Servers close idle connections whenever they like.  When a *reused* connection turns out dead
before a single byte of the answer, the call is sent once more, on a fresh connection, within the same deadline:
without this, each such closing would delay a command and count against the breaker.  Sending twice is safe because
services are idempotent by key.  A connection unused for longer than `IDLE_S_MAX` is not trusted (networks forget
them silently).

**What is not trusted.**  An answer may be longer than it said, come twice, come early, never end, or be no HTTP at
all.  Sizes are bounded before anything is kept; after anything odd the connection is dropped, and what was whole by
then counts.  There are no redirects, no cookies, no compression and no upgrades.
"""

from __future__ import annotations

import asyncio
import errno
import re
import socket
import ssl
from collections import deque
from typing import Final, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from coordinator.errors import ConfigError
from coordinator.gateway.base import Done, wall_ms
from coordinator.gateway.classify import delayed, http_answer, refused
from coordinator.gateway.request import BadRequest, HttpTemplate, address
from coordinator.model.call import Answer, Call, Request
from coordinator.model.settings import ServiceSettings

HEAD_BYTES_MAX: Final = 64 * 1024  # of an answer's head, with any 1xx heads before it
IDLE_S_MAX: Final = 30.0
_PIECE: Final = 64 * 1024  # a longer request is written in pieces, as the connection takes them
_CHUNKING_MAX: Final = 8  # how many bytes may come on the wire for each byte of a body: a one-byte chunk takes six
_BODILESS: Final = frozenset({204, 304})
_NEVER: Final = float("inf")
_TIMER_S: Final = 0.001  # the resolution of the event loops' clocks

_KEPT: Final = {
    spelling: name
    for name in ("content-type", "content-length", "transfer-encoding", "retry-after")
    for spelling in (name.encode(), name.title().encode())
}
"""The headers that anything here looks at; other spellings than these are found by a second look-up."""


class _Exchange:
    """One call that waits for its turn or is under way."""

    __slots__ = ("call", "deadline", "done", "since", "timeout_s", "wire")

    def __init__(self, call: Call, done: Done, wire: bytes, now: float, timeout_s: float) -> None:
        self.call = call
        self.done = done
        self.wire = wire
        self.since = now
        self.timeout_s = timeout_s
        self.deadline = now + timeout_s  # moved when it waits for its turn first


class _Stop(Exception):
    """Raised in a parser's callback to end parsing; never leaves `_Connection.data_received`."""


class _Connection(asyncio.Protocol):
    """One connection to the service: connecting, busy with one exchange, or idle."""

    __slots__ = (
        "_body", "_complete", "_head", "_headers", "_keep", "_parser", "_paused", "_pool", "_received", "_received_max",
        "_reused", "_size", "_status", "_trouble", "_unsent", "due", "exchange", "on_header", "opening", "transport",
        "used_at",
    )  # fmt: skip

    def __init__(self, pool: HttpCaller, exchange: _Exchange, due: float) -> None:
        self._pool = pool
        self.exchange: _Exchange | None = exchange
        self.due = due  # when the present phase of the exchange must be over
        self.used_at = 0.0
        self.opening: asyncio.Task[None] | None = None
        self.transport: asyncio.Transport | None = None
        self._head: dict[bytes, bytes] = {}
        self.on_header = self._head.__setitem__  # the parser calls this for each header: no Python in between
        self._parser = HttpResponseParser(self)
        self._headers: dict[str, str] = {}  # what is looked at of the head, once it is whole
        self._trouble: Answer | None = None
        self._keep = False
        self._reused = False
        self._paused = False
        self._unsent: memoryview | None = None
        self._expect()

    def _expect(self) -> None:
        """Ready for a new answer."""
        self._status = 0
        self._complete = False
        self._received = 0
        self._received_max = HEAD_BYTES_MAX
        self._size = 0
        self._body: bytes | list[bytes] = b""

    # ------------------------------------------------------------ out

    def start(self, exchange: _Exchange, now: float) -> None:
        """Sends ``exchange`` on this idle connection."""
        self.exchange = exchange
        self.due = exchange.deadline
        self.used_at = now
        self._reused = True
        self._send(exchange.wire)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but its class
        exchange = self.exchange
        if exchange is None:  # given up meanwhile
            self.transport.abort()
            return
        self.due = exchange.deadline
        self.used_at = self._pool.now()
        self._send(exchange.wire)

    def _send(self, wire: bytes) -> None:
        assert self.transport is not None
        if len(wire) <= _PIECE:
            self.transport.write(wire)
        else:
            self._unsent = memoryview(wire)
            self._pump()

    def _pump(self) -> None:
        """Writes the rest of a long request as far as the connection takes it."""
        assert self.transport is not None
        while self._unsent is not None and not self._paused:
            piece, rest = self._unsent[:_PIECE], self._unsent[_PIECE:]
            self._unsent = rest if len(rest) else None
            self.transport.write(piece)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._unsent is not None:
            self._pump()

    # ------------------------------------------------------------ in

    def data_received(self, data: bytes) -> None:
        if self.exchange is None:  # nobody asked: whatever this is, the next answer must not begin with it
            self.drop()
            return
        self._received += len(data)
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            if not self._complete:
                self._failed(self._trouble or self._garbage(error))
                return
            self._keep = False  # a second answer, or garbage after the first
        if self._complete:
            self._answered()
        elif self._received > self._received_max:
            self._failed(self._oversize("its head" if not self._status else "its chunks with what surrounds them"))

    def on_message_begin(self) -> None:
        if self._complete:
            raise _Stop
        self._head.clear()  # of the answer before, or of a 1xx

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if 100 <= status < 200:  # 100 Continue, 103 Early Hints: the answer is still to come
            return
        if not 200 <= status <= 599:
            self._trouble = self._pool.trouble("bad_answer", f"answered with the status {status}")
            raise _Stop
        self._status = status
        self._keep = False  # until the parser has seen the end
        self._received_max = self._pool.received_max
        self._headers = headers = {}
        for name, value in self._head.items():
            kept = _KEPT.get(name) or _KEPT.get(name.lower())
            if kept is not None:
                headers[kept] = value.decode("latin-1")
        exchange = self.exchange
        if exchange is not None and exchange.wire.startswith(b"HEAD "):
            self._complete = True  # the parser does not know that no body follows: the connection is not kept
        elif int(headers.get("content-length", 0)) > self._pool.body_max and status not in _BODILESS:
            self._trouble = self._oversize(f"{headers['content-length']} bytes")
            raise _Stop

    def on_body(self, piece: bytes) -> None:
        if self._complete:
            raise _Stop
        self._size += len(piece)
        if self._size > self._pool.body_max:
            self._trouble = self._oversize(f"over {self._pool.body_max} bytes")
            raise _Stop
        if not self._body:
            self._body = piece
        elif isinstance(self._body, list):
            self._body.append(piece)
        else:
            self._body = [self._body, piece]

    def on_message_complete(self) -> None:
        if self._status:  # else the end of a 1xx
            self._complete = True
            self._keep = self._parser.should_keep_alive()

    # ------------------------------------------------------------ ends

    def _answered(self) -> None:
        exchange, status = self.exchange, self._status
        assert exchange is not None
        request = exchange.call.request
        assert isinstance(request, Request)
        body = self._body if isinstance(self._body, bytes) else b"".join(self._body)
        now_ms = 0 if status < 300 and not request.answers else wall_ms()
        answer = http_answer(status, self._headers, body, request.answers, now_ms)
        self.exchange = None
        if self._keep and self._unsent is None:
            self._expect()
            self._pool.release(self)
        else:  # told to close, or answered before it had read the request
            self.drop()
        self._pool.finish(exchange, answer, heard=True)

    def _failed(self, answer: Answer) -> None:
        exchange = self.exchange
        assert exchange is not None
        self.exchange = None
        self.drop()
        self._pool.finish(exchange, answer, heard=self._received > 0)

    def drop(self) -> None:
        """Ends the connection at once; what is under way on it is its caller's business."""
        self._pool.forget(self)
        self._unsent = None
        if self.opening is not None:
            self.opening.cancel()
        if self.transport is not None:
            self.transport.abort()
        else:
            self._pool.lost(self)

    def eof_received(self) -> None:
        if self.exchange is None:
            self._pool.forget(self)
        elif self._ends_with_connection():
            self._answered()

    def connection_lost(self, error: Exception | None) -> None:
        self._pool.lost(self)
        exchange = self.exchange
        if exchange is None:
            return
        if error is None and self._ends_with_connection():
            self._answered()
        elif self._reused and not self._received:
            self.exchange = None
            self._pool.again(exchange)
        elif isinstance(error, ssl.SSLError):
            self._failed(self._pool.trouble("tls", f"broke off: {error}"))
        else:
            when = f"after {self._received} bytes of an answer" if self._received else "without an answer"
            why = f" ({error})" if error is not None else ""
            self._failed(self._pool.trouble("connection_lost", f"closed the connection {when}{why}"))

    def expire(self) -> None:
        """Ends the exchange, whose time is up."""
        exchange, pool = self.exchange, self._pool
        assert exchange is not None
        if self.transport is None and self.due < exchange.deadline:
            answer = pool.trouble("connect_timeout", f"gave no connection within {pool.connect_ms} ms")
        else:
            what = f"only {self._received} bytes of an answer" if self._received else "no answer"
            answer = pool.trouble("timeout", f"gave {what} within {round(exchange.timeout_s * 1000)} ms")
        self._failed(answer)

    def _ends_with_connection(self) -> bool:
        """Whether the answer under way ends with the connection: neither length nor chunks were announced."""
        chunked = self._headers.get("transfer-encoding", "").lower().endswith("chunked")
        return self._status > 0 and not chunked and "content-length" not in self._headers

    def _garbage(self, error: Exception) -> Answer:
        if isinstance(error, HttpParserUpgrade) or "Upgrade" in str(error):
            return self._pool.trouble("bad_answer", "wants to change the protocol (101)")
        return self._pool.trouble("bad_answer", f"sent what is no HTTP/1.1 answer: {error}")

    def _oversize(self, what: str) -> Answer:
        return self._pool.trouble(
            "answer_too_large", f"sent too large an answer: {what}, allowed {self._pool.body_max}"
        )


class HttpCaller:
    """Calls one HTTP service (`gateway.base.Caller`).

    ``settings.url`` is ``http://`` or ``https://`` with an optional base path, which is put before each request's
    path.  Raises ConfigError for a URL, a header or a CA file that cannot be used.  All methods are for the thread
    of ``loop``.
    """

    def __init__(self, settings: ServiceSettings, loop: asyncio.AbstractEventLoop) -> None:
        where = address(settings)
        self._loop = loop
        self._host, self._port = where.host, where.port
        self._name = settings.name
        self._place = f"{settings.name} ({where.host} port {where.port})"
        self._tls = _tls(settings) if where.scheme == "https" else None
        self._wire = HttpTemplate(settings, where.authority, where.base).wire
        self._limit = max(1, settings.max_in_flight)
        self._connect_s = settings.connect_timeout_ms / 1000
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = _NEVER
        self._idle: list[_Connection] = []  # used as a stack, so that surplus connections age and are closed
        self._connections: set[_Connection] = set()
        self._waiting: deque[_Exchange] = deque()
        self._busy = 0
        self._closed: asyncio.Future[None] | None = None
        self.now = loop.time
        self._heard_at = 0.0
        self._timeout_s = settings.timeout_ms / 1000
        self.connect_ms = settings.connect_timeout_ms
        self.body_max = settings.response_bytes_max
        self.received_max = HEAD_BYTES_MAX + _CHUNKING_MAX * settings.response_bytes_max

    @property
    def in_flight(self) -> int:
        """Calls that have their turn now, those that still connect included."""
        return self._busy

    @property
    def queued(self) -> int:
        """Calls that wait for their turn."""
        return len(self._waiting)

    def send(self, call: Call, done: Done) -> None:
        """See `gateway.base.Caller.send`; ``call.request`` is a Request."""
        request = call.request
        assert isinstance(request, Request)
        try:
            wire = self._wire(request, call.key, call.epoch, call.attempt)
        except Exception as error:
            # A value of a wrong type (a path that is a number) is as unbuildable as one that breaks a rule.
            text = str(error) if isinstance(error, BadRequest) else f"{type(error).__name__}: {error}"
            self._loop.call_soon(done, call, refused("bad_request_built", text))
            return
        now = self.now()
        timeout_ms = call.timeout_ms
        exchange = _Exchange(call, done, wire, now, self._timeout_s if timeout_ms is None else timeout_ms / 1000)
        if self._closed is not None:
            self._loop.call_soon(done, call, self.trouble("closed", "is not called any more: the gateway is closed"))
        elif self._busy >= self._limit:
            self._waiting.append(exchange)
        else:
            self._begin(exchange, now)

    async def close(self) -> None:
        """Ends all calls under way without calling their ``done``, and waits until the connections are closed."""
        if self._closed is None:
            self._closed = self._loop.create_future()
        self._waiting.clear()
        if self._alarm is not None:
            self._alarm.cancel()
        opening = [conn.opening for conn in self._connections if conn.opening is not None]
        for conn in list(self._connections):
            conn.exchange = None
            conn.drop()
        await asyncio.gather(*opening, return_exceptions=True)
        if self._connections:
            await asyncio.wait([self._closed], timeout=1)

    # ------------------------------------------------------------ exchanges

    def _begin(self, exchange: _Exchange, now: float) -> None:
        self._busy += 1
        while self._idle:
            conn = self._idle.pop()
            if now - conn.used_at < IDLE_S_MAX:
                conn.start(exchange, now)
                break
            conn.drop()
        else:
            self._open(exchange, now)
        if exchange.deadline < self._alarm_at:
            self._set_alarm(exchange.deadline)

    def finish(self, exchange: _Exchange, answer: Answer, *, heard: bool) -> None:
        """The end of an exchange that has its turn; ``heard``: something came from the service."""
        self._busy -= 1
        if self._waiting:
            now = self.now()
            if heard:
                self._heard_at = now
            following = self._waiting.popleft()
            following.deadline = now + following.timeout_s
            self._begin(following, now)
        self._tell(exchange, answer)

    def again(self, exchange: _Exchange) -> None:
        """Sends an exchange once more, whose reused connection was dead; on a fresh one, so never a third time."""
        self._open(exchange, self.now())

    def _tell(self, exchange: _Exchange, answer: Answer) -> None:
        try:
            exchange.done(exchange.call, answer)
        except Exception as error:  # its owner's mistake must not cost a neighbour the connection
            context = {"message": f"answering a call of {self._name} failed", "exception": error}
            self._loop.call_exception_handler(context)

    def trouble(self, code: str, text: str) -> Answer:
        """A DELAYED answer: the service ``text``."""
        return delayed(code, f"{self._place} {text}")

    # ------------------------------------------------------------ connections

    def _open(self, exchange: _Exchange, now: float) -> None:
        due = min(exchange.deadline, now + self._connect_s)
        conn = _Connection(self, exchange, due)
        self._connections.add(conn)
        conn.opening = self._loop.create_task(self._connect(conn))
        if due < self._alarm_at:
            self._set_alarm(due)

    async def _connect(self, conn: _Connection) -> None:
        name = self._host if self._tls is not None else None
        try:
            await self._loop.create_connection(
                lambda: conn, self._host, self._port, ssl=self._tls, server_hostname=name
            )
        except Exception as error:
            self._unreached(conn, error)
        finally:
            conn.opening = None

    def _unreached(self, conn: _Connection, error: Exception) -> None:
        self.lost(conn)
        exchange = conn.exchange
        if exchange is not None:
            conn.exchange = None
            code = _connect_code(error)
            self.finish(
                exchange, self.trouble(code, f"could not be reached: {error or type(error).__name__}"), heard=False
            )

    def release(self, conn: _Connection) -> None:
        """The connection is free for the next exchange."""
        self._idle.append(conn)

    def forget(self, conn: _Connection) -> None:
        """The connection must not be used again."""
        if conn in self._idle:
            self._idle.remove(conn)

    def lost(self, conn: _Connection) -> None:
        """The connection is gone."""
        self.forget(conn)
        self._connections.discard(conn)
        if self._closed is not None and not self._connections and not self._closed.done():
            self._closed.set_result(None)

    # ------------------------------------------------------------ time

    def _set_alarm(self, when: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = when
        self._alarm = self._loop.call_at(when, self._look_around)

    def _look_around(self) -> None:
        """Ends the exchanges whose time is up, and sets the alarm for the nearest deadline of the others."""
        self._alarm, self._alarm_at = None, _NEVER
        now = self.now() + _TIMER_S
        late = [conn for conn in self._connections if conn.exchange is not None and conn.due <= now]
        hopeless = self._hopeless(now) if late else ()
        for conn in sorted(late, key=_due):
            conn.expire()
        for exchange in hopeless:
            self._tell(exchange, self.trouble("timeout", "has answered no call while this one waited for its turn"))
        nearest = min((conn.due for conn in self._connections if conn.exchange is not None), default=_NEVER)
        if nearest < self._alarm_at:
            self._set_alarm(nearest)

    def _hopeless(self, now: float) -> list[_Exchange]:
        """Takes out the waiting calls in whose whole time, so far spent waiting, the service has answered nobody."""
        found = [waiting for waiting in self._waiting if max(waiting.since, self._heard_at) + waiting.timeout_s <= now]
        if found:
            gone = set(found)
            self._waiting = deque(waiting for waiting in self._waiting if waiting not in gone)
        return found


def _due(conn: _Connection) -> float:
    return conn.due


def _tls(settings: ServiceSettings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.tls_ca)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(f"services.{settings.name}.tls_ca: {settings.tls_ca} cannot be read: {error}") from None
    context.set_alpn_protocols(["http/1.1"])
    if not settings.tls_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _connect_code(error: Exception) -> str:
    """Why there is no connection, most specific first."""
    if isinstance(error, ssl.SSLError):
        return "tls"
    if isinstance(error, socket.gaierror):
        return "unresolved"
    # Several addresses were tried: the loops then raise one OSError that quotes each number.
    numbers = {int(number) for number in re.findall(r"\[Errno (-?\d+)\]", str(error))}
    if isinstance(error, ConnectionRefusedError) or numbers == {errno.ECONNREFUSED}:
        return "connection_refused"
    if isinstance(error, TimeoutError) or numbers == {errno.ETIMEDOUT}:
        return "connect_timeout"
    if isinstance(error, ConnectionError):  # lost again while TLS was being agreed
        return "connection_lost"
    return "unreachable"
