"""Definitions of any shape: whatever order outcomes come in, steps start when they may, and only then."""

from __future__ import annotations

import re
from typing import Any

import hypothesis.strategies as st
from hypothesis import given, settings

from coordinator.engine import diagram
from coordinator.engine.interpreter import definition_type
from coordinator.engine.plan import compile_definition
from coordinator.engine.stepper import Execution
from coordinator.errors import InvalidPayload
from coordinator.model.ids import CommandId
from coordinator.model.records import Signal, raw
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


class Nested:
    """A naive reading of a nested definition: who may run is found by looking at the whole tree each time."""

    def __init__(self, content: dict[str, Any], flag: bool) -> None:
        self.flag = flag
        self.items: dict[str, dict[str, Any]] = {}
        self.after: dict[str, list[str]] = {}
        self.around: dict[str, tuple[str, bool] | None] = {}
        self._walk(content["steps"], None)
        self.leaves = [name for name, item in self.items.items() if "steps" not in item]

    def _walk(self, items: list[dict[str, Any]], around: tuple[str, bool] | None) -> None:
        for index, item in enumerate(items):
            name = item["name"]
            self.items[name] = item
            self.after[name] = item.get("after", [items[index - 1]["name"]] if index else [])
            self.around[name] = around
            self._walk(item.get("steps", []), (name, True))
            self._walk(item.get("else", []), (name, False))

    def holds(self, name: str) -> bool:
        values = {"false": False, "payload.flag": self.flag, "steps.late == null": False}
        return values.get(self.items[name].get("when", "true"), True)

    def left_out(self, name: str) -> bool:
        """By its own condition or by one around it."""
        around = self.around[name]
        outside = around is not None and (self.left_out_around(around))
        return outside or not self.holds(name)

    def left_out_around(self, around: tuple[str, bool]) -> bool:
        name, branch = around
        outer = self.around[name]
        return self.holds(name) is not branch or (outer is not None and self.left_out_around(outer))

    def ended(self, name: str, gone: set[str]) -> bool:
        item = self.items[name]
        inner = [each["name"] for each in (*item.get("steps", []), *item.get("else", []))]
        return ("steps" in item or name in gone) and all(self.ended(each, gone) for each in inner)

    def entered(self, name: str, gone: set[str]) -> bool:
        around = self.around[name]
        before = all(self.ended(each, gone) for each in self.after[name])
        return before and (around is None or self.entered(around[0], gone))

    def ready(self, gone: set[str]) -> set[str]:
        return {name for name in self.leaves if name not in gone and self.entered(name, gone)}


@st.composite
def nested(draw: st.DrawFn) -> dict[str, Any]:
    """Blocks in blocks, steps with else, afters that name anything that was written before, of any block."""
    names = iter(f"s{n}" for n in range(100))
    written: list[str] = []

    def items(depth: int, inside: tuple[str, ...]) -> list[dict[str, Any]]:
        return [item(depth, inside) for _ in range(draw(st.integers(1, 3 if depth else 2)))]

    def item(depth: int, inside: tuple[str, ...]) -> dict[str, Any]:
        name = next(names)
        made: dict[str, Any] = {"name": name}
        if draw(st.integers(0, 2)) == 0:
            known = [each for each in written if each not in inside]
            made["after"] = draw(st.lists(st.sampled_from(known), unique=True, max_size=3)) if known else []
        written.append(name)
        if draw(st.booleans()):
            made["when"] = draw(st.sampled_from(["true", "false", "payload.flag"]))
        if depth and draw(st.booleans()):
            made["steps"] = items(depth - 1, (*inside, name))
        else:
            made |= draw(st.sampled_from([{"service": "s"}, {"data": name}, {"sleep": "1s"}]))
        if depth and "when" in made and draw(st.booleans()):
            made["else"] = items(depth - 1, (*inside, name))
        return made

    steps = items(3, ())
    model = Nested({"steps": steps}, False)
    result = ", ".join(f"steps.{name}" for name in model.leaves)
    return {"name": "d", "version": 1, "steps": steps, "result": "${[" + result + "]}"}


def answer(execution: Execution, name: str, turn: int) -> None:
    if name in execution.pending:
        execution.outcome(name, raw(name), turn)
    elif execution.waits[name].call.kind == "data":
        channel = execution.waits[name].call.channel
        execution.signal(Signal(1, b"", turn, CommandId("c"), channel, raw(name), str(turn)))
    else:
        execution.timer(name, turn)


@settings(max_examples=150, deadline=None)
@given(nested(), st.booleans(), st.data())
def test_nested_steps_run_in_their_blocks_order_or_not_at_all(
    content: dict[str, Any], flag: bool, data: st.DataObject
) -> None:
    """What is made flat runs as it was nested: blocks are entered and left as a whole, conditions guard all in them."""
    model = Nested(content, flag)
    execution = begin(content, flag)
    ended: list[str] = []
    skipped: set[str] = set()
    while True:
        while left_out := {name for name in model.ready({*ended, *skipped}) if model.left_out(name)}:
            skipped |= left_out
        assert set(execution.skipped) == skipped
        assert {*execution.pending, *execution.waits} == model.ready({*ended, *skipped})
        if execution.done:
            break
        name = data.draw(st.sampled_from(sorted({*execution.pending, *execution.waits})))
        answer(execution, name, len(ended))
        ended.append(name)
    assert execution.error is None
    assert {*ended, *skipped} == set(model.leaves)
    assert execution.result == [
        None if name in skipped or "sleep" in model.items[name] else name for name in model.leaves
    ]
    again = begin(content, flag)
    for turn, name in enumerate(ended):
        answer(again, name, turn)
    assert (again.done, again.result) == (True, execution.result)


@settings(max_examples=150, deadline=None)
@given(nested(), st.booleans(), st.data())
def test_late_data_reaches_all_that_comes_after_it_and_nothing_else(
    content: dict[str, Any], flag: bool, data: st.DataObject
) -> None:
    """Whenever it arrives: in the end, each outcome that could depend on it does, and no other step has run twice."""
    late = {"name": "late", "data": {"optional": True, "reruns": True}}
    content["steps"].insert(data.draw(st.integers(0, len(content["steps"]))), late)
    definition = compile_definition(content, services=SERVICES).definition
    depends = {step.name for step in definition.steps if "late" in step.ancestors}
    entered = {joint.name.partition("/")[0] for joint in definition.joints if "late" in joint.ancestors and joint.entry}
    model = Nested(content, flag)
    for name in depends:
        if "service" in model.items[name]:
            model.items[name]["body"] = ["${steps.late}"]
    for name in sorted(depends | entered):
        if model.items[name].get("when") == "payload.flag" and data.draw(st.booleans()):
            model.items[name]["when"] = "steps.late == null"
    execution = begin(content, flag)
    left = data.draw(st.integers(0, len(model.leaves)))  # answers before it comes
    turn = 0
    while not execution.done:
        if turn == left:
            execution.signal(Signal(1, b"", turn, CommandId("c"), "late", raw(7)))
        else:
            asked = {*execution.pending, *(each.name for each in execution.waiting)}
            answer(execution, data.draw(st.sampled_from(sorted(asked))), turn)
        turn += 1
    assert execution.error is None
    if turn <= left:
        return  # it came too late
    repeated = {name.partition("#")[0] for name in (*execution.calls, *execution.waited) if "#" in name}
    assert repeated <= depends | {"late"}
    for name, value in zip([name for name in model.leaves if name != "late"], execution.result, strict=True):
        item = model.items[name]
        if "sleep" not in item:
            assert (value is None) == model.left_out(name), name
        if value is not None and name in depends and "service" in item:
            request: Any = execution.calls[value].request
            assert request.body == [7]


@settings(max_examples=50, deadline=None)
@given(nested(), st.booleans())
def test_every_nested_definition_can_be_drawn(content: dict[str, Any], flag: bool) -> None:
    """All its steps are in the picture once, and every arrow leads from something drawn to something drawn."""
    definition = compile_definition(content, services=SERVICES).definition
    lines = diagram.of_definition(definition).splitlines()
    drawn = [match[1] for line in lines if (match := re.match(r" +([sc]\d+)[\[({]", line))]
    steps = [node for node in drawn if node.startswith("s")]
    assert sorted(steps) == sorted({f"s{index}" for index in range(len(definition.steps))})
    ends = [re.findall(r"\b[sc]\d+\b", line.partition("undo")[0]) for line in lines if "-->" in line]
    assert {end for pair in ends for end in pair} <= set(drawn)


FIELDS = ["after", "when", "undo", "retry", "timeout", "path", "body", "headers", "answers", "method", "give_up_after"]
FIELDS += ["decision", "data", "sleep", "savepoint", "join", "losers", "else", "deadline"]
KEYS = st.text(max_size=8) | st.sampled_from(["name", "version", "steps", "service", "result", "attempts", *FIELDS])
KEYS |= st.sampled_from(["then", "exhausted", "optional", "reruns", "reopens", "for", "roles", "input", "on_timeout"])
TEXTS = st.text(max_size=8) | st.sampled_from(
    ["${payload.x}", "${", "${steps.a}", "s", "a", "/x", "1s", "any", "${callback.a}"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=20,
)
STEPS = st.lists(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4), min_size=1, max_size=3)


def named(steps: list[dict[str, Any]]) -> dict[str, Any]:
    """Steps of what kind they say; those that say none send a request."""
    kinds = [{} if step.keys() & {"decision", "data", "sleep"} else {"service": "s"} for step in steps]
    return {"steps": [{"name": f"s{n}", **kinds[n], **step} for n, step in enumerate(steps)]}


def grouped(steps: list[dict[str, Any]]) -> dict[str, Any]:
    block = {"name": "b", "when": "payload.x", "steps": named(steps)["steps"], "else": [{"name": "a", "data": "a"}]}
    return {"steps": [block, {"name": "z", "sleep": "1s"}]}


@settings(max_examples=100, deadline=None)
@given(JSON | STEPS.map(named) | STEPS.map(grouped))
def test_any_json_is_a_definition_or_refused_with_paths(content: Any) -> None:
    """No JSON, however odd, fails in another way than InvalidPayload; every fault has a path."""
    faults = []
    try:
        compile_definition(content, services=SERVICES)
    except InvalidPayload as error:
        faults = error.extra["faults"]
        assert faults
    assert all(fault["path"].startswith("$") and fault["fault"] for fault in faults)
