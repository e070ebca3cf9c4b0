"""Undone: a step's effect was taken back.  Counts once, and only for a step whose outcome is recorded."""

from __future__ import annotations

from coordinator.engine.state import Command
from coordinator.model.records import Undone


def apply(command: Command, record: Undone) -> None:
    step = command.step(record.step, record.service)
    if step.outcome is None or step.undone:
        return
    step.undo_attempts = max(step.undo_attempts, record.attempt)
    command.took_back(record.step, step, record.at, by=record.by)
