"""What the client needs of one server address, whichever protocol it speaks: `tcp.TcpEndpoint`, `http.HttpEndpoint`."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from typing import Any, Protocol

from coordinator_client.models import Event

NAME = "coordinator-python/0.1.0"


class Progress:
    """How far a submission got over all its attempts, and until when the next stage may take (event loop time).

    Until it is accepted, ``accept_by`` bounds it; from then on ``wait_s`` runs, for its end.
    """

    def __init__(self, accept_within_s: float, wait_s: float) -> None:
        self.accept_by = asyncio.get_running_loop().time() + accept_within_s
        self.wait_s = wait_s
        self.accepted = False
        self._timeout: asyncio.Timeout | None = None
        self._until = self.accept_by

    @property
    def remaining_s(self) -> float:
        return self._until - asyncio.get_running_loop().time()

    def timeout(self) -> asyncio.Timeout:
        """A context for one attempt, whose end moves when the command is accepted."""
        self._timeout = asyncio.timeout_at(None if math.isinf(self._until) else self._until)
        return self._timeout

    def accept(self) -> None:
        """The command is known to be durable."""
        if self.accepted:
            return
        self.accepted = True
        self._until = asyncio.get_running_loop().time() + self.wait_s
        if self._timeout is not None and not self._timeout.expired():
            self._timeout.reschedule(None if math.isinf(self._until) else self._until)


def remaining_ms(until: float) -> int | None:
    """Milliseconds from now to a time of the event loop; None for ever."""
    if math.isinf(until):
        return None
    return max(0, math.ceil((until - asyncio.get_running_loop().time()) * 1000))


class Endpoint(Protocol):
    """One address.  Methods raise CoordinatorError only, and retry nothing; a cancel stops only the waiting."""

    address: str

    @property
    def leaving(self) -> bool:
        """The server has said that it goes away: new calls are better made elsewhere, if there is an elsewhere."""
        ...

    async def submit(self, submission: dict[str, Any], progress: Progress) -> Any:
        """Sends it once; returns the command's view: as accepted where ``progress.wait_s`` is 0, else at its end."""
        ...

    async def request(self, operation: str, params: dict[str, Any], timeout_s: float) -> Any:
        """Any operation of proto/tcp.md that has one answer."""
        ...

    def watch(self, id: str, after: str | None) -> AsyncIterator[Event]: ...

    def outcomes(self, service: str, start: str | None, follow: bool) -> AsyncIterator[list[Any]]: ...

    async def close(self) -> None: ...
