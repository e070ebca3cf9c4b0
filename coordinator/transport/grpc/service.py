"""The calls of proto/coordinator.proto: each reads its message, asks the Front and answers; it decides nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

from google.protobuf.message import Message

from coordinator.errors import InvalidPayload
from coordinator.model.command import Operation
from coordinator.transport.base import Front, Traffic
from coordinator.transport.grpc import messages
from coordinator.transport.grpc.calls import Context, both_streams, server_stream, unary
from coordinator.transport.grpc.session import Session
from coordinator.transport.grpc.settings import GrpcSettings
from coordinator.transport.pb import coordinator_pb2 as pb
from coordinator.transport.streams import EventQueue, OutcomeReader, Streams, ends, stopping

NAME: Final = pb.DESCRIPTOR.services_by_name["Coordinator"].full_name
DEADLINE_MARGIN_MS: Final = 50
"""How long before the client's deadline it is answered, so that the answer still arrives."""
QUIET_S: Final = 3600.0  # how long a watch sleeps at most between looks at its queue; gRPC keeps the connection alive
LIMIT_DEFAULT: Final = 50
LIMIT_MAX: Final = 1000
_OF_A_STEP: Final = (Operation.REQUEUE, Operation.RESOLVE)  # which have calls of their own
_CONTROLS: Final = tuple(str(each) for each in Operation if each not in _OF_A_STEP)


class Service:
    """The handlers; ``handlers`` is what grpc is given."""

    def __init__(self, front: Front, settings: GrpcSettings, traffic: Traffic) -> None:
        self._front = front
        self._traffic = traffic
        self._settings = settings
        self.streams = Streams(settings.streams_max)

    def handlers(self) -> dict[str, Any]:
        """Every method of the service by name."""
        return {
            "Submit": unary("Submit", pb.SubmitRequest, self.submit),
            "Get": unary("Get", pb.GetRequest, self.get),
            "List": unary("List", pb.ListRequest, self.list),
            "History": unary("History", pb.CommandId, self.history),
            "Explain": unary("Explain", pb.CommandId, self.explain),
            "Diagram": unary("Diagram", pb.CommandId, self.diagram),
            "Control": unary("Control", pb.ControlRequest, self.control),
            "Requeue": unary("Requeue", pb.RequeueRequest, self.requeue),
            "Resolve": unary("Resolve", pb.ResolveRequest, self.resolve),
            "Provide": unary("Provide", pb.ProvideRequest, self.provide),
            "Decide": unary("Decide", pb.DecideRequest, self.decide),
            "Decisions": unary("Decisions", pb.Empty, self.decisions),
            "Watch": server_stream("Watch", pb.WatchRequest, self.watch),
            "Session": both_streams("Session", self.session),
            "Outcomes": server_stream("Outcomes", pb.OutcomesRequest, self.outcomes),
            "DeadLetters": unary("DeadLetters", pb.Empty, self.dead_letters),
            "Quarantine": unary("Quarantine", pb.Empty, self.quarantine),
            "Log": unary("Log", pb.Empty, self.log),
            "Services": unary("Services", pb.Empty, self.services),
            "SetBreaker": unary("SetBreaker", pb.SetBreakerRequest, self.set_breaker),
            "Cluster": unary("Cluster", pb.Empty, self.cluster),
            "PutDefinition": unary("PutDefinition", pb.PutDefinitionRequest, self.put_definition),
            "GetDefinition": unary("GetDefinition", pb.DefinitionId, self.get_definition),
            "ListDefinitions": unary("ListDefinitions", pb.Empty, self.list_definitions),
            "DefinitionDiagram": unary("DefinitionDiagram", pb.DefinitionId, self.definition_diagram),
            "PutSchedule": unary("PutSchedule", pb.PutScheduleRequest, self.put_schedule),
            "GetSchedule": unary("GetSchedule", pb.ScheduleName, self.get_schedule),
            "ListSchedules": unary("ListSchedules", pb.Empty, self.list_schedules),
            "ControlSchedule": unary("ControlSchedule", pb.ControlScheduleRequest, self.control_schedule),
        }

    # ------------------------------------------------------------ commands

    async def submit(self, request: pb.SubmitRequest, context: Context) -> pb.SubmitReply:
        submission = messages.submission(request.submission)
        horizon_s = self._front.dedupe_horizon_ms // 1000
        context.set_trailing_metadata((("coordinator-dedupe-horizon", str(horizon_s)),))
        view, attached = await self._front.submit_and_wait(submission, self._wait_ms(request.wait_ms, context))
        return pb.SubmitReply(command=messages.command(view), attached=attached)

    async def get(self, request: pb.GetRequest, context: Context) -> pb.Command:
        return messages.command(await self._front.get(request.id, self._wait_ms(request.wait_ms, context)))

    def _wait_ms(self, asked: int, context: Context) -> int:
        """How long to wait: as asked, within the limit and the call's own deadline."""
        if asked < 0:
            raise InvalidPayload.at("$.wait_ms", "not below 0")
        left_s = context.time_remaining()
        left_ms = self._settings.wait_ms_max if left_s is None else int(left_s * 1000) - DEADLINE_MARGIN_MS
        return max(0, min(asked, left_ms, self._settings.wait_ms_max))

    async def list(self, request: pb.ListRequest, context: Context) -> pb.ListReply:
        limit = request.limit or LIMIT_DEFAULT
        if not 1 <= limit <= LIMIT_MAX:
            raise InvalidPayload.at("$.limit", f"1 to {LIMIT_MAX}, or 0 for {LIMIT_DEFAULT}")
        page = await self._front.list_commands(
            state=request.state or None,
            type=request.type or None,
            attributes=dict(request.attributes),
            limit=limit,
            cursor=request.cursor or None,
        )
        commands = [messages.command(view) for view in page.commands]
        return pb.ListReply(commands=commands, next_cursor=page.next_cursor or "", incomplete=page.incomplete)

    async def history(self, request: pb.CommandId, context: Context) -> pb.Json:
        return _json(await self._front.history(request.id))

    async def explain(self, request: pb.CommandId, context: Context) -> pb.Json:
        return _json(await self._front.explain(request.id))

    async def diagram(self, request: pb.CommandId, context: Context) -> pb.DiagramReply:
        return pb.DiagramReply(mermaid=await self._front.diagram(request.id))

    async def control(self, request: pb.ControlRequest, context: Context) -> pb.Command:
        if request.operation not in _CONTROLS:
            raise InvalidPayload.at("$.operation", f"one of {', '.join(_CONTROLS)}, not {request.operation!r}")
        operation = Operation(request.operation)
        view = await self._front.control(request.id, operation, reason=request.reason, by=request.by)
        return messages.command(view)

    async def requeue(self, request: pb.RequeueRequest, context: Context) -> pb.Command:
        _required(request, "step")
        replaced = request.HasField("input_json")
        view = await self._front.control(
            request.id,
            Operation.REQUEUE,
            reason=request.reason,
            by=request.by,
            step=request.step,
            input=messages.from_json(request.input_json, "$.input") if replaced else None,
            replace_input=replaced,
        )
        return messages.command(view)

    async def resolve(self, request: pb.ResolveRequest, context: Context) -> pb.Command:
        _required(request, "step")
        view = await self._front.control(
            request.id, Operation.RESOLVE, reason=request.reason, by=request.by, step=request.step
        )
        return messages.command(view)

    # ------------------------------------------------------------ data and decisions

    async def provide(self, request: pb.ProvideRequest, context: Context) -> pb.Command:
        _required(request, "name")
        value = messages.from_json(request.value_json, "$.value")
        view = await self._front.provide(request.id, request.name, value, signal_id=request.signal_id, by=request.by)
        return messages.command(view)

    async def decide(self, request: pb.DecideRequest, context: Context) -> pb.Command:
        _required(request, "step")
        if not request.HasField("approve"):  # an absent bool reads as false, and would reject what nobody rejected
            raise InvalidPayload.at("$.approve", "required")
        view = await self._front.decide(
            request.id,
            request.step,
            approve=request.approve,
            by=request.by,
            comment=request.comment,
            roles=tuple(request.roles),
        )
        return messages.command(view)

    async def decisions(self, request: pb.Empty, context: Context) -> pb.Json:
        return _json(await self._front.decisions())

    # ------------------------------------------------------------ streams

    async def watch(self, request: pb.WatchRequest, context: Context) -> AsyncIterator[pb.Event]:
        watch = Watch(request.id, EventQueue(self._settings.stream_events_max))
        await self._front.get(request.id)  # NOT_FOUND is a status, also where another instance has to be asked
        self.streams.add(watch)
        try:
            unwatch = self._front.watch(request.id, watch.queue.put, request.after or None)
            try:
                while True:
                    for event in await watch.queue.take(QUIET_S):
                        yield messages.event(event)
                        if ends(event):
                            return
            finally:
                unwatch()
        finally:
            self.streams.discard(watch)

    async def session(self, context: Context) -> None:
        session = Session(self._front, self._settings, self._traffic, context)
        self.streams.add(session)
        try:
            await session.run()
        finally:
            self.streams.discard(session)

    async def outcomes(self, request: pb.OutcomesRequest, context: Context) -> AsyncIterator[pb.OutcomeItem]:
        _required(request, "service")
        start = getattr(request, "from") or None
        reader = OutcomeReader(self._front.outcomes(request.service, start, request.follow))
        try:
            self.streams.add(reader)
            while (batch := await reader.batch()) is not None:
                for item in batch:
                    yield messages.outcome(item)
        finally:
            self.streams.discard(reader)
            await reader.close()

    # ------------------------------------------------------------ services, cluster

    async def dead_letters(self, request: pb.Empty, context: Context) -> pb.Json:
        return _json(await self._front.dead_letters())

    async def quarantine(self, request: pb.Empty, context: Context) -> pb.Json:
        return _json(await self._front.quarantine())

    async def log(self, request: pb.Empty, context: Context) -> pb.Json:
        return _json(await self._front.log_state())

    async def services(self, request: pb.Empty, context: Context) -> pb.Json:
        return _json(await self._front.services())

    async def set_breaker(self, request: pb.SetBreakerRequest, context: Context) -> pb.Json:
        match request.state:
            case "open" | "closed" | "auto" as state:
                return _json(await self._front.set_breaker(request.service, state))
            case other:
                raise InvalidPayload.at("$.state", f"one of open, closed, auto, not {other!r}")

    async def cluster(self, request: pb.Empty, context: Context) -> pb.Json:
        return _json(await self._front.cluster())

    # ------------------------------------------------------------ definitions

    async def put_definition(self, request: pb.PutDefinitionRequest, context: Context) -> pb.PutDefinitionReply:
        _check_definition_id(request.name, request.version)
        content = messages.object_from_json(request.definition_json, "$.definition")
        for member, expected in (("name", request.name), ("version", request.version)):
            if content.setdefault(member, expected) != expected:
                raise InvalidPayload.at(f"$.definition.{member}", f"differs from the request's, which is {expected!r}")
        created = await self._front.register(request.name, request.version, content, request.by)
        return pb.PutDefinitionReply(created=created)

    async def get_definition(self, request: pb.DefinitionId, context: Context) -> pb.Json:
        return _json(await self._front.definition(request.name, request.version or None))

    async def list_definitions(self, request: pb.Empty, context: Context) -> pb.Json:
        return _json(await self._front.definitions())

    async def definition_diagram(self, request: pb.DefinitionId, context: Context) -> pb.DiagramReply:
        _check_definition_id(request.name, request.version)
        return pb.DiagramReply(mermaid=await self._front.definition_diagram(request.name, request.version))

    # ------------------------------------------------------------ schedules

    async def put_schedule(self, request: pb.PutScheduleRequest, context: Context) -> pb.Json:
        _required(request, "name")
        content = messages.object_from_json(request.schedule_json, "$.schedule")
        return _json(await self._front.put_schedule(request.name, content, request.by))

    async def get_schedule(self, request: pb.ScheduleName, context: Context) -> pb.Json:
        return _json(await self._front.schedule(request.name))

    async def list_schedules(self, request: pb.Empty, context: Context) -> pb.Json:
        return _json(await self._front.schedules())

    async def control_schedule(self, request: pb.ControlScheduleRequest, context: Context) -> pb.Json:
        match request.action:
            case "pause" | "resume" | "delete" as action:
                return _json(
                    await self._front.control_schedule(request.name, action, by=request.by, reason=request.reason)
                )
            case other:
                raise InvalidPayload.at("$.action", f"one of pause, resume, delete, not {other!r}")


class Watch:
    """An open watch, as `Streams` knows it."""

    def __init__(self, id: str, queue: EventQueue) -> None:
        self.id = id
        self.queue = queue

    def stop(self) -> None:
        self.queue.stop(self.id, stopping())


def _json(value: Any) -> pb.Json:
    return pb.Json(json=messages.to_json(value))


def _required(request: Message, field: str) -> None:
    """Refuses a text that is absent, which protobuf does not tell from an empty one."""
    if not getattr(request, field):
        raise InvalidPayload.at(f"$.{field}", "required")


def _check_definition_id(name: str, version: int) -> None:
    if not name:
        raise InvalidPayload.at("$.name", "required")
    if version < 1:
        raise InvalidPayload.at("$.version", f"a whole number from 1, not {version}")
