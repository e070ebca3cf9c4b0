"""Commands that wait are put to sleep, and nobody can tell."""

from __future__ import annotations

from typing import Any

import pytest

from coordinator import Saga
from coordinator.engine import engine
from coordinator.engine.asleep import unpacked
from coordinator.model.command import Operation
from coordinator.model.ids import CommandId
from coordinator.wire.codec import encode
from tests.unit.engine.desk import ONE, Desk, step, submitted


async def patient(saga: Saga) -> list[Any]:
    """A step, then data, a person and a while."""
    await step(saga, "a")
    otp = await saga.receive("otp")
    await step(saga, "b")
    await saga.decision("approve")
    await saga.sleep("1s")
    await step(saga, "c")
    return [otp, saga.now]


def at_the_wait() -> Desk:
    desk = submitted(patient)
    desk.ok("a")
    return desk


def test_a_command_that_only_waits_is_some_bytes() -> None:
    """No object of it is left, and its entry says what it waits for."""
    desk = at_the_wait()
    assert desk.asleep()
    assert CommandId("c") not in desk.engine.commands
    entry = desk.engine.shards[0].commands[CommandId("c")]
    assert isinstance(entry, bytes)
    assert len(entry) < 500
    sleeper = unpacked(entry)
    assert (sleeper.state, sleeper.waits, sleeper.asks, sleeper.calls_made) == ("waiting", ("otp",), False, 1)
    assert desk.state() == "waiting"


def test_it_wakes_when_something_happens_to_it_and_sleeps_again() -> None:
    """A datum, a decision, a time: each is met by the command as it was."""
    desk = at_the_wait()
    desk.give("otp", 7)
    assert not desk.asleep()
    desk.ok("b")
    assert desk.asleep()
    desk.decide("approve")
    assert desk.asleep()
    assert desk.command().waits == ("sleep",)
    desk.sleep(2_000)
    desk.ok("c")
    assert desk.result() == [7, 1_002_000]


def test_its_fences_go_on_growing() -> None:
    """The number of its calls is the one thing that its records do not tell."""
    desk = at_the_wait()
    desk.give("otp", 7)
    assert [call.attempt for call in desk.made] == [1, 2]


def test_looking_at_it_does_not_wake_it() -> None:
    """A list of a million must not become a million objects."""
    desk = at_the_wait()
    assert desk.command().execution is not None
    assert desk.asleep()


@pytest.mark.parametrize("operation", [Operation.PAUSE, Operation.CANCEL, Operation.ABORT])
def test_an_operator_wakes_it(operation: Operation) -> None:
    """It is asked as any other; what follows is decided on the command as it was."""
    desk = at_the_wait()
    assert desk.ask(operation)
    ends = {Operation.PAUSE: "paused", Operation.CANCEL: "compensating", Operation.ABORT: "aborted"}
    assert desk.state() == ends[operation]


def test_it_holds_no_slot() -> None:
    """Others may run while it waits; when it goes on it may exceed the limit."""
    desk = submitted(patient, settings=ONE)
    desk.ok("a")
    assert desk.engine.slots == set()
    desk.submit("d")
    desk.give("otp", 7)
    assert desk.engine.slots == {"c", "d"}


def test_one_with_a_delay_sleeps_until_it_begins() -> None:
    """Exec has not even been looked at: it may ask what time it is."""
    desk = Desk(patient)
    desk.submit(delay=500)
    assert desk.asleep()
    assert desk.command().waits == ("start",)
    assert desk.command().execution is None
    desk.sleep(600)
    assert desk.under_way() == ["a"]


def course(desk: Desk) -> list[Any]:
    """A whole course, with early data and a restart; all that can be seen of it."""
    desk.give("papers", 1)
    desk.ok("a")
    desk.give("otp", 7)
    desk.give("otp", 8)
    desk.lost("b")
    desk.sleep(desk.settings.slow_retry_interval_ms + 1)
    desk.ok("b")
    desk.ask(Operation.PAUSE)
    desk.decide("approve", by="bob")
    desk.ask(Operation.RESUME)
    desk.sleep(2_000)
    desk.no("c")
    desk.ok("b")
    desk.ok("a")
    return [*map(encode, desk.log), *((call.key, call.attempt) for call in desk.made), desk.failure().code]


def test_a_command_that_slept_and_one_that_did_not_have_the_same_course(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same records, the same calls under the same fences: waking is replay, and there is no other way."""
    slept = course(submitted(patient))
    monkeypatch.setattr(engine, "_is_busy", lambda command: True)
    assert course(submitted(patient)) == slept
