"""The one order of questions for a submission."""

from __future__ import annotations

from typing import Any

import pytest

from coordinator.admission.gate import Decision, Load, Request, admit
from coordinator.errors import CoordinatorError, IdConflict, LimitReached, Suspended

REQUEST = Request("c", b"f", frozenset({"stock"}))


def load(**rest: Any) -> Load:
    free: dict[str, Any] = {"used": 0, "limit": 2, "suspended": {}, "suspend": "service", "retry_after_ms": 250}
    return Load(**(free | rest))


@pytest.mark.parametrize(
    ("known", "rest", "expected"),
    [
        (None, {}, Decision.ADMIT),
        (b"f", {}, Decision.ATTACH),
        (b"other", {}, IdConflict),
        (b"f", {"used": 2, "suspended": {"stock": 100}}, Decision.ATTACH),
        (b"other", {"used": 2, "suspended": {"stock": 100}}, IdConflict),
        (None, {"used": 1}, Decision.ADMIT),
        (None, {"used": 2}, LimitReached),
        (None, {"used": 9}, LimitReached),
        (None, {"used": 2, "suspended": {"stock": 100}}, Suspended),
        (None, {"suspended": {"payments": 100}}, Decision.ADMIT),
    ],
)
def test_known_first_then_suspended_then_full(
    known: bytes | None, rest: dict[str, Any], expected: Decision | type[CoordinatorError]
) -> None:
    """A retry finds its command whatever the load; a refusal names what comes first in that order."""
    if isinstance(expected, Decision):
        assert admit(REQUEST, known, load(**rest)) is expected
    else:
        with pytest.raises(expected):
            admit(REQUEST, known, load(**rest))
