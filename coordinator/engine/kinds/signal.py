"""Signal: data or a decision from outside.  Who waits for it, or will, is found out by exec (`stepper`); here it is
told apart from its own repetition."""

from __future__ import annotations

import msgspec

from coordinator.engine.state import Command
from coordinator.model.records import Signal


def apply(command: Command, record: Signal) -> None:
    if record.channel == "decision":
        _check(record)
    elif record.channel != "data":
        raise ValueError(f"there is no channel {record.channel!r}")
    if record.signal_id:
        if record.signal_id in command.signal_ids:
            return
        command.signal_ids.add(record.signal_id)
    command.signals += 1
    if not command.aborted:  # which nothing comes after, though it may be there before the end
        command.trail.append((record.name, record.at, record))


def _check(record: Signal) -> None:
    value = msgspec.msgpack.decode(record.value)
    if not isinstance(value, dict) or not isinstance(value.get("approve"), bool):
        raise ValueError("a decision says whether it approves")
