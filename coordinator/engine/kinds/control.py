"""Control: an operator's request.  It was legal when it was asked for; what has crossed it since may make it
senseless."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from coordinator.engine.state import Command, Contrary
from coordinator.model.command import Operation
from coordinator.model.records import Control


def apply(command: Command, record: Control) -> None:
    operation = _OPERATIONS.get(record.operation)
    if operation is not None:
        operation(command, record)
        command.reason = record.reason or command.reason


def _pause(command: Command, record: Control) -> None:
    command.paused = True


def _resume(command: Command, record: Control) -> None:
    command.paused = False


def _cancel(command: Command, record: Control) -> None:
    """Ends the way forward.  Steps in doubt that were given up are asked again; a parked undo stays parked, the rest
    goes on."""
    command.paused = False
    command.poison = None
    command.skip_parked = any(step.parked and step.undoing for step in command.steps.values())
    if command.contrary is None:
        command.contrary = Contrary.CANCELLED
        command.contrary_at = len(command.trail)
    for step in command.steps.values():
        if step.parked and not step.undoing:
            command.park(step, parked=False)
            step.released_at = record.at


def _abort(command: Command, record: Control) -> None:
    command.aborted = True


def _retry(command: Command, record: Control) -> None:
    command.poison = None
    for step in command.steps.values():
        if step.parked or step.retry_at:
            command.park(step, parked=False)
            step.retry_at = 0
            step.released_at = record.at


def _requeue(command: Command, record: Control) -> None:
    step = command.steps.get(record.step)
    if step is None or not step.parked:
        return
    command.park(step, parked=False)
    step.retry_at = 0
    step.released_at = record.at
    if record.replaces:
        if step.undoing:
            step.undo_input = record.input
        else:
            step.input = record.input


_OPERATIONS: Final[dict[str, Callable[[Command, Control], None]]] = {
    Operation.PAUSE: _pause,
    Operation.RESUME: _resume,
    Operation.CANCEL: _cancel,
    Operation.ABORT: _abort,
    Operation.RETRY: _retry,
    Operation.REQUEUE: _requeue,
}
