"""One TCP peer seen from the server, without I/O: bytes and the time go in, events come out, bytes to send pile up.

    opened ──Hello──▶ open ──(fatal error, end of stream)──▶ closing

What it guarantees, whatever the peer sends (proto/tcp.md has the rules):

- Before Hello nothing but a Hello is read, and its length is below 2^16: anything else (an HTTP request, a TLS
  handshake, noise) is told apart by its first bytes and answered with an Error frame.
- A frame's length is judged before its body is kept, so an oversized prefix costs four bytes.  What is kept is at most
  one unfinished frame, and for at most ``read_timeout_ms``.
- At most ``in_flight_max`` sequence ids are open; one more is refused by itself.
- Each open sequence id ends exactly once: by its last frame, by its deadline, by Forget, or with the connection.
  Frames that the program sends for an id that has ended are dropped here, so nobody else needs to know.
- Another instance of the group (``options.peer`` in its Hello) is a client like any other, but one that carries many:
  it gets the limits named ``peer_…``.  One of another group is refused, before anything that it sent is acted on.
- A peer from which nothing came for ``idle_timeout_ms`` is gone; silence is broken by our Ping after
  ``ping_interval_ms``, so only a dead or stuck peer is silent that long.

Deadlines are a heap with lazy deletion: an id that ended leaves its entry behind, and when those outnumber the open
ones the heap is rebuilt, so its size follows the number of open ids and not the number of frames ever received.

Measured on a shared 2-core machine, 64 frames a read: 2.6 us of CPU for a Submit in, 1.4 us for a frame out (mean of
Accepted and a Final with three steps).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

from msgspec import Struct

from coordinator.errors import (
    Conflict,
    CoordinatorError,
    Internal,
    LimitReached,
    Malformed,
    TooLarge,
    WaitTimeout,
)
from coordinator.wire.frames import (
    HELLO_BYTES_MAX,
    MAGIC,
    PREFIX,
    VERSION_MAX,
    VERSION_MIN,
    Accepted,
    Final,
    Forget,
    Frame,
    FrameFault,
    Hello,
    HelloOptions,
    Ping,
    Pong,
    Request,
    Response,
    ServerFrame,
    Step,
    Submit,
    check_length,
    error_frame,
    read,
    write,
)


class TcpSettings(Struct, frozen=True, kw_only=True):
    """Limits of the TCP transport; all that a hostile or slow peer could make grow is bounded by one of these."""

    connections_max: int = 1000
    """Connections at one time; one more is accepted, told `limit_reached` and closed."""
    frame_bytes_max: int = 1 << 20
    """The longest frame that is read."""
    in_flight_max: int = 1024
    """Open sequence ids of one connection."""
    hello_timeout_ms: int = 5_000
    """From the connection's start to its Hello (with TLS: from the end of the handshake)."""
    read_timeout_ms: int = 10_000
    """From a frame's first byte to its last."""
    idle_timeout_ms: int = 60_000
    """Silence of the peer after which it counts as gone."""
    ping_interval_ms: int = 20_000
    """Silence of the peer after which it is asked for a sign of life; well below `idle_timeout_ms`."""
    write_buffer_high: int = 64 << 10
    """Unsent bytes above which no more is read from that peer, and streams to it pause."""
    write_buffer_max: int = 4 << 20
    """Unsent bytes above which a peer that does not read is closed; its commands run on."""
    buffers_total_max: int = 64 << 20
    """Unfinished and unsent bytes of all connections together; above it the connection that holds most is closed."""
    retry_after_ms: int = 100
    """The delay that a refusal for want of room asks for."""
    linger_ms: int = 1_000
    """How long a connection that we close may take to read the Error frame that says why."""
    crowd_ms: int = 250
    """How long one connection too many may take to say that it is another instance's, for which there is room."""
    peer_in_flight_max: int = 65_536
    """Open sequence ids of another instance's connection: one for each client of its that waits for us."""
    peer_frame_bytes_max: int = 16 << 20
    """The longest frame that is read from another instance, if `frame_bytes_max` is not longer: what it took in JSON
    may be longer in msgpack."""
    peer_write_buffer_max: int = 32 << 20
    """`write_buffer_max` of another instance: thousands of its clients may get their answer in one moment."""

    def __post_init__(self) -> None:
        if not self.ping_interval_ms < self.idle_timeout_ms:
            raise ValueError("ping_interval_ms must be below idle_timeout_ms, else every quiet client is cut off")
        if not HELLO_BYTES_MAX <= self.frame_bytes_max <= self.buffers_total_max:
            raise ValueError(f"frame_bytes_max must lie between {HELLO_BYTES_MAX} and buffers_total_max")


class Identity(Struct, frozen=True):
    """What the server says of itself in its Hello: the program, this instance, the group that shares the log; and for
    how long after its end a command's id is surely known there."""

    name: str = "coordinator"
    instance: str = ""
    group: str = ""
    dedupe_horizon_ms: int | None = None


class Gone(Struct, frozen=True):
    """Nobody waits for ``seq`` any more (deadline or Forget): stop working for it; its command runs on."""

    seq: int


Received = Hello | Submit | Request | Gone


class Connection:
    """The protocol state of one peer; see the module's docstring.  ``now`` is a monotonic time in milliseconds."""

    def __init__(self, settings: TcpSettings, identity: Identity, now: int, *, peers: bool = False) -> None:
        """``peers``: whether other instances are served here; those that ask are refused otherwise."""
        self.settings = settings
        self.hello: Hello | None = None
        self.peer: str | None = None  # the instance that is at the other end, if it is one of our group
        self.closing = False  # send what there is, then close; nothing is read any more
        self._identity = identity
        self._peers = peers
        self._opened = self._heard = self._pinged = self._frame_began = now
        self._input = bytearray()  # one unfinished frame
        self._needed = 4  # bytes of it before anything can be decided
        self._output = bytearray()
        self._open: dict[int, int | None] = {}  # sequence id -> deadline
        self._deadlines: list[tuple[int, int]] = []
        self._frame_bytes_max = settings.frame_bytes_max
        self._in_flight_max = settings.in_flight_max
        self._told_bytes_max: int | None = None  # the longest frame that the other side reads

    # ------------------------------------------------------------------------------------------------- what it holds

    @property
    def in_flight(self) -> int:
        """Open sequence ids."""
        return len(self._open)

    @property
    def held(self) -> int:
        """Bytes kept: the unfinished frame and what is not taken yet."""
        return len(self._input) + len(self._output)

    # ----------------------------------------------------------------------------------------------------------- input

    def receive(self, data: bytes, now: int) -> list[Received]:
        """Takes bytes from the peer; returns what the program has to act on, in order.

        Refusals, Pings and faults are answered here.  After `closing` the rest of the input is dropped.
        """
        events: list[Received] = []
        if self.closing or not data:
            return events
        self._heard = now
        if self._input:
            self._input += data
            if len(self._input) < self._needed and self.hello is not None:
                return events
            # A decoded Request refers to the buffer, so it is never resized again.
            view = memoryview(self._input)
            self._input = bytearray()
        else:
            view = memoryview(data)
            self._frame_began = now
        try:
            consumed = self._read_frames(view, now, events)
        except CoordinatorError as error:
            self.fail_connection(error)
            return events
        if consumed:
            self._frame_began = now
        if consumed < len(view):
            self._input = bytearray(view[consumed:])
        return events

    def _read_frames(self, view: memoryview, now: int, events: list[Received]) -> int:
        """Decodes the whole frames at the front of ``view``; returns how many bytes they took."""
        at, end = 0, len(view)
        while True:
            if self.hello is None:
                _recognise(view[at : at + 16])
            if end - at < 4:
                self._needed = 4
                break
            (length,) = PREFIX.unpack_from(view, at)
            check_length(length, self._frame_bytes_max if self.hello else HELLO_BYTES_MAX)
            if end - at - 4 < length:
                self._needed = 4 + length
                break
            body = view[at + 4 : at + 4 + length]
            at += 4 + length
            try:
                frame = read(body)
            except FrameFault as fault:
                if self.hello is None:
                    raise fault.error from None
                self._put(error_frame(fault.seq, fault.error))
                continue
            if self.hello is None and type(frame) is not Hello:
                raise Malformed("the first frame of a connection is Hello")
            _HANDLERS[type(frame)](self, frame, now, events)
        return at

    def _on_hello(self, frame: Hello, now: int, events: list[Received]) -> None:
        if self.hello is not None:
            raise Malformed("Hello came twice")
        if frame.magic != MAGIC:
            raise Malformed(f"Hello says {frame.magic!r:.40}; it must say {MAGIC!r}")
        version = min(VERSION_MAX, frame.version_max)
        if not max(VERSION_MIN, frame.version_min) <= version:
            raise Malformed(
                f"no common protocol version: the client speaks {frame.version_min} to {frame.version_max}, "
                f"this server {VERSION_MIN} to {VERSION_MAX}",
                versions=[VERSION_MIN, VERSION_MAX],
            )
        if frame.options.peer is not None:
            self._welcome_peer(frame.options)
        self.hello = frame
        self._told_bytes_max = frame.options.frame_bytes_max
        settings, identity = self.settings, self._identity
        options = HelloOptions(
            instance=identity.instance,
            group=identity.group,
            frame_bytes_max=self._frame_bytes_max,
            in_flight_max=self._in_flight_max,
            idle_timeout_ms=settings.idle_timeout_ms,
            ping_interval_ms=settings.ping_interval_ms,
            dedupe_horizon_ms=identity.dedupe_horizon_ms,
        )
        self._put(Hello(0, MAGIC, version, version, identity.name, options))
        events.append(frame)

    def _welcome_peer(self, options: HelloOptions) -> None:
        """Another instance wants to forward to us; raises Conflict if it must not."""
        own = self._identity
        if options.group != own.group:
            raise Conflict(
                f"instance {options.peer!r:.80} is of the group {options.group!r:.80}, this is {own.instance!r} of the "
                f"group {own.group!r}: groups do not forward to each other",
                group=own.group,
            )
        if not self._peers:
            raise Conflict(f"instance {own.instance!r} works alone: nothing can be forwarded to it", group=own.group)
        self.peer = options.peer
        self._in_flight_max = self.settings.peer_in_flight_max
        self._frame_bytes_max = max(self.settings.peer_frame_bytes_max, self.settings.frame_bytes_max)

    def _on_opening(self, frame: Submit | Request, now: int, events: list[Received]) -> None:
        seq = frame.seq
        if seq in self._open:
            self._put(error_frame(seq, Conflict(f"sequence id {seq} is open already; that one goes on")))
        elif len(self._open) >= self._in_flight_max:
            limit = self._in_flight_max
            refusal = LimitReached(
                f"{limit} requests are open on this connection, which is its limit",
                retry_after_ms=self.settings.retry_after_ms,
                limit=limit,
            )
            self._put(error_frame(seq, refusal))
        else:
            deadline = None if frame.deadline_ms is None else now + frame.deadline_ms
            self._open[seq] = deadline
            if deadline is not None:
                self._arm(deadline, seq)
            events.append(frame)

    def _on_forget(self, frame: Forget, now: int, events: list[Received]) -> None:
        if frame.seq in self._open:
            del self._open[frame.seq]
            events.append(Gone(frame.seq))

    def _on_ping(self, frame: Ping, now: int, events: list[Received]) -> None:
        self._put(Pong(frame.seq))

    def _on_pong(self, frame: Pong, now: int, events: list[Received]) -> None:
        pass  # that it came is all that it says

    # ---------------------------------------------------------------------------------------------------------- output

    def send(self, frame: ServerFrame, *, last: bool = False) -> None:
        """Queues a frame for an open sequence id (dropped if it has ended); ``last`` ends it.

        A frame longer than the peer reads, or one that cannot be encoded, becomes the Error that ends the id.
        """
        if self.closing or frame.seq not in self._open:
            return
        if last:
            del self._open[frame.seq]
        self._put(frame)

    def fail(self, seq: int, error: CoordinatorError) -> None:
        """Ends an open sequence id with an Error frame."""
        self.send(error_frame(seq, error), last=True)

    def announce(self, frame: ServerFrame) -> None:
        """Queues a frame that belongs to no sequence id (GoAway)."""
        if not self.closing and self.hello is not None:
            self._put(frame)

    def fail_connection(self, error: CoordinatorError) -> None:
        """Ends the connection with an Error frame under sequence id 0."""
        if self.closing:
            return
        self._put(error_frame(0, error))
        self.closing = True
        self._input = bytearray()
        self._open.clear()
        self._deadlines.clear()

    def take(self) -> bytearray:
        """What is to be sent; the caller keeps it."""
        out, self._output = self._output, bytearray()
        return out

    def _put(self, frame: Frame) -> None:
        start = len(self._output)
        try:
            length = write(frame, self._output)
        except Exception as why:  # a value from a service or a definition that msgpack cannot hold
            self._replace(frame.seq, Internal(f"the answer cannot be encoded: {why}"))
            return
        if self._told_bytes_max is not None and length > self._told_bytes_max and type(frame) in _CARRIERS:
            del self._output[start:]
            told = f"the answer has {length} bytes; this client reads frames up to {self._told_bytes_max}"
            self._replace(frame.seq, TooLarge(told, bytes=length))

    def _replace(self, seq: int, error: CoordinatorError) -> None:
        self._open.pop(seq, None)
        write(error_frame(seq, error), self._output)

    # ------------------------------------------------------------------------------------------------------------ time

    def next_deadline(self) -> int | None:
        """When `tick` has something to do; None while closing.

        Input and output only move it away, a new deadline may bring it closer.
        """
        if self.closing:
            return None
        settings = self.settings
        due = self._heard + settings.idle_timeout_ms
        if self.hello is None:
            due = min(due, self._opened + settings.hello_timeout_ms)
        else:
            due = min(due, max(self._heard, self._pinged) + settings.ping_interval_ms)
        if self._input:
            due = min(due, self._frame_began + settings.read_timeout_ms)
        if self._deadlines:
            due = min(due, self._deadlines[0][0])
        return due

    def tick(self, now: int) -> list[Received]:
        """Does what is due at ``now``: ends overdue ids, sends a Ping, or ends the connection."""
        if self.closing:
            return []
        if overdue := self._overdue(now):
            self.fail_connection(WaitTimeout(overdue))
            return []
        if self.hello is not None and now >= max(self._heard, self._pinged) + self.settings.ping_interval_ms:
            self._pinged = now
            self._put(Ping(0))
        return self._expire(now)

    def _overdue(self, now: int) -> str | None:
        """What the peer owes us and did not send in time."""
        settings = self.settings
        if self.hello is None and now >= self._opened + settings.hello_timeout_ms:
            return f"no Hello within {settings.hello_timeout_ms} ms"
        if self._input and now >= self._frame_began + settings.read_timeout_ms:
            return f"a frame was not completed within {settings.read_timeout_ms} ms"
        if now >= self._heard + settings.idle_timeout_ms:
            return f"nothing was received for {settings.idle_timeout_ms} ms"
        return None

    def _expire(self, now: int) -> list[Received]:
        events: list[Received] = []
        while self._deadlines and self._deadlines[0][0] <= now:
            deadline, seq = heapq.heappop(self._deadlines)
            if self._open.get(seq) == deadline:
                self.fail(seq, WaitTimeout("the caller's deadline passed; the command, if accepted, runs on"))
                events.append(Gone(seq))
        return events

    def _arm(self, deadline: int, seq: int) -> None:
        if len(self._deadlines) > 2 * len(self._open) + 64:
            self._deadlines = [(due, seq) for seq, due in self._open.items() if due is not None]
            heapq.heapify(self._deadlines)
        else:
            heapq.heappush(self._deadlines, (deadline, seq))


_CARRIERS = frozenset({Accepted, Step, Final, Response})
"""Frames that carry what services and clients chose, hence any length; the rest is small by construction."""

_HANDLERS: dict[type, Callable[..., None]] = {
    Hello: Connection._on_hello,
    Submit: Connection._on_opening,
    Request: Connection._on_opening,
    Forget: Connection._on_forget,
    Ping: Connection._on_ping,
    Pong: Connection._on_pong,
}


def _recognise(start: memoryview) -> None:
    """Raises Malformed if a stream that begins so cannot be ours: a Hello is short, so two zero bytes come first."""
    first = bytes(start)
    if not first.strip(b"\0") or first[:2] == b"\0\0":
        return
    if first[0] == 0x16:
        raise Malformed("a TLS handshake, but this port speaks plain TCP (proto/tcp.md)")
    method = first.split(b" ")[0]
    if method in _HTTP_METHODS or any(word.startswith(first) for word in _HTTP_METHODS if len(first) < 4):
        raise Malformed("an HTTP request, but this port speaks frames (proto/tcp.md); HTTP has its own port")
    raise Malformed("the stream does not begin with a Hello frame (proto/tcp.md)")


_HTTP_METHODS = (b"GET", b"POST", b"PUT", b"HEAD", b"DELETE", b"OPTIONS", b"PATCH", b"CONNECT", b"TRACE", b"PRI")
