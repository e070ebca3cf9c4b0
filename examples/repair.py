"""Dead-letter repair: nothing is undone behind your back; a step that was refused waits for somebody to mend it.

Shows ``on_failure="dead_letter"`` (other branches finish, the join waits), `requeue` with a new input, a failed undo
that is marked as done by hand (`resolve`), and `pause_after`: five errors pause a command, which goes on after an hour.
repair.json says the same.

    coordinator serve --config examples/worked.toml --app examples.repair:app
    coordinator submit Dispatch --id d-1 --payload '{"order": "o-1", "street": "", "amount": 1999}'
    coordinator dead-letters
    coordinator requeue d-1 label --input '{"order": "o-1", "street": "Main Street 1"}'
    coordinator get d-1 --wait 30s

"sticky" is invoiced by a bank that will not take invoices back.  Cancelled while its label waits, its undo becomes a
dead letter; write the credit note by hand, and tell so:

    coordinator submit Dispatch --id d-2 --payload '{"order": "sticky", "street": "", "amount": 1999}'
    coordinator cancel d-2
    coordinator resolve d-2 invoice --reason "credit note 77 was written by hand" --by ann
    coordinator history d-2
"""

from msgspec import Struct

from coordinator import App, PauseAfter, Retry, Saga, post

app = App()


class Done(Struct):
    id: str


@app.command(services=["stock", "bank"], on_failure="dead_letter", pause_after=PauseAfter(errors=5, resume_after="1h"))
class Dispatch(Struct):
    order: str
    street: str
    amount: int

    async def exec(self, saga: Saga) -> dict[str, str]:
        label, invoice = await saga.all(
            saga.step(
                "label",
                post("stock", "/labels", {"order": self.order, "street": self.street}),
                into=Done,
                retry=Retry(attempts=2, first="200ms"),
                undo=post("stock", f"/labels/{self.order}/void"),
            ),
            saga.step(
                "invoice",
                post("bank", "/invoices", {"order": self.order, "amount": self.amount}),
                into=Done,
                undo=post("bank", f"/invoices/{self.order}/cancel"),
            ),
        )
        await saga.step("send", post("stock", "/parcels", {"label": label.id, "invoice": invoice.id}))
        return {"label": label.id, "invoice": invoice.id}
