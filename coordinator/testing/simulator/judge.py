"""What must be true, whatever happens: the one place that knows the promises.

The judge sees every record at the moment it lands, and folds the log by itself, in the plainest way: a record is valid
iff the last Epoch before it has its token; a command is its first Submitted and all that follows up to its end.  With
that it judges what the instances do as they do it, and everything once more when the world has come to rest.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from coordinator.engine.asleep import unpacked
from coordinator.lane import Lane
from coordinator.model.call import Call, LocalCall, Request
from coordinator.model.command import CommandView, Operation, State, StepState
from coordinator.model.damaged import Damaged
from coordinator.model.records import (
    CommandRecord,
    Control,
    Epoch,
    Finished,
    Outcome,
    Record,
    Registered,
    Schedule,
    Snapshot,
    StepFailed,
    Submitted,
    unraw,
)
from coordinator.saga import StepCall
from coordinator.testing.simulator.folds import ENDED_BY_UNDOING, Fold
from coordinator.testing.simulator.trees import Node, base
from coordinator.transport.base import Event
from coordinator.wire.codec import encode, read

if TYPE_CHECKING:
    from coordinator.testing.simulator.process import Process
    from coordinator.testing.simulator.world import World

_TAKEN: Final = (StepState.SUCCEEDED, StepState.SKIPPED)  # a branch that was given up may have taken it with it
_LOOKS_MAX: Final = 4
_PLACE: Final = re.compile(r'File "(?:.*/)?([^"]+)", line (\d+)')


def _told(request: Request | LocalCall) -> str:
    if isinstance(request, LocalCall):
        function = request.function
        while isinstance(function, partial):  # as a flow's local steps are
            function = function.func
        return f"{function.__qualname__}{request.args}"
    return f"{request.method} {request.service}{request.path} {request.body!r}"


class Violation(Exception):
    """A promise is broken; the text says which and where."""


class Judge:
    """Collects what is broken; the first one ends the run."""

    def __init__(self, world: World) -> None:
        self._world = world
        partitions = world.plan.partitions
        self.token: list[bytes] = [b""] * partitions
        self.log: list[list[tuple[Record | Damaged, bool]]] = [
            [] for _ in range(partitions)
        ]  # with whether it is valid
        self.folds: dict[str, Fold] = {}
        self.violations: list[str] = []
        self.epochs = 0
        self.acted = 0
        self._parts: list[dict[bytes, int]] = [{} for _ in range(partitions)]  # of snapshots, while they come
        self.covered = [0] * partitions  # below that, a whole snapshot that counts has everything
        self.declared: dict[tuple[str, str], StepCall] = {}  # by command and step
        self.left: dict[
            tuple[str, str], None
        ] = {}  # type and step: live without undo, and the command did not complete
        self.harmless: set[str] = set()  # keys of calls that change nothing
        self.went_back: set[str] = set()  # commands of which something was undone on their way forward
        self.decided: dict[tuple[str, str], str] = {}  # by command and step: who was told that his decision counts
        self._fences: dict[tuple[str, str], tuple[int, int]] = {}  # by process and command: of the last call
        self._kept: dict[tuple[str, str], int] = {}  # by command and name: how often data was seen not to be given
        self._requests: dict[str, Request | LocalCall] = {}  # by key
        self.controls: set[tuple[str, str]] = set()  # asked of a command, and valid; perhaps behind its end

    def hold(self, so: bool, otherwise: str) -> None:
        """A promise: ``otherwise`` is what is told where it is broken."""
        if not so and not self._world.over:
            self.violations.append(otherwise)
            self._world.note("VIOLATION", otherwise)
            self._world.broken.set()

    # ------------------------------------------------------------ the log

    def landed(self, partition: int, base: int, records: Sequence[bytes]) -> None:
        """A batch is in the log, whoever sent it and whatever becomes of its ack."""
        log = self.log[partition]
        for offset, data in enumerate(records, base):
            record = read(data, partition=partition, offset=offset)
            if isinstance(record, Damaged):
                log.append((record, False))
                self._world.note("garbage", partition, offset, data)
                continue
            if isinstance(record, Epoch):
                self.token[partition] = record.token
                self.epochs += 1
            valid = record.token == self.token[partition]
            log.append((record, valid))
            self._world.note("landed", partition, offset, valid, data)
            if self._world.users and isinstance(record, StepFailed) and valid and not record.step:
                self._poisoned(record)
            if isinstance(record, Snapshot):
                self._snapshot(partition, record, valid)
            elif valid and not isinstance(record, (Epoch, Registered, Schedule)):
                self._count(partition, offset, record)

    def _snapshot(self, partition: int, part: Snapshot, valid: bool) -> None:
        parts = self._parts[partition]
        count = parts.pop(part.snapshot, 0)
        if not valid or part.part != count:
            return
        if part.parts:
            self.covered[partition] = max(self.covered[partition], part.covered)
        else:
            parts[part.snapshot] = count + 1

    def trims(self, process: Process, partition: int, before: int) -> None:
        """An instance deletes the head of the log: a snapshot must have all of it."""
        covered = self.covered[partition]
        told = f"{process.name} deletes partition {partition} below {before}, and a snapshot covers what is below"
        self.hold(before <= covered, f"{told} {covered}")

    def _count(self, partition: int, offset: int, record: CommandRecord) -> None:
        fold = self.folds.get(record.id)
        if fold is None:
            if not isinstance(record, Submitted):
                self.hold(False, f"{type(record).__name__} of {record.id}, which was never submitted, at {offset}")
                return
            fold = self.folds[record.id] = Fold(partition)
        else:
            self.hold(not isinstance(record, Submitted), f"{record.id} was submitted twice, again at offset {offset}")
            again = isinstance(record, Finished) and fold.finished is not None
            self.hold(not again, f"{record.id} ended twice, again at offset {offset}")
        if isinstance(record, Control):
            self.controls.add((record.id, record.operation))
        fold.add(offset, record)

    # ------------------------------------------------------------ what instances do

    def acts(self, process: Process, partition: int, base: int, records: Sequence[Record]) -> None:
        """An instance acts on a batch: it must be in the log, there, and count; then no two can contradict."""
        log = self.log[partition]
        for offset, record in enumerate(records, base):
            self.acted += 1
            there, valid = log[offset] if offset < len(log) else (None, False)
            same = there is not None and not isinstance(there, Damaged) and encode(there) == encode(record)
            what = f"{type(record).__name__} at {partition}:{offset}"
            self.hold(same, f"{process.name} acted on a {what} that the log does not have there")
            self.hold(valid or not same, f"{process.name} acted on a {what} that does not count")

    def acquired(self, process: Process, lane: Lane) -> None:
        """A new owner knows every command that counts below its Epoch, by all its records and no others."""
        commands = process.engine.shards[lane.partition].commands
        known: dict[str, list[int]] = {
            id: [offset for offset, _ in (unpacked(each).pieces if isinstance(each, bytes) else each.history)]
            for id, each in commands.items()
        }
        counted: dict[str, list[int]] = {}
        for id, fold in self.folds.items():
            below = [offset for offset, _ in fold.records if offset < lane.epoch]
            ended = fold.finished is not None and fold.records[-1][0] < lane.epoch
            if fold.partition == lane.partition and below and not ended:
                counted[id] = below
        for id in sorted(known.keys() | counted.keys()):
            told = f"{process.name} acquired partition {lane.partition} at {lane.epoch} with {id} as {known.get(id)}"
            self.hold(known.get(id) == counted.get(id), f"{told}, the log has {counted.get(id)}")

    def _poisoned(self, record: StepFailed) -> None:
        """A user's command cannot go on."""
        fold, failure = self.folds.get(record.id), record.failure
        type = next(fold.all).type if fold is not None else record.id  # type: ignore[union-attr]
        places = _PLACE.findall(failure.traceback or "")
        where = " ({}, line {})".format(*places[-1]) if places else ""
        self.hold(False, f"{type} cannot go on: {failure.message}{where}")

    def _asked(self, process: Process, call: Call) -> None:
        """The same step is asked for by the same request each time; what it declares is remembered."""
        command = process.engine.commands.get(call.command)
        execution = command.execution if command is not None else None
        declared = execution.calls.get(call.step) if execution is not None else None
        if declared is not None:
            self.declared[call.command, call.step] = declared
        if not self._world.ledger.has_effect(call):
            self.harmless.add(call.key)
        first = self._requests.setdefault(call.key, call.request)
        same = first == call.request or isinstance(call.request, LocalCall)
        self.hold(same, f"step {call.step} is asked for by {_told(call.request)}, and was by {_told(first)}")

    def called(self, process: Process, call: Call) -> None:
        """A call leaves: it rests on an epoch in the log, and on no end that this instance's epoch had seen."""
        self._asked(process, call)
        self._world.calls += 1
        self._world.note("call", process.name, call.key, call.fence)
        log = self.log[call.partition]
        epoch = log[call.epoch][0] if 0 <= call.epoch < len(log) else None
        self.hold(isinstance(epoch, Epoch), f"{process.name} called {call.key} under {call.epoch}, which is no epoch")
        fold = self.folds.get(call.command)
        if fold is None:
            self.hold(False, f"{process.name} called {call.key} of a command that is not in the log")
            return
        ended = fold.finished is not None and fold.records[-1][0] < call.epoch
        self.hold(not ended, f"{process.name} called {call.key} of a command that ended before its epoch")
        self._fenced(process, call)
        service = call.request.service
        limit = process.engine.service(service).settings.max_in_flight
        count = process.wire.in_flight(service)
        self.hold(count <= limit, f"{process.name} has {count} calls of {service} in flight, at most {limit} may be")

    def _fenced(self, process: Process, call: Call) -> None:
        """The fences of a command's calls only grow."""
        last = self._fences.get((process.name, call.command), (0, 0))
        fence = (call.epoch, call.attempt)
        self.hold(last < fence, f"{process.name} called {call.key} under {call.fence}, and the last under {last}")
        self._fences[process.name, call.command] = fence
        command = process.engine.commands.get(call.command)
        execution = None if command is None else command.execution
        if call.undo and execution is not None and call.step in execution.unwanted:
            self.went_back.add(call.command)

    def causes(self, call: Call, undone: Sequence[str]) -> None:
        """Something is done: nothing that it follows from was undone."""
        fold, body = self.folds.get(call.command), getattr(call.request, "body", None)
        if self._world.users or fold is None or not isinstance(body, dict) or fold.dead_undos():
            return
        gone = set(body.get("after", ())) & set(undone)
        self.hold(not gone, f"{call.key} was done when {sorted(gone)}, which it follows from, had been undone")

    def admitted(self, process: Process) -> None:
        """A new command has joined: it had a slot."""
        engine, limit = process.engine, self._world.plan.max_commands
        used = sum(command.holds_slot for command in engine.commands.values()) + len(engine.reserved)
        self.hold(used <= limit, f"{process.name} admitted a command above its limit: {used} of {limit}")

    def drained(self, process: Process, heirs: set[str]) -> None:
        """An instance says "safe to stop": what it had is another's, if another was there all the time to take it."""
        kept = [lane.partition for lane in process.pipeline.lanes if lane.acting]
        told = f"{process.name} stopped with partitions {kept}, and {sorted(heirs)} could have taken them"
        self.hold(not kept or not heirs, told)

    # ------------------------------------------------------------ what clients are told

    def told(self, client: str, event: Event) -> None:
        """An event came: what it says is in the log."""
        fold = self.folds.get(event.id)
        if event.kind == "error":
            return
        self.hold(fold is not None, f"{client} was told {event.kind} of {event.id}, which is not in the log")
        if event.kind == "final" and event.view is not None:
            self.answered(client, event.view)

    def answered(self, client: str, view: CommandView) -> None:
        """A client has got a view; a final one is the log's end of that command."""
        fold = self.folds.get(view.id)
        if fold is None:
            self.hold(False, f"{client} was shown {view.id}, which is not in the log")
            return
        if view.finished_at is None:
            return
        if not fold.ends:
            self.hold(False, f"{client} was told that {view.id} is {view.state}, the log has no end of it")
            return
        same = any(view.state == end.state and view.result == unraw(end.result) for end in fold.ends)
        self.hold(same, f"{client} was told that {view.id} is {view.state}, the log says {fold.ends[-1].state}")

    def decides(self, client: str, id: str, step: str) -> None:
        """A person is told that the decision counts: the first in the log, and nobody else's."""
        first = self.folds[id].decider(step) if id in self.folds else None
        self.hold(first == client, f"{client} was told that he has decided {step} of {id}, {first} was first")
        self.decided[id, step] = client

    def waits(self, view: CommandView) -> None:
        """In peace, a command was seen to wait: not for data that has come, time and again."""
        fold = self.folds.get(view.id)
        if fold is None or fold.finished is not None:
            return
        for name in view.waiting_for:
            taken = sum(base(step.name) == name and step.state in _TAKEN for step in view.steps)
            came = len(fold.data.get(name, ()))
            self._kept[view.id, name] = self._kept.get((view.id, name), 0) + 1 if came > taken else 0
            told = f"{view.id} waits for {name}, of which {came} came and {taken} were taken"
            self.hold(self._kept[view.id, name] < _LOOKS_MAX, told)

    def granted(self, id: str, operation: Operation) -> None:
        """An operator was answered: what he asked for is in the log, though an end may have come before it."""
        so = (id, operation.value) in self.controls
        self.hold(so, f"{operation} of {id} was granted, and the log does not have it")

    # ------------------------------------------------------------ at rest

    def at_rest(self) -> None:
        """Everything once more, when all commands have ended and nothing is under way."""
        for partition in range(self._world.plan.partitions):
            self._owned(partition)
        for order in self._world.plan.orders:
            fold = self.folds.get(order.id)
            if fold is None or fold.finished is None:
                self.hold(False, f"{order.id} never ended")
            else:
                self._effects(order.id, fold, order.root)
        for process in self._world.living():
            left = process.pipeline.watchers.ids()
            self.hold(not left, f"{process.name} has watchers that nobody waits with: {left}")

    def owners(self, partition: int) -> list[str]:
        """Who acts for the partition with the token in force."""
        return [
            process.name
            for process in self._world.living()
            if process.pipeline.lanes[partition].acting and process.in_force(partition)
        ]

    def _owned(self, partition: int) -> None:
        owners = self.owners(partition)
        self.hold(len(owners) == 1, f"partition {partition} is owned by {owners or 'nobody'}")

    def _effects(self, id: str, fold: Fold, root: Node | None) -> None:
        """Live is what is recorded and not undone; what ended by undoing has nothing left that can be undone."""
        assert fold.finished is not None
        state = fold.finished.state
        ledger = self._world.ledger
        outcomes, undone = fold.steps(Outcome), fold.undone()
        order = [key.split("/")[1] for key in ledger.undone if key.startswith(f"{id}/")]
        late = fold.dead_undos() if fold.contrary else set()
        order = [step for step in order if step not in late]
        if id in self.went_back:  # what it went back over was undone for itself
            order = []
        backwards = sorted(order, key=lambda step: outcomes.index(step) if step in outcomes else -1, reverse=True)
        self.hold(order == backwards, f"{id} was undone in the order {order}, its outcomes are {outcomes}")
        if state == State.ABORTED:
            return  # an operator has ended it as it stood
        live = {key.split("/")[1] for key in ledger.live if key.startswith(f"{id}/")}
        if root is not None:
            self._account(id, fold, root, live)
        recorded = {step for step in set(outcomes) - undone if f"{id}/{step}" not in self.harmless}
        stray, gone = sorted(live - recorded), sorted(recorded - live)
        self.hold(
            not stray, f"{id} is {state}, the effect of {stray} is live, and the log has no outcome of it to undo"
        )
        self.hold(
            not gone, f"{id} is {state}, the outcome of {gone} is recorded and not undone, and its effect is gone"
        )
        left = {step for step in live if (id, step) in self.declared and self.declared[id, step].undo is not None}
        if state in ENDED_BY_UNDOING:
            type = next(fold.all).type  # type: ignore[union-attr]
            self.left |= {(type, step): None for step in sorted(live - left)}
            self.hold(not left, f"{id} is {state} with live effects {sorted(left)}")
        else:
            self.hold(fold.aborted is False, f"{id} is {state} after an abort")

    def _account(self, id: str, fold: Fold, root: Node, live: set[str]) -> None:
        """One of our trees: it ran as it is written, ended for a reason, and what it tells of itself is so."""
        for what in fold.misruns(root):
            self.hold(False, f"{id} is over: {what}")
        self.hold(not fold.unfounded(), f"{id} ended by a time that had not come, or not while it counted")
        if fold.finished is not None and fold.finished.state == State.COMPLETED:
            for what in fold.mistold(root, {f"{id}/{step}" for step in live}):
                self.hold(False, f"{id} is completed: {what}")

    def deleted(self, id: str) -> bool:
        """Whether the log does not have the whole of an ended command any more, and so nobody need know of it.

        One that took longer than records are retained for has lost its beginning when it ends.
        """
        fold = self.folds.get(id)
        if fold is None or fold.finished is None:
            return False
        return (fold.earlier or fold.records)[0][0] < self._world.storage.first[fold.partition]

    def unended(self) -> list[str]:
        """Ids in the log whose commands have not ended."""
        return [id for id, fold in self.folds.items() if fold.finished is None]
