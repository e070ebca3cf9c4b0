"""What becomes of a wait: a decision taken, data received, a time that came.

`Answered` is how a wait ended, kept by the Execution for the view: no record says that a datum was received by just
this wait, it follows from the order of the log.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw

from coordinator.awaitables import Wait
from coordinator.model.durations import parse_duration
from coordinator.model.moments import timestamp
from coordinator.model.records import Failure, Signal, raw
from coordinator.saga import Decision, Rejected, StepFailed

_Waiting = Any  # stepper.Pending of a Wait


class Answered:
    """A wait and its answer; ``value`` is None while there is none, ``failure`` says why it ended in vain."""

    __slots__ = ("at", "by", "failure", "since", "value", "wait")

    def __init__(self, wait: Wait, since: int) -> None:
        self.wait = wait
        self.since = since
        self.value: Raw | None = None
        self.failure: Failure | None = None
        self.at = 0
        self.by = ""

    def decided(self, waiting: _Waiting, decision: Decision, at: int) -> Rejected | None:
        """Notes a decision; returns what is to be raised where it is a refusal that fails the step."""
        self.at, self.by = at, decision.by
        self.value = raw(msgspec.to_builtins(decision))
        if decision.approve or waiting.call.rejected == "return":
            return None
        who = f" by {decision.by}" if decision.by else ""
        why = f": {decision.comment}" if decision.comment else ""
        self.failure = Failure("rejected", f"rejected{who}{why}", step=waiting.name)
        return Rejected(waiting.name, self.failure, decision)

    def ran_out(self, waiting: _Waiting, at: int) -> StepFailed | None:
        """Notes that its time has come; returns what is to be raised where that is a failure."""
        self.at = at
        wait = waiting.call
        if wait.kind == "sleep" or wait.on_timeout == "null":
            self.value = raw(None)
            return None
        what = "no decision" if wait.kind == "decision" else f"no {wait.channel}"
        self.failure = Failure("timeout", f"{what} within {wait.timeout}", step=waiting.name)
        return StepFailed(waiting.name, self.failure)


def name_of(waiting: _Waiting) -> str:
    """How it is called among what a command waits for: data by its own name, the rest by the step's."""
    name: str = waiting.call.channel if waiting.call.kind == "data" else waiting.name
    return name


def due(wait: Wait, since: int) -> int | None:
    """When its time comes (ms); None for one that waits for ever."""
    return None if wait.timeout is None else since + parse_duration(wait.timeout)


def decided(record: Signal) -> Decision:
    """The decision that a Signal of the channel ``decision`` tells of."""
    value = msgspec.msgpack.decode(record.value)
    return Decision(bool(value["approve"]), record.by, str(value.get("comment", "")), timestamp(record.at))


def timed_out(wait: Wait, at: int) -> Decision | None:
    """What time decides; None where it decides nothing."""
    if wait.kind != "decision" or wait.on_timeout not in ("approve", "reject"):
        return None
    return Decision(wait.on_timeout == "approve", "", f"no decision within {wait.timeout}", timestamp(at))
