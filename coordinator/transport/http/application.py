"""The ASGI application: find the route, read the query, ask the handler, send its answer or the problem.

It is written on bare ASGI.  A framework's router and request objects cost as much as all of this, and give away what
matters here: strict percent-decoding, 405 with the methods allowed, bodies bounded while they stream, one table for
routes and OpenAPI.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import aclosing
from typing import Any, cast

import structlog

from coordinator.errors import CoordinatorError, Internal, Stopping
from coordinator.transport.base import TRACE_CONTEXT, Caller, caller
from coordinator.transport.http.connection import Connection
from coordinator.transport.http.exchange import Answer, Intake, Request, Stream, Whole
from coordinator.transport.http.problem import Headers, HttpError, render
from coordinator.transport.http.routing import Route, Router
from coordinator.transport.http.settings import HttpSettings

log = structlog.get_logger(__name__)


class Application:
    """``resources`` is what the handlers are given as their first argument (`routes.Resources`)."""

    def __init__(self, routes: Iterable[Route], resources: Any, settings: HttpSettings) -> None:
        self._router = Router(routes)
        self._resources = resources
        self._intake = Intake(settings.body_bytes_max, settings.bodies_bytes_max)
        self.stopping = False
        """Set by the server while it closes: a request that is cancelled then is told so, instead of cut off."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serves one request.  A cancel means that the client is gone or the server stops; either way this returns."""
        assert scope["type"] == "http"
        connection: Connection = scope["connection"]
        started = False
        try:
            answer = await self._answer(scope, receive)
            started = True
            if isinstance(answer, Whole):
                await connection.answer(answer.status, [*answer.headers, *_entity(answer)], answer.body)
            else:
                try:
                    await self._stream(scope, send, answer)
                finally:
                    await answer.close()
            return
        except (CoordinatorError, HttpError) as error:
            assert not started, "a stream tells its errors itself"
            problem: CoordinatorError | HttpError = error
        except asyncio.CancelledError:
            if started or not self.stopping:
                return
            problem = Stopping("this instance stops; ask again", retry_after_ms=100)
        except Exception:
            if started:  # too late for a problem: uvicorn logs it and cuts the connection
                raise
            log.exception("request failed", method=scope["method"], path=scope["path"])
            problem = Internal("an internal error; it has been logged")
        status, headers, body = render(problem)
        # With Expect the client may never send its body: what follows could not be told from it.
        await connection.answer(status, headers, body, close=_awaits_continue(scope))

    async def _answer(self, scope: Any, receive: Any) -> Answer:
        route, path = self._router.find(scope["method"], scope["raw_path"])
        query = self._router.query(route, scope["query_string"])
        meta = {name.decode(): value.decode("latin-1") for name, value in scope["headers"] if name in _TRACE_CONTEXT}
        if meta:
            caller.set(Caller(None, meta))  # a request is a task of its own
        return await route.handler(self._resources, Request(scope, receive, path, query, self._intake))

    async def _stream(self, scope: Any, send: Any, stream: Stream) -> None:
        """Sends the pieces as they come, at the reader's pace."""
        headers: Headers = [
            (b"content-type", f"{stream.media}; charset=utf-8".encode()),
            (b"cache-control", b"no-store"),
        ]
        scope["connection"].streaming = True
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if scope["method"] != "HEAD":
            async with aclosing(cast("Any", stream.pieces())) as pieces:
                async for piece in pieces:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


_TRACE_CONTEXT = frozenset(name.encode() for name in TRACE_CONTEXT)


def _entity(answer: Whole) -> Headers:
    media = (
        answer.media
        if answer.media == "application/json" or "charset" in answer.media
        else f"{answer.media}; charset=utf-8"
    )
    return [(b"content-type", media.encode()), (b"content-length", b"%d" % len(answer.body))]


def _awaits_continue(scope: Any) -> bool:
    return any(name == b"expect" for name, _ in scope["headers"])
