"""A world for the engine to live in: a log, services that remember, a clock, and crashes wherever a test wants them.

Everything is deterministic and single-threaded: the test's choices say what happens next.  The engine, its registry
and its stepper are the real ones; only what surrounds them is played.

A service follows the rules that the product asks of services: it is idempotent by key and remembers its last refusal;
a refusal that it may revise on a next attempt it does not remember, and then it refuses older fences (docs/design.md,
"Fence").  Its script says, for each key, what it answers in turn: ``ok``, ``no`` (refused), ``lost`` (takes effect,
answer lost), ``void`` (no effect, answer lost).  After the script's end it answers ``ok``.

It also minds causes: nothing is done of which something that it follows from was undone, and nothing is undone of which
something that follows from it still stands.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from msgspec.structs import force_setattr

from coordinator.admission.gate import Request as GateRequest
from coordinator.engine import requests, waits
from coordinator.engine.engine import Engine
from coordinator.engine.registry import Registry
from coordinator.engine.state import Command
from coordinator.model.call import Answer, Call, Verdict
from coordinator.model.command import Operation
from coordinator.model.durations import parse_duration
from coordinator.model.ids import CommandId
from coordinator.model.records import (
    SCHEMA,
    Control,
    Epoch,
    Failure,
    Finished,
    Outcome,
    Record,
    Signal,
    Submitted,
    Timer,
    Undone,
    raw,
    unraw,
)
from coordinator.model.settings import BreakerSettings, EngineSettings, ServiceSettings
from coordinator.testing.simulator.trees import (
    Node,
    application,
    base,
    kept_by_losers,
    nodes_of,
    round_of,
    rounds,
    steps_of,
)

SERVICES = ("stock", "payments", "shipping")


class Ledger:
    """What the services did: an effect a forward key, and whether it was taken back."""

    def __init__(self, script: dict[str, list[str]]) -> None:
        self.script = {key: list(answers) for key, answers in script.items()}
        self.answers: dict[str, Answer] = {}
        self.fences: dict[str, tuple[int, int]] = {}
        self.live: set[str] = set()
        self.undone: list[str] = []
        self.done: list[str] = []
        self.after: dict[str, tuple[str, ...]] = {}  # what an effect follows from
        self.stays: set[str] = set()  # keys of first rounds, whose effects nothing can undo
        self.lenient = False  # an operator has passed over an undo: then causes are not minded any more

    def by_hand(self, key: str) -> None:
        """A person takes an effect back."""
        if key in self.live:
            self._takes_back(key)
            self.answers[f"{key}/undo"] = Answer(Verdict.OUTCOME, raw({"key": f"{key}/undo"}))

    def forgive(self, key: str) -> None:
        """Somebody has seen to what made a service refuse it for good."""
        if key in self.answers and self.answers[key].verdict is Verdict.FAILURE:
            del self.answers[key]

    def call(self, call: Call) -> Answer:
        """One request arrives; also a late copy of one whose sender is long dead."""
        if call.key in self.answers:
            return self.answers[call.key]
        fence = (call.epoch, call.attempt)
        if fence < self.fences.get(call.key, fence):
            return _LOST
        self.fences[call.key] = fence
        script = self.script.get(call.key)
        play = script.pop(0) if script else "ok"
        if play == "void":
            return _LOST
        if play == "no":
            answer = Answer(Verdict.FAILURE, failure=Failure("http_409", "refused", 409))
            if not self._retryable(call):
                self.answers[call.key] = answer
            return answer
        self._effect(call)
        self.answers[call.key] = Answer(Verdict.OUTCOME, raw({"key": call.key}))
        return _LOST if play == "lost" else self.answers[call.key]

    def _retryable(self, call: Call) -> bool:
        """Refusals of steps with attempts left are not remembered: the next attempt may go through.  Nor are those of
        undos: a person sees to it and asks again."""
        return call.undo or bool(self.script.get(call.key))

    def _effect(self, call: Call) -> None:
        if call.undo:
            self._takes_back(call.key.removesuffix("/undo"))
            return
        assert call.key not in self.live, f"double effect of {call.key}"
        body = getattr(call.request, "body", None) or {}
        self.after[call.key] = tuple(body.get("after", ()))
        gone = set(self.after[call.key]) & set(self.undone)
        assert self.lenient or not gone, f"{call.key} was done after {gone}, which it follows from, had been undone"
        self.live.add(call.key)
        self.done.append(call.key)

    def _takes_back(self, forward: str) -> None:
        assert forward in self.live, f"undo of {forward}, which is not live"
        self.live.discard(forward)
        stands = {key for key in self.live if forward in self.after[key] and base(key) not in self.stays}
        assert self.lenient or not stands, f"{forward} was undone before {stands}, which follows from it"
        self.undone.append(forward)


_LOST = Answer(Verdict.DELAYED, failure=Failure("timeout", "no answer"))


class Crash(Exception):
    """The process dies here."""


class World:
    """One partition, one process at a time.

    ``choose(n, what)`` returns 0..n-1 and decides everything that is open; ``crashes`` is how often the process may
    die; in a ``slow`` world time passes between a call and its answer.
    """

    def __init__(
        self,
        choose: Callable[[int, str], int],
        *,
        script: dict[str, list[str]] | None = None,
        crashes: int = 0,
        settings: EngineSettings | None = None,
        breaker: BreakerSettings | None = None,
        slow: bool = False,
    ) -> None:
        self.slow = slow
        self.choose = choose
        self.breaker = breaker or BreakerSettings()
        self.ledger = Ledger(script or {})
        self.crashes = crashes
        self.settings = settings or EngineSettings()
        self.log: list[Record] = []
        self.now = 1_000_000
        self.boots = 0
        self.ghosts: list[Call] = []  # calls of dead processes that have not arrived yet
        self.accepted: set[str] = set()
        self.calls: list[tuple[int, Call]] = []  # with the log's length when they left
        self.signals = 0
        self.boot()

    # ------------------------------------------------------------ life and death

    def boot(self) -> None:
        """A new process: a new token, an Epoch, replay, resume."""
        self.boots += 1
        self.token = bytes([self.boots]) * 8
        self.log.append(Epoch(SCHEMA, self.token, self.now, f"i{self.boots}", ""))
        self.engine = self.replayed(len(self.log))
        self.engine.open(0, self.token, len(self.log) - 1)
        self.flying: list[tuple[Call, Answer]] = []
        self.outbox: list[Record] = []

    def replayed(self, length: int) -> Engine:
        """A fresh engine that has folded a prefix of the log."""
        app = application()
        services = {name: ServiceSettings(name=name, breaker=self.breaker) for name in SERVICES}
        engine = Engine(self.settings, services, Registry(app, dict.fromkeys(SERVICES, "http")), Random(7))
        for offset, record in enumerate(self.log[:length]):
            engine.apply(0, offset, record)
        engine.take_replayed()
        return engine

    def may_crash(self, where: str) -> None:
        if self.crashes and self.choose(4, f"crash {where}?") == 0:
            self.crashes -= 1
            raise Crash(where)

    def die(self) -> None:
        """What was in the air stays there: a call may still arrive after its sender's death."""
        self.ghosts += [call for call, _ in self.flying]
        self.boot()

    # ------------------------------------------------------------ doing

    def submit(self, id: str, root: Node, timeout: int | None = None, *, type: str = "Tree", delay: int = 0) -> None:
        payload, start_at = raw({"root": root}), self.now + delay if delay else 0
        record = Submitted(
            SCHEMA, b"", self.now, CommandId(id), type, 1, payload, b"f", timeout=timeout, start_at=start_at
        )
        self.ledger.stays |= {f"{id}/{step.name}" for step in steps_of(root) if not step.undoable}
        self.engine.submit(GateRequest(id, b"f", frozenset()), record, 0, self.now)

    def control(self, id: str, operation: Operation, step: str = "") -> None:
        """An operator's request; of one who resolves an undo, the deed is done by hand first."""
        command = self.engine.find(CommandId(id))
        assert command is not None
        letters = [name for name, each in command.steps.items() if each.parked and each.undoing]
        if operation is Operation.CANCEL and letters:
            self.ledger.lenient = True  # it passes over a dead undo: the order is broken on purpose
        if operation is Operation.RESOLVE and step in letters:
            self.ledger.by_hand(f"{id}/{step}")
        if operation in (Operation.REQUEUE, Operation.RETRY):
            for name, each in command.steps.items():
                if each.parked and (name == step or operation is Operation.RETRY):
                    self.ledger.forgive(f"{id}/{name}")
        asked = requests.control(command, operation, self.now, reason="", by="test", step=step, input=None)
        if asked is not None:
            self.engine.ask(command, asked)

    def provide(self, id: str, name: str, signal_id: str = "") -> None:
        """Data for the command, no two values alike, whether anybody waits for it or not."""
        command = self.engine.find(CommandId(id))
        assert command is not None
        self.signals += 1
        value = raw(f"{name} {self.signals}")
        self.engine.ask(command, Signal(SCHEMA, b"", self.now, command.id, name, value, signal_id))

    def decide(self, id: str, step: str, *, approve: bool) -> None:
        """A person's decision; the Front refuses one that is not asked for."""
        command = self.engine.find(CommandId(id))
        assert command is not None
        if command.execution is not None and step in command.execution.waits:
            value = raw({"approve": approve, "comment": ""})
            signal = Signal(SCHEMA, b"", self.now, command.id, step, value, by="test", channel="decision")
            self.engine.ask(command, signal)

    def under_way(self) -> list[Command]:
        """Every command that has not ended, as it is; those asleep sleep on."""
        looked = [self.engine.look_at(0, id) for id in self.engine.shards[0].commands]
        return [command for command in looked if command is not None]

    def turn(self) -> bool:
        """One step of the world; False when nothing is left to do."""
        try:
            return self._turn()
        except Crash:
            self.die()
            return True

    def _turn(self) -> bool:
        self.engine.tick(self.now)
        self.decided()
        if self.outbox:
            self.may_crash("before an append")
            batch, self.outbox = self.outbox, []
            for record in batch:
                force_setattr(record, "token", self.token)
            base = len(self.log)
            self.log += batch
            self.may_crash("between append and act")
            for offset, record in enumerate(batch, base):
                self.engine.apply(0, offset, record)
                if isinstance(record, Submitted):
                    self.accepted.add(record.id)
            return True
        if self.ghosts and self.choose(3, "does a dead process's call arrive now?") == 0:
            self.ledger.call(self.ghosts.pop(self.choose(len(self.ghosts), "which ghost?")))
            return True
        if self.flying:
            if self.slow and self.choose(5, "how long do the answers take?") == 4:
                self.now += 200
                return True
            call, _ = self.flying.pop(self.choose(len(self.flying), "which call arrives?"))
            self.may_crash("before a call arrives")
            answer = self.ledger.call(call)
            self.may_crash("after a call, before its answer")
            self.engine.answer(call, answer, self.now)
            return True
        due = self.engine.due(self.now)
        if due is None:
            return False
        self.now = max(self.now + 1, int(due) + 1)
        return True

    def decided(self) -> None:
        """Lets the engine decide on all that has been applied; calls leave, records wait for the next turn."""
        output = self.engine.take(self.now)
        for call in output.calls:
            self._justified(call)
            self.calls.append((len(self.log), call))
            self.flying.append((call, _LOST))
        self.outbox += [record for _, record in output.records]

    def _justified(self, call: Call) -> None:
        """A call may only leave if an engine that knows nothing but the durable log would make it too."""
        engine = self.replayed(len(self.log))
        engine.open(0, b"judge..!", len(self.log))
        engine.take(self.now + 10_000_000)
        command = engine.commands.get(call.command)
        wanted = command.work.get(call.step) if command else None
        if wanted is None and call.undo and any(before.key == call.key for _, before in self.calls):
            return  # an undo that was begun goes on, whatever else is in doubt by now
        assert wanted is not None, f"{call.step} was called without a durable reason"
        assert command is not None
        assert not command.paused, f"{call.step} was called while the command is paused"
        assert wanted.undo is call.undo

    def settle(self, turns: int = 5_000) -> None:
        """Until nothing moves any more; then late calls of dead processes arrive as well."""
        for _ in range(turns):
            if not self.turn():
                break
        else:
            raise AssertionError("the world does not come to rest")
        for ghost in self.ghosts:
            self.ledger.call(ghost)

    # ------------------------------------------------------------ judging

    def finals(self, id: str) -> list[Finished]:
        """The Finished records of a command that the fold believes."""
        return [record for record in self.log if isinstance(record, Finished) and record.id == id]

    def check(self, id: str, root: Node) -> str:
        """All invariants of one command that has ended; returns its final state."""
        finals = self.finals(id)
        assert not self.engine.has(CommandId(id)), f"{id} never ended"
        assert finals, f"{id} was lost"
        state = finals[-1].state
        live = {key for key in self.ledger.live if key.startswith(f"{id}/")}
        undoable = {key for key in live if base(key) not in self.ledger.stays}
        recorded = {f"{id}/{r.step}" for r in self.log if isinstance(r, Outcome) and r.id == id}
        undone = [f"{id}/{r.step}" for r in self.log if isinstance(r, Undone) and r.id == id]
        standing = {f"{id}/{name}" for name in self._at(id, self._end(id)).standing}
        if state == "completed":
            assert live == standing, f"completed, live is {live}, what is recorded and not undone {standing}"
            book = set(unraw(finals[-1].result)["book"])
            kept = {f"{id}/{name}" for name in kept_by_losers(root)}
            assert book <= live, f"completed without what its code has done: {book - live}"
            extra = {key for key in undoable - book if base(key) not in kept}
            assert not extra, f"completed with what its code has given up: {extra}"
        elif state in ("compensated", "failed"):
            assert not undoable, f"{state} with live effects {undoable}"
        if state == "failed":
            assert not recorded
        assert len(undone) == len(set(undone)), f"undone twice: {undone}"
        self._check_rounds(id, root)
        self._check_order(id, root)
        self._check_times(id)
        self._check_deliveries(id)
        return state

    def _check_rounds(self, id: str, root: Node) -> None:
        """What follows a join runs once; what a savepoint goes back over no more often than it was told to."""
        letting = ("retry", "requeue")
        releases = sum(isinstance(r, Control) and r.id == id and r.operation in letting for r in self.log)
        most = rounds(root, releases)
        for _, call in self.calls:
            if call.command == id:
                assert round_of(call.step) <= most[base(call.step)], f"{call.step} was run more often than allowed"

    def _check_order(self, id: str, root: Node) -> None:
        """Undo runs in reverse order of the recorded outcomes, and no new step is begun after a contrary decision.

        Where exec itself goes back, what it goes back over is undone before the rest: the ledger has minded the causes.
        """
        recorded = [r.step for r in self.log if isinstance(r, Outcome) and r.id == id]
        undone = [key.split("/")[1] for key in self.ledger.undone if key.startswith(f"{id}/")]
        turns = any(each.kind in ("any", "savepoint") or each.catches or each.deadline for each in nodes_of(root))
        if not (turns or self.ledger.lenient):
            assert undone == sorted(undone, key=recorded.index, reverse=True), f"undo order {undone} of {recorded}"
        contrary = self._contrary(id)
        if contrary is None:
            return
        begun = {call.step for at, call in self.calls if at <= contrary and call.command == id and not call.undo}
        for at, call in self.calls:
            if call.command == id and not call.undo and at > contrary and call.step not in begun:
                assert call.step in self._pending_at(id, contrary), f"{call.step} was begun after a contrary decision"

    def _check_times(self, id: str) -> None:
        """Every time that came was one of this command's, and not before its time."""
        for offset, record in enumerate(self.log):
            if not (isinstance(record, Timer) and record.id == id):
                continue
            command = self._at(id, offset)
            if record.what == "start":
                assert record.at >= command.submitted.start_at > 0
            elif record.what == "deadline":
                assert command.deadline is not None
                assert record.at >= command.deadline
            elif record.what == "step":
                execution = command.execution
                assert execution is not None
                assert record.name in execution.names, f"a time of {record.name}, which exec has not come to"
                waiting = execution.waits.get(record.name) or execution.pending.get(record.name)
                if waiting is not None:
                    call = waiting.call
                    limit = waits.due(call, 0) if record.name in execution.waits else parse_duration(call.deadline)
                    assert limit is not None
                    assert record.at >= waiting.since + limit

    def _check_deliveries(self, id: str) -> None:
        """Of each name the data that was taken is what came first, each once; nobody waits where there is more."""
        offset = self._end(id)
        execution = self._at(id, offset).execution
        if execution is None:
            return  # it has never begun
        came: dict[str, list[Any]] = {}
        ids = {""}
        for record in self.log[:offset]:
            if isinstance(record, Signal) and record.id == id and record.channel == "data":
                if not record.signal_id or record.signal_id not in ids:
                    came.setdefault(record.name, []).append(unraw(record.value))
                ids.add(record.signal_id)
        for name, values in came.items():
            taken = [
                unraw(answer.value)
                for answer in execution.waited.values()
                if answer.wait.channel == name and answer.value is not None
            ]
            assert sorted(taken) == sorted(values[: len(taken)]), f"{taken} of {values}"

    def _end(self, id: str) -> int:
        """The offset of the command's end."""
        return max(at for at, record in enumerate(self.log) if isinstance(record, Finished) and record.id == id)

    def _at(self, id: str, offset: int) -> Command:
        """The command as the records below this offset tell it."""
        engine = self.replayed(0)
        for at, record in enumerate(self.log[:offset]):
            engine.apply(0, at, record)
        history = engine.replaying[0][CommandId(id)]
        assert isinstance(history, Command)
        return engine.recall(0, history.history)

    def _contrary(self, id: str) -> int | None:
        for offset, record in enumerate(self.log):
            if isinstance(record, Timer) and record.id == id and record.what in ("deadline", "state"):
                return offset
            if isinstance(record, Control) and record.id == id and record.operation == "cancel":
                return offset
        return None

    def _pending_at(self, id: str, offset: int) -> set[str]:
        engine = self.replayed(offset)
        engine.open(0, b"x" * 8, offset)
        engine.take(self.now)
        command = engine.look_at(0, CommandId(id))
        execution = command.execution if command else None
        return {*execution.pending, *execution.orphans} if execution else set()


def fold_of(command: Command) -> dict[str, Any]:
    """What two engines must agree on after the same prefix: the whole fold, and what follows from it."""
    execution = command.execution
    return {
        "steps": {name: {slot: getattr(step, slot) for slot in step.__slots__} for name, step in command.steps.items()},
        "trail": [(name, at, type(answer).__name__) for name, at, answer in command.trail],
        "signals": command.signal_ids,
        "counts": (command.moves, command.errors, command.started_at, command.parked_at, command.revision),
        "standing": command.standing,
        "dead_letters": command.dead_letters,
        "contrary": command.contrary,
        "poison": command.poison,
        "paused": (command.paused, command.paused_auto, command.paused_at),
        "aborted": command.aborted,
        "failure": command.failure,
        "work": sorted((name, work.undo) for name, work in command.work.items()),
        "pending": sorted(execution.pending) if execution else None,
        "orphans": sorted(execution.orphans) if execution else None,
        "unwanted": list(execution.unwanted) if execution else None,
        "waits": sorted(execution.waits) if execution else None,
        "holds": sorted(execution.holds) if execution else None,
        "waited": {
            name: (answer.value, answer.failure, answer.at, answer.by) for name, answer in execution.waited.items()
        }
        if execution
        else None,
        "result": execution.result if execution else None,
    }
