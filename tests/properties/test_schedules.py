"""Schedules under any history: times in order, a fold that a snapshot keeps, and runs that crashes neither double nor
lose."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise
from random import Random
from typing import Any

from hypothesis import assume, given
from hypothesis import strategies as st

from coordinator.engine.engine import Engine
from coordinator.engine.registry import Registry
from coordinator.engine.schedules import Ask, Cancel, Note, Schedules, Series, Start, Wait
from coordinator.engine.snapshots import Header, Whole, cut, restore
from coordinator.model.moments import timestamp
from coordinator.model.reading.schedule import check
from coordinator.model.records import SCHEMA, Schedule, raw
from coordinator.model.schedule import run_id
from coordinator.model.settings import EngineSettings

TOKEN = b"owner..."
T0 = round(datetime(2026, 3, 1, tzinfo=UTC).timestamp() * 1000)
YEAR_MS = 365 * 86_400_000
COMMAND = {"type": "Bill"}

fields = st.tuples(
    st.sampled_from(["*", "0", "30", "*/7", "5,35", "10-20/3", "59"]),
    st.sampled_from(["*", "2", "3", "*/6", "1-4", "0,23"]),
    st.sampled_from(["*", "1", "29", "L", "*/10", "LW"]),
    st.sampled_from(["*", "3", "10", "3,10", "FEB"]),
    st.sampled_from(["*", "SUN", "MON-FRI", "5L", "1#1"]),
).map(" ".join)
zones = st.sampled_from(["UTC", "Europe/Zurich", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"])


# ---------------------------------------------------------------- times


@given(fields, zones, st.integers(0, YEAR_MS))
def test_due_times_rise_and_lie_behind_what_was_asked(cron: str, zone: str, offset: int) -> None:
    """Through every change of the clocks; asked from anywhere between two of them, the later one comes."""
    spec, faults = check("s", {"cron": cron, "timezone": zone, "command": COMMAND})
    assume(spec is not None and not faults)  # some never come
    assert spec is not None
    at, times = T0 + offset, []
    for _ in range(20):
        due = spec.after(at, T0)
        if due is None:
            break
        assert due > at
        times.append(due)
        at = due
    for earlier, later in pairwise(times):
        assert spec.after((earlier + later) // 2, T0) == later
        assert spec.after(later - 1, T0) == later


@given(fields | st.integers(1, 5000), zones, st.integers(0, YEAR_MS), st.integers(0, 40 * 86_400_000))
def test_the_latest_due_time_is_the_last_that_counting_finds(
    when: str | int, zone: str, offset: int, span: int
) -> None:
    """Found by bisection, as if one had gone through them all."""
    timing = {"cron": when, "timezone": zone} if isinstance(when, str) else {"every": f"{when}s"}
    spec, faults = check("s", {**timing, "command": COMMAND})
    assume(spec is not None and not faults)
    assert spec is not None
    after = T0 + offset
    latest = spec.latest(after, after + span, T0)
    counted, due = None, spec.after(max(after, after + span - 86_400_000), T0)
    while due is not None and due <= after + span:
        counted, due = due, spec.after(due, T0)
    if counted is not None:
        assert latest == counted
    elif latest is not None:
        following = spec.after(latest, T0)
        assert latest <= after + span - 86_400_000
        assert following is None or following > after + span


# ---------------------------------------------------------------- the fold

records = st.lists(
    st.tuples(
        st.sampled_from(["a", "b"]),
        st.sampled_from(["put", "pause", "resume", "delete", "queued", "starting", "fired", "skipped"]),
        st.integers(1, 6),
    ),
    max_size=40,
)


def record(name: str, action: str, number: int, at: int) -> Schedule:
    due = T0 + number * 10_000 if action in ("queued", "starting", "fired", "skipped") else 0
    content = raw({"every": f"{number}0s", "overlap": "queue", "command": COMMAND})
    kept = Schedule(SCHEMA, TOKEN, T0 + at * 1000, name, action, due=due, reason=f"{at}")
    return Schedule(SCHEMA, TOKEN, T0 + at * 1000, name, action, content) if action == "put" else kept


def seen(schedules: Schedules) -> dict[str, Any]:
    """All that can be asked of them."""
    return {
        each.name: (
            each.content, each.paused, each.asked, each.last, each.skipped, each.queued, each.handled, each.broken,
            [each.next(T0 + at) for at in (0, 35_000, 90_000)],
        )
        for each in schedules.of(0)
    }  # fmt: skip


def engine() -> Engine:
    return Engine(EngineSettings(), {}, Registry(None, {}), Random(7))


@given(records, records, st.integers(700, 4000))
def test_a_snapshot_keeps_what_the_records_said(
    before: list[tuple[str, str, int]], behind: list[tuple[str, str, int]], part_bytes: int
) -> None:
    """Whatever the history, however the snapshot is cut into parts, and whatever comes behind it."""
    live, heir = engine(), engine()
    for offset, each in enumerate(before):
        live.apply(0, offset, record(*each, offset))
    header = Header(b"snapshot", len(before), TOKEN, TOKEN, T0)
    parts = [part for part in cut(live, 0, header, part_bytes=1500 + part_bytes) if part is not None]
    for _ in restore(heir, 0, Whole(len(before), parts)):
        pass
    assert seen(heir.schedules) == seen(live.schedules)
    for offset, each in enumerate(behind, len(before)):
        for one in (live, heir):
            one.apply(0, offset, record(*each, offset))
    assert seen(heir.schedules) == seen(live.schedules)
    assert sorted(heir.schedules.pieces(0)) == sorted(live.schedules.pieces(0))


# ---------------------------------------------------------------- a world with crashes


class World:
    """A log, a coordinator that takes commands, and owners of the schedule that die where the dice say."""

    def __init__(self, overlap: str, every_s: int, dice: Random) -> None:
        self.dice = dice
        self.now = T0
        self.log: list[Schedule] = []
        self.runs: dict[str, int] = {}  # command: when it ends
        self.known: set[str] = set()
        self.missed: list[tuple[int, int]] = []  # nobody acted from, until
        self.every = every_s * 1000
        content = {
            "every": f"{every_s}s",
            "overlap": overlap,
            "end": timestamp(T0 + 60 * self.every),
            "command": COMMAND,
        }
        self.log.append(Schedule(SCHEMA, TOKEN, T0, "s", "put", raw(content)))
        self.series = self._replayed()
        self.since = T0

    def _replayed(self) -> Series:
        schedules = Schedules()
        for offset, record in enumerate(self.log):
            schedules.apply(0, offset, record)
        found = schedules.get(0, "s")
        assert found is not None
        self.known = set()
        return found

    def crash(self, down_ms: int) -> None:
        """Nobody acts for a while, and the next owner has nothing but the log."""
        began, self.now = self.now, self.now + down_ms
        self.missed.append((began, self.now))
        self.series, self.since = self._replayed(), self.now

    def going(self) -> bool | None:
        last = self.series.last
        if last is None:
            return False
        return self.runs[last.command] > self.now if last.command in self.known else None

    def note(self, action: str, due: int, command: str = "") -> None:
        record = Schedule(SCHEMA, TOKEN, self.now, "s", action, due=due, command=command)
        self.log.append(record)
        self.series.apply(len(self.log) - 1, record)

    def look(self, crash: bool) -> bool:
        """One step; False when there is nothing to do.  ``crash``: between what is done and its record."""
        match self.series.step(self.now, self.since, self.going()):
            case Wait():
                return False
            case Note(action, due):
                if not crash:
                    self.note(action, due)
            case Start(due):
                command = run_id("s", due)
                if command not in self.runs:
                    assert all(end <= self.now for end in self.runs.values()), "two runs side by side"
                    self.runs[command] = self.now + self.dice.randrange(3 * self.every)
                if not crash:
                    self.note("fired", due, command)
                    self.known.add(command)
            case Ask(command):
                self.known.add(command)
            case Cancel(command):
                if self.runs[command] > self.now + 500:
                    self.runs[command] = self.now + 500  # until it is undone
                return False
        if crash:
            self.crash(self.dice.randrange(4 * self.every))
        return True


@given(st.sampled_from(["skip", "queue", "replace"]), st.integers(1, 8), st.integers(0, 1 << 32))
def test_runs_are_neither_doubled_nor_lost(overlap: str, every_s: int, seed: int) -> None:
    """Owners die between any two steps: no two runs go on at once, and each due time that somebody was there for is
    accounted for."""
    dice = Random(seed)
    world = World(overlap, every_s, dice)
    while world.now < T0 + 60 * world.every:
        world.now += dice.randrange(world.every)
        while world.look(crash=dice.random() < 0.1):
            pass
    while world.series.queued or world.going() is not False:
        world.now += world.every
        while world.look(crash=False):
            pass
        world.known.update(world.runs)
    accounted = {each.due for each in world.log if each.action in ("fired", "skipped")}
    fired = [each.due for each in world.log if each.action == "fired"]
    assert len(fired) == len(set(fired))
    assert {run_id("s", due) for due in fired} == set(world.runs)
    for due in range(T0 + world.every, T0 + 60 * world.every + 1, world.every):
        # What came just before its owner died has been seen by nobody who could tell.
        unseen = any(began - world.every <= due <= until for began, until in world.missed)
        assert due in accounted or unseen, f"{(due - T0) / 1000} s was lost"
    for began, until in world.missed:
        assert sum(began < due <= until for due in accounted) <= 1, "more than one run has caught up"
