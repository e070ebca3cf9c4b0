"""The commands of the scenarios in code; their definitions stand in the tests, beside what they are to do."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from msgspec import Struct

from coordinator.flow import Asks, Flow, ReadOnly, step
from coordinator.model.call import Request
from coordinator.saga import App, PauseAfter, Retry, Saga, post

app = App()


def do(saga: Saga, name: str, body: Any = None, **rest: Any) -> Awaitable[Any]:
    """A step at ``stock`` that has an undo."""
    return saga.step(name, post("stock", f"/{name}", body), undo=post("stock", f"/{name}/undo"), **rest)


# ---------------------------------------------------------------- 1: data flow


class Order(Struct):
    id: str = "o-1"


class Quick(Struct):
    id: str


class Slow(Struct):
    id: str


class Next(Struct):
    id: str


class Price(Struct):
    id: str


class Paid(Struct):
    id: str


class Report(Struct):
    id: str


class Otp(Struct):
    code: str


class Coupon(Struct):
    off: int


def ask(name: str, body: Any = None) -> Request:
    return post("stock", f"/{name}", body)


def back(name: str) -> Request:
    return post("stock", f"/{name}/undo")


@step(service="stock", undo=back("quick"))
def quick(order: Order) -> Asks[Quick]:
    return ask("quick", {"order": order.id})


@step(service="stock", undo=back("slow"))
def slow(order: Order) -> Asks[Slow]:
    return ask("slow", {"order": order.id})


@step(service="stock", undo=back("next"))
def following(quick: Quick) -> Asks[Next]:
    return ask("next", {"quick": quick.id})


@step(service="stock", undo=back("price"), reruns=True)
def price(order: Order, coupon: Coupon | None) -> Asks[Price]:
    return ask("price", {"off": coupon.off if coupon else 0})


@step(service="stock", undo=back("pay"), reruns=True)
def pay(next: Next, slow: Slow, otp: Otp, price: ReadOnly[Price]) -> Asks[Paid]:
    return ask("pay", {"code": otp.code})


@step(service="stock", undo=back("report"), reruns=True)
def report(paid: Paid, price: Price) -> Asks[Report]:
    return ask("report", {"price": price.id})


STEPS = [report, pay, price, following.named("next"), slow, quick]  # in no order: their types say it
Flow("Paying", payload=Order, steps=STEPS, provided=[Otp], late=[Coupon], result=Report, app=app)
Flow("Looking", payload=Order, steps=[quick.on("payments"), following.named("look")], result=Next, app=app)


# ---------------------------------------------------------------- 2: fork and join


@app.command()
class Nested(Struct):
    """a, then b beside (c and d side by side, then e), then z."""

    async def exec(self, saga: Saga) -> None:
        await do(saga, "a")
        await saga.all(do(saga, "b"), self.inner(saga))
        await do(saga, "z")

    async def inner(self, saga: Saga) -> None:
        await saga.all(do(saga, "c"), do(saga, "d"))
        await do(saga, "e")


@app.command()
class First(Struct):
    """The first of two that succeeds, then z."""

    keep: bool = False

    async def exec(self, saga: Saga) -> Any:
        won = await saga.any(do(saga, "fast"), do(saga, "slow"), losers="keep" if self.keep else "undo")
        await do(saga, "z")
        return won["id"]


@app.command()
class Gifts(Struct):
    """Two branches, in one of which a step is left out, then z."""

    gift: bool

    async def exec(self, saga: Saga) -> None:
        await saga.all(do(saga, "pack"), self.wrapped(saga))
        await do(saga, "z")

    async def wrapped(self, saga: Saga) -> None:
        if self.gift:
            await do(saga, "wrap")
        await do(saga, "card")


# ---------------------------------------------------------------- 4: savepoints


@app.command()
class Saved(Struct):
    """a, then b and c behind a savepoint."""

    then: Any = "retry"
    attempts: int = 1
    exhausted: Any = "undo"

    async def exec(self, saga: Saga) -> None:
        await do(saga, "a")
        await saga.savepoint(
            "a", lambda: self.rest(saga), then=self.then, attempts=self.attempts, exhausted=self.exhausted
        )

    async def rest(self, saga: Saga) -> None:
        await do(saga, "b")
        await do(saga, "c")


# ---------------------------------------------------------------- 5: decisions


@app.command()
class Decided(Struct):
    """a, then two people asked at once, then z."""

    async def exec(self, saga: Saga) -> Any:
        await do(saga, "a")
        ann, bob = await saga.all(
            saga.decision("ann", input={"amount": 5}, roles=["boss", "owner"]), saga.decision("bob", input="please")
        )
        await do(saga, "z", {"by": [ann.by, bob.by]})
        return [ann.comment, bob.comment]


@app.command()
class OneDecision(Struct):
    """a, then a decision as its options say."""

    timeout: str | None = None
    on_timeout: Any = "reject"
    rejected: Any = "fail"

    async def exec(self, saga: Saga) -> Any:
        await do(saga, "a")
        decision = await saga.decision("ok", timeout=self.timeout, on_timeout=self.on_timeout, rejected=self.rejected)
        await do(saga, "yes" if decision.approve else "no")
        return decision.approve


# ---------------------------------------------------------------- 6: signals and callbacks


@app.command()
class Told(Struct):
    """a, then two data of one name, then z with them."""

    async def exec(self, saga: Saga) -> Any:
        await do(saga, "a")
        data = [await saga.receive("news"), await saga.receive("news", step="more")]
        await do(saga, "z", data)
        return data


@app.command()
class CalledBack(Struct):
    """A service is given an address, and answers there later."""

    async def exec(self, saga: Saga) -> Any:
        await do(saga, "ask", {"answer_to": saga.callback_url("answer")})
        return await saga.receive("answer")


# ---------------------------------------------------------------- 7: time


@app.command()
class Sleeper(Struct):
    """a, a sleep, z."""

    duration: str

    async def exec(self, saga: Saga) -> None:
        await do(saga, "a")
        await saga.sleep(self.duration)
        await do(saga, "z")


@app.command()
class Hurried(Struct):
    """a, then b with a deadline of its own, which is tried again and again."""

    async def exec(self, saga: Saga) -> None:
        await do(saga, "a")
        await do(saga, "b", retry=Retry(attempts=1000, first="50ms"), deadline="700ms")


@app.command(deadlines={"waiting": "600ms"})
class Impatient(Struct):
    """a, then a datum that is not waited for for long, then z."""

    async def exec(self, saga: Saga) -> None:
        await do(saga, "a")
        await saga.receive("news")
        await do(saga, "z")


# ---------------------------------------------------------------- 8, 9, 11: operators


@app.command()
class Plain(Struct):
    """a, b, c."""

    async def exec(self, saga: Saga) -> None:
        for name in ("a", "b", "c"):
            await do(saga, name)


@app.command(on_failure="dead_letter")
class Letters(Struct):
    """a beside (b, then c), then z with their outcomes."""

    async def exec(self, saga: Saga) -> Any:
        _, last = await saga.all(do(saga, "a", {"given": "old"}), self.branch(saga))
        await do(saga, "z", last)
        return last["id"]

    async def branch(self, saga: Saga) -> Any:
        await do(saga, "b")
        return await do(saga, "c")


@app.command(pause_after=PauseAfter(errors=3))
class Paused(Struct):
    """a, which is tried often; three errors pause it until an operator comes."""

    async def exec(self, saga: Saga) -> None:
        await do(saga, "a", retry=Retry(attempts=50, first="20ms", max="20ms"))


@app.command(pause_after=PauseAfter(errors=3, resume_after="1s"))
class PausedForAWhile(Paused):
    """As Paused, and it goes on by itself."""


@app.command()
class Undoing(Struct):
    """a and b, whose undos are tried twice, then c."""

    async def exec(self, saga: Saga) -> None:
        for name in ("a", "b"):
            await do(saga, name, undo_retry=Retry(attempts=2, first="20ms"))
        await do(saga, "c")
