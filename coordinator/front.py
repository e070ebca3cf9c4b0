"""What clients can ask, whatever transport they use: the one implementation of `transport.base.Front`.

Checks a request, asks the pipeline, shows the answer.  Commands under way are in the engine, finished ones in the
view, and their records in the log; this module knows where to look, and nothing else does.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator
from typing import Any, Literal

import msgspec
from msgspec import Raw

from coordinator import outcomes
from coordinator.admission.dedupe import attaches
from coordinator.admission.gate import Decision, Request
from coordinator.engine import diagram, views
from coordinator.engine.registry import Registry, fingerprint
from coordinator.engine.state import Command
from coordinator.errors import (
    CoordinatorError,
    InvalidPayload,
    Stopping,
    TooLarge,
    UnknownCommand,
    UnknownService,
)
from coordinator.model.command import FINAL, CommandView, Operation, State, Submission
from coordinator.model.durations import parse_duration
from coordinator.model.ids import CommandId, command_id, new_command_id, partition_of, position
from coordinator.model.records import NIL, SCHEMA, Registered, Submitted
from coordinator.pipeline import Lane, Pipeline
from coordinator.transport.base import CommandPage, Event, OutcomeItem, Unwatch, Want, Watcher
from coordinator.view import matches
from coordinator.wire.codec import decode

ATTRIBUTES_MAX = 32
LIST_MAX = 1000


class CoordinatorFront:
    """See `transport.base.Front` for what each method promises."""

    def __init__(self, pipeline: Pipeline, registry: Registry, *, name: str, payload_bytes_max: int = 1 << 20) -> None:
        self.pipeline = pipeline
        self.engine = pipeline.engine
        self.view = pipeline.view
        self.registry = registry
        self.name = name
        self.stopping = False
        self.payload_bytes_max = payload_bytes_max

    # ------------------------------------------------------------ submit

    def submit(self, submission: Submission, watcher: Watcher | None, want: Want = "events") -> tuple[str, Unwatch]:
        """Admits or raises; see Front."""
        try:
            id, decision, finished = self._admit(submission)
        except CoordinatorError as error:
            self.pipeline.metrics.refused(error.code)
            raise
        unwatch: Unwatch = _nothing
        if finished is not None:
            if watcher is not None:
                self._later(
                    watcher,
                    Event("accepted", id, finished.position, finished.state.value, view=finished, attached=True),
                )
                self._later(watcher, Event("final", id, finished.position, finished.state.value, view=finished))
        elif watcher is not None:
            unwatch = self.pipeline.watchers.add(id, watcher, want)
            known = self.engine.commands.get(id)
            if decision is Decision.ATTACH and known is not None:
                place = position(known.partition, known.offset)
                view = self._live_view(known) if want == "accepted" else None
                self._later(watcher, Event("accepted", id, place, known.state.value, view=view, attached=True))
        if decision is Decision.ADMIT:
            self.pipeline.metrics.submitted(submission.type or "definition")
            self.pipeline.schedule()
        return id, unwatch

    def _later(self, watcher: Watcher, event: Event) -> None:
        self.pipeline.loop.call_soon(watcher, event)

    def _admit(self, submission: Submission) -> tuple[CommandId, Decision, CommandView | None]:
        id = new_command_id() if submission.id is None else command_id(submission.id)
        if self.stopping:
            raise Stopping("this instance is stopping: go elsewhere, or ask again soon", retry_after_ms=1000)
        lane = self._lane(id)
        record, services = self._record(submission, id)
        if submission.id is not None and id not in self.engine.commands and id not in self.engine.reserved:
            known = self.view.fingerprint(id)
            if known is not None and attaches(id, record.fingerprint, known):
                return id, Decision.ATTACH, self.view.get(id)
        request = Request(id, record.fingerprint, services)
        decision = self.engine.submit(request, record, lane.partition, self.pipeline.now())
        return id, decision, None

    def _record(self, submission: Submission, id: CommandId) -> tuple[Submitted, frozenset[str]]:
        """The Submitted record of a checked submission, and the services that it needs."""
        faults: list[tuple[str, str]] = []
        if (submission.type is None) == (submission.definition is None):
            raise InvalidPayload.at("$", "either type or definition is needed, and not both")
        if submission.definition is not None:
            resolved = self.registry.resolve_inline(submission.definition)
        else:
            assert submission.type is not None
            resolved = self.registry.resolve(submission.type, submission.version)
        timeout = _duration(submission.timeout, "$.timeout", faults)
        if len(submission.attributes) > ATTRIBUTES_MAX:
            faults.append(("$.attributes", f"at most {ATTRIBUTES_MAX} attributes"))
        if not -1_000_000 <= submission.priority <= 1_000_000:
            faults.append(("$.priority", "a whole number from -1000000 to 1000000"))
        if faults:
            raise InvalidPayload.all(faults)
        resolved.check_payload(submission.payload)
        try:
            payload = Raw(msgspec.msgpack.encode(submission.payload))
            definition = NIL if submission.definition is None else Raw(msgspec.msgpack.encode(submission.definition))
            print_ = fingerprint(submission.type, submission.version, submission.payload, submission.definition)
        except (OverflowError, TypeError, ValueError, RecursionError, msgspec.MsgspecError) as error:
            raise InvalidPayload.at("$.payload", f"cannot be recorded: {error}") from error
        self._check_size("payload", len(bytes(payload)))
        self._check_size("definition", len(bytes(definition)))
        record = Submitted(
            SCHEMA,
            b"",
            self.pipeline.now(),
            id,
            resolved.name,
            resolved.version,
            payload,
            print_,
            definition=definition,
            timeout=timeout,
            attributes=dict(submission.attributes),
            priority=submission.priority,
        )
        return record, resolved.services

    def _check_size(self, what: str, size: int) -> None:
        limit = min(self.payload_bytes_max, self.pipeline.log.record_bytes_max // 2 - 4096)
        if size > limit:
            raise TooLarge(f"the {what} has {size} bytes, at most {limit} are allowed")

    async def submit_and_wait(self, submission: Submission, wait_ms: int) -> tuple[CommandView, bool]:
        """See Front; with ``admit_within`` a refusal for want of a slot, or a suspension, is waited out that long."""
        waiter = _Waiter()
        id, unwatch = await self._submit_within(submission, waiter)
        try:
            return await self._waited(waiter, id, wait_ms)
        finally:
            unwatch()

    async def _submit_within(self, submission: Submission, waiter: _Waiter) -> tuple[str, Unwatch]:
        within = _duration(submission.admit_within, "$.admit_within", None) or 0
        until = self.pipeline.loop.time() + within / 1000
        while True:
            try:
                return self.submit(submission, waiter, "final")
            except CoordinatorError as error:
                left = until - self.pipeline.loop.time()
                if not error.retryable or left <= 0 or self.stopping:
                    raise
                await asyncio.sleep(min(left, (error.retry_after_ms or 100) / 1000, 0.25))

    async def _waited(self, waiter: _Waiter, id: str, wait_ms: int) -> tuple[CommandView, bool]:
        await waiter.accepted
        if wait_ms:
            try:
                async with asyncio.timeout(wait_ms / 1000):
                    return await waiter.final, waiter.attached
            except TimeoutError:
                pass
        return self._view(id), waiter.attached

    # ------------------------------------------------------------ look

    def _lane(self, id: str) -> Lane:
        lane = self.pipeline.lanes[partition_of(id, len(self.pipeline.lanes))]
        if not lane.acting:
            raise lane.refusal
        return lane

    def _command(self, id: str) -> Command | None:
        self._lane(id)
        return self.engine.commands.get(CommandId(id))

    def _live_view(self, command: Command) -> CommandView:
        return views.command_view(command, self.registry.planned(command.submitted))

    def _view(self, id: str) -> CommandView:
        command = self._command(id)
        if command is not None:
            return self._live_view(command)
        finished = self.view.get(id)
        if finished is None:
            raise UnknownCommand(f"no command has the id {id!r}")
        return finished

    async def get(self, id: str, wait_ms: int = 0) -> CommandView:
        view = self._view(id)
        if wait_ms <= 0 or view.state in FINAL:
            return view
        waiter = _Waiter()
        unwatch = self.pipeline.watchers.add(id, waiter, "final")
        try:
            async with asyncio.timeout(wait_ms / 1000):
                return await waiter.final
        except TimeoutError:
            return self._view(id)
        finally:
            unwatch()

    def watch(self, id: str, watcher: Watcher, after: str | None = None) -> Unwatch:
        view = self._view(id)
        for event in self._past(id, view, after):
            self._later(watcher, event)
        if view.state in FINAL:
            return _nothing
        self.pipeline.watchers.shown.setdefault(id, view.state.value)
        return self.pipeline.watchers.add(id, watcher, "events")

    def _past(self, id: str, view: CommandView, after: str | None) -> list[Event]:
        """What a new watcher missed: the durable events after a position."""
        seen = -1
        if after is not None:
            try:
                seen = int(after.rpartition(":")[2])
            except ValueError:
                raise InvalidPayload.at("Last-Event-ID", "a position, for example 3:1841") from None
        events = []
        partition, records = self._records(id)
        for offset, record in records:
            kind = type(record).__name__
            if offset <= seen or kind in ("Finished", "Control", "Timer", "Signal"):
                continue
            place = position(partition, offset)
            if kind == "Submitted":
                events.append(Event("accepted", id, place, view.state.value))
            else:
                entry = views.history_entry(partition, offset, record)
                events.append(Event("step", id, place, view.state.value, record=entry))
        if view.state in FINAL:
            events.append(Event("final", id, position(partition, records[-1][0]), view.state.value, view=view))
        return events

    def _records(self, id: str) -> tuple[int, list[tuple[int, Any]]]:
        command = self._command(id)
        if command is not None:
            return command.partition, list(command.history)
        found = self.view.records(id)
        if found is None:
            raise UnknownCommand(f"no command has the id {id!r}")
        partition, records = found
        return partition, [(offset, decode(data, partition=partition, offset=offset)) for offset, data in records]

    async def list_commands(
        self, *, state: str | None, type: str | None, attributes: dict[str, str], limit: int, cursor: str | None
    ) -> CommandPage:
        self._all_lanes()
        if state is not None and state not in {each.value for each in State}:
            raise InvalidPayload.at("?state", f"one of {', '.join(each.value for each in State)}")
        if not 1 <= limit <= LIST_MAX:
            raise InvalidPayload.at("?limit", f"1 to {LIST_MAX}")
        before = _parse_cursor(cursor)
        found = self.view.newest(state=state, type=type, attributes=attributes, limit=limit + 1, before=before)
        live = sorted(
            (
                (command.submitted.at, command.id)
                for command in self.engine.commands.values()
                if (before is None or (command.submitted.at, command.id) < before)
                and (state is None or command.state == state)
                and (type is None or command.submitted.type == type)
            ),
            reverse=True,
        )
        for at, id in live:
            view = self._live_view(self.engine.commands[id])
            if matches(view, None, None, attributes):
                found.append((at, view))
                if len(found) > 2 * limit + 2:
                    break
        found.sort(key=lambda item: (item[0], item[1].id), reverse=True)
        page = found[:limit]
        more = len(found) > limit
        return CommandPage([view for _, view in page], _cursor(page[-1][0], page[-1][1].id) if more else None)

    def _all_lanes(self) -> None:
        for lane in self.pipeline.lanes:
            if not lane.acting:
                raise lane.refusal

    async def history(self, id: str) -> list[dict[str, Any]]:
        partition, records = self._records(id)
        return [views.history_entry(partition, offset, record) for offset, record in records]

    async def explain(self, id: str) -> dict[str, Any]:
        command = self._command(id)
        now = self.pipeline.now()
        if command is None:
            view = self._view(id)
            return {
                "id": id,
                "state": view.state.value,
                "since": view.finished_at,
                "waits": [],
                "summary": f"{view.state.value}: it has ended and waits for nothing",
            }
        lane = self.pipeline.lanes[command.partition]
        owner = {"instance": self.pipeline.instance, "address": self.pipeline.address, "epoch": lane.epoch}
        slots = (len(self.engine.slots), self.engine.settings.max_commands)
        return views.explain(command, now, owner=owner, slots=slots)

    async def diagram(self, id: str) -> str:
        command = self._command(id)
        if command is None:
            _, records = self._records(id)
            submitted = records[0][1]
        else:
            submitted = command.submitted
        return diagram.of_command(self._view(id), self.registry.definition_of(submitted))

    # ------------------------------------------------------------ control

    async def control(
        self,
        id: str,
        operation: Operation,
        *,
        reason: str,
        by: str,
        step: str = "",
        input: Any = None,
        replace_input: bool = False,
    ) -> CommandView:
        command = self._command(id)
        if command is None:
            from coordinator.engine.transitions import legal_states
            from coordinator.errors import IllegalState

            view = self._view(id)
            raise IllegalState(
                f"{operation.value} is not legal: the command is {view.state.value}",
                legal_states=legal_states(operation),
            )
        replaced = Raw(msgspec.msgpack.encode(input)) if replace_input else None
        if replaced is not None:
            self._check_size("input", len(bytes(replaced)))
        now = self.pipeline.now()
        if self.engine.control(command.id, operation, now, reason=reason, by=by, step=step, input=replaced):
            self.pipeline.pump()
            await self.pipeline.lanes[command.partition].settled()
        return self._view(id)

    # ------------------------------------------------------------ services, cluster

    def outcomes(self, service: str, start: str | None, follow: bool) -> AsyncIterator[list[OutcomeItem]]:
        if service not in self.engine.services:
            raise UnknownService(
                f"no service {service!r}; configured: {', '.join(sorted(self.engine.services)) or 'none'}"
            )
        self._all_lanes()
        return outcomes.stream(self.pipeline, service, outcomes.Start(start), follow, self._type_of)

    def _type_of(self, id: str) -> str:
        command = self.engine.commands.get(CommandId(id))
        if command is not None:
            return command.submitted.type
        finished = self.view.get(id)
        return finished.type if finished else ""

    async def dead_letters(self) -> list[dict[str, Any]]:
        self._all_lanes()
        return [
            item for command in self.engine.commands.values() if command.parked for item in views.dead_letters(command)
        ]

    async def services(self) -> list[dict[str, Any]]:
        now = self.pipeline.now()
        return [service.inspect(now) for service in self.engine.services.values()]

    async def set_breaker(self, service: str, state: Literal["open", "closed", "auto"]) -> dict[str, Any]:
        found = self.engine.services.get(service)
        if found is None:
            raise UnknownService(
                f"no service {service!r}; configured: {', '.join(sorted(self.engine.services)) or 'none'}"
            )
        now = self.pipeline.now()
        self.engine.set_breaker(found, None if state == "auto" else state, now)
        self.pipeline.schedule()
        return found.inspect(now)

    async def cluster(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "instance": self.pipeline.instance,
            "address": self.pipeline.address,
            "partitions": [
                {
                    "partition": lane.partition,
                    "state": "acting" if lane.acting else lane.refusal.code,
                    "epoch": lane.epoch,
                    "end": lane.end,
                    "since": views.timestamp(lane.acquired_at) if lane.acquired_at else None,
                    "owner": self.pipeline.instance if lane.acting else lane.owner[0] if lane.owner else None,
                }
                for lane in self.pipeline.lanes
            ],
            "commands": {
                "under_way": len(self.engine.commands),
                "slots": len(self.engine.slots),
                "max": self.engine.settings.max_commands,
            },
        }

    # ------------------------------------------------------------ definitions

    async def register(self, name: str, version: int, content: dict[str, Any], by: str) -> bool:
        lane = self.pipeline.lanes[0]
        if not lane.acting:
            raise lane.refusal
        if self.stopping:
            raise Stopping("this instance is stopping: go elsewhere, or ask again soon", retry_after_ms=1000)
        print_ = self.registry.check(name, version, content)
        if self.registry.has(name, version):
            return False
        encoded = Raw(msgspec.msgpack.encode(content))
        self._check_size("definition", len(bytes(encoded)))
        record = Registered(SCHEMA, b"", self.pipeline.now(), name, version, encoded, print_, by)
        self.engine.register(record, 0)
        self.pipeline.pump()
        await lane.settled()
        self.registry.check(name, version, content)  # another content may have been first in the log
        return True

    async def definition(self, name: str, version: int | None) -> dict[str, Any]:
        return self.registry.content(name, version)

    async def definitions(self) -> list[dict[str, Any]]:
        return self.registry.listing()

    async def definition_diagram(self, name: str, version: int) -> str:
        return diagram.of_definition(self.registry.definition(name, version))

    # ------------------------------------------------------------ health

    def ready(self) -> tuple[bool, dict[str, Any]]:
        waiting = {str(lane.partition): lane.refusal.detail for lane in self.pipeline.lanes if not lane.acting}
        if self.stopping:
            return False, {"ready": False, "why": "stopping"}
        return not waiting, {"ready": not waiting, "partitions": waiting}


def _nothing() -> None:
    pass


class _Waiter:
    """A watcher that one coroutine awaits: first `accepted`, then `final`."""

    __slots__ = ("accepted", "attached", "final")

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.accepted: asyncio.Future[None] = loop.create_future()
        self.final: asyncio.Future[CommandView] = loop.create_future()
        self.attached = False

    def __call__(self, event: Event) -> None:
        if event.kind == "error":
            error = event.error or CoordinatorError()
            for future in (self.accepted, self.final):
                if not future.done():
                    future.set_exception(error)
                    future.exception()  # whoever does not wait for it is not to be told of it by the loop
            return
        self.attached = self.attached or event.attached
        if not self.accepted.done():
            self.accepted.set_result(None)
        if event.kind == "final" and event.view is not None and not self.final.done():
            self.final.set_result(event.view)


def _duration(text: str | None, path: str, faults: list[tuple[str, str]] | None) -> int | None:
    if text is None:
        return None
    try:
        return parse_duration(text)
    except ValueError as error:
        if faults is None:
            raise InvalidPayload.at(path, str(error)) from error
        faults.append((path, str(error)))
        return None


def _cursor(at: int, id: str) -> str:
    return base64.urlsafe_b64encode(f"{at}/{id}".encode()).decode()


def _parse_cursor(cursor: str | None) -> tuple[int, str] | None:
    if cursor is None:
        return None
    try:
        at, slash, id = base64.urlsafe_b64decode(cursor.encode()).decode().partition("/")
        if not slash:
            raise ValueError
        return int(at), id
    except (ValueError, binascii.Error):
        raise InvalidPayload.at("?cursor", "not a cursor that a list has given") from None
