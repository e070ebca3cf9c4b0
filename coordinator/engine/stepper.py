"""Steps a command's ``exec``: a tree of plain coroutines, driven by ``send`` and ``throw``.

``exec`` yields what it awaits (`coordinator.awaitables`); an Execution answers from what the log has recorded, and
keeps what is not recorded yet: *pending* steps, which are to be called, *waits*, which somebody outside or time
answers, and *holds*, which an operator releases.  The engine feeds what was recorded in log order; the same feed always
leads to the same state, which is what makes a crash invisible: a new Execution fed from the start stands where the old
one stood.

A branch that fails throws into the coroutine that forked it, at once.  What the other branches had under way is then
*orphaned*: nobody waits for it, but it may have taken effect, so the engine resolves it (DESIGN section 4, "a step in
doubt"), and what turns out to have been done is *unwanted*: it is undone while exec goes on.  A branch that is
discarded leaves all that it has done unwanted.  A stop (cancel, deadline) orphans everything that is pending.  Not in
doubt is a step that was issued and abandoned within one feed: nobody ever saw it pending, so nobody can have called it.

Signals that nobody waits for yet are kept by name, in the order in which they came.

A mistake that replay could not survive (`misuse`) ends the run for good, whatever ``exec`` would make of it: a loop
that catches every exception must not spin for ever inside the daemon.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable
from contextlib import suppress
from typing import Any, Final

import msgspec
from msgspec import Raw

from coordinator.awaitables import (
    Branch,
    Discard,
    Ended,
    Fork,
    Gate,
    Group,
    Hold,
    Skip,
    Start,
    StepCall,
    Unwound,
    Wait,
)
from coordinator.engine import faults
from coordinator.engine.mailbox import Mailbox
from coordinator.engine.misuse import AWAITS_MAX, STEPS_MAX, MisusedSaga, check
from coordinator.engine.waits import Answered, decided, timed_out
from coordinator.model.records import Failure, Signal
from coordinator.saga import Saga, StepFailed

_decode = msgspec.msgpack.decode


_NOTHING: Final[dict[str, Any]] = {}  # shared, and never written to: most commands have none of it


class _Join:
    """Branches under way: who waits for them and what they have returned.

    ``waiter`` is the fiber that waits now: that of a Fork from the beginning, that of a Group once it awaits Ended.
    ``listeners`` are not waited for.
    """

    __slots__ = ("error", "failed", "listeners", "owner", "remaining", "results", "waiter")

    def __init__(self, waiter: _Fiber | None, size: int) -> None:
        self.waiter = waiter
        self.owner: _Fiber | None = None  # who began a Group: with it, its branches end
        self.results: list[Any] | None = None if waiter is None else [None] * size
        self.remaining = size
        self.failed = False
        self.error: BaseException | None = None
        self.listeners = 0


class _Fiber:
    """One coroutine of the tree; ``parent`` is the one that began it, also when that has ended."""

    __slots__ = ("branch", "coroutine", "index", "join", "listens", "parent", "started")

    def __init__(
        self,
        coroutine: Coroutine[Any, Any, Any],
        parent: _Fiber | None = None,
        join: _Join | None = None,
        index: int = 0,
        branch: Branch | None = None,
        *,
        listens: bool = False,
    ) -> None:
        self.coroutine = coroutine
        self.parent = parent
        self.join = join
        self.index = index
        self.branch = branch
        self.listens = listens
        self.started = False  # branches of its own, which end with it

    def under(self, join: _Join) -> bool:
        fiber: _Fiber | None = self
        while fiber is not None:
            if fiber.join is join:
                return True
            fiber = fiber.parent
        return False

    def within(self, roots: Iterable[_Fiber]) -> bool:
        """Whether it is one of the ``roots``, or was begun under one."""
        fiber: _Fiber | None = self
        while fiber is not None:
            if fiber in roots:
                return True
            fiber = fiber.parent
        return False


class Pending:
    """A step, a wait or a hold that is not answered yet; ``since`` is the time of the record that led to it (ms)."""

    __slots__ = ("call", "fiber", "name", "since")

    def __init__(self, name: str, call: Any, fiber: _Fiber, since: int) -> None:
        self.name = name
        self.call = call
        self.fiber = fiber
        self.since = since


class Execution:
    """One run of a command's ``exec``.

    ``pending`` and ``orphans`` map a step's name to what is to be called (each ``call`` is a StepCall), ``waits`` and
    ``holds`` to what is not (a Wait, a Hold).  ``calls`` has every step issued so far (an undo needs its step's call),
    ``waited`` every wait with its answer, ``skipped`` the steps left out by a condition.  ``unwanted`` are steps whose
    recorded outcome is to be undone although exec goes on, ``moved_at`` is the time of the last record that was more
    than kept, ``late`` data that came when it had returned (a datum's
    number among the signals, and its name).  When ``done``, either ``error`` is set or ``result`` counts.
    """

    __slots__ = (
        "_awaits_left",
        "_fibers",
        "_issued",
        "_issuers",
        "_kept",
        "_mailbox",
        "_names",
        "_parked",
        "_queue",
        "_recorded",
        "_root",
        "_saga",
        "_signals",
        "_stopped",
        "_unwinding",
        "calls",
        "done",
        "error",
        "holds",
        "late",
        "moved_at",
        "orphans",
        "pending",
        "result",
        "skipped",
        "unwanted",
        "waited",
        "waits",
    )

    def __init__(self, start: Callable[[Saga], Coroutine[Any, Any, Any]], saga: Saga) -> None:
        self.pending: dict[str, Pending] = {}
        self.orphans: dict[str, Pending] = {}
        self.waits: dict[str, Pending] = _NOTHING
        self.holds: dict[str, Pending] = _NOTHING
        self.unwanted: dict[str, None] = _NOTHING
        self.calls: dict[str, StepCall] = {}
        self.waited: dict[str, Answered] = _NOTHING
        self.skipped: dict[str, str] = {}
        self.late: tuple[tuple[int, str], ...] = ()
        self.moved_at = saga.now
        self.done = False
        self.result: Any = None
        self.error: BaseException | None = None
        self._saga = saga
        self._signals = 0
        self._stopped = False
        self._names: dict[str, int] = {}
        self._issued: set[str] = set()  # by the present feed: nobody can have called these
        self._issuers: dict[str, _Fiber] = {}
        self._recorded: set[str] = set()  # steps whose outcome is known
        self._kept: dict[str, None] = _NOTHING  # orphans whose outcome is to stay
        self._mailbox: Mailbox | None = None
        self._awaits_left = AWAITS_MAX
        self._parked: list[tuple[Gate, _Fiber]] = []
        self._unwinding: list[tuple[_Fiber, tuple[_Fiber, ...]]] = []  # who waits, for what was under which branches
        self._queue: deque[tuple[_Fiber, Any, BaseException | None]] = deque()
        self._root = _Fiber(_started(start, saga))
        self._fibers: dict[_Fiber, None] = {self._root: None}  # in order: what they do when they are closed may tell
        self._resume(self._root, None)
        self._run()

    @property
    def waiting(self) -> list[Pending]:
        """The waits that exec needs to go on, in the order in which they began; where it needs none of them and has
        nothing else, any of them will do."""
        needed = [waiting for waiting in self.waits.values() if not waiting.call.listens]
        if needed or self.pending or self.holds:
            return needed
        return list(self.waits.values())

    @property
    def names(self) -> Collection[str]:
        """Everything that it has issued, in that order: steps, waits and holds."""
        return self._issuers.keys()

    # ------------------------------------------------------------ the feed, in log order

    def outcome(self, name: str, value: Raw, at: int) -> None:
        """The step's recorded outcome."""
        orphan = self._heard(name, at)
        self._recorded.add(name)
        if orphan and name not in self._kept:
            self._unwant(name)
        waiting = self.pending.pop(name, None)
        if waiting is not None:
            self._deliver(waiting, value)
        self._run()

    def failed(self, name: str, failure: Failure, at: int) -> None:
        """The step has failed for good."""
        self._heard(name, at)
        waiting = self.pending.pop(name, None)
        if waiting is not None:
            self._throw(waiting.fiber, StepFailed(name, failure))
        self._run()

    def undone(self, name: str, at: int) -> None:
        """The step's undo is recorded."""
        self._now(at)
        self.moved_at = at
        self._recorded.discard(name)
        if name in self.unwanted:
            del self.unwanted[name]
            self._run()

    def signal(self, record: Signal) -> None:
        """Data for whoever waits for it, now or later; a decision counts only for who waits for it now."""
        self._now(record.at)
        self._signals += 1
        if self.done:
            if record.channel == "data" and not self._stopped and not self.redundant(record):
                self.late = (*self.late, (self._signals, record.name))
            return
        if record.channel == "decision":
            waiting = self.waits.get(record.name)
            if waiting is not None and waiting.call.kind == "decision":
                self._decide(waiting, decided(record), record.at)
        else:
            if self._mailbox is None:
                self._mailbox = Mailbox()
            self._mailbox.put(record, wanted=self._wait_for(record.name) is not None)
            self._collect(record.name)
        self._run()

    def timer(self, name: str, at: int) -> None:
        """The time of a wait, or a step's deadline, has come."""
        self._now(at)
        waiting = self.waits.get(name)
        if waiting is not None:
            self._time_out(waiting, at)
        elif (late := self.pending.pop(name, None)) is not None:
            self.orphans[name] = late
            failure = Failure("deadline_exceeded", f"the step did not end within {late.call.deadline}", step=name)
            self._throw(late.fiber, StepFailed(name, failure))
        elif name not in self.calls and name not in self.waited and not self.done:
            self._changed(name)
        self._run()

    def released(self, name: str, at: int) -> None:
        """An operator lets exec go on after a Hold."""
        self._now(at)
        held = self.holds.pop(name, None)
        if held is not None:
            self._resume(held.fiber, None)
            self._run()

    def redundant(self, record: Signal) -> bool:
        """Whether the data would change nothing: the same as the last, and nobody waits for another."""
        mailbox = self._mailbox
        return mailbox is not None and mailbox.redundant(record, wanted=self._wait_for(record.name) is not None)

    def stop(self) -> None:
        """A contrary decision: nothing more is run; what is pending is in doubt."""
        self._stopped = True
        if not self.done:
            self.done = True
            self._issued.clear()
            self._abandon(_everything)

    # ------------------------------------------------------------ answers

    def _now(self, at: int) -> None:
        self._saga.now = at
        self._issued.clear()

    def _heard(self, name: str, at: int) -> bool:
        """Something is known of the step now; tells whether nobody waited for it any more."""
        self._now(at)
        self.moved_at = at
        if name not in self.calls and not self.done:
            self._changed(name)
        return self.orphans.pop(name, None) is not None

    def _changed(self, name: str) -> None:
        self._mistaken(
            f"the log has an answer of step {name!r}, which exec does not issue any more: it must lead to the same "
            "steps for as long as its commands are under way; change it under a new version"
        )

    def _deliver(self, waiting: Pending, value: Raw) -> None:
        into = waiting.call.into
        try:
            result = _decode(value) if into is None else _decode(value, type=into)
        except msgspec.ValidationError as error:
            shape = getattr(into, "__name__", str(into))
            failure = Failure(
                "bad_outcome", f"the outcome is no {shape}: {faults.message_of(error)}", step=waiting.name
            )
            self._throw(waiting.fiber, StepFailed(waiting.name, failure))
        except Exception as error:  # of the type's own code
            self._throw(waiting.fiber, error)
        else:
            self._resume(waiting.fiber, result)

    def _wait_for(self, channel: str) -> Pending | None:
        """Who has waited longest for data of this name."""
        for waiting in self.waits.values():
            if waiting.call.kind == "data" and waiting.call.channel == channel:
                return waiting
        return None

    def _collect(self, channel: str) -> None:
        """Hands kept data to those who wait for it."""
        mailbox = self._mailbox
        if mailbox is None:
            return
        while (waiting := self._wait_for(channel)) is not None and (kept := mailbox.take(channel)) is not None:
            del self.waits[waiting.name]
            answer = self.waited[waiting.name]
            answer.value, answer.at, answer.by = kept.value, self._saga.now, kept.by
            self._deliver(waiting, kept.value)

    def _decide(self, waiting: Pending, decision: Any, at: int) -> None:
        del self.waits[waiting.name]
        answer = self.waited[waiting.name]
        failure = answer.decided(waiting, decision, at)
        if failure is None:
            self._resume(waiting.fiber, decision)
        else:
            self._throw(waiting.fiber, failure)

    def _time_out(self, waiting: Pending, at: int) -> None:
        decision = timed_out(waiting.call, at)
        if decision is not None:
            self._decide(waiting, decision, at)
            return
        del self.waits[waiting.name]
        answer = self.waited[waiting.name]
        failure = answer.ran_out(waiting, at)
        if failure is None:
            self._resume(waiting.fiber, None)
        else:
            self._throw(waiting.fiber, failure)

    # ------------------------------------------------------------ the tree

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
            if self.done or not ((self._parked and self._open_gates()) or (self._unwinding and self._unwound())):
                break
        if self._parked and not (self.done or self.pending or self.waits or self.holds or self._unwinding):
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
        self.moved_at = self._saga.now
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
        elif (handler := _AWAITED.get(kind)) is not None:
            handler(self, fiber, awaited)
        else:
            self._mistaken(
                f"exec awaited {awaited!r}; it may only await what the saga gives (saga.step, saga.all): put other I/O "
                "into an async function and hand that to saga.step",
                fiber,
            )

    # ------------------------------------------------------------ what exec awaits

    def _step(self, fiber: _Fiber, call: StepCall) -> None:
        name = self._issue(fiber, call)
        if name is not None:
            self.calls[name] = call
            self.pending[name] = Pending(name, call, fiber, self._saga.now)
            self._issued.add(name)

    def _wait(self, fiber: _Fiber, wait: Wait) -> None:
        name = self._issue(fiber, wait)
        if name is not None:
            if self.waited is _NOTHING:
                self.waits, self.waited = {}, {}
            self.waits[name] = Pending(name, wait, fiber, self._saga.now)
            self.waited[name] = Answered(wait, self._saga.now)
            if wait.kind == "data":
                self._collect(wait.channel)

    def _hold(self, fiber: _Fiber, hold: Hold) -> None:
        name = self._issue(fiber, hold)
        if name is not None:
            self.holds = self.holds or {}
            self.holds[name] = Pending(name, hold, fiber, self._saga.now)

    def _issue(self, fiber: _Fiber, call: StepCall | Wait | Hold) -> str | None:
        """The name under which the log will know it; None for a mistake, which ends the run."""
        if len(self._issuers) >= STEPS_MAX:
            self._mistaken(f"a command has at most {STEPS_MAX} steps", fiber)
            return None
        try:
            check(call)
        except MisusedSaga as mistake:
            self._mistaken(str(mistake), fiber)
            return None
        name = self._name(call.name)
        self._issuers[name] = fiber
        return name

    def _name(self, wanted: str) -> str:
        """A repeated step has a name of its own (``charge#2``), hence its own key."""
        count = self._names.get(wanted, 0) + 1
        name = wanted if count == 1 else f"{wanted}#{count}"
        while name in self._issuers or name in self.skipped:  # its author has used the very name that we would give
            count += 1
            name = f"{wanted}#{count}"
        self._names[wanted] = count
        return name

    def _skip(self, fiber: _Fiber, skip: Skip) -> None:
        self.skipped[self._name(skip.name)] = skip.service
        self._resume(fiber, None)

    def _gate(self, fiber: _Fiber, gate: Gate) -> None:
        self._parked.append((gate, fiber))

    def _fork(self, waiter: _Fiber, fork: Fork) -> None:
        if not fork.branches:
            self._resume(waiter, [])
            return
        join = _Join(waiter, len(fork.branches))
        for index, branch in enumerate(fork.branches):
            coroutine = branch if isinstance(branch, Coroutine) else _awaiting(branch)
            self._begin(_Fiber(coroutine, waiter, join, index))

    def _start(self, parent: _Fiber, start: Start) -> None:
        join = _join_of(start.group)
        owner = join.owner = join.owner or parent
        owner.started = True
        branch = Branch()
        fiber = branch.fiber = _Fiber(start.coroutine, owner, join, 0, branch, listens=start.listens)
        if start.listens:
            join.listeners += 1
        else:
            join.remaining += 1
        self._resume(parent, branch)  # before the branch runs: what it does may need to know it
        self._begin(fiber)

    def _begin(self, fiber: _Fiber) -> None:
        self._fibers[fiber] = None
        self._resume(fiber, None)

    def _ended(self, waiter: _Fiber, ended: Ended) -> None:
        join = _join_of(ended.group)
        if join.error is not None:
            self._throw(waiter, join.error)
        elif join.remaining:
            join.waiter = waiter
        else:
            self._join_ended(join, waiter)

    def _discard(self, fiber: _Fiber, discard: Discard) -> None:
        self._give_up(discard.branches, undo=discard.undo)
        self._resume(fiber, None)

    def _unwind(self, waiter: _Fiber, unwound: Unwound) -> None:
        roots = self._give_up(unwound.branches, undo=True)
        self._unwinding.append((waiter, roots))

    def _give_up(self, branches: tuple[Branch, ...], *, undo: bool) -> tuple[_Fiber, ...]:
        """Ends the branches, and makes what they did unwanted."""
        roots = tuple(branch.fiber for branch in branches)
        for branch in branches:
            fiber = branch.fiber
            if fiber in self._fibers:
                branch.done = True
                self._left(fiber)
        self._abandon(lambda other: other.within(roots))
        for name in [name for name, issuer in self._issuers.items() if issuer.within(roots)]:
            if not undo:
                self._kept = {**self._kept, name: None}
                continue
            self._kept.pop(name, None)
            if name in self._recorded:
                self._unwant(name)
        return roots

    def _unwant(self, name: str) -> None:
        if self.calls[name].undo is not None:
            self.unwanted = self.unwanted or {}
            self.unwanted[name] = None

    def _unwound(self) -> bool:
        """Resumes who waits for an unwinding that is over; tells whether anybody did."""
        over = [each for each in self._unwinding if not self._unwinds(each[1])]
        for each in over:
            self._unwinding.remove(each)
            self._resume(each[0], None)
        return bool(over)

    def _unwinds(self, roots: tuple[_Fiber, ...]) -> bool:
        return any(self._issuers[name].within(roots) for names in (self.orphans, self.unwanted) for name in names)

    # ------------------------------------------------------------ ends

    def _returned(self, fiber: _Fiber, value: Any) -> None:
        self._leave(fiber)
        if fiber.branch is not None:
            fiber.branch.done, fiber.branch.result = True, value
        join = fiber.join
        if join is None:
            self.result = value
            self.done = True
            self._abandon(_everything)
            return
        if join.results is not None:
            join.results[fiber.index] = value
        self._left(fiber)

    def _left(self, fiber: _Fiber) -> None:
        """One branch less is waited for."""
        join = fiber.join
        assert join is not None
        if fiber.listens:
            join.listeners -= 1
            return
        join.remaining -= 1
        if not join.remaining and join.waiter is not None and not join.failed:
            self._join_ended(join, join.waiter)

    def _join_ended(self, join: _Join, waiter: _Fiber) -> None:
        join.waiter = None
        if join.listeners:
            join.listeners = 0
            self._abandon(lambda other: other.under(join))
        self._resume(waiter, join.results)

    def _raised(self, fiber: _Fiber, error: BaseException) -> None:
        """The branch ended with an error: it ends the fork, or the run."""
        self._leave(fiber)
        if fiber.branch is not None:
            fiber.branch.done, fiber.branch.error = True, error
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
            if join.waiter is not None:
                self._throw(join.waiter, error)
            else:
                join.error = error

    def _leave(self, fiber: _Fiber) -> None:
        """The fiber has ended, and branches that it began and did not wait for end with it."""
        self._fibers.pop(fiber, None)
        if fiber.started:
            self._abandon(lambda other: other.within((fiber,)))

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
        """Ends branches: what they had pending is orphaned, what they waited for dropped, their coroutines closed."""
        for name, waiting in list(self.pending.items()):
            if doomed(waiting.fiber):
                del self.pending[name]
                if name not in self._issued:
                    self.orphans[name] = waiting
        for dropped in (self.waits, self.holds):
            for name in [name for name, waiting in dropped.items() if doomed(waiting.fiber)]:
                del dropped[name]
        if self._parked:
            self._parked = [(gate, fiber) for gate, fiber in self._parked if not doomed(fiber)]
        if self._unwinding:
            self._unwinding = [each for each in self._unwinding if not doomed(each[0])]
        for fiber in [fiber for fiber in reversed(self._fibers) if doomed(fiber)]:
            if self._fibers.pop(fiber, fiber) is None:
                close(fiber.coroutine)


_AWAITED: dict[type, Callable[[Execution, _Fiber, Any], None]] = {
    Wait: Execution._wait,
    Hold: Execution._hold,
    Skip: Execution._skip,
    Fork: Execution._fork,
    Gate: Execution._gate,
    Start: Execution._start,
    Ended: Execution._ended,
    Discard: Execution._discard,
    Unwound: Execution._unwind,
}


def _everything(_fiber: _Fiber) -> bool:
    return True


def _join_of(group: Group) -> _Join:
    if group.join is None:
        group.join = _Join(None, 0)
    join: _Join = group.join
    return join


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
