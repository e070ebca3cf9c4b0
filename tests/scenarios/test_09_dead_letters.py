"""9. Dead-letter mode: nothing is undone, other branches finish, `requeue` goes on to the end; pauses after errors."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.daemon import Arrival
from tests.scenarios.kit import Stage, definition, effects, states, step

pytestmark = pytest.mark.asyncio(loop_scope="module")

LETTERS = definition(
    "letters",
    step("a", body={"given": "old"}),
    {"name": "branch", "after": [], "steps": [step("b"), step("c")]},
    step("z", after=["a", "branch"], body="${steps.c}"),
    on_failure="dead_letter",
    result="${steps.c.id}",
)


def paused(form: str, *, resumes: bool = False) -> Any:
    if form == "code":
        return "PausedForAWhile" if resumes else "Paused"
    rule = {"errors": 3, "resume_after": "1s"} if resumes else {"errors": 3}
    return definition("paused", step("a", retry={"attempts": 50, "first": "20ms", "max": "20ms"}), pause_after=rule)


async def letters(stage: Stage, id: str) -> list[dict[str, Any]]:
    return [each for each in await stage.done("GET", "/v1/dead-letters") if each["command_id"] == id]


async def parked(stage: Stage, form: str) -> str:
    """A command whose step a was refused, when all else that can be done is done."""
    stage.parties["stock"].says["/a"] = (422, {"message": "no street"})
    id = await stage.submit("Letters" if form == "code" else LETTERS)
    view = await stage.until(id, lambda view: view["state"] == "dead_letter" and states(view).get("c") == "succeeded")
    assert states(view)["a"] == "dead_letter"
    return id


@pytest.mark.parametrize("given", ["old", "new"])
async def test_a_requeue_goes_on_to_the_end_join_included(stage: Stage, form: str, given: str) -> None:
    """The other branch has finished, the join has waited, nothing was undone; with the old input or a new one."""
    id = await parked(stage, form)
    await stage.point("parked")
    assert sorted(effects(stage, id)["stock"]) == ["b", "c"]
    (letter,) = await letters(stage, id)
    assert (letter["step"], letter["service"]) == ("a", "stock")
    assert "no street" in str(letter)
    assert not stage.parties["stock"].has_been_asked(id, "z")
    stage.parties["stock"].says.pop("/a")
    body = {"step": "a", "by": "ann", "reason": "mended", **({"input": {"given": "new"}} if given == "new" else {})}
    await stage.control(id, "requeue", **body)
    view = await stage.ended(id)
    assert view["result"] == "c"
    assert stage.parties["stock"].asked(id, "a") == {"given": given}
    assert sorted(effects(stage, id)["stock"]) == ["a", "b", "c", "z"]
    assert await letters(stage, id) == []
    (control,) = [each for each in await stage.history(id) if each["kind"] == "Control"]
    assert (control["operation"], control["by"], control["reason"]) == ("requeue", "ann", "mended")


async def test_what_is_refused_again_is_listed_again(calm: Stage, form: str) -> None:
    """Once, however often."""
    calm.fresh()
    id = await parked(calm, form)
    for n in range(2, 4):
        await calm.control(id, "requeue", step="a", by="ann")
        await calm.parties["stock"].until(lambda n=n: calm.parties["stock"].keys().count(f"{id}/a") == n)  # type: ignore[misc]
        await calm.until(id, "dead_letter")
        assert [each["step"] for each in await letters(calm, id)] == ["a"]
    await calm.control(id, "cancel", by="ann")
    await calm.ended(id, "compensated")
    assert sorted(effects(calm, id)["stock"]) == ["b", "b/undo", "c", "c/undo"]


async def test_what_cannot_be_requeued_is_refused(calm: Stage, form: str) -> None:
    """404 for who and what there is not, 409 for what is no dead letter."""
    calm.fresh()
    id = await parked(calm, form)
    for path, named, status in (("nobody", "a", 404), (id, "nothing", 404), (id, "b", 409)):
        problem = await calm.refused("POST", f"/v1/commands/{path}/requeue", {"step": named, "by": "ann"})
        assert problem["status"] == status, problem
    await calm.control(id, "cancel")
    await calm.ended(id, "compensated")
    problem = await calm.refused("POST", f"/v1/commands/{id}/requeue", {"step": "a", "by": "ann"})
    assert (problem["status"], problem["code"]) == (409, "illegal_state")


async def test_errors_are_counted_whatever_they_say_across_restarts(stage: Stage, form: str) -> None:
    """Three pause it until an operator resumes it; then it may have three more."""
    stock = stage.parties["stock"]
    texts = iter(range(1000))
    broken = [True]

    def answer(arrival: Arrival) -> tuple[int, Any]:
        return (409, {"message": f"error {next(texts)}"}) if broken else (200, None)

    stock.says["/a"] = answer
    id = await stage.submit(paused(form))
    await stage.until(id, "paused")
    await stage.point("paused")
    assert (await stage.view(id))["state"] == "paused"
    asked = stock.keys().count(f"{id}/a")
    assert asked == 3 or (
        stage.deadly and asked >= 3
    )  # an answer that died with its asker is no error that was counted
    pauses = [each for each in await stage.history(id) if each["kind"] == "Control"]
    assert [(each["operation"], each["auto"]) for each in pauses] == [("pause", True)]
    await stage.control(id, "resume", by="ann")
    await stage.until(id, "paused")
    broken.clear()
    await stage.control(id, "resume", by="ann")
    await stage.ended(id)
    assert effects(stage, id)["stock"] == ["a"]


async def test_it_resumes_by_itself_where_declared(stage: Stage, form: str) -> None:
    """After the interval, and it is told apart from an operator's resume."""
    stage.parties["stock"].says["/a"] = (409, None)
    id = await stage.submit(paused(form, resumes=True))
    await stage.until(id, "paused")
    await stage.point("paused")
    stage.parties["stock"].says.pop("/a")
    await stage.ended(id)
    operations = [each for each in await stage.history(id) if each["kind"] == "Control"]
    assert [(each["operation"], each["auto"]) for each in operations] == [("pause", True), ("resume", True)]


async def test_an_operator_s_pause_is_never_resumed_by_itself(calm: Stage, form: str) -> None:
    """Not after the interval either; another command's own pause is over by then."""
    calm.fresh()
    calm.parties["stock"].held.add("/a")
    mine = await calm.submit(paused(form, resumes=True))
    await calm.parties["stock"].until(lambda: calm.parties["stock"].has_been_asked(mine, "a"))
    await calm.control(mine, "pause", by="ann")
    calm.fresh()
    calm.parties["stock"].changed.set()
    calm.parties["stock"].says["/a"] = (409, None)
    other = await calm.submit(paused(form, resumes=True))
    await calm.until(other, "paused")
    calm.fresh()
    await calm.ended(other)
    assert (await calm.view(mine))["state"] == "paused"
    await calm.control(mine, "resume", by="ann")
    await calm.ended(mine)
