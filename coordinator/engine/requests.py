"""What an operator asks of a command: whether it is legal now, and the record of it."""

from __future__ import annotations

from msgspec import Raw

from coordinator.engine import decide
from coordinator.engine.state import Command, Contrary
from coordinator.engine.transitions import legal, legal_states
from coordinator.errors import IllegalState, InvalidPayload, UnknownStep
from coordinator.model.command import FINAL, Operation, State
from coordinator.model.records import NIL, SCHEMA, Control


def control(
    command: Command,
    operation: Operation,
    now: float,
    *,
    reason: str,
    by: str,
    step: str,
    input: Raw | None,
) -> Control | None:
    """The record of an operator's request; None if it is in effect already.

    It was too late if it is the command's ``senseless`` once it is recorded.  Raises IllegalState or UnknownStep.
    """
    state = command.state
    if command.quarantined is not None and operation is not Operation.ABORT:
        raise IllegalState(
            f"{operation} is not legal while a record of the command is in quarantine, for what that has decided "
            "is not known: look at its history, mend by hand what must be mended, then abort it",
            legal_states=[each for each in legal_states(operation) if each != State.DEAD_LETTER],
        )
    if _in_effect(command, operation):
        return None
    if not legal(state, operation) and not _takes_over(command, operation):
        raise IllegalState(
            f"{operation} is not legal while the command is {state}", legal_states=legal_states(operation)
        )
    if operation in (Operation.REQUEUE, Operation.RESOLVE):
        step = _letter(command, step)
        _check_letter(command, step, operation)
        if input is not None and command.steps[step].held:
            raise InvalidPayload.at("$.input", f"{step!r} sends nothing that could be replaced: leave the input out")
    return Control(
        SCHEMA,
        b"",
        int(now),
        command.id,
        operation.value,
        reason=reason,
        by=by,
        step=step,
        input=NIL if input is None else input,
        replaces=input is not None,
    )


def _letter(command: Command, name: str) -> str:
    """The dead letter's own name: a step that waits for an operator may do so as ``failed:charge#2``, the condition of
    a block as ``failed:gift/in``."""
    step = command.steps.get(name)
    if step is None or not step.parked:
        for each in decide.parked_names(command):
            if _stem(each) == f"failed:{_stem(name)}":
                return each
    return name


def _stem(name: str) -> str:
    return name.partition("#")[0].partition("/")[0]


def _check_letter(command: Command, name: str, operation: Operation) -> None:
    """That the step is a dead letter; for `resolve`, that it is an undo."""
    if not name:
        raise InvalidPayload.at("$.step", "the name of the dead-lettered step is needed")
    step = command.steps.get(name)
    letters = f"dead letters: {decide.parked_names(command)}"
    if step is None:
        raise UnknownStep(f"the command has no step {name!r}; {letters}")
    if not step.parked:
        raise IllegalState(f"step {name!r} is no dead letter; {letters}", legal_states=legal_states(operation))
    if operation is Operation.RESOLVE and not step.undoing:
        raise IllegalState(
            f"resolve marks an undo as done by hand, and step {name!r} has not even succeeded: "
            "requeue it, retry, cancel or abort",
            legal_states=legal_states(operation),
        )


def _in_effect(command: Command, operation: Operation) -> bool:
    """Whether the same request was granted before: asking twice is idempotent."""
    if command.state in FINAL:
        return False
    if operation is Operation.PAUSE:
        return command.paused and not command.paused_auto
    if operation is Operation.CANCEL:
        return command.contrary is Contrary.CANCELLED and command.state is State.COMPENSATING
    if operation is Operation.ABORT:
        return command.aborted
    return False


def _takes_over(command: Command, operation: Operation) -> bool:
    """A pause of what has paused by itself: from now on nothing but an operator ends it."""
    return operation is Operation.PAUSE and command.paused_auto
