"""What every log promises (`coordinator.log.base`), asked of all three."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from aiokafka import TopicPartition  # type: ignore[import-untyped]
from aiokafka.admin import AIOKafkaAdminClient  # type: ignore[import-untyped]
from aiokafka.admin.records_to_delete import RecordsToDelete  # type: ignore[import-untyped]

from coordinator.errors import CorruptLog, StartupError
from coordinator.log.base import Log, LogError, RecordTooLarge
from coordinator.log.kafka import KafkaLog
from coordinator.log.memory import MemoryLog, MemoryStorage
from coordinator.log.owned import OwnedPartition, SteppedDown
from coordinator.log.sqlite import SqliteLog
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


async def test_watermarks_are_kept(open_log: Open) -> None:
    """A watermark is None until saved, and is then seen by other processes."""
    log = await open_log()
    assert await log.load_watermark(1) is None
    await log.save_watermark(1, 41)
    await log.save_watermark(1, 42)
    assert await log.load_watermark(1) == 42
    assert await log.load_watermark(0) is None
    assert await (await open_log()).load_watermark(1) == 42


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


async def test_a_start_beyond_what_was_deleted_is_an_error(open_log: Open) -> None:
    """A start below the log's head is never a silent jump."""
    log = await open_log()
    await session_append(log, [b"a", b"b", b"c"])
    await trim(log, 2)
    assert (await log.bounds(0))[0] == 2
    with pytest.raises(LogError, match="below the log's start"):
        await everything(log, start=1)
    assert await everything(log, start=2) == [(2, b"c")]


async def trim(log: Log, first: int) -> None:
    """Deletes the head of partition 0 behind the log's back, as an operator's tool would."""
    match log:
        case MemoryLog():
            log.storage.trim(0, first)
        case SqliteLog():
            with contextlib.closing(sqlite3.connect(log.path)) as db, db:
                db.execute("DELETE FROM log_0 WHERE offset < ?", (first,))
                db.execute("UPDATE partitions SET first = ? WHERE partition = 0", (first,))
        case _:
            assert isinstance(log, KafkaLog)
            admin = AIOKafkaAdminClient(bootstrap_servers=log.bootstrap)
            await admin.start()
            await admin.delete_records({TopicPartition(log.topic, 0): RecordsToDelete(first)})
            await admin.close()


# ---------------------------------------------------------------- ownership on top


def owned(log: Log, name: str, partition: int = 0) -> OwnedPartition:
    return OwnedPartition(log, partition, instance=name, address=f"{name}:7070", clock=lambda: 1_700_000_000_000)


def outcome(owner: OwnedPartition, id: str) -> bytes:
    return encode(Outcome(1, owner.token, 1, CommandId(id), "charge", "payments", 1, raw(id)))


def ids(records: list[tuple[int, Record]]) -> list[str]:
    return [record.id for _, record in records if isinstance(record, Outcome)]


async def test_an_owner_acts_on_what_it_appended(log: Log) -> None:
    """Acquire, append, read back: the epoch's number is its record's offset, appends follow it without gaps."""
    owner = owned(log, "a")
    seen: list[tuple[int, Record]] = []
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
    seen: list[tuple[int, Record]] = []
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
    replayed: list[tuple[int, Record]] = []
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
    seen: list[tuple[int, Record]] = []
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
