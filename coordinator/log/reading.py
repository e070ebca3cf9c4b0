"""Reading a log that may not answer: whatever can hang has a deadline."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from coordinator.log.base import Log, LogError


async def batches(
    log: Log, partition: int, start: int, *, timeout_s: float
) -> AsyncGenerator[list[tuple[int, bytes]], None]:
    """As `Log.read`; a log that gives nothing for ``timeout_s`` raises LogError.

    Close it (``aclosing``) where it is not read to its end.
    """
    async with contextlib.aclosing(log.read(partition, start)) as reading:
        while True:
            try:
                async with asyncio.timeout(timeout_s):
                    batch: list[tuple[int, bytes]] = await anext(reading, [])
            except TimeoutError as error:
                raise LogError(f"the log gave nothing to read for {timeout_s:g} s") from error
            if not batch:
                return
            yield batch
