"""Random trees of all that a saga can say; people who meddle with commands, answer them, and help them to an end."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from random import Random
from typing import Any

from hypothesis import strategies as st
from msgspec.structs import replace

from coordinator.engine.state import Command
from coordinator.errors import CoordinatorError
from coordinator.model.command import Operation, State
from coordinator.model.settings import BreakerSettings, EngineSettings
from coordinator.testing.simulator.trees import DATA, TYPES, WAITS, Node, nodes_of, steps_of
from tests.properties.world import SERVICES, World

PLAYS: tuple[list[str], ...] = ([], [], [], ["no"], ["void"], ["lost", "void"], ["no", "no"], ["void", "no"])

Choose = Callable[[int, str], int]


@st.composite
def trees(draw: st.DrawFn, depth: int = 3, kinds: tuple[str, ...] = ()) -> Node:
    """Any tree; ``kinds``: only inner nodes of these kinds.  Names are given by `named`."""
    if depth == 0 or draw(st.integers(0, 3)) == 0:
        return draw(leaves())
    kind = draw(st.sampled_from(kinds or ("sequence", "sequence", "fork", "any", "savepoint")))
    most = 1 if kind == "savepoint" else 3
    return Node(
        kind,
        parts=tuple(draw(st.lists(trees(depth - 1, kinds), min_size=1, max_size=most))),
        catches=kind == "sequence" and draw(st.integers(0, 5)) == 0,
        keeps=kind == "any" and draw(st.integers(0, 3)) == 0,
        then=draw(st.sampled_from(["retry", "undo", "dead_letter"])) if kind == "savepoint" else "retry",
        tries=draw(st.integers(1, 2)),
        exhausted=draw(st.sampled_from(["undo", "dead_letter"])),
    )


@st.composite
def leaves(draw: st.DrawFn) -> Node:
    """A step, mostly; else something to wait for."""
    kind = draw(st.sampled_from(("step",) * 5 + WAITS))
    if kind == "step":
        return Node(
            "step",
            service=draw(st.sampled_from(SERVICES)),
            undoable=draw(st.integers(0, 4)) > 0,
            attempts=draw(st.sampled_from([1, 1, 2])),
            deadline=draw(st.sampled_from([None, None, None, "300ms"])),
        )
    timeout = draw(st.sampled_from([None, "500ms", "2s"])) if kind != "sleep" else draw(st.sampled_from(["0ms", "1s"]))
    return Node(
        kind,
        name=draw(st.sampled_from(DATA)) if kind == "receive" else "",
        timeout=timeout,
        on_timeout=draw(st.sampled_from(["reject", "approve", "fail"])),
    )


def named(node: Node, numbers: Any = None) -> Node:
    """The tree with a name of its own for everything but data."""
    numbers = numbers or count()
    if not node.name:
        node = replace(node, name=f"{node.kind[0]}{next(numbers)}")
    return replace(node, parts=tuple(named(part, numbers) for part in node.parts))


@st.composite
def forests(draw: st.DrawFn, crashes: int = 3, kinds: tuple[str, ...] = ()) -> tuple[World, dict[str, Node]]:
    """A world with one to three commands in it, submitted.  What the services say and what happens when is chance,
    from one number: so that a thousand turns cost no more than one."""
    seed = draw(st.integers(0, 1 << 32))
    roots = {f"c{n}": named(draw(trees(kinds=kinds))) for n in range(draw(st.integers(1, 3)))}
    random = Random(seed)
    world = World(
        chosen(random),
        script=scripts(random, roots),
        crashes=draw(st.integers(0, crashes)),
        settings=EngineSettings(retry_jitter_ms=0, max_commands=draw(st.sampled_from([2, 50]))),
        breaker=BreakerSettings(failures=random.choice((2, 1_000)), reset_ms=500),
        slow=True,
    )
    for id, root in roots.items():
        plant(world, id, root, random)
    return world, roots


def plant(world: World, id: str, root: Node, random: Random) -> None:
    """Submits it, with some type and some wishes; one for which there is no slot is left out."""
    kind = random.choice(("Tree", "Tree", *TYPES))
    timeout = random.choice((None, None, None, 900, 5_000))
    try:
        world.submit(id, root, timeout, type=kind, delay=random.choice((0, 0, 0, 400)))
    except CoordinatorError:
        return


def scripts(random: Random, roots: dict[str, Node]) -> dict[str, list[str]]:
    """What the services say: of first and second rounds, of steps and of undos."""
    keys = [f"{id}/{step.name}{again}" for id, root in roots.items() for step in steps_of(root) for again in ("", "#2")]
    return {f"{key}{undo}": list(random.choice(PLAYS)) for key in keys for undo in ("", "/undo")}


def chosen(random: Random) -> Choose:
    return lambda n, what: random.randrange(n)


# ---------------------------------------------------------------- people


def meddle(world: World, roots: dict[str, Node]) -> None:
    """Somebody does something or other to one of the commands, whether it is of use or not."""
    commands = world.under_way()
    if not commands:
        return
    choose = world.choose
    command = commands[choose(len(commands), "whose turn is it?")]
    try:
        match choose(4, "who meddles?"):
            case 0:
                again = choose(3, "is the id one that was used?")
                world.provide(command.id, DATA[choose(2, "what name?")], f"id{again}" if again else "")
            case 1:
                asked = [node.name for node in nodes_of(roots[command.id]) if node.kind == "decision"]
                if asked:
                    world.decide(command.id, asked[choose(len(asked), "which?")], approve=choose(3, "approve?") > 0)
            case _:
                operate(world, command, list(Operation)[choose(len(Operation), "what does the operator ask?")])
    except CoordinatorError:
        return


def operate(world: World, command: Command, operation: Operation) -> None:
    letters = [name for name, step in command.steps.items() if step.parked]
    step = letters[world.choose(len(letters), "which letter?")] if letters else ""
    world.control(command.id, operation, step)


def help_out(world: World, *, patient: bool = True) -> bool:
    """People give what is waited for and see to what is parked, or (not ``patient``) cancel it; False if there is
    nothing to do.  Nothing else may wait when the world is at rest."""
    commands = world.under_way()
    for command in commands:
        told = f"{command.id} is stuck: {command.state}"
        assert command.state in (State.PAUSED, State.DEAD_LETTER, State.WAITING), told
        assert command.dead_letters == sum(step.parked for step in command.steps.values())
        try:
            _help(world, command) if patient or command.contrary else world.control(command.id, Operation.CANCEL)
        except CoordinatorError as refused:
            raise AssertionError(f"{told}, and who would help is told {refused}") from refused
    return bool(commands)


def _help(world: World, command: Command) -> None:
    if command.state is State.PAUSED:
        world.control(command.id, Operation.RESUME)
    elif command.state is State.WAITING:
        assert command.execution is not None
        assert command.waits
        waiting = command.execution.waiting
        assert {each.call.kind for each in waiting} & {"data", "decision"}, f"{command.id} sleeps for ever"
        for each in waiting:
            if each.call.kind == "data":
                world.provide(command.id, each.call.channel)
            elif each.call.kind == "decision":
                world.decide(command.id, each.name, approve=world.choose(4, "approve?") > 0)
    elif command.poison is not None and world.choose(3, "is it given up?"):
        world.control(command.id, Operation.CANCEL)
    else:
        letters = [name for name, step in command.steps.items() if step.parked]
        undos = [name for name in letters if command.steps[name].undoing]
        if undos and not world.choose(3, "by hand?"):
            world.control(command.id, Operation.RESOLVE, undos[0])
        elif letters and world.choose(2, "all, or one?"):
            world.control(command.id, Operation.REQUEUE, letters[-1])
        else:
            world.control(command.id, Operation.RETRY)


def see_through(world: World, roots: dict[str, Node]) -> None:
    """To the end of all commands, with the help of people; then everything is checked."""
    for times in range(60):
        world.settle()
        if not help_out(world, patient=times < 12):
            break
    else:
        raise AssertionError(f"no help is enough: {[(each.id, each.state) for each in world.under_way()]}")
    for id, root in roots.items():
        if id in world.accepted or world.finals(id):
            world.check(id, root)
    for service in world.engine.services.values():
        assert (service.in_flight, service.backlog, len(service.queue), len(service.ready)) == (0, 0, 0, 0)
    assert world.engine.slots == set()
    assert not world.engine.commands
