"""The coordinator as a library: the same engine, inside a user's own process.

    async with coordinator.embedded(app, data_dir="orders") as c:
        view = await c.run(PlaceOrder(order_id="o-1", amount=1999))

`Embedded` is a handle that outlives what it holds: beneath it is one `Life` after the other, each replayed from the log
that the one before has left.  A *keeper* task brings up the next life whenever one ends, so a request that was under
way when the process "crashed" is asked again, as a client would that lost its connection: submissions by their id, data
by their signal id; where a request of another kind is no longer legal the second time, its first time had arrived.

With a `FakeClock` it is the kit for testing sagas (docs/testing.md): time stands still, services follow a script, and
what the script does not expect fails the test wherever it next looks.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import IO, Any, Final, Literal, TypeVar
from urllib.parse import unquote, urlsplit

import msgspec
from msgspec import Struct

from coordinator.embedding.clock import FakeClock
from coordinator.embedding.life import Life, MortalLog, Setup
from coordinator.embedding.scripted import Scripted, ServiceCall
from coordinator.engine.views import timestamp
from coordinator.errors import (
    ConfigError,
    CoordinatorError,
    IllegalState,
    InvalidPayload,
    LogCorrupt,
    Starting,
    StartupError,
    Stopping,
    UnknownCommand,
    UnknownType,
    WaitTimeout,
)
from coordinator.log.base import Log
from coordinator.log.memory import MemoryStorage
from coordinator.log.sqlite import SqliteLog
from coordinator.model.command import FINAL, CommandView, Operation, Submission
from coordinator.model.durations import parse_duration
from coordinator.model.ids import CommandId, new_command_id
from coordinator.model.settings import EngineSettings, ServiceSettings
from coordinator.saga import App
from coordinator.server.clock import Clock
from coordinator.transport.base import Event, Front

T = TypeVar("T")

Services = Mapping[str, Any] | Collection[str]

ACTOR: Final = "embedded"  # who asks, where the caller does not say
CALLBACK_URL: Final = "http://embedded.invalid"  # nobody can reach it: a test hands it to `callback`
SETTLE_MAX_S: Final = 10.0  # of real time: what still moves then has come to a stop in somebody's code
PATIENCE_S: Final = 2.0  # of real time, of who waits for a command that nothing moves
FOREVER_MS: Final = 3_600_000  # in one go
LIST_PAGE: Final = 1000
_CALLBACK: Final = re.compile(r".*/v1/callbacks/([^/]+)/([^/]+)/([^/]+)")


class Standstill(Struct, frozen=True):
    """What is waited for while nothing moves: ``next_due`` is the next moment at which something happens by itself
    (RFC 3339, None: nothing does), ``commands`` tells of each command under way what `Embedded.explain` does."""

    now: str
    next_due: str | None
    commands: dict[str, dict[str, Any]]

    def __str__(self) -> str:
        lines = [f"{id}: {told.get('summary') or told.get('state')}" for id, told in self.commands.items()]
        return "\n".join([f"at {self.now}, next due: {self.next_due or 'nothing'}", *lines])


class _Over(Exception):
    """The life that was asked has ended before it answered."""


class Embedded:
    """A coordinator in this process; `coordinator.embedded` makes one.  To be entered once, with ``async with``.

    All methods raise CoordinatorError, as every transport tells it; under a FakeClock also AssertionError, where a
    script did not expect what happened.  Durations are text (``"5s"``).  ``services`` has the scripted services by
    name, ``calls`` what they were asked, in order.
    """

    def __init__(
        self,
        app: App | None,
        *,
        data_dir: str | Path | None,
        services: Services,
        clock: FakeClock | None,
        settings: EngineSettings,
        name: str,
        drain_timeout: str,
        log: Callable[[], Log] | None = None,
    ) -> None:
        self._app = app
        self._data_dir = None if data_dir is None else Path(data_dir)
        self._clock = clock
        self._settings = settings
        self._name = name
        self._drain_ms = parse_duration(drain_timeout)
        storage = MemoryStorage()
        self._open_log = log or (lambda: MortalLog(storage=storage))
        if data_dir is not None:
            directory = data_dir
            self._open_log = lambda: SqliteLog(directory)
        self._given = _services(app, services, scripted=clock is not None)
        scripted = {name: each for name, each in self._given.items() if isinstance(each, Scripted)}
        self.services: Mapping[str, Scripted] = MappingProxyType(scripted)
        self.calls: list[ServiceCall] = []
        self._life: Life | None = None
        self._state: Literal["new", "open", "closed"] = "new"
        self._turned = asyncio.Event()  # a life has begun, or there will be none any more
        self._failed: BaseException | None = None
        self._mistakes: list[Exception] = []
        self._mistaken: asyncio.Event = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._stack = contextlib.AsyncExitStack()
        self._numbers = itertools.count(1)

    # ------------------------------------------------------------ life

    async def __aenter__(self) -> Embedded:
        if self._state != "new":
            raise RuntimeError("an embedded coordinator is entered once; make another one")
        self._state = "open"
        async with contextlib.AsyncExitStack() as stack:
            setup = self._setup(stack)
            self._keeper = asyncio.create_task(self._keep(setup), name=f"{self._name}-keeper")
            stack.push_async_callback(self._end)
            if self._clock is not None:
                stack.callback(self._clock.drive(self))
            try:
                await self._living()
            except LogCorrupt as error:
                raise (error.__cause__ or error) from None  # a StartupError: it never began
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        life = self._life
        if kind is None and life is not None and self._clock is None:
            await life.close(self._drain_ms)
        await self._stack.aclose()
        if kind is None:
            self._check_mistakes()

    async def _end(self) -> None:
        self._state = "closed"
        assert self._keeper is not None
        self._keeper.cancel()
        await asyncio.wait([self._keeper])
        self._turned.set()

    def _setup(self, stack: contextlib.AsyncExitStack) -> Setup:
        if self._data_dir is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="coordinator-")))
        else:
            directory = self._data_dir
            stack.enter_context(_locked(directory))
        settings = {
            name: each if isinstance(each, ServiceSettings) else ServiceSettings(name=name)
            for name, each in self._given.items()
        }
        clients = {
            name: each.client(name, self) if isinstance(each, Scripted) else each
            for name, each in self._given.items()
            if not isinstance(each, ServiceSettings)
        }
        return Setup(
            app=self._app,
            name=self._name,
            services=settings,
            clients=clients,
            settings=self._settings,
            now=Clock().now if self._clock is None else self._clock.now,
            clock=self._clock,
            directory=directory,
            seed=None if self._clock is None else 0,
        )

    async def _keep(self, setup: Setup) -> None:
        """Brings up one life after the other, until cancelled, or until the log does not let one begin."""
        life: Life | None = None
        try:
            for number in itertools.count(1):
                life = Life(setup, self._open_log(), number)
                await life.begin()
                if not life.over.done():
                    self._life = life
                    self._turned.set()
                    await life.over
                    life.check()
                self._life = None
                self._turned.clear()
                await life.bury()
        except Exception as error:
            self._failed = error
        finally:
            self._life = None
            self._turned.set()
            if life is not None:
                await life.bury()

    async def _living(self, before: Life | None = None) -> Life:
        """The present life, or the next one after ``before``."""
        while True:
            self._check_mistakes()
            if self._failed is not None:
                raise LogCorrupt(f"the coordinator has stopped: {self._failed}") from self._failed
            if self._state == "new":
                raise Starting("this coordinator has not begun: use it inside `async with`")
            if self._state == "closed":
                raise Stopping("this coordinator has ended: its `async with` is left")
            life = self._life
            if life is not None and life is not before and not life.over.done():
                return life
            if life is not None:  # its end is about to be noticed
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
            except _Over:
                life, again = await self._living(life), True
            except IllegalState:
                if not again or arrived is None:
                    raise
                return await self._answered(life, arrived(life.front))

    async def _answered(self, life: Life, asked: Awaitable[T]) -> T:
        """What a life answers; raises `_Over` if it ends first, and the mistakes of scripts."""
        answer = asyncio.ensure_future(asked)
        mistaken = asyncio.ensure_future(self._mistaken.wait())
        try:
            await asyncio.wait([answer, life.over, mistaken], return_when=asyncio.FIRST_COMPLETED)
            if life.over.done():
                raise _Over
            if not answer.done():
                self._check_mistakes()
            return answer.result()
        finally:
            mistaken.cancel()
            if not answer.done():
                answer.cancel()
            await asyncio.wait([answer, mistaken])
            if not answer.cancelled():
                answer.exception()  # nobody else is to be told of it

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

    # ------------------------------------------------------------ commands

    async def submit(
        self,
        what: Any,
        payload: Any = msgspec.UNSET,
        *,
        id: str | None = None,
        version: int | None = None,
        wait: str | None = None,
        delay: str | None = None,
        timeout: str | None = None,
        attributes: Mapping[str, str | int | float | bool] | None = None,
        priority: int = 0,
    ) -> CommandView:
        """Begins a command; returns once that is durable, or when it has ended if it does so within ``wait``.

        ``what`` is an instance of a command's class (then it is the payload too), the class or the name of a type, or a
        definition (a dict).  ``delay``: it begins so much later.  ``timeout``: its deadline.  The same ``id`` with the
        same payload is the same command.
        """
        type, known, definition, payload = self._what(what, payload)
        submission = Submission(
            id=id if id is not None else self._new_id(type),
            type=type,
            version=version if version is not None else known,
            definition=definition,
            payload=payload,
            priority=priority,
            timeout=timeout,
            attributes=dict(attributes or {}),
            delay=delay,
        )
        waits_ms = 0 if wait is None else _duration(wait, "$.wait")
        view, _ = await self._ask(lambda front: front.submit_and_wait(submission, 0))
        if not waits_ms or view.state in FINAL:
            return view
        return await self._waited(view.id, waits_ms)

    async def run(
        self,
        what: Any,
        payload: Any = msgspec.UNSET,
        *,
        within: str | None = None,
        id: str | None = None,
        version: int | None = None,
        delay: str | None = None,
        timeout: str | None = None,
        attributes: Mapping[str, str | int | float | bool] | None = None,
        priority: int = 0,
    ) -> CommandView:
        """Submits a command and waits for its end, as `submit` and `wait`."""
        view = await self.submit(
            what,
            payload,
            id=id,
            version=version,
            delay=delay,
            timeout=timeout,
            attributes=attributes,
            priority=priority,
        )
        return view if view.state in FINAL else await self.wait(view.id, within=within)

    async def wait(self, id: str, *, within: str | None = None) -> CommandView:
        """The command when it has ended; raises WaitTimeout if it does not ``within`` a time.

        A FakeClock is moved by this up to ``within``, and without ``within`` not at all: then WaitTimeout says what the
        command waits for as soon as nothing moves any more for a while (of real time, so that another task may act).
        """
        view = await self._waited(id, None if within is None else _duration(within, "$.within"))
        if view.state in FINAL:
            return view
        told = await self.explain(id)
        still = "" if self._clock is None else f"; it is {timestamp(self._clock.now())}, next due: {self._next_due()}"
        raise WaitTimeout(f"{id} has not ended: {told.get('summary') or view.state.value}{still}")

    async def get(self, id: str) -> CommandView:
        """The command as it is; raises UnknownCommand."""
        return await self._ask(lambda front: front.get(id))

    async def list(
        self,
        *,
        state: str | None = None,
        type: str | None = None,
        attributes: Mapping[str, Any] | None = None,
        limit: int = 100,
    ) -> list[CommandView]:
        """Commands, under way and ended, the newest first."""
        found: list[CommandView] = []
        wanted = {name: _text(value) for name, value in (attributes or {}).items()}
        cursor: str | None = None
        while len(found) < limit:
            size, start = min(LIST_PAGE, limit - len(found)), cursor
            page = await self._ask(
                lambda front, size=size, start=start: front.list_commands(  # type: ignore[misc]
                    state=state, type=type, attributes=wanted, limit=size, cursor=start
                )
            )
            found += page.commands
            cursor = page.next_cursor
            if cursor is None:
                break
        return found

    async def history(self, id: str) -> Sequence[dict[str, Any]]:
        """Every record of it, in log order."""
        return await self._ask(lambda front: front.history(id))

    async def explain(self, id: str) -> dict[str, Any]:
        """Why it is not moving: ``{"state", "summary", "waits", …}``."""
        return await self._ask(lambda front: front.explain(id))

    async def diagram(self, id: str) -> str:
        """Mermaid of its steps with their states."""
        return await self._ask(lambda front: front.diagram(id))

    async def watch(self, id: str, *, after: str | None = None) -> AsyncGenerator[Event, None]:
        """Events of a command, first what is recorded after the position ``after``, then as they happen, to its end."""
        before: Life | None = None
        while True:
            before = life = await self._living(before)
            events: asyncio.Queue[Event] = asyncio.Queue()
            unwatch = life.front.watch(id, events.put_nowait, after)
            try:
                while True:
                    event = await self._answered(life, events.get())
                    if event.kind == "error":
                        raise event.error or CoordinatorError()
                    if event.kind in ("accepted", "step"):
                        after = event.position
                    yield event
                    if event.kind == "final":
                        return
            except _Over:
                continue
            finally:
                unwatch()

    # ------------------------------------------------------------ people, data, operators

    async def provide(
        self, id: str, name: str, value: Any, *, signal_id: str | None = None, by: str = ACTOR
    ) -> CommandView:
        """Data for whoever waits for ``name`` in the command, or will; the same ``signal_id`` counts once."""
        signal = os.urandom(8).hex() if signal_id is None else signal_id
        return await self._ask(lambda front: front.provide(id, name, value, signal_id=signal, by=by))

    async def decide(
        self,
        id: str,
        step: str,
        *,
        approve: bool = True,
        by: str = ACTOR,
        comment: str = "",
        roles: Collection[str] = (),
    ) -> CommandView:
        """A person's decision, who has ``roles``."""
        return await self._ask(
            lambda front: front.decide(id, step, approve=approve, by=by, comment=comment, roles=roles),
            arrived=lambda front: front.get(id),
        )

    async def decisions(self) -> Sequence[dict[str, Any]]:
        """Decisions that are waited for, with their input, the oldest first."""
        return await self._ask(lambda front: front.decisions())

    async def callback(self, url: str, value: Any = None) -> None:
        """Delivers ``value`` to a `Saga.callback_url`, as a service does that answers later."""
        match = _CALLBACK.fullmatch(urlsplit(url).path)
        if match is None:
            raise UnknownCommand(f"{url!r} is no callback address of a command")
        id, name, token = map(unquote, match.groups())
        await self._ask(lambda front: front.callback(id, name, token, value))

    async def pause(self, id: str, *, reason: str = "", by: str = ACTOR) -> CommandView:
        """Makes no more calls for it until it is resumed."""
        return await self._control(id, Operation.PAUSE, reason, by)

    async def resume(self, id: str, *, reason: str = "", by: str = ACTOR) -> CommandView:
        return await self._control(id, Operation.RESUME, reason, by)

    async def cancel(self, id: str, *, reason: str = "", by: str = ACTOR) -> CommandView:
        """Undoes all that it did."""
        return await self._control(id, Operation.CANCEL, reason, by)

    async def abort(self, id: str, *, reason: str = "", by: str = ACTOR) -> CommandView:
        """Ends it as it is, without undo."""
        return await self._control(id, Operation.ABORT, reason, by)

    async def retry(self, id: str, *, reason: str = "", by: str = ACTOR) -> CommandView:
        """Goes on after the last success."""
        return await self._control(id, Operation.RETRY, reason, by)

    async def requeue(
        self, id: str, step: str, *, input: Any = msgspec.UNSET, reason: str = "", by: str = ACTOR
    ) -> CommandView:
        """A dead-lettered step again, its input replaced if one is given."""
        given = input is not msgspec.UNSET
        return await self._control(
            id, Operation.REQUEUE, reason, by, step=step, input=input if given else None, replace_input=given
        )

    async def resolve(self, id: str, step: str, *, reason: str = "", by: str = ACTOR) -> CommandView:
        """Marks an undo that cannot be made as done by hand."""
        return await self._control(id, Operation.RESOLVE, reason, by, step=step)

    async def _control(self, id: str, operation: Operation, reason: str, by: str, **rest: Any) -> CommandView:
        return await self._ask(
            lambda front: front.control(id, operation, reason=reason, by=by, **rest),
            arrived=lambda front: front.get(id),
        )

    async def dead_letters(self) -> Sequence[dict[str, Any]]:
        """Steps that wait for an operator."""
        return await self._ask(lambda front: front.dead_letters())

    async def register(
        self, definition: Mapping[str, Any], *, name: str | None = None, version: int | None = None, by: str = ACTOR
    ) -> bool:
        """Registers a definition durably, under its own name and version unless given; False if it was there."""
        content = dict(definition)
        known, number = name or content.get("name"), version or content.get("version", 1)
        if not isinstance(known, str) or not isinstance(number, int):
            raise InvalidPayload.at("$.name", "a definition is registered under a name and a version")
        return await self._ask(lambda front: front.register(known, number, content, by))

    # ------------------------------------------------------------ schedules

    async def put_schedule(self, name: str, content: Mapping[str, Any], *, by: str = ACTOR) -> dict[str, Any]:
        """Makes or replaces a schedule (docs/schedules.md)."""
        return await self._ask(lambda front: front.put_schedule(name, dict(content), by))

    async def schedules(self) -> Sequence[dict[str, Any]]:
        return await self._ask(lambda front: front.schedules())

    async def control_schedule(
        self, name: str, action: Literal["pause", "resume", "delete"], *, by: str = ACTOR, reason: str = ""
    ) -> dict[str, Any]:
        return await self._ask(lambda front: front.control_schedule(name, action, by=by, reason=reason))

    # ------------------------------------------------------------ standing still

    async def settled(self) -> Standstill:
        """Returns when nothing moves any more but by time or from outside: all is recorded, and every call answered.

        Raises AssertionError when something still moves after ten seconds of real time, or what a script did not
        expect.
        """
        await self.settle()
        commands = list(self._life.pipeline.engine.commands) if self._life is not None else []
        told: dict[str, dict[str, Any]] = {}
        for id in commands:
            with contextlib.suppress(UnknownCommand):
                told[id] = await self.explain(id)
        now = self._life.pipeline.now() if self._life is not None else 0
        return Standstill(timestamp(now), self._next_due(), told)

    async def settle(self) -> None:
        """`settled` without the account of it (`clock.Driven`)."""
        until = asyncio.get_running_loop().time() + SETTLE_MAX_S
        while True:
            life = await self._living()
            if not await life.settle(until):
                raise AssertionError(f"after {SETTLE_MAX_S:g} s something still moves:\n{self._moving_now(life)}")
            self._check_mistakes()
            if self._life is life and not life.over.done():
                return

    @property
    def moving(self) -> bool:
        return self._life is None or self._life.moving

    def due(self) -> float | None:
        """When something is due next (ms since 1970), None if nothing is."""
        life = self._life
        return None if life is None else life.pipeline.engine.due(life.pipeline.now())

    def pump(self) -> None:
        """Does what is due."""
        if self._life is not None:
            self._life.pipeline.pump()

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

    async def _waited(self, id: str, wait_ms: int | None) -> CommandView:
        """The command at its end, or as it is when ``wait_ms`` have passed; None: when nothing moves it any more."""
        clock = self._clock
        if clock is None:
            view = await self._ask(lambda front: front.get(id, FOREVER_MS if wait_ms is None else wait_ms))
            while wait_ms is None and view.state not in FINAL:
                view = await self._ask(lambda front: front.get(id, FOREVER_MS))
            return view
        if wait_ms is None:
            return await self._ended_or_stuck(id, clock)
        latest = clock.now() + wait_ms
        await self.get(id)  # there is such a command
        while (view := await self._settled_view(id)).state not in FINAL:
            if not await clock.to_next(latest):
                await clock.until(max(latest, clock.now()))
                return await self.get(id)
        return view

    async def _settled_view(self, id: str) -> CommandView:
        await self.settle()
        return await self.get(id)

    async def _ended_or_stuck(self, id: str, clock: FakeClock) -> CommandView:
        """Gives up when, for a while of real time, nothing has moved and time has not passed."""
        still: tuple[int, str] | None = None
        while True:
            view = await self._ask(lambda front: front.get(id, round(PATIENCE_S * 1000)))
            if view.state in FINAL:
                return view
            now = (clock.now(), view.position)
            if still == now and not self.moving:
                return view
            still = now

    # ------------------------------------------------------------ what was said of commands

    def _what(self, what: Any, payload: Any) -> tuple[str | None, int | None, dict[str, Any] | None, Any]:
        """Type, version, definition and payload of what is submitted."""
        given = None if payload is msgspec.UNSET else msgspec.to_builtins(payload)
        if isinstance(what, str):
            return what, None, None, given
        if isinstance(what, Mapping):
            return None, None, dict(what), given
        kind = what if isinstance(what, type) else type(what)
        known = self._known(kind)
        if known is None:
            raise UnknownType(
                f"{kind.__name__} is no command of this application: {', '.join(self._names()) or 'it has none'}"
            )
        if kind is not what and payload is not msgspec.UNSET:
            raise InvalidPayload.at("$.payload", f"the {kind.__name__} given is the payload")
        return *known, None, given if kind is what else msgspec.to_builtins(what)

    def _known(self, kind: type) -> tuple[str, int] | None:
        commands = {} if self._app is None else self._app.commands
        return max((key for key, each in commands.items() if each.payload is kind), default=None)

    def _names(self) -> list[str]:
        return sorted({name for name, _ in ({} if self._app is None else self._app.commands)})

    def _new_id(self, type: str | None) -> CommandId:
        """In a test, one that can be read and foretold; where ids may be left from an earlier run, a random one."""
        if self._clock is None or self._data_dir is not None:
            return new_command_id()
        return CommandId(f"{type or 'definition'}-{next(self._numbers)}")

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
        """Something happened that a script did not expect: whoever looks next is told."""
        self._mistakes.append(error)
        self._mistaken.set()

    def _check_mistakes(self) -> None:
        if self._mistakes:
            self._mistaken.clear()
            first, *others = self._mistakes
            self._mistakes = []
            for other in others:
                first.add_note(f"and then: {other}")
            raise first


def embedded(
    app: App | None = None,
    *,
    data_dir: str | Path | None = None,
    services: Services = (),
    clock: FakeClock | None = None,
    max_commands: int = 1000,
    slow_retry_interval: str = "200ms",
    callback_url: str = CALLBACK_URL,
    name: str = "embedded",
    drain_timeout: str = "5s",
) -> Embedded:
    """A coordinator inside this process: ``async with coordinator.embedded(app) as c: await c.run(…)``.

    The same engine as the daemon's, without ports, signal handlers or anything else that is the process's.  The log is
    in memory, or in ``data_dir`` (SQLite, one coordinator at a time), where the next one goes on with what is
    uncompleted.

    ``services``: by name a url, a `ServiceSettings`, a `Scripted`, or a client as for `App.client` (an
    httpx.AsyncClient, an async callable); or just names, of services to be scripted.  ``callback_url`` is where this
    process receives what services send to a `Saga.callback_url`, to hand it to `Embedded.callback`.  ``drain_timeout``
    is how long leaving the ``async with`` waits for calls under way.

    ``clock``: time stands still but for what the test says, without jitter, and services that the application declares
    are scripted unless given.

    Raises ConfigError here for what makes no sense, StartupError on entering where the log cannot be used.
    """
    try:
        settings = EngineSettings(
            max_commands=max_commands,
            slow_retry_interval_ms=parse_duration(slow_retry_interval),
            callback_url=callback_url,
        )
        if max_commands < 1:
            raise ValueError(f"max_commands is a whole number from 1, not {max_commands!r}")
        return Embedded(
            app,
            data_dir=data_dir,
            services=services,
            clock=clock,
            settings=settings,
            name=name,
            drain_timeout=drain_timeout,
        )
    except ValueError as error:
        raise ConfigError(f"coordinator.embedded: {error}") from None


def _services(app: App | None, given: Services, *, scripted: bool) -> dict[str, Any]:
    """By name: settings, a script or a client; raises ConfigError."""
    if isinstance(given, str):
        raise ConfigError("coordinator.embedded: services is a mapping or a list of names, not text")
    named: Mapping[str, Any] = given if isinstance(given, Mapping) else {name: Scripted() for name in given}
    found: dict[str, Any] = dict(app.clients) if app is not None else {}
    for name, each in named.items():
        if isinstance(each, str):
            found[name] = ServiceSettings(name=name, url=each)
        elif isinstance(each, ServiceSettings):
            found[name] = msgspec.structs.replace(each, name=name)
        elif callable(each) or isinstance(each, Scripted) or hasattr(each, "build_request"):
            found[name] = each
        else:
            raise ConfigError(
                f"coordinator.embedded: services[{name!r}] is a url, ServiceSettings, Scripted, an httpx.AsyncClient "
                f"or an async callable, not a {type(each).__name__}"
            )
    if scripted and app is not None:
        declared = {service for each in app.commands.values() for service in each.services}
        found.update({name: Scripted() for name in sorted(declared - found.keys())})
    return found


def _duration(text: str, path: str) -> int:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise InvalidPayload.at(path, str(error)) from None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


@contextlib.contextmanager
def _locked(directory: Path) -> Any:
    """One coordinator at a time in a directory: of two, each would take the other's partition for its own again."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / "embedded.lock").open("w")
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
