"""The one table of states: complete, and what the answers and the diagram are read from."""

from __future__ import annotations

import re

import pytest

from coordinator.engine.transitions import TRANSITIONS, diagram, legal, legal_states
from coordinator.model.command import FINAL, Operation, State

EVERYTHING = sorted(State)
UNDER_WAY = sorted(set(State) - FINAL)


def test_every_state_has_its_row() -> None:
    """A new state without moves would be a command that nobody can help."""
    assert set(TRANSITIONS) == set(State)


@pytest.mark.parametrize("state", sorted(FINAL))
def test_final_states_have_no_way_out(state: State) -> None:
    """Nothing moves any more."""
    assert TRANSITIONS[state] == {}


@pytest.mark.parametrize("state", UNDER_WAY)
def test_every_other_state_has_a_way_out_to_an_end(state: State) -> None:
    """By itself or by an operator, some end can be reached."""
    seen, todo = {state}, [state]
    while todo:
        for target in TRANSITIONS[todo.pop()].values():
            if target not in seen:
                seen.add(target)
                todo.append(target)
    assert seen & FINAL


@pytest.mark.parametrize("state", UNDER_WAY)
def test_abort_is_always_there_until_the_end(state: State) -> None:
    """Whatever is wrong with a command, an operator can end it."""
    assert TRANSITIONS[state][Operation.ABORT] is State.ABORTED


@pytest.mark.parametrize(
    ("operation", "states"),
    [
        (Operation.PAUSE, "running delayed blocked waiting dead_letter compensating"),
        (Operation.RESUME, "paused"),
        (Operation.CANCEL, "running delayed blocked waiting paused dead_letter"),
        (Operation.ABORT, "running delayed blocked waiting paused dead_letter compensating"),
        (Operation.RETRY, "running delayed blocked waiting dead_letter compensating"),
        (Operation.REQUEUE, "dead_letter"),
    ],
)
def test_where_each_operation_is_legal(operation: Operation, states: str) -> None:
    """What a 409 lists is what is granted."""
    assert legal_states(operation) == states.split()
    assert {state for state in State if legal(state, operation)} == set(states.split())


def test_every_operation_is_legal_somewhere() -> None:
    """An operation that the table does not know could never be granted."""
    assert all(legal_states(operation) for operation in Operation)


def test_the_diagram_has_every_state_and_every_end() -> None:
    """It is drawn from the table."""
    lines = diagram().splitlines()
    assert lines[:2] == ["stateDiagram-v2", "    [*] --> running"]
    arrows = [match.groups() for line in lines[2:] if (match := re.fullmatch(r"    (\S+) --> (\S+?)(?:: .+)?", line))]
    assert len(arrows) == len(lines) - 2
    assert {name for arrow in arrows for name in arrow} == {*State, "[*]"}
    assert {start for start, target in arrows if target == "[*]"} == set(FINAL)
