"""Lists over all commands, of which there may be a hundred thousand under way, and millions that have ended.

A list is made in slices: after a few milliseconds the loop goes round, so that who asks for a page never keeps the
others from their answers.  So commands come, move and end while it is made, and it is not the picture of one moment.
It does not miss what was there all the time: a command that ends meanwhile is looked for among those that have ended,
and where some of those that were to be shown have gone, older ones take their place.

What is under way is searched through (`newest`), not sorted: a page needs the newest few.  Commands that sleep are not
woken for it (`engine.asleep`), but for those that are shown.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Collection, Iterable
from heapq import heappush, heapreplace
from typing import Any, Final

from msgspec import Struct

from coordinator.engine import views
from coordinator.engine.asleep import Sleeper, unpacked
from coordinator.engine.state import Command
from coordinator.errors import InvalidPayload
from coordinator.front.base import Base
from coordinator.model.command import FINAL, CommandView, State
from coordinator.model.ids import CommandId, partition_of
from coordinator.transport.base import CommandPage, Gathered
from coordinator.view import has_attributes, matches

LIST_MAX: Final = 1000
SLICE_S: Final = 0.004

_MAY_BE_PARKED: Final = (State.DEAD_LETTER, State.PAUSED)  # the states in which something may be parked
Entry = tuple[int, CommandId, Command | bytes]  # of `Engine.entries`
Place = tuple[int, str]
"""Where a command is in a list: when it was submitted (ms since 1970), and its id."""


class Slices:
    """Work on the event loop that lets it go round after each `SLICE_S`: ``if slices.over(): await slices.next()``."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._until = self._loop.time() + SLICE_S

    def over(self) -> bool:
        return self._loop.time() > self._until

    async def next(self) -> None:
        await asyncio.sleep(0)
        self._until = self._loop.time() + SLICE_S


class Wanted(Struct, frozen=True):
    """A list's filters; attributes are compared as text."""

    state: str | None
    type: str | None
    attributes: dict[str, str]

    def takes(self, command: Command) -> bool:
        """One that is under way; made cheap, since every one is asked."""
        submitted = command.submitted
        return (
            (self.type is None or submitted.type == self.type)
            and (self.state is None or command.state == self.state)
            and (not self.attributes or has_attributes(submitted.attributes, self.attributes))
        )

    def takes_sleeper(self, partition: int, sleeper: Sleeper) -> bool:
        return (
            (self.type is None or sleeper.type == self.type)
            and (self.state is None or sleeper.state == self.state)
            and (not self.attributes or has_attributes(sleeper.attributes(partition), self.attributes))
        )

    def shows(self, view: CommandView) -> bool:
        return matches(view, self.state, self.type, self.attributes)


class Lists(Base):
    """The part of the Front that tells of many commands at once."""

    async def list_commands(
        self, *, state: str | None, type: str | None, attributes: dict[str, str], limit: int, cursor: str | None
    ) -> CommandPage:
        """See Front: of the partitions that this instance acts for; the page names the others as ``incomplete``."""
        if state is not None and state not in {each.value for each in State}:
            raise InvalidPayload.at("?state", f"one of {', '.join(each.value for each in State)}")
        if not 1 <= limit <= LIST_MAX:
            raise InvalidPayload.at("?limit", f"1 to {LIST_MAX}")
        before = parse_cursor(cursor)
        here = frozenset(lane.partition for lane in self.acting_lanes())
        wanted, slices = Wanted(state, type, attributes), Slices()
        found: dict[Place, CommandView] = {}
        if state not in FINAL:
            found |= await self._live(wanted, before, limit + 1, slices)
        if state is None or state in FINAL:
            found |= await self._ended(wanted, before, limit + 1, here, slices)  # in both: it has just ended
        places = sorted(found, reverse=True)
        page = places[:limit]
        next_cursor = make_cursor(*page[-1]) if len(places) > limit else None
        return CommandPage([found[place] for place in page], next_cursor, self.incomplete())

    async def _live(
        self, wanted: Wanted, before: Place | None, count: int, slices: Slices
    ) -> list[tuple[Place, CommandView]]:
        """The newest ``count`` that are under way, below ``before``; some may have ended by now."""
        found: list[tuple[Place, CommandView]] = []
        while len(found) < count:
            places = await newest(self.engine.entries(), wanted, before, count, slices)
            for place in places:
                if slices.over():
                    await slices.next()
                command = self._look_at(place[1])
                view = self.view.get(place[1]) if command is None else self.live_view(command)
                if view is not None and wanted.shows(view):
                    found.append((place, view))
            if len(places) < count:
                break
            before = places[-1]
        return found

    async def _ended(
        self, wanted: Wanted, before: Place | None, count: int, here: Collection[int], slices: Slices
    ) -> list[tuple[Place, CommandView]]:
        """The newest ``count`` that have ended in the partitions ``here``, below ``before``."""
        found: list[tuple[Place, CommandView]] = []
        while len(found) < count:
            rows = await self.view.newest(
                state=wanted.state,
                type=wanted.type,
                attributes=wanted.attributes,
                limit=count,
                before=before,
                partitions=here,
            )
            for row in rows:
                if slices.over():
                    await slices.next()
                if not self.engine.has(CommandId(row.id)):  # else it was opened again
                    found.append(((row.at, row.id), self.view.shown(row)))
            if len(rows) < count:
                break
            before = (rows[-1].at, rows[-1].id)
        return found

    def _look_at(self, id: str) -> Command | None:
        return self.engine.look_at(partition_of(id, len(self.pipeline.lanes)), CommandId(id))

    async def dead_letters(self) -> list[dict[str, Any]]:
        self.acting_lanes()
        slices = Slices()
        found: list[dict[str, Any]] = []
        for partition, id, entry in self.engine.entries():
            if slices.over():
                await slices.next()
            if isinstance(entry, bytes) and unpacked(entry).state not in _MAY_BE_PARKED:
                continue
            command = self.engine.look_at(partition, id)
            if command is not None and command.parked:
                found += views.dead_letters(command)
        lacking = tuple(lane.partition for lane in self.pipeline.lanes if not lane.acting)  # nothing parked has ended
        return Gathered(found, lacking)


async def newest(
    entries: Iterable[Entry], wanted: Wanted, before: Place | None, count: int, slices: Slices
) -> list[Place]:
    """The places of the newest ``count`` commands that are wanted, below ``before``, newest first."""
    heap: list[Place] = []  # the oldest of them first
    for partition, id, entry in entries:
        if slices.over():
            await slices.next()
        if isinstance(entry, bytes):
            sleeper = unpacked(entry)
            place = (sleeper.at, id)
            if not _fits(place, before, heap, count) or not wanted.takes_sleeper(partition, sleeper):
                continue
        else:
            place = (entry.submitted.at, id)
            if not _fits(place, before, heap, count) or not wanted.takes(entry):
                continue
        if len(heap) < count:
            heappush(heap, place)
        else:
            heapreplace(heap, place)
    return sorted(heap, reverse=True)


def _fits(place: Place, before: Place | None, heap: list[Place], count: int) -> bool:
    return (before is None or place < before) and (len(heap) < count or place > heap[0])


# ---------------------------------------------------------------- cursors


_TIME_MAX = 1 << 62  # what SQLite can compare with


def make_cursor(at: int, id: str) -> str:
    """Where a page ended: submission time and id of its last command, in a form that says "do not build these"."""
    return base64.urlsafe_b64encode(f"{at}/{id}".encode()).decode()


def parse_cursor(cursor: str | None) -> Place | None:
    """The inverse of `make_cursor`, None for the beginning; raises InvalidPayload."""
    if cursor is None:
        return None
    try:
        at, slash, id = base64.urlsafe_b64decode(cursor.encode()).decode().partition("/")
        if not slash or not 0 <= int(at) < _TIME_MAX:
            raise ValueError
        return int(at), id
    except (ValueError, binascii.Error):
        raise InvalidPayload.at("?cursor", "not a cursor that a list has given") from None
