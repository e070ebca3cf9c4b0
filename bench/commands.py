"""The saga that is measured: three POSTs of about 100 bytes in a row, each with an undo that is never needed."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from coordinator.saga import App, Saga, post

app = App()

NOTE = "a request body of about one hundred bytes"
PAYLOAD = {"order": "o-12345678", "amount": 1999, "note": NOTE}
STEPS = ("reserve", "charge", "ship")


class Answer(Struct):
    """What the service says."""

    id: str


@app.command(services=["bench"])
class ThreeSteps(Struct):
    """The saga as code."""

    order: str
    amount: int
    note: str

    async def exec(self, saga: Saga) -> dict[str, Any]:
        last = Answer("")
        for name in STEPS:
            last = await saga.step(
                name,
                post("bench", f"/{name}", {"order": self.order, "amount": self.amount, "note": self.note}),
                into=Answer,
                undo=lambda done: post("bench", f"/undo/{done.id}"),
            )
        return {"receipt": last.id}


DEFINITION: dict[str, Any] = {
    "name": "three_steps",
    "version": 1,
    "steps": [
        {
            "name": name,
            "service": "bench",
            "method": "POST",
            "path": f"/{name}",
            "body": {"order": "${payload.order}", "amount": "${payload.amount}", "note": "${payload.note}"},
            "undo": {"method": "POST", "path": f"/undo/${{steps.{name}.id}}"},
        }
        for name in STEPS
    ],
    "result": {"receipt": "${steps.ship.id}"},
}
"""The same as a definition: no code in the coordinator."""

TYPES = {"code": "ThreeSteps", "definition": "three_steps"}
