"""A first saga, as code: reserve, charge, ship; undone in reverse order when one of them is refused.

coordinator serve --config examples/coordinator.toml --app examples.orders:app
coordinator submit PlaceOrder --payload '{"order": "o-1", "item": "lamp", "amount": 1999, "city": "Porto"}' --wait 30s
"""

from msgspec import Struct

from coordinator import App, Saga, post

app = App()


class Ticket(Struct):
    id: int


@app.command(services=["stock", "payments", "shipping"])
class PlaceOrder(Struct):
    order: str
    item: str
    amount: int
    city: str

    async def exec(self, saga: Saga) -> dict[str, int]:
        await saga.step(
            "reserve",
            post("stock", "/reservations", {"order": self.order, "item": self.item}),
            into=Ticket,
            undo=lambda done: post("stock", f"/reservations/{done.id}/release"),
        )
        charge = await saga.step(
            "charge",
            post("payments", "/charges", {"order": self.order, "amount": self.amount}),
            into=Ticket,
            undo=lambda done: post("payments", f"/charges/{done.id}/refund"),
        )
        await saga.step("ship", post("shipping", "/shipments", {"order": self.order, "city": self.city}))
        return {"receipt": charge.id}
