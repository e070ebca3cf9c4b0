"""Journeys, on a loop whose time is a number: what the caller is told while owners come and go.

An `Owner` stands for whoever acts for the partition, this instance or one at the end of a link: it keeps what it is
asked and tells what the test says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from coordinator.cluster.base import Member
from coordinator.errors import (
    CoordinatorError,
    LimitReached,
    LinkLost,
    LogUnavailable,
    NoOwner,
    Starting,
    Stopping,
    UnknownCommand,
)
from coordinator.front.journey import CONFIRM_S, Journey
from coordinator.front.routes import NOBODY_S, Routes
from coordinator.model.command import CommandView, Submission
from coordinator.model.ids import CommandId
from coordinator.testing.virtual import VirtualLoop
from coordinator.transport.base import Caller, Event, Unwatch, Want, Watcher, caller
from tests.unit.front.test_gather import view

ID = CommandId("order-1")


class Owner:
    """Whoever is asked."""

    def __init__(self, name: str) -> None:
        self.member = Member(name, "")
        self.refusal: CoordinatorError | None = None
        self.asked: list[Any] = []
        self.told_of: list[tuple[int | None, Any]] = []  # deadlines and trace contexts
        self.watchers: list[Watcher] = []
        self.owned: dict[int, int] = {}

    def submit(
        self, submission: Submission, watcher: Watcher, want: Want, deadline_ms: int | None = None, meta: Any = None
    ) -> Unwatch:
        self.told_of.append((deadline_ms, meta))
        return self._take(submission, watcher)

    def submit_as(self, id: str, lane: Any, submission: Submission, watcher: Watcher, want: Want) -> Unwatch:
        return self._take(submission, watcher)

    def watch(self, id: str, watcher: Watcher, after: str | None = None) -> Unwatch:
        return self._take(("watch", after), watcher)

    def _take(self, what: Any, watcher: Watcher) -> Unwatch:
        if self.refusal is not None:
            raise self.refusal
        self.asked.append(what)
        self.watchers.append(watcher)
        return lambda: self.watchers.remove(watcher) if watcher in self.watchers else None

    def tell(self, kind: Any, place: str = "", *, step: str = "", error: CoordinatorError | None = None) -> None:
        shown: CommandView | None = view(ID, 1) if kind == "final" else None
        event = Event(kind, ID, place, "running", record={"step": step} if step else None, view=shown, error=error)
        for watcher in list(self.watchers):
            if kind in ("final", "error"):
                self.watchers.remove(watcher)
            watcher(event)


class Group:
    """This instance, ``here``, and whoever else there is."""

    def __init__(self) -> None:
        self.loop = VirtualLoop(Random(1))  # type: ignore[abstract]
        self.here = Owner("here")
        self.lane = SimpleNamespace(
            partition=0, acting=False, standing_by=True, refusal=Starting("", retry_after_ms=200), owner=None
        )
        self.link: Owner | None = None
        self.others: list[Owner] = [Owner("bystander")]
        self.here.pipeline = SimpleNamespace(  # type: ignore[attr-defined]
            lanes=[self.lane], loop=self.loop, random=Random(2)
        )
        self.routes = Routes(self.here, self)  # type: ignore[arg-type]
        self.told: list[Event] = []

    def owner(self, partition: int) -> Any:
        return self.link

    def links(self) -> Any:
        return self.others

    def wanted(self) -> list[int]:
        return []

    def describe(self) -> dict[str, Any]:
        return {}

    def moves_to(self, owner: Owner | None) -> None:
        """The partition is that owner's now, and everybody sees it."""
        self.lane.acting = owner is self.here
        self.link = None if owner is self.here else owner
        self.routes.look()

    def submit(self, want: Want = "events", **rest: Any) -> Journey:
        given = {"id": ID} | {key: rest[key] for key in rest if key in ("id", "admit_within")}
        submission = Submission(type="T", **given)
        return self._begin(want, submission, within_ms=rest.get("within_ms", 0))

    def watch(self, after: str | None = None) -> Journey:
        return self._begin("events", None, after=after)

    def _begin(self, want: Want, submission: Submission | None, **rest: Any) -> Journey:
        journey = Journey(self.routes, 0, ID, self.told.append, want, submission, **rest)
        journey.begin()
        return journey

    @property
    def kinds(self) -> list[str]:
        return [event.kind for event in self.told]

    def steps(self) -> list[str]:
        return [event.record["step"] for event in self.told if event.record]

    def passes(self, seconds: float) -> None:
        self.loop.run(asyncio.sleep(seconds))


@pytest.fixture
def group() -> Iterator[Group]:
    made = Group()
    yield made
    made.loop.close()


@pytest.fixture
def b() -> Owner:
    return Owner("b")


@pytest.fixture
def c() -> Owner:
    return Owner("c")


def test_the_owner_is_asked_once_and_its_events_are_passed_on(group: Group, b: Owner) -> None:
    """Nothing is added, and nothing is left open after the end."""
    group.moves_to(b)
    group.submit()
    b.tell("accepted", "0:1")
    b.tell("step", "0:2", step="a")
    b.tell("state", "0:2")
    b.tell("final", "0:3")
    assert group.kinds == ["accepted", "step", "state", "final"]
    assert len(b.asked) == 1
    assert not group.routes._away[0]
    assert not group.routes._expected


def test_an_unconfirmed_submission_is_asked_again_as_it_is(group: Group, b: Owner, c: Owner) -> None:
    """The owner died before its word: the next one is asked for the same id, and the caller is told once."""
    group.moves_to(b)
    group.submit()
    b.tell("error", error=LinkLost("gone", retry_after_ms=100))
    group.moves_to(c)
    assert c.asked == b.asked
    assert c.asked[0].id == ID
    c.tell("accepted", "0:1")
    c.tell("final", "0:2")
    assert group.kinds == ["accepted", "final"]


def test_a_confirmed_submission_is_watched_from_where_it_was(group: Group, b: Owner) -> None:
    """What the new owner repeats is not told again; what it has more is."""
    group.moves_to(b)
    group.submit()
    b.tell("accepted", "0:1")
    b.tell("step", "0:4", step="a")
    b.tell("error", error=LinkLost())
    group.moves_to(group.here)
    assert group.here.asked == [("watch", "0:4")]
    group.here.tell("accepted", "0:1")
    group.here.tell("step", "0:4", step="a")
    group.here.tell("step", "0:10", step="b")
    group.here.tell("final", "0:11")
    assert group.kinds == ["accepted", "step", "step", "final"]
    assert group.steps() == ["a", "b"]


def test_who_wants_the_end_only_is_told_no_steps(group: Group, b: Owner) -> None:
    """Also at the second owner, where it is a watch that brings the end."""
    group.moves_to(b)
    group.submit("final")
    b.tell("accepted", "0:1")
    b.tell("error", error=NoOwner())
    group.moves_to(group.here)
    group.here.tell("step", "0:2", step="a")
    group.here.tell("final", "0:3")
    assert group.kinds == ["accepted", "final"]


def test_who_wants_the_word_only_is_done_with_it(group: Group, b: Owner) -> None:
    """Whatever is lost after that is nobody's concern."""
    group.moves_to(b)
    group.submit("accepted")
    b.tell("accepted", "0:1")
    b.tell("error", error=LinkLost())
    group.passes(60)
    assert group.kinds == ["accepted"]
    assert len(b.asked) == 1


def test_it_asks_again_by_itself_too(group: Group, b: Owner) -> None:
    """Nobody says that the partition has moved: it is found within a quarter of a second."""
    group.moves_to(b)
    group.submit()
    b.tell("error", error=NoOwner(retry_after_ms=5_000))
    group.passes(0.3)
    assert len(b.asked) == 2


def test_a_refusal_that_is_not_about_ownership_ends_it(group: Group, b: Owner) -> None:
    """It is the caller's to judge."""
    group.moves_to(b)
    group.submit()
    b.tell("error", error=LimitReached("full"))
    group.passes(60)
    assert group.kinds == ["error"]
    assert isinstance(group.told[0].error, LimitReached)
    assert len(b.asked) == 1


def test_here_a_refusal_is_raised_at_once(group: Group) -> None:
    """As the local front does; this instance's own drain too."""
    for refusal in (LimitReached(), UnknownCommand(), Stopping()):
        group.moves_to(group.here)
        group.here.refusal = refusal
        with pytest.raises(type(refusal)):
            group.submit()
    group.passes(1)
    assert group.told == []


def test_nobody_to_ask_is_told_soon(group: Group) -> None:
    """A retryable refusal after `NOBODY_S`, with a delay."""
    group.submit()
    group.passes(NOBODY_S - 0.5)
    assert group.told == []
    group.passes(1)
    (event,) = group.told
    assert isinstance(event.error, NoOwner)
    assert event.error.retryable
    assert event.error.retry_after_ms


def test_somebody_comes_in_time(group: Group, b: Owner) -> None:
    """It is asked at the moment when it is seen."""
    group.submit()
    group.passes(1)
    group.moves_to(b)
    assert len(b.asked) == 1


def test_what_was_asked_for_is_followed_for_longer(group: Group, b: Owner) -> None:
    """It may be in the log: `CONFIRM_S` after its beginning the caller is told the last refusal."""
    group.moves_to(b)
    group.submit()
    b.tell("error", error=LinkLost())
    group.moves_to(None)
    group.passes(NOBODY_S + 2)
    assert group.told == []
    group.passes(CONFIRM_S - NOBODY_S)
    assert group.kinds == ["error"]


def test_a_silent_owner_is_given_up(group: Group, b: Owner) -> None:
    """Its link stands, and nothing comes: never a hang."""
    group.moves_to(b)
    group.submit()
    group.passes(CONFIRM_S - 1)
    assert group.told == []
    group.passes(3)
    assert isinstance(group.told[0].error, NoOwner)
    assert b.watchers == [], "it was told that nobody waits"


def test_its_patience_for_a_slot_is_no_silence(group: Group, b: Owner) -> None:
    """`admit_within` is the owner's to keep; the next one gets what is left of it."""
    group.moves_to(b)
    group.submit(admit_within="60s", within_ms=60_000)
    group.passes(CONFIRM_S + 5)
    assert group.told == []
    b.tell("error", error=LinkLost())
    group.moves_to(group.here)
    assert 39_000 < int(group.here.asked[0].admit_within.removesuffix("ms")) <= 40_000
    group.moves_to(None)
    group.here.tell("error", error=NoOwner())
    group.passes(41)
    group.moves_to(group.here)
    assert group.here.asked[-1].admit_within is None, "all of it is spent"


def test_what_is_confirmed_waits_as_long_as_its_caller(group: Group, b: Owner) -> None:
    """For an hour, and for an owner that comes then."""
    group.moves_to(b)
    group.submit()
    b.tell("accepted", "0:1")
    b.tell("error", error=LinkLost())
    group.moves_to(None)
    group.passes(3600)
    assert group.kinds == ["accepted"]
    group.moves_to(group.here)
    group.here.tell("final", "0:9")
    assert group.kinds == ["accepted", "final"]


def test_who_leaves_hears_nothing_more(group: Group, b: Owner, c: Owner) -> None:
    """Whether somebody is asked at the moment or nobody is."""
    group.moves_to(b)
    group.submit().leave()
    assert b.watchers == []
    journey = group.submit()
    b.tell("error", error=LinkLost())
    journey.leave()
    journey.leave()
    group.moves_to(c)
    group.passes(60)
    assert (c.asked, group.told) == ([], [])


def test_a_zombie_is_left_as_soon_as_there_is_another(group: Group, b: Owner, c: Owner) -> None:
    """It says nothing, and its link stands; but somebody else acts now."""
    group.moves_to(b)
    group.submit()
    b.tell("accepted", "0:1")
    group.moves_to(c)
    assert b.watchers == []
    assert c.asked == [("watch", "0:1")]
    group.routes.look()
    assert len(c.asked) == 1


def test_a_watch_goes_on_where_it_was(group: Group, b: Owner, c: Owner) -> None:
    """After the position that its caller gave, then after the last that it was told."""
    group.moves_to(b)
    group.watch("0:5")
    b.tell("error", error=LinkLost())
    group.moves_to(c)
    c.tell("step", "0:7", step="a")
    c.tell("error", error=LinkLost())
    group.moves_to(group.here)
    assert (b.asked, c.asked, group.here.asked) == ([("watch", "0:5")], [("watch", "0:5")], [("watch", "0:7")])


def test_a_log_that_fails_an_instance_alone_is_told_at_once(group: Group) -> None:
    """There is nobody who could do better; among several, the others are waited for."""
    refusal = LogUnavailable("disk full", retry_after_ms=500)
    group.moves_to(group.here)
    group.submit()
    group.here.tell("error", error=refusal)
    group.passes(1)
    assert group.told == []
    group.others = []
    group.here.tell("error", error=refusal)
    assert group.kinds == ["error"]
    assert group.told[0].error is refusal


def test_the_caller_s_deadline_and_trace_context_go_along(group: Group, b: Owner, c: Owner) -> None:
    """The next owner is told what is left of the time."""
    group.moves_to(b)
    token = caller.set(Caller(group.loop.time() + 10, {"traceparent": "00-1-2-01"}))
    group.submit()
    caller.reset(token)
    group.passes(4)
    b.tell("error", error=LinkLost())
    group.moves_to(c)
    assert b.told_of == [(10_000, {"traceparent": "00-1-2-01"})]
    assert c.told_of == [(6_000, {"traceparent": "00-1-2-01"})]


def test_those_who_wait_ask_at_different_times(group: Group) -> None:
    """Jitter: what was refused together does not come together."""
    asked: list[float] = []
    ask: Callable[[int], Any] = group.routes.place

    def place(partition: int) -> Any:
        asked.append(group.loop.time())
        return ask(partition)

    group.routes.place = place  # type: ignore[method-assign]
    for _ in range(10):
        group.submit()
    asked.clear()
    group.passes(0.5)
    assert len({round(at, 3) for at in asked}) > 8


def test_an_id_of_our_own_making_is_named_when_it_is_asked_for_again(group: Group, b: Owner) -> None:
    """The lost owner may have run the command to its end: here it must be looked up, not taken for new."""
    group.moves_to(group.here)
    group.submit(id=None)
    group.here.tell("error", error=LogUnavailable(retry_after_ms=100))
    group.moves_to(b)
    b.tell("error", error=LinkLost())
    group.moves_to(group.here)
    assert [each.id for each in (*group.here.asked, *b.asked)] == [None, ID, ID]


def test_what_is_confirmed_is_not_lost_for_a_crowd(group: Group, b: Owner, c: Owner) -> None:
    """After a take-over thousands ask the heir at once; who is refused for that asks again."""
    group.moves_to(b)
    group.submit()
    b.tell("accepted", "0:1")
    c.refusal = LimitReached("65536 requests are open", retry_after_ms=100)
    group.moves_to(c)
    group.passes(1)
    c.refusal = None
    group.passes(1)
    assert c.asked == [("watch", "0:1")]
    c.tell("final", "0:2")
    assert group.kinds == ["accepted", "final"]


def test_who_left_is_not_woken(group: Group, b: Owner) -> None:
    """Also where it is the one that was woken before it that made it leave."""
    second: list[Journey] = []
    journey = Journey(group.routes, 0, ID, lambda _: second[0].leave(), "events", Submission(id=ID, type="T"))
    journey.begin()
    second.append(group.submit())
    b.refusal = UnknownCommand()
    group.moves_to(b)
    group.passes(60)
    assert (b.asked, group.told) == ([], [])


def test_a_caller_that_fails_harms_no_neighbour(group: Group, b: Owner) -> None:
    """Whoever tells that a partition has moved (the group itself) goes on, and so do the other callers."""

    def broken(event: Event) -> None:
        raise RuntimeError("its connection is broken")

    Journey(group.routes, 0, ID, broken, "events", Submission(id=ID, type="T")).begin()
    group.submit()
    b.refusal = UnknownCommand()
    group.moves_to(b)
    assert group.kinds == ["error"]


def test_a_crowd_that_waits_leaves_time_for_others(group: Group, b: Owner) -> None:
    """Ten thousand do not ask forty thousand times a second; when an owner is seen, all are woken at once."""
    group.moves_to(b)
    for _ in range(10_000):
        group.submit("final")
    b.tell("accepted", "0:1")
    asked = 0
    ask: Callable[[int], Any] = group.routes.place

    def place(partition: int) -> Any:
        nonlocal asked
        asked += 1
        return ask(partition)

    group.routes.place = place  # type: ignore[method-assign]
    for watcher in list(b.watchers):
        watcher(Event("error", ID, error=LinkLost(retry_after_ms=100)))
    group.moves_to(None)
    group.passes(2)
    assert asked < 20_000
    group.moves_to(group.here)
    assert len(group.here.asked) == 10_000
