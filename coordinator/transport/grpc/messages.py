"""Between the model's structs and protobuf's messages: plain functions, no decisions."""

from __future__ import annotations

from typing import Any

import msgspec

from coordinator.errors import CoordinatorError, InvalidPayload
from coordinator.model.command import CommandView, FailureView, StepView, Submission
from coordinator.transport import base
from coordinator.transport.json_input import decode
from coordinator.transport.pb import coordinator_pb2 as pb

_encode = msgspec.json.Encoder().encode
_any = msgspec.json.Decoder(Any)
_object = msgspec.json.Decoder(dict[str, Any])


def to_json(value: Any) -> bytes:
    """``value`` for a ``*_json`` field: empty for None."""
    return b"" if value is None else _encode(value)


def from_json(text: bytes, path: str) -> Any:
    """The value of a ``*_json`` field; raises Malformed, InvalidPayload."""
    return decode(_any, text, path) if text else None


def object_from_json(text: bytes, path: str) -> dict[str, Any]:
    """A ``*_json`` field that must be an object."""
    if not text:
        raise InvalidPayload.at(path, "required: a JSON object")
    return decode(_object, text, path)


def submission(message: pb.Submission) -> Submission:
    """What a client submits; empty fields are absent ones."""
    return Submission(
        id=message.id or None,
        type=message.type or None,
        version=message.version or None,
        definition=object_from_json(message.definition_json, "$.definition") if message.definition_json else None,
        payload=from_json(message.payload_json, "$.payload"),
        priority=message.priority,
        timeout=message.timeout or None,
        attributes={key: _attribute(key, value) for key, value in message.attributes.items()},
        admit_within=message.admit_within or None,
        delay=message.delay or None,
    )


def _attribute(key: str, value: pb.Attribute) -> str | int | float | bool:
    match value.WhichOneof("value"):
        case "text":
            return value.text
        case "whole":
            return value.whole
        case "number":
            if value.number != value.number or value.number in (float("inf"), float("-inf")):
                raise InvalidPayload.at(f"$.attributes.{key}", "not a finite number")
            return value.number
        case "flag":
            return value.flag
        case _:
            raise InvalidPayload.at(f"$.attributes.{key}", "one of text, whole, number, flag")


def command(view: CommandView) -> pb.Command:
    return pb.Command(
        id=view.id,
        type=view.type,
        version=view.version,
        state=view.state.value,
        result_json=to_json(view.result),
        error=_failure(view.error),
        steps=[_step(step) for step in view.steps],
        waiting_for=view.waiting_for,
        attributes_json=to_json(view.attributes),
        submitted_at=view.submitted_at,
        finished_at=view.finished_at or "",
        partition=view.partition,
        position=view.position,
        payload_json=to_json(view.payload),
        priority=view.priority,
        reason=view.reason or "",
        revision=view.revision,
    )


def _step(step: StepView) -> pb.Step:
    return pb.Step(
        name=step.name,
        service=step.service,
        state=step.state.value,
        attempts=step.attempts,
        outcome_json=to_json(step.outcome),
        error=_failure(step.error),
    )


def _failure(failure: FailureView | None) -> pb.Failure | None:
    if failure is None:
        return None
    return pb.Failure(
        code=failure.code,
        message=failure.message,
        status=failure.status or 0,
        body_json=to_json(failure.body),
        traceback=failure.traceback or "",
        step=failure.step or "",
    )


def event(happened: base.Event) -> pb.Event:
    return pb.Event(
        kind=happened.kind,
        id=happened.id,
        position=happened.position,
        state=happened.state,
        record_json=to_json(happened.record),
        command=command(happened.view) if happened.view else None,
        error=error(happened.error) if happened.error else None,
        attached=happened.attached,
    )


def error(told: CoordinatorError) -> pb.Error:
    return pb.Error(
        code=told.code,
        detail=told.detail,
        retryable=told.retryable,
        retry_after_ms=told.retry_after_ms or 0,
        extra_json=to_json(told.extra or None),
    )


def outcome(item: base.OutcomeItem) -> pb.OutcomeItem:
    return pb.OutcomeItem(
        position=item.position,
        service=item.service,
        command_id=item.command_id,
        type=item.type,
        step=item.step,
        outcome_json=to_json(item.outcome),
        at=item.at,
    )
