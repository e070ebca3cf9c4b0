"""A log in memory that can be told to fail: for simulation and tests, shipped with the program.

`MemoryStorage` is the "disk"; each `MemoryLog` is one process's view of it, so that several instances can share one
storage and one of them can crash.  Nothing here is random or timed: faults come from `inject` (one for each append to
come, in call order) or from a function, so that a failing run can be repeated.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from enum import Enum

from coordinator.errors import StartupError
from coordinator.log.base import RECORD_BYTES_MAX, LogError, Pointer, Rejected, Unknown
from coordinator.log.times import first_at

_PAGE = 1024


class Fault(Enum):
    """What happens to one append."""

    NONE = "none"
    REFUSE = "refuse"  # Rejected; never in the log
    LOSE_REQUEST = "lose_request"  # Unknown; never in the log
    LOSE_ACK = "lose_ack"  # in the log; Unknown
    NO_OFFSET = "no_offset"  # in the log; confirmed without its place (offset -1)
    LATE = "late"  # Unknown now; lands at the next `MemoryLog.land`
    STALL = "stall"  # unanswered until `MemoryLog.release`, then lands and is confirmed; lands late if cancelled
    CRASH_BEFORE = "crash_before"  # the process ends before the append lands
    CRASH_AFTER = "crash_after"  # the process ends between the append and its ack


class Crashed(LogError):
    """This view of the storage belongs to a process that has ended; open another `MemoryLog` on the same storage."""


class MemoryStorage:
    """What outlives a crash: the records of each partition, and the pointers."""

    def __init__(self, partitions: int = 1) -> None:
        self.records: list[list[bytes]] = [[] for _ in range(partitions)]
        self.first: list[int] = [0] * partitions
        self.pointers: dict[int, Pointer] = {}

    def append(self, partition: int, records: Sequence[bytes]) -> int:
        held = self.records[partition]
        base = self.first[partition] + len(held)
        held.extend(records)
        return base

    def trim(self, partition: int, first: int) -> None:
        """Deletes what is below ``first``, and nothing that is not there yet."""
        drop = min(first - self.first[partition], len(self.records[partition]))
        if drop > 0:
            del self.records[partition][:drop]
            self.first[partition] += drop


class MemoryLog:
    """The `Log` port over a `MemoryStorage`.

    ``choose(partition, records)`` names the fault of an append when none was injected for it.
    """

    def __init__(
        self,
        partitions: int = 1,
        *,
        storage: MemoryStorage | None = None,
        choose: Callable[[int, Sequence[bytes]], Fault] | None = None,
    ) -> None:
        self.storage = storage if storage is not None else MemoryStorage(partitions)
        self.partitions = partitions
        self.record_bytes_max = RECORD_BYTES_MAX
        self.crashed = False
        self.appends = 0  # appends asked for, whatever became of them
        self._choose = choose
        self._injected: deque[Fault] = deque()
        self._late: list[tuple[int, list[bytes]]] = []
        self._stalled: list[asyncio.Future[None]] = []
        self._stall_begun = asyncio.Event()
        self._unreadable = ""

    # ------------------------------------------------------------ faults

    def inject(self, *faults: Fault) -> None:
        """The next appends meet these, in call order."""
        self._injected.extend(faults)

    def land(self) -> int:
        """Lets everything that was late land now, in the order of its appends; returns how many batches."""
        late, self._late = self._late, []
        for partition, records in late:
            self.storage.append(partition, records)
        return len(late)

    def release(self) -> None:
        """Lets the stalled appends go on."""
        stalled, self._stalled = self._stalled, []
        self._stall_begun.clear()
        for waiting in stalled:
            if not waiting.done():
                waiting.set_result(None)

    async def until_stalled(self) -> None:
        """Returns once an append is stalled."""
        await self._stall_begun.wait()

    def break_reads(self, reason: str = "the log cannot be read") -> None:
        """Every read raises LogError until `mend_reads`."""
        self._unreadable = reason

    def mend_reads(self) -> None:
        self._unreadable = ""

    def crash(self) -> None:
        """The process ends: every call on this view from now on raises Crashed."""
        self.crashed = True
        self.release()

    def _fault_of(self, partition: int, records: Sequence[bytes]) -> Fault:
        if self._injected:
            return self._injected.popleft()
        return self._choose(partition, records) if self._choose is not None else Fault.NONE

    # ------------------------------------------------------------ the port

    async def open(self) -> None:
        stored = len(self.storage.records)
        if stored != self.partitions:
            raise StartupError(f"the log has {stored} partitions, not the configured {self.partitions}")

    async def writer(self, partition: int) -> MemoryWriter:
        self._alive()
        return MemoryWriter(self, partition)

    async def read(self, partition: int, start: int) -> AsyncGenerator[list[tuple[int, bytes]], None]:
        self._readable()
        first, end = await self.bounds(partition)
        if start < first:
            raise LogError(f"offset {start} of partition {partition} is below the log's start {first}")
        while start < end:
            self._readable()
            at = start - self.storage.first[partition]
            if at < 0:
                raise LogError(f"offset {start} of partition {partition} was deleted while it was being read")
            page = self.storage.records[partition][at : at + min(_PAGE, end - start)]
            yield list(enumerate(page, start))
            start += len(page)
            await asyncio.sleep(0)

    async def bounds(self, partition: int) -> tuple[int, int]:
        self._readable()
        first = self.storage.first[partition]
        return first, first + len(self.storage.records[partition])

    async def end(self, partition: int) -> int:
        return (await self.bounds(partition))[1]

    async def save_pointer(self, partition: int, pointer: Pointer) -> None:
        self._alive()
        self.storage.pointers[partition] = pointer

    async def load_pointer(self, partition: int) -> Pointer | None:
        self._readable()
        return self.storage.pointers.get(partition)

    async def trim(self, partition: int, before: int) -> int:
        self._alive()
        self.storage.trim(partition, before)
        return self.storage.first[partition]

    async def offset_at(self, partition: int, at_ms: int) -> int:
        first, end = await self.bounds(partition)
        records = self.storage.records[partition]
        return first_at(lambda offset: records[offset - first], first, end, at_ms)

    async def close(self) -> None:
        self.release()

    def _alive(self) -> None:
        if self.crashed:
            raise Crashed("this process has crashed")

    def _readable(self) -> None:
        self._alive()
        if self._unreadable:
            raise LogError(self._unreadable)

    # ------------------------------------------------------------ appending

    async def append(self, partition: int, records: list[bytes]) -> int:
        """One append of a session (`MemoryWriter`), with its fault."""
        self._alive()
        self.appends += 1
        base = -1
        match self._fault_of(partition, records):
            case Fault.NONE:
                base = self.storage.append(partition, records)
                await asyncio.sleep(0)
            case Fault.NO_OFFSET:
                self.storage.append(partition, records)
            case Fault.REFUSE:
                raise Rejected("the log is told to refuse")
            case Fault.LOSE_REQUEST:
                raise Unknown("the request was lost")
            case Fault.LOSE_ACK:
                self.storage.append(partition, records)
                raise Unknown("the ack was lost")
            case Fault.LATE:
                self._late.append((partition, records))
                raise Unknown("no answer yet")
            case Fault.STALL:
                base = await self._stall(partition, records)
            case Fault.CRASH_BEFORE:
                self.crash()
            case Fault.CRASH_AFTER:
                self.storage.append(partition, records)
                self.crash()
        self._alive()
        return base

    async def _stall(self, partition: int, records: list[bytes]) -> int:
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._stalled.append(waiting)
        self._stall_begun.set()
        try:
            await waiting
        except asyncio.CancelledError:
            if waiting in self._stalled:
                self._stalled.remove(waiting)
            self._late.append((partition, records))
            raise
        self._alive()
        return self.storage.append(partition, records)


class MemoryWriter:
    """A session of a `MemoryLog`."""

    def __init__(self, log: MemoryLog, partition: int) -> None:
        self._log = log
        self._partition = partition
        self._closed = False

    async def append(self, records: Sequence[bytes]) -> int:
        if self._closed:
            raise Rejected("the session is closed")
        return await self._log.append(self._partition, list(records))

    async def close(self) -> None:
        self._closed = True
