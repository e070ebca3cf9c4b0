"""2. Fork and join of any depth: all, any, conditions inside of branches, and undo across them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from tests.scenarios.kit import Stage, definition, effects, states, step, undone

pytestmark = pytest.mark.asyncio(loop_scope="module")

NESTED = definition(
    "nested",
    step("a"),
    step("b", after=["a"]),
    step("c", after=["a"]),
    step("d", after=["a"]),
    step("e", after=["c", "d"]),
    step("z", after=["b", "e"]),
)
BEFORE = {"b": "a", "c": "a", "d": "a", "e": "cd", "z": "be"}
"""What each step of `NESTED` comes after."""


def first(losers: str = "undo") -> dict[str, Any]:
    z = step("z", after=["fast", "slow"], join="any", losers=losers)
    result = "${steps.fast == null ? steps.slow.id : steps.fast.id}"
    return definition("first", step("fast"), step("slow", after=[]), z, result=result)


GIFTS = definition(
    "gifts",
    step("pack"),
    {"name": "wrapped", "after": [], "steps": [step("wrap", when="payload.gift"), step("card")]},
    step("z", after=["pack", "wrapped"]),
)


def timeline(stage: Stage, id: str) -> list[str]:
    """What the service was asked for, in the order in which it was asked first."""
    return [key.partition("/")[2] for key in dict.fromkeys(stage.parties["stock"].keys()) if key.startswith(f"{id}/")]


async def test_a_join_of_any_depth_goes_on_once(stage: Stage, form: str) -> None:
    """Each step after those that it waits for, each once, the last one last."""
    id = await stage.submit("Nested" if form == "code" else NESTED)
    await stage.ended(id)
    asked = timeline(stage, id)
    assert sorted(asked) == ["a", "b", "c", "d", "e", "z"]
    for name, before in BEFORE.items():
        assert all(asked.index(each) < asked.index(name) for each in before)
    assert Counter(effects(stage, id)["stock"]) == Counter("abcdez")


async def test_undo_across_nested_forks_is_in_reverse_and_once(stage: Stage, form: str) -> None:
    """Every recorded outcome is undone once, last first; no step begins after the undo of what it comes after."""
    stage.parties["stock"].says["/e"] = (409, {"message": "no"})
    id = await stage.submit("Nested" if form == "code" else NESTED)
    view = await stage.ended(id, "compensated")
    assert view["error"]["step"] == "e"
    history = await stage.history(id)
    done = [record["step"] for record in history if record["kind"] == "Outcome"]
    assert sorted(done) == ["a", "b", "c", "d"]
    assert undone(history) == done[::-1]
    asked = timeline(stage, id)
    for name, before in BEFORE.items():
        for each in before:
            assert name not in asked or f"{each}/undo" not in asked or asked.index(name) < asked.index(f"{each}/undo")
    assert Counter(effects(stage, id)["stock"]) == Counter([*done, *(f"{each}/undo" for each in done)])
    assert "z" not in asked


async def test_a_failure_alone_neither_continues_nor_fails_a_join_any(calm: Stage, form: str) -> None:
    """While another may succeed it is waited for; then the step after the join runs once."""
    calm.fresh()
    stock = calm.parties["stock"]
    stock.says["/fast"] = (409, None)
    stock.held.add("/slow")
    id = await calm.submit("First" if form == "code" else first())
    view = await calm.until(id, lambda view: states(view).get("fast") == "failed")
    assert (view["state"], states(view).get("z", "pending")) == ("running", "pending")
    stock.release("/slow")
    view = await calm.ended(id)
    assert view["result"] == "slow"
    assert effects(calm, id)["stock"] == ["slow", "z"]


async def test_the_first_success_wins_and_the_loser_is_undone(stage: Stage, form: str) -> None:
    """Whoever it is; what has lost is resolved and undone, and the step after the join runs once."""
    id = await stage.submit("First" if form == "code" else first())
    view = await stage.ended(id)
    won = view["result"]
    (lost,) = {"fast", "slow"} - {won}
    done = Counter(effects(stage, id)["stock"])
    assert done - Counter([lost, f"{lost}/undo"]) == Counter([won, "z"])
    assert done[lost] == done[f"{lost}/undo"]


async def test_losers_stay_where_declared(calm: Stage, form: str) -> None:
    """They are resolved all the same: nothing is left in doubt."""
    calm.fresh()
    calm.parties["stock"].held.add("/slow")
    id = await calm.submit("First", {"keep": True}) if form == "code" else await calm.submit(first("keep"))
    await calm.until(id, lambda view: states(view).get("z") == "succeeded")
    calm.parties["stock"].release("/slow")
    view = await calm.ended(id)
    assert view["result"] == "fast"
    assert sorted(effects(calm, id)["stock"]) == ["fast", "slow", "z"]


async def test_all_fail_and_so_does_the_join(calm: Stage, form: str) -> None:
    """With the first failure's reason."""
    calm.fresh()
    calm.parties["stock"].says |= {"/fast": (409, {"message": "sold out"}), "/slow": (410, {"message": "gone"})}
    calm.parties["stock"].held.add("/slow")
    id = await calm.submit("First" if form == "code" else first())
    await calm.until(id, lambda view: states(view).get("fast") == "failed")
    calm.parties["stock"].release("/slow")
    view = await calm.ended(id, "failed")
    assert (view["error"]["step"], view["error"]["message"]) == ("fast", "sold out")
    assert effects(calm, id) == {}


@pytest.mark.parametrize("gift", [True, False])
async def test_a_join_counts_what_was_skipped(calm: Stage, form: str, gift: bool) -> None:
    """A condition inside a branch leaves a step out; the join goes on, once."""
    calm.fresh()
    id = await calm.submit("Gifts" if form == "code" else GIFTS, {"gift": gift})
    view = await calm.ended(id)
    assert Counter(effects(calm, id)["stock"]) == Counter(["pack", *["wrap"] * gift, "card", "z"])
    if form == "json":
        assert states(view)["wrap"] == ("succeeded" if gift else "skipped")
