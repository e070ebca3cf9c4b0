"""The straight line: transport → admission → log → engine → gateway → log → reply.  Read this module first.

    submit ──▶ engine.submit ─┐                                  ┌─▶ gateway.send ──▶ answered ─┐
                              ▼                                  │                              │
                      a lane's outbox ──▶ log.append ──▶ engine.apply ──▶ engine.take           │
                              ▲                                  │                              │
                              └──────────────────────────────────┴─▶ watchers (replies)         │
                              └────────────────────────── engine.answer ◀───────────────────────┘

One rule makes it crash-safe: nothing is acted on before the record that says so is durable.  The engine can only act
on what `apply` gave it, and `apply` is only called by `_confirmed`, with a batch that the log has settled.

One Lane a partition (`lane`), one task a lane, at most one append in flight a lane: what is proposed meanwhile shares
the next one.  No task a command, a record or a call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from random import Random
from typing import TYPE_CHECKING, Any, Protocol

from coordinator.engine import views
from coordinator.engine.engine import Engine, Output
from coordinator.engine.state import Command
from coordinator.errors import CorruptLog, Starting
from coordinator.gateway.base import Done
from coordinator.lane import Lane
from coordinator.log.base import Log
from coordinator.log.owned import OwnedPartition, new_token
from coordinator.logs import get_logger
from coordinator.model.call import Answer, Call
from coordinator.model.command import CommandView
from coordinator.model.damaged import Damaged
from coordinator.model.ids import CommandId, partition_of, position
from coordinator.model.records import (
    NIL,
    CommandRecord,
    Epoch,
    Outcome,
    Record,
    Registered,
    Schedule,
    Snapshot,
    StepFailed,
    Submitted,
    Undone,
)
from coordinator.replaying import collector_at_rest, finished_command
from coordinator.server.metrics import Metrics
from coordinator.snapshotting import SnapshotSettings
from coordinator.transport.base import Event
from coordinator.view import View
from coordinator.watchers import Watchers
from coordinator.wire.codec import read

if TYPE_CHECKING:
    from coordinator.cluster.group import Group

log = get_logger(__name__)

_OF_NO_COMMAND = (Registered, Schedule, Epoch, Snapshot)
SETTLE_S = 2.0  # how long calls under way are waited for before their partition is handed over
QUARANTINE_TOLD_MAX = 20  # of one replay, each with a line of its own
TIMER_S_MAX = 1.0  # of sleep, so that a clock that jumps ahead, or a machine that slept, is noticed


class Gateway(Protocol):
    """What the pipeline needs of `gateway.Gateway`."""

    def send(self, call: Call, done: Done) -> None: ...


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
        snapshots: SnapshotSettings | None = None,
        group_name: str = "",
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
        self.group_name = group_name
        self.owned = OwnedPartition  # a simulation has one that breaks a rule, and tokens from its seed
        self.new_token = new_token
        self.at_rest: Callable[[], AbstractContextManager[None]] = collector_at_rest  # in a process of its own
        self.append_timeout_ms = append_timeout_ms
        self.probe = probe
        self.snapshot_settings = snapshots or SnapshotSettings()
        self.watchers = Watchers()
        self.loop = asyncio.get_running_loop()
        self.engine.partitions = log.partitions
        self.lanes = [Lane(self, partition) for partition in range(log.partitions)]
        self.fatal: CorruptLog | None = None
        self.changed = asyncio.Event()  # set whenever a lane is acquired or lost
        self.group: Group | None = None  # set before `run`, where instances share the log
        self.settle_s = SETTLE_S
        self.turns = 0  # of work: who works in the background holds back while this grows
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
        return self.owned(
            self.log,
            partition,
            instance=self.instance,
            address=self.address,
            append_timeout_ms=self.append_timeout_ms,
            clock=self.now,
            group=self.group_name,
            on_garbage=self._garbage,
            token=self.new_token,
        )

    def _garbage(self, damaged: Damaged) -> None:
        """Bytes of nobody were found between our own records: for the list, as the next replay will have them."""
        self.engine.apply(damaged.partition, damaged.offset, damaged)
        self.schedule()

    def on_acquired(self, lane: Lane, told: int) -> None:
        """A lane acts; who watches has been told of what is below the offset ``told``."""
        self.changed.set()
        self._catch_up(lane, told)
        self.pump()

    def closed(self, lane: Lane) -> None:
        """A lane steps down: in-doubt submissions are told so; if somebody else owns it, or may soon, all who watch are
        told to look there."""
        doubtful = [id for id, (_, partition) in self.engine.reserved.items() if partition == lane.partition]
        gone = self.engine.close(lane.partition)
        self.changed.set()
        for id in doubtful:
            self.watchers.end(id, Event("error", id, error=lane.refusal))
        if lane.owner is not None or self.group is not None:
            for id in gone:
                self.watchers.end(id, Event("error", id, error=lane.refusal))
        if lane.stopped is not None:  # nothing will come here any more, whoever waits since before a step down included
            for watched in self.watchers.ids():
                if partition_of(watched, len(self.lanes)) == lane.partition:
                    self.watchers.end(watched, Event("error", watched, error=lane.refusal))
        self.schedule()  # a probe that was dropped makes room for another partition's calls

    def _catch_up(self, lane: Lane, told: int) -> None:
        """Tells who watches what was recorded while the partition was not acted for: appends in doubt that landed."""
        for id in self.watchers.ids():
            if partition_of(id, len(self.lanes)) != lane.partition:
                continue
            command = self.engine.look_at(lane.partition, CommandId(id))
            ended = None if command is not None else self.view.records(id)
            if command is not None:
                records: list[tuple[int, Any]] = command.history
            elif ended is not None:
                records = [(at, read(data, partition=lane.partition, offset=at)) for at, data in ended[1]]
            else:  # it ended below the snapshot that the replay began with: who asks again is told from the log
                error = Starting("the partition was lost for a while: ask again", retry_after_ms=100)
                self.watchers.end(id, Event("error", id, error=error))
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
            if len(watchers) and not isinstance(record, _OF_NO_COMMAND) and record.id in watchers:
                self._tell(partition, offset, record)
        self.pump()
        lane.settle(len(records))

    def _tell(self, partition: int, offset: int, record: CommandRecord) -> None:
        id = record.id
        if isinstance(record, Submitted):
            command = self.engine.commands.get(record.id)
            view = None
            if command is not None and self.watchers.wanted(id, "accepted"):
                view = views.command_view(command, self.engine.registry.planned(command.submitted))
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
        self.turns += 1
        self.engine.tick(now)
        output = self.engine.take(now)
        for partition, record in output.records:
            self.lanes[partition].push(record)
        for call in output.calls:
            self.lanes[call.partition].call(call, now)
        self._notify(output)
        self._tell_quarantine()
        if self.engine.busy:
            self.schedule()
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

    def _tell_quarantine(self) -> None:
        listed = self.engine.take_listed()
        for partition, entry in listed[:QUARANTINE_TOLD_MAX]:
            log.warning(
                "a record is in quarantine",
                position=position(partition, entry.offset),
                reason=entry.reason,
                effect=entry.effect,
                command=entry.command or None,
            )
        if len(listed) > QUARANTINE_TOLD_MAX:
            log.warning("more records are in quarantine: see its list", more=len(listed) - QUARANTINE_TOLD_MAX)

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


def shown(engine: Engine, partition: int, records: list[tuple[int, bytes]]) -> CommandView:
    """The view of a finished command, from its records by the fold that made it."""
    decoded = [(offset, read(data, partition=partition, offset=offset)) for offset, data in records]
    command = engine.recall(partition, decoded)  # type: ignore[arg-type]
    return views.command_view(command, engine.registry.planned(command.submitted))
