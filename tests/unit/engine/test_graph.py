"""Graphs of nodes: on the real stepper, fed with outcomes, signals and undos as the engine feeds it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import pytest

from coordinator import CommandFailed, Saga, StepFailed, post
from coordinator.awaitables import Skip, Wait
from coordinator.engine.graph import SKIPPED, Graph, Node, Run, Savepoint, run_graph
from coordinator.engine.stepper import Execution
from coordinator.model.ids import CommandId
from coordinator.model.records import Failure, Signal, raw
from coordinator.saga import Rejected


def node(name: str, *after: str, **rest: Any) -> Node:
    """A node whose work is one step of its own name, with an undo; its value is the step's outcome."""
    return Node(name=name, run=rest.pop("run", _step), after=after, **rest)


async def _step(run: Run) -> Any:
    return await run.saga.step(run.name, post("stock", f"/{run.name}"), undo=post("stock", f"/{run.name}/undo"))


async def _datum(run: Run) -> Any:
    return await Wait(name=run.name, kind="data", channel=run.name, listens=True)


async def _skipped(run: Run) -> Any:
    await Skip(run.name, "stock")
    return SKIPPED


def late(name: str) -> Node:
    """A datum that may come, and come again."""
    return Node(name=name, run=_datum, listens=True)


def summed(*names: str) -> Callable[[Run], Coroutine[Any, Any, Any]]:
    """Work that asks a service about the values it has at its start, and whose value is the answer."""

    async def run(run: Run) -> Any:
        body = [run.values.get(name) for name in names]
        return await run.saga.step(run.name, post("stock", f"/{run.name}", body), undo=post("stock", "/undo"))

    return run


class Driven:
    """A graph under way, answered by hand; undos are answered as the engine would, last first, when asked to."""

    def __init__(self, *nodes: Node, revision: int = 1, exec: Callable[[Saga], Any] | None = None) -> None:
        self.undone: list[str] = []
        self._clock = 0
        self._recorded: list[str] = []
        saga = Saga(id="c", type="T", version=1, attributes={}, now=0, revision=revision)
        graph = Graph(nodes)
        self.execution = Execution(exec or partial(run_graph, graph), saga)

    @property
    def pending(self) -> set[str]:
        return set(self.execution.pending)

    @property
    def result(self) -> Any:
        assert self.execution.done
        assert self.execution.error is None, self.execution.error
        return self.execution.result

    @property
    def unwanted(self) -> set[str]:
        return set(self.execution.unwanted)

    def ok(self, *names: str, value: Any = None) -> None:
        for name in names:
            self._clock += 1
            self._recorded.append(name)
            self.execution.outcome(name, raw(name if value is None else value), self._clock)

    def no(self, name: str, code: str = "declined") -> None:
        self._clock += 1
        self.execution.failed(name, Failure(code, step=name), self._clock)

    def datum(self, name: str, value: Any) -> None:
        self._clock += 1
        self.execution.signal(
            Signal(
                1,
                b"",
                self._clock,
                CommandId("c"),
                name=name,
                signal_id=str(self._clock),
                value=raw(value),
                channel="data",
            )
        )

    def decide(self, name: str, *, approve: bool) -> None:
        self._clock += 1
        value = raw({"approve": approve, "comment": ""})
        record = Signal(1, b"", self._clock, CommandId("c"), name=name, value=value, by="ann", channel="decision")
        self.execution.signal(record)

    def undo(self, count: int = 1000) -> list[str]:
        """Undoes what is unwanted, last first; tells in which order."""
        order: list[str] = []
        while count and self.execution.unwanted:
            name = next(each for each in reversed(self._recorded) if each in self.execution.unwanted)
            self._recorded.remove(name)
            self._clock += 1
            order.append(name)
            self.execution.undone(name, self._clock)
            count -= 1
        self.undone += order
        return order

    def body(self, name: str) -> Any:
        return self.execution.calls[name].request.body  # type: ignore[union-attr]

    @property
    def error(self) -> Any:
        assert self.execution.done
        return self.execution.error


# ---------------------------------------------------------------- order


def test_a_node_starts_when_its_own_sources_have_ended() -> None:
    """There are no layers: what comes after a quick node does not wait for its slow sibling."""
    graph = Driven(node("slow"), node("quick"), node("next", "quick"), node("join", "slow", "next"))
    assert graph.pending == {"slow", "quick"}
    graph.ok("quick")
    assert graph.pending == {"slow", "next"}
    graph.ok("next")
    assert graph.pending == {"slow"}
    graph.ok("slow")
    assert graph.pending == {"join"}
    graph.ok("join")
    assert graph.result == {"quick": "quick", "next": "next", "slow": "slow", "join": "join"}


def test_a_skipped_node_counts_as_ended() -> None:
    """Its value is null; a join all goes on without it."""
    graph = Driven(node("a"), node("b", run=_skipped), node("join", "a", "b"))
    graph.ok("a")
    assert graph.pending == {"join"}
    graph.ok("join")
    assert graph.result == {"a": "a", "b": None, "join": "join"}


def test_everything_may_be_skipped_and_nothing_may_be_there() -> None:
    """A graph that has nothing to do returns at once."""
    assert Driven(node("a", run=_skipped), node("b", "a", run=_skipped)).result == {"a": None, "b": None}
    assert Driven().result == {}


def test_a_node_has_the_values_of_those_before_it_the_saga_and_the_context() -> None:
    """Which is all that its run is made of; one Graph serves any number of commands."""
    seen: list[Run] = []

    async def look(run: Run) -> str:
        seen.append(run)
        return run.name.upper()

    graph = Graph([node("b", "a", run=look), node("a", run=look)])
    for context in ("x", "y"):
        saga = Saga(id="c", type="T", version=1, attributes={}, now=0)
        execution = Execution(partial(run_graph, graph, context=context), saga)
        assert execution.result == {"a": "A", "b": "B"}
        assert [(run.name, run.round, run.context, run.saga is saga) for run in seen[-2:]] == [
            ("a", 1, context, True),
            ("b", 1, context, True),
        ]
        assert seen[-1].values["a"] == "A"


def test_a_thousand_nodes_in_a_row_cost_little_and_do_not_recurse() -> None:
    """A long chain is walked without Python's stack and without sets of all that lead to each node."""
    chain = [node("n0")] + [node(f"n{i}", f"n{i - 1}") for i in range(1, 1000)]
    graph = Driven(*reversed(chain))
    for i in range(1000):
        graph.ok(f"n{i}")
    assert len(graph.result) == 1000


@pytest.mark.parametrize(
    ("nodes", "text"),
    [
        ([node("a"), node("a")], "two nodes are called 'a'"),
        ([node("a", "b")], "'a' comes after 'b', which is no node"),
        ([node("a", "a")], "circle: a → a"),
        ([node("start"), node("a", "start", "c"), node("b", "a"), node("c", "b")], "circle: a → b → c → a"),
        ([node("a", optional=("b",)), node("b", reads=("a",))], "circle: a → b → a"),
    ],
)
def test_a_graph_that_cannot_run_is_refused(nodes: list[Node], text: str) -> None:
    """A circle is shown as the way it takes, optional edges included."""
    with pytest.raises(ValueError, match=text):
        Graph(nodes)


# ---------------------------------------------------------------- failures and joins


def test_a_failure_is_raised_and_what_is_under_way_is_in_doubt() -> None:
    """The command fails; the engine resolves the rest and undoes what was recorded."""
    graph = Driven(node("a"), node("b"), node("join", "a", "b"))
    graph.no("a")
    assert isinstance(graph.error, StepFailed)
    assert graph.error.step == "a"
    assert set(graph.execution.orphans) == {"b"}


def test_a_failure_for_a_business_reason_is_a_failure_too() -> None:
    """CommandFailed is raised as it is."""

    async def refuse(run: Run) -> None:
        raise CommandFailed("closed today", code="closed")

    graph = Driven(node("a", run=refuse), node("b"))
    assert isinstance(graph.error, CommandFailed)


def test_a_mistake_in_a_node_ends_the_run_whatever_join_follows() -> None:
    """A join any takes answers of services, not bugs."""

    async def bug(run: Run) -> None:
        raise KeyError("x")

    graph = Driven(node("a", run=bug), node("b"), node("join", "a", "b", join="any"))
    assert isinstance(graph.error, KeyError)


def test_a_join_any_runs_after_the_first_success() -> None:
    """What leads to it alone and has not won is resolved, and undone while the command goes on."""
    graph = Driven(
        node("start"), node("a", "start"), node("b", "start"), node("b2", "b"), node("join", "a", "b2", join="any")
    )
    graph.ok("start", "b")
    assert graph.pending == {"a", "b2"}
    graph.ok("a")
    assert graph.pending == {"join"}
    assert graph.unwanted == {"b"}
    assert set(graph.execution.orphans) == {"b2"}
    graph.ok("b2")  # it had been done
    assert graph.undo() == ["b2", "b"]
    graph.ok("join")
    assert graph.result == {"start": "start", "a": "a", "join": "join"}


def test_the_losers_of_a_join_any_may_be_kept() -> None:
    """What they did stays, and so does the value of those that had ended."""
    graph = Driven(node("a"), node("b"), node("b2", "b"), node("join", "a", "b2", join="any", losers="keep"))
    graph.ok("b", "a", "b2", "join")
    assert graph.unwanted == set()
    assert graph.result == {"a": "a", "b": "b", "join": "join"}


def test_a_first_failure_alone_neither_continues_nor_fails_a_join_any() -> None:
    """The other branch may still win; then what the failed branch did is undone."""
    graph = Driven(node("a"), node("b"), node("b2", "b"), node("b3", "b2"), node("join", "a", "b3", join="any"))
    graph.ok("b")
    graph.no("b2")
    assert graph.pending == {"a"}
    assert graph.unwanted == set()
    graph.ok("a")
    assert graph.pending == {"join"}
    assert graph.undo() == ["b"]


def test_if_all_fail_the_first_failure_is_the_joins() -> None:
    """Not the last one, which happened to be the one that made it hopeless."""
    graph = Driven(node("a"), node("b"), node("join", "a", "b", join="any"), node("end", "join"))
    graph.no("b", "first")
    graph.no("a", "last")
    assert graph.error.failure.code == "first"


def test_joins_any_nest() -> None:
    """An inner join that has failed is a failed branch of the outer one."""
    graph = Driven(
        node("a"), node("b"), node("inner", "a", "b", join="any"), node("c"), node("outer", "inner", "c", join="any")
    )
    graph.no("a")
    graph.no("b")
    assert graph.pending == {"c"}
    graph.ok("c", "outer")
    assert graph.result == {"c": "c", "outer": "outer"}


def test_a_failure_with_a_way_on_that_no_join_saves_fails_the_command() -> None:
    """Somebody else waits for the failed node, and cannot go on without it."""
    graph = Driven(node("a"), node("b"), node("join", "a", "b", join="any"), node("other", "a"))
    graph.no("a")
    assert graph.error.step == "a"


def test_a_loser_that_leads_elsewhere_as_well_is_no_loser() -> None:
    """It goes on for the sake of the other way."""
    graph = Driven(node("a"), node("b"), node("join", "a", "b", join="any"), node("other", "b"))
    graph.ok("a")
    assert graph.pending == {"b", "join"}
    graph.ok("b", "join", "other")
    assert set(graph.result) == {"a", "b", "join", "other"}


def test_a_node_of_two_joins_is_given_up_when_both_are_won_by_others() -> None:
    """As long as one of them may need it, it goes on."""
    graph = Driven(
        node("a"), node("b"), node("c"), node("one", "a", "b", join="any"), node("two", "b", "c", join="any")
    )
    graph.ok("a")
    assert graph.pending == {"b", "c", "one"}
    graph.ok("c")
    assert graph.pending == {"one", "two"}
    assert set(graph.execution.orphans) == {"b"}


def test_siblings_that_only_feed_a_failed_branch_are_not_begun() -> None:
    """Their branch cannot win any more; what is under way there ends, nothing new begins."""
    graph = Driven(
        node("k"), node("k2", "k"), node("n"), node("both", "k2", "n"), node("m"), node("join", "both", "m", join="any")
    )
    graph.no("n")
    graph.ok("k")
    assert graph.pending == {"m"}
    graph.ok("m")
    assert graph.undo() == ["k"]
    graph.ok("join")
    assert graph.result == {"m": "m", "join": "join"}


def test_a_skipped_branch_is_no_success() -> None:
    """A join any waits for the others."""
    graph = Driven(node("a", run=_skipped), node("b"), node("join", "a", "b", join="any"))
    assert graph.pending == {"b"}
    graph.ok("b")
    assert graph.pending == {"join"}


def test_if_all_are_skipped_a_join_any_goes_on() -> None:
    """Nobody has failed."""
    graph = Driven(node("a", run=_skipped), node("b", run=_skipped), node("join", "a", "b", join="any"))
    assert graph.pending == {"join"}


def test_a_failure_and_a_skip_are_a_failure_whichever_comes_first() -> None:
    """Nobody has succeeded, and somebody has failed."""
    nodes = (node("a"), node("gate"), node("b", "gate", run=_skipped), node("join", "a", "b", join="any"))
    first = Driven(*nodes)
    first.no("a")
    assert first.pending == {"gate"}
    first.ok("gate")
    assert first.error.step == "a"
    last = Driven(*nodes)
    last.ok("gate")
    last.no("a")
    assert last.error.step == "a"


def test_the_step_after_a_join_runs_once() -> None:
    """Two successes in the same record's wake are one win."""
    graph = Driven(node("s"), *(node(f"b{i}", "s", run=_value) for i in range(3)), node("j", "b0", "b1", join="any"))
    graph.ok("s")
    assert graph.pending == {"j"}
    graph.ok("j")
    assert graph.result == {"s": "s", "b0": 1, "b2": 1, "j": "j"}


async def _value(run: Run) -> int:
    return 1


# ---------------------------------------------------------------- savepoints


def test_a_failure_after_a_savepoint_undoes_back_to_it_and_tries_again() -> None:
    """Nothing from before it, and nothing begins before the last undo."""
    graph = Driven(node("a"), node("s", "a", savepoint=Savepoint()), node("b", "s"), node("c", "b"))
    graph.ok("a", "s", "b")
    graph.no("c")
    assert (graph.pending, graph.unwanted) == (set(), {"b"})
    graph.undo()
    assert graph.pending == {"b#2"}
    graph.ok("b#2", "c#2")
    assert graph.result == {"a": "a", "s": "s", "b": "b#2", "c": "c#2"}


def test_tries_are_bounded_and_then_the_failure_is_raised() -> None:
    """``attempts`` counts the tries after the first."""
    graph = Driven(node("s", savepoint=Savepoint(attempts=2)), node("b", "s"))
    graph.ok("s")
    graph.no("b")
    graph.no("b#2")
    graph.no("b#3")
    assert graph.error.step == "b#3"


def test_what_runs_side_by_side_after_a_savepoint_is_resolved_before_the_next_try() -> None:
    """A step in doubt may have been done; then it is undone first."""
    graph = Driven(node("s", savepoint=Savepoint()), node("b", "s"), node("c", "s"), node("d"))
    graph.ok("s")
    graph.no("b")
    assert (graph.pending, set(graph.execution.orphans)) == ({"d"}, {"c"})
    graph.ok("c")
    assert (graph.pending, graph.unwanted) == ({"d"}, {"c"})
    graph.undo()
    assert graph.pending == {"b#2", "c#2", "d"}


def test_a_branch_beside_the_savepoint_goes_on_meanwhile() -> None:
    """Only what came after the savepoint is held up."""
    graph = Driven(node("s", savepoint=Savepoint()), node("b", "s"), node("b2", "b"), node("d"), node("e", "d"))
    graph.ok("s", "b")
    graph.no("b2")
    graph.ok("d")
    assert graph.pending == {"e"}
    graph.undo()
    assert graph.pending == {"b#2", "e"}


def test_a_node_that_also_waits_for_the_savepoint_does_not_begin_while_it_goes_back() -> None:
    """It had not begun, so there is nothing to undo, but its time has not come."""
    graph = Driven(node("s", savepoint=Savepoint()), node("b", "s"), node("b2", "b"), node("d"), node("e", "d", "s"))
    graph.ok("s", "b")
    graph.no("b2")
    graph.ok("d")
    assert graph.pending == set()
    graph.undo()
    assert graph.pending == {"b#2", "e"}


def test_a_dead_letter_savepoint_holds_after_the_undo_until_an_operator_asks() -> None:
    """The hold is named after it; each release is one more try."""
    graph = Driven(node("s", savepoint=Savepoint(then="dead_letter")), node("b", "s"), node("c", "b"))
    graph.ok("s", "b")
    graph.no("c", "empty")
    assert not graph.execution.holds
    graph.undo()
    assert list(graph.execution.holds) == ["savepoint:s"]
    assert graph.execution.holds["savepoint:s"].call.failure.code == "empty"
    graph.execution.released("savepoint:s", 100)
    assert graph.pending == {"b#2"}
    graph.no("b#2")
    assert list(graph.execution.holds) == ["savepoint:s#2"]


def test_an_exhausted_savepoint_may_hold_and_then_has_its_tries_again() -> None:
    """``exhausted="dead_letter"``."""
    graph = Driven(node("s", savepoint=Savepoint(attempts=1, exhausted="dead_letter")), node("b", "s"))
    graph.ok("s")
    graph.no("b")
    graph.no("b#2")
    assert list(graph.execution.holds) == ["savepoint:s"]
    graph.execution.released("savepoint:s", 100)
    graph.no("b#3")
    assert graph.pending == {"b#4"}


def test_a_savepoint_that_only_undoes_raises_the_failure_on() -> None:
    """To the savepoint before it, if there is one."""
    graph = Driven(node("o", savepoint=Savepoint()), node("s", "o", savepoint=Savepoint(then="undo")), node("b", "s"))
    graph.ok("o", "s")
    graph.no("b")
    assert (graph.pending, graph.unwanted) == (set(), {"s"})
    graph.undo()
    graph.ok("s#2")
    graph.no("b#2")
    assert graph.error.step == "b#2"


def test_the_nearest_savepoint_is_the_latest() -> None:
    """Only what came after it is undone; a new try of the outer one gives the inner one its tries again."""
    graph = Driven(node("o", savepoint=Savepoint()), node("s", "o", savepoint=Savepoint()), node("b", "s"))
    graph.ok("o", "s")
    graph.no("b")
    graph.no("b#2")
    assert graph.undo() == ["s"]
    graph.ok("s#2")
    graph.no("b#3")
    assert graph.pending == {"b#4"}
    graph.no("b#4")
    assert graph.error.step == "b#4"


def test_an_outer_savepoint_overtakes_an_inner_one_that_goes_back() -> None:
    """It waits for the undo that is under way, and nothing is undone twice."""
    graph = Driven(
        node("o", savepoint=Savepoint()),
        node("s", "o", savepoint=Savepoint()),
        node("b", "s"),
        node("b2", "b"),
        node("c", "b2"),
        node("x", "o"),
    )
    graph.ok("o", "s", "b", "b2")
    graph.no("c")
    assert graph.undo(1) == ["b2"]
    graph.no("x")
    assert graph.unwanted == {"b", "s"}
    graph.undo()
    assert graph.undone == ["b2", "b", "s"]
    assert graph.pending == {"s#2", "x#2"}
    graph.ok("s#2", "b#2", "b2#2", "c#2", "x#2")
    assert set(graph.result) == {"o", "s", "b", "b2", "c", "x"}


def test_a_savepoint_inside_a_branch_has_its_say_before_the_join() -> None:
    """Its branch tries again; when its tries are used up the branch has failed, and the other may still win."""
    graph = Driven(
        node("s", savepoint=Savepoint()), node("b", "s"), node("b2", "b"), node("m"), node("j", "b2", "m", join="any")
    )
    graph.ok("s", "b")
    graph.no("b2")
    graph.undo()
    assert graph.pending == {"b#2", "m"}
    graph.ok("b#2")
    graph.no("b2#2")
    assert graph.pending == {"m"}
    assert graph.undo() == ["b#2"]
    graph.ok("m")
    assert graph.undo() == ["s"]
    graph.ok("j")
    assert graph.result == {"m": "m", "j": "j"}


def test_a_savepoint_before_a_fork_has_its_say_when_the_join_has_failed() -> None:
    """The first failure alone goes nowhere; after the second all runs again."""
    graph = Driven(node("s", savepoint=Savepoint()), node("a", "s"), node("b", "s"), node("j", "a", "b", join="any"))
    graph.ok("s")
    graph.no("a")
    assert graph.pending == {"b"}
    graph.no("b")
    assert graph.pending == {"a#2", "b#2"}
    graph.ok("a#2")
    assert graph.pending == {"j"}


def test_losers_are_not_undone_twice_by_a_savepoint_before_the_fork() -> None:
    """They were undone when another won; the next try runs them anew."""
    graph = Driven(
        node("s", savepoint=Savepoint()),
        node("a", "s"),
        node("b", "s"),
        node("b2", "b"),
        node("j", "a", "b2", join="any"),
        node("p", "j"),
    )
    graph.ok("s", "b", "a", "j")
    assert set(graph.execution.orphans) == {"b2"}
    graph.no("b2")
    assert graph.undo() == ["b"]
    graph.no("p")
    assert graph.undo() == ["j", "a"]
    assert graph.pending == {"a#2", "b#2"}


def test_kept_losers_are_undone_by_a_savepoint_before_the_fork() -> None:
    """To go back is to go back from all of it."""
    graph = Driven(
        node("s", savepoint=Savepoint()),
        node("a", "s"),
        node("b", "s"),
        node("b2", "b"),
        node("j", "a", "b2", join="any", losers="keep"),
        node("p", "j"),
    )
    graph.ok("s", "b", "a")
    graph.ok("j")
    graph.no("p")
    assert set(graph.execution.orphans) == {"b2"}
    graph.ok("b2")
    assert set(graph.undo()) == {"b", "a", "j", "b2"}
    assert graph.pending == {"a#2", "b#2"}


def test_a_winner_ends_the_going_back_of_the_branch_that_lost() -> None:
    """What is being undone there goes on being undone; nothing of it begins again."""
    graph = Driven(
        node("s", savepoint=Savepoint()), node("b", "s"), node("b2", "b"), node("m"), node("j", "b2", "m", join="any")
    )
    graph.ok("s", "b")
    graph.no("b2")
    graph.ok("m")
    assert graph.pending == {"j"}
    assert graph.undo() == ["b", "s"]
    assert graph.pending == {"j"}
    graph.ok("j")
    assert graph.result == {"m": "m", "j": "j"}


def test_a_skipped_savepoint_is_none() -> None:
    """Its condition left it out."""
    graph = Driven(node("s", run=_skipped, savepoint=Savepoint()), node("b", "s"))
    graph.no("b")
    assert graph.error.step == "b"


def test_a_rejection_is_not_mended_by_a_savepoint() -> None:
    """A person's No is not a failure to be tried again: it undoes the rest, or fails its branch of a join any."""

    async def asks(run: Run) -> Any:
        return await run.saga.decision(run.name)

    nodes = (node("s", savepoint=Savepoint()), node("b", "s"), node("ok", "b", run=asks))
    graph = Driven(*nodes)
    graph.ok("s", "b")
    graph.decide("ok", approve=False)
    assert isinstance(graph.error, Rejected)
    graph = Driven(*nodes, node("m"), node("j", "ok", "m", join="any"))
    graph.ok("s", "b")
    graph.decide("ok", approve=False)
    assert graph.pending == {"m"}


# ---------------------------------------------------------------- data from outside


def test_data_that_came_before_the_graph_began_is_there_from_the_start() -> None:
    """All of it, and the newest counts; nobody begins without it only to run again."""

    async def begins(saga: Saga) -> Any:
        await saga.step("before", post("stock", "/"))
        return await run_graph([late("x"), node("b", optional=("x",), reruns=True, run=summed("x"))], saga)

    graph = Driven(exec=begins)
    graph.datum("x", 1)
    graph.datum("x", 2)
    graph.ok("before")
    assert graph.body("b") == [2]
    graph.ok("b")
    assert graph.result == {"x": 2, "b": "b"}


def test_a_listener_that_is_skipped_is_not_asked_again() -> None:
    """Its condition has left it out for good."""
    graph = Driven(Node(name="x", run=_skipped, listens=True), node("b", "x"))
    graph.ok("b")
    assert graph.result == {"x": None, "b": "b"}


def test_an_optional_source_is_used_if_there_and_never_waited_for() -> None:
    """The graph ends without it, and its listener ends with the graph."""
    graph = Driven(late("x"), node("a"), node("b", "a", optional=("x",), run=summed("a", "x")))
    graph.ok("a")
    assert graph.body("b") == ["a", None]
    graph.ok("b")
    assert graph.result == {"a": "a", "b": "b"}
    assert not graph.execution.waits


def test_a_node_that_has_not_run_sees_the_newest_value() -> None:
    """Whatever came before it began."""
    graph = Driven(late("x"), node("a"), node("b", "a", optional=("x",), run=summed("x")))
    graph.datum("x", 1)
    graph.datum("x", 2)
    graph.ok("a")
    assert graph.body("b") == [2]


def test_a_late_value_runs_again_who_asked_for_it() -> None:
    """A node that does not rerun keeps what it has done."""
    graph = Driven(
        late("x"),
        node("a"),
        node("b", optional=("x",), reruns=True, run=summed("x")),
        node("c", optional=("x",), run=summed("x")),
    )
    graph.ok("b", "c")
    graph.datum("x", 5)
    assert graph.pending == {"a", "b#2"}
    assert graph.body("b#2") == [5]
    graph.ok("b#2", "a")
    assert graph.result["b"] == "b#2"


def test_a_value_like_the_last_one_runs_nobody_again() -> None:
    """Neither that of the datum nor that of a node that ran again."""
    graph = Driven(
        late("x"),
        node("a"),
        node("b", optional=("x",), reruns=True, run=summed("x")),
        node("c", "b", reruns=True),
    )
    graph.ok("b", value="same")
    graph.ok("c")
    graph.datum("x", 5)
    graph.ok("b#2", value="same")
    assert graph.pending == {"a"}
    graph.datum("x", 5)
    assert graph.pending == {"a"}
    graph.datum("x", 6)
    graph.ok("b#3", value="other")
    assert graph.pending == {"a", "c#2"}


def test_what_is_only_read_never_runs_anybody_again() -> None:
    """It is waited for the first time, and the next run takes its newest value."""
    graph = Driven(
        late("x"), late("y"), node("a"), node("b", optional=("x",), reads=("y",), reruns=True, run=summed("x", "y"))
    )
    assert graph.pending == {"a"}
    graph.datum("y", 1)
    assert graph.body("b") == [None, 1]
    graph.ok("b")
    graph.datum("y", 2)
    assert graph.pending == {"a"}
    graph.datum("x", 9)
    assert graph.body("b#2") == [9, 2]


def test_what_is_read_and_optional_is_not_waited_for() -> None:
    """And it triggers nothing."""
    graph = Driven(late("x"), node("a"), node("b", optional=("x",), reads=("x",), reruns=True))
    graph.ok("b")
    graph.datum("x", 2)
    assert graph.pending == {"a"}


def test_a_diamond_runs_its_last_node_again_once() -> None:
    """It waits until all that leads to it has settled."""
    graph = Driven(
        late("x"),
        node("hold"),
        node("b", "x", reruns=True, run=summed("x")),
        node("c", "x", reruns=True, run=summed("x")),
        node("c2", "c", reruns=True),
        node("d", "b", "c2", reruns=True, run=summed("b", "c2")),
    )
    graph.datum("x", 1)
    graph.ok("b", "c", "c2", "d")
    graph.datum("x", 2)
    assert graph.pending == {"hold", "b#2", "c#2"}
    graph.ok("b#2")
    assert graph.pending == {"hold", "c#2"}
    graph.ok("c#2")
    assert graph.pending == {"hold", "c2#2"}
    graph.ok("c2#2")
    assert graph.body("d#2") == ["b#2", "c2#2"]


def test_a_node_in_flight_finishes_first_and_then_runs_again() -> None:
    """Its followers wait for the newest value."""
    graph = Driven(late("x"), node("b", optional=("x",), reruns=True), node("c", "b", run=summed("b")))
    graph.datum("x", 1)
    assert graph.pending == {"b"}
    graph.ok("b")
    assert graph.pending == {"b#2"}
    graph.ok("b#2")
    assert graph.body("c") == ["b#2"]
    graph.ok("c")
    assert graph.result["b"] == "b#2"


def test_a_run_keeps_the_values_it_was_given() -> None:
    """So an undo that is made later is made of what its own run has seen."""
    runs: list[Run] = []

    async def keep(run: Run) -> Any:
        runs.append(run)
        return await _step(run)

    graph = Driven(late("x"), node("a"), node("b", optional=("x",), reruns=True, run=keep))
    graph.datum("x", 1)
    graph.ok("b")
    graph.ok("b#2")
    graph.datum("x", 2)
    assert [run.values.get("x") for run in runs] == [1, 1, 2]
    assert [run.round for run in runs] == [1, 2, 3]


def test_a_required_datum_is_waited_for() -> None:
    """The graph does not end before who needs it has run."""
    graph = Driven(late("x"), node("b", "x", run=summed("x")))
    assert not graph.execution.done
    graph.datum("x", 7)
    assert graph.body("b") == [7]
    graph.ok("b")
    assert graph.result == {"x": 7, "b": "b"}


def test_a_failure_of_a_run_again_fails_like_any() -> None:
    """With a savepoint before it, all after that runs again."""
    graph = Driven(late("x"), node("a"), node("b", optional=("x",), reruns=True), node("c", "b"))
    graph.ok("b", "c")
    graph.datum("x", 1)
    graph.no("b#2")
    assert graph.error.step == "b#2"


def test_who_has_used_an_optional_value_comes_after_it() -> None:
    """Undone back to a savepoint before the value, it is undone as well, and begins again only after that."""
    graph = Driven(
        node("s", savepoint=Savepoint()),
        node("v", "s"),
        node("go", "v"),
        node("b", "go", run=_value),
        node("user", optional=("v",), reads=("go",), run=summed("v")),
        node("other", optional=("v",)),
        node("fails", "go"),
    )
    graph.ok("s", "v", "go", "user", "other")
    graph.no("fails")
    assert graph.undo() == ["user", "go", "v"]
    assert graph.pending == {"v#2"}


# ---------------------------------------------------------------- revisions


def test_a_graph_of_the_second_revision_waits_for_the_late_datum() -> None:
    """It stands where the first one ended, and repeats nothing."""
    nodes = (late("x"), node("a"), node("b", "a", optional=("x",), reruns=True, run=summed("x")), node("c", "b"))
    first = Driven(*nodes)
    first.ok("a", "b", "c")
    assert first.result["b"] == "b"
    second = Driven(*nodes, revision=2)
    second.ok("a", "b", "c")
    assert not second.execution.done
    assert (second.pending, list(second.execution.waits)) == (set(), ["x"])
    second.datum("x", 3)
    assert second.pending == {"b#2"}
    second.ok("b#2")
    assert second.result == {"x": 3, "a": "a", "b": "b#2", "c": "c"}


def test_each_revision_takes_one_more_datum() -> None:
    """A datum that came before all had settled belongs to the revision it came in."""
    nodes = (late("x"), node("b", optional=("x",), reruns=True, run=summed("x")))
    third = Driven(*nodes, revision=3)
    third.datum("x", 1)
    third.ok("b", "b#2")
    assert not third.execution.done
    third.datum("x", 2)
    third.ok("b#3")
    assert not third.execution.done
    third.datum("x", 2)  # the same again, by another signal: there is nothing to do, but it was asked for
    assert third.result == {"x": 2, "b": "b#3"}
