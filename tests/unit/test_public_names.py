"""What applications import stays where it is."""

from __future__ import annotations

import coordinator


def test_the_public_names_are_these() -> None:
    """A name that goes, or a helper that slips in, is seen here before a user sees it."""
    assert sorted(coordinator.__all__) == coordinator.__all__
    assert set(coordinator.__all__) == {
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
    }
    assert all(hasattr(coordinator, name) for name in coordinator.__all__)
