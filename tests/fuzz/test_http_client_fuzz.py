"""The HTTP client under arbitrary bytes, cut anywhere: one answer a call, known verdicts, a healthy pool afterwards.

The network is in memory, so that a test decides what each ``data_received`` gets; all else is the client itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from coordinator.gateway.http import HttpCaller
from coordinator.model.call import Answer, Request, Verdict
from coordinator.model.records import unraw
from coordinator.model.settings import ServiceSettings
from tests.gateway_kit import a_call, reply

BODY_MAX = 2_000
OK = reply(b'{"ok":1}')


class Wire(asyncio.Transport):
    """The client's end of a connection in memory."""

    def __init__(self, loop: asyncio.AbstractEventLoop, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self.loop = loop
        self.protocol = protocol
        self.written = b""
        self.open = True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def abort(self) -> None:
        self.lose(None)

    def lose(self, error: Exception | None) -> None:
        if self.open:
            self.open = False
            self.loop.call_soon(self.protocol.connection_lost, error)

    def feed(self, data: bytes) -> None:
        """What a loop does when bytes arrive."""
        if self.open and data:
            self.protocol.data_received(data)

    def end(self, how: str) -> None:
        """The service closes, resets, or does nothing."""
        if self.open and how == "close":
            self.protocol.eof_received()
            self.lose(None)
        elif how == "reset":
            self.lose(ConnectionResetError("reset"))


class Net:
    """A loop whose connections end in this test, and a caller on it."""

    def __init__(self, **rest: Any) -> None:
        self.loop = asyncio.SelectorEventLoop()
        self.wires: list[Wire] = []
        self.reported: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda loop, context: self.reported.append(context))
        self.loop.create_connection = self.connect  # type: ignore[assignment]
        limits = {"response_bytes_max": BODY_MAX} | rest
        self.caller = HttpCaller(ServiceSettings(name="pay", url="http://pay", **limits), self.loop)
        self.ahead_s = 0
        self.caller.now = lambda: self.loop.time() + self.ahead_s

    async def connect(self, factory: Callable[[], asyncio.Protocol], *where: Any, **rest: Any) -> tuple[Wire, Any]:
        protocol = factory()
        wire = Wire(self.loop, protocol)
        self.wires.append(wire)
        protocol.connection_made(wire)
        return wire, protocol

    def turn(self) -> None:
        """Lets everything happen that is due."""
        for _ in range(3):
            self.loop.call_soon(self.loop.stop)
            self.loop.run_forever()

    def send(self, method: str = "POST") -> list[Answer]:
        """Sends a call; the list gets its answers."""
        got: list[Answer] = []
        self.caller.send(a_call(Request(service="pay", method=method)), lambda call, answer: got.append(answer))
        self.turn()
        return got

    def late(self) -> None:
        """Long after every deadline."""
        self.ahead_s += 1_000
        self.caller._look_around()
        self.turn()

    def close(self) -> None:
        self.loop.run_until_complete(self.caller.close())
        self.loop.close()


def one(pieces: list[bytes], end: str = "") -> Answer:
    """The answer to one call whose connection brings ``pieces``."""
    net = Net()
    try:
        got = net.send()
        (wire,) = net.wires
        for piece in pieces:
            wire.feed(piece)
        wire.end(end)
        net.turn()
        net.late()
        assert len(got) == 1
        assert not net.reported
        return got[0]
    finally:
        net.close()


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    """``data`` cut at the places, which may lie anywhere."""
    places = sorted({cut % (len(data) + 1) for cut in cuts})
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


bodies = st.one_of(
    st.binary(max_size=200),
    st.sampled_from([b'{"ok":1}', b"[1,2,3]", b'"x"', b"", b"0", b"x" * BODY_MAX, b"x" * (BODY_MAX + 1)]),
)
types = st.sampled_from(["", "application/json", "text/plain; charset=utf-8", "application/octet-stream"])
statuses = st.sampled_from([200, 201, 202, 204, 301, 304, 400, 404, 409, 429, 500, 503])


@st.composite
def answers(draw: st.DrawFn) -> tuple[bytes, str]:
    """A well-formed answer, and how the connection ends after it."""
    status, body, kind = draw(statuses), draw(bodies), draw(types)
    interim = draw(st.sampled_from([b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Hints\r\nLink: a\r\n\r\n"]))
    head = (
        f"HTTP/1.1 {status} Reason\r\n"
        + (f"Content-Type: {kind}\r\n" if kind else "")
        + "Retry-After: 3\r\nX-Empty:\r\n"
    )
    framing = draw(st.sampled_from(["length", "chunked", "close"]))
    if status in (204, 304):
        return interim + head.encode() + b"\r\n", draw(st.sampled_from(["", "close"]))
    if framing == "length":
        return interim + head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body, draw(
            st.sampled_from(["", "close"])
        )
    if framing == "close":
        return interim + head.encode() + b"\r\n" + body, "close"
    size = draw(st.integers(1, 100))
    chunks = [body[i : i + size] for i in range(0, len(body), size)]
    data = b"".join(f"{len(chunk):x};e=1\r\n".encode() + chunk + b"\r\n" for chunk in chunks)
    return interim + head.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + data + b"0\r\nTrail: er\r\n\r\n", ""


def told(answer: Answer) -> tuple[Any, ...]:
    """An answer as values that can be compared."""
    failed = answer.failure
    return (answer.verdict, bytes(answer.outcome), answer.retry_after_ms, failed and (failed.code, bytes(failed.body)))


@settings(max_examples=150, deadline=None)
@given(answers(), st.lists(st.integers(0, 3_000), max_size=12))
def test_any_split_of_an_answer_is_the_same_answer(answer: tuple[bytes, str], cuts: list[int]) -> None:
    """However the network cuts it, byte by byte included."""
    data, end = answer
    whole = told(one([data], end))
    assert told(one(split(data, cuts), end)) == whole
    if len(data) < 400:
        assert told(one([data[i : i + 1] for i in range(len(data))], end)) == whole


surplus = st.one_of(
    st.binary(max_size=30), st.sampled_from([OK, OK[:1], OK[:9], OK[:-1], b"\r\n", b"HTTP/1.1 100 C\r\n\r\n"])
)


@settings(max_examples=150, deadline=None)
@given(answers(), surplus)
def test_what_follows_an_answer_changes_nothing(answer: tuple[bytes, str], more: bytes) -> None:
    """Neither this answer nor the next call's."""
    data, end = answer
    assume(not end)  # else it would belong to the answer
    net = Net()
    try:
        got = net.send()
        net.wires[0].feed(data + more)
        net.turn()
        assert told(got[0]) == told(one([data]))
        check_health(net)
    finally:
        net.close()


@st.composite
def noise(draw: st.DrawFn) -> list[bytes]:
    """Bytes that are no answer, nearly one, or one and something else, cut anywhere."""
    data = draw(st.one_of(st.binary(max_size=300), answers().map(lambda pair: pair[0]), st.just(OK)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        what = draw(st.sampled_from(["delete", "insert", "repeat", "swap"]))
        junk = draw(
            st.one_of(st.binary(max_size=6), st.sampled_from([b"\r\n", b"HTTP/1.1 ", b": ", b"\0", b"ffffffff\r\n"]))
        )
        if what == "delete":
            data = data[:at] + data[at + len(junk) :]
        elif what == "insert":
            data = data[:at] + junk + data[at:]
        elif what == "repeat":
            data = data + data[at:]
        else:
            data = data[at:] + data[:at]
    return split(data, draw(st.lists(st.integers(0, 1_000), max_size=6)))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(noise(), min_size=1, max_size=5),
    st.lists(st.sampled_from(["", "close", "reset"]), min_size=5, max_size=5),
    st.sampled_from(["POST", "HEAD", "GET"]),
)
@example([[OK + OK], [OK]], ["", "", "", "", ""], "POST")
@example([[OK, b"x"]], ["", "", "", "", ""], "HEAD")
@example([[b"HTTP/1.1 200 OK\r\n\r\n", b""]], ["close", "", "", "", ""], "GET")
def test_noise(noises: list[list[bytes]], ends: list[str], method: str) -> None:
    """Five calls, two at a time, over connections that say anything: one answer each, and then all is well."""
    net = Net(max_in_flight=2)
    try:
        got = [net.send(method) for _ in range(5)]
        for pieces, end in zip(noises, ends, strict=False):
            for wire in list(net.wires):
                for piece in pieces:
                    wire.feed(piece)
            for wire in list(net.wires):
                wire.end(end)
            net.turn()
            assert net.caller.in_flight <= 2
        for _ in range(4):
            net.late()
        for answered in got:
            assert len(answered) == 1
            assert answered[0].verdict in (Verdict.OUTCOME, Verdict.FAILURE, Verdict.DELAYED)
            unraw(answered[0].outcome)
        assert (net.caller.in_flight, net.caller.queued) == (0, 0)
        check_health(net)
        assert not net.reported
    finally:
        net.close()


def check_health(net: Net) -> None:
    """Every connection that the pool still trusts brings the right answer to the right call."""
    assert all(wire.open for wire in net.wires if wire.protocol in net.caller._connections)
    for number in range(4):
        answered = net.send()
        (wire,) = [wire for wire in net.wires if wire.protocol in net.caller._connections and wire.protocol.exchange]  # type: ignore[attr-defined]
        wire.feed(reply(str(number).encode()))
        assert unraw(answered[0].outcome) == number
    assert len(net.caller._connections) <= 2


HEADS = [
    b"",
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 200 OK\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
]


@settings(max_examples=60, deadline=None)
@given(
    st.one_of(st.binary(min_size=1, max_size=40), st.sampled_from([b"A: b\r\n", b"1\r\nx\r\n"])), st.sampled_from(HEADS)
)
def test_nothing_is_kept_beyond_the_limits(piece: bytes, head: bytes) -> None:
    """A connection that repeats the same for ever is dropped before it has brought much."""
    net = Net()
    try:
        net.send()
        (wire,) = net.wires
        wire.feed(head)
        brought = 0
        while wire.open and brought < 1_000_000:
            wire.feed(piece * 50)
            brought += len(piece) * 50
        assert brought < 100_000 or not wire.open
    finally:
        net.close()
