"""6. Signals and callbacks: data that comes early, twice, while paused or too late, or by secret addresses."""

from __future__ import annotations

from typing import Any

import pytest

from tests.scenarios.kit import Stage, definition, effects, step

pytestmark = pytest.mark.asyncio(loop_scope="module")

TOLD = definition(
    "told",
    step("a"),
    {"name": "news", "data": "news"},
    {"name": "more", "data": "news"},
    step("z", body=["${steps.news}", "${steps.more}"]),
    result=["${steps.news}", "${steps.more}"],
)
CALLED = definition(
    "called", step("ask", body={"answer_to": "${callback.answer}"}), {"name": "answer", "data": "answer"},
    result="${steps.answer}",
)  # fmt: skip


def told(form: str) -> Any:
    return "Told" if form == "code" else TOLD


async def begun(stage: Stage, form: str) -> str:
    """A command that does not wait yet: its first step is on its way."""
    stage.parties["stock"].held.add("/a")
    id = await stage.submit(told(form))
    await stage.parties["stock"].until(lambda: stage.parties["stock"].has_been_asked(id, "a"))
    return id


async def test_early_data_is_kept_and_delivered_on_entry(stage: Stage, form: str) -> None:
    """In the order in which it came."""
    id = await begun(stage, form)
    await stage.provide(id, "news", "first")
    await stage.provide(id, "news", "second")
    await stage.point("kept")
    stage.parties["stock"].release("/a")
    assert (await stage.ended(id))["result"] == ["first", "second"]
    assert effects(stage, id)["stock"] == ["a", "z"]


async def test_a_duplicate_signal_id_is_delivered_once(stage: Stage, form: str) -> None:
    """Whatever its value is the second time."""
    id = await stage.submit(told(form))
    await stage.waiting(id, "news")
    for value in ("one", "another"):
        await stage.provide(id, "news", value, signal_id="sms-1")
        await stage.waiting(id, "news")
    await stage.provide(id, "news", "two", signal_id="sms-2")
    assert (await stage.ended(id))["result"] == ["one", "two"]
    await stage.provide(id, "news", "two", signal_id="sms-2")
    signals = [each for each in await stage.history(id) if each["kind"] == "Signal"]
    assert len(signals) == 2


async def test_while_paused_it_is_kept(stage: Stage, form: str) -> None:
    """And delivered on resume."""
    id = await stage.submit(told(form))
    await stage.waiting(id, "news")
    await stage.control(id, "pause", by="op", reason="lunch")
    await stage.provide(id, "news", 1)
    await stage.provide(id, "news", 2)
    await stage.point("paused")
    assert (await stage.view(id))["state"] == "paused"
    assert not stage.parties["stock"].has_been_asked(id, "z")
    await stage.control(id, "resume", by="op")
    assert (await stage.ended(id))["result"] == [1, 2]


async def test_data_for_nobody_is_refused(calm: Stage, form: str) -> None:
    """404 where there is no such command, 409 where it has ended."""
    calm.fresh()
    unknown = await calm.refused("POST", "/v1/commands/nobody/data/news", 1)
    assert (unknown["status"], unknown["code"]) == (404, "unknown_command")
    id = await calm.submit(told(form))
    await calm.provide(id, "news", 1)
    await calm.provide(id, "news", 2)
    await calm.ended(id)
    ended = await calm.refused("POST", f"/v1/commands/{id}/data/news", 3)
    assert (ended["status"], ended["code"]) == (409, "illegal_state")


async def test_a_name_that_a_definition_does_not_have_is_404(calm: Stage) -> None:
    """With the names that there are."""
    id = await calm.submit(TOLD)
    problem = await calm.refused("POST", f"/v1/commands/{id}/data/newz", 1)
    assert (problem["status"], problem["code"]) == (404, "unknown_step")
    assert "news" in problem["detail"]


@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_a_plain_service_answers_later(stage: Stage, form: str, method: str) -> None:
    """At the address that it was given: by POST, or by a browser that is sent there; once, however often."""
    stock = stage.parties["stock"]
    id = await stage.submit("CalledBack" if form == "code" else CALLED)
    await stage.waiting(id, "answer")
    urls = {arrival.json["answer_to"] for arrival in stock.arrivals if arrival.key == f"{id}/ask"}
    (url,) = urls  # the same after a crash, since the service may have kept the first
    assert url.startswith(stage.daemon.http)
    path = url.removeprefix(stage.daemon.http)
    if method == "GET":
        answer = await stage.ask("GET", f"{path}?status=paid&ref=7")
    else:
        answer = await stage.ask("POST", path, {"status": "paid", "ref": "7"})
    assert (answer.status_code, answer.json()) == (200, {"received": True})
    await stage.ask("POST", path, {"status": "another"})
    assert (await stage.ended(id))["result"] == {"status": "paid", "ref": "7"}


async def test_the_token_cannot_be_guessed(calm: Stage, form: str) -> None:
    """Another one, another name or another command: 404 like a command that there is not, and nothing is delivered."""
    calm.fresh()
    ids = [await calm.submit("CalledBack" if form == "code" else CALLED) for _ in range(2)]
    for id in ids:
        await calm.waiting(id, "answer")
    paths = [calm.parties["stock"].asked(id, "ask")["answer_to"].removeprefix(calm.daemon.http) for id in ids]
    token = paths[0].rpartition("/")[2]
    assert len(token) >= 32
    assert token != paths[1].rpartition("/")[2]
    wrong = [
        paths[0][:-1] + ("0" if paths[0][-1] != "0" else "1"),
        paths[1].rpartition("/")[0] + "/" + token,
        paths[0].replace("/answer/", "/other/"),
        f"/v1/callbacks/nobody/answer/{token}",
    ]
    details = set()
    for path in wrong:
        problem = await calm.refused("POST", path, {"status": "forged"})
        assert (problem["status"], problem["code"]) == (404, "unknown_command")
        details.add(problem["detail"])
    assert len(details) == 1
    assert (await calm.view(ids[0]))["state"] == "waiting"
