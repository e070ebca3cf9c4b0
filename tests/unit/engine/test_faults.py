"""What a command's own code raises: a failure, a wish to be run again, or a mistake; and what it may not harm."""

from __future__ import annotations

from typing import Any

import pytest

from coordinator import Blocked, CommandFailed, Delayed, Saga, StepFailed
from coordinator.errors import Suspended
from coordinator.model.command import Operation
from coordinator.model.records import Failure
from tests.unit.engine.desk import OUTCOME, Desk, Exec, sequence, step, submitted

# ---------------------------------------------------------------- failures and mistakes


async def wrapped_failure(saga: Saga) -> None:
    try:
        await step(saga, "a")
    except StepFailed as error:
        raise RuntimeError("could not") from error


async def grouped_failure(saga: Saga) -> None:
    try:
        await step(saga, "a")
    except StepFailed as error:
        raise ExceptionGroup("many", [ValueError("x"), error]) from None


async def own_failure(saga: Saga) -> None:
    try:
        await step(saga, "a")
    except StepFailed:
        raise CommandFailed("no stock", "sold_out") from Delayed()


class Odd(CommandFailed):
    def __init__(self, code: Any) -> None:
        self.code = code


async def odd_code(saga: Saga) -> None:
    raise Odd(5)


async def odd_text(saga: Saga) -> None:
    raise CommandFailed("half a \ud800 character", "x" * 500)


class Unlike(StepFailed):
    def __init__(self) -> None: ...


async def own_step_failed(saga: Saga) -> None:
    raise Unlike


@pytest.mark.parametrize(
    ("run", "code", "failed_step"),
    [
        (sequence("a"), "declined", "a"),
        (wrapped_failure, "declined", "a"),
        (grouped_failure, "declined", "a"),
        (own_failure, "sold_out", None),
        (odd_code, "5", None),
        (odd_text, "x" * 100, None),
        (own_step_failed, "failed", None),
    ],
)
def test_a_step_error_fails_that_one_command_also_when_wrapped(run: Exec, code: str, failed_step: str | None) -> None:
    """Whatever its author has made of the error, the command fails, and its record can be read again."""
    desk = submitted(run)
    if desk.calls:
        desk.no("a")
    assert desk.state() == "failed"
    assert (desk.failure().code, desk.failure().step) == (code, failed_step)


async def mistake(saga: Saga) -> None:
    await step(saga, "a")
    raise ValueError("mistake")


async def mistake_in_a_handler(saga: Saga) -> None:
    await step(saga, "a")
    try:
        raise StepFailed("a", Failure("declined"))
    except StepFailed:
        undefined  # type: ignore[name-defined]  # noqa: B018, F821


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError


async def unprintable(saga: Saga) -> None:
    await step(saga, "a")
    raise Unprintable


async def half_a_character(saga: Saga) -> None:
    await step(saga, "a")
    raise ValueError("\ud800" + "x" * 100_000)


async def unencodable(saga: Saga) -> object:
    await step(saga, "a")
    return object()


async def too_big_a_number(saga: Saga) -> int:
    await step(saga, "a")
    return 2**70


async def too_big_a_result(saga: Saga) -> str:
    await step(saga, "a")
    return "x" * (2 << 20)


async def bad_policy(saga: Saga) -> None:
    await step(saga, "a")
    await step(saga, "b", timeout="soon")


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (mistake, "ValueError: mistake"),
        (mistake_in_a_handler, "NameError"),
        (unprintable, "Unprintable: (its text cannot be shown)"),
        (half_a_character, "ValueError: \\ud800xxx"),
        (unencodable, "what exec returned cannot be recorded: TypeError"),
        (too_big_a_number, "what exec returned cannot be recorded: OverflowError"),
        (too_big_a_result, "it has 2097157 bytes, and may have 1048576"),
        (bad_policy, "step 'b': timeout: a duration"),
    ],
)
def test_a_mistake_of_exec_is_a_dead_letter_with_its_traceback(run: Exec, said: str) -> None:
    """Poison: nothing is undone, its neighbours go on, and a retry of mended code goes on where it stood."""
    desk = submitted(run)
    desk.submit("other")
    desk.ok("a")
    assert (desk.state(), desk.under_way()) == ("dead_letter", [])
    poison = desk.command().poison
    assert poison is not None
    assert said in poison.message
    assert poison.traceback
    assert len(poison.message) < 3_000
    assert desk.under_way("other") == ["a"]
    desk.ask(Operation.RETRY)
    assert desk.state() == "dead_letter", "the same code makes the same mistake"
    desk.restart(sequence("a"))
    assert desk.state() == "dead_letter"
    desk.ask(Operation.RETRY)
    assert desk.state() == "completed"
    assert [call.step for call in desk.made if call.command == "c"] == ["a"]


def test_poison_is_recorded_once() -> None:
    """However often the command is decided while the record is on its way."""

    async def branch(saga: Saga) -> None:
        await step(saga, "a")
        raise ValueError

    async def run(saga: Saga) -> None:
        await saga.all(branch(saga), step(saga, "b"))

    desk = submitted(run)
    desk.answer("a", OUTCOME, turn=False)
    desk.gather()
    desk.settle()
    poison = desk.gather()
    desk.answer("b", OUTCOME, turn=False)
    outcome = [record for _, record in desk.engine.take(desk.now).records]
    desk.outbox = outcome
    desk.settle()
    assert desk.gather() == []
    desk.outbox = poison
    desk.settle()
    desk.turn()
    assert desk.kinds().count("StepFailed") == 1
    assert desk.state() == "dead_letter"


@pytest.mark.parametrize("way", ["cancel", "deadline"])
def test_poison_that_is_cancelled_is_undone(way: str) -> None:
    """The way back needs what exec has issued, not what it did wrong afterwards."""
    desk = Desk(mistake)
    desk.submit(timeout=1_000 if way == "deadline" else None)
    desk.ok("a")
    assert desk.state() == "dead_letter"
    if way == "deadline":
        desk.sleep(1_000)
        assert desk.state() == "dead_letter"
        desk.ask(Operation.RETRY)
    else:
        desk.ask(Operation.CANCEL)
    assert desk.under_way() == ["~a"]
    desk.ok("a")
    assert desk.state() == "compensated"


def test_poison_that_crossed_a_cancel_is_senseless() -> None:
    """The cancel came first in the log: the command is undone, not parked."""
    desk = submitted(mistake)
    desk.answer("a", OUTCOME, turn=False)
    desk.gather()
    desk.settle()
    desk.ask(Operation.CANCEL, turn=False)
    assert [type(record).__name__ for record in desk.gather()] == ["Control", "StepFailed"]
    desk.settle()
    desk.turn()
    assert (desk.state(), desk.under_way()) == ("compensating", ["~a"])


@pytest.mark.parametrize("way", ["forward", "cancel", "deadline"])
def test_a_type_that_is_gone_after_a_restart_parks_its_commands_and_the_daemon_starts(way: str) -> None:
    """Whatever else was decided about them: they show what is missing, and go on when it is there again."""
    desk = Desk(sequence("a", "b"))
    desk.submit(timeout=1_000 if way == "deadline" else None)
    desk.ok("a")
    if way == "cancel":
        desk.ask(Operation.CANCEL)
    desk.restart(None)
    if way == "deadline":
        desk.sleep(1_000)
    assert desk.state() == "dead_letter"
    poison = desk.command().poison
    assert poison is not None
    assert poison.code == "unknown_type"
    desk.ask(Operation.RETRY)
    assert desk.state() == "dead_letter"
    desk.restart(sequence("a", "b"))
    desk.ask(Operation.RETRY)
    assert desk.under_way() == ["b"]
    desk.no("b")
    assert desk.under_way() == ["~a"]


def test_cancel_while_the_type_is_gone_says_so_instead_of_hanging() -> None:
    """The way back needs the code as well."""
    desk = submitted(sequence("a"))
    desk.restart(None)
    desk.ask(Operation.CANCEL)
    assert desk.state() == "dead_letter"
    desk.ask(Operation.ABORT)
    assert desk.state() == "aborted"


def test_code_that_was_changed_under_a_command_is_a_dead_letter_not_a_forgotten_effect() -> None:
    """An answer for which exec has no use any more is shown, and its undo is not skipped on the way back."""
    desk = submitted(sequence("a", "b"))
    desk.ok("a")
    desk.restart(sequence("renamed", "b"))
    assert desk.state() == "dead_letter"
    assert "does not issue any more" in desk.command().poison.message  # type: ignore[union-attr]
    desk.ask(Operation.CANCEL)
    desk.no("renamed")
    assert desk.state() == "dead_letter"
    assert "what would undo it is not known" in desk.command().steps["a"].failure.message  # type: ignore[union-attr]
    desk.restart(sequence("a", "b"))
    desk.ask(Operation.RETRY)
    desk.no("b")
    desk.ok("a")
    assert desk.state() == "compensated"


# ---------------------------------------------------------------- Delayed and Blocked in exec


class Weather:
    """Something outside that exec looks at, as it should not, but as people do."""

    error: BaseException | None = None

    async def check(self) -> None:
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("parallel", [False, True])
def test_exec_that_raises_delayed_is_run_again_at_the_slow_interval(*, wrapped: bool, parallel: bool) -> None:
    """Over its recorded outcomes: nothing is called twice, and the calls under way go on."""
    weather = Weather()

    async def check() -> None:
        try:
            await weather.check()
        except Delayed as error:
            if wrapped:
                raise RuntimeError from error
            raise

    async def then_check(saga: Saga) -> None:
        await step(saga, "a")
        await check()

    async def run(saga: Saga) -> str:
        if parallel:
            await saga.all(then_check(saga), step(saga, "b"))
        else:
            await then_check(saga)
        return "done"

    desk = submitted(run)
    weather.error = Delayed()
    desk.ok("a")
    assert desk.state() == "delayed"
    desk.sleep(199)
    weather.error = None
    desk.sleep(1)
    if parallel:
        assert desk.state() == "running"
        desk.ok("b")
    assert desk.result() == "done"
    assert [call.step for call in desk.made] == (["a", "b"] if parallel else ["a"])


def test_work_that_was_answered_while_exec_waited_is_not_called_again() -> None:
    """Its outcome is in the log, and the next run is fed with it."""
    weather = Weather()

    async def branch(saga: Saga) -> None:
        await step(saga, "a")
        await weather.check()

    async def run(saga: Saga) -> list[Any]:
        return await saga.all(branch(saga), step(saga, "b"))

    desk = submitted(run)
    weather.error = Delayed()
    desk.ok("a")
    desk.ok("b", 7)
    assert desk.state() == "delayed"
    weather.error = None
    desk.sleep(200)
    assert desk.result() == [None, 7]
    assert len(desk.made) == 2


def test_retry_runs_exec_again_at_once() -> None:
    """As for a delayed call."""
    weather = Weather()
    weather.error = Delayed()

    async def run(saga: Saga) -> None:
        await weather.check()

    desk = submitted(run)
    weather.error = None
    desk.ask(Operation.RETRY)
    assert desk.state() == "completed"


@pytest.mark.parametrize(("declares", "refused"), [(("stock",), True), ((), True), (("payments",), True)])
def test_exec_that_raises_blocked_suspends_what_its_type_declares(declares: tuple[str, ...], *, refused: bool) -> None:
    """It does not say which service is down: none declared means any; it ends when exec goes on."""
    weather = Weather()
    weather.error = Blocked()

    async def run(saga: Saga) -> None:
        await weather.check()

    desk = submitted(run, declares=declares)
    assert desk.state() == "blocked"
    with pytest.raises(Suspended):
        desk.submit("next")
    assert desk.engine.suspended(desk.now).keys() >= set(declares)
    if declares:
        assert desk.engine.suspended(desk.now).keys() == set(declares)
    desk.sleep(1_000)
    assert desk.state() == "blocked"
    weather.error = None
    desk.sleep(200)
    assert desk.state() == "completed"
    assert desk.engine.suspended(desk.now) == {}


@pytest.mark.parametrize("operation", [Operation.CANCEL, Operation.ABORT])
def test_exec_that_waits_can_be_ended(operation: Operation) -> None:
    """A contrary decision does not wait for the weather, and nothing stays suspended."""
    weather = Weather()

    async def run(saga: Saga) -> None:
        await step(saga, "a")
        await weather.check()

    desk = submitted(run)
    weather.error = Blocked()
    desk.ok("a")
    desk.ask(operation)
    if operation is Operation.CANCEL:
        desk.ok("a")
    assert desk.state() == ("compensated" if operation is Operation.CANCEL else "aborted")
    assert desk.engine.suspended(desk.now) == {}


def test_a_step_down_takes_the_suspension_with_it() -> None:
    """Another instance owns the command now, and suspends for itself."""
    weather = Weather()
    weather.error = Blocked()

    async def run(saga: Saga) -> None:
        await weather.check()

    desk = submitted(run)
    desk.engine.close(0)
    assert desk.engine.suspended(desk.now) == {}
