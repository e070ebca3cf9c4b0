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
