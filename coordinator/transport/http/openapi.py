"""The OpenAPI 3.1 document, made from the route table and the types that are served.

``proto/openapi.json`` is this document, committed for those who generate clients; a test keeps the two equal.
``make proto`` writes it anew.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from coordinator.errors import CoordinatorError, Internal, InvalidPayload, Malformed, TooLarge
from coordinator.model.ids import ID_LENGTH_MAX
from coordinator.transport.http.problem import Problem
from coordinator.transport.http.routes import ROUTES
from coordinator.transport.http.routing import JSON, PROBLEM, Kind, Query, Reply, Route

VERSION: Final = "1.0.0"
ANY: Final[tuple[type[CoordinatorError], ...]] = (Malformed, InvalidPayload, Internal)
"""What any route may answer: a request that is none, a wrong parameter, a mistake of ours."""

_PATH_SCHEMAS: Final[dict[str, dict[str, Any]]] = {
    "id": {"type": "string", "minLength": 1, "maxLength": ID_LENGTH_MAX},
    "name": {"type": "string", "minLength": 1},
    "step": {"type": "string", "minLength": 1, "maxLength": 200},
    "token": {"type": "string", "minLength": 1},
    "version": {"type": "integer", "minimum": 1},
}
_REFERENCES: Final = "#/components/schemas/{name}"


def document(routes: Iterable[Route] = ROUTES) -> dict[str, Any]:
    """The document as plain values."""
    routes = list(routes)
    types = [
        Problem,
        *(route.body for route in routes if route.body is not None),
        *(reply.type for route in routes for reply in route.replies.values()),
    ]
    schemas, components = msgspec.json.schema_components(types, ref_template=_REFERENCES)
    schema_of = {str(type_): schema for type_, schema in zip(types, schemas, strict=True)}
    paths: dict[str, dict[str, Any]] = defaultdict(dict)
    for route in routes:
        paths[route.path][route.method.lower()] = _operation(route, schema_of)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "coordinator",
            "version": VERSION,
            "summary": "A saga coordinator: commands in, outcomes out.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": dict(paths),
        "components": {"schemas": dict(sorted(components.items()))},
    }


def encoded() -> bytes:
    """The document as served and as committed: stable order, two spaces, a line break at the end."""
    return msgspec.json.format(msgspec.json.encode(document()), indent=2) + b"\n"


def _operation(route: Route, schema_of: dict[str, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.summary,
        "tags": [route.tag],
        "parameters": [*_path_parameters(route), *map(_query_parameter, route.query), *_header_parameters(route)],
        "responses": {
            **{str(status): _reply(reply, schema_of) for status, reply in route.replies.items()},
            **_problems(route, schema_of),
        },
    }
    if route.body is not None:
        operation["requestBody"] = {
            "required": not route.body_optional,
            "content": {media: {"schema": schema_of[str(route.body)]} for media in (JSON, *route.forms)},
        }
    return operation


def _path_parameters(route: Route) -> list[dict[str, Any]]:
    names = [segment[1:-1] for segment in route.path.split("/") if segment.startswith("{")]
    return [{"name": name, "in": "path", "required": True, "schema": _PATH_SCHEMAS[name]} for name in names]


def _query_parameter(query: Query) -> dict[str, Any]:
    schema: dict[str, Any]
    match query.kind:
        case Kind.TEXT:
            schema = {"type": "string"} | ({"maxLength": query.longest} if query.longest else {})
        case Kind.DURATION:
            schema = {"type": "string", "pattern": r"^\d{1,9}(\.\d{1,6})?(ms|s|m|h|d)$"}
        case Kind.INTEGER:
            schema = {"type": "integer", "minimum": query.low, "maximum": query.high, "default": query.default}
        case Kind.FLAG:
            schema = {"type": "boolean", "default": query.default}
        case Kind.MAP | Kind.ALL:  # OpenAPI has no word for a prefix: an exploded object stands for it
            schema = {"type": "object", "additionalProperties": {"type": "string"}}
    if query.among:
        schema["enum"] = [str(text) for text in query.among]
    parameter: dict[str, Any] = {
        "name": query.name,
        "in": "query",
        "description": query.doc,
        "required": query.required,
        "schema": schema,
    }
    if query.kind in (Kind.MAP, Kind.ALL):
        parameter |= {"style": "form", "explode": True}
    return parameter


def _header_parameters(route: Route) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "header", "description": doc, "required": False, "schema": {"type": "string"}}
        for name, doc in route.headers.items()
    ]


def _reply(reply: Reply, schema_of: dict[str, Any]) -> dict[str, Any]:
    response: dict[str, Any] = {
        "description": reply.doc,
        "content": {media: {"schema": schema_of[str(reply.type)]} for media in reply.media},
    }
    if reply.headers:
        response["headers"] = {
            name: {"description": doc, "schema": {"type": "string"}} for name, doc in reply.headers.items()
        }
    return response


def _problems(route: Route, schema_of: dict[str, Any]) -> dict[str, Any]:
    """One response a status, naming the codes that it comes with."""
    codes: dict[int, list[str]] = defaultdict(list)
    for error in (*ANY, *route.errors, *((TooLarge,) if route.body is not None else ())):
        codes[error.http].append(error.code)
    if route.body is not None:
        codes[415].append("unsupported_media_type")
    responses: dict[str, Any] = {}
    for status, names in sorted(codes.items()):
        response: dict[str, Any] = {
            "description": " | ".join(names),
            "content": {PROBLEM: {"schema": schema_of[str(Problem)]}},
        }
        if status in (429, 503):
            response["headers"] = {
                "Retry-After": {"description": "Whole seconds to wait.", "schema": {"type": "integer", "minimum": 1}}
            }
        responses[str(status)] = response
    return responses
