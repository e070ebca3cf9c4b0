"""Problem details: one shape for every error."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import msgspec
import pytest

from coordinator.errors import CoordinatorError, InvalidPayload, LimitReached, Suspended, tree
from coordinator.transport.http.problem import HttpError, Problem, raw, render

PROBLEM = msgspec.json.Decoder(Problem)


@pytest.mark.parametrize("error", tree().values(), ids=lambda error: error.code)
def test_every_error_of_the_tree_has_a_problem(error: type[CoordinatorError]) -> None:
    """Status and code are the table's; 429 and 503 always advise a delay."""
    status, headers, body = render(error("why"))
    problem = PROBLEM.decode(body)
    assert (status, problem.status, problem.code, problem.detail) == (error.http, error.http, error.code, "why")
    names = dict(headers)
    assert names[b"content-type"] == b"application/problem+json"
    assert int(names[b"content-length"]) == len(body)
    assert (b"retry-after" in names) == (status in (429, 503))


@pytest.mark.parametrize(("delay_ms", "seconds"), [(0, b"1"), (1, b"1"), (1000, b"1"), (1001, b"2"), (90_000, b"90")])
def test_retry_after_is_whole_seconds_rounded_up(delay_ms: int, seconds: bytes) -> None:
    """The header knows only seconds; the exact delay is a member."""
    _, headers, body = render(LimitReached("full", retry_after_ms=delay_ms))
    assert dict(headers)[b"retry-after"] == seconds
    assert PROBLEM.decode(body).retry_after_ms == delay_ms


def test_further_members_come_along_and_override_nothing() -> None:
    """What an error carries is in its problem, but its status and code stay its own."""
    extra: dict[str, Any] = {"services": ["payments"], "status": 200, "code": "fine"}
    problem = PROBLEM.decode(render(Suspended("down", **extra))[2])
    assert (problem.services, problem.status, problem.code) == (["payments"], 503, "suspended")
    faults = PROBLEM.decode(render(InvalidPayload.at("$.a", "wrong"))[2]).faults
    assert faults is not None
    assert [(fault.path, fault.fault) for fault in faults] == [("$.a", "wrong")]


def test_an_answer_without_a_request_closes() -> None:
    """What uvicorn would tell in plain text is a problem too."""
    head, _, body = raw(HttpError(HTTPStatus.REQUEST_TIMEOUT, "request_timeout", "too slow")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in head
    assert PROBLEM.decode(body).code == "request_timeout"
