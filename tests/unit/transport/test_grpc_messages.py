"""Between structs and protobuf: nothing is lost, and errors fit into metadata."""

from __future__ import annotations

import msgspec
import pytest

from coordinator.errors import CoordinatorError, Forbidden, InvalidPayload, LimitReached, Malformed, tree
from coordinator.model.command import CommandView, FailureView, State, StepState, StepView, Submission
from coordinator.transport.base import Event
from coordinator.transport.grpc import messages
from coordinator.transport.grpc.calls import ERROR_BYTES_MAX, metadata
from coordinator.transport.pb import coordinator_pb2 as pb

VIEW = CommandView(
    id="c-1",
    type="order",
    version=2,
    state=State.COMPENSATED,
    result={"big": (1 << 64) - 1},
    error=FailureView(code="declined", message="no", status=409, body=[1], step="charge"),
    steps=[StepView(name="charge", service="payments", state=StepState.FAILED, attempts=2, outcome=None)],
    waiting_for=["otp"],
    attributes={"n": 1},
    submitted_at="2026-01-01T00:00:00.000Z",
    finished_at=None,
    partition=3,
    position="3:7",
    payload={"a": None},
    priority=-1,
    revision=2,
)


def test_a_submission_comes_through_whole() -> None:
    """Empty fields are absent ones, attributes keep their types, JSON its numbers."""
    message = pb.Submission(
        id="c-1",
        type="order",
        payload_json=b'{"n": 9007199254740993}',
        attributes={"a": pb.Attribute(text="x"), "b": pb.Attribute(whole=1), "c": pb.Attribute(flag=False)},
        timeout="30s",
        delay="1h",
    )
    assert messages.submission(message) == Submission(
        id="c-1",
        type="order",
        payload={"n": 9007199254740993},
        attributes={"a": "x", "b": 1, "c": False},
        timeout="30s",
        delay="1h",
    )
    assert messages.submission(pb.Submission()) == Submission()


@pytest.mark.parametrize(
    ("message", "path"),
    [
        (pb.Submission(payload_json=b'{"a": 99999999999999999999}'), "$.payload.a"),
        (pb.Submission(definition_json=b"[]"), "$.definition"),
        (pb.Submission(attributes={"a": pb.Attribute()}), "$.attributes.a"),
        (pb.Submission(attributes={"a": pb.Attribute(number=float("nan"))}), "$.attributes.a"),
    ],
)
def test_a_wrong_submission_names_the_place(message: pb.Submission, path: str) -> None:
    """The same paths as over HTTP."""
    with pytest.raises(InvalidPayload) as raised:
        messages.submission(message)
    assert raised.value.extra["faults"][0]["path"] == path


def test_a_payload_that_is_no_json_is_malformed() -> None:
    """Depth is limited here too."""
    for text in (b"{", b"[" * 1000 + b"]" * 1000, b"NaN"):
        with pytest.raises(Malformed):
            messages.submission(pb.Submission(payload_json=text))


def test_a_command_is_shown_whole() -> None:
    """64-bit numbers survive, since JSON stays text."""
    shown = messages.command(VIEW)
    assert msgspec.json.decode(shown.result_json) == {"big": (1 << 64) - 1}
    assert (shown.state, shown.error.code, shown.error.status, shown.finished_at) == (
        "compensated",
        "declined",
        409,
        "",
    )
    assert (shown.steps[0].state, shown.steps[0].outcome_json, shown.priority) == ("failed", b"", -1)
    assert (list(shown.waiting_for), shown.revision) == (["otp"], 2)
    event = messages.event(Event("final", "c-1", "3:7", "compensated", view=VIEW))
    assert event.command == shown


def test_an_answer_to_the_wrong_person_is_permission_denied() -> None:
    """With the roles that may, as every transport tells it."""
    refused = Forbidden("approve needs the role manager", roles=["manager"])
    told = pb.Error.FromString(bytes(dict(metadata(refused))["coordinator-error-bin"]))  # type: ignore[arg-type]
    assert (refused.grpc, told.code, told.retryable) == ("PERMISSION_DENIED", "forbidden", False)
    assert msgspec.json.decode(told.extra_json) == {"roles": ["manager"]}


@pytest.mark.parametrize("error", tree().values(), ids=lambda error: error.code)
def test_every_error_of_the_tree_fits_into_metadata(error: type[CoordinatorError]) -> None:
    """Its code in plain, all of it in coordinator-error-bin."""
    pairs = dict(metadata(error("why", retry_after_ms=5)))
    told = pb.Error.FromString(bytes(pairs["coordinator-error-bin"]))  # type: ignore[arg-type]
    assert pairs["coordinator-code"] == told.code == error.code
    assert (told.detail, told.retryable, told.retry_after_ms) == ("why", error.retryable, 5)
    assert pairs["retry-after-ms"] == "5"
    assert "retry-after-ms" not in dict(metadata(LimitReached("full")))


def test_an_error_of_a_thousand_faults_is_cut_to_what_clients_take() -> None:
    """The first faults say enough."""
    error = InvalidPayload.all([(f"$.payload.field_{n}", "wrong " * 20) for n in range(1000)])
    told = bytes(dict(metadata(error))["coordinator-error-bin"])  # type: ignore[arg-type]
    assert len(told) <= ERROR_BYTES_MAX
    faults = msgspec.json.decode(pb.Error.FromString(told).extra_json)["faults"]
    assert [fault["path"] for fault in faults] == [f"$.payload.field_{n}" for n in range(5)]
