"""One operation on many commands: by their ids, or on all that a filter finds.

What a filter finds is read to its end before anything is asked of a command: acting on one moves it out of the very
list that is being read, and pages would shift under the reader.  A command that has changed since then is refused by
the server, whose table of states is the only judge; the same table tells a dry run what would be refused.

Each command ends in one line:

    done          the request is recorded
    refused       the server said no, and why; nothing was changed
    unknown       the connection broke before the answer: look at the command, or ask again
    not reached   nobody answered; nothing more is asked after that
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import click

from coordinator.cli.api import Api, Lost, command_path
from coordinator.cli.errors import Refused, Unreachable
from coordinator.cli.options import F
from coordinator.cli.output import Row, cell, print_json, print_rows
from coordinator.cli.selection import Filter, pages, warn_of_missing
from coordinator.model.command import FINAL, Operation, State

AT_ONCE = 8
PATIENCE_S = 10.0  # for one command: a partition that changes hands refuses for about a second
PAUSE_S = 0.5
ENDED = frozenset(state.value for state in FINAL)


class Target(NamedTuple):
    """A command (and one of its ``step``s) as it was found; ``type`` and ``state`` are empty where nobody has asked."""

    id: str
    type: str = ""
    state: str = ""
    step: str = ""


class Ended(NamedTuple):
    """What became of one request."""

    target: Target
    status: str
    fault: Refused | Unreachable | None = None


Ask = Callable[[Target], Row]
"""Asks for one operation; returns the command as it is then."""


def bulk_options(verb: F) -> F:
    """``--limit``, ``--dry-run`` and ``--yes``."""
    for option in (
        click.option("--yes", "-y", is_flag=True, help="Do not ask for confirmation."),
        click.option("--dry-run", is_flag=True, help="Only list what would be asked of which; change nothing."),
        click.option("--limit", type=click.IntRange(min=1), help="Of what the filter finds, the newest so many."),
    ):
        verb = option(verb)
    return verb


# ---------------------------------------------------------------- choosing


def chosen(api: Api, wanted: Filter, limit: int | None) -> list[Target]:
    """What the filter finds, newest first.  Commands that have ended are left out, unless their state is asked for:
    no operation is legal there."""
    found: dict[str, Target] = {}
    missing: set[int] = set()
    for page in pages(api, wanted):
        missing.update(page.get("incomplete") or ())
        for command in page["commands"]:
            if wanted.state is not None or command["state"] not in ENDED:
                found.setdefault(command["id"], Target(command["id"], command["type"], command["state"]))
        if limit is not None and len(found) >= limit:
            break
    warn_of_missing(missing)
    return list(found.values())[:limit]


def looked_up(api: Api, ids: Sequence[str]) -> list[Target]:
    """The commands of these ids as they are now; an id that nobody knows is told, and left out."""
    found = []
    for id in ids:
        try:
            view = api.get(command_path(id))
        except Refused as refusal:
            if refusal.status != 404:
                raise
            click.echo(f"{refusal.code}: {refusal}", err=True)
        else:
            found.append(Target(id, view["type"], view["state"]))
    return found


# ---------------------------------------------------------------- telling what would be done


def rehearse(targets: Sequence[Target], operation: Callable[[Target], Operation], as_json: bool) -> None:
    """The dry run: each target, and whether the operation is legal in its state."""
    rows = [
        {
            "id": target.id,
            "type": target.type,
            **({"step": target.step} if any(each.step for each in targets) else {}),
            "state": target.state,
            "operation": operation(target).value,
            "legal": _legal(target.state, operation(target)),
        }
        for target in targets
    ]
    if as_json:
        for row in rows:
            print_json(row)
        return
    print_rows([{**row, "legal": "yes" if row["legal"] else "no"} for row in rows], nothing="nothing matches")
    if rows:
        click.echo(f"legal for {sum(bool(row['legal']) for row in rows)} of {len(rows)}; nothing was changed", err=True)


def _legal(state: str, operation: Operation) -> bool:
    """As the server would judge; a state that a newer server has and this program does not know is none of ours."""
    from coordinator.engine.transitions import legal

    twice = operation is Operation.PAUSE and state == State.PAUSED  # which changes nothing, and is no fault
    return twice or (state in set(State) and legal(State(state), operation))


def confirmed(targets: Sequence[Target], verb: str, noun: str, yes: bool) -> bool:
    """Whether to go on: asks where a person can answer."""
    if yes or not targets or not sys.stdin.isatty():
        return True
    states = ", ".join(f"{count} {state}" for state, count in Counter(each.state for each in targets).most_common())
    plural = "" if len(targets) == 1 else "s"
    answer = click.confirm(f"{verb} {len(targets)} {noun}{plural} ({states})?", err=True)
    if not answer:
        click.echo("nothing was changed", err=True)
    return answer


# ---------------------------------------------------------------- doing it


def perform(targets: Sequence[Target], ask: Ask, as_json: bool) -> int:
    """Asks for each, a few at a time, and tells how it ended, in order; returns the exit code."""
    count: Counter[str] = Counter()
    if not targets:
        click.echo("nothing matches", err=True)
    for ended in _each(targets, ask):
        count[ended.status] += 1
        _tell(ended, as_json)
    if targets:
        click.echo(", ".join(f"{number} {status}" for status, number in count.items()), err=True)
    return 3 if count["not reached"] else 1 if count.total() > count["done"] else 0


def _each(targets: Iterable[Target], ask: Ask) -> Iterator[Ended]:
    gone = threading.Event()
    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        yield from pool.map(lambda target: _one(target, ask, gone), targets)
    finally:
        pool.shutdown(cancel_futures=True)  # interrupted: what was not begun never is


def _one(target: Target, ask: Ask, gone: threading.Event) -> Ended:
    until = time.monotonic() + PATIENCE_S
    while True:
        if gone.is_set():
            return Ended(target, "not reached")
        try:
            view = ask(target)
        except Lost as fault:
            return Ended(target, "unknown", fault)
        except Unreachable as fault:
            gone.set()
            return Ended(target, "not reached", fault)
        except Refused as refusal:
            if refusal.problem.get("in_doubt"):
                return Ended(target, "unknown", refusal)
            pause = refusal.retry_after_s or PAUSE_S
            if not refusal.retryable or time.monotonic() + pause > until:
                return Ended(target, "refused", refusal)
            time.sleep(pause)
        else:
            return Ended(target._replace(type=view["type"], state=view["state"]), "done")


def _tell(ended: Ended, as_json: bool) -> None:
    target, fault = ended.target, ended.fault
    step = {"step": target.step} if target.step else {}
    if as_json:
        error = None if fault is None else {"code": getattr(fault, "code", "unreachable"), "detail": str(fault)}
        row: dict[str, Any] = {"id": target.id, "type": target.type or None, **step, "state": target.state or None}
        print_json({**row, "status": ended.status.replace(" ", "_"), "error": error})
        return
    why = f"{fault.code}: {fault}" if isinstance(fault, Refused) else str(fault or "")
    parts = [target.id, target.step, target.type, target.state, why]
    click.echo("  ".join([f"{ended.status:<11}", *(cell(part) for part in parts if part)]))
