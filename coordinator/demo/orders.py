"""The saga of the demo: ``coordinator serve --app coordinator.demo.orders:app``."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from coordinator.saga import App, Saga, post

app = App()


class Ticket(Struct):
    """What each of the services answers: the number of what it did, which is needed to take it back."""

    id: int


@app.command(services=["stock", "payments", "shipping"])
class PlaceOrder(Struct):
    """Reserve, charge, ship; when one of them refuses, what was done before it is undone in reverse order."""

    order: str
    item: str
    amount: int  # cents
    city: str

    async def exec(self, saga: Saga) -> dict[str, Any]:
        reservation = await saga.step(
            "reserve",
            post("stock", "/reservations", {"order": self.order, "item": self.item}),
            into=Ticket,
            undo=lambda ticket: post("stock", f"/reservations/{ticket.id}/release"),
        )
        charge = await saga.step(
            "charge",
            post("payments", "/charges", {"order": self.order, "amount": self.amount}),
            into=Ticket,
            undo=lambda ticket: post("payments", f"/charges/{ticket.id}/refund"),
        )
        shipment = await saga.step(
            "ship",
            post("shipping", "/shipments", {"order": self.order, "city": self.city}),
            into=Ticket,
            undo=lambda ticket: post("shipping", f"/shipments/{ticket.id}/cancel"),
        )
        return {"reservation": reservation.id, "charge": charge.id, "shipment": shipment.id}
