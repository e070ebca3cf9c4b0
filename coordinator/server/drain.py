"""Stopping without losing anything, and without anybody having to wait for long.

    SIGTERM ─▶ not ready, own clients are refused ─▶ a Snapshot ─▶ no new calls; those under way are answered ─▶
        each partition is handed to a named peer ─▶ clients that still wait are sent there ─▶ "safe to stop" ─▶ exit 0

Where there is a peer, a command under way is not waited for: it goes on there, and only calls under way are, for
`SETTLE_S` and ``drain_timeout`` at most, since the partition's other commands wait meanwhile; a call that is not
answered by then is parked, and made again by the peer under the same key.  What other
instances forward meanwhile is still taken, and started by whoever is next: so nobody waits but for the hand-over.  An
instance that is alone lets its commands end, for as long.  A second SIGTERM stops at once: the log has everything.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

import structlog

from coordinator.cluster.group import Group
from coordinator.front import CoordinatorFront
from coordinator.front.routed import RoutedFront
from coordinator.pipeline import SETTLE_S, Pipeline
from coordinator.server.transports import Transports

log = structlog.get_logger(__name__)

POLL_S: Final = 0.02
GRACE_MS: Final = 1_000  # for answers on their way to clients, once the partitions are gone


class Drain:
    """One drain; ``now`` is set when it is to be cut short."""

    def __init__(
        self,
        pipeline: Pipeline,
        front: CoordinatorFront | RoutedFront,
        transports: Transports,
        group: Group | None,
        now: asyncio.Event,
        timeout_ms: int,
    ) -> None:
        self.pipeline = pipeline
        self.front = front
        self.local = front.local if isinstance(front, RoutedFront) else front
        self.transports = transports
        self.group = group
        self.now = now
        self._until = pipeline.loop.time() + timeout_ms / 1000

    async def run(self) -> None:
        """Returns when the process may be stopped."""
        pipeline, engine = self.pipeline, self.pipeline.engine
        owned = [lane.partition for lane in pipeline.lanes if lane.acting]
        self.front.stopping = True  # what peers forward is taken until its partition is gone
        log.info("stopping: no new work is taken", under_way=engine.under_way, partitions=owned)
        await self.transports.drain()
        if self.group is not None:
            await self._hand_over(self.group)
        self.local.stopping = True
        if engine.shards:
            await self._quiet(lambda: not engine.active())
            engine.freeze()
            await self._quiet(lambda: not self._in_flight())
        await self.transports.close(0 if self.now.is_set() else GRACE_MS)
        kept = [lane.partition for lane in pipeline.lanes if lane.acting]
        log.info(
            "safe to stop",
            handed_over=len(owned) - len(kept),
            kept=len(kept),
            uncompleted=engine.under_way,
            calls_in_flight=sum(service.in_flight for service in engine.services.values()),
            at_once=self.now.is_set(),
        )

    async def _hand_over(self, group: Group) -> None:
        """Every partition to whoever inherits it; those that nobody can take stay."""
        pipeline = self.pipeline
        pipeline.settle_s = max(0.0, min(SETTLE_S, self._until - pipeline.loop.time()))
        group.retire()
        await self._quiet(
            lambda: not any(lane.since is not None or lane.going for lane in pipeline.lanes) or _alone(group)
        )

    async def _quiet(self, quiet: Callable[[], bool]) -> None:
        """Looks every now and then: what makes it quiet is spread over commands, services and lanes."""
        loop = self.pipeline.loop
        while not quiet() and loop.time() < self._until and not self.now.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await self.now.wait()

    def _in_flight(self) -> bool:
        """Whether an answer or an append is still to come."""
        calls = any(service.in_flight for service in self.pipeline.engine.services.values())
        return calls or any(lane.outbox or lane.writing for lane in self.pipeline.lanes)


def _alone(group: Group) -> bool:
    """Whether nobody is there to take anything."""
    return not any(each in group.succession.told for each in group.succession.candidates())
