"""The straight line: transport → admission → log → engine → gateway → log → reply.  Read this module first.

    submit ──▶ engine.submit ─┐                                  ┌─▶ gateway.send ──▶ answered ─┐
                              ▼                                  │                              │
                      a lane's outbox ──▶ log.append ──▶ engine.apply ──▶ engine.take           │
                              ▲                                  │                              │
                              └──────────────────────────────────┴─▶ watchers (replies)         │
                              └────────────────────────── engine.answer ◀───────────────────────┘

One rule makes it crash-safe: nothing is acted on before the record that says so is durable.  The engine can only act
on what `apply` gave it, and `apply` is only called by `_confirmed`, with a batch that the log has settled.

One Lane a partition, one task a lane, at most one append in flight a lane: what is proposed meanwhile shares the next
one.  No task a command, a record or a call.

A lane's life is: acquire (a new epoch), replay, act, step down, acquire again.  Whatever goes wrong while it acts, be
it the log, a rival or a mistake of our own, ends in a step down: all that is volatile goes, and the log is read anew.
For those who wait that means: an unconfirmed submission or operator's request is told at once (`log_unavailable`: it
may have landed); who waits for a command's result waits on, and after the next replay is told what it missed; if
somebody else owns the partition now, all are sent there (`no_owner`).

A lane calls nobody on stale knowledge.  Most calls follow an append, and its ack proves that the partition is ours; a
retry follows nothing, and somebody else may have taken over since.  So a call that comes more than `FRESH_MS` after the
last word from the log is held back until the lane has looked: under load that costs nothing, and of a process that was
stopped for a while and goes on, no service hears.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from random import Random
from typing import Any, Protocol

import structlog
from msgspec.structs import force_setattr

from coordinator.engine import records_too_large, views
from coordinator.engine.engine import Engine, Output
from coordinator.engine.state import Command
from coordinator.errors import CoordinatorError, CorruptLog, LogUnavailable, NoOwner, Starting, Unavailable
from coordinator.gateway.base import Done
from coordinator.log.base import Log, LogError
from coordinator.log.owned import OwnedPartition, SteppedDown
from coordinator.model.call import Answer, Call
from coordinator.model.command import CommandView
from coordinator.model.ids import CommandId, partition_of, position
from coordinator.model.records import (
    NIL,
    CommandRecord,
    Epoch,
    Outcome,
    Record,
    Registered,
    StepFailed,
    Submitted,
    Undone,
)
from coordinator.server.metrics import Metrics
from coordinator.transport.base import Event
from coordinator.view import FinishedCommand, View
from coordinator.watchers import Watchers
from coordinator.wire.codec import EPOCH, decode, encode, header

log = structlog.get_logger(__name__)

BATCH_BYTES_MAX = 900_000  # of one append: below Kafka's default message limit
REACQUIRE_FIRST_S, REACQUIRE_MAX_S = 0.1, 5.0
CHECK_EVERY_S = 0.5
FRESH_MS = 100  # how long after a word from its log a lane may call services without another look
SLEPT_MS = 500  # a word that took longer than this is as old as the question: this process may have been stopped
TIMER_S_MAX = 1.0  # of sleep, so that a clock that jumps ahead, or a machine that slept, is noticed
STANDBY_PROBES = 3


class Gateway(Protocol):
    """What the pipeline needs of `gateway.Gateway`."""

    def send(self, call: Call, done: Done) -> None: ...


class Lane:
    """One partition: its outbox, its one append in flight, and its life."""

    def __init__(self, pipeline: Pipeline, partition: int) -> None:
        self.pipeline = pipeline
        self.partition = partition
        self.outbox: list[Record] = []
        self.writing: list[Record] = []
        self.wake = asyncio.Event()
        self.acting = False
        self.refusal: CoordinatorError = Starting("the log is being replayed", retry_after_ms=200)
        self.epoch = -1
        self.acquired_at = 0
        self.end = 0
        self.owner: tuple[str, str] | None = None  # instance and address of who fenced us
        self.epochs: list[tuple[int, bytes]] = []
        self._heard_at = 0  # when the log was last asked whether the partition is ours, and said so (ms)
        self._held: list[Call] = []  # calls that wait for the next look at the log
        self._failure: Exception | None = None
        self._pushed = 0
        self._durable = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._ghosts = 0  # own attempts whose Epoch was never found: it may still land

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

    async def run(self) -> None:
        """Owns the partition for as long as the process lives; ends only by cancellation or a corrupt log."""
        delay = REACQUIRE_FIRST_S
        while True:
            owned = self.pipeline.owned_partition(self.partition)
            try:
                await self._acquire(owned)
                delay = REACQUIRE_FIRST_S
                await self._act(owned)
            except SteppedDown as down:
                self.pipeline.metrics.stepped_down(self.partition)
                self._stepped_down(down)
            except LogError as error:
                self._unavailable(f"the log does not answer: {error}")
            except Unavailable as error:
                self._unavailable(error.detail)
            except CorruptLog as error:
                self._unavailable(str(error))
                raise
            except Exception as error:
                log.exception("a mistake of this program: the partition starts over from its log")
                self._unavailable(f"an internal error: {error!r}")
            finally:
                self._close()
                await owned.close()
            await self._before_next_attempt(delay)
            delay = min(delay * 2, REACQUIRE_MAX_S)

    async def _acquire(self, owned: OwnedPartition) -> None:
        began = self.pipeline.now()
        self._failure = None
        replay = _Replay(self, self.pipeline)
        self.epochs = replay.epochs
        self._ghosts += 1
        epoch = await owned.acquire(replay.records)
        self._ghosts -= 1
        if self.pipeline.view.ahead(self.partition, epoch):
            raise LogError("the view is ahead of the log, which was put back in time; the view is made anew")
        self.epoch = epoch
        self.owner = None
        told, self.end = self.end, epoch + 1
        self.acquired_at = self.pipeline.now()
        self._heard_at = self.acquired_at - FRESH_MS - 1  # a replay takes long enough for somebody else's Epoch
        self.acting = True
        self.pipeline.engine.open(self.partition, owned.token, epoch)
        took = self.acquired_at - began
        log.info("partition acquired", partition=self.partition, epoch=epoch, records=replay.count, ms=took)
        self.pipeline.metrics.acquired(self.partition, epoch, took / 1000)
        self.pipeline.on_acquired(self, told)

    async def _act(self, owned: OwnedPartition) -> None:
        while self._failure is None:
            if self.outbox:
                await self._append(owned)
            elif self._held or not await self._woken():
                await self._look(owned)
        raise self._failure

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
        pipeline.metrics.appended(self.partition, len(records), pipeline.loop.time() - began, self.end)
        self._heard(asked_at)
        pipeline.confirmed(self, base, records)

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
        self.refusal = NoOwner(
            f"instance {instance} at {address} owns partition {self.partition} now", retry_after_ms=1000
        )

    def _unavailable(self, reason: str) -> None:
        log.error("the log is not available; nothing is accepted or called", partition=self.partition, reason=reason)
        self.refusal = LogUnavailable(reason, retry_after_ms=500)

    def _close(self) -> None:
        """Everything volatile goes; those who wait for an append are told, those who wait for a result wait on."""
        self.acting, self.writing, self.outbox, self._held = False, [], [], []
        self._durable = self._pushed
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
        newest, at = None, start
        try:
            async with (
                asyncio.timeout(self.pipeline.append_timeout_ms / 1000),
                contextlib.aclosing(self.pipeline.log.read(self.partition, start)) as reading,
            ):
                async for batch in reading:
                    for offset, data in batch:
                        if header(data, partition=self.partition, offset=offset).kind == EPOCH:
                            newest = decode(data, partition=self.partition, offset=offset)
                        at = offset + 1
        except (TimeoutError, LogError):
            return start, None
        assert newest is None or isinstance(newest, Epoch)
        return at, newest


class _Replay:
    """Folds what the log has, at the start of an ownership; finished commands go to the view."""

    def __init__(self, lane: Lane, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.partition = lane.partition
        self.epochs: list[tuple[int, bytes]] = []
        self.count = 0
        self._watermark = 0

    def records(self, batch: list[tuple[int, Record]]) -> None:
        engine, partition = self.pipeline.engine, self.partition
        for offset, record in batch:
            if isinstance(record, Epoch):
                if not self.epochs:
                    self._watermark = self.pipeline.view.adopt(partition, record.token)
                self.epochs.append((offset, record.token))
            else:
                engine.apply(partition, offset, record)
        self.count += len(batch)
        ended = [each for each in engine.take_replayed() if each.history[-1][0] >= self._watermark]
        self.pipeline.view.put_many([finished_command(command) for command in ended])


class Pipeline:
    """Joins log, engine, gateway and watchers.  One event loop, one writer."""

    def __init__(
        self,
        *,
        log: Log,
        engine: Engine,
        gateway: Gateway,
        view: View,
        metrics: Metrics,
        clock: Callable[[], int],
        random: Random,
        instance: str,
        address: str,
        append_timeout_ms: int,
        probe: Callable[[str, str], Any],
    ) -> None:
        self.log = log
        self.engine = engine
        self.gateway = gateway
        self.view = view
        self.metrics = metrics
        self.now = clock
        self.random = random
        self.instance = instance
        self.address = address
        self.append_timeout_ms = append_timeout_ms
        self.probe = probe
        self.watchers = Watchers()
        self.loop = asyncio.get_running_loop()
        self.lanes = [Lane(self, partition) for partition in range(log.partitions)]
        self.fatal: CorruptLog | None = None
        self.changed = asyncio.Event()  # set whenever a lane is acquired or lost
        self.view.on_damage = self._start_over
        self._pumping = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0

    # ------------------------------------------------------------ life

    async def run(self) -> None:
        """Runs every lane until cancelled; raises CorruptLog when the log cannot be read."""
        async with asyncio.TaskGroup() as group:
            for lane in self.lanes:
                group.create_task(lane.run(), name=f"lane-{lane.partition}")

    def owned_partition(self, partition: int) -> OwnedPartition:
        return OwnedPartition(
            self.log,
            partition,
            instance=self.instance,
            address=self.address,
            append_timeout_ms=self.append_timeout_ms,
            clock=self.now,
        )

    def on_acquired(self, lane: Lane, told: int) -> None:
        """A lane acts; who watches has been told of what is below the offset ``told``."""
        self.changed.set()
        self._catch_up(lane, told)
        self.pump()

    def closed(self, lane: Lane) -> None:
        """A lane steps down: in-doubt submissions are told so; if somebody else owns it, all who watch are sent
        there."""
        doubtful = [id for id, (_, partition) in self.engine.reserved.items() if partition == lane.partition]
        gone = self.engine.close(lane.partition)
        self.changed.set()
        for id in doubtful:
            self.watchers.end(id, Event("error", id, error=lane.refusal))
        if lane.owner is not None:
            for command in gone:
                self.watchers.end(command.id, Event("error", command.id, error=lane.refusal))
        self.schedule()  # a probe that was dropped makes room for another partition's calls

    def _catch_up(self, lane: Lane, told: int) -> None:
        """Tells who watches what was recorded while the partition was not acted for: appends in doubt that landed."""
        for id in self.watchers.ids():
            if partition_of(id, len(self.lanes)) != lane.partition:
                continue
            command = self.engine.commands.get(CommandId(id))
            ended = None if command is not None else self.view.records(id)
            if command is not None:
                records: list[tuple[int, Any]] = command.history
            elif ended is not None:
                records = [(at, decode(data, partition=lane.partition, offset=at)) for at, data in ended[1]]
            else:
                continue
            for offset, record in records:
                if offset >= told:
                    self._tell(lane.partition, offset, record)
            if ended is not None:
                view = self.view.get(id)
                assert view is not None
                place = position(lane.partition, records[-1][0])
                self.watchers.end(id, Event("final", id, place, view.state.value, view=view))

    # ------------------------------------------------------------ the line

    def confirmed(self, lane: Lane, base: int, records: list[Record]) -> None:
        """A batch is durable and ours: fold it, tell who watches, then do what follows."""
        engine, watchers, partition = self.engine, self.watchers, lane.partition
        for offset, record in enumerate(records, base):
            engine.apply(partition, offset, record)
            if len(watchers) and not isinstance(record, (Registered, Epoch)) and record.id in watchers:
                self._tell(partition, offset, record)
        self.pump()
        lane.settle(len(records))

    def _tell(self, partition: int, offset: int, record: CommandRecord) -> None:
        id = record.id
        if isinstance(record, Submitted):
            command = self.engine.commands.get(record.id)
            view = views.command_view(command) if command and self.watchers.wanted(id, "accepted") else None
            self.watchers.tell(id, Event("accepted", id, position(partition, offset), "running", view=view))
        elif self.watchers.wanted(id, "events") and isinstance(record, (Outcome, StepFailed, Undone)):
            command = self.engine.commands.get(record.id)
            state = command.state.value if command else ""
            entry = views.history_entry(partition, offset, record)
            self.watchers.tell(id, Event("step", id, position(partition, offset), state, record=entry))

    def schedule(self) -> None:
        """Runs `pump` once in this turn of the loop, however many answers and submissions come in it."""
        if not self._pumping:
            self._pumping = True
            self.loop.call_soon(self.pump)

    def pump(self) -> None:
        """Takes what the engine has decided and does it; a mistake in that costs the partitions, not the daemon."""
        self._pumping = False
        try:
            self._pump()
        except Exception as error:
            log.exception("a mistake of this program: every partition starts over from its log")
            self._start_over(error)

    def _start_over(self, error: Exception) -> None:
        for lane in self.lanes:
            lane.fail(error)

    def _pump(self) -> None:
        now = self.now()
        self.engine.tick(now)
        output = self.engine.take(now)
        for partition, record in output.records:
            self.lanes[partition].push(record)
        for call in output.calls:
            self.lanes[call.partition].call(call, now)
        self._notify(output)
        self._arm(now)

    def send(self, call: Call) -> None:
        """Makes a call; its answer comes back to the engine."""
        self.gateway.send(call, self._answered)

    def _notify(self, output: Output) -> None:
        watchers = self.watchers
        for command in output.finished:
            finished = finished_command(command)
            self.view.put(finished)
            kind = finished.type if command.submitted.definition == NIL else "definition"  # a client named that one
            self.metrics.finished(kind, finished.state, (command.touched - command.submitted.at) / 1000)
            if command.id in watchers:
                place = position(command.partition, finished.end)
                view = views.command_view(command, self.engine.registry.planned(command.submitted))
                watchers.end(command.id, Event("final", command.id, place, finished.state, view=view))
        if watchers.detailed:
            for command in output.touched:
                self._state(command)

    def _state(self, command: Command) -> None:
        id = command.id
        if command.finished is not None or not self.watchers.wanted(id, "events"):
            return
        state = command.state.value
        if self.watchers.shown.get(id, "running") != state:
            self.watchers.shown[id] = state
            self.watchers.tell(id, Event("state", id, position(command.partition, command.history[-1][0]), state))

    def _answered(self, call: Call, answer: Answer) -> None:
        now = self.now()
        self.metrics.answered(call.request.service, answer.verdict.value, (now - call.sent_at) / 1000)
        self.engine.answer(call, answer, now)
        self.schedule()

    def _arm(self, now: float) -> None:
        due = self.engine.due(now)
        if due is None:
            return
        if self._timer is not None:
            if self._timer_due <= due and self._timer_due > now:
                return
            self._timer.cancel()
        self._timer_due = due
        self._timer = self.loop.call_later(min(max(0.0005, (due - now) / 1000), TIMER_S_MAX), self._fire)

    def _fire(self) -> None:
        self._timer = None
        self.pump()


def finished_command(command: Command) -> FinishedCommand:
    """What the view keeps of a command that has ended."""
    submitted, finished = command.submitted, command.finished
    assert finished is not None
    return FinishedCommand(
        id=command.id,
        type=submitted.type,
        state=finished.state,
        submitted_at=submitted.at,
        partition=command.partition,
        fingerprint=submitted.fingerprint,
        attributes=submitted.attributes,
        records=[(offset, encode(record)) for offset, record in command.history],
    )


def shown(engine: Engine, partition: int, records: list[tuple[int, bytes]]) -> CommandView:
    """The view of a finished command, from its records by the fold that made it."""
    decoded = [(offset, decode(data, partition=partition, offset=offset)) for offset, data in records]
    command = engine.recall(partition, decoded)  # type: ignore[arg-type]
    return views.command_view(command, engine.registry.planned(command.submitted))
