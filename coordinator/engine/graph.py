"""Runs steps in the order that their dependencies ask for; definitions and flows are both made of it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Final, Literal

from msgspec import Struct

from coordinator.saga import Saga


class _Skipped:
    __slots__ = ()

    def __repr__(self) -> str:
        return "SKIPPED"


SKIPPED: Final = _Skipped()
"""What the run of a node returns that its condition left out: its value is None, and who comes after it goes on."""


class Savepoint(Struct, frozen=True, kw_only=True):
    """What a failure after the node does, once all after the node is undone; as in `Saga.savepoint`."""

    then: Literal["retry", "undo", "dead_letter"] = "retry"
    attempts: int = 1
    exhausted: Literal["undo", "dead_letter"] = "undo"


class Run(Struct, frozen=True):
    """What a node is run with.

    ``round`` is 1, and one more each time that it runs again.  ``values`` are those of the nodes that have ended, by
    name; names that end later may appear in it, but what is in it stays as it is.  ``context`` is `run_graph`'s.
    """

    name: str
    round: int
    values: Mapping[str, Any]
    saga: Saga
    context: Any = None


class Node(Struct, frozen=True, kw_only=True):
    """One node; ``run`` does its work and returns its value, or SKIPPED.

    ``after`` are waited for; ``optional`` are used if there, and never waited for; a new value of either runs the node
    again, if it ``reruns``.  ``reads`` never run it again; they are waited for unless they are in ``optional`` too.
    ``join``: ``any`` runs after the first of ``after`` that succeeds, and then ``losers`` says what becomes of all
    that leads to it alone and has not won.  ``savepoint``: its scope is all that comes after the node.  ``listens``: a
    datum from outside, which may come again; ``run`` begins at once, begins anew when it has returned, and does not
    keep the graph from ending.
    """

    name: str
    run: Callable[[Run], Coroutine[Any, Any, Any]]
    after: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    join: Literal["all", "any"] = "all"
    losers: Literal["undo", "keep"] = "undo"
    savepoint: Savepoint | None = None
    listens: bool = False
    reruns: bool = False


class Graph:
    """Nodes and what follows from their edges, worked out once for all runs; raises ValueError for a cycle, a name
    that is used twice or unknown."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        self.nodes = {node.name: node for node in nodes}


async def run_graph(
    graph: Graph | Sequence[Node], saga: Saga, *, context: Any = None, revision: int | None = None
) -> dict[str, Any]:
    """Runs all nodes; returns their values by name (a skipped node's is None; what was given up has none).

    ``revision`` is the saga's unless given: how many times all must have settled before it returns.  Raises the
    StepFailed or CommandFailed that no savepoint and no join has taken.
    """
    raise NotImplementedError
