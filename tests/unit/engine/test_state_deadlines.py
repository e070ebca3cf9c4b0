"""How long a command may be in a state: counted from when it came into it, and from nothing else."""

from __future__ import annotations

from coordinator import Saga
from coordinator.model.command import Operation
from tests.unit.engine.desk import Desk, fork, submitted

PATIENCE = {"deadlines": {"waiting": "10s", "dead_letter": "10s"}, "on_failure": "dead_letter"}


async def told(saga: Saga) -> object:
    return await saga.receive("word")


def test_data_that_nobody_waits_for_gives_no_more_time() -> None:
    """It is kept, and the command waits on as before: whoever sends it every hour must not keep it waiting for ever."""
    desk = submitted(told, wants=PATIENCE)
    for value in range(2):
        desk.sleep(4_000)
        desk.give("noise", value)
    desk.sleep(1_900)
    assert desk.state() == "waiting"
    desk.sleep(200)
    assert desk.failure().code == "deadline_exceeded"


def test_a_state_that_was_left_for_a_pause_begins_anew() -> None:
    """Paused is a state of its own, with a time of its own: what went by in it is not counted for another."""
    desk = submitted(told, wants=PATIENCE)
    desk.sleep(8_000)
    desk.ask(Operation.PAUSE)
    desk.sleep(60_000)
    desk.ask(Operation.RESUME)
    desk.sleep(9_000)
    assert desk.state() == "waiting"
    desk.sleep(1_100)
    assert desk.failure().code == "deadline_exceeded"


def refused(*names: str) -> Desk:
    desk = submitted(fork(*names), wants=PATIENCE)
    for name in names:
        desk.sleep(4_000)
        desk.no(name)
    return desk


def test_a_second_dead_letter_gives_the_first_no_more_time() -> None:
    """The command is one since the first of them."""
    desk = refused("a", "b")
    desk.sleep(5_900)
    assert desk.state() == "dead_letter"
    desk.sleep(200)
    assert desk.failure().code == "deadline_exceeded"
