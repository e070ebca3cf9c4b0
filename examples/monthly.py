"""A monthly schedule: the month is closed on the first at nine, Zurich time, one run after the other.

Shows a schedule with a time zone and with ``overlap``: where a month has not been closed when the next one is due,
the next one waits.  monthly.json is what is put; its command is a definition, and could as well be ``{"type":
"CloseMonth", "payload": {"ledger": "main"}}``, which is the code below.

    coordinator serve --config examples/worked.toml --app examples.monthly:app
    coordinator schedules put monthly examples/monthly.json
    coordinator schedules get monthly      # when next, what became of the last run
    coordinator schedules pause monthly --reason "the end of the year is closed by hand"
    coordinator list --attribute schedule=monthly      # its runs: monthly@2026-12-01T08:00:00Z

Things to try: replace "cron" and "timezone" by "every": "10s", and watch.
"""

from msgspec import Struct

from coordinator import App, Saga, post

app = App()


class Done(Struct):
    id: str


@app.command(services=["warehouse", "mail"])
class CloseMonth(Struct):
    ledger: str

    async def exec(self, saga: Saga) -> dict[str, str]:
        # The id of a run tells its due time, whenever it really runs: "monthly@2026-12-01T08:00:00Z".
        due = saga.id.partition("@")[2]
        closed = await saga.step(
            "close",
            post("warehouse", "/closings", {"ledger": self.ledger, "due": due}),
            into=Done,
            undo=lambda done: post("warehouse", f"/closings/{done.id}/reopen"),
        )
        await saga.step("report", post("mail", "/mails", {"closing": closed.id, "due": due}))
        return {"closing": closed.id}
