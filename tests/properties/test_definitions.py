"""Definitions of any shape: whatever order outcomes come in, steps start when they may, and only then."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
from hypothesis import given, settings

from coordinator.engine.interpreter import definition_type
from coordinator.engine.plan import compile_definition
from coordinator.engine.stepper import Execution
from coordinator.errors import InvalidPayload
from coordinator.model.records import raw
from coordinator.saga import Saga

SERVICES = {"s": "http"}


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, Any]:
    """Steps whose afters lead back, some of them conditional, some written by default."""
    count = draw(st.integers(1, 8))
    steps: list[dict[str, Any]] = []
    for n in range(count):
        step: dict[str, Any] = {"name": f"s{n}", "service": "s", "path": f"/{n}"}
        if draw(st.booleans()):
            step["after"] = [f"s{m}" for m in range(n) if draw(st.booleans())]
        if draw(st.integers(0, 3)) == 0:
            step["when"] = draw(st.sampled_from(["true", "false", "payload.flag"]))
        steps.append(step)
    if all("after" in step for step in steps):  # then the list may be in any order
        steps = draw(st.permutations(steps))
    result = ", ".join(f"steps.s{n}" for n in range(count))
    return {"name": "d", "version": 1, "steps": steps, "result": "${[" + result + "]}"}


def begin(content: dict[str, Any], flag: bool) -> Execution:
    type = definition_type(compile_definition(content, services=SERVICES))
    saga = Saga(id="c", type="d", version=1, attributes={}, now=0)
    return Execution(lambda given: type.run({"flag": flag}, given), saga)


def waits(content: dict[str, Any]) -> dict[str, list[str]]:
    steps = content["steps"]
    return {
        step["name"]: step.get("after", [steps[index - 1]["name"]] if index else []) for index, step in enumerate(steps)
    }


@settings(max_examples=100, deadline=None)
@given(graphs(), st.booleans(), st.data())
def test_a_step_runs_exactly_when_its_own_befores_have_ended(
    content: dict[str, Any], flag: bool, data: st.DataObject
) -> None:
    """In any order of outcomes: what is pending is what may run; all end once; a replay ends in the same place."""
    execution, befores = begin(content, flag), waits(content)
    skipped = {
        step["name"]
        for step in content["steps"]
        if step.get("when") == "false" or (step.get("when") == "payload.flag" and not flag)
    }
    ended: list[str] = []
    while not execution.done:
        gone = {*ended, *execution.skipped}
        assert set(execution.skipped) <= skipped
        ready = {name for name, before in befores.items() if name not in gone and set(before) <= gone}
        assert set(execution.pending) == ready
        name = data.draw(st.sampled_from(sorted(execution.pending)))
        execution.outcome(name, raw(name), len(ended))
        ended.append(name)
    assert execution.error is None
    assert set(execution.skipped) == skipped
    assert sorted(ended) == sorted(befores.keys() - skipped)
    assert execution.result == [None if f"s{n}" in skipped else f"s{n}" for n in range(len(befores))]

    again = begin(content, flag)
    for turn, name in enumerate(ended):
        again.outcome(name, raw(name), turn)
    assert again.done
    assert again.result == execution.result


FIELDS = ["after", "when", "undo", "retry", "timeout", "path", "body", "headers", "answers", "method", "give_up_after"]
KEYS = st.text(max_size=8) | st.sampled_from(["name", "version", "steps", "service", "result", "attempts", *FIELDS])
TEXTS = st.text(max_size=8) | st.sampled_from(["${payload.x}", "${", "${steps.a}", "s", "a", "/x", "1s"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=20,
)
STEPS = st.lists(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4), min_size=1, max_size=3)


def named(steps: list[dict[str, Any]]) -> dict[str, Any]:
    return {"steps": [{"name": f"s{n}", "service": "s", **step} for n, step in enumerate(steps)]}


@settings(max_examples=100, deadline=None)
@given(JSON | STEPS.map(named))
def test_any_json_is_a_definition_or_refused_with_paths(content: Any) -> None:
    """No JSON, however odd, fails in another way than InvalidPayload; every fault has a path."""
    faults = []
    try:
        compile_definition(content, services=SERVICES)
    except InvalidPayload as error:
        faults = error.extra["faults"]
        assert faults
    assert all(fault["path"].startswith("$") and fault["fault"] for fault in faults)
