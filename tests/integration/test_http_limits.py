"""One slow or hostile HTTP client never hurts the others: limits, timeouts and garbage, over real sockets.

No request here gets as far as the Front: each is answered, or cut off, before.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import msgspec
import pytest
import trustme

from coordinator.errors import StartupError
from coordinator.transport.base import Front
from coordinator.transport.http import HttpServer, HttpSettings

NO_FRONT = cast("Front", None)
SETTINGS = HttpSettings(
    body_bytes_max=100_000,
    discard_bytes_max=1_000_000,
    head_bytes_max=8_000,
    connections_max=8,
    pipelined_max=20,
    head_timeout_ms=150,
    body_timeout_ms=150,
    idle_timeout_ms=300,
)
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /v1/commands HTTP/1.1\r\nHost: x\r\n"

Connect = Callable[[], Any]


class Answer(msgspec.Struct):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        assert self.headers["content-type"] == "application/problem+json"
        return str(msgspec.json.decode(self.body)["code"])


class Client:
    """An HTTP client of raw bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        with contextlib.suppress(ConnectionError):
            await self.writer.drain()

    async def answer(self) -> Answer:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in head[1:] if line)
        return Answer(
            int(head[0].split(" ")[1]), headers, await self.reader.readexactly(int(headers["content-length"]))
        )

    async def ask(self, data: bytes) -> Answer:
        await self.send(data)
        return await self.answer()

    async def closed(self) -> bool:
        """Waits for the server's close; True if nothing came before it."""
        return await self.reader.read() == b""


@pytest.fixture
async def server() -> AsyncIterator[HttpServer]:
    server = HttpServer(NO_FRONT, host="127.0.0.1", port=0, settings=SETTINGS)
    await server.start()
    try:
        async with asyncio.timeout(20):
            yield server
    finally:
        await server.close(0)


@pytest.fixture
async def connect(server: HttpServer) -> AsyncIterator[Connect]:
    """Opens clients; closes them all at the end."""
    clients: list[Client] = []

    async def open_one() -> Client:
        clients.append(Client(*await asyncio.open_connection(*server.address)))
        return clients[-1]

    yield open_one
    for client in clients:
        client.writer.close()
        with contextlib.suppress(ConnectionError):
            await client.writer.wait_closed()


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\r\n\r\nnonsense\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\xc3\xa9 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT example.org:443 HTTP/1.1\r\nHost: x\r\n\r\n",
        POST + b"Content-Length: -1\r\n\r\n",
        POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        POST + b"Broken Header: x\r\n\r\n",
    ],
)
async def test_garbage_gets_a_problem_and_the_connection_ends(connect: Connect, garbage: bytes) -> None:
    """Whatever the parser refuses is a 400 in the one format, never plain text; neighbours notice nothing."""
    neighbour = await connect()
    assert (await neighbour.ask(HEALTH)).status == 200
    client = await connect()
    answer = await client.ask(garbage)
    assert (answer.status, answer.code, answer.headers["connection"]) == (400, "malformed", "close")
    assert await client.closed()
    assert (await neighbour.ask(HEALTH)).status == 200


async def test_requests_before_garbage_are_answered_first(connect: Connect) -> None:
    """Pipelined answers keep their order; the fault comes last."""
    client = await connect()
    await client.send(HEALTH * 3 + b"nonsense\r\n\r\n")
    assert [(await client.answer()).status for _ in range(4)] == [200, 200, 200, 400]
    assert await client.closed()


async def test_pipelining_is_bounded(connect: Connect) -> None:
    """What is sent ahead within the bound is answered in order; the rest is refused."""
    client = await connect()
    await client.send(HEALTH * 100)
    statuses = []
    with contextlib.suppress(asyncio.IncompleteReadError):
        while True:
            statuses.append((await client.answer()).status)
    assert statuses[-1] == 400
    assert set(statuses[:-1]) == {200}
    assert SETTINGS.pipelined_max <= len(statuses) <= SETTINGS.pipelined_max + 2


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nX: " + b"a" * 9_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000,
        b"GET /" + b"a" * 9_000 + b" HTTP/1.1\r\n\r\n",
    ],
    ids=["whole", "endless", "target"],
)
async def test_a_large_head_is_refused(connect: Connect, head: bytes) -> None:
    """Also one that never ends, and one that is sent in one piece."""
    client = await connect()
    answer = await client.ask(head)
    assert (answer.status, answer.code) == (431, "too_large")
    assert await client.closed()


async def test_a_head_that_does_not_come_is_given_up(connect: Connect) -> None:
    """One byte now and then keeps nobody's connection open; one that never spoke is closed without a word."""
    silent, slow = await connect(), await connect()
    answer = await slow.ask(b"GET / HTTP/1.1\r\nHost:")
    assert (answer.status, answer.code) == (408, "request_timeout")
    assert await slow.closed()
    assert await silent.closed()


@pytest.mark.parametrize("framing", [b"Content-Length: 100\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\n5\r\n{"])
async def test_a_body_that_does_not_come_is_given_up(connect: Connect, framing: bytes) -> None:
    """However it is framed."""
    client = await connect()
    answer = await client.ask(POST + framing)
    assert (answer.status, answer.code) == (408, "request_timeout")
    assert await client.closed()


async def test_an_idle_connection_is_closed(connect: Connect) -> None:
    """After its last answer, in silence."""
    client = await connect()
    assert (await client.ask(HEALTH)).status == 200
    assert await client.closed()


@pytest.mark.parametrize(
    "request_",
    [
        b"Content-Length: 900000\r\n\r\n" + b"x" * 900_000,
        b"Transfer-Encoding: chunked\r\n\r\n" + (b"10000\r\n" + b"y" * 65_536 + b"\r\n") * 10 + b"0\r\n\r\n",
    ],
    ids=["length", "chunked"],
)
@pytest.mark.parametrize("closing", [b"", b"Connection: close\r\n"], ids=["keep", "close"])
async def test_a_large_body_is_refused_and_the_answer_arrives(
    connect: Connect, request_: bytes, closing: bytes
) -> None:
    """413 without a reset, whether the client goes on with the connection or not."""
    client = await connect()
    sending = asyncio.ensure_future(client.send(POST + closing + request_))
    answer = await client.answer()
    await sending
    assert (answer.status, answer.code) == (413, "too_large")
    if closing:
        assert await client.closed()
    else:
        assert (await client.ask(HEALTH)).status == 200


async def test_an_endless_body_is_not_read_for_ever(connect: Connect) -> None:
    """Beyond what is dropped for politeness the connection is cut."""
    client = await connect()
    await client.send(POST + b"Content-Length: 1000000000\r\n\r\n")
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        while True:
            client.writer.write(b"x" * 65_536)
            await client.writer.drain()
    assert client.reader.at_eof() or client.writer.is_closing() or client.reader.exception()


async def test_a_client_that_asks_first_need_not_send_what_is_refused(connect: Connect) -> None:
    """Expect: 100-continue: a refusal comes instead of the go-ahead, and ends the connection."""
    client = await connect()
    answer = await client.ask(POST + b"Expect: 100-continue\r\nContent-Length: 900000\r\n\r\n")
    assert (answer.status, answer.headers["connection"]) == (413, "close")
    patient = await connect()
    await patient.send(POST + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n")
    assert await patient.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert (await patient.ask(b"{x")).code == "malformed"


async def test_an_offer_to_upgrade_is_declined_by_going_on(connect: Connect) -> None:
    """Java's client offers h2c; its body, and its next request, are read as if it had not."""
    client = await connect()
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    await client.send(POST + offer + b'Content-Length: 8\r\n\r\n{"id":1}' + HEALTH)
    wrong = await client.answer()
    assert (wrong.code, b'"$.id"' in wrong.body) == ("invalid_payload", True)
    assert (await client.answer()).status == 200


async def test_when_all_connections_are_taken_the_idlest_gives_way(connect: Connect) -> None:
    """A client that hoards idle connections keeps nobody out."""
    hoard = [await connect() for _ in range(SETTINGS.connections_max)]
    for client in hoard:
        assert (await client.ask(HEALTH)).status == 200
    newcomer = await connect()
    assert (await newcomer.ask(HEALTH)).status == 200
    with contextlib.suppress(ConnectionError):
        assert await hoard[0].closed()


async def test_when_all_connections_are_busy_the_next_is_told_to_come_back(connect: Connect) -> None:
    """503 with a delay, at once."""
    for _ in range(SETTINGS.connections_max):
        await (await connect()).send(POST + b"Content-Length: 10\r\n\r\n{")
    late = await connect()
    answer = await late.answer()
    assert (answer.status, answer.code, answer.headers["retry-after"]) == (503, "unavailable", "1")


async def test_a_reader_that_stalls_is_cut_off() -> None:
    """Answers that nobody takes are not kept for ever: the connection is reset."""
    patient = msgspec.structs.replace(SETTINGS, pipelined_max=1000, write_timeout_ms=150)
    server = HttpServer(NO_FRONT, host="127.0.0.1", port=0, settings=patient)
    await server.start()
    try:
        with socket.socket() as raw:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            raw.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(raw, server.address)
            with pytest.raises(ConnectionError):
                async with asyncio.timeout(20):
                    await _ask_for_ever(raw)
    finally:
        await server.close(0)


async def _ask_for_ever(raw: socket.socket) -> None:
    """Asks for a hundred kilobytes again and again, and reads none of it."""
    loop = asyncio.get_running_loop()
    while True:
        await loop.sock_sendall(raw, b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 200)


async def test_wrong_methods_paths_and_media_are_problems(connect: Connect) -> None:
    """404, 405 with Allow, 415 for what is compressed; the connection goes on."""
    client = await connect()
    assert (await client.ask(b"GET /nope HTTP/1.1\r\nHost: x\r\n\r\n")).code == "not_found"
    wrong = await client.ask(b"DELETE /v1/commands HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (wrong.status, wrong.code, wrong.headers["allow"]) == (405, "method_not_allowed", "GET, HEAD, POST")
    form = b"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 3\r\n\r\na=b"
    assert (await client.ask(POST + form)).code == "malformed", "the content type does not matter, what is sent does"
    assert (await client.ask(POST + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}")).status == 415
    assert (await client.ask(POST + b"Content-Length: 0\r\n\r\n")).code == "malformed"
    assert (await client.ask(HEALTH)).status == 200


async def test_draining_closes_each_connection_after_its_answer(server: HttpServer, connect: Connect) -> None:
    """So that clients and load balancers move elsewhere; new connections are still served."""
    old = await connect()
    assert "connection" not in (await old.ask(HEALTH)).headers
    await server.drain()
    for client in (old, await connect()):
        assert (await client.ask(HEALTH)).headers["connection"] == "close"
        assert await client.closed()


async def test_closing_ends_idle_connections_and_listens_no_more(server: HttpServer, connect: Connect) -> None:
    """At once, when nothing is under way."""
    client = await connect()
    assert (await client.ask(HEALTH)).status == 200
    address = server.address
    await server.close(10_000)
    assert await client.closed()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*address)


async def test_a_port_that_is_taken_stops_the_start(server: HttpServer) -> None:
    """With a sentence for the operator."""
    host, port = server.address
    with pytest.raises(StartupError, match=f"{host}:{port}"):
        await HttpServer(NO_FRONT, host=host, port=port).start()


async def test_https() -> None:
    """The same over TLS, large bodies included."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    trusted = ssl.create_default_context()
    authority.configure_trust(trusted)
    server = HttpServer(NO_FRONT, host="127.0.0.1", port=0, settings=SETTINGS, ssl=context)
    await server.start()
    try:
        client = Client(*await asyncio.open_connection(*server.address, ssl=trusted))
        assert (await client.ask(HEALTH)).status == 200
        sending = asyncio.ensure_future(client.send(POST + b"Content-Length: 900000\r\n\r\n" + b"x" * 900_000))
        assert (await client.answer()).status == 413
        await sending
        assert (await client.ask(HEALTH)).status == 200
        client.writer.close()
        await client.writer.wait_closed()
    finally:
        await server.close(0)
