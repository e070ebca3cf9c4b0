"""How what a client asks finds its way to who can answer: the owner of a partition, all owners, or everybody.

    ask          the owner; again where the partition has moved meanwhile: for what may be asked twice
    once         the owner; again only where the first time certainly did nothing
    everywhere   whoever acts for any partition; who does not answer in time is left out
    of_others    every other instance, likewise

What this instance owns it answers itself (``here``); the rest is asked over its links, as an operation of proto/tcp.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import msgspec

from coordinator.errors import CoordinatorError, LinkLost, LogUnavailable, WaitTimeout
from coordinator.front import CoordinatorFront, gather
from coordinator.front.routes import MOVED, NOBODY_S, Directory, Routes, until_after
from coordinator.model.ids import partition_of
from coordinator.transport.base import Gathered, caller

if TYPE_CHECKING:
    from coordinator.cluster.link import Link

T = TypeVar("T")

ANSWER_MS: Final = 10_000
"""How long another instance may take over a question; a hung one is noticed sooner."""
GATHER_MS: Final = 2_000
"""How long a list waits for an instance before it goes without it."""


class Asking:
    """``local`` is what peers are served by; ``directory`` knows who is in the group."""

    def __init__(self, local: CoordinatorFront, directory: Directory) -> None:
        self.local = local
        self.directory = directory
        self.routes = Routes(local, directory)
        self.partitions = len(self.routes.lanes)

    def partition_of(self, id: str) -> int:
        """Of a command, by its id, or of a schedule, by its name."""
        return partition_of(id, self.partitions)

    # ------------------------------------------------------------ one partition's owner

    async def of_command(
        self, id: str, operation: str, here: Callable[[], Awaitable[T]], kind: type[T] | None = None
    ) -> T:
        """A question that has no other parameters."""
        return await self.ask(self.partition_of(id), operation, {"id": id}, here, kind)

    async def ask(
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

    async def once(
        self,
        partition: int,
        operation: str,
        params: dict[str, Any],
        here: Callable[[], Awaitable[T]],
        kind: type[T] | None,
        look: str,
    ) -> T:
        """As `ask`, for what must not be done twice.

        What may have been recorded is not asked for again, but said to be in doubt, with ``look``.
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
            except LinkLost as error:
                raise LogUnavailable(
                    f"the owner was lost before it answered: {look} ({error.detail})",
                    retry_after_ms=1000,
                    in_doubt=True,
                ) from error
            except WaitTimeout as error:
                raise WaitTimeout(f"the owner did not answer in time: {look}", in_doubt=True) from error
            except MOVED as error:
                if error.extra.get("in_doubt") or not routes.patience_s(error):
                    raise
                await routes.pause(partition, error, until)

    # ------------------------------------------------------------ all owners, everybody

    async def everywhere(
        self, operation: str, params: dict[str, Any], here: Callable[[], Awaitable[T]], kind: type[T] | None = None
    ) -> list[tuple[Link | None, T]]:
        """What this instance (None) and those that act for any partition answer; whoever does not in time is left out.

        Raises a refusal that is not for want of an owner (a wrong cursor is wrong everywhere), and NoOwner, or
        whatever hinders this instance, where nobody answers at all.
        """
        links = [link for link in self.directory.links() if _acted_for(link)]
        asked = [answered(here()), *(answered(_asked(link, operation, params, kind)) for link in links)]
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

    async def of_owners(self, operation: str, here: Callable[[], Awaitable[list[dict[str, Any]]]]) -> Gathered:
        """The items of all owners, in no order, and the partitions that none of them speaks for."""
        owned: dict[Link | None, set[int]] = {link: _acted_for(link) for link in self.directory.links()}
        answers = await self.everywhere(operation, {}, here)
        lacking = [
            items.incomplete if isinstance(items, Gathered) else set(range(self.partitions)) - owned.get(link, set())
            for link, items in answers
        ]
        return Gathered((item for _, items in answers for item in items), gather.lacking(lacking))

    async def of_others(self, operation: str, params: dict[str, Any]) -> dict[str, Any]:
        """What every other instance answers; those that refuse, or do not answer in time, are left out."""
        links = self.directory.links()
        answers = await asyncio.gather(*(answered(_asked(link, operation, params)) for link in links))
        return {
            link.member.instance: answer
            for link, answer in zip(links, answers, strict=True)
            if not isinstance(answer, CoordinatorError)
        }


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


async def answered(asked: Awaitable[T]) -> T | CoordinatorError:
    """The answer, or the refusal."""
    try:
        return await asked
    except CoordinatorError as error:
        return error
