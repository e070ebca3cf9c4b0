"""What services send to a callback, what people decide, and names: read as they are meant, or refused by place."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest

from coordinator.errors import CoordinatorError, InvalidPayload, Malformed
from coordinator.transport.http.exchange import name_at
from coordinator.transport.http.problem import HttpError
from coordinator.transport.http.routes import ROUTES
from coordinator.transport.http.routing import FORM, Router
from coordinator.transport.http.signals import _decision, value_of
from coordinator.transport.json_input import decode

ROUTER = Router(ROUTES)
CALLBACK = b"/v1/callbacks/order-1/paid/0.00ff"


@pytest.mark.parametrize(
    ("media", "body", "value"),
    [
        ("application/json", b'{"status": "paid", "amounts": [1, 2.5]}', {"status": "paid", "amounts": [1, 2.5]}),
        ("application/vnd.gateway+json", b"7", 7),
        ("", b"[null]", [None]),
        ("application/octet-stream", b'"x"', "x"),
        (FORM, b"status=paid&note=a+b%26c&empty=", {"status": "paid", "note": "a b&c", "empty": ""}),
        (FORM, "name=%C3%A9%20日".encode().replace("日".encode(), b"%E6%97%A5"), {"name": "é 日"}),
        (FORM, b"", {}),
        (FORM, b' {"sent": "by curl -d"}', {"sent": "by curl -d"}),
        ("text/plain", "genehmigt: ü".encode(), "genehmigt: ü"),
        ("text/plain", b'{"as": "it came"}', '{"as": "it came"}'),
        ("text/plain", b"", ""),
        ("", b"", None),
        ("application/json", b" ", None),
    ],
)
def test_a_callback_s_body_is_read_by_its_media_type(media: str, body: bytes, value: Any) -> None:
    """JSON, a form or text; no body at all is null."""
    assert value_of(media, body) == value


@pytest.mark.parametrize(
    ("media", "body", "error", "path"),
    [
        ("application/json", b'{"status": ', Malformed, "$.status"),
        ("application/json", b"status=paid", Malformed, "$"),
        ("application/json", b'{"n": NaN}', Malformed, "$.n"),
        ("application/json", b'{"n": 99999999999999999999}', InvalidPayload, "$.n"),
        ("application/json", b"[" * 300 + b"]" * 300, Malformed, "$[0][0][0][0][0][0][0][0]…"),
        (FORM, b'{"status": ', Malformed, "$.status"),
        (FORM, b"a=1&a=2", InvalidPayload, "$.a"),
        ("text/plain", b"\xff\xfe", Malformed, "$"),
    ],
)
def test_a_callback_s_body_that_is_none_is_refused(
    media: str, body: bytes, error: type[CoordinatorError], path: str
) -> None:
    """With the place: whoever wrote the service has to find it."""
    with pytest.raises(error) as raised:
        value_of(media, body)
    assert [fault["path"] for fault in raised.value.extra["faults"]] == [path]


@pytest.mark.parametrize("body", [b"a=%ff", b"&".join(b"a%d=1" % n for n in range(101)), b"\xff=1"])
def test_a_form_that_is_none_is_malformed(body: bytes) -> None:
    """Wrong UTF-8, or more fields than anyone could mean."""
    with pytest.raises(Malformed):
        value_of(FORM, body)


def test_a_value_nests_as_deep_as_any_transport_takes_it() -> None:
    """255 levels, as over TCP, where it is a field of a request: what one instance takes, any can pass on."""
    assert value_of("", b"[" * 255 + b"]" * 255) is not None
    with pytest.raises(Malformed, match="deeper than 255 levels"):
        value_of("", b"[" * 256 + b"]" * 256)


def test_a_callback_by_get_takes_every_parameter() -> None:
    """Whatever they are called; blank ones are empty strings."""
    route, parameters = ROUTER.find("GET", CALLBACK)
    assert parameters == {"id": "order-1", "name": "paid", "token": "0.00ff"}
    values = ROUTER.query(route, b"status=ok&wait=nonsense&attribute.x=1&flag")
    assert values == {"parameters": {"status": "ok", "wait": "nonsense", "attribute.x": "1", "flag": ""}}
    with pytest.raises(InvalidPayload):
        ROUTER.query(route, b"a=1&a=2")


def test_a_head_request_delivers_no_callback() -> None:
    """Programs that only look at a link ask by HEAD; a GET there changes something."""
    with pytest.raises(HttpError) as raised:
        ROUTER.find("HEAD", CALLBACK)
    assert (raised.value.status, raised.value.headers) == (405, [(b"allow", b"GET, POST")])


@pytest.mark.parametrize("name", ["otp", "approve#2", "a/b", "ünter zweien", "%", "x" * 200])
def test_names_in_a_path_come_out_as_they_went_in(name: str) -> None:
    """Percent-encoded by the client; a slash too."""
    assert name_at("name", name) == name
    for path, parameter in (("data", "name"), ("decisions", "step")):
        _, found = ROUTER.find("POST", f"/v1/commands/o%201/{path}/{quote(name, safe='')}".encode())
        assert found == {"id": "o 1", parameter: name}


@pytest.mark.parametrize("name", ["", "x" * 201, "a\nb", "\x00", "a\x7f", "\u2028"])
def test_what_is_no_name_is_refused(name: str) -> None:
    """It would break lines in logs and lists, or be of no end."""
    with pytest.raises(InvalidPayload) as raised:
        name_at("step", name)
    assert raised.value.extra["faults"][0]["path"] == "step"


@pytest.mark.parametrize(
    ("body", "paths"),
    [
        (b"{}", ["$.approve"]),
        (b'{"approve": "yes"}', ["$.approve"]),
        (b'{"approve": 1, "by": null, "comment": 5}', ["$.approve", "$.by", "$.comment"]),
        (b'{"approve": true, "role": "boss"}', ["$.role"]),
        (b'{"approve": true, "roles": "boss"}', ["$.roles"]),
        (b'{"approve": true, "roles": ["boss", 7]}', ["$.roles[1]"]),
        (b'{"approve": true, "roles": [""]}', ["$.roles[0]"]),
        (b'{"approve": true, "roles": ["%s"]}' % (b"x" * 201), ["$.roles[0]"]),
        (b'{"approve": true, "roles": [%s]}' % b",".join([b'"a"'] * 101), ["$.roles"]),
        (b"true", ["$"]),
    ],
)
def test_a_decision_that_is_none_names_each_fault(body: bytes, paths: list[str]) -> None:
    """What is no plain yes or no decides nothing."""
    with pytest.raises(InvalidPayload) as raised:
        decode(_decision, body)
    assert sorted(fault["path"] for fault in raised.value.extra["faults"]) == paths
