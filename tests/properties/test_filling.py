"""Whatever becomes of its owner, its process and its log: the view comes to have what a fold of the whole log has."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any, NoReturn
from unittest import mock

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coordinator import filler, recovery
from coordinator.admission.receipts import RECEIPT_BYTES
from coordinator.engine.engine import Engine
from coordinator.engine.registry import Registry
from coordinator.engine.snapshots import Header, cut
from coordinator.filler import Filler
from coordinator.log.base import Pointer
from coordinator.log.memory import MemoryLog
from coordinator.log.owned import OwnedPartition, SteppedDown
from coordinator.marks import in_force
from coordinator.model.ids import CommandId
from coordinator.model.records import SCHEMA, Epoch, Finished, Link, Outcome, Record, Submitted, raw
from coordinator.model.settings import EngineSettings
from coordinator.ownership.validity import Validity
from coordinator.replaying import Replay, finished_command, reached
from coordinator.view import FinishedCommand, View
from coordinator.wire.codec import decode, encode

Choose = Callable[[int], int]
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # where the many small files cost no sync
IDS = [CommandId(f"c{n}") for n in range(6)]


def new_engine() -> Engine:
    return Engine(EngineSettings(), {}, Registry(None, {}), Random(0))


def never_shown(_partition: int, _records: Any) -> NoReturn:
    raise AssertionError("nobody asks for a command")


class World:
    """One partition of a log that others write to as well, and one instance with a view; ``choose(n)`` is below n."""

    def __init__(self, directory: Path, choose: Choose) -> None:
        self.path = directory / "view.sqlite3"
        self.choose = choose
        self.log = MemoryLog(1)
        self.everything: list[bytes] = []  # the whole log, what was trimmed included
        self.now = 1_000
        self.tokens: list[bytes] = []
        self.links: list[Link] = []
        self.view = self.opened()
        self.owned: OwnedPartition | None = None
        self.engine = new_engine()
        self.filling: asyncio.Task[None] | None = None

    def opened(self) -> View:
        view = View(self.path, never_shown)
        view.open()
        return view

    # ------------------------------------------------------------ the log

    async def append(self, records: Sequence[Record]) -> None:
        """By whoever owns the partition."""
        writer = await self.log.writer(0)
        data = [encode(record) for record in records]
        self.everything += data
        await writer.append(data)

    def some_records(self, token: bytes) -> list[Record]:
        """Of commands in any order; but an owner does not begin one anew before it has heard of its end."""
        records: list[Record] = []
        ids = list(IDS)
        for _ in range(1 + self.choose(5)):
            self.now += 1
            id = ids[self.choose(len(ids))]
            match self.choose(3):
                case 0:
                    records.append(Submitted(SCHEMA, token, self.now, id, "T", 1, raw(1), b"f" * 16))
                case 1:
                    step = f"s{self.choose(3)}"
                    records.append(Outcome(SCHEMA, token, self.now, id, step, "s", 1, raw(self.now)))
                case _:
                    records.append(Finished(SCHEMA, token, self.now, id, "completed"))
                    ids.remove(id)
        return records

    def fold(self) -> tuple[Engine, list[FinishedCommand], list[tuple[int, bytes]]]:
        """What the whole log comes to: the engine, all that finished, and the Epochs."""
        engine, validity, finished, epochs = new_engine(), Validity(), [], []
        for offset, data in enumerate(self.everything):
            record = decode(data, partition=0, offset=offset)
            if isinstance(record, Epoch):
                epochs.append((offset, record.token))
            if validity.admit(offset, record):
                engine.apply(0, offset, record)
                finished += [finished_command(command) for command in engine.take_replayed()]
        return engine, finished, epochs

    async def stale(self) -> None:
        """A fenced owner's late records land."""
        if len(self.tokens) > 1:
            await self.append(self.some_records(self.tokens[self.choose(len(self.tokens) - 1)]))

    async def snapshot(self) -> None:
        """The owner takes a snapshot, and the pointer may or may not be saved."""
        if not self.tokens:
            return
        engine, _, epochs = self.fold()
        covered, token = len(self.everything), self.tokens[-1]
        head = Header(b"%08d" % covered, covered, token, epochs[0][1], self.now)
        first = self.log.storage.first[0]
        chain = [link for link in self.links if link.covered >= first]
        parts = [part for part in cut(engine, 0, head, chain=chain) if part is not None]
        if self.owned is not None:
            await self.act(parts)
        else:
            await self.append([_stamped(part, token) for part in parts])
        if len(self.everything) > covered:
            self.links.append(Link(covered, covered, self.now))
            if self.choose(3):
                await self.log.save_pointer(0, Pointer(position=covered, covered=covered))

    async def trim(self) -> None:
        """The log is cut at what a snapshot covers."""
        if self.links:
            covered = self.links[self.choose(len(self.links))].covered
            first = await self.log.trim(0, covered)
            if self.choose(2):
                await self.view.forget_below(0, first)

    async def another(self) -> None:
        """Another instance takes the partition, and writes."""
        token = b"other%03d" % len(self.tokens)
        self.tokens.append(token)
        await self.append([Epoch(SCHEMA, token, self.now, "other", ""), *self.some_records(token)])
        await self.lose()

    # ------------------------------------------------------------ the instance

    async def acquire(self) -> None:
        await self.lose()
        start = await recovery.find(self.log, 0)
        owned = OwnedPartition(self.log, 0, instance="a", address="a", clock=lambda: self.now)
        self.engine = new_engine()
        replay = Replay(self.engine, self.view, 0, start)
        await replay.restore()
        self.everything.append(encode(Epoch(SCHEMA, owned.token, self.now, "a", "a")))
        self.tokens.append(owned.token)
        epoch = await owned.acquire(replay.records, start.offset, start.token_in_force)
        assert not self.view.ahead(0, epoch + 1)
        self.engine.open(0, owned.token, epoch)
        self.owned = owned
        chain = [] if start.snapshot is None else [*start.snapshot.chain, start.snapshot.link]
        filler = Filler(self.log, self.view, self.engine, 0, upto=start.offset, chain=chain)
        self.filling = asyncio.create_task(filler.run())

    async def work(self) -> None:
        """The owner appends, be it this instance or another."""
        if self.owned is not None:
            await self.act(self.some_records(b""))
        elif self.tokens:
            await self.append(self.some_records(self.tokens[-1]))

    async def act(self, records: Sequence[Record]) -> None:
        assert self.owned is not None
        stamped = [_stamped(record, self.owned.token) for record in records]
        data = [encode(record) for record in stamped]
        self.everything += data
        base = await self.owned.append(data)
        for offset, record in enumerate(stamped, base):
            self.engine.apply(0, offset, record)
        for command in self.engine.take(self.now).finished:
            self.view.put(finished_command(command))
        reached(self.engine, self.view, 0, base + len(data))

    async def fill(self) -> None:
        """The filler, and whatever else is under way, gets some turns."""
        for _ in range(1 + self.choose(12)):
            await asyncio.sleep(0)

    async def flush(self) -> None:
        await self.view.flush()

    async def lose(self) -> None:
        if self.filling is not None:
            self.filling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.filling
            self.filling = None
        if self.owned is not None:
            with contextlib.suppress(SteppedDown):
                await self.owned.close()
            self.owned = None

    async def crash(self) -> None:
        """The process is killed: what the view had in memory is gone."""
        await self.lose()
        kill(self.view)
        self.view = self.opened()

    async def end(self) -> None:
        """Owned, filled and written."""
        await self.acquire()
        assert self.filling is not None
        async with asyncio.timeout(20):
            await self.filling
        assert self.view.filled(0)
        await self.view.forget_below(0, self.log.storage.first[0])
        await self.view.flush()


def kill(view: View) -> None:
    """As kill -9 leaves the file."""
    if view._flush_task is not None:
        view._flush_task.cancel()
    if view._timer is not None:
        view._timer.cancel()
    for thread in (view._thread, view._aside):
        thread.shutdown(wait=True, cancel_futures=True)
    view._writer.close()
    view._reader.close()


def _stamped(record: Record, token: bytes) -> Record:
    return decode(encode(record).replace(b"\xc4\x00", b"\xc4" + bytes([len(token)]) + token, 1), partition=0, offset=0)


DEEDS = [
    World.work,
    World.work,
    World.work,
    World.fill,
    World.fill,
    World.flush,
    World.snapshot,
    World.stale,
    World.another,
    World.acquire,
    World.crash,
    World.trim,
]


async def live(world: World, steps: int) -> None:
    await world.acquire()
    for _ in range(steps):
        await DEEDS[world.choose(len(DEEDS))](world)
    await world.end()


async def rows_of(view: View) -> dict[str, list[tuple[int, bytes]]]:
    return {id: (view.records(id) or (0, []))[1] for (id,) in view._ask("SELECT id FROM commands", ())}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_the_view_comes_to_have_what_the_whole_log_has(data: st.DataObject) -> None:
    """Any order of work, takeovers, snapshots, trims, kills and interrupted fillings ends in the rows, the receipts and
    the Epochs of a full fold."""

    def choose(n: int) -> int:
        return data.draw(st.integers(0, n - 1))

    async def run(directory: Path) -> None:
        world = World(directory, choose)
        try:
            await live(world, data.draw(st.integers(0, 30)))
            await check(world)
        finally:
            await world.lose()
            kill(world.view)

    small: dict[str, Any] = {
        "FILL_ROWS": choose(3),
        "FILL_RECORDS": choose(5),
        "SLICE_S": 0.0,
        "_LOOK_EVERY": 1 + choose(3),
    }
    with mock.patch.multiple(filler, **small), tempfile.TemporaryDirectory(dir=MEMORY) as directory:
        asyncio.run(run(Path(directory)))


async def check(world: World) -> None:
    _, finished, epochs = world.fold()
    first, end = await world.log.bounds(0)
    latest = {command.id: command for command in finished if command.end >= first}
    assert await rows_of(world.view) == {id: command.records for id, command in latest.items()}
    receipts = b"".join([page async for page in world.view.receipts(0, page=2)])
    expected = sorted(command.receipt() for command in latest.values())
    assert [receipts[at : at + RECEIPT_BYTES] for at in range(0, len(receipts), RECEIPT_BYTES)] == expected
    assert world.view.watermark(0)[0] == end
    known = world.view.epochs(0)
    for offset in range(first, end + 1):
        assert in_force(known, offset) == in_force(epochs, offset) == world.view.token_at(0, offset)
