"""A world for the engine to live in: a log, services that remember, a clock, and crashes wherever a test wants them.

Everything is deterministic and single-threaded: the test's choices say what happens next.  The engine, its registry
and its stepper are the real ones; only what surrounds them is played.

A service follows the rules that the product asks of services: it is idempotent by key and remembers its last refusal;
a refusal that it may revise on a next attempt it does not remember, and then it refuses older fences (docs/design.md,
"Fence").  Its script says, for each key, what it answers in turn: ``ok``, ``no`` (refused), ``lost`` (takes effect,
answer lost), ``void`` (no effect, answer lost).  After the script's end it answers ``ok``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import msgspec
from msgspec.structs import force_setattr

import coordinator
from coordinator import App, Retry, Saga, StepFailed
from coordinator.admission.gate import Request as GateRequest
from coordinator.engine.engine import Engine
from coordinator.engine.registry import Registry
from coordinator.engine.state import Command
from coordinator.model.call import Answer, Call, Request, Verdict
from coordinator.model.ids import CommandId
from coordinator.model.records import (
    SCHEMA,
    Control,
    Epoch,
    Failure,
    Finished,
    Outcome,
    Record,
    Submitted,
    Timer,
    raw,
)
from coordinator.model.settings import BreakerSettings, EngineSettings, ServiceSettings

SERVICES = ("stock", "payments", "shipping")


class Node(msgspec.Struct, frozen=True):
    """A random saga: a step, a sequence or a fork; ``catches`` makes a sequence swallow a failed step of its own.

    ``patience`` is a step's `give_up_after`.
    """

    kind: str
    name: str = ""
    service: str = "stock"
    undoable: bool = True
    attempts: int = 1
    patience: str | None = None
    parts: tuple[Node, ...] = ()
    catches: bool = False


class Tree(msgspec.Struct):
    """The command under test: runs its tree by the public saga API."""

    root: Node

    async def exec(self, saga: Saga) -> Any:
        return await walk(self.root, saga)


async def walk(node: Node, saga: Saga) -> Any:
    if node.kind == "step":
        return await saga.step(
            node.name,
            Request(service=node.service, path=f"/{node.name}"),
            undo=Request(service=node.service, path=f"/{node.name}/undo") if node.undoable else None,
            retry=Retry(attempts=node.attempts, first="10ms", max="50ms"),
            give_up_after=node.patience,
        )
    if node.kind == "fork":
        return await saga.all(*(walk(part, saga) for part in node.parts))
    results = []
    try:
        for part in node.parts:
            results.append(await walk(part, saga))  # noqa: PERF401
    except StepFailed:
        if not node.catches:
            raise
    return results


def steps_of(node: Node) -> Iterator[Node]:
    if node.kind == "step":
        yield node
    for part in node.parts:
        yield from steps_of(part)


class Ledger:
    """What the services did: an effect a forward key, and whether it was taken back."""

    def __init__(self, script: dict[str, list[str]]) -> None:
        self.script = {key: list(answers) for key, answers in script.items()}
        self.answers: dict[str, Answer] = {}
        self.fences: dict[str, tuple[int, int]] = {}
        self.live: set[str] = set()
        self.undone: list[str] = []
        self.done: list[str] = []

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
        if not call.undo:
            assert call.key not in self.live, f"double effect of {call.key}"
            self.live.add(call.key)
            self.done.append(call.key)
        else:
            forward = call.key.removesuffix("/undo")
            assert forward in self.live, f"undo of {forward}, which is not live"
            self.live.discard(forward)
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

    def replayed(self, length: int) -> Engine:
        """A fresh engine that has folded a prefix of the log."""
        app = App()
        app.command()(Tree)
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

    def submit(self, id: str, root: Node, timeout: int | None = None) -> None:
        record = Submitted(SCHEMA, b"", self.now, CommandId(id), "Tree", 1, raw({"root": root}), b"f", timeout=timeout)
        self.engine.submit(GateRequest(id, b"f", frozenset()), record, 0, self.now)

    def control(self, id: str, operation: coordinator.model.command.Operation, step: str = "") -> None:
        command = self.engine.find(CommandId(id))
        assert command is not None
        self.engine.control(command, operation, self.now, reason="", by="test", step=step, input=None)

    def turn(self) -> bool:
        """One step of the world; False when nothing is left to do."""
        try:
            return self._turn()
        except Crash:
            self.die()
            return True

    def _turn(self) -> bool:
        self.engine.tick(self.now)
        output = self.engine.take(self.now)
        for call in output.calls:
            self._justified(call)
            self.calls.append((len(self.log), call))
            self.flying.append((call, _LOST))
        if output.records:
            self.may_crash("before an append")
            batch = [record for _, record in output.records]
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

    def _justified(self, call: Call) -> None:
        """A call may only leave if an engine that knows nothing but the durable log would make it too."""
        engine = self.replayed(len(self.log))
        engine.open(0, b"judge..!", len(self.log))
        engine.take(self.now + 10_000_000)
        command = engine.commands.get(call.command)
        wanted = command.work.get(call.step) if command else None
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
        assert id not in self.engine.commands, f"{id} never ended: {self.engine.commands[CommandId(id)].state}"
        assert finals, f"{id} was lost"
        state = finals[-1].state
        names = {f"{id}/{node.name}": node for node in steps_of(root)}
        live = {key for key in self.ledger.live if key in names}
        if state == "completed":
            recorded = {f"{id}/{r.step}" for r in self.log if isinstance(r, Outcome) and r.id == id}
            assert live <= recorded, f"completed with an effect that nobody recorded: {live - recorded}"
        elif state in ("compensated", "failed"):
            left = {key for key in live if names[key].undoable}
            assert not left, f"{state} with live effects {left}"
        self._check_order(id)
        return state

    def _check_order(self, id: str) -> None:
        """Undo runs in reverse order of the recorded outcomes, and no new step is begun after a contrary decision."""
        recorded = [r.step for r in self.log if isinstance(r, Outcome) and r.id == id]
        undone = [key.split("/")[1] for key in self.ledger.undone if key.startswith(f"{id}/")]
        assert undone == sorted(undone, key=recorded.index, reverse=True), f"undo order {undone} of {recorded}"
        contrary = self._contrary(id)
        if contrary is None:
            return
        begun = {call.step for at, call in self.calls if at <= contrary and call.command == id and not call.undo}
        for at, call in self.calls:
            if call.command == id and not call.undo and at > contrary and call.step not in begun:
                assert call.step in self._pending_at(id, contrary), f"{call.step} was begun after a contrary decision"

    def _contrary(self, id: str) -> int | None:
        for offset, record in enumerate(self.log):
            if isinstance(record, Timer) and record.id == id:
                return offset
            if isinstance(record, Control) and record.id == id and record.operation == "cancel":
                return offset
        return None

    def _pending_at(self, id: str, offset: int) -> set[str]:
        engine = self.replayed(offset)
        engine.open(0, b"x" * 8, offset)
        engine.take(self.now)
        command = engine.commands[CommandId(id)]
        return set(command.execution.pending) if command.execution else set()


def fold_of(command: Command) -> dict[str, Any]:
    """What two engines must agree on after the same prefix: the whole fold, and what follows from it."""
    execution = command.execution
    return {
        "steps": {name: {slot: getattr(step, slot) for slot in step.__slots__} for name, step in command.steps.items()},
        "trail": [(name, at, type(answer).__name__) for name, at, answer in command.trail],
        "standing": command.standing,
        "dead_letters": command.dead_letters,
        "contrary": command.contrary,
        "poison": command.poison,
        "paused": command.paused,
        "aborted": command.aborted,
        "failure": command.failure,
        "work": sorted((name, work.undo) for name, work in command.work.items()),
        "pending": sorted(execution.pending) if execution else None,
        "orphans": sorted(execution.orphans) if execution else None,
        "result": execution.result if execution else None,
    }
