"""Templates: types are kept, texts are joined, paths cannot be escaped from."""

from __future__ import annotations

from typing import Any

import pytest

from coordinator.engine.expressions import ExpressionError
from coordinator.engine.templates import path_template, text_template, value_template

SCOPE = {"payload": {"id": "o-1", "n": 3, "f": 1.5, "yes": True, "none": None, "list": [1], "m": {"a": 1}}}


def _never(path: str, fault: str) -> None:
    raise AssertionError(f"{path}: {fault}")


def value(template: Any) -> Any:
    return value_template(template, "$.body", _never).render(SCOPE)


def path(template: str, **payload: Any) -> str:
    rendered: str = path_template(template, "$.path", _never).render({"payload": payload})
    return rendered


def faults_of(make: Any, template: Any) -> list[tuple[str, str]]:
    faults: list[tuple[str, str]] = []
    make(template, "$.x", lambda where, fault: faults.append((where, fault)))
    return faults


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("${payload.n}", 3),
        ("${ payload.list }", [1]),
        ("${payload.none}", None),
        ("${payload.m}", {"a": 1}),
        ("n=${payload.n}", "n=3"),
        ("${payload.n}${payload.n}", "33"),
        ("${payload.yes}/${payload.f}/${payload.id}", "true/1.5/o-1"),
        ("$${payload.n}", "${payload.n}"),
        ("$$${payload.n}", "$${payload.n}"),
        ("$ {x} $", "$ {x} $"),
        ("${'}' + payload.id}", "}o-1"),
        ("${{'a': {'b': payload.n}}.a.b}", 3),
        ({"a": ["${payload.n}", 1, {"b": "x"}]}, {"a": [3, 1, {"b": "x"}]}),
        ([], []),
        (7, 7),
    ],
)
def test_a_value_template_keeps_types(template: Any, expected: Any) -> None:
    """A string that is one expression becomes its value, any other string stays a string."""
    rendered = value(template)
    assert rendered == expected
    assert type(rendered) is type(expected)


def test_keys_keep_their_order() -> None:
    """A body goes out as its author wrote it."""
    assert list(value({"z": 1, "a": "${payload.n}", "m": 2})) == ["z", "a", "m"]


def test_what_holds_no_expression_is_static() -> None:
    """A constant body is made once, not for each command."""
    template = value_template({"a": [1, "$x"]}, "$", _never)
    assert template.static
    assert template.render({}) is template.render({})
    assert not value_template({"a": ["${payload.n}"]}, "$", _never).static


@pytest.mark.parametrize("name", ["none", "list", "m"])
def test_only_scalars_go_into_a_text(name: str) -> None:
    """Null, lists and maps in the middle of a text are mistakes."""
    with pytest.raises(ExpressionError, match="cannot be inserted into a text"):
        value(f"a ${{payload.{name}}}")
    with pytest.raises(ExpressionError, match="cannot be inserted into a text"):
        text_template(f"${{payload.{name}}}", "$.x", _never).render(SCOPE)


def test_faults_name_their_path() -> None:
    """Each bad expression in a body is reported where it stands."""
    body = {"a": ["${payload.}"], "b c": "${x}", "d": "${payload.n"}
    assert [where for where, _ in faults_of(value_template, body)] == ["$.x.a[0]", '$.x["b c"]', "$.x.d"]
    assert faults_of(value_template, "a ${payload.n")[0][1].startswith("at character 3: a ${ without its }")
    assert faults_of(value_template, {"${payload.n}": 1}) == [('$.x["${payload.n}"]', "a key is no template")]


@pytest.mark.parametrize(
    ("template", "payload", "expected"),
    [
        ("/orders/${payload.id}", {"id": "o-1"}, "/orders/o-1"),
        ("/orders/${payload.id}", {"id": "a/b?c#d e%é"}, "/orders/a%2Fb%3Fc%23d%20e%25%C3%A9"),
        ("/orders/${payload.id}", {"id": 7}, "/orders/7"),
        ("/${payload.id}/x", {"id": "/evil.example"}, "/%2Fevil.example/x"),
        ("/o?q=${payload.id}&r=1", {"id": "a&b=c"}, "/o?q=a%26b%3Dc&r=1"),
        ("/o?q=${payload.id}", {"id": ""}, "/o?q="),
        ("/p-${payload.id}", {"id": ""}, "/p-"),
        ("/v1.${payload.id}", {"id": "."}, "/v1.."),
        ("/caf\u00e9 au lait", {}, "/caf%C3%A9%20au%20lait"),
    ],
)
def test_an_insertion_stays_in_its_segment(template: str, payload: dict[str, Any], expected: str) -> None:
    """Whatever a payload holds, it cannot lead to another host, resource or parameter."""
    assert path(template, **payload) == expected


@pytest.mark.parametrize("id", ["", ".", ".."])
@pytest.mark.parametrize("template", ["/orders/${payload.id}", "/orders/${payload.id}/x", "/${payload.id}?a=1"])
def test_an_insertion_that_would_name_another_resource_fails(template: str, id: str) -> None:
    """``DELETE /orders/${id}`` with an empty id must not delete all orders."""
    with pytest.raises(ExpressionError, match="cannot be sent"):
        path(template, id=id)


def test_dots_in_pieces_are_seen_whole() -> None:
    """Two insertions cannot make ``..`` together."""
    with pytest.raises(ExpressionError, match="no segment"):
        path("/a/${payload.x}${payload.x}", x=".")


@pytest.mark.parametrize(
    "template",
    [
        "x",
        "//evil.example/x",
        "http://evil.example",
        "${payload.url}",
        "${payload.a}/x",
        "/a#b",
        "/a\\b",
        "/a/../b",
        "/%2e%2E/b",
        "/a%zz",
    ],
)
def test_a_path_that_leads_away_is_refused(template: str) -> None:
    """A definition names services; it has no way to write an address."""
    assert faults_of(path_template, template)
