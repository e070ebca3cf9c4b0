"""A service's outcomes from every partition's owner, as one stream.

Each partition has its own reader, which knows the last position that it passed on: where the partition moves, it goes
on behind that at the new owner, so nothing comes twice and nothing is left out.  Without ``follow`` the readers take
turns, in the order of the partitions; with it, all read at once, for none of them ever ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec

from coordinator.errors import CoordinatorError, Internal, UnknownService
from coordinator.front.routes import MOVED, NOBODY_S, Routes, until_after
from coordinator.logs import get_logger
from coordinator.model.ids import parse_position, position
from coordinator.model.moments import timestamp
from coordinator.outcomes import Start
from coordinator.transport.base import OutcomeItem

if TYPE_CHECKING:
    from coordinator.cluster.link import Link

log = get_logger(__name__)

BATCHES_MAX: Final = 16  # that followed partitions have read and the caller has not taken


class Outcomes:
    """One caller's stream; raises InvalidPayload for a ``start`` that is no place."""

    def __init__(
        self, routes: Routes, service: str, start: str | None, follow: bool, partitions: Collection[int] | None
    ) -> None:
        self._routes = routes
        self._service = service
        self._follow = follow
        self._start = Start(start, len(routes.lanes))
        self._since = timestamp(self._start.at)
        self._partitions = [each for each in routes.local.partitions(partitions) if each >= self._start.partition]
        self._known = service in routes.local.engine.services
        if not self._known and not routes.directory.links():
            raise routes.local.unknown_service(service)

    async def batches(self) -> AsyncIterator[list[OutcomeItem]]:
        """In the order of partition and offset; with ``follow`` in that of offset within each partition only."""
        if not self._known:
            await self._look_up()
        reading = self._all_at_once() if self._follow else self._one_by_one()
        async with aclosing(cast("Any", reading)):
            async for batch in reading:
                yield batch

    async def _look_up(self) -> None:
        """A command's own functions are a service only where they have run: somebody has to know of it."""
        for link in self._routes.directory.links():
            try:
                if any(each["name"] == self._service for each in await link.request("services", {})):
                    return
            except CoordinatorError:
                continue
        raise self._routes.local.unknown_service(self._service)

    async def _one_by_one(self) -> AsyncIterator[list[OutcomeItem]]:
        for partition in self._partitions:
            async with aclosing(cast("Any", self._read(partition))) as reading:
                async for batch in reading:
                    yield batch

    async def _all_at_once(self) -> AsyncIterator[list[OutcomeItem]]:
        """One task a partition; the first that fails ends them all, and the stream."""
        queue: asyncio.Queue[list[OutcomeItem] | CoordinatorError | None] = asyncio.Queue(BATCHES_MAX)
        tasks = [asyncio.create_task(self._read_into(queue, each)) for each in self._partitions]
        left = len(tasks)
        try:
            while left:
                match await queue.get():
                    case None:
                        left -= 1
                    case CoordinatorError() as error:
                        raise error
                    case batch:
                        yield batch
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read_into(
        self, queue: asyncio.Queue[list[OutcomeItem] | CoordinatorError | None], partition: int
    ) -> None:
        try:
            async with aclosing(cast("Any", self._read(partition))) as reading:
                async for batch in reading:
                    await queue.put(batch)
        except CoordinatorError as error:
            await queue.put(error)
        except Exception:  # or the others would go on, and this partition be missing without a word
            log.exception("a partition's outcomes cannot be read on", partition=partition)
            await queue.put(Internal())
        else:
            await queue.put(None)

    # ------------------------------------------------------------ one partition

    async def _read(self, partition: int) -> AsyncIterator[list[OutcomeItem]]:
        """The partition's outcomes from wherever it is, to its end, or for ever."""
        routes = self._routes
        offset = self._start.offset if partition == self._start.partition else 0
        until = routes.loop.time() + NOBODY_S
        while True:
            try:
                async with aclosing(cast("Any", self._from_owner(partition, offset))) as reading:
                    async for batch in reading:
                        offset = parse_position(batch[-1].position)[1] + 1
                        wanted = [item for item in batch if item.at >= self._since] if self._start.at else batch
                        if wanted:
                            yield wanted
                        until = routes.loop.time() + NOBODY_S
                return
            except UnknownService:
                if not self._follow:  # nothing of it has ever run there
                    return
                await routes.pause(partition, UnknownService(), routes.loop.time() + NOBODY_S)
            except MOVED as error:
                now = routes.loop.time()
                if not self._follow and not routes.patience_s(error):
                    raise
                until = now + NOBODY_S if self._follow else until_after(error, until, now)
                await routes.pause(partition, error, until)

    def _from_owner(self, partition: int, offset: int) -> AsyncIterator[list[OutcomeItem]]:
        start = position(partition, offset)
        link = self._routes.place(partition)
        if link is None:
            return self._routes.local.outcomes(self._service, start, self._follow, [partition])
        return self._from_link(link, partition, start)

    async def _from_link(self, link: Link, partition: int, start: str) -> AsyncIterator[list[OutcomeItem]]:
        params = {"service": self._service, "from": start, "follow": self._follow, "partitions": [partition]}
        async with aclosing(cast("Any", link.stream("outcomes", params))) as answers:
            async for value in answers:
                if value:
                    yield msgspec.convert(value, list[OutcomeItem])
