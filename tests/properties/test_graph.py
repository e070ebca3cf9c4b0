"""Graphs of any shape, answered in any order: what must hold of every one of them."""

from __future__ import annotations

from typing import Any

from hypothesis import event, given
from hypothesis import strategies as st

from coordinator import Saga, StepFailed, post
from coordinator.awaitables import Skip, Wait
from coordinator.engine.graph import SKIPPED, Graph, Node, Run, Savepoint, run_graph
from coordinator.engine.stepper import Execution
from coordinator.model.ids import CommandId
from coordinator.model.records import Failure, Signal, raw


async def _step(run: Run) -> Any:
    name = run.name
    return await run.saga.step(name, post("stock", f"/{name}"), undo=post("stock", f"/{name}/undo"))


async def _skipped(run: Run) -> Any:
    await Skip(run.name)
    return SKIPPED


async def _datum(run: Run) -> Any:
    return await Wait(name=run.name, kind="data", channel=run.name, listens=True)


SAVEPOINTS = st.builds(
    Savepoint,
    then=st.sampled_from(["retry", "retry", "undo", "dead_letter"]),
    attempts=st.integers(1, 2),
    exhausted=st.sampled_from(["undo", "dead_letter"]),
)


@st.composite
def graphs(draw: st.DrawFn, *, plain: bool = False) -> list[Node]:
    """Up to nine nodes; ``plain``: joins all only, nothing skipped, no savepoints."""
    nodes: list[Node] = []
    for index in range(draw(st.integers(1, 9))):
        before = [node.name for node in nodes]
        after = tuple(draw(st.lists(st.sampled_from(before), max_size=3, unique=True))) if before else ()
        rest: dict[str, Any] = {}
        if not plain:
            if len(after) > 1 and draw(st.booleans()):
                rest["join"] = "any"
            if draw(st.integers(0, 4)) == 0:
                rest["savepoint"] = draw(SAVEPOINTS)
        run = _skipped if not plain and draw(st.integers(0, 7)) == 0 else _step
        nodes.append(Node(name=f"n{index}", run=run, after=after, **rest))
    return draw(st.permutations(nodes))


class World:
    """A graph under way, its log, and a judge who looks at every move."""

    def __init__(self, nodes: list[Node], feed: list[tuple[str, str]] | None = None) -> None:
        self.nodes = {node.name: node for node in nodes}
        self.graph = Graph(nodes)
        self.log: list[tuple[str, str]] = []
        self.standing: list[str] = []  # recorded outcomes that are not undone, oldest first
        self.undone: list[str] = []
        self._seen: set[str] = set()
        self.execution = self._fresh()
        self._judge()

    def _fresh(self) -> Execution:
        saga = Saga(id="c", type="T", version=1, attributes={}, now=0)
        return Execution(lambda given: run_graph(self.graph, given), saga)

    def moves(self) -> list[tuple[str, str]]:
        """What may happen next: each is (what, to which step)."""
        execution = self.execution
        found = [(what, name) for name in execution.pending for what in ("outcome", "failed")]
        found += [(what, name) for name in execution.orphans for what in ("outcome", "failed")]
        found += [("released", name) for name in execution.holds]
        unwanted = [name for name in self.standing if name in execution.unwanted]
        return found + [("undone", name) for name in unwanted[-1:]]

    def move(self, what: str, name: str) -> None:
        self.log.append((what, name))
        _feed(self.execution, what, name, len(self.log))
        if what == "outcome":
            self.standing.append(name)
        elif what == "undone":
            self.standing.remove(name)
            self.undone.append(name)
        self._judge()

    def _judge(self) -> None:
        new = [name for name in self.execution.calls if name not in self._seen]
        self._seen.update(new)
        for name in new:
            self._judge_start(self.nodes[name.partition("#")[0]])
        assert set(self.execution.unwanted) <= set(self.standing)  # nothing is undone twice, nor what is not recorded
        if self.execution.error is not None:
            assert isinstance(self.execution.error, StepFailed)
        elif not self.execution.done:
            assert self.moves(), "it is stuck"

    def _judge_start(self, node: Node) -> None:
        """Whoever begins stands on what is recorded and stays."""
        ended = [self._stands(name) for name in node.after]
        assert all(ended) if node.join == "all" else any(ended) or not ended

    def _stands(self, name: str) -> bool:
        if self.nodes[name].run is _skipped:
            return True
        runs = [each for each in self.standing if each.partition("#")[0] == name]
        return bool(runs) and runs[-1] not in self.execution.unwanted

    def check_replay(self) -> None:
        """A run over the same log stands where this one does."""
        replay = self._fresh()
        for at, (what, name) in enumerate(self.log, 1):
            _feed(replay, what, name, at)
        assert list(replay.pending) == list(self.execution.pending)
        assert list(replay.unwanted) == list(self.execution.unwanted)
        assert set(replay.orphans) == set(self.execution.orphans)
        assert (replay.done, replay.result) == (self.execution.done, self.execution.result)


def _feed(execution: Execution, what: str, name: str, at: int) -> None:
    if what == "outcome":
        execution.outcome(name, raw(name), at)
    elif what == "failed":
        execution.failed(name, Failure("declined", step=name), at)
    elif what == "undone":
        execution.undone(name, at)
    else:
        execution.released(name, at)


def _play(world: World, data: st.DataObject, moves_max: int = 60) -> None:
    """Moves at random, and in the end only to the good, so that it ends; or holds, where a skip makes the same failure
    count again and again, and an operator would give up."""
    while not world.execution.done:
        moves = world.moves()
        if len(world.log) >= moves_max:
            moves = [move for move in moves if move[0] != "failed"]
        if len(world.log) >= 2 * moves_max and all(what == "released" for what, _name in moves):
            return
        world.move(*data.draw(st.sampled_from(moves)))
    while world.execution.orphans or world.execution.unwanted:
        world.move(*data.draw(st.sampled_from(world.moves())))


@given(graphs(), st.data())
def test_whatever_is_answered_everybody_stands_on_what_stays(nodes: list[Node], data: st.DataObject) -> None:
    """No step begins before its sources or over the undo of one; nothing is undone twice; it always ends; a replay
    stands where the first run stood; and of a success, exactly what has no part in the result is undone."""
    world = World(nodes)
    _play(world, data)
    world.check_replay()
    if not world.execution.done:
        event("held")
        return
    if world.execution.error is not None:
        event("failed")
        return
    event("succeeded")
    stands = {name.partition("#")[0] for name in world.standing}
    steps = {name for name, node in world.nodes.items() if node.run is not _skipped}
    assert stands == steps & set(world.execution.result)
    for name in stands:
        assert world.execution.result[name] in world.standing


@given(graphs(plain=True), st.data())
def test_nobody_waits_for_a_layer(nodes: list[Node], data: st.DataObject) -> None:
    """At any time, exactly those nodes are pending whose sources have all ended, and that have not; whether somebody
    listens beside them, so that there is more to decide, or not."""
    listener = Node(name="x", run=_datum, listens=True)
    world = World([*nodes, listener] if data.draw(st.booleans()) else nodes)
    while not world.execution.done:
        ended = set(world.standing)
        ready = {node.name for node in nodes if node.name not in ended and ended.issuperset(node.after)}
        assert set(world.execution.pending) == ready
        world.move("outcome", data.draw(st.sampled_from(sorted(ready))))
    assert set(world.execution.result) == {node.name for node in nodes}


# ---------------------------------------------------------------- running again


@st.composite
def reactive(draw: st.DrawFn) -> list[Node]:
    """Two data that may come at any time, and nodes whose value is a function of what they read; all run again."""
    nodes = [Node(name=name, run=_datum, listens=True) for name in ("x", "y")]
    for index in range(draw(st.integers(1, 7))):
        names = [node.name for node in nodes]
        after = tuple(draw(st.lists(st.sampled_from(names), max_size=2, unique=True)))
        optional = tuple(draw(st.lists(st.sampled_from(names), max_size=2, unique=True)))
        nodes.append(Node(name=f"n{index}", run=_reads, after=after, optional=optional, reruns=True))
    return nodes


async def _reads(run: Run) -> Any:
    sources = (name for name in ("x", "y", *(f"n{i}" for i in range(7))) if name != run.name)
    body = {name: run.values[name] for name in sources if name in run.values}
    return await run.saga.step(run.name, post("stock", "/", body))


@given(reactive(), st.data())
def test_when_all_has_settled_every_value_is_made_of_the_newest(nodes: list[Node], data: st.DataObject) -> None:
    """Whatever came when, in the end each node's last run has read the last values of its sources."""
    graph = Graph(nodes)
    edges = {node.name: (*node.after, *node.optional) for node in nodes}
    saga = Saga(id="c", type="T", version=1, attributes={}, now=0)
    execution = Execution(lambda given: run_graph(graph, given, revision=99), saga)
    count = 0
    bodies: dict[str, dict[str, Any]] = {}
    values: dict[str, Any] = {}
    for at in range(1, 200):
        moves = [("outcome", name) for name in execution.pending]
        if count < 3 and data.draw(st.integers(0, 2)) == 0:
            moves = [("datum", "x"), ("datum", "y")]
        if not moves:
            if count >= 3:
                break
            moves = [("datum", "x"), ("datum", "y")]
        what, name = data.draw(st.sampled_from(moves))
        if what == "datum":
            count += 1
            values[name] = data.draw(st.integers(0, 2))
            execution.signal(
                Signal(
                    1, b"", at, CommandId("c"), name=name, value=raw(values[name]), signal_id=str(at), channel="data"
                )
            )
        else:
            node = name.partition("#")[0]
            body = execution.calls[name].request.body  # type: ignore[union-attr]
            bodies[node] = {source: body[source] for source in edges[node] if source in body}
            values[node] = sorted(bodies[node].items())
            execution.outcome(name, raw(values[node]), at)
    assert not execution.pending
    for node, body in bodies.items():
        newest = {source: values[source] for source in edges[node] if source in values}
        assert _plain(body) == _plain(newest)


def _plain(value: Any) -> Any:
    """As the log gives it back: no difference between a list and a tuple."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, (list, tuple)) else value
