"""Reading a definition: what it says, and every fault with its path."""

from __future__ import annotations

from typing import Any

import pytest

from coordinator.model.definition import DataRule, DecisionRule, Definition, Guard, PauseRule, SavepointRule
from coordinator.model.reading import parse

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
        ({**order(step()), "on_failure": "explode"}, "$.on_failure", 'on_failure is "undo" or "dead_letter"'),
        ({**order(step()), "deadlines": {"waitin": "1s"}}, "$.deadlines.waitin", 'did you mean "waiting"?'),
        ({**order(step()), "deadlines": {"running": "1s"}}, "$.deadlines.running", "a deadline is for one of blocked,"),
        ({**order(step()), "deadlines": {"waiting": "soon"}}, "$.deadlines.waiting", "a duration is a number"),
        ({**order(step()), "deadlines": {"waiting": None}}, "$.deadlines.waiting", "a deadline is a duration"),
        ({**order(step()), "deadlines": "24h"}, "$.deadlines", "an object is needed"),
        ({**order(step()), "pause_after": 3}, "$.pause_after", "an object is needed"),
        ({**order(step()), "pause_after": {}}, "$.pause_after", "needs errors"),
        ({**order(step()), "pause_after": {"errors": 0}}, "$.pause_after.errors", "from 1 to 1000000"),
        ({**order(step()), "pause_after": {"errors": 1, "resume": "1s"}}, "$.pause_after.resume", "resume_after"),
        ({**order(step()), "pause_after": {"errors": 1, "resume_after": "x"}}, "$.pause_after.resume_after", "unit"),
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
        (order("a"), "$.steps[0]", "an object is needed"),  # type: ignore[arg-type]
        (order(step(url="http://evil")), "$.steps[0].url", 'unknown field "url"'),
    ],
)  # fmt: skip
def test_a_fault_is_found_with_its_path(content: Any, path: str, fault: str) -> None:
    """Whatever cannot be run is refused where it stands."""
    found = faults(content)
    assert path in found, found
    assert fault in found[path]


@pytest.mark.parametrize(
    ("fields", "path", "fault"),
    [
        ({"decision": "boss"}, ".decision", "an object is needed"),
        ({"decision": False}, ".decision", "an object is needed"),
        ({"decision": {"timeout": "soon"}}, ".decision.timeout", "a duration is a number and a unit"),
        ({"decision": {"on_timeout": "null"}}, ".decision.on_timeout", '"reject", "approve" or "fail"'),
        ({"decision": {"on_reject": "fail"}}, ".decision.on_reject", '"undo" or "continue"'),
        ({"decision": {"roles": "boss"}}, ".decision.roles", "roles are a list of names"),
        ({"decision": {"roles": ["boss", 7]}}, ".decision.roles[1]", "a role is named by a string"),
        ({"decision": {"role": []}}, ".decision.role", 'did you mean "roles"?'),
        ({"decision": {}, "timeout": "1s"}, ".timeout", 'a decision has "timeout" inside'),
        ({"decision": {}, "undo": {"path": "/x"}}, ".undo", 'a decision has no "undo"'),
        ({"decision": {}, "sleep": "1s"}, "", 'a step does one thing, not "decision" and "sleep"'),
        ({"decision": {}, "service": "stock"}, "", 'not "service" and "decision"'),
        ({"data": 7}, ".data", "an object is needed"),
        ({"data": "1st"}, ".data", "a name has"),
        ({"data": {"name": "x y"}}, ".data.name", "a name has"),
        ({"data": {"on_timeout": "reject"}}, ".data.on_timeout", '"fail" or "null"'),
        ({"data": {"optional": 1}}, ".data.optional", "optional is true or false"),
        ({"data": {"optional": True, "timeout": "1s"}}, ".data.timeout", "nobody waits for optional data"),
        ({"data": {"reruns": True}}, ".data.reruns", 'it needs "optional": true'),
        ({"data": {"reopens": True, "optional": False}}, ".data.optional", "data that reopens"),
        ({"data": {"optional": True}, "savepoint": True}, ".savepoint", "nobody waits for optional data"),
        ({"data": "otp", "retry": {}}, ".retry", 'a data step has no "retry"'),
        ({"sleep": 5}, ".sleep", "a duration is a number and a unit"),
        ({"sleep": "0s"}, ".sleep", "no time at all"),
        ({"sleep": {}}, ".sleep", "a sleep needs for"),
        ({"sleep": {"for": "x"}}, ".sleep.for", "a duration is a number and a unit"),
        ({"sleep": {"until": "x"}}, ".sleep.until", "unknown field"),
        ({"sleep": "1s", "path": "/x"}, ".path", 'a sleep has no "path"'),
        ({"steps": []}, ".steps", "a list of at least one step"),
        ({"steps": {}}, ".steps", "a list of at least one step"),
        ({"steps": [step("b")], "retry": {}}, ".retry", 'a block has no "retry"'),
        ({"steps": [step("b", timeout="x")]}, ".steps[0].timeout", "a duration is a number and a unit"),
        ({"steps": [step("a")]}, ".steps[0].name", 'duplicate name "a"'),
        ({"steps": [step("b", after=["zz"])]}, ".steps[0].after[0]", 'unknown step "zz"'),
        ({"steps": [step("b", after=["a"])]}, ".steps[0].after", "a cycle: b → a → b"),
        ({"when": "true", "steps": [step("b")], "else": [step("c", path="")]}, ".else[0].path", "a path is a string"),
        ({"service": "stock", "else": [step("b")]}, ".else", "it needs a when"),
        ({"service": "stock", "when": "true", "else": []}, ".else", "a list of at least one step"),
        ({"service": "stock", "when": "true", "else": [step("b", after=["a"])]}, ".else[0].after", "a cycle: b → a"),
        ({"service": "stock", "savepoint": "retry"}, ".savepoint", "an object is needed"),
        ({"service": "stock", "savepoint": {"then": "stop"}}, ".savepoint.then", '"retry", "undo" or "dead_letter"'),
        ({"service": "stock", "savepoint": {"attempts": 0}}, ".savepoint.attempts", "from 1 to 1000"),
        ({"service": "stock", "savepoint": {"exhausted": "retry"}}, ".savepoint.exhausted", '"undo" or "dead_letter"'),
        ({"service": "stock", "savepoint": {"then": "undo", "attempts": 2}}, ".savepoint.attempts", 'for "then"'),
        ({"service": "stock", "join": "first"}, ".join", 'join is "all" or "any"'),
        ({"service": "stock", "losers": "keep"}, ".losers", 'only a join of "any" has losers'),
        ({"service": "stock", "join": "any", "losers": "drop"}, ".losers", '"undo" or "keep"'),
        ({"service": "stock", "deadline": "x"}, ".deadline", "a duration is a number and a unit"),
    ],
)  # fmt: skip
def test_a_fault_of_a_kind_of_step_is_found_with_its_path(fields: dict[str, Any], path: str, fault: str) -> None:
    """What a step may have depends on what it does, and each part of it is checked."""
    found = faults(order({"name": "a", **fields}))
    assert f"$.steps[0]{path}" in found, found
    assert fault in found[f"$.steps[0]{path}"]


def test_one_step_takes_optional_data_and_a_join_any_cannot_wait_for_it() -> None:
    """Whom a datum is for, and what is first, has to be certain."""
    listener = {"name": "late", "data": {"name": "otp", "optional": True}, "after": []}
    assert faults(order(listener, {"name": "b", "data": "otp"})) == {
        "$.steps[1].data": 'step "late" is given the data "otp" already'
    }
    joined = faults(order(listener, step("b", after=[]), step("c", after=["b", "late"], join="any")))
    assert list(joined) == ["$.steps[2].join"]


def test_all_faults_are_told_at_once() -> None:
    """An author mends a definition in one go, faults in one step do not hide those in another."""
    content = {"version": 0, "steps": [step("a", timeout="x"), step("b", after=["z"]), step("b", service="no"), 5]}
    assert set(faults(content)) == {
        "$.version", "$.steps[0].timeout", "$.steps[1].after[0]", "$.steps[2].name", "$.steps[2].service", "$.steps[3]",
    }  # fmt: skip


def test_blocks_count_as_steps() -> None:
    """The limit is on all that is written, however deep."""
    inner = [{"name": f"b{n}", "steps": [step(f"s{n}")]} for n in range(101)]
    assert faults(order(*inner)) == {"$.steps": "a definition has at most 200 steps, not 202"}


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


def test_each_kind_of_step_says_what_it_does() -> None:
    """Short forms and long forms, with their defaults."""
    definition = read(
        order(
            {"name": "a", "decision": True},
            {"name": "b", "decision": {"roles": ["boss"], "timeout": "1h", "on_timeout": "approve",
                                       "on_reject": "continue", "input": "${payload}"}},
            {"name": "c", "data": "otp"},
            {"name": "d", "data": {"timeout": "1m", "on_timeout": "null"}},
            {"name": "e", "data": {"name": "late", "reopens": True}},
            {"name": "f", "sleep": "10s"},
            {"name": "g", "sleep": {"for": "1m"}},
        )
    )  # fmt: skip
    asked, answered, otp, pin, late, nap, rest = definition.steps
    assert asked.decision == DecisionRule()
    assert answered.decision == DecisionRule(
        input="${payload}", roles=("boss",), timeout="1h", on_timeout="approve", on_reject="continue"
    )
    assert otp.data == DataRule(name="otp")
    assert pin.data == DataRule(name="d", timeout="1m", on_timeout="null")
    assert late.data == DataRule(name="late", optional=True, reruns=True, reopens=True)
    assert (nap.sleep, rest.sleep) == ("10s", "1m")
    assert {step.service for step in definition.steps} == {""}
    assert definition.services == frozenset()


def test_savepoints_joins_and_policies_are_kept_as_written() -> None:
    """What is not wrong arrives, with its defaults."""
    definition = read(
        {
            **order(
                step("a", savepoint=True, deadline="3s"),
                step("b", after=["a"], savepoint={"then": "dead_letter"}),
                step("c", after=["a"], savepoint={"attempts": 3, "exhausted": "dead_letter"}),
                step("d", after=["b", "c"], join="any", losers="keep", savepoint=False),
            ),
            "on_failure": "dead_letter",
            "deadlines": {"waiting": "24h"},
            "pause_after": {"errors": 5, "resume_after": "10m"},
        }
    )
    a, b, c, d = definition.steps
    assert a.savepoint == SavepointRule(then="retry", attempts=1, exhausted="undo")
    assert b.savepoint == SavepointRule(then="dead_letter")
    assert c.savepoint == SavepointRule(then="retry", attempts=3, exhausted="dead_letter")
    assert (d.savepoint, d.join, d.losers, a.join, a.deadline) == (None, "any", "keep", "all", "3s")
    assert (definition.on_failure, definition.deadlines) == ("dead_letter", {"waiting": "24h"})
    assert definition.pause_after == PauseRule(errors=5, resume_after="10m")


def shape(definition: Definition) -> dict[str, tuple[tuple[str, ...], Guard | None]]:
    return {place.name: (place.after, place.guard) for place in (*definition.steps, *definition.joints)}


def test_a_block_lies_between_two_joints() -> None:
    """Its first steps come after what it comes after, and who comes after it waits for all its last steps."""
    definition = read(
        order(
            step("a"),
            {"name": "b", "when": "payload.x", "steps": [step("c"), step("d"), step("e", after=["c"])]},
            step("f"),
        )
    )
    inside = Guard("b/in", True)
    assert shape(definition) == {
        "a": ((), None),
        "b/in": (("a",), None),
        "c": (("b/in",), inside),
        "d": (("c",), inside),
        "e": (("c", "b/in"), inside),
        "b": (("d", "e"), None),
        "f": (("b",), None),
    }
    assert definition.steps[-1].ancestors == {"a", "c", "d", "e"}
    assert (definition.blocks, definition.steps[1].block) == ({"b": ""}, "b")
    assert not definition.linear


def test_else_rejoins_after_the_step() -> None:
    """The step and what runs instead of it are two ways between the same two joints."""
    definition = read(order(step("a"), step("b", when="true", **{"else": [step("c"), step("d")]}), step("e")))
    assert shape(definition) == {
        "a": ((), None),
        "b/in": (("a",), None),
        "b": (("b/in",), Guard("b/in", True)),
        "c": (("b/in",), Guard("b/in", False)),
        "d": (("c",), Guard("b/in", False)),
        "b/out": (("b", "d"), None),
        "e": (("b/out",), None),
    }
    assert definition.steps[1].when is None
    assert definition.joints[0].when == "true"
    assert definition.joints[1].members == ("b", "c", "d")


def test_blocks_nest_and_steps_in_them_are_named_from_anywhere() -> None:
    """Only the innermost guard is needed: its joint is guarded by the one around it."""
    definition = read(
        order(
            {"name": "b", "when": "payload.x", "steps": [
                {"name": "c", "when": "payload.y", "steps": [step("d")], "else": [step("e")]},
            ]},
            step("f", after=["e"]),
        )
    )  # fmt: skip
    found = shape(definition)
    assert found["c/in"] == (("b/in",), Guard("b/in", True))
    assert found["e"] == (("c/in",), Guard("c/in", False))
    assert found["f"] == (("e",), None)
    assert definition.blocks == {"b": "", "c": "b"}


def test_the_first_of_some_waits_for_its_block_besides() -> None:
    """A join any in a block is a joint of its own: the block's condition is not one of the first."""
    definition = read(
        order(
            step("a"), step("b", after=[]),
            {"name": "c", "after": [], "steps": [step("d", after=["a", "b"], join="any", losers="keep")]},
        )
    )  # fmt: skip
    joint = next(joint for joint in definition.joints if joint.name == "d/any")
    assert (joint.after, joint.join, joint.losers) == (("a", "b"), "any", "keep")
    assert shape(definition)["d"] == (("d/any", "c/in"), Guard("c/in", True))


@pytest.mark.parametrize(
    "steps",
    [
        [step("a", savepoint=True), step("b")],
        [step("a"), {"name": "b", "data": {"optional": True}}],
        [{"name": "b", "steps": [step("a")]}],
    ],
)
def test_what_may_run_twice_or_beside_another_is_no_plain_line(steps: list[dict[str, Any]]) -> None:
    """A loop over the steps is enough only for steps that each run once."""
    assert not read(order(*steps)).linear
    assert read(order(step("a"), {"name": "b", "data": "x"}, {"name": "c", "sleep": "1s"})).linear
