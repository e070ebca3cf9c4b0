"""11. A failed undo is an ordinary state: listed, retried by policy, run again by `requeue`, or done by hand."""

from __future__ import annotations

from typing import Any

import pytest

from tests.scenarios.kit import Stage, definition, effects, states, step

pytestmark = pytest.mark.asyncio(loop_scope="module")


def undone_twice(name: str) -> dict[str, Any]:
    return step(name, undo={"path": f"/{name}/undo", "retry": {"attempts": 2, "first": "20ms"}})


UNDOING = definition("undoing", undone_twice("a"), undone_twice("b"), step("c"))


async def stuck(stage: Stage, form: str) -> str:
    """A command that was refused at its last step, and whose undo of b was refused as often as its policy allows."""
    stock = stage.parties["stock"]
    stock.says |= {"/c": (409, {"message": "no"}), "/b/undo": (409, {"message": "already shipped"})}
    id = await stage.submit("Undoing" if form == "code" else UNDOING)
    view = await stage.until(id, "dead_letter")
    assert states(view) == {"a": "succeeded", "b": "dead_letter", "c": "failed"}
    asked = stock.keys().count(f"{id}/b/undo")
    assert asked == 2 or (stage.deadly and 2 <= asked <= 6)
    assert not stock.has_been_asked(id, "a/undo")
    return id


async def test_it_is_listed_with_its_reason(stage: Stage, form: str) -> None:
    """As a dead letter, as an undo, with what the service said; explain and the diagram tell it too."""
    id = await stuck(stage, form)
    await stage.point("stuck")
    (letter,) = [each for each in await stage.done("GET", "/v1/dead-letters") if each["command_id"] == id]
    assert (letter["step"], letter["undo"]) == ("b", True)
    assert "already shipped" in str(letter)
    assert "already shipped" in str(await stage.explain(id))
    assert "dead_letter" in await stage.diagram(id)
    stage.parties["stock"].says.pop("/b/undo")
    await stage.control(id, "requeue", step="b", by="ann")
    await stage.ended(id, "compensated")
    assert effects(stage, id)["stock"] == ["a", "b", "b/undo", "a/undo"]


async def test_it_can_be_marked_as_done_by_hand(stage: Stage, form: str) -> None:
    """With who and why in the history; the rest is undone, and the service is asked no more."""
    id = await stuck(stage, form)
    await stage.point("stuck")
    stock = stage.parties["stock"]
    asked = stock.keys().count(f"{id}/b/undo")
    await stage.control(id, "resolve", step="b", by="ann", reason="sent back by post")
    await stage.point("resolved")
    view = await stage.ended(id, "compensated")
    assert states(view)["b"] == "undone"
    assert effects(stage, id)["stock"] == ["a", "b", "a/undo"]
    assert stock.keys().count(f"{id}/b/undo") == asked
    (control,) = [each for each in await stage.history(id) if each["kind"] == "Control"]
    assert (control["operation"], control["step"], control["by"], control["reason"]) == (
        "resolve", "b", "ann", "sent back by post",
    )  # fmt: skip


async def test_what_is_no_failed_undo_cannot_be_resolved(calm: Stage, form: str) -> None:
    """404 for what there is not, 409 for what needs no mending; twice is told as well."""
    calm.fresh()
    id = await stuck(calm, form)
    for path, named, status in (("nobody", "b", 404), (id, "nothing", 404), (id, "a", 409)):
        problem = await calm.refused(
            "POST", f"/v1/commands/{path}/resolve", {"step": named, "reason": "x", "by": "ann"}
        )
        assert problem["status"] == status, problem
    await calm.control(id, "resolve", step="b", reason="x", by="ann")
    await calm.ended(id, "compensated")
    again = await calm.refused("POST", f"/v1/commands/{id}/resolve", {"step": "b", "reason": "x", "by": "ann"})
    assert (again["status"], again["code"]) == (409, "illegal_state")


async def test_an_abort_ends_it_without_the_undo(calm: Stage, form: str) -> None:
    """It is legal here as everywhere."""
    calm.fresh()
    id = await stuck(calm, form)
    assert (await calm.control(id, "abort", by="ann"))["state"] == "aborted"
    assert effects(calm, id)["stock"] == ["a", "b"]
