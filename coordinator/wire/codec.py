"""Records to bytes and back: the format of the log.

A record is a msgpack array ``[kind, schema, token, at, …]`` (`model.records`).  Encoding and decoding are one msgspec
call each; everything else here is about saying clearly what is wrong with bytes that are no record.  Reading never
skips: a kind or a schema version that this program does not know may carry a decision, so the reader must stop and
name it.

What may change without a new schema version: nothing.  What a new version may do: append fields with defaults (so old,
shorter arrays stay readable), or add a kind.  Extra elements behind the fields that we know are tolerated only under a
version that we know.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import Struct

from coordinator.errors import CorruptLog
from coordinator.model.ids import position
from coordinator.model.records import KINDS, SCHEMA, Record

EPOCH: Final = 0  # the kind of an Epoch record, for who reads headers only

encode = msgspec.msgpack.Encoder().encode
"""``encode(record) -> bytes``: the record's one spelling; equal records give equal bytes."""

_decode_record = msgspec.msgpack.Decoder(Record).decode


class Header(Struct, frozen=True, array_like=True):
    """The first fields of every record, whatever its kind: all that ownership needs to judge a stretch of the log."""

    kind: int
    schema: int
    token: bytes


_decode_header = msgspec.msgpack.Decoder(Header).decode

# What msgspec raises for bytes from outside: its own errors, bad UTF-8 (a ValueError), nesting beyond the stack.
_UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError, MemoryError)


def decode(data: bytes, *, partition: int, offset: int) -> Record:
    """The record in ``data``; raises CorruptLog that names partition, offset and kind."""
    try:
        record: Record = _decode_record(data)
    except _UNREADABLE as error:
        raise _corrupt(data, partition, offset, str(error)) from error
    if record.schema != SCHEMA:
        raise _corrupt(data, partition, offset, f"schema version {record.schema} was never written")
    return record


def header(data: bytes, *, partition: int, offset: int) -> Header:
    """Kind, schema and token alone, at a quarter of the cost and for kinds that we do not know; raises CorruptLog."""
    try:
        return _decode_header(data)
    except _UNREADABLE as error:
        raise _corrupt(data, partition, offset, str(error)) from error


class _Keyed(Struct, frozen=True, array_like=True):
    kind: int
    schema: int
    token: bytes
    at: int
    key: str


_decode_keyed = msgspec.msgpack.Decoder(_Keyed).decode


def key_of(data: bytes) -> bytes | None:
    """What the record is about, for logs with keys: the command's id, else an instance's or a definition's name.

    None for bytes that are no record; here that is nobody's fault to tell.
    """
    try:
        return _decode_keyed(data).key.encode()
    except _UNREADABLE:
        return None


def _corrupt(data: bytes, partition: int, offset: int, fault: str) -> CorruptLog:
    """The clearest thing to say about bytes that are no record, the most telling fact first."""
    where = f"the log cannot be read at position {position(partition, offset)} (partition {partition}, offset {offset})"
    kind, schema = _first_two(data)
    if kind is None:
        return CorruptLog(f"{where}: kind unknown, {len(data)} bytes that are no record array ({fault})")
    if kind not in KINDS:
        known = ", ".join(f"{number} {type.__name__}" for number, type in sorted(KINDS.items()))
        return CorruptLog(
            f"{where}: the record's kind {kind} is unknown to this version, which knows {known}; "
            "it was probably written by a newer version: start that one"
        )
    name = f"the record of kind {kind} ({KINDS[kind].__name__})"
    if schema is not None and schema > SCHEMA:
        return CorruptLog(
            f"{where}: {name} has schema version {schema}, this version reads up to {SCHEMA}; "
            "it was written by a newer version: start that one"
        )
    return CorruptLog(f"{where}: {name} is damaged: {fault}")


def _first_two(data: bytes) -> tuple[int | None, int | None]:
    """Kind and schema as far as they can be made out, however damaged the rest is."""
    try:
        array: Any = msgspec.msgpack.decode(data)
    except _UNREADABLE:
        # The first byte of a short array and two small numbers are all that every record written so far begins with.
        array = list(data[1:3]) if data and 0x90 <= data[0] <= 0x9F and max(data[1:3], default=0x80) < 0x80 else None
    numbers = [number if type(number) is int else None for number in array[:2]] if isinstance(array, list) else []
    kind, schema = [*numbers, None, None][:2]
    return kind, schema
