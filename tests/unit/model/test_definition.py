"""Reading a definition: what it says, and every fault with its path."""

from __future__ import annotations

from typing import Any

import pytest

from coordinator.model.definition import Definition, parse

SERVICES = {"stock": "http", "payments": "http", "ledger": "grpc"}


def read(content: Any) -> Definition:
    definition = parse(content, SERVICES, _never)
    assert definition is not None
    return definition


def _never(path: str, fault: str) -> None:
    raise AssertionError(f"{path}: {fault}")


def faults(content: Any) -> dict[str, str]:
    found: dict[str, str] = {}
    parse(content, SERVICES, found.setdefault)  # type: ignore[arg-type]
    return found


def step(name: str = "a", **fields: Any) -> dict[str, Any]:
    return {"name": name, "service": "stock", "path": "/x", **fields}


def order(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"name": "order", "version": 1, "steps": list(steps)}


def test_after_is_the_step_before_unless_it_is_said() -> None:
    """Absent: after the step listed before; empty: at once; several: a join; ancestors reach through."""
    definition = read(order(step("a"), step("b"), step("c", after=[]), step("d", after=["b", "c"])))
    assert [each.after for each in definition.steps] == [(), ("a",), (), ("b", "c")]
    assert [sorted(each.ancestors) for each in definition.steps] == [[], ["a"], [], ["a", "b", "c"]]


def test_a_step_may_come_after_one_listed_later() -> None:
    """The order of the list is a default, not a law."""
    definition = read(order(step("a", after=["b"]), step("b", after=[])))
    assert definition.steps[0].ancestors == {"b"}
    assert not definition.linear


def test_a_chain_is_linear_however_it_is_written() -> None:
    """Spelled out or by default, one after the other is one after the other."""
    assert read(order(step("a"), step("b"), step("c"))).linear
    assert read(order(step("a", after=[]), step("b", after=["a"]))).linear
    assert not read(order(step("a"), step("b", after=[]))).linear


def test_defaults_and_inheritance() -> None:
    """POST to /, the undo at the step's own service unless it names another."""
    definition = read(
        {"steps": [{"name": "a", "service": "stock", "undo": {"path": "/u"}}, step("b", undo={"service": "payments"})]}
    )
    first = definition.steps[0]
    assert (definition.name, definition.version) == ("definition", 1)
    assert (first.request.method, first.request.path, first.request.body) == ("POST", "/", None)
    assert first.undo is not None
    assert (first.undo.service, first.undo.path) == ("stock", "/u")
    assert definition.services == {"stock", "payments"}


def test_a_grpc_step_names_its_method_in_full() -> None:
    """A service with a grpc address takes a full method name and no path."""
    definition = read(order({"name": "a", "service": "ledger", "method": "shop.Ledger/Book", "body": {"x": 1}}))
    assert (definition.steps[0].request.method, definition.steps[0].request.path) == ("shop.Ledger/Book", "")
    wrong = faults(order({"name": "a", "service": "ledger", "method": "POST", "path": "/x"}))
    assert set(wrong) == {"$.steps[0].method", "$.steps[0].path"}


@pytest.mark.parametrize(
    ("content", "path", "fault"),
    [
        (7, "$", "an object is needed"),
        ({}, "$.steps", "at least one step"),
        ({"steps": []}, "$.steps", "at least one step"),
        ({"steps": {}}, "$.steps", "at least one step"),
        ({"steps": [step(f"s{n}") for n in range(201)]}, "$.steps", "at most 200 steps"),
        ({**order(step()), "name": "1st"}, "$.name", "a name has"),
        ({**order(step()), "version": 0}, "$.version", "a whole number from 1"),
        ({**order(step()), "version": True}, "$.version", "a whole number from 1"),
        ({**order(step()), "version": "1"}, "$.version", "a whole number from 1"),
        ({**order(step()), "stepps": []}, "$.stepps", 'unknown field "stepps" (did you mean "steps"?)'),
        ({**order(step()), "on_failure": "dead_letter"}, "$.on_failure", "not supported yet"),
        ({**order(step()), "on_failure": "explode"}, "$.on_failure", 'on_failure is "undo"'),
        (order(step("a#2")), "$.steps[0].name", "a name has"),
        (order(step("")), "$.steps[0].name", "a name has"),
        (order(step("x" * 65)), "$.steps[0].name", "a name has"),
        (order(step(5)), "$.steps[0].name", "a name has"),  # type: ignore[arg-type]
        (order(step("a"), step("a")), "$.steps[1].name", 'duplicate name "a"'),
        (order({"service": "stock"}), "$.steps[0]", "a step needs a name"),
        (order({"name": "a"}), "$.steps[0]", "a step needs a service"),
        (order(step(service="stok")), "$.steps[0].service", 'unknown service "stok" (did you mean "stock"?)'),
        (order(step(service="warehouse")), "$.steps[0].service", "configured: ledger, payments, stock"),
        (order(step(service=["stock"])), "$.steps[0].service", "named by a string"),
        (order(step(undo={"service": "x"})), "$.steps[0].undo.service", 'unknown service "x"'),
        (order(step(undo="/x")), "$.steps[0].undo", "an object is needed"),
        (order(step(undo={"when": "true"})), "$.steps[0].undo.when", 'unknown field "when"'),
        (order(step(after="a")), "$.steps[0].after", "after is a list"),
        (order(step("charge"), step("b", after=["chagre"])), "$.steps[1].after[0]", 'did you mean "charge"?'),
        (order(step("a"), step("b", after=["a", "a"])), "$.steps[1].after[1]", 'duplicate name "a"'),
        (order(step("a"), step("b", after=[{}])), "$.steps[1].after[0]", "named by a string"),
        (order(step("a", after=["a"])), "$.steps[0].after", "a cycle: a → a"),
        (order(step("a", after=["c"]), step("b"), step("c")), "$.steps[0].after", "a cycle: a → b → c → a"),
        (order(step(when=True)), "$.steps[0].when", "a condition is an expression"),
        (order(step(method="post")), "$.steps[0].method", "a method is one of GET"),
        (order(step(method="CONNECT")), "$.steps[0].method", "a method is one of GET"),
        (order(step(path=5)), "$.steps[0].path", "a path is a string"),
        (order(step(path="")), "$.steps[0].path", "a path is a string"),
        (order(step(timeout="5")), "$.steps[0].timeout", "a duration is a number and a unit"),
        (order(step(timeout=5)), "$.steps[0].timeout", "a duration is a number and a unit"),
        (order(step(timeout="0s")), "$.steps[0].timeout", "no time at all"),
        (order(step(give_up_after="soon")), "$.steps[0].give_up_after", "a duration is a number and a unit"),
        (order(step(retry=3)), "$.steps[0].retry", "an object is needed"),
        (order(step(retry={"attempts": 0})), "$.steps[0].retry.attempts", "from 1 to 1000"),
        (order(step(retry={"attempts": True})), "$.steps[0].retry.attempts", "from 1 to 1000"),
        (order(step(retry={"attempts": 2.5})), "$.steps[0].retry.attempts", "from 1 to 1000"),
        (order(step(retry={"backoff": "linear"})), "$.steps[0].retry.backoff", '"fixed" or "exponential"'),
        (order(step(retry={"first": "1"})), "$.steps[0].retry.first", "a duration is a number and a unit"),
        (order(step(retry={"first": "2s", "max": "1s"})), "$.steps[0].retry.first", "longer than max"),
        (order(step(retry={"jitter": 2})), "$.steps[0].retry.jitter", "from 0 to 1"),
        (order(step(retry={"attempt": 2})), "$.steps[0].retry.attempt", 'did you mean "attempts"?'),
        (order(step(headers={"X": 1})), "$.steps[0].headers.X", "a header is a string"),
        (order(step(headers={"a b": "1"})), "$.steps[0].headers", "no name of a header"),
        (order(step(headers={"Idempotency-Key": "1"})), "$.steps[0].headers.Idempotency-Key", "the coordinator's own"),
        (order(step(answers={"teapot": "outcome"})), "$.steps[0].answers", "no status"),
        (order(step(answers={"404": "fine"})), "$.steps[0].answers.404", "an answer means"),
        (order({"name": "a", "decision": {}}), "$.steps[0].decision", "not supported yet"),
        (order({"name": "a", "data": "otp"}), "$.steps[0].data", "not supported yet"),
        (order({"name": "a", "sleep": "1s"}), "$.steps[0].sleep", "not supported yet"),
        (order(step(savepoint=True)), "$.steps[0].savepoint", "not supported yet"),
        (order("a"), "$.steps[0]", "an object is needed"),  # type: ignore[arg-type]
        (order(step(url="http://evil")), "$.steps[0].url", 'unknown field "url"'),
    ],
)  # fmt: skip
def test_a_fault_is_found_with_its_path(content: Any, path: str, fault: str) -> None:
    """Whatever cannot be run is refused where it stands."""
    found = faults(content)
    assert path in found, found
    assert fault in found[path]


def test_all_faults_are_told_at_once() -> None:
    """An author mends a definition in one go, faults in one step do not hide those in another."""
    content = {"version": 0, "steps": [step("a", timeout="x"), step("b", after=["z"]), step("b", service="no"), 5]}
    assert set(faults(content)) == {
        "$.version", "$.steps[0].timeout", "$.steps[1].after[0]", "$.steps[2].name", "$.steps[2].service", "$.steps[3]",
    }  # fmt: skip


def test_nesting_without_end_is_a_fault() -> None:
    """A body may be deep, but not deeper than everything that handles it."""
    body: Any = 1
    for _ in range(5000):
        body = [body]
    assert faults(order(step(body=body))) == {"$": "nests deeper than 64 levels"}


def test_answers_and_retry_are_kept_as_written() -> None:
    """What is not wrong arrives."""
    definition = read(
        order(step(answers={"404": "outcome", "5xx": "failure"}, retry={"attempts": 3, "jitter": 0}, timeout="2s"))
    )
    request = definition.steps[0].request
    assert request.answers == {"404": "outcome", "5xx": "failure"}
    assert request.retry is not None
    assert (request.retry.attempts, request.retry.jitter, request.retry.first) == (3, 0, None)
    assert request.timeout == "2s"


def test_without_known_services_any_name_will_do() -> None:
    """A client may check a definition without the coordinator's configuration."""
    found: list[str] = []
    assert parse(order(step(service="whatever")), None, lambda path, _: found.append(path)) is not None
    assert parse(order(step(service="stock")), ["stock"], lambda path, _: found.append(path)) is not None
    assert found == []
