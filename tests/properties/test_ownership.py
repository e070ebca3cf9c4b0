"""Owners interleaving over one log, with requests late, lost and unanswered, and crashes anywhere.

A `World` holds a log, a network of requests under way, and some instances, each with the real `Owner`.  A run is a
list of small numbers; each names a step that is possible there, so hypothesis can shrink a run.  Two things are checked
at every step (they are the invariants of the model checking that the rules come from):

- AGREEMENT: what an instance has acted on is a prefix of what the instances acted on together, or the other way round.
- DURABILITY: whoever finishes acquiring, and is in force, knows everything that anybody has acted on.

A check that cannot fail proves nothing, so each rule is also taken out in turn, and then a violation must be found.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.model.ids import CommandId
from coordinator.model.records import Epoch, Record, Timer
from coordinator.ownership.owner import Act, Move, Owner, Phase, Read, Seen, _Answer
from coordinator.wire.codec import decode, encode


class Violation(AssertionError):
    """Two histories contradict each other."""


class Request:
    """A batch under way to the log; ``answered`` once its owner was told something."""

    def __init__(self, instance: Instance, owner: Owner, records: list[bytes], ticket: int) -> None:
        self.instance = instance
        self.owner = owner
        self.records = records
        self.ticket = ticket  # -1 for an Epoch
        self.answered = False

    def answer(self, base: int | None) -> None:
        """Tells the owner where the batch landed, or that nobody knows."""
        if self.answered or self.ticket < 0:
            return
        self.answered = True
        if base is None:
            self.owner.unknown(self.ticket)
        else:
            self.owner.acked(self.ticket, base)


class Instance:
    """A process: its ownership if it has one, and what it has acted on under it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.owner: Owner | None = None
        self.read_to = 0
        self.acted: list[str] = []
        self.under_way: dict[int, list[str]] = {}


class World:
    """One run.  ``strict`` sessions land their batches in order and nothing behind a lost one, as Kafka's do."""

    def __init__(self, instances: int, strict: bool, owner: type[Owner] = Owner, reuse_tokens: bool = False) -> None:
        self.log: list[bytes] = []
        self.network: list[Request] = []
        self.instances = [Instance(f"instance-{n}") for n in range(instances)]
        self.acted: list[str] = []  # together
        self._strict = strict
        self._owner = owner
        self._reuse_tokens = reuse_tokens
        self._names = 0

    def step(self, number: int) -> None:
        """Does what ``number`` stands for, if it is possible now."""
        number, kind = divmod(number, 10)
        instance = self.instances[number % len(self.instances)]
        number //= len(self.instances)
        match kind:
            case 0:
                self.begin(instance)
            case 1:
                self.replay(instance)
            case 2 | 3:
                self.send(instance, 1 + number % 2)
            case 4 | 5:
                self.deliver(number // 2, confirmed=number % 2 == 0)
            case 6:
                self.settle(instance, lag=number % 3)
            case 7:
                self.lose(number // 2, for_ever=number % 2 == 0)
            case 8:
                self.look(instance)
            case 9 if number % 4 == 0:
                instance.owner = None  # crash; what is under way may still land
            case _:
                self.settle(instance, lag=0)

    # ------------------------------------------------------------ what may happen

    def begin(self, instance: Instance) -> None:
        """A new attempt: a fresh token, an Epoch on its way."""
        if instance.owner is not None and instance.owner.down is None:
            return
        self._names += 1
        token = (instance.name if self._reuse_tokens else f"{self._names:08}").encode()
        instance.owner = self._owner(token)
        instance.read_to = 0
        instance.acted = []
        instance.under_way = {}
        epoch = encode(Epoch(1, token, 0, instance.name, "address"))
        self.network.append(Request(instance, instance.owner, [epoch], -1))

    def replay(self, instance: Instance) -> None:
        """Reads the log, and begins to act if the own Epoch is in it."""
        owner = instance.owner
        if owner is None or owner.phase is not Phase.ACQUIRING:
            return
        records = [(offset, decode(self.log[offset], partition=0, offset=offset)) for offset in self.to_read(instance)]
        instance.acted += [record.id for _, record in owner.fold(records) if isinstance(record, Timer)]
        instance.read_to = len(self.log)
        if owner.epoch >= 0:
            in_force = self.token_in_force() == owner.token
            if in_force and instance.acted[: len(self.acted)] != self.acted:
                raise Violation(f"{instance.name} acquired {instance.acted}, but {self.acted} was acted on")
            self.check_agreement(instance)

    def to_read(self, instance: Instance) -> range:
        return range(instance.read_to, len(self.log))

    def token_in_force(self) -> bytes:
        token = b""
        for offset, data in enumerate(self.log):
            record = decode(data, partition=0, offset=offset)
            if isinstance(record, Epoch):
                token = record.token
        return token

    def send(self, instance: Instance, size: int) -> None:
        """Appends a batch; up to two are under way."""
        owner = instance.owner
        if owner is None or owner.phase is not Phase.OWNING or owner.in_flight >= 2:
            return
        names = [f"{instance.name}/{self._names + n}" for n in range(size)]
        self._names += size
        records: list[bytes] = [encode(Timer(1, owner.token, 0, CommandId(name), "deadline")) for name in names]
        ticket = owner.sent(records)
        instance.under_way[ticket] = names
        self.network.append(Request(instance, owner, records, ticket))

    def deliver(self, which: int, confirmed: bool) -> None:
        """A request lands at the log's end; its ack may get lost."""
        if (request := self.pick(which)) is not None:
            self.network.remove(request)
            base = len(self.log)
            self.log += request.records
            request.answer(base if confirmed else None)

    def lose(self, which: int, for_ever: bool) -> None:
        """A request times out; it may still be under way, or never arrive."""
        if (request := self.pick(which)) is None:
            return
        request.answer(None)
        if for_ever:
            self.network.remove(request)
            if self._strict:
                for later in [each for each in self.network if each.owner is request.owner]:
                    later.answer(None)
                    self.network.remove(later)

    def pick(self, which: int) -> Request | None:
        if not self.network:
            return None
        request = self.network[which % len(self.network)]
        if self._strict:
            request = next(each for each in self.network if each.owner is request.owner)
        return request

    def settle(self, instance: Instance, lag: int) -> None:
        """Performs the owner's moves; its reader may lag behind by some records where the far side is known."""
        owner = instance.owner
        if owner is None or owner.phase is Phase.ACQUIRING:
            return
        for _ in range(10):
            move: Move = owner.settle()
            match move:
                case Act(ticket):
                    instance.acted += instance.under_way.pop(ticket)
                    self.check_agreement(instance)
                case Read(start, through):
                    self.read(owner, start, len(self.log) - (lag if through is not None else 0))
                    owner.end_reached()
                case _:
                    return

    def look(self, instance: Instance) -> None:
        """An idle owner's look at the end of the log."""
        if instance.owner is not None and instance.owner.phase is Phase.OWNING:
            self.read(instance.owner, instance.owner.verified, len(self.log))

    def read(self, owner: Owner, start: int, end: int) -> None:
        for offset in range(start, end):
            record: Record = decode(self.log[offset], partition=0, offset=offset)
            epoch = record if isinstance(record, Epoch) else None
            if not owner.observe(Seen(offset, record.token, self.log[offset], epoch)):
                return

    def check_agreement(self, instance: Instance) -> None:
        shared = min(len(instance.acted), len(self.acted))
        if instance.acted[:shared] != self.acted[:shared]:
            raise Violation(f"{instance.name} acted on {instance.acted}, others on {self.acted}")
        if len(instance.acted) > len(self.acted):
            self.acted = list(instance.acted)


def run(world: World, steps: Sequence[int]) -> World:
    for number in steps:
        world.step(number)
    return world


# ---------------------------------------------------------------- the property


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.integers(0, 239), min_size=10, max_size=150),
    st.integers(2, 3),
    st.booleans(),
)
def test_owners_agree_and_nothing_acted_on_is_lost(steps: list[int], instances: int, strict: bool) -> None:
    """However owners, requests and crashes interleave, histories agree and outlive every takeover."""
    run(World(instances, strict), steps)


def random_steps(seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(240) for _ in range(rng.randrange(40, 240))]


def test_the_runs_reach_what_they_are_about() -> None:
    """The property is not held by runs in which nothing happens: takeovers, stale gaps and found batches all occur."""
    acted = takeovers = stepped_down = 0
    for seed in range(300):
        world = run(World(2, strict=seed % 2 == 0), random_steps(seed))
        acted += len(world.acted)
        epochs = [offset for offset, data in enumerate(world.log) if data[1] == 0]
        takeovers += max(0, len(epochs) - 1)
        stepped_down += sum(1 for each in world.instances if each.owner is not None and each.owner.down is not None)
    assert acted > 300
    assert takeovers > 300
    assert stepped_down > 50


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "loose"])
def test_random_runs_agree(strict: bool) -> None:
    """The same property over seeded random runs, the very ones in which the broken variants below are caught."""
    for seed in range(1500):
        run(World(2 + seed % 2, strict), random_steps(seed))


# ---------------------------------------------------------------- each rule taken out


class SkipsTheGap(Owner):
    """Acts on an ack wherever it is."""

    def settle(self) -> Move:
        head = self._batches[0] if self._batches and self.down is None else None
        return self._act(head) if head is not None and head.answer is _Answer.ACKED else super().settle()


class ActsBeforeTheAck(Owner):
    """Acts on what is only sent."""

    def settle(self) -> Move:
        head = self._batches[0] if self._batches and self.down is None else None
        if head is None or head.answer is not _Answer.PENDING:
            return super().settle()
        self._batches.popleft()
        return Act(head.ticket, self.verified)

    def acked(self, ticket: int, base: int) -> None:
        if any(batch.ticket == ticket for batch in self._batches):
            super().acked(ticket, base)

    def unknown(self, ticket: int) -> None:
        if any(batch.ticket == ticket for batch in self._batches):
            super().unknown(ticket)


class TakesUnknownForSuccess(Owner):
    """Acts when no answer came."""

    def settle(self) -> Move:
        head = self._batches[0] if self._batches and self.down is None else None
        if head is None or head.answer is not _Answer.UNKNOWN:
            return super().settle()
        self._batches.popleft()
        return Act(head.ticket, self.verified)


class LetsAnAckCoverTheBatchBefore(Owner):
    """Takes a later batch's ack as the earlier one's."""

    def settle(self) -> Move:
        if self.down is None and any(batch.answer is _Answer.ACKED for batch in self._batches):
            head = self._batches[0]
            if head.answer is not _Answer.ACKED:
                self._batches.popleft()
                head.answer = _Answer.ACKED
                return Act(head.ticket, self.verified)
        return super().settle()

    def acked(self, ticket: int, base: int) -> None:
        if any(batch.ticket == ticket and batch.answer is _Answer.PENDING for batch in self._batches):
            super().acked(ticket, base)

    def unknown(self, ticket: int) -> None:
        if any(batch.ticket == ticket and batch.answer is _Answer.PENDING for batch in self._batches):
            super().unknown(ticket)

    def observe(self, seen: Seen) -> bool:
        if seen.token == self.token and seen.epoch is None and self.down is None:
            head = self._batches[0] if self._batches else None
            if head is None or seen.data not in head.records:
                self.verified = max(self.verified, seen.offset + 1)
                return True
        return super().observe(seen)


class TakesNotFoundForAbsent(Owner):
    """Goes on under the same token after a batch in doubt was not found."""

    def end_reached(self) -> None:
        if self.down is None and self._batches and self._batches[0].answer is _Answer.UNKNOWN:
            self._batches.popleft()

    def observe(self, seen: Seen) -> bool:
        head = self._batches[0] if self._batches else None
        if seen.token == self.token and seen.epoch is None and (head is None or seen.data not in head.records):
            self.verified = max(self.verified, seen.offset + 1)
            return True  # "late, but I know that it does not count"
        return super().observe(seen)


class IgnoresItsOrder(Owner):
    """Passes over records of its own that it did not look for."""

    def observe(self, seen: Seen) -> bool:
        head = self._batches[0] if self._batches else None
        if seen.token == self.token and seen.epoch is None and head is not None and seen.data not in head.records:
            self.verified = max(self.verified, seen.offset + 1)
            return True
        return super().observe(seen)


def caught(strict: bool, owner: type[Owner] = Owner, reuse_tokens: bool = False) -> bool:
    """Whether random runs show that this variant contradicts itself."""
    for seed in range(6000):
        try:
            run(World(2 + seed % 2, strict, owner, reuse_tokens), random_steps(seed))
        except Violation:
            return True
    return False


@pytest.mark.parametrize(
    "variant",
    [SkipsTheGap, ActsBeforeTheAck, TakesUnknownForSuccess, LetsAnAckCoverTheBatchBefore, TakesNotFoundForAbsent],
)
@pytest.mark.parametrize("strict", [True, False], ids=["strict", "loose"])
def test_every_rule_is_needed(variant: type[Owner], strict: bool) -> None:
    """Without any one of the rules two owners contradict each other, whatever the session guarantees."""
    assert caught(strict, variant)


def test_the_order_of_a_session_is_checked() -> None:
    """Where a session may land its batches in another order, own records out of place must stop the owner."""
    assert caught(False, IgnoresItsOrder)


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "loose"])
def test_tokens_are_never_reused(strict: bool) -> None:
    """A name for a token (a pod's, say) revives what an earlier life of it sent."""
    assert caught(strict, reuse_tokens=True)
