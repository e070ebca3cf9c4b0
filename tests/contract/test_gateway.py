"""What holds for every way to reach a service: the built-in client, an httpx client, an async callable, and gRPC.

The first part runs on all that speak HTTP, against one scripted service; the second on gRPC and on functions of the
application as well.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import grpc  # type: ignore[import-untyped]
import grpc.aio  # type: ignore[import-untyped]
import httpx
import msgspec
import pytest

from coordinator.gateway.gateway import Gateway
from coordinator.gateway.plugged import Response
from coordinator.model.call import Answer, LocalCall, Request, Verdict
from coordinator.model.records import unraw
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

HTTP_CALLERS = ["http", "httpx", "callable"]
POST = Request(service="pay", path="/charges", body={"amount": 5})
OK = reply(b'{"ok":1}')


def by_streams(port: int) -> Callable[[Request, Mapping[str, str]], Awaitable[Response]]:
    """A user's own client, written in a few lines on asyncio's streams: a connection for each call."""

    async def client(request: Request, headers: Mapping[str, str]) -> Response:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            body = request.body if isinstance(request.body, bytes) else msgspec.json.encode(request.body)
            lines = [f"{request.method} {request.path} HTTP/1.1", "Host: pay", f"Content-Length: {len(body)}"]
            lines += [f"{name}: {value}" for name, value in headers.items()]
            writer.write(("\r\n".join(lines) + "\r\n\r\n").encode() + body)
            status, *rest = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            answered = dict(line.split(": ", 1) for line in rest if line)
            return Response(
                int(status.split(" ")[1]), answered, await reader.readexactly(int(answered["Content-Length"]))
            )
        finally:
            writer.transport.abort()

    return client


@contextlib.asynccontextmanager
async def serving(kind: str, script: Script, **rest: Any) -> AsyncIterator[tuple[ScriptedService, Gateway]]:
    """A scripted service behind a gateway that reaches it in the way ``kind`` says."""
    async with ScriptedService(script) as service, contextlib.AsyncExitStack() as stack:
        settings = ServiceSettings(name="pay", url=service.url, **rest)
        clients: dict[str, Any] = {}
        if kind == "httpx":
            clients["pay"] = await stack.enter_async_context(httpx.AsyncClient(trust_env=False))
        elif kind == "callable":
            clients["pay"] = by_streams(service.port)
        gateway = Gateway({"pay": settings}, clients, asyncio.get_running_loop())
        stack.push_async_callback(gateway.close)
        yield service, gateway


on_all = pytest.mark.parametrize("kind", HTTP_CALLERS)


@on_all
@on_both_loops
async def test_an_outcome_and_what_was_sent_for_it(kind: str) -> None:
    """Key, fence, configured and own headers, JSON body; a repeated call has the same key and a later fence."""
    async with serving(kind, always(OK), headers={"Authorization": "Bearer t", "X-A": "conf"}) as (service, gateway):
        request = Request(
            service="pay", method="PUT", path="/charges/1?x=2", body={"amount": 5}, headers={"x-a": "own"}
        )
        call = a_call(request, key="order-1/charge")
        assert outcome(await begin(gateway, call)) == {"ok": 1}
        sent = service.requests[0]
        assert (sent.method, sent.target, sent.body) == ("PUT", "/charges/1?x=2", b'{"amount":5}')
        assert sent.headers["idempotency-key"] == "order-1/charge"
        assert sent.headers["coordinator-fence"] == call.fence == f"17.{call.attempt}"
        assert sent.headers["content-type"] == "application/json"
        assert sent.headers["authorization"] == "Bearer t"
        assert sent.headers["x-a"] == "own"
        assert "transfer-encoding" not in sent.headers


@on_all
@on_both_loops
async def test_ids_of_any_letters(kind: str) -> None:
    """The key goes out in ASCII, and a service gets the same one every time."""
    async with serving(kind, always(OK)) as (service, gateway):
        for _ in range(2):
            outcome(await begin(gateway, a_call(POST, key="заказ 5%/charge")))
        keys = {request.headers["idempotency-key"] for request in service.requests}
        assert keys == {"%D0%B7%D0%B0%D0%BA%D0%B0%D0%B7%205%25/charge"}


@on_all
@pytest.mark.parametrize(
    ("status", "verdict", "code"),
    [
        ("201 Created", Verdict.OUTCOME, ""),
        ("301 Moved", Verdict.FAILURE, "http_301"),
        ("404 Not Found", Verdict.FAILURE, "http_404"),
        ("409 Conflict", Verdict.FAILURE, "http_409"),
        ("408 Request Timeout", Verdict.DELAYED, "http_408"),
        ("425 Too Early", Verdict.DELAYED, "http_425"),
        ("429 Too Many", Verdict.DELAYED, "http_429"),
        ("500 Oops", Verdict.DELAYED, "http_500"),
        ("503 Unavailable", Verdict.DELAYED, "http_503"),
    ],
)
@on_both_loops
async def test_statuses(kind: str, status: str, verdict: Verdict, code: str) -> None:
    """The same rule for all; a failure keeps the body, an unknown answer the service's wish to be left alone."""
    script = always(
        reply(b'{"detail":"because"}', status, "application/problem+json", "Retry-After: 2", "Location: /x")
    )
    async with serving(kind, script) as (service, gateway):
        answer = await ask(gateway, POST)
        assert answer.verdict is verdict
        if answer.failure is not None:
            assert (answer.failure.code, answer.failure.message) == (code, "because")
            assert unraw(answer.failure.body) == {"detail": "because"}
        assert answer.retry_after_ms == (2_000 if verdict is Verdict.DELAYED else None)
        assert len(service.requests) == 1


@on_all
@on_both_loops
async def test_overrides(kind: str) -> None:
    """A step may know better what a status means."""
    async with serving(kind, always(reply(b'"gone"', "404 Not Found"))) as (_, gateway):
        request = Request(service="pay", body=1, answers={"404": "outcome", "4xx": "delayed"})
        assert outcome(await ask(gateway, request)) == "gone"


@on_all
@pytest.mark.parametrize(
    ("body", "content_type", "value"),
    [
        (b"", "application/json", None),
        (b"hi", "text/plain", "hi"),
        (b"\x00\xff", "image/png", b"\x00\xff"),
        (b"{", "", "{"),
    ],
)
@on_both_loops
async def test_bodies_of_a_2xx(kind: str, body: bytes, content_type: str, value: object) -> None:
    """No body turns a 2xx into a doubt."""
    async with serving(kind, always(reply(body, "200 OK", content_type))) as (_, gateway):
        assert outcome(await ask(gateway, POST)) == value


@on_all
@on_both_loops
async def test_bytes_as_a_body(kind: str) -> None:
    """They arrive as they are."""
    async with serving(kind, always(OK)) as (service, gateway):
        outcome(await ask(gateway, Request(service="pay", body=b"\x00\xff")))
        assert service.requests[0].body == b"\x00\xff"
        assert service.requests[0].headers["content-type"] == "application/octet-stream"


TROUBLE = {
    "closes at once": then_close(),
    "closes half way": then_close(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"),
    "closes in the head": then_close(b"HTTP/1.1 200 OK\r\nConte"),
    "talks no HTTP": then_close(b"220 smtp.example ESMTP\r\n\r\n"),
    "sends zeros": then_close(b"\0" * 200 + b"\r\n\r\n"),
    "sends too much": always(reply(b"x" * 70_000)),
}


@on_all
@pytest.mark.parametrize("name", TROUBLE)
@on_both_loops
async def test_trouble_is_an_unknown_answer(kind: str, name: str) -> None:
    """Nobody knows what a service did that did not say it; afterwards it is called as before."""
    async with serving(kind, TROUBLE[name], response_bytes_max=50_000) as (service, gateway):
        code = unknown(await ask(gateway, POST))
        assert code in ("connection_lost", "bad_answer", "answer_too_large", "client_error")
        assert (code == "answer_too_large") == (name == "sends too much")
        service.script = always(OK)
        assert outcome(await ask(gateway, POST)) == {"ok": 1}


@on_all
@on_both_loops
async def test_a_service_that_is_not_there(kind: str) -> None:
    """A refused connection is as unknown as a lost one: the call may be retried."""
    async with serving(kind, always(OK)) as (service, gateway):
        service._server.close()
        await service._server.wait_closed()
        assert unknown(await ask(gateway, POST)) == "connection_refused"


@on_all
@on_both_loops
async def test_silence_ends_at_the_deadline(kind: str) -> None:
    """The call's own deadline, or else the service's."""
    async with serving(kind, silence, timeout_ms=60) as (_, gateway):
        for timeout_ms in (None, 50):
            assert unknown(await ask(gateway, POST, timeout_ms=timeout_ms)) == "timeout"
        await until(lambda: not gateway.in_flight("pay"))


@on_all
@on_both_loops
async def test_turns(kind: str) -> None:
    """Never more than max_in_flight at once; all are answered."""
    open_now, most = 0, 0

    async def count(request: Received, peer: Peer) -> None:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        await asyncio.sleep(0)
        open_now -= 1
        await peer.send(OK)

    async with serving(kind, count, max_in_flight=2) as (_, gateway):
        calls = [begin(gateway, a_call(POST)) for _ in range(12)]
        assert (gateway.in_flight("pay"), gateway.queued("pay")) == (2, 10)
        for call in calls:
            assert outcome(await call) == {"ok": 1}
        assert most <= 2
        assert (gateway.in_flight("pay"), gateway.queued("pay")) == (0, 0)


@on_all
@on_both_loops
async def test_a_backlog_at_a_silent_service_ends(kind: str) -> None:
    """Nobody waits for a turn for ever."""
    async with serving(kind, silence, max_in_flight=1) as (_, gateway):
        for call in [begin(gateway, a_call(POST, timeout_ms=50)) for _ in range(20)]:
            assert unknown(await call) == "timeout"


@on_all
@pytest.mark.parametrize(
    "parts",
    [{"path": "http://evil/"}, {"path": "//evil/"}, {"method": "GET /x"}, {"headers": {"X": "a\r\nb"}},
     {"headers": {"Idempotency-Key": "mine"}}, {"headers": {"Content-Length": "0"}}, {"body": object()},
     {"answers": {"404": "?"}}],
)  # fmt: skip
@on_both_loops
async def test_what_cannot_be_built_is_never_sent(kind: str, parts: dict[str, Any]) -> None:
    """The step fails, as trying again would change nothing."""
    async with serving(kind, always(OK)) as (service, gateway):
        assert failure(await ask(gateway, Request(**({"service": "pay", "body": 1} | parts)))) == "bad_request_built"
        assert service.connections == 0


@on_all
@on_both_loops
async def test_close_answers_nobody(kind: str) -> None:
    """What is under way is dropped, and nothing is left running."""
    async with serving(kind, silence) as (service, gateway):
        answered: list[Answer] = []
        for _ in range(3):
            gateway.send(a_call(POST), lambda call, answer: answered.append(answer))
        await until(lambda: len(service.requests) == 3)
        await gateway.close()
        assert answered == []
        assert len(asyncio.all_tasks()) <= 2 + len(service.peers)


@on_both_loops
async def test_an_unknown_service() -> None:
    """Fails the step, and names the services that there are."""
    gateway = Gateway({"pay": ServiceSettings(name="pay", url="http://127.0.0.1:1")}, {}, asyncio.get_running_loop())
    answer = await ask(gateway, Request(service="stock"))
    assert failure(answer) == "unknown_service"
    assert answer.failure is not None
    assert "pay" in answer.failure.message
    assert gateway.in_flight("stock") == 0
    await gateway.close()


# ---------------------------------------------------------------- gRPC


class Stock(grpc.GenericRpcHandler):  # type: ignore[misc]
    """A gRPC service without generated code: the method's name says what becomes of the call."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, bytes, dict[str, str]]] = []

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        name = details.method.rpartition("/")[2]

        async def answer(body: bytes, context: grpc.aio.ServicerContext) -> bytes:
            self.seen.append((details.method, body, dict(details.invocation_metadata)))
            if name == "Echo":
                return body
            if name == "Large":
                return b"x" * 100_000
            if name == "Hang":
                await asyncio.Event().wait()
            await context.abort(grpc.StatusCode[name], "because")
            raise AssertionError

        return grpc.unary_unary_rpc_method_handler(answer)


@contextlib.asynccontextmanager
async def serving_grpc(**rest: Any) -> AsyncIterator[tuple[Stock, Gateway]]:
    stock = Stock()
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((stock,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    settings = ServiceSettings(name="stock", url=f"grpc://127.0.0.1:{port}", **rest)
    gateway = Gateway({"stock": settings}, {}, asyncio.get_running_loop())
    try:
        yield stock, gateway
    finally:
        await gateway.close()
        await server.stop(None)


def reserve(method: str = "Echo", **rest: Any) -> Request:
    return Request(**({"service": "stock", "method": f"shop.Stock/{method}", "path": ""} | rest))


@on_both_loops
async def test_a_grpc_call_and_what_was_sent_for_it() -> None:
    """JSON in, JSON out; bytes in, bytes out; key and fence as metadata."""
    async with serving_grpc(headers={"X-Tenant": "a"}) as (stock, gateway):
        call = a_call(reserve(body={"sku": 1}, headers={"X-Own": "b"}), key="order-ü/reserve")
        assert outcome(await begin(gateway, call)) == {"sku": 1}
        method, body, metadata = stock.seen[0]
        assert (method, body) == ("/shop.Stock/Echo", b'{"sku":1}')
        assert metadata["idempotency-key"] == "order-%C3%BC/reserve"
        assert metadata["coordinator-fence"] == call.fence
        assert (metadata["x-tenant"], metadata["x-own"]) == ("a", "b")
        assert outcome(await ask(gateway, reserve(body=b"\x08\x01"))) == b"\x08\x01"
        assert outcome(await ask(gateway, reserve())) is None


@pytest.mark.parametrize(
    ("status", "verdict", "code"),
    [
        ("NOT_FOUND", Verdict.FAILURE, "grpc_not_found"),
        ("FAILED_PRECONDITION", Verdict.FAILURE, "grpc_failed_precondition"),
        ("UNAVAILABLE", Verdict.DELAYED, "grpc_unavailable"),
        ("INTERNAL", Verdict.DELAYED, "grpc_internal"),
    ],
)
@on_both_loops
async def test_grpc_statuses(status: str, verdict: Verdict, code: str) -> None:
    """The service's words are kept; a step may override the rule by name."""
    async with serving_grpc() as (_, gateway):
        answer = await ask(gateway, reserve(status))
        assert answer.verdict is verdict
        assert answer.failure is not None
        assert (answer.failure.code, answer.failure.message) == (code, f"{status}: because")
        assert outcome(await ask(gateway, reserve(status, answers={status: "outcome"}))) is None


@on_both_loops
async def test_grpc_trouble() -> None:
    """Silence, a service that is not there, an answer that is too large, methods and metadata that are none."""
    async with serving_grpc(response_bytes_max=1_000) as (stock, gateway):
        assert unknown(await ask(gateway, reserve("Hang"), timeout_ms=80)) == "timeout"
        assert unknown(await ask(gateway, reserve("Large"))) == "answer_too_large"
        seen = len(stock.seen)
        nowhere = [Request(service="stock", method=method, path="") for method in ("", "POST", "a/b/c", "a/b\n")]
        headers = [reserve(headers=pair) for pair in ({"Idempotency-Key": "x"}, {"x-bin": "x"}, {"x": "ü"})]
        for bad in (*nowhere, *headers, reserve(answers={"NOPE": "outcome"})):
            assert failure(await ask(gateway, bad)) == "bad_request_built"
        assert len(stock.seen) == seen
    gateway = Gateway(
        {"stock": ServiceSettings(name="stock", url="grpc://127.0.0.1:1")}, {}, asyncio.get_running_loop()
    )
    assert unknown(await ask(gateway, reserve())) == "grpc_unavailable"
    await gateway.close()


# ---------------------------------------------------------------- functions of the application


@on_both_loops
async def test_a_function_as_a_step() -> None:
    """It needs no configuration, and its calls count for the service it stands for."""
    started, release = asyncio.Event(), asyncio.Event()

    async def charge(amount: int) -> dict[str, int]:
        started.set()
        await release.wait()
        return {"charged": amount}

    gateway = Gateway({}, {}, asyncio.get_running_loop())
    call = begin(gateway, a_call(LocalCall(charge, (5,), "pay"), timeout_ms=None))
    await started.wait()
    assert gateway.in_flight("pay") == 1
    release.set()
    assert outcome(await call) == {"charged": 5}
    assert gateway.in_flight("pay") == 0
    await gateway.close()
