"""Every request that HTTP serves: one table, from which `routing.Router` dispatches and `openapi` documents.

A handler reads the request, asks the Front and formats; it decides nothing.  The handlers and rows for what commands
wait for are in `signals`, those of schedules in `schedules`.
"""

from __future__ import annotations

import html
from http import HTTPStatus
from typing import Any, Final, Literal
from urllib.parse import quote

import msgspec
from msgspec import UNSET, Struct, UnsetType
from prometheus_client.exposition import choose_encoder

from coordinator.errors import (
    DefinitionConflict,
    IdConflict,
    InvalidPayload,
    LimitReached,
    LogCorrupt,
    LogUnavailable,
    NoOwner,
    Starting,
    Stopping,
    Suspended,
    UnknownDefinition,
    UnknownService,
    UnknownStep,
    UnknownType,
    tree,
)
from coordinator.model.command import FINAL, CommandView, Operation, State, Submission
from coordinator.transport.base import CommandPage, OutcomeItem
from coordinator.transport.http import schedules, signals
from coordinator.transport.http.exchange import Answer, Request, Whole, json, same_id
from coordinator.transport.http.routing import (
    EVENT_STREAM,
    HTML,
    JSON,
    MERMAID,
    NDJSON,
    PLAIN,
    Kind,
    Query,
    Reply,
    Route,
)
from coordinator.transport.http.shared import (
    BY,
    CHANGED,
    COMMAND,
    CONTROLLED,
    DURABLE,
    GATHERED,
    INCOMPLETE,
    NOT_READY,
    OBJECT,
    OBJECTS,
    READ,
    ControlBody,
    Resources,
    gathered,
    lacking,
    read_control,
)
from coordinator.transport.http.streams import EventData, EventStream, OutcomeStream

# ---------------------------------------------------------------- bodies


class RequeueBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A dead-lettered step to run again.  ``input``, if present (null too), replaces the body of the step's request."""

    step: str
    input: Any | UnsetType = UNSET
    reason: str = ""
    by: str = ""


class ResolveBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A step whose undo has failed for good, and was done by hand; by whom and how goes into the history."""

    step: str
    reason: str = ""
    by: str = ""


class BreakerBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``open`` keeps calls from the service, ``closed`` lets them through, ``auto`` leaves it to the breaker."""

    state: Literal["open", "closed", "auto"]


class Registered(Struct, frozen=True, kw_only=True):
    """A definition that is registered; ``created`` is false where the same content was there."""

    name: str
    version: int
    created: bool


_submission = msgspec.json.Decoder(Submission)
_requeue = msgspec.json.Decoder(RequeueBody)
_resolve = msgspec.json.Decoder(ResolveBody)
_breaker = msgspec.json.Decoder(BreakerBody)
_definition = msgspec.json.Decoder(dict[str, Any])


# ---------------------------------------------------------------- commands


async def submit(api: Resources, request: Request) -> Answer:
    """The straight line's first station."""
    submission = await request.read(_submission)
    key = request.header(b"idempotency-key")
    if key is not None:
        submission = msgspec.structs.replace(submission, id=same_id(submission.id, key))
    view, attached = await api.front.submit_and_wait(submission, api.wait_ms(request))
    headers = [
        (b"location", b"/v1/commands/" + quote(view.id, safe="").encode()),
        (b"coordinator-dedupe-horizon", b"%d" % (api.front.dedupe_horizon_ms // 1000)),
    ]
    if attached:
        headers.append((b"coordinator-attached", b"true"))
    return json(view, HTTPStatus.OK if view.state in FINAL else HTTPStatus.ACCEPTED, headers)


async def get_command(api: Resources, request: Request) -> Answer:
    return json(await api.front.get(request.path["id"], api.wait_ms(request)))


async def list_commands(api: Resources, request: Request) -> Answer:
    query = request.query
    page = await api.front.list_commands(
        state=query["state"],
        type=query["type"],
        attributes=query["attribute."],
        limit=query["limit"],
        cursor=query["cursor"],
    )
    return json(page, headers=lacking(page.incomplete))


async def history(api: Resources, request: Request) -> Answer:
    return json(await api.front.history(request.path["id"]))


async def events(api: Resources, request: Request) -> Answer:
    after = request.header(b"last-event-id") or None
    await api.front.get(request.path["id"])  # what is not there is a 404, also where another instance has to be asked
    try:
        return EventStream(api.front, api.streams, api.settings, request.path["id"], after)
    except InvalidPayload as error:
        raise InvalidPayload.at("Last-Event-ID", error.extra["faults"][0]["fault"]) from None


async def explain(api: Resources, request: Request) -> Answer:
    return json(await api.front.explain(request.path["id"]))


async def diagram(api: Resources, request: Request) -> Answer:
    return _drawing(request, await api.front.diagram(request.path["id"]))


def _drawing(request: Request, text: str) -> Answer:
    return Whole(HTTPStatus.OK, text.encode(), MERMAID if request.accepts(MERMAID) else PLAIN)


async def _operate(api: Resources, request: Request, operation: Operation) -> Answer:
    body = await request.read(read_control, empty=ControlBody())
    return json(await api.front.control(request.path["id"], operation, reason=body.reason, by=body.by))


async def pause(api: Resources, request: Request) -> Answer:
    return await _operate(api, request, Operation.PAUSE)


async def resume(api: Resources, request: Request) -> Answer:
    return await _operate(api, request, Operation.RESUME)


async def cancel(api: Resources, request: Request) -> Answer:
    return await _operate(api, request, Operation.CANCEL)


async def abort(api: Resources, request: Request) -> Answer:
    return await _operate(api, request, Operation.ABORT)


async def retry(api: Resources, request: Request) -> Answer:
    return await _operate(api, request, Operation.RETRY)


async def requeue(api: Resources, request: Request) -> Answer:
    body = await request.read(_requeue)
    replaced = body.input is not UNSET
    view = await api.front.control(
        request.path["id"],
        Operation.REQUEUE,
        reason=body.reason,
        by=body.by,
        step=body.step,
        input=body.input if replaced else None,
        replace_input=replaced,
    )
    return json(view)


async def resolve(api: Resources, request: Request) -> Answer:
    body = await request.read(_resolve)
    view = await api.front.control(
        request.path["id"], Operation.RESOLVE, reason=body.reason, by=body.by, step=body.step
    )
    return json(view)


# ---------------------------------------------------------------- services, outcomes, cluster


async def outcomes(api: Resources, request: Request) -> Answer:
    query = request.query
    stream = OutcomeStream(api.streams, api.front.outcomes(query["service"], query["from"], query["follow"]))
    try:
        await stream.begin()
    except BaseException:
        await stream.close()
        raise
    return stream


async def dead_letters(api: Resources, request: Request) -> Answer:
    return gathered(await api.front.dead_letters())


async def quarantine(api: Resources, request: Request) -> Answer:
    return gathered(await api.front.quarantine())


async def log(api: Resources, request: Request) -> Answer:
    return gathered(await api.front.log_state())


async def services(api: Resources, request: Request) -> Answer:
    return json(await api.front.services())


async def set_breaker(api: Resources, request: Request) -> Answer:
    body = await request.read(_breaker)
    return json(await api.front.set_breaker(request.path["name"], body.state))


async def cluster(api: Resources, request: Request) -> Answer:
    return json(await api.front.cluster())


# ---------------------------------------------------------------- definitions


async def put_definition(api: Resources, request: Request) -> Answer:
    name, version = request.path["name"], _version(request)
    content = await request.read(_definition)
    for member, expected in (("name", name), ("version", version)):
        if content.setdefault(member, expected) != expected:
            raise InvalidPayload.at(f"$.{member}", f"differs from the path, which says {expected!r}")
    created = await api.front.register(name, version, content, request.query["by"])
    registered = Registered(name=name, version=version, created=created)
    location = f"/v1/definitions/{quote(name, safe='')}/{version}".encode()
    return json(registered, HTTPStatus.CREATED if created else HTTPStatus.OK, [(b"location", location)])


async def get_definition(api: Resources, request: Request) -> Answer:
    return json(await api.front.definition(request.path["name"], _version(request)))


async def get_newest_definition(api: Resources, request: Request) -> Answer:
    return json(await api.front.definition(request.path["name"], None))


async def list_definitions(api: Resources, request: Request) -> Answer:
    return json(await api.front.definitions())


async def definition_diagram(api: Resources, request: Request) -> Answer:
    return _drawing(request, await api.front.definition_diagram(request.path["name"], _version(request)))


def _version(request: Request) -> int:
    text = request.path["version"]
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text) >= 1):
        raise InvalidPayload.at("version", f"a version is a whole number from 1, not {text!r}")
    return int(text)


# ---------------------------------------------------------------- the instance itself


async def healthz(api: Resources, request: Request) -> Answer:
    return json({"status": "alive"})


async def readyz(api: Resources, request: Request) -> Answer:
    ready, details = api.front.ready()
    if not ready:
        why = tree().get(details.get("code", ""), Starting)
        raise why(details.get("why", "this instance is not ready"), retry_after_ms=1000, details=details)
    return json({"status": "ready", "details": details})


async def metrics(api: Resources, request: Request) -> Answer:
    encode, media = choose_encoder(request.header(b"accept") or "")
    return Whole(HTTPStatus.OK, encode(api.registry), media)


async def openapi(api: Resources, request: Request) -> Answer:
    return Whole(HTTPStatus.OK, api.openapi)


_PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{name} - coordinator</title></head>
<body><h1>{name}</h1>
<p>This is an instance of <b>coordinator</b>, a saga coordinator.</p>
<ul>
<li><a href="/v1/commands">commands</a></li>
<li><a href="/v1/dead-letters">dead letters</a></li>
<li><a href="/v1/decisions">decisions</a></li>
<li><a href="/v1/schedules">schedules</a></li>
<li><a href="/v1/quarantine">quarantine</a></li>
<li><a href="/v1/services">services</a></li>
<li><a href="/v1/definitions">definitions</a></li>
<li><a href="/v1/cluster">cluster</a></li>
<li><a href="/v1/log">log</a></li>
<li><a href="/healthz">alive</a>, <a href="/readyz">ready</a>, <a href="/metrics">metrics</a></li>
<li><a href="/openapi.json">the API's description (OpenAPI)</a></li>
</ul></body></html>
"""


async def index(api: Resources, request: Request) -> Answer:
    return Whole(HTTPStatus.OK, _PAGE.format(name=html.escape(api.name)).encode(), HTML)


# ---------------------------------------------------------------- the table

_WAIT = Query(
    name="wait",
    kind=Kind.DURATION,
    default=0,
    doc="How long to wait for the command's end before answering, for example 5s.",
)
_TAKEN = {
    "Location": "The command.",
    "Coordinator-Attached": "true where the id was known already, with the same request.",
    "Coordinator-Dedupe-Horizon": "Seconds after its end for which the id is surely known, and never runs again.",
}
_DRAWING = Reply("Mermaid text; as text/vnd.mermaid to those who ask for it by Accept.", (PLAIN, MERMAID), str)
_INTAKE = (UnknownType, IdConflict, LimitReached, Suspended, Starting, Stopping, NoOwner, LogUnavailable, LogCorrupt)


def _control_route(handler: Any, summary: str) -> Route:
    return Route(
        method="POST",
        path=f"/v1/commands/{{id}}/{handler.__name__}",
        handler=handler,
        summary=summary,
        tag="commands",
        body=ControlBody,
        body_optional=True,
        replies={200: CHANGED},
        errors=CONTROLLED,
    )


def _probe(path: str, handler: Any, summary: str, reply: Reply, *errors: Any) -> Route:
    return Route(
        method="GET",
        path=path,
        handler=handler,
        summary=summary,
        tag="instance",
        replies={200: reply},
        errors=errors,
        open_query=True,
    )


ROUTES: Final = (
    Route(
        method="POST",
        path="/v1/commands",
        handler=submit,
        summary="Submit a command; the same id and payload again attaches to the same command.",
        tag="commands",
        query=(_WAIT,),
        headers={"Idempotency-Key": "The command's id, where the body has none."},
        body=Submission,
        replies={
            200: Reply("The command, which is final.", type=CommandView, headers=_TAKEN),
            202: Reply("The command, which is durable and goes on.", type=CommandView, headers=_TAKEN),
        },
        errors=_INTAKE,
    ),
    Route(
        method="GET",
        path="/v1/commands",
        handler=list_commands,
        summary="Commands, newest first.",
        tag="commands",
        query=(
            Query(name="state", doc="Only commands in this state.", among=tuple(State)),
            Query(name="type", doc="Only commands of this type."),
            Query(name="attribute.", kind=Kind.MAP, doc="attribute.K=V: only commands whose attribute K is V."),
            Query(name="limit", kind=Kind.INTEGER, default=50, low=1, high=1000, doc="How many at most."),
            Query(name="cursor", doc="Where to go on: next_cursor of the page before."),
        ),
        replies={200: Reply("A page.", type=CommandPage, headers=INCOMPLETE)},
        errors=(Starting, NoOwner),
    ),
    Route(
        method="GET",
        path="/v1/commands/{id}",
        handler=get_command,
        summary="A command.",
        tag="commands",
        query=(_WAIT,),
        replies={200: COMMAND},
        errors=READ,
    ),
    Route(
        method="GET",
        path="/v1/commands/{id}/history",
        handler=history,
        summary="Every record of a command, in log order.",
        tag="commands",
        replies={200: OBJECTS},
        errors=READ,
    ),
    Route(
        method="GET",
        path="/v1/commands/{id}/events",
        handler=events,
        summary="Server-Sent Events of a command until it is final.",
        tag="commands",
        headers={"Last-Event-ID": "The position of the last event received: only what came after it is sent."},
        replies={200: Reply("A stream; the data of each event is this JSON.", (EVENT_STREAM,), EventData)},
        errors=(*READ, LimitReached, Stopping),
    ),
    Route(
        method="GET",
        path="/v1/commands/{id}/explain",
        handler=explain,
        summary="Why a command is not moving.",
        tag="commands",
        replies={200: OBJECT},
        errors=READ,
    ),
    Route(
        method="GET",
        path="/v1/commands/{id}/diagram",
        handler=diagram,
        summary="A drawing of a command's steps with their states.",
        tag="commands",
        replies={200: _DRAWING},
        errors=READ,
    ),
    _control_route(pause, "Make no further step until resumed."),
    _control_route(resume, "Go on after a pause."),
    _control_route(cancel, "Undo what was done, back to the start."),
    _control_route(abort, "Stop at once, undo nothing."),
    _control_route(retry, "Go on after the last success."),
    Route(
        method="POST",
        path="/v1/commands/{id}/requeue",
        handler=requeue,
        summary="Run a dead-lettered step again.",
        tag="commands",
        body=RequeueBody,
        replies={200: COMMAND},
        errors=(UnknownStep, *CONTROLLED),
    ),
    Route(
        method="POST",
        path="/v1/commands/{id}/resolve",
        handler=resolve,
        summary="Take the undo of a dead-lettered step for done: a person has seen to it.",
        tag="commands",
        body=ResolveBody,
        replies={200: CHANGED},
        errors=(UnknownStep, *CONTROLLED),
    ),
    *signals.ROUTES,
    *schedules.ROUTES,
    Route(
        method="GET",
        path="/v1/outcomes",
        handler=outcomes,
        summary="Outcomes of a service in log order, a JSON object a line.",
        tag="services",
        query=(
            Query(name="service", required=True, doc="The service's name."),
            Query(name="from", doc="The first position wanted, or a time (RFC 3339)."),
            Query(name="follow", kind=Kind.FLAG, default=False, doc="Go on with what comes."),
        ),
        replies={200: Reply('Lines; if reading fails half way, the last is {"error": …}.', (NDJSON,), OutcomeItem)},
        errors=(UnknownService, LimitReached, Starting, Stopping, NoOwner, LogUnavailable, LogCorrupt),
    ),
    Route(
        method="GET",
        path="/v1/dead-letters",
        handler=dead_letters,
        summary="Steps that wait for a person.",
        tag="services",
        replies={200: GATHERED},
        errors=(Starting, NoOwner),
    ),
    Route(
        method="GET",
        path="/v1/quarantine",
        handler=quarantine,
        summary="Records of the log that cannot be read or applied, and what became of their command or partition.",
        tag="services",
        replies={200: GATHERED},
        errors=(Starting, NoOwner),
    ),
    Route(
        method="GET",
        path="/v1/log",
        handler=log,
        summary="What is kept of each partition's log, what pins it, and how much a take-over would have to read.",
        tag="cluster",
        replies={200: GATHERED},
        errors=(Starting, NoOwner, LogUnavailable),
    ),
    Route(
        method="GET",
        path="/v1/services",
        handler=services,
        summary="Services: breakers, calls in flight, delayed steps.",
        tag="services",
        replies={200: OBJECTS},
        errors=(Starting, NoOwner),
    ),
    Route(
        method="POST",
        path="/v1/services/{name}/breaker",
        handler=set_breaker,
        summary="Open or close a service's breaker by hand, or leave it to itself.",
        tag="services",
        body=BreakerBody,
        replies={200: OBJECT},
        errors=(UnknownService,),
    ),
    Route(
        method="GET",
        path="/v1/cluster",
        handler=cluster,
        summary="Instances, partitions, epochs.",
        tag="instance",
        replies={200: OBJECT},
        errors=(Starting, NoOwner),
    ),
    Route(
        method="GET",
        path="/v1/definitions",
        handler=list_definitions,
        summary="The registered definitions.",
        tag="definitions",
        replies={200: OBJECTS},
        errors=(Starting, NoOwner),
    ),
    Route(
        method="GET",
        path="/v1/definitions/{name}",
        handler=get_newest_definition,
        summary="The newest version of a definition.",
        tag="definitions",
        replies={200: OBJECT},
        errors=(UnknownDefinition, Starting, NoOwner),
    ),
    Route(
        method="PUT",
        path="/v1/definitions/{name}/{version}",
        handler=put_definition,
        summary="Register a definition; a registered version never changes.",
        tag="definitions",
        query=(BY,),
        body=dict[str, Any],
        replies={
            200: Reply("The same was registered before.", type=Registered),
            201: Reply("Registered.", type=Registered),
        },
        errors=(DefinitionConflict, *DURABLE),
    ),
    Route(
        method="GET",
        path="/v1/definitions/{name}/{version}",
        handler=get_definition,
        summary="A definition as it was registered.",
        tag="definitions",
        replies={200: OBJECT},
        errors=(UnknownDefinition, Starting, NoOwner),
    ),
    Route(
        method="GET",
        path="/v1/definitions/{name}/{version}/diagram",
        handler=definition_diagram,
        summary="A drawing of a definition.",
        tag="definitions",
        replies={200: _DRAWING},
        errors=(UnknownDefinition, Starting, NoOwner),
    ),
    _probe("/healthz", healthz, "Whether the process is alive.", OBJECT),
    _probe(
        "/readyz", readyz, "Whether this instance serves: its log is replayed and takes appends.", OBJECT, *NOT_READY
    ),
    _probe(
        "/metrics",
        metrics,
        "Metrics for Prometheus.",
        Reply("Prometheus text, or OpenMetrics by Accept.", (PLAIN,), str),
    ),
    _probe("/openapi.json", openapi, "This document.", Reply("OpenAPI 3.1.", (JSON,), dict[str, Any])),
    _probe("/", index, "A page for people.", Reply("HTML.", (HTML,), str)),
)
