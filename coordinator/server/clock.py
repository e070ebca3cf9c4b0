"""The one place that reads the clocks.

Timers compare ``now`` with times that are in the log, so ``now`` must be a date, and it must never go back.  The wall
clock is a date but jumps both ways (NTP steps, an operator's hand); the monotonic clock never jumps but is no date, and
on Linux it stands still while the machine sleeps.  So the monotonic clock is anchored to the wall clock once, and paces
from there:

- The wall clock jumps *forward*, or the machine slept: nothing may fire late because of it, so as soon as the wall
  clock is more than `STEP_MS` ahead, the anchor moves forward with it.  What fell due meanwhile fires at once.
- The wall clock jumps *back*: ignored.  Timers keep the monotonic pace, so none is lost or postponed by an hour; the
  date is ahead of the wall clock until that has caught up, or until the daemon starts anew.

Smaller differences are NTP's slewing and the cost of reading two clocks; following them would make the pace uneven.
"""

from __future__ import annotations

import time
from collections.abc import Callable

STEP_MS = 1_000


class Clock:
    """Milliseconds since 1970 that never go back; two reads of a clock (0.1 µs) a call.

    ``wall_ns`` and ``steady_ns`` are the sources, in nanoseconds: `time.time_ns` and `time.monotonic_ns`, or a test's.
    """

    __slots__ = ("_offset_ns", "_steady_ns", "_wall_ns")

    def __init__(
        self, wall_ns: Callable[[], int] = time.time_ns, steady_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._wall_ns = wall_ns
        self._steady_ns = steady_ns
        self._offset_ns = wall_ns() - steady_ns()

    def now(self) -> int:
        """The time for everything that is decided or recorded."""
        steady, wall = self._steady_ns(), self._wall_ns()
        if wall - steady - self._offset_ns > STEP_MS * 1_000_000:
            self._offset_ns = wall - steady
        return (steady + self._offset_ns) // 1_000_000

    def elapsed_ns(self) -> int:
        """The monotonic clock, for measuring how long something took; no date."""
        return self._steady_ns()
