"""coordinator: a networked saga coordinator over a distributed log."""

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

__version__ = "0.1.0"

__all__ = [
    "App",
    "Blocked",
    "CommandFailed",
    "Delayed",
    "Request",
    "Response",
    "Retry",
    "Saga",
    "StepFailed",
    "__version__",
    "delete",
    "get",
    "post",
    "put",
]
