"""Where a replay begins, and how far down the log must reach so that it can.

A new owner need not fold the whole log: a Snapshot has the state below an offset, and the rest is read from there.  The
log keeps a pointer to the newest one, but anybody may have overwritten that, a fenced owner too.  So it is a hint: what
it points to must be a complete Snapshot that covers all that was deleted, else it is not believed.

    the hint's snapshot is complete and covers the log's start   → read on from what it covers
    else the log begins at 0                                     → read it all
    else there are complete snapshots that cover its start       → the one that covers most
    else its first record is an Epoch                            → read from there: what counts can be told
    else                                                         → refuse: nobody knows what counts (docs/spec)

A Snapshot that a reader meets behind the one it began with needs no notice: the fold itself comes to what it says.

*Trimming* is the other side of it.  The log may be cut only at an offset that a snapshot covers: there a reader that
wants the history, too, finds the token in force and the commands that were under way.  That is why each Snapshot names
earlier ones, its chain; and why nothing is cut before an owner has seen a newer one confirmed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from coordinator.engine.snapshots import Whole, complete
from coordinator.errors import CorruptLog, StartupError
from coordinator.log.base import Log, LogError
from coordinator.log.reading import batches
from coordinator.model.damaged import SNAPSHOT, Damaged
from coordinator.model.ids import position as place
from coordinator.model.records import Epoch, Link, Snapshot
from coordinator.wire.codec import EPOCH, kind_of, read

CHAIN_MAX: Final = 64
_UNFINISHED_MAX: Final = 64  # torn snapshots that a search keeps in mind
_READ_BYTES_PER_S: Final = 100_000_000  # of large records, where bytes and not records take the time


class Start(NamedTuple):
    """Where to begin: fold from ``offset``, where ``token_in_force`` was in force, after ``snapshot`` was put back.

    ``why`` is a clause for the log and for `coordinator log explain`.
    """

    offset: int
    token_in_force: bytes | None
    snapshot: Whole | None
    why: str


# ---------------------------------------------------------------- finding the start


async def find(log: Log, partition: int, *, timeout_ms: int = 5_000) -> Start:
    """Where the replay of a partition begins; to be asked before the own Epoch is appended.

    Each answer of the log may take ``timeout_ms``.  Raises LogError (ask again later; also when another owner trims
    meanwhile) and CorruptLog where no replay can be right.
    """
    reader = _Reader(log, partition, timeout_ms / 1000)
    try:
        async with asyncio.timeout(reader.timeout_s):
            first, end = await log.bounds(partition)
            pointer = await log.load_pointer(partition)
    except TimeoutError as error:
        raise LogError(f"the log did not tell its bounds within {reader.timeout_s:g} s") from error
    hint = "no snapshot is known"
    if pointer is not None:
        hinted = await _hinted(reader, pointer.position, first, end)
        if isinstance(hinted, Whole):
            return _after(hinted, partition)
        hint = f"of the snapshot that should be at {place(partition, pointer.position)}, {hinted}"
    if first == 0:
        return Start(0, None, None, f"the whole log: {hint}")
    return await _in_trimmed(reader, first, hint)


async def load(log: Log, partition: int, position: int, *, timeout_ms: int = 5_000) -> Whole | None:
    """The Snapshot whose first part is at ``position``; None if that is not there, or not whole.  Raises LogError."""
    first, end = await log.bounds(partition)
    found = await _hinted(_Reader(log, partition, timeout_ms / 1000), position, first, end)
    return found if isinstance(found, Whole) else None


def _after(whole: Whole, partition: int, besides: str = "") -> Start:
    why = f"the snapshot at {place(partition, whole.position)}, which covers what is below {whole.covered}{besides}"
    return Start(whole.covered, whole.token_in_force, whole, why)


async def _hinted(reader: _Reader, position: int, first: int, end: int) -> Whole | str:
    """The Snapshot that the hint points to, or why there is none to go by."""
    if not first <= position < end:
        return f"nothing is left: the log is from {first} to {end}"
    found = await _load(reader, position)
    if isinstance(found, Whole) and found.covered < first:
        return f"what it covers ends at {found.covered}, and the log begins above that, at {first}"
    return found


async def _load(reader: _Reader, position: int) -> Whole | str:
    """The Snapshot whose first part is at ``position``, or what is there instead; other records may lie between."""
    parts: list[Snapshot] = []
    async with contextlib.aclosing(reader.batches(position)) as reading:
        async for batch in reading:
            for offset, data in batch:
                part = _part(reader.partition, offset, data)
                if not parts and (not isinstance(part, Snapshot) or part.part):
                    return "the log has something else there"
                if not isinstance(part, Snapshot) or (parts and part.snapshot != parts[0].snapshot):
                    continue
                if part.part != len(parts):
                    return f"the log has part {part.part} where part {len(parts)} should be"
                parts.append(part)
                if part.parts:
                    return Whole(position, parts) if complete(parts) else "its parts do not belong together"
                await asyncio.sleep(0)  # a part is some milliseconds' work, and a batch may have many
    return f"the log has only {len(parts)} parts, and not the last"


async def _in_trimmed(reader: _Reader, first: int, hint: str) -> Start:
    """The start in a log whose head is gone."""
    search = _Search(first)
    async with contextlib.aclosing(reader.batches(first)) as reading:
        async for batch in reading:
            for offset, data in batch:
                search.see(_part(reader.partition, offset, data), offset)
    if search.best is not None:
        found = await _load(reader, search.best.position)
        if not isinstance(found, Whole):
            raise LogError(f"the snapshot at {place(reader.partition, search.best.position)} is gone: {found}")
        return _after(found, reader.partition, f", found by reading the log from {first}: {hint}")
    if search.begins_with_epoch:
        return Start(first, None, None, f"what is left of the log, from the Epoch at its start {first}: {hint}")
    text = (
        f"partition {reader.partition} of the log begins at offset {first}, what was below is deleted, and no complete "
        f"snapshot in it covers that ({hint}; found by reading on: {search.told}).  Which commands were under way and "
        "which epoch was in force there, nothing tells.  Restore the head of the log, or a snapshot that covers it"
    )
    raise CorruptLog(text) if search.newer is None else search.newer.error(text)


class _Search:
    """The complete Snapshot that covers most, among all parts of a stretch of log, without keeping their contents."""

    def __init__(self, first: int) -> None:
        self.first = first
        self.best: Link | None = None
        self.begins_with_epoch = False
        self.newer: Damaged | None = None  # one that cannot be read here
        self._unfinished: dict[bytes, tuple[int, int]] = {}  # by id: position, parts so far
        self._old = 0

    def see(self, part: Snapshot | Damaged | bool, offset: int) -> None:
        """One record; True is an Epoch, False any other that is no part."""
        if isinstance(part, bool):
            self.begins_with_epoch |= part and offset == self.first
        elif isinstance(part, Damaged):
            self.newer = self.newer or part
        else:
            self._see_part(part, offset)

    def _see_part(self, part: Snapshot, offset: int) -> None:
        position, count = self._unfinished.pop(part.snapshot, (offset, 0))
        if part.part != count:
            return
        if not part.parts:
            self._unfinished[part.snapshot] = (position, count + 1)
            if len(self._unfinished) > _UNFINISHED_MAX:
                del self._unfinished[next(iter(self._unfinished))]
        elif part.covered < self.first:
            self._old += 1
        elif part.parts == count + 1 and (self.best is None or part.covered > self.best.covered):
            self.best = Link(part.covered, position, part.at)

    @property
    def told(self) -> str:
        """What was found that is of no use."""
        return f"{self._old} that cover less, {len(self._unfinished)} torn"


def _part(partition: int, offset: int, data: bytes) -> Snapshot | Damaged | bool:
    """A part of a Snapshot, or a damaged one; else whether the record is an Epoch.

    What else is damaged is none of our business: the fold will judge it, if it comes there.
    """
    kind = kind_of(data)
    if kind != SNAPSHOT:
        return kind == EPOCH
    part = read(data, partition=partition, offset=offset)
    assert isinstance(part, (Snapshot, Damaged))
    return part


class _Reader(NamedTuple):
    """Reads one partition; a log that does not answer is a LogError, not a wait for ever."""

    log: Log
    partition: int
    timeout_s: float

    async def batches(self, start: int) -> AsyncGenerator[list[tuple[int, bytes]], None]:
        reading = batches(self.log, self.partition, start, timeout_s=self.timeout_s)
        async with contextlib.aclosing(reading):
            async for batch in reading:
                yield batch
                await asyncio.sleep(0)  # a long search leaves room for health checks and signals


# ---------------------------------------------------------------- whose log it is

GROUP_RECORDS: Final = 1_000


async def check_group(log: Log, name: str, *, timeout_ms: int = 5_000) -> None:
    """Raises StartupError if the log is another group's: two groups on one log would fence each other for ever.

    The log's first Epochs tell; where there is none near its start, nothing is said.
    """
    group = ""
    with contextlib.suppress(LogError, CorruptLog, TimeoutError):  # whoever acquires will meet that, and say so
        group = await _first_group(_Reader(log, 0, timeout_ms / 1000))
    if group and group != name:
        raise StartupError(
            f"the log belongs to the group {group!r}, and this instance is one of {name!r}: "
            "give it that name (coordinator.name), or a log of its own (log.topic, log.data_dir)"
        )


async def _first_group(reader: _Reader) -> str:
    """The group of the first Epoch that names one; empty where there is none near the log's start."""
    async with asyncio.timeout(reader.timeout_s):
        first, _ = await reader.log.bounds(reader.partition)
    async with contextlib.aclosing(reader.batches(first)) as reading:
        async for batch in reading:
            for offset, data in batch:
                record = read(data, partition=0, offset=offset) if kind_of(data) == EPOCH else None
                if isinstance(record, Epoch) and record.group:
                    return record.group
                if offset - first > GROUP_RECORDS:
                    return ""
    return ""


# ---------------------------------------------------------------- when to take one


def due(
    *,
    records_since: int,
    bytes_since: int,
    state_records: int,
    state_bytes: int,
    rate_per_s: float,
    target_ms: int,
) -> bool:
    """Whether a snapshot should be taken now.

    ``*_since`` tell of the tail, all that was appended since the offset that the last one covers; ``state_*`` of the
    last one itself: the records to be put back (`snapshots.records_in`), the bytes it took.  ``rate_per_s`` is how fast
    records are folded, as the last replay measured it.

    It is when a takeover would need more than half its target, the other half being for what comes before and after
    the replay.  But a snapshot must save more than it costs, or a partition with much state would write nothing else:
    so the tail must have at least as many records and bytes as the last one.  A state that takes half the target by
    itself thus doubles what is written, and a takeover takes up to twice the time that the state takes.
    """
    if records_since < max(1, state_records) or bytes_since < state_bytes:
        return False
    replay_s = (state_records + records_since) / rate_per_s
    read_s = (state_bytes + bytes_since) / _READ_BYTES_PER_S
    return 1000 * max(replay_s, read_s) > target_ms / 2


# ---------------------------------------------------------------- how far to trim


def lengthened(chain: Sequence[Link], latest: Link, first: int) -> list[Link]:
    """The chain of the next snapshot, given the ``chain`` of the ``latest`` one and where the log begins now.

    At most `CHAIN_MAX`: of those in between, the ones that lie closest together in time go first.  The oldest stays: it
    is where a reader of the history begins.
    """
    links = [link for link in chain if first <= link.covered < latest.covered]
    links.append(latest)
    while len(links) > CHAIN_MAX:
        gaps = [after.at - before.at for before, after in zip(links, links[2:], strict=False)]
        del links[1 + gaps.index(min(gaps))]
    assert all(before.covered < after.covered for before, after in pairwise(links))
    return links


class Trim(NamedTuple):
    """Up to where the log may be deleted now, None for not at all; and what keeps the rest: a word and a sentence.

    ``pin`` is ``snapshot`` (a newer one is needed), ``retain`` (the setting) or ``chain`` (no snapshot lies there).
    """

    before: int | None
    pin: str
    why: str


def trim_point(first: int, chain: Sequence[Link], confirmed: Link | None, retain_offset: int | None) -> Trim:
    """Where to trim a log that begins at ``first``.

    ``confirmed`` is the newest snapshot all of whose parts this owner has seen confirmed, ``chain`` what that one
    names.  ``retain_offset`` is the first offset that is younger than `[log] retain` (`Log.offset_at`), None where that
    is not set.

    Cut is only at what a snapshot of the chain covers, since there the history can be read on; and never above what the
    confirmed one covers, since that is what the next owner begins with.
    """
    if retain_offset is None:
        return Trim(None, "retain", "everything is kept: [log] retain is not set")
    if confirmed is None:
        return Trim(None, "snapshot", "no snapshot of this owner is confirmed yet, so nothing may be deleted")
    if retain_offset <= first:
        return Trim(None, "retain", f"nothing to delete: the log begins at {first}, and no record there is too old")
    cuts = sorted({link.covered for link in [*chain, confirmed] if first < link.covered <= confirmed.covered})
    if not cuts:
        return Trim(None, "snapshot", f"the newest snapshot covers {confirmed.covered}, and the log begins at {first}")
    before = max((cut for cut in cuts if cut <= retain_offset), default=None)
    if before is None:
        told = f"what is below {retain_offset} is old enough, but the first snapshot above {first} covers {cuts[0]}"
        return Trim(None, "chain", f"{told}, and the log is cut only where there was a snapshot")
    if before == confirmed.covered:
        return Trim(before, "snapshot", f"the newest snapshot covers {before}; what is above needs a newer one")
    told = f"of the offsets that a snapshot covers, {before} is the last below {retain_offset}"
    return Trim(before, "retain", f"{told}, where the records begin that are to be kept")
