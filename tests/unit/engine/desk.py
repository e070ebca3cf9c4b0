"""An engine on a desk: its log is a list, its clock stands until it is told to go, and the test answers every call.

    desk = Desk(exec)           # `exec` is an async function of a saga: the command type "T"
    desk.submit("c")
    desk.ok("reserve")          # the call under way for that step is answered; records are appended and applied
    desk.sleep(200)             # milliseconds pass, timer by timer
    desk.state("c")

Nothing is played but the surroundings: engine, registry, stepper and records are the real ones.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from random import Random
from typing import Any

import msgspec

from coordinator import App, Saga, post
from coordinator.admission.gate import Decision
from coordinator.admission.gate import Request as GateRequest
from coordinator.engine import requests
from coordinator.engine.engine import Engine
from coordinator.engine.registry import Registry
from coordinator.engine.state import Command
from coordinator.model.call import Answer, Call, Verdict
from coordinator.model.command import FINAL, Operation
from coordinator.model.ids import CommandId
from coordinator.model.records import SCHEMA, Failure, Finished, Record, Signal, Submitted, raw, unraw
from coordinator.model.settings import BreakerSettings, EngineSettings, ServiceSettings
from coordinator.wire.codec import decode, encode

Exec = Callable[[Saga], Awaitable[Any]]
SERVICES = ("stock", "payments")
STEADY = EngineSettings(retry_jitter_ms=0)
TOUCHY = BreakerSettings(failures=3, reset_ms=1_000)
OUTCOME = Answer(Verdict.OUTCOME, raw({}))
REFUSAL = Answer(Verdict.FAILURE, failure=Failure("declined", "no", 409))
CALM = BreakerSettings(failures=1_000)
ONE = EngineSettings(max_commands=1, retry_jitter_ms=0)


class Desk:
    """One partition, one process; `restart` is the next process over the same log."""

    def __init__(
        self,
        run: Exec,
        *,
        declares: tuple[str, ...] = (),
        settings: EngineSettings = STEADY,
        breaker: BreakerSettings = TOUCHY,
        max_in_flight: int = 64,
        wants: Mapping[str, Any] | None = None,
    ) -> None:
        self.settings = settings
        self.wants = wants or {}  # what else the type's author asks for: `on_failure`, `pause_after`, …
        self.services = {
            name: ServiceSettings(name=name, breaker=breaker, max_in_flight=max_in_flight) for name in SERVICES
        }
        self.declares = declares
        self.log: list[Record] = []
        self.now = 1_000_000.0
        self.epoch = 0
        self.made: list[Call] = []  # every call that left, in order
        self.restart(run)

    def restart(self, run: Exec | None, *, opens: bool = True) -> None:
        """The process dies and another replays the log; None: the new program does not know the type."""
        app = App()
        if run is not None:

            class T(msgspec.Struct):
                async def exec(self, saga: Saga) -> Any:
                    return await run(saga)

            app.command(name="T", services=self.declares, **self.wants)(T)
        self.registry = Registry(app, dict.fromkeys(SERVICES, "http"))
        self.engine = Engine(self.settings, self.services, self.registry, Random(7))
        self.calls: dict[tuple[str, str], Call] = {}
        self.ended: dict[str, Finished] = {}
        for offset, record in enumerate(self.log):
            self._apply(offset, record)
        self.engine.take_replayed()
        if opens:
            self.open()

    def open(self) -> None:
        self.epoch += 1
        self.engine.open(0, b"token", self.epoch)
        self.turn()

    # ------------------------------------------------------------ asking

    def submit(
        self, id: str = "c", *, timeout: int | None = None, fingerprint: bytes = b"f", delay: int = 0
    ) -> Decision:
        now = int(self.now)
        start_at = now + delay if delay else 0
        record = Submitted(
            SCHEMA, b"", now, CommandId(id), "T", 1, raw({}), fingerprint, timeout=timeout, start_at=start_at
        )
        services = self.registry.resolve("T").services
        decision = self.engine.submit(GateRequest(id, fingerprint, services), record, 0, self.now)
        self.turn()
        return decision

    def ask(self, operation: Operation, id: str = "c", *, step: str = "", input: Any = None, turn: bool = True) -> bool:
        """An operator's request; ``turn=False`` leaves its record on the way to the log."""
        replaced = None if input is None else raw(input)
        command = self.engine.find(CommandId(id))
        assert command is not None
        asked = requests.control(command, operation, self.now, reason="because", by="op", step=step, input=replaced)
        if asked is not None:
            self.engine.ask(command, asked)
        if turn:
            self.turn()
        return asked is not None

    def give(self, name: str, value: Any = None, signal_id: str = "", *, id: str = "c", turn: bool = True) -> None:
        """Data for the command."""
        self._signal(Signal(SCHEMA, b"", int(self.now), CommandId(id), name, raw(value), signal_id), turn=turn)

    def decide(
        self, step: str, *, approve: bool = True, by: str = "ann", comment: str = "", id: str = "c", turn: bool = True
    ) -> None:
        """A person's decision."""
        value = raw({"approve": approve, "comment": comment})
        self._signal(
            Signal(SCHEMA, b"", int(self.now), CommandId(id), step, value, by=by, channel="decision"), turn=turn
        )

    def _signal(self, signal: Signal, *, turn: bool) -> None:
        command = self.engine.find(signal.id)
        assert command is not None
        self.engine.ask(command, signal)
        if turn:
            self.turn()

    # ------------------------------------------------------------ answering

    def ok(self, step: str, value: Any = None, *, id: str = "c") -> None:
        self.answer(step, Answer(Verdict.OUTCOME, raw({} if value is None else value)), id)

    def no(self, step: str, code: str = "declined", *, id: str = "c") -> None:
        self.answer(step, Answer(Verdict.FAILURE, failure=Failure(code, "no", 409)), id)

    def lost(self, step: str, *, id: str = "c", down: bool = False, retry_after_ms: int | None = None) -> None:
        verdict = Verdict.BLOCKED if down else Verdict.DELAYED
        self.answer(step, Answer(verdict, failure=Failure("timeout", "no answer"), retry_after_ms=retry_after_ms), id)

    def answer(self, step: str, answer: Answer, id: str = "c", *, turn: bool = True) -> None:
        self.engine.answer(self.calls.pop((id, step)), answer, self.now)
        if turn:
            self.turn()

    # ------------------------------------------------------------ going on

    def turn(self) -> None:
        """Appends and applies what is proposed, until nothing follows any more."""
        while self.gather():
            self.settle()

    def gather(self) -> list[Record]:
        """What the engine proposes now; it waits in `outbox` until `settle`."""
        self.engine.tick(self.now)
        output = self.engine.take(self.now)
        for call in output.calls:
            self.calls[call.command, call.step] = call
            self.made.append(call)
        self.outbox = [record for _, record in output.records]
        return self.outbox

    def settle(self, *more: Record) -> None:
        """The outbox is durable; ``more`` records are appended behind it."""
        batch = [*self.outbox, *more]
        base = len(self.log)
        # through the codec, as the real log does it: what cannot be encoded or decoded fails here
        self.log += [decode(encode(record), partition=0, offset=base + at) for at, record in enumerate(batch)]
        for offset in range(base, len(self.log)):
            self._apply(offset, self.log[offset])
        self.outbox = []

    def _apply(self, offset: int, record: Record) -> None:
        command = self.engine.apply(0, offset, record)
        if command is not None and command.finished is not None:
            self.ended[command.id] = command.finished
            self.calls = {key: call for key, call in self.calls.items() if key[0] != command.id}

    def sleep(self, ms: float) -> None:
        """Time passes, timer by timer."""
        until = self.now + ms
        while True:
            due = self.engine.due(self.now)
            if due is None or due > until:
                break
            self.now = max(due, self.now)
            before = self.now
            self.turn()
            if self.engine.due(self.now) == due and before == due:
                self.now += 0.5  # as the event loop's timers: never twice in the same instant
        self.now = max(until, self.now)
        self.turn()

    # ------------------------------------------------------------ looking

    def command(self, id: str = "c") -> Command:
        """As it is; one that is asleep sleeps on."""
        found = self.engine.look_at(0, CommandId(id))
        assert found is not None
        return found

    def asleep(self, id: str = "c") -> bool:
        return isinstance(self.engine.shards[0].commands[CommandId(id)], bytes)

    def state(self, id: str = "c") -> str:
        ended = self.ended.get(id)
        return ended.state if ended else self.command(id).state.value

    def result(self, id: str = "c") -> Any:
        assert self.state(id) in FINAL
        return unraw(self.ended[id].result)

    def failure(self, id: str = "c") -> Failure:
        failure = self.ended[id].failure
        assert failure is not None
        return failure

    def kinds(self, id: str = "c") -> list[str]:
        """The command's records so far, by kind."""
        return [type(record).__name__ for record in self.log if getattr(record, "id", None) == id]

    def under_way(self, id: str = "c") -> list[str]:
        """Steps whose call has left and has no answer yet; an undo has ``~`` before it."""
        return [("~" if call.undo else "") + step for (of, step), call in self.calls.items() if of == id]

    def body(self, step: str, id: str = "c") -> Any:
        """The body of the call under way."""
        return self.calls[id, step].request.body  # type: ignore[union-attr]


def step(saga: Saga, name: str, service: str = "stock", *, undone: bool = True, **rest: Any) -> Awaitable[Any]:
    if undone:
        rest.setdefault("undo", post(service, f"/{name}/undo"))
    return saga.step(name, post(service, f"/{name}"), **rest)


def sequence(*names: str, **rest: Any) -> Exec:
    async def run(saga: Saga) -> list[Any]:
        return [await step(saga, name, **rest) for name in names]

    return run


def fork(*names: str, **rest: Any) -> Exec:
    async def run(saga: Saga) -> list[Any]:
        return await saga.all(*(step(saga, name, **rest) for name in names))

    return run


def submitted(run: Exec, **rest: Any) -> Desk:
    desk = Desk(run, **rest)
    desk.submit()
    return desk
