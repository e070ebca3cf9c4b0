"""The volatile timers of all commands: a heap of times, each with what it is for.

They follow from what is recorded, so a new owner sets them anew.  One that is not needed any more is not looked for: it
is found to be senseless when its time comes, and swept when there are many of commands that have ended.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable
from typing import Final, NamedTuple

from coordinator.model.ids import CommandId

_SWEEP_MIN: Final = 1_000  # timers, below which those of ended commands are not worth a search


class Alarm(NamedTuple):
    """When it is due (ms), a number that tells it apart, what it is for, of which command and step."""

    due: float
    number: int
    kind: str
    id: CommandId
    step: str = ""


class Timers:
    """``known`` says whether a command is still under way."""

    def __init__(self, known: Callable[[CommandId], bool]) -> None:
        self._known = known
        self._heap: list[Alarm] = []
        self._later: defaultdict[int, list[Alarm]] = defaultdict(list)  # of partitions that are being replayed
        self._number = 0
        self._swept = _SWEEP_MIN

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def first(self) -> float | None:
        """When the next one is due."""
        return self._heap[0].due if self._heap else None

    def arm(self, due: float, kind: str, id: CommandId, step: str = "") -> None:
        self._number += 1
        heapq.heappush(self._heap, Alarm(due, self._number, kind, id, step))
        if len(self._heap) > 2 * self._swept:
            self.sweep()

    def pop(self, now: float) -> Alarm | None:
        """The next one whose time has come."""
        return heapq.heappop(self._heap) if self._heap and self._heap[0].due <= now else None

    def sweep(self) -> None:
        """Drops those of commands that have ended: a deadline of a day must not be kept for a day."""
        self._heap = [alarm for alarm in self._heap if self._known(alarm.id)]
        heapq.heapify(self._heap)
        self._swept = max(_SWEEP_MIN, len(self._heap))

    # ------------------------------------------------------------ of a partition that is being replayed

    def arm_later(self, partition: int, due: float, kind: str, id: CommandId) -> None:
        """Counts once the partition is owned: before that nobody could be found for it."""
        self._number += 1
        self._later[partition].append(Alarm(due, self._number, kind, id))

    def owned(self, partition: int) -> None:
        later = self._later.pop(partition, [])
        if later:
            self._heap += later
            heapq.heapify(self._heap)

    def forget(self, partition: int) -> None:
        self._later.pop(partition, None)
        self.sweep()
