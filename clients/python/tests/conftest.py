"""Scripted servers: raw sockets that play what a test tells them, so that the client meets exactly those bytes."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import pytest

VIEW: dict[str, Any] = {
    "id": "c-1",
    "type": "T",
    "version": 1,
    "state": "completed",
    "result": {"receipt": "r-9"},
    "error": None,
    "steps": [],
    "waiting_for": [],
    "attributes": {},
    "submitted_at": "2026-01-02T03:04:05.006Z",
    "finished_at": "2026-01-02T03:04:05.106Z",
    "partition": 0,
    "position": "0:7",
}
LIMITS = {"frame_bytes_max": 4096, "in_flight_max": 4, "idle_timeout_ms": 60_000, "ping_interval_ms": 20_000}


class TcpPeer:
    """The server's end of one connection: frames as plain lists, no code of the client's."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def read(self) -> list[Any]:
        length = int.from_bytes(await self._reader.readexactly(4), "big")
        frame: list[Any] = msgspec.msgpack.decode(await self._reader.readexactly(length))
        return frame

    def send(self, *frames: list[Any]) -> None:
        for frame in frames:
            body = msgspec.msgpack.encode(frame)
            self._writer.write(len(body).to_bytes(4, "big") + body)

    def send_bytes(self, data: bytes) -> None:
        self._writer.write(data)

    async def greet(self, **limits: Any) -> list[Any]:
        """Reads the client's Hello and answers it."""
        hello = await self.read()
        self.send([0, 0, "coordinator", 1, 1, "scripted", LIMITS | limits])
        return hello

    async def submitted(self) -> tuple[int, dict[str, Any]]:
        """The next Submit: its sequence id and submission."""
        frame = await self.read()
        assert frame[0] == 1, frame
        return frame[1], frame[4]

    async def hang_up_seen(self) -> None:
        """Waits until the client has closed."""
        while await self._reader.read(4096):
            pass

    def close(self) -> None:
        self._writer.close()


class HttpPeer:
    """The server's end of one HTTP connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def read(self) -> tuple[str, str, dict[str, str], Any]:
        """The next request: method, target, headers, JSON body."""
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, target, _ = head[0].split(" ")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in head[1:] if line)}
        body = await self._reader.readexactly(int(headers.get("content-length", 0)))
        return method, target, headers, json.loads(body) if body else None

    def answer(self, status: int, body: Any, media: str = "application/json", **headers: str) -> None:
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        more = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        head = f"HTTP/1.1 {status} X\r\ncontent-type: {media}\r\ncontent-length: {len(data)}\r\n{more}\r\n"
        self._writer.write(head.encode() + data)

    def problem(self, status: int, code: str, **members: Any) -> None:
        body = {"type": "about:blank", "title": code, "status": status, "detail": code, "code": code} | members
        self.answer(status, body, "application/problem+json")

    def stream(self, media: str, text: str) -> None:
        """An answer that goes on until the connection closes."""
        head = f"HTTP/1.1 200 OK\r\ncontent-type: {media}\r\nconnection: close\r\n\r\n"
        self._writer.write((head + text).encode())

    def close(self) -> None:
        self._writer.close()


Script = Callable[[Any], Awaitable[None]]


class Scripted:
    """A server that plays one script a connection, in order; `finish` raises what went wrong in one."""

    def __init__(self, scheme: str) -> None:
        self.scheme = scheme
        self.scripts: list[Script] = []
        self.url = ""
        self.port = 0
        self._server: asyncio.Server | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def play(self, *scripts: Script) -> None:
        self.scripts += scripts

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"{self.scheme}://127.0.0.1:{self.port}"

    async def stop(self) -> None:
        """Listens no more; connections stay."""
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    async def finish(self) -> None:
        await self.stop()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        faults = [result for result in results if isinstance(result, Exception) and not isinstance(result, EOFError)]
        assert not self.scripts, f"{len(self.scripts)} scripts were not played"
        if faults:
            raise faults[0]

    def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.append(asyncio.create_task(self._run(reader, writer)))

    async def _run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = TcpPeer(reader, writer) if self.scheme == "tcp" else HttpPeer(reader, writer)
        try:
            assert self.scripts, "a connection that no script expects"
            await self.scripts.pop(0)(peer)
            if not writer.is_closing():
                await writer.drain()
                while await reader.read(4096):
                    pass
        except ConnectionError:
            pass
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


@pytest.fixture
async def tcp() -> AsyncIterator[Scripted]:
    """A scripted TCP server."""
    server = Scripted("tcp")
    await server.start()
    yield server
    await server.finish()


@pytest.fixture
async def other_tcp() -> AsyncIterator[Scripted]:
    """A second one, for clients with several addresses."""
    server = Scripted("tcp")
    await server.start()
    yield server
    await server.finish()


@pytest.fixture
async def http() -> AsyncIterator[Scripted]:
    """A scripted HTTP server."""
    server = Scripted("http")
    await server.start()
    yield server
    await server.finish()


@pytest.fixture
def view() -> dict[str, Any]:
    """A completed command as servers show it."""
    return dict(VIEW)
