"""Drives one ownership of one partition: does the I/O that the `Owner` state machine asks for.

All judgement is in `ownership.owner`; this module appends, reads, watches the clock and passes answers on.  On the hot
path an append costs the writer's own work and a few microseconds: no task, no queue, no lock.

Everything that can hang has a deadline, since a log may (an idempotent Kafka append never expires by itself): an append
past its deadline is in doubt and is looked for in the log; a log that cannot be read then steps the ownership down.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from typing import ClassVar, Final

from coordinator.log.base import Log, LogError, RecordTooLarge, Rejected, Unknown, Writer
from coordinator.log.reading import batches
from coordinator.model.damaged import Damaged
from coordinator.model.ids import TOKEN_BYTES
from coordinator.model.records import SCHEMA, Epoch, Record
from coordinator.ownership.owner import Act, Down, Owner, Phase, Read, Seen, Wait
from coordinator.wire import codec
from coordinator.wire.codec import encode

_PAUSE_S: Final = 0.02  # between two looks at a log that does not show yet what it must
_CLOSE_TIMEOUT_S: Final = 3.0
_SEARCH_SHARE: Final = 0.25  # of an append's time, for looking for it: a log that stalls seldom answers that either

logger = logging.getLogger(__name__)


class SteppedDown(Exception):
    """This ownership is over, and what was being appended must not be acted on: it may be in the log, or not.

    ``reason`` is a sentence's worth of cause; ``by_instance`` and ``by_address`` name the new owner where the log told.
    Acquire again on a new `OwnedPartition`, if the partition is still assigned here.
    """

    def __init__(self, reason: str, by_instance: str | None = None, by_address: str | None = None) -> None:
        by = f" (by {by_instance} at {by_address})" if by_instance is not None else ""
        super().__init__(f"stepped down: {reason}{by}")
        self.reason = reason
        self.by_instance = by_instance
        self.by_address = by_address


def _now() -> float:
    """The event loop's clock, in seconds: the one that deadlines and sleeps go by, so that a simulation's is enough."""
    return asyncio.get_running_loop().time()


def new_token() -> bytes:
    """A token that nobody used before: random, since a name or a process id comes back after a restart."""
    return os.urandom(TOKEN_BYTES)


def _ignored(_: Damaged) -> None:
    pass


OnRecords = Callable[[list[tuple[int, Record | Damaged]]], None]


class OwnedPartition:
    """One attempt to own one partition: `acquire` once, then `append` and `check`, then `close`, always.

    ``instance``, ``address`` and ``group`` go into the Epoch record, so that others know whom to ask.
    ``append_timeout_ms`` is how long an append may take, of which the last quarter is kept for looking in the log for
    one that was not answered; ``acquire_timeout_ms``
    bounds the opening of the session.  ``clock`` gives milliseconds since 1970 for the Epoch record.  ``on_garbage`` is
    told of bytes of nobody that are found between our own records while we own: they are passed over, not forgotten.
    """

    rules: ClassVar[type[Owner]] = Owner  # a test takes one out, and must see it missed

    def __init__(
        self,
        log: Log,
        partition: int,
        *,
        instance: str,
        address: str,
        clock: Callable[[], int],
        append_timeout_ms: int = 5_000,
        acquire_timeout_ms: int = 15_000,
        token: Callable[[], bytes] = new_token,
        on_garbage: Callable[[Damaged], None] = _ignored,
        group: str = "",
    ) -> None:
        self.partition = partition
        self.token = token()
        self._log = log
        self._instance = instance
        self._address = address
        self._group = group
        self._clock = clock
        self._append_timeout_s = append_timeout_ms / 1000
        self._acquire_timeout_s = acquire_timeout_ms / 1000
        self._on_garbage = on_garbage
        self._owner: Owner | None = None
        self._writer: Writer | None = None
        self._waiting: dict[int, asyncio.Future[int | None]] = {}  # ticket: its base offset, None when stepped down
        self._busy = False  # somebody is performing the owner's moves; one reader of the tail at a time

    @property
    def owned(self) -> bool:
        """Whether this ownership stands, as far as is known: only an append's return proves it."""
        return self._owner is not None and self._owner.phase is Phase.OWNING

    @property
    def epoch(self) -> int:
        """The epoch's number: the offset of its Epoch record; -1 before it was found."""
        return self._owner.epoch if self._owner is not None else -1

    @property
    def verified(self) -> int:
        """The first offset not known to be free of foreign Epochs."""
        return self._owner.verified if self._owner is not None else -1

    # ------------------------------------------------------------ acquiring

    async def acquire(
        self,
        on_records: OnRecords,
        start: int = 0,
        token_in_force: bytes | None = None,
        earlier: Collection[bytes] = (),
    ) -> int:
        """Begins an epoch and returns its number.  ``earlier`` are tokens of Epochs below ``start``.

        ``on_records`` is given the valid records from ``start`` (where ``token_in_force`` was in force) up to and with
        the own Epoch, in log order and in batches; stale ones are withheld, Epoch records are among them, and so is
        what cannot be read and must be listed.  Raises
        LogError when the log cannot be written or read (try again later on a new OwnedPartition, from ``start``) and
        CorruptLog for a record that cannot be read.  A failed or cancelled attempt closes itself; its Epoch may still
        land, and then fences whoever owns the partition, who acquires again.
        """
        assert self._owner is None, "an attempt to own is made once"
        self._owner = owner = self.rules(self.token, start, token_in_force)
        owner.knew(earlier)
        try:
            await self._begin()
            await self._replay(owner, on_records, start)
        except BaseException:
            owner.step_down("it was never acquired")
            await self.close()
            raise
        return owner.epoch

    async def _begin(self) -> None:
        """Opens the session and appends the Epoch; an append in doubt is as good, for it is found by reading or not at
        all."""
        try:
            async with asyncio.timeout(self._acquire_timeout_s):
                self._writer = await self._log.writer(self.partition)
        except TimeoutError as error:
            raise LogError(f"the log opened no session within {self._acquire_timeout_s:g} s") from error
        epoch = encode(Epoch(SCHEMA, self.token, self._clock(), self._instance, self._address, self._group))
        with contextlib.suppress(Unknown, TimeoutError):
            async with asyncio.timeout(self._append_timeout_s):
                await self._writer.append([epoch])

    async def _replay(self, owner: Owner, on_records: OnRecords, start: int) -> None:
        """Folds the log up to the own Epoch."""
        partition = self.partition
        give_up_at: float | None = None
        while True:
            async with contextlib.aclosing(self._batches(start)) as reading:
                async for batch in reading:
                    records = ((at, codec.read(data, partition=partition, offset=at)) for at, data in batch)
                    if valid := owner.fold(records):
                        on_records(valid)
                    if owner.phase is Phase.OWNING:
                        return
                    start = batch[-1][0] + 1
                    await asyncio.sleep(0)  # a long replay leaves room for health checks and signals
            # The end is reached and the Epoch is not there: a reader may lag behind what was just appended, or the
            # append was in doubt and will never be seen.
            now = _now()
            if give_up_at is None:
                give_up_at = now + self._append_timeout_s
            elif now > give_up_at:
                raise LogError("the log neither confirmed nor shows the new Epoch record")
            await asyncio.sleep(_PAUSE_S)

    def _batches(self, start: int) -> AsyncGenerator[list[tuple[int, bytes]], None]:
        """The log from ``start``; one that does not answer in time is a LogError."""
        return batches(self._log, self.partition, start, timeout_s=self._append_timeout_s)

    # ------------------------------------------------------------ appending

    async def append(self, records: Sequence[bytes]) -> int:
        """Appends a batch and settles it: when this returns its base offset, the records may be acted on.

        With a record above `Log.record_bytes_max` it raises RecordTooLarge and nothing has happened.  In every other
        case it raises SteppedDown and this object is dead.  Calls may overlap; they are appended,
        settled and answered in call order.  A cancelled append may or may not have landed, so it steps the ownership
        down too.
        """
        owner, writer = self._standing()
        if max(map(len, records)) > self._log.record_bytes_max:
            raise RecordTooLarge(f"a record has more than {self._log.record_bytes_max} bytes")
        ticket = owner.sent(records)
        settled: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        self._waiting[ticket] = settled
        try:
            try:
                async with asyncio.timeout(self._append_timeout_s * (1 - _SEARCH_SHARE)):
                    base = await writer.append(records)
            except Rejected as error:
                owner.refused(ticket, str(error))
            except (TimeoutError, LogError) as error:
                logger.warning("append to partition %d in doubt: %s", self.partition, str(error) or "no answer in time")
                owner.unknown(ticket)
            else:
                owner.acked(ticket, base)
            await self._settle(owner)
            place = await settled
        except BaseException:
            self._step_down(owner, "an append was abandoned")
            raise
        finally:
            self._waiting.pop(ticket, None)
        if place is None:
            raise self._stepped_down(owner)
        return place

    async def check(self) -> bool:
        """Looks whether another epoch began while this one had nothing to append; raises SteppedDown if so.

        True: the partition was ours at some moment after the call.  Costs one look at the log's end, so it can be
        called every few hundred milliseconds.  False: nothing could be told, since the log cannot be read, or an
        append is under way, which will tell.
        """
        owner, _ = self._standing()
        if owner.in_flight or self._busy:
            return False  # settling an append looks at the same records
        self._busy = True
        looked = False
        try:
            async with asyncio.timeout(self._append_timeout_s * _SEARCH_SHARE):  # an append may be waiting for us
                end = await self._log.end(self.partition)
            if end > owner.verified:
                await self._read(owner, Read(owner.verified, None))
            looked = True
        except (TimeoutError, LogError) as error:
            logger.warning(
                "partition %d: the end of the log cannot be read: %s", self.partition, str(error) or "no answer"
            )
        finally:
            self._busy = False
        await self._settle(owner)  # an append that was answered meanwhile left its settling to this call
        self._standing()
        return looked

    def _standing(self) -> tuple[Owner, Writer]:
        owner, writer = self._owner, self._writer
        assert owner is not None, "acquire first"
        if owner.down is not None:
            raise self._stepped_down(owner)
        assert owner.phase is Phase.OWNING
        assert writer is not None
        return owner, writer

    # ------------------------------------------------------------ settling

    async def _settle(self, owner: Owner) -> None:
        """Performs the owner's moves until it waits; a second caller leaves its answers to the first."""
        if self._busy:
            return
        self._busy = True
        give_up_at: float | None = None
        last: Read | None = None
        try:
            while True:
                match owner.settle():
                    case Act(ticket, base):
                        self._answer(ticket, base)
                    case Read() as read:
                        give_up_at = give_up_at or _now() + self._append_timeout_s * _SEARCH_SHARE
                        if read == last:  # the reader does not see yet what it must
                            await asyncio.sleep(_PAUSE_S)
                        last = read
                        if _now() > give_up_at:
                            self._step_down(owner, "the log could not be read to settle an append")
                        else:
                            await self._read_for(owner, read, give_up_at)
                    case Wait():
                        return
                    case Down() as down:
                        self._step_down(owner, down.reason)
                        return
        finally:
            self._busy = False

    async def _read_for(self, owner: Owner, read: Read, give_up_at: float) -> None:
        """Reads once for a batch to settle; what cannot be read is asked for again until ``give_up_at``."""
        try:
            async with asyncio.timeout(give_up_at - _now()):
                if await self._read(owner, read):
                    owner.end_reached()
        except (TimeoutError, LogError) as error:
            logger.warning("partition %d: cannot read the log to settle: %s", self.partition, str(error) or "no answer")

    async def _read(self, owner: Owner, read: Read) -> bool:
        """Hands the log from ``read.start`` to the owner; True when its end was reached."""
        partition = self.partition
        async with contextlib.aclosing(self._batches(read.start)) as reading:
            async for batch in reading:
                for offset, data in batch:
                    record = codec.read(data, partition=partition, offset=offset)
                    counts = owner.judge(offset, record)
                    if isinstance(record, Damaged) and counts and record.token is None:
                        self._on_garbage(record)
                    epoch = record if isinstance(record, Epoch) else None
                    if not owner.observe(Seen(offset, record.token or b"", data, epoch)):
                        return False
        return True

    def _answer(self, ticket: int, base: int | None) -> None:
        waiting = self._waiting.get(ticket)
        if waiting is not None and not waiting.done():
            waiting.set_result(base)

    # ------------------------------------------------------------ the end

    def _step_down(self, owner: Owner, reason: str) -> None:
        """Ends the ownership and answers everybody who waits for it."""
        owner.step_down(reason)
        for ticket in self._waiting:
            self._answer(ticket, None)

    def _stepped_down(self, owner: Owner) -> SteppedDown:
        assert owner.down is not None
        return SteppedDown(owner.down.reason, owner.down.by_instance, owner.down.by_address)

    async def close(self) -> None:
        """Ends the ownership and its session; appends that wait raise SteppedDown.  Never hangs, never raises
        LogError."""
        if self._owner is not None:
            self._step_down(self._owner, "closed")
        writer, self._writer = self._writer, None
        if writer is None:
            return
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                await writer.close()
        except (TimeoutError, LogError) as error:
            logger.warning("partition %d: the session did not close: %s", self.partition, str(error) or "no answer")
