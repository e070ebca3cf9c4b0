"""Streams a service's past Outcomes: what a service that lost its data is rebuilt from (DESIGN section 8).

The log itself is read, in log order, so the stream is exactly what was recorded and can be resumed at any position.
Records of fenced owners do not count: which token is in force at an offset is known from the Epochs that replay has
seen.  With several partitions the order is by partition, then by offset; a position names both.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable, Collection
from datetime import UTC, datetime

from coordinator.engine.views import shown, timestamp
from coordinator.errors import InvalidPayload, LogUnavailable
from coordinator.lane import Lane
from coordinator.log.base import LogError
from coordinator.model.ids import parse_position, position
from coordinator.model.records import Outcome
from coordinator.pipeline import Pipeline
from coordinator.transport.base import OutcomeItem
from coordinator.wire.codec import read

TypeOf = Callable[[str], str]


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
) -> AsyncIterator[list[OutcomeItem]]:
    """Batches of the service's Outcomes; ``follow`` goes on with new ones as they become durable (single partition
    order holds within each partition then).  ``partitions``: of these only."""
    lanes = [
        lane
        for lane in pipeline.lanes
        if lane.partition >= start.partition and (partitions is None or lane.partition in partitions)
    ]
    reached = {lane.partition: start.offset if lane.partition == start.partition else 0 for lane in lanes}
    while True:
        for lane in lanes:
            async for batch, upto in _partition(pipeline, lane, reached[lane.partition], service, start.at, type_of):
                reached[lane.partition] = upto
                if batch:
                    yield batch
        if not follow:
            return
        await asyncio.sleep(0.2)


async def _partition(
    pipeline: Pipeline, lane: Lane, offset: int, service: str, since: int, type_of: TypeOf
) -> AsyncIterator[tuple[list[OutcomeItem], int]]:
    if not lane.acting:
        raise lane.refusal
    end, epochs = lane.end, list(lane.epochs)
    if offset >= end:
        return
    try:
        async for records in pipeline.log.read(lane.partition, offset):
            items = []
            for at, data in records:
                if at >= end:
                    break
                record = read(data, partition=lane.partition, offset=at)
                if (
                    isinstance(record, Outcome)
                    and record.service == service
                    and record.at >= since
                    and record.token == _in_force(epochs, at)
                ):
                    items.append(_item(lane.partition, at, record, type_of))
            last = min(records[-1][0] + 1, end)
            yield items, last
            if last >= end:
                return
    except LogError as error:
        raise LogUnavailable(f"the log cannot be read: {error}", retry_after_ms=500) from error


def _in_force(epochs: list[tuple[int, bytes]], offset: int) -> bytes:
    """The token of the last Epoch before ``offset``."""
    at = bisect_right(epochs, offset, key=lambda epoch: epoch[0])
    return epochs[at - 1][1] if at else b""


def _item(partition: int, offset: int, record: Outcome, type_of: TypeOf) -> OutcomeItem:
    return OutcomeItem(
        position=position(partition, offset),
        service=record.service,
        command_id=record.id,
        type=type_of(record.id),
        step=record.step,
        outcome=shown(record.outcome),
        at=timestamp(record.at),
    )
