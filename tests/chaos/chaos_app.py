"""What the daemons of the chaos tests run: an order of three steps with an undo each, and a probe that does nothing."""

from __future__ import annotations

from typing import Any

import msgspec

from coordinator import App, Saga, post

app = App()

STEPS = (("reserve", "stock"), ("charge", "payments"), ("ship", "shipping"))


@app.command(services=["stock", "payments", "shipping"])
class Order(msgspec.Struct):
    """``decline`` names the step that its service refuses; then what was done before is undone.

    ``hold``: for how long (s) the second step's service keeps its answer back.
    """

    decline: str = ""
    hold: float = 0

    async def exec(self, saga: Saga) -> dict[str, Any]:
        keys = []
        for name, service in STEPS:
            body = {"decline": name == self.decline, "hold": self.hold if name == "charge" else 0}
            keys.append((await saga.step(name, post(service, "/do", body), undo=post(service, "/undo")))["key"])
        return {"keys": keys}


@app.command(services=[])
class Probe(msgspec.Struct):
    """Ends as soon as it is accepted: asks whether a partition takes commands."""

    async def exec(self, saga: Saga) -> str:
        return "here"
