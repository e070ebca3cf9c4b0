"""3. Conditions: one language in `when` and `${…}`, checked at registration, with one meaning of what is missing."""

from __future__ import annotations

from typing import Any

import pytest

from tests.scenarios.kit import Stage, definition, effects, states, step

pytestmark = pytest.mark.asyncio(loop_scope="module")

REJOIN = definition(
    "rejoin",
    step("a"),
    step("big", when="payload.amount > 1000", **{"else": [step("small"), step("tiny", when="payload.amount < 10")]}),
    step("z", body={"big": "${steps.big != null}", "amount": "${payload.amount}", "text": "no. ${payload.amount}"}),
)


@pytest.mark.parametrize(("amount", "way"), [(5000, ["big"]), (500, ["small"]), (5, ["small", "tiny"])])
async def test_both_ways_come_together_again(stage: Stage, amount: int, way: list[str]) -> None:
    """One of them is gone, the other shown as skipped; the step after both runs once, with values of their types."""
    id = await stage.submit(REJOIN, {"amount": amount})
    view = await stage.ended(id)
    assert effects(stage, id)["stock"] == ["a", *way, "z"]
    assert {name for name, state in states(view).items() if state == "skipped"} == {"big", "small", "tiny"} - set(way)
    assert stage.parties["stock"].asked(id, "z") == {"big": "big" in way, "amount": amount, "text": f"no. {amount}"}


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "a syntax error": (step("b", when="payload.amount >"), "$.steps[1].when"),
    "an unknown step": (step("b", when="steps.nobody.id == 1"), "$.steps[1].when"),
    "a step that does not come before": (step("b", body="${steps.c.id}"), "$.steps[1].body"),
    "an unknown function": (step("b", when="frob(payload.amount)"), "$.steps[1].when"),
    "an unknown input": (step("b", path="/x/${nothing.id}"), "$.steps[1].path"),
    "an expression that never ends": (step("b", body="${payload.a"), "$.steps[1].body"),
    "a cycle": (step("b", after=["c"]), "$.steps"),
    "an unknown service": (step("b", service="nobody"), "$.steps[1].service"),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_expressions_are_checked_at_registration(calm: Stage, fault: str) -> None:
    """Registered or sent along: refused with the path of what is wrong, before anything is asked of anybody."""
    wrong, path = FAULTS[fault]
    content = definition("wrong", step("a"), wrong, step("c"))
    registered = await calm.ask("PUT", "/v1/definitions/wrong/1", content)
    assert registered.status_code == 422, registered.text
    assert any(each["path"].startswith(path) for each in registered.json()["faults"]), registered.json()
    sent = await calm.refused("POST", "/v1/commands", {"id": f"wrong {fault}", "definition": content, "payload": {}})
    assert sent["code"] == "invalid_payload"
    assert (await calm.refused("GET", f"/v1/commands/wrong {fault}"))["code"] == "unknown_command"


async def test_all_faults_are_told_at_once(calm: Stage) -> None:
    """Whoever writes a definition mends it in one go."""
    content = definition("wrong", step("a", when="1 +"), step("b", body="${steps.nobody}"), step("b", after=["x"]))
    faults = (await calm.refused("PUT", "/v1/definitions/wrong/1", content))["faults"]
    assert {each["path"].partition("]")[0] for each in faults} == {"$.steps[0", "$.steps[1", "$.steps[2"}


MISSING = [
    ("payload.customer.id == 1", {}),
    ("payload.customer.id == 1", {"customer": None}),
    ("payload.amount > 1000", {"amount": "many"}),
    ("payload.amount", {"amount": 1}),
    ("payload.amount + 1 > 2", {"amount": None}),
]


@pytest.mark.parametrize(
    ("where", "expression", "payload"),
    [
        (where, expression, payload)
        for expression, payload in MISSING
        for where in ("when", "body", "path")
        if where == "when" or expression != "payload.amount"  # a number is a value there
    ],
)
async def test_a_missing_field_and_a_wrong_type_mean_one_thing(
    calm: Stage, where: str, expression: str, payload: Any
) -> None:
    """The expression has no value: never false, null or an empty text; the command fails, and is undone."""
    calm.fresh()
    given = expression if where == "when" else f"${{{expression}}}" if where == "body" else f"/b/${{{expression}}}"
    id = await calm.submit(definition("missing", step("a"), step("b", **{where: given})), payload)
    view = await calm.ended(id, "compensated")
    assert view["error"]["code"] == "expression"
    assert where in view["error"]["message"], view["error"]
    assert effects(calm, id)["stock"] == ["a", "a/undo"]


async def test_has_asks_whether_a_field_is_there(calm: Stage) -> None:
    """Without failing, and true for one that is null."""
    asked = definition("asked", step("b", when="has(payload.coupon)"), step("z"))
    for payload, ran in (({}, False), ({"coupon": None}, True), ({"coupon": 7}, True)):
        id = await calm.submit(asked, payload)
        view = await calm.ended(id)
        assert (states(view)["b"] == "succeeded") is ran
