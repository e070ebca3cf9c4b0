"""Outcome streams from a log whose owner began at a Snapshot: what counts, of what type it is, and where it begins."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from random import Random

import pytest

from coordinator import outcomes
from coordinator.engine.engine import Engine
from coordinator.engine.registry import Registry
from coordinator.engine.snapshots import Header, cut
from coordinator.errors import CoordinatorError, Unavailable
from coordinator.filler import Filler
from coordinator.lane import Lane
from coordinator.log.base import Pointer
from coordinator.log.memory import MemoryLog
from coordinator.model.ids import CommandId
from coordinator.model.records import SCHEMA, Epoch, Finished, Outcome, Record, Submitted, raw
from coordinator.model.settings import EngineSettings
from coordinator.transport.base import OutcomeItem
from coordinator.wire.codec import encode
from tests.integration.daemon import services
from tests.integration.test_pipeline import Line

Open = Callable[[], Awaitable[Line]]

OLD, MIDDLE = b"token--1", b"token--2"
LATE = 40 * 3_600_000


def begun(id: str, token: bytes, at: int = 1) -> Record:
    return Submitted(SCHEMA, token, at, CommandId(id), f"type-of-{id}", 1, raw({}), b"f" * 16)


def stepped(id: str, token: bytes, at: int = 1, service: str = "shipping") -> Record:
    return Outcome(SCHEMA, token, at, CommandId(id), "step", service, 1, raw({"of": id}))


def ended(id: str, token: bytes, at: int = 1) -> Record:
    return Finished(SCHEMA, token, at, CommandId(id), "completed")


def epoch(token: bytes) -> Record:
    return Epoch(SCHEMA, token, 1, "somebody", "somewhere")


HISTORY: list[Record | bytes] = [
    epoch(OLD),
    begun("a", OLD),
    stepped("a", OLD),  # 2
    ended("a", OLD),
    begun("b", OLD),
    stepped("b", OLD),  # 5
    epoch(MIDDLE),
    stepped("b", OLD),  # stale
    b"bytes of nobody",
    stepped("b", MIDDLE, service="stock"),  # another's
    begun("c", MIDDLE),
    stepped("c", MIDDLE, LATE),  # 11
    ended("b", MIDDLE),
    ended("c", MIDDLE),
    begun("d", MIDDLE),  # open at the snapshot
    stepped("d", MIDDLE, LATE),  # 15
]
COVERED = len(HISTORY)
TAIL: list[Record] = [begun("e", MIDDLE), stepped("e", MIDDLE, LATE), ended("e", MIDDLE), stepped("d", OLD)]
COUNTING = [2, 5, 11, 15, COVERED + 2]
"""The offsets of the outcomes that count; the snapshot is one record."""


@pytest.fixture
async def log() -> MemoryLog:
    """A log with all that, whose Snapshot covers the history."""
    log = MemoryLog(1)
    engine = Engine(EngineSettings(), {}, Registry(None, {}), Random(0))
    for offset, record in enumerate(HISTORY):
        if not isinstance(record, bytes) and (record.token in (OLD, MIDDLE)) and offset != 7:
            engine.apply(0, offset, record)
    [snapshot] = cut(engine, 0, Header(b"snapshot", COVERED, MIDDLE, OLD, LATE))
    assert snapshot is not None
    for record in [*HISTORY, snapshot, *TAIL]:
        log.storage.append(0, [record if isinstance(record, bytes) else encode(record)])
    await log.save_pointer(0, Pointer(position=COVERED, covered=COVERED))
    return log


@pytest.fixture
def unfilled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The filler does not get to anything."""
    monkeypatch.setattr(Lane, "_fill", lambda *_: None)


@pytest.fixture
async def open_line(log: MemoryLog, tmp_path: Path) -> AsyncIterator[Open]:
    lines: list[Line] = []
    async with services("shipping") as world:

        async def open_line() -> Line:
            lines.append(await Line(tmp_path, log, world["shipping"], "me").ready())
            return lines[-1]

        yield open_line
        for line in lines:
            await line.close()


async def filled(line: Line) -> Line:
    while not line.view.filled(0):  # noqa: ASYNC110  # nothing tells of it
        await asyncio.sleep(0)
    return line


def type_of(line: Line) -> Callable[[str], str]:
    def ask(id: str) -> str:
        command = line.pipeline.engine.commands.get(CommandId(id))
        if command is not None:
            return command.submitted.type
        found = line.view.get(id)
        return found.type if found is not None else "unknown"

    return ask


async def told(line: Line, start: str | None = None) -> list[OutcomeItem]:
    begin = outcomes.Start(start, 1)
    batches = outcomes.stream(line.pipeline, "shipping", begin, follow=False, type_of=type_of(line))
    return [item async for batch in batches for item in batch]


def offsets(items: list[OutcomeItem]) -> list[int]:
    assert [item.type for item in items] == [f"type-of-{item.command_id}" for item in items]
    assert all(item.outcome == {"of": item.command_id} for item in items)
    return [int(item.position.split(":")[1]) for item in items]


async def test_a_stream_has_what_counts(open_line: Open) -> None:
    """From the beginning or from any place; what fenced owners wrote is not in it, nor what belongs to others."""
    line = await filled(await open_line())
    assert offsets(await told(line)) == COUNTING
    for start in range(COVERED + 6):
        assert offsets(await told(line, f"0:{start}")) == [offset for offset in COUNTING if offset >= start]


@pytest.mark.usefixtures("unfilled")
async def test_a_stream_from_a_view_that_is_not_filled_has_the_same(open_line: Open) -> None:
    """It reads on from where the view knows what counts, and tells nothing before it has come to its place."""
    line = await open_line()
    assert not line.view.filled(0)
    for start in range(COVERED + 6):
        assert offsets(await told(line, f"0:{start}")) == [offset for offset in COUNTING if offset >= start]


async def test_a_stream_begins_at_a_time(open_line: Open) -> None:
    """By the time of the outcome itself."""
    line = await filled(await open_line())
    assert offsets(await told(line, "1970-01-02T00:00:00Z")) == [11, 15, COVERED + 2]
    assert await told(line, "1970-01-03T00:00:00Z") == []


async def test_a_stream_of_a_trimmed_log_begins_with_what_is_there(log: MemoryLog, open_line: Open) -> None:
    """A start below is the first offset that is left."""
    line = await filled(await open_line())
    await log.trim(0, 11)
    await line.view.forget_below(0, 11)
    assert offsets(await told(line)) == [11, 15, COVERED + 2]
    assert offsets(await told(line, "0:3")) == [11, 15, COVERED + 2]
    assert offsets(await told(line, "0:12")) == [15, COVERED + 2]


@pytest.mark.usefixtures("unfilled")
async def test_a_stream_waits_where_nobody_knows_what_counts(log: MemoryLog, open_line: Open) -> None:
    """The log was trimmed, and the filler has not found its beginning yet: ask again; above it, all is told."""
    await log.trim(0, 12)
    line = await open_line()
    with pytest.raises(Unavailable, match="not known yet") as refused:
        await told(line)
    assert isinstance(refused.value, CoordinatorError)
    assert refused.value.retryable
    assert offsets(await told(line, f"0:{COVERED}")) == [COVERED + 2]


@pytest.mark.usefixtures("unfilled")
async def test_a_stream_follows(log: MemoryLog, open_line: Open) -> None:
    """What becomes durable comes after what was there, while the view is filled beneath."""
    line = await open_line()
    begin = outcomes.Start("0:3", 1)
    stream = outcomes.stream(line.pipeline, "shipping", begin, follow=True, type_of=type_of(line))
    items = await anext(stream)
    assert [item.position for item in items] == [f"0:{offset}" for offset in COUNTING[1:]]
    await Filler(log, line.view, line.pipeline.engine, 0, upto=COVERED).run()
    seen = line.submit("fresh")
    async with asyncio.timeout(10):
        later = await anext(stream)
        await seen.until("final")
    assert [item.command_id for item in later] == ["fresh"]
    await stream.aclose()
