"""The port between the engine's actions and whatever reaches a service."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from coordinator.model.call import Answer, Call

Done = Callable[[Call, Answer], None]


class Caller(Protocol):
    """Reaches one service.

    ``send`` starts a call and returns at once; ``done(call, answer)`` follows exactly once, later, on the same event
    loop, never from inside ``send``, whatever happens (timeouts and lost connections are DELAYED answers).  No task is
    needed for a call: the HTTP client answers from its protocol's callbacks.
    """

    def send(self, call: Call, done: Done) -> None: ...

    async def close(self) -> None:
        """Ends all calls under way (their ``done`` may be dropped) and closes connections."""
        ...
