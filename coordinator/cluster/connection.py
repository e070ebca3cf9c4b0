"""One TCP connection to another instance, from its Hello to its end: what `cluster.link` renews when it breaks.

It speaks the client's side of proto/tcp.md, but for thousands of our own clients at once, so it is made to be cheap:

- A submission makes no task and no future.  What is open is one small object a sequence id, found by it, which turns
  frames into what its asker wants: events for a watcher (`Watched`), a value for a coroutine (`Asked`), a stream.
- All that one turn of the event loop has to say leaves in one write.

And it is made not to hang:

- Silence is broken by our Ping each ``ping_ms``; after ``silence_ms`` without a byte the connection is given up.  Time
  in which this very process did not run (a busy loop, SIGSTOP) does not count as the other's silence: a zombie that
  wakes must not take everybody else for dead.
- Unsent bytes and open requests are bounded; above that a request is refused with LimitReached, which can be retried.
- However it ends, everybody who has something open is told LinkLost, from `connection_lost`, hence from the event loop
  and never from inside a call.
"""

from __future__ import annotations

import asyncio
import logging
import ssl as ssl_module
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol, cast

import msgspec
from msgspec import Raw, Struct

from coordinator.cluster.base import Member
from coordinator.errors import (
    CoordinatorError,
    Internal,
    InvalidPayload,
    LimitReached,
    LinkLost,
    Malformed,
    TooLarge,
    WaitTimeout,
    from_wire,
)
from coordinator.model.command import Submission
from coordinator.transport.base import Event, Want, Watcher
from coordinator.wire.frames import (
    MAGIC,
    PREFIX,
    SERVER_TYPES,
    VERSION_MAX,
    VERSION_MIN,
    Accepted,
    Error,
    Final,
    Forget,
    GoAway,
    Hello,
    HelloOptions,
    Ping,
    Pong,
    Request,
    Response,
    StateChanged,
    Step,
    Submit,
    check_length,
    error_frame,
    peek,
    read_from_server,
    write,
)

log = logging.getLogger("coordinator.cluster.link")

STREAM_HIGH, STREAM_LOW = 16, 4  # answers of a stream that wait for their reader


class LinkSettings(Struct, frozen=True, kw_only=True):
    """Times and bounds of the links of one instance."""

    silence_ms: int = 6_000
    """Without a byte for so long, the other instance counts as dead."""
    ping_ms: int = 1_000
    """How often it is asked for a sign of life."""
    connect_ms: int = 2_000
    """How long an attempt to connect may take, Hello included."""
    reopen_ms: int = 300
    """How long it may take where the connection broke a moment ago; a process that lives answers sooner."""
    backoff_ms_min: int = 100
    backoff_ms_max: int = 1_000
    """The pause between attempts: it doubles from one to the other."""
    unsent_bytes_max: int = 8 << 20
    """Unsent bytes above which requests are refused."""
    frame_bytes_max: int = 64 << 20
    """The longest frame that is read."""
    retry_after_ms: int = 100
    """The delay that a refusal, or a lost link, asks for."""


class Unreachable(Exception):
    """No connection could be made; the text says why."""


class Impostor(Unreachable):
    """Somebody answers at the address, but it is not the member: another instance, group or protocol."""


class Entry(Protocol):
    """What is open under one sequence id.  ``told`` gets its frames, ``lost`` the end of the connection."""

    def told(self, frame: Any) -> None: ...

    def lost(self, error: LinkLost) -> None: ...


class Connection(asyncio.Protocol):
    """See the module's docstring.  Made by `dial`; ``on_lost`` and ``on_leaving`` are called from the event loop."""

    def __init__(self, me: Member, member: Member, group: str, settings: LinkSettings) -> None:
        self.up = False
        self.why = ""  # it ended
        self.silent = False  # it was given up because the other said nothing
        self.on_leaving: Callable[[], None] = _nothing
        self.closed = asyncio.Event()
        self._me, self._member, self._group, self._settings = me, member, group, settings
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._greeted: asyncio.Future[None] = self._loop.create_future()
        self._open: dict[int, Entry] = {}
        self._seq = 0
        self._output = bytearray()
        self._scheduled = False
        self._choked = False  # more is unsent than `unsent_bytes_max`
        self._input = bytearray()  # one unfinished frame
        self._needed = 4  # bytes of it before anything can be decided
        self._heard = self._due = self._loop.time()
        self._deaf = False  # it is we who do not read, for a stream's reader is slow
        self._timer: asyncio.TimerHandle | None = None
        self._in_flight_max = 1024  # until its Hello says otherwise
        self._told_bytes_max = 1 << 20

    @classmethod
    async def dial(
        cls,
        me: Member,
        member: Member,
        group: str,
        settings: LinkSettings,
        timeout_ms: int,
        ssl: ssl_module.SSLContext | None = None,
    ) -> Connection:
        """Connects and exchanges Hellos; raises Unreachable.  A cancel leaves nothing open."""
        loop = asyncio.get_running_loop()
        connection = cls(me, member, group, settings)
        host, _, port = member.address.rpartition(":")
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                await loop.create_connection(lambda: connection, host.strip("[]"), int(port), ssl=ssl)
                await connection._greeted
        except TimeoutError:
            connection.lose("no Hello in time")
            raise Unreachable(f"no answer within {timeout_ms} ms") from None
        except (OSError, ValueError, UnicodeError) as why:  # ValueError: the address is none
            raise Unreachable(str(why) or type(why).__name__) from None
        except BaseException:
            connection.lose("given up")
            raise
        return connection

    # -------------------------------------------------------------------------------------------------------- asking

    def submit(
        self, submission: Submission, watcher: Watcher, want: Want, deadline_ms: int | None, meta: dict[str, Any]
    ) -> Watched:
        """Forwards a submission; raises LinkLost, LimitReached, TooLarge, InvalidPayload; nothing is sent then."""
        seq = self._next()
        try:
            self._put(Submit(seq, want, deadline_ms, submission, meta))
        except _UNWRITABLE as error:
            raise InvalidPayload.at("$.payload", f"cannot be forwarded: {error}") from error
        entry = self._open[seq] = Watched(self, seq, submission.id or "", watcher, want == "accepted")
        return entry

    def watch(self, id: str, watcher: Watcher, after: str | None) -> Watched:
        """Forwards a watch; raises as `submit`."""
        seq = self._request("watch", {"id": id, "after": after}, None, {})
        entry = self._open[seq] = Watched(self, seq, id, watcher, False)
        return entry

    async def request(self, operation: str, params: Any, deadline_ms: int | None, meta: dict[str, Any]) -> Any:
        """The value of the answer; raises what the other instance told, LinkLost, or WaitTimeout at the deadline.

        The deadline is kept at both ends: the other does not work for nobody, and we do not wait for one that hangs.
        """
        seq = self._request(operation, params, deadline_ms, meta)
        entry = self._open[seq] = Asked(self, seq)
        try:
            if deadline_ms is None:
                return await entry.answer
            async with asyncio.timeout(deadline_ms / 1000):
                return await entry.answer
        except TimeoutError:
            raise WaitTimeout(f"no answer from instance {self._member.instance} in time") from None
        finally:
            self.forget(seq)

    def stream(self, operation: str, params: Any, deadline_ms: int | None, meta: dict[str, Any]) -> Streamed:
        """The answers of a request, one by one.  Their reader's pace becomes that of the whole connection."""
        seq = self._request(operation, params, deadline_ms, meta)
        entry = self._open[seq] = Streamed(self, seq)
        return entry

    def follow(self, callback: Callable[[Any], None]) -> None:
        """Tells each value of ``follow``, for as long as the connection lasts."""
        seq = self._request("follow", {}, None, {})
        self._open[seq] = Followed(self._member.instance, callback)

    def _request(self, operation: str, params: Any, deadline_ms: int | None, meta: dict[str, Any]) -> int:
        seq = self._next()
        try:
            self._put(Request(seq, operation, deadline_ms, Raw(msgspec.msgpack.encode(params)), meta))
        except _UNWRITABLE as error:
            raise InvalidPayload.at("$", f"cannot be forwarded: {error}") from error
        return seq

    def _next(self) -> int:
        """A sequence id for one more; raises what speaks against it."""
        if not self.up:
            raise self._lost()
        if self._choked or len(self._output) > self._settings.unsent_bytes_max:
            raise self._full(f"more than {self._settings.unsent_bytes_max} bytes wait to be sent")
        if len(self._open) >= self._in_flight_max:
            raise self._full(f"{len(self._open)} requests are open")
        self._seq += 1
        return self._seq

    def _full(self, why: str) -> LimitReached:
        return LimitReached(
            f"{why} to instance {self._member.instance}, which owns this", retry_after_ms=self._settings.retry_after_ms
        )

    def _lost(self) -> LinkLost:
        told = f"the link to instance {self._member.instance} is lost: {self.why}"
        return LinkLost(told, retry_after_ms=self._settings.retry_after_ms)

    def end(self, seq: int) -> None:
        """The last frame of ``seq`` has come."""
        self._open.pop(seq, None)

    def forget(self, seq: int) -> None:
        """Nobody waits for ``seq`` any more; the other is told, if it does not know."""
        if self._open.pop(seq, None) is not None and self.up:
            self._put(Forget(seq))

    # ----------------------------------------------------------------------------------------------- from the socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=self._settings.unsent_bytes_max)
        options = HelloOptions(
            peer=self._me.instance, group=self._group, frame_bytes_max=self._settings.frame_bytes_max
        )
        self._put(Hello(0, MAGIC, VERSION_MIN, VERSION_MAX, "coordinator", options))

    def data_received(self, data: bytes) -> None:
        self._heard = self._loop.time()
        try:
            self._read(data)
        except CoordinatorError as error:
            self.lose(f"{error.code}: {error.detail}")

    def connection_lost(self, exc: Exception | None) -> None:
        self.lose(f"{exc or 'closed by the other side'}")
        if self._timer is not None:
            self._timer.cancel()
        while self._open:
            _, entry = self._open.popitem()
            try:
                entry.lost(self._lost())
            except Exception:
                log.exception("a watcher failed")
        self.closed.set()

    def pause_writing(self) -> None:
        self._choked = True

    def resume_writing(self) -> None:
        self._choked = False

    def _read(self, data: bytes) -> None:
        """Takes the whole frames out of what has come; keeps what begins another."""
        if self._input:
            self._input += data
            if len(self._input) < self._needed:
                return
            # What is decoded may refer to the buffer, so it is never resized again.
            view = memoryview(self._input)
            self._input = bytearray()
        else:
            view = memoryview(data)
        at, size, self._needed = 0, len(view), 4
        while size - at >= 4 and not self.why:
            (length,) = PREFIX.unpack_from(view, at)
            check_length(length, self._settings.frame_bytes_max)
            end = at + 4 + length
            if end > size:
                self._needed = 4 + length
                break
            self._frame(view[at + 4 : end])
            at = end
        if at < size:
            self._input = bytearray(view[at:])

    def _frame(self, body: memoryview) -> None:
        try:
            frame = read_from_server(body)
        except Malformed as why:
            if (known := self._unreadable(body, why)) is None:
                return
            frame = known
        if type(frame) in _ANSWERS and frame.seq:
            entry = self._open.get(frame.seq)
            if entry is not None:  # else it was forgotten while this was on its way
                try:
                    entry.told(frame)
                except Exception:
                    log.exception("a watcher failed")
            return
        match frame:
            case Ping():
                self._put(Pong(frame.seq))
            case GoAway():
                self.on_leaving()
            case Hello():
                self._meet(frame)
            case Error():
                self._refused(frame)
            case _:
                pass  # a Pong: that it came is all that it says

    def _unreadable(self, body: memoryview, why: Malformed) -> Error | None:
        """What a frame that cannot be read means; raises ``why`` where it is the connection's end.

        The other may be of a later version.  A frame that only that one knows was not asked for (None); an answer that
        only it can read fails by itself, for it would come again on the next connection.
        """
        head = peek(body)
        if head is None:
            raise why
        kind, seq = head
        if kind not in SERVER_TYPES:
            return None
        if seq not in self._open:
            raise why
        told = f"instance {self._member.instance} answered what this one cannot read: {why.detail}"
        return error_frame(seq, Internal(told))

    # --------------------------------------------------------------------------------------------- beginning and end

    def _meet(self, hello: Hello) -> None:
        """Sees from its Hello whether this is the member that we want."""
        if self.up:
            raise Malformed("Hello came twice")
        options, member = hello.options, self._member
        if hello.magic != MAGIC or not VERSION_MIN <= hello.version_min == hello.version_max <= VERSION_MAX:
            fault = f"it answers {hello.magic!r:.40} version {hello.version_min}; this instance speaks {VERSION_MAX}"
        elif options.group != self._group:
            fault = f"it is of the group {options.group!r:.80}, this instance of {self._group!r}"
        elif options.instance != member.instance:
            fault = f"instance {options.instance!r:.80} answers there"
            if options.instance == self._me.instance:
                fault += ", which is this very one"
        else:
            self._in_flight_max = options.in_flight_max or self._in_flight_max
            self._told_bytes_max = options.frame_bytes_max or self._told_bytes_max
            self.up = True
            self._due = self._loop.time()
            self._look()
            if not self._greeted.done():
                self._greeted.set_result(None)
            return
        self._fail(Impostor(fault))

    def _refused(self, frame: Error) -> None:
        """The other ends the connection, and says why."""
        why = f"{frame.code}: {frame.detail}"
        self._fail(Unreachable(why) if frame.retryable else Impostor(why))

    def _fail(self, error: Unreachable) -> None:
        if not self._greeted.done():
            self._greeted.set_exception(error)
            self._greeted.exception()  # read here too, for when nobody waits any more
        self.lose(str(error))

    def lose(self, why: str) -> None:
        """The end, for the first reason that was found; who has something open is told in a later turn of the loop."""
        if self.why:
            return
        self.up, self.why = False, why
        if not self._greeted.done():
            self._greeted.set_exception(Unreachable(why))
            self._greeted.exception()  # read here too, for when nobody waits any more
        if self._transport is not None:
            self._transport.abort()

    def _look(self) -> None:
        """Judges the silence, and asks for a sign of life."""
        now, settings = self._loop.time(), self._settings
        asleep = max(0.0, now - self._due)  # how much later than asked this was called
        self._heard = now if self._deaf else min(now, self._heard + asleep)
        if (now - self._heard) * 1000 >= settings.silence_ms:
            self.silent = True
            self.lose(f"silent for {settings.silence_ms} ms")
            return
        self._put(Ping(0))
        self._due = now + settings.ping_ms / 1000
        self._timer = self._loop.call_at(self._due, self._look)

    # ------------------------------------------------------------------------------------------------- to the socket

    def _put(self, frame: Hello | Submit | Request | Forget | Ping | Pong) -> None:
        output = self._output
        length = write(frame, output)
        if length > self._told_bytes_max:
            del output[-length - 4 :]
            told = f"forwarded, the request has {length} bytes; instance {self._member.instance} reads up to"
            raise TooLarge(f"{told} {self._told_bytes_max}", limit=self._told_bytes_max)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        if self._transport is not None and not self._transport.is_closing():
            output, self._output = self._output, bytearray()
            self._transport.write(output)

    def listen(self, on: bool) -> None:
        """Stops or goes on reading: a stream's reader is slow."""
        if self._transport is None or self._transport.is_closing() or on != self._deaf:
            return
        self._deaf = not on
        if on:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()


_ANSWERS = frozenset({Accepted, Step, StateChanged, Final, Response, Error})
_UNWRITABLE = (OverflowError, TypeError, ValueError, RecursionError, msgspec.MsgspecError)


def _nothing() -> None:
    pass


def _error(frame: Error) -> CoordinatorError:
    return from_wire(frame.code, frame.title, frame.detail, frame.retryable, frame.retry_after_ms, frame.extra)


def _surprise(frame: Any) -> Internal:
    return Internal(f"another instance answered with {type(frame).__name__}, which was not asked for")


class Watched:
    """A forwarded submission or watch: its frames become events.  The instance itself is the Unwatch."""

    __slots__ = ("_connection", "_id", "_only_acceptance", "_seq", "_watcher")

    def __init__(self, connection: Connection, seq: int, id: str, watcher: Watcher, only_acceptance: bool) -> None:
        self._connection, self._seq, self._id = connection, seq, id
        self._watcher = watcher
        self._only_acceptance = only_acceptance

    def __call__(self) -> None:
        self._connection.forget(self._seq)

    def told(self, frame: Any) -> None:
        kind = type(frame)
        if kind is Final:
            self._connection.end(self._seq)
            state = frame.view.state.value if frame.view else ""
            event = Event("final", frame.id, frame.position, state, None, frame.view)
        elif kind is Accepted:
            if self._only_acceptance:
                self._connection.end(self._seq)
            event = Event("accepted", frame.id, frame.position, frame.state, None, frame.view, None, frame.attached)
        elif kind is Step:
            event = Event("step", frame.id, frame.position, frame.state, frame.record)
        elif kind is StateChanged:
            event = Event("state", frame.id, frame.position, frame.state)
        else:
            self._connection.end(self._seq)
            event = Event("error", self._id, error=_error(frame) if kind is Error else _surprise(frame))
        self._watcher(event)

    def lost(self, error: LinkLost) -> None:
        self._watcher(Event("error", self._id, error=error))


class Asked:
    """A request that a coroutine awaits."""

    __slots__ = ("_connection", "_seq", "answer")

    def __init__(self, connection: Connection, seq: int) -> None:
        self._connection, self._seq = connection, seq
        self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def told(self, frame: Any) -> None:
        self._connection.end(self._seq)
        if self.answer.done():
            return
        if type(frame) is Response:
            self.answer.set_result(frame.value)
        else:
            self.answer.set_exception(_error(frame) if type(frame) is Error else _surprise(frame))

    def lost(self, error: LinkLost) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class Streamed:
    """The answers of one request as they come, for one reader."""

    __slots__ = ("_answers", "_connection", "_end", "_seq", "_waiter")

    def __init__(self, connection: Connection, seq: int) -> None:
        self._connection, self._seq = connection, seq
        self._answers: deque[Response] = deque()
        self._end: CoordinatorError | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def values(self) -> AsyncIterator[Any]:
        """All values up to the last, which tells nothing but the end; raises the error that ended them."""
        more = True
        while more:
            answer = await self._next()
            more = answer.more
            if more or answer.value:
                yield answer.value

    async def _next(self) -> Response:
        while not self._answers:
            if self._end is not None:
                raise self._end
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        answer = self._answers.popleft()
        if len(self._answers) <= STREAM_LOW:
            self._connection.listen(True)
        return answer

    def told(self, frame: Any) -> None:
        if type(frame) is Response:
            self._answers.append(frame)
            if not frame.more:
                self._connection.end(self._seq)
            elif len(self._answers) >= STREAM_HIGH:
                self._connection.listen(False)
        else:
            self._connection.end(self._seq)
            self._end = _error(frame) if type(frame) is Error else _surprise(frame)
        self._wake()

    def lost(self, error: LinkLost) -> None:
        self._end = error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Followed:
    """What another instance tells of itself."""

    __slots__ = ("_callback", "_instance")

    def __init__(self, instance: str, callback: Callable[[Any], None]) -> None:
        self._instance, self._callback = instance, callback

    def told(self, frame: Any) -> None:
        if type(frame) is Response:
            self._callback(frame.value)
        else:
            error = _error(frame) if type(frame) is Error else _surprise(frame)
            log.warning("instance %s does not tell what it owns: %s", self._instance, error)

    def lost(self, error: LinkLost) -> None:
        pass  # whoever reads `Link.up` knows
