"""The client's half of the TCP protocol's format (proto/tcp.md): frames out, a stream of frames in.  No I/O."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta, Struct

from coordinator_client.errors import ConnectionLost, CoordinatorError, error_of

MAGIC = "coordinator"
VERSION = 1
FRAME_BYTES_MAX = 64 << 20  # the longest answer that this client reads
Seq = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class Limits(Struct, frozen=True, omit_defaults=True):
    """Options of a Hello: from the server its limits, from the client the longest frame that it reads."""

    token: str | None = None
    instance: str | None = None
    group: str | None = None
    frame_bytes_max: int | None = None
    in_flight_max: int | None = None
    idle_timeout_ms: int | None = None
    ping_interval_ms: int | None = None
    dedupe_horizon_ms: int | None = None


class Hello(Struct, frozen=True, array_like=True, tag_field="type", tag=0):
    seq: Seq
    magic: str
    version_min: int
    version_max: int
    name: str = ""
    options: Limits = Limits()


class Submit(Struct, frozen=True, array_like=True, tag_field="type", tag=1):
    seq: Seq
    want: str
    deadline_ms: int | None
    submission: dict[str, Any]
    meta: dict[str, Any] = {}


class Request(Struct, frozen=True, array_like=True, tag_field="type", tag=2):
    seq: Seq
    operation: str
    deadline_ms: int | None = None
    params: dict[str, Any] = {}
    meta: dict[str, Any] = {}


class Forget(Struct, frozen=True, array_like=True, tag_field="type", tag=3):
    seq: Seq


class Accepted(Struct, frozen=True, array_like=True, tag_field="type", tag=4):
    seq: Seq
    id: str
    position: str
    attached: bool
    view: dict[str, Any] | None = None
    state: str = "running"


class Step(Struct, frozen=True, array_like=True, tag_field="type", tag=5):
    seq: Seq
    id: str
    position: str
    state: str
    record: dict[str, Any] | None = None


class State(Struct, frozen=True, array_like=True, tag_field="type", tag=6):
    seq: Seq
    id: str
    position: str
    state: str


class Final(Struct, frozen=True, array_like=True, tag_field="type", tag=7):
    seq: Seq
    id: str
    position: str
    view: dict[str, Any] | None


class Response(Struct, frozen=True, array_like=True, tag_field="type", tag=8):
    seq: Seq
    value: Any
    more: bool = False


class Error(Struct, frozen=True, array_like=True, tag_field="type", tag=10):
    seq: Seq
    code: str
    title: str = ""
    detail: str = ""
    retryable: bool = False
    retry_after_ms: int | None = None
    extra: dict[str, Any] = {}

    def exception(self) -> CoordinatorError:
        return error_of(self.code, self.title, self.detail, self.retryable, self.retry_after_ms, self.extra)


class Ping(Struct, frozen=True, array_like=True, tag_field="type", tag=11):
    seq: Seq


class Pong(Struct, frozen=True, array_like=True, tag_field="type", tag=12):
    seq: Seq


class GoAway(Struct, frozen=True, array_like=True, tag_field="type", tag=13):
    seq: Seq
    detail: str = ""
    grace_ms: int | None = None


ClientFrame: TypeAlias = Hello | Submit | Request | Forget | Ping | Pong
ServerFrame: TypeAlias = Hello | Accepted | Step | State | Final | Response | Error | Ping | Pong | GoAway

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Hello | Accepted | Step | State | Final | Response | Error | Ping | Pong | GoAway)
KNOWN = {0, 4, 5, 6, 7, 8, 10, 11, 12, 13}


def encode(frame: ClientFrame) -> bytes:
    """One frame with its length."""
    body = _encoder.encode(frame)
    return len(body).to_bytes(4, "big") + body


class Splitter:
    """Cuts a stream into frames.  Raises ConnectionLost on bytes that no coordinator sends."""

    def __init__(self, limit: int = FRAME_BYTES_MAX) -> None:
        self._limit = limit
        self._rest = bytearray()
        self._needed = 4

    def feed(self, data: bytes) -> list[ServerFrame]:
        """The frames that are complete now; frames of types that this version does not know are left out."""
        frames: list[ServerFrame] = []
        if self._rest:
            self._rest += data
            if len(self._rest) < self._needed:
                return frames
            view = memoryview(self._rest)
            self._rest = bytearray()
        else:
            view = memoryview(data)
        at = 0
        while len(view) - at >= 4:
            length = int.from_bytes(view[at : at + 4], "big")
            if length > self._limit:
                raise ConnectionLost(f"the server sent a frame of {length} bytes: is this the coordinator's TCP port?")
            if len(view) - at - 4 < length:
                break
            frame = _read(view[at + 4 : at + 4 + length])
            if frame is not None:
                frames.append(frame)
            at += 4 + length
        if at < len(view):
            self._rest = bytearray(view[at:])
            whole = 4 if len(self._rest) < 4 else 4 + int.from_bytes(self._rest[:4], "big")
            self._needed = whole
        return frames


def _read(body: memoryview) -> ServerFrame | None:
    try:
        frame: ServerFrame = _decoder.decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError) as why:
        if _is_unknown(body):
            return None
        raise ConnectionLost(f"the server sent a frame that cannot be read: {why}") from None
    return frame


def _is_unknown(body: memoryview) -> bool:
    try:
        value = msgspec.msgpack.decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return False
    return isinstance(value, list) and len(value) > 1 and isinstance(value[0], int) and value[0] not in KNOWN
