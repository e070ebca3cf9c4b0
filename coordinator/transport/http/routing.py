"""The route table's nouns, and the look-up of a request in it.

A Route says everything about one request: method, path, query, body and every answer.  The router dispatches by it, the
query is parsed by it and the OpenAPI document is made of it, so what is documented is what is served.

Paths are matched on the raw target, segment by segment, and each segment is percent-decoded by itself: an id may hold
any character that `model.ids` allows, and an encoded slash cannot move a request to another route.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from enum import Enum
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, unquote

from msgspec import Struct

from coordinator.errors import CoordinatorError, InvalidPayload, Malformed, NotFound
from coordinator.model.durations import parse_duration
from coordinator.transport.http.problem import HttpError

if TYPE_CHECKING:
    from coordinator.transport.http.exchange import Answer, Request

JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"
EVENT_STREAM: Final = "text/event-stream"
MERMAID: Final = "text/vnd.mermaid"
PLAIN: Final = "text/plain"
HTML: Final = "text/html"
FORM: Final = "application/x-www-form-urlencoded"
PROBLEM: Final = "application/problem+json"
FIELDS_MAX: Final = 100  # of a query, or of a form
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class Kind(Enum):
    """How a query parameter is read; `Query.read` gives the Python value."""

    TEXT = "text"
    DURATION = "duration"  # → whole milliseconds
    INTEGER = "integer"
    FLAG = "flag"
    MAP = "map"  # every parameter that begins with the name → dict[str, str]
    ALL = "all"  # every parameter that there is → dict[str, str]; the name is only the document's


class Query(Struct, frozen=True, kw_only=True):
    """One query parameter; ``among`` lists what is allowed, ``low`` and ``high`` bound an integer, ``longest`` a text,
    which then has no control characters either."""

    name: str
    doc: str
    kind: Kind = Kind.TEXT
    default: Any = None
    required: bool = False
    among: tuple[str, ...] = ()
    low: int = 0
    high: int = 0
    longest: int = 0

    def read(self, text: str) -> Any:
        """The value of ``text``; raises InvalidPayload at ``?name``."""
        match self.kind:
            case Kind.DURATION:
                try:
                    return parse_duration(text)
                except ValueError as error:
                    raise self._fault(str(error)) from None
            case Kind.INTEGER:
                if not (text.isascii() and text.isdigit() and len(text) <= 18 and self.low <= int(text) <= self.high):
                    raise self._fault(f"a whole number from {self.low} to {self.high}, not {text!r}")
                return int(text)
            case Kind.FLAG:
                if text not in ("true", "false", "1", "0"):
                    raise self._fault(f"true or false, not {text!r}")
                return text in ("true", "1")
            case Kind.TEXT | Kind.MAP | Kind.ALL:
                if self.among and text not in self.among:
                    raise self._fault(f"one of {', '.join(self.among)}, not {text!r}")
                if self.longest and (len(text) > self.longest or _CONTROL.search(text)):
                    raise self._fault(f"at most {self.longest} characters, none of them a control character")
                return text

    def _fault(self, fault: str) -> InvalidPayload:
        return InvalidPayload.at(f"?{self.name}", fault)


class Reply(Struct, frozen=True):
    """One way in which a route answers: its meaning, media types, and the type of a JSON body (or of a line of it).

    ``headers`` that it may have, with their meaning.
    """

    doc: str
    media: tuple[str, ...] = (JSON,)
    type: Any = None
    headers: dict[str, str] = {}


class Route(Struct, frozen=True, kw_only=True):
    """One request of the API.

    ``errors`` are the classes that this route raises beyond those that any route may (`openapi.ANY`).  ``body`` is the
    type of the request's JSON body, None where it takes none; ``forms`` are media types that it takes besides JSON.
    ``open_query``: parameters not listed are ignored, not refused (probes).  ``safe`` is false for a GET that changes
    something: a HEAD is not taken for it.
    """

    method: str
    path: str
    handler: Callable[[Any, Request], Awaitable[Answer]]
    summary: str
    tag: str
    replies: dict[int, Reply]
    errors: tuple[type[CoordinatorError], ...] = ()
    query: tuple[Query, ...] = ()
    body: Any = None
    body_optional: bool = False
    forms: tuple[str, ...] = ()
    headers: dict[str, str] = {}
    open_query: bool = False
    safe: bool = True

    @property
    def name(self) -> str:
        """The operation id: the handler's name."""
        return str(getattr(self.handler, "__name__", ""))

    def parse_query(self, raw: bytes) -> dict[str, Any]:
        """Every declared parameter by name, defaults filled in; raises InvalidPayload with the path of each fault."""
        values: dict[str, Any] = {query.name: {} if query.kind in _MANY else query.default for query in self.query}
        given = pairs(raw)
        faults: list[tuple[str, str]] = []
        for name, text in given.items():
            try:
                self._read(name, text, values)
            except InvalidPayload as error:
                faults.append((f"?{name}", error.extra["faults"][0]["fault"]))
        faults += [(f"?{query.name}", "required") for query in self.query if query.required and query.name not in given]
        if faults:
            raise InvalidPayload.all(faults)
        return values

    def _read(self, name: str, text: str, values: dict[str, Any]) -> None:
        for query in self.query:
            if query.kind is Kind.ALL:
                values[query.name][name] = query.read(text)
                return
            if query.kind is Kind.MAP and name.startswith(query.name) and name != query.name:
                values[query.name][name.removeprefix(query.name)] = query.read(text)
                return
            if name == query.name and query.kind not in _MANY:
                values[name] = query.read(text)
                return
        if not self.open_query:
            known = ", ".join(query.name for query in self.query) or "none"
            raise InvalidPayload.at(f"?{name}", f"unknown parameter; known are: {known}")


def pairs(raw: bytes, what: str = "query", place: str = "?") -> dict[str, str]:
    """The names and values of a query, or of a body that is a form; a name's path in errors begins with ``place``."""
    if not raw:
        return {}
    try:
        given = parse_qsl(raw.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=FIELDS_MAX)
    except ValueError as error:  # UnicodeDecodeError too
        fault = f"the {what} is not percent-encoded UTF-8 of at most {FIELDS_MAX} parameters: {error}"
        raise Malformed(fault) from None
    found: dict[str, str] = {}
    for name, text in given:
        if name in found:
            raise InvalidPayload.at(f"{place}{name}", "given twice")
        found[name] = text
    return found


_MANY: Final = (Kind.MAP, Kind.ALL)
_PARAMETER: Final = "{}"
_REMEMBERED_MAX: Final = 512
_REMEMBERED_BYTES_MAX: Final = 64


class _Node:
    """A place in the tree of path segments; the child ``{}`` stands for a parameter."""

    __slots__ = ("children", "routes")

    def __init__(self) -> None:
        self.children: dict[str, _Node] = {}
        self.routes: dict[str, tuple[Route, tuple[str, ...]]] = {}


class Router:
    """Finds the Route of a request: whole paths by one look-up, paths with parameters along a tree."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._whole: dict[bytes, _Node] = {}
        self._root = _Node()
        self._queries: dict[tuple[str, str, bytes], dict[str, Any]] = {}
        for route in routes:
            segments = route.path.split("/")[1:]
            node = self._root
            for segment in segments:
                node = node.children.setdefault(_PARAMETER if segment.startswith("{") else segment, _Node())
            names = tuple(segment[1:-1] for segment in segments if segment.startswith("{"))
            assert route.method not in node.routes, f"{route.method} {route.path} is routed twice"
            node.routes[route.method] = (route, names)
            if not names:
                self._whole[route.path.encode()] = node

    def query(self, route: Route, raw: bytes) -> dict[str, Any]:
        """`Route.parse_query`, remembered where it is short: clients ask with the same ``?wait=`` thousands of times.

        The answer is shared, so it is only to be read.
        """
        key = (route.method, route.path, raw)
        values = self._queries.get(key)
        if values is None:
            values = route.parse_query(raw)
            if len(raw) <= _REMEMBERED_BYTES_MAX and route.safe:
                if len(self._queries) >= _REMEMBERED_MAX:
                    self._queries.clear()
                self._queries[key] = values
        return values

    def find(self, method: str, raw_path: bytes) -> tuple[Route, dict[str, str]]:
        """The route and its path parameters; raises NotFound, HttpError (405 with Allow) or Malformed."""
        node = self._whole.get(raw_path)
        texts: list[str] = []
        if node is None:
            node = self._descend(raw_path, texts)
        looked_at = node.routes.get("GET")
        safe = looked_at if looked_at is not None and looked_at[0].safe else None
        found = node.routes.get(method) or (safe if method == "HEAD" else None)
        if found is None:
            allow = ", ".join(sorted({*node.routes, *(["HEAD"] if safe else [])}))
            raise HttpError(
                HTTPStatus.METHOD_NOT_ALLOWED,
                "method_not_allowed",
                f"{method} is not allowed here; allowed are {allow}",
                [(b"allow", allow.encode())],
            )
        route, names = found
        return route, dict(zip(names, texts, strict=True))

    def _descend(self, raw_path: bytes, texts: list[str]) -> _Node:
        node: _Node | None = self._root
        for raw in raw_path.split(b"/")[1:]:
            segment = _decoded(raw)
            assert node is not None
            child = node.children.get(segment) if segment != _PARAMETER else None
            if child is None and segment:
                child = node.children.get(_PARAMETER)
                texts.append(segment)
            node = child
            if node is None:
                break
        if node is None or not node.routes:
            raise NotFound(f"there is nothing at {raw_path.decode('latin-1')}; see /openapi.json")
        return node


def _decoded(raw: bytes) -> str:
    try:
        return unquote(raw.decode("ascii"), errors="strict")
    except UnicodeDecodeError:
        raise Malformed("the path is not percent-encoded UTF-8") from None
