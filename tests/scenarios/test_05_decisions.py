"""5. Human decisions: listed with their input at once, by who may, once, or by the clock."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.scenarios.kit import Stage, definition, effects, outcomes, step

pytestmark = pytest.mark.asyncio(loop_scope="module")

TWO = definition(
    "two",
    step("a"),
    {"name": "ann", "decision": {"input": {"amount": 5}, "roles": ["boss", "owner"]}},
    {"name": "bob", "after": ["a"], "decision": {"input": "please"}},
    step("z", after=["ann", "bob"], body={"by": ["${steps.ann.by}", "${steps.bob.by}"]}),
    result=["${steps.ann.comment}", "${steps.bob.comment}"],
)


def one(form: str, **options: Any) -> tuple[Any, Any]:
    if form == "code":
        return "OneDecision", {("rejected" if key == "on_reject" else key): value for key, value in options.items()} | (
            {"rejected": "return"} if "on_reject" in options else {}
        )
    ok = {"name": "ok", "decision": options or True}
    ways = step("yes", when="steps.ok.approve", **{"else": [step("no")]})
    return definition("one", step("a"), ok, ways, result="${steps.ok.approve}"), {}


async def asked(stage: Stage, id: str) -> list[dict[str, Any]]:
    """The decisions that a command asks for, by name."""
    found = [each for each in await stage.done("GET", "/v1/decisions") if each["command_id"] == id]
    return sorted(found, key=lambda each: str(each["step"]))


async def test_two_at_once_are_listed_and_decided_by_name(stage: Stage, form: str) -> None:
    """Each with its input and roles; in any order; who, why and when come out."""
    id = await stage.submit("Decided" if form == "code" else TWO)
    view = await stage.waiting(id, "ann", "bob")
    assert view["finished_at"] is None
    listed = await asked(stage, id)
    assert [(each["step"], each["input"], each["roles"]) for each in listed] == [
        ("ann", {"amount": 5}, ["boss", "owner"]), ("bob", "please", []),
    ]  # fmt: skip
    await stage.decide(id, "bob", True, by="bob", comment="fine")
    await stage.waiting(id, "ann")
    assert [each["step"] for each in await asked(stage, id)] == ["ann"]
    await stage.decide(id, "ann", True, by="ann", comment="ok", roles=["clerk", "boss"])
    view = await stage.ended(id)
    assert view["result"] == ["ok", "fine"]
    assert stage.parties["stock"].asked(id, "z") == {"by": ["ann", "bob"]}
    assert {"approve", "by", "comment", "at"} <= set(outcomes(view)["ann"])
    assert await asked(stage, id) == []


async def test_who_may_not_decide_is_refused(calm: Stage, form: str) -> None:
    """403 with the roles that may; nothing is recorded of it."""
    id = await calm.submit("Decided" if form == "code" else TWO)
    await calm.waiting(id, "ann", "bob")
    before = await calm.history(id)
    for roles in ([], ["clerk"]):
        path = f"/v1/commands/{id}/decisions/ann"
        problem = await calm.refused("POST", path, {"approve": True, "by": "eve", "roles": roles})
        assert (problem["status"], problem["code"], problem["roles"]) == (403, "forbidden", ["boss", "owner"])
    assert await calm.history(id) == before


async def test_a_rejection_undoes_by_default(stage: Stage, form: str) -> None:
    """With the code `rejected`, and who said no in its message."""
    id = await stage.submit(*one(form))
    await stage.waiting(id, "ok")
    await stage.decide(id, "ok", False, by="ann", comment="too much")
    view = await stage.ended(id, "compensated")
    assert view["error"]["code"] == "rejected"
    assert effects(stage, id)["stock"] == ["a", "a/undo"]


async def test_a_rejection_may_have_a_path_of_its_own(calm: Stage, form: str) -> None:
    """What was done stays; the other way is gone."""
    calm.fresh()
    id = await calm.submit(*one(form, on_reject="continue"))
    await calm.waiting(id, "ok")
    await calm.decide(id, "ok", False)
    view = await calm.ended(id)
    assert view["result"] is False
    assert effects(calm, id)["stock"] == ["a", "no"]


@pytest.mark.parametrize(
    ("on_timeout", "state", "done"),
    [("approve", "completed", ["a", "yes"]), ("reject", "compensated", ["a", "a/undo"]),
     ("fail", "compensated", ["a", "a/undo"])],
)  # fmt: skip
async def test_time_decides_where_nobody_does(stage: Stage, form: str, on_timeout: str, state: str, done: Any) -> None:
    """As declared, and by nobody; too late is refused."""
    id = await stage.submit(*one(form, timeout="400ms", on_timeout=on_timeout))
    view = await stage.ended(id, state)
    assert effects(stage, id)["stock"] == done
    if state == "completed":
        assert outcomes(view)["ok"]["by"] == ""
    else:
        assert view["error"]["code"] == ("timeout" if on_timeout == "fail" else "rejected")
    late = await stage.refused("POST", f"/v1/commands/{id}/decisions/ok", {"approve": True, "by": "ann"})
    assert (late["status"], late["code"]) == (409, "illegal_state")


async def test_a_second_decision_is_409(calm: Stage, form: str) -> None:
    """Eight at once: one counts, the others are told whose it was; so is who asks afterwards."""
    id = await calm.submit(*one(form))
    await calm.waiting(id, "ok")
    path = f"/v1/commands/{id}/decisions/ok"
    answers = await asyncio.gather(*(calm.ask("POST", path, {"approve": True, "by": f"p{n}"}) for n in range(8)))
    assert sorted(answer.status_code for answer in answers) == [200, *[409] * 7]
    view = await calm.ended(id)
    winner = outcomes(view)["ok"]["by"]
    answers.append(await calm.ask("POST", path, {"approve": False, "by": "late"}))
    for answer in answers:
        assert answer.status_code == 200 or winner in answer.json()["detail"]


async def test_what_is_not_asked_is_refused(calm: Stage, form: str) -> None:
    """404 for a decision that there is not, and for a command that there is not."""
    id = await calm.submit(*one(form))
    await calm.waiting(id, "ok")
    for path, code in ((f"{id}/decisions/other", "unknown_step"), ("nobody/decisions/ok", "unknown_command")):
        problem = await calm.refused("POST", f"/v1/commands/{path}", {"approve": True, "by": "ann"})
        assert (problem["status"], problem["code"]) == (404, code)


async def test_a_paused_command_can_be_decided(calm: Stage, form: str) -> None:
    """It goes on when it is resumed."""
    calm.fresh()
    id = await calm.submit(*one(form))
    await calm.waiting(id, "ok")
    await calm.control(id, "pause", by="op")
    await calm.point("paused")
    await calm.decide(id, "ok", True)
    assert (await calm.view(id))["state"] == "paused"
    await calm.control(id, "resume", by="op")
    await calm.ended(id)
    assert effects(calm, id)["stock"] == ["a", "yes"]
