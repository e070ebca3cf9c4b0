"""When a record was appended, as far as the record itself tells: the fourth field of every record is its writer's time.

Logs that keep no times of their own answer `Log.offset_at` by bisection over that field.  It is monotonic enough:
records of one append may differ by some milliseconds and a new owner's clock may be behind the former one's, so the
answer may be off by what the clocks are off.  Bytes that are no record have no time and are stepped over.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from msgspec import Struct


class _Timed(Struct, frozen=True, array_like=True):
    kind: int
    schema: int
    token: bytes
    at: int


_decode = msgspec.msgpack.Decoder(_Timed).decode
_UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError, MemoryError)


def at_of(data: bytes) -> int | None:
    """The record's own time (ms since 1970), or None for bytes that are no record."""
    try:
        return _decode(data).at
    except _UNREADABLE:
        return None


def first_at(record: Callable[[int], bytes | None], first: int, end: int, at_ms: int) -> int:
    """The first offset in ``[first, end)`` whose record is from ``at_ms`` or later; ``end`` when there is none.

    ``record(offset)`` gives the bytes, or None where there are none any more.
    """
    low, high = first, end
    while low < high:
        middle = (low + high) // 2
        at, timed = None, middle
        while timed < high and at is None:
            data = record(timed)
            at = None if data is None else at_of(data)
            timed += 1
        if at is not None and at < at_ms:
            low = timed
        else:
            high = middle
    return low
