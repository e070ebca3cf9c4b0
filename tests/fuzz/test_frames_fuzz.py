"""Bytes of strangers against the frame reader and the connection: only documented errors come out, memory is flat."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.errors import CoordinatorError, InvalidPayload, Malformed, TooLarge
from coordinator.model.command import Submission
from coordinator.wire import frames
from coordinator.wire.connection import Connection, Identity, TcpSettings
from coordinator.wire.frames import SEQ_MAX, FrameFault, Hello, Ping, Request, Submit, encode

LIMITS = TcpSettings(frame_bytes_max=8192, in_flight_max=16)
HELLO = encode(Hello(0, "coordinator", 1, 1, "fuzz"))

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8)
    | st.builds(msgspec.msgpack.Ext, st.integers(-2, 127), st.binary(max_size=12))
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6) | st.integers(-9, 9), inner, max_size=4)
    ),
    max_leaves=12,
)
integers = st.integers(-(2**63), 2**64 - 1)
finite = st.floats(allow_nan=False, allow_infinity=False)
json_scalars = st.none() | st.booleans() | integers | finite | st.text()
json_values = st.recursive(
    json_scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
almost_frames = st.lists(values, max_size=7) | st.tuples(
    st.integers(0, 15), st.integers(-1, SEQ_MAX), values, values, values
)
members = st.sampled_from(
    sorted({field for params in (frames.PARAMS | frames.PEER_PARAMS).values() for field in params.__struct_fields__})
)


def encoded(value: Any) -> bytes:
    return msgspec.msgpack.encode(value)


@given(st.binary(max_size=200) | almost_frames.map(encoded))
@settings(max_examples=200, deadline=None)
def test_only_documented_errors_come_out_of_the_reader(body: bytes) -> None:
    """Any bytes are a frame, a fault of one frame with a usable sequence id, or Malformed."""
    try:
        frame = frames.read(body)
        if isinstance(frame, Request):
            with contextlib.suppress(CoordinatorError):
                frames.read_params(frame)
    except (FrameFault, Malformed) as raised:
        fault = raised
    else:
        return
    if isinstance(fault, FrameFault):
        assert 1 <= fault.seq <= SEQ_MAX
        assert fault.error.code in ("malformed", "invalid_payload")


@given(st.sampled_from(sorted(frames.PARAMS | frames.PEER_PARAMS)), values | st.dictionaries(members, values))
@settings(max_examples=200, deadline=None)
def test_only_documented_errors_come_out_of_the_parameters(operation: str, params: Any) -> None:
    """Whatever stands where parameters should, under every operation: they are read, or it is said what is wrong."""
    request = Request(1, operation, None, msgspec.Raw(encoded(params)))
    with contextlib.suppress(Malformed, InvalidPayload):
        frames.read_params(request, peer=True)


@given(json_values)
@settings(max_examples=100, deadline=None)
def test_every_json_value_passes_as_data_unchanged(value: Any) -> None:
    """What a client provides, or a service calls back with, is what the command gets."""
    for operation, rest in (("provide", {"name": "otp"}), ("callback", {"name": "bank", "token": "1.x"})):
        request = Request(1, operation, None, msgspec.Raw(encoded({"id": "a", **rest, "value": value})))
        assert frames.read_params(request, peer=True).value == value


@given(json_values)
@settings(max_examples=200, deadline=None)
def test_every_json_value_passes_as_a_payload_unchanged(payload: Any) -> None:
    """What JSON can say arrives as it was sent."""
    sent = Submit(1, "final", None, Submission(type="T", payload=payload))
    assert frames.read(encode(sent)[4:]) == sent


@given(st.lists(st.binary(max_size=64) | almost_frames.map(encoded), max_size=8), st.lists(st.integers(1, 40)))
@settings(max_examples=100, deadline=None)
def test_a_connection_survives_or_ends_but_never_raises(bodies: list[bytes], cuts: list[int]) -> None:
    """Framed garbage in any pieces: the input buffer stays within one frame and at most one fatal Error is sent."""
    stream = HELLO + b"".join(len(body).to_bytes(4, "big") + body for body in bodies)
    connection = Connection(LIMITS, Identity(), 0)
    at = 0
    for cut in [*cuts, len(stream)]:
        connection.receive(stream[at : at + cut], at)
        at += cut
        connection.tick(at)
        assert len(connection._input) <= LIMITS.frame_bytes_max + 4
        assert connection.in_flight <= LIMITS.in_flight_max
    assert fatal_errors(bytes(connection.take())) == int(connection.closing)


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_noise_instead_of_hello_is_recognised_or_waited_for(noise: bytes) -> None:
    """Without a Hello nothing is ever handed to the program."""
    connection = Connection(LIMITS, Identity(), 0)
    assert connection.receive(noise, 0) == []
    assert connection.hello is None


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_any_length_is_judged_before_the_body_comes(length: int) -> None:
    """A length above the limit ends the connection at once; one within it waits for exactly that many bytes."""
    connection = Connection(LIMITS, Identity(), 0)
    connection.receive(HELLO, 0)
    connection.receive(length.to_bytes(4, "big"), 0)
    assert connection.closing == (length > LIMITS.frame_bytes_max or length < 3)
    if not connection.closing:
        connection.receive(encode(Ping(1))[4:][:length], 0)
        assert len(connection._input) <= length + 4
    else:
        with contextlib.suppress(Malformed, TooLarge):
            frames.check_length(length, LIMITS.frame_bytes_max)
            raise AssertionError("closed without a reason")


def fatal_errors(data: bytes) -> int:
    """Error frames with sequence id 0 in a server's output."""
    count = 0
    while data:
        length = int.from_bytes(data[:4], "big")
        frame = frames.read_from_server(data[4 : 4 + length])
        count += isinstance(frame, frames.Error) and frame.seq == 0
        data = data[4 + length :]
    return count
