"""Receipts: what remains of a finished command for whoever sends its id again.

A new owner must answer a repeated id rightly from its first second, when its view of the partition may still be empty.
So a Snapshot carries a receipt of each command that finished within the dedupe horizon: enough to tell the same request
from another one, and to find the command in the log.

A receipt has 48 bytes, big-endian, so that its order as bytes is the order by hash:

    hash of the id 8 | fingerprint of the request 16 | offset of Submitted 8 | offset of Finished 8 | time of the end 8

They are kept as they are read, one sorted run of bytes: a million of them are 48 MB and no objects, and an id is found
by bisection.  Two ids with one hash would be taken for one; among a million receipts that meets one look-up in 10¹³.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from itertools import islice
from struct import Struct
from typing import Final, NamedTuple

FINGERPRINT_BYTES: Final = 16  # as long as `engine.registry.fingerprint` gives
_LAYOUT: Final = Struct(f">8s{FINGERPRINT_BYTES}sqqq")
RECEIPT_BYTES: Final = _LAYOUT.size
_HASH_BYTES: Final = 8
_END: Final = slice(32, 40)
_FINISHED_AT: Final = slice(40, 48)
_SAMPLE: Final = 4_096


class Receipt(NamedTuple):
    """A finished command: the request's fingerprint, the offsets of Submitted and Finished, when it ended (ms)."""

    fingerprint: bytes
    first: int
    end: int
    finished_at: int


def receipt(id: str, fingerprint: bytes, first: int, end: int, finished_at: int) -> bytes:
    """The bytes of one receipt; they sort by the hash of the id."""
    return packed(hash_of(id), fingerprint, first, end, finished_at)


def packed(hash: bytes, fingerprint: bytes, first: int, end: int, finished_at: int) -> bytes:
    """The same of an id whose hash is known.  A command of which nobody knows the request any more (its Submitted is in
    quarantine) has the fingerprint of no request, so it is a conflict with each."""
    assert len(fingerprint) in (0, FINGERPRINT_BYTES)
    return _LAYOUT.pack(hash, fingerprint, first, end, finished_at)


def hash_of(id: str) -> bytes:
    """What stands for the id in a receipt."""
    return blake2b(id.encode(), digest_size=_HASH_BYTES).digest()


class Receipts:
    """Receipts of one partition, immutable; ``data`` is one sorted run, as the parts of a Snapshot joined give it."""

    __slots__ = ("_data",)

    def __init__(self, data: bytes = b"") -> None:
        assert len(data) % RECEIPT_BYTES == 0
        self._data = data

    def __len__(self) -> int:
        return len(self._data) // RECEIPT_BYTES

    def __iter__(self) -> Iterator[bytes]:
        """One by one, sorted: what `merged` takes."""
        data = self._data
        for at in range(0, len(data), RECEIPT_BYTES):
            yield data[at : at + RECEIPT_BYTES]

    def find(self, id: str) -> Receipt | None:
        """The receipt of a command, None if it has none here."""
        data, wanted = self._data, hash_of(id)
        low, high = 0, len(data) // RECEIPT_BYTES
        while low < high:
            middle = (low + high) // 2
            at = middle * RECEIPT_BYTES
            if data[at : at + _HASH_BYTES] < wanted:
                low = middle + 1
            else:
                high = middle
        at = low * RECEIPT_BYTES
        if data[at : at + _HASH_BYTES] != wanted:
            return None
        _, *rest = _LAYOUT.unpack_from(data, at)
        return Receipt(*rest)


def merged(*runs: Iterable[bytes], since: int = 0) -> Iterator[bytes]:
    """Sorted runs of receipts as one, lazily, for the next Snapshot.

    Those that ended before ``since`` (ms) have expired and are left out.  Of several of one id, which two runs that
    overlap have, the latest end stays.
    """
    floor = since.to_bytes(8, "big")
    last = b""
    for each in heapq.merge(*runs):
        if each[_FINISHED_AT] < floor:
            continue
        if last and last[:_HASH_BYTES] != each[:_HASH_BYTES]:
            yield last
            last = each
        elif not last or last[_END] <= each[_END]:
            last = each
    if last:
        yield last


def below(receipts: Iterable[bytes], covered: int) -> Iterator[bytes]:
    """Those whose command ended below an offset: a view goes on filling while it is enumerated."""
    limit = covered.to_bytes(8, "big")
    return (each for each in receipts if each[_END] < limit)


def since_for(count: int, receipts: Iterable[bytes], limit: int) -> int:
    """From when on (ms) ends must be kept so that about ``limit`` of ``count`` receipts remain, the newest; 0 for all.

    An estimate, by the first few thousand of ``receipts``: they come in the order of a hash, so these are a fair
    sample.
    """
    if count <= limit:
        return 0
    sample = sorted(each[_FINISHED_AT] for each in islice(receipts, _SAMPLE))
    if not sample or limit <= 0:
        return 1 << 62
    return int.from_bytes(sample[len(sample) - max(1, len(sample) * limit // count)], "big")
