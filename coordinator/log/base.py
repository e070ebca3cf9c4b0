"""The port of the log: three implementations (memory, SQLite, Kafka), one contract suite
(tests/contract/test_log.py)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Final, Protocol

from msgspec import Struct


class LogError(Exception):
    """An append or a read failed."""


class Rejected(LogError):
    """The batch is certainly not in the log and never will be (disk full, read-only, fenced by the broker)."""


class Unknown(LogError):
    """Neither confirmed nor refused (timeout, lost ack, an offset below 0): the batch may be in the log, or still
    land."""


class RecordTooLarge(LogError):
    """One record is larger than the log's `Log.record_bytes_max`; nothing was sent and the session goes on."""


RECORD_BYTES_MAX: Final = 8 << 20
"""The largest record that every implementation takes by default."""


class Pointer(Struct, frozen=True):
    """Where a Snapshot is: the offset of its first part, and the offset below which it has everything."""

    position: int
    covered: int


class Writer(Protocol):
    """One session of appends to one partition, opened for one token and never used for another."""

    async def append(self, records: Sequence[bytes]) -> int:
        """Appends a batch atomically; returns its base offset once durable.

        Raises Rejected or Unknown.  A cancelled append is Unknown.  Batches are appended in call order.
        """
        ...

    async def close(self) -> None: ...


class Log(Protocol):
    partitions: int
    record_bytes_max: int  # known after `open`

    async def open(self) -> None:
        """Creates or checks the storage; raises StartupError with everything that is wrong."""
        ...

    async def writer(self, partition: int) -> Writer:
        """A new session (for Kafka: a new producer id and epoch, which also locks out older sessions at the broker)."""
        ...

    def read(self, partition: int, start: int) -> AsyncGenerator[list[tuple[int, bytes]], None]:
        """Batches of (offset, record) from ``start`` up to the end as of the call, in order, without gaps of meaning.

        Raises LogError; a ``start`` below the log's first offset is an error, never a silent jump, and so is being
        overtaken by `trim`.
        """
        ...

    async def bounds(self, partition: int) -> tuple[int, int]:
        """The first offset and the next offset to be written (durable ones only)."""
        ...

    async def end(self, partition: int) -> int:
        """The next offset to be written: the upper one of `bounds`, at half the cost."""
        ...

    async def save_pointer(self, partition: int, pointer: Pointer) -> None:
        """Keeps where the newest Snapshot is.  Whoever saves last wins, a fenced owner too; raises LogError."""
        ...

    async def load_pointer(self, partition: int) -> Pointer | None:
        """What was saved last, None when nothing was or when it is not readable.  Only a hint: anybody may have
        overwritten it, so what is there must be checked against the log itself."""
        ...

    async def trim(self, partition: int, before: int) -> int:
        """Deletes every record below ``before`` for ever, and none above; returns the first offset now.

        A ``before`` beyond the end is the end; one below the first offset changes nothing.  Offsets go on counting,
        also when nothing is left.  Appends go on meanwhile.  Raises LogError when it is not known whether all of it was
        deleted, and so does a cancel leave it; asking again is safe.
        """
        ...

    async def offset_at(self, partition: int, at_ms: int) -> int:
        """The first offset whose record was appended at ``at_ms`` (since 1970, by its writer's clock) or later; the end
        when there is none.  As monotonic as the writers' clocks are."""
        ...

    async def close(self) -> None: ...
