"""The port between the engine's actions and whatever reaches a service."""

from __future__ import annotations

import time
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


def wall_ms() -> int:
    """The date, to compare with the dates that services write (``Retry-After``); nothing recorded or timed depends
    on it.
    """
    return time.time_ns() // 1_000_000  # noqa: TID251 - the daemon's Clock never goes back, so it may be ahead of the date
