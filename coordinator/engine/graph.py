"""Runs a graph of nodes: definitions with joins and typed flows are both made of it.

One coroutine, `_Runner.run`, decides; each run of a node is a branch that does its work, tells what came of it and
wakes the decider.  So there are no layers (a node starts when its own sources have ended) and no races: what is told
is taken in the order in which the log has it, and everything follows from that order.

**Joins.** A join any is won by the first of its sources to succeed.  Whatever then leads to nothing but joins that
others have won is *useless*: it is discarded.  A failure goes along the edges that are waited for; where it meets a
join any that another source may still win, it stops, and so it counts only once none of the ways on is left open.

**Savepoints.** A failure that is not stopped goes back to the nearest savepoint before it: all that came after that
one is undone, and runs again or holds.  A savepoint inside a branch has its say before the join at the branch's end;
one before the fork has it after.  A savepoint with no attempts left has failed itself, with all that comes after it.

**Dead letters.** Where a command's failures wait for an operator, a node that fails is a dead letter by itself: what it
has done is undone, it holds, and is run again when it is released, while all others go on.  Only a person's No fails.

**Running again.** A new value makes those that ask for it *due*; they run again once nothing that leads to them is due
or running again, so a diamond's last node runs once.  If its value is the same as before, nobody notices.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Coroutine, Iterable, Mapping, Sequence
from enum import Enum
from typing import Any, Final, NamedTuple

from coordinator.awaitables import Branch, Discard, Ended, Gate, Group, Hold, Start, Unwound
from coordinator.engine import faults
from coordinator.engine.topology import SKIPPED, Edges, Graph, Node, Run, Savepoint
from coordinator.model.records import Failure
from coordinator.saga import CommandFailed, Rejected, Saga, StepFailed, failure_of


async def run_graph(
    graph: Graph | Sequence[Node],
    saga: Saga,
    *,
    context: Any = None,
    revision: int | None = None,
    dead_letter: bool = False,
) -> dict[str, Any]:
    """Runs all nodes; returns their values by name (a skipped node's is None; what was given up has none).

    ``revision`` is the saga's unless given: it returns when all have settled for so many times, each time but the last
    only until the next datum comes.  Raises the failure that no savepoint and no join has taken; with ``dead_letter``
    a node that fails waits for an operator instead.
    """
    if not isinstance(graph, Graph):
        graph = Graph(graph)
    if graph.plain and not dead_letter:
        return await _Once(graph, saga, context).run()
    return await _Runner(graph, saga, context, dead_letter=dead_letter).run(
        saga.revision if revision is None else revision
    )


class _Once:
    """A graph in which each node runs once, after all that it needs: most of them are, and they need nobody to decide.

    Who ends begins its followers, the first of them in its own place, so that a chain is one coroutine.
    """

    __slots__ = ("_context", "_graph", "_group", "_missing", "_saga", "_values")

    def __init__(self, graph: Graph, saga: Saga, context: Any) -> None:
        self._graph = graph
        self._saga = saga
        self._context = context
        self._missing = {name: len(edges.required) for name, edges in graph.edges.items()}
        self._values: dict[str, Any] = {}
        self._group = Group()

    async def run(self) -> dict[str, Any]:
        ready = [name for name, missing in self._missing.items() if not missing]
        while len(ready) == 1:
            ready = await self._node(ready[0])
        for name in ready:
            await Start(self._group, self._from(name))
        if ready:
            await Ended(self._group)
        return self._values

    async def _from(self, name: str) -> None:
        ready = await self._node(name)
        while ready:
            for other in ready[1:]:
                await Start(self._group, self._from(other))
            ready = await self._node(ready[0])

    async def _node(self, name: str) -> list[str]:
        """Runs it; who can begin now."""
        value = await self._graph.nodes[name].run(Run(name, 1, self._values, self._saga, self._context))
        self._values[name] = None if value is SKIPPED else value
        ready = []
        for each in self._graph.edges[name].demanded_by:
            self._missing[each] -= 1
            if not self._missing[each]:
                ready.append(each)
        return ready


class _Status(Enum):
    IDLE = "idle"  # has not run, or is to run anew
    RUNNING = "running"
    ENDED = "ended"
    UNWINDING = "unwinding"  # a savepoint: what came after it is being undone
    FAILED = "failed"  # a join may go on without it
    DEAD = "dead"  # cannot run, or need not, since another has failed
    DISCARDED = "discarded"  # others have won


_LOST: Final = frozenset({_Status.FAILED, _Status.DEAD, _Status.DISCARDED})


class _Told:
    """What a branch has come to; at the same time the token by which a branch given up is known."""

    __slots__ = ("error", "state", "value")

    def __init__(self, state: _State) -> None:
        self.state = state
        self.value: Any = None
        self.error: Exception | None = None


class _Cause(NamedTuple):
    """A failure, and the how manyth event it was: of several the first one counts."""

    at: int
    error: Exception


class _State:
    """One node in one run of the graph.

    ``branches`` are all that have worked for it and are not known to be undone.  ``held_up`` counts the savepoints
    that are undoing what it did.  ``used`` are its optional sources that were there when it started, ``winner`` the
    source that a join any runs after, ``tries`` how often its savepoint has gone back.
    """

    __slots__ = (
        "branches", "cause", "due", "edges", "ended_at", "held_up", "name", "node", "round", "skipped", "status",
        "task", "tries", "used", "winner",
    )  # fmt: skip

    def __init__(self, node: Node, edges: Edges) -> None:
        self.node = node
        self.edges = edges
        self.name = node.name
        self.round = 0
        self.branches: list[Branch] = []
        self.held_up = 0
        self.reset()

    def reset(self) -> None:
        """As if it had never run."""
        self.status = _Status.IDLE
        self.task: _Told | None = None
        self.skipped = False
        self.due = False
        self.ended_at = 0
        self.winner: _State | None = None
        self.cause: _Cause | None = None
        self.used: tuple[str, ...] = ()
        self.tries = 0

    def chooses(self, source: str) -> bool:
        """Whether the source is one of those of which it needs any."""
        return self.node.join == "any" and source not in self.edges.required


class _Loss(NamedTuple):
    """Whom a failure takes along, each with the failure that counts for it; the joins that stop it; and what is to be
    raised if one of its ways on is not stopped."""

    lost: dict[_State, _Cause]
    stops: set[_State]
    raised: _Cause | None


class _Unwinding(NamedTuple):
    """What a savepoint that goes back holds up meanwhile, and the branches that are undone."""

    held_up: list[_State]
    branches: frozenset[Branch]


class _Runner:
    """One run of the graph."""

    def __init__(self, graph: Graph, saga: Saga, context: Any, *, dead_letter: bool) -> None:
        self._graph = graph
        self._saga = saga
        self._context = context
        self._dead_letter = dead_letter
        self._states = {name: _State(node, graph.edges[name]) for name, node in graph.nodes.items()}
        self._savepoints = [state for state in self._states.values() if state.node.savepoint is not None]
        self._listeners = [state for state in self._states.values() if state.node.listens]
        self._values: dict[str, Any] = {}
        self._group = Group()
        self._gate = Gate()
        self._told: list[_Told] = []
        self._look: set[str] | None = None  # whom to look at for a start; None: at all
        self._unsettled: set[str] = set()  # due, or running again
        self._unwindings: dict[_State, _Unwinding] = {}
        self._events = 0

    async def run(self, revision: int) -> dict[str, Any]:
        settled = 0
        while True:
            await self._listen()
            await self._start_ready()
            if self._settled():
                settled += 1
                if settled >= revision:
                    break
            if not self._told:
                self._gate = Gate()
                await self._gate
            await self._hear()
        await Ended(self._group)
        return self._values

    async def _hear(self) -> None:
        told, self._told = self._told, []
        for each in told:
            if each.state.task is each:
                await self._take(each)

    async def _listen(self) -> None:
        """Begins to listen, and takes what had come before anybody listened, so that nobody starts without it."""
        while ready := [state for state in self._listeners if self._is_ready(state)]:
            for state in ready:
                await self._start(state)
            heard = Gate()
            await Start(self._group, _open(heard))
            await heard  # opens when nobody has anything left to do
            await self._hear()

    # ------------------------------------------------------------ who starts

    async def _start_ready(self) -> None:
        looked, self._look = self._look, set()
        states = self._states
        among = states.values() if looked is None else sorted((states[name] for name in looked), key=_place)
        for state in [state for state in among if self._is_ready(state)]:
            await self._start(state)

    def _is_ready(self, state: _State) -> bool:
        if state.status is _Status.IDLE:
            return not state.held_up and self._sources_ended(state) and self._undisturbed(state, self._graph.needs)
        if state.status is not _Status.ENDED or state.task is not None:
            return False
        if state.node.listens:
            return not state.skipped
        return state.due and self._undisturbed(state, self._graph.upstream)

    def _sources_ended(self, state: _State) -> bool:
        states = self._states
        if any(states[name].status is not _Status.ENDED for name in state.edges.required):
            return False
        if state.node.join == "all" or state.winner is not None:
            return True
        return all(self._cannot_win(states[name]) for name in state.node.after)

    def _undisturbed(self, state: _State, leading: Callable[[str], frozenset[str]]) -> bool:
        """Nothing that leads to it is due or running again."""
        return not self._unsettled or self._unsettled.isdisjoint(leading(state.name))

    async def _start(self, state: _State) -> None:
        if state.node.listens:
            state.status = _Status.ENDED if state.status is _Status.ENDED else _Status.RUNNING
        else:
            if state.status is _Status.ENDED:
                self._unsettled.add(state.name)  # until it has ended again
            state.status = _Status.RUNNING
        state.due = False
        state.round += 1
        state.used = tuple(name for name in state.node.optional if name in self._values)
        await self._branch(state, self._work, state)

    async def _work(self, state: _State) -> Any:
        return await state.node.run(Run(state.name, state.round, self._values, self._saga, self._context))

    async def _branch(self, state: _State, work: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> None:
        state.task = told = _Told(state)

        async def tell() -> None:
            try:
                told.value = await work(*args)
            except Exception as error:
                told.error = error
            self._told.append(told)
            self._gate.open()

        state.branches.append(await Start(self._group, tell(), listens=state.node.listens))

    def _settled(self) -> bool:
        return not self._unsettled and all(
            state.status is _Status.ENDED or state.status in _LOST or state.node.listens
            for state in self._states.values()
        )

    # ------------------------------------------------------------ what came of it

    async def _take(self, told: _Told) -> None:
        state = told.state
        state.task = None
        self._events += 1
        if told.error is not None:
            if not isinstance(faults.told_by(told.error), (StepFailed, CommandFailed)):
                raise told.error  # nobody's answer, but a mistake, or a wish to be run again: exec's own
            await self._failed(state, _Cause(self._events, told.error))
        elif state.status is _Status.UNWINDING:
            self._unwound(state)
        else:
            await self._ended(state, told.value)

    async def _ended(self, state: _State, value: Any) -> None:
        name = state.name
        state.skipped = value is SKIPPED
        if state.skipped:
            value = None
        first = name not in self._values
        changed = bool(self._values.get(name) != value)
        if first:
            self._values[name] = value
        elif changed:
            self._values = {**self._values, name: value}  # whoever runs keeps what it was given
        state.status = _Status.ENDED
        state.ended_at = self._events
        state.tries = 0
        self._look_at(state.edges.followers)
        if changed:
            for each in state.edges.triggers:
                self._make_due(self._states[each])
        if state.due or state.node.listens:
            self._look_at((name,))
        elif name in self._unsettled:
            self._settle(state)
        if first:
            await self._joins(state)

    def _make_due(self, state: _State) -> None:
        if state.node.reruns and state.status in (_Status.RUNNING, _Status.ENDED, _Status.UNWINDING):
            state.due = True
            self._unsettled.add(state.name)
            self._look_at((state.name,))

    def _settle(self, state: _State) -> None:
        """It is not in the way of others any more."""
        state.due = False
        if state.name in self._unsettled:
            self._unsettled.discard(state.name)
            self._look = None

    def _look_at(self, names: Iterable[str]) -> None:
        if self._look is not None:
            self._look.update(names)

    # ------------------------------------------------------------ joins any

    async def _joins(self, source: _State) -> None:
        """Settles the joins that the source leads to, now that it has ended for the first time."""
        for name in source.edges.followers:
            join = self._states[name]
            if source.status is not _Status.ENDED:
                return  # a join before has failed, and a savepoint takes it all back
            if not join.chooses(source.name) or join.winner is not None or join.status is not _Status.IDLE:
                continue
            if not source.skipped:
                join.winner = source
                await self._discard(self._useless(), undo=join.node.losers == "undo")
            elif all(self._cannot_win(self._states[each]) for each in join.node.after):
                cause = self._first_cause(join, {})
                if cause is not None:
                    await self._failed(join, cause)

    def _cannot_win(self, source: _State) -> bool:
        return source.status in _LOST or (source.status is _Status.ENDED and source.skipped)

    def _first_cause(self, join: _State, lost: Mapping[_State, _Cause]) -> _Cause | None:
        sources = (self._states[name] for name in join.node.after)
        causes = [cause for each in sources if (cause := lost.get(each, each.cause)) is not None]
        return min(causes, key=lambda cause: cause.at, default=None)

    def _useless(self) -> list[_State]:
        """Those from whom every way on ends at what is lost, or at a join that another has won."""
        needed: set[_State] = set()
        useless: list[_State] = []
        for name in self._graph.backwards:
            state = self._states[name]
            followers = [self._states[each] for each in state.edges.followers]
            if not followers or any(each in needed and self._leads_on(state, each) for each in followers):
                needed.add(state)
            else:
                useless.append(state)
        return useless

    def _leads_on(self, source: _State, follower: _State) -> bool:
        if follower.status in _LOST:
            return False
        if not follower.chooses(source.name) or source.name in follower.node.optional:
            return True
        return follower.winner is None or follower.winner is source

    async def _discard(self, states: Iterable[_State], *, undo: bool) -> None:
        """Others have won.  ``states`` in the order of `_useless`: what an inner join has kept follows its join."""
        discarded: dict[str, _State] = {}
        for state in states:
            if state.status is not _Status.DISCARDED or not discarded.keys().isdisjoint(state.edges.followers):
                discarded[state.name] = state
                self._give_up(state, _Status.DISCARDED)
        if undo:
            self._values = {name: value for name, value in self._values.items() if name not in discarded}
        branches = tuple(branch for state in discarded.values() for branch in state.branches)
        if branches:
            await Discard(branches, undo=undo)

    def _give_up(self, state: _State, status: _Status) -> None:
        self._release(state)
        state.status = status
        state.task = None
        self._settle(state)

    def _forget(self, state: _State) -> None:
        if state.name in self._values:
            self._values = {name: value for name, value in self._values.items() if name != state.name}

    # ------------------------------------------------------------ failures

    async def _failed(self, state: _State, cause: _Cause) -> None:
        """Goes back to a savepoint, or goes on without what is lost by it, or raises it."""
        told = faults.told_by(cause.error)
        if self._dead_letter and isinstance(told, (StepFailed, CommandFailed)) and not isinstance(told, Rejected):
            await self._branch(state, self._hold, state, state.branches[-1], failure_of(told))
            return
        given_up: list[_State] = []
        while True:
            loss = self._loss(state, cause)
            point = self._savepoint_before(state, loss)
            if point is None:
                break
            if self._has_another_try(point):
                await self._unwind(point, cause.error)
                return
            given_up += [each for each in self._scope(point) if each.branches and each.status not in _LOST]
            state = point
        if loss.raised is not None:
            raise loss.raised.error
        if any(each not in loss.lost for each in given_up):
            raise cause.error  # it has used what is lost, and leads past the join
        branches = tuple(branch for each in loss.lost if each is not state for branch in each.branches)
        for each, why in loss.lost.items():
            each.cause = why
            self._give_up(each, _Status.FAILED if each is state else _Status.DEAD)
        for each in self._useless():
            if each.status is _Status.IDLE:
                self._give_up(each, _Status.DEAD)
        if branches:
            await Discard(branches)

    async def _hold(self, state: _State, failed: Branch, failure: Failure) -> Any:
        """Waits for an operator as a dead letter of its own, then runs the node again."""
        await Unwound((failed,))
        await Hold(f"failed:{state.name}", failure)
        return await self._work(state)

    def _loss(self, failed: _State, cause: _Cause) -> _Loss:
        """Follows a failure along the edges that are waited for."""
        lost = {failed: cause}
        stops: set[_State] = set()
        raised: _Cause | None = None
        ahead = deque([failed])
        while ahead:
            state = ahead.popleft()
            if not state.edges.demanded_by:
                raised = raised or lost[state]
            for name in state.edges.demanded_by:
                follower = self._states[name]
                if follower in lost or follower.status in _LOST:
                    continue
                why = lost[state]
                if follower.chooses(state.name):
                    if follower.winner is not None and follower.winner is not state:
                        continue
                    rivals = (self._states[each] for each in follower.node.after)
                    if any(each not in lost and not self._cannot_win(each) for each in rivals):
                        stops.add(follower)
                        continue
                    why = self._first_cause(follower, lost) or why
                lost[follower] = why
                ahead.append(follower)
        return _Loss(lost, stops.difference(lost), raised)

    # ------------------------------------------------------------ savepoints

    def _savepoint_before(self, state: _State, loss: _Loss) -> _State | None:
        """The savepoint that takes a failure: the latest one before it; where joins would stop the failure, one that
        lies inside their branches.  None takes a person's No: to ask again would not be to mend it."""
        found: _State | None = None
        if isinstance(faults.told_by(loss.lost[state].error), Rejected):
            return None
        for point in self._savepoints:
            if point.status is not _Status.ENDED or point.skipped or (found and point.ended_at < found.ended_at):
                continue
            if state not in self._scope(point):
                continue
            if loss.raised is None and not loss.stops.isdisjoint(self._loss(point, _Cause(0, Exception())).lost):
                continue
            found = point
        return found

    def _scope(self, point: _State) -> list[_State]:
        """All that comes after it, in the order of the nodes: what waited for it, or has used what came of it."""
        scope: set[_State] = set()
        ahead = [point]
        while ahead:
            state = ahead.pop()
            for name in state.edges.followers:
                follower = self._states[name]
                if follower not in scope and self._comes_after(follower, state):
                    scope.add(follower)
                    ahead.append(follower)
        return sorted(scope, key=_place)

    def _comes_after(self, state: _State, source: _State) -> bool:
        if source.name in state.edges.required or source.name in state.used:
            return True
        return source.name in state.node.after and (state.winner is None or state.winner is source)

    def _has_another_try(self, point: _State) -> bool:
        rule = point.node.savepoint
        assert rule is not None
        return rule.then == "dead_letter" or (
            rule.then == "retry" and (point.tries < rule.attempts or rule.exhausted == "dead_letter")
        )

    async def _unwind(self, point: _State, error: Exception) -> None:
        """Undoes what came after the savepoint; holds first, as a dead letter, if an operator must ask for the try."""
        rule = point.node.savepoint
        assert rule is not None
        held: Failure | None = None
        if rule.then == "retry" and point.tries < rule.attempts:
            point.tries += 1
        else:
            point.tries = 0
            told = faults.told_by(error)
            assert isinstance(told, (StepFailed, CommandFailed))
            held = failure_of(told)
        scope = dict.fromkeys(self._scope(point))
        branches: list[Branch] = []
        for state in scope:
            self._give_up(state, _Status.IDLE)
            self._forget(state)
            winner = state.winner
            state.reset()
            if winner not in scope:
                state.winner = winner  # it has won, and stays
            branches += state.branches
        self._lose_again(scope)
        undone = [state for state in scope if state.branches]
        for state in undone:
            state.held_up += 1
        point.status = _Status.UNWINDING
        self._unwindings[point] = _Unwinding(undone, frozenset(branches))
        await self._branch(point, _go_back, point.name, tuple(branches), held)

    def _lose_again(self, scope: Container[_State]) -> None:
        """What failed or won outside the savepoint's scope still counts in it."""
        for name in reversed(self._graph.backwards):
            state = self._states[name]
            if state in scope:
                lost = [each for each in map(self._states.__getitem__, state.edges.required) if each.status in _LOST]
                if lost:
                    state.status = _Status.DEAD
                    state.cause = lost[0].cause
        for state in self._useless():
            if state.status is _Status.IDLE:
                state.status = _Status.DEAD

    def _unwound(self, point: _State) -> None:
        undone = self._unwindings[point].branches
        for state in self._unwindings[point].held_up:
            state.branches = [branch for branch in state.branches if branch not in undone]
        self._release(point)
        point.status = _Status.ENDED
        self._look = None

    def _release(self, point: _State) -> None:
        """Its unwinding, if there is one, holds nobody up any more."""
        unwinding = self._unwindings.pop(point, None)
        if unwinding is not None:
            for state in unwinding.held_up:
                state.held_up -= 1


async def _open(gate: Gate) -> None:
    gate.open()


async def _go_back(name: str, branches: tuple[Branch, ...], held: Failure | None) -> None:
    await Unwound(branches)
    if held is not None:
        await Hold(f"savepoint:{name}", held)


def _place(state: _State) -> int:
    return state.edges.index


__all__ = ["SKIPPED", "Graph", "Node", "Run", "Savepoint", "run_graph"]
