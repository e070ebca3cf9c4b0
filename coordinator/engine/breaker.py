"""The circuit breaker of one service: a small state machine, pure, typed and open to inspection.

    closed ──failures in a row──▶ open ──reset──▶ half_open ──success──▶ closed
                                   ▲                  │
                                   └─────failure──────┘

Only *unknown* answers count as failures (timeouts, lost connections, 5xx): a refusal shows that the service is alive.
In ``half_open`` one call at a time may probe.  Of calls that were sent before the breaker opened, an unknown answer
does not move it: they tell of the past.  A known one closes it from ``half_open``: whenever it was asked, the service
is alive now.  Why our own: docs/design.md ("Breaker").
"""

from __future__ import annotations

from enum import StrEnum

from coordinator.model.settings import BreakerSettings


class BreakerState(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker:
    """Times are milliseconds.  ``forced`` is an operator's hold: ``open``, ``closed`` or None (automatic)."""

    __slots__ = ("changed_at", "failures", "forced", "opened_count", "probing", "settings", "state", "until")

    def __init__(self, settings: BreakerSettings, now: float = 0) -> None:
        self.settings = settings
        self.state = BreakerState.CLOSED
        self.failures = 0
        self.until = 0.0
        self.probing = False
        self.forced: str | None = None
        self.changed_at = now
        self.opened_count = 0

    def allows(self, now: float) -> bool:
        """Whether a call may be sent now; from ``open`` this is where the reset time is noticed."""
        if self.forced is not None:
            return self.forced == "closed"
        if self.state is BreakerState.OPEN and now >= self.until:
            self._move(BreakerState.HALF_OPEN, now)
        if self.state is BreakerState.HALF_OPEN:
            return not self.probing
        return self.state is BreakerState.CLOSED

    @property
    def holds(self) -> bool:
        """Whether it keeps calls back, but for a probe."""
        return self.forced == "open" or (self.forced is None and self.state is not BreakerState.CLOSED)

    def sent(self) -> int:
        """A call leaves.  In ``half_open`` it is the probe, and has a number to say so with its answer; else 0."""
        if self.state is not BreakerState.HALF_OPEN or self.forced is not None:
            return 0
        self.probing = True
        return self.opened_count

    def succeeded(self, now: float) -> bool:
        """The service answered; True if that closed the breaker."""
        self.failures = 0
        if self.state is not BreakerState.HALF_OPEN:
            return False
        self.probing = False
        self._move(BreakerState.CLOSED, now)
        return True

    def failed(self, now: float, *, probe: int = 0, at_once: bool = False) -> bool:
        """The answer is unknown; True if that opened the breaker.  ``at_once``: the service is known to be down."""
        if self.state is BreakerState.OPEN or (self.state is BreakerState.HALF_OPEN and not self._is(probe)):
            return False
        self.failures += 1
        if self.state is BreakerState.HALF_OPEN or at_once or self.failures >= self.settings.failures:
            self.probing = False
            self.until = now + self.settings.reset_ms
            self.opened_count += 1
            self._move(BreakerState.OPEN, now)
            return True
        return False

    def withdrawn(self, probe: int) -> None:
        """A call was dropped without an answer; if it was the probe, another may go."""
        if self._is(probe):
            self.probing = False

    def _is(self, probe: int) -> bool:
        return self.probing and probe == self.opened_count

    def shown(self, now: float) -> BreakerState:
        """The state as an operator sees it."""
        if self.forced is not None:
            return BreakerState(self.forced)
        if self.state is BreakerState.OPEN and now >= self.until:
            return BreakerState.HALF_OPEN
        return self.state

    def _move(self, state: BreakerState, now: float) -> None:
        self.state = state
        self.changed_at = now
        if state is BreakerState.CLOSED:
            self.failures = 0
