"""Steps a command's ``exec``: a tree of plain coroutines, driven by ``send`` and ``throw``.

``exec`` yields what it awaits (`saga.StepCall`, `Skip`, `Fork`, `Gate`); an Execution answers from what the log has
recorded, and keeps what is not recorded yet as *pending*.  The engine feeds outcomes, failures and a stop in log
order; the same feed always leads to the same pending steps, which is what makes a crash invisible: a new Execution
fed from the start stands where the old one stood.

A branch that fails throws into the coroutine that forked it, at once.  What the other branches had under way is then
*orphaned*: nobody waits for it, but it may have taken effect, so the engine resolves it and undoes it (DESIGN section
4, "a step in doubt").  A stop (cancel, deadline) orphans everything that is pending.
"""

from __future__ import annotations

import traceback as traceback_module
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import msgspec
from msgspec import Raw

from coordinator.model.records import Failure
from coordinator.saga import Fork, Gate, Saga, Skip, StepCall, StepFailed

_decode = msgspec.msgpack.decode

STEPS_MAX = 10_000  # of one command: a loop without end is a mistake of its author


class MisusedSaga(Exception):
    """``exec`` did something that cannot be replayed; the text says what and what to do instead."""


class _Join:
    """A fork under way: who waits for it and what its branches have returned."""

    __slots__ = ("failed", "remaining", "results", "waiter")

    def __init__(self, waiter: _Fiber, size: int) -> None:
        self.waiter = waiter
        self.results: list[Any] = [None] * size
        self.remaining = size
        self.failed = False


class _Fiber:
    """One coroutine of the tree, and its place in the fork that started it."""

    __slots__ = ("coroutine", "index", "join")

    def __init__(self, coroutine: Coroutine[Any, Any, Any], join: _Join | None = None, index: int = 0) -> None:
        self.coroutine = coroutine
        self.join = join
        self.index = index

    def under(self, join: _Join) -> bool:
        fiber: _Fiber | None = self
        while fiber is not None and fiber.join is not None:
            if fiber.join is join:
                return True
            fiber = fiber.join.waiter
        return False


class Pending:
    """A step that was issued and has no recorded outcome; ``since`` is the time of the record that led to it (ms)."""

    __slots__ = ("call", "fiber", "name", "since")

    def __init__(self, name: str, call: StepCall, fiber: _Fiber, since: int) -> None:
        self.name = name
        self.call = call
        self.fiber = fiber
        self.since = since


class Execution:
    """One run of a command's ``exec``.

    ``pending`` and ``orphans`` map a step's name to what is to be called; ``calls`` has every step issued so far (an
    undo needs its step's call); ``skipped`` those left out by a condition, ``lost`` those that were answered when
    nobody waited for them any more.  When ``done``, either ``error`` is set or ``result`` counts.
    """

    __slots__ = (
        "_fibers",
        "_names",
        "_parked",
        "_queue",
        "_root",
        "_saga",
        "calls",
        "done",
        "error",
        "lost",
        "orphans",
        "pending",
        "result",
        "skipped",
    )

    def __init__(self, start: Callable[[Saga], Coroutine[Any, Any, Any]], saga: Saga) -> None:
        self.pending: dict[str, Pending] = {}
        self.orphans: dict[str, Pending] = {}
        self.lost: set[str] = set()
        self.calls: dict[str, StepCall] = {}
        self.skipped: dict[str, str] = {}
        self.done = False
        self.result: Any = None
        self.error: BaseException | None = None
        self._saga = saga
        self._names: dict[str, int] = {}
        self._parked: list[tuple[Gate, _Fiber]] = []
        self._queue: deque[tuple[_Fiber, Any, BaseException | None]] = deque()
        self._root = _Fiber(start(saga))
        self._fibers: set[_Fiber] = {self._root}
        self._resume(self._root, None)
        self._run()

    # ------------------------------------------------------------ the feed, in log order

    def outcome(self, name: str, value: Raw, at: int) -> None:
        """The step's recorded outcome."""
        waiting = self._answered(name, at)
        if waiting is None:
            return
        try:
            call = waiting.call
            result = _decode(value) if call.into is None else _decode(value, type=call.into)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            shape = getattr(waiting.call.into, "__name__", str(waiting.call.into))
            self._throw(waiting.fiber, name, Failure("bad_outcome", f"the outcome is no {shape}: {error}", step=name))
        else:
            self._resume(waiting.fiber, result)
        self._run()

    def failed(self, name: str, failure: Failure, at: int) -> None:
        """The step has failed for good."""
        waiting = self._answered(name, at)
        if waiting is not None:
            self._throw(waiting.fiber, name, failure)
            self._run()

    def stop(self) -> None:
        """A contrary decision: nothing more is run; what is pending is in doubt."""
        if not self.done:
            self.done = True
            self._abandon(lambda _fiber: True)

    # ------------------------------------------------------------ the tree

    def _answered(self, name: str, at: int) -> Pending | None:
        self._saga.now = at
        if self.orphans.pop(name, None) is not None:
            self.lost.add(name)
        return self.pending.pop(name, None)

    def _resume(self, fiber: _Fiber, value: Any) -> None:
        self._queue.append((fiber, value, None))

    def _throw(self, fiber: _Fiber, name: str, failure: Failure) -> None:
        self._queue.append((fiber, None, StepFailed(name, failure)))

    def _run(self) -> None:
        queue = self._queue
        while True:
            while queue and not self.done:
                fiber, value, error = queue.popleft()
                if fiber in self._fibers:
                    self._advance(fiber, value, error)
            if self.done or not self._parked or not self._open_gates():
                break
        if not self.done and not self.pending and self._parked:
            self._raised(
                next(iter(self._fibers)), MisusedSaga("exec waits for a Gate that no branch can open any more")
            )
            self._run()

    def _open_gates(self) -> bool:
        """Resumes who waits for a gate that is open now; tells whether anybody did."""
        opened = [(gate, fiber) for gate, fiber in self._parked if gate.opened]
        if opened:
            self._parked = [(gate, fiber) for gate, fiber in self._parked if not gate.opened]
            for _gate, fiber in opened:
                self._resume(fiber, None)
        return bool(opened)

    def _advance(self, fiber: _Fiber, value: Any, error: BaseException | None) -> None:
        try:
            awaited = fiber.coroutine.send(value) if error is None else fiber.coroutine.throw(error)
        except StopIteration as stop:
            self._returned(fiber, stop.value)
        except (KeyboardInterrupt, SystemExit) as exc:
            self._raised(fiber, MisusedSaga(f"exec raised {type(exc).__name__}"))
        except BaseException as exc:
            self._raised(fiber, exc)
        else:
            self._awaits(fiber, awaited)

    def _awaits(self, fiber: _Fiber, awaited: Any) -> None:
        kind = type(awaited)
        if len(self.calls) >= STEPS_MAX:
            self._queue.append((fiber, None, MisusedSaga(f"a command has at most {STEPS_MAX} steps")))
        elif kind is StepCall:
            name = self._name(awaited.name)
            self.calls[name] = awaited
            self.pending[name] = Pending(name, awaited, fiber, self._saga.now)
        elif kind is Skip:
            self.skipped[self._name(awaited.name)] = awaited.service
            self._resume(fiber, None)
        elif kind is Fork:
            self._fork(fiber, awaited)
        elif kind is Gate:
            self._parked.append((awaited, fiber))
        else:
            mistake = MisusedSaga(
                f"exec awaited {awaited!r}; it may only await what the saga gives (saga.step, saga.all): put other I/O "
                "into an async function and hand that to saga.step"
            )
            self._queue.append((fiber, None, mistake))

    def _name(self, wanted: str) -> str:
        """A repeated step has a name of its own (``charge#2``), hence its own key."""
        count = self._names.get(wanted, 0) + 1
        self._names[wanted] = count
        return wanted if count == 1 else f"{wanted}#{count}"

    def _fork(self, waiter: _Fiber, fork: Fork) -> None:
        if not fork.branches:
            self._resume(waiter, [])
            return
        join = _Join(waiter, len(fork.branches))
        for index, branch in enumerate(fork.branches):
            coroutine = branch if isinstance(branch, Coroutine) else _awaiting(branch)
            child = _Fiber(coroutine, join, index)
            self._fibers.add(child)
            self._resume(child, None)

    def _returned(self, fiber: _Fiber, value: Any) -> None:
        self._fibers.discard(fiber)
        join = fiber.join
        if join is None:
            self.result = value
            self.done = True
            self._abandon(lambda _fiber: True)
            return
        join.results[fiber.index] = value
        join.remaining -= 1
        if not join.remaining:
            self._resume(join.waiter, join.results)

    def _raised(self, fiber: _Fiber, error: BaseException) -> None:
        self._fibers.discard(fiber)
        join = fiber.join
        if join is None:
            self.error = error
            self.done = True
            self._abandon(lambda _fiber: True)
            return
        if not join.failed:
            join.failed = True
            self._abandon(lambda other: other.under(join))
            self._queue.append((join.waiter, None, error))

    def _abandon(self, doomed: Callable[[_Fiber], bool]) -> None:
        """Ends branches: what they had pending is orphaned, their coroutines are closed."""
        for name, waiting in list(self.pending.items()):
            if doomed(waiting.fiber):
                self.orphans[name] = self.pending.pop(name)
        self._parked = [(gate, fiber) for gate, fiber in self._parked if not doomed(fiber)]
        for fiber in [fiber for fiber in self._fibers if doomed(fiber)]:
            self._fibers.discard(fiber)
            close(fiber.coroutine)


async def _awaiting(branch: Awaitable[Any]) -> Any:
    return await branch


def close(coroutine: Coroutine[Any, Any, Any]) -> None:
    """Closes a coroutine whose author may do anything in ``finally``; nobody is left to tell."""
    try:
        coroutine.close()
    except BaseException as error:
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise


def traceback_of(error: BaseException) -> str:
    """The traceback of a poison command, without the stepper's own frames."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_globals.get("__name__") == __name__:
        frames = frames.tb_next
    lines = traceback_module.format_exception(type(error), error, frames)
    return "".join(lines)[-8_000:]
