"""What every log promises (`coordinator.log.base`), asked of all three."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition  # type: ignore[import-untyped]
from aiokafka.structs import OffsetAndMetadata  # type: ignore[import-untyped]

from coordinator.errors import CorruptLog, StartupError
from coordinator.log.base import Log, LogError, Pointer, RecordTooLarge
from coordinator.log.kafka import KafkaLog
from coordinator.log.memory import MemoryLog, MemoryStorage
from coordinator.log.owned import OwnedPartition, SteppedDown
from coordinator.log.sqlite import SqliteLog
from coordinator.model.damaged import Damaged
from coordinator.model.ids import CommandId
from coordinator.model.records import Epoch, Outcome, Record, raw
from coordinator.wire.codec import encode

PARTITIONS = 2
Open = Callable[..., Awaitable[Log]]


@pytest.fixture(params=["memory", "sqlite", "kafka"])
def kind(request: pytest.FixtureRequest) -> str:
    """The implementation, and for Kafka its broker: ``kafka host:port``."""
    return f"kafka {request.getfixturevalue('kafka_bootstrap')}" if request.param == "kafka" else request.param


@pytest.fixture
async def open_log(kind: str, tmp_path: Path) -> AsyncIterator[Open]:
    """``await open_log()`` is one more process's view of the same storage."""
    opened: list[Log] = []
    storage = MemoryStorage(PARTITIONS)
    topic = f"contract-{uuid.uuid4().hex}"

    def build(partitions: int) -> Log:
        match kind:
            case "memory":
                return MemoryLog(partitions, storage=storage)
            case "sqlite":
                return SqliteLog(tmp_path / "data", partitions)
            case _:
                return KafkaLog(kind.split()[1], topic, partitions, open_timeout_ms=20_000)

    async def open_log(partitions: int = PARTITIONS) -> Log:
        log = build(partitions)
        await log.open()
        opened.append(log)
        return log

    yield open_log
    for log in opened:
        await log.close()


@pytest.fixture
async def log(open_log: Open) -> Log:
    return await open_log()


async def everything(log: Log, partition: int = 0, start: int = 0) -> list[tuple[int, bytes]]:
    return [record async for batch in log.read(partition, start) for record in batch]


async def session_append(log: Log, *batches: list[bytes], partition: int = 0) -> list[int]:
    """Appends in one session, one after the other; the base offsets."""
    writer = await log.writer(partition)
    try:
        return [await writer.append(batch) for batch in batches]
    finally:
        await writer.close()


# ---------------------------------------------------------------- storage


async def test_an_empty_log_has_nothing_to_read(log: Log) -> None:
    """A new log begins and ends at offset 0."""
    assert await log.bounds(0) == (0, 0)
    assert await log.end(0) == 0
    assert await everything(log) == []


async def test_offsets_are_contiguous_in_append_order(log: Log) -> None:
    """A batch of n takes n offsets from its base on, and the next batch follows it."""
    assert await session_append(log, [b"a", b"b"], [b"c"], [b"d", b"e", b"f"]) == [0, 2, 3]
    assert await everything(log) == list(enumerate([b"a", b"b", b"c", b"d", b"e", b"f"]))
    assert await log.bounds(0) == (0, 6)
    assert await log.end(0) == 6


async def test_partitions_do_not_mix(log: Log) -> None:
    """Each partition counts its own offsets."""
    await session_append(log, [b"zero"])
    assert await session_append(log, [b"one"], partition=1) == [0]
    assert await everything(log, 1) == [(0, b"one")]


async def test_overlapping_appends_keep_their_order(log: Log) -> None:
    """Batches of one session that are in flight together land in call order."""
    writer = await log.writer(0)
    bases = await asyncio.gather(*(writer.append([b"%d.0" % n, b"%d.1" % n]) for n in range(50)))
    await writer.close()
    assert bases == list(range(0, 100, 2))
    assert [data for _, data in await everything(log)] == [b"%d.%d" % (n, m) for n in range(50) for m in range(2)]


async def test_a_batch_stays_whole_among_other_sessions(open_log: Open) -> None:
    """Two processes append at once: their batches interleave, no batch is torn, no offset is used twice."""
    logs = [await open_log(), await open_log()]
    writers = [await log.writer(partition=1) for log in logs]

    async def write(who: int) -> dict[int, bytes]:
        landed = {}
        for n in range(30):
            # The broker may lock the older session out: then its batch did not land under the base it names.
            with contextlib.suppress(LogError):
                landed[await writers[who].append([b"%d/%d" % (who, n)] * 3)] = b"%d/%d" % (who, n)
        return landed

    landed = await asyncio.gather(write(0), write(1))
    for writer in writers:
        await writer.close()
    stored = dict(await everything(logs[0], 1))
    for base, data in (landed[0] | landed[1]).items():
        assert [stored[base + i] for i in range(3)] == [data] * 3
    assert not landed[0].keys() & landed[1].keys()


async def test_reading_goes_from_the_start_to_the_present_end(log: Log) -> None:
    """Reading begins exactly at the start asked for, crosses pages, and ends where the log ended at the call."""
    records = [b"%06d" % n + b"x" * 100 for n in range(5000)]
    await session_append(log, records[:4000], records[4000:])
    assert await everything(log, start=1234) == list(enumerate(records))[1234:]
    assert await everything(log, start=5000) == []
    reading = log.read(0, 4990)
    first = await anext(reading)
    await session_append(log, [b"later"])
    assert [data for batch in [first, *[b async for b in reading]] for _, data in batch] == records[4990:]


async def test_a_reading_may_be_abandoned(log: Log) -> None:
    """A reader that stops half way leaves the log readable from anywhere."""
    await session_append(log, [b"x%d" % n for n in range(3000)])
    async with contextlib.aclosing(log.read(0, 0)) as reading:
        await anext(reading)
    assert (await everything(log, start=7))[0] == (7, b"x7")
    assert (await everything(log, start=2998)) == [(2998, b"x2998"), (2999, b"x2999")]


async def test_records_are_bytes_of_any_kind_and_size(log: Log) -> None:
    """Empty, binary and megabyte records come back as they went in, also in a batch above any limit of one message."""
    records = [b"", bytes(range(256)), b"\x00" * 1_500_000, b"y" * 900_000, b"z"]
    assert await session_append(log, records) == [0]
    assert [data for _, data in await everything(log)] == records


async def test_the_storage_outlives_the_process(open_log: Open) -> None:
    """What one process appended, the next one reads and continues."""
    first = await open_log()
    await session_append(first, [b"a"])
    await first.close()
    second = await open_log()
    assert await session_append(second, [b"b"]) == [1]
    assert await everything(second) == [(0, b"a"), (1, b"b")]


async def test_another_number_of_partitions_is_refused(open_log: Open) -> None:
    """The number of partitions decides where a command lives, so it cannot change under a log."""
    await open_log()
    with pytest.raises(StartupError, match=r"(?s)2 partitions.* 3"):
        await open_log(3)


async def test_a_closed_session_appends_nothing(log: Log) -> None:
    """An append on a closed session is refused, and does not land."""
    writer = await log.writer(0)
    await writer.append([b"a"])
    await writer.close()
    with pytest.raises(LogError):
        await writer.append([b"b"])
    assert await everything(log) == [(0, b"a")]


# ---------------------------------------------------------------- pointers


async def test_pointers_are_kept(open_log: Open) -> None:
    """A pointer is None until saved; who saves last wins, and every process sees it."""
    log, other = await open_log(), await open_log()
    assert await log.load_pointer(1) is None
    await log.save_pointer(1, Pointer(position=41, covered=40))
    await log.save_pointer(1, Pointer(position=0, covered=0))
    assert await log.load_pointer(1) == Pointer(position=0, covered=0)
    await other.save_pointer(1, Pointer(position=977, covered=900))
    assert await log.load_pointer(1) == Pointer(position=977, covered=900)
    assert await log.load_pointer(0) is None
    await log.close()
    assert await (await open_log()).load_pointer(1) == Pointer(position=977, covered=900)


@pytest.mark.parametrize("garbage", ["", "xyz", "-7", "1.5", "٣", "9" * 40])
async def test_a_pointer_that_is_not_readable_is_none(log: Log, garbage: str) -> None:
    """Anybody may have written there: what is no pointer is as good as none, and the next one replaces it."""
    await log.save_pointer(0, Pointer(position=5, covered=3))
    match log:
        case KafkaLog():
            consumer = AIOKafkaConsumer(bootstrap_servers=log.bootstrap, group_id=log.name, enable_auto_commit=False)
            place = TopicPartition(log.topic, 0)
            consumer.assign([place])
            await consumer.start()
            await consumer.commit({place: OffsetAndMetadata(3, garbage)})
            await consumer.stop()
        case SqliteLog():
            with contextlib.closing(sqlite3.connect(log.path)) as db, db:
                db.execute("UPDATE partitions SET position = ? WHERE partition = 0", (garbage,))
        case _:
            pytest.skip("memory holds pointers, not text")
    assert await log.load_pointer(0) is None
    await log.save_pointer(0, Pointer(position=6, covered=4))
    assert await log.load_pointer(0) == Pointer(position=6, covered=4)


# ---------------------------------------------------------------- trimming


async def test_what_is_trimmed_is_gone_and_nothing_else(open_log: Open) -> None:
    """Below the trim point nothing can be read, above it everything can; offsets stay, for other processes too."""
    log, other = await open_log(), await open_log()
    await session_append(log, [b"a", b"b", b"c"], [b"d"])
    await session_append(log, [b"other"], partition=1)
    assert await log.trim(0, 2) == 2
    for each in (log, other):
        assert await each.bounds(0) == (2, 4)
        assert await everything(each, start=2) == [(2, b"c"), (3, b"d")]
        for start in (0, 1):
            with pytest.raises(LogError, match="below the log's start"):
                await everything(each, start=start)
        assert await everything(each, 1) == [(0, b"other")]
    assert await session_append(log, [b"e"]) == [4]


async def test_trimming_again_only_goes_forward(log: Log) -> None:
    """A second trim to the same place, or to one below, changes nothing; one above goes on from there."""
    await session_append(log, [b"x%d" % n for n in range(10)])
    assert await log.trim(0, 0) == 0
    assert await log.trim(0, 4) == 4
    assert await log.trim(0, 4) == 4
    assert await log.trim(0, 1) == 4
    assert await log.trim(0, 7) == 7
    assert await everything(log, start=7) == [(n, b"x%d" % n) for n in range(7, 10)]


async def test_a_trim_beyond_the_end_is_the_end(open_log: Open) -> None:
    """What is not there yet is not deleted beforehand; the offsets of an emptied log go on counting, after a restart
    too."""
    log = await open_log()
    await session_append(log, [b"a", b"b", b"c"])
    assert await log.trim(0, 1_000) == 3
    assert await log.bounds(0) == (3, 3)
    assert await everything(log, start=3) == []
    with pytest.raises(LogError, match="below the log's start"):
        await everything(log, start=2)
    await log.close()
    again = await open_log()
    assert await again.bounds(0) == (3, 3)
    assert await session_append(again, [b"d"]) == [3]
    assert await everything(again, start=3) == [(3, b"d")]


async def test_appends_go_on_during_a_trim(log: Log) -> None:
    """Appends land side by side while much is being deleted, and keep their offsets."""
    count = 20_000
    await session_append(log, *([b"x" * 50] * 5_000 for _ in range(count // 5_000)))
    writer = await log.writer(0)
    trimming = asyncio.create_task(log.trim(0, count - 1))
    bases: list[int] = []
    while not trimming.done() or len(bases) < 5:
        bases.append(await writer.append([b"during %d" % len(bases)]))
    await writer.close()
    assert await trimming == count - 1
    assert bases == list(range(count, count + len(bases)))
    assert await log.bounds(0) == (count - 1, count + len(bases))
    assert await everything(log, start=count) == [(at, b"during %d" % n) for n, at in enumerate(bases)]


async def test_a_reading_that_is_overtaken_by_a_trim_is_an_error(log: Log) -> None:
    """A reader whose next page was deleted is told; it never jumps over what it was to read."""
    if isinstance(log, KafkaLog):
        pytest.skip("its client fetches ahead, so what was deleted may still be read, rightly")
    await session_append(log, [b"%06d" % n for n in range(5_000)])
    async with contextlib.aclosing(log.read(0, 0)) as reading:
        assert (await anext(reading))[0] == (0, b"000000")
        await log.trim(0, 4_000)
        with pytest.raises(LogError, match="deleted while"):
            await anext(reading)


async def test_trimmed_space_is_used_again(log: Log) -> None:
    """A log that is trimmed as fast as it is filled stays as large as it was."""
    if not isinstance(log, SqliteLog):
        pytest.skip("only a file can grow")
    sizes = []
    for turn in range(6):
        await session_append(log, *([b"x" * 200] * 500 for _ in range(10)))
        await log.trim(0, (turn + 1) * 5_000)
        with contextlib.closing(sqlite3.connect(log.path)) as db:
            db.execute("PRAGMA wal_checkpoint(PASSIVE)")
            sizes.append(db.execute("PRAGMA page_count").fetchone()[0])
    assert max(sizes[2:]) <= 1.1 * sizes[1]


# ---------------------------------------------------------------- times


async def test_an_offset_is_found_by_time(log: Log) -> None:
    """The first record that was appended at a time or later; the end when there is none; the first one that is left."""
    moments: list[int] = []
    for n in range(6):
        while moments and _now() <= moments[-1]:
            pass  # the clock's next millisecond
        moments.append(_now())
        at = [Outcome(1, b"t", moments[-1], CommandId(f"c{n}"), "charge", "payments", 1, raw(i)) for i in range(3)]
        await session_append(log, [encode(record) for record in at])
    assert await log.offset_at(0, 0) == 0
    assert await log.offset_at(0, -1) == 0
    assert [await log.offset_at(0, moment) for moment in moments] == [0, 3, 6, 9, 12, 15]
    assert await log.offset_at(0, _now() + 60_000) == 18
    assert await log.offset_at(1, 0) == 0
    await log.trim(0, 7)
    assert await log.offset_at(0, 0) == 7
    assert await log.offset_at(0, moments[4]) == 12


async def test_bytes_that_are_no_record_do_not_hinder_the_search_by_time(log: Log) -> None:
    """They have no time, or none that can be read."""
    early, late = (encode(Outcome(1, b"t", at, CommandId("c"), "s", "s", 1, raw(1))) for at in (10, _now() + 60_000))
    for batch in ([early, b"", b"\xff"], [b"no record"], [late]):
        await session_append(log, batch)
    assert await log.offset_at(0, 1) == 0
    if not isinstance(log, KafkaLog):  # which has its own times
        assert await log.offset_at(0, 11) in (1, 2, 3, 4)
        assert await log.offset_at(0, _now() + 120_000) == 5


def _now() -> int:
    return time.time_ns() // 1_000_000


# ---------------------------------------------------------------- ownership on top


def owned(log: Log, name: str, partition: int = 0) -> OwnedPartition:
    return OwnedPartition(log, partition, instance=name, address=f"{name}:7070", clock=lambda: 1_700_000_000_000)


def outcome(owner: OwnedPartition, id: str) -> bytes:
    return encode(Outcome(1, owner.token, 1, CommandId(id), "charge", "payments", 1, raw(id)))


def ids(records: list[tuple[int, Record | Damaged]]) -> list[str]:
    return [record.id for _, record in records if isinstance(record, Outcome)]


async def test_an_owner_acts_on_what_it_appended(log: Log) -> None:
    """Acquire, append, read back: the epoch's number is its record's offset, appends follow it without gaps."""
    owner = owned(log, "a")
    seen: list[tuple[int, Record | Damaged]] = []
    assert await owner.acquire(seen.extend) == 0
    assert owner.owned
    assert owner.epoch == 0
    assert [type(record) for _, record in seen] == [Epoch]
    assert await owner.append([outcome(owner, "c1"), outcome(owner, "c2")]) == 1
    assert await owner.append([outcome(owner, "c3")]) == 3
    await owner.check()
    await owner.close()
    assert not owner.owned


async def test_appends_of_an_owner_may_overlap(log: Log) -> None:
    """Several appends in flight are all settled, in order."""
    owner = owned(log, "a")
    await owner.acquire(lambda _: None)
    assert await asyncio.gather(*(owner.append([outcome(owner, f"c{n}")]) for n in range(20))) == list(range(1, 21))
    await owner.close()


async def test_the_older_of_two_owners_steps_down_and_acts_on_nothing(open_log: Open) -> None:
    """Two processes on one storage: from the younger one's Epoch on, the older one's records are void and it stops."""
    older, younger = owned(await open_log(), "older"), owned(await open_log(), "younger")
    await older.acquire(lambda _: None)
    await older.append([outcome(older, "kept")])
    seen: list[tuple[int, Record | Damaged]] = []
    epoch = await younger.acquire(seen.extend)
    assert ids(seen) == ["kept"]
    with pytest.raises(SteppedDown) as stopped:
        await older.append([outcome(older, "void")])
    assert (stopped.value.by_instance, stopped.value.by_address) == ("younger", "younger:7070")
    assert not older.owned
    with pytest.raises(SteppedDown):
        await older.append([outcome(older, "void, too")])

    await younger.append([outcome(younger, "next")])
    await older.close()
    await younger.close()
    third = owned(await open_log(), "third")
    replayed: list[tuple[int, Record | Damaged]] = []
    assert await third.acquire(replayed.extend) > epoch
    assert ids(replayed) == ["kept", "next"]
    await third.close()


async def test_an_idle_owner_notices_its_successor(open_log: Open) -> None:
    """An owner with nothing to append steps down at its next look at the log's end."""
    older, younger = owned(await open_log(), "older"), owned(await open_log(), "younger")
    await older.acquire(lambda _: None)
    await older.check()
    await younger.acquire(lambda _: None)
    with pytest.raises(SteppedDown, match="younger"):
        await older.check()
    await younger.check()
    await older.close()
    await younger.close()


async def test_an_owner_reads_from_where_it_knows_the_token(log: Log) -> None:
    """A replay may begin in the middle, if the token in force there is known; else it is refused."""
    first = owned(log, "first")
    await first.acquire(lambda _: None)
    await first.append([outcome(first, "c1"), outcome(first, "c2"), outcome(first, "c3")])
    await first.close()
    second = owned(log, "second")
    seen: list[tuple[int, Record | Damaged]] = []
    await second.acquire(seen.extend, 2, first.token)
    assert ids(seen) == ["c2", "c3"]
    await second.close()
    with pytest.raises(CorruptLog, match="which epoch was in force"):
        await owned(log, "third").acquire(lambda _: None, 2)


async def test_a_record_that_cannot_be_read_stops_the_owner(log: Log) -> None:
    """A newer kind in the log is named with partition and offset, and nothing behind it is acted on."""
    first = owned(log, "first")
    await first.acquire(lambda _: None)
    await first.append([b"\x93\x63\x01\xc4\x08" + first.token])
    await first.close()
    with pytest.raises(CorruptLog, match=r"partition 0, offset 1.*kind 99"):
        await owned(log, "second").acquire(lambda _: None)


async def test_a_record_that_is_too_large_harms_nobody(log: Log) -> None:
    """It is refused before anything is sent, and the owner goes on."""
    owner = owned(log, "a")
    await owner.acquire(lambda _: None)
    with pytest.raises(RecordTooLarge):
        await owner.append([b"x" * (log.record_bytes_max + 1)])
    assert await owner.append([outcome(owner, "c1")]) == 1
    await owner.close()


async def test_the_largest_record_goes_through(log: Log) -> None:
    """`record_bytes_max` is a promise, not a hope."""
    owner = owned(log, "a")
    await owner.acquire(lambda _: None)
    assert await owner.append([outcome(owner, "x" * 190).ljust(log.record_bytes_max, b"\0")]) == 1
    await owner.close()
