"""A submitter that would rather wait than be refused: ``admit_within``.

A refusal for want of a slot, or because a service is suspended, is asked again until the time is up; the submitter's
watcher is then told ``accepted``, or the last refusal as its ``error``.  So it is of any other refusal, at once: where
the partition has moved, it is another instance's slot that is wanted (`front.journey`).  Nothing is reserved meanwhile:
who waits has no place in a queue, and one that goes away is forgotten.  How many may wait is bounded by the transports'
limits on open requests.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop, TimerHandle
from collections.abc import Callable

from coordinator.errors import CoordinatorError, LimitReached, Suspended
from coordinator.transport.base import Event, Unwatch, Watcher

ASK_AGAIN_MS_MAX = 250


class Patient:
    """Asks ``submit`` again until ``until`` (the loop's time); calling it is the submitter's Unwatch."""

    def __init__(self, loop: AbstractEventLoop, id: str, watcher: Watcher, submit: Callable[[], Unwatch]) -> None:
        self._loop = loop
        self._id = id
        self._watcher = watcher
        self._submit = submit
        self._timer: TimerHandle | None = None
        self._unwatch: Unwatch | None = None

    def refused(self, error: CoordinatorError, until: float) -> None:
        """Waits as long as the refusal asks for, but not long, and not beyond the submitter's patience."""
        left = until - self._loop.time()
        if not isinstance(error, (LimitReached, Suspended)) or left <= 0:
            self._timer = self._loop.call_later(0, self._watcher, Event("error", self._id, error=error))
            return
        pause_ms = min(error.retry_after_ms or 100, ASK_AGAIN_MS_MAX)
        self._timer = self._loop.call_later(min(left, pause_ms / 1000), self._ask, until)

    def _ask(self, until: float) -> None:
        try:
            self._unwatch = self._submit()
        except CoordinatorError as error:
            self.refused(error, until)

    def __call__(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._unwatch is not None:
            self._unwatch()
