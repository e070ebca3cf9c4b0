"""The engine: folds records into commands, decides what follows, and keeps count of what is under way.

    apply(record) ─▶ the command's fold changes, the command is dirty
    answer / tick / control / submit ─▶ a record is proposed (it counts only when it comes back by `apply`)
    take() ─▶ decides for every dirty command, releases what services may be asked, hands out records and calls

`take` is called once a batch, not once a record.  The engine serves all partitions that this instance owns; services,
slots and timers are the instance's.  One writer, the pipeline, so there are no locks.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from coordinator.admission import gate
from coordinator.engine import decide
from coordinator.engine.asleep import Sleeper
from coordinator.engine.folding import Fold
from coordinator.engine.registry import Registry
from coordinator.engine.service import Service, Stage, Work
from coordinator.engine.state import Command
from coordinator.engine.timers import Timers
from coordinator.model.call import Answer, Call, Verdict
from coordinator.model.command import Operation
from coordinator.model.damaged import Damaged
from coordinator.model.ids import CommandId
from coordinator.model.records import (
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

if TYPE_CHECKING:
    from random import Random

_LOCAL: Final = "local"  # what LocalCall calls the service of a function that stands for none
_NEVER: Final = 1 << 62
_TURN: Final = 250  # commands decided on in one `take`, some 15 ms, before others have their turn
_RESUMED: Final = 100  # of a new owner's backlog, in one `take`


class Output(NamedTuple):
    """What is to be done: append ``records`` (partition, record), make ``calls``, tell of ``finished`` and
    ``touched`` commands.

    Calls and notices follow from records that are durable already; the records follow from nothing and bind nobody yet.
    """

    records: list[tuple[int, Record]]
    calls: list[Call]
    finished: list[Command]
    touched: list[Command]


class Engine(Fold):
    """What this instance makes of its commands.  ``now`` is always milliseconds since 1970."""

    def __init__(
        self,
        settings: EngineSettings,
        services: Mapping[str, ServiceSettings],
        registry: Registry,
        random: Random,
    ) -> None:
        super().__init__(registry)
        self.settings = settings
        self.random = random
        self.services = {name: Service(each, settings, random) for name, each in services.items()}
        self.reserved: dict[CommandId, tuple[bytes, int]] = {}  # submissions on their way to the log
        self.slots: set[CommandId] = set()
        self.blocking: dict[CommandId, frozenset[str]] = {}  # services of commands whose own code raised Blocked
        self.timers = Timers(self.has)
        self._releasable: dict[str, Service] = {}
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
        shard = self.owned(partition, token, epoch)
        self.timers.owned(partition)
        for command in shard.awake():
            self._arm_deadline(command)

    def close(self, partition: int) -> list[CommandId]:
        """The partition is not owned any more: forget its commands; answers under way will be ignored."""
        self.held.discard(partition)
        self._records = [(at, record) for at, record in self._records if at != partition]
        self.reserved = {id: kept for id, kept in self.reserved.items() if kept[1] != partition}
        awake, gone = self.forgotten(partition)
        for command in awake:
            self._drop_work(command)
            self.slots.discard(command.id)
            self.blocking.pop(command.id, None)
            _end_execution(command)
        self.timers.forget(partition)
        return gone

    # ------------------------------------------------------------ what becomes of a record

    def joined(self, command: Command) -> None:
        self.reserved.pop(command.id, None)
        self.slots.add(command.id)
        self._arm_deadline(command)

    def left(self, command: Command) -> None:
        self.dirty.pop(command.id, None)
        self._forget(command)

    def retraced(self, command: Command) -> None:
        decide.retrace(self, command)

    def slept(self, partition: int, id: CommandId, sleeper: Sleeper) -> None:
        for kind, due in (("wake", sleeper.wake_at), ("deadline", sleeper.deadline)):
            if due:
                self.timers.arm_later(partition, due, kind, id)

    def touched(self, command: Command, record: Record | Damaged) -> None:
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
        elif isinstance(record, Finished) and command.finished is None:  # it goes on, and may have missed its deadline
            self._arm_deadline(command)

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
            used=len(self.slots) + len(self.reserved) + len(self.backlog),
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
        self.dirty[command.id] = command

    def _give_up(self, command: Command, work: Work, failure: Failure, now: float, *, down: bool = False) -> None:
        work.service.gave_up(work, now, down=down)
        self._propose(command.partition, decide.given_up(command, work, failure, now))

    def ask(self, command: Command, record: Control | Signal) -> None:
        """Proposes what somebody outside asks for, and waits for."""
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
        first = self.timers.first
        for service in self.services.values():
            if len(service.queue):
                due = service.due(now)
                if due is not None and (first is None or due < first):
                    first = due
        return first

    def tick(self, now: float) -> None:
        """Times that have come; late is as good as in time.  Each may wake a command: after a long standstill there may
        be a hundred thousand, so others have their turn in between, and `due` tells that there are more."""
        for _ in range(_TURN):
            alarm = self.timers.pop(now)
            if alarm is None:
                break
            command = self.find(alarm.id)
            if command is not None and command.finished is None:
                self._timer(command, alarm.kind, alarm.step, now)
        for service in self.services.values():
            if len(service.queue):
                self._releasable[service.name] = service

    def _timer(self, command: Command, kind: str, name: str, now: float) -> None:
        if kind == "deadline":
            passed = command.deadline is not None and now >= command.deadline  # else it was that of a former life
            if passed and not (command.ending or command.finishing or command.aborted or command.quarantined):
                self._propose(command.partition, Timer(SCHEMA, b"", int(now), command.id, "deadline"))
        elif kind == "give_up":
            work = command.work.get(name)
            waiting = work is not None and work.stage in (Stage.DELAYED, Stage.READY)
            if work is not None and waiting and work.give_up_at is not None and now >= work.give_up_at:
                self._give_up(command, work, work.failure or Failure("unknown"), now)
        else:
            command.wake_at = 0.0
            self.dirty[command.id] = command

    def wake(self, command: Command, at: float, now: float) -> None:
        """Sees to it that the command is decided on at ``at``, or before; it will ask again then."""
        if not now < command.wake_at <= at:
            command.wake_at = at
            self.timers.arm(at, "wake", command.id)

    def run_again(self, command: Command, due: float, *, blocked: bool) -> None:
        """The command's own code raised Delayed or Blocked: it is run again at ``due``.

        Blocked does not say which service is down: intake for all that the type declares is suspended meanwhile.
        """
        command.rerun_at = due
        command.rerun_blocked = blocked
        if blocked:
            declared = self.registry.resolve_submitted(command.submitted).services
            self.blocking[command.id] = declared or frozenset((*self.services, _LOCAL))
        self.timers.arm(due, "wake", command.id)

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
            self.timers.arm(deadline, "deadline", command.id)

    # ------------------------------------------------------------ out

    def take(self, now: float) -> Output:
        """Decides for all dirty commands; returns what has gathered since the last time."""
        calls: list[Call] = []
        touched: list[Command] = []
        if self.backlog and len(self.dirty) < _RESUMED:
            self._resume()
        while (self.dirty or self._releasable) and len(touched) < _TURN:
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

    def _resume(self) -> None:
        """Turns to some of those that a new owner has found and not decided on."""
        for _ in range(min(_RESUMED, len(self.backlog))):
            _, id = self.backlog.popleft()
            command = self.find(id)
            if command is not None:
                self.dirty[id] = command
                self._arm_deadline(command)

    def _next_dirty(self, count: int) -> list[Command]:
        """Those to be decided on next: all, unless a new owner has found a hundred thousand."""
        dirty = self.dirty
        if len(dirty) > count:
            return [dirty.popitem(last=False)[1] for _ in range(count)]
        self.dirty = OrderedDict()
        return list(dirty.values())

    @property
    def busy(self) -> bool:
        """Whether `take` has left something for its next turn."""
        return bool(self.dirty or self.backlog)

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
            self.dirty.update((command.id, command) for command in shard.awake())

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
            if command.waits and not _is_busy(command):
                self.put_to_sleep(command)
                _end_execution(command)

    def _forget(self, command: Command) -> None:
        self._drop_work(command)
        self.slots.discard(command.id)
        self.blocking.pop(command.id, None)
        if self.commands.pop(command.id, None) is None:
            return
        shard = self.shards.get(command.partition)
        if shard is not None:
            shard.commands.pop(command.id, None)
            shard.calls_ended = max(shard.calls_ended, command.calls_made)
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
            self.timers.arm(work.give_up_at, "give_up", work.command.id, work.step)

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


def _is_busy(command: Command) -> bool:
    """Whether something of it is under way that its records do not tell."""
    under_way = command.work or command.on_the_way or command.expected or command.rerun_at
    return bool(under_way) or command.proposed is not None


def _end_execution(command: Command) -> None:
    if command.execution is not None:
        command.execution.stop()
        command.execution = None
