"""Client of coordinator, the saga coordinator: `Client` blocks, `AsyncClient` does not; both speak TCP and HTTP.

from coordinator_client import Client

with Client("tcp://127.0.0.1:7070") as client:
    command = client.submit("PlaceOrder", {"order_id": "o-1", "amount": 1999}, wait="30s")
    print(command.raise_for_state().result)
"""

from coordinator_client.aio import AsyncClient, new_command_id, new_signal_id
from coordinator_client.errors import (
    CommandFailed,
    Conflict,
    ConnectionLost,
    CoordinatorError,
    DefinitionConflict,
    Forbidden,
    IdConflict,
    IllegalState,
    Internal,
    InvalidPayload,
    LimitReached,
    LogCorrupt,
    LogUnavailable,
    Malformed,
    NoOwner,
    NotFound,
    Refused,
    Retryable,
    Starting,
    Stopping,
    Suspended,
    TooLarge,
    Unavailable,
    UnknownCommand,
    UnknownDefinition,
    UnknownSchedule,
    UnknownService,
    UnknownStep,
    UnknownType,
    WaitTimeout,
)
from coordinator_client.models import (
    Command,
    Event,
    Failure,
    Outcome,
    PendingDecision,
    Schedule,
    ScheduledRun,
    SkippedRun,
    Step,
)
from coordinator_client.retry import RetryPolicy
from coordinator_client.sync import Client

ClientError = CoordinatorError
"""The same class, for programs that also know the server's CoordinatorError."""

__all__ = [
    "AsyncClient",
    "Client",
    "ClientError",
    "Command",
    "CommandFailed",
    "Conflict",
    "ConnectionLost",
    "CoordinatorError",
    "DefinitionConflict",
    "Event",
    "Failure",
    "Forbidden",
    "IdConflict",
    "IllegalState",
    "Internal",
    "InvalidPayload",
    "LimitReached",
    "LogCorrupt",
    "LogUnavailable",
    "Malformed",
    "NoOwner",
    "NotFound",
    "Outcome",
    "PendingDecision",
    "Refused",
    "RetryPolicy",
    "Retryable",
    "Schedule",
    "ScheduledRun",
    "SkippedRun",
    "Starting",
    "Step",
    "Stopping",
    "Suspended",
    "TooLarge",
    "Unavailable",
    "UnknownCommand",
    "UnknownDefinition",
    "UnknownSchedule",
    "UnknownService",
    "UnknownStep",
    "UnknownType",
    "WaitTimeout",
    "new_command_id",
    "new_signal_id",
]
