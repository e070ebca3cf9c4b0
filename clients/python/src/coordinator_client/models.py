"""What comes back: commands, steps, events, outcomes.  Unknown members are ignored: the server may be newer."""

from __future__ import annotations

import builtins
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from coordinator_client.errors import CommandFailed, CoordinatorError

T = TypeVar("T")
S = TypeVar("S", bound=Struct)

FINAL_STATES = frozenset({"completed", "compensated", "failed", "aborted"})


class Failure(Struct, frozen=True, kw_only=True):
    """Why a step or a command failed; ``body`` is the service's own answer."""

    code: str
    message: str = ""
    status: int | None = None
    body: Any = None
    traceback: str | None = None
    step: str | None = None


class Step(Struct, frozen=True, kw_only=True):
    """One step of a command.

    ``state`` is one of pending, running, delayed, waiting, succeeded, failed, undoing, undone, skipped, dead_letter.
    """

    name: str
    service: str = ""
    state: str = "pending"
    attempts: int = 0
    outcome: Any = None
    error: Failure | None = None


class Command(Struct, frozen=True, kw_only=True):
    """A command as the server saw it last.

    ``state`` is one of running, delayed, blocked, waiting, paused, dead_letter, compensating, and finally completed,
    compensated, failed, aborted.  Times are RFC 3339 text in UTC; ``position`` is ``<partition>:<offset>`` in the log.
    ``waiting_for`` names the data, decisions and sleeps that it waits for (``start``: for its own delay).  ``revision``
    is more than 1 when late data has opened it again.
    """

    id: str
    type: str
    state: str
    version: int = 0
    result: Any = None
    error: Failure | None = None
    steps: list[Step] = []
    waiting_for: list[str] = []
    attributes: dict[str, Any] = {}
    submitted_at: str = ""
    finished_at: str | None = None
    partition: int = 0
    position: str = ""
    payload: Any = None
    priority: int = 0
    reason: str | None = None
    revision: int = 1

    @property
    def final(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in FINAL_STATES

    @property
    def ok(self) -> bool:
        """Whether it completed."""
        return self.state == "completed"

    def raise_for_state(self) -> Command:
        """Itself; raises CommandFailed if it ended otherwise than completed (one that still runs did not)."""
        if self.final and not self.ok:
            raise CommandFailed(self)
        return self

    def result_as(self, kind: builtins.type[T]) -> T:
        """The result converted to ``kind`` (a msgspec Struct, a dataclass, …); raises msgspec.ValidationError."""
        return msgspec.convert(self.result, kind)

    def step(self, name: str) -> Step:
        """The step of that name; raises KeyError."""
        for step in self.steps:
            if step.name == name:
                return step
        raise KeyError(name)


class Event(Struct, frozen=True, kw_only=True):
    """Something that happened to a command: ``kind`` is accepted, step, state or final; ``position`` is in the log.

    ``record`` (of a step event) is an entry of the history, ``command`` comes with final, and with accepted where the
    server sends it.
    """

    kind: str
    id: str
    position: str = ""
    state: str = ""
    record: dict[str, Any] | None = None
    command: Command | None = None


class Outcome(Struct, frozen=True, kw_only=True):
    """A step's recorded outcome, as the service answered it."""

    position: str
    service: str
    command_id: str
    type: str = ""
    step: str = ""
    outcome: Any = None
    at: str = ""


class PendingDecision(Struct, frozen=True, kw_only=True):
    """A decision that a command waits for, by somebody who has one of ``roles`` (none: anybody).

    ``input`` is what they are shown.  At ``timeout_at``, if there is one, time decides, as ``on_timeout`` says: reject,
    approve or fail.
    """

    command_id: str
    step: str
    type: str = ""
    input: Any = None
    roles: list[str] = []
    since: str = ""
    timeout_at: str | None = None
    on_timeout: str | None = None
    attributes: dict[str, Any] = {}


class ScheduledRun(Struct, frozen=True, kw_only=True):
    """A run of a schedule: when it was ``due``, the id of its ``command``, and that one's state where it is known."""

    due: str
    command: str
    state: str | None = None


class SkippedRun(Struct, frozen=True, kw_only=True):
    """A due time that was passed over, and why."""

    due: str
    reason: str = ""
    at: str = ""


class Schedule(Struct, frozen=True, kw_only=True):
    """A schedule: ``spec`` is what was put, ``state`` active, paused or deleted, ``next`` when it is due.

    ``waiting`` says why a run that is due has not begun.  ``by`` and ``reason`` are those of whoever put, paused or
    resumed it last.
    """

    name: str
    spec: dict[str, Any] = {}
    state: str = ""
    next: str | None = None
    last: ScheduledRun | None = None
    waiting: str | None = None
    skipped: SkippedRun | None = None
    by: str = ""
    reason: str = ""


def command_of(view: Any, result_type: type[Any] | None = None) -> Command:
    """A command from its JSON form; ``result_type`` converts the result of a completed one."""
    command = item_of(view, Command)
    if result_type is not None and command.ok:
        return msgspec.structs.replace(command, result=command.result_as(result_type))
    return command


def item_of(value: Any, kind: type[S]) -> S:
    """A ``kind`` from its JSON form."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as why:
        raise CoordinatorError(f"the server sent a {kind.__name__} that cannot be read: {why}") from None


def items_of(values: list[Any], kind: type[S]) -> list[S]:
    """A list of them."""
    return [item_of(value, kind) for value in values]
