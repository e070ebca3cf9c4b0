"""A round is over: what was broken, and what each fault cost.  Pure.

Whatever happened to a command is put down to the fault during which it was first asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from msgspec import Struct

from tests.chaos.book import Reign
from tests.chaos.chaos_app import STEPS
from tests.chaos.checker import Answer, Story, judge
from tests.chaos.figures import Row, Strike, gaps, handovers, takeovers
from tests.chaos.services import Entry

BETWEEN: Final = "none"  # the row of what happened before the first fault


class Account(Struct, kw_only=True):
    """All that is known about a round; ``clock`` is the time of day less the monotonic one (s)."""

    strikes: Sequence[Strike]
    answers: Sequence[Answer]
    probes: Mapping[int, Sequence[Answer]]
    stories: Mapping[str, Story]
    reigns: Mapping[int, Sequence[Reign]]
    ledgers: Mapping[str, Sequence[Entry]]
    clock: float


def reckon(account: Account) -> tuple[list[Row], list[str]]:
    """The figures, a row a fault, and every broken promise about a command as a sentence."""
    strikes, everything = account.strikes, _answers(account)
    verdict = judge(everything, account.stories, account.ledgers, {"Order": STEPS, "Probe": ()})
    rows = {name: Row(fault=name) for name in [*(strike.fault for strike in strikes), BETWEEN]}
    for strike in strikes:
        rows[strike.fault].add(_measured(strike, account))
    first: dict[str, str] = {}
    for answer in everything:
        fault = _during(answer.asked, strikes)
        row = rows[fault]
        row.commands += answer.id not in first
        row.answers += 1
        if answer.error:
            row.errors += 1
            row.complaints.append(_sentence(answer))
        first.setdefault(answer.id, fault)
    for id in {fault.id for fault in verdict.lost}:
        rows[first.get(id, BETWEEN)].lost += 1
    for id in {fault.id for fault in verdict.contradicted}:
        rows[first.get(id, BETWEEN)].contradicted += 1
    return list(rows.values()), [*map(str, verdict.lost), *map(str, verdict.contradicted)]


def _answers(account: Account) -> list[Answer]:
    """All of them, probes too, in the order in which they were asked for."""
    probes = (answer for answers in account.probes.values() for answer in answers)
    return sorted([*account.answers, *probes], key=lambda answer: answer.asked)


def _measured(strike: Strike, account: Account) -> Row:
    entries = [entry for ledger in account.ledgers.values() for entry in ledger]
    return Row(
        fault=strike.fault,
        strikes=1,
        takeovers=list(takeovers(strike, account.reigns, account.stories, entries).values()),
        handovers=handovers(strike, account.reigns, account.probes, account.clock),
        gaps=list(gaps(strike, account.probes).values()),
        complaints=strike.complaints,
    )


def _sentence(answer: Answer) -> str:
    lasted = answer.answered - answer.asked
    return f"{answer.call} of {answer.id!r} over {answer.transport} ended with {answer.error} after {lasted:.1f} s"


def _during(at: float, strikes: Sequence[Strike]) -> str:
    """The fault that was on at that time; what follows a fault before the next one belongs to it."""
    return next((strike.fault for strike in reversed(strikes) if strike.began <= at), BETWEEN)
