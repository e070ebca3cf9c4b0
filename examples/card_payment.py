"""Card payment with a one-time password, as a data flow: order and parallelism follow from what each step takes.

Shows steps out of a library (invoicing.py), a datum that is waited for (``Otp``; a wrong one is asked for again), one
that may come (``Coupon``: before the end it changes the price, afterwards it opens the command again and makes another
invoice), and a deadline for waiting: a password that comes after half an hour is too late, and all is undone.
card_payment.json says the same.

    coordinator serve --config examples/worked.toml --app examples.card_payment:app
    coordinator submit CardPayment --id p-1 \\
        --payload '{"card": {"number": "4111"}, "cart": {"order": "o-1", "amount": 1999}}'
    coordinator get p-1      # it waits for Otp
    coordinator provide p-1 Otp --payload '{"code": "9999"}'      # wrong: it waits again
    coordinator provide p-1 Otp --payload '{"code": "1234"}'
    coordinator get p-1 --wait 30s
    coordinator provide p-1 Coupon --payload '{"code": "XMAS", "off": 500}'
    coordinator get p-1 --wait 30s      # revision 2, with another invoice
    coordinator diagram p-1
"""

from msgspec import Struct

from coordinator import App, Asks, Flow, ReadOnly, post, step
from examples.invoicing import (
    Card,
    Cart,
    Coupon,
    Invoice,
    Otp,
    Paid,
    Price,
    Token,
    Verified,
    challenge,
    generate_invoice,
    price,
    tokenise,
    verify_otp,
)  # fmt: skip

app = App()


class Payment(Struct):
    card: Card
    cart: Cart


@step(service="bank", undo=lambda paid: post("bank", f"/charges/{paid.id}/refund"))
def charge(token: Token, verified: Verified, price: ReadOnly[Price]) -> Asks[Paid]:
    """Once, whatever coupons come later."""
    return post("bank", "/charges", {"token": token.id, "challenge": verified.challenge, "amount": price.amount})


payment = Flow(
    "CardPayment",
    payload=Payment,
    steps=[price, tokenise, challenge, verify_otp, charge, generate_invoice],
    provided=[Otp],
    late=[Coupon],
    result=Invoice,
    deadlines={"waiting": "30m"},
    app=app,
)
