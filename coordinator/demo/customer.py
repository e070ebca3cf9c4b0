"""Who orders: one order after the other, each to its end; the client alone copes with what goes wrong meanwhile."""

from __future__ import annotations

from collections.abc import Iterator

from coordinator_client import AsyncClient, CoordinatorError

from coordinator.demo.orders import PlaceOrder
from coordinator.demo.tally import Tally


async def customer(client: AsyncClient, waiting: Iterator[PlaceOrder], tally: Tally) -> None:
    """Submits what is waiting, and tells the tally what became of it."""
    for order in waiting:
        try:
            command = await client.submit("PlaceOrder", order, id=order.order, wait="2m")
        except CoordinatorError as error:
            tally.gave_up(order.order, f"{type(error).__name__}: {error}")
        else:
            tally.ended(order.order, command.state)
