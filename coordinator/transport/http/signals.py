"""What commands wait for, from outside: data, decisions of people, callbacks of services.

A callback comes from a service that was handed a URL and knows nothing of this API: it sends JSON, a form or text, by
POST, or sends a browser there by GET.  So what comes is read as it is meant (`value_of`), what else is in the URL's
query is nobody's fault, and the answer is the same whether it was the first or the fifth time.  Whoever has not been
handed the URL learns nothing from it: a wrong token, a command that is not there and a path that names nothing are one
answer.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from coordinator.errors import (
    Forbidden,
    IllegalState,
    InvalidPayload,
    Malformed,
    NoOwner,
    NotFound,
    Starting,
    UnknownCommand,
    UnknownStep,
)
from coordinator.transport.http.exchange import NAME_RULE, Answer, Request, json, name_at
from coordinator.transport.http.problem import HttpError
from coordinator.transport.http.routing import FORM, PLAIN, Kind, Query, Reply, Route, pairs
from coordinator.transport.http.shared import BY, CHANGED, CONTROLLED, DURABLE, GATHERED, Resources, gathered
from coordinator.transport.json_input import VALUE_NESTING_MAX, decode

ROLES_MAX: Final = 100


class DecisionBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A person's decision; ``roles`` are those that the person has, ``by`` and ``comment`` go into the history."""

    approve: bool
    by: str = ""
    comment: str = ""
    roles: Annotated[list[Annotated[str, Meta(min_length=1, max_length=200)]], Meta(max_length=ROLES_MAX)] = []


class Received(Struct, frozen=True, kw_only=True):
    """What a callback is answered, the first time and any other."""

    received: bool = True


_any = msgspec.json.Decoder()
_decision = msgspec.json.Decoder(DecisionBody)


# ---------------------------------------------------------------- data


async def provide(api: Resources, request: Request) -> Answer:
    """Any JSON value, null too."""
    name = name_at("name", request.path["name"])
    signal_id = _signal_id(request)
    value = await request.read(_any, levels=VALUE_NESTING_MAX)
    by = request.query["by"]
    return json(await api.front.provide(request.path["id"], name, value, signal_id=signal_id, by=by))


def _signal_id(request: Request) -> str:
    """The one id of header and query, empty without any."""
    key, asked = request.header(b"idempotency-key"), request.query["signal_id"]
    if key is not None and asked is not None and key != asked:
        raise InvalidPayload.at("Idempotency-Key", "differs from ?signal_id; send one of them, or the same in both")
    if key is not None:
        return name_at("Idempotency-Key", key)
    return "" if asked is None else name_at("?signal_id", asked)


# ---------------------------------------------------------------- decisions


async def decide(api: Resources, request: Request) -> Answer:
    step = name_at("step", request.path["step"])
    body = await request.read(_decision)
    view = await api.front.decide(
        request.path["id"], step, approve=body.approve, by=body.by, comment=body.comment, roles=body.roles
    )
    return json(view)


async def decisions(api: Resources, request: Request) -> Answer:
    return gathered(await api.front.decisions())


# ---------------------------------------------------------------- callbacks


async def callback(api: Resources, request: Request) -> Answer:
    return await _receive(api, request, value_of(request.media, await request.body()))


async def visited_callback(api: Resources, request: Request) -> Answer:
    """A browser that a service sends back, with its answer in the query."""
    return await _receive(api, request, request.query["parameters"])


async def _receive(api: Resources, request: Request, value: Any) -> Answer:
    path = request.path
    try:
        await api.front.callback(path["id"], path["name"], path["token"], value)
    except NotFound:
        raise UnknownCommand("there is no such callback") from None
    return json(Received(), headers=[(b"cache-control", b"no-store")])


def value_of(media: str, body: bytes) -> Any:
    """The value that a service's body stands for, by its media type; raises Malformed or InvalidPayload with the path.

    ``text/…``: the text.  A form: an object of strings; but one that begins as only JSON does is JSON whose sender did
    not say so (``curl -d``).  Anything else is JSON, and no body is null.  HttpError (415) for a form in parts.
    """
    if media.startswith("multipart/"):
        raise HttpError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            f"a callback is JSON, a form ({FORM}) or text, not {media}",
        )
    if media.startswith("text/"):
        return _text(body)
    if media == FORM and body.lstrip()[:1] not in (b"{", b"["):
        return pairs(body, "form", "$.")
    return decode(_any, body, levels=VALUE_NESTING_MAX) if body.strip() else None


def _text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        fault = f"the text is not valid UTF-8 at byte {error.start}"
        raise Malformed(f"$: {fault}", faults=[{"path": "$", "fault": fault}]) from None


# ---------------------------------------------------------------- the table

_RECEIVED = {200: Reply("It has arrived; asked again, it says the same.", type=Received)}
_CALLBACK: Final = "/v1/callbacks/{id}/{name}/{token}"

ROUTES: Final = (
    Route(
        method="POST",
        path="/v1/commands/{id}/data/{name}",
        handler=provide,
        summary="Data that the command waits for, or will: any JSON value.",
        tag="commands",
        query=(
            Query(name="signal_id", doc=f"Counts once, however often it is sent: {NAME_RULE}."),
            BY,
        ),
        headers={"Idempotency-Key": "The same as signal_id."},
        body=Any,
        replies={200: CHANGED},
        errors=(UnknownStep, *CONTROLLED),
    ),
    Route(
        method="POST",
        path="/v1/commands/{id}/decisions/{step}",
        handler=decide,
        summary="Approve or reject what a command asks a person.",
        tag="commands",
        body=DecisionBody,
        replies={200: CHANGED},
        errors=(UnknownStep, Forbidden, *CONTROLLED),
    ),
    Route(
        method="GET",
        path="/v1/decisions",
        handler=decisions,
        summary="What waits for a person's decision, the oldest first.",
        tag="commands",
        replies={200: GATHERED},
        errors=(Starting, NoOwner),
    ),
    Route(
        method="POST",
        path=_CALLBACK,
        handler=callback,
        summary="A service's later answer: JSON, a form (an object of strings) or text.",
        tag="callbacks",
        body=Any,
        body_optional=True,
        forms=(FORM, PLAIN),
        replies=_RECEIVED,
        errors=(UnknownCommand, IllegalState, *DURABLE),
        open_query=True,
    ),
    Route(
        method="GET",
        path=_CALLBACK,
        handler=visited_callback,
        summary="The same from a browser that a service sends there: the query's parameters are its answer.",
        tag="callbacks",
        query=(Query(name="parameters", kind=Kind.ALL, doc="Any parameters: an object of strings."),),
        replies=_RECEIVED,
        errors=(UnknownCommand, IllegalState, *DURABLE),
        safe=False,
    ),
)
