"""Whatever a saga can say, in a world that crashes, among people who meddle: what must hold."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.testing.simulator.trees import Node
from tests.properties.forests import forests, meddle, see_through
from tests.properties.test_sagas import compare
from tests.properties.world import World

Drawn = tuple[World, dict[str, Node]]


@given(forests(), st.integers(0, 12))
@settings(max_examples=400, deadline=None)
def test_every_command_ends_whole(drawn: Drawn, meddling: int) -> None:
    """Crashes, signals early and late, decisions, operators, times: with help all end, and the books balance."""
    world, roots = drawn
    for _ in range(meddling):
        for _ in range(world.choose(12, "how long is it quiet?")):
            world.turn()
        meddle(world, roots)
    see_through(world, roots)


@given(forests(crashes=0), st.integers(0, 8))
@settings(max_examples=100, deadline=None)
def test_a_process_that_begins_at_any_point_stands_where_the_old_one_stood(drawn: Drawn, meddling: int) -> None:
    """After each turn a second engine folds the log: all that it believes and would do is the same."""
    world, roots = drawn
    for _ in range(meddling + 1):
        for _ in range(world.choose(12, "how long is it quiet?")):
            world.turn()
            compare(world)
        meddle(world, roots)


def course(world: World, roots: dict[str, Node], meddling: int) -> tuple[list[object], list[object]]:
    """Its whole course, as the records and the calls with their fences."""
    for _ in range(meddling):
        for _ in range(world.choose(12, "how long is it quiet?")):
            world.turn()
        meddle(world, roots)
    see_through(world, roots)
    return list(world.log), [(at, call.key, call.fence) for at, call in world.calls]
