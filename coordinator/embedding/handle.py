"""The coordinator as a library: the same engine, inside a user's own process.

    async with coordinator.embedded(app, data_dir="orders") as c:
        view = await c.run(PlaceOrder(order_id="o-1", amount=1999))

With a `FakeClock` it is the kit for testing sagas (docs/testing.md): time stands still, services follow a script, and
what the script does not expect fails the test wherever it next looks.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from typing import Any, Final, Literal
from urllib.parse import unquote, urlsplit

import msgspec
from msgspec import Struct

from coordinator.embedding.clock import FakeClock
from coordinator.embedding.keeping import Kept, Over
from coordinator.embedding.life import Life
from coordinator.errors import (
    CoordinatorError,
    InvalidPayload,
    UnknownCommand,
    UnknownType,
    WaitTimeout,
)
from coordinator.model.command import FINAL, CommandView, Operation, Submission
from coordinator.model.durations import parse_duration
from coordinator.model.ids import CommandId, new_command_id
from coordinator.model.moments import timestamp
from coordinator.transport.base import Event

ACTOR: Final = "embedded"  # who asks, where the caller does not say
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


class Embedded(Kept):
    """A coordinator in this process; `coordinator.embedded` makes one.  To be entered once, with ``async with``.

    All methods raise CoordinatorError, as every transport tells it; under a FakeClock also AssertionError, where a
    script did not expect what happened.  Durations are text (``"5s"``).  ``services`` has the scripted services by
    name, ``calls`` what they were asked, in order.  Of a test that waits in vain, ``patience_s`` and ``settle_max_s``
    are how long (seconds of real time).
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.patience_s = PATIENCE_S
        self._numbers = itertools.count(1)

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
    ) -> Sequence[CommandView]:
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
            except Over:
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

    async def schedule(self, name: str) -> dict[str, Any]:
        """``{"name", "spec", "state", "next", "last", "waiting", …}``."""
        return await self._ask(lambda front: front.schedule(name))

    async def schedules(self) -> Sequence[dict[str, Any]]:
        return await self._ask(lambda front: front.schedules())

    async def control_schedule(
        self, name: str, action: Literal["pause", "resume", "delete"], *, by: str = ACTOR, reason: str = ""
    ) -> dict[str, Any]:
        return await self._ask(lambda front: front.control_schedule(name, action, by=by, reason=reason))

    async def settled(self) -> Standstill:
        """Returns when nothing moves any more but by time or from outside: all is recorded, and every call answered.

        Raises AssertionError when something still moves after ten seconds of real time, or what a script did not
        expect.
        """
        await self.settle()
        life = await self._living()
        told: dict[str, dict[str, Any]] = {}
        for id in sorted(id for _, id, _ in life.pipeline.engine.entries()):
            with contextlib.suppress(UnknownCommand):
                told[id] = await self.explain(id)
        now = life.pipeline.now()
        return Standstill(timestamp(now), self._next_due(), told)

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
            view = await self._ask(lambda front: front.get(id, round(self.patience_s * 500)))
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

    def _names(self) -> Sequence[str]:
        return sorted({name for name, _ in ({} if self._app is None else self._app.commands)})

    def _new_id(self, type: str | None) -> CommandId:
        """In a test, one that can be read and foretold; where ids may be left from an earlier run, a random one."""
        if self._clock is None or self._data_dir is not None:
            return new_command_id()
        return CommandId(f"{type or 'definition'}-{next(self._numbers)}")


def _duration(text: str, path: str) -> int:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise InvalidPayload.at(path, str(error)) from None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
