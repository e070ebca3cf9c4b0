"""Undone: a step's effect was taken back.  Counts once, and only for a step whose outcome is recorded."""

from __future__ import annotations

from coordinator.engine.state import Command
from coordinator.model.records import Undone


def apply(command: Command, record: Undone) -> None:
    step = command.step(record.step, record.service)
    if step.outcome is None or step.undone:
        return
    step.undone = True
    if command.standing[-1] == record.step:  # as nearly always: undone in reverse order
        command.standing.pop()
    else:
        command.standing.remove(record.step)
    step.undone_by = record.by
    step.undo_attempts = max(step.undo_attempts, record.attempt)
    step.failure = None
    command.park(step, parked=False)
    step.retry_at = 0
    step.answered_at = record.at
