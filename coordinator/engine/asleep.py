"""Commands that wait, put to sleep: their records as they were encoded, and a few words about them.

A command may wait for a month for somebody to decide, and there may be a million of them.  Awake, each takes some ten
kilobytes: objects of the fold, a coroutine that stands still.  Asleep it is one string of bytes.  It is woken by the
fold over its records, exactly as after a restart, whenever something happens to it: so sleeping adds no state of its
own, only what the fold does not know and must not forget (the number of calls, which fences them, may only grow).
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw, Struct
from msgspec.structs import replace

from coordinator.engine.state import Command
from coordinator.model.damaged import Damaged
from coordinator.model.records import CommandRecord, Piece, Reopened
from coordinator.wire.codec import read, stored


class Sleeper(Struct, frozen=True, array_like=True):
    """What is kept of a command: a few words for those who look for one among a million, and its records.

    ``at`` is when it was submitted (ms), ``state`` the one that clients see, ``waits`` what it waits for, ``asks``
    whether that includes a decision; ``wake_at`` and ``deadline`` are times for which a timer is set.  Without
    ``waits`` it was only put aside (`folding`): what it is about, exec has not been asked yet.
    """

    offset: int
    at: int
    type: str
    state: str
    waits: tuple[str, ...]
    asks: bool
    calls_made: int
    wake_at: float
    deadline: int | None
    records: Raw

    @property
    def pieces(self) -> list[Piece]:
        """Its records, still encoded: what a Snapshot has of it."""
        return _decode_pieces(self.records)

    def history(self, partition: int) -> list[tuple[int, CommandRecord | Damaged]]:
        """Its records."""
        return [(at, read(data, partition=partition, offset=at)) for at, data in self.pieces]  # type: ignore[misc]

    def attributes(self, partition: int) -> dict[str, Any]:
        """Of the command, as they were submitted."""
        at, data = self.pieces[0]
        first = read(data, partition=partition, offset=at)
        if isinstance(first, Reopened):
            at, data = first.records[0]
            first = read(data, partition=partition, offset=at)
        return getattr(first, "attributes", {})


_NONE = Raw(b"\x90")
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Sleeper).decode
_decode_pieces = msgspec.msgpack.Decoder(list[Piece]).decode


def packed(command: Command) -> bytes:
    """The command as it sleeps."""
    execution = command.execution
    asks = execution is not None and any(each.call.kind == "decision" for each in execution.waits.values())
    pieces = [(offset, stored(record)) for offset, record in command.history]
    return _encode(
        Sleeper(
            command.offset,
            command.submitted.at,
            command.submitted.type,
            command.state.value,
            command.waits,
            asks,
            command.calls_made,
            command.wake_at,
            command.deadline,
            Raw(_encode(pieces)),
        )
    )


def head(sleeping: bytes) -> bytes:
    """All but the records: what a Snapshot has of the command besides these, so that it need not be woken by it."""
    return _encode(replace(_decode(sleeping), calls_made=0, records=_NONE))  # calls are counted anew in each epoch


def whole(head: bytes, pieces: list[Piece]) -> bytes:
    """The inverse of `head`, with the records; raises msgspec.DecodeError."""
    return _encode(replace(_decode(head), records=Raw(_encode(pieces))))


def unpacked(sleeping: bytes) -> Sleeper:
    """The inverse of `packed`; the records stay encoded."""
    return _decode(sleeping)
