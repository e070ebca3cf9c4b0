"""Bad input, on every transport: what it gets, that it names the place, and that nothing of it is in the log."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import httpx
import msgspec
import pytest
import pytest_asyncio

from coordinator.transport.pb import coordinator_pb2 as pb
from coordinator.transport.pb.coordinator_pb2_grpc import CoordinatorStub
from tests.integration.daemon import Daemon, Service, config
from tests.integration.strangers import TRANSPORTS, frame, read_frame, resident_mib, sample, stranger

pytestmark = pytest.mark.asyncio(loop_scope="module")

STEP: dict[str, Any] = {"name": "reserve", "service": "stock", "path": "/reserve"}
ORDER: dict[str, Any] = {"name": "order", "version": 1, "steps": [STEP]}
GOOD: dict[str, Any] = {"definition": ORDER, "payload": {"n": 1}}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def daemon(stock: Service, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Daemon]:
    """One daemon for all of these; after the last of them it still stops in order, and has logged no traceback."""
    directory: Path = tmp_path_factory.mktemp("bad-input")
    daemon = Daemon(directory, config(directory, {"stock": stock}))
    try:
        await asyncio.to_thread(daemon.start)
        yield daemon
        assert await asyncio.to_thread(daemon.stop) == 0
        assert "Traceback" not in daemon.text()
    finally:
        daemon.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(daemon: Daemon) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=daemon.http, timeout=30) as client:
        yield client


@pytest_asyncio.fixture(loop_scope="module")
async def nothing_in_the_log(client: httpx.AsyncClient, stock: Service) -> AsyncIterator[None]:
    """The log is as long after the test as before, and no service was called."""

    async def end() -> tuple[list[int], int]:
        cluster = (await client.get("/v1/cluster")).json()
        return [partition["end"] for partition in cluster["partitions"]], len(stock.arrivals)

    before = await end()
    yield
    assert await end() == before


def problem(answer: httpx.Response) -> tuple[int, str, str | None]:
    """Status, code and first path of an answer, which must be a problem as RFC 9457 has it."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    told = answer.json()
    assert told["status"] == answer.status_code
    assert told["type"].endswith(told["code"])
    assert told["title"]
    assert told["detail"]
    return answer.status_code, told["code"], told["faults"][0]["path"] if "faults" in told else None


def json(**fields: Any) -> bytes:
    return msgspec.json.encode({**GOOD, **fields})


BODIES: list[tuple[bytes, int, str, str | None]] = [
    (b"", 400, "malformed", "$"),
    (b" \n", 400, "malformed", "$"),
    (b"{", 400, "malformed", "$"),
    (b'{"type": "a"} x', 400, "malformed", "$"),
    (b'\xef\xbb\xbf{"type": "a"}', 400, "malformed", "$"),
    ('{"type": "a"}'.encode("utf-16"), 400, "malformed", "$"),
    (b'{"type": "\xff"}', 400, "malformed", "$.type"),
    (b'{"type": "a", "payload": NaN}', 400, "malformed", "$.payload"),
    (b'{"type": "a", "payload": {"x": [1, {"y": -Infinity}]}}', 400, "malformed", "$.payload.x[1].y"),
    (b'{"type": "a", "payload": [01]}', 400, "malformed", "$.payload[0]"),
    (b'{"type": "a", "payload": "\x01"}', 400, "malformed", "$.payload"),
    (b'{"type": "a", "payload": ' + b"[" * 1000 + b"]" * 1000 + b"}", 400, "malformed", "$.payload" + "[0]" * 7 + "…"),
    (b'{"type": "a", "payload": ' + b'{"a":' * 200_000, 400, "malformed", "$.payload" + ".a" * 7 + "…"),
    (b"null", 422, "invalid_payload", "$"),
    (b"[]", 422, "invalid_payload", "$"),
    (b'"x"', 422, "invalid_payload", "$"),
    (b"{}", 422, "invalid_payload", "$"),
    (json(type="order"), 422, "invalid_payload", "$"),
    (json(id=5), 422, "invalid_payload", "$.id"),
    (json(paylod=1), 422, "invalid_payload", "$.paylod"),
    (json(definition=[]), 422, "invalid_payload", "$.definition"),
    (json(timeout=5), 422, "invalid_payload", "$.timeout"),
    (json(priority=1.5), 422, "invalid_payload", "$.priority"),
    (json(attributes={"a": [1]}), 422, "invalid_payload", "$.attributes.a"),
    (b'{"type": "a", "payload": [18446744073709551616]}', 422, "invalid_payload", "$.payload[0]"),
    (b'{"type": "a", "payload": {"x": 1e400}}', 422, "invalid_payload", "$.payload.x"),
    (json(payload="x" * 10_000_000), 413, "too_large", "$"),
]


@pytest.mark.parametrize(("body", "status", "code", "path"), BODIES, ids=range(len(BODIES)))
async def test_a_body_that_is_no_submission(
    client: httpx.AsyncClient, nothing_in_the_log: None, body: bytes, status: int, code: str, path: str | None
) -> None:
    """4xx with the path of the fault, whatever kind of fault it is."""
    assert problem(await client.post("/v1/commands", content=body)) == (status, code, path)


FAULTS: list[tuple[dict[str, Any], str, str]] = [
    *(({"id": id}, "invalid_payload", "$.id") for id in (".", "..", "a b", "a/b", "a\x00b", "\x85", "x" * 201)),
    ({"definition": None, "type": "nope"}, "unknown_type", "$.type"),
    ({"version": -1}, "invalid_payload", "$.version"),
    ({"version": 7}, "invalid_payload", "$.version"),
    ({"timeout": "soon"}, "invalid_payload", "$.timeout"),
    ({"timeout": "٣s"}, "invalid_payload", "$.timeout"),
    ({"timeout": "99999999d"}, "invalid_payload", "$.timeout"),
    ({"admit_within": "5"}, "invalid_payload", "$.admit_within"),
    ({"priority": 1_000_001}, "invalid_payload", "$.priority"),
    ({"attributes": {str(n): n for n in range(33)}}, "invalid_payload", "$.attributes"),
    ({"attributes": {"": "x"}}, "invalid_payload", "$.attributes."),
    ({"attributes": {"k": "x" * 1001}}, "invalid_payload", "$.attributes.k"),
    ({"definition": {**ORDER, "steps": []}}, "invalid_payload", "$.definition.steps"),
]


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_submission_that_is_not_allowed(daemon: Daemon, nothing_in_the_log: None, transport: str) -> None:
    """The same code and the same path on every transport."""
    async with stranger(daemon, transport) as client:
        for fields, code, path in FAULTS:
            submission = {name: value for name, value in {**GOOD, **fields}.items() if value is not None}
            if transport == "tcp" and "admit_within" in submission:
                continue  # a frame is refused or taken at once: only calls may wait for a slot
            told = await client.submit(submission)
            assert (told.code, told.paths) == (code, [path]), fields


REQUESTS: list[tuple[str, str, int, str, str | None]] = [
    *(("GET", f"/v1/commands/x?wait={wait}", 422, "invalid_payload", "?wait") for wait in ("", "5", "-1s", "1e3s")),
    ("GET", "/v1/commands/x?wait=1s&wait=2s", 422, "invalid_payload", "?wait"),
    ("GET", "/v1/commands/x?foo=1", 422, "invalid_payload", "?foo"),
    ("GET", "/v1/commands?limit=0", 422, "invalid_payload", "?limit"),
    ("GET", "/v1/commands?limit=1001", 422, "invalid_payload", "?limit"),
    ("GET", "/v1/commands?state=gone", 422, "invalid_payload", "?state"),
    ("GET", "/v1/commands?attribute.=1", 422, "invalid_payload", "?attribute."),
    ("GET", "/v1/commands?cursor=x", 422, "invalid_payload", "?cursor"),
    *(
        ("GET", f"/v1/commands?cursor={base64.urlsafe_b64encode(text).decode()}", 422, "invalid_payload", "?cursor")
        for text in (b"99999999999999999999999/x", b"-1/x", b"\xff", b"5")
    ),
    ("GET", "/v1/commands?cursor=%FF", 400, "malformed", None),
    ("GET", "/v1/commands/%FF", 400, "malformed", None),
    ("GET", "/v1/commands/" + "x" * 5000, 404, "unknown_command", None),
    ("GET", "/v1/commands/a%00b", 404, "unknown_command", None),
    ("GET", "/v1/nothing", 404, "not_found", None),
    ("DELETE", "/v1/commands", 405, "method_not_allowed", None),
    ("OPTIONS", "/v1/commands", 405, "method_not_allowed", None),
    ("GET", "/v1/outcomes", 422, "invalid_payload", "?service"),
    ("GET", "/v1/outcomes?service=nobody", 404, "unknown_service", None),
    *(
        ("GET", f"/v1/outcomes?service=stock&from={text}", 422, "invalid_payload", "?from")
        for text in ("abc", "0:-1", "0:9999999999999999999", "7:0", "2026-13-01", "Txx", "2026-01-01T00:00:00%2B99:00")
    ),
    ("GET", "/v1/definitions/none", 404, "unknown_definition", None),
    ("PUT", "/v1/definitions/order/0", 422, "invalid_payload", "version"),
    ("PUT", "/v1/definitions/order/%D9%A3", 422, "invalid_payload", "version"),
    ("POST", "/v1/services/stock/breaker", 400, "malformed", "$"),
    ("POST", "/v1/commands/none/requeue", 400, "malformed", "$"),
    ("POST", "/v1/commands/none/pause", 404, "unknown_command", None),
]


@pytest.mark.parametrize(("method", "target", "status", "code", "path"), REQUESTS)
async def test_a_request_that_asks_wrongly(
    client: httpx.AsyncClient, nothing_in_the_log: None, method: str, target: str, status: int, code: str, path: str
) -> None:
    """A fault of the query has the parameter's name as its path; nothing is ever an internal error."""
    assert problem(await client.request(method, target)) == (status, code, path)


async def test_a_time_without_a_zone_is_utc(client: httpx.AsyncClient) -> None:
    """And one at the edge of what a date can be is a date."""
    for text in ("0001-01-01T00:00:00", "9999-12-31T23:59:59", "2026-01-01"):
        assert (await client.get("/v1/outcomes", params={"service": "stock", "from": text})).status_code == 200


@pytest.mark.parametrize("media", [None, "application/x-www-form-urlencoded", "text/plain", '";;/'])
async def test_the_content_type_does_not_matter(client: httpx.AsyncClient, media: str | None) -> None:
    """``curl -d '{…}'`` says that it sends a form; what it sends is JSON, and is taken."""
    headers = {} if media is None else {"content-type": media}
    answer = await client.post("/v1/commands", content=json(), headers=headers, params={"wait": "5s"})
    assert (answer.status_code, answer.json()["state"]) == (200, "completed")
    assert "content-type" not in answer.request.headers or media is not None


async def test_a_chunked_body_is_a_body(client: httpx.AsyncClient) -> None:
    """Also one that comes in pieces of a byte."""

    async def pieces() -> AsyncIterator[bytes]:
        for byte in json():
            yield bytes([byte])

    answer = await client.post("/v1/commands", content=pieces(), params={"wait": "5s"})
    assert "content-length" not in answer.request.headers
    assert answer.status_code == 200


async def test_the_idempotency_key_is_the_id(client: httpx.AsyncClient) -> None:
    """Alone, or equal to the id; the header is named where it is wrong."""
    answer = await client.post("/v1/commands", content=json(), headers={"idempotency-key": "key-1"})
    assert answer.json()["id"] == "key-1"
    again = await client.post("/v1/commands", content=json(id="key-1"), headers={"idempotency-key": "key-1"})
    assert again.headers["coordinator-attached"] == "true"
    for id, key in (("key-2", "key-1"), (None, "a b"), (None, "")):
        body = json() if id is None else json(id=id)
        wrong = await client.post("/v1/commands", content=body, headers={"idempotency-key": key})
        assert problem(wrong) == (422, "invalid_payload", "Idempotency-Key")


@pytest.mark.parametrize("id", ["é", "日本語", "😀", "%2F", "a%20b", "a?b#c", 'a"b', "...", "x" * 200, "{id}", "a\\b"])
async def test_an_id_of_any_characters_is_found_again(client: httpx.AsyncClient, id: str) -> None:
    """By the Location that the submission was answered with."""
    answer = await client.post("/v1/commands", content=json(id=id), params={"wait": "5s"})
    assert answer.json()["id"] == id
    assert (await client.get(answer.headers["location"])).json() == answer.json()
    assert (await client.get(answer.headers["location"] + "/history")).json()[0]["kind"] == "Submitted"


# ---------------------------------------------------------------- definitions


def steps(*changes: dict[str, Any], **rest: Any) -> dict[str, Any]:
    """A definition whose steps are STEP with these changes."""
    return {"steps": [{**STEP, **change} for change in changes], **rest}


A, B, C = {"name": "a"}, {"name": "b"}, {"name": "c"}
DEFINITIONS: list[tuple[dict[str, Any], str]] = [
    (steps({**A, "after": ["a"]}), "$.steps[0].after"),
    (steps({**A, "after": ["c"]}, {**B, "after": ["a"]}, {**C, "after": ["b"]}), "$.steps[0].after"),
    (steps({**A, "after": ["zz"]}), "$.steps[0].after[0]"),
    (steps(A, A), "$.steps[1].name"),
    (steps({"name": "a b"}), "$.steps[0].name"),
    (steps({"service": "nobody"}), "$.steps[0].service"),
    (steps({"undo": {"path": "/u", "service": "nobody"}}), "$.steps[0].undo.service"),
    (steps({"when": "payload.("}), "$.steps[0].when"),
    (steps({"body": {"x": ["${payload.}"]}}), "$.steps[0].body.x[0]"),
    (steps({"body": "${steps.nope.id}"}), "$.steps[0].body"),
    (steps({"body": "${paylod.a}"}), "$.steps[0].body"),
    (steps({**A, "body": "${steps.b}"}, B), "$.steps[0].body"),
    (steps({"path": "http://evil/"}), "$.steps[0].path"),
    (steps({"path": "//evil/"}), "$.steps[0].path"),
    (steps({"headers": {"x": "a\r\nb: c"}}), "$.steps[0].headers.x"),
    (steps({"timeout": "5x"}), "$.steps[0].timeout"),
    (steps({"timeout": []}), "$.steps[0].timeout"),
    (steps({"retry": {"attempts": 3, "first": "x"}}), "$.steps[0].retry.first"),
    (steps({"retry": {"attempts": 0}}), "$.steps[0].retry.attempts"),
    (steps({"foo": 1}), "$.steps[0].foo"),
    (steps({}, foo=1), "$.foo"),
    (steps({}, on_failure="explode"), "$.on_failure"),
    (steps({}, result="${steps.zz}"), "$.result"),
    ({"steps": [None]}, "$.steps[0]"),
    ({}, "$.steps"),
]


@pytest.mark.parametrize(("definition", "path"), DEFINITIONS, ids=range(len(DEFINITIONS)))
async def test_a_definition_that_is_not_allowed(
    client: httpx.AsyncClient, nothing_in_the_log: None, definition: dict[str, Any], path: str
) -> None:
    """Refused at registration, and as part of a submission, with the path of the fault within it."""
    assert problem(await client.put("/v1/definitions/bad/1", json=definition)) == (422, "invalid_payload", path)
    inline = await client.post("/v1/commands", json={"definition": {"name": "bad", "version": 1, **definition}})
    assert problem(inline) == (422, "invalid_payload", path.replace("$", "$.definition", 1))
    assert (await client.get("/v1/definitions/bad")).status_code == 404


async def test_a_registered_version_is_immutable(client: httpx.AsyncClient, daemon: Daemon) -> None:
    """201, then 200 for the same content in any order of keys, 409 for other content; also after kill -9."""
    target = "/v1/definitions/fixed/1"
    same = dict(reversed({"name": "fixed", "version": 1, **steps({})}.items()))
    assert (await client.put(target, json=steps({}))).status_code == 201
    assert (await client.put(target, json=same)).status_code == 200
    assert problem(await client.put(target, json=steps(A)))[:2] == (409, "definition_conflict")
    daemon.kill()
    await asyncio.to_thread(daemon.start)
    assert (await client.put(target, json=same)).status_code == 200
    assert problem(await client.put(target, json=steps(A)))[:2] == (409, "definition_conflict")
    assert (await client.put("/v1/definitions/fixed/2", json=steps(A))).status_code == 201


async def test_of_many_who_register_one_version_one_content_wins(client: httpx.AsyncClient) -> None:
    """All at once: those with the content that came first get 201 or 200, the others 409."""
    answers = await asyncio.gather(
        *(client.put("/v1/definitions/race/1", json=steps({"path": f"/{n % 2}"})) for n in range(20))
    )
    kept = (await client.get("/v1/definitions/race/1")).json()["steps"][0]["path"]
    for n, answer in enumerate(answers):
        assert answer.status_code in ((200, 201) if f"/{n % 2}" == kept else (409,))


# ---------------------------------------------------------------- bytes that are no protocol


async def tcp(daemon: Daemon, sent: bytes) -> tuple[str, bool]:
    """The code of the last Error frame that ``sent`` gets, and whether the connection is closed after it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", daemon.ports["tcp"])
    try:
        with contextlib.suppress(ConnectionError):
            writer.write(sent)
            await writer.drain()
        code = ""
        try:
            async with asyncio.timeout(5):
                while True:
                    answer = await read_frame(reader)
                    code = answer[2] if answer[0] == 10 else code
                    if code and answer[1]:
                        return code, False
        except asyncio.IncompleteReadError:
            return code, True
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


HELLO = frame(0, 0, "coordinator", 1, 1)
FRAMES: list[tuple[bytes, str, bool]] = [
    (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "malformed", True),
    (b"\x16\x03\x01\x02\x00\x01", "malformed", True),
    (b"\x00" * 100, "malformed", True),
    (b"\xff\xff\xff\xff", "malformed", True),
    (os.urandom(2000).replace(b"\x00", b"\x01"), "malformed", True),
    (frame(0, 0, "something", 1, 1), "malformed", True),
    (HELLO + struct.pack(">I", 50_000_000), "too_large", True),
    (HELLO + struct.pack(">I", 5) + b"\xdd\xff\xff\xff\xff", "malformed", True),
    (HELLO + frame(99, 1), "malformed", False),
    (HELLO + frame(1, 1, "final", None, 5), "invalid_payload", False),
    (HELLO + frame(1, 1, "final", None, {"type": "a", "payload": float("nan")}), "invalid_payload", False),
    (HELLO + frame(1, 1, "final", None, {"type": "a", "payload": b"bytes"}), "invalid_payload", False),
    (HELLO + frame(2, 1, "list", None, {"cursor": "OTk5OTk5OTk5OTk5OTk5OTk5OTk5L3g="}), "invalid_payload", False),
    (HELLO + frame(2, 1, "watch", None, {"id": "x", "after": "y"}), "unknown_command", False),
    (HELLO + frame(2, 1, "outcomes", None, {"service": "stock", "from": "7:0"}), "invalid_payload", False),
    (HELLO + frame(2, 1, "nope"), "malformed", False),
]


@pytest.mark.parametrize(("sent", "code", "closed"), FRAMES, ids=range(len(FRAMES)))
async def test_frames_that_are_none(
    daemon: Daemon, nothing_in_the_log: None, sent: bytes, code: str, closed: bool
) -> None:
    """An Error frame with a code; what cannot be a conversation ends, a wrong request only fails itself."""
    assert await tcp(daemon, sent) == (code, closed)


async def test_what_is_too_large_is_refused_in_flat_memory(
    daemon: Daemon, client: httpx.AsyncClient, nothing_in_the_log: None
) -> None:
    """Ten megabytes, ten at once on HTTP and TCP, again and again: refused, kept nowhere, and others are served."""
    body = json(payload="x" * 10_000_000)
    frames = HELLO + struct.pack(">I", len(body)) + body

    async def refused() -> float:
        http = asyncio.gather(*(client.post("/v1/commands", content=body) for _ in range(5)))
        raw = asyncio.gather(*(tcp(daemon, frames) for _ in range(5)))
        assert (await client.get("/healthz")).status_code == 200
        assert {problem(answer) for answer in await http} == {(413, "too_large", "$")}
        assert set(await raw) == {("too_large", True)}
        return resident_mib(daemon)

    first = await refused()
    for _ in range(4):
        last = await refused()
    assert last - first < 8, "100 MB were sent a round"


async def test_a_message_that_is_too_large_for_grpc_is_refused(daemon: Daemon, nothing_in_the_log: None) -> None:
    """By the library itself, before it is kept; the same channel goes on."""
    async with grpc.aio.insecure_channel(daemon.grpc) as channel:
        stub = CoordinatorStub(channel)
        for _ in range(5):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.Submit(pb.SubmitRequest(submission=pb.Submission(payload_json=b"x" * 10_000_000)))
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await stub.Cluster(pb.Empty())).json


async def test_idle_connections_cost_nobody_else_anything(daemon: Daemon, client: httpx.AsyncClient) -> None:
    """Three hundred that say nothing or half a thing, on HTTP and TCP: counted, and another client is served."""

    async def connections(transport: str) -> float:
        return sample((await client.get("/metrics")).text, f'coordinator_connections{{transport="{transport}"}}')

    before = {name: await connections(name) for name in ("http", "tcp")}
    held = []
    for n in range(150):
        for name, begun in (("http", b"POST /v1/commands HTTP/1.1\r\nContent-Le"), ("tcp", b"\x00\x00\x00\x10\x97")):
            _, writer = await asyncio.open_connection("127.0.0.1", daemon.ports[name])
            if n % 2:
                writer.write(begun)
            held.append(writer)
    answer = await client.post("/v1/commands", content=json(), params={"wait": "5s"})
    assert answer.json()["state"] == "completed"
    assert {name: await connections(name) for name in before} == {name: was + 150 for name, was in before.items()}
    for writer in held:
        writer.close()
    async with asyncio.timeout(10):
        while {name: await connections(name) for name in before} != before:
            pass


async def test_half_a_close_is_no_reason_not_to_answer(daemon: Daemon) -> None:
    """Requests sent in one piece, the sending side closed: each is answered, in order."""
    reader, writer = await asyncio.open_connection("127.0.0.1", daemon.ports["http"])
    one = b"POST /v1/commands?wait=5s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(json()), json())
    writer.write(one * 5 + b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    writer.write_eof()
    async with asyncio.timeout(10):
        answered = await reader.read()
    assert answered.count(b"HTTP/1.1 200 OK") == 6
    assert answered.count(b'"state":"completed"') == 5
    writer.close()
