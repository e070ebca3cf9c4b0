"""How long a fault was felt, from the log, the ledgers and the probes.  Pure.

*Taking over* lasts from the fault to the first call of a step, under an epoch that another instance began after the
fault, for a command that was accepted before it: the first moment at which somebody works on what the former owner
left.  It is counted for each partition that the victim owned and in which it left something to be worked on.

*A gap* is the longest time between two answers of a partition's probe while the fault lasted, whatever it came from:
on a small machine also from processes that start; it holds the probe's own pause, 50 ms.  *A hand-over* is what a
caller of the partition had to wait round the change of its owner, where that was planned: from asking, after the last
answer before the change, to the first answer after it, all refusals and repetitions in between included.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Final

from msgspec import Struct

from tests.chaos.book import Reign
from tests.chaos.checker import Answer, Story
from tests.chaos.services import Entry


class Strike(Struct, kw_only=True):
    """One fault while the load ran: from ``began`` to ``ended`` (seconds, monotonic), the time to recover included.

    ``taken`` is what the victim owned when it was struck: partition → epoch; empty where nothing is to be taken over.
    ``planned``: every change of an owner meanwhile is a hand-over.
    ``complaints``: what went wrong with the fault itself, such as a drain that did not end.
    """

    fault: str
    began: float
    ended: float = math.inf
    taken: dict[int, int] = {}
    planned: bool = False
    complaints: list[str] = []


class Target(Struct, frozen=True, kw_only=True):
    """What was promised, in seconds; None: nothing.  ``may_stay``: perhaps nothing has to be taken over."""

    takeover_p50: float | None = None
    takeover_p99: float | None = None
    handover: float | None = None
    may_stay: bool = False


class Row(Struct, kw_only=True):
    """The figures of one fault over all its strikes; times in seconds, None where there was nothing to measure."""

    fault: str
    strikes: int = 0
    commands: int = 0
    answers: int = 0
    errors: int = 0
    takeovers: list[float] = []
    handovers: list[float] = []
    gaps: list[float] = []
    lost: int = 0
    contradicted: int = 0
    complaints: list[str] = []

    def add(self, other: Row) -> None:
        for name in ("strikes", "commands", "answers", "errors", "lost", "contradicted"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("takeovers", "handovers", "gaps", "complaints"):
            setattr(self, name, [*getattr(self, name), *getattr(other, name)])

    def broken(self, target: Target) -> list[str]:
        """Promises that these figures break, as sentences."""
        found = [f"{self.fault}: {complaint}" for complaint in self.complaints]
        if self.lost or self.contradicted:
            found.append(f"{self.fault}: {self.lost} lost, {self.contradicted} contradicted")
        if self.errors:
            found.append(f"{self.fault}: {self.errors} errors reached a client")
        if self.strikes and not self.takeovers and target.takeover_p99 is not None and not target.may_stay:
            found.append(f"{self.fault}: nothing was seen to be taken over")
        for what, value, bound in (
            ("taking over, p50", percentile(self.takeovers, 50), target.takeover_p50),
            ("taking over, p99", percentile(self.takeovers, 99), target.takeover_p99),
            ("the longest hand-over", max(self.handovers, default=None), target.handover),
        ):
            if bound is not None and value is not None and value > bound:
                found.append(f"{self.fault}: {what}: {value:.2f} s, and {bound:g} s was promised")
        return found


def percentile(values: Sequence[float], percent: float) -> float | None:
    """The smallest value that so many percent of all do not exceed; None of nothing."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def takeovers(
    strike: Strike,
    reigns: Mapping[int, Sequence[Reign]],
    stories: Mapping[str, Story],
    entries: Iterable[Entry],
) -> dict[int, float]:
    """Partition → seconds, see the module.  A partition whose inherited commands were never called is left out."""
    heirs = {}
    for partition, former in strike.taken.items():
        later = [reign.epoch for reign in reigns[partition] if reign.epoch > former]
        if later:
            heirs[partition] = later[0]
    found: dict[int, float] = {}
    for entry in entries:
        story = stories.get(entry.command)
        if story is None or entry.at < strike.began:
            continue
        epoch = heirs.get(story.partition)
        if epoch is not None and story.submitted < epoch <= entry.epoch:
            lasted = entry.at - strike.began
            found[story.partition] = min(lasted, found.get(story.partition, lasted))
    return found


def gaps(strike: Strike, probes: Mapping[int, Sequence[Answer]]) -> dict[int, float]:
    """Partition → the longest time (seconds) without an answer to its probe between the strike's begin and end."""
    found: dict[int, float] = {}
    for partition, answers in probes.items():
        times = [answer.answered for answer in answers if not answer.error]
        inside = [at for at in times if strike.began <= at <= strike.ended]
        before = [at for at in times if at < strike.began][-1:] or [strike.began]
        found[partition] = max(b - a for a, b in pairwise([*before, *inside, strike.ended]))
    return found


def handovers(
    strike: Strike, reigns: Mapping[int, Sequence[Reign]], probes: Mapping[int, Sequence[Answer]], clock: float
) -> list[float]:
    """Seconds, one for each planned change of an owner; ``clock`` is the time of day less the monotonic one (s)."""
    found = []
    for partition, line in reigns.items():
        for reign in line:
            at = reign.at / 1000 - clock
            if not strike.planned or not strike.began <= at <= strike.ended:
                continue
            answers = [answer for answer in probes[partition] if not answer.error]
            last = max((answer.answered for answer in answers if answer.answered <= at), default=-math.inf)
            asked = min((answer.asked for answer in probes[partition] if answer.asked >= last), default=math.inf)
            first = min((answer.answered for answer in answers if answer.answered > at), default=-math.inf)
            if first > asked:
                found.append(first - asked)
    return found


HEAD: Final = (
    *("fault", "strikes", "commands", "answers", "errors", "lost", "contradicted"),
    *("take-over p50", "p99", "n", "hand-over p50", "longest", "n", "longest gap"),
)


def table(rows: Iterable[Row]) -> str:
    """Markdown, seconds with two digits."""
    lines = [HEAD, ("---",) * len(HEAD)]
    for row in rows:
        counts = (row.strikes, row.commands, row.answers, row.errors, row.lost, row.contradicted)
        times = (percentile(row.takeovers, 50), percentile(row.takeovers, 99))
        lines.append(
            (
                row.fault,
                *(str(count) for count in counts),
                *(_seconds(value) for value in times),
                str(len(row.takeovers)),
                _seconds(percentile(row.handovers, 50)),
                _seconds(max(row.handovers, default=None)),
                str(len(row.handovers)),
                _seconds(max(row.gaps, default=None)),
            )
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f} s"
