"""The fold: one handler a record kind, each a function of a command and one record of it.

Handlers see what was recorded, never what the engine derived or has under way, so that replay and live running are
the same function.  The first occurrence wins; a record that makes no sense any more (an outcome already known,
anything after the end) is ignored without complaint: a fenced owner may have written it, or two requests crossed.

A record that makes no sense in any order (a verdict or a final state that does not exist) must not be ignored, for it
may have decided something: its handler raises, and the engine puts it in quarantine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from coordinator.engine import faults
from coordinator.engine.kinds import control, finished, outcome, signal, step_failed, timer, undone
from coordinator.engine.quarantine import unapplied
from coordinator.engine.state import Command
from coordinator.model.damaged import Damaged
from coordinator.model.records import (
    CommandRecord,
    Control,
    Finished,
    Outcome,
    Reopened,
    Signal,
    StepFailed,
    Submitted,
    Timer,
    Undone,
)
from coordinator.wire.codec import encode, read

HANDLERS: Final[dict[type, Callable[[Command, Any], bool | None]]] = {
    Outcome: outcome.apply,
    StepFailed: step_failed.apply,
    Undone: undone.apply,
    Signal: signal.apply,
    Control: control.apply,
    Timer: timer.apply,
    Finished: finished.apply,
}
"""By the record's type; False from one means that the record came too late to make sense.  Submitted and Reopened
begin a command, Registered and Schedule belong to none: the engine itself applies those."""


def fold(command: Command, record: CommandRecord) -> bool:
    """Folds one record into the command; tells whether it made sense.  Raises what a handler raises."""
    made_sense = HANDLERS[type(record)](command, record)
    command.moves += 1
    return made_sense is not False


def refold(command: Command) -> None:
    """Folds the command anew from its history.  A record whose handler raises stands there as a Damaged from then on,
    and is left out, so no half of its change stays."""
    while (raised := _refolded(command)) is not None:
        at, error = raised
        offset, record = command.history[at]
        assert not isinstance(record, Damaged)
        told = faults.described(error)
        command.history[at] = offset, unapplied(command.partition, offset, record, encode(record), told)


def _refolded(command: Command) -> tuple[int, Exception] | None:
    """The first record whose handler raises, and what; raises what a Reopened that cannot be applied raises."""
    command.clear()
    for at, (_, record) in enumerate(command.history):
        if isinstance(record, Reopened):
            command.revision = record.revision
            for _, earlier in reopened(command.partition, record)[1:]:
                if not isinstance(earlier, (Finished, Reopened)):  # an end that was none, after all
                    fold(command, earlier)
            command.reopened(record.at)
        elif not isinstance(record, (Submitted, Damaged)):
            try:
                fold(command, record)
            except MemoryError:
                raise  # says nothing about the record
            except Exception as error:
                return at, error
    return None


def reopened(partition: int, record: Reopened) -> list[tuple[int, CommandRecord]]:
    """The records of a command from before it was opened again, with their offsets; the first is its Submitted, and
    among them are its earlier ends, and Reopened records without records of their own.

    Raises ValueError for what nobody can have written so.
    """
    records = [(offset, read(data, partition=partition, offset=offset)) for offset, data in record.records]
    if not records or not isinstance(records[0][1], Submitted):
        raise ValueError("it does not begin with how the command began")
    for offset, each in records:
        if type(each) not in HANDLERS and each is not records[0][1] and not isinstance(each, Reopened):
            raise ValueError(f"what stood at offset {offset} cannot be read or is no record of a command's course")
    if records[0][1].id != record.id:
        raise ValueError("it tells of another command")
    return records  # type: ignore[return-value]  # as checked


def beginning(partition: int, record: Submitted | Reopened) -> Submitted:
    """How the command began that this record begins, or opens again."""
    if isinstance(record, Submitted):
        return record
    submitted = reopened(partition, record)[0][1]
    assert isinstance(submitted, Submitted)
    return submitted


def flat(
    partition: int, history: list[tuple[int, CommandRecord | Damaged]]
) -> list[tuple[int, CommandRecord | Damaged]]:
    """A history with all that came before the command was opened again, as it was recorded."""
    records: list[tuple[int, CommandRecord | Damaged]] = []
    for offset, record in history:
        if isinstance(record, Reopened):
            records += reopened(partition, record)
        records.append((offset, record))
    return records
