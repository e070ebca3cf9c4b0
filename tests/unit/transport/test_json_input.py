"""JSON from strangers: what is refused, how, and with which path."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from coordinator.errors import CoordinatorError, InvalidPayload, Malformed
from coordinator.model.command import Submission
from coordinator.transport.json_input import NESTING_MAX, decode

SUBMISSION = msgspec.json.Decoder(Submission)


def refused(body: bytes, root: str = "$") -> CoordinatorError:
    with pytest.raises(CoordinatorError) as raised:
        decode(SUBMISSION, body, root)
    return raised.value


def paths(error: CoordinatorError) -> list[str]:
    return [fault["path"] for fault in error.extra["faults"]]


def nested(depth: int) -> bytes:
    return b'{"payload":' + b"[" * depth + b"]" * depth + b"}"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"  \n",
        b"{",
        b'{"id":"a"} x',
        b'{"payload": NaN}',
        b'{"payload": Infinity}',
        b'{"payload": [-Infinity]}',
        b'{"payload": "\xff"}',
        b'{"payload": "\\ud800"}',
        b'{"payload": "\x01"}',
        b"\xef\xbb\xbf{}",
        b"[" * 100_000,
        nested(1000),
        nested(NESTING_MAX),
    ],
)
def test_what_is_no_json_is_malformed(body: bytes) -> None:
    """Half documents, constants that JSON has not, wrong UTF-8 and absurd depth are all 400."""
    assert isinstance(refused(body), Malformed)


def test_a_fault_is_found_also_when_an_earlier_one_is_of_another_kind() -> None:
    """A wrong type before a malformed end is still malformed: there is no document to find faults in."""
    assert isinstance(refused(b'{"id": 1, "payload": NaN}'), Malformed)
    assert isinstance(refused(b'{"id": 1, ' + nested(500)[1:]), Malformed)


def test_depth_within_the_limit_is_taken() -> None:
    """One level is the submission itself; brackets within strings do not count."""
    assert decode(SUBMISSION, nested(NESTING_MAX - 1)).payload
    text = "[{" * 1000 + '\\"]'
    assert decode(SUBMISSION, msgspec.json.encode({"payload": text})).payload == text
    assert decode(SUBMISSION, msgspec.json.encode({"payload": [[]] * 1000})).payload == [[]] * 1000


def test_every_fault_is_named_with_its_path() -> None:
    """Five mistakes are mended in one go."""
    body = b'{"id":1,"foo":1,"timeout":5,"attributes":{"a":null,"b":[1],"c":1},"version":"2"}'
    error = refused(body)
    assert isinstance(error, InvalidPayload)
    assert sorted(paths(error)) == ["$.attributes.a", "$.attributes.b", "$.foo", "$.id", "$.timeout", "$.version"]


def test_faults_are_bounded() -> None:
    """A document of fifty thousand faults does not become an answer of fifty thousand."""
    wrong = {"attributes": {f"a{n}": [] for n in range(1000)}}
    assert len(paths(refused(msgspec.json.encode(wrong)))) == 50


@pytest.mark.parametrize("number", [1 << 64, -(1 << 63) - 1, 10**40])
def test_whole_numbers_beyond_64_bits_are_refused_where_they_stand(number: int) -> None:
    """The log's format cannot hold them, so nothing may accept them."""
    body = msgspec.json.encode({"payload": {"a": [1, {"b": "x"}]}}).replace(b'"x"', str(number).encode())
    assert paths(refused(body)) == ["$.payload.a[1].b"]
    assert paths(refused(b'{"version": %d}' % number)) == ["$.version"]


def test_whole_numbers_of_64_bits_are_taken_as_they_are() -> None:
    """Both ends of the range, and strings of many digits."""
    for value in ((1 << 64) - 1, -(1 << 63), "9" * 40):
        assert decode(SUBMISSION, msgspec.json.encode({"payload": value})).payload == value


def test_a_number_too_great_for_a_float_is_refused_where_it_stands() -> None:
    """1e400 is JSON, but no number of ours."""
    assert paths(refused(b'{"payload": {"x": 1e400}}')) == ["$.payload.x"]


@pytest.mark.parametrize(("body", "kind"), [(b"[]", "array"), (b"null", "null"), (b"5", "int"), (b'"x"', "str")])
def test_a_body_that_is_no_object_is_told_so(body: bytes, kind: str) -> None:
    """The path of the whole document is $."""
    error = refused(body)
    assert paths(error) == ["$"]
    assert f"got `{kind}`" in error.detail


def test_a_missing_field_is_named() -> None:
    """A required field that is absent is a fault at its own path."""

    class Body(msgspec.Struct):
        step: str
        note: str = ""

    with pytest.raises(InvalidPayload) as raised:
        decode(msgspec.json.Decoder(Body), b'{"note": 1}')
    assert sorted(paths(raised.value)) == ["$.note", "$.step"]


def test_paths_begin_where_the_document_stands() -> None:
    """A document that is a field of something else has its paths below that field."""
    decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(Any)
    with pytest.raises(InvalidPayload) as raised:
        decode(decoder, b'{"a": 99999999999999999999}', "$.payload")
    assert paths(raised.value) == ["$.payload.a"]
