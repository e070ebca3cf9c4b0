"""Compiling a definition: expressions are checked against what will be there when they run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from coordinator.engine.expressions import ExpressionError
from coordinator.engine.plan import FAULTS_MAX, compile_definition
from coordinator.errors import InvalidPayload
from coordinator.saga import Retry

SERVICES = {"stock": "http", "payments": "http"}


def step(name: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "service": "stock", "path": "/x", **fields}


def faults(*steps: dict[str, Any], **rest: Any) -> dict[str, str]:
    with pytest.raises(InvalidPayload) as found:
        compile_definition({"name": "order", "version": 1, "steps": list(steps), **rest}, services=SERVICES)
    return {each["path"]: each["fault"] for each in found.value.extra["faults"]}


@pytest.mark.parametrize(
    ("fields", "path", "fault"),
    [
        ({"body": {"x": "${steps.chagre.id}"}}, "$.steps[1].body.x", 'unknown step "chagre" (did you mean "charge"?)'),
        ({"when": "steps.other.id == 1"}, "$.steps[1].when", 'step "other" does not come before "b": name it in after'),
        ({"path": "/x/${steps.b.id}"}, "$.steps[1].path", "not there before it has run (its undo may use it)"),
        ({"headers": {"X": "${steps}"}}, "$.steps[1].headers.X", "steps is used with the name of a step"),
        ({"when": "size(steps) > 1"}, "$.steps[1].when", "steps is used with the name of a step"),
        ({"when": "steps[payload.x] == 1"}, "$.steps[1].when", "steps is used with the name of a step"),
        ({"when": "payload.l.all(i, steps.other == i)"}, "$.steps[1].when", 'step "other" does not come before "b"'),
        ({"when": "command.payload.x"}, "$.steps[1].when", "unknown input 'command.payload.x'"),
        ({"when": "env.x"}, "$.steps[1].when", "unknown input 'env'"),
        ({"when": "payload.x >"}, "$.steps[1].when", "bad expression: at character 12"),
        ({"body": "${payload.x >}"}, "$.steps[1].body", "bad expression ${payload.x >}: at character 12"),
        ({"path": "//evil.example/${payload.x}"}, "$.steps[1].path", "does not start with //"),
        ({"path": "${payload.url}"}, "$.steps[1].path", "a path starts with /"),
        ({"undo": {"path": "/u/${steps.other.id}"}}, "$.steps[1].undo.path", 'step "other" does not come before'),
        ({"headers": {"X": "a\nb: c"}}, "$.steps[1].headers.X", "no line breaks"),
    ],
)
def test_an_expression_may_use_only_what_is_there(fields: dict[str, Any], path: str, fault: str) -> None:
    """What a step cannot know when it runs is refused when the definition is registered."""
    found = faults(step("charge"), step("b", **fields), step("other", after=[]))
    assert path in found, found
    assert fault in found[path]


@pytest.mark.parametrize(
    ("fields", "path", "fault"),
    [
        ({"body": "${callback.otq}"}, ".body", 'unknown data "otq" (did you mean "otp"?)'),
        ({"body": "${callback}"}, ".body", "callback is used with the name of data"),
        ({"body": "${callback.otp.url}"}, ".body", "callback is used with the name of data"),
        ({"body": "${callback[payload.x]}"}, ".body", "callback is used with the name of data"),
        ({"when": "callback.otp != ''"}, ".when", "a callback is for what a step sends"),
        ({"undo": {"path": "/u/${callback.otp}"}}, ".undo.path", "a callback is for what a step sends"),
        ({"after": ["confirm"], "body": "${callback.otp}"}, ".body", 'step "confirm" has been given "otp" before'),
        ({"body": "${steps.group.x}"}, ".body", '"group" is a block and has no outcome'),
        ({"body": "${steps.inner}"}, ".body", 'step "inner" does not come before "b"'),
        ({"when": "payload.x", "else": [{"name": "e", "sleep": "1s", "when": "steps.b"}]}, ".else[0].when",
         'step "b" does not come before "e"'),
        ({"when": "steps.b == 1", "else": [{"name": "e", "sleep": "1s"}]}, ".when", "not there before it has run"),
    ],
)  # fmt: skip
def test_callbacks_and_blocks_are_used_for_what_they_are(fields: dict[str, Any], path: str, fault: str) -> None:
    """A callback has to reach somebody who waits, and a block has nothing to give."""
    found = faults(
        step("a"),
        step("b", **fields),
        {"name": "confirm", "data": "otp", "after": ["a"]},
        {"name": "group", "steps": [{"name": "inner", "sleep": "1s"}]},
    )
    assert f"$.steps[1]{path}" in found, found
    assert fault in found[f"$.steps[1]{path}"]


def test_a_decisions_input_is_checked_like_a_body() -> None:
    """It is a template too, and may hold a callback."""
    found = faults({"name": "a", "decision": {"input": {"x": "${steps.b}"}}}, step("b"))
    assert list(found) == ["$.steps[0].decision.input.x"]
    compile_definition(
        {"steps": [{"name": "a", "decision": {"input": "${callback.b}"}}, {"name": "b", "data": "otp"}]}, services=None
    )


def test_all_that_leads_to_a_join_may_be_named() -> None:
    """Of a join any, too: what has not won is null."""
    compile_definition(
        {
            "steps": [
                step("a"),
                step("b", after=[]),
                step("c", after=["a", "b"], join="any", body=["${steps.a}", "${steps.b}"]),
            ]
        },
        services=SERVICES,
    )


def test_nobody_waits_for_optional_data_but_for_what_it_waits_for() -> None:
    """However many of them follow one another; who comes later knows whether it may run again."""
    plan = compile_definition(
        {
            "steps": [
                step("a"),
                {"name": "x", "data": {"optional": True, "reruns": True}},
                {"name": "y", "data": {"optional": True}},
                step("b", body=["${steps.x}", "${steps.y}"]),
                step("c"),
            ]
        },
        services=SERVICES,
    )
    a, x, y, b, c = plan.steps
    assert (x.after, x.optional, x.listens, x.reruns) == (("a",), (), True, False)
    assert (y.after, y.optional, y.renewed, y.reruns) == (("a",), ("x",), ("x",), True)
    assert (b.after, b.optional, b.renewed, b.uses) == (("a",), ("y", "x"), ("x",), ("x", "y"))
    assert (c.after, c.optional, c.reruns, a.reruns) == (("b",), (), True, False)


def test_faults_of_shape_and_of_expressions_come_together() -> None:
    """A wrong order does not hide a bad expression."""
    found = faults(step("a", after=["zz"], when="x"), step("b", body="${steps.zz}"), result="${steps.yy}")
    assert set(found) == {"$.steps[0].after[0]", "$.steps[0].when", "$.steps[1].body", "$.result"}


def test_the_list_of_faults_has_an_end() -> None:
    """A large definition that is wrong everywhere gets an answer of sensible size."""
    assert len(faults(*[step(f"s{n}", when="x", body="${y}") for n in range(200)])) == FAULTS_MAX


def test_an_undo_may_use_its_own_outcome_and_the_result_any() -> None:
    """Each expression sees what has certainly ended when it is evaluated."""
    plan = compile_definition(
        {
            "steps": [step("a"), step("b", after=[], undo={"path": "/${steps.b.id}"})],
            "result": ["${steps.a}", "${steps.b}"],
        },
        services=SERVICES,
    )
    undo = plan.steps[1].undo
    assert undo is not None
    assert undo.request({"steps": {"b": {"id": 7}}}).path == "/7"
    assert plan.result.render({"steps": {"a": 1, "b": None}}) == [1, None]


def test_a_request_without_expressions_is_made_once() -> None:
    """A static request is the same object for every command."""
    plan = compile_definition({"steps": [step("a", body={"x": 1}, headers={"X": "1"})]}, services=SERVICES)
    request = plan.steps[0].request
    assert request.fixed is not None
    assert request.request({}) is request.fixed
    assert (request.fixed.path, request.fixed.body, request.fixed.headers) == ("/x", {"x": 1}, {"X": "1"})


def test_a_header_cannot_be_broken_by_a_payload() -> None:
    """A line break in an inserted value fails the step before anything is sent."""
    plan = compile_definition({"steps": [step("a", headers={"X": "v ${payload.x}"})]}, services=SERVICES)
    assert plan.steps[0].request.request({"payload": {"x": "y"}}).headers == {"X": "v y"}
    with pytest.raises(ExpressionError, match="no line breaks"):
        plan.steps[0].request.request({"payload": {"x": "y\r\nHost: evil"}})


def test_retry_is_the_sagas_own() -> None:
    """Fields that are not given keep the defaults that code commands have."""
    plan = compile_definition({"steps": [step("a", retry={"attempts": 4, "first": "2s"})]}, services=SERVICES)
    assert plan.steps[0].request.retry == Retry(attempts=4, first="2s")


def test_the_examples_of_the_reference_compile() -> None:
    """docs/definitions.md shows definitions that are accepted, with the path it promises."""
    text = (Path(__file__).parents[3] / "docs" / "definitions.md").read_text()
    examples = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    services = dict.fromkeys(["stock", "payments", "shipping", "bank", "mail"], "http")
    plan, *others = [compile_definition(json.loads(example), services=services) for example in examples]
    assert len(others) > 1
    assert [step.after for step in plan.steps] == [(), ("reserve",), (), ("charge", "coupon")]
    promised = compile_definition({"steps": [step("a", path="/orders/${payload.id}")]}, services=SERVICES)
    path = promised.steps[0].request.request({"payload": {"id": "a/../b?c"}}).path
    assert path in text
