"""The asynchronous client: one call becomes as many attempts as it takes, over the addresses it was given.

What makes that safe is the id: it is made here, before the first attempt, so an attempt whose answer was lost and the
one after it are the same command to the server, or the same datum.  A decision has no id: one that is refused the
second time comes with what was decided, and may be our own.  What ends a call is patience, never a number of attempts:
a coordinator that restarts or waits for a broken service is away for seconds, and a caller says best how many are too
many.
"""

from __future__ import annotations

import asyncio
import builtins
import math
import os
import ssl as ssl_module
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from types import TracebackType
from typing import Any

import msgspec

from coordinator_client.calls import Calls, Settle
from coordinator_client.endpoint import Progress
from coordinator_client.errors import (
    ConnectionLost,
    CoordinatorError,
    Refused,
    UnknownSchedule,
    WaitTimeout,
)
from coordinator_client.models import (
    Command,
    Event,
    Outcome,
    PendingDecision,
    Schedule,
    command_of,
    item_of,
    items_of,
)
from coordinator_client.retry import RetryPolicy
from coordinator_client.values import Duration, duration_text, json_value, seconds

Records = list[dict[str, Any]]

PATIENCE_S = 60.0
WAIT_CHUNK_S = 30.0  # one request of a long wait


def new_command_id() -> str:
    """16 random bytes as hex."""
    return os.urandom(16).hex()


new_signal_id = new_command_id
"""What makes one datum differ from another with the same value."""


class AsyncClient:
    """A client of one coordinator, or of a group of instances that share a log.

    ``url`` is one address or several, all of one group, as a list or with commas: ``tcp://host:port``, ``tcps://``
    (TLS), ``http://``, ``https://``. Nothing is connected before the first call. ``connections`` is the number of
    pipelined TCP connections an address (HTTP keeps a pool of up to 64). ``deadline`` is the default patience of every
    call: how long retryable errors are retried. Durations are seconds, text such as ``"1.5s"``, or a timedelta.

    All methods raise CoordinatorError (see `coordinator_client.errors`), ValueError for arguments that make no sense,
    and are safe to cancel: a command that was submitted runs on, a cancel only stops the waiting. Use from one event
    loop.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        *,
        connections: int = 1,
        deadline: Duration = PATIENCE_S,
        retry: RetryPolicy | None = None,
        ssl: ssl_module.SSLContext | None = None,
        token: str | None = None,
    ) -> None:
        self._calls = Calls(url, connections=connections, policy=retry, ssl=ssl, token=token)
        self._patience_s = seconds(deadline, "deadline")

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, why: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes all connections; calls under way raise ConnectionLost.  The client may be used again."""
        await self._calls.close()

    # ------------------------------------------------------------------------------------------------------ commands

    async def submit(
        self,
        type: str | None = None,
        payload: Any = None,
        *,
        definition: Mapping[str, Any] | None = None,
        id: str | None = None,
        version: int | None = None,
        timeout: Duration | None = None,
        attributes: Mapping[str, str | int | float | bool] | None = None,
        priority: int = 0,
        admit_within: Duration | None = None,
        delay: Duration | None = None,
        wait: Duration | None = None,
        deadline: Duration | None = None,
        result_type: type[Any] | None = None,
    ) -> Command:
        """Runs a command: of a registered ``type``, or of an inline ``definition``.

        Returns once it is durable; with ``wait``, once it has ended, but no later than ``wait`` after it was accepted:
        then the command as it is comes back, so look at ``.final``, ``.ok`` or call ``.raise_for_state()``.

        ``payload`` is a JSON value, a msgspec Struct or a dataclass. ``id`` makes the call repeatable by the caller as
        well: the same id and payload attach to the command that is there. ``timeout`` is the command's own deadline,
        kept by the server; ``admit_within`` lets the server queue it for a slot; ``delay`` lets it begin so much later,
        when ``timeout`` begins to count. ``deadline`` is this call's patience until the command is accepted, by
        default 60 s or ``wait``, whichever is longer; through it the call waits for suspended services, a full or
        restarting server; then the last error is raised, with ``.command_id``. ``result_type`` converts the result.
        """
        if (type is None) == (definition is None):
            raise ValueError("give either a type or a definition")
        command_id = id if id is not None else new_command_id()
        wait_s = 0.0 if wait is None else seconds(wait, "wait")
        within_s = max(self._patience_s, wait_s) if deadline is None else seconds(deadline, "deadline")
        submission = {
            "id": command_id,
            "type": type,
            "version": version,
            "definition": None if definition is None else json_value(definition, "$.definition"),
            "payload": json_value(payload, "$.payload"),
            "priority": priority,
            "timeout": duration_text(timeout, "timeout"),
            "attributes": json_value(dict(attributes or {}), "$.attributes"),
            "admit_within": duration_text(admit_within, "admit_within"),
            "delay": duration_text(delay, "delay"),
        }
        progress = Progress(within_s, wait_s)
        view = await self._submit({name: value for name, value in submission.items() if value is not None}, progress)
        return command_of(view, result_type)

    async def start(self, type: str | None = None, payload: Any = None, **options: Any) -> str:
        """As `submit` without ``wait``; returns the command's id."""
        return (await self.submit(type, payload, **options)).id

    async def _submit(self, submission: dict[str, Any], progress: Progress) -> Any:
        """The retry loop of a submission, whose patience changes when it is accepted."""
        backoff = self._calls.backoff()
        last: CoordinatorError | None = None
        while True:
            endpoint = self._calls.endpoint()
            try:
                async with progress.timeout():
                    return await endpoint.submit(submission, progress)
            except TimeoutError:
                last = last or WaitTimeout("no server accepted the command in time")
            except WaitTimeout as error:
                last = last or error
            except CoordinatorError as error:
                error.command_id = submission["id"]
                self._calls.leave(endpoint, error)
                delay_s = backoff.delay(error, progress.remaining_s)
                last = error
                if delay_s is not None:
                    await asyncio.sleep(delay_s)
                    continue
                if not error.retryable:
                    raise
            last.command_id = submission["id"]
            if not progress.accepted:
                raise last
            return await self._present(submission["id"], last)

    async def _present(self, id: str, why: CoordinatorError) -> Any:
        """The view of an accepted command whose end did not come in time."""
        try:
            return await self._request("get", {"id": id, "wait_ms": 0}, min(5.0, self._patience_s))
        except CoordinatorError as error:
            timeout = WaitTimeout(f"the command was accepted, but its state is not known: {error.detail}")
            timeout.command_id = id
            raise timeout from why

    async def get(self, id: str, *, result_type: type[Any] | None = None, deadline: Duration | None = None) -> Command:
        """The command as it is now; raises UnknownCommand."""
        return command_of(await self._request("get", {"id": id, "wait_ms": 0}, self._patience(deadline)), result_type)

    async def wait(self, id: str, timeout: Duration | None = None, *, result_type: type[Any] | None = None) -> Command:
        """The command at its end, through suspension, restarts and lost connections.

        Raises WaitTimeout after ``timeout`` (default: never), with the last view in ``.command``; UnknownCommand.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds(timeout)
        command: Command | None = None
        while True:
            remaining_s = until - loop.time()
            try:
                chunk_ms = max(0, math.ceil(min(remaining_s, WAIT_CHUNK_S) * 1000))
                view = await self._request("get", {"id": id, "wait_ms": chunk_ms}, max(remaining_s, 0.0) + 1.0)
                command = command_of(view, result_type)
            except CoordinatorError as error:
                if not error.retryable:
                    raise
                error_detail = error.detail
            else:
                if command.final:
                    return command
                error_detail = f"the command is still {command.state}"
            if until - loop.time() <= 0:
                overdue = WaitTimeout(error_detail)
                overdue.command_id, overdue.command = id, command
                raise overdue

    async def watch(
        self, id: str, after: str | None = None, *, deadline: Duration | None = None
    ) -> AsyncIterator[Event]:
        """Events of a command until its end, from the beginning or after a position; reconnects when interrupted.

        ``deadline``: how long in a row no server may answer before the last error is raised (default: for ever).
        """
        loop = asyncio.get_running_loop()
        patience_s = seconds(deadline)
        position = after
        backoff = self._calls.backoff()
        lost_since = loop.time()
        while True:
            endpoint = self._calls.endpoint()
            try:
                async for event in endpoint.watch(id, position):
                    backoff.reset()
                    lost_since = math.inf
                    position = event.position or position
                    yield event
                    if event.kind == "final":
                        return
                raise ConnectionLost("the watch ended before the command did")
            except CoordinatorError as error:
                lost_since = min(lost_since, loop.time())
                await self._calls.pause(endpoint, error, backoff, lost_since + patience_s - loop.time(), id)

    async def list(
        self,
        *,
        state: str | None = None,
        type: str | None = None,
        attributes: Mapping[str, str] | None = None,
        limit: int | None = None,
        page: int = 100,
    ) -> AsyncIterator[Command]:
        """Commands, newest first, fetched by pages of ``page`` as they are consumed; at most ``limit``."""
        cursor: str | None = None
        left = math.inf if limit is None else limit
        while left > 0:
            params = {
                "state": state,
                "type": type,
                "attributes": dict(attributes or {}),
                "limit": int(min(page, left)),
                "cursor": cursor,
            }
            answer = await self._request("list", params)
            for view in answer["commands"]:
                left -= 1
                yield command_of(view)
            cursor = answer.get("next_cursor")
            if cursor is None:
                return

    async def history(self, id: str) -> Records:
        """Every record of the command, in log order."""
        return _items(await self._request("history", {"id": id}))

    async def explain(self, id: str) -> dict[str, Any]:
        """Why the command is not moving."""
        return dict(await self._request("explain", {"id": id}))

    async def diagram(self, id: str) -> str:
        """Mermaid text of its steps with their states."""
        return str(await self._request("diagram", {"id": id}))

    # ------------------------------------------------------------------------------------------------------ controls

    async def pause(self, id: str, reason: str = "", by: str = "") -> Command:
        """No further step until it is resumed.  As all controls: raises IllegalState, and returns the command."""
        return await self._control(id, "pause", reason, by)

    async def resume(self, id: str, reason: str = "", by: str = "") -> Command:
        """Goes on after a pause."""
        return await self._control(id, "resume", reason, by)

    async def cancel(self, id: str, reason: str = "", by: str = "") -> Command:
        """Undoes back to the start."""
        return await self._control(id, "cancel", reason, by)

    async def abort(self, id: str, reason: str = "", by: str = "") -> Command:
        """Ends it at once, without undo."""
        return await self._control(id, "abort", reason, by)

    async def retry(self, id: str, reason: str = "", by: str = "") -> Command:
        """Goes on after the last success."""
        return await self._control(id, "retry", reason, by)

    async def requeue(
        self, id: str, step: str, *, input: Any = msgspec.UNSET, reason: str = "", by: str = ""
    ) -> Command:
        """Runs a dead-lettered step again; ``input``, if given, None too, replaces the body of its request."""
        params = {"id": id, "step": step, "reason": reason, "by": by}
        if input is not msgspec.UNSET:
            params["input"] = json_value(input, "$.input")
        return command_of(await self._request("requeue", params, once=True))

    async def resolve(self, id: str, step: str, reason: str = "", by: str = "") -> Command:
        """Takes a dead-lettered undo for done, by hand; ``by`` and ``reason`` stay in the history."""
        params = {"id": id, "step": step, "reason": reason, "by": by}
        return command_of(await self._request("resolve", params, once=True))

    async def _control(self, id: str, operation: str, reason: str, by: str) -> Command:
        params = {"id": id, "operation": operation, "reason": reason, "by": by}
        return command_of(await self._request("control", params, once=True))

    # ---------------------------------------------------------------------------------------------- data and decisions

    async def provide(self, id: str, name: str, value: Any, *, signal_id: str | None = None, by: str = "") -> Command:
        """Hands a command the data that it waits for under ``name``, or will wait for; any JSON value.

        It is delivered once, also where this call had to be repeated.  ``signal_id``, made here by default, keeps that
        true across your own restarts: the same one again changes nothing, whatever has become of the command.  Raises
        UnknownStep where the command waits for nothing of that name ever, IllegalState where it has ended.
        """
        signal_id = signal_id or new_signal_id()
        params = {"id": id, "name": name, "value": json_value(value, "$.value"), "signal_id": signal_id, "by": by}
        return command_of(await self._request("provide", params))

    async def decide(
        self, id: str, step: str, *, approve: bool, by: str = "", comment: str = "", roles: Collection[str] = ()
    ) -> Command:
        """A person's decision that the command waits for; see `decisions`.  ``roles`` are those that the person has.

        Raises Forbidden where none of them may decide, IllegalState where nobody is asked for it now or it has been
        decided (unless this very call did so, and had to be repeated since its answer was lost), UnknownStep.
        """
        held = [roles] if isinstance(roles, str) else [*roles]  # a text is a collection of letters, too
        params = {"id": id, "step": step, "approve": approve, "by": by, "comment": comment, "roles": held}

        async def settle(refused: Refused) -> Any:
            made = refused.extra.get("decided") or {}
            if (made.get("approve"), made.get("by")) != (approve, by):
                raise refused
            return await self._request("get", {"id": id, "wait_ms": 0})

        return command_of(await self._request("decide", params, settle=settle))

    async def decisions(self) -> builtins.list[PendingDecision]:
        """The decisions that commands wait for, the oldest first."""
        return items_of(_items(await self._request("decisions", {})), PendingDecision)

    # ------------------------------------------------------------------------------------------------------ schedules

    async def put_schedule(self, name: str, content: Mapping[str, Any], by: str = "") -> Schedule:
        """Makes or replaces a schedule: what is submitted, and when.  Raises InvalidPayload."""
        params = {"name": name, "content": json_value(content), "by": by}
        return item_of(await self._request("put_schedule", params), Schedule)

    async def get_schedule(self, name: str) -> Schedule:
        """A schedule as it is now; raises UnknownSchedule."""
        return item_of(await self._request("schedule", {"name": name}), Schedule)

    async def schedules(self) -> builtins.list[Schedule]:
        """All schedules, by name."""
        return items_of(_items(await self._request("schedules", {})), Schedule)

    async def pause_schedule(self, name: str, reason: str = "", by: str = "") -> Schedule:
        """No further runs until it is resumed; one that is under way goes on."""
        return item_of(await self._control_schedule(name, "pause", reason, by), Schedule)

    async def resume_schedule(self, name: str, reason: str = "", by: str = "") -> Schedule:
        """Goes on after a pause."""
        return item_of(await self._control_schedule(name, "resume", reason, by), Schedule)

    async def delete_schedule(self, name: str, reason: str = "", by: str = "") -> None:
        """Ends a schedule; a run that is under way goes on.  Raises UnknownSchedule."""

        async def settle(refused: Refused) -> None:
            if not isinstance(refused, UnknownSchedule):
                raise refused

        await self._control_schedule(name, "delete", reason, by, settle)

    async def _control_schedule(
        self, name: str, action: str, reason: str, by: str, settle: Settle | None = None
    ) -> Any:
        params = {"name": name, "action": action, "reason": reason, "by": by}
        return await self._request("control_schedule", params, settle=settle)

    # --------------------------------------------------------------------------------------- services and definitions

    async def outcomes(
        self, service: str, start: str | None = None, *, follow: bool = False, deadline: Duration | None = None
    ) -> AsyncIterator[Outcome]:
        """A service's outcomes in log order, from a position (inclusive) or an RFC 3339 time; resumes when interrupted.

        To go on later, keep the last ``position`` and skip the first item then. ``follow`` waits for new ones for ever;
        they come in the order of each partition, so one position does not tell where the others stood.
        """
        loop = asyncio.get_running_loop()
        patience_s = self._patience(deadline)
        backoff = self._calls.backoff()
        reached: dict[str, int] = {}  # the last offset of each partition
        begin = start
        lost_since = loop.time()
        while True:
            endpoint = self._calls.endpoint()
            try:
                async for batch in endpoint.outcomes(service, begin, follow):
                    backoff.reset()
                    lost_since = math.inf
                    for item in batch:
                        outcome = msgspec.convert(item, Outcome)
                        partition, _, offset = outcome.position.partition(":")
                        if int(offset) > reached.get(partition, -1):
                            reached[partition] = int(offset)
                            begin = begin if follow else outcome.position
                            yield outcome
                return
            except CoordinatorError as error:
                lost_since = min(lost_since, loop.time())
                await self._calls.pause(endpoint, error, backoff, lost_since + patience_s - loop.time(), None)

    async def dead_letters(self) -> Records:
        """Steps that wait for an operator."""
        return _items(await self._request("dead_letters", {}))

    async def quarantine(self) -> Records:
        """Records of the log that cannot be read or applied, and what became of their command or partition."""
        return _items(await self._request("quarantine", {}))

    async def log(self) -> Records:
        """What is kept of each partition's log, and why; how much a take-over would have to read."""
        return _items(await self._request("log", {}))

    async def services(self) -> Records:
        """Breakers, calls in flight and delayed commands of each service."""
        return _items(await self._request("services", {}))

    async def set_breaker(self, service: str, state: str) -> dict[str, Any]:
        """``open``, ``closed`` or ``auto``, by an operator."""
        return dict(await self._request("set_breaker", {"service": service, "state": state}))

    async def cluster(self) -> dict[str, Any]:
        """Instances, partitions, epochs."""
        return dict(await self._request("cluster", {}))

    async def put_definition(self, name: str, version: int, content: Mapping[str, Any], by: str = "") -> bool:
        """Registers a definition; False if the same was there.  Raises DefinitionConflict, InvalidPayload."""
        params = {"name": name, "version": version, "content": json_value(content), "by": by}
        return bool((await self._request("put_definition", params))["created"])

    async def get_definition(self, name: str, version: int | None = None) -> dict[str, Any]:
        """A registered definition, the newest version by default; raises UnknownDefinition."""
        return dict(await self._request("get_definition", {"name": name, "version": version}))

    async def definitions(self) -> Records:
        """All registered definitions."""
        return _items(await self._request("definitions", {}))

    async def definition_diagram(self, name: str, version: int) -> str:
        """Mermaid text of a definition."""
        params = {"name": name, "version": version}
        return str(await self._request("definition_diagram", params))

    # -------------------------------------------------------------------------------------------------------- asking

    def _patience(self, deadline: Duration | None) -> float:
        return self._patience_s if deadline is None else seconds(deadline, "deadline")

    async def _request(
        self,
        operation: str,
        params: dict[str, Any],
        patience_s: float | None = None,
        *,
        once: bool = False,
        settle: Settle | None = None,
    ) -> Any:
        """See `Calls.ask`."""
        patience_s = self._patience_s if patience_s is None else patience_s
        return await self._calls.ask(operation, params, patience_s, once=once, settle=settle)


def _items(answer: Any) -> Records:
    """A list, also where it is wrapped in an object with that one member."""
    if isinstance(answer, dict):
        lists = [value for value in answer.values() if isinstance(value, list)]
        answer = lists[0] if lists else []
    return [*answer]
