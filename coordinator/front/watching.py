"""Watchers of the Front's own making: one that a coroutine awaits, one that joins late, one that came second.

Events of a command must reach a watcher in log order, and never from inside the call that registered it.  Who watches
from the beginning is simply registered.  Who comes later has a past to be told first, and what happens between the call
and the telling must neither overtake that past nor fall between the two.  So a late watcher *joins*: in one callback of
the event loop the past is read and told and the watcher registered, with nothing in between.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from msgspec.structs import replace

from coordinator.errors import CoordinatorError, Internal
from coordinator.logs import get_logger
from coordinator.model.command import CommandView
from coordinator.transport.base import Event, Unwatch, Watcher

log = get_logger(__name__)


class Join:
    """A watcher that joins in the loop's next turn; the instance itself is its Unwatch.

    ``begin`` tells the past and registers the watcher; it returns how to leave.  What it raises (the partition was lost
    a moment ago) is told as an ``error`` event.
    """

    __slots__ = ("_begin", "_handle", "_id", "_unwatch", "_watcher")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, id: str, watcher: Watcher, begin: Callable[[], Unwatch]
    ) -> None:
        self._id = id
        self._watcher = watcher
        self._begin = begin
        self._unwatch: Unwatch | None = None
        self._handle: asyncio.Handle | asyncio.Task[None] = loop.call_soon(self._join)

    def _join(self) -> None:
        try:
            self._unwatch = self._begin()
        except Exception as error:
            self._refused(error)

    def _refused(self, error: Exception) -> None:
        self._watcher(Event("error", self._id, error=_told(self._id, error)))

    def __call__(self) -> None:
        self._handle.cancel()
        if self._unwatch is not None:
            self._unwatch()


class Later(Join):
    """A watcher that joins once something else is settled (``first``), whose refusal it is told as well."""

    __slots__ = ()

    def __init__(
        self, id: str, watcher: Watcher, first: Callable[[], Awaitable[None]], begin: Callable[[], Unwatch]
    ) -> None:
        self._id = id
        self._watcher = watcher
        self._begin = begin
        self._unwatch: Unwatch | None = None
        self._handle = asyncio.get_running_loop().create_task(self._settle(first))

    async def _settle(self, first: Callable[[], Awaitable[None]]) -> None:
        try:
            await first()
        except Exception as error:
            self._refused(error)
        else:
            self._join()


def _told(id: str, error: Exception) -> CoordinatorError:
    """What a watcher that cannot join is told; also of a mistake of ours, or it would wait for ever."""
    if isinstance(error, CoordinatorError):
        return error
    log.error("a watcher could not join", command=id, exc_info=error)
    return Internal()


def second(watcher: Watcher) -> Watcher:
    """Watches a submission that another client has made and that is not durable yet: its ``accepted`` is attached."""

    def told(event: Event) -> None:
        watcher(replace(event, attached=True) if event.kind == "accepted" else event)

    return told


class Waiter:
    """A watcher that one coroutine awaits: first ``accepted`` (its view, if it has one), then ``final``; an ``error``
    ends both."""

    __slots__ = ("accepted", "attached", "final")

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.accepted: asyncio.Future[CommandView | None] = loop.create_future()
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
            self.accepted.set_result(event.view)
        if event.kind == "final" and event.view is not None and not self.final.done():
            self.final.set_result(event.view)
