"""Order fulfilment: charge and pack side by side, ask two carriers at once, and keep the first that says yes.

Shows fork and join of all (`saga.all`), join of any (`saga.any`: the other carrier is cancelled), and undo: whatever
fails, all that was done is undone in reverse order, across the branches.  fulfilment.json says the same without code.

    coordinator serve --config examples/worked.toml --app examples.fulfilment:app
    coordinator submit Fulfil --id f-1 --payload '{"order": "o-1", "item": "lamp", "amount": 1999}' --wait 30s
    coordinator diagram f-1      # the picture, with what became of each step
    coordinator definitions put examples/fulfilment.json
    coordinator submit fulfilment --id f-2 --payload '{"order": "o-2", "item": "lamp", "amount": 1999}' --wait 30s

Things to try: "item": "glass" (the courier refuses, so the post takes it), "amount": 9500 (the bank refuses: what was
picked goes back to the shelf).
"""

from msgspec import Struct

from coordinator import App, Saga, post

app = App()


class Done(Struct):
    id: str


@app.command(services=["stock", "bank", "carriers", "mail"])
class Fulfil(Struct):
    order: str
    item: str
    amount: int

    async def exec(self, saga: Saga) -> dict[str, str]:
        await saga.all(self.charge(saga), self.pack(saga))
        parcel = await saga.any(self.carry(saga, "courier"), self.carry(saga, "post"))
        await saga.step("tell", post("mail", "/mails", {"parcel": parcel.id}))
        return {"parcel": parcel.id}

    async def charge(self, saga: Saga) -> None:
        await saga.step(
            "charge",
            post("bank", "/charges", {"order": self.order, "amount": self.amount}),
            into=Done,
            undo=lambda done: post("bank", f"/charges/{done.id}/refund"),
        )

    async def pack(self, saga: Saga) -> None:
        await saga.step(
            "pick",
            post("stock", "/picks", {"order": self.order, "item": self.item}),
            into=Done,
            undo=lambda done: post("stock", f"/picks/{done.id}/return"),
        )
        await saga.step("wrap", post("stock", "/wraps", {"order": self.order}))

    async def carry(self, saga: Saga, carrier: str) -> Done:
        return await saga.step(
            carrier,
            post("carriers", f"/{carrier}", {"order": self.order, "item": self.item}),
            into=Done,
            undo=lambda done: post("carriers", f"/{carrier}/{done.id}/cancel"),
        )
