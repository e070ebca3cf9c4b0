"""How a command looks from outside, at each stage of its course."""

from __future__ import annotations

import json

import msgspec
import pytest

from coordinator import Blocked, Retry, Saga
from coordinator.awaitables import Skip
from coordinator.engine import views
from coordinator.engine.explain import explain
from coordinator.model.command import CommandView, Operation
from coordinator.model.ids import CommandId
from coordinator.model.moments import timestamp
from coordinator.model.records import SCHEMA, Failure, Outcome, Registered, raw
from tests.unit.engine.desk import CALM, Desk, fork, sequence, step, submitted


def view(desk: Desk) -> CommandView:
    return views.command_view(desk.command())


def steps(desk: Desk) -> dict[str, tuple[str, int]]:
    """Each step's state and attempts."""
    return {each.name: (each.state.value, each.attempts) for each in view(desk).steps}


def explained(desk: Desk) -> dict[str, object]:
    found = explain(desk.command(), desk.now, owner={"instance": "i"}, slots=(1, 10))
    json.dumps(found)
    return found


def test_times_are_rfc_3339_in_utc_with_milliseconds() -> None:
    """The same spelling everywhere."""
    assert timestamp(0) == "1970-01-01T00:00:00.000Z"
    assert timestamp(1_700_000_000_123.9) == "2023-11-14T22:13:20.123Z"


def test_a_command_on_its_way() -> None:
    """What API.md shows, before the end."""
    desk = submitted(sequence("a", "b"))
    desk.ok("a", {"id": 1})
    seen = view(desk)
    assert (seen.id, seen.type, seen.version, seen.state) == ("c", "T", 1, "running")
    assert (seen.result, seen.error, seen.finished_at, seen.position) == (None, None, None, "0:0")
    assert seen.submitted_at == timestamp(1_000_000)
    assert seen.steps[0].outcome == {"id": 1}
    assert steps(desk) == {"a": ("succeeded", 1), "b": ("running", 1)}


def test_steps_through_their_states() -> None:
    """Delayed, in backoff, failed, undoing, dead letter, undone."""
    desk = submitted(sequence("a", "b", retry=Retry(attempts=2, first="1s", jitter=0)))
    desk.lost("a")
    assert steps(desk) == {"a": ("delayed", 1)}
    desk.sleep(200)
    desk.ok("a")
    desk.no("b")
    assert steps(desk)["b"] == ("running", 1)
    desk.sleep(1_000)
    desk.no("b")
    assert steps(desk) == {"a": ("undoing", 1), "b": ("failed", 2)}
    desk.no("a")
    assert steps(desk)["a"] == ("dead_letter", 1)
    seen = view(desk)
    assert (seen.state, seen.error and seen.error.code, seen.error and seen.error.step) == (
        "dead_letter",
        "declined",
        "b",
    )
    assert seen.steps[0].error is not None
    desk.ask(Operation.RETRY)
    desk.ok("a")
    ended = desk.ended["c"]
    assert ended.state == "compensated"


def test_steps_that_wait_for_their_undo_are_still_succeeded() -> None:
    """One undo at a time: the others stand as they are."""
    desk = submitted(sequence("a", "b", "d"))
    desk.ok("a")
    desk.ok("b")
    desk.no("d")
    assert steps(desk) == {"a": ("succeeded", 1), "b": ("undoing", 1), "d": ("failed", 1)}
    desk.ok("b")
    assert steps(desk)["b"] == ("undone", 1)


def test_a_skipped_step_and_a_planned_one_are_listed() -> None:
    """In the order of the definition, then as they were issued."""

    async def run(saga: Saga) -> None:
        await Skip("left_out", "stock")
        await step(saga, "a")

    desk = submitted(run)
    seen = views.command_view(desk.command(), [("a", "stock"), ("left_out", "stock"), ("later", "payments")])
    assert [(each.name, each.state.value, each.service) for each in seen.steps] == [
        ("a", "running", "stock"),
        ("left_out", "skipped", "stock"),
        ("later", "pending", "payments"),
    ]


def test_poison_shows_its_traceback() -> None:
    """To whoever asks for the command, and in the dead letters."""

    async def run(saga: Saga) -> None:
        raise ValueError("mistake")

    desk = submitted(run)
    error = view(desk).error
    assert error is not None
    assert error.code == "poison"
    assert "ValueError: mistake" in (error.traceback or "")
    (letter,) = views.dead_letters(desk.command())
    assert (letter["command_id"], letter["step"], letter["state"]) == ("c", "", "dead_letter")


def test_a_dead_letter_says_whether_it_is_the_step_or_its_undo() -> None:
    """Since what is requeued differs."""
    desk = submitted(fork("a", "b", give_up_after="100ms"), breaker=CALM)
    desk.lost("a")
    desk.sleep(100)
    (letter,) = views.dead_letters(desk.command())
    assert (letter["step"], letter["service"], letter["undo"], letter["error"]["code"]) == (
        "a",
        "stock",
        False,
        "gave_up",
    )
    desk.ask(Operation.REQUEUE, step="a")
    desk.ok("a")
    desk.no("b")
    desk.no("a")
    (letter,) = views.dead_letters(desk.command())
    assert (letter["step"], letter["undo"], letter["attempts"]) == ("a", True, 1)


@pytest.mark.parametrize(
    ("play", "why", "unblock"),
    [
        ("calling", "calling", "stock must answer"),
        ("delayed", "delayed", "asked again by itself"),
        ("blocked", "blocked", "asked again by itself"),
        ("backoff", "backoff", "tried again by itself"),
        ("given up", "dead_letter", "requeue step a"),
        ("paused", "paused", "resume, cancel or abort"),
    ],
)
def test_why_a_command_is_not_moving(play: str, why: str, unblock: str) -> None:
    """One entry a thing that it waits for, and what would unblock it."""
    desk = submitted(sequence("a", retry=Retry(attempts=2), give_up_after="1s"))
    if play in ("delayed", "given up"):
        desk.lost("a")
    if play == "blocked":
        desk.lost("a", down=True)
    if play == "backoff":
        desk.no("a")
    if play == "given up":
        desk.sleep(500)
        desk.lost("a")
        desk.sleep(600)
        if desk.calls:
            desk.lost("a")
    if play == "paused":
        desk.lost("a")
        desk.ask(Operation.PAUSE)
    found = explained(desk)
    waits = found["waits"]
    assert isinstance(waits, list)
    assert [wait["why"] for wait in waits] == [why]
    assert unblock in waits[0]["unblock"]
    assert why in str(found["summary"])


def test_an_explanation_names_owner_slots_deadline_and_the_next_retry() -> None:
    """All that an operator would ask next."""
    desk = Desk(sequence("a"))
    desk.submit(timeout=60_000)
    desk.lost("a")
    desk.sleep(50)
    found = explained(desk)
    assert (found["owner"], found["slots"]) == ({"instance": "i"}, {"used": 1, "max": 10, "holds_one": True})
    assert (found["for_ms"], found["deadline"]) == (50, timestamp(1_060_000))
    waits = found["waits"]
    assert isinstance(waits, list)
    assert (waits[0]["attempts"], waits[0]["next_retry_at"]) == (1, timestamp(1_000_200))


def test_code_that_waits_is_explained() -> None:
    """Exec raised Blocked: there is no step to blame."""

    async def run(saga: Saga) -> None:
        raise Blocked

    desk = submitted(run)
    waits = explained(desk)["waits"]
    assert isinstance(waits, list)
    assert waits[0]["why"] == "blocked by its code"


def test_history_shows_each_record_with_its_place() -> None:
    """Kind, position, time, and the record's own fields, decoded; nothing that is empty or ours alone."""
    record = Outcome(SCHEMA, b"token", 5, CommandId("c"), "a", "stock", 1, raw({"id": 1}))
    assert views.history_entry(2, 7, record) == {
        "kind": "Outcome",
        "position": "2:7",
        "at": timestamp(5),
        "step": "a",
        "service": "stock",
        "attempt": 1,
        "outcome": {"id": 1},
    }


def test_history_of_every_record_is_plain_json() -> None:
    """Failures with a service's body, and what is raw."""
    desk = submitted(sequence("a", "b"))
    desk.ok("a", {"id": 1})
    desk.no("b")
    desk.no("a")
    desk.ask(Operation.REQUEUE, step="a", input={"x": 1})
    desk.ok("a")
    entries = [views.history_entry(0, offset, record) for offset, record in enumerate(desk.log)]
    assert json.loads(json.dumps(entries)) == entries
    assert [entry["kind"] for entry in entries] == desk.kinds()
    registered = Registered(SCHEMA, b"", 1, "order", 1, raw({"steps": []}), b"x")
    assert views.history_entry(0, 0, registered)["content"] == {"steps": []}


def test_a_failure_of_a_service_shows_its_body_as_a_value() -> None:
    """As the service sent it."""
    shown = views.failure_view(Failure("http_409", "no", 409, raw({"why": "empty"})))
    assert msgspec.to_builtins(shown) == {
        "code": "http_409",
        "message": "no",
        "status": 409,
        "body": {"why": "empty"},
    }
    assert views.failure_view(None) is None
