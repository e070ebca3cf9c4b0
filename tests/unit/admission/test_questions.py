"""Each question by itself: dedupe, limit, suspension; refusals with codes, delays and what a client needs to know."""

from __future__ import annotations

import pytest

from coordinator.admission import dedupe, limit, suspension
from coordinator.errors import IdConflict, LimitReached, Suspended


def test_the_same_request_attaches_and_another_conflicts() -> None:
    """An id means one request for ever."""
    assert dedupe.attaches("c", b"f", None) is False
    assert dedupe.attaches("c", b"f", b"f") is True
    with pytest.raises(IdConflict, match="command c exists with another type") as caught:
        dedupe.attaches("c", b"f", b"g")
    assert (caught.value.code, caught.value.http, caught.value.retryable) == ("id_conflict", 409, False)


def test_a_free_slot_is_enough() -> None:
    """Up to the limit, and not one more."""
    limit.check(1, 2, 100)
    with pytest.raises(LimitReached) as caught:
        limit.check(2, 2, 150)
    error = caught.value
    assert (error.code, error.http, error.grpc, error.retryable) == ("limit_reached", 429, "RESOURCE_EXHAUSTED", True)
    assert (error.retry_after_ms, error.extra) == (150, {"limit": 2, "used": 2})


@pytest.mark.parametrize(
    ("needs", "down", "policy", "services"),
    [
        ({"a"}, {}, "service", None),
        ({"a"}, {"b": 100}, "service", None),
        ({"a"}, {"a": 100}, "service", ["a"]),
        ({"a", "b", "c"}, {"b": 100, "a": 300}, "service", ["a", "b"]),
        (set(), {"z": 100}, "service", ["z"]),
        (set(), {}, "service", None),
        ({"a"}, {"z": 100}, "coordinator", ["z"]),
        ({"a"}, {}, "coordinator", None),
    ],
)
def test_who_is_suspended(needs: set[str], down: dict[str, int], policy: str, services: list[str] | None) -> None:
    """Those that declare a service that is down, those that declare none, and under ``coordinator`` all."""
    if services is None:
        suspension.check(frozenset(needs), down, policy)
        return
    with pytest.raises(Suspended) as caught:
        suspension.check(frozenset(needs), down, policy)
    error = caught.value
    assert (error.code, error.http, error.grpc, error.retryable) == ("suspended", 503, "UNAVAILABLE", True)
    assert error.extra == {"services": services}
    assert error.retry_after_ms == max(down[name] for name in services)
