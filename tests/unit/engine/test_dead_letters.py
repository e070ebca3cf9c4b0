"""Dead letters: steps that wait for an operator, savepoints that stop there, undos that were done by hand."""

from __future__ import annotations

from typing import Any

import pytest

from coordinator import Retry, Saga
from coordinator.model.command import Operation
from coordinator.model.records import Control, StepFailed
from tests.unit.engine.desk import REFUSAL, Desk, Exec, sequence, step, submitted


def stubborn(run: Exec) -> Desk:
    return submitted(run, wants={"on_failure": "dead_letter"})


def verdicts(desk: Desk) -> list[str]:
    return [each.verdict for each in desk.log if isinstance(each, StepFailed)]


async def forked(saga: Saga) -> Any:
    async def second() -> Any:
        await step(saga, "b")
        return await step(saga, "c")

    await saga.all(step(saga, "a", retry=Retry(attempts=2, first="10ms", jitter=0)), second())
    return await step(saga, "joined")


def test_a_step_that_fails_is_a_dead_letter_and_nothing_is_undone() -> None:
    """The other branches finish, and the join waits."""
    desk = stubborn(forked)
    desk.no("a")
    desk.sleep(20)
    desk.no("a")
    assert verdicts(desk) == ["retry", "parked"]
    assert desk.state() == "dead_letter"
    desk.ok("b")
    desk.ok("c")
    assert desk.under_way() == []
    assert desk.state() == "dead_letter"


@pytest.mark.parametrize("input", [None, {"amount": 5}])
def test_requeue_goes_on_to_the_end_with_all_attempts(input: Any) -> None:
    """With the old input or a new one; the step after the join runs once."""
    desk = stubborn(forked)
    for name in ("b", "c"):
        desk.ok(name)
    for _ in range(2):
        desk.no("a")
        desk.sleep(20)
    desk.ask(Operation.REQUEUE, step="a", input=input)
    assert desk.body("a") == input
    desk.no("a")
    desk.sleep(20)
    assert desk.under_way() == ["a"]
    desk.ok("a")
    desk.ok("joined")
    assert desk.state() == "completed"
    assert [call.step for call in desk.made].count("joined") == 1


def test_a_loser_that_is_a_dead_letter_keeps_nobody() -> None:
    """When another branch has won, nobody needs it: what is known to have failed has failed."""

    async def exec(saga: Saga) -> Any:
        return await saga.any(step(saga, "a"), step(saga, "b"))

    desk = stubborn(exec)
    desk.no("a")
    assert desk.state() == "dead_letter"
    desk.ok("b")
    assert verdicts(desk) == ["parked", "failed"]
    assert desk.state() == "completed"


def test_a_letter_that_crosses_a_cancel_is_none() -> None:
    """The refusal was on its way: a person need not see to a step that is not wanted any more."""
    desk = stubborn(sequence("a", "b"))
    desk.ok("a")
    desk.answer("b", REFUSAL, turn=False)
    desk.ask(Operation.CANCEL)
    assert desk.under_way() == ["~a"]
    desk.ok("a")
    assert desk.state() == "compensated"


def test_cancel_of_a_dead_letter_undoes_without_asking_again() -> None:
    """It is known to have failed."""
    desk = stubborn(sequence("a", "b"))
    desk.ok("a")
    desk.no("b")
    desk.ask(Operation.CANCEL)
    assert desk.under_way() == ["~a"]


# ---------------------------------------------------------------- savepoints


async def marked(saga: Saga) -> Any:
    async def body() -> Any:
        await step(saga, "b")
        return await step(saga, "c")

    await step(saga, "a")
    return await saga.savepoint("mark", body, then="dead_letter")


def held() -> Desk:
    """What came after the savepoint is undone, and it stops there."""
    desk = submitted(marked)
    for name in ("a", "b"):
        desk.ok(name)
    desk.no("c")
    assert desk.under_way() == ["~b"]
    desk.ok("b")
    return desk


def test_a_savepoint_stops_as_a_dead_letter_with_its_reason() -> None:
    """Once, whatever else happens; in another process as well."""
    desk = held()
    assert (desk.state(), desk.under_way()) == ("dead_letter", [])
    desk.restart(marked)
    desk.sleep(10_000)
    assert verdicts(desk) == ["failed", "held"]
    letter = desk.command().steps["savepoint:mark"]
    assert letter.failure is not None
    assert (letter.parked, letter.failure.code, letter.failure.step) == (True, "declined", "c")


@pytest.mark.parametrize(("operation", "name"), [(Operation.RETRY, ""), (Operation.REQUEUE, "savepoint:mark")])
def test_an_operator_lets_it_go_on_from_there(operation: Operation, name: str) -> None:
    """What was before it stands."""
    desk = held()
    desk.ask(operation, step=name)
    for each in ("b#2", "c#2"):
        assert desk.under_way() == [each]
        desk.ok(each)
    assert desk.state() == "completed"


def test_it_stops_again_when_that_fails_too() -> None:
    """As another dead letter: the first one is over."""
    desk = held()
    desk.ask(Operation.RETRY)
    desk.no("b#2")
    assert desk.state() == "dead_letter"
    assert [name for name, each in desk.command().steps.items() if each.parked] == ["savepoint:mark#2"]


def test_a_cancel_undoes_the_rest() -> None:
    """The savepoint keeps nobody from that."""
    desk = held()
    desk.ask(Operation.CANCEL)
    assert desk.under_way() == ["~a"]
    desk.ok("a")
    assert desk.state() == "compensated"


def test_a_savepoint_in_a_branch_that_has_lost_stops_nobody() -> None:
    """It was given up, and its letter is taken off."""

    async def exec(saga: Saga) -> Any:
        mark = saga.savepoint("mark", lambda: step(saga, "a"), then="dead_letter")
        await saga.any(mark, step(saga, "b"))
        return await step(saga, "after")

    desk = submitted(exec)
    desk.no("a")
    assert desk.state() == "dead_letter"
    desk.ok("b")
    assert desk.state() == "running"
    assert desk.engine.slots == {"c"}
    desk.ok("after")
    assert desk.state() == "completed"


# ---------------------------------------------------------------- undos


def test_resolve_marks_an_undo_as_done_by_hand() -> None:
    """Who did it is on record, and what comes before it is undone next."""
    desk = submitted(sequence("a", "b", "c"))
    for name in ("a", "b"):
        desk.ok(name)
    desk.no("c")
    desk.no("b")
    assert desk.state() == "dead_letter"
    desk.ask(Operation.RESOLVE, step="b")
    assert desk.command().steps["b"].undone_by == "op"
    assert desk.under_way() == ["~a"]
    desk.ok("a")
    assert desk.state() == "compensated"
    assert [each.step for each in desk.log if isinstance(each, Control)] == ["b"]


def test_a_loser_whose_undo_is_refused_is_a_dead_letter_until_somebody_sees_to_it() -> None:
    """Exec goes on, and its command does not end before."""

    async def exec(saga: Saga) -> Any:
        async def slow() -> None:
            await step(saga, "a")
            await saga.receive("never")

        return await saga.any(slow(), step(saga, "b"))

    desk = submitted(exec)
    desk.ok("a")
    desk.ok("b")
    desk.no("a")
    assert desk.state() == "dead_letter"
    desk.ask(Operation.RESOLVE, step="a")
    assert desk.state() == "completed"
