"""Callers that make one task a call: the common part of gRPC, plugged-in clients and functions of the application.

What runs in such a task is code that this program did not write.  It may raise anything, ignore its cancellation, or
cancel itself; so the promise of the port (``done`` exactly once, in time) is kept outside of it:

- the deadline is a timer that answers for the task and then cancels it;
- the answer is taken from the finished task, so that no exception can get past it;
- KeyboardInterrupt and SystemExit, which asyncio would let through to stop the whole loop, are caught inside.

A task that ignores its cancellation keeps its turn until it ends, so that it cannot pile up.  The rule for calls
that wait for their turn is the one of `gateway.http`: their time runs from their turn on, but a call that has waited
for its whole timeout, in which nobody was answered, ends with the next call whose time runs out.
"""

from __future__ import annotations

import asyncio
import traceback
from collections import deque
from typing import Final

from coordinator.gateway.base import Done
from coordinator.gateway.classify import delayed, refused
from coordinator.gateway.request import BadRequest
from coordinator.model.call import Answer, Call

TRACEBACK_MAX: Final = 16_384
TEXT_MAX: Final = 2_000


class Unanswered(Exception):
    """Raised by `TaskCaller.answer` to end a call with an answer that is no service's."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.answer = answer


class _Running:
    """One call that waits for its turn or is under way."""

    __slots__ = ("alarm", "call", "done", "since", "task", "timeout_s")

    def __init__(self, call: Call, done: Done, since: float, timeout_s: float | None) -> None:
        self.call = call
        self.done: Done | None = done  # None once it was called
        self.since = since
        self.timeout_s = timeout_s
        self.alarm: asyncio.TimerHandle | None = None
        self.task: asyncio.Task[Answer] | None = None


class TaskCaller:
    """A `gateway.base.Caller` whose calls are coroutines: override `answer`, and `failed` where an exception is no
    doubt.
    """

    def __init__(
        self, name: str, loop: asyncio.AbstractEventLoop, *, limit: int | None, timeout_ms: int | None
    ) -> None:
        self.name = name
        self._loop = loop
        self._limit = limit
        self._timeout_ms = timeout_ms
        self._running: set[_Running] = set()
        self._waiting: deque[_Running] = deque()
        self._heard_at = 0.0
        self._closed = False

    async def answer(self, call: Call) -> Answer:
        """Makes the call; whatever it raises is classified by `failed`."""
        raise NotImplementedError

    def failed(self, error: BaseException) -> Answer:
        """What an exception of `answer` means: nobody knows how far the call came."""
        return delayed("client_error", describe(error), traceback=trace(error))

    @property
    def in_flight(self) -> int:
        """Calls that have their turn now."""
        return len(self._running)

    @property
    def queued(self) -> int:
        """Calls that wait for their turn."""
        return len(self._waiting)

    def send(self, call: Call, done: Done) -> None:
        """See `gateway.base.Caller.send`."""
        timeout_ms = call.timeout_ms if call.timeout_ms is not None else self._timeout_ms
        running = _Running(call, done, self._loop.time(), None if timeout_ms is None else timeout_ms / 1000)
        if self._closed:
            gone = delayed("closed", f"{self.name} is not called any more: the gateway is closed")
            self._loop.call_soon(self._tell, running, gone)
        elif self._limit is not None and len(self._running) >= self._limit:
            self._waiting.append(running)
        else:
            self._begin(running)

    async def close(self) -> None:
        """Cancels all calls under way without calling their ``done``; waits a second at most for those that do not
        listen.
        """
        self._closed = True
        self._waiting.clear()
        tasks = []
        for running in self._running:
            running.done = None
            if running.alarm is not None:
                running.alarm.cancel()
            if running.task is not None:
                running.task.cancel()
                tasks.append(running.task)
        if tasks:
            await asyncio.wait(tasks, timeout=1)

    # ------------------------------------------------------------

    def _begin(self, running: _Running) -> None:
        self._running.add(running)
        if running.timeout_s is not None:
            running.alarm = self._loop.call_later(running.timeout_s, self._late, running)
        running.task = self._loop.create_task(self._guarded(running.call))
        running.task.add_done_callback(lambda task: self._ended(running, task))

    async def _guarded(self, call: Call) -> Answer:
        try:
            return await self.answer(call)
        except Unanswered as error:
            return error.answer
        except BadRequest as error:
            return refused("bad_request_built", str(error))
        except (Exception, KeyboardInterrupt, SystemExit) as error:
            return self.failed(error)

    def _ended(self, running: _Running, task: asyncio.Task[Answer]) -> None:
        self._running.discard(running)
        if running.alarm is not None:
            running.alarm.cancel()
        if task.cancelled():  # not by us, or nobody waits for the answer any more
            answer = self.failed(asyncio.CancelledError("the call cancelled itself"))
        else:
            error = task.exception()
            answer = task.result() if error is None else self.failed(error)
        if running.done is not None:
            self._heard_at = self._loop.time()
        while self._waiting and (self._limit is None or len(self._running) < self._limit):
            following = self._waiting.popleft()
            self._begin(following)
        self._tell(running, answer)

    def _late(self, running: _Running) -> None:
        """The time of a call is up: it is answered for, whatever its task does about being cancelled."""
        assert running.timeout_s is not None
        assert running.task is not None
        running.task.cancel()
        self._tell(running, self.timed_out(round(running.timeout_s * 1000)))
        now = self._loop.time()
        for waiting in list(self._waiting):
            if waiting.timeout_s is not None and max(waiting.since, self._heard_at) + waiting.timeout_s <= now:
                self._waiting.remove(waiting)
                silent = f"{self.name} has answered no call while this one waited for its turn"
                self._tell(waiting, delayed("timeout", silent))

    def timed_out(self, timeout_ms: int) -> Answer:
        return delayed("timeout", f"{self.name} gave no answer within {timeout_ms} ms")

    def _tell(self, running: _Running, answer: Answer) -> None:
        done, running.done = running.done, None
        if done is None:
            return
        try:
            done(running.call, answer)
        except Exception as error:  # its owner's mistake must not cost the neighbours their turn
            context = {"message": f"answering a call of {self.name} failed", "exception": error}
            self._loop.call_exception_handler(context)


def describe(error: BaseException) -> str:
    """``TypeName: text``, whatever its ``__str__`` does."""
    try:
        text = str(error)
    except Exception as worse:
        text = f"(its text cannot be made: {type(worse).__name__})"
    return f"{type(error).__name__}: {text}"[:TEXT_MAX] if text else type(error).__name__


def trace(error: BaseException) -> str:
    """The traceback as text, its end if it is long."""
    try:
        return "".join(traceback.format_exception(error))[-TRACEBACK_MAX:]
    except Exception as worse:
        return f"(the traceback cannot be made: {type(worse).__name__})"
