"""What a seed stands for, before anything runs: the commands, what the services will say, and how bad the world is.

Every part draws from a stream of its own, named after it, so that taking one thing out (`Cut`) leaves the others as
they were: that is what makes shrinking work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from typing import Any, Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from coordinator.saga import App
from coordinator.testing.simulator.trees import DATA, TYPES, WAITS, Node, Tree, application

SERVICES: Final = ("stock", "payments", "shipping")
FAULTS: Final = (
    *("crash", "pause", "log", "network", "services", "operators", "clock", "view"),
    *("links", "group", "drain", "pointer", "garbage"),
)
"""Kinds of trouble; a seed has some of them.  Runs that differ reach more than runs with everything always."""


def stream(seed: int, *name: object) -> Random:
    """The part of the seed's chance that belongs to ``name``."""
    return Random("/".join(map(str, (seed, *name))))


class Cut(Struct, frozen=True):
    """A smaller variant of a seed's run: only these commands, without these faults, trouble until then (s)."""

    commands: tuple[int, ...] | None = None
    without: tuple[str, ...] = ()
    until: float | None = None


WHOLE: Final = Cut()

RETAIN_MS: Final = 12_000  # longer than any client that lost its answer takes to ask again


# ---------------------------------------------------------------- commands


def app() -> App:
    """The application that every simulated instance runs."""
    return application()


def _node(random: Random, depth: int, names: Iterator[int]) -> Node:
    kinds = ("step", "sequence", "fork", "any", "savepoint")
    kind = "step" if depth == 0 else random.choices(kinds, (6, 5, 4, 2, 2))[0]
    if kind == "step":
        return _leaf(random, names)
    many = 1 if kind == "savepoint" else random.randint(2, 3)
    number = next(names)
    return Node(
        kind,
        f"p{number}" if kind == "savepoint" else "",
        parts=tuple(_part(random, kind, depth - 1, names) for _ in range(many)),
        catches=kind == "sequence" and random.random() < 0.2,
        keeps=kind == "any" and random.random() < 0.3,
        then=random.choice(("retry", "retry", "undo", "dead_letter")),
        tries=random.randint(1, 2),
        exhausted=random.choice(("undo", "undo", "dead_letter")),
    )


def _part(random: Random, kind: str, depth: int, names: Iterator[int]) -> Node:
    """Of what may be gone back over there is more than one thing."""
    if kind in ("any", "savepoint") and random.random() < 0.6:
        return Node("sequence", parts=(_leaf(random, names), _leaf(random, names)))
    return _node(random, depth, names)


def _leaf(random: Random, names: Iterator[int]) -> Node:
    number = next(names)
    kind = random.choices(("step", *WAITS), (10, 2.5, 1.5, 1))[0]
    if kind == "step":
        return Node(
            "step",
            f"s{number}",
            random.choice(SERVICES),
            undoable=random.random() < 0.85,
            attempts=random.choice((1, 1, 1, 3)),
            give_up_after=random.choice((None, None, None, None, None, "1s")),
            deadline=random.choice((None, None, None, None, None, None, None, "800ms")),
        )
    return Node(
        kind,
        random.choice(DATA) if kind == "receive" else f"{kind[:2]}{number}",
        timeout=random.choice(("200ms", "1s", "3s") if kind == "sleep" else (None, None, None, "700ms", "3s")),
        on_timeout=random.choice(("reject", "approve", "fail")),
    )


class Example(Struct, frozen=True):
    """A command of a user's, as it is submitted: of a type of his application, or with its definition."""

    type: str | None = None
    payload: Any = None
    definition: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        return self.type or str((self.definition or {}).get("name", "the definition"))


class Crash(Struct, frozen=True):
    """The process dies at its ``number``-th append (or call), from 1, before that is sent or after it has landed."""

    kind: str  # append, call
    number: int
    after: bool

    def __str__(self) -> str:
        return f"{self.kind}:{self.number}:{'after' if self.after else 'before'}"


class Order(Struct, frozen=True):
    """One client's wish: the command, when it is sent (s), how its client behaves, and its deadline if it has one."""

    number: int
    id: str
    tree: Tree | Example
    at: float
    style: str
    timeout: str | None
    again: int  # how often it asks once more, when it knows the end
    twin: bool  # whether somebody else sends the very same
    type: str = "Tree"
    delay: str | None = None

    @property
    def example(self) -> Example:
        return self.tree if isinstance(self.tree, Example) else Example(self.type, msgspec.to_builtins(self.tree))

    @property
    def root(self) -> Node | None:
        """The tree that it runs, if it is one of ours."""
        return self.tree.root if isinstance(self.tree, Tree) else None


STYLES: Final = ("waits", "watches", "polls", "leaves")


def _order(seed: int, number: int, until: float, examples: Sequence[Example]) -> Order:
    random = stream(seed, "order", number)
    names = iter(range(1000))
    root = Node("sequence", parts=tuple(_node(random, 1, names) for _ in range(random.randint(1, 3))))
    tree = Tree(root, random.choices(("well", "fails", "poison"), (10, 1, 0.5))[0])
    return Order(
        number,
        f"c{number}-{seed}",
        examples[number % len(examples)] if examples else tree,
        random.uniform(0, until * 0.8),
        random.choices(STYLES, (4, 4, 2, 1))[0],
        random.choice((None, None, None, None, "700ms", "4s")),
        random.choice((0, 0, 1, 3)),
        random.random() < 0.2,
        random.choice(("Tree", "Tree", *TYPES)),
        random.choice((None, None, None, None, None, "600ms")),
    )


# ---------------------------------------------------------------- services' answers


def script(seed: int, key: str, bad: float) -> list[str]:
    """What a service says to the calls with this key, in turn, before it says yes for ever.

    ``no`` refuses and may think better of it, ``never`` refuses for good, ``busy`` is 503 without effect, ``broken`` is
    500 with it, ``void`` loses the request, ``lost`` the answer.
    """
    random = stream(seed, "script", key)
    kinds = ["no", "busy", "broken", "void", "lost"] + ([] if key.endswith("/undo") else ["never"])
    answers: list[str] = []
    while len(answers) < 3 and random.random() < bad:
        answers.append(random.choice(kinds))
        if answers[-1] == "never":
            break
    return answers


# ---------------------------------------------------------------- the plan


class Plan(Struct, frozen=True):
    """All that is fixed beforehand.  ``rates`` are the odds of each fault where there may be one; 0 where it is off."""

    seed: int
    group: bool  # instances are a group; else each is the other's standby
    instances: int
    partitions: int
    orders: tuple[Order, ...]
    until: float  # when the trouble ends (s)
    faults: frozenset[str]
    max_commands: int
    max_in_flight: int
    recovery_target_ms: int
    retain_ms: int
    pace: float  # how long a service takes (s), at most
    rates: dict[str, float]
    services: tuple[str, ...] = SERVICES
    crash: Crash | None = None
    declining: str = ""  # a step that is refused for good


def calm(examples: Sequence[Example], services: tuple[str, ...], *, crash: Crash | None, declining: str) -> Plan:
    """One instance, one command at a time, and nothing goes wrong but what is asked for."""
    orders = tuple(
        Order(number, f"c{number}", each, 0.5 * number, "waits", None, 0, False) for number, each in enumerate(examples)
    )
    return Plan(
        seed=0,
        group=False,
        instances=1,
        partitions=1,
        orders=orders,
        until=0.5 * len(orders) + 0.2,
        faults=frozenset(),
        max_commands=50,
        max_in_flight=64,
        recovery_target_ms=5_000,
        retain_ms=0,
        pace=0.002,
        rates=dict.fromkeys(_ODDS, 0.0),
        services=services,
        crash=crash,
        declining=declining,
    )


def plan(
    seed: int, cut: Cut = WHOLE, *, examples: Sequence[Example] = (), services: tuple[str, ...] = SERVICES
) -> Plan:
    """The plan of a seed, smaller by ``cut``; with a user's commands in place of random ones, if there are any."""
    random = stream(seed, "plan")
    group = random.random() < 0.6
    instances = random.choice((2, 2, 3, 3, 4) if group else (1, 2, 2, 2))
    partitions = random.choice((1, 2, 3, 4) if group else (1, 1, 2))
    until = random.uniform(1.5, 6)
    faults = frozenset(kind for kind in FAULTS if random.random() < 0.6) - set(cut.without)
    max_commands, max_in_flight = random.choice((2, 4, 50)), random.choice((1, 3, 64))
    count = random.randint(2, 9)
    recovery_target_ms = random.choice((5_000, 1, 0))
    retain_ms = RETAIN_MS if random.random() < 0.12 else 0
    pace = random.choice((0.002, 0.1, 0.4))
    rates = {name: odds * random.choice((0.3, 1, 2)) for name, odds in _ODDS.items()}
    rates = {name: odds if name.partition("/")[0] in faults else 0.0 for name, odds in rates.items()}
    numbers = range(count) if cut.commands is None else [each for each in range(count) if each in cut.commands]
    orders = tuple(_order(seed, number, until, examples) for number in numbers)
    if retain_ms:  # half of the commands come when all that was before is old enough to be deleted
        later = RETAIN_MS / 1000 + until
        orders = tuple(replace(each, at=each.at + later) if each.number % 2 else each for each in orders)
        until += later
    if cut.until is not None:
        until = min(until, cut.until)
    return Plan(
        seed=seed,
        group=group,
        instances=instances,
        partitions=partitions,
        orders=orders,
        until=until,
        faults=faults,
        max_commands=max_commands,
        max_in_flight=max_in_flight,
        recovery_target_ms=recovery_target_ms,
        retain_ms=retain_ms,
        pace=pace,
        rates=rates,
        services=services,
    )


_ODDS: Final = {
    "crash/append": 0.01,  # before it lands or after, of each append
    "crash/call": 0.008,
    "crash/second": 0.06,
    "pause/second": 0.15,
    "log/append": 0.06,
    "log/read": 0.02,
    "log/second": 0.04,  # of an instance being cut off from the log
    "network/call": 0.06,  # lost, late or twice
    "network/client": 0.05,  # connection lost
    "network/probe": 0.05,
    "services/answer": 0.15,
    "services/second": 0.08,  # of a service going down
    "operators/second": 0.8,
    "clock/second": 0.05,
    "view/boot": 0.2,  # the view's file is gone
    "links/write": 0.005,  # of a link between two instances breaking
    "links/second": 0.06,  # of two machines being cut from each other
    "group/second": 0.05,  # of a machine being cut off from the group's broker
    "group/table": 0.1,  # of a member hearing late what was agreed
    "drain/roll": 0.3,  # of all being restarted in turn, every other second
    "drain/second": 0.05,  # of an instance being stopped by SIGTERM
    "pointer/second": 0.3,  # of the pointer to a snapshot being overwritten, or lost
    "garbage/second": 0.1,  # of a stranger writing into the log
}
