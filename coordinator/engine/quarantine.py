"""Quarantine: records that cannot be read, or cannot be applied, and what becomes of their command.

`ownership.validity` has judged already that the partition may go on behind such a record.  What is left is a pure part
of the fold, the same live, on replay and from a snapshot:

- each goes to its partition's list (`Quarantine`), which is bounded, and which snapshots carry;
- if it counts and is a command's, that command is *parked*: what it has decided is not known, so it must go neither
  forward nor back by itself.  Later records of it are folded as ever; only its end, or an operator's abort, ends it;
- a record that can be read but whose handler raises leaves no half of its change behind: the command is folded anew
  from the records before it (`refold`), then parked.

In the command's history such a record stands as a `Damaged`, with its bytes as the log has them.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable
from typing import Final

import msgspec
from msgspec import Struct

from coordinator.engine.state import Command
from coordinator.model.damaged import Damaged
from coordinator.model.ids import CommandId, position
from coordinator.model.records import NIL, SCHEMA, CommandRecord, Failure, Submitted

ENTRIES_MAX: Final = 1000
BYTES_MAX: Final = 4096
CODE: Final = "quarantined"
"""The failure's code of a parked command."""

PARKED: Final = "parked"
PASSED_OVER: Final = "passed_over"


class Entry(Struct, frozen=True, array_like=True):
    """One record in quarantine.

    ``at`` is its own time, or if that cannot be read, the time of the last record before it (ms, 0: none): a fold has
    no clock.  ``data`` has its first bytes, ``size`` tells how many there are.  ``kind`` is a name or empty,
    ``command`` an id or empty, ``effect`` is `PARKED` (the command) or `PASSED_OVER` (nothing hung on it).
    """

    offset: int
    at: int
    reason: str
    size: int
    data: bytes
    kind: str
    command: str
    effect: str


_DROPPED: Final = -1
_encode = msgspec.msgpack.Encoder().encode
_decode_entry = msgspec.msgpack.Decoder(Entry).decode
_decode_count = msgspec.msgpack.Decoder(int).decode


class Quarantine:
    """A partition's list, by offset; beyond `ENTRIES_MAX` the oldest are only counted (``dropped``).

    Adding what is there already changes nothing, so that a command restored from a snapshot may tell of its own.
    """

    __slots__ = ("_by_offset", "_offsets", "dropped")

    def __init__(self, entries: list[Entry] | None = None, dropped: int = 0) -> None:
        self.dropped = dropped
        self._offsets = sorted(entry.offset for entry in entries or ())
        self._by_offset = {entry.offset: entry for entry in entries or ()}

    @property
    def total(self) -> int:
        """How many there are, dropped ones included."""
        return len(self._offsets) + self.dropped

    @property
    def entries(self) -> list[Entry]:
        """What is kept, in log order."""
        return [self._by_offset[offset] for offset in self._offsets]

    def pieces(self, covered: int) -> list[tuple[int, bytes]]:
        """What a snapshot keeps of it, below the offset ``covered``: (offset, encoded), how many were dropped first."""
        kept = [(offset, _encode(self._by_offset[offset])) for offset in self._offsets if offset < covered]
        return [(_DROPPED, _encode(self.dropped)), *kept] if self.dropped else kept

    @classmethod
    def restored(cls, pieces: Iterable[tuple[int, bytes]]) -> Quarantine:
        """The inverse of `pieces`."""
        kept = dict(pieces)
        dropped = kept.pop(_DROPPED, None)
        return cls([_decode_entry(data) for data in kept.values()], 0 if dropped is None else _decode_count(dropped))

    def add(self, entry: Entry) -> bool:
        """False if it is there already, or was before it was dropped."""
        if entry.offset in self._by_offset or (self.dropped and entry.offset < self._offsets[0]):
            return False
        insort(self._offsets, entry.offset)
        self._by_offset[entry.offset] = entry
        if len(self._offsets) > ENTRIES_MAX:
            del self._by_offset[self._offsets.pop(0)]
            self.dropped += 1
        return True


def entry(damaged: Damaged, at: int, *, parks: bool) -> Entry:
    """The list's entry for a record; ``parks`` tells whether it parks its command."""
    effect = PARKED if parks else PASSED_OVER
    data = damaged.data[:BYTES_MAX]
    return Entry(damaged.offset, at, damaged.reason, len(damaged.data), data, damaged.name, damaged.id or "", effect)


def failure(damaged: Damaged) -> Failure:
    """Why the command is parked."""
    place = position(damaged.partition, damaged.offset)
    return Failure(CODE, f"the record at position {place} is in quarantine: {damaged.reason}")


def placeholder(damaged: Damaged) -> Submitted:
    """Stands for a Submitted that cannot be read: the id is taken, all else is unknown.

    No request has the empty fingerprint, so a second submission of the id is a conflict, never a new start.
    """
    assert damaged.id is not None
    return Submitted(SCHEMA, damaged.token or b"", damaged.at, damaged.id, damaged.type or "", 0, NIL, b"")


def unapplied(partition: int, offset: int, record: CommandRecord, data: bytes, told: str) -> Damaged:
    """What stands in the history for a record whose handler raised."""
    kind = record.__struct_config__.tag
    assert isinstance(kind, int)
    reason = f"the record of kind {kind} ({type(record).__name__}) cannot be applied: {told}"
    return Damaged(partition, offset, data, reason, kind, record.schema, record.token, record.at, CommandId(record.id))


def park(command: Command, damaged: Damaged) -> None:
    """What ``damaged`` has decided is not known; the first such record is the one that is told of."""
    if command.quarantined is None:
        command.quarantined = failure(damaged)
    if damaged.name == "Finished":
        command.finishing = False  # it was on its way; it has come, and ends nothing
