"""The states of a command and every legal move between them, as one table.

    running ─ delayed ─ blocked ─ waiting      what a command shows while it goes forward; volatile but for `waiting`
    paused                                     an operator stopped it; nothing new is called
    dead_letter                                a step, an undo or the command's code needs a person
    compensating                               a failure, a cancel or a deadline: resolve what is in doubt, then undo
    completed compensated failed aborted       final: nothing moves any more

The engine asks `legal` before an operator's Control is appended, and again when it is applied (the state may have
changed in between: then the record is senseless and ignored).  The 409 answers, the docs and the diagram (``python -m
coordinator.engine.transitions``) are read from here.
"""

from __future__ import annotations

from typing import Final

from coordinator.model.command import FINAL, Operation, State

_FORWARD: Final[dict[str, State]] = {
    "step delayed": State.DELAYED,
    "service blocked": State.BLOCKED,
    "input missing": State.WAITING,
    "step answered": State.RUNNING,
    "step given up": State.DEAD_LETTER,
    "poison": State.DEAD_LETTER,
    "step failed": State.COMPENSATING,
    "deadline": State.COMPENSATING,
    "stopped at a savepoint": State.DEAD_LETTER,
    "errors counted": State.PAUSED,
    "finished": State.COMPLETED,
    "failed, nothing recorded": State.FAILED,
    Operation.PAUSE: State.PAUSED,
    Operation.CANCEL: State.COMPENSATING,
    Operation.ABORT: State.ABORTED,
}

TRANSITIONS: Final[dict[State, dict[str, State]]] = {
    State.RUNNING: {**_FORWARD, Operation.RETRY: State.RUNNING},  # what waits for its next try is tried at once
    State.DELAYED: {**_FORWARD, Operation.RETRY: State.RUNNING},
    State.BLOCKED: {**_FORWARD, Operation.RETRY: State.RUNNING},
    State.WAITING: {**_FORWARD, Operation.RETRY: State.WAITING},  # there is nothing to try, and nothing against it
    State.PAUSED: {
        Operation.RESUME: State.RUNNING,
        Operation.CANCEL: State.COMPENSATING,
        Operation.ABORT: State.ABORTED,
        "deadline": State.PAUSED,
        "poison": State.PAUSED,
        "too long in this state": State.COMPENSATING,
    },
    State.DEAD_LETTER: {
        Operation.PAUSE: State.PAUSED,
        Operation.RETRY: State.RUNNING,
        Operation.REQUEUE: State.RUNNING,
        Operation.RESOLVE: State.COMPENSATING,
        Operation.CANCEL: State.COMPENSATING,
        Operation.ABORT: State.ABORTED,
        "deadline": State.DEAD_LETTER,
        "too long in this state": State.COMPENSATING,
    },
    State.COMPENSATING: {
        "undo delayed": State.COMPENSATING,
        "undo failed": State.DEAD_LETTER,
        "step given up": State.DEAD_LETTER,
        "everything undone": State.COMPENSATED,
        "nothing recorded": State.FAILED,
        Operation.PAUSE: State.PAUSED,
        Operation.RETRY: State.COMPENSATING,
        Operation.ABORT: State.ABORTED,
    },
    State.COMPLETED: {},
    State.COMPENSATED: {},
    State.FAILED: {},
    State.ABORTED: {},
}


def legal(state: State, operation: str) -> bool:
    """Whether an operator may ask ``operation`` of a command that shows ``state``."""
    return operation in TRANSITIONS[state]


def legal_states(operation: str) -> list[str]:
    """The states in which ``operation`` is legal: what a 409 answer lists."""
    return [state.value for state, moves in TRANSITIONS.items() if operation in moves]


def waiting_states() -> list[str]:
    """The states in which data and decisions are taken: all that are not final."""
    return [state.value for state in State if state not in FINAL]


def diagram() -> str:
    """The table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", "    [*] --> running"]
    for state, moves in TRANSITIONS.items():
        lines += [f"    {state} --> {target}: {why}" for why, target in moves.items() if target is not state]
    lines += [f"    {state} --> [*]" for state in State if state in FINAL]
    return "\n".join(lines)


if __name__ == "__main__":
    print(diagram())
