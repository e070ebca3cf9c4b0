"""`coordinator simulate`: sagas with a mistake are found out, sound ones are not, and the page about it is right."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from msgspec import Meta, Struct

from coordinator.model.call import Request
from coordinator.saga import App, Saga, get, post
from coordinator.testing.simulator.examples import CannotMakeUp, made_up
from coordinator.testing.simulator.plan import Crash, Example, stream
from coordinator.testing.simulator.sagas import Examples, Run, Sagas, Unusable

PAGE = Path(__file__).parents[2] / "docs" / "simulator.md"
PAYLOAD = Example("Order", {"amount": 5})


class Elsewhere:
    """Something that changes while the daemon is away: what a saga must not look at."""

    count = 0

    @classmethod
    def next(cls) -> int:
        cls.count += 1
        return cls.count


class Line(Struct):
    item: str
    count: Annotated[int, Meta(gt=0, multiple_of=5)]


class Wish(Struct, tag="order"):
    lines: list[Line]
    kind: Literal["gift", "own"]
    note: str | None = None


class Coded(Struct):
    code: Annotated[str, Meta(pattern="^[A-Z]{3}$")]


def sagas(exec: Any, *, strict: bool = False, examples: Examples | None = None) -> Sagas:
    """An application whose one command does that."""

    class Order(Struct):
        amount: int

    Order.exec = exec  # type: ignore[attr-defined]
    app = App()
    app.command(services=["payments", "shipping"], name="Order")(Order)
    return Sagas(app, examples or Examples(commands=(PAYLOAD,)), strict=strict)


def charge(name: str = "charge", body: Any = None) -> dict[str, Any]:
    return {"name": name, "request": post("payments", "/charges", body), "undo": post("payments", "/refunds")}


def mistakes(made: Sagas) -> list[str]:
    """What is found in the crashes of its command, then in twenty worlds; empty: nothing."""
    runs: list[Run] = [*made.crashes(0), *(made.world(seed) for seed in range(20))]
    return [violation for run in runs for violation in run.report.violations]


# ---------------------------------------------------------------- what is found


def test_a_sound_saga_has_no_mistake() -> None:
    """Two steps with undo, answers that are used: nothing is found in any crash, and in no world."""

    async def exec(self: Any, saga: Saga) -> str:
        charged = await saga.step(**charge(body={"amount": self.amount}))
        await saga.step("ship", post("shipping", "/shipments", charged["id"]), undo=post("shipping", "/cancel"))
        return str(charged["id"])

    assert not mistakes(sagas(exec))


def test_a_name_that_changes_is_a_double_effect() -> None:
    """The charge of before the crash is live, and nobody knows of it: the second one has another key."""

    async def exec(self: Any, saga: Saga) -> None:
        await saga.step(**charge(f"charge-{Elsewhere.next()}"))
        await saga.step("ship", post("shipping", "/shipments"))

    assert any("is live, and the log has no outcome of it" in each for each in mistakes(sagas(exec)))


def test_a_step_that_comes_and_goes_is_found() -> None:
    """Whether it is issued hangs on the run: then the record has an answer that exec does not ask for any more."""

    async def exec(self: Any, saga: Saga) -> None:
        if Elsewhere.next() % 2:
            await saga.step("discount", post("payments", "/discounts"))
        await saga.step(**charge())
        await saga.step("ship", post("shipping", "/shipments"))

    assert any("does not issue any more" in each for each in mistakes(sagas(exec)))


def test_a_request_that_changes_is_found() -> None:
    """One key, two requests: the service answers the second as the first, whatever it asks for."""

    async def exec(self: Any, saga: Saga) -> None:
        await saga.step(**charge(body={"at": Elsewhere.next()}))

    assert any("step charge is asked for by POST payments/charges {'at':" in each for each in mistakes(sagas(exec)))


def test_an_exception_is_found_with_its_line() -> None:
    """An answer that is not what the code expects: found in the peaceful run already, before any crash."""

    async def exec(self: Any, saga: Saga) -> None:
        charged = await saga.step(**charge())
        raise KeyError(charged["number"])

    first, *rest = sagas(exec).crashes(0)
    assert not rest
    assert first.peaceful
    assert re.search(r"Order cannot go on: KeyError: 'number' \(test_sagas\.py, line \d+\)", first.report.violations[0])


def test_a_lack_of_undo_is_told_and_strictly_a_mistake() -> None:
    """The first of two effects has no undo, and stays when the second is refused."""

    async def exec(self: Any, saga: Saga) -> None:
        await saga.step("mail", post("shipping", "/mails"))
        await saga.step("look", get("shipping", "/stock"))
        await saga.step(**charge())

    runs = list(sagas(exec).crashes(0))
    assert {each for run in runs for each in run.left} == {("Order", "mail")}
    assert not any(run.report.violations for run in runs)
    strictly = {violation for run in sagas(exec, strict=True).crashes(0) for violation in run.report.violations}
    assert strictly == {"Order did not complete, and step mail has no undo"}


def test_a_definition_is_crashed_like_code() -> None:
    """Its services are those that it names; steps side by side, a retried one, and one that is left out."""
    definition = {
        "name": "order",
        "version": 1,
        "steps": [
            {"name": "reserve", "service": "stock", "path": "/r", "undo": {"path": "/r/${steps.reserve.id}/release"}},
            {"name": "charge", "service": "payments", "path": "/c", "after": [], "undo": {"path": "/refund"}},
            {"name": "gift", "service": "shipping", "path": "/g", "when": "false"},
            {
                "name": "ship",
                "service": "shipping",
                "path": "/s",
                "after": ["reserve", "charge", "gift"],
                "body": {"paid": "${steps.charge.id}"},
                "retry": {"attempts": 2, "first": "50ms"},
            },
        ],
    }
    made = Sagas(App(), Examples(commands=(Example(None, {}, definition),)))
    assert made.services == ("payments", "shipping", "stock")
    assert not mistakes(made)


def test_every_append_and_call_is_crashed_at() -> None:
    """Before and after, in peace and with each step declining; and in each such run the process really dies."""

    async def exec(self: Any, saga: Saga) -> None:
        await saga.step(**charge())

    made = sagas(exec)
    runs = list(made.crashes(0))
    assert made.calm(0).report.lives == 1
    crashed = [run for run in runs if "--crash" in run.again]
    assert all(run.report.lives == 2 for run in crashed)
    assert "--command 0 --crash call:1:after --declining charge" in [run.again for run in crashed]
    again = made.calm(0, Crash("append", 2, after=True))
    assert again.report.trace == next(run for run in runs if run.again.endswith("append:2:after")).report.trace


# ---------------------------------------------------------------- payloads and answers


def test_answers_are_an_examples_else_of_the_type_that_is_asked_for() -> None:
    """An example's answer comes first; then ``into``; then something with an id."""

    class Ticket(Struct):
        number: Annotated[int, Meta(ge=10, le=12)]

    seen = []

    async def exec(self: Any, saga: Saga) -> None:
        seen.append(await saga.step("given", Request(service="payments")))
        seen.append(await saga.step("typed", Request(service="shipping"), into=Ticket))
        seen.append(await saga.step("free", Request(service="shipping")))

    examples = Examples(commands=(PAYLOAD,), answers={"payments": {"given": 7}})
    sagas(exec, examples=examples).calm(0)
    given, typed, free = seen[-3:]
    assert given == 7
    assert 10 <= typed.number <= 12
    assert free == {"id": "c0/free"}


def test_payloads_are_made_up_from_types() -> None:
    """Whatever is made up fits its type; what cannot be made up is said, with its path."""

    for number in range(50):
        value = made_up(Wish, stream(number))
        assert value["type"] == "order"
        assert value["lines"][0]["count"] % 5 == 0
        assert value["kind"] in ("gift", "own")

    with pytest.raises(CannotMakeUp, match=r"\$\.code: a text that fits"):
        made_up(Coded, stream(0))
    app = App()
    app.command()(type("Coded", (Coded,), {"exec": lambda self, saga: None}))
    with pytest.raises(Unusable, match=r"a payload of Coded cannot be made up"):
        Sagas(app, Examples())


def test_what_a_daemon_would_refuse_is_no_use() -> None:
    """A payload that does not fit, a definition with a fault: told before anything is run."""

    async def exec(self: Any, saga: Saga) -> None: ...

    with pytest.raises(Unusable, match=r"Order: .*amount"):
        sagas(exec, examples=Examples(commands=(Example("Order", {"amount": "much"}),)))
    with pytest.raises(Unusable, match=r"the definition: "):
        Sagas(App(), Examples(commands=(Example(None, {}, {"steps": 5}),)))


# ---------------------------------------------------------------- the page, and the verb


def run(directory: Path, *words: str) -> tuple[int, str]:
    """The verb, as a user types it."""
    done = subprocess.run(
        [sys.executable, "-m", "coordinator", "simulate", *words], cwd=directory, capture_output=True, text=True
    )
    return done.returncode, done.stdout + done.stderr


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE.read_text(), re.DOTALL)


def test_the_pages_example_is_found_as_it_says(tmp_path: Path) -> None:
    """Word by word, but for the name that is a time."""
    (tmp_path / "shop.py").write_text(blocks("python")[0])
    code, out = run(tmp_path, "--app", "shop:app")
    assert code == 1
    told = blocks("console")[0].split("\n", 1)[1]
    assert re.sub(r"charge-\d+", "charge-N", out) == told


def test_the_pages_cure_cures(tmp_path: Path) -> None:
    """The same lines, with numbers of their own."""
    (tmp_path / "shop.py").write_text(blocks("python")[0].replace('f"charge-{time.time_ns()}"', '"charge"'))
    code, out = run(tmp_path, "--app", "shop:app", "--seeds", "50")
    assert code == 0, out
    told = blocks("console")[1].split("\n", 1)[1]
    assert re.sub(r"\d+", "N", out) == re.sub(r"\d+", "N", told)


def test_the_pages_examples_are_read(tmp_path: Path) -> None:
    """The file of the page; and the same beside the application, in its module."""
    source = blocks("python")[0].replace('f"charge-{time.time_ns()}"', '"charge"')
    (tmp_path / "shop.py").write_text(f"{source}\nsimulate = {json.loads(blocks('json')[0])!r}\n")
    (tmp_path / "e.json").write_text(blocks("json")[0])
    for words in (["--examples", "e.json"], []):
        code, out = run(tmp_path, "--app", "shop:app", "--seeds", "1", *words)
        assert code == 0, out
        assert out.startswith("1 commands, crashed at every append and call")


def test_one_case_is_told_in_full(tmp_path: Path) -> None:
    """The command of a report runs that very case, and shows what happened in it."""
    (tmp_path / "shop.py").write_text(blocks("python")[0])
    code, out = run(tmp_path, "--app", "shop:app", "--command", "0", "--crash", "append:3:before")
    assert code == 1
    assert "crash before an append" in out
    assert "MISTAKE: Order is completed" in out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--app", "shop:app", "--type", "Ordre"], "there is no type 'Ordre'; there are Order"),
        (["--app", "shop:app", "--command", "3"], "--command is 0 to 2"),
        (["--app", "shop:app", "--command", "0", "--crash", "append"], "append:3:after"),
        (["--app", "shop:app", "--type", "Order", "--payload", "{"], "--payload: "),
        (["--app", "shop:app", "--examples", "none.json"], "none.json: No such file"),
        ([], "the application has no commands"),
    ],
)
def test_wrong_usage_is_told_in_a_sentence(tmp_path: Path, words: list[str], told: str) -> None:
    """Exit code 2, what is wrong, and what there is instead."""
    (tmp_path / "shop.py").write_text(blocks("python")[0])
    code, out = run(tmp_path, *words)
    assert code == 2
    assert told in out
