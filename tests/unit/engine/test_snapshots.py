"""Snapshots: cut beside the work, in parts that fit, and put back by the fold itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from msgspec import structs

from coordinator.admission.receipts import receipt
from coordinator.engine.engine import Engine
from coordinator.engine.snapshots import PART_BYTES, Header, Whole, complete, cut, restore
from coordinator.errors import CorruptLog
from coordinator.model.ids import CommandId
from coordinator.model.records import NIL, SCHEMA, Link, Outcome, Registered, Snapshot, Submitted, raw
from coordinator.wire.codec import decode, encode, read
from tests.unit.engine.desk import OUTCOME, Desk, sequence, submitted

DEFINITION = {"steps": [{"name": "reserve", "service": "stock", "post": "/reserve"}]}


def header(covered: int) -> Header:
    return Header(b"snapshot", covered, b"in force", b"identity", 77)


def parts_of(engine: Engine, covered: int, **rest: Any) -> list[Snapshot]:
    return [part for part in cut(engine, 0, header(covered), **rest) if part is not None]


def whole(parts: list[Snapshot]) -> Whole:
    """The parts as they come back from a log."""
    return Whole(99, [decode(encode(part), partition=0, offset=0) for part in parts])  # type: ignore[misc]


def restored(engine: Engine, parts: list[Snapshot]) -> Engine:
    """A fresh engine with the same types, and the snapshot in it."""
    fresh = Engine(engine.settings, {}, engine.registry, engine.random)
    assert list(restore(fresh, 0, whole(parts)))
    return fresh


def filled(payloads: Iterable[Any]) -> Engine:
    """An engine that has read one Submitted a payload: commands c0, c1, …"""
    desk = Desk(sequence("a"))
    engine = Engine(desk.settings, {}, desk.registry, desk.engine.random)
    for offset, payload in enumerate(payloads):
        engine.apply(0, offset, Submitted(SCHEMA, b"t", 5, CommandId(f"c{offset}"), "T", 1, raw(payload), b"f"))
    return engine


def histories(engine: Engine) -> dict[str, Any]:
    return {id: command.history for id, command in engine.replaying.get(0, {}).items()}


# ---------------------------------------------------------------- what is in it


def test_every_part_says_what_it_is_a_part_of_and_the_last_how_many_there_are() -> None:
    """A reader that finds any of them knows which others to look for."""
    parts = parts_of(filled(["x" * 1_000] * 10), 10, part_bytes=3_000, chain=[Link(3, 4, 5)])
    assert [part.part for part in parts] == list(range(len(parts)))
    assert [part.parts for part in parts] == [0] * (len(parts) - 1) + [len(parts)]
    assert {(part.snapshot, part.covered, part.token_in_force, part.identity, part.at) for part in parts} == {
        (b"snapshot", 10, b"in force", b"identity", 77)
    }
    assert [part.chain for part in parts] == [[]] * (len(parts) - 1) + [[(3, 4, 5)]]


def test_an_empty_partition_has_a_snapshot_of_one_part() -> None:
    """Nothing under way is worth saying: all below may be forgotten."""
    (part,) = parts_of(filled([]), 12)
    assert (part.part, part.parts, part.commands, part.covered) == (0, 1, [], 12)


def test_a_command_is_held_as_its_own_records() -> None:
    """Byte by byte as the log has them, with the offsets that they have there."""
    desk = submitted(sequence("a", "b"))
    desk.ok("a")
    (part,) = parts_of(desk.engine, len(desk.log))
    expected = [(offset, encode(record)) for offset, record in enumerate(desk.log)]
    assert part.commands == [("c", expected)]


def test_a_command_that_has_ended_is_not_in_it() -> None:
    """Also while its end was applied but not yet taken notice of."""
    desk = submitted(sequence("a"))
    desk.answer("a", OUTCOME, turn=False)
    while desk.gather():
        desk.settle()
        (part,) = parts_of(desk.engine, len(desk.log))
        assert bool(part.commands) is not bool(desk.ended)
    assert desk.state() == "completed"


# ---------------------------------------------------------------- beside the work


def test_what_comes_after_the_cut_does_not_leak_in() -> None:
    """Commands go on, end and begin while the parts are made; the snapshot stays at its offset."""
    desk = Desk(sequence("a", "b"))
    for id in ("goes on", "ends", "stays"):
        desk.submit(id)
    desk.ok("a", id="ends")
    covered = len(desk.log)
    before = parts_of(desk.engine, covered)
    cutting = cut(desk.engine, 0, header(covered))
    desk.ok("a", id="goes on")
    desk.ok("b", id="ends")
    desk.submit("begins")
    assert desk.state("ends") == "completed"
    assert [part for part in cutting if part is not None] == before


def test_a_history_that_grows_while_it_is_encoded_is_cut_where_it_was() -> None:
    """A command may go on between two of its own parts."""
    desk = submitted(sequence("a", "b", "c", "d"))
    desk.ok("a", "x" * 2_500)
    desk.ok("b", "y" * 2_500)
    covered = len(desk.log)
    before = parts_of(desk.engine, covered, part_bytes=3_000)
    cutting = cut(desk.engine, 0, header(covered), part_bytes=3_000)
    first = next(cutting)
    desk.ok("c")
    assert [part for part in [first, *cutting] if part is not None] == before


def test_the_loop_has_its_turn_between_slices() -> None:
    """Many small commands make a part only after a while; the iteration says None meanwhile."""
    made = list(cut(filled([1] * 3_500), 0, header(3_500)))
    assert made[:-1].count(None) == 8
    assert made[0] is None
    assert made[-1] is not None


# ---------------------------------------------------------------- parts that fit


@pytest.mark.parametrize("size", [10, 900, 2_500, 20_000])
def test_no_part_is_larger_than_asked(size: int) -> None:
    """Whether many commands share a part, or one record needs several."""
    engine = filled(["x" * size] * 20)
    parts = parts_of(engine, 20, part_bytes=3_000, chain=[Link(1 << 60, 1 << 60, 1 << 60)] * 30)
    assert max(len(encode(structs.replace(part, token=b"12345678"))) for part in parts) <= 3_000
    assert histories(restored(engine, parts)) == histories(engine)


def test_parts_are_well_filled() -> None:
    """The estimate of what encoding adds is on the safe side, and not by much."""
    parts = parts_of(filled(["x" * 100] * 12_000), 12_000)
    assert len(parts) > 2
    assert all(0.85 * PART_BYTES < len(encode(part)) <= PART_BYTES for part in parts[:-1])


def test_a_history_longer_than_a_part_is_spread() -> None:
    """A loop of many steps does not fit: its command goes on in the next part, in order."""
    engine = filled([0])
    for offset in range(1, 200):
        engine.apply(0, offset, Outcome(SCHEMA, b"t", 6, CommandId("c0"), f"s{offset}", "stock", 1, raw("y" * 50)))
    parts = parts_of(engine, 200, part_bytes=3_000)
    assert len([part for part in parts if part.commands]) > 3
    assert histories(restored(engine, parts)) == histories(engine)


def test_two_commands_with_torn_records_are_not_mixed_up() -> None:
    """The second begins behind the torn end of the first, in the same part."""
    engine = filled(["x" * 7_000, "y" * 7_000, "z"])
    parts = parts_of(engine, 3, part_bytes=3_000)
    assert any(len(part.commands) == 2 for part in parts)
    assert histories(restored(engine, parts)) == histories(engine)


# ---------------------------------------------------------------- what else it has


def test_definitions_come_back_and_the_first_still_wins() -> None:
    """The engine of a new process knows what was registered below the offset, at its place in the log."""
    desk = Desk(sequence("a"))
    contents: list[dict[str, Any]] = [DEFINITION, {"steps": []}]
    for content in contents:
        desk.outbox = [Registered(SCHEMA, b"", 5, "order", 1, raw(content), b"p" * 16)]
        desk.settle()
    parts = parts_of(desk.engine, 2)
    assert [offset for offset, _ in parts[0].definitions] == [0]
    fresh = Desk(sequence("a"))
    fresh.engine.close(0)
    assert list(restore(fresh.engine, 0, whole(parts))) == [1]
    assert fresh.registry.content("order")["steps"] == DEFINITION["steps"]
    assert fresh.engine.definitions == desk.engine.definitions


def test_a_partition_that_is_closed_forgets_its_definitions() -> None:
    """The next owner's snapshot, or ours after the next replay, names them by what the log says then."""
    desk = Desk(sequence("a"))
    desk.outbox = [Registered(SCHEMA, b"", 5, "order", 1, raw(DEFINITION), b"p" * 16)]
    desk.settle()
    desk.engine.close(0)
    assert desk.engine.definitions == {}


def test_the_quarantine_is_carried_and_its_commands_stay_parked() -> None:
    """A record that could not be read is kept byte by byte, and nobody is told of it a second time."""
    engine = filled([1, 2])
    garbage = encode(Outcome(SCHEMA, b"t", 6, CommandId("c1"), "s", "stock", 1, raw("y" * 9_000)))[:-1]
    engine.apply(0, 2, read(b"\xc1 no record", partition=0, offset=2))
    engine.apply(0, 3, read(garbage, partition=0, offset=3))
    engine.apply(0, 4, Outcome(SCHEMA, b"t", 7, CommandId("c1"), "s", "stock", 1, raw(1)))
    again = restored(engine, parts_of(engine, 5, part_bytes=3_000))
    assert again.quarantined[0].entries == engine.quarantined[0].entries
    assert [entry.offset for entry in again.quarantined[0].entries] == [2, 3]
    assert again.take_listed() == []
    assert histories(again) == histories(engine)
    command = again.replaying[0][CommandId("c1")]
    assert command.quarantined == engine.replaying[0][CommandId("c1")].quarantined
    assert command.quarantined is not None


def test_receipts_are_carried_over_the_parts() -> None:
    """One sorted run; what ended at the covered offset or above is still in the log."""
    known = sorted(receipt(f"c{n}", bytes(16), n, n + 1, 5) for n in range(200))
    parts = parts_of(filled([1]), 101, receipts=iter(known), part_bytes=3_000)
    assert len(parts) > 1
    held = whole(parts).receipts()
    assert len(held) == 100
    assert held.find("c99") is not None
    assert held.find("c100") is None


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda parts: parts[:-1], id="the last part is missing"),
        pytest.param(lambda parts: parts[1:], id="the first part is missing"),
        pytest.param(lambda parts: [*parts[:1], *parts[2:]], id="one in the middle is missing"),
        pytest.param(lambda parts: [parts[1], parts[0], *parts[2:]], id="two are exchanged"),
        pytest.param(
            lambda parts: [structs.replace(parts[0], snapshot=b"another!"), *parts[1:]], id="of two snapshots"
        ),
        pytest.param(lambda parts: [structs.replace(parts[0], covered=5), *parts[1:]], id="of two offsets"),
        pytest.param(lambda parts: [], id="nothing"),
    ],
)
def test_a_torn_snapshot_is_refused(damage: Any) -> None:
    """A command in a missing part would be lost without a word."""
    parts = parts_of(filled(["x" * 1_000] * 10), 10, part_bytes=3_000)
    assert complete(parts)
    assert not complete(damage(parts))
    with pytest.raises(CorruptLog, match="incomplete"):
        Whole(41, damage(parts))


def test_a_record_that_the_snapshot_does_not_cover_is_refused() -> None:
    """It would be folded twice, or instead of what the log says there."""
    parts = parts_of(filled([1, 2]), 2)
    wrong = [structs.replace(part, covered=1) for part in parts]
    with pytest.raises(CorruptLog, match=r"at position 0:99 has a record of offset 1 that is none of.* c1 below"):
        restored(filled([]), wrong)


@pytest.mark.parametrize("data", [b"noise", encode(Outcome(SCHEMA, b"t", 6, CommandId("c9"), "s", "stock", 1, NIL))])
def test_what_no_log_can_have_led_to_is_refused(data: bytes) -> None:
    """A history with bytes that are not its command's would lose them without a word."""
    (part,) = parts_of(filled([1, 2]), 2)
    name, pieces = part.commands[0]
    wrong = structs.replace(part, commands=[(name, [*pieces, (1, data)])])
    with pytest.raises(CorruptLog, match=r"at position 0:99 has a record of offset 1 that is none of.* c0 below"):
        restored(filled([]), [wrong])


def test_a_snapshot_met_while_folding_changes_nothing() -> None:
    """It says nothing that the records before it did not say."""
    engine = filled([1])
    (part,) = parts_of(engine, 1)
    assert engine.apply(0, 1, part) is None
    assert list(histories(engine)) == ["c0"]
