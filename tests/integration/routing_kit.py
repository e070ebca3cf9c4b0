"""Several instances of one group in one process, over one log in memory: everything is real, the links and listeners
are sockets, but who is a member, and who is to own what, is the test's to say (`World.agree`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

from prometheus_client import CollectorRegistry

from coordinator.cluster.base import Assignment, Member
from coordinator.cluster.group import Group
from coordinator.engine.engine import Engine
from coordinator.engine.registry import Registry
from coordinator.front import CoordinatorFront
from coordinator.front.routed import RoutedFront
from coordinator.gateway.gateway import Gateway
from coordinator.log.memory import MemoryLog, MemoryStorage
from coordinator.model.ids import partition_of
from coordinator.model.settings import BreakerSettings, EngineSettings, ServiceSettings
from coordinator.pipeline import Pipeline, shown
from coordinator.server.clock import Clock
from coordinator.server.metrics import Metrics
from coordinator.transport.base import Event
from coordinator.transport.grpc import GrpcServer
from coordinator.transport.http import HttpServer
from coordinator.transport.tcp import Identity, TcpServer
from coordinator.view import View
from tests.integration.daemon import Service

NAME = "orders"
PARTITIONS = 4

SHIP = {"name": "ship", "service": "shipping", "path": "/ship", "undo": {"path": "/back"}}
PAY = {"name": "pay", "service": "payments", "path": "/pay"}
ORDER = {"name": "order", "steps": [SHIP, PAY], "result": "${steps.pay}"}


class Assigned:
    """A membership that agrees on whatever the test says."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()
        self._agreement: Assignment | None = None

    def agree(self, agreement: Assignment) -> None:
        self._agreement = agreement
        self._changed.set()

    async def run(self, on_change: Callable[[Assignment], None]) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            assert self._agreement is not None
            on_change(self._agreement)

    async def leave(self) -> None:
        pass


class Instance:
    """One instance of the group; ``front`` is what its clients are served by."""

    def __init__(self, world: World, name: str, *, max_commands: int = 1000) -> None:
        self.world = world
        self.name = name
        self.alive = True
        services = {
            each: ServiceSettings(
                name=each, url=service.url, timeout_ms=5_000, breaker=BreakerSettings(failures=1000, reset_ms=100)
            )
            for each, service in world.services.items()
        }
        settings = EngineSettings(max_commands=max_commands, slow_retry_interval_ms=50, retry_jitter_ms=0)
        registry = Registry(None, dict.fromkeys(services, "http"))
        self.log = MemoryLog(PARTITIONS, storage=world.storage)
        self.gateway = Gateway(services, {}, asyncio.get_running_loop())
        engine = Engine(settings, services, registry, Random(7))
        self.view = View(world.directory / f"{name}.sqlite3", partial(shown, engine))
        self.view.open()
        self.pipeline = Pipeline(
            log=self.log,
            engine=engine,
            gateway=self.gateway,
            view=self.view,
            metrics=Metrics("test", "0"),
            clock=Clock().now,
            random=Random(7),
            instance=name,
            address="",
            append_timeout_ms=1_000,
            probe=_lives,
        )
        self.local = CoordinatorFront(self.pipeline, registry, name=NAME)
        self.group = Group(Member(name, ""), PARTITIONS, name=NAME, now=Clock().now)
        self.pipeline.group = self.group
        self.front = RoutedFront(self.local, self.group)
        self.group.on_look = self.front.look
        self.membership = Assigned()
        identity = Identity(instance=name, group=NAME)
        at: dict[str, Any] = {"host": "127.0.0.1", "port": 0}
        self.servers: dict[str, TcpServer | HttpServer | GrpcServer] = {
            "tcp": TcpServer(self.front, identity=identity, cluster=self.group, **at),
            "http": HttpServer(self.front, registry=CollectorRegistry(), name=NAME, **at),
            "grpc": GrpcServer(self.front, **at),
        }
        self._tasks: list[asyncio.Task[None]] = []

    # What `strangers.stranger` needs of a daemon.

    @property
    def ports(self) -> dict[str, int]:
        return {name: server.address[1] for name, server in self.servers.items()}

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.ports['http']}"

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.ports['grpc']}"

    @property
    def member(self) -> Member:
        return Member(self.name, f"127.0.0.1:{self.ports['tcp']}")

    @property
    def owned(self) -> list[int]:
        return [lane.partition for lane in self.pipeline.lanes if lane.acting]

    async def start(self) -> None:
        for server in self.servers.values():
            await server.start()
        self.pipeline.address = self.member.address
        self._tasks = [
            asyncio.create_task(self.pipeline.run()),
            asyncio.create_task(self.group.run(self.pipeline.lanes, self.membership)),
        ]

    async def kill(self) -> None:
        """What `kill -9` leaves of it: a log, and connections that break."""
        if not self.alive:
            return
        self.alive = False
        for task in self._tasks:
            task.cancel()
        self.log.crash()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        tcp = self.servers["tcp"]
        assert isinstance(tcp, TcpServer)
        assert tcp._server is not None
        tcp._server.close()
        for peer in list(tcp._peers):
            peer.abort()
        await self.group.peers.close()
        for server in self.servers.values():
            await server.close(0)
        await self.gateway.close()
        await self.view.close()


async def _lives(address: str, instance: str) -> bool:
    return True


class World:
    """The group, its log and its services."""

    def __init__(self, directory: Path, services: dict[str, Service]) -> None:
        self.directory = directory
        self.services = services
        self.storage = MemoryStorage(PARTITIONS)
        self.instances: dict[str, Instance] = {}
        self._generations = count(1)

    async def start(self, *names: str, **rest: Any) -> list[Instance]:
        """Instances that know each other, each of which owns its share."""
        for name in names:
            self.instances[name] = Instance(self, name, **rest)
            await self.instances[name].start()
        self.agree(self.shares())
        await self.until(lambda: all(each.front.ready()[0] and self.linked(each) for each in self.living))
        await self.until(lambda: all(map(self.sees_all, self.living)))
        return [self.instances[name] for name in names]

    @property
    def living(self) -> list[Instance]:
        return [each for each in self.instances.values() if each.alive]

    def linked(self, instance: Instance) -> bool:
        return len(instance.front.directory.links()) == len(self.living) - 1

    def sees_all(self, instance: Instance) -> bool:
        return all(map(instance.front.routes.served, range(PARTITIONS)))

    def shares(self) -> dict[int, str]:
        """Every living instance's equal share."""
        names = [each.name for each in self.living]
        return {partition: names[partition % len(names)] for partition in range(PARTITIONS)}

    def agree(self, owners: dict[int, str]) -> None:
        """The group agrees on its living members, and on who is to own what."""
        members = {each.name: each.member for each in self.living}
        agreement = Assignment(next(self._generations), members, owners)
        for each in self.living:
            each.membership.agree(agreement)

    async def expel(self, *instances: Instance) -> None:
        """The group forgets them: they keep what they own, and acquire nothing more."""
        for each in instances:
            each.membership.agree(Assignment(-1, {}, {}))
        await self.until(lambda: not any(each.group.succession.member for each in instances))

    async def until(self, holds: Callable[[], bool]) -> None:
        """Looks each turn of the loop or so: what makes it true is spread over lanes, links and groups."""
        async with asyncio.timeout(15):
            while not holds():  # noqa: ASYNC110
                await asyncio.sleep(0.002)

    def owner(self, id: str) -> Instance:
        """Who acts for the command's partition."""
        partition = partition_of(id, PARTITIONS)
        (found,) = [each for each in self.living if partition in each.owned]
        return found

    async def close(self) -> None:
        for each in self.instances.values():
            await each.kill()


def ids(prefix: str = "order") -> Iterator[str]:
    return (f"{prefix}-{n}" for n in count())


def id_at(partition: int, prefix: str = "order") -> str:
    """An id that the partition holds."""
    return next(id for id in ids(prefix) if partition_of(id, PARTITIONS) == partition)


class Seen:
    """A watcher that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._changed = asyncio.Event()

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        self._changed.set()

    @property
    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]

    @property
    def steps(self) -> list[str]:
        return [event.record["step"] for event in self.events if event.kind == "step" and event.record]

    async def until(self, *kinds: str) -> Event:
        """The first event of one of these kinds."""
        async with asyncio.timeout(20):
            while True:
                for event in self.events:
                    if event.kind in kinds:
                        return event
                self._changed.clear()
                await self._changed.wait()


@contextlib.asynccontextmanager
async def world(directory: Path) -> AsyncIterator[World]:
    started = {name: await Service().start() for name in ("shipping", "payments")}
    made = World(directory, started)
    try:
        yield made
    finally:
        await made.close()
        for service in started.values():
            await service.stop()
