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
from coordinator.model.ids import CommandId
from coordinator.model.records import Failure, Signal, raw
from coordinator.saga import CommandFailed, PauseAfter, Rejected, Retry, Saga, StepFailed

SERVICES = {"stock": "http", "payments": "http", "mail": "http"}


def step(name: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "service": "stock", "path": f"/{name}", **fields}


def start(*steps: dict[str, Any], payload: Any = None, revision: int = 1, **rest: Any) -> Execution:
    """The definition under way: its first steps are pending."""
    type = definition_type(compile_definition({"steps": list(steps), **rest}, services=SERVICES))
    saga = Saga(
        id="c-1",
        type="order",
        version=1,
        attributes={"customer": "c"},
        now=0,
        revision=revision,
        callback=lambda name, number: f"http://here/{name}/{number}",
    )
    return Execution(lambda given: type.run({} if payload is None else payload, given), saga)


def provide(execution: Execution, name: str, value: Any, *, signal_id: str = "") -> None:
    execution.signal(Signal(1, b"", 9, CommandId("c-1"), name, raw(value), signal_id))


def decide(execution: Execution, name: str, *, approve: bool, comment: str = "") -> None:
    value = raw({"approve": approve, "comment": comment})
    execution.signal(Signal(1, b"", 9, CommandId("c-1"), name, value, by="ann", channel="decision"))


def succeed(execution: Execution, *names: str) -> None:
    """Each step's outcome is its own name."""
    for name in names:
        execution.outcome(name, raw(name), 1)


def fail(execution: Execution, name: str) -> None:
    execution.failed(name, Failure("http_409", "declined"), 1)


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


# ---------------------------------------------------------------- decisions, data, sleeps


def test_a_decision_waits_for_a_person_and_is_an_outcome() -> None:
    """They are shown the input; what they say may be used by what follows."""
    execution = start(
        step("a"),
        {"name": "approve", "decision": {"input": {"order": "${steps.a}"}, "roles": ["boss"], "timeout": "1h"}},
        step("b", body="${steps.approve}"),
    )
    succeed(execution, "a")
    wait = execution.waits["approve"].call
    assert (wait.kind, wait.input, wait.roles, wait.timeout, wait.on_timeout) == (
        "decision", {"order": "a"}, ("boss",), "1h", "reject",
    )  # fmt: skip
    decide(execution, "approve", approve=True, comment="fine")
    assert sent(execution, "b").body == {
        "approve": True, "by": "ann", "comment": "fine", "at": "1970-01-01T00:00:00.009Z",
    }  # fmt: skip


def test_a_rejection_fails_the_command_unless_it_goes_on() -> None:
    """By default what was done is undone; with ``continue`` the definition says what happens."""
    refused = start(step("a"), {"name": "approve", "decision": True}, step("b"))
    succeed(refused, "a")
    decide(refused, "approve", approve=False)
    assert isinstance(refused.error, Rejected)
    goes_on = start(
        {"name": "approve", "decision": {"on_reject": "continue"}},
        step("ship", when="steps.approve.approve", **{"else": [step("apologise", path="/${steps.approve.by}")]}),
        step("last"),
    )
    decide(goes_on, "approve", approve=False)
    assert (goes_on.skipped, list(goes_on.pending)) == ({"ship": "stock"}, ["apologise"])
    assert sent(goes_on, "apologise").path == "/ann"


def test_an_input_without_a_value_fails_before_anybody_is_asked() -> None:
    """As any other template."""
    execution = start({"name": "approve", "decision": {"input": "${payload.zz}"}})
    assert isinstance(execution.error, CommandFailed)
    assert str(execution.error).startswith("$.steps[0].decision.input: ")


def test_a_datum_is_waited_for_and_is_an_outcome() -> None:
    """By the name of the datum, which need not be the step's; what came early is there."""
    execution = start(step("a"), {"name": "confirm", "data": "otp"}, step("b", body="${steps.confirm.code}"))
    succeed(execution, "a")
    wait = execution.waits["confirm"].call
    assert (wait.kind, wait.channel, wait.listens) == ("data", "otp", False)
    provide(execution, "otp", {"code": 7})
    assert sent(execution, "b").body == 7
    early = start(step("a"), {"name": "confirm", "data": "otp"}, step("b", body="${steps.confirm.code}"))
    provide(early, "otp", {"code": 7})
    succeed(early, "a")
    assert sent(early, "b").body == 7


def test_time_may_stand_for_a_datum() -> None:
    """A timeout fails the step, or the datum is null."""
    failing = start({"name": "otp", "data": {"timeout": "1m"}}, step("a"))
    failing.timer("otp", 5)
    assert isinstance(failing.error, StepFailed)
    going_on = start({"name": "otp", "data": {"timeout": "1m", "on_timeout": "null"}}, step("a", body=["${steps.otp}"]))
    going_on.timer("otp", 5)
    assert sent(going_on, "a").body == [None]


def test_a_sleep_is_a_wait_for_time() -> None:
    """Its outcome is null."""
    execution = start({"name": "nap", "sleep": {"for": "10s"}}, step("a", body=["${steps.nap}"]))
    wait = execution.waits["nap"].call
    assert (wait.kind, wait.timeout) == ("sleep", "10s")
    execution.timer("nap", 10_000)
    assert sent(execution, "a").body == [None]


def test_waits_stand_beside_steps() -> None:
    """In a graph they are nodes like all others."""
    execution = start(step("a"), {"name": "otp", "data": "otp", "after": []}, step("b", after=["a", "otp"]))
    assert (list(execution.pending), list(execution.waits)) == (["a"], ["otp"])
    provide(execution, "otp", 1)
    succeed(execution, "a", "b")
    assert (execution.done, execution.error) == (True, None)


# ---------------------------------------------------------------- callbacks


ASK = step("ask", body={"reply_to": "${callback.answer}"})
ANSWER = {"name": "answer", "data": "answer"}


def test_a_callback_is_an_address_for_a_datum() -> None:
    """One for all who hand it out while the step waits, by the name of the datum or of its step."""
    execution = start(
        step("ask", body=["${callback.answer}", "${callback.paid}"], headers={"Reply-To": "<${callback.answer}>"}),
        step("tell", body="${callback.paid}", after=[]),
        {"name": "paid", "data": "answer", "after": ["ask", "tell"]},
    )
    assert sent(execution, "ask").body == ["http://here/answer/1", "http://here/answer/1"]
    assert sent(execution, "ask").headers == {"Reply-To": "<http://here/answer/1>"}
    assert sent(execution, "tell").body == "http://here/answer/1"


def test_no_callback_is_made_that_nobody_hands_out() -> None:
    """Numbers follow what is sent, so that a replay makes the same ones."""
    execution = start(step("skipped", when="false", body="${callback.answer}"), ASK, ANSWER)
    assert sent(execution, "ask").body == {"reply_to": "http://here/answer/1"}


def test_a_second_round_hands_out_another_callback() -> None:
    """The first one has been answered, and counts once."""
    execution = start(step("a", savepoint=True), ASK, ANSWER, step("b"))
    succeed(execution, "a", "ask")
    provide(execution, "answer", 1)
    fail(execution, "b")
    assert sent(execution, "ask#2").body == {"reply_to": "http://here/answer/2"}


# ---------------------------------------------------------------- blocks and alternatives


def test_a_block_runs_when_its_condition_holds() -> None:
    """All its steps or none of them; who comes after it waits for its last ones."""
    block = {
        "name": "gift",
        "when": "payload.gift",
        "steps": [step("card"), step("wrap", after=[]), step("tie", after=["wrap"])],
    }
    running = start(step("a"), block, step("z"), payload={"gift": True})
    succeed(running, "a")
    assert set(running.pending) == {"card", "wrap"}
    succeed(running, "wrap", "tie")
    assert set(running.pending) == {"card"}
    succeed(running, "card")
    assert set(running.pending) == {"z"}
    left_out = start(step("a"), block, step("z"), payload={"gift": False})
    succeed(left_out, "a")
    assert set(left_out.skipped) == {"card", "wrap", "tie"}
    assert set(left_out.pending) == {"z"}


def test_else_runs_instead_and_rejoins() -> None:
    """One of two ways, and what comes after runs once."""
    steps = [
        step("a"),
        step("vip", when="payload.vip", **{"else": [step("queue"), step("call")]}),
        step("z", body=["${steps.vip}", "${steps.call}"]),
    ]
    first = start(*steps, payload={"vip": True})
    succeed(first, "a", "vip")
    assert set(first.skipped) == {"queue", "call"}
    assert sent(first, "z").body == ["vip", None]
    other = start(*steps, payload={"vip": False})
    succeed(other, "a", "queue", "call")
    assert set(other.skipped) == {"vip"}
    assert sent(other, "z").body == [None, "call"]


def test_a_condition_is_decided_once() -> None:
    """At the entry: what its steps do does not change it for the others."""
    execution = start(
        step("a"),
        {"name": "b", "when": "steps.a.on", "steps": [step("c"), step("d"), step("e", after=["c"])],
         "else": [step("f")]},
    )  # fmt: skip
    execution.outcome("a", raw({"on": True}), 1)
    succeed(execution, "c")
    assert set(execution.pending) == {"d", "e"}
    assert set(execution.skipped) == {"f"}


def test_an_inner_block_is_left_out_with_the_outer_one() -> None:
    """Neither its steps nor its else run, and its condition is not even evaluated."""
    inner = {"name": "inner", "when": "payload.zz", "steps": [step("c")], "else": [step("d")]}
    execution = start({"name": "outer", "when": "false", "steps": [inner], "else": [step("e")]}, step("z"))
    assert set(execution.skipped) == {"c", "d"}
    succeed(execution, "e")
    assert list(execution.pending) == ["z"]


def test_a_block_without_a_value_for_its_condition_fails_the_command() -> None:
    """The place in the definition is told."""
    execution = start({"name": "b", "when": "payload.zz", "steps": [step("a")]})
    assert isinstance(execution.error, CommandFailed)
    assert str(execution.error).startswith("$.steps[0].when: ")


# ---------------------------------------------------------------- joins


def test_the_first_success_of_some_goes_on() -> None:
    """A failure alone neither goes on nor fails; the losers' outcomes are null."""
    execution = start(
        step("a"), step("b", after=[]), step("c", after=[], undo={"path": "/c/undo"}),
        step("z", after=["a", "b", "c"], join="any", body=["${steps.a}", "${steps.b}", "${steps.c}"]),
    )  # fmt: skip
    fail(execution, "a")
    assert set(execution.pending) == {"b", "c"}
    succeed(execution, "b")
    assert sent(execution, "z").body == [None, "b", None]
    assert set(execution.orphans) == {"c"}
    succeed(execution, "c", "z")
    assert (execution.done, execution.error, set(execution.unwanted)) == (True, None, {"c"})


def test_a_skipped_block_is_no_success() -> None:
    """And one of which anything ran is."""
    left_out = {"name": "left", "after": [], "when": "payload.left", "steps": [step("a"), step("b", when="false")]}
    steps = [left_out, step("right", after=[]), step("z", after=["left", "right"], join="any")]
    skipped = start(*steps, payload={"left": False})
    assert list(skipped.pending) == ["right"]
    succeed(skipped, "right")
    assert list(skipped.pending) == ["z"]
    ran = start(*steps, payload={"left": True})
    succeed(ran, "a")
    assert list(ran.pending) == ["z"]


def test_the_first_of_some_in_a_block_waits_for_the_block() -> None:
    """Who wins earlier has won, but the block's own order holds."""
    execution = start(
        step("a"),
        step("b", after=[]),
        step("c", after=[]),
        {"name": "block", "after": ["c"], "steps": [step("z", after=["a", "b"], join="any")]},
    )
    succeed(execution, "a")
    assert set(execution.pending) == {"c"}
    succeed(execution, "c")
    assert set(execution.pending) == {"z"}


# ---------------------------------------------------------------- savepoints


def test_after_a_savepoint_only_what_came_later_runs_again() -> None:
    """It is undone first; the newest outcomes count, and each undo is made of its own round's."""
    execution = start(
        step("a", savepoint={"attempts": 1}, undo={"path": "/a/undo"}),
        step("b", undo={"path": "/b/${steps.b}/${steps.a}"}),
        step("c", path="/c/${steps.b}"),
        result="${steps.b}",
    )
    succeed(execution, "a")
    execution.outcome("b", raw("first"), 2)
    fail(execution, "c")
    assert (list(execution.unwanted), list(execution.pending)) == (["b"], [])
    assert undo_of(execution, "b", "first").path == "/b/first/a"
    execution.undone("b", 3)
    execution.outcome("b#2", raw("second"), 4)
    assert sent(execution, "c#2").path == "/c/second"
    assert undo_of(execution, "b#2", "second").path == "/b/second/a"
    succeed(execution, "c#2")
    assert (execution.error, execution.result) == (None, "second")


def test_attempts_of_a_savepoint_end() -> None:
    """Then the rest is undone as well, or the command is a dead letter until an operator goes on."""
    undone = start(step("a", savepoint=True), step("b"))
    succeed(undone, "a")
    fail(undone, "b")
    fail(undone, "b#2")
    assert isinstance(undone.error, StepFailed)
    held = start(step("a", savepoint={"then": "dead_letter"}), step("b"))
    succeed(held, "a")
    fail(held, "b")
    assert list(held.holds) == ["savepoint:a"]
    held.released("savepoint:a", 5)
    succeed(held, "b#2")
    assert (held.done, held.error) == (True, None)


def test_a_block_may_save_what_it_did() -> None:
    """What comes after the block runs again, the block does not; it is called by its name."""
    execution = start({"name": "pay", "savepoint": {"then": "dead_letter"}, "steps": [step("a"), step("b")]}, step("c"))
    succeed(execution, "a", "b")
    fail(execution, "c")
    assert list(execution.holds) == ["savepoint:pay"]


def test_a_condition_after_a_savepoint_is_decided_anew() -> None:
    """What was skipped in one round may run in the next."""
    execution = start(
        step("a", savepoint=True),
        step("b"),
        step("c", when="steps.b == 'go'", **{"else": [step("d")]}),
        step("z"),
    )
    succeed(execution, "a")
    execution.outcome("b", raw("stop"), 1)
    succeed(execution, "d")
    fail(execution, "z")
    execution.outcome("b#2", raw("go"), 1)
    assert list(execution.pending) == ["c#2"]
    assert list(execution.skipped) == ["c", "d#2"]


# ---------------------------------------------------------------- optional and late data


LATE = {"name": "late", "data": {"name": "coupon", "optional": True, "reruns": True}}


def test_nobody_waits_for_optional_data() -> None:
    """It is null until it is there; who comes after it waits for what it comes after."""
    steps = [
        step("a"),
        {"name": "late", "data": {"name": "coupon", "optional": True}},
        step("b", body=["${steps.late}"]),
        step("c", body=["${steps.late}"]),
    ]
    execution = start(*steps)
    assert list(execution.pending) == ["a"]
    succeed(execution, "a")
    assert sent(execution, "b").body == [None]
    assert execution.waiting == []
    provide(execution, "coupon", 7)
    succeed(execution, "b")
    assert sent(execution, "c").body == [7]
    succeed(execution, "c")
    assert (execution.done, list(execution.calls)) == (True, ["a", "b", "c"])


def test_late_data_runs_again_what_comes_after_it() -> None:
    """And nothing else; a joint between them does not keep it back."""
    execution = start(
        step("a"), LATE, step("b", undo={"path": "/b/${steps.late == null}"}, body=["${steps.late}"]),
        {"name": "block", "when": "steps.late == null", "steps": [step("c")], "else": [step("d")]},
        step("other", after=["a"]),
        step("z", after=["block", "other"]),
    )  # fmt: skip
    succeed(execution, "a", "b", "c")
    assert list(execution.pending) == ["other"]
    provide(execution, "coupon", 7)
    assert sent(execution, "b#2").body == [7]
    assert undo_of(execution, "b", "b").path == "/b/true"
    succeed(execution, "b#2", "other")
    assert list(execution.pending) == ["d#2"]
    assert "z" not in execution.calls


@pytest.mark.parametrize("late", [LATE, {"name": "late", "data": {"name": "coupon", "optional": True}}])
def test_data_that_came_early_is_there(late: dict[str, Any]) -> None:
    """Whatever comes after it finds it in its first round."""
    execution = start(step("a"), late, step("b", body=["${steps.late}"]))
    provide(execution, "coupon", 7)
    succeed(execution, "a")
    assert sent(execution, "b").body == [7]
    succeed(execution, "b")
    assert (execution.done, list(execution.calls)) == (True, ["a", "b"])


@pytest.mark.parametrize(
    "between",
    [
        [],
        [step("x", when="false")],
        [{"name": "x", "when": "true", "steps": [step("y", when="false")]}, step("x2", when="false")],
        [{"name": "x", "when": "false", "steps": [step("y")]}],
    ],
)
def test_late_data_runs_again_whatever_comes_after(between: list[dict[str, Any]]) -> None:
    """Though an outcome may be the same as before, or null because its step is skipped."""
    execution = start(LATE, step("b"), *between, step("z", body=["${steps.late}"]), {"name": "go", "data": "go"})
    execution.outcome("b", raw("same"), 1)
    succeed(execution, "z")
    provide(execution, "coupon", 7)
    execution.outcome("b#2", raw("same"), 1)
    assert sent(execution, "z#2").body == [7]
    succeed(execution, "z#2")
    provide(execution, "coupon", 7, signal_id="again")
    assert not execution.pending
    provide(execution, "go", True)
    assert (execution.done, execution.error) == (True, None)


def test_late_data_asks_a_person_again_but_not_for_data_that_is_there() -> None:
    """What they approved was another thing; a datum is what it is, and time that has passed has passed."""
    execution = start(
        LATE,
        step("b"),
        {"name": "otp", "data": "otp"},
        {"name": "nap", "sleep": "1s"},
        {"name": "approve", "decision": {"input": ["${steps.late}", "${steps.otp}"]}},
        step("c"),
    )
    succeed(execution, "b")
    provide(execution, "otp", 1)
    execution.timer("nap", 5)
    decide(execution, "approve", approve=True)
    provide(execution, "coupon", 7)
    succeed(execution, "c", "b#2")
    assert [each.name for each in execution.waiting] == ["approve#2"]
    assert execution.waits["approve#2"].call.input == [7, 1]
    decide(execution, "approve#2", approve=True)
    succeed(execution, "c#2")
    assert (execution.done, execution.error) == (True, None)


def test_a_way_that_late_data_opens_is_gone_to_its_end() -> None:
    """What was skipped before runs then, waits included."""
    execution = start(
        LATE,
        {"name": "way", "when": "steps.late == null", "steps": [step("a")], "else": [{"name": "pin", "data": "pin"}]},
        step("z", body=["${steps.a}", "${steps.pin}"]),
    )
    succeed(execution, "a", "z")
    assert execution.done
    again = start(
        LATE,
        {"name": "way", "when": "steps.late == null", "steps": [step("a")], "else": [{"name": "pin", "data": "pin"}]},
        step("z", body=["${steps.a}", "${steps.pin}"]),
    )
    succeed(again, "a")
    provide(again, "coupon", 7)
    succeed(again, "z")
    assert [each.name for each in again.waiting] == ["pin#2"]
    provide(again, "pin", 9)
    assert sent(again, "z#2").body == [None, 9]


def test_data_that_is_left_out_by_a_condition_is_never_taken() -> None:
    """Its step is skipped once, and what comes after it goes on."""
    left_out = {**LATE, "when": "false"}
    execution = start(step("a"), left_out, step("b", body=["${steps.late}"]))
    succeed(execution, "a")
    provide(execution, "coupon", 7)
    assert list(execution.skipped) == ["late"]
    assert sent(execution, "b").body == [None]
    succeed(execution, "b")
    assert (execution.done, execution.error) == (True, None)


def test_late_data_opens_a_completed_command_again() -> None:
    """Its second revision stands where the first ended, and goes on when the datum is there."""
    late = {"name": "late", "data": {"name": "coupon", "reopens": True}}
    steps = [step("a"), late, step("b", body=["${steps.late}"])]
    first = start(*steps, result="${steps.b}")
    succeed(first, "a", "b")
    assert (first.done, first.result) == (True, "b")
    again = start(*steps, result="${steps.b}", revision=2)
    succeed(again, "a", "b")
    assert not again.done
    provide(again, "coupon", 7)
    assert list(again.pending) == ["b#2"]
    assert sent(again, "b#2").body == [7]
    succeed(again, "b#2")
    assert (again.done, again.result) == (True, "b#2")


# ---------------------------------------------------------------- policies


def test_policies_of_a_definition_are_its_types() -> None:
    """What the engine asks of a type is answered as for code."""
    plan = compile_definition(
        {
            "on_failure": "dead_letter",
            "deadlines": {"waiting": "24h"},
            "pause_after": {"errors": 5, "resume_after": "10m"},
            "steps": [
                {"name": "a", "data": "otp"},
                {"name": "b", "data": {"name": "late", "reopens": True}},
                step("c", deadline="3s"),
            ],
        },
        services=SERVICES,
    )
    type = definition_type(plan)
    assert type.on_failure == "dead_letter"
    assert type.deadlines == {"waiting": 86_400_000}
    assert type.pause_after == PauseAfter(errors=5, resume_after="10m")
    assert (type.data, type.reopens) == ({"otp", "late"}, {"late"})
    assert definition_type(compile_definition({"steps": [step("a")]}, services=SERVICES)).data == frozenset()


def test_a_deadline_of_a_step_reaches_the_engine() -> None:
    """As in code commands."""
    assert start(step("a", deadline="3s")).calls["a"].deadline == "3s"
