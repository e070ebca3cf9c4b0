"""Functions of the application as steps, and plugged-in clients: whatever they do, one answer comes, in time."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest

from coordinator.errors import ConfigError
from coordinator.gateway.gateway import Gateway
from coordinator.gateway.plugged import CallableCaller, HttpxCaller, LocalCaller, Response, plugged
from coordinator.model.call import Answer, LocalCall, Request, Verdict
from coordinator.model.settings import ServiceSettings
from coordinator.saga import Blocked, CommandFailed, Delayed
from tests.gateway_kit import a_call, ask, begin, failure, on_both_loops, outcome, unknown, until


@contextlib.asynccontextmanager
async def local(**settings: Any) -> AsyncIterator[LocalCaller]:
    known = ServiceSettings(name="local", **settings) if settings else None
    caller = LocalCaller("local", asyncio.get_running_loop(), known)
    try:
        yield caller
    finally:
        await caller.close()


async def run(function: Any, *args: Any, timeout_ms: int | None = None, **settings: Any) -> Answer:
    async with local(**settings) as caller:
        return await ask(caller, LocalCall(function, args), timeout_ms=timeout_ms)


class Receipt(msgspec.Struct):
    id: str
    at: datetime.datetime


def cause(error: BaseException, because: BaseException) -> BaseException:
    error.__cause__ = because
    return error


def circular() -> BaseException:
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    return first


@pytest.mark.parametrize(
    ("result", "recorded"),
    [
        (None, None),
        ({"a": [1, 2.5, "x"]}, {"a": [1, 2.5, "x"]}),
        (
            Receipt("r-1", datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC)),
            {"id": "r-1", "at": "2024-01-02T00:00:00Z"},
        ),
        (b"\x00", b"\x00"),
        ((1, 2), [1, 2]),
    ],
)
@on_both_loops
async def test_results_are_recorded(result: Any, recorded: Any) -> None:
    """As plain values: structs as objects, dates as text, bytes as bytes."""

    async def step() -> Any:
        return result

    assert outcome(await run(step)) == recorded


@pytest.mark.parametrize("result", [object(), 1 << 70, {"a": object()}, "\ud800", lambda: 1])
@on_both_loops
async def test_results_that_cannot_be_recorded(result: Any) -> None:
    """The step fails with a code of its own, and the daemon goes on."""

    async def step() -> Any:
        return result

    assert failure(await run(step)) == "bad_outcome"


@on_both_loops
async def test_a_circular_result() -> None:
    """A value that contains itself has no end."""
    circle: list[Any] = []
    circle.append(circle)

    async def step() -> Any:
        return circle

    assert failure(await run(step)) == "bad_outcome"


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (Delayed("later"), Verdict.DELAYED),
        (Blocked("down"), Verdict.BLOCKED),
        (cause(ValueError("x"), Delayed("later")), Verdict.DELAYED),
        (cause(ValueError("x"), cause(KeyError("y"), Blocked("down"))), Verdict.BLOCKED),
        (ExceptionGroup("g", [ValueError("x"), ExceptionGroup("h", [Delayed("later")])]), Verdict.DELAYED),
        (ExceptionGroup("g", [Delayed("later"), cause(ValueError("x"), Blocked("down"))]), Verdict.BLOCKED),
        (BaseExceptionGroup("g", [Delayed("later"), KeyboardInterrupt()]), Verdict.DELAYED),
        (circular(), Verdict.FAILURE),
        (ValueError("x"), Verdict.FAILURE),
        (TimeoutError("mine"), Verdict.FAILURE),
        (ExceptionGroup("g", [ValueError("x")]), Verdict.FAILURE),
        (KeyboardInterrupt(), Verdict.FAILURE),
        (SystemExit(3), Verdict.FAILURE),
        (asyncio.CancelledError(), Verdict.FAILURE),
        (StopAsyncIteration(), Verdict.FAILURE),
        (GeneratorExit(), Verdict.FAILURE),
    ],
    ids=repr,
)
@on_both_loops
async def test_exceptions(error: BaseException, verdict: Verdict) -> None:
    """Delayed and Blocked mean what they say, wrapped or not; anything else fails this step and nothing more."""

    async def step() -> None:
        raise error

    async with local() as caller:
        answer = await ask(caller, LocalCall(step))
        assert answer.verdict is verdict
        assert answer.failure is not None
        if verdict is Verdict.FAILURE:
            assert answer.failure.code == "exception"
            assert answer.failure.message.startswith(type(error).__name__)
            assert answer.failure.traceback is not None
        assert caller.in_flight == 0


@on_both_loops
async def test_an_implicit_context_means_nothing() -> None:
    """An error while handling Delayed is an error: only what was written with `from` counts."""

    async def step() -> None:
        try:
            raise Delayed
        except Delayed:
            raise ValueError("mine")  # noqa: B904 - the point of the test

    assert failure(await run(step)) == "exception"


@on_both_loops
async def test_a_business_failure_keeps_its_code() -> None:
    """CommandFailed in a step's function says why in its own words."""

    async def step() -> None:
        raise CommandFailed("no stock", code="sold_out")

    assert failure(await run(step)) == "sold_out"


@on_both_loops
async def test_errors_that_cannot_be_printed() -> None:
    """An exception whose text raises is reported all the same; endless texts and tracebacks are cut."""

    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    async def mute() -> None:
        raise Mute

    async def deep(depth: int) -> None:
        if depth:
            await deep(depth - 1)
        raise ValueError("x" * 100_000)

    assert failure(await run(mute)) == "exception"
    answer = await run(deep, 200)
    assert failure(answer) == "exception"
    assert answer.failure is not None
    assert answer.failure.traceback is not None
    assert len(answer.failure.message) + len(answer.failure.traceback) < 20_000


@on_both_loops
async def test_wrong_arguments_and_functions_that_are_not_async() -> None:
    """The first fails the step, the second is taken for its result."""

    async def step(a: int) -> int:
        return a

    assert failure(await run(step)) == "exception"
    assert failure(await run(None)) == "exception"
    assert outcome(await run(lambda: 5)) == 5


@on_both_loops
async def test_a_function_that_takes_too_long() -> None:
    """It is cancelled at its deadline, and may clean up."""
    cleaned = asyncio.Event()

    async def step() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.set()

    async with local() as caller:
        assert unknown(await ask(caller, LocalCall(step), timeout_ms=20)) == "timeout"
        await cleaned.wait()
        await until(lambda: caller.in_flight == 0)
    assert unknown(await run(step, max_in_flight=1, timeout_ms=30)) == "timeout"


@on_both_loops
async def test_a_function_that_ignores_its_cancellation() -> None:
    """The answer comes in time, the turn is kept until the function ends, and what it returns then reaches nobody."""
    release = asyncio.Event()

    async def stubborn() -> str:
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await release.wait()
        return "late"

    async with local(max_in_flight=1) as caller:
        assert unknown(await ask(caller, LocalCall(stubborn), timeout_ms=20)) == "timeout"
        assert caller.in_flight == 1
        following = begin(caller, a_call(LocalCall(stubborn)))
        release.set()
        assert outcome(await following) == "late"
        assert caller.in_flight == 0


@on_both_loops
async def test_close_cancels_and_answers_nobody() -> None:
    """Also a function that does not listen holds up the end for a second at most."""
    answered: list[Answer] = []
    started = asyncio.Event()

    async def step() -> None:
        started.set()
        await asyncio.Event().wait()

    async with local() as caller:
        caller.send(a_call(LocalCall(step)), lambda call, answer: answered.append(answer))
        await started.wait()
        await caller.close()
        assert unknown(await ask(caller, LocalCall(step))) == "closed"
    assert answered == []


# ---------------------------------------------------------------- clients

POST = Request(service="pay", body={"a": 1})


async def through(client: Any, request: Request = POST, **settings: Any) -> Answer:
    gateway = Gateway({"pay": ServiceSettings(name="pay", **settings)}, {"pay": client}, asyncio.get_running_loop())
    try:
        return await ask(gateway, request, timeout_ms=None)
    finally:
        await gateway.close()


@pytest.mark.parametrize(
    ("error", "verdict", "code"),
    [
        (Delayed("x"), Verdict.DELAYED, "delayed"),
        (cause(ValueError("x"), Blocked("y")), Verdict.BLOCKED, "blocked"),
        (ConnectionResetError("x"), Verdict.DELAYED, "connection_lost"),
        (ConnectionRefusedError("x"), Verdict.DELAYED, "connection_refused"),
        (TimeoutError("x"), Verdict.DELAYED, "timeout"),
        (ValueError("x"), Verdict.DELAYED, "client_error"),
        (SystemExit(1), Verdict.DELAYED, "client_error"),
        (asyncio.CancelledError(), Verdict.DELAYED, "client_error"),
    ],
    ids=repr,
)
@on_both_loops
async def test_what_a_client_raises(error: BaseException, verdict: Verdict, code: str) -> None:
    """The request may have reached the service, so nothing it raises is a known no."""

    async def client(request: Request, headers: Any) -> Response:
        raise error

    answer = await through(client)
    assert answer.verdict is verdict
    assert answer.failure is not None
    assert answer.failure.code == code


@pytest.mark.parametrize(
    "response",
    [None, "text", Response(99), Response(700), Response(200, body="text"), Response(200, {"a": 5})],
)
@on_both_loops
async def test_what_is_no_response(response: Any) -> None:
    """A client that returns nonsense has not said what happened."""

    async def client(request: Request, headers: Any) -> Any:
        return response

    assert unknown(await through(client)) == "bad_answer"


@on_both_loops
async def test_a_response_that_is_too_large() -> None:
    """The service's limit holds for any client."""

    async def client(request: Request, headers: Any) -> Response:
        return Response(200, {}, b"x" * 11)

    assert unknown(await through(client, response_bytes_max=10)) == "answer_too_large"


@on_both_loops
async def test_a_response_of_another_class() -> None:
    """What has the three attributes will do."""

    class Theirs:
        status, headers, body = 201, {"Content-Type": "application/json"}, b"[1]"

    async def client(request: Request, headers: Any) -> Any:
        return Theirs()

    assert outcome(await through(client)) == [1]


@on_both_loops
async def test_an_httpx_client_with_its_own_transport_and_base_url() -> None:
    """Its own base URL, authentication and hooks are kept; its exceptions are understood."""

    def respond(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/slow":
            raise httpx.ReadTimeout("slow", request=request)
        if request.url.path == "/v1/cert":
            raise httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed", request=request)
        return httpx.Response(200, json={"host": request.url.host, "auth": request.headers["authorization"]})

    transport = httpx.MockTransport(respond)
    async with httpx.AsyncClient(transport=transport, base_url="http://pay.example/v1", auth=("u", "p")) as client:
        assert outcome(await through(client)) == {"host": "pay.example", "auth": "Basic dTpw"}
        assert unknown(await through(client, Request(service="pay", path="/slow"))) == "timeout"
        assert unknown(await through(client, Request(service="pay", path="/cert"))) == "tls"
        assert not client.is_closed


def test_what_can_be_plugged_in() -> None:
    """An httpx client that knows where to go, or a callable; the start stops otherwise."""
    loop = asyncio.new_event_loop()
    settings = ServiceSettings(name="pay")

    async def client(request: Request, headers: Any) -> Response:
        return Response(200)

    assert isinstance(plugged(settings, client, loop), CallableCaller)
    assert isinstance(plugged(settings, httpx.AsyncClient(base_url="http://pay"), loop), HttpxCaller)
    for wrong in (httpx.AsyncClient(), httpx.Client(), "http://pay", None):
        with pytest.raises(ConfigError, match=r"services\.pay"):
            plugged(settings, wrong, loop)
    loop.close()
