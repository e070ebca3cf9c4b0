"""The log as one process reaches it: `MemoryStorage` behind a network.

A batch travels, lands, and its ack travels back; between any two of these the process may be paused, cut off or dead.
It lands in the world, not in the process, so what a dead process has sent may still land, behind the Epoch of whoever
came after it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING

from coordinator.log.base import LogError, Pointer, Rejected, Unknown
from coordinator.log.memory import Fault, MemoryLog

if TYPE_CHECKING:
    from coordinator.testing.simulator.process import Process
    from coordinator.testing.simulator.world import World

_FATES = (
    Fault.REFUSE,
    Fault.LOSE_REQUEST,
    Fault.LOSE_REQUEST,
    Fault.LOSE_ACK,
    Fault.LOSE_ACK,
    Fault.NO_OFFSET,
    Fault.LATE,
    Fault.LATE,
    Fault.STALL,
    Fault.STALL,
)


class DistantLog(MemoryLog):
    """The `Log` port of one process's life."""

    def __init__(self, world: World, process: Process) -> None:
        super().__init__(world.plan.partitions, storage=world.storage)
        self._world = world
        self._process = process
        self.cut_off = False

    # ------------------------------------------------------------ reading

    def _answers(self) -> None:
        self._alive()
        if self.cut_off or self._world.chance("log/read"):
            raise LogError("the log is out of reach")

    async def bounds(self, partition: int) -> tuple[int, int]:
        await self._travel()
        return await super().bounds(partition)

    async def read(self, partition: int, start: int) -> AsyncGenerator[list[tuple[int, bytes]], None]:
        """In small pages, so that much can happen between two of them."""
        random = self._world.random
        async for page in super().read(partition, start):
            while page:
                count = random.randint(1, 40)
                yield page[:count]
                page = page[count:]
                await asyncio.sleep(random.choice((0, self._world.latency())))
                self._answers()

    async def load_pointer(self, partition: int) -> Pointer | None:
        await self._travel()
        return await super().load_pointer(partition)

    # ------------------------------------------------------------ pointers and trimming: may land although it failed

    async def save_pointer(self, partition: int, pointer: Pointer) -> None:
        await self._travel()
        await super().save_pointer(partition, pointer)
        await self._travel()

    async def trim(self, partition: int, before: int) -> int:
        await self._travel()
        self._world.fault("trimmed", self._process.name, partition, before)
        self._world.judge.trims(self._process, partition, before)
        first = await super().trim(partition, before)
        await self._travel()
        return first

    async def _travel(self) -> None:
        await asyncio.sleep(self._world.latency())
        self._answers()

    # ------------------------------------------------------------ appending

    async def append(self, partition: int, records: Sequence[bytes]) -> int:
        world, random = self._world, self._world.random
        self._alive()
        self.appends += 1
        world.appends += 1
        fate = self._fate()
        world.note("append", self._process.name, partition, len(records), fate.value)
        match fate:
            case Fault.CRASH_BEFORE:
                self._process.die("before an append")
                return await self._never()
            case Fault.CRASH_AFTER:
                self._land(partition, records)
                self._process.die("after an append")
                return await self._never()
            case Fault.REFUSE:
                await asyncio.sleep(world.latency())
                raise Rejected("told to refuse")
            case Fault.LOSE_REQUEST:
                return await self._unanswered()
            case Fault.LATE | Fault.STALL:
                world.later(random.uniform(0.05, 5), self._land, partition, records)
                return await self._unanswered(at_once=fate is Fault.LATE)
            case _:
                landed: asyncio.Future[int] = world.loop.create_future()
                world.later(world.latency(), self._land, partition, records, landed)
                base = await landed
        if fate is Fault.LOSE_ACK:
            return await self._unanswered()
        return -1 if fate is Fault.NO_OFFSET else base

    def _fate(self) -> Fault:
        world = self._world
        if self._injected:
            return self._injected.popleft()
        if self.cut_off:
            return world.random.choice((Fault.LOSE_REQUEST, Fault.STALL))
        if world.crashes("append", after=False):
            return Fault.CRASH_BEFORE
        if world.crashes("append", after=True):
            return Fault.CRASH_AFTER
        if world.chance("crash/append"):
            return world.random.choice((Fault.CRASH_BEFORE, Fault.CRASH_AFTER))
        if world.chance("log/append"):
            fate = world.random.choice(_FATES)
            world.fault(f"append: {fate.value}", self._process.name)
            return fate
        return Fault.NONE

    def _land(self, partition: int, records: Sequence[bytes], landed: asyncio.Future[int] | None = None) -> None:
        world = self._world
        base = self.storage.append(partition, records)
        world.judge.landed(partition, base, records)
        if landed is not None:
            world.later(world.latency(), _tell, landed, base)

    async def _unanswered(self, *, at_once: bool = False) -> int:
        """Nobody knows; the caller learns it now, or never, and then it is his own patience that ends."""
        if not at_once and self._world.random.random() < 0.5:
            await self._never()
        raise Unknown("no answer")

    async def _never(self) -> int:
        return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]


def _tell(landed: asyncio.Future[int], base: int) -> None:
    if not landed.done():
        landed.set_result(base)
