"""What can go wrong, as one tree; `except Retryable` and `except Refused` are the two questions most callers have.

    CoordinatorError
    ├── Refused                   the same request will be refused again
    │   ├── Malformed             malformed
    │   ├── NotFound              not_found
    │   │   ├── UnknownCommand    unknown_command
    │   │   ├── UnknownType       unknown_type
    │   │   ├── UnknownDefinition unknown_definition
    │   │   ├── UnknownService    unknown_service
    │   │   ├── UnknownStep       unknown_step
    │   │   └── UnknownSchedule   unknown_schedule
    │   ├── Forbidden             forbidden            .roles: who may
    │   ├── Conflict              conflict
    │   │   ├── IdConflict        id_conflict          same id, other type or payload
    │   │   ├── IllegalState      illegal_state        .legal_states
    │   │   └── DefinitionConflict definition_conflict
    │   ├── TooLarge              too_large
    │   └── InvalidPayload        invalid_payload      .faults; also raised here, before anything is sent
    ├── Retryable                 the client retried it until its patience ended
    │   ├── LimitReached          limit_reached
    │   ├── Unavailable           unavailable
    │   │   ├── Suspended         suspended            .services
    │   │   ├── Starting          starting
    │   │   ├── Stopping          stopping
    │   │   ├── NoOwner           no_owner
    │   │   ├── LogUnavailable    log_unavailable
    │   │   └── LogCorrupt        corrupt_log          the command's partition stopped; its operator must see to it
    │   ├── WaitTimeout           deadline_exceeded
    │   └── ConnectionLost        connection_lost      no server answered, or one stopped in between
    ├── Internal                  internal
    └── CommandFailed             raised by Command.raise_for_state only: the command ended otherwise than completed

A code that this version does not know becomes a plain CoordinatorError with that ``code`` and the server's own
``retryable``, and is retried accordingly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coordinator_client.models import Command


class CoordinatorError(Exception):
    """``code`` is a stable word, ``detail`` a sentence for people, ``extra`` what the code promises besides.

    ``retry_after_ms`` is the delay the server asked for.  ``command_id`` is the id that the failed request was about,
    also where the client made it: submit again under it to be sure that nothing runs twice.
    """

    code: str = "error"
    retryable: bool = False

    def __init__(
        self,
        detail: str = "",
        *,
        code: str | None = None,
        title: str = "",
        retryable: bool | None = None,
        retry_after_ms: int | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(detail or title or code or self.code)
        self.code = code or self.code
        self.title = title
        self.detail = detail or title
        self.retryable = self.retryable if retryable is None else retryable
        self.retry_after_ms = retry_after_ms
        self.extra = extra or {}
        self.command_id: str | None = None


class Refused(CoordinatorError):
    """The request is wrong as it is; sending it again changes nothing."""


class Malformed(Refused):
    code = "malformed"


class NotFound(Refused):
    code = "not_found"


class UnknownCommand(NotFound):
    code = "unknown_command"


class UnknownType(NotFound):
    code = "unknown_type"


class UnknownDefinition(NotFound):
    code = "unknown_definition"


class UnknownService(NotFound):
    code = "unknown_service"


class UnknownStep(NotFound):
    code = "unknown_step"


class UnknownSchedule(NotFound):
    code = "unknown_schedule"


class Forbidden(Refused):
    """Whoever asks is not one of those who may: who has one of ``roles``."""

    code = "forbidden"

    @property
    def roles(self) -> list[str]:
        return list(self.extra.get("roles", ()))


class Conflict(Refused):
    code = "conflict"


class IdConflict(Conflict):
    """The id belongs to a command with another type or payload."""

    code = "id_conflict"


class IllegalState(Conflict):
    """The operation is not legal in the command's present state."""

    code = "illegal_state"

    @property
    def legal_states(self) -> list[str]:
        return list(self.extra.get("legal_states", ()))


class DefinitionConflict(Conflict):
    """That version is registered with another content; versions are immutable."""

    code = "definition_conflict"


class TooLarge(Refused):
    code = "too_large"


class InvalidPayload(Refused):
    """``faults`` lists ``{"path": …, "fault": …}``."""

    code = "invalid_payload"

    @property
    def faults(self) -> list[dict[str, str]]:
        return list(self.extra.get("faults", ()))

    @classmethod
    def at(cls, path: str, fault: str) -> InvalidPayload:
        return cls(f"{path}: {fault}", extra={"faults": [{"path": path, "fault": fault}]})


class Retryable(CoordinatorError):
    """The same request may succeed later; nothing was accepted in part."""

    retryable = True


class LimitReached(Retryable):
    code = "limit_reached"


class Unavailable(Retryable):
    code = "unavailable"


class Suspended(Unavailable):
    """Intake is suspended while ``services`` are down."""

    code = "suspended"

    @property
    def services(self) -> list[str]:
        return list(self.extra.get("services", ()))


class Starting(Unavailable):
    code = "starting"


class Stopping(Unavailable):
    code = "stopping"


class NoOwner(Unavailable):
    code = "no_owner"


class LogUnavailable(Unavailable):
    code = "log_unavailable"


class LogCorrupt(Unavailable):
    """The command's partition stopped at a record that must not be passed over: asking again helps once its operator
    has seen to it."""

    code = "corrupt_log"


class WaitTimeout(Retryable):
    """Time was up.  The command, if it was accepted, runs on; ``command`` is its last known view, if any."""

    code = "deadline_exceeded"
    command: Command | None = None


class ConnectionLost(Retryable):
    """No server was reached, or the connection broke before the answer; ``sent``: the request may have been read."""

    code = "connection_lost"
    sent = True

    @classmethod
    def unreached(cls, detail: str) -> ConnectionLost:
        """One of which it is certain that nothing was sent."""
        error = cls(detail)
        error.sent = False
        return error


class Internal(CoordinatorError):
    code = "internal"


class CommandFailed(CoordinatorError):
    """A command ended as failed, compensated or aborted; ``command`` has the details."""

    code = "command_failed"

    def __init__(self, command: Command) -> None:
        why = f": {command.error.code} {command.error.message}".rstrip() if command.error else ""
        super().__init__(f"command {command.id} is {command.state}{why}")
        self.command = command
        self.command_id = command.id


ELSEWHERE = (ConnectionLost, Starting, Stopping, NoOwner, LogUnavailable)
"""Errors after which another address is tried first."""


def by_code() -> dict[str, type[CoordinatorError]]:
    """The classes by their code."""
    found: dict[str, type[CoordinatorError]] = {}
    pending: list[type[CoordinatorError]] = [Refused, Retryable, Internal]
    while pending:
        kind = pending.pop()
        pending += kind.__subclasses__()
        found[kind.code] = kind
    del found["error"]
    return found


_BY_CODE = by_code()


def error_of(
    code: str,
    title: str = "",
    detail: str = "",
    retryable: bool | None = None,
    retry_after_ms: int | None = None,
    extra: dict[str, Any] | None = None,
) -> CoordinatorError:
    """The exception for an error that a server told."""
    kind = _BY_CODE.get(code, CoordinatorError)
    return kind(detail, code=code, title=title, retryable=retryable, retry_after_ms=retry_after_ms, extra=extra)
