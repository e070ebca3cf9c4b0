"""The hands of the schedules: one timer, and no task a schedule.

`engine.schedules` says what is to be done next for a schedule; here it is done, and when it is done, or anything else
has happened, asked again:

    Wait    a place in one heap of times, and the one timer is set to the first of them
    Note    a record is proposed; the answer is that the record comes back, folded
    Start   the command is submitted; the answer comes to a watcher, as for any client
    Ask     the command is looked up, and watched if it has not ended
    Cancel  the command is cancelled, in the schedule's name

A record that is on its way holds everything else of its schedule back; an answer that is on its way holds only further
requests back, since due times must be recorded as they come.

Commands of a schedule are submitted through the Front that clients are served by: they may live in any partition, on
any instance, and are admitted and refused as any others.  A refusal that another time may mend (no slot, a suspended
service, no owner) is asked again, later each time; the due time stands in the log meanwhile, and nothing is dropped.
One that nothing mends is recorded as skipped.

What is here may be lost at any moment, with the partition or with the process; the next owner comes to the same by its
records.  The worst that two owners at a time can do is to submit one command twice, which is one command.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
from collections.abc import Coroutine
from typing import Any, Final

from coordinator.engine.schedules import Ask, Cancel, Note, Schedules, Series, Start, Wait
from coordinator.errors import CoordinatorError, IdConflict, IllegalState, Internal, Stopping, UnknownCommand
from coordinator.logs import get_logger
from coordinator.model.command import FINAL, Operation
from coordinator.model.ids import partition_of
from coordinator.model.records import SCHEMA, Schedule
from coordinator.model.schedule import moment, run_id
from coordinator.pipeline import Pipeline
from coordinator.transport.base import Event, Front, Unwatch, caller

log = get_logger(__name__)

AGAIN_FIRST_MS: Final = 250  # after a refusal that says nothing of when to ask again
AGAIN_MAX_MS: Final = 30_000
TIMER_S_MAX: Final = 1.0  # so that a clock that jumps ahead, or a machine that slept, is noticed
STATES_S: Final = 1.0  # of waiting for the states of runs that are shown; less than a list waits for an instance
HELD_MS: Final = 250  # a partition that is being handed over may yet stay

Key = tuple[int, str]
"""A schedule: its partition and its name."""


class Hand:
    """What is under way for one schedule during one ownership of its partition."""

    __slots__ = ("again_at", "cancelled", "ended", "noted", "refusals", "run", "starting", "unwatch", "waiting", "why")

    def __init__(self) -> None:
        self.noted: Schedule | None = None  # the record that is to come back before anything else is decided
        self.waiting = False  # for the answer to a Start, an Ask or a Cancel; due times may come meanwhile
        self.starting = 0  # the due time whose command is on its way
        self.run = ""  # the command that is followed
        self.ended: bool | None = None  # whether it has; None: not known
        self.unwatch: Unwatch | None = None
        self.cancelled = ""  # the command that was cancelled, so that it is asked for once
        self.again_at = 0  # after a refusal: not before this time (ms)
        self.refusals = 0  # in a row
        self.why = ""

    def going(self, last: Schedule | None) -> bool | None:
        """Whether the last run has not ended; None where that is to be found out."""
        if last is None or last.command != self.run or self.ended is None:
            return None
        return not self.ended

    def follow(self, command: str) -> None:
        """From now on, this is the run; something is asked of it."""
        self.leave()
        self.run, self.ended = command, None
        self.waiting = True

    def answered(self) -> None:
        """What was asked was granted: the next refusal is the first one again."""
        self.waiting, self.starting = False, 0
        self.again_at, self.refusals, self.why = 0, 0, ""

    def leave(self) -> None:
        if self.unwatch is not None:
            unwatch, self.unwatch = self.unwatch, None
            unwatch()


class Scheduling:
    """Fires the schedules of the partitions that this instance acts for, from `start` until `close`.

    ``front`` is the one that the daemon serves.
    """

    def __init__(self, pipeline: Pipeline, front: Front) -> None:
        self.pipeline = pipeline
        self.front = front
        self.engine = pipeline.engine
        self.schedules: Schedules = pipeline.engine.schedules
        self._loop = pipeline.loop
        self._context = contextvars.copy_context()
        self._hands: dict[Key, Hand] = {}
        self._changed: dict[Key, None] = {}  # in order
        self._due: list[tuple[int, int, Key]] = []
        self._sequence = 0
        self._looking = False
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    # ------------------------------------------------------------ life

    def start(self) -> None:
        """Begins with the partitions that are acted for, and takes up others as they come.

        All that is done from here on is done in the context of this call, and not in that of a client who happens to be
        served when a schedule changes: its deadline is not the schedule's.
        """
        self._context = contextvars.copy_context()
        self._context.run(caller.set, None)
        self.schedules.changed = self._on_change
        for partition in self.engine.shards:
            self._on_change(partition, None)

    async def close(self) -> None:
        """Fires nothing more; what was submitted runs on, and what was not is its next owner's."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for hand in self._hands.values():
            hand.leave()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def why(self, series: Series) -> str:
        """What the run that is due waits for."""
        hand = self._hands.get((partition_of(series.name, len(self.pipeline.lanes)), series.name))
        last = series.last
        if hand is not None and hand.why:
            return hand.why
        if hand is None or hand.starting or last is None or hand.going(last) is False:
            return "it is about to begin"
        ended = "is cancelled, and not undone yet" if hand.cancelled == last.command else "has not ended yet"
        return f"the last run, {last.command}, {ended}"

    async def states(self, commands: list[str]) -> list[str | None]:
        """The states of these commands, wherever they are; None for those that cannot be told in time.

        Asked as a client of this instance's own: whoever wants to know may be another instance.
        """
        if not commands:
            return []
        asked = [self._loop.create_task(self._state(each), context=self._context.copy()) for each in commands]
        try:
            await asyncio.wait(asked, timeout=STATES_S)
            return [task.result() if task.done() else None for task in asked]
        finally:
            for task in asked:
                task.cancel()

    async def _state(self, command: str) -> str | None:
        try:
            return (await self.front.get(command)).state.value
        except CoordinatorError:
            return None

    # ------------------------------------------------------------ something has happened

    def _on_change(self, partition: int, record: Schedule | None) -> None:
        """The fold has moved, by this record; None: the partition has come, or gone."""
        if record is None:
            for key in [key for key in self._hands if key[0] == partition]:
                self._hands.pop(key).leave()
            for series in self.schedules.of(partition):
                self._touch((partition, series.name))
            return
        key = partition, record.name
        hand = self._hands.get(key)
        if hand is not None and hand.noted is record:
            hand.noted = None
        if partition in self.engine.shards:
            self._touch(key)

    def _touch(self, key: Key) -> None:
        self._changed[key] = None
        self._soon()

    def _soon(self) -> None:
        if not self._looking and not self._closed:
            self._looking = True
            self._loop.call_soon(self._look, context=self._context)

    def _look(self) -> None:
        """Sees to every schedule of which something has changed, and to those whose time has come."""
        self._looking = False
        if self._closed:
            return
        now = self.pipeline.now()
        while self._due and self._due[0][0] <= now:
            self._changed[heapq.heappop(self._due)[2]] = None
        changed, self._changed = self._changed, {}
        for key in changed:
            try:
                self._see_to(key, now)
            except Exception as error:  # one schedule's trouble is not the others'
                self._begin_again(key, self._hands.get(key), error)
        self._set_timer(now)

    def _begin_again(self, key: Key, hand: Hand | None, error: BaseException) -> None:
        """After a mistake of ours: what was under way is not known, and found out anew after a while, by the records,
        as by a new owner.  To wait for an answer that does not come would be to wait for ever."""
        log.error("a mistake of this program: a schedule waits", schedule=key[1], exc_info=error)
        if hand is not None and self._hands.get(key) is hand:
            self._hands.pop(key).leave()
        self._wake_at(self.pipeline.now() + AGAIN_MAX_MS, key)

    def _wake_at(self, at: int, key: Key) -> None:
        self._sequence += 1
        heapq.heappush(self._due, (at, self._sequence, key))

    def _set_timer(self, now: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._due:
            delay_s = min(max(0.0005, (self._due[0][0] - now) / 1000), TIMER_S_MAX)
            self._timer = self._loop.call_later(delay_s, self._look, context=self._context)

    # ------------------------------------------------------------ what is to be done

    def _see_to(self, key: Key, now: int) -> None:
        partition, name = key
        shard = self.engine.shards.get(partition)
        series = self.schedules.get(partition, name)
        if shard is None or series is None:
            hand = self._hands.pop(key, None)
            if hand is not None:
                hand.leave()
            return
        if partition in self.engine.held:
            self._wake_at(now + HELD_MS, key)
            return
        hand = self._hands.get(key)
        if hand is None:
            hand = self._hands[key] = Hand()
        if hand.noted is not None:
            return
        since = self.pipeline.lanes[partition].acquired_at
        step = series.step(now, since, hand.going(series.last), refused=hand.refusals > 0)
        match step:
            case Wait(until):
                if until is not None:
                    self._wake_at(until, key)
            case Note(due=due) if due == hand.starting:
                self._wake_at_next(series, now, key)  # it may be replaced once it is known what becomes of it
            case Note():
                self._note(key, hand, step.action, step.due, reason=step.reason)
            case Cancel(command) if command == hand.cancelled:
                self._wake_at_next(series, now, key)
            case _ if hand.waiting or now < hand.again_at:
                self._wake_at_next(series, now, key)
                if not hand.waiting:
                    self._wake_at(hand.again_at, key)
            case Start():
                self._start(key, hand, series, step.due)
            case Ask():
                hand.follow(step.command)
                self._spawn(key, hand, self._ask(key, hand, step.command))
            case Cancel():
                hand.waiting = True
                self._spawn(key, hand, self._cancel(key, hand, step.command))

    def _wake_at_next(self, series: Series, now: int, key: Key) -> None:
        """The next due time comes, whatever the one before it waits for."""
        due = series.next(now)
        if due is not None:
            self._wake_at(due, key)

    def _note(self, key: Key, hand: Hand, action: str, due: int, *, command: str = "", reason: str = "") -> None:
        """Proposes a record; nothing else is decided until it comes back, or the partition is lost."""
        partition, name = key
        record = Schedule(SCHEMA, b"", self.pipeline.now(), name, action, due=due, command=command, reason=reason)
        hand.noted = record
        self.engine.register(record, partition)
        self.pipeline.schedule()
        if action == "skipped":
            log.warning("a scheduled run is skipped", schedule=name, due=moment(due), reason=reason)
        elif reason:
            log.info("a scheduled run", schedule=name, due=moment(due), reason=reason)
        if action in ("fired", "skipped"):
            self.pipeline.metrics.scheduled(action)

    # ------------------------------------------------------------ submitting

    def _start(self, key: Key, hand: Hand, series: Series, due: int) -> None:
        assert series.spec is not None
        command = run_id(series.name, due)
        hand.follow(command)
        hand.starting = due

        def told(event: Event) -> None:
            if self._hands.get(key) is not hand or hand.run != command:
                return
            match event.kind:
                case "accepted":
                    hand.ended = False
                    hand.answered()
                    self._note(key, hand, "fired", due, command=command)
                case "final":
                    self._ended(key, hand)
                case "error":
                    hand.unwatch = None
                    if hand.ended is None:
                        self._refused(key, hand, due, event.error or Internal())
                    else:
                        self._lost(key, hand)
                case _:
                    pass

        try:
            _, hand.unwatch = self.front.submit(series.spec.submission(series.name, due), told, "final")
        except CoordinatorError as error:
            self._refused(key, hand, due, error)

    def _refused(self, key: Key, hand: Hand, due: int, error: CoordinatorError) -> None:
        """A submission was not taken: that is final, or asked again."""
        hand.run = ""
        if isinstance(error, IdConflict):
            hand.answered()
            # The schedule was put anew between two submissions of the same due time: the first one counts.
            reason = f"a command of this id was there already: {error.detail}"
            self._note(key, hand, "fired", due, command=run_id(key[1], due), reason=reason)
        elif error.retryable or isinstance(error, Internal):
            if hand.refusals == 0 and not isinstance(error, Stopping):
                log.warning("a scheduled run has to wait", schedule=key[1], due=moment(due), reason=error.detail)
            self._again(key, hand, error)
        else:
            hand.answered()
            self._note(key, hand, "skipped", due, reason=f"{error.code}: {error.detail}")

    def _again(self, key: Key, hand: Hand, error: CoordinatorError) -> None:
        """Later, and later each time; never before the refusal allows it."""
        backoff = min(AGAIN_FIRST_MS << min(hand.refusals, 10), AGAIN_MAX_MS)
        delay = max(error.retry_after_ms or 0, round(backoff * (0.5 + self.pipeline.random.random() / 2)))
        hand.refusals += 1
        hand.waiting, hand.starting = False, 0
        hand.why = f"{error.code}: {error.detail}"
        hand.again_at = self.pipeline.now() + delay
        self._touch(key)

    # ------------------------------------------------------------ the last run

    def _ended(self, key: Key, hand: Hand) -> None:
        hand.ended = True
        hand.unwatch = None
        self._touch(key)

    def _lost(self, key: Key, hand: Hand) -> None:
        """Nobody tells any more when the run ends: to be asked for when it matters."""
        hand.ended = None
        self._touch(key)

    async def _ask(self, key: Key, hand: Hand, command: str) -> None:
        """Whether the command has ended; if not, its end will be told."""
        try:
            view = await self.front.get(command)
            if self._hands.get(key) is not hand:
                return
            hand.ended = view.state in FINAL
            if not hand.ended:
                hand.unwatch = self.front.watch(command, self._watcher(key, hand, command), after=view.position)
        except UnknownCommand:
            hand.ended = True  # it was fired, so it was there: it has ended long ago
        except CoordinatorError as error:
            hand.ended = None
            self._again(key, hand, error)
            return
        hand.answered()
        self._touch(key)

    def _watcher(self, key: Key, hand: Hand, command: str) -> Any:
        def told(event: Event) -> None:
            if self._hands.get(key) is not hand or hand.run != command:
                return
            if event.kind == "final":
                self._ended(key, hand)
            elif event.kind == "error":
                hand.unwatch = None
                self._lost(key, hand)

        return told

    async def _cancel(self, key: Key, hand: Hand, command: str) -> None:
        """Its end is awaited, whatever comes of this: it may be compensating already, or wait for an operator."""
        reason = "replaced by the schedule's next run"
        try:
            await self.front.control(command, Operation.CANCEL, reason=reason, by=f"schedule {key[1]}")
        except (IllegalState, UnknownCommand):
            pass
        except CoordinatorError as error:
            self._again(key, hand, error)
            return
        hand.cancelled = command
        hand.answered()
        self._touch(key)

    def _spawn(self, key: Key, hand: Hand, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work, context=self._context.copy())
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._done(key, hand, done))

    def _done(self, key: Key, hand: Hand, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._begin_again(key, hand, error)
            self._soon()
