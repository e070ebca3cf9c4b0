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

from coordinator.engine.kinds import control, finished, outcome, signal, step_failed, timer, undone
from coordinator.engine.state import Command
from coordinator.model.records import Control, Finished, Outcome, Signal, StepFailed, Timer, Undone

HANDLERS: Final[dict[type, Callable[[Command, Any], None]]] = {
    Outcome: outcome.apply,
    StepFailed: step_failed.apply,
    Undone: undone.apply,
    Signal: signal.apply,
    Control: control.apply,
    Timer: timer.apply,
    Finished: finished.apply,
}
"""By the record's type.  Submitted begins a command and Registered belongs to none: the engine itself applies those."""


def refold(command: Command) -> None:
    """Folds the command anew from its history; a record whose handler raised stands there as a Damaged, and is left
    out, so no half of its change stays."""
    command.clear()
    for _, record in command.history:
        handler = HANDLERS.get(type(record))
        if handler is not None:
            handler(command, record)
