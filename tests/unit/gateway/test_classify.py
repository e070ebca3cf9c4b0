"""What answers mean, status by status and body by body."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.gateway.classify import (
    GRPC_FAILURES,
    GRPC_UNKNOWNS,
    body_as_msgpack,
    grpc_answer,
    http_answer,
    retry_after,
)
from coordinator.model.call import Verdict
from coordinator.model.records import unraw

JSON = {"content-type": "application/json"}
NOW = 1_700_000_000_000  # Tue, 14 Nov 2023 22:13:20 GMT


def value(body: bytes, content_type: str = "application/json") -> object:
    return unraw(body_as_msgpack(body, content_type))


@pytest.mark.parametrize("status", [200, 201, 202, 204, 206, 226, 299])
def test_every_2xx_is_an_outcome(status: int) -> None:
    """A service that says 2xx has done it."""
    assert http_answer(status, JSON, b"{}").verdict is Verdict.OUTCOME


@pytest.mark.parametrize(
    "status", [300, 301, 302, 304, 307, 400, 401, 403, 404, 405, 409, 410, 413, 418, 422, 423, 451]
)
def test_3xx_and_most_4xx_are_failures(status: int) -> None:
    """A redirect is not followed and a 4xx is a known no; both carry their status."""
    answer = http_answer(status, JSON, b'{"a": 1}')
    assert answer.verdict is Verdict.FAILURE
    assert answer.failure is not None
    assert (answer.failure.code, answer.failure.status) == (f"http_{status}", status)
    assert unraw(answer.failure.body) == {"a": 1}


@pytest.mark.parametrize("status", [408, 425, 429, 500, 501, 502, 503, 504, 507, 599])
def test_the_rest_is_unknown(status: int) -> None:
    """Timeouts, too-early, too-many and server errors say nothing about what was done."""
    answer = http_answer(status, {}, b"")
    assert answer.verdict is Verdict.DELAYED
    assert answer.failure is not None
    assert answer.failure.code == f"http_{status}"


@pytest.mark.parametrize(
    ("status", "overrides", "verdict"),
    [
        (404, {"404": "outcome"}, Verdict.OUTCOME),
        (404, {"4xx": "outcome"}, Verdict.OUTCOME),
        (404, {"4XX": "delayed"}, Verdict.DELAYED),
        (404, {"4xx": "delayed", "404": "outcome"}, Verdict.OUTCOME),
        (404, {"409": "outcome", "5xx": "outcome"}, Verdict.FAILURE),
        (500, {"5xx": "failure"}, Verdict.FAILURE),
        (429, {"4xx": "failure"}, Verdict.FAILURE),
        (202, {"202": "delayed"}, Verdict.DELAYED),
        (200, {"2xx": "failure"}, Verdict.FAILURE),
        (302, {"3xx": "outcome"}, Verdict.OUTCOME),
        (404, {"404": "nonsense"}, Verdict.FAILURE),
    ],
)
def test_a_step_may_override_the_rule(status: int, overrides: dict[str, str], verdict: Verdict) -> None:
    """The exact status wins over its class, the class over the rule."""
    assert http_answer(status, JSON, b"1", overrides).verdict is verdict


def test_an_overridden_failure_keeps_its_body_as_the_outcome() -> None:
    """404 taken for an outcome records what the 404 said."""
    assert unraw(http_answer(404, JSON, b'{"gone": true}', {"404": "outcome"}).outcome) == {"gone": True}


@pytest.mark.parametrize(
    ("body", "content_type", "expected"),
    [
        (b"", "application/json", None),
        (b"", "", None),
        (b'{"a": [1, 2.5, null, true, "x"]}', "application/json", {"a": [1, 2.5, None, True, "x"]}),
        (b'{"a": 1}', "Application/JSON; Charset=UTF-8", {"a": 1}),
        (b'{"a": 1}', "application/problem+json", {"a": 1}),
        (b'{"a": 1}', "", {"a": 1}),
        (b"hello", "", "hello"),
        (b"123", "text/plain", "123"),
        (b'{"a": 1}', "text/plain; charset=utf-8", {"a": 1}),
        (b"[1]", "text/html", [1]),
        (b"{not json", "text/plain", "{not json"),
        (b"caf\xe9", "text/plain; charset=iso-8859-1", "café"),
        (b"caf\xe9", "text/plain", b"caf\xe9"),
        (b"caf\xe9", "text/plain; charset=rot13", b"caf\xe9"),
        (b"<a/>", "application/soap+xml", "<a/>"),
        (b"a=1&b=2", "application/x-www-form-urlencoded", "a=1&b=2"),
        (b'{"a": 1}', "application/octet-stream", b'{"a": 1}'),
        (b"\x89PNG", "image/png", b"\x89PNG"),
        (b"\xef\xbb\xbf[1]", "application/json", [1]),
        (b'{"a": 1, "a": 2}', "application/json", {"a": 2}),
        (b'{"a": NaN}', "application/json", '{"a": NaN}'),
        (b'{"a": 1', "application/json", '{"a": 1'),
        (b"1e999", "application/json", "1e999"),
        (b'"\\ud800"', "application/json", '"\\ud800"'),
        (b'"\xff"', "application/json", b'"\xff"'),
        (b"18446744073709551615", "application/json", 2**64 - 1),
        (b'{"id": [18446744073709551616, -9223372036854775809]}', "", {"id": [str(2**64), str(-(2**63) - 1)]}),
        (b" \r\n ", "application/json", " \r\n "),
    ],
)
def test_bodies_are_recorded_without_loss(body: bytes, content_type: str, expected: object) -> None:
    """JSON as its value, text as a string, anything else as it came."""
    assert value(body, content_type) == expected


@pytest.mark.parametrize("depth", [1, 100, 128])
def test_nesting_up_to_the_limit_is_a_value(depth: int) -> None:
    """Arrays in arrays are kept as such up to 128 levels."""
    assert isinstance(value(b"[" * depth + b"]" * depth), list)


@pytest.mark.parametrize("depth", [129, 500, 1_000, 100_000])
@pytest.mark.parametrize("pair", [(b"[", b"]"), (b'{"a":', b"}")])
def test_deeper_nesting_is_kept_as_text(depth: int, pair: tuple[bytes, bytes]) -> None:
    """Nobody who reads the outcome later can run out of stack over it."""
    body = pair[0] * depth + b"1" + pair[1] * depth
    assert value(body) == body.decode()


def test_many_brackets_are_not_depth() -> None:
    """A long flat list of lists is a value like any other."""
    assert value(b"[" + b"[]," * 1_000 + b"[]]") == [[]] * 1_001


def test_an_enormous_integer_is_kept() -> None:
    """Even one that is longer than Python likes to print."""
    assert value(b"[" + b"7" * 4_000 + b"]") == ["7" * 4_000]
    assert value(b"7" * 6_000) == "7" * 6_000


@given(st.binary(max_size=300), st.sampled_from(["", "application/json", "text/plain; charset=utf-16", "x/y", "text/"]))
def test_no_body_is_too_broken(body: bytes, content_type: str) -> None:
    """Any bytes under any content type give an outcome that can be read again."""
    unraw(body_as_msgpack(body, content_type))


@pytest.mark.parametrize(
    ("body", "content_type", "message"),
    [
        (b'{"title": "Conflict", "detail": "stock is gone"}', "application/problem+json", "stock is gone"),
        (b'{"message": "declined", "code": "card"}', "application/json", "declined"),
        (b'{"error": "no such order"}', "application/json", "no such order"),
        (b'{"error": {"message": "deep"}}', "application/json", "deep"),
        (b'{"detail": [{"loc": ["a"]}], "title": "T"}', "application/json", "T"),
        (b'"just text"', "application/json", "just text"),
        (b"  plain \n", "text/plain", "plain"),
        (b"", "", "409 Conflict"),
        (b"[1]", "application/json", "409 Conflict"),
        (b"x" * 10_000, "text/plain", "x" * 500),
    ],
)
def test_the_message_is_what_the_service_says(body: bytes, content_type: str, message: str) -> None:
    """Problem details and their relatives are understood; without any the status speaks."""
    answer = http_answer(409, {"content-type": content_type}, body)
    assert answer.failure is not None
    assert answer.failure.message == message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("3", 3_000),
        (" 120 ", 120_000),
        ("3600", 3_600_000),
        ("86400", 3_600_000),
        ("9" * 5_000, 3_600_000),
        ("-1", None),
        ("1.5", None),
        ("soon", None),
        ("", None),
        ("٣", None),
        ("Tue, 14 Nov 2023 22:13:25 GMT", 5_000),
        ("Tuesday, 14-Nov-23 22:13:25 GMT", 5_000),
        ("Tue, 14 Nov 2023 22:13:19 GMT", None),
        ("Tue, 14 Nov 2033 22:13:19 GMT", 3_600_000),
        ("Tue, 99 Nov 2023 22:13:25 GMT", None),
        ("Tue, 14 Nov 99999999 22:13:25 GMT", None),
    ],
)
def test_retry_after(text: str, expected: int | None) -> None:
    """Seconds or a date, at most an hour; the past, negatives and nonsense are ignored."""
    assert retry_after(text, NOW) == expected


@given(st.text(max_size=60))
def test_retry_after_survives_any_text(text: str) -> None:
    """Whatever a service writes there, it is a number of milliseconds or nothing."""
    wish = retry_after(text, NOW)
    assert wish is None or 0 <= wish <= 3_600_000


def test_retry_after_belongs_to_unknown_answers() -> None:
    """A 503 may say when to come back; a 409 is final."""
    assert http_answer(503, {"retry-after": "7"}, b"").retry_after_ms == 7_000
    assert http_answer(409, {"retry-after": "7"}, b"").retry_after_ms is None
    assert http_answer(202, {"retry-after": "7"}, b"", {"202": "delayed"}).retry_after_ms == 7_000


@pytest.mark.parametrize("status", sorted(GRPC_FAILURES))
def test_grpc_failures(status: str) -> None:
    """What gRPC defines as the caller's mistake or a final state is a known no."""
    answer = grpc_answer(status, "why", b"")
    assert answer.verdict is Verdict.FAILURE
    assert answer.failure is not None
    assert (answer.failure.code, answer.failure.message) == (f"grpc_{status.lower()}", f"{status}: why")


@pytest.mark.parametrize("status", sorted(GRPC_UNKNOWNS))
def test_grpc_unknowns(status: str) -> None:
    """What may have happened after the work was done is unknown."""
    assert grpc_answer(status, "", b"").verdict is Verdict.DELAYED


def test_grpc_names_are_all_classified() -> None:
    """Every status of gRPC is in exactly one of the lists."""
    import grpc  # type: ignore[import-untyped]

    names = {code.name for code in grpc.StatusCode}
    assert names == GRPC_FAILURES | GRPC_UNKNOWNS | {"OK"}
    assert not GRPC_FAILURES & GRPC_UNKNOWNS


def test_grpc_overrides() -> None:
    """By name of the status, in both directions."""
    assert grpc_answer("NOT_FOUND", "", b"", {"NOT_FOUND": "outcome"}).verdict is Verdict.OUTCOME
    assert grpc_answer("INTERNAL", "", b"", {"INTERNAL": "failure"}).verdict is Verdict.FAILURE
    assert grpc_answer("OK", "", b"1", {"OK": "delayed"}).verdict is Verdict.DELAYED


def test_grpc_payloads() -> None:
    """JSON where the request was JSON, bytes where it was bytes."""
    assert unraw(grpc_answer("OK", "", b'{"a":1}').outcome) == {"a": 1}
    assert unraw(grpc_answer("OK", "", b'{"a":1}', as_json=False).outcome) == b'{"a":1}'
    assert unraw(grpc_answer("OK", "", b"\x08\x01\xff").outcome) == b"\x08\x01\xff"
