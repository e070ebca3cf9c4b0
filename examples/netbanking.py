"""Netbanking: the customer is sent to the bank's page, and the bank answers when it likes.

Shows `saga.callback_url`: the bank is given two addresses that nobody can guess.  To one it POSTs what became of the
payment, to the other it sends the customer's browser back (GET).  Each counts once, whoever comes first, and whatever
crashes meanwhile.  Pricing and the invoice are the same steps as in card_payment.py.  netbanking.json says the same.

    coordinator serve --config examples/worked.toml --app examples.netbanking:app
    coordinator submit Netbanking --id n-1 --payload '{"cart": {"order": "o-1", "amount": 1999}, "customer": "ann"}'
    coordinator get n-1      # it waits for BankAnswer; the services' terminal shows both addresses
    curl 'RETURN_TO?lang=pt'
    curl 'ANSWER_TO' -d '{"status": "paid", "reference": "b-7"}'
    coordinator get n-1 --wait 30s

Things to try: the bank first; the bank twice; ``"status": "refused"``; nobody answers for a day.
"""

from msgspec import Struct

from coordinator import App, Asks, CommandFailed, Flow, Saga, post, step
from examples.invoicing import Cart, Coupon, Invoice, Paid, Price, generate_invoice, price

app = App()


class Netbanking(Struct):
    cart: Cart
    customer: str


class Session(Struct):
    """The bank's page for this payment."""

    id: str
    amount: int


class BankAnswer(Struct):
    status: str
    reference: str = ""


class Returned(Struct):
    """The customer's browser is back; what it brings are texts."""

    lang: str = "en"


@step(service="bank", undo=lambda session: post("bank", f"/sessions/{session.id}/close"))
def open_session(saga: Saga, price: Price) -> Asks[Session]:
    return post(
        "bank",
        "/sessions",
        {
            "amount": price.amount,
            "answer_to": saga.callback_url("BankAnswer"),
            "return_to": saga.callback_url("Returned"),
        },
    )


@step
async def settle(session: Session, answer: BankAnswer) -> Paid:
    """Runs in the coordinator: a refusal fails the command, and undoes it."""
    if answer.status != "paid":
        raise CommandFailed(f"the bank says {answer.status}", code="not_paid")
    return Paid(answer.reference, session.amount)


@step(service="mail")
def thank(invoice: Invoice, returned: Returned | None) -> Asks[None]:
    """On the page that the customer sees if they are back; by mail otherwise."""
    return post("mail", f"/thanks/{'mail' if returned is None else returned.lang}", {"invoice": invoice.id})


netbanking = Flow(
    "Netbanking",
    payload=Netbanking,
    steps=[price, open_session, settle, generate_invoice, thank],
    provided=[BankAnswer, Returned, Coupon],
    result=Invoice,
    deadlines={"waiting": "1d"},
    app=app,
)
