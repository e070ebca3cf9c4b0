"""Snapshots: the state below an offset, so that a replay need not begin at the log's first record.

What a Snapshot holds is no memory image but the log's own records: the valid ones, below the offset ``covered``, of
commands that had not ended there.  They are put back by the same fold that read them the first time, so there is no
second way to come to a state, no second format to keep readable for ever, and histories stay whole.

Whoever reads on from ``covered`` must know which token was in force there; the Snapshot says so.  It says nothing
about the place where it lies itself: it was written later, records may stand between, and a fenced owner may have
written it, which makes it old but not wrong (docs/spec; DESIGN section 4).

*Cutting* goes on beside the work.  A partition may have a hundred thousand waiting commands, and the event loop must
not stand still for them; so `cut` takes hold of what there is at once, and encodes it little by little while commands
go on, end, and begin.  That is safe because histories only grow, at offsets of ``covered`` and above.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from itertools import groupby
from operator import itemgetter
from typing import Final, NamedTuple

import msgspec

from coordinator.admission.receipts import RECEIPT_BYTES, Receipts, below
from coordinator.engine import asleep
from coordinator.engine.engine import Engine
from coordinator.engine.quarantine import Quarantine
from coordinator.engine.state import Command
from coordinator.errors import CorruptLog
from coordinator.model.damaged import Damaged
from coordinator.model.ids import ID_LENGTH_MAX, CommandId, position
from coordinator.model.records import SCHEMA, CommandRecord, Link, Piece, Registered, Schedule, Snapshot
from coordinator.wire.codec import decode, encode, key_of, read, stored

PART_BYTES: Final = 512 * 1024  # of an encoded part: two fit into an append, and one under every broker's limit
SNAPSHOT_ID_BYTES: Final = 8
_SLICE: Final = 400  # records between two chances for others: about half a millisecond
_HEAD: Final = 256  # at most, of a part without its contents
_CHAINED: Final = 32  # at most, of one entry of the chain
_PIECE: Final = 16  # at most, around the bytes of a piece: its array, its offset, the head of its bytes
_NAMED: Final = 12  # at most, around a command's id: its array, the head of its id and that of its pieces
_ROOM_MIN: Final = _PIECE + _NAMED + 4 * ID_LENGTH_MAX


class _Shelf(Enum):
    """Where in a part an item goes."""

    DEFINITIONS = "definitions"
    SCHEDULES = "schedules"
    QUARANTINE = "quarantine"
    SLEEPING = "sleeping"
    COMMANDS = "commands"
    RECEIPTS = "receipts"


_Item = tuple[_Shelf, CommandId, int, bytes]
_NOBODY: Final = CommandId("")


# ---------------------------------------------------------------- cutting


class Header(NamedTuple):
    """What every part says.

    ``id`` is 8 random bytes; ``covered`` the first offset not folded yet, all below it being confirmed and ours;
    ``token_in_force`` this ownership's token; ``identity`` the token of the partition's first Epoch.
    """

    id: bytes
    covered: int
    token_in_force: bytes
    identity: bytes
    at: int


def cut(
    engine: Engine,
    partition: int,
    header: Header,
    *,
    chain: Sequence[Link] = (),
    receipts: Iterable[bytes] = (),
    part_bytes: int = PART_BYTES,
) -> Iterator[Snapshot | None]:
    """The parts of a Snapshot of the partition as it is now; they come without a token, as proposed records do.

    To be called when the fold stands exactly at ``header.covered``: between two batches.  The state is taken hold of
    by this call; what comes out is made while it is iterated over, and None tells that a slice of work is done and
    others should have their turn.  ``receipts`` is read as late as that; what ended at
    ``covered`` or later is left out of it.
    """
    shard = engine.shards.get(partition)
    commands = list((engine.replaying.get(partition, {}) if shard is None else shard.commands).items())
    definitions = list(engine.definitions.get(partition, {}).values())
    schedules = list(engine.schedules.pieces(partition))
    quarantine = engine.quarantined[partition].pieces(header.covered)
    items = _items(header.covered, definitions, schedules, quarantine, commands, receipts)
    return _parts(header, list(chain), items, part_bytes)


def _items(
    covered: int,
    definitions: Iterable[tuple[int, Registered]],
    schedules: Iterable[tuple[int, Schedule]],
    quarantine: Iterable[Piece],
    commands: Iterable[tuple[CommandId, Command | bytes]],
    receipts: Iterable[bytes],
) -> Iterator[_Item]:
    """All that the Snapshot holds, in the order in which it is put back."""
    for offset, definition in definitions:
        yield _Shelf.DEFINITIONS, _NOBODY, offset, encode(definition)
    for offset, scheduled in schedules:
        yield _Shelf.SCHEDULES, _NOBODY, offset, encode(scheduled)
    for offset, entry in quarantine:
        yield _Shelf.QUARANTINE, _NOBODY, offset, entry
    for id, command in commands:
        if isinstance(command, bytes):  # asleep: all that it has was recorded before
            sleeper = asleep.unpacked(command)
            if sleeper.waits:
                yield _Shelf.SLEEPING, id, 0, asleep.head(command)
            for offset, data in sleeper.pieces:
                yield _Shelf.COMMANDS, id, offset, data
            continue
        for offset, record in _uncompleted(command, covered):
            yield _Shelf.COMMANDS, id, offset, stored(record)
    for receipt in below(receipts, covered):
        yield _Shelf.RECEIPTS, _NOBODY, 0, receipt


def _uncompleted(command: Command, covered: int) -> Sequence[tuple[int, CommandRecord | Damaged]]:
    """What the command's history was at ``covered``; nothing if it had ended there.

    A copy: the history may grow while its records are encoded.
    """
    history = command.history[: bisect_left(command.history, covered, key=itemgetter(0))]
    if command.finished is not None and any(record is command.finished for _, record in history):
        return ()
    return history


class _Part:
    """One part while it fills; ``room`` is what is left of its bytes."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.empty = True
        self.shelves: dict[_Shelf, list[Piece]] = {
            shelf: [] for shelf in (_Shelf.DEFINITIONS, _Shelf.SCHEDULES, _Shelf.QUARANTINE)
        }
        self.commands: list[tuple[CommandId, list[Piece]]] = []
        self.sleeping: list[tuple[CommandId, bytes]] = []
        self.receipts = bytearray()

    def put(self, shelf: _Shelf, id: CommandId, offset: int, data: bytes) -> bytes:
        """Puts in as much of an item as there is room for; returns what is left of it."""
        if shelf is _Shelf.RECEIPTS:
            if self.room < RECEIPT_BYTES:
                return data
            self.receipts += data
            self.room -= RECEIPT_BYTES
            return b""
        if shelf is _Shelf.SLEEPING:
            return self._put_sleeping(id, data)
        begins = shelf is _Shelf.COMMANDS and not (self.commands and self.commands[-1][0] == id)
        around = _PIECE + (_NAMED + len(id.encode()) if begins else 0)
        fits = self.room - around
        if fits < len(data) and not self.empty:
            return data  # a record is only torn where it has a part for itself
        self.empty = False
        pieces = self.shelves[shelf] if shelf is not _Shelf.COMMANDS else self._pieces(id, begins)
        pieces.append((offset, data[:fits]))
        self.room -= around + min(fits, len(data))
        return data[fits:]

    def _put_sleeping(self, id: CommandId, data: bytes) -> bytes:
        """Never torn; without these words, where they are too many, the command is folded like any other."""
        size = _PIECE + _NAMED + len(id.encode()) + len(data)
        if size <= self.room:
            self.sleeping.append((id, data))
            self.room -= size
            self.empty = False
        elif not self.empty:
            return data
        return b""

    def _pieces(self, id: CommandId, begins: bool) -> list[Piece]:
        if begins:
            self.commands.append((id, []))
        return self.commands[-1][1]


def _parts(header: Header, chain: list[Link], items: Iterator[_Item], part_bytes: int) -> Iterator[Snapshot | None]:
    room = part_bytes - _HEAD - _CHAINED * len(chain)
    assert room > _ROOM_MIN, "a part must have room for something"
    number = 0
    part = _Part(room)
    for worked, (shelf, id, offset, data) in enumerate(items, 1):
        rest = part.put(shelf, id, offset, data)
        while rest:
            yield _record(header, part, number)
            number += 1
            part = _Part(room)
            rest = part.put(shelf, id, offset, rest)
        if worked % _SLICE == 0:
            yield None
    yield _record(header, part, number, parts=number + 1, chain=chain)


def _record(header: Header, part: _Part, number: int, *, parts: int = 0, chain: list[Link] | None = None) -> Snapshot:
    return Snapshot(
        SCHEMA,
        b"",
        header.at,
        header.id,
        number,
        parts,
        header.covered,
        header.token_in_force,
        header.identity,
        commands=part.commands,
        definitions=part.shelves[_Shelf.DEFINITIONS],
        quarantine=part.shelves[_Shelf.QUARANTINE],
        receipts=bytes(part.receipts),
        chain=chain or [],
        schedules=part.shelves[_Shelf.SCHEDULES],
        sleeping=part.sleeping,
    )


def records_in(part: Snapshot) -> int:
    """How many records must be put back from a part: what `recovery.due` weighs."""
    return len(part.definitions) + len(part.schedules) + sum(len(pieces) for _, pieces in part.commands)


# ---------------------------------------------------------------- putting back


class Whole:
    """A Snapshot with all its parts; ``position`` is the offset of the first of them."""

    __slots__ = ("parts", "position")

    def __init__(self, position: int, parts: Sequence[Snapshot]) -> None:
        if not complete(parts):
            raise CorruptLog(f"the snapshot at offset {position} is incomplete: {len(parts)} parts, torn or mixed")
        self.position = position
        self.parts = parts

    @property
    def covered(self) -> int:
        """The offset to read on from."""
        return self.parts[0].covered

    @property
    def token_in_force(self) -> bytes:
        """The token of the epoch that was in force at ``covered``."""
        return self.parts[0].token_in_force

    @property
    def identity(self) -> bytes:
        """The token of the partition's first Epoch."""
        return self.parts[0].identity

    @property
    def at(self) -> int:
        """When it was cut (ms)."""
        return self.parts[0].at

    @property
    def chain(self) -> list[Link]:
        """Earlier snapshots, the oldest first."""
        return self.parts[-1].chain

    @property
    def link(self) -> Link:
        """This one, as the next one's chain has it."""
        return Link(self.covered, self.position, self.at)

    def receipts(self) -> Receipts:
        """Of the commands that had finished."""
        return Receipts(b"".join(part.receipts for part in self.parts))

    def quarantine(self) -> list[Piece]:
        """Its entries, each with the offset of the record that it is about."""
        return [(offset, data) for _, offset, data in _joined(_shelf(part.quarantine) for part in self.parts)]


def complete(parts: Sequence[Snapshot]) -> bool:
    """Whether these are all parts of one Snapshot, in order."""
    return (
        bool(parts)
        and parts[-1].parts == len(parts)
        and all(part.part == number and part.snapshot == parts[0].snapshot for number, part in enumerate(parts))
        and len({(part.covered, part.token_in_force, part.identity) for part in parts}) == 1
    )


def restore(engine: Engine, partition: int, whole: Whole) -> Iterator[int]:
    """Puts the Snapshot into the engine, as if the log had been folded up to ``whole.covered``.

    It is done when the iteration is; each step is a slice of a few milliseconds at most, after which others should have
    their turn, and tells how many records were put back so far.  Records in quarantine park their commands again;
    raises CorruptLog for what the snapshot cannot have got from a log.
    """
    assert partition not in engine.shards, "what is live is not put back"
    engine.quarantined[partition] = Quarantine.restored(whole.quarantine())
    count = 0
    for _, offset, data in _joined(_shelf(part.definitions) for part in whole.parts):
        engine.apply(partition, offset, decode(data, partition=partition, offset=offset))
        count += 1
    for _, offset, data in _joined(_shelf(part.schedules) for part in whole.parts):
        engine.apply(partition, offset, decode(data, partition=partition, offset=offset))
        count += 1
    sleeping = {id: head for part in whole.parts for id, head in part.sleeping}
    for id, records in groupby(_joined(_histories(part) for part in whole.parts), key=itemgetter(0)):
        pieces = [(offset, data) for _, offset, data in records]
        if id not in sleeping or not _slept(engine, partition, id, sleeping[id], pieces, whole.covered):
            _folded(engine, partition, id, pieces, whole)
        if (count + len(pieces)) // _SLICE > count // _SLICE:
            yield count + len(pieces)
        count += len(pieces)
    yield count


def _folded(engine: Engine, partition: int, id: CommandId, pieces: list[Piece], whole: Whole) -> None:
    for offset, data in pieces:
        command = engine.apply(partition, offset, read(data, partition=partition, offset=offset))
        if command is None or command.id != id or command.finished is not None or offset >= whole.covered:
            raise CorruptLog(
                f"the snapshot at position {position(partition, whole.position)} has a record of offset {offset} that "
                f"is none of the uncompleted command {id} below offset {whole.covered}"
            )


def _slept(engine: Engine, partition: int, id: CommandId, head: bytes, pieces: list[Piece], covered: int) -> bool:
    """A command that only waits is put back as it slept; False where something about it is not as it should be, which
    the fold will tell."""
    if any(offset >= covered or key_of(data) != id.encode() for offset, data in pieces):
        return False
    try:
        engine.sleeps(partition, id, asleep.whole(head, pieces))
    except msgspec.MsgspecError:
        return False
    return True


_Placed = tuple[CommandId, int, bytes]


def _shelf(pieces: Iterable[Piece]) -> Iterator[_Placed]:
    return ((_NOBODY, offset, data) for offset, data in pieces)


def _histories(part: Snapshot) -> Iterator[_Placed]:
    return ((id, offset, data) for id, pieces in part.commands for offset, data in pieces)


def _joined(parts: Iterable[Iterator[_Placed]]) -> Iterator[_Placed]:
    """The items of all parts, what was torn made whole: the same offset again means that the bytes go on."""
    whole = groupby((piece for part in parts for piece in part), key=itemgetter(0, 1))
    return ((id, offset, b"".join(data for _, _, data in pieces)) for (id, offset), pieces in whole)
