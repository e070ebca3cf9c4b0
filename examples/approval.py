"""Human approval: a large refund waits for a manager, two days at most, and a rejection goes another way.

Shows a decision with what it is about, who may decide, a timeout that counts as a rejection, and a path for those that
were rejected (``rejected="return"``; without it a rejection undoes the command).  approval.json says the same.

    coordinator serve --config examples/worked.toml --app examples.approval:app
    coordinator submit RefundRequest --id r-1 --payload '{"order": "o-1", "amount": 12000, "reason": "broken"}'
    coordinator decisions
    coordinator decide r-1 approve --approve --by ann --role manager --comment "our fault"
    coordinator get r-1

Things to try: decide without the role (403), twice (409, with who was first), ``--reject``; an amount up to 5000, which
nobody is asked about.
"""

from msgspec import Struct

from coordinator import App, Saga, post

app = App()

ASKED_ABOVE = 5000  # cents


@app.command(services=["bank", "mail"])
class RefundRequest(Struct):
    order: str
    amount: int
    reason: str

    async def exec(self, saga: Saga) -> dict[str, bool]:
        granted = self.amount <= ASKED_ABOVE or await self.approved(saga)
        if granted:
            await saga.step("refund", post("bank", "/refunds", {"order": self.order, "amount": self.amount}))
        await saga.step("tell", post("mail", "/mails", {"order": self.order, "granted": granted}))
        return {"granted": granted}

    async def approved(self, saga: Saga) -> bool:
        await saga.step(
            "hold",
            post("bank", "/holds", {"order": self.order, "amount": self.amount}),
            undo=post("bank", f"/holds/{self.order}/release"),
        )
        decision = await saga.decision(
            "approve",
            input={"order": self.order, "amount": self.amount, "reason": self.reason},
            roles=["manager"],
            timeout="2d",
            on_timeout="reject",
            rejected="return",
        )
        await saga.step("release", post("bank", f"/holds/{self.order}/release"))
        return decision.approve
