"""The shortcuts that DESIGN lists as shown broken, as they would be written: the simulator must find each of them.

Those of one ownership are variants of `OwnedPartition` (`ALL`), which a simulation is given.  The others take a rule
out of the module that has it (`ELSEWHERE`), for the length of one test.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from coordinator import recovery
from coordinator.awaitables import Hold, Unwound
from coordinator.cluster.group import Group
from coordinator.cluster.succession import Succession
from coordinator.engine import decide, stepper, waits
from coordinator.engine.folding import Fold
from coordinator.engine.kinds import HANDLERS
from coordinator.engine.mailbox import Mailbox
from coordinator.engine.snapshots import Whole
from coordinator.engine.state import Command
from coordinator.engine.stepper import Execution
from coordinator.front import signals
from coordinator.front.intake import Intake
from coordinator.front.signals import Signals
from coordinator.lane import Lane
from coordinator.log.base import Unknown, Writer
from coordinator.log.owned import OwnedPartition
from coordinator.model.damaged import Damaged
from coordinator.model.durations import parse_duration
from coordinator.model.records import Epoch, Link, Record, Signal, Timer
from coordinator.ownership.owner import Move, Owner, Phase, _Answer
from coordinator.ownership.validity import Validity
from coordinator.recovery import Start, Trim
from coordinator.server.drain import Drain
from coordinator.transport.tcp import TcpServer

Records = list[tuple[int, Record | Damaged]]


class _SkipsTheGap(Owner):
    def settle(self) -> Move:
        head = self._batches[0] if self._batches and self.down is None else None
        return self._act(head) if head is not None and head.answer is _Answer.ACKED else super().settle()


class SkipsTheGapCheck(OwnedPartition):
    """Acts on an ack wherever it is, without reading what lies between."""

    rules = _SkipsTheGap


class _BelievesInUnknown(Owner):
    def settle(self) -> Move:
        head = self._batches[0] if self._batches and self.down is None else None
        if head is None or head.answer is not _Answer.UNKNOWN:
            return super().settle()
        head.base = self.verified
        return self._act(head)


class TakesUnknownForSuccess(OwnedPartition):
    """Acts on an append that was not answered."""

    rules = _BelievesInUnknown


class _CountsEverything(Owner):
    def fold(self, records: Iterable[tuple[int, Record | Damaged]]) -> Records:
        found: Records = []
        for offset, record in records:
            found.append((offset, record))
            if type(record) is Epoch and record.token == self.token:
                self.epoch, self.verified, self.phase = offset, offset + 1, Phase.OWNING
                break
        return found


class IgnoresTheTokenInForce(OwnedPartition):
    """Takes every record of the log for valid when it acquires."""

    rules = _CountsEverything


class ActsBeforeTheAck(OwnedPartition):
    """Says that a batch is durable when it is only sent."""

    _promised = -1
    _sending: asyncio.Task[Any] | None = None

    async def append(self, records: Sequence[bytes]) -> int:
        self._standing()
        base = max(self.verified, self._promised)
        self._promised = base + len(records)
        self._sending = asyncio.get_running_loop().create_task(self._send(self._sending, records))
        return base

    async def _send(self, before: asyncio.Task[Any] | None, records: Sequence[bytes]) -> None:
        if before is not None:
            await before
        await super().append(records)


class ReusesItsToken(OwnedPartition):
    """Takes its machine's name for a token, as a pod's name would be."""

    def __init__(self, *arguments: Any, instance: str, token: Callable[[], bytes], **rest: Any) -> None:
        name = instance.partition(".")[0].encode().ljust(8)
        super().__init__(*arguments, instance=instance, token=lambda: name, **rest)


class KeepsItsTokenOverARestart(OwnedPartition):
    """Takes the name of its process's life for a token: a new session goes on under the old one."""

    def __init__(self, *arguments: Any, instance: str, token: Callable[[], bytes], **rest: Any) -> None:
        name = instance.encode().ljust(8)
        super().__init__(*arguments, instance=instance, token=lambda: name, **rest)


class LetsOneAnswerCoverAnother(OwnedPartition):
    """Takes the log's next sign that the partition is ours for the ack of a batch in doubt as well."""

    async def append(self, records: Sequence[bytes]) -> int:
        owner, writer = self._standing()
        base = owner.verified
        try:
            async with asyncio.timeout(self._append_timeout_s / 2):
                return await writer.append(records)
        except (Unknown, TimeoutError):
            if not await self.check():
                raise
            return base


class ReadsOnlyToTheAssignment(OwnedPartition):
    """Folds the log up to where it ended when the partition was assigned, and not up to its own Epoch."""

    async def _begin(self) -> None:
        self._assigned_at = await self._log.end(self.partition)
        await super()._begin()

    async def _replay(self, owner: Owner, on_records: Callable[[Records], None], start: int) -> None:
        def early(records: Records) -> None:
            on_records([each for each in records if each[0] < self._assigned_at or isinstance(each[1], Epoch)])

        await super()._replay(owner, early, start)


class _Repeating:
    """A session that sends a batch in doubt again."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    async def append(self, records: Sequence[bytes]) -> int:
        try:
            return await self._writer.append(records)
        except Unknown:
            return await self._writer.append(records)

    async def close(self) -> None:
        await self._writer.close()


class SendsAgainUnderTheSameToken(OwnedPartition):
    """Takes an append in doubt for lost, and repeats it."""

    async def _begin(self) -> None:
        await super()._begin()
        assert self._writer is not None
        self._writer = _Repeating(self._writer)


ALL = (
    ActsBeforeTheAck,
    SkipsTheGapCheck,
    TakesUnknownForSuccess,
    LetsOneAnswerCoverAnother,
    ReusesItsToken,
    KeepsItsTokenOverARestart,
    ReadsOnlyToTheAssignment,
    IgnoresTheTokenInForce,
    SendsAgainUnderTheSameToken,
)


# ---------------------------------------------------------------- rules of other modules

Patch = pytest.MonkeyPatch


def believes_a_snapshot_at_its_own_position(patch: Patch) -> None:
    """Reads on behind the snapshot, and not from what it covers."""
    after = recovery._after

    def wrongly(whole: Whole, partition: int, besides: str = "") -> Start:
        return after(whole, partition, besides)._replace(offset=whole.position)

    patch.setattr(recovery, "_after", wrongly)


def decides_without_knowing_the_token_in_force(patch: Patch) -> None:
    """Reads on from a snapshot as if no epoch had been in force there."""
    after = recovery._after

    def wrongly(whole: Whole, partition: int, besides: str = "") -> Start:
        return after(whole, partition, besides)._replace(token_in_force=None)

    class Guesses(Validity):
        def __init__(self, start: int = 0, token: bytes | None = None) -> None:
            super().__init__(0, token)

    patch.setattr(recovery, "_after", wrongly)
    patch.setattr("coordinator.ownership.owner.Validity", Guesses)


def believes_the_pointer(patch: Patch) -> None:
    """Takes what the pointer says is covered for what the snapshot covers."""

    async def wrongly(log: Any, partition: int, *, timeout_ms: int = 5_000) -> Start:
        start = await find(log, partition, timeout_ms=timeout_ms)
        pointer = await log.load_pointer(partition)
        if start.snapshot is None or pointer is None or pointer.position != start.snapshot.position:
            return start
        return start._replace(offset=max(pointer.covered, start.offset))

    find = recovery.find
    patch.setattr(recovery, "find", wrongly)


def trims_above_the_confirmed_snapshot(patch: Patch) -> None:
    """Deletes whatever is old enough."""

    def wrongly(first: int, chain: Sequence[Link], confirmed: Link | None, retain_offset: int | None) -> Trim:
        return Trim(retain_offset, "retain", "it is old") if retain_offset else Trim(None, "retain", "it is not")

    patch.setattr(recovery, "trim_point", wrongly)


def undoes_with_steps_in_doubt(patch: Patch) -> None:
    """Undoes what is recorded without asking what became of the steps under way."""
    patch.setattr(decide, "_resolved", lambda *_: True)


def forgets_the_receipts(patch: Patch) -> None:
    """Knows only the ids that its own view has."""
    patch.setattr(Intake, "_known", lambda self, name, lane: self.view.fingerprint(name))


def says_unknown_without_proof(patch: Patch) -> None:
    """Denies an id without looking whether the partition is still its own, and read to its end."""

    async def at_once(*_: Any) -> None:
        return

    patch.setattr(Lane, "proven", at_once)
    patch.setattr(Lane, "fetch", at_once)


def forwards_what_was_forwarded(patch: Patch) -> None:
    """Serves other instances by the routing, as if they were clients."""
    made = TcpServer.__init__

    def wrongly(self: TcpServer, front: Any, **rest: Any) -> None:
        made(self, front, **rest)
        self.local = front

    patch.setattr(TcpServer, "__init__", wrongly)


def leaves_it_to_the_assigned(patch: Patch) -> None:
    """The heir of a dead instance waits for the group to agree, and the group assigns to who has it."""
    rightly = Succession.may_acquire

    def wrongly(self: Succession, partition: int, now: int) -> bool:
        return partition not in self.owners and rightly(self, partition, now)

    patch.setattr(Succession, "may_acquire", wrongly)


def drains_without_handing_over(patch: Patch) -> None:
    """Stops with all its partitions, and leaves it to the others to notice."""

    async def nothing(self: Drain, group: Group) -> None:
        return

    patch.setattr(Drain, "_hand_over", nothing)


# ---------------------------------------------------------------- rules of the core


def forgets_early_data(patch: Patch) -> None:
    """Takes data only when somebody waits for it."""
    rightly = Mailbox.put

    def wrongly(self: Mailbox, record: Signal, *, wanted: bool) -> None:
        if wanted:
            rightly(self, record, wanted=wanted)

    patch.setattr(Mailbox, "put", wrongly)


def delivers_a_datum_twice(patch: Patch) -> None:
    """Does not know a signal by its id."""

    def wrongly(command: Command, record: Signal) -> None:
        command.signals += not record.signal_id or record.signal_id not in command.signal_ids
        command.signal_ids.add(record.signal_id)
        command.trail.append((record.name, record.at, record))

    patch.setitem(HANDLERS, Signal, wrongly)
    patch.setattr(Signals, "_is_known", lambda *_: False)


def ends_by_the_time_of_a_state_that_was_left(patch: Patch) -> None:
    """Takes a state's time for the command's, wherever that is by now."""
    rightly = HANDLERS[Timer]

    def wrongly(command: Command, record: Timer) -> None:
        rightly(command, replace(record, moves=command.moves))

    patch.setitem(HANDLERS, Timer, wrongly)


def wakes_too_early(patch: Patch) -> None:
    """Lets the times of waits come when half of them has passed."""
    patch.setattr(waits, "parse_duration", lambda text: parse_duration(text) // 2)


def lets_losers_stand(patch: Patch) -> None:
    """Undoes nothing of what has lost."""
    patch.setattr(Execution, "_unwant", lambda *_: None)


def goes_back_beyond_the_mark(patch: Patch) -> None:
    """Undoes all that is recorded where a savepoint has failed."""
    rightly = Execution._unwind

    def wrongly(self: Execution, waiter: Any, unwound: Unwound) -> None:
        rightly(self, waiter, unwound)
        for name in self._recorded:
            self._unwant(name)

    patch.setitem(stepper._AWAITED, Unwound, wrongly)


def stops_nowhere(patch: Patch) -> None:
    """Goes on behind a savepoint as if an operator had been there."""
    patch.setitem(stepper._AWAITED, Hold, lambda execution, fiber, hold: execution._resume(fiber, None))


def forgets_its_calls_asleep(patch: Patch) -> None:
    """Begins to count a command's calls anew when it wakes."""
    rightly = Fold._awoken

    def wrongly(self: Fold, *sleeping: Any) -> Command:
        command = rightly(self, *sleeping)
        command.calls_made = 0
        return command

    patch.setattr(Fold, "_awoken", wrongly)


def believes_the_last_decision(patch: Patch) -> None:
    """Of two people who decide at once, tells the second that it counts."""

    def wrongly(command: Command, step: str) -> object:
        decisions = [each for _, each in command.history if isinstance(each, Signal) and each.name == step]
        return decisions[-1] if decisions else None

    patch.setattr(signals, "_first_decision", wrongly)


def undoes_what_others_follow_from(patch: Patch) -> None:
    """Takes back what a loser has done, first things first, and does not wait for what it has under way."""
    patch.setattr(decide, "reversed", lambda names: list(names), raising=False)


ELSEWHERE = (
    believes_a_snapshot_at_its_own_position,
    decides_without_knowing_the_token_in_force,
    believes_the_pointer,
    trims_above_the_confirmed_snapshot,
    undoes_with_steps_in_doubt,
    forgets_the_receipts,
    says_unknown_without_proof,
    forwards_what_was_forwarded,
    leaves_it_to_the_assigned,
    drains_without_handing_over,
    forgets_early_data,
    delivers_a_datum_twice,
    ends_by_the_time_of_a_state_that_was_left,
    wakes_too_early,
    lets_losers_stand,
    goes_back_beyond_the_mark,
    stops_nowhere,
    forgets_its_calls_asleep,
    believes_the_last_decision,
    undoes_what_others_follow_from,
)
