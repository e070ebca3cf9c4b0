"""One answer out of many: what the owners of the partitions say, put together.

Plain functions of answers; who asks, and who did not answer, is `front.asking`'s affair.  An instance speaks for the
partitions that it acts for, and says which it does not (``incomplete``): so what the whole lacks is what every single
answer lacks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from operator import itemgetter
from typing import Any

from coordinator.front.lists import make_cursor
from coordinator.model.command import CommandView
from coordinator.transport.base import CommandPage

Row = dict[str, Any]


def pages(answers: Sequence[CommandPage], limit: int) -> CommandPage:
    """The newest ``limit`` commands of all pages, each of which has the newest ``limit`` of its own below one cursor.

    A command that two instances show (its partition moved between their answers) is taken once.
    """
    found: dict[str, CommandView] = {}
    for answer in answers:
        for view in answer.commands:
            found.setdefault(view.id, view)
    newest = sorted(found.values(), key=lambda view: (view.submitted_at, view.id), reverse=True)
    more = len(newest) > limit or any(answer.next_cursor for answer in answers)
    shown = newest[:limit]
    cursor = make_cursor(_millis(shown[-1].submitted_at), shown[-1].id) if more and shown else None
    return CommandPage(shown, cursor, lacking(answer.incomplete for answer in answers))


def _millis(at: str) -> int:
    return round(datetime.fromisoformat(at).timestamp() * 1000)


def lacking(answers: Iterable[Iterable[int]]) -> tuple[int, ...]:
    """The partitions that none of the answers speaks for, or none wholly."""
    sets = [frozenset(each) for each in answers]
    return tuple(sorted(frozenset.intersection(*sets))) if sets else ()


def decisions(items: Iterable[Row]) -> list[Row]:
    """Decisions that are waited for, the oldest first."""
    found = _once(items, lambda each: (each["command_id"], each["step"]))
    return sorted(found, key=lambda each: (each["since"], each["command_id"], each["step"]))


def schedules(items: Iterable[Row]) -> list[Row]:
    """Schedules by name."""
    return sorted(_once(items, itemgetter("name")), key=itemgetter("name"))


def _once(items: Iterable[Row], key: Callable[[Row], Any]) -> Iterable[Row]:
    """What two instances show (its partition moved between their answers) is taken once."""
    found: dict[Any, Row] = {}
    for each in items:
        found.setdefault(key(each), each)
    return found.values()


def services(here: Sequence[Row], elsewhere: Mapping[str, Sequence[Row]]) -> list[Row]:
    """This instance's services, each with what it looks like from the other ``instances``; then those that only they
    have (a command's own functions are known where they have run)."""
    names = {row["name"]: dict(row) for row in here}
    for rows in elsewhere.values():
        for row in rows:
            names.setdefault(row["name"], dict(row))
    for row in names.values():
        row["instances"] = {}
    for instance, rows in elsewhere.items():
        for row in rows:
            names[row["name"]]["instances"][instance] = {key: value for key, value in row.items() if key != "name"}
    return list(names.values())


def cluster(here: Row, answers: Mapping[str, Row], group: Row) -> Row:
    """The whole group, from what each instance says of itself.

    ``here``: this instance's answer, ``answers``: the others' by instance, ``group``: what the membership knows
    (`routes.Directory.describe`): also of those that cannot be asked.
    """
    said = {here["instance"]: here, **answers}
    members = {each["instance"]: dict(each) for each in group["instances"]}
    for instance, answer in said.items():
        members.setdefault(instance, {"instance": instance, "address": answer["address"], "state": "up"})
    owners: dict[int, Row] = {}
    for answer in said.values():
        for row in answer["partitions"]:
            known = owners.get(row["partition"])
            if row["state"] == "acting" and (known is None or known["epoch"] < row["epoch"]):
                owners[row["partition"]] = row  # two say so while one has not noticed: the newer epoch is right
    heirs = group["heirs"]
    return {
        **here,
        "instances": [_instance(member, said.get(member["instance"]), owners) for member in members.values()],
        "partitions": [
            {**(owners.get(row["partition"]) or _nobodys(row)), "heir": heirs.get(row["partition"])}
            for row in here["partitions"]
        ],
        "commands": {
            key: sum(answer["commands"][key] for answer in said.values()) for key in ("under_way", "slots", "max")
        },
        "generation": group["generation"],
    }


def _instance(member: Row, answer: Row | None, owners: Mapping[int, Row]) -> Row:
    instance = member["instance"]
    owned = sorted(partition for partition, row in owners.items() if row["owner"] == instance)
    return {**member, "partitions": owned, "commands": None if answer is None else answer["commands"]["under_way"]}


def _nobodys(row: Row) -> Row:
    """A partition that nobody who answered acts for: what this instance last knew of it is no owner's word."""
    state = "no_owner" if row["state"] == "acting" else row["state"]
    return {**row, "state": state, "owner": None, "address": None, "lag": None, "since": None, "filled": False}
