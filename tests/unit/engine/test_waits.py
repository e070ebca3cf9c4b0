"""Waiting for data and for people: what is kept, what counts, and what is shown meanwhile."""

from __future__ import annotations

from typing import Any

import pytest

from coordinator import Saga
from coordinator.engine.transitions import waiting_states
from coordinator.model.command import FINAL, Operation
from coordinator.model.records import Signal
from tests.unit.engine.desk import Desk, step, submitted


async def paid(saga: Saga) -> Any:
    await step(saga, "reserve")
    otp = await saga.receive("otp")
    await step(saga, "charge")
    return otp


def test_a_command_that_misses_an_input_waits_for_it_by_name() -> None:
    """Data by its own name, decisions and sleeps by the step's; it holds no slot."""

    async def exec(saga: Saga) -> Any:
        return await saga.all(saga.receive("otp", step="typed"), saga.decision("approve"), saga.sleep("1h"))

    desk = submitted(exec)
    assert desk.state() == "waiting"
    assert desk.command().waits == ("otp", "approve", "sleep")
    assert desk.engine.slots == set()


def test_it_runs_while_there_is_something_else_to_do() -> None:
    """Waiting is what it does when nothing else is left."""

    async def exec(saga: Saga) -> Any:
        return await saga.all(saga.receive("otp"), step(saga, "a"))

    desk = submitted(exec)
    assert desk.state() == "running"
    desk.ok("a")
    assert desk.state() == "waiting"


def test_it_goes_on_where_it_stood_without_repeating_a_step() -> None:
    """Also in another process."""
    desk = submitted(paid)
    desk.ok("reserve")
    desk.restart(paid)
    assert desk.state() == "waiting"
    desk.give("otp", 7)
    desk.ok("charge")
    assert desk.result() == 7
    assert [call.step for call in desk.made] == ["reserve", "charge"]


def test_data_that_comes_early_is_there_when_it_is_waited_for() -> None:
    """Before the step that it is for, across a restart."""
    desk = submitted(paid)
    desk.give("otp", 7)
    desk.restart(paid)
    assert desk.under_way() == ["reserve"]
    desk.ok("reserve")
    desk.ok("charge")
    assert desk.result() == 7


def test_a_signal_id_counts_once() -> None:
    """Whatever value comes with it the second time, and whoever waits by then."""

    async def exec(saga: Saga) -> Any:
        return [await saga.receive("otp"), await saga.receive("otp")]

    desk = submitted(exec)
    for value, signal_id in ((1, "x"), (2, "x"), (3, "y")):
        desk.give("otp", value, signal_id)
    assert desk.result() == [1, 3]


def test_data_that_comes_while_it_is_paused_is_kept() -> None:
    """Nothing is called until it is resumed; then it goes on at once."""
    desk = submitted(paid)
    desk.ok("reserve")
    desk.ask(Operation.PAUSE)
    desk.give("otp", 7)
    assert (desk.state(), desk.under_way()) == ("paused", [])
    desk.ask(Operation.RESUME)
    assert desk.under_way() == ["charge"]


def test_what_is_decided_while_it_is_paused_counts() -> None:
    """The person need not know; a second decision does not."""

    async def exec(saga: Saga) -> Any:
        return (await saga.decision("approve")).by

    desk = submitted(exec)
    desk.ask(Operation.PAUSE)
    desk.decide("approve", by="ann")
    desk.decide("approve", by="bob", approve=False)
    desk.ask(Operation.RESUME)
    assert desk.result() == "ann"


def test_of_two_decisions_at_once_the_first_in_the_log_counts() -> None:
    """Both are recorded, for both were made while it was asked."""

    async def exec(saga: Saga) -> Any:
        return (await saga.decision("approve")).by

    desk = submitted(exec)
    desk.decide("approve", by="ann", turn=False)
    desk.decide("approve", by="bob", approve=False, turn=False)
    desk.turn()
    assert desk.result() == "ann"
    assert [each.by for each in desk.log if isinstance(each, Signal)] == ["ann", "bob"]


def test_a_rejection_undoes_by_default() -> None:
    """It is a failure like any other, and says by whom."""

    async def exec(saga: Saga) -> None:
        await step(saga, "a")
        await saga.decision("approve")

    desk = submitted(exec)
    desk.ok("a")
    desk.decide("approve", approve=False, comment="too dear")
    assert desk.under_way() == ["~a"]
    desk.ok("a")
    assert (desk.state(), desk.failure().code) == ("compensated", "rejected")
    assert desk.failure().message == "rejected by ann: too dear"


def test_a_cancel_while_it_waits_undoes_what_it_has_done() -> None:
    """And what comes afterwards changes nothing."""
    desk = submitted(paid)
    desk.ok("reserve")
    desk.ask(Operation.CANCEL)
    desk.give("otp", 7)
    assert desk.under_way() == ["~reserve"]
    desk.ok("reserve")
    assert desk.state() == "compensated"


def test_what_waits_keeps_a_lost_step_from_nothing() -> None:
    """A wait that a failed branch leaves behind is dropped: the command does not wait for it."""

    async def exec(saga: Saga) -> None:
        await saga.all(step(saga, "a"), saga.receive("otp"), saga.sleep("1h"))

    desk = submitted(exec)
    desk.no("a")
    assert desk.state() == "failed"


@pytest.mark.parametrize("state", sorted(FINAL))
def test_nothing_is_taken_in_a_final_state(state: str) -> None:
    """What a refusal lists are all other states."""
    assert state not in waiting_states()


def losers(saga: Saga) -> Any:
    async def first() -> None:
        await step(saga, "a")
        await step(saga, "b")

    return saga.any(first(), step(saga, "c"))


async def raced(saga: Saga) -> Any:
    await losers(saga)
    return await step(saga, "after")


def lost_race() -> Desk:
    """The branch of ``a`` and ``b`` has lost, with ``b`` under way."""
    desk = submitted(raced)
    desk.ok("a")
    desk.ok("c")
    return desk


def test_nothing_of_a_loser_is_undone_while_something_of_it_is_in_doubt() -> None:
    """What is in doubt follows from what it did; it is undone first, if it turns out to be done."""
    desk = lost_race()
    assert sorted(desk.under_way()) == ["after", "b"]
    desk.lost("b")
    desk.sleep(desk.settings.slow_retry_interval_ms + 1)
    assert sorted(desk.under_way()) == ["after", "b"]
    desk.ok("b")
    assert sorted(desk.under_way()) == ["after", "~b"]
    desk.ok("b")
    assert sorted(desk.under_way()) == ["after", "~a"]


def test_losers_are_undone_before_the_end() -> None:
    """Exec goes on meanwhile, and its command ends when nothing of them is left."""
    desk = lost_race()
    desk.ok("after")
    assert desk.state() == "running"
    desk.ok("b")
    desk.ok("b")
    desk.ok("a")
    assert desk.state() == "completed"
    assert desk.kinds().count("Undone") == 2


def test_a_loser_that_has_failed_leaves_only_what_it_did() -> None:
    """Known to have failed is known."""
    desk = lost_race()
    desk.no("b")
    assert sorted(desk.under_way()) == ["after", "~a"]
