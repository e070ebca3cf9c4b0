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

from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping
from typing import Any, TypeVar, overload

from msgspec import Struct

from coordinator.model.call import LocalCall, Request
from coordinator.model.records import Failure

T = TypeVar("T")


class Retry(Struct, frozen=True, kw_only=True):
    """How often a *known* negative answer is asked again; unknown answers are retried until known and do not count.

    ``attempts`` is the total number of answered calls; ``backoff`` is ``fixed`` or ``exponential``; ``first`` and
    ``max`` are durations (``"100ms"``); ``jitter`` is the part of a delay that is random, 0 to 1.
    """

    attempts: int = 1
    backoff: str = "fixed"
    first: str = "1s"
    max: str = "1m"
    jitter: float = 0.1


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


Undo = Request | LocalCall | Callable[[Any], Request | LocalCall]


class StepCall(Struct, frozen=True, kw_only=True):
    """One ``saga.step``: awaiting it hands it to the engine, which sends back the recorded outcome."""

    name: str
    request: Request | LocalCall
    into: Any = None
    undo: Undo | None = None
    undo_retry: Retry | None = None
    undo_timeout: str | None = None
    retry: Retry | None = None
    timeout: str | None = None
    give_up_after: str | None = None

    def __await__(self) -> Generator[Any, Any, Any]:
        return (yield self)


class Skip(Struct, frozen=True):
    """Tells that a step was left out by its condition: shown as ``skipped``, awaits to None."""

    name: str
    service: str = ""

    def __await__(self) -> Generator[Any, None, None]:
        yield self


class Fork(Struct, frozen=True):
    """Branches to run side by side; awaits to a list of their results in the order given."""

    branches: tuple[Awaitable[Any], ...]

    def __await__(self) -> Generator[Any, list[Any], list[Any]]:
        return (yield self)


class Gate:
    """A one-shot signal between branches of one command: ``await gate`` waits until another branch calls ``open``."""

    __slots__ = ("opened",)

    def __init__(self) -> None:
        self.opened = False

    def open(self) -> None:
        self.opened = True

    def __await__(self) -> Generator[Any, Any, None]:
        if not self.opened:
            yield self


class Saga:
    """What ``exec`` is given; made anew for each run of ``exec``."""

    __slots__ = ("attributes", "id", "now", "type", "version")

    def __init__(self, *, id: str, type: str, version: int, attributes: Mapping[str, Any], now: int) -> None:
        self.id = id
        self.type = type
        self.version = version
        self.attributes = attributes
        self.now = now  # ms since 1970 of the record that brought exec here: the same on replay

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
        service: str = "local",
    ) -> Awaitable[Any]:
        """Runs a step once and for all; on replay returns what was recorded.

        ``request`` is a Request to a service, or an ``async`` function called with ``args`` (its result is recorded;
        name the ``service`` it stands for to give it a breaker).  ``undo`` is a Request, or a function of the outcome
        that returns one; an ``async`` function given as undo is called with the outcome.  Raises StepFailed.
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
        )

    def all(self, *branches: Awaitable[Any]) -> Awaitable[list[Any]]:
        """Runs steps or coroutines side by side; the first failure is raised, once.

        Steps of the other branches that are under way are resolved all the same, and undone with the rest.
        """
        return Fork(branches)


class Command:
    """What the engine needs of a command type: `exec`."""

    async def exec(self, saga: Saga) -> Any:
        raise NotImplementedError


class CommandType(Struct, frozen=True):
    """A registered code command: its payload type, version and the services it declares to use."""

    name: str
    version: int
    payload: type
    services: frozenset[str]
    run: Callable[[Any, Saga], Coroutine[Any, Any, Any]]


class App:
    """The commands of one application, and clients it plugs in for services: ``coordinator serve --app orders:app``."""

    def __init__(self) -> None:
        self.commands: dict[tuple[str, int], CommandType] = {}
        self.clients: dict[str, Any] = {}

    def command(
        self, *, services: tuple[str, ...] | list[str] = (), version: int = 1, name: str | None = None
    ) -> Callable[[type[T]], type[T]]:
        """Registers a ``msgspec.Struct`` with ``async def exec(self, saga)``.

        ``services`` are those whose outage suspends its intake; a type that declares none is suspended by any.
        """

        def register(payload: type[T]) -> type[T]:
            known = name or payload.__name__
            if (known, version) in self.commands:
                raise ValueError(f"command {known} version {version} is registered twice")
            run = getattr(payload, "exec", None)
            if run is None:
                raise TypeError(f"{payload.__name__} has no exec(self, saga)")
            self.commands[known, version] = CommandType(known, version, payload, frozenset(services), run)
            return payload

        return register

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
