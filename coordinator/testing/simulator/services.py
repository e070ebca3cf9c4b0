"""The services, with a ledger of what they did, and each process's way to them.

A service follows the rules that the product asks of services: it is idempotent by key and remembers its last refusal;
a refusal that it may revise at a later attempt it remembers for that attempt only, and then it refuses older fences
(docs/design.md, "Fence").  What it says to a key in turn is fixed by the seed (`plan.script`).

Requests and answers travel: they are lost, late and doubled, and a request may arrive long after its sender's death.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from msgspec import json

from coordinator.gateway.base import Done
from coordinator.gateway.classify import delayed, http_answer
from coordinator.model.call import Answer, Call
from coordinator.testing.simulator.plan import script

if TYPE_CHECKING:
    from coordinator.testing.simulator.process import Process
    from coordinator.testing.simulator.world import World

TIMEOUT_S: Final = 0.5
_JSON: Final = {"content-type": "application/json"}

Reply = tuple[int, bytes]  # HTTP status and body


class Ledger:
    """What all services did: which effects are live, in which order they were done and undone."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._scripts: dict[str, list[str]] = {}
        self._replies: dict[str, Reply] = {}  # remembered for ever
        self._refusals: dict[tuple[str, tuple[int, int]], Reply] = {}  # remembered for one attempt
        self._fences: dict[str, tuple[int, int]] = {}
        self.bodies: Callable[[Call], Any] = lambda call: {"key": call.key}  # of what is done; a user has his own
        self.reads: frozenset[str] = frozenset()  # services that have no effects
        self.down: set[str] = set()
        self.live: set[str] = set()
        self.undone: list[str] = []

    def arrives(self, call: Call) -> Reply | None:
        """One request arrives, perhaps a late copy of one whose sender is long dead; None: no answer is sent."""
        if call.request.service in self.down:
            return None if self._world.random.random() < 0.3 else (503, b'"down"')
        known = self._replies.get(call.key)
        if known is not None:
            return known
        fence = (call.epoch, call.attempt)
        if fence < self._fences.get(call.key, fence):
            return 503, b'"an older fence"'
        self._fences[call.key] = fence
        refusal = self._refusals.get((call.key, fence))
        return refusal if refusal is not None else self._play(call, fence)

    def forgive(self, id: str, step: str) -> None:
        """A refusal for good is taken back: somebody has seen to what caused it."""
        for key in (f"{id}/{step}", f"{id}/{step}/undo"):
            if self._replies.get(key, (200, b""))[0] == 409:
                del self._replies[key]

    def has_effect(self, call: Call) -> bool:
        """Whether the call changes anything: what only reads need not be undone, and may be done twice."""
        request = call.request
        return request.service not in self.reads and getattr(request, "method", "") not in ("GET", "HEAD")

    def _play(self, call: Call, fence: tuple[int, int]) -> Reply | None:
        if call.key not in self._scripts:
            plan = self._world.plan
            turns = script(plan.seed, call.key, plan.rates["services/answer"])
            if plan.declining and call.key.endswith(f"/{plan.declining}"):
                turns = ["never"]
            self._scripts[call.key] = turns
        turns = self._scripts[call.key]
        turn = turns.pop(0) if turns else "ok"
        if turn in ("void", "busy"):
            return None if turn == "void" else (503, b'"busy"')
        if turn in ("no", "never"):
            reply = (409, b'"refused"')
            if turn == "never":
                self._replies[call.key] = reply
            else:
                self._refusals[call.key, fence] = reply
            return reply
        if self.has_effect(call):
            self._effect(call)
        reply = self._replies[call.key] = (200, json.encode(self.bodies(call)))
        return None if turn == "lost" else (500, b'"broken"') if turn == "broken" else reply

    def _effect(self, call: Call) -> None:
        judge = self._world.judge
        self._world.note("effect", call.key)
        if not call.undo:
            judge.hold(call.key not in self.live, f"double effect of {call.key}")
            judge.causes(call, self.undone)
            self.live.add(call.key)
            return
        forward = call.key.removesuffix("/undo")
        judge.hold(forward in self.live, f"{forward} was undone, but it is not live")
        self.live.discard(forward)
        self.undone.append(forward)

    def by_hand(self, id: str, step: str) -> None:
        """Somebody takes an effect back, and sees to it that a late request to do so does nothing."""
        key = f"{id}/{step}"
        if key in self.live:
            self._world.note("by hand", key)
            self.live.discard(key)
            self.undone.append(key)
            self._replies[f"{key}/undo"] = (200, b"null")


class Wire:
    """One process's gateway: `done` follows exactly once, later, with what came back or with a timeout."""

    def __init__(self, world: World, process: Process) -> None:
        self._world = world
        self._process = process
        self.under_way: dict[int, Call] = {}
        self._sent = 0

    def send(self, call: Call, done: Done) -> None:
        world, process = self._world, self._process
        if process.dead:
            return
        if world.chance("crash/call"):
            process.die("before a call")
            return
        self._sent += 1
        number = self._sent
        if world.crashes("call", after=False):
            process.die("before a call")
            return
        self.under_way[number] = call
        world.judge.called(process, call)
        timeout = (call.timeout_ms or TIMEOUT_S * 1000) / 1000
        answered = delayed("timeout", f"no answer within {timeout:g} s")
        world.loop.call_later(timeout, self._answer, number, done, answered)
        self._travel(number, call, done)
        if world.chance("crash/call") or world.crashes("call", after=True):
            process.die("after a call")

    def _travel(self, number: int, call: Call, done: Done) -> None:
        world = self._world
        if world.chance("network/call"):
            fate = world.random.choice(("lost", "late", "twice", "unreachable"))
            world.fault(f"call {fate}", call.key)
            if fate == "unreachable":
                world.loop.call_soon(self._answer, number, done, delayed("connection", "no connection"))
                return
            if fate in ("late", "twice"):
                world.later(world.random.uniform(0.05, 6), self._arrive, call, None)
            if fate != "twice":
                return
        world.later(world.latency() + world.random.random() * world.plan.pace, self._arrive, call, (number, done))

    def _arrive(self, call: Call, back: tuple[int, Done] | None) -> None:
        world = self._world
        reply = world.ledger.arrives(call)
        world.note("arrives", call.key, call.fence, reply)
        if back is None or reply is None:
            return
        if world.chance("network/call"):
            world.fault("answer lost", call.key)
            return
        status, body = reply
        world.post_later(self._process.strand, world.latency(), self._answer, *back, http_answer(status, _JSON, body))

    def _answer(self, number: int, done: Done, answer: Answer) -> None:
        call = self.under_way.pop(number, None)
        if call is not None and not self._process.dead:
            done(call, answer)

    def in_flight(self, service: str) -> int:
        """Calls of a service that somebody still waits for: not those of lost partitions and ended commands."""
        engine = self._process.engine
        count = 0
        for call in self.under_way.values():
            command, shard = engine.commands.get(call.command), engine.shards.get(call.partition)
            work = command.work.get(call.step) if command is not None else None
            if call.request.service == service and work is not None and shard is not None:
                count += work.attempt == call.attempt and shard.epoch == call.epoch
        return count


async def breakdowns(world: World) -> None:
    """Now and then a service goes down for a while."""
    while True:
        await asyncio.sleep(1)
        for service in world.plan.services:
            if service not in world.ledger.down and world.chance("services/second"):
                world.fault("service down", service)
                world.ledger.down.add(service)
                world.later(world.random.uniform(0.3, 5), world.ledger.down.discard, service)
