"""The client over TCP against a scripted peer: what it sends, what it makes of answers and of their absence."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from coordinator_client import (
    AsyncClient,
    ConnectionLost,
    IdConflict,
    IllegalState,
    LogUnavailable,
    RetryPolicy,
    Stopping,
    Suspended,
    TooLarge,
    UnknownCommand,
    WaitTimeout,
)

QUICK = RetryPolicy(first_s=0.001, max_s=0.01)


def accepted(seq: int, id: str, view: Any = None) -> list[Any]:
    return [4, seq, id, "0:1", False, view]


def final(seq: int, id: str, view: dict[str, Any]) -> list[Any]:
    return [7, seq, id, "0:7", view | {"id": id}]


def error(seq: int, code: str, retryable: bool, retry_after_ms: int | None = None, **extra: Any) -> list[Any]:
    return [10, seq, code, code.title(), f"because of {code}", retryable, retry_after_ms, extra]


async def test_a_submission_says_hello_and_comes_back_with_its_end(tcp: Any, view: dict[str, Any]) -> None:
    """One connection, one Hello, one Submit with an id made by the client; the result is the command's last view."""
    seen: dict[str, Any] = {}

    async def script(peer: Any) -> None:
        seen["hello"] = await peer.greet()
        seq, seen["submission"] = await peer.submitted()
        peer.send(accepted(seq, seen["submission"]["id"]), final(seq, seen["submission"]["id"], view))

    tcp.play(script)
    async with AsyncClient(tcp.url) as client:
        command = await client.submit("T", {"n": 1}, attributes={"k": "v"}, timeout="30s", wait=5)
    assert command.ok
    assert command.result == {"receipt": "r-9"}
    assert seen["hello"][:5] == [0, 0, "coordinator", 1, 1]
    assert seen["submission"] == {
        "id": command.id,
        "type": "T",
        "payload": {"n": 1},
        "priority": 0,
        "timeout": "30s",
        "attributes": {"k": "v"},
    }
    assert len(command.id) == 32


async def test_without_wait_the_acceptance_is_the_answer(tcp: Any, view: dict[str, Any]) -> None:
    """A submission that does not wait asks for acceptance only, and gets the command as it is then."""

    async def script(peer: Any) -> None:
        await peer.greet()
        frame = await peer.read()
        assert frame[2] == "accepted"
        peer.send(accepted(frame[1], "c-1", view | {"state": "running"}))

    tcp.play(script)
    async with AsyncClient(tcp.url) as client:
        command = await client.submit("T", id="c-1")
    assert (command.state, command.final) == ("running", False)


async def test_answers_may_come_in_any_order(tcp: Any, view: dict[str, Any]) -> None:
    """Calls share a connection; each gets the answer with its own number."""

    async def script(peer: Any) -> None:
        await peer.greet()
        calls = [await peer.submitted() for _ in range(3)]
        for seq, submission in reversed(calls):
            peer.send(final(seq, submission["id"], view | {"result": submission["payload"]}))

    tcp.play(script)
    async with AsyncClient(tcp.url) as client:
        commands = await asyncio.gather(*(client.submit("T", n, wait=5) for n in range(3)))
    assert [command.result for command in commands] == [0, 1, 2]


async def test_the_servers_in_flight_limit_is_kept_by_waiting(tcp: Any, view: dict[str, Any]) -> None:
    """The fifth call on a connection that allows four is sent when one of them has ended, and no error is seen."""

    async def script(peer: Any) -> None:
        await peer.greet(in_flight_max=4)
        calls = [await peer.submitted() for _ in range(4)]
        peer.send([11, 9])
        assert await peer.read() == [12, 9], "a fifth Submit came before there was room"
        for seq, submission in calls:
            peer.send(final(seq, submission["id"], view))
        for _ in range(2):
            seq, submission = await peer.submitted()
            peer.send(final(seq, submission["id"], view))

    tcp.play(script)
    async with AsyncClient(tcp.url) as client:
        commands = await asyncio.gather(*(client.submit("T", n, wait=5) for n in range(6)))
    assert all(command.ok for command in commands)


async def test_a_retryable_error_is_retried_with_the_same_id(tcp: Any, view: dict[str, Any]) -> None:
    """Suspension is waited through: the same submission again, until it is taken."""
    ids = []

    async def script(peer: Any) -> None:
        await peer.greet()
        for code in ("suspended", "limit_reached", "starting", "log_unavailable"):
            seq, submission = await peer.submitted()
            ids.append(submission["id"])
            peer.send(error(seq, code, True, 1))
        seq, submission = await peer.submitted()
        ids.append(submission["id"])
        peer.send(accepted(seq, "c", None), final(seq, submission["id"], view))

    tcp.play(script)
    async with AsyncClient(tcp.url, retry=QUICK) as client:
        command = await client.submit("T", wait=5)
    assert ids == [command.id] * 5


async def test_patience_ends_with_the_last_error_and_the_id(tcp: Any) -> None:
    """When the deadline has passed the caller learns why, and under which id it may go on trying."""

    async def script(peer: Any) -> None:
        await peer.greet()
        while True:
            seq, _ = await peer.submitted()
            peer.send(error(seq, "suspended", True, 5, services=["payments"]))

    tcp.play(script)
    async with AsyncClient(tcp.url, retry=QUICK) as client:
        with pytest.raises(Suspended) as caught:
            await client.submit("T", id="c-9", deadline="100ms")
    assert caught.value.services == ["payments"]
    assert caught.value.command_id == "c-9"


@pytest.mark.parametrize(
    ("code", "kind", "extra"),
    [
        ("id_conflict", IdConflict, {}),
        ("illegal_state", IllegalState, {"legal_states": ["running"]}),
        ("unknown_command", UnknownCommand, {}),
    ],
)
async def test_what_is_refused_is_raised_at_once(tcp: Any, code: str, kind: type[Exception], extra: Any) -> None:
    """A refusal is asked once and raised as the class of its code."""

    async def script(peer: Any) -> None:
        await peer.greet()
        seq, _ = await peer.submitted()
        peer.send(error(seq, code, False, None, **extra))

    tcp.play(script)
    async with AsyncClient(tcp.url) as client:
        with pytest.raises(kind) as caught:
            await client.submit("T")
    assert getattr(caught.value, "extra", None) == extra


async def test_a_lost_connection_is_replaced_and_the_command_attached_to(tcp: Any, view: dict[str, Any]) -> None:
    """A server that dies between acceptance and end costs nothing: the same id goes to the next connection."""
    ids = []

    async def dies(peer: Any) -> None:
        await peer.greet()
        seq, submission = await peer.submitted()
        ids.append(submission["id"])
        peer.send(accepted(seq, submission["id"]))
        peer.close()

    async def lives(peer: Any) -> None:
        await peer.greet()
        seq, submission = await peer.submitted()
        ids.append(submission["id"])
        peer.send([4, seq, submission["id"], "0:1", True, None], final(seq, submission["id"], view))

    tcp.play(dies, lives)
    async with AsyncClient(tcp.url, retry=QUICK) as client:
        command = await client.submit("T", wait=5)
    assert ids == [command.id] * 2
    assert command.ok


async def test_an_address_that_is_down_is_left_for_the_next(tcp: Any, other_tcp: Any, view: dict[str, Any]) -> None:
    """With several addresses the first that answers is used, and kept."""

    async def script(peer: Any) -> None:
        await peer.greet()
        for _ in range(2):
            seq, submission = await peer.submitted()
            peer.send(final(seq, submission["id"], view))

    await tcp.stop()
    other_tcp.play(script)
    async with AsyncClient([tcp.url, other_tcp.url], retry=QUICK) as client:
        assert (await client.submit("T", wait=5)).ok
        assert (await client.submit("T", wait=5)).ok


async def test_go_away_sends_new_calls_elsewhere_and_waits_for_open_ones(tcp: Any, view: dict[str, Any]) -> None:
    """A draining server still answers what it has; the next call opens another connection."""
    told, went = asyncio.Event(), asyncio.Event()

    async def drains(peer: Any) -> None:
        await peer.greet()
        seq, submission = await peer.submitted()
        peer.send([13, 0, "stopping", None], [11, 1])
        assert await peer.read() == [12, 1]
        told.set()
        await went.wait()
        peer.send(final(seq, submission["id"], view | {"result": "old"}))

    async def takes_over(peer: Any) -> None:
        await peer.greet()
        seq, submission = await peer.submitted()
        peer.send(final(seq, submission["id"], view | {"result": "new"}))
        went.set()

    tcp.play(drains, takes_over)
    async with AsyncClient(tcp.url, retry=QUICK) as client:
        first = asyncio.create_task(client.submit("T", wait=5))
        await told.wait()
        second = await client.submit("T", wait=5)
        assert (second.result, (await first).result) == ("new", "old")


async def test_an_instance_that_stops_is_left_for_another(tcp: Any, other_tcp: Any, view: dict[str, Any]) -> None:
    """`stopping` and `no_owner` are about the instance: the next address is asked."""

    async def refuses(peer: Any) -> None:
        await peer.greet()
        seq, _ = await peer.submitted()
        peer.send(error(seq, "stopping", True, 1))

    async def accepts(peer: Any) -> None:
        await peer.greet()
        seq, submission = await peer.submitted()
        peer.send(final(seq, submission["id"], view))

    tcp.play(refuses)
    other_tcp.play(accepts)
    async with AsyncClient([tcp.url, other_tcp.url], retry=QUICK) as client:
        assert (await client.submit("T", wait=5)).ok


@pytest.mark.parametrize("code", ["starting", "no_owner", "log_unavailable"])
async def test_what_one_instance_cannot_do_another_may(
    tcp: Any, other_tcp: Any, view: dict[str, Any], code: str
) -> None:
    """At once, with the same id, whatever delay the first one named; the addresses may come in one text."""
    ids: list[str] = []

    async def refuses(peer: Any) -> None:
        await peer.greet()
        seq, submission = await peer.submitted()
        ids.append(submission["id"])
        peer.send(error(seq, code, True, 60_000))

    async def accepts(peer: Any) -> None:
        await peer.greet()
        seq, submission = await peer.submitted()
        ids.append(submission["id"])
        peer.send(final(seq, submission["id"], view))

    tcp.play(refuses)
    other_tcp.play(accepts)
    async with AsyncClient(f"{tcp.url}, 127.0.0.1:{other_tcp.port}", retry=QUICK) as client:
        assert (await client.submit("T", wait=5)).ok
    assert ids[0] == ids[1]


async def test_an_instance_that_goes_away_is_left_while_it_still_answers(
    tcp: Any, other_tcp: Any, view: dict[str, Any]
) -> None:
    """GoAway: what is open there is waited for, what is new goes to another address."""
    told, went = asyncio.Event(), asyncio.Event()

    async def drains(peer: Any) -> None:
        await peer.greet()
        seq, submission = await peer.submitted()
        peer.send([13, 0, "stopping", None], [11, 1])
        assert await peer.read() == [12, 1]
        told.set()
        await went.wait()
        peer.send(final(seq, submission["id"], view | {"result": "old"}))

    async def takes(peer: Any) -> None:
        await peer.greet()
        seq, submission = await peer.submitted()
        peer.send(final(seq, submission["id"], view | {"result": "new"}))
        went.set()

    tcp.play(drains)
    other_tcp.play(takes)
    async with AsyncClient([tcp.url, other_tcp.url], retry=QUICK) as client:
        first = asyncio.create_task(client.submit("T", wait=5))
        await told.wait()
        assert (await client.submit("T", wait=5)).result == "new"
        assert (await first).result == "old"


async def test_a_command_that_does_not_end_in_time_comes_back_as_it_is(tcp: Any, view: dict[str, Any]) -> None:
    """After `wait` the server is told to forget the call, and the present view is fetched: no error, not final."""

    async def script(peer: Any) -> None:
        await peer.greet()
        seq, submission = await peer.submitted()
        peer.send(accepted(seq, submission["id"]))
        assert await peer.read() == [3, seq]
        request = await peer.read()
        assert request[2] == "get"
        peer.send([8, request[1], view | {"state": "delayed", "id": submission["id"]}, False])

    tcp.play(script)
    async with AsyncClient(tcp.url) as client:
        command = await client.submit("T", wait="50ms")
    assert (command.state, command.final) == ("delayed", False)


async def test_wait_goes_on_through_a_restart(tcp: Any, view: dict[str, Any]) -> None:
    """Waiting for a known command survives lost connections and a server that is starting."""

    async def dies(peer: Any) -> None:
        await peer.greet()
        await peer.read()
        peer.close()

    async def starts(peer: Any) -> None:
        await peer.greet()
        request = await peer.read()
        peer.send(error(request[1], "starting", True, 1))
        request = await peer.read()
        assert request[3] is not None
        assert request[4]["id"] == "c-1"
        peer.send([8, request[1], view, False])

    tcp.play(dies, starts)
    async with AsyncClient(tcp.url, retry=QUICK) as client:
        assert (await client.wait("c-1", "10s")).ok


async def test_wait_gives_up_with_the_last_view(tcp: Any, view: dict[str, Any]) -> None:
    """A wait that ends early is an error, since its caller asked for the end; it carries what is known."""

    async def script(peer: Any) -> None:
        await peer.greet()
        while True:
            request = await peer.read()
            peer.send([8, request[1], view | {"state": "waiting"}, False])

    tcp.play(script)
    async with AsyncClient(tcp.url, retry=QUICK) as client:
        with pytest.raises(WaitTimeout) as caught:
            await client.wait("c-1", "50ms")
    assert caught.value.command is not None
    assert caught.value.command.state == "waiting"


async def test_watch_goes_on_after_the_last_position_it_saw(tcp: Any, view: dict[str, Any]) -> None:
    """An interrupted watch is resumed behind its last event, so that none is missed or seen twice."""

    async def breaks(peer: Any) -> None:
        await peer.greet()
        request = await peer.read()
        assert request[4] == {"id": "c-1", "after": None}
        seq = request[1]
        peer.send(accepted(seq, "c-1"), [5, seq, "c-1", "0:4", "running", {"kind": "outcome", "step": "a"}])
        peer.close()

    async def goes_on(peer: Any) -> None:
        await peer.greet()
        request = await peer.read()
        assert request[4] == {"id": "c-1", "after": "0:4"}
        peer.send([6, request[1], "c-1", "0:4", "delayed"], final(request[1], "c-1", view))

    tcp.play(breaks, goes_on)
    async with AsyncClient(tcp.url, retry=QUICK) as client:
        events = [event async for event in client.watch("c-1")]
    seen = [(event.kind, event.position) for event in events]
    assert seen == [("accepted", "0:1"), ("step", "0:4"), ("state", "0:4"), ("final", "0:7")]
    assert events[-1].command is not None


async def test_outcomes_are_resumed_at_the_last_one_without_repeating_it(tcp: Any) -> None:
    """`from` is inclusive, so the item at which the stream broke comes again and is left out."""

    def item(n: int) -> dict[str, Any]:
        return {"position": f"0:{n}", "service": "payments", "command_id": f"c-{n}", "outcome": n}

    async def breaks(peer: Any) -> None:
        await peer.greet()
        request = await peer.read()
        assert request[4] == {"service": "payments", "from": "0:1", "follow": False}
        peer.send([8, request[1], [item(1), item(2)], True])
        peer.close()

    async def goes_on(peer: Any) -> None:
        await peer.greet()
        request = await peer.read()
        assert request[4]["from"] == "0:2"
        peer.send([8, request[1], [item(2), item(3)], True], [8, request[1], [], False])

    tcp.play(breaks, goes_on)
    async with AsyncClient(tcp.url, retry=QUICK) as client:
        assert [outcome.outcome async for outcome in client.outcomes("payments", "0:1")] == [1, 2, 3]


async def test_leaving_a_watch_early_forgets_it(tcp: Any) -> None:
    """A reader that stops reading tells the server, so that nothing piles up."""

    async def script(peer: Any) -> None:
        await peer.greet()
        request = await peer.read()
        peer.send(accepted(request[1], "c-1"))
        assert await peer.read() == [3, request[1]]

    tcp.play(script)
    async with AsyncClient(tcp.url) as client:
        events = client.watch("c-1")
        assert (await anext(events)).kind == "accepted"
        await events.aclose()  # type: ignore[attr-defined]
        await client._calls.endpoint().close()


async def test_a_list_is_fetched_page_by_page_up_to_its_limit(tcp: Any, view: dict[str, Any]) -> None:
    """Pages are asked for as they are needed, the last one no longer than needed."""

    async def script(peer: Any) -> None:
        await peer.greet()
        for expected, ids, cursor in (((2, None), ["a", "b"], "x"), ((1, "x"), ["c"], "y")):
            request = await peer.read()
            assert (request[4]["limit"], request[4]["cursor"]) == expected
            assert request[4]["attributes"] == {"customer": "c-1"}
            peer.send([8, request[1], {"commands": [view | {"id": id} for id in ids], "next_cursor": cursor}, False])

    tcp.play(script)
    async with AsyncClient(tcp.url) as client:
        found = [command.id async for command in client.list(attributes={"customer": "c-1"}, limit=3, page=2)]
    assert found == ["a", "b", "c"]


async def test_a_control_whose_answer_was_lost_is_not_repeated(tcp: Any) -> None:
    """Doing it twice may be illegal the second time, so the caller is told that nobody knows."""

    async def script(peer: Any) -> None:
        await peer.greet()
        await peer.read()
        peer.close()

    tcp.play(script)
    async with AsyncClient(tcp.url, retry=QUICK) as client:
        with pytest.raises(ConnectionLost) as caught:
            await client.cancel("c-1", reason="changed my mind")
    assert caught.value.command_id == "c-1"


async def test_a_control_that_may_have_been_recorded_is_not_repeated(tcp: Any, other_tcp: Any) -> None:
    """`in_doubt`: the owner was lost before it confirmed; another instance would do it a second time."""

    async def script(peer: Any) -> None:
        await peer.greet()
        _, seq, *_ = await peer.read()
        peer.send(error(seq, "log_unavailable", True, 1, in_doubt=True))

    tcp.play(script)
    async with AsyncClient([tcp.url, other_tcp.url], retry=QUICK) as client:
        with pytest.raises(LogUnavailable) as caught:
            await client.requeue("c-1", "charge")
    assert caught.value.command_id == "c-1"


async def test_a_request_above_the_servers_limit_is_not_sent(tcp: Any, view: dict[str, Any]) -> None:
    """An oversized frame would end the connection for everybody; it is refused here."""

    async def script(peer: Any) -> None:
        await peer.greet(frame_bytes_max=4096)
        seq, submission = await peer.submitted()
        peer.send(final(seq, submission["id"], view))

    tcp.play(script)
    async with AsyncClient(tcp.url) as client:
        with pytest.raises(TooLarge):
            await client.submit("T", "x" * 5000)
        assert (await client.submit("T", wait=5)).ok


async def test_pings_are_answered(tcp: Any) -> None:
    """The client answers the server's Ping with its number."""

    async def script(peer: Any) -> None:
        await peer.greet()
        request = await peer.read()
        peer.send([11, 77])
        assert await peer.read() == [12, 77]
        peer.send([8, request[1], {}, False])

    tcp.play(script)
    async with AsyncClient(tcp.url) as client:
        assert await client.cluster() == {}


async def test_a_silent_server_is_asked_and_then_given_up(tcp: Any) -> None:
    """A server that neither answers nor closes is noticed by its silence."""

    async def script(peer: Any) -> None:
        await peer.greet(ping_interval_ms=20)
        await peer.read()
        assert await peer.read() == [11, 0]
        await peer.hang_up_seen()

    tcp.play(script)
    async with AsyncClient(tcp.url, retry=RetryPolicy(first_s=5, jitter=0)) as client:
        with pytest.raises(ConnectionLost, match="silent"):
            await asyncio.wait_for(anext(client.watch("c-1", deadline="1s")), 5)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00\x00\x00\x04\xc1\xc1\xc1\xc1", b""])
async def test_something_else_on_that_port_is_a_lost_connection(tcp: Any, answer: bytes) -> None:
    """What does not speak the protocol is reported as such within the caller's patience."""

    async def script(peer: Any) -> None:
        await peer.read()
        peer.send_bytes(answer)
        peer.close()

    tcp.play(script)
    async with AsyncClient(tcp.url, retry=RetryPolicy(first_s=5, jitter=0)) as client:
        with pytest.raises(ConnectionLost):
            await client.submit("T", deadline="1s")


async def test_the_end_of_a_connection_reaches_every_call_on_it(tcp: Any) -> None:
    """An Error under sequence id 0 fails all open calls with its reason."""

    async def script(peer: Any) -> None:
        await peer.greet()
        for _ in range(2):
            await peer.submitted()
        peer.send(error(0, "stopping", True, 10_000))

    tcp.play(script)
    async with AsyncClient(tcp.url) as client:
        results = await asyncio.gather(*(client.submit("T", deadline=1) for _ in range(2)), return_exceptions=True)
    assert [type(result) for result in results] == [Stopping, Stopping]


async def test_a_client_needs_an_address_it_can_use() -> None:
    """Wrong addresses are found when the client is made."""
    for url in ("tcp://nohost", "ftp://x:1", "127.0.0.1:7070", []):
        with pytest.raises(ValueError, match="address"):
            AsyncClient(url)
