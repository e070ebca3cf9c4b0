"""What comes after what: spells out every ``after``, and makes what is nested flat (`model.definition` shows how).

Inside a block everything comes after what the block comes after, whatever its own ``after`` says: a first step by
default, another one because it also waits for the joint that lets it in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from coordinator.model.definition import Guard, Join, Joint, Step
from coordinator.model.reading.fields import Report, did_you_mean, shown
from coordinator.model.reading.steps import Written


def ordered(written: Sequence[Written], report: Report) -> tuple[tuple[Step, ...], tuple[Joint, ...], dict[str, str]]:
    """Steps and joints with what each comes after, and what block is in which; faults are reported.

    If the order makes no sense, every step has all the others as its ancestors: expressions are worth checking all the
    same.
    """
    flat = _Flat(written, report)
    flat.line(written, _TOP)
    ancestors = flat.ancestors()
    places = [replace(place, ancestors=ancestors[place.name]) for place in flat.places]
    steps = tuple(place for place in places if isinstance(place, Step))
    _check_optional(places, report)
    return steps, tuple(place for place in places if isinstance(place, Joint)), flat.blocks


class _Around(Struct, frozen=True):
    """Where a list of steps stands: what guards it, and the block that it is in."""

    guard: Guard | None
    block: str


_TOP: Final = _Around(None, "")


class _Flat:
    """Collects the places of one definition, in the order in which they were written."""

    def __init__(self, written: Sequence[Written], report: Report) -> None:
        self.report = report
        self.places: list[Step | Joint] = []
        self.blocks: dict[str, str] = {}
        self.sound = True
        self.ends: dict[str, str] = {}
        for each in _all(written):
            if not each.name:
                self.sound = False
            elif each.name in self.ends:
                self.wrong(f"{each.at}.name", f'duplicate name "{each.name}"')
            self.ends[each.name] = each.end

    def line(self, listed: Sequence[Written], around: _Around) -> tuple[str, ...]:
        """Places a list of steps; returns the ends that nothing in the list comes after."""
        start = len(self.places)
        before: tuple[str, ...] = () if around.guard is None else (around.guard.entry,)
        for each in listed:
            self.place(each, before, around)
            before = (each.end,)
        awaited = {name for place in self.places[start:] for name in place.after}
        return tuple(each.end for each in listed if each.end not in awaited)

    def place(self, each: Written, before: tuple[str, ...], around: _Around) -> None:
        after = before if each.after is None else self.named(each)
        join: Join = each.join if len(after) > 1 else "all"
        entry = () if around.guard is None or around.guard.entry in after else (around.guard.entry,)
        if each.after is not None and entry:
            if join == "any":  # the first of some, and its entry in any case
                first = Joint(
                    at=each.at,
                    name=f"{each.name}/any",
                    entry=True,
                    after=after,
                    join=join,
                    losers=each.losers,
                    block=around.block,
                )
                self.places.append(first)
                after, join = (first.name,), "all"
            after += entry
        if each.step is not None and not each.otherwise:
            self.places.append(
                replace(
                    each.step,
                    after=after,
                    join=join,
                    losers=each.losers,
                    guard=around.guard,
                    when=each.when,
                    savepoint=each.savepoint,
                    block=around.block,
                )
            )
        else:
            self.branching(each, after, join, around)

    def branching(self, each: Written, after: tuple[str, ...], join: Join, around: _Around) -> None:
        """A block, or a step with an ``else``: between two joints."""
        entry = Joint(
            at=each.at,
            name=f"{each.name}/in",
            entry=True,
            after=after,
            join=join,
            losers=each.losers,
            guard=around.guard,
            when=each.when,
            block=around.block,
        )
        self.places.append(entry)
        start = len(self.places)
        yes, no = Guard(entry.name, True), Guard(entry.name, False)
        inside = around.block
        if each.step is not None:
            step = replace(each.step, after=(entry.name,), guard=yes, savepoint=each.savepoint, block=inside)
            self.places.append(step)
            ends: tuple[str, ...] = (step.name,)
        else:
            self.blocks[each.name] = around.block
            inside = each.name
            ends = self.line(each.steps, _Around(yes, inside))
        ends += self.line(each.otherwise, _Around(no, inside))
        self.places.append(
            Joint(
                at=each.at,
                name=each.end,
                entry=False,
                after=ends,
                guard=around.guard,
                savepoint=None if each.step is not None else each.savepoint,
                members=tuple(place.name for place in self.places[start:] if isinstance(place, Step)),
                block=around.block,
            )
        )

    def named(self, each: Written) -> tuple[str, ...]:
        """What it comes after by name, as far as that is known."""
        at, value = f"{each.at}.after", each.after
        if not isinstance(value, list):
            self.wrong(at, f"after is a list of names of steps, not {shown(value)}")
            return ()
        found: list[str] = []
        for index, name in enumerate(value):
            where = f"{at}[{index}]"
            if not isinstance(name, str):
                self.wrong(where, f"a step is named by a string, not {shown(name)}")
            elif name not in self.ends:
                self.wrong(where, f'unknown step "{name}"{did_you_mean(name, self.ends)}')
            elif self.ends[name] in found:
                self.wrong(where, f'duplicate name "{name}"')
            else:
                found.append(self.ends[name])
        return tuple(found)

    def wrong(self, at: str, fault: str) -> None:
        self.report(at, fault)
        self.sound = False

    def ancestors(self) -> dict[str, frozenset[str]]:
        """The steps that come before each place."""
        waits = {place.name: place.after for place in self.places}
        steps = frozenset(place.name for place in self.places if isinstance(place, Step))
        found: dict[str, frozenset[str]] = {}
        if self.sound:
            try:
                for name in TopologicalSorter(waits).static_order():
                    found[name] = steps.intersection(waits[name]).union(*(found[before] for before in waits[name]))
            except CycleError as error:
                self.cycle(error.args[1][:-1])
            else:
                return found
        return dict.fromkeys(waits, steps)

    def cycle(self, names: list[str]) -> None:
        """Reports a cycle at the first of its steps; joints are called as what they belong to."""
        order = [place.name for place in self.places]
        first = min(range(len(names)), key=lambda index: order.index(names[index]))
        names = names[first:] + names[:first]
        at = self.places[order.index(names[0])].at
        shown = [name.partition("/")[0] for name in [*names, names[0]]]
        walk = [name for index, name in enumerate(shown) if not index or name != shown[index - 1]]
        self.report(f"{at}.after", f"a cycle: {' → '.join(walk if len(walk) > 1 else walk * 2)}")


def _all(written: Sequence[Written]) -> Iterator[Written]:
    """All steps, however deep, as they are written."""
    for each in written:
        yield each
        yield from _all(each.steps)
        yield from _all(each.otherwise)


def _check_optional(places: Sequence[Step | Joint], report: Report) -> None:
    """What cannot be asked of data that nobody waits for."""
    steps = [place for place in places if isinstance(place, Step)]
    optional = {step.name for step in steps if step.optional}
    taken: dict[str, str] = {}
    for step in steps:
        if step.data is not None:
            other = taken.setdefault(step.data.name, step.name)
            if other != step.name and (step.name in optional or other in optional):
                report(f"{step.at}.data", f'step "{other}" is given the data "{step.data.name}" already')
        if step.optional and step.savepoint is not None:
            report(f"{step.at}.savepoint", "nobody waits for optional data: nothing is saved when it arrives")
    for place in places:
        if place.join == "any" and not optional.isdisjoint(place.after):
            name = min(optional.intersection(place.after))
            report(f"{place.at}.join", f'"{name}" is optional data, which nobody waits for: it cannot be the first')
