"""When to try again: pure, so that its tests need no clock."""

from __future__ import annotations

import random
from collections.abc import Callable

from msgspec import Struct

from coordinator_client.errors import ELSEWHERE, CoordinatorError


class RetryPolicy(Struct, frozen=True, kw_only=True):
    """Delays between attempts: ``first_s``, doubled up to ``max_s``, each scattered by ± ``jitter`` of itself.

    A server's own ``retry_after_ms`` is a floor for the next delay.
    """

    first_s: float = 0.05
    max_s: float = 2.0
    factor: float = 2.0
    jitter: float = 0.5


class Backoff:
    """The delays of one call; ``reset`` after progress, so that a long watch starts afresh after each interruption."""

    def __init__(self, policy: RetryPolicy, chance: Callable[[], float] = random.random, addresses: int = 1) -> None:
        self._policy = policy
        self._chance = chance
        self._addresses = addresses
        self._attempt = 0

    def reset(self) -> None:
        self._attempt = 0

    def delay(self, error: CoordinatorError, remaining_s: float) -> float | None:
        """Seconds until the next attempt; None if there is to be none: not retryable, or patience ends before it."""
        if not error.retryable or remaining_s <= 0:
            return None
        policy = self._policy
        # The exponent is bounded so that weeks of retries do not overflow a float.
        delay = min(policy.max_s, policy.first_s * policy.factor ** min(self._attempt, 60))
        delay *= 1 + policy.jitter * (2 * self._chance() - 1)
        self._attempt += 1
        if self._attempt >= self._addresses or not isinstance(error, ELSEWHERE):
            delay = max(delay, (error.retry_after_ms or 0) / 1000)  # else another address is tried, which may be well
        return delay if delay < remaining_s else None
