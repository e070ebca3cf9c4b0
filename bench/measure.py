"""One measurement under load: a closed loop with a fixed number in flight, over a window of time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from bench.processes import cpu_seconds


class Load(Struct, frozen=True, kw_only=True):
    """What to send: ``count`` sagas always in flight, for ``seconds`` after ``warm_up`` seconds that do not count."""

    in_flight: int
    seconds: float
    warm_up: float
    pid: int  # whose CPU time is read at both ends of the window


class Figures(Struct, frozen=True, kw_only=True):
    """One cell of the table: rate a second, milliseconds, CPU of the measured process a saga."""

    count: int
    seconds: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float

    @property
    def rate(self) -> float:
        return self.count / self.seconds


class Window:
    """Collects the latencies of what ends within the window, and the CPU time that the window took."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._latencies_ns: list[int] = []
        self._open = False
        self.over = False

    def ended(self, began_ns: int) -> None:
        """Something that began at ``began_ns`` (`time.perf_counter_ns`) ended now."""
        if self._open:
            self._latencies_ns.append(time.perf_counter_ns() - began_ns)

    async def run(self) -> Figures:
        """Opens and closes the window; the load must be running."""
        await asyncio.sleep(self._load.warm_up)
        cpu, began, self._open = cpu_seconds(self._load.pid), time.perf_counter(), True
        await asyncio.sleep(self._load.seconds)
        self._open = False
        seconds, cpu = time.perf_counter() - began, cpu_seconds(self._load.pid) - cpu
        self.over = True
        return figures(self._latencies_ns, seconds, cpu)


def figures(latencies_ns: Sequence[int], seconds: float, cpu_s: float) -> Figures:
    """Percentiles and averages; raises ValueError where nothing ended."""
    if not latencies_ns:
        raise ValueError("nothing ended within the window")
    ordered = sorted(latencies_ns)
    return Figures(
        count=len(ordered),
        seconds=seconds,
        p50_ms=ordered[len(ordered) // 2] / 1e6,
        p99_ms=ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)] / 1e6,
        cpu_ms=cpu_s * 1000 / len(ordered),
    )


class Failed:
    """The first thing that went wrong in a callback, for the task that waits."""

    def __init__(self) -> None:
        self._future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def __call__(self, why: str) -> None:
        if not self._future.done():
            self._future.set_exception(RuntimeError(why))

    async def or_result(self, window: Window) -> Figures:
        """The window's figures, unless something fails before it is over."""
        measuring = asyncio.ensure_future(window.run())
        either: list[asyncio.Future[Any]] = [self._future, measuring]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if self._future.done():
            measuring.cancel()
            self._future.result()
        return measuring.result()
