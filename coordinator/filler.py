"""Fills the view with what finished before its owner's replay began.

An owner's replay begins at what a Snapshot covers, so that a takeover is quick; the commands that finished below that
are in the log, but perhaps not in this instance's view.  A filler reads them in the background, from below, with a fold
of its own: a scratch engine that only applies records and decides nothing.  What it has put stays when it is stopped,
at any time, and the next one goes on from there.

*Where it begins.*  To see each later end with all of its records, it must know the commands that were open at the
view's watermark.  It gets them by reading from the view's resume offset, where the earliest of them began, or, if one
of the log's Snapshots is nearer, from that.  Where the log was trimmed above both, it begins with the earliest Snapshot
that is left; the log is cut only where there is one.

*How much it takes.*  It works in slices of a third of a millisecond and lets the loop go round after each.  While
commands go through, it takes a sixteenth of the time; when all is quiet, all of it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Final

from coordinator import recovery
from coordinator.engine import snapshots
from coordinator.engine.engine import Engine
from coordinator.engine.snapshots import Whole
from coordinator.errors import Unavailable
from coordinator.log.base import Log, LogError
from coordinator.log.reading import batches
from coordinator.logs import get_logger
from coordinator.marks import Epochs
from coordinator.model.damaged import SNAPSHOT, Damaged
from coordinator.model.records import Epoch, Link, Record, Registered, Snapshot
from coordinator.ownership.validity import Validity
from coordinator.replaying import finished_command
from coordinator.view import FinishedCommand, View
from coordinator.wire.codec import kind_of, read

log = get_logger(__name__)

SLICE_S: Final = 0.0003
SHARE: Final = 0.06  # of the loop's time, while there is other work
QUIET_S: Final = 0.1  # without other work, after which it takes what it can get
RETRY_S: Final = 1.0
FILL_ROWS: Final = 128  # commands in a write: the view's thread holds the interpreter while it encodes them
FILL_RECORDS: Final = 10_000  # read without an end, after which the watermark moves all the same
_LOOK_EVERY: Final = 8  # records between two looks at the clock
_LARGE: Final = 4096  # bytes, above which a record is looked at before it is decoded

Activity = Callable[[], int]


class Pace:
    """How long to pause after a slice of work; ``activity`` is a number that changes whenever there was other work."""

    def __init__(self, activity: Activity) -> None:
        self._activity = activity
        self._seen = activity()
        self._busy_until = 0.0

    async def pause(self, worked_s: float) -> None:
        now = asyncio.get_running_loop().time()
        seen = self._activity()
        if seen != self._seen:
            self._seen = seen
            self._busy_until = now + QUIET_S
        await asyncio.sleep(worked_s * (1 / SHARE - 1) if now < self._busy_until else 0)


class _Contradicted(Exception):
    """The log has another history than the view."""


class _Fold:
    """The fold of what was read so far: it stands at ``offset``, where ``token`` is in force.

    What ended at ``known`` or later is new to the view, in whose history ``expected`` is in force there.  ``tokens``
    are those of all Epochs below ``offset``, where they are known: a record with another one is of another history.
    """

    def __init__(
        self,
        engine: Engine,
        partition: int,
        offset: int,
        token: bytes | None,
        known: int,
        expected: bytes | None,
        tokens: set[bytes] | None = None,
    ) -> None:
        self.engine = engine
        self.partition = partition
        self.offset = offset
        self.rows: list[FinishedCommand] = []
        self.epochs: Epochs = []
        self._known = known
        self._expected = expected
        self._tokens = tokens
        self._validity = Validity(offset, token or None)

    @property
    def resume(self) -> int:
        """Where the earliest command that is open here began."""
        return self.engine.oldest(self.partition, self.offset)

    def take(self, offset: int, data: bytes) -> None:
        """The next record; raises CorruptLog where nobody may go on, and _Contradicted."""
        if offset == self._known:
            self.prove(self._expected)
        self.offset = offset + 1
        if _is_snapshot(data):
            return
        record: Record | Damaged = read(data, partition=self.partition, offset=offset)
        if not self._validity.admit(offset, record):
            if self._tokens is not None and record.token not in self._tokens:
                raise _Contradicted
        elif isinstance(record, Epoch):
            self.epochs.append((offset, record.token))
            if self._tokens is not None:
                self._tokens.add(record.token)
        elif not isinstance(record, (Snapshot, Registered)):  # these finish nothing
            self.engine.apply(self.partition, offset, record)

    def prove(self, token: bytes | None) -> None:
        """Raises _Contradicted if another token is in force here."""
        if (self._validity.token or b"") != token:
            raise _Contradicted

    def gather(self) -> None:
        """Makes rows of what has ended since the last time."""
        for command in self.engine.take_replayed():
            if command.history[-1][0] >= self._known:
                self.rows.append(finished_command(command))
        self.engine.take_listed()  # the owner's own fold tells of these


def _is_snapshot(data: bytes) -> bool:
    """Whether a large record is part of a Snapshot: decoding it would take long, for nothing."""
    return len(data) >= _LARGE and kind_of(data) == SNAPSHOT


class Filler:
    """Fills the view of one partition up to ``upto``, the offset where its owner's replay began.

    ``engine`` is the owner's, of which only the settings are used.  ``chain`` are the Snapshots that the log has, as
    far as they are known, the one that the owner began with included.  ``activity`` is a number that changes whenever
    commands go through.  Run it after `View.begin`, and cancel it when the partition is lost.
    """

    def __init__(
        self,
        log: Log,
        view: View,
        engine: Engine,
        partition: int,
        *,
        upto: int,
        chain: Sequence[Link] = (),
        activity: Activity = lambda: 0,
        timeout_ms: int = 5_000,
    ) -> None:
        self.log = log
        self.view = view
        self.partition = partition
        self.upto = upto
        self.records = 0  # read so far
        self._engine = engine
        self._chain = sorted(link for link in chain if link.covered <= upto)
        self._pace = Pace(activity)
        self._timeout_ms = timeout_ms

    async def run(self) -> None:
        """Returns when the view has all that finished below ``upto`` and is still in the log.

        What the log or the view refuse is tried again, for ever.  Raises CorruptLog for a log that must not be read on:
        the view then stays incomplete.  A cancel leaves what was put.
        """
        fold: _Fold | None = None
        began = asyncio.get_running_loop().time()
        while not self.view.filled(self.partition):
            try:
                if fold is None and not await self.view.flush():
                    raise Unavailable("it cannot be written")  # nor may more gather in memory
                first, _ = await self.log.bounds(self.partition)
                if fold is None or fold.offset < first:
                    fold = await self._begin(first)
                if fold is not None:
                    await self._read(fold)
            except LogError as error:
                log.warning("the view waits for the log", partition=self.partition, reason=str(error))
                await asyncio.sleep(RETRY_S)
            except _Contradicted:
                self.view.disown(self.partition)  # whereupon this partition, and with it this filler, starts over
                return
            except Unavailable as error:
                log.warning("filling the view is interrupted", partition=self.partition, reason=error.detail)
                fold = None
                await asyncio.sleep(RETRY_S)
        if self.records:
            took = asyncio.get_running_loop().time() - began
            log.info("view filled", partition=self.partition, records=self.records, ms=round(took * 1000))

    # ------------------------------------------------------------ where to begin

    async def _begin(self, first: int) -> _Fold | None:
        """The fold to go on with in a log that begins at ``first``; None if nothing is left to read."""
        view, partition = self.view, self.partition
        watermark, resume = view.watermark(partition)
        links = [link for link in self._chain if link.covered >= first]
        near = [link for link in links if max(resume, first) < link.covered <= watermark]
        for link in reversed(near):
            if (whole := await self._load(link)) is not None:
                return await self._restored(whole, watermark)
        if resume >= first:
            token, expected = view.token_at(partition, resume), view.token_at(partition, watermark)
            # The token is the view's own word.  Where the log has all its Epochs, the records can be held against it.
            tokens = {each for _, each in view.epochs(partition)} if watermark and not first else None
            return _Fold(self._engine.scratch(), partition, resume, token, watermark, expected, tokens)
        for link in links:
            if link.covered < self.upto and (whole := await self._load(link)) is not None:
                fold = await self._restored(whole, whole.covered)
                if whole.covered > watermark:
                    view.restart(partition, whole.covered, whole.token_in_force, fold.resume)
                return fold
        if first < self.upto:
            log.warning("part of what finished is in no snapshot's reach", partition=partition, first=first)
        # What is open here only the owner knows; so whoever has to read on from here must begin with a Snapshot.
        view.restart(partition, self.upto, view.token_at(partition, self.upto) or b"", 0)
        return None

    async def _load(self, link: Link) -> Whole | None:
        return await recovery.load(self.log, self.partition, link.position, timeout_ms=self._timeout_ms)

    async def _restored(self, whole: Whole, known: int) -> _Fold:
        """A fold that stands where a Snapshot ends."""
        engine = self._engine.scratch()
        began = perf_counter()
        for _ in snapshots.restore(engine, self.partition, whole):
            await self._pace.pause(perf_counter() - began)
            began = perf_counter()
        expected = self.view.token_at(self.partition, known) if known > whole.covered else whole.token_in_force
        return _Fold(engine, self.partition, whole.covered, whole.token_in_force, known, expected)

    # ------------------------------------------------------------ reading

    async def _read(self, fold: _Fold) -> None:
        """Folds up to ``upto``, and puts what has finished."""
        view, partition = self.view, self.partition
        filled = view.watermark(partition)[0]
        reading = batches(self.log, partition, fold.offset, timeout_s=self._timeout_ms / 1000)
        async with contextlib.aclosing(reading):
            async for batch in reading:
                at = 0
                while at < len(batch):
                    began = perf_counter()
                    at = self._slice(fold, batch, at)
                    fold.gather()
                    await self._pace.pause(perf_counter() - began)
                    done = fold.offset >= self.upto
                    if done:
                        fold.prove(view.token_at(partition, self.upto))
                    if done or len(fold.rows) >= FILL_ROWS or fold.offset >= filled + FILL_RECORDS:
                        filled = await self._fill(fold, filled)
                    if done:
                        return
        raise LogError(f"it was to be read up to offset {self.upto}, and ended at {fold.offset}")

    def _slice(self, fold: _Fold, batch: list[tuple[int, bytes]], at: int) -> int:
        """Some records of the batch from its ``at``-th on; returns where to go on."""
        give_up_at = perf_counter() + SLICE_S
        while at < len(batch):
            offset, data = batch[at]
            if offset >= self.upto:
                return len(batch)
            fold.take(offset, data)
            self.records += 1
            at += 1
            if at % _LOOK_EVERY == 0 and perf_counter() > give_up_at:
                break
        return at

    async def _fill(self, fold: _Fold, filled: int) -> int:
        """Puts what was gathered; returns the watermark."""
        if fold.offset <= filled:
            return filled
        rows, epochs, fold.rows, fold.epochs = fold.rows, fold.epochs, [], []
        await self.view.fill(self.partition, rows, epochs, filled, fold.offset, fold.resume)
        return fold.offset
