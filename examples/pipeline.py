"""A data pipeline: two extracts side by side, a check that decides the way, a load that is tried again.

Shows fork and join, a condition with two ways that come together again, and a savepoint: when the load fails, it is
undone and made again from there, and nothing is extracted twice.  pipeline.json is the same as a definition, with
blocks, ``when`` and ``else``; this file is what it looks like in code.

    coordinator serve --config examples/worked.toml --app examples.pipeline:app
    coordinator definitions put examples/pipeline.json
    coordinator definitions diagram pipeline 1
    coordinator submit pipeline --payload '{"day": "2026-11-21", "enrich": true}' --wait 30s
    coordinator submit Pipeline --payload '{"day": "2026-11-21", "enrich": true}' --wait 30s

Things to try: "enrich": false (the step is shown as skipped), "day": "1999-12-31" (the check finds bad rows, which take
the other way).
"""

from msgspec import Struct

from coordinator import App, Saga, post

app = App()


class Rows(Struct):
    id: str
    bad: int = 0


@app.command(services=["warehouse", "mail"])
class Pipeline(Struct):
    day: str
    enrich: bool = False

    async def exec(self, saga: Saga) -> dict[str, str]:
        orders, customers = await saga.all(self.extract(saga, "orders"), self.extract(saga, "customers"))
        checked = await saga.step(
            "check", post("warehouse", "/checks", {"day": self.day, "rows": [orders.id, customers.id]}), into=Rows
        )
        if checked.bad == 0:
            loaded = await saga.savepoint("loading", lambda: self.load(saga, checked), attempts=2)
        else:
            loaded = await saga.step("quarantine", post("warehouse", "/quarantine", {"rows": checked.id}), into=Rows)
        await saga.step("report", post("mail", "/mails", {"day": self.day, "rows": loaded.id}))
        return {"rows": loaded.id}

    async def extract(self, saga: Saga, table: str) -> Rows:
        return await saga.step(
            table,
            post("warehouse", f"/extracts/{table}", {"day": self.day}),
            into=Rows,
            undo=lambda rows: post("warehouse", f"/extracts/{rows.id}/drop"),
        )

    async def load(self, saga: Saga, checked: Rows) -> Rows:
        loaded = await saga.step(
            "load",
            post("warehouse", "/loads", {"rows": checked.id}),
            into=Rows,
            undo=lambda rows: post("warehouse", f"/loads/{rows.id}/drop"),
        )
        if self.enrich:
            await saga.step("enriched", post("warehouse", "/enrichments", {"rows": loaded.id}))
        await saga.step("index", post("warehouse", "/indexes", {"rows": loaded.id}))
        return loaded
