"""Steps a command's ``exec``: a tree of plain coroutines, driven by ``send`` and ``throw``.

``exec`` yields what it awaits (`saga.StepCall`, `Skip`, `Fork`, `Gate`); an Execution answers from what the log has
recorded, and keeps what is not recorded yet as *pending*.  The engine feeds outcomes, failures and a stop in log
order; the same feed always leads to the same pending steps, which is what makes a crash invisible: a new Execution
fed from the start stands where the old one stood.

A branch that fails throws into the coroutine that forked it, at once.  What the other branches had under way is then
*orphaned*: nobody waits for it, but it may have taken effect, so the engine resolves it and undoes it (DESIGN section
4, "a step in doubt").  A stop (cancel, deadline) orphans everything that is pending.  Not in doubt is a step that was
issued and abandoned within one feed: nobody ever saw it pending, so nobody can have called it.

A mistake that replay could not survive (`misuse`) ends the run for good, whatever ``exec`` would make of it: a loop
that catches every exception must not spin for ever inside the daemon.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any

import msgspec
from msgspec import Raw

from coordinator.awaitables import Fork, Gate, Skip, StepCall
from coordinator.engine import faults
from coordinator.engine.misuse import AWAITS_MAX, STEPS_MAX, MisusedSaga, check
from coordinator.model.records import Failure
from coordinator.saga import Saga, StepFailed

_decode = msgspec.msgpack.decode


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
        "_awaits_left",
        "_fibers",
        "_issued",
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
        self._issued: set[str] = set()  # by the present feed: nobody can have called these
        self._awaits_left = AWAITS_MAX
        self._parked: list[tuple[Gate, _Fiber]] = []
        self._queue: deque[tuple[_Fiber, Any, BaseException | None]] = deque()
        self._root = _Fiber(_started(start, saga))
        self._fibers: set[_Fiber] = {self._root}
        self._resume(self._root, None)
        self._run()

    # ------------------------------------------------------------ the feed, in log order

    def outcome(self, name: str, value: Raw, at: int) -> None:
        """The step's recorded outcome."""
        waiting = self._answered(name, at)
        if waiting is None:
            return
        into = waiting.call.into
        try:
            result = _decode(value) if into is None else _decode(value, type=into)
        except msgspec.ValidationError as error:
            shape = getattr(into, "__name__", str(into))
            failure = Failure("bad_outcome", f"the outcome is no {shape}: {faults.message_of(error)}", step=name)
            self._throw(waiting.fiber, StepFailed(name, failure))
        except Exception as error:  # of the type's own code
            self._throw(waiting.fiber, error)
        else:
            self._resume(waiting.fiber, result)
        self._run()

    def failed(self, name: str, failure: Failure, at: int) -> None:
        """The step has failed for good."""
        waiting = self._answered(name, at)
        if waiting is not None:
            self._throw(waiting.fiber, StepFailed(name, failure))
            self._run()

    def stop(self) -> None:
        """A contrary decision: nothing more is run; what is pending is in doubt."""
        if not self.done:
            self.done = True
            self._issued.clear()
            self._abandon(_everything)

    # ------------------------------------------------------------ the tree

    def _answered(self, name: str, at: int) -> Pending | None:
        self._saga.now = at
        self._issued.clear()
        if name not in self.calls and not self.done:
            self._mistaken(
                f"the log has an answer of step {name!r}, which exec does not issue any more: it must lead to the same "
                "steps for as long as its commands are under way; change it under a new version"
            )
        if self.orphans.pop(name, None) is not None:
            self.lost.add(name)
        return self.pending.pop(name, None)

    def _resume(self, fiber: _Fiber, value: Any) -> None:
        self._queue.append((fiber, value, None))

    def _throw(self, fiber: _Fiber, error: BaseException) -> None:
        self._queue.append((fiber, None, error))

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
            self._mistaken("exec waits for a Gate that no branch can open any more")

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
            mistake = MisusedSaga(f"exec raised {type(exc).__name__}, which would end the daemon")
            self._raised(fiber, mistake.with_traceback(exc.__traceback__))
        except BaseException as exc:
            self._raised(fiber, exc)
        else:
            self._awaits(fiber, awaited)

    def _awaits(self, fiber: _Fiber, awaited: Any) -> None:
        self._awaits_left -= 1
        kind = type(awaited)
        if not self._awaits_left:
            self._mistaken(f"exec awaited {AWAITS_MAX} times: it is in a loop that does not end", fiber)
        elif kind is StepCall:
            self._step(fiber, awaited)
        elif kind is Skip:
            self.skipped[self._name(awaited.name)] = awaited.service
            self._resume(fiber, None)
        elif kind is Fork:
            self._fork(fiber, awaited)
        elif kind is Gate:
            self._parked.append((awaited, fiber))
        else:
            self._mistaken(
                f"exec awaited {awaited!r}; it may only await what the saga gives (saga.step, saga.all): put other I/O "
                "into an async function and hand that to saga.step",
                fiber,
            )

    def _step(self, fiber: _Fiber, call: StepCall) -> None:
        if len(self.calls) >= STEPS_MAX:
            self._mistaken(f"a command has at most {STEPS_MAX} steps", fiber)
            return
        try:
            check(call)
        except MisusedSaga as mistake:
            self._mistaken(str(mistake), fiber)
            return
        name = self._name(call.name)
        self.calls[name] = call
        self.pending[name] = Pending(name, call, fiber, self._saga.now)
        self._issued.add(name)

    def _name(self, wanted: str) -> str:
        """A repeated step has a name of its own (``charge#2``), hence its own key."""
        count = self._names.get(wanted, 0) + 1
        name = wanted if count == 1 else f"{wanted}#{count}"
        while name in self.calls or name in self.skipped:  # its author has used the very name that we would give
            count += 1
            name = f"{wanted}#{count}"
        self._names[wanted] = count
        return name

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
            self._abandon(_everything)
            return
        join.results[fiber.index] = value
        join.remaining -= 1
        if not join.remaining:
            self._resume(join.waiter, join.results)

    def _raised(self, fiber: _Fiber, error: BaseException) -> None:
        """The branch ended with an error: it ends the fork, or the run."""
        self._fibers.discard(fiber)
        join = fiber.join
        if faults.again(error):
            self._issued.clear()  # an earlier run over the same records may have gone on, and called them
        if join is None:
            self.error = error
            self.done = True
            self._abandon(_everything)
        elif not join.failed:
            join.failed = True
            self._abandon(lambda other: other.under(join))
            self._throw(join.waiter, error)

    def _mistaken(self, text: str, fiber: _Fiber | None = None) -> None:
        """Ends the run as a mistake of its author.  It is raised in ``fiber`` first, so that the traceback shows the
        line, but what comes of that does not count."""
        self.error = error = MisusedSaga(text)
        self.done = True
        if fiber is not None:
            with suppress(BaseException):
                fiber.coroutine.throw(error)
        self._abandon(_everything)

    def _abandon(self, doomed: Callable[[_Fiber], bool]) -> None:
        """Ends branches: what they had pending is orphaned, their coroutines are closed."""
        for name, waiting in list(self.pending.items()):
            if doomed(waiting.fiber):
                del self.pending[name]
                if name not in self._issued:
                    self.orphans[name] = waiting
        self._parked = [(gate, fiber) for gate, fiber in self._parked if not doomed(fiber)]
        for fiber in [fiber for fiber in self._fibers if doomed(fiber)]:
            self._fibers.discard(fiber)
            close(fiber.coroutine)


def _everything(_fiber: _Fiber) -> bool:
    return True


def _started(start: Callable[[Saga], Coroutine[Any, Any, Any]], saga: Saga) -> Coroutine[Any, Any, Any]:
    coroutine = start(saga)
    if not isinstance(coroutine, Coroutine):
        raise MisusedSaga(f"exec is `async def` and returns a result; calling it gave {type(coroutine).__name__}")
    return coroutine


async def _awaiting(branch: Awaitable[Any]) -> Any:
    return await branch


def close(coroutine: Coroutine[Any, Any, Any]) -> None:
    """Closes a coroutine whose author may do anything in ``finally``; nobody is left to tell."""
    try:
        coroutine.close()
    except KeyboardInterrupt:
        raise
    except BaseException:
        return
