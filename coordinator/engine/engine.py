"""The engine: folds records into commands, decides what follows, and keeps count of what is under way.

    apply(record) ─▶ the command's fold changes, the command is dirty
    answer / tick / control / submit ─▶ a record is proposed (it counts only when it comes back by `apply`)
    take() ─▶ decides for every dirty command, releases what services may be asked, hands out records and calls

`take` is called once a batch, not once a record.  The engine serves all partitions that this instance owns; services,
slots and timers are the instance's.  One writer, the pipeline, so there are no locks.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from msgspec import Raw

from coordinator.admission import gate
from coordinator.engine import asleep, decide, faults, quarantine
from coordinator.engine.kinds import HANDLERS, beginning, fold, refold
from coordinator.engine.quarantine import Entry, Quarantine
from coordinator.engine.registry import Registry
from coordinator.engine.schedules import Schedules
from coordinator.engine.service import Service, Stage, Work
from coordinator.engine.state import Command, Contrary
from coordinator.engine.transitions import legal, legal_states
from coordinator.errors import IllegalState, InvalidPayload, UnknownStep
from coordinator.model.call import Answer, Call, Verdict
from coordinator.model.command import FINAL, Operation, State
from coordinator.model.damaged import SUBMITTED, Damaged
from coordinator.model.ids import CommandId, partition_of
from coordinator.model.records import (
    NIL,
    SCHEMA,
    CommandRecord,
    Control,
    Failure,
    Finished,
    Outcome,
    Record,
    Registered,
    Reopened,
    Schedule,
    Signal,
    StepFailed,
    Submitted,
    Timer,
    Undone,
)
from coordinator.model.settings import BreakerSettings, EngineSettings, ServiceSettings
from coordinator.wire.codec import encode

if TYPE_CHECKING:
    from random import Random

_SWEEP_MIN: Final = 1_000  # timers, below which those of ended commands are not worth a search
_LOCAL: Final = "local"  # what LocalCall calls the service of a function that stands for none
_NEVER: Final = 1 << 62
_TURN: Final = 1_000  # commands decided on in one `take`, before others have their turn

_Timer = tuple[float, int, str, CommandId, str]
"""When it is due, a number that tells it apart, its kind, of which command and step."""


class Output(NamedTuple):
    """What is to be done: append ``records`` (partition, record), make ``calls``, tell of ``finished`` and
    ``touched`` commands.

    Calls and notices follow from records that are durable already; the records follow from nothing and bind nobody yet.
    """

    records: list[tuple[int, Record]]
    calls: list[Call]
    finished: list[Command]
    touched: list[Command]


class Shard:
    """One owned partition: the token and epoch that its records and calls carry."""

    __slots__ = ("commands", "epoch", "token")

    def __init__(self, token: bytes, epoch: int) -> None:
        self.token = token
        self.epoch = epoch
        self.commands: dict[CommandId, Command | bytes] = {}  # those that wait are put to sleep (`asleep`)

    def awake(self) -> list[Command]:
        return [command for command in self.commands.values() if isinstance(command, Command)]


class Engine:
    """All uncompleted commands of this instance.  ``now`` is always milliseconds since 1970."""

    def __init__(
        self,
        settings: EngineSettings,
        services: Mapping[str, ServiceSettings],
        registry: Registry,
        random: Random,
    ) -> None:
        self.settings = settings
        self.registry = registry
        self.random = random
        self.commands: dict[CommandId, Command] = {}  # those that are awake
        self.shards: dict[int, Shard] = {}
        self.replaying: dict[int, dict[CommandId, Command | bytes]] = {}
        self.quarantined: defaultdict[int, Quarantine] = defaultdict(Quarantine)
        self.partitions: int | None = None  # of the whole log, where that is known
        self._clocks: dict[int, int] = {}  # by partition: the time of the last record
        self._listed: list[tuple[int, Entry]] = []
        self.definitions: dict[int, dict[tuple[str, int], tuple[int, Registered]]] = {}  # first in each partition's log
        self.schedules = Schedules()
        self.services = {name: Service(each, settings, random) for name, each in services.items()}
        self.reserved: dict[CommandId, tuple[bytes, int]] = {}  # submissions on their way to the log
        self.slots: set[CommandId] = set()
        self.blocking: dict[CommandId, frozenset[str]] = {}  # services of commands whose own code raised Blocked
        self._dirty: dict[CommandId, Command] = {}
        self._releasable: dict[str, Service] = {}
        self._timers: list[_Timer] = []
        self._alarms: defaultdict[int, list[_Timer]] = defaultdict(list)  # of partitions that are being replayed
        self._timers_swept = _SWEEP_MIN
        self._sequence = 0
        self._records: list[tuple[int, Record]] = []
        self._finished: list[Command] = []
        self._frozen = False
        self.held: set[int] = set()  # partitions that are being handed over

    def scratch(self) -> Engine:
        """Another of the same settings, to fold records with and decide nothing."""
        engine = Engine(self.settings, {}, self.registry, self.random)
        engine.partitions = self.partitions
        return engine

    # ------------------------------------------------------------ ownership

    def open(self, partition: int, token: bytes, epoch: int) -> None:
        """The partition is replayed and owned: its uncompleted commands are resumed with the next `take`."""
        shard = self.shards[partition] = Shard(token, epoch)
        shard.commands = self.replaying.pop(partition, {})
        self._timers += self._alarms.pop(partition, [])
        heapq.heapify(self._timers)
        for command in shard.awake():
            self.commands[command.id] = command
            self._dirty[command.id] = command
            self._arm_deadline(command)
        self.schedules.opened(partition)

    def close(self, partition: int) -> list[Command]:
        """The partition is not owned any more: forget its commands; answers under way will be ignored."""
        shard = self.shards.pop(partition, None)
        self.replaying.pop(partition, None)
        self._alarms.pop(partition, None)
        self.quarantined.pop(partition, None)
        self._clocks.pop(partition, None)
        self._listed = [(at, entry) for at, entry in self._listed if at != partition]
        self.definitions.pop(partition, None)
        self.schedules.drop(partition)
        self.held.discard(partition)
        self._records = [(at, record) for at, record in self._records if at != partition]
        self.reserved = {id: kept for id, kept in self.reserved.items() if kept[1] != partition}
        commands = shard.awake() if shard else []
        for command in commands:
            self._drop_work(command)
            self.commands.pop(command.id, None)
            self.slots.discard(command.id)
            self.blocking.pop(command.id, None)
            self._dirty.pop(command.id, None)
            _end_execution(command)
        self._sweep()
        return commands

    # ------------------------------------------------------------ the fold

    def apply(self, partition: int, offset: int, record: Record | Damaged) -> Command | None:
        """Folds one durable, valid record, or what stands in its place; returns the command it belongs to.

        The record joins the command's history.  The same function live and on replay.  Raises CorruptLog for a
        definition that cannot be applied: any command may rest on it.
        """
        shard = self.shards.get(partition)
        commands = self.replaying.setdefault(partition, {}) if shard is None else shard.commands
        if type(record) in HANDLERS:
            found = self._found(partition, commands, record.id)  # type: ignore[union-attr, arg-type]  # each that has one has an id
            if found is None or found.finished is not None:
                return None  # the command has ended: nothing after its end counts
            try:
                if not fold(found, record) and isinstance(record, Control):  # type: ignore[arg-type]
                    found.senseless = record
            except Exception as error:
                record = self._unapplied(found, offset, record, error)  # type: ignore[arg-type]  # it has a handler
            command = found
        elif isinstance(record, (Submitted, Reopened)):
            begun = self._begun(partition, offset, record, commands)
            if begun is None:
                return None
            command = begun
        elif isinstance(record, Damaged):
            damaged = self._damaged(record, commands)
            if damaged is None:
                return None
            command = damaged
        else:
            if isinstance(record, Registered):
                self._register(partition, offset, record)
                self.definitions.setdefault(partition, {}).setdefault((record.name, record.version), (offset, record))
            elif isinstance(record, Schedule):
                self.schedules.apply(partition, offset, record)
            return None
        command.touched = max(command.touched, record.at)
        self._clocks[partition] = record.at or self._clocks.get(partition, 0)
        command.history.append((offset, record))  # type: ignore[arg-type]
        if shard is not None:
            self._dirty[command.id] = command
            self._settle(command, record)
        elif command.finished is not None:
            del commands[command.id]
            self._finished.append(command)
        return command

    def recall(self, partition: int, records: list[tuple[int, CommandRecord | Damaged]]) -> Command:
        """A command as it was when these records of it were all there were; for looking at, not for going on."""
        command = self._refolded(partition, records)
        decide.retrace(self, command)
        return command

    def _refolded(self, partition: int, records: list[tuple[int, CommandRecord | Damaged]]) -> Command:
        offset, first = records[0]
        if isinstance(first, Damaged):
            first = quarantine.placeholder(first)
        assert isinstance(first, (Submitted, Reopened))
        command = Command(partition, offset, beginning(partition, first))
        command.history = records
        command.touched = max(record.at for _, record in records)
        refold(command)
        return command

    def _begun(
        self, partition: int, offset: int, record: Submitted | Reopened, into: dict[CommandId, Command | bytes]
    ) -> Command | None:
        """A command begins, or goes on after its end; one that is under way already is what it is."""
        known = self._found(partition, into, record.id)
        if known is not None:
            return known if isinstance(record, Submitted) else None
        try:
            command = Command(partition, offset, beginning(partition, record))
            if isinstance(record, Reopened):
                command.history = [(offset, record)]
                refold(command)
                command.history = []
        except ValueError as error:
            data = encode(record)
            self._list(Damaged(partition, offset, data, f"it cannot be applied: {error}", 11, SCHEMA), parks=False)
            return None
        into[record.id] = command
        if partition in self.shards:
            self.reserved.pop(record.id, None)
            self.commands[record.id] = command
            self.slots.add(record.id)
            self._arm_deadline(command)
        return command

    # ------------------------------------------------------------ what cannot be read or applied

    def _damaged(self, damaged: Damaged, commands: dict[CommandId, Command | bytes]) -> Command | None:
        """Lists it; returns the command that it parks, if there is one.

        Where no command of this id is under way, an intact record would have changed nothing either; except a
        Submitted, of which at least the id counts.
        """
        partition = damaged.partition
        command = None if damaged.id is None else self._found(damaged.partition, commands, damaged.id)
        if command is None and damaged.kind == SUBMITTED and damaged.id is not None and self._belongs(damaged):
            submitted = quarantine.placeholder(damaged)
            command = self._begun(partition, damaged.offset, submitted, commands)
        self._list(damaged, parks=command is not None)
        if command is not None:
            quarantine.park(command, damaged)
        return command

    def _belongs(self, damaged: Damaged) -> bool:
        """Whether its id is one of this partition's: in another's it would get in the way of the rightful command."""
        if self.partitions is None or damaged.id is None:
            return True
        return partition_of(damaged.id, self.partitions) == damaged.partition

    def _unapplied(self, command: Command, offset: int, record: CommandRecord, error: Exception) -> Damaged:
        """A handler has raised: the command stands where it stood before, and is parked."""
        if isinstance(error, MemoryError):
            raise error  # says nothing about the record: the next replay would differ
        damaged = quarantine.unapplied(command.partition, offset, record, encode(record), faults.described(error))
        refold(command)
        self._list(damaged, parks=True)
        quarantine.park(command, damaged)
        return damaged

    def _register(self, partition: int, offset: int, record: Registered) -> None:
        try:
            self.registry.add(record.name, record.version, record.content)
        except Exception as error:
            told = f"the definition {record.name!r} of version {record.version} cannot be applied"
            damaged = Damaged(partition, offset, encode(record), f"{told}: {faults.described(error)}", 10, SCHEMA)
            raise damaged.error(
                "commands rest on it, and its first content in the log is the one that counts"
            ) from error

    def _list(self, damaged: Damaged, *, parks: bool) -> None:
        at = damaged.at or self._clocks.get(damaged.partition, 0)
        entry = quarantine.entry(damaged, at, parks=parks)
        if self.quarantined[damaged.partition].add(entry):
            self._listed.append((damaged.partition, entry))

    def take_listed(self) -> list[tuple[int, Entry]]:
        """What has come to the quarantine lists since the last time, with its partition."""
        listed, self._listed = self._listed, []
        return listed

    def _settle(self, command: Command, record: Record | Damaged) -> None:
        """The work whose answer was just recorded is done; after a Control, exec is run again over the record."""
        if isinstance(record, (Outcome, StepFailed, Undone)):
            if isinstance(record, StepFailed):
                if record.verdict == "delayed":
                    return  # an error that is recorded for being one: the step is asked again as if it were not
                if record.step == command.proposed:
                    command.proposed = None
            work = command.work.pop(record.step, None)
            if work is not None and work.stage is not Stage.SETTLING:
                self._drop(work)
        elif isinstance(record, Control):
            _end_execution(command)
            if record.auto:
                command.on_the_way.discard((record.operation, ""))
            else:
                command.expected = max(0, command.expected - 1)
            if record.operation == Operation.RETRY:  # whatever waits for its time is due now
                self.stop_waiting(command)
                self.withhold(command.work.values())
        elif isinstance(record, Signal):
            command.expected = max(0, command.expected - 1)
        elif isinstance(record, Timer):
            command.on_the_way.discard((record.what, record.name))
            if record.what == "start":
                self._arm_deadline(command)

    # ------------------------------------------------------------ asleep and awake

    def has(self, id: CommandId) -> bool:
        """Whether a command of this id is under way, asleep or not."""
        return id in self.commands or any(id in shard.commands for shard in self.shards.values())

    def find(self, id: CommandId) -> Command | None:
        """The command, if it is under way; one that sleeps is woken."""
        command = self.commands.get(id)
        if command is not None:
            return command
        for partition, shard in self.shards.items():
            if id in shard.commands:
                return self._found(partition, shard.commands, id)
        return None

    def look_at(self, partition: int, id: CommandId) -> Command | None:
        """The command as it is, for showing only: one that sleeps goes on sleeping."""
        shard = self.shards.get(partition)
        found = None if shard is None else shard.commands.get(id)
        return self._awoken(partition, asleep.unpacked(found)) if isinstance(found, bytes) else found

    def entries(self) -> Iterator[tuple[int, CommandId, Command | bytes]]:
        """Every command that is under way, with its partition; those that sleep as `asleep.unpacked` takes them.

        In each partition about the newest first.  They may change, come and go between two of them: who looks at a
        million does so in slices.  (To copy what there is first would take 20 ms for a hundred thousand.)
        """
        for partition, shard in list(self.shards.items()):
            for id in reversed(list(shard.commands)):
                entry = shard.commands.get(id)
                if entry is not None and self.shards.get(partition) is shard:
                    yield partition, id, entry

    @property
    def under_way(self) -> int:
        """How many commands are, on this instance."""
        return sum(len(shard.commands) for shard in self.shards.values())

    def _found(self, partition: int, commands: dict[CommandId, Command | bytes], id: CommandId) -> Command | None:
        found = commands.get(id)
        if not isinstance(found, bytes):
            return found
        sleeper = asleep.unpacked(found)
        if partition not in self.shards:  # on replay: what it waits for is found out when that is over
            command = commands[id] = self._refolded(partition, sleeper.history(partition))
            return command
        command = self._awoken(partition, sleeper)
        commands[id] = self.commands[id] = self._dirty[id] = command  # dirty: it sleeps on unless something happens
        return command

    def sleeps(self, partition: int, id: CommandId, sleeping: bytes) -> None:
        """On replay: a command of a Snapshot, which slept when that was cut, sleeps on."""
        self.replaying.setdefault(partition, {})[id] = sleeping
        alarms, sleeper = self._alarms[partition], asleep.unpacked(sleeping)
        for kind, due in (("wake", sleeper.wake_at), ("deadline", sleeper.deadline)):
            if due:
                self._sequence += 1
                alarms.append((due, self._sequence, kind, id, ""))

    def _awoken(self, partition: int, sleeping: asleep.Sleeper) -> Command:
        """By the fold, as after a restart: there is no second way to come to a state."""
        command = self.recall(partition, sleeping.history(partition))
        command.calls_made, command.wake_at, command.waits = sleeping.calls_made, sleeping.wake_at, sleeping.waits
        return command

    def _put_to_sleep(self, command: Command) -> None:
        """Nothing is to be done for it but wait, perhaps for months: its records are all that is kept."""
        busy = command.work or command.on_the_way or command.expected or command.rerun_at
        if busy or command.proposed is not None:
            return
        self.shards[command.partition].commands[command.id] = asleep.packed(command)
        del self.commands[command.id]
        _end_execution(command)

    # ------------------------------------------------------------ events in

    def submit(self, request: gate.Request, record: Submitted, partition: int, now: float) -> gate.Decision:
        """Admits a command: proposes its Submitted, or attaches to a known one; raises a CoordinatorError to refuse.

        ``record`` comes without a token; the shard's is put in.
        """
        known = self.find(record.id)
        if known is not None:
            fingerprint: bytes | None = known.submitted.fingerprint
        else:
            fingerprint = self.reserved.get(record.id, (None, 0))[0]
        decision = gate.admit(request, fingerprint, self._load(now))
        if decision is gate.Decision.ADMIT:
            self.reserved[record.id] = (record.fingerprint, partition)
            self._propose(partition, record)
        return decision

    def _load(self, now: float) -> gate.Load:
        return gate.Load(
            used=len(self.slots) + len(self.reserved),
            limit=self.settings.max_commands,
            suspended=self.suspended(now),
            suspend=self.settings.suspend,
            retry_after_ms=max(100, self.settings.slow_retry_interval_ms),
        )

    def suspended(self, now: float) -> dict[str, int]:
        """Services whose intake is suspended, each with the delay (ms) after which a client should ask again."""
        found = {}
        for name, service in self.services.items():
            if service.suspended(now):
                found[name] = max(self.settings.slow_retry_interval_ms, round(service.breaker.until - now), 100)
        for names in self.blocking.values():
            for name in names:
                found.setdefault(name, max(self.settings.slow_retry_interval_ms, 100))
        return found

    def answer(self, call: Call, answer: Answer, now: float) -> None:
        """The answer to a call; answers to older attempts, epochs or dropped work are ignored."""
        command = self.commands.get(call.command)
        work = command.work.get(call.step) if command else None
        shard = self.shards.get(call.partition)
        if (
            command is None
            or work is None
            or shard is None
            or shard.epoch != call.epoch
            or work.stage is not Stage.CALLING
            or work.attempt != call.attempt
        ):
            return
        service = work.service
        self._releasable[service.name] = service
        if answer.verdict in (Verdict.DELAYED, Verdict.BLOCKED):
            self._unknown(command, work, answer, now)
            return
        service.known(work, now)
        step = command.steps.get(work.step)
        answered = 1 + (0 if step is None else step.undo_attempts if work.undo else step.attempts)
        if answer.verdict is Verdict.FAILURE:
            failure = answer.failure or Failure("failed")
            self._propose(command.partition, decide.negative(command, work, failure, answered, now, self.random))
        elif work.undo:
            self._propose(
                command.partition,
                Undone(SCHEMA, b"", int(now), command.id, work.step, service.name, answered, answer.outcome),
            )
        else:
            self._propose(
                command.partition,
                Outcome(SCHEMA, b"", int(now), command.id, work.step, service.name, answered, answer.outcome),
            )

    def _unknown(self, command: Command, work: Work, answer: Answer, now: float) -> None:
        failure = answer.failure or Failure("unknown")
        down = answer.verdict is Verdict.BLOCKED
        if work.give_up_at is not None and now >= work.give_up_at:
            self._give_up(command, work, failure, now, down=down)
            return
        work.service.unknown(work, now, failure, answer.retry_after_ms, down=down)
        if command.type is not None and command.type.pause_after is not None:
            self._propose(command.partition, decide.unknown(command, work, failure, now))
        self._dirty[command.id] = command

    def _give_up(self, command: Command, work: Work, failure: Failure, now: float, *, down: bool = False) -> None:
        work.service.gave_up(work, now, down=down)
        self._propose(command.partition, decide.given_up(command, work, failure, now))

    def control(
        self,
        command: Command,
        operation: Operation,
        now: float,
        *,
        reason: str,
        by: str,
        step: str,
        input: Raw | None,
    ) -> Control | None:
        """Proposes an operator's request, and returns its record; None if it is in effect already.

        It was too late if it is the command's ``senseless`` once it is recorded.  Raises IllegalState or UnknownStep.
        """
        state = command.state
        if command.quarantined is not None and operation is not Operation.ABORT:
            raise IllegalState(
                f"{operation} is not legal while a record of the command is in quarantine, for what that has decided "
                "is not known: look at its history, mend by hand what must be mended, then abort it",
                legal_states=[each for each in legal_states(operation) if each != State.DEAD_LETTER],
            )
        if _in_effect(command, operation):
            return None
        if not legal(state, operation):
            raise IllegalState(
                f"{operation} is not legal while the command is {state}", legal_states=legal_states(operation)
            )
        if operation in (Operation.REQUEUE, Operation.RESOLVE):
            self._check_letter(command, step, operation)
        record = Control(
            SCHEMA,
            b"",
            int(now),
            command.id,
            operation.value,
            reason=reason,
            by=by,
            step=step,
            input=NIL if input is None else input,
            replaces=input is not None,
        )
        command.expected += 1
        self._propose(command.partition, record)
        return record

    def _check_letter(self, command: Command, name: str, operation: Operation) -> None:
        """That the step is a dead letter; for `resolve`, that it is an undo."""
        if not name:
            raise InvalidPayload.at("$.step", "the name of the dead-lettered step is needed")
        step = command.steps.get(name)
        letters = f"dead letters: {decide.parked_names(command)}"
        if step is None:
            raise UnknownStep(f"the command has no step {name!r}; {letters}")
        if not step.parked:
            raise IllegalState(f"step {name!r} is no dead letter; {letters}", legal_states=legal_states(operation))
        if operation is Operation.RESOLVE and not step.undoing:
            raise IllegalState(
                f"resolve marks an undo as done by hand, and step {name!r} has not even succeeded: "
                "requeue it, retry, cancel or abort",
                legal_states=legal_states(operation),
            )

    def signal(self, command: Command, record: Signal) -> None:
        """Proposes data or a decision for the command; the record comes without a token."""
        command.expected += 1
        self._propose(command.partition, record)

    def reopen(self, partition: int, record: Reopened, signal: Signal) -> None:
        """Proposes that a finished command goes on, because of the signal."""
        self._propose(partition, record)
        self._propose(partition, signal)

    def register(self, record: Registered | Schedule, partition: int) -> None:
        """Proposes a definition, or what happens to a schedule."""
        self._propose(partition, record)

    def set_breaker(self, service: Service, state: str | None, now: float) -> None:
        """An operator's hold on a breaker."""
        service.force(state, now)
        self._releasable[service.name] = service

    # ------------------------------------------------------------ time

    def due(self, now: float) -> float | None:
        """When `tick` should be called next."""
        first = self._timers[0][0] if self._timers else None
        for service in self.services.values():
            if len(service.queue):
                due = service.due(now)
                if due is not None and (first is None or due < first):
                    first = due
        return first

    def tick(self, now: float) -> None:
        """Times that have come; late is as good as in time."""
        while self._timers and self._timers[0][0] <= now:
            _, _, kind, id, name = heapq.heappop(self._timers)
            command = self.find(id)
            if command is not None and command.finished is None:
                self._timer(command, kind, name, now)
        for service in self.services.values():
            if len(service.queue):
                self._releasable[service.name] = service

    def _timer(self, command: Command, kind: str, name: str, now: float) -> None:
        if kind == "deadline":
            if command.contrary is None and not (
                command.ending or command.finishing or command.aborted or command.quarantined
            ):
                self._propose(command.partition, Timer(SCHEMA, b"", int(now), command.id, "deadline"))
        elif kind == "give_up":
            work = command.work.get(name)
            waiting = work is not None and work.stage in (Stage.DELAYED, Stage.READY)
            if work is not None and waiting and work.give_up_at is not None and now >= work.give_up_at:
                self._give_up(command, work, work.failure or Failure("unknown"), now)
        else:
            command.wake_at = 0.0
            self._dirty[command.id] = command

    def wake(self, command: Command, at: float, now: float) -> None:
        """Sees to it that the command is decided on at ``at``, or before; it will ask again then."""
        if not now < command.wake_at <= at:
            command.wake_at = at
            self.arm(at, "wake", command)

    def arm(self, due: float, kind: str, command: Command, name: str = "") -> None:
        """A volatile timer: ``deadline``, ``give_up`` or ``wake``."""
        self._sequence += 1
        heapq.heappush(self._timers, (due, self._sequence, kind, command.id, name))
        if len(self._timers) > 2 * self._timers_swept:
            self._sweep()

    def _sweep(self) -> None:
        """Drops the timers of commands that have ended: a deadline of a day must not be kept for a day."""
        self._timers = [timer for timer in self._timers if self.has(timer[3])]
        heapq.heapify(self._timers)
        self._timers_swept = max(_SWEEP_MIN, len(self._timers))

    def run_again(self, command: Command, due: float, *, blocked: bool) -> None:
        """The command's own code raised Delayed or Blocked: it is run again at ``due``.

        Blocked does not say which service is down: intake for all that the type declares is suspended meanwhile.
        """
        command.rerun_at = due
        command.rerun_blocked = blocked
        if blocked:
            declared = self.registry.resolve_submitted(command.submitted).services
            self.blocking[command.id] = declared or frozenset((*self.services, _LOCAL))
        self.arm(due, "wake", command)

    def stop_waiting(self, command: Command) -> None:
        """Its code may be run again now."""
        if command.rerun_at:
            command.rerun_at = 0
            command.rerun_blocked = False
            command.execution = None
            self.blocking.pop(command.id, None)

    def _arm_deadline(self, command: Command) -> None:
        deadline = command.deadline
        if deadline is not None:
            self.arm(deadline, "deadline", command)

    # ------------------------------------------------------------ out

    def take(self, now: float) -> Output:
        """Decides for all dirty commands; returns what has gathered since the last time."""
        calls: list[Call] = []
        touched: list[Command] = []
        while (self._dirty or self._releasable) and len(touched) < _TURN:
            for command in self._next_dirty(_TURN):
                touched.append(command)
                try:
                    decide.command(self, command, now)
                except Exception as error:  # whatever its code has led to: it may not harm its neighbours
                    decide.poisoned(self, command, error, now)
                self._account(command)
            releasable, self._releasable = self._releasable, {}
            for service in () if self._frozen else releasable.values():
                for work in service.release(now):
                    calls.append(self._call(work, now))
                    if work.failure is not None:
                        touched.append(work.command)
        records, self._records = self._records, []
        finished, self._finished = self._finished, []
        return Output(records, calls, finished, touched)

    def _next_dirty(self, count: int) -> list[Command]:
        """Those to be decided on next: all, unless a new owner has found a hundred thousand."""
        dirty, self._dirty = self._dirty, {}
        if len(dirty) > count:
            rest = list(dirty.items())
            dirty, self._dirty = dict(rest[:count]), dict(rest[count:])
        return list(dirty.values())

    @property
    def busy(self) -> bool:
        """Whether `take` has left something for its next turn."""
        return bool(self._dirty)

    def oldest(self, partition: int, otherwise: int) -> int:
        """The offset at which the earliest command that is open began; ``otherwise`` if none is.

        They are kept in the order in which they began, live, on replay and from a snapshot.
        """
        shard = self.shards.get(partition)
        commands = self.replaying.get(partition, {}) if shard is None else shard.commands
        first = next(iter(commands.values()), None)
        return (
            otherwise
            if first is None
            else first.offset
            if isinstance(first, Command)
            else asleep.unpacked(first).offset
        )

    def first_submitted(self) -> list[int]:
        """When the earliest command under way was submitted (ms), in each partition that has one."""
        firsts = (next(iter(shard.commands.values()), None) for shard in self.shards.values())
        return [
            each.submitted.at if isinstance(each, Command) else asleep.unpacked(each).at
            for each in firsts
            if each is not None
        ]

    def take_replayed(self) -> list[Command]:
        """The commands whose end has been replayed since the last time."""
        finished, self._finished = self._finished, []
        return finished

    def active(self) -> int:
        """Commands that move on by themselves at once: what a drain waits for (delayed ones would hold it for ever)."""
        return sum(
            command.finishing or any(not work.delayed for work in command.work.values())
            for command in self.commands.values()
        ) + len(self.reserved)

    def hold(self, partition: int, *, held: bool) -> None:
        """Starts no more calls for the partition's commands, which are about to be somebody else's; or does again."""
        (self.held.add if held else self.held.discard)(partition)
        shard = self.shards.get(partition)
        if shard is not None:
            self._dirty.update((command.id, command) for command in shard.awake())

    def calling(self, partition: int) -> bool:
        """Whether a call of the partition's commands is still to be answered."""
        shard = self.shards.get(partition)
        return shard is not None and any(
            work.stage is Stage.CALLING for command in shard.awake() for work in command.work.values()
        )

    def freeze(self) -> None:
        """Starts no more calls: the daemon is about to stop."""
        self._frozen = True

    def _account(self, command: Command) -> None:
        if command.finished is not None:
            self._forget(command)
        elif command.holds_slot:
            self.slots.add(command.id)
        else:
            self.slots.discard(command.id)
            if command.waits:
                self._put_to_sleep(command)

    def _forget(self, command: Command) -> None:
        self._drop_work(command)
        self.slots.discard(command.id)
        self.blocking.pop(command.id, None)
        if self.commands.pop(command.id, None) is None:
            return
        shard = self.shards.get(command.partition)
        if shard is not None:
            shard.commands.pop(command.id, None)
        self._finished.append(command)

    def _propose(self, partition: int, record: Record) -> None:
        self._records.append((partition, record))

    def propose(self, command: Command, record: CommandRecord) -> None:
        """A record that `decide` wants appended."""
        if isinstance(record, Finished):
            command.finishing = True
        self._records.append((command.partition, record))

    # ------------------------------------------------------------ work

    def offer(self, work: Work, now: float) -> None:
        """New work of a command."""
        work.command.work[work.step] = work
        work.service.offer(work, now)
        self._releasable[work.service.name] = work.service
        if work.give_up_at is not None:
            self.arm(work.give_up_at, "give_up", work.command, work.step)

    def service(self, name: str) -> Service:
        """The service's state; a name without configuration (a local step's) gets the defaults.

        Functions that name no service have nothing in common: one that is Delayed says nothing of the others, so only
        Blocked opens their breaker.
        """
        service = self.services.get(name)
        if service is None:
            breaker = BreakerSettings(failures=_NEVER) if name == _LOCAL else BreakerSettings()
            settings = ServiceSettings(name=name, breaker=breaker)
            service = self.services[name] = Service(settings, self.settings, self.random)
        return service

    def _call(self, work: Work, now: float) -> Call:
        command = work.command
        command.calls_made += 1
        work.attempt = command.calls_made
        return Call(
            command=command.id,
            step=work.step,
            undo=work.undo,
            request=work.request,
            key=f"{command.id}/{work.step}/undo" if work.undo else f"{command.id}/{work.step}",
            partition=command.partition,
            epoch=self.shards[command.partition].epoch,
            attempt=work.attempt,
            timeout_ms=work.timeout_ms,
            sent_at=now,
        )

    def _drop(self, work: Work) -> None:
        work.service.drop(work)
        self._releasable[work.service.name] = work.service

    def withhold(self, works: Iterable[Work]) -> None:
        """Takes back work that has not been sent: its command is paused."""
        for work in list(works):
            if work.stage in (Stage.READY, Stage.DELAYED):
                self._drop(work)
                work.command.work.pop(work.step, None)

    def _drop_work(self, command: Command) -> None:
        for work in command.work.values():
            if work.stage is not Stage.SETTLING:
                self._drop(work)
        command.work.clear()


def _in_effect(command: Command, operation: Operation) -> bool:
    """Whether the same request was granted before: asking twice is idempotent."""
    if command.state in FINAL:
        return False
    if operation is Operation.PAUSE:
        return command.paused
    if operation is Operation.CANCEL:
        return command.contrary is Contrary.CANCELLED and command.state is State.COMPENSATING
    if operation is Operation.ABORT:
        return command.aborted
    return False


def _end_execution(command: Command) -> None:
    if command.execution is not None:
        command.execution.stop()
        command.execution = None
