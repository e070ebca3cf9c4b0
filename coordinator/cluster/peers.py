"""Links to all other instances of the group, and what their ends say about who is alive.

A process that is killed leaves a closed connection behind, and nobody who listens: its peers know within a
millisecond, where the group needs seconds.  So each instance keeps one connection to each other, and reads its end:

    never reached ──Hello──▶ up ──end of stream──▶ asked again at once ──Hello──▶ up
          │                  │                            │ refused, reset, no Hello within reopen_ms
          ▼                  └──silence──▶ died ◀─────────┘
     tried again,                           │
     nobody is told                         └──Hello of the same instance──▶ up, lives

- A closed connection alone says little (the other may have let go of it), a refused one right after it says enough.
- One that was never reached has not died: it may not listen yet, or no way may lead to it.
- Another instance at the address: the process that we knew is gone, since one address has one listener.

All of this is a guess that only costs time when it is wrong: who acts is decided in the log.
"""

from __future__ import annotations

import asyncio
import logging
import ssl as ssl_module
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

import msgspec

from coordinator.cluster.base import Member
from coordinator.cluster.connection import Connection, Impostor, LinkSettings, Unreachable
from coordinator.cluster.link import Link

__all__ = ["LinkSettings", "Peers"]

log = logging.getLogger("coordinator.cluster.peers")

Told = Callable[[str], None]
"""Called on the event loop with an instance id; must not block."""


class Peers:
    """Keeps a Link to every member but ``me``.

    ``on_died``: an instance that was reached is gone, told once.  ``on_lives``: the same instance answers again.
    ``on_told``: what it owns, or whether it leaves, has changed (`Link.owned`, `Link.leaving`).
    """

    def __init__(
        self,
        me: Member,
        *,
        group: str,
        on_died: Told,
        on_lives: Told,
        on_told: Told,
        silence_ms: int = 6_000,
        settings: LinkSettings | None = None,
        ssl: ssl_module.SSLContext | None = None,
    ) -> None:
        self._me, self._group, self._ssl = me, group, ssl
        self._settings = msgspec.structs.replace(settings or LinkSettings(), silence_ms=silence_ms)
        self._on_died, self._on_lives, self._on_told = map(_guarded, (on_died, on_lives, on_told))
        self._links: dict[str, Link] = {}
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._leftovers: set[asyncio.Task[None]] = set()  # cancelled, and not at their end yet

    @property
    def links(self) -> Mapping[str, Link]:
        """By instance id, whether up or not."""
        return MappingProxyType(self._links)

    def link(self, instance: str) -> Link | None:
        """The way to an instance, while it is up."""
        link = self._links.get(instance)
        return link if link is not None and link.up else None

    def know(self, members: Iterable[Member]) -> None:
        """These are the members now: new ones are linked, those that are gone are let go (nobody is told that).

        A member without an address gets no link, and neither does this instance.
        """
        wanted = {each.instance: each for each in members if each.address and each.instance != self._me.instance}
        for instance, link in list(self._links.items()):
            if wanted.get(instance) != link.member:
                self._let_go(instance)
        for instance, member in wanted.items():
            if instance not in self._links:
                link = self._links[instance] = Link(
                    member,
                    me=self._me,
                    group=self._group,
                    settings=self._settings,
                    on_told=self._on_told,
                    ssl=self._ssl,
                )
                keeper = _Keeper(link, self._settings, self._on_died, self._on_lives)
                self._keepers[instance] = asyncio.get_running_loop().create_task(keeper.run())

    async def close(self) -> None:
        """Ends all links; who waits on one is told LinkLost."""
        for instance in list(self._links):
            self._let_go(instance)
        if self._leftovers:
            await asyncio.wait(self._leftovers)

    def _let_go(self, instance: str) -> None:
        del self._links[instance]
        keeper = self._keepers.pop(instance)
        keeper.cancel()
        self._leftovers.add(keeper)
        keeper.add_done_callback(self._leftovers.discard)


class _Keeper:
    """Opens one link again and again, for as long as its instance is a member, and says when that died."""

    def __init__(self, link: Link, settings: LinkSettings, on_died: Told, on_lives: Told) -> None:
        self._link, self._settings = link, settings
        self._on_died, self._on_lives = on_died, on_lives
        self._lives = False  # it was reached, and nothing speaks against it since
        self._died = False
        self._warned = ""

    async def run(self) -> None:
        settings, loop = self._settings, asyncio.get_running_loop()
        pause_ms = settings.backoff_ms_min
        try:
            while True:
                if (connection := await self._open()) is not None:
                    pause_ms, began = settings.backoff_ms_min, loop.time()
                    await connection.closed.wait()
                    self._link.broken()
                    if connection.silent:
                        self._bury(connection.why)
                    elif (loop.time() - began) * 1000 > settings.backoff_ms_max:
                        continue  # at once; but with a pause where it ends each time as soon as it has begun
                await asyncio.sleep(pause_ms / 1000)
                pause_ms = min(2 * pause_ms, settings.backoff_ms_max)
        finally:
            await self._link.close("this instance needs it no more")

    async def _open(self) -> Connection | None:
        """One attempt.  Where the instance lived a moment ago, that it fails is what tells the death."""
        loop, timeout_ms = asyncio.get_running_loop(), self._settings.connect_ms
        if self._lives:
            timeout_ms = self._settings.reopen_ms
        began = loop.time()
        try:
            connection = await self._link.open(timeout_ms)
        except Impostor as why:
            self._warn(str(why))
            self._bury(str(why))
        except Unreachable as why:
            if (loop.time() - began) * 1000 < 2 * timeout_ms:  # else it is this process that did not run
                self._bury(str(why))
        else:
            if self._died:
                log.info("instance %s answers again", self._link.member.instance)
                self._died = False
                self._on_lives(self._link.member.instance)
            self._lives, self._warned = True, ""
            return connection
        return None

    def _bury(self, why: str) -> None:
        if self._lives:
            self._lives, self._died = False, True
            self._link.died(why)
            log.warning("instance %s is gone: %s", self._link.member.instance, why)
            self._on_died(self._link.member.instance)

    def _warn(self, why: str) -> None:
        """Once, however often it is tried."""
        if why != self._warned:
            self._warned = why
            log.warning("no link to instance %s at %s: %s", self._link.member.instance, self._link.member.address, why)


def _guarded(callback: Told) -> Told:
    """A callback whose exception ends nothing but itself."""

    def told(instance: str) -> None:
        try:
            callback(instance)
        except Exception:
            log.exception("told of instance %s, a listener failed", instance)

    return told
