"""Outcome: a step succeeded.  Also recorded after a contrary decision: a step in doubt that turned out to have taken
effect."""

from __future__ import annotations

from coordinator.engine.state import Command
from coordinator.model.records import Outcome


def apply(command: Command, record: Outcome) -> None:
    step = command.step(record.step, record.service)
    if step.outcome is not None or step.failed:
        return
    step.outcome = record.outcome
    command.standing.append(record.step)
    step.attempts = max(step.attempts, record.attempt)
    step.failure = None
    command.park(step, parked=False)
    step.retry_at = 0
    step.answered_at = record.at
    command.trail.append((record.step, record.at, record.outcome))
