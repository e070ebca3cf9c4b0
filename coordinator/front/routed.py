"""The Front of one instance among several: any instance takes any request, and its partition's owner answers it.

    of one command           here, or forwarded once to the owner of its partition
        submissions, watches, waits    as journeys, which survive the loss of the owner (`front.journey`)
        questions                      asked again where the partition has moved meanwhile
        controls                       asked again only where the first time certainly did nothing
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
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, cast

import msgspec

from coordinator.errors import CoordinatorError, LinkLost, LogUnavailable, NoOwner, Starting, UnknownService
from coordinator.front import CoordinatorFront, gather
from coordinator.front.base import duration, stopping
from coordinator.front.journey import Journey
from coordinator.front.queries import without
from coordinator.front.routes import MOVED, NOBODY_S, Directory, Routes, until_after
from coordinator.front.streams import Outcomes
from coordinator.front.watching import Waiter
from coordinator.model.command import FINAL, CommandView, Operation, Submission
from coordinator.model.ids import CommandId, command_id, new_command_id, partition_of
from coordinator.transport.base import CommandPage, Event, Gathered, OutcomeItem, Unwatch, Want, Watcher, caller

if TYPE_CHECKING:
    from coordinator.cluster.link import Link

T = TypeVar("T")

ANSWER_MS: Final = 10_000
"""How long another instance may take over a question; a hung one is noticed sooner."""
GATHER_MS: Final = 2_000
"""How long a list waits for an instance before it goes without it."""


class RoutedFront:
    """See the module, and `transport.base.Front` for what each method promises.

    ``local`` is what peers are served by; ``look`` is to be called whenever the ``directory`` may answer differently.
    """

    def __init__(self, local: CoordinatorFront, directory: Directory) -> None:
        self.local = local
        self.directory = directory
        self.routes = Routes(local, directory)
        self.look = self.routes.look
        self._partitions = len(self.routes.lanes)
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
        partition = partition_of(id, self._partitions)
        if watcher is None:
            watcher, want = _nobody, "accepted"
        journey = Journey(self.routes, partition, id, watcher, want, submission, within_ms=within)
        journey.begin()
        return id, journey.leave

    def watch(self, id: str, watcher: Watcher, after: str | None = None) -> Unwatch:
        return self._watch(id, watcher, "events", after)

    def _watch(self, id: str, watcher: Watcher, want: Want, after: str | None) -> Unwatch:
        journey = Journey(self.routes, self._partition_of(id), CommandId(id), watcher, want, None, after=after)
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
        if accepted is None or self.routes.lanes[partition_of(id, self._partitions)].acting:
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
        return await self._of_command(id, "get", lambda: self.local.get(id), CommandView)

    # ------------------------------------------------------------ questions about one command

    async def history(self, id: str) -> list[dict[str, Any]]:
        return await self._of_command(id, "history", lambda: self.local.history(id))

    async def explain(self, id: str) -> dict[str, Any]:
        return await self._of_command(id, "explain", lambda: self.local.explain(id))

    async def diagram(self, id: str) -> str:
        return await self._of_command(id, "diagram", lambda: self.local.diagram(id))

    def _partition_of(self, id: str) -> int:
        return partition_of(id, self._partitions)

    async def _of_command(
        self, id: str, operation: str, here: Callable[[], Awaitable[T]], kind: type[T] | None = None
    ) -> T:
        return await self._ask(self._partition_of(id), operation, {"id": id}, here, kind)

    async def _ask(
        self,
        partition: int,
        operation: str,
        params: dict[str, Any],
        here: Callable[[], Awaitable[T]],
        kind: type[T] | None = None,
    ) -> T:
        """The answer of the partition's owner, to something that may be asked twice.

        Raises what he refuses with; the last refusal where nobody owned the partition for too long.
        """
        routes = self.routes
        until = routes.loop.time() + NOBODY_S
        while True:
            try:
                link = routes.place(partition)
                if link is None:
                    return await here()
                value = await request(link, operation, params, ANSWER_MS)
                return cast("T", value if kind is None else msgspec.convert(value, kind))
            except MOVED as error:
                if not routes.patience_s(error):
                    raise
                until = until_after(error, until, routes.loop.time())
                await routes.pause(partition, error, until)

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
        """Asked once: what may have been recorded is not asked for again, but said to be in doubt."""
        params: dict[str, Any] = {"id": id, "reason": reason, "by": by}
        if operation is Operation.REQUEUE:
            params |= {"step": step} | ({"input": input} if replace_input else {})
        else:
            params["operation"] = operation.value
        verb = "requeue" if operation is Operation.REQUEUE else "control"
        partition, routes = self._partition_of(id), self.routes
        until = routes.loop.time() + NOBODY_S
        while True:
            try:
                link = routes.place(partition)
                if link is None:
                    return await self.local.control(
                        id, operation, reason=reason, by=by, step=step, input=input, replace_input=replace_input
                    )
                return msgspec.convert(await request(link, verb, params, ANSWER_MS), CommandView)
            except LinkLost as error:
                raise LogUnavailable(
                    f"the owner was lost before it answered: {operation.value} may have been recorded, or not; "
                    f"look at the command before asking again ({error.detail})",
                    retry_after_ms=1000,
                    in_doubt=True,
                ) from error
            except MOVED as error:
                if error.extra.get("in_doubt") or not routes.patience_s(error):
                    raise
                await routes.pause(partition, error, until)

    # ------------------------------------------------------------ many commands

    async def list_commands(
        self, *, state: str | None, type: str | None, attributes: dict[str, str], limit: int, cursor: str | None
    ) -> CommandPage:
        def here() -> Awaitable[CommandPage]:
            return self.local.list_commands(state=state, type=type, attributes=attributes, limit=limit, cursor=cursor)

        params = {"state": state, "type": type, "attributes": attributes, "limit": limit, "cursor": cursor}
        answers = await self._everywhere("list", params, here, CommandPage)
        return gather.pages([page for _, page in answers], limit)

    async def dead_letters(self) -> list[dict[str, Any]]:
        owned: dict[Link | None, set[int]] = {link: _acted_for(link) for link in self.directory.links()}
        answers = await self._everywhere("dead_letters", {}, self.local.dead_letters)
        lacking = [
            items.incomplete if isinstance(items, Gathered) else set(range(self._partitions)) - owned.get(link, set())
            for link, items in answers
        ]
        return Gathered((item for _, items in answers for item in items), gather.lacking(lacking))

    async def quarantine(self) -> list[dict[str, Any]]:
        """Of every instance that answers: one that owns nothing may still have a partition that stopped."""
        here = await _answer(self.local.quarantine())
        answers = [*(await self._of_others("quarantine", {})).values()]
        if not isinstance(here, CoordinatorError):
            answers.append(here)
        elif not answers:
            raise here
        items = sorted((item for each in answers for item in each), key=lambda item: item["partition"])
        told = {item["partition"] for item in items}
        lacking = (each for each in range(self._partitions) if each not in told and not self.routes.served(each))
        return Gathered(items, tuple(lacking))

    async def log_state(self) -> list[dict[str, Any]]:
        answers = await self._everywhere("log", {}, self.local.log_state)
        rows = sorted((row for _, rows in answers for row in rows), key=lambda row: row["partition"])
        return Gathered(rows, without(rows, self._partitions))

    async def _everywhere(
        self, operation: str, params: dict[str, Any], here: Callable[[], Awaitable[T]], kind: type[T] | None = None
    ) -> list[tuple[Link | None, T]]:
        """What this instance (None) and those that act for any partition answer; whoever does not in time is left out.

        Raises a refusal that is not for want of an owner (a wrong cursor is wrong everywhere), and NoOwner, or
        whatever hinders this instance, where nobody answers at all.
        """
        links = [link for link in self.directory.links() if _acted_for(link)]
        asked = [_answer(here()), *(_answer(_asked(link, operation, params, kind)) for link in links)]
        answers: list[tuple[Link | None, T]] = []
        refusals: list[CoordinatorError] = []
        for link, answer in zip([None, *links], await asyncio.gather(*asked), strict=True):
            if not isinstance(answer, CoordinatorError):
                answers.append((link, answer))
            elif answer.retryable:
                refusals.append(answer)
            else:
                raise answer
        if not answers:
            raise refusals[0]
        return answers

    # ------------------------------------------------------------ outcomes, services

    def outcomes(
        self, service: str, start: str | None, follow: bool, partitions: Collection[int] | None = None
    ) -> AsyncIterator[list[OutcomeItem]]:
        return Outcomes(self.routes, service, start, follow, partitions).batches()

    async def services(self) -> list[dict[str, Any]]:
        here = await self.local.services()
        answers = await self._of_others("services", {})
        return gather.services(here, answers)

    async def set_breaker(self, service: str, state: Literal["open", "closed", "auto"]) -> dict[str, Any]:
        """On every instance; ``instances`` of the answer tells each one's breaker, ``unreached`` who was not told."""
        known: dict[str, Any] | None = None
        unknown: UnknownService | None = None
        try:
            known = await self.local.set_breaker(service, state)
        except UnknownService as error:
            unknown = error
        answers = await self._of_others("set_breaker", {"service": service, "state": state})
        known = known or next(iter(answers.values()), None)
        if known is None:
            assert unknown is not None
            raise unknown
        own = self.local.pipeline.instance
        members = {each["instance"] for each in self.directory.describe()["instances"]}
        breakers = {instance: answer["breaker"] for instance, answer in answers.items()}
        return {**known, "instances": breakers, "unreached": sorted(members - answers.keys() - {own})}

    async def _of_others(self, operation: str, params: dict[str, Any]) -> dict[str, Any]:
        """What every other instance answers; those that refuse, or do not answer in time, are left out."""
        links = self.directory.links()
        answers = await asyncio.gather(*(_answer(_asked(link, operation, params)) for link in links))
        return {
            link.member.instance: answer
            for link, answer in zip(links, answers, strict=True)
            if not isinstance(answer, CoordinatorError)
        }

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

        answer = await self._ask(partition, "put_definition", params, here)
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
                return await self._ask(0, operation, params, here)
        return await here()

    # ------------------------------------------------------------ the group

    async def cluster(self) -> dict[str, Any]:
        here = await self.local.cluster()
        return gather.cluster(here, await self._of_others("cluster", {}), self.directory.describe())

    def ready(self) -> tuple[bool, dict[str, Any]]:
        """Every partition that this instance ought to own acts, and somebody can be asked at all."""
        if self.stopping or self.local.stopping:
            return False, {"ready": False, "code": "stopping", "why": "this instance is stopping"}
        lanes = self.routes.lanes
        waiting = [lanes[partition] for partition in self.directory.wanted() if not lanes[partition].acting]
        details: dict[str, Any] = {"ready": not waiting}
        if waiting:
            details |= {"code": waiting[0].refusal.code, "why": waiting[0].refusal.detail}
        elif not any(map(self.routes.served, range(self._partitions))):
            code = "starting" if isinstance(lanes[0].refusal, Starting) else "no_owner"
            details |= {"ready": False, "code": code, "why": "no partition has an owner that can be reached yet"}
        details["partitions"] = {str(lane.partition): lane.refusal.detail for lane in waiting}
        return details["ready"], details


def _nobody(event: Event) -> None:
    """The watcher of who does not watch: its submission is made sure of all the same."""


async def request(link: Link, operation: str, params: dict[str, Any], within_ms: int) -> Any:
    """Asks another instance, in the caller's name: with its trace context, and no longer than it waits."""
    asker = caller.get()
    if asker is None:
        return await link.request(operation, params, within_ms)
    if asker.deadline is not None:
        left_s = asker.deadline - asyncio.get_running_loop().time()
        within_ms = max(1, min(within_ms, round(left_s * 1000)))
    return await link.request(operation, params, within_ms, asker.meta)


def _acted_for(link: Link) -> set[int]:
    return {partition for partition, epoch in link.owned.items() if epoch >= 0}


async def _asked(link: Link, operation: str, params: dict[str, Any], kind: type[T] | None = None) -> T:
    value = await request(link, operation, params, GATHER_MS)
    return cast("T", value if kind is None else msgspec.convert(value, kind))


async def _answer(asked: Awaitable[T]) -> T | CoordinatorError:
    """The answer, or the refusal."""
    try:
        return await asked
    except CoordinatorError as error:
        return error


def _listed(partitions: Collection[int]) -> str:
    return ", ".join(map(str, partitions)) or "none"
