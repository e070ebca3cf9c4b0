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
from coordinator.model.records import CommandRecord, Control, Failure, Finished, Signal, Submitted

if TYPE_CHECKING:
    from coordinator.engine.service import Work
    from coordinator.saga import CommandType


class Contrary(Enum):
    """A decision from outside ``exec`` that ends the way forward."""

    CANCELLED = "cancelled"
    DEADLINE = "deadline_exceeded"


class Moment(Enum):
    """What the trail says of a step besides outcomes, failures and signals."""

    FIRED = "fired"  # its time has come
    UNDONE = "undone"
    RELEASED = "released"  # an operator lets exec go on from a Hold


Answer = Raw | Failure | Signal | Moment


class Step:
    """The fold of one step's records, and of its undo's.

    ``attempts`` and ``undo_attempts`` count answered calls (folded by maximum).  ``parked`` says that the step, or
    its undo where ``outcome`` is set, is a dead letter; ``held`` that it is no step, but a savepoint that exec has
    stopped at, and ``in_doubt`` that nobody knows whether it has taken effect.  ``released_at`` is when an operator
    last asked for another try (ms); ``forgiven`` and ``undo_forgiven`` are attempts from before, which do not count.
    """

    __slots__ = (
        "answered_at",
        "attempts",
        "failed",
        "failure",
        "forgiven",
        "held",
        "in_doubt",
        "input",
        "outcome",
        "parked",
        "released_at",
        "retry_at",
        "service",
        "undo_attempts",
        "undo_forgiven",
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
        self.held = False
        self.in_doubt = False
        self.forgiven = 0
        self.undo_forgiven = 0

    @property
    def undoing(self) -> bool:
        """Whether what is parked or retried is the step's undo."""
        return self.outcome is not None


class Command:
    """One uncompleted command.

    ``trail`` is what `Execution` is fed, in log order: ``(step, time, answer)`` where the answer is the Outcome's raw
    value, the Failure of a step that has failed for good, a Signal (then the name is the Signal's), or a Moment.
    ``standing`` names the steps whose recorded outcome is not undone, in log order too.  ``moves`` counts the records
    folded, ``errors`` those of them that tell of an error since the command was last resumed.  ``fed`` (volatile) is
    how much of the trail the present execution has seen.
    """

    __slots__ = (
        "aborted",
        "calls_made",
        "contrary",
        "contrary_at",
        "contrary_why",
        "dead_letters",
        "errors",
        "execution",
        "expected",
        "failure",
        "fed",
        "finished",
        "finishing",
        "history",
        "id",
        "moves",
        "offset",
        "on_the_way",
        "opened_by",
        "parked_at",
        "partition",
        "paused",
        "paused_at",
        "paused_auto",
        "poison",
        "proposed",
        "quarantined",
        "reason",
        "reopened_at",
        "rerun_at",
        "rerun_blocked",
        "resumed_at",
        "revision",
        "senseless",
        "signal_ids",
        "signals",
        "skip_parked",
        "standing",
        "started_at",
        "steps",
        "submitted",
        "touched",
        "trail",
        "type",
        "waits",
        "wake_at",
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
        self.on_the_way: set[tuple[str, str]] = set()  # Timers, and Controls of our own, that the log does not have yet
        self.wake_at = 0.0  # when it is to be decided on again, for the sake of time
        self.expected = 0  # records that somebody outside has asked for, and waits for
        self.senseless: Control | None = None  # the last request of an operator that came too late to change anything
        self.type: CommandType | None = None  # once it has been looked up
        self.waits: tuple[str, ...] = ()  # what it waits for, where nothing else is to be done
        self.work: dict[str, Work] = {}
        self.calls_made = 0
        self.rerun_at = 0.0  # exec itself raised Delayed or Blocked: run it again then
        self.rerun_blocked = False  # it was Blocked

    def clear(self) -> None:
        """What the handlers fold, as it is before the first of them: so that a command can be folded anew."""
        self.steps: dict[str, Step] = {}
        self.standing: list[str] = []
        self.dead_letters = 0  # how many of its steps are parked
        self.trail: list[tuple[str, int, Answer]] = []
        self.revision = 1
        self.reopened_at = 0  # when its present life began, if it is not the first (ms)
        self.opened_by = 0  # which of its signals opened it again, as it was ending; found anew with each run of exec
        self.signals = 0  # how many counted
        self.signal_ids: set[str] = set()
        self.moves = 0
        self.errors = 0
        self.started_at: int | None = None if self.submitted.start_at else self.submitted.at
        self.contrary: Contrary | None = None
        self.contrary_at = 0  # how much of the trail came before the contrary decision
        self.contrary_why = ""
        self.poison: Failure | None = None
        self.parked_at = 0
        self.paused = False
        self.paused_at = 0
        self.paused_auto = False  # nobody asked for it
        self.resumed_at = 0
        self.aborted = False
        self.skip_parked = False
        self.reason = ""
        self.finished: Finished | None = None

    @property
    def begins_at(self) -> int:
        """When it has begun, or will: its own delay comes first (ms)."""
        return self.submitted.start_at if self.started_at is None else self.started_at

    @property
    def deadline(self) -> int | None:
        """When the command's own deadline passes (ms since 1970), whether it could begin in time or not; each life has
        as long."""
        timeout = self.submitted.timeout
        begins = self.reopened_at or self.submitted.start_at or self.submitted.at
        return None if timeout is None else begins + timeout

    def reopened(self, at: int) -> None:
        """Begins its next life: what it was given until now is folded, and its end is none any more.  A pause that came
        as it ended was one of its former life."""
        self.reopened_at = at
        self.paused = self.paused_auto = False
        self.errors = 0

    def step(self, name: str, service: str) -> Step:
        step = self.steps.get(name)
        if step is None:
            step = self.steps[name] = Step(service)
        return step

    def park(self, step: Step, *, parked: bool) -> None:
        """Makes a step a dead letter, or ends its being one; counted, since the state is asked for at each record."""
        self.dead_letters += parked - step.parked
        step.parked = parked

    def turn(self, contrary: Contrary, at: int, why: str = "", *, asks_again: bool = True) -> None:
        """Ends the way forward, from outside.  What is known to have failed has failed; a parked undo stays parked.

        ``asks_again``: steps in doubt that were given up are asked again, so that all that was done can be undone, and
        code that cannot go on is not needed any more; otherwise both still wait for an operator.
        """
        if asks_again or (self.poison is not None and self.poison.traceback is None):
            self.poison = None
        self.errors = 0  # those of the way forward are no reason to stop on the way back
        if self.contrary is None:
            self.contrary = contrary
            self.contrary_at = len(self.trail)
            self.contrary_why = why
        for name, step in self.steps.items():
            if not step.parked or step.undoing or (step.in_doubt and not asks_again):
                continue
            self.park(step, parked=False)
            step.released_at = at
            if step.failure is not None and not (step.in_doubt or step.held):
                step.failed = True
                self.trail.append((name, at, step.failure))

    def took_back(self, name: str, step: Step, at: int, *, by: str) -> None:
        """The step's effect is undone, by the service or (``by``) by hand."""
        step.undone = True
        if self.standing[-1] == name:  # as nearly always: undone in reverse order
            self.standing.pop()
        else:
            self.standing.remove(name)
        step.undone_by = by
        step.failure = None
        self.park(step, parked=False)
        step.retry_at = 0
        step.answered_at = at
        self.trail.append((name, at, Moment.UNDONE))

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
        if self.waits or self.started_at is None:
            return State.WAITING
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
        return self.finished is None and not (self.paused or self.parked or self.waits)

    @property
    def recorded(self) -> bool:
        """Whether any step has a recorded outcome, undone or not."""
        return any(isinstance(answer, Raw) for _, _, answer in self.trail)
