"""HTTP under random bytes and random requests: only documented answers come out, and the listener lives on."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, cast

import httptools
import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.errors import CoordinatorError, InvalidPayload, Malformed
from coordinator.model.command import Submission
from coordinator.transport.base import Front
from coordinator.transport.http import HttpServer, HttpSettings
from coordinator.transport.http.problem import HttpError
from coordinator.transport.http.routes import ROUTES
from coordinator.transport.http.routing import FORM, Router
from coordinator.transport.http.signals import value_of
from coordinator.transport.json_input import decode

SUBMISSION = msgspec.json.Decoder(Submission)
ROUTER = Router(ROUTES)

values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)
fields = st.sampled_from([field.name for field in msgspec.structs.fields(Submission)])
bodies = st.binary(max_size=200) | st.builds(
    msgspec.json.encode, st.dictionaries(fields | st.text(max_size=5), values, max_size=5) | values
)


@given(bodies)
def test_any_body_is_a_submission_or_a_documented_error(body: bytes) -> None:
    """What is accepted can be held by the log; what is not says where it is wrong."""
    paths = ["$"]
    try:
        msgspec.msgpack.encode(decode(SUBMISSION, body))
    except Malformed:
        pass
    except InvalidPayload as error:
        paths = [fault["path"] for fault in error.extra["faults"]]
    assert paths
    assert all(path.startswith("$") for path in paths)


media = st.sampled_from(["", "application/json", FORM, "text/plain", "multipart/form-data"])
forms = st.lists(st.text(max_size=5) | st.sampled_from(["a=1", "%ff", "=", "+", "a"]), max_size=5).map("&".join)


@given(media, bodies | forms.map(str.encode))
def test_any_callback_is_a_value_or_a_documented_error(media: str, body: bytes) -> None:
    """Whatever a service sends: what is taken for a value can be recorded."""
    status = 200
    try:
        msgspec.msgpack.encode(value_of(media, body))
    except (Malformed, InvalidPayload) as error:
        status = error.http
    except HttpError as error:
        status = error.status
    assert status in ([415] if media.startswith("multipart/") else [200, 400, 422])


pieces = st.sampled_from(
    [
        "v1",
        "commands",
        "a",
        "history",
        "data",
        "decisions",
        "callbacks",
        "schedules",
        "%ff",
        "%2F",
        "definitions",
        "",
        "{}",
        "..",
        "services",
        "x",
    ]
)


@given(
    st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "BREW"]),
    st.lists(pieces, max_size=6).map("/".join) | st.text(st.characters(max_codepoint=126, min_codepoint=33)),
    st.binary(max_size=60),
)
def test_any_target_is_a_route_or_a_documented_error(method: str, path: str, query: bytes) -> None:
    """Whatever stands in the path and the query."""
    status = 200
    try:
        route, parameters = ROUTER.find(method, b"/" + path.encode())
        assert all(parameters.values())
        route.parse_query(query)
    except HttpError as error:
        status = error.status
    except CoordinatorError as error:
        status = error.http
    assert status in (200, 400, 404, 405, 422)


heads = st.builds(
    lambda method, target, headers: b"\r\n".join([b"%b %b HTTP/1.1" % (method, target), *headers]) + b"\r\n\r\n",
    st.sampled_from([b"GET", b"POST", b"PUT", b"OPTIONS", b"CONNECT", b""]),
    st.sampled_from([b"/healthz", b"/v1/commands?wait=1x", b"*", b"http://x/", b"/%zz", b""]) | st.binary(max_size=20),
    st.lists(
        st.sampled_from(
            [
                b"Host: x",
                b"Connection: close",
                b"Connection: upgrade",
                b"Upgrade: h2c",
                b"Expect: 100-continue",
                b"Content-Length: 3",
                b"Content-Length: 99999999999999999999",
                b"Transfer-Encoding: chunked",
                b"Content-Type: multipart/form-data",
                b": x",
            ]
        ),
        max_size=4,
    ),
)
streams = st.lists(heads | st.binary(max_size=60) | st.sampled_from([b"{}\n", b"3\r\n{}\n\r\n0\r\n\r\n"]), max_size=6)


@settings(max_examples=100, deadline=None)
@given(st.lists(streams, min_size=1, max_size=4))
def test_any_bytes_get_answers_that_parse(connections: list[list[bytes]]) -> None:
    """Every byte that comes back belongs to a well-formed answer, and the next client is served."""
    asyncio.run(_converse(connections))


async def _converse(connections: list[list[bytes]]) -> None:
    limits = HttpSettings(head_timeout_ms=40, body_timeout_ms=40, idle_timeout_ms=40, head_bytes_max=2000)
    server = HttpServer(cast("Front", None), host="127.0.0.1", port=0, settings=limits)
    await server.start()
    try:
        async with asyncio.timeout(20):
            await asyncio.gather(*(_talk(server, pieces) for pieces in connections))
            answers = await _talk(server, [b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"])
            assert answers.startswith(b"HTTP/1.1 200 ")
    finally:
        await server.close(0)


async def _talk(server: HttpServer, pieces: list[bytes]) -> bytes:
    reader, writer = await asyncio.open_connection(*server.address)
    got = b""
    with contextlib.suppress(ConnectionError):
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        got = await reader.read()
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    if b"HEAD" not in b"".join(pieces):
        parser = httptools.HttpResponseParser(Answers())
        parser.feed_data(got)
    return got


class Answers:
    """Checks each answer as it is parsed: a status that is documented, and an error only as a problem."""

    def on_message_begin(self) -> None:
        self.headers: dict[bytes, bytes] = {}
        self.body = b""

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name] = value

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        if self.headers.get(b"content-type") == b"application/problem+json":
            assert msgspec.json.decode(self.body)["status"] in (400, 404, 405, 408, 413, 415, 422, 431)
