"""Definitions on the real engine, with a crash before and after each of their appends: what each kind of step
promises."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

import coordinator
from coordinator import Embedded
from coordinator.errors import Forbidden, IllegalState, InvalidPayload
from coordinator.model.command import CommandView

SERVICES = ("stock",)


def step(name: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "service": "stock", "path": f"/{name}", **fields}


def undoable(name: str, **fields: Any) -> dict[str, Any]:
    return step(name, undo={"path": f"/{name}/undo"}, **fields)


def definition(*steps: dict[str, Any], **rest: Any) -> dict[str, Any]:
    return {"name": "order", "version": 1, "steps": list(steps), **rest}


def answers(c: Embedded, *names: str) -> None:
    """These steps succeed, each with its name as its outcome, and so do their undos."""
    for name in names:
        c.services["stock"].on("POST", f"/{name}").answers(200, name)
        c.services["stock"].on("POST", f"/{name}/undo").answers(200)


def refuses(c: Embedded, *names: str) -> set[str]:
    """These steps are refused, each round under its own name, for as long as it is in the set."""
    refused = set(names)
    for name in {name.partition("#")[0] for name in names}:
        c.services["stock"].on("POST", f"/{name}").does(lambda call: (409, None) if call.step in refused else (200, {}))
    return refused


def effects(c: Embedded) -> dict[str, int]:
    """What took effect, by step (``a``, ``a#2``, ``a/undo``), and how often."""
    return Counter(f"{call.step}/undo" if call.undo else call.step for call in c.services["stock"].effects)


def states(view: CommandView) -> dict[str, str]:
    return {each.name: each.state.value for each in view.steps}


async def until(c: Embedded, view: CommandView, state: str) -> CommandView:
    """The command once all that can be done now is done, in this state."""
    await c.settled()
    view = await c.get(view.id)
    assert view.state == state, await c.explain(view.id)
    return view


async def everywhere(scenario: Any) -> None:
    assert await coordinator.crash_everywhere(None, scenario, services=SERVICES) > 4


async def test_a_one_time_password_comes_by_callback() -> None:
    """The address that the bank was given takes the datum once; the command goes on with it."""
    pay = definition(
        undoable("authorise", body={"reply_to": "${callback.otp}"}),
        {"name": "confirm", "data": {"name": "otp", "timeout": "10m"}},
        step("capture", body="${steps.confirm.code}"),
        result="${steps.capture}",
    )

    async def scenario(c: Embedded) -> None:
        answers(c, "authorise", "capture")
        view = await until(c, await c.submit(pay), "waiting")
        assert view.waiting_for == ["otp"]
        urls = {call.body["reply_to"] for call in c.services["stock"].calls}
        assert len(urls) == 1
        await c.callback(urls.pop(), {"code": 7})
        view = await c.wait(view.id)
        assert (view.state, view.result) == ("completed", "capture")
        assert c.services["stock"].effects[-1].body == 7
        assert effects(c) == {"authorise": 1, "capture": 1}

    await everywhere(scenario)


async def test_a_datum_that_does_not_come_in_time_undoes_the_command() -> None:
    """Its timeout is the step's failure."""
    pay = definition(undoable("a"), {"name": "otp", "data": {"timeout": "10m"}}, step("b"))

    async def scenario(c: Embedded) -> None:
        answers(c, "a", "b")
        view = await c.run(pay, within="1h")
        assert (view.state, view.error and view.error.code) == ("compensated", "timeout")
        assert effects(c) == {"a": 1, "a/undo": 1}

    await everywhere(scenario)


async def test_a_decision_is_shown_taken_once_and_undoes_when_it_is_a_rejection() -> None:
    """Whoever decides sees the input and has the role; a second decision is too late."""
    order = definition(
        undoable("a"),
        {"name": "approve", "decision": {"input": {"for": "${steps.a}"}, "roles": ["boss"]}},
        step("b"),
    )

    async def scenario(c: Embedded) -> None:
        answers(c, "a", "b")
        view = await until(c, await c.submit(order), "waiting")
        [asked] = await c.decisions()
        assert asked["input"] == {"for": "a"}
        with pytest.raises(Forbidden):
            await c.decide(view.id, "approve", approve=False, by="tom")
        await c.decide(view.id, "approve", approve=False, by="ann", comment="no", roles=["boss"])
        view = await c.wait(view.id)
        assert (view.state, view.error and view.error.code) == ("compensated", "rejected")
        with pytest.raises(IllegalState):
            await c.decide(view.id, "approve", by="ann", roles=["boss"])
        assert effects(c) == {"a": 1, "a/undo": 1}

    await everywhere(scenario)


async def test_a_decision_that_came_too_late_is_refused() -> None:
    """A cancel, an abort or another's rejection was first in the log: nobody is told that the decision counted."""
    both = definition(
        undoable("a"), {"name": "left", "decision": True}, {"name": "right", "decision": True, "after": ["a"]}
    )

    async with coordinator.embedded(None, services=SERVICES) as c:
        answers(c, "a")
        for first in (c.cancel, c.abort, lambda order: c.decide(order, "right", approve=False, by="eve")):
            view = await until(c, await c.submit(both), "waiting")
            _, late = await asyncio.gather(
                first(view.id), c.decide(view.id, "left", approve=True, by="ann"), return_exceptions=True
            )
            assert isinstance(late, IllegalState), late
            assert states(await c.wait(view.id))["left"] != "succeeded"


async def test_a_rejection_may_lead_another_way() -> None:
    """``continue`` makes it an outcome, and ``else`` the way of those who were refused."""
    order = definition(
        {"name": "approve", "decision": {"on_reject": "continue", "timeout": "1h"}},
        step("ship", when="steps.approve.approve", **{"else": [step("refund"), {"name": "nap", "sleep": "5m"}]}),
        step("close", body="${steps.approve}"),
    )

    async def scenario(c: Embedded) -> None:
        answers(c, "ship", "refund", "close")
        view = await c.run(order, within="2h")
        assert view.state == "completed"
        assert states(view) == {
            "approve": "succeeded", "ship": "skipped", "refund": "succeeded", "nap": "succeeded", "close": "succeeded",
        }  # fmt: skip
        body = c.services["stock"].effects[-1].body
        assert (body["approve"], body["by"]) == (False, "")

    await everywhere(scenario)


async def test_a_block_is_run_or_left_out_as_a_whole() -> None:
    """All its steps are shown as skipped, and what comes after runs once."""
    block = {"name": "gift", "when": "payload.gift", "steps": [step("card"), step("wrap", after=[])]}
    order = definition(step("a"), block, step("z"))

    async def scenario(c: Embedded) -> None:
        answers(c, "a", "card", "wrap", "z")
        view = await c.run(order, {"gift": False})
        assert states(view) == {"a": "succeeded", "card": "skipped", "wrap": "skipped", "z": "succeeded"}
        await c.run(order, {"gift": True})
        assert Counter(call.step for call in c.services["stock"].effects) == {"a": 2, "card": 1, "wrap": 1, "z": 2}

    await everywhere(scenario)


async def test_the_first_to_succeed_goes_on_and_the_losers_are_undone() -> None:
    """A failure is no success, and what was under way is resolved before it is undone."""
    order = definition(
        undoable("a"),
        undoable("b", after=[]),
        {"name": "late", "after": [], "steps": [undoable("c"), {"name": "nap", "sleep": "1h"}]},
        step("z", after=["a", "b", "late"], join="any", body=["${steps.a}", "${steps.b}", "${steps.c}"]),
    )

    async def scenario(c: Embedded) -> None:
        answers(c, "b", "c", "z")
        c.services["stock"].on("POST", "/a").fails(409)
        c.services["stock"].on("POST", "/b").takes("5s").answers(200, "b")
        view = await c.run(order, within="1m")
        assert view.state == "completed"
        assert effects(c) == {"b": 1, "c": 1, "c/undo": 1, "z": 1}
        assert [call.body for call in c.services["stock"].effects if call.step == "z"] == [[None, "b", None]]

    await everywhere(scenario)


async def test_losers_may_keep_what_they_did() -> None:
    """What was under way is resolved all the same, and nothing of it undone."""
    order = definition(
        {"name": "fast", "sleep": "1s"},
        {"name": "slow", "after": [], "steps": [undoable("a"), undoable("b")]},
        step("z", after=["fast", "slow"], join="any", losers="keep"),
    )

    async def scenario(c: Embedded) -> None:
        answers(c, "a", "z")
        c.services["stock"].on("POST", "/b").takes("5s").answers(200)
        view = await c.run(order, within="1m")
        assert view.state == "completed"
        assert effects(c) == {"a": 1, "b": 1, "z": 1}

    await everywhere(scenario)


async def test_a_failure_before_the_end_undoes_what_late_data_ran_again() -> None:
    """Every round that took effect, once, last first, each as its own round was sent."""
    order = definition(
        {"name": "coupon", "data": {"optional": True, "reruns": True}},
        step("price", body="${[steps.coupon]}", undo={"path": "/price/undo", "body": "${[steps.coupon]}"}),
        {"name": "go", "data": "go"},
        step("send"),
    )

    async def scenario(c: Embedded) -> None:
        answers(c, "price")
        refuses(c, "send")
        view = await until(c, await c.submit(order), "waiting")
        await c.provide(view.id, "coupon", 7, signal_id="1")
        await c.settled()
        await c.provide(view.id, "go", True, signal_id="2")
        view = await c.wait(view.id)
        assert view.state == "compensated"
        assert [(call.step, call.undo, call.body) for call in c.services["stock"].effects] == [
            ("price", False, [None]), ("price#2", False, [7]), ("price#2", True, [7]), ("price", True, [None]),
        ]  # fmt: skip

    await everywhere(scenario)


async def test_a_second_round_has_a_callback_of_its_own() -> None:
    """The address of the first one has been answered, and counts no more."""
    order = definition(
        step("a", savepoint=True),
        step("ask", body="${callback.answer}"),
        {"name": "answer", "data": "answer"},
        step("b"),
    )

    async def scenario(c: Embedded) -> None:
        answers(c, "a", "ask")
        refuses(c, "b")
        view = await until(c, await c.submit(order), "waiting")
        await c.callback(c.services["stock"].calls[-1].body, 1)
        view = await until(c, view, "waiting")
        first, second = dict.fromkeys(call.body for call in c.services["stock"].calls if call.step.startswith("ask"))
        await c.callback(first, 1)
        view = await until(c, view, "waiting")
        await c.callback(second, 2)
        view = await c.wait(view.id)
        assert (view.state, view.steps[-1].outcome) == ("completed", {})

    await everywhere(scenario)


async def test_a_savepoint_tries_again_what_came_after_it() -> None:
    """What failed is undone back to it, once; what came before it stays."""
    order = definition(undoable("a", savepoint={"attempts": 2}), undoable("b"), step("c"))

    async def scenario(c: Embedded) -> None:
        answers(c, "a", "b")
        refuses(c, "c")
        view = await c.run(order, within="1m")
        assert view.state == "completed"
        assert effects(c) == {"a": 1, "b": 1, "b/undo": 1, "b#2": 1, "c#2": 1}

    await everywhere(scenario)


async def test_a_rejection_is_not_mended_by_a_savepoint() -> None:
    """Nobody is asked the same again: the whole command is undone."""
    order = definition(undoable("a", savepoint={"attempts": 5}), undoable("b"), {"name": "approve", "decision": True})

    async def scenario(c: Embedded) -> None:
        answers(c, "a", "b")
        view = await until(c, await c.submit(order), "waiting")
        await c.decide(view.id, "approve", approve=False)
        view = await c.wait(view.id)
        assert (view.state, view.error and view.error.code) == ("compensated", "rejected")
        assert effects(c) == {"a": 1, "a/undo": 1, "b": 1, "b/undo": 1}

    await everywhere(scenario)


async def test_a_savepoint_may_stop_until_an_operator_goes_on() -> None:
    """As a dead letter, with all after it undone."""
    order = definition(
        {"name": "pay", "savepoint": {"then": "dead_letter"}, "steps": [undoable("a"), undoable("b", after=[])]},
        undoable("c"),
        step("d"),
    )

    async def scenario(c: Embedded) -> None:
        answers(c, "a", "b", "c")
        refuses(c, "d")
        view = await until(c, await c.submit(order), "dead_letter")
        await c.retry(view.id)
        view = await c.wait(view.id)
        assert view.state == "completed"
        assert effects(c) == {"a": 1, "b": 1, "c": 1, "c/undo": 1, "c#2": 1, "d#2": 1}

    await everywhere(scenario)


async def test_late_data_runs_again_what_depends_on_it() -> None:
    """Nobody waits for it; what it does not concern is not repeated."""
    order = definition(
        step("a"),
        {"name": "coupon", "data": {"optional": True, "reruns": True}},
        step("price", body="${[steps.coupon]}"),
        step("pick", after=["a"]),
        {"name": "go", "data": "go"},
        step("send", after=["price", "pick", "go"], body="${steps.price}"),
    )

    async def scenario(c: Embedded) -> None:
        answers(c, "a", "price", "pick", "send")
        c.services["stock"].on("POST", "/price").does(lambda call: call.body)
        view = await until(c, await c.submit(order), "waiting")
        assert view.waiting_for == ["go"]
        await c.provide(view.id, "coupon", 7, signal_id="1")
        await c.provide(view.id, "go", True, signal_id="2")
        view = await c.wait(view.id)
        assert view.state == "completed"
        assert effects(c) == {"a": 1, "price": 1, "pick": 1, "price#2": 1, "send": 1}
        assert c.services["stock"].effects[-1].body == [7]

    await everywhere(scenario)


async def test_late_data_opens_a_completed_command_where_declared() -> None:
    """Under its next revision, twice if it comes twice; finished steps are not repeated."""
    order = definition(
        step("a"),
        {"name": "address", "data": {"reopens": True}},
        step("label", body="${[steps.address]}"),
        result="${steps.label}",
    )

    async def scenario(c: Embedded) -> None:
        answers(c, "a")
        c.services["stock"].on("POST", "/label").does(lambda call: call.body)
        view = await c.run(order)
        assert (view.state, view.result, view.revision) == ("completed", [None], 1)
        for number, address in enumerate(["here", "there"], 2):
            await c.provide(view.id, "address", address, signal_id=address)
            await c.settled()
            view = await c.wait(view.id)
            assert (view.state, view.result, view.revision) == ("completed", [address], number)
        assert effects(c) == {"a": 1, "label": 1, "label#2": 1, "label#3": 1}

    await everywhere(scenario)


async def test_a_failed_step_waits_for_an_operator_where_declared() -> None:
    """Nothing is undone, the other branch finishes, and a requeue goes on to the end."""
    order = definition(undoable("a"), step("b", after=[]), step("z", after=["a", "b"]), on_failure="dead_letter")

    async def scenario(c: Embedded) -> None:
        answers(c, "a", "z")
        refused = refuses(c, "b")
        view = await until(c, await c.submit(order), "dead_letter")
        assert states(view) == {"a": "succeeded", "b": "dead_letter", "z": "pending"}
        refused.clear()
        await c.requeue(view.id, "b")
        view = await c.wait(view.id)
        assert view.state == "completed"
        assert effects(c) == {"a": 1, "b": 1, "z": 1}

    await everywhere(scenario)


async def test_what_ends_without_an_answer_is_a_dead_letter_of_its_own() -> None:
    """Where failed steps wait for an operator, a datum that did not come in time does too: the other branches finish,
    the join waits, and a requeue of the step asks for the datum again."""
    order = definition(
        undoable("a"),
        {"name": "otp", "data": {"timeout": "10m"}, "after": ["a"]},
        undoable("b", after=["a"]),
        undoable("c"),
        undoable("join", after=["otp", "c"], body="${steps.otp}"),
        on_failure="dead_letter",
    )

    async def scenario(c: Embedded) -> None:
        answers(c, "a", "b", "c", "join")
        view = await until(c, await c.submit(order), "waiting")
        assert states(view)["c"] == "succeeded"
        await c.clock.advance("11m")
        view = await until(c, view, "dead_letter")
        assert states(view)["failed:otp"] == "dead_letter"
        assert view.error is not None
        assert (view.error.code, view.error.step) == ("timeout", "otp")
        with pytest.raises(InvalidPayload):
            await c.requeue(view.id, "otp", input=7)
        await c.requeue(view.id, "otp")
        view = await until(c, view, "waiting")
        await c.provide(view.id, "otp", 7)
        view = await c.wait(view.id)
        assert view.state == "completed"
        assert effects(c) == {"a": 1, "b": 1, "c": 1, "join": 1}
        assert c.services["stock"].effects[-1].body == 7

    await everywhere(scenario)


async def test_a_command_that_is_cancelled_before_its_start_waits_for_nothing() -> None:
    """The answer to the cancel says so already; nothing of it has been called."""
    async with coordinator.embedded(None, services=SERVICES) as c:
        view = await c.submit(definition(undoable("a")), delay="1h")
        assert view.waiting_for == ["start"]
        assert (await c.cancel(view.id)).waiting_for == []
        assert (await c.wait(view.id)).state == "failed"
        assert effects(c) == {}


async def test_a_condition_without_a_value_is_a_dead_letter_by_the_name_of_its_block() -> None:
    """What comes after the block waits, the rest goes on; what an operator reads and writes is the block's name."""
    order = definition(
        undoable("a"),
        {"name": "gift", "when": "payload.gift.paid", "steps": [step("card"), step("wrap")]},
        undoable("b", after=["a"]),
        step("join", after=["gift", "b"]),
        on_failure="dead_letter",
    )

    async with coordinator.embedded(None, services=SERVICES) as c:
        answers(c, "a", "b")
        view = await until(c, await c.submit(order), "dead_letter")
        assert (states(view)["b"], states(view)["join"]) == ("succeeded", "pending")
        [letter] = (await c.explain(view.id))["waits"]
        assert (letter["step"], "run it anew" in letter["unblock"]) == ("failed:gift/in", True)
        await c.requeue(view.id, "gift")
        view = await until(c, view, "dead_letter")
        assert states(view)["failed:gift/in#2"] == "dead_letter"
        await c.cancel(view.id)
        assert (await c.wait(view.id)).state == "compensated"
        assert effects(c) == {"a": 1, "b": 1, "a/undo": 1, "b/undo": 1}


async def test_a_step_too_late_for_its_deadline_is_undone_and_waits_for_an_operator() -> None:
    """What it turns out to have done is undone first; the requeued step is another one, with a key of its own."""
    order = definition(undoable("a"), undoable("b", deadline="1m"), on_failure="dead_letter")

    async def scenario(c: Embedded) -> None:
        answers(c, "a")
        down = {"b"}
        c.services["stock"].on("POST", "/b").does(lambda call: (503, None) if call.step in down else (200, "b"))
        c.services["stock"].on("POST", "/b/undo").answers(200)
        view = await c.submit(order)
        await c.clock.advance("2m")
        down.clear()
        await c.clock.advance("2m")
        view = await until(c, view, "dead_letter")
        assert states(view)["b"] == "undone"
        await c.requeue(view.id, "b")
        view = await c.wait(view.id)
        assert (view.state, states(view)["b#2"]) == ("completed", "succeeded")
        assert effects(c) == {"a": 1, "b": 1, "b/undo": 1, "b#2": 1}

    await everywhere(scenario)


async def test_a_rejection_undoes_also_where_failed_steps_wait() -> None:
    """A person's No is no fault that an operator could mend."""
    order = definition(undoable("a"), {"name": "approve", "decision": True}, step("b"), on_failure="dead_letter")

    async def scenario(c: Embedded) -> None:
        answers(c, "a", "b")
        view = await until(c, await c.submit(order), "waiting")
        await c.decide(view.id, "approve", approve=False, by="ann")
        view = await c.wait(view.id)
        assert (view.state, view.error and view.error.code) == ("compensated", "rejected")
        assert effects(c) == {"a": 1, "a/undo": 1}

    await everywhere(scenario)


async def test_a_state_and_a_step_have_deadlines() -> None:
    """A command that waits too long fails, and so does a step that is tried too long; what was done is undone."""
    waits = definition(undoable("a"), {"name": "otp", "data": "otp"}, deadlines={"waiting": "1h"})
    tries = definition(undoable("a"), step("b", retry={"attempts": 100, "first": "1s"}, deadline="5s"))

    async def scenario(c: Embedded) -> None:
        answers(c, "a")
        c.services["stock"].on("POST", "/b").fails(409)
        first = await c.run(waits, within="2h", id="waits")
        second = await c.run(tries, within="2h", id="tries")
        for view in (first, second):
            assert (view.state, view.error and view.error.code) == ("compensated", "deadline_exceeded")
        assert effects(c) == {"a": 2, "a/undo": 2}

    await everywhere(scenario)


async def test_a_command_pauses_after_errors_and_goes_on_by_itself() -> None:
    """After so many negative answers, by itself again after a time."""
    order = definition(
        step("a", retry={"attempts": 9, "first": "1s"}), pause_after={"errors": 2, "resume_after": "10m"}
    )

    async def scenario(c: Embedded) -> None:
        refused = refuses(c, "a")
        view = await c.submit(order)
        await c.clock.advance("1m")
        assert (await c.get(view.id)).state == "paused"
        refused.clear()
        view = await c.wait(view.id, within="1h")
        assert view.state == "completed"

    await everywhere(scenario)
