"""What clients send and see: a Submission goes in, a CommandView comes out (API.md, HTTP)."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from msgspec import Struct, field


class State(StrEnum):
    """States of a command (DESIGN section 5); `engine.transitions` has the moves."""

    RUNNING = "running"
    DELAYED = "delayed"
    BLOCKED = "blocked"
    WAITING = "waiting"
    PAUSED = "paused"
    DEAD_LETTER = "dead_letter"
    COMPENSATING = "compensating"
    COMPLETED = "completed"
    COMPENSATED = "compensated"
    FAILED = "failed"
    ABORTED = "aborted"


FINAL = frozenset({State.COMPLETED, State.COMPENSATED, State.FAILED, State.ABORTED})

DEADLINE_STATES = frozenset({State.DELAYED, State.BLOCKED, State.WAITING, State.PAUSED, State.DEAD_LETTER})
"""States that a type may set a longest time for."""


class StepState(StrEnum):
    """States of a step."""

    PENDING = "pending"
    RUNNING = "running"
    DELAYED = "delayed"
    WAITING = "waiting"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    UNDOING = "undoing"
    UNDONE = "undone"
    SKIPPED = "skipped"
    DEAD_LETTER = "dead_letter"


class Operation(StrEnum):
    """What an operator may ask of a command."""

    PAUSE = "pause"
    RESUME = "resume"
    CANCEL = "cancel"
    ABORT = "abort"
    RETRY = "retry"
    REQUEUE = "requeue"
    RESOLVE = "resolve"


class Submission(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A client's request to run a command.

    Exactly one of ``type`` (a registered or code type, ``version`` optional: the newest) and ``definition`` (inline
    JSON definition).  ``payload`` is any JSON value.  ``timeout`` is the command's deadline as a duration.
    ``admit_within``: instead of a refusal at once, wait so long for a free slot.  ``delay``: a duration from now before
    it begins; ``timeout`` counts from then on.
    """

    id: str | None = None
    type: str | None = None
    version: int | None = None
    definition: dict[str, Any] | None = None
    payload: Any = None
    priority: int = 0
    timeout: str | None = None
    attributes: dict[str, str | int | float | bool] = field(default_factory=dict)
    admit_within: str | None = None
    delay: str | None = None


class FailureView(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A failure as clients see it; ``body`` is the service's answer."""

    code: str
    message: str = ""
    status: int | None = None
    body: Any = None
    traceback: str | None = None
    step: str | None = None


class StepView(Struct, frozen=True, kw_only=True):
    """One step; ``attempts`` counts calls answered (and, while it is tried, calls made)."""

    name: str
    service: str
    state: StepState
    attempts: int
    outcome: Any = None
    error: FailureView | None = None


class CommandView(Struct, frozen=True, kw_only=True):
    """A command as every transport shows it; times are RFC 3339 in UTC with milliseconds.

    ``waiting_for``: names of data, decisions and sleeps that it waits for (``start``: for its own delay).  ``revision``
    is more than 1 when late data has opened it again.
    """

    id: str
    type: str
    version: int
    state: State
    result: Any
    error: FailureView | None
    steps: list[StepView]
    waiting_for: list[str]
    attributes: dict[str, Any]
    submitted_at: str
    finished_at: str | None
    partition: int
    position: str
    payload: Any = None
    priority: int = 0
    reason: str | None = None
    revision: int = 1
