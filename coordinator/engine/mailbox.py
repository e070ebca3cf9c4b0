"""Data that came from outside, kept by name until somebody waits for it: in the order in which it came, each once.

Data is often sent twice, by a client that has not heard the answer or a person who clicks again.  Who wants to be sure
gives each an id (`kinds.signal` drops the second).  Without one, a value that equals the last one of its name is taken
for the same datum, unless somebody waits for another: a one-time password that was typed wrong twice in the same way
was typed twice.
"""

from __future__ import annotations

from collections import deque

from msgspec import Raw

from coordinator.model.records import Signal


class Mailbox:
    """One command's."""

    __slots__ = ("_kept", "_last")

    def __init__(self) -> None:
        self._kept: dict[str, deque[Signal]] = {}
        self._last: dict[str, Raw] = {}

    def put(self, record: Signal, *, wanted: bool) -> None:
        """Keeps it, unless it is redundant; ``wanted``: somebody waits for data of its name."""
        if self.redundant(record, wanted=wanted):
            return
        self._last[record.name] = record.value
        self._kept.setdefault(record.name, deque()).append(record)

    def take(self, name: str) -> Signal | None:
        """The first that is kept under the name."""
        kept = self._kept.get(name)
        return kept.popleft() if kept else None

    def redundant(self, record: Signal, *, wanted: bool) -> bool:
        """Whether it is the same as the last of its name, and nobody waits for another."""
        return not wanted and not record.signal_id and self._last.get(record.name) == record.value
