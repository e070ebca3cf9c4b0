"""Building flows: what holds together, and every fault told when it is built, in a sentence that names it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, NewType

import msgspec
import pytest

from coordinator import (
    App,
    Asks,
    Datum,
    Flow,
    FlowError,
    PauseAfter,
    ReadOnly,
    Request,
    Retry,
    Saga,
    Savepoint,
    post,
    step,
)


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


class Receipt(msgspec.Struct):
    id: str


Otp = NewType("Otp", str)

SOME = Token("x")


@step(service="cards")
def tokenise(card: Card) -> Asks[Token]:
    return post("cards", "/tokens", {"number": card.number})


@step(service="bank")
def verify(token: Token, otp: Otp) -> Asks[Proof]:
    return post("bank", "/verify", {"token": token.token, "otp": otp})


@step(service="bank")
def charge(proof: Proof, payment: Payment) -> Asks[Receipt]:
    return post("bank", "/charges", {"amount": payment.amount})


def flow(*steps: Any, **rest: Any) -> Flow:
    return Flow("Card", **{"payload": Payment, "steps": steps, **rest})


def faults(*steps: Any, **rest: Any) -> tuple[str, ...]:
    with pytest.raises(FlowError) as caught:
        flow(*steps, **rest)
    return caught.value.faults


# ---------------------------------------------------------------- what is registered


def test_a_flow_is_a_type_of_command() -> None:
    """Its name, version and payload, the services its steps declare, the data that it takes and their shapes."""
    made = flow(tokenise, verify, charge, provided=(Otp,), result=Receipt, version=3).type()
    assert (made.name, made.version, made.payload) == ("Card", 3, Payment)
    assert made.services == {"cards", "bank"}
    assert (made.data, made.reopens, made.shapes) == (frozenset({"Otp"}), frozenset(), {"Otp": Otp})


def test_with_an_app_it_is_registered_there() -> None:
    """Twice the same name and version is refused there, as of any command."""
    app = App()
    flow(tokenise, app=app)
    assert ("Card", 1) in app.commands
    with pytest.raises(ValueError, match="registered twice"):
        flow(tokenise, app=app)


def test_what_a_command_may_have_a_flow_may_have() -> None:
    """Dead-letter mode, deadlines of states, the pause after errors."""
    made = flow(
        tokenise, on_failure="dead_letter", deadlines={"waiting": "1h"}, pause_after=PauseAfter(errors=3)
    ).type()
    assert (made.on_failure, made.deadlines, made.pause_after) == (
        "dead_letter",
        {"waiting": 3_600_000},
        PauseAfter(errors=3),
    )


def test_a_step_that_does_not_say_whom_it_asks_makes_the_services_unknown() -> None:
    """Then an outage of any suspends the intake, as of a command that declares none."""

    @step
    def anywhere(card: Card) -> Asks[None]:
        return post("x", "/")

    assert flow(tokenise, anywhere).type().services == frozenset()
    assert flow(tokenise, anywhere, services=["cards"]).type().services == {"cards"}


def test_steps_are_values_that_a_flow_may_fit_in() -> None:
    """Under another name, at another service; the step itself is as it was."""
    fitted = tokenise.named("store").on("vault")
    assert (fitted.name, fitted.asks, tokenise.name, tokenise.asks) == ("store", "vault", "tokenise", "cards")
    assert flow(fitted).type().services == {"vault"}


def test_a_step_can_be_called_like_its_function() -> None:
    """So a test of it needs no flow."""
    assert tokenise(Card("4")) == post("cards", "/tokens", {"number": "4"})


def test_a_step_without_a_service_cannot_be_put_on_another() -> None:
    """There is none to ask another instead of."""

    @step
    def anywhere(card: Card) -> Asks[None]:
        return post("x", "/")

    with pytest.raises(ValueError, match="declares no service"):
        anywhere.on("y")


def test_a_datum_may_be_of_any_type_that_is_given_a_name() -> None:
    """Its name is the one to provide it by; its limits stay."""
    Items = Annotated[list[Annotated[str, msgspec.Meta(max_length=3)]], Datum("Items"), msgspec.Meta(max_length=2)]

    @step(service="a")
    def sends(items: Items) -> Asks[None]:
        return post("a", "/")

    made = flow(sends, provided=(Items,)).type()
    assert made.data == frozenset({"Items"})
    assert msgspec.convert(["a"], made.shapes["Items"]) == ["a"]
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(["a", "b", "c"], made.shapes["Items"])


def test_classes_of_other_makes_are_data_too() -> None:
    """Whatever msgspec can read: data classes, enumerations."""

    @dataclass
    class Address:
        street: str

    class Size(Enum):
        SMALL = "s"

    @step(service="a")
    def sends(address: Address, size: Size) -> Asks[None]:
        return post("a", "/")

    assert flow(sends, payload=Address, provided=(Size,)).type().data == frozenset({"Size"})


# ---------------------------------------------------------------- what is refused


def test_a_type_without_a_name_is_refused() -> None:
    """There would be nothing to provide it by."""

    @step(service="a")
    def sends(cards: list[Card]) -> Asks[None]:
        return post("a", "/")

    assert "has no name to know it by" in faults(sends)[0]


def test_all_faults_are_told_at_once() -> None:
    """In one error, each in a line of its own."""
    with pytest.raises(FlowError) as caught:
        flow(verify, charge, charge, provided=(Coupon,))
    assert str(caught.value).startswith("flow Card cannot be built:\n- ")
    assert caught.value.faults == (
        "two steps are called charge: give one another name, charge.named(…)",
        "Receipt comes from two: step charge and step charge",
        "step verify needs Token, which no step makes and nobody provides",
        "step verify needs Otp, which no step makes and nobody provides",
        "Coupon is provided, but no step takes it",
    )


def test_a_circle_is_shown_as_the_way_it_takes() -> None:
    """With the data that lead round."""

    @step(service="a")
    def first(card: Card, proof: Proof) -> Asks[Token]:
        return post("a", "/")

    @step(service="a")
    def second(token: Token) -> Asks[Proof]:
        return post("a", "/")

    assert faults(first, second) == ("steps wait for each other in a circle: first –Token→ second –Proof→ first",)


def test_an_optional_input_closes_a_circle_too() -> None:
    """It would run again for ever."""

    @step(service="a", reruns=True)
    def first(card: Card, proof: Proof | None) -> Asks[Token]:
        return post("a", "/")

    @step(service="a", reruns=True)
    def second(token: Token) -> Asks[Proof]:
        return post("a", "/")

    assert "circle" in faults(first, second)[0]


def test_a_datum_has_one_source() -> None:
    """Two steps, a step and who provides it, a field and who provides it, two fields: each pair is named."""

    class Twice(msgspec.Struct):
        card: Card
        spare: Card

    @step(service="a")
    def other(card: Card) -> Asks[Token]:
        return post("a", "/")

    assert faults(tokenise, other) == ("Token comes from two: step tokenise and step other",)
    assert faults(tokenise, verify, provided=(Otp, Token)) == (
        "Token comes from two: step tokenise and who provides it",
    )
    assert faults(tokenise, provided=(Card,)) == ("Card comes from two: the payload's field card and who provides it",)
    assert faults(tokenise, payload=Twice) == (
        "Card comes from two: the payload's field card and the payload's field spare",
    )


def test_a_result_that_no_step_makes_is_unreachable() -> None:
    """Also where it is in the payload: a flow that has nothing to do for its result is a mistake."""
    assert faults(tokenise, result=Receipt) == ("no step makes the result, Receipt",)
    assert faults(tokenise, result=Card) == ("no step makes the result, Card",)


def test_a_step_does_not_make_the_payload() -> None:
    """It is there from the start."""

    @step(service="a")
    def again(card: Card) -> Asks[Payment]:
        return post("a", "/")

    assert faults(again) == ("step again makes Payment, which is the payload",)


def test_what_has_no_type_is_refused() -> None:
    """Parameters, outcomes, and steps that are none."""

    @step
    def untyped(card, amount: int):  # type: ignore[no-untyped-def]
        return None

    @step
    def loose(card: Card) -> Request:
        return post("a", "/")

    def bare(card: Card) -> Asks[Token]:
        return post("a", "/")

    told = faults(untyped, loose, bare)
    assert told[0] == "'bare' is no step: decorate it with @step"
    assert "step untyped, parameter card has no type, so nobody knows which datum it takes" in told
    assert "step untyped does not say what it returns" in told
    assert any(fault.startswith("step untyped, parameter amount: int is no datum") for fault in told)
    assert "step loose returns a Request: say what its outcome is, Asks[…]" in told


def test_what_a_function_cannot_be_given_is_refused() -> None:
    """All is passed by name, each datum once; what may be missing says so in its type."""

    @step
    def odd(*cards: Card, token: Token = SOME) -> Asks[None]:
        return post("a", "/")

    @step
    def double(one: Card, two: Card) -> Asks[None]:
        return post("a", "/")

    @step
    def either(it: Card | Token) -> Asks[None]:
        return post("a", "/")

    told = "\n".join(faults(odd, double, either, tokenise))
    assert "parameter cards: it is passed by name, so it cannot be *cards" in told
    assert "parameter token has a default: an input that may be missing is `Token | None`" in told
    assert "parameter two takes Card, as another parameter does" in told
    assert "parameter it: may be one of several; a step takes and makes one datum each" in told


def test_read_only_is_a_way_to_take() -> None:
    """Not one to make; and a step whose inputs are all read only cannot rerun."""

    @step(service="a")
    def makes(card: Card) -> Asks[ReadOnly[Token]]:
        return post("a", "/")

    @step(service="a", reruns=True)
    def never(card: ReadOnly[Card]) -> Asks[None]:
        return post("a", "/")

    assert faults(makes, never) == (
        "step makes makes a ReadOnly, which is a way to take a datum, not to make one",
        "step never reruns, but no input of it can run it again",
    )


def test_late_data_that_run_nothing_again_are_refused() -> None:
    """They would open the command again for nothing."""

    @step(service="a")
    def once(card: Card, coupon: Coupon | None) -> Asks[None]:
        return post("a", "/")

    assert faults(once, late=(Coupon,)) == ("Coupon comes late, but no step that takes it reruns",)


def test_an_outcome_that_may_be_none_is_taken_as_such() -> None:
    """Who needs the datum would never run."""

    @step
    async def found(card: Card) -> Coupon | None:
        return None

    @step(service="a")
    def needs(coupon: Coupon) -> Asks[None]:
        return post("a", "/")

    assert faults(found, needs) == ("step needs needs Coupon, but step found may give none: take Coupon | None",)


def test_a_field_that_may_be_null_is_no_source_of_what_is_needed_unless_it_is_provided_as_well() -> None:
    """Then clients may give it later."""

    class Open(msgspec.Struct):
        card: Card | None = None

    assert faults(tokenise, payload=Open) == (
        "step tokenise needs Card, but the payload's field card may give none: take Card | None",
    )
    assert flow(tokenise, payload=Open, provided=(Card,)).type().data == frozenset({"Card"})


def test_two_data_of_one_name_are_told_apart_by_another_name() -> None:
    """A class of the same name in another place is another type."""

    def elsewhere() -> type:
        class Token(msgspec.Struct):
            other: int

        return Token

    Other = elsewhere()

    @step(service="a")
    def takes(token: Other) -> Asks[None]:  # type: ignore[valid-type]
        return post("a", "/")

    @step(service="a")
    def renamed(token: Annotated[Other, Datum("OtherToken")]) -> Asks[None]:  # type: ignore[valid-type]
        return post("a", "/")

    assert "two different data are called Token" in faults(tokenise, takes)[0]
    assert flow(tokenise, renamed, provided=(Annotated[Other, Datum("OtherToken")],)).type().data == frozenset(
        {"OtherToken"}
    )


def test_an_undo_takes_the_outcome_and_inputs_by_name() -> None:
    """Anything else could not be given to it when it is needed."""

    @step(service="a", undo=lambda: post("a", "/undo"))
    def without(card: Card) -> Asks[Token]:
        return post("a", "/")

    @step(service="a", undo=lambda token, cart: post("a", "/undo"))
    def unknown(card: Card) -> Asks[Proof]:
        return post("a", "/")

    @step(service="a", undo="release")  # type: ignore[call-overload, untyped-decorator]
    def text(card: Card) -> Asks[Receipt]:
        return post("a", "/")

    assert faults(without, unknown, text) == (
        "step without: its undo takes the outcome as its first parameter",
        "step unknown: its undo takes 'cart', which is no parameter of the step",
        "step text: its undo is a Request or a function, not str",
    )


def test_a_step_that_is_given_the_saga_is_a_part_of_exec() -> None:
    """So it has none of what a call has; a plain function that computes cannot have it."""

    @step(service="a", timeout="1s")
    async def asks(saga: Saga, card: Card) -> Token:
        return Token("x")

    @step
    def computes(saga: Saga, card: Card) -> Proof:
        return Proof(True)

    assert faults(asks, computes) == (
        "step asks is given the saga, so it is no call: it has no service, timeout",
        "step computes runs outside exec and cannot have the saga: make it `async def`, or ask",
    )


def test_a_step_and_a_datum_have_names_of_their_own() -> None:
    """Both are shown among the command's steps."""

    @step(name="Otp", service="a")
    def otp(otp: Otp) -> Asks[None]:
        return post("a", "/")

    assert faults(otp, provided=(Otp,)) == ("a step and a datum that is provided are both called Otp",)


def test_services_that_are_given_are_all_that_its_steps_ask() -> None:
    """A step that declares another one is a mistake in one of the two places."""
    assert faults(tokenise, services=["bank"]) == ("step tokenise asks cards, which is not among the flow's services",)


def test_a_payload_whose_types_cannot_be_found_is_refused() -> None:
    """msgspec could not decode it either, but would only tell when a command comes."""

    class Inner(msgspec.Struct):
        x: int

    class Outer(msgspec.Struct):
        inner: Inner

    assert "name 'Inner' is not defined" in faults(tokenise, provided=(Card,), payload=Outer)[0]


def test_options_that_would_fail_later_fail_now() -> None:
    """Durations, retries, names, savepoints."""

    @step(service="a", timeout="soon", savepoint=Savepoint(attempts=0))
    def late(card: Card) -> Asks[Token]:
        return post("a", "/")

    @step(service="a", retry=Retry(attempts=0))
    def tired(card: Card) -> Asks[Proof]:
        return post("a", "/")

    told = faults(late, tired, tokenise.named("x/undo"))
    assert "step 'late': timeout: " in told[0]
    assert told[1].startswith("step late: a savepoint retries")
    assert any("retry.attempts" in fault for fault in told)
    assert any("does not end in /undo" in fault for fault in told)


def test_an_empty_flow_is_refused() -> None:
    """It does nothing."""
    assert faults() == ("it has no steps",)


def test_it_is_drawn_with_its_data() -> None:
    """A dotted arrow is an input that is not waited for."""

    @step(service="a", reruns=True)
    def invoice(receipt: ReadOnly[Receipt], coupon: Coupon | None) -> Asks[None]:
        return post("a", "/")

    assert flow(tokenise, verify, charge, invoice, provided=(Otp, Coupon), result=Receipt).diagram() == (
        "flowchart TD\n"
        '  payload[/"Payment"/]\n'
        '  d0[/"<b>Otp</b><br/>provided"/]\n'
        '  d1[/"<b>Coupon</b><br/>provided"/]\n'
        '  s0["<b>tokenise</b><br/>cards"]\n'
        '  s1["<b>verify</b><br/>bank"]\n'
        '  s2["<b>charge</b><br/>bank"]\n'
        '  s3["<b>invoice</b><br/>a"]\n'
        "  payload -->|Card| s0\n"
        "  s0 -->|Token| s1\n"
        "  d0 -->|Otp| s1\n"
        "  s1 -->|Proof| s2\n"
        "  payload -->|Payment| s2\n"
        "  s2 -.->|Receipt| s3\n"
        "  d1 -.->|Coupon| s3\n"
        '  result(["Receipt"])\n'
        "  s2 --> result\n"
    )
