"""When a partition's Snapshots are taken, and what becomes of them: the pointer, the chain, the trimmed log.

    the tail has grown (`recovery.due`) ─▶ cut ─▶ part, part, part ─▶ the last one is confirmed ─▶ the pointer is saved
                                                                            └─▶ what is old enough is deleted

A Snapshot is records like any other: its parts share the lane's appends with the commands' own, one at a time, so
nobody waits behind a large state.  It is taken

- when a takeover would need too long for what has gathered since the last one (``recovery_target``);
- where old records are to be deleted (``retain``), now and then, since the log is cut only where a snapshot was taken;
- when nothing was appended for an hour: a lock at Kafka's brokers lapses if its holder says nothing for a day;
- before the partition is handed over, so that the heir has little to read.

It carries receipts of what finished within the dedupe horizon, but no more than `RECEIPTS_MAX`: a partition that ends
more than that has a shorter horizon, and its metric says so.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from coordinator import recovery
from coordinator.admission.receipts import Receipts, merged, since_for
from coordinator.engine import snapshots
from coordinator.errors import CoordinatorError
from coordinator.log.base import LogError, Pointer
from coordinator.logs import get_logger
from coordinator.model.durations import format_duration
from coordinator.model.moments import timestamp
from coordinator.model.records import Link, Record, Snapshot
from coordinator.recovery import Start, Trim

if TYPE_CHECKING:
    from coordinator.lane import Lane

log = get_logger(__name__)

RATE_PER_S: Final = 50_000.0  # records folded, until a replay has been measured; a slow machine's
MEASURED_MIN: Final = 5_000  # records, below which a replay measures nothing
RECEIPTS_MAX: Final = 500_000  # of a partition: 24 MB, about what it appends between two snapshots under full load
IDLE_MS: Final = 3_600_000
AGAIN_MS: Final = 5_000  # after one that failed
HURRY_RECORDS: Final = 100  # which a hand-over saves the heir from reading
TRIM_EVERY_MAX_MS: Final = 600_000
TRIM_EVERY_MIN_MS: Final = 500


class SnapshotSettings(Struct, frozen=True):
    """``recovery_target_ms``, ``retain_ms`` (0: everything is kept), and for how long receipts are kept."""

    recovery_target_ms: int = 5_000
    retain_ms: int = 0
    dedupe_horizon_ms: int = 3_600_000


class _Late:
    """Receipts that are read from the view once the cut has been made, and before it comes to them."""

    def __init__(self) -> None:
        self.rows: Iterable[bytes] = ()

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.rows)


class Snapshotting:
    """Of one lane, for one ownership after the other: `began` starts each, `close` ends it."""

    def __init__(self, lane: Lane, settings: SnapshotSettings) -> None:
        self.lane = lane
        self.settings = settings
        self.rate = RATE_PER_S
        self.receipts = Receipts()  # that the first snapshot brought: the view may never have what was deleted
        self.latest: Link | None = None
        self.confirmed: Link | None = None  # one that this ownership has seen confirmed
        self._reset(b"")

    def _reset(self, identity: bytes) -> None:
        self.identity = identity
        self.chain: list[Link] = []
        self.first = 0
        self.tail_records = self.tail_bytes = 0
        self.state_records = self.state_bytes = 0
        self.appended_at = self._trimmed_at = self.lane.pipeline.now()
        self._task: asyncio.Task[None] | None = None
        self._tail = (0, 0)  # what the one on its way is to save from being read
        self._not_before = 0
        self._placing: tuple[int, int, int] = (0, 0, 0)  # of the one on its way: position, records, bytes

    # ------------------------------------------------------------ an ownership

    def began(self, start: Start, identity: bytes, records: int, took_ms: int) -> None:
        """The partition is owned: it was replayed from ``start``, ``records`` in ``took_ms``."""
        self._reset(identity)
        self.latest, self.confirmed = None, None
        whole = start.snapshot
        self.receipts = Receipts() if whole is None else whole.receipts()
        if whole is not None:
            self.latest, self.chain = whole.link, whole.chain
            self.state_records = sum(map(snapshots.records_in, whole.parts))
        self.first = start.offset if whole is None else 0
        self.tail_records = records
        if records >= MEASURED_MIN and took_ms > 0:
            self.rate = records * 1000 / took_ms

    def close(self) -> None:
        """The partition is not owned any more; a snapshot on its way is torn, and nobody will believe it."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    @property
    def busy(self) -> bool:
        """Whether one is on its way."""
        return self._task is not None

    def appended(self, base: int, records: Sequence[Record], encoded: Sequence[bytes]) -> None:
        """A batch is confirmed at ``base``; parts of a snapshot are none of the tail that the next one is to save."""
        self.appended_at = self.lane.pipeline.now()
        self.tail_records += len(records)
        self.tail_bytes += sum(map(len, encoded))
        if self._task is not None:
            for offset, (record, data) in enumerate(zip(records, encoded, strict=True), base):
                if type(record) is Snapshot:
                    self._placed(offset, record, len(data))

    # ------------------------------------------------------------ when

    def look(self) -> None:
        """Takes a snapshot if it is time, else deletes what may be deleted, if it is time for that."""
        if self._task is not None:
            return
        now = self.lane.pipeline.now()
        if self._due(now):
            self._begin()
        elif self.settings.retain_ms and now - self._trimmed_at > self._trim_every_ms:
            self._task = asyncio.create_task(self._trim_only())

    def hurry(self) -> None:
        """The partition is about to be handed over: takes one if that saves the heir anything."""
        if self._task is None and self.tail_records > max(HURRY_RECORDS, self.state_records / 4):
            self._begin()

    def _due(self, now: int) -> bool:
        settings = self.settings
        if now < self._not_before:
            return False
        if now - self.appended_at > IDLE_MS:
            return True
        if not self.tail_records:
            return False
        since = now - (self.latest.at if self.latest is not None else self.lane.acquired_at)
        if settings.retain_ms and since > settings.retain_ms / 4 and self.tail_records > self.state_records:
            return True
        return recovery.due(
            records_since=self.tail_records,
            bytes_since=self.tail_bytes,
            state_records=self.state_records,
            state_bytes=self.state_bytes,
            rate_per_s=self.rate,
            target_ms=settings.recovery_target_ms,
        )

    @property
    def _trim_every_ms(self) -> int:
        return min(max(self.settings.retain_ms // 10, TRIM_EVERY_MIN_MS), TRIM_EVERY_MAX_MS)

    # ------------------------------------------------------------ taking one

    def _begin(self) -> None:
        """Takes hold of the state as it is at this moment; the rest is done beside the work."""
        lane = self.lane
        pipeline = lane.pipeline
        header = snapshots.Header(
            pipeline.random.randbytes(snapshots.SNAPSHOT_ID_BYTES),
            lane.end,
            pipeline.engine.shards[lane.partition].token,
            self.identity,
            pipeline.now(),
        )
        receipts = _Late()
        chain = recovery.lengthened(self.chain, self.latest, self.first) if self.latest is not None else []
        parts = snapshots.cut(pipeline.engine, lane.partition, header, chain=chain, receipts=receipts)
        self._tail = self.tail_records, self.tail_bytes
        self.tail_records = self.tail_bytes = 0  # of the next one, which begins here
        self._task = asyncio.create_task(self._write(header, parts, chain, receipts))

    async def _write(
        self, header: snapshots.Header, parts: Iterator[Snapshot | None], chain: list[Link], receipts: _Late
    ) -> None:
        lane = self.lane
        began = lane.pipeline.loop.time()
        try:
            receipts.rows = await self._receipts(header.at)
            self._placing = (-1, 0, 0)
            for part in parts:
                if part is None:
                    await asyncio.sleep(0)
                    continue
                lane.push(part)
                await lane.settled()
            position, self.state_records, self.state_bytes = self._placing
            self.latest = self.confirmed = Link(header.covered, position, header.at)
            self.chain = chain
            took = lane.pipeline.loop.time() - began
            lane.pipeline.metrics.snapshot(lane.partition, header.covered, self.state_bytes, took)
            log.info(
                "snapshot taken",
                partition=lane.partition,
                covered=header.covered,
                position=position,
                bytes=self.state_bytes,
                ms=round(took * 1000),
            )
            await self._publish()
            await self._trim()
        except (CoordinatorError, LogError) as error:
            log.warning("a snapshot was not taken, or not made use of", partition=lane.partition, reason=str(error))
            if self.latest is None or self.latest.covered != header.covered:
                self.tail_records, self.tail_bytes = self.tail_records + self._tail[0], self.tail_bytes + self._tail[1]
                self._not_before = lane.pipeline.now() + AGAIN_MS
        finally:
            self._task = None
            lane.wake.set()

    async def _receipts(self, now: int) -> Iterable[bytes]:
        """Of all commands that finished within the horizon, in the order of their hashes."""
        pipeline, partition = self.lane.pipeline, self.lane.partition
        since = now - self.settings.dedupe_horizon_ms
        pages = bytearray()
        async with contextlib.aclosing(pipeline.view.receipts(partition, since)) as reading:
            async for page in reading:
                pages += page
        fresh = Receipts(bytes(pages))
        runs = [fresh, self.receipts] if len(self.receipts) else [fresh]
        since = max(since, *(since_for(len(run), run, RECEIPTS_MAX) for run in runs))
        pipeline.metrics.horizon(partition, (now - since) / 1000)
        return merged(*runs, since=since)

    def _placed(self, offset: int, part: Snapshot, size: int) -> None:
        """One of our parts is durable."""
        self.tail_records -= 1
        self.tail_bytes -= size
        position, records, total = self._placing
        self._placing = (offset if part.part == 0 else position, records + snapshots.records_in(part), total + size)

    async def _publish(self) -> None:
        """Tells others where it is; who does not hear of it reads more of the log, and comes to the same."""
        assert self.latest is not None
        lane = self.lane
        pointer = Pointer(position=self.latest.position, covered=self.latest.covered)
        try:
            async with asyncio.timeout(lane.pipeline.append_timeout_ms / 1000):
                await lane.pipeline.log.save_pointer(lane.partition, pointer)
        except (TimeoutError, LogError) as error:
            log.warning("the snapshot's place could not be saved", partition=lane.partition, reason=str(error))

    # ------------------------------------------------------------ trimming

    async def _trim_only(self) -> None:
        try:
            await self._trim()
        except CoordinatorError as error:
            log.warning("the view kept what is not in the log any more", reason=str(error))
        finally:
            self._task = None
            self.lane.wake.set()

    async def _trim(self) -> None:
        """Deletes what is old enough and covered; a log that does not let us is asked again later."""
        lane = self.lane
        self._trimmed_at = lane.pipeline.now()
        if not self.settings.retain_ms:
            return
        try:
            async with asyncio.timeout(lane.pipeline.append_timeout_ms / 1000):
                decision = await self._decide()
                if decision.before is None:
                    return
                self.first = await lane.pipeline.log.trim(lane.partition, decision.before)
        except (TimeoutError, LogError) as error:
            log.warning("old records could not be deleted", partition=lane.partition, reason=str(error) or "no answer")
            return
        horizon = lane.pipeline.now() - self.settings.dedupe_horizon_ms
        await lane.pipeline.view.forget_below(lane.partition, self.first, horizon)
        log.info("old records deleted", partition=lane.partition, below=self.first, why=decision.why)

    async def _decide(self) -> Trim:
        pipeline, partition = self.lane.pipeline, self.lane.partition
        self.first, _ = await pipeline.log.bounds(partition)
        retain = self.settings.retain_ms
        old = await pipeline.log.offset_at(partition, pipeline.now() - retain) if retain else None
        return recovery.trim_point(self.first, self.chain, self.confirmed, old)

    # ------------------------------------------------------------ explaining

    async def explain(self) -> dict[str, Any]:
        """What `coordinator log explain` tells of the partition; raises LogError."""
        decision = await self._decide()
        latest, settings, end = self.latest, self.settings, self.lane.end
        return {
            "partition": self.lane.partition,
            "first": self.first,
            "end": end,
            "snapshot": None
            if latest is None
            else {
                "covered": latest.covered,
                "position": latest.position,
                "at": timestamp(latest.at),
                "age": format_duration(max(0, self.lane.pipeline.now() - latest.at) // 1000 * 1000),
                "confirmed": self.confirmed is not None,
            },
            "earlier_snapshots": len(self.chain),
            "replay_records": self.state_records + self.tail_records,
            "replay_estimate": format_duration(round(1000 * (self.state_records + self.tail_records) / self.rate)),
            "recovery_target": format_duration(settings.recovery_target_ms),
            "retain": format_duration(settings.retain_ms) if settings.retain_ms else None,
            "trim_to": decision.before,
            "pinned_by": decision.pin,
            "why": decision.why,
        }
