"""Records to bytes and back: the format of the log.

A record is a msgpack array ``[kind, schema, token, at, …]`` (`model.records`).  Encoding and decoding are one msgspec
call each; everything else here is about saying clearly what is wrong with bytes that are no record.  Reading never
skips: a kind or a schema version that this program does not know may carry a decision.  What cannot be read becomes a
`Damaged` with as much of its beginning as is whole; who may go on behind it is decided elsewhere
(`ownership.validity`).

What may change without a new schema version: nothing.  What a new version may do: append fields with defaults (so old,
shorter arrays stay readable), or add a kind.  Extra elements behind the fields that we know are tolerated only under a
version that we know.  Whatever a new version does, an ownership begins with a record of kind 0, and the first three
fields of every record stay what they are: an older version must be able to tell what counts.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import Struct

from coordinator.errors import InvalidPayload
from coordinator.model.damaged import COMMAND_KINDS, SUBMITTED, Damaged
from coordinator.model.ids import CommandId, command_id
from coordinator.model.moments import AT_MAX
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


def read(data: bytes, *, partition: int, offset: int) -> Record | Damaged:
    """The record in ``data``, or what can be made out of bytes that are none; never raises."""
    try:
        record: Record = _decode_record(data)
    except _UNREADABLE as error:
        return _damaged(data, partition, offset, str(error))
    if record.schema != SCHEMA:
        return _damaged(data, partition, offset, f"schema version {record.schema} was never written")
    if not 0 <= record.at <= AT_MAX:
        return _damaged(data, partition, offset, f"its time is {record.at}")
    return record


def decode(data: bytes, *, partition: int, offset: int) -> Record:
    """The record in ``data``; raises CorruptLog that names partition, offset and kind."""
    record = read(data, partition=partition, offset=offset)
    if type(record) is Damaged:
        raise record.error()
    return record  # type: ignore[return-value]  # mypy does not narrow a union by `type() is`


def stored(record: Record | Damaged) -> bytes:
    """A record as the log has it: what `read` takes."""
    return record.data if type(record) is Damaged else encode(record)


def header(data: bytes, *, partition: int, offset: int) -> Header:
    """Kind, schema and token alone, at a quarter of the cost and for kinds that we do not know; raises CorruptLog."""
    try:
        return _decode_header(data)
    except _UNREADABLE as error:
        raise _damaged(data, partition, offset, str(error)).error() from error


def kind_of(data: bytes) -> int | None:
    """The kind alone, for who looks for records of some kinds only; None for bytes that are no record."""
    try:
        return _decode_header(data).kind
    except _UNREADABLE:
        return None


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


# ---------------------------------------------------------------- what is no record


def _damaged(data: bytes, partition: int, offset: int, fault: str) -> Damaged:
    """The clearest thing to say about bytes that are no record, the most telling fact first."""
    kind, schema, token, at, id, type = _beginning(data)
    if kind is None:
        reason = f"kind unknown, {len(data)} bytes that are no record array ({fault})"
    elif kind not in KINDS:
        known = ", ".join(f"{number} {each.__name__}" for number, each in sorted(KINDS.items()))
        reason = (
            f"the record's kind {kind} is unknown to this version, which knows {known}; "
            "it was probably written by a newer version: start that one"
        )
    elif schema is not None and schema > SCHEMA:
        reason = (
            f"the record of kind {kind} ({KINDS[kind].__name__}) has schema version {schema}, this version reads up to "
            f"{SCHEMA}; it was written by a newer version: start that one"
        )
    else:
        reason = f"the record of kind {kind} ({KINDS[kind].__name__}) is damaged: {fault}"
    owner = _command_id(id) if kind in COMMAND_KINDS and at is not None else None
    at = at if at is not None and 0 <= at <= AT_MAX else 0
    type = type if kind == SUBMITTED and owner else None
    return Damaged(partition, offset, data, reason, kind, schema, token, at, owner, type)


def _command_id(text: str | None) -> CommandId | None:
    """None too for what no client could have chosen: then it is not the id that was written."""
    try:
        return None if text is None else command_id(text)
    except InvalidPayload:
        return None


def _beginning(data: bytes) -> list[Any]:
    """Kind, schema, token, time, id and type as far as they can be made out, however damaged the rest is.

    msgspec reads the whole or nothing; of a record that was cut short the beginning is what matters.
    """
    found: list[Any] = []
    left, at = _elements(data)
    for wanted in (int, int, bytes, int, str, str):
        value, at = _scalar(data, at) if left > len(found) else (None, at)
        if type(value) is not wanted:
            break
        found.append(value)
    return found + [None] * (6 - len(found))


def _elements(data: bytes) -> tuple[int, int]:
    """How many elements the array has that ``data`` begins with, and where they begin; 0 for what is no such array."""
    if data[:1] and 0x90 <= data[0] <= 0x9F:
        return data[0] & 0x0F, 1
    if data[:1] == b"\xdc" and len(data) >= 3:
        return int.from_bytes(data[1:3], "big"), 3
    return 0, 0  # 65536 fields: no version of this program will get there


_SIGNED: Final = {0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}
_UNSIGNED: Final = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}
_BINARY: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4}
_TEXT: Final = {0xD9: 1, 0xDA: 2, 0xDB: 4}


def _scalar(data: bytes, at: int) -> tuple[int | bytes | str | None, int]:
    """The msgpack number, bytes or text at ``at``, and where the next value begins; None for anything else, and for
    what is not whole."""
    if at >= len(data):
        return None, at
    first, at = data[at], at + 1
    if first <= 0x7F or first >= 0xE0:
        return first if first <= 0x7F else first - 0x100, at
    if (size := _SIGNED.get(first) or _UNSIGNED.get(first)) is not None:
        number = data[at : at + size]
        value = int.from_bytes(number, "big", signed=first in _SIGNED)
        return (value if len(number) == size else None), at + size
    if 0xA0 <= first <= 0xBF:
        length = first & 0x1F
    elif (size := _BINARY.get(first) or _TEXT.get(first)) is not None:
        length = int.from_bytes(data[at : at + size], "big")
        at += size
    else:
        return None, at
    content = data[at : at + length]
    if len(content) < length:
        return None, at
    if first in _BINARY:
        return content, at + length
    try:
        return content.decode(), at + length
    except UnicodeDecodeError:
        return None, at
