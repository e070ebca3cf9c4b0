"""The expression language: values, errors with one meaning, and a bound on work."""

from __future__ import annotations

from typing import Any

import pytest

from coordinator.engine.expressions import LENGTH_MAX, ExpressionError, compile_expression
from coordinator.engine.syntax import Fault

SCOPE = {
    "payload": {
        "amount": 1999,
        "price": 19.99,
        "name": "ann",
        "nothing": None,
        "list": [1, 2, 3],
        "map": {"k": 1, "a-b": 2},
        "items": [{"sku": "x", "quantity": 2}, {"sku": "y", "quantity": 0}],
        "huge": 2**70,
    },
    "steps": {"charge": {"id": "c-1"}, "coupon": None, "a-b": {"x": 1}},
    "command": {"id": "order-1", "type": "order", "attributes": {"customer": "c"}},
}


def value(text: str, scope: dict[str, Any] = SCOPE) -> Any:
    return compile_expression(text, "$.here").value(scope)


def fault(text: str) -> str:
    with pytest.raises(Fault) as found:
        compile_expression(text, "$.here")
    return str(found.value)


def reason(text: str, scope: dict[str, Any] = SCOPE) -> str:
    with pytest.raises(ExpressionError) as found:
        value(text, scope)
    assert found.value.path == "$.here"
    assert found.value.expression == text
    return found.value.reason


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("payload.amount", 1999),
        ("payload.price", 19.99),
        ("payload.nothing", None),
        ("payload.list[2]", 3),
        ("payload['map'][\"a-b\"]", 2),
        ("payload . items [ 0 ] . sku", "x"),
        ("steps.charge.id", "c-1"),
        ('steps["a-b"].x', 1),
        ("command.id", "order-1"),
        ("command.attributes.customer", "c"),
        ("payload.huge", 2**70),
    ],
)
def test_a_plain_path_is_a_look_up(text: str, expected: Any) -> None:
    """A path gives what is there, with its type."""
    found = value(text)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("payload.amount > 1000", True),
        ("payload.price > 1000", False),
        ("payload.amount > 10.5 && payload.price < 20", True),
        ("payload.amount == 1999.0", True),
        ("payload.amount + 1", 2000),
        ("payload.price * 2.0", 39.98),
        ("double(payload.amount) * 1.5", 2998.5),
        ("7 / 2", 3),
        ("'id-' + string(payload.amount)", "id-1999"),
        ("payload.name.startsWith('a') ? 'yes' : 'no'", "yes"),
        ("size(payload.list) + payload.name.size()", 6),
        ("2 in payload.list && 'k' in payload.map", True),
        ("type(payload.amount) == int", True),
        ("steps.coupon == null", True),
        ("payload.name.matches('^[a-z]{3}$')", True),
        ("payload.list[payload.list[0]]", 2),
        ("(payload.map).k", 1),
        ("'a}b' // a comment", "a}b"),
        ("{'b': payload.amount, 'a': [payload.name]}", {"a": ["ann"], "b": 1999}),
    ],
)
def test_anything_more_is_cel(text: str, expected: Any) -> None:
    """Operators and functions work on look-ups, whole numbers and fractions compare with each other."""
    assert value(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("payload.items.all(i, i.quantity > 0)", False),
        ("payload.items.exists(i, i.quantity == 0)", True),
        ("payload.items.exists_one(i, i.quantity > 0)", True),
        ("payload.items.filter(i, i.quantity > 0).map(i, i.sku)", ["x"]),
        ("payload.items.map(i, i.quantity > 0, i.sku)", ["x"]),
        ("payload.items.map(i, i.sku)[1]", "y"),
        ("payload.items.filter(i, i.sku == 'x')[0].quantity", 2),
        ("payload.list.map(x, payload.list.map(y, x * y))", [[1, 2, 3], [2, 4, 6], [3, 6, 9]]),
        ("payload.map.map(k, k)", ["a-b", "k"]),
        ("[1, 2].exists(x, x == 2) ? 'y' : 'n'", "y"),
        ("(payload.list + payload.list).filter(x, x > 2).size() == 2", True),
        ("payload.list.map(x, 'x')", ["x", "x", "x"]),
    ],
)
def test_loops_bind_a_variable(text: str, expected: Any) -> None:
    """all, exists, exists_one, filter and map, chained, nested and indexed."""
    assert value(text) == expected


def test_has_asks_without_failing() -> None:
    """has() is true for a field that is there, null or not, and false for one that is missing."""
    assert value("has(payload.amount)") is True
    assert value("has(payload.nothing)") is True
    assert value("has(payload.coupon)") is False
    assert value("has(payload.coupon) && payload.coupon.code == 'x'") is False
    assert value("payload.items.filter(i, has(i.note)).size()") == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("payload.coupon", "payload has no field coupon"),
        ("payload.coupon == 1", "payload has no field coupon"),
        ("payload.nothing.x", "payload.nothing is null and has no field x"),
        ("steps.coupon.id", "steps.coupon is null and has no field id"),
        ("payload.list[3]", "payload.list has no element 3, it has 3"),
        ("payload.list.x", "payload.list is a list and has no field x"),
        ("payload.name[0]", "payload.name is a string and has no element 0"),
        ("payload.map[0]", "payload.map is a map and has no element 0"),
        ("payload.items.map(i, i.note)", "i has no field note"),
        ("has(payload.nothing.x)", "has(payload.nothing.x): payload.nothing is null, no map"),
        ("{'a': 1}.b", "there is no field 'b'"),
        ("1 / (payload.amount - 1999)", "division by zero"),
        ("string(true)", "string() is not defined for these arguments"),
        ("payload.name.all(x, true)", "all() needs a list or a map, not a string"),
        ("payload.list.all(x, x)", "a condition is true or false, not a number"),
        ("1.0 / 0.0", "the result is no finite number"),
        ("payload.huge + 1", "a whole number beyond 64 bits cannot be calculated with"),
    ],
)
def test_a_value_that_is_not_there_is_an_error(text: str, expected: str) -> None:
    """Missing fields and wrong types have no value, and the reason names the place."""
    assert reason(text) == expected


@pytest.mark.parametrize(
    "text",
    ["payload.amount + 0.5", "payload.name + 1", "!payload.amount", "payload.amount ? 1 : 2", "payload.nothing < 1"],
)
def test_types_are_not_bent(text: str) -> None:
    """Arithmetic across types and conditions that are no booleans are errors, as in CEL."""
    assert "types that do not go together" in reason(text)


def test_an_error_that_does_not_decide_is_forgiven() -> None:
    """``||`` and ``&&`` need only the side that decides, as do all() and exists()."""
    assert value("payload.coupon || payload.amount > 0") is True
    assert value("payload.amount < 0 && payload.coupon") is False
    assert value("payload.items.exists(i, i.note == 'x' || i.quantity == 0)") is True
    assert value("payload.amount > 0 ? 1 : payload.coupon") == 1


def test_a_condition_is_a_boolean() -> None:
    """``when`` takes no number, string or null for true."""
    assert compile_expression("payload.amount > 1", "$").holds(SCOPE) is True
    for text, kind in [("payload.amount", "a number"), ("payload.name", "a string"), ("payload.nothing", "null")]:
        with pytest.raises(ExpressionError, match=f"not {kind}"):
            compile_expression(text, "$").holds(SCOPE)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("timestamp('2024-01-01T01:00:00+01:00')", "2024-01-01T00:00:00Z"),
        ("duration('1m30s')", "90s"),
        ("duration('-1500ms')", "-1.5s"),
        ("b'ab'", "YWI="),
        ("1u", 1),
        ("{2: 'a', true: 'b'}", {"2": "a", "true": "b"}),
        ("[timestamp('2024-01-01T00:00:00Z')].map(t, t)", ["2024-01-01T00:00:00Z"]),
        ("[timestamp('2024-01-01T00:00:00Z')].map(t, t)[0].getFullYear()", 2024),
    ],
)
def test_results_are_json(text: str, expected: Any) -> None:
    """Types that only CEL has leave it as JSON, between parts of an expression they stay what they are."""
    assert value(text) == expected


def test_maps_made_by_cel_have_their_keys_in_order() -> None:
    """The same request is the same bytes on every retry."""
    text = "{'d': 1, 'b': 2, 'c': 3, 'a': 4, 'e': 5}"
    assert all(list(value(text)) == ["a", "b", "c", "d", "e"] for _ in range(20))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "the expression is empty"),
        ("  ", "the expression is empty"),
        ("payload.", "at character 9: the expression ends too early"),
        ("(payload.a", "the expression ends too early"),
        ("payload.a = 1", "at character 11: unexpected '='"),
        ("payload.a\n  # 1", "at character 13: unexpected '#'"),
        ("env.HOME", "at character 1: unknown input 'env': there is callback, command, payload, steps"),
        ("1 + amount", "at character 5: unknown input 'amount'"),
        ("open('x')", "at character 1: unknown function 'open'"),
        ("payload.a.lower()", "at character 11: unknown method 'lower'"),
        ("payload.l.map(payload, 1)", "'payload' cannot be the name of a variable"),
        ("payload.l.map(x, y)", "unknown input 'y': there is callback, command, payload, steps, x"),
        ("payload.l.map(x, 1) + x", "unknown input 'x'"),
        ("payload.l.all(i, true, true)", "all() takes 2 arguments"),
        (".payload.a", "at character 1: an input has no dot before it"),
        ("Order{id: 1}", "there are no messages here"),
        ("has(payload)", "at character 5: invalid argument to has() macro"),
        ("__0", "unknown input '__0'"),
        ("optional.none()", "unknown input 'optional'"),
    ],
)
def test_a_bad_expression_is_refused_with_its_position(text: str, expected: str) -> None:
    """What cannot be meant is refused before anything runs."""
    assert expected in fault(text)


def test_what_nests_or_runs_on_is_refused() -> None:
    """Length and nesting have a limit, so the native parser never sees an endless one."""
    assert fault("1" + "+1" * LENGTH_MAX) == f"longer than {LENGTH_MAX} characters"
    assert "brackets nest deeper" in fault("(" * 900 + "1" + ")" * 900)
    assert value("!" * 1900 + "true") is True
    assert value("1" + "+1" * 900) == 901


def test_a_pattern_is_written_out_and_small() -> None:
    """Regular expressions cannot come from a payload, and cannot be made large by counting."""
    assert "written out" in fault("payload.name.matches(payload.name)")
    assert "written out" in fault("payload.name.matches('a' + 'b')")
    assert "larger than" in fault("payload.name.matches('a{1000}')")
    assert "larger than" in fault("payload.name.matches('a{1000,}')")
    assert "may not count" in fault("payload.name.matches('(a{10}){10}')")
    assert "may not count" in fault("payload.name.matches('a{10}{10}')")
    assert reason("payload.name.matches('(')").startswith("Function 'matches' error")


@pytest.mark.parametrize(
    "text",
    [
        "payload.l.map(x, payload.l.map(y, payload.l.map(z, x * y * z)))",
        "payload.l.exists(x, payload.l.exists(y, payload.l.exists(z, payload.missing)))",
        "payload.l.all(x, x in payload.l)",
        "payload.l.map(x, 'abc'.matches('\\\\w{40}'))",
        "[payload.s].map(x, x + x + x + x + x + x + x + x).map(x, x + x + x + x + x + x + x + x).map(x, x + x + x + x)",
        "payload.s + payload.s + payload.s + payload.s + payload.s",
        "size(payload.deep)",
    ],
)
def test_work_is_bounded(text: str) -> None:
    """No expression over no payload holds up the daemon: what costs too much is an error."""
    deep: Any = 1
    for _ in range(3000):
        deep = [deep]
    scope = {"payload": {"l": list(range(2000)), "s": "s" * 200_000, "deep": deep}}
    assert reason(text, scope).startswith(("works through more data", "the value nests deeper"))


def test_a_plain_path_has_no_bound() -> None:
    """Passing a large payload on costs nothing, so it is allowed."""
    scope = {"payload": {"l": list(range(200_000))}}
    assert value("payload.l", scope) is scope["payload"]["l"]
    assert value("payload.l.filter(i, i < 3)", {"payload": {"l": list(range(5000))}}) == [0, 1, 2]
