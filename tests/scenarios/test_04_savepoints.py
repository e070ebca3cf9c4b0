"""4. Savepoints: undone back to it, then tried again, stopped there, or the rest undone as well."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from tests.integration.daemon import Arrival
from tests.scenarios.kit import Stage, definition, effects, step

pytestmark = pytest.mark.asyncio(loop_scope="module")


def saved(form: str, **savepoint: Any) -> tuple[Any, Any]:
    """What to submit, and its payload."""
    if form == "code":
        return "Saved", savepoint
    return definition("saved", step("a", savepoint=savepoint), step("b"), step("c")), {}


def refuse(stage: Stage, *rounds: str) -> set[str]:
    """The last step is refused in these rounds of it."""
    refused = set(rounds)

    def answer(arrival: Arrival) -> tuple[int, Any]:
        return (409, {"message": "no"}) if arrival.key.partition("/")[2] in refused else (200, None)

    stage.parties["stock"].says["/c"] = answer
    return refused


async def test_a_failure_undoes_back_to_it_and_tries_again(calm: Stage, form: str) -> None:
    """What came before the savepoint stays; the next round has keys of its own, so that services do it anew."""
    calm.fresh()
    refuse(calm, "c")
    id = await calm.submit(*saved(form, then="retry", attempts=2))
    await calm.ended(id)
    assert effects(calm, id)["stock"] == ["a", "b", "b/undo", "b#2", "c#2"]


async def test_the_tries_are_bounded_then_the_rest_is_undone(stage: Stage, form: str) -> None:
    """As often as declared, every round undone, then what came before."""
    refuse(stage, "c", "c#2", "c#3")
    id = await stage.submit(*saved(form, then="retry", attempts=2))
    await stage.ended(id, "compensated")
    assert effects(stage, id)["stock"] == ["a", "b", "b/undo", "b#2", "b#2/undo", "b#3", "b#3/undo", "a/undo"]
    assert not stage.parties["stock"].has_been_asked(id, "b#4")


async def test_undo_goes_on_undoing_the_rest(calm: Stage, form: str) -> None:
    """No second try."""
    calm.fresh()
    refuse(calm, "c")
    id = await calm.submit(*saved(form, then="undo"))
    await calm.ended(id, "compensated")
    assert effects(calm, id)["stock"] == ["a", "b", "b/undo", "a/undo"]


@pytest.mark.parametrize("exhausted", [False, True])
async def test_it_may_stop_there(stage: Stage, form: str, exhausted: bool) -> None:
    """In dead_letter, undone back to it and listed; `retry` goes on from there, to the end."""
    refused = refuse(stage, "c", "c#2")
    rule: dict[str, Any] = {"then": "retry", "attempts": 1, "exhausted": "dead_letter"}
    id = await stage.submit(*saved(form, **(rule if exhausted else {"then": "dead_letter"})))
    await stage.until(id, "dead_letter")
    await stage.point("it stops")
    await stage.until(id, "dead_letter")
    done = Counter(effects(stage, id)["stock"])
    assert done["a"] == 1
    assert done["a/undo"] == 0
    assert done["b"] == done["b/undo"] == 1
    letters = [each for each in await stage.done("GET", "/v1/dead-letters") if each["command_id"] == id]
    assert [each["step"] for each in letters] == ["savepoint:a"]
    refused.clear()
    await stage.control(id, "retry", by="ann")
    await stage.ended(id)
    last = "c#3" if exhausted else "c#2"
    assert effects(stage, id)["stock"][-2:] == [last.replace("c", "b"), last]
