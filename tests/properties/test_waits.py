"""Whatever a saga can say, in a world that crashes, among people who meddle: what must hold."""

from __future__ import annotations

from itertools import count
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.engine import engine
from coordinator.testing.simulator.trees import Node
from coordinator.wire.codec import encode
from tests.properties.forests import chosen, forests, meddle, plant, scripts, see_through
from tests.properties.test_sagas import compare
from tests.properties.world import World

Drawn = tuple[World, dict[str, Node]]


@given(forests(), st.integers(0, 12))
@settings(max_examples=200, deadline=None)
def test_every_command_ends_whole(drawn: Drawn, meddling: int) -> None:
    """Crashes, signals early and late, decisions, operators, times: with help all end, and the books balance."""
    world, roots = drawn
    for _ in range(meddling):
        for _ in range(world.choose(12, "how long is it quiet?")):
            world.turn()
        meddle(world, roots)
    see_through(world, roots)


@given(forests(crashes=0), st.integers(0, 8))
@settings(max_examples=60, deadline=None)
def test_a_process_that_begins_at_any_point_stands_where_the_old_one_stood(drawn: Drawn, meddling: int) -> None:
    """After each turn a second engine folds the log: all that it believes and would do is the same."""
    world, roots = drawn
    for _ in range(meddling + 1):
        for _ in range(world.choose(12, "how long is it quiet?")):
            world.turn()
            compare(world)
        meddle(world, roots)


@given(st.integers(0, 1 << 32), st.integers(0, 8))
@settings(max_examples=50, deadline=None)
def test_commands_that_slept_and_ones_that_did_not_have_the_same_course(seed: int, meddling: int) -> None:
    """The same records, the same calls under the same fences: waking is replay, and there is no other way."""
    with pytest.MonkeyPatch.context() as patch:
        slept = course(seed, meddling)
        patch.setattr(engine, "_is_busy", lambda command: True)
        assert course(seed, meddling) == slept


def course(seed: int, meddling: int) -> list[object]:
    """The records and the calls of a world that this number stands for."""
    random = Random(seed)
    root = grown(random)
    world = World(chosen(random), script=scripts(random, {"c0": root}), crashes=2, slow=True)
    plant(world, "c0", root, random)
    for _ in range(meddling):
        for _ in range(world.choose(12, "how long is it quiet?")):
            world.turn()
        meddle(world, {"c0": root})
    see_through(world, {"c0": root})
    return [*map(encode, world.log), *((at, call.key, call.fence) for at, call in world.calls)]


def grown(random: Random, depth: int = 2) -> Node:
    """A tree by chance alone, half of whose leaves wait."""
    numbers = count()

    def node(depth: int) -> Node:
        kind = (
            random.choice(("sequence", "fork", "any")) if depth else random.choice(("step", "step", "receive", "sleep"))
        )
        name = "otp" if kind == "receive" else f"{kind[0]}{next(numbers)}"
        parts = tuple(node(depth - 1) for _ in range(2)) if depth else ()
        return Node(kind, name, parts=parts, timeout="1s" if kind == "sleep" else None)

    return node(depth)
