"""Do the clients, the log and the ledgers tell the same story?  Pure: three accounts in, sentences about promises out.

A command is **lost** when a client was told that it was accepted (or how it ended) and the log has no end for it.

A command is **contradicted** when two of the accounts cannot both be true:

    clients × log        an end that was told is not the log's end; an answer differs from another client's
    clients × clients    "unknown command" after somebody was told that it was accepted
    ledgers × log        completed, and an effect is missing, undone or refused; ended otherwise, and an effect is live
    log × log            two ends; accepted under two payloads
    ledgers × ledgers    a deed after its own undo
    ledgers × clients    a service was called for a command that is not in the log
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from msgspec import Struct

from tests.chaos.services import Entry

FINAL: Final = frozenset({"completed", "compensated", "failed", "aborted"})


class Answer(Struct, frozen=True, kw_only=True):
    """What a client was told about a command; times are seconds of the monotonic clock.

    ``state`` is the command's as told, or empty where the call ended with the error ``error`` (a code), after all that
    the client library does about errors.  ``via`` is the instance that was asked first.
    """

    id: str
    call: str
    transport: str
    via: int
    asked: float
    answered: float
    state: str = ""
    result: Any = None
    position: str = ""
    failure: str = ""
    error: str = ""

    @property
    def final(self) -> bool:
        return self.state in FINAL


class Ending(Struct, frozen=True):
    """A valid Finished record: the partition's offset, the state, the result, the failure's code."""

    offset: int
    state: str
    result: Any = None
    failure: str = ""


class Story(Struct):
    """What the log has about a command: valid records only."""

    id: str
    partition: int
    submitted: int
    type: str
    fingerprints: set[bytes] = set()
    ends: list[Ending] = []
    outcomes: set[str] = set()
    cancelled: bool = False

    @property
    def position(self) -> str:
        return f"{self.partition}:{self.submitted}"


class Fault(Struct, frozen=True):
    """One broken promise, as a sentence about one command."""

    id: str
    what: str

    def __str__(self) -> str:
        return f"{self.id}: {self.what}"


class Verdict(Struct):
    """Both lists empty is what was promised."""

    lost: list[Fault] = []
    contradicted: list[Fault] = []

    @property
    def kept(self) -> bool:
        return not self.lost and not self.contradicted


def judge(
    answers: Iterable[Answer],
    stories: Mapping[str, Story],
    ledgers: Mapping[str, Sequence[Entry]],
    steps: Mapping[str, Sequence[tuple[str, str]]],
) -> Verdict:
    """``ledgers`` by service; ``steps``: step and service of each type of command."""
    verdict = Verdict()
    told: dict[str, list[Answer]] = defaultdict(list)
    for answer in (answers := list(answers)):
        if answer.state:
            told[answer.id].append(answer)
    for answer in answers:
        if answer.error == "unknown_command" and any(each.answered < answer.asked for each in told[answer.id]):
            verdict.contradicted.append(Fault(answer.id, "was accepted, and unknown to who asked afterwards"))
    books = _books(ledgers)
    for id in told.keys() - stories.keys():
        if told[id]:
            verdict.lost.append(Fault(id, f"a client was told {told[id][0].state}, and the log does not know it"))
    for id in books.keys() - stories.keys():
        verdict.contradicted.append(Fault(id, "services were called for it, and the log does not know it"))
    for id, story in stories.items():
        if not story.ends:
            verdict.lost.append(Fault(id, f"accepted at {story.position}, and it never ended"))
            continue
        faults = [*_against_log(story, told[id]), *_against_ledgers(story, books.get(id, {}), steps[story.type])]
        verdict.contradicted += [Fault(id, fault) for fault in faults]
    return verdict


def _books(ledgers: Mapping[str, Sequence[Entry]]) -> dict[str, dict[str, list[Entry]]]:
    """Command → step → what changed something there, in order."""
    books: dict[str, dict[str, list[Entry]]] = defaultdict(lambda: defaultdict(list))
    for service, entries in ledgers.items():
        for entry in entries:
            steps = books[entry.command]
            if entry.did not in ("again", "busy"):
                steps[f"{service}.{entry.step}"].append(entry)
    return books


def _against_log(story: Story, told: Sequence[Answer]) -> Iterable[str]:
    end = story.ends[0]
    if len(story.ends) > 1:
        yield f"has {len(story.ends)} ends in the log: {', '.join(each.state for each in story.ends)}"
    if len(story.fingerprints) > 1:
        yield "was accepted under two different payloads"
    for answer in told:
        if answer.position and answer.position != story.position:
            yield f"a client was told position {answer.position}, the log has it at {story.position}"
        if answer.final and (answer.state, answer.failure) != (end.state, end.failure):
            yield f"a client was told {answer.state} {answer.failure}, the log says {end.state} {end.failure}"
        if answer.final and answer.result != end.result:
            yield f"a client was told the result {answer.result}, the log says {end.result}"


def _against_ledgers(
    story: Story, book: Mapping[str, Sequence[Entry]], steps: Sequence[tuple[str, str]]
) -> Iterable[str]:
    state = story.ends[0].state
    for name, service in steps:
        deeds = [entry.did for entry in book.get(f"{service}.{name}", ())]
        if deeds.count("done") > 1:
            yield f"{name} took effect {deeds.count('done')} times"
        if deeds and deeds[-1] == "done" and "undone" in deeds:
            yield f"{name} took effect after it was undone"
        live = "done" in deeds and "undone" not in deeds
        if state == "completed" and not live:
            yield f"completed, but the effect of {name} is not there ({', '.join(deeds) or 'never called'})"
        if state != "completed" and live:
            yield f"{state}, but the effect of {name} is live"
        if (name in story.outcomes) != ("done" in deeds):
            recorded = "has" if name in story.outcomes else "has no"
            yield f"the log {recorded} outcome of {name}, its ledger says {', '.join(deeds) or 'nothing'}"
