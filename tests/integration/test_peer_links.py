"""Links between instances over real sockets: what is asked arrives, what breaks is told, who died is known."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import msgspec
import pytest

from coordinator import errors
from coordinator.cluster.base import Member
from coordinator.cluster.link import Link
from coordinator.cluster.peers import LinkSettings, Peers
from coordinator.errors import (
    CoordinatorError,
    InvalidPayload,
    LimitReached,
    LinkLost,
    TooLarge,
    UnknownCommand,
    WaitTimeout,
)
from coordinator.model.command import Submission
from coordinator.transport.base import Event, Traffic
from coordinator.transport.tcp import TcpSettings
from coordinator.wire.frames import GetParams
from tests.integration.peer_kit import (
    Elsewhere,
    Instance,
    Listener,
    Process,
    free_port,
    instance,
    peers,
)


class Told:
    """A watcher whose events can be awaited."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._came = asyncio.Event()

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        self._came.set()

    @property
    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]

    async def until(self, *kinds: str) -> Event:
        """The last event, once one of these kinds has come."""
        async with asyncio.timeout(10):
            while not self.events or self.events[-1].kind not in kinds:
                self._came.clear()
                await self._came.wait()
        return self.events[-1]


def submission(id: str = "c-1", payload: Any = None) -> Submission:
    return Submission(id=id, type="T", payload=payload)


async def up(listener: Listener, made: Peers, name: str = "b") -> Link:
    """The link, once it is up and the other has told what it owns."""
    await listener.until(lambda: made.link(name) is not None and ("told", name) in listener.heard)
    link = made.link(name)
    assert link is not None
    return link


@contextlib.asynccontextmanager
async def linked(settings: LinkSettings | None = None, **options: Any) -> AsyncIterator[tuple[Link, Instance]]:
    """Instance ``a``'s link to instance ``b``, both in this process."""
    listener = Listener()
    async with instance("b", **options) as b, peers(listener, b.member, settings=settings) as made:
        yield await up(listener, made), b


# ------------------------------------------------------------------------------------------------------ what is asked


async def test_a_submission_is_forwarded_and_its_events_come_back() -> None:
    """Each `want` gets the events that Front.submit gives, from the event loop, as the same values."""
    async with linked() as (link, b):
        for want, kinds in (
            ("events", ["accepted", "step", "state", "final"]),
            ("final", ["accepted", "final"]),
            ("accepted", ["accepted"]),
        ):
            told = Told()
            link.submit(submission(f"c-{want}", {"n": 1}), told, want)  # type: ignore[arg-type]
            assert told.events == [], "never from inside the call"
            await told.until(kinds[-1])
            assert told.kinds == kinds
            first, last = told.events[0], told.events[-1]
            assert (first.id, first.position, first.state) == (f"c-{want}", "0:1", "running")
            if want == "accepted":
                assert first.view is not None
            else:
                assert last.view is not None
                assert (last.view.result, last.state, last.view.state) == ({"n": 1}, "completed", "completed")
            if want == "events":
                assert told.events[1].record == {"kind": "outcome", "step": "a"}
                assert told.events[2].state == "delayed"
        assert [(each.id, want) for each, want in b.front.submitted] == [
            ("c-events", "events"),
            ("c-final", "final"),
            ("c-accepted", "accepted"),
        ]


async def test_a_thousand_submissions_are_pipelined_and_each_keeps_its_order() -> None:
    """All leave in one turn of the loop; each watcher gets its own events, in the order of the log."""
    async with linked() as (link, _):
        watchers = [Told() for _ in range(1000)]
        for number, told in enumerate(watchers):
            link.submit(submission(f"c-{number}", number), told, "events")
        for number, told in enumerate(watchers):
            event = await told.until("final")
            assert told.kinds == ["accepted", "step", "state", "final"]
            assert {each.id for each in told.events} == {f"c-{number}"}
            assert event.view is not None
            assert event.view.result == number


async def test_deadline_and_trace_context_are_passed_on() -> None:
    """The other side ends the waiting at the caller's deadline; the command there runs on."""
    async with linked() as (link, b):
        b.front.holding = True
        told = Told()
        link.submit(submission(), told, "final", 30, {"traceparent": "00-1-2-03"})
        event = await told.until("error")
        assert isinstance(event.error, WaitTimeout)
        assert await b.front.left.get() == "c-1"


async def test_who_unwatches_is_forgotten_at_the_other_side() -> None:
    """Unwatch sends Forget: the other lets the watcher go, and nothing more is told here."""
    async with linked() as (link, b):
        b.front.holding = True
        told = Told()
        unwatch = link.submit(submission(), told, "final")
        unwatched = link.watch("c-2", told)
        await told.until("accepted")
        unwatch()
        unwatched()
        unwatch()
        assert {await b.front.left.get(), await b.front.left.get()} == {"c-1", "c-2"}
        assert await link.request("get", GetParams(id="c-3"))
        assert told.kinds == ["accepted"]


async def test_a_watch_starts_where_it_is_told() -> None:
    """`after` is passed on, the shown state comes with acceptance, an unknown id is an error event."""
    async with linked() as (link, _):
        told = Told()
        link.watch("c-1", told, "0:7")
        event = await told.until("accepted")
        assert (event.position, event.state) == ("0:7", "delayed")
        unknown = Told()
        link.watch("unknown", unknown)
        assert isinstance((await unknown.until("error")).error, UnknownCommand)


async def test_a_request_is_answered_with_a_plain_value() -> None:
    """Structs and dicts serve as parameters; what the other refuses is raised as the class that it was there."""
    async with linked() as (link, _):
        assert (await link.request("get", GetParams(id="c-1")))["state"] == "completed"
        assert (await link.request("get", {"id": "c-1", "wait_ms": 0}, 5_000))["id"] == "c-1"
        with pytest.raises(UnknownCommand, match="'unknown'"):
            await link.request("get", {"id": "unknown"})
        with pytest.raises(errors.Malformed, match="unknown operation"):
            await link.request("dance", {})


async def test_a_request_ends_at_its_deadline_or_with_its_caller() -> None:
    """Both ends stop: here WaitTimeout or the cancellation, there the work."""
    async with linked() as (link, b):
        with pytest.raises(WaitTimeout):
            await link.request("get", {"id": "late", "wait_ms": 60_000}, 30)
        assert await b.front.left.get() == "late"
        waiting = asyncio.create_task(link.request("get", {"id": "dropped", "wait_ms": 60_000}))
        assert await link.request("get", {"id": "other"})
        waiting.cancel()
        assert await b.front.left.get() == "dropped"


@pytest.mark.parametrize("code", sorted(errors.tree()))
async def test_every_error_comes_back_as_its_class_with_all_that_it_said(code: str) -> None:
    """Code, detail, retry delay and extra members of a refusal survive the way over the link."""
    async with linked() as (link, _):
        told = Told()
        link.submit(submission(payload={"refuse": code}), told, "final")
        error = (await told.until("error")).error
        assert type(error) is errors.tree()[code]
        assert (error.detail, error.retry_after_ms) == ("so it was asked", 70)
        assert error.extra == {"legal_states": ["paused"], "faults": []}


async def test_a_stream_goes_at_its_readers_pace_and_hinders_nobody() -> None:
    """A reader that does not read holds up the stream at its source, while requests on the link are answered."""
    async with linked() as (link, b):
        values = [value async for value in link.stream("outcomes", {"service": "s", "from": "3"})]
        assert [len(value) for value in values] == [10, 10, 10]
        assert values[0][0]["command_id"] == "c"
        async with aclosing(link.stream("outcomes", {"service": "s", "from": "20000"})) as slow:  # 200 MB
            await anext(slow)
            before = -1
            while b.front.outcome_batches != before:
                before = b.front.outcome_batches
                for _ in range(100):
                    await link.request("get", {"id": "c-1"})
            assert before < 20_000
        with pytest.raises(UnknownCommand):
            async for _ in link.stream("get", {"id": "unknown"}):
                pass


async def test_what_another_instance_forwards_is_answered_by_the_local_front() -> None:
    """It has been forwarded once: it must not be forwarded again."""
    async with linked(front=Elsewhere()) as (link, b):
        told = Told()
        link.submit(submission(), told, "final")
        await told.until("final")
        assert b.front.submitted == []
        assert len(b.front.local.submitted) == 1


# ----------------------------------------------------------------------------------------------------- follow and take


async def test_what_the_other_owns_is_followed() -> None:
    """First at once, then with each change; changes are told to the listener; leaving stays."""
    listener = Listener()
    async with instance("b") as b, peers(listener, b.member) as made:
        b.cluster.change({0: 12})
        link = await up(listener, made)
        assert (link.owned, link.leaving) == ({0: 12}, False)
        b.cluster.change({0: 12, 3: 1841})
        await listener.until(lambda: link.owned == {0: 12, 3: 1841})
        b.cluster.change({}, leaving=True)
        await listener.until(lambda: link.leaving)
        assert link.owned == {}
        assert set(listener.heard) == {("told", "b")}


async def test_a_partition_is_handed_over_by_take() -> None:
    """The other learns who let go of which partition, and says whether it takes it."""
    async with linked() as (link, b):
        assert await link.request("take", {"partition": 3, "epoch": 1841}) == {"taken": True}
        assert b.cluster.taken == [(3, 1841, "a")]
        b.cluster.change({}, leaving=True)
        assert await link.request("take", {"partition": 3, "epoch": 1841}) == {"taken": False}
        with pytest.raises(CoordinatorError, match="not that one"):
            await link.request("take", {"partition": 13, "epoch": 1})
        with pytest.raises(InvalidPayload):
            await link.request("take", {"partition": -1, "epoch": 1})


class Stranger:
    """A client made of nothing but the document."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    @contextlib.asynccontextmanager
    async def at(cls, member: Member, options: dict[str, Any] | None = None) -> AsyncIterator[Stranger]:
        host, _, port = member.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        stranger = cls(reader, writer)
        stranger.send(0, 0, "coordinator", 1, 1, "test", options or {})
        try:
            async with asyncio.timeout(10):
                yield stranger
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    def send(self, *frame: Any) -> None:
        body = msgspec.msgpack.encode(frame)
        self._writer.write(len(body).to_bytes(4, "big") + body)

    async def read(self) -> list[Any]:
        size = int.from_bytes(await self._reader.readexactly(4), "big")
        frame: list[Any] = msgspec.msgpack.decode(await self._reader.readexactly(size))
        return frame


async def test_strangers_may_neither_follow_nor_take() -> None:
    """A client that is no instance is told so, and its connection goes on."""
    async with instance("b") as b, Stranger.at(b.member) as stranger:
        assert (await stranger.read())[0] == 0
        for seq, (operation, params) in enumerate([("follow", {}), ("take", {"partition": 0, "epoch": 1})], 1):
            stranger.send(2, seq, operation, None, params)
            error = await stranger.read()
            assert error[:3] == [10, seq, "malformed"]
            assert "instances of the group" in error[4]
        stranger.send(11, 5)
        assert await stranger.read() == [12, 5]
        assert b.cluster.taken == []


async def test_follow_ends_with_its_asker() -> None:
    """Forget ends the stream at its source."""
    async with instance("b") as b, Stranger.at(b.member, {"peer": "x", "group": "orders"}) as other:
        assert (await other.read())[6]["in_flight_max"] == TcpSettings().peer_in_flight_max
        other.send(2, 1, "follow")
        assert await other.read() == [8, 1, {"owned": {}, "leaving": False}, True]
        assert b.cluster.followers == 1
        other.send(3, 1)
        other.send(11, 1)
        assert await other.read() == [12, 1]
        assert b.cluster.followers == 0


# ------------------------------------------------------------------------------------------ who is let in, how many


async def test_an_instance_of_another_group_is_told_why_it_is_refused() -> None:
    """The Error names both groups, and is all that it gets."""
    async with instance("b", group="payments") as b, Stranger.at(b.member, {"peer": "x", "group": "orders"}) as other:
        other.send(2, 1, "take", None, {"partition": 0, "epoch": 1})
        error = await other.read()
        assert error[:3] == [10, 0, "conflict"]
        assert "'payments'" in error[4]
        assert "'orders'" in error[4]
        assert b.cluster.taken == []


class Attempts(Traffic):
    """Counts connections, and says when there were enough."""

    def __init__(self, enough: int) -> None:
        super().__init__()
        self._enough = enough
        self.enough = asyncio.Event()

    def connected(self) -> None:
        super().connected()
        if self.opened >= self._enough:
            self.enough.set()


async def test_one_clear_warning_where_no_link_can_be_made(caplog: pytest.LogCaptureFixture) -> None:
    """Another group at the address, tried again and again, is one line for the operator."""
    listener = Listener()
    quick, attempts = LinkSettings(backoff_ms_min=1, backoff_ms_max=2), Attempts(5)
    with caplog.at_level(logging.WARNING):
        async with (
            instance("b", group="payments", traffic=attempts) as b,
            peers(listener, b.member, settings=quick) as made,
            asyncio.timeout(10),
        ):
            await attempts.enough.wait()
            assert made.link("b") is None
            assert set(made.links) == {"b"}
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "payments" in warnings[0]
    assert listener.heard == []


async def test_an_instance_that_works_alone_takes_no_links() -> None:
    """Without a cluster there is nothing to follow: who links to it is misconfigured, and told so."""
    async with instance("b", alone=True) as b, Stranger.at(b.member, {"peer": "x", "group": "orders"}) as other:
        assert (await other.read())[:3] == [10, 0, "conflict"]


async def test_other_instances_are_let_in_although_clients_are_many() -> None:
    """The limit of connections is the clients': one client more is refused, another instance is not."""
    async with contextlib.AsyncExitStack() as stack:
        b = await stack.enter_async_context(instance("b", settings=TcpSettings(connections_max=2)))
        for _ in range(2):
            client = await stack.enter_async_context(Stranger.at(b.member))
            assert (await client.read())[0] == 0
        one_more = await stack.enter_async_context(Stranger.at(b.member))
        assert (await one_more.read())[:3] == [10, 0, "limit_reached"]
        listener = Listener()
        made = await stack.enter_async_context(peers(listener, b.member))
        link = await up(listener, made)
        assert await link.request("get", {"id": "c-1"})


async def test_one_too_many_that_says_nothing_is_sent_away_soon() -> None:
    """It may be another instance, but not for ever."""
    async with contextlib.AsyncExitStack() as stack:
        b = await stack.enter_async_context(instance("b", settings=TcpSettings(connections_max=1, crowd_ms=20)))
        client = await stack.enter_async_context(Stranger.at(b.member))
        assert (await client.read())[0] == 0
        host, _, port = b.member.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        assert b"limit_reached" in await reader.read()
        writer.close()


async def test_no_link_without_an_address_nor_to_oneself() -> None:
    """A member that cannot be reached gets none, and nobody forwards to itself."""
    listener = Listener()
    async with peers(listener, Member("b", ""), Member("a", "127.0.0.1:1")) as made:
        assert dict(made.links) == {}


# ----------------------------------------------------------------------------------------------------- too much at once


async def test_a_link_with_too_much_unsent_refuses_instead_of_growing() -> None:
    """Towards one that does not read, requests are refused with a delay; what was taken is answered when it reads."""
    bounds = LinkSettings(unsent_bytes_max=1 << 20)
    process = await Process.start("b")
    listener = Listener()
    try:
        async with peers(listener, process.member, settings=bounds) as made:
            link = await up(listener, made)
            process.signal(signal.SIGSTOP)
            taken: list[Told] = []
            refusal: LimitReached | None = None
            while refusal is None and len(taken) < 2000:
                told = Told()
                try:
                    link.submit(submission(f"c-{len(taken)}", "x" * 50_000), told, "final")
                    taken.append(told)
                except LimitReached as error:
                    refusal = error
                await asyncio.sleep(0)
            assert refusal is not None
            assert refusal.retryable
            assert refusal.retry_after_ms
            process.signal(signal.SIGCONT)
            for told in taken:
                await told.until("final")
            assert await link.request("get", {"id": "c"})
    finally:
        await process.end()


async def test_more_open_requests_than_the_other_takes_are_refused_here() -> None:
    """The other's in-flight limit is kept without asking it."""
    async with linked() as (link, b):
        b.front.holding = True
        limit = TcpSettings().peer_in_flight_max
        unwatch = [link.submit(submission(f"c-{n}"), Told(), "final") for n in range(limit - 1)]  # one is `follow`
        with pytest.raises(LimitReached):
            link.submit(submission(), Told(), "final")
        unwatch.pop()()
        link.submit(submission(), Told(), "final")


async def test_what_cannot_be_forwarded_is_refused_by_itself() -> None:
    """Too long for the other, or nothing that msgpack can hold: that request fails, the link goes on."""
    async with linked() as (link, _):
        with pytest.raises(TooLarge):
            link.submit(submission(payload="x" * (17 << 20)), Told(), "final")
        with pytest.raises(InvalidPayload):
            link.submit(submission(payload=2**70), Told(), "final")
        assert await link.request("get", {"id": "c-1"})


async def test_a_watcher_that_fails_hurts_no_other() -> None:
    """An exception in one callback is logged, and the frames behind it are told."""
    async with linked() as (link, _):

        def broken(event: Event) -> None:
            raise ZeroDivisionError

        told = Told()
        link.submit(submission("c-1"), broken, "final")
        link.submit(submission("c-2"), told, "final")
        await told.until("final")


# ------------------------------------------------------------------------------------------------------- what breaks


async def test_a_killed_process_is_known_within_half_a_second_and_everybody_told() -> None:
    """kill -9: watchers, requests and streams get LinkLost, and the death is told once."""
    process = await Process.start("b")
    listener = Listener()
    try:
        async with peers(listener, process.member) as made:
            link = await up(listener, made)
            told = Told()
            link.watch("c-1", told)
            await told.until("accepted")
            request = asyncio.create_task(link.request("get", {"id": "c-1", "wait_ms": 60_000}))
            stream = link.stream("outcomes", {"service": "s", "from": "1", "follow": True})
            await anext(stream)
            killed = time.monotonic()
            process.signal(signal.SIGKILL)
            await listener.until(listener.deaths)
            assert time.monotonic() - killed < 0.5
            error = (await told.until("error")).error
            assert type(error) is LinkLost
            assert error.code == "no_owner"
            assert error.retryable
            with pytest.raises(LinkLost):
                await request
            with pytest.raises(LinkLost):
                await anext(stream)
            assert made.link("b") is None
            assert link.owned == {}
            with pytest.raises(LinkLost):
                link.submit(submission(), Told(), "final")
            again = await Process.start("c", port=process.port)
            try:
                made.know([process.member, again.member])
                await listener.until(lambda: ("told", "c") in listener.heard)
                assert made.link("b") is None, "another instance at its address is not it"
            finally:
                await again.end()
            assert listener.deaths()[0] == "b"
            assert "b" not in listener.deaths()[1:]
            assert listener.lives() == []
    finally:
        await process.end()


async def test_a_stopped_process_is_given_up_after_its_silence_and_found_again() -> None:
    """SIGSTOP closes no connection: only silence tells; the same instance, continued, lives."""
    process = await Process.start("b")
    listener = Listener()
    settings = LinkSettings(ping_ms=100, connect_ms=200)
    try:
        async with peers(listener, process.member, silence_ms=600, settings=settings) as made:
            link = await up(listener, made)
            told = Told()
            link.watch("c-1", told)
            await told.until("accepted")
            stopped = time.monotonic()
            process.signal(signal.SIGSTOP)
            await listener.until(listener.deaths)
            assert 0.5 < time.monotonic() - stopped < 2
            assert type((await told.until("error")).error) is LinkLost
            process.signal(signal.SIGCONT)
            await listener.until(listener.lives)
            assert made.link("b") is link
            assert await link.request("get", {"id": "c-1"})
            assert (listener.deaths(), listener.lives()) == (["b"], ["b"])
    finally:
        await process.end()


async def test_a_connection_that_the_other_closed_is_opened_again_and_nobody_died() -> None:
    """Who was waiting is told LinkLost; the link is up again at once."""
    listener = Listener()
    async with instance("b") as b, peers(listener, b.member) as made:
        link = await up(listener, made)
        told = Told()
        link.watch("c-1", told)
        await told.until("accepted")
        listener.heard.clear()
        for peer in list(b.server._peers):
            peer.abort()
        assert type((await told.until("error")).error) is LinkLost
        assert await up(listener, made) is link
        assert await link.request("get", {"id": "c-1"})
        assert set(listener.heard) == {("told", "b")}


async def test_one_that_was_never_reached_has_not_died() -> None:
    """What is at the address hangs up, again and again: nothing is told; when it listens, the link comes up."""
    listener, attempts = Listener(), Attempts(5)

    def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        attempts.connected()
        writer.close()

    port = free_port()
    quick = LinkSettings(backoff_ms_min=10, backoff_ms_max=20)
    async with peers(listener, Member("b", f"127.0.0.1:{port}"), settings=quick) as made:
        async with await asyncio.start_server(hang_up, "127.0.0.1", port):
            await attempts.enough.wait()
        assert listener.heard == []
        async with instance("b", port=port):
            await up(listener, made)
        assert (listener.deaths(), listener.lives()) == ([], [])


async def test_another_instance_at_the_address_is_the_end_of_the_one_that_was_there() -> None:
    """A process was replaced so quickly that its address never refused: the Hello tells."""
    listener = Listener()
    async with instance("b") as b, peers(listener, b.member) as made:
        await up(listener, made)
        await b.server.drain()  # it listens no more
        port = int(b.member.address.rpartition(":")[2])
        async with instance("c", port=port) as c:
            for connection in list(b.server._peers):
                connection.abort()
            await listener.until(listener.deaths)
            assert made.link("b") is None
            made.know([c.member])
            await up(listener, made, "c")
            assert (listener.deaths(), listener.lives()) == (["b"], [])


async def test_an_address_that_leads_back_home_is_no_death(caplog: pytest.LogCaptureFixture) -> None:
    """Where all advertise one address, nobody may take everybody else for dead: it is said, and no link made."""
    listener, attempts = Listener(), Attempts(3)
    async with (
        instance("a", traffic=attempts) as a,
        peers(listener, Member("b", a.member.address), settings=LinkSettings(backoff_ms_min=1)) as made,
    ):
        await attempts.enough.wait()
        assert made.link("b") is None
        assert listener.heard == []
        assert "this very one" in caplog.text


async def test_a_member_that_goes_is_let_go_without_a_death() -> None:
    """`know` without it closes the link; who waits is told, the listener is not."""
    listener = Listener()
    async with instance("b") as b, peers(listener, b.member) as made:
        link = await up(listener, made)
        told = Told()
        link.watch("c-1", told)
        await told.until("accepted")
        stream = link.stream("outcomes", {"service": "s", "from": "1", "follow": True})
        await anext(stream)
        made.know([])
        assert dict(made.links) == {}
        assert type((await told.until("error")).error) is LinkLost
        with pytest.raises(LinkLost):
            await anext(stream)
        assert listener.deaths() == []


async def test_a_member_whose_address_changed_is_linked_anew() -> None:
    """The same instance under another address gets another link; that is no death."""
    listener = Listener()
    async with instance("b") as before, instance("b") as now, peers(listener, before.member) as made:
        old = await up(listener, made)
        listener.heard.clear()
        made.know([now.member])
        link = await up(listener, made)
        assert link is not old
        assert not old.up
        assert link.member == now.member
        assert listener.deaths() == []


async def test_one_that_drains_serves_other_instances_to_its_end() -> None:
    """GoAway makes it leaving; what is forwarded is still answered, also new requests, until it closes."""
    listener = Listener()
    async with instance("b") as b, peers(listener, b.member) as made:
        link = await up(listener, made)
        await b.server.drain()
        await listener.until(lambda: link.leaving)
        told = Told()
        link.submit(submission(), told, "final")
        await told.until("final")
        b.cluster.change({0: 1})
        await listener.until(lambda: link.owned == {0: 1})
        began = time.monotonic()
        await b.server.close(grace_ms=10_000)
        assert time.monotonic() - began < 5, "a follow stream is nothing to wait for"
        await listener.until(listener.deaths)


async def test_our_own_sleep_is_not_the_others_silence() -> None:
    """A process that did not run for longer than the silence it allows does not take the others for dead."""
    listener = Listener()
    process = await Process.start("b")
    try:
        async with peers(listener, process.member, silence_ms=500, settings=LinkSettings(ping_ms=100)) as made:
            link = await up(listener, made)
            time.sleep(1)  # noqa: ASYNC251 - the loop stands still, as under SIGSTOP
            for _ in range(20):
                await asyncio.sleep(0.01)
                assert await link.request("get", {"id": "c-1"})
            assert listener.deaths() == []
    finally:
        await process.end()
