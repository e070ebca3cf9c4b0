"""Expressions against the CEL library itself: cutting paths, tests and loops out of it must not change a meaning."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from coordinator.engine.cel_library import EvaluationError, program
from coordinator.engine.expressions import ExpressionError, compile_expression, plain
from coordinator.engine.syntax import Fault

KEYS = ("a", "b", "list", "items")
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.sampled_from([0.5, 2.0, -1.25])
    | st.sampled_from(["", "x", "xy"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=8,
)
PAYLOADS = st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4)


def selectors(root: str) -> st.SearchStrategy[str]:
    """Paths below ``root``."""
    part = st.sampled_from(
        [*(f".{key}" for key in KEYS), *(f'["{key}"]' for key in KEYS), "[0]", "[1]", " . a", "['b']"]
    )
    return st.lists(part, max_size=3).map(lambda parts: root + "".join(parts))


def expressions(variables: tuple[str, ...] = ()) -> st.SearchStrategy[str]:
    """CEL over ``payload`` and the variables of loops around."""
    roots = st.sampled_from(("payload", *variables)).flatmap(selectors)
    literal = st.sampled_from(["1", "2.0", "true", "false", "null", "'x'", "[1, 2]", "{'a': 1}", "[payload.a]"])
    tested = st.sampled_from(("payload", *variables)).flatmap(selectors).map(lambda path: f"has({path}.a)")
    leaf = roots | roots | literal | tested

    def grown(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        binary = st.tuples(inner, st.sampled_from(["&&", "||", "==", "!=", "<", ">=", "+", "*", "in"]), inner).map(
            lambda each: f"({each[0]} {each[1]} {each[2]})"
        )
        choice = st.tuples(inner, inner, inner).map(lambda each: f"({each[0]} ? {each[1]} : {each[2]})")
        other = st.tuples(
            st.sampled_from(["!({})", "size({})", "({}).size()", "-({})", "({}).a", "({})[0]", "string({})"]), inner
        ).map(lambda each: each[0].format(each[1]))
        return binary | choice | other

    return st.recursive(leaf, grown, max_leaves=5)


def loops() -> st.SearchStrategy[str]:
    """Loops over lists that are there, with bodies of any kind."""
    receiver = st.sampled_from(
        ["[1, 2, 3]", "[true, false]", "['x', '']", "payload.list", "payload.items", "[payload.a, payload.b]"]
    )
    macro = st.sampled_from(["all", "exists", "exists_one", "filter", "map"])
    return st.tuples(receiver, macro, expressions(("i",))).map(lambda each: f"{each[0]}.{each[1]}(i, {each[2]})")


def by_library(text: str, payload: dict[str, Any]) -> tuple[str, Any]:
    try:
        return "value", plain(program(text)({"payload": payload}))
    except EvaluationError:
        return "error", None
    except Exception as error:  # the library's result is no JSON
        if type(error).__name__ != "_NoValue":
            raise
        return "error", None


def by_us(text: str, payload: dict[str, Any]) -> tuple[str, Any]:
    try:
        return "value", compile_expression(text, "$").value({"payload": payload, "steps": {}, "command": {}})
    except ExpressionError:
        return "error", None


def same(left: Any, right: Any) -> bool:
    """Equal, types of scalars included (1 is not true, and 1 is not 1.0)."""
    if type(left) is not type(right):
        return False
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return bool(left == right)


@settings(max_examples=200, deadline=None)
@given(expressions(), PAYLOADS)
@example("true || payload.a", {})
@example("payload.a || true", {})
@example("payload.a && false", {})
@example("payload.a.b", {"a": None})
@example("payload.list['a']", {"list": [1]})
@example("payload.a[0]", {"a": "x"})
@example("payload.a[0]", {"a": {"a": 1}})
def test_an_expression_means_what_the_library_says(text: str, payload: dict[str, Any]) -> None:
    """Any expression over any payload has the value that CEL gives it, or none where CEL has none."""
    ours, theirs = by_us(text, payload), by_library(text, payload)
    assert ours[0] == theirs[0], (ours, theirs)
    assert same(ours[1], theirs[1]), (ours, theirs)


@settings(max_examples=200, deadline=None)
@given(loops(), PAYLOADS)
@example("[1, 2].exists(i, payload.a)", {})
@example("[true, false].all(i, i || payload.a)", {})
@example("[1, 2].all(i, i == 2 ? payload.a == 1 : false)", {})
def test_a_loop_means_what_the_library_says(text: str, payload: dict[str, Any]) -> None:
    """all, exists, exists_one, filter and map agree with CEL, errors that do not decide included."""
    ours, theirs = by_us(text, payload), by_library(text, payload)
    if not same(ours[1], theirs[1]) or ours[0] != theirs[0]:
        assert tolerated(text, ours, theirs), (ours, theirs)


def tolerated(text: str, ours: tuple[str, Any], theirs: tuple[str, Any]) -> bool:
    """The two places where the library leaves what CEL specifies, or what a replay needs.

    It stops ``all`` and ``exists`` at an error that a later element overrules, and goes through maps in a random order.
    """
    if theirs[0] == "error":
        return ours[1] is (".exists(" in text) and (".all(" in text or ".exists(" in text)
    return ours[0] == "value" and sorted(map(repr, ours[1])) == sorted(map(repr, theirs[1]))


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="payload.stepcmn[]()'\"0123456789+-*/%<>=!&|?:,{} \\\n$_é", max_size=40) | st.text(max_size=30))
@example("'" * 3)
@example("payload.a.all(")
@example("payload.a.all(x")
@example("a.b.c.")
@example("has(payload.a")
@example("payload.s.matches('a{99999999999999999999}')")
@example("\x00")
def test_any_text_is_compiled_or_refused_with_a_fault(text: str) -> None:
    """No text, however broken, makes the compiler fail in another way."""
    with suppress(Fault):
        compile_expression(text, "$")
