"""The worked examples, each as its header says, in code and as its JSON: in peace, then with a crash at each append.

Everything but the sockets is the daemon's (docs/testing.md); that the files are what the daemon takes, and that their
headers tell the truth, is tried in test_examples_daemon.py.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Awaitable, Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import coordinator
from coordinator import App, Embedded, FakeClock
from coordinator.errors import Forbidden, IllegalState
from coordinator.model.command import CommandView

EXAMPLES = Path(__file__).parents[2] / "examples"
SERVICES = ("stock", "bank", "carriers", "mail", "warehouse", "cards", "invoices")
NOON = "2026-11-21T12:00:00Z"
FORMS = pytest.mark.parametrize("form", ["code", "json"])


def app_of(name: str) -> App:
    app: App = import_module(f"examples.{name}").app
    return app


def what(name: str, form: str) -> Any:
    """What to submit: the type's name, or the content of the JSON file."""
    if form == "json":
        return json.loads((EXAMPLES / f"{name}.json").read_text())
    ((type, _),) = app_of(name).commands
    return type


def ready(c: Embedded) -> None:
    """All services do what they are asked, and answer with the step's name and the amount that they were given."""
    for name in SERVICES:
        c.services[name].on("POST", "*").does(
            lambda call: {"id": call.step, "amount": (call.body or {}).get("amount", 0)}
        )


async def run(name: str, scenario: Callable[[Embedded], Awaitable[None]]) -> None:
    """Undisturbed, then with a crash before and after each append."""

    async def scripted(c: Embedded) -> None:
        ready(c)
        await scenario(c)

    assert await coordinator.crash_everywhere(app_of(name), scripted, services=SERVICES, clock=NOON) > 4


def effects(c: Embedded) -> list[str]:
    """The steps that took effect, in order; ``-x`` is the undo of x."""
    return [f"-{call.step}" if call.undo else call.step for call in c.calls if call.effect]


async def at_rest(c: Embedded, view: CommandView) -> CommandView:
    """The command once everything is done that can be done now."""
    await c.settled()
    return await c.get(view.id)


# ---------------------------------------------------------------- card payment

CARD = {"card": {"number": "4111"}, "cart": {"order": "o-1", "amount": 1999}}


def bank_knows(c: Embedded, code: str) -> None:
    """The password that is right."""
    c.services["bank"].on("POST", "/challenges/{id}/verify").does(
        lambda call: {} if call.body == {"code": code} else (422, {"message": "wrong"})
    )


@FORMS
async def test_a_card_is_charged_when_the_password_is_right(form: str) -> None:
    """A wrong one first, which is asked for again; each charged, invoiced and tokenised once."""

    async def scenario(c: Embedded) -> None:
        bank_knows(c, "1234")
        view = await at_rest(c, await c.submit(what("card_payment", form), CARD))
        assert (view.state, view.waiting_for) == ("waiting", ["Otp"])
        await c.provide(view.id, "Otp", {"code": "9999"}, signal_id="sms-1")
        view = await at_rest(c, view)
        assert (view.state, view.waiting_for) == ("waiting", ["Otp"])
        await c.provide(view.id, "Otp", {"code": "1234"}, signal_id="sms-2")
        view = await c.wait(view.id)
        assert view.state == "completed"
        done = Counter(step.partition("#")[0] for step in effects(c))
        assert done["charge"] == done["generate_invoice"] == done["tokenise"] == done["verify"] == 1

    await run("card_payment", scenario)


@FORMS
async def test_a_coupon_that_comes_late_makes_another_invoice(form: str) -> None:
    """The finished command opens again under its second revision; nothing else is repeated; twice is once."""

    async def scenario(c: Embedded) -> None:
        view = await c.submit(what("card_payment", form), CARD)
        await c.provide(view.id, "Otp", {"code": "1234"}, signal_id="sms-1")
        view = await c.wait(view.id)
        assert (view.state, view.revision) == ("completed", 1)
        before = effects(c)
        for _ in range(2):
            await c.provide(view.id, "Coupon", {"code": "XMAS", "off": 500}, signal_id="c-1")
            view = await at_rest(c, view)
        assert (view.state, view.revision, view.result["id"]) == ("completed", 2, "generate_invoice#2")
        assert effects(c) == [*before, "generate_invoice#2"]
        assert c.services["invoices"].effects[-1].body["back"] == 500

    await run("card_payment", scenario)


@FORMS
async def test_a_password_that_comes_too_late_finds_nothing(form: str) -> None:
    """After half an hour the token is forgotten; the password is refused."""

    async def scenario(c: Embedded) -> None:
        view = await c.run(what("card_payment", form), CARD, within="1h")
        assert (view.state, view.error and view.error.code) == ("compensated", "deadline_exceeded")
        assert view.finished_at == "2026-11-21T12:30:00.000Z"
        assert effects(c) == ["tokenise", "challenge", "-tokenise"]
        with pytest.raises(IllegalState):
            await c.provide(view.id, "Otp", {"code": "1234"})

    await run("card_payment", scenario)


async def test_steps_of_the_library_serve_both_flows() -> None:
    """The very same objects: what is mended in one is mended in both."""
    card, bank = import_module("examples.card_payment").payment, import_module("examples.netbanking").netbanking
    shared = {step.name for step in card.plan.steps if any(step is other for other in bank.plan.steps)}
    assert shared == {"price", "generate_invoice"}


# ---------------------------------------------------------------- netbanking

CART = {"cart": {"order": "o-1", "amount": 1999}, "customer": "ann"}


def bank_of_sessions(c: Embedded) -> None:
    c.services["bank"].on("POST", "/sessions").does(lambda call: {"id": "s-1", "amount": call.body["amount"]})
    c.services["invoices"].on("POST", "/invoices").does(lambda call: {"id": "i-1", "amount": 1999})


@FORMS
@pytest.mark.parametrize("first", ["bank", "customer"])
async def test_the_bank_answers_and_the_customer_comes_back(form: str, first: str) -> None:
    """In either order, each address once; who is back in time is thanked on their page."""

    async def scenario(c: Embedded) -> None:
        bank_of_sessions(c)
        view = await at_rest(c, await c.submit(what("netbanking", form), CART))
        assert (view.state, view.waiting_for) == ("waiting", ["BankAnswer"])
        (session,) = [call for call in c.services["bank"].effects if call.step == "open_session"]
        if first == "customer":
            await c.callback(session.body["return_to"], {"lang": "pt"})
        await c.callback(session.body["answer_to"], {"status": "paid", "reference": "b-7"})
        await c.callback(session.body["answer_to"], {"status": "refused", "reference": "b-8"})
        view = await c.wait(view.id)
        assert view.state == "completed"
        assert view.result == {"id": "i-1", "amount": 1999}
        thanked = [call.path for call in c.services["mail"].effects]
        assert thanked == ["/thanks/pt" if first == "customer" else "/thanks/mail"]
        assert sorted(effects(c)) == ["generate_invoice", "open_session", "thank"]

    await run("netbanking", scenario)


@FORMS
async def test_a_bank_that_refuses_leaves_nothing_behind(form: str) -> None:
    """No invoice; the session is closed, by the undo or on the other way."""

    async def scenario(c: Embedded) -> None:
        bank_of_sessions(c)
        view = await at_rest(c, await c.submit(what("netbanking", form), CART))
        await c.callback(c.services["bank"].effects[0].body["answer_to"], {"status": "refused"})
        view = await c.wait(view.id)
        assert view.state == ("compensated" if form == "code" else "completed")
        assert c.services["bank"].effects[-1].path == "/sessions/s-1/close"
        assert not c.services["invoices"].calls

    await run("netbanking", scenario)


# ---------------------------------------------------------------- order fulfilment

ORDER = {"order": "o-1", "item": "lamp", "amount": 1999}


@FORMS
async def test_one_carrier_carries_and_the_other_is_cancelled(form: str) -> None:
    """Both are asked; whoever is second has taken the parcel too, and is told that it need not."""

    async def scenario(c: Embedded) -> None:
        c.services["carriers"].on("POST", "/courier").takes("3s").answers(200, {"id": "courier"})
        view = await c.run(what("fulfilment", form), ORDER, within="1m")
        assert view.state == "completed"
        won = view.result["parcel"]
        (lost,) = {"courier", "post"} - {won}
        done = effects(c)
        assert Counter(done) == Counter(["charge", "pick", "wrap", "courier", "post", f"-{lost}", "tell"])
        assert set(done[:3]) == {"charge", "pick", "wrap"}

    await run("fulfilment", scenario)


@FORMS
async def test_a_carrier_that_refuses_is_no_failure(form: str) -> None:
    """The other one takes it."""

    async def scenario(c: Embedded) -> None:
        c.services["carriers"].on("POST", "/post").fails(409)
        view = await c.run(what("fulfilment", form), ORDER, within="1m")
        assert (view.state, view.result) == ("completed", {"parcel": "courier"})
        assert Counter(effects(c)) == Counter(["charge", "pick", "wrap", "courier", "tell"])

    await run("fulfilment", scenario)


@FORMS
async def test_no_carrier_and_all_is_undone_in_reverse(form: str) -> None:
    """Across the branches: what was done last is undone first."""

    async def scenario(c: Embedded) -> None:
        c.services["carriers"].on("POST", "*").fails(409)
        view = await c.run(what("fulfilment", form), ORDER, within="1m")
        assert view.state == "compensated"
        history = await c.history(view.id)
        recorded = [each["step"] for each in history if each["kind"] == "Outcome" and each["step"] != "wrap"]
        undone = [each["step"] for each in history if each["kind"] == "Undone"]
        assert [step for step in undone if step != "wrap"] == recorded[::-1]
        assert Counter(effects(c)) == Counter(["charge", "pick", "wrap", "-pick", "-charge"])

    await run("fulfilment", scenario)


# ---------------------------------------------------------------- human approval

REFUND = {"order": "o-1", "amount": 12000, "reason": "broken"}


@FORMS
@pytest.mark.parametrize("approve", [True, False])
async def test_a_manager_decides(form: str, approve: bool) -> None:
    """Asked with what it is about; only who may; the path of those who were rejected ends well too."""

    async def scenario(c: Embedded) -> None:
        view = await at_rest(c, await c.submit(what("approval", form), REFUND))
        assert view.state == "waiting"
        (asked,) = await c.decisions()
        assert (asked["step"], asked["input"], asked["roles"]) == ("approve", REFUND, ["manager"])
        with pytest.raises(Forbidden):
            await c.decide(view.id, "approve", approve=approve, by="tom", roles=["clerk"])
        await c.decide(view.id, "approve", approve=approve, by="ann", comment="ok", roles=["manager"])
        view = await c.wait(view.id)
        assert (view.state, view.result) == ("completed", {"granted": approve})
        assert effects(c) == ["hold", "release", *["refund"] * approve, "tell"]

    await run("approval", scenario)


@FORMS
async def test_nobody_decides_and_it_counts_as_rejected(form: str) -> None:
    """After two days, to the second."""

    async def scenario(c: Embedded) -> None:
        view = await c.run(what("approval", form), REFUND, within="3d")
        assert (view.result, view.finished_at) == ({"granted": False}, "2026-11-23T12:00:00.000Z")

    await run("approval", scenario)


@FORMS
async def test_a_small_refund_asks_nobody(form: str) -> None:
    """The whole block is left out."""

    async def scenario(c: Embedded) -> None:
        view = await c.run(what("approval", form), {**REFUND, "amount": 5000})
        assert view.result == {"granted": True}
        assert effects(c) == ["refund", "tell"]

    await run("approval", scenario)


# ---------------------------------------------------------------- data pipeline


@FORMS
@pytest.mark.parametrize(("bad", "way"), [(0, ["load", "enriched", "index"]), (3, ["quarantine"])])
async def test_the_check_decides_the_way(form: str, bad: int, way: list[str]) -> None:
    """Either way comes to the one report."""

    async def scenario(c: Embedded) -> None:
        c.services["warehouse"].on("POST", "/checks").answers(200, {"id": "c-1", "bad": bad})
        view = await c.run(what("pipeline", form), {"day": "2026-11-21", "enrich": True}, within="1m")
        assert (view.state, view.result) == ("completed", {"rows": way[0]})
        assert sorted(effects(c)[:2]) == ["customers", "orders"]
        assert effects(c)[2:] == ["check", *way, "report"]

    await run("pipeline", scenario)


@FORMS
async def test_a_load_that_failed_is_made_again_from_the_savepoint(form: str) -> None:
    """Undone, then loaded again under another key; nothing is extracted twice."""

    async def scenario(c: Embedded) -> None:
        c.services["warehouse"].on("POST", "/checks").answers(200, {"id": "c-1", "bad": 0})
        c.services["warehouse"].on("POST", "/indexes").does(
            lambda call: (409, None) if call.step == "index" else {"id": call.step}
        )
        view = await c.run(what("pipeline", form), {"day": "2026-11-21"}, within="1m")
        assert (view.state, view.result) == ("completed", {"rows": "load#2"})
        assert effects(c)[2:] == ["check", "load", "-load", "load#2", "index#2", "report"]

    await run("pipeline", scenario)


# ---------------------------------------------------------------- dead-letter repair

DISPATCH = {"order": "o-1", "street": "", "amount": 1999}


def no_street_no_label(c: Embedded) -> None:
    c.services["stock"].on("POST", "/labels").does(
        lambda call: {"id": "l-1"} if call.body["street"] else (422, {"message": "no street"})
    )


@FORMS
async def test_a_refused_step_waits_for_another_input(form: str) -> None:
    """The other branch has finished; with the street the rest is done, the join included."""

    async def scenario(c: Embedded) -> None:
        no_street_no_label(c)
        view = await c.submit(what("repair", form), DISPATCH)
        await c.clock.advance("10s")
        assert (await c.get(view.id)).state == "dead_letter"
        assert effects(c) == ["invoice"]
        (letter,) = await c.dead_letters()
        assert (letter["command_id"], letter["step"]) == (view.id, "label")
        await c.requeue(view.id, "label", input={"order": "o-1", "street": "Main Street 1"}, by="ann")
        view = await c.wait(view.id)
        assert (view.state, view.result) == ("completed", {"label": "l-1", "invoice": "invoice"})
        assert effects(c) == ["invoice", "label", "send"]

    await run("repair", scenario)


@FORMS
async def test_an_undo_that_is_refused_is_made_by_hand(form: str) -> None:
    """Cancelled, the invoice cannot be taken back: listed until somebody says that it is done."""

    async def scenario(c: Embedded) -> None:
        no_street_no_label(c)
        c.services["bank"].on("POST", "/invoices/{order}/cancel").fails(409)
        view = await c.submit(what("repair", form), DISPATCH)
        await c.clock.advance("10s")
        await c.cancel(view.id, by="ann", reason="customer left")
        view = await at_rest(c, view)
        assert view.state == "dead_letter"
        (letter,) = await c.dead_letters()
        assert letter["step"] == "invoice"
        view = await c.resolve(view.id, "invoice", by="ann", reason="credit note 77")
        assert (await c.wait(view.id)).state == "compensated"
        (by_hand,) = [each for each in await c.history(view.id) if each.get("operation") == "resolve"]
        assert (by_hand["by"], by_hand["reason"]) == ("ann", "credit note 77")

    await run("repair", scenario)


@FORMS
async def test_five_errors_pause_it_for_an_hour(form: str) -> None:
    """A bank that is out of order is not asked for ever; after an hour it goes on by itself."""

    async def scenario(c: Embedded) -> None:
        broken = [True]
        c.services["bank"].on("POST", "/invoices").does(lambda call: (503, None) if broken else {"id": "i-1"})
        view = await c.submit(what("repair", form), {**DISPATCH, "street": "Main Street 1"})
        await c.clock.advance("30m")
        assert (await c.get(view.id)).state == "paused"
        assert 5 <= len(c.services["bank"].calls) <= 6  # one whose record was lost with the process counts once
        broken.clear()
        assert (await c.wait(view.id, within="31m")).state == "completed"

    await run("repair", scenario)


# ---------------------------------------------------------------- monthly schedule


@FORMS
async def test_each_month_is_closed_on_the_first_at_nine(form: str) -> None:
    """In Zurich, in winter and in summer; a month that takes too long makes the next one wait."""
    schedule = json.loads((EXAMPLES / "monthly.json").read_text())
    if form == "code":
        schedule["command"] = {"type": "CloseMonth", "payload": {"ledger": "main"}}
    async with coordinator.embedded(app_of("monthly"), clock=FakeClock(NOON), services=SERVICES) as c:
        ready(c)
        await c.put_schedule("monthly", schedule)
        await c.clock.until("2027-05-02T00:00:00Z")
        runs = sorted([view.id for view in (await c.list(attributes={"schedule": "monthly"}))])
        assert runs == [
            "monthly@2026-12-01T08:00:00Z", "monthly@2027-01-01T08:00:00Z", "monthly@2027-02-01T08:00:00Z",
            "monthly@2027-03-01T08:00:00Z", "monthly@2027-04-01T07:00:00Z", "monthly@2027-05-01T07:00:00Z",
        ]  # fmt: skip
        assert effects(c) == ["close", "report"] * 6
        assert runs[0].partition("@")[2] in str(c.services["mail"].calls[0].body)
