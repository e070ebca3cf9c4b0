"""What commands wait for, over HTTP, asked of a real daemon: data, decisions, callbacks, delays, undos mended by hand.

Every answer in this file is checked against the OpenAPI document that the daemon serves.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import pytest
import pytest_asyncio

from tests.integration.daemon import Daemon, Service, config, services
from tests.integration.documented import Documented, documented_client

pytestmark = pytest.mark.asyncio(loop_scope="module")

OTP: dict[str, Any] = {"name": "pay", "steps": [{"name": "ask", "data": "otp"}], "result": "${steps.ask}"}
APPROVE: dict[str, Any] = {
    "name": "refund",
    "steps": [{"name": "approve", "decision": {"input": "${payload}", "roles": ["boss", "owner"]}}],
    "result": "${steps.approve}",
}
BANK: dict[str, Any] = {
    "name": "netbanking",
    "steps": [
        {"name": "begin", "service": "stock", "path": "/begin", "body": {"back": "${callback.paid}"}},
        {"name": "paid", "data": "paid"},
    ],
    "result": "${steps.paid}",
}
IDS = (f"s-{n}" for n in count())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(daemon: Daemon) -> AsyncIterator[httpx.AsyncClient]:
    async with documented_client(daemon.http, Documented()) as client:
        yield client


async def begun(client: httpx.AsyncClient, definition: dict[str, Any], **rest: Any) -> str:
    """The path of a command that has just been accepted."""
    submission = {"id": next(IDS), "definition": definition, "payload": {"n": 1}} | rest
    answer = await client.post("/v1/commands", json=submission)
    assert answer.status_code == 202
    return answer.headers["location"]


async def ended(client: httpx.AsyncClient, path: str) -> dict[str, Any]:
    view: dict[str, Any] = (await client.get(f"{path}?wait=10s")).json()
    assert view["state"] == "completed", view
    return view


async def asked(client: httpx.AsyncClient, path: str) -> dict[str, Any]:
    """The decision that the command waits for."""
    decisions = (await client.get("/v1/decisions")).json()
    return next(each for each in decisions if path == f"/v1/commands/{each['command_id']}")


def refused(answer: httpx.Response) -> tuple[int, str, list[str]]:
    problem = answer.json()
    return answer.status_code, problem["code"], [fault["path"] for fault in problem.get("faults", [])]


# ---------------------------------------------------------------- data


@pytest.mark.parametrize("value", ["1234", None, 0, False, [], {"a": {"b": [1.5]}}, "é\u0000"])
async def test_any_json_value_is_a_datum(client: httpx.AsyncClient, value: Any) -> None:
    """Null, nothing and false too: they come out as they went in."""
    path = await begun(client, OTP)
    waiting = (await client.get(path)).json()
    assert (waiting["state"], waiting["waiting_for"], waiting["revision"]) == ("waiting", ["otp"], 1)
    given = await client.post(f"{path}/data/otp?by=me", content=json.dumps(value))
    assert given.status_code == 200
    assert (await ended(client, path))["result"] == value
    signals = [each for each in (await client.get(f"{path}/history")).json() if each["kind"] == "Signal"]
    assert [each["by"] for each in signals] == ["me"]


async def test_a_signal_id_counts_once_by_header_or_query(client: httpx.AsyncClient) -> None:
    """The second value of one id is as if it had never been sent, after the end too; header and query are one."""
    twice = {"name": "pay", "steps": [{"name": "a", "data": "otp"}, {"name": "b", "data": "otp"}]}
    path = await begun(client, twice, payload=1)
    await client.post(f"{path}/data/otp?signal_id=one", json=1)
    await client.post(f"{path}/data/otp", json=1, headers={"Idempotency-Key": "one"})
    await client.post(f"{path}/data/otp?signal_id=one", json=1, headers={"Idempotency-Key": "one"})
    assert (await client.get(path)).json()["waiting_for"] == ["otp"]
    differing = await client.post(f"{path}/data/otp?signal_id=two", json=2, headers={"Idempotency-Key": "three"})
    assert refused(differing) == (422, "invalid_payload", ["Idempotency-Key"])
    await client.post(f"{path}/data/otp?signal_id=two", json=2)
    view = await ended(client, path)
    assert [step["outcome"] for step in view["steps"]] == [1, 2]
    again = await client.post(f"{path}/data/otp?signal_id=two", json=2)
    assert (again.status_code, again.json()) == (200, view)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("otp", b"", (400, "malformed", ["$"])),
        ("otp", b'{"a": ', (400, "malformed", ["$.a"])),
        ("otp", b"NaN", (400, "malformed", ["$"])),
        ("otp", b"[" * 256 + b"]" * 256, (400, "malformed", ["$[0][0][0][0][0][0][0][0]\u2026"])),
        ("otp", b"18446744073709551616", (422, "invalid_payload", ["$"])),
        ("otp", b"[1e999]", (422, "invalid_payload", ["$[0]"])),
        ("otp", b'"' + b"x" * (1 << 20) + b'"', (413, "too_large", ["$"])),
        ("otp?signal_id=", b"1", (422, "invalid_payload", ["?signal_id"])),
        ("otp?signal_id=a%0Ab", b"1", (422, "invalid_payload", ["?signal_id"])),
        ("otp?by=a%0Ab", b"1", (422, "invalid_payload", ["?by"])),
        ("otp?by=" + "x" * 201, b"1", (422, "invalid_payload", ["?by"])),
        ("otp?signal=a", b"1", (422, "invalid_payload", ["?signal"])),
        ("a%00b", b"1", (422, "invalid_payload", ["name"])),
        ("x" * 201, b"1", (422, "invalid_payload", ["name"])),
        ("pin", b"1", (404, "unknown_step", [])),
    ],
)
async def test_a_datum_that_is_none_is_refused_with_its_place(
    client: httpx.AsyncClient, name: str, content: bytes, expected: tuple[int, str, list[str]]
) -> None:
    """And nothing of it is recorded."""
    path = await begun(client, OTP)
    before = (await client.get(path)).json()
    assert refused(await client.post(f"{path}/data/{name}", content=content)) == expected
    assert (await client.get(path)).json() == before


async def test_a_datum_for_nobody_is_refused(client: httpx.AsyncClient) -> None:
    """404 for a command that there is not, 409 for one that has ended."""
    assert refused(await client.post("/v1/commands/nobody/data/otp", json=1)) == (404, "unknown_command", [])
    path = await begun(client, OTP)
    await client.post(f"{path}/data/otp", json=1)
    await ended(client, path)
    late = await client.post(f"{path}/data/otp", json=2)
    assert refused(late) == (409, "illegal_state", [])
    assert "waiting" in late.json()["legal_states"]


# ---------------------------------------------------------------- decisions


async def test_a_person_decides(client: httpx.AsyncClient) -> None:
    """Listed with its input at once; decided by who may; then it is told who decided, and when."""
    path = await begun(client, APPROVE, attributes={"customer": "c1"})
    item = await asked(client, path)
    assert (item["step"], item["input"], item["roles"]) == ("approve", {"n": 1}, ["boss", "owner"])
    assert item["attributes"] == {"customer": "c1"}
    body = {"approve": True, "by": "ann", "comment": "fine"}
    forbidden = await client.post(f"{path}/decisions/approve", json=body | {"roles": ["clerk"]})
    assert (*refused(forbidden), forbidden.json()["roles"]) == (403, "forbidden", [], ["boss", "owner"])
    assert (await client.post(f"{path}/decisions/approve", json=body | {"roles": ["clerk", "boss"]})).status_code == 200
    result = (await ended(client, path))["result"]
    assert {key: result[key] for key in body} == body
    second = await client.post(f"{path}/decisions/approve", json=body | {"roles": ["boss"]})
    assert refused(second) == (409, "illegal_state", [])


async def test_two_decide_at_once_and_one_wins(client: httpx.AsyncClient) -> None:
    """The other is told 409, and by whom it was decided."""
    steps = [{"name": "approve", "decision": True}, {"name": "more", "data": "more"}]
    path = await begun(client, {"name": "refund", "steps": steps})
    answers = await asyncio.gather(
        *(client.post(f"{path}/decisions/approve", json={"approve": True, "by": f"p{n}"}) for n in range(8))
    )
    assert sorted(answer.status_code for answer in answers) == [200, *[409] * 7]
    (winner,) = [n for n, answer in enumerate(answers) if answer.status_code == 200]
    losers = [answer.json()["detail"] for answer in answers if answer.status_code == 409]
    assert all(f"p{winner}" in detail for detail in losers), losers
    steps_seen = (await client.get(path)).json()["steps"]
    assert steps_seen[0]["outcome"]["by"] == f"p{winner}"


@pytest.mark.parametrize(
    ("step", "content", "expected"),
    [
        ("approve", b"{}", (422, "invalid_payload", ["$.approve"])),
        ("approve", b'{"approve": "true"}', (422, "invalid_payload", ["$.approve"])),
        ("approve", b'{"approve": true, "role": "boss"}', (422, "invalid_payload", ["$.role"])),
        ("approve", b'{"approve": yes}', (400, "malformed", ["$.approve"])),
        ("approve", b"", (400, "malformed", ["$"])),
        ("other", b'{"approve": true}', (404, "unknown_step", [])),
        ("a%0Ab", b'{"approve": true}', (422, "invalid_payload", ["step"])),
        ("x" * 201, b'{"approve": true}', (422, "invalid_payload", ["step"])),
    ],
)
async def test_a_decision_that_is_none_is_refused_with_its_place(
    client: httpx.AsyncClient, step: str, content: bytes, expected: tuple[int, str, list[str]]
) -> None:
    """The decision stays asked for."""
    path = await begun(client, APPROVE)
    assert refused(await client.post(f"{path}/decisions/{step}", content=content)) == expected
    assert (await asked(client, path))["step"] == "approve"


# ---------------------------------------------------------------- callbacks


async def callback_url(client: httpx.AsyncClient, stock: Service) -> tuple[str, str]:
    """A command that waits for a callback, and the URL that its service was told."""
    path = await begun(client, BANK)
    id = path.rpartition("/")[2]

    def told() -> list[Any]:
        return [call.json["back"] for call in stock.arrivals if call.path == "/begin" and call.key.startswith(f"{id}/")]

    await stock.until(lambda: bool(told()))
    return path, told()[0]


@pytest.mark.parametrize(
    ("media", "body", "value"),
    [
        ("application/json", b'{"status": "paid"}', {"status": "paid"}),
        ("application/x-www-form-urlencoded", b"status=paid&ref=a+b%26c", {"status": "paid", "ref": "a b&c"}),
        ("application/x-www-form-urlencoded", b'{"status": "paid"}', {"status": "paid"}),
        ("text/plain; charset=utf-8", "bezahlt für 5 €".encode(), "bezahlt für 5 €"),
        ("", b"", None),
    ],
)
async def test_a_plain_service_answers_later(
    client: httpx.AsyncClient, daemon: Daemon, stock: Service, media: str, body: bytes, value: Any
) -> None:
    """By a URL whose address is the daemon's own; sent again, or otherwise, it says the same and changes nothing."""
    path, url = await callback_url(client, stock)
    assert url.startswith(f"{daemon.http}/v1/callbacks/")
    headers = {"content-type": media} if media else {}
    for content in (body, body, b'"another"'):
        answer = await client.post(url + "?utm_source=x", content=content, headers=headers)
        assert (answer.status_code, answer.json()) == (200, {"received": True})
        assert answer.headers["cache-control"] == "no-store"
    assert (await ended(client, path))["result"] == value


async def test_a_browser_comes_back_with_its_answer_in_the_query(client: httpx.AsyncClient, stock: Service) -> None:
    """GET delivers, HEAD only looks."""
    path, url = await callback_url(client, stock)
    assert (await client.head(url + "?status=peeked")).status_code == 405
    answer = await client.get(url + "?status=paid&wait=5&empty=")
    assert (answer.status_code, answer.json()) == (200, {"received": True})
    assert (await ended(client, path))["result"] == {"status": "paid", "wait": "5", "empty": ""}


async def test_who_was_not_handed_the_url_learns_nothing(client: httpx.AsyncClient, stock: Service) -> None:
    """Another token, another name, another command, no command: one answer, to the letter."""
    path, url = await callback_url(client, stock)
    other, _ = await callback_url(client, stock)
    id, name, token = urlsplit(url).path.split("/")[3:]
    assert name == "paid"
    number, _, secret = token.partition(".")
    wrong = [
        f"/v1/callbacks/{id}/{name}/{number}.{'0' * len(secret)}",
        f"/v1/callbacks/{id}/{name}/{int(number) + 1}.{secret}",
        f"/v1/callbacks/{id}/{name}/{secret}",
        f"/v1/callbacks/{id}/{name}/{number}.{secret.upper()}x",
        f"/v1/callbacks/{id}/{name}/{'9' * 5000}.{secret}",
        f"/v1/callbacks/{id}/{name}/%C3%A9.{secret}",
        f"/v1/callbacks/{id}/other/{token}",
        f"/v1/callbacks/{id}/{'x' * 500}/{token}",
        f"/v1/callbacks/{id}/a%00b/{token}",
        f"/v1/callbacks/{other.rpartition('/')[2]}/{name}/{token}",
        f"/v1/callbacks/nobody/{name}/{token}",
        f"/v1/callbacks/{quote('no body', safe='')}/{name}/{token}",
    ]
    told = set()
    for each in wrong:
        for answer in (await client.post(each, json=1), await client.get(each)):
            assert (answer.status_code, answer.json()["code"]) == (404, "unknown_command"), each
            told.add(answer.text)
    assert len(told) == 1
    assert not any(secret in text or id in text for text in told)
    assert (await client.get(path)).json()["waiting_for"] == ["paid"]


async def test_a_callback_that_comes_too_late_is_told_so(client: httpx.AsyncClient, stock: Service) -> None:
    """409 for who has the right token: the command was aborted, and is no secret to them."""
    path, url = await callback_url(client, stock)
    await client.post(f"{path}/abort")
    assert refused(await client.post(url, json=1)) == (409, "illegal_state", [])
    assert refused(await client.post(url[:-2] + "xx", json=1)) == (404, "unknown_command", [])


@pytest.mark.parametrize(
    ("media", "body", "expected"),
    [
        ("application/json", b'{"status": "pa', (400, "malformed", ["$.status"])),
        ("application/json", b"status=paid", (400, "malformed", ["$"])),
        ("application/x-www-form-urlencoded", b"a=%ff", (400, "malformed", [])),
        ("application/x-www-form-urlencoded", b"a=1&a=2", (422, "invalid_payload", ["$.a"])),
        ("text/plain", b"\xff", (400, "malformed", ["$"])),
        ("application/json", b'{"n": 18446744073709551616}', (422, "invalid_payload", ["$.n"])),
        ("text/plain", b"x" * ((1 << 20) + 1), (413, "too_large", ["$"])),
        ("multipart/form-data; boundary=x", b"--x--", (415, "unsupported_media_type", [])),
    ],
)
async def test_a_callback_that_cannot_be_read_is_refused_and_may_come_again(
    client: httpx.AsyncClient, stock: Service, media: str, body: bytes, expected: tuple[int, str, list[str]]
) -> None:
    """It has not been used up by that."""
    path, url = await callback_url(client, stock)
    assert refused(await client.post(url, content=body, headers={"content-type": media})) == expected
    assert (await client.post(url, json="paid")).status_code == 200
    assert (await ended(client, path))["result"] == "paid"


async def test_a_callback_comes_back_after_kill_and_restart(tmp_path: Path) -> None:
    """The address is the operator's own, and the token is good for as long as the command waits."""
    base = "https://orders.example/in"
    async with services("stock") as started:
        text = config(tmp_path, started) + f'[listen]\ncallback_url = "{base}/"\n'
        daemon = Daemon(tmp_path, text)
        try:
            await asyncio.to_thread(daemon.start)
            async with documented_client(daemon.http, Documented()) as client:
                path, url = await callback_url(client, started["stock"])
            assert url.startswith(f"{base}/v1/callbacks/")
            daemon.kill()
            await asyncio.to_thread(daemon.start)
            async with documented_client(daemon.http, Documented()) as client:
                assert (await client.post(url.removeprefix(base), json={"late": True})).status_code == 200
                assert (await ended(client, path))["result"] == {"late": True}
        finally:
            daemon.close()


# ---------------------------------------------------------------- delay, resolve


async def test_a_delayed_command_waits_for_its_start(client: httpx.AsyncClient) -> None:
    """``waiting`` for ``start``, holding no slot; then it runs."""
    path = await begun(client, {"name": "n", "steps": [{"name": "s", "service": "stock", "path": "/s"}]}, delay="300ms")
    view = (await client.get(path)).json()
    assert (view["state"], view["waiting_for"]) == ("waiting", ["start"])
    await ended(client, path)


@pytest.mark.parametrize("delay", ["soon", "5", "-1s", "", " 1s", "1s ", "1e3s", "\u0661s", "40000d", 5, True, {}])
async def test_a_delay_that_is_no_duration_is_refused(client: httpx.AsyncClient, delay: Any) -> None:
    """As a timeout would be, with its path."""
    answer = await client.post("/v1/commands", json={"definition": OTP, "delay": delay})
    assert refused(answer) == (422, "invalid_payload", ["$.delay"])


async def test_an_undo_that_failed_is_resolved_by_hand(client: httpx.AsyncClient, stock: Service) -> None:
    """It is taken for done, and the history says by whom and why; a step that is none is told."""
    definition = {
        "name": "n",
        "steps": [
            {"name": "a", "service": "stock", "path": "/a", "undo": {"path": "/undo-by-hand"}},
            {"name": "b", "service": "stock", "path": "/refused"},
        ],
    }
    stock.answers["/refused"], stock.answers["/undo-by-hand"] = [409], [409]
    path = await begun(client, definition)
    async with asyncio.timeout(10):
        while not [each for each in (await client.get("/v1/dead-letters")).json() if path.endswith(each["command_id"])]:
            pass
    for body, expected in (
        ({}, (422, "invalid_payload", ["$.step"])),
        ({"step": "a", "why": "x"}, (422, "invalid_payload", ["$.why"])),
        ({"step": "zzz"}, (404, "unknown_step", [])),
    ):
        assert refused(await client.post(f"{path}/resolve", json=body)) == expected
    done = await client.post(f"{path}/resolve", json={"step": "a", "reason": "paid back in cash", "by": "ann"})
    assert done.status_code == 200
    view = (await client.get(f"{path}?wait=10s")).json()
    assert (view["state"], view["steps"][0]["state"]) == ("compensated", "undone")
    text = json.dumps((await client.get(f"{path}/history")).json())
    assert "ann" in text
    assert "paid back in cash" in text
