"""A record that the log cannot take, cut down to one that it can.

Sizes are checked where clients and services hand things in, but msgpack may be longer than JSON was, and an existing
topic may take less than the default.  Such a record must neither stall its partition nor vanish: what can be left out
is left out, and an outcome that cannot be recorded parks its step, in doubt, with the reason.
"""

from __future__ import annotations

from msgspec.structs import replace

from coordinator.model.records import NIL, Failure, Finished, Outcome, Record, StepFailed, Undone


def shrunk(record: Record, size: int, limit: int) -> Record:
    """``record`` (``size`` bytes encoded) as a record of well under ``limit`` bytes that says what was left out."""
    said = f"{size} bytes, where the log takes records of {limit} bytes"
    if isinstance(record, Outcome):
        failure = Failure("outcome_too_large", f"the step succeeded, but its answer makes a record of {said}")
        return StepFailed(
            record.schema,
            record.token,
            record.at,
            record.id,
            record.step,
            record.service,
            record.attempt,
            failure,
            "parked",
        )
    if isinstance(record, Undone):
        return replace(record, outcome=NIL)
    if isinstance(record, StepFailed):
        return replace(record, failure=_brief(record.failure, said))
    if isinstance(record, Finished):
        failure = record.failure or Failure("result_too_large", f"the result makes a record of {said}")
        return replace(record, result=NIL, failure=_brief(failure, said))
    raise AssertionError(f"a {type(record).__name__} of {said} should have been refused at the door")


def _brief(failure: Failure, said: str) -> Failure:
    message = failure.message[:1000] or f"left out: {said}"
    return replace(failure, message=message, body=NIL, traceback=(failure.traceback or "")[-2000:] or None)
