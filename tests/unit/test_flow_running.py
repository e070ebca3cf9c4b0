"""Running flows: on the real stepper, fed with outcomes and data as the engine feeds it."""

from __future__ import annotations

import inspect
from typing import Any, NewType

import msgspec
import pytest

from coordinator import Asks, Decision, Flow, ReadOnly, Request, Saga, Savepoint, StepFailed, delete, post, step
from coordinator.engine.stepper import Execution
from coordinator.flow import FlowStep
from coordinator.model.call import LocalCall
from coordinator.model.ids import CommandId
from coordinator.model.records import Failure, Signal, raw


class Card(msgspec.Struct):
    number: str


class Coupon(msgspec.Struct):
    percent: int


class Payment(msgspec.Struct):
    card: Card
    amount: int
    coupon: Coupon | None = None


class Token(msgspec.Struct):
    token: str


class Price(msgspec.Struct):
    amount: int


class Receipt(msgspec.Struct):
    id: str


Otp = NewType("Otp", str)


@step(service="cards", undo=lambda token, card: delete("cards", f"/tokens/{token.token}/{card.number}"))
def tokenise(card: Card) -> Asks[Token]:
    return post("cards", "/tokens", {"number": card.number})


@step(reruns=True)
async def price(payment: Payment, coupon: Coupon | None) -> Price:
    return Price(payment.amount - (coupon.percent if coupon else 0))


@step(service="bank", retry=None, timeout="3s", deadline="1m")
def charge(token: Token, price: Price) -> Asks[Receipt]:
    return post("bank", "/charges", {"token": token.token, "amount": price.amount})


class Driven:
    """A command that runs a flow, answered by hand."""

    def __init__(self, *steps: FlowStep, given: Any = None, revision: int = 1, **rest: Any) -> None:
        self.flow = Flow("Card", **{"payload": Payment, "steps": steps, **rest})
        type = self.flow.type()
        saga = Saga(id="c", type="Card", version=1, attributes={}, now=0, revision=revision)
        payload = given or Payment(Card("42"), 100)
        self.execution = Execution(lambda saga: type.run(payload, saga), saga)
        self._clock = 0

    @property
    def pending(self) -> set[str]:
        return set(self.execution.pending)

    def ok(self, name: str, value: Any = None) -> None:
        self._clock += 1
        self.execution.outcome(name, raw(value), self._clock)

    def no(self, name: str) -> None:
        self._clock += 1
        self.execution.failed(name, Failure("declined", step=name), self._clock)

    def datum(self, name: str, value: Any, channel: str = "data", by: str = "") -> None:
        self._clock += 1
        self.execution.signal(
            Signal(1, b"", self._clock, CommandId("c"), name, raw(value), str(self._clock), by=by, channel=channel)
        )

    def request(self, name: str) -> Request:
        request = self.execution.calls[name].request
        assert isinstance(request, Request)
        return request

    def undo(self, name: str, outcome: Any) -> Any:
        undo: Any = self.execution.calls[name].undo
        return undo(outcome)

    async def compute(self, name: str, *args: Any) -> Any:
        """What a local step's function gives."""
        local = self.execution.calls[name].request
        assert isinstance(local, LocalCall)
        found: Any = local.function(*(args or local.args))
        return await found if inspect.isawaitable(found) else found

    @property
    def error(self) -> Any:
        return self.execution.error


async def test_order_and_parallelism_follow_from_the_types() -> None:
    """What needs nothing of each other runs side by side, each as soon as its own inputs exist."""
    flow = Driven(charge, price, tokenise, result=Receipt, provided=())  # in any order
    assert flow.pending == {"price", "tokenise"}
    assert flow.request("tokenise") == post("cards", "/tokens", {"number": "42"})
    assert await flow.compute("price") == Price(100)
    flow.ok("price", {"amount": 100})
    assert flow.pending == {"tokenise"}
    flow.ok("tokenise", {"token": "t"})
    assert flow.request("charge").body == {"token": "t", "amount": 100}
    flow.ok("charge", {"id": "r"})
    assert flow.execution.result == Receipt("r")


def test_a_dependent_of_a_quick_step_does_not_wait_for_a_slow_sibling() -> None:
    """There are no layers."""

    @step(service="cards")
    def quick(token: Token) -> Asks[None]:
        return post("cards", "/quick")

    flow = Driven(tokenise, price, quick)
    flow.ok("tokenise", {"token": "t"})
    assert flow.pending == {"price", "quick"}


def test_options_reach_the_call() -> None:
    """As they would with `Saga.step`."""
    flow = Driven(tokenise, price, charge)
    flow.ok("tokenise", {"token": "t"})
    flow.ok("price", {"amount": 1})
    call = flow.execution.calls["charge"]
    assert (call.timeout, call.deadline, call.into) == ("3s", "1m", Receipt)


def test_an_undo_is_made_of_the_outcome_and_the_inputs_it_names() -> None:
    """By their names; its requests go where the step's go."""
    flow = Driven(tokenise.on("vault"), price)
    assert flow.request("tokenise").service == "vault"
    assert flow.undo("tokenise", Token("t")) == delete("vault", "/tokens/t/42")


def test_an_async_undo_runs_here() -> None:
    """As a local call."""

    async def release(token: Token, card: Card) -> None: ...

    @step(service="cards", undo=release)
    def stores(card: Card) -> Asks[Token]:
        return post("cards", "/")

    flow = Driven(stores)
    assert isinstance(flow.undo("stores", Token("t")), LocalCall)


def test_an_outcome_of_another_shape_fails_the_command_and_names_the_step() -> None:
    """With the code bad_outcome."""
    flow = Driven(tokenise, price)
    flow.ok("tokenise", {"tok": "t"})
    assert isinstance(flow.error, StepFailed)
    assert (flow.error.step, flow.error.failure.code) == ("tokenise", "bad_outcome")
    assert "no Token" in flow.error.failure.message


def test_an_input_that_nobody_has_given_is_waited_for_by_name() -> None:
    """What can run meanwhile runs; the datum is decoded as its type."""

    @step(service="bank")
    def verify(token: Token, otp: Otp) -> Asks[None]:
        return post("bank", "/verify", {"otp": otp})

    flow = Driven(tokenise, verify, provided=(Otp,))
    flow.ok("tokenise", {"token": "t"})
    assert flow.pending == set()
    assert [wait.call.channel for wait in flow.execution.waiting] == ["Otp"]
    flow.datum("Otp", "123")
    assert flow.request("verify").body == {"otp": "123"}


def test_a_datum_of_another_shape_is_passed_over() -> None:
    """The door refuses it; what slipped through must not end a payment."""

    @step(service="bank")
    def verify(otp: Otp) -> Asks[None]:
        return post("bank", "/verify", {"otp": otp})

    flow = Driven(verify, provided=(Otp,))
    flow.datum("Otp", {"x": 1})
    assert [wait.name for wait in flow.execution.waiting] == ["Otp#2"]
    flow.datum("Otp", "123")
    assert flow.pending == {"verify"}


def test_a_field_of_the_payload_that_may_be_null_may_be_provided() -> None:
    """From the payload where it is there, from clients otherwise."""
    steps = (price, tokenise)
    there = Driven(*steps, provided=(Coupon,), given=Payment(Card("1"), 100, Coupon(10)))
    assert there.execution.calls["price"].request.args[0].given["coupon"] == Coupon(10)  # type: ignore[union-attr]
    later = Driven(*steps, provided=(Coupon,))
    assert later.execution.calls["price"].request.args[0].given["coupon"] is None  # type: ignore[union-attr]
    later.datum("Coupon", {"percent": 5})
    later.ok("price", {"amount": 100})
    assert later.pending == {"tokenise", "price#2"}


def test_an_optional_input_is_run_without_and_runs_again_who_says_so() -> None:
    """A step that has not run yet sees the newest; one that does not rerun keeps what it did."""

    @step(service="bank", reruns=True)
    def invoice(receipt: ReadOnly[Receipt], price: Price) -> Asks[None]:
        return post("bank", "/invoices", {"amount": price.amount, "receipt": receipt.id})

    flow = Driven(tokenise, price, charge, invoice, late=(Coupon,), revision=2)
    flow.ok("price", {"amount": 100})
    flow.ok("tokenise", {"token": "t"})
    flow.ok("charge", {"id": "r"})
    flow.ok("invoice", None)
    assert not flow.execution.done
    flow.datum("Coupon", {"percent": 30})
    assert flow.pending == {"price#2"}
    flow.ok("price#2", {"amount": 70})
    assert flow.pending == {"invoice#2"}
    assert flow.request("invoice#2").body == {"amount": 70, "receipt": "r"}
    flow.ok("invoice#2", None)
    assert flow.execution.done


def test_a_step_may_be_left_out() -> None:
    """It returns no request: shown as skipped, its datum is none, and who takes it so goes on after it."""

    @step(service="shop")
    def look_up(payment: Payment) -> Asks[Coupon] | None:
        return post("shop", "/coupons") if payment.amount > 1000 else None

    small = Driven(look_up, price, payload=Order, given=Order(Payment(Card("1"), 20)))
    assert small.execution.skipped == {"look_up": "shop"}
    assert small.pending == {"price"}
    large = Driven(look_up, price, payload=Order, given=Order(Payment(Card("1"), 2000)))
    assert large.pending == {"look_up"}
    large.ok("look_up", None)
    assert large.pending == {"price"}


def test_a_step_without_an_outcome_may_be_left_out_too() -> None:
    """Nobody takes anything from it."""

    @step(service="mail")
    def thank(payment: Payment) -> Asks[None] | None:
        return None

    assert Driven(thank).execution.skipped == {"thank": "mail"}


class Order(msgspec.Struct):
    payment: Payment


def test_a_step_with_the_saga_is_a_part_of_exec() -> None:
    """It may wait for people, sleep, and take steps of its own."""

    @step
    async def approve(saga: Saga, payment: Payment) -> Decision:
        await saga.step("warn", post("mail", "/"))
        return await saga.decision("boss", input=payment.amount)

    @step(service="cards")
    def after(card: Card, approval: Decision) -> Asks[None]:
        return post("cards", "/", {"by": approval.by})

    flow = Driven(approve, after)
    flow.ok("warn")
    assert [wait.name for wait in flow.execution.waiting] == ["boss"]
    flow.datum("boss", {"approve": True, "comment": ""}, channel="decision", by="ann")
    assert flow.request("after").body == {"by": "ann"}


def test_what_a_part_of_exec_makes_has_its_shape() -> None:
    """Else the command fails, with that step and that reason."""

    @step
    async def wrong(saga: Saga, card: Card) -> Token:
        return "t"  # type: ignore[return-value]

    flow = Driven(wrong)
    assert (flow.error.step, flow.error.failure.code) == ("wrong", "bad_outcome")


def test_a_step_may_hand_out_an_address_for_the_answer() -> None:
    """A step that asks may have the saga too, for what is made and not awaited."""

    @step(service="bank")
    def redirect(saga: Saga, card: Card) -> Asks[None]:
        return post("bank", "/redirects", {"id": saga.id})

    assert Driven(redirect).request("redirect").body == {"id": "c"}


def test_a_plain_function_computes_as_a_local_step() -> None:
    """It is recorded like any step, so it runs once."""

    @step
    def total(payment: Payment) -> Price:
        return Price(payment.amount)

    flow = Driven(total)
    assert flow.pending == {"total"}


async def test_an_operators_input_replaces_that_of_a_local_step() -> None:
    """The value of its only datum, or an object by parameter."""
    flow = Driven(price)
    found = await flow.compute("price", {"payment": {"card": {"number": "1"}, "amount": 7}})
    assert found == Price(7)

    @step
    async def only(card: Card) -> Token:
        return Token(card.number)

    assert await Driven(only).compute("only", {"number": "9"}) == Token("9")


def test_what_asks_nothing_by_mistake_says_so() -> None:
    """The command goes to the dead letters with a sentence, not with a riddle."""

    @step(service="cards")
    def forgets(card: Card) -> Asks[Token]:
        post("cards", "/tokens")  # no return
        return None  # type: ignore[return-value]

    flow = Driven(forgets)
    with pytest.raises(TypeError, match="step forgets returns the Request to make, not NoneType"):
        raise flow.error


def test_a_flow_with_a_savepoint_tries_again_from_there() -> None:
    """As `Saga.savepoint` does."""

    @step(service="cards", savepoint=Savepoint(attempts=1))
    def reserve(card: Card) -> Asks[Token]:
        return post("cards", "/reserve")

    flow = Driven(reserve, price, charge)
    flow.ok("reserve", {"token": "t"})
    flow.ok("price", {"amount": 1})
    flow.no("charge")
    assert flow.pending == {"charge#2"}
    flow.no("charge#2")
    assert flow.error.step == "charge#2"
