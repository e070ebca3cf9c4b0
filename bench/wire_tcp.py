"""The load over TCP: one pipelined connection, frames of proto/tcp.md, no task a saga."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any, cast

import msgspec
from msgspec import Struct

from bench.measure import Failed, Figures, Load, Window
from coordinator.model.command import Submission
from coordinator.wire.frames import MAGIC, PREFIX, Accepted, Error, Final, Hello, Ping, Pong, Submit, encode, write

_HELLO, _ACCEPTED, _FINAL, _ERROR, _PING = (
    kind.__struct_config__.tag for kind in (Hello, Accepted, Final, Error, Ping)
)


class _End(Struct):
    """The part of a command that tells how it ended; the decoder skips the rest."""

    state: str


class _Head(Struct, array_like=True):
    type: int
    seq: int


class _Final(Struct, array_like=True):
    type: int
    seq: int
    id: str
    position: str
    view: _End


_head = msgspec.msgpack.Decoder(_Head).decode
_final = msgspec.msgpack.Decoder(_Final).decode


class TcpLoad(asyncio.Protocol):
    """Keeps ``load.in_flight`` submissions open until the window is over."""

    def __init__(self, load: Load, window: Window, failed: Failed, type: str, payload: Any) -> None:
        self._load = load
        self._window = window
        self._failed = failed
        self._type = type
        self._payload = payload
        self._prefix = os.urandom(6).hex()
        self._began: dict[int, int] = {}
        self._seq = 0
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        out = bytearray(encode(Hello(0, MAGIC, 1, 1, "bench")))
        for _ in range(self._load.in_flight):
            self._submit(out)
        self._transport.write(bytes(out))

    def _submit(self, out: bytearray) -> None:
        self._seq = seq = self._seq + 1
        submission = Submission(id=f"{self._prefix}-{seq}", type=self._type, payload=self._payload)
        self._began[seq] = time.perf_counter_ns()
        write(Submit(seq, "final", None, submission), out)

    def data_received(self, data: bytes) -> None:
        data = self._received + data if self._received else data
        at, out = 0, bytearray()
        while len(data) - at >= PREFIX.size:
            length = PREFIX.unpack_from(data, at)[0]
            end = at + PREFIX.size + length
            if end > len(data):
                break
            self._on_frame(data[at + PREFIX.size : end], out)
            at = end
        self._received = data[at:]
        if out:
            self._transport.write(bytes(out))

    def _on_frame(self, body: bytes, out: bytearray) -> None:
        head = _head(body)
        if head.type == _FINAL:
            self._window.ended(self._began.pop(head.seq))
            state = _final(body).view.state
            if state != "completed":
                self._failed(f"a saga ended {state}: {msgspec.msgpack.decode(body)}")
            if not self._window.over:
                self._submit(out)
        elif head.type == _PING:
            write(Pong(head.seq), out)
        elif head.type not in (_HELLO, _ACCEPTED):
            self._failed(f"unexpected frame: {msgspec.msgpack.decode(body)}")

    def connection_lost(self, error: Exception | None) -> None:
        if not self._window.over:
            self._failed(f"the connection was lost: {error}")


async def run(address: str, load: Load, type: str, payload: Any) -> Figures:
    """Measures ``type`` over TCP; raises RuntimeError when anything but completed sagas comes back."""
    window, failed = Window(load), Failed()
    host, _, port = address.rpartition(":")
    transport, _ = await asyncio.get_running_loop().create_connection(
        lambda: TcpLoad(load, window, failed, type, payload), host, int(port)
    )
    try:
        return await failed.or_result(window)
    finally:
        transport.close()
