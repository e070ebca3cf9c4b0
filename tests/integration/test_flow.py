"""A flow on the whole engine: waiting for data, late data, and a crash at every place."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NewType

import msgspec
import pytest

import coordinator
from coordinator import App, Asks, Embedded, FakeClock, Flow, ReadOnly, delete, post, step
from coordinator.errors import IllegalState, InvalidPayload, UnknownStep


class Card(msgspec.Struct):
    number: str


class Payment(msgspec.Struct):
    card: Card
    amount: int


class Token(msgspec.Struct):
    token: str


class Proof(msgspec.Struct):
    ok: bool


class Coupon(msgspec.Struct):
    percent: int


class Price(msgspec.Struct):
    amount: int


class Receipt(msgspec.Struct):
    id: str


class Invoice(msgspec.Struct):
    number: str


Otp = NewType("Otp", str)


@step(service="cards", undo=lambda token: delete("cards", f"/tokens/{token.token}"))
def tokenise(card: Card) -> Asks[Token]:
    return post("cards", "/tokens", {"number": card.number})


@step(reruns=True)
async def price(payment: Payment, coupon: Coupon | None) -> Price:
    return Price(payment.amount * (100 - (coupon.percent if coupon else 0)) // 100)


@step(service="bank")
def verify(token: Token, otp: Otp) -> Asks[Proof]:
    return post("bank", "/verify", {"token": token.token, "otp": otp})


@step(service="bank", undo=lambda receipt: post("bank", f"/charges/{receipt.id}/refund"))
def charge(proof: Proof, token: Token, price: ReadOnly[Price]) -> Asks[Receipt]:
    return post("bank", "/charges", {"token": token.token, "amount": price.amount})


@step(service="invoices", reruns=True)
def invoice(receipt: Receipt, price: Price) -> Asks[Invoice]:
    return post("invoices", "/invoices", {"receipt": receipt.id, "amount": price.amount})


app = App()
Flow(
    "CardPayment",
    payload=Payment,
    provided=(Otp,),
    late=(Coupon,),
    result=Invoice,
    steps=[invoice, charge, verify, price, tokenise],
    app=app,
)
PAYMENT = {"card": {"number": "42"}, "amount": 100}


def script(c: Embedded) -> None:
    c.services["cards"].on("POST", "/tokens").answers(200, {"token": "t"})
    c.services["cards"].on("DELETE", "/tokens/t").answers(204)
    c.services["bank"].on("POST", "/verify").answers(200, {"ok": True})
    c.services["bank"].on("POST", "/charges").answers(200, {"id": "r"})
    c.services["bank"].on("POST", "/charges/r/refund").answers(204)
    c.services["invoices"].on("POST", "/invoices").does(lambda call: {"number": f"i-{call.body['amount']}"})


async def test_it_waits_for_what_is_missing_by_name_and_goes_on_when_it_is_provided() -> None:
    """What was done before is not done again."""
    async with coordinator.embedded(app, clock=FakeClock("2026-11-21T09:00:00Z")) as c:
        script(c)
        view = await c.submit("CardPayment", PAYMENT, id="p")
        await c.settled()
        view = await c.get("p")
        assert (view.state, view.waiting_for) == ("waiting", ["Otp"])
        with pytest.raises(InvalidPayload):
            await c.provide("p", "Otp", {"not": "text"})
        with pytest.raises(UnknownStep, match="it takes: Coupon, Otp"):
            await c.provide("p", "OTP", "123")
        await c.provide("p", "Otp", "123")
        view = await c.wait("p")
        assert (view.state, view.result) == ("completed", {"number": "i-100"})
        assert len(c.services["cards"].calls) == 1
        assert c.services["bank"].calls[0].body == {"token": "t", "otp": "123"}


async def test_late_data_open_it_again_where_declared_and_run_only_what_asked_for_it() -> None:
    """Under the next revision; other data are refused."""
    async with coordinator.embedded(app, clock=FakeClock("2026-11-21T09:00:00Z")) as c:
        script(c)
        await c.submit("CardPayment", PAYMENT, id="p")
        await c.provide("p", "Otp", "123")
        await c.wait("p")
        await c.provide("p", "Coupon", {"percent": 30})
        await c.settled()
        view = await c.get("p")
        assert (view.state, view.revision, view.result) == ("completed", 2, {"number": "i-70"})
        assert [(call.step, call.body["amount"]) for call in c.services["invoices"].calls] == [
            ("invoice", 100),
            ("invoice#2", 70),
        ]
        assert [call.step for call in c.services["bank"].calls] == ["verify", "charge"]
        with pytest.raises(IllegalState, match="Otp does not open it again"):
            await c.provide("p", "Otp", "124")


async def test_an_outcome_of_another_shape_fails_it_and_undoes_the_rest() -> None:
    """The error names the step and the reason."""
    async with coordinator.embedded(app, clock=FakeClock("2026-11-21T09:00:00Z")) as c:
        script(c)
        c.services["bank"].on("POST", "/verify").answers(200, {"okay": 1})
        await c.submit("CardPayment", PAYMENT, id="p")
        await c.provide("p", "Otp", "123")
        view = await c.wait("p")
        assert view.state == "compensated"
        assert view.error is not None
        assert (view.error.code, view.error.step) == ("bad_outcome", "verify")
        assert [call.method for call in c.services["cards"].effects] == ["POST", "DELETE"]


async def test_the_diagram_shows_the_flow_in_the_colours_of_its_steps() -> None:
    """What has not begun is there as well."""
    async with coordinator.embedded(app, clock=FakeClock("2026-11-21T09:00:00Z")) as c:
        script(c)
        await c.submit("CardPayment", PAYMENT, id="p")
        await c.settled()
        drawn = await c.diagram("p")
        assert '"<b>Otp</b><br/>provided<br/>waiting"' in drawn
        assert '"<b>tokenise</b><br/>cards<br/>succeeded"' in drawn
        assert '"<b>charge</b><br/>bank"' in drawn


async def test_the_documented_flow_runs_as_documented() -> None:
    """The first block of docs/dataflow.md is a program."""
    text = Path(__file__).parents[2].joinpath("docs", "dataflow.md").read_text(encoding="utf-8")
    program: dict[str, Any] = {"__name__": "payments"}
    source = text.partition("```python\n")[2].partition("```")[0]
    exec(compile(source, "payments.py", "exec", dont_inherit=True), program)
    async with coordinator.embedded(program["app"], clock=FakeClock("2026-11-21T09:00:00Z")) as c:
        script(c)
        await c.submit("CardPayment", PAYMENT, id="p")
        await c.settled()
        assert (await c.get("p")).waiting_for == ["Otp"]
        await c.provide("p", "Otp", "123456")
        assert (await c.wait("p")).result == {"number": "i-100"}


async def test_it_survives_a_crash_at_every_place() -> None:
    """Waiting, running, open again: each effect once."""

    async def scenario(c: Embedded) -> None:
        script(c)
        await c.submit("CardPayment", PAYMENT, id="p")
        await c.provide("p", "Otp", "123", signal_id="o")
        await c.wait("p", within="1h")
        await c.provide("p", "Coupon", {"percent": 30}, signal_id="c")
        await c.settled()
        view = await c.wait("p", within="1h")
        assert (view.state, view.result) == ("completed", {"number": "i-70"})
        assert [call.step for call in c.services["bank"].effects] == ["verify", "charge"]
        assert [call.step for call in c.services["invoices"].effects] == ["invoice", "invoice#2"]

    assert await coordinator.crash_everywhere(app, scenario) > 10
