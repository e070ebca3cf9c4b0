"""What the engine believes of one command: the fold of its records.

A Command object is only changed by the handlers in `engine.kinds` (the fold: the same live and on replay) and, in the
fields marked volatile, by the engine while it acts.  Losing the volatile fields loses nothing: `Engine.decide` finds
them again.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

from msgspec import Raw

from coordinator.engine.stepper import Execution
from coordinator.model.command import State
from coordinator.model.damaged import Damaged
from coordinator.model.ids import CommandId
from coordinator.model.records import CommandRecord, Failure, Finished, Submitted

if TYPE_CHECKING:
    from coordinator.engine.service import Work


class Contrary(Enum):
    """A decision from outside ``exec`` that ends the way forward."""

    CANCELLED = "cancelled"
    DEADLINE = "deadline_exceeded"


class Step:
    """The fold of one step's records, and of its undo's.

    ``attempts`` and ``undo_attempts`` count answered calls (folded by maximum).  ``parked`` says that the step, or
    its undo where ``outcome`` is set, is a dead letter.  ``released_at`` is when an operator last asked for another
    try (ms).
    """

    __slots__ = (
        "answered_at",
        "attempts",
        "failed",
        "failure",
        "input",
        "outcome",
        "parked",
        "released_at",
        "retry_at",
        "service",
        "undo_attempts",
        "undo_input",
        "undone",
        "undone_by",
    )

    def __init__(self, service: str) -> None:
        self.service = service
        self.outcome: Raw | None = None
        self.failed = False  # for good
        self.failure: Failure | None = None  # the last negative answer
        self.attempts = 0
        self.undo_attempts = 0
        self.retry_at = 0
        self.parked = False
        self.undone = False
        self.undone_by = ""
        self.input: Raw | None = None
        self.undo_input: Raw | None = None
        self.released_at = 0
        self.answered_at = 0

    @property
    def undoing(self) -> bool:
        """Whether what is parked or retried is the step's undo."""
        return self.outcome is not None


class Command:
    """One uncompleted command.

    ``trail`` is what `Execution` is fed, in log order: ``(step, time, answer)`` where the answer is the Outcome's raw
    value or the Failure of a step that has failed for good.  ``standing`` names the steps whose recorded outcome is not
    undone, in log order too.  ``fed`` (volatile) is how much of the trail the present execution has seen.
    """

    __slots__ = (
        "aborted",
        "calls_made",
        "contrary",
        "contrary_at",
        "dead_letters",
        "execution",
        "failure",
        "fed",
        "finished",
        "finishing",
        "history",
        "id",
        "offset",
        "partition",
        "paused",
        "poison",
        "proposed",
        "quarantined",
        "reason",
        "rerun_at",
        "rerun_blocked",
        "skip_parked",
        "standing",
        "steps",
        "submitted",
        "touched",
        "trail",
        "work",
    )

    def __init__(self, partition: int, offset: int, submitted: Submitted) -> None:
        self.id: CommandId = submitted.id
        self.partition = partition
        self.offset = offset
        self.submitted = submitted
        self.quarantined: Failure | None = None  # a record of it cannot be read or applied: it waits for its operator
        self.history: list[tuple[int, CommandRecord | Damaged]] = []
        self.touched = submitted.at  # time of the last record
        self.clear()
        # volatile
        self.execution: Execution | None = None
        self.fed = 0
        self.failure: Failure | None = None  # why the way forward ended; derived from the execution or from `contrary`
        self.finishing = False  # Finished is on its way to the log
        self.proposed: str | None = None  # the step whose dead letter is on its way to the log ("" for poison)
        self.work: dict[str, Work] = {}
        self.calls_made = 0
        self.rerun_at = 0.0  # exec itself raised Delayed or Blocked: run it again then
        self.rerun_blocked = False  # it was Blocked

    def clear(self) -> None:
        """What the handlers fold, as it is before the first of them: so that a command can be folded anew."""
        self.steps: dict[str, Step] = {}
        self.standing: list[str] = []
        self.dead_letters = 0  # how many of its steps are parked
        self.trail: list[tuple[str, int, Raw | Failure]] = []
        self.contrary: Contrary | None = None
        self.contrary_at = 0  # how much of the trail came before the contrary decision
        self.poison: Failure | None = None
        self.paused = False
        self.aborted = False
        self.skip_parked = False
        self.reason = ""
        self.finished: Finished | None = None

    @property
    def deadline(self) -> int | None:
        """When the command's own deadline passes (ms since 1970)."""
        timeout = self.submitted.timeout
        return None if timeout is None else self.submitted.at + timeout

    def step(self, name: str, service: str) -> Step:
        step = self.steps.get(name)
        if step is None:
            step = self.steps[name] = Step(service)
        return step

    def park(self, step: Step, *, parked: bool) -> None:
        """Makes a step a dead letter, or ends its being one; counted, since the state is asked for at each record."""
        self.dead_letters += parked - step.parked
        step.parked = parked

    @property
    def parked(self) -> bool:
        """Whether something of it is a dead letter."""
        return self.dead_letters > 0 or self.poison is not None or self.quarantined is not None

    @property
    def ending(self) -> bool:
        """Whether the way forward has ended in failure: resolve, then undo."""
        return self.failure is not None or self.contrary is not None

    @property
    def state(self) -> State:
        """The state that clients see; one expression of it for all who ask."""
        if self.finished is not None:
            return State(self.finished.state)
        if self.quarantined is not None:
            return State.DEAD_LETTER  # paused or not: `resume` would not help
        if self.paused:
            return State.PAUSED
        if self.parked:
            return State.DEAD_LETTER
        if self.ending:
            return State.COMPENSATING
        shown = State.RUNNING
        for work in self.work.values():
            if work.blocked:
                return State.BLOCKED
            if work.delayed:
                shown = State.DELAYED
        if self.rerun_at:
            return State.BLOCKED if self.rerun_blocked else State.DELAYED
        return shown

    @property
    def holds_slot(self) -> bool:
        """Running, delayed, blocked and compensating commands hold a slot; waiting ones do not (DESIGN section 1)."""
        return self.finished is None and not self.paused and not self.parked

    @property
    def recorded(self) -> bool:
        """Whether any step has a recorded outcome, undone or not."""
        return any(isinstance(answer, Raw) for _, _, answer in self.trail)
