"""Running definitions: on the real stepper, fed with outcomes as the engine feeds it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from coordinator.engine.expressions import ExpressionError
from coordinator.engine.interpreter import definition_type
from coordinator.engine.plan import compile_definition
from coordinator.engine.stepper import Execution
from coordinator.model.call import Request
from coordinator.model.records import Failure, raw
from coordinator.saga import CommandFailed, Retry, Saga, StepFailed

SERVICES = {"stock": "http", "payments": "http", "mail": "http"}


def step(name: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "service": "stock", "path": f"/{name}", **fields}


def start(*steps: dict[str, Any], payload: Any = None, **rest: Any) -> Execution:
    """The definition under way: its first steps are pending."""
    type = definition_type(compile_definition({"steps": list(steps), **rest}, services=SERVICES))
    saga = Saga(id="c-1", type="order", version=1, attributes={"customer": "c"}, now=0)
    return Execution(lambda given: type.run({} if payload is None else payload, given), saga)


def sent(execution: Execution, name: str) -> Request:
    request = execution.calls[name].request
    assert isinstance(request, Request)
    return request


def undo_of(execution: Execution, name: str, outcome: Any) -> Request:
    undo: Any = execution.calls[name].undo
    return undo(outcome) if isinstance(undo, Callable) else undo  # type: ignore[arg-type, no-any-return]


def test_steps_run_one_after_the_other() -> None:
    """Without after, each step waits for the one before and may use its outcome."""
    execution = start(
        step("a", body={"id": "${payload.id}"}),
        step("b", path="/b/${steps.a.n}", body="${steps.a}"),
        payload={"id": "o-1"},
        result={"a": "${steps.a.n}", "b": "${steps.b}"},
    )
    assert list(execution.pending) == ["a"]
    assert sent(execution, "a").body == {"id": "o-1"}
    execution.outcome("a", raw({"n": 7}), 1)
    assert list(execution.pending) == ["b"]
    assert (sent(execution, "b").path, sent(execution, "b").body) == ("/b/7", {"n": 7})
    execution.outcome("b", raw("done"), 2)
    assert execution.done
    assert execution.result == {"a": 7, "b": "done"}


def test_independent_steps_run_side_by_side() -> None:
    """``after: []`` starts at once."""
    execution = start(step("a"), step("b", after=[]), step("c", after=[]))
    assert set(execution.pending) == {"a", "b", "c"}


def test_a_step_waits_for_its_own_befores_only() -> None:
    """There are no layers: a step starts when what it names has ended, whatever else is still running."""
    execution = start(
        step("slow"), step("quick", after=[]), step("next", after=["quick"]), step("join", after=["slow", "next"])
    )
    execution.outcome("quick", raw(1), 1)
    assert set(execution.pending) == {"slow", "next"}
    execution.outcome("next", raw(2), 2)
    assert set(execution.pending) == {"slow"}
    execution.outcome("slow", raw(3), 3)
    assert set(execution.pending) == {"join"}
    execution.outcome("join", raw(4), 4)
    assert execution.done


def test_a_false_condition_skips_the_step() -> None:
    """It is shown as skipped, its outcome is null, and what comes after it goes on."""
    execution = start(
        step("a"),
        step("coupon", when="payload.amount > 1000"),
        step("b", body={"coupon": "${steps.coupon}"}),
        payload={"amount": 5},
        result="${steps.coupon == null}",
    )
    execution.outcome("a", raw(1), 1)
    assert execution.skipped == {"coupon": "stock"}
    assert sent(execution, "b").body == {"coupon": None}
    execution.outcome("b", raw(1), 2)
    assert execution.result is True


def test_a_join_counts_a_skipped_step_as_done() -> None:
    """A diamond with one side left out still closes."""
    execution = start(
        step("a"),
        step("left", after=["a"], when="false"),
        step("right", after=["a"]),
        step("end", after=["left", "right"]),
    )
    execution.outcome("a", raw(1), 1)
    assert set(execution.pending) == {"right"}
    execution.outcome("right", raw(1), 2)
    assert set(execution.pending) == {"end"}


def test_everything_may_be_skipped() -> None:
    """A definition that does nothing completes."""
    execution = start(step("a", when="false"), step("b", when="false", after=[]))
    assert execution.done
    assert execution.result is None


def test_an_undo_is_made_of_the_outcome() -> None:
    """An undo sees its step's outcome and what came before it, and takes its own service and limits."""
    execution = start(
        step("a"),
        step("b", undo={"service": "mail", "method": "DELETE", "path": "/b/${steps.b.id}/${steps.a}",
                        "retry": {"attempts": 2}, "timeout": "3s"}),
        payload={"id": 1},
    )  # fmt: skip
    execution.outcome("a", raw("x"), 1)
    execution.outcome("b", raw({"id": "b-1"}), 2)
    undo = undo_of(execution, "b", {"id": "b-1"})
    assert (undo.service, undo.method, undo.path) == ("mail", "DELETE", "/b/b-1/x")
    call = execution.calls["b"]
    assert (call.undo_retry, call.undo_timeout) == (Retry(attempts=2), "3s")


def test_an_undo_without_expressions_is_a_plain_request() -> None:
    """Nothing is left to go wrong when it is needed."""
    execution = start(step("a", undo={"path": "/a/undo"}))
    assert execution.calls["a"].undo == Request(service="stock", path="/a/undo")


def test_an_undo_that_cannot_be_made_raises_to_the_engine() -> None:
    """The engine parks that undo; it is never left out."""
    execution = start(step("a", undo={"path": "/a/${steps.a.id}"}))
    execution.outcome("a", raw({}), 1)
    with pytest.raises(ExpressionError, match=r"steps\.a has no field id"):
        undo_of(execution, "a", {})


def test_limits_of_a_step_reach_the_engine() -> None:
    """retry, timeout, give_up_after and answers are handed on as they are in code commands."""
    execution = start(step("a", retry={"attempts": 3}, timeout="2s", give_up_after="1m", answers={"404": "outcome"}))
    call = execution.calls["a"]
    assert (call.retry, call.timeout, call.give_up_after) == (Retry(attempts=3), "2s", "1m")
    assert sent(execution, "a").answers == {"404": "outcome"}


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"body": "${payload.zz}"}, "$.steps[1].body"),
        ({"when": "payload.zz > 1"}, "$.steps[1].when"),
        ({"when": "1 == 1 ? payload.n : true"}, "$.steps[1].when"),
        ({"path": "/x/${payload.empty}"}, "$.steps[1].path"),
    ],
)
def test_an_expression_without_a_value_fails_the_command(fields: dict[str, Any], where: str) -> None:
    """It fails before anything is sent, with the code and the place, and what was done before can be undone."""
    execution = start(step("a"), step("b", **fields), payload={"n": 1, "empty": ""})
    execution.outcome("a", raw(1), 1)
    assert execution.done
    assert isinstance(execution.error, CommandFailed)
    assert execution.error.code == "expression"
    assert str(execution.error).startswith(f"{where}: ")
    assert "b" not in execution.calls


def test_an_expression_fails_its_branch_and_leaves_the_others_in_doubt() -> None:
    """A parallel step that is under way is resolved by the engine, not forgotten."""
    execution = start(step("a"), step("b", after=[]), step("c", after=["b"], body="${payload.zz}"))
    execution.outcome("b", raw(1), 1)
    assert isinstance(execution.error, CommandFailed)
    assert list(execution.orphans) == ["a"]


def test_a_failed_step_fails_the_command() -> None:
    """What comes after a failed step never starts, in a chain or in a graph."""
    for steps in ([step("a"), step("b")], [step("a"), step("b", after=["a"]), step("c", after=["a"])]):
        execution = start(*steps)
        execution.failed("a", Failure("http_409", "declined"), 1)
        assert isinstance(execution.error, StepFailed)
        assert list(execution.calls) == ["a"]


def test_the_result_may_fail_too() -> None:
    """A result without a value fails the command like any step."""
    execution = start(step("a"), result="${steps.a.id}")
    execution.outcome("a", raw(None), 1)
    assert isinstance(execution.error, CommandFailed)
    assert str(execution.error).startswith("$.result: ")


def test_the_command_itself_is_an_input() -> None:
    """Expressions see the id, the type and the attributes."""
    execution = start(step("a", body=["${command.id}", "${command.type}", "${command.attributes.customer}"]))
    assert sent(execution, "a").body == ["c-1", "order", "c"]


def test_the_same_outcomes_lead_to_the_same_place() -> None:
    """A replay from the start stands where the old run stood."""
    steps = [
        step("a"),
        step("b", after=[]),
        step("c", after=["a"], when="steps.a > 1"),
        step("d", after=["b", "c"], body="${steps.b}"),
    ]
    first, again = start(*steps), start(*steps)
    first.outcome("b", raw(9), 1)
    first.outcome("a", raw(2), 2)
    again.outcome("b", raw(9), 1)
    again.outcome("a", raw(2), 2)
    assert set(first.pending) == set(again.pending) == {"c"}
    for execution in (first, again):
        execution.outcome("c", raw(1), 3)
    assert sent(first, "d") == sent(again, "d")


def test_two_hundred_steps_in_a_graph() -> None:
    """The largest definition starts, runs and ends."""
    execution = start(step("s0"), *[step(f"s{n}", after=[f"s{n - 1}"] if n % 3 else []) for n in range(1, 200)])
    turns = 0
    while not execution.done:
        execution.outcome(next(iter(execution.pending)), raw(turns), turns)
        turns += 1
    assert turns == 200
    assert execution.error is None
