"""This instance's part in its group: hears, decides by `succession`, and moves the lanes.

    Membership ──agreements──▶ ┐                    ┌─▶ lane.summon()      it ought to own the partition
    Peers ──deaths, tidings──▶ ├─▶ Succession ──────┤
    lanes ──own Epochs, falls─▶ ┘                    └─▶ lane.let_go(heir)  another ought to

Whatever is heard is followed by one look at every partition; a look now and then covers what only time brings about.
The other way round, what the lanes do is told to the peers that follow (`owned`, `on_change`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import structlog

from coordinator.cluster.base import Assignment, Held, Member, Membership
from coordinator.cluster.link import Link
from coordinator.cluster.peers import Peers
from coordinator.cluster.succession import ACQUIRING, UNABLE, Succession
from coordinator.errors import CoordinatorError

log = structlog.get_logger(__name__)

LOOK_S: Final = 0.1
TAKE_MS: Final = 1_000
UNABLE_S: Final = 30.0  # until one that could not acquire a partition may try again, if it is its heir


class Seat(Protocol):
    """What the group needs of a lane."""

    partition: int

    @property
    def standing_by(self) -> bool:
        """Whether it waits to be summoned."""
        ...

    @property
    def since(self) -> int | None:
        """When it acquired the partition (ms); None while it does not own it."""
        ...

    def summon(self) -> None:
        """The partition is to be acquired now."""
        ...

    def let_go(self, heir: str | None) -> None:
        """The partition is to be handed over to that instance as soon as nothing is under way; None: it stays."""
        ...


class Group:
    """See the module.  ``now`` gives milliseconds that never go back; ``peers`` makes the links (a test its own)."""

    def __init__(
        self,
        me: Member,
        partitions: int,
        *,
        name: str,
        now: Callable[[], int],
        session_timeout_ms: int = 6_000,
        peers: Callable[..., Peers] = Peers,
    ) -> None:
        self.me = me
        self.now = now
        self.succession = Succession(me, partitions)
        self.peers = peers(
            me,
            group=name,
            on_died=self._died,
            on_lives=self._lives,
            on_told=self._told,
            silence_ms=session_timeout_ms,
        )
        self._seats: Sequence[Seat] = ()
        self._held: dict[int, int] = {}
        self._followers: list[Callable[[], None]] = []
        self._membership: Membership | None = None
        self.on_look: Callable[[], None] = _nobody

    # ------------------------------------------------------------ life

    async def run(self, seats: Sequence[Seat], membership: Membership) -> None:
        """Takes part until cancelled."""
        self._seats = seats
        self._membership = membership
        running = asyncio.create_task(membership.run(self._agreed), name="membership")
        try:
            while True:
                self.look()
                await asyncio.sleep(LOOK_S)
                if running.done():
                    running.result()
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    def retire(self) -> None:
        """We are leaving: nothing more is acquired, and what is owned goes to whoever can take it."""
        self.succession.leaving = True
        self._tell()
        self.look()

    async def leave(self) -> None:
        """All that could be handed over has been: the others need not wait for us."""
        if self._membership is not None:
            await self._membership.leave()
        await self.peers.close()

    # ------------------------------------------------------------ what is heard

    def _agreed(self, agreement: Assignment) -> None:
        before = self.succession.agreement
        self.succession.agreed(agreement, self.now())
        if agreement.generation < 0:
            log.warning("the group does not count this instance among its members: nothing more is acquired")
        elif before.generation < 0 or before.members.keys() != agreement.members.keys():
            log.info("the group has agreed", generation=agreement.generation, members=sorted(agreement.members))
        if agreement.generation >= 0:
            self.peers.know(agreement.members.values())
        self.look()

    def _died(self, instance: str) -> None:
        if instance in self.succession.leavers:
            log.info("an instance has left", instance=instance)
        else:
            log.warning("an instance has died", instance=instance)
        self.succession.died(instance)
        self.look()

    def _lives(self, instance: str) -> None:
        self.succession.lives(instance)
        self.look()

    def _told(self, instance: str) -> None:
        link = self.peers.links.get(instance)
        if link is not None:
            self.succession.heard(instance, dict(link.owned), leaving=link.leaving, now=self.now())
            self.look()

    def look(self) -> None:
        """Summons the lanes whose partition is ours to own, and has those let go that are another's."""
        now = self.now()
        for seat in self._seats:
            since = seat.since
            if since is not None:
                seat.let_go(self.succession.successor(seat.partition, since, now))
            elif seat.standing_by and self.succession.may_acquire(seat.partition, now):
                seat.summon()
        self.on_look()

    # ------------------------------------------------------------ what the lanes tell

    def acquiring(self, partition: int) -> None:
        """A lane is about to append an Epoch."""
        self._held[partition] = ACQUIRING
        self._tell()

    def acquired(self, partition: int, epoch: int) -> None:
        """A lane acts."""
        self._held[partition] = epoch
        self.succession.acquired(partition, epoch, self.now())
        self._tell()
        asyncio.get_running_loop().call_soon(lambda: self.on_look())  # who waits for it, once the lane is done

    def released(self, partition: int) -> None:
        """A lane does not act any more."""
        if self._held.pop(partition, None) is not None:
            self._tell()

    def unable(self, partition: int, *, for_good: bool = False) -> None:
        """A lane has tried to acquire, more than once, and could not: another instance should, for a while.

        ``for_good``: it has stopped, and would not acquire what is handed back to it.
        """
        self.succession.unable.add(partition)
        self.succession.given.pop(partition, None)
        self._held[partition] = UNABLE
        self._tell()
        if not for_good:
            asyncio.get_running_loop().call_later(UNABLE_S, self._able_again, partition)

    def _able_again(self, partition: int) -> None:
        self.succession.unable.discard(partition)
        if self._held.get(partition) == UNABLE:
            del self._held[partition]
            self._tell()

    def fenced(self, partition: int, instance: str, epoch: int) -> None:
        """A lane found another's Epoch behind its own."""
        self.succession.fenced(partition, instance, epoch, self.now())

    async def hand_over(self, partition: int, epoch: int, heir: str) -> bool:
        """Offers a partition that was let go; False if the heir cannot be told (it will find out by itself)."""
        link = self.peers.link(heir)
        if link is None:
            return False
        try:
            answer = await link.request("take", {"partition": partition, "epoch": epoch}, deadline_ms=TAKE_MS)
        except CoordinatorError as error:
            log.warning("a partition could not be handed over", partition=partition, to=heir, reason=str(error))
            return False
        return bool(answer.get("taken"))

    # ------------------------------------------------------------ the port that peers call (`base.Cluster`)

    @property
    def leaving(self) -> bool:
        return self.succession.leaving

    def owned(self) -> Held:
        """What this instance acts for, or is acquiring."""
        return dict(self._held)

    def claims(self) -> Held:
        """What this instance would like to keep when the group agrees anew."""
        return {partition: epoch for partition, epoch in self._held.items() if epoch != UNABLE}

    def on_change(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Calls back whenever `owned` or `leaving` has changed; returns how to end that."""
        self._followers.append(callback)
        return lambda: self._followers.remove(callback) if callback in self._followers else None

    async def take(self, partition: int, epoch: int, by: str) -> bool:
        """The owner has let go of the partition and offers it to us."""
        if not 0 <= partition < self.succession.partitions:
            return False
        taken = self.succession.offered(partition, epoch)
        log.info("a partition is offered", partition=partition, by=by, taken=taken)
        self.look()
        return taken

    def _tell(self) -> None:
        for callback in list(self._followers):
            callback()

    # ------------------------------------------------------------ the port of routing (`front.routed.Directory`)

    def owner(self, partition: int) -> Link | None:
        """The link to the living instance that acts for the partition; None if it is us, or nobody we know."""
        best: Link | None = None
        newest = ACQUIRING
        for link in self.peers.links.values():
            epoch = link.owned.get(partition, ACQUIRING)
            if link.up and epoch > newest:
                best, newest = link, epoch
        return best

    def links(self) -> list[Link]:
        return [link for link in self.peers.links.values() if link.up]

    def wanted(self) -> list[int]:
        """The partitions that this instance ought to own, by the last agreement that it has heard of."""
        succession = self.succession
        if succession.leaving:
            return []
        return [each for each in range(succession.partitions) if succession.heir(each) == self.me.instance]

    def describe(self) -> dict[str, Any]:
        """Members, and the heir of each partition."""
        succession = self.succession
        members: Mapping[str, Member] = succession.agreement.members
        return {
            "generation": succession.agreement.generation,
            "instances": [
                {"instance": each.instance, "address": each.address, "state": self._state(each.instance)}
                for each in sorted(members.values(), key=lambda member: member.instance)
            ],
            "heirs": {partition: succession.heir(partition) for partition in range(succession.partitions)},
        }

    def _state(self, instance: str) -> str:
        if instance == self.me.instance:
            return "leaving" if self.leaving else "up"
        link = self.peers.links.get(instance)
        if link is None or not link.up:
            return "down"
        return "leaving" if link.leaving else "up"


def _nobody() -> None:
    pass
