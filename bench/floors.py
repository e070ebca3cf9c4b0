"""The floors: what the parts of a saga cost when nothing else is done.

    calls    a bare HTTP call to the same service, on asyncio.Protocol and httptools
    appends  one record appended to the log; with 64 in flight they go in batches, as the daemon's do
    frames   one frame in, decoded, and one out, encoded, by a server of its own under the same load generator

Each runs in a process of its own (``python -m bench.floors calls …``) on uvloop, like the daemon.  The floor of a
saga is three calls, five appends (Submitted, three Outcomes, Finished) and one frame.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import msgspec
import uvloop
from msgspec import Struct

from bench import load
from bench.bare_http import BareConnection, connect, post_bytes
from bench.commands import PAYLOAD
from bench.measure import Failed, Figures, Load, Window
from bench.processes import ROOT, Program
from coordinator.log.base import Log, Writer
from coordinator.model.command import CommandView, State, StepState, StepView
from coordinator.model.records import SCHEMA, Outcome, raw
from coordinator.wire.codec import encode as encode_record
from coordinator.wire.frames import MAGIC, PREFIX, Final, Hello, Submit, read, write

PARTITIONS = {"sqlite": 1, "kafka": 6}  # as the daemon has them by default
CALLS, APPENDS, FRAMES = 3, 5, 1  # of one saga


class Floor(Struct, frozen=True, kw_only=True):
    """The three floors at one number in flight."""

    call: Figures
    append: Figures
    frame: Figures

    @property
    def cpu_ms(self) -> float:
        """CPU that a saga can not be had under."""
        return CALLS * self.call.cpu_ms + APPENDS * self.append.cpu_ms + FRAMES * self.frame.cpu_ms

    @property
    def p50_ms(self) -> float:
        """At one in flight: how long its parts take one after the other."""
        return CALLS * self.call.p50_ms + APPENDS * self.append.p50_ms + FRAMES * self.frame.p50_ms


def measure(service: str, log: str, directory: Path, in_flight: int, seconds: float) -> Floor:
    """The floors beside a daemon with ``log`` (``sqlite:DIR`` or ``kafka:BOOTSTRAP/TOPIC``)."""
    with Program([sys.executable, "-m", "bench.floors", "frames"], directory / "frames.log") as echo:
        echo.until("listening", lambda: echo.output().endswith("\n"))
        window = Load(in_flight=in_flight, seconds=seconds, warm_up=seconds / 5, pid=echo.pid)
        frame = load.measure("tcp", echo.output().strip(), window, "ThreeSteps", PAYLOAD)
    call = _in_child("calls", service, in_flight, seconds)
    append = _in_child("appends", log, in_flight, seconds)
    return Floor(call=call, append=append, frame=frame)


def _in_child(what: str, target: str, in_flight: int, seconds: float) -> Figures:
    arguments = [sys.executable, "-m", "bench.floors", what, target, str(in_flight), str(seconds)]
    done = subprocess.run(arguments, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    return msgspec.json.decode(done.stdout, type=Figures)


def _own(in_flight: int, seconds: float) -> Load:
    return Load(in_flight=in_flight, seconds=seconds, warm_up=seconds / 5, pid=os.getpid())


# ---------------------------------------------------------------- calls


async def calls(address: str, in_flight: int, seconds: float) -> Figures:
    window, failed = Window(_own(in_flight, seconds)), Failed()
    request = post_bytes(address, "/charge", msgspec.json.encode(PAYLOAD))
    connections = [await _caller(address, request, window, failed) for _ in range(in_flight)]
    figures = await failed.or_result(window)
    for connection in connections:
        connection.transport.close()
    return figures


async def _caller(address: str, request: bytes, window: Window, failed: Failed) -> BareConnection:
    """One connection that calls again whenever it is answered."""
    began = time.perf_counter_ns()

    def answered(status: int, body: bytes) -> None:
        nonlocal began
        window.ended(began)
        if status != 200:
            failed(f"the service answered {status}")
        elif not window.over:
            began = time.perf_counter_ns()
            connection.send(request)

    connection = await connect(address, answered)
    connection.send(request)
    return connection


# ---------------------------------------------------------------- appends


async def appends(target: str, in_flight: int, seconds: float) -> Figures:
    log = make_log(target)
    await log.open()
    writers = [await log.writer(partition) for partition in range(log.partitions)]
    window = Window(_own(in_flight, seconds))
    lanes = Counter(number % log.partitions for number in range(in_flight))
    async with asyncio.TaskGroup() as group:
        measuring = group.create_task(window.run())
        for partition, waiting in lanes.items():
            group.create_task(_lane(writers[partition], waiting, window))
    for writer in writers:
        await writer.close()
    await log.close()
    return measuring.result()


async def _lane(writer: Writer, waiting: int, window: Window) -> None:
    """A partition with ``waiting`` sagas: one append in flight, and what waits meanwhile shares the next."""
    records = [encode_record(_a_record())] * waiting
    while not window.over:
        began = time.perf_counter_ns()
        await writer.append(records)
        for _ in records:
            window.ended(began)


def _a_record() -> Outcome:
    """The record that a saga has most of."""
    return Outcome(
        SCHEMA, b"token---", 1_700_000_000_000, "0123456789ab-123456", "charge", "bench", 1,  # type: ignore[arg-type]
        raw({"id": "0123456789abcdef", "status": "done", "note": "an answer of about one hundred bytes, as told"}),
    )  # fmt: skip


def make_log(target: str) -> Log:
    kind, _, where = target.partition(":")
    if kind == "sqlite":
        from coordinator.log.sqlite import SqliteLog

        return SqliteLog(where, PARTITIONS[kind])
    from coordinator.log.kafka import KafkaLog

    bootstrap, _, topic = where.partition("/")
    return KafkaLog(bootstrap=bootstrap, topic=topic, partitions=PARTITIONS[kind])


# ---------------------------------------------------------------- frames


class FrameEcho(asyncio.Protocol):
    """Decodes each Submit and answers with a Final of a finished three-step command, at once."""

    def __init__(self, view: CommandView) -> None:
        self._view = view
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        data = self._received + data if self._received else data
        at, out = 0, bytearray()
        while len(data) - at >= PREFIX.size:
            end = at + PREFIX.size + PREFIX.unpack_from(data, at)[0]
            if end > len(data):
                break
            frame = read(data[at + PREFIX.size : end])
            at = end
            if isinstance(frame, Submit):
                write(Final(frame.seq, frame.submission.id or "", "0:1", self._view), out)
            elif isinstance(frame, Hello):
                write(Hello(0, MAGIC, 1, 1, "floor"), out)
        self._received = data[at:]
        if out:
            self._transport.write(bytes(out))


def _a_view() -> CommandView:
    outcome = {"id": "0123456789abcdef", "status": "done", "note": "an answer of about one hundred bytes, as told"}
    steps = [
        StepView(name=name, service="bench", state=StepState.SUCCEEDED, attempts=1, outcome=outcome)
        for name in ("reserve", "charge", "ship")
    ]
    return CommandView(
        id="0123456789ab-1", type="ThreeSteps", version=1, state=State.COMPLETED, result={"receipt": outcome["id"]},
        error=None, steps=steps, waiting_for=[], attributes={}, submitted_at="2026-01-01T00:00:00.000Z",
        finished_at="2026-01-01T00:00:00.100Z", partition=0, position="0:1",
    )  # fmt: skip


async def frames() -> None:
    view = _a_view()
    server = await asyncio.get_running_loop().create_server(lambda: FrameEcho(view), "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    print(f"{host}:{port}", flush=True)
    await server.serve_forever()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.floors")
    parser.add_argument("what", choices=["calls", "appends", "frames"])
    parser.add_argument("target", nargs="?", default="")
    parser.add_argument("in_flight", nargs="?", type=int, default=1)
    parser.add_argument("seconds", nargs="?", type=float, default=3.0)
    options = parser.parse_args(arguments)
    if options.what == "frames":
        uvloop.run(frames())
        return
    measured = {"calls": calls, "appends": appends}[options.what]
    figures = uvloop.run(measured(options.target, options.in_flight, options.seconds))
    sys.stdout.buffer.write(msgspec.json.encode(figures))


if __name__ == "__main__":
    main()
