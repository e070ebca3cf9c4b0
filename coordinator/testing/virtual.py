"""An event loop on which nothing is left to chance: time is a number, and one seed decides the order of everything.

    ready callbacks ─▶ the seed picks a strand, its oldest callback runs, time moves a microsecond
    nothing is ready ─▶ time jumps to the next timer
    no timer either ─▶ `Deadlock`: what is awaited can never come

It is an `asyncio.AbstractEventLoop`, so real code with tasks, timeouts and events runs on it unchanged.  What would
leave the process (pipes, signals, threads) is not implemented there, so it cannot happen by accident; a function given
to an executor runs on the loop itself, a moment later; connections and listeners are those of a played `Network`, if
the loop is given one.

A *strand* is what would have an event loop of its own in the world that is played: a process, a machine.  asyncio
promises the order of callbacks within one loop and nothing between two, so that is what is shuffled: each strand keeps
its order, strands interleave at random.  A strand can be paused (its callbacks and its timers wait, the world goes on)
and ended (they never run).  What a callback or a task starts belongs to its strand: the strand is a context variable.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import warnings
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, ContextVar, copy_context
from random import Random
from typing import Any, Final, Protocol, TypeVar

T = TypeVar("T")

_CALLBACK_NS: Final = 1_000  # of virtual time a callback: a loop that waits for a moment to come does not wait for ever
_EXECUTOR_MAX_S: Final = 0.02
_BURIAL_TURNS: Final = 200_000


class Deadlock(Exception):
    """Nothing is ready, no timer is set, and what was to be awaited is not done."""


_STRAND: ContextVar[Strand] = ContextVar("strand")


class Strand:
    """Callbacks that keep their order among themselves (see the module); made by `VirtualLoop.strand`."""

    __slots__ = ("context", "ended", "name", "paused", "queue")

    def __init__(self, name: str) -> None:
        self.name = name
        self.context = copy_context()  # of callbacks; each task has a copy
        self.context.run(_STRAND.set, self)
        self.queue: deque[asyncio.Handle] = deque()
        self.paused = False
        self.ended = False


class Network(Protocol):
    """Where connections go to; ``strand`` is whose they are."""

    def listen(self, strand: Strand, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int) -> Any:
        """Something like an `asyncio.Server`."""
        ...

    async def connect(
        self, strand: Strand, factory: Callable[[], asyncio.BaseProtocol], host: str, port: int
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]:
        """As `loop.create_connection`; raises OSError."""
        ...


class _Task(asyncio.Task[T]):
    """A task whose place in a set does not depend on where it lies in memory."""

    number = 0

    def __hash__(self) -> int:
        return self.number


class VirtualLoop(asyncio.AbstractEventLoop):
    """See the module.  ``random`` alone decides what is open; ``failed`` is told of exceptions that nobody caught."""

    network: Network

    def __init__(self, random: Random, failed: Callable[[str, BaseException | None], None] | None = None) -> None:
        self._random = random
        self._failed = failed
        self._now_ns = 0
        self._timers: list[tuple[int, float, int, Strand, asyncio.TimerHandle]] = []
        self._sequence = 0
        self._main = Strand("main")
        self._busy: list[Strand] = []  # those with callbacks that may run
        self._paused: list[Strand] = []
        self._tasks: list[asyncio.Task[Any]] = []  # all of them: one that nobody refers to would die at any moment
        self._unrun: list[asyncio.Handle] = []  # of ended strands: a task cannot end before its next step has run
        self._burying = False
        self._closed = False
        self.callbacks = 0  # run so far

    # ------------------------------------------------------------ time and strands

    @property
    def now_ns(self) -> int:
        """Virtual nanoseconds since the beginning."""
        return self._now_ns

    def time(self) -> float:
        return self._now_ns / 1e9

    def strand(self, name: str) -> Strand:
        return Strand(name)

    @property
    def current(self) -> Strand:
        """The strand that is running."""
        return _STRAND.get(self._main)

    def spawn(self, strand: Strand, coroutine: Coroutine[Any, Any, T], name: str | None = None) -> asyncio.Task[T]:
        """A task of that strand."""
        return self.create_task(coroutine, name=name, context=strand.context.copy())

    def post(self, strand: Strand, callback: Callable[..., object], *args: Any) -> asyncio.Handle:
        """`call_soon` on that strand."""
        return self.call_soon(callback, *args, context=strand.context)

    def post_later(
        self, strand: Strand, delay: float, callback: Callable[..., object], *args: Any
    ) -> asyncio.TimerHandle:
        """`call_later` on that strand."""
        return self.call_later(delay, callback, *args, context=strand.context)

    def pause(self, strand: Strand) -> None:
        """Withholds the strand's callbacks until `wake`; timers that come due meanwhile join them."""
        strand.paused = True
        self._paused.append(strand)
        self._unlist(strand)

    def wake(self, strand: Strand) -> None:
        strand.paused = False
        if strand in self._paused:
            self._paused.remove(strand)
        if strand.queue and not strand.ended and strand not in self._busy:
            self._busy.append(strand)

    def end(self, strand: Strand) -> None:
        """Nothing of this strand runs any more, from the end of the callback that is running."""
        strand.ended = True
        self._unrun += strand.queue
        strand.queue.clear()
        self._unlist(strand)

    def _unlist(self, strand: Strand) -> None:
        if strand in self._busy:
            self._busy.remove(strand)

    # ------------------------------------------------------------ running

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs until ``coroutine`` is done; raises `Deadlock` when that can never come."""
        with self._running():
            task = self.spawn(self._main, coroutine, "main")
            while not task.done():
                self._turn()
            return task.result()

    @contextlib.contextmanager
    def _running(self) -> Generator[None]:
        events._set_running_loop(self)
        try:
            yield
        finally:
            events._set_running_loop(None)

    def _turn(self) -> None:
        """One callback, of a strand that chance picks; or the jump to the next timer."""
        timers = self._timers
        while timers and (timers[0][0] <= self._now_ns or not self._busy):
            due, _, _, strand, timer = heapq.heappop(timers)
            if not timer.cancelled() and not strand.ended:
                self._now_ns = max(self._now_ns, due)
                self._push(strand, timer)
        busy = self._busy
        if not busy:
            raise Deadlock(f"nothing is left to happen at {self.time():.6f} s")
        strand = busy[int(self._random.random() * len(busy))] if len(busy) > 1 else busy[0]
        handle = strand.queue.popleft()
        if not strand.queue:
            busy.remove(strand)
        self._now_ns += _CALLBACK_NS
        if not handle.cancelled():
            self.callbacks += 1
            handle._run()

    def _push(self, strand: Strand, handle: asyncio.Handle) -> None:
        if self._burying:
            strand = self._main
        elif strand.ended:
            self._unrun.append(handle)
            return
        if not strand.queue and not strand.paused:
            self._busy.append(strand)
        strand.queue.append(handle)

    def close(self) -> None:
        """Cancels every task, those of ended strands too, and lets them end: what they still do reaches nobody."""
        if self._closed:
            return
        self._burying = True
        self._failed = None
        self._timers.clear()
        for strand in [*self._busy, *self._paused]:
            self._unrun += strand.queue
        self._busy.clear()
        self._main.queue.clear()
        for handle in self._unrun:
            self._push(self._main, handle)
        with self._running(), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # coroutines made for tasks that never began
            for _ in range(3):  # a task may refuse its first cancellation, to close what it has opened
                for task in self._tasks:
                    task.cancel()
                with contextlib.suppress(Deadlock):
                    for _ in range(_BURIAL_TURNS):
                        self._turn()
            self._tasks.clear()
        self._closed = True

    # ------------------------------------------------------------ what asyncio asks of a loop

    def call_soon(self, callback: Any, *args: Any, context: Context | None = None) -> asyncio.Handle:  # type: ignore[override]
        context = context if context is not None else copy_context()
        handle = asyncio.Handle(callback, args, self, context)
        self._push(context.get(_STRAND, self._main), handle)
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Timers of one moment fire in any order: asyncio promises none."""
        context = context if context is not None else copy_context()
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._sequence += 1
        strand = context.get(_STRAND, self._main)
        heapq.heappush(self._timers, (round(when * 1e9), self._random.random(), self._sequence, strand, handle))
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Cancelled timers are passed over when their time comes."""

    async def create_server(self, factory: Any, host: Any = None, port: Any = None, **_: Any) -> Any:  # type: ignore[override]
        return self.network.listen(self.current, factory, host, port)

    async def create_connection(self, factory: Any, host: Any = None, port: Any = None, **_: Any) -> Any:  # type: ignore[override]
        return await self.network.connect(self.current, factory, host, port)

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: str | None = None, context: Context | None = None) -> asyncio.Task[Any]:
        task: _Task[Any] = _Task(coro, loop=self, name=name, context=context)
        self._sequence += 1
        task.number = self._sequence
        self._tasks.append(task)
        return task

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        """Runs ``func`` on the loop, a moment later: a thread would bring in a clock of its own."""
        future: asyncio.Future[T] = self.create_future()

        def run() -> None:
            if future.cancelled():
                return
            try:
                future.set_result(func(*args))
            except Exception as error:
                future.set_exception(error)

        self.call_later(self._random.random() * _EXECUTOR_MAX_S, run)
        return future

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if self._failed is not None:
            self._failed(str(context.get("message")), context.get("exception"))

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        self.call_exception_handler(context)

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return events._get_running_loop() is self

    def is_closed(self) -> bool:
        return self._closed
