"""What the handlers of several modules share: what they work with, how they answer, how their routes are documented."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import Struct
from prometheus_client import CollectorRegistry

from coordinator.errors import (
    IllegalState,
    LogCorrupt,
    LogUnavailable,
    NoOwner,
    Starting,
    Stopping,
    UnknownCommand,
    WaitTimeout,
)
from coordinator.model.command import CommandView
from coordinator.transport.base import Front, Gathered
from coordinator.transport.http.exchange import Answer, Request, json
from coordinator.transport.http.problem import Headers
from coordinator.transport.http.routing import Query, Reply
from coordinator.transport.http.settings import HttpSettings
from coordinator.transport.streams import Streams


class Resources:
    """What the handlers work with: the Front and what belongs to the listener."""

    def __init__(self, front: Front, settings: HttpSettings, registry: CollectorRegistry, name: str) -> None:
        self.front = front
        self.settings = settings
        self.registry = registry
        self.name = name
        self.streams = Streams(settings.streams_max)
        self.openapi = b""  # set by the server: made from the table of routes

    def wait_ms(self, request: Request) -> int:
        """How long the client wants to wait, within the limit."""
        return min(int(request.query["wait"]), self.settings.wait_ms_max)


class ControlBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Why an operator asks, and who; both go into the history."""

    reason: str = ""
    by: str = ""


read_control: Final = msgspec.json.Decoder(ControlBody)


def gathered(items: list[dict[str, Any]]) -> Answer:
    """A list that says in a header which partitions it lacks."""
    return json(items, headers=lacking(items.incomplete) if isinstance(items, Gathered) else None)


def lacking(incomplete: tuple[int, ...]) -> Headers:
    """The partitions that a gathered answer says nothing of, or not all."""
    return [(b"coordinator-incomplete", ",".join(map(str, incomplete)).encode())] if incomplete else []


BY: Final = Query(name="by", default="", longest=200, doc="Who asks, for the record.")
INCOMPLETE: Final = {"Coordinator-Incomplete": "Partitions of which something may be missing at present, as in 3,5."}
COMMAND: Final = Reply("The command.", type=CommandView)
CHANGED: Final = Reply("The command, once the request is durable.", type=CommandView)
OBJECT: Final = Reply("A JSON object.", type=dict[str, Any])
OBJECTS: Final = Reply("A list of JSON objects.", type=list[dict[str, Any]])
GATHERED: Final = Reply("A list of JSON objects.", type=list[dict[str, Any]], headers=INCOMPLETE)

NOT_READY: Final = (Starting, Stopping, NoOwner, LogUnavailable, LogCorrupt)
DURABLE: Final = (*NOT_READY, WaitTimeout)
READ: Final = (UnknownCommand, Starting, NoOwner, LogUnavailable, LogCorrupt, WaitTimeout)
CONTROLLED: Final = (UnknownCommand, IllegalState, *DURABLE)
