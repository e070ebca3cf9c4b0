"""Records in quarantine: what they do to their command, and what they leave alone."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from coordinator.engine import quarantine, views
from coordinator.engine.explain import explain
from coordinator.engine.kinds import HANDLERS
from coordinator.engine.quarantine import ENTRIES_MAX, Entry, Quarantine
from coordinator.errors import CorruptLog, IdConflict, IllegalState
from coordinator.model.command import Operation
from coordinator.model.damaged import Damaged
from coordinator.model.ids import CommandId, partition_of
from coordinator.model.records import SCHEMA, Control, Failure, Finished, Outcome, Record, Registered, StepFailed, raw
from coordinator.wire.codec import encode, read
from tests.unit.engine.desk import Desk, fork, sequence, submitted

C = CommandId("c")


def damaged(kind: int, id: str = "c", offset: int = 0, token: bytes = b"token") -> Damaged:
    """A record of a command that was cut short behind its id."""
    found = read(msgspec.msgpack.encode([kind, 1, token, 5, id, None, None]), partition=0, offset=offset)
    assert isinstance(found, Damaged)
    assert found.of_a_command
    return found


def put(desk: Desk, record: Record | Damaged) -> int:
    """It stands next in the log; returns where."""
    offset = len(desk.log)
    if isinstance(record, Damaged):
        record = msgspec.structs.replace(record, offset=offset)
    desk.log.append(record)  # type: ignore[arg-type]
    desk._apply(offset, record)  # type: ignore[arg-type]
    desk.turn()
    return offset


@pytest.mark.parametrize("kind", [2, 3, 4, 5, 6, 7, 9])
def test_a_command_is_parked_by_any_of_its_kinds(kind: int) -> None:
    """Nothing is called for it any more, nothing is proposed, and its slot is free."""
    desk = submitted(sequence("a", "b"))
    desk.submit("other")
    offset = put(desk, damaged(kind))
    assert desk.state() == "dead_letter"
    assert desk.state("other") == "running"
    assert desk.command().quarantined == quarantine.failure(damaged(kind, offset=offset))
    assert desk.engine.slots == {"other"}
    desk.ok("a")  # the answer to a call that was under way is a fact, and is recorded
    assert desk.under_way() == []
    assert desk.kinds()[-1] == "Outcome"


@pytest.mark.parametrize("operation", [each for each in Operation if each is not Operation.ABORT])
def test_only_an_abort_is_legal(operation: Operation) -> None:
    """Not knowing what was decided, one can neither go on nor undo; paused or not."""
    desk = submitted(sequence("a"))
    desk.ask(Operation.PAUSE)
    put(desk, damaged(2))
    with pytest.raises(IllegalState) as refused:
        desk.ask(operation, step="a")
    assert "dead_letter" not in refused.value.extra["legal_states"]
    desk.ask(Operation.ABORT)
    assert desk.state() == "aborted"


def test_no_deadline_turns_it_back() -> None:
    """Its time passes; to undo would be as wrong as to go on."""
    desk = Desk(sequence("a"))
    desk.submit(timeout=1000)
    put(desk, damaged(4))
    desk.sleep(5000)
    assert "Timer" not in desk.kinds()
    assert desk.state() == "dead_letter"


def test_a_delayed_step_is_not_asked_again() -> None:
    """Its place in the service's queue goes to others."""
    desk = submitted(sequence("a"))
    desk.lost("a")
    put(desk, damaged(6))
    made = len(desk.made)
    desk.sleep(60_000)
    assert len(desk.made) == made


def test_a_later_end_ends_it() -> None:
    """Who wrote the end knew what was decided."""
    desk = submitted(sequence("a"))
    put(desk, damaged(7))
    put(desk, Finished(SCHEMA, b"token", 9, C, "completed", raw(1)))
    assert desk.state() == "completed"


def test_a_submitted_takes_its_id_whatever_it_said() -> None:
    """The same id is a conflict; its abort ends it; a program that knows no more of it can still show it."""
    desk = Desk(sequence("a"))
    put(desk, damaged(1))
    assert desk.state() == "dead_letter"
    with pytest.raises(IdConflict, match="quarantine"):
        desk.submit()
    view = views.command_view(desk.command())
    assert (view.type, view.payload, view.submitted_at) == ("", None, "1970-01-01T00:00:00.005Z")
    desk.ask(Operation.ABORT)
    assert desk.state() == "aborted"


def test_an_id_of_another_partition_is_not_taken() -> None:
    """There it may belong to a command that is well."""
    desk = Desk(sequence("a"))
    desk.engine.partitions = 8
    stranger = next(id for n in range(100) if partition_of(id := f"c{n}", 8) != 0)
    put(desk, damaged(1, stranger))
    assert desk.engine.commands == {}
    assert desk.engine.quarantined[0].entries[0].effect == "passed_over"


def test_what_belongs_to_no_command_is_only_listed() -> None:
    """Garbage, a damaged Snapshot, records of commands that have ended or never were: an intact one changes nothing
    either."""
    desk = submitted(sequence("a"))
    desk.ok("a")
    for record in (damaged(2), damaged(9, "nobody"), read(b"noise", partition=0, offset=0)):
        put(desk, record)
    assert desk.state() == "completed"
    entries = desk.engine.quarantined[0].entries
    assert [entry.effect for entry in entries] == ["passed_over"] * 3
    assert [(entry.kind, entry.command, entry.size) for entry in entries][1:] == [
        ("Finished", "nobody", entries[1].size),
        ("", "", 5),
    ]
    assert entries[2].at == 1_000_000  # of the record before it: noise has no time


def test_half_a_change_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler that raises in the middle leaves its command as the records before it say, live and on replay."""

    def half(command: Any, record: Any) -> None:
        command.step(record.step, record.service).attempts = 99
        command.paused = True
        raise RuntimeError("in the middle")

    desk = submitted(fork("a", "b"))
    desk.ok("a")
    monkeypatch.setitem(HANDLERS, StepFailed, half)
    desk.no("b")
    for turn in range(2):
        command = desk.command()
        assert desk.state() == "dead_letter"
        assert "in the middle" in command.quarantined.message  # type: ignore[union-attr]
        assert not command.paused
        assert (command.steps["a"].outcome is not None, "b" in command.steps) == (True, False)
        assert [type(record).__name__ for _, record in command.history] == ["Submitted", "Outcome", "Damaged"]
        assert views.history_entry(0, 2, command.history[2][1])["kind"] == "StepFailed"
        if turn == 0:
            desk.restart(fork("a", "b"))


def test_memory_that_runs_out_says_nothing_of_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next replay would judge otherwise: the partition starts over instead."""

    def full(command: Any, record: Any) -> None:
        raise MemoryError

    desk = submitted(sequence("a"))
    monkeypatch.setitem(HANDLERS, Outcome, full)
    with pytest.raises(MemoryError):
        desk.ok("a")


@pytest.mark.parametrize(
    "record",
    [
        Finished(SCHEMA, b"token", 9, C, "evaporated"),
        StepFailed(SCHEMA, b"token", 9, C, "a", "stock", 1, quarantine.failure(damaged(2)), "perhaps"),
    ],
)
def test_what_no_program_can_have_meant_parks(record: Record) -> None:
    """A final state and a verdict that do not exist may have decided something, so they are not ignored."""
    desk = submitted(sequence("a"))
    put(desk, record)
    assert desk.state() == "dead_letter"
    desk.ask(Operation.ABORT)
    assert desk.state() == "aborted"


def test_a_definition_that_cannot_be_applied_stops_the_partition() -> None:
    """Any command may rest on it, and the first content counts for ever."""
    desk = Desk(sequence("a"))
    with pytest.raises(CorruptLog, match=r"offset 7.*definition 'd' of version 1 cannot be applied"):
        desk.engine.apply(0, 7, Registered(SCHEMA, b"token", 5, "d", 1, msgspec.Raw(b"\xa2\xff\xfe"), b"f"))


def test_it_is_told_wherever_one_asks() -> None:
    """The view's error, the explanation, the dead letters."""
    desk = submitted(sequence("a"))
    put(desk, damaged(2))
    command = desk.command()
    assert views.command_view(command).error.code == "quarantined"  # type: ignore[union-attr]
    why = explain(command, desk.now, owner={}, slots=(0, 1))
    assert why["waits"][0]["why"] == "quarantined"
    assert "position 0:1" in why["summary"]
    (letter,) = views.dead_letters(command)
    assert (letter["step"], letter["error"]["code"]) == ("", "quarantined")


def test_what_is_listed_is_told_once_and_forgotten_with_its_partition() -> None:
    """For the daemon's own log; a partition that is lost takes its list along, and the next replay has it again."""
    desk = submitted(sequence("a"))
    put(desk, damaged(2))
    assert [(partition, entry.command) for partition, entry in desk.engine.take_listed()] == [(0, "c")]
    assert desk.engine.take_listed() == []
    desk.engine.close(0)
    assert 0 not in desk.engine.quarantined


def test_an_ended_command_is_shown_from_its_records() -> None:
    """The view keeps them as the log has them, damaged ones included."""
    desk = submitted(sequence("a"))
    history = [(0, desk.log[0]), (1, damaged(2, offset=1)), (2, Control(SCHEMA, b"token", 9, C, "abort"))]
    ended = [*history, (3, Finished(SCHEMA, b"token", 9, C, "aborted"))]
    assert desk.engine.recall(0, ended).state == "aborted"  # type: ignore[arg-type]
    unreadable = [(0, damaged(1)), *ended[1:]]
    assert desk.engine.recall(0, unreadable).state == "aborted"  # type: ignore[arg-type]


# ---------------------------------------------------------------- the list


def entry(offset: int) -> Entry:
    return Entry(offset, 1, "why", 3, b"abc", "", "", "passed_over")


def test_the_list_is_in_log_order_and_has_each_once() -> None:
    """Whatever order they come in: a restored command tells of its own again."""
    found = Quarantine([entry(5), entry(1)])
    assert found.add(entry(3))
    assert not found.add(entry(5))
    assert [each.offset for each in found.entries] == [1, 3, 5]


def test_the_oldest_are_only_counted() -> None:
    """And do not come back."""
    found = Quarantine()
    for offset in range(ENTRIES_MAX + 10):
        found.add(entry(offset))
    assert not found.add(entry(3))
    assert (found.total, found.dropped, found.entries[0].offset) == (ENTRIES_MAX + 10, 10, 10)
    again = Quarantine.restored(found.pieces(1 << 40))
    assert (again.total, again.dropped, again.entries) == (found.total, 10, found.entries)
    assert [each.offset for each in Quarantine.restored(found.pieces(12)).entries] == [10, 11]


def test_an_entry_keeps_the_first_bytes_only() -> None:
    """With how many there were."""
    found = quarantine.entry(Damaged(0, 7, b"x" * 9000, "why"), 5, parks=False)
    assert (found.size, len(found.data)) == (9000, 4096)
    assert encode(found)


def test_a_next_life_that_cannot_be_read_takes_the_id() -> None:
    """It was promised to somebody, and calls may have been made in it: to show the former end as if nothing had come
    after it would be to forget them."""
    desk = submitted(sequence("a"))
    desk.ok("a")
    assert desk.state() == "completed"
    desk.ended.clear()
    put(desk, damaged(11))
    assert desk.state() == "dead_letter"
    assert [entry.effect for entry in desk.engine.quarantined[0].entries] == [quarantine.PARKED]


def test_a_command_that_ended_with_a_record_in_quarantine_can_be_looked_at() -> None:
    """Its records are kept as the log has them; what could not be applied then cannot be applied now."""
    desk = submitted(sequence("a"))
    put(desk, StepFailed(SCHEMA, b"token", 5, C, "a", "stock", 1, Failure("no"), "perhaps"))
    command = desk.command()
    desk.ask(Operation.ABORT)
    stored = [read(encode(record), partition=0, offset=offset) for offset, record in enumerate(desk.log)]
    recalled = desk.engine.recall(0, list(enumerate(stored)))  # type: ignore[arg-type]  # all of them are its own
    assert recalled.state == "aborted"
    assert [type(record).__name__ for _, record in recalled.history] == [
        type(record).__name__ for _, record in command.history
    ]
