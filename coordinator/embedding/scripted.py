"""Services that a test writes down: what they answer, and what they were asked.

    stock = Scripted()
    stock.on("POST", "/reservations").unknown(times=2).answers(200, {"id": "r-1"})
    stock.on("POST", "/reservations/{id}/release").answers(204)

They are plugged in where an application's own clients are, so all of the coordinator is the real one: a request is
built, classified and retried as in production, only no socket is opened.

*Idempotent*, as services must be: what has succeeded under an Idempotency-Key is answered again as it was, without a
second effect (`ServiceCall.repeated`).  A refusal had no effect, so it is not remembered: asked again, the service may
do better.  ``Scripted(idempotent=False)`` shows what becomes of a service that is not.

*A request that no script expects is a mistake in the test or in the saga*, and must not be taken for a refusal, which
the saga would undo around: it is left unanswered, and the test fails with `Unscripted`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Protocol
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec
from msgspec import Struct

from coordinator.gateway.request import FENCE_HEADER, KEY_HEADER
from coordinator.model.call import Request, Response
from coordinator.model.durations import parse_duration
from coordinator.saga import Blocked, Delayed

_RETRIED: Final = frozenset({408, 425, 429})  # answers that say nothing of the outcome (gateway.classify)


class Unscripted(AssertionError):
    """A service was asked for something that its script does not say."""


class ServiceCall(Struct, kw_only=True):
    """One request that a scripted service got.

    ``key`` is the Idempotency-Key (``<command>/<step>``, with ``/undo`` for an undo), ``fence`` the Coordinator-Fence.
    ``body`` is the JSON value, or bytes; ``params`` are the ``{names}`` of the route's path.  ``status`` is what was
    answered, None while nothing was, or for an answer that never arrived; ``repeated``: the key was known, so this
    call had no effect of its own; ``effect``: it had one.
    """

    service: str
    method: str
    path: str
    query: dict[str, str]
    body: Any
    headers: Mapping[str, str]
    key: str
    fence: str
    params: dict[str, str] = {}
    status: int | None = None
    repeated: bool = False
    effect: bool = False

    @property
    def command(self) -> str:
        """The id of the command that asked."""
        return self.key.partition("/")[0]

    @property
    def step(self) -> str:
        """The step that asked, whether forward or to be undone."""
        return self.key.partition("/")[2].removesuffix("/undo")

    @property
    def undo(self) -> bool:
        return self.key.endswith("/undo")

    def __str__(self) -> str:
        answered = "no answer" if self.status is None else str(self.status)
        return f"{self.service}: {self.method} {self.path} [{self.key}] {answered}{' again' * self.repeated}"


Handler = Callable[[ServiceCall], Any]


class Setting(Protocol):
    """Where a scripted service stands: its time, its journal, and whom it tells of mistakes."""

    async def pass_time(self, delay_ms: int) -> None: ...

    def called(self, call: ServiceCall) -> None: ...

    def mistake(self, error: Exception) -> None: ...


class _Act(Struct):
    """One thing that a route does, so many times (None: once, or for ever if nothing follows)."""

    what: Handler
    times: int | None
    loses_answer: bool = False


class Route:
    """What one kind of request is answered with.

    Each of `answers`, `fails`, `unknown`, `blocks` and `does` adds what comes next: it is used ``times`` times, without
    ``times`` once; and what is last stays, unless it has ``times`` too.  ``calls`` are the requests that came here.
    """

    def __init__(self, method: str, pattern: str) -> None:
        self.method = method.upper()
        self.pattern = pattern
        self.calls: list[ServiceCall] = []
        self._regex = re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/]+)", re.escape(pattern)).replace(r"\*", ".*"))
        self._acts: list[_Act] = []
        self._delay_ms = 0
        self._used = 0

    def answers(
        self, status: int = 200, body: Any = None, *, headers: Mapping[str, str] | None = None, times: int | None = None
    ) -> Route:
        """A success, with any JSON (or bytes) as its body."""
        if not 200 <= status <= 299:
            raise ValueError(f"answers() is a success, 200 to 299, not {status}: see fails() and unknown()")
        return self._add(lambda _: response(status, body, headers), times)

    def fails(self, status: int = 409, body: Any = None, *, times: int | None = None) -> Route:
        """A known refusal (4xx), which had no effect: the saga undoes what it has done, or retries by its `Retry`."""
        if not 400 <= status <= 499 or status in _RETRIED:
            raise ValueError(f"{status} is no refusal to the coordinator: a 4xx is, but 408, 425, 429; see unknown()")
        return self._add(lambda _: response(status, body), times)

    def unknown(self, *, times: int | None = None, status: int | None = None, after_effect: bool = False) -> Route:
        """No answer arrives (or ``status``, a 5xx): the coordinator cannot know what happened, and asks again.

        ``after_effect``: the service has done it, as the script says next, and only the answer is lost.
        """
        if status is not None and after_effect:
            raise ValueError("after_effect loses the answer that the script says next: it has no status of its own")

        def lost(call: ServiceCall) -> Response:
            if status is not None:
                return response(status)
            raise Delayed(f"{call.service} is scripted to give no answer")

        return self._add(lost, times, loses_answer=after_effect)

    def blocks(self, *, times: int | None = None) -> Route:
        """The service is known to be down: its breaker opens at once."""

        def down(call: ServiceCall) -> Response:
            raise Blocked(f"{call.service} is scripted to be down")

        return self._add(down, times)

    def does(self, handler: Handler, *, times: int | None = None) -> Route:
        """Calls ``handler(call)``, plain or async: it returns a body (answered with 200), ``(status, body)`` or a
        Response, or raises `Delayed` or `Blocked`.  Anything else that it raises fails the test."""
        return self._add(handler, times)

    def takes(self, duration: str) -> Route:
        """Each answer takes so long (on the FakeClock, where there is one): longer than the call's timeout, and it
        comes too late, although the service has done what it was asked."""
        self._delay_ms = parse_duration(duration)
        return self

    @property
    def then(self) -> Route:
        """Itself: ``.unknown(times=2).then.answers(200)`` reads better."""
        return self

    # ------------------------------------------------------------ inside

    def _add(self, what: Handler, times: int | None, *, loses_answer: bool = False) -> Route:
        if times is not None and times < 1:
            raise ValueError(f"times is a whole number from 1, not {times!r}")
        self._acts.append(_Act(what, times, loses_answer))
        return self

    def match(self, method: str, path: str) -> dict[str, str] | None:
        found = self._regex.fullmatch(path) if method == self.method else None
        return None if found is None else {name: unquote(text) for name, text in found.groupdict().items()}

    def next(self) -> _Act | None:
        """What is to be done now; None: the script is used up."""
        if not self._acts:
            return None
        act = self._acts[0]
        if act.times is None and len(self._acts) == 1:
            return act
        self._used += 1
        if self._used >= (act.times or 1):
            del self._acts[0]
            self._used = 0
        return act

    @property
    def delay_ms(self) -> int:
        return self._delay_ms

    def __str__(self) -> str:
        state = "" if self._acts else " (used up)" if self.calls else " (says nothing)"
        return f"{self.method} {self.pattern}{state}"


class Scripted:
    """A service of a test; see the module.  It is the world outside: `Embedded.crash` does not touch it."""

    def __init__(self, *, idempotent: bool = True) -> None:
        self.name = ""
        self.idempotent = idempotent
        self.calls: list[ServiceCall] = []
        self._routes: list[Route] = []
        self._done: dict[str, Response] = {}  # by key: what has succeeded

    def on(self, method: str, path: str = "/") -> Route:
        """What is asked for by ``method`` and ``path``, a path with ``{names}`` (one part each) and ``*`` (anything).

        Of several that fit, the last one said counts; the query is not compared.
        """
        route = Route(method, path)
        self._routes.insert(0, route)
        return route

    @property
    def effects(self) -> list[ServiceCall]:
        """The calls that had an effect, in order: successes, each key once."""
        return [call for call in self.calls if call.effect]

    def forget(self) -> None:
        """Forgets calls and keys, and keeps the script."""
        self.calls.clear()
        self._done.clear()

    def client(self, name: str, setting: Setting) -> Callable[[Request, Mapping[str, str]], Awaitable[Response]]:
        """What the gateway calls, under the name that the service has there."""
        self.name = name

        async def client(request: Request, headers: Mapping[str, str]) -> Response:
            return await self._serve(_read(name, request, headers), setting)

        return client

    async def _serve(self, call: ServiceCall, setting: Setting) -> Response:
        self.calls.append(call)
        setting.called(call)
        known = self._done.get(call.key) if self.idempotent else None
        if known is not None:
            call.repeated, call.status = True, known.status
            return known
        route = self._route(call)
        if route is None:
            return _unscripted(call, setting, f"its script knows {self._known()}")
        route.calls.append(call)
        try:
            return await self._act(route, call, setting)
        except (Delayed, Blocked, OSError, TimeoutError):  # a TimeoutError is an OSError, but who knows that
            raise
        except Exception as error:
            error.add_note(f"in the script of {self.name}, for {call.method} {call.path}")
            setting.mistake(error)
            raise Delayed("the script has failed") from error

    async def _act(self, route: Route, call: ServiceCall, setting: Setting) -> Response:
        act = route.next()
        loses_answer = act is not None and act.loses_answer
        if loses_answer:
            act = route.next()
        if act is None:
            return _unscripted(call, setting, f"its script for {route.method} {route.pattern} says no more")
        result = act.what(call)
        if inspect.isawaitable(result):
            result = await result
        answer = _response(result)
        if 200 <= answer.status <= 299:
            call.effect = True
            self._done[call.key] = answer
        if route.delay_ms:
            await setting.pass_time(route.delay_ms)
        if loses_answer:
            raise Delayed(f"{self.name} is scripted to lose its answer")
        call.status = answer.status
        return answer

    def _route(self, call: ServiceCall) -> Route | None:
        for route in self._routes:
            params = route.match(call.method, call.path)
            if params is not None:
                call.params = params
                return route
        return None

    def _known(self) -> str:
        return ", ".join(map(str, reversed(self._routes))) or "nothing"


def response(status: int, body: Any = None, headers: Mapping[str, str] | None = None) -> Response:
    """An answer with a JSON body (None: no body; bytes as they are)."""
    data = b"" if body is None else body if isinstance(body, bytes) else msgspec.json.encode(body)
    return Response(status, dict(headers or {}), data)


def _response(result: Any) -> Response:
    """What a handler has returned, as an answer."""
    match result:
        case Response():
            return result
        case (int() as status, body) if not isinstance(status, bool):
            return response(status, body)
        case _:
            return response(200, result)


def _read(name: str, request: Request, headers: Mapping[str, str]) -> ServiceCall:
    parts = urlsplit(request.path)
    body = request.body
    return ServiceCall(
        service=name,
        method=request.method.upper(),
        path=parts.path,
        query=dict(parse_qsl(parts.query, keep_blank_values=True)),
        body=body if body is None or isinstance(body, bytes) else msgspec.json.decode(msgspec.json.encode(body)),
        headers=headers,
        key=unquote(headers[KEY_HEADER]),
        fence=headers[FENCE_HEADER],
    )


def _unscripted(call: ServiceCall, setting: Setting, why: str) -> Response:
    text = f"{call.service} was asked {call.method} {call.path} with {call.body!r} (key {call.key}), but {why}"
    setting.mistake(Unscripted(text))
    raise Delayed(text)
