"""What the log holds.

A record is a msgpack array ``[kind, schema, token, at, …]``: the kind's number, the version of its layout, the token
of the ownership that wrote it (DESIGN section 4: a record is valid iff the last Epoch before it carries its token),
and the writer's time in milliseconds since 1970.  Further fields are positional; a new schema version may only append
fields, with defaults, so that old records stay readable for ever.  ``tests/golden`` holds the bytes.

Values that clients and services chose (payloads, outcomes, results) stay raw msgpack: they are decoded only by whoever
needs them, and leave as they came.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Raw, Struct

from coordinator.model.ids import CommandId

SCHEMA: Final = 1
NIL: Final = Raw(b"\xc0")  # msgpack null


class Failure(Struct, frozen=True, array_like=True, omit_defaults=True):
    """Why a step or a command failed.

    ``code`` is a word a program can test (``declined``, ``http_409``, ``deadline_exceeded``, ``poison`` …),
    ``message`` a sentence, ``status`` the HTTP status where there was one, ``body`` the service's answer as raw
    msgpack, ``traceback`` text for a poison command.
    """

    code: str
    message: str = ""
    status: int | None = None
    body: Raw = NIL
    traceback: str | None = None
    step: str | None = None


class Epoch(Struct, frozen=True, array_like=True, tag_field="kind", tag=0):
    """One ownership of the partition begins; its own offset is the epoch number.

    ``group`` is the name of the instances that share the log, so that another group notices that it is not its own.
    """

    schema: int
    token: bytes
    at: int
    instance: str
    address: str
    group: str = ""


class Submitted(Struct, frozen=True, array_like=True, tag_field="kind", tag=1):
    """A command was accepted."""

    schema: int
    token: bytes
    at: int
    id: CommandId
    type: str
    version: int
    payload: Raw
    fingerprint: bytes  # of type, requested version, payload and definition: what "the same request" means
    definition: Raw = NIL  # an inline definition as sent, else null
    timeout: int | None = None  # milliseconds from `at` to the command's deadline
    attributes: dict[str, Any] = {}
    priority: int = 0
    meta: dict[str, Any] = {}  # room for trace context, actor, key id
    start_at: int = 0  # ms since 1970: it begins then, and `timeout` counts from then


class Outcome(Struct, frozen=True, array_like=True, tag_field="kind", tag=2):
    """A step succeeded; `outcome` is what the service answered."""

    schema: int
    token: bytes
    at: int
    id: CommandId
    step: str
    service: str
    attempt: int  # calls answered so far, this one included
    outcome: Raw


class StepFailed(Struct, frozen=True, array_like=True, tag_field="kind", tag=3):
    """A step was answered in the negative, or given up.

    ``undo`` tells that the step's undo was called.  ``verdict`` is what follows: ``retry`` (attempts are left, the
    next is due ``retry_at``), ``failed`` (the step has failed), ``parked`` (dead letter: waits for an operator),
    ``held`` (no step: exec has stopped at a savepoint, as a dead letter), ``delayed`` (the answer is unknown and it is
    asked again; recorded only where errors are counted).  An empty step means the command's own code (poison); with
    ``undo``, that it fails even on the way back.
    """

    schema: int
    token: bytes
    at: int
    id: CommandId
    step: str
    service: str
    attempt: int
    failure: Failure
    verdict: str
    undo: bool = False
    retry_at: int = 0


class Undone(Struct, frozen=True, array_like=True, tag_field="kind", tag=4):
    """A step's undo succeeded (``by`` names an operator where one did it by hand)."""

    schema: int
    token: bytes
    at: int
    id: CommandId
    step: str
    service: str
    attempt: int
    outcome: Raw = NIL
    by: str = ""


class Signal(Struct, frozen=True, array_like=True, tag_field="kind", tag=5):
    """Something from outside; ``signal_id`` makes it once-only.

    ``channel``: ``data`` (under the name ``name``, from a client or by a callback) or ``decision`` (of the step
    ``name``; ``value`` is ``{"approve", "comment"}``, ``by`` whoever decided).
    """

    schema: int
    token: bytes
    at: int
    id: CommandId
    name: str
    value: Raw
    signal_id: str = ""
    by: str = ""
    channel: str = "data"


class Control(Struct, frozen=True, array_like=True, tag_field="kind", tag=6):
    """An operator's request that was legal when it was made: pause, resume, cancel, abort, retry, requeue, resolve.

    ``auto``: nobody asked; the command's type says so (pause after errors, and the resume that follows).
    """

    schema: int
    token: bytes
    at: int
    id: CommandId
    operation: str
    reason: str = ""
    by: str = ""
    step: str = ""  # requeue
    input: Raw = NIL  # requeue: replaces the request's body
    replaces: bool = False  # whether it does: null is an input like any other
    auto: bool = False


class Timer(Struct, frozen=True, array_like=True, tag_field="kind", tag=7):
    """A durable time has come.

    ``what``: ``deadline`` (of the command), ``start`` (its delay is over), ``step`` (a wait's time, or a step's
    deadline: ``name`` is the step) or ``state`` (``name`` is a state that it has been in for too long).  ``moves`` is
    how many records of the command had been folded when the time came: a state may have been left since.
    """

    schema: int
    token: bytes
    at: int
    id: CommandId
    name: str
    what: str = "deadline"
    moves: int = 0


Piece = tuple[int, bytes]
"""A record's offset and its bytes, or some of them: the same offset again means that the bytes go on."""


class Link(NamedTuple):
    """A snapshot, as a later one knows it: the offset that it covers, that of its first part, when it was cut (ms)."""

    covered: int
    position: int
    at: int


class Snapshot(Struct, frozen=True, array_like=True, tag_field="kind", tag=8):
    """One part of the state below the offset ``covered`` (`engine.snapshots` makes and reads them).

    The parts of one snapshot share ``snapshot``, 8 random bytes, and are numbered from 0; the last one says in
    ``parts`` how many there are, the others say 0: while the first is written nobody knows yet.  Other records may lie
    between.

    Read on from ``covered`` with ``token_in_force``, whatever stands between there and the snapshot: its own place
    means nothing, and neither does its own token.  ``identity`` is the token of the partition's first Epoch, by which a
    view knows its log when that Epoch is gone.

    What it has: the valid records below ``covered`` of each uncompleted command, as they were encoded; the Registered
    records; the quarantine, an entry for each offset; ``receipts`` of finished commands (`admission.receipts`; one
    sorted run over all the parts); ``sleeping``, a few words about each command that only waits (`engine.asleep`), so
    that it need not be folded; and, with the last part, the ``chain`` of earlier snapshots that are still of use.
    """

    schema: int
    token: bytes
    at: int
    snapshot: bytes
    part: int
    parts: int
    covered: int
    token_in_force: bytes
    identity: bytes
    commands: list[tuple[CommandId, list[Piece]]] = []
    definitions: list[Piece] = []
    quarantine: list[Piece] = []
    receipts: bytes = b""
    chain: list[Link] = []
    schedules: list[Piece] = []
    sleeping: list[tuple[CommandId, bytes]] = []


class Finished(Struct, frozen=True, array_like=True, tag_field="kind", tag=9):
    """The command's end; nothing after it counts.

    ``signals`` is how many the command had been given when it was decided: one that has crossed another was decided
    without it.
    """

    schema: int
    token: bytes
    at: int
    id: CommandId
    state: str
    result: Raw = NIL
    failure: Failure | None = None
    signals: int = -1


class Registered(Struct, frozen=True, array_like=True, tag_field="kind", tag=10):
    """A definition was registered under a name and a version; the first content wins for ever."""

    schema: int
    token: bytes
    at: int
    name: str
    version: int
    content: Raw  # the definition as msgpack
    fingerprint: bytes
    by: str = ""


class Reopened(Struct, frozen=True, array_like=True, tag_field="kind", tag=11):
    """Late data has opened a finished command again, as its next ``revision``.

    ``records`` are all records of it so far, as they were encoded and with their offsets (an earlier Reopened without
    records of its own): the command is folded from these, wherever they themselves are by now, its ends passed over.
    """

    schema: int
    token: bytes
    at: int
    id: CommandId
    revision: int
    records: list[Piece]
    by: str = ""


class Schedule(Struct, frozen=True, array_like=True, tag_field="kind", tag=12):
    """What happened to the schedule ``name``, which lives in the partition that its name hashes to.

    ``action``: ``put`` (``content`` is the schedule as JSON), ``pause``, ``resume``, ``delete``; and of the time (ms)
    that was ``due``: ``queued`` (it is to be run, when its turn comes), ``starting`` (its command is submitted next),
    ``fired`` (its command ``command`` is durable) or ``skipped`` (it is not run: ``reason``).
    """

    schema: int
    token: bytes
    at: int
    name: str
    action: str
    content: Raw = NIL
    due: int = 0
    command: str = ""
    by: str = ""
    reason: str = ""


Record = (
    Epoch
    | Submitted
    | Outcome
    | StepFailed
    | Undone
    | Signal
    | Control
    | Timer
    | Snapshot
    | Finished
    | Registered
    | Reopened
    | Schedule
)
CommandRecord = Submitted | Outcome | StepFailed | Undone | Signal | Control | Timer | Finished | Reopened

KINDS: Final[dict[int, type[Struct]]] = {
    kind.__struct_config__.tag: kind  # type: ignore[misc]
    for kind in (
        Epoch,
        Submitted,
        Outcome,
        StepFailed,
        Undone,
        Signal,
        Control,
        Timer,
        Snapshot,
        Finished,
        Registered,
        Reopened,
        Schedule,
    )
}
"""The kinds by their numbers."""


def raw(value: Any) -> Raw:
    """``value`` as raw msgpack."""
    return Raw(msgspec.msgpack.encode(value))


def unraw(value: Raw) -> Any:
    """The Python value of raw msgpack."""
    return msgspec.msgpack.decode(value)
