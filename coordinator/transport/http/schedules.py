"""Schedules: commands that are submitted by the clock (docs/schedules.md)."""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from coordinator.errors import IllegalState, NoOwner, Starting, UnknownSchedule
from coordinator.transport.http.exchange import Answer, Request, json, name_at
from coordinator.transport.http.routing import Query, Reply, Route
from coordinator.transport.http.shared import BY, DURABLE, GATHERED, ControlBody, Resources, gathered, read_control

_content = msgspec.json.Decoder(dict[str, Any])


async def put_schedule(api: Resources, request: Request) -> Answer:
    """PUT as it is meant: whether there was one of that name before makes no difference."""
    return json(await api.front.put_schedule(_name(request), await request.read(_content), request.query["by"]))


async def get_schedule(api: Resources, request: Request) -> Answer:
    return json(await api.front.schedule(_name(request)))


async def list_schedules(api: Resources, request: Request) -> Answer:
    return gathered(await api.front.schedules())


async def delete_schedule(api: Resources, request: Request) -> Answer:
    query = request.query
    return json(await api.front.control_schedule(_name(request), "delete", by=query["by"], reason=query["reason"]))


async def pause_schedule(api: Resources, request: Request) -> Answer:
    return await _control(api, request, "pause")


async def resume_schedule(api: Resources, request: Request) -> Answer:
    return await _control(api, request, "resume")


async def _control(api: Resources, request: Request, action: Literal["pause", "resume"]) -> Answer:
    body = await request.read(read_control, empty=ControlBody())
    return json(await api.front.control_schedule(_name(request), action, by=body.by, reason=body.reason))


def _name(request: Request) -> str:
    return name_at("name", request.path["name"])


# ---------------------------------------------------------------- the table

_ONE: Final = "/v1/schedules/{name}"
_SCHEDULE = {200: Reply("The schedule, once the request is durable.", type=dict[str, Any])}


def _control_route(handler: Any, action: str, summary: str) -> Route:
    return Route(
        method="POST",
        path=f"{_ONE}/{action}",
        handler=handler,
        summary=summary,
        tag="schedules",
        body=ControlBody,
        body_optional=True,
        replies=_SCHEDULE,
        errors=(UnknownSchedule, IllegalState, *DURABLE),
    )


ROUTES: Final = (
    Route(
        method="GET",
        path="/v1/schedules",
        handler=list_schedules,
        summary="The schedules, by name.",
        tag="schedules",
        replies={200: GATHERED},
        errors=(Starting, NoOwner),
    ),
    Route(
        method="GET",
        path=_ONE,
        handler=get_schedule,
        summary="A schedule: when it runs next, what became of its last run.",
        tag="schedules",
        replies={200: Reply("The schedule.", type=dict[str, Any])},
        errors=(UnknownSchedule, *DURABLE),
    ),
    Route(
        method="PUT",
        path=_ONE,
        handler=put_schedule,
        summary="Make a schedule, or replace the one of that name.",
        tag="schedules",
        query=(BY,),
        body=dict[str, Any],
        replies=_SCHEDULE,
        errors=DURABLE,
    ),
    Route(
        method="DELETE",
        path=_ONE,
        handler=delete_schedule,
        summary="Delete a schedule; a run that has begun goes on.",
        tag="schedules",
        query=(Query(name="reason", default="", longest=2000, doc="Why, for the record."), BY),
        replies=_SCHEDULE,
        errors=(UnknownSchedule, IllegalState, *DURABLE),
    ),
    _control_route(pause_schedule, "pause", "Begin no further run until resumed."),
    _control_route(resume_schedule, "resume", "Go on after a pause."),
)
