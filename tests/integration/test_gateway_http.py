"""The HTTP/1.1 client against services that close, stall, lie, hurry and babble, on real sockets and both loops."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import ssl
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from coordinator.errors import ConfigError
from coordinator.gateway import http
from coordinator.gateway.http import HttpCaller
from coordinator.model.call import Answer, Request
from coordinator.model.settings import ServiceSettings
from tests.gateway_kit import (
    Peer,
    Received,
    Script,
    ScriptedService,
    a_call,
    always,
    ask,
    begin,
    failure,
    on_both_loops,
    outcome,
    reply,
    silence,
    then_close,
    unknown,
    until,
)

POST = Request(service="pay", path="/charges", body={"amount": 5})
OK = reply(b'{"ok":1}')
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@contextlib.asynccontextmanager
async def calling(url: str, **settings: Any) -> AsyncIterator[HttpCaller]:
    caller = HttpCaller(ServiceSettings(name="pay", url=url, **settings), asyncio.get_running_loop())
    try:
        yield caller
    finally:
        await caller.close()


@contextlib.asynccontextmanager
async def serving(script: Script, **rest: Any) -> AsyncIterator[tuple[ScriptedService, HttpCaller]]:
    """A scripted service and a caller for it; ``rest`` are settings of the service."""
    async with ScriptedService(script) as service, calling(service.url, **rest) as caller:
        yield service, caller


async def once(script: Script, request: Request = POST, **rest: Any) -> Answer:
    async with serving(script, **rest) as (_, caller):
        return await ask(caller, request)


# ---------------------------------------------------------------- answers, whole and in all shapes


@on_both_loops
async def test_a_connection_is_used_again() -> None:
    """Calls one after the other share one connection."""
    async with serving(always(OK)) as (service, caller):
        for _ in range(5):
            assert outcome(await ask(caller, POST)) == {"ok": 1}
        assert (service.connections, len(service.requests)) == (1, 5)
        assert {request.body for request in service.requests} == {b'{"amount":5}'}


@on_both_loops
async def test_a_call_started_in_done_takes_the_same_connection() -> None:
    """The connection is free again before its call is answered."""
    async with serving(always(OK)) as (service, caller):
        over = asyncio.get_running_loop().create_future()
        left = 5

        def done(call: Any, answer: Answer) -> None:
            nonlocal left
            left -= 1
            caller.send(a_call(POST), done) if left else over.set_result(None)

        caller.send(a_call(POST), done)
        await over
        assert service.connections == 1


SHAPES = {
    "chunked": [CHUNKED, b'4;x=y\r\n{"ok\r\n', b'4\r\n":1}\r\n0\r\nT: 1\r\n\r\n'],
    "lower-case headers": [b"HTTP/1.1 200 OK\r\ncontent-type:application/json\r\ncontent-length:8\r\n\r\n{\"ok\":1}"],
    "shouting headers": [b"HTTP/1.1 200 OK\r\nCONTENT-TYPE: application/json\r\nCONTENT-LENGTH: 8\r\n\r\n{\"ok\":1}"],
    "no reason": [b"HTTP/1.1 200\r\nContent-Length: 8\r\n\r\n{\"ok\":1}"],
    "100 first": [b"HTTP/1.1 100 Continue\r\n\r\n", OK],
    "100 and 103 first": [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK],
    "in pieces": [OK[i : i + 1] for i in range(len(OK))],
    "empty lines before": [b"\r\n\r\n" + OK],
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
@on_both_loops
async def test_shapes_of_an_answer(shape: str) -> None:
    """All say the same, and the connection stays usable."""
    async with serving(always(*SHAPES[shape])) as (service, caller):
        for _ in range(2):
            assert outcome(await ask(caller, POST)) == {"ok": 1}
        assert service.connections == 1


@on_both_loops
async def test_an_answer_that_ends_with_the_connection() -> None:
    """HTTP/1.0 style: neither length nor chunks; the next call gets a new connection."""
    async with serving(then_close(b'HTTP/1.1 200 OK\r\n\r\n{"o', b'k":1}')) as (service, caller):
        for _ in range(2):
            assert outcome(await ask(caller, POST)) == {"ok": 1}
        assert service.connections == 2


@on_both_loops
async def test_an_answer_that_ends_a_reused_connection() -> None:
    """The connection was kept so far; now its end is the answer's."""

    async def second_ends(request: Received, peer: Peer) -> None:
        if len(service.requests) == 2:
            await then_close(b'HTTP/1.1 200 OK\r\n\r\n{"ok":1}')(request, peer)
        else:
            await peer.send(OK)

    async with serving(second_ends) as (service, caller):
        for _ in range(3):
            assert outcome(await ask(caller, POST)) == {"ok": 1}
            assert len(caller._idle) == (0 if len(service.requests) == 2 else 1)
        assert (service.connections, len(service.requests)) == (2, 3)


@on_both_loops
async def test_a_service_that_wants_to_close() -> None:
    """Connection: close, and HTTP/1.0, are respected."""
    for answer in (reply(b'{"ok":1}', "200 OK", "", "Connection: close"), OK.replace(b"HTTP/1.1", b"HTTP/1.0")):
        async with serving(always(answer)) as (service, caller):
            for _ in range(2):
                assert outcome(await ask(caller, POST)) == {"ok": 1}
            assert service.connections == 2


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
@on_both_loops
async def test_answers_without_a_body(status: str) -> None:
    """204 and 304 have none, whatever their length says."""
    answer = f"HTTP/1.1 {status}\r\nContent-Length: 99999999\r\n\r\n".encode()
    async with serving(always(answer)) as (service, caller):
        for _ in range(2):
            got = await ask(caller, Request(service="pay", method="GET", answers={"304": "outcome"}))
            assert outcome(got) is None
        assert service.connections == 1


@on_both_loops
async def test_head() -> None:
    """The answer to HEAD has a length and no body."""
    async with serving(always(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n")) as (_, caller):
        for _ in range(2):
            assert outcome(await ask(caller, Request(service="pay", method="HEAD"))) is None


@on_both_loops
async def test_redirects_are_not_followed() -> None:
    """A step goes where the configuration says."""
    async with serving(always(reply(b"", "302 Found", "", "Location: http://127.0.0.1:1/"))) as (service, caller):
        assert failure(await ask(caller, POST)) == "http_302"
        assert len(service.requests) == 1


@on_both_loops
async def test_a_base_path() -> None:
    """What the configured URL holds beyond the host is put before each path."""
    async with ScriptedService(always(OK)) as service, calling(service.url + "/v1/") as caller:
        outcome(await ask(caller, Request(service="pay", path="/charges?x=ü")))
        assert service.requests[0].target == "/v1/charges?x=%C3%BC"


@on_both_loops
async def test_retry_after_as_a_date() -> None:
    """A date that is long ahead is capped at an hour."""
    answer = await once(always(reply(b"", "503 Busy", "", "Retry-After: Fri, 01 Jan 2100 00:00:00 GMT")))
    assert (unknown(answer), answer.retry_after_ms) == ("http_503", 3_600_000)


# ---------------------------------------------------------------- connections that die


@on_both_loops
async def test_a_service_that_closes_idle_connections_is_not_noticed() -> None:
    """The call on the dead connection goes out again on a fresh one, once."""
    async with serving(always(OK)) as (service, caller):
        outcome(await ask(caller, POST))

        async def close_first(request: Received, peer: Peer) -> None:
            if peer.number == 1:
                peer.reset()
            else:
                await peer.send(OK)

        service.script = close_first
        assert outcome(await ask(caller, POST)) == {"ok": 1}
        assert service.connections == 2
        assert service.requests[1].headers == service.requests[2].headers


@on_both_loops
async def test_an_idle_connection_that_was_closed_is_not_used() -> None:
    """A close that was seen while idle costs nothing at all."""
    async with serving(always(OK)) as (service, caller):
        outcome(await ask(caller, POST))
        service.peers[0].close()
        await until(lambda: not caller._connections)  # the client has seen it
        assert outcome(await ask(caller, POST)) == {"ok": 1}
        assert len(service.requests) == 2


@on_both_loops
async def test_a_connection_that_was_idle_for_long_is_not_trusted() -> None:
    """Networks forget idle connections without a word."""
    async with serving(always(OK)) as (service, caller):
        outcome(await ask(caller, POST))
        (idle,) = caller._idle
        idle.used_at -= http.IDLE_S_MAX
        outcome(await ask(caller, POST))
        assert service.connections == 2
        assert len(caller._connections) == 1


@pytest.mark.parametrize(
    "pieces", [[], [OK[:10]], [OK[:-1]], [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nab"]]
)
@on_both_loops
async def test_a_fresh_connection_that_dies(pieces: list[bytes]) -> None:
    """No answer or half of one is unknown; it is not sent again from here."""
    async with serving(then_close(*pieces)) as (service, caller):
        assert unknown(await ask(caller, POST)) == "connection_lost"
        assert len(service.requests) == 1


@on_both_loops
async def test_a_reset() -> None:
    """Also in the middle of an answer that would end with the connection."""

    async def reset(request: Received, peer: Peer) -> None:
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\nhalf")
        peer.reset()

    assert unknown(await once(reset)) == "connection_lost"


@on_both_loops
async def test_a_refused_connection() -> None:
    """Nobody listens there."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        for host in ("127.0.0.1", "localhost"):
            async with calling(f"http://{host}:{unused.getsockname()[1]}") as caller:
                assert unknown(await ask(caller, POST)) == "connection_refused"
                assert not caller._connections


@on_both_loops
async def test_a_name_that_does_not_resolve() -> None:
    """The reserved name says so everywhere."""
    async with calling("http://nowhere.invalid:1") as caller:
        assert unknown(await ask(caller, POST)) == "unresolved"


@on_both_loops
async def test_a_host_that_takes_no_connections() -> None:
    """The connect deadline ends it, well before the call's own."""
    with contextlib.ExitStack() as held:
        full = held.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(3):  # its queue is full: further connections are left waiting
            filler = held.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        async with calling(f"http://127.0.0.1:{full.getsockname()[1]}", connect_timeout_ms=50) as caller:
            assert unknown(await ask(caller, POST)) == "connect_timeout"
            assert unknown(await ask(caller, POST, timeout_ms=20)) == "timeout"
            assert caller.in_flight == 0
            assert not caller._connections


@on_both_loops
async def test_localhost_by_either_family() -> None:
    """All addresses of a name are tried."""
    async with serving(always(OK)) as (service, _), calling(f"http://localhost:{service.port}") as caller:
        assert outcome(await ask(caller, POST)) == {"ok": 1}


@on_both_loops
async def test_ipv6() -> None:
    """Host has the address in brackets."""
    async with ScriptedService(always(OK), host="::1") as service, calling(service.url) as caller:
        assert outcome(await ask(caller, POST)) == {"ok": 1}
        assert service.requests[0].headers["host"] == f"[::1]:{service.port}"


# ---------------------------------------------------------------- services that do not keep to the rules

GARBAGE = {
    "no HTTP": b"220 smtp.example ESMTP\r\n",
    "TLS": b"\x15\x03\x01\x00\x02\x02\x46",
    "a request": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "HTTP/9": b"HTTP/9.9 200 OK\r\n\r\n",
    "status 99": b"HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n",
    "status 000": b"HTTP/1.1 000 OK\r\nContent-Length: 0\r\n\r\n",
    "status 777": b"HTTP/1.1 777 OK\r\nContent-Length: 0\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "length and chunks": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\na",
    "length no number": b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
    "length negative": b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
    "length enormous": b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\n",
    "bad chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "header no name": b"HTTP/1.1 200 OK\r\n: x\r\n\r\n",
    "upgrade": b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: foo\r\n\r\n\0\0",
    "bare 101": b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    "zeros": b"\0" * 1000,
}


@pytest.mark.parametrize("name", GARBAGE)
@on_both_loops
async def test_garbage_is_an_unknown_answer(name: str) -> None:
    """The connection is dropped, the next call is well."""
    async with serving(always(GARBAGE[name])) as (service, caller):
        assert unknown(await ask(caller, POST)) == "bad_answer"
        service.script = always(OK)
        assert outcome(await ask(caller, POST)) == {"ok": 1}
        assert service.connections == 2


@pytest.mark.parametrize("surplus", [OK, OK[:5], b"garbage", b"x"])
@on_both_loops
async def test_of_two_answers_the_first_counts(surplus: bytes) -> None:
    """And what came after it never reaches the next call."""
    async with serving(always(reply(b'{"first":1}') + surplus)) as (service, caller):
        assert outcome(await ask(caller, POST)) == {"first": 1}
        service.script = always(OK)
        assert outcome(await ask(caller, POST)) == {"ok": 1}
        assert service.connections == 2


@on_both_loops
async def test_a_second_answer_to_an_idle_connection() -> None:
    """What nobody asked for ends the connection."""
    async with serving(always(OK)) as (service, caller):
        outcome(await ask(caller, POST))
        await service.peers[0].send(reply(b'{"late":1}'))
        await service.peers[0].over.wait()
        assert outcome(await ask(caller, POST)) == {"ok": 1}


@on_both_loops
async def test_more_body_than_announced() -> None:
    """The announced part counts."""
    async with serving(always(OK + b"surplus")) as (service, caller):
        for _ in range(2):
            assert outcome(await ask(caller, POST)) == {"ok": 1}
        assert service.connections == 2


@on_both_loops
async def test_less_body_than_announced() -> None:
    """The rest never comes: the deadline ends it."""
    async with serving(always(OK[:-1])) as (_, caller):
        assert unknown(await ask(caller, POST, timeout_ms=50)) == "timeout"


@on_both_loops
async def test_an_answer_before_the_request_was_read() -> None:
    """A long request is refused at its head: the answer counts, the connection does not."""

    async def early(request: Received, peer: Peer) -> None:
        await peer.send(reply(b'{"message":"too long"}', "413 Too Large"))
        await peer.gone()

    async with ScriptedService(early, read_body=False) as service, calling(service.url) as caller:
        request = Request(service="pay", body=b"x" * (8 << 20))
        assert failure(await ask(caller, request)) == "http_413"
        service.read_body, service.script = True, always(OK)
        assert outcome(await ask(caller, POST)) == {"ok": 1}
        assert service.connections == 2


@on_both_loops
async def test_a_long_request_is_written_as_it_is_taken() -> None:
    """Eight megabytes arrive whole, and are never queued as a whole in the connection."""
    async with serving(always(OK)) as (service, caller):
        body = bytes(range(256)) * (8 << 12)
        future = begin(caller, a_call(Request(service="pay", body=body)))
        highest = 0
        while not future.done():
            highest = max([highest, *(c.transport.get_write_buffer_size() for c in caller._connections if c.transport)])
            await asyncio.sleep(0)
        assert outcome(future.result()) == {"ok": 1}
        assert service.requests[0].body == body
        assert highest <= 256 * 1024
        assert outcome(await ask(caller, POST)) == {"ok": 1}
        assert service.connections == 1


# ---------------------------------------------------------------- size


@pytest.mark.parametrize(
    "pieces",
    [
        [reply(b"x" * 1_001)],
        [b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n"],
        [b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 1_001],
        [CHUNKED, b"1f4\r\n" + b"x" * 500 + b"\r\n", b"1f5\r\n" + b"x" * 501],
        [b"HTTP/1.1 200 OK\r\nX: ", b"x" * 70_000],
        [b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 12_000],
        [b"HTTP/1.1 100 Continue\r\n\r\n" * 3_000],
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: ", b"x" * 100_000],
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"x" * 100_000],
    ],
)  # fmt: skip
@on_both_loops
async def test_too_large_an_answer(pieces: list[bytes]) -> None:
    """Body, head, interim answers, trailers and chunk extensions are all bounded."""
    async with serving(always(*pieces), response_bytes_max=1_000) as (service, caller):
        assert unknown(await ask(caller, POST)) == "answer_too_large"
        service.script = always(OK)
        assert outcome(await ask(caller, POST)) == {"ok": 1}


@on_both_loops
async def test_an_answer_of_exactly_the_limit() -> None:
    """The limit is what may be, not what may not."""
    body = b'"' + b"x" * 998 + b'"'
    assert outcome(await once(always(reply(body)), response_bytes_max=1_000)) == "x" * 998


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\n"])
@on_both_loops
async def test_memory_stays_flat_under_an_endless_answer(head: bytes) -> None:
    """A service that never stops sending costs a megabyte or so, not all there is."""

    async def endless(request: Received, peer: Peer) -> None:
        await peer.send(head)
        while True:
            await peer.send(b"Xy: z\r\n" * 1_000)

    async with serving(endless, response_bytes_max=200_000) as (_, caller):
        tracemalloc.start()
        try:
            assert unknown(await ask(caller, POST)) == "answer_too_large"
            assert tracemalloc.get_traced_memory()[1] < 4 << 20
        finally:
            tracemalloc.stop()


# ---------------------------------------------------------------- time


@on_both_loops
async def test_a_silent_service() -> None:
    """The deadline of the call, or else the service's own, ends it; the answer says which."""
    async with serving(silence, timeout_ms=30) as (_, caller):
        for timeout_ms in (None, 20):
            answer = await ask(caller, POST, timeout_ms=timeout_ms)
            assert unknown(answer) == "timeout"
            assert answer.failure is not None
            assert f"within {timeout_ms or 30} ms" in answer.failure.message
        assert caller.in_flight == 0


@on_both_loops
async def test_a_drop_at_a_time() -> None:
    """A service that keeps sending a little does not move the deadline."""

    async def drip(request: Received, peer: Peer) -> None:
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while True:
            await peer.send(b"x")
            await asyncio.sleep(0.002)

    async with serving(drip) as (_, caller):
        began = asyncio.get_running_loop().time()
        assert unknown(await ask(caller, POST, timeout_ms=60)) == "timeout"
        assert 0.05 < asyncio.get_running_loop().time() - began < 5


@on_both_loops
async def test_deadlines_of_many_calls() -> None:
    """Each call ends at its own time, the shortest first, whatever the order of sending."""
    async with serving(silence) as (_, caller):
        order: list[int] = []
        over = asyncio.get_running_loop().create_future()

        def done(call: Any, answer: Answer) -> None:
            order.append(call.timeout_ms)
            if len(order) == 4:
                over.set_result(None)

        for timeout_ms in (90, 30, 120, 60):
            caller.send(a_call(POST, timeout_ms=timeout_ms), done)
        await over
        assert order == [30, 60, 90, 120]
        assert caller._alarm is None


@on_both_loops
async def test_an_answer_after_the_deadline_reaches_nobody() -> None:
    """The late answer dies with its connection; the next call gets its own."""
    gate = asyncio.Event()

    async def late(request: Received, peer: Peer) -> None:
        if peer.number == 1:
            await gate.wait()
            await peer.send(reply(b'"late"'))
        else:
            await peer.send(OK)

    async with serving(late) as (_, caller):
        assert unknown(await ask(caller, POST, timeout_ms=20)) == "timeout"
        gate.set()
        assert outcome(await ask(caller, POST)) == {"ok": 1}


# ---------------------------------------------------------------- turns


@on_both_loops
async def test_turns_are_taken_in_order_and_bounded() -> None:
    """Never more than max_in_flight at once, first come first served, nothing lost."""
    open_now, most = 0, 0

    async def count(request: Received, peer: Peer) -> None:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        await asyncio.sleep(0)
        open_now -= 1
        await peer.send(OK)

    async with serving(count, max_in_flight=3) as (service, caller):
        calls = [begin(caller, a_call(Request(service="pay", path=f"/{i}"))) for i in range(50)]
        assert (caller.in_flight, caller.queued) == (3, 47)
        for call in calls:
            assert outcome(await call) == {"ok": 1}
        assert most <= 3
        assert service.connections <= 3
        assert (caller.in_flight, caller.queued) == (0, 0)

    async with serving(always(OK), max_in_flight=1) as (service, caller):
        for call in [begin(caller, a_call(Request(service="pay", path=f"/{i}"))) for i in range(20)]:
            await call
        assert [request.target for request in service.requests] == [f"/{i}" for i in range(20)]


@on_both_loops
async def test_waiting_for_a_turn_takes_no_time_off_the_call() -> None:
    """A backlog at a healthy service is no reason for an unknown answer."""

    async def slow(request: Received, peer: Peer) -> None:
        await asyncio.sleep(0.03)
        await peer.send(OK)

    async with serving(slow, max_in_flight=1) as (_, caller):
        for call in [begin(caller, a_call(POST, timeout_ms=250)) for _ in range(10)]:
            assert outcome(await call) == {"ok": 1}


@on_both_loops
async def test_a_backlog_at_a_silent_service_ends() -> None:
    """After a whole timeout of silence nobody goes on waiting for a turn."""
    async with serving(silence, max_in_flight=2) as (service, caller):
        began = asyncio.get_running_loop().time()
        for call in [begin(caller, a_call(POST, timeout_ms=50)) for _ in range(100)]:
            assert unknown(await call) == "timeout"
        assert asyncio.get_running_loop().time() - began < 2
        assert len(service.requests) <= 10
        assert (caller.in_flight, caller.queued) == (0, 0)


@on_both_loops
async def test_a_call_with_little_time_does_not_end_those_with_more() -> None:
    """A slow but living service: only the impatient call is given up."""

    async def slow(request: Received, peer: Peer) -> None:
        await asyncio.sleep(0.05)
        await peer.send(OK)

    async with serving(slow, max_in_flight=1) as (_, caller):
        impatient = begin(caller, a_call(POST, timeout_ms=10))
        patient = [begin(caller, a_call(POST)) for _ in range(3)]
        assert unknown(await impatient) == "timeout"
        for call in patient:
            assert outcome(await call) == {"ok": 1}


# ---------------------------------------------------------------- the rest


@on_both_loops
async def test_a_request_that_cannot_be_built_is_never_sent() -> None:
    """It fails with its own code, and later, as any answer."""
    async with serving(always(OK)) as (service, caller):
        bad: list[dict[str, Any]] = [
            {"path": "http://evil/"}, {"path": 5}, {"method": "GET /"}, {"method": None}, {"headers": {"X": "a\r\nb"}},
            {"headers": {"Host": "evil"}}, {"body": object()}, {"answers": {"404": "?"}},
        ]  # fmt: skip
        for parts in bad:
            assert failure(await ask(caller, Request(service="pay", **parts))) == "bad_request_built"
        assert service.connections == 0


@on_both_loops
async def test_a_mistake_in_done_costs_no_neighbour() -> None:
    """It is reported to the loop; the connection and the waiting calls go on."""
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context))

    def broken(call: Any, answer: Answer) -> None:
        raise ValueError("mine")

    async with serving(always(OK), max_in_flight=1) as (service, caller):
        caller.send(a_call(POST), broken)
        assert outcome(await ask(caller, POST)) == {"ok": 1}
        assert [type(context["exception"]) for context in reported] == [ValueError]
        assert service.connections == 1


@on_both_loops
async def test_close_ends_everything() -> None:
    """Calls under way, connecting and waiting: none is answered, no connection and no task is left."""
    async with serving(silence, max_in_flight=2) as (service, caller):
        answered: list[Any] = []
        for _ in range(5):
            caller.send(a_call(POST), lambda call, answer: answered.append(answer))
        await until(lambda: service.requests)
        await caller.close()
        assert not caller._connections
        assert answered == []
        assert unknown(await ask(caller, POST)) == "closed"
        await caller.close()


@on_both_loops
async def test_nothing_is_left_in_memory() -> None:
    """Connections and exchanges are gone once they are over."""
    async with serving(then_close(OK)) as (_, caller):
        for _ in range(20):
            await ask(caller, POST)
    del caller
    gc.collect()
    kinds = (http._Connection, http._Exchange)
    assert not [found for found in gc.get_objects() if isinstance(found, kinds)]


# ---------------------------------------------------------------- TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def ca_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("tls") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


def server_tls(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context


@on_both_loops
async def test_tls_with_a_ca_of_ones_own(authority: trustme.CA, ca_file: str) -> None:
    """Verified, kept alive, and dead idle connections go unnoticed as without TLS."""
    tls = server_tls(authority, "127.0.0.1", "localhost")
    async with ScriptedService(always(OK), tls=tls) as service, calling(service.url, tls_ca=ca_file) as caller:
        for _ in range(3):
            assert outcome(await ask(caller, POST)) == {"ok": 1}
        assert service.connections == 1
        service.peers[0].writer.transport.abort()
        assert outcome(await ask(caller, POST)) == {"ok": 1}
        long = Request(service="pay", body=b"x" * (3 << 20))
        assert outcome(await ask(caller, long)) == {"ok": 1}
        async with calling(f"https://localhost:{service.port}", tls_ca=ca_file) as by_name:
            assert outcome(await ask(by_name, POST)) == {"ok": 1}


@on_both_loops
async def test_tls_that_does_not_verify(authority: trustme.CA, ca_file: str) -> None:
    """An unknown authority or another name is refused; verification can be switched off."""
    reported: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context))
    tls = server_tls(authority, "elsewhere.example")
    async with ScriptedService(always(OK), tls=tls) as service:
        for rest in ({}, {"tls_ca": ca_file}):
            async with calling(service.url, **rest) as caller:
                assert unknown(await ask(caller, POST)) == "tls"
                assert not caller._connections
        async with calling(service.url, tls_verify=False) as caller:
            assert outcome(await ask(caller, POST)) == {"ok": 1}


@on_both_loops
async def test_tls_to_a_service_without_it() -> None:
    """The service's plain answer is no handshake."""
    async with ScriptedService(always(OK)) as service:

        async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1)
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            writer.close()

        server = await asyncio.start_server(plain, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with calling(f"https://127.0.0.1:{port}") as caller:
            assert unknown(await ask(caller, POST)) in ("tls", "connection_lost")
        async with calling(service.url.replace("http", "https"), connect_timeout_ms=50) as caller:
            assert unknown(await ask(caller, POST)) == "connect_timeout"
        server.close()


def test_a_ca_that_cannot_be_read(tmp_path: Path) -> None:
    """The start stops with the key that is wrong."""
    loop = asyncio.new_event_loop()
    try:
        for path in (tmp_path / "missing.pem", tmp_path / "empty.pem"):
            if path.name == "empty.pem":
                path.write_text("no certificate")
            with pytest.raises(ConfigError, match=r"services\.pay\.tls_ca"):
                HttpCaller(ServiceSettings(name="pay", url="https://pay", tls_ca=str(path)), loop)
    finally:
        loop.close()
