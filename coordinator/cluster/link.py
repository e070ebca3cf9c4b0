"""What a part of the program that forwards holds in its hands: the way to one other instance.

A Link outlives its connections: `cluster.peers` opens it, sees it break, and opens it again.  While it is not up,
everything raises LinkLost at once; what was open when it broke has been told so.  Nothing is sent again from here: only
who asked knows whether that is right (`front.routed`).

Requests and watches share one connection, on which they are pipelined.  A stream has a connection of its own, because
its reader's pace becomes the connection's, and must not become everybody's.
"""

from __future__ import annotations

import ssl as ssl_module
from collections.abc import AsyncIterator, Callable
from typing import Any

from coordinator.cluster.base import Member
from coordinator.cluster.connection import Connection, LinkSettings, Unreachable, log
from coordinator.errors import LinkLost, Malformed
from coordinator.model.command import Submission
from coordinator.transport.base import Unwatch, Want, Watcher
from coordinator.wire.frames import following


class Link:
    """The way to ``member``, from ``me``, both of ``group``.

    ``on_told`` is called with the member's instance id when it has told what it owns or that it is about to leave.
    """

    def __init__(
        self,
        member: Member,
        *,
        me: Member,
        group: str,
        settings: LinkSettings,
        on_told: Callable[[str], None],
        ssl: ssl_module.SSLContext | None = None,
    ) -> None:
        self.member = member
        self.leaving = False
        """It has said that it drains; it will not come back under this instance id."""
        self.owned: dict[int, int] = {}
        """Partition → epoch, as it last told; empty while the link is not up."""
        self._me, self._group, self._settings, self._ssl = me, group, settings, ssl
        self._on_told = on_told
        self._connection: Connection | None = None
        self._streams: set[Connection] = set()

    @property
    def up(self) -> bool:
        """Whether something can be asked now."""
        return self._connection is not None and self._connection.up

    # -------------------------------------------------------------------------------------------------------- asking

    def submit(
        self,
        submission: Submission,
        watcher: Watcher,
        want: Want,
        deadline_ms: int | None = None,
        meta: dict[str, Any] | None = None,
    ) -> Unwatch:
        """Forwards a submission, which must have an id; ``watcher`` gets its events as from `Front.submit`.

        An ``error`` event ends them: what the other instance refused it with, or LinkLost.  Raises LinkLost (not up),
        LimitReached (too much is unsent or open; ask again), TooLarge, InvalidPayload; then nothing was sent.
        ``deadline_ms`` and ``meta`` (trace context) are passed on as they are.
        """
        return self._connected().submit(submission, watcher, want, deadline_ms, meta or {})

    def watch(self, id: str, watcher: Watcher, after: str | None = None) -> Unwatch:
        """Events of a command of the other instance, as from `Front.watch`; ends and raises as `submit`."""
        return self._connected().watch(id, watcher, after)

    async def request(
        self, operation: str, params: Any, deadline_ms: int | None = None, meta: dict[str, Any] | None = None
    ) -> Any:
        """The plain value (dicts, lists, text) of the answer to an operation of proto/tcp.md.

        ``params`` is a Struct of `wire.frames` or a dict.  Raises what the other instance told, as the class that it
        was there; LinkLost, LimitReached, TooLarge, InvalidPayload as `submit`; WaitTimeout after ``deadline_ms``.  A
        cancel tells the other that nobody waits.
        """
        return await self._connected().request(operation, params, deadline_ms, meta or {})

    async def stream(
        self, operation: str, params: Any, deadline_ms: int | None = None, meta: dict[str, Any] | None = None
    ) -> AsyncIterator[Any]:
        """The plain values of an operation that answers with many, at the reader's pace; raises as `request`.

        Close it (``aclosing``) where it is not read to its end.
        """
        self._connected()
        try:
            connection = await self._dial(self._settings.connect_ms)
        except Unreachable as why:
            raise self._lost(str(why)) from None
        self._streams.add(connection)
        try:
            async for value in connection.stream(operation, params, deadline_ms, meta or {}).values():
                yield value
        finally:
            self._streams.discard(connection)
            connection.lose("the reader is done")

    def _connected(self) -> Connection:
        connection = self._connection
        if connection is None or not connection.up:
            raise self._lost("not connected")
        return connection

    def _lost(self, why: str) -> LinkLost:
        told = f"the link to instance {self.member.instance} is lost: {why}"
        return LinkLost(told, retry_after_ms=self._settings.retry_after_ms)

    # ------------------------------------------------------------------------------------- opened and closed by Peers

    async def open(self, timeout_ms: int) -> Connection:
        """Connects (again); raises Unreachable.  The connection's ``closed`` tells its end."""
        connection = await self._dial(timeout_ms)
        connection.on_leaving = self._leaves
        try:
            connection.follow(self._follows)
        except LinkLost as error:
            raise Unreachable(error.detail) from None
        self._connection = connection
        return connection

    async def _dial(self, timeout_ms: int) -> Connection:
        return await Connection.dial(self._me, self.member, self._group, self._settings, timeout_ms, self._ssl)

    def broken(self) -> None:
        """The connection has ended, and what it said of the member is as old as that."""
        self._connection = None
        self.owned = {}

    async def close(self, why: str) -> None:
        """Ends whatever is open; returns when all who waited have been told LinkLost."""
        for connection in self._give_up(why):
            await connection.closed.wait()
        self.broken()

    def died(self, why: str) -> None:
        """The member is gone: streams too, which might not have noticed, are of no use."""
        self._give_up(why)

    def _give_up(self, why: str) -> list[Connection]:
        connections = [each for each in (self._connection, *self._streams) if each is not None]
        for connection in connections:
            connection.lose(why)
        return connections

    def _leaves(self) -> None:
        self.leaving = True
        self._on_told(self.member.instance)

    def _follows(self, value: Any) -> None:
        try:
            told = following(value)
        except Malformed as error:
            log.warning("instance %s: %s", self.member.instance, error.detail)
            return
        self.owned = told.owned
        self.leaving = self.leaving or told.leaving
        self._on_told(self.member.instance)
