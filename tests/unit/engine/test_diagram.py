"""Diagrams: what is drawn, and that nothing an author chose gets out of its label."""

from __future__ import annotations

import re

from coordinator.engine import diagram
from coordinator.engine.plan import compile_definition
from coordinator.model.command import CommandView, State, StepState, StepView
from coordinator.model.definition import Definition

DIAMOND = {
    "name": "order",
    "version": 1,
    "steps": [
        {"name": "a", "service": "stock", "path": "/a", "undo": {"path": "/a/undo"}},
        {"name": "b", "service": "stock", "path": "/b/${payload.x}", "when": 'payload.x > "1"'},
        {"name": "c", "service": "stock", "path": "/c", "after": ["a"]},
        {"name": "d", "service": "stock", "path": "/d", "after": ["b", "c"]},
    ],
}


def definition(content: object = DIAMOND) -> Definition:
    return compile_definition(content, services=None).definition


def view(name: str, state: StepState, attempts: int = 1) -> StepView:
    return StepView(name=name, service="stock", state=state, attempts=attempts)


def test_a_definition_is_drawn_with_joins_conditions_and_undos() -> None:
    """Every after is an arrow, a condition is named on it, an undo is dotted."""
    assert diagram.of_definition(definition()).splitlines() == [
        "flowchart TD",
        '  s0["<b>a</b><br/>stock POST /a"]',
        '  s1["<b>b</b><br/>stock POST /b/#36;#123;payload.x#125;<br/>when payload.x #62; #34;1#34;"]',
        '  s2["<b>c</b><br/>stock POST /c"]',
        '  s3["<b>d</b><br/>stock POST /d"]',
        "  s0 -->|when| s1",
        "  s0 --> s2",
        "  s1 --> s3",
        "  s2 --> s3",
        '  s0 -.-|undo| s0u(["stock POST /a/undo"])',
    ]


def test_states_colour_the_steps_of_a_command() -> None:
    """The same picture, each step in its state; repeated calls are counted."""
    drawn = diagram.of_definition(definition(), [view("a", StepState.SUCCEEDED), view("b", StepState.DELAYED, 3)])
    assert "<br/>delayed, 3 calls" in drawn
    assert "  classDef succeeded " in drawn
    assert "  class s0 succeeded\n  class s1 delayed\n" in drawn


def test_code_is_drawn_as_what_it_has_done() -> None:
    """There is no plan of code, only its history."""
    drawn = diagram.of_steps([view("reserve", StepState.SUCCEEDED), view("charge#2", StepState.RUNNING)])
    assert "<b>charge#35;2</b>" in drawn
    assert "  s0 --> s1\n" in drawn
    assert "no step yet" in diagram.of_steps([])


def test_a_command_is_drawn_by_its_kind() -> None:
    """With its definition if it has one."""
    command = CommandView(
        id="c", type="order", version=1, state=State.RUNNING, result=None, error=None, waiting_for=[], attributes={},
        steps=[view("a", StepState.RUNNING)], submitted_at="", finished_at=None, partition=0, position="0:0",
    )  # fmt: skip
    assert "s3[" in diagram.of_command(command, definition())
    assert "s1[" not in diagram.of_command(command, None)


def test_a_label_cannot_be_left() -> None:
    """Quotes, brackets, tags and line breaks become codes, and long texts end."""
    hostile = '"]; click s0 "javascript:alert(1)" <script>`{}|\n%%'
    drawn = diagram.of_steps([view(hostile, StepState.RUNNING), view("x" * 500, StepState.RUNNING)])
    label = re.search(r's0\["<b>(.*?)</b><br/>', drawn)
    assert label is not None
    assert not set("\"[]<>`{}|\n%'()") & set(label[1])
    assert "x" * 100 not in drawn
    assert len(drawn.splitlines()) == 7


def test_every_state_has_a_colour() -> None:
    """No state is drawn without a class."""
    assert set(diagram.COLOURS) == set(StepState)


def drawn(*steps: dict[str, object], views: list[StepView] | None = None) -> list[str]:
    return diagram.of_definition(definition({"steps": list(steps)}), views or []).splitlines()


def test_each_kind_of_step_has_its_shape_and_says_what_it_waits_for() -> None:
    """A hexagon decides, a slanted box takes data, a rounded one sleeps."""
    lines = drawn(
        {"name": "a", "decision": {"roles": ["boss", "cfo"], "timeout": "1h", "on_timeout": "approve"}},
        {"name": "b", "data": {"name": "otp", "timeout": "5m"}},
        {"name": "c", "data": {"optional": True, "reruns": True}},
        {"name": "d", "sleep": "10s"},
        {"name": "e", "service": "s", "deadline": "3s", "savepoint": True},
    )
    assert lines[1:6] == [
        '  s0{{"<b>a</b><br/>decision by boss, cfo<br/>approve after 1h"}}',
        '  s1[/"<b>b</b><br/>data otp<br/>fail after 5m"/]',
        '  s2[/"<b>c</b><br/>data c, reruns"/]',
        '  s3(["<b>d</b><br/>sleep 10s"])',
        '  s4["<b>e</b><br/>s POST /<br/>deadline 3s<br/>savepoint, then retry 1, then undo"]',
    ]
    assert "  s2 -.->|if there| s3" in lines


def test_a_block_is_a_frame_and_its_condition_a_rhombus() -> None:
    """Joints that decide nothing are not drawn; without an else, the other way leads past the block."""
    assert drawn(
        {"name": "a", "sleep": "1s"},
        {"name": "b", "when": "payload.x", "savepoint": {"then": "undo"}, "steps": [
            {"name": "c", "sleep": "1s"}, {"name": "inner", "steps": [{"name": "d", "sleep": "1s"}]}]},
        {"name": "e", "sleep": "1s"},
    ) == [
        "flowchart TD",
        '  s0(["<b>a</b><br/>sleep 1s"])',
        '  s3(["<b>e</b><br/>sleep 1s"])',
        '  c0{"payload.x"}',
        '  subgraph b0["b<br/>savepoint, then undo"]',
        '    s1(["<b>c</b><br/>sleep 1s"])',
        '    subgraph b1["inner"]',
        '      s2(["<b>d</b><br/>sleep 1s"])',
        "    end",
        "  end",
        "  c0 -->|yes| s1",
        "  s1 --> s2",
        "  s2 --> s3",
        "  c0 -->|no| s3",
        "  s0 --> c0",
    ]  # fmt: skip


def test_else_is_the_other_way_from_the_rhombus_and_a_join_any_says_so() -> None:
    """Both ways lead on to what comes after."""
    lines = drawn(
        {"name": "a", "when": "payload.x", "sleep": "1s", "else": [{"name": "b", "sleep": "1s"}]},
        {"name": "c", "after": [], "sleep": "1s"},
        {"name": "d", "after": ["a", "c"], "join": "any", "sleep": "1s"},
    )
    assert lines[6:] == [
        "  c0 -->|yes| s0",
        "  c0 -->|no| s1",
        "  s0 -->|any| s3",
        "  s1 -->|any| s3",
        "  s2 -->|any| s3",
    ]


def test_a_second_round_is_the_one_that_is_shown() -> None:
    """But a listener that goes on listening shows what it was given."""
    steps: list[dict[str, object]] = [
        {"name": "late", "data": {"optional": True, "reruns": True}},
        {"name": "a", "service": "s"},
    ]
    views = [
        view("late", StepState.SUCCEEDED),
        view("a", StepState.SUCCEEDED),
        view("late#2", StepState.WAITING),
        view("a#2", StepState.RUNNING),
    ]
    lines = drawn(*steps, views=views)
    assert "  class s0 succeeded" in lines
    assert "  class s1 running" in lines
    assert any("running, round 2" in line for line in lines)


def test_a_step_of_code_that_calls_nobody_has_no_service_line() -> None:
    """A wait among the steps of a command of code."""
    waiting = StepView(name="otp", service="", state=StepState.WAITING, attempts=0)
    assert '  s0["<b>otp</b><br/>waiting"]' in diagram.of_steps([waiting])
