"""What it costs to forward a command to its owner: CPU on each side of a link, two processes.

    python bench/forwarding.py [--commands 100000] [--in-flight 1,16,64,512] [--apart] [--profile caller|owner]

The caller submits over a `cluster.link.Link` and reads accepted and final; the owner is a `TcpServer` around a Front
that answers both at once, with the view of a command of three steps.  So what is counted is the link's and the server's
whole work for a command (frames, sockets, event loop), and nothing of admission, log and engine.  ``--apart``: the end
comes a turn of the event loop after the acceptance, hence in a write and a read of its own, as it does where a log lies
between.  A process that starts with ``--owner`` is the other side.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import os
import pstats
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).parents[1]))

import uvloop

from bench.processes import cpu_seconds
from coordinator.cluster.base import Held, Member
from coordinator.cluster.link import Link
from coordinator.cluster.peers import Peers
from coordinator.model.command import CommandView, State, StepState, StepView, Submission
from coordinator.transport.base import Event, Front, Unwatch, Want, Watcher
from coordinator.transport.tcp import Identity, TcpServer

GROUP = "bench"
PAYLOAD = {"order_id": "o-1", "customer": "c-17", "amount": 1999, "items": [{"sku": "a-1", "count": 2}]}
STEPS = [
    StepView(
        name=name, service=service, state=StepState.SUCCEEDED, attempts=1, outcome={"id": f"{name}-17", "ok": True}
    )
    for name, service in (("reserve", "stock"), ("charge", "payments"), ("ship", "shipping"))
]


def view(id: str) -> CommandView:
    return CommandView(
        id=id,
        type="PlaceOrder",
        version=1,
        state=State.COMPLETED,
        result={"receipt": "r-9"},
        error=None,
        steps=STEPS,
        waiting_for=[],
        attributes={},
        submitted_at="2026-01-02T03:04:05.006Z",
        finished_at="2026-01-02T03:04:05.016Z",
        partition=0,
        position="0:1841",
        payload=PAYLOAD,
    )


class AtOnce:
    """A Front whose commands are accepted in the loop's next turn, and done in that one or (``apart``) the next."""

    def __init__(self, apart: bool) -> None:
        self._apart = apart

    def submit(self, submission: Submission, watcher: Watcher, want: Want) -> tuple[str, Unwatch]:
        id = cast("str", submission.id)
        asyncio.get_running_loop().call_soon(self._answer, id, watcher)
        return id, _nothing

    def _answer(self, id: str, watcher: Watcher) -> None:
        watcher(Event("accepted", id, "0:1838", "running"))
        final = Event("final", id, "0:1841", "completed", view=view(id))
        if self._apart:
            asyncio.get_running_loop().call_soon(watcher, final)
        else:
            watcher(final)


def _nothing() -> None:
    pass


class Owner:
    """A Cluster that owns one partition for ever."""

    leaving = False

    def owned(self) -> Held:
        return {0: 1}

    def on_change(self, callback: Any) -> Unwatch:
        return _nothing

    async def take(self, partition: int, epoch: int, by: str) -> bool:
        return False


async def own(profile: bool, apart: bool) -> None:
    """Serves until SIGTERM; tells its port first."""
    server = TcpServer(
        cast("Front", AtOnce(apart)),
        host="127.0.0.1",
        port=0,
        identity=Identity(instance="owner", group=GROUP),
        cluster=Owner(),
    )
    await server.start()
    print(server.address[1], flush=True)
    stop, profiler = asyncio.Event(), cProfile.Profile()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    if profile:
        profiler.enable()
    await stop.wait()
    profiler.disable()
    if profile:
        pstats.Stats(profiler, stream=sys.stderr).sort_stats("tottime").print_stats(25)
    await server.close()


class Caller:
    """Keeps a number of submissions open until all are done."""

    def __init__(self, link: Link, commands: int, in_flight: int) -> None:
        self._link = link
        self._left = commands
        self._open = in_flight
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._prefix = os.urandom(6).hex()

    async def run(self) -> None:
        for _ in range(self._open):
            self._submit()
        await self._done

    def _submit(self) -> None:
        self._left -= 1
        id = f"{self._prefix}-{self._left}"
        self._link.submit(Submission(id=id, type="PlaceOrder", payload=PAYLOAD), self._told, "final")

    def _told(self, event: Event) -> None:
        if event.kind == "final":
            if self._left > 0:
                self._submit()
            else:
                self._open -= 1
                if not self._open and not self._done.done():
                    self._done.set_result(None)
        elif event.kind == "error" and not self._done.done():
            self._done.set_exception(event.error or RuntimeError("no reason"))


async def call(port: int, pid: int, commands: int, in_flights: list[int], profile: bool) -> None:
    """Prints a line for each number in flight."""
    up = asyncio.Event()
    peers = Peers(
        Member("caller", ""),
        group=GROUP,
        on_died=lambda _: None,
        on_lives=lambda _: None,
        on_told=lambda _: up.set(),
    )
    peers.know([Member("owner", f"127.0.0.1:{port}")])
    await up.wait()
    link = peers.link("owner")
    assert link is not None
    await Caller(link, commands // 10, 64).run()  # warm-up
    profiler = cProfile.Profile()
    if profile:
        profiler.enable()
    print("in flight  commands/s  caller us  owner us   (CPU of the whole process a command)")
    for in_flight in in_flights:
        count = commands if in_flight > 4 else commands // 10
        wall, caller, owner = time.perf_counter(), time.process_time(), cpu_seconds(pid)
        await Caller(link, count, in_flight).run()
        wall, caller, owner = time.perf_counter() - wall, time.process_time() - caller, cpu_seconds(pid) - owner
        print(f"{in_flight:9d}  {count / wall:10.0f}  {caller / count * 1e6:9.1f}  {owner / count * 1e6:8.1f}")
    profiler.disable()
    if profile:
        pstats.Stats(profiler).sort_stats("tottime").print_stats(25)
    await peers.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commands", type=int, default=100_000)
    parser.add_argument("--in-flight", default="1,16,64,512")
    parser.add_argument("--apart", action="store_true")
    parser.add_argument("--profile", choices=["caller", "owner"])
    parser.add_argument("--owner", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.owner:
        uvloop.run(own(options.profile == "owner", options.apart))
        return
    command = [sys.executable, __file__, "--owner"]
    command += ["--profile", "owner"] if options.profile == "owner" else []
    command += ["--apart"] if options.apart else []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        try:
            port = int(owner.stdout.readline())
            in_flight = [int(each) for each in options.in_flight.split(",")]
            uvloop.run(call(port, owner.pid, options.commands, in_flight, options.profile == "caller"))
        finally:
            owner.terminate()


if __name__ == "__main__":
    main()
