"""One downstream service as the engine sees it: breaker, calls in flight, the retry queue, suspension.

A Work is one step (or undo) that is to be called until its answer is known.  It goes

    ready ──▶ calling ──▶ settling (its record is on the way to the log) ──▶ gone
      ▲          │
      └ delayed ◀┘  the answer is unknown: paced by the retry queue; `blocked` while the breaker is open

Intake that needs the service is suspended from the moment its breaker opens until everything that was delayed has been
answered ("the backlog is drained") and the breaker lets calls through again.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import TYPE_CHECKING

from coordinator.engine.breaker import Breaker, BreakerState
from coordinator.engine.retry import RetryQueue
from coordinator.model.call import LocalCall, Request
from coordinator.model.records import Failure
from coordinator.model.settings import EngineSettings, ServiceSettings
from coordinator.saga import Retry

if TYPE_CHECKING:
    from random import Random

    from coordinator.engine.state import Command


class Stage(Enum):
    READY = "ready"
    CALLING = "calling"
    DELAYED = "delayed"
    SETTLING = "settling"
    GONE = "gone"


class Work:
    """One call that is made until its answer is known; lives in memory only."""

    __slots__ = (
        "attempt",
        "command",
        "failure",
        "first_at",
        "give_up_at",
        "handle",
        "request",
        "retry",
        "service",
        "stage",
        "step",
        "timeout_ms",
        "tried",
        "undo",
    )

    def __init__(
        self,
        command: Command,
        step: str,
        service: Service,
        request: Request | LocalCall,
        *,
        undo: bool,
        retry: Retry | None,
        timeout_ms: int | None,
        give_up_at: float | None,
    ) -> None:
        self.command = command
        self.step = step
        self.service = service
        self.request = request
        self.undo = undo
        self.retry = retry
        self.timeout_ms = timeout_ms
        self.give_up_at = give_up_at
        self.stage = Stage.READY
        self.attempt = 0  # of the call under way; answers to others are ignored
        self.tried = 0  # calls made since this instance took the work up
        self.handle = 0
        self.failure: Failure | None = None  # the last unknown answer
        self.first_at = 0.0

    @property
    def delayed(self) -> bool:
        """Whether its last answer was unknown (also while it is being asked again)."""
        return self.failure is not None

    @property
    def blocked(self) -> bool:
        """Delayed, while the service's breaker keeps calls back."""
        return self.failure is not None and self.service.breaker.holds


class Service:
    """State of one service.  Times are milliseconds."""

    __slots__ = ("_troubled", "breaker", "calls", "in_flight", "name", "queue", "ready", "settings", "suspended_since")

    def __init__(self, settings: ServiceSettings, engine: EngineSettings, random: Random) -> None:
        self.name = settings.name
        self.settings = settings
        self.breaker = Breaker(settings.breaker)
        self.queue: RetryQueue[Work] = RetryQueue(engine, random)
        self.ready: deque[Work] = deque()
        self.in_flight = 0
        self.suspended_since: float | None = None
        self._troubled = 0  # works whose last answer was unknown: the backlog
        self.calls = 0

    # ------------------------------------------------------------ work in

    def offer(self, work: Work, now: float) -> None:
        """New work: it is ready if the breaker allows calls, else it joins the backlog as blocked."""
        if self._closed(now):
            self.ready.append(work)
        else:
            self._delay(work, now, self._refusal(), 0)

    def _closed(self, now: float) -> bool:
        return self.breaker.shown(now) is BreakerState.CLOSED

    def _refusal(self) -> Failure:
        return Failure("blocked", f"the breaker of {self.name} is open")

    def _delay(self, work: Work, now: float, failure: Failure, retry_after_ms: float) -> None:
        if work.failure is None:
            self._troubled += 1
        work.failure = failure
        work.stage = Stage.DELAYED
        work.handle = self.queue.put(work, now, at_least_ms=retry_after_ms)

    # ------------------------------------------------------------ work out

    def release(self, now: float) -> list[Work]:
        """The works to call now: new ones first come, then what the retry queue's pace and the breaker allow."""
        out: list[Work] = []
        limit = self.settings.max_in_flight
        while self.ready and self.in_flight < limit and self.breaker.allows(now):
            self._send(self.ready.popleft(), now, out)
        while self.ready and not self._closed(now):
            self._delay(self.ready.popleft(), now, self._refusal(), 0)
        while len(self.queue) and self.in_flight < limit and self.breaker.allows(now):
            work = self.queue.pop(now)
            if work is None:
                break
            self._send(work, now, out)
        return out

    def _send(self, work: Work, now: float, out: list[Work]) -> None:
        work.stage = Stage.CALLING
        work.tried += 1
        work.first_at = work.first_at or now
        self.in_flight += 1
        self.calls += 1
        self.breaker.sent()
        out.append(work)

    def due(self, now: float) -> float | None:
        """When `release` may have something to give next."""
        due = self.queue.due()
        if due is None or self.in_flight >= self.settings.max_in_flight:
            return None
        breaker = self.breaker
        if breaker.forced == "open":
            return None
        if breaker.forced is None:
            if breaker.state is BreakerState.OPEN:
                return max(due, breaker.until)
            if breaker.state is BreakerState.HALF_OPEN and breaker.probing:
                return None
        return due

    # ------------------------------------------------------------ answers

    def known(self, work: Work, now: float) -> None:
        """The answer is an outcome or a refusal: the service is alive."""
        self.in_flight -= 1
        self._settled(work)
        self.breaker.succeeded(now)
        if self._troubled and self._closed(now) and not self.queue.fast:
            self.queue.hasten(now)
        work.stage = Stage.SETTLING

    def unknown(self, work: Work, now: float, failure: Failure, retry_after_ms: int | None, *, down: bool) -> None:
        """The answer is not known: ask again later."""
        self.in_flight -= 1
        self.queue.slow()
        if self.breaker.failed(now, at_once=down):
            self.suspended_since = self.suspended_since or now
        self._delay(work, now, failure, retry_after_ms or 0)

    def gave_up(self, work: Work, now: float) -> None:
        """The answer is unknown, and the step's own patience has ended: its record says so."""
        if work.stage is Stage.CALLING:
            self.in_flight -= 1
            if self.breaker.failed(now):
                self.suspended_since = self.suspended_since or now
        elif work.stage is Stage.DELAYED:
            self.queue.remove(work.handle)
        elif work in self.ready:
            self.ready.remove(work)
        self._settled(work)
        work.stage = Stage.SETTLING

    def drop(self, work: Work) -> None:
        """The work is not wanted any more (paused, aborted, stepped down); an answer under way will be ignored."""
        if work.stage is Stage.CALLING:
            self.in_flight -= 1
            self.breaker.withdrawn()
        elif work.stage is Stage.DELAYED:
            self.queue.remove(work.handle)
        elif work.stage is Stage.READY and work in self.ready:
            self.ready.remove(work)
        self._settled(work)
        work.stage = Stage.GONE

    def _settled(self, work: Work) -> None:
        if work.failure is not None:
            work.failure = None
            self._troubled -= 1

    # ------------------------------------------------------------ suspension

    @property
    def backlog(self) -> int:
        """How many calls have had an unknown answer and no known one yet."""
        return self._troubled

    def suspended(self, now: float) -> bool:
        """Whether intake of commands that need this service is suspended."""
        if self.breaker.forced == "open":
            return True
        if self.suspended_since is None:
            return False
        if self._troubled or (self.breaker.state is BreakerState.OPEN and now < self.breaker.until):
            return True
        self.suspended_since = None
        return False

    def force(self, state: str | None, now: float) -> None:
        """An operator's hold on the breaker, or its end (None)."""
        self.breaker.forced = state
        self.breaker.changed_at = now

    def inspect(self, now: float) -> dict[str, object]:
        """What `GET /v1/services` shows."""
        breaker = self.breaker
        return {
            "name": self.name,
            "url": self.settings.url,
            "breaker": breaker.shown(now).value,
            "forced": breaker.forced,
            "failures": breaker.failures,
            "opened": breaker.opened_count,
            "opens_again_in_ms": max(0, round(breaker.until - now)) if breaker.state is BreakerState.OPEN else None,
            "in_flight": self.in_flight,
            "ready": len(self.ready),
            "delayed": self._troubled,
            "suspended": self.suspended(now),
            "interval": "fast" if self.queue.fast else "slow",
            "calls": self.calls,
        }
