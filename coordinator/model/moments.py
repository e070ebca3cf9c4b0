"""Times as people read them: RFC 3339 in UTC, with milliseconds."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

AT_MAX: Final = 253_402_300_799_999  # the last millisecond that RFC 3339 has a name for


@lru_cache(64)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def timestamp(millis: float) -> str:
    """RFC 3339 in UTC with milliseconds; what the calendar has no name for is its first or last moment."""
    seconds, rest = divmod(min(max(0, int(millis)), AT_MAX), 1000)
    return f"{_second(seconds)}.{rest:03d}Z"
