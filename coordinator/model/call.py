"""Requests to services and their answers: what the engine and the gateway say to each other."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from enum import Enum
from typing import Any

from msgspec import Raw, Struct

from coordinator.model.ids import CommandId
from coordinator.model.records import NIL, Failure


class Request(Struct, frozen=True, kw_only=True):
    """One request to a service.

    For an HTTP service ``method`` and ``path`` are HTTP's; for a gRPC service ``method`` is the full name
    (``shop.Stock/Reserve``) and ``path`` is empty.  ``body`` is any JSON value (sent as JSON; None sends no body) or
    bytes (sent as they are).  ``answers`` overrides the classification for this step: a status (``"404"``) or a class
    (``"5xx"``), or a gRPC status name, to ``outcome``, ``failure`` or ``delayed``.
    """

    service: str
    method: str = "POST"
    path: str = "/"
    body: Any = None
    headers: Mapping[str, str] = {}
    answers: Mapping[str, str] = {}


class Response(Struct, frozen=True):
    """What a client that the application plugs in answers: an HTTP status (200 to 599), headers, the body's bytes."""

    status: int
    headers: Mapping[str, str] = {}
    body: bytes = b""


class LocalCall(Struct, frozen=True):
    """An ``async`` function of the application, called as a step; it must be idempotent like any service."""

    function: Callable[..., Awaitable[Any]]
    args: tuple[Any, ...] = ()
    service: str = "local"


class Call(Struct, frozen=True, kw_only=True):
    """One call that the engine wants made; whoever makes it answers exactly once with the same Call.

    ``key`` goes out as ``Idempotency-Key`` (the same on every retry), ``fence`` as ``Coordinator-Fence``
    (``<epoch>.<attempt>``, only grows for a command).  ``timeout_ms`` bounds the whole call.
    """

    command: CommandId
    step: str
    undo: bool
    request: Request | LocalCall
    key: str
    partition: int
    epoch: int
    attempt: int
    timeout_ms: int | None  # None: the service's own
    sent_at: float = 0  # ms since 1970, for the metrics

    @property
    def fence(self) -> str:
        return f"{self.epoch}.{self.attempt}"


class Verdict(Enum):
    """What an answer means (DESIGN section 5)."""

    OUTCOME = "outcome"  # the step is done
    FAILURE = "failure"  # a known negative answer
    DELAYED = "delayed"  # unknown: ask again later; counts against the breaker
    BLOCKED = "blocked"  # unknown, and the service is known to be down: opens the breaker at once


class Answer(Struct, frozen=True):
    """The classified answer to a Call.

    ``outcome`` is raw msgpack (OUTCOME), ``failure`` says why otherwise, ``retry_after_ms`` is the service's own wish.
    """

    verdict: Verdict
    outcome: Raw = NIL
    failure: Failure | None = None
    retry_after_ms: int | None = None
