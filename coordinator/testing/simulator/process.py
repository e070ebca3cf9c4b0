"""One instance of the daemon, as often as it lives: all of it that is between its sockets, on a simulated machine.

Real are the pipeline, the engine, the view, the front; in a group also the routing, the links, the listener that serves
peers, and the drain.  What is played is only what a process reaches by the network (log, services, clients, the group's
broker) and its clock.  A life ends by `die`, from that moment nothing it does reaches anybody, and its connections
break; or by `stop`, as SIGTERM ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar, cast

from coordinator.cluster.base import Member
from coordinator.cluster.group import Group
from coordinator.cluster.peers import LinkSettings, Peers
from coordinator.engine.engine import Engine
from coordinator.engine.registry import Registry
from coordinator.errors import CoordinatorError
from coordinator.front import CoordinatorFront
from coordinator.front.routed import RoutedFront
from coordinator.lane import Lane
from coordinator.log.owned import OwnedPartition
from coordinator.model.command import CommandView, Submission
from coordinator.model.ids import TOKEN_BYTES, CommandId
from coordinator.model.records import Record
from coordinator.model.settings import BreakerSettings, EngineSettings, ServiceSettings
from coordinator.pipeline import Pipeline, shown
from coordinator.scheduling import Scheduling
from coordinator.server.clock import Clock
from coordinator.server.metrics import Metrics
from coordinator.snapshotting import SnapshotSettings
from coordinator.testing.simulator.membership import SESSION_S, SimulatedMembership
from coordinator.testing.simulator.network import SERVES_PEER
from coordinator.testing.simulator.services import Wire
from coordinator.testing.simulator.storage import DistantLog
from coordinator.testing.virtual import Strand
from coordinator.transport.base import Front, Unwatch, Want, Watcher
from coordinator.transport.tcp import Identity, TcpServer
from coordinator.view import View

if TYPE_CHECKING:
    from coordinator.server.transports import Transports
    from coordinator.testing.simulator.world import World

T = TypeVar("T")

APPEND_TIMEOUT_MS = 1_000
DRAIN_TIMEOUT_MS = 5_000
PORT = 7070
_BEGAN_NS = 1_800_000_000_000_000_000  # the date at which every simulation begins


class Gone(Exception):
    """The connection is lost, or nobody answers at the other end."""


class WatchedPipeline(Pipeline):
    """The real pipeline; the judge looks over its shoulder, and tokens come from the seed."""

    process: Process

    def owned_partition(self, partition: int) -> OwnedPartition:
        owned = super().owned_partition(partition)
        self.process.tokens[partition] = owned.token
        return owned

    def on_acquired(self, lane: Lane, *rest: Any) -> None:
        world = self.process.world
        if not self.process.dead:
            world.note("acquired", self.process.name, lane.partition, lane.epoch)
            world.judge.acquired(self.process, lane)
        super().on_acquired(lane, *rest)

    def confirmed(self, lane: Lane, base: int, records: list[Record]) -> None:
        if not self.process.dead:
            self.process.world.note("acts", self.process.name, lane.partition, base, len(records))
            self.process.world.judge.acts(self.process, lane.partition, base, records)
        super().confirmed(lane, base, records)


class _AtOnce:
    """An executor that has no thread."""

    def submit(self, function: Callable[..., T], *args: Any) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(function(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def shutdown(self, wait: bool = True) -> None:
        pass


class _InOrder(dict[Any, None]):
    """A set that goes by the order in which things came, and not by where they lie in memory."""

    def add(self, item: Any) -> None:
        self[item] = None

    def discard(self, item: Any) -> None:
        self.pop(item, None)


class MortalView(View):
    """A view without threads, that can be left behind by a process that died."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._thread = self._aside = _AtOnce()  # type: ignore[assignment]

    def abandon(self) -> None:
        self._writer.close()
        self._reader.close()


class WatchedLocal(CoordinatorFront):
    """The real front of one instance; what it admits must have had a slot."""

    process: Process

    def submit_as(
        self, id: CommandId, lane: Lane, submission: Submission, watcher: Watcher | None, want: Want
    ) -> Unwatch:
        before = len(self.engine.reserved)
        unwatch = super().submit_as(id, lane, submission, watcher, want)
        if len(self.engine.reserved) > before:
            self.process.world.judge.admitted(self.process)
        return unwatch


class WatchedFront(RoutedFront):
    """The real routing; what another instance has forwarded must not come here."""

    process: Process

    def _from_a_client(self) -> None:
        self.process.world.judge.hold(not SERVES_PEER.get(), f"{self.process.name} would forward what was forwarded")

    def submit(self, submission: Submission, watcher: Watcher | None, want: Want = "events") -> tuple[str, Unwatch]:
        self._from_a_client()
        return super().submit(submission, watcher, want)

    def watch(self, id: str, watcher: Watcher, after: str | None = None) -> Unwatch:
        self._from_a_client()
        return super().watch(id, watcher, after)

    async def get(self, id: str, wait_ms: int = 0) -> CommandView:
        self._from_a_client()
        return await super().get(id, wait_ms)


class _Listeners:
    """What `server.transports.Transports` is to a drain: the listener for peers, and the connections of clients."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def drain(self) -> None:
        if self._process.server is not None:
            await self._process.server.drain()

    async def close(self, grace_ms: int) -> None:
        process = self._process
        until = process.world.loop.time() + grace_ms / 1000
        while process.connections and process.world.loop.time() < until:  # noqa: ASYNC110 - in virtual time
            await asyncio.sleep(0.05)
        process.hang_up("the instance has stopped")
        if process.server is not None:
            await process.server.close(grace_ms)


class Process:
    """One life of one instance."""

    def __init__(self, world: World, machine: Machine, life: int) -> None:
        self.world = world
        self.machine = machine
        self.name = f"{machine.name}.{life}"
        self.strand: Strand = world.loop.strand(self.name)
        self.dead = False
        self.random = Random(world.random.random())
        self.tokens: dict[int, bytes] = {}
        self.connections: dict[asyncio.Future[Any], None] = {}  # what clients wait for, in order: a set has none
        self.group: Group | None = None
        self.server: TcpServer | None = None
        self.drained = False
        self._heirs: set[str] = set()  # who was there all the time to take what this instance, which drains, has
        self._stop, self._now = asyncio.Event(), asyncio.Event()
        world.network.joins(self)
        self._build()
        self.main = world.loop.spawn(self.strand, self._live(), self.name)

    def new_token(self) -> bytes:
        return self.random.randbytes(TOKEN_BYTES)

    def _build(self) -> None:
        world, plan = self.world, self.world.plan
        services = {
            name: ServiceSettings(
                name=name, max_in_flight=plan.max_in_flight, breaker=BreakerSettings(failures=3, reset_ms=300)
            )
            for name in plan.services
        }
        settings = EngineSettings(max_commands=plan.max_commands, slow_retry_interval_ms=100, retry_jitter_ms=50)
        registry = Registry(world.app, dict.fromkeys(services, "http"))
        self.engine = Engine(settings, services, registry, self.random)
        self.engine.stash_min = 1 + plan.seed % 4  # of a handful of commands, some are put aside
        self.log = DistantLog(world, self)
        self.wire = Wire(world, self)
        self.view = MortalView(self.machine.directory / "view.sqlite3", partial(shown, self.engine))
        self.view.open()
        self.pipeline = WatchedPipeline(
            log=self.log,
            engine=self.engine,
            gateway=self.wire,
            view=self.view,
            metrics=Metrics("simulation"),
            clock=Clock(self._wall_ns, lambda: world.loop.now_ns).now,
            random=self.random,
            instance=self.name,
            address=f"{self.machine.name}:{PORT}",
            append_timeout_ms=APPEND_TIMEOUT_MS,
            probe=self._probe,
            snapshots=SnapshotSettings(
                recovery_target_ms=plan.recovery_target_ms,
                retain_ms=plan.retain_ms,
                dedupe_horizon_ms=plan.retain_ms or 3_600_000,
            ),
        )
        self.pipeline.process = self
        self.pipeline.owned = world.owned
        self.pipeline.new_token = self.new_token
        self.local = WatchedLocal(self.pipeline, registry, name="simulation")
        self.local.process = self
        self.front: Front = self.local
        if plan.group:
            self._join()
        self.local.scheduling = Scheduling(self.pipeline, self.front)

    def _join(self) -> None:
        """What `server.app` builds where instances share a log."""
        world = self.world
        self.group = group = Group(
            Member(self.name, f"{self.machine.name}:{PORT}"),
            world.plan.partitions,
            name="simulation",
            now=self.pipeline.now,
            session_timeout_ms=round(SESSION_S * 1000),
            peers=partial(Peers, settings=LinkSettings(ping_ms=1_500)),
        )
        self.pipeline.group = group
        front = WatchedFront(self.local, group)
        front.process = self
        group.on_look = self._looked
        self.front = front
        self.server = TcpServer(
            front,
            host=self.machine.name,
            port=PORT,
            identity=Identity(instance=self.name, group="simulation"),
            clock=lambda: world.loop.now_ns // 1_000_000,
            cluster=group,
        )
        self.server._peers = _InOrder()  # type: ignore[assignment]

    # ------------------------------------------------------------ life

    async def _live(self) -> None:
        """As `server.app` has it."""
        tasks: list[asyncio.Task[Any]] = [asyncio.create_task(self.pipeline.run())]
        if self.group is not None:
            assert self.server is not None
            await self.server.start()
            membership = SimulatedMembership(self.world, self, self.group.me, self.group.claims)
            tasks.append(asyncio.create_task(self.group.run(self.pipeline.lanes, membership)))
        assert self.local.scheduling is not None
        self.local.scheduling.start()
        stop = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait([*tasks, stop], return_when=asyncio.FIRST_COMPLETED)
            if not any(task.done() for task in tasks):
                await self._drain()
        finally:
            await self.local.scheduling.close()
            for task in (stop, *tasks):
                task.cancel()
            results = await asyncio.gather(stop, *tasks, return_exceptions=True)
            if self.group is not None:
                await self.group.leave()
        for result in results[1:]:
            if isinstance(result, Exception):
                raise result

    async def _drain(self) -> None:
        listeners = cast("Transports", _Listeners(self))
        if self.group is not None:
            self._heirs = self._could_take()
        drain = self.world.drain(self.pipeline, self.local, listeners, self.group, self._now, DRAIN_TIMEOUT_MS)
        began = self.world.loop.time()
        await drain.run()
        in_time = self.world.loop.time() - began < DRAIN_TIMEOUT_MS / 1000
        if in_time and not self._now.is_set():
            self.world.judge.drained(self, self._heirs)
        await self.view.close()
        self.drained = True

    def _could_take(self) -> set[str]:
        """Who is there to take what this instance has."""
        assert self.group is not None
        succession = self.group.succession
        return {each for each in succession.candidates() if each in succession.told and each != self.name}

    def _looked(self) -> None:
        cast("RoutedFront", self.front).look()
        if self._heirs:
            self._heirs &= self._could_take()

    def stop(self) -> None:
        """SIGTERM; the second one stops at once."""
        stopping = self._now if self._stop.is_set() else self._stop
        self.world.loop.post(self.strand, stopping.set)

    def _wall_ns(self) -> int:
        return _BEGAN_NS + self.world.loop.now_ns + self.machine.skew_ns

    async def _probe(self, address: str, instance: str) -> bool:
        """Whether the peer answers: not when it is dead or paused, and now and then not although it is well."""
        world = self.world
        await asyncio.sleep(world.latency())
        peer = next((each for each in world.living() if each.name == instance), None)
        if peer is not None and not peer.strand.paused and not world.chance("network/probe"):
            return True
        if peer is not None:
            await asyncio.sleep(1.0)
        return False

    def in_force(self, partition: int) -> bool:
        """Whether what it appends there counts; one that does not know it yet answers from the past."""
        return self.tokens.get(partition) == self.world.judge.token[partition]

    # ------------------------------------------------------------ death

    def die(self, where: str) -> None:
        """kill -9, now: what is running goes on to the end of its callback, and reaches nobody."""
        if self.dead:
            return
        self.world.fault(f"crash {where}", self.name)
        self._end()
        if not self.machine.gone:
            self.machine.restart_later()

    def _end(self) -> None:
        self.dead = True
        self.log.crash()
        self.world.loop.end(self.strand)
        self.world.network.died(self)
        self.hang_up("the connection broke")
        if not self.drained:
            self.world.loop.call_soon(self.view.abandon, context=self.world.strand.context)

    def hang_up(self, why: str) -> None:
        """Clients that still wait lose their connections."""
        for reply in self.connections:
            if not reply.done():
                reply.set_exception(Gone(why))
        self.connections.clear()

    def exits(self) -> None:
        """It has drained, and ends by itself."""
        if not self.dead:
            self.world.note("exit", self.name)
            self._end()
            if not self.machine.gone:
                self.machine.restart_later()

    # ------------------------------------------------------------ clients

    async def ask(self, what: Callable[[Front], Awaitable[T]], patience: float) -> T:
        """A client's request over a connection of its own, served on this process's strand.

        Raises CoordinatorError as the front does, and Gone: the process died, or did not answer within ``patience``
        seconds; the handler is then cancelled, as a server does that sees a connection close.
        """
        world = self.world
        await asyncio.sleep(world.latency())
        if self.dead:
            raise Gone("connection refused")
        reply: asyncio.Future[T] = world.loop.create_future()
        self.connections[reply] = None
        serving = world.loop.spawn(self.strand, self._serve(what, reply))
        try:
            if world.chance("network/client"):
                patience = min(patience, world.random.random())
            async with asyncio.timeout(patience):
                return await reply
        except TimeoutError:
            raise Gone("no answer") from None
        finally:
            self.connections.pop(reply, None)
            reply.cancel()
            world.loop.post(self.strand, serving.cancel)

    async def _serve(self, what: Callable[[Front], Awaitable[T]], reply: asyncio.Future[T]) -> None:
        try:
            result = await what(self.front)
        except CoordinatorError as error:
            self.world.later(self.world.latency(), _settle, reply, None, error)
        except Exception as error:
            self.world.judge.hold(False, f"{self.name} answered a client with {error!r}")
        else:
            self.world.later(self.world.latency(), _settle, reply, result, None)


def _settle(reply: asyncio.Future[T], result: T | None, error: Exception | None) -> None:
    if reply.done():
        return
    if error is not None:
        reply.set_exception(error)
    else:
        reply.set_result(result)  # type: ignore[arg-type]


class Machine:
    """Where an instance lives: its disk, its clock, and the order to start it again."""

    def __init__(self, world: World, name: str, directory: Path) -> None:
        self.world = world
        self.name = name
        self.directory = directory
        self.skew_ns = 0
        self.lives = 0
        self.gone = False  # for good
        self.no_group = False  # the way to the group's broker is cut
        self.process: Process | None = None

    def boot(self) -> Process:
        """Starts the next life, if none is; returns the one that is."""
        if self.process is not None and not self.process.dead:
            return self.process
        world = self.world
        if world.chance("view/boot"):
            world.fault("view lost", self.name)
            for path in self.directory.glob("view.sqlite3*"):
                path.unlink()
        self.lives += 1
        world.note("boot", self.name, self.lives)
        self.process = process = Process(world, self, self.lives)
        process.main.add_done_callback(self._ended, context=world.strand.context)
        return process

    def _ended(self, main: asyncio.Task[None]) -> None:
        process = self.process
        assert process is not None
        if process.main is main and process.drained:
            process.exits()
            return
        with contextlib.suppress(asyncio.CancelledError):
            error = main.exception()
            self.world.judge.hold(False, f"{self.name} stopped by itself: {error!r}")

    def is_back(self, before: Process) -> bool:
        """Whether another life than that one is ready."""
        process = self.process
        return process is not None and process is not before and not process.dead and process.front.ready()[0]

    def restart_later(self) -> None:
        world = self.world
        world.later(world.random.choice((0.05, 1, 6)) * world.random.random(), self._restart)

    def _restart(self) -> None:
        if not self.gone:
            self.boot()
