"""The Front of one instance among several: any instance takes any request, and its partition's owner answers it.

    of one command           here, or forwarded once to the owner of its partition
        submissions, watches, waits    as journeys, which survive the loss of the owner (`front.journey`)
        questions                      asked again where the partition has moved meanwhile
        controls, decisions            asked again only where the first time certainly did nothing
        data, callbacks                as controls, but asked again where they have an id by which they count once
    of one schedule          at the owner of the partition that its name has, as a command's
    of all commands          gathered from every owner; a partition that nobody owns is named as missing
    of the group             gathered from every instance
    definitions              recorded in every partition, the first of which decides between two

What arrives from another instance is served by ``local`` and never forwarded again: where two instances take each other
for the owner, the caller's instance hears `no_owner` and asks again, instead of the two playing ball.

Ids are made here, before anything is forwarded: whatever happens then, asking again finds the same command.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from typing import Any, Literal, TypeVar, cast

from coordinator.errors import CoordinatorError, NoOwner, Starting, UnknownService
from coordinator.front import CoordinatorFront, gather
from coordinator.front.asking import ANSWER_MS, Asking, answered, request
from coordinator.front.base import duration, stopping
from coordinator.front.journey import Journey
from coordinator.front.queries import without
from coordinator.front.routes import MOVED, Directory
from coordinator.front.streams import Outcomes
from coordinator.front.watching import Waiter
from coordinator.model.command import FINAL, CommandView, Operation, Submission
from coordinator.model.ids import CommandId, command_id, new_command_id
from coordinator.transport.base import CommandPage, Event, Gathered, OutcomeItem, Unwatch, Want, Watcher

T = TypeVar("T")


class RoutedFront(Asking):
    """See the module, and `transport.base.Front` for what each method promises.

    ``local`` is what peers are served by; ``look`` is to be called whenever the ``directory`` may answer differently.
    """

    def __init__(self, local: CoordinatorFront, directory: Directory) -> None:
        super().__init__(local, directory)
        self.look = self.routes.look
        self.stopping = False  # own clients are sent elsewhere; what peers forward is taken until its partition is gone

    def check_running(self) -> None:
        """For what is new work."""
        if self.stopping or self.local.stopping:
            raise stopping()

    @property
    def dedupe_horizon_ms(self) -> int:
        return self.local.dedupe_horizon_ms

    # ------------------------------------------------------------ submissions and watches

    def submit(self, submission: Submission, watcher: Watcher | None, want: Want = "events") -> tuple[str, Unwatch]:
        """Admits or raises where that is known at once; a refusal by another instance is told as ``error``."""
        self.check_running()
        id = new_command_id() if submission.id is None else command_id(submission.id)
        within = 0 if submission.admit_within is None else duration(submission.admit_within, "$.admit_within") or 0
        partition = self.partition_of(id)
        if watcher is None:
            watcher, want = _nobody, "accepted"
        journey = Journey(self.routes, partition, id, watcher, want, submission, within_ms=within)
        journey.begin()
        return id, journey.leave

    def watch(self, id: str, watcher: Watcher, after: str | None = None) -> Unwatch:
        return self._watch(id, watcher, "events", after)

    def _watch(self, id: str, watcher: Watcher, want: Want, after: str | None) -> Unwatch:
        journey = Journey(self.routes, self.partition_of(id), CommandId(id), watcher, want, None, after=after)
        journey.begin()
        return journey.leave

    async def submit_and_wait(self, submission: Submission, wait_ms: int) -> tuple[CommandView, bool]:
        waiter = Waiter()
        id, leave = self.submit(submission, waiter, "final" if wait_ms else "accepted")
        try:
            accepted = await waiter.accepted
            if wait_ms:
                try:
                    async with asyncio.timeout(wait_ms / 1000):
                        return await waiter.final, waiter.attached
                except TimeoutError:
                    accepted = None
        finally:
            leave()
        if accepted is None or self.routes.lanes[self.partition_of(id)].acting:
            accepted = await self.get(id)
        return accepted, waiter.attached

    async def get(self, id: str, wait_ms: int = 0) -> CommandView:
        view = await self._get(id)
        if wait_ms <= 0 or view.state in FINAL:
            return view
        waiter = Waiter()
        leave = self._watch(id, waiter, "final", view.position)
        try:
            async with asyncio.timeout(wait_ms / 1000):
                return await waiter.final
        except TimeoutError:
            return await self._get(id)
        finally:
            leave()

    async def _get(self, id: str) -> CommandView:
        return await self.of_command(id, "get", lambda: self.local.get(id), CommandView)

    # ------------------------------------------------------------ questions about one command

    async def history(self, id: str) -> list[dict[str, Any]]:
        return await self.of_command(id, "history", lambda: self.local.history(id))

    async def explain(self, id: str) -> dict[str, Any]:
        return await self.of_command(id, "explain", lambda: self.local.explain(id))

    async def diagram(self, id: str) -> str:
        return await self.of_command(id, "diagram", lambda: self.local.diagram(id))

    # ------------------------------------------------------------ controls

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
        params: dict[str, Any] = {"id": id, "reason": reason, "by": by}
        verb = "control"
        if operation in (Operation.REQUEUE, Operation.RESOLVE):
            verb = operation.value
            params |= {"step": step} | ({"input": input} if replace_input else {})
        else:
            params["operation"] = operation.value

        def here() -> Awaitable[CommandView]:
            return self.local.control(
                id, operation, reason=reason, by=by, step=step, input=input, replace_input=replace_input
            )

        look = f"{operation.value} may have been recorded, or not; look at the command before asking again"
        return await self.once(self.partition_of(id), verb, params, here, CommandView, look)

    # ------------------------------------------------------------ data, callbacks, decisions

    async def provide(self, id: str, name: str, value: Any, *, signal_id: str = "", by: str = "") -> CommandView:
        """Data with a ``signal_id`` counts once, so it may be sent again.

        None is made up for data without one: its owner tells by the value whether the same came twice.
        """
        params = {"id": id, "name": name, "value": value, "signal_id": signal_id, "by": by}

        def here() -> Awaitable[CommandView]:
            return self.local.provide(id, name, value, signal_id=signal_id, by=by)

        if signal_id:
            return await self.ask(self.partition_of(id), "provide", params, here, CommandView)
        look = "the data may have been recorded, or not; look at the command (what has a signal_id may be sent again)"
        return await self.once(self.partition_of(id), "provide", params, here, CommandView, look)

    async def callback(self, id: str, name: str, token: str, value: Any) -> None:
        """Counts once, so it may be sent again."""
        params = {"id": id, "name": name, "token": token, "value": value}
        await self.ask(self.partition_of(id), "callback", params, lambda: self.local.callback(id, name, token, value))

    async def decide(
        self, id: str, step: str, *, approve: bool, by: str, comment: str, roles: Collection[str] = ()
    ) -> CommandView:
        """Asked once: to decide again is illegal, also for who has decided and was not told so."""
        params = {"id": id, "step": step, "approve": approve, "by": by, "comment": comment, "roles": list(roles)}

        def here() -> Awaitable[CommandView]:
            return self.local.decide(id, step, approve=approve, by=by, comment=comment, roles=roles)

        look = "the decision may have been recorded, or not; look at the command before deciding again"
        return await self.once(self.partition_of(id), "decide", params, here, CommandView, look)

    async def decisions(self) -> list[dict[str, Any]]:
        found = await self.of_owners("decisions", self.local.decisions)
        return Gathered(gather.decisions(found), found.incomplete)

    # ------------------------------------------------------------ schedules

    async def put_schedule(self, name: str, content: dict[str, Any], by: str) -> dict[str, Any]:
        """May be sent again: what it makes is the same."""
        params = {"name": name, "content": content, "by": by}
        return await self._of_schedule(name, "put_schedule", params, lambda: self.local.put_schedule(name, content, by))

    async def schedule(self, name: str) -> dict[str, Any]:
        return await self._of_schedule(name, "schedule", {"name": name}, lambda: self.local.schedule(name))

    async def _of_schedule(
        self, name: str, operation: str, params: dict[str, Any], here: Callable[[], Awaitable[dict[str, Any]]]
    ) -> dict[str, Any]:
        return await self.ask(self.partition_of(name), operation, params, here)

    async def control_schedule(
        self, name: str, action: Literal["pause", "resume", "delete"], *, by: str, reason: str
    ) -> dict[str, Any]:
        """Asked once: after a deletion there is nothing to delete, and who was not told would think there never was."""
        params = {"name": name, "action": action, "by": by, "reason": reason}

        def here() -> Awaitable[dict[str, Any]]:
            return self.local.control_schedule(name, action, by=by, reason=reason)

        look = f"{action} may have been recorded, or not; look at the schedule before asking again"
        return await self.once(self.partition_of(name), "control_schedule", params, here, None, look)

    async def schedules(self) -> list[dict[str, Any]]:
        found = await self.of_owners("schedules", self.local.schedules)
        return Gathered(gather.schedules(found), found.incomplete)

    # ------------------------------------------------------------ many commands

    async def list_commands(
        self, *, state: str | None, type: str | None, attributes: dict[str, str], limit: int, cursor: str | None
    ) -> CommandPage:
        def here() -> Awaitable[CommandPage]:
            return self.local.list_commands(state=state, type=type, attributes=attributes, limit=limit, cursor=cursor)

        params = {"state": state, "type": type, "attributes": attributes, "limit": limit, "cursor": cursor}
        answers = await self.everywhere("list", params, here, CommandPage)
        return gather.pages([page for _, page in answers], limit)

    async def dead_letters(self) -> list[dict[str, Any]]:
        return await self.of_owners("dead_letters", self.local.dead_letters)

    async def quarantine(self) -> list[dict[str, Any]]:
        """Of every instance that answers: one that owns nothing may still have a partition that stopped."""
        here = await answered(self.local.quarantine())
        answers = [*(await self.of_others("quarantine", {})).values()]
        if not isinstance(here, CoordinatorError):
            answers.append(here)
        elif not answers:
            raise here
        items = sorted((item for each in answers for item in each), key=lambda item: item["partition"])
        told = {item["partition"] for item in items}
        lacking = (each for each in range(self.partitions) if each not in told and not self.routes.served(each))
        return Gathered(items, tuple(lacking))

    async def log_state(self) -> list[dict[str, Any]]:
        answers = await self.everywhere("log", {}, self.local.log_state)
        rows = sorted((row for _, rows in answers for row in rows), key=lambda row: row["partition"])
        return Gathered(rows, without(rows, self.partitions))

    # ------------------------------------------------------------ outcomes, services

    def outcomes(
        self, service: str, start: str | None, follow: bool, partitions: Collection[int] | None = None
    ) -> AsyncIterator[list[OutcomeItem]]:
        return Outcomes(self.routes, service, start, follow, partitions).batches()

    async def services(self) -> list[dict[str, Any]]:
        here = await self.local.services()
        answers = await self.of_others("services", {})
        return gather.services(here, answers)

    async def set_breaker(self, service: str, state: Literal["open", "closed", "auto"]) -> dict[str, Any]:
        """On every instance; ``instances`` of the answer tells each one's breaker, ``unreached`` who was not told."""
        known: dict[str, Any] | None = None
        unknown: UnknownService | None = None
        try:
            known = await self.local.set_breaker(service, state)
        except UnknownService as error:
            unknown = error
        answers = await self.of_others("set_breaker", {"service": service, "state": state})
        known = known or next(iter(answers.values()), None)
        if known is None:
            assert unknown is not None
            raise unknown
        own = self.local.pipeline.instance
        members = {each["instance"] for each in self.directory.describe()["instances"]}
        breakers = {instance: answer["breaker"] for instance, answer in answers.items()}
        return {**known, "instances": breakers, "unreached": sorted(members - answers.keys() - {own})}

    # ------------------------------------------------------------ definitions

    async def register(
        self, name: str, version: int, content: dict[str, Any], by: str, partitions: Collection[int] | None = None
    ) -> bool:
        """The first partition's owner decides whether the content may be registered; then every other's records it.

        The first one is partition 0, named or not: two that decide could decide two ways.
        """
        self.check_running()
        wanted = self.local.partitions({0, *partitions} if partitions else partitions)
        first, *rest = wanted
        created = await self._register(first, name, version, content, by)
        results = await asyncio.gather(
            *(self._register(each, name, version, content, by) for each in rest), return_exceptions=True
        )
        failed = {each: result for each, result in zip(rest, results, strict=True) if isinstance(result, BaseException)}
        for error in failed.values():
            if not isinstance(error, CoordinatorError) or not error.retryable:
                raise error
        if failed:
            done = [each for each in wanted if each not in failed]
            why = next(iter(failed.values()))
            raise NoOwner(
                f"{name} version {version} is recorded in partitions {_listed(done)}, but not yet in "
                f"{_listed(failed)}: {why}; send it again",
                retry_after_ms=1000,
                registered=done,
                missing=list(failed),
            )
        return created

    async def _register(self, partition: int, name: str, version: int, content: dict[str, Any], by: str) -> bool:
        params = {"name": name, "version": version, "content": content, "by": by, "partitions": [partition]}

        async def here() -> dict[str, Any]:
            return {"created": await self.local.register(name, version, content, by, [partition])}

        answer = await self.ask(partition, "put_definition", params, here)
        return bool(answer["created"])

    async def definition(self, name: str, version: int | None) -> dict[str, Any]:
        """A version never changes, so one that is known here is the answer; what is newest, the first owner knows."""
        if version is not None and self.local.registry.has(name, version):
            return await self.local.definition(name, version)
        params = {"name": name, "version": version}
        return await self._of_registry("get_definition", params, lambda: self.local.definition(name, version))

    async def definitions(self) -> list[dict[str, Any]]:
        return await self._of_registry("definitions", {}, self.local.definitions)

    async def definition_diagram(self, name: str, version: int) -> str:
        if self.local.registry.has(name, version):
            return await self.local.definition_diagram(name, version)
        params = {"name": name, "version": version}
        return await self._of_registry(
            "definition_diagram", params, lambda: self.local.definition_diagram(name, version)
        )

    async def _of_registry(self, operation: str, params: dict[str, Any], here: Callable[[], Awaitable[T]]) -> T:
        """From partition 0's owner; while it has none, from any log that was read here: all have the same."""
        try:
            link = self.routes.place(0)
            if link is not None:
                return cast("T", await request(link, operation, params, ANSWER_MS))
        except MOVED:
            if not any(lane.acting for lane in self.routes.lanes):
                return await self.ask(0, operation, params, here)
        return await here()

    # ------------------------------------------------------------ the group

    async def cluster(self) -> dict[str, Any]:
        here = await self.local.cluster()
        return gather.cluster(here, await self.of_others("cluster", {}), self.directory.describe())

    def ready(self) -> tuple[bool, dict[str, Any]]:
        """Every partition that this instance ought to own acts, and somebody can be asked at all."""
        if self.stopping or self.local.stopping:
            return False, {"ready": False, "code": "stopping", "why": "this instance is stopping"}
        lanes = self.routes.lanes
        waiting = [lanes[partition] for partition in self.directory.wanted() if not lanes[partition].acting]
        details: dict[str, Any] = {"ready": not waiting}
        if waiting:
            details |= {"code": waiting[0].refusal.code, "why": waiting[0].refusal.detail}
        elif not any(map(self.routes.served, range(self.partitions))):
            code = "starting" if isinstance(lanes[0].refusal, Starting) else "no_owner"
            details |= {"ready": False, "code": code, "why": "no partition has an owner that can be reached yet"}
        details["partitions"] = {str(lane.partition): lane.refusal.detail for lane in waiting}
        return details["ready"], details


def _nobody(event: Event) -> None:
    """The watcher of who does not watch: its submission is made sure of all the same."""


def _listed(partitions: Collection[int]) -> str:
    return ", ".join(map(str, partitions)) or "none"
