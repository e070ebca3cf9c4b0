"""Stepping `exec`: a feed of recorded answers in, pending steps out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import pytest

from coordinator import CommandFailed, Delayed, Saga, StepFailed, post
from coordinator.awaitables import Gate, Retry, Skip, StepCall
from coordinator.engine import stepper
from coordinator.engine.misuse import MisusedSaga
from coordinator.engine.stepper import Execution
from coordinator.model.call import LocalCall
from coordinator.model.records import Failure, raw

NO = Failure("declined", "no")


def run(exec: Callable[[Saga], Any]) -> Execution:
    return Execution(exec, Saga(id="c", type="T", version=1, attributes={}, now=1))


def step(saga: Saga, name: str, **rest: Any) -> Awaitable[Any]:
    return saga.step(name, post("stock", f"/{name}"), **rest)


async def three(saga: Saga) -> list[Any]:
    return [await step(saga, name) for name in ("a", "b", "c")]


def test_steps_are_pending_one_after_the_other() -> None:
    """A step is issued when the one before it is answered, and not sooner."""
    execution = run(three)
    assert list(execution.pending) == ["a"]
    execution.outcome("a", raw(1), 2)
    assert list(execution.pending) == ["b"]
    execution.outcome("b", raw(2), 3)
    execution.outcome("c", raw(3), 4)
    assert (execution.done, execution.result, execution.pending) == (True, [1, 2, 3], {})


def test_now_is_the_time_of_the_record_that_was_fed() -> None:
    """`saga.now` is the same on replay, and a step's patience counts from there."""
    seen = []

    async def exec(saga: Saga) -> None:
        seen.append(saga.now)
        await step(saga, "a")
        seen.append(saga.now)
        await step(saga, "b")

    execution = run(exec)
    execution.outcome("a", raw(None), 77)
    assert seen == [1, 77]
    assert execution.pending["b"].since == 77


def test_a_repeated_step_has_a_name_of_its_own() -> None:
    """The second charge is ``charge#2``: another key, another effect."""

    async def exec(saga: Saga) -> None:
        for _ in range(3):
            await step(saga, "charge")

    execution = run(exec)
    for name in ("charge", "charge#2", "charge#3"):
        assert list(execution.pending) == [name]
        execution.outcome(name, raw(None), 1)
    assert execution.done


def test_an_author_who_uses_the_very_name_that_we_would_give_gets_another() -> None:
    """No two steps ever share a key, and no branch waits for an answer that another has got."""

    async def exec(saga: Saga) -> list[Any]:
        return await saga.all(step(saga, "charge#2"), step(saga, "charge"), step(saga, "charge"))

    execution = run(exec)
    assert list(execution.pending) == ["charge#2", "charge", "charge#3"]


def test_branches_are_pending_side_by_side_and_join_in_the_order_given() -> None:
    """Answers may come in any order; the results do not depend on it."""

    async def exec(saga: Saga) -> list[Any]:
        return await saga.all(step(saga, "a"), three_named(saga), step(saga, "d"))

    async def three_named(saga: Saga) -> Any:
        await step(saga, "b")
        return await step(saga, "c")

    execution = run(exec)
    assert list(execution.pending) == ["a", "b", "d"]
    for name in ("d", "b", "a", "c"):
        execution.outcome(name, raw(name), 1)
    assert execution.result == ["a", "c", "d"]


def test_an_empty_fork_is_an_empty_list() -> None:
    """`saga.all()` of nothing waits for nothing."""

    async def exec(saga: Saga) -> list[Any]:
        return await saga.all()

    assert run(exec).result == []


def test_a_failure_orphans_what_the_other_branches_had_under_way() -> None:
    """Nobody waits for those steps any more, but they may have taken effect."""

    async def exec(saga: Saga) -> list[Any]:
        return await saga.all(step(saga, "a"), step(saga, "b"), step(saga, "c"))

    execution = run(exec)
    execution.outcome("a", raw(1), 1)
    execution.failed("b", NO, 2)
    assert isinstance(execution.error, StepFailed)
    assert (list(execution.orphans), execution.pending) == (["c"], {})
    execution.outcome("c", raw(1), 3)
    assert not execution.orphans


def test_of_two_failures_at_the_same_time_the_first_in_the_log_is_raised() -> None:
    """The second finds nobody who waits for it, and changes nothing."""

    async def exec(saga: Saga) -> list[Any]:
        return await saga.all(step(saga, "a"), step(saga, "b"))

    execution = run(exec)
    execution.failed("b", NO, 1)
    execution.failed("a", Failure("other"), 1)
    assert isinstance(execution.error, StepFailed)
    assert execution.error.step == "b"
    assert execution.orphans == {}


def test_a_failure_inside_nested_branches_ends_only_the_fork_that_catches_it() -> None:
    """The inner fork's steps are orphaned, the outer fork's go on."""

    async def inner(saga: Saga) -> str:
        try:
            await saga.all(step(saga, "a"), step(saga, "b"))
        except StepFailed:
            return str(await step(saga, "instead"))
        return "whole"

    async def exec(saga: Saga) -> list[Any]:
        return await saga.all(inner(saga), step(saga, "c"))

    execution = run(exec)
    execution.failed("a", NO, 1)
    assert (list(execution.pending), list(execution.orphans)) == (["c", "instead"], ["b"])
    execution.outcome("instead", raw("x"), 2)
    execution.outcome("c", raw("y"), 3)
    assert execution.result == ["x", "y"]


def test_a_step_that_nobody_saw_pending_is_not_in_doubt() -> None:
    """Issued and abandoned within one feed, it cannot have been called, so it will not be called to find out."""

    async def fails(saga: Saga) -> None:
        raise CommandFailed("not today")

    async def exec(saga: Saga) -> list[Any]:
        return await saga.all(step(saga, "a"), fails(saga))

    execution = run(exec)
    assert (execution.pending, execution.orphans) == ({}, {})


def test_but_it_is_in_doubt_where_exec_asks_to_be_run_again() -> None:
    """What raises Delayed now need not have raised it in an earlier run over the same records."""

    async def waits(saga: Saga) -> None:
        raise Delayed

    async def exec(saga: Saga) -> list[Any]:
        return await saga.all(step(saga, "a"), waits(saga))

    assert list(run(exec).orphans) == ["a"]


def test_a_stop_orphans_everything_that_is_pending() -> None:
    """After a contrary decision nothing of exec runs, whatever is still answered."""
    execution = run(three)
    execution.outcome("a", raw(1), 1)
    execution.stop()
    assert list(execution.orphans) == ["b"]
    execution.outcome("b", raw(2), 2)
    assert not execution.pending


def test_an_outcome_is_converted_to_the_type_asked_for() -> None:
    """``into`` gives the step's outcome a shape."""

    class Charge(msgspec.Struct):
        id: str

    async def exec(saga: Saga) -> str:
        charge: Charge = await step(saga, "a", into=Charge)
        return charge.id

    execution = run(exec)
    execution.outcome("a", raw({"id": "ch-1", "more": 1}), 1)
    assert execution.result == "ch-1"


def test_an_outcome_of_another_shape_fails_the_step_with_the_path() -> None:
    """The service has done something that exec cannot read: a failure like any other, and it can be undone."""

    class Charge(msgspec.Struct):
        id: str

    async def exec(saga: Saga) -> None:
        await step(saga, "a", into=Charge)

    execution = run(exec)
    execution.outcome("a", raw({"id": 5}), 1)
    assert isinstance(execution.error, StepFailed)
    assert execution.error.failure.code == "bad_outcome"
    assert "$.id" in execution.error.failure.message


def test_an_error_of_the_types_own_code_is_raised_as_it_is() -> None:
    """A KeyError in ``__post_init__`` is a mistake of the program, and no answer of the service."""

    class Charge(msgspec.Struct):
        id: str

        def __post_init__(self) -> None:
            raise KeyError("mistake")

    async def exec(saga: Saga) -> None:
        await step(saga, "a", into=Charge)

    execution = run(exec)
    execution.outcome("a", raw({"id": "x"}), 1)
    assert isinstance(execution.error, KeyError)


def test_a_gate_holds_a_branch_until_another_opens_it() -> None:
    """Joins of definitions are built from it."""

    async def exec(saga: Saga) -> list[Any]:
        gate = Gate()

        async def first() -> None:
            await step(saga, "a")
            gate.open()

        async def second() -> None:
            await gate
            await step(saga, "b")

        return await saga.all(second(), first())

    execution = run(exec)
    assert list(execution.pending) == ["a"]
    execution.outcome("a", raw(None), 1)
    assert list(execution.pending) == ["b"]


def test_a_skipped_step_is_remembered_and_awaits_to_none() -> None:
    """It shows as skipped, and who comes after it goes on."""

    async def exec(saga: Saga) -> Any:
        return await Skip("a", "stock")  # type: ignore[func-returns-value]

    execution = run(exec)
    assert (execution.skipped, execution.result) == ({"a": "stock"}, None)


# ---------------------------------------------------------------- mistakes


async def awaits_a_timer(saga: Saga) -> None:
    await asyncio.sleep(0)


async def awaits_a_future(saga: Saga) -> None:
    await asyncio.Future(loop=_LOOP)


async def waits_for_nobody(saga: Saga) -> None:
    await Gate()


async def bad_name(saga: Saga) -> None:
    await step(saga, "a\nb")


async def name_of_an_undo(saga: Saga) -> None:
    await step(saga, "a/undo")


async def name_is_no_text(saga: Saga) -> None:
    await saga.step(7, post("stock", "/"))  # type: ignore[call-overload]


async def half_a_character(saga: Saga) -> None:
    await step(saga, "\ud800")


async def bad_timeout(saga: Saga) -> None:
    await step(saga, "a", timeout="5 seconds")


async def bad_patience(saga: Saga) -> None:
    await step(saga, "a", give_up_after="-1s")


async def bad_retry(saga: Saga) -> None:
    await step(saga, "a", retry=Retry(attempts=0))


async def bad_backoff(saga: Saga) -> None:
    await step(saga, "a", retry=Retry(first="soon"))


async def bad_undo_retry(saga: Saga) -> None:
    await step(saga, "a", undo_retry=Retry(backoff="linear"))


async def no_request(saga: Saga) -> None:
    await StepCall(name="a", request="POST /")  # type: ignore[arg-type]


async def no_service(saga: Saga) -> None:
    await StepCall(name="a", request=LocalCall(bad_name, (), ""))


_LOOP = asyncio.new_event_loop()
_LOOP.close()


@pytest.mark.parametrize(
    ("exec", "said"),
    [
        (awaits_a_timer, "exec awaited None; it may only await what the saga gives"),
        (awaits_a_future, "exec awaited <Future pending>"),
        (waits_for_nobody, "a Gate that no branch can open"),
        (bad_name, "a step's name is text"),
        (name_of_an_undo, "does not end in /undo"),
        (name_is_no_text, "a step's name is text"),
        (half_a_character, "a step's name is text"),
        (bad_timeout, "timeout: a duration is a number and a unit"),
        (bad_patience, "give_up_after: a duration"),
        (bad_retry, "retry.attempts is the total number of calls"),
        (bad_backoff, "retry.first: a duration"),
        (bad_undo_retry, "undo_retry.backoff is fixed or exponential"),
        (no_request, "a step is given a Request or an async function"),
        (no_service, "a service's name is text"),
    ],
)
def test_a_mistake_ends_the_run_and_says_what_to_do(exec: Callable[[Saga], Any], said: str) -> None:
    """What cannot be recorded or replayed is found out before anything is called."""
    execution = run(exec)
    assert isinstance(execution.error, MisusedSaga)
    assert said in str(execution.error)
    assert execution.pending == {}


def test_the_traceback_of_a_mistake_shows_its_line() -> None:
    """The mistake is raised where it was made."""
    execution = run(awaits_a_timer)
    assert execution.error is not None
    frames = []
    traceback = execution.error.__traceback__
    while traceback is not None:
        frames.append(traceback.tb_frame.f_code.co_name)
        traceback = traceback.tb_next
    assert "awaits_a_timer" in frames


@pytest.mark.parametrize("mistake", [lambda saga: asyncio.sleep(0), lambda saga: step(saga, "")])
def test_a_loop_that_catches_everything_does_not_spin_for_ever(mistake: Callable[[Saga], Awaitable[Any]]) -> None:
    """A mistake ends the run, whatever exec would make of it."""

    async def exec(saga: Saga) -> None:
        while True:
            try:
                await mistake(saga)
            except Exception:
                continue

    assert isinstance(run(exec).error, MisusedSaga)


def test_a_loop_without_a_step_ends_as_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is awaited is counted."""
    monkeypatch.setattr(stepper, "AWAITS_MAX", 50)

    async def exec(saga: Saga) -> None:
        while True:
            await saga.all()

    assert "loop that does not end" in str(run(exec).error)


def test_more_steps_than_a_command_may_have_are_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is a number, not the memory of the daemon."""
    monkeypatch.setattr(stepper, "STEPS_MAX", 20)

    async def exec(saga: Saga) -> None:
        await saga.all(*(step(saga, f"s{n}") for n in range(21)))

    execution = run(exec)
    assert "at most 20 steps" in str(execution.error)


def not_async(saga: Saga) -> int:
    return 5


async def generator(saga: Saga) -> AsyncIterator[int]:
    yield 5


@pytest.mark.parametrize("exec", [not_async, generator])
def test_exec_that_is_no_coroutine_is_said_to_be_none(exec: Callable[[Saga], Any]) -> None:
    """``def exec`` and ``yield`` inside it are likely slips."""
    with pytest.raises(MisusedSaga, match="async def"):
        run(exec)


def test_exec_that_would_end_the_daemon_is_a_mistake_with_its_line() -> None:
    """SystemExit is an error of the command, not the end of everybody's process."""

    async def exec(saga: Saga) -> None:
        raise SystemExit(3)

    error = run(exec).error
    assert isinstance(error, MisusedSaga)
    assert error.__traceback__ is not None


@pytest.mark.parametrize("wish", [GeneratorExit, asyncio.CancelledError, KeyboardInterrupt])
def test_other_exceptions_that_no_handler_expects_end_only_the_run(wish: type[BaseException]) -> None:
    """Whatever exec raises stays inside."""

    async def exec(saga: Saga) -> None:
        raise wish

    assert run(exec).error is not None


def test_a_branch_that_does_harm_while_it_is_closed_is_closed_all_the_same() -> None:
    """``finally`` may await, raise or exit; nobody is left to tell."""

    async def awaits(saga: Saga) -> None:
        try:
            await step(saga, "a")
        finally:
            await step(saga, "too late")

    async def exits(saga: Saga) -> None:
        try:
            await step(saga, "b")
        finally:
            raise SystemExit

    async def exec(saga: Saga) -> None:
        await saga.all(awaits(saga), exits(saga))

    execution = run(exec)
    execution.stop()
    assert set(execution.orphans) == {"a", "b"}


def test_an_answer_of_a_step_that_exec_does_not_issue_any_more_is_a_mistake() -> None:
    """The code was changed under a command that is under way: going on would forget an effect."""
    execution = run(three)
    execution.outcome("z", raw(1), 1)
    assert isinstance(execution.error, MisusedSaga)
    assert "step 'z'" in str(execution.error)
    assert list(execution.orphans) == ["a"]
