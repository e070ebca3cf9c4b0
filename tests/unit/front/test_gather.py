"""One answer out of many: pages merged, what is lacking, the cluster as all its members tell it."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest

from coordinator.front import gather
from coordinator.front.lists import parse_cursor
from coordinator.model.command import CommandView, State
from coordinator.transport.base import CommandPage


def view(id: str, second: int, partition: int = 0) -> CommandView:
    return CommandView(
        id=id,
        type="T",
        version=1,
        state=State.RUNNING,
        result=None,
        error=None,
        steps=[],
        waiting_for=[],
        attributes={},
        submitted_at=f"2026-01-02T03:04:{second:02d}.500Z",
        finished_at=None,
        partition=partition,
        position=f"{partition}:1",
    )


def page(views: list[CommandView], limit: int, incomplete: tuple[int, ...] = ()) -> CommandPage:
    """What an instance answers that has these, newest first."""
    return CommandPage(views[:limit], "more" if len(views) > limit else None, incomplete)


def test_pages_are_merged_newest_first() -> None:
    """By time, then by id, whoever they come from."""
    merged = gather.pages([page([view("a", 5), view("b", 1)], 9), page([view("d", 5), view("c", 3)], 9)], 9)
    assert [each.id for each in merged.commands] == ["d", "a", "c", "b"]
    assert merged.next_cursor is None


@pytest.mark.parametrize("limit", [1, 2, 3, 7])
def test_page_after_page_shows_everything_once(limit: int) -> None:
    """The cursor is the last that was shown: each owner goes on below it."""
    owners = [[view(f"{owner}-{n}", 59 - n) for n in range(10)] for owner in "abc"]
    found: list[str] = []
    before: tuple[int, str] | None = None
    while True:
        answers = []
        for owned in owners:
            below = [each for each in owned if before is None or (gather._millis(each.submitted_at), each.id) < before]
            answers.append(page(below, limit))
        merged = gather.pages(answers, limit)
        found += [each.id for each in merged.commands]
        if merged.next_cursor is None:
            break
        before = parse_cursor(merged.next_cursor)
    assert len(found) == 30
    assert len(set(found)) == 30


def test_a_command_that_two_show_is_shown_once() -> None:
    """Its partition moved between the two answers."""
    merged = gather.pages([page([view("a", 1)], 5), page([view("a", 1), view("b", 0)], 5)], 5)
    assert [each.id for each in merged.commands] == ["a", "b"]


def test_a_page_lacks_what_every_answer_lacks() -> None:
    """Each owner lacks the others' partitions; what none speaks for, or none wholly, is named."""
    answers = [page([], 5, (1, 2, 3)), page([], 5, (0, 3)), page([], 5, (0, 1, 2, 3))]
    assert gather.pages(answers, 5).incomplete == (3,)
    assert gather.lacking([]) == ()


def test_services_of_all() -> None:
    """This instance's first, each with the others' view of it; those that only others know follow."""
    rows = gather.services(
        [{"name": "stock", "breaker": "closed"}],
        {"b": [{"name": "stock", "breaker": "open"}], "c": [{"name": "own", "breaker": "closed"}]},
    )
    assert rows == [
        {"name": "stock", "breaker": "closed", "instances": {"b": {"breaker": "open"}}},
        {"name": "own", "breaker": "closed", "instances": {"c": {"breaker": "closed"}}},
    ]


def said(instance: str, *rows: tuple[int, str, int]) -> dict[str, Any]:
    """What an instance says of itself: (partition, state, epoch)."""
    return {
        "name": "orders",
        "instance": instance,
        "address": f"{instance}:1",
        "partitions": [
            {
                "partition": partition,
                "state": state,
                "owner": instance if state == "acting" else None,
                "address": f"{instance}:1" if state == "acting" else None,
                "epoch": epoch,
                "end": 9,
                "lag": 0,
                "since": "2026-01-02T03:04:05.000Z",
            }
            for partition, state, epoch in rows
        ],
        "commands": {"under_way": 2, "slots": 1, "max": 10},
    }


def described(*instances: str) -> dict[str, Any]:
    members = [{"instance": each, "address": f"{each}:1", "state": "up"} for each in instances]
    return {"generation": 4, "instances": members, "heirs": {0: "a", 1: "b", 2: "a"}}


def test_the_cluster_is_what_its_owners_say() -> None:
    """The owner's row for each partition; where nobody acts, the state that the asked instance knows, and no owner."""
    here = said("a", (0, "acting", 5), (1, "no_owner", 2), (2, "starting", -1))
    told = gather.cluster(
        here, {"b": said("b", (0, "no_owner", 1), (1, "acting", 8), (2, "no_owner", 3))}, described("a", "b", "c")
    )
    assert [(row["owner"], row["epoch"], row["state"]) for row in told["partitions"]] == [
        ("a", 5, "acting"),
        ("b", 8, "acting"),
        (None, -1, "starting"),
    ]
    assert [(row["instance"], row["partitions"], row["commands"]) for row in told["instances"]] == [
        ("a", [0], 2),
        ("b", [1], 2),
        ("c", [], None),
    ]
    assert told["commands"] == {"under_way": 4, "slots": 2, "max": 20}
    assert (told["instance"], told["generation"]) == ("a", 4)


def test_of_two_who_act_the_newer_epoch_is_right() -> None:
    """The other has not noticed yet that it was fenced."""
    told = gather.cluster(said("a", (0, "acting", 5)), {"b": said("b", (0, "acting", 8))}, described("a", "b"))
    assert [row["owner"] for row in told["partitions"]] == ["b"]
    assert [each["partitions"] for each in islice(told["instances"], 2)] == [[], [0]]


def decision(id: str, step: str, since: str) -> dict[str, Any]:
    return {"command_id": id, "step": step, "since": since}


def test_decisions_come_oldest_first_and_once() -> None:
    """Whoever tells of them; two of one command are two."""
    late, early = decision("a", "approve", "2026-01-02T03:04:05.000Z"), decision("b", "pay", "2026-01-01T00:00:00.000Z")
    other = decision("a", "pay", "2026-01-02T03:04:05.000Z")
    assert gather.decisions([other, late, early, dict(late)]) == [early, late, other]


def test_schedules_come_by_name_and_once() -> None:
    """A partition that has just moved is told of by two."""
    rows = [{"name": "b"}, {"name": "a", "state": "active"}, {"name": "a", "state": "active"}]
    assert gather.schedules(rows) == [{"name": "a", "state": "active"}, {"name": "b"}]
