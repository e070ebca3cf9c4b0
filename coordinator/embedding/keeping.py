"""What keeps an embedded coordinator alive: one `Life` after the other, each replayed from the log of the one before.

A *keeper* task brings up the next life whenever one ends.  A request that was under way then is asked again, as a
client does that lost its connection: submissions by their id, data by their signal id; where a request of another kind
is no longer legal the second time, its first time had arrived.

What a test's script did not expect (`mistake`) is raised by whatever the test waits for, or asks from then on.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import tempfile
from collections.abc import Awaitable, Callable, Generator, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import IO, Any, Final, Literal, Self, TypeVar

from coordinator.embedding.clock import FakeClock
from coordinator.embedding.life import Life, Setup
from coordinator.embedding.scripted import Scripted, ServiceCall
from coordinator.errors import IllegalState, LogCorrupt, Starting, StartupError, Stopping
from coordinator.log.base import Log
from coordinator.model.moments import timestamp
from coordinator.model.settings import EngineSettings, ServiceSettings
from coordinator.saga import App
from coordinator.server.clock import Clock
from coordinator.transport.base import Front

T = TypeVar("T")

LOCK_FILE: Final = "embedded.lock"
SETTLE_MAX_S: Final = 10.0  # of real time: what still moves then has come to a stop in somebody's code


class Over(Exception):
    """The life that was asked has ended before it answered."""


class Kept:
    """The part of `Embedded` that is not asked for by its user: see the module."""

    def __init__(
        self,
        app: App | None,
        *,
        services: Mapping[str, Any],
        settings: EngineSettings,
        clock: FakeClock | None,
        open_log: Callable[[], Log],
        data_dir: Path | None,
        name: str,
        drain_ms: int,
    ) -> None:
        """``services``: settings, scripts and clients by name; ``open_log`` gives each life its own hold on the log."""
        self.services: Mapping[str, Scripted] = MappingProxyType(
            {name: each for name, each in services.items() if isinstance(each, Scripted)}
        )
        self.calls: list[ServiceCall] = []
        self.settle_max_s = SETTLE_MAX_S
        self._app = app
        self._services = services
        self._settings = settings
        self._clock = clock
        self._open_log = open_log
        self._data_dir = data_dir
        self._name = name
        self._drain_ms = drain_ms
        self._state: Literal["new", "open", "closed"] = "new"
        self._life: Life | None = None  # that accepts work
        self._latest: Life | None = None  # which may only be on its way
        self._turned = asyncio.Event()  # look again: a life has begun, or there will be none any more
        self._failed: Exception | None = None
        self._mistaken: asyncio.Future[Exception]  # what a script did not expect, if it has happened
        self._told = False  # of that, by raising it
        self._asked: set[asyncio.Future[Any]] = set()  # cancelled one by one: a future each would wait for has a list
        self._stack = contextlib.AsyncExitStack()

    # ------------------------------------------------------------ life

    async def __aenter__(self) -> Self:
        if self._state != "new":
            raise RuntimeError("an embedded coordinator is entered once; make another one")
        self._state = "open"
        self._mistaken = asyncio.get_running_loop().create_future()
        async with contextlib.AsyncExitStack() as stack:
            keeper = asyncio.create_task(self._keep(self._setup(stack)), name=f"{self._name}-keeper")
            stack.push_async_exit(partial(self._end, keeper))
            if self._clock is not None:
                stack.callback(self._clock.drive(self))
            await self._turned.wait()
            if self._failed is not None:
                raise self._failed
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(kind, error, trace)
        if kind is None and not self._told:
            self._check_mistakes()

    def _setup(self, stack: contextlib.AsyncExitStack) -> Setup:
        """What each life is made of; what it needs on disk goes with ``stack``."""
        if self._data_dir is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="coordinator-")))
        else:
            directory = self._data_dir
            stack.enter_context(locked(directory))
        plugged = {name: each for name, each in self._services.items() if not isinstance(each, ServiceSettings)}
        return Setup(
            app=self._app,
            name=self._name,
            services={
                name: each if isinstance(each, ServiceSettings) else ServiceSettings(name=name)
                for name, each in self._services.items()
            },
            clients={
                name: each.client(name, self) if isinstance(each, Scripted) else each for name, each in plugged.items()
            },
            settings=self._settings,
            now=Clock().now if self._clock is None else self._clock.now,
            clock=self._clock,
            directory=directory,
        )

    async def _keep(self, setup: Setup) -> None:
        """Brings up one life after the other, until cancelled, or until the log does not let one begin."""
        try:
            for number in itertools.count(1):
                self._latest = life = Life(setup, self._open_log(), number)
                life.over.add_done_callback(self._interrupt)
                await life.begin()
                if not life.over.done():
                    self._life = life
                    self._turned.set()
                    await asyncio.wait([life.over])
                self._life = None
                await life.bury()
                life.check()
        except Exception as error:
            self._failed = error
        finally:
            self._turned.set()

    async def _end(self, keeper: asyncio.Task[None], kind: Any, *_: Any) -> None:
        """Ends the present life: on real time and in good order, what is under way is waited for."""
        self._state = "closed"
        keeper.cancel()
        await asyncio.wait([keeper])
        life, self._life = self._life, None
        if life is not None and not life.over.done() and kind is None and self._clock is None:
            await life.close(self._drain_ms)
        elif self._latest is not None:
            await self._latest.bury()
        self._turned.set()

    async def _living(self, before: Life | None = None) -> Life:
        """The present life, or the next one after ``before``."""
        if self._state == "new":
            raise Starting("this coordinator has not begun: use it inside `async with`")
        while True:
            if self._state == "closed":
                raise Stopping("this coordinator has ended: its `async with` is left")
            self._check_mistakes()
            if self._failed is not None:
                raise LogCorrupt(f"this coordinator has stopped: {self._failed}") from self._failed
            life = self._life
            if life is not None and life is not before and not life.over.done():
                return life
            self._turned.clear()
            await self._turned.wait()

    async def crash(self) -> None:
        """Ends the coordinator as kill -9 would, and starts it again from its log; returns when it is ready.

        Scripted services and the clock are the world outside, and go on.
        """
        life = await self._living()
        life.die()
        await self._living(life)

    # ------------------------------------------------------------ asking

    async def _ask(
        self,
        what: Callable[[Front], Awaitable[T]],
        *,
        arrived: Callable[[Front], Awaitable[T]] | None = None,
    ) -> T:
        """Asks the present life, and the next one if that one ends before its answer.

        ``arrived``: what to answer when the second time the request is not legal any more.
        """
        life, again = await self._living(), False
        while True:
            try:
                return await self._answered(life, what(life.front))
            except Over:
                life, again = await self._living(life), True
            except IllegalState:
                if not again or arrived is None:
                    raise
                return await self._answered(life, arrived(life.front))

    async def _answered(self, life: Life, asked: Awaitable[T]) -> T:
        """What a life answers; raises `Over` if it ends first, and the mistakes of scripts."""
        answer = asyncio.ensure_future(asked)
        self._asked.add(answer)
        try:
            if not (life.over.done() or self._mistaken.done()):
                await asyncio.wait([answer])
        finally:
            self._asked.discard(answer)
            answer.cancel()
            await asyncio.wait([answer])
            if not answer.cancelled():
                answer.exception()  # nobody else is to be told of it
        if life.over.done():
            raise Over
        if answer.cancelled():
            self._check_mistakes()
        return answer.result()

    def _interrupt(self, *_: Any) -> None:
        """What is asked now is not waited for any more: `_answered` knows why."""
        for answer in self._asked:
            answer.cancel()

    @property
    def front(self) -> Front:
        """The port that every transport stands on, for what has no method here; of the present life only."""
        if self._life is None:
            raise Starting("this coordinator has no life now")
        return self._life.front

    @property
    def clock(self) -> FakeClock:
        """The clock that it was given."""
        if self._clock is None:
            raise RuntimeError("this coordinator runs on real time: give it clock=coordinator.FakeClock(…)")
        return self._clock

    async def settle(self) -> None:
        """`settled` without the account of it (`clock.Driven`)."""
        until = asyncio.get_running_loop().time() + self.settle_max_s
        while True:
            life = await self._living()
            if not await life.settle(until):
                raise AssertionError(f"after {self.settle_max_s:g} s something still moves:\n{self._moving_now(life)}")
            self._check_mistakes()
            if self._life is life and not life.over.done():
                return

    @property
    def moving(self) -> bool:
        return self._life is None or self._life.moving

    def due(self) -> float | None:
        """When something is due next (ms since 1970), None if nothing is."""
        life = self._life
        return None if life is None else life.due()

    def pump(self) -> None:
        """Does what is due."""
        if self._life is not None:
            self._life.pump()

    def _next_due(self) -> str | None:
        if self._clock is not None:
            return self._clock.next_due
        due = self.due()
        return None if due is None else timestamp(round(due))

    def _moving_now(self, life: Life) -> str:
        engine = life.pipeline.engine
        calls = [
            f"{command.id}: {work.step} asks {work.service.name}"
            for command in engine.commands.values()
            for work in command.work.values()
            if work.stage.value == "calling"
        ]
        return "\n".join(calls) or "the log does not confirm an append"

    # ------------------------------------------------------------ scripted services (`scripted.Setting`)

    async def pass_time(self, delay_ms: int) -> None:
        """A service takes its time."""
        if self._clock is None:
            await asyncio.sleep(delay_ms / 1000)
            return
        life = self._life
        if life is None:
            return
        life.asleep += 1
        life.changed.set()
        try:
            await self._clock.sleep(delay_ms)
        finally:
            life.asleep -= 1

    def called(self, call: ServiceCall) -> None:
        """A service was asked."""
        self.calls.append(call)

    def mistake(self, error: Exception) -> None:
        """Something happened that a script did not expect: from now on, whoever waits or asks is told."""
        if self._mistaken.done():
            self._mistaken.result().add_note(f"and then: {error}")
        else:
            self._mistaken.set_result(error)
            self._interrupt()

    def _check_mistakes(self) -> None:
        if self._mistaken.done():
            self._told = True
            raise self._mistaken.result()


@contextlib.contextmanager
def locked(directory: Path) -> Generator[None]:
    """One coordinator at a time in a directory: of two, each would take the other's partition for its own again."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / LOCK_FILE).open("w")
    except OSError as error:
        raise StartupError(f"the data directory {directory} cannot be used: {error.strerror}") from error
    with lock:
        try:
            _lock(lock)
        except OSError as error:
            raise StartupError(f"another embedded coordinator is at work in {directory}") from error
        yield


def _lock(lock: IO[str]) -> None:
    """Held until the file is closed, or the process ends; raises OSError."""
    try:
        import fcntl
    except ImportError:  # a system without it: nobody is kept out
        return
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
