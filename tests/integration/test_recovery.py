"""Where a replay begins: hints that are right, stale or nonsense; logs that are whole and logs whose head is gone."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
from msgspec import structs

from coordinator.engine.engine import Engine
from coordinator.engine.registry import Registry
from coordinator.engine.snapshots import Header, cut, restore
from coordinator.errors import CorruptLog
from coordinator.log.base import Log, LogError, Pointer
from coordinator.log.kafka import KafkaLog
from coordinator.log.memory import MemoryLog
from coordinator.log.owned import OwnedPartition
from coordinator.log.sqlite import SqliteLog
from coordinator.model.ids import CommandId
from coordinator.model.records import SCHEMA, Epoch, Finished, Link, Record, Snapshot, Submitted, raw
from coordinator.model.settings import EngineSettings
from coordinator.recovery import Start, due, find, lengthened, trim_point
from coordinator.wire.codec import decode, encode

TOKEN, RIVAL, NEXT = b"owner...", b"rival...", b"next...."
SMALL = 1_500  # bytes of a part: one command each


@pytest.fixture(params=["memory", "sqlite", "kafka"])
def kind(request: pytest.FixtureRequest) -> str:
    """The implementation, and for Kafka its broker: ``kafka host:port``."""
    return f"kafka {request.getfixturevalue('kafka_bootstrap')}" if request.param == "kafka" else request.param


@pytest.fixture
async def log(kind: str, tmp_path: Path) -> AsyncIterator[Log]:
    match kind:
        case "memory":
            log: Log = MemoryLog()
        case "sqlite":
            log = SqliteLog(tmp_path / "data", 1)
        case _:
            log = KafkaLog(kind.split()[1], f"recovery-{uuid.uuid4().hex}", 1, open_timeout_ms=20_000)
    await log.open()
    yield log
    await log.close()


def engine() -> Engine:
    return Engine(EngineSettings(), {}, Registry(None, {}), Random(7))


class History:
    """A log's partition and an engine that has folded it: what an owner has."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.engine = engine()
        self.snapshots = 0
        self.end = 0

    async def begin(self, token: bytes = TOKEN) -> None:
        self.token = token
        await self.append(Epoch(SCHEMA, token, 1, "i", "a"))

    async def append(self, *records: Record) -> int:
        """Appends and folds; returns the offset of the first."""
        writer = await self.log.writer(0)
        base = await writer.append([encode(record) for record in records])
        await writer.close()
        for offset, record in enumerate(records, base):
            self.engine.apply(0, offset, record)
        self.end = base + len(records)
        return base

    async def submit(self, *ids: str) -> None:
        await self.append(
            *(Submitted(SCHEMA, self.token, 5, CommandId(id), "T", 1, raw("x" * 1_000), b"f") for id in ids)
        )

    async def finish(self, *ids: str) -> None:
        await self.append(*(Finished(SCHEMA, self.token, 6, CommandId(id), "completed") for id in ids))

    def cut(self) -> list[Snapshot]:
        """A snapshot of this moment, not written yet."""
        self.snapshots += 1
        header = Header(b"snapshot%d" % self.snapshots, self.end, self.token, TOKEN, 77)
        return [part for part in cut(self.engine, 0, header, part_bytes=SMALL) if part is not None]

    async def snapshot(self, *, point: bool = True) -> Pointer:
        """Takes one, as an owner does."""
        covered = self.end
        pointer = Pointer(position=await self.append(*self.cut()), covered=covered)
        if point:
            await self.log.save_pointer(0, pointer)
        return pointer

    def under_way(self) -> dict[str, Any]:
        return {id: command.history for id, command in self.engine.replaying.get(0, {}).items()}


@pytest.fixture
async def history(log: Log) -> History:
    history = History(log)
    await history.begin()
    return history


async def recovered(log: Log, start: Start) -> Engine:
    """What the next owner knows when it has acquired."""
    found = engine()
    if start.snapshot is not None:
        for _ in restore(found, 0, start.snapshot):
            await asyncio.sleep(0)

    def fold(records: Sequence[tuple[int, Any]]) -> None:
        for offset, record in records:
            if not isinstance(record, Epoch):
                found.apply(0, offset, record)

    owned = OwnedPartition(log, 0, instance="next", address="b", clock=lambda: 9, token=lambda: NEXT)
    await owned.acquire(fold, start.offset, start.token_in_force)
    await owned.close()
    return found


async def check(history: History, start: Start) -> None:
    """From where it begins, a replay comes to what the owner knew."""
    found = await recovered(history.log, start)
    assert {id: command.history for id, command in found.replaying.get(0, {}).items()} == history.under_way()


# ---------------------------------------------------------------- a log that is whole


async def test_an_empty_log_is_read_from_its_start(log: Log) -> None:
    """The very first owner."""
    assert await find(log, 0) == Start(0, None, None, "the whole log: no snapshot is known")


async def test_without_a_hint_a_whole_log_is_read_whole(history: History) -> None:
    """A lost pointer costs time and nothing else."""
    await history.submit("c1", "c2")
    await history.snapshot(point=False)
    start = await find(history.log, 0)
    assert (start.offset, start.snapshot) == (0, None)
    await check(history, start)


async def test_the_hint_leads_to_the_snapshot_and_the_rest_is_read(history: History) -> None:
    """Commands that began, went on and ended on either side of it are as the owner had them."""
    await history.submit("c1", "c2", "c3")
    await history.finish("c1")
    pointer = await history.snapshot()
    await history.submit("c4")
    await history.finish("c2")
    start = await find(history.log, 0)
    assert (start.offset, start.token_in_force) == (pointer.covered, TOKEN)
    assert start.snapshot is not None
    assert (start.snapshot.position, start.snapshot.identity) == (pointer.position, TOKEN)
    assert start.why == f"the snapshot at 0:{pointer.position}, which covers what is below {pointer.covered}"
    await check(history, start)
    assert list(history.under_way()) == ["c3", "c4"]


async def test_what_lies_between_the_covered_offset_and_the_snapshot_counts(history: History) -> None:
    """Its own place means nothing: records may have come in between, also among its parts."""
    await history.submit("c1", "c2", "c3")
    parts, covered = history.cut(), history.end
    await history.submit("c4")
    position = await history.append(parts[0])
    await history.finish("c2")
    for part in parts[1:]:
        await history.append(part)
        await history.submit(f"c{5 + part.part}")
    await history.log.save_pointer(0, Pointer(position, covered))
    start = await find(history.log, 0)
    assert start.offset == covered < position
    await check(history, start)


async def test_a_fenced_owners_snapshot_is_merely_old(history: History) -> None:
    """It lands behind the next Epoch, and overwrites the pointer: what it says of its offset is right all the same."""
    await history.submit("c1", "c2")
    late, covered = history.cut(), history.end
    await history.begin(RIVAL)
    await history.submit("c3")
    await history.finish("c1")
    writer = await history.log.writer(0)
    position = await writer.append([encode(part) for part in late])
    await writer.close()
    await history.log.save_pointer(0, Pointer(position, covered))
    await history.submit("c4")
    start = await find(history.log, 0)
    assert (start.offset, start.token_in_force) == (covered, TOKEN)
    await check(history, start)


async def test_a_hint_to_an_older_snapshot_is_good_enough(history: History) -> None:
    """The newer one is met on the way and changes nothing."""
    await history.submit("c1", "c2")
    older = await history.snapshot()
    await history.finish("c1")
    await history.snapshot()
    await history.submit("c3")
    await history.log.save_pointer(0, older)
    start = await find(history.log, 0)
    assert start.offset == older.covered
    await check(history, start)


@pytest.mark.parametrize(
    ("position", "says"),
    [
        pytest.param(1, "the log has something else there", id="no snapshot"),
        pytest.param(4, "the log has something else there", id="the middle of one"),
        pytest.param(1_000, "nothing is left: the log is from 0 to 6", id="beyond the end"),
        pytest.param(5, "the log has only 1 parts, and not the last", id="torn at the end"),
    ],
)
async def test_a_hint_that_leads_nowhere_is_passed_over(history: History, position: int, says: str) -> None:
    """Anybody may have written it; the log itself is whole, so it is read."""
    await history.submit("c1", "c2")
    await history.snapshot()
    await history.append(history.cut()[0])
    await history.log.save_pointer(0, Pointer(position, 3))
    start = await find(history.log, 0)
    assert (start.offset, start.token_in_force, start.snapshot) == (0, None, None)
    assert start.why.endswith(f"the snapshot that should be at 0:{position}, {says}")
    await check(history, start)


async def test_parts_that_do_not_belong_together_are_no_snapshot(history: History) -> None:
    """Whatever wrote them: the log is whole, so nobody needs to believe it."""
    await history.submit("c1", "c2")
    first, last = history.cut()
    position = await history.append(first, structs.replace(last, covered=1))
    await history.log.save_pointer(0, Pointer(position, 3))
    start = await find(history.log, 0)
    assert (start.offset, start.snapshot) == (0, None)
    assert start.why.endswith("its parts do not belong together")


# ---------------------------------------------------------------- a log whose head is gone


async def test_a_trimmed_log_is_read_from_its_snapshot(history: History) -> None:
    """The Epoch in force is deleted; the snapshot says which it was."""
    await history.submit("c1", "c2")
    pointer = await history.snapshot()
    await history.submit("c3")
    assert await history.log.trim(0, pointer.covered) == pointer.covered
    start = await find(history.log, 0)
    assert (start.offset, start.token_in_force) == (pointer.covered, TOKEN)
    await check(history, start)


@pytest.mark.parametrize("hint", [None, Pointer(0, 0), Pointer(1_000_000, 5)])
async def test_in_a_trimmed_log_the_snapshot_that_covers_most_is_found_by_reading(
    history: History, hint: Pointer | None
) -> None:
    """The hint is lost, deleted or nonsense, and the newest of all is torn: two owners may write at once."""
    await history.submit("c1", "c2", "c3")
    first = await history.snapshot(point=False)
    old, old_covered = history.cut(), history.end
    await history.finish("c2")
    best = await history.snapshot(point=False)
    await history.submit("c5")
    torn = history.cut()
    assert len(torn) == 3
    await history.append(torn[0], *old)
    await history.append(*torn[2:])
    assert first.covered < old_covered < best.covered
    await history.submit("c4")
    if hint is not None:
        await history.log.save_pointer(0, hint)
    await history.log.trim(0, first.covered)
    start = await find(history.log, 0)
    assert start.offset == best.covered
    assert start.snapshot is not None
    assert start.snapshot.position == best.position
    assert f"found by reading the log from {first.covered}" in start.why
    await check(history, start)


async def test_a_snapshot_older_than_the_head_is_not_believed(history: History) -> None:
    """A late one covers less than was deleted: what came between would be lost."""
    await history.submit("c1", "c2")
    late, covered = history.cut(), history.end
    await history.submit("c3")
    good = await history.snapshot(point=False)
    position = await history.append(*late)
    await history.log.trim(0, good.covered)
    await history.log.save_pointer(0, Pointer(position, covered))
    start = await find(history.log, 0)
    assert start.offset == good.covered
    await check(history, start)


async def test_a_trimmed_log_without_a_snapshot_is_refused(history: History) -> None:
    """Both guesses would lose or invent decisions, so nobody guesses; the text says what was found."""
    await history.submit("c1", "c2")
    late = history.cut()
    await history.submit("c3", "c4")
    await history.append(*late)
    await history.append(history.cut()[0])
    await history.log.trim(0, 4)
    with pytest.raises(CorruptLog) as refused:
        await find(history.log, 0)
    for clause in ("partition 0 of the log begins at offset 4", "1 that cover less, 1 torn", "Restore the head"):
        assert clause in str(refused.value)


async def test_a_trimmed_log_that_is_empty_is_refused(history: History) -> None:
    """Somebody deleted everything: what was under way is unknown, and a new Epoch would only hide that."""
    await history.submit("c1")
    await history.log.trim(0, history.end)
    with pytest.raises(CorruptLog, match="begins at offset 2"):
        await find(history.log, 0)


async def test_a_trimmed_log_that_begins_with_an_epoch_can_be_judged(history: History) -> None:
    """What counts can be told, as anywhere behind an Epoch."""
    await history.submit("c1")
    await history.finish("c1")
    epoch = history.end
    await history.begin(RIVAL)
    await history.submit("c2")
    await history.log.trim(0, epoch)
    start = await find(history.log, 0)
    assert (start.offset, start.token_in_force, start.snapshot) == (epoch, None, None)
    assert "from the Epoch at its start" in start.why
    await check(history, start)


async def test_a_snapshot_of_a_newer_version_is_named_when_nothing_else_helps(history: History) -> None:
    """The operator is told to start that version, not that the log is lost."""
    await history.submit("c1", "c2")
    (first, *rest) = history.cut()
    newer = bytearray(encode(first))
    newer[4 if newer[0] == 0xDC else 2] = 2  # behind the array's head and the kind
    writer = await history.log.writer(0)
    await writer.append([bytes(newer), *map(encode, rest)])
    await writer.close()
    await history.log.trim(0, 2)
    with pytest.raises(CorruptLog, match=r"schema version 2.*newer version.*Restore the head"):
        await find(history.log, 0)


async def test_a_damaged_record_elsewhere_is_not_the_searchs_business(history: History) -> None:
    """The fold judges it, if it comes there."""
    await history.submit("c1")
    writer = await history.log.writer(0)
    await writer.append([b"noise", encode(Epoch(SCHEMA, TOKEN, 1, "i", "a"))[:-3]])
    await writer.close()
    history.end += 2
    pointer = await history.snapshot(point=False)
    await history.log.trim(0, 1)
    assert (await find(history.log, 0)).offset == pointer.covered


async def test_a_log_that_does_not_answer_is_an_error_of_the_log() -> None:
    """To be asked again later: nothing is concluded from silence."""
    log = MemoryLog()
    await log.open()
    log.break_reads()
    with pytest.raises(LogError):
        await find(log, 0)


async def test_a_log_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A takeover must not hang on one broker."""
    log = MemoryLog()
    await log.open()

    async def silence(partition: int) -> tuple[int, int]:
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    monkeypatch.setattr(log, "bounds", silence)
    with pytest.raises(LogError, match="did not tell its bounds"):
        await find(log, 0, timeout_ms=10)


async def test_a_trimmed_log_recovers_again_and_again(history: History) -> None:
    """Owner after owner takes a snapshot and trims; a command that waits all along is never lost."""
    chain: list[Link] = []
    await history.submit("waits")
    for number in range(5):
        await history.submit(f"c{number}")
        await history.finish(f"c{number}")
        pointer = await history.snapshot()
        first, _ = await history.log.bounds(0)
        confirmed = Link(pointer.covered, pointer.position, number)
        trim = trim_point(first, chain, confirmed, history.end)
        assert trim.before == pointer.covered
        chain = lengthened(chain, confirmed, await history.log.trim(0, trim.before))
        start = await find(history.log, 0)
        await check(history, start)
        await history.begin(b"owner %02d" % number)
    assert list(history.under_way()) == ["waits"]
    assert decode(encode(history.cut()[0]), partition=0, offset=0)


# ---------------------------------------------------------------- when, and how far


def is_due(**given: Any) -> bool:
    usual = {"records_since": 0, "bytes_since": 0, "state_records": 0, "state_bytes": 0}
    return due(**{**usual, "rate_per_s": 100_000.0, "target_ms": 5_000, **given})


def test_a_snapshot_is_due_when_half_the_target_would_be_spent_on_the_tail() -> None:
    """The other half is for noticing the death, for acquiring and for going on."""
    assert not is_due(records_since=249_000)
    assert is_due(records_since=251_000)
    assert is_due(records_since=51_000, target_ms=1_000)
    assert is_due(records_since=26_000, rate_per_s=10_000)
    assert is_due(records_since=100, bytes_since=300_000_000)


def test_nothing_new_is_never_worth_a_snapshot() -> None:
    """However late a takeover would be."""
    assert not is_due(records_since=0, state_records=10_000_000)
    assert not is_due(records_since=0, target_ms=0)


def test_a_snapshot_never_costs_more_than_the_records_it_saves() -> None:
    """With much state it waits until the tail is as long: what is written at most doubles."""
    assert not is_due(records_since=299_000, state_records=300_000)
    assert is_due(records_since=300_000, state_records=300_000)
    assert not is_due(records_since=300_000, bytes_since=40_000_000, state_bytes=48_000_000)
    assert is_due(records_since=300_000, bytes_since=48_000_000, state_bytes=48_000_000)


def test_what_is_old_enough_and_covered_may_be_deleted() -> None:
    """The largest offset that a snapshot of the chain covers, below what is to be kept."""
    chain = [Link(100, 110, 1), Link(200, 210, 2), Link(300, 310, 3)]
    trim = trim_point(0, chain, Link(400, 410, 4), 250)
    assert (trim.before, trim.pin) == (200, "retain")
    assert "200 is the last below 250" in trim.why
    assert trim_point(0, chain, Link(400, 410, 4), 300).before == 300


def test_never_above_what_the_owner_has_seen_confirmed() -> None:
    """Not even where everything is too old."""
    trim = trim_point(0, [Link(100, 110, 1)], Link(400, 410, 4), 9_999)
    assert (trim.before, trim.pin) == (400, "snapshot")
    assert trim_point(0, [Link(100, 110, 1), Link(500, 510, 5)], Link(400, 410, 4), 9_999).before == 400
    assert trim_point(0, [Link(100, 110, 1)], None, 9_999)[:2] == (None, "snapshot")


@pytest.mark.parametrize(
    ("first", "chain", "retain", "pin", "says"),
    [
        pytest.param(0, [], None, "retain", "retain is not set", id="everything is kept"),
        pytest.param(50, [], 50, "retain", "no record there is too old", id="nothing is old enough"),
        pytest.param(400, [], 900, "snapshot", "covers 400, and the log begins at 400", id="trimmed already"),
        pytest.param(0, [Link(300, 310, 3)], 250, "chain", "first snapshot above 0 covers 300", id="no snapshot there"),
        pytest.param(300, [Link(300, 310, 3)], 350, "chain", "first snapshot above 300 covers 400", id="between two"),
    ],
)
def test_what_pins_the_log_is_said(first: int, chain: list[Link], retain: int | None, pin: str, says: str) -> None:
    """So that `log explain` can."""
    trim = trim_point(first, chain, Link(400, 410, 4), retain)
    assert (trim.before, trim.pin) == (None, pin)
    assert says in trim.why


def test_a_chain_forgets_what_lies_below_the_log() -> None:
    """The snapshot that covers just what was deleted stays: there the history begins."""
    chain = [Link(100, 110, 1), Link(200, 210, 2), Link(300, 310, 3)]
    assert lengthened(chain, Link(400, 410, 4), 200) == [*chain[1:], Link(400, 410, 4)]


def test_a_chain_stays_short_and_even() -> None:
    """After thousands of snapshots there are 64, from the first to the last, without large holes."""
    chain: list[Link] = []
    for number in range(5_000):
        chain = lengthened(chain, Link(number * 10, number * 10 + 5, number), 0)
    assert len(chain) == 64
    assert (chain[0].covered, chain[-1].covered) == (0, 49_990)
    gaps = [after.at - before.at for before, after in pairwise(chain)]
    assert max(gaps) < 4 * 5_000 / 64
