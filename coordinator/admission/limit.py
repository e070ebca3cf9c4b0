"""The concurrency limit.  Resumed commands may exceed it; new ones may not join until it falls (DESIGN section 5)."""

from __future__ import annotations

from coordinator.errors import LimitReached


def check(used: int, limit: int, retry_after_ms: int) -> None:
    """Raises LimitReached when all slots are taken."""
    if used >= limit:
        raise LimitReached(
            f"{used} of {limit} commands are under way (max_commands)",
            retry_after_ms=retry_after_ms,
            limit=limit,
            used=used,
        )
