"""Random sagas in a world that crashes: what must hold whatever happens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from coordinator.errors import CoordinatorError
from coordinator.model.command import Operation, State
from coordinator.model.ids import CommandId
from coordinator.model.records import Outcome
from coordinator.model.settings import BreakerSettings, EngineSettings
from coordinator.testing.simulator.trees import Node, steps_of
from tests.properties.world import SERVICES, World, fold_of

ANSWERS = st.sampled_from(["ok", "ok", "ok", "no", "lost", "void"])


@st.composite
def trees(draw: st.DrawFn, depth: int = 2) -> Node:
    """A sequence or fork of at most three parts, two levels deep; names are given by `named`."""
    if depth == 0 or draw(st.integers(0, 2)) == 0:
        return Node(
            "step",
            service=draw(st.sampled_from(SERVICES)),
            undoable=draw(st.integers(0, 4)) > 0,
            attempts=draw(st.sampled_from([1, 1, 2])),
        )
    kind = draw(st.sampled_from(["sequence", "fork"]))
    parts = tuple(draw(st.lists(trees(depth - 1), min_size=1, max_size=3)))
    return Node(kind, parts=parts, catches=kind == "sequence" and draw(st.integers(0, 5)) == 0)


def named(node: Node, counter: list[int] | None = None) -> Node:
    """The tree with its steps called s0, s1, … in order."""
    counter = counter if counter is not None else [0]
    if node.kind == "step":
        counter[0] += 1
        return structs.replace(node, name=f"s{counter[0] - 1}")
    return structs.replace(node, parts=tuple(named(part, counter) for part in node.parts))


@st.composite
def worlds(draw: st.DrawFn, crashes: int = 3) -> tuple[World, dict[str, Node]]:
    roots = {f"c{n}": named(draw(trees())) for n in range(draw(st.integers(1, 2)))}
    keys = [
        f"{id}/{step.name}{undo}" for id, root in roots.items() for step in steps_of(root) for undo in ("", "/undo")
    ]
    script = draw(st.dictionaries(st.sampled_from(keys), st.lists(ANSWERS, min_size=1, max_size=3), max_size=6))
    for key, answers in script.items():
        if key.endswith("/undo"):  # a refused undo is a dead letter: another test
            script[key] = ["void" if answer == "no" else answer for answer in answers]
    world = World(chooser(draw), script=script, crashes=draw(st.integers(0, crashes)))
    return world, roots


def chooser(draw: st.DrawFn) -> Callable[[int, str], int]:
    return lambda n, what: draw(st.integers(0, n - 1), label=what)


def operate(world: World, id: str, operation: Operation) -> None:
    """An operator's request, if the command is still there and it is legal."""
    if CommandId(id) in world.engine.commands:
        try:
            world.control(id, operation)
        except CoordinatorError:
            return


@given(worlds())
@settings(max_examples=300, deadline=None)
def test_every_accepted_command_ends_once_and_whole(drawn: tuple[World, dict[str, Node]]) -> None:
    """Crashes before and after each append and call lose nothing, double nothing and leave nothing half done."""
    world, roots = drawn
    for id, root in roots.items():
        world.submit(id, root)
    world.settle()
    for id, root in roots.items():
        if id in world.accepted or world.finals(id):
            world.check(id, root)


@given(worlds(), st.integers(0, 40), st.sampled_from([Operation.CANCEL, Operation.ABORT]))
@settings(max_examples=300, deadline=None)
def test_a_cancel_at_any_moment_leaves_no_effect(
    drawn: tuple[World, dict[str, Node]], turns: int, operation: Operation
) -> None:
    """Cancel resolves what is in doubt, also what a dead process had called, and undoes everything recorded."""
    world, roots = drawn
    for id, root in roots.items():
        world.submit(id, root)
    for _ in range(turns):
        world.turn()
    for id in roots:
        operate(world, id, operation)
    world.settle()
    for id, root in roots.items():
        if id in world.accepted or world.finals(id):
            state = world.check(id, root)
            assert operation is not Operation.ABORT or state in ("aborted", "completed", "compensated", "failed")


@given(worlds(), st.integers(1, 400))
@settings(max_examples=150, deadline=None)
def test_a_deadline_is_a_failure_like_any_other(drawn: tuple[World, dict[str, Node]], timeout: int) -> None:
    """Whenever it fires, the command ends whole; late rather than never."""
    world, roots = drawn
    for id, root in roots.items():
        world.submit(id, root, timeout=timeout)
    world.settle()
    for id, root in roots.items():
        if id in world.accepted or world.finals(id):
            world.check(id, root)


@given(worlds(crashes=0), st.lists(st.sampled_from([Operation.PAUSE, Operation.RESUME, Operation.CANCEL]), max_size=3))
@settings(max_examples=150, deadline=None)
def test_replayed_state_equals_live_state_after_every_prefix(
    drawn: tuple[World, dict[str, Node]], operations: list[Any]
) -> None:
    """A second engine that folds the log stands where the first one stands, down to the calls that it would make."""
    world, roots = drawn
    for id, root in roots.items():
        world.submit(id, root)
    turn = 0
    while world.turn() and turn < 2_000:
        turn += 1
        if operations and turn % 5 == 0:
            operation = operations.pop()
            for id in roots:
                operate(world, id, operation)
        compare(world)


def compare(world: World) -> None:
    """A process that begins now stands where this one stands."""
    world.decided()
    replayed = world.replayed(len(world.log))
    replayed.open(0, b"other..!", len(world.log))
    replayed.take(world.now)
    ids = set(world.engine.shards[0].commands)
    assert set(replayed.shards[0].commands) == ids
    for id in ids:
        command, other = world.engine.look_at(0, id), replayed.look_at(0, id)
        assert command is not None
        assert other is not None
        assert command.dead_letters == sum(step.parked for step in command.steps.values())
        assert set(command.standing) == {
            name for name, step in command.steps.items() if step.outcome and not step.undone
        }
        live, again = fold_of(command), fold_of(other)
        for volatile in ("work",):  # what is called, and when, depends on timers: the pending steps do not
            live.pop(volatile)
            again.pop(volatile)
        assert live == again, {key: (live[key], again[key]) for key in live if live[key] != again[key]}


# ---------------------------------------------------------------- outages, patience and people


@st.composite
def troubled_worlds(draw: st.DrawFn) -> tuple[World, dict[str, Node]]:
    """Several commands contend for services that go down for a while; steps lose patience, undos are refused."""
    roots = {f"c{n}": named(impatient(draw(trees(depth=1)), draw)) for n in range(draw(st.integers(2, 4)))}
    steps = [(id, step) for id, root in roots.items() for step in steps_of(root)]
    script: dict[str, list[str]] = {}
    for id, step in steps:
        plays = draw(st.sampled_from([[], [], ["no"], ["void"], ["lost", "void"], ["void"] * 4, ["void", "no"]]))
        script[f"{id}/{step.name}"] = list(plays)
        script[f"{id}/{step.name}/undo"] = list(draw(st.sampled_from([[], [], ["no"], ["void", "no"], ["lost"]])))
    world = World(
        chooser(draw),
        script=script,
        crashes=draw(st.integers(0, 2)),
        settings=EngineSettings(retry_jitter_ms=draw(st.sampled_from([0, 100]))),
        breaker=BreakerSettings(failures=draw(st.integers(1, 3)), reset_ms=500),
        slow=True,
    )
    return world, roots


def impatient(node: Node, draw: st.DrawFn) -> Node:
    """Some steps give up sooner than their service is back."""
    if node.kind == "step":
        return structs.replace(node, give_up_after=draw(st.sampled_from([None, None, "150ms", "700ms"])))
    return structs.replace(node, parts=tuple(impatient(part, draw) for part in node.parts))


def meddle(world: World, draw: Callable[[int, str], int]) -> None:
    """An operator does something or other to one of the commands; a cancel that would pass over a dead undo is left to
    its own test, since it breaks the order on purpose."""
    commands = list(world.engine.commands.values())
    if not commands:
        return
    command = commands[draw(len(commands), "whose turn is it?")]
    operation = list(Operation)[draw(len(Operation), "what does the operator ask?")]
    if operation is Operation.CANCEL and command.parked:
        return
    parked = [name for name, step in command.steps.items() if step.parked]
    try:
        world.control(command.id, operation, parked[0] if parked and operation is Operation.REQUEUE else "")
    except CoordinatorError:
        return


def help_out(world: World) -> bool:
    """A person sees to what waits for one; False if nothing does.  Nothing else may wait when the world is at rest."""
    waiting = list(world.engine.commands.values())
    for command in waiting:
        assert command.state in (State.PAUSED, State.DEAD_LETTER), f"{command.id} is stuck: {command.state}"
        assert command.dead_letters == sum(step.parked for step in command.steps.values())
        operation = Operation.RESUME if command.state is State.PAUSED else Operation.RETRY
        world.control(command.id, operation)
    return bool(waiting)


@given(troubled_worlds(), st.lists(st.integers(0, 12), max_size=8))
@settings(max_examples=250, deadline=None)
def test_nobody_is_stuck_whatever_outages_and_operators_do(
    drawn: tuple[World, dict[str, Node]], pauses: list[int]
) -> None:
    """At rest a command has ended or waits for a person; with a person's help all end whole, and the books balance."""
    world, roots = drawn
    for id, root in roots.items():
        world.submit(id, root)
    for turns in pauses:
        for _ in range(turns):
            world.turn()
        meddle(world, world.choose)
    for _ in range(60):
        world.settle()
        if not help_out(world):
            break
    for id, root in roots.items():
        if id in world.accepted or world.finals(id):
            world.check(id, root)
    for service in world.engine.services.values():
        assert (service.in_flight, service.backlog, len(service.queue), len(service.ready)) == (0, 0, 0, 0)
        assert not service.suspended(world.now + 500)
    assert world.engine.slots == set()


def test_a_predecessor_is_recorded_before_its_successor_is_called() -> None:
    """No call leaves before the records that justify it are durable."""
    root = named(Node("sequence", parts=(Node("step"), Node("step"), Node("step"))))
    world = World(lambda n, what: n - 1)
    world.submit("c0", root)
    world.settle()
    assert world.check("c0", root) == "completed"
    for length, call in world.calls:
        number = int(call.step[1:])
        before = {r.step for r in world.log[:length] if isinstance(r, Outcome)}
        assert {f"s{n}" for n in range(number)} <= before


def test_an_undo_that_is_refused_is_parked_and_runs_again_on_requeue() -> None:
    """It never fails silently: the command shows it, later undos wait, and a requeue runs the undo, not the step."""
    root = named(Node("sequence", parts=(Node("step"), Node("step"), Node("step"))))
    world = World(lambda n, what: n - 1, script={"c0/s2": ["no"], "c0/s1/undo": ["no"]})
    world.submit("c0", root)
    world.settle()
    command = world.engine.commands[CommandId("c0")]
    assert command.state == "dead_letter"
    assert command.steps["s1"].parked
    assert "c0/s0" in world.ledger.live
    world.control("c0", Operation.REQUEUE, "s1")
    world.settle()
    assert world.check("c0", root) == "compensated"
    assert world.ledger.undone == ["c0/s1", "c0/s0"]
    assert world.ledger.done == ["c0/s0", "c0/s1"]


@pytest.mark.parametrize("attempts", [1, 3])
def test_attempts_are_total_calls(attempts: int) -> None:
    """A step with three attempts is called three times, not four; one without a retry once."""
    root = Node("step", "s0", attempts=attempts)
    world = World(lambda n, what: n - 1, script={"c0/s0": ["no"] * 5})
    world.submit("c0", root)
    world.settle()
    assert world.check("c0", root) == "failed"
    assert len([call for _, call in world.calls if call.step == "s0"]) == attempts
