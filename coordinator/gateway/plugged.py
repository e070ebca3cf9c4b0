"""Clients that the application brings, and its own functions as steps.

- `HttpxCaller`: an ``httpx.AsyncClient``, for what the built-in client leaves out: HTTP/2, proxies, special TLS, OAuth.
- `CallableCaller`: ``async def client(request: Request, headers: Mapping[str, str]) -> Response``, for anything else.
- `LocalCaller`: a step that is an ``async`` function of the application (`LocalCall`).

**Exceptions.**  ``Delayed`` and ``Blocked`` mean what they say wherever they come from, also inside
``raise X from Delayed()`` and inside an exception group.  Any other exception of a *function* is its negative answer: a
FAILURE, with its traceback.  Any other exception of a *client* is DELAYED: the request may have reached the service,
and to call that a failure would undo the saga around a step that perhaps happened.

Requests are refused, and answers are classified, as for the built-in client.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec

from coordinator.errors import ConfigError
from coordinator.gateway.base import wall_ms
from coordinator.gateway.classify import delayed, http_answer, refused
from coordinator.gateway.request import (
    FENCE_HEADER,
    KEY_HEADER,
    HttpTemplate,
    address,
    check_answers,
    encode_body,
    encode_key,
    encode_method,
)
from coordinator.gateway.tasks import TaskCaller, Unanswered, describe, trace
from coordinator.model.call import Answer, Call, LocalCall, Request, Response, Verdict
from coordinator.model.records import NIL, Failure, raw
from coordinator.model.settings import ServiceSettings
from coordinator.saga import Blocked, CommandFailed, Delayed

if TYPE_CHECKING:
    import httpx

_BYTES: Final = (bytes, bytearray, memoryview)


Client = Callable[[Request, Mapping[str, str]], Awaitable[Response]]


# ---------------------------------------------------------------- exceptions


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The exception, those it was explicitly raised from, and the members of groups; each once."""
    seen: set[int] = set()
    todo: list[BaseException | None] = [error]
    while todo:
        found = todo.pop()
        if found is None or id(found) in seen:
            continue
        seen.add(id(found))
        yield found
        todo.append(found.__cause__)
        if isinstance(found, BaseExceptionGroup):
            todo.extend(found.exceptions)


def doubt(error: BaseException) -> Answer | None:
    """BLOCKED or DELAYED if the exception says so, by itself or by what it was raised from; None otherwise."""
    causes = list(_causes(error))
    for kind, verdict in ((Blocked, Verdict.BLOCKED), (Delayed, Verdict.DELAYED)):
        if any(isinstance(cause, kind) for cause in causes):
            return Answer(verdict, NIL, Failure(verdict.value, describe(error)))
    return None


# ---------------------------------------------------------------- clients


class _HttpLike(TaskCaller):
    """What clients of HTTP-like services share: building the request, classifying the answer."""

    def __init__(self, settings: ServiceSettings, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(settings.name, loop, limit=max(1, settings.max_in_flight), timeout_ms=settings.timeout_ms)
        where = address(settings) if settings.url else None
        self._origin = f"{where.scheme}://{where.authority}" if where else ""
        self._template = HttpTemplate(settings, "", where.base if where else "")
        self._body_max = settings.response_bytes_max
        self._settings = settings

    def _headers(self, call: Call, request: Request, content_type: str) -> dict[str, str]:
        merged = self._template.merged(request)
        headers = {name: value for lower, (name, value) in merged.items() if lower != "host"}
        if content_type and "content-type" not in merged:
            headers["Content-Type"] = content_type
        headers[KEY_HEADER] = encode_key(call.key)
        headers[FENCE_HEADER] = call.fence
        return headers

    def _classify(self, request: Request, status: int, headers: Mapping[str, str], body: bytes) -> Answer:
        if not 200 <= status <= 599:
            return self._trouble("bad_answer", f"answered with the status {status}")
        lower = {name.lower(): value for name, value in headers.items()}
        return http_answer(status, lower, body, request.answers, wall_ms())

    def _too_large(self) -> Answer:
        return self._trouble("answer_too_large", f"sent too large an answer: over {self._body_max} bytes")

    def _trouble(self, code: str, text: str) -> Answer:
        return delayed(code, f"{self.name} {text}")

    def failed(self, error: BaseException) -> Answer:
        known = doubt(error)
        if known is not None:
            return known
        if isinstance(error, TimeoutError):
            return self._trouble("timeout", f"was not reached in time: {describe(error)}")
        if isinstance(error, ConnectionRefusedError):
            return self._trouble("connection_refused", f"could not be reached: {describe(error)}")
        if isinstance(error, OSError):
            return self._trouble("connection_lost", f"broke off: {describe(error)}")
        return super().failed(error)


class CallableCaller(_HttpLike):
    """Calls an async callable ``(request, headers) -> Response``.

    ``headers`` is complete (key, fence, configured and the request's own headers); ``request.body`` is still the value.
    """

    def __init__(self, settings: ServiceSettings, client: Client, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(settings, loop)
        self._client = client

    async def answer(self, call: Call) -> Answer:
        request = call.request
        assert isinstance(request, Request)
        encode_method(request.method)
        self._template.target(request.path)
        check_answers(request.answers)
        _, content_type = encode_body(request.body)
        response = await self._client(request, self._headers(call, request, content_type))
        fault = _fault(response)
        if fault:
            return self._trouble("bad_answer", f"has a client that returned no Response: {fault}")
        if len(response.body) > self._body_max:
            return self._too_large()
        return self._classify(request, response.status, response.headers, bytes(response.body))


def _fault(response: Any) -> str:
    """What is wrong with what a client returned, if anything; its class does not matter, its attributes do."""
    status, headers, body = (getattr(response, name, None) for name in ("status", "headers", "body"))
    if not isinstance(status, int):
        return f"its status is {status!r}"
    if not isinstance(body, _BYTES):
        return f"its body is a {type(body).__name__}, not bytes"
    if not isinstance(headers, Mapping) or not all(isinstance(part, str) for pair in headers.items() for part in pair):
        return "its headers are no mapping of text to text"
    return ""


class HttpxCaller(_HttpLike):
    """Calls through an ``httpx.AsyncClient``, which stays its owner's: it is not closed here.

    With a ``url`` in the settings requests go there, otherwise to the client's own ``base_url``.  The service's
    deadlines replace the client's.
    """

    def __init__(self, settings: ServiceSettings, client: httpx.AsyncClient, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(settings, loop)
        self._client = client
        if not settings.url and not client.base_url.host:
            raise ConfigError(f"services.{self.name}: give a url, or plug in an httpx.AsyncClient that has a base_url")

    async def answer(self, call: Call) -> Answer:
        import httpx

        request = call.request
        assert isinstance(request, Request)
        check_answers(request.answers)
        content, content_type = encode_body(request.body)
        timeout_ms = call.timeout_ms if call.timeout_ms is not None else self._settings.timeout_ms
        # Bytes, as httpx would encode text as ASCII only.
        headers = [
            (name.encode(), value.encode()) for name, value in self._headers(call, request, content_type).items()
        ]
        outgoing = self._client.build_request(
            encode_method(request.method),
            self._origin + self._template.target(request.path),
            content=content,
            headers=headers,
            timeout=httpx.Timeout(timeout_ms / 1000, connect=self._settings.connect_timeout_ms / 1000),
        )
        try:
            response = await self._client.send(outgoing, stream=True, follow_redirects=False)
            try:
                body = await self._body(response)
            finally:
                await response.aclose()
        except httpx.HTTPError as error:
            raise Unanswered(self._unanswered(error)) from error
        return self._classify(request, response.status_code, dict(response.headers), body)

    async def _body(self, response: httpx.Response) -> bytes:
        """The body, never more of it in memory than is allowed (a compressed one counts as what it unpacks to)."""
        pieces, size = [], 0
        async for piece in response.aiter_bytes(65_536):
            size += len(piece)
            if size > self._body_max:
                raise Unanswered(self._too_large())
            pieces.append(piece)
        return b"".join(pieces)

    def _unanswered(self, error: Exception) -> Answer:
        import httpx

        known = doubt(error)
        if known is not None:
            return known
        codes: tuple[tuple[type[Exception], str], ...] = (
            (httpx.ConnectTimeout, "connect_timeout"),
            (httpx.TimeoutException, "timeout"),
            (httpx.ConnectError, "connection_refused"),
            (httpx.NetworkError, "connection_lost"),
            (httpx.DecodingError, "bad_answer"),
            (httpx.RemoteProtocolError, "connection_lost" if "disconnected" in str(error) else "bad_answer"),
        )
        code = next((code for kind, code in codes if isinstance(error, kind)), "client_error")
        if code == "connection_refused" and ("SSL" in str(error) or "certificate" in str(error)):
            code = "tls"
        return self._trouble(code, f"gave no answer: {describe(error)}")


def plugged(settings: ServiceSettings, client: Any, loop: asyncio.AbstractEventLoop) -> TaskCaller:
    """The caller for a client that the application plugged in; raises ConfigError for what is none."""
    httpx_module = sys.modules.get("httpx")  # not imported: nobody can hold a client of it then
    if httpx_module is not None and isinstance(client, httpx_module.AsyncClient):
        return HttpxCaller(settings, client, loop)
    if callable(client):
        return CallableCaller(settings, client, loop)
    raise ConfigError(
        f"services.{settings.name}: plug in an httpx.AsyncClient or an async callable (request, headers) -> Response, "
        f"not a {type(client).__name__}"
    )


# ---------------------------------------------------------------- functions of the application


class LocalCaller(TaskCaller):
    """Calls ``async`` functions of the application (`LocalCall`).

    A result is recorded as what ``msgspec.to_builtins`` makes of it (bytes stay bytes); one that cannot be recorded
    fails the step with the code ``bad_outcome``.  Without settings for the service it stands for, nothing limits how
    many run or how long: ``timeout=`` at the step, or ``[services.<name>]`` in the configuration, does.
    """

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop, settings: ServiceSettings | None = None) -> None:
        limit = None if settings is None else max(1, settings.max_in_flight)
        super().__init__(name, loop, limit=limit, timeout_ms=None if settings is None else settings.timeout_ms)

    async def answer(self, call: Call) -> Answer:
        local = call.request
        assert isinstance(local, LocalCall)
        result: Any = local.function(*local.args)
        if inspect.isawaitable(result):
            result = await result
        try:
            return Answer(Verdict.OUTCOME, raw(msgspec.to_builtins(result, builtin_types=_BYTES)))
        except Exception as error:  # a type nobody can encode, an integer beyond 64 bits, a circle …
            text = f"the result, a {type(result).__name__}, cannot be recorded: {describe(error)}"
            return refused("bad_outcome", text)

    def failed(self, error: BaseException) -> Answer:
        known = doubt(error)
        if known is not None:
            return known
        if isinstance(error, CommandFailed):  # a business reason, with its own word for it
            return refused(error.code, str(error))
        return refused("exception", describe(error), traceback=trace(error))
