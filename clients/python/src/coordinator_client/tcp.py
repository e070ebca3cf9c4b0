"""Talks to one address over TCP: pipelined connections, each shared by any number of calls.

A call is an `Exchange`: one frame out, frames with its sequence id in.  All that is written in one turn of the event
loop leaves as one write.  When a connection is lost, every open Exchange on it raises ConnectionLost; the caller
(`AsyncClient`) decides whether to try again, here or elsewhere.
"""

from __future__ import annotations

import asyncio
import ssl as ssl_module
from collections import deque
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any, cast

from coordinator_client.codec import (
    FRAME_BYTES_MAX,
    MAGIC,
    VERSION,
    Accepted,
    ClientFrame,
    Error,
    Final,
    Forget,
    GoAway,
    Hello,
    Limits,
    Ping,
    Pong,
    Request,
    Response,
    ServerFrame,
    Splitter,
    State,
    Step,
    Submit,
    encode,
)
from coordinator_client.endpoint import NAME, Progress, remaining_ms
from coordinator_client.errors import ConnectionLost, CoordinatorError, TooLarge
from coordinator_client.models import Event, command_of

HELLO_TIMEOUT_S = 5.0
PING_S = 2.0  # between two questions to a server that has something to answer and is silent
BACKLOG_HIGH, BACKLOG_LOW = 16, 4  # frames of a stream that wait for their reader


class Exchange:
    """One call on a connection.  Leaving the ``with`` block before its last frame tells the server to forget it."""

    def __init__(self, connection: Connection, seq: int) -> None:
        self.seq = seq
        self._connection = connection
        self._frames: deque[ServerFrame] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._error: CoordinatorError | None = None

    async def next(self) -> ServerFrame:
        """The next frame; raises the Error that ended the exchange."""
        while not self._frames:
            if self._error is not None:
                raise self._error
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        frame = self._frames.popleft()
        if len(self._frames) == BACKLOG_LOW:
            self._connection.resume_reading()
        return frame

    def deliver(self, frame: ServerFrame) -> int:
        """Takes a frame from the connection; returns how many are waiting."""
        self._frames.append(frame)
        self._wake()
        return len(self._frames)

    def fail(self, error: CoordinatorError) -> None:
        self._error = error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def __enter__(self) -> Exchange:
        return self

    def __exit__(self, kind: type[BaseException] | None, why: BaseException | None, at: TracebackType | None) -> None:
        self._connection.leave(self.seq)


class Connection(asyncio.Protocol):
    """One TCP connection after its Hello.  ``streaming``: it serves one reader, whose pace the socket follows."""

    def __init__(self, streaming: bool = False) -> None:
        self.usable = False  # open and not told to go away
        self.limits = Limits()
        self._streaming = streaming
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._splitter = Splitter()
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._lost: CoordinatorError | None = None
        self._closed = asyncio.Event()
        self._exchanges: dict[int, Exchange] = {}
        self._room = asyncio.Semaphore(1)
        self._seq = 0
        self._output: list[bytes] = []
        self._writable = asyncio.Event()
        self._writable.set()
        self._paused = False
        self._heard = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None

    @classmethod
    async def open(
        cls, host: str, port: int, ssl: ssl_module.SSLContext | None, token: str | None, streaming: bool = False
    ) -> Connection:
        """Connects and exchanges Hellos; raises ConnectionLost, or what the server refused it with."""
        connection: Connection | None = None
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                loop = asyncio.get_running_loop()
                _, connection = await loop.create_connection(lambda: cls(streaming), host, port, ssl=ssl)
                connection._write(
                    Hello(0, MAGIC, VERSION, VERSION, NAME, Limits(token=token, frame_bytes_max=FRAME_BYTES_MAX))
                )
                await connection._opened
        except (OSError, TimeoutError) as why:
            if connection is not None:
                connection._lose(ConnectionLost("no Hello came"))
            raise ConnectionLost.unreached(f"cannot reach tcp://{host}:{port}: {why or 'no Hello in time'}") from None
        except BaseException:
            if connection is not None:
                connection._lose(ConnectionLost("given up"))
            raise
        return connection

    @property
    def leaving(self) -> bool:
        """The server wants no more calls here, and still answers those that it has."""
        return not self.usable and self._lost is None and self._opened.done()

    @property
    def in_flight(self) -> int:
        return len(self._exchanges)

    async def exchange(self, make: Callable[[int], Submit | Request]) -> Exchange:
        """Sends the frame that ``make`` gives for a fresh sequence id, once the server's in-flight limit has room."""
        await self._room.acquire()
        try:
            await self._writable.wait()
            if self._lost is not None:
                raise self._lost
            self._seq += 1
            data = encode(make(self._seq))
            limit = self.limits.frame_bytes_max
            if limit is not None and len(data) - 4 > limit:
                raise TooLarge(f"the request has {len(data) - 4} bytes; the server reads up to {limit}")
        except BaseException:
            self._room.release()
            raise
        exchange = self._exchanges[self._seq] = Exchange(self, self._seq)
        self._write_bytes(data)
        return exchange

    def leave(self, seq: int) -> None:
        """The caller is done with an exchange; the server is told if it is not."""
        if seq in self._exchanges:
            self._end(seq)
            if self._lost is None:
                self._write(Forget(seq))

    async def close(self) -> None:
        self._lose(ConnectionLost("the client was closed"))
        await self._closed.wait()

    # ------------------------------------------------------------------------------------------------ from the socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._heard = self._loop.time()
        try:
            for frame in self._splitter.feed(data):
                self._receive(frame)
        except CoordinatorError as error:
            self._lose(error)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lose(ConnectionLost(f"the connection was lost: {exc or 'closed by the server'}"))
        self._closed.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def resume_reading(self) -> None:
        if self._paused and self._lost is None:
            self._paused = False
            self._transport.resume_reading()

    def _receive(self, frame: ServerFrame) -> None:
        match frame:
            case Accepted(view=None) | Step() | State():
                self._deliver(frame, last=False)
            case Response():
                self._deliver(frame, last=not frame.more)
            case Accepted() | Final():  # an Accepted that brings the view is all that was wanted
                self._deliver(frame, last=True)
            case Error(seq=0):
                self._lose(_fatal(frame.exception(), greeted=self._opened.done()))
            case Error():
                exchange = self._end(frame.seq)
                if exchange is not None:
                    exchange.fail(frame.exception())
            case Ping():
                self._write(Pong(frame.seq))
            case Pong():
                pass
            case GoAway():
                self.usable = False
            case Hello():
                self._greet(frame)

    def _deliver(self, frame: ServerFrame, last: bool) -> None:
        exchange = self._end(frame.seq) if last else self._exchanges.get(frame.seq)
        if exchange is None:  # forgotten, and this was on its way
            return
        if exchange.deliver(frame) >= BACKLOG_HIGH and self._streaming and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def _greet(self, frame: Hello) -> None:
        if frame.magic != MAGIC or not frame.version_min <= VERSION <= frame.version_max:
            raise ConnectionLost("the server speaks another protocol")
        self.limits = frame.options
        self._room = asyncio.Semaphore(max(1, self.limits.in_flight_max or 1))
        self.usable = True
        if not self._opened.done():
            self._opened.set_result(None)
        self._watch_silence()

    def _watch_silence(self) -> None:
        """Asks for a sign of life after a silence, and gives the server up after three of them without any.

        Sooner while somebody waits here: a server that hangs accepts connections, and another one may be well.
        """
        interval_s = (self.limits.ping_interval_ms or 20_000) / 1000
        if self._exchanges:
            interval_s = min(interval_s, PING_S)
        silence_s = self._loop.time() - self._heard
        if self._paused:
            self._heard = self._loop.time()  # it is we who do not listen
        elif silence_s > 3 * interval_s:
            self._lose(ConnectionLost(f"the server was silent for {silence_s:.0f} s"))
            return
        elif silence_s >= interval_s * 0.9:
            self._write(Ping(0))
        self._timer = self._loop.call_later(min(interval_s, PING_S), self._watch_silence)

    def _end(self, seq: int) -> Exchange | None:
        exchange = self._exchanges.pop(seq, None)
        if exchange is not None:
            self._room.release()
        return exchange

    def _lose(self, error: CoordinatorError) -> None:
        """The end: everyone who waits here is told; the first reason counts."""
        if self._lost is None:
            self._lost = error
            self.usable = False
            if self._timer is not None:
                self._timer.cancel()
            for seq in list(self._exchanges):
                exchange = self._end(seq)
                assert exchange is not None
                exchange.fail(error)
            if not self._opened.done():
                self._opened.set_exception(error)
                self._opened.exception()  # read here too, for when nobody waits any more
            self._writable.set()
            self._transport.abort()

    # -------------------------------------------------------------------------------------------------- to the socket

    def _write(self, frame: ClientFrame) -> None:
        self._write_bytes(encode(frame))

    def _write_bytes(self, data: bytes) -> None:
        if not self._output:
            self._loop.call_soon(self._flush)
        self._output.append(data)

    def _flush(self) -> None:
        data, self._output = b"".join(self._output), []
        if self._lost is None:
            self._transport.write(data)


def _fatal(error: CoordinatorError, greeted: bool) -> CoordinatorError:
    """The end of a connection as its open calls see it: none of them is to blame for a fault of the connection."""
    if error.retryable or not greeted:
        return error
    return ConnectionLost(f"the server closed the connection: {error.code}: {error.detail}")


class TcpEndpoint:
    """A coordinator at ``tcp://host:port``: up to ``size`` shared connections, made when they are needed."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        size: int = 1,
        ssl: ssl_module.SSLContext | None = None,
        token: str | None = None,
    ) -> None:
        self.address = f"tcp://{host}:{port}"
        self._host, self._port = host, port
        self._size, self._ssl, self._token = size, ssl, token
        self._connections: list[Connection] = []
        self._connecting = asyncio.Lock()

    @property
    def leaving(self) -> bool:
        return any(connection.leaving for connection in self._connections) and not self._usable()

    async def submit(self, submission: dict[str, Any], progress: Progress) -> Any:
        want = "accepted" if progress.wait_s == 0 else "final"
        connection = await self._connection()
        deadline_ms = remaining_ms(progress.accept_by + progress.wait_s)
        with await connection.exchange(lambda seq: Submit(seq, want, deadline_ms, submission)) as exchange:
            frame = await exchange.next()
            if isinstance(frame, Accepted):
                progress.accept()
                if frame.view is not None:
                    return frame.view
                frame = await exchange.next()
            return _view(frame)

    async def request(self, operation: str, params: dict[str, Any], timeout_s: float) -> Any:
        connection = await self._connection()
        deadline_ms = remaining_ms(asyncio.get_running_loop().time() + timeout_s)
        with await connection.exchange(lambda seq: Request(seq, operation, deadline_ms, params)) as exchange:
            frame = await exchange.next()
            if not isinstance(frame, Response):
                raise ConnectionLost(f"the server answered {operation} with {type(frame).__name__}")
            return frame.value

    async def watch(self, id: str, after: str | None) -> AsyncIterator[Event]:
        connection = await self._connection()
        params = {"id": id, "after": after}
        with await connection.exchange(lambda seq: Request(seq, "watch", None, params)) as exchange:
            while True:
                event = _event(await exchange.next())
                yield event
                if event.kind == "final":
                    return

    async def outcomes(self, service: str, start: str | None, follow: bool) -> AsyncIterator[list[Any]]:
        """On a connection of its own: a reader that is slow must not hold up the answers to others."""
        connection = await Connection.open(self._host, self._port, self._ssl, self._token, streaming=True)
        params = {"service": service, "from": start, "follow": follow}
        try:
            with await connection.exchange(lambda seq: Request(seq, "outcomes", None, params)) as exchange:
                more = True
                while more:
                    frame = await exchange.next()
                    if not isinstance(frame, Response):
                        raise ConnectionLost(f"the server answered outcomes with {type(frame).__name__}")
                    more = frame.more
                    yield frame.value
        finally:
            await connection.close()

    async def close(self) -> None:
        connections, self._connections = self._connections, []
        for connection in connections:
            await connection.close()

    async def _connection(self) -> Connection:
        """The least busy connection; a new one while there are fewer than ``size``."""
        if len(usable := self._usable()) < self._size:
            async with self._connecting:
                if len(usable := self._usable()) < self._size:
                    fresh = await Connection.open(self._host, self._port, self._ssl, self._token)
                    # One that goes away still owes answers: it is kept until those are in, then drops out of the list.
                    self._connections = [old for old in self._connections if old.usable or old.in_flight]
                    self._connections.append(fresh)
                    usable = [*usable, fresh]
        return usable[0] if len(usable) == 1 else min(usable, key=lambda connection: connection.in_flight)

    def _usable(self) -> list[Connection]:
        return [connection for connection in self._connections if connection.usable]


def _view(frame: ServerFrame) -> Any:
    if not isinstance(frame, Final):
        raise ConnectionLost(f"the server sent {type(frame).__name__} where the end of the command was due")
    return frame.view


def _event(frame: ServerFrame) -> Event:
    match frame:
        case Accepted():
            command = command_of(frame.view) if frame.view else None
            return Event(kind="accepted", id=frame.id, position=frame.position, state=frame.state, command=command)
        case Step():
            return Event(kind="step", id=frame.id, position=frame.position, state=frame.state, record=frame.record)
        case State():
            return Event(kind="state", id=frame.id, position=frame.position, state=frame.state)
        case Final():
            command = command_of(frame.view)
            return Event(kind="final", id=frame.id, position=frame.position, state=command.state, command=command)
        case _:
            raise ConnectionLost(f"the server sent {type(frame).__name__} to a watch")
