"""Builds the daemon from its Config, starts everything in order, and stops it in the reverse one (`server.drain`).

Start: check the log → listen (health answers; work is refused as `starting`) → join the group, where there is one →
acquire and replay every partition that is ours → resume what is uncompleted → ready → accept.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
from collections import Counter
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import structlog
from msgspec import structs

import coordinator
from coordinator import recovery
from coordinator.cluster.base import Member, Membership
from coordinator.cluster.group import Group
from coordinator.engine.engine import Engine
from coordinator.engine.registry import Registry
from coordinator.errors import CorruptLog
from coordinator.front import CoordinatorFront
from coordinator.front.routed import RoutedFront
from coordinator.gateway.gateway import Gateway
from coordinator.log.base import Log
from coordinator.log.sqlite import SqliteLog
from coordinator.model.command import State
from coordinator.pipeline import Pipeline, shown
from coordinator.saga import App
from coordinator.scheduling import Scheduling
from coordinator.server.clock import Clock
from coordinator.server.config import Config
from coordinator.server.drain import Drain
from coordinator.server.logging import setup as setup_logging
from coordinator.server.metrics import Metrics, Status
from coordinator.server.transports import Transports, probe
from coordinator.snapshotting import SnapshotSettings
from coordinator.transport.base import Front
from coordinator.view import View

log = structlog.get_logger(__name__)


def run(config: Config, app: App | None) -> int:
    """Runs a daemon until it is told to stop; returns its exit code.  Raises StartupError."""
    setup_logging(config.logging.format, config.logging.level)
    import uvloop

    gc.disable()  # until it is ready: a replay makes millions of objects, and no cycles
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(Daemon(config, app).run())


class Daemon:
    """One process.  ``started`` is set once it listens, ``addresses`` then has host and port by transport."""

    def __init__(self, config: Config, app: App | None, *, clock: Clock | None = None) -> None:
        self.config = config.resolved()
        self.app = app
        self.clock = clock or Clock()
        self.instance = f"{socket.gethostname()}-{os.getpid()}-{os.urandom(3).hex()}"
        self.metrics = Metrics(self.config.coordinator.name, coordinator.__version__)
        self.metrics.dedupe_horizon_s = self.config.coordinator.dedupe_horizon / 1000
        self.started = asyncio.Event()
        self.addresses: dict[str, tuple[str, int]] = {}
        self._stop = asyncio.Event()
        self._now = asyncio.Event()
        self._signals = 0

    def stop(self) -> None:
        """What SIGTERM does: the first time drains, the second time stops at once."""
        self._signals += 1
        (self._stop if self._signals == 1 else self._now).set()

    async def run(self) -> int:
        """Serves until stopped; 0 when everything was settled or is safe in the log."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(NotImplementedError, RuntimeError):
                loop.add_signal_handler(number, self.stop)
        store = make_log(self.config)
        try:
            if not await self._opened(store):
                return 0
            if self.config.log.kind == "kafka":
                await recovery.check_group(store, self.config.coordinator.name)
            return await self._serve(store)
        finally:
            await store.close()

    async def _opened(self, store: Log) -> bool:
        """Opens the log, which may take a while; False if the daemon was told to stop before it answered."""
        opening, stop = asyncio.ensure_future(store.open()), asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait([opening, stop], return_when=asyncio.FIRST_COMPLETED)
            if opening.done():
                opening.result()
            return opening.done()
        finally:
            for task in (opening, stop):
                task.cancel()
            await asyncio.gather(opening, stop, return_exceptions=True)

    async def _serve(self, store: Log) -> int:
        config = self.config
        services = config.service_settings()
        registry = Registry(self.app, {name: _kind(each.url) for name, each in services.items()})
        engine = Engine(config.engine_settings(), services, registry, Random())
        gateway = Gateway(services, self.app.clients if self.app else {}, asyncio.get_running_loop())
        view = View(Path(config.log.data_dir) / "view.sqlite3", partial(shown, engine))
        view.open()
        pipeline = Pipeline(
            log=store,
            engine=engine,
            gateway=gateway,
            view=view,
            metrics=self.metrics,
            clock=self.clock.now,
            random=Random(),
            instance=self.instance,
            address="",
            append_timeout_ms=int(config.log.append_timeout),
            probe=probe,
            group_name=config.coordinator.name,
            snapshots=SnapshotSettings(
                recovery_target_ms=int(config.coordinator.recovery_target),
                retain_ms=int(config.log.retain),
                dedupe_horizon_ms=int(config.coordinator.dedupe_horizon),
            ),
        )
        local = CoordinatorFront(
            pipeline, registry, name=config.coordinator.name, payload_bytes_max=config.limits.payload_bytes
        )
        group = self._group() if config.log.kind == "kafka" else None
        pipeline.group = group
        front: CoordinatorFront | RoutedFront = local if group is None else _routed(local, group)
        local.scheduling = Scheduling(pipeline, front)
        self.metrics.status = lambda: status(pipeline, front, self.clock.now())
        transports = Transports(front, config, self.metrics, self.instance, group)
        try:
            await transports.start()
            self.addresses = transports.addresses
            pipeline.address = transports.advertised
            if not engine.settings.callback_url:  # what port 0 has become is known only now
                engine.settings = structs.replace(engine.settings, callback_url=transports.http_url)
            log.info("listening", **{name: f"{host}:{port}" for name, (host, port) in self.addresses.items()})
            self.started.set()
            local.scheduling.start()
            return await self._until_stopped(pipeline, front, transports, group)
        finally:
            await local.scheduling.close()
            await transports.close(0)
            await gateway.close()
            await view.close()

    def _group(self) -> Group:
        return Group(
            Member(self.instance, ""),
            self.config.log.partitions,
            name=self.config.coordinator.name,
            now=self.clock.now,
            session_timeout_ms=int(self.config.log.session_timeout),
        )

    def _membership(self, group: Group, address: str) -> Membership:
        from coordinator.cluster.kafka import KafkaGroup

        if not address:
            log.warning("listen.tcp is off: the other instances cannot forward to this one, nor see it die at once")
        settings = self.config.log
        return KafkaGroup(
            settings.bootstrap,
            settings.topic,
            settings.partitions,
            group=f"{self.config.coordinator.name}.{settings.topic}.members",  # a name may be used with two topics
            me=Member(self.instance, address),
            held=group.claims,
            session_timeout_ms=int(settings.session_timeout),
        )

    async def _until_stopped(
        self,
        pipeline: Pipeline,
        front: CoordinatorFront | RoutedFront,
        transports: Transports,
        group: Group | None,
    ) -> int:
        lanes = asyncio.create_task(pipeline.run(), name="lanes")
        tasks = [lanes]
        if group is not None:
            membership = self._membership(group, transports.advertised_tcp)
            tasks.append(asyncio.create_task(group.run(pipeline.lanes, membership), name="group"))
        ready = asyncio.create_task(self._tell_when_ready(pipeline, front), name="ready")
        stop = asyncio.create_task(self._stop.wait(), name="stop")
        try:
            await asyncio.wait([*tasks, stop], return_when=asyncio.FIRST_COMPLETED)
            if not any(task.done() for task in tasks):
                drain = Drain(pipeline, front, transports, group, self._now, self.config.coordinator.drain_timeout)
                await drain.run()
        finally:
            for task in (ready, stop, lanes):
                task.cancel()
            await asyncio.wait([ready, stop, lanes])
            if group is not None:
                await group.leave()  # while it still runs: the others then need not wait for the session timeout
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(ready, stop, *tasks, return_exceptions=True)
        for result in results[2:]:
            _raise_fatal(result)
        return 0

    async def _tell_when_ready(self, pipeline: Pipeline, front: Front) -> None:
        while not front.ready()[0]:
            pipeline.changed.clear()
            await pipeline.changed.wait()
        tune_collector()
        log.info("ready", uncompleted=pipeline.engine.under_way, instance=self.instance)


def tune_collector() -> None:
    """Objects die by reference count here; the cycle collector only has to find the rare cycle.

    What start-up made stays, so it is not looked at again; looking every 700 allocations cost 7 % of a saga (measured).
    It is not collected either, since clients wait for this very moment: what garbage it left is little, and stays.
    """
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    gc.enable()


def _raise_fatal(result: Any) -> None:
    """A lane that ended by itself: a log that cannot be read stops the daemon with its own clear text."""
    if isinstance(result, BaseExceptionGroup):
        corrupt, rest = result.split(CorruptLog)
        if corrupt is not None:
            raise _leaf(corrupt)
        if rest is not None:
            raise rest
    if isinstance(result, Exception):
        raise result


def _leaf(group: BaseExceptionGroup[Any]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def make_log(config: Config) -> Log:
    """The log that the configuration names."""
    settings = config.log
    if settings.kind == "sqlite":
        return SqliteLog(Path(settings.data_dir))
    from coordinator.log.kafka import KafkaLog

    return KafkaLog(
        settings.bootstrap,
        settings.topic,
        settings.partitions,
        name=config.coordinator.name,
        replication=settings.replication or None,
    )


def _routed(local: CoordinatorFront, group: Group) -> RoutedFront:
    front = RoutedFront(local, group)
    group.on_look = front.look
    return front


def _kind(url: str) -> str:
    return "grpc" if url.startswith("grpc") else "http"


def status(pipeline: Pipeline, front: Front, now: int) -> Status:
    """How things stand, for the metrics' gauges."""
    engine = pipeline.engine
    states = Counter(command.state.value for command in engine.commands.values())
    states[State.WAITING.value] += engine.under_way - len(engine.commands)  # those that sleep
    ready = front.ready()[0]
    suspended = engine.suspended(now)
    full = len(engine.slots) + len(engine.reserved) >= engine.settings.max_commands
    return Status(
        commands=states,
        oldest_age_ms=max((now - at for at in engine.first_submitted()), default=0),
        slots_used=len(engine.slots),
        slots_max=engine.settings.max_commands,
        calls={name: service.in_flight for name, service in engine.services.items()},
        breakers={name: service.breaker.shown(now).value for name, service in engine.services.items()},
        suspended=sorted(suspended),
        refusing=not ready or full or bool(suspended and engine.settings.suspend == "coordinator"),
        ready=ready,
        log_end={lane.partition: lane.end for lane in pipeline.lanes},
        epochs={lane.partition: lane.epoch for lane in pipeline.lanes},
        quarantined={
            lane.partition: engine.quarantined[lane.partition].total for lane in pipeline.lanes if lane.acting
        },
        stopped={lane.partition: int(lane.stopped is not None) for lane in pipeline.lanes},
    )
