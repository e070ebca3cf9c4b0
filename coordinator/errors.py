"""The one tree of errors, with what a client of any transport is told.

    CoordinatorError
    ├── Malformed             malformed             400  the bytes are not a request
    ├── NotFound              not_found             404  no such resource of the API
    │   ├── UnknownCommand    unknown_command       404
    │   ├── UnknownType       unknown_type          404
    │   ├── UnknownDefinition unknown_definition    404
    │   ├── UnknownService    unknown_service       404
    │   └── UnknownStep       unknown_step          404
    ├── Conflict              conflict              409
    │   ├── IdConflict        id_conflict           409  same id, other payload
    │   ├── IllegalState      illegal_state         409  with the states it is legal in
    │   └── DefinitionConflict definition_conflict  409  a registered version is immutable
    ├── TooLarge              too_large             413
    ├── InvalidPayload        invalid_payload       422  with the path of each fault
    ├── LimitReached          limit_reached         429  retry after
    ├── Unavailable           unavailable           503  retry after
    │   ├── Suspended         suspended             503  with the services that are down
    │   ├── Starting          starting              503
    │   ├── Stopping          stopping              503  this instance drains: go elsewhere
    │   ├── NoOwner           no_owner              503  another instance owns the partition
    │   │   └── LinkLost      no_owner              503  the connection to the instance that owns it broke
    │   ├── LogUnavailable    log_unavailable       503
    │   └── LogCorrupt        corrupt_log           503  the partition stopped at a record that cannot be read
    ├── WaitTimeout           deadline_exceeded     504  the caller's own deadline passed
    └── Internal              internal              500  our mistake, logged

Each class has a stable ``code``, an HTTP and a gRPC status and whether the same request may be sent again.  The three
transports and the clients read this table; nothing else maps errors.  Errors of aiokafka, grpc, sqlite3 and the HTTP
clients never leave the module that talks to them.

What another instance of the group has told comes back as the same class, with all that was said (`from_wire`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class CoordinatorError(Exception):
    """An error that a client may be told.

    ``detail`` is a sentence for a person: what was wrong, where, what is allowed.  ``retry_after_ms`` is the delay that
    the client should keep before it sends the same request again (only where ``retryable``).  ``extra`` has further
    JSON members of the answer (``legal_states``, ``services``, ``faults``: a list of ``{"path": …, "fault": …}``).

    The five attributes below belong to the class; only an error that another instance told may differ (`from_wire`).
    """

    code: str = "internal"
    title: str = "Internal error"
    http: int = 500
    grpc: str = "INTERNAL"  # a name of grpc.StatusCode
    retryable: bool = False

    def __init__(self, detail: str = "", *, retry_after_ms: int | None = None, **extra: Any) -> None:
        super().__init__(detail or self.title)
        self.detail = detail or self.title
        self.retry_after_ms = retry_after_ms
        self.extra = extra


class Malformed(CoordinatorError):
    """The bytes are no request: bad JSON, a bad frame, a wrong type at the top."""

    code, title, http, grpc = "malformed", "Malformed request", 400, "INVALID_ARGUMENT"


class NotFound(CoordinatorError):
    """There is no such resource."""

    code, title, http, grpc = "not_found", "Not found", 404, "NOT_FOUND"


class UnknownCommand(NotFound):
    code, title = "unknown_command", "Unknown command"


class UnknownType(NotFound):
    code, title = "unknown_type", "Unknown command type"


class UnknownDefinition(NotFound):
    code, title = "unknown_definition", "Unknown definition"


class UnknownService(NotFound):
    code, title = "unknown_service", "Unknown service"


class UnknownStep(NotFound):
    code, title = "unknown_step", "Unknown step"


class UnknownSchedule(NotFound):
    code, title = "unknown_schedule", "Unknown schedule"


class Forbidden(CoordinatorError):
    """Whoever asks is not one of those who may; ``extra["roles"]`` lists the roles that may."""

    code, title, http, grpc = "forbidden", "Forbidden", 403, "PERMISSION_DENIED"


class Conflict(CoordinatorError):
    code, title, http, grpc = "conflict", "Conflict", 409, "FAILED_PRECONDITION"


class IdConflict(Conflict):
    """The id is taken by a command with another type or payload."""

    code, title, grpc = "id_conflict", "Id conflict", "ALREADY_EXISTS"


class IllegalState(Conflict):
    """The operation is not legal now; ``extra["legal_states"]`` lists the states that it is legal in."""

    code, title = "illegal_state", "Illegal state"


class DefinitionConflict(Conflict):
    code, title, grpc = "definition_conflict", "Definition conflict", "ALREADY_EXISTS"


class TooLarge(CoordinatorError):
    code, title, http, grpc = "too_large", "Too large", 413, "RESOURCE_EXHAUSTED"


class InvalidPayload(CoordinatorError):
    """Readable, but not allowed; ``extra["faults"]`` is a list of ``{"path": …, "fault": …}``."""

    code, title, http, grpc = "invalid_payload", "Invalid payload", 422, "INVALID_ARGUMENT"

    @classmethod
    def at(cls, path: str, fault: str) -> InvalidPayload:
        return cls(f"{path}: {fault}", faults=[{"path": path, "fault": fault}])

    @classmethod
    def all(cls, faults: list[tuple[str, str]]) -> InvalidPayload:
        return cls(
            "; ".join(f"{path}: {fault}" for path, fault in faults),
            faults=[{"path": path, "fault": fault} for path, fault in faults],
        )


class LimitReached(CoordinatorError):
    code, title, http, grpc, retryable = "limit_reached", "Limit reached", 429, "RESOURCE_EXHAUSTED", True


class Unavailable(CoordinatorError):
    code, title, http, grpc, retryable = "unavailable", "Unavailable", 503, "UNAVAILABLE", True


class Suspended(Unavailable):
    """Intake is suspended; ``extra["services"]`` names the services whose breaker is open or whose backlog drains."""

    code, title = "suspended", "Intake suspended"


class Starting(Unavailable):
    code, title = "starting", "Starting"


class Stopping(Unavailable):
    code, title = "stopping", "Stopping"


class NoOwner(Unavailable):
    code, title = "no_owner", "No owner"


class LinkLost(NoOwner):
    """The connection to the instance that was asked broke before its answer; what was asked may or may not have
    happened, so ask again with the same id.  Clients see it as any other ``no_owner``."""


class LogUnavailable(Unavailable):
    """The log did not confirm; what was asked may or may not have landed, so retry with the same id."""

    code, title = "log_unavailable", "Log unavailable"


class LogCorrupt(Unavailable):
    """The command's partition stopped at a record that must not be passed over, and waits for its operator."""

    code, title = "corrupt_log", "Log corrupt"


class WaitTimeout(CoordinatorError):
    code, title, http, grpc, retryable = "deadline_exceeded", "Deadline exceeded", 504, "DEADLINE_EXCEEDED", True


class Internal(CoordinatorError):
    code, title = "internal", "Internal error"


# ---------------------------------------------------------------- errors that stop the daemon, told to its operator


class StartupError(Exception):
    """The daemon refuses to start; the text is all that the operator needs (no traceback is printed)."""


class ConfigError(StartupError):
    """A wrong key or value; the text names the source (file, environment, flag), the key and what is allowed."""


class CorruptLog(StartupError):
    """A record that cannot be read, of an unknown kind or of a newer schema; the text names partition, offset, kind.

    ``damaged`` is the record, where it is one (`model.damaged.Damaged`).
    """

    def __init__(self, text: str, *, damaged: Any = None) -> None:
        super().__init__(text)
        self.damaged = damaged


def tree(root: type[CoordinatorError] = CoordinatorError) -> dict[str, type[CoordinatorError]]:
    """All classes by code: what transports and their tests iterate over.  Of two with one code, the more general."""
    found: dict[str, type[CoordinatorError]] = {}
    for child in root.__subclasses__():
        found.update(tree(child))
    if root is not CoordinatorError:
        found[root.code] = root
    return found


# ---------------------------------------------------------------- errors that another instance told


def from_wire(
    code: str, title: str, detail: str, retryable: bool, retry_after_ms: int | None, extra: Mapping[str, Any]
) -> CoordinatorError:
    """The error that another instance told, to be told on: nothing of what it said is lost.

    A code that only a later version knows is a plain CoordinatorError that carries it, and can be retried if that
    instance said so.
    """
    kind = _BY_CODE.get(code)
    if kind is None:
        error = CoordinatorError(detail, retry_after_ms=retry_after_ms)
        error.code, error.title = code, title or code
        if retryable:
            error.http, error.grpc = Unavailable.http, Unavailable.grpc
    else:
        error = kind(detail, retry_after_ms=retry_after_ms)
    if error.retryable != retryable:
        error.retryable = retryable
    error.extra = dict(extra)
    return error


_BY_CODE = tree()
