"""JSON from strangers: bytes to typed values, or an error that says which place is wrong.

msgspec checks types while it parses, at 1 µs a small document, and stops at the first fault.  So the straight path is
one `Decoder.decode`; everything else here runs only for bodies that look dangerous or turned out wrong:

- *Depth.*  msgspec gives up near the interpreter's recursion limit, which depends on how deep the stack already is.
  What was accepted must be readable again by any later reader (replay, views, the services' bodies), so the limit is
  ours, fixed and far below: NESTING_MAX.
- *Whole numbers beyond 64 bits.*  msgspec reads them, msgpack cannot hold them.  They are refused here, with their
  path, rather than deep inside an append.
- *Where it broke.*  Bytes that are no JSON (a NaN, half a document, 1,000 brackets) have a place as well: the path of
  the value that was being read, found by a scan of the text before it.
- *All faults at once.*  After a type error the document is read again as plain values and compared field by field, so
  that a person mends five mistakes in one go.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator
from functools import cache
from itertools import accumulate, islice
from math import isfinite
from typing import Any, Final, TypeVar

import msgspec
from msgspec.structs import fields as struct_fields

from coordinator.errors import CoordinatorError, InvalidPayload, Malformed

NESTING_MAX: Final = 256
VALUE_NESTING_MAX: Final = NESTING_MAX - 1  # of a value that stands for itself, as of one that is a field of a request
INT_MIN: Final = -(1 << 63)
INT_MAX: Final = (1 << 64) - 1
FAULTS_MAX: Final = 50  # a hostile document has a million faults; a person reads the first few

T = TypeVar("T")

_DIGITS = bytes(0x30 if 0x30 <= byte <= 0x39 else 0x20 for byte in range(256))
_NINETEEN_DIGITS = b"0" * 19  # the shortest number that may pass 64 bits
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_OPENERS = bytes.maketrans(b"[{]}", b"\x01\x01\x00\x00")
_NO_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
_STEP = (-1, 1)
_lenient = msgspec.json.Decoder(float_hook=float)  # reads 1e400 as infinity, so that its place can be named
_AT = re.compile(r"(.*) - at `\$(.*)`", re.DOTALL)


def decode(decoder: msgspec.json.Decoder[T], body: bytes, root: str = "$", levels: int = NESTING_MAX) -> T:
    """The typed value of ``body``.

    Raises Malformed where the bytes are no JSON (or nest deeper than ``levels``), with the path of the value that
    broke; InvalidPayload with the path of every fault where they are, but of another shape.  ``root`` begins every
    path: ``$`` for a request's body, ``$.payload`` where the document is a field of something else.
    """
    try:
        value = decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _explained(decoder, body, root, error, levels) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _malformed(body, error, root, levels) from None
    _check_limits(body, root, levels)
    return value


def _check_limits(body: bytes, root: str, levels: int) -> None:
    """Refuses a well-formed document that nests too deep or holds a whole number beyond 64 bits.

    Both questions are first asked of the bytes at memory speed, in a way that may alarm falsely but never misses.
    """
    if len(body) > levels and body.count(b"[") + body.count(b"{") > levels and _depth(body) > levels:
        raise _too_deep(body, root, levels)
    if _NINETEEN_DIGITS not in body.translate(_DIGITS):
        return
    leaves = _walk(msgspec.json.decode(body), root)
    faults = ((path, fault) for path, value in leaves if (fault := _number_fault(value)) is not None)
    if found := list(islice(faults, FAULTS_MAX)):
        raise InvalidPayload.all(found)


def _number_fault(value: Any) -> str | None:
    if type(value) is int and not INT_MIN <= value <= INT_MAX:
        return f"a whole number has at most 64 bits ({INT_MIN} to {INT_MAX})"
    if type(value) is float and not isfinite(value):
        return "greater than any number that can be held"
    return None


def _depth(body: bytes) -> int:
    """How deep a well-formed document nests."""
    brackets = _STRING.sub(b"", body).translate(_OPENERS, _NO_BRACKETS)
    return max(accumulate(map(_STEP.__getitem__, brackets)), default=0)


def _malformed(body: bytes, error: Exception, root: str, levels: int) -> Malformed:
    if isinstance(error, RecursionError):
        return _too_deep(body, root, levels)
    at, fault = len(body), str(error)
    if not body.strip():
        at, fault = 0, "the body is empty; a JSON document is expected"
    elif isinstance(error, UnicodeDecodeError):
        at, fault = _first_not_utf_8(body), "the body is not valid UTF-8"
    elif fault == "Input data was truncated":
        fault = f"the JSON ends too early, after byte {len(body)}, or holds half a surrogate pair"
    elif match := _BYTE.search(fault):
        at = int(match[1])
    return _broken(path_at(body, at, root), fault)


def _first_not_utf_8(body: bytes) -> int:
    try:
        body.decode()
    except UnicodeDecodeError as error:
        return error.start
    return len(body)


def _too_deep(body: bytes, root: str, levels: int) -> Malformed:
    return _broken(path_at(body, len(body), root, levels), f"the JSON nests deeper than {levels} levels")


def _broken(path: str, fault: str) -> Malformed:
    return Malformed(f"{path}: {fault}", faults=[{"path": path, "fault": fault}])


# ---------------------------------------------------------------- where a text that is no JSON broke

SCANNED_BYTES_MAX: Final = 64 << 10  # how far is looked for the place: a megabyte of garbage earns no more of our time
PATH_LEVELS_MAX: Final = 8
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{},:]', re.DOTALL)
_BYTE = re.compile(r"\(byte (\d+)\)$")


def path_at(body: bytes, at: int, root: str = "$", levels_max: int = NESTING_MAX) -> str:
    """The path of the value that byte ``at`` belongs to, or its first levels; ``body`` need not be JSON.  Where it
    nests deeper than ``levels_max`` before that, of the value that does.

    Only ``root`` where that is further than SCANNED_BYTES_MAX from the beginning.
    """
    levels: list[str | int] = []  # where we are in each open object (its present key) and array (its present index)
    text, deepest = b"", False
    for token in _TOKEN.finditer(body, 0, min(at, SCANNED_BYTES_MAX)):
        match token[0]:
            case b"{":
                levels.append("")
            case b"[":
                levels.append(0)
            case b"}" | b"]":
                if levels:
                    levels.pop()
            case b":":
                if levels and isinstance(levels[-1], str):
                    levels[-1] = text.decode(errors="replace")
            case b",":
                if levels:
                    last = levels[-1]
                    levels[-1] = last + 1 if isinstance(last, int) else ""
            case string:
                text = string[1:-1]
        if deepest := len(levels) > levels_max:
            break
    if at > SCANNED_BYTES_MAX and not deepest:
        return root
    steps = [f"[{level}]" if isinstance(level, int) else f".{level}" for level in levels if level != ""]
    more = "…" if deepest or len(steps) > PATH_LEVELS_MAX else ""
    return root + "".join(steps[:PATH_LEVELS_MAX]) + more


# ---------------------------------------------------------------- the slow path: explaining


def _explained(
    decoder: msgspec.json.Decoder[Any], body: bytes, root: str, error: msgspec.ValidationError, levels: int
) -> CoordinatorError:
    """Every fault of a document that one fault is known of."""
    try:
        plain = _lenient.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as worse:
        return _malformed(body, worse, root, levels)
    if _depth(body) > levels:
        return _too_deep(body, root, levels)
    found = list(islice(_faults(decoder.type, plain, root), FAULTS_MAX))
    return InvalidPayload.all(found or [_located(error, root)])


def _faults(type_: Any, value: Any, path: str) -> Iterator[tuple[str, str]]:
    """The faults of a plain value against a type, struct fields and dict values one by one."""
    if isinstance(type_, type) and issubclass(type_, msgspec.Struct) and isinstance(value, dict):
        known = _field_types(type_)
        for key, item in value.items():
            if key in known:
                yield from _faults(known[key], item, f"{path}.{key}")
            else:
                yield f"{path}.{key}", f"unknown field; known are {', '.join(sorted(known))}"
        for field in struct_fields(type_):
            if field.required and field.encode_name not in value:
                yield f"{path}.{field.encode_name}", "required"
    elif typing.get_origin(type_) is dict and isinstance(value, dict):
        of = typing.get_args(type_)[1]
        for key, item in value.items():
            yield from _faults(of, item, f"{path}.{key}")
    else:
        try:
            msgspec.convert(value, type_)
        except msgspec.ValidationError as error:
            yield _located(error, path)
        else:
            for where, leaf in _walk(value, path):
                if (fault := _number_fault(leaf)) is not None:
                    yield where, fault


@cache
def _field_types(struct: type[msgspec.Struct]) -> dict[str, Any]:
    return {field.encode_name: field.type for field in struct_fields(struct)}


def _located(error: msgspec.ValidationError, root: str) -> tuple[str, str]:
    """msgspec's ``Expected `str`, got `int` - at `$.x` `` as (path below ``root``, fault)."""
    match = _AT.fullmatch(str(error))
    return (root + match[2], match[1]) if match else (root, str(error))


def _walk(document: Any, root: str) -> Iterator[tuple[str, Any]]:
    """Every leaf of a document with its path; by a stack of its own, since the caller's may be nearly used up."""
    pending: list[tuple[str, Any]] = [(root, document)]
    while pending:
        path, value = pending.pop()
        if isinstance(value, dict):
            pending.extend((f"{path}.{key}", item) for key, item in reversed(value.items()))
        elif isinstance(value, list):
            pending.extend((f"{path}[{index}]", item) for index, item in reversed(list(enumerate(value))))
        else:
            yield path, value
