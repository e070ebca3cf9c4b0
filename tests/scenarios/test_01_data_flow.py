"""1. Data flow: order and parallelism follow from what each step takes; what is missing is waited for; late data."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.scenarios.kit import QuickDaemon, Stage, definition, effects, outcomes, states, step
from tests.scenarios.nursery import Nursery

pytestmark = pytest.mark.asyncio(loop_scope="module")

PAYING = definition(
    "paying",
    step("quick", body={"order": "${payload.id}"}),
    step("slow", after=[], body={"order": "${payload.id}"}),
    step("next", after=["quick"], body={"quick": "${steps.quick.id}"}),
    {"name": "coupon", "after": [], "data": {"name": "Coupon", "reopens": True}},
    step("price", after=["coupon"], body={"off": "${steps.coupon == null ? 0 : steps.coupon.off}"}),
    {"name": "otp", "after": [], "data": "Otp"},
    step("pay", after=["next", "slow", "otp"], body={"code": "${steps.otp.code}"}),
    step("report", after=["pay", "price"], body={"price": "${steps.price.id}"}),
    result="${steps.report}",
)
OTP = {"code": "1234"}
BEFORE_PAYING = {"quick", "slow", "next", "price"}


async def begun(stage: Stage, form: str) -> str:
    return await stage.submit("Paying" if form == "code" else PAYING, {"id": "o-1"})


async def test_a_step_starts_as_soon_as_its_own_inputs_exist(calm: Stage, form: str) -> None:
    """There are no layers: who depends on a fast step does not wait for its slow sibling."""
    calm.fresh()
    stock = calm.parties["stock"]
    stock.held.add("/slow")
    id = await begun(calm, form)
    await calm.until(id, lambda view: states(view).get("next") == "succeeded")
    assert stock.has_been_asked(id, "slow")
    assert states(await calm.view(id))["slow"] == "running"
    stock.release("/slow")
    await calm.provide(id, "Otp", OTP)
    await calm.ended(id)


async def test_what_is_missing_is_waited_for_by_name(stage: Stage, form: str) -> None:
    """It survives restarts, and goes on when it is provided, without repeating what is done."""
    id = await begun(stage, form)
    await stage.waiting(id, "Otp")
    assert set(effects(stage, id)["stock"]) == BEFORE_PAYING
    assert "Otp" in str(await stage.explain(id))
    calls = len(stage.parties["stock"].arrivals)
    await stage.crash()
    await stage.waiting(id, "Otp")
    assert len(stage.parties["stock"].arrivals) == calls
    await stage.provide(id, "Otp", OTP)
    view = await stage.ended(id)
    assert view["result"] == {"id": "report"}
    done = effects(stage, id)["stock"]
    assert (sorted(done[:4]), done[4:]) == (sorted(BEFORE_PAYING), ["pay", "report"])
    assert stage.parties["stock"].asked(id, "pay") == OTP


async def test_an_optional_input_runs_its_step_again_when_it_arrives(stage: Stage, form: str) -> None:
    """It has run without; what comes after uses the newest value, once."""
    id = await begun(stage, form)
    await stage.waiting(id, "Otp")
    await stage.provide(id, "Coupon", {"off": 5})
    await stage.until(id, lambda view: "price#2" in outcomes(view))
    await stage.waiting(id, "Otp")
    await stage.provide(id, "Otp", OTP)
    await stage.ended(id)
    stock = stage.parties["stock"]
    assert (stock.asked(id, "price"), stock.asked(id, "price#2")) == ({"off": 0}, {"off": 5})
    assert stock.asked(id, "report") == {"price": "price#2"}
    assert effects(stage, id)["stock"].count("report") == 1


async def test_an_optional_input_that_reruns_nothing_is_used_or_missed(calm: Stage) -> None:
    """Where it is not declared, what has run without it is not run again: what comes later finds it all the same."""
    calm.fresh()
    optional = definition(
        "optional",
        {"name": "coupon", "data": {"name": "Coupon", "optional": True}},
        step("price", body=["${steps.coupon}"]),
        {"name": "go", "data": "go"},
        step("send", body=["${steps.coupon}"]),
    )
    early, late = await calm.submit(optional), await calm.submit(optional)
    for id in (early, late):
        await calm.waiting(id, "go")
    await calm.provide(late, "Coupon", 7)
    for id in (early, late):
        await calm.provide(id, "go", True)
        await calm.ended(id)
        assert effects(calm, id)["stock"] == ["price", "send"]
        assert calm.parties["stock"].asked(id, "price") == [None]
    assert calm.parties["stock"].asked(late, "send") == [7]
    assert calm.parties["stock"].asked(early, "send") == [None]


async def test_late_data_opens_a_finished_command_where_declared(stage: Stage, form: str) -> None:
    """Under its next revision; what only reads the price is not run again; the same datum twice is nothing."""
    id = await begun(stage, form)
    await stage.provide(id, "Otp", OTP)
    view = await stage.ended(id)
    assert view["revision"] == 1
    before = effects(stage, id)["stock"]
    for revision, off in ((2, 5), (2, 5), (3, 7)):
        await stage.provide(id, "Coupon", {"off": off}, signal_id=None if stage.deadly else "")
        view = await stage.until(id, lambda view, at=revision: view["revision"] >= at and view["state"] == "completed")  # type: ignore[misc]
        assert view["revision"] == revision
        await stage.point(f"revision {revision}")
    done = effects(stage, id)["stock"][len(before) :]
    assert done == ["price#2", "report#2", "price#3", "report#3"]
    await stage.ended(id)
    problem = await stage.refused("POST", f"/v1/commands/{id}/data/Otp", {"code": "9999"})
    assert (problem["status"], problem["code"]) == (409, "illegal_state")
    unknown = await stage.refused("POST", f"/v1/commands/{id}/data/Nothing", 1)
    assert unknown["status"] in (404, 409)


async def test_an_outcome_of_another_shape_fails_that_command_with_that_reason(calm: Stage) -> None:
    """And undoes it; the command beside it goes on."""
    calm.fresh()
    calm.parties["stock"].says["/next"] = lambda arrival: (
        (200, {"number": 7}) if arrival.key.startswith("odd/") else (200, None)
    )
    odd, even = await calm.submit("Paying", id="odd"), await calm.submit("Paying", id="even")
    for id in (odd, even):
        await calm.provide(id, "Otp", OTP)
    view = await calm.ended(odd, "compensated")
    assert (view["error"]["code"], view["error"]["step"]) == ("bad_outcome", "next")
    assert "id" in view["error"]["message"]
    await calm.ended(even)


async def test_a_datum_of_another_shape_is_refused_at_the_door(calm: Stage) -> None:
    """With its place; the payment goes on waiting for a right one."""
    calm.fresh()
    id = await begun(calm, "code")
    await calm.waiting(id, "Otp")
    problem = await calm.refused("POST", f"/v1/commands/{id}/data/Otp", {"code": 1234})
    assert (problem["status"], problem["code"]) == (422, "invalid_payload")
    assert problem["faults"][0]["path"] == "$.code"
    await calm.provide(id, "Otp", OTP)
    await calm.ended(id)


async def test_steps_are_used_in_other_flows(calm: Stage) -> None:
    """The same step asks another service there, and has another name."""
    calm.fresh()
    id = await calm.submit("Looking")
    await calm.ended(id)
    assert effects(calm, id) == {"payments": ["quick"], "stock": ["look"]}


REFUSED = {
    "a cycle": (
        "@step(service='stock')\ndef f(b: B) -> Asks[A]: ...\n@step(service='stock')\ndef g(a: A) -> Asks[B]: ...\n",
        "[f, g]", "A", "circle",
    ),
    "two producers of one datum": (
        "@step(service='stock')\ndef f(o: Order) -> Asks[A]: ...\n"
        "@step(service='stock')\ndef g(o: Order) -> Asks[A]: ...\n",
        "[f, g]", "A", "A comes from two",
    ),
    "an input nobody makes or provides": (
        "@step(service='stock')\ndef f(b: B) -> Asks[A]: ...\n", "[f]", "A", "needs B, which no step makes",
    ),
    "an unreachable result": (
        "@step(service='stock')\ndef f(o: Order) -> Asks[A]: ...\n", "[f]", "B", "no step makes the result, B",
    ),
}  # fmt: skip


@pytest.mark.parametrize("wrong", REFUSED)
async def test_what_cannot_work_is_refused_at_registration(wrong: str, nursery: Nursery, tmp_path: Path) -> None:
    """`coordinator serve` tells what is wrong, and does not start."""
    steps, listed, result, told = REFUSED[wrong]
    (tmp_path / "wrong.py").write_text(
        "from msgspec import Struct\nfrom coordinator.flow import Asks, Flow, step\nfrom coordinator.saga import App\n"
        "class Order(Struct):\n    id: str\nclass A(Struct):\n    id: str\nclass B(Struct):\n    id: str\n"
        f"app = App()\n{steps}Flow('Wrong', payload=Order, steps={listed}, result={result}, app=app)\n"
    )
    daemon = QuickDaemon(nursery, tmp_path, "[services.stock]\nurl = 'http://127.0.0.1:9'\n", app="wrong:app")
    daemon.spawn()
    assert daemon.process is not None
    assert daemon.process.wait() == 2
    assert "flow Wrong cannot be built" in daemon.text()
    assert told in daemon.text()
