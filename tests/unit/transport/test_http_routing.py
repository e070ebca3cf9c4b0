"""The route table: what is found, what a query means, and that the OpenAPI document says the same."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
from jsonschema import Draft202012Validator

from coordinator.errors import InvalidPayload, Malformed, NotFound, tree
from coordinator.model.ids import command_id
from coordinator.transport.http import openapi
from coordinator.transport.http.problem import HttpError
from coordinator.transport.http.routes import ROUTES
from coordinator.transport.http.routing import Router

ROUTER = Router(ROUTES)
COMMITTED = Path(__file__).parents[3] / "proto" / "openapi.json"
BY_NAME = {route.name: route for route in ROUTES}


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
def test_every_route_is_found_by_its_own_path(route: Any) -> None:
    """With any id in place of its parameters."""
    path = re.sub(r"\{\w+\}", "7", route.path)
    found, parameters = ROUTER.find(route.method, path.encode())
    assert found is route
    assert set(parameters) == set(re.findall(r"\{(\w+)\}", route.path))


@pytest.mark.parametrize(
    "id", ["order-123", "é", "a%2Fb", "a+b c".replace(" ", "\u00a0"), "日本", "...", "{}", "?x=1", "events"]
)
def test_any_id_survives_its_way_through_a_path(id: str) -> None:
    """An id is percent-encoded by the client and comes out as it went in."""
    command_id(id)
    route, parameters = ROUTER.find("GET", f"/v1/commands/{quote(id, safe='')}/history".encode())
    assert (route.name, parameters) == ("history", {"id": id})


NOWHERE = [
    "",
    "//",
    "/nope",
    "/v1",
    "/v1/",
    "/v1/commands/",
    "/v1/commands//history",
    "/v1/commands/a/",
    "/v1/commands/a/nope",
    "/v1/commands/a/history/b",
]


@pytest.mark.parametrize("path", NOWHERE)
def test_what_is_not_there_is_not_found(path: str) -> None:
    """No guessing: a trailing slash, an empty id or a word more is another path."""
    with pytest.raises(NotFound):
        ROUTER.find("GET", path.encode())


def test_a_path_that_is_no_utf_8_is_malformed() -> None:
    """It cannot name anything."""
    with pytest.raises(Malformed):
        ROUTER.find("GET", b"/v1/commands/%ff")


def test_a_wrong_method_is_told_the_right_ones() -> None:
    """405 carries Allow; HEAD is allowed wherever GET is."""
    with pytest.raises(HttpError) as raised:
        ROUTER.find("DELETE", b"/v1/commands")
    assert (raised.value.status, raised.value.headers) == (405, [(b"allow", b"GET, HEAD, POST")])
    assert ROUTER.find("HEAD", b"/v1/commands")[0].name == "list_commands"


def test_a_query_is_read_as_its_route_declares() -> None:
    """Durations become milliseconds, attributes a dict, defaults are filled in."""
    assert BY_NAME["submit"].parse_query(b"wait=1.5s") == {"wait": 1500}
    assert BY_NAME["submit"].parse_query(b"") == {"wait": 0}
    assert BY_NAME["list_commands"].parse_query(b"state=running&attribute.customer=c%201&attribute.x=&limit=7") == {
        "state": "running",
        "type": None,
        "attribute.": {"customer": "c 1", "x": ""},
        "limit": 7,
        "cursor": None,
    }
    assert BY_NAME["outcomes"].parse_query(b"service=s&follow=true&from=0:1")["follow"] is True


@pytest.mark.parametrize(
    ("route", "query", "paths"),
    [
        ("submit", b"wait=5", ["?wait"]),
        ("submit", b"wait=-1s", ["?wait"]),
        ("submit", b"wait=", ["?wait"]),
        ("submit", b"wait=1s&wait=2s", ["?wait"]),
        ("submit", b"wiat=1s", ["?wiat"]),
        ("list_commands", b"limit=0&state=x&zip=1", ["?limit", "?state", "?zip"]),
        ("list_commands", b"limit=1001", ["?limit"]),
        ("list_commands", "limit=\u0665".encode().replace(b"\xd9\xa5", b"%D9%A5"), ["?limit"]),
        ("list_commands", b"limit=" + b"9" * 5000, ["?limit"]),
        ("list_commands", b"attribute.=1", ["?attribute."]),
        ("outcomes", b"", ["?service"]),
        ("outcomes", b"service=a&follow=maybe", ["?follow"]),
    ],
)
def test_a_wrong_query_names_each_fault(route: str, query: bytes, paths: list[str]) -> None:
    """The path of a query parameter is ?name; all faults come at once."""
    with pytest.raises(InvalidPayload) as raised:
        BY_NAME[route].parse_query(query)
    assert sorted(fault["path"] for fault in raised.value.extra["faults"]) == paths


@pytest.mark.parametrize("query", [b"wait=%ff", b"&".join(b"a%d=1" % n for n in range(500)), b"wait=\xff"])
def test_a_query_that_is_none_is_malformed(query: bytes) -> None:
    """Wrong UTF-8, or more parameters than anyone could mean."""
    with pytest.raises(Malformed):
        BY_NAME["submit"].parse_query(query)


def test_probes_may_add_what_they_like() -> None:
    """Load balancers put things into the query of a health check."""
    assert BY_NAME["readyz"].parse_query(b"probe=1&x=2") == {}


# ---------------------------------------------------------------- OpenAPI


def test_the_committed_document_is_what_is_served() -> None:
    """``make proto`` writes it anew."""
    assert COMMITTED.read_bytes() == openapi.encoded()


def test_the_document_describes_every_route_once() -> None:
    """Same methods, same paths, distinct operation ids."""
    paths = openapi.document()["paths"]
    described = {(method.upper(), path) for path, operations in paths.items() for method in operations}
    assert described == {(route.method, route.path) for route in ROUTES}
    assert len({route.name for route in ROUTES}) == len(ROUTES)


def test_every_reference_in_the_document_leads_somewhere() -> None:
    """And every schema is a schema."""
    document = openapi.document()
    names = set(document["components"]["schemas"])
    references = set(re.findall(r'"\$ref":"([^"]+)"', msgspec.json.encode(document).decode()))
    assert {reference.removeprefix("#/components/schemas/") for reference in references} <= names
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


def test_every_error_in_the_document_exists() -> None:
    """Codes are those of the error tree, and the few that only HTTP has."""
    known = {(error.http, code) for code, error in tree().items()} | {(415, "unsupported_media_type")}
    for operations in openapi.document()["paths"].values():
        for operation in operations.values():
            for status, response in operation["responses"].items():
                if int(status) >= 400:
                    assert {(int(status), code) for code in response["description"].split(" | ")} <= known
