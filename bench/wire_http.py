"""The load over HTTP: a keep-alive connection for each saga in flight, ``POST /v1/commands?wait=30s``."""

from __future__ import annotations

import os
import time
from typing import Any

import msgspec
from msgspec import Struct

from bench.bare_http import BareConnection, connect, post_bytes
from bench.measure import Failed, Figures, Load, Window


class _End(Struct):
    state: str


_end = msgspec.json.Decoder(_End).decode


class HttpLoad:
    """One connection that submits, waits for the end, and submits again until the window is over."""

    def __init__(self, address: str, name: str, window: Window, failed: Failed, type: str, payload: Any) -> None:
        self._address = address
        self._name = name
        self._window = window
        self._failed = failed
        self._rest = b',"type":%s,"payload":%s}' % (msgspec.json.encode(type), msgspec.json.encode(payload))
        self._number = 0
        self._began = 0

    async def start(self) -> BareConnection:
        self._connection = await connect(self._address, self._answered)
        self._submit()
        return self._connection

    def _submit(self) -> None:
        self._number += 1
        body = b'{"id":"%s-%d"' % (self._name.encode(), self._number) + self._rest
        self._began = time.perf_counter_ns()
        self._connection.send(post_bytes(self._address, "/v1/commands?wait=30s", body))

    def _answered(self, status: int, body: bytes) -> None:
        self._window.ended(self._began)
        if status != 200 or _end(body).state != "completed":
            self._failed(f"HTTP {status}: {body[:500]!r}")
        elif not self._window.over:
            self._submit()


async def run(address: str, load: Load, type: str, payload: Any) -> Figures:
    """Measures ``type`` over HTTP; raises RuntimeError when anything but completed sagas comes back."""
    window, failed = Window(load), Failed()
    prefix = os.urandom(6).hex()
    connections = [
        await HttpLoad(address, f"{prefix}-{number}", window, failed, type, payload).start()
        for number in range(load.in_flight)
    ]
    try:
        return await failed.or_result(window)
    finally:
        for connection in connections:
            connection.transport.close()
