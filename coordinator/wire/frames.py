"""The frames of the TCP protocol (proto/tcp.md): what each looks like, how it becomes bytes and back.

A frame is a 4-byte big-endian length and that many bytes of msgpack: an array ``[type, seq, …]``.  Each class below is
one type; its fields are the array's elements in order, so the classes are the format.  Elements may be added at the end
in later versions: a reader ignores those it does not know, and those missing take their default.

Decoding is in two steps, because an honest client with one wrong field must not lose its connection.  The fast step
decodes frame and submission in one go.  Only where that fails, `read` looks at the first bytes by hand (`peek`): when
they hold a usable sequence id and the rest is msgpack, the fault is that frame's alone (FrameFault); otherwise it is
the connection's (Malformed), since whoever sends it does not speak this protocol.

JSON values that clients chose (payloads, definitions, inputs) are checked here too, since msgpack knows more than JSON
does: bytes, timestamps, keys that are no strings, NaN.  They would pass this border and fail at the next one.
"""

from __future__ import annotations

import math
import re
import struct
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta, Raw, Struct, field

from coordinator.errors import CoordinatorError, InvalidPayload, Malformed, TooLarge
from coordinator.model.command import CommandView, Submission

MAGIC = "coordinator"
VERSION_MIN = 1
VERSION_MAX = 1
PREFIX = struct.Struct(">I")
SEQ_MAX = 2**63 - 1
HELLO_BYTES_MAX = 4096  # below 2^16, so a stream of this protocol always begins with two zero bytes
DEPTH_MAX = 255  # levels of arrays and objects in a JSON value; HTTP allows 256 with the submission itself

Seq = Annotated[int, Meta(ge=0, le=SEQ_MAX)]
OpenSeq = Annotated[int, Meta(ge=1, le=SEQ_MAX)]
Millis = Annotated[int, Meta(ge=0, le=SEQ_MAX)]
Want = Literal["accepted", "final", "events"]


# ---------------------------------------------------------------------------------------------------- both directions


class HelloOptions(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The open end of Hello: members that a side does not know are ignored.

    From the client: ``token`` (kept for authentication), ``frame_bytes_max`` (the longest frame it reads), ``trace``.
    From another instance that acts as a client: ``peer``, which is its instance id, and its ``group``.
    From the server: its ``instance`` and ``group``, the limits that it holds the client to, and for how long after its
    end a command's id is surely known (``dedupe_horizon_ms``).
    """

    token: str | None = None
    trace: dict[str, str] | None = None
    instance: str | None = None
    group: str | None = None
    frame_bytes_max: int | None = None
    in_flight_max: int | None = None
    idle_timeout_ms: int | None = None
    ping_interval_ms: int | None = None
    dedupe_horizon_ms: int | None = None
    peer: str | None = None


class Hello(Struct, frozen=True, array_like=True, tag_field="type", tag=0):
    """The first frame of each side: the client offers a range of versions, the server names the one it chose, twice."""

    seq: Seq
    magic: str
    version_min: int
    version_max: int
    name: str = ""
    options: HelloOptions = HelloOptions()


class Ping(Struct, frozen=True, array_like=True, tag_field="type", tag=11):
    """Are you there?  Either side, any time; ``seq`` is any number and comes back in the Pong."""

    seq: Seq


class Pong(Struct, frozen=True, array_like=True, tag_field="type", tag=12):
    """Yes."""

    seq: Seq


# ---------------------------------------------------------------------------------------------------- from the client


class Submit(Struct, frozen=True, array_like=True, tag_field="type", tag=1):
    """Run a command.  ``deadline_ms``: how long the caller waits for what it wants; the command itself runs on."""

    seq: OpenSeq
    want: Want
    deadline_ms: Millis | None
    submission: Submission
    meta: dict[str, Any] = {}


class Request(Struct, frozen=True, array_like=True, tag_field="type", tag=2):
    """Anything else: ``operation`` is a key of `PARAMS`, ``params`` its map, decoded when the operation is known."""

    seq: OpenSeq
    operation: str
    deadline_ms: Millis | None = None
    params: Raw = Raw(b"\x80")
    meta: dict[str, Any] = {}


class Forget(Struct, frozen=True, array_like=True, tag_field="type", tag=3):
    """The client waits no more for ``seq``: nothing further is sent for it; the command runs on."""

    seq: OpenSeq


# ---------------------------------------------------------------------------------------------------- from the server


class Accepted(Struct, frozen=True, array_like=True, tag_field="type", tag=4):
    """The command is durable.  ``view`` comes where this is the last frame for ``seq`` (want = accepted), ``state`` is
    its state then."""

    seq: Seq
    id: str
    position: str
    attached: bool
    view: CommandView | None = None
    state: str = ""


class Step(Struct, frozen=True, array_like=True, tag_field="type", tag=5):
    """A step's outcome, failure or undo is durable; ``record`` as in the command's history."""

    seq: Seq
    id: str
    position: str
    state: str
    record: dict[str, Any] | None


class StateChanged(Struct, frozen=True, array_like=True, tag_field="type", tag=6):
    """The shown state changed: delayed, blocked, paused, running …"""

    seq: Seq
    id: str
    position: str
    state: str


class Final(Struct, frozen=True, array_like=True, tag_field="type", tag=7):
    """The command's end; the last frame for ``seq``."""

    seq: Seq
    id: str
    position: str
    view: CommandView | None


class Response(Struct, frozen=True, array_like=True, tag_field="type", tag=8):
    """The answer to a Request; ``more``: further ones follow (a stream of lists; the last one is empty)."""

    seq: Seq
    value: Any
    more: bool = False


class Error(Struct, frozen=True, array_like=True, tag_field="type", tag=10):
    """``seq`` failed and is closed; ``seq`` 0: the connection failed and is closed after this frame."""

    seq: Seq
    code: str
    title: str
    detail: str
    retryable: bool
    retry_after_ms: int | None = None
    extra: dict[str, Any] = {}


class GoAway(Struct, frozen=True, array_like=True, tag_field="type", tag=13):
    """The server drains: submit nothing more here; what is open is still answered, for ``grace_ms`` if known."""

    seq: Seq
    detail: str
    grace_ms: int | None = None


ClientFrame: TypeAlias = Hello | Submit | Request | Forget | Ping | Pong
ServerFrame: TypeAlias = Hello | Accepted | Step | StateChanged | Final | Response | Error | Ping | Pong | GoAway
Frame: TypeAlias = ClientFrame | ServerFrame


def _by_number(*kinds: type[Struct]) -> dict[int, type[Struct]]:
    return {kind.__struct_config__.tag: kind for kind in kinds}  # type: ignore[misc]


CLIENT_TYPES: dict[int, type[Struct]] = _by_number(Hello, Submit, Request, Forget, Ping, Pong)
SERVER_TYPES: dict[int, type[Struct]] = _by_number(
    Hello, Accepted, Step, StateChanged, Final, Response, Error, Ping, Pong, GoAway
)
"""Frame classes by number.  9, 14 and 15 are not used: what instances forward to each other are ordinary frames."""


# ------------------------------------------------------------------------------------------ parameters of the Requests


class _Params(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Nothing(_Params, frozen=True):
    """Operations without parameters."""


class OfCommand(_Params, frozen=True):
    """history, explain, diagram."""

    id: str


class GetParams(_Params, frozen=True):
    id: str
    wait_ms: Millis = 0


class ListParams(_Params, frozen=True):
    state: str | None = None
    type: str | None = None
    attributes: dict[str, str] = {}
    limit: Annotated[int, Meta(ge=1, le=1000)] = 50
    cursor: str | None = None


class ControlParams(_Params, frozen=True):
    id: str
    operation: Literal["pause", "resume", "cancel", "abort", "retry"]
    reason: str = ""
    by: str = ""


class RequeueParams(_Params, frozen=True):
    """``input`` present, even as null, replaces the request's body."""

    id: str
    step: str
    input: Any = msgspec.UNSET
    reason: str = ""
    by: str = ""


class ResolveParams(_Params, frozen=True):
    """An undo that failed for good has been done by hand."""

    id: str
    step: str
    reason: str = ""
    by: str = ""


class ProvideParams(_Params, frozen=True):
    """``signal_id``, chosen by the client, makes a repeat harmless."""

    id: str
    name: str
    value: Any
    signal_id: str = ""
    by: str = ""


class CallbackParams(_Params, frozen=True):
    """What came to a callback URL at another instance; ``token`` is the URL's last part."""

    id: str
    name: str
    token: str
    value: Any


class DecideParams(_Params, frozen=True):
    """``roles`` are those of the person who decides."""

    id: str
    step: str
    approve: bool
    by: str = ""
    comment: str = ""
    roles: list[str] = []


class WatchParams(_Params, frozen=True):
    id: str
    after: str | None = None


class OutcomesParams(_Params, frozen=True):
    """``partitions``: of these only."""

    service: str
    start: str | None = field(default=None, name="from")
    follow: bool = False
    partitions: list[int] | None = None


class TakeParams(_Params, frozen=True):
    """``epoch``: the one under which the asker held the partition; it has let go of it."""

    partition: Annotated[int, Meta(ge=0)]
    epoch: Annotated[int, Meta(ge=0)]


class BreakerParams(_Params, frozen=True):
    service: str
    state: Literal["open", "closed", "auto"]


class PutDefinitionParams(_Params, frozen=True):
    """``partitions``: recorded in these only; an instance that forwards asks each partition's owner so."""

    name: str
    version: Annotated[int, Meta(ge=1)]
    content: dict[str, Any]
    by: str = ""
    partitions: list[int] | None = None


class GetDefinitionParams(_Params, frozen=True):
    name: str
    version: Annotated[int, Meta(ge=1)] | None = None


class DrawDefinitionParams(_Params, frozen=True):
    name: str
    version: Annotated[int, Meta(ge=1)]


class PutScheduleParams(_Params, frozen=True):
    name: str
    content: dict[str, Any]
    by: str = ""


class OfSchedule(_Params, frozen=True):
    name: str


class ControlScheduleParams(_Params, frozen=True):
    name: str
    action: Literal["pause", "resume", "delete"]
    reason: str = ""
    by: str = ""


PARAMS: dict[str, type[_Params]] = {
    "get": GetParams,
    "list": ListParams,
    "history": OfCommand,
    "explain": OfCommand,
    "diagram": OfCommand,
    "watch": WatchParams,
    "control": ControlParams,
    "requeue": RequeueParams,
    "resolve": ResolveParams,
    "provide": ProvideParams,
    "decide": DecideParams,
    "decisions": Nothing,
    "outcomes": OutcomesParams,
    "dead_letters": Nothing,
    "quarantine": Nothing,
    "log": Nothing,
    "services": Nothing,
    "set_breaker": BreakerParams,
    "cluster": Nothing,
    "ready": Nothing,
    "put_definition": PutDefinitionParams,
    "get_definition": GetDefinitionParams,
    "definitions": Nothing,
    "definition_diagram": DrawDefinitionParams,
    "put_schedule": PutScheduleParams,
    "schedule": OfSchedule,
    "schedules": Nothing,
    "control_schedule": ControlScheduleParams,
}
"""Every operation of a Request and its parameters."""

PEER_PARAMS: dict[str, type[_Params]] = {"follow": Nothing, "take": TakeParams, "callback": CallbackParams}
"""Operations that only another instance of the group may ask for, besides all others."""


class Following(Struct, frozen=True):
    """A value of ``follow``: what an instance owns (partition → epoch) and whether it is about to leave.

    Keys of maps are strings on the wire; read it with `following`.
    """

    owned: dict[int, int]
    leaving: bool = False


def following(value: Any) -> Following:
    """The value of a ``follow`` Response; raises Malformed."""
    try:
        return msgspec.convert(value, Following, strict=False)
    except msgspec.ValidationError as why:
        raise Malformed(f"unreadable answer to follow: {why}") from None


# ------------------------------------------------------------------------------------------------------------ to bytes

_encoder = msgspec.msgpack.Encoder()


def write(frame: Frame, out: bytearray) -> int:
    """Appends ``frame`` with its length to ``out``; returns the length of the body.

    On an error (a value that msgpack cannot hold) ``out`` is as it was.  Encoding into the connection's own buffer
    saves a copy a frame and makes one write of everything that a turn of the event loop produced.
    """
    start = len(out)
    out += b"\0\0\0\0"
    try:
        _encoder.encode_into(frame, out, start + 4)
    except BaseException:
        del out[start:]
        raise
    length = len(out) - start - 4
    PREFIX.pack_into(out, start, length)
    return length


def encode(frame: Frame) -> bytes:
    """One frame with its length."""
    out = bytearray()
    write(frame, out)
    return bytes(out)


def error_frame(seq: int, error: CoordinatorError) -> Error:
    """The Error frame that tells ``error``."""
    return Error(seq, error.code, error.title, error.detail, error.retryable, error.retry_after_ms, error.extra)


# ---------------------------------------------------------------------------------------------------------- from bytes


class FrameFault(Exception):
    """One frame is wrong, and only that: ``error`` is its answer, under its own ``seq``."""

    def __init__(self, seq: int, error: CoordinatorError) -> None:
        super().__init__(str(error))
        self.seq = seq
        self.error = error


_client_decoder = msgspec.msgpack.Decoder(Hello | Submit | Request | Forget | Ping | Pong)
_server_decoder = msgspec.msgpack.Decoder(
    Hello | Accepted | Step | StateChanged | Final | Response | Error | Ping | Pong | GoAway
)
_params_decoders = {name: msgspec.msgpack.Decoder(params) for name, params in (PARAMS | PEER_PARAMS).items()}

# What a decoder may raise on bytes of strangers.  RecursionError: nesting deeper than the interpreter's stack allows.
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError, OverflowError)


def read(body: bytes | bytearray | memoryview) -> ClientFrame:
    """A frame from a client.  Raises FrameFault (that frame is answered, the connection lives) or Malformed."""
    try:
        frame: ClientFrame = _client_decoder.decode(body)
    except _UNREADABLE as why:
        raise _blame(body, why) from None
    if type(frame) is Submit:
        sent = frame.submission
        fault = json_fault(sent.payload, "$.payload") or json_fault(sent.attributes, "$.attributes")
        if sent.definition is not None:
            fault = fault or json_fault(sent.definition, "$.definition")
        if fault:
            raise FrameFault(frame.seq, InvalidPayload.at(*fault))
    return frame


def read_from_server(body: bytes | bytearray | memoryview) -> ServerFrame:
    """A frame from a server; raises Malformed."""
    try:
        frame: ServerFrame = _server_decoder.decode(body)
    except _UNREADABLE as why:
        raise Malformed(f"unreadable frame: {why}") from None
    return frame


def read_params(request: Request, peer: bool = False) -> Any:
    """The parameters of a Request, as the class that `PARAMS` names; raises Malformed or InvalidPayload.

    ``peer``: who asks is another instance of the group, and may ask for what `PEER_PARAMS` names too.
    """
    decoder = _params_decoders.get(request.operation)
    if request.operation in PEER_PARAMS and not peer:
        raise Malformed(f"{request.operation!r} is for the instances of the group among themselves")
    if decoder is None:
        raise Malformed(f"unknown operation {request.operation!r:.80}; known are {', '.join(sorted(PARAMS))}")
    try:
        params = decoder.decode(request.params)
    except RecursionError:
        raise InvalidPayload.at("$", _TOO_DEEP) from None
    except msgspec.ValidationError as why:
        raise _invalid(str(why), ()) from None
    except _UNREADABLE as why:
        raise Malformed(f"unreadable parameters: {why}") from None
    match params:
        case RequeueParams(input=value) if value is not msgspec.UNSET:
            fault = json_fault(value, "$.input")
        case ProvideParams(value=value) | CallbackParams(value=value):
            fault = json_fault(value, "$.value")
        case PutDefinitionParams(content=value) | PutScheduleParams(content=value):
            fault = json_fault(value, "$.content")
        case _:
            fault = None
    if fault:
        raise InvalidPayload.at(*fault)
    return params


def peek(body: bytes | bytearray | memoryview) -> tuple[int, int] | None:
    """Type and sequence id from a frame's first bytes, or None; reads no further, whatever follows."""
    view = memoryview(body)
    if len(view) < 3:
        return None
    lead = view[0]
    if 0x92 <= lead <= 0x9F:
        at = 1
    elif lead == 0xDC:
        at = 3
    elif lead == 0xDD:
        at = 5
    else:
        return None
    kind, at = _peek_int(view, at)
    seq, at = _peek_int(view, at)
    return (kind, seq) if kind >= 0 and seq >= 0 else None


_INT_BYTES = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}


def _peek_int(view: memoryview, at: int) -> tuple[int, int]:
    """An unsigned msgpack integer and the place after it; -1 where there is none."""
    if not 0 <= at < len(view):
        return -1, -1
    lead = view[at]
    if lead < 0x80:
        return lead, at + 1
    end = at + 1 + _INT_BYTES.get(lead, len(view))
    if end > len(view):
        return -1, -1
    return int.from_bytes(view[at + 1 : end], "big"), end


_TOO_DEEP = f"nested more than {DEPTH_MAX} levels deep"
_OPENING = (Submit, Request)


def _blame(body: bytes | bytearray | memoryview, why: Exception) -> Exception:
    """Whose fault an unreadable frame is: its own (FrameFault) or the connection's (Malformed)."""
    head = peek(body)
    if head is None:
        return Malformed("a frame is a msgpack array [type, seq, …] with two unsigned integers in front")
    kind, seq = head
    usable = 1 <= seq <= SEQ_MAX
    if kind not in CLIENT_TYPES:
        unknown = Malformed(f"unknown frame type {kind}; known are {sorted(CLIENT_TYPES)}")
        return FrameFault(seq, unknown) if usable and _is_msgpack(body) else unknown
    name = CLIENT_TYPES[kind].__name__
    if usable and CLIENT_TYPES[kind] in _OPENING:
        if isinstance(why, RecursionError):
            return FrameFault(seq, InvalidPayload.at("$.payload" if kind == 1 else "$", _TOO_DEEP))
        if isinstance(why, msgspec.ValidationError) and _is_msgpack(body):
            return FrameFault(seq, _invalid(str(why), CLIENT_TYPES[kind].__struct_fields__))
    return Malformed(f"unreadable {name} frame: {why}")


def _is_msgpack(body: bytes | bytearray | memoryview) -> bool:
    """Whether the bytes are msgpack at all (a validation error may have come before the garbage)."""
    try:
        msgspec.msgpack.decode(body)
    except _UNREADABLE as why:
        return isinstance(why, RecursionError)
    return True


_PATH = re.compile(r"^(?P<fault>.*?)(?: - at `(?P<path>[^`]*)`)?$", re.DOTALL)
_ELEMENT = re.compile(r"^\$\[(\d+)\]")


def _invalid(message: str, fields: tuple[str, ...]) -> InvalidPayload:
    """msgspec's message as an error with a path; an element of the frame is named after its field.

    The submission's own fields are told as in HTTP (``$.payload``), so that one client code reads both.
    """
    found = _PATH.match(message)
    assert found is not None
    path = found["path"] or "$"
    element = _ELEMENT.match(path)
    if element and 1 <= int(element[1]) <= len(fields):
        name = fields[int(element[1]) - 1]
        path = ("$" if name in ("submission", "params") else f"$.{name}") + path[element.end() :]
    unknown = re.search(r"unknown field `([^`]*)`", found["fault"])
    if unknown and not path.endswith(f".{unknown[1]}"):
        path = f"{path}.{unknown[1]}"
    return InvalidPayload.at(path, found["fault"])


# --------------------------------------------------------------------------------------------------------- JSON values

_SCALARS = frozenset({str, int, bool, type(None)})


def json_fault(value: Any, path: str, depth: int = DEPTH_MAX) -> tuple[str, str] | None:
    """Where and why ``value`` is no JSON value: ``(path, fault)``; None if it is one.

    Most payloads are a flat object of scalars: that costs one set look-up a member.
    """
    kind = type(value)
    if kind in _SCALARS:
        return None
    if kind is float:
        return None if math.isfinite(value) else (path, f"{value} is not a JSON number")
    if depth == 0 and kind in (dict, list):
        return path, _TOO_DEEP
    if kind is dict:
        for key, member in value.items():
            if type(key) is not str:
                return path, f"keys of an object are strings, not {key!r:.40}"
            if type(member) not in _SCALARS and (fault := json_fault(member, f"{path}.{key}", depth - 1)):
                return fault
        return None
    if kind is list:
        for index, member in enumerate(value):
            if type(member) not in _SCALARS and (fault := json_fault(member, f"{path}[{index}]", depth - 1)):
                return fault
        return None
    return path, f"{_MSGPACK_NAMES.get(kind.__name__, kind.__name__)} is not a JSON value"


_MSGPACK_NAMES = {"bytes": "binary", "datetime": "a timestamp", "Ext": "an extension"}


def check_length(length: int, limit: int) -> None:
    """Refuses a frame by its length prefix alone, before any of its body is kept."""
    if length > limit:
        raise TooLarge(f"a frame of {length} bytes; the limit is {limit}", limit=limit)
    if length < 3:
        raise Malformed(f"a frame of {length} bytes; the shortest has 3")
