"""The frame format against the vectors in proto/vectors, byte for byte."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from coordinator.errors import InvalidPayload, LimitReached, Malformed, tree
from coordinator.model.command import Submission
from coordinator.wire import frames
from coordinator.wire.frames import (
    CLIENT_TYPES,
    PARAMS,
    PEER_PARAMS,
    SERVER_TYPES,
    Following,
    FrameFault,
    Request,
    Response,
    Submit,
)

VECTORS = Path(__file__).parents[3] / "proto" / "vectors"
VALID = json.loads((VECTORS / "frames.json").read_text())["frames"]
INVALID = json.loads((VECTORS / "invalid.json").read_text())["frames"]
TYPES = {"client": CLIENT_TYPES, "server": SERVER_TYPES}
SINCE: dict[str, dict[str, Any]] = {"submission": {"delay": None}, "view": {"revision": 1}}
"""Members that were appended after the first vectors were written, and what stands for their absence."""


def unhex(text: str) -> bytes:
    """Bytes of a vector, where ``{91*3}`` stands for ``919191``."""
    return bytes.fromhex(re.sub(r"\{(\w\w)\*(\d+)\}", lambda found: found[1] * int(found[2]), text))


def read(sender: str, body: bytes) -> Any:
    return frames.read(body) if sender == "client" else frames.read_from_server(body)


def plain(value: Any) -> Any:
    """Structs as JSON-like values; raw msgpack decoded."""
    return msgspec.to_builtins(msgspec.msgpack.decode(value) if isinstance(value, msgspec.Raw) else value)


def named(items: list[dict[str, Any]]) -> Any:
    return pytest.mark.parametrize("vector", items, ids=[item["name"] for item in items])


@named(VALID)
def test_a_vector_is_what_it_says(vector: dict[str, Any]) -> None:
    """The bytes of a vector, length prefix included, are msgpack of its array."""
    data = unhex(vector["hex"])
    assert int.from_bytes(data[:4], "big") == len(data) - 4
    assert msgspec.msgpack.decode(data[4:]) == vector["array"]


@named(VALID)
def test_a_vector_decodes_to_its_fields(vector: dict[str, Any]) -> None:
    """Every frame is read as the fields that the vector names, defaults and unknown elements included."""
    frame = read(vector["from"], unhex(vector["hex"])[4:])
    assert type(frame) is TYPES[vector["from"]][vector["array"][0]]
    for name, expected in vector["fields"].items():
        found = plain(getattr(frame, name))
        expected = with_later_members(name, expected)
        if name in ("options", "view", "value"):  # members that are absent are at their default
            assert without_defaults(found) == without_defaults(expected)
        else:
            assert found == expected


def with_later_members(name: str, value: Any) -> Any:
    """A map of an earlier version as this version writes it: what came since stands at the end, at its default."""
    if name not in SINCE or value is None:
        return value
    return {**value, **{member: default for member, default in SINCE[name].items() if member not in value}}


def without_defaults(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_defaults(member) for key, member in value.items() if member is not None}
    return [without_defaults(item) for item in value] if isinstance(value, list) else value


@named([vector for vector in VALID if vector["canonical"]])
def test_a_canonical_vector_is_encoded_to_its_bytes(vector: dict[str, Any]) -> None:
    """What is read and written again is the same bytes; members that came since the vector was written follow it."""
    data = unhex(vector["hex"])
    names = ("type", *vector["fields"])
    array = [with_later_members(name, value) for name, value in zip(names, vector["array"], strict=True)]
    expected = data if array == vector["array"] else framed(msgspec.msgpack.encode(array))
    assert frames.encode(read(vector["from"], data[4:])) == expected


def framed(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


def test_every_frame_type_has_a_vector_from_each_side_that_sends_it() -> None:
    """No frame type is left out of the vectors."""
    for sender, types in TYPES.items():
        assert {vector["array"][0] for vector in VALID if vector["from"] == sender} == set(types)


def test_every_operation_has_a_vector_whose_parameters_are_read() -> None:
    """No operation is left out of the vectors, and their parameters pass the strict decoder."""
    requests = [vector for vector in VALID if vector["frame"] == "Request"]
    known = PARAMS | PEER_PARAMS
    assert {vector["fields"]["operation"] for vector in requests} == set(known)
    for vector in requests:
        frame = frames.read(unhex(vector["hex"])[4:])
        assert isinstance(frame, Request)
        assert type(frames.read_params(frame, peer=True)) is known[frame.operation]


def test_what_instances_ask_of_each_other_is_nobody_elses() -> None:
    """A stranger who asks for follow, take or callback is told that they are not for it."""
    for operation in PEER_PARAMS:
        with pytest.raises(Malformed, match="instances of the group"):
            frames.read_params(Request(1, operation))


def test_ownership_is_read_with_numbers_for_keys() -> None:
    """Maps have string keys on the wire; who reads `follow` gets partitions and epochs as numbers."""
    assert frames.following({"owned": {"0": 12, "3": 1841}}) == Following({0: 12, 3: 1841}, leaving=False)
    with pytest.raises(Malformed):
        frames.following({"owned": {"zero": 12}})


@named([vector for vector in INVALID if vector["error"]["seq"]])
def test_a_fault_of_one_frame_names_its_sequence_id_and_path(vector: dict[str, Any]) -> None:
    """A well-formed frame with a wrong field fails under its own sequence id."""
    with pytest.raises((FrameFault, InvalidPayload, Malformed)) as caught:
        read_wholly(unhex(vector["hex"])[4:])
    error = caught.value.error if isinstance(caught.value, FrameFault) else caught.value
    if isinstance(caught.value, FrameFault):
        assert caught.value.seq == vector["error"]["seq"]
    assert error.code == vector["error"]["code"]
    if "path" in vector["error"]:
        assert error.extra["faults"][0]["path"] == vector["error"]["path"]


def read_wholly(body: bytes) -> None:
    """As the server reads: the frame, and the parameters of a Request."""
    frame = frames.read(body)
    if isinstance(frame, Request):
        frames.read_params(frame)


def test_an_input_that_is_null_differs_from_one_that_is_absent() -> None:
    """A requeue with ``input: null`` replaces the body by null; without input it keeps the body."""
    for params, expected in (
        ({"id": "a", "step": "s", "input": None}, None),
        ({"id": "a", "step": "s"}, msgspec.UNSET),
    ):
        assert frames.read_params(Request(1, "requeue", None, packed(params))).input is expected


def test_data_that_is_null_differs_from_none_at_all() -> None:
    """null is a value that a step may wait for; a provide that forgot its value is refused."""
    given = {"id": "a", "name": "otp", "value": None}
    assert frames.read_params(Request(1, "provide", None, packed(given))).value is None
    del given["value"]
    with pytest.raises(InvalidPayload, match="value"):
        frames.read_params(Request(1, "provide", None, packed(given)))


def packed(params: dict[str, Any]) -> msgspec.Raw:
    return msgspec.Raw(msgspec.msgpack.encode(params))


@pytest.mark.parametrize("seq", [1, 127, 128, 255, 256, 65_535, 65_536, 2**32 - 1, 2**32, 2**63 - 1])
def test_peek_reads_the_head_of_any_frame(seq: int) -> None:
    """Type and sequence id are found by hand in every width of msgpack integer."""
    body = frames.encode(Submit(seq, "final", None, Submission(type="T")))[4:]
    assert frames.peek(body) == (1, seq)


@pytest.mark.parametrize(
    "body", [b"", b"\x92", b"\x92\x01", b"\x92\x01\xcf\0\0", b"\x92\xa1x\x01", b"\x92\x01\xff", b"\x81\x01\x01"]
)
def test_peek_finds_nothing_where_there_is_no_head(body: bytes) -> None:
    """Cut-off bytes, text and negative numbers are no head."""
    assert frames.peek(body) is None


def test_a_frame_that_cannot_be_encoded_leaves_the_buffer_as_it_was() -> None:
    """Encoding is all or nothing, so one bad answer does not tear the stream."""
    out = bytearray(b"before")
    with pytest.raises(Exception, match="ints"):
        frames.write(Response(1, {"big": 2**70}), out)
    assert out == b"before"


@pytest.mark.parametrize("code", sorted(tree()))
def test_every_error_of_the_tree_has_a_frame(code: str) -> None:
    """Code, title, detail, retryability, delay and extra members go out as they are."""
    error = tree()[code]("what was wrong", retry_after_ms=70, services=["payments"])
    back = frames.read_from_server(frames.encode(frames.error_frame(9, error))[4:])
    assert back == frames.Error(9, code, error.title, "what was wrong", error.retryable, 70, {"services": ["payments"]})


def test_the_example_of_the_limit_error_is_stable() -> None:
    """The Error frame's layout, spelled out once more without the vectors."""
    body = frames.encode(frames.error_frame(3, LimitReached("full", retry_after_ms=5)))[4:]
    assert msgspec.msgpack.decode(body) == [10, 3, "limit_reached", "Limit reached", "full", True, 5, {}]
