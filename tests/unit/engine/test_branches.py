"""What becomes of a command when branches, savepoints and operators meet what they did not expect."""

from __future__ import annotations

from typing import Any

from coordinator import CommandFailed, Delayed, PauseAfter, Saga, StepFailed
from coordinator.awaitables import Retry, Wait
from coordinator.engine import asleep
from coordinator.model.command import Operation, State
from coordinator.model.ids import CommandId
from coordinator.model.records import Failure
from tests.unit.engine.desk import Desk, step, submitted


class Mine(Exception):
    """An author's own."""


async def translated(saga: Saga, name: str) -> Any:
    """A branch whose author tells of a failed step in words of his own."""
    try:
        return await step(saga, name)
    except StepFailed as failure:
        raise Mine from failure


def test_a_branch_that_fails_in_its_own_words_has_failed() -> None:
    """As anywhere else an exception means what it was raised from: it does not keep another branch from winning."""

    async def run(saga: Saga) -> Any:
        return await saga.any(step(saga, "a"), translated(saga, "b"))

    desk = submitted(run)
    desk.no("b")
    desk.ok("a", 5)
    assert (desk.state(), desk.result()) == ("completed", 5)


def test_a_savepoint_mends_a_failure_that_is_told_in_other_words() -> None:
    """What the body raises from a step's failure is one, and its own exception is what is raised in the end."""

    async def run(saga: Saga) -> Any:
        try:
            return await saga.savepoint("s", lambda: translated(saga, "a"), attempts=1)
        except Mine:
            return "mine"

    desk = submitted(run)
    desk.no("a")
    assert desk.under_way() == ["a#2"]
    desk.no("a#2")
    assert (desk.state(), desk.result()) == ("completed", "mine")


def test_a_mistake_in_a_branch_is_told_as_what_it_is() -> None:
    """The dead letter has the author's own error, and nobody waits for the branches for ever."""

    async def mistaken(saga: Saga) -> None:
        await step(saga, "b")
        raise ValueError("my own mistake")

    async def run(saga: Saga) -> Any:
        return await saga.any(step(saga, "a"), mistaken(saga))

    desk = submitted(run)
    desk.ok("b")
    poison = desk.command().poison
    assert poison is not None
    assert "my own mistake" in poison.message


def test_a_branch_that_is_delayed_is_run_again() -> None:
    """`Delayed` in a branch means what it means in exec."""
    delayed = [True]

    async def patient(saga: Saga) -> int:
        await step(saga, "b")
        if delayed:
            raise Delayed("later")
        return 1

    async def run(saga: Saga) -> Any:
        return await saga.any(step(saga, "a"), patient(saga))

    desk = submitted(run)
    desk.ok("b")
    assert desk.state() == "delayed"
    delayed.clear()
    desk.sleep(10_000)
    desk.no("a")
    assert (desk.state(), desk.result()) == ("completed", 1)


def test_what_no_record_can_hold_of_a_failure_is_left_out() -> None:
    """An author's text with half a character in it must not stop the partition, at a savepoint or at exec's end."""

    async def held(saga: Saga) -> Any:
        async def body() -> None:
            raise CommandFailed("bad \ud800", code="x" * 300)

        return await saga.savepoint("s", body, then="dead_letter")

    async def failed(_saga: Saga) -> Any:
        raise StepFailed("a", Failure("x", "bad \ud800"))

    assert submitted(held).state() == "dead_letter"
    assert submitted(failed).failure().message == "bad \\ud800"


def test_in_dead_letter_mode_a_loser_that_failed_stops_nobody() -> None:
    """What is known to have failed has failed once nobody waits for it: there is nothing left to repair."""

    async def run(saga: Saga) -> Any:
        return await saga.any(step(saga, "a"), step(saga, "b"))

    desk = submitted(run, wants={"on_failure": "dead_letter"})
    desk.no("b")
    desk.ok("a", 3)
    assert desk.state() == "completed"


def test_a_dead_letter_that_crosses_a_cancel_does_not_stop_it() -> None:
    """The answer came when it was still to wait for an operator; by then an operator had decided."""

    async def run(saga: Saga) -> Any:
        return await saga.all(step(saga, "a"), step(saga, "b"))

    desk = submitted(run, wants={"on_failure": "dead_letter"})
    desk.ok("a")
    desk.ask(Operation.CANCEL, turn=False)
    desk.no("b")
    assert desk.under_way() == ["~a"]
    assert desk.state() == "compensating"


def test_an_operators_pause_takes_the_place_of_one_that_came_by_itself() -> None:
    """What a person has stopped goes on when a person says so, however it was stopped before."""

    async def run(saga: Saga) -> Any:
        return await step(saga, "a", retry=Retry(attempts=9, first="1s"))

    desk = submitted(run, wants={"pause_after": PauseAfter(errors=1, resume_after="10s")})
    desk.no("a")
    assert desk.state() == "paused"
    assert desk.ask(Operation.PAUSE)
    assert not desk.ask(Operation.PAUSE)
    desk.sleep(60_000)
    assert desk.state() == "paused"
    desk.ask(Operation.RESUME)
    assert desk.under_way() == ["a"]


def sleeper(desk: Desk) -> asleep.Sleeper:
    """The command as it sleeps."""
    kept = desk.engine.shards[0].commands[CommandId("c")]
    assert isinstance(kept, bytes)
    return asleep.unpacked(kept)


def test_a_command_that_waits_sleeps_when_it_is_paused_as_well() -> None:
    """Whoever pauses a million waiting commands pays for records, and not for memory; its time passes meanwhile, and
    tells when it is resumed."""

    async def run(saga: Saga) -> Any:
        return await saga.receive("word", timeout="1h")

    desk = submitted(run)
    assert (sleeper(desk).state, sleeper(desk).waits) == (State.WAITING, ("word",))
    desk.ask(Operation.PAUSE)
    desk.sleep(7_200_000)
    assert (sleeper(desk).state, sleeper(desk).waits) == (State.PAUSED, ("word",))
    desk.ask(Operation.RESUME)
    assert desk.failure().code == "timeout"


def test_who_has_nothing_else_waits_for_what_it_only_listens_for() -> None:
    """A command that was opened again, and whose datum was lost on the way, holds no slot until it is sent again."""

    async def run(_saga: Saga) -> Any:
        return await Wait(name="late", kind="data", channel="late", listens=True)

    desk = submitted(run)
    assert sleeper(desk).waits == ("late",)
    assert not desk.engine.slots


def test_times_that_come_all_at_once_come_in_turns() -> None:
    """After a standstill of hours a hundred thousand commands are due: nobody waits until all of them are awake."""

    async def run(saga: Saga) -> Any:
        return await saga.receive("word", timeout="1h")

    desk = Desk(run)
    for number in range(1_100):
        desk.submit(f"c{number}")
    desk.now += 7_200_000
    desk.engine.tick(desk.now)
    assert 0 < len(desk.engine.commands) < 1_100
    desk.sleep(1_000)
    assert len(desk.ended) == 1_100


def test_many_waits_of_one_command_have_one_timer() -> None:
    """Whatever the order of their times: a thousand of them would otherwise set a thousand timers each time."""

    async def run(saga: Saga) -> Any:
        return await saga.all(*(saga.sleep(f"{seconds}s", name=f"s{seconds}") for seconds in range(400, 0, -1)))

    desk = submitted(run)
    desk.sleep(60_000)
    assert len(desk.engine.timers) < 10
    desk.sleep(400_000)
    assert desk.state() == "completed"
