"""Steps for whatever is paid for: a library that several flows share (card_payment.py, netbanking.py).

A step is a function whose types say what it takes and what it makes; it knows of no flow.  Who lists it among a flow's
steps gets its order, its parallelism and its undo with it.
"""

from msgspec import Struct

from coordinator import Asks, ReadOnly, Request, Saga, StepFailed, post, step

TRIES = 3


class Cart(Struct):
    order: str
    amount: int


class Coupon(Struct):
    """May come whenever it likes, also when all is paid."""

    code: str
    off: int


class Price(Struct):
    amount: int


class Card(Struct):
    number: str


class Token(Struct):
    """Stands for a card, so that nobody else sees its number."""

    id: str


class Challenge(Struct):
    """A bank's question to its customer, who is sent a one-time password."""

    id: str


class Otp(Struct):
    code: str


class Verified(Struct):
    challenge: str


class Paid(Struct):
    id: str
    amount: int


class Invoice(Struct):
    id: str
    amount: int


@step(reruns=True)
async def price(cart: Cart, coupon: Coupon | None) -> Price:
    """Runs at once without a coupon, and once more when there is one."""
    return Price(max(cart.amount - (coupon.off if coupon else 0), 0))


def forget(token: Token) -> Request:
    return post("cards", f"/tokens/{token.id}/forget")


@step(service="cards", undo=forget)
def tokenise(card: Card) -> Asks[Token]:
    return post("cards", "/tokens", {"number": card.number})


@step(service="bank")
def challenge(token: Token, price: ReadOnly[Price]) -> Asks[Challenge]:
    """The bank sends the password to the customer's telephone; nobody is asked again for a price that has changed."""
    return post("bank", "/challenges", {"token": token.id, "amount": price.amount})


@step
async def verify_otp(saga: Saga, challenge: Challenge, otp: Otp) -> Verified:
    """A wrong password is asked for again, three times in all.  Being given the saga, it is a part of `exec`."""
    for attempt in range(1, TRIES + 1):
        try:
            await saga.step("verify", post("bank", f"/challenges/{challenge.id}/verify", {"code": otp.code}))
        except StepFailed:
            if attempt == TRIES:
                raise
            otp = await saga.receive("Otp", into=Otp, step="otp_again")
        else:
            break
    return Verified(challenge.id)


@step(service="invoices", reruns=True, undo=lambda invoice: post("invoices", f"/invoices/{invoice.id}/cancel"))
def generate_invoice(paid: Paid, price: Price) -> Asks[Invoice]:
    """A price that has changed since makes another one, with what is to be paid back."""
    return post("invoices", "/invoices", {"paid": paid.id, "amount": price.amount, "back": paid.amount - price.amount})
