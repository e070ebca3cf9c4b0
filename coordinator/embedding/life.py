"""One life of an embedded coordinator: everything between the caller and the services, from a log to its end.

What `server.app` builds for a process of its own is built here inside somebody else's: the same pipeline, engine, view,
front and gateway, but no ports, no signal handlers and nothing that is the process's (logging, collector, event loop
policy).  A life ends by `close`, which lets calls under way end; or by `die`, as kill -9 ends a process: from that
moment nothing it does reaches log or services, and all that was in memory only is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Final, cast

from msgspec import Struct

from coordinator.embedding.clock import ClockedLoop, FakeClock
from coordinator.engine.engine import Engine
from coordinator.engine.registry import Registry
from coordinator.front import CoordinatorFront
from coordinator.gateway.gateway import Gateway
from coordinator.lane import Lane
from coordinator.log.base import Log
from coordinator.log.memory import Crashed, MemoryLog
from coordinator.model.call import Call
from coordinator.model.records import Record
from coordinator.model.settings import EngineSettings, ServiceSettings
from coordinator.pipeline import Pipeline, shown
from coordinator.saga import App
from coordinator.scheduling import Scheduling
from coordinator.server.metrics import Metrics
from coordinator.view import View

APPEND_TIMEOUT_MS: Final = 5_000
VIEW_FILE: Final = "view.sqlite3"
QUIET_TURNS: Final = 10  # of the event loop without anything moving: who was just told something may act on it
LOOK_EVERY_S: Final = 0.02  # whether it still moves, where nothing tells


class Setup(Struct, frozen=True, kw_only=True):
    """What every life of one embedded coordinator is built from; ``clock`` is set where time stands still."""

    app: App | None
    name: str
    services: Mapping[str, ServiceSettings]
    clients: Mapping[str, Any]
    settings: EngineSettings
    now: Callable[[], int]
    clock: FakeClock | None
    directory: Path


class EvenRandom(Random):
    """Chance that always takes the middle, so that no jitter moves a test's timers."""

    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


class MortalLog(MemoryLog):
    """A memory log that tells when the process was made to end (`Fault.CRASH_BEFORE`, `Fault.CRASH_AFTER`)."""

    on_crash: Callable[[], None] | None = None

    def crash(self) -> None:
        super().crash()
        if self.on_crash is not None:
            self.on_crash()

    async def append(self, partition: int, records: list[bytes]) -> int:
        try:
            return await super().append(partition, records)
        except Crashed:  # nobody is left to hear of it, until the lane is buried
            never: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            return await never


class MortalView(View):
    """A view that can be left as a process leaves it that died: what was not written is not in the file."""

    async def abandon(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._flush_task is not None:
            await asyncio.wait([self._flush_task])
        if self._timer is not None:
            self._timer.cancel()
        self._release()


class EmbeddedPipeline(Pipeline):
    """The real pipeline, that can be cut off, and whose timers can be somebody else's affair."""

    life: Life

    def on_acquired(self, lane: Lane, told: int) -> None:
        super().on_acquired(lane, told)
        self.life.acquired()

    def confirmed(self, lane: Lane, base: int, records: list[Record]) -> None:
        if self.life.over.done():
            return  # what is in the log is found by the next life
        super().confirmed(lane, base, records)
        self.life.changed.set()

    def send(self, call: Call) -> None:
        if not self.life.over.done():
            super().send(call)

    def _pump(self) -> None:
        if not self.life.over.done():
            super()._pump()
            self.life.changed.set()

    def _arm(self, now: float) -> None:
        if self.life.setup.clock is None:
            super()._arm(now)

    @property
    def moving(self) -> bool:
        """Whether something is decided, on its way to the log, or called."""
        engine = self.engine
        return (
            self._pumping
            or bool(engine.reserved)
            or any(lane.outbox or lane.writing or not lane.acting for lane in self.lanes)
            or sum(service.in_flight for service in engine.services.values()) > self.life.asleep
        )

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


class EmbeddedScheduling(Scheduling):
    """The real schedules, whose timer can be somebody else's affair."""

    still = False

    def _set_timer(self, now: int) -> None:
        if not self.still:
            super()._set_timer(now)

    @property
    def moving(self) -> bool:
        return self._looking or bool(self._tasks)

    @property
    def due(self) -> float | None:
        return self._due[0][0] if self._due else None

    def pump(self) -> None:
        """The time has changed."""
        self._soon()


class Life:
    """See the module.  ``over`` is done as soon as it has ended, however."""

    def __init__(self, setup: Setup, log: Log, number: int) -> None:
        loop = asyncio.get_running_loop()
        self.setup = setup
        self.log = log
        self.over: asyncio.Future[None] = loop.create_future()
        self.changed = asyncio.Event()
        self.asleep = 0  # calls under way whose service takes its time, by the clock that stands still
        random = Random() if setup.clock is None else EvenRandom(0)
        kinds = {name: "grpc" if each.url.startswith("grpc") else "http" for name, each in setup.services.items()}
        registry = Registry(setup.app, kinds)
        engine = Engine(setup.settings, setup.services, registry, random)
        timed = loop if setup.clock is None else cast("asyncio.AbstractEventLoop", ClockedLoop(loop, setup.clock))
        self.gateway = Gateway(setup.services, setup.clients, timed)
        self.view = MortalView(setup.directory / VIEW_FILE, partial(shown, engine))
        self.pipeline = EmbeddedPipeline(
            log=log,
            engine=engine,
            gateway=self.gateway,
            view=self.view,
            metrics=Metrics(setup.name),
            clock=setup.now,
            random=random,
            instance=f"{setup.name}-{number}",
            address="",
            append_timeout_ms=APPEND_TIMEOUT_MS,
            probe=_lives,
            group_name=setup.name,
        )
        self.pipeline.life = self
        self.pipeline.at_rest = contextlib.nullcontext  # the collector is the process's
        self.front = CoordinatorFront(self.pipeline, registry, name=setup.name)
        self.front.scheduling = self.scheduling = EmbeddedScheduling(self.pipeline, self.front)
        self.scheduling.still = setup.clock is not None
        self._ready = asyncio.Event()
        self._viewed = False
        self._main: asyncio.Task[None] | None = None
        if isinstance(log, MortalLog):
            log.on_crash = self.die

    # ------------------------------------------------------------ beginning and end

    async def begin(self) -> None:
        """Returns when it accepts work, or has ended already; raises StartupError, CorruptLog among them."""
        await self.log.open()
        self.view.open()
        self._viewed = True
        self._main = main = asyncio.create_task(self.pipeline.run(), name="embedded-lanes")
        self.scheduling.start()
        ready = asyncio.ensure_future(self._ready.wait())
        try:
            ended: list[asyncio.Future[Any]] = [main, ready, self.over]
            await asyncio.wait(ended, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
        main.add_done_callback(lambda _: self.die())
        if main.done():
            self.check()

    def check(self) -> None:
        """Raises what ended the lanes, if something of the log did."""
        main = self._main
        if main is not None and main.done() and not main.cancelled() and (error := main.exception()) is not None:
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            raise error

    def acquired(self) -> None:
        if all(lane.acting or lane.stopped for lane in self.pipeline.lanes):
            self._ready.set()
        self.changed.set()

    def die(self) -> None:
        """kill -9, now."""
        if not self.over.done():
            self.over.set_result(None)
        self.changed.set()

    async def bury(self) -> None:
        """Releases what a dead process would have released by itself."""
        self.die()
        await self._stop()
        if self._viewed:
            await self.view.abandon()
        await self.log.close()

    async def close(self, drain_ms: int) -> None:
        """Takes nothing more in, waits for what is under way (calls for ``drain_ms`` at most), and ends."""
        engine = self.pipeline.engine
        self.front.stopping = True
        until = self.pipeline.loop.time() + drain_ms / 1000
        await self.settle(until)  # commands that move on by themselves may end
        engine.freeze()
        await self.settle(until)
        self.die()
        await self._stop()
        await self.view.close()
        await self.log.close()

    async def _stop(self) -> None:
        await self.scheduling.close()
        self.pipeline.stop()
        if self._main is not None:
            self._main.cancel()
            await asyncio.wait([self._main])
        await self.gateway.close()
        self.pipeline.stop()

    # ------------------------------------------------------------ standing still

    @property
    def moving(self) -> bool:
        return not self.over.done() and (self.pipeline.moving or self.scheduling.moving)

    def due(self) -> float | None:
        """When something is due next (ms since 1970)."""
        dues = (self.pipeline.engine.due(self.pipeline.now()), self.scheduling.due)
        return min((due for due in dues if due is not None), default=None)

    def pump(self) -> None:
        """Does what is due."""
        self.pipeline.pump()
        self.scheduling.pump()

    async def settle(self, until: float) -> bool:
        """Waits until nothing moves but by time or from outside; False if it still does at ``until`` (loop's time)."""
        turns = 0
        loop = self.pipeline.loop
        while turns < QUIET_TURNS and not self.over.done():
            if not self.moving:
                turns += 1
                await asyncio.sleep(0)
                continue
            turns = 0
            if loop.time() > until:
                return False
            self.changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self.changed.wait()
        return True


async def _lives(address: str, instance: str) -> bool:
    """Whether whoever fenced us lives: an embedded one does not, since the lock on the directory is ours."""
    if not address:
        return False
    from coordinator.server.transports import probe  # a daemon: here all of its transports are imported

    return await probe(address, instance)
