"""What the demo knows of itself while it runs: written by the story, read by the screen."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from msgspec import Struct


class Watch:
    """The coordinator as its operator sees it (``GET /v1/services``), polled; remembers what went by."""

    def __init__(self) -> None:
        self.up = False
        self.suspended: frozenset[str] = frozenset()
        self.delayed = 0
        self.delayed_peak = 0
        self.suspensions = 0
        self._changed = asyncio.Event()

    def saw(self, services: list[dict[str, Any]]) -> list[str]:
        """Takes in one poll; returns what is worth telling."""
        suspended = frozenset(service["name"] for service in services if service["suspended"])
        self.delayed = sum(service["delayed"] for service in services)
        self.delayed_peak = max(self.delayed_peak, self.delayed)
        self.suspensions += len(suspended - self.suspended)
        news = [f"intake of orders is suspended: {name} does not answer" for name in suspended - self.suspended]
        news += [f"intake resumes: {name} is back and its backlog is done" for name in self.suspended - suspended]
        self.up = True
        self._set(suspended)
        return news

    def lost(self) -> None:
        """The coordinator did not answer; what it has suspended is unknown and is kept as it was."""
        self.up = False

    def _set(self, suspended: frozenset[str]) -> None:
        self.suspended = suspended
        self._changed.set()
        self._changed = asyncio.Event()

    async def suspends(self, service: str) -> None:
        """Returns once intake for ``service`` is seen suspended."""
        while service not in self.suspended:
            await self._changed.wait()

    async def resumes(self, service: str) -> None:
        """Returns once intake for ``service`` is seen open."""
        while service in self.suspended:
            await self._changed.wait()


class Tally:
    """How far the orders are."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.states: dict[str, str] = {}  # order → final state, as the client was told
        self.errors: dict[str, str] = {}  # order → why the client gave up
        self.watch = Watch()
        self._milestones: list[tuple[int, asyncio.Event]] = []

    @property
    def settled(self) -> int:
        return len(self.states) + len(self.errors)

    @property
    def counts(self) -> Counter[str]:
        return Counter(self.states.values())

    def ended(self, order: str, state: str) -> None:
        self.states[order] = state
        self._reach()

    def gave_up(self, order: str, why: str) -> None:
        self.errors[order] = why
        self._reach()

    def _reach(self) -> None:
        for count, event in self._milestones:
            if self.settled >= count:
                event.set()

    async def reaches(self, part: float) -> None:
        """Returns once ``part`` (0 to 1) of the orders are settled."""
        event = asyncio.Event()
        self._milestones.append((int(self.total * part), event))
        self._reach()
        await event.wait()


class Report(Struct, frozen=True, kw_only=True):
    """The end of a demo; times in seconds.  ``faults`` empty: every order wholly done or wholly undone."""

    orders: int
    counts: Counter[str]
    faults: list[str]
    seconds: float
    restart_s: float | None
    delayed_peak: int
    suspensions: int
    effects: int  # deeds that the ledgers hold
    repeats: int  # requests that came again with a known key, and changed nothing
    exit_code: int | None  # of the daemon after SIGTERM
