"""Time: each comes once, for its own command, late rather than never, and not for what has been left."""

from __future__ import annotations

from typing import Any

import pytest

from coordinator import Saga
from coordinator.model.command import Operation
from coordinator.model.ids import CommandId
from coordinator.model.records import SCHEMA, Control, Timer
from coordinator.saga import PauseAfter
from tests.unit.engine.desk import CALM, Desk, sequence, step, submitted


async def napping(saga: Saga) -> Any:
    began = saga.now
    await saga.sleep("1s")
    return saga.now - began


def timers(desk: Desk, id: str = "c") -> list[str]:
    return [each.what for each in desk.log if isinstance(each, Timer) and each.id == id]


def test_a_sleep_ends_when_its_time_has_come() -> None:
    """Not before, and by a record."""
    desk = submitted(napping)
    desk.sleep(999)
    assert (desk.state(), timers(desk)) == ("waiting", [])
    desk.sleep(1)
    assert (desk.result(), timers(desk)) == (1_000, ["step"])


def test_it_is_counted_from_its_record_whoever_owns_it_then() -> None:
    """A new process does not begin anew; one that comes too late wakes it late."""
    desk = submitted(napping)
    desk.sleep(600)
    desk.restart(napping)
    desk.sleep(399)
    assert desk.state() == "waiting"
    desk.now += 5_000
    desk.restart(napping)
    assert desk.result() == 5_999


def test_a_time_is_one_commands() -> None:
    """Another that sleeps beside it sleeps on."""
    desk = submitted(napping)
    desk.sleep(500)
    desk.submit("d")
    desk.sleep(500)
    assert (desk.state("c"), desk.state("d"), timers(desk, "d")) == ("completed", "waiting", [])


async def patient(saga: Saga) -> Any:
    await saga.receive("otp", timeout="1s")
    await step(saga, "a")


def test_what_has_been_answered_does_not_time_out() -> None:
    """Its time comes, and there is no record of it."""
    desk = submitted(patient)
    desk.give("otp", 7)
    desk.sleep(2_000)
    desk.ok("a")
    assert (desk.state(), timers(desk)) == ("completed", [])


def test_what_is_not_answered_in_time_fails() -> None:
    """With the code ``timeout``."""
    desk = submitted(patient)
    desk.sleep(1_000)
    assert (desk.state(), desk.failure().code) == ("failed", "timeout")


def test_no_time_comes_while_it_is_paused() -> None:
    """It comes when it is resumed: what arrived meanwhile was in time."""
    desk = submitted(patient)
    desk.ask(Operation.PAUSE)
    desk.sleep(2_000)
    assert timers(desk) == []
    desk.give("otp", 7)
    desk.ask(Operation.RESUME)
    assert desk.under_way() == ["a"]


def test_a_steps_deadline_is_for_all_its_tries() -> None:
    """It has failed then; what it turns out to have done is undone before the end."""
    desk = submitted(sequence("a", "b", deadline="500ms"))
    desk.ok("a")
    desk.lost("b")
    desk.sleep(500)
    assert (desk.state(), timers(desk)) == ("compensating", ["step"])
    desk.sleep(desk.settings.slow_retry_interval_ms)
    desk.ok("b")
    assert desk.under_way() == ["~b"]
    desk.ok("b")
    desk.ok("a")
    assert (desk.state(), desk.failure().code) == ("compensated", "deadline_exceeded")


# ---------------------------------------------------------------- the beginning


def delayed(**rest: Any) -> Desk:
    desk = Desk(sequence("a"))
    desk.submit(delay=1_000, **rest)
    return desk


def test_a_delayed_command_waits_for_its_start() -> None:
    """It holds no slot, and nothing of it is called before."""
    desk = delayed()
    assert (desk.state(), desk.command().waits, desk.engine.slots) == ("waiting", ("start",), set())
    desk.sleep(999)
    assert desk.under_way() == []
    desk.sleep(1)
    assert (desk.under_way(), timers(desk)) == (["a"], ["start"])


def test_its_deadline_counts_from_its_start() -> None:
    """And is armed once."""
    desk = delayed(timeout=500)
    desk.sleep(1_499)
    assert desk.state() == "running"
    desk.sleep(1)
    assert timers(desk) == ["start", "deadline"]


def test_one_that_is_cancelled_before_it_began_ends_at_once() -> None:
    """Nothing was called, nothing is resolved."""
    desk = delayed()
    desk.ask(Operation.CANCEL)
    assert (desk.state(), desk.failure().code, desk.made) == ("failed", "cancelled", [])


def test_a_start_that_crosses_a_cancel_is_none() -> None:
    """The cancel is first in the log: no step is begun after it, not even to find out that it was not."""
    desk = delayed()
    desk.now += 1_000
    desk.ask(Operation.CANCEL, turn=False)
    desk.turn()
    assert (desk.state(), desk.made) == ("failed", [])
    assert timers(desk) in ([], ["start"])


def test_one_that_is_paused_begins_when_it_is_resumed() -> None:
    """Late rather than never."""
    desk = delayed()
    desk.ask(Operation.PAUSE)
    desk.sleep(5_000)
    assert timers(desk) == []
    desk.ask(Operation.RESUME)
    assert desk.under_way() == ["a"]


# ---------------------------------------------------------------- states


def watched(**deadlines: str) -> Desk:
    async def exec(saga: Saga) -> Any:
        await step(saga, "a")
        await saga.receive("otp")
        await step(saga, "b")

    desk = submitted(exec, wants={"deadlines": deadlines}, breaker=CALM)
    desk.ok("a")
    return desk


def test_a_command_may_be_in_a_state_for_so_long() -> None:
    """Then it fails, and what it did is undone."""
    desk = watched(waiting="2s")
    desk.sleep(2_000)
    assert desk.under_way() == ["~a"]
    desk.ok("a")
    assert (desk.state(), desk.failure().code) == ("compensated", "deadline_exceeded")
    assert desk.failure().message == "it was waiting for longer than its type allows"


def test_leaving_the_state_disarms_it() -> None:
    """No record of the time that would have come."""
    desk = watched(waiting="2s")
    desk.sleep(1_999)
    desk.give("otp", 7)
    desk.sleep(5_000)
    assert (desk.under_way(), timers(desk)) == (["b"], [])


def test_a_time_that_crosses_what_leaves_the_state_does_not_count() -> None:
    """It says how much had happened when it came; more had by then."""
    desk = watched(waiting="2s")
    moves = desk.command().moves
    desk.give("otp", 7)
    desk.settle(Timer(SCHEMA, b"token", int(desk.now), CommandId("c"), "waiting", "state", moves))
    desk.turn()
    assert (desk.state(), desk.under_way()) == ("running", ["b"])


def test_one_that_is_paused_for_too_long_is_undone() -> None:
    """The time of being paused ends the pause as well."""
    desk = watched(paused="2s")
    desk.ask(Operation.PAUSE)
    desk.sleep(2_000)
    assert desk.under_way() == ["~a"]


# ---------------------------------------------------------------- pauses by itself


def wary(resume_after: str | None = None) -> Desk:
    return submitted(
        sequence("a", "b"),
        wants={"pause_after": PauseAfter(errors=2, resume_after=resume_after)},
        breaker=CALM,
    )


def err(desk: Desk) -> None:
    """The call under way is lost, and is made again if it may be."""
    desk.lost("a")
    desk.sleep(desk.settings.slow_retry_interval_ms + 1)


def test_it_pauses_by_itself_after_so_many_errors() -> None:
    """Whatever they say; and stays so until an operator resumes it, who starts the count anew."""
    desk = wary()
    err(desk)
    assert desk.under_way() == ["a"]
    err(desk)
    assert (desk.state(), desk.under_way()) == ("paused", [])
    desk.sleep(100_000)
    assert desk.state() == "paused"
    desk.ask(Operation.RESUME)
    err(desk)
    assert desk.under_way() == ["a"]


def test_the_count_outlives_the_process() -> None:
    """Unknown answers are recorded where they are counted."""
    desk = wary()
    err(desk)
    desk.restart(sequence("a", "b"))
    err(desk)
    assert desk.state() == "paused"


def test_it_resumes_by_itself_where_its_type_says_so() -> None:
    """After so long, and by a record of its own."""
    desk = wary("3s")
    err(desk)
    err(desk)
    assert desk.state() == "paused"
    desk.sleep(3_000)
    assert desk.under_way() == ["a"]
    controls = [(each.operation, each.auto, each.by) for each in desk.log if isinstance(each, Control)]
    assert controls == [("pause", True, "coordinator"), ("resume", True, "coordinator")]


def test_an_operators_pause_is_never_resumed_by_itself() -> None:
    """Neither one that found it running nor one that found it paused by itself."""
    desk = wary("3s")
    err(desk)
    err(desk)
    desk.ask(Operation.PAUSE)
    desk.sleep(100_000)
    assert desk.state() == "paused"


def test_a_cancel_of_one_that_paused_by_itself_goes_all_the_way_back() -> None:
    """The errors of the way forward do not stop the way back."""
    desk = wary()
    desk.ok("a")
    for _ in range(2):
        desk.lost("b")
        desk.sleep(desk.settings.slow_retry_interval_ms + 1)
    assert desk.state() == "paused"
    desk.ask(Operation.CANCEL)
    desk.no("b")
    desk.ok("a")
    assert desk.state() == "compensated"


@pytest.mark.parametrize("operation", [Operation.PAUSE, Operation.CANCEL])
def test_what_waits_is_shown_so_again_after_a_restart(operation: Operation) -> None:
    """Paused is paused and cancelled is cancelled, whatever times come."""
    desk = submitted(napping)
    desk.ask(operation)
    ended = desk.ended.get("c")
    desk.restart(napping)
    desk.sleep(5_000)
    assert desk.state() == ("paused" if ended is None else "failed")
