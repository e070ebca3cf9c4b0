"""A filler in trouble: a log or a view that refuses, another history, a trimmed head, a stop at any moment."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any, NoReturn

import pytest

from coordinator import filler as filling
from coordinator.engine.engine import Engine
from coordinator.engine.registry import Registry
from coordinator.engine.snapshots import Header, cut
from coordinator.errors import CorruptLog, Unavailable
from coordinator.filler import Filler
from coordinator.log import memory
from coordinator.log.memory import MemoryLog
from coordinator.model.ids import CommandId
from coordinator.model.records import SCHEMA, Epoch, Finished, Link, Outcome, Record, Submitted, raw
from coordinator.model.settings import EngineSettings
from coordinator.view import View
from coordinator.wire.codec import encode

TOKEN, NEXT = b"token--1", b"token--2"
LARGE = 300_000


def never_shown(_partition: int, _records: Any) -> NoReturn:
    raise AssertionError("nobody asks how it looks")


def command(n: int, token: bytes = TOKEN) -> list[Record]:
    """Three records of the command n: begun, one outcome, ended."""
    id = CommandId(f"c{n}")
    return [
        Submitted(SCHEMA, token, n, id, "T", 1, raw(n), b"f" * 16),
        Outcome(SCHEMA, token, n, id, "step", "s", 1, raw("x")),
        Finished(SCHEMA, token, n, id, "completed"),
    ]


class Place:
    """A log, a view of it, and the engine of an owner; the owner's replay began at ``upto``."""

    def __init__(self, directory: Path, count: int) -> None:
        self.log = MemoryLog(1)
        self.records: list[Record] = [Epoch(SCHEMA, TOKEN, 1, "a", "a")]
        for n in range(count):
            self.records += command(n)
        self.log.storage.append(0, [encode(record) for record in self.records])
        self.upto = len(self.records)
        self.count = count
        self.engine = Engine(EngineSettings(), {}, Registry(None, {}), Random(0))
        self.path = directory / "view.sqlite3"
        self.damaged: list[Unavailable] = []
        self.view = self.opened()

    def opened(self) -> View:
        """As the next owner has it."""
        view = View(self.path, never_shown)
        view.open()
        view.on_damage = self.damaged.append
        view.begin(0, TOKEN, self.upto, TOKEN)
        view.reached(0, self.upto, self.upto)
        return view

    def snapshot(self, covered: int) -> Link:
        """Appends the snapshot of what is below an offset."""
        engine = Engine(EngineSettings(), {}, Registry(None, {}), Random(0))
        for offset, record in enumerate(self.records[:covered]):
            engine.apply(0, offset, record)
        head = Header(b"%08d" % covered, covered, TOKEN, TOKEN, 1)
        parts = [part for part in cut(engine, 0, head) if part is not None]
        return Link(covered, self.log.storage.append(0, [encode(part) for part in parts]), 1)

    def filler(self, *chain: Link) -> Filler:
        return Filler(self.log, self.view, self.engine, 0, upto=self.upto, chain=chain, timeout_ms=200)

    async def until(self, watermark: int) -> None:
        """Returns once the view is filled so far."""
        while self.view.watermark(0)[0] < watermark:  # noqa: ASYNC110  # nothing tells of it, and nothing else needs to
            await asyncio.sleep(0)

    def known(self) -> list[int]:
        """Which of the commands are in the view, each with all of its records."""
        found = [self.view.records(f"c{n}") for n in range(self.count)]
        assert all(len(each[1]) == 3 for each in found if each is not None)
        return [n for n, each in enumerate(found) if each is not None]


@pytest.fixture(autouse=True)
def small_and_impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RETRY_S": 0.01, "FILL_ROWS": 5, "SLICE_S": 0.0}.items():
        monkeypatch.setattr(filling, name, value)
    monkeypatch.setattr(memory, "_PAGE", 20)


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    place = Place(tmp_path, 40)
    yield place
    await place.view.close()


async def test_a_log_that_cannot_be_read_is_waited_for(place: Place) -> None:
    """What was read stays read, and when the log answers again the filler goes on."""
    fill = asyncio.create_task(place.filler().run())
    await place.until(30)
    place.log.break_reads()
    await asyncio.sleep(0.05)
    assert not fill.done()
    place.log.mend_reads()
    await fill
    assert place.known() == list(range(40))
    assert place.view.filled(0)


async def test_a_filler_that_is_stopped_leaves_what_it_has_put(place: Place) -> None:
    """The next process's filler begins there, and reads nothing twice that it need not."""
    fill = asyncio.create_task(place.filler().run())
    await place.until(60)
    fill.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await fill
    await place.view.close()
    place.view = place.opened()
    reached, resume = place.view.watermark(0)
    assert 60 <= reached < place.upto
    assert place.known() == [n for n in range(40) if 3 * n + 3 < reached]
    again = place.filler()
    await again.run()
    assert again.records == place.upto - resume
    assert place.known() == list(range(40))


async def test_a_full_disk_is_waited_for(place: Place) -> None:
    """Nothing more gathers in memory until there is room."""
    place.view._writer.execute("PRAGMA max_page_count=1")
    fill = asyncio.create_task(place.filler().run())
    await asyncio.sleep(0.1)
    assert not fill.done()
    assert 0 < len(place.view._pending) <= 2 * filling.FILL_ROWS
    place.view._writer.execute("PRAGMA max_page_count=1000000")
    await fill
    assert place.known() == list(range(40))


async def test_another_history_below_the_owners_snapshot_is_noticed(place: Place) -> None:
    """The log was put back and has grown another way: the view forgets, and everything is to be replayed."""
    place.view.begin(0, TOKEN)
    place.view.saw(0, 0, TOKEN)
    place.view.saw(0, 10, NEXT)
    place.view.reached(0, 20, 20)
    place.view.begin(0, TOKEN, place.upto, TOKEN)
    await place.filler().run()
    assert not place.view.filled(0)
    assert [told.detail for told in place.damaged] == [
        "the log was put back in time, the view was not; the view is made anew"
    ]


async def test_a_history_that_went_on_elsewhere_is_noticed(place: Place) -> None:
    """The view knows the owner of before; the log was cut below what the view has seen, and another one has written."""
    place.view.begin(0, TOKEN)
    place.view.saw(0, 0, TOKEN)
    place.view.reached(0, 40, 40)
    late = [Epoch(SCHEMA, b"token--3", 1, "a", "a"), *command(98, b"token--3"), Epoch(SCHEMA, NEXT, 1, "a", "a")]
    place.records[38:43] = late
    place.log.storage.records[0][38:43] = [encode(record) for record in late]
    place.view.begin(0, TOKEN, place.upto, NEXT)
    await place.filler().run()
    assert len(place.damaged) == 1


async def test_a_log_that_must_not_be_read_on_leaves_the_view_incomplete(place: Place) -> None:
    """An Epoch that cannot be read: whose records count behind it nobody knows."""
    place.log.storage.records[0][60] = b"\x96\x00\x09\xc4\x08" + NEXT  # of a newer schema
    with pytest.raises(CorruptLog, match="offset 60"):
        await place.filler().run()
    assert not place.view.filled(0)


async def test_a_nearer_snapshot_is_taken(place: Place) -> None:
    """A command that waits since the beginning does not mean that all is read again."""
    place.records[1:4] = [place.records[1], *command(99)[:2]]  # c0 stays open
    place.log.storage.records[0][2:4] = [encode(record) for record in place.records[2:4]]
    links = [place.snapshot(70), place.snapshot(90)]
    await place.view.fill(0, [], [(0, TOKEN)], 0, 100, 1)
    filler = place.filler(*links)
    await filler.run()
    assert filler.records == place.upto - 90
    assert place.known() == list(range(33, 40))


async def test_in_a_trimmed_log_the_earliest_snapshot_is_the_beginning(place: Place) -> None:
    """What ended above it is there with all of its records, also of what began in the part that is gone."""
    links = [place.snapshot(covered) for covered in (30, 51, 53, 90)]
    await place.log.trim(0, 53)
    filler = place.filler(*links)
    await filler.run()
    assert filler.records == place.upto - 53
    assert place.known() == list(range(17, 40))
    assert [place.view.token_at(0, offset) for offset in (53, place.upto)] == [TOKEN, TOKEN]


async def test_a_trim_while_it_is_filled_is_followed(place: Place) -> None:
    """The filler goes on above what is gone."""
    links = [place.snapshot(53), place.snapshot(100)]
    fill = asyncio.create_task(place.filler(*links).run())
    await place.until(20)
    reached = place.view.watermark(0)[0]
    await place.log.trim(0, 100)
    await fill
    assert set(range(33, 40)) <= set(place.known())
    assert {n for n in range(40) if 3 * n + 3 < reached} <= set(place.known())
    assert place.view.filled(0)


async def test_large_snapshots_on_the_way_are_not_decoded(place: Place) -> None:
    """They finish nothing; and a torn one is no reason to stop."""
    torn = b"\x9f\x08\x01\xc4\x08" + TOKEN + b"\xff" * LARGE
    place.log.storage.records[0][61] = torn
    await place.filler().run()
    assert place.known() == [n for n in range(40) if n != 20]
