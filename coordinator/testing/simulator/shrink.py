"""Makes a failing run smaller: fewer kinds of fault, fewer commands, an earlier end of the trouble.

A smaller run is another run: what is left draws the same chances, but meets them at other moments.  So it is tried, and
kept if it breaks a promise of the same kind.  Greedy, and bounded by a number of runs: a person reads what is left.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final

from msgspec.structs import replace

from coordinator.log.owned import OwnedPartition
from coordinator.testing.simulator.plan import FAULTS, Cut, plan
from coordinator.testing.simulator.world import Report, simulate

RUNS_MAX: Final = 120
_NAMES: Final = re.compile(r"\bc\d+-\d+\S*|\bm\d+\.\d+|\d+|\[.*?\]|\(.*\)")


def shrink(failing: Report, *, owned: type[OwnedPartition] = OwnedPartition, runs_max: int = RUNS_MAX) -> Report:
    """The smallest run found that breaks a promise of the same kind; ``failing`` itself if there is none."""
    best, kind, runs = failing, _kind(failing), 0
    smaller = True
    while smaller and runs < runs_max:
        smaller = False
        for cut in _smaller(best):
            runs += 1
            report = simulate(best.seed, cut, owned=owned)
            if report.violations and _kind(report) == kind:
                best, smaller = report, True
                break
            if runs >= runs_max:
                break
    return best


def _kind(report: Report) -> str:
    """The first broken promise without its names and numbers."""
    return _NAMES.sub("", report.violations[0])


def _smaller(report: Report) -> Iterator[Cut]:
    """What may be left out next, the most first."""
    cut, planned = report.cut, plan(report.seed, report.cut)
    numbers = tuple(order.number for order in planned.orders)
    halves: list[Callable[[], tuple[int, ...]]] = []
    if len(numbers) > 3:
        halves = [lambda: numbers[: len(numbers) // 2], lambda: numbers[len(numbers) // 2 :]]
    for half in halves:
        yield replace(cut, commands=half())
    for fault in FAULTS:
        if fault in planned.faults:
            yield replace(cut, without=(*cut.without, fault))
    if len(numbers) > 1:
        for number in numbers:
            yield replace(cut, commands=tuple(each for each in numbers if each != number))
    for part in (0.5, 0.8):
        if planned.until > 0.5:
            yield replace(cut, until=round(planned.until * part, 2))


def command_line(report: Report) -> str:
    """The command that runs it again."""
    cut = report.cut
    words = ["python -m coordinator.testing.simulator --replay", str(report.seed)]
    if cut.commands is not None:
        words += ["--commands", ",".join(map(str, cut.commands))]
    if cut.without:
        words += ["--without", ",".join(cut.without)]
    if cut.until is not None:
        words += ["--until", str(cut.until)]
    return " ".join(words)
