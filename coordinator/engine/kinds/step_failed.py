"""StepFailed: a negative answer, or patience at its end.  The verdict was reached before the record was written, so
that replay needs neither the step's policy nor chance: ``retry`` at a time, ``failed`` for good, ``parked``, ``held``
(exec stops here until it is let on), or ``delayed``, which counts as an error and changes nothing else."""

from __future__ import annotations

from coordinator.engine.state import Command, Step
from coordinator.model.records import StepFailed

_VERDICTS = frozenset({"retry", "failed", "parked", "held", "delayed"})
_GAVE_UP = "gave_up"


def apply(command: Command, record: StepFailed) -> None:
    if record.verdict not in _VERDICTS:
        raise ValueError(f"there is no verdict {record.verdict!r}")
    if not record.step:
        if record.undo or command.contrary is None:  # else a contrary decision came first: its code is not needed
            _parked(command, record)
            command.poison = record.failure
        return
    command.errors += record.verdict != "held"
    if record.verdict == "delayed":
        return
    step = command.step(record.step, record.service)
    if record.undo:
        if step.undone or step.outcome is None:
            return
        step.undo_attempts = max(step.undo_attempts, record.attempt)
    else:
        if step.outcome is not None or step.failed:
            return
        step.attempts = max(step.attempts, record.attempt)
        if record.verdict == "failed":
            step.failed = True
            command.errors -= step.parked  # counted when it was parked
            if not step.held:  # of a savepoint's, exec knows nothing
                command.trail.append((record.step, record.at, record.failure))
    _settle(command, step, record)


def _settle(command: Command, step: Step, record: StepFailed) -> None:
    step.failure = record.failure
    step.held = record.verdict == "held"
    step.in_doubt = record.failure.code == _GAVE_UP
    if record.verdict in ("parked", "held"):
        _parked(command, record)
    command.park(step, parked=record.verdict in ("parked", "held"))
    step.retry_at = record.retry_at if record.verdict == "retry" else 0
    step.answered_at = record.at


def _parked(command: Command, record: StepFailed) -> None:
    """It is a dead letter from now on, if it is none already."""
    if not command.parked:
        command.parked_at = record.at
