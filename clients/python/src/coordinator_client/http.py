"""Talks to one address over HTTP: each operation of proto/tcp.md as a request of the HTTP API."""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncIterator, Iterator
from ipaddress import ip_address
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import msgspec

from coordinator_client.endpoint import NAME, Progress
from coordinator_client.errors import ConnectionLost, CoordinatorError, error_of
from coordinator_client.models import FINAL_STATES, Event, command_of
from coordinator_client.values import seconds

ANSWER_S = 30.0  # how long an answer may take beyond what the server was asked to wait
ANSWER_SOON_S = 6.0  # the same, where another address may be well: one that hangs accepts connections, too
WAIT_SOON_S = 5.0
CONNECT_S = 5.0
SILENCE_S = 60.0  # of a stream that sends heartbeats
WAIT_MAX_S = 30.0  # one request's wait: proxies cut off what is silent for longer

_PROBLEM_MEMBERS = {"type", "title", "status", "detail", "code", "retry_after_ms", "retryable"}
_CODES_BY_STATUS = {429: "limit_reached", 502: "unavailable", 503: "unavailable", 504: "unavailable"}

# How each operation is asked: method and path.  {…} come from the parameters; what is left is the query or the body.
_PATHS = {
    "get": ("GET", "/v1/commands/{id}"),
    "list": ("GET", "/v1/commands"),
    "history": ("GET", "/v1/commands/{id}/history"),
    "explain": ("GET", "/v1/commands/{id}/explain"),
    "diagram": ("GET", "/v1/commands/{id}/diagram"),
    "control": ("POST", "/v1/commands/{id}/{operation}"),
    "requeue": ("POST", "/v1/commands/{id}/requeue"),
    "resolve": ("POST", "/v1/commands/{id}/resolve"),
    "provide": ("POST", "/v1/commands/{id}/data/{name}"),
    "decide": ("POST", "/v1/commands/{id}/decisions/{step}"),
    "decisions": ("GET", "/v1/decisions"),
    "dead_letters": ("GET", "/v1/dead-letters"),
    "quarantine": ("GET", "/v1/quarantine"),
    "log": ("GET", "/v1/log"),
    "services": ("GET", "/v1/services"),
    "set_breaker": ("POST", "/v1/services/{service}/breaker"),
    "cluster": ("GET", "/v1/cluster"),
    "ready": ("GET", "/readyz"),
    "put_definition": ("PUT", "/v1/definitions/{name}/{version}"),
    "get_definition": ("GET", "/v1/definitions/{name}/{version}"),
    "definitions": ("GET", "/v1/definitions"),
    "definition_diagram": ("GET", "/v1/definitions/{name}/{version}/diagram"),
    "put_schedule": ("PUT", "/v1/schedules/{name}"),
    "schedule": ("GET", "/v1/schedules/{name}"),
    "schedules": ("GET", "/v1/schedules"),
    "control_schedule": ("POST", "/v1/schedules/{name}/{action}"),
}

# The parameter that is the body as a whole; what is left is the query then.
_WHOLE_BODIES = {"put_definition": "content", "put_schedule": "content", "provide": "value"}

# Parameters whose absence is the empty text.
_UNSAID_IF_EMPTY = {"by", "reason", "comment", "signal_id"}


class HttpEndpoint:
    """A coordinator at ``http(s)://host:port``."""

    leaving = False  # HTTP has no word for it: a server that stops refuses

    def __init__(
        self, url: str, *, connections: int = 64, token: str | None = None, verify: Any = True, alone: bool = True
    ) -> None:
        self.address = url.rstrip("/")
        self._answer_s = ANSWER_S if alone else ANSWER_SOON_S
        self._wait_max_s = WAIT_MAX_S if alone else WAIT_SOON_S
        headers = {"user-agent": NAME, "accept": "application/json, application/problem+json, */*"}
        if token is not None:
            headers["authorization"] = f"Bearer {token}"
        self._http = httpx.AsyncClient(
            base_url=self.address,
            headers=headers,
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
            timeout=httpx.Timeout(self._answer_s, connect=CONNECT_S, pool=None),
            verify=verify,
            trust_env=not _is_local(self.address),  # a proxy of the environment is not for this machine
        )

    async def submit(self, submission: dict[str, Any], progress: Progress) -> Any:
        body = {name: value for name, value in submission.items() if value is not None}
        # Half of the patience at most: an answer later than that could come too late to be known as an acceptance.
        wait_s = min(progress.wait_s, self._wait_max_s, progress.remaining_s / 2)
        admission_s = (
            seconds(body["admit_within"]) if "admit_within" in body else 0
        )  # it may be held as long for a slot
        view = await self._ask("POST", "/v1/commands", query=_wait(wait_s), body=body, wait_s=wait_s + admission_s)
        progress.accept()
        while view["state"] not in FINAL_STATES and progress.wait_s > 0:
            view = await self.request("get", {"id": view["id"], "wait_ms": _whole_ms(progress.remaining_s)}, math.inf)
        return view

    async def request(self, operation: str, params: dict[str, Any], timeout_s: float) -> Any:
        method, template = _path_of(operation, params)
        longest = _PATHS[operation][1]
        placed = {name: quote(str(value), safe="") for name, value in params.items() if f"{{{name}}}" in longest}
        whole = _WHOLE_BODIES.get(operation)
        left = {name: value for name, value in params.items() if name not in placed and name != whole}
        rest = {name: value for name, value in left.items() if _is_said(name, value)}
        wait_s = min(rest.pop("wait_ms", 0) / 1000, self._wait_max_s)
        body: Any = msgspec.UNSET
        if whole is not None:
            body = params[whole]
        elif method == "POST":
            body, rest = rest, {}
        for name, value in rest.pop("attributes", {}).items():
            rest[f"attribute.{name}"] = value
        path = template.format_map(placed)
        return await self._ask(method, path, query=rest | _wait(wait_s), body=body, wait_s=wait_s)

    async def watch(self, id: str, after: str | None) -> AsyncIterator[Event]:
        headers = {"accept": "text/event-stream"} | ({"last-event-id": after} if after else {})
        async with self._stream(f"/v1/commands/{quote(id, safe='')}/events", {}, headers) as lines:
            async for line in lines:
                if not line.startswith("data:"):  # id, event and retry say nothing that data does not
                    continue
                event = _decode(line[5:])
                if event["kind"] == "error":
                    raise _stream_error(event["error"])
                yield _event(event)
                if event["kind"] == "final":
                    return

    async def outcomes(self, service: str, start: str | None, follow: bool) -> AsyncIterator[list[Any]]:
        query: dict[str, Any] = {"service": service, "follow": "true" if follow else "false"}
        if start is not None:
            query["from"] = start
        async with self._stream(
            "/v1/outcomes", query, {"accept": "application/x-ndjson, */*"}, endless=follow
        ) as lines:
            async for line in lines:
                if line.strip():
                    item = _decode(line)
                    if "error" in item and "position" not in item:
                        raise _stream_error(item["error"])
                    yield [item]

    async def close(self) -> None:
        await self._http.aclose()

    async def _ask(
        self, method: str, path: str, *, query: dict[str, Any], body: Any = msgspec.UNSET, wait_s: float = 0
    ) -> Any:
        content = None if body is msgspec.UNSET else msgspec.json.encode(body)
        headers = {"content-type": "application/json"} if content is not None else {}
        timeout = httpx.Timeout(self._answer_s + wait_s, connect=CONNECT_S, pool=None)
        with _translated(self.address):
            answer = await self._http.request(
                method, path, params=query, content=content, headers=headers, timeout=timeout
            )
        if answer.is_error:
            raise _problem(answer)
        if "json" in answer.headers.get("content-type", ""):
            return _decode(answer.content)
        return answer.text

    @contextlib.asynccontextmanager
    async def _stream(
        self, path: str, query: dict[str, Any], headers: dict[str, str], endless: bool = False
    ) -> AsyncIterator[AsyncIterator[str]]:
        timeout = httpx.Timeout(None if endless else SILENCE_S, connect=CONNECT_S, pool=None)
        with _translated(self.address):
            async with self._http.stream("GET", path, params=query, headers=headers, timeout=timeout) as answer:
                if answer.is_error:
                    await answer.aread()
                    raise _problem(answer)
                yield answer.aiter_lines()


def _path_of(operation: str, params: dict[str, Any]) -> tuple[str, str]:
    """Method and template of the path, which may be shorter than in the table."""
    method, template = _PATHS[operation]
    match operation, params:
        case "get_definition", {"version": None}:
            return method, template.removesuffix("/{version}")
        case "control_schedule", {"action": "delete"}:
            return "DELETE", template.removesuffix("/{action}")
        case _:
            return method, template


def _is_said(name: str, value: Any) -> bool:
    return name == "input" or (value is not None and not (value == "" and name in _UNSAID_IF_EMPTY))


@contextlib.contextmanager
def _translated(address: str) -> Iterator[None]:
    """httpx's errors end here; all of them mean that no answer came."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as why:
        raise ConnectionLost.unreached(f"cannot reach {address}: {type(why).__name__} {why}".rstrip()) from None
    except (httpx.HTTPError, httpx.StreamError) as why:
        raise ConnectionLost(f"{address}: {type(why).__name__} {why}".rstrip()) from None


def _is_local(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _whole_ms(seconds: float) -> int:
    """Never 0: a wait that is nearly over asks once more and lets its own timer end it."""
    return max(1, math.ceil(min(seconds, WAIT_MAX_S) * 1000))


def _wait(wait_s: float) -> dict[str, Any]:
    return {"wait": f"{_whole_ms(wait_s)}ms"} if wait_s > 0 else {}


def _decode(text: str | bytes) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, ValueError) as why:
        raise ConnectionLost(f"the server's answer is no JSON: {why}") from None


def _problem(answer: httpx.Response) -> CoordinatorError:
    """The error of a problem document, or of a bare status (a proxy's, say)."""
    try:
        problem = msgspec.json.decode(answer.content)
    except (msgspec.DecodeError, ValueError):
        problem = None
    if not isinstance(problem, dict) or not isinstance(problem.get("code"), str):
        code = _CODES_BY_STATUS.get(answer.status_code, "internal" if answer.is_server_error else "malformed")
        return error_of(code, answer.reason_phrase, f"HTTP {answer.status_code} without a problem document")
    retry_after_ms = problem.get("retry_after_ms")
    if retry_after_ms is None and answer.headers.get("retry-after", "").isdigit():
        retry_after_ms = int(answer.headers["retry-after"]) * 1000
    retryable = problem.get("retryable")
    if retryable is None and answer.status_code in (429, 503):
        retryable = True  # so that a code of a later version is retried as its status says
    extra = {name: value for name, value in problem.items() if name not in _PROBLEM_MEMBERS}
    return error_of(
        problem["code"], problem.get("title", ""), problem.get("detail", ""), retryable, retry_after_ms, extra
    )


def _stream_error(error: dict[str, Any]) -> CoordinatorError:
    extra = {name: value for name, value in error.items() if name not in _PROBLEM_MEMBERS}
    return error_of(
        error["code"], "", error.get("detail", ""), error.get("retryable"), error.get("retry_after_ms"), extra
    )


def _event(event: dict[str, Any]) -> Event:
    command = command_of(event["view"]) if event.get("view") else None
    return Event(
        kind=event["kind"],
        id=event.get("id", ""),
        position=event.get("position", ""),
        state=event.get("state") or (command.state if command else ""),
        record=event.get("record"),
        command=command,
    )
