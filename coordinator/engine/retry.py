"""When a call is made again: the retry queue of a service (unknown answers) and backoff (known negative ones).

**Unknown answers.**  One queue a service, oldest first, paced: of ``n`` waiting calls one is released every ``interval
/ n``, so that all of them are retried within about one interval, but never as a storm.  ``n`` is the most that have
waited since the queue was last empty: were it the present number, the pace would slacken as the queue drains, and the
last of a hundred would wait five intervals.  Each call is due an interval ± jitter after its answer.  After the first
success the interval becomes the fast one, until a call fails again.

**Known negative answers** follow the step's own `Retry`: attempts are total calls, backoff is fixed or exponential.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from coordinator.awaitables import Retry
from coordinator.model.durations import parse_duration
from coordinator.model.settings import EngineSettings

if TYPE_CHECKING:
    from random import Random

T = TypeVar("T")

_CATCH_UP: Final = 10  # a tenth of an interval


class RetryQueue(Generic[T]):
    """The delayed calls of one service, as (due, handle, item, not before); times in milliseconds."""

    __slots__ = ("_heap", "_most", "_next", "_removed", "_sequence", "fast", "random", "settings")

    def __init__(self, settings: EngineSettings, random: Random) -> None:
        self.settings = settings
        self.random = random
        self.fast = False
        self._heap: list[tuple[float, int, T, float]] = []
        self._removed: set[int] = set()
        self._sequence = 0
        self._next = 0.0
        self._most = 0

    def __len__(self) -> int:
        return len(self._heap) - len(self._removed)

    @property
    def interval(self) -> float:
        return self.settings.fast_retry_interval_ms if self.fast else self.settings.slow_retry_interval_ms

    def _jittered(self) -> float:
        jitter = self.settings.retry_jitter_ms
        return abs(self.interval + self.random.uniform(-jitter, jitter))

    def put(self, item: T, now: float, *, at_least_ms: float = 0) -> int:
        """Queues a call that was just answered; ``at_least_ms`` is the service's Retry-After.  Returns a handle."""
        self._sequence += 1
        not_before = now + at_least_ms
        due = max(now + self._jittered(), not_before)
        heapq.heappush(self._heap, (due, self._sequence, item, not_before))
        self._most = max(self._most, len(self))
        return self._sequence

    def remove(self, handle: int) -> None:
        """Takes a queued call out (its command was paused, aborted or finished otherwise)."""
        self._removed.add(handle)
        if len(self._removed) * 2 > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[1] not in self._removed]
            heapq.heapify(self._heap)
            self._removed.clear()
        if not len(self):
            self._most = 0

    def due(self) -> float | None:
        """When the next call may be released."""
        while self._heap and self._heap[0][1] in self._removed:
            self._removed.discard(heapq.heappop(self._heap)[1])
        return max(self._heap[0][0], self._next) if self._heap else None

    def pop(self, now: float) -> T | None:
        """The next call, if one is due and the pace allows it."""
        due = self.due()
        if due is None or due > now:
            return None
        lateness = self.interval / _CATCH_UP  # of timers: what they missed, within reason, is made up for
        self._next = max(self._next, now - lateness) + self.interval / self._most
        item = heapq.heappop(self._heap)[2]
        if not len(self):
            self._most = 0
        return item

    def hasten(self, now: float) -> None:
        """The service answered: from now on the fast interval, for those that wait as well, oldest first."""
        self.fast = True
        self._next = now
        waiting = sorted((entry for entry in self._heap if entry[1] not in self._removed), key=lambda entry: entry[:2])
        dues = sorted(now + self._jittered() for _ in waiting)
        self._heap = [
            (max(due, not_before), handle, item, not_before)
            for due, (_, handle, item, not_before) in zip(dues, waiting, strict=True)
        ]
        heapq.heapify(self._heap)
        self._removed.clear()

    def slow(self) -> None:
        """A call failed again."""
        self.fast = False


def backoff_ms(retry: Retry, answered: int, random: Random) -> int:
    """The delay before the next call of a step that has been answered in the negative ``answered`` times."""
    first = parse_duration(retry.first)
    longest = parse_duration(retry.max)
    delay = first if retry.backoff == "fixed" else first * 2 ** min(answered - 1, 60)
    delay = min(delay, longest)
    return round(delay * (1 + random.uniform(-retry.jitter, retry.jitter)))
