"""One run: the machines, what goes wrong with them, and the two phases.

    trouble   clients submit, operators interfere, and whatever the seed has in store goes wrong
    healing   nothing goes wrong any more, somebody sees to what is parked: within `HEAL_S` all must have ended

The trace of a run is a hash of everything that is noted, so two runs of a seed can be told to be the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Coroutine, Generator, MutableMapping
from functools import partial
from hashlib import blake2b
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import structlog
from msgspec import Struct

from coordinator import filler
from coordinator.errors import CoordinatorError
from coordinator.log.base import Pointer
from coordinator.log.memory import MemoryStorage
from coordinator.log.owned import OwnedPartition
from coordinator.model.command import FINAL, CommandView
from coordinator.saga import App
from coordinator.server.drain import Drain
from coordinator.testing.simulator.clients import Client, operators, repair, show
from coordinator.testing.simulator.judge import Judge
from coordinator.testing.simulator.membership import GroupCoordinator
from coordinator.testing.simulator.network import Network
from coordinator.testing.simulator.people import answer
from coordinator.testing.simulator.plan import WHOLE, Cut, Plan, app, plan, stream
from coordinator.testing.simulator.process import Gone, Machine, Process
from coordinator.testing.simulator.services import Ledger, breakdowns
from coordinator.testing.virtual import Deadlock, VirtualLoop

HEAL_S: Final = 90.0
AUDIT_S: Final = 20.0
_LOOK_S: Final = 0.25
_CALM_LOOKS: Final = 3


class Report(Struct, frozen=True):
    """What became of a run.  ``violations`` is empty where every promise was kept; ``trace`` is the hash of all that
    happened; ``faults`` counts what went wrong, by kind; times are virtual seconds."""

    seed: int
    cut: Cut
    violations: tuple[str, ...]
    trace: str
    seconds: float
    callbacks: int
    commands: int
    ends: dict[str, int]
    appends: int
    calls: int
    acted: int
    epochs: int
    lives: int
    faults: dict[str, int]
    journal: tuple[str, ...] = ()


class World:
    """See the module.  ``owned`` is what owns a partition: the real one, or a test's broken one."""

    def __init__(
        self,
        plan: Plan,
        directory: Path,
        *,
        owned: type[OwnedPartition] = OwnedPartition,
        keep_journal: bool = False,
        users: App | None = None,
    ) -> None:
        self.plan = plan
        self.owned = owned
        self.drain: type[Drain] = Drain
        self.users = users is not None  # the commands are a user's
        self.app: App = app() if users is None else users
        self.random = stream(plan.seed, "run")
        self.loop = VirtualLoop(  # type: ignore[abstract]  # what it lacks must not happen
            stream(plan.seed, "order of callbacks"), self._uncaught
        )
        self.strand = self.loop.strand("world")
        self.trouble = True
        self.over = False  # from here on only what is left is torn down
        self.travelling = 0  # messages under way
        self.appends = 0
        self.calls = 0
        self.faults: Counter[str] = Counter()
        self.journal: list[str] | None = [] if keep_journal else None
        self._trace = blake2b(digest_size=16)
        self.broken = asyncio.Event()
        self.network = self.loop.network = Network(self)
        self.group = GroupCoordinator(self)
        self.storage = MemoryStorage(plan.partitions)
        self.ledger = Ledger(self)
        self.judge = Judge(self)
        self.machines = []
        for number in range(plan.instances):
            home = directory / f"m{number}"
            home.mkdir()
            self.machines.append(Machine(self, f"m{number}", home))
        self.clients = [Client(self, order) for order in plan.orders]
        self.clients += [Client(self, order, twin=True) for order in plan.orders if order.twin]
        self._tasks: list[asyncio.Task[None]] = []
        self._calm = 0
        self._crashed = False  # as the plan wants it, once

    # ------------------------------------------------------------ for all who play

    def note(self, *what: object) -> None:
        """Something happened: it goes into the trace."""
        if self.over:
            return
        line = f"{self.loop.now_ns} {what!r}"
        self._trace.update(line.encode())
        if self.journal is not None:
            self.journal.append(f"{self.loop.now_ns / 1e9:10.6f}  {'  '.join(map(str, what))}")

    def fault(self, kind: str, *what: object) -> None:
        self.faults[kind] += 1
        self.note(kind, *what)

    def chance(self, name: str) -> bool:
        """Whether this goes wrong now."""
        rate = self.plan.rates[name]
        return self.trouble and rate > 0 and self.random.random() < rate

    def crashes(self, kind: str, *, after: bool) -> bool:
        """Whether the plan has the process die at this append, or call: the one that was counted last, or is next."""
        crash = self.plan.crash
        if crash is None or crash.kind != kind or crash.after != after or self._crashed:
            return False
        made = self.appends if kind == "append" else self.calls + (not after)
        self._crashed = crash.number == made
        return self._crashed

    def latency(self) -> float:
        """Of one message (s): mostly short, now and then long."""
        return 0.0002 + self.random.expovariate(1000 if self.random.random() < 0.9 else 30)

    def later(self, delay: float, callback: Callable[..., object], *args: Any) -> None:
        """A message of the world arrives after ``delay`` seconds."""
        self.travelling += 1

        def arrive() -> None:
            self.travelling -= 1
            callback(*args)

        self.loop.post_later(self.strand, delay, arrive)

    def post_later(self, strand: Any, delay: float, callback: Callable[..., object], *args: Any) -> None:
        """A message to a process arrives after ``delay`` seconds, if it lives then."""
        self.loop.post_later(strand, delay, callback, *args)

    def living(self) -> list[Process]:
        return [each.process for each in self.machines if each.process is not None and not each.process.dead]

    def any_process(self) -> Process | None:
        living = self.living()
        return self.random.choice(living) if living else None

    def _uncaught(self, message: str, error: BaseException | None) -> None:
        if "never retrieved" not in message and "destroyed" not in message:
            self.judge.hold(False, f"uncaught: {message}: {error!r}")

    def logged(self, level: str, event: str, fields: MutableMapping[str, Any]) -> None:
        """The program's own log; an exception in it is a mistake that was survived."""
        self.note("log", level, event, str(fields.get("reason", "")))
        self.judge.hold(not fields.get("exc_info"), f"the program logged an exception: {event}")

    # ------------------------------------------------------------ the two phases

    def run(self, course: Coroutine[Any, Any, None] | None = None) -> None:
        """Both phases, or the course of a test; what is broken is in `judge.violations`."""
        try:
            self.loop.run(course or self._run())
        except Deadlock as error:
            self.judge.hold(False, f"deadlock: {error}")
        finally:
            self.over = True
            self.loop.close()
            for process in self.living():
                process.view.abandon()

    @property
    def trace(self) -> str:
        return self._trace.hexdigest()

    async def _run(self) -> None:
        for machine in self.machines:
            self.later(self.random.random() * 0.5, machine.boot)
        for client in self.clients:
            self._spawn(client.run())
        troubles = [self._spawn(each) for each in (breakdowns(self), operators(self), self._accidents(), self._rolls())]
        for order in self.plan.orders:
            self._spawn(answer(self, order))
        await self._until(self.plan.until, lambda: False)
        for task in troubles:
            task.cancel()
        self._heal()
        self._spawn(repair(self))
        if not self.broken.is_set() and not await self._until(self.loop.time() + HEAL_S, self._rests):
            self._restless()
        if not self.broken.is_set():
            self.judge.at_rest()
            await self._audit()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self.loop.spawn(self.strand, coroutine)
        task.add_done_callback(self._played)
        self._tasks.append(task)
        return task

    def _played(self, task: asyncio.Task[None]) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            error = task.exception()
            self.judge.hold(error is None, f"a player failed: {error!r}")

    async def _until(self, moment: float, done: Callable[[], bool]) -> bool:
        """Waits until it is done, or the moment has come, or a promise is broken; whether it is done."""
        while not done():
            left = moment - self.loop.time()
            if left <= 0 or self.broken.is_set():
                return False
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left, _LOOK_S)):
                    await self.broken.wait()
        return True

    def _heal(self) -> None:
        """The trouble is over; perhaps one of two machines stays dead."""
        self.note("healing")
        self.trouble = False
        self.ledger.down.clear()
        lost = None
        if len(self.machines) > 1 and "crash" in self.plan.faults and self.random.random() < 0.3:
            lost = self.random.choice(self.machines)
        self.network.mend_all()
        for machine in self.machines:
            machine.no_group = False
            if machine.process is not None and not machine.process.dead:
                machine.process.log.cut_off = False
                self.loop.wake(machine.process.strand)
        if lost is not None and lost.process is not None:
            lost.gone = True
            lost.process.die("for good")

    def _rests(self) -> bool:
        """Whether it has been at rest for a while: partitions may still change hands, and words be under way."""
        self._calm = self._calm + 1 if self._still() else 0
        return self._calm > _CALM_LOOKS

    def _still(self) -> bool:
        """Whether all that was begun has ended, every partition is owned, and every instance is ready."""
        if self.travelling or self.judge.unended():
            return False
        if any(not task.done() for task in self._tasks[: len(self.clients)]):
            return False
        if not all(len(self.judge.owners(partition)) == 1 for partition in range(self.plan.partitions)):
            return False
        return not self.plan.group or all(process.front.ready()[0] for process in self.living())

    def _restless(self) -> None:
        """Says what does not come to rest."""
        for client, task in zip(self.clients, self._tasks, strict=False):
            self.judge.hold(task.done(), f"{client.name} still waits for {client.order.id} at {client.waits_at}")
        unended = self.judge.unended()
        self.judge.hold(not unended, f"{unended} did not end within {HEAL_S:g} s of peace")
        for partition in range(self.plan.partitions):
            owners = self.judge.owners(partition)
            self.judge.hold(len(owners) == 1, f"partition {partition} is owned by {owners or 'nobody'}")
        for process in self.living():
            ready, why = process.front.ready()
            self.judge.hold(ready or not self.plan.group, f"{process.name} is not ready: {why}")
        self.judge.hold(False, f"the world does not come to rest; {self.travelling} messages are under way")

    async def _audit(self) -> None:
        """What the owners show of every command is what the log says."""
        for order in self.plan.orders:
            shown: CommandView | None = None
            until = self.loop.time() + AUDIT_S
            while (shown is None or shown.state not in FINAL) and self.loop.time() < until:  # its ack may be under way
                if self.judge.deleted(order.id):
                    break
                for process in self.living():
                    with contextlib.suppress(Gone, CoordinatorError):
                        shown = await process.ask(partial(show, order.id), 5)
            else:
                self.judge.hold(shown is not None and shown.state in FINAL, f"nobody knows the end of {order.id}")
            if shown is not None:
                self.judge.answered("the audit", shown)
            if self.broken.is_set():
                return

    # ------------------------------------------------------------ accidents

    async def _accidents(self) -> None:
        """What befalls machines out of the blue."""
        while True:
            await asyncio.sleep(self.random.uniform(0, 2))
            for machine in self.machines:
                process = machine.process
                if process is None or process.dead:
                    continue
                if self.chance("crash/second"):
                    process.die("out of the blue")
                elif self.chance("pause/second"):
                    self.fault("pause", process.name)
                    self.loop.pause(process.strand)
                    self.later(self.random.choice((0.5, 3, 9)) * self.random.random(), self.loop.wake, process.strand)
                if self.chance("log/second"):
                    self.fault("cut off from the log", process.name)
                    process.log.cut_off = True
                    self.later(self.random.uniform(0.2, 4), setattr, process.log, "cut_off", False)
                if self.chance("group/second"):
                    self.fault("cut off from the group", process.name)
                    machine.no_group = True
                    self.later(
                        self.random.choice((1, 4, 12)) * self.random.random(), setattr, machine, "no_group", False
                    )
                if self.chance("drain/second"):
                    self.fault("SIGTERM", process.name)
                    process.stop()
                if self.chance("clock/second"):
                    self.fault("clock jump", process.name)
                    machine.skew_ns += round(self.random.uniform(-5e9, 5e9))
            for partition in range(self.plan.partitions):
                self._strangers(partition)
            for one, other in combinations([machine.name for machine in self.machines], 2):
                if self.plan.group and self.chance("links/second"):
                    self.fault("peers cut", one, other)
                    self.network.cut(one, other)
                    self.later(self.random.choice((0.5, 4, 12)) * self.random.random(), self.network.mend, one, other)

    async def _rolls(self) -> None:
        """Now and then every instance is restarted, one after the other, the next one when the last is ready."""
        while True:
            await asyncio.sleep(self.random.uniform(0, 4))
            if not self.chance("drain/roll"):
                continue
            self.fault("rolling restart")
            for machine in self.machines:
                stopped = machine.process
                if stopped is None or stopped.dead:
                    continue
                stopped.stop()
                while not machine.is_back(stopped):  # noqa: ASYNC110 - in virtual time
                    await asyncio.sleep(0.25)

    def _strangers(self, partition: int) -> None:
        """What somebody else does to the log: a zombie's pointer, or none; bytes that are no record of ours."""
        storage, random = self.storage, self.random
        if self.chance("pointer/second"):
            end = storage.first[partition] + len(storage.records[partition])
            known = storage.pointers.pop(partition, Pointer(end + 9, end))
            other = random.randint(0, end)
            zombies = (Pointer(known.position, other), Pointer(other, known.covered), Pointer(other, other), None)
            pointer = random.choice(zombies)
            self.fault("pointer lost" if pointer is None else "pointer overwritten", partition)
            if pointer is not None:
                storage.pointers[partition] = pointer
        if self.chance("garbage/second"):
            garbage = [random.randbytes(random.randint(0, 40)) for _ in range(random.randint(1, 3))]
            self.fault("garbage", partition)
            self.judge.landed(partition, storage.append(partition, garbage), garbage)


# ---------------------------------------------------------------- one run


def simulate(
    seed: int,
    cut: Cut = WHOLE,
    *,
    owned: type[OwnedPartition] = OwnedPartition,
    journal: bool = False,
) -> Report:
    """Runs one seed and says what became of it; the same arguments give the same report, to the last bit."""
    return play(lambda directory: World(plan(seed, cut), directory, owned=owned, keep_journal=journal), cut)


def play(make: Callable[[Path], World], cut: Cut = WHOLE) -> Report:
    """Runs a world that lives in a directory of its own for so long."""
    directory = Path(tempfile.mkdtemp(prefix="simulation-", dir=_memory()))
    collecting = gc.isenabled()
    gc.disable()  # finalizers run when the collector likes, and not when the seed does
    try:
        world = make(directory)
        with _overheard(world), _in_its_time(world):
            world.run()
    finally:
        if collecting:
            gc.enable()
        shutil.rmtree(directory, ignore_errors=True)
    judge = world.judge
    ends = Counter(fold.finished.state for fold in judge.folds.values() if fold.finished is not None)
    return Report(
        seed=world.plan.seed,
        cut=cut,
        violations=tuple(judge.violations),
        trace=world.trace,
        seconds=round(world.loop.time(), 3),
        callbacks=world.loop.callbacks,
        commands=len(judge.folds),
        ends=dict(sorted(ends.items())),
        appends=world.appends,
        calls=world.calls,
        acted=judge.acted,
        epochs=judge.epochs,
        lives=sum(machine.lives for machine in world.machines),
        faults=dict(sorted(world.faults.items())),
        journal=tuple(world.journal or ()),
    )


def _memory() -> str | None:
    """A directory in memory, where there is one: views are small files, and hundreds of them a second."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


@contextlib.contextmanager
def _in_its_time(world: World) -> Generator[None]:
    """The one module that measures what its own work takes measures nothing here."""
    before = vars(filler)["perf_counter"]
    vars(filler)["perf_counter"] = world.loop.time
    try:
        yield
    finally:
        vars(filler)["perf_counter"] = before


@contextlib.contextmanager
def _overheard(world: World) -> Generator[None]:
    """What the program logs goes to the world, not to the terminal."""

    def structured(_: Any, level: str, fields: MutableMapping[str, Any]) -> Any:
        world.logged(level, str(fields.get("event")), fields)
        raise structlog.DropEvent

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            world.logged(record.levelname, record.getMessage(), {"exc_info": record.exc_info})

    configured = structlog.is_configured()
    structlog.configure()  # as it is: so that our modules' events go there (coordinator.logs)
    processors = structlog.get_config()["processors"]
    before = list(processors)
    processors[:] = [structured]  # in place: a logger that was used before has this very list
    plain, handler = logging.getLogger("coordinator"), Handler()
    propagate, plain.propagate = plain.propagate, False
    plain.addHandler(handler)
    try:
        yield
    finally:
        plain.removeHandler(handler)
        plain.propagate = propagate
        processors[:] = before
        if not configured:
            structlog.reset_defaults()
