"""What goes out, and what is refused before it does."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.errors import ConfigError
from coordinator.gateway.request import (
    BadRequest,
    HttpTemplate,
    address,
    check_answers,
    encode_key,
    encode_method,
    encode_path,
    service_headers,
)
from coordinator.model.call import Request
from coordinator.model.settings import ServiceSettings


def wire(request: Request, *, key: str = "o-1/charge", base: str = "", **settings: Any) -> bytes:
    template = HttpTemplate(ServiceSettings(name="pay", url="http://pay", **settings), "pay:9001", base)
    return template.wire(request, key, 17, 2)


def test_a_request_on_the_wire() -> None:
    """The whole head of a usual call, byte for byte."""
    assert wire(Request(service="pay", path="/charges?x=1", body={"amount": 5}), base="/v1") == (
        b"POST /v1/charges?x=1 HTTP/1.1\r\n"
        b"Host: pay:9001\r\n"
        b"User-Agent: coordinator\r\n"
        b"Accept: application/json, */*;q=0.5\r\n"
        b"Accept-Encoding: identity\r\n"
        b"Idempotency-Key: o-1/charge\r\n"
        b"Coordinator-Fence: 17.2\r\n"
        b"Content-Type: application/json\r\n"
        b"Content-Length: 12\r\n"
        b"\r\n"
        b'{"amount":5}'
    )


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
def test_no_body_says_so_where_one_is_usual(method: str) -> None:
    """Servers wait for a body of these methods unless told that there is none."""
    assert b"\r\nContent-Length: 0\r\n\r\n" in wire(Request(service="pay", method=method))


@pytest.mark.parametrize("method", ["GET", "DELETE", "HEAD", "OPTIONS"])
def test_no_body_says_nothing_elsewhere(method: str) -> None:
    """A GET without a body has no length and no type."""
    assert b"Content" not in wire(Request(service="pay", method=method))


def test_bytes_go_as_they_are() -> None:
    """A body of bytes is not turned into JSON; its type may be told."""
    sent = wire(Request(service="pay", body=b"\x00\xff", headers={"Content-Type": "application/x-protobuf"}))
    assert sent.endswith(b"\r\n\r\n\x00\xff")
    assert sent.count(b"Content-Type") == 1
    assert b"Content-Type: application/x-protobuf\r\n" in sent
    assert b"Content-Type: application/octet-stream\r\n" in wire(Request(service="pay", body=b""))


@pytest.mark.parametrize("body", [False, 0, "", [], {}, "text", 1.5])
def test_falsy_values_are_bodies(body: Any) -> None:
    """Only None means no body."""
    assert b"Content-Type: application/json" in wire(Request(service="pay", body=body))


def test_headers_of_the_request_win_over_the_configured_ones() -> None:
    """Each header is sent once, whatever its spelling."""
    sent = wire(
        Request(service="pay", headers={"x-tenant": "b", "ACCEPT": "text/plain"}),
        headers={"X-Tenant": "a", "Authorization": "Bearer t"},
    )
    assert b"x-tenant: b\r\n" in sent
    assert b"X-Tenant" not in sent
    assert b"Authorization: Bearer t\r\n" in sent
    assert sent.lower().count(b"accept:") == 1


def test_a_configured_host_is_respected() -> None:
    """The operator may name a virtual host."""
    sent = wire(Request(service="pay"), headers={"Host": "virtual.example"})
    assert sent.lower().count(b"\r\nhost:") == 1
    assert b"Host: virtual.example\r\n" in sent


@pytest.mark.parametrize(
    "name",
    ["Idempotency-Key", "idempotency-key", "COORDINATOR-FENCE", "Host", "Content-Length", "Transfer-Encoding",
     "Connection", "Expect", "Upgrade", "TE", "Trailer", "Keep-Alive"],
)  # fmt: skip
def test_what_the_protocol_rests_on_cannot_be_overridden(name: str) -> None:
    """Neither the key and the fence nor the framing."""
    with pytest.raises(BadRequest, match="cannot be overridden"):
        wire(Request(service="pay", headers={name: "1"}))


@pytest.mark.parametrize(
    ("name", "value"),
    [("X", "a\r\nY: b"), ("X", "a\nb"), ("X", "a\rb"), ("X", "\0"), ("X", "\x7f"), ("X\r\nY", "1"), ("X Y", "1"),
     ("X:", "1"), ("", "1"), ("Ü", "1"), ("X", 5), ("X", None), (5, "x"), ("X", "\ud800")],
)  # fmt: skip
def test_headers_that_could_break_out_are_refused(name: Any, value: Any) -> None:
    """Line breaks, control characters, no words, no text."""
    with pytest.raises(BadRequest):
        wire(Request(service="pay", headers={name: value}))


def test_header_values_may_hold_any_letters() -> None:
    """They go as UTF-8; white space around them does not count."""
    assert "X-Name: Grüße\tan alle\r\n".encode() in wire(Request(service="pay", headers={"X-Name": " Grüße\tan alle "}))


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("", "/"),
        ("/", "/"),
        ("/a/b.c~d", "/a/b.c~d"),
        ("a/b", "/a/b"),
        ("?q=1", "/?q=1"),
        ("/a b", "/a%20b"),
        ("/a\r\nX: y", "/a%0D%0AX:%20y"),
        ("/ü€", "/%C3%BC%E2%82%AC"),
        ("/a%20b", "/a%20b"),
        ("/100%", "/100%25"),
        ("/%zz", "/%25zz"),
        ("/a#b", "/a%23b"),
        ("/a?b=[1]&c={2}", "/a?b=%5B1%5D&c=%7B2%7D"),
        ("/../etc/./x", "/../etc/./x"),
        ("/a\\b", "/a%5Cb"),
        ("/a//b", "/a//b"),
        ("/\0", "/%00"),
        ("/x?u=http://a/b", "/x?u=http://a/b"),
    ],
)
def test_paths_are_encoded(path: str, sent: str) -> None:
    """What may not stand in a request line is percent-encoded, what is encoded stays."""
    assert wire(Request(service="pay", method="GET", path=path)).split(b" ")[1].decode() == sent


@pytest.mark.parametrize("path", ["http://evil/x", "HTTPS://evil", "//evil/x", "ftp+x://evil", "/\ud800"])
def test_paths_that_lead_elsewhere_are_refused(path: str) -> None:
    """Where a request goes is the configuration's word alone."""
    with pytest.raises(BadRequest):
        encode_path(path)


@given(st.text(max_size=80))
def test_no_path_breaks_the_request_line(path: str) -> None:
    """Whatever the path, one line comes out, of three words, or it is refused."""
    try:
        head = wire(Request(service="pay", method="GET", path=path))
    except BadRequest:
        return
    line = head.split(b"\r\n")[0]
    assert line.count(b" ") == 2
    assert line.endswith(b" HTTP/1.1")
    assert all(0x21 <= c < 0x7F for c in line.split(b" ")[1])
    assert head.count(b"\r\n") == 8


@given(st.text(max_size=40), st.text(max_size=40))
def test_keys_stay_apart(one: str, other: str) -> None:
    """Two keys never become the same header, and the header is visible ASCII that leads back to the key."""
    try:
        first, second = encode_key(one), encode_key(other)
    except BadRequest:
        return
    assert (first == second) == (one == other)
    assert unquote(first) == one
    assert all(0x21 <= ord(c) < 0x7F for c in first)


def test_an_ascii_key_goes_out_as_it_is() -> None:
    """Nobody has to decode anything in the usual case."""
    assert encode_key("order-1~x:{2}/charge#2/undo") == "order-1~x:{2}/charge#2/undo"
    assert encode_key("заказ/charge") == "%D0%B7%D0%B0%D0%BA%D0%B0%D0%B7/charge"
    assert encode_key("100%/charge") == "100%25/charge"


@pytest.mark.parametrize("method", ["", "GET /", "GET\r\n", "CONNECT", "connect", "Ü", "G" * 40, "1"])
def test_methods_that_are_none_are_refused(method: str) -> None:
    """A method is a word, and not the one that opens a tunnel."""
    with pytest.raises(BadRequest):
        encode_method(method)


def test_methods_are_upper_case() -> None:
    """People write post."""
    assert (encode_method("post"), encode_method("PROPFIND")) == ("POST", "PROPFIND")


@pytest.mark.parametrize("body", [object(), {"a": {1, (2, object())}}, "\ud800", {("a", object()): 1}])
def test_bodies_that_are_no_json_are_refused(body: Any) -> None:
    """With a sentence, not with the encoder's exception."""
    with pytest.raises(BadRequest, match="JSON"):
        wire(Request(service="pay", body=body))


def test_a_circle_is_refused() -> None:
    """A body that contains itself has no end."""
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(BadRequest, match="JSON"):
        wire(Request(service="pay", body=circle))


@pytest.mark.parametrize(
    "answers", [{"404": "ignore"}, {"44": "outcome"}, {"9xx": "outcome"}, {"not_found": "outcome"}]
)
def test_overrides_that_mean_nothing_are_refused(answers: dict[str, str]) -> None:
    """A typo there would silently undo a saga, or not."""
    with pytest.raises(BadRequest):
        wire(Request(service="pay", answers=answers))


def test_overrides_that_mean_something() -> None:
    """Statuses, classes and gRPC names."""
    check_answers({"404": "outcome", "5xx": "failure", "4XX": "delayed", "NOT_FOUND": "outcome", "OK": "outcome"})


@pytest.mark.parametrize(
    ("url", "host", "port", "authority", "base"),
    [
        ("http://127.0.0.1:9001", "127.0.0.1", 9001, "127.0.0.1:9001", ""),
        ("http://pay", "pay", 80, "pay", ""),
        ("http://pay:80/", "pay", 80, "pay", ""),
        ("https://pay", "pay", 443, "pay", ""),
        ("https://Pay:80/v1/", "pay", 80, "pay:80", "/v1"),
        ("http://[::1]:9001/ä", "::1", 9001, "[::1]:9001", "/%C3%A4"),
        ("grpc://pay:9090", "pay", 9090, "pay:9090", ""),
        ("http://bücher.example", "xn--bcher-kva.example", 80, "xn--bcher-kva.example", ""),
    ],
)
def test_urls(url: str, host: str, port: int, authority: str, base: str) -> None:
    """Where a service is, and what Host says."""
    found = address(ServiceSettings(name="pay", url=url))
    assert (found.host, found.port, found.authority, found.base) == (host, port, authority, base)


@pytest.mark.parametrize(
    "url",
    ["pay:9001", "ftp://pay", "http://", "http:///x", "http://pay:99999", "http://pay:x", "http://u:p@pay", "http://pay?x=1",
     "http://pay/#x", "http://pa y", "http://pay\r\n", "grpc://pay/x", "http://[::1"],
)  # fmt: skip
def test_urls_that_cannot_be_used_stop_the_start(url: str) -> None:
    """The text names the key."""
    with pytest.raises(ConfigError, match=r"services\.pay\.url"):
        address(ServiceSettings(name="pay", url=url))


@pytest.mark.parametrize("headers", [{"Idempotency-Key": "x"}, {"Content-Length": "1"}, {"X": "a\nb"}, {"X Y": "1"}])
def test_configured_headers_are_checked_at_the_start(headers: dict[str, str]) -> None:
    """The text names the key."""
    with pytest.raises(ConfigError, match=r"services\.pay\.headers"):
        service_headers(ServiceSettings(name="pay", headers=headers))
