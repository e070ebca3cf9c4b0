"""coordinator: a networked saga coordinator over a distributed log."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from coordinator.engine.topology import Savepoint
from coordinator.flow import Asks, Datum, Flow, FlowError, ReadOnly, step
from coordinator.model.call import Request, Response
from coordinator.saga import (
    App,
    Blocked,
    CommandFailed,
    Decision,
    Delayed,
    PauseAfter,
    Rejected,
    Retry,
    Saga,
    StepFailed,
    delete,
    get,
    post,
    put,
)

if TYPE_CHECKING:
    from coordinator.embedding import (
        Embedded,
        FakeClock,
        Scripted,
        ServiceCall,
        Standstill,
        Unscripted,
        crash_everywhere,
        embedded,
    )

__version__ = "0.1.0"

__all__ = [
    "App",
    "Asks",
    "Blocked",
    "CommandFailed",
    "Datum",
    "Decision",
    "Delayed",
    "Embedded",
    "FakeClock",
    "Flow",
    "FlowError",
    "PauseAfter",
    "ReadOnly",
    "Rejected",
    "Request",
    "Response",
    "Retry",
    "Saga",
    "Savepoint",
    "Scripted",
    "ServiceCall",
    "Standstill",
    "StepFailed",
    "Unscripted",
    "__version__",
    "crash_everywhere",
    "delete",
    "embedded",
    "get",
    "post",
    "put",
    "step",
]

_EMBEDDING = frozenset(
    {
        "Embedded",
        "FakeClock",
        "Scripted",
        "ServiceCall",
        "Standstill",
        "Unscripted",
        "crash_everywhere",
        "embedded",
    }
)


def __getattr__(name: str) -> Any:
    """What runs the engine in this process is imported when asked for: who only writes commands needs none of it."""
    if name in _EMBEDDING:
        return getattr(import_module("coordinator.embedding"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
