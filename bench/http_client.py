"""CPU per call of the gateway's HTTP client, against a tiny HTTP server in another process.

    python bench/http_client.py [--calls 20000] [--loop uvloop|asyncio] [--profile]

One call is a POST of about 100 bytes of JSON answered by about 60; each number of calls in flight is held by
starting the next call in ``done``, as the engine does.  Prints calls/s, the CPU of this process per call
(microseconds), and the same for a bare protocol with httptools that sends ready bytes and decodes nothing: the floor
that the client stands on.  Read the user part: the system part is mostly the kernel waking the server, which it must
do the oftener the slower the client sends.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import multiprocessing
import os
import pstats
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

import uvloop
from httptools import HttpRequestParser, HttpResponseParser

from coordinator.gateway.http import HttpCaller
from coordinator.model.call import Answer, Call, Request, Verdict
from coordinator.model.ids import CommandId
from coordinator.model.settings import ServiceSettings

ANSWER = (
    b"HTTP/1.1 200 OK\r\nDate: Mon, 01 Jan 2024 00:00:00 GMT\r\n"
    b"Content-Type: application/json\r\nContent-Length: 53\r\n\r\n"
    b'{"id":"ch-000001","status":"captured","amount":19990}'
)
BODY = {"order": "o-000001", "customer": "c-000001", "amount": 19990, "currency": "EUR", "items": ["sku-1", "sku-2"]}


class Served(asyncio.Protocol):
    """Answers each request the same."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.parser = HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        self.transport.write(ANSWER)  # type: ignore[attr-defined]


def serve(tell: Connection) -> None:
    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(Served, "127.0.0.1", 0)
        tell.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    uvloop.run(main())


async def client(port: int, calls: int, in_flight: int) -> None:
    """``calls`` calls through HttpCaller."""
    loop = asyncio.get_running_loop()
    settings = ServiceSettings(name="payments", url=f"http://127.0.0.1:{port}", max_in_flight=in_flight)
    caller = HttpCaller(settings, loop)
    over: asyncio.Future[None] = loop.create_future()
    left = calls
    pending = 0

    def begin() -> None:
        nonlocal left, pending
        left -= 1
        pending += 1
        request = Request(service="payments", path="/charges", body=BODY)
        caller.send(
            Call(command=CommandId("c-1"), step="charge", undo=False, request=request, key=f"order-{left}/charge",
                 partition=0, epoch=17, attempt=1, timeout_ms=None),
            done,
        )  # fmt: skip

    def done(call: Call, answer: Answer) -> None:
        nonlocal pending
        pending -= 1
        assert answer.verdict is Verdict.OUTCOME, answer
        if left:
            begin()
        elif not pending:
            over.set_result(None)

    for _ in range(in_flight):
        begin()
    await over
    await caller.close()


class Bare(asyncio.Protocol):
    """The floor: ready bytes out, parsed answer in."""

    def __init__(self, wire: bytes, again: Callable[[], bool]) -> None:
        self.wire, self.again = wire, again
        self.parser = HttpResponseParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.on_message_complete()

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        if self.again():
            self.transport.write(self.wire)  # type: ignore[attr-defined]


async def floor(port: int, calls: int, in_flight: int) -> None:
    """``calls`` calls through `Bare`."""
    loop = asyncio.get_running_loop()
    over: asyncio.Future[None] = loop.create_future()
    wire = b"POST /charges HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\n" + b"x" * 100
    started = 0

    def again() -> bool:
        nonlocal started
        started += 1
        if started == calls + in_flight:
            over.set_result(None)
        return started <= calls

    opened = [await loop.create_connection(lambda: Bare(wire, again), "127.0.0.1", port) for _ in range(in_flight)]
    await over
    for transport, _ in opened:
        transport.close()


def measure(run: Callable[[], object], calls: int) -> str:
    wall, before = time.perf_counter(), os.times()
    run()
    wall, after = time.perf_counter() - wall, os.times()
    user, system = ((b - a) / calls * 1e6 for a, b in zip(before[:2], after[:2], strict=True))
    return f"{calls / wall:8.0f} calls/s  {user + system:6.1f} us CPU a call ({user:.1f} user, {system:.1f} system)"


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--calls", type=int, default=20_000)
    options.add_argument("--loop", choices=["uvloop", "asyncio"], default="uvloop")
    options.add_argument("--profile", action="store_true")
    chosen = options.parse_args()
    new_loop = uvloop.new_event_loop if chosen.loop == "uvloop" else asyncio.new_event_loop
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    port = ours.recv()
    try:
        for in_flight in (1, 64):
            for name, run in (("floor", floor), ("client", client)):
                with asyncio.Runner(loop_factory=new_loop) as runner:
                    runner.run(run(port, 2_000, in_flight))
                    profile = cProfile.Profile() if chosen.profile and run is client else None
                    if profile:
                        profile.enable()
                    line = measure(lambda: runner.run(run(port, chosen.calls, in_flight)), chosen.calls)  # noqa: B023
                    if profile:
                        profile.disable()
                    print(f"{name:>7} at {in_flight:2} in flight, {chosen.loop}: {line}")
                    if profile:
                        pstats.Stats(profile).sort_stats("tottime").print_stats(18)
    finally:
        server.terminate()


if __name__ == "__main__":
    main()
