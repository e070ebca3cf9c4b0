"""The audit: do the services' own ledgers agree with what the coordinator said became of every order?

A pure function over two independent sources.  The coordinator told its client one final state for each order; the
services wrote down what they did, without knowing of each other.  For every order:

    state         each service's ledger must hold                                in all
    ----------    -----------------------------------------------------------    -----------------------------
    completed     done once, never undone, nothing refused                        done by all
    compensated   done once and then undone once, or nothing                      refused by exactly one, some undone
    failed        nothing done                                                    refused by exactly one

Anything else is a Fault: a missing effect, a double one, half an order, an order undone that nobody refused, an order
that nobody submitted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

from coordinator.demo.ledger import Action, Entry


class Fault(Struct, frozen=True):
    """One contradiction, as a sentence about one order."""

    order: str
    what: str

    def __str__(self) -> str:
        return f"{self.order}: {self.what}"


Book = Mapping[str, Sequence[Action]]  # service → what it did about one order, in its own order


def audit(submitted: Iterable[str], states: Mapping[str, str], ledgers: Mapping[str, Sequence[Entry]]) -> list[Fault]:
    """All contradictions between final ``states`` (by order) and ``ledgers`` (by service); empty when all is well."""
    books = _by_order(ledgers)
    nothing: Book = dict.fromkeys(ledgers, ())
    known = list(submitted)
    faults = [
        Fault(order, what) for order in known for what in _faults_of(states.get(order), books.get(order, nothing))
    ]
    faults += [Fault(order, "is in a ledger, but nobody submitted it") for order in sorted(books.keys() - set(known))]
    return faults


def _by_order(ledgers: Mapping[str, Sequence[Entry]]) -> dict[str, dict[str, list[Action]]]:
    books: dict[str, dict[str, list[Action]]] = defaultdict(lambda: {service: [] for service in ledgers})
    for service, entries in ledgers.items():
        for entry in entries:
            books[entry.order][service].append(entry.action)
    return books


def _faults_of(state: str | None, book: Book) -> Iterable[str]:
    if state is None:
        yield "has no final state"
        return
    rules = _RULES.get(state)
    if rules is None:
        yield f"ended {state}, which is no end that this demo knows"
        return
    for service, actions in book.items():
        yield from _shape_faults(service, actions)
    yield from rules(book)


def _shape_faults(service: str, actions: Sequence[Action]) -> Iterable[str]:
    """What no service's book may hold, however the order ended."""
    done, undone = actions.count("done"), actions.count("undone")
    if done > 1:
        yield f"{service} did it {done} times"
    if undone > 1:
        yield f"{service} undid it {undone} times"
    if undone and (not done or actions.index("undone") < actions.index("done")):
        yield f"{service} undid what it had not done"


def _completed(book: Book) -> Iterable[str]:
    for service, actions in book.items():
        if "refused" in actions:
            yield f"completed, though {service} refused it"
        elif "done" not in actions:
            yield f"completed, but {service} never did its part"
        elif "undone" in actions:
            yield f"completed, but {service} undid its part"


def _compensated(book: Book) -> Iterable[str]:
    yield from _refused_once("compensated", book)
    for service, actions in book.items():
        if actions.count("done") > actions.count("undone"):
            yield f"compensated, but what {service} did still stands"
    if not any("undone" in actions for actions in book.values()):
        yield "compensated, but nothing was undone"


def _failed(book: Book) -> Iterable[str]:
    yield from _refused_once("failed", book)
    for service, actions in book.items():
        if "done" in actions:
            yield f"failed with nothing done, but {service} did its part"


def _refused_once(state: str, book: Book) -> Iterable[str]:
    refusals = sum(actions.count("refused") for actions in book.values())
    if refusals != 1:
        yield f"{state}, and {refusals} services refused it"


_RULES = {"completed": _completed, "compensated": _compensated, "failed": _failed}
