"""What a command's code may not do, found out before it does harm.

A step's name and service become part of records, keys and headers: a value that can be written but not read again
would stop every later replay, for all commands of the partition.  Its durations and its policy are needed when the
answer is there, and then it is too late to complain.  So a step is checked the moment it is issued, and the mistake is
raised where it was made, inside ``exec``: the traceback of the dead letter shows the line.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

import msgspec

from coordinator.awaitables import Hold, Retry, StepCall, Wait
from coordinator.model.call import LocalCall, Request
from coordinator.model.durations import parse_duration

STEPS_MAX: Final = 10_000  # of one command: a loop without end is a mistake of its author
AWAITS_MAX: Final = 100_000  # of one run of exec, whatever it awaits

_NAME = re.compile(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029]{1,200}")


class MisusedSaga(Exception):
    """``exec`` did something that cannot be recorded or replayed; the text says what, and what to do instead."""


def check(call: StepCall | Wait | Hold) -> None:
    """Raises MisusedSaga with a sentence that names the step and the fault."""
    try:
        _check_name(call.name, "a step's name")
        if call.name.endswith("/undo"):
            raise ValueError("a step's name does not end in /undo, which is the key of an undo")
        if type(call) is StepCall:
            _check_call(call)
        elif type(call) is Wait:
            _check_wait(call)
    except ValueError as error:
        raise MisusedSaga(f"step {call.name!r}: {error}") from None


def _check_wait(wait: Wait) -> None:
    if wait.kind == "data":
        _check_name(wait.channel, "the name of data")
    if wait.timeout is not None:
        _check_duration("duration" if wait.kind == "sleep" else "timeout", wait.timeout)
    elif wait.kind == "sleep":
        raise ValueError("a sleep has a duration")
    for role in wait.roles:
        _check_name(role, "a role")
    if wait.kind == "decision":
        _check_input(wait.input)


def _check_input(value: object) -> None:
    """What a person is shown has to be JSON: it is looked at while nothing can be done about it."""
    try:
        msgspec.json.encode(value)
    except Exception as error:
        raise ValueError(f"the input of a decision is JSON: {error}") from None


def _check_call(call: StepCall) -> None:
    request = call.request
    if not isinstance(request, (Request, LocalCall)):
        raise ValueError(f"a step is given a Request or an async function, not {type(request).__name__}")
    _check_name(request.service, "a service's name")
    for field in ("timeout", "undo_timeout", "give_up_after", "deadline"):
        duration = getattr(call, field)
        if duration is not None:
            _check_duration(field, duration)
    for field in ("retry", "undo_retry"):
        retry = getattr(call, field)
        if retry is not None:
            _check_retry(field, retry)


@lru_cache(4096)
def _fits(name: str) -> bool:
    """Names recur: a look-up is cheaper than the pattern, three times a step."""
    return _NAME.fullmatch(name) is not None


def _check_name(name: object, what: str) -> None:
    if not isinstance(name, str) or not _fits(name):
        raise ValueError(f"{what} is text of 1 to 200 characters without control characters, not {name!r}"[:400])


def _check_duration(field: str, duration: object) -> None:
    try:
        parse_duration(duration)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{field}: {error}") from None


def _check_retry(field: str, retry: object) -> None:
    if not isinstance(retry, Retry):
        raise ValueError(f"{field} is a Retry, not {type(retry).__name__}")
    if not isinstance(retry.attempts, int) or retry.attempts < 1:
        raise ValueError(f"{field}.attempts is the total number of calls, 1 or more, not {retry.attempts!r}")
    if retry.backoff not in ("fixed", "exponential"):
        raise ValueError(f"{field}.backoff is fixed or exponential, not {retry.backoff!r}")
    if not isinstance(retry.jitter, (int, float)) or not 0 <= retry.jitter <= 1:
        raise ValueError(f"{field}.jitter is a part of the delay, 0 to 1, not {retry.jitter!r}")
    _check_duration(f"{field}.first", retry.first)
    _check_duration(f"{field}.max", retry.max)
