"""The shortcuts that DESIGN lists as shown broken, as they would be written: the simulator must find each of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from coordinator.log.base import Unknown, Writer
from coordinator.log.owned import OwnedPartition
from coordinator.model.records import Epoch, Record
from coordinator.ownership.owner import Move, Owner, Phase, _Answer

Records = list[tuple[int, Record]]


class _SkipsTheGap(Owner):
    def settle(self) -> Move:
        head = self._batches[0] if self._batches and self.down is None else None
        return self._act(head) if head is not None and head.answer is _Answer.ACKED else super().settle()


class SkipsTheGapCheck(OwnedPartition):
    """Acts on an ack wherever it is, without reading what lies between."""

    rules = _SkipsTheGap


class _BelievesInUnknown(Owner):
    def settle(self) -> Move:
        head = self._batches[0] if self._batches and self.down is None else None
        if head is None or head.answer is not _Answer.UNKNOWN:
            return super().settle()
        head.base = self.verified
        return self._act(head)


class TakesUnknownForSuccess(OwnedPartition):
    """Acts on an append that was not answered."""

    rules = _BelievesInUnknown


class _CountsEverything(Owner):
    def fold(self, records: Iterable[tuple[int, Record]]) -> Records:
        found: Records = []
        for offset, record in records:
            found.append((offset, record))
            if type(record) is Epoch and record.token == self.token:
                self.epoch, self.verified, self.phase = offset, offset + 1, Phase.OWNING
                break
        return found


class IgnoresTheTokenInForce(OwnedPartition):
    """Takes every record of the log for valid when it acquires."""

    rules = _CountsEverything


class ActsBeforeTheAck(OwnedPartition):
    """Says that a batch is durable when it is only sent."""

    _promised = -1
    _sending: asyncio.Task[Any] | None = None

    async def append(self, records: Sequence[bytes]) -> int:
        self._standing()
        base = max(self.verified, self._promised)
        self._promised = base + len(records)
        self._sending = asyncio.get_running_loop().create_task(self._send(self._sending, records))
        return base

    async def _send(self, before: asyncio.Task[Any] | None, records: Sequence[bytes]) -> None:
        if before is not None:
            await before
        await super().append(records)


class ReusesItsToken(OwnedPartition):
    """Takes its machine's name for a token, as a pod's name would be."""

    def __init__(self, *arguments: Any, instance: str, token: Callable[[], bytes], **rest: Any) -> None:
        name = instance.partition(".")[0].encode().ljust(8)
        super().__init__(*arguments, instance=instance, token=lambda: name, **rest)


class ReadsOnlyToTheAssignment(OwnedPartition):
    """Folds the log up to where it ended when the partition was assigned, and not up to its own Epoch."""

    async def _begin(self) -> None:
        self._assigned_at = await self._log.end(self.partition)
        await super()._begin()

    async def _replay(self, owner: Owner, on_records: Callable[[Records], None], start: int) -> None:
        def early(records: Records) -> None:
            on_records([each for each in records if each[0] < self._assigned_at or isinstance(each[1], Epoch)])

        await super()._replay(owner, early, start)


class _Repeating:
    """A session that sends a batch in doubt again."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    async def append(self, records: Sequence[bytes]) -> int:
        try:
            return await self._writer.append(records)
        except Unknown:
            return await self._writer.append(records)

    async def close(self) -> None:
        await self._writer.close()


class SendsAgainUnderTheSameToken(OwnedPartition):
    """Takes an append in doubt for lost, and repeats it."""

    async def _begin(self) -> None:
        await super()._begin()
        assert self._writer is not None
        self._writer = _Repeating(self._writer)


ALL = (
    ActsBeforeTheAck,
    SkipsTheGapCheck,
    TakesUnknownForSuccess,
    ReusesItsToken,
    ReadsOnlyToTheAssignment,
    IgnoresTheTokenInForce,
    SendsAgainUnderTheSameToken,
)
