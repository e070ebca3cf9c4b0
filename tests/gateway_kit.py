"""What the gateway's tests share: a service that does what its script says, and both loops."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any

import pytest
import uvloop

from coordinator.gateway.base import Caller
from coordinator.model.call import Answer, Call, LocalCall, Request, Verdict
from coordinator.model.ids import CommandId
from coordinator.model.records import unraw

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


def on_both_loops(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Runs an async test on asyncio's own loop and on uvloop, each with a limit of 30 s."""

    def run(loop_name: str, **rest: Any) -> None:
        async def limited() -> None:
            async with asyncio.timeout(30):
                await test(**rest)

        with asyncio.Runner(loop_factory=LOOPS[loop_name]) as runner:
            runner.run(limited())

    own = list(inspect.signature(test).parameters.values())
    first = inspect.Parameter("loop_name", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    run.__signature__ = inspect.Signature([first, *own])  # type: ignore[attr-defined]
    run.__name__, run.__doc__, run.__module__ = test.__name__, test.__doc__, test.__module__
    return pytest.mark.parametrize("loop_name", LOOPS)(run)


class Received:
    """One request as the service read it."""

    def __init__(self, head: bytes, body: bytes) -> None:
        lines = head.decode("utf-8").split("\r\n")
        self.head = head
        self.body = body
        self.method, self.target, self.version = lines[0].split(" ")
        self.headers = {}
        for line in lines[1:]:
            if line:
                name, value = line.split(": ", 1)
                assert name.lower() not in self.headers, f"{name} was sent twice"
                self.headers[name.lower()] = value


class Peer:
    """The service's end of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        self.reader = reader
        self.writer = writer
        self.number = number  # of the connection, from 1
        self.over = asyncio.Event()  # the service has done with the connection

    async def send(self, *pieces: bytes) -> None:
        """Sends each piece as a write of its own."""
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        """Closes so that the other end sees a reset."""
        raw = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        self.writer.transport.abort()

    async def gone(self) -> None:
        """Waits until the other end has closed."""
        try:
            while await self.reader.read(65_536):
                pass
        except ConnectionError:
            pass


Script = Callable[[Received, Peer], Awaitable[None]]


def reply(body: bytes = b"", status: str = "200 OK", content_type: str = "application/json", *more: str) -> bytes:
    """A well-formed answer."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *more]
    if content_type:
        lines.append(f"Content-Type: {content_type}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


def always(*pieces: bytes) -> Script:
    """A script that sends the same pieces to each request."""

    async def script(request: Received, peer: Peer) -> None:
        await peer.send(*pieces)

    return script


def then_close(*pieces: bytes) -> Script:
    """A script that sends the pieces and closes the connection."""

    async def script(request: Received, peer: Peer) -> None:
        await peer.send(*pieces)
        peer.close()

    return script


async def silence(request: Received, peer: Peer) -> None:
    """A script that never answers."""
    await peer.gone()


class ScriptedService:
    """An HTTP/1.1 server on 127.0.0.1 that reads requests and lets ``script`` answer each.

    ``requests`` holds all that were read, ``connections`` counts them.  With ``read_body=False`` the script runs as
    soon as the head is there.
    """

    def __init__(
        self, script: Script, *, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1", read_body: bool = True
    ) -> None:
        self.script = script
        self.tls = tls
        self.host = host
        self.read_body = read_body
        self.requests: list[Received] = []
        self.connections = 0
        self.peers: list[Peer] = []

    async def __aenter__(self) -> ScriptedService:
        self._server = await asyncio.start_server(self._serve, self.host, 0, ssl=self.tls, limit=1 << 20)
        self.port: int = self._server.sockets[0].getsockname()[1]
        self._tasks: set[asyncio.Task[Any]] = set()
        scheme = "https" if self.tls else "http"
        self.url = f"{scheme}://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for peer in self.peers:
            peer.writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        peer = Peer(reader, writer, self.connections)
        self.peers.append(peer)
        try:
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"\r\ncontent-length: (\d+)", head, re.IGNORECASE)
                body = await reader.readexactly(int(length[1])) if length and self.read_body else b""
                received = Received(head[:-4], body)
                self.requests.append(received)
                await self.script(received, peer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()
            peer.over.set()


_attempts = itertools.count(1)


def a_call(request: Request | LocalCall, *, timeout_ms: int | None = 5_000, key: str = "order-1/charge") -> Call:
    """A call with ``request``."""
    return Call(command=CommandId("order-1"), step="charge", undo=False, request=request, key=key, partition=0,
                epoch=17, attempt=next(_attempts), timeout_ms=timeout_ms)  # fmt: skip


def begin(caller: Caller, call: Call) -> asyncio.Future[Answer]:
    """Sends a call; the future fails the test if ``done`` comes from inside ``send``, twice, or with another call."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Answer] = loop.create_future()
    sending = True

    def done(answered: Call, answer: Answer) -> None:
        assert not sending, "done was called from inside send"
        assert answered is call
        assert not future.done() or future.cancelled(), "done was called twice"
        if not future.cancelled():
            future.set_result(answer)

    caller.send(call, done)
    sending = False
    return future


async def ask(caller: Caller, request: Request | LocalCall, *, timeout_ms: int | None = 5_000) -> Answer:
    """Sends a call and waits for its answer."""
    return await begin(caller, a_call(request, timeout_ms=timeout_ms))


async def until(condition: Callable[[], object]) -> None:
    """Turns the loop until what is inside the code under test has come about (the test's limit ends it otherwise)."""
    while not condition():  # noqa: ASYNC110 - there is no event to wait for, on purpose
        await asyncio.sleep(0)


def outcome(answer: Answer) -> Any:
    """The value of an outcome."""
    assert answer.verdict is Verdict.OUTCOME, answer.failure
    return unraw(answer.outcome)


def failure(answer: Answer) -> str:
    """The code of a negative answer."""
    assert answer.verdict is Verdict.FAILURE, answer
    assert answer.failure is not None
    return answer.failure.code


def unknown(answer: Answer) -> str:
    """The code of an unknown answer."""
    assert answer.verdict is Verdict.DELAYED, answer
    assert answer.failure is not None
    return answer.failure.code
