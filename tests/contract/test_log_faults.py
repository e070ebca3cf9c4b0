"""An owner over a log that fails in every way that `MemoryLog` knows."""

from __future__ import annotations

import asyncio
import random

import pytest

from coordinator.log.base import LogError
from coordinator.log.memory import Fault, MemoryLog, MemoryStorage
from coordinator.log.owned import OwnedPartition, SteppedDown
from coordinator.model.ids import CommandId
from coordinator.model.records import Record, Timer
from coordinator.wire.codec import encode


def owned(log: MemoryLog, name: str = "a", timeout_ms: int = 100) -> OwnedPartition:
    return OwnedPartition(log, 0, instance=name, address=f"{name}:1", clock=lambda: 1, append_timeout_ms=timeout_ms)


def timer(owner: OwnedPartition, id: str) -> bytes:
    return encode(Timer(1, owner.token, 0, CommandId(id), "deadline"))


async def acquired(log: MemoryLog, name: str = "a", timeout_ms: int = 100) -> OwnedPartition:
    owner = owned(log, name, timeout_ms)
    await owner.acquire(lambda _: None)
    return owner


async def replayed(log: MemoryLog) -> list[str]:
    """The ids that a new owner learns."""
    ids: list[str] = []

    def learn(records: list[tuple[int, Record]]) -> None:
        ids.extend(record.id for _, record in records if isinstance(record, Timer))

    owner = owned(log, "reader")
    await owner.acquire(learn)
    await owner.close()
    return ids


async def test_an_append_whose_ack_was_lost_is_found_and_acted_on() -> None:
    """Unknown is resolved by reading: it is there, before any foreign Epoch."""
    log = MemoryLog()
    owner = await acquired(log)
    log.inject(Fault.LOSE_ACK)
    assert await owner.append([timer(owner, "c1"), timer(owner, "c2")]) == 1
    assert await owner.append([timer(owner, "c3")]) == 3
    assert await replayed(log) == ["c1", "c2", "c3"]


async def test_a_confirmation_without_an_offset_is_looked_up() -> None:
    """As Kafka answers a duplicate."""
    log = MemoryLog()
    owner = await acquired(log)
    log.inject(Fault.NO_OFFSET)
    assert await owner.append([timer(owner, "c1")]) == 1


@pytest.mark.parametrize("fault", [Fault.LOSE_REQUEST, Fault.LATE, Fault.STALL])
async def test_an_append_that_is_not_found_steps_down(fault: Fault) -> None:
    """Neither success nor failure: the owner stops, and its late record is void behind the next Epoch."""
    log = MemoryLog()
    owner = await acquired(log)
    log.inject(fault)
    with pytest.raises(SteppedDown, match="neither confirmed nor found"):
        await owner.append([timer(owner, "c1")])
    assert not owner.owned
    with pytest.raises(SteppedDown):
        await owner.append([timer(owner, "c2")])
    successor = await acquired(log, "b")
    log.land()
    await successor.append([timer(successor, "c3")])
    assert await replayed(log) == ["c3"]


async def test_a_late_append_that_lands_before_the_next_epoch_counts() -> None:
    """Only the next Epoch makes absence final: until then the next owner may find it."""
    log = MemoryLog()
    owner = await acquired(log)
    log.inject(Fault.LATE)
    with pytest.raises(SteppedDown):
        await owner.append([timer(owner, "c1")])
    log.land()
    assert await replayed(log) == ["c1"]


async def test_a_refused_append_steps_down_with_the_reason() -> None:
    """A full or read-only log is told in plain words."""
    log = MemoryLog()
    owner = await acquired(log)
    log.inject(Fault.REFUSE)
    with pytest.raises(SteppedDown, match="told to refuse"):
        await owner.append([timer(owner, "c1")])
    assert await replayed(log) == []


async def test_a_slow_append_is_waited_for() -> None:
    """A delay below the deadline changes nothing."""
    log = MemoryLog()
    owner = await acquired(log, timeout_ms=10_000)
    log.inject(Fault.STALL)
    append = asyncio.create_task(owner.append([timer(owner, "c1")]))
    await log.until_stalled()
    log.release()
    assert await append == 1


async def test_overlapping_appends_wait_for_the_first() -> None:
    """The second is confirmed, but not settled while the first has no answer."""
    log = MemoryLog()
    owner = await acquired(log, timeout_ms=10_000)
    log.inject(Fault.STALL)
    first = asyncio.create_task(owner.append([timer(owner, "c1")]))
    await log.until_stalled()
    second = asyncio.create_task(owner.append([timer(owner, "c2")]))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not second.done()
    log.release()
    # The first landed behind the second: readers fold them in that order, so neither may be acted on in the other.
    for append in (first, second):
        with pytest.raises(SteppedDown):
            await append


async def test_a_cancelled_append_steps_down() -> None:
    """The batch may or may not be in the log, and nobody waits any more to find out."""
    log = MemoryLog()
    owner = await acquired(log, timeout_ms=10_000)
    log.inject(Fault.STALL)
    append = asyncio.create_task(owner.append([timer(owner, "c1")]))
    await log.until_stalled()
    append.cancel()
    with pytest.raises(asyncio.CancelledError):
        await append
    assert not owner.owned
    with pytest.raises(SteppedDown):
        await owner.check()


async def test_closing_answers_everybody_who_waits() -> None:
    """No append hangs on a closed partition."""
    log = MemoryLog()
    owner = await acquired(log, timeout_ms=200)
    log.inject(Fault.STALL)
    append = asyncio.create_task(owner.append([timer(owner, "c1")]))
    await log.until_stalled()
    await owner.close()
    log.release()
    with pytest.raises(SteppedDown, match="closed"):
        await append


async def test_a_crash_after_the_append_leaves_the_record_to_the_next_owner() -> None:
    """Between append and ack: never acted on by the dead, found by the living."""
    log = MemoryLog()
    owner = await acquired(log)
    log.inject(Fault.CRASH_AFTER)
    with pytest.raises(SteppedDown):
        await owner.append([timer(owner, "c1")])
    assert await replayed(MemoryLog(storage=log.storage)) == ["c1"]


async def test_a_crash_before_the_append_leaves_nothing() -> None:
    """What never landed never was."""
    log = MemoryLog()
    owner = await acquired(log)
    log.inject(Fault.CRASH_BEFORE)
    with pytest.raises(SteppedDown):
        await owner.append([timer(owner, "c1")])
    assert await replayed(MemoryLog(storage=log.storage)) == []


async def test_an_unreadable_log_does_not_hang_the_settling() -> None:
    """If the search for a batch in doubt cannot read, the owner steps down at its deadline."""
    log = MemoryLog()
    owner = await acquired(log)
    log.inject(Fault.LOSE_ACK)
    log.break_reads()
    with pytest.raises(SteppedDown, match="could not be read"):
        await owner.append([timer(owner, "c1")])


async def test_a_log_that_recovers_in_time_is_read() -> None:
    """A short outage of reads delays the settling, nothing more."""
    log = MemoryLog()
    owner = await acquired(log, timeout_ms=10_000)
    log.inject(Fault.LOSE_ACK)
    log.break_reads()
    append = asyncio.create_task(owner.append([timer(owner, "c1")]))
    for _ in range(10):
        await asyncio.sleep(0)
    log.mend_reads()
    assert await append == 1


async def test_a_check_tells_nothing_while_the_log_cannot_be_read() -> None:
    """No proof of another owner: the next append finds out."""
    log = MemoryLog()
    owner = await acquired(log)
    log.break_reads()
    await owner.check()
    log.mend_reads()
    assert await owner.append([timer(owner, "c1")]) == 1


async def test_stale_records_in_the_way_do_not_topple_the_rightful_owner() -> None:
    """A zombie's bytes lie between the owner's: the gap is read and passed, also by a check."""
    log = MemoryLog()
    zombie = await acquired(log, "zombie")
    stale = [timer(zombie, "void")] * 3
    owner = await acquired(log, "owner")
    log.storage.append(0, stale)
    assert await owner.append([timer(owner, "c1")]) == 5
    log.storage.append(0, stale)
    await owner.check()
    assert owner.verified == 9
    assert await owner.append([timer(owner, "c2")]) == 9
    assert await replayed(log) == ["c1", "c2"]


async def test_the_epoch_is_found_when_its_ack_is_lost() -> None:
    """Acquiring goes by what is in the log, never by the ack."""
    log = MemoryLog()
    log.inject(Fault.LOSE_ACK)
    owner = await acquired(log)
    assert owner.epoch == 0
    assert await owner.append([timer(owner, "c1")]) == 1


async def test_an_epoch_that_does_not_appear_fails_the_attempt() -> None:
    """A clear error, and the attempt is over; its Epoch may still land and then fences whoever owns the partition."""
    log = MemoryLog()
    log.inject(Fault.LATE)
    attempt = owned(log)
    with pytest.raises(LogError, match="neither confirmed nor shows"):
        await attempt.acquire(lambda _: None)
    assert not attempt.owned
    owner = await acquired(log)
    log.land()
    with pytest.raises(SteppedDown, match="another epoch began"):
        await owner.append([timer(owner, "c1")])
    assert await (await acquired(log)).append([b"\x93\x07\x01\xa0"]) == 4


async def test_a_refused_epoch_fails_the_attempt() -> None:
    """The log says why."""
    log = MemoryLog()
    log.inject(Fault.REFUSE)
    with pytest.raises(LogError, match="told to refuse"):
        await owned(log).acquire(lambda _: None)


async def test_a_cancelled_acquire_closes_itself() -> None:
    """No session is left behind."""
    log = MemoryLog()
    log.inject(Fault.STALL)
    attempt = owned(log, timeout_ms=10_000)
    acquiring = asyncio.create_task(attempt.acquire(lambda _: None))
    await log.until_stalled()
    acquiring.cancel()
    with pytest.raises(asyncio.CancelledError):
        await acquiring
    assert not attempt.owned


async def test_checks_and_appends_may_overlap() -> None:
    """A look at the tail while an append is settled takes nothing for a stranger's."""
    log = MemoryLog()
    owner = await acquired(log)

    async def look() -> None:
        for _ in range(50):
            await owner.check()
            await asyncio.sleep(0)

    async def write() -> None:
        for n in range(50):
            if n % 3 == 0:
                log.inject(Fault.LOSE_ACK)
            await owner.append([timer(owner, f"c{n}")])

    await asyncio.gather(look(), write(), look())
    assert await replayed(log) == [f"c{n}" for n in range(50)]


@pytest.mark.parametrize("seed", range(8))
async def test_two_instances_over_a_failing_log_never_contradict_each_other(seed: int) -> None:
    """The driver as a whole: whatever fails, what is acted on agrees and is known to every later owner."""
    rng = random.Random(seed)
    faults = [*[Fault.NONE] * 12, *(fault for fault in Fault if "crash" not in fault.value)]
    storage = MemoryStorage()
    logs = [MemoryLog(storage=storage, choose=lambda *_: rng.choice(faults)) for _ in range(2)]
    together: list[str] = []
    appends = 0

    def agree(acted: list[str]) -> None:
        shared = min(len(acted), len(together))
        assert acted[:shared] == together[:shared]
        together.extend(acted[shared:])

    async def live(log: MemoryLog, name: str) -> None:
        nonlocal appends
        while appends < 200:
            owner = owned(log, name, timeout_ms=4)
            acted: list[str] = []

            def learn(records: list[tuple[int, Record]], acted: list[str] = acted) -> None:
                acted.extend(record.id for _, record in records if isinstance(record, Timer))

            try:
                await owner.acquire(learn)
                agree(acted)
                while appends < 200:
                    appends += 1
                    ids = [f"{name}/{appends}", f"{name}/{appends}+"]
                    await owner.append([timer(owner, id) for id in ids])
                    acted.extend(ids)
                    agree(acted)
                    if rng.random() < 0.2:
                        log.land()
            except (LogError, SteppedDown):
                log.release()
            finally:
                await owner.close()

    await asyncio.gather(live(logs[0], "a"), live(logs[1], "b"))
    known = await replayed(MemoryLog(storage=storage))
    assert known[: len(together)] == together
    assert together
