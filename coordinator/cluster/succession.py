"""Who ought to own each partition, as one instance sees it: a pure fold of what it has heard.

Safety is not decided here.  Whoever acquires a partition although another owns it costs that one a step down and
nobody a command (DESIGN section 4), so this module may be wrong, late or at odds with its like on other instances.  It
is there so that a partition is soon owned by somebody, by one, and seldom changes hands.

What is heard, best last:

- the group's agreement: who is a member, whom each partition is *assigned* to;
- a link that died: the process behind it is gone, seconds before the group notices.  Refuted by a sign of life.  An
  Epoch in the log is one, but may have been on its way when its process was killed: who was dead and does not speak
  soon is dead again, once;
- what living peers tell that they act for (with its epoch), are acquiring (`ACQUIRING`), and whether they are leaving;
- the log: somebody's Epoch fenced us.

The *heir* of a partition is the member that it is assigned to, or, while that one is dead, leaving or unable (its disk
is full, it cannot reach that partition's leader), the rendezvous winner among the others.  Everybody who has heard the
same comes to the same heir.

| the partition is …                        | its heir                                                       |
| ----------------------------------------- | -------------------------------------------------------------- |
| offered to us by its owner (`given`)      | we acquire, heir or not: the owner has let go                  |
| without an owner that anybody knows       | acquires, once all members were heard or had time to speak     |
| owned by a dead or expelled instance      | acquires at once                                               |
| not told of any more by its living owner  | acquires, after `SETTLING_MS` where the log spoke last         |
| told of by its living owner               | waits to be offered it; acquires all the same after `OFFER_MS`, |
|                                           | unless the owner is leaving and takes the time it needs        |

An owner that is not the heir offers the partition to the heir, if that one can be reached, and not sooner than
`HOLD_MS` after it acquired: two instances with different agreements must not play ball.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from coordinator.cluster.assignment import heir as rendezvous
from coordinator.cluster.base import Assignment, Held, Member

ACQUIRING: Final = -1  # in place of an epoch: on its way to own
UNABLE: Final = -2  # the same: it has tried, and does not get to own it; others should
SPEAK_MS: Final = 1_500  # for a member to be heard, before it is taken to own nothing
SETTLING_MS: Final = 1_000
OFFER_MS: Final = 5_000
HOLD_MS: Final = 1_500


class Owner(Struct, frozen=True):
    """The newest ownership that was heard of; ``heard_at`` in ms, ``by_log``: from an Epoch that fenced us."""

    instance: str
    epoch: int
    heard_at: int
    by_log: bool = False


class Succession:
    """See the module.  ``now`` is always milliseconds of one clock that never goes back."""

    def __init__(self, me: Member, partitions: int) -> None:
        self.me = me.instance
        self.partitions = partitions
        self.leaving = False
        self.agreement = Assignment(-1, {}, {})
        self.owners: dict[int, Owner] = {}
        self.told: dict[str, Held] = {}  # what each peer has told last
        self.dead: set[str] = set()
        self.leavers: set[str] = set()
        self._refuted: dict[str, int | None] = {}  # were dead until an Epoch came (then); None: that is settled
        self.unable: set[int] = set()  # what we have tried to acquire, and could not
        self.given: dict[int, int] = {}  # partitions offered to us, with the epoch that ends
        self._member_since: dict[str, int] = {}
        self._heir_since: dict[int, tuple[str | None, int]] = {}

    # ------------------------------------------------------------ what is heard

    def agreed(self, agreement: Assignment, now: int) -> None:
        """The group has agreed anew, or (generation -1) does not count us among its members any more."""
        if agreement.generation < 0:  # who lives is not known from here; what we own the log will say
            self.agreement = Assignment(-1, self.agreement.members, self.agreement.owners)
            return
        self.agreement = agreement
        members = agreement.members
        self._member_since = {each: self._member_since.get(each, now) for each in members}
        self.told = {each: held for each, held in self.told.items() if each in members}
        self.dead &= members.keys()
        self.leavers &= members.keys()

    def died(self, instance: str) -> None:
        """The link to it broke and nobody answers at its address."""
        self._refuted.pop(instance, None)
        self.dead.add(instance)
        self.told.pop(instance, None)

    def lives(self, instance: str) -> None:
        self.dead.discard(instance)

    def heard(self, instance: str, held: Held, *, leaving: bool, now: int) -> None:
        """A peer tells what it acts for."""
        self.dead.discard(instance)
        self._refuted.pop(instance, None)
        self.told[instance] = held
        if leaving:
            self.leavers.add(instance)
        for partition, epoch in held.items():
            self._owned(partition, instance, epoch, now)

    def acquired(self, partition: int, epoch: int, now: int) -> None:
        """We own it now."""
        self.given.pop(partition, None)
        self.unable.discard(partition)
        self._owned(partition, self.me, epoch, now)

    def fenced(self, partition: int, instance: str, epoch: int, now: int) -> None:
        """The log has another's Epoch behind ours, whose number was ``epoch``."""
        if instance in self.dead:
            self.dead.discard(instance)
            self._refuted.setdefault(instance, now)
        known = self.owners.get(partition)
        if known is None or known.epoch <= epoch:
            self.owners[partition] = Owner(instance, epoch + 1, now, by_log=True)

    def offered(self, partition: int, epoch: int) -> bool:
        """Its owner has let go and wants us to acquire it; False if we will not, or if the offer is an old one."""
        known = self.owners.get(partition)
        if self.leaving or not self.member or partition in self.unable or (known is not None and known.epoch > epoch):
            return False
        self.given[partition] = epoch
        return True

    def _owned(self, partition: int, instance: str, epoch: int, now: int) -> None:
        known = self.owners.get(partition)
        if epoch > ACQUIRING and epoch > self.given.get(partition, epoch):
            del self.given[partition]  # somebody else has taken it
        if epoch > ACQUIRING and (known is None or epoch >= known.epoch):
            self.owners[partition] = Owner(instance, epoch, now)

    # ------------------------------------------------------------ what follows

    @property
    def member(self) -> bool:
        """Whether the group counts us among its members, as far as we know."""
        return self.agreement.generation >= 0

    def candidates(self) -> Mapping[str, Member]:
        """Members that could own a partition."""
        gone = self.dead | self.leavers
        members = {each: member for each, member in self.agreement.members.items() if each not in gone}
        if self.leaving:
            members.pop(self.me, None)
        return members

    def heir(self, partition: int) -> str | None:
        """See the module; None while nobody is there to inherit."""
        candidates = self._able(partition, self.candidates())
        assigned = self.agreement.owners.get(partition)
        if assigned is not None and assigned in candidates:
            return assigned
        return rendezvous(partition, candidates)

    def _able(self, partition: int, candidates: Mapping[str, Member]) -> Mapping[str, Member]:
        """Those that have not failed to acquire it; all, where all have."""
        failed = {each for each, held in self.told.items() if held.get(partition) == UNABLE}
        if partition in self.unable:
            failed.add(self.me)
        able = {each: member for each, member in candidates.items() if each not in failed} if failed else candidates
        return able or candidates

    def may_acquire(self, partition: int, now: int) -> bool:
        """Whether we, who do not own the partition, should acquire it now."""
        if self.leaving or not self.member:
            return False
        self._settle_deaths(now)
        since = self._inherits_since(partition, now)
        if partition in self.given:
            return True
        if since is None:
            return False
        owner = self.owners.get(partition)
        if self._acquiring(partition):
            return now - since >= OFFER_MS
        if owner is None or owner.instance == self.me:
            return self._all_heard(now)
        if owner.instance in self.dead or owner.instance not in self.agreement.members:
            return True
        held = self.told.get(owner.instance)
        if held is None:
            return now - max(since, self._member_since.get(owner.instance, now)) >= OFFER_MS
        if held.get(partition, UNABLE) == UNABLE:
            return now - owner.heard_at >= (SETTLING_MS if owner.by_log else 0)
        return owner.instance not in self.leavers and now - since >= OFFER_MS

    def successor(self, partition: int, acquired_at: int, now: int) -> str | None:
        """To whom we, who own the partition, should hand it over now; None: it stays."""
        self._heir_since.pop(partition, None)
        heir = self.heir(partition)
        if heir is None or heir == self.me or heir not in self.told:  # not heard: it could not be told to take it
            return None
        return heir if self.leaving or now - acquired_at >= HOLD_MS else None

    def _settle_deaths(self, now: int) -> None:
        """Who was dead, and has not spoken since an Epoch of his came, is dead after all."""
        for instance, since in self._refuted.items():
            if since is not None and now - since >= SETTLING_MS:
                self._refuted[instance] = None
                self.dead.add(instance)

    def _inherits_since(self, partition: int, now: int) -> int | None:
        """Since when we have been the heir; None if we are not."""
        heir = self.heir(partition)
        known = self._heir_since.get(partition)
        if known is None or known[0] != heir:
            known = self._heir_since[partition] = (heir, now)
        return known[1] if heir == self.me else None

    def _acquiring(self, partition: int) -> bool:
        """Whether a living peer says that it is acquiring the partition."""
        return any(held.get(partition) == ACQUIRING for held in self.told.values())

    def _all_heard(self, now: int) -> bool:
        return all(
            each == self.me or each in self.told or each in self.dead or now - since >= SPEAK_MS
            for each, since in self._member_since.items()
        )
