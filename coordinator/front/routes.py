"""Where each partition is at present, and who waits for it to be somewhere.

A partition is *here* (its lane acts), or at another instance that says so (`Directory.owner`), or nowhere that can be
reached.  That changes under way: an owner dies, or hands over.  Whoever asks meanwhile waits a little and asks again,
wherever the partition is then: at once when it is seen to have moved (`Routes.look`), and now and then by itself, since
a word that it has moved may be late, or lost.

How long anybody waits for a partition that nobody owns is bounded (`NOBODY_S`): then it gets the last refusal, which is
retryable and names a delay.  A take-over needs a second or so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any, Final, Protocol

import structlog

from coordinator.errors import CoordinatorError, LinkLost, LogUnavailable, NoOwner, Starting, Stopping
from coordinator.front import CoordinatorFront
from coordinator.front.base import refusal_of

if TYPE_CHECKING:
    from coordinator.cluster.link import Link

log = structlog.get_logger(__name__)

NOBODY_S: Final = 3.0
"""How long a request waits for a partition that nobody reachable owns."""

SWEEP_S: Final = 1.0

ASK_AGAIN_MS: Final = 250  # at most: a word that the partition has moved comes sooner
ASKED_PER_S: Final = 4_000  # by all who wait for one partition: a few per cent of the loop's time
MOVED: Final = (NoOwner, Starting, Stopping, LogUnavailable)
"""Refusals that are about who owns a partition, not about what was asked: elsewhere, or soon, the answer is another."""


class Directory(Protocol):
    """What the routing needs to know of the group (`cluster.group.Group`)."""

    def owner(self, partition: int) -> Link | None:
        """The link to the instance that acts for the partition; None if that is this one, or nobody is known."""
        ...

    def links(self) -> list[Link]:
        """The links to all instances that can be reached."""
        ...

    def wanted(self) -> list[int]:
        """The partitions that this instance ought to own."""
        ...

    def describe(self) -> dict[str, Any]:
        """``{"generation", "instances": [{"instance", "address", "state"}], "heirs": {partition: instance}}``."""
        ...


class Moving(Protocol):
    """Something that was handed to an instance and goes on there, until the partition moves."""

    def moved(self, owner: Link | None) -> None:
        """The partition is acted for by ``owner`` (None: by this instance) now."""
        ...


class Asked(Protocol):
    """Something that another instance was asked for, and ought to answer soon."""

    def silent(self) -> None:
        """It did not."""
        ...


class Routes:
    """One instance's knowledge of where the partitions are.

    ``look`` is to be called whenever anything is heard of the group, and now and then: it costs a microsecond a
    partition.
    """

    def __init__(self, local: CoordinatorFront, directory: Directory) -> None:
        self.local = local
        self.directory = directory
        self.lanes = local.pipeline.lanes
        self.loop = local.pipeline.loop
        self.random: Random = local.pipeline.random
        self._seen: list[object] = [None] * len(self.lanes)
        self._waiting: list[dict[Callable[[], None], None]] = [{} for _ in self.lanes]
        self._expected: dict[Asked, float] = {}
        self._sweep: asyncio.TimerHandle | None = None
        self._away: list[dict[Moving, None]] = [{} for _ in self.lanes]

    # ------------------------------------------------------------ where?

    def place(self, partition: int) -> Link | None:
        """The link to the owner, None where that is this instance; raises the refusal where nobody is to be asked."""
        lane = self.lanes[partition]
        if lane.acting:
            return None
        link = self.directory.owner(partition)
        if link is not None:
            return link
        if isinstance(lane.refusal, NoOwner) or (lane.standing_by and isinstance(lane.refusal, Starting)):
            # It names an owner that is gone, or speaks of a replay that nobody has asked for.
            raise NoOwner(f"partition {partition} has no owner that can be reached now", retry_after_ms=ASK_AGAIN_MS)
        raise refusal_of(lane)

    def served(self, partition: int) -> bool:
        """Whether somebody, here or elsewhere, acts for the partition."""
        return self.lanes[partition].acting or self.directory.owner(partition) is not None

    def patience_s(self, error: CoordinatorError) -> float:
        """How long it is worth waiting after such a refusal: nothing while nobody else can be reached, whose log may be
        well, or who may have started before us."""
        alone = isinstance(error, (LogUnavailable, Starting)) and not self.directory.links()
        return 0.0 if alone else NOBODY_S

    # ------------------------------------------------------------ waiting for it to move

    def delay_s(self, partition: int, error: CoordinatorError) -> float:
        """When to ask again by oneself; with jitter, so that those who were refused together do not come together, and
        the later the more there are: a hundred thousand who ask four times a second would leave no time to take over.
        """
        usual = min(error.retry_after_ms or 100, ASK_AGAIN_MS) / 1000
        return max(usual, len(self._waiting[partition]) / ASKED_PER_S) * (0.5 + self.random.random() / 2)

    def wait(self, partition: int, wake: Callable[[], None]) -> None:
        """Calls ``wake`` once, when the partition is seen to have moved."""
        self._waiting[partition][wake] = None

    def wait_no_more(self, partition: int, wake: Callable[[], None]) -> None:
        self._waiting[partition].pop(wake, None)

    def away(self, partition: int, moving: Moving) -> None:
        """Tells ``moving`` whenever the partition has moved, until `back`."""
        self._away[partition][moving] = None

    def back(self, partition: int, moving: Moving) -> None:
        self._away[partition].pop(moving, None)

    # ------------------------------------------------------------ silence

    def expect(self, asked: Asked, within_s: float) -> None:
        """Tells ``asked`` that the owner is ``silent``, unless there is a word of it (`confirmed`) in time.

        One timer for all: most are confirmed within milliseconds, and a timer each would cost more than they do.
        """
        self._expected[asked] = self.loop.time() + within_s
        if self._sweep is None:
            self._sweep = self.loop.call_later(SWEEP_S, self._swept)

    def confirmed(self, asked: Asked) -> None:
        self._expected.pop(asked, None)

    def _swept(self) -> None:
        now = self.loop.time()
        for asked in [each for each, due in self._expected.items() if due <= now]:
            if self._expected.pop(asked, None) is not None:  # else it left when another of these was told
                _guarded(asked.silent)
        self._sweep = self.loop.call_later(SWEEP_S, self._swept) if self._expected else None

    async def pause(self, partition: int, error: CoordinatorError, until: float) -> None:
        """Waits until it is worth asking again; raises ``error`` where the time is up (``until``, the loop's)."""
        left = until - self.loop.time()
        if left <= 0:
            raise error
        woken = asyncio.Event()
        wake = woken.set
        self.wait(partition, wake)
        try:
            async with asyncio.timeout(min(left, self.delay_s(partition, error))):
                await woken.wait()
        except TimeoutError:
            pass
        finally:
            self.wait_no_more(partition, wake)

    def look(self) -> None:
        """Sees which partitions have moved, and tells those who wait for them or have something there."""
        for lane in self.lanes:
            partition = lane.partition
            owner = None if lane.acting else self.directory.owner(partition)
            place: object = lane if lane.acting else owner
            if place is self._seen[partition]:
                continue
            self._seen[partition] = place
            if place is None:
                continue
            waiting, self._waiting[partition] = self._waiting[partition], {}
            for wake in waiting:
                _guarded(wake)
            for moving in list(self._away[partition]):
                _guarded(partial(moving.moved, owner))


def _guarded(tell: Callable[[], None]) -> None:
    """One caller's trouble (its connection is broken) is neither its neighbours' nor the group's, which looks here."""
    try:
        tell()
    except Exception:
        log.exception("somebody who was told that a partition has moved has failed")


def until_after(error: CoordinatorError, until: float, now: float) -> float:
    """A lost link ends a wait for somebody and begins one for his heir, who is given the whole time again."""
    return max(until, now + NOBODY_S) if isinstance(error, LinkLost) else until
