"""Nodes, their edges, and what follows from the edges alone.

An edge says what a node needs (``after``, ``reads``: it waits for these) or may use (``optional``: it does not).
What only the edges decide is worked out here, once for all runs: who is to be looked at when a node has ended, whom a
failure takes along, and whose new value a node must not run ahead of.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping
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


class Edges(Struct, frozen=True):
    """One node's place in the graph; all are names.

    ``required`` are waited for, whatever the join; ``demanded_by`` cannot run without this node (or, of a join any,
    may win by it); ``triggers`` run again on its new value if they have ``reruns``; ``followers`` have any edge from
    it.
    """

    index: int
    required: tuple[str, ...]
    demanded_by: tuple[str, ...]
    triggers: tuple[str, ...]
    followers: tuple[str, ...]


class Graph:
    """Nodes and what follows from their edges, worked out once for all runs.

    Raises ValueError for a cycle (shown as a path), and for a name that is used twice or unknown.
    """

    __slots__ = ("_needs", "_upstream", "backwards", "edges", "nodes", "plain")

    def __init__(self, nodes: Iterable[Node]) -> None:
        self.nodes: dict[str, Node] = {}
        for node in nodes:
            if node.name in self.nodes:
                raise ValueError(f"two nodes are called {node.name!r}")
            self.nodes[node.name] = node
        for node in self.nodes.values():
            for name in _sources(node):
                if name not in self.nodes:
                    raise ValueError(f"{node.name!r} comes after {name!r}, which is no node")
        order = _sorted({name: _sources(node) for name, node in self.nodes.items()})
        self.backwards = tuple(reversed(order))  # whoever follows comes before whom it follows
        self.edges = self._edges()
        self.plain = all(
            node.join == "all" and node.savepoint is None and not node.listens and not node.reruns
            for node in self.nodes.values()
        )  # each node runs once, after all that it needs
        self._needs: dict[str, frozenset[str]] = {}
        self._upstream: dict[str, frozenset[str]] = {}

    def needs(self, name: str) -> frozenset[str]:
        """All that leads to the node by edges that are waited for.

        Worked out when first asked for, which is when something runs again: of a long chain it is large.
        """
        if name not in self._needs:
            self._needs[name] = _closed(name, lambda each: (*self.nodes[each].after, *_waited(self.nodes[each])))
        return self._needs[name]

    def upstream(self, name: str) -> frozenset[str]:
        """All that leads to the node by any edge."""
        if name not in self._upstream:
            self._upstream[name] = _closed(name, lambda each: _sources(self.nodes[each]))
        return self._upstream[name]

    def _edges(self) -> dict[str, Edges]:
        demanded_by: dict[str, list[str]] = {name: [] for name in self.nodes}
        triggers: dict[str, list[str]] = {name: [] for name in self.nodes}
        followers: dict[str, list[str]] = {name: [] for name in self.nodes}
        for name, node in self.nodes.items():
            for source in _sources(node):
                followers[source].append(name)
            for source in dict.fromkeys((*node.after, *_waited(node))):
                demanded_by[source].append(name)
            for source in dict.fromkeys((*node.after, *node.optional)):
                if source not in node.reads:
                    triggers[source].append(name)
        return {
            name: Edges(
                index,
                tuple(dict.fromkeys((*(node.after if node.join == "all" else ()), *_waited(node)))),
                tuple(demanded_by[name]),
                tuple(triggers[name]),
                tuple(followers[name]),
            )
            for index, (name, node) in enumerate(self.nodes.items())
        }


def find_cycle(sources: Mapping[str, Iterable[str]]) -> list[str] | None:
    """A way in a circle along the edges, each name before the one that needs it and the first one again at the end;
    None if there is none.  ``sources`` are the names that each name needs."""
    finished: set[str] = set()
    for start in sources:
        # A walk with its own stack: a chain may be longer than Python's recursion.
        path: dict[str, None] = {}
        stack = [(start, iter(sources.get(start, ())))] if start not in finished else []
        while stack:
            name, rest = stack[-1]
            path[name] = None
            following = next((each for each in rest if each not in finished), None)
            if following is None:
                stack.pop()
                del path[name]
                finished.add(name)
            elif following in path:
                circle = list(path)[list(path).index(following) :]
                return [following, *reversed(circle)]
            else:
                stack.append((following, iter(sources.get(following, ()))))
    return None


def _sorted(sources: Mapping[str, tuple[str, ...]]) -> list[str]:
    """All names, each after what it needs."""
    circle = find_cycle(sources)
    if circle is not None:
        raise ValueError(f"steps wait for each other in a circle: {' → '.join(circle)}")
    missing = {name: len(needed) for name, needed in sources.items()}
    followers: dict[str, list[str]] = {name: [] for name in sources}
    for name, needed in sources.items():
        for source in needed:
            followers[source].append(name)
    order = [name for name, count in missing.items() if not count]
    for name in order:  # grows while it is walked
        for follower in followers[name]:
            missing[follower] -= 1
            if not missing[follower]:
                order.append(follower)
    return order


def _sources(node: Node) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*node.after, *node.optional, *node.reads)))


def _waited(node: Node) -> tuple[str, ...]:
    return tuple(name for name in node.reads if name not in node.optional)


def _closed(name: str, sources: Callable[[str], Iterable[str]]) -> frozenset[str]:
    """All that is reached from the name, without itself."""
    found: set[str] = set()
    ahead = [name]
    while ahead:
        for each in sources(ahead.pop()):
            if each not in found:
                found.add(each)
                ahead.append(each)
    return frozenset(found)
