"""The port of the log: three implementations (memory, SQLite, Kafka), one contract suite
(tests/contract/test_log.py)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Final, Protocol


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

        Raises LogError; a ``start`` below the log's first offset is an error, never a silent jump.
        """
        ...

    async def bounds(self, partition: int) -> tuple[int, int]:
        """The first offset and the next offset to be written (durable ones only)."""
        ...

    async def end(self, partition: int) -> int:
        """The next offset to be written: the upper one of `bounds`, at half the cost."""
        ...

    async def save_watermark(self, partition: int, watermark: int) -> None: ...

    async def load_watermark(self, partition: int) -> int | None: ...

    async def close(self) -> None: ...
