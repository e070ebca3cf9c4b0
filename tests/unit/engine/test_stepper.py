"""Stepping `exec`: a feed of recorded answers in, pending steps out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import pytest

from coordinator import CommandFailed, Delayed, Saga, StepFailed, post
from coordinator.awaitables import Discard, Ended, Gate, Group, Retry, Skip, Start, StepCall, Unwound, Wait
from coordinator.engine import stepper
from coordinator.engine.misuse import MisusedSaga
from coordinator.engine.stepper import Execution
from coordinator.model.call import LocalCall
from coordinator.model.ids import CommandId
from coordinator.model.records import SCHEMA, Failure, Signal, raw
from coordinator.saga import Rejected

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


# ---------------------------------------------------------------- what comes from outside


def datum(value: Any, at: int, name: str = "otp", signal_id: str = "") -> Signal:
    return Signal(SCHEMA, b"", at, CommandId("c"), name, raw(value), signal_id)


def decision(step: str, at: int, *, approve: bool, by: str = "ann") -> Signal:
    value = raw({"approve": approve, "comment": "so"})
    return Signal(SCHEMA, b"", at, CommandId("c"), step, value, by=by, channel="decision")


def test_data_that_came_before_it_is_waited_for_is_there_at_once() -> None:
    """Kept by name, in the order in which it came."""

    async def exec(saga: Saga) -> list[Any]:
        await step(saga, "a")
        return [await saga.receive("otp"), await saga.receive("otp")]

    execution = run(exec)
    execution.signal(datum(1, 2))
    execution.signal(datum(2, 3))
    assert list(execution.pending) == ["a"]
    execution.outcome("a", raw(None), 4)
    assert execution.result == [1, 2]
    assert list(execution.waited) == ["otp", "otp#2"]


def test_of_two_who_wait_for_the_same_the_first_gets_the_first() -> None:
    """First come, first served."""

    async def exec(saga: Saga) -> list[Any]:
        return await saga.all(saga.receive("otp"), saga.receive("papers"), saga.receive("otp"))

    execution = run(exec)
    for value in (1, 2):
        execution.signal(datum(value, 2))
    assert list(execution.waits) == ["papers"]
    execution.signal(datum(9, 3, "papers"))
    assert execution.result == [1, 9, 2]


def test_the_same_datum_is_redundant_unless_somebody_waits_for_another() -> None:
    """Which a client that asks twice is told without a record."""

    async def exec(saga: Saga) -> None:
        await step(saga, "a")
        await saga.receive("otp")

    execution = run(exec)
    execution.signal(datum(1, 2))
    assert execution.redundant(datum(1, 3))
    assert not execution.redundant(datum(1, 3, signal_id="another"))
    assert not execution.redundant(datum(2, 3))


def test_data_of_the_wrong_shape_fails_its_step_with_the_path() -> None:
    """As an outcome does."""

    async def exec(saga: Saga) -> Any:
        return await saga.receive("otp", into=int)

    execution = run(exec)
    execution.signal(datum("no number", 2))
    assert isinstance(execution.error, StepFailed)
    assert execution.error.failure.code == "bad_outcome"


def test_a_decision_counts_only_while_it_is_asked_for() -> None:
    """One that came before is nobody's, one that came after is the second."""

    async def exec(saga: Saga) -> Any:
        await step(saga, "a")
        decision = await saga.decision("approve")
        await step(saga, "b")
        return decision.by

    execution = run(exec)
    execution.signal(decision("approve", 2, approve=True, by="too early"))
    execution.outcome("a", raw(None), 3)
    assert list(execution.waits) == ["approve"]
    execution.signal(decision("approve", 4, approve=True))
    execution.signal(decision("approve", 5, approve=False, by="too late"))
    execution.outcome("b", raw(None), 6)
    assert execution.result == "ann"


def test_two_decisions_are_addressed_by_their_names() -> None:
    """Side by side, and in any order; the second round of one has a name of its own."""

    async def exec(saga: Saga) -> list[bool]:
        asked = (saga.decision("price"), saga.decision("risk"), saga.decision("price", rejected="return"))
        return [each.approve for each in await saga.all(*asked)]

    execution = run(exec)
    assert list(execution.waits) == ["price", "risk", "price#2"]
    for name, approve in (("price#2", False), ("risk", True), ("price", True)):
        execution.signal(decision(name, 2, approve=approve))
    assert execution.result == [True, True, False]


def test_a_rejection_is_raised_with_who_and_why() -> None:
    """A StepFailed like any other, for those who catch it."""

    async def exec(saga: Saga) -> Any:
        try:
            await saga.decision("approve")
        except Rejected as rejected:
            return [rejected.decision.by, rejected.decision.comment, rejected.failure.code]

    execution = run(exec)
    execution.signal(decision("approve", 2, approve=False))
    assert execution.result == ["ann", "so", "rejected"]


@pytest.mark.parametrize(
    ("on_timeout", "ends"),
    [("approve", True), ("reject", "rejected"), ("fail", "timeout")],
)
def test_time_decides_as_declared(on_timeout: Any, ends: Any) -> None:
    """Nobody has decided in time: approved, rejected or failed."""

    async def exec(saga: Saga) -> Any:
        try:
            return (await saga.decision("approve", timeout="1s", on_timeout=on_timeout)).approve
        except StepFailed as failed:
            return failed.failure.code

    execution = run(exec)
    execution.timer("approve", 1_001)
    assert execution.result == ends


def test_a_time_that_comes_after_the_answer_changes_nothing() -> None:
    """It crossed it on its way to the log; so does the answer that comes after the time."""

    async def exec(saga: Saga) -> list[Any]:
        return [await saga.receive("otp", timeout="1s"), await saga.receive("otp", step="again")]

    execution = run(exec)
    execution.signal(datum(1, 2))
    execution.timer("otp", 1_001)
    assert list(execution.waits) == ["again"]
    execution.signal(datum(2, 1_002))
    assert execution.result == [1, 2]


def test_a_steps_deadline_fails_it_and_leaves_it_in_doubt() -> None:
    """Exec goes on; what the step turns out to have done is not wanted any more."""

    async def exec(saga: Saga) -> Any:
        try:
            await step(saga, "slow", undo=post("stock", "/undo"), deadline="1s")
        except StepFailed as failed:
            await step(saga, "b")
            return failed.failure.code

    execution = run(exec)
    execution.timer("slow", 1_001)
    assert list(execution.orphans) == ["slow"]
    assert list(execution.pending) == ["b"]
    execution.outcome("slow", raw(1), 1_002)
    assert (list(execution.orphans), list(execution.unwanted)) == ([], ["slow"])
    execution.undone("slow", 1_003)
    execution.outcome("b", raw(None), 1_004)
    assert (execution.result, list(execution.unwanted)) == ("deadline_exceeded", [])


def test_a_time_of_what_exec_never_issued_is_a_mistake() -> None:
    """The log knows a wait that the code does not: it has changed."""
    execution = run(three)
    execution.timer("nap", 2)
    assert isinstance(execution.error, MisusedSaga)


# ---------------------------------------------------------------- any and savepoint


def undoable(saga: Saga, name: str) -> Awaitable[Any]:
    return step(saga, name, undo=post("stock", f"/{name}/undo"))


async def pair(saga: Saga, first: str, second: str) -> Any:
    await undoable(saga, first)
    return await undoable(saga, second)


def test_the_first_that_succeeds_is_the_result_and_the_others_are_undone() -> None:
    """What a loser has done is unwanted, what it has under way in doubt, what it waits for dropped."""

    async def exec(saga: Saga) -> Any:
        won = await saga.any(pair(saga, "a", "b"), undoable(saga, "c"), saga.receive("otp"))
        return [won, await step(saga, "after")]

    execution = run(exec)
    execution.outcome("a", raw(1), 2)
    execution.outcome("c", raw(3), 3)
    assert list(execution.unwanted) == ["a"]
    assert list(execution.orphans) == ["b"]
    assert execution.waits == {}
    assert list(execution.pending) == ["after"]
    execution.outcome("b", raw(2), 4)
    assert list(execution.unwanted) == ["a", "b"]
    execution.outcome("after", raw(9), 5)
    assert execution.result == [3, 9]


def test_losers_that_are_kept_stand() -> None:
    """Also those whose outcome comes later."""

    async def exec(saga: Saga) -> Any:
        return await saga.any(pair(saga, "a", "b"), undoable(saga, "c"), losers="keep")

    execution = run(exec)
    execution.outcome("a", raw(1), 2)
    execution.outcome("c", raw(3), 3)
    execution.outcome("b", raw(2), 4)
    assert (execution.result, list(execution.unwanted), list(execution.orphans)) == (3, [], [])


def test_a_failure_alone_decides_nothing_and_all_together_are_the_first() -> None:
    """Neither continues nor fails while another may succeed."""

    async def exec(saga: Saga) -> Any:
        return await saga.any(step(saga, "a"), step(saga, "b"))

    execution = run(exec)
    execution.failed("b", NO, 2)
    assert not execution.done
    assert list(execution.pending) == ["a"]
    execution.failed("a", NO, 3)
    assert isinstance(execution.error, StepFailed)
    assert execution.error.step == "b"


@pytest.mark.parametrize("raised", [Delayed("later"), ZeroDivisionError("a mistake")])
def test_what_is_no_failure_in_a_branch_is_raised_as_it_is(raised: Exception) -> None:
    """To be run again later, or a mistake of the author: neither is a branch that has lost."""

    async def branch(saga: Saga) -> None:
        await step(saga, "b")
        raise raised

    async def exec(saga: Saga) -> Any:
        return await saga.any(step(saga, "a"), branch(saga))

    execution = run(exec)
    execution.outcome("b", raw(None), 2)
    assert execution.error is raised
    assert list(execution.orphans) == ["a"]


def test_a_savepoint_goes_back_to_its_beginning_and_no_further() -> None:
    """What its body did is unwanted, and when all of it is undone the body runs again, under new names."""

    async def exec(saga: Saga) -> Any:
        await undoable(saga, "before")
        return await saga.savepoint("mark", lambda: pair(saga, "a", "b"), attempts=1)

    execution = run(exec)
    execution.outcome("before", raw(0), 2)
    execution.outcome("a", raw(1), 3)
    execution.failed("b", NO, 4)
    assert list(execution.unwanted) == ["a"]
    assert execution.pending == {}
    execution.undone("a", 5)
    assert list(execution.pending) == ["a#2"]
    execution.outcome("a#2", raw(1), 6)
    execution.outcome("b#2", raw(2), 7)
    assert (execution.result, list(execution.unwanted)) == (2, [])


def test_it_waits_for_what_is_in_doubt_before_it_goes_back() -> None:
    """A branch of the body that is under way is resolved first, and undone if it was done."""

    async def exec(saga: Saga) -> Any:
        return await saga.savepoint("mark", lambda: saga.all(undoable(saga, "a"), undoable(saga, "b")))

    execution = run(exec)
    execution.failed("a", NO, 2)
    assert list(execution.orphans) == ["b"]
    assert execution.pending == {}
    execution.outcome("b", raw(1), 3)
    assert list(execution.unwanted) == ["b"]
    execution.undone("b", 4)
    assert list(execution.pending) == ["a#2", "b#2"]


def test_tries_are_bounded_and_then_the_failure_is_raised() -> None:
    """``attempts`` more than the first; what is before the savepoint is the failure's to undo."""

    async def exec(saga: Saga) -> Any:
        return await saga.savepoint("mark", lambda: step(saga, "a"), attempts=2)

    execution = run(exec)
    for name in ("a", "a#2", "a#3"):
        assert list(execution.pending) == [name]
        execution.failed(name, NO, 2)
    assert isinstance(execution.error, StepFailed)


def test_a_savepoint_that_holds_goes_on_when_it_is_released() -> None:
    """Not before, and not by the release of something else."""

    async def exec(saga: Saga) -> Any:
        return await saga.savepoint("mark", lambda: step(saga, "a"), then="dead_letter")

    execution = run(exec)
    execution.failed("a", NO, 2)
    assert list(execution.holds) == ["savepoint:mark"]
    assert execution.holds["savepoint:mark"].call.failure.step == "a"
    execution.released("savepoint:other", 3)
    assert execution.pending == {}
    execution.released("savepoint:mark", 4)
    assert list(execution.pending) == ["a#2"]


def test_a_savepoint_around_a_join_undoes_what_the_losers_have_kept() -> None:
    """What was let stand within it is within it."""

    async def body(saga: Saga) -> Any:
        await saga.any(undoable(saga, "a"), undoable(saga, "b"), losers="keep")
        return await step(saga, "c")

    async def exec(saga: Saga) -> Any:
        return await saga.savepoint("mark", lambda: body(saga))

    execution = run(exec)
    execution.outcome("a", raw(1), 2)
    execution.outcome("b", raw(2), 3)
    assert execution.unwanted == {}
    execution.failed("c", NO, 4)
    assert sorted(execution.unwanted) == ["a", "b"]


def test_a_stop_drops_waits_and_holds_and_orphans_steps() -> None:
    """Nobody outside can answer any more; what may have taken effect is in doubt."""

    async def exec(saga: Saga) -> Any:
        return await saga.all(saga.receive("otp"), saga.sleep("1s"), step(saga, "a"))

    execution = run(exec)
    execution.stop()
    assert (execution.waits, list(execution.orphans)) == ({}, ["a"])
    execution.signal(datum(1, 3))
    execution.timer("sleep", 4)
    assert execution.done


# ---------------------------------------------------------------- branches one by one


def test_a_listener_keeps_nobody_waiting() -> None:
    """It runs when its datum comes; when all others have ended it ends too."""
    heard: list[Any] = []

    async def listen(saga: Saga) -> None:
        heard.append(await Wait(name="hint", kind="data", channel="hint", listens=True))
        await Wait(name="hint", kind="data", channel="hint", listens=True)

    async def exec(saga: Saga) -> str:
        group = Group()
        await Start(group, listen(saga), listens=True)
        await Start(group, three(saga))
        await Ended(group)
        return "over"

    execution = run(exec)
    assert execution.waiting == []
    execution.signal(datum(5, 2, "hint"))
    for name in ("a", "b", "c"):
        execution.outcome(name, raw(name), 3)
    assert (execution.result, heard, execution.waits) == ("over", [5], {})


def test_a_group_ends_with_its_first_error() -> None:
    """Raised where it is waited for; the others have ended, and what they had under way is in doubt."""

    async def exec(saga: Saga) -> Any:
        group = Group()
        await Start(group, pair(saga, "a", "b"))
        await Start(group, pair(saga, "c", "d"))
        try:
            await Ended(group)
        except StepFailed as failed:
            return failed.step

    execution = run(exec)
    execution.failed("c", NO, 2)
    assert (execution.result, list(execution.orphans)) == ("c", ["a"])


def test_what_is_discarded_twice_is_undone_once() -> None:
    """Nothing happens to a branch twice."""

    async def exec(saga: Saga) -> Any:
        group = Group()
        branch = await Start(group, _only(saga, "a"))
        await Ended(group)
        await Discard((branch,))
        await step(saga, "b")
        await Unwound((branch,))
        return branch.done

    execution = run(exec)
    execution.outcome("a", raw(1), 2)
    assert list(execution.unwanted) == ["a"]
    execution.undone("a", 3)
    execution.outcome("b", raw(2), 4)
    assert (execution.result, execution.unwanted) == (True, {})


async def _only(saga: Saga, name: str) -> Any:
    return await undoable(saga, name)


def test_branches_end_with_the_one_that_began_them() -> None:
    """Who returns without waiting for them leaves nobody running behind."""

    async def exec(saga: Saga) -> str:
        await Start(Group(), three(saga))
        await step(saga, "z")
        return "over"

    execution = run(exec)
    execution.outcome("z", raw(1), 2)
    assert (execution.result, execution.pending, list(execution.orphans)) == ("over", {}, ["a"])


def test_branches_that_are_given_up_are_closed_in_one_order() -> None:
    """What they do in ``finally`` may lead exec another way: the last begun is the first to be closed, on each run."""

    def course() -> list[str]:
        closed: list[str] = []

        async def branch(saga: Saga, name: str) -> None:
            try:
                await step(saga, name)
            finally:
                closed.append(name)

        async def exec(saga: Saga) -> None:
            await saga.all(*(branch(saga, str(number)) for number in range(50)), step(saga, "last"))

        run(exec).failed("last", NO, 2)
        return closed

    assert course() == [str(number) for number in reversed(range(50))]
