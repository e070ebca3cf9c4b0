"""Random sagas: trees of all that a saga can say, run by the public API, for the simulator and the property tests.

A Node is a step; parts one after the other (``sequence``), side by side (``fork``), or side by side until one succeeds
(``any``); a ``savepoint`` around its one part; or something to wait for: data (``receive``), a person (``decision``), a
time (``sleep``).

So that a test can tell what should be, without an engine of its own, a tree keeps an *account* of itself, and returns
it.  Its *book* has the keys of the steps whose effects are wanted, as its own code sees it: not what a savepoint
has undone or an `any` has given up.  And every request carries, as ``after``, the keys of all that it follows from, so
that the services themselves can tell when something is called whose reason is gone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Literal, NamedTuple

from msgspec import Struct, field

from coordinator.model.call import Request
from coordinator.model.durations import parse_duration
from coordinator.saga import (
    App,
    CommandFailed,
    CommandType,
    PauseAfter,
    Rejected,
    Retry,
    Saga,
    StepFailed,
    state_deadlines,
)

WAITS: Final = ("receive", "decision", "sleep")
DATA: Final = ("otp", "papers")
LATE: Final = "late"


class Node(Struct, frozen=True):
    """See the module; ``name`` is a step's, a wait's or a savepoint's, of `receive` that of the data.

    ``give_up_after`` and ``deadline`` are a step's; ``catches`` makes a sequence swallow a failed step of its own;
    ``keeps`` lets the losers of an `any` stand; ``then``, ``tries`` and ``exhausted`` are a savepoint's; ``timeout`` is
    how long it sleeps or waits, ``on_timeout`` what the end of that decides.
    """

    kind: str
    name: str = ""
    service: str = "stock"
    undoable: bool = True
    attempts: int = 1
    give_up_after: str | None = None
    deadline: str | None = None
    parts: tuple[Node, ...] = ()
    catches: bool = False
    keeps: bool = False
    then: Literal["retry", "undo", "dead_letter"] = "retry"
    tries: int = 1
    exhausted: Literal["undo", "dead_letter"] = "undo"
    timeout: str | None = None
    on_timeout: Literal["reject", "approve", "fail"] = "reject"


TYPES: Final[dict[str, dict[str, Any]]] = {
    "Tree": {},
    "Stubborn": {"on_failure": "dead_letter"},
    "Wary": {"pause_after": PauseAfter(errors=2, resume_after="1s")},
    "Timed": {"deadlines": {"waiting": "3s", "paused": "5s", "dead_letter": "4s", "delayed": "20s"}},
    "Late": {"reopens": frozenset({LATE})},
}
"""The same trees with all that a type can ask for."""


def application() -> App:
    """All the types."""
    made = App()
    for name, wishes in TYPES.items():
        limits = state_deadlines(wishes.get("deadlines", {}))
        wishes = {**wishes, "deadlines": limits}
        made.add(CommandType(name, 1, Tree, frozenset(), Tree.exec, **wishes))
    return made


Book = list[str]


class Account(Struct):
    """What a tree tells of itself: its ``book``; by name the data that it ``got``, in the order in which it came; each
    sleep as the times (ms) wanted and passed; who ``decided`` each step the first time (empty: time)."""

    book: Book = field(default_factory=list)
    got: dict[str, list[Any]] = field(default_factory=dict)
    slept: list[tuple[int, int]] = field(default_factory=list)
    decided: dict[str, str] = field(default_factory=dict)


class Tree(Struct):
    """The command: runs its tree; ``end`` says how its own code ends.  As a later revision it takes a late datum for
    each time that it was opened again."""

    root: Node
    end: str = "well"

    async def exec(self, saga: Saga) -> Account:
        account = Account()
        place = _Place(saga, (), account.book, account)
        await _run(self.root, place)
        for number in range(1, saga.revision):
            await _run(Node("receive", LATE), place)
            await _run(Node("step", f"late{number}"), place)
        if self.end == "fails":
            raise CommandFailed("the author's own reason", "simulated")
        if self.end == "poison":
            raise ZeroDivisionError("a mistake of the author")
        return account


class _Place(NamedTuple):
    """Where a node runs: after ``before``, and what it does is written into ``book``."""

    saga: Saga
    before: tuple[str, ...]
    book: Book
    account: Account

    def inner(self, book: Book) -> _Place:
        """The same place with a book of its own."""
        return _Place(self.saga, (*self.before, *self.book), book, self.account)


async def _run(node: Node, place: _Place) -> None:
    await _KINDS[node.kind](node, place)


async def _step(node: Node, place: _Place) -> None:
    outcome = await place.saga.step(
        node.name,
        Request(service=node.service, path=f"/{node.name}", body={"after": (*place.before, *place.book)}),
        undo=Request(service=node.service, path=f"/{node.name}/undo") if node.undoable else None,
        retry=Retry(attempts=node.attempts, first="50ms", max="200ms"),
        give_up_after=node.give_up_after,
        deadline=node.deadline,
    )
    place.book.append(outcome["key"])


async def _sequence(node: Node, place: _Place) -> None:
    try:
        for part in node.parts:
            await _run(part, place)
    except StepFailed:
        if not node.catches:
            raise


async def _fork(node: Node, place: _Place) -> None:
    books: list[Book] = [[] for _ in node.parts]
    try:
        await place.saga.all(*(_run(part, place.inner(book)) for part, book in zip(node.parts, books, strict=True)))
    finally:  # whatever becomes of the fork: what was recorded stands
        for book in books:
            place.book.extend(book)


async def _any(node: Node, place: _Place) -> None:
    books: list[Book] = [[] for _ in node.parts]

    async def branch(number: int) -> int:
        await _run(node.parts[number], place.inner(books[number]))
        return number

    try:
        won = await place.saga.any(
            *(branch(number) for number in range(len(node.parts))), losers="keep" if node.keeps else "undo"
        )
        if not node.keeps:
            books = [books[won]]
    finally:  # where nobody has won, nobody has lost
        for book in books:
            place.book.extend(book)


async def _savepoint(node: Node, place: _Place) -> None:
    inner: Book = []

    async def body() -> None:
        try:
            await _run(node.parts[0], place.inner(inner))
        except (StepFailed, CommandFailed):
            inner.clear()
            raise

    try:
        await place.saga.savepoint(node.name, body, then=node.then, attempts=node.tries, exhausted=node.exhausted)
    finally:
        place.book.extend(inner)


async def _receive(node: Node, place: _Place) -> None:
    got = await place.saga.receive(node.name, timeout=node.timeout)
    place.account.got.setdefault(node.name, []).append(got)


async def _decision(node: Node, place: _Place) -> None:
    decided = place.account.decided
    try:
        decision = await place.saga.decision(
            node.name, timeout=node.timeout, on_timeout=node.on_timeout, input={"after": list(place.book)}
        )
    except Rejected as rejected:
        decided.setdefault(node.name, rejected.decision.by)
        raise
    decided.setdefault(node.name, decision.by)


async def _sleep(node: Node, place: _Place) -> None:
    duration, began = node.timeout or "1s", place.saga.now
    await place.saga.sleep(duration, name=node.name)
    place.account.slept.append((parse_duration(duration), place.saga.now - began))


_KINDS: Final[dict[str, Any]] = {
    "step": _step,
    "sequence": _sequence,
    "fork": _fork,
    "any": _any,
    "savepoint": _savepoint,
    "receive": _receive,
    "decision": _decision,
    "sleep": _sleep,
}


# ---------------------------------------------------------------- what there is in a tree


def nodes_of(node: Node) -> Iterator[Node]:
    """All nodes, in the order they are written."""
    yield node
    for part in node.parts:
        yield from nodes_of(part)


def steps_of(node: Node) -> Iterator[Node]:
    """All steps, in the order they are written."""
    return (each for each in nodes_of(node) if each.kind == "step")


def base(step: str) -> str:
    """The name that a tree gave a step, which is that of its first round (``s1#2`` is ``s1`` again)."""
    return step.partition("#")[0]


def kept_by_losers(node: Node) -> set[str]:
    """Names of steps that may stand although nobody's book has them: an `any` has let its losers stand, and their
    outcome came later."""
    return {step.name for each in nodes_of(node) if each.kind == "any" and each.keeps for step in steps_of(each)}


def rounds(node: Node, releases: int) -> dict[str, int]:
    """How often each step may run, at most, where an operator has let commands go on that many times."""
    found: dict[str, int] = {}
    for part in node.parts:
        found |= rounds(part, releases)
    if node.kind == "step":
        return {node.name: 1}
    if node.kind != "savepoint" or node.then == "undo":
        return found
    times = 1 + node.tries if node.then == "retry" else 1
    if "dead_letter" in (node.then, node.exhausted if node.then == "retry" else ""):
        times *= 1 + releases
    return {name: count * times for name, count in found.items()}


def round_of(step: str) -> int:
    """Which of its rounds this one is, from 1."""
    return int(step.partition("#")[2] or 1)
