"""One partition in the hands of this instance: its outbox, its one append in flight, and its life.

A lane's life is: acquire (a new epoch), replay, act, step down, acquire again.  Whatever goes wrong while it acts, be
it the log, a rival or a mistake of our own, ends in a step down: all that is volatile goes, and the log is read anew.
For those who wait that means: an unconfirmed submission or operator's request is told at once (`log_unavailable`: it
may have landed); who waits for a command's result waits on, and after the next replay is told what it missed; if
somebody else owns the partition now, all are sent there (`no_owner`).

A lane calls nobody on stale knowledge.  Most calls follow an append, and its ack proves that the partition is ours; a
retry follows nothing, and somebody else may have taken over since.  So a call that comes more than `FRESH_MS` after the
last word from the log is held back until the lane has looked: under load that costs nothing, and of a process that was
stopped for a while and goes on, no service hears.

Where several instances share the log, the group says when a lane acquires (`summon`) and when it hands over (`let_go`):
a Snapshot is taken then, and no new calls are made after it; when those under way are answered nothing more is taken
in, what is left is appended, and the heir is told that the partition is free.  Where there is no group, a lane acquires
at once, and one that was fenced stands by until the owner does not answer any more.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, NoReturn

from msgspec.structs import force_setattr

from coordinator import recovery
from coordinator.engine import records_too_large
from coordinator.errors import CoordinatorError, CorruptLog, LogCorrupt, LogUnavailable, NoOwner, Starting, Unavailable
from coordinator.filler import Filler
from coordinator.log.base import LogError
from coordinator.log.owned import OwnedPartition, SteppedDown
from coordinator.logs import get_logger
from coordinator.model.call import Call
from coordinator.model.ids import CommandId
from coordinator.model.records import Epoch, Record
from coordinator.recalling import recalled
from coordinator.recovery import Start
from coordinator.replaying import Replay, reached
from coordinator.snapshotting import Snapshotting
from coordinator.wire.codec import encode, read

if TYPE_CHECKING:
    from coordinator.pipeline import Pipeline

log = get_logger(__name__)

BATCH_BYTES_MAX = 900_000  # of one append: below Kafka's default message limit
REACQUIRE_FIRST_S, REACQUIRE_MAX_S = 0.1, 5.0
CHECK_EVERY_S = 0.5
FRESH_MS = 100  # how long after a word from its log a lane may call services without another look
SLEPT_MS = 500  # a word that took longer than this is as old as the question: this process may have been stopped
STANDBY_PROBES = 3
ATTEMPTS = 3  # to acquire, after which another instance should
FILL_AFTER_S = 2.0
FILL_PATIENCE_S = 2.0  # of who asks for a command that may have finished long ago, while the view is being filled
STOPPED_RETRY_MS = 10_000  # what clients of a partition that has stopped are told to wait
STOPPED_REMIND_FIRST_S, STOPPED_REMIND_MAX_S = 60.0, 3600.0


class Lane:
    """See the module."""

    def __init__(self, pipeline: Pipeline, partition: int) -> None:
        self.pipeline = pipeline
        self.partition = partition
        self.outbox: list[Record] = []
        self.writing: list[Record] = []
        self.wake = asyncio.Event()
        self.acting = False
        self.refusal: CoordinatorError = Starting("the log is being replayed", retry_after_ms=200)
        self.stopped: CorruptLog | None = None  # for good: the log has what must not be passed over
        self.epoch = -1
        self.acquired_at = 0
        self.end = 0
        self.owner: tuple[str, str] | None = None  # instance and address of who fenced us
        self._heard_at = 0  # when the log was last asked whether the partition is ours, and said so (ms)
        self._held: list[Call] = []  # calls that wait for the next look at the log
        self._doubts: list[tuple[int, asyncio.Future[None]]] = []  # who waits for a word of the log, and since when
        self._failure: Exception | None = None
        self._pushed = 0
        self._durable = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._ghosts = 0  # own attempts whose Epoch was never found: it may still land
        self._filling: asyncio.Task[None] | None = None
        self._wanted = asyncio.Event()  # somebody asks for what the view does not have yet
        self.snapshots = Snapshotting(self, pipeline.snapshot_settings)
        self._summons = asyncio.Event()
        self.standing_by = False
        self._heir: str | None = None  # who is to own the partition instead of us
        self._let_go_at = 0.0  # when calls under way are not waited for any more (loop's time)

    # ------------------------------------------------------------ what is asked of it

    def push(self, record: Record) -> None:
        self.outbox.append(record)
        self._pushed += 1
        self.wake.set()

    def settled(self) -> asyncio.Future[None]:
        """Done when all that has been pushed so far is durable and applied; fails if the partition is lost first."""
        future: asyncio.Future[None] = self.pipeline.loop.create_future()
        if self._durable >= self._pushed:
            future.set_result(None)
        else:
            self._waiting.append((self._pushed, future))
        return future

    def settle(self, count: int) -> None:
        """``count`` more records are durable and applied."""
        self._durable += count
        while self._waiting and self._waiting[0][0] <= self._durable:
            _, future = self._waiting.popleft()
            if not future.done():
                future.set_result(None)

    def proven(self) -> asyncio.Future[None]:
        """Done once the log, asked after this call, has said that the partition is ours; fails if it is not.

        What is here can be told without it: it is durable.  That something is *not* here, only the owner may say, and
        one that was stopped for a while, or cut off, may not be the owner any more without knowing it.
        """
        doubt: asyncio.Future[None] = self.pipeline.loop.create_future()
        if self.acting:
            self._doubts.append((self.pipeline.now(), doubt))
            self.wake.set()
        else:
            doubt.set_exception(self.refusal)
        return doubt

    def call(self, call: Call, now: int) -> None:
        """Sends a call; one that would rest on stale knowledge of the log waits for the next look at it."""
        if now - self._heard_at <= FRESH_MS:
            self.pipeline.send(call)
        else:
            self._held.append(call)
            self.wake.set()

    def fail(self, error: Exception) -> None:
        """A mistake of ours while the partition was acted for: what is in memory is not to be trusted any more."""
        self._failure = error
        self.wake.set()

    @property
    def since(self) -> int | None:
        """When the partition was acquired (ms); None while it is not owned."""
        return self.acquired_at if self.acting else None

    @property
    def going(self) -> bool:
        """Whether it is being handed over, or on its way to be acquired."""
        return not self.acting and not self.standing_by and self.stopped is None

    def summon(self) -> None:
        """The group: the partition ought to be ours."""
        self._summons.set()

    def let_go(self, heir: str | None) -> None:
        """The group: the partition ought to be that instance's; None: it is to stay."""
        if heir == self._heir:
            return
        pipeline = self.pipeline
        if heir is None:
            pipeline.engine.hold(self.partition, held=False)
            pipeline.schedule()
        elif self._heir is None:
            self._let_go_at = pipeline.loop.time() + pipeline.settle_s
            pipeline.loop.call_later(pipeline.settle_s, self.wake.set)
            self.snapshots.hurry()
            log.info("handing over", partition=self.partition, to=heir)
        self._heir = heir
        self.wake.set()

    # ------------------------------------------------------------ life

    async def run(self) -> None:
        """Owns the partition for as long as the process lives; ends only by cancellation, or by a log that cannot be
        read where there is no other partition."""
        delay = REACQUIRE_FIRST_S
        group = self.pipeline.group
        failed = 0  # attempts in a row
        while True:
            if group is not None:
                await self._summoned()
                group.acquiring(self.partition)
            owned = self.pipeline.owned_partition(self.partition)
            try:
                failed += 1
                await self._acquire(owned)
                delay, failed = REACQUIRE_FIRST_S, 0
                heir = await self._act(owned)
                await self._hand_over(heir)
                continue
            except SteppedDown as down:
                self.pipeline.metrics.stepped_down(self.partition)
                self._stepped_down(down)
                failed = 0 if down.by_instance else failed  # somebody else got it: that is no fault of ours
            except LogError as error:
                self._unavailable(f"the log does not answer: {error}")
            except Unavailable as error:
                self._unavailable(error.detail)
            except CorruptLog as error:
                self._corrupt(error)
                if len(self.pipeline.lanes) == 1:
                    raise  # there is nothing else to do here: the daemon ends, with this text
            except Exception as error:
                log.exception("a mistake of this program: the partition starts over from its log")
                self._unavailable(f"an internal error: {error!r}")
            finally:
                self._close()
                if group is not None:
                    group.released(self.partition)
                await owned.close()
            if group is not None and (failed >= ATTEMPTS or self.stopped is not None):
                group.unable(self.partition, for_good=self.stopped is not None)
            if self.stopped is not None:
                await self._stay_stopped(str(self.stopped))
            if group is None or self.owner is None:
                await self._before_next_attempt(delay)
            delay = min(delay * 2, REACQUIRE_MAX_S)

    async def _summoned(self) -> None:
        self._summons.clear()
        self.standing_by = True
        try:
            await self._summons.wait()
        finally:
            self.standing_by = False

    async def _acquire(self, owned: OwnedPartition) -> None:
        pipeline = self.pipeline
        began = pipeline.now()
        self._failure = None
        self._heir = None
        start = await recovery.find(pipeline.log, self.partition, timeout_ms=pipeline.append_timeout_ms)
        replay = Replay(pipeline.engine, pipeline.view, self.partition, start)
        with pipeline.at_rest():
            await replay.restore()
            self._ghosts += 1
            earlier = () if start.snapshot is None else (start.snapshot.identity,)
            epoch = await owned.acquire(replay.records, start.offset, start.token_in_force, earlier)
            self._ghosts -= 1
        if pipeline.view.ahead(self.partition, epoch + 1):
            raise LogError("the view is ahead of the log, which was put back in time; the view is made anew")
        self.epoch = epoch
        self.owner = None
        told, self.end = self.end, epoch + 1
        self.acquired_at = pipeline.now()
        self._heard_at = self.acquired_at - FRESH_MS - 1  # a replay takes long enough for somebody else's Epoch
        self.acting = True
        pipeline.engine.open(self.partition, owned.token, epoch)
        took = self.acquired_at - began
        self.snapshots.began(start, replay.identity, replay.count, took)
        self._fill(start)
        log.info(
            "partition acquired", partition=self.partition, epoch=epoch, records=replay.count, ms=took, start=start.why
        )
        pipeline.metrics.acquired(self.partition, epoch, took / 1000)
        if pipeline.group is not None:
            pipeline.group.acquired(self.partition, epoch)
        pipeline.on_acquired(self, told)

    # ------------------------------------------------------------ what finished before

    def _fill(self, start: Start) -> None:
        """Reads what finished below the start of the replay into the view, in the background."""
        pipeline = self.pipeline
        if pipeline.view.filled(self.partition):
            return
        links = [] if start.snapshot is None else [*start.snapshot.chain, start.snapshot.link]
        filler = Filler(
            pipeline.log,
            pipeline.view,
            pipeline.engine,
            self.partition,
            upto=start.offset,
            chain=links,
            activity=lambda: pipeline.turns,
            timeout_ms=pipeline.append_timeout_ms,
        )
        self._wanted.clear()
        self._filling = asyncio.create_task(self._filled(filler), name=f"filler-{self.partition}")

    async def _filled(self, filler: Filler) -> None:
        """Not at once: other partitions may be on their way here, and those who wait for them come first."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FILL_AFTER_S):
                await self._wanted.wait()
        try:
            await filler.run()
            if not self.pipeline.view.filled(self.partition):
                self.fail(LogError("the view contradicts the log, and is made anew"))
        except CorruptLog as error:
            log.error("the view stays incomplete", partition=self.partition, reason=str(error))

    async def fetch(self, id: CommandId) -> None:
        """Brings what the log has of a finished command into the view, which may not be filled yet.

        Raises Starting where only the whole log could tell, and it takes a while to read; LogUnavailable.
        """
        pipeline, partition = self.pipeline, self.partition
        if pipeline.view.filled(partition):
            return
        receipt = self.snapshots.receipts.find(id)
        if receipt is None:
            await self._wait_for_view()
            return
        try:
            first, _ = await pipeline.log.bounds(partition)
            if receipt.first < first:
                return  # its beginning is deleted
            found = await recalled(
                pipeline.log, pipeline.engine, partition, id, receipt, timeout_ms=pipeline.append_timeout_ms
            )
        except LogError as error:
            raise LogUnavailable(f"the log cannot be read: {error}", retry_after_ms=500) from error
        except CorruptLog as error:
            raise LogCorrupt(f"partition {partition}: {error}", retry_after_ms=STOPPED_RETRY_MS) from error
        if found is None or not self.acting:
            return
        if not pipeline.engine.has(id) and pipeline.view.fingerprint(id) is None:
            pipeline.view.put(found)  # else somebody else who asked has got it, and it may have gone on since

    async def _wait_for_view(self) -> None:
        """Returns when the view is filled, if that is soon."""
        filling = self._filling
        if filling is None:
            return
        self._wanted.set()
        await asyncio.wait([filling], timeout=FILL_PATIENCE_S)
        if not filling.done():
            done, upto = self.pipeline.view.progress(self.partition)
            raise Starting(
                f"partition {self.partition} has moved here, and its history is still being read "
                f"({done} of {upto} records)",
                retry_after_ms=500,
            )

    # ------------------------------------------------------------ acting

    async def _act(self, owned: OwnedPartition) -> str:
        """Acts until the partition is to be handed over and nothing of ours is under way; returns to whom."""
        while self._failure is None:
            if self._heir is not None and self._settled(self._heir):
                return self._heir
            if self.outbox:
                await self._append(owned)
            elif self._held or self._doubts or not await self._woken():
                await self._look(owned)
            else:
                continue
            if self._heir is None:  # one that is handed over has taken its last one
                self.snapshots.look()
        raise self._failure

    def _settled(self, heir: str) -> bool:
        """Whether the partition can be handed over now: nothing more is taken in, and all is in the log.

        To be asked after each append, whatever waits for the next: under load that is never nothing.  The heir's
        Snapshot is taken beside the work; then no more calls are started, and those under way are waited for.
        """
        pipeline, engine = self.pipeline, self.pipeline.engine
        if self.acting:
            late = pipeline.loop.time() >= self._let_go_at
            if self.snapshots.busy and not late:
                return False
            if self.partition not in engine.held:
                engine.hold(self.partition, held=True)
                pipeline.schedule()
            if engine.calling(self.partition) and not late:
                return False
            pipeline.pump()  # what was answered in this very turn
            self.acting = False
            self.snapshots.close()  # one that took too long is torn
            self.refusal = NoOwner(f"partition {self.partition} is being handed over to {heir}", retry_after_ms=50)
        return not self.outbox

    async def _hand_over(self, heir: str) -> None:
        """Everything is in the log: tells who waits here that the partition is another's, and the heir to take it."""
        group = self.pipeline.group
        assert group is not None
        member = group.succession.agreement.members.get(heir)
        self._owned_by(heir, member.address if member else "")
        self._close()
        group.released(self.partition)
        taken = await group.hand_over(self.partition, self.epoch, heir)
        log.info("handed over", partition=self.partition, to=heir, taken=taken)

    async def _append(self, owned: OwnedPartition) -> None:
        records, encoded = self._batch(owned.token)
        self.writing = records
        pipeline = self.pipeline
        began, asked_at = pipeline.loop.time(), pipeline.now()
        try:
            base = await owned.append(encoded)
        except (SteppedDown, LogError):
            pipeline.metrics.append_failed()
            raise
        if self._failure is not None:
            return  # it is in the log, and the next replay finds it
        self.writing = []
        self.end = base + len(records)
        self.snapshots.appended(base, records, encoded)
        pipeline.metrics.appended(self.partition, len(records), pipeline.loop.time() - began, self.end)
        self._heard(asked_at)
        pipeline.confirmed(self, base, records)
        if self._failure is None:  # all that ended in the batch is in the view
            reached(pipeline.engine, pipeline.view, self.partition, self.end)

    async def _woken(self) -> bool:
        """Waits for something to do; False when it is time for another look at the log."""
        self.wake.clear()
        try:
            async with asyncio.timeout(CHECK_EVERY_S):
                await self.wake.wait()
        except TimeoutError:
            return False
        return True

    async def _look(self, owned: OwnedPartition) -> None:
        """Looks whether another epoch began; a log that cannot be looked at for long is a log that does not answer."""
        asked_at = self.pipeline.now()
        if await owned.check():
            self._heard(asked_at)
        elif (silent := asked_at - self._heard_at) > self.pipeline.append_timeout_ms:
            raise LogError(f"it could not be read for {silent} ms")
        else:
            await self._woken()

    def _heard(self, asked_at: int) -> None:
        """The log said, after ``asked_at``, that the partition is ours: what was held back may go."""
        now = self.pipeline.now()
        if self._doubts:
            self._doubts = [(since, doubt) for since, doubt in self._doubts if not _resolved(doubt, since, asked_at)]
        if now - asked_at > SLEPT_MS:
            self._heard_at = asked_at
            return
        self._heard_at = now
        if self._held:
            held, self._held = self._held, []
            for call in held:
                self.pipeline.send(call)

    def _batch(self, token: bytes) -> tuple[list[Record], list[bytes]]:
        """As much of the outbox as one append may hold, encoded, with the token of this ownership."""
        records: list[Record] = []
        encoded: list[bytes] = []
        size = 0
        limit = self.pipeline.log.record_bytes_max
        for record in self.outbox:
            force_setattr(record, "token", token)
            data = encode(record)
            if len(data) > limit:
                record = records_too_large.shrunk(record, len(data), limit)
                data = encode(record)
            size += len(data)
            if encoded and size > BATCH_BYTES_MAX:
                break
            encoded.append(data)
            records.append(record)
        del self.outbox[: len(encoded)]
        return records, encoded

    def _stepped_down(self, down: SteppedDown) -> None:
        mine = down.by_instance is None or down.by_instance == self.pipeline.instance
        if mine:
            self._unavailable(f"stepped down: {down.reason}")
            return
        self._owned_by(down.by_instance or "", down.by_address or "")
        log.warning(
            "stepped down: another instance owns the partition now",
            partition=self.partition,
            owner=down.by_instance,
            address=down.by_address,
            reason=down.reason,
        )

    def _owned_by(self, instance: str, address: str) -> None:
        self.owner = (instance, address)
        if self.pipeline.group is not None and not self.standing_by:
            self.pipeline.group.fenced(self.partition, instance, self.epoch)
        self.refusal = NoOwner(
            f"instance {instance} at {address} owns partition {self.partition} now", retry_after_ms=1000
        )

    def _unavailable(self, reason: str) -> None:
        log.error("the log is not available; nothing is accepted or called", partition=self.partition, reason=reason)
        if self.pipeline.group is not None:
            self.owner = None  # who fenced us once is not what hinders us now: the next attempt comes later each time
        self.refusal = LogUnavailable(reason, retry_after_ms=500)

    def _corrupt(self, error: CorruptLog) -> None:
        """The log must not be read on: to go on trying would change nothing but add an Epoch each time."""
        self.stopped = error
        self.refusal = LogCorrupt(f"partition {self.partition} has stopped: {error}", retry_after_ms=STOPPED_RETRY_MS)

    async def _stay_stopped(self, reason: str) -> NoReturn:
        """The other partitions go on; an operator has to see to this one, and is reminded of it."""
        pause = STOPPED_REMIND_FIRST_S
        while True:
            log.error(
                "the partition has stopped; nothing of it is accepted or called",
                partition=self.partition,
                reason=reason,
            )
            await asyncio.sleep(pause)
            pause = min(pause * 2, STOPPED_REMIND_MAX_S)

    def _close(self) -> None:
        """Everything volatile goes; those who wait for an append are told, those who wait for a result wait on."""
        self.acting, self.writing, self.outbox, self._held = False, [], [], []
        self.snapshots.close()
        if self._filling is not None:
            self._filling.cancel()
            self._filling = None
        self._durable = self._pushed
        while self._doubts:
            _, doubt = self._doubts.pop()
            if not doubt.done():
                doubt.set_exception(self.refusal)
        while self._waiting:
            _, future = self._waiting.popleft()
            if not future.done():
                future.set_exception(self.refusal)
        self.pipeline.closed(self)

    async def _before_next_attempt(self, delay: float) -> None:
        """At once after a fault of our own; while another instance is alive, as its standby.

        A standby that has ghosts also follows the log's Epochs: a ghost that lands fences the owner, who then takes
        this instance for the new one and becomes its standby, and the two would wait for each other for ever.
        """
        if self.owner is None:
            await asyncio.sleep(delay * (0.5 + self.pipeline.random.random()))
            return
        missed = 0
        looked_to = self.end
        while missed < STANDBY_PROBES:
            await asyncio.sleep(1.0)
            if self._ghosts:
                looked_to, newest = await self._newest_epoch(looked_to)
                if newest is not None and newest.instance == self.pipeline.instance:
                    log.warning("a late record of ours has fenced the owner: taking over", partition=self.partition)
                    return
                if newest is not None:
                    self._owned_by(newest.instance, newest.address)
            instance, address = self.owner
            missed = 0 if await self.pipeline.probe(address, instance) else missed + 1
        log.warning("the owner does not answer any more: taking over", partition=self.partition, owner=self.owner[0])

    async def _newest_epoch(self, start: int) -> tuple[int, Epoch | None]:
        """The last Epoch from ``start`` on, if there is one; with where the next look begins."""
        newest: Epoch | None = None
        at = start
        try:
            async with (
                asyncio.timeout(self.pipeline.append_timeout_ms / 1000),
                contextlib.aclosing(self._read_from(start)) as reading,
            ):
                async for batch in reading:
                    for offset, data in batch:
                        record = read(data, partition=self.partition, offset=offset)
                        newest = record if isinstance(record, Epoch) else newest
                        at = offset + 1
        except (TimeoutError, LogError, CorruptLog):  # whoever acquires reads it all, and says so then
            return start, None
        return at, newest

    async def _read_from(self, start: int) -> AsyncGenerator[list[tuple[int, bytes]], None]:
        """The log from ``start``, or from where it begins now: its owner may have trimmed it."""
        first, _ = await self.pipeline.log.bounds(self.partition)
        async with contextlib.aclosing(self.pipeline.log.read(self.partition, max(start, first))) as reading:
            async for batch in reading:
                yield batch


def _resolved(doubt: asyncio.Future[None], since: int, asked_at: int) -> bool:
    """Whether a word of the log that was asked for at ``asked_at`` answers a doubt since ``since``."""
    if asked_at < since:
        return False
    if not doubt.done():
        doubt.set_result(None)
    return True
