"""The group's coordinator at Kafka's brokers, and each process's membership in the group.

    join (what I hold) ─▶ all have come, or had time to ─▶ everybody has the new table, one sooner, one later
    heartbeat ─▶ fine, or: the group changes (join again), or: it does not know you (join anew)

As `cluster.kafka` has it: a member that is silent for the session timeout is expelled, and counts that time itself,
from the moment at which it sent what was answered last; what was agreed last holds meanwhile.  The way to the broker is
a way of its own: it can be cut while the log is in reach, and the other way round.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from coordinator.cluster.assignment import assign
from coordinator.cluster.base import Assignment, Held, Member

if TYPE_CHECKING:
    from coordinator.testing.simulator.process import Process
    from coordinator.testing.simulator.world import World

SESSION_S: Final = 3.0  # half of the default: a run is shorter for it
HEARTBEAT_S: Final = 1.0
REBALANCE_S: Final = SESSION_S / 2
REQUEST_S: Final = SESSION_S / 4
NO_AGREEMENT: Final = Assignment(-1, {}, {})


class _Trouble(Exception):
    """No answer."""


class _Unknown(Exception):
    """The group does not know this member."""


class _Changing(Exception):
    """Members come or go: join again."""


class _Known(Struct):
    """A member, as the coordinator has it."""

    member: Member
    heard_at: float
    held: Held
    joining: asyncio.Future[Assignment] | None = None


class GroupCoordinator:
    """The broker's side: it has no faults of its own, only the ways to it have."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._known: dict[str, _Known] = {}
        self._generation = 0
        self._changing = False

    def beat(self, instance: str, generation: int) -> None:
        known = self._known.get(instance)
        if known is None:
            raise _Unknown
        known.heard_at = self._world.loop.time()
        if self._changing or generation != self._generation:
            raise _Changing

    def join(self, member: Member, held: Held, *, anew: bool) -> asyncio.Future[Assignment]:
        """Answered when the group has agreed; raises `_Unknown`."""
        known = self._known.get(member.instance)
        loop = self._world.loop
        if known is None:
            if not anew:
                raise _Unknown
            known = self._known[member.instance] = _Known(member, loop.time(), held)
            self._watch(known)
        known.heard_at, known.held = loop.time(), held
        known.joining = joining = loop.create_future()
        self._change()
        return joining

    def leave(self, instance: str) -> None:
        if self._known.pop(instance, None) is not None:
            self._change()

    def _watch(self, known: _Known) -> None:
        """Expels it when it has been silent for too long."""
        world, instance = self._world, known.member.instance
        if self._known.get(instance) is not known:
            return
        left = known.heard_at + SESSION_S - world.loop.time()
        if left > 0 or known.joining is not None:
            world.loop.post_later(world.strand, max(left, HEARTBEAT_S), self._watch, known)
            return
        world.note("expelled", instance)
        self.leave(instance)

    def _change(self) -> None:
        world = self._world
        if not self._changing:
            self._changing = True
            world.loop.post_later(world.strand, REBALANCE_S, self._agree, self._generation)
        if all(known.joining is not None for known in self._known.values()):
            world.loop.post_later(world.strand, world.latency(), self._agree, self._generation)

    def _agree(self, generation: int) -> None:
        """Whoever has not come back by now is no member any more."""
        if generation != self._generation:
            return
        self._known = {instance: known for instance, known in self._known.items() if known.joining is not None}
        self._generation += 1
        self._changing = False
        owners = assign(self._world.plan.partitions, {each: known.held for each, known in self._known.items()})
        members = {each: known.member for each, known in self._known.items()}
        agreement = Assignment(self._generation, members, owners)
        self._world.note("agreed", self._generation, owners)
        for known in self._known.values():
            joining, known.joining = known.joining, None
            known.heard_at = self._world.loop.time()
            if joining is not None and not joining.done():
                joining.set_result(agreement)


class SimulatedMembership:
    """The `Membership` port of one process's life, over the world's `GroupCoordinator`."""

    def __init__(self, world: World, process: Process, member: Member, held: Callable[[], Held]) -> None:
        self._world, self._process = world, process
        self._member, self._held = member, held
        self._coordinator = world.group
        self._told = self._agreed = NO_AGREEMENT
        self._joined = self._known = False
        self._tell: Callable[[Assignment], None] = lambda _: None
        self._silence: asyncio.TimerHandle | None = None
        self._left = False

    async def run(self, on_change: Callable[[Assignment], None]) -> None:
        self._tell = on_change
        try:
            while not self._left:
                await self._stay()
        finally:
            if self._silence is not None:
                self._silence.cancel()

    async def leave(self) -> None:
        self._left = True
        try:
            await self._travel()
        except _Trouble:
            return
        self._coordinator.leave(self._member.instance)

    async def _stay(self) -> None:
        """One agreement, or one heartbeat and the pause after it."""
        loop = self._world.loop
        sent = loop.time()
        try:
            if not self._joined:
                await self._join()
            else:
                await self._travel()
                self._coordinator.beat(self._member.instance, self._agreed.generation)
                await self._travel()
            self._heard(sent)
            await asyncio.sleep(HEARTBEAT_S)
        except _Trouble:
            await asyncio.sleep(0.2)
        except _Changing:
            self._joined = False
            self._heard(sent)
        except _Unknown:
            self._joined = self._known = False
            self._agreed = NO_AGREEMENT
            self._say(NO_AGREEMENT)

    async def _join(self) -> None:
        await self._travel()
        joining = self._coordinator.join(self._member, dict(self._held()), anew=not self._known)
        self._known = True
        try:
            async with asyncio.timeout(SESSION_S):
                self._agreed = await joining
        except TimeoutError:
            raise _Trouble from None
        await self._travel()
        if self._world.chance("group/table"):
            self._world.fault("agreement late", self._process.name)
            await asyncio.sleep(self._world.random.uniform(0.1, 3))
        self._joined = True

    async def _travel(self) -> None:
        """One way; nothing comes through while the group is cut off, and the asker gives up."""
        if self._process.machine.no_group:
            await asyncio.sleep(REQUEST_S)
            raise _Trouble
        await asyncio.sleep(self._world.latency())

    def _heard(self, sent: float) -> None:
        """The group counted us among its members at that time or later."""
        if self._silence is not None:
            self._silence.cancel()
        self._silence = self._world.loop.call_at(sent + SESSION_S, self._say, NO_AGREEMENT)
        self._say(self._agreed)

    def _say(self, assignment: Assignment) -> None:
        if assignment is not self._told and not self._left:
            self._told = assignment
            self._tell(assignment)
