"""What ``exec`` awaits: the few things that a Saga hands to the engine, each a value without behaviour.

    StepCall            one request, recorded outcome back
    Wait                a signal from outside (data, a decision) or a time; holds no slot meanwhile
    Hold                stop here as a dead letter until an operator says go on
    Skip                a step that its condition left out: shown, answered at once
    Fork                branches side by side, results when all have returned
    Gate                a signal between branches of one command
    Start, Ended        branches begun one by one, as a `Group`
    Discard, Unwound    branches given up: what they did is undone, in the background or before exec goes on

`engine.stepper` answers them.  Everything that authors see, `saga.any` and `saga.savepoint` and definitions with joins
included, is made of these, so that there is one recovery and one way to undo.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, Literal

from msgspec import Struct

from coordinator.model.call import LocalCall, Request
from coordinator.model.records import Failure


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


Undo = Request | LocalCall | Callable[[Any], Request | LocalCall]


class StepCall(Struct, frozen=True, kw_only=True):
    """One ``saga.step``: awaiting it hands it to the engine, which sends back the recorded outcome.

    ``deadline`` is a duration from the step's beginning, retries and all, after which it has failed.
    """

    name: str
    request: Request | LocalCall
    into: Any = None
    undo: Undo | None = None
    undo_retry: Retry | None = None
    undo_timeout: str | None = None
    retry: Retry | None = None
    timeout: str | None = None
    give_up_after: str | None = None
    deadline: str | None = None

    def __await__(self) -> Generator[Any, Any, Any]:
        return (yield self)


class Wait(Struct, frozen=True, kw_only=True):
    """A step that is answered from outside, or by time.

    ``kind``: ``data`` (a Signal named ``channel``; what came before the wait began was kept for it), ``decision`` (a
    person's, addressed by the step's own name) or ``sleep``.  ``timeout`` is a duration from when the wait begins: a
    sleep's length, otherwise what ends it in vain.  Then ``on_timeout`` says what it counts as: ``fail`` (StepFailed,
    code ``timeout``), ``reject`` or ``approve`` (of a decision), ``null`` (of data: it awaits to None).  ``listens``:
    nobody needs the datum to go on; it does not count as waiting.  ``input`` is shown to whoever decides, who has one
    of ``roles`` (empty: anybody).  ``rejected``: what a refusal does, ``fail`` or ``return``.
    """

    name: str
    kind: Literal["data", "decision", "sleep"]
    channel: str = ""
    into: Any = None
    timeout: str | None = None
    on_timeout: Literal["fail", "reject", "approve", "null"] = "fail"
    listens: bool = False
    input: Any = None
    roles: tuple[str, ...] = ()
    rejected: Literal["fail", "return"] = "fail"

    def __await__(self) -> Generator[Any, Any, Any]:
        return (yield self)


class Hold(Struct, frozen=True):
    """Makes the command a dead letter, for ``failure``, under the step name ``name``; `retry` or `requeue` lets exec
    go on, and it awaits to None."""

    name: str
    failure: Failure

    def __await__(self) -> Generator[Any, Any, None]:
        yield self


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


# ---------------------------------------------------------------- branches one by one


class Group:
    """Branches that belong together: ``await Ended(group)`` waits for all of them."""

    __slots__ = ("join",)

    def __init__(self) -> None:
        self.join: Any = None  # the engine's


class Branch:
    """One branch that was started: ``done`` once it has ended, then ``error`` or ``result``.

    It stands for all that was done under it, by branches of its own included, also when it has ended.
    """

    __slots__ = ("done", "error", "fiber", "result")

    def __init__(self) -> None:
        self.done = False
        self.result: Any = None
        self.error: BaseException | None = None
        self.fiber: Any = None  # the engine's


class Start(Struct, frozen=True):
    """Begins a branch of the group beside the one that awaits this; awaits to its Branch at once.

    ``listens``: the group does not wait for it; when all others have ended, it is ended too.
    """

    group: Group
    coroutine: Coroutine[Any, Any, Any]
    listens: bool = False

    def __await__(self) -> Generator[Any, Branch, Branch]:
        return (yield self)


class Ended(Struct, frozen=True):
    """Waits until every branch of the group has ended; the first one's error is raised here, and ends the others."""

    group: Group

    def __await__(self) -> Generator[Any, None, None]:
        yield self


class Discard(Struct, frozen=True):
    """Gives branches up, ended or not, without waiting.

    What they have under way is resolved; with ``undo``, what they have done is undone, last first, while exec goes on,
    and before the command ends.  Nothing happens to a branch twice.
    """

    branches: tuple[Branch, ...]
    undo: bool = True

    def __await__(self) -> Generator[Any, None, None]:
        yield self


class Unwound(Struct, frozen=True):
    """As Discard, and waits until it is all resolved and undone."""

    branches: tuple[Branch, ...]

    def __await__(self) -> Generator[Any, None, None]:
        yield self
