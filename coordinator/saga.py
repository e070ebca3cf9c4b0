"""What the author of a command uses.

    class PlaceOrder(msgspec.Struct):
        order_id: str
        amount: int

        async def exec(self, saga: Saga) -> dict:
            await saga.step("reserve", post("stock", "/reservations", {"order": self.order_id}),
                            undo=post("stock", f"/reservations/{self.order_id}/release"))
            charge = await saga.step("charge", post("payments", "/charges", {"amount": self.amount}), into=Charge,
                                     undo=lambda c: post("payments", f"/charges/{c.id}/refund"))
            return {"receipt": charge.id}

``exec`` is a plain coroutine that the engine itself steps with ``send`` and ``throw``: no event loop, no task.  It
must be deterministic: the same payload and the same outcomes lead to the same steps, because after a crash it is run
again from the start over the recorded outcomes.  I/O happens only inside steps; awaiting anything else is an error
that says so.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, Literal, TypeVar, cast, overload

from msgspec import Struct
from msgspec.structs import replace

from coordinator.awaitables import (
    Branch,
    Discard,
    Ended,
    Fork,
    Gate,
    Group,
    Hold,
    Retry,
    Start,
    StepCall,
    Undo,
    Unwound,
    Wait,
)
from coordinator.model.call import LocalCall, Request
from coordinator.model.command import DEADLINE_STATES, StepView
from coordinator.model.durations import parse_duration
from coordinator.model.records import Failure

T = TypeVar("T")


class Delayed(Exception):
    """Raise it in a step's function (or in ``exec``): the outcome is unknown, try the same step again later."""


class Blocked(Exception):
    """As Delayed, and the service is known to be down: its breaker opens and intake for it is suspended."""


class StepFailed(Exception):
    """Thrown into ``exec`` where a step failed; uncaught, the command fails and what was recorded is undone."""

    def __init__(self, step: str, failure: Failure) -> None:
        super().__init__(f"step {step} failed: {failure.message or failure.code}")
        self.step = step
        self.failure = failure


class CommandFailed(Exception):
    """Raise it in ``exec`` to fail the command for a business reason: what was recorded is undone."""

    def __init__(self, message: str, code: str = "failed") -> None:
        super().__init__(message)
        self.code = code


class Decision(Struct, frozen=True):
    """What a person decided; ``at`` is RFC 3339.  ``by`` is empty where time decided (``on_timeout``)."""

    approve: bool
    by: str = ""
    comment: str = ""
    at: str = ""


class Rejected(StepFailed):
    """A decision went against it; uncaught, what was recorded is undone.  ``decision`` says who and why."""

    def __init__(self, step: str, failure: Failure, decision: Decision) -> None:
        super().__init__(step, failure)
        self.decision = decision


_Told = StepFailed | CommandFailed | Delayed | Blocked
_CHAIN_MAX: Final = 32
_NAME_MAX: Final = 200  # of what is recorded, as a step is


def told_by(error: BaseException | None) -> _Told | None:
    """What the exception, or the nearest cause it was raised from, tells the engine; None if it is a mistake."""
    left = _CHAIN_MAX
    while error is not None and left:
        if isinstance(error, _Told):
            return error
        if isinstance(error, BaseExceptionGroup):
            told = [told_by(each) for each in error.exceptions]
            return next((each for each in told if each is not None), None)
        error = error.__cause__
        left -= 1
    return None


class Saga:
    """What ``exec`` is given; made anew for each run of ``exec``.

    ``revision`` is 1, and one more each time that late data has opened the finished command again.
    """

    __slots__ = ("_callback", "_callbacks", "attributes", "id", "now", "revision", "type", "version")

    def __init__(
        self,
        *,
        id: str,
        type: str,
        version: int,
        attributes: Mapping[str, Any],
        now: int,
        revision: int = 1,
        callback: Callable[[str, int], str] | None = None,
    ) -> None:
        self.id = id
        self.type = type
        self.version = version
        self.attributes = attributes
        self.now = now  # ms since 1970 of the record that brought exec here: the same on replay
        self.revision = revision
        self._callback = callback
        self._callbacks: dict[str, int] = {}

    @overload
    def step(
        self,
        name: str,
        request: Request,
        *,
        into: type[T],
        undo: Undo | None = ...,
        retry: Retry | None = ...,
        undo_retry: Retry | None = ...,
        undo_timeout: str | None = ...,
        timeout: str | None = ...,
        give_up_after: str | None = ...,
        deadline: str | None = ...,
    ) -> Awaitable[T]: ...
    @overload
    def step(
        self,
        name: str,
        request: Request | Callable[..., Awaitable[Any]],
        *args: Any,
        into: Any = ...,
        undo: Undo | Callable[..., Any] | None = ...,
        retry: Retry | None = ...,
        undo_retry: Retry | None = ...,
        undo_timeout: str | None = ...,
        timeout: str | None = ...,
        give_up_after: str | None = ...,
        deadline: str | None = ...,
        service: str = ...,
    ) -> Awaitable[Any]: ...
    def step(
        self,
        name: str,
        request: Request | Callable[..., Awaitable[Any]],
        *args: Any,
        into: Any = None,
        undo: Any = None,
        retry: Retry | None = None,
        undo_retry: Retry | None = None,
        undo_timeout: str | None = None,
        timeout: str | None = None,
        give_up_after: str | None = None,
        deadline: str | None = None,
        service: str = "local",
    ) -> Awaitable[Any]:
        """Runs a step once and for all; on replay returns what was recorded.

        ``request`` is a Request to a service, or an ``async`` function called with ``args`` (its result is recorded;
        name the ``service`` it stands for to give it a breaker).  ``undo`` is a Request, or a function of the outcome
        that returns one; an ``async`` function given as undo is called with the outcome.  ``deadline`` (a duration
        from the step's beginning) fails it, retries and all; if its outcome is unknown then, it is resolved and undone.
        Raises StepFailed.
        """
        what = request if isinstance(request, Request) else LocalCall(request, args, service)
        return StepCall(
            name=name,
            request=what,
            into=into,
            undo=undo,
            retry=retry,
            undo_retry=undo_retry,
            undo_timeout=undo_timeout,
            timeout=timeout,
            give_up_after=give_up_after,
            deadline=deadline,
        )

    def all(self, *branches: Awaitable[Any]) -> Awaitable[list[Any]]:
        """Runs steps or coroutines side by side; the first failure is raised, once.

        Steps of the other branches that are under way are resolved all the same, and undone with the rest.
        """
        return Fork(branches)

    async def any(self, *branches: Awaitable[Any], losers: Literal["undo", "keep"] = "undo") -> Any:
        """Runs branches side by side; returns what the first that succeeds returns.

        A branch that fails neither continues nor fails it while another may succeed; if all fail, the first failure is
        raised.  What the losers have under way is resolved; what they did is undone (``keep``: stays) while exec goes
        on, at the latest before the command ends.
        """
        if not branches:
            raise ValueError("saga.any needs a branch")
        group, decided = Group(), Gate()
        won: list[tuple[Branch, Any]] = []
        failed: list[Exception] = []
        broken: list[Exception] = []
        running: list[Branch] = []

        async def run(index: int, awaited: Awaitable[Any]) -> None:
            try:
                result = await awaited
            except Exception as error:
                if isinstance(told_by(error), (StepFailed, CommandFailed)):
                    failed.append(error)
                else:  # Delayed, or a mistake: no branch's failure, but that of all
                    broken.append(error)
                if broken or len(failed) == len(branches):
                    decided.open()
            else:
                won.append((running[index], result))
                decided.open()

        try:
            for index, awaited in enumerate(branches):
                running.append(await Start(group, run(index, awaited)))
            await decided
            if not won:
                raise (broken or failed)[0]
            winner, result = won[0]
            await Discard(tuple(branch for branch in running if branch is not winner), undo=losers == "undo")
            return result
        finally:
            for awaited in branches:  # those that were given up before they began
                if isinstance(awaited, Coroutine):
                    with suppress(Exception):  # whatever its author has written behind `finally`
                        awaited.close()

    async def savepoint(
        self,
        name: str,
        body: Callable[[], Awaitable[T]],
        *,
        then: Literal["retry", "undo", "dead_letter"] = "retry",
        attempts: int = 1,
        exhausted: Literal["undo", "dead_letter"] = "undo",
    ) -> T:
        """Runs ``body``; when it fails, what it did is undone, and nothing from before it.

        ``then``: ``retry`` runs the body again, ``attempts`` times at most, and does as ``exhausted`` says after that;
        ``undo`` raises the failure on, so that the rest is undone as well; ``dead_letter`` stops here until an operator
        asks for another try (`retry`, or `requeue` of the step ``savepoint:<name>``).  A decision against it is no
        failure that another try mends: Rejected is raised on, whatever is declared.
        """
        tries = 0
        while True:
            group = Group()
            branch = await Start(group, _awaiting(body()))
            try:
                await Ended(group)
            except Exception as error:
                told, failed = told_by(error), error
                if not isinstance(told, (StepFailed, CommandFailed)) or isinstance(told, Rejected):
                    raise
            else:
                return cast("T", branch.result)
            await Unwound((branch,))
            tries += 1
            if then == "retry" and tries <= attempts:
                continue
            if then == "undo" or (then == "retry" and exhausted == "undo"):
                raise failed
            await Hold(f"savepoint:{name}"[:_NAME_MAX], failure_of(told))
            tries = 0

    async def decision(
        self,
        name: str,
        *,
        input: Any = None,
        roles: Sequence[str] = (),
        timeout: str | None = None,
        on_timeout: Literal["reject", "approve", "fail"] = "reject",
        rejected: Literal["fail", "return"] = "fail",
    ) -> Decision:
        """Waits for a person to approve or reject; they are shown ``input`` and have one of ``roles`` (none: anybody).

        A rejection raises Rejected (``return``: is returned like an approval).  After ``timeout`` it counts as
        ``on_timeout`` says; ``fail`` raises StepFailed with the code ``timeout``.
        """
        decided: Decision = await Wait(
            name=name,
            kind="decision",
            channel=name,
            input=input,
            roles=tuple(roles),
            timeout=timeout,
            on_timeout=on_timeout,
            rejected=rejected,
        )
        return decided

    @overload
    def receive(
        self, name: str, *, into: type[T], timeout: str | None = ..., step: str | None = ...
    ) -> Awaitable[T]: ...
    @overload
    def receive(
        self, name: str, *, into: Any = ..., timeout: str | None = ..., step: str | None = ...
    ) -> Awaitable[Any]: ...
    def receive(
        self, name: str, *, into: Any = None, timeout: str | None = None, step: str | None = None
    ) -> Awaitable[Any]:
        """Waits for data that a client provides, or a service sends to `callback_url`, under ``name``.

        Data that came before is there at once, in the order in which it came, each once.  Raises StepFailed with the
        code ``timeout`` when none has come in time, ``bad_outcome`` when it is not an ``into``.  ``step`` is what the
        wait is called among the steps: ``name`` itself unless given.
        """
        return Wait(name=step or name, kind="data", channel=name, into=into, timeout=timeout)

    def sleep(self, duration: str, *, name: str = "sleep") -> Awaitable[None]:
        """Waits for a time (``"10s"``, ``"30d"``), durably, across restarts; holds no slot meanwhile."""
        return Wait(name=name, kind="sleep", timeout=duration)

    def callback_url(self, name: str) -> str:
        """An address to hand to a service, so that it can answer later: what it sends there is what the next
        ``receive(name)`` gets.

        Whoever knows the address may answer, once; it cannot be guessed.  Each call gives another one.
        """
        number = self._callbacks[name] = self._callbacks.get(name, 0) + 1
        if self._callback is None:
            raise RuntimeError("callback_url is for exec")
        return self._callback(name, number)


async def _awaiting(awaited: Awaitable[T]) -> T:
    return await awaited


def failure_of(error: StepFailed | CommandFailed) -> Failure:
    """What a record says of it."""
    if isinstance(error, StepFailed):
        return replace(error.failure, step=error.step)
    return Failure(error.code, str(error))


class PauseAfter(Struct, frozen=True, kw_only=True):
    """Pauses a command by itself after so many ``errors`` (answers that were negative or unknown, whatever they say)
    since it last was resumed; ``resume_after`` is a duration after which it goes on by itself, never unless given."""

    errors: int
    resume_after: str | None = None


class Command:
    """What the engine needs of a command type: `exec`."""

    async def exec(self, saga: Saga) -> Any:
        raise NotImplementedError


class CommandType(Struct, frozen=True):
    """A registered type: its payload type, version, the services it declares to use, and what its author wants.

    ``on_failure``: ``undo``, or ``dead_letter``: a step that fails waits for an operator, and nothing is undone.
    ``deadlines``: state to the longest time in it (ms), after which the command fails with ``deadline_exceeded``.
    ``data``: the names of data that it may be given (None: any).  ``reopens``: those that open it again when it has
    completed.  ``shapes``: what data has to be, by name: what does not fit is refused at the door.  ``diagram``: draws
    it, given the states of a command's steps, for a type that has a plan to draw.
    """

    name: str
    version: int
    payload: type
    services: frozenset[str]
    run: Callable[[Any, Saga], Coroutine[Any, Any, Any]]
    on_failure: Literal["undo", "dead_letter"] = "undo"
    deadlines: Mapping[str, int] = {}
    pause_after: PauseAfter | None = None
    data: frozenset[str] | None = None
    reopens: frozenset[str] = frozenset()
    shapes: Mapping[str, Any] = {}
    diagram: Callable[[Sequence[StepView]], str] | None = None


def state_deadlines(given: Mapping[str, str]) -> dict[str, int]:
    """Durations by state, in milliseconds; raises ValueError for a state that has no deadline."""
    for state in given:
        if state not in DEADLINE_STATES:
            raise ValueError(f"a deadline is for one of {', '.join(sorted(DEADLINE_STATES))}, not {state!r}")
    return {state: parse_duration(duration) for state, duration in given.items()}


def check_pause_after(rule: PauseAfter | None) -> None:
    """Raises ValueError for a rule that makes no sense."""
    if rule is None:
        return
    if rule.errors < 1:
        raise ValueError(f"pause_after.errors is a whole number from 1, not {rule.errors!r}")
    if rule.resume_after is not None:
        parse_duration(rule.resume_after)


class App:
    """The commands of one application, and clients it plugs in for services: ``coordinator serve --app orders:app``."""

    def __init__(self) -> None:
        self.commands: dict[tuple[str, int], CommandType] = {}
        self.clients: dict[str, Any] = {}

    def command(
        self,
        *,
        services: tuple[str, ...] | list[str] = (),
        version: int = 1,
        name: str | None = None,
        on_failure: Literal["undo", "dead_letter"] = "undo",
        deadlines: Mapping[str, str] | None = None,
        pause_after: PauseAfter | None = None,
    ) -> Callable[[type[T]], type[T]]:
        """Registers a ``msgspec.Struct`` with ``async def exec(self, saga)``.

        ``services`` are those whose outage suspends its intake; a type that declares none is suspended by any.
        ``on_failure="dead_letter"``: a step that fails waits for an operator, and nothing is undone.  ``deadlines``:
        how long a command may be in a state (``{"waiting": "24h"}``), see `model.command.DEADLINE_STATES`.
        """
        limits = state_deadlines(deadlines or {})
        if on_failure not in ("undo", "dead_letter"):
            raise ValueError(f'on_failure is "undo" or "dead_letter", not {on_failure!r}')
        check_pause_after(pause_after)

        def register(payload: type[T]) -> type[T]:
            known = name or payload.__name__
            run = getattr(payload, "exec", None)
            if run is None:
                raise TypeError(f"{payload.__name__} has no exec(self, saga)")
            self.add(
                CommandType(
                    known,
                    version,
                    payload,
                    frozenset(services),
                    run,
                    on_failure=on_failure,
                    deadlines=limits,
                    pause_after=pause_after,
                )
            )
            return payload

        return register

    def add(self, type: CommandType) -> None:
        """Registers a type that is ready made, as a Flow makes one."""
        if (type.name, type.version) in self.commands:
            raise ValueError(f"command {type.name} version {type.version} is registered twice")
        self.commands[type.name, type.version] = type

    def client(self, service: str, client: Any) -> None:
        """Plugs an ``httpx.AsyncClient`` or an async callable ``(Request, headers) -> Response`` in for a service."""
        self.clients[service] = client


def post(service: str, path: str, body: Any = None, **rest: Any) -> Request:
    """A POST; ``rest`` as in `Request`."""
    return Request(service=service, method="POST", path=path, body=body, **rest)


def get(service: str, path: str, **rest: Any) -> Request:
    """A GET; ``rest`` as in `Request`."""
    return Request(service=service, method="GET", path=path, **rest)


def put(service: str, path: str, body: Any = None, **rest: Any) -> Request:
    """A PUT; ``rest`` as in `Request`."""
    return Request(service=service, method="PUT", path=path, body=body, **rest)


def delete(service: str, path: str, **rest: Any) -> Request:
    """A DELETE; ``rest`` as in `Request`."""
    return Request(service=service, method="DELETE", path=path, **rest)


__all__ = [
    "App",
    "Blocked",
    "Command",
    "CommandFailed",
    "CommandType",
    "Decision",
    "Delayed",
    "LocalCall",
    "PauseAfter",
    "Rejected",
    "Request",
    "Retry",
    "Saga",
    "StepCall",
    "StepFailed",
    "Undo",
    "check_pause_after",
    "delete",
    "failure_of",
    "get",
    "post",
    "put",
    "state_deadlines",
]
