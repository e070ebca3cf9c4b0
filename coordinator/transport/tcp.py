"""The TCP transport: sockets around `wire.connection`, which decides everything that needs no I/O.

One `_Peer` a connection feeds what arrives to its Connection, performs the events that come out on the Front, and
writes what piled up once a turn of the event loop.  The hot path, a Submit, makes no task and no future: Front.submit
is a plain call and its watcher is called back.  Other requests run as one task each, bounded by the in-flight limit.

How others are kept safe from one peer:

- It does not read: above ``write_buffer_high`` unsent bytes we stop reading from it and its streams pause; above
  ``write_buffer_max`` (or for ``idle_timeout_ms``) it is closed.  Its commands run on.
- It holds memory in many connections: above ``buffers_total_max`` in all, the connection that holds most is closed.
- There are too many: what is above ``connections_max`` is told so at its Hello, and may say one for at most
  ``crowd_ms``; another instance of the group (`wire.connection`, ``peer``) is let in even then.
- It must be told why: closing a socket with unread input makes the kernel discard what we sent last.  So a connection
  that we end is half-closed, its input read and dropped, until the peer closes it or ``linger_ms`` are over.

Another instance of the group forwards what its own clients asked.  It is served by ``front.local`` where the Front has
one, so that nothing is forwarded twice, and goes on being served while we drain: its clients know of one instance more
than ours do.  It may ask for ``follow`` and ``take`` too (`cluster.base.Cluster`).
"""

from __future__ import annotations

import asyncio
import logging
import ssl as ssl_module
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from msgspec.structs import replace

from coordinator.errors import CoordinatorError, Internal, LimitReached, Stopping
from coordinator.transport.base import Caller, Event, Front, Traffic, Unwatch, caller
from coordinator.transport.tcp_requests import HANDLERS
from coordinator.wire.connection import Connection, Gone, Identity, Received, TcpSettings
from coordinator.wire.frames import (
    Accepted,
    Final,
    GoAway,
    Hello,
    Nothing,
    OutcomesParams,
    Request,
    Response,
    StateChanged,
    Step,
    Submit,
    TakeParams,
    WatchParams,
    read_params,
)

if TYPE_CHECKING:  # the layer above this one: here only a word
    from coordinator.cluster.base import Cluster

__all__ = ["Identity", "TcpServer", "TcpSettings"]

log = logging.getLogger("coordinator.transport.tcp")

OUTCOMES_PER_FRAME = 64


def monotonic_ms() -> int:
    return time.monotonic_ns() // 1_000_000


class TcpServer:
    """Listens on ``host:port`` (0: a free port) and serves ``front`` until closed.

    ``start`` raises OSError where the address cannot be bound.  ``drain`` and then ``close`` end it without losing
    an answer that arrives in time; commands are never affected by either.
    """

    def __init__(
        self,
        front: Front,
        *,
        host: str,
        port: int,
        settings: TcpSettings | None = None,
        identity: Identity | None = None,
        ssl: ssl_module.SSLContext | None = None,
        traffic: Traffic | None = None,
        clock: Callable[[], int] = monotonic_ms,
        cluster: Cluster | None = None,
    ) -> None:
        """``cluster`` is what other instances are told of and may ask; without it they are refused."""
        self.front = front
        self.local: Front = getattr(front, "local", front)
        self.cluster = cluster
        self.settings = settings or TcpSettings()
        self.identity = identity or Identity()
        self.traffic = traffic or Traffic()
        self.clock = clock
        self.draining = False
        self._host, self._port, self._ssl = host, port, ssl
        self._server: asyncio.Server | None = None
        self._peers: set[_Peer] = set()
        self.members = 0  # how many of the connections are other instances'
        self._quiet = asyncio.Event()  # no sequence id is open anywhere
        self._empty = asyncio.Event()  # no connection is left
        self._held = 0

    @property
    def address(self) -> tuple[str, int]:
        """Host and port as bound."""
        assert self._server is not None, "not started"
        host, port, *_ = self._server.sockets[0].getsockname()
        return host, port

    @property
    def connections(self) -> int:
        """Connections now, for the metrics."""
        return len(self._peers)

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        handshake_s = self.settings.hello_timeout_ms / 1000 if self._ssl else None
        self._server = await loop.create_server(
            lambda: _Peer(self, loop),
            self._host,
            self._port,
            ssl=self._ssl,
            ssl_handshake_timeout=handshake_s,
            backlog=1024,
        )

    async def drain(self, grace_ms: int | None = None) -> None:
        """Accepts no connection and no submission of a client any more; tells everybody to go elsewhere.

        Other instances that are connected are served until `close`: whether they may still submit, the Front decides.
        """
        if self.draining:
            return
        self.draining = True
        if self._server is not None:
            self._server.close()
        for peer in list(self._peers):
            peer.announce(GoAway(0, "this instance is stopping", grace_ms))

    async def close(self, grace_ms: int = 0) -> None:
        """Waits up to ``grace_ms`` for open requests to be answered, then closes all connections with an Error."""
        await self.drain(grace_ms)
        await self._until(self._quiet, any(peer.awaited for peer in self._peers), grace_ms)
        for peer in list(self._peers):
            peer.end(Stopping("this instance is stopping", retry_after_ms=self.settings.retry_after_ms))
        # `end` itself gives up after linger_ms, so this wait is only a little longer than that.
        await self._until(self._empty, bool(self._peers), self.settings.linger_ms + 1_000)
        if self._server is not None:
            await self._server.wait_closed()

    async def _until(self, event: asyncio.Event, needed: bool, timeout_ms: int) -> None:
        event.clear()
        if needed and timeout_ms > 0:
            try:
                async with asyncio.timeout(timeout_ms / 1000):
                    await event.wait()
            except TimeoutError:
                pass

    # ------------------------------------------------------------------------------------------ told by the peers

    def joined(self, peer: _Peer) -> str | None:
        """Counts a new connection in; returns why it must go, if so."""
        self._peers.add(peer)
        self.traffic.connected()
        limit = self.settings.connections_max
        if len(self._peers) - self.members <= limit:
            return None
        return f"{limit} connections are open, which is the limit"

    def crowded(self) -> bool:
        """So many refused connections linger that there is no time left to be polite."""
        return len(self._peers) - self.members > 2 * self.settings.connections_max

    def left(self, peer: _Peer) -> None:
        self._peers.discard(peer)
        self.members -= peer.is_member
        self.traffic.disconnected()
        if not self._peers:
            self._empty.set()
        self.settled()

    def settled(self) -> None:
        """A peer has nothing open; matters only while we drain."""
        if self.draining and not any(peer.awaited for peer in self._peers):
            self._quiet.set()

    def holds(self, change: int) -> None:
        """Keeps the sum of all buffers; above the limit, the connection that holds most pays for it."""
        self._held += change
        if change > 0 and self._held > self.settings.buffers_total_max:
            self._held = sum(peer.recount() for peer in self._peers)  # sockets empty themselves without telling
            if self._held > self.settings.buffers_total_max:
                worst = max(self._peers, key=lambda peer: peer.held)
                worst.end(LimitReached("buffers of all connections are full and this one holds most of them"))
                worst.abort()


class _Peer(asyncio.Protocol):
    """One connection: its socket, its timer, and who has to be told that nobody waits any more."""

    def __init__(self, server: TcpServer, loop: asyncio.AbstractEventLoop) -> None:
        self._server = server
        self._loop = loop
        self._settings = server.settings
        self._clock = server.clock
        self._front = server.front
        identity = replace(server.identity, dedupe_horizon_ms=server.front.dedupe_horizon_ms)
        self._connection = Connection(server.settings, identity, server.clock(), peers=server.cluster is not None)
        self._transport: asyncio.Transport
        self._watches: dict[int, Unwatch] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0
        self._flush_scheduled = False
        self._writable = asyncio.Event()
        self._writable.set()
        self._ended = False  # we closed it, or it is lost
        self._refusal: LimitReached | None = None  # why it must go, unless its Hello is another instance's
        self._following: set[int] = set()
        self._write_buffer_max = server.settings.write_buffer_max
        self.is_member = False
        self.held = 0

    @property
    def awaited(self) -> int:
        """Requests that will have an end: a `follow` goes on for as long as the connection does."""
        return self._connection.in_flight - len(self._following)

    # ---------------------------------------------------------------------------------------------- from the socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=self._settings.write_buffer_high)
        if refusal := self._server.joined(self):
            self._refusal = LimitReached(refusal, retry_after_ms=self._settings.retry_after_ms)
            if self._server.crowded() or not self._server.cluster:
                self._refuse()
            else:
                self._timer = self._loop.call_later(self._settings.crowd_ms / 1000, self._refuse)
        else:
            self._rearm()

    def data_received(self, data: bytes) -> None:
        if self._ended:
            return
        events = self._connection.receive(data, self._clock())
        if self._refusal is not None:
            if self._connection.hello is None and not self._connection.closing:
                return  # not even its Hello is whole
            if self._connection.peer is None:
                self._refuse()
                return
            self._refusal = None
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        self._perform(events)

    def _refuse(self) -> None:
        """One connection too many: it is told so, instead of whatever else it would have been told."""
        if self._refusal is not None and not self._ended:
            self._connection.take()
            self.end(self._refusal)
            if self._server.crowded():
                self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()
        self._abandon()
        self._server.holds(-self.held)
        self.held = 0
        self._writable.set()  # lets a paused stream meet its cancellation
        self._server.left(self)

    def pause_writing(self) -> None:
        self._writable.clear()
        if not self._ended:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._writable.set()
        if not self._ended:
            self._transport.resume_reading()
            self._server.holds(self.recount_change())

    # ---------------------------------------------------------------------------------------------------- performing

    def _perform(self, events: list[Received]) -> None:
        for event in events:
            match event:
                case Submit():
                    self._submit(event)
                case Request():
                    self._request(event)
                case Gone():
                    self._drop(event.seq)
                case Hello():
                    self._greet()
        self._flush()
        self._rearm()

    def _greet(self) -> None:
        if self._connection.peer is not None:
            self.is_member = True
            self._front = self._server.local
            self._write_buffer_max = max(self._settings.peer_write_buffer_max, self._settings.write_buffer_max)
            self._server.members += 1
        if self._server.draining:
            self._connection.announce(GoAway(0, "this instance is stopping"))

    def _submit(self, frame: Submit) -> None:
        seq = frame.seq
        if not self.is_member:  # what another instance forwards, it has counted, and it decides where it goes
            self._server.traffic.requested()
            if self._server.draining:
                self._connection.fail(seq, self._stopping())
                return
        self._asks(frame)
        try:
            _, self._watches[seq] = self._front.submit(frame.submission, _Watcher(self, seq, frame.want), frame.want)
        except CoordinatorError as error:
            self._connection.fail(seq, error)
        except Exception:
            log.exception("submit failed")
            self._connection.fail(seq, Internal())

    def _request(self, frame: Request) -> None:
        if not self.is_member:
            self._server.traffic.requested()
        self._asks(frame)
        try:
            params = read_params(frame, peer=self.is_member)
            work: Callable[[], Awaitable[None]]
            match params:
                case WatchParams(id=id, after=after):
                    watcher = _Watcher(self, frame.seq, "events")
                    self._watches[frame.seq] = self._front.watch(id, watcher, after)
                    return
                case OutcomesParams():
                    work = partial(self._stream_outcomes, frame.seq, params)
                case Nothing() if frame.operation == "follow":
                    work = partial(self._stream_ownership, frame.seq)
                    self._following.add(frame.seq)
                case TakeParams():
                    work = partial(self._take, frame.seq, params)
                case _:
                    work = partial(self._answer, frame.seq, frame.operation, params)
        except CoordinatorError as error:
            self._connection.fail(frame.seq, error)
        except Exception:
            log.exception("request %s failed", frame.operation)
            self._connection.fail(frame.seq, Internal())
        else:
            task = self._loop.create_task(self._guarded(frame.seq, frame.operation, work))
            self._tasks[frame.seq] = task
            task.add_done_callback(partial(self._task_done, frame.seq))

    def _asks(self, frame: Submit | Request) -> None:
        """Who asks, for whomever the Front forwards it to; set anew each time: one context serves the connection."""
        if frame.deadline_ms is None and not frame.meta:
            caller.set(None)
        else:
            deadline = None if frame.deadline_ms is None else self._loop.time() + frame.deadline_ms / 1000
            caller.set(Caller(deadline, frame.meta))

    async def _answer(self, seq: int, operation: str, params: Any) -> None:
        await self._until_writable()  # an answer is not even made for a client that does not take the ones before it
        value = await HANDLERS[operation](self._front, params)
        self._connection.send(Response(seq, value), last=True)

    async def _stream_outcomes(self, seq: int, params: OutcomesParams) -> None:
        async for items in self._front.outcomes(params.service, params.start, params.follow, params.partitions):
            for at in range(0, len(items), OUTCOMES_PER_FRAME):
                self._connection.send(Response(seq, items[at : at + OUTCOMES_PER_FRAME], more=True))
                self._flush()
                await asyncio.sleep(0)  # a long history is read for this client, not instead of the others
                await self._until_writable()
        self._connection.send(Response(seq, []), last=True)

    async def _stream_ownership(self, seq: int) -> None:
        """What we own, first at once, then after each change; changes that come faster than they are read merge."""
        cluster = self._server.cluster
        assert cluster is not None, "without it nobody is a member"
        changed, told = asyncio.Event(), None
        unsubscribe = cluster.on_change(changed.set)
        try:
            while True:
                await self._until_writable()
                changed.clear()
                value = {"owned": {str(each): epoch for each, epoch in cluster.owned().items()}}
                now = value | {"leaving": cluster.leaving}
                if now != told:
                    told = now
                    self._connection.send(Response(seq, now, more=True))
                    self.flush_soon()
                await changed.wait()
        finally:
            unsubscribe()

    async def _take(self, seq: int, params: TakeParams) -> None:
        cluster, by = self._server.cluster, self._connection.peer
        assert cluster is not None, "without it nobody is a member"
        assert by is not None, "strangers are refused by `read_params`"
        taken = await cluster.take(params.partition, params.epoch, by)
        self._connection.send(Response(seq, {"taken": taken}), last=True)

    async def _until_writable(self) -> None:
        """Asks again after each wake-up: of a thousand that wait, the first may have filled the buffer again."""
        while not self._writable.is_set():
            await self._writable.wait()

    async def _guarded(self, seq: int, operation: str, work: Callable[[], Awaitable[None]]) -> None:
        """Runs a request; a cancel (deadline, Forget, lost connection) leaves only what the Front made durable."""
        try:
            await work()
        except CoordinatorError as error:
            self._connection.fail(seq, error)
        except Exception:
            log.exception("request %s failed", operation)
            self._connection.fail(seq, Internal())
        self.flush_soon()

    def _task_done(self, seq: int, task: asyncio.Task[None]) -> None:
        self._following.discard(seq)
        if self._tasks.get(seq) is task:
            del self._tasks[seq]

    def _stopping(self) -> Stopping:
        return Stopping("this instance is stopping", retry_after_ms=self._settings.retry_after_ms)

    def told(self, seq: int, want: str, event: Event) -> None:
        """A watcher's event becomes frames."""
        connection = self._connection
        match event.kind:
            case "accepted":
                only = want == "accepted"
                view = event.view if only else None
                connection.send(Accepted(seq, event.id, event.position, event.attached, view, event.state), last=only)
                if only and (unwatch := self._watches.pop(seq, None)):
                    self._loop.call_soon(unwatch)  # as in _drop
            case "step":
                if want == "events":
                    connection.send(Step(seq, event.id, event.position, event.state, event.record))
            case "state":
                if want == "events":
                    connection.send(StateChanged(seq, event.id, event.position, event.state))
            case "final":
                self._watches.pop(seq, None)
                connection.send(Final(seq, event.id, event.position, event.view), last=True)
            case "error":
                self._watches.pop(seq, None)
                connection.fail(seq, event.error or Internal())
        self.flush_soon()

    def _drop(self, seq: int) -> None:
        if unwatch := self._watches.pop(seq, None):
            self._loop.call_soon(unwatch)  # later, since this may run inside the Front's own loop over its watchers
        if task := self._tasks.pop(seq, None):
            task.cancel()

    def _abandon(self) -> None:
        for seq in [*self._watches, *self._tasks]:
            self._drop(seq)

    # ------------------------------------------------------------------------------------------------- to the socket

    def flush_soon(self) -> None:
        """One write for all that this turn of the event loop has to say, or sooner where that is much."""
        if self._connection.held > self._settings.write_buffer_high:
            self._flush()
        elif not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        if self._ended:
            return
        if self._connection.closing:
            self._hang_up()
            return
        # What is judged is the backlog from before: one long answer is no offence.
        if self._transport.get_write_buffer_size() > self._write_buffer_max:
            self.end(LimitReached("this client does not read its answers"))
            return
        if out := self._connection.take():
            self._transport.write(out)
        self._server.holds(self.recount_change())
        if self.awaited == 0:
            self._server.settled()

    def announce(self, frame: GoAway) -> None:
        self._connection.announce(frame)
        self._flush()

    def end(self, error: CoordinatorError) -> None:
        """Closes the connection with an Error frame that says why."""
        if not self._ended:
            self._connection.fail_connection(error)
            self._hang_up()

    def _hang_up(self) -> None:
        """Sends what is left, then reads and drops until the peer hangs up too (see the module's docstring)."""
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()
        self._abandon()
        self._transport.write(self._connection.take())
        if self._transport.can_write_eof():
            self._transport.write_eof()
        if not self._transport.is_closing():
            self._transport.resume_reading()
        self._timer = self._loop.call_later(self._settings.linger_ms / 1000, self._transport.abort)

    def abort(self) -> None:
        """Lets go of all memory at once."""
        self._transport.abort()

    def recount(self) -> int:
        """Bytes held for this connection, ours and the socket's."""
        self.held = self._connection.held + self._transport.get_write_buffer_size()
        return self.held

    def recount_change(self) -> int:
        before = self.held
        return self.recount() - before

    # ---------------------------------------------------------------------------------------------------------- time

    def _rearm(self) -> None:
        """Keeps one timer at or before the next deadline; it is moved only when a deadline comes closer."""
        due = self._connection.next_deadline()
        if due is None or self._ended:
            return
        if self._timer is not None:
            if self._timer_due <= due:
                return
            self._timer.cancel()
        self._timer_due = due
        self._timer = self._loop.call_later(max(1, due - self._clock()) / 1000, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._perform(self._connection.tick(self._clock()))


class _Watcher:
    """What the Front calls with a command's events: which peer and which sequence id they belong to."""

    __slots__ = ("_peer", "_seq", "_want")

    def __init__(self, peer: _Peer, seq: int, want: str) -> None:
        self._peer, self._seq, self._want = peer, seq, want

    def __call__(self, event: Event) -> None:
        self._peer.told(self._seq, self._want, event)
