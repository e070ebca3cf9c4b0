"""The client's codec against the vectors that all clients share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from coordinator_client import ConnectionLost, codec
from coordinator_client.codec import Splitter

FRAMES = json.loads((Path(__file__).parents[3] / "proto" / "vectors" / "frames.json").read_text())["frames"]
FROM_SERVER = [vector for vector in FRAMES if vector["from"] == "server"]
FROM_CLIENT = [vector for vector in FRAMES if vector["from"] == "client"]


def named(vectors: list[dict[str, Any]]) -> Any:
    return pytest.mark.parametrize("vector", vectors, ids=[vector["name"] for vector in vectors])


@named(FROM_SERVER)
def test_every_server_frame_is_read(vector: dict[str, Any]) -> None:
    """Each frame that a server may send decodes to the fields of its vector."""
    [frame] = Splitter().feed(bytes.fromhex(vector["hex"]))
    assert type(frame).__name__ == vector["frame"]
    for name, expected in vector["fields"].items():
        assert msgspec.to_builtins(getattr(frame, name)) == expected


@named([vector for vector in FROM_CLIENT if vector["canonical"]])
def test_every_client_frame_is_written_byte_for_byte(vector: dict[str, Any]) -> None:
    """Encoding the fields of a vector gives exactly its bytes."""
    kind = getattr(codec, vector["frame"])
    fields = dict(vector["fields"])
    if "options" in fields:
        fields["options"] = codec.Limits(**fields["options"])
    assert codec.encode(kind(**fields)).hex() == vector["hex"]


@pytest.mark.parametrize("size", [1, 3, 4, 5, 1000])
def test_the_splitter_takes_a_stream_in_any_pieces(size: int) -> None:
    """All server vectors in one stream, cut anywhere, come out whole and in order."""
    stream = b"".join(bytes.fromhex(vector["hex"]) for vector in FROM_SERVER)
    splitter = Splitter()
    frames = [frame for at in range(0, len(stream), size) for frame in splitter.feed(stream[at : at + size])]
    assert [type(frame).__name__ for frame in frames] == [vector["frame"] for vector in FROM_SERVER]


def test_an_error_frame_becomes_the_exception_of_its_code() -> None:
    """The client raises what the server said, with all that it said."""
    for vector in FROM_SERVER:
        if vector["frame"] == "Error":
            [frame] = Splitter().feed(bytes.fromhex(vector["hex"]))
            assert isinstance(frame, codec.Error)
            error = frame.exception()
            fields = vector["fields"]
            assert (error.code, error.retryable, error.retry_after_ms, error.extra) == (
                fields["code"],
                fields["retryable"],
                fields["retry_after_ms"],
                fields["extra"],
            )


def test_frames_and_elements_of_later_versions_are_passed_over() -> None:
    """A newer server may send new frame types and longer frames."""
    later = msgspec.msgpack.encode([99, 0, "?"])
    longer = msgspec.msgpack.encode([12, 5, {"new": 1}])
    data = b"".join(len(body).to_bytes(4, "big") + body for body in (later, longer))
    assert Splitter().feed(data) == [codec.Pong(5)]


@pytest.mark.parametrize(
    "data", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00\x00\x00\x03\xc1\xc1\xc1", b"\x00\x00\x00\x02\x0a\x00"]
)
def test_what_no_coordinator_sends_is_a_lost_connection(data: bytes) -> None:
    """Another server on that port is recognised, not waited for."""
    with pytest.raises(ConnectionLost):
        Splitter().feed(data)
