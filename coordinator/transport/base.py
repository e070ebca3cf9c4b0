"""The port that the three transports call, and the events that come back.

`pipeline.Pipeline` implements Front.  Everything here runs on one event loop; a watcher is called from it, never from
inside the call that registered it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Iterable
from contextvars import ContextVar
from typing import Any, Literal, Protocol

from msgspec import Struct

from coordinator.errors import CoordinatorError
from coordinator.model.command import CommandView, Operation, Submission


class Event(Struct, frozen=True):
    """Something durable happened to a command.

    ``kind``: ``accepted`` (its Submitted is durable), ``step`` (an Outcome, StepFailed or Undone: see ``record``),
    ``state`` (the shown state changed: delayed, blocked, paused, …), ``final`` (``view`` is the end) and ``error``
    (``error`` says why no more will come here; retryable: ask again with the same id).  ``position`` is the record's
    place in the log, ``record`` a history entry as `Front.history` gives.  ``view`` comes with ``accepted`` and
    ``final``.
    """

    kind: Literal["accepted", "step", "state", "final", "error"]
    id: str
    position: str = ""
    state: str = ""
    record: dict[str, Any] | None = None
    view: CommandView | None = None
    error: CoordinatorError | None = None
    attached: bool = False  # accepted: the command was already known (same id, same payload)


class Caller(Struct, frozen=True):
    """Who asks, as far as it concerns whoever is asked in the end: ``deadline`` (the event loop's time) is when nobody
    waits for the answer any more, ``meta`` is the caller's trace context."""

    deadline: float | None = None
    meta: dict[str, Any] = {}


caller: ContextVar[Caller | None] = ContextVar("caller", default=None)
"""Set by a transport before it calls the Front; goes along when the call is forwarded to another instance."""

TRACE_CONTEXT = frozenset({"traceparent", "tracestate"})
"""The headers (W3C Trace Context) that HTTP and gRPC put into `Caller.meta`, by these names."""

Watcher = Callable[[Event], None]
Want = Literal["accepted", "final", "events"]
Unwatch = Callable[[], None]


class OutcomeItem(Struct, frozen=True, kw_only=True):
    """One line of /v1/outcomes."""

    position: str
    service: str
    command_id: str
    type: str
    step: str
    outcome: Any
    at: str


class CommandPage(Struct, frozen=True):
    """A page of a list, newest first.

    ``incomplete`` names the partitions of which commands may be missing: nobody owns them at present, or their new
    owner has not read all of their past yet.
    """

    commands: list[CommandView]
    next_cursor: str | None
    incomplete: tuple[int, ...] = ()


class Gathered(list[dict[str, Any]]):
    """A list that was gathered from the partitions' owners; ``incomplete`` as in `CommandPage`."""

    def __init__(self, items: Iterable[dict[str, Any]] = (), incomplete: tuple[int, ...] = ()) -> None:
        super().__init__(items)
        self.incomplete = incomplete


class Traffic:
    """What the clients of one listener do, in plain counts: the listener adds, ``/metrics`` reads.

    ``opened`` counts connections ever, ``connections`` those open now, ``requests`` what was read and taken for one.
    ``sees_connections``: whether the listener is told of connections at all (gRPC's are its library's own affair).
    """

    __slots__ = ("connections", "opened", "requests", "sees_connections")

    def __init__(self, *, sees_connections: bool = True) -> None:
        self.sees_connections = sees_connections
        self.opened = self.connections = self.requests = 0

    def connected(self) -> None:
        self.opened += 1
        self.connections += 1

    def disconnected(self) -> None:
        self.connections -= 1

    def requested(self) -> None:
        self.requests += 1


class Front(Protocol):
    """All that a client can ask; every method raises CoordinatorError and nothing else.

    ``wait_ms``: how long to wait for the command's end before answering with the present view.
    """

    @property
    def dedupe_horizon_ms(self) -> int:
        """For how long after a command's end its id is surely known: sent again within it, it never runs again."""
        ...

    def submit(self, submission: Submission, watcher: Watcher | None, want: Want = "events") -> tuple[str, Unwatch]:
        """Admits a command or raises at once; returns its id.

        ``want`` spares what the watcher would not use: only with ``accepted`` does that event have a view, only with
        ``events`` do ``step`` and ``state`` come.

        The watcher then gets ``accepted`` when it is durable (or ``error`` when that could not be confirmed),
        ``step`` and ``state`` events, and ``final``.  Never blocks and makes no task: TCP calls it once a frame.
        """
        ...

    async def submit_and_wait(self, submission: Submission, wait_ms: int) -> tuple[CommandView, bool]:
        """Submits; returns once durable, or final if that comes within ``wait_ms``; the flag tells `attached`."""
        ...

    async def get(self, id: str, wait_ms: int = 0) -> CommandView: ...

    def watch(self, id: str, watcher: Watcher, after: str | None = None) -> Unwatch:
        """Events of a known command: first what is recorded after position ``after`` (all if None), then as they
        happen."""
        ...

    async def list_commands(
        self, *, state: str | None, type: str | None, attributes: dict[str, str], limit: int, cursor: str | None
    ) -> CommandPage: ...

    async def history(self, id: str) -> list[dict[str, Any]]:
        """Every record: ``{"kind", "position", "at", "step"?, "by"?, …}`` in log order."""
        ...

    async def explain(self, id: str) -> dict[str, Any]: ...

    async def diagram(self, id: str) -> str: ...

    async def control(
        self,
        id: str,
        operation: Operation,
        *,
        reason: str,
        by: str,
        step: str = "",
        input: Any = None,
        replace_input: bool = False,
    ) -> CommandView:
        """pause, resume, cancel, abort, retry, requeue, resolve; returns the view once the Control record is durable.

        ``step``: of requeue and resolve; ``input``: of requeue.
        """
        ...

    async def provide(self, id: str, name: str, value: Any, *, signal_id: str = "", by: str = "") -> CommandView:
        """Data for whoever waits for ``name`` in the command, or will; returns the view once it is durable.

        The same ``signal_id`` again, or the same value while nobody waits for another, changes nothing.  Raises
        IllegalState where the command has ended, unless its type says that this datum opens it again.
        """
        ...

    async def callback(self, id: str, name: str, token: str, value: Any) -> None:
        """What a service sends to a `Saga.callback_url`, whose last part is ``token``.

        UnknownCommand also for a wrong token; counts once, whatever is sent later.
        """
        ...

    async def decide(
        self, id: str, step: str, *, approve: bool, by: str, comment: str, roles: Collection[str] = ()
    ) -> CommandView:
        """A person's decision; ``roles`` are those that they have.  Returns the view once it is durable.

        Raises UnknownStep for a step that is no decision, IllegalState for one that nobody is asked for now or that has
        been decided, Forbidden.
        """
        ...

    async def decisions(self) -> list[dict[str, Any]]:
        """Decisions that are waited for: ``{"command_id", "type", "step", "input", "roles", "since", "timeout_at",
        "on_timeout", "attributes"}``, the oldest first; a `Gathered` where some may be missing."""
        ...

    async def put_schedule(self, name: str, content: dict[str, Any], by: str) -> dict[str, Any]:
        """Makes or replaces a schedule (docs/schedules.md); returns it as `schedule` does, once it is durable."""
        ...

    async def schedule(self, name: str) -> dict[str, Any]:
        """``{"name", "spec", "state", "next", "last", "waiting", "skipped", "by", "reason"}``; raises
        UnknownSchedule."""
        ...

    async def schedules(self) -> list[dict[str, Any]]:
        """All of them by name; a `Gathered` where some may be missing."""
        ...

    async def control_schedule(
        self, name: str, action: Literal["pause", "resume", "delete"], *, by: str, reason: str
    ) -> dict[str, Any]:
        """Returns the schedule as it is then; twice is idempotent; raises UnknownSchedule."""
        ...

    def outcomes(
        self, service: str, start: str | None, follow: bool, partitions: Collection[int] | None = None
    ) -> AsyncIterator[list[OutcomeItem]]:
        """Outcomes of a service in log order; ``start`` is an inclusive position, or an RFC 3339 time.

        ``partitions``: of these only (None: of all).
        """
        ...

    async def quarantine(self) -> list[dict[str, Any]]:
        """Records that cannot be read or applied: ``{"partition", "offset", "position", "effect", "kind", "command_id",
        "reason", "at", "size", "bytes"}``; ``effect`` is ``parked`` (the command), ``passed_over`` or ``stopped``
        (the partition)."""
        ...

    async def log_state(self) -> list[dict[str, Any]]:
        """What is kept of each partition's log, and why: ``{"partition", "owner", "address", "first", "end",
        "snapshot", "earlier_snapshots", "replay_records", "replay_estimate", "recovery_target", "retain", "trim_to",
        "pinned_by", "why"}``; a `Gathered`, which names the partitions whose owner did not answer."""
        ...

    async def dead_letters(self) -> list[dict[str, Any]]:
        """Parked steps; a `Gathered` where some may be missing."""
        ...

    async def services(self) -> list[dict[str, Any]]: ...

    async def set_breaker(self, service: str, state: Literal["open", "closed", "auto"]) -> dict[str, Any]: ...

    async def cluster(self) -> dict[str, Any]: ...

    async def register(
        self, name: str, version: int, content: dict[str, Any], by: str, partitions: Collection[int] | None = None
    ) -> bool:
        """Registers a definition durably; False if the same content was there; raises DefinitionConflict,
        InvalidPayload.

        It is recorded in each partition (``partitions``: in these only) that lacks it; what fails half way is mended
        by asking again.
        """
        ...

    async def definition(self, name: str, version: int | None) -> dict[str, Any]: ...

    async def definitions(self) -> list[dict[str, Any]]: ...

    async def definition_diagram(self, name: str, version: int) -> str: ...

    def ready(self) -> tuple[bool, dict[str, Any]]:
        """Whether every owned partition is replayed and appends succeed, and why not."""
        ...
