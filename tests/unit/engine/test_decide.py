"""The course of one command: forward, in doubt, undone, parked; and what exec may do to it."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import msgspec
import pytest

from coordinator import CommandFailed, Retry, Saga, StepFailed, post
from coordinator.errors import IllegalState, InvalidPayload, LimitReached, UnknownStep
from coordinator.model.call import LocalCall, Request
from coordinator.model.command import Operation
from coordinator.model.records import Outcome, Timer, unraw
from tests.unit.engine.desk import CALM, ONE, OUTCOME, REFUSAL, Desk, fork, sequence, step, submitted

# ---------------------------------------------------------------- forward, failure, undo


def test_steps_go_one_after_the_other_and_the_result_is_recorded() -> None:
    """A successor is called when its predecessor's outcome is durable."""
    desk = submitted(sequence("a", "b"))
    assert desk.under_way() == ["a"]
    desk.ok("a", 1)
    assert desk.under_way() == ["b"]
    desk.ok("b", 2)
    assert (desk.state(), desk.result()) == ("completed", [1, 2])
    assert desk.kinds() == ["Submitted", "Outcome", "Outcome", "Finished"]


def test_nothing_is_called_before_its_reason_is_durable() -> None:
    """An answer proposes a record; what follows from it waits until the record comes back."""
    desk = submitted(sequence("a", "b"))
    desk.engine.answer(desk.calls.pop(("c", "a")), OUTCOME, desk.now)
    desk.gather()
    assert desk.under_way() == []
    desk.settle()
    desk.gather()
    assert desk.under_way() == ["b"]


def test_a_refusal_undoes_what_is_recorded_last_first() -> None:
    """One undo at a time, the next when the one before it is recorded."""
    desk = submitted(sequence("a", "b", "d"))
    desk.ok("a")
    desk.ok("b")
    desk.no("d")
    assert (desk.state(), desk.under_way()) == ("compensating", ["~b"])
    desk.ok("b")
    assert desk.under_way() == ["~a"]
    desk.ok("a")
    assert desk.state() == "compensated"
    assert (desk.failure().code, desk.failure().step) == ("declined", "d")


def test_a_failure_with_nothing_recorded_ends_failed() -> None:
    """There was nothing to compensate."""
    desk = submitted(sequence("a"))
    desk.no("a")
    assert desk.state() == "failed"


def test_undo_follows_the_order_of_outcomes_across_branches() -> None:
    """What was recorded last is undone first, whatever branch it belongs to."""
    desk = submitted(fork("a", "b", "d", "e"))
    for name in ("d", "a", "b"):
        desk.ok(name)
    desk.no("e")
    undone = []
    while desk.state() == "compensating":
        (name,) = desk.under_way()
        undone.append(name)
        desk.ok(name[1:])
    assert undone == ["~b", "~a", "~d"]


def test_a_step_without_an_undo_is_passed_over() -> None:
    """It was recorded, so the command ends compensated."""
    desk = submitted(sequence("a", "b", undone=False))
    desk.ok("a")
    desk.no("b")
    assert desk.state() == "compensated"


def test_two_branches_that_fail_at_the_same_time_fail_the_command_once() -> None:
    """Both refusals share an append; the first one is the reason, and there is one end."""
    desk = submitted(fork("a", "b"))
    desk.answer("a", REFUSAL, turn=False)
    desk.answer("b", REFUSAL, turn=False)
    desk.turn()
    assert desk.failure().step == "a"
    assert desk.kinds().count("Finished") == 1


def test_branches_under_way_are_resolved_before_anything_is_undone() -> None:
    """A call that timed out may have taken effect: it is asked until it is known."""
    desk = submitted(fork("a", "b", "d"))
    desk.ok("a")
    desk.no("b")
    desk.lost("d")
    assert desk.under_way() == []
    desk.sleep(200)
    assert desk.under_way() == ["d"]
    desk.ok("d")
    assert desk.under_way() == ["~d"]


def test_a_step_in_doubt_is_asked_at_once_and_not_tried_again() -> None:
    """Its backoff was for a command that still wanted it; a refusal is all that is to be known now."""
    retry = Retry(attempts=5, first="10s", jitter=0)
    desk = submitted(fork("a", "b", retry=retry))
    desk.no("a")
    desk.ask(Operation.CANCEL)
    assert desk.under_way() == ["b", "a"]
    desk.no("a")
    desk.no("b")
    assert desk.state() == "failed"


def test_a_branch_left_behind_by_a_caught_failure_is_undone_before_the_end() -> None:
    """Exec took another way and completed, but nobody wants the effect of the branch that it left."""

    async def run(saga: Saga) -> str:
        try:
            await saga.all(step(saga, "a"), step(saga, "b"))
        except StepFailed:
            await step(saga, "instead")
        return "done"

    desk = submitted(run)
    desk.no("a")
    desk.lost("b")
    desk.ok("instead")
    assert desk.state() == "delayed"
    desk.sleep(200)
    desk.ok("b")
    assert desk.under_way() == ["~b"]
    desk.ok("b")
    assert (desk.state(), desk.result()) == ("completed", "done")


def test_a_branch_left_behind_is_not_tried_again_after_a_refusal() -> None:
    """Attempts are for a step that somebody waits for."""

    async def run(saga: Saga) -> str:
        with suppress(StepFailed):
            await saga.all(step(saga, "a"), step(saga, "b", retry=Retry(attempts=5)))
        return "done"

    desk = submitted(run)
    desk.no("a")
    desk.no("b")
    assert desk.state() == "completed"


def test_a_branch_that_never_ran_is_not_called_to_be_undone() -> None:
    """A failure in the same turn as the issue: nothing can be in doubt."""

    async def fails() -> None:
        raise CommandFailed("not today", "closed")

    async def run(saga: Saga) -> None:
        await saga.all(step(saga, "a"), fails())

    desk = submitted(run)
    assert (desk.state(), desk.failure().code, desk.made) == ("failed", "closed", [])


# ---------------------------------------------------------------- retries and undo policy


@pytest.mark.parametrize(
    ("retry", "delays"),
    [
        (Retry(attempts=4, backoff="fixed", first="100ms", jitter=0), [100, 100, 100]),
        (Retry(attempts=4, backoff="exponential", first="100ms", max="300ms", jitter=0), [100, 200, 300]),
        (Retry(attempts=1), []),
    ],
)
def test_attempts_are_total_calls_and_backoff_is_between_them(retry: Retry, delays: list[int]) -> None:
    """The step's policy says how often a refusal is asked again, and when."""
    desk = submitted(sequence("a", retry=retry))
    desk.no("a")
    for delay in delays:
        assert desk.under_way() == []
        desk.sleep(delay - 1)
        assert desk.under_way() == []
        desk.sleep(1)
        desk.no("a")
    assert desk.state() == "failed"
    assert len(desk.made) == len(delays) + 1


def test_unknown_answers_do_not_count_as_attempts() -> None:
    """Only what was answered counts; the rest is asked until it is known."""
    desk = submitted(sequence("a", retry=Retry(attempts=2, first="50ms", jitter=0)))
    desk.lost("a")
    desk.sleep(200)
    desk.lost("a")
    desk.sleep(200)
    desk.no("a")
    desk.sleep(50)
    desk.no("a")
    assert desk.state() == "failed"


def test_backoff_goes_on_after_a_pause_and_after_a_restart() -> None:
    """The next try is in the log, not in a timer."""
    run = sequence("a", retry=Retry(attempts=3, first="1s", jitter=0))
    desk = submitted(run)
    desk.no("a")
    desk.ask(Operation.PAUSE)
    desk.sleep(5_000)
    assert desk.under_way() == []
    desk.ask(Operation.RESUME)
    assert desk.under_way() == ["a"]
    desk.no("a")
    desk.restart(run)
    assert desk.under_way() == []
    desk.sleep(1_000)
    assert desk.under_way() == ["a"]
    desk.no("a")
    assert desk.state() == "failed"


def test_timeouts_go_out_with_the_call_and_the_undo() -> None:
    """An undo without its own timeout takes its step's."""
    desk = submitted(sequence("a", "b", timeout="2s"))
    assert desk.made[-1].timeout_ms == 2_000
    desk.ok("a")
    desk.no("b")
    assert desk.made[-1].timeout_ms == 2_000
    desk = submitted(sequence("a", "b", undo_timeout="3s"))
    assert desk.made[-1].timeout_ms is None
    desk.ok("a")
    desk.no("b")
    assert desk.made[-1].timeout_ms == 3_000


def test_keys_stay_and_fences_grow() -> None:
    """Every retry has the same key and a higher fence; an undo has a key of its own."""
    desk = submitted(sequence("a", "b"))
    desk.lost("a")
    desk.sleep(200)
    desk.ok("a")
    desk.no("b")
    assert [call.key for call in desk.made] == ["c/a", "c/a", "c/b", "c/a/undo"]
    assert [call.fence for call in desk.made] == ["1.1", "1.2", "1.3", "1.4"]


def test_a_repeated_step_is_called_under_its_own_key() -> None:
    """Twice the same name is two steps."""
    desk = submitted(sequence("charge", "charge"))
    desk.ok("charge")
    desk.ok("charge#2")
    assert [call.key for call in desk.made] == ["c/charge", "c/charge#2"]
    assert desk.state() == "completed"


# ---------------------------------------------------------------- undo that fails


def test_an_undo_that_is_refused_waits_for_a_person_and_requeue_runs_the_undo_again() -> None:
    """It is never skipped; later undos wait behind it."""
    desk = submitted(sequence("a", "b", "d"))
    desk.ok("a")
    desk.ok("b")
    desk.no("d")
    desk.no("b")
    assert (desk.state(), desk.under_way()) == ("dead_letter", [])
    desk.ask(Operation.REQUEUE, step="b", input={"amount": 2})
    assert (desk.under_way(), desk.body("b")) == (["~b"], {"amount": 2})
    desk.ok("b")
    desk.ok("a")
    assert desk.state() == "compensated"


def test_an_undo_has_a_policy_of_its_own() -> None:
    """``undo_retry`` counts total calls of the undo before it is parked."""
    desk = submitted(sequence("a", "b", undo_retry=Retry(attempts=2, first="100ms", jitter=0)))
    desk.ok("a")
    desk.no("b")
    desk.no("a")
    assert desk.state() == "compensating"
    desk.sleep(100)
    desk.no("a")
    assert desk.state() == "dead_letter"
    desk.ask(Operation.RETRY)
    desk.ok("a")
    assert desk.state() == "compensated"


def test_cancel_of_a_parked_undo_undoes_the_rest_and_keeps_the_dead_letter() -> None:
    """`cancel` undoes the rest; the command cannot end while one effect is not accounted for."""
    desk = submitted(sequence("a", "b", "d"))
    desk.ok("a")
    desk.ok("b")
    desk.no("d")
    desk.no("b")
    desk.ask(Operation.CANCEL)
    assert (desk.state(), desk.under_way()) == ("dead_letter", ["~a"])
    desk.ok("a")
    assert desk.state() == "dead_letter"
    desk.ask(Operation.REQUEUE, step="b")
    desk.ok("b")
    assert desk.state() == "compensated"


def test_abort_of_a_parked_undo_ends_the_command() -> None:
    """Somebody took it upon himself."""
    desk = submitted(sequence("a", "b"))
    desk.ok("a")
    desk.no("b")
    desk.no("a")
    desk.ask(Operation.ABORT)
    assert desk.state() == "aborted"


@pytest.mark.parametrize("error", [KeyError("id"), SystemExit(1)])
def test_an_undo_whose_request_cannot_be_made_is_a_dead_letter_with_its_traceback(error: BaseException) -> None:
    """The function of the outcome raised: nothing is called, nothing is skipped, and a mended program goes on."""

    def broken(outcome: Any) -> Request:
        raise error

    desk = submitted(sequence("a", "b", undo=broken))
    desk.ok("a")
    desk.no("b")
    assert desk.state() == "dead_letter"
    failure = desk.command().steps["a"].failure
    assert failure is not None
    assert failure.code == "undo_request"
    assert "in broken" in (failure.traceback or "")
    assert desk.kinds().count("StepFailed") == 2
    desk.restart(sequence("a", "b"))
    assert desk.state() == "dead_letter"
    desk.ask(Operation.RETRY)
    assert desk.under_way() == ["~a"]


def test_an_undo_that_is_no_request_is_a_dead_letter() -> None:
    """A function that forgot to return says so."""
    desk = submitted(sequence("a", "b", undo=lambda outcome: None))
    desk.ok("a")
    desk.no("b")
    assert "is a Request or returns one, not NoneType" in desk.command().steps["a"].failure.message  # type: ignore[union-attr]


def test_an_undo_is_made_from_the_outcome_in_its_type() -> None:
    """The function gets what exec got."""

    class Charge(msgspec.Struct):
        id: str

    desk = submitted(sequence("a", "b", into=Charge, undo=lambda charge: post("payments", f"/refund/{charge.id}")))
    desk.ok("a", {"id": "ch-1"})
    desk.no("b")
    call = desk.calls["c", "a"]
    assert isinstance(call.request, Request)
    assert call.request.path == "/refund/ch-1"


def test_an_async_undo_is_called_with_the_outcome() -> None:
    """It is a step's function like any other, and done by the gateway."""

    async def refund(outcome: Any) -> None: ...

    desk = submitted(sequence("a", "b", undo=refund))
    desk.ok("a", {"id": 1})
    desk.no("b")
    assert desk.calls["c", "a"].request == LocalCall(refund, ({"id": 1},), "stock")


def test_an_outcome_that_exec_cannot_read_is_undone_all_the_same() -> None:
    """The service has done it: it is recorded, and so it is taken back."""

    class Charge(msgspec.Struct):
        id: str

    desk = submitted(sequence("a", into=Charge))
    desk.ok("a", {"id": 5})
    assert (desk.state(), desk.under_way()) == ("compensating", ["~a"])
    desk.ok("a")
    assert (desk.state(), desk.failure().code) == ("compensated", "bad_outcome")


# ---------------------------------------------------------------- patience


def test_a_step_given_up_is_in_doubt_and_nothing_is_undone_until_somebody_decides() -> None:
    """Patience ends while it is delayed; what is recorded stays as it is."""
    desk = submitted(sequence("a", "b", give_up_after="500ms"), breaker=CALM)
    desk.ok("a")
    desk.lost("b")
    desk.sleep(200)
    desk.lost("b")
    desk.sleep(200)
    desk.lost("b")
    desk.sleep(99)
    assert desk.state() == "delayed"
    desk.sleep(1)
    assert (desk.state(), desk.under_way()) == ("dead_letter", [])
    failure = desk.command().steps["b"].failure
    assert failure is not None
    assert failure.code == "gave_up"
    desk.sleep(60_000)
    assert desk.under_way() == []


@pytest.mark.parametrize("operation", [Operation.RETRY, Operation.REQUEUE])
def test_retry_and_requeue_give_a_step_its_whole_patience_again(operation: Operation) -> None:
    """Both go on; requeue may bring another body, under the same key."""
    desk = submitted(sequence("a", give_up_after="300ms"), breaker=CALM)
    desk.lost("a")
    desk.sleep(300)
    desk.lost("a")
    assert desk.state() == "dead_letter"
    desk.sleep(10_000)
    body = {"amount": 1} if operation is Operation.REQUEUE else None
    desk.ask(operation, step="a", input=body)
    assert (desk.under_way(), desk.body("a")) == (["a"], body)
    desk.lost("a")
    desk.sleep(200)
    assert desk.under_way() == ["a"]
    desk.ok("a")
    assert desk.state() == "completed"


def test_cancel_of_a_step_given_up_asks_it_once_more_and_undoes_what_it_finds() -> None:
    """Nothing can be undone before it is known."""
    desk = submitted(sequence("a", "b", give_up_after="100ms"))
    desk.ok("a")
    desk.lost("b")
    desk.sleep(100)
    assert desk.state() == "dead_letter"
    desk.ask(Operation.CANCEL)
    assert desk.under_way() == ["b"]
    desk.ok("b")
    assert desk.under_way() == ["~b"]
    desk.ok("b")
    desk.ok("a")
    assert (desk.state(), desk.failure().code) == ("compensated", "cancelled")


def test_a_failure_beside_a_step_given_up_waits_for_a_decision() -> None:
    """An orphan that is parked keeps everything as it is."""
    desk = submitted(fork("a", "b", "d", give_up_after="100ms"))
    desk.ok("a")
    desk.lost("b")
    desk.sleep(100)
    desk.no("d")
    assert (desk.state(), desk.under_way()) == ("dead_letter", [])
    desk.ask(Operation.RETRY)
    desk.no("b")
    assert desk.under_way() == ["~a"]


def test_other_branches_finish_beside_a_step_given_up() -> None:
    """A dead letter stops its own branch only."""

    async def run(saga: Saga) -> Any:
        return await saga.all(step(saga, "a", give_up_after="100ms"), sequence("b", "d")(saga))

    desk = submitted(run)
    desk.lost("a")
    desk.sleep(100)
    desk.ok("b")
    assert (desk.state(), desk.under_way()) == ("dead_letter", ["d"])


# ---------------------------------------------------------------- deadline


def test_a_deadline_fires_once_and_undoes() -> None:
    """What is under way is resolved first; late is as good as in time."""
    desk = Desk(sequence("a", "b"))
    desk.submit(timeout=1_000)
    desk.ok("a")
    desk.lost("b")
    desk.sleep(5_000)
    assert desk.kinds().count("Timer") == 1
    assert desk.state() == "compensating"
    desk.ok("b")
    desk.ok("b")
    desk.ok("a")
    assert (desk.state(), desk.failure().code) == ("compensated", "deadline_exceeded")


def test_a_deadline_does_not_fire_twice_after_a_step_down() -> None:
    """The timers of the former ownership go with it."""
    desk = Desk(sequence("a"))
    desk.submit(timeout=1_000)
    engine = desk.engine
    engine.close(0)
    for offset, record in enumerate(desk.log):
        engine.apply(0, offset, record)
    desk.calls.clear()
    desk.open()
    desk.sleep(2_000)
    assert sum(isinstance(record, Timer) for record in desk.log) == 1


@pytest.mark.parametrize("operation", [Operation.PAUSE, None])
def test_a_deadline_while_nothing_moves_counts_when_it_moves_again(operation: Operation | None) -> None:
    """A paused or dead-lettered command stays as it is; its way on leads back."""
    desk = Desk(sequence("a", "b", give_up_after="100ms"))
    desk.submit(timeout=1_000)
    desk.ok("a")
    desk.lost("b")
    if operation is not None:
        desk.ask(operation)
    desk.sleep(2_000)
    assert desk.state() == ("paused" if operation else "dead_letter")
    desk.ask(Operation.RESUME if operation else Operation.RETRY)
    desk.no("b")
    desk.ok("a")
    assert (desk.state(), desk.failure().code) == ("compensated", "deadline_exceeded")


def test_a_deadline_of_a_command_that_fails_anyway_changes_nothing() -> None:
    """It is failing already, and for another reason."""
    desk = Desk(sequence("a", "b"))
    desk.submit(timeout=1_000)
    desk.ok("a")
    desk.no("b")
    desk.sleep(2_000)
    assert "Timer" not in desk.kinds()


# ---------------------------------------------------------------- operators


def test_pause_lets_what_is_called_finish_and_calls_nothing_new() -> None:
    """An answer under way is recorded; its successor waits for resume."""
    desk = submitted(sequence("a", "b"))
    desk.ask(Operation.PAUSE)
    desk.ok("a")
    desk.sleep(60_000)
    assert (desk.state(), desk.under_way(), desk.kinds()[-1]) == ("paused", [], "Outcome")
    desk.ask(Operation.RESUME)
    assert desk.under_way() == ["b"]


def test_pause_takes_back_what_is_delayed() -> None:
    """A delayed call is not made while the command is paused, and at once when it is resumed."""
    desk = submitted(sequence("a"))
    desk.lost("a")
    desk.ask(Operation.PAUSE)
    desk.sleep(60_000)
    assert desk.under_way() == []
    assert desk.engine.services["stock"].backlog == 0
    desk.ask(Operation.RESUME)
    assert desk.under_way() == ["a"]


def test_an_unknown_answer_while_paused_is_asked_again_on_resume() -> None:
    """Nothing is lost between the two."""
    desk = submitted(sequence("a"))
    desk.ask(Operation.PAUSE)
    desk.lost("a")
    desk.sleep(1_000)
    desk.ask(Operation.RESUME)
    assert desk.under_way() == ["a"]


def test_cancel_resolves_what_is_under_way_and_undoes_it() -> None:
    """No new step is begun; the answer under way may still be a yes."""
    desk = submitted(sequence("a", "b", "d"))
    desk.ok("a")
    desk.ask(Operation.CANCEL)
    assert (desk.state(), desk.under_way()) == ("compensating", ["b"])
    desk.ok("b")
    assert desk.under_way() == ["~b"]
    desk.ok("b")
    desk.ok("a")
    assert desk.state() == "compensated"
    assert "c/d" not in [call.key for call in desk.made]


def test_cancel_of_a_paused_command_undoes_it() -> None:
    """It needs no resume first."""
    desk = submitted(sequence("a", "b"))
    desk.ok("a")
    desk.ask(Operation.PAUSE)
    desk.ask(Operation.CANCEL)
    desk.no("b")
    desk.ok("a")
    assert desk.state() == "compensated"


def test_a_completion_that_crossed_a_cancel_is_senseless() -> None:
    """The cancel is first in the log, so it stands: all is undone."""
    desk = submitted(sequence("a"))
    desk.ask(Operation.CANCEL, turn=False)
    cancel = desk.gather()
    desk.answer("a", OUTCOME, turn=False)
    desk.outbox = []
    desk.gather()
    desk.outbox = [*desk.outbox, *cancel]  # the outcome lands first, then the cancel
    desk.settle()
    desk.turn()
    assert (desk.state(), desk.under_way()) == ("compensating", ["~a"])


def test_a_cancel_that_crossed_the_end_is_senseless() -> None:
    """Finished is first in the log: nothing after it counts."""
    desk = submitted(sequence("a"))
    desk.answer("a", OUTCOME, turn=False)
    desk.gather()
    desk.settle()
    finished = desk.gather()
    assert [type(record).__name__ for record in finished] == ["Finished"]
    desk.ask(Operation.CANCEL, turn=False)
    desk.outbox = finished + [record for _, record in desk.engine.take(desk.now).records]
    desk.settle()
    desk.turn()
    assert desk.state() == "completed"


def test_a_cancel_between_the_last_outcome_and_the_end_wins() -> None:
    """Finished was on its way, but the cancel was there first: the command does not hang between the two."""
    desk = submitted(sequence("a"))
    desk.answer("a", OUTCOME, turn=False)
    desk.gather()
    desk.settle()
    desk.ask(Operation.CANCEL, turn=False)
    mixed = desk.gather()
    assert [type(record).__name__ for record in mixed] == ["Control", "Finished"]
    desk.settle()
    desk.turn()
    assert (desk.state(), desk.under_way()) == ("compensating", ["~a"])
    desk.ok("a")
    assert desk.state() == "compensated"


def test_abort_ends_at_once_and_late_answers_are_ignored() -> None:
    """Nothing is undone, nothing more is called, and the service's books stay right."""
    desk = submitted(fork("a", "b"))
    desk.ok("a")
    late = desk.calls["c", "b"]
    desk.ask(Operation.ABORT)
    assert (desk.state(), desk.under_way()) == ("aborted", [])
    assert desk.engine.services["stock"].in_flight == 0
    desk.engine.answer(late, OUTCOME, desk.now)
    assert desk.gather() == []
    assert desk.engine.services["stock"].in_flight == 0


def test_retry_of_a_delayed_command_makes_its_call_at_once() -> None:
    """An operator who knows that the service is back need not wait for the interval."""
    desk = submitted(sequence("a"))
    desk.lost("a", retry_after_ms=3_600_000)
    desk.sleep(1_000)
    assert (desk.state(), desk.under_way()) == ("delayed", [])
    desk.ask(Operation.RETRY)
    assert (desk.state(), desk.under_way()) == ("running", ["a"])


def test_retry_of_a_blocked_command_is_the_probe_as_soon_as_there_may_be_one() -> None:
    """The breaker keeps it back until then, and nothing is lost."""
    desk = submitted(sequence("a"))
    desk.lost("a", down=True)
    assert desk.state() == "blocked"
    desk.ask(Operation.RETRY)
    assert (desk.state(), desk.under_way()) == ("blocked", [])
    desk.sleep(1_000)
    assert desk.under_way() == ["a"]


def test_retry_in_backoff_of_an_undo_calls_it_at_once() -> None:
    """Legal while compensating."""
    desk = submitted(sequence("a", "b", undo_retry=Retry(attempts=3, first="1h")))
    desk.ok("a")
    desk.no("b")
    desk.no("a")
    assert desk.under_way() == []
    desk.ask(Operation.RETRY)
    assert desk.under_way() == ["~a"]


def test_what_is_in_effect_already_is_granted_without_a_record() -> None:
    """Asking twice is idempotent."""
    desk = submitted(sequence("a"))
    assert desk.ask(Operation.PAUSE) is True
    assert desk.ask(Operation.PAUSE) is False
    assert desk.ask(Operation.CANCEL) is True
    assert desk.ask(Operation.CANCEL) is False
    assert desk.kinds().count("Control") == 2


def test_what_is_not_legal_is_refused_with_the_states_it_is_legal_in() -> None:
    """A 409 that says when it would be right."""
    desk = submitted(sequence("a"))
    with pytest.raises(IllegalState, match="requeue is not legal while the command is running") as caught:
        desk.ask(Operation.REQUEUE, step="a")
    assert caught.value.extra["legal_states"] == ["dead_letter"]
    with pytest.raises(IllegalState) as caught:
        desk.ask(Operation.RESUME)
    assert caught.value.extra["legal_states"] == ["paused"]


def test_requeue_names_a_dead_letter() -> None:
    """An unknown step, a step that is none, and no step at all are told apart."""
    desk = submitted(fork("a", "b", give_up_after="100ms"))
    desk.ok("b")
    desk.lost("a")
    desk.sleep(100)
    with pytest.raises(UnknownStep, match=r"dead letters: \['a'\]"):
        desk.ask(Operation.REQUEUE, step="x")
    with pytest.raises(IllegalState, match="is no dead letter"):
        desk.ask(Operation.REQUEUE, step="b")
    with pytest.raises(InvalidPayload):
        desk.ask(Operation.REQUEUE)


# ---------------------------------------------------------------- ten thousand steps


def test_a_loop_of_many_steps_stands_after_a_restart_where_it_stood() -> None:
    """The outcomes in the log are all that replay needs."""
    many = 50

    async def run(saga: Saga) -> int:
        return sum([await step(saga, "add", undone=False) for _ in range(many)])

    desk = submitted(run)
    for n in range(many - 1):
        desk.ok("add" if n == 0 else f"add#{n + 1}", n)
    desk.restart(run)
    assert desk.under_way() == [f"add#{many}"]
    assert [unraw(record.outcome) for record in desk.log if isinstance(record, Outcome)] == list(range(many - 1))


def test_a_command_that_is_known_and_one_that_is_too_many_are_told_apart() -> None:
    """Attach before limit, so that a retry finds its command; see the gate's own tests."""
    desk = submitted(sequence("a"), settings=ONE)
    with pytest.raises(LimitReached):
        desk.submit("next")
    desk.ok("a")
    desk.submit("next")
