"""What each operation of a Request frame asks of the Front: one small function an operation, found by name.

Submit and watch are not here: they answer with events and need no task (`transport.tcp`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from coordinator.model.command import Operation
from coordinator.transport.base import Front
from coordinator.wire.frames import (
    BreakerParams,
    CallbackParams,
    ControlParams,
    ControlScheduleParams,
    DecideParams,
    DrawDefinitionParams,
    GetDefinitionParams,
    GetParams,
    ListParams,
    Nothing,
    OfCommand,
    OfSchedule,
    ProvideParams,
    PutDefinitionParams,
    PutScheduleParams,
    RequeueParams,
    ResolveParams,
)

Handler = Callable[[Front, Any], Awaitable[Any]]


async def _get(front: Front, params: GetParams) -> Any:
    return await front.get(params.id, params.wait_ms)


async def _list(front: Front, params: ListParams) -> Any:
    return await front.list_commands(
        state=params.state,
        type=params.type,
        attributes=params.attributes,
        limit=params.limit,
        cursor=params.cursor,
    )


async def _history(front: Front, params: OfCommand) -> Any:
    return await front.history(params.id)


async def _explain(front: Front, params: OfCommand) -> Any:
    return await front.explain(params.id)


async def _diagram(front: Front, params: OfCommand) -> Any:
    return await front.diagram(params.id)


async def _control(front: Front, params: ControlParams) -> Any:
    return await front.control(params.id, Operation(params.operation), reason=params.reason, by=params.by)


async def _requeue(front: Front, params: RequeueParams) -> Any:
    replace = params.input is not msgspec.UNSET
    return await front.control(
        params.id,
        Operation.REQUEUE,
        reason=params.reason,
        by=params.by,
        step=params.step,
        input=params.input if replace else None,
        replace_input=replace,
    )


async def _resolve(front: Front, params: ResolveParams) -> Any:
    return await front.control(params.id, Operation.RESOLVE, reason=params.reason, by=params.by, step=params.step)


async def _provide(front: Front, params: ProvideParams) -> Any:
    return await front.provide(params.id, params.name, params.value, signal_id=params.signal_id, by=params.by)


async def _callback(front: Front, params: CallbackParams) -> Any:
    await front.callback(params.id, params.name, params.token, params.value)


async def _decide(front: Front, params: DecideParams) -> Any:
    return await front.decide(
        params.id, params.step, approve=params.approve, by=params.by, comment=params.comment, roles=params.roles
    )


async def _decisions(front: Front, params: Nothing) -> Any:
    return await front.decisions()


async def _dead_letters(front: Front, params: Nothing) -> Any:
    return await front.dead_letters()


async def _quarantine(front: Front, params: Nothing) -> Any:
    return await front.quarantine()


async def _log(front: Front, params: Nothing) -> Any:
    return await front.log_state()


async def _services(front: Front, params: Nothing) -> Any:
    return await front.services()


async def _set_breaker(front: Front, params: BreakerParams) -> Any:
    return await front.set_breaker(params.service, params.state)


async def _cluster(front: Front, params: Nothing) -> Any:
    return await front.cluster()


async def _ready(front: Front, params: Nothing) -> Any:
    ready, reasons = front.ready()
    return {"ready": ready, **reasons}


async def _put_definition(front: Front, params: PutDefinitionParams) -> Any:
    created = await front.register(params.name, params.version, params.content, params.by, params.partitions)
    return {"name": params.name, "version": params.version, "created": created}


async def _get_definition(front: Front, params: GetDefinitionParams) -> Any:
    return await front.definition(params.name, params.version)


async def _definitions(front: Front, params: Nothing) -> Any:
    return await front.definitions()


async def _definition_diagram(front: Front, params: DrawDefinitionParams) -> Any:
    return await front.definition_diagram(params.name, params.version)


async def _put_schedule(front: Front, params: PutScheduleParams) -> Any:
    return await front.put_schedule(params.name, params.content, params.by)


async def _schedule(front: Front, params: OfSchedule) -> Any:
    return await front.schedule(params.name)


async def _schedules(front: Front, params: Nothing) -> Any:
    return await front.schedules()


async def _control_schedule(front: Front, params: ControlScheduleParams) -> Any:
    return await front.control_schedule(params.name, params.action, by=params.by, reason=params.reason)


HANDLERS: dict[str, Handler] = {
    "get": _get,
    "list": _list,
    "history": _history,
    "explain": _explain,
    "diagram": _diagram,
    "control": _control,
    "requeue": _requeue,
    "resolve": _resolve,
    "provide": _provide,
    "callback": _callback,
    "decide": _decide,
    "decisions": _decisions,
    "dead_letters": _dead_letters,
    "quarantine": _quarantine,
    "log": _log,
    "services": _services,
    "set_breaker": _set_breaker,
    "cluster": _cluster,
    "ready": _ready,
    "put_definition": _put_definition,
    "get_definition": _get_definition,
    "definitions": _definitions,
    "definition_diagram": _definition_diagram,
    "put_schedule": _put_schedule,
    "schedule": _schedule,
    "schedules": _schedules,
    "control_schedule": _control_schedule,
}
