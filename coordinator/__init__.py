"""coordinator: a networked saga coordinator over a distributed log."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from coordinator.model.call import Request, Response
from coordinator.saga import (
    App,
    Blocked,
    CommandFailed,
    Delayed,
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
    "Blocked",
    "CommandFailed",
    "Delayed",
    "Embedded",
    "FakeClock",
    "Request",
    "Response",
    "Retry",
    "Saga",
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
