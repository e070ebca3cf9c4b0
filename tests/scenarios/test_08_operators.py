"""8. Operator control: legal from the states in the one table, idempotent, with actor and reason in the history."""

from __future__ import annotations

import asyncio
import contextlib
import io
from typing import Any

import pytest

from coordinator.cli.main import main
from tests.scenarios.kit import Stage, definition, effects, step, undone

pytestmark = pytest.mark.asyncio(loop_scope="module")

PLAIN = definition("plain", step("a"), step("b"), step("c"))
WAITS = definition("waits", step("a"), {"name": "news", "data": "news"}, step("z"))


def plain(form: str) -> Any:
    return "Plain" if form == "code" else PLAIN


def waits(form: str) -> Any:
    return "Told" if form == "code" else WAITS


async def controls(stage: Stage, id: str) -> list[tuple[str, str, str]]:
    """What operators did, by whom and why."""
    return [
        (each["operation"], each["by"], each.get("reason", ""))
        for each in await stage.history(id)
        if each["kind"] == "Control"
    ]


async def at(stage: Stage, form: str, path: str) -> str:
    """A plain command whose service is busy with this."""
    stock = stage.parties["stock"]
    stock.held.add(path)
    id = await stage.submit(plain(form))
    await stock.until(lambda: any(each.path == path and each.key.startswith(f"{id}/") for each in stock.arrivals))
    return id


async def test_a_paused_command_begins_no_further_step(stage: Stage, form: str) -> None:
    """What is under way is finished; after a resume it goes on where it was."""
    id = await at(stage, form, "/b")
    await stage.control(id, "pause", by="ann", reason="lunch")
    stage.parties["stock"].release("/b")
    if not stage.deadly:  # where it dies with the answer, the step is in doubt, and asked for again after the resume
        await stage.until(id, lambda view: view["steps"][1]["state"] == "succeeded")
    await stage.point("paused")
    assert (await stage.view(id))["state"] == "paused"
    assert not stage.parties["stock"].has_been_asked(id, "c")
    await stage.control(id, "resume", by="bob", reason="fed")
    await stage.ended(id)
    assert effects(stage, id)["stock"] == ["a", "b", "c"]
    assert await controls(stage, id) == [("pause", "ann", "lunch"), ("resume", "bob", "fed")]


async def test_a_cancel_undoes_to_the_start_and_ends_after_the_last_undo(stage: Stage, form: str) -> None:
    """What was under way is resolved and undone as well; final only when nothing is left to undo."""
    stock = stage.parties["stock"]
    stock.held.add("/a/undo")
    id = await at(stage, form, "/b")
    await stage.control(id, "cancel", by="ann", reason="changed my mind")
    stock.release("/b")
    await stock.until(lambda: stock.has_been_asked(id, "a/undo"))
    assert (await stage.view(id))["state"] == "compensating"
    again = await stage.control(id, "cancel", by="bob")
    assert again["state"] == "compensating"
    stock.release("/a/undo")
    await stage.ended(id, "compensated")
    assert [each for each in effects(stage, id)["stock"] if each != "b"] in (["a", "b/undo", "a/undo"], ["a", "a/undo"])
    assert await controls(stage, id) == [("cancel", "ann", "changed my mind")]


async def test_undoing_can_be_paused(stage: Stage, form: str) -> None:
    """No further undo begins until it is resumed; then the rest is undone."""
    stock = stage.parties["stock"]
    stock.says["/c"] = (409, {"message": "no"})
    stock.held.add("/b/undo")
    id = await stage.submit(plain(form))
    await stock.until(lambda: stock.has_been_asked(id, "b/undo"))
    await stage.until(id, "compensating")
    await stage.control(id, "pause", by="ann")
    stock.release("/b/undo")
    await stage.point("paused")
    assert (await stage.view(id))["state"] == "paused"
    assert not stock.has_been_asked(id, "a/undo")
    await stage.control(id, "resume", by="ann")
    await stage.ended(id, "compensated")
    assert effects(stage, id)["stock"] == ["a", "b", "b/undo", "a/undo"]


async def test_an_abort_undoes_nothing(stage: Stage, form: str) -> None:
    """It ends at once."""
    id = await stage.submit(waits(form))
    await stage.waiting(id, "news")
    view = await stage.control(id, "abort", by="ann", reason="never mind")
    assert view["state"] == "aborted"
    await stage.point("aborted")
    await stage.ended(id, "aborted")
    assert effects(stage, id)["stock"] == ["a"]


async def test_an_abort_after_a_cancel_escalates(calm: Stage, form: str) -> None:
    """No further undo is begun."""
    calm.fresh()
    stock = calm.parties["stock"]
    id = await calm.submit(waits(form))
    await calm.waiting(id, "news")
    stock.held.add("/a/undo")
    await calm.control(id, "cancel", by="ann")
    await stock.until(lambda: stock.has_been_asked(id, "a/undo"))
    assert (await calm.control(id, "abort", by="bob"))["state"] == "aborted"
    stock.release("/a/undo")
    assert [each[:2] for each in await controls(calm, id)] == [("cancel", "ann"), ("abort", "bob")]
    problem = await calm.refused("POST", f"/v1/commands/{id}/cancel", {"by": "ann"})
    assert (problem["status"], problem["code"]) == (409, "illegal_state")


async def test_a_command_is_cancelled_in_any_state_that_is_not_final(stage: Stage, form: str) -> None:
    """Waiting, later to begin, delayed, paused or dead-lettered: what it did is undone."""
    stock = stage.parties["stock"]
    stock.says["/b"] = (503, {"message": "down"})
    waiting = await stage.submit(waits(form))
    later = await stage.submit(plain(form), delay="1h")
    delayed = await stage.submit(plain(form))
    paused = await stage.submit(waits(form))
    await stage.waiting(waiting, "news")
    await stage.waiting(paused, "news")
    await stage.control(paused, "pause")
    await stage.until(delayed, "delayed")
    for id in (waiting, later, delayed, paused):
        await stage.control(id, "cancel", by="ann")
    stock.says.pop("/b")
    for id in (waiting, delayed, paused):
        await stage.ended(id, "compensated")
        assert set(effects(stage, id)["stock"]) - {"b", "b/undo"} == {"a", "a/undo"}
    await stage.ended(later, "failed")
    assert effects(stage, later) == {}


async def test_what_is_not_legal_tells_what_is(calm: Stage, form: str) -> None:
    """409 with the states in which it would be; 404 for a command that there is not."""
    calm.fresh()
    id = await calm.submit(plain(form))
    await calm.ended(id)
    for operation in ("pause", "resume", "cancel", "abort", "retry"):
        problem = await calm.refused("POST", f"/v1/commands/{id}/{operation}", {"by": "ann"})
        assert (problem["status"], problem["code"]) == (409, "illegal_state")
        assert problem["legal_states"]
        assert "completed" not in problem["legal_states"]
        unknown = await calm.refused("POST", f"/v1/commands/nobody/{operation}", {"by": "ann"})
        assert (unknown["status"], unknown["code"]) == (404, "unknown_command")
    waiting = await calm.submit(waits(form))
    await calm.waiting(waiting, "news")
    for operation, rest in (("resume", {}), ("requeue", {"step": "a"}), ("resolve", {"step": "a", "reason": "x"})):
        problem = await calm.refused("POST", f"/v1/commands/{waiting}/{operation}", {"by": "ann", **rest})
        assert problem["code"] == "illegal_state"
    assert await controls(calm, waiting) == []


async def test_twice_is_once(calm: Stage, form: str) -> None:
    """A pause of a paused command is no second record, and no error."""
    calm.fresh()
    id = await calm.submit(waits(form))
    await calm.waiting(id, "news")
    for by in ("ann", "bob"):
        assert (await calm.control(id, "pause", by=by))["state"] == "paused"
    assert [each[:2] for each in await controls(calm, id)] == [("pause", "ann")]
    await calm.control(id, "cancel")
    await calm.ended(id, "compensated")


async def test_two_operators_at_once(calm: Stage, form: str) -> None:
    """Each is confirmed or refused, and who is confirmed is in the history; nothing goes back to life."""
    calm.fresh()
    for _ in range(5):
        id = await calm.submit(waits(form))
        await calm.waiting(id, "news")
        await calm.control(id, "pause", by="op")
        wishes = [("resume", "ann"), ("cancel", "bob"), ("abort", "eve")]
        answers = await asyncio.gather(
            *(calm.ask("POST", f"/v1/commands/{id}/{operation}", {"by": by}) for operation, by in wishes)
        )
        confirmed = {wish for wish, answer in zip(wishes, answers, strict=True) if answer.status_code == 200}
        assert {answer.status_code for answer in answers} <= {200, 409}
        view = await calm.done("GET", f"/v1/commands/{id}?wait=10s")
        assert view["state"] in ("aborted", "compensated")
        assert {each[:2] for each in await controls(calm, id)} == {("pause", "op"), *confirmed}
        assert (view["state"] == "aborted") is (("abort", "eve") in confirmed)
        assert len(undone(await calm.history(id))) <= 1


def verb(*arguments: str) -> tuple[int, str]:
    """A verb of the command line: its exit code, and what it prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0), out.getvalue()


async def test_many_at_once_by_a_filter(calm: Stage) -> None:
    """`coordinator cancel --type T --state delayed --dry-run` only shows them; without it they are undone."""
    calm.fresh()
    calm.parties["stock"].says["/b"] = (503, None)
    bulk = {**PLAIN, "name": "bulk"}
    ids = [await calm.submit(bulk) for _ in range(3)]
    other = await calm.submit(PLAIN)
    for id in (*ids, other):
        await calm.until(id, "delayed")
    wanted = ["cancel", "--type", "bulk", "--state", "delayed", "--server", calm.daemon.http]
    code, told = await asyncio.to_thread(verb, *wanted, "--dry-run")
    assert code == 0
    assert all(id in told for id in ids)
    assert other not in told.split()
    assert [(await calm.view(id))["state"] for id in ids] == ["delayed"] * 3
    code, told = await asyncio.to_thread(verb, *wanted, "--yes", "--by", "ann", "--reason", "storm")
    assert code == 0, told
    calm.fresh()
    for id in ids:
        await calm.ended(id, "compensated")
        assert await controls(calm, id) == [("cancel", "ann", "storm")]
    await calm.ended(other)
