"""Finds one finished command in the log, while the view of its partition is still being filled.

A new owner answers from its first second for what finished within the dedupe horizon: the Snapshot that it began with
has a receipt of each, which tells where the command began and ended.  What lies between is folded once more.
"""

from __future__ import annotations

import asyncio
import contextlib

from coordinator.admission.receipts import Receipt
from coordinator.engine.engine import Engine
from coordinator.log.base import Log, LogError
from coordinator.model.ids import CommandId
from coordinator.model.records import Epoch, Reopened, Submitted
from coordinator.ownership.validity import Validity
from coordinator.replaying import finished_command
from coordinator.view import FinishedCommand
from coordinator.wire.codec import EPOCH, key_of, kind_of, read


async def recalled(
    log: Log, engine: Engine, partition: int, id: CommandId, receipt: Receipt, *, timeout_ms: int
) -> FinishedCommand | None:
    """The command whose receipt this is; None if the log does not have it (any more).

    ``engine`` is only asked for its settings.  Its Submitted counts, or there were no receipt of it: so the token that
    it has was in force there, and from there on the Epochs tell which records count.  Raises LogError.
    """
    scratch = engine.scratch()
    validity: Validity | None = None
    key = id.encode()
    try:
        async with (
            asyncio.timeout(timeout_ms / 1000),
            contextlib.aclosing(log.read(partition, receipt.first)) as reading,
        ):
            async for batch in reading:
                for offset, data in batch:
                    if offset > receipt.end:
                        return None
                    if offset > receipt.first and key_of(data) != key and kind_of(data) != EPOCH:
                        continue
                    record = read(data, partition=partition, offset=offset)
                    if validity is None:
                        if not isinstance(record, (Submitted, Reopened)) or record.id != id:
                            return None
                        validity = Validity(offset, record.token)
                    if validity.admit(offset, record) and not isinstance(record, Epoch):
                        scratch.apply(partition, offset, record)
                    for command in scratch.take_replayed():
                        return finished_command(command)
                await asyncio.sleep(0)
    except TimeoutError as error:
        raise LogError(f"the log gave nothing to read for {timeout_ms} ms") from error
    return None
