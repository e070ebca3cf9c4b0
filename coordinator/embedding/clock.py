"""A clock that stands still until it is told to move: how a test of days takes milliseconds.

    advance("1h") ─▶ settle ─▶ the earliest moment that something waits for ─▶ settle ─▶ … ─▶ an hour later ─▶ settle

The engine reads no clock and sets no timer of its own: it is given ``now`` and names its next deadline.  So it is
enough to give it another ``now``.  Moving to an hour later in one go would let what a retry at minute ten leads to come
an hour late; so time goes from one moment that somebody waits for to the next, and at each one everything that moves is
awaited (records appended, calls answered) before time goes on.  Nothing depends on how fast the machine is.

What services take to answer and the timeouts of their calls are on this clock too, by `call_later`.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final, Protocol

from coordinator.model.durations import parse_duration
from coordinator.model.moments import timestamp

START: Final = "2026-01-01T00:00:00Z"
MOMENTS_MAX: Final = 100_000  # that one move passes: more is a retry that goes on for ever


class Driven(Protocol):
    """What moves only when this clock does."""

    async def settle(self) -> None:
        """Returns when nothing of it moves any more; raises what a test is to see."""
        ...

    @property
    def moving(self) -> bool: ...

    def due(self) -> float | None:
        """The next moment (ms) at which it would do something by itself."""
        ...

    def pump(self) -> None:
        """The time has changed."""
        ...


class FakeTimer:
    """What `FakeClock.call_later` gives; as much of an `asyncio.TimerHandle` as its users need."""

    __slots__ = ("args", "callback", "cancelled")

    def __init__(self, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.callback = callback
        self.args = args
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class FakeClock:
    """Time for `coordinator.embedded`: it stands still at ``start`` until `advance`, `until` or `to_next` moves it.

    ``start`` is RFC 3339 (UTC unless it says otherwise), a datetime, or milliseconds since 1970.  Several coordinators
    may share one clock.
    """

    def __init__(self, start: str | datetime | int = START) -> None:
        self._now = milliseconds(start)
        self._timers: list[tuple[float, int, FakeTimer]] = []
        self._sequence = itertools.count()
        self._driven: list[Driven] = []
        self._moving = asyncio.Lock()

    def __repr__(self) -> str:
        return f"FakeClock({timestamp(self._now)!r})"

    def now(self) -> int:
        """Milliseconds since 1970."""
        return self._now

    @property
    def next_due(self) -> str | None:
        """The next moment that something waits for (RFC 3339); None: only somebody outside can move anything."""
        due = self._due()
        return None if due is None else timestamp(max(math.ceil(due), self._now))

    # ------------------------------------------------------------ moving

    async def advance(self, duration: str) -> None:
        """Lets a time pass (``"10m"``, ``"30d"``), with all that happens in it, in order, and settles."""
        await self._pass(self._now + parse_duration(duration))

    async def until(self, moment: str | datetime | int) -> None:
        """Lets time pass up to a moment, which must not be past; as `advance`."""
        target = milliseconds(moment)
        if target < self._now:
            raise ValueError(f"time does not go back: it is {timestamp(self._now)}, after {timestamp(target)}")
        await self._pass(target)

    async def to_next(self, latest: int | None = None) -> bool:
        """Lets time pass up to the next moment that something waits for; False, and nothing passes, if there is none
        (or none up to ``latest``, in milliseconds since 1970)."""
        async with self._moving:
            await self._settle()
            return await self._step(math.inf if latest is None else latest)

    async def _pass(self, target: int) -> None:
        async with self._moving:
            await self._settle()
            for _ in range(MOMENTS_MAX):
                if not await self._step(target):
                    break
            else:
                raise AssertionError(
                    f"{MOMENTS_MAX:,} moments have passed and it is only {timestamp(self._now)}: something is retried "
                    "over and over (a service that is scripted to be unknown for ever?)"
                )
            self._now = max(self._now, target)
            await self._happen()

    async def _step(self, latest: float) -> bool:
        """On to the next moment, if there is one by then."""
        due = self._due()
        if due is None or due > latest:
            return False
        moment = math.ceil(due) if due > self._now else self._now + 1  # due, and not taken up: a little later, then
        if moment > latest:
            return False
        self._now = moment
        await self._happen()
        return True

    async def _happen(self) -> None:
        timers = self._timers
        while timers and (timers[0][0] <= self._now or timers[0][2].cancelled):
            timer = heapq.heappop(timers)[2]
            if not timer.cancelled:
                timer.callback(*timer.args)
        for each in list(self._driven):
            each.pump()
        await self._settle()

    async def _settle(self) -> None:
        """Until nothing moves anywhere: what one of them does may move another."""
        while True:
            for each in list(self._driven):
                await each.settle()
            if not any(each.moving for each in self._driven):
                return

    def _due(self) -> float | None:
        timers = self._timers
        while timers and timers[0][2].cancelled:
            heapq.heappop(timers)
        found = [timers[0][0]] if timers else []
        found += [due for each in self._driven if (due := each.due()) is not None]
        return min(found, default=None)

    # ------------------------------------------------------------ for what lives on this clock

    def drive(self, driven: Driven) -> Callable[[], None]:
        """From now on this moves with the clock; returns how to stop that."""
        self._driven.append(driven)
        return lambda: self._driven.remove(driven)

    def call_later(self, delay_ms: float, callback: Callable[..., object], *args: Any) -> FakeTimer:
        """Calls back when the clock has moved by so much."""
        timer = FakeTimer(callback, args)
        heapq.heappush(self._timers, (self._now + max(0.0, delay_ms), next(self._sequence), timer))
        return timer

    async def sleep(self, delay_ms: float) -> None:
        """Returns when the clock has moved by so much."""
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        timer = self.call_later(delay_ms, _wake, woken)
        try:
            await woken
        finally:
            timer.cancel()


def _wake(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)


class ClockedLoop:
    """An event loop as the gateway sees it, whose timers are on a FakeClock; everything else is the loop's own."""

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: FakeClock) -> None:
        self._loop = loop
        self._clock = clock

    def time(self) -> float:
        return self._clock.now() / 1000

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> FakeTimer:
        return self._clock.call_later(delay * 1000, callback, *args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)


def milliseconds(moment: str | datetime | int) -> int:
    """Milliseconds since 1970; text without a zone is UTC.  Raises ValueError for what is no moment."""
    if isinstance(moment, int):
        return moment
    when = datetime.fromisoformat(moment) if isinstance(moment, str) else moment
    return round((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() * 1000)
