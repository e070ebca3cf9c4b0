"""The least that can call an HTTP service: one connection, one request at a time, prepared bytes out, httptools in.

No timeouts, no pool, no errors, no headers of its own: this is the floor that the gateway's client is compared with,
and what the load generator speaks HTTP with.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import httptools

Answered = Callable[[int, bytes], None]
"""Called with the status and the body."""


class BareConnection(asyncio.Protocol):
    """``send`` a whole request, then ``answered`` is called, then ``send`` the next."""

    def __init__(self, answered: Answered) -> None:
        self.answered = answered
        self._parser = httptools.HttpResponseParser(self)
        self._body = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def send(self, request: bytes) -> None:
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._body = self._body + body if self._body else body

    def on_message_complete(self) -> None:
        body, self._body = self._body, b""
        self.answered(self._parser.get_status_code(), body)


async def connect(address: str, answered: Answered) -> BareConnection:
    host, _, port = address.rpartition(":")
    _, protocol = await asyncio.get_running_loop().create_connection(lambda: BareConnection(answered), host, int(port))
    return protocol


def post_bytes(address: str, path: str, body: bytes) -> bytes:
    """A whole POST request."""
    head = f"POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
