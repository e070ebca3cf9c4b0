"""A command's events over Server-Sent Events, through any number of lost connections."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from typing import Any

from coordinator.cli.api import Api, Lost, command_path
from coordinator.cli.errors import Refused, Unreachable, streamed_refusal

QUIET_S = 60.0  # the server sends a comment line more often than that; silence means the connection is dead
PAUSE_S = 0.5
GIVE_UP_S = 120.0


def parse(lines: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """(event, id, data) of each event in a stream of lines, as the HTML standard's event-stream format has it.

    Comments and unknown fields are skipped, several data lines are joined, an event cut off by the end is dropped.
    """
    kind, id, data = "", "", list[str]()
    for line in lines:
        if line == "":
            if data:
                yield kind or "message", id, "\n".join(data)
            kind, data = "", []
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "event":
                kind = value
            case "id":
                id = value
            case "data":
                data.append(value)
            case _:
                pass


def events(api: Api, id: str) -> Iterator[dict[str, Any]]:
    """Events until ``final``; each at most once.

    A lost connection, a restart and an ``error`` event that may be retried are taken up again after the last event
    seen; gives up with `Unreachable` or `Refused` after two minutes without any.
    """
    last = ""
    heard = time.monotonic()
    reached = False
    while True:
        try:
            headers = {"last-event-id": last} if last else {}
            with api.lines(command_path(id, "/events"), quiet_s=QUIET_S, headers=headers) as lines:
                reached = True
                for kind, position, data in parse(lines):
                    heard = time.monotonic()
                    event = {"kind": kind, **json.loads(data)}
                    if event["kind"] == "error":
                        raise streamed_refusal(event.get("error") or {})
                    last = position or last
                    yield event
                    if event["kind"] == "final":
                        return
            fault: Exception = Lost(f"{api.server} ended the stream")
        except Refused as refusal:
            if not refusal.retryable:
                raise
            fault = refusal
        except Unreachable as error:
            if not reached:
                raise
            fault = error
        if time.monotonic() - heard > GIVE_UP_S:
            raise fault
        time.sleep(getattr(fault, "retry_after_s", None) or PAUSE_S)
