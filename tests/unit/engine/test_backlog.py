"""A new owner that finds very many commands: they are put aside while the log is read, and decided on turn by turn."""

from __future__ import annotations

from random import Random

import msgspec
import pytest

from coordinator import App, Saga, post
from coordinator.engine import folding
from coordinator.engine.engine import Engine
from coordinator.engine.registry import Registry
from coordinator.engine.snapshots import Header, Whole, cut, restore
from coordinator.model.ids import CommandId
from coordinator.model.records import SCHEMA, Outcome, Submitted, raw
from coordinator.model.settings import EngineSettings

MANY = 40


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Very many are ten."""
    monkeypatch.setattr(folding, "STASH_MIN", 10)


def engine() -> Engine:
    app = App()

    @app.command(services=["stock"])
    class T(msgspec.Struct):
        async def exec(self, saga: Saga) -> None:
            await saga.step("a", post("stock", "/a"))
            await saga.receive("word", timeout="1h")

    return Engine(EngineSettings(max_commands=5), {}, Registry(app, {"stock": "http"}), Random(1))


def replayed() -> Engine:
    """The log has all of them, and an outcome of each."""
    made = engine()
    for number in range(MANY):
        id = CommandId(f"c{number}")
        made.apply(0, number, Submitted(SCHEMA, b"t", 1000, id, "T", 1, raw({}), b"f", timeout=10_000_000))
    for number in range(MANY):
        made.apply(0, MANY + number, Outcome(SCHEMA, b"t", 1000, CommandId(f"c{number}"), "a", "stock", 1, raw({})))
    return made


def settle(made: Engine) -> None:
    while made.busy:
        made.take(2000)


def test_few_are_awake_while_the_log_is_read() -> None:
    """The others are bytes: a hundred thousand must not take a gigabyte before anybody knows that they only wait."""
    made = replayed()
    made.open(0, b"t", 1)
    assert len(made.commands) <= folding.STASH_MIN
    assert made.under_way == MANY


def test_all_are_decided_on_in_the_end() -> None:
    """They sleep, each with its timers: the wait's and the command's own."""
    made = replayed()
    made.open(0, b"t", 1)
    settle(made)
    assert (len(made.commands), made.under_way, len(made.timers)) == (0, MANY, 2 * MANY)
    views = [made.look_at(0, CommandId(f"c{number}")) for number in range(MANY)]
    assert {each.state.value for each in views if each is not None} == {"waiting"}


def test_until_then_they_count_as_if_they_held_slots() -> None:
    """New ones may not join before it is known how many of the old ones go on."""
    made = replayed()
    made.open(0, b"t", 1)
    assert made._load(2000).used > 5
    settle(made)
    assert made._load(2000).used == 0


def test_a_snapshot_in_between_says_nothing_that_is_not_known() -> None:
    """Who restores it decides on them all the same."""
    made = replayed()
    made.open(0, b"t", 1)
    header = Header(b"12345678", 2 * MANY, b"t", b"t", 2000)
    parts = [part for part in cut(made, 0, header) if part is not None]
    assert not any(part.sleeping for part in parts)
    other = engine()
    for _ in restore(other, 0, Whole(2 * MANY, parts)):
        pass
    other.open(0, b"u", 2)
    settle(other)
    assert (len(other.commands), other.under_way) == (0, MANY)


def test_a_lost_partition_leaves_no_backlog() -> None:
    """Its commands are another's."""
    made = replayed()
    made.open(0, b"t", 1)
    assert len(made.close(0)) == MANY
    assert not made.busy
