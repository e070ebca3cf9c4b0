"""A snapshot and the rest of the log are as good as the whole log, wherever it is cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.engine.engine import Engine
from coordinator.engine.snapshots import Header, Whole, complete, cut, restore
from coordinator.engine.state import Command
from coordinator.errors import CorruptLog
from coordinator.model.command import Operation
from coordinator.model.records import SCHEMA, Record, Registered, Snapshot, raw
from coordinator.testing.simulator.trees import Node
from coordinator.wire.codec import decode, encode
from tests.properties.test_sagas import meddle, operate, troubled_worlds, worlds
from tests.properties.world import World, fold_of

VOLATILE = {
    "execution",
    "fed",
    "failure",
    "finishing",
    "proposed",
    "work",
    "calls_made",
    "rerun_at",
    "rerun_blocked",
}
SMALL = 1_600  # bytes of a part, so that a few records need several


def folded(world: World, log: Sequence[Record], start: int = 0, engine: Engine | None = None) -> Engine:
    """What a replay makes of these records, the first of which is at ``start``."""
    engine = engine if engine is not None else world.replayed(0)
    for offset, record in enumerate(log, start):
        engine.apply(0, offset, record)
    return engine


def parts_of(engine: Engine, covered: int) -> list[Snapshot]:
    """The snapshot of this moment, as it comes back from a log."""
    header = Header(b"snapshot", covered, b"in force", b"identity", 77)
    return [
        decode(encode(part), partition=0, offset=0)  # type: ignore[misc]
        for part in cut(engine, 0, header, part_bytes=SMALL)
        if part is not None
    ]


def state(engine: Engine) -> list[Any]:
    """All that two engines must agree on, down to the order of commands; volatile fields are found again."""
    shard = engine.shards.get(0)
    commands = engine.replaying.get(0, {}) if shard is None else shard.commands
    return [
        [
            {slot: _plain(getattr(command, slot)) for slot in command.__slots__ if slot not in VOLATILE}
            for command in commands.values()
            if isinstance(command, Command) and command.finished is None  # nobody sleeps in these worlds
        ],
        engine.definitions.get(0, {}),
        engine.quarantined[0].entries,
    ]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if hasattr(value, "__slots__") and type(value).__name__ == "Step":
        return {slot: getattr(value, slot) for slot in value.__slots__}
    return value


def run(world: World, roots: dict[str, Node], draw: Any, turns: int) -> None:
    """Some history: commands, an operator who meddles, definitions in between."""
    for number, (id, root) in enumerate(roots.items()):
        world.submit(id, root, timeout=draw(st.sampled_from([None, None, 300])))
        world.engine.register(Registered(SCHEMA, b"", world.now, "d", number % 2 + 1, raw({"steps": []}), b"p"), 0)
    for turn in range(turns):
        if not world.turn():
            break
        if turn % 7 == 6:
            meddle(world, world.choose)


@given(st.data(), st.one_of(worlds(crashes=2), troubled_worlds()), st.integers(1, 60))
@settings(max_examples=250, deadline=None)
def test_a_snapshot_and_the_rest_are_the_whole(data: st.DataObject, drawn: Any, turns: int) -> None:
    """At any offset of a random history: cut there, put back, read on; nothing tells it from a replay of it all."""
    world, roots = drawn
    run(world, roots, data.draw, turns)
    whole = folded(world, world.log)
    for covered in data.draw(st.sets(st.integers(0, len(world.log)), min_size=1, max_size=4)):
        reader = folded(world, world.log[:covered])
        parts = parts_of(reader, covered)
        again = world.replayed(0)
        assert list(restore(again, 0, Whole(covered, parts)))
        assert state(again) == state(reader)
        assert parts_of(again, covered) == parts
        folded(world, world.log[covered:], covered, again)
        assert state(again) == state(whole)
        assert parts_of(again, len(world.log)) == parts_of(whole, len(world.log))


@given(st.data(), st.one_of(worlds(crashes=0), troubled_worlds()), st.integers(1, 60))
@settings(max_examples=200, deadline=None)
def test_what_is_found_again_is_the_same_too(data: st.DataObject, drawn: Any, turns: int) -> None:
    """Opened, the engine that was given a snapshot would go on as the one that read everything: same steps, same
    undos."""
    world, roots = drawn
    run(world, roots, data.draw, turns)
    covered = data.draw(st.integers(0, len(world.log)))
    again = world.replayed(0)
    assert list(restore(again, 0, Whole(9, parts_of(folded(world, world.log[:covered]), covered))))
    folded(world, world.log[covered:], covered, again)
    for engine in (whole := folded(world, world.log), again):
        engine.open(0, b"judge..!", len(world.log))
        engine.take(world.now)
    assert list(again.commands) == list(whole.commands)
    assert again.slots == whole.slots
    for id, command in whole.commands.items():
        assert fold_of(again.commands[id]) == fold_of(command)


@given(st.data(), st.one_of(worlds(crashes=0), troubled_worlds()), st.integers(0, 30), st.integers(1, 4))
@settings(max_examples=250, deadline=None)
def test_commands_go_on_while_a_snapshot_is_made(data: st.DataObject, drawn: Any, turns: int, pace: int) -> None:
    """A live engine is cut, its parts go to the log one by one between the records of what goes on: commands that are
    answered, end and begin meanwhile change nothing of it, and a reader finds the same state with it and without."""
    world, roots = drawn
    run(world, roots, data.draw, turns)
    covered = len(world.log)
    reference = parts_of(folded(world, world.log), covered)
    header = Header(b"snapshot", covered, world.token, b"identity", 77)
    found: list[Snapshot] = []
    crashes, world.crashes = world.crashes, 0
    for part in cut(world.engine, 0, header, part_bytes=SMALL):
        if part is not None:
            world.log.append(part)
            found.append(decode(encode(part), partition=0, offset=0))  # type: ignore[arg-type]
        for _ in range(pace):
            world.turn()
            for id in roots:
                if world.choose(12, "does somebody cancel?") == 0:
                    operate(world, id, Operation.CANCEL)
    world.crashes = crashes
    assert complete(found)
    assert [(part.commands, part.definitions) for part in found] == [
        (part.commands, part.definitions) for part in reference
    ]
    again = world.replayed(0)
    assert list(restore(again, 0, Whole(covered, found)))
    folded(world, world.log[covered:], covered, again)
    assert state(again) == state(folded(world, world.log))


@given(st.data(), st.one_of(worlds(crashes=0), troubled_worlds()), st.integers(4, 60))
@settings(max_examples=60, deadline=None)
def test_a_snapshot_without_one_of_its_parts_is_no_snapshot(data: st.DataObject, drawn: Any, turns: int) -> None:
    """Whichever is missing, or comes twice: it is refused as a whole."""
    world, roots = drawn
    run(world, roots, data.draw, turns)
    parts = parts_of(folded(world, world.log), len(world.log))
    at = data.draw(st.integers(0, len(parts) - 1))
    for torn in (parts[:at] + parts[at + 1 :], parts[: at + 1] + parts[at:]):
        with pytest.raises(CorruptLog, match="incomplete"):
            Whole(0, torn)
