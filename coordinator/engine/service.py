"""One downstream service as the engine sees it: breaker, calls in flight, the retry queue, suspension.

A Work is one step (or undo) that is to be called until its answer is known.  It goes

    ready ──▶ calling ──▶ settling (its record is on the way to the log) ──▶ gone
      ▲          │
      └ delayed ◀┘  the answer is unknown: paced by the retry queue; `blocked` while the breaker is open

Intake that needs the service is suspended from the moment its breaker opens until the backlog has drained: until every
call that was delayed when the breaker closed again has had its turn.  A call that fails on its turn is delayed once
more, but it is no reason to keep everybody else out: a single order that the service cannot digest must not.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import TYPE_CHECKING

from coordinator.awaitables import Retry
from coordinator.engine.breaker import Breaker, BreakerState
from coordinator.engine.retry import RetryQueue
from coordinator.model.call import LocalCall, Request
from coordinator.model.records import Failure
from coordinator.model.settings import EngineSettings, ServiceSettings

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
        "probe",
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
        self.probe = 0  # the breaker's number for it, while it is the probe
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

    __slots__ = (
        "_draining",
        "_retry_next",
        "_troubled",
        "breaker",
        "calls",
        "in_flight",
        "name",
        "queue",
        "ready",
        "settings",
        "suspended_since",
    )

    def __init__(self, settings: ServiceSettings, engine: EngineSettings, random: Random) -> None:
        self.name = settings.name
        self.settings = settings
        self.breaker = Breaker(settings.breaker)
        self.queue: RetryQueue[Work] = RetryQueue(engine, random)
        self.ready: deque[Work] = deque()
        self.in_flight = 0
        self.suspended_since: float | None = None
        self._troubled: set[Work] = set()  # their last answer was unknown
        self._draining: set[Work] = set()  # those of them that were delayed when the breaker closed: the backlog
        self._retry_next = False
        self.calls = 0

    # ------------------------------------------------------------ work in

    def offer(self, work: Work, now: float) -> None:
        """New work: it is ready if the breaker allows a call, else it joins the backlog as blocked."""
        if self.breaker.allows(now):
            self.ready.append(work)
        else:
            self._delay(work, now, self._refusal(), 0)

    def _closed(self, now: float) -> bool:
        return self.breaker.shown(now) is BreakerState.CLOSED

    def _refusal(self) -> Failure:
        return Failure("blocked", f"the breaker of {self.name} is open")

    def _delay(self, work: Work, now: float, failure: Failure, retry_after_ms: float) -> None:
        self._troubled.add(work)
        work.failure = failure
        work.stage = Stage.DELAYED
        work.handle = self.queue.put(work, now, at_least_ms=retry_after_ms)

    # ------------------------------------------------------------ work out

    def release(self, now: float) -> list[Work]:
        """The works to call now, as far as the breaker, the retry queue's pace and `max_in_flight` allow."""
        out: list[Work] = []
        while self.in_flight < self.settings.max_in_flight and self.breaker.allows(now):
            work = self._next(now)
            if work is None:
                break
            self._send(work, now)
            out.append(work)
        while self.ready and not self._closed(now):
            self._delay(self.ready.popleft(), now, self._refusal(), 0)
        return out

    def _next(self, now: float) -> Work | None:
        """A new call and a delayed one in turn, so that neither starves the other."""
        self._retry_next = not self._retry_next
        delayed = self.queue.pop(now) if self._retry_next or not self.ready else None
        if delayed is None and self.ready:
            return self.ready.popleft()
        return delayed

    def _send(self, work: Work, now: float) -> None:
        work.stage = Stage.CALLING
        work.tried += 1
        work.first_at = work.first_at or now
        work.probe = self.breaker.sent()
        self.in_flight += 1
        self.calls += 1

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
        if self.breaker.succeeded(now):
            self._draining = set(self._troubled)
        if self._draining and not self.queue.fast:
            self.queue.hasten(now)
        work.stage = Stage.SETTLING

    def unknown(self, work: Work, now: float, failure: Failure, retry_after_ms: int | None, *, down: bool) -> None:
        """The answer is not known: ask again later."""
        self._failed(work, now, down=down)
        self._delay(work, now, failure, retry_after_ms or 0)

    def gave_up(self, work: Work, now: float, *, down: bool = False) -> None:
        """The answer is unknown, and the step's own patience has ended: its record says so."""
        if work.stage is Stage.CALLING:
            self._failed(work, now, down=down)
        else:
            self._unqueue(work)
        self._settled(work)
        work.stage = Stage.SETTLING

    def _failed(self, work: Work, now: float, *, down: bool) -> None:
        self.in_flight -= 1
        self.queue.slow()
        self._drained(work)  # it has had its turn
        if self.breaker.failed(now, probe=work.probe, at_once=down):
            self._suspend(now)

    def drop(self, work: Work) -> None:
        """The work is not wanted any more (paused, aborted, stepped down); an answer under way will be ignored."""
        if work.stage is Stage.CALLING:
            self.in_flight -= 1
            self.breaker.withdrawn(work.probe)
        else:
            self._unqueue(work)
        self._settled(work)
        work.stage = Stage.GONE

    def _unqueue(self, work: Work) -> None:
        if work.stage is Stage.DELAYED:
            self.queue.remove(work.handle)
        elif work.stage is Stage.READY and work in self.ready:
            self.ready.remove(work)

    def _settled(self, work: Work) -> None:
        work.failure = None
        self._troubled.discard(work)
        self._drained(work)

    def _drained(self, work: Work) -> None:
        if self._draining:
            self._draining.discard(work)
            if not self._draining:
                self.queue.slow()

    # ------------------------------------------------------------ suspension

    @property
    def backlog(self) -> int:
        """How many calls have had an unknown answer and no known one yet."""
        return len(self._troubled)

    def _suspend(self, now: float) -> None:
        self._draining = set()
        self.suspended_since = self.suspended_since or now

    def suspended(self, now: float) -> bool:
        """Whether intake of commands that need this service is suspended."""
        breaker = self.breaker
        if breaker.forced is not None:
            return breaker.forced == "open" or bool(self._draining)
        if self.suspended_since is None:
            return False
        if breaker.state is BreakerState.CLOSED:
            suspended = bool(self._draining)
        else:  # once it is time for a probe, a newcomer may be the probe if nobody else is there to be
            suspended = now < breaker.until or bool(self._troubled)
        if not suspended:
            self.suspended_since = None
        return suspended

    def force(self, state: str | None, now: float) -> None:
        """An operator's hold on the breaker (``open``, ``closed``), or its end (None)."""
        held_back = self.breaker.forced == "open"
        self.breaker.forced = state
        self.breaker.changed_at = now
        if state == "open":
            self.queue.slow()
            self._suspend(now)
        elif held_back or state == "closed":
            self._draining = set(self._troubled)

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
            "delayed": len(self._troubled),
            "suspended": self.suspended(now),
            "interval": "fast" if self.queue.fast else "slow",
            "calls": self.calls,
        }
