"""Control: an operator's request.  It was legal when it was asked for; what has crossed it since may make it
senseless, which the handler tells: whoever asked is told that somebody else was first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from coordinator.engine.state import Command, Contrary, Moment, Step
from coordinator.model.command import Operation
from coordinator.model.records import Control


def apply(command: Command, record: Control) -> bool:
    """Whether it still made sense."""
    operation = _OPERATIONS.get(record.operation)
    if operation is None or command.aborted or not operation(command, record):
        return False
    command.reason = record.reason or command.reason
    return True


def _pause(command: Command, record: Control) -> bool:
    """An operator's pause takes the place of one that came by itself: nothing but an operator ends it."""
    if command.paused and (record.auto or not command.paused_auto):
        return not record.auto  # of two operators, both have what they want
    command.paused = True
    command.paused_auto = record.auto
    command.paused_at = record.at
    return True


def _resume(command: Command, record: Control) -> bool:
    if not command.paused or (record.auto and not command.paused_auto):
        return False
    command.paused = command.paused_auto = False
    command.resumed_at = record.at
    command.errors = 0
    return True


def _cancel(command: Command, record: Control) -> bool:
    """Ends the way forward.  A parked undo stays parked, the rest goes on."""
    command.paused = command.paused_auto = False
    command.skip_parked = any(step.parked and step.undoing for step in command.steps.values())
    command.turn(Contrary.CANCELLED, record.at)
    return True


def _abort(command: Command, record: Control) -> bool:
    command.aborted = True
    return True


def _retry(command: Command, record: Control) -> bool:
    command.poison = None
    for name, step in command.steps.items():
        if step.parked or step.retry_at:
            _release(command, name, step, record)
    return True


def _requeue(command: Command, record: Control) -> bool:
    step = command.steps.get(record.step)
    if step is None or not step.parked:
        return False
    _release(command, record.step, step, record)
    if record.replaces:
        if step.undoing:
            step.undo_input = record.input
        else:
            step.input = record.input
    return True


def _release(command: Command, name: str, step: Step, record: Control) -> None:
    """Another try, with all its attempts."""
    command.park(step, parked=False)
    step.retry_at = 0
    step.released_at = record.at
    if step.undoing:
        step.undo_forgiven = step.undo_attempts
    else:
        step.forgiven = step.attempts
    if step.held:
        command.trail.append((name, record.at, Moment.RELEASED))


def _resolve(command: Command, record: Control) -> bool:
    """A parked undo was done by hand."""
    step = command.steps.get(record.step)
    if step is None or not step.parked or not step.undoing:
        return False
    command.took_back(record.step, step, record.at, by=record.by or "an operator")
    return True


_OPERATIONS: Final[dict[str, Callable[[Command, Control], bool]]] = {
    Operation.PAUSE: _pause,
    Operation.RESUME: _resume,
    Operation.CANCEL: _cancel,
    Operation.ABORT: _abort,
    Operation.RETRY: _retry,
    Operation.REQUEUE: _requeue,
    Operation.RESOLVE: _resolve,
}
