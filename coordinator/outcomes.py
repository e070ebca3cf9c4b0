"""Streams a service's past Outcomes: what a service that lost its data is rebuilt from (DESIGN section 8).

The log itself is read, in log order, so the stream is exactly what was recorded and can be resumed at any position.
With several partitions the order is by partition, then by offset; a position names both.

*Which records count.*  Those of fenced owners do not: the view knows which token was in force at any offset that it has
been filled to, and the owner from where its replay began; from there on the stream goes by the Epochs that it passes.
Where a stream begins in between, it reads from the view's watermark on and keeps quiet until it has come to its place.

*Of what type a command is*, its Submitted says.  A stream remembers it until the command's end; of commands that began
before the stream did, the engine and the view know it, and where the view does not yet, the stream begins to read
where the earliest of them began.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection
from datetime import UTC, datetime
from typing import Final

from coordinator.errors import InvalidPayload, LogUnavailable, Unavailable
from coordinator.lane import Lane
from coordinator.log.base import LogError
from coordinator.model.ids import CommandId, parse_position, position
from coordinator.model.moments import timestamp
from coordinator.model.records import Epoch, Finished, Outcome, Submitted, unraw
from coordinator.pipeline import Pipeline
from coordinator.transport.base import OutcomeItem
from coordinator.wire.codec import kind_of, read

TypeOf = Callable[[str], str]

_FOLLOW_S: Final = 0.2
_CLOCKS_MS: Final = 60_000  # how far the clocks of former owners may have been apart
_TOLD: Final = frozenset(kind.__struct_config__.tag for kind in (Epoch, Submitted, Outcome, Finished))


class Start:
    """Where a stream begins: a position (inclusive) or a time, in UTC unless it says otherwise.

    Raises InvalidPayload for what is neither, and for a partition that the log does not have.
    """

    def __init__(self, text: str | None, partitions: int) -> None:
        self.partition, self.offset, self.at = 0, 0, 0
        if text is None or text == "":
            return
        if "T" in text or text.count("-") == 2:
            try:
                moment = datetime.fromisoformat(text)
                self.at = round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
            except (ValueError, OverflowError):
                raise InvalidPayload.at("?from", "a time is RFC 3339, for example 2026-01-31T12:00:00Z") from None
        else:
            self.partition, self.offset = parse_position(text, "?from")
            if self.partition >= partitions:
                raise InvalidPayload.at("?from", f"there are {partitions} partitions, from 0")


async def stream(
    pipeline: Pipeline,
    service: str,
    start: Start,
    follow: bool,
    type_of: TypeOf,
    partitions: Collection[int] | None = None,
) -> AsyncGenerator[list[OutcomeItem], None]:
    """Batches of the service's Outcomes; ``follow`` goes on with new ones as they become durable (single partition
    order holds within each partition then).  ``partitions``: of these only.

    What was trimmed is passed over: the stream begins with what the log has.  Raises the lane's refusal when a
    partition is not, or no longer, owned here, LogUnavailable, and Unavailable while it cannot be told what counts.
    """
    readings = [
        _Reading(pipeline, lane, service, start, type_of)
        for lane in pipeline.lanes
        if lane.partition >= start.partition and (partitions is None or lane.partition in partitions)
    ]
    while True:
        for reading in readings:
            async for batch in reading.batches():
                yield batch
        if not follow:
            return
        await asyncio.sleep(_FOLLOW_S)


class _Reading:
    """One partition's part of a stream: it stands at ``offset``, and tells of what is at ``since_offset`` or later."""

    def __init__(self, pipeline: Pipeline, lane: Lane, service: str, start: Start, type_of: TypeOf) -> None:
        self.pipeline = pipeline
        self.lane = lane
        self.service = service
        self.since_ms = start.at
        self.since_offset = start.offset if lane.partition == start.partition else 0
        self.offset = -1  # not begun
        self.token = b""
        self._type_of = type_of
        self._types: dict[CommandId, str] = {}

    async def batches(self) -> AsyncIterator[list[OutcomeItem]]:
        """What there is up to the end as of now."""
        if not self.lane.acting:
            raise self.lane.refusal
        end = self.lane.end
        try:
            if self.offset < 0:
                await self._begin()
            if self.offset >= end:
                return
            async with contextlib.aclosing(self.pipeline.log.read(self.lane.partition, self.offset)) as batches:
                async for records in batches:
                    items = [item for at, data in records if at < end and (item := self._item(at, data))]
                    self.offset = min(records[-1][0] + 1, end)
                    if items:
                        yield items
                    if self.offset >= end:
                        return
        except LogError as error:
            raise LogUnavailable(f"the log cannot be read: {error}", retry_after_ms=500) from error

    async def _begin(self) -> None:
        """Finds the place from which on it can be told what counts, and of what type it is."""
        log, view, partition = self.pipeline.log, self.pipeline.view, self.lane.partition
        first, _ = await log.bounds(partition)
        if self.since_ms:
            early = await log.offset_at(partition, self.since_ms - _CLOCKS_MS)
            self.since_offset = max(self.since_offset, early)
        offset = self.since_offset = max(self.since_offset, first)
        filled, upto = view.progress(partition)
        if filled < upto and offset < upto:
            watermark, resume = view.watermark(partition)
            offset = max(min(offset, resume), first)
            if watermark < first:
                raise self._unknown(offset)
        token = view.token_at(partition, offset)
        if token is None:  # a view that is being made anew
            raise self._unknown(offset)
        self.offset, self.token = offset, token

    def _unknown(self, offset: int) -> Unavailable:
        place = position(self.lane.partition, offset)
        return Unavailable(f"it is not known yet which records count from {place} on", retry_after_ms=500)

    def _item(self, offset: int, data: bytes) -> OutcomeItem | None:
        """The next record; what it is if it is one of those that are asked for."""
        partition = self.lane.partition
        kind = kind_of(data)
        if kind is not None and kind not in _TOLD:
            return None
        record = read(data, partition=partition, offset=offset)
        if isinstance(record, Epoch):
            self.token = record.token
        elif record.token != self.token:
            return None
        elif isinstance(record, Submitted):
            self._types[record.id] = record.type
        elif isinstance(record, Finished):
            self._types.pop(record.id, None)
        elif (
            isinstance(record, Outcome)
            and record.service == self.service
            and record.at >= self.since_ms
            and offset >= self.since_offset
        ):
            return OutcomeItem(
                position=position(partition, offset),
                service=record.service,
                command_id=record.id,
                type=self._types.get(record.id) or self._type_of(record.id),
                step=record.step,
                outcome=unraw(record.outcome),
                at=timestamp(record.at),
            )
        return None
